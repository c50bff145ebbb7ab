//! The service `control.v1.Node`: nodes register, follow intent and say what they have in force.
//!
//! Each stream reads the store's own log. One that is too slow for its length is not queued for: it
//! gets a new snapshot. Only the last event of a write carries the write's revision, so that a node
//! that acknowledges it has the whole write.

use std::convert::Infallible;

use control_api::v1::node_server::Node as NodeService;
use control_api::v1::watch_event::Kind as Event;
use control_api::{convert, v1};
use control_model::{Node, NodeName, Reason, Refused, Spec};
use control_store::{AnyStore, Op, Watch, WatchEvent};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::history::{Cluster, Known};
use crate::layout;
use crate::master::{Failure, Master};
use crate::sessions::{Session, Sessions};
use crate::status::status;

/// This version of the protocol, and the oldest node that is served.
const API_VERSION: u32 = 1;
/// Events on their way to one node beyond what its connection holds.
const EVENTS_MAX: usize = 64;

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
        self.master.create(Spec::Node(node)).await?;
        let reply = self.master.read(|state| v1::RegisterReply {
            api_version: API_VERSION,
            features: 0,
            revision: state.revision,
            instance: self.master.instance(),
            cluster: state.history.cluster().map(Cluster::number).unwrap_or_default(),
            resumes: state.history.has(known, state.revision),
        });
        Ok(Response::new(reply.await?))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let v1::WatchRequest { node_name, from_revision } = request.into_inner();
        let node = self.known(&node_name).await?;
        let (events, stream) = mpsc::channel(EVENTS_MAX);
        let follower = Follower {
            master: self.master.clone(),
            session: self.sessions.open(node, from_revision),
            stopping: self.stopping.clone(),
            events,
            sent: from_revision,
        };
        tokio::spawn(follower.run(from_revision));
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
        if position == 0 {
            position = self.snapshot().await?;
        }
        loop {
            position = self.deltas(position).await?;
        }
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
                    self.writes(batches, position).await?;
                    position = up_to;
                    self.session.advance(position, self.sent);
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

    async fn writes(&mut self, batches: Vec<(u64, Vec<Op>)>, before: u64) -> Result<(), End> {
        let mut position = before;
        for (revision, ops) in batches {
            self.write(&ops, position, revision).await?;
            position = revision;
        }
        Ok(())
    }

    async fn write(&mut self, ops: &[Op], before: u64, revision: u64) -> Result<(), End> {
        let concern: Vec<&Op> = ops.iter().filter(|op| layout::is_for_nodes(op)).collect();
        for (left, op) in (0..concern.len()).rev().zip(concern) {
            let event = layout::event(op).map_err(Failure::Unreadable)?;
            let (more, kind) = (left > 0, Some(event));
            let shown = if more { before } else { revision };
            self.send_event(v1::WatchEvent { revision: shown, more, kind }).await?;
            self.sent = revision;
        }
        Ok(())
    }

    async fn snapshot(&mut self) -> Result<u64, End> {
        let listing = self.master.snapshot().await.map_err(Failure::Store)?;
        self.send(0, Event::SnapshotBegin(v1::SnapshotBegin {})).await?;
        for (key, value) in listing.items {
            let put = Op::Put(key, value.bytes);
            if !layout::is_for_nodes(&put) {
                continue;
            }
            let event = layout::event(&put).map_err(Failure::Unreadable)?;
            // Before the end of the snapshot nothing is complete.
            self.send(0, event).await?;
        }
        self.send(listing.revision, Event::SnapshotEnd(v1::SnapshotEnd {})).await?;
        self.sent = listing.revision;
        self.session.advance(listing.revision, self.sent);
        Ok(listing.revision)
    }

    async fn send(&self, revision: u64, kind: Event) -> Result<(), End> {
        self.send_event(v1::WatchEvent { revision, more: false, kind: Some(kind) }).await
    }

    async fn send_event(&self, event: v1::WatchEvent) -> Result<(), End> {
        self.events.send(Ok(event)).await.map_err(|_closed| End::Gone)
    }
}
