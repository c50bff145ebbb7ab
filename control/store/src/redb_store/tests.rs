//! A file on a disk whose syncs are counted.

use std::sync::atomic::{AtomicU64, Ordering};

use redb::StorageBackend;

use super::*;

/// The disk under a store's file.
#[derive(Debug, Clone, Default)]
struct Disk {
    syncs: Arc<AtomicU64>,
}

impl Disk {
    fn opener(&self) -> Opener {
        let disk = self.clone();
        Opener(Box::new(move |path| {
            let disk = disk.clone();
            Ok(Reserving::open(path)?.through(|file| Probe { file, disk }))
        }))
    }

    fn store(&self, path: &Path) -> RedbStore {
        RedbStore::with_opener(path, 4, self.opener()).unwrap()
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
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.disk.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
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
