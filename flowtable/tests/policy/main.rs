//! The classifier against an oracle that walks the rules one by one.

#![expect(clippy::unwrap_used, reason = "test code, though not in test functions")]

mod changes;
mod masks;
mod oracle;
mod sets;

use flowtable::entry::{Direction, IcmpMatch, Permit, PortRange, RuleEntry, TcpFlagsMatch};
use flowtable::ids::{Group, RuleId, Vrf};
use flowtable::policy::{PolicyQuery, PolicyTable};
use oracle::{build, expected, oracle, queries, rules};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_classifier_equals_the_oracle(
        rules in proptest::collection::vec(rules(), 0..250),
        queries in proptest::collection::vec(queries(), 1..30),
    ) {
        // One entry per key, as the tables hold them.
        let mut rules = rules;
        rules.sort_by_key(|rule| (rule.rule, rule.seq));
        rules.dedup_by_key(|rule| (rule.rule, rule.seq));
        let table = build(&rules);
        prop_assert_eq!(table.len(), rules.len());
        prop_assert!(table.tuples() <= rules.len());
        for query in &queries {
            let want = oracle(&rules, query).map(|at| expected(&rules, at));
            prop_assert_eq!(table.lookup(query).copied(), want, "{:?}", query);
        }
    }

    #[test]
    fn the_order_of_building_does_not_matter(
        rules in proptest::collection::vec(rules(), 0..40), query in queries(),
    ) {
        let mut rules = rules;
        rules.sort_by_key(|rule| (rule.rule, rule.seq));
        rules.dedup_by_key(|rule| (rule.rule, rule.seq));
        let numbered: Vec<_> = rules.iter().zip(0..).collect();
        let forward = PolicyTable::build(numbered.iter().copied());
        let backward = PolicyTable::build(numbered.iter().rev().copied());
        prop_assert_eq!(forward.lookup(&query), backward.lookup(&query));
    }
}

pub(crate) fn any_rule(number: u64) -> RuleEntry {
    RuleEntry {
        priority: 10,
        ..RuleEntry::any(RuleId(number), Vrf::new(1).unwrap(), Direction::In, Permit::Allow)
    }
}

pub(crate) fn tcp_query() -> PolicyQuery {
    PolicyQuery {
        direction: Direction::In,
        vrf: Vrf::new(1).unwrap(),
        src_group: Group::NONE,
        dst_group: Group::new(2).unwrap(),
        src: "10.0.0.1".parse().unwrap(),
        dst: "10.0.0.2".parse().unwrap(),
        protocol: 6,
        ports: Some((40000, 80)),
        icmp: None,
        tcp_flags: None,
    }
}

fn deciding(rules: &[RuleEntry], query: &PolicyQuery) -> Option<u64> {
    build(rules).lookup(query).map(|found| found.rule.0)
}

#[test]
fn deny_wins_a_tie_and_priority_beats_deny() {
    let allow = any_rule(1);
    let deny = RuleEntry { permit: Permit::Deny, protocol: Some(6), ..any_rule(2) };
    let high = RuleEntry { priority: 11, ..any_rule(3) };
    let query = tcp_query();
    assert_eq!(deciding(&[allow.clone(), deny.clone()], &query), Some(2));
    assert_eq!(deciding(&[allow, deny, high], &query), Some(3));
    assert_eq!(deciding(&[], &query), None);
}

#[test]
fn a_rule_with_ports_never_matches_what_has_none() {
    let range = Some(PortRange { first: 0, last: 65535 });
    let rules = [RuleEntry { dst_ports: range, ..any_rule(1) }];
    assert_eq!(deciding(&rules, &tcp_query()), Some(1));
    assert_eq!(deciding(&rules, &PolicyQuery { ports: None, ..tcp_query() }), None);
    assert_eq!(deciding(&rules, &PolicyQuery { protocol: 1, ..tcp_query() }), None);
}

#[test]
fn icmp_means_icmpv6_in_ipv6_packets_only() {
    let rules = [RuleEntry { protocol: Some(1), ..any_rule(1) }];
    let v4 = PolicyQuery { protocol: 58, ports: None, ..tcp_query() };
    let v6 = PolicyQuery { src: "fd00::1".parse().unwrap(), dst: "fd00::2".parse().unwrap(), ..v4 };
    assert_eq!((deciding(&rules, &v4), deciding(&rules, &v6)), (None, Some(1)));
    assert_eq!(deciding(&rules, &PolicyQuery { protocol: 1, ..v4 }), Some(1));
}

#[test]
fn another_tenants_rules_neither_match_nor_cost_tuples() {
    let other = RuleEntry { vrf: Vrf::new(2).unwrap(), permit: Permit::Deny, ..any_rule(1) };
    let table = build(&[other, any_rule(2)]);
    assert_eq!((table.len(), table.tuples()), (2, 2));
    assert_eq!(table.lookup(&tcp_query()).map(|found| found.rule), Some(RuleId(2)));
}

#[test]
fn icmp_type_and_code_are_compared_where_there_are_any() {
    let kind = |code| Some(IcmpMatch { kind: 3, code });
    let rules = [
        RuleEntry { icmp: kind(Some(4)), priority: 11, ..any_rule(1) },
        RuleEntry { icmp: kind(None), ..any_rule(2) },
    ];
    let packet = |icmp| PolicyQuery { protocol: 1, ports: None, icmp, ..tcp_query() };
    assert_eq!(deciding(&rules, &packet(Some((3, 4)))), Some(1));
    assert_eq!(deciding(&rules, &packet(Some((3, 1)))), Some(2));
    assert_eq!(deciding(&rules, &packet(Some((8, 4)))), None);
    // A later fragment, and a TCP packet whose port looks like type 3, code 4.
    assert_eq!(deciding(&rules, &packet(None)), None);
    assert_eq!(deciding(&rules, &PolicyQuery { ports: Some((1, 0x0304)), ..tcp_query() }), None);
}

#[test]
fn tcp_flags_are_compared_under_their_mask() {
    let syn_alone = Some(TcpFlagsMatch { value: 0x02, mask: 0x12 });
    let rules = [RuleEntry { tcp_flags: syn_alone, ..any_rule(1) }];
    let packet = |tcp_flags| PolicyQuery { tcp_flags, ..tcp_query() };
    let decided = [Some(0x02), Some(0xc2), Some(0x12), Some(0x10), None];
    let decided = decided.map(|flags| deciding(&rules, &packet(flags)));
    assert_eq!(decided, [Some(1), Some(1), None, None, None]);
    let table = build(&rules);
    assert_eq!(table.tcp_flags_mask(), 0x12);
    assert_eq!(PolicyTable::default().tcp_flags_mask(), 0);
}

#[test]
fn entries_that_cannot_match_count_and_do_nothing() {
    let rules = [
        RuleEntry { dst_ports: Some(PortRange { first: 9, last: 8 }), ..any_rule(1) },
        RuleEntry { tcp_flags: Some(TcpFlagsMatch { value: 1, mask: 2 }), ..any_rule(2) },
    ];
    let table = build(&rules);
    assert_eq!((table.len(), table.tuples()), (2, 0));
    let packet = PolicyQuery { tcp_flags: Some(3), ..tcp_query() };
    assert_eq!(table.lookup(&packet), None);
    assert_eq!(table.probes(&packet), 0);
}
