//! Networks.

use control_api::v1;
use serde::Serialize;

use super::{EndpointView, View};
use crate::table::Column;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NetworkView {
    key: String,
    tenant_name: String,
    network_name: String,
    nw_type: String,
    encap: String,
    pkt_tag: u32,
    subnet: String,
    gateway: String,
    ipv6_subnet: String,
    ipv6_gateway: String,
    cfgd_tag: String,
    offload: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NetworkOper {
    pkt_tag: u32,
    /// The tag on the wire: VNI or VLAN id.
    external_pkt_tag: u32,
    num_endpoints: u32,
    allocated_addresses_count: u32,
    #[serde(rename = "allocatedIPAddresses")]
    allocated_ip_addresses: String,
    #[serde(rename = "availableIPAddresses")]
    available_ip_addresses: String,
    #[serde(rename = "allocatedIPv6Addresses")]
    allocated_ipv6_addresses: String,
    #[serde(rename = "availableIPv6Addresses")]
    available_ipv6_addresses: String,
    network_tag: String,
    endpoints: Vec<EndpointView>,
}

impl View for NetworkView {
    const KIND: v1::Kind = v1::Kind::Network;
    const COLUMNS: &'static [Column] = &[
        ("Tenant", 6),
        ("Network", 7),
        ("Nw Type", 7),
        ("Encap type", 10),
        ("Packet tag", 10),
        ("Subnet", 7),
        ("Gateway", 6),
        ("IPv6Subnet", 10),
        ("IPv6Gateway", 11),
        ("Cfgd Tag", 9),
    ];
    type Oper = NetworkOper;

    fn from_kind(kind: v1::object::Kind) -> Option<Self> {
        let v1::object::Kind::Network(n) = kind else { return None };
        Some(Self {
            key: format!("{}:{}", n.tenant_name, n.network_name),
            tenant_name: n.tenant_name,
            network_name: n.network_name,
            nw_type: n.nw_type,
            encap: n.encap,
            pkt_tag: n.pkt_tag,
            subnet: n.subnet,
            gateway: n.gateway,
            ipv6_subnet: n.ipv6_subnet,
            ipv6_gateway: n.ipv6_gateway,
            cfgd_tag: n.cfgd_tag,
            offload: n.offload,
        })
    }

    fn name(&self) -> &str {
        &self.network_name
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.tenant_name.clone(),
            self.network_name.clone(),
            self.nw_type.clone(),
            self.encap.clone(),
            self.pkt_tag.to_string(),
            self.subnet.clone(),
            self.gateway.clone(),
            self.ipv6_subnet.clone(),
            self.ipv6_gateway.clone(),
            self.cfgd_tag.clone(),
        ]
    }

    fn oper(&self, oper: v1::Oper) -> NetworkOper {
        NetworkOper {
            pkt_tag: oper.pkt_tag,
            external_pkt_tag: self.pkt_tag,
            num_endpoints: oper.num_endpoints,
            allocated_addresses_count: oper.allocated_addresses_count,
            allocated_ip_addresses: oper.allocated_ip_addresses,
            available_ip_addresses: oper.available_ip_addresses,
            allocated_ipv6_addresses: oper.allocated_ipv6_addresses,
            available_ipv6_addresses: oper.available_ipv6_addresses,
            network_tag: oper.network_tag,
            endpoints: oper.endpoints.into_iter().map(EndpointView::from).collect(),
        }
    }
}
