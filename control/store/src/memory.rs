//! A store in memory: for tests, and for runs whose state may be lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Commit, Compare, LOG_REVISIONS, Listing, Op, Store, StoreError, Value, WatchEvent};

/// A store in memory. Clones share it.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    revisions: Arc<tokio::sync::watch::Sender<u64>>,
    log_revisions: u64,
    ops_max: usize,
}

#[derive(Debug, Default)]
struct State {
    items: BTreeMap<Vec<u8>, Value>,
    log: VecDeque<(u64, Vec<Op>)>,
    revision: u64,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::with_log(LOG_REVISIONS)
    }
}

impl MemoryStore {
    /// Keeps events of the last `log_revisions` revisions.
    #[must_use]
    pub fn with_log(log_revisions: u64) -> Self {
        let revisions = Arc::new(tokio::sync::watch::Sender::new(0));
        Self { state: Arc::default(), revisions, log_revisions, ops_max: usize::MAX }
    }

    /// Refuses transactions of more operations, as etcd does (128 unless it is told otherwise).
    #[must_use]
    pub fn taking_at_once(self, ops_max: usize) -> Self {
        Self { ops_max, ..self }
    }

    // A panic while it is held can leave nothing half done: a transaction is checked before it is
    // applied, and applying it can't fail.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Absent(key) => !self.items.contains_key(key),
            Compare::Revision(key, revision) => {
                self.items.get(key).is_some_and(|value| value.revision == *revision)
            }
            Compare::StoreRevision(revision) => self.revision == *revision,
        }
    }

    fn apply(&mut self, ops: Vec<Op>) {
        self.revision += 1;
        let mut events = Vec::with_capacity(ops.len());
        for op in ops {
            let happened = match &op {
                Op::Put(key, bytes) => {
                    let value = Value { bytes: bytes.clone(), revision: self.revision };
                    self.items.insert(key.clone(), value);
                    true
                }
                Op::Delete(key) => self.items.remove(key).is_some(),
            };
            if happened {
                events.push(op);
            }
        }
        self.log.push_back((self.revision, events));
    }
}

impl Store for MemoryStore {
    async fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        Ok(self.lock().items.get(key).cloned())
    }

    async fn list(&self, prefix: &[u8]) -> Result<Listing, StoreError> {
        let state = self.lock();
        let from_prefix = state.items.range(prefix.to_vec()..);
        let items = from_prefix.take_while(|(key, _)| key.starts_with(prefix));
        let items = items.map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(Listing { items, revision: state.revision })
    }

    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Commit, StoreError> {
        if ops.len() > self.ops_max {
            return Err(StoreError::TooLarge(format!("{} operations", ops.len())));
        }
        let mut state = self.lock();
        if !compares.iter().all(|compare| state.holds(compare)) {
            return Ok(Commit::Conflict);
        }
        if !ops.is_empty() {
            state.apply(ops);
            while state.log.len() as u64 > self.log_revisions {
                state.log.pop_front();
            }
            self.revisions.send_replace(state.revision);
        }
        Ok(Commit::Committed(state.revision))
    }

    async fn events(
        &self,
        prefix: &[u8],
        from_revision: u64,
        limit: usize,
    ) -> Result<WatchEvent, StoreError> {
        let state = self.lock();
        let first_logged = state.log.front().map_or(state.revision + 1, |(revision, _)| *revision);
        if from_revision + 1 < first_logged || from_revision > state.revision {
            return Ok(WatchEvent::Compacted);
        }
        let mut batches = Vec::new();
        let mut up_to = from_revision;
        let skip = usize::try_from(from_revision + 1 - first_logged).unwrap_or(usize::MAX);
        for (revision, ops) in state.log.iter().skip(skip) {
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
        Ok(WatchEvent::Batches { batches, up_to })
    }

    fn revisions(&self) -> tokio::sync::watch::Receiver<u64> {
        self.revisions.subscribe()
    }
}

impl Op {
    pub(crate) fn key(&self) -> &[u8] {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}
