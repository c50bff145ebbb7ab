//! What users and nodes create, read and delete.

use std::collections::BTreeSet;

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::addresses::Obedient;
use super::*;

#[tokio::test]
async fn objects_are_created_listed_read_and_deleted() {
    let (_server, mut client) = Server::memory().await;
    populate(&mut client).await;
    let (Wire::Network(net), oper) = client.get(v1::Kind::Network, "red:net").await.unwrap() else {
        panic!("a network");
    };
    assert_eq!((net.pkt_tag, net.bd, net.nw_type.as_str()), (1, 1, "data"));
    assert_eq!(oper.allocated_ip_addresses, "10.1.1.254");
    assert_eq!((oper.pkt_tag, oper.network_tag.as_str()), (1, "net.red"));
    let names: Vec<_> = client
        .list(v1::Kind::Tenant, "")
        .await
        .into_iter()
        .map(|o| if let Wire::Tenant(tenant) = o { tenant.tenant_name } else { String::new() })
        .collect();
    assert_eq!(names, ["default", "red"]);
    assert_eq!(client.list(v1::Kind::Network, "default").await, []);
    assert_eq!(client.list(v1::Kind::Network, "red").await.len(), 1);
    client.delete(v1::Kind::EndpointGroup, "red:web").await.unwrap();
    client.delete(v1::Kind::Policy, "red:first").await.unwrap();
    assert_eq!(client.list(v1::Kind::Rule, "").await, []);
    client.delete(v1::Kind::NetProfile, "red:gold").await.unwrap();
    client.delete(v1::Kind::Network, "red:net").await.unwrap();
    client.delete(v1::Kind::Tenant, "red").await.unwrap();
    let gone = refusal(client.get(v1::Kind::Tenant, "red").await);
    assert_eq!(gone, (Code::NotFound, "key".into(), "Tenant not found".into()));
}

#[tokio::test]
async fn an_endpoint_gets_address_and_mac_and_gives_them_back() {
    let (server, mut client) = Server::memory().await;
    let _node = Obedient::start(&server, "n1").await;
    populate(&mut client).await;
    let asked =
        v1::Endpoint { endpoint_group: "web".into(), ..endpoint("c1:eth0", "red", "net", "n1") };
    let reply = client.create(Wire::Endpoint(asked.clone())).await.unwrap();
    let Some(Wire::Endpoint(first)) = reply.object.unwrap().kind else { panic!("an endpoint") };
    assert_eq!(first.ip_address, ["10.1.1.1"]);
    assert_eq!(first.vtep_ip, "192.168.0.1");
    assert_eq!(first.mac_address.len(), 17);
    let again = client.create(Wire::Endpoint(asked)).await.unwrap();
    assert_eq!(again.object.unwrap().kind, Some(Wire::Endpoint(first.clone())));
    assert_eq!(again.revision, reply.revision);
    for (kind, key) in [
        (v1::Kind::Network, "red:net"),
        (v1::Kind::EndpointGroup, "red:web"),
        (v1::Kind::Policy, "red:first"),
        (v1::Kind::NetProfile, "red:gold"),
        (v1::Kind::Tenant, "red"),
    ] {
        let (_, oper) = client.get(kind, key).await.unwrap();
        assert_eq!(
            (oper.num_endpoints, oper.endpoints.as_slice()),
            (1, [first.clone()].as_slice()),
            "{key}"
        );
    }
    let (_, oper) = client.get(v1::Kind::Tenant, "red").await.unwrap();
    let totals = (oper.total_networks, oper.total_epgs, oper.total_policies, oper.total_endpoints);
    assert_eq!((totals, oper.total_netprofiles), ((1, 1, 1, 1), 1));
    client.delete(v1::Kind::Endpoint, "c1:eth0").await.unwrap();
    let (_, oper) = client.get(v1::Kind::Network, "red:net").await.unwrap();
    assert_eq!((oper.num_endpoints, oper.allocated_addresses_count), (0, 0));
    assert_eq!(oper.available_ip_addresses, "10.1.1.1-10.1.1.253");
}

#[tokio::test]
async fn every_refused_create_has_its_code_field_and_reason() {
    use Code::{AlreadyExists, FailedPrecondition, InvalidArgument, NotFound};
    let (_server, mut client) = Server::memory().await;
    populate(&mut client).await;
    client.create(Wire::Endpoint(endpoint("c1", "red", "net", "n1"))).await.unwrap();
    let net = |subnet| network("red", "net2", subnet);
    let tag = v1::Network { pkt_tag: 20000, ..net("10.2.1.0/24") };
    let v6 = v1::Network { ipv6_subnet: "2016::/128".into(), ..net("10.2.1.0/24") };
    let both = v1::Rule { direction: "both".into(), ..rule("red", "first", "2") };
    let changed = v1::Rule { direction: "out".into(), ..rule("red", "first", "1") };
    let taken =
        v1::Endpoint { ip_address: vec!["10.1.1.1".into()], ..endpoint("c2", "red", "net", "n1") };
    let bridge = v1::Global { fwd_mode: "bridge".into(), ..Default::default() };
    let node = v1::NodeInfo { node_name: "n9".into(), ..Default::default() };
    let orphan = group("red", "g", "none", &[]);
    let unlimited =
        v1::EndpointGroup { net_profile: "none".into(), ..group("red", "g", "net", &[]) };
    let small = v1::NetProfile { burst: 1, ..profile("red", "iron", "1g") };
    for (object, code, field, reason) in [
        (tenant("in_valid"), InvalidArgument, "tenantName", "a name has 1 to 64"),
        (Wire::Network(net("10.1.1.0/33")), InvalidArgument, "subnet", "subnet length 33 not"),
        (Wire::Network(net("10.1.1.0/24")), AlreadyExists, "subnet", "network net conflicts with"),
        (Wire::Network(tag), InvalidArgument, "pktTag", "requested vxlan is out of range"),
        (Wire::Network(v6), InvalidArgument, "ipv6Subnet", "subnet length 128 not supported"),
        (Wire::EndpointGroup(orphan), NotFound, "networkName", "Network none not found"),
        (Wire::EndpointGroup(unlimited), NotFound, "netProfile", "netprofile not found"),
        (Wire::NetProfile(small), InvalidArgument, "burst", "Invalid Burst size. burst size > 1"),
        (Wire::NetProfile(profile("red", "iron", "1t")), InvalidArgument, "bandwidth", "a bandw"),
        (Wire::NetProfile(profile("none", "iron", "")), NotFound, "tenantName", "Tenant not fou"),
        (Wire::Rule(both), InvalidArgument, "direction", "invalid direction for the rule"),
        (Wire::Rule(changed), AlreadyExists, "ruleId", "can not update a rule after its"),
        (Wire::Endpoint(taken), AlreadyExists, "ipAddress", "ip address 10.1.1.1 is not"),
        (Wire::Global(bridge), FailedPrecondition, "fwdMode", "Unable to update forwarding mode"),
        (Wire::Node(node), InvalidArgument, "object", "objects of this kind are made by"),
    ] {
        let refused = refusal(client.create(object).await);
        assert_eq!((refused.0, refused.1.as_str()), (code, field));
        assert!(refused.2.starts_with(reason), "{}", refused.2);
    }
    let empty = client.master.create(v1::CreateRequest::default()).await;
    assert_eq!(refusal(empty).1, "object");
}

#[tokio::test]
async fn refused_reads_updates_and_deletes_have_code_and_field_too() {
    let (_server, mut client) = Server::memory().await;
    populate(&mut client).await;
    let kind = client.master.get(v1::GetRequest { kind: 99, key: "x".into() }).await;
    assert_eq!(refusal(kind).1, "kind");
    let used = refusal(client.delete(v1::Kind::Network, "red:net").await);
    assert_eq!((used.0, used.1.as_str()), (Code::FailedPrecondition, "key"));
    let used = refusal(client.delete(v1::Kind::NetProfile, "red:gold").await);
    assert_eq!((used.0, used.2.as_str()), (Code::FailedPrecondition, "NetProfile is being used"));
    let unknown = refusal(client.get(v1::Kind::NetProfile, "red:none").await);
    assert_eq!((unknown.0, unknown.2.as_str()), (Code::NotFound, "netprofile not found"));
    let unknown = refusal(client.update(tenant("none")).await);
    assert_eq!((unknown.0, unknown.1.as_str()), (Code::NotFound, "tenantName"));
}

fn tenant_of(reply: v1::WriteReply) -> v1::Tenant {
    let Some(Wire::Tenant(tenant)) = reply.object.unwrap().kind else { panic!("a tenant") };
    tenant
}

#[tokio::test]
async fn an_update_of_a_tenant_changes_what_it_names_and_a_profile_is_replaced() {
    let (_server, mut client) = Server::memory().await;
    let named = |name: &str| v1::Tenant { tenant_name: name.into(), ..Default::default() };
    let blue = v1::Tenant {
        default_network: "net".into(),
        tracking: "stateless".into(),
        max_connections: Some(100),
        bandwidth: Some("1g".into()),
        ..named("blue")
    };
    let created = tenant_of(client.create(Wire::Tenant(blue)).await.unwrap());
    let defaults = (created.default_verdict.as_str(), created.on_deny.as_str());
    assert_eq!(
        (defaults, created.max_new_flows, created.burst),
        (("allow", "cut"), Some(0), Some(0))
    );
    let change = v1::Tenant {
        default_verdict: "deny".into(),
        max_connections: Some(0),
        bandwidth: Some(String::new()),
        ..named("blue")
    };
    let changed = tenant_of(client.update(Wire::Tenant(change.clone())).await.unwrap());
    let want = v1::Tenant {
        default_verdict: "deny".into(),
        max_connections: Some(0),
        bandwidth: Some(String::new()),
        ..created
    };
    assert_eq!(changed, want);
    let again =
        refusal(client.create(Wire::Tenant(v1::Tenant { burst: Some(9), ..named("blue") })).await);
    assert_eq!((again.0, again.1.as_str()), (Code::AlreadyExists, "defaultNetwork"));

    client.create(Wire::NetProfile(profile("blue", "gold", "5Mb"))).await.unwrap();
    let changed = v1::NetProfile { dscp: 9, burst: 1650, ..profile("blue", "gold", "900Mb") };
    client.create(Wire::NetProfile(changed.clone())).await.unwrap();
    let (stored, _) = client.get(v1::Kind::NetProfile, "blue:gold").await.unwrap();
    let shown = v1::NetProfile { scope: "endpoint".into(), ..changed };
    assert_eq!(stored, Wire::NetProfile(shown));
}

#[tokio::test]
async fn a_refusal_of_a_huge_value_still_reaches_the_client() {
    let (_server, mut client) = Server::memory().await;
    let refused = refusal(client.create(tenant(&"\u{e4}".repeat(1_000_000))).await);
    assert_eq!((refused.0, refused.1.as_str()), (Code::InvalidArgument, "tenantName"));
    let pool =
        v1::EndpointGroup { ip_pool: "x".repeat(1_000_000), ..group("default", "g", "n", &[]) };
    assert_eq!(refusal(client.create(Wire::EndpointGroup(pool)).await).1, "ipPool");
}

#[tokio::test]
async fn ipam_5_of_64_clients_that_ask_for_one_address_exactly_one_gets_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    populate(&mut client).await;
    let both = v1::Network {
        ipv6_subnet: "2016::/64".into(),
        ipv6_gateway: "2016::fe".into(),
        ..network("red", "both", "10.1.9.0/24")
    };
    client.create(Wire::Network(both)).await.unwrap();
    one_winner(&server, "net", ("10.1.1.77", 24, "10.1.1.254")).await;
    one_winner(&server, "both", ("2016::77", 64, "2016::fe")).await;
}

/// 64 clients ask for one address, which has a prefix length and a gateway.
async fn one_winner(server: &Server, network: &'static str, wanted: (&'static str, u32, &str)) {
    let ask = |owner: usize, mut client: Client| async move {
        let request = v1::AllocateAddressRequest {
            tenant_name: "red".into(),
            network_name: network.into(),
            preferred_address: wanted.0.into(),
            owner: format!("owner-{owner}"),
            ..Default::default()
        };
        client.master.allocate_address(request).await.map(tonic::Response::into_inner)
    };
    let mut asking = Vec::new();
    for owner in 0..64 {
        asking.push(tokio::spawn(ask(owner, server.client().await)));
    }
    let (mut winners, mut told) = (Vec::new(), BTreeSet::new());
    for answer in asking {
        match answer.await.unwrap() {
            Ok(reply) => winners.push(reply),
            Err(status) => {
                told.insert(refusal(Err::<(), _>(status)).2);
            }
        }
    }
    assert_eq!(winners.len(), 1);
    let got = &winners[0];
    assert_eq!((got.address.as_str(), got.prefix_length, got.gateway.as_str()), wanted);
    let key = format!("red:{network}:{}", wanted.0);
    let (lease, _) = server.client().await.get(v1::Kind::AddressLease, &key).await.unwrap();
    let Wire::AddressLease(lease) = lease else { panic!("a lease") };
    let reason = format!("ip address {} is not available: it belongs to {}", wanted.0, lease.owner);
    assert_eq!(told, BTreeSet::from([reason]), "every loser is told who has it");
}

fn ip(object: Wire) -> Vec<String> {
    let Wire::Endpoint(endpoint) = object else { panic!("an endpoint") };
    endpoint.ip_address
}

#[tokio::test]
async fn two_netmasters_on_one_store_never_give_one_address_twice() {
    let dir = tempfile::tempdir().unwrap();
    let store = redb(&dir);
    let servers = [Server::start(store.clone()).await, Server::start(store).await];
    let (mut one, mut other) = (servers[0].client().await, servers[1].client().await);
    populate(&mut one).await;
    for i in 0..40 {
        let ask =
            |which: &str| Wire::Endpoint(endpoint(&format!("{which}{i}"), "red", "net", "n1"));
        let (a, b) = tokio::join!(one.create(ask("a")), other.create(ask("b")));
        assert_ne!(a.unwrap().revision, b.unwrap().revision);
    }
    let addresses: BTreeSet<_> =
        one.list(v1::Kind::Endpoint, "").await.into_iter().map(ip).collect();
    assert_eq!(addresses.len(), 80, "no address was given twice");
    assert_eq!(one.everything().await, other.everything().await);
}

#[tokio::test]
async fn a_reserved_address_is_released_by_its_owner_only() {
    let (_server, mut client) = Server::memory().await;
    populate(&mut client).await;
    let request = v1::AllocateAddressRequest {
        tenant_name: "red".into(),
        network_name: "net".into(),
        owner: "me".into(),
        ..Default::default()
    };
    client.master.allocate_address(request).await.unwrap();
    let release = |owner: &str| v1::ReleaseAddressRequest {
        tenant_name: "red".into(),
        network_name: "net".into(),
        address: "10.1.1.1".into(),
        owner: owner.into(),
    };
    assert_eq!(refusal(client.master.release_address(release("other")).await).1, "owner");
    client.master.release_address(release("me")).await.unwrap();
    client.master.release_address(release("me")).await.unwrap();
    assert_eq!(client.list(v1::Kind::AddressLease, "").await, []);
}

#[tokio::test]
async fn a_restart_keeps_everything_and_identifiers_are_never_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    populate(&mut client).await;
    client.create(Wire::Endpoint(endpoint("c1", "red", "net", "n1"))).await.unwrap();
    let settings = v1::Global { vxlans: "1-16777215".into(), ..Default::default() };
    client.update(Wire::Global(settings)).await.unwrap();
    client.create(tenant("blue")).await.unwrap();
    client.delete(v1::Kind::Tenant, "blue").await.unwrap();
    let before = client.everything().await;
    drop(client);
    server.stop().await;
    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    assert_eq!(client.everything().await, before);
    let reply = client.create(tenant("blue")).await.unwrap();
    let Some(Wire::Tenant(blue)) = reply.object.unwrap().kind else { panic!("a tenant") };
    assert_eq!(blue.vrf, 4, "1 is default's, 2 red's, 3 was the old blue's");
    let reply = client.create(Wire::Endpoint(endpoint("c2", "red", "net", "n1"))).await.unwrap();
    let Some(Wire::Endpoint(second)) = reply.object.unwrap().kind else { panic!("an endpoint") };
    assert_eq!(second.ip_address, ["10.1.1.2"]);
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_its_write_whole() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(redb(&dir)).await;
    populate(&mut server.client().await).await;
    for i in 0..20 {
        let mut client = server.client().await;
        let id = format!("c{i}");
        let create = client.create(Wire::Endpoint(endpoint(&id, "red", "net", "n1")));
        // Cut off at some moment of the request.
        drop(tokio::time::timeout(std::time::Duration::from_micros(200 * i), create).await);
    }
    let mut client = server.client().await;
    let before = client.everything().await;
    let (_, oper) = client.get(v1::Kind::Network, "red:net").await.unwrap();
    assert_eq!(oper.num_endpoints, oper.allocated_addresses_count);
    drop(client);
    server.stop().await;
    let server = Server::start(redb(&dir)).await;
    let mut client = server.client().await;
    let after = client.everything().await;
    assert!(before.iter().all(|object| after.contains(object)), "what was seen is kept");
}

#[tokio::test]
async fn health_says_serving_and_reflection_knows_the_services() {
    let (server, client) = Server::memory().await;
    let mut health = HealthClient::new(client.channel.clone());
    for service in ["", "control.v1.NetMaster", "control.v1.Node"] {
        let request = HealthCheckRequest { service: service.into() };
        let status = health.check(request).await.unwrap().into_inner().status;
        assert_eq!(status, 1, "{service}");
    }
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(client.channel.clone());
    let stream = reflection.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    let answer = stream.into_inner().message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("a list") };
    let names: BTreeSet<_> = list.service.into_iter().map(|service| service.name).collect();
    assert!(
        names.contains("control.v1.NetMaster") && names.contains("control.v1.Node"),
        "{names:?}"
    );
    drop((client, health, reflection));
    server.stop().await;
}

/// Field and value of the refusal of a create.
async fn refused(client: &mut Client, kind: Wire) -> (String, String) {
    let (_, detail) = refusal_detail(client.create(kind).await);
    (detail.field, detail.value)
}

#[tokio::test]
async fn api_1_a_refusal_names_the_field_that_differs_and_the_value_that_was_sent() {
    let (_server, mut client) = Server::memory().await;
    populate(&mut client).await;
    let Wire::Network(net) = client.get(v1::Kind::Network, "red:net").await.unwrap().0 else {
        panic!("a network");
    };
    let net = v1::Network { pkt_tag: 0, bd: 0, ..net };
    for (other, field, value) in [
        (v1::Network { nw_type: "infra".into(), ..net.clone() }, "nwType", "infra"),
        (v1::Network { encap: "vlan".into(), ..net.clone() }, "encap", "vlan"),
        (v1::Network { pkt_tag: 4711, ..net.clone() }, "pktTag", "4711"),
        (
            v1::Network { subnet: "10.1.1.0/25".into(), gateway: String::new(), ..net.clone() },
            "subnet",
            "10.1.1.0/25",
        ),
        (v1::Network { gateway: "10.1.1.9".into(), ..net.clone() }, "gateway", "10.1.1.9"),
        (
            v1::Network { ipv6_subnet: "2001:db8:9::/64".into(), ..net.clone() },
            "ipv6Subnet",
            "2001:db8:9::/64",
        ),
        (v1::Network { cfgd_tag: "mine".into(), ..net.clone() }, "cfgdTag", "mine"),
        (v1::Network { offload: "off".into(), ..net.clone() }, "offload", "off"),
        (v1::Network { tenant_name: "nobody".into(), ..net.clone() }, "tenantName", "nobody"),
        (v1::Network { gateway: "192.0.2.1".into(), ..net.clone() }, "gateway", "192.0.2.1"),
    ] {
        let told = refused(&mut client, Wire::Network(other)).await;
        assert_eq!(told, (field.into(), value.into()));
    }
    let red = v1::Tenant { tenant_name: "red".into(), ..Default::default() };
    for (other, field, value) in [
        (v1::Tenant { default_network: "other".into(), ..red.clone() }, "defaultNetwork", "other"),
        (v1::Tenant { default_verdict: "deny".into(), ..red.clone() }, "defaultVerdict", "deny"),
        (v1::Tenant { tracking: "stateless".into(), ..red.clone() }, "tracking", "stateless"),
        (v1::Tenant { on_deny: "finish".into(), ..red.clone() }, "onDeny", "finish"),
        (v1::Tenant { max_connections: Some(7), ..red.clone() }, "maxConnections", "7"),
        (v1::Tenant { max_new_flows: Some(8), ..red.clone() }, "maxNewFlows", "8"),
        (v1::Tenant { offload: "off".into(), ..red.clone() }, "offload", "off"),
        (v1::Tenant { bandwidth: Some("3 Gbps".into()), ..red.clone() }, "bandwidth", "3 Gbps"),
        (v1::Tenant { on_deny: "maybe".into(), ..red.clone() }, "onDeny", "maybe"),
    ] {
        let told = refused(&mut client, Wire::Tenant(other)).await;
        assert_eq!(told, (field.into(), value.into()));
    }
    let grouped =
        v1::Endpoint { endpoint_group: "none".into(), ..endpoint("c", "red", "net", "n1") };
    let elsewhere = v1::Endpoint { homing_host: "n9".into(), ..endpoint("c", "red", "net", "n1") };
    for (other, field, value) in [
        (Wire::EndpointGroup(group("red", "g9", "nowhere", &[])), "networkName", "nowhere"),
        (Wire::EndpointGroup(group("red", "g9", "net", &["nothing"])), "policies", "nothing"),
        (policy("nobody", "p"), "tenantName", "nobody"),
        (Wire::Endpoint(endpoint("c", "red", "nowhere", "n1")), "networkName", "nowhere"),
        (Wire::Endpoint(endpoint("c", "nobody", "net", "n1")), "tenantName", "nobody"),
        (Wire::Endpoint(grouped), "endpointGroup", "none"),
        (Wire::Endpoint(elsewhere), "homingHost", "n9"),
    ] {
        assert_eq!(refused(&mut client, other).await, (field.into(), value.into()));
    }
    for (kind, key) in [
        (v1::Kind::Tenant, "nothing"),
        (v1::Kind::Policy, "red:nothing"),
        (v1::Kind::Network, "red:nothing"),
        (v1::Kind::Rule, "red:first:77"),
    ] {
        let (_, detail) = refusal_detail(client.delete(kind, key).await);
        assert_eq!((detail.field.as_str(), detail.value.as_str()), ("key", key));
    }
}
