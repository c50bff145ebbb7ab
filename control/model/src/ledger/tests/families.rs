//! IPv6 addresses beside IPv4 ones: the same rules, and pools of their own.

use super::*;

const NET: &str = "default:net";

/// A network with both families, and one without IPv6.
fn dual() -> Ledger {
    let both = with_ipv6(network(NET, "10.1.1.0/24 10.1.1.254", "vxlan"), "2016::/64", "2016::fe");
    ledger([both, network("default:old", "10.1.2.0/24", "vxlan")])
}

fn of(outcome: &Outcome) -> Vec<String> {
    let Object::Endpoint(endpoint) = &outcome.object else { panic!("an endpoint") };
    endpoint.addresses().map(|address| address.to_string()).collect()
}

/// Allocated IPv6 addresses.
fn allocated6(ledger: &Ledger) -> String {
    let holdings = ledger.holdings(&NetworkKey::parse("key", NET).unwrap()).unwrap();
    holdings.network6().unwrap().allocated()
}

#[test]
fn d02_an_endpoint_gets_and_gives_back_an_address_of_each_family() {
    let mut ledger = dual();
    let first = ledger.create(endpoint("a", NET, "", "", "n1")).unwrap();
    assert_eq!(of(&first), ["10.1.1.1", "2016::1"]);
    let asked = ledger.create(endpoint("b", NET, "", "2016::5", "n1")).unwrap();
    assert_eq!(of(&asked), ["10.1.1.2", "2016::5"]);
    assert_eq!(allocated6(&ledger), "2016::1, 2016::5, 2016::fe");
    let single = ledger.create(endpoint("c", "default:old", "", "", "n1")).unwrap();
    assert_eq!(of(&single), ["10.1.2.1"]);
    let again = ledger.create(endpoint("b", NET, "", "", "n1")).unwrap();
    assert_eq!((of(&again), again.changes), (of(&asked), vec![]));
    for id in ["a", "b"] {
        let changes = leave(&mut ledger, Kind::Endpoint, id).unwrap();
        assert_eq!(changes.len(), 3, "the endpoint goes, both addresses are on their way back");
    }
    assert_eq!(allocated6(&ledger), "2016::1, 2016::5, 2016::fe");
    assert_eq!(rebuilt(&ledger), ledger);
    let_go(&mut ledger);
    assert_eq!(allocated6(&ledger), "2016::fe");
    assert_eq!(texts(&ledger, NET).0, "10.1.1.254");
}

#[test]
fn ipam_5_a_second_asker_of_an_ipv6_address_is_told_who_has_it_and_gets_nothing() {
    let mut ledger = dual();
    ledger.create(endpoint("a:eth0", NET, "", "2016::5", "n1")).unwrap();
    for (wanted, reason) in [
        ("2016::5", "ip address 2016::5 is not available: it belongs to endpoint a:eth0"),
        ("2016::fe", "ip address 2016::fe is not available: it belongs to the gateway"),
    ] {
        let refused = refuse(&mut ledger, endpoint("b:eth0", NET, "", wanted, "n2"));
        assert_eq!((refused.field, refused.class()), ("ipAddress", Class::Exists));
        assert_eq!(refused.to_string(), reason, "and no IPv4 address either");
    }
    for (network, wanted, reason) in [
        (NET, "2017::5", "ip address 2017::5 is not one of 2016::/64"),
        ("default:old", "2016::5", "network old hands out no IPv6 addresses"),
    ] {
        let refused = refuse(&mut ledger, endpoint("b:eth0", network, "", wanted, "n2"));
        assert_eq!((refused.to_string().as_str(), refused.value.as_str()), (reason, wanted));
    }
    let other = refuse(&mut ledger, endpoint("a:eth0", NET, "", "2016::6", "n1"));
    assert_eq!((other.field, other.value.as_str()), ("ipAddress", "2016::6"));
}

#[test]
fn ipam_3_addresses_of_both_families_are_reserved_for_a_name() {
    let mut ledger = dual();
    ledger.create(lease(NET, "", "2016::77", "web-1")).unwrap();
    ledger.create(lease(NET, "", "10.1.1.7", "web-1")).unwrap();
    for (id, node) in [("c1:eth0", "n1"), ("c2:eth0", "n2")] {
        let web = ledger.create(named(endpoint(id, NET, "", "", node), "web-1")).unwrap();
        assert_eq!(of(&web), ["10.1.1.7", "2016::77"], "{id} on {node}");
        leave(&mut ledger, Kind::Endpoint, id).unwrap();
        assert_eq!(rebuilt(&ledger), ledger);
    }
    let stolen = refuse(&mut ledger, endpoint("x", NET, "", "2016::77", "n1"));
    assert_eq!(stolen.to_string(), "ip address 2016::77 is not available: it belongs to web-1");
    let again = ledger.create(lease(NET, "", "2016::77", "web-1")).unwrap();
    assert_eq!((address_of(&again), again.changes), ("2016::77".into(), vec![]));
    let key = LeaseKey::parse("key", "default:net:2016::77").unwrap();
    let owner = Owner::parse("owner", "web-1").unwrap();
    ledger.release(&key, Some(&owner)).unwrap();
    let_go(&mut ledger);
    assert_eq!(allocated6(&ledger), "2016::fe");
}

#[test]
fn ipam_2_a_group_has_a_pool_of_each_family_or_of_one() {
    let mut ledger = dual();
    for (name, pools, first) in [
        ("both", "10.1.1.10-10.1.1.20 2016::10-2016::1f", ["10.1.1.10", "2016::10"]),
        ("six", "2016::40-2016::40", ["10.1.1.1", "2016::40"]),
        ("four", "10.1.1.40-10.1.1.41", ["10.1.1.40", "2016::1"]),
    ] {
        ledger.create(group(&format!("default:{name}"), "net", pools, &[])).unwrap();
        let outcome = ledger.create(endpoint(name, NET, name, "", "n1")).unwrap();
        assert_eq!(of(&outcome), first);
    }
    let full = refuse(&mut ledger, endpoint("six2", NET, "six", "", "n1"));
    assert_eq!(
        full.to_string(),
        "auto allocation failed - address exhaustion in pool 2016::40-2016::40"
    );
    for (net, pools, field, reason) in [
        (
            "net",
            "10.1.1.50 2017::1-2017::9",
            "ipv6Pool",
            "bad ip-pool 2017::1-2017::9, EPG ip-pool must be a subset of network 2016::/64",
        ),
        ("net", "10.1.1.50 2016::1f-2016::2f", "ipv6Pool", "ip address 2016::1f is not available"),
        ("net", "10.1.1.5-10.1.1.12 2016::50", "ipPool", "ip address 10.1.1.10 is not available"),
        ("old", "2016::1-2016::9", "ipv6Pool", "network old hands out no IPv6 addresses"),
    ] {
        let refused = refuse(&mut ledger, group("default:x", net, pools, &[]));
        assert_eq!((refused.field, refused.to_string().as_str()), (field, reason));
    }
    let moved = refuse(&mut ledger, group("default:six", "net", "2016::40-2016::41", &[]));
    assert_eq!((moved.field, moved.reason), ("ipv6Pool", Reason::GroupPoolImmutable));
    assert_eq!(rebuilt(&ledger), ledger);
    for name in ["both", "six", "four"] {
        delete(&mut ledger, Kind::Endpoint, name).unwrap();
        delete(&mut ledger, Kind::EndpointGroup, &format!("default:{name}")).unwrap();
    }
    assert_eq!(
        (allocated6(&ledger).as_str(), texts(&ledger, NET).0.as_str()),
        ("2016::fe", "10.1.1.254")
    );
}

#[test]
fn a_network_whose_ipv6_block_has_no_host_gives_ipv4_addresses_alone() {
    let multicast = with_ipv6(network(NET, "10.1.1.0/24", "vxlan"), "ffff:ffff:ffff::/48", "");
    let mut ledger = ledger([multicast]);
    assert_eq!(of(&ledger.create(endpoint("a", NET, "", "", "n1")).unwrap()), ["10.1.1.1"]);
}

#[test]
fn networks_may_share_an_ipv6_block_by_ranges() {
    let mut ledger = ledger([]);
    let mut net = |name: &str, third: u8, subnet6: &str, gateway6: &str| {
        let plain = network(&format!("default:{name}"), &format!("10.1.{third}.0/24"), "vxlan");
        ledger.create(with_ipv6(plain, subnet6, gateway6))
    };
    net("a", 1, "2016::10-2016::2f/64", "2016::fe").unwrap();
    net("b", 2, "2016::30-2016::4f/64", "").unwrap();
    for (subnet6, gateway6) in [
        ("2016::4f-2016::50/64", ""),
        ("2016::50-2016::fe/64", ""),
        ("2016::50-2016::5f/64", "2016::10"),
        ("2016::/64", ""),
    ] {
        let refused = net("c", 3, subnet6, gateway6).unwrap_err();
        assert_eq!(refused.field, "ipv6Subnet", "{subnet6}: {refused}");
    }
}
