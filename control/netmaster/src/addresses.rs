//! Which addresses are not free, who or what keeps each, and which look leaked.

use std::collections::BTreeMap;
use std::net::IpAddr;

use control_api::v1;
use control_model::{
    AddressLease, Endpoint, Intent, LeaseKey, NetworkKey, NetworkName, Refused, TenantName,
};

use crate::master::State;
use crate::oper;
use crate::reclaim::Reclaim;

/// What is to be listed.
#[derive(Debug)]
pub(crate) struct Selection {
    tenant: Option<TenantName>,
    network: Option<NetworkName>,
    leaks_only: bool,
}

impl Selection {
    pub(crate) fn parse(request: &v1::ListAddressesRequest) -> Result<Self, Refused> {
        Ok(Self {
            tenant: TenantName::parse_optional("tenantName", &request.tenant_name)?,
            network: NetworkName::parse_optional("networkName", &request.network_name)?,
            leaks_only: request.leaks,
        })
    }

    /// By tenant, network and address.
    pub(crate) fn list(&self, state: &State, reclaim: &Reclaim) -> Vec<v1::Address> {
        let intent = state.ledger.intent();
        let mut found: BTreeMap<LeaseKey, v1::Address> = BTreeMap::new();
        for endpoint in intent.endpoints().filter(|endpoint| self.has(&endpoint.network)) {
            for address in endpoint.addresses() {
                let key = LeaseKey { network: endpoint.network.clone(), address };
                let shown = used(&key, endpoint, reclaim);
                found.insert(key, shown);
            }
        }
        for lease in intent.leases().filter(|lease| self.has(&lease.network)) {
            let entry = found.entry(lease.key());
            let address = entry.or_insert_with_key(|key| unused(key, lease, state, reclaim));
            address.owner = lease.claim.owner.as_ref().map(ToString::to_string).unwrap_or_default();
            address.ttl_seconds = oper::time_left(lease, &state.ledger);
        }
        let fixed = services(intent).chain(gateways(intent));
        found.extend(fixed.filter(|(key, _)| self.has(&key.network)));
        let mut addresses: Vec<_> = found.into_values().collect();
        addresses.retain(|address| !self.leaks_only || !address.leak.is_empty());
        addresses
    }

    fn has(&self, network: &NetworkKey) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| *tenant == network.tenant)
            && self.network.as_ref().is_none_or(|name| *name == network.network)
    }
}

fn services(intent: &Intent) -> impl Iterator<Item = (LeaseKey, v1::Address)> {
    intent.services().map(|service| {
        let key = LeaseKey { network: service.spec.network_key(), address: service.vip.into() };
        let owner = service.spec.key.service.to_string();
        let shown = v1::Address { state: "service".to_owned(), owner, ..named(&key) };
        (key, shown)
    })
}

fn gateways(intent: &Intent) -> impl Iterator<Item = (LeaseKey, v1::Address)> {
    intent.networks().flat_map(|network| {
        let both = [network.gateway.map(IpAddr::from), network.gateway6.map(IpAddr::from)];
        both.into_iter().flatten().map(|address| {
            let key = LeaseKey { network: network.key.clone(), address };
            let shown = v1::Address { state: "gateway".to_owned(), ..named(&key) };
            (key, shown)
        })
    })
}

fn used(key: &LeaseKey, endpoint: &Endpoint, reclaim: &Reclaim) -> v1::Address {
    let node = &endpoint.host.node;
    let leak = if reclaim.sessions.standing(node).dead {
        let id = &endpoint.id;
        format!("node {node} is dead: release it with --owner {id} if the node does not come back")
    } else if reclaim.sessions.is_missing(node, &endpoint.id) {
        format!("node {node} does not have it: deleted when it says so once more")
    } else {
        String::new()
    };
    v1::Address {
        state: "used".to_owned(),
        endpoint_id: endpoint.id.to_string(),
        homing_host: node.to_string(),
        leak,
        ..named(key)
    }
}

fn unused(key: &LeaseKey, lease: &AddressLease, state: &State, reclaim: &Reclaim) -> v1::Address {
    let word = if lease.is_reserved() { "reserved" } else { "leaving" };
    let left_at = state.left_at.get(key);
    let waiting = left_at.map(|revision| reclaim.waiting_for(state, *revision));
    v1::Address { state: word.to_owned(), waiting_for: waiting.unwrap_or_default(), ..named(key) }
}

fn named(key: &LeaseKey) -> v1::Address {
    v1::Address {
        tenant_name: key.network.tenant.to_string(),
        network_name: key.network.network.to_string(),
        address: key.address.to_string(),
        ..v1::Address::default()
    }
}
