//! Following a store: events are read from its log, not queued, so that a slow reader costs nothing
//! and a fast one waits for the next revision.

use crate::{Op, Store, StoreError};

/// Most batches read from the log at a time.
const BATCHES_MAX: usize = 64;

/// What a watch has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// Revisions in order with their operations; those without any of the prefix are left out, which
    /// may be all.
    Batches {
        /// Revision and operations.
        batches: Vec<(u64, Vec<Op>)>,
        /// Everything up to this revision has been seen.
        up_to: u64,
    },
    /// The log no longer has, or never had, what follows the revision asked for: list again.
    Compacted,
}

/// A reader of a store's log.
#[derive(Debug)]
pub struct Watch<S> {
    store: S,
    prefix: Vec<u8>,
    seen: u64,
    revisions: tokio::sync::watch::Receiver<u64>,
}

impl<S: Store> Watch<S> {
    pub(crate) fn new(store: S, prefix: &[u8], from_revision: u64) -> Self {
        let revisions = store.revisions();
        Self { store, prefix: prefix.to_owned(), seen: from_revision, revisions }
    }

    /// The next events; waits for them. After [`WatchEvent::Compacted`] it says nothing new.
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        loop {
            // Marked before the log is read, so that a revision in between wakes the wait below.
            self.revisions.mark_unchanged();
            let event = self.store.events(&self.prefix, self.seen, BATCHES_MAX).await?;
            let WatchEvent::Batches { up_to, .. } = event else { return Ok(event) };
            if up_to > self.seen {
                self.seen = up_to;
                return Ok(event);
            }
            // The sender lives in the store this holds, so that the error can't happen; listing
            // again would be the right answer to it.
            if self.revisions.changed().await.is_err() {
                return Ok(WatchEvent::Compacted);
            }
        }
    }
}
