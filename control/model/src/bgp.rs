//! A host's BGP settings: checked and kept. No node speaks BGP in this version.

use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::name::HostName;
use crate::refusal::{Reason, Refused};

/// A number of an autonomous system, 1 to 4294967295 (RFC 6793).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsNumber(u32);

impl AsNumber {
    /// Checks a decimal number.
    ///
    /// # Errors
    /// [`Refused`] for anything else; 0 is reserved (RFC 7607).
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse().ok().filter(|number| digits && *number != 0);
        number.map(Self).ok_or_else(|| Refused::new(field, text, Reason::BadAsNumber))
    }
}

impl fmt::Display for AsNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The router a host peers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbor {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its autonomous system.
    pub asn: AsNumber,
}

/// The settings, as asked for and as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bgp {
    /// The host.
    pub host: HostName,
    /// The host's own address and the block it is in, as given.
    pub router: Ipv4Network,
    /// The host's autonomous system.
    pub asn: AsNumber,
    /// Whom it peers with.
    pub neighbor: Option<Neighbor>,
}

impl Bgp {
    /// Checks `a.b.c.d/1..32`.
    ///
    /// # Errors
    /// [`Refused`] for anything else.
    pub fn parse_router(field: &'static str, text: &str) -> Result<Ipv4Network, Refused> {
        let refuse = || Refused::new(field, text, Reason::BadPrefix);
        let (address, length) = text.split_once('/').ok_or_else(refuse)?;
        let address = address.parse().map_err(|_not_an_address| refuse())?;
        let digits = length.bytes().all(|b| b.is_ascii_digit());
        let length = length.parse().ok().filter(|length| digits && (1..=32).contains(length));
        Ipv4Network::new(address, length.ok_or_else(refuse)?).map_err(|_too_long| refuse())
    }

    /// Checks an address with its AS number: both or, empty, none.
    ///
    /// # Errors
    /// [`Refused`] for one without the other, and for what is neither.
    pub fn parse_neighbor(address: &str, asn: &str) -> Result<Option<Neighbor>, Refused> {
        match (address, asn) {
            ("", "") => return Ok(None),
            ("", _) => return Err(Refused::new("neighbor", "", Reason::HalfNeighbor)),
            (_, "") => return Err(Refused::new("neighbor-as", "", Reason::HalfNeighbor)),
            (_, _) => {}
        }
        let bad = || Refused::new("neighbor", address, Reason::BadAddress);
        Ok(Some(Neighbor {
            address: address.parse().map_err(|_not_an_address| bad())?,
            asn: AsNumber::parse("neighbor-as", asn)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_numbers_are_parsed_as_such() {
        assert_eq!(
            Bgp::parse_router("routerip", "65.1.1.1/24").unwrap().to_string(),
            "65.1.1.1/24"
        );
        for bad in ["", "65.1.1.1", "65.1.1.1/0", "65.1.1.1/33", "65.1.1.1-5/24", "::1/64", "x/24"]
        {
            let refused = Bgp::parse_router("routerip", bad).unwrap_err();
            assert_eq!((refused.field, refused.reason), ("routerip", Reason::BadPrefix), "{bad}");
        }
        assert_eq!(AsNumber::parse("as", "4294967295").unwrap().to_string(), "4294967295");
        for bad in ["", "0", "4294967296", "-1", "+1", "1.10", "AS65001"] {
            assert_eq!(
                AsNumber::parse("as", bad).unwrap_err().reason,
                Reason::BadAsNumber,
                "{bad}"
            );
        }
        assert_eq!(Bgp::parse_neighbor("", ""), Ok(None));
        let peer = Bgp::parse_neighbor("16.1.2.3", "65002").unwrap().unwrap();
        assert_eq!((peer.address.to_string(), peer.asn), ("16.1.2.3".into(), AsNumber(65002)));
        for (address, asn, field) in
            [("16.1.2.3", "", "neighbor-as"), ("", "65002", "neighbor"), ("::1", "1", "neighbor")]
        {
            assert_eq!(Bgp::parse_neighbor(address, asn).unwrap_err().field, field);
        }
    }
}
