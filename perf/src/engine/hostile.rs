//! What attackers send: from one container, on a queue of its own.
//!
//! *Tuple space explosion*: random headers against a list that allows some and denies the rest, so
//! that every packet asks all masks and no two packets share a cached decision. *New flows* and
//! *SYN*: valid packets of which every one begins a flow.

use anyhow::Result;
use flowtable::entry::{
    Direction, Entry, Ipv6, MacEntry, NextHop, Offload, Op, Permit, PortEntry, PortRange, Prefix,
    RouteEntry, RuleEntry,
};
use flowtable::ids::{Bd, Group, Mac, PortId, RuleId, Vrf};
use packet_io::memory::Feed;
use perf::workload::{Flow, Tenant, flow};
use std::net::{IpAddr, Ipv4Addr};

/// Addresses the attacker owns: it may spoof, but that ends at its port.
const OWNED: u32 = 0x0a40_0000;
const OWNED_COUNT: u32 = 1024;
/// Distinct frames, of which every turn has other source ports.
const FRAMES: u32 = 1 << 17;
const SOURCE_PORT: usize = 34;
/// Above all other rules.
const PRIORITY: u16 = 65_100;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A small pseudo-random generator (xorshift64), the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }
}

/// Random headers from the container at `port`: one in eight with a source address that is not its
/// own, half of them to the tenant's own destinations.
pub(super) fn random_headers(port: PortId, size: usize) -> Feed {
    let mut numbers = Numbers(0x0ddb_1a5e);
    let [high, low] = port.get().to_be_bytes();
    let macs = (Mac::GATEWAY, Mac([2, 0, 0, 0, high, low]));
    let mut frame = |_| {
        let (kind, address) = (numbers.next(), numbers.next());
        let ports = numbers.next();
        let flow = Flow {
            src: if kind.is_multiple_of(8) {
                numbers.next() | 1
            } else {
                OWNED + address % OWNED_COUNT
            },
            dst: match kind & 8 {
                0 => 0xac10_0000 | numbers.next() & 0x3_ffff,
                _ => 0x4000_0000 | numbers.next() >> 2,
            },
            src_port: ports as u16,
            // Some of it is allowed, or there would be no way to find the allowed masks.
            dst_port: if kind & 0xf0 == 0 { 80 } else { (ports >> 16) as u16 },
        };
        let protocol = match kind >> 8 & 15 {
            0 => (kind >> 16) as u8,
            1..8 => TCP,
            _ => UDP,
        };
        let mut bytes = flow.headers(size, macs, (64, protocol));
        bytes.extend_from_slice(&((size - 34) as u16).to_be_bytes());
        bytes.resize(size, 0);
        // A TCP header of 20 bytes without options: an ACK.
        if protocol == TCP {
            bytes[46..48].copy_from_slice(&[0x50, 0x10]);
        }
        bytes
    };
    Feed::new((0..FRAMES).map(&mut frame).collect()).fresh(SOURCE_PORT)
}

/// The attacker's container in its victims' own tenant, with a sink of its own, a way to everywhere,
/// and three rules that allow some of what it sends.
pub(super) fn allow_some(tenant: &Tenant, (port, sink): (PortId, PortId)) -> Result<Vec<Op>> {
    let (vrf, bd) = (Vrf::new(tenant.number)?, Bd::new(tenant.number)?);
    let [high, low] = port.get().to_be_bytes();
    let owned = (0..OWNED_COUNT).map(|i| v4(OWNED + i)).collect();
    let container = |port: PortId, mac: Mac, ips: Vec<IpAddr>| {
        let (group, ipv6) = (Group::new(1)?, Ipv6::Off);
        anyhow::Ok(Entry::Port(PortEntry {
            port,
            vrf,
            bd,
            group,
            mac,
            ips,
            ipv6,
            sample_rate: 0,
            offload: Offload::On,
        }))
    };
    let anywhere = Bd::new(tenant.number + 20_000)?;
    let (mac, next_hop) = (Mac([2, 3, 0, 0, 0, 1]), NextHop::Local(sink));
    let blank = |number: u64| RuleEntry {
        priority: PRIORITY,
        ..RuleEntry::any(RuleId(1 << 60 | number), vrf, Direction::Out, Permit::Allow)
    };
    let one = |port: u16| Some(PortRange { first: port, last: port });
    let entries = [
        container(port, Mac([2, 0, 0, 0, high, low]), owned)?,
        container(sink, mac, vec![v4(0x0aff_0002)])?,
        Entry::Route(RouteEntry {
            vrf,
            prefix: Prefix::new(v4(0), 0)?,
            bd: anywhere,
            mac,
            next_hop,
        }),
        Entry::Mac(MacEntry { bd: anywhere, mac, next_hop }),
        Entry::Rule(RuleEntry { dst_ports: one(80), protocol: Some(TCP), ..blank(1) }),
        Entry::Rule(RuleEntry { src_ports: one(12_345), protocol: Some(UDP), ..blank(2) }),
        Entry::Rule(RuleEntry { src: Some(Prefix::host(v4(OWNED + 7))), ..blank(3) }),
        // The tenant's default is to deny; receivers take everything.
        Entry::Rule(RuleEntry { direction: Direction::In, ..blank(4) }),
    ];
    Ok(entries.into_iter().map(Op::Put).collect())
}

/// Packets of `tenant`, of which every one begins a flow.
pub(super) fn new_flows(tenant: &Tenant, size: usize) -> Result<Feed> {
    let frame = |i| Ok(flow(i).sent(tenant.port_of(i)?, size));
    let frames = (0..tenant.flows).map(frame).collect::<Result<_>>()?;
    Ok(Feed::new(frames).fresh(SOURCE_PORT))
}

/// TCP SYNs of `tenant`, of which every one begins a connection that nobody answers.
pub(super) fn syns(tenant: &Tenant, size: usize) -> Result<Feed> {
    let frame = |i| Ok(flow(i).syn(tenant.port_of(i)?, size));
    let frames = (0..tenant.flows).map(frame).collect::<Result<_>>()?;
    Ok(Feed::new(frames).fresh(SOURCE_PORT))
}

fn v4(bits: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(bits))
}
