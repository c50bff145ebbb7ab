//! Frames for tests, put together by `etherparse`, which shares no code with our parser or our
//! frame builder.

#![expect(clippy::unwrap_used, reason = "test code, though not in test functions")]

pub(crate) mod seeds;

use etherparse::{
    EtherType, Ethernet2Header, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset,
    IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, SingleVlanHeader, TcpHeader, UdpHeader,
    VlanId,
};
use flowtable::ids::PortId;
use flowtable::key::{Decap, Origin};

pub(crate) const CONTAINER_PORT: u32 = 3;
pub(crate) const UPLINK_PORT: u32 = 9;

pub(crate) fn container() -> Origin {
    Origin { in_port: PortId::new(CONTAINER_PORT).unwrap(), decap: Decap::Never }
}

pub(crate) fn uplink() -> Origin {
    Origin { in_port: PortId::new(UPLINK_PORT).unwrap(), decap: Decap::Vxlan }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
    Arp,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum L4 {
    Tcp,
    Udp,
    Icmp,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Whole,
    First,
    Later,
}

/// A valid frame in few words.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) family: Family,
    pub(crate) l4: L4,
    pub(crate) place: Place,
    pub(crate) extras: Extras,
    pub(crate) addresses: [[u8; 4]; 2],
    pub(crate) ports: [u16; 2],
    pub(crate) ttl: u8,
    pub(crate) vid: Option<u16>,
    pub(crate) padding: usize,
}

/// IPv4 options or IPv6 extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extras {
    None,
    One,
    Two,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            family: Family::V4,
            l4: L4::Tcp,
            place: Place::Whole,
            extras: Extras::None,
            addresses: [[10, 1, 1, 2], [10, 1, 1, 3]],
            ports: [40000, 80],
            ttl: 64,
            vid: None,
            padding: 0,
        }
    }
}

pub(crate) const SRC_MAC: [u8; 6] = [2, 0, 10, 1, 1, 2];
pub(crate) const DST_MAC: [u8; 6] = [2, 0, 10, 1, 1, 3];

/// `2001:db8::` with the four bytes at its end.
pub(crate) fn v6(tail: [u8; 4]) -> [u8; 16] {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    address[12..].copy_from_slice(&tail);
    address
}

impl Plan {
    pub(crate) fn frame(&self) -> Vec<u8> {
        let (ether_type, payload) = match self.family {
            Family::V4 => (EtherType::IPV4, self.ipv4()),
            Family::V6 => (EtherType::IPV6, self.ipv6()),
            Family::Arp => (EtherType::ARP, self.arp()),
            Family::Other => (EtherType(0x88cc), vec![0x55; 40]),
        };
        let mut frame = Vec::new();
        let outer = if self.vid.is_some() { EtherType::VLAN_TAGGED_FRAME } else { ether_type };
        Ethernet2Header { source: SRC_MAC, destination: DST_MAC, ether_type: outer }
            .write(&mut frame)
            .unwrap();
        if let Some(vid) = self.vid {
            let vlan_id = VlanId::try_new(vid).unwrap();
            SingleVlanHeader { vlan_id, ether_type, ..Default::default() }
                .write(&mut frame)
                .unwrap();
        }
        frame.extend(payload);
        frame.extend(vec![0; self.padding]);
        frame
    }

    fn arp(&self) -> Vec<u8> {
        let opcode = if self.ports[0].is_multiple_of(2) { 1 } else { 2 };
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, opcode];
        packet.extend(SRC_MAC);
        packet.extend(self.addresses[0]);
        packet.extend([0; 6]);
        packet.extend(self.addresses[1]);
        packet
    }

    fn number(&self) -> IpNumber {
        match (self.l4, self.family) {
            (L4::Tcp, _) => IpNumber::TCP,
            (L4::Udp, _) => IpNumber::UDP,
            (L4::Icmp, Family::V6) => IpNumber::IPV6_ICMP,
            (L4::Icmp, _) => IpNumber::ICMP,
            (L4::Other, _) => IpNumber::GRE,
        }
    }

    fn transport(&self) -> Vec<u8> {
        let mut data = vec![0xab; 24];
        if self.place == Place::Later {
            return data;
        }
        let [src, dst] = self.ports;
        let [kind, code] = [src as u8, dst as u8];
        let mut segment = Vec::new();
        match (self.l4, self.family) {
            (L4::Tcp, _) => {
                let mut header = TcpHeader::new(src, dst, 1, 0xffff);
                header.syn = true;
                header.set_options_raw(&[2, 4, 5, 0xb4]).unwrap();
                header.write(&mut segment).unwrap();
            }
            (L4::Udp, _) => {
                let header = UdpHeader::without_ipv4_checksum(src, dst, data.len()).unwrap();
                header.write(&mut segment).unwrap();
            }
            (L4::Icmp, Family::V6) => {
                let icmp_type =
                    Icmpv6Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: [0; 4] };
                Icmpv6Header::new(icmp_type).write(&mut segment).unwrap();
            }
            (L4::Icmp, _) => {
                let icmp_type =
                    Icmpv4Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: [0; 4] };
                Icmpv4Header::with_checksum(icmp_type, &data).write(&mut segment).unwrap();
            }
            (L4::Other, _) => {}
        }
        if self.place == Place::First {
            data.truncate(8);
        }
        segment.extend(data);
        segment
    }

    fn ipv4(&self) -> Vec<u8> {
        let payload = self.transport();
        let [src, dst] = self.addresses;
        let number = self.number();
        let mut header = Ipv4Header::new(payload.len() as u16, self.ttl, number, src, dst).unwrap();
        match self.extras {
            Extras::None => {}
            Extras::One => header.options = [1, 1, 1, 0].into(),
            Extras::Two => header.options = [0x94, 4, 0, 0, 1, 1, 1, 0].into(),
        }
        header.set_payload_len(payload.len()).unwrap();
        header.dont_fragment = self.place == Place::Whole;
        header.more_fragments = self.place == Place::First;
        if self.place == Place::Later {
            header.fragment_offset = IpFragOffset::try_new(185).unwrap();
        }
        header.header_checksum = header.calc_header_checksum();
        let mut packet = Vec::new();
        header.write_raw(&mut packet).unwrap();
        packet.extend(payload);
        packet
    }

    fn ipv6(&self) -> Vec<u8> {
        let options = |next: IpNumber| vec![next.0, 0, 1, 4, 0, 0, 0, 0];
        let (mut next, mut payload) = (self.number(), self.transport());
        if self.place != Place::Whole {
            let offset = if self.place == Place::Later { 185 } else { 0 };
            let fragment = Ipv6FragmentHeader::new(
                next,
                IpFragOffset::try_new(offset).unwrap(),
                self.place == Place::First,
                7,
            );
            payload.splice(0..0, fragment.to_bytes());
            next = IpNumber::IPV6_FRAGMENTATION_HEADER;
        }
        if self.extras != Extras::None {
            payload.splice(0..0, options(next));
            next = IpNumber::IPV6_DESTINATION_OPTIONS;
        }
        if self.extras == Extras::Two {
            payload.splice(0..0, options(next));
            next = IpNumber::IPV6_HEADER_HOP_BY_HOP;
        }
        let header = Ipv6Header {
            payload_length: payload.len() as u16,
            next_header: next,
            hop_limit: self.ttl,
            source: v6(self.addresses[0]),
            destination: v6(self.addresses[1]),
            ..Default::default()
        };
        let mut packet = Vec::new();
        header.write(&mut packet).unwrap();
        packet.extend(payload);
        packet
    }
}

/// Wraps a frame as RFC 7348 says; the outer addresses are of `family`.
pub(crate) fn vxlan(family: Family, vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    let [_, v0, v1, v2] = vni.to_be_bytes();
    let len = inner.len() + 8;
    UdpHeader::without_ipv4_checksum(49152, 4789, len).unwrap().write(&mut datagram).unwrap();
    datagram.extend([8, 0, 0, 0, v0, v1, v2, 0]);
    datagram.extend(inner);
    let mut frame = Vec::new();
    let v6_outer = family == Family::V6;
    let ether_type = if v6_outer { EtherType::IPV6 } else { EtherType::IPV4 };
    let (source, destination) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    Ethernet2Header { source, destination, ether_type }.write(&mut frame).unwrap();
    let (src, dst) = ([192, 0, 2, 11], [192, 0, 2, 12]);
    if v6_outer {
        Ipv6Header {
            payload_length: datagram.len() as u16,
            next_header: IpNumber::UDP,
            hop_limit: 64,
            source: v6(src),
            destination: v6(dst),
            ..Default::default()
        }
        .write(&mut frame)
        .unwrap();
    } else {
        let payload = datagram.len() as u16;
        Ipv4Header::new(payload, 64, IpNumber::UDP, src, dst).unwrap().write(&mut frame).unwrap();
    }
    frame.extend(datagram);
    frame
}

/// A frame with some bytes replaced.
pub(crate) fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// Makes the checksum of an untagged frame's IPv4 header of 20 bytes right again.
pub(crate) fn resummed(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let words = frame[14..34].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame
}

pub(crate) fn tcp() -> Vec<u8> {
    Plan::default().frame()
}

pub(crate) fn udp() -> Vec<u8> {
    Plan { l4: L4::Udp, ..Plan::default() }.frame()
}

/// An IPv6 frame whose payload is the given extension headers, then UDP.
pub(crate) fn ipv6_with(next: u8, extensions: &[u8]) -> Vec<u8> {
    let plan = Plan { family: Family::V6, l4: L4::Udp, ..Plan::default() };
    let mut frame = plan.frame();
    let udp = frame.split_off(54);
    frame.extend(extensions);
    frame.extend(udp);
    let len = (frame.len() - 54) as u16;
    with(with(frame, 18, &len.to_be_bytes()), 20, &[next])
}
