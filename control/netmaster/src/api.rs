//! The service `control.v1.NetMaster`: what netctl, scripts and nodes ask for.

use std::sync::Arc;

use control_api::v1::net_master_server::NetMaster;
use control_api::{convert, v1};
use control_model::{
    EndpointId, GroupName, Key, Kind, LeaseKey, LeaseSpec, NetworkKey, NetworkName, NodeName,
    Object, Owner, Reason, Refused, Spec, TenantName, Ttl, WantedAddress,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use crate::addresses;
use crate::explain;
use crate::master::{Failure, Master, Written};
use crate::oper;
use crate::reclaim::Reclaim;
use crate::selection::Selection;
use crate::sessions::Sessions;
use crate::status::{status, unable};
use crate::viewer::{EVENTS_MAX, Viewer};

/// The service.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) master: Master,
    pub(crate) sessions: Sessions,
    pub(crate) reclaim: Reclaim,
    /// Becomes true when the process is to end: streams never end by themselves.
    pub(crate) stopping: watch::Receiver<bool>,
    /// Streams of lists that may be open.
    pub(crate) viewers: Arc<Semaphore>,
}

/// Most streams of lists at a time: each holds a place in the store's log.
pub(crate) const VIEWERS_MAX: usize = 256;

/// Whether the caller waits for the nodes.
#[derive(Debug, Clone, Copy)]
enum Wait {
    ForNodes,
    No,
}

impl From<bool> for Wait {
    fn from(no_wait: bool) -> Self {
        if no_wait { Self::No } else { Self::ForNodes }
    }
}

#[tonic::async_trait]
impl NetMaster for Api {
    type WatchStream = ReceiverStream<Result<v1::WatchEvent, Status>>;

    async fn create(
        &self,
        request: Request<v1::CreateRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let v1::CreateRequest { object, no_wait } = request.into_inner();
        let spec = user_spec(object)?;
        if spec.chooses_address() {
            self.sessions.wait_for_nodes_in_step().await;
        }
        let written = self.reclaim.patiently(|| self.master.create(spec.clone())).await?;
        self.reply(written, no_wait.into()).await
    }

    async fn update(
        &self,
        request: Request<v1::UpdateRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let v1::UpdateRequest { object, no_wait } = request.into_inner();
        let written = self.master.update(user_spec(object)?).await?;
        self.reply(written, no_wait.into()).await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let v1::DeleteRequest { kind, key, no_wait } = request.into_inner();
        let key = convert::to_key(kind, &key).map_err(refused)?;
        let node = self.check_node(&key)?;
        let written = self.reclaim.patiently(|| self.master.delete(key.clone())).await?;
        if let Some(node) = node {
            self.sessions.forget(&node);
        }
        let reply = self.reply(written, no_wait.into()).await?;
        // Whoever waited for the nodes may use the address again at once.
        if !no_wait
            && reply.get_ref().late_nodes.is_empty()
            && let Err(error) = self.reclaim.sweep().await
        {
            // What was asked for is done; the addresses are swept again with the clock.
            tracing::warn!(error = &error as &dyn std::error::Error, "not reclaimed yet");
        }
        Ok(reply)
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetReply>, Status> {
        let v1::GetRequest { kind, key } = request.into_inner();
        let key = convert::to_key(kind, &key).map_err(refused)?;
        let found = self.master.read(|state| {
            let intent = state.ledger.intent();
            intent.object(&key).map(|object| v1::GetReply {
                object: Some(oper::shown(&object, state, &self.sessions)),
                oper: Some(oper::oper(&object, &state.ledger)),
                revision: state.revision,
            })
        });
        let reply = found.await?.ok_or_else(|| status(&not_found(&key)))?;
        Ok(Response::new(reply))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListReply>, Status> {
        let v1::ListRequest { kind, tenant, parent, stats } = request.into_inner();
        let wanted = Selection::parse(kind, &tenant, parent).map_err(refused)?;
        let kind = wanted.kind;
        let mut reply = self.master.read(|state| wanted.list(state, &self.sessions)).await?;
        if stats && kind == Kind::Rule {
            let (mut counters, late) = self.sessions.rule_counters().await;
            reply.counters = rule_cookies(&reply)
                .map(|cookie| {
                    let none = v1::RuleCounter { cookie, packets: 0, bytes: 0 };
                    counters.remove(&cookie).unwrap_or(none)
                })
                .collect();
            reply.late_nodes = late;
        }
        Ok(Response::new(reply))
    }

    async fn allocate_address(
        &self,
        request: Request<v1::AllocateAddressRequest>,
    ) -> Result<Response<v1::AllocateAddressReply>, Status> {
        let spec = lease_spec(&request.into_inner()).map_err(refused)?;
        let network = spec.network.clone();
        let spec = Spec::AddressLease(spec);
        if spec.chooses_address() {
            self.sessions.wait_for_nodes_in_step().await;
        }
        let create = || self.master.create(spec.clone());
        let written = self.reclaim.patiently(create).await?;
        let Some(Object::AddressLease(lease)) = written.object else {
            return Err(Status::internal("a lease was written and is none"));
        };
        let reply = self.master.read(|state| {
            let (length, gateway) =
                state.ledger.intent().network(&network)?.surroundings(lease.address)?;
            Some(v1::AllocateAddressReply {
                address: lease.address.to_string(),
                prefix_length: length.into(),
                gateway: gateway.map(|ip| ip.to_string()).unwrap_or_default(),
            })
        });
        let gone = || status(&not_found(&Key::Network(network.clone())));
        Ok(Response::new(reply.await?.ok_or_else(gone)?))
    }

    async fn release_address(
        &self,
        request: Request<v1::ReleaseAddressRequest>,
    ) -> Result<Response<v1::ReleaseAddressReply>, Status> {
        let (key, owner) = lease_key(&request.into_inner()).map_err(refused)?;
        if let Some(orphan) = self.orphan(&key, owner.as_ref()).await? {
            self.master.delete(Key::Endpoint(orphan)).await?;
            return Ok(Response::new(v1::ReleaseAddressReply {}));
        }
        let release = Box::new(move |ledger: &mut control_model::Ledger| {
            Ok(((), ledger.release(&key, owner.as_ref())?))
        });
        self.master.write(release).await?;
        Ok(Response::new(v1::ReleaseAddressReply {}))
    }

    async fn apply(
        &self,
        request: Request<v1::ApplyRequest>,
    ) -> Result<Response<v1::ApplyReply>, Status> {
        let v1::ApplyRequest { objects, deletes, dry_run, no_wait } = request.into_inner();
        let batch = convert::to_batch(&objects, &deletes).map_err(Failure::from)?;
        let nodes: Vec<Option<NodeName>> =
            batch.deletes.iter().map(|key| self.check_node(key)).collect::<Result<_, _>>()?;
        let (written, wait) = if dry_run {
            (self.master.rehearse(&batch).await?, Wait::No)
        } else {
            if batch.puts.iter().any(Spec::chooses_address) {
                self.sessions.wait_for_nodes_in_step().await;
            }
            let apply = || self.master.apply(batch.clone());
            let written = self.reclaim.patiently(apply).await?;
            nodes.iter().flatten().for_each(|node| self.sessions.forget(node));
            (written, no_wait.into())
        };
        Ok(Response::new(v1::ApplyReply {
            results: written.object.iter().map(convert::from_applied).collect(),
            revision: written.revision,
            late_nodes: self.late_nodes(written.revision, wait).await,
        }))
    }

    async fn list_addresses(
        &self,
        request: Request<v1::ListAddressesRequest>,
    ) -> Result<Response<v1::ListAddressesReply>, Status> {
        let selection = addresses::Selection::parse(&request.into_inner()).map_err(refused)?;
        let listed = self.master.read(|state| selection.list(state, &self.reclaim));
        Ok(Response::new(v1::ListAddressesReply { addresses: listed.await? }))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainReply>, Status> {
        let question = explain::question(&request.into_inner()).map_err(refused)?;
        let answer = self.master.read(|state| {
            control_model::explain(state.ledger.intent(), &question)
                .map(|explained| explain::reply(&explained, state.revision))
        });
        Ok(Response::new(answer.await?.map_err(refused)?))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchListRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let v1::WatchListRequest { kind, tenant, parent } = request.into_inner();
        let selection = Selection::parse(kind, &tenant, parent).map_err(refused)?;
        let place = Arc::clone(&self.viewers).try_acquire_owned().map_err(|_full| full())?;
        let (events, stream) = mpsc::channel(EVENTS_MAX);
        let viewer = Viewer {
            master: self.master.clone(),
            sessions: self.sessions.clone(),
            stopping: self.stopping.clone(),
            selection,
            events,
            place,
        };
        tokio::spawn(viewer.run());
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Api {
    /// Answers a write once it is in force on the nodes, or they are late.
    async fn reply(
        &self,
        written: Written,
        wait: Wait,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let Written { object, revision } = written;
        let late_nodes = self.late_nodes(revision, wait).await;
        let shown = self
            .master
            .read(|state| object.map(|object| oper::shown(&object, state, &self.sessions)));
        Ok(Response::new(v1::WriteReply { object: shown.await?, revision, late_nodes }))
    }

    /// The nodes that do not have a write in force after a while.
    async fn late_nodes(&self, revision: u64, wait: Wait) -> Vec<String> {
        let late_nodes = match wait {
            Wait::ForNodes => self.sessions.wait_for(revision).await,
            Wait::No => Vec::new(),
        };
        if !late_nodes.is_empty() {
            tracing::warn!(revision, late = late_nodes.join(","), "nodes have not acknowledged");
        }
        late_nodes
    }

    /// The endpoint that has an address, when that is whose release is asked for and its node is dead.
    async fn orphan(
        &self,
        key: &LeaseKey,
        owner: Option<&Owner>,
    ) -> Result<Option<EndpointId>, Status> {
        let found = self.master.read(|state| {
            let endpoint = state.ledger.endpoint_at(key)?;
            let is_dead = self.sessions.standing(&endpoint.host.node).dead;
            let is_its = owner.is_some_and(|owner| owner.as_str() == endpoint.id.as_str());
            (is_dead && is_its).then(|| endpoint.id.clone())
        });
        Ok(found.await?)
    }

    /// A node that is there would only be half deleted.
    fn check_node(&self, key: &Key) -> Result<Option<NodeName>, Status> {
        let Key::Node(name) = key else { return Ok(None) };
        if self.sessions.standing(name).connected {
            return Err(status(&Refused::new("key", name, Reason::NodeConnected)));
        }
        Ok(Some(name.clone()))
    }
}

fn rule_cookies(reply: &v1::ListReply) -> impl Iterator<Item = u64> {
    reply.objects.iter().filter_map(|object| match &object.kind {
        Some(v1::object::Kind::Rule(rule)) => Some(rule.cookie),
        Some(_) | None => None,
    })
}

fn user_spec(object: Option<v1::Object>) -> Result<Spec, Status> {
    let spec = convert::to_spec(&object.unwrap_or_default()).map_err(refused)?;
    if let Spec::Node(node) = &spec {
        let maker = "netplugin, which registers its node";
        return Err(status(&Refused::new("object", &node.name, Reason::NotByUsers { maker })));
    }
    Ok(spec)
}

fn lease_spec(request: &v1::AllocateAddressRequest) -> Result<LeaseSpec, Refused> {
    let owner = Owner::parse_optional("owner", &request.owner)?;
    Ok(LeaseSpec {
        network: network_key(&request.tenant_name, &request.network_name)?,
        group: GroupName::parse_optional("endpointGroup", &request.endpoint_group)?,
        wanted: WantedAddress::parse("preferredAddress", &request.preferred_address)?
            .of_family("family", request.family)?,
        ttl: Ttl::parse("ttlSeconds", request.ttl_seconds, owner.as_ref())?,
        owner,
    })
}

fn lease_key(request: &v1::ReleaseAddressRequest) -> Result<(LeaseKey, Option<Owner>), Refused> {
    let network = network_key(&request.tenant_name, &request.network_name)?;
    let bad = || Refused::new("address", &request.address, Reason::BadIpAddress);
    let address = request.address.parse().map_err(|_not_an_address| bad())?;
    let key = LeaseKey { network, address };
    Ok((key, Owner::parse_optional("owner", &request.owner)?))
}

pub(crate) fn network_key(tenant: &str, network: &str) -> Result<NetworkKey, Refused> {
    let tenant = TenantName::parse("tenantName", tenant)?;
    Ok(NetworkKey::new(tenant, NetworkName::parse("networkName", network)?))
}

fn full() -> Status {
    let reason = format!("{VIEWERS_MAX} lists are being watched already");
    unable(Code::ResourceExhausted, reason, "end another watch, or list again from time to time")
}

fn refused(refused: Refused) -> Status {
    Failure::Refused(refused).into()
}

fn not_found(key: &Key) -> Refused {
    let reason = match key.kind() {
        Kind::Tenant => Reason::TenantNotFound,
        Kind::Network => Reason::NetworkNotFound,
        Kind::EndpointGroup => Reason::GroupNotFound,
        Kind::Policy => Reason::PolicyNotFound,
        Kind::Rule => Reason::RuleNotFound,
        Kind::Endpoint => Reason::EndpointNotFound,
        Kind::Node => Reason::NodeNotFound,
        Kind::AddressLease => Reason::LeaseNotFound,
        Kind::NetProfile => Reason::NetprofileNotFound,
        Kind::Service => Reason::ServiceNotFound,
        Kind::AppProfile => Reason::AppProfileNotFound,
        Kind::Bgp => Reason::BgpNotFound,
        Kind::Global => Reason::GlobalName,
    };
    Refused::new("key", key, reason)
}
