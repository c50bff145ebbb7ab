//! What one entry can say wrong: values out of range and fields that contradict each other.
//!
//! Types keep most of it out (identifiers, prefixes). This is the rest, checked where entries enter
//! an engine, so that the tables hold no entry that can never do anything. What depends on other
//! entries is the engine's to check.

use std::net::IpAddr;

use super::{
    Band, Entry, MacEntry, MeterEntry, MeterUnit, NetworkEntry, NodePort, PORT_METERS_MAX,
    PortEntry, PortRange, Prefix, PublishedEntry, QosEntry, RuleEntry, VtepEntry,
};
use crate::ids::MeterId;
use crate::key::ipproto;
use crate::meter::{BURST_BYTES, BURST_PACKETS, RATE_BITS, RATE_PACKETS};

/// A field that no entry may have like this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value}: {reason}")]
pub struct BadEntry {
    /// Which field.
    pub field: &'static str,
    /// What it is.
    pub value: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

fn refuse<T>(
    field: &'static str,
    value: impl std::fmt::Display,
    reason: &'static str,
) -> Result<T, BadEntry> {
    Err(BadEntry { field, value: value.to_string(), reason })
}

impl Entry {
    /// Checks everything that can be checked without other entries.
    ///
    /// # Errors
    /// [`BadEntry`] names the first field that is wrong.
    pub fn check(&self) -> Result<(), BadEntry> {
        match self {
            Self::Port(entry) => port(entry),
            Self::Network(entry) => network(entry),
            Self::Vtep(entry) => vtep(entry),
            Self::Rule(entry) => rule(entry),
            Self::Mac(entry) => mac(entry),
            Self::Published(entry) => published(entry),
            Self::Meter(entry) => meter(entry),
            Self::Qos(entry) => qos(entry),
            Self::Tunnel(_)
            | Self::Underlay(_)
            | Self::Vlan(_)
            | Self::Group(_)
            | Self::Route(_)
            | Self::Tenant(_) => Ok(()),
        }
    }
}

fn port(entry: &PortEntry) -> Result<(), BadEntry> {
    if entry.mac.is_multicast() {
        return refuse("mac", entry.mac, "an endpoint has no group address (IEEE 802, bit I/G)");
    }
    if entry.ips.is_empty() {
        return refuse("ips", "[]", "an endpoint has at least one address");
    }
    entry.ips.iter().try_for_each(|ip| unicast("ips", *ip))
}

fn unicast(field: &'static str, ip: IpAddr) -> Result<(), BadEntry> {
    if ip.is_unspecified() || ip.is_multicast() {
        return refuse(field, ip, "want a unicast address");
    }
    Ok(())
}

fn network(entry: &NetworkEntry) -> Result<(), BadEntry> {
    let outside = |ip: &&IpAddr| {
        let same = |ip: IpAddr| move |subnet: &&Prefix| subnet.address().is_ipv4() == ip.is_ipv4();
        let mut subnets = entry.subnets.iter().filter(same(**ip)).peekable();
        subnets.peek().is_some() && !subnets.any(|subnet| subnet.contains(**ip))
    };
    match entry.gateways.iter().find(outside) {
        Some(ip) => refuse("gateways", ip, "in no subnet of the network"),
        None => Ok(()),
    }
}

fn vtep(entry: &VtepEntry) -> Result<(), BadEntry> {
    unicast("ip", entry.ip)?;
    unicast("local", entry.local)?;
    if entry.ip.is_ipv4() != entry.local.is_ipv4() {
        return refuse("local", entry.local, "not of the other end's family");
    }
    Ok(())
}

fn mac(entry: &MacEntry) -> Result<(), BadEntry> {
    if entry.mac.is_multicast() {
        return refuse("mac", entry.mac, "group addresses are flooded, never looked up");
    }
    Ok(())
}

fn published(entry: &PublishedEntry) -> Result<(), BadEntry> {
    let NodePort { address, protocol, port } = entry.node;
    unicast("address", address)?;
    unicast("to", entry.to)?;
    if address.is_ipv4() != entry.to.is_ipv4() {
        return refuse("to", entry.to, "not of the node's address's family");
    }
    if !matches!(protocol, ipproto::TCP | ipproto::UDP) {
        return refuse("protocol", protocol, "only TCP (6) and UDP (17) have ports");
    }
    let ports = [("port", port), ("to_port", entry.to_port)];
    match ports.into_iter().find(|(_, port)| *port == 0) {
        Some((field, _)) => refuse(field, 0, "want a port, 1 to 65535"),
        None => Ok(()),
    }
}

fn rule(entry: &RuleEntry) -> Result<(), BadEntry> {
    if let (Some(src), Some(dst)) = (entry.src, entry.dst)
        && src.address().is_ipv4() != dst.address().is_ipv4()
    {
        return refuse("dst", dst, "not of the source's family: no packet matches");
    }
    let v4 = [entry.src, entry.dst].into_iter().flatten().find(|block| block.address().is_ipv4());
    if let (Some(ipproto::ICMPV6), Some(block)) = (entry.protocol, v4) {
        return refuse("protocol", ipproto::ICMPV6, "no ICMPv6 between IPv4 addresses")
            .map_err(|bad| BadEntry { value: format!("{} with {block}", bad.value), ..bad });
    }
    ports("src_ports", entry, entry.src_ports)?;
    ports("dst_ports", entry, entry.dst_ports)?;
    icmp(entry)?;
    tcp_flags(entry)
}

fn ports(field: &'static str, entry: &RuleEntry, range: Option<PortRange>) -> Result<(), BadEntry> {
    let Some(PortRange { first, last }) = range else { return Ok(()) };
    let text = format!("{first}-{last}");
    if first > last {
        return refuse(field, text, "the first port is above the last");
    }
    match entry.protocol {
        None | Some(ipproto::TCP | ipproto::UDP) => Ok(()),
        Some(_) => refuse(field, text, "only TCP (6) and UDP (17) have ports"),
    }
}

fn icmp(entry: &RuleEntry) -> Result<(), BadEntry> {
    let Some(icmp) = entry.icmp else { return Ok(()) };
    let code = icmp.code.map_or_else(|| "any".to_owned(), |code| code.to_string());
    let text = format!("type {} code {code}", icmp.kind);
    if entry.src_ports.is_some() || entry.dst_ports.is_some() {
        return refuse("icmp", text, "a packet has ports or an ICMP type, not both");
    }
    match entry.protocol {
        None | Some(ipproto::ICMP | ipproto::ICMPV6) => Ok(()),
        Some(_) => refuse("icmp", text, "only ICMP (1) and ICMPv6 (58) have a type"),
    }
}

fn tcp_flags(entry: &RuleEntry) -> Result<(), BadEntry> {
    let Some(flags) = entry.tcp_flags else { return Ok(()) };
    let text = format!("{:#04x}/{:#04x}", flags.value, flags.mask);
    if flags.mask == 0 {
        return refuse("tcp_flags", text, "the mask selects no flag");
    }
    if flags.value & !flags.mask != 0 {
        return refuse("tcp_flags", text, "flags outside the mask: no packet matches");
    }
    if entry.icmp.is_some() {
        return refuse("tcp_flags", text, "a packet has TCP flags or an ICMP type, not both");
    }
    match entry.protocol {
        None | Some(ipproto::TCP) => Ok(()),
        Some(_) => refuse("tcp_flags", text, "only TCP (6) has flags"),
    }
}

fn meter(entry: &MeterEntry) -> Result<(), BadEntry> {
    band(["committed.rate", "committed.burst"], entry.unit, entry.committed)?;
    let Some(peak) = entry.peak else { return Ok(()) };
    band(["peak.rate", "peak.burst"], entry.unit, peak)?;
    if peak.rate < entry.committed.rate {
        return refuse("peak.rate", peak.rate, "below the committed rate (RFC 2698, section 3)");
    }
    Ok(())
}

fn band([rate, burst]: [&'static str; 2], unit: MeterUnit, band: Band) -> Result<(), BadEntry> {
    let (rates, bursts, rate_reason, burst_reason) = match unit {
        MeterUnit::Bits => (
            RATE_BITS,
            BURST_BYTES,
            "want 1000 to 400000000000 bits per second",
            "want 1518 to 1000000000 bytes",
        ),
        MeterUnit::Packets => (
            RATE_PACKETS,
            BURST_PACKETS,
            "want 1 to 1000000000 packets per second",
            "want 1 to 1000000000 packets",
        ),
    };
    if !rates.contains(&band.rate) {
        return refuse(rate, band.rate, rate_reason);
    }
    if !bursts.contains(&band.burst) {
        return refuse(burst, band.burst, burst_reason);
    }
    Ok(())
}

fn qos(entry: &QosEntry) -> Result<(), BadEntry> {
    meters("from", &entry.from)?;
    meters("to", &entry.to)
}

fn meters(field: &'static str, meters: &[MeterId]) -> Result<(), BadEntry> {
    const _: () = assert!(PORT_METERS_MAX == 3, "the reason below names it");
    if meters.len() > PORT_METERS_MAX {
        return refuse(field, meters.len(), "a port has at most 3 meters in a direction");
    }
    let again = meters.iter().enumerate().find(|(at, meter)| meters[..*at].contains(meter));
    match again {
        Some((_, meter)) => refuse(field, meter, "the meter is named twice"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{
        Direction, IcmpMatch, Ipv6, NextHop, Offload, Permit, RuleEntry, TcpFlagsMatch,
    };
    use crate::ids::{Bd, Group, Mac, PortId, RuleId, Vrf};

    fn base() -> RuleEntry {
        RuleEntry::any(RuleId(1), Vrf::MIN, Direction::In, Permit::Allow)
    }

    fn field(entry: &Entry) -> Option<&'static str> {
        entry.check().err().map(|bad| bad.field)
    }

    fn block(text: &str) -> Prefix {
        Prefix::host(text.parse().unwrap())
    }

    #[test]
    fn rules_that_can_match_are_accepted() {
        let ports = Some(PortRange { first: 80, last: 80 });
        let icmp = Some(IcmpMatch { kind: 8, code: None });
        let tcp_flags = Some(TcpFlagsMatch { value: 2, mask: 0x12 });
        for rule in [
            base(),
            RuleEntry { src_ports: ports, dst_ports: ports, ..base() },
            RuleEntry { dst_ports: ports, protocol: Some(6), tcp_flags, ..base() },
            RuleEntry { icmp, protocol: Some(58), src: Some(block("fd00::1")), ..base() },
            RuleEntry { icmp, protocol: Some(1), src: Some(block("10.0.0.1")), ..base() },
            RuleEntry { src: Some(block("10.0.0.1")), dst: Some(block("10.0.0.2")), ..base() },
        ] {
            assert_eq!(Entry::Rule(rule.clone()).check(), Ok(()), "{rule:?}");
        }
    }

    #[test]
    fn rules_that_cannot_match_are_refused_by_field() {
        let ports = Some(PortRange { first: 80, last: 80 });
        let backwards = Some(PortRange { first: 81, last: 80 });
        let icmp = Some(IcmpMatch { kind: 8, code: Some(0) });
        let flags = |value, mask| Some(TcpFlagsMatch { value, mask });
        for (rule, wrong) in [
            (
                RuleEntry { src: Some(block("10.0.0.1")), dst: Some(block("fd00::1")), ..base() },
                "dst",
            ),
            (RuleEntry { protocol: Some(58), dst: Some(block("10.0.0.1")), ..base() }, "protocol"),
            (RuleEntry { src_ports: backwards, ..base() }, "src_ports"),
            (RuleEntry { dst_ports: backwards, ..base() }, "dst_ports"),
            (RuleEntry { dst_ports: ports, protocol: Some(1), ..base() }, "dst_ports"),
            (RuleEntry { src_ports: ports, protocol: Some(47), ..base() }, "src_ports"),
            (RuleEntry { icmp, protocol: Some(6), ..base() }, "icmp"),
            (RuleEntry { icmp, dst_ports: ports, ..base() }, "icmp"),
            (RuleEntry { tcp_flags: flags(0, 0), ..base() }, "tcp_flags"),
            (RuleEntry { tcp_flags: flags(3, 2), ..base() }, "tcp_flags"),
            (RuleEntry { tcp_flags: flags(2, 2), protocol: Some(17), ..base() }, "tcp_flags"),
            (RuleEntry { tcp_flags: flags(2, 2), icmp, ..base() }, "tcp_flags"),
        ] {
            assert_eq!(field(&Entry::Rule(rule.clone())), Some(wrong), "{rule:?}");
        }
        let refused = Entry::Rule(RuleEntry { src_ports: backwards, ..base() }).check();
        let text = refused.unwrap_err().to_string();
        assert_eq!(text, "src_ports 81-80: the first port is above the last");
    }

    #[test]
    fn meters_out_of_range_are_refused_by_field() {
        let meter = |unit, committed: (u64, u64), peak: Option<(u64, u64)>| {
            let band = |(rate, burst)| Band { rate, burst };
            let (committed, peak) = (band(committed), peak.map(band));
            let id = MeterId::MIN;
            Entry::Meter(MeterEntry { meter: id, unit, committed, peak, yellow_dscp: None })
        };
        let (bits, packets) = (MeterUnit::Bits, MeterUnit::Packets);
        for (entry, wrong) in [
            (meter(bits, (1_000, 1_518), None), None),
            (meter(bits, (400_000_000_000, 1_000_000_000), None), None),
            (meter(packets, (1, 1), Some((1, 1))), None),
            (meter(bits, (0, 1_518), None), Some("committed.rate")),
            (meter(bits, (999, 1_518), None), Some("committed.rate")),
            (meter(bits, (400_000_000_001, 1_518), None), Some("committed.rate")),
            (meter(bits, (1_000, 1_517), None), Some("committed.burst")),
            (meter(bits, (1_000, 1_000_000_001), None), Some("committed.burst")),
            (meter(packets, (0, 1), None), Some("committed.rate")),
            (meter(packets, (1_000_000_001, 1), None), Some("committed.rate")),
            (meter(packets, (1, 0), None), Some("committed.burst")),
            (meter(bits, (2_000, 1_518), Some((1_999, 1_518))), Some("peak.rate")),
            (meter(bits, (2_000, 1_518), Some((2_000, 0))), Some("peak.burst")),
        ] {
            assert_eq!(field(&entry), wrong, "{entry:?}");
        }
    }

    #[test]
    fn published_ports_lead_from_unicast_to_unicast() {
        let published = |address: &str, protocol, port, to: &str, to_port| {
            let (address, to) = (address.parse().unwrap(), to.parse().unwrap());
            let vrf = Vrf::MIN;
            let node = NodePort { address, protocol, port };
            Entry::Published(PublishedEntry { node, vrf, to, to_port })
        };
        for (entry, wrong) in [
            (published("192.0.2.1", 6, 8080, "10.0.0.2", 80), None),
            (published("2001:db8::1", 17, 53, "fd00::2", 53), None),
            (published("0.0.0.0", 6, 8080, "10.0.0.2", 80), Some("address")),
            (published("192.0.2.1", 6, 8080, "224.0.0.1", 80), Some("to")),
            (published("192.0.2.1", 6, 8080, "fd00::2", 80), Some("to")),
            (published("192.0.2.1", 1, 8080, "10.0.0.2", 80), Some("protocol")),
            (published("192.0.2.1", 132, 8080, "10.0.0.2", 80), Some("protocol")),
            (published("192.0.2.1", 6, 0, "10.0.0.2", 80), Some("port")),
            (published("192.0.2.1", 6, 8080, "10.0.0.2", 0), Some("to_port")),
        ] {
            assert_eq!(field(&entry), wrong, "{entry:?}");
        }
    }

    #[test]
    fn meters_of_a_port_are_few_and_different() {
        let ids = |ids: &[u32]| ids.iter().map(|id| MeterId::new(*id).unwrap()).collect();
        let qos = |from: &[u32], to: &[u32]| {
            Entry::Qos(QosEntry { port: PortId::MIN, from: ids(from), to: ids(to), dscp: None })
        };
        assert_eq!(field(&qos(&[1, 2, 3], &[1, 2, 3])), None);
        assert_eq!(field(&qos(&[1, 2, 3, 4], &[])), Some("from"));
        assert_eq!(field(&qos(&[1], &[2, 3, 2])), Some("to"));
    }

    #[test]
    fn ends_are_unicast_and_gateways_inside() {
        let port = |mac: [u8; 6], ips: &[&str]| {
            Entry::Port(PortEntry {
                port: PortId::MIN,
                vrf: Vrf::MIN,
                bd: Bd::MIN,
                group: Group::NONE,
                mac: Mac(mac),
                ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
                ipv6: Ipv6::Off,
                sample_rate: 0,
                offload: Offload::On,
            })
        };
        assert_eq!(field(&port([2, 0, 0, 0, 0, 1], &["10.0.0.1"])), None);
        assert_eq!(field(&port([3, 0, 0, 0, 0, 1], &["10.0.0.1"])), Some("mac"));
        assert_eq!(field(&port([2, 0, 0, 0, 0, 1], &[])), Some("ips"));
        assert_eq!(field(&port([2, 0, 0, 0, 0, 1], &["10.0.0.1", "224.0.0.1"])), Some("ips"));
        let network = |gateway: &str| {
            Entry::Network(NetworkEntry {
                bd: Bd::MIN,
                vrf: Vrf::MIN,
                subnets: vec![Prefix::new("10.1.0.0".parse().unwrap(), 16).unwrap()],
                gateways: vec![gateway.parse().unwrap()],
                wire: None,
            })
        };
        assert_eq!(field(&network("10.1.0.1")), None);
        assert_eq!(field(&network("10.2.0.1")), Some("gateways"));
        let vtep = |ip: &str, local: &str| {
            Entry::Vtep(VtepEntry { ip: ip.parse().unwrap(), local: local.parse().unwrap() })
        };
        assert_eq!(field(&vtep("192.0.2.1", "192.0.2.2")), None);
        assert_eq!(field(&vtep("192.0.2.1", "fd00::1")), Some("local"));
        assert_eq!(field(&vtep("0.0.0.0", "192.0.2.2")), Some("ip"));
        let (bd, mac) = (Bd::MIN, Mac::BROADCAST);
        let next_hop = NextHop::Local(PortId::MIN);
        assert_eq!(field(&Entry::Mac(MacEntry { bd, mac, next_hop })), Some("mac"));
    }
}
