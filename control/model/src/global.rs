//! Settings of the whole installation: which tags may be used, and the private subnet.

use std::fmt;
use std::net::Ipv4Addr;

use crate::pool::Order;
use crate::refusal::{Reason, Refused};
use crate::tag::TagRange;

/// An IPv4 block of 16 bits, Contiv's host access subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrivateSubnet(Ipv4Addr);

impl fmt::Display for PrivateSubnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/16", self.0)
    }
}

/// Whether nodes route between a tenant's networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FwdMode {
    /// Every node is the gateway of every network.
    #[default]
    Routing,
    /// Networks are apart; a VLAN network's gateway is on its wire.
    Bridge,
}

impl FwdMode {
    /// The word users write.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Routing => "routing",
            Self::Bridge => "bridge",
        }
    }
}

/// Who answers ARP for containers. Nodes do, whatever is set: flooding is kept and does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ArpMode {
    /// Their node.
    #[default]
    Proxy,
    /// With Contiv, the containers themselves.
    Flood,
}

impl ArpMode {
    /// The word users write.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Flood => "flood",
        }
    }
}

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Global {
    /// VLAN tags networks may have.
    pub vlans: TagRange,
    /// VNIs networks may have.
    pub vxlans: TagRange,
    /// Contiv's host access subnet.
    pub pvt_subnet: PrivateSubnet,
    /// Whether nodes route.
    pub fwd_mode: FwdMode,
    /// Who answers ARP.
    pub arp_mode: ArpMode,
    /// Which free address is given to who asks for none.
    pub allocation: Order,
}

impl Default for Global {
    fn default() -> Self {
        Self {
            vlans: TagRange::VLANS,
            vxlans: TagRange::VXLANS,
            pvt_subnet: PrivateSubnet(Ipv4Addr::new(172, 19, 0, 0)),
            fwd_mode: FwdMode::default(),
            arp_mode: ArpMode::default(),
            allocation: Order::Lowest,
        }
    }
}

impl Global {
    /// The name of the only object of its kind.
    pub const NAME: &'static str = "global";
    /// The only fabric: no ACI.
    pub const NETWORK_INFRA_TYPE: &'static str = "default";

    /// These settings with the wanted changes.
    #[must_use]
    pub fn changed_by(&self, spec: &GlobalSpec) -> Self {
        Self {
            vlans: spec.vlans.unwrap_or(self.vlans),
            vxlans: spec.vxlans.unwrap_or(self.vxlans),
            pvt_subnet: spec.pvt_subnet.unwrap_or(self.pvt_subnet),
            fwd_mode: spec.fwd_mode.unwrap_or(self.fwd_mode),
            arp_mode: spec.arp_mode.unwrap_or(self.arp_mode),
            allocation: spec.allocation.unwrap_or(self.allocation),
        }
    }
}

/// A wanted change; `None` leaves a setting as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GlobalSpec {
    vlans: Option<TagRange>,
    vxlans: Option<TagRange>,
    pvt_subnet: Option<PrivateSubnet>,
    fwd_mode: Option<FwdMode>,
    arp_mode: Option<ArpMode>,
    allocation: Option<Order>,
}

impl GlobalSpec {
    /// With the order addresses are given out in: `lowest` or `spread`; empty leaves it as it is.
    ///
    /// # Errors
    /// [`Refused`] for anything else.
    pub fn with_allocation(self, field: &'static str, text: &str) -> Result<Self, Refused> {
        let allocation = match text {
            "" => None,
            "lowest" => Some(Order::Lowest),
            "spread" => Some(Order::Spread),
            _ => return Err(not_one_of(field, text, "lowest, spread")),
        };
        Ok(Self { allocation, ..self })
    }

    /// Checks the ranges; an empty one leaves the setting as it is.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's texts for ranges.
    pub fn parse(vlans: &str, vxlans: &str, pvt_subnet: &str) -> Result<Self, Refused> {
        let given = |text: &str| !text.is_empty();
        let vlans = given(vlans).then(|| TagRange::parse_vlans("vlans", vlans)).transpose()?;
        let vxlans = given(vxlans).then(|| TagRange::parse_vxlans("vxlans", vxlans)).transpose()?;
        let pvt_subnet = given(pvt_subnet).then(|| private(pvt_subnet)).transpose()?;
        Ok(Self { vlans, vxlans, pvt_subnet, ..Self::default() })
    }

    /// With modes; an empty one leaves the setting as it is.
    ///
    /// # Errors
    /// [`Refused`] for modes that are left out or unknown.
    pub fn with_modes(
        self,
        infra_type: &str,
        fwd_mode: &str,
        arp_mode: &str,
    ) -> Result<Self, Refused> {
        match infra_type {
            "" | Global::NETWORK_INFRA_TYPE => {}
            "aci" | "aci-opflex" => {
                return Err(Refused::new("networkInfraType", infra_type, Reason::AciLeftOut));
            }
            _ => return Err(not_one_of("networkInfraType", infra_type, "default")),
        }
        let fwd_mode = match fwd_mode {
            "" => None,
            "bridge" => Some(FwdMode::Bridge),
            "routing" => Some(FwdMode::Routing),
            _ => return Err(not_one_of("fwdMode", fwd_mode, "bridge, routing")),
        };
        let arp_mode = match arp_mode {
            "" => None,
            "proxy" => Some(ArpMode::Proxy),
            "flood" => Some(ArpMode::Flood),
            _ => return Err(not_one_of("arpMode", arp_mode, "proxy, flood")),
        };
        Ok(Self { fwd_mode, arp_mode, ..self })
    }
}

fn not_one_of(field: &'static str, value: &str, list: &'static str) -> Refused {
    Refused::new(field, value, Reason::NotOneOf { list })
}

fn private(text: &str) -> Result<PrivateSubnet, Refused> {
    let refuse = || Refused::new("pvtSubnet", text, Reason::PrivateSubnetFormat);
    let address: Ipv4Addr =
        text.strip_suffix("/16").and_then(|address| address.parse().ok()).ok_or_else(refuse)?;
    Ok(PrivateSubnet(Ipv4Addr::from_bits(address.to_bits() & 0xffff_0000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contivs_global_vectors_are_refused_with_their_field() {
        let bad = [
            ("1-5000", "", "", "vlans"),
            ("0-4094", "", "", "vlans"),
            ("1", "", "", "vlans"),
            ("1?2", "", "", "vlans"),
            ("abcd", "", "", "vlans"),
            ("", "1-16777216", "", "vxlans"),
            ("", "", "172.21.0.0/24", "pvtSubnet"),
            ("", "", "fd00::/16", "pvtSubnet"),
        ];
        for (vlans, vxlans, private, field) in bad {
            assert_eq!(GlobalSpec::parse(vlans, vxlans, private).unwrap_err().field, field);
        }
        for good in ["172.20.0.0/16", "172.21.0.0/16"] {
            let spec = GlobalSpec::parse("1-1000", "1001-2000", good).unwrap();
            assert_eq!(spec.pvt_subnet.unwrap().to_string(), good);
        }
    }

    #[test]
    fn modes_are_contivs_without_aci() {
        let modes = |infra, fwd, arp| GlobalSpec::default().with_modes(infra, fwd, arp);
        let set = modes("default", "bridge", "flood").unwrap();
        let global = Global::default().changed_by(&set);
        assert_eq!((global.fwd_mode, global.arp_mode), (FwdMode::Bridge, ArpMode::Flood));
        assert_eq!(global.changed_by(&modes("", "", "").unwrap()), global);
        let back = global.changed_by(&modes("", "routing", "proxy").unwrap());
        assert_eq!(back, Global::default());
        let refused = [
            (("xyz", "", ""), "networkInfraType"),
            (("aci", "", ""), "networkInfraType"),
            (("aci-opflex", "", ""), "networkInfraType"),
            (("", "xyz", ""), "fwdMode"),
            (("", "", "xyz"), "arpMode"),
        ];
        for ((infra, fwd, arp), field) in refused {
            assert_eq!(modes(infra, fwd, arp).unwrap_err().field, field);
        }
    }
}
