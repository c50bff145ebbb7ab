//! One suite for every backend, and what only one of them does.
//!
//! etcd is Debian's, started here. Without it its tests show as ignored, with the reason as their
//! kind; with `WEIR_REQUIRE_ALL=1` they fail.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod election;
mod file;
mod server;
mod suite;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use control_store::{AnyStore, EtcdStore, MemoryStore, RedbStore};
use libtest_mimic::{Arguments, Failed, Trial};

use server::{Etcd, SharedEtcd};

type Run = Pin<Box<dyn Future<Output = ()>>>;
/// A sentence about any store, and how many revisions that keeps.
type Sentence = (&'static str, u64, fn(AnyStore) -> Run);
/// A sentence about etcd alone.
type EtcdSentence = (&'static str, fn(Arc<Etcd>) -> Run);
/// A sentence about a file alone.
type FileSentence = (&'static str, fn() -> Run);

fn main() {
    let etcd = SharedEtcd::default();
    let mut trials = Vec::new();
    for (name, log, sentence) in suite::SENTENCES {
        trials.push(Trial::test(format!("memory::{name}"), move || {
            run(async move { sentence(AnyStore::Memory(MemoryStore::with_log(log))).await })
        }));
        trials.push(Trial::test(format!("redb::{name}"), move || {
            run(async move {
                let dir = tempfile::tempdir().unwrap();
                let store = RedbStore::with_log(&dir.path().join("store"), log).unwrap();
                sentence(AnyStore::Redb(store)).await;
            })
        }));
        let etcd = etcd.clone();
        trials.push(with_etcd(format!("etcd::{name}"), move || {
            let etcd = etcd.running();
            run(async move {
                let store = EtcdStore::with_log(etcd.urls(), &format!("/{name}/"), log);
                sentence(AnyStore::Etcd(store)).await;
            })
        }));
    }
    for (name, sentence) in election::SENTENCES {
        let etcd = etcd.clone();
        trials.push(with_etcd(format!("etcd::{name}"), move || {
            let etcd = etcd.running();
            run(async move { sentence(etcd).await })
        }));
    }
    for (name, sentence) in file::SENTENCES {
        trials.push(Trial::test(format!("redb::{name}"), move || {
            run(async move { sentence().await })
        }));
    }
    drop(etcd);
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn with_etcd(name: String, test: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    let required = std::env::var_os("WEIR_REQUIRE_ALL").is_some_and(|value| value != "0");
    let missing = ["etcd", "etcdctl"].into_iter().find(|program| !server::is_installed(program));
    let reason = missing.map(|program| format!("needs {program}"));
    match reason {
        None => Trial::test(name, test),
        Some(reason) if required => Trial::test(name, move || Err(reason.into())),
        Some(reason) => Trial::test(name, test).with_kind(reason).with_ignored_flag(true),
    }
}

fn run(test: impl Future<Output = ()>) -> Result<(), Failed> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()?
        .block_on(test);
    Ok(())
}
