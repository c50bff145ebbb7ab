//! Random frames: most of them nearly right, so that they get far, and some of them junk.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{ArpOperation, EtherType};
use flowtable::entry::NextHop;
use flowtable::ids::{Mac, PortId};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::fabric::frames::{self, Fragment, L4, Packet};
use crate::fabric::{Host, UPLINK, from_remote, from_remote6, port};
use crate::world::{PORTS, ipv4, ipv6, ipv6_of, vni_of};

/// How a frame comes to the node.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// From where the sender is.
    Home,
    Port(u32),
    Tunnel {
        node: u8,
        vrf: u32,
        net: u8,
    },
    Tag(u16),
    Bare,
}

#[derive(Debug, Clone, Copy)]
enum To {
    /// The receiver inside a network, else the gateway.
    Right,
    Receiver,
    Gateway,
    Broadcast,
    Stranger,
}

#[derive(Debug, Clone, Copy)]
enum Body {
    Ip(L4),
    /// ARP, or neighbor discovery.
    Question,
    Advertisement,
    Other(u16),
}

/// What is wrong with the bytes.
#[derive(Debug, Clone)]
enum Damage {
    Cut(u16),
    Flip(u16, u8),
    Pad(u8),
    Junk(Vec<u8>),
}

#[derive(Debug, Clone)]
pub(crate) struct Spec {
    way: Way,
    /// Positions in the world's list of hosts, modulo its length.
    hosts: (u8, u8),
    /// Only a receiver of another tenant will do.
    stray: bool,
    /// Whose MAC and address the sender uses: 0 is its own.
    spoof: (u8, u8),
    to: To,
    /// Target: 0 is the receiver's address.
    target: u8,
    body: Body,
    six: bool,
    ttl: u8,
    fragment: Option<Fragment>,
    damage: Option<Damage>,
}

pub(crate) fn spec() -> impl Strategy<Value = Spec> {
    let way = prop_oneof![
        30 => Just(Way::Home),
        2 => (1..=PORTS + 1).prop_map(Way::Port),
        2 => (0..3_u8, 1..=4_u32, 1..=2_u8)
            .prop_map(|(node, vrf, net)| Way::Tunnel { node, vrf, net }),
        2 => prop_oneof![(31..=34_u16), Just(0), Just(4095)].prop_map(Way::Tag),
        1 => Just(Way::Bare),
    ];
    let to = prop_oneof![
        16 => Just(To::Right),
        2 => Just(To::Receiver),
        2 => Just(To::Gateway),
        1 => Just(To::Broadcast),
        1 => Just(To::Stranger),
    ];
    let spoof = || prop_oneof![20 => Just(0_u8), 1 => 1..4_u8];
    let target = prop_oneof![10 => Just(0_u8), 2 => Just(1), 2 => 1..5_u8];
    let fragment = prop_oneof![
        8 => Just(None),
        1 => Just(Some((0, true))),
        1 => (1..9_u16, any::<bool>()).prop_map(Some),
    ];
    let hosts = (any::<u8>(), any::<u8>(), prop::bool::weighted(0.15));
    let ttl = prop_oneof![6 => Just(64_u8), 1 => 0..4_u8];
    let shape = (body(), prop::bool::weighted(0.2), ttl, fragment, option::weighted(0.2, damage()));
    (way, hosts, (spoof(), spoof()), to, target, shape).prop_map(
        |(way, (from, peer, stray), spoof, to, target, (body, six, ttl, fragment, damage))| Spec {
            way,
            hosts: (from, peer),
            stray,
            spoof,
            to,
            target,
            body,
            six,
            ttl,
            fragment,
            damage,
        },
    )
}

fn body() -> impl Strategy<Value = Body> {
    let ports = || (0..4_u16, 0..4_u16);
    prop_oneof![
        6 => ports().prop_map(|(a, b)| Body::Ip(L4::Udp(a, b))),
        4 => ports().prop_map(|(a, b)| Body::Ip(L4::Tcp(a, b))),
        1 => Just(Body::Ip(L4::Udp(9, frames::VXLAN_PORT))),
        3 => Just(Body::Ip(L4::Echo)),
        1 => prop_oneof![Just(1), Just(6), Just(47), Just(58), Just(0), Just(60)]
            .prop_map(|protocol| Body::Ip(L4::Raw(protocol))),
        1 => (132..=137_u8).prop_map(|kind| Body::Ip(L4::Icmp(kind, 0, 0))),
        4 => Just(Body::Question),
        1 => Just(Body::Advertisement),
        1 => prop_oneof![Just(0x88cc), Just(0x8100), Just(0x88a8), Just(60)].prop_map(Body::Other),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        any::<u16>().prop_map(Damage::Cut),
        (any::<u16>(), 1..=255_u8).prop_map(|(at, mask)| Damage::Flip(at, mask)),
        any::<u8>().prop_map(Damage::Pad),
        vec(any::<u8>(), 12..120).prop_map(Damage::Junk),
    ]
}

impl Spec {
    /// The port and the frame.
    pub(crate) fn build(&self, hosts: &[Host]) -> (PortId, Vec<u8>) {
        let host = |at: u8| hosts[usize::from(at) % hosts.len()];
        let sender = host(self.hosts.0);
        let routed = matches!(sender.place, NextHop::Local(_));
        let near = |peer: &Host| peer.vrf == sender.vrf && (routed || peer.bd == sender.bd);
        let fits = |peer: &&Host| near(peer) != self.stray && peer.mac != sender.mac;
        let peers: Vec<_> = hosts.iter().filter(fits).copied().collect();
        let at = usize::from(self.hosts.1) % peers.len().max(1);
        let receiver = peers.get(at).copied().unwrap_or_else(|| host(self.hosts.1));
        let frame = self.frame(&sender, &receiver, &host);
        let (port, frame) = self.sent(&sender, &frame);
        (port, self.damaged(frame))
    }

    fn frame(&self, sender: &Host, receiver: &Host, host: &impl Fn(u8) -> Host) -> Vec<u8> {
        let spoof = |by: u8| if by == 0 { *sender } else { host(self.hosts.0.wrapping_add(by)) };
        let net = receiver.ip.octets()[2];
        let dst = match self.to {
            To::Right if receiver.bd == sender.bd && self.target == 0 => receiver.mac,
            To::Receiver => receiver.mac,
            To::Right | To::Gateway => Mac::GATEWAY,
            To::Broadcast => Mac::BROADCAST,
            To::Stranger => Mac([2, 9, 9, 9, 9, 9]),
        };
        let macs = (spoof(self.spoof.0).mac, dst);
        let target = match self.target {
            0 => receiver.ip,
            1 => Ipv4Addr::new(10, 1, net, 254),
            2 => Ipv4Addr::new(10, 1, net, 77),
            3 => sender.ip,
            _ => Ipv4Addr::new(192, 0, 2, 1),
        };
        let source = spoof(self.spoof.1);
        let sixes = (ipv6_of(&source), ipv6(target.octets()[2], target.octets()[3]));
        let ips: (IpAddr, IpAddr) = if self.six {
            (sixes.0.into(), sixes.1.into())
        } else {
            (source.ip.into(), target.into())
        };
        // What neighbors say has one hop limit; here it tells where they say it from.
        let speaker = match self.ttl {
            0 => Ipv6Addr::UNSPECIFIED,
            1 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
            _ => sixes.0,
        };
        let arp = |operation, dst| frames::arp(operation, (macs.0, dst), (source.ip, target));
        match self.body {
            Body::Ip(l4) => {
                let packet = Packet::new(macs, ips).ttl(self.ttl).l4(l4);
                Packet { fragment: self.fragment, ..packet }.bytes()
            }
            Body::Question if self.six => frames::solicitation(macs.0, speaker, sixes.1),
            Body::Advertisement if self.six => {
                frames::discovery(136, macs, (speaker, sixes.1), sixes.0)
            }
            Body::Question => arp(ArpOperation::REQUEST, Mac::BROADCAST),
            Body::Advertisement => arp(ArpOperation::REPLY, dst),
            Body::Other(kind) => frames::ethernet(macs, EtherType(kind), &[0; 46]),
        }
    }

    /// The frame as it comes to the node, and where.
    fn sent(&self, sender: &Host, frame: &[u8]) -> (PortId, Vec<u8>) {
        let way = match (self.way, sender.place) {
            (Way::Home, NextHop::Local(port)) => Way::Port(u32::from(port.get())),
            (Way::Home, NextHop::Vlan { vid, .. }) => Way::Tag(vid.get()),
            (Way::Home, NextHop::Tunnel { vtep, .. }) => {
                let node = u8::from(vtep.is_ipv6());
                Way::Tunnel { node, vrf: sender.vrf.get(), net: sender.ip.octets()[2] }
            }
            (Way::Home, NextHop::UnknownEndpoint) => Way::Bare,
            (other, _) => other,
        };
        match way {
            Way::Home | Way::Bare => (UPLINK, frame.to_vec()),
            Way::Port(id) => (port(id), frame.to_vec()),
            Way::Tag(vid) => (UPLINK, frames::tagged_as(0x8100, vid, frame)),
            Way::Tunnel { node, vrf, net } => {
                let outer = match node {
                    0 => from_remote(),
                    1 => from_remote6(),
                    _ => from_remote().src_ip(ipv4(9, 9)),
                };
                (UPLINK, frames::vxlan(&outer, vni_of(vrf, net).get(), frame))
            }
        }
    }

    fn damaged(&self, mut frame: Vec<u8>) -> Vec<u8> {
        match &self.damage {
            None => {}
            // The trunk's tag stands behind the addresses: those are always there.
            Some(Damage::Cut(at)) => frame.truncate(12 + usize::from(*at) % (frame.len() - 11)),
            Some(Damage::Flip(at, mask)) => {
                let at = usize::from(*at) % frame.len();
                frame[at] ^= mask;
            }
            Some(Damage::Pad(count)) => frame.resize(frame.len() + usize::from(*count) % 64, 0),
            Some(Damage::Junk(bytes)) => frame.clone_from(bytes),
        }
        frame
    }
}
