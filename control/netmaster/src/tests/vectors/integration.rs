//! The exact values of Contiv's integration tests (`test/integration`), over gRPC:
//! `TestEndpointCreateDelete`, `TestEndpointCreateDeleteParallel`, `TestEndpointGroupCreateDelete`,
//! `TestEndpointGroupIPPoolCreateDelete`, `TestTenantCreateDelete`. Those of profiles are end-to-end
//! tests.

use super::super::addresses::Obedient;
use super::kept::member;
use super::*;

const WHOLE: &str = "10.1.1.1-10.1.1.254";

/// What a network or a group shows: allocated and available addresses.
async fn texts(client: &mut Client, kind: v1::Kind, key: &str) -> [String; 2] {
    let oper = client.oper(kind, key).await;
    [oper.allocated_ip_addresses, oper.available_ip_addresses]
}

/// Waits until a network or a group shows this: an address is free as soon as the node has said that
/// it has forgotten who had it.
async fn shows(client: &mut Client, (kind, key): (v1::Kind, &str), expected: [&str; 2]) {
    let shown = async { while texts(client, kind, key).await != expected {} };
    let in_time = timeout(Duration::from_secs(20), shown).await.is_ok();
    assert!(in_time, "{key}: {:?}, expected {expected:?}", texts(client, kind, key).await);
}

fn pooled(name: &str, network: &str, pool: &str) -> Wire {
    let group = group("default", name, network, &[]);
    Wire::EndpointGroup(v1::EndpointGroup { ip_pool: pool.into(), ..group })
}

async fn delete_endpoint(client: &mut Client, id: &str) {
    client.delete(v1::Kind::Endpoint, id).await.unwrap();
}

#[tokio::test]
async fn api_2_endpoints_come_and_go_with_contivs_texts() {
    let (server, mut client) = contiv().await;
    let _node = Obedient::start(&server, "n1").await;
    client.create(Wire::Network(on(net("net", "10.1.1.0/24", ""), "vlan", 1))).await.unwrap();
    let network = (v1::Kind::Network, "default:net");
    for (endpoint, count, expected) in [
        (None, 0, ["", WHOLE]),
        (Some(member("e1", "net", "", "")), 1, ["10.1.1.1", "10.1.1.2-10.1.1.254"]),
        (
            Some(member("e2", "net", "", "10.1.1.5")),
            2,
            ["10.1.1.1, 10.1.1.5", "10.1.1.2-10.1.1.4, 10.1.1.6-10.1.1.254"],
        ),
    ] {
        if let Some(endpoint) = endpoint {
            client.create(endpoint).await.unwrap();
        }
        assert_eq!(texts(&mut client, network.0, network.1).await, expected);
        let oper = client.oper(network.0, network.1).await;
        assert_eq!((oper.num_endpoints, oper.pkt_tag), (count, 1));
    }
    for id in ["e1", "e2"] {
        delete_endpoint(&mut client, id).await;
    }
    shows(&mut client, network, ["", WHOLE]).await;
}

#[tokio::test]
async fn api_2_endpoints_that_come_at_once_get_the_first_addresses() {
    const AT_ONCE: usize = 20;
    let (server, mut client) = contiv().await;
    let _node = Obedient::start(&server, "n1").await;
    client.create(Wire::Network(net("net", "10.1.1.0/24", ""))).await.unwrap();
    let network = (v1::Kind::Network, "default:net");
    let mut creates = JoinSet::new();
    for number in 0..AT_ONCE {
        let mut client = client.clone();
        creates.spawn(
            async move { client.create(member(&format!("e{number}"), "net", "", "")).await },
        );
    }
    assert!(creates.join_all().await.iter().all(Result::is_ok));
    let allocated = format!("10.1.1.1-10.1.1.{AT_ONCE}");
    let available = format!("10.1.1.{}-10.1.1.254", AT_ONCE + 1);
    assert_eq!(texts(&mut client, network.0, network.1).await, [allocated, available]);
    let mut deletes = JoinSet::new();
    for number in 0..AT_ONCE {
        let mut client = client.clone();
        deletes.spawn(async move { delete_endpoint(&mut client, &format!("e{number}")).await });
    }
    deletes.join_all().await;
    shows(&mut client, network, ["", WHOLE]).await;
}

#[tokio::test]
async fn api_2_a_group_whose_pool_is_all_that_is_available_shows_just_that() {
    let (_server, mut client) = contiv().await;
    for (subnet, available) in [
        ("10.100.100.194-10.100.100.222/27", "10.100.100.194-10.100.100.222"),
        ("10.1.1.5-10.1.1.15/27", "10.1.1.5-10.1.1.15"),
        ("10.1.1.0/27", "10.1.1.1-10.1.1.30"),
        ("10.1.1.0/28", "10.1.1.1-10.1.1.14"),
        ("10.1.1.0/29", "10.1.1.1-10.1.1.6"),
        ("10.1.1.0/30", "10.1.1.1-10.1.1.2"),
        ("10.1.1.0/31", ""),
    ] {
        client.create(Wire::Network(net("net", subnet, ""))).await.unwrap();
        let shown = texts(&mut client, v1::Kind::Network, "default:net").await;
        assert_eq!(shown, ["", available], "{subnet}");
        client.create(pooled("g", "net", available)).await.unwrap();
        let shown = texts(&mut client, v1::Kind::EndpointGroup, "default:g").await;
        assert_eq!(shown, ["", available], "{subnet}");
        client.delete(v1::Kind::EndpointGroup, "default:g").await.unwrap();
        client.delete(v1::Kind::Network, "default:net").await.unwrap();
    }
}

#[tokio::test]
async fn api_2_a_pool_of_one_address_is_exhausted_by_the_second_endpoint() {
    let (_server, mut client) = contiv().await;
    client.register("n1", "").await;
    client.create(Wire::Network(net("net", "10.3.1.0/24", ""))).await.unwrap();
    client.create(pooled("one", "net", "10.3.1.11-10.3.1.11")).await.unwrap();
    client.create(member("first", "net", "one", "")).await.unwrap();
    let (_, reason) = client.refused(member("second", "net", "one", "")).await;
    let text = "auto allocation failed - address exhaustion in pool 10.3.1.11-10.3.1.11";
    assert_eq!(reason, text);
}

/// Of group `epgC-N` after an endpoint was created in it and after that was deleted, and of the
/// network after the group was: allocated and available.
const MIXED: [(&str, [[&str; 2]; 3]); 6] = [
    (
        "",
        [
            ["10.2.2.1, 10.2.2.5-10.2.2.180", "10.2.2.2-10.2.2.4, 10.2.2.181-10.2.2.254"],
            ["10.2.2.2, 10.2.2.5-10.2.2.180", "10.2.2.1, 10.2.2.3-10.2.2.4, 10.2.2.181-10.2.2.254"],
            ["10.2.2.5-10.2.2.180", "10.2.2.1-10.2.2.4, 10.2.2.181-10.2.2.254"],
        ],
    ),
    (
        "10.2.2.5-10.2.2.10",
        [
            ["10.2.2.5", "10.2.2.6-10.2.2.10"],
            ["", "10.2.2.5-10.2.2.10"],
            ["10.2.2.11-10.2.2.180", "10.2.2.1-10.2.2.10, 10.2.2.181-10.2.2.254"],
        ],
    ),
    (
        "10.2.2.11-10.2.2.30",
        [
            ["10.2.2.11", "10.2.2.12-10.2.2.30"],
            ["", "10.2.2.11-10.2.2.30"],
            ["10.2.2.31-10.2.2.180", "10.2.2.1-10.2.2.30, 10.2.2.181-10.2.2.254"],
        ],
    ),
    (
        "",
        [
            ["10.2.2.1-10.2.2.2, 10.2.2.5-10.2.2.180", "10.2.2.3-10.2.2.4, 10.2.2.181-10.2.2.254"],
            ["10.2.2.5-10.2.2.180", "10.2.2.1-10.2.2.4, 10.2.2.181-10.2.2.254"],
            ["10.2.2.31-10.2.2.180", "10.2.2.1-10.2.2.30, 10.2.2.181-10.2.2.254"],
        ],
    ),
    (
        "10.2.2.31-10.2.2.132",
        [
            ["10.2.2.31", "10.2.2.32-10.2.2.132"],
            ["", "10.2.2.31-10.2.2.132"],
            ["10.2.2.133-10.2.2.180", "10.2.2.1-10.2.2.132, 10.2.2.181-10.2.2.254"],
        ],
    ),
    (
        "10.2.2.133-10.2.2.180",
        [
            ["10.2.2.133", "10.2.2.134-10.2.2.180"],
            ["", "10.2.2.133-10.2.2.180"],
            ["", "10.2.2.1-10.2.2.254"],
        ],
    ),
];

#[tokio::test]
async fn ipam_2_mixed_pools_show_contivs_table_over_the_api() {
    let (server, mut client) = contiv().await;
    let _node = Obedient::start(&server, "n1").await;
    client.create(Wire::Network(net("net", "10.2.2.0/24", ""))).await.unwrap();
    let names: Vec<_> = (0..MIXED.len()).map(|number| format!("epgC-{number}")).collect();
    for (name, (pool, _)) in names.iter().zip(MIXED) {
        client.create(pooled(name, "net", pool)).await.unwrap();
    }
    let network = (v1::Kind::Network, "default:net");
    let all = ["10.2.2.5-10.2.2.180", "10.2.2.1-10.2.2.4, 10.2.2.181-10.2.2.254"];
    assert_eq!(texts(&mut client, network.0, network.1).await, all);
    let keys: Vec<_> = names.iter().map(|name| format!("default:{name}")).collect();
    for ((name, key), (_, [allocated, ..])) in names.iter().zip(&keys).zip(MIXED) {
        client.create(member(name, "net", name, "")).await.unwrap();
        shows(&mut client, (v1::Kind::EndpointGroup, key), allocated).await;
    }
    for ((name, key), (_, [_, freed, _])) in names.iter().zip(&keys).zip(MIXED) {
        delete_endpoint(&mut client, name).await;
        shows(&mut client, (v1::Kind::EndpointGroup, key), freed).await;
    }
    for (key, (_, [.., deleted])) in keys.iter().zip(MIXED) {
        client.delete(v1::Kind::EndpointGroup, key).await.unwrap();
        shows(&mut client, network, deleted).await;
    }
}

#[tokio::test]
async fn api_2_a_tenants_totals_are_those_of_contivs_test() {
    let (_server, mut client) = contiv().await;
    client.register("n1", "").await;
    client.create(tenant("TestTenant")).await.unwrap();
    client.create(Wire::Network(network("TestTenant", "net", "20.1.1.0/24"))).await.unwrap();
    for name in ["epgA", "epgB"] {
        client.create(Wire::EndpointGroup(group("TestTenant", name, "net", &[]))).await.unwrap();
    }
    let ours = |id: &str, group: &str, wanted: &str| {
        let ip_address = Some(wanted.to_owned()).filter(|ip| !ip.is_empty()).into_iter().collect();
        let endpoint = endpoint(id, "TestTenant", "net", "n1");
        Wire::Endpoint(v1::Endpoint { endpoint_group: group.into(), ip_address, ..endpoint })
    };
    let mut addresses = Vec::new();
    for (number, endpoint) in (1..).zip([
        ours("e1", "epgA", ""),
        ours("e2", "epgB", "20.1.1.2"),
        ours("e3", "", "20.1.1.3"),
    ]) {
        let reply = client.create(endpoint).await.unwrap();
        let Some(Wire::Endpoint(made)) = reply.object.unwrap().kind else { panic!("an endpoint") };
        addresses.extend(made.ip_address);
        let totals = client.oper(v1::Kind::Tenant, "TestTenant").await;
        let seen = (totals.total_networks, totals.total_epgs, totals.total_endpoints);
        assert_eq!(seen, (1, 2, number));
    }
    assert_eq!(addresses, ["20.1.1.1", "20.1.1.2", "20.1.1.3"]);
    for id in ["e1", "e2", "e3"] {
        delete_endpoint(&mut client, id).await;
    }
    assert_eq!(client.oper(v1::Kind::Tenant, "TestTenant").await.total_endpoints, 0);
}
