//! Whether a packet is of the common kind: IPv4 without options, whole, TCP or UDP. [`super::Brief`] is
//! made of what is found here.

use super::{ethertype, ipproto};

const TCP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
/// Bytes of an Ethernet type.
pub(super) const TYPE_BYTES: usize = 2;
/// Bytes of an IPv4 header without options.
pub(super) const IPV4_BYTES: usize = 20;
/// Where TCP or UDP starts, counted from the Ethernet type.
const L4: usize = TYPE_BYTES + IPV4_BYTES;
/// From the Ethernet type to the end of UDP's header.
const HEAD_BYTES: usize = L4 + UDP_BYTES;

/// Headers of a packet that was found to be whole: see [`whole`].
pub(super) struct Whole<'f> {
    /// From the Ethernet type on.
    head: &'f [u8; HEAD_BYTES],
    /// TCP flags (byte 13 of the header); 0 when not TCP.
    pub(super) tcp_flags: u8,
}

impl Whole<'_> {
    #[inline(always)]
    const fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.head[at], self.head[at + 1]])
    }

    #[inline(always)]
    const fn raw(&self, at: usize) -> u32 {
        let head = self.head;
        u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
    }

    /// Type of service.
    #[inline(always)]
    pub(super) const fn class(&self) -> u8 {
        self.head[3]
    }

    #[inline(always)]
    pub(super) const fn ttl(&self) -> u8 {
        self.head[10]
    }

    #[inline(always)]
    pub(super) const fn proto(&self) -> u8 {
        self.head[11]
    }

    /// Source address, as it lies in memory.
    #[inline(always)]
    pub(super) const fn src(&self) -> u32 {
        self.raw(14)
    }

    /// Source and destination, as they lie in memory.
    #[inline(always)]
    pub(super) const fn addresses(&self) -> u64 {
        self.raw(14) as u64 | (self.raw(18) as u64) << 32
    }

    /// Both ports, as they lie in memory.
    #[inline(always)]
    pub(super) const fn ports(&self) -> u32 {
        self.raw(L4)
    }

    #[inline(always)]
    pub(super) const fn dst_port(&self) -> u16 {
        self.word(L4 + 2)
    }

    /// Length of a UDP datagram with its header.
    #[inline(always)]
    pub(super) const fn udp_len(&self) -> usize {
        self.word(L4 + 4) as usize
    }
}

/// The packet whose Ethernet type is at `AT`: IPv4 without options and with a good checksum, whole, TCP
/// or UDP, with lengths that agree. `None`: it is another kind, or malformed.
#[inline(always)]
pub(super) fn whole<const AT: usize>(frame: &[u8]) -> Option<Whole<'_>> {
    let rest = frame.get(AT..)?;
    let head: &[u8; HEAD_BYTES] = rest.first_chunk()?;
    let mut packet = Whole { head, tcp_flags: 0 };
    let total = usize::from(packet.word(4));
    let ipv4 = packet.word(0) == ethertype::IPV4 && head[2] == 0x45;
    // Neither an offset nor "more fragments".
    let fragment = packet.word(8) & 0x3fff;
    let fits = total >= IPV4_BYTES + UDP_BYTES && TYPE_BYTES + total <= rest.len();
    if !(ipv4 && fragment == 0 && fits && has_good_checksum(head)) {
        return None;
    }
    let payload = total - IPV4_BYTES;
    match packet.proto() {
        ipproto::UDP => (UDP_BYTES..=payload).contains(&packet.udp_len()).then_some(packet),
        ipproto::TCP => {
            let header: &[u8; TCP_BYTES] = rest[L4..].first_chunk()?;
            let header_bytes = usize::from(header[12] >> 4) * 4;
            packet.tcp_flags = header[13];
            (TCP_BYTES..=payload).contains(&header_bytes).then_some(packet)
        }
        _ => None,
    }
}

/// Whether the header's words sum up to all ones (RFC 1071, which also says that the order of bytes
/// does not matter). Words of 32 bits are summed: what they carry over is folded in the end.
#[inline(always)]
fn has_good_checksum(head: &[u8; HEAD_BYTES]) -> bool {
    let word = |at: usize| {
        u64::from(u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]))
    };
    let sum = word(2) + word(6) + word(10) + word(14) + word(18);
    let folded = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let folded = (folded & 0xffff) + (folded >> 16);
    (folded & 0xffff) + (folded >> 16) == 0xffff
}
