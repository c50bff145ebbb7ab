//! A store in one redb file: a commit is on disk before it is acknowledged. The event log is a table
//! of the same file and part of the same commit, so that a watch survives a restart too.
//!
//! redb gives a file up for good when a write to it fails, as on a full disk. It is opened anew then,
//! which recovers the last commit: reads go on, and writes do once there is room. Where it can't be
//! opened for writing any more, as on a disk that has turned read-only, reads go on from a copy of it in
//! memory, and every write tries the file again.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::backends::InMemoryBackend;
use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    StorageBackend as _, Table, TableDefinition, WriteTransaction,
};
use tracing::warn;

use crate::reserve::Reserving;
use crate::{Commit, Compare, LOG_REVISIONS, Listing, Op, Store, StoreError, Value, WatchEvent};

const ITEMS: TableDefinition<'_, &[u8], (u64, &[u8])> = TableDefinition::new("items");
// Revision and place in the transaction, to key and, unless it is a deletion, value.
type LogValue = (&'static [u8], Option<&'static [u8]>);
const LOG: TableDefinition<'_, (u64, u32), LogValue> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
// Everything after this revision is in the log.
const COMPACTED: &str = "compacted";

/// Opens the file, for reading and writing.
type Open = dyn Fn(&Path) -> io::Result<Reserving> + Send + Sync;

/// What a store works on.
#[derive(Debug)]
enum Held {
    File(Database),
    /// What the file last was, in memory. It has no lock: a file that can't be written needs none.
    Copy(Database),
    /// The file could not even be read.
    Nothing,
}

/// What an operation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// How a store's file is opened.
struct Opener(Box<Open>);

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opener")
    }
}

impl Opener {
    fn open(&self, path: &Path) -> Result<Database, Box<redb::Error>> {
        let backend = (self.0)(path).map_err(|error| boxed(redb::StorageError::Io(error)))?;
        Database::builder().create_with_backend(backend).map_err(boxed)
    }
}

/// A store in a file. Clones share it.
#[derive(Debug, Clone)]
pub struct RedbStore {
    file: Arc<File>,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    opener: Opener,
    database: RwLock<Held>,
    revisions: tokio::sync::watch::Sender<u64>,
    log_revisions: u64,
}

impl RedbStore {
    /// Opens the file, or creates it.
    ///
    /// # Errors
    /// When it is no database, is open elsewhere, or can't be read or written.
    pub fn open(path: &Path) -> Result<Self, Box<redb::Error>> {
        Self::with_log(path, LOG_REVISIONS)
    }

    /// As [`Self::open`], and keeps events of the last `log_revisions` revisions.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_log(path: &Path, log_revisions: u64) -> Result<Self, Box<redb::Error>> {
        Self::with_opener(path, log_revisions, Opener(Box::new(Reserving::open)))
    }

    fn with_opener(
        path: &Path,
        log_revisions: u64,
        opener: Opener,
    ) -> Result<Self, Box<redb::Error>> {
        let database = opener.open(path)?;
        let revision = create_tables(&database)?;
        let revisions = tokio::sync::watch::Sender::new(revision);
        let (path, database) = (path.to_owned(), RwLock::new(Held::File(database)));
        Ok(Self { file: Arc::new(File { path, opener, database, revisions, log_revisions }) })
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        access: Access,
        work: impl Fn(&File, &Database) -> Result<T, Box<redb::Error>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let file = Arc::clone(&self.file);
        let done = tokio::task::spawn_blocking(move || file.run(access, &work)).await;
        done.map_err(StoreError::Ended)?
    }
}

fn copy(path: &Path) -> Result<Database, Box<redb::Error>> {
    let io = |error| boxed(redb::StorageError::Io(error));
    let bytes = std::fs::read(path).map_err(io)?;
    let memory = InMemoryBackend::new();
    memory.set_len(bytes.len() as u64).map_err(io)?;
    memory.write(0, &bytes).map_err(io)?;
    Database::builder().create_with_backend(memory).map_err(boxed)
}

/// Why a file has to be opened anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// This very operation failed.
    Now,
    /// An earlier one did: this one was not tried.
    Before,
}

const fn loss(error: &redb::Error) -> Option<Loss> {
    if matches!(error, redb::Error::Io(_)) {
        Some(Loss::Now)
    } else if matches!(error, redb::Error::PreviousIo | redb::Error::DatabaseClosed) {
        Some(Loss::Before)
    } else {
        None
    }
}

fn failure(error: Box<redb::Error>) -> StoreError {
    if let redb::Error::Io(io) = &*error
        && matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
    {
        return StoreError::Full(io.to_string());
    }
    StoreError::Database(error)
}

fn boxed(error: impl Into<redb::Error>) -> Box<redb::Error> {
    Box::new(error.into())
}

fn create_tables(database: &Database) -> Result<u64, Box<redb::Error>> {
    let txn = database.begin_write().map_err(boxed)?;
    txn.open_table(ITEMS).map_err(boxed)?;
    txn.open_table(LOG).map_err(boxed)?;
    let revision = number(&txn.open_table(META).map_err(boxed)?, REVISION)?;
    txn.commit().map_err(boxed)?;
    Ok(revision)
}

fn number(
    meta: &impl redb::ReadableTable<&'static str, u64>,
    key: &str,
) -> Result<u64, Box<redb::Error>> {
    Ok(meta.get(key).map_err(boxed)?.map_or(0, |value| value.value()))
}

fn read(database: &Database) -> Result<ReadTransaction, Box<redb::Error>> {
    database.begin_read().map_err(boxed)
}

impl File {
    /// Does it; once more if the file had been given up before.
    fn run<T>(
        &self,
        access: Access,
        work: &impl Fn(&Self, &Database) -> Result<T, Box<redb::Error>>,
    ) -> Result<T, StoreError> {
        let error = match self.attempt(access, work) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        match loss(&error) {
            None => Err(failure(error)),
            Some(Loss::Now) => {
                // What this fails with is less than what has happened; the next one tries again.
                drop(self.reopen());
                Err(failure(error))
            }
            Some(Loss::Before) => {
                let reopened = self.reopen();
                match self.attempt(access, work) {
                    Err(error) if loss(&error) == Some(Loss::Before) => {
                        reopened.map_err(failure)?;
                        Err(failure(error))
                    }
                    done => done.map_err(failure),
                }
            }
        }
    }

    fn attempt<T>(
        &self,
        access: Access,
        work: &impl Fn(&Self, &Database) -> Result<T, Box<redb::Error>>,
    ) -> Result<T, Box<redb::Error>> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        match (&*database, access) {
            (Held::File(database), Access::Read | Access::Write)
            | (Held::Copy(database), Access::Read) => work(self, database),
            (Held::Copy(_), Access::Write) | (Held::Nothing, Access::Read | Access::Write) => {
                Err(Box::new(redb::Error::DatabaseClosed))
            }
        }
    }

    fn reopen(&self) -> Result<(), Box<redb::Error>> {
        let mut held = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // The old one first: it holds the file's lock. Nothing is written while there is a copy.
        if matches!(*held, Held::File(_)) {
            *held = Held::Nothing;
        }
        let error = match self.opener.open(&self.path) {
            Ok(database) => {
                *held = Held::File(database);
                return Ok(());
            }
            Err(error) => error,
        };
        if matches!(*held, Held::Nothing) {
            warn!(%error, "the store can't be written; reading goes on from a copy in memory");
            match copy(&self.path) {
                Ok(copy) => *held = Held::Copy(copy),
                Err(error) => warn!(%error, "the store can't be read either"),
            }
        }
        Err(error)
    }

    fn get(database: &Database, key: &[u8]) -> Result<Option<Value>, Box<redb::Error>> {
        let items = read(database)?.open_table(ITEMS).map_err(boxed)?;
        Ok(items.get(key).map_err(boxed)?.map(|value| stored(value.value())))
    }

    fn list(database: &Database, prefix: &[u8]) -> Result<Listing, Box<redb::Error>> {
        let txn = read(database)?;
        let revision = number(&txn.open_table(META).map_err(boxed)?, REVISION)?;
        let mut items = Vec::new();
        for item in txn.open_table(ITEMS).map_err(boxed)?.range(prefix..).map_err(boxed)? {
            let (key, value) = item.map_err(boxed)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            items.push((key.value().to_vec(), stored(value.value())));
        }
        Ok(Listing { items, revision })
    }

    fn txn(
        &self,
        database: &Database,
        compares: &[Compare],
        ops: &[Op],
    ) -> Result<Commit, Box<redb::Error>> {
        let mut txn = database.begin_write().map_err(boxed)?;
        txn.set_durability(Durability::Immediate).map_err(boxed)?;
        let current = number(&txn.open_table(META).map_err(boxed)?, REVISION)?;
        if !all_hold(&txn, compares, current)? {
            txn.abort().map_err(boxed)?;
            return Ok(Commit::Conflict);
        }
        if ops.is_empty() {
            txn.abort().map_err(boxed)?;
            return Ok(Commit::Committed(current));
        }
        let revision = current + 1;
        apply(&txn, ops, revision)?;
        self.compact(&txn, revision)?;
        txn.open_table(META).map_err(boxed)?.insert(REVISION, revision).map_err(boxed)?;
        txn.commit().map_err(boxed)?;
        // Two committers may get here in the other order; readers must not see the number fall.
        self.revisions.send_if_modified(|newest| {
            let is_newer = revision > *newest;
            *newest = revision.max(*newest);
            is_newer
        });
        Ok(Commit::Committed(revision))
    }

    fn compact(&self, txn: &WriteTransaction, revision: u64) -> Result<(), Box<redb::Error>> {
        let compacted = revision.saturating_sub(self.log_revisions);
        let mut meta = txn.open_table(META).map_err(boxed)?;
        let before = number(&meta, COMPACTED)?;
        if compacted <= before {
            return Ok(());
        }
        meta.insert(COMPACTED, compacted).map_err(boxed)?;
        let mut log = txn.open_table(LOG).map_err(boxed)?;
        log.retain_in((before, 0)..(compacted + 1, 0), |_, _| false).map_err(boxed)
    }

    fn events(
        database: &Database,
        prefix: &[u8],
        from_revision: u64,
        limit: usize,
    ) -> Result<WatchEvent, Box<redb::Error>> {
        let txn = read(database)?;
        let meta = txn.open_table(META).map_err(boxed)?;
        let (newest, compacted) = (number(&meta, REVISION)?, number(&meta, COMPACTED)?);
        if from_revision < compacted || from_revision > newest {
            return Ok(WatchEvent::Compacted);
        }
        let mut batches: Vec<(u64, Vec<Op>)> = Vec::new();
        let log = txn.open_table(LOG).map_err(boxed)?;
        for entry in log.range((from_revision + 1, 0)..).map_err(boxed)? {
            let (place, value) = entry.map_err(boxed)?;
            let (revision, _) = place.value();
            let (key, bytes) = value.value();
            if !key.starts_with(prefix) {
                continue;
            }
            let op = match bytes {
                Some(bytes) => Op::Put(key.to_vec(), bytes.to_vec()),
                None => Op::Delete(key.to_vec()),
            };
            let is_full = batches.len() == limit;
            match batches.last_mut() {
                Some((last, ops)) if *last == revision => ops.push(op),
                Some((last, _)) if is_full => {
                    let up_to = *last;
                    return Ok(WatchEvent::Batches { batches, up_to });
                }
                Some(_) | None => batches.push((revision, vec![op])),
            }
        }
        Ok(WatchEvent::Batches { batches, up_to: newest })
    }
}

fn all_hold(
    txn: &WriteTransaction,
    compares: &[Compare],
    current: u64,
) -> Result<bool, Box<redb::Error>> {
    let items = txn.open_table(ITEMS).map_err(boxed)?;
    for compare in compares {
        let holds = match compare {
            Compare::Absent(key) => items.get(key.as_slice()).map_err(boxed)?.is_none(),
            Compare::Revision(key, revision) => {
                let value = items.get(key.as_slice()).map_err(boxed)?;
                value.is_some_and(|value| value.value().0 == *revision)
            }
            Compare::StoreRevision(revision) => current == *revision,
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

fn stored((revision, bytes): (u64, &[u8])) -> Value {
    Value { bytes: bytes.to_vec(), revision }
}

fn apply(txn: &WriteTransaction, ops: &[Op], revision: u64) -> Result<(), Box<redb::Error>> {
    let mut items = txn.open_table(ITEMS).map_err(boxed)?;
    let mut log = txn.open_table(LOG).map_err(boxed)?;
    for (place, op) in (0..).zip(ops) {
        apply_one(&mut items, &mut log, op, (revision, place))?;
    }
    Ok(())
}

fn apply_one(
    items: &mut Table<'_, &'static [u8], (u64, &'static [u8])>,
    log: &mut Table<'_, (u64, u32), LogValue>,
    op: &Op,
    place: (u64, u32),
) -> Result<(), Box<redb::Error>> {
    match op {
        Op::Put(key, bytes) => {
            let (key, bytes) = (key.as_slice(), bytes.as_slice());
            items.insert(key, (place.0, bytes)).map_err(boxed)?;
            log.insert(place, (key, Some(bytes))).map_err(boxed)?;
        }
        Op::Delete(key) => {
            if items.remove(key.as_slice()).map_err(boxed)?.is_some() {
                log.insert(place, (key.as_slice(), None)).map_err(boxed)?;
            }
        }
    }
    Ok(())
}

impl Store for RedbStore {
    async fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        let key = key.to_vec();
        self.blocking(Access::Read, move |_, database| File::get(database, &key)).await
    }

    async fn list(&self, prefix: &[u8]) -> Result<Listing, StoreError> {
        let prefix = prefix.to_vec();
        self.blocking(Access::Read, move |_, database| File::list(database, &prefix)).await
    }

    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Commit, StoreError> {
        let work = move |file: &File, database: &Database| file.txn(database, &compares, &ops);
        self.blocking(Access::Write, work).await
    }

    async fn events(
        &self,
        prefix: &[u8],
        from_revision: u64,
        limit: usize,
    ) -> Result<WatchEvent, StoreError> {
        let prefix = prefix.to_vec();
        self.blocking(Access::Read, move |_, database| {
            File::events(database, &prefix, from_revision, limit)
        })
        .await
    }

    fn revisions(&self) -> tokio::sync::watch::Receiver<u64> {
        self.file.revisions.subscribe()
    }
}

#[cfg(test)]
mod tests;
