//! Tenants.

use control_api::v1;
use serde::Serialize;

use super::{EndpointView, View};
use crate::table::Column;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TenantView {
    key: String,
    tenant_name: String,
    default_network: String,
    #[serde(skip)]
    vrf: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TenantOper {
    total_networks: u32,
    #[serde(rename = "totalEPGs")]
    total_epgs: u32,
    total_policies: u32,
    total_endpoints: u32,
    endpoints: Vec<EndpointView>,
    /// The tenant's routing instance in the data plane: `vrctl route ls --vrf`.
    vrf: u32,
}

impl View for TenantView {
    const KIND: v1::Kind = v1::Kind::Tenant;
    const COLUMNS: &'static [Column] = &[("Name", 6)];
    type Oper = TenantOper;

    fn from_kind(kind: v1::object::Kind) -> Option<Self> {
        let v1::object::Kind::Tenant(t) = kind else { return None };
        Some(Self {
            key: t.tenant_name.clone(),
            tenant_name: t.tenant_name,
            default_network: t.default_network,
            vrf: t.vrf,
        })
    }

    fn name(&self) -> &str {
        &self.tenant_name
    }

    fn row(&self) -> Vec<String> {
        vec![self.tenant_name.clone()]
    }

    fn oper(&self, oper: v1::Oper) -> TenantOper {
        TenantOper {
            total_networks: oper.total_networks,
            total_epgs: oper.total_epgs,
            total_policies: oper.total_policies,
            total_endpoints: oper.total_endpoints,
            endpoints: oper.endpoints.into_iter().map(EndpointView::from).collect(),
            vrf: self.vrf,
        }
    }
}
