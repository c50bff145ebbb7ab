//! Who may write: one process at a time, for as long as it keeps its lease alive.
//!
//! The leader's key is bound to the lease, so that a dead leader's goes away by itself, after
//! [`LEASE_SECONDS`], and a resigning one's at once. Its create revision is the term's token and
//! part of every write. A won election alone means nothing: the lease may be dead by then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Compare as Condition, CompareOp, PutOptions, Txn, TxnOp};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::feed;
use super::keys::Keys;
use super::link::Call;
use super::{EtcdStore, Shared};
use crate::StoreError;

/// How long a leader that is silent stays leader.
const LEASE_SECONDS: i64 = 5;
const LEASE: Duration = Duration::from_secs(LEASE_SECONDS.unsigned_abs());
/// How often the lease is renewed and the leader's key looked at.
const ROUND: Duration = Duration::from_millis(1500);
/// How often a candidate looks by itself: it is told of every change.
const LOOK: Duration = Duration::from_secs(1);
/// A resignation that etcd does not take is not waited for: the lease ends anyway.
const RESIGN_TIMEOUT: Duration = Duration::from_secs(1);
/// Rounds between two compactions: five minutes.
const COMPACTION_ROUNDS: u32 = 200;

/// What every write of a term carries.
#[derive(Debug, Clone)]
pub(super) struct Fence {
    token: u64,
    validity: Validity,
}

impl Fence {
    pub(super) const fn token(&self) -> u64 {
        self.token
    }

    /// Whether the lease holds by this process's own clock, which goes on while it is stopped.
    pub(super) fn holds(&self) -> bool {
        self.validity.holds()
    }

    pub(super) fn condition(&self, keys: &Keys) -> Condition {
        let token = i64::try_from(self.token).unwrap_or(i64::MAX);
        Condition::create_revision(keys.leader(), CompareOp::Equal, token)
    }
}

/// Until when a lease holds, if it is not renewed.
#[derive(Debug, Clone)]
struct Validity {
    base: Instant,
    until_ms: Arc<AtomicU64>,
}

impl Validity {
    fn from(sent: Instant) -> Self {
        let validity = Self { base: sent, until_ms: Arc::default() };
        validity.renew(sent);
        validity
    }

    /// etcd counts from when it got the request, which is after it was sent.
    fn renew(&self, sent: Instant) {
        let until = sent.saturating_duration_since(self.base) + LEASE;
        self.until_ms.fetch_max(until.as_millis() as u64, Ordering::AcqRel);
    }

    fn end(&self) {
        self.until_ms.store(0, Ordering::Release);
    }

    fn holds(&self) -> bool {
        self.base.elapsed() < self.until()
    }

    /// Waits until it holds no longer.
    async fn over(&self) {
        while self.holds() {
            tokio::time::sleep_until(self.base + self.until()).await;
        }
    }

    fn until(&self) -> Duration {
        Duration::from_millis(self.until_ms.load(Ordering::Acquire))
    }
}

/// Whether a majority of etcd has been heard lately.
#[derive(Debug, Clone)]
pub struct Contact {
    /// `None`: never.
    heard: Arc<Mutex<Option<Instant>>>,
}

impl Contact {
    /// False once nothing has been heard for a lease's time: who was known to lead need no longer.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.holds_at(Instant::now())
    }

    fn holds_at(&self, now: Instant) -> bool {
        self.lock().is_some_and(|heard| now.saturating_duration_since(heard) < LEASE)
    }

    fn heard(&self, now: Instant) {
        *self.lock() = Some(now);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        // One value: nothing can be half written.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The election among the processes that share a store.
#[derive(Debug)]
pub struct Election {
    shared: Arc<Shared>,
    address: String,
    contact: Contact,
    compaction_rounds: u32,
}

impl Election {
    pub(super) fn new(shared: Arc<Shared>, address: &str) -> Self {
        let contact = Contact { heard: Arc::default() };
        let compaction_rounds = COMPACTION_ROUNDS;
        Self { shared, address: address.to_owned(), contact, compaction_rounds }
    }

    /// With etcd's history cut every `rounds` renewals of the lease, which are 1.5 s apart.
    #[must_use]
    pub const fn compacting_every(mut self, rounds: u32) -> Self {
        self.compaction_rounds = rounds;
        self
    }

    /// The address of whoever leads now, as far as is known, and every later change.
    #[must_use]
    pub fn leader(&self) -> LeaderWatch {
        LeaderWatch(self.shared.log.leader())
    }

    /// Whether etcd is heard, while this process campaigns.
    #[must_use]
    pub fn contact(&self) -> Contact {
        self.contact.clone()
    }

    /// Waits until this process leads.
    pub async fn campaign(&self) -> Term {
        let mut leader = self.shared.log.leader();
        loop {
            let vacant = leader.wait_for(Option::is_none);
            // Running out of time is the other reason to look: the watch may be broken.
            drop(tokio::time::timeout(LOOK, vacant).await);
            match self.stand().await {
                Ok(Some(term)) => return term,
                Ok(None) => {}
                Err(error) => {
                    debug!(%error, "no election");
                    tokio::time::sleep(LOOK / 4).await;
                }
            }
        }
    }

    /// Takes the leader's place if it is free.
    async fn stand(&self) -> Result<Option<Term>, StoreError> {
        let Shared { link, log, keys, .. } = &*self.shared;
        let (_, leader) = feed::leader(link, keys).await?;
        // A member answers this with a majority only.
        self.contact.heard(Instant::now());
        if leader.is_some() {
            log.tell_leader(leader);
            return Ok(None);
        }
        let sent = Instant::now();
        let rewinds = log.rewinds();
        let lease = link
            .call(Call::Write, |client| async move {
                client.lease_client().grant(LEASE_SECONDS, None).await
            })
            .await?
            .id();
        let put = PutOptions::new().with_lease(lease);
        let transaction = Txn::new()
            .when([Condition::create_revision(keys.leader(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(keys.leader(), self.address.as_str(), Some(put))]);
        let reply = link
            .call(Call::Write, |client| {
                let transaction = transaction.clone();
                async move { client.kv_client().txn(transaction).await }
            })
            .await;
        let won = match &reply {
            Ok(reply) if reply.succeeded() => reply.header(),
            Ok(_) | Err(_) => None,
        };
        let Some(header) = won else {
            revoke(&self.shared, lease).await;
            return reply.map(|_| None);
        };
        let fence =
            Fence { token: header.revision().unsigned_abs(), validity: Validity::from(sent) };
        info!(token = fence.token, "leads");
        let compaction_rounds = self.compaction_rounds;
        let shared = Arc::clone(&self.shared);
        Ok(Some(Term::begin(Keeper { shared, fence, lease, rewinds, compaction_rounds })))
    }
}

/// Sees who leads.
#[derive(Debug, Clone)]
pub struct LeaderWatch(watch::Receiver<Option<super::log::Leader>>);

impl LeaderWatch {
    /// The address of the leader; `None`: there is none, or it is not known.
    #[must_use]
    pub fn address(&self) -> Option<String> {
        self.0.borrow().as_ref().map(|leader| leader.address.clone())
    }

    /// Waits for a change.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The store that tells lives as long as the process.
            std::future::pending::<()>().await;
        }
    }
}

/// The time during which this process leads.
#[derive(Debug)]
pub struct Term {
    shared: Arc<Shared>,
    fence: Fence,
    lease: i64,
    over: watch::Receiver<bool>,
    keeper: AbortHandle,
}

impl Term {
    fn begin(keeper: Keeper) -> Self {
        let (end, over) = watch::channel(false);
        let (shared, fence, lease) =
            (Arc::clone(&keeper.shared), keeper.fence.clone(), keeper.lease);
        let keeper = tokio::spawn(async move {
            let reason = keeper.keep().await;
            keeper.fence.validity.end();
            warn!(token = keeper.fence.token, reason, "leads no longer");
            end.send_replace(true);
        });
        Self { shared, fence, lease, over, keeper: keeper.abort_handle() }
    }

    /// The store, for this term: once the term is over it refuses everything.
    #[must_use]
    pub fn store(&self) -> EtcdStore {
        EtcdStore { shared: Arc::clone(&self.shared), fence: Some(self.fence.clone()) }
    }

    /// Tells, at any moment, whether the term is still on.
    #[must_use]
    pub fn tenure(&self) -> Tenure {
        Tenure(self.fence.clone())
    }

    /// Waits until the term is over.
    pub async fn ended(&mut self) {
        // A keeper that is gone has ended it as well.
        drop(self.over.wait_for(|over| *over).await);
    }

    /// Ends the term, for another process to take over at once.
    pub async fn resign(self) {
        self.fence.validity.end();
        revoke(&self.shared, self.lease).await;
    }
}

impl Drop for Term {
    fn drop(&mut self) {
        self.fence.validity.end();
        self.keeper.abort();
    }
}

/// Whether a term is still on.
#[derive(Debug, Clone)]
pub struct Tenure(Fence);

impl Tenure {
    /// False from the moment on at which another process might lead.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.0.holds()
    }
}

async fn revoke(shared: &Shared, lease: i64) {
    let revoked = shared
        .link
        .call(Call::Read, |client| async move { client.lease_client().revoke(lease).await });
    match tokio::time::timeout(RESIGN_TIMEOUT, revoked).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => debug!(%error, "the lease is left to end"),
        Err(_elapsed) => debug!("the lease is left to end"),
    }
}

/// Keeps a lease alive.
struct Keeper {
    shared: Arc<Shared>,
    fence: Fence,
    lease: i64,
    rewinds: watch::Receiver<u64>,
    compaction_rounds: u32,
}

impl Keeper {
    /// Until the term is over; why it is.
    async fn keep(&self) -> String {
        let mut rewinds = self.rewinds.clone();
        tokio::select! {
            error = self.renew() => error.to_string(),
            () = self.fence.validity.over() => "the lease was not renewed in time".to_owned(),
            _ = rewinds.changed() => "etcd was restored from a backup".to_owned(),
        }
    }

    /// Renews for as long as that makes sense.
    async fn renew(&self) -> StoreError {
        let mut rounds = 0_u32;
        loop {
            tokio::time::sleep(ROUND).await;
            match self.round().await {
                Ok(()) => {}
                Err(StoreError::Deposed) => return StoreError::Deposed,
                Err(error) => debug!(%error, "the lease is not renewed yet"),
            }
            rounds += 1;
            if rounds.is_multiple_of(self.compaction_rounds) {
                self.compact().await;
            }
        }
    }

    /// Renews the lease, and sees that the term's key is there.
    async fn round(&self) -> Result<(), StoreError> {
        let (sent, lease) = (Instant::now(), self.lease);
        let Shared { link, keys, .. } = &*self.shared;
        let renewed = link.call(Call::Read, |client| async move {
            client.lease_client().keep_alive(lease).await.map(drop)
        });
        renewed.await?;
        let (_, leader) = feed::leader(link, keys).await?;
        if leader.map(|leader| leader.token) != Some(self.fence.token) {
            return Err(StoreError::Deposed);
        }
        self.fence.validity.renew(sent);
        Ok(())
    }

    /// Lets etcd forget what no watch of ours can ask for any more; it grows for ever otherwise.
    async fn compact(&self) {
        let oldest = i64::try_from(self.shared.log.oldest()).unwrap_or(i64::MAX);
        if oldest == 0 {
            return;
        }
        let compacted = self.shared.link.call(Call::Read, |client| async move {
            client.kv_client().compact(oldest, None).await
        });
        // Nothing is lost when it fails: the next one does more.
        if let Err(error) = compacted.await {
            debug!(%error, oldest, "etcd was not compacted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_is_out_of_contact_when_it_was_not_heard_for_a_leases_time() {
        let contact = Contact { heard: Arc::default() };
        assert!(!contact.holds(), "it was never heard");
        let start = Instant::now();
        contact.heard(start);
        assert!(contact.holds_at(start + LEASE - Duration::from_millis(1)));
        assert!(!contact.holds_at(start + LEASE));
        contact.heard(start + LEASE);
        assert!(contact.holds_at(start + LEASE));
    }
}
