//! What of a packet a lookup looked at: the mask under which its outcome may be cached.

/// Bits of a packet that an outcome depends on, as masks; all zero is "none". Where the mask of a
/// field is not zero, whether the packet has the field counts as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Wildcards {
    /// Leading bits of the source address: 0..=32 (IPv4) or 0..=128 (IPv6).
    pub src_bits: u8,
    /// Leading bits of the destination address: 0..=32 (IPv4) or 0..=128 (IPv6).
    pub dst_bits: u8,
    /// Of the source port: none or all.
    pub src_port: u16,
    /// Of the destination port: none or all.
    pub dst_port: u16,
    /// Of ICMP's type (high byte) and code (low byte).
    pub icmp: u16,
    /// Of the TCP flags.
    pub tcp_flags: u8,
}

impl Wildcards {
    /// Adds what something else looks at.
    #[inline]
    pub fn add(&mut self, other: &Self) {
        self.src_bits = self.src_bits.max(other.src_bits);
        self.dst_bits = self.dst_bits.max(other.dst_bits);
        self.src_port |= other.src_port;
        self.dst_port |= other.dst_port;
        self.icmp |= other.icmp;
        self.tcp_flags |= other.tcp_flags;
    }
}
