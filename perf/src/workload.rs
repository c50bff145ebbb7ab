//! A tenant's pipeline and its traffic: containers, rules, routes and UDP flows, the same for every
//! measurement and made from their numbers alone.
//!
//! Flow `i` goes to one of 1,000 blocks of 256 addresses and one of 8 destination ports; rules are
//! a mix of prefixes and ports, the last one allows everything, so that every packet is compared
//! with the list and none is denied.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use flowtable::entry::{
    Direction, Entry, Ipv6, NetworkEntry, NextHop, Op, Permit, PortEntry, PortRange, Prefix,
    RouteEntry, RuleEntry,
};
use flowtable::ids::{Bd, Group, Mac, PortId, RuleId, Vrf};

/// First three bytes of every source address: 10.0.0.x, one a container.
const SOURCES: u32 = 0x0a00_0000;
/// Destinations start at 172.16.0.0.
const DESTINATIONS: u32 = 0xac10_0000;
const DESTINATION_PORTS: [u16; 8] = [80, 443, 8080, 53, 8443, 5432, 6379, 9092];
/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;

/// What to build.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Containers the flows come from: ports 1, 2, ...
    pub(crate) sources: u16,
    /// The port they all go to.
    pub(crate) sink: PortId,
    pub(crate) acl_rules: u32,
    pub(crate) routes: u32,
}

/// The addresses of one flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) port: u16,
    src: u32,
    dst: u32,
    src_port: u16,
    dst_port: u16,
}

/// Flow number `i` of a shape with `sources` containers.
pub(crate) fn flow(i: u32, sources: u16) -> Flow {
    let port = (i % u32::from(sources)) as u16 + 1;
    Flow {
        port,
        src: SOURCES + u32::from(port),
        dst: DESTINATIONS + ((i % 1000) << 8) + (i / 1000) % 250 + 1,
        src_port: 1024 + ((i.wrapping_mul(2_654_435_761) >> 16) % 50_000) as u16,
        dst_port: DESTINATION_PORTS[(i / 7) as usize & 7],
    }
}

fn container_mac(port: u16) -> Mac {
    let [high, low] = port.to_be_bytes();
    Mac([2, 0, 0, 0, high, low])
}

/// MAC of everything behind block `block` of destinations.
fn destination_mac(block: u32) -> Mac {
    let [_, _, high, low] = block.to_be_bytes();
    Mac([2, 1, 0, 0, high, low])
}

impl Flow {
    /// The flow's packet as its container sends it, `size` bytes from the Ethernet header on.
    pub(crate) fn frame(&self, size: usize) -> Vec<u8> {
        self.packet(size, Mac::GATEWAY, container_mac(self.port), 64)
    }

    /// The same packet as it must arrive: routed by the gateway.
    pub(crate) fn routed(&self, size: usize) -> Vec<u8> {
        let block = (self.dst - DESTINATIONS) >> 8;
        self.packet(size, destination_mac(block), Mac::GATEWAY, 63)
    }

    fn packet(&self, size: usize, dst: Mac, src: Mac, ttl: u8) -> Vec<u8> {
        let size = size.max(HEADERS);
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(&dst.0);
        bytes.extend_from_slice(&src.0);
        bytes.extend_from_slice(&[0x08, 0x00]);
        let mut ip = [0; 20];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&((size - 14) as u16).to_be_bytes());
        ip[8] = ttl;
        ip[9] = 17;
        ip[12..16].copy_from_slice(&self.src.to_be_bytes());
        ip[16..20].copy_from_slice(&self.dst.to_be_bytes());
        let words = ip.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        let sum: u32 = words.sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        ip[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
        bytes.extend_from_slice(&ip);
        bytes.extend_from_slice(&self.src_port.to_be_bytes());
        bytes.extend_from_slice(&self.dst_port.to_be_bytes());
        bytes.extend_from_slice(&((size - 34) as u16).to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.resize(size, b'Z');
        bytes
    }
}

impl Shape {
    /// The tables.
    pub(crate) fn ops(&self) -> Result<Vec<Op>> {
        let vrf = Vrf::new(10)?;
        let bd = Bd::new(10)?;
        let mut ops = vec![Op::Put(Entry::Network(NetworkEntry {
            bd,
            vrf,
            subnets: vec![Prefix::new(v4(SOURCES), 16)?],
            gateways: vec![v4(SOURCES + 0xfffe)],
            wire: None,
        }))];
        let container = |port: PortId, ip: u32| {
            let mac = container_mac(port.get());
            let ips = vec![v4(ip)];
            let group = Group::new(1)?;
            let entry =
                PortEntry { port, vrf, bd, group, mac, ips, ipv6: Ipv6::Off, sample_rate: 0 };
            anyhow::Ok(Op::Put(Entry::Port(entry)))
        };
        for port in 1..=self.sources {
            ops.push(container(PortId::new(u32::from(port))?, SOURCES + u32::from(port))?);
        }
        ops.push(container(self.sink, SOURCES + 0xfff0)?);
        for rule in 0..self.acl_rules {
            ops.push(Op::Put(Entry::Rule(self.rule(rule, vrf)?)));
        }
        for block in 0..self.routes.max(1000) {
            ops.push(Op::Put(Entry::Route(RouteEntry {
                vrf,
                prefix: Prefix::new(v4(DESTINATIONS + (block << 8)), 24)?,
                bd: Bd::new(11)?,
                mac: destination_mac(block),
                next_hop: NextHop::Local(self.sink),
            })));
        }
        Ok(ops)
    }

    /// Rule `number`, highest priority first; the last one matches everything.
    fn rule(&self, number: u32, vrf: Vrf) -> Result<RuleEntry> {
        let Flow { src, dst, src_port, dst_port, .. } =
            flow(number.wrapping_mul(7919) % 100_000, self.sources);
        let block = |ip: u32, len: u8| Prefix::new(v4(ip), len).map(Some);
        let one = |port: u16| Some(PortRange { first: port, last: port });
        let mut rule = RuleEntry {
            rule: RuleId(u64::from(number) + 1),
            seq: 0,
            priority: (20_000 - number.min(19_999)) as u16,
            direction: Direction::Out,
            vrf,
            src_group: None,
            dst_group: None,
            src: None,
            dst: None,
            protocol: None,
            src_ports: None,
            dst_ports: None,
            icmp: None,
            tcp_flags: None,
            permit: Permit::Allow,
        };
        if number + 1 == self.acl_rules {
            return Ok(rule);
        }
        rule.protocol = Some(17);
        match number % 5 {
            0 => {
                (rule.src, rule.dst) = (block(src, 24)?, block(dst, 24)?);
                rule.dst_ports = one(dst_port);
            }
            1 => {
                (rule.src, rule.dst) = (block(src, 12)?, block(dst, 32)?);
                rule.dst_ports = one(dst_port);
            }
            2 => (rule.dst, rule.dst_ports) = (block(dst, 20)?, one(10_000 + number as u16)),
            3 => {
                (rule.src, rule.dst) = (block(src, 32)?, block(dst, 32)?);
                (rule.src_ports, rule.dst_ports) = (one(src_port), one(dst_port));
            }
            _ => {
                (rule.src, rule.dst) = (block(src, 28)?, block(dst, 16)?);
                rule.dst_ports = Some(PortRange { first: 8080, last: 8095 });
            }
        }
        Ok(rule)
    }
}

fn v4(bits: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(bits))
}
