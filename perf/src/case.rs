//! The cases whose instructions per packet are kept: the same tables, packets and order in every
//! run, so that the count is the same too.

use anyhow::{Result, ensure};
use packet_io::memory::Inspect;
use vrouter::{BURST, EngineConfig};

use crate::rig::Rig;
use crate::traffic::Traffic;
use crate::verify::Verified;
use crate::workload::Way;

/// Bursts of one run.
const BURSTS: u64 = 64;
/// Packets of one run.
pub const CASE_PACKETS: u64 = BURSTS * BURST as u64;
const FLOWS: u32 = 1000;
/// With new flows: as many as there are packets, and those that came before.
const NEW_FLOWS: u32 = 100_000;
const SAMPLE_RATE: u32 = 400;
const SEED: u64 = 0x5eed;

/// What the packets of a run have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// 1,000 cached flows, routed to a container of this node.
    Local,
    /// 1,000 cached flows, routed to another node over VXLAN.
    Encap,
    /// 1,000 cached flows, from another node over VXLAN.
    Decap,
    /// Every packet is the first of its flow.
    NewFlow,
}

impl Case {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Local, Self::Encap, Self::Decap, Self::NewFlow];

    /// An engine that has seen every cached flow twice and stands before the first packet of a run.
    ///
    /// # Errors
    /// When a frame that came out so far was not as expected.
    pub fn prepare(self) -> Result<Prepared> {
        let (flows, way) = match self {
            Self::Local => (FLOWS, Way::Local),
            Self::Encap => (FLOWS, Way::Encap),
            Self::Decap => (FLOWS, Way::Decap),
            Self::NewFlow => (NEW_FLOWS, Way::Local),
        };
        let traffic = Traffic { fresh: self == Self::NewFlow, ..Traffic::new(flows, way)? };
        let config =
            EngineConfig { seed: SEED, sample_rate: SAMPLE_RATE, ..EngineConfig::default() };
        let mut rig = Rig::carrying(&traffic, config)?;
        let verified = rig.check(&traffic)?;
        let mut prepared = Prepared { rig, verified, queue: traffic.queue_out() };
        prepared.run();
        let right = prepared.verified.right();
        ensure!(right == CASE_PACKETS, "{right} of {CASE_PACKETS} frames came out as expected");
        prepared.rig.worker.io_mut().set_inspect(prepared.queue, Inspect::Sample);
        Ok(prepared)
    }
}

/// An engine before or after a run.
#[derive(Debug)]
pub struct Prepared {
    rig: Rig,
    verified: Verified,
    queue: packet_io::QueueId,
}

impl Prepared {
    /// Forwards [`CASE_PACKETS`] packets.
    pub fn run(&mut self) {
        for _ in 0..BURSTS {
            self.rig.worker.poll(0);
        }
    }

    /// Packets sent so far, in the runs and before.
    pub fn sent(&mut self) -> u64 {
        self.rig.sent(self.queue).packets
    }

    /// Frames compared so far: all before the first run, 64 in each.
    #[must_use]
    pub const fn verified(&self) -> &Verified {
        &self.verified
    }

    /// Packets decided so far: by a cache, and by walking the tables.
    #[must_use]
    pub fn decided(&self) -> (u64, u64) {
        let cache = self.rig.engine.cache();
        (cache.exact_hits + cache.masked_hits, cache.pipeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_forwards_its_packets_byte_for_byte_by_the_tier_it_is_about() {
        for case in Case::ALL {
            let mut prepared = case.prepare().unwrap();
            let before = prepared.decided();
            prepared.run();
            let after = prepared.decided();
            let decided = (after.0 - before.0, after.1 - before.1);
            let expected =
                if case == Case::NewFlow { (0, CASE_PACKETS) } else { (CASE_PACKETS, 0) };
            assert_eq!(decided, expected, "{case:?}");
            assert_eq!(prepared.sent(), 2 * CASE_PACKETS, "{case:?}");
            let verified = prepared.verified();
            assert_eq!((verified.right(), verified.wrong()), (CASE_PACKETS + 64, 0), "{case:?}");
        }
    }
}
