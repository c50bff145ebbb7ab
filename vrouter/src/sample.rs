//! sFlow sampling in the worker: a countdown per port, one comparison per packet, and a copy of
//! the header when it reaches zero. What is forwarded without a worker is sampled there, and its
//! samples join the worker's here.

use std::sync::atomic::Ordering;

use flowtable::DropReason;
pub use flowtable::hot::SAMPLE_HEADER_BYTES;
use flowtable::hot::{HotSample, HotTable};
use flowtable::ids::PortId;

use crate::worker::Shared;

/// Most samples of one large packet that are told; the rest counts as lost. At a rate worth having a
/// packet of 64 KiB has one at most.
const SAMPLES_OF_ONE: u32 = 64;
/// Samples of what was forwarded without a worker that are taken at once.
const GATHERED: usize = 64;

/// One sampled packet, as it was received.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// The port it came from: the sample's data source.
    pub in_port: PortId,
    /// The port it went to.
    pub out_port: Option<PortId>,
    /// Why it went nowhere.
    pub drop: Option<DropReason>,
    /// The rate in force: one in this many.
    pub rate: u32,
    /// Packets that could have been sampled on the port so far, itself included: received by the
    /// workers, or forwarded without them while the port was sampled.
    pub pool: u64,
    /// Length of the packet without FCS.
    pub frame_len: u32,
    /// 802.1Q tag it was received with; 0 is none.
    pub vlan_in: u16,
    /// 802.1Q tag it was sent with; 0 is none.
    pub vlan_out: u16,
    /// The first bytes of the packet as received.
    pub header: [u8; SAMPLE_HEADER_BYTES],
    /// How many of them are valid.
    pub header_len: u8,
}

impl Sample {
    /// One of those that a sample of a packet forwarded without the worker stands for, `later` of
    /// which are behind it. The port's worker has received `received` packets.
    fn of(hot: &HotSample, later: u32, received: u64) -> Self {
        Self {
            in_port: hot.in_port,
            out_port: Some(hot.out_port),
            drop: None,
            rate: hot.rate,
            pool: hot.pool.saturating_sub(later.into()) + received,
            frame_len: hot.frame_len,
            vlan_in: 0,
            vlan_out: 0,
            header: hot.header,
            header_len: hot.header_len,
        }
    }
}

/// The packets of a port that could have been sampled, the worker's and the others.
pub(crate) fn pool(shared: &Shared, port: PortId) -> u64 {
    let hot = shared.hot.get().map_or(0, |hot| hot.table().sampled_from(port));
    received(shared, port) + hot
}

fn received(shared: &Shared, port: PortId) -> u64 {
    shared.boards.port(port)[0].packets
}

/// Takes some samples out of `table`.
pub(crate) fn gather(shared: &Shared, table: &dyn HotTable) {
    for hot in std::iter::from_fn(|| table.next_sample()).take(GATHERED) {
        let told = hot.count.min(SAMPLES_OF_ONE);
        let received = received(shared, hot.in_port);
        let samples = (0..told).rev().map(|later| Sample::of(&hot, later, received));
        let lost = samples.filter_map(|sample| shared.samples.push(sample).err()).count() as u64;
        shared.samples_lost.fetch_add(lost + u64::from(hot.count - told), Ordering::Relaxed);
    }
}

/// Per-port countdowns with a mean of the sampling rate.
#[derive(Debug)]
pub(crate) struct Sampler {
    skip: Box<[Countdown]>,
    state: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Countdown {
    left: u32,
    /// The rate `left` was drawn for; another rate draws anew.
    rate: u32,
}

impl Sampler {
    /// Of a worker: each draws numbers of its own.
    pub(crate) fn new(seed: u64, worker: u16) -> Self {
        // Weyl's constant: far apart, whatever the seed.
        let seed = seed.wrapping_add(u64::from(worker).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let ports = usize::from(PortId::MAX.get()) + 1;
        Self { skip: vec![Countdown::default(); ports].into_boxed_slice(), state: seed | 1 }
    }

    /// Whether this packet of `port` is sampled at one in `rate` (0: never).
    #[inline(always)]
    pub(crate) fn take(&mut self, port: PortId, rate: u32) -> bool {
        match self.skip.get_mut(usize::from(port.get())) {
            Some(Countdown { left: left @ 2.., rate: of }) if *of == rate => {
                *left -= 1;
                false
            }
            _ => self.turn(port, rate),
        }
    }

    /// A countdown ends, or begins.
    #[cold]
    fn turn(&mut self, port: PortId, rate: u32) -> bool {
        let at = usize::from(port.get());
        if rate == 0 {
            // Nothing is drawn for it: this only passes the time until there is a rate.
            self.skip[at] = Countdown { left: u32::MAX, rate };
            return false;
        }
        if self.skip[at].rate != rate {
            self.skip[at] = Countdown { left: self.draw(rate), rate };
        }
        self.skip[at].left -= 1;
        if self.skip[at].left > 0 {
            return false;
        }
        self.skip[at].left = self.draw(rate);
        true
    }

    /// Uniform in 1..=2*rate-1, so the mean is `rate`. xorshift64* (Vigna 2016): 64 bits of state,
    /// because a short generator over-samples at high rates.
    fn draw(&mut self, rate: u32) -> u32 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let random = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        let span = 2 * u64::from(rate) - 1;
        let value = 1 + ((random * span) >> 32);
        u32::try_from(value).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sampled_share_is_within_the_error_of_the_rate() {
        let port = PortId::new(7).unwrap();
        for rate in [1_u32, 2, 100, 400] {
            let mut sampler = Sampler::new(42, 0);
            let total = rate * 10_000;
            let taken: u32 = (0..total).map(|_| u32::from(sampler.take(port, rate))).sum();
            let error = (f64::from(taken) - 10_000.0).abs();
            // Skips uniform in [1, 2N-1]: variance per sample (2N-1)^2/12, below N^2/3.
            assert!(error < 4.5 * (10_000.0_f64 / 3.0).sqrt() + 1.0, "rate {rate}: {taken}");
        }
    }

    #[test]
    fn rate_zero_never_samples_and_a_new_rate_draws_anew() {
        let port = PortId::new(1).unwrap();
        let mut sampler = Sampler::new(1, 0);
        assert!((0..1000).all(|_| !sampler.take(port, 0)));
        assert!((0..10).all(|_| sampler.take(port, 1)));
    }
}
