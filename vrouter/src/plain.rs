//! Rewriting of plain packets ([`flowtable::key::Brief`]), each in one go: the bytes that [`crate::rewrite`]
//! makes of them step by step. Outer headers towards a tunnel end point are made once for each
//! snapshot, and get what differs from packet to packet.

use std::net::IpAddr;

use flowtable::action::Rewrite;
use flowtable::entry::UnderlayEntry;
use flowtable::exact::ExactMap;
use flowtable::ids::{Mac, PortId, Vni};
use flowtable::key::Layout;
use packet_io::{Frame, NoRoom, PacketIo};

use crate::rewrite::{self, ETHERNET_BYTES, MACS, Outer, TAG_BYTES, TPID_8021Q};

/// Ethernet, IPv4, UDP and VXLAN.
const OUTER_BYTES: usize = 50;
const IPV4_BYTES: usize = 20;
/// Where the network header is in a frame with the trunk's tag.
const TAGGED_L3: usize = ETHERNET_BYTES + TAG_BYTES;

/// Makes it a frame of the trunk for a container: what is around it is taken off, it is routed if need
/// be, and tagged. Returns its length without the tag.
#[inline(always)]
pub(crate) fn deliver<I: PacketIo>(
    io: &mut I,
    frame: &mut Frame,
    (layout, route): (Layout, &Option<Rewrite>),
    to: PortId,
) -> Result<usize, NoRoom> {
    match layout {
        Layout::Tagged => {}
        Layout::Bare => frame.grow_front(TAG_BYTES)?,
        Layout::Tunnelled => frame.shrink_front(OUTER_BYTES - TAG_BYTES)?,
    }
    let len = frame.len() - TAG_BYTES;
    let head: &mut [u8; TAGGED_L3 + IPV4_BYTES] =
        io.bytes_mut(frame).first_chunk_mut().ok_or(NoRoom)?;
    if let Some(Rewrite { src, dst }) = *route {
        set_macs(head, (dst, src));
        rewrite::hop_ipv4(&mut head[TAGGED_L3..]);
    } else if layout != Layout::Tagged {
        head.copy_within(TAG_BYTES..TAG_BYTES + MACS, 0);
    }
    let [t0, t1] = to.get().to_be_bytes();
    head[MACS..MACS + TAG_BYTES].copy_from_slice(&[TPID_8021Q[0], TPID_8021Q[1], t0, t1]);
    Ok(len)
}

/// Puts it into a tunnel, routed if need be. Not for a packet that comes out of one. Returns its length.
#[inline(always)]
pub(crate) fn encap<I: PacketIo>(
    io: &mut I,
    frame: &mut Frame,
    (layout, route): (Layout, &Option<Rewrite>),
    (head, vni, entropy): (&Head, Vni, u16),
) -> Result<usize, NoRoom> {
    // The place of the trunk's tag is inside the new headers.
    let tag_bytes = if layout == Layout::Tagged { TAG_BYTES } else { 0 };
    frame.grow_front(OUTER_BYTES - tag_bytes)?;
    let inner = frame.len() - OUTER_BYTES;
    let bytes: &mut [u8; OUTER_BYTES + ETHERNET_BYTES + IPV4_BYTES] =
        io.bytes_mut(frame).first_chunk_mut().ok_or(NoRoom)?;
    let class = bytes[OUTER_BYTES + ETHERNET_BYTES + 1];
    if let Some(Rewrite { src, dst }) = *route {
        set_macs(&mut bytes[OUTER_BYTES..], (dst, src));
        rewrite::hop_ipv4(&mut bytes[OUTER_BYTES + ETHERNET_BYTES..]);
    } else if tag_bytes > 0 {
        let macs = OUTER_BYTES - TAG_BYTES;
        bytes.copy_within(macs..macs + MACS, OUTER_BYTES);
    }
    if let Some(place) = bytes.first_chunk_mut() {
        *place = head.with(inner as u16, class, vni, entropy);
    }
    Ok(frame.len())
}

#[inline(always)]
fn set_macs(frame: &mut [u8], (dst, src): (Mac, Mac)) {
    if let Some(macs) = frame.first_chunk_mut::<MACS>() {
        macs[..6].copy_from_slice(&dst.0);
        macs[6..].copy_from_slice(&src.0);
    }
}

/// Outer headers towards a tunnel end point, but for what differs between packets.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    bytes: [u8; OUTER_BYTES],
    /// Sum of the IPv4 header's words, but for the type of service and the length.
    sum: u32,
}

impl Head {
    /// `None` over IPv6.
    fn new(underlay: &UnderlayEntry, local: IpAddr) -> Option<Self> {
        let (src_mac, dst_mac) = (underlay.src_mac, underlay.dst_mac);
        let (src, dst) = (local, underlay.vtep);
        let outer = Outer { src_mac, dst_mac, src, dst, vni: Vni::MIN, entropy: 0, class: 0 };
        let bytes = rewrite::outer_ipv4(&outer)?;
        let words = bytes[ETHERNET_BYTES..ETHERNET_BYTES + IPV4_BYTES].chunks_exact(2);
        let numbers = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        // Neither the length nor the checksum.
        let sum = numbers.enumerate().filter(|(at, _)| !matches!(at, 1 | 5)).map(|(_, n)| n).sum();
        Some(Self { bytes, sum })
    }

    /// The headers of a packet whose inner frame has so many bytes.
    #[inline(always)]
    fn with(&self, inner: u16, class: u8, vni: Vni, entropy: u16) -> [u8; OUTER_BYTES] {
        let mut bytes = self.bytes;
        let datagram = inner + 16;
        let total = datagram + IPV4_BYTES as u16;
        let sum = self.sum + u32::from(class) + u32::from(total);
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        bytes[15] = class;
        bytes[16..18].copy_from_slice(&total.to_be_bytes());
        bytes[24..26].copy_from_slice(&(!(folded as u16)).to_be_bytes());
        bytes[34..36].copy_from_slice(&(entropy | rewrite::ENTROPY_MIN).to_be_bytes());
        bytes[38..40].copy_from_slice(&datagram.to_be_bytes());
        // The eighth byte is reserved.
        bytes[46..50].copy_from_slice(&(vni.get() << 8).to_be_bytes());
        bytes
    }
}

/// Outer headers towards all tunnel end points that the underlay has a way to.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    all: Vec<Head>,
    by_vtep: ExactMap<IpAddr, u16>,
}

impl Heads {
    /// `locals`: our own address towards each tunnel end point.
    pub(crate) fn new(
        underlay: &ExactMap<IpAddr, UnderlayEntry>,
        locals: &ExactMap<IpAddr, IpAddr>,
    ) -> Self {
        let mut heads = Self::default();
        for (vtep, entry) in underlay {
            let head = locals.get(vtep).and_then(|local| Head::new(entry, *local));
            // Those that have no number go the long way.
            let at = u16::try_from(heads.all.len()).ok();
            if let (Some(head), Some(at)) = (head, at) {
                heads.by_vtep.insert(*vtep, at);
                heads.all.push(head);
            }
        }
        heads
    }

    /// Where the headers towards a tunnel end point are, as long as underlay and end points stay.
    pub(crate) fn position(&self, vtep: IpAddr) -> Option<u16> {
        self.by_vtep.get(&vtep).copied()
    }

    /// The headers at a position of these.
    #[inline(always)]
    pub(crate) fn get(&self, at: u16) -> Option<&Head> {
        self.all.get(usize::from(at))
    }
}

#[cfg(test)]
mod tests {
    use flowtable::key::{Brief, Seen};
    use packet_io::QueueId;
    use packet_io::memory::MemoryIo;
    use proptest::prelude::*;
    use smoltcp::wire::Ipv4Packet;

    use super::*;

    const VTEP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 250, 0, 2));
    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 250, 0, 1));

    /// UDP from one container to another, with any type of service, TTL and payload.
    fn packet((class, ttl): (u8, u8), payload: &[u8]) -> Vec<u8> {
        let udp = (8 + payload.len()) as u16;
        let mut ip = vec![0x45, class, 0, 0, 0x12, 0x34, 0x40, 0, ttl, 17, 0, 0];
        ip[2..4].copy_from_slice(&(20 + udp).to_be_bytes());
        ip.extend([10, 1, 1, 1, 10, 1, 1, 2]);
        Ipv4Packet::new_unchecked(&mut ip[..]).fill_checksum();
        let [u0, u1] = udp.to_be_bytes();
        [
            &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0],
            &ip[..],
            &[4, 210, 0, 80, u0, u1, 0, 0],
            payload,
        ]
        .concat()
    }

    fn outer() -> Outer {
        Outer {
            src_mac: Mac([2, 0, 0, 0, 0, 8]),
            dst_mac: Mac([2, 0, 0, 0, 0, 9]),
            src: LOCAL,
            dst: VTEP,
            vni: Vni::MIN,
            entropy: 0,
            class: 0,
        }
    }

    /// The packet as it is received, and what is read of it.
    fn received(io: &mut MemoryIo, layout: Layout, packet: &[u8]) -> (Frame, Seen) {
        let mut frame = io.alloc().unwrap();
        frame.set_len(packet.len()).unwrap();
        io.bytes_mut(&mut frame).copy_from_slice(packet);
        let port = PortId::new(7).unwrap();
        match layout {
            Layout::Bare => {}
            Layout::Tagged => rewrite::push_tag(io, &mut frame, 7).unwrap(),
            Layout::Tunnelled => rewrite::encap(io, &mut frame, &outer()).unwrap(),
        }
        let seen = match layout {
            Layout::Bare | Layout::Tunnelled => Brief::wire(io.bytes(&frame), port),
            Layout::Tagged => Brief::tagged(io.bytes(&frame), port),
        };
        let seen = seen.unwrap();
        assert_eq!(seen.layout, layout);
        (frame, seen)
    }

    /// The tenant's frame, routed, step by step.
    fn step_by_step(io: &mut MemoryIo, packet: &[u8], route: Option<Rewrite>) -> Frame {
        let (mut frame, _) = received(io, Layout::Bare, packet);
        if let Some(Rewrite { src, dst }) = route {
            rewrite::route(io, &mut frame, ETHERNET_BYTES, (src, dst)).unwrap();
        }
        frame
    }

    proptest! {
        #[test]
        fn in_one_go_it_becomes_what_it_becomes_step_by_step(
            (class, ttl) in (any::<u8>(), 2..=255_u8),
            payload in proptest::collection::vec(any::<u8>(), 0..1400),
            routed in any::<bool>(),
            layout in prop_oneof![Just(Layout::Bare), Just(Layout::Tagged), Just(Layout::Tunnelled)],
            (vni, entropy) in (1..1_u32 << 24, any::<u16>()),
        ) {
            let mut io = MemoryIo::new(4, &[QueueId::TRUNK]);
            let packet = packet((class, ttl), &payload);
            let route = routed.then_some(Rewrite { src: Mac::GATEWAY, dst: Mac([2, 0, 0, 0, 0, 5]) });
            let to = PortId::new(0x0abc).unwrap();

            let mut expected = step_by_step(&mut io, &packet, route);
            rewrite::push_tag(&mut io, &mut expected, to.get()).unwrap();
            let (mut frame, _) = received(&mut io, layout, &packet);
            let len = deliver(&mut io, &mut frame, (layout, &route), to);
            prop_assert_eq!(len, Ok(packet.len()));
            prop_assert_eq!(io.bytes(&frame), io.bytes(&expected));

            if layout != Layout::Tunnelled {
                let vni = Vni::new(vni).unwrap();
                let mut expected = step_by_step(&mut io, &packet, route);
                let outer = Outer { vni, entropy, class, ..outer() };
                rewrite::encap(&mut io, &mut expected, &outer).unwrap();
                let head = head();
                let (mut frame, _) = received(&mut io, layout, &packet);
                encap(&mut io, &mut frame, (layout, &route), (&head, vni, entropy)).unwrap();
                prop_assert_eq!(io.bytes(&frame), io.bytes(&expected));
            }
        }
    }

    fn head() -> Head {
        let Outer { src_mac, dst_mac, .. } = outer();
        let port = PortId::new(1).unwrap();
        let entry = UnderlayEntry { vtep: VTEP, port, src_mac, dst_mac };
        let known = ExactMap::from_iter([(VTEP, entry)]);
        let heads = Heads::new(&known, &ExactMap::from_iter([(VTEP, LOCAL)]));
        assert!(heads.position(LOCAL).is_none());
        heads.get(heads.position(VTEP).unwrap()).unwrap().clone()
    }
}
