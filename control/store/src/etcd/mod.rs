//! A store in etcd, for several netmasters. The store's revision is that of one key, `head`, which
//! every transaction touches: so nothing else that lives in etcd, leases least of all, looks like a
//! write of ours.
//!
//! Writes go through a term ([`Election`]): each carries a compare that holds only for as long as
//! its writer is the leader. A leader that was stopped and wakes up writes nothing.

mod election;
mod feed;
mod keys;
mod link;
mod log;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Compare as Condition, CompareOp, GetOptions, GetResponse, KeyValue, Txn, TxnOp, TxnOpResponse,
};
use tokio::task::AbortHandle;

pub use election::{Contact, Election, LeaderWatch, Tenure, Term};

use crate::{Commit, Compare, LOG_REVISIONS, Listing, Op, Store, StoreError, Value, WatchEvent};
use election::Fence;
use keys::Keys;
use link::{Call, Link};
use log::Log;

/// Where netmasters keep theirs.
const ROOT: &str = "/weir/";
/// Keys of one page of a listing: of the largest objects still far below the bound of a message.
const PAGE_KEYS: i64 = 1000;
const REPLY_BYTES_MAX: usize = 64 << 20;
/// How long a commit waits for its own echo in the log.
const ECHO: Duration = Duration::from_millis(500);

/// A store in etcd. Clones share the connection.
#[derive(Debug, Clone)]
pub struct EtcdStore {
    shared: Arc<Shared>,
    /// Of the term that writes; `None`: whoever has this may write.
    fence: Option<Fence>,
}

#[derive(Debug)]
struct Shared {
    link: Arc<Link>,
    log: Arc<Log>,
    keys: Keys,
    feed: AbortHandle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.feed.abort();
    }
}

impl EtcdStore {
    /// A store on the etcd cluster whose members have these `http://HOST:PORT` addresses. Connects in
    /// the background, for as long as it takes. Must be called within a tokio runtime.
    #[must_use]
    pub fn open(urls: Vec<String>) -> Self {
        Self::with_log(urls, ROOT, LOG_REVISIONS)
    }

    /// As [`Self::open`], under another root, which ends in `/`, and with events of the last
    /// `log_revisions` revisions.
    #[must_use]
    pub fn with_log(urls: Vec<String>, root: &str, log_revisions: u64) -> Self {
        let keys = Keys::new(root);
        let (link, log) = (Arc::new(Link::new(urls)), Arc::new(Log::new(log_revisions)));
        let feed = feed::run(Arc::clone(&link), Arc::clone(&log), keys.clone());
        let feed = tokio::spawn(async move { match feed.await {} }).abort_handle();
        Self { shared: Arc::new(Shared { link, log, keys, feed }), fence: None }
    }

    /// The election among the processes that share this store.
    #[must_use]
    pub fn election(&self, address: &str) -> Election {
        Election::new(Arc::clone(&self.shared), address)
    }

    /// Refused at once by a handle whose term is over as far as this process knows.
    fn check_fence(&self) -> Result<(), StoreError> {
        match &self.fence {
            Some(fence) if !fence.holds() => Err(StoreError::Deposed),
            Some(_) | None => Ok(()),
        }
    }

    async fn range(&self, key: Vec<u8>, options: GetOptions) -> Result<GetResponse, StoreError> {
        let reply = self.shared.link.call(Call::Read, |client| {
            let (key, options) = (key.clone(), options.clone());
            let mut kv = client.kv_client().max_decoding_message_size(REPLY_BYTES_MAX);
            async move { kv.get(key, Some(options)).await }
        });
        reply.await
    }

    /// etcd's revision now, and the store's at it.
    async fn head(&self) -> Result<(i64, u64), StoreError> {
        let reply = self.range(self.shared.keys.head(), GetOptions::new()).await?;
        let now = reply.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok((now, reply.kvs().first().map_or(0, modified)))
    }

    fn condition(&self, compare: &Compare) -> Condition {
        let keys = &self.shared.keys;
        let number = |revision: u64| i64::try_from(revision).unwrap_or(i64::MAX);
        match compare {
            Compare::Absent(key) => Condition::create_revision(keys.data(key), CompareOp::Equal, 0),
            Compare::Revision(key, revision) => {
                Condition::mod_revision(keys.data(key), CompareOp::Equal, number(*revision))
            }
            Compare::StoreRevision(revision) => {
                Condition::mod_revision(keys.head(), CompareOp::Equal, number(*revision))
            }
        }
    }

    fn transaction(&self, compares: &[Compare], ops: &[Op]) -> Txn {
        let keys = &self.shared.keys;
        let mut when: Vec<_> = compares.iter().map(|compare| self.condition(compare)).collect();
        if let Some(fence) = &self.fence {
            when.push(fence.condition(keys));
        }
        // etcd takes one operation a key; of several the last one counts.
        let is_last = |(place, op): &(usize, &Op)| {
            ops.iter().skip(place + 1).all(|later| later.key() != op.key())
        };
        let mut then: Vec<_> = ops
            .iter()
            .enumerate()
            .filter(is_last)
            .map(|(_, op)| match op {
                Op::Put(key, value) => TxnOp::put(keys.data(key), value.as_slice(), None),
                Op::Delete(key) => TxnOp::delete(keys.data(key), None),
            })
            .collect();
        then.push(if ops.is_empty() {
            TxnOp::get(keys.head(), None)
        } else {
            TxnOp::put(keys.head(), "", None)
        });
        Txn::new().when(when).and_then(then).or_else([TxnOp::get(keys.leader(), None)])
    }

    /// What became of a write for which etcd has no room. It looks at its quota before it applies a
    /// write and answers after, so that the first one it refuses may be there.
    async fn refused_for_room(&self, ops: &[Op], reason: String) -> Result<Commit, StoreError> {
        let put = ops.iter().rev().find_map(|op| match op {
            Op::Put(key, value) => Some((key, value)),
            Op::Delete(_) => None,
        });
        let Some((key, value)) = put else { return Err(StoreError::Unknown(reason)) };
        let (_, revision) = self.head().await?;
        let found = self.range(self.shared.keys.data(key), GetOptions::new()).await?;
        let is_ours = |kv: &KeyValue| modified(kv) == revision && kv.value() == value.as_slice();
        if !found.kvs().first().is_some_and(is_ours) {
            return Err(StoreError::Full(reason));
        }
        self.hear_of(revision).await;
        Ok(Commit::Committed(revision))
    }

    /// Waits until the log has a revision, so that what was read before it is known to be old.
    async fn hear_of(&self, revision: u64) {
        let mut newest = self.shared.log.revisions();
        let heard = newest.wait_for(|newest| *newest >= revision);
        // Without it readers list again: slower, and right.
        drop(tokio::time::timeout(ECHO, heard).await);
    }
}

fn value(kv: &KeyValue) -> Value {
    Value { bytes: kv.value().to_vec(), revision: modified(kv) }
}

fn modified(kv: &KeyValue) -> u64 {
    kv.mod_revision().unsigned_abs()
}

fn found(reply: Option<&TxnOpResponse>) -> Option<&KeyValue> {
    match reply? {
        TxnOpResponse::Get(reply) => reply.kvs().first(),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    }
}

impl Store for EtcdStore {
    async fn get(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        self.check_fence()?;
        let reply = self.range(self.shared.keys.data(key), GetOptions::new()).await?;
        Ok(reply.kvs().first().map(value))
    }

    async fn list(&self, prefix: &[u8]) -> Result<Listing, StoreError> {
        self.check_fence()?;
        let (now, revision) = self.head().await?;
        let first = self.shared.keys.data(prefix);
        let end = end_of(&first);
        let (mut items, mut from) = (Vec::new(), first);
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE_KEYS);
            let page = self.range(from.clone(), options.with_revision(now)).await?;
            let item = |kv| Some((self.shared.keys.strip(KeyValue::key(kv))?.to_vec(), value(kv)));
            items.extend(page.kvs().iter().filter_map(item));
            let Some(last) = page.kvs().last().filter(|_| page.more()) else {
                return Ok(Listing { items, revision });
            };
            from = last.key().to_vec();
            from.push(0);
        }
    }

    async fn txn(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Commit, StoreError> {
        self.check_fence()?;
        let transaction = self.transaction(&compares, &ops);
        let kind = if ops.is_empty() { Call::Read } else { Call::Write };
        let reply = self.shared.link.call(kind, |client| {
            let transaction = transaction.clone();
            async move { client.kv_client().txn(transaction).await }
        });
        let reply = match reply.await {
            Err(StoreError::Full(reason)) if !ops.is_empty() => {
                return self.refused_for_room(&ops, reason).await;
            }
            reply => reply?,
        };
        let answers = reply.op_responses();
        if !reply.succeeded() {
            let leader = found(answers.first()).map(|kv| kv.create_revision().unsigned_abs());
            let is_ours = self.fence.as_ref().is_none_or(|fence| Some(fence.token()) == leader);
            return if is_ours { Ok(Commit::Conflict) } else { Err(StoreError::Deposed) };
        }
        if ops.is_empty() {
            return Ok(Commit::Committed(found(answers.last()).map_or(0, modified)));
        }
        let revision = reply.header().map_or(0, |header| header.revision().unsigned_abs());
        self.hear_of(revision).await;
        Ok(Commit::Committed(revision))
    }

    async fn events(
        &self,
        prefix: &[u8],
        from_revision: u64,
        limit: usize,
    ) -> Result<WatchEvent, StoreError> {
        if let Some(event) = self.shared.log.events(prefix, from_revision, limit) {
            return Ok(event);
        }
        // Ahead of the log: heard of soon, unless there never was such a revision.
        let (now, _) = self.head().await?;
        if from_revision > now.unsigned_abs() {
            return Ok(WatchEvent::Compacted);
        }
        Ok(WatchEvent::Batches { batches: Vec::new(), up_to: from_revision })
    }

    fn revisions(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.log.revisions()
    }
}

/// The first key after all that start with `prefix`, which is not empty and not all 0xff.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            break;
        }
    }
    end
}
