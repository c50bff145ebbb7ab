//! Services.

use control_api::v1;
use serde::Serialize;

use super::{EndpointView, View};
use crate::table::Column;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceView {
    key: String,
    tenant_name: String,
    service_name: String,
    network_name: String,
    ip_address: String,
    selectors: Vec<String>,
    ports: Vec<String>,
    #[serde(skip)]
    service_vip: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceOper {
    service_vip: String,
    num_providers: u32,
    providers: Vec<EndpointView>,
}

impl View for ServiceView {
    const KIND: v1::Kind = v1::Kind::ServiceLb;
    const COLUMNS: &'static [Column] =
        &[("ServiceName", 9), ("Tenant", 8), ("Network", 7), ("Selectors", 7)];
    type Oper = ServiceOper;

    fn from_kind(kind: v1::object::Kind) -> Option<Self> {
        let v1::object::Kind::ServiceLb(s) = kind else { return None };
        Some(Self {
            key: format!("{}:{}", s.tenant_name, s.service_name),
            tenant_name: s.tenant_name,
            service_name: s.service_name,
            network_name: s.network_name,
            ip_address: s.ip_address,
            selectors: s.selectors,
            ports: s.ports,
            service_vip: s.service_vip,
        })
    }

    fn name(&self) -> &str {
        &self.service_name
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.service_name.clone(),
            self.tenant_name.clone(),
            self.network_name.clone(),
            self.selectors.join(","),
        ]
    }

    fn oper(&self, oper: v1::Oper) -> ServiceOper {
        ServiceOper {
            service_vip: self.service_vip.clone(),
            num_providers: oper.num_providers,
            providers: oper.providers.into_iter().map(EndpointView::from).collect(),
        }
    }
}
