//! Endpoints, the nodes they live on, and addresses reserved before there is an endpoint.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

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
    /// The wanted address; `None`: allocate.
    pub address: Option<Ipv4Addr>,
    /// The wanted MAC; `None`: [`mac_for`].
    pub mac: Option<Mac>,
    /// Where it is.
    pub host: Host,
}

impl EndpointSpec {
    /// Checks the wanted addresses: none, or one IPv4 address.
    ///
    /// # Errors
    /// [`Refused`] for more, for IPv6 and for text that is no address.
    pub fn parse_addresses(
        field: &'static str,
        texts: &[String],
    ) -> Result<Option<Ipv4Addr>, Refused> {
        match texts {
            [] => Ok(None),
            [text] => parse_address(field, text),
            [_, second, ..] => Err(Refused::new(field, second, Reason::TooManyAddresses)),
        }
    }

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

/// Checks an IPv4 address; empty is `None`.
fn parse_address(field: &'static str, text: &str) -> Result<Option<Ipv4Addr>, Refused> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(IpAddr::V4(address)) => Ok(Some(address)),
        Ok(IpAddr::V6(_)) => Err(Refused::new(field, text, Reason::Ipv6AddressNotBuilt)),
        Err(_not_an_address) => Err(Refused::new(field, text, Reason::BadAddress)),
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
    /// Its address.
    pub address: Ipv4Addr,
    /// Its MAC.
    pub mac: Mac,
    /// Where it is.
    pub host: Host,
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
    /// The wanted address; `None`: allocate.
    pub address: Option<Ipv4Addr>,
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

impl LeaseSpec {
    /// Checks an IPv4 address; empty is `None`.
    ///
    /// # Errors
    /// [`Refused`] for IPv6 and for text that is no address.
    pub fn parse_address(field: &'static str, text: &str) -> Result<Option<Ipv4Addr>, Refused> {
        parse_address(field, text)
    }
}

/// An address that is not free, whether an endpoint has it right now or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressLease {
    /// Its tenant and network.
    pub network: NetworkKey,
    /// The address.
    pub address: Ipv4Addr,
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
    fn unusable_macs_and_addresses_are_refused() {
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
        let two = ["10.1.1.1".to_owned(), "10.1.1.2".to_owned()];
        let refused = EndpointSpec::parse_addresses("ipAddress", &two).unwrap_err();
        assert_eq!(refused.reason, Reason::TooManyAddresses);
        let v6 = EndpointSpec::parse_addresses("ipAddress", &["2016::1".to_owned()]).unwrap_err();
        assert_eq!(v6.reason, Reason::Ipv6AddressNotBuilt);
        for bad in ["0.0.0.0", "224.0.0.1", "x"] {
            assert!(Node::parse_vtep("vtepIP", bad).is_err());
        }
    }
}
