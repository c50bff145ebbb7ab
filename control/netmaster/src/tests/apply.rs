//! Many objects in one request, and the kinds that are kept but do nothing yet.

use super::*;
use v1::ApplyAction::{Created, Deleted, Unchanged, Updated};

/// Backwards: each names one that comes later.
fn shop() -> Vec<Wire> {
    vec![
        Wire::Bgp(bgp("hostA")),
        Wire::ServiceLb(service("blue", "front", "net")),
        Wire::AppProfile(app_profile("blue", "shop", &["web"])),
        Wire::Rule(v1::Rule { from_endpoint_group: "web".into(), ..rule("blue", "first", "1") }),
        Wire::EndpointGroup(group("blue", "web", "net", &["first"])),
        policy("blue", "first"),
        Wire::Network(network("blue", "net", "10.1.1.0/24")),
        tenant("blue"),
    ]
}

fn actions(reply: &v1::ApplyReply) -> Vec<v1::ApplyAction> {
    reply.results.iter().map(v1::ApplyResult::action).collect()
}

#[tokio::test]
async fn many_objects_are_one_write_and_a_rehearsal_none() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    let before = client.everything().await;
    let rehearsed = client.rehearse(shop()).await.unwrap();
    assert_eq!(actions(&rehearsed), [Created; 8]);
    assert_eq!(client.everything().await, before);
    let done = client.apply(shop(), &[]).await.unwrap();
    assert_eq!(actions(&done), [Created; 8]);
    assert_eq!(done.revision, rehearsed.revision + 1);
    assert_eq!(done.results[0].key, "hostA");
    let Some(Wire::ServiceLb(front)) = done.results[1].after.clone().unwrap().kind else {
        panic!("a service");
    };
    assert_eq!(front.service_vip, "10.1.1.1");
    let again = client.apply(shop(), &[]).await.unwrap();
    assert_eq!((actions(&again), again.revision), (vec![Unchanged; 8], done.revision));
    let changed = vec![Wire::Rule(rule("blue", "first", "1"))];
    let gone = [(v1::Kind::Bgp, "hostA"), (v1::Kind::AppProfile, "blue:shop")];
    let changed = client.apply(changed, &gone).await.unwrap();
    assert_eq!(actions(&changed), [Updated, Deleted, Deleted]);
    assert!(changed.results[0].before.is_some() && changed.results[1].after.is_none());
    let after = client.everything().await;
    server.stop().await;
    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    assert_eq!(client.everything().await, after, "as stored");
}

/// A rule names the group that uses the rule's policy.
#[tokio::test]
async fn what_names_each_other_in_a_circle_comes_and_goes_as_one() {
    let (_server, mut client) = Server::memory().await;
    let before = client.everything().await;
    let circle: Vec<Wire> = shop().into_iter().skip(3).collect();
    let keys = [
        (v1::Kind::Tenant, "blue"),
        (v1::Kind::Policy, "blue:first"),
        (v1::Kind::Network, "blue:net"),
        (v1::Kind::EndpointGroup, "blue:web"),
        (v1::Kind::Rule, "blue:first:1"),
    ];
    client.apply(circle.clone(), &[]).await.unwrap();
    let whole = client.everything().await;
    for (kind, key) in &keys[..3] {
        let refused = refusal(client.delete(*kind, key).await);
        assert_eq!((refused.0, refused.1.as_str()), (Code::FailedPrecondition, "key"), "{key}");
    }
    assert_eq!(client.everything().await, whole);
    client.apply(vec![], &keys).await.unwrap();
    assert_eq!(client.everything().await, before);
    // The rule, which comes first, is named by nobody.
    for missing in 1..circle.len() {
        let mut broken = circle.clone();
        broken.remove(missing);
        let refused = refusal(client.apply(broken, &[]).await);
        assert_eq!(refused.0, Code::NotFound, "without {:?}: {refused:?}", circle[missing]);
        assert_eq!(client.everything().await, before);
    }
}

#[tokio::test]
async fn one_refused_object_refuses_all_and_is_named() {
    let (_server, mut client) = Server::memory().await;
    let before = client.everything().await;
    for dry_run in [true, false] {
        let request = |objects| v1::ApplyRequest { dry_run, ..apply_request(objects, &[]) };
        let mut objects = shop();
        objects.push(Wire::Rule(v1::Rule {
            from_endpoint_group: "none".into(),
            ..rule("blue", "first", "2")
        }));
        let status = client.master.apply(request(objects)).await.unwrap_err();
        let detail = v1::ErrorDetail::decode(status.details()).unwrap();
        assert_eq!((status.code(), detail.object.as_str()), (Code::NotFound, "rule blue:first:2"));
        assert_eq!(detail.field, "fromEndpointGroup");
        let unread = vec![tenant("in_valid")];
        let status = client.master.apply(request(unread)).await.unwrap_err();
        let detail = v1::ErrorDetail::decode(status.details()).unwrap();
        assert_eq!((detail.object.as_str(), detail.field.as_str()), ("objects[0]", "tenantName"));
    }
    let node = v1::NodeInfo { node_name: "n9".into(), ..Default::default() };
    assert_eq!(refusal(client.apply(vec![Wire::Node(node)], &[]).await).1, "object");
    assert_eq!(client.everything().await, before);
}

#[tokio::test]
async fn what_is_kept_and_does_nothing_yet_says_so() {
    let (_server, mut client) = Server::memory().await;
    client.register("n1", "192.168.0.1").await;
    client.apply(shop(), &[]).await.unwrap();
    let labels = vec!["key2=value2".into(), "key1=value1".into(), "x=y".into()];
    let provider = v1::Endpoint { labels, ..endpoint("c1", "blue", "net", "n1") };
    client.create(Wire::Endpoint(provider)).await.unwrap();
    let (_, oper) = client.get(v1::Kind::ServiceLb, "blue:front").await.unwrap();
    assert_eq!(oper.not_in_force, "no traffic is forwarded from the service's address");
    assert_eq!((oper.num_providers, oper.providers[0].endpoint_id.as_str()), (1, "c1"));
    let (stored, oper) = client.get(v1::Kind::Bgp, "hostA").await.unwrap();
    assert_eq!(
        (stored, oper.not_in_force.as_str()),
        (Wire::Bgp(bgp("hostA")), "no node speaks BGP")
    );
    let (_, oper) = client.get(v1::Kind::Tenant, "blue").await.unwrap();
    assert_eq!((oper.total_servicelbs, oper.total_app_profiles), (1, 1));
    assert_eq!(oper.not_in_force, "");
}
