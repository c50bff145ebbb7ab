//! Addresses of networks and groups, reservations and MACs.

use super::*;

#[test]
fn api_2_allocated_and_available_texts_of_contivs_endpoint_test() {
    let mut ledger = ledger([network("default:net", "10.1.1.0/24", "vxlan")]);
    let all = (String::new(), "10.1.1.1-10.1.1.254".to_owned());
    assert_eq!(texts(&ledger, "default:net"), all);
    let first = ledger.create(endpoint("a", "default:net", "", "", "n1")).unwrap();
    assert_eq!(address_of(&first), "10.1.1.1");
    assert_eq!(texts(&ledger, "default:net"), ("10.1.1.1".into(), "10.1.1.2-10.1.1.254".into()));
    ledger.create(endpoint("b", "default:net", "", "10.1.1.5", "n1")).unwrap();
    let both = ("10.1.1.1, 10.1.1.5".into(), "10.1.1.2-10.1.1.4, 10.1.1.6-10.1.1.254".into());
    assert_eq!(texts(&ledger, "default:net"), both);
    delete(&mut ledger, Kind::Endpoint, "a").unwrap();
    delete(&mut ledger, Kind::Endpoint, "b").unwrap();
    assert_eq!(texts(&ledger, "default:net"), all);
    ledger.create(network("default:gw", "60.1.1.1/24 60.1.1.254", "vxlan")).unwrap();
    for expected in [
        "60.1.1.254",
        "60.1.1.1, 60.1.1.254",
        "60.1.1.1-60.1.1.2, 60.1.1.254",
        "60.1.1.1-60.1.1.3, 60.1.1.254",
    ] {
        assert_eq!(texts(&ledger, "default:gw").0, expected);
        ledger
            .create(endpoint(expected.split(',').next().unwrap(), "default:gw", "", "", "n1"))
            .unwrap();
    }
    assert_eq!(
        refuse(&mut ledger, endpoint("z", "default:gw", "none", "", "n1")).field,
        "endpointGroup"
    );
}

#[test]
fn ipam_2_group_pools_behave_as_in_contivs_tables() {
    let mut ledger = ledger([network("default:net", "10.3.1.0/24", "vxlan")]);
    for (name, pool, first) in [
        ("a", "10.3.1.10-10.3.1.20", "10.3.1.10"),
        ("b", "10.3.1.40-10.3.1.42", "10.3.1.40"),
        ("c", "10.3.1.110-10.3.1.120", "10.3.1.110"),
        ("d", "10.3.1.30-10.3.1.30", "10.3.1.30"),
    ] {
        ledger.create(group(&format!("default:{name}"), "net", pool, &[])).unwrap();
        let outcome = ledger.create(endpoint(name, "default:net", name, "", "n1")).unwrap();
        assert_eq!(address_of(&outcome), first);
    }
    let full = refuse(&mut ledger, endpoint("d2", "default:net", "d", "", "n1"));
    assert_eq!(
        full.to_string(),
        "auto allocation failed - address exhaustion in pool 10.3.1.30-10.3.1.30"
    );
    for bad in ["10.3.1.0-10.3.1.5", "10.3.1.254-10.3.1.255", "10.3.2.0-10.3.2.20"] {
        let refused = refuse(&mut ledger, group("default:x", "net", bad, &[]));
        assert_eq!(
            refused.to_string(),
            format!("bad ip-pool {bad}, EPG ip-pool must be a subset of network 10.3.1.0/24")
        );
    }
    let taken = refuse(&mut ledger, group("default:x", "net", "10.3.1.5-10.3.1.12", &[]));
    assert_eq!(taken.to_string(), "ip address 10.3.1.10 is not available");
    let outside = refuse(&mut ledger, endpoint("e", "default:net", "a", "10.3.1.99", "n1"));
    assert!(matches!(outside.reason, Reason::AddressOutside { .. }));
    let carved = refuse(&mut ledger, endpoint("e", "default:net", "", "10.3.1.11", "n1"));
    assert_eq!(
        carved.to_string(),
        "ip address 10.3.1.11 is not available: it belongs to the pool of a"
    );
}

#[test]
fn ipam_2_mixed_pools_show_the_texts_of_contivs_table() {
    let net = "default:net";
    let mut ledger = ledger([network(net, "10.2.2.0/24", "vxlan")]);
    let pools = [
        "",
        "10.2.2.5-10.2.2.10",
        "10.2.2.11-10.2.2.30",
        "",
        "10.2.2.31-10.2.2.132",
        "10.2.2.133-10.2.2.180",
    ];
    for (i, pool) in pools.iter().enumerate() {
        ledger.create(group(&format!("default:epgC-{i}"), "net", pool, &[])).unwrap();
    }
    let start =
        ("10.2.2.5-10.2.2.180".to_owned(), "10.2.2.1-10.2.2.4, 10.2.2.181-10.2.2.254".to_owned());
    assert_eq!(texts(&ledger, net), start);
    let step = |ledger: &Ledger, i: usize, expected: [&str; 2]| {
        let shown = group_texts(ledger, net, &format!("epgC-{i}"));
        assert_eq!((shown.0.as_str(), shown.1.as_str()), (expected[0], expected[1]), "epgC-{i}");
    };
    let allocated = [
        ["10.2.2.1, 10.2.2.5-10.2.2.180", "10.2.2.2-10.2.2.4, 10.2.2.181-10.2.2.254"],
        ["10.2.2.5", "10.2.2.6-10.2.2.10"],
        ["10.2.2.11", "10.2.2.12-10.2.2.30"],
        ["10.2.2.1-10.2.2.2, 10.2.2.5-10.2.2.180", "10.2.2.3-10.2.2.4, 10.2.2.181-10.2.2.254"],
        ["10.2.2.31", "10.2.2.32-10.2.2.132"],
        ["10.2.2.133", "10.2.2.134-10.2.2.180"],
    ];
    for (i, expected) in allocated.into_iter().enumerate() {
        ledger.create(endpoint(&format!("e{i}"), net, &format!("epgC-{i}"), "", "n1")).unwrap();
        step(&ledger, i, expected);
    }
    let released = [
        ["10.2.2.2, 10.2.2.5-10.2.2.180", "10.2.2.1, 10.2.2.3-10.2.2.4, 10.2.2.181-10.2.2.254"],
        ["", "10.2.2.5-10.2.2.10"],
        ["", "10.2.2.11-10.2.2.30"],
        ["10.2.2.5-10.2.2.180", "10.2.2.1-10.2.2.4, 10.2.2.181-10.2.2.254"],
        ["", "10.2.2.31-10.2.2.132"],
        ["", "10.2.2.133-10.2.2.180"],
    ];
    for (i, expected) in released.into_iter().enumerate() {
        delete(&mut ledger, Kind::Endpoint, &format!("e{i}")).unwrap();
        step(&ledger, i, expected);
    }
    let deleted = [
        ("10.2.2.5-10.2.2.180", "10.2.2.1-10.2.2.4, 10.2.2.181-10.2.2.254"),
        ("10.2.2.11-10.2.2.180", "10.2.2.1-10.2.2.10, 10.2.2.181-10.2.2.254"),
        ("10.2.2.31-10.2.2.180", "10.2.2.1-10.2.2.30, 10.2.2.181-10.2.2.254"),
        ("10.2.2.31-10.2.2.180", "10.2.2.1-10.2.2.30, 10.2.2.181-10.2.2.254"),
        ("10.2.2.133-10.2.2.180", "10.2.2.1-10.2.2.132, 10.2.2.181-10.2.2.254"),
        ("", "10.2.2.1-10.2.2.254"),
    ];
    for (i, (allocated, available)) in deleted.into_iter().enumerate() {
        delete(&mut ledger, Kind::EndpointGroup, &format!("default:epgC-{i}")).unwrap();
        assert_eq!(texts(&ledger, net), (allocated.to_owned(), available.to_owned()), "epgC-{i}");
    }
}

#[test]
fn a_second_asker_of_an_address_is_told_who_has_it() {
    let mut ledger = ledger([network("default:net", "10.1.1.0/24 10.1.1.254", "vxlan")]);
    ledger.create(endpoint("a:eth0", "default:net", "", "10.1.1.5", "n1")).unwrap();
    let refused = refuse(&mut ledger, endpoint("b:eth0", "default:net", "", "10.1.1.5", "n2"));
    assert_eq!(
        refused.to_string(),
        "ip address 10.1.1.5 is not available: it belongs to endpoint a:eth0"
    );
    assert_eq!((refused.class(), refused.field), (Class::Exists, "ipAddress"));
    let refused = refuse(&mut ledger, lease("default:net", "", "10.1.1.254", "me"));
    assert_eq!(
        refused.to_string(),
        "ip address 10.1.1.254 is not available: it belongs to the gateway"
    );
    let outside = refuse(&mut ledger, lease("default:net", "", "10.1.2.1", "me"));
    assert_eq!((outside.class(), outside.field), (Class::Invalid, "ipAddress"));
}

#[test]
fn the_same_endpoint_can_be_asked_for_again_and_no_other_with_its_id() {
    let mut ledger = ledger([
        network("default:net", "10.1.1.0/24", "vxlan"),
        network("default:net2", "10.1.2.0/24", "vxlan"),
    ]);
    let first = ledger.create(endpoint("a", "default:net", "", "", "n1")).unwrap();
    let again = ledger.create(endpoint("a", "default:net", "", "", "n1")).unwrap();
    assert_eq!((again.object, again.changes), (first.object, vec![]));
    for (spec, field) in [
        (endpoint("a", "default:net2", "", "", "n1"), "networkName"),
        (endpoint("a", "default:net", "", "10.1.1.9", "n1"), "ipAddress"),
        (endpoint("a", "default:net", "", "", "n2"), "homingHost"),
    ] {
        assert_eq!(refuse(&mut ledger, spec).field, field);
    }
    assert_eq!(refuse(&mut ledger, endpoint("b", "default:net", "", "", "n9")).field, "homingHost");
}

#[test]
fn a_wanted_mac_is_given_to_one_endpoint_of_a_network() {
    let mut ledger = ledger([network("default:net", "10.1.1.0/24", "vxlan")]);
    let with_mac = |id: &str| {
        let Spec::Endpoint(spec) = endpoint(id, "default:net", "", "", "n1") else {
            panic!("an endpoint")
        };
        let mac = EndpointSpec::parse_mac("macAddress", "02:00:00:00:00:07").unwrap();
        Spec::Endpoint(EndpointSpec { mac, ..spec })
    };
    ledger.create(with_mac("a")).unwrap();
    let refused = refuse(&mut ledger, with_mac("b"));
    assert_eq!(
        (refused.field, refused.to_string().as_str()),
        ("macAddress", "the MAC address belongs to endpoint a")
    );
    delete(&mut ledger, Kind::Endpoint, "a").unwrap();
    ledger.create(with_mac("b")).unwrap();
}

#[test]
fn a_node_knows_a_network_without_free_addresses() {
    let pool = group("default:g", "net", "10.1.1.1-10.1.1.1", &[]);
    let mut ledger = ledger([network("default:net", "10.1.1.0/29 10.1.1.6", "vxlan"), pool]);
    let key = NetworkKey::parse("key", "default:net").unwrap();
    let g = GroupName::parse("group", "g").unwrap();
    let exhausted = |ledger: &Ledger, group: Option<&GroupName>| {
        Holdings::known(ledger.intent(), &key).unwrap().is_exhausted(group)
    };
    for (id, group, full) in [
        ("a", "", [false, false]),
        ("b", "g", [false, true]),
        ("c", "", [false, true]),
        ("d", "", [false, true]),
        ("e", "", [true, true]),
    ] {
        ledger.create(endpoint(id, "default:net", group, "", "n1")).unwrap();
        assert_eq!([None, Some(&g)].map(|group| exhausted(&ledger, group)), full, "{id}");
    }
    refuse(&mut ledger, endpoint("f", "default:net", "", "", "n1"));
    leave(&mut ledger, Kind::Endpoint, "c").unwrap();
    assert!(!exhausted(&ledger, None), "of addresses on their way back a node knows nothing");
    assert_eq!(Holdings::known(&Intent::default(), &key), None);
}

#[test]
fn a_reservation_outlives_the_pool_of_its_group() {
    let mut ledger = ledger([
        network("default:net", "10.1.1.0/24", "vxlan"),
        group("default:g", "net", "10.1.1.10-10.1.1.20", &[]),
    ]);
    let reserved = ledger.create(lease("default:net", "g", "", "me")).unwrap();
    assert_eq!(address_of(&reserved), "10.1.1.10");
    delete(&mut ledger, Kind::EndpointGroup, "default:g").unwrap();
    assert_eq!(texts(&ledger, "default:net").0, "10.1.1.10");
    assert_eq!(rebuilt(&ledger), ledger);
}
