//! Addresses of either family as numbers, and ranges of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use flowtable::entry::Prefix;

use crate::refusal::{Reason, Refused};

/// An IPv4 or an IPv6 address: what pools and ranges are made of. A pool of one family can't hold an
/// address of the other.
pub trait Address: Copy + Ord + fmt::Debug + fmt::Display + FromStr + Into<IpAddr> {
    /// Bits of an address.
    const BITS: u8;

    /// Its place among all addresses of its family.
    fn number(self) -> u128;

    /// The address at a place, of which the upper bits beyond [`Self::BITS`] are 0.
    fn at(number: u128) -> Self;
}

impl Address for Ipv4Addr {
    const BITS: u8 = 32;

    fn number(self) -> u128 {
        self.to_bits().into()
    }

    fn at(number: u128) -> Self {
        Self::from_bits(number as u32)
    }
}

impl Address for Ipv6Addr {
    const BITS: u8 = 128;

    fn number(self) -> u128 {
        self.to_bits()
    }

    fn at(number: u128) -> Self {
        Self::from_bits(number)
    }
}

/// Addresses of one family, both ends included, first <= last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange<A> {
    first: A,
    last: A,
}

impl AddressRange<Ipv4Addr> {
    /// Checks a group's pool: one address or `a-b`.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's texts for pools.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
        if text.contains(':') {
            return Err(Refused::new(field, text, Reason::PoolIpv6));
        }
        Self::read(field, text)
    }
}

impl AddressRange<Ipv6Addr> {
    /// Checks a group's IPv6 pool: one address or `a-b`.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's text for pools.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
        Self::read(field, text)
    }
}

impl<A: Address> AddressRange<A> {
    fn read(field: &'static str, text: &str) -> Result<Self, Refused> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let ends = first.parse().ok().zip(last.parse().ok());
        let range = ends.and_then(|(first, last)| Self::new(first, last));
        let bad = || Refused::new(field, text, Reason::PoolFormat { pool: text.to_owned() });
        range.ok_or_else(bad)
    }

    /// `None` when it would have no address.
    #[must_use]
    pub fn new(first: A, last: A) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// From one address to another, whichever is the lower.
    #[must_use]
    pub(crate) fn between(one: A, other: A) -> Self {
        Self { first: one.min(other), last: one.max(other) }
    }

    /// The first address.
    #[must_use]
    pub const fn first(self) -> A {
        self.first
    }

    /// The last address.
    #[must_use]
    pub const fn last(self) -> A {
        self.last
    }

    /// Whether `address` is in it.
    #[must_use]
    pub fn contains(self, address: A) -> bool {
        self.first <= address && address <= self.last
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.contains(other.first) && self.contains(other.last)
    }

    /// Whether they share an address.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The addresses that are in both.
    #[must_use]
    pub fn common(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// The fewest blocks that hold exactly these addresses.
    #[must_use]
    pub fn prefixes(self) -> Vec<Prefix> {
        let (mut next, end) = (self.first.number(), self.last.number());
        let mut blocks = Vec::new();
        loop {
            let bits = u32::from(A::BITS);
            let aligned = next.trailing_zeros().min(bits);
            // As many as fit; all of IPv6 is one more than there are numbers.
            let left = end - next;
            let fitting = left.checked_add(1).map_or(u128::BITS, u128::ilog2);
            let free_bits = aligned.min(fitting);
            blocks.extend(Prefix::new(A::at(next).into(), (bits - free_bits) as u8));
            let size = 1u128.checked_shl(free_bits);
            match size.filter(|size| *size <= left) {
                Some(size) => next += size,
                None => return blocks,
            }
        }
    }
}

impl<A: Address> fmt::Display for AddressRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Range4 = AddressRange<Ipv4Addr>;
    type Range6 = AddressRange<Ipv6Addr>;

    #[test]
    fn pools_are_one_address_or_a_range() {
        assert_eq!(Range4::parse("ipPool", "10.1.1.1").unwrap().to_string(), "10.1.1.1-10.1.1.1");
        for bad in ["10.3.1.110-10.3.1.320", "10.3.2.0/24", "10.1.1.2-10.1.1.1", "x", ""] {
            let refused = Range4::parse("ipPool", bad).unwrap_err();
            assert_eq!(refused.to_string(), format!("invalid ip-pool {bad}"));
        }
        let v6 = Range4::parse("ipPool", "2016::1-2016::9").unwrap_err();
        assert_eq!(v6.to_string(), "ipv6 address pool is not supported for Endpoint Groups");
        let range = Range6::parse("ipv6Pool", "2016:0::1-2016::9").unwrap();
        assert_eq!(range.to_string(), "2016::1-2016::9");
        for bad in ["10.1.1.1", "2016::9-2016::1", "2016::/64", "::1-10.1.1.1", "fe80::1%eth0"] {
            let refused = Range6::parse("ipv6Pool", bad).unwrap_err();
            assert_eq!(refused.to_string(), format!("invalid ip-pool {bad}"));
        }
    }

    /// Numbers of all addresses of the blocks of a range, which must be few.
    fn members<A: Address>(range: AddressRange<A>) -> Vec<u128> {
        let mut members = Vec::new();
        for block in range.prefixes() {
            let start = match block.address() {
                IpAddr::V4(ip) => ip.number(),
                IpAddr::V6(ip) => ip.number(),
            };
            let count = 1u128 << (A::BITS - block.length());
            members.extend((0..count).map(|i| start + i));
        }
        members
    }

    proptest! {
        #[test]
        fn a_range_is_split_into_exactly_its_addresses(
            base in any::<u32>(), base6 in any::<u128>(), size in 0u32..600
        ) {
            let first = base.min(u32::MAX - size);
            let range = Range4::new(first.into(), (first + size).into()).unwrap();
            let plain: Vec<u128> = (first..=first + size).map(u128::from).collect();
            prop_assert_eq!(members(range), plain);
            let first = base6.min(u128::MAX - u128::from(size));
            let last = first + u128::from(size);
            let range = Range6::new(first.into(), last.into()).unwrap();
            prop_assert_eq!(members(range), (first..=last).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_whole_address_space_is_one_block() {
        let all = Range4::new(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST).unwrap();
        assert_eq!(all.prefixes().len(), 1);
        let all = Range6::new(Ipv6Addr::UNSPECIFIED, u128::MAX.into()).unwrap().prefixes();
        assert_eq!((all.len(), all[0].length()), (1, 0));
        let almost = Range6::new(1.into(), u128::MAX.into()).unwrap().prefixes();
        assert_eq!((almost.len(), almost[127].length()), (128, 1));
    }
}
