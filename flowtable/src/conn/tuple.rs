//! What of a packet names its connection.

use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};
use zerocopy::{Immutable, IntoBytes};

use crate::ids::Vrf;

/// The addresses, ports and protocol of a packet, as the packet shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The routing instance: tenants may use the same addresses.
    pub vrf: Vrf,
    /// Ethernet type, 0x0800 or 0x86dd, so that `::ffff:a.b.c.d` in IPv6 is not IPv4.
    pub family: u16,
    /// IP protocol.
    pub proto: u8,
    /// Source address, IPv4 as `::ffff:a.b.c.d`.
    pub src: [u8; 16],
    /// Destination address, likewise.
    pub dst: [u8; 16],
    /// Source port; of an ICMP echo its identifier; else 0.
    pub src_port: u16,
    /// Destination port; of an ICMP echo its identifier too; else 0.
    pub dst_port: u16,
}

/// Direction of a packet within its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// From the side that opened it.
    Original,
    /// From the other side.
    Reply,
}

/// A tuple with its ends in order, without padding: both directions hash as the same bytes.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Canonical {
    low: [u8; 16],
    high: [u8; 16],
    low_port: u16,
    high_port: u16,
    vrf: u32,
    family: u16,
    proto: u16,
}

impl Tuple {
    /// The tuple of a packet that answers.
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            ..*self
        }
    }

    /// Which way a packet with this tuple goes in a connection opened by `original`, if it is one
    /// of its packets. One from an end to itself always goes the original way.
    #[inline]
    pub(super) fn way_in(&self, original: &Self) -> Option<Way> {
        if self == original {
            Some(Way::Original)
        } else if self.reversed() == *original {
            Some(Way::Reply)
        } else {
            None
        }
    }

    /// Keyed hash, the same for both directions.
    // PROTECTED: without it, an address that equals one of the secrets would cancel everything
    // hashed before it.
    #[inline]
    pub(super) fn hash(&self, secrets: &RapidSecrets) -> u64 {
        let src = (u128::from_be_bytes(self.src), self.src_port);
        let dst = (u128::from_be_bytes(self.dst), self.dst_port);
        let (low, high) = if src <= dst { (src, dst) } else { (dst, src) };
        let block = Canonical {
            low: low.0.to_be_bytes(),
            high: high.0.to_be_bytes(),
            low_port: low.1,
            high_port: high.1,
            vrf: self.vrf.get(),
            family: self.family,
            proto: u16::from(self.proto),
        };
        rapidhash_v3_inline::<true, true, true>(block.as_bytes(), secrets)
    }
}
