//! Addresses over gRPC: reserved, taken up, ended, and given out again only when the nodes know.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::nodes::Follower;
use super::*;

async fn reserve(
    client: &mut Client,
    address: &str,
    owner: &str,
    ttl_seconds: u64,
) -> Result<String, Status> {
    let request = v1::AllocateAddressRequest {
        tenant_name: "red".into(),
        network_name: "net".into(),
        preferred_address: address.into(),
        owner: owner.into(),
        ttl_seconds,
        ..Default::default()
    };
    Ok(client.master.allocate_address(request).await?.into_inner().address)
}

async fn addresses(client: &mut Client) -> Vec<v1::Address> {
    let request = v1::ListAddressesRequest { tenant_name: "red".into(), ..Default::default() };
    client.master.list_addresses(request).await.unwrap().into_inner().addresses
}

/// Address and state of what is not free.
/// Addresses that come and go.
async fn states(client: &mut Client) -> Vec<(String, String)> {
    let all = addresses(client).await.into_iter().map(|a| (a.address, a.state));
    all.filter(|(_, state)| state != "gateway").collect()
}

fn pod(id: &str, name: &str, node: &str, address: &str) -> Wire {
    Wire::Endpoint(v1::Endpoint {
        container_name: name.into(),
        ip_address: Some(address.to_owned()).filter(|a| !a.is_empty()).into_iter().collect(),
        ..endpoint(id, "red", "net", node)
    })
}

async fn no_wait(client: &mut Client, key: &str) {
    let kind = v1::Kind::Endpoint.into();
    let request = v1::DeleteRequest { kind, key: key.into(), no_wait: true };
    client.master.delete(request).await.unwrap();
}

/// The address of what was written.
fn ip(reply: &v1::WriteReply) -> String {
    let Some(Wire::Endpoint(endpoint)) = reply.object.as_ref().and_then(|o| o.kind.as_ref()) else {
        panic!("an endpoint");
    };
    endpoint.ip_address[0].clone()
}

/// A node that acknowledges whatever it gets, until it is told to stop.
pub(super) struct Obedient {
    stop: Arc<Notify>,
    task: JoinHandle<Follower>,
}

impl Obedient {
    pub(super) async fn start(server: &Server, name: &str) -> Self {
        let node = Follower::start(server, name, 0).await;
        Self::go_on(node)
    }

    fn go_on(mut node: Follower) -> Self {
        let stop = Arc::new(Notify::new());
        let stopping = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = stopping.notified() => return node,
                    _ = node.hear() => node.ack(0, vec![]).await,
                }
            }
        });
        Self { stop, task }
    }

    async fn stop(self) -> Follower {
        self.stop.notify_one();
        self.task.await.unwrap()
    }
}

#[tokio::test]
async fn ipam_3_a_reservation_outlives_containers_nodes_and_netmaster() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    populate(&mut client).await;
    client.register("n2", "192.168.0.2").await;
    assert_eq!(reserve(&mut client, "10.1.1.7", "web-1", 0).await.unwrap(), "10.1.1.7");
    for (id, node) in [("c1:eth0", "n1"), ("c2:eth0", "n2")] {
        let web = client.create(pod(id, "web-1", node, "")).await.unwrap();
        assert_eq!(ip(&web), "10.1.1.7", "{id} on {node}");
        no_wait(&mut client, id).await;
    }
    server.stop().await;
    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    let web = client.create(pod("c3:eth0", "web-1", "n1", "")).await.unwrap();
    assert_eq!(ip(&web), "10.1.1.7", "after a restart");
    let [listed, _gateway] = addresses(&mut client).await.try_into().unwrap();
    assert_eq!((listed.owner.as_str(), listed.endpoint_id.as_str()), ("web-1", "c3:eth0"));
    assert_eq!((listed.state.as_str(), listed.homing_host.as_str()), ("used", "n1"));
}

#[tokio::test]
async fn an_address_waits_for_every_living_node_and_is_named_with_those_that_are_behind() {
    let (server, mut client) = Server::memory().await;
    let (quick, slow) =
        (Obedient::start(&server, "n1").await, Obedient::start(&server, "n2").await);
    populate(&mut client).await;
    client.create(pod("c1", "", "n1", "")).await.unwrap();
    let slow = slow.stop().await;
    no_wait(&mut client, "c1").await;
    let refused = refusal(client.create(pod("c2", "", "n1", "10.1.1.1")).await);
    assert_eq!((refused.0, refused.1.as_str()), (Code::FailedPrecondition, "ipAddress"));
    let [listed, _gateway] = addresses(&mut client).await.try_into().unwrap();
    assert_eq!(listed.waiting_for, ["n2"]);
    assert_eq!(ip(&client.create(pod("c3", "", "n1", "")).await.unwrap()), "10.1.1.2");
    // As soon as the last node knows, whoever waits gets it.
    let waiting = tokio::spawn({
        let mut client = server.client().await;
        async move { client.create(pod("c2", "", "n1", "10.1.1.1")).await.unwrap() }
    });
    let slow = Obedient::go_on(slow);
    assert_eq!(ip(&waiting.await.unwrap()), "10.1.1.1");
    drop((quick, slow));
}

/// After a restore no node knows the store's history before it has taken it over, and it does not before
/// its containers are registered: whoever waits for the nodes would wait for himself.
#[tokio::test]
async fn ha_5_a_running_container_gets_its_address_again_although_a_backup_says_it_is_leaving() {
    let (server, mut client) = Server::memory().await;
    let node = Obedient::start(&server, "n1").await;
    populate(&mut client).await;
    client.create(pod("c1", "", "n1", "")).await.unwrap();
    let node = node.stop().await;
    no_wait(&mut client, "c1").await;
    let Wire::Endpoint(asked) = pod("c2", "", "n1", "10.1.1.1") else { panic!("an endpoint") };
    let refused = refusal(client.create(Wire::Endpoint(asked.clone())).await);
    assert_eq!((refused.0, refused.1.as_str()), (Code::FailedPrecondition, "ipAddress"));
    let claimed = Wire::Endpoint(v1::Endpoint { running: true, ..asked });
    assert_eq!(ip(&client.create(claimed).await.unwrap()), "10.1.1.1");
    assert_eq!(states(&mut client).await, [("10.1.1.1".to_owned(), "used".to_owned())]);
    drop(node);
}

#[tokio::test]
async fn what_was_leaving_is_still_so_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    populate(&mut client).await;
    client.create(pod("c1", "", "n1", "")).await.unwrap();
    no_wait(&mut client, "c1").await;
    server.stop().await;
    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    assert_eq!(states(&mut client).await, [("10.1.1.1".to_owned(), "leaving".to_owned())]);
    let node = Obedient::start(&server, "n1").await;
    assert_eq!(ip(&client.create(pod("c2", "", "n1", "10.1.1.1")).await.unwrap()), "10.1.1.1");
    drop(node);
}

#[tokio::test]
async fn ipam_4_a_machine_that_is_gone_is_removed_with_its_endpoints_and_their_addresses_come_back()
{
    let (server, mut client) = Server::memory().await;
    let living = Obedient::start(&server, "n1").await;
    populate(&mut client).await;
    client.register("gone", "192.168.0.9").await;
    client.create(pod("c1", "", "gone", "")).await.unwrap();
    let refused = refusal(client.delete(v1::Kind::Node, "gone").await);
    assert_eq!((refused.0, refused.1.as_str()), (Code::FailedPrecondition, "key"));
    assert_eq!(refused.2, "cannot delete gone has 1 endpoints");
    let there = refusal(client.apply(vec![], &[(v1::Kind::Node, "n1")]).await);
    assert_eq!(there.2, "the node is connected", "not as one of many either");
    let all = [(v1::Kind::Endpoint, "c1"), (v1::Kind::Node, "gone")];
    client.apply(vec![], &all).await.unwrap();
    // Nobody waits for a node that is not there: the living one knows, and the address is free.
    assert_eq!(ip(&client.create(pod("c2", "", "n1", "10.1.1.1")).await.unwrap()), "10.1.1.1");
    drop(living);
}

/// The store is of before c1: another container must not get its address meanwhile.
#[tokio::test]
async fn ha_5_a_restored_store_chooses_no_address_before_its_nodes_have_told_what_they_run() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(redb(&dir)).await;
    populate(&mut server.client().await).await;
    server.stop().await;
    let server = Server::start(redb(&dir)).await;
    let mut other = server.client().await;
    let choosing =
        tokio::spawn(async move { ip(&other.create(pod("c2", "", "n1", "")).await.unwrap()) });
    // Of a history that this store does not have.
    let mut node = Follower::start(&server, "n1", 0).await;
    let mut client = server.client().await;
    let claimed = client.create(pod("c1", "", "n1", "10.1.1.1")).await.unwrap();
    assert_eq!(ip(&claimed), "10.1.1.1");
    assert!(!choosing.is_finished(), "it waits for the node");
    while node.hear().await != "end" {}
    node.ack(0, vec![]).await;
    assert_eq!(choosing.await.unwrap(), "10.1.1.2");
}

#[tokio::test]
async fn an_address_is_chosen_although_a_node_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(redb(&dir)).await;
    populate(&mut server.client().await).await;
    server.stop().await;
    let server = Server::start(redb(&dir)).await;
    let chosen = server.client().await.create(pod("c1", "", "n1", "")).await.unwrap();
    assert_eq!(ip(&chosen), "10.1.1.1");
}

#[tokio::test]
async fn a_deleted_network_waits_for_the_nodes_that_know_its_endpoints() {
    let (server, mut client) = Server::memory().await;
    let node = Obedient::start(&server, "n1").await;
    populate(&mut client).await;
    client.delete(v1::Kind::EndpointGroup, "red:web").await.unwrap();
    client.create(pod("c1", "", "n1", "")).await.unwrap();
    no_wait(&mut client, "c1").await;
    client.delete(v1::Kind::Network, "red:net").await.unwrap();
    drop(node);
}

#[tokio::test]
async fn a_reservation_without_owner_ends_by_served_time() {
    let (server, mut client) = Server::memory().await;
    populate(&mut client).await;
    reserve(&mut client, "10.1.1.7", "", 1).await.unwrap();
    reserve(&mut client, "10.1.1.8", "", 3600).await.unwrap();
    let listed = addresses(&mut client).await;
    assert_eq!(listed.iter().map(|a| a.ttl_seconds).collect::<Vec<_>>(), [6, 3605, 0]);
    let bad = refusal(reserve(&mut client, "10.1.1.9", "", u64::MAX).await);
    assert_eq!((bad.0, bad.1.as_str()), (Code::InvalidArgument, "ttlSeconds"));
    let ended = async {
        while states(&mut client).await.len() > 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
    assert_eq!(states(&mut client).await, [("10.1.1.8".to_owned(), "reserved".to_owned())]);
    drop(server);
}

#[tokio::test]
async fn every_address_that_is_not_free_is_listed_with_what_has_it() {
    let (_server, mut client) = Server::memory().await;
    populate(&mut client).await;
    reserve(&mut client, "10.1.1.7", "db", 0).await.unwrap();
    client.create(Wire::Endpoint(endpoint("c1", "red", "net", "n1"))).await.unwrap();
    let shop = v1::ServiceLb {
        service_name: "shop".into(),
        tenant_name: "red".into(),
        network_name: "net".into(),
        ip_address: "10.1.1.9".into(),
        selectors: vec!["app=shop".into()],
        ports: vec!["80:8080:TCP".into()],
        ..Default::default()
    };
    client.create(Wire::ServiceLb(shop)).await.unwrap();
    let listed = addresses(&mut client).await.into_iter();
    let listed: Vec<_> = listed.map(|a| format!("{} {} {}", a.address, a.state, a.owner)).collect();
    let expected =
        ["10.1.1.1 used ", "10.1.1.7 reserved db", "10.1.1.9 service shop", "10.1.1.254 gateway "];
    assert_eq!(listed, expected);
}

/// As an etcd does that nobody has told otherwise.
const OPS_MAX: usize = 128;

#[tokio::test]
async fn ipam_4_more_endpoints_than_a_store_takes_at_once_are_given_back() {
    let store = MemoryStore::default().taking_at_once(OPS_MAX);
    let server = Server::start(AnyStore::Memory(store)).await;
    let mut client = server.client().await;
    populate(&mut client).await;
    let count = OPS_MAX + 20;
    for number in 0..count {
        let object = Wire::Endpoint(endpoint(&format!("e{number}"), "red", "net", "n1"));
        client.create(object).await.unwrap();
    }
    assert_eq!(states(&mut client).await.len(), count);
    // The node has lost them all, and knows nothing of any since it lives without a stream.
    for deleted in [0, count] {
        let endpoint_ids = Vec::new();
        let request = v1::InventoryRequest { node_name: "n1".into(), endpoint_ids };
        let reply = client.node.inventory(request).await.unwrap().into_inner();
        assert_eq!(reply.deleted.len(), deleted);
    }
    let leaving = states(&mut client).await;
    assert!(leaving.iter().all(|(_, state)| state == "leaving"), "{leaving:?}");
    client.delete(v1::Kind::Node, "n1").await.unwrap();
    let freed = async {
        while !states(&mut client).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), freed).await.unwrap();
    drop(server);
}

/// As many of one request as `netctl node rm --with-endpoints` and netplugin's GC send.
const DELETES_AT_ONCE: usize = 32;

#[tokio::test]
async fn ipam_4_a_node_of_200_endpoints_is_deleted_in_requests_that_every_store_takes() {
    let store = MemoryStore::default().taking_at_once(OPS_MAX);
    let server = Server::start(AnyStore::Memory(store)).await;
    let mut client = server.client().await;
    client.create(tenant("red")).await.unwrap();
    let mut net = network("red", "net", "10.1.0.0/22");
    net.ipv6_subnet = "2001:db8::/64".into();
    client.create(Wire::Network(net)).await.unwrap();
    let living = Obedient::start(&server, "n1").await;
    client.register("gone", "192.168.0.9").await;
    let ids: Vec<_> = (0..200).map(|number| format!("e{number}")).collect();
    for id in &ids {
        client.create(Wire::Endpoint(endpoint(id, "red", "net", "gone"))).await.unwrap();
    }
    assert_eq!(states(&mut client).await.len(), 2 * ids.len(), "an address of each family");
    for some in ids.chunks(DELETES_AT_ONCE) {
        let deletes: Vec<_> = some.iter().map(|id| (v1::Kind::Endpoint, id.as_str())).collect();
        client.apply(vec![], &deletes).await.unwrap();
    }
    client.delete(v1::Kind::Node, "gone").await.unwrap();
    let freed = async {
        while !states(&mut client).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), freed).await.unwrap();
    drop(living);
}
