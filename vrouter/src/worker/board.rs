//! What a worker shows: its counters, its clock, and how far it is. It alone writes there, on cache lines
//! that no other worker writes to; anyone reads. What several workers show is summed when it is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flowtable::DropReason;
use flowtable::ids::PortId;

use crate::counters::{Count, Counters, TIER_COUNT};

/// One worker's, on lines of its own (two: processors fetch them in pairs).
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Board {
    pub(crate) counters: Counters,
    /// Revision the worker has moved on to.
    pub(crate) seen: AtomicU64,
    /// The worker's clock at its last loop, in nanoseconds.
    pub(crate) now_ns: AtomicU64,
    /// A thread is in [`super::Worker::run`].
    pub(crate) running: AtomicBool,
}

impl Board {
    pub(crate) fn new(rule_slots: usize) -> Self {
        Self {
            counters: Counters::new(rule_slots),
            seen: AtomicU64::new(0),
            now_ns: AtomicU64::new(0),
            running: AtomicBool::new(false),
        }
    }

    /// It may still use tables from before `revision`.
    pub(crate) fn is_behind(&self, revision: u64) -> bool {
        self.running.load(Ordering::Acquire) && self.seen.load(Ordering::Acquire) < revision
    }
}

/// All workers' boards.
#[derive(Debug)]
pub(crate) struct Boards(pub(crate) Box<[Arc<Board>]>);

impl Boards {
    pub(crate) fn new(workers: usize, rule_slots: usize) -> Self {
        let boards = (0..workers).map(|_| Arc::new(Board::new(rule_slots)));
        Self(boards.collect())
    }

    /// The workers' clock: that of the one which looked at it last.
    pub(crate) fn now_ns(&self) -> u64 {
        let clocks = self.0.iter().map(|board| board.now_ns.load(Ordering::Relaxed));
        clocks.max().unwrap_or_default()
    }

    /// A worker that may still use tables from before `revision`.
    pub(crate) fn behind(&self, revision: u64) -> Option<u16> {
        let numbered = (0..).zip(&self.0);
        numbered.into_iter().find(|(_, board)| board.is_behind(revision)).map(|(number, _)| number)
    }

    fn counters(&self) -> impl Iterator<Item = &Counters> {
        self.0.iter().map(|board| &board.counters)
    }

    /// Received, sent and dropped on a port.
    pub(crate) fn port(&self, port: PortId) -> [Count; 3] {
        self.counters().map(|counters| counters.port(port)).fold(
            [Count::default(); 3],
            |[rx, tx, drops], cells| {
                let (more_rx, more_tx) = (cells.rx.read(), cells.tx.read());
                [rx.plus(more_rx), tx.plus(more_tx), drops.plus(cells.drops.read())]
            },
        )
    }

    pub(crate) fn rule(&self, slot: u32) -> Count {
        let counts = self.counters().map(|counters| counters.rule(slot).read());
        counts.fold(Count::default(), Count::plus)
    }

    pub(crate) fn drop_reason(&self, reason: DropReason) -> Count {
        let counts = self.counters().map(|counters| counters.drop_reason(reason).read());
        counts.fold(Count::default(), Count::plus)
    }

    /// Packets by tier, and the entries of both caches with the masks of the second.
    pub(crate) fn tiers(&self) -> ([u64; TIER_COUNT], [u64; 3]) {
        let sum = |of: fn(&Counters) -> [u64; 3]| {
            self.counters()
                .map(of)
                .fold([0; 3], |sum, own| std::array::from_fn(|n| sum[n] + own[n]))
        };
        (sum(Counters::tiers), sum(Counters::entries))
    }

    /// Only while no worker uses the rule.
    pub(crate) fn reset_rule(&self, slot: u32) {
        self.counters().for_each(|counters| counters.rule(slot).reset());
    }

    /// Only while no worker uses the port.
    pub(crate) fn reset_port(&self, port: PortId) {
        self.counters().for_each(|counters| counters.reset_port(port));
    }
}
