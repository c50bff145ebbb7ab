//! Frames, built with `etherparse`. A [`Packet`] says what matters to the engine and emits bytes
//! with right lengths and checksums; what is wrong with a frame is done to the bytes by the test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, ArpPacket, EtherType, Ethernet2Header, IcmpEchoHeader,
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv6Header, SingleVlanHeader, TcpHeader, UdpHeader, VlanId,
};
use flowtable::ids::{Mac, Vid};

pub(crate) const VXLAN_PORT: u16 = 4789;

/// What follows the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum L4 {
    Udp(u16, u16),
    Tcp(u16, u16),
    /// TCP with these flags (byte 13 of the header).
    Segment(u16, u16, u8),
    /// ICMP or ICMPv6: type, code, and the four bytes behind the checksum.
    Icmp(u8, u8, u32),
    /// ICMP echo request, identifier and sequence number 7 and 9.
    Echo,
    /// A protocol without ports.
    Raw(u8),
}

/// Place of an IP fragment: offset in units of 8 bytes, and whether more follow.
pub(crate) type Fragment = (u16, bool);

/// An IP packet in an Ethernet frame.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) macs: (Mac, Mac),
    pub(crate) ips: (IpAddr, IpAddr),
    pub(crate) ttl: u8,
    pub(crate) l4: L4,
    pub(crate) fragment: Option<Fragment>,
    /// Identification of the datagram that fragments belong to.
    pub(crate) id: u16,
    /// IPv4 type of service or IPv6 traffic class.
    pub(crate) class: u8,
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    /// From the first to the second MAC and address; UDP 1000 to 2000, TTL 64.
    pub(crate) fn new(macs: (Mac, Mac), ips: (IpAddr, IpAddr)) -> Self {
        let payload = b"sixteen bytes of".to_vec();
        Self {
            macs,
            ips,
            ttl: 64,
            l4: L4::Udp(1000, 2000),
            fragment: None,
            id: 0x1234,
            class: 0,
            payload,
        }
    }

    pub(crate) fn dst_mac(self, mac: Mac) -> Self {
        Self { macs: (self.macs.0, mac), ..self }
    }

    pub(crate) fn src_mac(self, mac: Mac) -> Self {
        Self { macs: (mac, self.macs.1), ..self }
    }

    pub(crate) fn dst_ip(self, ip: impl Into<IpAddr>) -> Self {
        Self { ips: (self.ips.0, ip.into()), ..self }
    }

    pub(crate) fn src_ip(self, ip: impl Into<IpAddr>) -> Self {
        Self { ips: (ip.into(), self.ips.1), ..self }
    }

    pub(crate) fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    pub(crate) fn l4(self, l4: L4) -> Self {
        Self { l4, ..self }
    }

    /// With this IPv4 type of service or IPv6 traffic class.
    pub(crate) fn class(self, class: u8) -> Self {
        Self { class, ..self }
    }

    /// The first fragment of several.
    pub(crate) fn first_fragment(self) -> Self {
        Self { fragment: Some((0, true)), ..self }
    }

    /// The last fragment of several, without the transport header.
    pub(crate) fn later_fragment(self, offset: u16) -> Self {
        Self { fragment: Some((offset, false)), ..self }
    }

    /// The frame.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let transport = match self.fragment {
            Some((1.., _)) => self.payload.clone(),
            Some((0, _)) | None => self.transport(),
        };
        let (kind, packet) = match self.ips {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                (EtherType::IPV4, self.ipv4((src, dst), transport))
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                (EtherType::IPV6, self.ipv6((src.octets(), dst.octets()), transport))
            }
            (src, dst) => panic!("{src} and {dst} are of two families"),
        };
        ethernet(self.macs, kind, &packet)
    }

    fn protocol(&self) -> IpNumber {
        match self.l4 {
            L4::Udp(..) => IpNumber::UDP,
            L4::Tcp(..) | L4::Segment(..) => IpNumber::TCP,
            L4::Echo | L4::Icmp(..) if self.ips.0.is_ipv4() => IpNumber::ICMP,
            L4::Echo | L4::Icmp(..) => IpNumber::IPV6_ICMP,
            L4::Raw(protocol) => IpNumber(protocol),
        }
    }

    fn transport(&self) -> Vec<u8> {
        let payload = &self.payload[..];
        let header = match (self.l4, self.ips) {
            (L4::Udp(from, to), (IpAddr::V4(src), IpAddr::V4(dst))) => {
                let len = (UdpHeader::LEN + payload.len()) as u16;
                let mut udp =
                    UdpHeader { source_port: from, destination_port: to, length: len, checksum: 0 };
                udp.checksum =
                    udp.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload).unwrap();
                udp.to_bytes().to_vec()
            }
            (L4::Udp(from, to), (IpAddr::V6(src), IpAddr::V6(dst))) => {
                let len = (UdpHeader::LEN + payload.len()) as u16;
                let mut udp =
                    UdpHeader { source_port: from, destination_port: to, length: len, checksum: 0 };
                udp.checksum =
                    udp.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload).unwrap();
                udp.to_bytes().to_vec()
            }
            (L4::Tcp(from, to), _) => TcpHeader::new(from, to, 1, 1024).to_bytes().to_vec(),
            (L4::Segment(from, to, flags), _) => {
                let mut header = TcpHeader::new(from, to, 1, 1024).to_bytes().to_vec();
                header[13] = flags;
                header
            }
            (L4::Icmp(kind, code, word), _) => {
                [&[kind, code, 0, 0][..], &word.to_be_bytes()].concat()
            }
            (L4::Echo, (IpAddr::V4(_), _)) => {
                let echo = Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 7, seq: 9 });
                Icmpv4Header::with_checksum(echo, payload).to_bytes().to_vec()
            }
            (L4::Echo, (IpAddr::V6(src), IpAddr::V6(dst))) => {
                let echo = Icmpv6Type::EchoRequest(IcmpEchoHeader { id: 7, seq: 9 });
                let (src, dst) = (src.octets(), dst.octets());
                let header = Icmpv6Header::with_checksum(echo, src, dst, payload).unwrap();
                header.to_bytes().to_vec()
            }
            (L4::Raw(_) | L4::Udp(..) | L4::Echo, _) => Vec::new(),
        };
        [&header[..], payload].concat()
    }

    fn ipv4(&self, (src, dst): (Ipv4Addr, Ipv4Addr), transport: Vec<u8>) -> Vec<u8> {
        let (offset, more) = self.fragment.unwrap_or((0, false));
        let mut header = Ipv4Header {
            total_len: (Ipv4Header::MIN_LEN + transport.len()) as u16,
            identification: self.id,
            dscp: (self.class >> 2).try_into().unwrap(),
            ecn: (self.class & 3).try_into().unwrap(),
            dont_fragment: false,
            more_fragments: more,
            fragment_offset: IpFragOffset::try_new(offset).unwrap(),
            time_to_live: self.ttl,
            protocol: self.protocol(),
            source: src.octets(),
            destination: dst.octets(),
            ..Ipv4Header::default()
        };
        header.header_checksum = header.calc_header_checksum();
        [header.to_bytes().to_vec(), transport].concat()
    }

    fn ipv6(&self, (source, destination): ([u8; 16], [u8; 16]), transport: Vec<u8>) -> Vec<u8> {
        let extension = self.fragment.map_or_else(Vec::new, |(offset, more)| {
            let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
            let [id_high, id_low] = self.id.to_be_bytes();
            vec![self.protocol().0, 0, high, low, 0, 0, id_high, id_low]
        });
        let next_header = if self.fragment.is_some() {
            IpNumber::IPV6_FRAGMENTATION_HEADER
        } else {
            self.protocol()
        };
        let header = Ipv6Header {
            payload_length: (extension.len() + transport.len()) as u16,
            next_header,
            hop_limit: self.ttl,
            traffic_class: self.class,
            source,
            destination,
            ..Ipv6Header::default()
        };
        [header.to_bytes().to_vec(), extension, transport].concat()
    }
}

/// An Ethernet frame from the first to the second MAC.
pub(crate) fn ethernet((src, dst): (Mac, Mac), kind: EtherType, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header { source: src.0, destination: dst.0, ether_type: kind };
    [&header.to_bytes()[..], payload].concat()
}

/// An ARP packet. The sender's hardware address is that of the frame.
pub(crate) fn arp(
    operation: ArpOperation,
    (src, dst): (Mac, Mac),
    (sender, target): (Ipv4Addr, Ipv4Addr),
) -> Vec<u8> {
    let target_mac = if operation == ArpOperation::REQUEST { [0; 6] } else { dst.0 };
    let packet = ArpPacket::from(ArpEthIpv4Packet {
        operation,
        sender_mac: src.0,
        sender_ipv4: sender.octets(),
        target_mac,
        target_ipv4: target.octets(),
    });
    ethernet((src, dst), EtherType::ARP, &packet.to_bytes())
}

/// A neighbor solicitation (type 135) or advertisement (136) with the sender's hardware address.
pub(crate) fn discovery(
    kind: u8,
    (src, dst): (Mac, Mac),
    (sender, receiver): (Ipv6Addr, Ipv6Addr),
    target: Ipv6Addr,
) -> Vec<u8> {
    let solicits = kind == 135;
    let status = if solicits { 0 } else { 0x60 };
    let message = Icmpv6Type::Unknown { type_u8: kind, code_u8: 0, bytes5to8: [status, 0, 0, 0] };
    let mut body = target.octets().to_vec();
    // RFC 4861, section 4.3: not "when the source IP address is the unspecified address".
    if !sender.is_unspecified() {
        body.extend([if solicits { 1 } else { 2 }, 1]);
        body.extend(src.0);
    }
    let ips = (sender.octets(), receiver.octets());
    let header = Icmpv6Header::with_checksum(message, ips.0, ips.1, &body).unwrap();
    let ip = Ipv6Header {
        payload_length: (8 + body.len()) as u16,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: 255,
        source: ips.0,
        destination: ips.1,
        ..Ipv6Header::default()
    };
    let packet = [&ip.to_bytes()[..], &header.to_bytes(), &body].concat();
    ethernet((src, dst), EtherType::IPV6, &packet)
}

/// A question of `src`, who has `sender`, to the solicited-node address of `target`.
pub(crate) fn solicitation(src: Mac, sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let group =
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    discovery(135, (src, Mac([0x33, 0x33, 0xff, a, b, c])), (sender, group), target)
}

/// A broadcast question of `src`, who has `sender`.
pub(crate) fn arp_request(src: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(ArpOperation::REQUEST, (src, Mac::BROADCAST), (sender, target))
}

/// Puts an 802.1Q tag behind the addresses.
pub(crate) fn tagged(vid: Vid, frame: &[u8]) -> Vec<u8> {
    tagged_as(0x8100, vid.get(), frame)
}

/// Puts a tag of any type and identifier, also a reserved one, behind the addresses.
pub(crate) fn tagged_as(kind: u16, vid: u16, frame: &[u8]) -> Vec<u8> {
    let header = SingleVlanHeader {
        pcp: etherparse::VlanPcp::ZERO,
        drop_eligible_indicator: false,
        vlan_id: VlanId::try_new(vid).unwrap(),
        ether_type: EtherType(u16::from_be_bytes([frame[12], frame[13]])),
    };
    [&frame[..12], &kind.to_be_bytes(), &header.to_bytes(), &frame[14..]].concat()
}

/// Wraps a frame into VXLAN, with a checksum and a source port of its own.
pub(crate) fn vxlan(outer: &Packet, vni: u32, inner: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    let payload = [&[8, 0, 0, 0, a, b, c, 0], inner].concat();
    Packet { l4: L4::Udp(55555, VXLAN_PORT), payload, ..outer.clone() }.bytes()
}
