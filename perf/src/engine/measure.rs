//! Running the worker's own loop for a while, and what is read before and after.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use flowtable::DropReason;
use hdrhistogram::Histogram;
use packet_io::memory::Tally;
use perf::{Rig, Traffic};
use vrouter::{CacheStats, Engine};

use crate::cpu;

/// Longest loop that is told apart from longer ones.
const LOOP_NS_MAX: u64 = 1_000_000_000;
/// Between two looks at the queue of samples.
const DRAIN_PAUSE: Duration = Duration::from_millis(5);

/// What a rig has done so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Readings {
    pub(super) sent: Tally,
    pub(super) cache: CacheStats,
}

impl Readings {
    pub(super) fn of(rig: &mut Rig, traffic: &Traffic) -> Self {
        Self { sent: rig.sent(traffic.queue_out()), cache: rig.engine.cache() }
    }
}

/// What a measurement has seen.
#[derive(Debug)]
pub(super) struct Timing {
    pub(super) elapsed: Duration,
    /// What this thread has run of it; less when others have used the CPU.
    pub(super) on_cpu: Duration,
    /// Time of each loop of the worker, in ns.
    pub(super) loops: Histogram<u64>,
    pub(super) samples: u64,
}

/// Runs the worker's own loop while another thread keeps time and drains the samples. The worker
/// reads the clock once a loop, which is where loops are timed.
pub(super) fn measure(rig: &mut Rig, seconds: f64) -> Result<Timing> {
    let loops = RefCell::new(Histogram::new_with_bounds(1, LOOP_NS_MAX, 3)?);
    let last = Cell::new(0);
    let stop = AtomicBool::new(false);
    let samples = AtomicU64::new(0);
    let engine = rig.engine.clone();
    let cpu_before = cpu::time()?;
    let start = Instant::now();
    let elapsed = std::thread::scope(|scope| {
        scope.spawn(|| {
            while start.elapsed().as_secs_f64() < seconds {
                std::thread::sleep(DRAIN_PAUSE);
                samples.fetch_add(drain(&engine), Ordering::Relaxed);
            }
            stop.store(true, Ordering::Relaxed);
        });
        let clock = || {
            let now = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            loops.borrow_mut().saturating_record(now - last.replace(now));
            now
        };
        rig.worker.run(clock, &stop);
        start.elapsed()
    });
    let on_cpu = cpu::time()?.saturating_sub(cpu_before);
    Ok(Timing { elapsed, on_cpu, loops: loops.into_inner(), samples: samples.into_inner() })
}

fn drain(engine: &Engine) -> u64 {
    std::iter::from_fn(|| engine.next_sample()).fold(0, |count, _| count + 1)
}

/// Reasons by which packets ended, and how many.
pub(super) fn dropped(engine: &Engine) -> Vec<(DropReason, u64)> {
    let drops = engine.drops().into_iter().map(|(reason, count)| (reason, count.packets));
    drops.filter(|(_, packets)| *packets > 0).collect()
}
