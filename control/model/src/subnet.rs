//! IPv4 subnets. A subnet is a block, or a range of a block that several networks of a
//! tenant may share. Host 0 and the last address of the block are never handed out.

use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::range::AddressRange;
use crate::refusal::{Reason, Refused};

const LENGTH_MIN: u8 = 8;
const LENGTH_MAX: u8 = 31;

/// A network's addresses: `a.b.c.d/len`, or the range `a.b.c.d-e.f.g.h/len` of that block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    // Its address is as given: users see what they wrote, also when it has host bits.
    given: Ipv4Network,
    range: Option<AddressRange<Ipv4Addr>>,
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
        let range = AddressRange::new(first, last).filter(|range| whole.block().covers(*range));
        Ok(Self { range: Some(range.ok_or(Reason::SubnetFormat)?), ..whole })
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
    pub fn block(&self) -> AddressRange<Ipv4Addr> {
        AddressRange::between(self.given.network(), self.given.broadcast())
    }

    /// The addresses that are this network's: the range, or the block.
    #[must_use]
    pub fn range(&self) -> AddressRange<Ipv4Addr> {
        self.range.unwrap_or_else(|| self.block())
    }

    /// The addresses that can be handed out: the range less host 0 and the last of the block. A
    /// multicast block has none.
    #[must_use]
    pub fn hosts(&self) -> Option<AddressRange<Ipv4Addr>> {
        let block = self.block();
        if block.first().is_multicast() {
            return None;
        }
        let (first, last) = (block.first().to_bits() + 1, block.last().to_bits() - 1);
        AddressRange::new(first.into(), last.into())?.common(self.range())
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
                subnet: format!("{}/{}", block.first(), self.length()),
                host: gateway.to_bits().wrapping_sub(block.first().to_bits()).to_string(),
            }));
        }
        // A /31 has nothing between its ends.
        if self.length() < LENGTH_MAX && [block.first(), block.last()].contains(&gateway) {
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
    fn no_group_address_is_handed_out() {
        assert_eq!(subnet("224.1.1.0/24").hosts(), None);
        assert_eq!(
            subnet("223.255.255.0/24").hosts().unwrap().last().to_string(),
            "223.255.255.254"
        );
    }
}
