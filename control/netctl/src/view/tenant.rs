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
    default_verdict: String,
    tracking: String,
    on_deny: String,
    max_connections: u32,
    max_new_flows: u32,
    bandwidth: String,
    burst: u32,
    offload: String,
    #[serde(skip)]
    vrf: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TenantOper {
    total_networks: u32,
    #[serde(rename = "totalEPGs")]
    total_epgs: u32,
    total_netprofiles: u32,
    total_policies: u32,
    total_servicelbs: u32,
    total_app_profiles: u32,
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
            default_verdict: t.default_verdict,
            tracking: t.tracking,
            on_deny: t.on_deny,
            max_connections: t.max_connections.unwrap_or_default(),
            max_new_flows: t.max_new_flows.unwrap_or_default(),
            bandwidth: t.bandwidth.unwrap_or_default(),
            burst: t.burst.unwrap_or_default(),
            offload: t.offload,
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
            total_netprofiles: oper.total_netprofiles,
            total_policies: oper.total_policies,
            total_servicelbs: oper.total_servicelbs,
            total_app_profiles: oper.total_app_profiles,
            total_endpoints: oper.total_endpoints,
            endpoints: oper.endpoints.into_iter().map(EndpointView::from).collect(),
            vrf: self.vrf,
        }
    }
}
