//! Application profiles.

use control_api::v1;
use serde::Serialize;

use super::{EndpointView, View};
use crate::table::Column;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AppProfileView {
    key: String,
    tenant_name: String,
    app_profile_name: String,
    pub(crate) endpoint_groups: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AppProfileOper {
    num_endpoints: u32,
    endpoints: Vec<EndpointView>,
}

impl View for AppProfileView {
    const KIND: v1::Kind = v1::Kind::AppProfile;
    const COLUMNS: &'static [Column] = &[("Tenant", 6), ("AppProfile", 10), ("Groups", 6)];
    type Oper = AppProfileOper;

    fn from_kind(kind: v1::object::Kind) -> Option<Self> {
        let v1::object::Kind::AppProfile(p) = kind else { return None };
        Some(Self {
            key: format!("{}:{}", p.tenant_name, p.app_profile_name),
            tenant_name: p.tenant_name,
            app_profile_name: p.app_profile_name,
            endpoint_groups: p.endpoint_groups,
        })
    }

    fn name(&self) -> &str {
        &self.app_profile_name
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.tenant_name.clone(),
            self.app_profile_name.clone(),
            self.endpoint_groups.join(","),
        ]
    }

    fn oper(&self, oper: v1::Oper) -> AppProfileOper {
        AppProfileOper {
            num_endpoints: oper.num_endpoints,
            endpoints: oper.endpoints.into_iter().map(EndpointView::from).collect(),
        }
    }
}
