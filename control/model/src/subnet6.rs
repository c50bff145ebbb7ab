//! IPv6 subnets: whole blocks, without ranges.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use flowtable::entry::Prefix;
use ipnetwork::Ipv6Network;

use crate::refusal::{Reason, Refused};

const LENGTH_MAX: u8 = 127;

/// A network's IPv6 addresses. Shown in the one form RFC 5952 allows, with its host bits if it was
/// given with some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet6 {
    given: Ipv6Network,
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
        let (address, length) = text.split_once('/').ok_or(Reason::Subnet6Format)?;
        if !(1..=3).contains(&length.len()) || !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Reason::Subnet6Format);
        }
        let length = length.parse::<u32>().map_err(|_not_a_number| Reason::Subnet6Format)?;
        let address = address.parse().map_err(|_not_an_address| Reason::Subnet6Format)?;
        let fitting = u8::try_from(length).ok().filter(|l| (1..=LENGTH_MAX).contains(l));
        let fitting = fitting.ok_or(Reason::Subnet6Length { length })?;
        let given =
            Ipv6Network::new(address, fitting).map_err(|_too_long| Reason::Subnet6Format)?;
        Ok(Self { given })
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

    /// Whether `address` is in it.
    #[must_use]
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        self.given.contains(address)
    }

    /// Whether they share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network_address()) || other.contains(self.network_address())
    }

    /// The block, without host bits.
    #[must_use]
    pub fn prefix(&self) -> Option<Prefix> {
        Prefix::new(IpAddr::V6(self.network_address()), self.length()).ok()
    }

    /// Checks a gateway: an address of the block, but not its first.
    ///
    /// # Errors
    /// [`Refused`] when it is no address, outside the block, or the block's first address.
    pub fn parse_gateway(&self, field: &'static str, text: &str) -> Result<Ipv6Addr, Refused> {
        let refuse = |reason| Refused::new(field, text, reason);
        let gateway: Ipv6Addr =
            text.parse().map_err(|_not_an_address| refuse(Reason::BadIpv6Address))?;
        let first = self.network_address();
        if !self.contains(gateway) {
            return Err(refuse(Reason::GatewayOutside {
                gateway: gateway.to_string(),
                subnet: format!("{first}/{}", self.length()),
                host: gateway.to_bits().wrapping_sub(first.to_bits()).to_string(),
            }));
        }
        // A /127 joins two routers and has no address of all of them (RFC 6164).
        if self.length() < LENGTH_MAX && gateway == first {
            return Err(refuse(Reason::GatewayReserved));
        }
        Ok(gateway)
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.given.fmt(f)
    }
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
            ("2016::1-2016::9/64", format),
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
    }

    #[test]
    fn blocks_overlap_when_one_is_in_the_other() {
        assert!(!subnet("::/64").overlaps(&subnet("1::/64")));
        assert!(subnet("2001:2000::/32").overlaps(&subnet("2001:2000:1234:4422::/64")));
        assert!(subnet("2001:2000:1234:4422::/64").overlaps(&subnet("2001:2000::/32")));
    }
}
