//! Endpoints: attached containers.

use control_api::v1;
use serde::Serialize;

use super::View;
use crate::table::Column;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointView {
    key: String,
    #[serde(rename = "endpointID")]
    endpoint_id: String,
    tenant_name: String,
    network_name: String,
    endpoint_group: String,
    ip_address: Vec<String>,
    mac_address: String,
    homing_host: String,
    #[serde(rename = "containerID")]
    container_id: String,
    container_name: String,
    intf_name: String,
    #[serde(rename = "vtepIP")]
    vtep_ip: String,
    labels: Vec<String>,
}

impl From<v1::Endpoint> for EndpointView {
    fn from(e: v1::Endpoint) -> Self {
        Self {
            key: e.endpoint_id.clone(),
            endpoint_id: e.endpoint_id,
            tenant_name: e.tenant_name,
            network_name: e.network_name,
            endpoint_group: e.endpoint_group,
            ip_address: e.ip_address,
            mac_address: e.mac_address,
            homing_host: e.homing_host,
            container_id: e.container_id,
            container_name: e.container_name,
            intf_name: e.intf_name,
            vtep_ip: e.vtep_ip,
            labels: e.labels,
        }
    }
}

impl View for EndpointView {
    const KIND: v1::Kind = v1::Kind::Endpoint;
    const COLUMNS: &'static [Column] = &[
        ("Tenant", 6),
        ("Network", 7),
        ("Group", 5),
        ("IpAddress", 9),
        ("MacAddress", 10),
        ("HomingHost", 10),
        ("Interface", 9),
        ("EndpointID", 10),
    ];
    /// In Contiv an endpoint is all state: `Oper` repeats it, so that scripts find it where it was.
    type Oper = Self;

    fn from_kind(kind: v1::object::Kind) -> Option<Self> {
        let v1::object::Kind::Endpoint(e) = kind else { return None };
        Some(e.into())
    }

    fn name(&self) -> &str {
        &self.endpoint_id
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.tenant_name.clone(),
            self.network_name.clone(),
            self.endpoint_group.clone(),
            self.ip_address.join(","),
            self.mac_address.clone(),
            self.homing_host.clone(),
            self.intf_name.clone(),
            self.endpoint_id.clone(),
        ]
    }

    fn oper(&self, _oper: v1::Oper) -> Self {
        self.clone()
    }
}
