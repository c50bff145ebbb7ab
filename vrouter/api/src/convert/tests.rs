use std::net::IpAddr;

use flowtable::entry::{
    Band, Direction, Entry, EntryKey, GroupEntry, IcmpMatch, Ipv6, MacEntry, MeterEntry, MeterUnit,
    NetworkEntry, NextHop, NodePort, Offload, OnDeny, Op, Permit, PortEntry, PortRange, Prefix,
    PublishedEntry, QosEntry, RouteEntry, RuleEntry, TcpFlagsMatch, TenantEntry, Tracking,
    TunnelEntry, UnderlayEntry, VlanEntry, VtepEntry,
};
use flowtable::ids::{Bd, Dscp, Group, Mac, MeterId, PortId, RuleId, Vid, Vni, Vrf};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message as _;

use super::{entry_from_proto, entry_to_proto, key_from_proto, ops_from_proto, ops_to_proto};
use crate::v1;
use crate::v1::entry::Kind;

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (ip(), any::<u8>()).prop_map(|(ip, len)| {
        let bits = if ip.is_ipv4() { 33 } else { 129 };
        Prefix::new(ip, (u16::from(len) % bits) as u8).unwrap()
    })
}

fn mac() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(Mac)
}

fn port() -> impl Strategy<Value = PortId> {
    (1u32..=4094).prop_map(|v| PortId::new(v).unwrap())
}

fn vid() -> impl Strategy<Value = Vid> {
    (1u32..=4094).prop_map(|v| Vid::new(v).unwrap())
}

fn vrf() -> impl Strategy<Value = Vrf> {
    (0u32..=0xff_ffff).prop_map(|v| Vrf::new(v).unwrap())
}

fn bd() -> impl Strategy<Value = Bd> {
    (0u32..=0xff_ffff).prop_map(|v| Bd::new(v).unwrap())
}

fn vni() -> impl Strategy<Value = Vni> {
    (1u32..=0xff_ffff).prop_map(|v| Vni::new(v).unwrap())
}

fn group() -> impl Strategy<Value = Group> {
    any::<u32>().prop_map(|v| Group::new(v).unwrap())
}

fn permit() -> impl Strategy<Value = Permit> {
    prop_oneof![Just(Permit::Allow), Just(Permit::Deny)]
}

fn ports() -> impl Strategy<Value = PortRange> {
    (any::<u16>(), any::<u16>()).prop_map(|(a, b)| PortRange { first: a.min(b), last: a.max(b) })
}

fn next_hop() -> impl Strategy<Value = NextHop> {
    prop_oneof![
        port().prop_map(NextHop::Local),
        (ip(), vni()).prop_map(|(vtep, vni)| NextHop::Tunnel { vtep, vni }),
        (port(), vid()).prop_map(|(port, vid)| NextHop::Vlan { port, vid }),
        Just(NextHop::UnknownEndpoint),
    ]
}

fn port_entry() -> impl Strategy<Value = Entry> {
    let ids = (port(), vrf(), bd(), group());
    (ids, mac(), vec(ip(), 0..4), any::<[bool; 2]>(), any::<u32>()).prop_map(
        |((port, vrf, bd, group), mac, ips, [ipv6, offload], sample_rate)| {
            let ipv6 = if ipv6 { Ipv6::On } else { Ipv6::Off };
            let offload = if offload { Offload::On } else { Offload::Off };
            Entry::Port(PortEntry { port, vrf, bd, group, mac, ips, ipv6, sample_rate, offload })
        },
    )
}

fn network_entry() -> impl Strategy<Value = Entry> {
    let wire = option::of((port(), vid()));
    (bd(), vrf(), vec(prefix(), 0..3), vec(ip(), 0..3), wire).prop_map(
        |(bd, vrf, subnets, gateways, wire)| {
            Entry::Network(NetworkEntry { bd, vrf, subnets, gateways, wire })
        },
    )
}

fn rule_entry() -> impl Strategy<Value = Entry> {
    let key = (any::<u64>(), any::<u32>(), any::<u16>(), any::<bool>(), vrf());
    let groups = (option::of(group()), option::of(group()));
    let prefixes = (option::of(prefix()), option::of(prefix()));
    let l4 = (option::of(any::<u8>()), option::of(ports()), option::of(ports()));
    let more = (
        option::of((any::<u8>(), option::of(any::<u8>()))),
        option::of((any::<u8>(), any::<u8>())),
    );
    let parts = (key, groups, prefixes, l4, more, permit());
    parts.prop_map(|(key, groups, prefixes, l4, more, permit)| {
        Entry::Rule(RuleEntry {
            rule: RuleId(key.0),
            seq: key.1,
            priority: key.2,
            direction: if key.3 { Direction::Out } else { Direction::In },
            vrf: key.4,
            src_group: groups.0,
            dst_group: groups.1,
            src: prefixes.0,
            dst: prefixes.1,
            protocol: l4.0,
            src_ports: l4.1,
            dst_ports: l4.2,
            icmp: more.0.map(|(kind, code)| IcmpMatch { kind, code }),
            tcp_flags: more.1.map(|(value, mask)| TcpFlagsMatch { value, mask }),
            permit,
        })
    })
}

fn tenant_entry() -> impl Strategy<Value = Entry> {
    let switches = (any::<bool>(), any::<bool>());
    (vrf(), permit(), switches, any::<u32>(), any::<u32>()).prop_map(
        |(vrf, default, (tracked, cut), connections_max, new_flows_max)| {
            Entry::Tenant(TenantEntry {
                vrf,
                default,
                tracking: if tracked { Tracking::Stateful } else { Tracking::Stateless },
                on_deny: if cut { OnDeny::Cut } else { OnDeny::Finish },
                connections_max,
                new_flows_max,
            })
        },
    )
}

fn meter_id() -> impl Strategy<Value = MeterId> {
    (1..=u32::MAX).prop_map(|id| MeterId::new(id).unwrap())
}

fn dscp() -> impl Strategy<Value = Dscp> {
    (0..=63_u32).prop_map(|dscp| Dscp::new(dscp).unwrap())
}

fn meter_entry() -> impl Strategy<Value = Entry> {
    let band = || (any::<u64>(), any::<u64>()).prop_map(|(rate, burst)| Band { rate, burst });
    let unit = prop_oneof![Just(MeterUnit::Bits), Just(MeterUnit::Packets)];
    (meter_id(), unit, band(), option::of(band()), option::of(dscp())).prop_map(
        |(meter, unit, committed, peak, yellow_dscp)| {
            Entry::Meter(MeterEntry { meter, unit, committed, peak, yellow_dscp })
        },
    )
}

fn qos_entry() -> impl Strategy<Value = Entry> {
    (port(), vec(meter_id(), 0..4), vec(meter_id(), 0..4), option::of(dscp()))
        .prop_map(|(port, from, to, dscp)| Entry::Qos(QosEntry { port, from, to, dscp }))
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        port_entry(),
        network_entry(),
        rule_entry(),
        (vni(), bd(), vrf()).prop_map(|(vni, bd, vrf)| Entry::Tunnel(TunnelEntry { vni, bd, vrf })),
        (ip(), ip()).prop_map(|(ip, local)| Entry::Vtep(VtepEntry { ip, local })),
        (ip(), port(), mac(), mac()).prop_map(|(vtep, port, src_mac, dst_mac)| {
            Entry::Underlay(UnderlayEntry { vtep, port, src_mac, dst_mac })
        }),
        (port(), vid(), bd(), vrf()).prop_map(|(port, vid, bd, vrf)| Entry::Vlan(VlanEntry {
            port,
            vid,
            bd,
            vrf
        })),
        (vrf(), prefix(), group()).prop_map(|(vrf, prefix, group)| Entry::Group(GroupEntry {
            vrf,
            prefix,
            group
        })),
        (vrf(), prefix(), bd(), mac(), next_hop()).prop_map(|(vrf, prefix, bd, mac, next_hop)| {
            Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop })
        }),
        (bd(), mac(), next_hop()).prop_map(|(bd, mac, next_hop)| Entry::Mac(MacEntry {
            bd,
            mac,
            next_hop
        })),
        published_entry(),
        tenant_entry(),
        meter_entry(),
        qos_entry(),
    ]
}

fn published_entry() -> impl Strategy<Value = Entry> {
    (ip(), any::<(u8, u16, u16)>(), vrf(), ip()).prop_map(
        |(address, (protocol, port, to_port), vrf, to)| {
            let node = NodePort { address, protocol, port };
            Entry::Published(PublishedEntry { node, vrf, to, to_port })
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => entry().prop_map(Op::Put),
        4 => entry().prop_map(|e| Op::Delete(e.key())),
        1 => Just(Op::Clear),
    ]
}

proptest! {
    #[test]
    fn a_batch_survives_the_wire(ops in vec(op(), 0..8)) {
        let wire = ops_to_proto(&ops).encode_to_vec();
        let decoded = v1::WriteRequest::decode(wire.as_slice()).unwrap();
        prop_assert_eq!(ops_from_proto(decoded), Ok(ops));
    }

    #[test]
    fn a_key_is_read_from_a_whole_entry_too(entry in entry()) {
        prop_assert_eq!(key_from_proto(entry_to_proto(&entry)), Ok(entry.key()));
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..64)) {
        if let Ok(request) = v1::WriteRequest::decode(bytes.as_slice()) {
            let count = request.ops.len();
            if let Ok(ops) = ops_from_proto(request) {
                prop_assert_eq!(ops.len(), count);
            }
        }
    }

    #[test]
    fn a_damaged_batch_is_an_error_or_another_batch(
        ops in vec(op(), 1..4), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut wire = ops_to_proto(&ops).encode_to_vec();
        let at = at.index(wire.len());
        wire[at] = byte;
        if let Ok(request) = v1::WriteRequest::decode(wire.as_slice())
            && let Ok(parsed) = ops_from_proto(request.clone())
        {
            prop_assert_eq!(ops_from_proto(ops_to_proto(&parsed)), Ok(parsed));
        }
    }
}

fn put(kind: Kind) -> v1::Op {
    v1::Op { kind: Some(v1::op::Kind::Put(v1::Entry { kind: Some(kind) })) }
}

fn refusal(op: v1::Op) -> String {
    ops_from_proto(v1::WriteRequest { ops: vec![op] }).unwrap_err().to_string()
}

fn good_port() -> v1::PortEntry {
    v1::PortEntry { port: 7, mac: vec![2, 0, 0, 0, 0, 7], ..Default::default() }
}

fn good_rule() -> v1::RuleEntry {
    v1::RuleEntry { direction: 1, verdict: 1, priority: 1, ..Default::default() }
}

fn route_via(next_hop: Option<v1::NextHop>) -> v1::Op {
    let prefix = Some(v1::Prefix { address: vec![10, 1, 1, 5], length: 32 });
    put(Kind::Route(v1::RouteEntry { vrf: 1, prefix, bd: 1, mac: vec![0; 6], next_hop }))
}

#[test]
fn a_refusal_names_the_op_the_message_and_the_field() {
    let bad_mac = v1::PortEntry { mac: vec![1; 5], ..good_port() };
    assert_eq!(refusal(put(Kind::Port(bad_mac))), "ops[0]: port.mac: 5 bytes, want 6");
    let bad_ip = v1::PortEntry { ip: vec![vec![1; 5]], ..good_port() };
    assert_eq!(refusal(put(Kind::Port(bad_ip))), "ops[0]: port.ip: 5 bytes, want 4 or 16");
    let bad_port = v1::PortEntry { port: 4095, ..good_port() };
    assert_eq!(
        refusal(put(Kind::Port(bad_port))),
        "ops[0]: port.port: port 4095 is not in 1..=4094"
    );
    let no_vni = v1::TunnelEntry { vni: 0, bd: 1, vrf: 1 };
    assert_eq!(
        refusal(put(Kind::Tunnel(no_vni))),
        "ops[0]: tunnel.vni: VNI 0 is not in 1..=16777215"
    );
}

#[test]
fn a_prefix_longer_than_its_address_is_refused() {
    let with = |length| {
        let prefix = Some(v1::Prefix { address: vec![10, 0, 0, 0], length });
        refusal(put(Kind::Group(v1::GroupEntry { vrf: 1, prefix, group: 1 })))
    };
    assert_eq!(with(33), "ops[0]: group.prefix: prefix length 33 is too long for 10.0.0.0");
    assert_eq!(with(300), "ops[0]: group.prefix: prefix 300 is not in 0..=255");
    let none = v1::GroupEntry { vrf: 1, prefix: None, group: 1 };
    assert_eq!(refusal(put(Kind::Group(none))), "ops[0]: group.prefix: missing");
}

#[test]
fn a_rule_without_direction_or_verdict_is_refused() {
    let no_direction = v1::RuleEntry { direction: 0, ..good_rule() };
    assert_eq!(
        refusal(put(Kind::Rule(no_direction))),
        "ops[0]: rule.direction: 0 is not a value of this version"
    );
    let new_verdict = v1::RuleEntry { verdict: 3, ..good_rule() };
    assert_eq!(
        refusal(put(Kind::Rule(new_verdict))),
        "ops[0]: rule.verdict: 3 is not a value of this version"
    );
    let reversed =
        v1::RuleEntry { dst_port: Some(v1::PortRange { first: 81, last: 80 }), ..good_rule() };
    assert_eq!(
        refusal(put(Kind::Rule(reversed))),
        "ops[0]: rule.dst_port: 81..80 ends before it starts"
    );
    let protocol = v1::RuleEntry { protocol: Some(256), ..good_rule() };
    assert_eq!(
        refusal(put(Kind::Rule(protocol))),
        "ops[0]: rule.protocol: protocol 256 is not in 0..=255"
    );
}

#[test]
fn a_next_hop_must_say_which() {
    assert_eq!(refusal(route_via(None)), "ops[0]: route.next_hop: missing");
    assert_eq!(
        refusal(route_via(Some(v1::NextHop { kind: None }))),
        "ops[0]: route.next_hop.kind: missing"
    );
    let denied = v1::next_hop::Kind::UnknownEndpoint(false);
    assert_eq!(
        refusal(route_via(Some(v1::NextHop { kind: Some(denied) }))),
        "ops[0]: route.next_hop.unknown_endpoint: false; leave it out instead"
    );
}

#[test]
fn an_op_without_a_kind_and_half_a_wire_are_refused() {
    assert_eq!(refusal(v1::Op { kind: None }), "ops[0]: op.kind: missing");
    let clear = v1::Op { kind: Some(v1::op::Kind::Clear(false)) };
    assert_eq!(refusal(clear), "ops[0]: op.clear: false; leave it out instead");
    let half = v1::NetworkEntry { bd: 1, uplink_vid: 100, ..Default::default() };
    assert_eq!(
        refusal(put(Kind::Network(half))),
        "ops[0]: network.uplink_port: port 0 is not in 1..=4094"
    );
    assert_eq!(
        entry_from_proto(v1::Entry { kind: None }).unwrap_err().to_string(),
        "entry.kind: missing"
    );
}

#[test]
fn a_delete_needs_only_its_key() {
    let only_key = v1::Entry {
        kind: Some(Kind::Mac(v1::MacEntry { bd: 9, mac: vec![2, 0, 0, 0, 0, 1], next_hop: None })),
    };
    let key = EntryKey::Mac(Bd::new(9).unwrap(), Mac([2, 0, 0, 0, 0, 1]));
    assert_eq!(key_from_proto(only_key), Ok(key));
}
