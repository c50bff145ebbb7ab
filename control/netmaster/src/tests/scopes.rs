//! Each node is told of its concern, comes back to where it was, and says what it has.

use std::time::Duration;

use control_model::{Intent, Kind};

use super::nodes::{Follower, write_on};
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

async fn detach(client: &mut Client, id: &str) -> u64 {
    let kind = v1::Kind::Endpoint.into();
    let request = v1::DeleteRequest { kind, key: id.into(), no_wait: true };
    client.master.delete(request).await.unwrap().into_inner().revision
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
    let mut node = Follower::scoped(&server, "n1").await;
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
    let mut node = Follower::scoped(&server, "n1").await;
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
    let mut node = Follower::scoped(&server, "n1").await;
    snapshot(&mut node).await;
    let joined = attach(&mut client, "r1", "red", "n1").await;
    up_to(&mut node, joined).await;
    let (known, revision) = (node.intent.clone(), node.revision);
    drop(node);
    gone(&mut client, "n1").await;
    attach(&mut client, "r2", "red", "n2").await;
    detach(&mut client, "r2").await;
    let missed = attach(&mut client, "r3", "red", "n2").await;
    let mut node = Follower::back(&server, "n1", known, revision).await;
    let mut words = Vec::new();
    while node.revision < missed {
        words.push(node.hear().await);
    }
    assert_eq!(words, ["put", "removed", "put", "mark"]);
    assert_eq!(endpoints(&node), ["r1", "r3"]);
}

/// What came to a node that came back to `server`, and that it is what a new one is told.
async fn back(server: &Server, intent: Intent, from: u64, to: u64) -> (Vec<&'static str>, Intent) {
    let mut node = Follower::back(server, "n1", intent, from).await;
    let mut words = Vec::new();
    while node.revision < to {
        words.push(node.hear().await);
    }
    let mut fresh = Follower::scoped(server, "n1").await;
    snapshot(&mut fresh).await;
    for kind in Kind::ALL {
        assert_eq!(node.intent.objects(kind), fresh.intent.objects(kind), "{words:?}");
    }
    (words, node.intent)
}

#[tokio::test]
async fn ha_4_a_node_is_told_by_the_next_netmaster_what_it_missed_and_no_more() {
    let store = AnyStore::Memory(MemoryStore::default());
    let (old, new) = (Server::start(store.clone()).await, Server::start(store).await);
    let mut client = old.client().await;
    two_tenants(&mut client).await;
    client.create(tenant("green")).await.unwrap();
    client.create(Wire::Network(network("green", "net", "10.1.1.0/24"))).await.unwrap();
    for (id, tenant, node) in [("r1", "red", "n1"), ("r2", "red", "n2"), ("g1", "green", "n1")] {
        attach(&mut client, id, tenant, node).await;
    }
    let mut node = Follower::scoped(&old, "n1").await;
    snapshot(&mut node).await;
    let (known, revision) = (node.intent.clone(), node.revision);
    drop(node);
    // Another leads now. A peer goes and one comes, a tenant comes, one goes, and one was there in
    // between.
    let mut client = new.client().await;
    for id in ["r2", "g1"] {
        detach(&mut client, id).await;
    }
    client.create(tenant("brief")).await.unwrap();
    client.create(Wire::Network(network("brief", "net", "10.1.1.0/24"))).await.unwrap();
    attach(&mut client, "x1", "brief", "n1").await;
    detach(&mut client, "x1").await;
    attach(&mut client, "b1", "blue", "n1").await;
    attach(&mut client, "b2", "blue", "n2").await;
    detach(&mut client, "b2").await;
    let newest = attach(&mut client, "r3", "red", "n2").await;
    let (words, _) = back(&new, known.clone(), revision, newest).await;
    // green ends; blue is there as it is now; r2 goes, r3 comes.
    let blue = ["put"; 3];
    let expected = [&["left"][..], &blue, &["removed", "put", "mark"]].concat();
    assert_eq!(words, expected);
    // Of what it only says that it has, it is told nothing.
    let mut liar = known;
    let other = Follower::scoped(&new, "n2").await;
    drop(other);
    let claimed = client.get(v1::Kind::Tenant, "brief").await.unwrap().0;
    liar.put(control_api::convert::to_model(&v1::Object { kind: Some(claimed) }).unwrap());
    let (words, intent) = back(&new, liar, revision, newest).await;
    assert_eq!(words[..2], ["left", "left"], "{words:?}");
    assert!(intent.tenants().all(|tenant| tenant.name.as_str() != "brief"));
}

/// Writes at random, the same ones each time.
struct Random {
    client: Client,
    state: u64,
    alive: Vec<String>,
    written: u64,
}

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        // Marsaglia's xorshift.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from(self.state % bound as u64).unwrap()
    }

    /// Attaches or detaches an endpoint or makes a policy; the revision.
    async fn write(&mut self) -> u64 {
        self.written += 1;
        let name = format!("x{}", self.written);
        let tenant = ["red", "blue"][self.below(2)];
        let what = self.below(5);
        if what < 2 {
            let node = ["n1", "n2"][self.below(2)];
            self.alive.push(name.clone());
            return attach(&mut self.client, &name, tenant, node).await;
        }
        if what < 4 && !self.alive.is_empty() {
            let at = self.below(self.alive.len());
            return detach(&mut self.client, &self.alive.swap_remove(at)).await;
        }
        self.client.create(policy(tenant, &name)).await.unwrap().revision
    }
}

#[tokio::test]
async fn ha_4_whatever_happened_meanwhile_a_node_that_comes_back_knows_what_a_new_one_does() {
    let store = AnyStore::Memory(MemoryStore::default());
    let servers = [Server::start(store.clone()).await, Server::start(store).await];
    let mut client = servers[0].client().await;
    two_tenants(&mut client).await;
    let mut node = Follower::scoped(&servers[0], "n1").await;
    snapshot(&mut node).await;
    let (mut known, mut revision) = (node.intent.clone(), node.revision);
    drop(node);
    let mut random = Random { client, state: 0x9e37_79b9_7f4a_7c15, alive: Vec::new(), written: 0 };
    for round in 0..100 {
        let mut newest = revision;
        for _ in 0..random.below(8) {
            newest = random.write().await;
        }
        let (words, intent) = back(&servers[round % 2], known, revision, newest).await;
        assert!(!words.contains(&"begin"), "{words:?}");
        (known, revision) = (intent, newest);
    }
}

#[tokio::test]
async fn a_node_gets_a_snapshot_where_the_log_does_not_say_whose_endpoints_went() {
    let (server, mut client) = Server::memory().await;
    two_tenants(&mut client).await;
    for (id, tenant) in [("r1", "red"), ("r2", "red"), ("b2", "blue")] {
        attach(&mut client, id, tenant, "n1").await;
    }
    let mut node = Follower::scoped(&server, "n1").await;
    snapshot(&mut node).await;
    let (known, revision) = (node.intent.clone(), node.revision);
    drop(node);
    let kind = v1::Kind::Endpoint.into();
    let both = ["r2", "b2"].map(|key| v1::ObjectKey { kind, key: key.into() });
    let request = v1::ApplyRequest { deletes: both.into(), ..Default::default() };
    let newest = client.master.apply(request).await.unwrap().into_inner().revision;
    let (words, _) = back(&server, known, revision, newest).await;
    assert_eq!((words[0], *words.last().unwrap()), ("begin", "end"));
}

#[tokio::test]
async fn a_quiet_node_is_told_how_far_the_log_is_before_the_log_forgets() {
    let (server, mut client) = Server::memory().await;
    two_tenants(&mut client).await;
    let mut node = Follower::scoped(&server, "n1").await;
    snapshot(&mut node).await;
    let start = node.revision;
    node.ack(0, vec![]).await;
    let told = async {
        for number in 0..=1_010 {
            write_on(&mut client, policy("blue", &format!("p{number}"))).await;
        }
        node.hear().await
    };
    assert_eq!(tokio::time::timeout(Duration::from_mins(1), told).await.unwrap(), "mark");
    assert!(node.revision >= start + 1_000, "{} after {start}", node.revision);
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
