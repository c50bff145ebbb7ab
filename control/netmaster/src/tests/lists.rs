//! Lists that are watched, and explanations.

use std::collections::BTreeSet;
use std::time::Duration;

use control_api::v1::watch_event::Kind as Event;
use tokio::time::timeout;
use tonic::Streaming;

use super::*;
use crate::api::VIEWERS_MAX;

const BOUND: Duration = Duration::from_secs(20);

async fn watch(
    client: &mut Client,
    kind: v1::Kind,
    tenant: &str,
) -> Result<Streaming<v1::WatchEvent>, Status> {
    let request =
        v1::WatchListRequest { kind: kind.into(), tenant: tenant.into(), ..Default::default() };
    client.master.watch(request).await.map(tonic::Response::into_inner)
}

/// Hears events until the policies known are `wanted`; how many snapshots were among them.
async fn hear(stream: &mut Streaming<v1::WatchEvent>, wanted: &[&str]) -> usize {
    let (mut known, mut snapshots) = (BTreeSet::new(), 0);
    timeout(BOUND, async {
        loop {
            match stream.message().await.unwrap().unwrap().kind.unwrap() {
                Event::SnapshotBegin(_) => known.clear(),
                Event::SnapshotEnd(_) => snapshots += 1,
                Event::Put(v1::Object { kind: Some(Wire::Policy(policy)) }) => {
                    known.insert(format!("{}:{}", policy.tenant_name, policy.policy_name));
                }
                Event::Removed(removed) => {
                    known.remove(&removed.key);
                }
                Event::Put(other) => panic!("{other:?}"),
                Event::StatsRequest(_) => panic!("a viewer has no counters"),
                Event::TenantLeft(left) => panic!("a viewer sees all tenants: {left:?}"),
            }
            if snapshots > 0 && known.iter().eq(wanted) {
                return snapshots;
            }
        }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_watched_list_has_what_a_list_has_and_follows_it() {
    let (_server, mut client) = Server::memory().await;
    populate(&mut client).await;
    client.create(policy("default", "other")).await.unwrap();
    let mut all = watch(&mut client, v1::Kind::Policy, "").await.unwrap();
    let mut red = watch(&mut client, v1::Kind::Policy, "red").await.unwrap();
    assert_eq!(hear(&mut all, &["default:other", "red:first"]).await, 1);
    assert_eq!(hear(&mut red, &["red:first"]).await, 1);
    let mut again = watch(&mut client, v1::Kind::Policy, "red").await.unwrap();
    client.create(tenant("blue")).await.unwrap();
    client.create(policy("red", "second")).await.unwrap();
    client.delete(v1::Kind::Policy, "default:other").await.unwrap();
    client.create(policy("red", "third")).await.unwrap();
    client.delete(v1::Kind::Policy, "red:second").await.unwrap();
    assert_eq!(hear(&mut again, &["red:first", "red:third"]).await, 1);
}

#[tokio::test]
async fn who_reads_late_learns_the_state_as_it_is() {
    let (_server, mut client) = Server::memory().await;
    let mut stream = watch(&mut client, v1::Kind::Policy, "").await.unwrap();
    // More than the stream's window of 64 KiB and the queue before it hold.
    for round in 0..600 {
        let name = format!("{}{round}", "p".repeat(60));
        client.create(policy("default", &name)).await.unwrap();
        client.delete(v1::Kind::Policy, &format!("default:{name}")).await.unwrap();
    }
    client.create(policy("default", "last")).await.unwrap();
    hear(&mut stream, &["default:last"]).await;
}

#[tokio::test]
async fn more_streams_than_there_are_places_are_refused_and_places_come_back() {
    let (_server, mut client) = Server::memory().await;
    let mut open = Vec::new();
    for _ in 0..VIEWERS_MAX {
        open.push(watch(&mut client, v1::Kind::Tenant, "").await.unwrap());
    }
    let refused = watch(&mut client, v1::Kind::Tenant, "").await.map(drop);
    let (code, _, reason) = refusal(refused);
    assert_eq!(code, Code::ResourceExhausted);
    assert!(reason.contains("256 lists"), "{reason}");
    open.clear();
    timeout(BOUND, async {
        while watch(&mut client, v1::Kind::Tenant, "").await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_explanation_looks_at_some_endpoints_of_a_large_group_and_says_so() {
    let (_server, mut client) = Server::memory().await;
    populate(&mut client).await;
    for place in 0..17 {
        let member = v1::Endpoint {
            endpoint_group: "web".into(),
            ..endpoint(&format!("c{place:02}:eth0"), "red", "net", "n1")
        };
        client.create(Wire::Endpoint(member)).await.unwrap();
    }
    let mut ask = async |to: &str, protocol: &str, port| {
        let request = v1::ExplainRequest {
            tenant_name: "red".into(),
            from: "192.0.2.1".into(),
            to: to.into(),
            protocol: protocol.into(),
            port,
        };
        client.master.explain(request).await.map(tonic::Response::into_inner)
    };
    let group = ask("web", "tcp", 80).await.unwrap();
    assert_eq!((group.pairs.len(), group.partial), (16, true));
    for pair in &group.pairs {
        // Rule 1 of policy first denies everything that comes in.
        let side = pair.r#in.clone().unwrap();
        assert_eq!((side.policy_name.as_str(), side.rule_id.as_str()), ("first", "1"));
        assert_eq!((pair.verdict.as_str(), pair.reason.as_str()), ("drop", "policy-deny"));
        assert!(!pair.out.clone().unwrap_or_default().asked);
    }
    let one = ask("c00:eth0", "icmp", 0).await.unwrap();
    assert_eq!((one.pairs.len(), one.partial), (1, false));
    for (to, protocol, port, field) in [
        ("web", "", 0, "protocol"),
        ("web", "tcp", 0, "port"),
        ("web", "tcp", 65536, "port"),
        ("nobody", "icmp", 0, "to"),
        ("x:eth0", "icmp", 0, "to"),
        ("", "icmp", 0, "to"),
    ] {
        assert_eq!(refusal(ask(to, protocol, port).await).1, field, "{to:?} {protocol} {port}");
    }
}
