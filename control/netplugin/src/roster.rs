//! Who is attached to this node: the rows in memory and on disk, their port ids and their locks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use flowtable::ids::PortId;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::attachment::{Attachment, AttachmentId};
use crate::ports::{Exhausted, PortPool};
use crate::store::{self, Store};

/// Why the roster could not take a change.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the thread that writes the attachment file died")]
    Thread(#[from] tokio::task::JoinError),
}

/// Held while one attachment is worked on.
pub(crate) type Turn = OwnedMutexGuard<()>;

/// All attachments of this node.
#[derive(Debug)]
pub(crate) struct Roster {
    store: Arc<Store>,
    rows: Mutex<BTreeMap<AttachmentId, Attachment>>,
    pool: Mutex<PortPool>,
    turns: Mutex<BTreeMap<AttachmentId, Weak<AsyncMutex<()>>>>,
    /// Whose intent the rows are of.
    cluster: Mutex<Option<u64>>,
}

impl Roster {
    /// Loads the rows of an earlier life. Blocks.
    pub(crate) fn load(store: Store) -> Result<Self, store::Error> {
        let rows = store.load()?;
        let used: BTreeSet<PortId> = rows.iter().filter_map(port_of).collect();
        Ok(Self {
            cluster: Mutex::new(store.cluster()?),
            store: Arc::new(store),
            rows: Mutex::new(rows.into_iter().map(|row| (row.id.clone(), row)).collect()),
            pool: Mutex::new(PortPool::new(used)),
            turns: Mutex::default(),
        })
    }

    /// Waits for every earlier operation on this attachment to end.
    pub(crate) async fn turn(&self, id: &AttachmentId) -> Turn {
        self.lock_of(id).lock_owned().await
    }

    /// The turn, unless somebody has it.
    pub(crate) fn try_turn(&self, id: &AttachmentId) -> Option<Turn> {
        self.lock_of(id).try_lock_owned().ok()
    }

    pub(crate) fn row(&self, id: &AttachmentId) -> Option<Attachment> {
        held(&self.rows).get(id).cloned()
    }

    pub(crate) fn rows(&self) -> Vec<Attachment> {
        held(&self.rows).values().cloned().collect()
    }

    /// The cluster whose intent the node has taken over.
    pub(crate) fn cluster(&self) -> Option<u64> {
        *held(&self.cluster)
    }

    /// On disk when this returns. 0, from a netmaster of before there were clusters, is none.
    pub(crate) async fn set_cluster(&self, cluster: u64) -> Result<(), Error> {
        if cluster == 0 || self.cluster() == Some(cluster) {
            return Ok(());
        }
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || store.set_cluster(cluster)).await??;
        *held(&self.cluster) = Some(cluster);
        Ok(())
    }

    /// Writes a row; on disk when this returns.
    pub(crate) async fn put(&self, row: Attachment) -> Result<(), Error> {
        self.put_all(vec![row]).await
    }

    /// Writes rows, all or none; on disk when this returns.
    pub(crate) async fn put_all(&self, rows: Vec<Attachment>) -> Result<(), Error> {
        let store = Arc::clone(&self.store);
        let stored = rows.clone();
        tokio::task::spawn_blocking(move || store.put(&stored)).await??;
        held(&self.rows).extend(rows.into_iter().map(|row| (row.id.clone(), row)));
        Ok(())
    }

    /// Removes a row and frees its port id.
    pub(crate) async fn remove(&self, row: &Attachment) -> Result<(), Error> {
        let store = Arc::clone(&self.store);
        let id = row.id.clone();
        tokio::task::spawn_blocking(move || store.remove(&id)).await??;
        held(&self.rows).remove(&row.id);
        if let Some(port) = port_of(row) {
            self.free_port(port);
        }
        Ok(())
    }

    pub(crate) fn allocate_port(&self) -> Result<PortId, Exhausted> {
        held(&self.pool).allocate(Instant::now())
    }

    /// The id a running engine has for an attachment that lost its row, or another.
    pub(crate) fn adopt_port(&self, known: Option<PortId>) -> Result<PortId, Exhausted> {
        let mut pool = held(&self.pool);
        match known.filter(|port| pool.take(*port)) {
            Some(port) => Ok(port),
            None => pool.allocate(Instant::now()),
        }
    }

    /// Gives back an id that no row holds.
    pub(crate) fn free_port(&self, port: PortId) {
        held(&self.pool).release(port, Instant::now());
    }

    pub(crate) fn available_port_count(&self) -> usize {
        held(&self.pool).available_count()
    }

    fn lock_of(&self, id: &AttachmentId) -> Arc<AsyncMutex<()>> {
        let mut turns = held(&self.turns);
        if let Some(lock) = turns.get(id).and_then(Weak::upgrade) {
            return lock;
        }
        turns.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(AsyncMutex::new(()));
        turns.insert(id.clone(), Arc::downgrade(&lock));
        lock
    }
}

/// A row's port; `None` for a number no version ever wrote.
pub(crate) fn port_of(row: &Attachment) -> Option<PortId> {
    PortId::new(row.port.into()).ok()
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here can panic between two writes that belong together.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::tests::example;

    fn roster(dir: &tempfile::TempDir) -> Roster {
        Roster::load(Store::open(&dir.path().join("netplugin.redb")).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn ports_of_stored_rows_are_not_handed_out_again() {
        let dir = tempfile::tempdir().unwrap();
        let row = Attachment { port: 2, ..example("c1") };
        roster(&dir).put(row.clone()).await.unwrap();
        let roster = roster(&dir);
        assert_eq!(roster.row(&row.id), Some(row.clone()));
        assert_eq!(roster.allocate_port().unwrap().get(), 3);
        roster.remove(&row).await.unwrap();
        assert_eq!(roster.rows(), []);
        assert_eq!(roster.allocate_port().unwrap().get(), 4);
    }

    #[tokio::test]
    async fn one_attachment_is_worked_on_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let roster = roster(&dir);
        let (one, two) = (example("c1").id, example("c2").id);
        let turn = roster.turn(&one).await;
        assert!(roster.try_turn(&one).is_none());
        assert!(roster.try_turn(&two).is_some());
        drop(turn);
        assert!(roster.try_turn(&one).is_some());
        assert_eq!(held(&roster.turns).len(), 1);
    }
}
