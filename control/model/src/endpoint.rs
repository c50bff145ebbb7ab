//! Endpoints, the nodes they live on, and addresses reserved before there is an endpoint.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowtable::ids::Mac;

use crate::key::{LeaseKey, NetworkKey};
use crate::name::{EndpointId, GroupName, Label, NetworkName, NodeName, Owner, TenantName};
use crate::pool::Claim;
use crate::refusal::{Reason, Refused};
use crate::service::ContainerLabel;

/// Where an endpoint is, and what its runtime calls it. All but node and labels is only for people to
/// read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The node.
    pub node: NodeName,
    /// The interface on the node.
    pub intf_name: Label,
    /// The container's id.
    pub container_id: Label,
    /// The container's name.
    pub container_name: Label,
    /// What services select by.
    pub labels: BTreeSet<ContainerLabel>,
}

/// An endpoint as a node asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Its identity.
    pub id: EndpointId,
    /// Its tenant and network.
    pub network: NetworkKey,
    /// Its group, in the same tenant.
    pub group: Option<GroupName>,
    /// The wanted addresses.
    pub wanted: WantedAddresses,
    /// The wanted MAC; `None`: [`mac_for`].
    pub mac: Option<Mac>,
    /// Where it is.
    pub host: Host,
    /// Whether a container has the wanted addresses already, and its node registers it again.
    pub running: bool,
}

/// The addresses an endpoint asks for; `None`: allocate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WantedAddresses {
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address, which it has if its network hands any out.
    pub v6: Option<Ipv6Addr>,
}

impl WantedAddresses {
    /// Checks at most one address of each family.
    ///
    /// # Errors
    /// [`Refused`] for more, and for text that is no address.
    pub fn parse(field: &'static str, texts: &[String]) -> Result<Self, Refused> {
        let mut wanted = Self::default();
        for text in texts {
            let address = text.parse();
            let address =
                address.map_err(|_not_one| Refused::new(field, text, Reason::BadIpAddress))?;
            let second = match address {
                IpAddr::V4(address) => wanted.v4.replace(address).is_some(),
                IpAddr::V6(address) => wanted.v6.replace(address).is_some(),
            };
            if second {
                return Err(Refused::new(field, text, Reason::TooManyAddresses));
            }
        }
        Ok(wanted)
    }
}

impl EndpointSpec {
    /// Checks a wanted MAC: unicast, not zero, not the gateway's; empty is `None`.
    ///
    /// # Errors
    /// [`Refused`] for anything else.
    pub fn parse_mac(field: &'static str, text: &str) -> Result<Option<Mac>, Refused> {
        if text.is_empty() {
            return Ok(None);
        }
        let refuse = || Refused::new(field, text, Reason::BadMac);
        let mac: Mac = text.parse().map_err(|_bad_mac| refuse())?;
        if mac.is_multicast() || mac == Mac::default() || mac == Mac::GATEWAY {
            return Err(refuse());
        }
        Ok(Some(mac))
    }
}

/// A stored endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its identity.
    pub id: EndpointId,
    /// Its tenant and network.
    pub network: NetworkKey,
    /// Its group, in the same tenant.
    pub group: Option<GroupName>,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, if its network hands any out.
    pub address6: Option<Ipv6Addr>,
    /// Its MAC.
    pub mac: Mac,
    /// Where it is.
    pub host: Host,
}

impl Endpoint {
    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(IpAddr::V4(self.address)), self.address6.map(IpAddr::V6)].into_iter().flatten()
    }

    /// Whether `address` is one of its own.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses().any(|own| own == address)
    }
}

/// The MAC of a container: a locally administered unicast address made from its tenant and address.
///
/// The tenant's hash is mixed into every byte, so that one address in two tenants has two MACs; the
/// address itself enters by exclusive or, so that two addresses of one tenant never share one.
#[must_use]
pub fn mac_for(tenant: &TenantName, address: Ipv4Addr) -> Mac {
    let hash = fnv1a(tenant.as_str().as_bytes());
    let [_, _, h0, h1, h2, h3, h4, h5] = hash.to_be_bytes();
    let [a, b, c, d] = address.octets();
    // Bit 1 of the first byte: locally administered. Bit 0: multicast (IEEE 802, section 8.4).
    Mac([h0 & 0xfc | 0x02, h1, h2 ^ a, h3 ^ b, h4 ^ c, h5 ^ d])
}

/// FNV-1a, 64 bits: stable for ever, unlike the standard library's hashers.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its tunnel end point; `None` has no VXLAN.
    pub vtep: Option<IpAddr>,
    /// The version of its agent.
    pub version: Label,
}

impl Node {
    /// Checks a tunnel end point; empty is `None`.
    ///
    /// # Errors
    /// [`Refused`] for text that is no unicast IP address.
    pub fn parse_vtep(field: &'static str, text: &str) -> Result<Option<IpAddr>, Refused> {
        if text.is_empty() {
            return Ok(None);
        }
        let refuse = || Refused::new(field, text, Reason::BadIpAddress);
        let address: IpAddr = text.parse().map_err(|_not_an_address| refuse())?;
        if address.is_unspecified() || address.is_multicast() {
            return Err(refuse());
        }
        Ok(Some(address))
    }
}

/// An address to reserve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseSpec {
    /// Its tenant and network.
    pub network: NetworkKey,
    /// The group from whose pool it comes.
    pub group: Option<GroupName>,
    /// The wanted address, or one of a family.
    pub wanted: WantedAddress,
    /// Whom it is for: the endpoint with this id or container name, and no other, gets the address,
    /// on any node, as often as it is made anew. `None`: whoever asks for this very address.
    pub owner: Option<Owner>,
    /// How long it lasts unless an endpoint has it; `None`: for ever.
    pub ttl: Option<Ttl>,
}

/// How long a reservation lasts, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttl(u32);

impl Ttl {
    /// Of a reservation without owner that asks for none: time to create what will use it, and little
    /// enough for whoever forgets to.
    pub const WITHOUT_OWNER: Self = Self(600);
    const SECONDS_MAX: u32 = 366 * 24 * 3600;

    /// Checks 1 second to 366 days; 0 is for ever with an owner, [`Self::WITHOUT_OWNER`] without.
    ///
    /// # Errors
    /// [`Refused`] for more.
    pub fn parse(
        field: &'static str,
        seconds: u64,
        owner: Option<&Owner>,
    ) -> Result<Option<Self>, Refused> {
        if seconds == 0 {
            return Ok(owner.is_none().then_some(Self::WITHOUT_OWNER));
        }
        let checked = u32::try_from(seconds).ok().filter(|seconds| *seconds <= Self::SECONDS_MAX);
        let seconds = checked.ok_or_else(|| Refused::new(field, &seconds, Reason::BadTtl))?;
        Ok(Some(Self(seconds)))
    }

    pub(crate) fn from(self, now: Served) -> Served {
        Served(now.0.saturating_add(self.0.into()))
    }
}

/// Seconds netmasters have served this store, all together: the clock reservations end by. It stands
/// still while nobody serves and knows no wall clock, so that neither an outage nor a clock that is
/// set ends a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Served(pub u64);

/// The address a reservation asks for; `None`: allocate one of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantedAddress {
    /// IPv4.
    V4(Option<Ipv4Addr>),
    /// IPv6.
    V6(Option<Ipv6Addr>),
}

impl WantedAddress {
    /// Checks an address, or nothing, which is an IPv4 address that is allocated.
    ///
    /// # Errors
    /// [`Refused`] for text that is no address.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
        if text.is_empty() {
            return Ok(Self::V4(None));
        }
        match text.parse() {
            Ok(address) => Ok(Self::just(address)),
            Err(_not_an_address) => Err(Refused::new(field, text, Reason::BadIpAddress)),
        }
    }

    /// Checks the family asked for: 4, 6, or 0 for that of the address or else IPv4.
    ///
    /// # Errors
    /// [`Refused`] for another number, and for the other family than the address has.
    pub fn of_family(self, field: &'static str, family: u32) -> Result<Self, Refused> {
        match (family, self) {
            (0, any) => Ok(any),
            (4, Self::V4(_)) | (6, Self::V6(_)) => Ok(self),
            (6, Self::V4(None)) => Ok(Self::V6(None)),
            (4 | 6, _) => Err(Refused::new(field, &family, Reason::OtherFamily)),
            (_, _) => Err(Refused::new(field, &family, Reason::NotOneOf { list: "4, 6" })),
        }
    }

    /// This very address.
    #[must_use]
    pub const fn just(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(Some(address)),
            IpAddr::V6(address) => Self::V6(Some(address)),
        }
    }

    /// The very address that is wanted, if it is one.
    #[must_use]
    pub fn address(self) -> Option<IpAddr> {
        match self {
            Self::V4(address) => address.map(IpAddr::V4),
            Self::V6(address) => address.map(IpAddr::V6),
        }
    }

    /// Whether `address` would do.
    #[must_use]
    pub fn is_met_by(self, address: IpAddr) -> bool {
        let family = matches!(self, Self::V4(_)) == address.is_ipv4();
        family && self.address().is_none_or(|wanted| wanted == address)
    }
}

/// An address that is not free, whether an endpoint has it right now or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressLease {
    /// Its tenant and network.
    pub network: NetworkKey,
    /// The address.
    pub address: IpAddr,
    /// For whom or what.
    pub claim: Claim,
    /// When a reservation ends unless an endpoint has it; `None`: never.
    pub expires: Option<Served>,
}

impl AddressLease {
    /// Its identity.
    #[must_use]
    pub fn key(&self) -> LeaseKey {
        LeaseKey { network: self.network.clone(), address: self.address }
    }

    /// Whether it is a reservation, and not only an address on its way back.
    #[must_use]
    pub const fn is_reserved(&self) -> bool {
        self.claim.owner.is_some() || self.expires.is_some()
    }
}

impl NetworkKey {
    /// The network `name` of `tenant`.
    #[must_use]
    pub fn new(tenant: TenantName, network: NetworkName) -> Self {
        Self { tenant, network }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(name: &str) -> TenantName {
        TenantName::parse("tenantName", name).unwrap()
    }

    proptest! {
        #[test]
        fn macs_are_local_unicast_and_never_shared_inside_a_tenant(a in any::<u32>(), b in any::<u32>()) {
            let (red, blue) = (tenant("red"), tenant("blue"));
            let mac = mac_for(&red, a.into());
            prop_assert_eq!(mac.0[0] & 3, 2);
            prop_assert_eq!(mac == mac_for(&red, b.into()), a == b);
            prop_assert_ne!(mac, mac_for(&blue, a.into()));
        }
    }

    #[test]
    fn the_mac_of_an_address_never_changes_between_versions() {
        let mac = mac_for(&tenant("default"), Ipv4Addr::new(10, 1, 1, 1));
        assert_eq!(mac.to_string(), "a6:16:8c:21:c4:ff");
    }

    #[test]
    fn at_most_one_address_of_each_family_is_wanted() {
        let parse = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(ToString::to_string).collect();
            WantedAddresses::parse("ipAddress", &texts)
        };
        let both = parse(&["2016::1", "10.1.1.1"]).unwrap();
        assert_eq!(both.v4, Some(Ipv4Addr::new(10, 1, 1, 1)));
        assert_eq!(both.v6, Some("2016::1".parse().unwrap()));
        assert_eq!(parse(&[]), Ok(WantedAddresses::default()));
        for (texts, value, reason) in [
            (&["10.1.1.1", "10.1.1.2"][..], "10.1.1.2", Reason::TooManyAddresses),
            (&["2016::1", "10.1.1.1", "2016::2"], "2016::2", Reason::TooManyAddresses),
            (&["10.1.1"], "10.1.1", Reason::BadIpAddress),
            (&["fe80::1%eth0"], "fe80::1%eth0", Reason::BadIpAddress),
            (&[""], "", Reason::BadIpAddress),
        ] {
            let refused = parse(texts).unwrap_err();
            assert_eq!((refused.value.as_str(), refused.reason), (value, reason));
        }
    }

    #[test]
    fn the_family_of_a_reservation_is_that_of_its_address() {
        let wanted = |text: &str, family| {
            WantedAddress::parse("preferredAddress", text)?.of_family("family", family)
        };
        let six: Ipv6Addr = "2016::1".parse().unwrap();
        for (text, family, expected) in [
            ("", 0, WantedAddress::V4(None)),
            ("", 6, WantedAddress::V6(None)),
            ("2016::1", 0, WantedAddress::V6(Some(six))),
            ("2016::1", 6, WantedAddress::V6(Some(six))),
        ] {
            assert_eq!(wanted(text, family), Ok(expected));
        }
        for (text, family, field) in [
            ("2016::1", 4, "family"),
            ("10.1.1.1", 6, "family"),
            ("", 5, "family"),
            ("x", 6, "preferredAddress"),
        ] {
            assert_eq!(wanted(text, family).unwrap_err().field, field);
        }
    }

    #[test]
    fn unusable_macs_and_tunnel_ends_are_refused() {
        for bad in [
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "00:00:11:11:11:11",
            "02:00",
            "x",
        ] {
            assert_eq!(
                EndpointSpec::parse_mac("macAddress", bad).unwrap_err().reason,
                Reason::BadMac
            );
        }
        for bad in ["0.0.0.0", "224.0.0.1", "x"] {
            assert!(Node::parse_vtep("vtepIP", bad).is_err());
        }
    }
}
