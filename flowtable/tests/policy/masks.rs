//! What a lookup says it looked at: a packet with the same bits has the same outcome.

use std::net::IpAddr;

use flowtable::entry::{IcmpMatch, PortRange, Prefix, RuleEntry, TcpFlagsMatch};
use flowtable::policy::{PolicyQuery, Wildcards};
use proptest::prelude::*;

use crate::oracle::{build, queries, rules};
use crate::{any_rule, tcp_query};

/// `other` with the bits of `query` that were looked at, and nothing else of it.
fn agreeing(query: &PolicyQuery, other: &PolicyQuery, looked: &Wildcards) -> PolicyQuery {
    let blend = |ours: Option<u16>, theirs: Option<u16>, mask: u16| match (ours, theirs) {
        (ours, _) if mask == u16::MAX => ours,
        (_, theirs) if mask == 0 => theirs,
        (Some(ours), Some(theirs)) => Some(ours & mask | theirs & !mask),
        (ours, _) => ours,
    };
    let side = |of: fn((u16, u16)) -> u16| (query.ports.map(of), other.ports.map(of));
    let ((src, other_src), (dst, other_dst)) = (side(|p| p.0), side(|p| p.1));
    let ports = blend(src, other_src, looked.src_port).zip(blend(dst, other_dst, looked.dst_port));
    let ports = if looked.src_port | looked.dst_port == 0 { other.ports } else { ports };
    let word = |icmp: Option<(u8, u8)>| icmp.map(|(kind, code)| u16::from_be_bytes([kind, code]));
    let icmp = blend(word(query.icmp), word(other.icmp), looked.icmp);
    let flags = |flags: Option<u8>| flags.map(u16::from);
    let tcp_flags = match looked.tcp_flags {
        u8::MAX => query.tcp_flags,
        mask => blend(flags(query.tcp_flags), flags(other.tcp_flags), mask.into()).map(|f| f as u8),
    };
    PolicyQuery {
        src: ip(query.src, other.src, looked.src_bits),
        dst: ip(query.dst, other.dst, looked.dst_bits),
        // A side that was not looked at can't add ports to a packet that has none.
        ports: if looked.src_port | looked.dst_port != 0 && query.ports.is_none() {
            None
        } else if looked.src_port | looked.dst_port != 0 && other.ports.is_none() {
            query.ports
        } else {
            ports
        },
        icmp: icmp.map(|word| word.to_be_bytes().into()),
        tcp_flags,
        ..*query
    }
}

fn ip(ours: IpAddr, theirs: IpAddr, len: u8) -> IpAddr {
    let blended = match (ours, theirs) {
        (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            IpAddr::from((ours.to_bits() & mask | theirs.to_bits() & !mask).to_be_bytes())
        }
        (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            IpAddr::from((ours.to_bits() & mask | theirs.to_bits() & !mask).to_be_bytes())
        }
        (ours, _) => ours,
    };
    assert!(Prefix::new(ours, len).unwrap().contains(blended));
    blended
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn packets_that_agree_where_it_looked_are_decided_alike(
        list in proptest::collection::vec(rules(), 0..12),
        pairs in proptest::collection::vec((queries(), queries()), 1..60),
    ) {
        let mut list = list;
        list.sort_by_key(|rule| (rule.rule, rule.seq));
        list.dedup_by_key(|rule| (rule.rule, rule.seq));
        let table = build(&list);
        for (query, other) in &pairs {
            let mut looked = Wildcards::default();
            let found = table.lookup_masked(query, &mut looked);
            prop_assert_eq!(found, table.lookup(query));
            let like = agreeing(query, other, &looked);
            prop_assert_eq!(table.lookup(&like), found, "{:?} and {:?}: {:?}", query, like, looked);
        }
    }
}

fn looked(rules: &[RuleEntry], query: &PolicyQuery) -> Wildcards {
    let mut looked = Wildcards::default();
    let _found = build(rules).lookup_masked(query, &mut looked);
    looked
}

#[test]
fn only_what_a_rule_of_this_protocol_and_family_looks_at_counts() {
    let block = |text: &str, len| Some(Prefix::new(text.parse().unwrap(), len).unwrap());
    let ports = Some(PortRange { first: 80, last: 90 });
    let rules = [
        RuleEntry { src: block("10.1.0.0", 16), dst_ports: ports, ..any_rule(1) },
        RuleEntry { src: block("fd00::", 64), src_ports: ports, ..any_rule(2) },
        RuleEntry { icmp: Some(IcmpMatch { kind: 8, code: None }), ..any_rule(3) },
        RuleEntry { tcp_flags: Some(TcpFlagsMatch { value: 2, mask: 0x12 }), ..any_rule(4) },
    ];
    let tcp = tcp_query();
    let udp = PolicyQuery { protocol: 17, ..tcp };
    let icmp = PolicyQuery { protocol: 1, ports: None, icmp: Some((8, 0)), ..tcp };
    let other = PolicyQuery { protocol: 47, ports: None, ..tcp };
    let v6 =
        PolicyQuery { src: "fd00::1".parse().unwrap(), dst: "fd00::2".parse().unwrap(), ..udp };
    let ported = Wildcards { src_bits: 16, dst_port: u16::MAX, ..Wildcards::default() };
    assert_eq!(looked(&rules, &udp), ported);
    assert_eq!(looked(&rules, &tcp), Wildcards { tcp_flags: 0x12, ..ported });
    assert_eq!(looked(&rules, &icmp), Wildcards { icmp: 0xff00, ..Wildcards::default() });
    assert_eq!(looked(&rules, &other), Wildcards::default());
    let both = Wildcards { src_bits: 64, src_port: u16::MAX, dst_port: 0, ..Wildcards::default() };
    assert_eq!(looked(&rules, &v6), both);
    assert_eq!(looked(&[], &tcp), Wildcards::default());
}
