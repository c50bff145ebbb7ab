//! Which meters and marks the ports of a node get.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::tests::{node, placed};
use super::super::{Placement, PortLimits, compile};
use super::*;
use crate::intent::Spec;
use crate::ledger::Ledger;
use crate::ledger::tests::{endpoint, group, ledger, network, profile, tenant, with_profile};
use crate::profile::NetProfile;
use crate::rate::{Bandwidth, Burst};
use crate::tenant::{TenantChange, TenantSpec};

fn of_group(profile: NetProfile) -> Spec {
    Spec::NetProfile(NetProfile { scope: Scope::Group, ..profile })
}

/// The tenant with this limit of all its endpoints.
fn limited(name: &str, bandwidth: &str, burst: u32) -> Spec {
    let Spec::Tenant(spec) = tenant(name) else { panic!("a tenant") };
    let change = TenantChange {
        bandwidth: Some(Bandwidth::parse("bandwidth", bandwidth).unwrap()),
        burst: Some(Burst::new("burst", burst).unwrap()),
        ..TenantChange::default()
    };
    Spec::Tenant(TenantSpec { change, ..spec })
}

/// `port from to dscp`, and `meter rate burst`, in order.
fn qos(ledger: &Ledger, placement: &Placement) -> (Vec<String>, Vec<String>) {
    let entries = compile(ledger.intent(), &node("n1"), placement);
    let ids = |ids: &[MeterId]| ids.iter().map(|m| format!("{:x}", m.get())).collect::<Vec<_>>();
    let mut ports: Vec<_> = entries
        .iter()
        .filter_map(|entry| {
            let Entry::Qos(QosEntry { port, from, to, dscp }) = entry else { return None };
            let dscp = dscp.map_or("-".to_owned(), |dscp| dscp.to_string());
            Some(format!("{port} {} {} {dscp}", ids(from).join(","), ids(to).join(",")))
        })
        .collect();
    ports.sort();
    let meters = entries.iter().filter_map(|entry| {
        let Entry::Meter(MeterEntry { meter, unit, committed, peak, yellow_dscp }) = entry else {
            return None;
        };
        assert_eq!((*unit, *peak, *yellow_dscp), (MeterUnit::Bits, None, None));
        Some(format!("{:x} {} {}", meter.get(), committed.rate, committed.burst))
    });
    let meters = meters.collect();
    (ports, meters)
}

fn start() -> Vec<Spec> {
    vec![
        network("default:net", "10.1.1.0/24", "vxlan"),
        Spec::NetProfile(profile("default:gold", "6 Mbps", 80, 6)),
        with_profile(group("default:web", "net", "", &[]), "gold"),
        group("default:plain", "net", "", &[]),
        endpoint("a", "default:net", "web", "", "n1"),
        endpoint("b", "default:net", "web", "", "n1"),
        endpoint("c", "default:net", "plain", "", "n1"),
        endpoint("d", "default:net", "", "", "n1"),
        endpoint("far", "default:net", "web", "", "n2"),
    ]
}

fn all_placed() -> Placement {
    placed(&[("a", 5), ("b", 7), ("c", 8), ("d", 9), ("far", 10)], None)
}

#[test]
fn each_endpoint_of_a_group_gets_the_whole_rate_in_each_direction() {
    let (ports, meters) = qos(&ledger(start()), &all_placed());
    assert_eq!(ports, ["5 a b 6", "7 e f 6"]);
    let rate = ["a", "b", "e", "f"].map(|meter| format!("{meter} 6000000 80000"));
    assert_eq!(meters, rate);
}

#[test]
fn a_runtimes_limits_are_meters_of_their_own_one_for_each_direction_asked_for() {
    let mut placement = all_placed();
    let band = |rate, burst| Some(Band { rate, burst });
    let id = |id| EndpointId::parse("x", id).unwrap();
    placement.limits = BTreeMap::from([
        (id("a"), PortLimits { from: band(2_000_000, 5000), to: band(3_000_000, 6000) }),
        (id("d"), PortLimits { from: None, to: band(4_000_000, 7000) }),
    ]);
    let (ports, meters) = qos(&ledger(start()), &placement);
    assert_eq!(ports, ["5 a,2000000a b,2000000b 6", "7 e f 6", "9  20000013 -"]);
    let runtimes: Vec<_> = meters.iter().filter(|meter| meter.starts_with("200000")).collect();
    assert_eq!(
        runtimes,
        ["2000000a 2000000 5000", "2000000b 3000000 6000", "20000013 4000000 7000"]
    );
}

#[test]
fn endpoints_share_the_meters_of_a_group_scope_and_of_the_tenant() {
    let mut ledger = ledger(start());
    ledger.create(of_group(profile("default:gold", "6 Mbps", 0, 0))).unwrap();
    ledger.update(limited("default", "1g", 100)).unwrap();
    let (ports, meters) = qos(&ledger, &all_placed());
    let tenant = "40000002 40000003 -";
    let shared = "80000002,40000002 80000003,40000003 -";
    assert_eq!(
        ports,
        [
            format!("5 {shared}"),
            format!("7 {shared}"),
            format!("8 {tenant}"),
            format!("9 {tenant}")
        ]
    );
    assert_eq!(
        meters,
        [
            "40000002 1000000000 100000",
            "40000003 1000000000 100000",
            "80000002 6000000 75000",
            "80000003 6000000 75000",
        ]
    );
}

#[test]
fn what_limits_and_marks_nothing_makes_no_entry() {
    let mut ledger = ledger(start());
    let none = (Vec::<String>::new(), Vec::<String>::new());
    ledger.create(Spec::NetProfile(profile("default:gold", "", 1500, 0))).unwrap();
    assert_eq!(qos(&ledger, &all_placed()), none);
    ledger.create(Spec::NetProfile(profile("default:gold", "", 0, 10))).unwrap();
    assert_eq!(qos(&ledger, &all_placed()).0, ["5   10", "7   10"]);
    ledger.update(group("default:web", "net", "", &[])).unwrap();
    assert_eq!(qos(&ledger, &all_placed()), none);
    // Without its port on this node an endpoint has no entry and no meter.
    ledger.update(with_profile(group("default:web", "net", "", &[]), "gold")).unwrap();
    assert_eq!(qos(&ledger, &Placement::default()), none);
}

#[test]
fn an_endpoint_whose_group_does_not_resolve_has_no_entry() {
    let mut intent = ledger(start()).intent().clone();
    intent.remove(&crate::key::Key::parse(crate::key::Kind::EndpointGroup, "default:web").unwrap());
    let entries = compile(&intent, &node("n1"), &all_placed());
    assert!(!entries.iter().any(|entry| matches!(entry, Entry::Qos(_) | Entry::Meter(_))));
}

proptest! {
    #[test]
    fn meters_of_different_things_have_different_ids(
        port in 1u32..=4094, other_port in 1u32..=4094,
        vrf in 0u32..=0xff_ffff, other_vrf in 0u32..=0xff_ffff,
        group in 1u32..=GROUP_MAX, other_group in 1u32..=GROUP_MAX,
    ) {
        let ports = BTreeSet::from([port, other_port]);
        let vrfs = BTreeSet::from([vrf, other_vrf]);
        let groups = BTreeSet::from([group, other_group]);
        let things: Vec<_> = ports.into_iter().map(|n| Metered::Port(PortId::new(n).unwrap()))
            .chain(vrfs.into_iter().map(|n| Metered::Tenant(Vrf::new(n).unwrap())))
            .chain(groups.into_iter().map(|n| Metered::Group(Group::new(n).unwrap())))
            .collect();
        let ids: BTreeSet<_> = things.iter().flat_map(|thing| thing.ids().unwrap()).collect();
        prop_assert_eq!(ids.len(), 2 * things.len());
    }

    #[test]
    fn entries_follow_from_the_objects_alone_and_unrelated_changes_leave_them(
        members in prop::collection::vec((0usize..3, any::<bool>()), 0..10),
        rates in prop::collection::vec(0u32..3, 3), group_scope in any::<bool>(),
        tenant_rate in 0u32..2, unrelated in 1u32..6,
    ) {
        let bandwidth = |mega: u32| if mega == 0 { String::new() } else { format!("{mega}m") };
        let mut specs = vec![limited("red", &bandwidth(tenant_rate), 0), network("red:net", "10.1.0.0/16", "vxlan")];
        for (i, rate) in rates.iter().enumerate() {
            let key = format!("red:g{i}");
            let one = profile(&key, &bandwidth(*rate), 2, *rate);
            specs.push(if group_scope { of_group(one) } else { Spec::NetProfile(one) });
            specs.push(with_profile(group(&key, "net", "", &[]), &format!("g{i}")));
        }
        let mut placement = Placement::default();
        for (i, (grp, here)) in members.iter().enumerate() {
            let id = format!("e{i}");
            specs.push(endpoint(&id, "red:net", &format!("g{grp}"), "", if *here { "n1" } else { "n2" }));
            placement.ports.extend(placed(&[(&id, 10 + i as u32)], None).ports);
        }
        let mut ledger = ledger(specs);
        let (ports, meters) = qos(&ledger, &placement);
        // Slowly: every local member of a group with a rate or in a tenant with one.
        let mut expected = (Vec::new(), BTreeSet::new());
        for (i, (grp, here)) in members.iter().enumerate() {
            let (rate, port) = (rates[*grp], 10 + i as u32);
            if !here || (rate == 0 && tenant_rate == 0) { continue; }
            let own = if group_scope { 0x8000_0000 + 2 * (*grp as u32 + 1) } else { 2 * port };
            let mut firsts = Vec::new();
            if rate > 0 { firsts.push((own, rate, 2000)); }
            if tenant_rate > 0 { firsts.push((0x4000_0000 + 4, tenant_rate, 15_180)); }
            for (id, mega, burst) in &firsts {
                for meter in [*id, id + 1] { expected.1.insert((meter, u64::from(*mega) * 1_000_000, *burst)); }
            }
            let join = |plus: u32| firsts.iter().map(|(id, ..)| format!("{:x}", id + plus)).collect::<Vec<_>>().join(",");
            let dscp = if rate == 0 { "-".to_owned() } else { rate.to_string() };
            expected.0.push(format!("{port} {} {} {dscp}", join(0), join(1)));
        }
        let expected_meters: Vec<_> = expected.1.iter().map(|(id, rate, burst)| format!("{id:x} {rate} {burst}")).collect();
        prop_assert_eq!(&ports, &expected.0);
        prop_assert_eq!(&meters, &expected_meters);
        // Others come, with ports below and above.
        ledger.create(tenant("blue")).unwrap();
        ledger.create(network("blue:net", "10.1.0.0/16", "vxlan")).unwrap();
        ledger.create(Spec::NetProfile(profile("blue:p", "9g", 0, 0))).unwrap();
        ledger.create(with_profile(group("blue:g", "net", "", &[]), "p")).unwrap();
        for i in 0..unrelated {
            let (id, port) = (format!("aa{i}"), if i % 2 == 0 { 2 + i } else { 90 + i });
            ledger.create(endpoint(&id, "blue:net", "g", "", "n1")).unwrap();
            placement.ports.extend(placed(&[(&id, port)], None).ports);
        }
        let (after_ports, after_meters) = qos(&ledger, &placement);
        prop_assert!(ports.iter().all(|port| after_ports.contains(port)));
        prop_assert!(meters.iter().all(|meter| after_meters.contains(meter)));
        prop_assert_eq!(after_ports.len(), ports.len() + unrelated as usize);
    }
}
