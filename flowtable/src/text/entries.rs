//! The text form of table entries: what they match, and what they do.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use super::bits::{BitMatch, Signed, TCP_FLAGS};
use super::protocol_word;
use crate::action::{Action, End};
use crate::drop::DropReason;
use crate::entry::{
    Band, Direction, Entry, Ipv6, MeterEntry, MeterUnit, NetworkEntry, NextHop, Offload, OnDeny,
    Permit, PortEntry, PortRange, Prefix, PublishedEntry, QosEntry, RouteEntry, RuleEntry,
    TcpFlagsMatch, TenantEntry, Tracking,
};
use crate::key::ethertype;

/// The key part of an entry: what a packet must be for the entry to apply.
#[must_use]
pub fn entry_match(entry: &Entry) -> String {
    match entry {
        Entry::Port(e) => format!("in_port={}", e.port),
        Entry::Network(e) => format!("bd={}", e.bd),
        Entry::Tunnel(e) => format!("tun_id={}", e.vni),
        Entry::Vtep(e) => format!("vtep={}", e.ip),
        Entry::Underlay(e) => format!("vtep={}", e.vtep),
        Entry::Vlan(e) => format!("in_port={},vlan_vid={}", e.port, e.vid),
        Entry::Group(e) => format!("vrf={},{}", e.vrf, Address("dst", e.prefix)),
        Entry::Rule(e) => e.to_string(),
        Entry::Route(e) => format!("vrf={},{}", e.vrf, Address("dst", e.prefix)),
        Entry::Mac(e) => format!("bd={},eth_dst={}", e.bd, e.mac),
        Entry::Published(e) => published_match(e),
        Entry::Tenant(e) => format!("vrf={}", e.vrf),
        Entry::Meter(e) => format!("meter={}", e.meter),
        Entry::Qos(e) => format!("port={}", e.port),
    }
}

/// The value part of an entry: what it does.
#[must_use]
pub fn entry_actions(entry: &Entry) -> String {
    match entry {
        Entry::Port(e) => port_actions(e),
        Entry::Network(e) => network_actions(e),
        Entry::Tunnel(e) => format!("tnl_pop,set(vrf={},bd={})", e.vrf, e.bd),
        Entry::Vtep(e) => format!("tun_src={}", e.local),
        Entry::Underlay(e) => {
            format!("set(eth(src={},dst={})),{}", e.src_mac, e.dst_mac, Action::Output(e.port))
        }
        Entry::Vlan(e) => format!("{},set(vrf={},bd={})", Action::PopVlan, e.vrf, e.bd),
        Entry::Group(e) => format!("group={}", e.group),
        Entry::Rule(e) => format!("{}(rule={})", e.permit, e.rule),
        Entry::Route(e) => route_actions(e),
        Entry::Mac(e) => e.next_hop.to_string(),
        Entry::Published(e) => {
            format!("set(vrf={}),{}", e.vrf, Action::Translate(End::Destination, (e.to, e.to_port)))
        }
        Entry::Tenant(e) => tenant_actions(e),
        Entry::Meter(e) => meter_actions(e),
        Entry::Qos(e) => qos_actions(e),
    }
}

fn published_match(e: &PublishedEntry) -> String {
    let eth_type = if e.node.address.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
    let word = protocol_word(eth_type, e.node.protocol).unwrap_or("ip");
    format!("{word},{},tp_dst={}", Address("dst", Prefix::host(e.node.address)), e.node.port)
}

fn tenant_actions(e: &TenantEntry) -> String {
    let mut parts = vec![format!("default={}", e.default)];
    if e.tracking == Tracking::Stateless {
        parts.push("stateless".to_owned());
    }
    if e.on_deny == OnDeny::Finish {
        parts.push("finish-denied".to_owned());
    }
    let bounds = [("connections_max", e.connections_max), ("new_flows_max", e.new_flows_max)];
    let bounds = bounds.into_iter().filter(|(_, bound)| *bound != 0);
    parts.extend(bounds.map(|(name, bound)| format!("{name}={bound}")));
    parts.join(",")
}

/// Words of ovs-ofctl(8)'s meters: `kbps` has no fraction there, so rates are in bits per second.
fn meter_actions(e: &MeterEntry) -> String {
    let (rate_unit, burst_unit) = match e.unit {
        MeterUnit::Bits => ("bps", "B"),
        MeterUnit::Packets => ("pktps", "pkt"),
    };
    let band = |Band { rate, burst }| format!("rate={rate}{rate_unit},burst={burst}{burst_unit}");
    let mut parts = vec![format!("committed({})", band(e.committed))];
    parts.extend(e.peak.map(|peak| format!("peak({})", band(peak))));
    parts.extend(e.yellow_dscp.map(|dscp| format!("yellow({})", Action::SetDscp(dscp))));
    parts.join(",")
}

fn qos_actions(e: &QosEntry) -> String {
    let mut parts = Vec::new();
    for (way, meters) in [("from", &e.from), ("to", &e.to)] {
        parts.extend(meters.iter().map(|meter| format!("{way}=meter:{meter}")));
    }
    parts.extend(e.dscp.map(|dscp| Action::SetDscp(dscp).to_string()));
    parts.join(",")
}

fn port_actions(e: &PortEntry) -> String {
    let mut text = format!("set(vrf={},bd={},group={}),src(eth={}", e.vrf, e.bd, e.group, e.mac);
    for ip in &e.ips {
        text.push_str(",ip=");
        text.push_str(&ip.to_string());
    }
    text.push(')');
    if e.ipv6 == Ipv6::Off {
        text.push_str(",ipv6-off");
    }
    if e.sample_rate != 0 {
        text.push_str(",sample=1/");
        text.push_str(&e.sample_rate.to_string());
    }
    if e.offload == Offload::Off {
        text.push_str(",offload-off");
    }
    text
}

fn network_actions(e: &NetworkEntry) -> String {
    let mut text = format!("set(vrf={})", e.vrf);
    for subnet in &e.subnets {
        text.push_str(",subnet=");
        text.push_str(&subnet.to_string());
    }
    for gateway in &e.gateways {
        text.push_str(",gateway=");
        text.push_str(&gateway.to_string());
    }
    if let Some((port, vid)) = e.wire {
        text.push_str(",wire=");
        text.push_str(&NextHop::Vlan { port, vid }.to_string());
    }
    text
}

fn route_actions(e: &RouteEntry) -> String {
    match e.next_hop {
        NextHop::UnknownEndpoint => e.next_hop.to_string(),
        NextHop::Local(_) | NextHop::Tunnel { .. } | NextHop::Vlan { .. } => {
            format!("set(bd={},eth_dst={}),{}", e.bd, e.mac, e.next_hop)
        }
    }
}

/// `nw_src=10.1.1.0/24`, or `ipv6_src=...`; one address without its length.
struct Address(&'static str, Prefix);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(end, prefix) = self;
        let (family, host) = match prefix.address() {
            IpAddr::V4(_) => ("nw", 32),
            IpAddr::V6(_) => ("ipv6", 128),
        };
        write!(f, "{family}_{end}={}", prefix.address())?;
        if prefix.length() == host { Ok(()) } else { write!(f, "/{}", prefix.length()) }
    }
}

impl fmt::Display for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Out => "out",
            Self::In => "in",
        })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last == self.first { Ok(()) } else { write!(f, "-{}", self.last) }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Local(port) => Action::Output(port).fmt(f),
            Self::Tunnel { vtep, vni } => Action::Encap { vtep, vni }.fmt(f),
            Self::Vlan { port, vid } => {
                write!(f, "{},{}", Action::PushVlan(vid), Action::Output(port))
            }
            Self::UnknownEndpoint => write!(f, "drop({})", DropReason::UnknownEndpoint),
        }
    }
}

/// What the rule matches. Without addresses a rule is for both families, which no word of OVS
/// says, so its protocol is then a number.
impl fmt::Display for RuleEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "priority={},vrf={},{}", self.priority, self.vrf, self.direction)?;
        if let Some(group) = self.src_group {
            write!(f, ",src_group={group}")?;
        }
        if let Some(group) = self.dst_group {
            write!(f, ",dst_group={group}")?;
        }
        let eth_type = self.src.or(self.dst).map(|prefix| match prefix.address() {
            IpAddr::V4(_) => ethertype::IPV4,
            IpAddr::V6(_) => ethertype::IPV6,
        });
        if let Some(proto) = self.protocol {
            match eth_type.and_then(|eth_type| protocol_word(eth_type, proto)) {
                Some(word) => write!(f, ",{word}")?,
                None => write!(f, ",nw_proto={proto}")?,
            }
        }
        for (end, prefix) in [("src", self.src), ("dst", self.dst)] {
            if let Some(prefix) = prefix {
                f.write_char(',')?;
                Address(end, prefix).fmt(f)?;
            }
        }
        for (end, ports) in [("src", self.src_ports), ("dst", self.dst_ports)] {
            if let Some(ports) = ports {
                write!(f, ",tp_{end}={ports}")?;
            }
        }
        if let Some(icmp) = self.icmp {
            write!(f, ",icmp_type={}", icmp.kind)?;
            if let Some(code) = icmp.code {
                write!(f, ",icmp_code={code}")?;
            }
        }
        if let Some(TcpFlagsMatch { value, mask }) = self.tcp_flags {
            write!(f, ",tcp_flags={}", Signed(TCP_FLAGS, BitMatch { value, mask }))?;
        }
        Ok(())
    }
}
