//! The newest writes, as etcd's watch tells them: what a [`crate::Watch`] reads and what says
//! whether something read earlier is still the newest.
//!
//! etcd's own history answers a watch too, but not how far it has answered. So every process
//! follows the whole root once and keeps the tail here.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::{Op, WatchEvent};

/// Who leads, as it wrote itself down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leader {
    /// The revision that made its key: the term's token.
    pub(super) token: u64,
    /// Where it can be reached.
    pub(super) address: String,
}

#[derive(Debug)]
pub(super) struct Log {
    tail: Mutex<Tail>,
    newest: watch::Sender<u64>,
    leader: watch::Sender<Option<Leader>>,
    /// Counts how often etcd's history went back: after a restore from a backup.
    rewinds: watch::Sender<u64>,
    revisions_max: u64,
}

#[derive(Debug, Default)]
struct Tail {
    batches: VecDeque<(u64, Vec<Op>)>,
    /// Every write after this revision is in `batches`.
    after: u64,
    /// Everything up to this revision has been heard of.
    heard: u64,
}

impl Log {
    pub(super) fn new(revisions_max: u64) -> Self {
        Self {
            tail: Mutex::default(),
            newest: watch::Sender::new(0),
            leader: watch::Sender::new(None),
            rewinds: watch::Sender::new(0),
            revisions_max,
        }
    }

    pub(super) fn revisions(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    pub(super) fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.leader.subscribe()
    }

    pub(super) fn rewinds(&self) -> watch::Receiver<u64> {
        self.rewinds.subscribe()
    }

    pub(super) fn tell_leader(&self, leader: Option<Leader>) {
        self.leader.send_if_modified(|known| {
            let changes = *known != leader;
            *known = leader;
            changes
        });
    }

    /// Revision up to which everything was heard of.
    pub(super) fn heard(&self) -> u64 {
        self.lock().heard
    }

    /// The oldest revision that a watch can resume from.
    pub(super) fn oldest(&self) -> u64 {
        self.lock().after
    }

    pub(super) fn push(&self, revision: u64, ops: Vec<Op>) {
        let mut tail = self.lock();
        tail.batches.push_back((revision, ops));
        tail.heard = revision;
        while tail.batches.len() as u64 > self.revisions_max {
            if let Some((oldest, _)) = tail.batches.pop_front() {
                tail.after = oldest;
            }
        }
        drop(tail);
        self.newest.send_replace(revision);
    }

    /// Nothing of the store happened up to `revision`.
    pub(super) fn quiet(&self, revision: u64) {
        let mut tail = self.lock();
        tail.heard = tail.heard.max(revision);
    }

    /// etcd has forgotten what happened up to `revision`.
    pub(super) fn skip_to(&self, revision: u64) {
        *self.lock() = Tail { batches: VecDeque::new(), after: revision, heard: revision };
        self.newest.send_replace(revision);
    }

    /// etcd is at `revision` and was further before: what is known here never happened.
    pub(super) fn rewind(&self, revision: u64) {
        self.skip_to(revision);
        self.tell_leader(None);
        self.rewinds.send_modify(|count| *count += 1);
    }

    /// As [`crate::Store::events`]; `None` when `from_revision` was not heard of yet.
    pub(super) fn events(
        &self,
        prefix: &[u8],
        from_revision: u64,
        limit: usize,
    ) -> Option<WatchEvent> {
        let tail = self.lock();
        if from_revision > tail.heard {
            return None;
        }
        if from_revision < tail.after {
            return Some(WatchEvent::Compacted);
        }
        let first = tail.batches.partition_point(|(revision, _)| *revision <= from_revision);
        let mut batches = Vec::new();
        let mut up_to = from_revision;
        for (revision, ops) in tail.batches.iter().skip(first) {
            if batches.len() == limit {
                break;
            }
            up_to = *revision;
            let ops: Vec<_> =
                ops.iter().filter(|op| op.key().starts_with(prefix)).cloned().collect();
            if !ops.is_empty() {
                batches.push((*revision, ops));
            }
        }
        Some(WatchEvent::Batches { batches, up_to })
    }

    fn lock(&self) -> MutexGuard<'_, Tail> {
        // Nothing here can panic between two writes that belong together.
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
