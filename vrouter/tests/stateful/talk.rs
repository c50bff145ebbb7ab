//! Random conversations: who talks to whom over which protocol, and what they say, in an order that
//! is plausible most of the time.

use std::net::IpAddr;

use flowtable::entry::NextHop;
use flowtable::ids::{Mac, PortId};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::callers::{self, Caller, Door};
use crate::fabric::frames::{self, Fragment, L4, Packet};
use crate::fabric::{Host, UPLINK, from_remote, from_remote6};
use crate::world::{ipv6_of, vni_of};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FIN: u8 = 0x11;
const RST: u8 = 0x04;

/// What two hosts talk over.
#[derive(Debug, Clone, Copy)]
enum Over {
    Tcp(u16, u16),
    Udp(u16, u16),
    Echo(u16),
    /// An ICMP message that is neither echo nor error.
    Icmp(u8),
    Other(u8),
}

/// Two hosts, by position in the world's list modulo its length, and what they talk over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    hosts: (u8, u8),
    six: bool,
    over: Over,
    /// Somebody outside talks to a container instead.
    line: Option<(Caller, Door)>,
}

/// One packet of a conversation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Saying {
    /// From the second host to the first.
    back: bool,
    /// Of TCP; odd: other protocols answer where they would ask.
    flags: u8,
    part: Part,
    /// Waits so long before, in nanoseconds.
    pub(crate) wait_ns: u64,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Whole,
    /// On its last hop.
    Old,
    Fragment(u16, Fragment),
    /// An ICMP error about what the receiver said, from the sender or somebody else.
    Error {
        kind: u8,
        from: u8,
        nonsense: bool,
    },
}

pub(crate) fn pair() -> impl Strategy<Value = Pair> {
    let ports = || (0..3_u16, 0..3_u16);
    let over = prop_oneof![
        6 => ports().prop_map(|(a, b)| Over::Tcp(a, b)),
        4 => ports().prop_map(|(a, b)| Over::Udp(a, b)),
        3 => prop_oneof![Just(0), Just(7), Just(0x107)].prop_map(Over::Echo),
        1 => prop_oneof![Just(13), Just(135)].prop_map(Over::Icmp),
        1 => prop_oneof![Just(47), Just(1), Just(58)].prop_map(Over::Other),
    ];
    let line = option::weighted(0.25, (callers::caller(), callers::door()));
    ((any::<u8>(), any::<u8>()), prop::bool::weighted(0.25), over, line)
        .prop_map(|(hosts, six, over, line)| Pair { hosts, six, over, line })
}

/// Some packets, one after the other.
pub(crate) fn sayings() -> impl Strategy<Value = Vec<Saying>> {
    let usual = |(back, flags, wait_ns)| Saying { back, flags, part: Part::Whole, wait_ns };
    let handshake = vec(wait(), 3).prop_map(move |waits| {
        let words = [(false, SYN), (true, SYN | ACK), (false, ACK)];
        words.iter().zip(waits).map(|((back, flags), wait)| usual((*back, *flags, wait))).collect()
    });
    let close = (any::<bool>(), vec(wait(), 3)).prop_map(move |(back, waits)| {
        let words = [(back, FIN), (!back, FIN), (back, ACK)];
        words.iter().zip(waits).map(|((back, flags), wait)| usual((*back, *flags, wait))).collect()
    });
    prop_oneof![
        3 => handshake,
        1 => close,
        6 => vec(saying(), 1..6),
    ]
}

fn saying() -> impl Strategy<Value = Saying> {
    let flags = prop_oneof![
        6 => Just(ACK),
        3 => Just(SYN),
        2 => Just(SYN | ACK),
        2 => Just(FIN),
        1 => Just(RST),
        1 => prop_oneof![Just(0x14), Just(0x18), Just(0xc2)],
        2 => prop_oneof![Just(0), Just(8), Just(3), Just(6), Just(1), Just(0x20)],
    ];
    let id = 1..3_u16;
    let part = prop_oneof![
        12 => Just(Part::Whole),
        1 => Just(Part::Old),
        1 => id.clone().prop_map(|id| Part::Fragment(id, (0, true))),
        2 => (id, 4..6_u16, any::<bool>()).prop_map(|(id, at, more)| Part::Fragment(id, (at, more))),
        2 => (prop_oneof![Just(3), Just(11), Just(2)], 0..4_u8, prop::bool::weighted(0.2))
            .prop_map(|(kind, from, nonsense)| Part::Error { kind, from, nonsense }),
    ];
    (any::<bool>(), flags, part, wait()).prop_map(|(back, flags, part, wait_ns)| Saying {
        back,
        flags,
        part,
        wait_ns,
    })
}

/// Most packets come within a second.
fn wait() -> impl Strategy<Value = u64> {
    let seconds =
        prop_oneof![Just(10), Just(29), Just(30), Just(31), Just(60), Just(120), Just(200)];
    prop_oneof![
        30 => Just(0),
        30 => Just(100_000_000),
        10 => Just(1_000_000_000),
        4 => seconds.prop_map(|s: u64| s * 1_000_000_000),
    ]
}

impl Pair {
    /// Most of the time two that can talk by way of this node: one of them is here, and the other
    /// is too, or in the same network, or on another node.
    fn ends(&self, hosts: &[Host]) -> (Host, Host) {
        let host = |at: u8| hosts[usize::from(at) % hosts.len()];
        let first = host(self.hosts.0);
        let is_local = |host: &Host| matches!(host.place, NextHop::Local(_));
        let fits = |peer: &&Host| {
            let routed = peer.bd == first.bd || ![peer, &first].iter().any(|h| on_wire(h));
            let here = is_local(&first) || is_local(peer);
            peer.vrf == first.vrf && peer.mac != first.mac && here && routed
        };
        let peers: Vec<_> = hosts.iter().filter(fits).collect();
        let peer = peers.get(usize::from(self.hosts.1) % peers.len().max(1));
        (first, peer.map_or_else(|| host(self.hosts.1), |peer| **peer))
    }

    /// The port and the frame of a packet of this conversation.
    pub(crate) fn says(&self, saying: &Saying, hosts: &[Host]) -> (PortId, Vec<u8>) {
        if let Some((caller, door)) = self.line {
            return by_line((caller, door), saying, hosts);
        }
        let (first, second) = self.ends(hosts);
        let (from, to) = if saying.back { (second, first) } else { (first, second) };
        let packet = self.packet(saying, (&from, &to));
        let packet = match saying.part {
            Part::Whole => packet,
            Part::Old => packet.ttl(1),
            Part::Fragment(id, place) => Packet { id, fragment: Some(place), ..packet },
            Part::Error { kind, from: other, nonsense } => {
                let about = Saying { back: saying.back == nonsense, ..*saying };
                let ends = if nonsense { (&from, &to) } else { (&to, &from) };
                let quote = self.packet(&about, ends).bytes();
                let teller = match other {
                    0..3 => from,
                    _ => hosts[usize::from(self.hosts.1) % hosts.len()],
                };
                let cut = quote.len().min(14 + 48 + usize::from(saying.flags) % 16);
                let error = self.packet(saying, (&teller, &to)).l4(L4::Icmp(kind, 0, 0));
                let packet = Packet { payload: quote[14..cut].to_vec(), ..error };
                return sent(&teller, &to, &packet);
            }
        };
        sent(&from, &to, &packet)
    }

    /// The published port that they talk by.
    pub(crate) fn door(&self) -> Option<Door> {
        self.line.map(|(_, door)| door)
    }

    fn packet(&self, saying: &Saying, (from, to): (&Host, &Host)) -> Packet {
        let (back, odd) = (saying.back, saying.flags & 1 == 1);
        let swap = |(a, b)| if back { (b, a) } else { (a, b) };
        let answer = back != odd;
        let (ask_kind, answer_kind) = if self.six { (128, 129) } else { (8, 0) };
        let l4 = match self.over {
            Over::Tcp(a, b) => {
                let (from, to) = swap((a, b));
                L4::Segment(from, to, saying.flags)
            }
            Over::Udp(a, b) => {
                let (from, to) = swap((a, b));
                L4::Udp(from, to)
            }
            Over::Echo(id) => {
                L4::Icmp(if answer { answer_kind } else { ask_kind }, 0, u32::from(id) << 16)
            }
            Over::Icmp(kind) => L4::Icmp(kind, 0, 0),
            Over::Other(protocol) => L4::Raw(protocol),
        };
        let ips: (IpAddr, IpAddr) = if self.six {
            (ipv6_of(from).into(), ipv6_of(to).into())
        } else {
            (from.ip.into(), to.ip.into())
        };
        Packet::new((from.mac, to.mac), ips).l4(l4)
    }
}

/// A packet of somebody outside, or of the container that answers him.
fn by_line((caller, door): (Caller, Door), saying: &Saying, hosts: &[Host]) -> (PortId, Vec<u8>) {
    let (host, flags) = (door.host(hosts), saying.flags);
    let [question, answer] =
        [door.question_inside(caller, &host, flags), door.answer(caller, &host, flags)];
    let own = if saying.back { answer.clone() } else { door.question(caller, flags) };
    let from = match host.place {
        NextHop::Local(port) if saying.back => port,
        NextHop::Local(_)
        | NextHop::Tunnel { .. }
        | NextHop::Vlan { .. }
        | NextHop::UnknownEndpoint => UPLINK,
    };
    let told = |quote: Packet, kind: u8, packet: Packet| {
        let payload = quote.bytes()[14..].to_vec();
        Packet { payload, ..packet.l4(L4::Icmp(kind, 0, 0)) }
    };
    match saying.part {
        Part::Whole => (from, own.bytes()),
        Part::Old => (from, own.ttl(1).bytes()),
        Part::Fragment(id, place) => (from, Packet { id, fragment: Some(place), ..own }.bytes()),
        // Of the container, about what it got or, which is nonsense, what it sent.
        Part::Error { kind, nonsense, .. } if saying.back => {
            (from, told(if nonsense { answer } else { question }, kind, own).bytes())
        }
        // Of another host, about what the container sent outside.
        Part::Error { kind, from: teller @ 1.., .. } => {
            let teller = &hosts[usize::from(teller) % hosts.len()];
            let ips = (door.inside(teller), door.inside(&host));
            sent(teller, &host, &told(answer, kind, Packet { ips, ..teller.to(&host) }))
        }
        Part::Error { kind, .. } => (from, told(answer, kind, own).bytes()),
    }
}

const fn on_wire(host: &Host) -> bool {
    matches!(host.place, NextHop::Vlan { .. })
}

/// The frame as it comes to the node from where its sender is, and where.
fn sent(from: &Host, to: &Host, packet: &Packet) -> (PortId, Vec<u8>) {
    let same = from.bd == to.bd;
    let routed = |packet: Packet| if same { packet } else { packet.dst_mac(Mac::GATEWAY) };
    let packet = packet.clone();
    match from.place {
        NextHop::Local(port) => (port, routed(packet).bytes()),
        NextHop::Vlan { vid, .. } => (UPLINK, frames::tagged(vid, &routed(packet).bytes())),
        NextHop::Tunnel { vtep, .. } => {
            let outer = if vtep.is_ipv6() { from_remote6() } else { from_remote() };
            // The other node has routed it.
            let packet = if same { packet } else { packet.src_mac(Mac::GATEWAY) };
            let vni = vni_of(to.vrf.get(), to.ip.octets()[2]);
            (UPLINK, frames::vxlan(&outer, vni.get(), &packet.bytes()))
        }
        NextHop::UnknownEndpoint => (UPLINK, packet.bytes()),
    }
}
