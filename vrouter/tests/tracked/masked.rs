//! The masked cache answers for many flows, and never otherwise than the tables would.

use flowtable::entry::{
    Direction, Entry, EntryKey, GroupEntry, NetworkEntry, Op, Permit, PortRange, QosEntry,
    RuleEntry, TunnelEntry, VtepEntry,
};
use flowtable::ids::Dscp;

use super::*;
use crate::fabric::{A1, A2, A9, DB, Host, LOCAL, REMOTE, WEB, prefix};

/// Packets decided by each tier since.
fn tiers(fabric: &Fabric, before: vrouter::CacheStats) -> [u64; 3] {
    let now = fabric.engine.cache();
    [
        now.exact_hits - before.exact_hits,
        now.masked_hits - before.masked_hits,
        now.pipeline - before.pipeline,
    ]
}

#[test]
fn a_thousand_connections_to_a_service_walk_the_tables_once_per_direction() {
    let mut fabric = with(open_to(6, 80).into_iter().chain([Entry::Tenant(tenant(Permit::Deny))]));
    let before = fabric.engine.cache();
    for src in 1000..2000 {
        connect(&mut fabric, (&A1, src), (&A2, 80));
    }
    assert_eq!(tiers(&fabric, before), [1000, 1998, 2]);
    let rules = [count(&fabric, 1).packets, count(&fabric, 2).packets];
    assert_eq!(rules, [2000, 2000], "and every packet is counted");
    assert_eq!(open_count(&fabric, BLUE), 1000);
}

#[test]
fn without_a_masked_cache_every_new_flow_walks() {
    let config = EngineConfig { masked_entries: 0, ..EngineConfig::default() };
    let mut fabric = Fabric::stateful(&config);
    let before = fabric.engine.cache();
    for src in 0..100 {
        assert_eq!(says(&mut fabric, &A1, &A2, L4::Udp(src, 53)), Ok(()));
    }
    assert_eq!(tiers(&fabric, before), [0, 0, 100]);
}

#[test]
fn a_port_that_a_rule_looks_at_is_never_masked() {
    let deny = RuleEntry {
        protocol: Some(17),
        dst_ports: Some(PortRange { first: 500, last: 509 }),
        ..rule(1, Direction::In, Permit::Deny)
    };
    let from = RuleEntry {
        rule: RuleId(2),
        dst_ports: None,
        src_ports: Some(PortRange { first: 0, last: 3 }),
        ..deny.clone()
    };
    for rules in [vec![deny.clone()], vec![from.clone()], vec![deny, from]] {
        let mut fabric = with(rules.iter().cloned().map(Entry::Rule));
        for (dst, src) in (490..520).rev().flat_map(|dst| (0..6).map(move |src| (dst, src))) {
            let denied = rules
                .iter()
                .any(|rule| is_within(rule.src_ports, src) && is_within(rule.dst_ports, dst));
            let expected = if denied { DENIED } else { Ok(()) };
            assert_eq!(says(&mut fabric, &A1, &A2, L4::Udp(src, dst)), expected);
        }
    }
}

fn is_within(range: Option<PortRange>, port: u16) -> bool {
    range.is_none_or(|range| range.first <= port && port <= range.last)
}

#[test]
fn an_allowed_echo_does_not_let_other_messages_pass() {
    let echo = RuleEntry {
        protocol: Some(1),
        icmp: Some(flowtable::entry::IcmpMatch { kind: 8, code: None }),
        ..rule(1, Direction::Out, Permit::Allow)
    };
    let into = RuleEntry { rule: RuleId(2), direction: Direction::In, ..echo.clone() };
    let rules = [echo, into].map(Entry::Rule);
    let mut fabric = with([Entry::Tenant(tenant(Permit::Deny))].into_iter().chain(rules));
    for id in 0..5 {
        assert_eq!(says(&mut fabric, &A1, &A2, L4::Icmp(8, 0, id << 16)), Ok(()));
        assert_eq!(says(&mut fabric, &A1, &A2, L4::Icmp(13, 0, id << 16)), DENIED);
        assert_eq!(says(&mut fabric, &A2, &A1, L4::Icmp(0, 0, id << 16)), Ok(()));
        assert_eq!(says(&mut fabric, &A2, &A1, L4::Icmp(0, 0, (id + 1) << 16)), DENIED);
    }
}

/// A change of a table, and what becomes of new flows from A1 to a host by it.
fn changes() -> Vec<(Vec<Op>, Host, Fate)> {
    let put = |entry| vec![Op::Put(entry)];
    let deny = rule(9, Direction::In, Permit::Deny);
    let group = RuleEntry { dst_group: Some(WEB), ..deny.clone() };
    let moved = GroupEntry { vrf: BLUE, prefix: prefix([10, 1, 1, 9], 32), group: DB };
    let out = RuleEntry {
        dst_group: Some(DB),
        dst: Some(prefix([10, 1, 1, 9], 32)),
        ..rule(8, Direction::Out, Permit::Deny)
    };
    let wire = NetworkEntry {
        bd: A1.bd,
        vrf: fabric::RED,
        subnets: Vec::new(),
        gateways: Vec::new(),
        wire: None,
    };
    let foreign = TunnelEntry { vni: VNI_A, bd: A1.bd, vrf: fabric::RED };
    vec![
        (put(Entry::Rule(deny)), A2, DENIED),
        (put(Entry::Tenant(tenant(Permit::Deny))), A2, DENIED),
        (vec![Op::Put(Entry::Rule(out)), Op::Put(Entry::Group(moved))], A9, DENIED),
        (
            vec![
                Op::Put(Entry::Rule(group)),
                Op::Put(Entry::Port(flowtable::entry::PortEntry { group: WEB, ..A2.binding() })),
            ],
            A2,
            DENIED,
        ),
        (vec![Op::Delete(EntryKey::Port(A2.port()))], A2, Err(DropReason::PortGone)),
        (
            vec![Op::Delete(A2.entries()[0].key()), Op::Delete(A2.entries()[1].key())],
            A2,
            Err(DropReason::UnknownEndpoint),
        ),
        (vec![Op::Delete(EntryKey::Vtep(REMOTE))], A9, Err(DropReason::UnknownVtep)),
        (vec![Op::Delete(EntryKey::Underlay(REMOTE))], A9, Err(DropReason::UnresolvedUnderlay)),
        (put(Entry::Tunnel(foreign)), A9, Err(DropReason::NoRoute)),
        (put(Entry::Network(wire)), A2, Ok(())),
        (put(Entry::Vtep(VtepEntry { ip: REMOTE, local: LOCAL })), A9, Ok(())),
    ]
}

#[test]
fn dbg_1_any_change_of_a_table_is_seen_by_the_next_flow_of_a_masked_decision() {
    for (ops, to, expected) in changes() {
        let mut fabric = with([]);
        for src in 0..3 {
            assert_eq!(says(&mut fabric, &A1, &to, L4::Udp(src, 53)), Ok(()));
        }
        let before = fabric.engine.cache();
        assert_eq!(says(&mut fabric, &A1, &to, L4::Udp(3, 53)), Ok(()));
        assert_eq!(tiers(&fabric, before), [0, 1, 0], "it is a masked decision");
        fabric.write(&ops);
        assert_eq!(says(&mut fabric, &A1, &to, L4::Udp(4, 53)), expected, "{ops:?}");
        assert_eq!(says(&mut fabric, &A1, &to, L4::Udp(3, 53)), expected, "{ops:?}");
        let (port, frame) = sent(&A1, &A1.to(&to).l4(L4::Udp(5, 53)));
        let trace = fabric.engine.trace(port, &frame).verdict;
        assert_eq!(matches!(trace, flowtable::Verdict::Forward(_)), expected.is_ok());
    }
}

#[test]
fn a_new_mark_is_on_the_next_flow_of_a_masked_decision() {
    let mark = |dscp: u32| {
        let dscp = Some(Dscp::new(dscp).unwrap());
        Entry::Qos(QosEntry { port: A1.port(), from: Vec::new(), to: Vec::new(), dscp })
    };
    let mut fabric = with([mark(10)]);
    for (dscp, src) in [(10_u8, 1), (10, 2), (20, 3), (0, 4)] {
        fabric.put([mark(dscp.into())]);
        let delivered = send(&mut fabric, &A1, &A1.to(&A2).l4(L4::Udp(src, 53)));
        assert_eq!(delivered.out[0].1[15], dscp << 2);
    }
}
