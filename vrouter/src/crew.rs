//! The workers of an engine: making them, and waiting for all of them.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use flowtable::conn::Seconds;
use flowtable::meter::MeterLease;
use packet_io::PacketIo;

use crate::batch::Control;
use crate::engine::{Engine, WriteError};
use crate::mailbox::{WorkerHandle, mailbox};
use crate::slow::{SLOW_QUEUE, SlowPath, Way};
use crate::snapshot::Sections;
use crate::worker::{Bounds, Parts, Tracker, WorkStats, Worker};

/// Longest a publication waits for the workers before it is reported as stalled.
const WORKER_PATIENCE: Duration = Duration::from_secs(2);
/// First pause between two looks at the workers' progress; a wake-up has been sent before. Pauses
/// grow, so that what the system adds to each does not add up to more patience.
const WORKER_CHECK: Duration = Duration::from_micros(50);
/// Longest pause.
const WORKER_CHECK_MAX: Duration = Duration::from_millis(10);

/// A worker, and who calls it from other threads.
pub type WithHandle<I> = (Worker<I>, WorkerHandle<I>);

impl Engine {
    /// The worker that forwards on `io`, of an engine that has one.
    pub fn worker<I: PacketIo>(&self, io: I) -> WithHandle<I> {
        self.lock().workers.clear();
        self.next_worker(io, 0, self.lease(0))
    }

    /// The workers of an engine, each with an I/O of its own; `None`: they are not as many as
    /// [`EngineConfig::workers`]. All have to be run by the same clock.
    #[must_use]
    pub fn workers<I: PacketIo>(&self, ios: Vec<I>) -> Option<Vec<WithHandle<I>>> {
        if ios.len() != usize::from(self.config.workers) {
            return None;
        }
        self.lock().workers.clear();
        let numbered = (0..).zip(ios);
        Some(
            numbered.map(|(number, io)| self.next_worker(io, number, self.lease(number))).collect(),
        )
    }

    fn next_worker<I: PacketIo>(&self, io: I, number: u16, lease: MeterLease) -> WithHandle<I> {
        let replies = Arc::new(ArrayQueue::new(SLOW_QUEUE));
        let (waker, way_back) = (io.waker(), Arc::clone(&replies));
        let (handle, calls) = mailbox(Arc::clone(&waker));
        self.lock().workers.push(Way { replies: way_back, waker });
        let parts = Parts {
            number,
            board: Arc::clone(&self.shared.boards.0[usize::from(number)]),
            shared: Arc::clone(&self.shared),
            flow_entries: self.config.flow_entries,
            masked_entries: self.config.masked_entries,
            seed: self.config.seed,
            tracker: Tracker::new(self.bounds()),
            lease,
            punts: self.punts.clone(),
            replies,
        };
        (Worker::new(io, parts, calls), handle)
    }

    fn bounds(&self) -> Bounds {
        let config = &self.config;
        Bounds {
            tenant_connections: config.tenant_connections,
            port_connections: config.port_connections,
            tenant_new_flows: config.tenant_new_flows,
            pickup: Seconds(config.pickup_seconds),
        }
    }

    #[expect(clippy::expect_used, reason = "the bank was made for as many workers")]
    fn lease(&self, worker: u16) -> MeterLease {
        MeterLease::new(&self.shared.meters, worker.into()).expect("a bank has a share a worker")
    }

    /// The slow path of all workers; `None` before there are any.
    #[must_use]
    pub fn slow_path(&self) -> Option<SlowPath> {
        let workers = self.lock().workers.clone();
        (!workers.is_empty()).then(|| SlowPath { punted: self.punted.clone(), workers })
    }

    /// Swaps the pointer, and waits until every worker has moved on.
    pub(crate) fn publish_to_workers(
        &self,
        control: &Control,
        changed: Sections,
    ) -> Result<u64, WriteError> {
        let before = self.shared.snapshot.load_full();
        let next = Arc::new(before.next(&control.master, changed));
        let revision = next.revision;
        self.shared.snapshot.store(next);
        control.workers.iter().for_each(|worker| worker.waker.wake());
        let (mut waited, mut pause) = (Duration::ZERO, WORKER_CHECK);
        while let Some(worker) = self.shared.boards.behind(revision) {
            if waited >= WORKER_PATIENCE {
                return Err(WriteError::Stalled { revision, worker });
            }
            std::thread::park_timeout(pause);
            waited += pause;
            pause = (pause * 2).min(WORKER_CHECK_MAX);
        }
        drop(before);
        Ok(revision)
    }

    /// What each worker has done, and where its time went.
    #[must_use]
    pub fn work(&self) -> Vec<WorkStats> {
        let boards = self.shared.boards.0.iter();
        boards.map(|board| board.counters.work().read()).collect()
    }
}
