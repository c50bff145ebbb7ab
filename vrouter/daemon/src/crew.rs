//! The workers: one thread each, on a CPU of its own where `--cpus` says so, with a trunk, packet buffers
//! and sockets of its own. Nothing that a packet needs is shared with another worker but tables.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use afxdp::XskIo;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use vrouter::{Unanswered, Worker, WorkerHandle};

use crate::plane::{StartError, prefer, spawn};

/// A worker is asked for so long: to list a full cache takes part of a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// A worker that did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("worker {worker}: {why}")]
pub(crate) struct Silent {
    worker: usize,
    why: Unanswered,
}

/// Calls to all workers, by their numbers. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Crew {
    handles: Arc<[WorkerHandle<XskIo>]>,
    cpus: Arc<[usize]>,
}

impl Crew {
    /// Workers on these CPUs, or one on any.
    pub(crate) fn new(handles: Vec<WorkerHandle<XskIo>>, cpus: &[usize]) -> Self {
        Self { handles: handles.into(), cpus: cpus.into() }
    }

    /// The one that has the queues of dedicated uplinks.
    pub(crate) fn first(&self) -> &WorkerHandle<XskIo> {
        &self.handles[0]
    }

    pub(crate) fn len(&self) -> usize {
        self.handles.len()
    }

    /// That a worker is pinned to.
    pub(crate) fn cpu(&self, worker: u16) -> Option<usize> {
        self.cpus.get(usize::from(worker)).copied()
    }

    /// Runs `f` on every worker, one after the other, between two of its bursts.
    ///
    /// # Errors
    /// [`Silent`] for the first that has ended or does not answer: who looks for what is wrong is not
    /// kept waiting by it.
    pub(crate) fn ask<R: Send + 'static>(
        &self,
        f: impl Fn(&mut Worker<XskIo>) -> R + Clone + Send + 'static,
    ) -> Result<Vec<R>, Silent> {
        let asked = |(worker, handle): (usize, &WorkerHandle<XskIo>)| {
            handle.ask(PATIENCE, f.clone()).map_err(|why| Silent { worker, why })
        };
        self.handles.iter().enumerate().map(asked).collect()
    }
}

/// Starts worker `number`, which looks at the clock that began at `started`.
pub(crate) fn start(
    (number, mut worker): (usize, Worker<XskIo>),
    cpu: Option<usize>,
    started: Instant,
    stop: &Arc<AtomicBool>,
) -> Result<JoinHandle<()>, StartError> {
    let (pinned, result) = mpsc::sync_channel(1);
    let stop = Arc::clone(stop);
    let name = format!("worker-{number}");
    let thread = spawn(&name.clone(), move || {
        let outcome = cpu.map_or(Ok(()), pin);
        let failed = outcome.is_err();
        // The starting thread waits for it.
        pinned.send(outcome).ok();
        if !failed {
            prefer(&name);
            worker.run(move || started.elapsed().as_nanos() as u64, &stop);
        }
    })?;
    match result.recv() {
        Ok(Err(source)) => Err(StartError::Pin { cpu: cpu.unwrap_or_default(), source }),
        // The thread sends before it does anything that can panic.
        Ok(Ok(())) | Err(_) => Ok(thread),
    }
}

fn pin(cpu: usize) -> Result<(), nix::Error> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}
