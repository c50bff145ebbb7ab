//! The oracle, which walks the rules one by one, and what it is asked about.

use std::net::IpAddr;

use flowtable::entry::{Direction, IcmpMatch, Permit, PortRange, Prefix, RuleEntry, TcpFlagsMatch};
use flowtable::ids::{Group, RuleId, Vrf};
use flowtable::policy::{PolicyMatch, PolicyQuery, PolicyTable};
use proptest::prelude::*;

/// Whether one rule matches, word by word as the rule is documented.
pub(crate) fn matches(rule: &RuleEntry, query: &PolicyQuery) -> bool {
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
        && rule.icmp.is_none_or(|want| {
            let icmp = matches!(query.protocol, 1 | 58).then_some(query.icmp).flatten();
            icmp.is_some_and(|(kind, code)| {
                kind == want.kind && want.code.is_none_or(|want| want == code)
            })
        })
        && rule.tcp_flags.is_none_or(|want| {
            let flags = (query.protocol == 6).then_some(query.tcp_flags).flatten();
            flags.is_some_and(|flags| flags & want.mask == want.value)
        })
}

/// The index of the best matching rule; later ones replace it only when they are better.
pub(crate) fn oracle(rules: &[RuleEntry], query: &PolicyQuery) -> Option<usize> {
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

pub(crate) fn expected(rules: &[RuleEntry], at: usize) -> PolicyMatch {
    let RuleEntry { rule, priority, permit, seq, .. } = rules[at];
    PolicyMatch { rule, priority, permit, slot: at as u32 + 1000, seq }
}

pub(crate) fn build(rules: &[RuleEntry]) -> PolicyTable {
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

pub(crate) fn rules() -> impl Strategy<Value = RuleEntry> {
    let ends = (
        proptest::option::weighted(0.4, group()),
        proptest::option::weighted(0.4, group()),
        blocks(),
        blocks(),
    );
    let permit = prop_oneof![Just(Permit::Allow), Just(Permit::Deny)];
    let kinds = (prop_oneof![Just(0_u8), Just(8)], proptest::option::of(0..2_u8));
    let icmp = kinds.prop_map(|(kind, code)| IcmpMatch { kind, code });
    let flags = (0..16_u8, 0..16_u8).prop_map(|(value, mask)| TcpFlagsMatch { value, mask });
    let deep = (proptest::option::weighted(0.1, icmp), proptest::option::weighted(0.2, flags));
    let packet = (proptest::option::of(protocols()), ranges(), ranges(), deep);
    let identity = (0..60_u64, 0..3_u32, 1..5_u16);
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
            icmp: packet.3.0,
            tcp_flags: packet.3.1,
            permit,
        },
    )
}

pub(crate) fn queries() -> impl Strategy<Value = PolicyQuery> {
    let ends = (group(), group(), addresses(), addresses());
    let ports = (76..88_u16, 76..88_u16);
    let icmp = (prop_oneof![Just(0_u8), Just(8), Just(3)], 0..3_u8);
    // Now and then the header after the IP header is missing, as in a later fragment.
    let deep = proptest::option::weighted(0.85, (ports, icmp, 0..16_u8));
    (directions(), vrf(), ends, protocols(), deep).prop_map(
        |(direction, vrf, (src_group, dst_group, src, dst), protocol, deep)| {
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
                ports: deep.map(|deep| deep.0).filter(|_| matches!(protocol, 6 | 17)),
                icmp: deep.map(|deep| deep.1).filter(|_| matches!(protocol, 1 | 58)),
                tcp_flags: deep.map(|deep| deep.2).filter(|_| protocol == 6),
            }
        },
    )
}
