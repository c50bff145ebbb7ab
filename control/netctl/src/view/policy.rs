//! Policies. Their rules are in the module `rule`.

use control_api::v1;
use serde::Serialize;

use super::{EndpointView, View};
use crate::table::Column;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyView {
    key: String,
    tenant_name: String,
    policy_name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyOper {
    num_endpoints: u32,
    endpoints: Vec<EndpointView>,
}

impl View for PolicyView {
    const KIND: v1::Kind = v1::Kind::Policy;
    const COLUMNS: &'static [Column] = &[("Tenant", 6), ("Policy", 6)];
    type Oper = PolicyOper;

    fn from_kind(kind: v1::object::Kind) -> Option<Self> {
        let v1::object::Kind::Policy(p) = kind else { return None };
        Some(Self {
            key: format!("{}:{}", p.tenant_name, p.policy_name),
            tenant_name: p.tenant_name,
            policy_name: p.policy_name,
        })
    }

    fn name(&self) -> &str {
        &self.policy_name
    }

    fn row(&self) -> Vec<String> {
        vec![self.tenant_name.clone(), self.policy_name.clone()]
    }

    fn oper(&self, oper: v1::Oper) -> PolicyOper {
        PolicyOper {
            num_endpoints: oper.num_endpoints,
            endpoints: oper.endpoints.into_iter().map(EndpointView::from).collect(),
        }
    }
}
