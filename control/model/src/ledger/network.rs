//! Writes of networks: tags and overlaps.

use super::holdings::Holdings;
use super::{Change, Ledger, Outcome, unchanged};
use crate::intent::Object;
use crate::key::{GroupKey, Key, NetworkKey};
use crate::name::GroupName;
use crate::network::{Encap, Network, NetworkSpec, Tag};
use crate::range::{Address, AddressRange};
use crate::refusal::{Reason, Refused};
use crate::subnet6::Subnet6;
use crate::tag::TagPool;
use crate::tenant::offload_name;

impl Ledger {
    pub(super) fn create_network(&mut self, spec: NetworkSpec) -> Result<Outcome, Refused> {
        if let Some(network) = self.intent.networks.get(&spec.key) {
            // A second create must not turn anything on; only an update does.
            let other = spec.offload.filter(|offload| *offload != network.offload);
            let other = other.map(|offload| ("offload", offload_name(offload).to_owned()));
            return match network.difference(&spec).or(other) {
                None => Ok(unchanged(Object::Network(network.clone()))),
                Some((field, value)) => Err(Refused::new(field, &value, Reason::NetworkImmutable)),
            };
        }
        self.require_tenant(&spec.key.tenant)?;
        self.check_network_name(&spec)?;
        self.check_overlap(&spec)?;
        let tag = self.choose_tag(&spec)?;
        let bd = self.counters.next_bd()?;
        self.tags_mut(spec.encap).take(tag.number());
        let network = spec.placed(tag, bd);
        self.holdings.insert(network.key.clone(), Holdings::new(&network));
        Ok(self.commit_one(Object::Network(network)))
    }

    /// Only whether flows are offloaded can be changed.
    pub(super) fn update_network(&mut self, spec: &NetworkSpec) -> Result<Outcome, Refused> {
        let Some(network) = self.intent.networks.get(&spec.key) else {
            return Err(Refused::new("networkName", &spec.key.network, Reason::NetworkNotFound));
        };
        if let Some((field, value)) = network.difference(spec) {
            return Err(Refused::new(field, &value, Reason::NetworkImmutable));
        }
        let offload = spec.offload.unwrap_or(network.offload);
        let changed = Network { offload, ..network.clone() };
        if changed == *network {
            return Ok(unchanged(Object::Network(changed)));
        }
        Ok(self.commit_one(Object::Network(changed)))
    }

    pub(super) fn delete_network(&mut self, key: &NetworkKey) -> Result<Vec<Change>, Refused> {
        let refuse = |reason| Refused::new("key", key, reason);
        let Some(network) = self.intent.networks.get(key) else {
            return Err(refuse(Reason::NetworkNotFound));
        };
        let name = key.network.to_string();
        let members = self.intent.groups.values().map(|group| &group.spec);
        let groups = members
            .filter(|spec| spec.key.tenant == key.tenant && spec.network == key.network)
            .count();
        if groups > 0 {
            return Err(refuse(Reason::NetworkHasGroups { name, count: groups }));
        }
        let services = self.intent.services.values();
        let services = services.filter(|service| service.spec.network_key() == *key).count();
        if services > 0 {
            return Err(refuse(Reason::NetworkHasServices { name, count: services }));
        }
        if self.intent.endpoints.values().any(|endpoint| endpoint.network == *key) {
            return Err(refuse(Reason::NetworkHasEndpoints));
        }
        let leases = self.intent.leases.values().filter(|lease| lease.network == *key);
        let (reserved, leaving): (Vec<_>, Vec<_>) = leases.partition(|lease| lease.is_reserved());
        if !reserved.is_empty() {
            return Err(refuse(Reason::NetworkHasLeases { name, count: reserved.len() }));
        }
        // A later network with the same addresses must not meet tables that know this one's.
        if !leaving.is_empty() {
            return Err(refuse(Reason::NetworkLeaving { name, count: leaving.len() }));
        }
        let tag = network.tag;
        self.tags_mut(tag.encap()).release(tag.number());
        self.holdings.remove(key);
        Ok(self.commit(vec![Change::Remove(Key::Network(key.clone()))]))
    }

    fn check_network_name(&self, spec: &NetworkSpec) -> Result<(), Refused> {
        let name = &spec.key.network;
        let tenant = spec.key.tenant.clone();
        let group = GroupName::parse("networkName", name.as_str())?;
        if self.intent.groups.contains_key(&GroupKey { tenant, group }) {
            let reason = Reason::GroupHasNetworkName { name: name.to_string() };
            return Err(Refused::new("networkName", name, reason));
        }
        Ok(())
    }

    fn check_overlap(&self, spec: &NetworkSpec) -> Result<(), Refused> {
        let wanted = Claimed { range: spec.subnet.range(), gateway: spec.gateway };
        let mut others = self.intent.networks_of(&spec.key.tenant);
        let conflicts = |other: &&Network| {
            let theirs = Claimed { range: other.subnet.range(), gateway: other.gateway };
            theirs.conflicts(wanted)
        };
        let Some(other) = others.find(conflicts) else { return self.check_overlap6(spec) };
        let reason = Reason::SubnetOverlap {
            network: other.key.network.to_string(),
            subnet: other.subnet.to_string(),
        };
        Err(Refused::new("subnet", &spec.subnet, reason))
    }

    fn check_overlap6(&self, spec: &NetworkSpec) -> Result<(), Refused> {
        let Some(subnet) = spec.subnet6 else { return Ok(()) };
        let wanted = Claimed { range: subnet.range(), gateway: spec.gateway6 };
        let others = self.intent.networks_of(&spec.key.tenant);
        let mut theirs = others.filter_map(|other| Some((other, other.subnet6?)));
        let conflicts = |(other, theirs): &(&Network, Subnet6)| {
            Claimed { range: theirs.range(), gateway: other.gateway6 }.conflicts(wanted)
        };
        let Some((other, theirs)) = theirs.find(conflicts) else { return Ok(()) };
        let (network, theirs) = (other.key.network.to_string(), theirs.to_string());
        let reason = Reason::Subnet6Overlap { network, subnet: theirs };
        Err(Refused::new("ipv6Subnet", &subnet, reason))
    }

    fn choose_tag(&self, spec: &NetworkSpec) -> Result<Tag, Refused> {
        let pool = self.tags(spec.encap);
        let Some(tag) = spec.tag else {
            let exhausted = match spec.encap {
                Encap::Vlan => Reason::NoVlans,
                Encap::Vxlan => Reason::NoVxlans,
            };
            let lowest = pool.lowest().ok_or_else(|| Refused::new("pktTag", &0, exhausted))?;
            return Tag::new("pktTag", spec.encap, lowest);
        };
        let number = tag.number();
        if pool.is_available(number) {
            return Ok(tag);
        }
        let reason = match spec.encap {
            Encap::Vlan => Reason::VlanUnavailable { tag: number },
            Encap::Vxlan if pool.range().contains(number) => Reason::VxlanUnavailable,
            Encap::Vxlan => Reason::VxlanOutOfRange,
        };
        Err(Refused::new("pktTag", &number, reason))
    }

    const fn tags(&self, encap: Encap) -> &TagPool {
        match encap {
            Encap::Vlan => &self.vlans,
            Encap::Vxlan => &self.vxlans,
        }
    }

    pub(super) const fn tags_mut(&mut self, encap: Encap) -> &mut TagPool {
        match encap {
            Encap::Vlan => &mut self.vlans,
            Encap::Vxlan => &mut self.vxlans,
        }
    }
}

/// What a network takes of one family.
#[derive(Debug, Clone, Copy)]
struct Claimed<A> {
    range: AddressRange<A>,
    gateway: Option<A>,
}

impl<A: Address> Claimed<A> {
    /// A gateway may lie outside its network's range, but not where another hands addresses out.
    fn conflicts(self, other: Self) -> bool {
        self.range.overlaps(other.range)
            || other.gateway.is_some_and(|gateway| self.range.contains(gateway))
            || self.gateway.is_some_and(|gateway| other.range.contains(gateway))
    }
}
