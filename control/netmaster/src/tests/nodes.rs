//! What a node sees: snapshot, deltas, resume, and that writes wait for it.

use std::time::{Duration, Instant};

use control_api::v1::watch_event::Kind as Event;
use control_model::{Intent, Kind, TenantName};
use tonic::Streaming;

use super::*;

/// A node as netplugin is one: it follows and can acknowledge.
pub(super) struct Follower {
    client: Client,
    name: String,
    stream: Streaming<v1::WatchEvent>,
    pub(super) intent: Intent,
    pub(super) revision: u64,
    questions: Vec<u64>,
}

impl Follower {
    /// As an earlier version: it is told of everything.
    pub(super) async fn start(server: &Server, name: &str, from_revision: u64) -> Self {
        let node_name = name.into();
        let request = v1::WatchRequest { node_name, from_revision, ..Default::default() };
        Self::follow(server, request).await
    }

    /// It is told of its concern.
    pub(super) async fn scoped(server: &Server, name: &str) -> Self {
        let node_name = name.into();
        let request = v1::WatchRequest { node_name, scoped: true, ..Default::default() };
        Self::follow(server, request).await
    }

    /// It comes back with what it has.
    pub(super) async fn back(server: &Server, name: &str, intent: Intent, revision: u64) -> Self {
        let tenant_names = intent.tenants().map(|tenant| tenant.name.to_string()).collect();
        let request = v1::WatchRequest {
            node_name: name.into(),
            from_revision: revision,
            scoped: true,
            holding: Some(v1::Holding { tenant_names }),
        };
        Self { intent, ..Self::follow(server, request).await }
    }

    async fn follow(server: &Server, request: v1::WatchRequest) -> Self {
        let (name, from_revision) = (request.node_name.clone(), request.from_revision);
        let mut client = server.client().await;
        client.register(&name, "").await;
        let stream = client.node.watch(request).await.unwrap().into_inner();
        Self {
            client,
            name,
            stream,
            intent: Intent::default(),
            revision: from_revision,
            questions: Vec::new(),
        }
    }

    /// Takes one event in; its kind as a word.
    pub(super) async fn hear(&mut self) -> &'static str {
        let event = self.stream.message().await.unwrap().unwrap();
        if !event.more {
            self.revision = event.revision.max(self.revision);
        }
        let Some(kind) = event.kind else { return "mark" };
        match kind {
            Event::SnapshotBegin(_) => {
                self.intent = Intent::default();
                "begin"
            }
            Event::Put(object) => {
                self.intent.put(control_api::convert::to_model(&object).unwrap());
                "put"
            }
            Event::Removed(removed) => {
                self.intent
                    .remove(&control_api::convert::to_key(removed.kind, &removed.key).unwrap());
                "removed"
            }
            Event::SnapshotEnd(_) => "end",
            Event::TenantLeft(left) => {
                let tenant = TenantName::parse("tenantName", &left.tenant_name).unwrap();
                self.intent.forget_tenant(&tenant);
                "left"
            }
            Event::StatsRequest(request) => {
                self.questions.push(request.id);
                "question"
            }
        }
    }

    pub(super) async fn ack(&mut self, stats_id: u64, counters: Vec<v1::RuleCounter>) {
        let ack = v1::AckRequest {
            node_name: self.name.clone(),
            revision: self.revision,
            stats_id,
            counters,
            error: String::new(),
        };
        self.client.node.ack(ack).await.unwrap();
    }

    fn counts(&self) -> Vec<usize> {
        Kind::ALL.iter().map(|kind| self.intent.objects(*kind).len()).collect()
    }
}

async fn write(server: &Server, kind: Wire) -> u64 {
    let object = Some(v1::Object { kind: Some(kind) });
    let request = v1::CreateRequest { object, no_wait: true };
    server.client().await.master.create(request).await.unwrap().into_inner().revision
}

#[tokio::test]
async fn d14_a_node_gets_a_snapshot_then_deltas_in_order() {
    let (server, mut client) = Server::memory().await;
    populate(&mut client).await;
    let mut node = Follower::start(&server, "n2", 0).await;
    assert_eq!(node.hear().await, "begin");
    while node.hear().await != "end" {}
    // Global, nodes, tenants, networks, policies, rules, profiles, groups; of the rest none.
    assert_eq!(node.counts(), [1, 2, 2, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]);
    let revision = node.revision;
    let next = write(&server, Wire::Endpoint(endpoint("c1", "red", "net", "n1"))).await;
    assert_eq!(next, revision + 1, "the snapshot was of the newest revision");
    assert_eq!((node.hear().await, node.revision), ("put", next));
    client
        .master
        .delete(v1::DeleteRequest {
            kind: v1::Kind::Endpoint.into(),
            key: "c1".into(),
            no_wait: true,
        })
        .await
        .unwrap();
    assert_eq!(
        (node.hear().await, node.revision),
        ("removed", next + 1),
        "and of its lease nothing"
    );
    let later = write(&server, Wire::NetProfile(profile("red", "gold", "900Mb"))).await;
    assert_eq!((node.hear().await, node.revision), ("put", later));
    let rates: Vec<_> =
        node.intent.profiles().map(|profile| profile.limit.bandwidth.to_string()).collect();
    assert_eq!(rates, ["900Mb"]);
    assert_eq!(node.counts(), [1, 2, 2, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]);
}

#[tokio::test]
async fn only_the_last_event_of_a_write_carries_its_revision() {
    let (server, mut client) = Server::memory().await;
    populate(&mut client).await;
    client.create(Wire::EndpointGroup(group("red", "web", "net", &[]))).await.unwrap();
    let mut node = Follower::start(&server, "n2", 0).await;
    while node.hear().await != "end" {}
    let before = node.revision;
    let request =
        v1::DeleteRequest { kind: v1::Kind::Policy.into(), key: "red:first".into(), no_wait: true };
    let revision = client.master.delete(request).await.unwrap().into_inner().revision;
    assert_eq!((node.hear().await, node.revision), ("removed", before), "the rule");
    assert_eq!((node.hear().await, node.revision), ("removed", revision), "the policy");
}

#[tokio::test]
async fn a_node_resumes_where_it_was_or_gets_a_snapshot() {
    let store = AnyStore::Memory(MemoryStore::with_log(4));
    let server = Server::start(store).await;
    let mut client = server.client().await;
    populate(&mut client).await;
    let mut node = Follower::start(&server, "n2", 0).await;
    while node.hear().await != "end" {}
    let (known, revision) = (node.intent.clone(), node.revision);
    drop(node);
    let next = write(&server, tenant("blue")).await;
    let mut node = Follower::start(&server, "n2", revision).await;
    node.intent = known;
    assert_eq!((node.hear().await, node.revision), ("put", next));
    assert_eq!(node.counts()[2], 3, "default, red, blue");
    drop(node);
    for i in 0..6 {
        write(&server, tenant(&format!("t{i}"))).await;
    }
    let mut node = Follower::start(&server, "n2", next).await;
    assert_eq!(node.hear().await, "begin", "the log no longer has what followed");
    while node.hear().await != "end" {}
    assert_eq!(node.counts()[2], 9);
    let mut future = Follower::start(&server, "n3", 1_000_000).await;
    assert_eq!(future.hear().await, "begin", "of another store's future");
}

#[tokio::test]
async fn a_write_waits_for_connected_nodes_and_names_the_late() {
    let (server, mut client) = Server::memory().await;
    populate(&mut client).await;
    let mut node = Follower::start(&server, "n1", 0).await;
    while node.hear().await != "end" {}
    node.ack(0, vec![]).await;
    let writing = tokio::spawn({
        let mut client = client.clone();
        async move { client.create(tenant("blue")).await.unwrap() }
    });
    assert_eq!(node.hear().await, "put");
    assert!(!writing.is_finished(), "it waits for the acknowledgement");
    node.ack(0, vec![]).await;
    let reply = writing.await.unwrap();
    assert_eq!((reply.revision, reply.late_nodes.as_slice()), (node.revision, [].as_slice()));
    let (Wire::Node(info), _) = client.get(v1::Kind::Node, "n1").await.unwrap() else {
        panic!("a node");
    };
    assert_eq!((info.connected, info.acked_revision), (true, reply.revision));
    let started = Instant::now();
    let late = client.create(tenant("green")).await.unwrap();
    assert_eq!(late.late_nodes, ["n1"]);
    assert!(started.elapsed() >= Duration::from_secs(2));
    let started = Instant::now();
    write(&server, tenant("white")).await;
    assert!(started.elapsed() < Duration::from_secs(1), "asked not to wait");
}

#[tokio::test]
async fn rule_counters_are_summed_over_the_nodes() {
    let (server, mut client) = Server::memory().await;
    populate(&mut client).await;
    let mut first = Follower::start(&server, "n1", 0).await;
    let mut second = Follower::start(&server, "n2", 0).await;
    let list = || v1::ListRequest {
        kind: v1::Kind::Rule.into(),
        tenant: "red".into(),
        parent: "first".into(),
        stats: true,
    };
    let listing = tokio::spawn({
        let mut client = client.clone();
        async move { client.master.list(list()).await.unwrap().into_inner() }
    });
    for node in [&mut first, &mut second] {
        while node.hear().await != "question" {}
        let counter = |cookie| v1::RuleCounter { cookie, packets: 3, bytes: 300 };
        node.ack(node.questions[0], vec![counter(1), counter(77)]).await;
    }
    let reply = listing.await.unwrap();
    assert_eq!(reply.counters, [v1::RuleCounter { cookie: 1, packets: 6, bytes: 600 }]);
    assert_eq!((reply.objects.len(), reply.late_nodes.as_slice()), (1, [].as_slice()));
    drop(second);
    let silent = client.master.list(list()).await.unwrap().into_inner();
    assert!(silent.late_nodes.contains(&"n1".to_owned()), "{:?}", silent.late_nodes);
    assert_eq!(silent.counters, [v1::RuleCounter { cookie: 1, packets: 0, bytes: 0 }]);
}

#[tokio::test]
async fn strangers_and_connected_nodes_are_refused() {
    let (server, mut client) = Server::memory().await;
    let watch =
        client.node.watch(v1::WatchRequest { node_name: "n1".into(), ..Default::default() }).await;
    assert_eq!(refusal(watch.map(|_| ())).0, Code::NotFound);
    let ack = v1::AckRequest { node_name: "n1".into(), ..Default::default() };
    assert_eq!(refusal(client.node.ack(ack).await).1, "nodeName");
    let old = v1::RegisterRequest { node_name: "n1".into(), ..Default::default() };
    assert_eq!(refusal(client.node.register(old).await).1, "apiVersion");
    let mut node = Follower::start(&server, "n1", 0).await;
    while node.hear().await != "end" {}
    let connected = refusal(client.delete(v1::Kind::Node, "n1").await);
    assert_eq!(connected, (Code::FailedPrecondition, "key".into(), "the node is connected".into()));
}

#[tokio::test]
async fn two_machines_under_one_name_are_not_taken_for_one_node() {
    let (server, mut client) = Server::memory().await;
    client.register("n1", "192.168.0.1").await;
    client.register("n1", "192.168.0.9").await;
    let watch = v1::WatchRequest { node_name: "n1".into(), ..Default::default() };
    let stream = server.client().await.node.watch(watch).await.unwrap().into_inner();
    let refused = refusal(client.try_register("n1", "192.168.0.2").await);
    let reason = "a node of this name is connected, with tunnel end point 192.168.0.9";
    assert_eq!(refused, (Code::FailedPrecondition, "nodeName".into(), reason.into()));
    client.try_register("n1", "192.168.0.9").await.unwrap();
    drop(stream);
}

#[tokio::test]
async fn every_process_has_an_instance_of_its_own() {
    let store = AnyStore::Memory(MemoryStore::default());
    let (first, second) = (Server::start(store.clone()).await, Server::start(store).await);
    let (mut of_first, mut of_second) = (first.client().await, second.client().await);
    let instance = of_first.try_register("n1", "").await.unwrap().instance;
    assert_ne!(instance, 0);
    assert_eq!(of_first.try_register("n1", "").await.unwrap().instance, instance);
    assert_ne!(of_second.try_register("n1", "").await.unwrap().instance, instance);
}

#[tokio::test]
async fn stopping_ends_open_streams() {
    let (server, client) = Server::memory().await;
    let mut node = Follower::start(&server, "n1", 0).await;
    while node.hear().await != "end" {}
    drop(client);
    let stopping = tokio::spawn(server.stop());
    let ended = node.stream.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
    drop(node);
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_stream_that_is_not_read_does_not_hold_up_writes() {
    let server = Server::start(AnyStore::Memory(MemoryStore::with_log(16))).await;
    let mut client = server.client().await;
    populate(&mut client).await;
    // Large objects fill the connection's buffers with few writes.
    let policies: Vec<_> = (0..100).map(|i| format!("{i:0>60}")).collect();
    for name in &policies {
        write_on(&mut client, policy("red", name)).await;
    }
    let names: Vec<_> = policies.iter().map(String::as_str).collect();
    let mut node = Follower::start(&server, "n2", 0).await;
    let mut newest = 0;
    for i in 0..200 {
        let changed =
            v1::EndpointGroup { cfgd_tag: format!("t{i}"), ..group("red", "web", "net", &names) };
        newest = write_on(&mut client, Wire::EndpointGroup(changed)).await;
    }
    let mut snapshots = 0;
    while node.revision < newest {
        snapshots += u32::from(node.hear().await == "begin");
    }
    assert!(snapshots >= 2, "what the log no longer had came with a snapshot");
    assert_eq!(node.intent.groups().next().unwrap().shown_tag(), "t199");
}

pub(super) async fn write_on(client: &mut Client, kind: Wire) -> u64 {
    let object = Some(v1::Object { kind: Some(kind) });
    let request = v1::CreateRequest { object, no_wait: true };
    client.master.create(request).await.unwrap().into_inner().revision
}

#[tokio::test]
async fn pol_6_all_events_of_a_write_but_the_last_say_that_more_follow() {
    let (server, mut client) = Server::memory().await;
    populate(&mut client).await;
    let mut node = Follower::start(&server, "n2", 0).await;
    while node.hear().await != "end" {}
    let rules = ["2", "3", "4"].map(|id| Wire::Rule(rule("red", "first", id)));
    let request = apply_request(rules.into(), &[(v1::Kind::Rule, "red:first:1")]);
    let request = v1::ApplyRequest { no_wait: true, ..request };
    let written = client.master.apply(request).await.unwrap().into_inner().revision;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let event = node.stream.message().await.unwrap().unwrap();
        seen.push((event.more, event.revision == written));
    }
    assert_eq!(seen, [(true, false), (true, false), (true, false), (false, true)]);
}
