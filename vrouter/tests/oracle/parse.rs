//! Reads a frame, one field after the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowtable::DropReason;
use flowtable::ids::Mac;
use vrouter::PortKind;

const UDP: u8 = 17;
const TCP: u8 = 6;

/// What a frame says. Inside a tunnel, what the inner frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// First byte of the tenant's frame.
    pub(crate) start: usize,
    /// VLAN identifier of the wire's tag.
    pub(crate) tag: Option<u16>,
    /// Source and identifier of the tunnel.
    pub(crate) tunnel: Option<(IpAddr, u32)>,
    pub(crate) dst: Mac,
    pub(crate) src: Mac,
    pub(crate) what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// ARP, or neighbor discovery: who asks for whose hardware address, or tells it.
    Neighbor {
        request: bool,
        hardware: Option<Mac>,
        sender: IpAddr,
        target: IpAddr,
    },
    Ip(Ip),
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ip {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    /// TCP or UDP ports, where the packet has them.
    pub(crate) ports: Option<(u16, u16)>,
    /// An ICMP or ICMPv6 echo request.
    pub(crate) echo: bool,
    /// Byte 13 of the TCP header.
    pub(crate) flags: Option<u8>,
    /// ICMP or ICMPv6: type, code, and identifier if it is an echo message.
    pub(crate) icmp: Option<(u8, u8, u16)>,
    pub(crate) fragment: Fragment,
    /// Identification of the datagram a fragment is a part of.
    pub(crate) id: u32,
    /// Where the transport header starts.
    pub(crate) payload: usize,
    /// UDP: where the data starts and ends.
    pub(crate) data: (usize, usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment {
    Whole,
    First,
    Later,
}

impl Seen {
    /// The tenant's frame: no tunnel, no tag of the wire.
    pub(crate) fn unwrapped(&self, frame: &[u8]) -> Vec<u8> {
        match (self.tunnel, self.tag) {
            (Some(_), _) => frame[self.start..].to_vec(),
            (None, Some(_)) => [&frame[..12], &frame[16..]].concat(),
            (None, None) => frame.to_vec(),
        }
    }
}

impl Ip {
    /// The packet that this one answers.
    pub(crate) fn answered(&self) -> Self {
        let icmp = self.icmp.map(|(kind, code, id)| match (self.protocol, kind) {
            (1, 0) => (8, code, id),
            (58, 129) => (128, code, id),
            _ => (kind, code, id),
        });
        let ports = self.ports.map(|(from, to)| (to, from));
        Self { src: self.dst, dst: self.src, ports, icmp, ..*self }
    }
}

type Read<T> = Result<T, DropReason>;

/// Reads a frame received on a port of this kind.
pub(crate) fn parse(frame: &[u8], kind: PortKind) -> Read<Seen> {
    let tag = tag_of(frame, 0)?;
    match (kind, tag) {
        (PortKind::Container, Some(_)) => return Err(DropReason::ContainerTag),
        (PortKind::Uplink, Some(0x88a8)) => return Err(DropReason::Malformed),
        (PortKind::Container | PortKind::Uplink, _) => {}
    }
    let (tag, at) = if tag.is_some() {
        let vid = number(frame, 14)? & 0x0fff;
        if tag_of(frame, 4)?.is_some() || vid == 4095 {
            return Err(DropReason::Malformed);
        }
        (Some(vid), 16)
    } else {
        (None, 12)
    };
    let outer = Seen { tag, ..read_frame(frame, 0, at)? };
    let What::Ip(ip) = outer.what else { return Ok(outer) };
    let on_wire = kind == PortKind::Uplink && matches!(tag, None | Some(0));
    let vxlan = ip.fragment == Fragment::Later || ip.ports.is_some_and(|(_, to)| to == 4789);
    if !on_wire || ip.protocol != UDP || !vxlan {
        return Ok(outer);
    }
    open(frame, &outer, &ip)
}

/// The Ethernet type of a tag that stands `skip` bytes behind the addresses.
fn tag_of(frame: &[u8], skip: usize) -> Read<Option<u16>> {
    let kind = number(frame, 12 + skip)?;
    Ok(Some(kind).filter(|kind| matches!(kind, 0x8100 | 0x88a8)))
}

fn open(frame: &[u8], outer: &Seen, ip: &Ip) -> Read<Seen> {
    let disguised = matches!(ip.src, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    if ip.fragment != Fragment::Whole || disguised {
        return Err(DropReason::Malformed);
    }
    let (start, end) = ip.data;
    let header = some(&frame[..end], start, 8)?;
    if header[0] & 8 == 0 {
        return Err(DropReason::Malformed);
    }
    let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    if vni == 0 {
        return Err(DropReason::UnknownVni);
    }
    let inner = &frame[start + 8..end];
    if tag_of(inner, 0)?.is_some() {
        return Err(DropReason::Malformed);
    }
    let seen = read_frame(inner, 0, 12)?;
    Ok(Seen { start: start + 8, tunnel: Some((ip.src, vni)), tag: outer.tag, ..seen })
}

/// Reads addresses at `at` and what follows the type at `kind_at`.
fn read_frame(frame: &[u8], at: usize, kind_at: usize) -> Read<Seen> {
    let macs = some(frame, at, 12)?;
    let what = match number(frame, kind_at)? {
        0x0800 => What::Ip(ipv4(frame, kind_at + 2)?),
        0x86dd => {
            let ip = ipv6(frame, kind_at + 2)?;
            match ip.icmp {
                Some((135 | 136, ..)) => discovery(frame, kind_at + 2, &ip)?,
                Some(_) | None => What::Ip(ip),
            }
        }
        0x0806 => arp(some(frame, kind_at + 2, 28)?)?,
        _ => What::Other,
    };
    let (dst, src) = (macs[..6].try_into(), macs[6..].try_into());
    let (dst, src) = (Mac(dst.unwrap()), Mac(src.unwrap()));
    Ok(Seen { start: 0, tag: None, tunnel: None, dst, src, what })
}

fn arp(bytes: &[u8]) -> Read<What> {
    if bytes[..6] != [0, 1, 8, 0, 6, 4] {
        return Err(DropReason::Malformed);
    }
    let request = bytes[6..8] == [0, 1];
    let hardware = Some(Mac(bytes[8..14].try_into().unwrap()));
    let (sender, target) = (v4(&bytes[14..18]), v4(&bytes[24..28]));
    Ok(What::Neighbor { request, hardware, sender, target })
}

/// RFC 4861, sections 7.1.1 and 7.1.2, line by line.
fn discovery(frame: &[u8], at: usize, ip: &Ip) -> Read<What> {
    let request = ip.icmp.unwrap().0 == 135;
    let end = at + 40 + usize::from(number(frame, at + 4)?);
    let message = &frame[ip.payload..end];
    let target = v6(some(message, 8, 16)?);
    let ip_ends_before = frame[at + 6] == 58 && ip.fragment == Fragment::Whole;
    let fine = ip.ttl == 255 && ip.icmp.unwrap().1 == 0 && ip_ends_before;
    if !fine || target.is_multicast() {
        return Err(DropReason::Malformed);
    }
    let (mut hardware, mut rest) = (None, &message[24..]);
    for _ in 0..16 {
        if rest.is_empty() {
            break;
        }
        let length = usize::from(some(rest, 0, 2)?[1]) * 8;
        let option = some(rest, 0, length)?;
        if length == 0 {
            return Err(DropReason::Malformed);
        }
        if option[0] == if request { 1 } else { 2 } {
            if hardware.is_some() || length != 8 {
                return Err(DropReason::Malformed);
            }
            hardware = Some(Mac(option[2..].try_into().unwrap()));
        }
        rest = &rest[length..];
    }
    if !rest.is_empty() {
        return Err(DropReason::Malformed);
    }
    if ip.src.is_unspecified() {
        let solicited = frame[at + 24..at + 37] == [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];
        if !request || !solicited || hardware.is_some() {
            return Err(DropReason::Malformed);
        }
    }
    if !request && ip.dst.is_multicast() && message[4] & 0x40 != 0 {
        return Err(DropReason::Malformed);
    }
    let (sender, target) = if request { (ip.src, target) } else { (target, ip.dst) };
    Ok(What::Neighbor { request, hardware, sender, target })
}

fn ipv4(frame: &[u8], at: usize) -> Read<Ip> {
    let header = some(frame, at, 20)?;
    let header_bytes = usize::from(header[0] & 15) * 4;
    let total = usize::from(number(header, 2)?);
    if header[0] >> 4 != 4 || header_bytes < 20 || total < header_bytes {
        return Err(DropReason::Malformed);
    }
    let packet = some(frame, at, total)?;
    let sum: u32 = packet[..header_bytes].chunks(2).map(|w| word(w[0], w[1])).sum();
    if (sum & 0xffff) + (sum >> 16) != 0xffff {
        return Err(DropReason::Malformed);
    }
    let field = number(header, 6)?;
    let ip = Ip {
        src: v4(&header[12..16]),
        dst: v4(&header[16..20]),
        ttl: header[8],
        protocol: header[9],
        ports: None,
        echo: false,
        flags: None,
        icmp: None,
        fragment: Fragment::Whole,
        id: number(header, 4)?.into(),
        payload: 0,
        data: (0, 0),
    };
    let range = (at + header_bytes, at + total);
    let fragment = place((field & 0x1fff, field & 0x2000 != 0), (ip.protocol, range.1 - range.0))?;
    transport(frame, range, Ip { fragment, ..ip })
}

fn word(high: u8, low: u8) -> u32 {
    u32::from(high) << 8 | u32::from(low)
}

/// What a fragment's offset (in units of 8 bytes) and "more" bit say of a payload.
fn place(field: (u16, bool), (protocol, payload): (u8, usize)) -> Read<Fragment> {
    match field {
        (0, false) => Ok(Fragment::Whole),
        (0, true) => Ok(Fragment::First),
        (1, _) if protocol == TCP => Err(DropReason::Malformed),
        (offset, _) if usize::from(offset) * 8 + payload > 65535 => Err(DropReason::Malformed),
        (_, _) => Ok(Fragment::Later),
    }
}

fn ipv6(frame: &[u8], at: usize) -> Read<Ip> {
    let header = some(frame, at, 40)?;
    let end = at + 40 + usize::from(number(header, 4)?);
    if header[0] >> 4 != 6 || end > frame.len() {
        return Err(DropReason::Malformed);
    }
    let mut ip = Ip {
        src: v6(&header[8..24]),
        dst: v6(&header[24..40]),
        ttl: header[7],
        protocol: header[6],
        ports: None,
        echo: false,
        flags: None,
        icmp: None,
        fragment: Fragment::Whole,
        id: 0,
        payload: 0,
        data: (0, 0),
    };
    let (mut at, mut count, mut fragments) = (at + 40, 0, 0);
    while matches!(ip.protocol, 0 | 43 | 44 | 60) {
        let first = count == 0;
        count += 1;
        let hop_by_hop_late = ip.protocol == 0 && !first;
        let is_fragment = ip.protocol == 44;
        fragments += u32::from(is_fragment);
        if count > 8 || hop_by_hop_late || fragments > 1 {
            return Err(DropReason::Malformed);
        }
        let extension = some(&frame[..end], at, 8)?;
        let length = if is_fragment { 8 } else { (usize::from(extension[1]) + 1) * 8 };
        some(&frame[..end], at, length)?;
        at += length;
        ip.protocol = extension[0];
        if is_fragment {
            let field = number(extension, 2)?;
            ip.id = u32::from(number(extension, 4)?) << 16 | u32::from(number(extension, 6)?);
            ip.fragment = place((field >> 3, field & 1 == 1), (ip.protocol, end - at))?;
        }
        if ip.fragment == Fragment::Later {
            break;
        }
    }
    transport(frame, (at, end), ip)
}

fn transport(frame: &[u8], (start, end): (usize, usize), ip: Ip) -> Read<Ip> {
    let ip = Ip { payload: start, ..ip };
    if ip.fragment == Fragment::Later {
        return Ok(ip);
    }
    let payload = &frame[start..end];
    let ports = || -> Read<_> { Ok(Some((number(payload, 0)?, number(payload, 2)?))) };
    match (ip.protocol, ip.src.is_ipv4()) {
        (TCP, _) => {
            let header_bytes = usize::from(some(payload, 0, 20)?[12] >> 4) * 4;
            if header_bytes < 20 {
                return Err(DropReason::Malformed);
            }
            some(payload, 0, header_bytes)?;
            Ok(Ip { ports: ports()?, flags: Some(payload[13]), ..ip })
        }
        (UDP, _) => {
            let length = usize::from(number(some(payload, 0, 8)?, 4)?);
            if length < 8 || (ip.fragment == Fragment::Whole && length > payload.len()) {
                return Err(DropReason::Malformed);
            }
            Ok(Ip { ports: ports()?, data: (start + 8, start + length), ..ip })
        }
        (1, true) | (58, false) => {
            let header = some(payload, 0, 8)?;
            let (kind, code) = (header[0], header[1]);
            let is_echo = matches!((ip.protocol, kind), (1, 0 | 8) | (58, 128 | 129));
            let id = if is_echo { number(header, 4)? } else { 0 };
            let echo = matches!((ip.protocol, kind), (1, 8) | (58, 128));
            Ok(Ip { echo, icmp: Some((kind, code, id)), ..ip })
        }
        (_, _) => Ok(ip),
    }
}

fn some(bytes: &[u8], at: usize, count: usize) -> Read<&[u8]> {
    bytes.get(at..at + count).ok_or(DropReason::Malformed)
}

fn number(bytes: &[u8], at: usize) -> Read<u16> {
    some(bytes, at, 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

fn v4(bytes: &[u8]) -> IpAddr {
    let octets: [u8; 4] = bytes.try_into().unwrap();
    IpAddr::V4(Ipv4Addr::from(octets))
}

fn v6(bytes: &[u8]) -> IpAddr {
    let octets: [u8; 16] = bytes.try_into().unwrap();
    IpAddr::V6(Ipv6Addr::from(octets))
}
