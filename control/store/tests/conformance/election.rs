//! What etcd does beyond the suite: one leader at a time, compaction, bounds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use control_store::{AnyStore, Commit, EtcdStore, Op, Store as _, StoreError, WatchEvent};
use tokio::time::timeout;

use crate::EtcdSentence;
use crate::server::Etcd;
use crate::suite::{commit, put};

pub(crate) const SENTENCES: [EtcdSentence; 8] = [
    ("a_leader_that_resigns_is_replaced_within_a_second", |e| Box::pin(resigns(e))),
    ("a_leader_that_vanishes_is_replaced_within_ten_seconds", |e| Box::pin(vanishes(e))),
    ("a_leader_whose_key_is_gone_writes_nothing", |e| Box::pin(fenced(e))),
    ("a_store_that_starts_late_resumes_watches_of_earlier_writes", |e| Box::pin(late_start(e))),
    ("a_watch_of_what_etcd_has_compacted_is_told_to_list_again", |e| Box::pin(compaction(e))),
    ("a_leader_has_etcd_forget_what_no_watch_can_ask_for", |_| Box::pin(housekeeping())),
    ("a_write_larger_than_etcd_takes_is_refused_whole", |e| Box::pin(too_large(e))),
    ("a_full_etcd_refuses_writes_and_goes_on_reading", |_| Box::pin(full())),
];

const BOUND: Duration = Duration::from_secs(20);

fn open(etcd: &Etcd, root: &str) -> EtcdStore {
    EtcdStore::with_log(etcd.urls(), root, 100)
}

async fn resigns(etcd: Arc<Etcd>) {
    let (one, two) = (open(&etcd, "/resigns/"), open(&etcd, "/resigns/"));
    let first = timeout(BOUND, one.election("http://one:1").campaign()).await.unwrap();
    let election = two.election("http://two:1");
    let mut seen = election.leader();
    while seen.address().as_deref() != Some("http://one:1") {
        timeout(BOUND, seen.changed()).await.unwrap();
    }
    let candidate = tokio::spawn(async move { election.campaign().await });
    let old = first.store();
    let start = Instant::now();
    first.resign().await;
    let second = timeout(Duration::from_secs(1), candidate).await.unwrap().unwrap();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let refused = old.txn(vec![], vec![put("a", "old")]).await;
    assert!(matches!(refused, Err(StoreError::Deposed)), "{refused:?}");
    second.store().txn(vec![], vec![put("a", "new")]).await.unwrap();
    assert_eq!(one.get(b"a").await.unwrap().unwrap().bytes, b"new");
    assert_eq!(seen.address().as_deref(), Some("http://two:1"));
}

async fn vanishes(etcd: Arc<Etcd>) {
    let (one, two) = (open(&etcd, "/vanishes/"), open(&etcd, "/vanishes/"));
    let first = timeout(BOUND, one.election("http://one:1").campaign()).await.unwrap();
    let tenure = first.tenure();
    assert!(tenure.holds());
    let start = Instant::now();
    // Nobody renews its lease from here on, and nobody gives it back.
    drop(first);
    let second = timeout(BOUND, two.election("http://two:1").campaign()).await.unwrap();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(!tenure.holds() && second.tenure().holds());
}

async fn fenced(etcd: Arc<Etcd>) {
    let store = open(&etcd, "/fenced/");
    let mut term = timeout(BOUND, store.election("http://one:1").campaign()).await.unwrap();
    let writer = term.store();
    writer.txn(vec![], vec![put("a", "1")]).await.unwrap();
    // As when the lease has ended and this process has not noticed.
    etcd.ctl(&["del", "/fenced/leader"]);
    assert!(term.tenure().holds(), "it believes to lead");
    let refused = writer.txn(vec![], vec![put("a", "2")]).await;
    assert!(matches!(refused, Err(StoreError::Deposed)), "{refused:?}");
    assert_eq!(store.get(b"a").await.unwrap().unwrap().bytes, b"1");
    timeout(BOUND, term.ended()).await.unwrap();
    assert!(!term.tenure().holds());
}

async fn late_start(etcd: Arc<Etcd>) {
    let early = AnyStore::Etcd(open(&etcd, "/late/"));
    let first = commit(&early, vec![], vec![put("a", "1")]).await;
    let second = commit(&early, vec![], vec![put("a", "2")]).await;
    let late = open(&etcd, "/late/");
    let event = timeout(BOUND, late.watch(b"", first).next()).await.unwrap().unwrap();
    let expected =
        WatchEvent::Batches { batches: vec![(second, vec![put("a", "2")])], up_to: second };
    assert_eq!(event, expected);
}

async fn compaction(etcd: Arc<Etcd>) {
    let early = AnyStore::Etcd(open(&etcd, "/compaction/"));
    let first = commit(&early, vec![], vec![put("a", "1")]).await;
    let second = commit(&early, vec![], vec![put("a", "2")]).await;
    let third = commit(&early, vec![], vec![put("a", "3")]).await;
    etcd.ctl(&["compaction", &second.to_string()]);
    let late = open(&etcd, "/compaction/");
    let mut watch = late.watch(b"", first);
    let event = timeout(BOUND, watch.next()).await.unwrap().unwrap();
    assert_eq!(event, WatchEvent::Compacted);
    let event = timeout(BOUND, late.watch(b"", second).next()).await.unwrap().unwrap();
    let expected =
        WatchEvent::Batches { batches: vec![(third, vec![put("a", "3")])], up_to: third };
    assert_eq!(event, expected);
}

/// On an etcd of its own: others' histories are cut with it.
async fn housekeeping() {
    const KEPT: u64 = 4;
    let etcd = Etcd::start(&[]);
    let store = EtcdStore::with_log(etcd.urls(), "/kept/", KEPT);
    let election = store.election("http://one:1").compacting_every(1);
    let term = timeout(BOUND, election.campaign()).await.unwrap();
    let writer = AnyStore::Etcd(term.store());
    let mut written = Vec::new();
    for i in 0..8 {
        written.push(commit(&writer, vec![], vec![put("a", &i.to_string())]).await);
    }
    // Each opened anew, which knows only what etcd has.
    let late = || EtcdStore::with_log(etcd.urls(), "/kept/", 100);
    let cut = async {
        while late().watch(b"", written[2]).next().await.unwrap() != WatchEvent::Compacted {}
    };
    timeout(BOUND, cut).await.unwrap();
    let mut watch = late().watch(b"", written[3]);
    let (mut seen, mut position) = (Vec::new(), 0);
    // etcd tells of what is kept in as many parts as it likes.
    while position < written[7] {
        let event = timeout(BOUND, watch.next()).await.unwrap().unwrap();
        let WatchEvent::Batches { batches, up_to } = event else { panic!("{event:?}") };
        seen.extend(batches);
        position = up_to;
    }
    let kept = (4..8).map(|i: usize| (written[i], vec![put("a", &i.to_string())]));
    assert_eq!(seen, kept.collect::<Vec<_>>());
    assert_eq!(writer.get(b"a").await.unwrap().unwrap().bytes, b"7");
}

async fn too_large(etcd: Arc<Etcd>) {
    let store = open(&etcd, "/large/");
    let ops: Vec<Op> = (0..200).map(|i| put(&format!("k{i}"), "x")).collect();
    let refused = store.txn(vec![], ops).await;
    assert!(matches!(refused, Err(StoreError::TooLarge(_))), "{refused:?}");
    let refused = store.txn(vec![], vec![put("k", &"x".repeat(2 << 20))]).await;
    assert!(matches!(refused, Err(StoreError::TooLarge(_))), "{refused:?}");
    assert_eq!(store.list(b"").await.unwrap().items, []);
}

async fn full() {
    let etcd = Etcd::start(&["--quota-backend-bytes", "1000000"]);
    let store = open(&etcd, "/full/");
    let value = "x".repeat(100_000);
    let mut written = 0;
    let refused = loop {
        match store.txn(vec![], vec![put(&format!("k{written}"), &value)]).await {
            Ok(Commit::Committed(_)) => written += 1,
            Ok(Commit::Conflict) => panic!("there is no compare"),
            Err(error) => break error,
        }
        assert!(written < 100, "10 MB are in a store of 1 MB");
    };
    assert!(matches!(refused, StoreError::Full(_)), "{refused:?}");
    assert!(refused.to_string().starts_with("the store is full"), "{refused}");
    assert_eq!(store.list(b"").await.unwrap().items.len(), written);
}
