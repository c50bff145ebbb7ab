//! Services, BGP, endpoints and what inspecting counts: `TestServicePreferredIP`,
//! `TestServiceProviderUpdate`, `TestServiceProviderUpdateServiceAdd`, `TestBgp`, `TestEPCreate`,
//! and `TestEndpointGroupInspect` and `TestPolicyInspect` of the integration tests.

use super::super::addresses::Obedient;
use super::*;

/// Endpoint `id` in a group or "", with a wanted address or "".
pub(super) fn member(id: &str, network: &str, group: &str, address: &str) -> Wire {
    Wire::Endpoint(v1::Endpoint {
        endpoint_group: group.into(),
        ip_address: Some(address.to_owned()).filter(|a| !a.is_empty()).into_iter().collect(),
        ..endpoint(id, "default", network, "n1")
    })
}

#[tokio::test]
async fn api_1_a_service_gets_its_address_and_finds_its_providers() {
    let (_server, mut client) = contiv().await;
    client.register("n1", "").await;
    client.create(Wire::Network(net("net", "10.1.1.0/24", "10.1.1.254"))).await.unwrap();
    client.create(Wire::Network(net("pods", "20.1.1.0/24", ""))).await.unwrap();
    let labels = vec!["key1=value1".to_owned(), "key2=value2".to_owned(), "k=v".to_owned()];
    let provider = |host: u8, labels: &[String]| {
        Wire::Endpoint(v1::Endpoint {
            labels: labels.to_vec(),
            ip_address: vec![format!("20.1.1.{host}")],
            ..endpoint(&format!("p{host}"), "default", "pods", "n1")
        })
    };
    for host in [1, 2] {
        client.create(provider(host, &labels)).await.unwrap();
    }
    let front =
        || v1::ServiceLb { ip_address: "10.1.1.3".into(), ..service("default", "a", "net") };
    let reply = client.create(Wire::ServiceLb(front())).await.unwrap();
    let Some(Wire::ServiceLb(stored)) = reply.object.unwrap().kind else { panic!("a service") };
    assert_eq!(stored.service_vip, "10.1.1.3");
    // Providers come at the same time, with the service there and before it.
    let mut later = JoinSet::new();
    for host in [3, 4] {
        let (mut client, provider) = (client.clone(), provider(host, &labels));
        later.spawn(async move { client.create(provider).await });
    }
    assert!(later.join_all().await.iter().all(Result::is_ok));
    assert_eq!(client.oper(v1::Kind::ServiceLb, "default:a").await.num_providers, 4);
    client.update(provider(1, &labels[..1])).await.unwrap();
    client.delete(v1::Kind::Endpoint, "p2").await.unwrap();
    assert_eq!(client.oper(v1::Kind::ServiceLb, "default:a").await.num_providers, 2);
    for (wrong, reason) in [
        (v1::ServiceLb { service_name: String::new(), ..front() }, "Invalid service name"),
        (v1::ServiceLb { selectors: vec![], ..front() }, "Invalid selector options"),
        (
            v1::ServiceLb { selectors: vec!["key1".into()], ..front() },
            "Invalid selector key1. selector format is key1=value1",
        ),
        (
            v1::ServiceLb { ports: vec!["80:8080:TCP".into(), "80".into()], ..front() },
            "Invalid Port maping . Port format is - Port:TargetPort:Protocol",
        ),
        (v1::ServiceLb { tenant_name: String::new(), ..front() }, "Invalid tenant name"),
        (v1::ServiceLb { tenant_name: "none".into(), ..front() }, "Tenant none not found"),
        (
            v1::ServiceLb { network_name: "none".into(), ..service("default", "b", "net") },
            "Network none not found",
        ),
    ] {
        assert_eq!(client.refused(Wire::ServiceLb(wrong)).await.1, reason);
    }
    let reason = client.kept(v1::Kind::Network, "default:net").await;
    assert_eq!(reason, "cannot delete net has 1 services ");
    client.delete(v1::Kind::ServiceLb, "default:a").await.unwrap();
    client.delete(v1::Kind::Network, "default:net").await.unwrap();
}

#[tokio::test]
async fn api_1_bgp_settings_are_stored_and_inspected() {
    let (_server, mut client) = Server::memory().await;
    client.create(Wire::Bgp(bgp("hostA"))).await.unwrap();
    let (stored, _) = client.get(v1::Kind::Bgp, "hostA").await.unwrap();
    assert_eq!(stored, Wire::Bgp(bgp("hostA")));
    let nameless = Wire::Bgp(bgp(""));
    assert_eq!(client.refused(nameless).await.1, "Invalid host name");
    let other = v1::Bgp { as_number: "600".into(), ..bgp("hostA") };
    client.update(Wire::Bgp(other.clone())).await.unwrap();
    assert_eq!(client.list(v1::Kind::Bgp, "").await, [Wire::Bgp(other)]);
    client.delete(v1::Kind::Bgp, "hostA").await.unwrap();
    assert_eq!(client.kept(v1::Kind::Bgp, "hostA").await, "Bgp config not found");
}

#[tokio::test]
async fn api_2_a_gateway_counts_as_allocated_and_not_as_an_endpoint() {
    let (_server, mut client) = contiv().await;
    client.register("n1", "").await;
    client.create(Wire::Network(net("net", "60.1.1.1/24", "60.1.1.254"))).await.unwrap();
    for (number, allocated) in (0..).zip([
        "60.1.1.254",
        "60.1.1.1, 60.1.1.254",
        "60.1.1.1-60.1.1.2, 60.1.1.254",
        "60.1.1.1-60.1.1.3, 60.1.1.254",
    ]) {
        let oper = client.oper(v1::Kind::Network, "default:net").await;
        assert_eq!((oper.num_endpoints, oper.allocated_ip_addresses.as_str()), (number, allocated));
        client.create(member(&format!("e{number}"), "net", "", "")).await.unwrap();
    }
    assert_eq!(client.refused(member("x", "net", "none", "")).await.1, "endpoint group not found");
    assert_eq!(client.refused(member("x", "none", "", "")).await.1, "network not found");
}

/// Endpoints of the network once its free addresses are `all`.
async fn freed(client: &mut Client, all: &str) -> u32 {
    loop {
        let network = client.oper(v1::Kind::Network, "default:net").await;
        if [&*network.allocated_ip_addresses, &network.available_ip_addresses] == ["", all] {
            return network.num_endpoints;
        }
    }
}

#[tokio::test]
async fn api_2_inspecting_counts_the_endpoints_of_groups_policies_and_tenants() {
    let (server, mut client) = contiv().await;
    let _node = Obedient::start(&server, "n1").await;
    client.create(Wire::Network(on(net("net", "10.1.1.0/24", ""), "vlan", 1))).await.unwrap();
    client.create(policy("default", "p")).await.unwrap();
    for name in ["a", "b"] {
        client.create(Wire::EndpointGroup(group("default", name, "net", &["p"]))).await.unwrap();
    }
    let all = "10.1.1.1-10.1.1.254";
    let (a, p, t) = (v1::Kind::EndpointGroup, v1::Kind::Policy, v1::Kind::Tenant);
    for (step, counts, texts) in [
        (None, [0, 0, 0], ["", all]),
        (Some(member("e1", "net", "a", "")), [1, 1, 1], ["10.1.1.1", "10.1.1.2-10.1.1.254"]),
        (
            Some(member("e2", "net", "b", "10.1.1.5")),
            [1, 2, 2],
            ["10.1.1.1, 10.1.1.5", "10.1.1.2-10.1.1.4, 10.1.1.6-10.1.1.254"],
        ),
        (
            Some(member("e3", "net", "", "10.1.1.2")),
            [1, 2, 3],
            ["10.1.1.1-10.1.1.2, 10.1.1.5", "10.1.1.3-10.1.1.4, 10.1.1.6-10.1.1.254"],
        ),
    ] {
        if let Some(step) = step {
            client.create(step).await.unwrap();
        }
        let group = client.oper(a, "default:a").await;
        let seen = [
            group.num_endpoints,
            client.oper(p, "default:p").await.num_endpoints,
            client.oper(t, "default").await.total_endpoints,
        ];
        assert_eq!((seen, group.pkt_tag), (counts, 1));
        // Without a pool of its own a group shows the network's.
        let network = client.oper(v1::Kind::Network, "default:net").await;
        for oper in [group, network] {
            let strings = [oper.allocated_ip_addresses, oper.available_ip_addresses];
            assert_eq!(strings, texts);
        }
    }
    let totals = client.oper(t, "default").await;
    assert_eq!((totals.total_networks, totals.total_epgs, totals.total_policies), (1, 2, 1));
    let reason = client.kept(a, "default:a").await;
    assert_eq!(reason, "Error: EPG a has active endpoints");
    for id in ["e1", "e2", "e3"] {
        client.delete(v1::Kind::Endpoint, id).await.unwrap();
    }
    // An address is free as soon as the node has said that it has forgotten who had it.
    let freed = freed(&mut client, all);
    assert_eq!(timeout(Duration::from_secs(20), freed).await, Ok(0));
}

#[tokio::test]
async fn ipam_2_pools_of_groups_are_accepted_refused_and_never_changed() {
    let (_server, mut client) = contiv().await;
    client.register("n1", "").await;
    client.create(Wire::Network(net("net", "10.3.1.0/24", ""))).await.unwrap();
    let pooled = |name: &str, pool: &str| {
        Wire::EndpointGroup(v1::EndpointGroup {
            ip_pool: pool.into(),
            ..group("default", name, "net", &[])
        })
    };
    for (name, pool, first) in [
        ("g1", "10.3.1.10-10.3.1.20", "10.3.1.10"),
        ("g2", "10.3.1.40-10.3.1.42", "10.3.1.40"),
        ("g3", "10.3.1.110-10.3.1.120", "10.3.1.110"),
    ] {
        client.create(pooled(name, pool)).await.unwrap();
        client.create(member(name, "net", name, "")).await.unwrap();
        let oper = client.oper(v1::Kind::EndpointGroup, &format!("default:{name}")).await;
        assert_eq!(oper.allocated_ip_addresses, first);
    }
    for bad in [
        "10.3.1.0-10.3.1.20",
        "10.3.1.254-10.3.1.255",
        "10.3.1.110-10.3.1.320",
        "10.3.2.0-10.3.2.20",
        "10.3.2.0/24",
        "10.3.1.15-10.3.1.30",
        "2016::1-2016::9",
    ] {
        assert_eq!(client.refused(pooled("bad", bad)).await.0, "ipPool", "{bad}");
    }
    for changed in ["10.3.1.30-10.3.1.50", "", "10.3.1.1-19.3.1.21"] {
        assert_eq!(client.refused(pooled("g1", changed)).await.0, "ipPool", "{changed}");
    }
}
