//! Where the control plane keeps what must not be lost: bytes by key, one revision per write, and a
//! bounded log of events.
//!
//! Every write is a transaction of compares and operations: it is applied whole, or not at all. A
//! committed write is as durable as the backend is ([`RedbStore`]: on disk; [`EtcdStore`]: on the
//! disks of a majority). A watch reads the log from a revision on and says so when the log no longer
//! reaches back that far. All backends pass the same tests. Where several processes share a store,
//! an [`Election`] says which one writes.

mod etcd;
mod memory;
mod redb_store;
mod reserve;
mod url;
mod watch;

use std::future::Future;

pub use etcd::{Contact, Election, EtcdStore, LeaderWatch, Tenure, Term};
pub use memory::MemoryStore;
pub use redb_store::RedbStore;
pub use url::{OpenError, StoreUrl};
pub use watch::{Watch, WatchEvent};

/// How many revisions the event log of a store keeps, unless it is told otherwise.
pub const LOG_REVISIONS: u64 = 10_000;

/// A stored value and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The revision of the last write of this key.
    pub revision: u64,
}

/// Everything under a prefix, at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Keys and values in the order of the keys.
    pub items: Vec<(Vec<u8>, Value)>,
    /// The store's revision when it was read.
    pub revision: u64,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key is not there.
    Absent(Vec<u8>),
    /// The key was last written at this revision.
    Revision(Vec<u8>, u64),
    /// Nothing at all was written after this revision.
    StoreRevision(u64),
}

/// A step of a transaction; of several for one key the last one counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Insert or replace.
    Put(Vec<u8>, Vec<u8>),
    /// Remove; absent is fine and makes no event.
    Delete(Vec<u8>),
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// Applied, at this revision.
    Committed(u64),
    /// A compare did not hold: nothing was applied.
    Conflict,
}

/// Why a store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database file.
    #[error("the store's database failed: {0}")]
    Database(Box<redb::Error>),
    /// There is no room for another write. Nothing was written.
    #[error("the store is full: {0}")]
    Full(String),
    /// One write is more than the store takes at once. Nothing was written.
    #[error("the write is too large for the store: {0}")]
    TooLarge(String),
    /// The store does not take it. Nothing was written.
    #[error("the store refuses: {0}")]
    Refused(String),
    /// No member of the store answers. Nothing was written.
    #[error("the store does not answer: {0}")]
    Away(String),
    /// The connection was lost while a write was under way: it was done whole or not at all.
    #[error("the store did not confirm the write: {0}")]
    Unknown(String),
    /// Another process leads. Nothing was written.
    #[error("this process no longer leads")]
    Deposed,
    /// The task that was doing it ended first, as it does when the process shuts down.
    #[error("the store was shut down")]
    Ended(#[source] tokio::task::JoinError),
}

/// A store.
pub trait Store: Clone + Send + Sync + 'static {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> impl Future<Output = Result<Option<Value>, StoreError>> + Send;

    /// Everything whose key starts with `prefix`.
    fn list(&self, prefix: &[u8]) -> impl Future<Output = Result<Listing, StoreError>> + Send;

    /// Applies all operations if all compares hold. Without operations the revision stays.
    fn txn(
        &self,
        compares: Vec<Compare>,
        ops: Vec<Op>,
    ) -> impl Future<Output = Result<Commit, StoreError>> + Send;

    /// At most `limit` batches of events after `from_revision`, of keys that start with `prefix`.
    fn events(
        &self,
        prefix: &[u8],
        from_revision: u64,
        limit: usize,
    ) -> impl Future<Output = Result<WatchEvent, StoreError>> + Send;

    /// The newest revision, and a way to wait for the next.
    fn revisions(&self) -> tokio::sync::watch::Receiver<u64>;

    /// Follows `prefix` after `from_revision`, to which the caller has listed it.
    fn watch(&self, prefix: &[u8], from_revision: u64) -> Watch<Self> {
        Watch::new(self.clone(), prefix, from_revision)
    }
}

/// The store named on the command line.
#[derive(Debug, Clone)]
pub enum AnyStore {
    /// Lost when the process ends.
    Memory(MemoryStore),
    /// A file.
    Redb(RedbStore),
    /// An etcd cluster.
    Etcd(EtcdStore),
}

impl Store for AnyStore {
    async fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        match self {
            Self::Memory(store) => store.get(key).await,
            Self::Redb(store) => store.get(key).await,
            Self::Etcd(store) => store.get(key).await,
        }
    }

    async fn list(&self, prefix: &[u8]) -> Result<Listing, StoreError> {
        match self {
            Self::Memory(store) => store.list(prefix).await,
            Self::Redb(store) => store.list(prefix).await,
            Self::Etcd(store) => store.list(prefix).await,
        }
    }

    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Commit, StoreError> {
        match self {
            Self::Memory(store) => store.txn(compares, ops).await,
            Self::Redb(store) => store.txn(compares, ops).await,
            Self::Etcd(store) => store.txn(compares, ops).await,
        }
    }

    async fn events(
        &self,
        prefix: &[u8],
        from_revision: u64,
        limit: usize,
    ) -> Result<WatchEvent, StoreError> {
        match self {
            Self::Memory(store) => store.events(prefix, from_revision, limit).await,
            Self::Redb(store) => store.events(prefix, from_revision, limit).await,
            Self::Etcd(store) => store.events(prefix, from_revision, limit).await,
        }
    }

    fn revisions(&self) -> tokio::sync::watch::Receiver<u64> {
        match self {
            Self::Memory(store) => store.revisions(),
            Self::Redb(store) => store.revisions(),
            Self::Etcd(store) => store.revisions(),
        }
    }
}
