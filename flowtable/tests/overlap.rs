//! The filter of entries, against every packet of a small world.

#![expect(clippy::unwrap_used, clippy::panic, reason = "test code, though not in test functions")]

use std::net::IpAddr;
use std::sync::LazyLock;

use flowtable::entry::{
    Direction, Entry, GroupEntry, IcmpMatch, MacEntry, NextHop, NodePort, Permit, PortRange,
    Prefix, PublishedEntry, QosEntry, RouteEntry, RuleEntry, TcpFlagsMatch, TenantEntry,
    TunnelEntry, VlanEntry, VtepEntry,
};
use flowtable::ids::{Bd, Group, Mac, PortId, RuleId, Vid, Vni, Vrf};
use flowtable::key::{Decap, Origin, Parsed, flag, parse};
use flowtable::text::FlowSpec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn read(text: &str) -> FlowSpec {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// A packet and the groups of its ends.
struct Packet {
    parsed: Parsed,
    groups: [u32; 2],
}

/// Every packet made of two addresses of each family, the protocols that rules tell apart, and two
/// values of each field.
static WORLD: LazyLock<Vec<Packet>> = LazyLock::new(|| {
    let mut texts = vec!["arp,nw_src=10.0.0.1,nw_dst=10.0.0.2".to_owned()];
    for (six, field, ips) in
        [("", "nw", ["10.0.0.1", "10.0.0.2"]), ("6", "ipv6", ["fd00::1", "fd00::2"])]
    {
        for (src, dst) in ips.iter().flat_map(|src| ips.iter().map(move |dst| (src, dst))) {
            let ends = format!("{field}_src={src},{field}_dst={dst}");
            let ip = if six.is_empty() { "ip" } else { "ipv6" };
            for proto in [47, if six.is_empty() { 58 } else { 1 }] {
                texts.push(format!("{ip},{ends},nw_proto={proto}"));
            }
            for proto in ["tcp", "udp", "icmp"] {
                texts.push(format!("{proto}{six},{ends},nw_frag=later"));
            }
            for (a, b) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
                texts.push(format!("udp{six},{ends},tp_src={a},tp_dst={b}"));
                texts.push(format!("icmp{six},{ends},icmp_type={a},icmp_code={b}"));
                let tcp = format!("tcp{six},{ends},tp_src={a},tp_dst={b}");
                let flags = ["+syn", "+ack", "+syn+ack", "+rst"];
                texts.extend(flags.map(|flags| format!("{tcp},tcp_flags={flags}")));
            }
        }
    }
    let origin = Origin { in_port: PortId::MIN, decap: Decap::Never };
    let parsed = texts.iter().map(|text| parse(&read(text).frame().unwrap(), origin).unwrap());
    let groups = [[1, 1], [1, 2], [2, 1], [2, 2]];
    parsed.flat_map(|parsed| groups.map(|groups| Packet { parsed, groups })).collect()
});

/// A flow that the world has packets of, or none.
fn flows() -> impl Strategy<Value = FlowSpec> {
    let group = || option::of(1..3_u32);
    let kinds =
        select(vec!["", "ip", "ipv6", "arp", "tcp", "udp", "icmp", "tcp6", "udp6", "icmp6"]);
    let more = (option::of(1..3_u16), option::of(1..3_u16), any::<[bool; 4]>());
    (kinds, group(), group(), more, flag_matches()).prop_map(
        |(kind, src_group, dst_group, (a, b, on), flags)| {
            let mut parts = vec![kind.to_owned()];
            parts.extend(src_group.map(|group| format!("src_group={group}")));
            parts.extend(dst_group.map(|group| format!("dst_group={group}")));
            let six = kind.ends_with('6');
            let (field, net) = if six { ("ipv6", "fd00::") } else { ("nw", "10.0.0.") };
            if !kind.is_empty() && on[0] {
                parts.push(format!("{field}_src={net}1"));
            }
            if !kind.is_empty() && on[1] {
                let block = if six { "fd00::2/127" } else { "10.0.0.2/31" };
                parts.push(format!("{field}_dst={block}"));
            }
            let transport = kind.trim_end_matches('6');
            let later = matches!(transport, "tcp" | "udp" | "icmp") && on[2] && on[3];
            if later {
                parts.push("nw_frag=later".to_owned());
            } else if matches!(transport, "tcp" | "udp") {
                parts.extend(a.map(|port| format!("tp_src={port}")));
                parts.extend(b.map(|port| format!("tp_dst={port}")));
                parts.extend(
                    flags
                        .filter(|_| transport == "tcp")
                        .map(|TcpFlagsMatch { value, mask }| format!("tcp_flags={value}/{mask}")),
                );
            } else if transport == "icmp" {
                parts.extend(a.map(|kind| format!("icmp_type={kind}")));
                parts.extend(b.map(|code| format!("icmp_code={code}")));
            }
            read(&parts.join(","))
        },
    )
}

/// Of SYN and ACK; the world has segments with each combination.
fn flag_matches() -> impl Strategy<Value = Option<TcpFlagsMatch>> {
    let pairs =
        [(0x02, 0x02), (0, 0x12), (0, 0x02), (0x10, 0x10), (0, 0x10), (0x12, 0x12), (0x02, 0x12)];
    option::of(select(pairs.map(|(value, mask)| TcpFlagsMatch { value, mask }).to_vec()))
}

fn rules() -> impl Strategy<Value = RuleEntry> {
    let blocks =
        ["10.0.0.1/32", "10.0.0.2/32", "10.0.0.0/8", "10.0.0.2/31", "fd00::1/128", "fd00::/16"];
    let blocks = blocks.map(|text| {
        let (ip, len) = text.split_once('/').unwrap();
        Prefix::new(ip.parse().unwrap(), len.parse().unwrap()).unwrap()
    });
    let block = move || option::weighted(0.4, select(blocks.to_vec()));
    let range = || {
        let ranges = [(1, 1), (2, 2), (1, 9)].map(|(first, last)| PortRange { first, last });
        option::weighted(0.3, select(ranges.to_vec()))
    };
    let group = || option::of((1..3_u32).prop_map(|id| Group::new(id).unwrap()));
    let protocol = option::of(select(vec![1, 6, 17, 47, 58]));
    let icmp = option::weighted(0.2, (1..3_u8, option::of(1..3_u8)));
    let flags = (any::<bool>(), flag_matches()).prop_map(|(on, flags)| flags.filter(|_| on));
    let transport = (protocol, range(), range(), icmp, flags);
    (group(), group(), block(), block(), transport).prop_map(
        |(src_group, dst_group, src, dst, (protocol, src_ports, dst_ports, icmp, tcp_flags))| {
            RuleEntry {
                src_group,
                dst_group,
                src,
                dst,
                protocol,
                src_ports,
                dst_ports,
                icmp: icmp.map(|(kind, code)| IcmpMatch { kind, code }),
                tcp_flags,
                ..any_rule()
            }
        },
    )
}

fn any_rule() -> RuleEntry {
    RuleEntry::any(RuleId(1), Vrf::MIN, Direction::In, Permit::Allow)
}

/// What [`RuleEntry`] says of itself, word by word.
fn rule_matches(rule: &RuleEntry, packet: &Packet) -> bool {
    let Parsed { key, tcp_flags, .. } = packet.parsed;
    let (v4, v6) = (key.eth_type == 0x0800, key.eth_type == 0x86dd);
    if !(v4 || v6) {
        return false;
    }
    let whole = key.flags & flag::FRAG_LATER == 0;
    let ports = whole && (key.proto == 6 || key.proto == 17);
    let icmp = whole && ((v4 && key.proto == 1) || (v6 && key.proto == 58));
    let inside = |range: PortRange, port| range.first <= port && port <= range.last;
    rule.src_group.is_none_or(|group| group.get() == packet.groups[0])
        && rule.dst_group.is_none_or(|group| group.get() == packet.groups[1])
        && rule.src.is_none_or(|block| block.contains(key.src_ip().unwrap()))
        && rule.dst.is_none_or(|block| block.contains(key.dst_ip().unwrap()))
        && rule.protocol.is_none_or(|p| p == key.proto || (p == 1 && v6 && key.proto == 58))
        && rule.src_ports.is_none_or(|range| ports && inside(range, key.src_port))
        && rule.dst_ports.is_none_or(|range| ports && inside(range, key.dst_port))
        && rule.icmp.is_none_or(|of| {
            let code = of.code.is_none_or(|code| u16::from(code) == key.dst_port);
            icmp && u16::from(of.kind) == key.src_port && code
        })
        && rule
            .tcp_flags
            .is_none_or(|of| whole && key.proto == 6 && tcp_flags & of.mask == of.value)
}

fn flow_matches(flow: &FlowSpec, packet: &Packet) -> bool {
    let group = |wanted: Option<Group>, group| wanted.is_none_or(|wanted| wanted.get() == group);
    flow.matches_packet(&packet.parsed)
        && group(flow.tenant.src_group, packet.groups[0])
        && group(flow.tenant.dst_group, packet.groups[1])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_rule_is_shown_if_and_only_if_a_packet_of_the_flow_matches_it(
        flow in flows(), rule in rules(),
    ) {
        let both = |packet: &&Packet| flow_matches(&flow, packet) && rule_matches(&rule, packet);
        let exists = WORLD.iter().find(both).is_some();
        prop_assert_eq!(flow.overlaps(&Entry::Rule(rule.clone())), exists, "{}", rule);
    }

    #[test]
    fn the_empty_flow_meets_every_rule_that_some_packet_matches(rule in rules()) {
        let exists = WORLD.iter().any(|packet| rule_matches(&rule, packet));
        prop_assert_eq!(FlowSpec::default().overlaps(&Entry::Rule(rule)), exists);
    }
}

#[test]
fn other_tables_are_filtered_by_their_keys() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let (vrf, bd, mac) = (Vrf::MIN, Bd::new(2).unwrap(), Mac([2, 0, 0, 0, 0, 7]));
    let (port, vid) = (PortId::new(3).unwrap(), Vid::new(9).unwrap());
    let prefix = Prefix::new(ip("10.1.0.0"), 16).unwrap();
    let next_hop = NextHop::UnknownEndpoint;
    let group = Group::new(5).unwrap();
    let cases = [
        (
            Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop }),
            "nw_dst=10.1.2.3;nw_dst=10.0.0.0/8;tcp,nw_src=1.2.3.4;src_group=1;arp",
            "nw_dst=10.2.0.0/16;udp6;ipv6_dst=::/0;dl_type=0x88cc",
        ),
        (
            Entry::Group(GroupEntry { vrf, prefix, group }),
            "nw_src=10.1.2.3;ip,nw_dst=10.1.0.1;nw_src=10.1.0.1,src_group=5,dst_group=6;dst_group=5",
            "nw_src=10.2.0.1,nw_dst=10.3.0.1;arp;udp6;src_group=4,dst_group=6;\
             nw_src=10.2.0.1,dst_group=6",
        ),
        (
            Entry::Vlan(VlanEntry { port, vid, bd, vrf }),
            "in_port=3;vlan_vid=9;bd=2;tcp",
            "in_port=4;vlan_vid=0;vlan_vid=8;bd=3;in_port=eth0",
        ),
        (
            Entry::Tunnel(TunnelEntry { vni: Vni::new(77).unwrap(), bd, vrf }),
            "tun_id=77;tun_src=192.0.2.2;bd=2",
            "tun_id=0;tun_id=78;bd=3",
        ),
        (
            Entry::Vtep(VtepEntry { ip: ip("192.0.2.2"), local: ip("192.0.2.1") }),
            "tun_src=192.0.2.2;tun_src=192.0.2.0/24;tcp",
            "tun_src=192.0.2.1;tun_src=2001:db8::1",
        ),
        (
            Entry::Mac(MacEntry { bd, mac, next_hop }),
            "eth_dst=02:00:00:00:00:07;bd=2;eth_src=02:00:00:00:00:08",
            "eth_dst=02:00:00:00:00:08;bd=3",
        ),
        (
            Entry::Published(PublishedEntry {
                node: NodePort { address: ip("192.0.2.1"), protocol: 6, port: 8080 },
                vrf,
                to: ip("10.1.0.2"),
                to_port: 80,
            }),
            "tcp;tcp,tp_dst=8080;nw_dst=192.0.2.0/24;in_port=3;vlan_vid=0,tun_id=0;ip,nw_frag=not_later",
            "udp;tcp6;arp;tcp,tp_dst=80;nw_dst=10.1.0.2;vlan_vid=9;tun_id=7;ip,nw_frag=first;ip,nw_frag=later",
        ),
        (
            Entry::Qos(QosEntry { port, from: Vec::new(), to: Vec::new(), dscp: None }),
            "in_port=3;tcp",
            "in_port=4",
        ),
        (Entry::Tenant(TenantEntry::new(vrf, Permit::Deny)), "in_port=3;tcp;arp", ""),
    ];
    for (entry, shown, hidden) in cases {
        for (texts, want) in [(shown, true), (hidden, false)] {
            for text in texts.split(';').filter(|text| !text.is_empty()) {
                assert_eq!(read(text).overlaps(&entry), want, "{text}: {entry:?}");
            }
        }
    }
}
