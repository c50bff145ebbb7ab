//! Making a frame of a flow text, for `trace`. What the text leaves open is filled with values
//! that are valid and easy to recognise: documentation addresses (RFC 5737, RFC 3849), TTL 64, a
//! TCP SYN to port 80. Lengths and checksums are right, so that the frame passes every parser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::FlowTextError;
use super::bits::BitMatch;
use super::spec::{FlowSpec, Frag};
use crate::entry::Prefix;
use crate::ids::Mac;
use crate::key::{Neighbor, VXLAN_PORT, ethertype, icmpv6, ipproto, is_echo, tcp_flag};

const SRC_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x01]);
const V4: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
const V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
];
const VTEPS_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2)];
const TTL: u8 = 64;
const ICMP_ID: u16 = 1;
/// RFC 4861, section 3.1: a hop limit that no router has let pass.
const DISCOVERY_HOPS: u8 = 255;
/// Where a later fragment lies in its packet, in units of 8 bytes. Not 1: RFC 3128.
const LATER_OFFSET: u16 = 3;
/// Bytes after a UDP or ICMP header, and in packets of other protocols.
const PAYLOAD_BYTES: usize = 16;

impl FlowSpec {
    /// A frame of this flow, from the Ethernet header on, without FCS.
    ///
    /// # Errors
    /// [`FlowTextError::NoFrame`] when a field says several things (a block of addresses) or one
    /// that can't be made (an IPv6 extension header as the protocol).
    pub fn frame(&self) -> Result<Vec<u8>, FlowTextError> {
        if self.flags.is_some_and(|flags| flags.value != 0) {
            let needs = "nw_frag, nw_ttl or arp_op in its place";
            return Err(FlowTextError::NoFrame { field: "flags", needs });
        }
        let inner = self.ethernet()?;
        let id = self.tunnel.id.or(self.tunnel.src.map(|_| 1));
        match id.filter(|id| *id != 0) {
            None => Ok(inner),
            Some(id) => self.vxlan(id, &inner),
        }
    }

    fn ethernet(&self) -> Result<Vec<u8>, FlowTextError> {
        let eth_type = self.eth_type.unwrap_or(ethertype::IPV4);
        let payload = match eth_type {
            ethertype::IPV4 => self.ipv4()?,
            ethertype::IPV6 => self.ipv6()?,
            ethertype::ARP => self.arp()?,
            _ => vec![0; PAYLOAD_BYTES],
        };
        let to_all = eth_type == ethertype::ARP && self.arp_op != Some(2);
        let default_dst = match payload.get(24..40).and_then(<[u8]>::first_chunk::<16>) {
            _ if to_all => Mac::BROADCAST,
            // RFC 2464, section 7: a multicast address' last 32 bits behind 33:33.
            Some(&[0xff, .., a, b, c, d]) if eth_type == ethertype::IPV6 => {
                Mac([0x33, 0x33, a, b, c, d])
            }
            _ => Mac::GATEWAY,
        };
        let mut frame = Vec::new();
        frame.extend(self.eth_dst.unwrap_or(default_dst).0);
        frame.extend(self.eth_src.unwrap_or(SRC_MAC).0);
        if let Some(vid) = self.vlan_vid.filter(|vid| *vid != 0) {
            frame.extend(ethertype::VLAN.to_be_bytes());
            frame.extend(vid.to_be_bytes());
        }
        frame.extend(eth_type.to_be_bytes());
        frame.extend(payload);
        Ok(frame)
    }

    fn arp(&self) -> Result<Vec<u8>, FlowTextError> {
        let (src, dst) = (v4_of("nw_src", self.src, V4[0])?, v4_of("nw_dst", self.dst, V4[1])?);
        let opcode = self.arp_op.unwrap_or(1);
        let mut packet = vec![0, 1, 0x08, 0x00, 6, 4];
        packet.extend(opcode.to_be_bytes());
        packet.extend(self.eth_src.unwrap_or(SRC_MAC).0);
        packet.extend(src.octets());
        let target = if opcode == 1 { Mac::default() } else { self.eth_dst.unwrap_or_default() };
        packet.extend(target.0);
        packet.extend(dst.octets());
        Ok(packet)
    }

    fn ipv4(&self) -> Result<Vec<u8>, FlowTextError> {
        let (src, dst) = (v4_of("nw_src", self.src, V4[0])?, v4_of("nw_dst", self.dst, V4[1])?);
        let proto = self.proto.unwrap_or(ipproto::TCP);
        let payload = self.transport(proto, (src.into(), dst.into()));
        let fragment = match self.frag {
            None | Some(Frag::No | Frag::NotLater) => 0x4000,
            Some(Frag::First) => 0x2000,
            Some(Frag::Later) => LATER_OFFSET,
        };
        Ok(ipv4_packet(&Ipv4 { src, dst, proto, ttl: self.ttl.unwrap_or(TTL), fragment }, &payload))
    }

    fn ipv6(&self) -> Result<Vec<u8>, FlowTextError> {
        use ipproto::{DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING};
        let (src, dst) = (v6_of("ipv6_src", self.src, V6[0])?, v6_of("ipv6_dst", self.dst, V6[1])?);
        let proto = self.proto.unwrap_or(ipproto::TCP);
        if matches!(proto, DESTINATION | FRAGMENT | HOP_BY_HOP | ROUTING) {
            return Err(FlowTextError::NoFrame {
                field: "nw_proto",
                needs: "a protocol that is not an IPv6 extension header",
            });
        }
        if let (ipproto::ICMPV6, Some(neighbor)) = (proto, self.neighbor()) {
            return self.discovery(neighbor, (src, dst));
        }
        let mut payload = self.transport(proto, (src.into(), dst.into()));
        let fragment = match self.frag {
            None | Some(Frag::No | Frag::NotLater) => None,
            Some(Frag::First) => Some(1),
            Some(Frag::Later) => Some(LATER_OFFSET << 3),
        };
        if let Some(field) = fragment {
            let [high, low] = field.to_be_bytes();
            payload.splice(0..0, [proto, 0, high, low, 0, 0, 0, 1]);
        }
        let next_header = if fragment.is_some() { FRAGMENT } else { proto };
        Ok(ipv6_packet((src, dst), (next_header, self.ttl.unwrap_or(TTL)), &payload))
    }

    /// The message of neighbor discovery that this is, by its ICMPv6 type.
    fn neighbor(&self) -> Option<Neighbor> {
        match u8::try_from(self.src_port?).ok()? {
            icmpv6::NEIGHBOR_SOLICITATION => Some(Neighbor::Solicitation),
            icmpv6::NEIGHBOR_ADVERTISEMENT => Some(Neighbor::Advertisement),
            _ => None,
        }
    }

    /// RFC 4861, sections 4.3 and 4.4: to the solicited-node address of the target (RFC 4291, section
    /// 2.7.1), or from the target; with the sender's hardware address.
    fn discovery(
        &self,
        neighbor: Neighbor,
        (src, dst): (Ipv6Addr, Ipv6Addr),
    ) -> Result<Vec<u8>, FlowTextError> {
        let ttl = self.ttl.is_none_or(|ttl| ttl == DISCOVERY_HOPS);
        let whole = matches!(self.frag, None | Some(Frag::No | Frag::NotLater));
        let (fixed, needs) =
            (ttl && whole, "hop limit 255 and no fragments for neighbor discovery");
        if !fixed || self.dst_port.is_some_and(|code| code != 0) {
            return Err(FlowTextError::NoFrame { field: "icmp_type", needs });
        }
        let (kind, status, target, option) = match neighbor {
            Neighbor::Solicitation => (icmpv6::NEIGHBOR_SOLICITATION, 0, dst, 1),
            // Solicited, and to be believed.
            Neighbor::Advertisement => (icmpv6::NEIGHBOR_ADVERTISEMENT, 0x60, src, 2),
        };
        let dst = match neighbor {
            Neighbor::Solicitation => solicited_node(target),
            Neighbor::Advertisement => dst,
        };
        let mut message = vec![kind, 0, 0, 0, status, 0, 0, 0];
        message.extend(target.octets());
        if !src.is_unspecified() {
            message.extend([option, 1]);
            message.extend(self.eth_src.unwrap_or(SRC_MAC).0);
        }
        let pseudo = pseudo_header(ipproto::ICMPV6, src.into(), dst.into(), &message);
        let sum = !fold(pseudo + words(&message));
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        Ok(ipv6_packet((src, dst), (ipproto::ICMPV6, DISCOVERY_HOPS), &message))
    }

    /// The TCP flags: those asked for, or a SYN unless it is asked not to be one.
    fn flags_byte(&self) -> u8 {
        match self.tcp_flags {
            None => tcp_flag::SYN,
            Some(BitMatch { value: 0, mask }) => tcp_flag::SYN & !mask,
            Some(BitMatch { value, .. }) => value,
        }
    }

    /// What follows the IP header. A first fragment's length is a multiple of 8.
    fn transport(&self, proto: u8, (src, dst): (IpAddr, IpAddr)) -> Vec<u8> {
        if self.frag == Some(Frag::Later) {
            return vec![0; PAYLOAD_BYTES];
        }
        let port = |port: Option<u16>, default: u16| port.unwrap_or(default).to_be_bytes();
        let mut segment = Vec::new();
        let checksum_at = match (proto, src) {
            (ipproto::TCP, _) => {
                segment.extend(port(self.src_port, 40000));
                segment.extend(port(self.dst_port, 80));
                segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, self.flags_byte()]);
                segment.extend([0xff, 0xff, 0, 0, 0, 0]);
                let fill = if self.frag == Some(Frag::First) { 4 } else { 0 };
                segment.extend(vec![0; fill]);
                16
            }
            (ipproto::UDP, _) => {
                segment.extend(port(self.src_port, 40000));
                segment.extend(port(self.dst_port, 80));
                segment.extend((8 + PAYLOAD_BYTES as u16).to_be_bytes());
                segment.extend([0; 2 + PAYLOAD_BYTES]);
                6
            }
            (ipproto::ICMP, IpAddr::V4(_)) | (ipproto::ICMPV6, IpAddr::V6(_)) => {
                let request = if src.is_ipv4() { 8 } else { 128 };
                let kind = self.src_port.unwrap_or(request) as u8;
                segment.push(kind);
                segment.push(self.dst_port.unwrap_or(0) as u8);
                segment.extend([0, 0]);
                if is_echo(kind) {
                    segment.extend(self.icmp_id.unwrap_or(ICMP_ID).to_be_bytes());
                    segment.extend([0, 1]);
                } else {
                    // RFC 792: unused, "must be zero".
                    segment.extend([0; 4]);
                }
                segment.extend([0; PAYLOAD_BYTES]);
                2
            }
            _ => return vec![0; PAYLOAD_BYTES],
        };
        let pseudo =
            if proto == ipproto::ICMP { 0 } else { pseudo_header(proto, src, dst, &segment) };
        let sum = match !fold(pseudo + words(&segment)) {
            // RFC 768: "If the computed checksum is zero, it is transmitted as all ones".
            0 if proto == ipproto::UDP => 0xffff,
            sum => sum,
        };
        segment[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    fn vxlan(&self, id: u32, inner: &[u8]) -> Result<Vec<u8>, FlowTextError> {
        let [_, v0, v1, v2] = id.to_be_bytes();
        let mut datagram = Vec::new();
        datagram.extend(49152_u16.to_be_bytes());
        datagram.extend(VXLAN_PORT.to_be_bytes());
        datagram.extend(((16 + inner.len()) as u16).to_be_bytes());
        datagram.extend([0, 0, 0x08, 0, 0, 0, v0, v1, v2, 0]);
        datagram.extend(inner);
        let mut frame = vec![0x02, 0, 0, 0, 1, 0x02, 0x02, 0, 0, 0, 1, 0x01];
        let (proto, ttl) = (ipproto::UDP, TTL);
        if self.tunnel.src.is_some_and(|src| src.address().is_ipv6()) {
            let src = v6_of("tun_src", self.tunnel.src, V6[0])?;
            frame.extend(ethertype::IPV6.to_be_bytes());
            frame.extend(ipv6_packet((src, V6[1]), (proto, ttl), &datagram));
        } else {
            let src = v4_of("tun_src", self.tunnel.src, VTEPS_V4[0])?;
            let header = Ipv4 { src, dst: VTEPS_V4[1], proto, ttl, fragment: 0x4000 };
            frame.extend(ethertype::IPV4.to_be_bytes());
            frame.extend(ipv4_packet(&header, &datagram));
        }
        Ok(frame)
    }
}

/// What varies in an IPv4 header without options.
struct Ipv4 {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    proto: u8,
    ttl: u8,
    /// The flags and the offset as on the wire.
    fragment: u16,
}

fn ipv4_packet(header: &Ipv4, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(((20 + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(header.fragment.to_be_bytes());
    packet.extend([header.ttl, header.proto, 0, 0]);
    packet.extend(header.src.octets());
    packet.extend(header.dst.octets());
    let sum = !fold(words(&packet));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

fn ipv6_packet(
    (src, dst): (Ipv6Addr, Ipv6Addr),
    (next_header, hop_limit): (u8, u8),
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next_header, hop_limit]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend(payload);
    packet
}

/// RFC 4291, section 2.7.1: the address' last 24 bits behind `ff02::1:ff00:0/104`.
const fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = ip.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | high & 0xff, low)
}

fn v4_of(
    field: &'static str,
    block: Option<Prefix>,
    default: Ipv4Addr,
) -> Result<Ipv4Addr, FlowTextError> {
    let needs = "one IPv4 address";
    match block.map(|block| (block.address(), block.length())) {
        None => Ok(default),
        Some((IpAddr::V4(ip), 32)) => Ok(ip),
        Some(_) => Err(FlowTextError::NoFrame { field, needs }),
    }
}

fn v6_of(
    field: &'static str,
    block: Option<Prefix>,
    default: Ipv6Addr,
) -> Result<Ipv6Addr, FlowTextError> {
    let needs = "one IPv6 address";
    match block.map(|block| (block.address(), block.length())) {
        None => Ok(default),
        Some((IpAddr::V6(ip), 128)) => Ok(ip),
        Some(_) => Err(FlowTextError::NoFrame { field, needs }),
    }
}

/// RFC 9293, section 3.1, and RFC 8200, section 8.1.
fn pseudo_header(proto: u8, src: IpAddr, dst: IpAddr, segment: &[u8]) -> u32 {
    let addresses = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => words(&ip.octets()),
        IpAddr::V6(ip) => words(&ip.octets()),
    };
    addresses(src) + addresses(dst) + u32::from(proto) + segment.len() as u32
}

/// Sum of the big-endian 16-bit words, an odd last byte being the high one (RFC 1071).
fn words(bytes: &[u8]) -> u32 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let sum: u32 = pairs.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    sum + rest.first().map_or(0, |last| u32::from(*last) << 8)
}

const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}
