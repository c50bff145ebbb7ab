//! Messages to entries and keys. Each field is checked once, in the order of the proto, and the
//! first that is wrong is named.

use std::net::IpAddr;

use flowtable::entry::{
    Band, Direction, Entry, EntryKey, GroupEntry, IcmpMatch, Ipv6, MacEntry, MeterEntry, MeterUnit,
    NetworkEntry, NextHop, NodePort, Offload, OnDeny, Permit, PortEntry, PortRange, Prefix,
    PublishedEntry, QosEntry, RouteEntry, RuleEntry, TcpFlagsMatch, TenantEntry, Tracking,
    TunnelEntry, UnderlayEntry, VlanEntry, VtepEntry,
};
use flowtable::ids::{Bd, Dscp, Group, Mac, MeterId, OutOfRange, PortId, RuleId, Vid, Vni, Vrf};

use super::{ConvertError, Field};
use crate::v1;
use crate::v1::entry::Kind;

type Parsed<T> = Result<T, ConvertError>;

/// An address of 4 or 16 bytes in network byte order; `at` names it in the error.
///
/// # Errors
/// [`ConvertError::AddressLength`] for any other number of bytes.
pub fn ip_from_proto(bytes: &[u8], at: Field) -> Parsed<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(v6.into()),
        Err(_) => Err(ConvertError::AddressLength { at, len: bytes.len() }),
    }
}

/// A MAC address of 6 bytes; `at` names it in the error.
///
/// # Errors
/// [`ConvertError::MacLength`] for any other number of bytes.
pub fn mac_from_proto(bytes: &[u8], at: Field) -> Parsed<Mac> {
    match bytes.try_into() {
        Ok(bytes) => Ok(Mac(bytes)),
        Err(_) => Err(ConvertError::MacLength { at, len: bytes.len() }),
    }
}

/// Parses an entry.
///
/// # Errors
/// The first field that is missing, too long, too short or out of range.
pub fn entry_from_proto(entry: v1::Entry) -> Parsed<Entry> {
    Ok(match entry.kind.ok_or(ConvertError::Missing(NO_KIND))? {
        Kind::Port(e) => Entry::Port(port(&e)?),
        Kind::Network(e) => Entry::Network(network(&e)?),
        Kind::Tunnel(e) => {
            let m = Message("tunnel");
            Entry::Tunnel(TunnelEntry {
                vni: m.vni("vni", e.vni)?,
                bd: m.bd(e.bd)?,
                vrf: m.vrf(e.vrf)?,
            })
        }
        Kind::Vtep(e) => {
            let m = Message("vtep");
            Entry::Vtep(VtepEntry { ip: m.ip("ip", &e.ip)?, local: m.ip("local", &e.local)? })
        }
        Kind::Underlay(e) => Entry::Underlay(underlay(&e)?),
        Kind::Vlan(e) => Entry::Vlan(vlan(&e)?),
        Kind::Group(e) => {
            let m = Message("group");
            Entry::Group(GroupEntry {
                vrf: m.vrf(e.vrf)?,
                prefix: m.required_prefix(e.prefix)?,
                group: m.group("group", e.group)?,
            })
        }
        Kind::Rule(e) => Entry::Rule(rule(&e)?),
        Kind::Route(e) => Entry::Route(route(e)?),
        Kind::Mac(e) => {
            let m = Message("mac");
            Entry::Mac(MacEntry {
                bd: m.bd(e.bd)?,
                mac: m.mac("mac", &e.mac)?,
                next_hop: m.next_hop(e.next_hop)?,
            })
        }
        Kind::Published(e) => Entry::Published(published(&e)?),
        Kind::Tenant(e) => Entry::Tenant(tenant(&e)?),
        Kind::Meter(e) => Entry::Meter(meter(&e)?),
        Kind::Qos(e) => Entry::Qos(qos(&e)?),
    })
}

/// Parses the key fields of an entry and ignores its other fields.
///
/// # Errors
/// The first key field that is missing, too long, too short or out of range.
pub fn key_from_proto(entry: v1::Entry) -> Parsed<EntryKey> {
    Ok(match entry.kind.ok_or(ConvertError::Missing(NO_KIND))? {
        Kind::Port(e) => EntryKey::Port(Message("port").port("port", e.port)?),
        Kind::Network(e) => EntryKey::Network(Message("network").bd(e.bd)?),
        Kind::Tunnel(e) => EntryKey::Tunnel(Message("tunnel").vni("vni", e.vni)?),
        Kind::Vtep(e) => EntryKey::Vtep(Message("vtep").ip("ip", &e.ip)?),
        Kind::Underlay(e) => EntryKey::Underlay(Message("underlay").ip("vtep", &e.vtep)?),
        Kind::Vlan(e) => {
            let m = Message("vlan");
            EntryKey::Vlan(m.port("port", e.port)?, m.vid("vid", e.vid)?)
        }
        Kind::Group(e) => {
            let m = Message("group");
            EntryKey::Group(m.vrf(e.vrf)?, m.required_prefix(e.prefix)?)
        }
        Kind::Rule(e) => EntryKey::Rule(RuleId(e.cookie), e.seq),
        Kind::Route(e) => {
            let m = Message("route");
            EntryKey::Route(m.vrf(e.vrf)?, m.required_prefix(e.prefix)?)
        }
        Kind::Mac(e) => {
            let m = Message("mac");
            EntryKey::Mac(m.bd(e.bd)?, m.mac("mac", &e.mac)?)
        }
        Kind::Published(e) => EntryKey::Published(published_key(&e)?),
        Kind::Tenant(e) => EntryKey::Tenant(Message("tenant").vrf(e.vrf)?),
        Kind::Meter(e) => EntryKey::Meter(Message("meter").meter("meter", e.meter)?),
        Kind::Qos(e) => EntryKey::Qos(Message("qos").port("port", e.port)?),
    })
}

const NO_KIND: Field = Field { message: "entry", field: "kind" };

fn port(e: &v1::PortEntry) -> Parsed<PortEntry> {
    let m = Message("port");
    Ok(PortEntry {
        port: m.port("port", e.port)?,
        vrf: m.vrf(e.vrf)?,
        bd: m.bd(e.bd)?,
        group: m.group("group", e.group)?,
        mac: m.mac("mac", &e.mac)?,
        ips: e.ip.iter().map(|ip| m.ip("ip", ip)).collect::<Parsed<_>>()?,
        ipv6: if e.ipv6 { Ipv6::On } else { Ipv6::Off },
        sample_rate: e.sample_rate,
        offload: if e.offload_off { Offload::Off } else { Offload::On },
    })
}

fn network(e: &v1::NetworkEntry) -> Parsed<NetworkEntry> {
    let m = Message("network");
    let wire = match (e.uplink_port, e.uplink_vid) {
        (0, 0) => None,
        (port, vid) => Some((m.port("uplink_port", port)?, m.vid("uplink_vid", vid)?)),
    };
    Ok(NetworkEntry {
        bd: m.bd(e.bd)?,
        vrf: m.vrf(e.vrf)?,
        subnets: e.subnet.iter().map(|p| m.prefix("subnet", p)).collect::<Parsed<_>>()?,
        gateways: e.gateway.iter().map(|ip| m.ip("gateway", ip)).collect::<Parsed<_>>()?,
        wire,
    })
}

fn underlay(e: &v1::UnderlayEntry) -> Parsed<UnderlayEntry> {
    let m = Message("underlay");
    Ok(UnderlayEntry {
        vtep: m.ip("vtep", &e.vtep)?,
        port: m.port("port", e.port)?,
        src_mac: m.mac("src_mac", &e.src_mac)?,
        dst_mac: m.mac("dst_mac", &e.dst_mac)?,
    })
}

fn vlan(e: &v1::VlanEntry) -> Parsed<VlanEntry> {
    let m = Message("vlan");
    Ok(VlanEntry {
        port: m.port("port", e.port)?,
        vid: m.vid("vid", e.vid)?,
        bd: m.bd(e.bd)?,
        vrf: m.vrf(e.vrf)?,
    })
}

fn rule(e: &v1::RuleEntry) -> Parsed<RuleEntry> {
    let m = Message("rule");
    Ok(RuleEntry {
        rule: RuleId(e.cookie),
        seq: e.seq,
        priority: m.u16("priority", e.priority)?,
        direction: m.direction(e.direction)?,
        vrf: m.vrf(e.vrf)?,
        src_group: e.src_group.map(|g| m.group("src_group", g)).transpose()?,
        dst_group: e.dst_group.map(|g| m.group("dst_group", g)).transpose()?,
        src: e.src.as_ref().map(|p| m.prefix("src", p)).transpose()?,
        dst: e.dst.as_ref().map(|p| m.prefix("dst", p)).transpose()?,
        protocol: e.protocol.map(|p| m.u8("protocol", p)).transpose()?,
        src_ports: e.src_port.map(|r| m.port_range("src_port", r)).transpose()?,
        dst_ports: e.dst_port.map(|r| m.port_range("dst_port", r)).transpose()?,
        icmp: e.icmp.map(|i| m.icmp(i)).transpose()?,
        tcp_flags: e.tcp_flags.map(|f| m.tcp_flags(f)).transpose()?,
        permit: m.permit("verdict", e.verdict)?,
    })
}

fn route(e: v1::RouteEntry) -> Parsed<RouteEntry> {
    let m = Message("route");
    Ok(RouteEntry {
        vrf: m.vrf(e.vrf)?,
        prefix: m.required_prefix(e.prefix)?,
        bd: m.bd(e.bd)?,
        mac: m.mac("mac", &e.mac)?,
        next_hop: m.next_hop(e.next_hop)?,
    })
}

fn tenant(e: &v1::TenantEntry) -> Parsed<TenantEntry> {
    let m = Message("tenant");
    let default = m.permit("default_verdict", e.default_verdict)?;
    Ok(TenantEntry {
        vrf: m.vrf(e.vrf)?,
        default,
        tracking: if e.stateless { Tracking::Stateless } else { Tracking::Stateful },
        on_deny: if e.finish_denied { OnDeny::Finish } else { OnDeny::Cut },
        connections_max: e.connections_max,
        new_flows_max: e.new_flows_max,
    })
}

fn meter(e: &v1::MeterEntry) -> Parsed<MeterEntry> {
    let m = Message("meter");
    let band = |band: v1::Band| Band { rate: band.rate, burst: band.burst };
    let unit = match v1::MeterUnit::try_from(e.unit) {
        Ok(v1::MeterUnit::Bits) => MeterUnit::Bits,
        Ok(v1::MeterUnit::Packets) => MeterUnit::Packets,
        Ok(v1::MeterUnit::Unspecified) | Err(_) => {
            return Err(ConvertError::Enum { at: m.at("unit"), value: e.unit });
        }
    };
    Ok(MeterEntry {
        meter: m.meter("meter", e.meter)?,
        unit,
        committed: e.committed.map(band).ok_or(ConvertError::Missing(m.at("committed")))?,
        peak: e.peak.map(band),
        yellow_dscp: e.yellow_dscp.map(|d| m.dscp("yellow_dscp", d)).transpose()?,
    })
}

fn published(e: &v1::PublishedEntry) -> Parsed<PublishedEntry> {
    let m = Message("published");
    Ok(PublishedEntry {
        node: published_key(e)?,
        vrf: m.vrf(e.vrf)?,
        to: m.ip("to", &e.to)?,
        to_port: m.u16("to_port", e.to_port)?,
    })
}

fn published_key(e: &v1::PublishedEntry) -> Parsed<NodePort> {
    let m = Message("published");
    let node = e.node.as_ref().ok_or(ConvertError::Missing(m.at("node")))?;
    Ok(NodePort {
        address: m.ip("node.address", &node.address)?,
        protocol: m.u8("node.protocol", node.protocol)?,
        port: m.u16("node.port", node.port)?,
    })
}

fn qos(e: &v1::QosEntry) -> Parsed<QosEntry> {
    let m = Message("qos");
    let meters = |field, ids: &[u32]| -> Parsed<Vec<MeterId>> {
        ids.iter().map(|id| m.meter(field, *id)).collect()
    };
    Ok(QosEntry {
        port: m.port("port", e.port)?,
        from: meters("from", &e.from)?,
        to: meters("to", &e.to)?,
        dscp: e.dscp.map(|d| m.dscp("dscp", d)).transpose()?,
    })
}

/// The message that is being parsed: gives every error its place.
#[derive(Clone, Copy)]
struct Message(&'static str);

impl Message {
    const fn at(self, field: &'static str) -> Field {
        Field { message: self.0, field }
    }

    fn ranged<T>(self, field: &'static str, checked: Result<T, OutOfRange>) -> Parsed<T> {
        checked.map_err(|source| ConvertError::Range { at: self.at(field), source })
    }

    fn port(self, field: &'static str, value: u32) -> Parsed<PortId> {
        self.ranged(field, PortId::new(value))
    }

    fn vrf(self, value: u32) -> Parsed<Vrf> {
        self.ranged("vrf", Vrf::new(value))
    }

    fn bd(self, value: u32) -> Parsed<Bd> {
        self.ranged("bd", Bd::new(value))
    }

    fn group(self, field: &'static str, value: u32) -> Parsed<Group> {
        self.ranged(field, Group::new(value))
    }

    fn vni(self, field: &'static str, value: u32) -> Parsed<Vni> {
        self.ranged(field, Vni::new(value))
    }

    fn vid(self, field: &'static str, value: u32) -> Parsed<Vid> {
        self.ranged(field, Vid::new(value))
    }

    fn meter(self, field: &'static str, value: u32) -> Parsed<MeterId> {
        self.ranged(field, MeterId::new(value))
    }

    fn dscp(self, field: &'static str, value: u32) -> Parsed<Dscp> {
        self.ranged(field, Dscp::new(value))
    }

    fn icmp(self, icmp: v1::IcmpMatch) -> Parsed<IcmpMatch> {
        let code = icmp.code.map(|code| self.u8("icmp.code", code)).transpose()?;
        Ok(IcmpMatch { kind: self.u8("icmp.type", icmp.r#type)?, code })
    }

    fn tcp_flags(self, flags: v1::TcpFlagsMatch) -> Parsed<TcpFlagsMatch> {
        let value = self.u8("tcp_flags.value", flags.value)?;
        Ok(TcpFlagsMatch { value, mask: self.u8("tcp_flags.mask", flags.mask)? })
    }

    fn u16(self, field: &'static str, value: u32) -> Parsed<u16> {
        let last = u64::from(u16::MAX);
        let error = OutOfRange { what: field, value: value.into(), first: 0, last };
        self.ranged(field, u16::try_from(value).or(Err(error)))
    }

    fn u8(self, field: &'static str, value: u32) -> Parsed<u8> {
        let last = u64::from(u8::MAX);
        let error = OutOfRange { what: field, value: value.into(), first: 0, last };
        self.ranged(field, u8::try_from(value).or(Err(error)))
    }

    fn mac(self, field: &'static str, bytes: &[u8]) -> Parsed<Mac> {
        mac_from_proto(bytes, self.at(field))
    }

    fn ip(self, field: &'static str, bytes: &[u8]) -> Parsed<IpAddr> {
        ip_from_proto(bytes, self.at(field))
    }

    fn prefix(self, field: &'static str, prefix: &v1::Prefix) -> Parsed<Prefix> {
        let at = self.at(field);
        let address = ip_from_proto(&prefix.address, at)?;
        let length = self.u8(field, prefix.length)?;
        Prefix::new(address, length).map_err(|source| ConvertError::Prefix { at, source })
    }

    fn required_prefix(self, prefix: Option<v1::Prefix>) -> Parsed<Prefix> {
        let prefix = prefix.ok_or(ConvertError::Missing(self.at("prefix")))?;
        self.prefix("prefix", &prefix)
    }

    fn port_range(self, field: &'static str, range: v1::PortRange) -> Parsed<PortRange> {
        let (first, last) = (self.u16(field, range.first)?, self.u16(field, range.last)?);
        if first > last {
            return Err(ConvertError::PortRange { at: self.at(field), first, last });
        }
        Ok(PortRange { first, last })
    }

    fn direction(self, value: i32) -> Parsed<Direction> {
        let at = self.at("direction");
        match v1::Direction::try_from(value) {
            Ok(v1::Direction::Out) => Ok(Direction::Out),
            Ok(v1::Direction::In) => Ok(Direction::In),
            Ok(v1::Direction::Unspecified) | Err(_) => Err(ConvertError::Enum { at, value }),
        }
    }

    fn permit(self, field: &'static str, value: i32) -> Parsed<Permit> {
        let at = self.at(field);
        match v1::Verdict::try_from(value) {
            Ok(v1::Verdict::Allow) => Ok(Permit::Allow),
            Ok(v1::Verdict::Deny) => Ok(Permit::Deny),
            Ok(v1::Verdict::Unspecified) | Err(_) => Err(ConvertError::Enum { at, value }),
        }
    }

    fn next_hop(self, next_hop: Option<v1::NextHop>) -> Parsed<NextHop> {
        use v1::next_hop::Kind;
        let kind = next_hop.ok_or(ConvertError::Missing(self.at("next_hop")))?.kind;
        match kind.ok_or(ConvertError::Missing(self.at("next_hop.kind")))? {
            Kind::LocalPort(port) => Ok(NextHop::Local(self.port("next_hop.local_port", port)?)),
            Kind::Tunnel(t) => Ok(NextHop::Tunnel {
                vtep: self.ip("next_hop.tunnel.vtep", &t.vtep)?,
                vni: self.vni("next_hop.tunnel.vni", t.vni)?,
            }),
            Kind::Vlan(v) => Ok(NextHop::Vlan {
                port: self.port("next_hop.vlan.port", v.port)?,
                vid: self.vid("next_hop.vlan.vid", v.vid)?,
            }),
            Kind::UnknownEndpoint(true) => Ok(NextHop::UnknownEndpoint),
            Kind::UnknownEndpoint(false) => {
                Err(ConvertError::False(self.at("next_hop.unknown_endpoint")))
            }
        }
    }
}
