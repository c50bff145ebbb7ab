//! Net profiles.

use control_api::v1;
use serde::Serialize;

use super::{EndpointView, View};
use crate::table::Column;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProfileView {
    key: String,
    #[serde(rename = "DSCP")]
    dscp: u32,
    bandwidth: String,
    burst: u32,
    profile_name: String,
    tenant_name: String,
    scope: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProfileOper {
    num_endpoints: u32,
    endpoints: Vec<EndpointView>,
}

impl View for ProfileView {
    const KIND: v1::Kind = v1::Kind::NetProfile;
    const COLUMNS: &'static [Column] =
        &[("Name", 6), ("Tenant", 6), ("Bandwidth", 9), ("DSCP", 8), ("burst size", 10)];
    type Oper = ProfileOper;

    fn from_kind(kind: v1::object::Kind) -> Option<Self> {
        let v1::object::Kind::NetProfile(p) = kind else { return None };
        Some(Self {
            key: format!("{}:{}", p.tenant_name, p.profile_name),
            dscp: p.dscp,
            bandwidth: p.bandwidth,
            burst: p.burst,
            profile_name: p.profile_name,
            tenant_name: p.tenant_name,
            scope: p.scope,
        })
    }

    fn name(&self) -> &str {
        &self.profile_name
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.profile_name.clone(),
            self.tenant_name.clone(),
            self.bandwidth.clone(),
            self.dscp.to_string(),
            self.burst.to_string(),
        ]
    }

    fn oper(&self, oper: v1::Oper) -> ProfileOper {
        ProfileOper {
            num_endpoints: oper.num_endpoints,
            endpoints: oper.endpoints.into_iter().map(EndpointView::from).collect(),
        }
    }
}
