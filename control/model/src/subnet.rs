//! IPv4 subnets and ranges. A subnet is a block, or a range of a block that several networks of a
//! tenant may share. Host 0 and the last address of the block are never handed out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use flowtable::entry::Prefix;
use ipnetwork::Ipv4Network;

use crate::refusal::{Reason, Refused};

const LENGTH_MIN: u8 = 8;
const LENGTH_MAX: u8 = 31;

/// IPv4 addresses, both ends included, first <= last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: Ipv4Addr,
    last: Ipv4Addr,
}

impl AddressRange {
    /// Checks a group's pool: one address or `a-b`.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's texts for pools.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
        let refuse = |reason| Refused::new(field, text, reason);
        if text.contains(':') {
            return Err(refuse(Reason::PoolIpv6));
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(refuse(Reason::PoolFormat { pool: text.to_owned() })),
        }
    }

    /// The first address.
    #[must_use]
    pub const fn first(self) -> Ipv4Addr {
        self.first
    }

    /// The last address.
    #[must_use]
    pub const fn last(self) -> Ipv4Addr {
        self.last
    }

    /// Whether `address` is in it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
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

    /// The fewest blocks that hold exactly these addresses.
    #[must_use]
    pub fn prefixes(self) -> Vec<Prefix> {
        // One more than an address, so that the end of the space needs no special case.
        let (mut next, end) = (u64::from(self.first.to_bits()), u64::from(self.last.to_bits()));
        let mut blocks = Vec::new();
        while next <= end {
            let aligned = (next as u32).trailing_zeros().min(32);
            let fitting = (end - next + 1).ilog2();
            let free_bits = aligned.min(fitting);
            let address = IpAddr::V4(Ipv4Addr::from_bits(next as u32));
            blocks.extend(Prefix::new(address, 32 - free_bits as u8));
            next += 1 << free_bits;
        }
        blocks
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A network's addresses: `a.b.c.d/len`, or the range `a.b.c.d-e.f.g.h/len` of that block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    // Its address is as given: users see what they wrote, also when it has host bits.
    given: Ipv4Network,
    range: Option<AddressRange>,
}

impl Subnet {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's texts for subnets.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
        Self::read(text).map_err(|reason| Refused::new(field, text, reason))
    }

    fn read(text: &str) -> Result<Self, Reason> {
        let (addresses, length) = text.split_once('/').ok_or(Reason::SubnetFormat)?;
        if !(1..=3).contains(&length.len()) || !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Reason::SubnetFormat);
        }
        let length = length.parse::<u32>().map_err(|_not_a_number| Reason::SubnetFormat)?;
        let (first, last) = match addresses.split_once('-') {
            Some((first, last)) => (read_address(first)?, Some(read_address(last)?)),
            None => (read_address(addresses)?, None),
        };
        let length = u8::try_from(length)
            .ok()
            .filter(|l| (LENGTH_MIN..=LENGTH_MAX).contains(l))
            .ok_or(Reason::SubnetLength { length })?;
        let given = Ipv4Network::new(first, length).map_err(|_too_long| Reason::SubnetFormat)?;
        let whole = Self { given, range: None };
        let Some(last) = last else { return Ok(whole) };
        if first > last || !whole.block().contains(last) {
            return Err(Reason::SubnetFormat);
        }
        Ok(Self { range: Some(AddressRange { first, last }), ..whole })
    }

    /// The prefix length, 8 to 31.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.given.prefix()
    }

    /// The block's first address.
    #[must_use]
    pub fn network_address(&self) -> Ipv4Addr {
        self.given.network()
    }

    /// Every address of the block, also outside the range.
    #[must_use]
    pub fn block(&self) -> AddressRange {
        AddressRange { first: self.given.network(), last: self.given.broadcast() }
    }

    /// The addresses that are this network's: the range, or the block.
    #[must_use]
    pub fn range(&self) -> AddressRange {
        self.range.unwrap_or_else(|| self.block())
    }

    /// The addresses that can be handed out: the range less host 0 and the last of the block.
    #[must_use]
    pub fn hosts(&self) -> Option<AddressRange> {
        let (block, range) = (self.block(), self.range());
        let first = range.first.to_bits().max(block.first.to_bits() + 1);
        let last = range.last.to_bits().min(block.last.to_bits() - 1);
        (first <= last).then(|| AddressRange {
            first: Ipv4Addr::from_bits(first),
            last: Ipv4Addr::from_bits(last),
        })
    }

    /// Checks a gateway: a host address of the block, in or outside the range.
    ///
    /// # Errors
    /// [`Refused`] when it is no address, outside the block, or the block's first or last address.
    pub fn parse_gateway(&self, field: &'static str, text: &str) -> Result<Ipv4Addr, Refused> {
        let refuse = |reason| Refused::new(field, text, reason);
        let gateway: Ipv4Addr =
            text.parse().map_err(|_not_an_address| refuse(Reason::BadAddress))?;
        let block = self.block();
        if !block.contains(gateway) {
            return Err(refuse(Reason::GatewayOutside {
                gateway: gateway.to_string(),
                subnet: format!("{}/{}", block.first, self.length()),
                host: gateway.to_bits().wrapping_sub(block.first.to_bits()).to_string(),
            }));
        }
        // A /31 has nothing between its ends.
        if self.length() < LENGTH_MAX && (gateway == block.first || gateway == block.last) {
            return Err(refuse(Reason::GatewayReserved));
        }
        Ok(gateway)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.range {
            Some(range) => write!(f, "{range}/{}", self.length()),
            None => self.given.fmt(f),
        }
    }
}

fn read_address(text: &str) -> Result<Ipv4Addr, Reason> {
    text.parse().map_err(|_not_an_address| Reason::SubnetFormat)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet(text: &str) -> Subnet {
        Subnet::parse("subnet", text).unwrap()
    }

    #[test]
    fn contivs_good_subnets_are_accepted_and_shown_as_given() {
        let good = [
            "10.1.1.10-10.1.1.20/24",
            "10.1.1.10-10.1.5.254/16",
            "10.1.1.1/24",
            "10.1.1.1/16",
            "11.2.1.10-11.2.1.100/24",
            "10.123.16.0/26",
            "10.123.16.66/26",
            "10.123.16.10-10.123.16.100/22",
            "10.1.1.0/31",
            "10.100.100.194-10.100.100.222/27",
        ];
        for text in good {
            assert_eq!(subnet(text).to_string(), text);
        }
    }

    #[test]
    fn contivs_bad_subnets_are_refused_with_its_texts() {
        let format = "Network subnet format not valid";
        let bad = [
            ("10.1.1.10-20/24", format),
            ("10.1.1.10-10.1.20/24", format),
            ("10.1.1.10-10.1.1.1/24", format),
            ("10.1.1.10-10.1.2.30/24", format),
            ("10.1.1.10-10.2.1.30/16", format),
            ("10.1.1.10-10.1.1.1.30/24", format),
            ("10.1.1/24", format),
            ("10.1.1.256/24", format),
            ("10.1.1.1-70/26", format),
            ("10.1.1.65-70/26", format),
            ("10.123.16.10-10.123.16.100/26", format),
            ("10.123.16.60-10.123.16.100/26", format),
            ("10.1.1.1/32", "subnet length 32 not supported"),
            ("10.1.1.0/1", "subnet length 1 not supported"),
            ("10.1.1.0/33", "subnet length 33 not supported"),
            ("10.1.1.0/0", "subnet length 0 not supported"),
            ("10.1.1.0", format),
            ("", format),
            ("10.1.1.0/", format),
            ("10.1.1.0/+8", format),
            ("10.1.1.0/9999999999", format),
            ("2016:0617::/120", format),
        ];
        for (text, reason) in bad {
            let refused = Subnet::parse("subnet", text).unwrap_err();
            assert_eq!((refused.field, refused.to_string().as_str()), ("subnet", reason), "{text}");
        }
    }

    #[test]
    fn the_subnet_address_drops_the_host_bits() {
        assert_eq!(subnet("10.1.1.10/16").network_address(), Ipv4Addr::new(10, 1, 0, 0));
        assert_eq!(subnet("10.1.1.100/26").network_address(), Ipv4Addr::new(10, 1, 1, 64));
    }

    #[test]
    fn a_gateway_is_a_host_address_of_the_block() {
        let range = subnet("10.1.1.10-10.1.1.20/24");
        assert_eq!(
            range.parse_gateway("gateway", "10.1.1.254").unwrap(),
            Ipv4Addr::new(10, 1, 1, 254)
        );
        let outside = subnet("10.1.1.1/24").parse_gateway("gateway", "10.1.2.254").unwrap_err();
        assert_eq!(
            outside.to_string(),
            "hostIP 10.1.2.254 is exceeding beyond subnet 10.1.1.0/24, hostID 510"
        );
        assert_eq!(outside.field, "gateway");
        let below =
            subnet("10.1.1.65-10.1.1.70/26").parse_gateway("gateway", "10.1.1.1").unwrap_err();
        assert!(matches!(below.reason, Reason::GatewayOutside { .. }));
        for end in ["10.1.1.0", "10.1.1.255"] {
            let refused = subnet("10.1.1.1/24").parse_gateway("gateway", end).unwrap_err();
            assert_eq!(refused.reason, Reason::GatewayReserved);
        }
        assert_eq!(range.parse_gateway("gateway", "x").unwrap_err().reason, Reason::BadAddress);
    }

    #[test]
    fn pools_are_one_address_or_a_range() {
        assert_eq!(
            AddressRange::parse("ipPool", "10.1.1.1").unwrap().to_string(),
            "10.1.1.1-10.1.1.1"
        );
        for bad in ["10.3.1.110-10.3.1.320", "10.3.2.0/24", "10.1.1.2-10.1.1.1", "x", ""] {
            let refused = AddressRange::parse("ipPool", bad).unwrap_err();
            assert_eq!(refused.to_string(), format!("invalid ip-pool {bad}"));
        }
        let v6 = AddressRange::parse("ipPool", "2016::1-2016::9").unwrap_err();
        assert_eq!(v6.to_string(), "ipv6 address pool is not supported for Endpoint Groups");
    }

    proptest! {
        #[test]
        fn a_range_is_split_into_exactly_its_addresses(base in any::<u32>(), size in 0u32..600) {
            let first = base.min(u32::MAX - size);
            let range = AddressRange { first: first.into(), last: (first + size).into() };
            let mut members = Vec::new();
            for block in range.prefixes() {
                let IpAddr::V4(start) = block.address() else { panic!("IPv4 in, IPv4 out") };
                let count = 1u64 << (32 - block.length());
                members.extend((0..count).map(|i| (u64::from(start.to_bits()) + i) as u32));
            }
            prop_assert_eq!(members, (first..=first + size).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_whole_address_space_is_one_block() {
        let all = AddressRange { first: Ipv4Addr::UNSPECIFIED, last: Ipv4Addr::BROADCAST };
        assert_eq!(all.prefixes().len(), 1);
    }
}
