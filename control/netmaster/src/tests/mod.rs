//! The server over real gRPC on loopback. Here: a server to talk to, and the objects it is sent.

mod addresses;
mod apply;
mod gate;
mod history;
mod hostile;
mod lists;
mod nodes;
mod objects;
mod scopes;
mod vectors;

use std::net::SocketAddr;

use control_api::v1;
use control_api::v1::net_master_client::NetMasterClient;
use control_api::v1::node_client::NodeClient;
use control_api::v1::object::Kind as Wire;
use control_store::{AnyStore, MemoryStore, StoreUrl};
use prost::Message as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::config::Listen;
use crate::gate::Role;
use crate::metrics::Transactions;
use crate::reign;
use crate::server::{self, Bound};

/// A running server; it stops when [`Server::stop`] is called or the test ends.
struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    serving: JoinHandle<Result<(), server::Error>>,
}

impl Server {
    async fn start(store: AnyStore) -> Self {
        let (stop, stopping) = watch::channel(false);
        let leads =
            reign::lead(store, None, &reign::Basics::default(), stopping.clone()).await.unwrap();
        Self::serve(watch::Sender::new(leads), stop, stopping).await
    }

    async fn serve(
        role: watch::Sender<Role>,
        stop: watch::Sender<bool>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let bound = Bound::bind(&Listen::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
        let address = bound.tcp_address().unwrap();
        let role = role.subscribe();
        let serving = tokio::spawn(async move {
            server::serve(role, &Transactions::default(), vec![bound], stopping).await
        });
        Self { address, stop, serving }
    }

    async fn memory() -> (Self, Client) {
        let server = Self::start(AnyStore::Memory(MemoryStore::default())).await;
        let client = server.client().await;
        (server, client)
    }

    async fn client(&self) -> Client {
        // A small window: a stream that is not read is soon felt.
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))
            .unwrap()
            .initial_stream_window_size(65_535);
        let channel = endpoint.connect().await.unwrap();
        Client {
            master: NetMasterClient::new(channel.clone()),
            node: NodeClient::new(channel.clone()),
            channel,
        }
    }

    /// Ends as SIGTERM does, open streams and all.
    async fn stop(self) {
        self.stop.send_replace(true);
        self.serving.await.unwrap().unwrap();
    }
}

/// Both services over one connection.
#[derive(Clone)]
struct Client {
    master: NetMasterClient<Channel>,
    node: NodeClient<Channel>,
    channel: Channel,
}

impl Client {
    async fn create(&mut self, kind: Wire) -> Result<v1::WriteReply, Status> {
        let object = Some(v1::Object { kind: Some(kind) });
        let request = v1::CreateRequest { object, no_wait: false };
        self.master.create(request).await.map(tonic::Response::into_inner)
    }

    async fn update(&mut self, kind: Wire) -> Result<v1::WriteReply, Status> {
        let object = Some(v1::Object { kind: Some(kind) });
        let request = v1::UpdateRequest { object, no_wait: false };
        self.master.update(request).await.map(tonic::Response::into_inner)
    }

    async fn delete(&mut self, kind: v1::Kind, key: &str) -> Result<v1::WriteReply, Status> {
        let request = v1::DeleteRequest { kind: kind.into(), key: key.into(), no_wait: false };
        self.master.delete(request).await.map(tonic::Response::into_inner)
    }

    async fn get(&mut self, kind: v1::Kind, key: &str) -> Result<(Wire, v1::Oper), Status> {
        let request = v1::GetRequest { kind: kind.into(), key: key.into() };
        let reply = self.master.get(request).await?.into_inner();
        Ok((reply.object.unwrap().kind.unwrap(), reply.oper.unwrap()))
    }

    async fn list(&mut self, kind: v1::Kind, tenant: &str) -> Vec<Wire> {
        let request =
            v1::ListRequest { kind: kind.into(), tenant: tenant.into(), ..Default::default() };
        let reply = self.master.list(request).await.unwrap().into_inner();
        reply.objects.into_iter().map(|object| object.kind.unwrap()).collect()
    }

    /// Everything stored, by kind.
    async fn everything(&mut self) -> Vec<Wire> {
        let mut all = Vec::new();
        for kind in 1..=13 {
            all.extend(self.list(v1::Kind::try_from(kind).unwrap(), "").await);
        }
        all
    }

    async fn apply(
        &mut self,
        objects: Vec<Wire>,
        deletes: &[(v1::Kind, &str)],
    ) -> Result<v1::ApplyReply, Status> {
        let request = apply_request(objects, deletes);
        self.master.apply(request).await.map(tonic::Response::into_inner)
    }

    async fn rehearse(&mut self, objects: Vec<Wire>) -> Result<v1::ApplyReply, Status> {
        let request = v1::ApplyRequest { dry_run: true, ..apply_request(objects, &[]) };
        self.master.apply(request).await.map(tonic::Response::into_inner)
    }

    async fn register(&mut self, name: &str, vtep: &str) -> u64 {
        self.try_register(name, vtep).await.unwrap().revision
    }

    async fn try_register(&mut self, name: &str, vtep: &str) -> Result<v1::RegisterReply, Status> {
        let request = v1::RegisterRequest {
            api_version: 1,
            node_name: name.into(),
            vtep_ip: vtep.into(),
            version: "test".into(),
            ..Default::default()
        };
        self.node.register(request).await.map(tonic::Response::into_inner)
    }
}

fn apply_request(objects: Vec<Wire>, deletes: &[(v1::Kind, &str)]) -> v1::ApplyRequest {
    let objects = objects.into_iter().map(|kind| v1::Object { kind: Some(kind) }).collect();
    let deletes = deletes
        .iter()
        .map(|(kind, key)| v1::ObjectKey { kind: (*kind).into(), key: (*key).to_owned() });
    v1::ApplyRequest { objects, deletes: deletes.collect(), ..Default::default() }
}

/// Status code, field at fault and reason of a refusal.
fn refusal<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String, String) {
    let (code, detail) = refusal_detail(result);
    (code, detail.field, detail.reason)
}

/// As [`refusal`], with the value at fault.
fn refusal_detail<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, v1::ErrorDetail) {
    let status = result.unwrap_err();
    let detail = v1::ErrorDetail::decode(status.details()).unwrap();
    assert_eq!(detail.reason, status.message());
    assert!(!detail.next_step.is_empty());
    (status.code(), detail)
}

fn tenant(name: &str) -> Wire {
    Wire::Tenant(v1::Tenant { tenant_name: name.into(), ..Default::default() })
}

fn network(tenant: &str, name: &str, subnet: &str) -> v1::Network {
    v1::Network {
        tenant_name: tenant.into(),
        network_name: name.into(),
        encap: "vxlan".into(),
        subnet: subnet.into(),
        ..Default::default()
    }
}

fn group(tenant: &str, name: &str, network: &str, policies: &[&str]) -> v1::EndpointGroup {
    v1::EndpointGroup {
        tenant_name: tenant.into(),
        group_name: name.into(),
        network_name: network.into(),
        policies: policies.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

fn policy(tenant: &str, name: &str) -> Wire {
    Wire::Policy(v1::Policy { tenant_name: tenant.into(), policy_name: name.into() })
}

fn rule(tenant: &str, policy: &str, id: &str) -> v1::Rule {
    v1::Rule {
        tenant_name: tenant.into(),
        policy_name: policy.into(),
        rule_id: id.into(),
        direction: "in".into(),
        action: "deny".into(),
        ..Default::default()
    }
}

fn endpoint(id: &str, tenant: &str, network: &str, node: &str) -> v1::Endpoint {
    v1::Endpoint {
        endpoint_id: id.into(),
        tenant_name: tenant.into(),
        network_name: network.into(),
        homing_host: node.into(),
        ..Default::default()
    }
}

fn profile(tenant: &str, name: &str, bandwidth: &str) -> v1::NetProfile {
    v1::NetProfile {
        tenant_name: tenant.into(),
        profile_name: name.into(),
        bandwidth: bandwidth.into(),
        ..Default::default()
    }
}

fn service(tenant: &str, name: &str, network: &str) -> v1::ServiceLb {
    v1::ServiceLb {
        tenant_name: tenant.into(),
        service_name: name.into(),
        network_name: network.into(),
        selectors: vec!["key1=value1".into(), "key2=value2".into()],
        ports: vec!["80:8080:TCP".into()],
        ..Default::default()
    }
}

fn app_profile(tenant: &str, name: &str, groups: &[&str]) -> v1::AppProfile {
    v1::AppProfile {
        tenant_name: tenant.into(),
        app_profile_name: name.into(),
        endpoint_groups: groups.iter().map(ToString::to_string).collect(),
    }
}

fn bgp(host: &str) -> v1::Bgp {
    v1::Bgp {
        hostname: host.into(),
        routerip: "65.1.1.1/24".into(),
        as_number: "65001".into(),
        neighbor_as: "65002".into(),
        neighbor: "16.1.2.3".into(),
    }
}

/// Tenant red with network net, policy first with rule 1, group web with it, and node n1.
async fn populate(client: &mut Client) {
    client.register("n1", "192.168.0.1").await;
    client.create(tenant("red")).await.unwrap();
    let net = v1::Network { gateway: "10.1.1.254".into(), ..network("red", "net", "10.1.1.0/24") };
    client.create(Wire::Network(net)).await.unwrap();
    client.create(policy("red", "first")).await.unwrap();
    client.create(Wire::NetProfile(profile("red", "gold", "6 Mbps"))).await.unwrap();
    let web =
        v1::EndpointGroup { net_profile: "gold".into(), ..group("red", "web", "net", &["first"]) };
    client.create(Wire::EndpointGroup(web)).await.unwrap();
    client.create(Wire::Rule(rule("red", "first", "1"))).await.unwrap();
}

fn redb(dir: &tempfile::TempDir) -> AnyStore {
    StoreUrl::Redb(dir.path().join("netmaster.redb")).open().unwrap()
}
