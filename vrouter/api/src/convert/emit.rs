//! Entries and keys to messages. Nothing here can fail: the types already hold what is true.

use std::net::IpAddr;

use flowtable::entry::{
    Band, Direction, Entry, EntryKey, Ipv6, MeterEntry, MeterUnit, NetworkEntry, NextHop, NodePort,
    Offload, OnDeny, Permit, PortEntry, PortRange, Prefix, RuleEntry, Tracking,
};
use flowtable::ids::MeterId;

use crate::v1;
use crate::v1::entry::Kind;

/// An address in network byte order: 4 or 16 bytes.
#[must_use]
pub fn ip_to_proto(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// A prefix as a message.
#[must_use]
pub fn prefix_to_proto(prefix: Prefix) -> v1::Prefix {
    v1::Prefix { address: ip_to_proto(prefix.address()), length: prefix.length().into() }
}

fn node_port(node: NodePort) -> v1::NodePort {
    v1::NodePort {
        address: ip_to_proto(node.address),
        protocol: node.protocol.into(),
        port: node.port.into(),
    }
}

/// An entry as a message.
#[must_use]
pub fn entry_to_proto(entry: &Entry) -> v1::Entry {
    let kind = match entry {
        Entry::Port(e) => Kind::Port(port(e)),
        Entry::Network(e) => Kind::Network(network(e)),
        Entry::Tunnel(e) => {
            Kind::Tunnel(v1::TunnelEntry { vni: e.vni.get(), bd: e.bd.get(), vrf: e.vrf.get() })
        }
        Entry::Vtep(e) => {
            Kind::Vtep(v1::VtepEntry { ip: ip_to_proto(e.ip), local: ip_to_proto(e.local) })
        }
        Entry::Underlay(e) => Kind::Underlay(v1::UnderlayEntry {
            vtep: ip_to_proto(e.vtep),
            port: e.port.get().into(),
            src_mac: e.src_mac.0.to_vec(),
            dst_mac: e.dst_mac.0.to_vec(),
        }),
        Entry::Vlan(e) => Kind::Vlan(v1::VlanEntry {
            port: e.port.get().into(),
            vid: e.vid.get().into(),
            bd: e.bd.get(),
            vrf: e.vrf.get(),
        }),
        Entry::Group(e) => Kind::Group(v1::GroupEntry {
            vrf: e.vrf.get(),
            prefix: Some(prefix_to_proto(e.prefix)),
            group: e.group.get(),
        }),
        Entry::Rule(e) => Kind::Rule(rule(e)),
        Entry::Route(e) => Kind::Route(v1::RouteEntry {
            vrf: e.vrf.get(),
            prefix: Some(prefix_to_proto(e.prefix)),
            bd: e.bd.get(),
            mac: e.mac.0.to_vec(),
            next_hop: Some(next_hop(e.next_hop)),
        }),
        Entry::Mac(e) => Kind::Mac(v1::MacEntry {
            bd: e.bd.get(),
            mac: e.mac.0.to_vec(),
            next_hop: Some(next_hop(e.next_hop)),
        }),
        Entry::Published(e) => Kind::Published(v1::PublishedEntry {
            node: Some(node_port(e.node)),
            vrf: e.vrf.get(),
            to: ip_to_proto(e.to),
            to_port: e.to_port.into(),
        }),
        Entry::Tenant(e) => Kind::Tenant(v1::TenantEntry {
            vrf: e.vrf.get(),
            default_verdict: permit(e.default).into(),
            stateless: e.tracking == Tracking::Stateless,
            finish_denied: e.on_deny == OnDeny::Finish,
            connections_max: e.connections_max,
            new_flows_max: e.new_flows_max,
        }),
        Entry::Meter(e) => Kind::Meter(meter(e)),
        Entry::Qos(e) => Kind::Qos(v1::QosEntry {
            port: e.port.get().into(),
            from: e.from.iter().copied().map(MeterId::get).collect(),
            to: e.to.iter().copied().map(MeterId::get).collect(),
            dscp: e.dscp.map(|dscp| dscp.get().into()),
        }),
    };
    v1::Entry { kind: Some(kind) }
}

/// A key as a message in which only the key fields are set: what a delete carries.
#[must_use]
pub fn key_to_proto(key: &EntryKey) -> v1::Entry {
    let kind = match *key {
        EntryKey::Port(port) => {
            Kind::Port(v1::PortEntry { port: port.get().into(), ..Default::default() })
        }
        EntryKey::Network(bd) => {
            Kind::Network(v1::NetworkEntry { bd: bd.get(), ..Default::default() })
        }
        EntryKey::Tunnel(vni) => {
            Kind::Tunnel(v1::TunnelEntry { vni: vni.get(), ..Default::default() })
        }
        EntryKey::Vtep(ip) => {
            Kind::Vtep(v1::VtepEntry { ip: ip_to_proto(ip), ..Default::default() })
        }
        EntryKey::Underlay(vtep) => {
            Kind::Underlay(v1::UnderlayEntry { vtep: ip_to_proto(vtep), ..Default::default() })
        }
        EntryKey::Vlan(port, vid) => Kind::Vlan(v1::VlanEntry {
            port: port.get().into(),
            vid: vid.get().into(),
            ..Default::default()
        }),
        EntryKey::Group(vrf, prefix) => Kind::Group(v1::GroupEntry {
            vrf: vrf.get(),
            prefix: Some(prefix_to_proto(prefix)),
            ..Default::default()
        }),
        EntryKey::Rule(rule, seq) => {
            Kind::Rule(v1::RuleEntry { cookie: rule.0, seq, ..Default::default() })
        }
        EntryKey::Route(vrf, prefix) => Kind::Route(v1::RouteEntry {
            vrf: vrf.get(),
            prefix: Some(prefix_to_proto(prefix)),
            ..Default::default()
        }),
        EntryKey::Mac(bd, mac) => {
            Kind::Mac(v1::MacEntry { bd: bd.get(), mac: mac.0.to_vec(), ..Default::default() })
        }
        EntryKey::Published(node) => Kind::Published(v1::PublishedEntry {
            node: Some(node_port(node)),
            ..Default::default()
        }),
        EntryKey::Tenant(vrf) => {
            Kind::Tenant(v1::TenantEntry { vrf: vrf.get(), ..Default::default() })
        }
        EntryKey::Meter(meter) => {
            Kind::Meter(v1::MeterEntry { meter: meter.get(), ..Default::default() })
        }
        EntryKey::Qos(port) => {
            Kind::Qos(v1::QosEntry { port: port.get().into(), ..Default::default() })
        }
    };
    v1::Entry { kind: Some(kind) }
}

fn port(e: &PortEntry) -> v1::PortEntry {
    v1::PortEntry {
        port: e.port.get().into(),
        vrf: e.vrf.get(),
        bd: e.bd.get(),
        group: e.group.get(),
        mac: e.mac.0.to_vec(),
        ip: e.ips.iter().copied().map(ip_to_proto).collect(),
        ipv6: match e.ipv6 {
            Ipv6::On => true,
            Ipv6::Off => false,
        },
        sample_rate: e.sample_rate,
        offload_off: match e.offload {
            Offload::On => false,
            Offload::Off => true,
        },
    }
}

fn network(e: &NetworkEntry) -> v1::NetworkEntry {
    let (uplink_port, uplink_vid) = match e.wire {
        Some((port, vid)) => (port.get().into(), vid.get().into()),
        None => (0, 0),
    };
    v1::NetworkEntry {
        bd: e.bd.get(),
        vrf: e.vrf.get(),
        subnet: e.subnets.iter().copied().map(prefix_to_proto).collect(),
        gateway: e.gateways.iter().copied().map(ip_to_proto).collect(),
        uplink_port,
        uplink_vid,
    }
}

fn rule(e: &RuleEntry) -> v1::RuleEntry {
    let direction = match e.direction {
        Direction::Out => v1::Direction::Out,
        Direction::In => v1::Direction::In,
    };
    v1::RuleEntry {
        cookie: e.rule.0,
        seq: e.seq,
        priority: e.priority.into(),
        direction: direction.into(),
        vrf: e.vrf.get(),
        src_group: e.src_group.map(flowtable::ids::Group::get),
        dst_group: e.dst_group.map(flowtable::ids::Group::get),
        src: e.src.map(prefix_to_proto),
        dst: e.dst.map(prefix_to_proto),
        protocol: e.protocol.map(u32::from),
        src_port: e.src_ports.map(port_range),
        dst_port: e.dst_ports.map(port_range),
        verdict: permit(e.permit).into(),
        icmp: e.icmp.map(|m| v1::IcmpMatch { r#type: m.kind.into(), code: m.code.map(u32::from) }),
        tcp_flags: e
            .tcp_flags
            .map(|m| v1::TcpFlagsMatch { value: m.value.into(), mask: m.mask.into() }),
    }
}

fn meter(e: &MeterEntry) -> v1::MeterEntry {
    let band = |band: Band| v1::Band { rate: band.rate, burst: band.burst };
    let unit = match e.unit {
        MeterUnit::Bits => v1::MeterUnit::Bits,
        MeterUnit::Packets => v1::MeterUnit::Packets,
    };
    v1::MeterEntry {
        meter: e.meter.get(),
        unit: unit.into(),
        committed: Some(band(e.committed)),
        peak: e.peak.map(band),
        yellow_dscp: e.yellow_dscp.map(|dscp| dscp.get().into()),
    }
}

fn port_range(range: PortRange) -> v1::PortRange {
    v1::PortRange { first: range.first.into(), last: range.last.into() }
}

fn permit(permit: Permit) -> v1::Verdict {
    match permit {
        Permit::Allow => v1::Verdict::Allow,
        Permit::Deny => v1::Verdict::Deny,
    }
}

fn next_hop(next_hop: NextHop) -> v1::NextHop {
    use v1::next_hop::{Kind, Tunnel, Vlan};
    let kind = match next_hop {
        NextHop::Local(port) => Kind::LocalPort(port.get().into()),
        NextHop::Tunnel { vtep, vni } => {
            Kind::Tunnel(Tunnel { vtep: ip_to_proto(vtep), vni: vni.get() })
        }
        NextHop::Vlan { port, vid } => {
            Kind::Vlan(Vlan { port: port.get().into(), vid: vid.get().into() })
        }
        NextHop::UnknownEndpoint => Kind::UnknownEndpoint(true),
    };
    v1::NextHop { kind: Some(kind) }
}
