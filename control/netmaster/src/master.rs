//! The one writer: reads state, applies a write in the model and commits all that it touched in one
//! transaction of the store. What is kept here is a cache of the store at one revision; whenever it
//! may be wrong it is thrown away and read again.

use std::sync::Arc;

use control_model::{
    Applied, Batch, Change, Key, Ledger, Object, Outcome, Refused, RefusedObject, Spec,
    TenantChange, TenantName, TenantSpec,
};
use control_store::{AnyStore, Commit, Compare, Store as _, StoreError, Watch};
use tokio::sync::RwLock;

use crate::history::{self, Cluster, History};
use crate::layout::{self, Content, LeftAt, Unreadable};
use crate::metrics::Transactions;

/// How often a write is tried again because something else has written.
const CONFLICTS_MAX: u32 = 8;

/// Why a read or write was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    RefusedObject(#[from] RefusedObject),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(
        "the store is cluster {found}'s, and this netmaster was started with --cluster {given}"
    )]
    Cluster { given: Cluster, found: Cluster },
    #[error("the store is written by something else all the time")]
    Conflicts,
    #[error("the write ended early")]
    Task(#[from] tokio::task::JoinError),
}

/// The ledger at a revision of the store.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) ledger: Ledger,
    pub(crate) history: History,
    pub(crate) revision: u64,
    /// Addresses that are free once every node has the intent of these revisions.
    pub(crate) left_at: LeftAt,
}

impl State {
    /// The revision a node has in force when it has everything.
    pub(crate) fn written(&self) -> u64 {
        self.history.written(self.revision)
    }
}

/// What a write left behind.
#[derive(Debug)]
pub(crate) struct Written<T = Option<Object>> {
    /// The object, unless it was removed; or what became of many.
    pub(crate) object: T,
    /// The revision at which it is so.
    pub(crate) revision: u64,
}

/// A write, in the model; refused, it leaves the ledger as it was. It may run more than once, each
/// time on the newest state.
type Apply<T> = dyn Fn(&mut Ledger) -> Result<(T, Vec<Change>), Failure> + Send + Sync;

/// netmaster's state. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Master {
    store: AnyStore,
    // `None`: to be read again.
    cache: Arc<RwLock<Option<State>>>,
    /// How long the store takes.
    transactions: Transactions,
    /// Of this term.
    instance: u64,
}

impl Master {
    /// Reads the store, begins a term, and makes what always exists. `cluster` is what the store is
    /// to be, or becomes when it is new.
    pub(crate) async fn start(
        store: AnyStore,
        transactions: Transactions,
        cluster: Option<Cluster>,
    ) -> Result<Self, Failure> {
        let master = Self { store, cache: Arc::default(), transactions, instance: history::draw() };
        master.begin_term(cluster).await?;
        let name = TenantName::default_tenant();
        let exists = master.read(|state| state.ledger.intent().tenant(&name).is_some()).await?;
        if !exists {
            let change = TenantChange::default();
            let spec = TenantSpec { name, default_network: None, change };
            master.create(Spec::Tenant(spec)).await?;
        }
        Ok(master)
    }

    async fn begin_term(&self, cluster: Option<Cluster>) -> Result<(), Failure> {
        for _ in 0..CONFLICTS_MAX {
            let State { history, revision, .. } = self.newest(&mut None).await?;
            if let (Some(given), Some(found)) = (cluster, history.cluster())
                && given != found
            {
                return Err(Failure::Cluster { given, found });
            }
            let new = cluster.unwrap_or_else(history::draw_cluster);
            let ops = history.begin(self.instance, new, revision);
            let begun = self.store.txn(vec![Compare::StoreRevision(revision)], ops).await?;
            if let Commit::Committed(revision) = begun {
                let cluster = history.cluster().unwrap_or(new);
                tracing::info!(%cluster, instance = self.instance, revision, "begins a term");
                return Ok(());
            }
        }
        Err(Failure::Conflicts)
    }

    /// Drawn for this term.
    pub(crate) const fn instance(&self) -> u64 {
        self.instance
    }

    /// Looks at the state.
    pub(crate) async fn read<T>(&self, look: impl FnOnce(&State) -> T) -> Result<T, Failure> {
        if let Some(state) = self.cache.read().await.as_ref().filter(|s| self.is_newest(s)) {
            return Ok(look(state));
        }
        let mut cache = self.cache.write().await;
        let state = self.newest(&mut cache).await?;
        Ok(look(cache.insert(state)))
    }

    pub(crate) async fn create(&self, spec: Spec) -> Result<Written, Failure> {
        self.write(Box::new(move |ledger| Ok(whole(ledger.create(spec.clone())?)))).await
    }

    pub(crate) async fn update(&self, spec: Spec) -> Result<Written, Failure> {
        self.write(Box::new(move |ledger| Ok(whole(ledger.update(spec.clone())?)))).await
    }

    pub(crate) async fn delete(&self, key: Key) -> Result<Written, Failure> {
        self.write(Box::new(move |ledger| Ok((None, ledger.delete(&key)?)))).await
    }

    /// All of a batch, or nothing.
    pub(crate) async fn apply(&self, batch: Batch) -> Result<Written<Vec<Applied>>, Failure> {
        self.write(Box::new(move |ledger| Ok(ledger.apply(&batch)?))).await
    }

    /// What [`Self::apply`] would do.
    pub(crate) async fn rehearse(&self, batch: &Batch) -> Result<Written<Vec<Applied>>, Failure> {
        let rehearsed = self.read(|state| {
            let (object, _changes) = state.ledger.clone().apply(batch)?;
            Ok(Written { object, revision: state.revision })
        });
        rehearsed.await?
    }

    /// In a task of its own, so that a client that goes away can't stop it half way.
    pub(crate) async fn write<T>(&self, apply: Box<Apply<T>>) -> Result<Written<T>, Failure>
    where
        T: Send + 'static,
    {
        let master = self.clone();
        tokio::spawn(async move { master.write_here(&apply).await }).await?
    }

    async fn write_here<T>(&self, apply: &Apply<T>) -> Result<Written<T>, Failure> {
        let mut cache = self.cache.write().await;
        for _ in 0..CONFLICTS_MAX {
            // Taken out while it is ahead of the store: an early end leaves nothing to trust.
            let mut state = self.newest(&mut cache).await?;
            let before = state.ledger.counters();
            let (object, changes) = match apply(&mut state.ledger) {
                Ok(applied) => applied,
                Err(refused) => {
                    *cache = Some(state);
                    return Err(refused);
                }
            };
            let counters = Some(state.ledger.counters()).filter(|now| *now != before);
            if !changes.is_empty() || counters.is_some() {
                let ops = layout::operations(&changes, counters);
                let unchanged = vec![Compare::StoreRevision(state.revision)];
                match self.transactions.timed(self.store.txn(unchanged, ops)).await? {
                    Commit::Committed(revision) => state.revision = revision,
                    Commit::Conflict => continue,
                }
                layout::note_left(&mut state.left_at, &changes, state.revision);
            }
            let revision = state.revision;
            *cache = Some(state);
            return Ok(Written { object, revision });
        }
        Err(Failure::Conflicts)
    }

    /// The cached state, or what the store has when somebody else has written since: also a refusal
    /// has to be about the state as it is.
    async fn newest(&self, cache: &mut Option<State>) -> Result<State, Failure> {
        if let Some(state) = cache.take().filter(|state| self.is_newest(state)) {
            return Ok(state);
        }
        let listing = self.store.list(b"").await?;
        let Content { ledger, history, left_at } = layout::read(&listing)?;
        Ok(State { ledger, history, revision: listing.revision, left_at })
    }

    fn is_newest(&self, state: &State) -> bool {
        *self.store.revisions().borrow() == state.revision
    }

    /// Every object as stored, and the revision.
    pub(crate) async fn snapshot(&self) -> Result<control_store::Listing, StoreError> {
        self.store.list(layout::OBJECTS).await
    }

    /// Every later write of objects.
    pub(crate) fn watch(&self, from_revision: u64) -> Watch<AnyStore> {
        self.store.watch(layout::OBJECTS, from_revision)
    }
}

fn whole(outcome: Outcome) -> (Option<Object>, Vec<Change>) {
    (Some(outcome.object), outcome.changes)
}
