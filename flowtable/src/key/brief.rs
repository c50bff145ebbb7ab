//! The common packet in five words: IPv4 without options, whole, TCP or UDP, untagged.
//!
//! For such a packet the rest of a [`FlowKey`] is constant, so that its [`Brief`] says the same in half
//! the bytes, and is taken from a frame in a dozen loads: enough to find its flow in the exact cache.
//! The key itself is made for who has to look at the tables. [`Brief::of`] is one-to-one on the keys
//! it accepts, and tests compare what is read here with what [`super::parse`] reads.

use zerocopy::transmute_ref;

use super::plain::{IPV4_BYTES, TYPE_BYTES, Whole, whole};
use super::{FlowKey, Parsed, VXLAN_PORT, ethertype, flag, ipproto, mapped};
use crate::ids::PortId;

const MACS: usize = 12;
const ETHERNET_BYTES: usize = MACS + TYPE_BYTES;
const TAG_BYTES: usize = 4;
/// Ethernet, IPv4, UDP and VXLAN in front of the inner frame.
const OUTER_BYTES: usize = 50;
/// Congestion experienced (RFC 3168, section 5).
const CE: u8 = 0b11;

/// A packet's [`FlowKey`], in brief; see the module.
#[derive(Debug, Clone, Copy, Eq)]
pub struct Brief([u64; 5]);

/// Where the headers of a packet are in its frame, as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Ethernet, IPv4.
    Bare,
    /// Ethernet with a tag of the trunk's, IPv4.
    Tagged,
    /// Ethernet, IPv4, UDP, VXLAN, Ethernet, IPv4.
    Tunnelled,
}

/// What was read of a frame.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Its key.
    pub brief: Brief,
    /// Where its headers are.
    pub layout: Layout,
    /// TCP or UDP.
    pub proto: u8,
    /// TCP flags (byte 13 of the header); 0 when not TCP. The key has none: see [`Brief::with_flags`].
    pub tcp_flags: u8,
}

impl Layout {
    /// Bytes in front of the (inner) frame, the trunk's tag apart.
    #[inline(always)]
    #[must_use]
    pub const fn outer_bytes(self) -> usize {
        match self {
            Self::Bare | Self::Tagged => 0,
            Self::Tunnelled => OUTER_BYTES,
        }
    }
}

impl PartialEq for Brief {
    // As for keys: comparing bytes would be a call.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let words = self.0.iter().zip(&other.0);
        words.fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
    }
}

impl Brief {
    /// Of a packet that is not of this kind; no packet has it.
    pub const NONE: Self = Self([u64::MAX; 5]);

    /// A container's packet, with the trunk's tag in front of its type. `None`: it is of another kind
    /// or malformed.
    #[inline(always)]
    #[must_use]
    pub fn tagged(frame: &[u8], in_port: PortId) -> Option<Seen> {
        Self::at::<{ MACS + TAG_BYTES }>(frame, in_port, Layout::Tagged)
    }

    /// A container's packet without a tag. `None`: it is of another kind or malformed.
    #[inline(always)]
    #[must_use]
    pub fn bare(frame: &[u8], in_port: PortId) -> Option<Seen> {
        Self::at::<MACS>(frame, in_port, Layout::Bare)
    }

    /// The packet whose Ethernet type is at `AT`.
    #[inline(always)]
    fn at<const AT: usize>(frame: &[u8], in_port: PortId, layout: Layout) -> Option<Seen> {
        let packet = whole::<AT>(frame)?;
        Some(Seen::new(Self::read(frame.first_chunk()?, &packet, in_port), layout, &packet))
    }

    /// An uplink's packet, in VXLAN over IPv4 or as it is. `None`: it is of another kind, malformed, or
    /// has met congestion, which has to be told to the packet inside.
    #[inline(always)]
    #[must_use]
    pub fn wire(frame: &[u8], in_port: PortId) -> Option<Seen> {
        let outer = whole::<MACS>(frame)?;
        if outer.proto() != ipproto::UDP || outer.dst_port() != VXLAN_PORT {
            let brief = Self::read(frame.first_chunk()?, &outer, in_port);
            return Some(Seen::new(brief, Layout::Bare, &outer));
        }
        let end = ETHERNET_BYTES + IPV4_BYTES + outer.udp_len();
        let inner = frame.get(OUTER_BYTES..end)?;
        let vxlan: &[u8; 8] = frame[..OUTER_BYTES].last_chunk()?;
        let [flags, _, _, _, v0, v1, v2, _] = *vxlan;
        let vni = u32::from_be_bytes([0, v0, v1, v2]);
        if flags & 0x08 == 0 || vni == 0 || outer.class() & CE == CE {
            return None;
        }
        let packet = whole::<MACS>(inner)?;
        let mut brief = Self::read(inner.first_chunk()?, &packet, in_port);
        brief.0[2] = u64::from(outer.src()) | u64::from(vni) << 32;
        Some(Seen::new(brief, Layout::Tunnelled, &packet))
    }

    #[inline(always)]
    fn read(macs: &[u8; MACS], packet: &Whole<'_>, in_port: PortId) -> Self {
        let flags = if packet.ttl() <= 1 { flag::TTL_LOW } else { 0 };
        let kind = [packet.proto(), flags];
        Self::new((in_port.get(), kind, packet.ports()), packet.addresses(), 0, macs)
    }

    /// Ports and addresses as they lie in the packet; `tunnel` has the source of the tunnel, its VNI and
    /// the TCP flags.
    #[inline(always)]
    fn new(
        (in_port, [proto, flags], ports): (u16, [u8; 2], u32),
        addresses: u64,
        tunnel: u64,
        macs: &[u8; MACS],
    ) -> Self {
        let kind = u64::from(in_port) | u64::from(proto) << 16 | u64::from(flags) << 24;
        // The middle four bytes are in both: two loads instead of three.
        let (Some(dst), Some(src)) = (macs.first_chunk(), macs.last_chunk()) else {
            return Self::NONE;
        };
        let macs = [u64::from_le_bytes(*dst), u64::from_le_bytes(*src)];
        Self([kind | u64::from(ports) << 32, addresses, tunnel, macs[0], macs[1]])
    }

    /// With the TCP flags that a rule looks at; it had none.
    #[inline(always)]
    #[must_use]
    pub const fn with_flags(mut self, tcp_flags: u8) -> Self {
        self.0[2] |= (tcp_flags as u64) << 56;
        self
    }

    /// The key in brief; `None` when that would not say all of it.
    #[must_use]
    pub fn of(key: &FlowKey) -> Option<Self> {
        if key.eth_type != ethertype::IPV4 || !matches!(key.proto, ipproto::TCP | ipproto::UDP) {
            return None;
        }
        let [.., t0, t1, t2, t3] = key.tun_src;
        let [.., s0, s1, s2, s3] = key.src;
        let [.., d0, d1, d2, d3] = key.dst;
        let mapped = key.src == mapped([s0, s1, s2, s3]) && key.dst == mapped([d0, d1, d2, d3]);
        let tunnel = if key.vni == 0 { [0; 16] } else { self::mapped([t0, t1, t2, t3]) };
        let known = key.flags & !flag::TTL_LOW == 0;
        let rest = key.vid == 0 && key.icmp_id == 0 && key.zero == 0 && key.vni >> 24 == 0;
        if !(known && mapped && rest && key.tun_src == tunnel) {
            return None;
        }
        let [p0, p1] = key.src_port.to_be_bytes();
        let [q0, q1] = key.dst_port.to_be_bytes();
        let ports = u32::from_le_bytes([p0, p1, q0, q1]);
        let addresses = u64::from_le_bytes([s0, s1, s2, s3, d0, d1, d2, d3]);
        let tunnel = u64::from(u32::from_le_bytes([t0, t1, t2, t3])) | u64::from(key.vni) << 32;
        let bytes: &[u8; size_of::<FlowKey>()] = transmute_ref!(key);
        let macs = bytes[8..].first_chunk()?;
        let brief =
            Self::new((key.in_port, [key.proto, key.flags], ports), addresses, tunnel, macs);
        Some(brief.with_flags(key.tcp_flags))
    }

    /// What [`super::parse`] says of the packet, whose headers lie like this once the trunk's tag is off.
    #[must_use]
    pub fn parsed(&self, layout: Layout, tcp_flags: u8) -> Parsed {
        let outer = layout.outer_bytes() as u16;
        let l3 = outer + ETHERNET_BYTES as u16;
        let l4 = l3 + IPV4_BYTES as u16;
        Parsed { key: self.key(), l3, l4, inner: outer, tcp_flags, fragment_id: 0 }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> FlowKey {
        let [kind, addresses, tunnel, dst, src] = self.0;
        let [i0, i1, proto, flags, p0, p1, q0, q1] = kind.to_le_bytes();
        let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses.to_le_bytes();
        let [t0, t1, t2, t3, v0, v1, v2, tcp_flags] = tunnel.to_le_bytes();
        // The words have bytes 0 to 7 and 4 to 11 of both MACs.
        let (dst, src) = (dst.to_le_bytes(), src.to_le_bytes());
        let vni = u32::from_le_bytes([v0, v1, v2, 0]);
        FlowKey {
            in_port: u16::from_le_bytes([i0, i1]),
            vid: 0,
            eth_type: ethertype::IPV4,
            proto,
            flags,
            eth_dst: std::array::from_fn(|at| dst[at]),
            eth_src: std::array::from_fn(|at| src[at + 2]),
            vni,
            tun_src: if vni == 0 { [0; 16] } else { mapped([t0, t1, t2, t3]) },
            src: mapped([s0, s1, s2, s3]),
            dst: mapped([d0, d1, d2, d3]),
            src_port: u16::from_be_bytes([p0, p1]),
            dst_port: u16::from_be_bytes([q0, q1]),
            icmp_id: 0,
            tcp_flags,
            zero: 0,
        }
    }

    /// Its words: port, protocol, flags and ports; addresses; tunnel and TCP flags; MACs.
    pub(super) const fn words(&self) -> &[u64; 5] {
        &self.0
    }
}

impl Seen {
    #[inline(always)]
    const fn new(brief: Brief, layout: Layout, packet: &Whole<'_>) -> Self {
        Self { brief, layout, proto: packet.proto(), tcp_flags: packet.tcp_flags }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Decap, Origin, general, parse};
    use super::*;

    fn frame(proto: u8, payload: &[u8], pad: usize) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        let total = (20 + payload.len()) as u16;
        let mut ip = vec![0x45, 0xb8, 0, 0, 0x12, 0x34, 0x40, 0, 64, proto, 0, 0];
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip.extend([10, 1, 1, 1, 10, 1, 1, 2]);
        sign(&mut ip);
        frame.extend(ip);
        frame.extend(payload);
        frame.resize(frame.len() + pad, 0);
        frame
    }

    /// A tunnel's packet with `inner` in it.
    fn frame_to_vxlan(inner: &[u8]) -> Vec<u8> {
        let mut payload = vec![0xc0, 0];
        payload.extend(VXLAN_PORT.to_be_bytes());
        payload.extend((16 + inner.len() as u16).to_be_bytes());
        payload.extend([0, 0, 8, 0, 0, 0, 0, 0, 7, 0]);
        payload.extend(inner);
        frame(17, &payload, 0)
    }

    fn sign(ip: &mut [u8]) {
        ip[10..12].fill(0);
        let words = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        ip[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }

    proptest! {
        #[test]
        fn what_it_reads_the_general_parser_reads_alike(
            proto in prop_oneof![Just(6_u8), Just(17), Just(1), any::<u8>()],
            payload in proptest::collection::vec(any::<u8>(), 0..60),
            length in prop_oneof![Just(None), (0..70_u16).prop_map(Some)],
            damage in proptest::option::of((12..60_usize, any::<u8>())),
            resign in any::<bool>(),
            pad in 0..10_usize,
        ) {
            let mut payload = payload;
            if payload.len() >= 14 {
                let len = length.unwrap_or(payload.len() as u16);
                payload[4..6].copy_from_slice(&len.to_be_bytes());
                payload[12] = payload[12] & 0x0f | ((len % 16) as u8) << 4;
            }
            let mut frame = frame(proto, &payload, pad);
            if let Some((at, byte)) = damage
                && let Some(place) = frame.get_mut(at)
            {
                *place = byte;
            }
            if resign {
                sign(&mut frame[14..34]);
            }
            let in_port = PortId::new(7).unwrap();
            let tunnelled = frame_to_vxlan(&frame);
            for (frame, decap) in
                [(&frame, Decap::Vxlan), (&tunnelled, Decap::Vxlan), (&frame, Decap::Never)]
            {
                let origin = Origin { in_port, decap };
                let read = general(frame, origin);
                prop_assert_eq!(parse(frame, origin), read);
                let key = read.ok().map(|parsed| parsed.key);
                prop_assert_eq!(key.and_then(|key| Brief::of(&key)), brief(frame, origin));
            }
            let mut tagged = frame.clone();
            tagged.splice(12..12, [0x81, 0, 0, 7]);
            let bare = Brief::bare(&frame, in_port).map(|seen| (seen.brief, seen.tcp_flags));
            let tagged = Brief::tagged(&tagged, in_port).map(|seen| (seen.brief, seen.tcp_flags));
            prop_assert_eq!(bare, tagged);
        }

        #[test]
        fn a_key_said_in_brief_is_the_same_key(bytes: [u8; 80], plain: [bool; 12], tunnelled: bool) {
            let mut key: FlowKey = zerocopy::transmute!(bytes);
            // Most keys that are drawn can't be said in brief: these can, but for what is left as drawn.
            let [.., a, b, c, d] = key.src;
            let [.., e, f, g, h] = key.dst;
            let [.., i, j, k, l] = key.tun_src;
            let [vid, eth_type, proto, flags, vni, tun_src, src, dst, icmp_id, zero, ..] = plain;
            let set = |set: bool, part: &mut dyn FnMut()| if set { part() };
            set(vid, &mut || key.vid = 0);
            set(eth_type, &mut || key.eth_type = ethertype::IPV4);
            set(proto, &mut || key.proto = ipproto::TCP);
            set(flags, &mut || key.flags &= flag::TTL_LOW);
            set(vni, &mut || key.vni = if tunnelled { key.vni >> 8 } else { 0 });
            set(tun_src, &mut || key.tun_src = if tunnelled { mapped([i, j, k, l]) } else { [0; 16] });
            set(src, &mut || key.src = mapped([a, b, c, d]));
            set(dst, &mut || key.dst = mapped([e, f, g, h]));
            set(icmp_id, &mut || key.icmp_id = 0);
            set(zero, &mut || key.zero = 0);
            if let Some(brief) = Brief::of(&key) {
                prop_assert_eq!(brief.key(), key);
                prop_assert_ne!(brief, Brief::NONE);
            } else {
                prop_assert!(plain[..10].contains(&false) || (tunnelled && key.vni == 0), "{:?}", key);
            }
        }
    }

    fn brief(frame: &[u8], origin: Origin) -> Option<Brief> {
        let seen = match origin.decap {
            Decap::Never => Brief::bare(frame, origin.in_port),
            Decap::Vxlan => Brief::wire(frame, origin.in_port),
        };
        seen.map(|seen| seen.brief)
    }
}
