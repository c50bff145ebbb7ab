//! The durable rows of this node's attachments, in `<state-dir>/netplugin.redb`.
//!
//! A row is on disk before the step it announces begins, so a crash anywhere leaves a row that
//! says what to undo. Calls block for an fsync: not for a runtime's worker thread. redb's own
//! lock keeps a second netplugin off the file.
//!
//! redb gives a file up for good when a write to it fails, as on a full disk. The next call opens it
//! anew then, which recovers the last commit.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, Table, TableDefinition};

use crate::attachment::{Attachment, AttachmentId};

/// Raised when a row's form changes in a way older versions cannot read.
const SCHEMA: u64 = 1;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const ATTACHMENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("attachments");

/// Why a row could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("opening {}", path.display())]
    Open { path: PathBuf, source: Box<redb::Error> },
    #[error("{} has schema {found}, this netplugin knows {SCHEMA}: use a newer netplugin", path.display())]
    Schema { path: PathBuf, found: u64 },
    #[error("the attachment file: {0}")]
    Database(Box<redb::Error>),
    #[error("attachment {key}")]
    Row { key: String, source: serde_json::Error },
}

impl Error {
    /// Whether there is no room for a row.
    pub(crate) fn is_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let Self::Database(error) = self else { return false };
        matches!(&**error, redb::Error::Io(io) if matches!(io.kind(), StorageFull | QuotaExceeded))
    }

    /// Whether redb has given the file up.
    fn is_loss(&self) -> bool {
        use redb::Error::{DatabaseClosed, Io, PreviousIo};
        let Self::Database(error) = self else { return false };
        matches!(&**error, Io(_) | PreviousIo | DatabaseClosed)
    }
}

impl<E: Into<redb::Error>> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// The attachment file.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// `None`: to be opened anew.
    database: Mutex<Option<Database>>,
}

fn open(path: &Path) -> Result<Database, Error> {
    let database = Database::create(path)
        .map_err(|e| Error::Open { path: path.to_owned(), source: Box::new(e.into()) })?;
    let transaction = database.begin_write()?;
    let found = {
        let mut meta = transaction.open_table(META)?;
        transaction.open_table(ATTACHMENTS)?;
        let found = meta.get("schema")?.map(|value| value.value());
        if found.is_none() {
            meta.insert("schema", SCHEMA)?;
        }
        found.unwrap_or(SCHEMA)
    };
    if found != SCHEMA {
        return Err(Error::Schema { path: path.to_owned(), found });
    }
    transaction.commit()?;
    Ok(database)
}

fn insert(table: &mut Table<'_, &str, &[u8]>, row: &Attachment) -> Result<(), Error> {
    let key = row.id.to_string();
    let value =
        serde_json::to_vec(row).map_err(|source| Error::Row { key: key.clone(), source })?;
    table.insert(key.as_str(), value.as_slice())?;
    Ok(())
}

impl Store {
    /// Opens the file, making it when it is not there.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let database = Mutex::new(Some(open(path)?));
        Ok(Self { path: path.to_owned(), database })
    }

    fn run<T>(&self, work: impl FnOnce(&Database) -> Result<T, Error>) -> Result<T, Error> {
        // What a panic leaves is no database, and opened anew.
        let mut held = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match held.take() {
            Some(database) => database,
            None => open(&self.path)?,
        };
        let outcome = work(&database);
        if !outcome.as_ref().is_err_and(Error::is_loss) {
            *held = Some(database);
        }
        outcome
    }

    /// The cluster whose intent the node has taken over; `None`: of none, or of one that did not say.
    pub(crate) fn cluster(&self) -> Result<Option<u64>, Error> {
        self.run(|database| {
            let meta = database.begin_read()?.open_table(META)?;
            Ok(meta.get("cluster")?.map(|value| value.value()))
        })
    }

    /// On disk when this returns.
    pub(crate) fn set_cluster(&self, cluster: u64) -> Result<(), Error> {
        self.run(|database| {
            let transaction = database.begin_write()?;
            transaction.open_table(META)?.insert("cluster", cluster)?;
            Ok(transaction.commit()?)
        })
    }

    /// Every row, in order of the key.
    pub(crate) fn load(&self) -> Result<Vec<Attachment>, Error> {
        self.run(|database| {
            let table = database.begin_read()?.open_table(ATTACHMENTS)?;
            let mut rows = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                let row = serde_json::from_slice(value.value())
                    .map_err(|source| Error::Row { key: key.value().to_owned(), source })?;
                rows.push(row);
            }
            Ok(rows)
        })
    }

    /// Inserts or replaces rows, all or none; on disk when this returns.
    pub(crate) fn put(&self, rows: &[Attachment]) -> Result<(), Error> {
        self.run(|database| {
            let transaction = database.begin_write()?;
            let mut table = transaction.open_table(ATTACHMENTS)?;
            rows.iter().try_for_each(|row| insert(&mut table, row))?;
            drop(table);
            Ok(transaction.commit()?)
        })
    }

    /// Removes a row; absent is fine.
    pub(crate) fn remove(&self, id: &AttachmentId) -> Result<(), Error> {
        self.run(|database| {
            let transaction = database.begin_write()?;
            transaction.open_table(ATTACHMENTS)?.remove(id.to_string().as_str())?;
            Ok(transaction.commit()?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::State;
    use crate::attachment::tests::example;

    #[test]
    fn rows_survive_reopening_and_replacement_and_go_when_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netplugin.redb");
        let (one, mut two) = (example("c1"), example("c2"));
        {
            let store = Store::open(&path).unwrap();
            assert_eq!(store.cluster().unwrap(), None);
            store.set_cluster(7).unwrap();
            store.put(&[one.clone(), two.clone()]).unwrap();
            two.state = State::Releasing;
            store.put(std::slice::from_ref(&two)).unwrap();
        }
        let store = Store::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), [one.clone(), two.clone()]);
        assert_eq!(store.cluster().unwrap(), Some(7));
        store.remove(&one.id).unwrap();
        store.remove(&one.id).unwrap();
        assert_eq!(store.load().unwrap(), [two]);
    }

    #[test]
    fn two_at_a_time_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netplugin.redb");
        let _held = Store::open(&path).unwrap();
        assert!(matches!(Store::open(&path), Err(Error::Open { .. })));
    }

    #[test]
    fn a_newer_schema_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netplugin.redb");
        {
            let database = open(&path).unwrap();
            let transaction = database.begin_write().unwrap();
            transaction.open_table(META).unwrap().insert("schema", 2).unwrap();
            transaction.commit().unwrap();
        }
        assert!(matches!(Store::open(&path), Err(Error::Schema { found: 2, .. })));
    }

    #[test]
    fn a_damaged_row_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netplugin.redb");
        let database = open(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(ATTACHMENTS).unwrap().insert("c1:eth0", b"{".as_slice()).unwrap();
        transaction.commit().unwrap();
        drop(database);
        let store = Store::open(&path).unwrap();
        let error = store.load().unwrap_err();
        assert!(matches!(error, Error::Row { key, .. } if key == "c1:eth0"));
    }
}
