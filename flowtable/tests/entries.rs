//! The text form of table entries.

#![expect(clippy::unwrap_used, reason = "test code, though not in test functions")]

use std::net::IpAddr;

use flowtable::entry::{
    Band, Direction, Entry, GroupEntry, Ipv6, MacEntry, MeterEntry, MeterUnit, NetworkEntry,
    NextHop, NodePort, Offload, OnDeny, Permit, PortEntry, PortRange, Prefix, PublishedEntry,
    QosEntry, RouteEntry, RuleEntry, TcpFlagsMatch, TenantEntry, Tracking, TunnelEntry,
    UnderlayEntry, VlanEntry, VtepEntry,
};
use flowtable::ids::{Bd, Dscp, Group, Mac, MeterId, PortId, RuleId, Vid, Vni, Vrf};
use flowtable::key::{Decap, Origin, parse};
use flowtable::text::{BitMatch, FlowSpec, entry_actions, entry_match};
use proptest::prelude::*;

fn read(text: &str) -> FlowSpec {
    text.parse().unwrap()
}

proptest! {
    #[test]
    fn flags_are_read_as_printed(value: u8, mask: u8) {
        let origin = Origin { in_port: PortId::MIN, decap: Decap::Never };
        let (value, mask) = (value & mask, mask | 1);
        let match_ = Some(TcpFlagsMatch { value, mask });
        let printed = entry_match(&Entry::Rule(RuleEntry { tcp_flags: match_, ..rule() }));
        let (_, flags) = printed.rsplit_once(',').unwrap();
        let spec = read(&format!("tcp,{flags}"));
        let want = Some(BitMatch { value, mask });
        prop_assert_eq!(spec.tcp_flags, want);
        prop_assert_eq!(read(&format!("tcp,tcp_flags={value:#05x}/{mask:#05x}")).tcp_flags, want);
        let parsed = parse(&spec.frame().unwrap(), origin).unwrap();
        prop_assert_eq!(parsed.tcp_flags & mask, value);
        prop_assert!(spec.matches_packet(&parsed));
    }
}

fn rule() -> RuleEntry {
    RuleEntry {
        rule: RuleId(71),
        seq: 2,
        priority: 10,
        direction: Direction::In,
        vrf: Vrf::new(1).unwrap(),
        src_group: Some(Group::new(5).unwrap()),
        dst_group: None,
        src: None,
        dst: Some(Prefix::new("10.1.0.0".parse().unwrap(), 16).unwrap()),
        protocol: Some(6),
        src_ports: None,
        dst_ports: Some(PortRange { first: 8000, last: 8010 }),
        icmp: None,
        tcp_flags: None,
        permit: Permit::Deny,
    }
}

/// One entry of every table, with its three texts.
#[expect(clippy::too_many_lines, reason = "a list")]
fn entries() -> Vec<(Entry, [&'static str; 3])> {
    let (port, vrf, bd) = (PortId::new(3).unwrap(), Vrf::new(1).unwrap(), Bd::new(2).unwrap());
    let (vni, vid, group) = (Vni::new(77).unwrap(), Vid::new(9).unwrap(), Group::new(5).unwrap());
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let net = Prefix::new(ip("10.1.1.0"), 24).unwrap();
    let mac = Mac([2, 0, 0, 0, 0, 7]);
    let tunnel = NextHop::Tunnel { vtep: ip("192.0.2.2"), vni };
    let ips = vec![ip("10.1.1.2"), ip("fd00::2")];
    vec![
        (
            Entry::Port(PortEntry {
                port,
                vrf,
                bd,
                group,
                mac,
                ips,
                ipv6: Ipv6::Off,
                sample_rate: 400,
                offload: Offload::On,
            }),
            [
                "port",
                "in_port=3",
                "set(vrf=1,bd=2,group=5),src(eth=02:00:00:00:00:07,ip=10.1.1.2,ip=fd00::2),ipv6-off,sample=1/400",
            ],
        ),
        (
            Entry::Network(NetworkEntry {
                bd,
                vrf,
                subnets: vec![net],
                gateways: vec![ip("10.1.1.1")],
                wire: Some((port, vid)),
            }),
            [
                "network",
                "bd=2",
                "set(vrf=1),subnet=10.1.1.0/24,gateway=10.1.1.1,wire=push_vlan(9),output:3",
            ],
        ),
        (
            Entry::Tunnel(TunnelEntry { vni, bd, vrf }),
            ["tunnel", "tun_id=77", "tnl_pop,set(vrf=1,bd=2)"],
        ),
        (
            Entry::Vtep(VtepEntry { ip: ip("192.0.2.2"), local: ip("192.0.2.1") }),
            ["vtep", "vtep=192.0.2.2", "tun_src=192.0.2.1"],
        ),
        (
            Entry::Underlay(UnderlayEntry {
                vtep: ip("192.0.2.2"),
                port,
                src_mac: mac,
                dst_mac: Mac::BROADCAST,
            }),
            [
                "underlay",
                "vtep=192.0.2.2",
                "set(eth(src=02:00:00:00:00:07,dst=ff:ff:ff:ff:ff:ff)),output:3",
            ],
        ),
        (
            Entry::Vlan(VlanEntry { port, vid, bd, vrf }),
            ["vlan", "in_port=3,vlan_vid=9", "pop_vlan,set(vrf=1,bd=2)"],
        ),
        (
            Entry::Group(GroupEntry { vrf, prefix: Prefix::host(ip("fd00::2")), group }),
            ["group", "vrf=1,ipv6_dst=fd00::2", "group=5"],
        ),
        (
            Entry::Rule(rule()),
            [
                "policy",
                "priority=10,vrf=1,in,src_group=5,tcp,nw_dst=10.1.0.0/16,tp_dst=8000-8010",
                "deny(rule=71)",
            ],
        ),
        (
            Entry::Rule(RuleEntry { dst: None, src_group: None, permit: Permit::Allow, ..rule() }),
            ["policy", "priority=10,vrf=1,in,nw_proto=6,tp_dst=8000-8010", "allow(rule=71)"],
        ),
        (
            Entry::Route(RouteEntry { vrf, prefix: net, bd, mac, next_hop: tunnel }),
            [
                "route",
                "vrf=1,nw_dst=10.1.1.0/24",
                "set(bd=2,eth_dst=02:00:00:00:00:07),tnl_push(vxlan(vni=77,dst=192.0.2.2))",
            ],
        ),
        (
            Entry::Route(RouteEntry {
                vrf,
                prefix: net,
                bd,
                mac: Mac::default(),
                next_hop: NextHop::UnknownEndpoint,
            }),
            ["route", "vrf=1,nw_dst=10.1.1.0/24", "drop(unknown-endpoint)"],
        ),
        (
            Entry::Mac(MacEntry { bd, mac, next_hop: NextHop::Local(port) }),
            ["mac", "bd=2,eth_dst=02:00:00:00:00:07", "output:3"],
        ),
        (
            Entry::Published(PublishedEntry {
                node: NodePort { address: "192.0.2.1".parse().unwrap(), protocol: 6, port: 8080 },
                vrf,
                to: "10.1.1.2".parse().unwrap(),
                to_port: 80,
            }),
            ["published", "tcp,nw_dst=192.0.2.1,tp_dst=8080", "set(vrf=1),nat(dst=10.1.1.2:80)"],
        ),
        (
            Entry::Published(PublishedEntry {
                node: NodePort { address: "2001:db8::1".parse().unwrap(), protocol: 17, port: 53 },
                vrf,
                to: "fd00::2".parse().unwrap(),
                to_port: 5353,
            }),
            [
                "published",
                "udp6,ipv6_dst=2001:db8::1,tp_dst=53",
                "set(vrf=1),nat(dst=[fd00::2]:5353)",
            ],
        ),
        (Entry::Tenant(TenantEntry::new(vrf, Permit::Allow)), ["tenant", "vrf=1", "default=allow"]),
        (
            Entry::Tenant(TenantEntry {
                tracking: Tracking::Stateless,
                on_deny: OnDeny::Finish,
                new_flows_max: 9,
                ..TenantEntry::new(vrf, Permit::Deny)
            }),
            ["tenant", "vrf=1", "default=deny,stateless,finish-denied,new_flows_max=9"],
        ),
        (
            Entry::Meter(MeterEntry {
                meter: MeterId::MIN,
                unit: MeterUnit::Bits,
                committed: Band { rate: 1000, burst: 1500 },
                peak: Some(Band { rate: 2000, burst: 3000 }),
                yellow_dscp: Some(Dscp::new(10).unwrap()),
            }),
            [
                "meter",
                "meter=1",
                "committed(rate=1000bps,burst=1500B),peak(rate=2000bps,burst=3000B),\
                 yellow(set(ip_dscp=10))",
            ],
        ),
        (
            Entry::Qos(QosEntry {
                port,
                from: vec![MeterId::MIN],
                to: vec![MeterId::MIN, MeterId::MAX],
                dscp: Some(Dscp::MAX),
            }),
            ["qos", "port=3", "from=meter:1,to=meter:1,to=meter:4294967295,set(ip_dscp=63)"],
        ),
    ]
}

#[test]
fn every_table_prints_its_entries() {
    for (entry, want) in entries() {
        let (matched, actions) = (entry_match(&entry), entry_actions(&entry));
        assert_eq!([entry.table(), &matched, &actions], want);
    }
}
