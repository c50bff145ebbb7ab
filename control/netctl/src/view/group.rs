//! Endpoint groups.

use control_api::v1;
use serde::Serialize;

use super::{EndpointView, View};
use crate::table::Column;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GroupView {
    key: String,
    tenant_name: String,
    group_name: String,
    network_name: String,
    ip_pool: String,
    ipv6_pool: String,
    policies: Vec<String>,
    net_profile: String,
    cfgd_tag: String,
    #[serde(skip)]
    group_id: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GroupOper {
    pkt_tag: u32,
    /// The same, as in a network.
    external_pkt_tag: u32,
    num_endpoints: u32,
    #[serde(rename = "allocatedIPAddresses")]
    allocated_ip_addresses: String,
    #[serde(rename = "availableIPAddresses")]
    available_ip_addresses: String,
    #[serde(rename = "allocatedIPv6Addresses")]
    allocated_ipv6_addresses: String,
    #[serde(rename = "availableIPv6Addresses")]
    available_ipv6_addresses: String,
    group_tag: String,
    /// The group's number in the data plane: `src_group` and `dst_group` of flow text.
    endpoint_group_id: u32,
    endpoints: Vec<EndpointView>,
}

/// Contiv's table has one column for pools.
fn pools(pools: &[&str]) -> String {
    let given = pools.iter().filter(|pool| !pool.is_empty());
    given.copied().collect::<Vec<_>>().join(",")
}

impl View for GroupView {
    const KIND: v1::Kind = v1::Kind::EndpointGroup;
    const COLUMNS: &'static [Column] = &[
        ("Tenant", 6),
        ("Group", 5),
        ("Network", 7),
        ("IP Pool", 7),
        ("CfgdTag", 7),
        ("Policies", 8),
        ("Network profile", 15),
    ];
    type Oper = GroupOper;

    fn from_kind(kind: v1::object::Kind) -> Option<Self> {
        let v1::object::Kind::EndpointGroup(g) = kind else { return None };
        Some(Self {
            key: format!("{}:{}", g.tenant_name, g.group_name),
            tenant_name: g.tenant_name,
            group_name: g.group_name,
            network_name: g.network_name,
            ip_pool: g.ip_pool,
            ipv6_pool: g.ipv6_pool,
            policies: g.policies,
            net_profile: g.net_profile,
            cfgd_tag: g.cfgd_tag,
            group_id: g.group_id,
        })
    }

    fn name(&self) -> &str {
        &self.group_name
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.tenant_name.clone(),
            self.group_name.clone(),
            self.network_name.clone(),
            pools(&[&self.ip_pool, &self.ipv6_pool]),
            self.cfgd_tag.clone(),
            self.policies.join(","),
            self.net_profile.clone(),
        ]
    }

    fn oper(&self, oper: v1::Oper) -> GroupOper {
        GroupOper {
            pkt_tag: oper.pkt_tag,
            external_pkt_tag: oper.pkt_tag,
            num_endpoints: oper.num_endpoints,
            allocated_ip_addresses: oper.allocated_ip_addresses,
            available_ip_addresses: oper.available_ip_addresses,
            allocated_ipv6_addresses: oper.allocated_ipv6_addresses,
            available_ipv6_addresses: oper.available_ipv6_addresses,
            group_tag: oper.group_tag,
            endpoint_group_id: self.group_id,
            endpoints: oper.endpoints.into_iter().map(EndpointView::from).collect(),
        }
    }
}
