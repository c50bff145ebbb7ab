//! Writes of endpoints and nodes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowtable::ids::Group;

use super::address::{Asking, Purpose};
use super::{Change, Ledger, Outcome, unchanged};
use crate::endpoint::{Endpoint, EndpointSpec, Node, mac_for};
use crate::intent::Object;
use crate::key::{GroupKey, Key, LeaseKey, NetworkKey};
use crate::name::{EndpointId, GroupName, NodeName};
use crate::pool::{Holder, Unavailable};
use crate::refusal::{Reason, Refused};

impl Ledger {
    /// The same request for the same id gives the same endpoint, so that it can be repeated.
    pub(super) fn create_endpoint(&mut self, spec: EndpointSpec) -> Result<Outcome, Refused> {
        if let Some(endpoint) = self.intent.endpoints.get(&spec.id) {
            check_same(endpoint, &spec)?;
            return Ok(unchanged(Object::Endpoint(endpoint.clone())));
        }
        self.check_member(&spec.network, spec.group.as_ref(), "endpointGroup")?;
        if !self.intent.nodes.contains_key(&spec.host.node) {
            let reason = Reason::NodeGone { host: spec.host.node.to_string() };
            return Err(Refused::new("homingHost", &spec.host.node, reason));
        }
        let missing = || Refused::new("networkName", &spec.network, Reason::NetworkNotFound);
        let (address, address6) = self.choose_addresses(&spec)?;
        let holdings = self.holdings.get_mut(&spec.network).ok_or_else(missing)?;
        let mac = spec.mac.unwrap_or_else(|| mac_for(&spec.network.tenant, address));
        if let Some(owner) = holdings.mac_owner(mac) {
            let reason = Reason::MacTaken { owner: owner.to_string() };
            return Err(Refused::new("macAddress", &mac, reason));
        }
        let EndpointSpec { id, network, group, wanted: _, mac: _, host, running: _ } = spec;
        let endpoint = Endpoint { id, network, group, address, address6, mac, host };
        for address in endpoint.addresses() {
            let handed = holdings.hand_over(address, Holder::Endpoint(endpoint.id.clone()));
            handed.map_err(|why| not_chosen(address, &why))?;
        }
        holdings.add_mac(mac, endpoint.id.clone());
        let object = Object::Endpoint(endpoint.clone());
        let mut changes = vec![Change::Put(object.clone())];
        for address in endpoint.addresses() {
            let lease = LeaseKey { network: endpoint.network.clone(), address };
            changes.extend(self.taken_up(&lease));
        }
        Ok(Outcome { object, changes: self.commit(changes) })
    }

    /// The addresses it gets; an IPv6 one if its network hands any out.
    fn choose_addresses(
        &self,
        spec: &EndpointSpec,
    ) -> Result<(Ipv4Addr, Option<Ipv6Addr>), Refused> {
        let missing = || Refused::new("networkName", &spec.network, Reason::NetworkNotFound);
        let holdings = self.holdings.get(&spec.network).ok_or_else(missing)?;
        let name = spec.host.container_name.as_str();
        let names = [spec.id.as_str(), name];
        let asking = Asking {
            group: spec.group.as_ref(),
            group_id: self.group_id(&spec.network, spec.group.as_ref()),
            wanted: spec.wanted.v4,
            names: if name.is_empty() { &names[..1] } else { &names },
            order: self.intent.global.allocation,
            purpose: if spec.running { Purpose::Running } else { Purpose::Endpoint },
        };
        let address = holdings.choose(&asking)?;
        if !holdings.has_ipv6() && spec.wanted.v6.is_none() {
            return Ok((address, None));
        }
        Ok((address, Some(holdings.choose6(&asking.wanting(spec.wanted.v6))?)))
    }

    /// Only what its runtime calls it can change.
    pub(super) fn update_endpoint(&mut self, spec: EndpointSpec) -> Result<Outcome, Refused> {
        let Some(endpoint) = self.intent.endpoints.get(&spec.id) else {
            return Err(Refused::new("endpointID", &spec.id, Reason::EndpointNotFound));
        };
        check_same(endpoint, &spec)?;
        if endpoint.host == spec.host {
            return Ok(unchanged(Object::Endpoint(endpoint.clone())));
        }
        let changed = Endpoint { host: spec.host, ..endpoint.clone() };
        Ok(self.commit_one(Object::Endpoint(changed)))
    }

    pub(super) fn delete_endpoint(&mut self, id: &EndpointId) -> Result<Vec<Change>, Refused> {
        let Some(endpoint) = self.intent.endpoints.get(id) else {
            return Err(Refused::new("key", id, Reason::EndpointNotFound));
        };
        let (network, mac) = (endpoint.network.clone(), endpoint.mac);
        let leases = self.left_behind(endpoint);
        if let Some(holdings) = self.holdings.get_mut(&network) {
            for lease in &leases {
                let holder = Holder::Lease(lease.claim.clone());
                let handed = holdings.hand_over(lease.address, holder);
                handed.map_err(|why| not_chosen(lease.address, &why))?;
            }
            holdings.remove_mac(mac);
        }
        let mut changes = vec![Change::Remove(Key::Endpoint(id.clone()))];
        changes.extend(leases.into_iter().map(|lease| Change::Put(Object::AddressLease(lease))));
        Ok(self.commit(changes))
    }

    /// A node says it is there, first or again.
    pub(super) fn register_node(&mut self, node: Node) -> Result<Outcome, Refused> {
        let mut others = self.intent.nodes.values().filter(|other| other.name != node.name);
        let twin = others.find(|other| other.vtep.is_some() && other.vtep == node.vtep);
        if let Some((twin, vtep)) = twin.zip(node.vtep) {
            let reason = Reason::VtepTaken { node: twin.name.to_string() };
            return Err(Refused::new("vtepIP", &vtep, reason));
        }
        if self.intent.nodes.get(&node.name) == Some(&node) {
            return Ok(unchanged(Object::Node(node)));
        }
        Ok(self.commit_one(Object::Node(node)))
    }

    pub(super) fn delete_node(&mut self, name: &NodeName) -> Result<Vec<Change>, Refused> {
        let key = Key::Node(name.clone());
        self.require(&key, "key", Reason::NodeNotFound)?;
        let count = self.intent.endpoints.values().filter(|e| e.host.node == *name).count();
        if count > 0 {
            let reason = Reason::NodeHasEndpoints { name: name.to_string(), count };
            return Err(Refused::new("key", name, reason));
        }
        Ok(self.commit(vec![Change::Remove(key)]))
    }

    /// Tenant, network and group exist, and the group is one of that network.
    pub(super) fn check_member(
        &self,
        network: &NetworkKey,
        group: Option<&GroupName>,
        field: &'static str,
    ) -> Result<(), Refused> {
        self.require_tenant(&network.tenant)?;
        self.require_network(network, "networkName")?;
        let Some(group) = group else { return Ok(()) };
        let key = GroupKey { tenant: network.tenant.clone(), group: group.clone() };
        match self.intent.groups.get(&key) {
            None => Err(Refused::new(field, &key.group, Reason::GroupNotFound)),
            Some(found) if found.spec.network == network.network => Ok(()),
            Some(found) => {
                let other = found.spec.network.to_string();
                Err(Refused::new(field, &key.group, Reason::GroupOfOtherNetwork { network: other }))
            }
        }
    }
}

impl Ledger {
    pub(super) fn group_id(
        &self,
        network: &NetworkKey,
        group: Option<&GroupName>,
    ) -> Option<Group> {
        let key = GroupKey { tenant: network.tenant.clone(), group: group?.clone() };
        self.intent.groups.get(&key).map(|group| group.id)
    }
}

/// Choosing and handing over are one step under one borrow, so this names a bug, not a race.
pub(super) fn not_chosen(address: IpAddr, why: &Unavailable) -> Refused {
    debug_assert!(false, "{address} was chosen and is not available: {why:?}");
    let (address, owner) = (address.to_string(), "somebody else".to_owned());
    Refused::new("ipAddress", &address.clone(), Reason::AddressTaken { address, owner })
}

/// What makes an endpoint what it is can't be asked for differently.
fn check_same(endpoint: &Endpoint, spec: &EndpointSpec) -> Result<(), Refused> {
    let refuse = |field, value: String| Err(Refused::new(field, &value, Reason::EndpointImmutable));
    if spec.network != endpoint.network {
        return refuse("networkName", spec.network.to_string());
    }
    if spec.group != endpoint.group {
        let group = spec.group.as_ref().map(ToString::to_string).unwrap_or_default();
        return refuse("endpointGroup", group);
    }
    if let Some(address) = spec.wanted.v4.filter(|address| *address != endpoint.address) {
        return refuse("ipAddress", address.to_string());
    }
    if let Some(address) = spec.wanted.v6.filter(|address| Some(*address) != endpoint.address6) {
        return refuse("ipAddress", address.to_string());
    }
    if let Some(mac) = spec.mac.filter(|mac| *mac != endpoint.mac) {
        return refuse("macAddress", mac.to_string());
    }
    if spec.host.node != endpoint.host.node {
        return refuse("homingHost", spec.host.node.to_string());
    }
    Ok(())
}
