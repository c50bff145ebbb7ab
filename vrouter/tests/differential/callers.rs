//! Who is outside all tenants, random ports of the node that lead to containers, and random packets
//! for them, or for what may look like them, and of the containers that answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowtable::entry::{Entry, EntryKey, NextHop, NodePort, Prefix, PublishedEntry};
use flowtable::ids::{Mac, PortId};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::fabric::frames::{self, Fragment, L4, Packet};
use crate::fabric::{Host, ROUTER_MAC, UPLINK, UPLINK_MAC, from_remote, prefix};
use crate::world::{ipv4, ipv6, ipv6_of, vni_of};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A port of the node, and the port of a container that it may lead to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Door {
    pub(crate) six: bool,
    pub(crate) tcp: bool,
    port: u16,
    /// Position of the container among the hosts of this node, modulo their number.
    host: u8,
    to_port: u16,
}

/// Somebody outside, and the port he calls from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    number: u8,
    port: u16,
}

pub(crate) fn door() -> impl Strategy<Value = Door> {
    (prop::bool::weighted(0.3), any::<bool>(), 8080..8082_u16, any::<u8>(), 1..=2_u16).prop_map(
        |(six, tcp, port, host, to_port)| {
            // A second address of the container is worth less than a second packet to the first.
            Door { six, tcp, port, host: host % 4, to_port }
        },
    )
}

pub(crate) fn caller() -> impl Strategy<Value = Caller> {
    (0..2_u8, 5000..5002_u16).prop_map(|(number, port)| Caller { number, port })
}

/// Where callers are.
pub(crate) fn block() -> impl Strategy<Value = Prefix> {
    let six = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0);
    prop_oneof![Just(prefix([198, 51, 100, 0], 24)), Just(prefix(six, 64))]
}

impl Door {
    /// The node's address and port.
    pub(crate) fn node(self) -> NodePort {
        let protocol = if self.tcp { 6 } else { 17 };
        NodePort { address: self.outer(), protocol, port: self.port }
    }

    /// The node's address.
    fn outer(self) -> IpAddr {
        if self.six {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
        } else {
            Ipv4Addr::new(192, 0, 2, 1).into()
        }
    }

    /// The caller's address.
    fn remote(self, Caller { number, .. }: Caller) -> IpAddr {
        if self.six {
            Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(number)).into()
        } else {
            Ipv4Addr::new(198, 51, 100, number).into()
        }
    }

    pub(crate) fn key(self) -> EntryKey {
        EntryKey::Published(self.node())
    }

    pub(crate) fn entry(self, hosts: &[Host]) -> Entry {
        let (host, node) = (self.host(hosts), self.node());
        let (to, to_port) = (self.inside(&host), self.to_port);
        Entry::Published(PublishedEntry { node, vrf: host.vrf, to, to_port })
    }

    /// Who is behind it.
    pub(crate) fn host(self, hosts: &[Host]) -> Host {
        let here = hosts.iter().filter(|host| matches!(host.place, NextHop::Local(_)));
        let here: Vec<_> = here.collect();
        let at = usize::from(self.host);
        here.get(at % here.len().max(1)).map_or(hosts[at % hosts.len()], |host| **host)
    }

    /// A host's address of the family.
    pub(crate) fn inside(self, host: &Host) -> IpAddr {
        if self.six { ipv6_of(host).into() } else { host.ip.into() }
    }

    fn l4(self, from: u16, to: u16, flags: u8) -> L4 {
        if self.tcp { L4::Segment(from, to, flags) } else { L4::Udp(from, to) }
    }

    /// From the caller to the node.
    pub(crate) fn question(self, caller: Caller, flags: u8) -> Packet {
        let ips = (self.remote(caller), self.outer());
        let l4 = self.l4(caller.port, self.port, flags);
        Packet::new((ROUTER_MAC, UPLINK_MAC), ips).l4(l4)
    }

    /// The same as the container sees it.
    pub(crate) fn question_inside(self, caller: Caller, host: &Host, flags: u8) -> Packet {
        let ips = (self.remote(caller), self.inside(host));
        let l4 = self.l4(caller.port, self.to_port, flags);
        Packet::new((Mac::GATEWAY, host.mac), ips).l4(l4)
    }

    /// From the container to the caller.
    pub(crate) fn answer(self, caller: Caller, host: &Host, flags: u8) -> Packet {
        let ips = (self.inside(host), self.remote(caller));
        let l4 = self.l4(self.to_port, caller.port, flags);
        Packet::new((host.mac, Mac::GATEWAY), ips).l4(l4)
    }
}

/// How a call comes to the node.
#[derive(Debug, Clone, Copy)]
enum Way {
    Uplink,
    /// With a tag of the wire.
    Tag(u16),
    /// In a tunnel, as if it had been translated.
    Forged,
    /// The container's answer, from its own port or another one.
    Answer(u8),
}

/// Who says to have sent it.
#[derive(Debug, Clone, Copy)]
enum Source {
    Caller,
    /// A host of the tenant.
    Host,
    /// An address of a network that no host has.
    Unknown,
    Gateway,
    /// No sender's address.
    Nobody(u8),
}

/// A packet of no conversation.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    door: Door,
    caller: Caller,
    way: Way,
    source: Source,
    /// Another MAC in place of the right one: sender, receiver.
    macs: (Option<Mac>, Option<Mac>),
    /// To another port.
    closed: bool,
    flags: u8,
    ttl: u8,
    fragment: Option<Fragment>,
    payload: Vec<u8>,
    /// Without a checksum, or with a wrong one.
    spoiled: Option<u8>,
}

pub(crate) fn call() -> impl Strategy<Value = Call> {
    let way = prop_oneof![
        12 => Just(Way::Uplink),
        1 => prop_oneof![3 => Just(0_u16), 1 => Just(31)].prop_map(Way::Tag),
        1 => Just(Way::Forged),
        6 => prop_oneof![8 => Just(0_u8), 1 => 1..4_u8].prop_map(Way::Answer),
    ];
    let source = prop_oneof![
        16 => Just(Source::Caller),
        1 => Just(Source::Host),
        1 => Just(Source::Unknown),
        1 => Just(Source::Gateway),
        1 => (0..3_u8).prop_map(Source::Nobody),
    ];
    let other = || {
        let group = Mac([1, 0, 0x5e, 0, 0, 1]);
        prop_oneof![14 => Just(None), 1 => Just(Some(group)), 1 => Just(Some(Mac([2; 6])))]
    };
    let flags = prop_oneof![3 => Just(SYN), 2 => Just(ACK), 1 => Just(SYN | ACK), 1 => 0..32_u8];
    let ttl = prop_oneof![8 => Just(64_u8), 1 => 0..4_u8];
    let fragment = prop_oneof![
        12 => Just(None),
        1 => Just(Some((0, true))),
        1 => (1..9_u16, any::<bool>()).prop_map(Some),
    ];
    let spoiled = prop_oneof![5 => Just(None), 1 => Just(Some(0)), 1 => any::<u8>().prop_map(Some)];
    let content = (fragment, vec(any::<u8>(), 0..24), spoiled);
    let how = (way, source, (other(), other()), prop::bool::weighted(0.1));
    (door(), caller(), how, flags, ttl, content).prop_map(
        |(door, caller, (way, source, macs, closed), flags, ttl, (fragment, payload, spoiled))| {
            Call { door, caller, way, source, macs, closed, flags, ttl, fragment, payload, spoiled }
        },
    )
}

impl Call {
    /// The port and the frame.
    pub(crate) fn build(&self, hosts: &[Host]) -> (PortId, Vec<u8>) {
        let host = self.door.host(hosts);
        let door = Door { port: self.door.port + u16::from(self.closed) * 10, ..self.door };
        let right = match self.way {
            Way::Uplink | Way::Tag(_) => door.question(self.caller, self.flags),
            Way::Forged => door.question_inside(self.caller, &host, self.flags),
            Way::Answer(_) => door.answer(self.caller, &host, self.flags),
        };
        let packet = Packet {
            ttl: self.ttl,
            fragment: self.fragment,
            payload: self.payload.clone(),
            macs: (self.macs.0.unwrap_or(right.macs.0), self.macs.1.unwrap_or(right.macs.1)),
            ..right
        };
        let packet = match self.way {
            Way::Answer(_) => packet,
            Way::Uplink | Way::Tag(_) | Way::Forged => self.said(packet, &host, hosts),
        };
        let mut frame = packet.bytes();
        self.spoil(&mut frame);
        match self.way {
            Way::Uplink => (UPLINK, frame),
            Way::Tag(vid) => (UPLINK, frames::tagged_as(0x8100, vid, &frame)),
            Way::Forged => {
                let vni = vni_of(host.vrf.get(), host.ip.octets()[2]);
                (UPLINK, frames::vxlan(&from_remote(), vni.get(), &frame))
            }
            Way::Answer(other) => {
                let from = if other == 0 { host } else { hosts[usize::from(other) % hosts.len()] };
                let NextHop::Local(port) = from.place else { return (UPLINK, frame) };
                (port, frame)
            }
        }
    }

    /// From who says to be the sender.
    fn said(&self, packet: Packet, host: &Host, hosts: &[Host]) -> Packet {
        let net = host.ip.octets()[2];
        let of = |last: u8| -> IpAddr {
            if self.door.six { ipv6(net, last).into() } else { ipv4(net, last) }
        };
        match self.source {
            Source::Caller => packet,
            Source::Host => {
                let other = &hosts[usize::from(self.flags) % hosts.len()];
                packet.src_ip(self.door.inside(other))
            }
            Source::Unknown => packet.src_ip(of(77)),
            Source::Gateway => packet.src_ip(of(254)),
            Source::Nobody(which) if self.door.six => {
                let nobody = ["::", "::1", "ff02::1"][usize::from(which)];
                packet.src_ip(nobody.parse::<Ipv6Addr>().unwrap())
            }
            Source::Nobody(which) => {
                let nobody = [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1]][usize::from(which)];
                packet.src_ip(Ipv4Addr::from(nobody))
            }
        }
    }

    /// Damages the transport's checksum.
    fn spoil(&self, frame: &mut [u8]) {
        let ip = if self.door.six { 54 } else { 34 };
        let at = ip + if self.door.tcp { 16 } else { 6 };
        if let (Some(by), None) = (self.spoiled, self.fragment) {
            if by == 0 {
                frame[at..at + 2].fill(0);
            } else {
                frame[at] ^= by;
            }
        }
    }
}
