//! One suite for every backend.

use super::*;

fn put(key: &str, value: &str) -> Op {
    Op::Put(key.into(), value.into())
}

async fn commit(store: &impl Store, compares: Vec<Compare>, ops: Vec<Op>) -> u64 {
    match store.txn(compares, ops).await.unwrap() {
        Commit::Committed(revision) => revision,
        Commit::Conflict => panic!("conflict"),
    }
}

async fn a_transaction_is_applied_whole_or_not_at_all(store: impl Store) {
    let first =
        commit(&store, vec![Compare::Absent("a".into())], vec![put("a", "1"), put("b", "2")]).await;
    let a = store.get(b"a").await.unwrap().unwrap();
    assert_eq!((a.bytes.as_slice(), a.revision), (b"1".as_slice(), first));
    for stale in [
        Compare::Absent("a".into()),
        Compare::Revision("a".into(), first + 1),
        Compare::Revision("none".into(), first),
        Compare::StoreRevision(first + 1),
    ] {
        let compares = vec![Compare::Absent("new".into()), stale];
        let ops = vec![put("new", "x"), Op::Delete("a".into())];
        assert_eq!(store.txn(compares, ops).await.unwrap(), Commit::Conflict);
    }
    assert_eq!(store.get(b"new").await.unwrap(), None);
    let compares = vec![Compare::Revision("a".into(), first), Compare::StoreRevision(first)];
    let second = commit(&store, compares, vec![Op::Delete("a".into()), put("b", "3")]).await;
    assert_eq!(second, first + 1);
    assert_eq!(store.get(b"a").await.unwrap(), None);
    assert_eq!(
        store.get(b"b").await.unwrap().unwrap(),
        Value { bytes: b"3".into(), revision: second }
    );
    assert_eq!(commit(&store, vec![], vec![]).await, second, "nothing to do is no revision");
}

async fn a_listing_has_exactly_its_prefix_in_order(store: impl Store) {
    let ops = ["t/b", "t/a", "t", "u/a", "s", "t0"].map(|key| put(key, key));
    let revision = commit(&store, vec![], ops.into()).await;
    let listing = store.list(b"t/").await.unwrap();
    let keys: Vec<_> = listing.items.iter().map(|(key, _)| key.as_slice()).collect();
    assert_eq!((keys, listing.revision), (vec![b"t/a".as_slice(), b"t/b"], revision));
    assert_eq!(store.list(b"").await.unwrap().items.len(), 6);
    assert_eq!(store.list(b"zz").await.unwrap().items.len(), 0);
}

async fn a_watch_sees_every_later_event_of_its_prefix_once(store: impl Store) {
    let start = commit(&store, vec![], vec![put("t/old", "0")]).await;
    let mut watch = store.watch(b"t/", start);
    let other = commit(&store, vec![], vec![put("u/x", "0")]).await;
    let ops = vec![put("t/a", "1"), put("u/x", "1"), Op::Delete("t/none".into())];
    let first = commit(&store, vec![], ops).await;
    let second = commit(&store, vec![], vec![Op::Delete("t/a".into())]).await;
    assert_eq!((other, first, second), (start + 1, start + 2, start + 3));
    let expected = WatchEvent::Batches {
        batches: vec![(first, vec![put("t/a", "1")]), (second, vec![Op::Delete("t/a".into())])],
        up_to: second,
    };
    assert_eq!(watch.next().await.unwrap(), expected);
    let waiting = tokio::spawn(async move { watch.next().await.unwrap() });
    commit(&store, vec![], vec![put("u/y", "1")]).await;
    let third = commit(&store, vec![], vec![put("t/c", "3")]).await;
    let expected =
        WatchEvent::Batches { batches: vec![(third, vec![put("t/c", "3")])], up_to: third };
    assert_eq!(waiting.await.unwrap(), expected);
}

async fn events_come_in_bounded_portions(store: impl Store) {
    for i in 0..5 {
        commit(&store, vec![], vec![put("t/a", &i.to_string()), put("u/a", "x")]).await;
    }
    let WatchEvent::Batches { batches, up_to } = store.events(b"t/", 0, 3).await.unwrap() else {
        panic!("the log has them all");
    };
    assert_eq!((batches.len(), up_to), (3, 3));
    let WatchEvent::Batches { batches, up_to } = store.events(b"t/", up_to, 3).await.unwrap()
    else {
        panic!("the log has them all");
    };
    assert_eq!((batches.len(), up_to), (2, 5));
}

/// The store keeps four revisions.
async fn a_watch_from_before_the_log_is_told_to_list_again(store: impl Store) {
    for i in 0..6 {
        commit(&store, vec![], vec![put("t/a", &i.to_string())]).await;
    }
    assert_eq!(store.watch(b"t/", 1).next().await.unwrap(), WatchEvent::Compacted);
    assert_eq!(store.watch(b"t/", 7).next().await.unwrap(), WatchEvent::Compacted);
    let WatchEvent::Batches { batches, .. } = store.watch(b"t/", 2).next().await.unwrap() else {
        panic!("the log has 3 to 6");
    };
    let revisions: Vec<_> = batches.iter().map(|(revision, _)| *revision).collect();
    assert_eq!(revisions, [3, 4, 5, 6]);
}

async fn of_many_writers_with_one_compare_exactly_one_wins(store: impl Store) {
    let writers = (0..64).map(|i: u32| {
        let store = store.clone();
        tokio::spawn(async move {
            store.txn(vec![Compare::Absent("ip".into())], vec![put("ip", &i.to_string())]).await
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut wins = 0;
    for writer in writers {
        wins += u32::from(writer.await.unwrap().unwrap() != Commit::Conflict);
    }
    assert_eq!((wins, store.list(b"").await.unwrap().revision), (1, 1));
}

macro_rules! conformance {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::MemoryStore::with_log(4)).await;
            })*
        }
        mod redb_file {
            $(#[tokio::test]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                super::$name(crate::RedbStore::with_log(&dir.path().join("store"), 4).unwrap()).await;
            })*
        }
    };
}

conformance!(
    a_transaction_is_applied_whole_or_not_at_all,
    a_listing_has_exactly_its_prefix_in_order,
    a_watch_sees_every_later_event_of_its_prefix_once,
    a_watch_from_before_the_log_is_told_to_list_again,
    of_many_writers_with_one_compare_exactly_one_wins,
);

#[tokio::test]
async fn events_come_in_bounded_portions_from_both_backends() {
    events_come_in_bounded_portions(MemoryStore::default()).await;
    let dir = tempfile::tempdir().unwrap();
    events_come_in_bounded_portions(RedbStore::open(&dir.path().join("store")).unwrap()).await;
}

#[tokio::test]
async fn a_file_keeps_values_revision_and_log_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = RedbStore::open(&path).unwrap();
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
