//! What frames must look like when they leave, made anew from their parts by `etherparse`.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{
    EtherType, Ethernet2Header, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv6Header, UdpHeader,
};
use flowtable::entry::UnderlayEntry;
use flowtable::ids::Mac;

/// One hop further: from one MAC to the other, and the header's checksum computed from scratch.
pub(crate) fn routed(frame: &[u8], (from, to): (Mac, Mac)) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    bytes[..6].copy_from_slice(&to.0);
    bytes[6..12].copy_from_slice(&from.0);
    if bytes[14] >> 4 == 6 {
        bytes[21] -= 1;
        return bytes;
    }
    bytes[22] -= 1;
    checksum(&mut bytes);
    bytes
}

/// Type of service or traffic class of an untagged frame; 0 when it is not IP.
pub(crate) fn class(frame: &[u8]) -> u8 {
    match frame[12..14] {
        [0x08, 0x00] => frame[15],
        [0x86, 0xdd] => frame[14] << 4 | frame[15] >> 4,
        _ => 0,
    }
}

/// Sets what [`class`] reads; the header's checksum is computed from scratch.
pub(crate) fn set_class(frame: &mut [u8], class: u8) {
    if frame[14] >> 4 == 6 {
        frame[14] = 0x60 | class >> 4;
        frame[15] = class << 4 | frame[15] & 15;
        return;
    }
    frame[15] = class;
    checksum(frame);
}

fn checksum(bytes: &mut [u8]) {
    bytes[24..26].fill(0);
    let end = 14 + usize::from(bytes[14] & 15) * 4;
    let words = bytes[14..end].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// A TCP or UDP packet, whose transport header starts at `at`, between these two ends. A checksum that
/// was right is right again and one that was wrong is as wrong: what addresses and transport say,
/// read as one number, has the same remainder by 65535 as before (RFC 1071, section 2).
pub(crate) fn between(
    frame: &[u8],
    (protocol, at): (u8, usize),
    [from, to]: [(IpAddr, u16); 2],
) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let addresses = if from.0.is_ipv4() { 26..34 } else { 22..54 };
    let field = if protocol == 6 { at + 16..at + 18 } else { at + 6..at + 8 };
    let said = |bytes: &[u8]| remainder(&bytes[addresses.clone()]) + remainder(&bytes[at..]);
    let (before, sum) =
        (said(&bytes), u16::from_be_bytes([bytes[field.start], bytes[field.start + 1]]));
    let octets = |ip| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes[addresses.clone()].copy_from_slice(&[octets(from.0), octets(to.0)].concat());
    let ports = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    bytes[at..at + 4].copy_from_slice(&ports);
    bytes[field.clone()].fill(0);
    let rest = said(&bytes);
    let sum = match ((before + 2 * 65535 - rest) % 65535, protocol) {
        // RFC 768: no checksum, and a checksum that is zero.
        (_, 17) if sum == 0 => 0,
        (0, 17) => 0xffff,
        (sum, _) => sum as u16,
    };
    bytes[field].copy_from_slice(&sum.to_be_bytes());
    if from.0.is_ipv4() {
        checksum(&mut bytes);
    }
    bytes
}

/// Of these bytes as one number, divided by 65535: 65536 to any power leaves one.
fn remainder(bytes: &[u8]) -> u32 {
    let digits =
        bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b)));
    digits.fold(0, |number, digit| (number + digit) % 65535)
}

/// With a tag of the wire.
pub(crate) fn tagged(vid: u16, frame: &[u8]) -> Vec<u8> {
    let [high, low] = vid.to_be_bytes();
    [&frame[..12], &[0x81, 0, high, low], &frame[12..]].concat()
}

/// In VXLAN (RFC 7348), with UDP source port 0.
pub(crate) fn vxlan(underlay: &UnderlayEntry, local: IpAddr, vni: u32, inner: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    let length = (16 + inner.len()) as u16;
    let udp = UdpHeader { source_port: 0, destination_port: 4789, length, checksum: 0 };
    let (kind, ip) = match (local, underlay.vtep) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4Header {
                total_len: 20 + length,
                dscp: (class(inner) >> 2).try_into().expect("six bits"),
                ecn: (class(inner) & 3).try_into().expect("two bits"),
                dont_fragment: true,
                fragment_offset: IpFragOffset::ZERO,
                time_to_live: 64,
                protocol: IpNumber::UDP,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv4Header::default()
            };
            header.header_checksum = header.calc_header_checksum();
            (EtherType::IPV4, header.to_bytes().to_vec())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                traffic_class: class(inner),
                payload_length: length,
                next_header: IpNumber::UDP,
                hop_limit: 64,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv6Header::default()
            };
            (EtherType::IPV6, header.to_bytes().to_vec())
        }
        (local, vtep) => panic!("{local} and {vtep} are of two families"),
    };
    let (source, destination) = (underlay.src_mac.0, underlay.dst_mac.0);
    let ethernet = Ethernet2Header { source, destination, ether_type: kind };
    let vxlan = [8, 0, 0, 0, a, b, c, 0];
    [&ethernet.to_bytes()[..], &ip, &udp.to_bytes(), &vxlan, inner].concat()
}

/// The frame with the source port of its outer UDP header set to zero, when it is VXLAN.
pub(crate) fn without_entropy(frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let at = match frame.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        Some(_) | None => return bytes,
    };
    if frame.get(at + 2..at + 4) == Some(&[0x12, 0xb5]) {
        bytes[at..at + 2].fill(0);
    }
    bytes
}

/// The answer to an ARP request.
pub(crate) fn arp_reply(request: &[u8], mac: Mac) -> Vec<u8> {
    let (asker, sender, target) = (&request[22..28], &request[28..32], &request[38..42]);
    let fixed = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2];
    [&request[6..12], &mac.0, &fixed, &mac.0, target, asker, sender].concat()
}

/// The answer to a neighbor solicitation, whose source is in its IPv6 header.
pub(crate) fn neighbor_advert(request: &[u8], target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let source: [u8; 16] = request[22..38].try_into().unwrap();
    let nobody = source == [0; 16];
    let router = if mac == Mac::GATEWAY { 0x80 } else { 0 };
    let (to_mac, to_ip, solicited) = if nobody {
        (&[0x33, 0x33, 0, 0, 0, 1][..], Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets(), 0)
    } else {
        (&request[6..12], source, 0x40)
    };
    let kind = Icmpv6Type::Unknown {
        type_u8: 136,
        code_u8: 0,
        bytes5to8: [router | solicited | 0x20, 0, 0, 0],
    };
    let body = [&target.octets()[..], &[2, 1], &mac.0].concat();
    let message = Icmpv6Header::with_checksum(kind, target.octets(), to_ip, &body).unwrap();
    let header = Ipv6Header {
        payload_length: 32,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: 255,
        source: target.octets(),
        destination: to_ip,
        ..Ipv6Header::default()
    };
    let link = [to_mac, &mac.0, &[0x86, 0xdd]].concat();
    [&link[..], &header.to_bytes(), &message.to_bytes(), &body].concat()
}

/// Whether the ICMPv6 message of a frame without extension headers has the checksum of RFC 4443,
/// section 2.3.
pub(crate) fn icmpv6_is_signed(frame: &[u8]) -> bool {
    let length = usize::from(frame[18]) << 8 | usize::from(frame[19]);
    let pseudo = [&frame[22..54], &(length as u32).to_be_bytes(), &[0, 0, 0, 58]].concat();
    let all = [&pseudo[..], &frame[54..54 + length], &[0][..length % 2]].concat();
    let mut sum: u32 = all.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}
