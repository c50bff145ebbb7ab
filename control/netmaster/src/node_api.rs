//! The service `control.v1.Node`: nodes register, follow intent and say what they have in force.
//!
//! A node is told of what is its concern ([`Scope`]). Each stream reads the store's own log. One that is too slow for its length is not queued for: it
//! gets a new snapshot. Only the last event of a write carries the write's revision, so that a node
//! that acknowledges it has the whole write.

use std::collections::BTreeSet;
use std::convert::Infallible;

use control_api::v1::node_server::Node as NodeService;
use control_api::v1::watch_event::Kind as Event;
use control_api::{convert, v1};
use control_model::{
    Change, EndpointId, Key, Ledger, Node, NodeName, Reason, Refused, Spec, TenantName,
};
use control_store::{AnyStore, Op, Watch, WatchEvent};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::history::{Cluster, Known};
use crate::layout::{self, Unreadable};
use crate::master::{Failure, Master, State};
use crate::scope::Scope;
use crate::sessions::{Session, Sessions};
use crate::status::status;

/// This version of the protocol, and the oldest node that is served.
const API_VERSION: u32 = 1;
/// Events on their way to one node beyond what its connection holds.
const EVENTS_MAX: usize = 64;
/// Revisions that pass a node by before it is told that they have: far fewer than the log keeps.
const MARK_EVERY: u64 = control_store::LOG_REVISIONS / 10;

/// The service.
#[derive(Debug)]
pub(crate) struct NodeApi {
    pub(crate) master: Master,
    pub(crate) sessions: Sessions,
    /// Becomes true when the process is to end: streams never end by themselves.
    pub(crate) stopping: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl NodeService for NodeApi {
    type WatchStream = ReceiverStream<Result<v1::WatchEvent, Status>>;

    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterReply>, Status> {
        let request = request.into_inner();
        if request.api_version < API_VERSION {
            let reason = Reason::NotOneOf { list: "1 and above" };
            return Err(status(&Refused::new("apiVersion", &request.api_version, reason)));
        }
        let known = Known {
            cluster: request.cluster,
            instance: request.known_instance,
            revision: request.known_revision,
        };
        let node = registration(request)?;
        self.check_namesake(&node).await?;
        tracing::info!(node = %node.name, vtep = ?node.vtep, version = %node.version, "registers");
        self.sessions.saw(&node.name);
        let name = node.name.clone();
        self.master.create(Spec::Node(node)).await?;
        let reply = self.master.read(|state| v1::RegisterReply {
            api_version: API_VERSION,
            features: 0,
            revision: state.revision,
            instance: self.master.instance(),
            cluster: state.history.cluster().map(Cluster::number).unwrap_or_default(),
            resumes: state.history.has(known, state.revision),
        });
        let reply = reply.await?;
        if reply.resumes {
            self.sessions.is_in_step(&name);
        }
        Ok(Response::new(reply))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let v1::WatchRequest { node_name, from_revision, scoped, holding } = request.into_inner();
        let node = self.known(&node_name).await?;
        let (events, stream) = mpsc::channel(EVENTS_MAX);
        let (concern, start) = match holding {
            _ if !scoped => (Concern::All, from_revision),
            Some(holding) if from_revision > 0 => {
                let names = holding.tenant_names.iter();
                let names = names.map(|name| TenantName::parse("tenantNames", name));
                let held: Result<_, _> = names.collect();
                (Concern::Held(held.map_err(Failure::Refused)?), from_revision)
            }
            // Only what is known to be there can be added to.
            Some(_) | None => (Concern::Unknown, 0),
        };
        let follower = Follower {
            master: self.master.clone(),
            session: self.sessions.open(node, start),
            stopping: self.stopping.clone(),
            events,
            sent: start,
            catching_up_to: 0,
            concern,
        };
        tokio::spawn(follower.run(start));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn ack(
        &self,
        request: Request<v1::AckRequest>,
    ) -> Result<Response<v1::AckReply>, Status> {
        let ack = request.into_inner();
        let node = self.known(&ack.node_name).await?;
        if !ack.error.is_empty() {
            tracing::warn!(%node, revision = ack.revision, error = ack.error, "node reports an error");
        }
        self.sessions.acknowledge(node, &ack);
        Ok(Response::new(v1::AckReply {}))
    }

    async fn inventory(
        &self,
        request: Request<v1::InventoryRequest>,
    ) -> Result<Response<v1::InventoryReply>, Status> {
        let v1::InventoryRequest { node_name, endpoint_ids } = request.into_inner();
        let node = self.known(&node_name).await?;
        let listed: BTreeSet<String> = endpoint_ids.into_iter().collect();
        let missing = self.master.read(|state| {
            let homed = state.ledger.intent().endpoints().filter(|e| e.host.node == node);
            let missing = homed.filter(|endpoint| !listed.contains(endpoint.id.as_str()));
            missing.map(|endpoint| endpoint.id.clone()).collect()
        });
        let leaked = self.sessions.missing(&node, missing.await?);
        if leaked.is_empty() {
            return Ok(Response::new(v1::InventoryReply { deleted: Vec::new() }));
        }
        let deleted: Vec<String> = leaked.iter().map(ToString::to_string).collect();
        tracing::info!(%node, ?deleted, "deleting endpoints that their node does not have");
        // One at a time: however many there are, each is a write that every store takes.
        for id in leaked {
            let node = node.clone();
            let delete = move |ledger: &mut Ledger| Ok(((), delete_leaked(ledger, &node, &id)?));
            self.master.write(Box::new(delete)).await?;
        }
        Ok(Response::new(v1::InventoryReply { deleted }))
    }
}

/// One that has gone, or to another node, meanwhile stays as it is.
fn delete_leaked(
    ledger: &mut Ledger,
    node: &NodeName,
    id: &EndpointId,
) -> Result<Vec<Change>, Refused> {
    if ledger.intent().endpoint(id).is_some_and(|endpoint| endpoint.host.node == *node) {
        return ledger.delete(&Key::Endpoint(id.clone()));
    }
    Ok(Vec::new())
}

fn registration(request: v1::RegisterRequest) -> Result<Node, Status> {
    let v1::RegisterRequest { node_name, vtep_ip, version, .. } = request;
    let info = v1::NodeInfo { node_name, vtep_ip, version, ..v1::NodeInfo::default() };
    let object = v1::Object { kind: Some(v1::object::Kind::Node(info)) };
    match convert::to_spec(&object).map_err(Failure::Refused)? {
        Spec::Node(node) => Ok(node),
        Spec::Tenant(_)
        | Spec::Network(_)
        | Spec::EndpointGroup(_)
        | Spec::Policy(_)
        | Spec::Rule(_)
        | Spec::Global(_)
        | Spec::Endpoint(_)
        | Spec::AddressLease(_)
        | Spec::NetProfile(_)
        | Spec::Service(_)
        | Spec::AppProfile(_)
        | Spec::Bgp(_) => Err(Status::internal("a node was read as something else")),
    }
}

impl NodeApi {
    /// Two machines under one name would each delete the other's endpoints as their own leftovers.
    async fn check_namesake(&self, node: &Node) -> Result<(), Status> {
        if !self.sessions.standing(&node.name).connected {
            return Ok(());
        }
        let known = self.master.read(|state| state.ledger.intent().node(&node.name).cloned());
        match known.await? {
            Some(Node { vtep: Some(vtep), .. }) if node.vtep != Some(vtep) => {
                let reason = Reason::NodeNameTaken { vtep: vtep.to_string() };
                Err(status(&Refused::new("nodeName", &node.name, reason)))
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn known(&self, name: &str) -> Result<NodeName, Status> {
        let name = NodeName::parse("nodeName", name).map_err(Failure::Refused)?;
        if self.master.read(|state| state.ledger.intent().node(&name).is_some()).await? {
            return Ok(name);
        }
        Err(status(&Refused::new("nodeName", &name, Reason::NodeNotFound)))
    }
}

/// One node's stream.
struct Follower {
    master: Master,
    session: Session,
    stopping: watch::Receiver<bool>,
    events: mpsc::Sender<Result<v1::WatchEvent, Status>>,
    /// The last revision of which anything was sent.
    sent: u64,
    /// What comes before is one write to the node, so that nothing is in force of the time between.
    catching_up_to: u64,
    concern: Concern,
}

/// What a node is told of.
enum Concern {
    /// Everything: a node of an earlier version.
    All,
    /// What it needs, which its snapshot will tell.
    Unknown,
    /// What it needs, of which it has these tenants.
    Held(BTreeSet<TenantName>),
    /// What it needs.
    Scope(Scope),
}

/// What a stream has to do next.
enum Next {
    /// Send what was written.
    Events(WatchEvent),
    /// Ask for counters, under this id.
    Question(u64),
}

/// Why a stream ends.
enum End {
    /// The node has gone, or has opened another stream.
    Gone,
    /// With this status.
    Status(Box<Status>),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Status(Box::new(failure.into()))
    }
}

impl Follower {
    async fn run(mut self, from_revision: u64) {
        let Err(end) = self.follow(from_revision).await;
        match end {
            End::Gone => {}
            // A full queue belongs to a node that does not read: closing says it as well.
            End::Status(status) => drop(self.events.try_send(Err(*status))),
        }
    }

    async fn follow(&mut self, from_revision: u64) -> Result<Infallible, End> {
        let mut position = from_revision;
        if position == 0 || !self.resume(from_revision).await? {
            position = self.snapshot().await?;
        }
        loop {
            position = self.deltas(position).await?;
        }
    }

    /// Begins where the node has left off; false if the store's log no longer says what the node has
    /// missed.
    async fn resume(&mut self, from_revision: u64) -> Result<bool, End> {
        let Concern::Held(held) = &self.concern else { return Ok(true) };
        let node = self.session.node().clone();
        let read = self.master.read(|state| {
            let (scope, events) = Scope::resumed(node, held, from_revision, state);
            (scope, events, state.revision)
        });
        let (mut scope, events, newest) = read.await?;
        if !self.find_departed(&mut scope, from_revision, newest).await? {
            return Ok(false);
        }
        self.concern = Concern::Scope(scope);
        self.catching_up_to = newest;
        if !events.is_empty() {
            // The node has not got the end of it before it acknowledges something later.
            self.sent = from_revision + 1;
            self.session.advance(from_revision, self.sent);
        }
        for event in events {
            let (revision, more, kind) = (from_revision, true, Some(event));
            self.send_event(v1::WatchEvent { revision, more, kind }).await?;
        }
        self.mark(from_revision).await?;
        Ok(true)
    }

    /// Lets `scope` know of the endpoints that went away between two revisions; false if the log does
    /// not say.
    async fn find_departed(&self, scope: &mut Scope, from: u64, to: u64) -> Result<bool, End> {
        let mut watch = self.master.watch(from);
        let mut position = from;
        while position < to {
            let event = watch.next().await.map_err(Failure::Store)?;
            let WatchEvent::Batches { batches, up_to } = event else { return Ok(false) };
            if !note_departed(scope, &batches).map_err(Failure::Unreadable)? {
                return Ok(false);
            }
            position = up_to;
        }
        Ok(from <= to)
    }

    /// Tells the node where the stream is, when that ends the write that brings it up to date, or
    /// when little was its concern: it comes back to there, however long the log is.
    async fn mark(&mut self, position: u64) -> Result<(), End> {
        let is_behind = position < self.catching_up_to;
        let is_near = position.saturating_sub(self.sent) < MARK_EVERY;
        if is_behind || (self.catching_up_to == 0 && is_near) {
            return Ok(());
        }
        self.catching_up_to = 0;
        self.send_event(v1::WatchEvent { revision: position, more: false, kind: None }).await?;
        self.sent = position;
        self.session.advance(position, self.sent);
        Ok(())
    }

    /// Sends what happens after `position`, until a new snapshot was necessary; its revision.
    async fn deltas(&mut self, mut position: u64) -> Result<u64, End> {
        let mut watch = self.master.watch(position);
        loop {
            match self.next(&mut watch).await? {
                Next::Question(id) => {
                    self.send(position, Event::StatsRequest(v1::StatsRequest { id })).await?;
                }
                Next::Events(WatchEvent::Compacted) => return self.snapshot().await,
                Next::Events(WatchEvent::Batches { batches, up_to }) => {
                    position = self.writes(batches, position).await?.max(up_to);
                    self.session.advance(position, self.sent);
                    self.mark(position).await?;
                }
            }
        }
    }

    async fn next(&mut self, watch: &mut Watch<AnyStore>) -> Result<Next, End> {
        let stopping = &mut self.stopping;
        tokio::select! {
            event = watch.next() => Ok(Next::Events(event.map_err(Failure::Store)?)),
            id = self.session.question() => id.map(Next::Question).ok_or(End::Gone),
            () = self.events.closed() => Err(End::Gone),
            () = async { drop(stopping.wait_for(|stopping| *stopping).await) } => {
                Err(End::Status(Box::new(Status::unavailable("netmaster stops"))))
            }
        }
    }

    /// Sends writes; the session learns of each, so that what a broken stream has sent is known.
    async fn writes(&mut self, batches: Vec<(u64, Vec<Op>)>, before: u64) -> Result<u64, End> {
        let mut position = before;
        for (revision, ops) in batches {
            let events = self.concerned(&ops, revision).await?;
            self.write(events, position, revision).await?;
            position = revision;
            self.session.advance(position, self.sent);
        }
        Ok(position)
    }

    async fn write(&mut self, events: Vec<Event>, before: u64, revision: u64) -> Result<(), End> {
        for (left, event) in (0..events.len()).rev().zip(events) {
            let (more, kind) = (left > 0 || self.catching_up_to > 0, Some(event));
            let shown = if more { before } else { revision };
            self.send_event(v1::WatchEvent { revision: shown, more, kind }).await?;
            self.sent = revision;
        }
        Ok(())
    }

    /// What of the write of `revision` is the node's concern.
    async fn concerned(&mut self, ops: &[Op], revision: u64) -> Result<Vec<Event>, End> {
        let told = ops.iter().filter(|op| layout::is_for_nodes(op)).map(layout::event);
        let told: Vec<Event> = told.collect::<Result<_, _>>().map_err(Failure::Unreadable)?;
        let Concern::Scope(scope) = &mut self.concern else { return Ok(told) };
        let steps = |state: &State| {
            told.into_iter().flat_map(|event| scope.step(event, revision, state)).collect()
        };
        Ok(self.master.read(steps).await?)
    }

    async fn snapshot(&mut self) -> Result<u64, End> {
        let (puts, revision) = match self.concern {
            Concern::All => self.everything().await?,
            Concern::Unknown | Concern::Held(_) | Concern::Scope(_) => self.needed().await?,
        };
        self.catching_up_to = 0;
        self.send(0, Event::SnapshotBegin(v1::SnapshotBegin {})).await?;
        for put in puts {
            // Before the end of the snapshot nothing is complete.
            self.send(0, put).await?;
        }
        self.send(revision, Event::SnapshotEnd(v1::SnapshotEnd {})).await?;
        self.sent = revision;
        self.session.advance(revision, self.sent);
        Ok(revision)
    }

    async fn everything(&self) -> Result<(Vec<Event>, u64), End> {
        let listing = self.master.snapshot().await.map_err(Failure::Store)?;
        let puts = listing.items.into_iter().map(|(key, value)| Op::Put(key, value.bytes));
        let told = puts.filter(layout::is_for_nodes).map(|put| layout::event(&put));
        Ok((told.collect::<Result<_, _>>().map_err(Failure::Unreadable)?, listing.revision))
    }

    async fn needed(&mut self) -> Result<(Vec<Event>, u64), End> {
        let node = self.session.node().clone();
        let read = self.master.read(|state| {
            let scope = Scope::of(node, state);
            let objects = scope.objects(state.ledger.intent());
            (scope, objects.into_iter().map(Event::Put).collect(), state.revision)
        });
        let (scope, puts, revision) = read.await?;
        self.concern = Concern::Scope(scope);
        Ok((puts, revision))
    }

    async fn send(&self, revision: u64, kind: Event) -> Result<(), End> {
        self.send_event(v1::WatchEvent { revision, more: false, kind: Some(kind) }).await
    }

    async fn send_event(&self, event: v1::WatchEvent) -> Result<(), End> {
        self.events.send(Ok(event)).await.map_err(|_closed| End::Gone)
    }
}

/// As [`Follower::find_departed`], for some writes.
fn note_departed(scope: &mut Scope, batches: &[(u64, Vec<Op>)]) -> Result<bool, Unreadable> {
    for (revision, ops) in batches {
        let Some(departures) = layout::departures(ops)? else { return Ok(false) };
        for (id, tenant) in departures {
            scope.departed(id, tenant, *revision);
        }
    }
    Ok(true)
}
