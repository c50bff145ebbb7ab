//! Sets of named bits as OVS writes them: `+syn-ack` asks for SYN to be set and ACK not to be, and
//! says nothing of the rest. Used for TCP flags, connection states and the flags of a key that OVS
//! has no field for.

use std::fmt;

use crate::key::flag;

/// Bits of a byte that are looked at, and the values they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitMatch {
    /// The bits as they must be; none outside `mask`.
    pub value: u8,
    /// The bits that are looked at.
    pub mask: u8,
}

impl BitMatch {
    /// Whether `bits` are as asked for.
    #[must_use]
    pub const fn matches(self, bits: u8) -> bool {
        bits & self.mask == self.value
    }
}

/// The names of a byte's bits.
pub(super) type Names = &'static [(&'static str, u8)];

/// Byte 13 of the TCP header (RFC 9293, section 3.1; RFC 3168 for `ece` and `cwr`).
pub(super) const TCP_FLAGS: Names = &[
    ("fin", 0x01),
    ("syn", 0x02),
    ("rst", 0x04),
    ("psh", 0x08),
    ("ack", 0x10),
    ("urg", 0x20),
    ("ece", 0x40),
    ("cwr", 0x80),
];

/// [`flag`]: those that `nw_frag`, `nw_ttl` and `arp_op` can't say in every combination.
pub(super) const KEY_FLAGS: Names = &[
    ("frag_first", flag::FRAG_FIRST),
    ("frag_later", flag::FRAG_LATER),
    ("ttl_low", flag::TTL_LOW),
    ("ip_options", flag::IP_OPTIONS),
    ("arp_reply", flag::ARP_REPLY),
    ("foreign_mac", flag::FOREIGN_MAC),
];

/// Prints `+name-name` for the bits looked at.
pub(super) struct Signed(pub(super) Names, pub(super) BitMatch);

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(names, bits) = self;
        for (name, bit) in names.iter().filter(|(_, bit)| bits.mask & bit != 0) {
            let sign = if bits.value & bit != 0 { '+' } else { '-' };
            write!(f, "{sign}{name}")?;
        }
        Ok(())
    }
}

/// Reads `+name-name`; `None`: an unknown name, no sign, or a bit that is both set and not set.
pub(super) fn read_signed(names: Names, text: &str) -> Option<BitMatch> {
    let mut bits = BitMatch { value: 0, mask: 0 };
    let mut rest = text;
    while !rest.is_empty() {
        let set = match rest.as_bytes()[0] {
            b'+' => true,
            b'-' => false,
            _ => return None,
        };
        let name_end = rest[1..].find(['+', '-']).map_or(rest.len(), |at| at + 1);
        let (_, bit) = *names.iter().find(|(name, _)| *name == &rest[1..name_end])?;
        let value = if set { bit } else { 0 };
        if bits.mask & bit != 0 && bits.value & bit != value {
            return None;
        }
        bits = BitMatch { value: bits.value | value, mask: bits.mask | bit };
        rest = &rest[name_end..];
    }
    (bits.mask != 0).then_some(bits)
}

/// Reads `value` or `value/mask` in numbers, as ovs-fields(7) allows for flags; `None`: bits beyond
/// the byte, bits of the value outside the mask, or nothing looked at.
pub(super) fn read_numbers(text: &str) -> Option<BitMatch> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (value, mask) = match text.split_once('/') {
        None => (number(text)?, u8::MAX),
        Some((value, mask)) => (number(value)?, number(mask)?),
    };
    (value & !mask == 0 && mask != 0).then_some(BitMatch { value, mask })
}
