//! The CPU that a thread is on, and what it was given of it.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use perf::Rig;

/// Where and for how long to measure.
#[derive(Debug, Args)]
pub(crate) struct Stay {
    /// How long to measure, each time, in CPU time.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// CPU to run on.
    #[arg(long)]
    cpu: Option<usize>,
    /// One JSON object on standard output (there is no other form).
    #[arg(long)]
    json: bool,
}

impl Stay {
    /// Keeps this thread on the CPU asked for, if one is.
    pub(crate) fn pin(&self) -> Result<()> {
        self.cpu.map_or(Ok(()), pin)
    }

    /// Seconds of each measurement.
    pub(crate) const fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Time of each measurement.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// Keeps this thread on one CPU.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).with_context(|| format!("no CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("pinning to CPU {cpu}"))
}

/// What this thread has run so far, in the kernel too.
pub(crate) fn time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Runs the worker until it has had this much of its CPU, which is also its clock; returns how much
/// it was.
pub(crate) fn run_for(rig: &mut Rig, share: Duration) -> Result<Duration> {
    let start = time()?;
    let now = Cell::new(start);
    let stop = AtomicBool::new(false);
    let clock = || {
        // The clock of a running thread can be read: if not, it stands and the loop below ends.
        match time() {
            Ok(used) => now.set(used),
            Err(_unreadable) => stop.store(true, Ordering::Relaxed),
        }
        if now.get().saturating_sub(start) >= share {
            stop.store(true, Ordering::Relaxed);
        }
        u64::try_from(now.get().as_nanos()).unwrap_or(u64::MAX)
    };
    rig.worker.run(clock, &stop);
    Ok(now.get().saturating_sub(start))
}
