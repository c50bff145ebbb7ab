//! What netplugin tells of itself, and where: see the crate `telemetry`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use telemetry::{Observed, Readiness, Requests, sample, sample_each};
use tokio::net::TcpListener;
use tracing::{error, info};

use crate::node::Node;

/// How soon an address that can't be served is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Methods that runtimes call to look, not to do something.
const QUIET: &[&str] = &["Check", "Status", "ServerReflectionInfo"];

/// A part of an ADD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Step {
    /// Waiting for other operations.
    Turn,
    /// netmaster makes the endpoint and the other nodes learn of it.
    Endpoint,
    /// The endpoint comes back in the stream of intent.
    Plan,
    /// The veth pair.
    Links,
    /// vrouterd takes port and tables.
    Engine,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStep {
    step: Step,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOperation {
    operation: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRound {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRepair {
    what: &'static str,
}

type Latencies<L> = Family<L, Histogram, fn() -> Histogram>;

/// What is counted as it happens. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Measures {
    pub(crate) requests: Requests,
    steps: Latencies<OfStep>,
    operations: Latencies<OfOperation>,
    rounds: Family<OfRound, Counter>,
    repairs: Family<OfRepair, Counter>,
}

impl Default for Measures {
    fn default() -> Self {
        let latencies = telemetry::latencies as fn() -> Histogram;
        Self {
            requests: Requests::new(QUIET),
            steps: Family::new_with_constructor(latencies),
            operations: Family::new_with_constructor(latencies),
            rounds: Family::default(),
            repairs: Family::default(),
        }
    }
}

impl Measures {
    /// Does a step of an ADD and notes how long it took, also when it failed.
    pub(crate) async fn step<T>(&self, step: Step, work: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let done = work.await;
        let latency = telemetry::seconds(started.elapsed());
        self.steps.get_or_create(&OfStep { step }).observe(latency);
        done
    }

    /// Does a CNI operation and notes how long it took and how it ended.
    pub(crate) async fn operation<T, E>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let started = Instant::now();
        let done = work.await;
        let label = OfOperation { operation, result: result(&done) };
        self.operations.get_or_create(&label).observe(telemetry::seconds(started.elapsed()));
        done
    }

    /// A round of reconciling has looked at the node, or could not.
    pub(crate) fn round<T, E>(&self, observed: &Result<T, E>) {
        self.rounds.get_or_create(&OfRound { result: result(observed) }).inc();
    }

    /// Reconciling has found something left over and removes it.
    pub(crate) fn repaired(&self, what: &'static str) {
        self.repairs.get_or_create(&OfRepair { what }).inc();
    }

    fn register(&self, registry: &mut Registry) {
        self.requests.register(registry);
        let help = "Time a step of an ADD took";
        registry.register("attach_step_duration_seconds", help, self.steps.clone());
        let help = "Time a CNI operation took";
        registry.register("cni_operation_duration_seconds", help, self.operations.clone());
        let help = "Rounds of reconciling";
        registry.register("reconcile_rounds", help, self.rounds.clone());
        let help = "Leftovers that reconciling removed, by what they were";
        registry.register("reconcile_repairs", help, self.repairs.clone());
    }
}

const fn result<T, E>(done: &Result<T, E>) -> &'static str {
    if done.is_ok() { "ok" } else { "failed" }
}

/// What the pages look at.
pub(crate) struct Observer {
    pub(crate) node: Arc<Node>,
}

impl Observed for Observer {
    async fn readiness(&self) -> Readiness {
        let applied = self.node.programmer.watch().borrow().clone();
        let not = |reason: &str| Readiness::NotReady(reason.to_owned());
        if applied.engine.is_none() {
            return not("vrouterd is away");
        }
        if applied.stamp.epoch == 0 {
            return not("vrouterd has no tables: netmaster has not been heard since the start");
        }
        if let Some(reason) = &applied.refused {
            return Readiness::NotReady(format!("vrouterd refuses the tables: {reason}"));
        }
        if !self.node.master.is_connected() {
            return not("no session with netmaster: nothing new can attach");
        }
        Readiness::Ready
    }

    async fn sample(&self, into: &mut Registry) {
        let node = &*self.node;
        let applied = node.programmer.watch().borrow().clone();
        let known = node.mirror.stamp();
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        sample_each(into, "build_info", "1, with the version as label", [(version, 1)]);
        for (name, help, value) in [
            ("netmaster_connected", "1 with a session", node.master.is_connected().into()),
            ("engine_connected", "1 while vrouterd is there", applied.engine.is_some().into()),
            ("watch_snapshots", "Snapshots of intent heard since the start", known.epoch),
            ("watch_revision", "Revision of intent as heard", known.revision),
            ("applied_revision", "Revision of intent in vrouterd's tables", applied.stamp.revision),
            (
                "tables_refused",
                "1 while vrouterd refuses the tables",
                applied.refused.is_some().into(),
            ),
            ("ports_failed", "Ports vrouterd does not take", applied.failed_ports.len() as u64),
            ("attachments", "Attachments of this node", node.roster.rows().len() as u64),
            ("ports_free", "Port ids that are free", node.roster.available_port_count() as u64),
        ] {
            sample(into, name, help, value);
        }
        // Revisions of two histories cannot be subtracted.
        if applied.stamp.epoch == known.epoch {
            let lag = known.revision.saturating_sub(applied.stamp.revision);
            let help = "Revisions vrouterd's tables are behind the intent heard";
            sample(into, "watch_lag_revisions", help, lag);
        }
    }
}

/// Serves the pages for ever. An address that is taken keeps no container from being attached: it is
/// told, and tried again.
#[expect(clippy::infinite_loop, reason = "a task for the life of the process")]
pub(crate) async fn serve(node: Arc<Node>) -> Infallible {
    let address = node.config.metrics;
    let mut reported = String::new();
    loop {
        let ended = match TcpListener::bind(address).await {
            Ok(listener) => {
                info!(%address, "serving metrics");
                serve_once(&node, listener).await
            }
            Err(error) => error.to_string(),
        };
        if ended != reported {
            let next = "free the address or choose another with --metrics";
            error!(%address, error = ended, next, "metrics are not served");
            reported = ended;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn serve_once(node: &Arc<Node>, listener: TcpListener) -> String {
    let mut counted = telemetry::registry();
    node.measures.register(&mut counted);
    let pages = telemetry::pages(Observer { node: Arc::clone(node) }, counted);
    match telemetry::serve(listener, pages, std::future::pending()).await {
        Ok(()) => "the server ended".to_owned(),
        Err(error) => error.to_string(),
    }
}
