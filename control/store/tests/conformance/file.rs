//! What a file does beyond the suite.

use control_store::{AnyStore, RedbStore, Store as _, Value, WatchEvent};

use crate::FileSentence;
use crate::suite::{commit, put};

pub(crate) const SENTENCES: [FileSentence; 1] =
    [("a_file_keeps_values_revision_and_log_over_a_restart", || Box::pin(restart()))];

async fn restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = AnyStore::Redb(RedbStore::open(&path).unwrap());
    let first = commit(&store, vec![], vec![put("a", "1")]).await;
    let second = commit(&store, vec![], vec![put("a", "2")]).await;
    assert!(RedbStore::open(&path).is_err(), "one process at a time");
    drop(store);
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(
        store.get(b"a").await.unwrap().unwrap(),
        Value { bytes: b"2".into(), revision: second }
    );
    assert_eq!(*store.revisions().borrow(), second);
    let expected =
        WatchEvent::Batches { batches: vec![(second, vec![put("a", "2")])], up_to: second };
    assert_eq!(store.watch(b"", first).next().await.unwrap(), expected);
}
