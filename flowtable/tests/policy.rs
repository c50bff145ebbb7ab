//! The classifier against an oracle that walks the rules one by one.

#![expect(clippy::unwrap_used, reason = "test code, though not in test functions")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use flowtable::entry::{Direction, Permit, PortRange, Prefix, RuleEntry};
use flowtable::ids::{Group, RuleId, Vrf};
use flowtable::policy::{PolicyMatch, PolicyQuery, PolicyTable};
use proptest::prelude::*;

/// Whether one rule matches, word by word as the rule is documented.
fn matches(rule: &RuleEntry, query: &PolicyQuery) -> bool {
    let v6 = query.src.is_ipv6();
    let has_ports = query.protocol == 6 || query.protocol == 17;
    let port_in = |range: Option<PortRange>, side: fn((u16, u16)) -> u16| match (range, query.ports)
    {
        (None, _) => true,
        (Some(range), Some(ports)) => {
            has_ports && range.first <= side(ports) && side(ports) <= range.last
        }
        (Some(_), None) => false,
    };
    let protocol = match rule.protocol {
        None => true,
        Some(1) => query.protocol == 1 || (query.protocol == 58 && v6),
        Some(protocol) => query.protocol == protocol,
    };
    rule.direction == query.direction
        && rule.vrf == query.vrf
        && rule.src_group.is_none_or(|group| group == query.src_group)
        && rule.dst_group.is_none_or(|group| group == query.dst_group)
        && rule.src.is_none_or(|block| block.contains(query.src))
        && rule.dst.is_none_or(|block| block.contains(query.dst))
        && protocol
        && port_in(rule.src_ports, |ports| ports.0)
        && port_in(rule.dst_ports, |ports| ports.1)
}

/// The index of the best matching rule; later ones replace it only when they are better.
fn oracle(rules: &[RuleEntry], query: &PolicyQuery) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (at, rule) in rules.iter().enumerate().filter(|(_, rule)| matches(rule, query)) {
        let better = best.is_none_or(|best| {
            let old = &rules[best];
            if rule.priority != old.priority {
                rule.priority > old.priority
            } else if rule.permit != old.permit {
                rule.permit == Permit::Deny
            } else {
                (rule.rule, rule.seq) < (old.rule, old.seq)
            }
        });
        if better {
            best = Some(at);
        }
    }
    best
}

fn expected(rules: &[RuleEntry], at: usize) -> PolicyMatch {
    let RuleEntry { rule, priority, permit, seq, .. } = rules[at];
    PolicyMatch { rule, priority, permit, slot: at as u32 + 1000, seq }
}

fn build(rules: &[RuleEntry]) -> PolicyTable {
    PolicyTable::build(rules.iter().zip(1000..))
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    (any::<bool>(), 0..2_u8, 0..3_u8).prop_map(|(v6, net, host)| {
        if v6 {
            IpAddr::from([0xfd, 0, 0, 0, 0, 0, 0, net, 0, 0, 0, 0, 0, 0, 0, host])
        } else {
            IpAddr::from([10, 0, net, host])
        }
    })
}

fn blocks() -> impl Strategy<Value = Option<Prefix>> {
    let length = prop_oneof![Just(0_u8), Just(8), Just(24), Just(31), Just(32)];
    let block = (addresses(), length).prop_map(|(ip, len)| {
        let len = if ip.is_ipv6() { len * 4 } else { len };
        Prefix::new(ip, len).unwrap()
    });
    proptest::option::of(block)
}

fn ranges() -> impl Strategy<Value = Option<PortRange>> {
    let range = (0..6_u16, 0..4_u16).prop_map(|(first, more)| PortRange {
        first: first + 78,
        // Now and then an empty range, which matches nothing.
        last: (first + 78 + more).saturating_sub(1),
    });
    proptest::option::weighted(0.4, range)
}

fn protocols() -> impl Strategy<Value = u8> {
    prop_oneof![4 => Just(6_u8), 3 => Just(17), 2 => Just(1), 2 => Just(58), 1 => Just(47)]
}

fn directions() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::In), Just(Direction::Out)]
}

fn group() -> impl Strategy<Value = Group> {
    (0..4_u32).prop_map(|group| Group::new(group).unwrap())
}

fn vrf() -> impl Strategy<Value = Vrf> {
    (0..2_u32).prop_map(|vrf| Vrf::new(vrf).unwrap())
}

fn rules() -> impl Strategy<Value = RuleEntry> {
    let ends = (
        proptest::option::weighted(0.4, group()),
        proptest::option::weighted(0.4, group()),
        blocks(),
        blocks(),
    );
    let permit = prop_oneof![Just(Permit::Allow), Just(Permit::Deny)];
    let packet = (proptest::option::of(protocols()), ranges(), ranges());
    let identity = (0..20_u64, 0..3_u32, 1..5_u16);
    (identity, (directions(), vrf()), ends, packet, permit).prop_map(
        |((rule, seq, priority), (direction, vrf), ends, packet, permit)| RuleEntry {
            rule: RuleId(rule),
            seq,
            priority,
            direction,
            vrf,
            src_group: ends.0,
            dst_group: ends.1,
            src: ends.2,
            dst: ends.3,
            protocol: packet.0,
            src_ports: packet.1,
            dst_ports: packet.2,
            icmp: None,
            tcp_flags: None,
            permit,
        },
    )
}

fn queries() -> impl Strategy<Value = PolicyQuery> {
    let ends = (group(), group(), addresses(), addresses());
    let ports = proptest::option::weighted(0.8, (76..88_u16, 76..88_u16));
    (directions(), vrf(), ends, protocols(), ports).prop_map(
        |(direction, vrf, (src_group, dst_group, src, dst), protocol, ports)| {
            // A packet has one family.
            let dst = if src.is_ipv6() == dst.is_ipv6() { dst } else { src };
            PolicyQuery {
                direction,
                vrf,
                src_group,
                dst_group,
                src,
                dst,
                protocol,
                ports,
                icmp: None,
                tcp_flags: None,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_classifier_equals_the_oracle(
        rules in proptest::collection::vec(rules(), 0..60),
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

fn any_rule(number: u64) -> RuleEntry {
    RuleEntry {
        rule: RuleId(number),
        seq: 0,
        priority: 10,
        direction: Direction::In,
        vrf: Vrf::new(1).unwrap(),
        src_group: None,
        dst_group: None,
        src: None,
        dst: None,
        protocol: None,
        src_ports: None,
        dst_ports: None,
        icmp: None,
        tcp_flags: None,
        permit: Permit::Allow,
    }
}

fn tcp_query() -> PolicyQuery {
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

/// A small generator (xorshift64), so that the set is the same in every run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Rules in the proportions of the `ClassBench` access lists: nested blocks of a few lengths, mostly
/// exact destination ports, some ranges.
fn access_list(count: u64, draw: &mut Draw) -> Vec<RuleEntry> {
    let block = |lengths: &[u8], draw: &mut Draw| {
        let len = lengths[draw.below(lengths.len() as u64) as usize];
        let ip = [10, draw.below(4) as u8, draw.below(8) as u8, draw.below(32) as u8];
        (len > 0).then(|| Prefix::new(ip.into(), len).unwrap())
    };
    (0..count)
        .map(|number| RuleEntry {
            priority: 1 + draw.below(100) as u16,
            src: block(&[0, 16, 24, 32], draw),
            dst: block(&[16, 24, 28, 32], draw),
            protocol: [Some(6), Some(6), Some(17), None][draw.below(4) as usize],
            dst_ports: match draw.below(4) {
                0 => None,
                1 => Some(PortRange { first: 1024, last: 65535 }),
                _ => {
                    let port = [22, 53, 80, 443, 8080][draw.below(5) as usize];
                    Some(PortRange { first: port, last: port })
                }
            },
            permit: if draw.below(2) == 0 { Permit::Allow } else { Permit::Deny },
            ..any_rule(number)
        })
        .collect()
}

fn random_query(draw: &mut Draw) -> PolicyQuery {
    let ip = |draw: &mut Draw| {
        IpAddr::from([10, draw.below(4) as u8, draw.below(8) as u8, draw.below(32) as u8])
    };
    let port = [22, 53, 80, 443, 8080, 2000][draw.below(6) as usize];
    let protocol = if draw.below(3) == 0 { 17 } else { 6 };
    PolicyQuery {
        src: ip(draw),
        dst: ip(draw),
        protocol,
        ports: Some((40000, port)),
        ..tcp_query()
    }
}

#[test]
fn an_access_list_has_few_tuples_and_decides_as_the_oracle() {
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
    let rules = access_list(400, &mut draw);
    let table = build(&rules);
    let exact = |range: Option<PortRange>| range.is_some_and(|range| range.first == range.last);
    let shape = |rule: &RuleEntry| {
        let len = |block: Option<Prefix>| block.map(Prefix::length);
        (len(rule.src), len(rule.dst), rule.protocol.is_some(), exact(rule.dst_ports))
    };
    let shapes: BTreeSet<_> = rules.iter().map(shape).collect();
    assert_eq!((table.len(), table.tuples()), (400, shapes.len()));
    let mut hits = vec![0_u32; rules.len()];
    let mut misses = 0;
    for _ in 0..5000 {
        let query = random_query(&mut draw);
        let want = oracle(&rules, &query);
        let found = table.lookup(&query);
        assert_eq!(found.copied(), want.map(|at| expected(&rules, at)));
        match found {
            Some(found) => hits[found.slot as usize - 1000] += 1,
            None => misses += 1,
        }
    }
    assert_eq!(hits.iter().sum::<u32>() + misses, 5000);
    let reached = hits.iter().filter(|count| **count > 0).count();
    assert!(reached > 50, "the queries reach only {reached} rules");
}

#[test]
fn ten_thousand_rules_have_only_as_many_tuples_as_shapes() {
    let rules = access_list(10_000, &mut Draw(7));
    let table = build(&rules);
    // 4 source lengths, 4 destination lengths, protocol or not, port exact or not.
    assert_eq!((table.len(), table.tuples()), (10_000, 64));
}
