//! IPv6 subnets. A subnet is a block, or a range of a block that several networks of a tenant may
//! share.

use std::fmt;
use std::net::Ipv6Addr;

use ipnetwork::Ipv6Network;

use crate::range::AddressRange;
use crate::refusal::{Reason, Refused};

const LENGTH_MAX: u8 = 127;
/// The lowest address a host can have: `::` is none and `::1` its own (RFC 4291, sections 2.5.2 and
/// 2.5.3).
const HOST_MIN: u128 = 2;
/// The last before multicast (RFC 4291, section 2.7).
const HOST_MAX: u128 = (0xff << 120) - 1;

/// A network's IPv6 addresses: `address/len`, or the range `first-last/len` of that block. Shown in
/// the one form RFC 5952 allows, with its host bits if it was given with some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet6 {
    given: Ipv6Network,
    range: Option<AddressRange<Ipv6Addr>>,
}

impl Subnet6 {
    /// Checks `address/1..127`.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's texts for subnets.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
        Self::read(text).map_err(|reason| Refused::new(field, text, reason))
    }

    fn read(text: &str) -> Result<Self, Reason> {
        let (addresses, length) = text.split_once('/').ok_or(Reason::Subnet6Format)?;
        if !(1..=3).contains(&length.len()) || !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Reason::Subnet6Format);
        }
        let length = length.parse::<u32>().map_err(|_not_a_number| Reason::Subnet6Format)?;
        let (first, last) = match addresses.split_once('-') {
            Some((first, last)) => (read_address(first)?, Some(read_address(last)?)),
            None => (read_address(addresses)?, None),
        };
        let fitting = u8::try_from(length).ok().filter(|l| (1..=LENGTH_MAX).contains(l));
        let fitting = fitting.ok_or(Reason::Subnet6Length { length })?;
        let given = Ipv6Network::new(first, fitting).map_err(|_too_long| Reason::Subnet6Format)?;
        let whole = Self { given, range: None };
        let Some(last) = last else { return Ok(whole) };
        let range = AddressRange::new(first, last).filter(|range| whole.block().covers(*range));
        Ok(Self { range: Some(range.ok_or(Reason::Subnet6Format)?), ..whole })
    }

    /// The prefix length, 1 to 127.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.given.prefix()
    }

    /// The block's first address, which is every router's (RFC 4291, section 2.6.1).
    #[must_use]
    pub fn network_address(&self) -> Ipv6Addr {
        self.given.network()
    }

    /// Every address of the block, also outside the range.
    #[must_use]
    pub fn block(&self) -> AddressRange<Ipv6Addr> {
        let host_bits = u128::MAX >> self.length();
        let last = self.network_address().to_bits() | host_bits;
        AddressRange::between(self.network_address(), last.into())
    }

    /// The addresses that are this network's: the range, or the block.
    #[must_use]
    pub fn range(&self) -> AddressRange<Ipv6Addr> {
        self.range.unwrap_or_else(|| self.block())
    }

    /// The addresses that can be handed out: the range less the first of the block. Multicast and
    /// link-local blocks have none.
    #[must_use]
    pub fn hosts(&self) -> Option<AddressRange<Ipv6Addr>> {
        let block = self.block();
        if block.first().is_unicast_link_local() && block.last().is_unicast_link_local() {
            return None;
        }
        // A /127 joins two routers and has no address of all of them (RFC 6164).
        let every_routers = u128::from(self.length() < LENGTH_MAX);
        let first = block.first().to_bits() + every_routers;
        let usable = AddressRange::new(HOST_MIN.into(), HOST_MAX.into())?;
        let hosts = AddressRange::new(first.into(), block.last())?;
        usable.common(hosts)?.common(self.range())
    }

    /// Checks a gateway: a unicast address of the block, but not its first.
    ///
    /// # Errors
    /// [`Refused`] when it is no address, outside the block, the block's first address or nobody's.
    pub fn parse_gateway(&self, field: &'static str, text: &str) -> Result<Ipv6Addr, Refused> {
        let refuse = |reason| Refused::new(field, text, reason);
        let gateway: Ipv6Addr =
            text.parse().map_err(|_not_an_address| refuse(Reason::BadIpv6Address))?;
        let first = self.network_address();
        if !self.block().contains(gateway) {
            return Err(refuse(Reason::GatewayOutside {
                gateway: gateway.to_string(),
                subnet: format!("{first}/{}", self.length()),
                host: gateway.to_bits().wrapping_sub(first.to_bits()).to_string(),
            }));
        }
        let nobodys = gateway.is_multicast() || gateway.is_loopback();
        if nobodys || self.length() < LENGTH_MAX && gateway == first {
            return Err(refuse(Reason::GatewayReserved));
        }
        Ok(gateway)
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.range {
            Some(range) => write!(f, "{range}/{}", self.length()),
            None => self.given.fmt(f),
        }
    }
}

fn read_address(text: &str) -> Result<Ipv6Addr, Reason> {
    text.parse().map_err(|_not_an_address| Reason::Subnet6Format)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet6 {
        Subnet6::parse("ipv6Subnet", text).unwrap()
    }

    #[test]
    fn every_length_from_1_to_127_is_accepted() {
        for length in 1..=127u8 {
            assert_eq!(subnet(&format!("2016::/{length}")).length(), length);
        }
        assert_eq!(subnet("2016:0617::/120").to_string(), "2016:617::/120");
        let format = "Network subnet format not valid";
        for (bad, text) in [
            ("2016:0617::/128", "subnet length 128 not supported"),
            ("2016::/0", "subnet length 0 not supported"),
            ("2016::", format),
            ("2016::/", format),
            ("2016::/+64", format),
            ("2016::9-2016::1/64", format),
            ("2016::1-2017::1/64", format),
            ("2016::1-9/64", format),
            ("2016::1-2016::5-2016::9/64", format),
            ("10.1.1.0/24", format),
            ("2016:::/64", format),
            ("fe80::1%eth0/64", format),
            ("", format),
        ] {
            let refused = Subnet6::parse("ipv6Subnet", bad).unwrap_err();
            assert_eq!(
                (refused.field, refused.to_string().as_str()),
                ("ipv6Subnet", text),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_gateway_is_an_address_of_the_block_and_not_every_routers() {
        let net = subnet("2016:0617::/100");
        assert_eq!(
            net.parse_gateway("ipv6Gateway", "2016:0617::254").unwrap(),
            "2016:617::254".parse::<Ipv6Addr>().unwrap()
        );
        for (bad, text) in [
            (
                "2016:618::1",
                "hostIP 2016:618::1 is exceeding beyond subnet 2016:617::/100, hostID 79228162514264337593543950337",
            ),
            ("2016:617::", "the gateway is the subnet's network or broadcast address"),
            ("10.1.1.1", "not an IPv6 address"),
        ] {
            assert_eq!(net.parse_gateway("ipv6Gateway", bad).unwrap_err().to_string(), text);
        }
        assert!(subnet("2016::/127").parse_gateway("ipv6Gateway", "2016::").is_ok());
        for (block, nobodys) in [("8000::/1", "ff02::1"), ("::/64", "::1")] {
            let refused = subnet(block).parse_gateway("ipv6Gateway", nobodys).unwrap_err();
            assert_eq!(refused.reason, Reason::GatewayReserved);
        }
    }

    #[test]
    fn what_is_handed_out_is_unicast_and_not_every_routers() {
        for (given, hosts) in [
            ("2016::/120", "2016::1-2016::ff"),
            ("2016::1:10-2016::1:20/64", "2016::1:10-2016::1:20"),
            ("2016::-2016::20/64", "2016::1-2016::20"),
            ("2016::4/127", "2016::4-2016::5"),
            ("::/64", "::2-::ffff:ffff:ffff:ffff"),
            ("8000::/1", "8000::1-feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(subnet(given).hosts().unwrap().to_string(), hosts, "{given}");
            assert_eq!(subnet(given).to_string(), given);
        }
        for none in ["ffff:ffff:ffff::/48", "fe80::/64", "::/127"] {
            assert_eq!(subnet(none).hosts(), None, "{none}");
        }
    }
}
