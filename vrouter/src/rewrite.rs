//! What actions do to a frame's bytes. Headers move, payload does not: a tag or a tunnel header is
//! put into the headroom, and removing one moves the frame's start.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowtable::DropReason;
use flowtable::ids::{Dscp, Mac, Vni};
use packet_io::{Frame, NoRoom, PacketIo};

/// Bytes of an untagged Ethernet header.
pub(crate) const ETHERNET_BYTES: usize = 14;
/// Bytes of two MAC addresses.
pub(crate) const MACS: usize = 12;
/// Bytes of an 802.1Q tag.
pub(crate) const TAG_BYTES: usize = 4;
/// Tag protocol identifier of IEEE 802.1Q.
pub(crate) const TPID_8021Q: [u8; 2] = [0x81, 0x00];
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// RFC 7348, section 5: the flags byte with the I bit.
const VXLAN_FLAGS: u8 = 0x08;
/// RFC 7348, section 5: destination port.
const VXLAN_PORT: u16 = 4789;
/// TTL of what we send (RFC 1700).
const OUTER_TTL: u8 = 64;
/// RFC 7348, section 5: the outer source port is within the dynamic range, 49152 to 65535.
pub(crate) const ENTROPY_MIN: u16 = 0xc000;
const IPPROTO_UDP: u8 = 17;

/// What the outer headers of one tunnelled packet say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outer {
    pub(crate) src_mac: Mac,
    pub(crate) dst_mac: Mac,
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) vni: Vni,
    /// Spreads flows over paths and queues (RFC 7348, section 5: source port from the inner flow).
    pub(crate) entropy: u16,
    /// IPv4 type of service or IPv6 traffic class: that of the packet inside.
    pub(crate) class: u8,
}

/// The VLAN id of a frame's tag; `None` when there is none.
#[inline(always)]
pub(crate) fn tag(frame: &[u8]) -> Option<u16> {
    let [.., p0, p1, t0, t1] = frame.first_chunk::<{ MACS + TAG_BYTES }>()?;
    ([*p0, *p1] == TPID_8021Q).then_some(u16::from_be_bytes([*t0, *t1]) & 0x0fff)
}

/// Takes the tag off and says its VLAN id; `None` when there is none.
#[inline]
pub(crate) fn pop_tag<I: PacketIo>(io: &mut I, frame: &mut Frame) -> Option<u16> {
    let vid = tag(io.bytes(frame))?;
    let head = io.bytes_mut(frame).first_chunk_mut::<{ MACS + TAG_BYTES }>()?;
    head.copy_within(..MACS, TAG_BYTES);
    frame.shrink_front(TAG_BYTES).ok()?;
    Some(vid)
}

/// Takes one from the TTL of this header of at least 20 bytes.
#[inline(always)]
pub(crate) fn hop_ipv4(header: &mut [u8]) {
    header[8] = header[8].wrapping_sub(1);
    let sum = u16::from_be_bytes([header[10], header[11]]);
    header[10..12].copy_from_slice(&checksum_after_ttl_decrement(sum).to_be_bytes());
}

/// Puts an 802.1Q tag with priority 0 in front of the ethertype.
#[inline]
pub(crate) fn push_tag<I: PacketIo>(io: &mut I, frame: &mut Frame, vid: u16) -> Result<(), NoRoom> {
    frame.grow_front(TAG_BYTES)?;
    let head = io.bytes_mut(frame).first_chunk_mut::<{ MACS + TAG_BYTES }>().ok_or(NoRoom)?;
    head.copy_within(TAG_BYTES.., 0);
    head[MACS..MACS + 2].copy_from_slice(&TPID_8021Q);
    head[MACS + 2..].copy_from_slice(&vid.to_be_bytes());
    Ok(())
}

/// Routes: new MACs, TTL or hop limit down by one. `l3` is the network header's offset. The caller
/// has seen a TTL of at least 2.
#[inline]
pub(crate) fn route<I: PacketIo>(
    io: &mut I,
    frame: &mut Frame,
    l3: usize,
    (src, dst): (Mac, Mac),
) -> Result<(), NoRoom> {
    let bytes = io.bytes_mut(frame);
    let macs = bytes.first_chunk_mut::<MACS>().ok_or(NoRoom)?;
    macs[..6].copy_from_slice(&dst.0);
    macs[6..].copy_from_slice(&src.0);
    let header = bytes.get_mut(l3..).and_then(|b| b.first_chunk_mut::<20>()).ok_or(NoRoom)?;
    if header[0] >> 4 == 4 {
        hop_ipv4(header);
    } else {
        header[7] = header[7].wrapping_sub(1);
    }
    Ok(())
}

/// Marks a packet (RFC 2474, section 3); the two ECN bits stay (RFC 3168, section 5). `l3` is the
/// network header's offset.
#[inline]
pub(crate) fn mark<I: PacketIo>(
    io: &mut I,
    frame: &mut Frame,
    l3: usize,
    dscp: Dscp,
) -> Result<(), NoRoom> {
    let class = traffic_class(io.bytes(frame), l3);
    set_class(io, frame, l3, class & 0x03 | dscp.get() << 2)
}

fn set_class<I: PacketIo>(
    io: &mut I,
    frame: &mut Frame,
    l3: usize,
    class: u8,
) -> Result<(), NoRoom> {
    let header = io.bytes_mut(frame).get_mut(l3..).and_then(|b| b.first_chunk_mut::<12>());
    let header = header.ok_or(NoRoom)?;
    if header[0] >> 4 == 4 {
        let old = u16::from_be_bytes([header[0], header[1]]);
        header[1] = class;
        let new = u16::from_be_bytes([header[0], header[1]]);
        let sum = u16::from_be_bytes([header[10], header[11]]);
        header[10..12].copy_from_slice(&checksum_after(sum, old, new).to_be_bytes());
    } else {
        // The traffic class lies across the first two bytes: 4 bits each.
        header[0] = header[0] & 0xf0 | class >> 4;
        header[1] = header[1] & 0x0f | class << 4;
    }
    Ok(())
}

/// The IPv4 type of service or IPv6 traffic class of the packet at `l3`; 0 of what is neither.
#[inline]
pub(crate) fn traffic_class(frame: &[u8], l3: usize) -> u8 {
    match frame.get(l3..).and_then(<[u8]>::first_chunk) {
        Some([first, second]) if first >> 4 == 4 => *second,
        Some([first, second]) if first >> 4 == 6 => first << 4 | second >> 4,
        _ => 0,
    }
}

/// What a tunnel does with congestion seen on its way (RFC 6040, section 4.2): `outer` is the traffic
/// class of the headers that were taken off, `l3` the offset of the packet that was inside.
///
/// # Errors
/// [`DropReason::Malformed`]: congestion was marked on a packet whose sender would not understand it;
/// "the decapsulator MUST drop the packet".
#[inline]
pub(crate) fn congestion<I: PacketIo>(
    io: &mut I,
    frame: &mut Frame,
    l3: usize,
    outer: u8,
) -> Result<(), DropReason> {
    const ECN: u8 = 0b11;
    const CE: u8 = 0b11;
    if outer & ECN != CE {
        return Ok(());
    }
    let class = traffic_class(io.bytes(frame), l3);
    if class & ECN == 0 {
        return Err(DropReason::Malformed);
    }
    set_class(io, frame, l3, class | CE).map_err(|_short| DropReason::Malformed)
}

/// RFC 1624, equation 3: HC' = ~(~HC + ~m + m').
const fn checksum_after(sum: u16, old: u16, new: u16) -> u16 {
    let wide = !sum as u32 + !old as u32 + new as u32;
    let folded = (wide & 0xffff) + (wide >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !(folded as u16)
}

/// RFC 1624, equation 3, for a TTL (the high byte of its word) that went down by one: the stored
/// sum goes up by 0x0100 in one's complement arithmetic. Of the two zeros 0xffff is not one that a
/// full computation gives, so it becomes 0x0000.
const fn checksum_after_ttl_decrement(sum: u16) -> u16 {
    let wide = sum as u32 + 0x0100;
    (wide + (wide >= 0xffff) as u32) as u16
}

/// Bytes of the headers of a tunnel between end points of this family: Ethernet, IP, UDP and VXLAN.
pub(crate) const fn outer_bytes(end: IpAddr) -> usize {
    if end.is_ipv4() { 50 } else { 70 }
}

/// Puts Ethernet, IP, UDP and VXLAN in front. The UDP checksum is zero (RFC 7348, section 5; over
/// IPv6 by RFC 6935).
#[inline]
pub(crate) fn encap<I: PacketIo>(
    io: &mut I,
    frame: &mut Frame,
    outer: &Outer,
) -> Result<(), NoRoom> {
    let inner = frame.len();
    match (outer.src, outer.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            frame.grow_front(50)?;
            let head = io.bytes_mut(frame).first_chunk_mut::<50>().ok_or(NoRoom)?;
            emit_ipv4(&mut head[MACS..34], (src, dst), inner, outer.class);
            emit_udp_vxlan(&mut head[34..], outer, inner);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            frame.grow_front(70)?;
            let head = io.bytes_mut(frame).first_chunk_mut::<70>().ok_or(NoRoom)?;
            emit_ipv6(&mut head[MACS..54], (src, dst), inner, outer.class);
            emit_udp_vxlan(&mut head[54..], outer, inner);
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return Err(NoRoom),
    }
    let macs = io.bytes_mut(frame);
    macs[..6].copy_from_slice(&outer.dst_mac.0);
    macs[6..MACS].copy_from_slice(&outer.src_mac.0);
    Ok(())
}

/// The outer headers of an empty packet over IPv4; `None` over IPv6.
pub(crate) fn outer_ipv4(outer: &Outer) -> Option<[u8; 50]> {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (outer.src, outer.dst) else { return None };
    let mut head = [0; 50];
    head[..6].copy_from_slice(&outer.dst_mac.0);
    head[6..MACS].copy_from_slice(&outer.src_mac.0);
    emit_ipv4(&mut head[MACS..34], (src, dst), 0, outer.class);
    emit_udp_vxlan(&mut head[34..], outer, 0);
    Some(head)
}

/// Ethertype and header, 22 bytes. Don't Fragment is set: containers' MTU leaves room for these
/// headers, and a fragmented tunnel packet would be dropped at the other end.
fn emit_ipv4(out: &mut [u8], (src, dst): (Ipv4Addr, Ipv4Addr), inner: usize, class: u8) {
    out[..2].copy_from_slice(&ETHERTYPE_IPV4);
    let header = &mut out[2..];
    header.fill(0);
    header[0] = 0x45;
    header[1] = class;
    header[2..4].copy_from_slice(&((20 + 16 + inner) as u16).to_be_bytes());
    header[6] = 0x40;
    header[8] = OUTER_TTL;
    header[9] = IPPROTO_UDP;
    header[12..16].copy_from_slice(&src.octets());
    header[16..20].copy_from_slice(&dst.octets());
    let sum: u32 =
        header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    header[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}

/// Ethertype and header, 42 bytes.
fn emit_ipv6(out: &mut [u8], (src, dst): (Ipv6Addr, Ipv6Addr), inner: usize, class: u8) {
    out[..2].copy_from_slice(&ETHERTYPE_IPV6);
    let header = &mut out[2..];
    header[..4].copy_from_slice(&[0x60 | class >> 4, class << 4, 0, 0]);
    header[4..6].copy_from_slice(&((16 + inner) as u16).to_be_bytes());
    header[6] = IPPROTO_UDP;
    header[7] = OUTER_TTL;
    header[8..24].copy_from_slice(&src.octets());
    header[24..40].copy_from_slice(&dst.octets());
}

fn emit_udp_vxlan(out: &mut [u8], outer: &Outer, inner: usize) {
    out[..2].copy_from_slice(&(outer.entropy | ENTROPY_MIN).to_be_bytes());
    out[2..4].copy_from_slice(&VXLAN_PORT.to_be_bytes());
    out[4..6].copy_from_slice(&((16 + inner) as u16).to_be_bytes());
    out[6..8].fill(0);
    let [_, a, b, c] = outer.vni.get().to_be_bytes();
    out[8..16].copy_from_slice(&[VXLAN_FLAGS, 0, 0, 0, a, b, c, 0]);
}

#[cfg(test)]
mod tests {
    use packet_io::memory::MemoryIo;
    use packet_io::{HEADROOM, QueueId};
    use smoltcp::wire::{EthernetFrame, Ipv4Packet, Ipv6Packet, UdpPacket};

    use super::*;

    fn frame_of(io: &mut MemoryIo, bytes: &[u8]) -> Frame {
        let mut frame = io.alloc().unwrap();
        frame.set_len(bytes.len()).unwrap();
        io.bytes_mut(&mut frame).copy_from_slice(bytes);
        frame
    }

    fn io() -> MemoryIo {
        MemoryIo::new(4, &[QueueId::TRUNK])
    }

    fn inner() -> Vec<u8> {
        (0..60).collect()
    }

    #[test]
    fn a_pushed_tag_pops_to_the_same_bytes_at_the_same_place() {
        let mut io = io();
        let mut frame = frame_of(&mut io, &inner());
        push_tag(&mut io, &mut frame, 0x0abc).unwrap();
        assert_eq!(frame.start(), HEADROOM - 4);
        let tagged = io.bytes(&frame).to_vec();
        assert_eq!(tagged[..12], inner()[..12]);
        assert_eq!(tagged[12..16], [0x81, 0, 0x0a, 0xbc]);
        assert_eq!(tagged[16..], inner()[12..]);
        assert_eq!(pop_tag(&mut io, &mut frame), Some(0x0abc));
        assert_eq!(io.bytes(&frame), inner());
        assert_eq!(frame.start(), HEADROOM);
    }

    #[test]
    fn nothing_is_popped_from_an_untagged_or_short_frame() {
        let mut io = io();
        let mut frame = frame_of(&mut io, &inner());
        assert_eq!(pop_tag(&mut io, &mut frame), None);
        assert_eq!(io.bytes(&frame), inner());
        let mut short = frame_of(&mut io, &[0; 15]);
        assert_eq!(pop_tag(&mut io, &mut short), None);
    }

    #[test]
    fn vxlan_over_ipv4_has_valid_outer_headers_and_keeps_the_inner_bytes() {
        let mut io = io();
        let mut frame = frame_of(&mut io, &inner());
        let outer = Outer {
            src_mac: Mac([2, 0, 0, 0, 0, 1]),
            dst_mac: Mac([2, 0, 0, 0, 0, 2]),
            src: "10.250.0.1".parse().unwrap(),
            dst: "10.250.0.2".parse().unwrap(),
            vni: Vni::new(0x12_3456).unwrap(),
            entropy: 0x1234,
            class: 0xb9,
        };
        encap(&mut io, &mut frame, &outer).unwrap();
        let bytes = io.bytes(&frame);
        let eth = EthernetFrame::new_checked(bytes).unwrap();
        assert_eq!(eth.dst_addr().0, outer.dst_mac.0);
        let ip = Ipv4Packet::new_checked(eth.payload()).unwrap();
        assert!(ip.verify_checksum() && ip.dont_frag());
        assert_eq!(
            (ip.src_addr(), ip.dst_addr()),
            ([10, 250, 0, 1].into(), [10, 250, 0, 2].into())
        );
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        assert_eq!((udp.src_port(), udp.dst_port(), udp.checksum()), (0xd234, 4789, 0));
        assert_eq!(udp.payload()[..8], [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        assert_eq!(udp.payload()[8..], inner());
    }

    #[test]
    fn vxlan_over_ipv6_has_valid_outer_headers() {
        let mut io = io();
        let mut frame = frame_of(&mut io, &inner());
        let outer = Outer {
            src_mac: Mac([2; 6]),
            dst_mac: Mac([4; 6]),
            src: "fd00::1".parse().unwrap(),
            dst: "fd00::2".parse().unwrap(),
            vni: Vni::new(7).unwrap(),
            entropy: 1,
            class: 0xb9,
        };
        encap(&mut io, &mut frame, &outer).unwrap();
        let eth = EthernetFrame::new_checked(io.bytes(&frame)).unwrap();
        let ip = Ipv6Packet::new_checked(eth.payload()).unwrap();
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        assert_eq!(udp.payload()[8..], inner());
        assert_eq!((frame.start(), frame.len()), (HEADROOM - 70, 130));
    }

    #[test]
    fn the_checksum_stays_valid_for_every_ttl() {
        for ttl in 2..=255_u8 {
            for id in (0..=u16::MAX).step_by(255) {
                let mut header =
                    [0x45, 0, 0, 40, 0, 0, 0x40, 0, ttl, 6, 0, 0, 10, 1, 1, 1, 10, 1, 1, 2];
                header[4..6].copy_from_slice(&id.to_be_bytes());
                Ipv4Packet::new_unchecked(&mut header[..]).fill_checksum();
                let mut bytes = vec![0; 14];
                bytes.extend_from_slice(&header);
                let mut io = io();
                let mut frame = frame_of(&mut io, &bytes);
                route(&mut io, &mut frame, 14, (Mac::GATEWAY, Mac([9; 6]))).unwrap();
                let ip = Ipv4Packet::new_unchecked(&io.bytes(&frame)[14..]);
                let mut again = io.bytes(&frame)[14..].to_vec();
                Ipv4Packet::new_unchecked(&mut again[..]).fill_checksum();
                assert_eq!(again, io.bytes(&frame)[14..], "ttl {ttl} id {id}");
                assert_eq!(ip.hop_limit(), ttl - 1);
            }
        }
    }
}
