//! Networks: a subnet, a gateway and a tag on the wire.

use std::net::Ipv4Addr;

use flowtable::ids::{Bd, Vid, Vni};

use crate::key::NetworkKey;
use crate::name::CfgdTag;
use crate::refusal::{Reason, Refused};
use crate::subnet::Subnet;

/// How a network leaves a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encap {
    /// IEEE 802.1Q tags on the uplink.
    Vlan,
    /// VXLAN between nodes.
    Vxlan,
}

impl Encap {
    /// Checks `vlan` or `vxlan`.
    ///
    /// # Errors
    /// [`Refused`] for any other text.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
        match text {
            "vlan" => Ok(Self::Vlan),
            "vxlan" => Ok(Self::Vxlan),
            _ => Err(Refused::new(field, text, Reason::NotOneOf { list: "vlan, vxlan" })),
        }
    }

    /// The word users write.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vlan => "vlan",
            Self::Vxlan => "vxlan",
        }
    }
}

/// A network's place on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// Tagged on the uplink.
    Vlan(Vid),
    /// In VXLAN.
    Vxlan(Vni),
}

impl Tag {
    /// Checks `number` as a tag of `encap`.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's texts for tags out of range.
    pub fn new(field: &'static str, encap: Encap, number: u32) -> Result<Self, Refused> {
        let refuse = |reason| Refused::new(field, &number, reason);
        match encap {
            Encap::Vlan => Vid::new(number)
                .map(Self::Vlan)
                .map_err(|_range| refuse(Reason::VlanUnavailable { tag: number })),
            Encap::Vxlan => {
                Vni::new(number).map(Self::Vxlan).map_err(|_range| refuse(Reason::VxlanOutOfRange))
            }
        }
    }

    /// What kind of tag it is.
    #[must_use]
    pub const fn encap(self) -> Encap {
        match self {
            Self::Vlan(_) => Encap::Vlan,
            Self::Vxlan(_) => Encap::Vxlan,
        }
    }

    /// The plain number.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Vlan(vid) => vid.get() as u32,
            Self::Vxlan(vni) => vni.get(),
        }
    }
}

/// Checks a network type: `data`, or empty for data.
///
/// # Errors
/// [`Refused`] for infra networks, which this version does not build, and unknown types.
pub fn check_nw_type(field: &'static str, text: &str) -> Result<(), Refused> {
    match text {
        "" | "data" => Ok(()),
        "infra" => Err(Refused::new(field, text, Reason::InfraNotBuilt)),
        _ => Err(Refused::new(field, text, Reason::NotOneOf { list: "data, infra" })),
    }
}

/// A network as a user asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Tenant and name.
    pub key: NetworkKey,
    /// How it leaves a node.
    pub encap: Encap,
    /// The wanted tag; `None`: allocate.
    pub tag: Option<Tag>,
    /// Its addresses.
    pub subnet: Subnet,
    /// Its gateway.
    pub gateway: Option<Ipv4Addr>,
    /// The user's own tag.
    pub cfgd_tag: Option<CfgdTag>,
}

/// A stored network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Tenant and name.
    pub key: NetworkKey,
    /// Its place on the wire.
    pub tag: Tag,
    /// Its addresses.
    pub subnet: Subnet,
    /// Its gateway.
    pub gateway: Option<Ipv4Addr>,
    /// The user's own tag.
    pub cfgd_tag: Option<CfgdTag>,
    /// Its bridge domain.
    pub bd: Bd,
}

impl Network {
    /// Whether `spec` asks for what this network is.
    #[must_use]
    pub fn is_asked_by(&self, spec: &NetworkSpec) -> bool {
        let NetworkSpec { key, encap, tag, subnet, gateway, cfgd_tag } = spec;
        *key == self.key
            && *encap == self.tag.encap()
            && tag.is_none_or(|tag| tag == self.tag)
            && *subnet == self.subnet
            && *gateway == self.gateway
            && *cfgd_tag == self.cfgd_tag
    }

    /// The tag shown to users: their own, or `network.tenant`.
    #[must_use]
    pub fn shown_tag(&self) -> String {
        match &self.cfgd_tag {
            Some(tag) => tag.to_string(),
            None => format!("{}.{}", self.key.network, self.key.tenant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contivs_bad_types_and_encapsulations_are_refused() {
        for bad in ["infratest", "testinfra", "testdata", "datatest"] {
            let refused = check_nw_type("nwType", bad).unwrap_err();
            assert_eq!(refused.reason, Reason::NotOneOf { list: "data, infra" });
        }
        assert_eq!(check_nw_type("nwType", "infra").unwrap_err().reason, Reason::InfraNotBuilt);
        assert_eq!(check_nw_type("nwType", ""), Ok(()));
        assert_eq!(Encap::parse("encap", "vvvv").unwrap_err().field, "encap");
    }

    #[test]
    fn tags_outside_their_kind_are_refused_with_contivs_texts() {
        let vlan = Tag::new("pktTag", Encap::Vlan, 5000).unwrap_err();
        assert_eq!(vlan.to_string(), "requested vlan not available - vlan:5000");
        let vni = Tag::new("pktTag", Encap::Vxlan, 0x100_0000).unwrap_err();
        assert_eq!(vni.to_string(), "requested vxlan is out of range");
        assert_eq!(Tag::new("pktTag", Encap::Vxlan, 0xff_ffff).unwrap().number(), 0xff_ffff);
    }
}
