//! Writes of endpoints, nodes and reserved addresses.

use super::{Change, Ledger, Outcome, unchanged};
use crate::endpoint::{AddressLease, Endpoint, EndpointSpec, LeaseSpec, Node, mac_for};
use crate::intent::Object;
use crate::key::{GroupKey, Key, LeaseKey, NetworkKey};
use crate::name::{EndpointId, GroupName, NodeName, Owner};
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
        let holdings = self.holdings.get_mut(&spec.network).ok_or_else(missing)?;
        let address = holdings.choose(spec.group.as_ref(), spec.address, spec.id.as_str())?;
        let mac = spec.mac.unwrap_or_else(|| mac_for(&spec.network.tenant, address));
        if let Some(owner) = holdings.mac_owner(mac) {
            let reason = Reason::MacTaken { owner: owner.to_string() };
            return Err(Refused::new("macAddress", &mac, reason));
        }
        let was_reserved = holdings.holder(address).is_some();
        let handed = holdings.hand_over(address, Holder::Endpoint(spec.id.clone()));
        handed.map_err(|why| not_chosen(address, &why))?;
        holdings.add_mac(mac, spec.id.clone());
        let EndpointSpec { id, network, group, address: _, mac: _, host } = spec;
        let lease = LeaseKey { network: network.clone(), address };
        let object = Object::Endpoint(Endpoint { id, network, group, address, mac, host });
        let mut changes = vec![Change::Put(object.clone())];
        if was_reserved {
            changes.push(Change::Remove(Key::AddressLease(lease)));
        }
        Ok(Outcome { object, changes: self.commit(changes) })
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
        if let Some(holdings) = self.holdings.get_mut(&endpoint.network) {
            holdings.release(endpoint.address);
            holdings.remove_mac(endpoint.mac);
        }
        Ok(self.commit(vec![Change::Remove(Key::Endpoint(id.clone()))]))
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

    /// Reserves an address for its owner; the same request gives the same address.
    pub(super) fn reserve(&mut self, spec: &LeaseSpec) -> Result<Outcome, Refused> {
        self.check_member(&spec.network, spec.group.as_ref(), "endpointGroup")?;
        let missing = || Refused::new("networkName", &spec.network, Reason::NetworkNotFound);
        let holdings = self.holdings.get_mut(&spec.network).ok_or_else(missing)?;
        let address = holdings.choose(spec.group.as_ref(), spec.address, spec.owner.as_str())?;
        let (network, owner) = (spec.network.clone(), spec.owner.clone());
        let lease = AddressLease { network, address, owner };
        if holdings.holder(address).is_some() {
            return Ok(unchanged(Object::AddressLease(lease)));
        }
        let handed = holdings.hand_over(address, Holder::Lease(spec.owner.clone()));
        handed.map_err(|why| not_chosen(address, &why))?;
        Ok(self.commit_one(Object::AddressLease(lease)))
    }

    /// Gives a reserved address back, as its owner; one nobody has is fine, so that it can be
    /// repeated.
    ///
    /// # Errors
    /// [`Refused`] when an endpoint or somebody else has it, or the network does not exist.
    pub fn release(&mut self, key: &LeaseKey, owner: &Owner) -> Result<Vec<Change>, Refused> {
        self.require_network(&key.network, "networkName")?;
        let held_by = self.holdings.get(&key.network).and_then(|h| h.holder(key.address));
        let Some(holder) = held_by else { return Ok(Vec::new()) };
        if holder.lease_owner().is_some_and(|lease| lease != owner) {
            let reason = Reason::NotOwner { owner: holder.to_string() };
            return Err(Refused::new("owner", owner, reason));
        }
        self.cancel(key)
    }

    /// Ends a reservation, whoever has it.
    pub(super) fn cancel(&mut self, key: &LeaseKey) -> Result<Vec<Change>, Refused> {
        let refuse = |reason| Refused::new("address", key, reason);
        let missing = || refuse(Reason::LeaseNotFound);
        let holdings = self.holdings.get_mut(&key.network).ok_or_else(missing)?;
        match holdings.holder(key.address).ok_or_else(missing)? {
            Holder::Gateway => Err(refuse(Reason::LeaseNotFound)),
            Holder::Endpoint(id) => {
                Err(refuse(Reason::LeaseHasEndpoint { endpoint: id.to_string() }))
            }
            Holder::Service(service) => {
                Err(refuse(Reason::LeaseHasService { service: service.to_string() }))
            }
            Holder::Lease(_) => {
                holdings.release(key.address);
                Ok(self.commit(vec![Change::Remove(Key::AddressLease(key.clone()))]))
            }
        }
    }

    /// Tenant, network and group exist, and the group is one of that network.
    fn check_member(
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
            None => Err(Refused::new(field, &key, Reason::GroupNotFound)),
            Some(found) if found.spec.network == network.network => Ok(()),
            Some(found) => {
                let other = found.spec.network.to_string();
                Err(Refused::new(field, &key, Reason::GroupOfOtherNetwork { network: other }))
            }
        }
    }
}

/// Choosing and handing over are one step under one borrow, so this names a bug, not a race.
pub(super) fn not_chosen(address: std::net::Ipv4Addr, why: &Unavailable) -> Refused {
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
    if let Some(address) = spec.address.filter(|address| *address != endpoint.address) {
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
