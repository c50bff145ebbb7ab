//! What every store does.

use control_store::{AnyStore, Commit, Compare, Op, Store as _, Value, WatchEvent};

use crate::Sentence;

pub(crate) const SENTENCES: [Sentence; 8] = [
    ("a_transaction_is_applied_whole_or_not_at_all", 4, |s| Box::pin(whole_or_not(s))),
    ("a_listing_has_exactly_its_prefix_in_order", 4, |s| Box::pin(exact_listing(s))),
    ("a_listing_of_many_pages_is_of_one_revision", 4, |s| Box::pin(long_listing(s))),
    ("a_watch_sees_every_later_event_of_its_prefix_once", 4, |s| Box::pin(every_event(s))),
    ("a_watch_from_before_the_log_is_told_to_list_again", 4, |s| Box::pin(compacted(s))),
    ("events_come_in_bounded_portions", 100, |s| Box::pin(bounded_portions(s))),
    ("of_several_operations_on_a_key_the_last_one_counts", 4, |s| Box::pin(last_one(s))),
    ("of_many_writers_with_one_compare_exactly_one_wins", 4, |s| Box::pin(one_wins(s))),
];

pub(crate) fn put(key: &str, value: &str) -> Op {
    Op::Put(key.into(), value.into())
}

pub(crate) async fn commit(store: &AnyStore, compares: Vec<Compare>, ops: Vec<Op>) -> u64 {
    match store.txn(compares, ops).await.unwrap() {
        Commit::Committed(revision) => revision,
        Commit::Conflict => panic!("conflict"),
    }
}

async fn whole_or_not(store: AnyStore) {
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
    assert!(second > first);
    assert_eq!(store.get(b"a").await.unwrap(), None);
    assert_eq!(
        store.get(b"b").await.unwrap().unwrap(),
        Value { bytes: b"3".into(), revision: second }
    );
    assert_eq!(commit(&store, vec![], vec![]).await, second, "nothing to do is no revision");
}

async fn exact_listing(store: AnyStore) {
    let ops = ["t/b", "t/a", "t", "u/a", "s", "t0"].map(|key| put(key, key));
    let revision = commit(&store, vec![], ops.into()).await;
    let listing = store.list(b"t/").await.unwrap();
    let keys: Vec<_> = listing.items.iter().map(|(key, _)| key.as_slice()).collect();
    assert_eq!((keys, listing.revision), (vec![b"t/a".as_slice(), b"t/b"], revision));
    assert_eq!(store.list(b"").await.unwrap().items.len(), 6);
    assert_eq!(store.list(b"zz").await.unwrap().items.len(), 0);
}

async fn every_event(store: AnyStore) {
    let start = commit(&store, vec![], vec![put("t/old", "0")]).await;
    let mut watch = store.watch(b"t/", start);
    let other = commit(&store, vec![], vec![put("u/x", "0")]).await;
    let ops = vec![put("t/a", "1"), put("u/x", "1"), Op::Delete("t/none".into())];
    let first = commit(&store, vec![], ops).await;
    let second = commit(&store, vec![], vec![Op::Delete("t/a".into())]).await;
    assert!(start < other && other < first && first < second);
    let expected = WatchEvent::Batches {
        batches: vec![(first, vec![put("t/a", "1")]), (second, vec![Op::Delete("t/a".into())])],
        up_to: second,
    };
    assert_eq!(watch.next().await.unwrap(), expected);
    let foreign = commit(&store, vec![], vec![put("u/y", "1")]).await;
    let passed = WatchEvent::Batches { batches: vec![], up_to: foreign };
    assert_eq!(watch.next().await.unwrap(), passed, "what is not its own it only counts");
    let waiting = tokio::spawn(async move { watch.next().await.unwrap() });
    let third = commit(&store, vec![], vec![put("t/c", "3")]).await;
    let expected =
        WatchEvent::Batches { batches: vec![(third, vec![put("t/c", "3")])], up_to: third };
    assert_eq!(waiting.await.unwrap(), expected);
}

async fn bounded_portions(store: AnyStore) {
    let start = commit(&store, vec![], vec![put("u/a", "x")]).await;
    let mut revisions = Vec::new();
    for i in 0..5 {
        let ops = vec![put("t/a", &i.to_string()), put("u/a", "x")];
        revisions.push(commit(&store, vec![], ops).await);
    }
    let portion = async |from| match store.events(b"t/", from, 3).await.unwrap() {
        WatchEvent::Batches { batches, up_to } => (batches.len(), up_to),
        WatchEvent::Compacted => panic!("the log has them all"),
    };
    assert_eq!(portion(start).await, (3, revisions[2]));
    assert_eq!(portion(revisions[2]).await, (2, revisions[4]));
}

/// The store keeps four revisions.
async fn compacted(store: AnyStore) {
    let mut written = Vec::new();
    for i in 0..6 {
        written.push(commit(&store, vec![], vec![put("t/a", &i.to_string())]).await);
    }
    assert_eq!(store.watch(b"t/", written[0]).next().await.unwrap(), WatchEvent::Compacted);
    // Of another history.
    let future = written[5] + 1000;
    assert_eq!(store.watch(b"t/", future).next().await.unwrap(), WatchEvent::Compacted);
    let WatchEvent::Batches { batches, .. } = store.watch(b"t/", written[1]).next().await.unwrap()
    else {
        panic!("the log has the last four");
    };
    let revisions: Vec<_> = batches.iter().map(|(revision, _)| *revision).collect();
    assert_eq!(revisions, written[2..]);
}

/// More keys than one reply of etcd holds, with writes in between.
async fn long_listing(store: AnyStore) {
    const KEYS: usize = 2500;
    for part in 0..KEYS / 100 {
        let ops = (0..100).map(|i| put(&format!("n/{:05}", part * 100 + i), "same")).collect();
        commit(&store, vec![], ops).await;
    }
    let writer = store.clone();
    let writing = tokio::spawn(async move {
        for i in 0..20 {
            let ops = vec![put("n/00000", &i.to_string()), put("n/02499", &i.to_string())];
            commit(&writer, vec![], ops).await;
        }
    });
    while !writing.is_finished() {
        let listing = store.list(b"n/").await.unwrap();
        assert_eq!(listing.items.len(), KEYS);
        let (first, last) = (&listing.items[0].1, &listing.items[KEYS - 1].1);
        assert_eq!(first.bytes, last.bytes, "both are of revision {}", listing.revision);
    }
    writing.await.unwrap();
}

async fn last_one(store: AnyStore) {
    let first = commit(&store, vec![], vec![put("a", "1"), put("a", "2"), put("b", "1")]).await;
    assert_eq!(store.get(b"a").await.unwrap().unwrap().bytes, b"2");
    commit(&store, vec![], vec![put("a", "3"), Op::Delete("a".into())]).await;
    assert_eq!(store.get(b"a").await.unwrap(), None);
    assert_eq!(store.get(b"b").await.unwrap().unwrap().revision, first);
}

async fn one_wins(store: AnyStore) {
    let writers = (0..64).map(|i: u32| {
        let store = store.clone();
        tokio::spawn(async move {
            store.txn(vec![Compare::Absent("ip".into())], vec![put("ip", &i.to_string())]).await
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut won = Vec::new();
    for writer in writers {
        if let Commit::Committed(revision) = writer.await.unwrap().unwrap() {
            won.push(revision);
        }
    }
    assert_eq!(won, [store.list(b"").await.unwrap().revision], "exactly one has written");
}
