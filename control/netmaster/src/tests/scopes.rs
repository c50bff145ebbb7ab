//! Each node is told of its concern, comes back to where it was, and says what it has.

use std::time::Duration;

use super::nodes::Follower;
use super::*;

/// Tenants red and blue with a network each, and two nodes.
async fn two_tenants(client: &mut Client) {
    populate(client).await;
    client.register("n2", "192.168.0.2").await;
    client.create(tenant("blue")).await.unwrap();
    client.create(Wire::Network(network("blue", "net", "10.1.1.0/24"))).await.unwrap();
}

async fn attach(client: &mut Client, id: &str, tenant: &str, node: &str) -> u64 {
    let object = Some(v1::Object { kind: Some(Wire::Endpoint(endpoint(id, tenant, "net", node))) });
    let request = v1::CreateRequest { object, no_wait: true };
    client.master.create(request).await.unwrap().into_inner().revision
}

async fn detach(client: &mut Client, id: &str) {
    let kind = v1::Kind::Endpoint.into();
    let request = v1::DeleteRequest { kind, key: id.into(), no_wait: true };
    client.master.delete(request).await.unwrap();
}

fn tenants(node: &Follower) -> Vec<String> {
    node.intent.tenants().map(|tenant| tenant.name.to_string()).collect()
}

fn endpoints(node: &Follower) -> Vec<String> {
    node.intent.endpoints().map(|endpoint| endpoint.id.to_string()).collect()
}

async fn snapshot(node: &mut Follower) {
    assert_eq!(node.hear().await, "begin");
    while node.hear().await != "end" {}
}

/// Takes in everything up to the write of `revision`.
async fn up_to(node: &mut Follower, revision: u64) {
    while node.revision < revision {
        node.hear().await;
    }
}

#[tokio::test]
async fn scl_1_a_node_is_never_told_of_tenants_that_have_nothing_on_it() {
    let (server, mut client) = Server::memory().await;
    two_tenants(&mut client).await;
    attach(&mut client, "b1", "blue", "n2").await;
    let mut node = Follower::scoped(&server, "n1", 0).await;
    snapshot(&mut node).await;
    assert_eq!((tenants(&node), node.intent.nodes().count()), (vec![], 2));
    // Whatever happens to the others is no event here.
    attach(&mut client, "b2", "blue", "n2").await;
    detach(&mut client, "b2").await;
    client.create(policy("blue", "p")).await.unwrap();
    let joined = attach(&mut client, "r1", "red", "n1").await;
    assert_eq!(node.hear().await, "put");
    up_to(&mut node, joined).await;
    assert_eq!((tenants(&node), endpoints(&node)), (vec!["red".into()], vec!["r1".into()]));
    assert_eq!((node.intent.rules().count(), node.intent.groups().count()), (1, 1));
    // A peer elsewhere is its concern, and so is the peer's end.
    let peer = attach(&mut client, "r2", "red", "n2").await;
    up_to(&mut node, peer).await;
    assert_eq!(endpoints(&node), ["r1", "r2"]);
    detach(&mut client, "r2").await;
    assert_eq!((node.hear().await, endpoints(&node)), ("removed", vec!["r1".into()]));
    detach(&mut client, "r1").await;
    assert_eq!(node.hear().await, "left");
    assert_eq!((tenants(&node), endpoints(&node)), (vec![], vec![]));
    assert_eq!(node.intent.networks().count(), 0);
    let again = attach(&mut client, "r3", "red", "n1").await;
    up_to(&mut node, again).await;
    assert_eq!((tenants(&node), endpoints(&node)), (vec!["red".into()], vec!["r3".into()]));
}

#[tokio::test]
async fn a_write_is_in_force_on_a_node_that_it_does_not_concern_without_its_word() {
    let (server, mut client) = Server::memory().await;
    two_tenants(&mut client).await;
    let mut node = Follower::scoped(&server, "n1", 0).await;
    snapshot(&mut node).await;
    node.ack(0, vec![]).await;
    let reply = client.create(Wire::Endpoint(endpoint("b1", "blue", "net", "n2"))).await.unwrap();
    assert_eq!(reply.late_nodes, Vec::<String>::new());
    let (Wire::Node(info), _) = client.get(v1::Kind::Node, "n1").await.unwrap() else {
        panic!("a node");
    };
    assert_eq!((info.acked_revision, info.lag), (reply.revision, 0));
}

#[tokio::test]
async fn scl_1_a_node_that_comes_back_is_told_what_it_missed_and_no_more() {
    let (server, mut client) = Server::memory().await;
    two_tenants(&mut client).await;
    let mut node = Follower::scoped(&server, "n1", 0).await;
    snapshot(&mut node).await;
    let joined = attach(&mut client, "r1", "red", "n1").await;
    up_to(&mut node, joined).await;
    let (known, revision) = (node.intent.clone(), node.revision);
    drop(node);
    gone(&mut client, "n1").await;
    attach(&mut client, "r2", "red", "n2").await;
    detach(&mut client, "r2").await;
    let missed = attach(&mut client, "r3", "red", "n2").await;
    let mut node = Follower::scoped(&server, "n1", revision).await;
    node.intent = known;
    let mut words = Vec::new();
    while node.revision < missed {
        words.push(node.hear().await);
    }
    assert_eq!(words, ["put", "removed", "put"]);
    assert_eq!(endpoints(&node), ["r1", "r3"]);
    // One that has heard less than was taken from it gets everything.
    detach(&mut client, "r3").await;
    assert_eq!(node.hear().await, "removed");
    drop(node);
    gone(&mut client, "n1").await;
    let mut node = Follower::scoped(&server, "n1", missed).await;
    snapshot(&mut node).await;
    assert_eq!(endpoints(&node), ["r1"]);
}

/// Waits until netmaster has noticed that a node's stream has ended.
async fn gone(client: &mut Client, name: &str) {
    let notice = async {
        loop {
            let (Wire::Node(info), _) = client.get(v1::Kind::Node, name).await.unwrap() else {
                panic!("a node");
            };
            if !info.connected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), notice).await.unwrap();
}

async fn inventory(client: &mut Client, ids: &[&str]) -> Vec<String> {
    let endpoint_ids = ids.iter().map(ToString::to_string).collect();
    let request = v1::InventoryRequest { node_name: "n1".into(), endpoint_ids };
    client.node.inventory(request).await.unwrap().into_inner().deleted
}

#[tokio::test]
async fn ipam_4_an_endpoint_that_its_node_twice_does_not_list_is_deleted() {
    let (_server, mut client) = Server::memory().await;
    two_tenants(&mut client).await;
    for (id, node) in [("c1", "n1"), ("c2", "n1"), ("c3", "n1"), ("other", "n2")] {
        attach(&mut client, id, "red", node).await;
    }
    assert_eq!(inventory(&mut client, &["c1"]).await, Vec::<String>::new());
    let request = v1::ListAddressesRequest { leaks: true, ..Default::default() };
    let leaks = client.master.list_addresses(request).await.unwrap().into_inner().addresses;
    let leaks: Vec<_> = leaks.iter().map(|address| address.endpoint_id.as_str()).collect();
    assert_eq!(leaks, ["c2", "c3"]);
    assert_eq!(inventory(&mut client, &["c1", "c3"]).await, ["c2"], "c3 was listed again");
    assert_eq!(inventory(&mut client, &["c1"]).await, Vec::<String>::new(), "once, again");
    assert_eq!(inventory(&mut client, &["c1"]).await, ["c3"]);
    let left = client.list(v1::Kind::Endpoint, "").await;
    assert_eq!(left.len(), 2, "of another node nothing: {left:?}");
}
