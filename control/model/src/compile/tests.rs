//! Exact tables of a small installation, and a slow statement of isolation over random ones.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::intent::Spec;
use crate::key::{Key, Kind, PolicyKey};
use crate::ledger::Ledger;
use crate::ledger::tests::{endpoint, group, ledger, network, policy, rule, tenant, with_ipv6};
use crate::network::NetworkSpec;
use crate::rule::RuleText;
use crate::tenant::{TenantChange, TenantSpec};
use flowtable::entry::{EntryKey, OnDeny, Permit, Tracking};

pub(super) fn node(name: &str) -> NodeName {
    NodeName::parse("nodeName", name).unwrap()
}

pub(super) fn placed(ids: &[(&str, u32)], uplink: Option<u32>) -> Placement {
    Placement {
        ports: ids
            .iter()
            .map(|(id, port)| (EndpointId::parse("x", id).unwrap(), PortId::new(*port).unwrap()))
            .collect(),
        uplink: uplink.map(|port| PortId::new(port).unwrap()),
        sample_rate: 400,
        ..Placement::default()
    }
}

fn texts<T>(entries: &[Entry], pick: impl Fn(&Entry) -> Option<T>) -> Vec<T> {
    entries.iter().filter_map(pick).collect()
}

fn routes(entries: &[Entry]) -> Vec<String> {
    texts(entries, |entry| {
        let Entry::Route(r) = entry else { return None };
        Some(format!("{} {} {} {:?}", r.vrf, r.prefix, r.bd, r.next_hop))
    })
}

fn rules(entries: &[Entry]) -> Vec<RuleEntry> {
    texts(entries, |entry| {
        let Entry::Rule(rule) = entry else { return None };
        Some(rule.clone())
    })
}

fn small() -> Ledger {
    ledger([
        network("default:net", "10.1.1.0/24 10.1.1.254", "vxlan 7"),
        network("default:wire", "10.1.2.0/24", "vlan 9"),
        group("default:web", "net", "", &[]),
        endpoint("here", "default:net", "web", "", "n1"),
        endpoint("there", "default:net", "", "", "n2"),
        endpoint("wired", "default:wire", "", "", "n2"),
    ])
}

#[test]
fn a_small_installation_has_exactly_these_entries() {
    let ledger = small();
    let entries = compile(ledger.intent(), &node("n1"), &placed(&[("here", 5)], Some(1)));
    let here = ledger.intent().endpoint(&EndpointId::parse("x", "here").unwrap()).unwrap();
    assert!(entries.contains(&Entry::Port(PortEntry {
        port: PortId::new(5).unwrap(),
        vrf: Vrf::new(1).unwrap(),
        bd: flowtable::ids::Bd::new(1).unwrap(),
        group: Group::new(1).unwrap(),
        mac: here.mac,
        ips: vec!["10.1.1.1".parse().unwrap()],
        ipv6: Ipv6::Off,
        sample_rate: 400,
        offload: Offload::On,
    })));
    assert_eq!(
        routes(&entries),
        [
            "1 10.1.1.0/24 1 UnknownEndpoint",
            "1 10.1.1.1/32 1 Local(PortId(5))",
            "1 10.1.1.2/32 1 Tunnel { vtep: 192.168.0.2, vni: Vni(7) }",
            "1 10.1.2.1/32 2 Vlan { port: PortId(1), vid: Vid(9) }",
        ]
    );
    let others: Vec<_> = entries
        .iter()
        .filter(|e| !matches!(e, Entry::Port(_) | Entry::Route(_) | Entry::Mac(_)))
        .collect();
    let (vrf, wire) = (Vrf::new(1).unwrap(), flowtable::ids::Vid::new(9).unwrap());
    let bd = |number| flowtable::ids::Bd::new(number).unwrap();
    let uplink = PortId::new(1).unwrap();
    let prefix = |text: &str, length| Prefix::new(text.parse().unwrap(), length).unwrap();
    assert_eq!(
        others,
        [
            &Entry::Tenant(TenantEntry::new(vrf, Permit::Allow)),
            &Entry::Vtep(VtepEntry {
                ip: "192.168.0.2".parse().unwrap(),
                local: "192.168.0.1".parse().unwrap()
            }),
            &Entry::Tunnel(TunnelEntry {
                vni: flowtable::ids::Vni::new(7).unwrap(),
                bd: bd(1),
                vrf
            }),
            &Entry::Network(NetworkEntry {
                bd: bd(1),
                vrf,
                subnets: vec![prefix("10.1.1.0", 24)],
                gateways: vec!["10.1.1.254".parse().unwrap()],
                wire: None,
            }),
            &Entry::Vlan(VlanEntry { port: uplink, vid: wire, bd: bd(2), vrf }),
            &Entry::Network(NetworkEntry {
                bd: bd(2),
                vrf,
                subnets: vec![prefix("10.1.2.0", 24)],
                gateways: vec![],
                wire: Some((uplink, wire)),
            }),
            &Entry::Group(GroupEntry {
                vrf,
                prefix: prefix("10.1.1.1", 32),
                group: Group::new(1).unwrap()
            }),
        ]
    );
}

#[test]
fn a_tenants_settings_are_its_entry() {
    let Spec::Tenant(spec) = tenant("red") else { panic!("a tenant") };
    let change = TenantChange {
        default_verdict: Some(Permit::Deny),
        tracking: Some(Tracking::Stateless),
        on_deny: Some(OnDeny::Finish),
        connections_max: Some(1000),
        new_flows_max: Some(50),
        ..TenantChange::default()
    };
    let ledger = ledger([Spec::Tenant(TenantSpec { change, ..spec })]);
    let entries = compile(ledger.intent(), &node("n9"), &Placement::default());
    let red = TenantEntry {
        vrf: Vrf::new(2).unwrap(),
        default: Permit::Deny,
        tracking: Tracking::Stateless,
        on_deny: OnDeny::Finish,
        connections_max: 1000,
        new_flows_max: 50,
    };
    assert!(entries.contains(&Entry::Tenant(red)), "{entries:?}");
}

#[test]
fn flows_of_a_port_are_offloaded_if_its_tenant_and_its_network_let_them() {
    for (of_tenant, of_network) in
        [(None, None), (Some(Offload::Off), None), (None, Some(Offload::Off))]
    {
        let mut ledger = small();
        let change = TenantChange { offload: of_tenant, ..TenantChange::default() };
        let Spec::Tenant(spec) = tenant("default") else { panic!("a tenant") };
        ledger.update(Spec::Tenant(TenantSpec { change, ..spec })).unwrap();
        let Spec::Network(spec) = network("default:net", "10.1.1.0/24 10.1.1.254", "vxlan") else {
            panic!("a network")
        };
        ledger.update(Spec::Network(NetworkSpec { offload: of_network, ..spec })).unwrap();
        let entries = compile(ledger.intent(), &node("n1"), &placed(&[("here", 5)], Some(1)));
        let ports = texts(&entries, |entry| {
            let Entry::Port(port) = entry else { return None };
            Some(port.offload)
        });
        let wanted = of_tenant.or(of_network).unwrap_or(Offload::On);
        assert_eq!(ports, [wanted], "{of_tenant:?} {of_network:?}");
    }
}

#[test]
fn an_endpoint_that_can_not_be_reached_has_no_route_of_its_own() {
    let ledger = small();
    let entries = compile(ledger.intent(), &node("n1"), &placed(&[], None));
    assert_eq!(
        routes(&entries),
        [
            "1 10.1.1.0/24 1 UnknownEndpoint",
            "1 10.1.1.2/32 1 Tunnel { vtep: 192.168.0.2, vni: Vni(7) }",
        ]
    );
    assert!(!entries.iter().any(|e| matches!(e, Entry::Port(_) | Entry::Vlan(_))));
    // Seen from an unregistered node nothing is local, and there is no tunnel to take.
    let entries = compile(ledger.intent(), &node("n9"), &placed(&[("here", 5)], None));
    assert!(!entries.iter().any(|e| matches!(e, Entry::Port(_) | Entry::Vtep(_))));
}

#[test]
fn every_rule_has_one_entry_per_group_and_block() {
    let inward = RuleText {
        direction: "in",
        protocol: "tcp",
        port: 8000,
        action: "deny",
        ..RuleText::default()
    };
    let outward = RuleText { direction: "out", ..RuleText::default() };
    let ledger = ledger([
        network("default:net", "10.1.1.0/24", "vxlan"),
        network("default:range", "10.1.2.10-10.1.2.13/24", "vxlan"),
        policy("default:p"),
        group("default:a", "net", "", &["p"]),
        group("default:b", "net", "", &["p"]),
        group("default:c", "net", "", &[]),
        rule("default:p:1", RuleText { priority: 100, ..inward }),
        rule("default:p:2", RuleText { from_group: "c", from_address: "10.1.1.7", ..inward }),
        rule("default:p:3", RuleText { to_network: "range", ..outward }),
    ]);
    let entries = rules(&compile(ledger.intent(), &node("n1"), &Placement::default()));
    let ids: Vec<_> = entries.iter().map(|e| (e.rule.0, e.seq)).collect();
    assert_eq!(ids, [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (3, 3)]);
    let group = |number| Some(Group::new(number).unwrap());
    let base = RuleEntry {
        priority: 100,
        dst_group: group(1),
        protocol: Some(6),
        dst_ports: Some(PortRange { first: 8000, last: 8000 }),
        ..RuleEntry::any(entries[0].rule, Vrf::new(1).unwrap(), Direction::In, Permit::Deny)
    };
    assert_eq!(entries[0], base);
    assert_eq!(entries[1], RuleEntry { seq: 1, dst_group: group(2), ..base.clone() });
    let seven = Some(Prefix::host("10.1.1.7".parse().unwrap()));
    let second =
        RuleEntry { rule: entries[2].rule, priority: 1, src_group: group(3), src: seven, ..base };
    assert_eq!(entries[2], second);
    let out: Vec<_> =
        entries[4..].iter().map(|e| (e.src_group, e.dst.unwrap().to_string())).collect();
    assert_eq!(
        out,
        [
            (group(1), "10.1.2.10/31".into()),
            (group(1), "10.1.2.12/31".into()),
            (group(2), "10.1.2.10/31".into()),
            (group(2), "10.1.2.12/31".into()),
        ]
    );
    assert!(
        entries[4..]
            .iter()
            .all(|e| e.direction == Direction::Out && e.src.is_none() && e.dst_group.is_none())
    );
}

#[test]
fn d06_a_name_that_does_not_resolve_makes_no_entry_and_never_any() {
    let inward = RuleText { direction: "in", ..RuleText::default() };
    let mut ledger = ledger([
        network("default:net", "10.1.1.0/24", "vxlan"),
        network("default:other", "10.1.2.0/24", "vxlan"),
        policy("default:p"),
        group("default:a", "net", "", &["p"]),
        group("default:c", "net", "", &[]),
        rule("default:p:1", RuleText { from_group: "c", ..inward }),
        rule("default:p:2", RuleText { from_network: "other", ..inward }),
    ]);
    let count = |ledger: &Ledger| {
        rules(&compile(ledger.intent(), &node("n1"), &Placement::default())).len()
    };
    assert_eq!(count(&ledger), 2);
    ledger.delete(&Key::parse(Kind::EndpointGroup, "default:c").unwrap()).unwrap();
    assert_eq!(count(&ledger), 1);
    ledger.delete(&Key::parse(Kind::Network, "default:other").unwrap()).unwrap();
    assert_eq!(count(&ledger), 0);
}

#[test]
fn an_endpoint_whose_group_does_not_resolve_is_cut_off_and_not_freed_of_policy() {
    let ledger = ledger([
        network("default:net", "10.1.1.0/24", "vxlan"),
        group("default:a", "net", "", &[]),
        endpoint("c1", "default:net", "a", "10.1.1.5", "n1"),
    ]);
    let of = |intent: &Intent| {
        let entries = compile(intent, &node("n1"), &placed(&[("c1", 2)], None));
        texts(&entries, |e| matches!(e, Entry::Port(_) | Entry::Mac(_)).then(|| e.table())).len()
    };
    let mut intent = ledger.intent().clone();
    assert_eq!(of(&intent), 2);
    intent.remove(&Key::parse(Kind::EndpointGroup, "default:a").unwrap());
    assert_eq!(of(&intent), 0);
}

fn vrf_of(entry: &Entry) -> Option<Vrf> {
    match entry {
        Entry::Port(e) => Some(e.vrf),
        Entry::Network(e) => Some(e.vrf),
        Entry::Tunnel(e) => Some(e.vrf),
        Entry::Vlan(e) => Some(e.vrf),
        Entry::Group(e) => Some(e.vrf),
        Entry::Rule(e) => Some(e.vrf),
        Entry::Route(e) => Some(e.vrf),
        Entry::Tenant(e) => Some(e.vrf),
        Entry::Published(e) => Some(e.vrf),
        Entry::Vtep(_) | Entry::Underlay(_) | Entry::Mac(_) | Entry::Meter(_) | Entry::Qos(_) => {
            None
        }
    }
}

/// What an entry names besides its VRF: bridge domains and groups.
fn named(entry: &Entry) -> (Vec<flowtable::ids::Bd>, Vec<Group>) {
    match entry {
        Entry::Port(e) => (vec![e.bd], vec![e.group]),
        Entry::Network(e) => (vec![e.bd], vec![]),
        Entry::Tunnel(e) => (vec![e.bd], vec![]),
        Entry::Vlan(e) => (vec![e.bd], vec![]),
        Entry::Group(e) => (vec![], vec![e.group]),
        Entry::Rule(e) => (vec![], e.src_group.into_iter().chain(e.dst_group).collect()),
        Entry::Route(e) => (vec![e.bd], vec![]),
        Entry::Mac(e) => (vec![e.bd], vec![]),
        Entry::Tenant(_)
        | Entry::Published(_)
        | Entry::Vtep(_)
        | Entry::Underlay(_)
        | Entry::Meter(_)
        | Entry::Qos(_) => (vec![], vec![]),
    }
}

/// Every tenant gets the same shape from the same choices; so addresses and names overlap.
fn populate(tenant_name: &str, choices: &[(u8, u8)]) -> Vec<Spec> {
    let key = |name: &str| format!("{tenant_name}:{name}");
    let mut specs = vec![
        tenant(tenant_name),
        network(&key("n0"), "10.1.1.0/24 10.1.1.254", "vxlan"),
        network(&key("n1"), "10.1.2.3-10.1.2.40/24", "vlan"),
        policy(&key("p0")),
        policy(&key("p1")),
        group(&key("g0"), "n0", "", &["p0", "p1"]),
        group(&key("g1"), "n1", "", &["p1"]),
    ];
    for (i, (a, b)) in choices.iter().enumerate() {
        let (group_name, net) = (format!("g{}", a % 2), format!("n{}", a % 2));
        let member = if a % 3 == 0 { "" } else { &group_name };
        specs.push(endpoint(
            &format!("{tenant_name}-{i}"),
            &key(&net),
            member,
            "",
            if b % 2 == 0 { "n1" } else { "n2" },
        ));
        let mut text =
            RuleText { direction: if b % 2 == 0 { "in" } else { "out" }, ..RuleText::default() };
        match (text.direction, b % 3) {
            ("in", 1) => text.from_group = &group_name,
            ("in", 2) => text.from_network = &net,
            ("out", 1) => text.to_group = &group_name,
            ("out", 2) => text.to_network = &net,
            _ => {}
        }
        specs.push(rule(&key(&format!("p{}:{i}", a % 2)), text));
    }
    specs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_entry_of_one_tenant_names_anything_of_another(
        red in prop::collection::vec(any::<(u8, u8)>(), 0..12),
        blue in prop::collection::vec(any::<(u8, u8)>(), 0..12),
    ) {
        let ledger = ledger(populate("red", &red).into_iter().chain(populate("blue", &blue)));
        let intent = ledger.intent();
        let here = intent.endpoints().filter(|e| e.host.node == node("n1"));
        let ports = here.zip(2u32..).map(|(e, port)| (e.id.clone(), PortId::new(port).unwrap()));
        let placement = Placement {
            ports: ports.collect(),
            uplink: PortId::new(1).ok(),
            ..Placement::default()
        };
        let entries = compile(intent, &node("n1"), &placement);
        let keys: BTreeSet<EntryKey> = entries.iter().map(Entry::key).collect();
        prop_assert_eq!(keys.len(), entries.len(), "no two entries have one key");
        prop_assert_eq!(&entries, &compile(intent, &node("n1"), &placement), "a pure function");
        for tenant in intent.tenants.values() {
            let bds: BTreeSet<_> = intent.networks().filter(|n| n.key.tenant == tenant.name).map(|n| n.bd).collect();
            let groups: BTreeSet<_> = intent.groups().filter(|g| g.spec.key.tenant == tenant.name).map(|g| g.id).collect();
            for entry in entries.iter().filter(|entry| vrf_of(entry) == Some(tenant.vrf)) {
                let (named_bds, named_groups) = named(entry);
                prop_assert!(named_bds.iter().all(|bd| bds.contains(bd)), "{:?}", entry);
                prop_assert!(named_groups.iter().all(|g| *g == Group::NONE || groups.contains(g)), "{:?}", entry);
            }
            // Slowly, from the objects alone: which (rule, group) pairs must there be?
            let mut expected = BTreeSet::new();
            for rule in intent.rules().filter(|r| r.spec.key.tenant == tenant.name) {
                let key: PolicyKey = rule.spec.key.policy_key();
                expected.extend(intent.groups_of(&key).map(|group| (rule.cookie, group.id)));
            }
            let present: BTreeSet<_> = rules(&entries).into_iter().filter(|e| e.vrf == tenant.vrf).map(|e| {
                let own = match e.direction { Direction::In => e.dst_group, Direction::Out => e.src_group };
                (e.rule, own.expect("a rule entry always has its group"))
            }).collect();
            prop_assert_eq!(present, expected);
        }
        for entry in &entries {
            prop_assert_eq!(entry.check(), Ok(()), "the engine takes what is compiled");
            if let Entry::Mac(mac) = entry {
                let owner = intent.endpoints().find(|e| e.mac == mac.mac && intent.network(&e.network).map(|n| n.bd) == Some(mac.bd));
                prop_assert!(owner.is_some());
            }
        }
    }
}

fn networks(entries: &[Entry]) -> Vec<NetworkEntry> {
    texts(entries, |entry| {
        let Entry::Network(network) = entry else { return None };
        Some(network.clone())
    })
}

#[test]
fn d05_both_families_of_a_network_are_in_its_tables_and_in_rules_about_it() {
    let both = network("default:net", "10.1.1.0/24 10.1.1.254", "vxlan 7");
    let ledger = ledger([
        with_ipv6(both, "2016:617::/64", "2016:617::254"),
        policy("default:p"),
        rule(
            "default:p:1",
            RuleText { direction: "in", from_network: "net", ..RuleText::default() },
        ),
        rule(
            "default:p:2",
            RuleText { direction: "out", to_address: "::1/64", ..RuleText::default() },
        ),
        group("default:web", "net", "", &["p"]),
    ]);
    let entries = compile(ledger.intent(), &node("n1"), &placed(&[], None));
    let [net] = &networks(&entries)[..] else { panic!("one network") };
    assert_eq!(
        net.gateways,
        ["10.1.1.254".parse::<IpAddr>().unwrap(), "2016:617::254".parse().unwrap()]
    );
    let text = |prefix: &Prefix| prefix.to_string();
    assert_eq!(net.subnets.iter().map(text).collect::<Vec<_>>(), ["10.1.1.0/24", "2016:617::/64"]);
    assert_eq!(
        routes(&entries),
        ["1 10.1.1.0/24 1 UnknownEndpoint", "1 2016:617::/64 1 UnknownEndpoint"]
    );
    let rules = rules(&entries);
    let sources: Vec<_> = rules.iter().filter_map(|r| r.src.as_ref().map(text)).collect();
    assert_eq!(sources, ["10.1.1.0/24", "2016:617::/64"]);
    assert_eq!(rules[2].dst.as_ref().map(text).unwrap(), "::/64");
}

#[test]
fn net_5_an_endpoint_with_two_addresses_has_rows_for_both() {
    let both = network("default:net", "10.1.1.0/24 10.1.1.254", "vxlan 7");
    let ledger = ledger([
        with_ipv6(both, "2016:617::10-2016:617::1f/64", "2016:617::254"),
        group("default:web", "net", "", &[]),
        endpoint("here", "default:net", "web", "", "n1"),
        endpoint("there", "default:net", "web", "10.1.1.9 2016:617::19", "n2"),
    ]);
    let entries = compile(ledger.intent(), &node("n1"), &placed(&[("here", 5)], None));
    assert_eq!(
        routes(&entries),
        [
            "1 10.1.1.0/24 1 UnknownEndpoint",
            "1 2016:617::10/124 1 UnknownEndpoint",
            "1 10.1.1.1/32 1 Local(PortId(5))",
            "1 2016:617::10/128 1 Local(PortId(5))",
            "1 10.1.1.9/32 1 Tunnel { vtep: 192.168.0.2, vni: Vni(7) }",
            "1 2016:617::19/128 1 Tunnel { vtep: 192.168.0.2, vni: Vni(7) }",
        ]
    );
    let ports = texts(&entries, |entry| {
        let Entry::Port(port) = entry else { return None };
        Some((port.ips.clone(), port.ipv6))
    });
    let own = vec!["10.1.1.1".parse::<IpAddr>().unwrap(), "2016:617::10".parse().unwrap()];
    assert_eq!(ports, [(own, Ipv6::On)], "no other may be its sender's");
    let groups = texts(&entries, |entry| {
        let Entry::Group(entry) = entry else { return None };
        Some(entry.prefix.to_string())
    });
    assert_eq!(groups, ["10.1.1.1/32", "2016:617::10/128", "10.1.1.9/32", "2016:617::19/128"]);
    let [net] = &networks(&entries)[..] else { panic!("one network") };
    assert_eq!(net.subnets[1].to_string(), "2016:617::/64", "the block, for its neighbors");
}

#[test]
fn a_bridge_is_the_gateway_of_no_network() {
    let mut ledger = ledger([]);
    let bridge = crate::global::GlobalSpec::default().with_modes("", "bridge", "").unwrap();
    ledger.update(Spec::Global(bridge)).unwrap();
    let both = network("default:net", "10.1.1.0/24 10.1.1.254", "vxlan 7");
    ledger.create(with_ipv6(both, "2016:617::/64", "2016:617::254")).unwrap();
    let entries = compile(ledger.intent(), &node("n1"), &placed(&[], None));
    assert_eq!(networks(&entries)[0].gateways, Vec::<IpAddr>::new());
}

#[test]
fn a_published_port_leads_to_the_endpoint_in_each_family_it_has() {
    let mut placement = placed(&[("here", 5)], Some(1));
    let ports = |addresses: &[&str]| -> Vec<PublishedPort> {
        let node = |ip: &&str| NodePort { address: ip.parse().unwrap(), protocol: 6, port: 8080 };
        addresses.iter().map(|ip| PublishedPort { node: node(ip), to_port: 80 }).collect()
    };
    let id = |id| EndpointId::parse("x", id).unwrap();
    placement.published.insert(id("here"), ports(&["192.0.2.1", "2001:db8::1", "192.0.2.2"]));
    // One of another node, and one of nobody.
    placement.published.insert(id("there"), ports(&["192.0.2.3"]));
    placement.published.insert(id("nobody"), ports(&["192.0.2.4"]));
    let published = |placement: &Placement| {
        let entries = compile(small().intent(), &node("n1"), placement);
        texts(&entries, |entry| {
            let Entry::Published(e) = entry else { return None };
            Some(format!("{} {}:{} {} {}", e.vrf, e.node.address, e.node.port, e.to, e.to_port))
        })
    };
    assert_eq!(
        published(&placement),
        ["1 192.0.2.1:8080 10.1.1.1 80", "1 192.0.2.2:8080 10.1.1.1 80"]
    );
    // The engine has no port for it yet.
    placement.ports.clear();
    assert_eq!(published(&placement), Vec::<String>::new());
}
