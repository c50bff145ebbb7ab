//! Identifiers that cannot be wrong: each is checked once, where it enters.

use std::fmt;
use std::str::FromStr;

/// A number outside the range of the identifier it was meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value} is not in {first}..={last}")]
pub struct OutOfRange {
    /// Name of the identifier.
    pub what: &'static str,
    /// The refused number.
    pub value: u64,
    /// Smallest accepted number.
    pub first: u64,
    /// Largest accepted number.
    pub last: u64,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $what:literal, $first:literal..=$last:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        impl $name {
            /// Smallest value.
            pub const MIN: Self = Self($first);
            /// Largest value.
            pub const MAX: Self = Self($last);

            /// Checks the range.
            ///
            /// # Errors
            /// [`OutOfRange`] when `value` is outside the range of this identifier.
            pub const fn new(value: u32) -> Result<Self, OutOfRange> {
                let (wide, first, last) = (value as u64, $first, $last);
                if wide < first || wide > last {
                    return Err(OutOfRange { what: $what, value: wide, first, last });
                }
                Ok(Self(value as $inner))
            }

            /// The plain number, host order.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A port of this node, which is also its VLAN tag on the trunk (12 bits, 0 and 4095 reserved).
    PortId, u16, "port", 1..=4094
);
id!(
    /// A tenant's routing instance. 24 bits.
    Vrf, u32, "vrf", 0..=0xff_ffff
);
id!(
    /// A bridge domain: one network. 24 bits.
    Bd, u32, "bridge domain", 0..=0xff_ffff
);
id!(
    /// An endpoint group. 0 is "in no group".
    Group, u32, "group", 0..=0xffff_ffff
);
id!(
    /// A VXLAN network identifier (RFC 7348, section 5). 24 bits, 0 is not handed out.
    Vni, u32, "VNI", 1..=0xff_ffff
);
id!(
    /// An IEEE 802.1Q VLAN identifier; 0 (priority tag) and 4095 are reserved.
    Vid, u16, "VLAN", 1..=4094
);
id!(
    /// A meter, given by the control plane.
    MeterId, u32, "meter", 1..=0xffff_ffff
);
id!(
    /// A differentiated services code point (RFC 2474, section 3). 6 bits.
    Dscp, u8, "DSCP", 0..=63
);

impl Group {
    /// The group of an address that belongs to no endpoint group.
    pub const NONE: Self = Self(0);
}

/// A rule's identity in counters, traces and samples; given by the control plane, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u64);

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An Ethernet address, bytes in the order they are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// The address every distributed gateway answers with (Contiv's, `interfaces.md`).
    pub const GATEWAY: Self = Self([0x00, 0x00, 0x11, 0x11, 0x11, 0x11]);

    /// Group bit set: multicast or broadcast.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ":" };
            write!(f, "{separator}{byte:02x}")?;
        }
        Ok(())
    }
}

/// Text that is not six hexadecimal bytes joined by colons.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a MAC address; write it like 02:00:0a:01:01:05")]
pub struct BadMac(pub String);

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part =
                parts.next().filter(|p| p.len() == 2 && p.bytes().all(|c| c.is_ascii_hexdigit()));
            let parsed = part.and_then(|p| u8::from_str_radix(p, 16).ok());
            *byte = parsed.ok_or_else(|| BadMac(text.to_owned()))?;
        }
        if parts.next().is_some() { Err(BadMac(text.to_owned())) } else { Ok(Self(bytes)) }
    }
}
