//! Contiv's defects that its API shows (`docs/contiv.md` has the list), where no vector is about them.

use super::super::addresses::Obedient;
use super::*;

#[tokio::test]
async fn d01_a_taken_address_is_given_to_nobody_else_and_its_owner_is_named() {
    let (_server, mut client) = contiv().await;
    client.register("n1", "").await;
    client.create(Wire::Network(net("net", "10.1.1.0/24", ""))).await.unwrap();
    let wanting = |id: &str| {
        let ip_address = vec!["10.1.1.5".to_owned()];
        Wire::Endpoint(v1::Endpoint { ip_address, ..endpoint(id, "default", "net", "n1") })
    };
    client.create(wanting("first")).await.unwrap();
    let status = client.create(wanting("second")).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("it belongs to endpoint first"), "{}", status.message());
    let (_, network) = client.get(v1::Kind::Network, "default:net").await.unwrap();
    assert_eq!((network.num_endpoints, network.allocated_addresses_count), (1, 1));
}

/// Contiv gives an IPv6 address back by the place it has in the IPv4 subnet.
#[tokio::test]
async fn d02_an_ipv6_address_comes_back_with_its_endpoint() {
    let (server, mut client) = contiv().await;
    let node = Obedient::start(&server, "n1").await;
    let both = v1::Network { ipv6_subnet: "2016::/64".into(), ..net("net", "10.1.1.0/24", "") };
    client.create(Wire::Network(both)).await.unwrap();
    let asked = ["10.1.1.9", "2016::5"];
    for _ in 0..3 {
        let pod = v1::Endpoint {
            ip_address: asked.map(str::to_owned).to_vec(),
            ..endpoint("pod", "default", "net", "n1")
        };
        let reply = client.create(Wire::Endpoint(pod)).await.unwrap();
        let Some(Wire::Endpoint(pod)) = reply.object.unwrap().kind else { panic!("an endpoint") };
        assert_eq!(pod.ip_address, asked);
        let oper = client.oper(v1::Kind::Network, "default:net").await;
        assert_eq!(oper.allocated_ipv6_addresses, "2016::5");
        assert_eq!((oper.num_endpoints, oper.allocated_addresses_count), (1, 2));
        assert_eq!(oper.not_in_force, "");
        client.delete(v1::Kind::Endpoint, "pod").await.unwrap();
    }
    drop(node);
}

#[tokio::test]
async fn d12_one_address_in_two_tenants_has_two_macs() {
    let (_server, mut client) = contiv().await;
    client.register("n1", "").await;
    let mut macs = Vec::new();
    for name in ["red", "blue"] {
        client.create(tenant(name)).await.unwrap();
        client.create(Wire::Network(network(name, "net", "10.1.1.0/24"))).await.unwrap();
        let pod = endpoint(&format!("{name}-pod"), name, "net", "n1");
        let reply = client.create(Wire::Endpoint(pod)).await.unwrap();
        let Some(Wire::Endpoint(pod)) = reply.object.unwrap().kind else { panic!("an endpoint") };
        assert_eq!(pod.ip_address, ["10.1.1.1"]);
        macs.push(pod.mac_address);
    }
    assert_ne!(macs[0], macs[1]);
}

#[tokio::test]
async fn d18_a_delete_that_fails_is_named_and_stops_no_other_half_way() {
    let (_server, mut client) = contiv().await;
    client.create(Wire::Network(net("net", "10.1.1.0/24", ""))).await.unwrap();
    for name in ["a", "b", "c"] {
        client.create(policy("default", name)).await.unwrap();
    }
    client.create(Wire::EndpointGroup(group("default", "g", "net", &["b"]))).await.unwrap();
    let before = client.everything().await;
    let all = ["default:a", "default:b", "default:c"].map(|key| (v1::Kind::Policy, key));
    let status = client.apply(vec![], &all).await.unwrap_err();
    let detail = v1::ErrorDetail::decode(status.details()).unwrap();
    assert_eq!(
        (detail.object.as_str(), detail.reason.as_str()),
        ("policy default:b", "Policy is being used")
    );
    assert_eq!(client.everything().await, before);
    client.apply(vec![], &[all[0], all[2]]).await.unwrap();
}

/// Everything of a tenant that a list can show.
async fn belongings(client: &mut Client, name: &str) {
    client.create(tenant(name)).await.unwrap();
    client.create(Wire::Network(network(name, "net", "10.1.1.0/24"))).await.unwrap();
    client.create(policy(name, "p")).await.unwrap();
    client.create(Wire::Rule(rule(name, "p", "1"))).await.unwrap();
    client.create(Wire::NetProfile(profile(name, "gold", "1g"))).await.unwrap();
    client.create(Wire::EndpointGroup(group(name, "g", "net", &["p"]))).await.unwrap();
    client.create(Wire::AppProfile(app_profile(name, "shop", &["g"]))).await.unwrap();
    client.create(Wire::ServiceLb(service(name, "front", "net"))).await.unwrap();
    let pod = endpoint(&format!("{name}-pod"), name, "net", "n1");
    client.create(Wire::Endpoint(pod)).await.unwrap();
    let lease = v1::AddressLease {
        tenant_name: name.into(),
        network_name: "net".into(),
        address: "10.1.1.77".into(),
        owner: "me".into(),
        ..Default::default()
    };
    client.create(Wire::AddressLease(lease)).await.unwrap();
}

fn tenant_name(object: &Wire) -> Option<&str> {
    match object {
        Wire::Tenant(o) => Some(&o.tenant_name),
        Wire::Network(o) => Some(&o.tenant_name),
        Wire::EndpointGroup(o) => Some(&o.tenant_name),
        Wire::Policy(o) => Some(&o.tenant_name),
        Wire::Rule(o) => Some(&o.tenant_name),
        Wire::Endpoint(o) => Some(&o.tenant_name),
        Wire::AddressLease(o) => Some(&o.tenant_name),
        Wire::NetProfile(o) => Some(&o.tenant_name),
        Wire::ServiceLb(o) => Some(&o.tenant_name),
        Wire::AppProfile(o) => Some(&o.tenant_name),
        Wire::Global(_) | Wire::Node(_) | Wire::Bgp(_) => None,
    }
}

#[tokio::test]
async fn d23_a_list_for_a_tenant_has_all_of_it_and_nothing_of_another() {
    let (_server, mut client) = contiv().await;
    client.register("n1", "").await;
    client.create(Wire::Bgp(bgp("hostA"))).await.unwrap();
    for name in ["red", "blue"] {
        belongings(&mut client, name).await;
    }
    let mut kinds_count = 0;
    for number in 1.. {
        let Ok(kind) = v1::Kind::try_from(number) else { break };
        kinds_count += 1;
        let shared = matches!(kind, v1::Kind::Global | v1::Kind::Node | v1::Kind::Bgp);
        for name in ["red", "blue"] {
            let list = client.list(kind, name).await;
            assert_eq!(list.len(), 1, "{kind:?} of {name}: {list:?}");
            let owner = tenant_name(&list[0]);
            assert_eq!(owner, Some(name).filter(|_| !shared), "{kind:?}");
        }
    }
    assert_eq!(kinds_count, 13, "every kind");
}
