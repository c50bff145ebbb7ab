//! The settings of the cluster: one object, shown as lines.

use control_api::v1;
use serde::Serialize;

use super::View;
use crate::table::Column;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GlobalView {
    key: String,
    name: String,
    network_infra_type: String,
    vlans: String,
    vxlans: String,
    fwd_mode: String,
    arp_mode: String,
    pvt_subnet: String,
    ip_allocation: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GlobalOper {
    num_networks: u32,
    vlans_in_use: String,
    vxlans_in_use: String,
}

impl GlobalView {
    /// The lines of `global info`.
    pub(crate) fn lines(&self) -> String {
        format!(
            "Fabric mode: {}\nForward mode: {}\nARP mode: {}\nVlan Range: {}\nVxlan range: {}\nPrivate subnet: {}\n",
            self.network_infra_type,
            self.fwd_mode,
            self.arp_mode,
            self.vlans,
            self.vxlans,
            self.pvt_subnet
        )
    }
}

impl View for GlobalView {
    const KIND: v1::Kind = v1::Kind::Global;
    const COLUMNS: &'static [Column] = &[("Name", 4)];
    type Oper = GlobalOper;

    fn from_kind(kind: v1::object::Kind) -> Option<Self> {
        let v1::object::Kind::Global(g) = kind else { return None };
        Some(Self {
            key: g.name.clone(),
            name: g.name,
            network_infra_type: g.network_infra_type,
            vlans: g.vlans,
            vxlans: g.vxlans,
            fwd_mode: g.fwd_mode,
            arp_mode: g.arp_mode,
            pvt_subnet: g.pvt_subnet,
            ip_allocation: g.allocation,
        })
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn row(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn oper(&self, oper: v1::Oper) -> GlobalOper {
        GlobalOper {
            num_networks: oper.num_networks,
            vlans_in_use: oper.vlans_in_use,
            vxlans_in_use: oper.vxlans_in_use,
        }
    }
}
