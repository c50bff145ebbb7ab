//! `vrperf memory`: what the exact cache costs in memory alone.
//!
//! The same flows as in `vrperf engine`, in a cache of entries of the same size, asked for in the same
//! bursts: first both cache lines of each, then the key is compared and a counter written. No packet is
//! read or forwarded. What this costs more with many flows than with 1,000 is time that the engine has
//! to wait, however few instructions it has: its own figure with 1,000 flows plus that is the bound for
//! many.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use flowtable::cache::{FlowCache, Hint};
use flowtable::ids::PortId;
use flowtable::key::{Brief, KeyHasher};
use perf::workload::flow;
use serde::Serialize;
use vrouter::BURST;

use crate::cpu::{self, Stay};

/// Flows whose entries are in the CPU's own caches.
const FEW: u32 = 1000;
/// Places of the cache for each flow, as `vrperf engine` has them.
const PLACES_PER_FLOW: usize = 4;
const FRAME_BYTES: usize = 64;
const SEED: u64 = 0x5eed;
const NS_PER_S: f64 = 1e9;

/// Stands for a flow: as large, and written in its first line, read in its second.
type Value = [u64; 24];

/// Settings of one run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Distinct 5-tuples.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=4_000_000))]
    flows: u32,
    #[command(flatten)]
    stay: Stay,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    flows: u32,
    bytes_per_flow: usize,
    /// CPU time of one lookup.
    ns_per_lookup: f64,
    /// The same among 1,000 flows.
    ns_per_lookup_few: f64,
    /// The difference: time for memory.
    ns_waited: f64,
}

/// Runs one measurement.
pub(crate) fn run(options: &Options) -> Result<Report> {
    options.stay.pin()?;
    let few = ns_per_lookup(FEW, options.stay.time())?;
    let many = ns_per_lookup(options.flows, options.stay.time())?;
    Ok(Report {
        flows: options.flows,
        bytes_per_flow: FlowCache::<Value>::ENTRY_BYTES,
        ns_per_lookup: many,
        ns_per_lookup_few: few,
        ns_waited: many - few,
    })
}

fn ns_per_lookup(flows: u32, time: Duration) -> Result<f64> {
    eprintln!("vrperf: {flows} flows for {} s", time.as_secs_f64());
    let hasher = KeyHasher::new(SEED);
    let port = PortId::MIN;
    let briefs: Vec<(u64, Brief)> = (0..flows)
        .map(|i| {
            let frame = flow(i).sent(port, FRAME_BYTES);
            let brief = Brief::bare(&frame, port).context("a flow's packet is not plain")?.brief;
            Ok((hasher.hash_brief(&brief), brief))
        })
        .collect::<Result<_>>()?;
    let mut cache = FlowCache::<Value>::new((flows as usize) * PLACES_PER_FLOW);
    for (hash, brief) in &briefs {
        cache.insert_named(*hash, (brief.key(), *brief), [0; 24], |_| false);
    }
    ensure!(
        cache.len() as u64 * 100 >= u64::from(flows) * 99,
        "{} flows in the cache",
        cache.len()
    );
    turn(&mut cache, &briefs);
    let (start, mut turns) = (cpu::time()?, 0.0);
    let mut used = Duration::ZERO;
    while used < time {
        turn(&mut cache, &briefs);
        turns += 1.0;
        used = cpu::time()?.saturating_sub(start);
    }
    Ok(used.as_secs_f64() * NS_PER_S / (turns * f64::from(flows)))
}

/// Every flow once.
fn turn(cache: &mut FlowCache<Value>, briefs: &[(u64, Brief)]) {
    let mut hints = [Hint::NONE; BURST];
    for burst in briefs.chunks(BURST) {
        for (hint, (hash, _)) in hints.iter_mut().zip(burst) {
            *hint = cache.touch(*hash, |value| value[3]);
        }
        for (hint, (_, brief)) in hints.iter().zip(burst) {
            if let Some(slot) = cache.find(*hint, brief) {
                cache.entry_mut(slot)[0] += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flow_is_looked_up() {
        assert!(ns_per_lookup(2000, Duration::from_millis(1)).unwrap() > 0.0);
    }
}
