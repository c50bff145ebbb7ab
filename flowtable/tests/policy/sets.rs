//! Large rule sets in the proportions of published ones, made from a seed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flowtable::entry::{Direction, IcmpMatch, Permit, PortRange, Prefix, RuleEntry, TcpFlagsMatch};
use flowtable::ids::{Group, Vrf};
use flowtable::policy::{PolicyMatch, PolicyQuery, PolicyTable};

use crate::oracle::{build, expected, oracle};
use crate::{any_rule, tcp_query};

/// A small generator (xorshift64), so that a set is the same in every run.
#[derive(Debug)]
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// What a set looks like.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// A router's access list: long blocks on both sides, exact destination ports, few ranges.
    AccessList,
    /// A firewall: one side is often open, ranges on both sides, SYN without ACK, ICMP types.
    Firewall,
    /// A Linux IP chain: a mix, many exact pairs, exact ports on both sides.
    Chain,
    /// Groups, as the controller writes them.
    Groups,
    /// Overlapping port ranges and nothing else: no bits that a table could look at.
    Ranges,
}

const KINDS: [Kind; 5] =
    [Kind::AccessList, Kind::Firewall, Kind::Chain, Kind::Groups, Kind::Ranges];

fn block(lengths: &[u8], draw: &mut Draw) -> Option<Prefix> {
    let len = draw.of(lengths);
    let ip = [
        10 + draw.below(3) as u8,
        draw.below(40) as u8,
        draw.below(64) as u8,
        draw.below(256) as u8,
    ];
    (len > 0).then(|| Prefix::new(ip.into(), len).unwrap())
}

fn port(draw: &mut Draw) -> PortRange {
    let first = draw.of(&[22, 25, 53, 80, 110, 123, 143, 161, 443, 993, 1521, 3306, 8080]);
    let first = if draw.below(3) == 0 { draw.below(65536) as u16 } else { first };
    PortRange { first, last: first }
}

fn range(draw: &mut Draw) -> PortRange {
    let first = draw.below(60000) as u16;
    match draw.below(3) {
        0 => PortRange { first: 1024, last: 65535 },
        1 => PortRange { first, last: first + draw.below(16) as u16 },
        _ => PortRange { first, last: first + draw.below(5000) as u16 },
    }
}

fn ports(exact: u64, ranged: u64, draw: &mut Draw) -> Option<PortRange> {
    match draw.below(100) {
        n if n < exact => Some(port(draw)),
        n if n < exact + ranged => Some(range(draw)),
        _ => None,
    }
}

fn rule(kind: Kind, number: u64, draw: &mut Draw) -> RuleEntry {
    let group = |draw: &mut Draw| Some(Group::new(draw.below(300) as u32).unwrap());
    let base = any_rule(number);
    let mut rule = match kind {
        Kind::AccessList => RuleEntry {
            src: block(&[0, 16, 20, 24, 27, 30, 32, 32], draw),
            dst: block(&[16, 21, 24, 28, 32, 32, 32], draw),
            protocol: draw.of(&[Some(6), Some(6), Some(6), Some(17), None]),
            dst_ports: ports(70, 15, draw),
            ..base
        },
        Kind::Firewall => RuleEntry {
            src: block(&[0, 0, 0, 1, 2, 21, 28, 30, 32], draw),
            dst: block(&[0, 29, 30, 31, 32, 32], draw),
            protocol: draw.of(&[Some(6), Some(6), Some(17), Some(1), Some(47)]),
            src_ports: ports(40, 20, draw),
            dst_ports: ports(40, 30, draw),
            ..base
        },
        Kind::Chain => RuleEntry {
            src: block(&[0, 8, 15, 24, 28, 31, 32, 32, 32], draw),
            dst: block(&[0, 8, 17, 24, 27, 31, 32, 32, 32], draw),
            protocol: draw.of(&[Some(6), Some(17), Some(17), None]),
            src_ports: ports(30, 5, draw),
            dst_ports: ports(60, 10, draw),
            ..base
        },
        Kind::Groups => RuleEntry {
            src_group: if draw.below(4) == 0 { None } else { group(draw) },
            dst_group: group(draw),
            protocol: Some(6),
            dst_ports: ports(80, 10, draw),
            ..base
        },
        Kind::Ranges => {
            RuleEntry { src_ports: ports(0, 100, draw), dst_ports: ports(0, 100, draw), ..base }
        }
    };
    if !matches!(rule.protocol, Some(6 | 17)) && !matches!(kind, Kind::Ranges) {
        (rule.src_ports, rule.dst_ports) = (None, None);
    }
    if rule.protocol == Some(1) {
        rule.icmp =
            Some(IcmpMatch { kind: draw.of(&[0, 3, 8, 11, 13]), code: draw.of(&[None, Some(0)]) });
    }
    if rule.protocol == Some(6) && draw.below(2) == 0 {
        let (value, mask) = draw.of(&[(0x10, 0x10), (0x00, 0x02), (0x02, 0x12), (0x04, 0x04)]);
        rule.tcp_flags = Some(TcpFlagsMatch { value, mask });
    }
    rule.permit = draw.of(&[Permit::Allow, Permit::Deny]);
    rule
}

/// `count` rules, each with its own priority but the last ones; no rule matches everything.
pub(crate) fn rule_set(kind: Kind, count: u64, draw: &mut Draw) -> Vec<RuleEntry> {
    let priority = |number: u64| u16::try_from(60000 - number.min(59999)).unwrap();
    let rules = (0..count).map(|number| rule(kind, number, draw));
    rules.map(|rule| RuleEntry { priority: priority(rule.rule.0), ..rule }).collect()
}

/// A packet near a rule: inside it, or with one field of another.
pub(crate) fn packet(rules: &[RuleEntry], draw: &mut Draw) -> PolicyQuery {
    let mut near = rules[draw.below(rules.len() as u64) as usize].clone();
    let far = &rules[draw.below(rules.len() as u64) as usize];
    match draw.below(8) {
        0 => near.src = far.src,
        1 => near.dst = far.dst,
        2 => near.dst_ports = far.dst_ports,
        3 => near.protocol = far.protocol,
        4 => near.dst_group = far.dst_group,
        _ => {}
    }
    let ip = |block: Option<Prefix>, draw: &mut Draw| {
        let Some(IpAddr::V4(base)) = block.map(Prefix::address) else {
            return IpAddr::from((draw.below(1 << 32) as u32).to_be_bytes());
        };
        let host = u32::MAX.checked_shr(block.map_or(0, Prefix::length).into()).unwrap_or(0);
        IpAddr::from((base.to_bits() | draw.below(1 << 32) as u32 & host).to_be_bytes())
    };
    let port = |range: Option<PortRange>, draw: &mut Draw| {
        let PortRange { first, last } = range.unwrap_or(PortRange { first: 0, last: 65535 });
        let within = first + draw.below(u64::from(last - first) + 1) as u16;
        draw.of(&[first, last, within])
    };
    let group = |group: Option<Group>, draw: &mut Draw| {
        group.unwrap_or_else(|| Group::new(draw.below(300) as u32).unwrap())
    };
    let protocol = near.protocol.unwrap_or_else(|| draw.of(&[6, 17, 1, 47]));
    let ports = (port(near.src_ports, draw), port(near.dst_ports, draw));
    let icmp = near.icmp.map_or(8, |icmp| icmp.kind);
    let flags = near.tcp_flags.map_or(0x18, |flags| flags.value);
    PolicyQuery {
        direction: Direction::In,
        vrf: Vrf::new(1).unwrap(),
        src_group: group(near.src_group, draw),
        dst_group: group(near.dst_group, draw),
        src: ip(near.src, draw),
        dst: ip(near.dst, draw),
        protocol,
        ports: matches!(protocol, 6 | 17).then_some(ports),
        icmp: (protocol == 1).then_some((icmp, draw.below(2) as u8)),
        tcp_flags: (protocol == 6).then_some(flags),
    }
}

/// Compares and counts: how often each rule decided, and how often none.
fn compare(
    rules: &[RuleEntry],
    table: &PolicyTable,
    packets: u32,
    draw: &mut Draw,
) -> (Vec<u32>, u32) {
    let (mut hits, mut misses) = (vec![0; rules.len()], 0);
    for _ in 0..packets {
        let query = packet(rules, draw);
        let want = oracle(rules, &query);
        let found = table.lookup(&query).copied();
        assert_eq!(found, want.map(|at| expected(rules, at)), "{query:?}");
        match found {
            Some(PolicyMatch { slot, .. }) => hits[slot as usize - 1000] += 1,
            None => misses += 1,
        }
    }
    (hits, misses)
}

#[test]
fn large_sets_of_every_kind_decide_and_count_as_the_oracle() {
    for kind in KINDS {
        let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
        let rules = rule_set(kind, 1500, &mut draw);
        let table = build(&rules);
        let (hits, misses) = compare(&rules, &table, 1500, &mut draw);
        assert_eq!(hits.iter().sum::<u32>() + misses, 1500);
        let reached = hits.iter().filter(|count| **count > 0).count();
        assert!(reached > 10, "{kind:?}: the packets reach only {reached} rules");
    }
}

#[test]
fn ten_thousand_rules_of_every_kind_have_few_tables() {
    for kind in KINDS {
        let rules = rule_set(kind, 10_000, &mut Draw(7));
        let table = build(&rules);
        let len = |block: Option<Prefix>| block.map(Prefix::length);
        let shape =
            |r: &RuleEntry| (len(r.src), len(r.dst), r.protocol, r.tcp_flags.map(|f| f.mask));
        let shapes = rules.iter().map(shape).collect::<BTreeSet<_>>().len();
        let tables = table.tuples();
        assert_eq!(table.len(), 10_000);
        let most = if matches!(kind, Kind::Ranges) { 32 } else { 24 };
        assert!(tables <= most, "{kind:?}: {tables} tables for {shapes} shapes");
        let mut draw = Draw(3);
        for _ in 0..200 {
            let query = packet(&rules, &mut draw);
            assert!(table.probes(&query) as usize <= tables);
        }
    }
}

#[test]
fn a_wildcard_for_every_combination_of_fields_stays_within_the_bound() {
    let host = |last: u8| Some(Prefix::host([10, 0, 0, last].into()));
    let mut rules = Vec::new();
    for number in 0..4096_u64 {
        let has = |bit: u32| number >> bit & 1 == 1;
        let len = |bit: u32| (number >> bit & 7) as u8 * 4;
        let block = |len: u8| Some(Prefix::new([10, 20, 30, 40].into(), len).unwrap());
        rules.push(RuleEntry {
            src: if has(0) { block(len(6)) } else { host(1) },
            dst: if has(1) { block(len(9)) } else { None },
            protocol: has(2).then_some(6),
            dst_ports: has(3).then_some(PortRange { first: 80, last: 80 }),
            src_group: has(4).then_some(Group::NONE),
            dst_group: has(5).then(|| Group::new(2).unwrap()),
            priority: 1 + (number % 97) as u16,
            ..any_rule(number)
        });
    }
    let table = build(&rules);
    assert!(table.tuples() <= 32, "{} tables", table.tuples());
    let (_, misses) = compare(&rules, &table, 500, &mut Draw(5));
    assert!(misses < 500);
    let query =
        PolicyQuery { src: [10, 20, 30, 40].into(), dst: [10, 20, 30, 40].into(), ..tcp_query() };
    assert_eq!(
        table.lookup(&query).copied(),
        oracle(&rules, &query).map(|at| expected(&rules, at))
    );
}
