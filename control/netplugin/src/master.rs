//! The session with netmaster: this node registers, watches intent and acknowledges what it has
//! applied. CNI calls use the same connection.
//!
//! When netmaster is away nothing else changes: the last known intent stays in force, and the
//! next of the configured addresses is tried with a growing, jittered pause.

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use control_api::v1::net_master_client::NetMasterClient;
use control_api::v1::node_client::NodeClient;
use control_api::v1::{
    AckRequest, ApplyRequest, CreateRequest, DeleteRequest, Endpoint as EndpointObject,
    ErrorDetail, Holding, InventoryRequest, Kind, Object, ObjectKey, RegisterReply,
    RegisterRequest, RuleCounter, WatchEvent, WatchRequest, WriteReply, object,
};
use control_model::Intent;
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tracing::{info, warn};

use crate::claim::{Claims, Lineage};
use crate::config::{Config, Netmaster};
use crate::mirror::{Garbled, Heard, Mirror, Stamp};
use crate::program::{Applied, Programmer};
use crate::roster::Roster;

/// Version of control.v1 spoken here.
const API_VERSION: u32 = 1;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A netmaster that restarts is back within this, and one that was killed replaced by another;
/// beyond it the runtime learns what is wrong.
const SESSION_PATIENCE: Duration = Duration::from_secs(15);
/// Before what found no netmaster that leads is asked again.
const RETRY: Duration = Duration::from_millis(200);
/// A silent netmaster is given up after twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// A new leader is found this soon at most.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why netmaster did not do something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MasterError {
    #[error("netmaster does not answer: {0}")]
    Unreachable(String),
    #[error("{}", .0.text())]
    Refused(Box<Refusal>),
}

/// A refusal in netmaster's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) detail: ErrorDetail,
}

impl Refusal {
    fn text(&self) -> String {
        let ErrorDetail { field, value, .. } = &self.detail;
        if field.is_empty() {
            self.message.clone()
        } else {
            format!("{} ({field} {value:?})", self.message)
        }
    }
}

impl From<Status> for MasterError {
    fn from(status: Status) -> Self {
        let gone =
            matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded);
        if gone || std::error::Error::source(&status).is_some() {
            return Self::Unreachable(status.message().to_owned());
        }
        // A refusal without details has its message all the same.
        let detail = ErrorDetail::decode(status.details()).unwrap_or_default();
        let (code, message) = (status.code(), status.message().to_owned());
        Self::Refused(Box::new(Refusal { code, message, detail }))
    }
}

/// An endpoint as netmaster made it.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) endpoint: EndpointObject,
    /// At which it exists; more than this node hears of when it existed already.
    pub(crate) revision: u64,
    /// Nodes that had not acknowledged it.
    pub(crate) late_nodes: Vec<String>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("connecting: {0}")]
    Connect(String),
    #[error("{}", .0.message())]
    Call(Box<Status>),
    #[error("the stream ended")]
    Stream,
    #[error(transparent)]
    Garbled(Box<Garbled>),
    #[error(
        "it is of cluster {theirs:016x}, and this node's containers are of {ours:016x}; if its store replaces a \
         lost one, start netmaster on it with --cluster {ours:016x}; else detach them first"
    )]
    Foreign { ours: u64, theirs: u64 },
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

/// Calls to netmaster, by whatever connection there is.
#[derive(Debug)]
pub(crate) struct Master {
    channel: watch::Sender<Option<Channel>>,
}

impl Master {
    pub(crate) fn new() -> Self {
        Self { channel: watch::Sender::new(None) }
    }

    /// Whether a session stands.
    pub(crate) fn is_connected(&self) -> bool {
        self.channel.borrow().is_some()
    }

    /// Waits a little for a session.
    pub(crate) async fn connected(&self, deadline: Instant) -> Result<(), MasterError> {
        self.client(deadline.min(Instant::now() + SESSION_PATIENCE)).await.map(drop)
    }

    /// Creates an endpoint. Returns what netmaster stored. Asks again for as long as a new leader may
    /// take: to create what is there is fine.
    pub(crate) async fn create_endpoint(
        &self,
        endpoint: EndpointObject,
        deadline: Instant,
    ) -> Result<Made, MasterError> {
        let patience = deadline.min(Instant::now() + SESSION_PATIENCE);
        loop {
            let client = self.client(patience).await?;
            match create(client, endpoint.clone(), deadline).await {
                Err(MasterError::Unreachable(_)) if Instant::now() + RETRY < patience => {
                    tokio::time::sleep(RETRY).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Deletes an endpoint; one that is not there is fine. Does not wait for a netmaster that is
    /// away.
    pub(crate) async fn delete_endpoint(&self, id: &str) -> Result<(), MasterError> {
        let mut client = self.client(Instant::now()).await?;
        let kind = Kind::Endpoint.into();
        let delete = DeleteRequest { kind, key: id.to_owned(), no_wait: true };
        match client.delete(bounded(delete)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(status.into()),
        }
    }

    /// Deletes endpoints, all or none: one that is not there is a refusal.
    pub(crate) async fn delete_endpoints(&self, ids: &[String]) -> Result<(), MasterError> {
        let mut client = self.client(Instant::now()).await?;
        let key = |id: &String| ObjectKey { kind: Kind::Endpoint.into(), key: id.clone() };
        let deletes = ids.iter().map(key).collect();
        let apply = ApplyRequest { deletes, no_wait: true, ..Default::default() };
        client.apply(bounded(apply)).await?;
        Ok(())
    }

    /// Tells which endpoints this node has; those that netmaster has deleted since it was told twice
    /// that they are not among them.
    pub(crate) async fn report(
        &self,
        node_name: String,
        endpoint_ids: Vec<String>,
    ) -> Result<Vec<String>, MasterError> {
        let mut node = NodeClient::new(self.channel(Instant::now()).await?);
        let inventory = InventoryRequest { node_name, endpoint_ids };
        Ok(node.inventory(bounded(inventory)).await?.into_inner().deleted)
    }

    async fn client(&self, deadline: Instant) -> Result<NetMasterClient<Channel>, MasterError> {
        self.channel(deadline).await.map(NetMasterClient::new)
    }

    async fn channel(&self, deadline: Instant) -> Result<Channel, MasterError> {
        let mut channel = self.channel.subscribe();
        let connected = timeout_at(deadline, channel.wait_for(Option::is_some)).await;
        let found = connected.ok().and_then(Result::ok).and_then(|channel| channel.clone());
        let away = || MasterError::Unreachable("there is no session".to_owned());
        found.ok_or_else(away)
    }
}

async fn create(
    mut client: NetMasterClient<Channel>,
    endpoint: EndpointObject,
    deadline: Instant,
) -> Result<Made, MasterError> {
    let object = Object { kind: Some(object::Kind::Endpoint(endpoint)) };
    let create = CreateRequest { object: Some(object), no_wait: false };
    let request = telemetry::call(create, deadline.saturating_duration_since(Instant::now()));
    let WriteReply { object, revision, late_nodes } = client.create(request).await?.into_inner();
    let Some(object::Kind::Endpoint(endpoint)) = object.and_then(|object| object.kind) else {
        return Err(MasterError::Unreachable("its answer has no endpoint".to_owned()));
    };
    Ok(Made { endpoint, revision, late_nodes })
}

/// Keeps a session, for ever.
#[expect(clippy::infinite_loop, reason = "a task for the life of the process")]
pub(crate) async fn follow(
    config: &Config,
    mirror: &Mirror,
    programmer: &Programmer,
    master: &Master,
    roster: &Roster,
) -> Infallible {
    let mut pause = PAUSE_MIN;
    let mut reported = String::new();
    let mut resume = Resume::Deltas;
    let source = AtomicU64::new(0);
    let mut masters = config.netmasters.iter().cycle();
    loop {
        let Some(netmaster) = masters.next() else { std::future::pending().await };
        let session =
            Session { config, mirror, programmer, master, roster, resume, source: &source };
        let started = Instant::now();
        let ended = session.run(netmaster).await;
        master.channel.send_replace(None);
        mirror.abandon();
        resume = match ended {
            // The copy lacks what could not be read.
            Ended::Garbled(_) => Resume::Snapshot,
            Ended::Connect(_) | Ended::Call(_) | Ended::Stream | Ended::Foreign { .. } => {
                Resume::Deltas
            }
        };
        let reason = ended.to_string();
        if reason != reported {
            warn!(
                netmaster = netmaster.url,
                reason, "no session with netmaster; intent stays as it is"
            );
            reported = reason;
        }
        if started.elapsed() > PAUSE_MAX {
            pause = PAUSE_MIN;
        }
        tokio::time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Between half of `pause` and the whole, so that a thousand nodes do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    let part = u32::try_from(random % 1024).unwrap_or_default();
    pause / 2 + pause * part / 2048
}

/// What to ask netmaster for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resume {
    /// What changed since the revision known here.
    Deltas,
    /// Everything.
    Snapshot,
}

struct Session<'a> {
    config: &'a Config,
    mirror: &'a Mirror,
    programmer: &'a Programmer,
    master: &'a Master,
    roster: &'a Roster,
    resume: Resume,
    /// Instance that the known intent was last heard from.
    source: &'a AtomicU64,
}

impl Session<'_> {
    async fn run(&self, netmaster: &Netmaster) -> Ended {
        match self.try_run(netmaster).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn try_run(&self, netmaster: &Netmaster) -> Result<Infallible, Ended> {
        let endpoint = netmaster
            .endpoint
            .clone()
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel = match timeout(CONNECT_TIMEOUT, endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(Ended::Connect(root_cause(&error))),
            Err(_elapsed) => return Err(Ended::Connect("no answer".to_owned())),
        };
        let mut node = NodeClient::new(channel.clone());
        let ours = self.mirror.stamp();
        let reply = node.register(bounded(self.registration(ours))).await?.into_inner();
        self.check_cluster(reply.cluster)?;
        let from_revision = if reply.resumes { ours.revision } else { 0 };
        let least_epoch = if reply.resumes { ours.epoch } else { ours.epoch + 1 };
        let node_name = self.config.node.to_string();
        let tenants = |intent: &Intent| intent.tenants().map(|t| t.name.to_string()).collect();
        let holding = Holding { tenant_names: self.mirror.read(tenants) };
        let request =
            WatchRequest { node_name, from_revision, scoped: true, holding: Some(holding) };
        let stream = node.watch(request).await?.into_inner();
        info!(
            netmaster = netmaster.url,
            from_revision,
            revision = reply.revision,
            "session with netmaster"
        );
        // A netmaster of before there were clusters can't tell.
        let is_other = ours.epoch > 0 && !reply.resumes && reply.cluster != 0;
        let lineage =
            if is_other && self.resume == Resume::Deltas { Lineage::Other } else { Lineage::Same };
        let claims = Claims::new(self.config, self.roster, self.mirror, channel.clone(), lineage);
        tokio::select! {
            ended = self.hear(stream, &node, claims, least_epoch) => ended,
            ended = self.acknowledge(node.clone(), least_epoch) => ended,
            never = self.open(channel, least_epoch, &reply) => match never {},
        }
    }

    /// Containers are not handed from one cluster to another. A netmaster of before there were
    /// clusters says 0.
    fn check_cluster(&self, theirs: u64) -> Result<(), Ended> {
        match self.roster.cluster() {
            Some(ours) if theirs != 0 && theirs != ours && !self.roster.rows().is_empty() => {
                Err(Ended::Foreign { ours, theirs })
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn hear(
        &self,
        mut stream: Streaming<WatchEvent>,
        node: &NodeClient<Channel>,
        mut claims: Claims<'_>,
        least_epoch: u64,
    ) -> Result<Infallible, Ended> {
        loop {
            let event = tokio::select! {
                event = stream.message() => Some(event?.ok_or(Ended::Stream)?),
                () = sleep_until(claims.next()), if self.mirror.is_complete() => None,
            };
            if let Some(event) = event
                && let Heard::Stats(id) =
                    self.mirror.hear(event).map_err(|e| Ended::Garbled(Box::new(e)))?
            {
                self.answer_stats(node.clone(), id, least_epoch);
            }
            if let Some(error) = claims.settle().await {
                let node_name = self.config.node.to_string();
                let ack = AckRequest { node_name, error, ..AckRequest::default() };
                node.clone().ack(bounded(ack)).await?;
            }
        }
    }

    fn registration(&self, ours: Stamp) -> RegisterRequest {
        let knows = ours.epoch > 0 && self.resume == Resume::Deltas;
        RegisterRequest {
            api_version: API_VERSION,
            cluster: self.roster.cluster().unwrap_or_default(),
            known_instance: self.source.load(Ordering::Relaxed),
            known_revision: if knows { ours.revision } else { 0 },
            features: 0,
            node_name: self.config.node.to_string(),
            vtep_ip: self.config.vtep.map(|ip| ip.to_string()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Lets CNI calls use the session, once intent is this netmaster's.
    async fn open(&self, channel: Channel, least_epoch: u64, reply: &RegisterReply) -> Infallible {
        let mut known = self.mirror.watch();
        if known.wait_for(|known| known.epoch >= least_epoch).await.is_ok() {
            self.source.store(reply.instance, Ordering::Relaxed);
            if let Err(error) = self.roster.set_cluster(reply.cluster).await {
                warn!(%error, "whose intent this is may be forgotten at a restart");
            }
            self.master.channel.send_replace(Some(channel));
        }
        std::future::pending().await
    }

    /// Acknowledges every revision the engine holds, or the latest of several. Revisions of another
    /// netmaster's history mean nothing to this one.
    async fn acknowledge(
        &self,
        mut node: NodeClient<Channel>,
        least_epoch: u64,
    ) -> Result<Infallible, Ended> {
        let mut applied = self.programmer.watch();
        let mut told = None;
        loop {
            let now = {
                let Applied { stamp, refused, .. } = &*applied.borrow_and_update();
                (*stamp, refused.clone().unwrap_or_default())
            };
            if now.0.epoch >= least_epoch && told.as_ref() != Some(&now) {
                let ack = AckRequest {
                    node_name: self.config.node.to_string(),
                    revision: now.0.revision,
                    error: now.1.clone(),
                    ..Default::default()
                };
                node.ack(bounded(ack)).await?;
                told = Some(now);
            }
            if applied.changed().await.is_err() {
                // The programmer lives as long as the process.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Answers beside the stream: the engine may take its time, intent must not wait for it.
    fn answer_stats(&self, mut node: NodeClient<Channel>, stats_id: u64, least_epoch: u64) {
        let node_name = self.config.node.to_string();
        let Applied { stamp, engine, .. } = self.programmer.watch().borrow().clone();
        tokio::spawn(async move {
            let counted = match engine {
                Some(engine) => engine.rule_counters().await.map_err(|e| e.to_string()),
                None => Err("vrouterd is away".to_owned()),
            };
            let (counters, error) = match counted {
                Ok(rules) => (rules.into_iter().map(counter).collect(), String::new()),
                Err(error) => (Vec::new(), error),
            };
            let revision = if stamp.epoch < least_epoch { 0 } else { stamp.revision };
            let ack = AckRequest { node_name, revision, stats_id, counters, error };
            if let Err(status) = node.ack(bounded(ack)).await {
                warn!(%status, "netmaster did not take the counters");
            }
        });
    }
}

const fn counter(rule: datapath_api::v1::RuleCounter) -> RuleCounter {
    RuleCounter { cookie: rule.cookie, packets: rule.packets, bytes: rule.bytes }
}

fn bounded<T>(message: T) -> Request<T> {
    telemetry::call(message, CALL_TIMEOUT)
}

/// The last error of the chain: the transport's own text is only "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_is_jittered_within_its_upper_half() {
        for _ in 0..100 {
            let pause = jittered(Duration::from_secs(1));
            assert!(
                (Duration::from_millis(500)..=Duration::from_secs(1)).contains(&pause),
                "{pause:?}"
            );
        }
    }

    #[test]
    fn a_refusal_keeps_field_and_value() {
        let detail = ErrorDetail {
            field: "tenantName".into(),
            value: "red".into(),
            reason: "x".into(),
            next_step: "y".into(),
            ..ErrorDetail::default()
        };
        let status =
            Status::with_details(Code::NotFound, "Tenant not found", detail.encode_to_vec().into());
        let error = MasterError::from(status);
        assert_eq!(error.to_string(), "Tenant not found (tenantName \"red\")");
        assert!(matches!(error, MasterError::Refused(r) if r.detail == detail));
    }

    #[test]
    fn a_netmaster_that_went_away_is_not_a_refusal() {
        let error = MasterError::from(Status::unavailable("gone"));
        assert!(matches!(error, MasterError::Unreachable(_)));
    }
}
