//! What must exist, what can't change, and what can't be deleted.

use flowtable::entry::Offload;

use super::*;
use crate::network::Network;

#[test]
fn what_exists_alike_is_accepted_and_what_differs_refused_with_contivs_text() {
    let mut ledger = ledger([
        network("default:net", "10.1.1.0/24 10.1.1.254", "vxlan"),
        policy("default:p"),
        rule("default:p:1", RuleText { direction: "in", ..RuleText::default() }),
    ]);
    for again in [
        tenant("default"),
        network("default:net", "10.1.1.0/24 10.1.1.254", "vxlan"),
        network("default:net", "10.1.1.0/24 10.1.1.254", "vxlan 1"),
        policy("default:p"),
        rule("default:p:1", RuleText { direction: "in", ..RuleText::default() }),
        node("n1", "192.168.0.1"),
    ] {
        assert_eq!(ledger.create(again).unwrap().changes, []);
    }
    let other_rule = RuleText { direction: "out", ..RuleText::default() };
    for (spec, field, text) in [
        (
            network("default:net", "10.1.1.0/24", "vxlan"),
            "gateway",
            "Cant change network parameters after its created",
        ),
        (rule("default:p:1", other_rule), "ruleId", "can not update a rule after its created"),
        (
            Spec::Tenant(TenantSpec {
                name: TenantName::default_tenant(),
                default_network: NetworkName::parse_optional("x", "net").unwrap(),
                change: TenantChange::default(),
            }),
            "defaultNetwork",
            "Cant change tenant parameters after its created",
        ),
    ] {
        let refused = refuse(&mut ledger, spec);
        assert_eq!((refused.field, refused.to_string().as_str()), (field, text));
        assert_eq!(refused.class(), Class::Exists);
        assert!(!refused.next_step().is_empty());
    }
}

fn settings(name: &str, change: TenantChange) -> Spec {
    let Spec::Tenant(spec) = tenant(name) else { panic!("a tenant") };
    Spec::Tenant(TenantSpec { change, ..spec })
}

#[test]
fn a_second_create_never_turns_deny_into_allow_and_an_update_does() {
    let spec = |default_verdict| {
        settings("red", TenantChange { default_verdict, ..TenantChange::default() })
    };
    let mut ledger = ledger([spec(Some(Permit::Deny))]);
    assert_eq!(ledger.create(spec(None)).unwrap().changes, []);
    assert_eq!(refuse(&mut ledger, spec(Some(Permit::Allow))).field, "defaultVerdict");
    assert_eq!(ledger.update(spec(None)).unwrap().changes, []);
    let Object::Tenant(red) = ledger.update(spec(Some(Permit::Allow))).unwrap().object else {
        panic!("a tenant was updated");
    };
    assert_eq!(red.settings.default_verdict, Permit::Allow);
}

#[test]
fn an_update_of_a_tenant_changes_what_it_names_and_nothing_else() {
    let bandwidth = |text| Some(Bandwidth::parse("bandwidth", text).unwrap());
    let burst = |kb| Some(Burst::new("burst", kb).unwrap());
    let start = TenantChange {
        default_verdict: Some(Permit::Deny),
        tracking: Some(Tracking::Stateless),
        on_deny: Some(OnDeny::Finish),
        connections_max: Some(1000),
        new_flows_max: Some(50),
        bandwidth: bandwidth("10 Mbps"),
        burst: burst(80),
        offload: Some(Offload::Off),
    };
    let Spec::Tenant(spec) = settings("red", start.clone()) else { panic!("a tenant") };
    let default_network = NetworkName::parse_optional("x", "net").unwrap();
    let mut ledger = ledger([Spec::Tenant(TenantSpec { default_network, ..spec })]);
    let red = |ledger: &Ledger| {
        let name = TenantName::parse("x", "red").unwrap();
        ledger.intent().tenant(&name).unwrap().clone()
    };
    let before = red(&ledger);
    assert_eq!(before.settings, crate::tenant::TenantSettings::default().changed_by(&start));
    let none = TenantChange::default;
    for (change, field) in [
        (TenantChange { default_verdict: Some(Permit::Allow), ..none() }, "defaultVerdict"),
        (TenantChange { tracking: Some(Tracking::Stateful), ..none() }, "tracking"),
        (TenantChange { on_deny: Some(OnDeny::Cut), ..none() }, "onDeny"),
        (TenantChange { connections_max: Some(0), ..none() }, "maxConnections"),
        (TenantChange { new_flows_max: Some(9), ..none() }, "maxNewFlows"),
        (TenantChange { bandwidth: bandwidth(""), ..none() }, "bandwidth"),
        (TenantChange { burst: burst(0), ..none() }, "burst"),
        (TenantChange { offload: Some(Offload::On), ..none() }, "offload"),
    ] {
        let Object::Tenant(after) = ledger.update(settings("red", change)).unwrap().object else {
            panic!("a tenant");
        };
        assert_eq!(before.settings.difference(&after.settings).map(|(name, _)| name), Some(field));
        assert_eq!(after.default_network, before.default_network);
        ledger.update(settings("red", start.clone())).unwrap();
        assert_eq!(red(&ledger), before, "only {field} was changed");
    }
    let small = TenantChange { burst: burst(1), ..none() };
    let refused = ledger.update(settings("red", small.clone())).unwrap_err();
    assert_eq!(refused.to_string(), "Invalid Burst size. burst size must be > 1500 bytes");
    let refused = refuse(&mut ledger, settings("new", small));
    assert_eq!(refused.to_string(), "Invalid Burst size. burst size > 1500 bytes");
}

#[test]
fn of_a_network_only_whether_flows_are_offloaded_can_be_changed() {
    let spec = |subnet, offload| {
        let Spec::Network(spec) = network("default:a", subnet, "vxlan") else { panic!() };
        Spec::Network(NetworkSpec { offload, ..spec })
    };
    let plain = "10.1.1.0/24";
    let mut ledger = ledger([spec(plain, None)]);
    let a = |ledger: &Ledger| ledger.intent().networks().next().unwrap().clone();
    let before = a(&ledger);
    assert_eq!(before.offload, Offload::On);
    ledger.update(spec(plain, Some(Offload::Off))).unwrap();
    assert_eq!(a(&ledger), Network { offload: Offload::Off, ..before });
    // What says nothing of it leaves it, and a second create turns nothing on.
    for same in [None, Some(Offload::Off)] {
        assert_eq!(ledger.update(spec(plain, same)).unwrap().changes, []);
        assert_eq!(ledger.create(spec(plain, same)).unwrap().changes, []);
    }
    let text = "Cant change network parameters after its created";
    assert_eq!(refuse(&mut ledger, spec(plain, Some(Offload::On))).to_string(), text);
    let refused = ledger.update(spec("10.1.2.0/24", Some(Offload::On))).unwrap_err();
    assert_eq!(refused.to_string(), text);
    let refused = ledger.update(network("default:b", plain, "vxlan")).unwrap_err();
    assert_eq!(refused.field, "networkName");
}

#[test]
fn overlapping_subnets_are_refused_inside_a_tenant_only() {
    let mut ledger =
        ledger([tenant("blue"), network("default:a", "10.1.1.0/24 10.1.1.220", "vlan")]);
    for (subnet, wire) in [
        ("10.1.1.0/24", "vxlan"),
        ("10.1.1.0/24 10.1.1.233", "vlan"),
        ("10.1.0.0/16", "vxlan"),
        ("10.1.1.77-10.1.1.80/24", "vlan"),
    ] {
        let refused = refuse(&mut ledger, network("default:b", subnet, wire));
        assert_eq!(refused.to_string(), "network a conflicts with subnet 10.1.1.0/24");
        assert_eq!(refused.field, "subnet");
    }
    ledger.create(network("default:b", "10.1.2.0/24 10.1.2.254", "vlan")).unwrap();
    ledger.create(network("blue:a", "10.1.0.0/16", "vxlan")).unwrap();
    for (name, range) in
        [("r1", "20.1.1.10-20.1.1.45"), ("r2", "20.1.1.46-20.1.1.100"), ("r3", "20.1.1.0-20.1.1.9")]
    {
        ledger
            .create(network(&format!("default:{name}"), &format!("{range}/24"), "vxlan"))
            .unwrap();
    }
    for range in ["20.1.1.45-20.1.1.100", "20.1.1.0-20.1.1.10"] {
        let refused = refuse(&mut ledger, network("default:r4", &format!("{range}/24"), "vxlan"));
        assert!(matches!(refused.reason, Reason::SubnetOverlap { .. }));
    }
}

#[test]
fn deletes_are_refused_while_something_depends_on_the_object() {
    let mut ledger = ledger([
        tenant("t"),
        network("t:net", "10.1.1.1/16 10.1.1.254", "vlan 1"),
        policy("t:p"),
        rule("t:p:1", RuleText { direction: "in", ..RuleText::default() }),
        group("t:g", "net", "", &["p"]),
        endpoint("e", "t:net", "g", "", "n1"),
        lease("t:net", "", "10.1.0.9", "me"),
    ]);
    let mut refused = |kind, key| refuse_delete(&mut ledger, kind, key).to_string();
    assert_eq!(refused(Kind::Tenant, "t"), "cannot delete t has 1 endpoint groups");
    assert_eq!(refused(Kind::Network, "t:net"), "cannot delete net has 1 endpoint groups");
    assert_eq!(refused(Kind::EndpointGroup, "t:g"), "Error: EPG g has active endpoints");
    assert_eq!(refused(Kind::Policy, "t:p"), "Policy is being used");
    assert_eq!(refused(Kind::Node, "n1"), "cannot delete n1 has 1 endpoints");
    assert_eq!(refused(Kind::Global, "global"), "the global object cannot be deleted");
    assert_eq!(refused(Kind::AddressLease, "t:net:10.1.0.1"), "the address is used by endpoint e");
    delete(&mut ledger, Kind::Endpoint, "e").unwrap();
    delete(&mut ledger, Kind::EndpointGroup, "t:g").unwrap();
    let mut refused = |kind, key| refuse_delete(&mut ledger, kind, key).to_string();
    assert_eq!(refused(Kind::Tenant, "t"), "cannot delete t has 1 policies");
    assert_eq!(refused(Kind::Network, "t:net"), "cannot delete net has 1 address leases");
    let changes = delete(&mut ledger, Kind::Policy, "t:p").unwrap();
    assert_eq!(changes.len(), 2, "its rule goes with it");
    assert_eq!(
        refuse_delete(&mut ledger, Kind::Tenant, "t").to_string(),
        "cannot delete t has 1 networks"
    );
    delete(&mut ledger, Kind::AddressLease, "t:net:10.1.0.9").unwrap();
    delete(&mut ledger, Kind::Network, "t:net").unwrap();
    delete(&mut ledger, Kind::Tenant, "t").unwrap();
    assert_eq!(refuse_delete(&mut ledger, Kind::Tenant, "default").class(), Class::InUse);
    for (kind, key) in [
        (Kind::Tenant, "t"),
        (Kind::Network, "t:net"),
        (Kind::EndpointGroup, "t:g"),
        (Kind::Node, "n9"),
        (Kind::Policy, "t:p"),
        (Kind::Rule, "t:p:1"),
        (Kind::Endpoint, "e"),
        (Kind::AddressLease, "t:net:10.1.0.9"),
    ] {
        assert_eq!(refuse_delete(&mut ledger, kind, key).class(), Class::NotFound, "{key}");
    }
}

#[test]
fn groups_and_networks_share_names_and_references_must_exist() {
    let mut ledger = ledger([network("default:net", "10.1.1.0/24", "vxlan"), policy("default:p")]);
    ledger.create(group("default:g", "net", "", &["p"])).unwrap();
    ledger.create(network("default:net2", "10.1.2.0/24", "vxlan")).unwrap();
    for (spec, field, text) in [
        (
            group("default:net", "net", "", &[]),
            "groupName",
            "Network net conflicts with the endpointGroup name",
        ),
        (
            network("default:g", "10.9.1.0/24", "vxlan"),
            "networkName",
            "EndpointGroup g conflicts with the network name",
        ),
        (group("none:h", "net", "", &[]), "tenantName", "Tenant not found"),
        (group("default:h", "none", "", &[]), "networkName", "Network none not found"),
        (group("default:h", "net", "", &["none"]), "policies", "Policy not found"),
        (group("default:g", "net", "", &["none"]), "policies", "Policy not found"),
        (
            group("default:g", "net2", "", &[]),
            "networkName",
            "Cannot change network association after epg is created.",
        ),
        (
            group("default:g", "net", "10.1.1.5", &[]),
            "ipPool",
            "Cannot change IP pool after epg is created.",
        ),
        (network("none:x", "10.9.1.0/24", "vxlan"), "tenantName", "Tenant not found"),
        (policy("none:p"), "tenantName", "Tenant not found"),
        (node("n3", "192.168.0.1"), "vtepIP", "the tunnel end point belongs to node n1"),
    ] {
        let refused = refuse(&mut ledger, spec);
        assert_eq!((refused.field, refused.to_string().as_str()), (field, text));
    }
}

#[test]
fn policies_of_a_group_are_replaced_live() {
    let mut ledger = ledger([
        network("default:net", "10.1.1.0/24", "vxlan"),
        policy("default:policy1"),
        policy("default:policy2"),
        group("default:g", "net", "", &["policy1"]),
    ]);
    let id = |ledger: &Ledger| ledger.intent().groups().next().unwrap().id;
    let before = id(&ledger);
    ledger.update(group("default:g", "net", "", &["policy2", "policy2"])).unwrap();
    assert_eq!(id(&ledger), before);
    delete(&mut ledger, Kind::Policy, "default:policy1").unwrap();
    assert_eq!(
        refuse_delete(&mut ledger, Kind::Policy, "default:policy2").reason,
        Reason::PolicyInUse
    );
    delete(&mut ledger, Kind::EndpointGroup, "default:g").unwrap();
    delete(&mut ledger, Kind::Policy, "default:policy2").unwrap();
    // Ids are never used again.
    ledger.create(group("default:g", "net", "", &[])).unwrap();
    assert!(id(&ledger) > before);
}

#[test]
fn rules_need_their_policy_groups_and_networks() {
    let mut ledger = ledger([network("default:net", "10.1.1.0/24", "vxlan"), policy("default:p")]);
    let (inward, outward) = (
        RuleText { direction: "in", ..RuleText::default() },
        RuleText { direction: "out", ..RuleText::default() },
    );
    for (spec, field, text) in [
        (rule("default:none:1", inward), "policyName", "Policy not found"),
        (rule("none:p:1", inward), "policyName", "Policy not found"),
        (
            rule("default:p:1", RuleText { from_group: "x", ..inward }),
            "fromEndpointGroup",
            "endpoint group not found",
        ),
        (
            rule("default:p:1", RuleText { to_group: "x", ..outward }),
            "toEndpointGroup",
            "endpoint group not found",
        ),
        (
            rule("default:p:1", RuleText { from_network: "x", ..inward }),
            "fromNetwork",
            "from Network not found",
        ),
        (
            rule("default:p:1", RuleText { to_network: "x", ..outward }),
            "toNetwork",
            "to Network not found",
        ),
    ] {
        let refused = refuse(&mut ledger, spec);
        assert_eq!((refused.field, refused.to_string().as_str()), (field, text));
        assert_eq!(refused.class(), Class::NotFound);
    }
}

#[test]
fn an_in_rule_for_one_address_needs_one_group_that_has_it() {
    let text = |from, to| RuleText {
        direction: "in",
        from_address: from,
        to_address: to,
        ..RuleText::default()
    };
    let mut ledger = ledger([
        network("default:net", "10.1.1.0/24", "vxlan"),
        policy("default:p"),
        group("default:g", "net", "", &[]),
    ]);
    ledger.create(endpoint("e", "default:net", "g", "10.1.1.15", "n1")).unwrap();
    let refused = refuse(&mut ledger, rule("default:p:1", text("10.1.1.15", "10.2.1.31")));
    assert_eq!(
        refused.to_string(),
        "failed to configure default:p:1, 0 endpoint groups linked to policy p "
    );
    ledger.update(group("default:g", "net", "", &["p"])).unwrap();
    let refused = refuse(&mut ledger, rule("default:p:1", text("10.2.1.115", "10.1.1.19")));
    assert_eq!(refused.to_string(), "failed to configure default:p:1, ip address is not in epg g");
    ledger.create(rule("default:p:1", text("10.2.1.11", "10.1.1.15"))).unwrap();
}

#[test]
fn a_gateway_is_never_an_address_that_another_network_hands_out() {
    let start = || [network("default:low", "10.1.1.1-10.1.1.100/24 10.1.1.254", "vxlan")];
    let refused =
        refuse(&mut ledger(start()), network("default:high", "10.1.1.101-10.1.1.254/24", "vxlan"));
    assert_eq!(refused.to_string(), "network low conflicts with subnet 10.1.1.1-10.1.1.100/24");
    let refused = refuse(
        &mut ledger(start()),
        network("default:high", "10.1.1.101-10.1.1.253/24 10.1.1.7", "vxlan"),
    );
    assert_eq!(refused.field, "subnet");
    let shared = network("default:high", "10.1.1.101-10.1.1.253/24 10.1.1.254", "vxlan");
    ledger(start()).create(shared).unwrap();
}

#[test]
fn overlapping_ipv6_subnets_are_refused_inside_a_tenant_only() {
    let mut ledger = ledger([tenant("blue")]);
    let mut third = 0;
    let mut net = |key: &str, subnet6: &str| {
        third += 1;
        let plain = network(key, &format!("10.1.{third}.0/24"), "vxlan");
        ledger.create(with_ipv6(plain, subnet6, ""))
    };
    for (key, subnet6) in [
        ("default:a", "::/64"),
        ("default:b", "1::/64"),
        ("default:c", "2001:3332:3244:2422::/64"),
        ("default:d", "2001:2000::/32"),
        ("default:e", "ffff:ffff:ffff::/48"),
        ("blue:e", "ffff:ffff:ffff::/48"),
    ] {
        net(key, subnet6).unwrap();
    }
    for (subnet6, text) in [
        ("2001:3332:3244:2422::/64", "network c conflicts with subnetv6  2001:3332:3244:2422::/64"),
        ("2001:2000:1234:4422::/64", "network d conflicts with subnetv6  2001:2000::/32"),
    ] {
        let refused = net("default:f", subnet6).unwrap_err();
        assert_eq!((refused.field, refused.to_string().as_str()), ("ipv6Subnet", text));
    }
    assert_eq!(rebuilt(&ledger), ledger);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how long it takes is what is tested")]
fn d19_a_write_looks_up_what_it_names_among_many() {
    const MANY: u32 = 5000;
    let address = |i: u32| std::net::Ipv4Addr::from_bits(0x0a00_0001 + i).to_string();
    let mut ledger = ledger([
        network("default:net", "10.0.0.0/8", "vxlan"),
        policy("default:p"),
        group("default:g", "net", "", &["p"]),
    ]);
    for i in 0..MANY {
        let id = format!("e{i}");
        ledger.create(endpoint(&id, "default:net", "g", &address(i), "n1")).unwrap();
    }
    // Were every endpoint looked at for each rule, these would be 25 million looks.
    let start = std::time::Instant::now();
    for i in 0..MANY {
        let own = address(MANY - 1 - i);
        let text = RuleText { direction: "in", to_address: &own, ..RuleText::default() };
        ledger.create(rule(&format!("default:p:{i}"), text)).unwrap();
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
}
