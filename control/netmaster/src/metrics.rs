//! What netmaster tells of itself: see the crate `telemetry`.

use std::time::Instant;

use control_model::{Key, Kind, Ledger, NetworkKey, Object};
use control_store::{Commit, StoreError};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use telemetry::{Labels, Observed, Readiness, sample, sample_each};
use tokio::sync::watch;

use crate::gate::Role;
use crate::master::Master;
use crate::sessions::{Sessions, Standing};

/// Most networks with series of their own; the first by tenant and name have them.
const NETWORKS_MAX: usize = 1000;
/// Most nodes with series of their own.
const NODES_MAX: usize = 2000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Latencies of the store's transactions. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Transactions {
    latencies: Family<Outcome, Histogram, fn() -> Histogram>,
}

impl Default for Transactions {
    fn default() -> Self {
        let latencies = telemetry::latencies as fn() -> Histogram;
        Self { latencies: Family::new_with_constructor(latencies) }
    }
}

impl Transactions {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Time a transaction of the store took, to when it was durable";
        registry.register("store_transaction_duration_seconds", help, self.latencies.clone());
    }

    /// Does a transaction and notes how long it took.
    pub(crate) async fn timed(
        &self,
        transaction: impl Future<Output = Result<Commit, StoreError>>,
    ) -> Result<Commit, StoreError> {
        let started = Instant::now();
        let done = transaction.await;
        let outcome = match &done {
            Ok(Commit::Committed(_)) => "committed",
            Ok(Commit::Conflict) => "conflict",
            Err(_) => "failed",
        };
        let latency = telemetry::seconds(started.elapsed());
        self.latencies.get_or_create(&Outcome { outcome }).observe(latency);
        done
    }
}

/// What the pages look at: state where this process leads, else little.
#[derive(Clone)]
pub(crate) struct Standpoint {
    pub(crate) role: watch::Receiver<Role>,
}

impl Standpoint {
    fn role(&self) -> Role {
        self.role.borrow().clone()
    }
}

impl Observed for Standpoint {
    async fn readiness(&self) -> Readiness {
        match self.role() {
            Role::Leads { observer, .. } => observer.readiness().await,
            Role::Follows(Some(leader)) if leader.is_current() => Readiness::Ready,
            Role::Follows(Some(_)) => {
                Readiness::NotReady("etcd does not answer, and who leads may be old".to_owned())
            }
            Role::Follows(None) => {
                Readiness::NotReady("no netmaster leads as far as is known".to_owned())
            }
        }
    }

    async fn sample(&self, into: &mut Registry) {
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        sample_each(into, "build_info", "1, with the version as label", [(version, 1)]);
        let role = self.role();
        let leads = u64::from(matches!(role, Role::Leads { .. }));
        sample(into, "leader", "1 if this netmaster leads; only it tells of the store", leads);
        if let Role::Leads { observer, .. } = role {
            observer.sample(into).await;
        }
    }
}

/// What a netmaster that leads tells.
#[derive(Debug, Clone)]
pub(crate) struct Observer {
    pub(crate) master: Master,
    pub(crate) sessions: Sessions,
}

impl Observer {
    async fn readiness(&self) -> Readiness {
        match self.master.read(|_| ()).await {
            Ok(()) => Readiness::Ready,
            Err(failure) => Readiness::NotReady(format!("the store cannot be read: {failure}")),
        }
    }

    async fn sample(&self, into: &mut Registry) {
        let read = self.master.read(|state| {
            sample(into, "store_revision", "Revision of the store as last read", state.revision);
            objects(into, &state.ledger);
            tags(into, &state.ledger);
            addresses(into, &state.ledger);
            self.nodes(into, &state.ledger, state.written());
        });
        let is_readable = u64::from(read.await.is_ok());
        sample(into, "store_readable", "1 if the store answers", is_readable);
    }

    /// Nodes that are behind are told by the lag, nodes that are away by `connected`.
    fn nodes(&self, into: &mut Registry, ledger: &Ledger, revision: u64) {
        let nodes = ledger.intent().objects(Kind::Node);
        let keys = nodes.iter().map(Object::key).take(NODES_MAX);
        let standings: Vec<(Labels, Standing)> = keys
            .filter_map(|key| {
                let Key::Node(name) = key else { return None };
                Some((vec![("node", name.to_string())], self.sessions.standing(&name)))
            })
            .collect();
        let values = |of: fn(&Standing) -> u64| {
            standings.iter().map(move |(labels, standing)| (labels.clone(), of(standing)))
        };
        let connected = values(|standing| standing.connected.into());
        sample_each(into, "node_connected", "1 if the node's stream is open", connected);
        let acked = values(|standing| standing.in_force);
        sample_each(into, "node_acked_revision", "What the node has in force", acked);
        let lag = standings
            .iter()
            .filter(|(_, standing)| standing.connected)
            .map(|(labels, standing)| (labels.clone(), revision.saturating_sub(standing.in_force)));
        let help = "Revisions the store is ahead of what a connected node has in force";
        sample_each(into, "watch_lag_revisions", help, lag);
    }
}

fn objects(into: &mut Registry, ledger: &Ledger) {
    let counts = Kind::ALL.map(|kind| {
        (vec![("kind", kind.name().to_owned())], ledger.intent().objects(kind).len() as u64)
    });
    sample_each(into, "objects", "Objects by kind", counts);
}

fn tags(into: &mut Registry, ledger: &Ledger) {
    let pools = [("vlan", ledger.vlans()), ("vxlan", ledger.vxlans())];
    let label = |kind: &str| vec![("encap", kind.to_owned())];
    let used = pools.map(|(kind, pool)| (label(kind), pool.count() as u64));
    sample_each(into, "tags_used", "VLAN ids and VNIs in use", used);
    let free = pools.map(|(kind, pool)| (label(kind), pool.available_count() as u64));
    sample_each(into, "tags_free", "VLAN ids and VNIs of the range that are free", free);
}

/// Addresses of one family of a network.
struct Pool {
    labels: Labels,
    used: u64,
    free: u64,
}

fn pools_of(key: &NetworkKey, ledger: &Ledger) -> [Option<Pool>; 2] {
    let Some(holdings) = ledger.holdings(key) else { return [None, None] };
    let pool = |family: &str, used: usize, free: u128| Pool {
        labels: vec![
            ("tenant", key.tenant.to_string()),
            ("network", key.network.to_string()),
            ("family", family.to_owned()),
        ],
        used: used as u64,
        // An IPv6 block may have more than a series can say.
        free: u64::try_from(free).unwrap_or(u64::MAX),
    };
    let (used, used6) = holdings.held_counts();
    let v4 = pool("4", used, holdings.network().available_count());
    let v6 = holdings.network6().map(|own| pool("6", used6, own.available_count()));
    [Some(v4), v6]
}

fn addresses(into: &mut Registry, ledger: &Ledger) {
    let networks = ledger.intent().networks().take(NETWORKS_MAX);
    let pools: Vec<Pool> =
        networks.flat_map(|network| pools_of(&network.key, ledger)).flatten().collect();
    let used = pools.iter().map(|pool| (pool.labels.clone(), pool.used));
    let help = "Addresses that endpoints and reservations hold, in all pools of a network";
    sample_each(into, "addresses_used", help, used);
    let free = pools.iter().map(|pool| (pool.labels.clone(), pool.free));
    let help = "Addresses of a network that are free, pools of groups apart";
    sample_each(into, "addresses_free", help, free);
    let omitted = ledger.intent().networks().count().saturating_sub(NETWORKS_MAX) as u64;
    sample(into, "networks_without_series", "Networks above the bound of series", omitted);
}
