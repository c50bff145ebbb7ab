//! Networks: a subnet, a gateway and a tag on the wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowtable::entry::Offload;
use flowtable::ids::{Bd, Vid, Vni};

use crate::key::NetworkKey;
use crate::name::CfgdTag;
use crate::refusal::{Reason, Refused};
use crate::subnet::Subnet;
use crate::subnet6::Subnet6;

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

/// What a network is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NwType {
    /// Containers.
    #[default]
    Data,
    /// With Contiv, also the nodes themselves; here they get no address of it.
    Infra,
}

impl NwType {
    /// Checks `data` or `infra`; empty is data.
    ///
    /// # Errors
    /// [`Refused`] for any other text.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
        match text {
            "" | "data" => Ok(Self::Data),
            "infra" => Ok(Self::Infra),
            _ => Err(Refused::new(field, text, Reason::NotOneOf { list: "data, infra" })),
        }
    }

    /// The word users write.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Infra => "infra",
        }
    }
}

fn shown(value: Option<&impl ToString>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

/// A network as a user asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Tenant and name.
    pub key: NetworkKey,
    /// What it is for.
    pub nw_type: NwType,
    /// How it leaves a node.
    pub encap: Encap,
    /// The wanted tag; `None`: allocate.
    pub tag: Option<Tag>,
    /// Its addresses.
    pub subnet: Subnet,
    /// Its gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Its IPv6 addresses.
    pub subnet6: Option<Subnet6>,
    /// Its IPv6 gateway, in that subnet.
    pub gateway6: Option<Ipv6Addr>,
    /// The user's own tag.
    pub cfgd_tag: Option<CfgdTag>,
    /// Whether the kernel may forward its endpoints' flows; `None`: as it is, at first it may.
    pub offload: Option<Offload>,
}

impl NetworkSpec {
    /// The network, with what was handed out for it.
    #[must_use]
    pub fn placed(self, tag: Tag, bd: Bd) -> Network {
        let Self { key, nw_type, subnet, gateway, subnet6, gateway6, cfgd_tag, .. } = self;
        let offload = self.offload.unwrap_or(Offload::On);
        Network { key, nw_type, tag, subnet, gateway, subnet6, gateway6, cfgd_tag, offload, bd }
    }

    /// Checks an IPv6 subnet with its gateway; each may be empty, but no gateway is alone.
    ///
    /// # Errors
    /// [`Refused`] with the field at fault.
    pub fn parse_ipv6(
        subnet: &str,
        gateway: &str,
    ) -> Result<(Option<Subnet6>, Option<Ipv6Addr>), Refused> {
        let field = "ipv6Gateway";
        match (subnet, gateway) {
            ("", "") => Ok((None, None)),
            ("", _) => Err(Refused::new(field, gateway, Reason::GatewayWithoutSubnet)),
            (_, "") => Ok((Some(Subnet6::parse("ipv6Subnet", subnet)?), None)),
            (_, _) => {
                let subnet = Subnet6::parse("ipv6Subnet", subnet)?;
                let gateway = subnet.parse_gateway(field, gateway)?;
                Ok((Some(subnet), Some(gateway)))
            }
        }
    }
}

/// A stored network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Tenant and name.
    pub key: NetworkKey,
    /// What it is for.
    pub nw_type: NwType,
    /// Its place on the wire.
    pub tag: Tag,
    /// Its addresses.
    pub subnet: Subnet,
    /// Its gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Its IPv6 addresses.
    pub subnet6: Option<Subnet6>,
    /// Its IPv6 gateway, in that subnet.
    pub gateway6: Option<Ipv6Addr>,
    /// The user's own tag.
    pub cfgd_tag: Option<CfgdTag>,
    /// Whether the kernel may forward its endpoints' flows.
    pub offload: Offload,
    /// Its bridge domain.
    pub bd: Bd,
}

impl Network {
    /// The first field in which `spec` asks for something else than this network is, but for what an
    /// update may change: its JSON name, and what is asked for.
    #[must_use]
    pub fn difference(&self, spec: &NetworkSpec) -> Option<(&'static str, String)> {
        let NetworkSpec { key, nw_type, encap, tag, subnet, gateway, .. } = spec;
        let NetworkSpec { subnet6, gateway6, cfgd_tag, .. } = spec;
        let same_tag = tag.is_none_or(|tag| tag == self.tag);
        let fields = [
            (*key == self.key, "networkName", key.network.to_string()),
            (*nw_type == self.nw_type, "nwType", nw_type.name().to_owned()),
            (*encap == self.tag.encap(), "encap", encap.name().to_owned()),
            (same_tag, "pktTag", tag.map_or(0, Tag::number).to_string()),
            (*subnet == self.subnet, "subnet", subnet.to_string()),
            (*gateway == self.gateway, "gateway", shown(gateway.as_ref())),
            (*subnet6 == self.subnet6, "ipv6Subnet", shown(subnet6.as_ref())),
            (*gateway6 == self.gateway6, "ipv6Gateway", shown(gateway6.as_ref())),
            (*cfgd_tag == self.cfgd_tag, "cfgdTag", shown(cfgd_tag.as_ref())),
        ];
        let other = fields.into_iter().find(|(same, ..)| !same);
        other.map(|(_, field, value)| (field, value))
    }

    /// What belongs to an address of it: the length of its subnet's prefix, and the gateway of its
    /// family.
    #[must_use]
    pub fn surroundings(&self, address: IpAddr) -> Option<(u8, Option<IpAddr>)> {
        match address {
            IpAddr::V4(_) => Some((self.subnet.length(), self.gateway.map(IpAddr::V4))),
            IpAddr::V6(_) => Some((self.subnet6?.length(), self.gateway6.map(IpAddr::V6))),
        }
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
            let refused = NwType::parse("nwType", bad).unwrap_err();
            assert_eq!(refused.reason, Reason::NotOneOf { list: "data, infra" });
        }
        assert_eq!(NwType::parse("nwType", "infra"), Ok(NwType::Infra));
        assert_eq!(NwType::parse("nwType", ""), Ok(NwType::Data));
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
