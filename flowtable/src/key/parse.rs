//! One pass over a frame's headers. Each header is bounds-checked once, as a fixed-size chunk;
//! nothing here panics or allocates, whatever the bytes.
//!
//! What is refused as malformed is what a receiver could read differently than we do: lengths
//! that disagree, a transport header cut by fragmentation, a wrong IPv4 header checksum. The
//! transport checksums are not looked at: end hosts verify them, and a container's offload leaves
//! them incomplete.

use std::net::Ipv6Addr;
use std::ops::Range;

use super::{
    Brief, Decap, FlowKey, Neighbor, Origin, Parsed, Seen, VXLAN_PORT, ethertype, flag, ipproto,
    mapped,
};
use crate::drop::DropReason;

const ETHERNET_BYTES: usize = 14;
const TAG_BYTES: usize = 4;
const UDP_BYTES: usize = 8;
const VXLAN_BYTES: usize = 8;
/// Where the hop limit is in an IPv6 header.
const HOP_LIMIT: usize = 7;
/// A neighbor solicitation or advertisement without options (RFC 4861, sections 4.3 and 4.4).
const NEIGHBOR_BYTES: usize = 24;
/// The flag "solicited" of an advertisement.
const SOLICITED: u8 = 0x40;
/// More options than this have no use.
const OPTIONS_MAX: usize = 16;
/// More extension headers than this have no use but to hide what follows them.
const EXTENSIONS_MAX: u8 = 8;

/// What a link header may carry between the addresses and the payload's type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tags {
    /// A container's frame: any tag is its own, and not accepted.
    Container,
    /// The wire: one 802.1Q tag.
    Wire,
    /// Inside a tunnel: none. RFC 7348, section 6.1: "Decapsulated VXLAN frames with the inner
    /// VLAN tag SHOULD be discarded unless configured otherwise".
    Inner,
}

/// Extracts the key of a frame that starts at its Ethernet header and ends before the FCS.
///
/// # Errors
/// - [`DropReason::Malformed`]: truncated or inconsistent headers, tunnelled fragments.
/// - [`DropReason::ContainerTag`]: a tag in a container's frame.
/// - [`DropReason::UnknownVni`]: VXLAN with identifier 0, which no network has.
/// - [`DropReason::TooBig`]: over 65535 bytes.
pub fn parse(frame: &[u8], origin: Origin) -> Result<Parsed, DropReason> {
    let seen = match origin.decap {
        _ if frame.len() > usize::from(u16::MAX) => None,
        Decap::Never => Brief::bare(frame, origin.in_port),
        Decap::Vxlan => Brief::wire(frame, origin.in_port),
    };
    match seen {
        Some(Seen { brief, layout, tcp_flags, .. }) => Ok(brief.parsed(layout, tcp_flags)),
        None => general(frame, origin),
    }
}

/// [`parse`], without looking for the common kind of packet first.
///
/// # Errors
/// Those of [`parse`].
pub fn general(frame: &[u8], origin: Origin) -> Result<Parsed, DropReason> {
    if frame.len() > usize::from(u16::MAX) {
        return Err(DropReason::TooBig);
    }
    let mut parsed = Parsed {
        key: FlowKey { in_port: origin.in_port.get(), ..FlowKey::default() },
        ..Parsed::default()
    };
    match origin.decap {
        Decap::Never => {
            link(frame, 0, Tags::Container, &mut parsed)?;
            network(frame, &mut parsed)?;
            Ok(parsed)
        }
        Decap::Vxlan => {
            link(frame, 0, Tags::Wire, &mut parsed)?;
            let end = network(frame, &mut parsed)?;
            if is_tunnel(&parsed.key) { decap(frame, end, &parsed) } else { Ok(parsed) }
        }
    }
}

/// Reads the Ethernet header at `at` and the tag behind it; sets `l3`.
#[inline]
fn link(frame: &[u8], at: usize, tags: Tags, out: &mut Parsed) -> Result<(), DropReason> {
    let header: &[u8; ETHERNET_BYTES] = chunk(frame, at)?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
    out.key.eth_dst = [d0, d1, d2, d3, d4, d5];
    out.key.eth_src = [s0, s1, s2, s3, s4, s5];
    out.key.eth_type = u16::from_be_bytes([t0, t1]);
    out.l3 = (at + ETHERNET_BYTES) as u16;
    if !is_tag(out.key.eth_type) {
        return Ok(());
    }
    match tags {
        Tags::Container => Err(DropReason::ContainerTag),
        Tags::Wire if out.key.eth_type == ethertype::VLAN => {
            let [c0, c1, t0, t1] = *chunk(frame, at + ETHERNET_BYTES)?;
            out.key.vid = u16::from_be_bytes([c0, c1]) & 0x0fff;
            out.key.eth_type = u16::from_be_bytes([t0, t1]);
            out.l3 = (at + ETHERNET_BYTES + TAG_BYTES) as u16;
            // IEEE 802.1Q, table 9-2: identifier 0xfff is reserved and never sent in a tag.
            let bad = is_tag(out.key.eth_type) || out.key.vid == 0x0fff;
            if bad { Err(DropReason::Malformed) } else { Ok(()) }
        }
        Tags::Wire | Tags::Inner => Err(DropReason::Malformed),
    }
}

const fn is_tag(eth_type: u16) -> bool {
    matches!(eth_type, ethertype::VLAN | ethertype::QINQ)
}

/// Reads what starts at `l3`; returns where it ends, which is before any padding of the frame.
#[inline]
fn network(frame: &[u8], out: &mut Parsed) -> Result<usize, DropReason> {
    match out.key.eth_type {
        ethertype::IPV4 => ipv4(frame, out),
        ethertype::IPV6 => ipv6(frame, out),
        ethertype::ARP => arp(frame, out),
        _ => Ok(frame.len()),
    }
}

/// RFC 826, Ethernet and IPv4 only.
fn arp(frame: &[u8], out: &mut Parsed) -> Result<usize, DropReason> {
    let at = usize::from(out.l3);
    let header: &[u8; 28] = chunk(frame, at)?;
    let Some((&[0, 1, 0x08, 0x00, 6, 4, op0, op1], addresses)) = header.split_first_chunk() else {
        return Err(DropReason::Malformed);
    };
    let &[h0, h1, h2, h3, h4, h5, s0, s1, s2, s3, _, _, _, _, _, _, t0, t1, t2, t3] = addresses
    else {
        return Err(DropReason::Malformed);
    };
    if [h0, h1, h2, h3, h4, h5] != out.key.eth_src {
        out.key.flags |= flag::FOREIGN_MAC;
    }
    out.key.src = mapped([s0, s1, s2, s3]);
    out.key.dst = mapped([t0, t1, t2, t3]);
    if [op0, op1] != [0, 1] {
        out.key.flags |= flag::ARP_REPLY;
    }
    Ok(at + header.len())
}

/// RFC 791.
#[inline]
fn ipv4(frame: &[u8], out: &mut Parsed) -> Result<usize, DropReason> {
    let at = usize::from(out.l3);
    let header: &[u8; 20] = chunk(frame, at)?;
    let [version_ihl, _, n0, n1, i0, i1, f0, f1, ttl, proto, _, _, addresses @ ..] = *header;
    let header_bytes = usize::from(version_ihl & 0x0f) * 4;
    let end = at + usize::from(u16::from_be_bytes([n0, n1]));
    let payload = at + header_bytes;
    if version_ihl >> 4 != 4 || header_bytes < 20 || payload > end || end > frame.len() {
        return Err(DropReason::Malformed);
    }
    let mut sum = sum_of(header);
    if header_bytes > 20 {
        out.key.flags |= flag::IP_OPTIONS;
        let options = frame.get(at + 20..payload).ok_or(DropReason::Malformed)?;
        sum += sum_of(options);
    }
    if fold(sum) != 0xffff {
        return Err(DropReason::Malformed);
    }
    let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
    out.key.src = mapped([s0, s1, s2, s3]);
    out.key.dst = mapped([d0, d1, d2, d3]);
    out.key.proto = proto;
    if ttl <= 1 {
        out.key.flags |= flag::TTL_LOW;
    }
    let fragment = u16::from_be_bytes([f0, f1]);
    let fragment = Fragment {
        offset: fragment & 0x1fff,
        more: fragment & 0x2000 != 0,
        id: u16::from_be_bytes([i0, i1]).into(),
    };
    fragment.note(end - payload, out)?;
    transport(frame, payload..end, out)
}

/// Place of a packet in a fragmented one. Offsets are in units of 8 bytes.
struct Fragment {
    offset: u16,
    more: bool,
    id: u32,
}

impl Fragment {
    /// Sets the key's flags from it.
    #[inline]
    fn note(&self, payload_bytes: usize, out: &mut Parsed) -> Result<(), DropReason> {
        if self.offset == 0 {
            if self.more {
                out.key.flags |= flag::FRAG_FIRST;
                out.fragment_id = self.id;
            }
            return Ok(());
        }
        out.fragment_id = self.id;
        out.key.flags |= flag::FRAG_LATER;
        // RFC 3128: a TCP fragment at offset 1 exists only to overwrite the header's flags.
        let overwrites = self.offset == 1 && out.key.proto == ipproto::TCP;
        let too_long = usize::from(self.offset) * 8 + payload_bytes > usize::from(u16::MAX);
        if overwrites || too_long { Err(DropReason::Malformed) } else { Ok(()) }
    }
}

/// RFC 8200.
fn ipv6(frame: &[u8], out: &mut Parsed) -> Result<usize, DropReason> {
    let at = usize::from(out.l3);
    let header: &[u8; 40] = chunk(frame, at)?;
    let [v, _, _, _, n0, n1, next, hop_limit, addresses @ ..] = header;
    let payload = at + header.len();
    let end = payload + usize::from(u16::from_be_bytes([*n0, *n1]));
    let (Some((src, rest)), true) = (addresses.split_first_chunk(), v >> 4 == 6) else {
        return Err(DropReason::Malformed);
    };
    let (Some(dst), true) = (rest.first_chunk(), end <= frame.len()) else {
        return Err(DropReason::Malformed);
    };
    out.key.src = *src;
    out.key.dst = *dst;
    if *hop_limit <= 1 {
        out.key.flags |= flag::TTL_LOW;
    }
    out.key.proto = *next;
    let payload = if is_extension(*next) { extensions(frame, payload..end, out)? } else { payload };
    transport(frame, payload..end, out)
}

const fn is_extension(next: u8) -> bool {
    use ipproto::{DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING};
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION)
}

/// Walks the extension headers from `key.proto` on; returns where the first other header starts.
#[cold]
fn extensions(frame: &[u8], bytes: Range<usize>, out: &mut Parsed) -> Result<usize, DropReason> {
    out.key.flags |= flag::IP_OPTIONS;
    let mut at = bytes.start;
    let mut fragmented = false;
    for seen in 0..=EXTENSIONS_MAX {
        let kind = out.key.proto;
        if !is_extension(kind) {
            return Ok(at);
        }
        // RFC 8200, section 4.1: the hop-by-hop options are "restricted to appear immediately
        // after an IPv6 header only"; a second fragment header would hide what is fragmented.
        let misplaced =
            (kind == ipproto::HOP_BY_HOP && seen > 0) || (kind == ipproto::FRAGMENT && fragmented);
        let Some(&[next, len, o0, o1]) = frame.get(at..bytes.end).and_then(<[u8]>::first_chunk)
        else {
            return Err(DropReason::Malformed);
        };
        let header_bytes = if kind == ipproto::FRAGMENT { 8 } else { (usize::from(len) + 1) * 8 };
        if misplaced || at + header_bytes > bytes.end || seen == EXTENSIONS_MAX {
            return Err(DropReason::Malformed);
        }
        at += header_bytes;
        out.key.proto = next;
        if kind == ipproto::FRAGMENT {
            fragmented = true;
            let field = u16::from_be_bytes([o0, o1]);
            let id: &[u8; 4] = chunk(frame, at - 4)?;
            let id = u32::from_be_bytes(*id);
            let fragment = Fragment { offset: field >> 3, more: field & 1 == 1, id };
            fragment.note(bytes.end - at, out)?;
            if out.key.flags & flag::FRAG_LATER != 0 {
                return Ok(at);
            }
        }
    }
    Err(DropReason::Malformed)
}

/// Reads ports or ICMP type and code; returns the end of the payload.
#[inline]
fn transport(frame: &[u8], bytes: Range<usize>, out: &mut Parsed) -> Result<usize, DropReason> {
    let Range { start, end } = bytes;
    if out.key.flags & flag::FRAG_LATER != 0 {
        return Ok(end);
    }
    let payload = frame.get(start..end).ok_or(DropReason::Malformed)?;
    match (out.key.proto, out.key.eth_type) {
        (ipproto::TCP, _) => {
            let header: &[u8; 20] = chunk(payload, 0)?;
            let header_bytes = usize::from(header[12] >> 4) * 4;
            if header_bytes < 20 || header_bytes > payload.len() {
                return Err(DropReason::Malformed);
            }
            out.key.src_port = u16::from_be_bytes([header[0], header[1]]);
            out.key.dst_port = u16::from_be_bytes([header[2], header[3]]);
            out.tcp_flags = header[13];
        }
        (ipproto::UDP, _) => {
            let [s0, s1, d0, d1, n0, n1, _, _] = *chunk(payload, 0)?;
            let len = usize::from(u16::from_be_bytes([n0, n1]));
            // The length is that of the whole datagram; a first fragment holds less of it.
            let whole = out.key.flags & flag::FRAG_FIRST == 0;
            if len < UDP_BYTES || (whole && len > payload.len()) {
                return Err(DropReason::Malformed);
            }
            out.key.src_port = u16::from_be_bytes([s0, s1]);
            out.key.dst_port = u16::from_be_bytes([d0, d1]);
            out.l4 = start as u16;
            return Ok(if whole { start + len } else { end });
        }
        (ipproto::ICMP, ethertype::IPV4) | (ipproto::ICMPV6, ethertype::IPV6) => {
            let header: &[u8; 8] = chunk(payload, 0)?;
            out.key.src_port = u16::from(header[0]);
            out.key.dst_port = u16::from(header[1]);
            if is_echo(header[0]) {
                out.key.icmp_id = u16::from_be_bytes([header[4], header[5]]);
            } else if out.key.neighbor().is_some() {
                discovery(frame, payload, out)?;
            }
        }
        _ => return Ok(end),
    }
    out.l4 = start as u16;
    Ok(end)
}

/// Neighbor solicitations and advertisements: "A node MUST silently discard any received" one that
/// fails these checks (RFC 4861, sections 7.1.1 and 7.1.2), and a fragmented one (RFC 6980, section
/// 5). The checksum is left to who answers, and to the receiver.
#[cold]
fn discovery(frame: &[u8], message: &[u8], out: &mut Parsed) -> Result<(), DropReason> {
    let header: &[u8; NEIGHBOR_BYTES] = chunk(message, 0)?;
    let [_, code, _, _, status, _, _, _, target @ ..] = header;
    let [hop_limit] = *chunk(frame, usize::from(out.l3) + HOP_LIMIT)?;
    let solicits = out.key.neighbor() == Some(Neighbor::Solicitation);
    let (src, dst) = (Ipv6Addr::from_octets(out.key.src), Ipv6Addr::from_octets(out.key.dst));
    let target = Ipv6Addr::from_octets(*target);
    let hardware = link_layer_address(&message[NEIGHBOR_BYTES..], if solicits { 1 } else { 2 })?;
    // Who has no address yet asks all, and can't be told: it does not say where it is.
    let nobody =
        src.is_unspecified() && !(solicits && is_solicited_node(dst) && hardware.is_none());
    let to_all = !solicits && dst.is_multicast() && status & SOLICITED != 0;
    let whole = out.key.flags & (flag::FRAG_FIRST | flag::IP_OPTIONS) == 0;
    if hop_limit != 255 || *code != 0 || target.is_multicast() || nobody || to_all || !whole {
        return Err(DropReason::Malformed);
    }
    if hardware.is_some_and(|mac| mac != out.key.eth_src) {
        out.key.flags |= flag::FOREIGN_MAC;
    }
    if solicits {
        out.key.dst = target.octets();
    } else {
        out.key.src = target.octets();
    }
    Ok(())
}

/// The Ethernet address in the option of this type (RFC 4861, section 4.6.1). "All included options"
/// must "have a length that is greater than zero".
fn link_layer_address(mut options: &[u8], wanted: u8) -> Result<Option<[u8; 6]>, DropReason> {
    let mut found = None;
    for _ in 0..OPTIONS_MAX {
        let &[kind, units, ..] = options else {
            return if options.is_empty() { Ok(found) } else { Err(DropReason::Malformed) };
        };
        let len = usize::from(units) * 8;
        let option = options.get(..len).filter(|option| !option.is_empty());
        let option = option.ok_or(DropReason::Malformed)?;
        if kind == wanted {
            // Two that differ would be read by the receiver as it likes.
            let again = found.is_some();
            found = option.get(2..).and_then(<[u8]>::first_chunk).copied();
            if len != 8 || again {
                return Err(DropReason::Malformed);
            }
        }
        options = &options[len..];
    }
    Err(DropReason::Malformed)
}

/// RFC 4291, section 2.7.1: `ff02::1:ff00:0/104`.
const fn is_solicited_node(ip: Ipv6Addr) -> bool {
    matches!(ip.segments(), [0xff02, 0, 0, 0, 0, 1, 0xff00..=0xffff, _])
}

/// Echo reply and request of ICMP (RFC 792) and ICMPv6 (RFC 4443). The numbers of one family mean
/// nothing, or the same, in the other.
pub(crate) const fn is_echo(kind: u8) -> bool {
    matches!(kind, 0 | 8 | 128 | 129)
}

/// Whether an uplink's frame is, or is a part of, VXLAN. A tagged frame belongs to a VLAN network:
/// its tenant must not reach others by wrapping frames itself.
#[inline]
fn is_tunnel(key: &FlowKey) -> bool {
    let later = key.flags & flag::FRAG_LATER != 0;
    key.vid == 0 && key.proto == ipproto::UDP && (key.dst_port == VXLAN_PORT || later)
}

/// Opens VXLAN (RFC 7348, section 5), whose UDP datagram ends at `end`. An outer UDP checksum is
/// not verified, as section 5 permits.
fn decap(frame: &[u8], end: usize, outer: &Parsed) -> Result<Parsed, DropReason> {
    // RFC 7348, section 4.3: "VTEPs MUST NOT fragment VXLAN packets"; "The destination VTEP MAY
    // silently discard such VXLAN fragments".
    let fragment = outer.key.flags & (flag::FRAG_FIRST | flag::FRAG_LATER) != 0;
    // Else an IPv6 sender could pass for the IPv4 tunnel end point of the same bytes.
    let disguised = outer.key.eth_type == ethertype::IPV6
        && Ipv6Addr::from_octets(outer.key.src).to_ipv4_mapped().is_some();
    let frame = frame.get(..end).ok_or(DropReason::Malformed)?;
    let at = usize::from(outer.l4) + UDP_BYTES;
    let [flags, _, _, _, v0, v1, v2, _] = *chunk(frame, at)?;
    // "the I flag MUST be set to 1 for a valid VXLAN Network ID"; the others are ignored.
    if fragment || disguised || flags & 0x08 == 0 {
        return Err(DropReason::Malformed);
    }
    let vni = u32::from_be_bytes([0, v0, v1, v2]);
    if vni == 0 {
        return Err(DropReason::UnknownVni);
    }
    let inner = at + VXLAN_BYTES;
    let mut parsed = Parsed {
        key: FlowKey {
            in_port: outer.key.in_port,
            vni,
            tun_src: outer.key.src,
            ..FlowKey::default()
        },
        inner: inner as u16,
        ..Parsed::default()
    };
    link(frame, inner, Tags::Inner, &mut parsed)?;
    network(frame, &mut parsed)?;
    Ok(parsed)
}

/// The `N` bytes at `at`.
#[inline(always)]
fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Result<&[u8; N], DropReason> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).ok_or(DropReason::Malformed)
}

/// Sum of the big-endian 16-bit words of an even number of bytes (RFC 1071).
#[inline(always)]
fn sum_of(bytes: &[u8]) -> u32 {
    let (words, _) = bytes.as_chunks::<2>();
    words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum()
}

#[inline(always)]
const fn fold(sum: u32) -> u32 {
    let once = (sum & 0xffff) + (sum >> 16);
    (once & 0xffff) + (once >> 16)
}
