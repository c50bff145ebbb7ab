//! A file on a disk whose syncs are counted, and which turns read-only when it is told to.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redb::StorageBackend;

use super::*;

/// The disk under a store's file.
#[derive(Debug, Clone, Default)]
struct Disk {
    syncs: Arc<AtomicU64>,
    is_read_only: Arc<AtomicBool>,
}

impl Disk {
    fn opener(&self) -> Opener {
        let disk = self.clone();
        Opener(Box::new(move |path| {
            disk.check()?;
            let disk = disk.clone();
            Ok(Reserving::open(path)?.through(|file| Probe { file, disk }))
        }))
    }

    fn store(&self, path: &Path) -> RedbStore {
        RedbStore::with_opener(path, 4, self.opener()).unwrap()
    }

    fn check(&self) -> io::Result<()> {
        let is_read_only = self.is_read_only.load(Ordering::SeqCst);
        if is_read_only { Err(ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }

    fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::SeqCst)
    }
}

/// What is between a store and its file.
#[derive(Debug)]
struct Probe {
    file: Box<dyn StorageBackend>,
    disk: Disk,
}

impl StorageBackend for Probe {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.check()?;
        self.file.sync_data()?;
        self.disk.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.check()?;
        self.file.write(offset, data)
    }
}

fn put(value: &str) -> Vec<Op> {
    vec![Op::Put(b"a".to_vec(), value.into())]
}

#[tokio::test]
async fn every_commit_is_synced_before_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::default();
    let store = disk.store(&dir.path().join("store"));
    for revision in 1..=10 {
        let before = disk.syncs();
        let commit = store.txn(Vec::new(), put("x")).await.unwrap();
        assert_eq!(commit, Commit::Committed(revision));
        assert!(disk.syncs() > before, "revision {revision} was acknowledged and not synced");
    }
}

#[tokio::test]
async fn what_can_t_be_written_any_more_is_still_read_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::default();
    let store = disk.store(&dir.path().join("store"));
    store.txn(Vec::new(), put("1")).await.unwrap();
    let last = store.txn(Vec::new(), put("2")).await.unwrap();
    disk.is_read_only.store(true, Ordering::SeqCst);
    for round in 0..3 {
        let refused = store.txn(Vec::new(), put("3")).await.unwrap_err().to_string();
        assert!(refused.contains("read-only filesystem"), "round {round}: {refused}");
        let value = Value { bytes: b"2".into(), revision: 2 };
        assert_eq!(store.get(b"a").await.unwrap(), Some(value.clone()), "round {round}");
        let listing = Listing { items: vec![(b"a".into(), value)], revision: 2 };
        assert_eq!(store.list(b"").await.unwrap(), listing);
        let batches = WatchEvent::Batches { batches: vec![(2, put("2"))], up_to: 2 };
        assert_eq!(store.events(b"", 1, 10).await.unwrap(), batches);
        assert_eq!(Commit::Committed(*store.revisions().borrow()), last);
    }
    disk.is_read_only.store(false, Ordering::SeqCst);
    assert_eq!(store.txn(Vec::new(), put("4")).await.unwrap(), Commit::Committed(3));
    assert_eq!(store.get(b"a").await.unwrap().unwrap().bytes, b"4");
}
