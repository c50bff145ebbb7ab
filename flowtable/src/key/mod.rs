//! The packet key: what the tables and caches may look at, taken from a frame in one pass.
//!
//! [`FlowKey`] is plain bytes without padding, so that it is compared and hashed as one block.
//! [`parse`] fills it and refuses frames whose headers lie; what it accepts can be rewritten by
//! the returned offsets without further checks. A tunnelled frame's key is that of the inner
//! frame, plus the identifier and the source of the tunnel. Numbers are in host order, addresses
//! are bytes as sent.

mod brief;
mod hasher;
mod parse;
mod plain;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{ByteHash, FromBytes, Immutable, IntoBytes, KnownLayout, transmute_ref};

use crate::entry::NodePort;
use crate::ids::{Mac, PortId};

pub use brief::{Brief, Layout, Seen};
pub use hasher::KeyHasher;
pub(crate) use hasher::fold;
pub use parse::{general, parse};

pub(crate) use parse::is_echo;

/// Ethernet types (IEEE 802), host order.
pub mod ethertype {
    /// Internet Protocol version 4.
    pub const IPV4: u16 = 0x0800;
    /// Address Resolution Protocol (RFC 826).
    pub const ARP: u16 = 0x0806;
    /// IEEE 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
    /// Internet Protocol version 6.
    pub const IPV6: u16 = 0x86dd;
    /// IEEE 802.1ad service tag.
    pub const QINQ: u16 = 0x88a8;
}

/// IP protocol numbers and IPv6 next headers (IANA).
pub mod ipproto {
    /// IPv6 hop-by-hop options (RFC 8200, section 4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header (RFC 8200, section 4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header (RFC 8200, section 4.5).
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options (RFC 8200, section 4.6).
    pub const DESTINATION: u8 = 60;
}

/// Bits of [`FlowKey::flags`].
pub mod flag {
    /// The first fragment of several: it has the transport header.
    pub const FRAG_FIRST: u8 = 1;
    /// A fragment without the transport header: its ports are 0.
    pub const FRAG_LATER: u8 = 2;
    /// TTL or hop limit is 0 or 1: it ends at the next router.
    pub const TTL_LOW: u8 = 4;
    /// IPv4 options or IPv6 extension headers were seen.
    pub const IP_OPTIONS: u8 = 8;
    /// An ARP opcode other than request.
    pub const ARP_REPLY: u8 = 16;
    /// The sender's hardware address inside an ARP or neighbor discovery message is not the frame's
    /// source.
    pub const FOREIGN_MAC: u8 = 32;
}

/// Types of ICMPv6 messages (RFC 4443, RFC 4861 section 4).
pub mod icmpv6 {
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbor solicitation: what an ARP request is in IPv4.
    pub const NEIGHBOR_SOLICITATION: u8 = 135;
    /// Neighbor advertisement: what an ARP reply is in IPv4.
    pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
}

/// Messages by which neighbors learn their hardware addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbor {
    /// An ARP request (RFC 826) or a neighbor solicitation (RFC 4861): who has the target address?
    Solicitation,
    /// An ARP reply or a neighbor advertisement: the source has its address.
    Advertisement,
}

/// Bits of byte 13 of the TCP header (RFC 9293, section 3.1).
pub mod tcp_flag {
    /// The sender has finished.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 2;
    /// Reset the connection.
    pub const RST: u8 = 4;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 16;
}

/// UDP destination port of VXLAN (RFC 7348, section 5).
pub const VXLAN_PORT: u16 = 4789;

/// Everything of a packet that can decide what becomes of it.
#[derive(
    Debug, Clone, Copy, Default, Eq, ByteHash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FlowKey {
    /// The port it was received on, 1..=4094.
    pub in_port: u16,
    /// IEEE 802.1Q VLAN identifier on the wire; 0 is untagged or priority-tagged.
    pub vid: u16,
    /// Ethernet type after the tag; below 0x600 it is the length of an IEEE 802.3 frame.
    pub eth_type: u16,
    /// IP protocol, after IPv6 extension headers; 0 when not IP.
    pub proto: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Destination MAC.
    pub eth_dst: [u8; 6],
    /// Source MAC.
    pub eth_src: [u8; 6],
    /// VXLAN network identifier, 24 bits; 0 is not tunnelled.
    pub vni: u32,
    /// Source of the tunnel, IPv4 as `::ffff:a.b.c.d`; zero when not tunnelled.
    pub tun_src: [u8; 16],
    /// Source address, IPv4 as `::ffff:a.b.c.d`; ARP: sender protocol address; neighbor
    /// advertisement: target address; else zero.
    pub src: [u8; 16],
    /// Destination address, IPv4 as `::ffff:a.b.c.d`; ARP: target protocol address; neighbor
    /// solicitation: target address; else zero.
    pub dst: [u8; 16],
    /// TCP or UDP source port; ICMP type; else 0.
    pub src_port: u16,
    /// TCP or UDP destination port; ICMP code; else 0.
    pub dst_port: u16,
    /// Identifier of an ICMP or ICMPv6 echo message (RFC 792, RFC 4443 section 4); else 0.
    pub icmp_id: u16,
    /// TCP flags that a rule may look at; [`parse`] leaves 0, see [`Parsed::tcp_flags`].
    pub tcp_flags: u8,
    /// Always 0: keys have no padding.
    pub zero: u8,
}

/// Size of a [`FlowKey`], asserted so that a new field is a decision about cache lines.
const _: () = assert!(size_of::<FlowKey>() == 80, "the flow key has grown or has padding");

impl PartialEq for FlowKey {
    // Comparing bytes would call memcmp, which costs more than these 10 words do inline.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let (a, b): (&[[u8; 8]; 10], &[[u8; 8]; 10]) =
            (transmute_ref!(self), transmute_ref!(other));
        let words = a.iter().zip(b).map(|(a, b)| (u64::from_ne_bytes(*a), u64::from_ne_bytes(*b)));
        words.fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
    }
}

impl FlowKey {
    /// Destination MAC.
    #[inline]
    #[must_use]
    pub const fn eth_dst(&self) -> Mac {
        Mac(self.eth_dst)
    }

    /// Source MAC.
    #[inline]
    #[must_use]
    pub const fn eth_src(&self) -> Mac {
        Mac(self.eth_src)
    }

    /// Source address (ARP: sender protocol address), or `None` when neither IP nor ARP.
    #[inline]
    #[must_use]
    pub const fn src_ip(&self) -> Option<IpAddr> {
        self.ip(self.src)
    }

    /// Destination address (ARP: target protocol address), or `None` when neither IP nor ARP.
    #[inline]
    #[must_use]
    pub const fn dst_ip(&self) -> Option<IpAddr> {
        self.ip(self.dst)
    }

    /// The port that a TCP or UDP packet is for.
    #[inline]
    #[must_use]
    pub fn node_port(&self) -> Option<NodePort> {
        let has_ports = matches!(self.proto, ipproto::TCP | ipproto::UDP);
        let address = self.dst_ip().filter(|_| has_ports)?;
        Some(NodePort { address, protocol: self.proto, port: self.dst_port })
    }

    /// Source of the tunnel, or `None` when not tunnelled.
    #[inline]
    #[must_use]
    pub const fn tun_src_ip(&self) -> Option<IpAddr> {
        if self.vni == 0 {
            return None;
        }
        Some(Ipv6Addr::from_octets(self.tun_src).to_canonical())
    }

    /// What it says to its neighbors, if it is a message of ARP or neighbor discovery.
    #[inline]
    #[must_use]
    pub const fn neighbor(&self) -> Option<Neighbor> {
        const SOLICITATION: u16 = icmpv6::NEIGHBOR_SOLICITATION as u16;
        const ADVERTISEMENT: u16 = icmpv6::NEIGHBOR_ADVERTISEMENT as u16;
        let solicits = match (self.eth_type, self.proto, self.src_port) {
            (ethertype::ARP, _, _) => self.flags & flag::ARP_REPLY == 0,
            (ethertype::IPV6, ipproto::ICMPV6, SOLICITATION) => true,
            (ethertype::IPV6, ipproto::ICMPV6, ADVERTISEMENT) => false,
            _ => return None,
        };
        Some(if solicits { Neighbor::Solicitation } else { Neighbor::Advertisement })
    }

    /// The Ethernet type tells the family: an IPv6 packet may carry `::ffff:a.b.c.d` on the wire,
    /// and must not pass for IPv4.
    const fn ip(&self, bytes: [u8; 16]) -> Option<IpAddr> {
        match self.eth_type {
            ethertype::IPV4 | ethertype::ARP => {
                let [.., a, b, c, d] = bytes;
                Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
            }
            ethertype::IPV6 => Some(IpAddr::V6(Ipv6Addr::from_octets(bytes))),
            _ => None,
        }
    }
}

/// IPv4 address in the form that keys store.
#[inline]
#[must_use]
pub const fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// An address in the form that keys store.
#[inline]
#[must_use]
pub const fn stored(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Where a frame came from, as far as parsing depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The port it was received on.
    pub in_port: PortId,
    /// Whether VXLAN is opened and a tag of the wire accepted.
    pub decap: Decap,
}

/// Whether a port is a container's or the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decap {
    /// A container: no tag is accepted, and VXLAN is UDP like any other.
    Never,
    /// An uplink: one tag is accepted, and VXLAN in untagged frames is opened.
    Vxlan,
}

/// A frame's key and where its headers are. Offsets count from the first byte of the frame and
/// are at most its length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parsed {
    /// What the tables look at.
    pub key: FlowKey,
    /// Offset of the (inner) network header.
    pub l3: u16,
    /// Offset of the (inner) TCP, UDP, ICMP or ICMPv6 header; 0 in later fragments and for every
    /// other protocol.
    pub l4: u16,
    /// Offset of the inner Ethernet header; 0 when not tunnelled.
    pub inner: u16,
    /// TCP flags (byte 13 of the header); 0 when not TCP.
    pub tcp_flags: u8,
    /// Identification of a fragmented packet (RFC 791: 16 bits, RFC 8200: 32); 0 when not a fragment.
    pub fragment_id: u32,
}
