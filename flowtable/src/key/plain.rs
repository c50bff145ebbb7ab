//! The common packet in one straight line: untagged, IPv4 without options, whole, TCP or UDP.
//!
//! What is read here is read by the general parser in the same way ([`super::parse`] falls back to it
//! for everything else); a test compares the two. It costs about a third.

use super::{FlowKey, Parsed, flag, ipproto, mapped};

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
/// Where TCP or UDP starts.
const L4: usize = ETHERNET_BYTES + IPV4_BYTES;
/// Headers up to the end of UDP's.
const HEAD_BYTES: usize = L4 + 8;
const TCP_BYTES: usize = 20;

/// The packet, or `None`: it is another kind, or malformed. `frame` has at most 65,535 bytes.
#[inline(always)]
pub(super) fn plain(frame: &[u8], in_port: u16) -> Option<Parsed> {
    let head: &[u8; HEAD_BYTES] = frame.first_chunk()?;
    let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let total = usize::from(word(16));
    let (ttl, proto) = (head[22], head[23]);
    let ipv4 = word(12) == super::ethertype::IPV4 && head[14] == 0x45;
    // Neither an offset nor "more fragments".
    let fragment = word(20) & 0x3fff;
    let fits = total >= IPV4_BYTES + 8 && ETHERNET_BYTES + total <= frame.len();
    if !(ipv4 && fragment == 0 && fits && has_good_checksum(head)) {
        return None;
    }
    let payload = total - IPV4_BYTES;
    let tcp_flags = match proto {
        ipproto::UDP => {
            let len = usize::from(word(L4 + 4));
            (8..=payload).contains(&len).then_some(0)?
        }
        ipproto::TCP => {
            let header: &[u8; L4 + TCP_BYTES] = frame.first_chunk()?;
            let header_bytes = usize::from(header[L4 + 12] >> 4) * 4;
            (TCP_BYTES..=payload).contains(&header_bytes).then_some(header[L4 + 13])?
        }
        _ => return None,
    };
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *head;
    let key = FlowKey {
        in_port,
        vid: 0,
        eth_type: super::ethertype::IPV4,
        proto,
        flags: if ttl <= 1 { flag::TTL_LOW } else { 0 },
        eth_dst: [d0, d1, d2, d3, d4, d5],
        eth_src: [s0, s1, s2, s3, s4, s5],
        vni: 0,
        tun_src: [0; 16],
        src: mapped([head[26], head[27], head[28], head[29]]),
        dst: mapped([head[30], head[31], head[32], head[33]]),
        src_port: word(L4),
        dst_port: word(L4 + 2),
        icmp_id: 0,
        tcp_flags: 0,
        zero: 0,
    };
    let (l3, l4) = (ETHERNET_BYTES as u16, L4 as u16);
    Some(Parsed { key, l3, l4, inner: 0, tcp_flags, fragment_id: 0 })
}

/// Whether the header's words sum up to all ones (RFC 1071, which also says that the order of bytes
/// does not matter). Words of 32 bits are summed: what they carry over is folded in the end.
#[inline(always)]
fn has_good_checksum(head: &[u8; HEAD_BYTES]) -> bool {
    let word = |at: usize| {
        u64::from(u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]))
    };
    let sum = word(14) + word(18) + word(22) + word(26) + word(30);
    let folded = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let folded = (folded & 0xffff) + (folded >> 16);
    (folded & 0xffff) + (folded >> 16) == 0xffff
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::parse::general;
    use super::super::{Decap, Origin, VXLAN_PORT, parse};
    use super::*;
    use crate::ids::PortId;

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
            let wire = Origin { in_port, decap: Decap::Vxlan };
            let tunnelled = frame_to_vxlan(&frame);
            for frame in [&frame, &tunnelled] {
                prop_assert_eq!(parse(frame, wire), general(frame, wire));
            }
            let origin = Origin { in_port, decap: Decap::Never };
            if let Some(parsed) = plain(&frame, 7) {
                prop_assert_eq!(general(&frame, origin), Ok(parsed));
            } else if let Ok(parsed) = general(&frame, origin) {
                // What it leaves to the general parser is of another kind.
                let other = !matches!(parsed.key.proto, 6 | 17) || parsed.key.flags & !flag::TTL_LOW != 0
                    || parsed.key.eth_type != 0x0800 || frame[14] != 0x45;
                prop_assert!(other, "{:?}", parsed);
            }
        }
    }
}
