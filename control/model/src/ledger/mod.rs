//! What only the master needs: intent plus everything that is handed out, and the checks of every
//! write. A write either changes everything it has to or, refused, nothing; the changes it returns
//! are what must be stored in one transaction. All of the ledger can be rebuilt from stored objects
//! and counters, so that nothing is true only in memory.

mod address;
mod app_profile;
mod batch;
mod bgp;
mod endpoint;
mod global;
mod group;
mod holdings;
mod lease;
mod network;
mod policy;
mod profile;
mod rebuild;
mod service;
mod tenant;

use std::collections::BTreeMap;

use flowtable::ids::{Bd, Group, RuleId, Vrf};

pub use batch::{Action, Applied, Batch, RefusedObject};
pub use holdings::Holdings;
pub use lease::{AT_ONCE, CLOCK_STEP_SECONDS};
pub use rebuild::Damaged;

use crate::compile::GROUP_MAX;
use crate::endpoint::Served;
use crate::intent::{Intent, Object, Spec};
use crate::key::{GroupKey, Key, NetworkKey};
use crate::name::TenantName;
use crate::refusal::{Reason, Refused};
use crate::tag::TagPool;

/// The numbers given last, and the clock. They only grow, so that an old number in a sample, a counter or a late
/// node's table never means something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    vrf: u32,
    bd: u32,
    group: u32,
    cookie: u64,
    /// See [`Served`].
    #[serde(default)]
    served: u64,
}

impl Counters {
    /// Counts up to the identifiers of `object`, so that they are not given again.
    fn note(&mut self, object: &Object) {
        match object {
            Object::Tenant(o) => self.vrf = self.vrf.max(o.vrf.get()),
            Object::Network(o) => self.bd = self.bd.max(o.bd.get()),
            Object::EndpointGroup(o) => self.group = self.group.max(o.id.get()),
            Object::Rule(o) => self.cookie = self.cookie.max(o.cookie.0),
            Object::Policy(_)
            | Object::Global(_)
            | Object::Endpoint(_)
            | Object::Node(_)
            | Object::AddressLease(_)
            | Object::NetProfile(_)
            | Object::Service(_)
            | Object::AppProfile(_)
            | Object::Bgp(_) => {}
        }
    }

    fn next_vrf(self) -> Result<Vrf, Refused> {
        Vrf::new(self.vrf + 1).map_err(|_range| no_ids("vrf"))
    }

    fn next_bd(self) -> Result<Bd, Refused> {
        Bd::new(self.bd + 1).map_err(|_range| no_ids("bd"))
    }

    fn next_group(self) -> Result<Group, Refused> {
        // A group's meters carry its number in 30 bits.
        let next = self.group.checked_add(1).filter(|next| *next <= GROUP_MAX);
        let next = next.ok_or_else(|| no_ids("groupId"))?;
        Group::new(next).map_err(|_range| no_ids("groupId"))
    }

    fn next_cookie(self) -> Result<RuleId, Refused> {
        self.cookie.checked_add(1).map(RuleId).ok_or_else(|| no_ids("cookie"))
    }
}

fn no_ids(field: &'static str) -> Refused {
    Refused::new(field, "", Reason::NoIds)
}

/// One step of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Insert or replace.
    Put(Object),
    /// Remove.
    Remove(Key),
}

/// What a write did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The object as it is now.
    pub object: Object,
    /// What changed; nothing when it was so already.
    pub changes: Vec<Change>,
}

/// Intent and everything that is handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    intent: Intent,
    counters: Counters,
    vlans: TagPool,
    vxlans: TagPool,
    holdings: BTreeMap<NetworkKey, Holdings>,
}

impl Default for Ledger {
    fn default() -> Self {
        let intent = Intent::default();
        Self {
            vlans: TagPool::new(intent.global.vlans),
            vxlans: TagPool::new(intent.global.vxlans),
            intent,
            counters: Counters::default(),
            holdings: BTreeMap::new(),
        }
    }
}

impl Ledger {
    /// Everything stored.
    #[must_use]
    pub const fn intent(&self) -> &Intent {
        &self.intent
    }

    /// The numbers given last: to be stored with the objects that got them.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// The clock reservations end by.
    #[must_use]
    pub const fn served(&self) -> Served {
        Served(self.counters.served)
    }

    /// Addresses of a network.
    #[must_use]
    pub fn holdings(&self, network: &NetworkKey) -> Option<&Holdings> {
        self.holdings.get(network)
    }

    /// VLAN tags.
    #[must_use]
    pub const fn vlans(&self) -> &TagPool {
        &self.vlans
    }

    /// VNIs.
    #[must_use]
    pub const fn vxlans(&self) -> &TagPool {
        &self.vxlans
    }

    /// Creates an object. One that is there already, and alike, is accepted; groups, both
    /// kinds of profiles, services, BGP and the global settings are updated, as with Contiv.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub fn create(&mut self, spec: Spec) -> Result<Outcome, Refused> {
        match spec {
            Spec::Tenant(spec) => self.create_tenant(spec),
            Spec::Network(spec) => self.create_network(spec),
            Spec::EndpointGroup(spec) => self.create_group(spec),
            Spec::Policy(key) => self.create_policy(key),
            Spec::Rule(spec) => self.create_rule(spec),
            Spec::Global(spec) => self.set_global(&spec),
            Spec::Endpoint(spec) => self.create_endpoint(spec),
            Spec::Node(node) => self.register_node(node),
            Spec::AddressLease(spec) => self.reserve(&spec),
            Spec::NetProfile(profile) => self.create_profile(profile),
            Spec::Service(spec) => self.create_service(spec),
            Spec::AppProfile(profile) => self.create_app_profile(profile),
            Spec::Bgp(bgp) => Ok(self.put_bgp(bgp)),
        }
    }

    /// Changes the fields of an object that can be changed.
    ///
    /// # Errors
    /// [`Refused`] when it does not exist or a field can't be changed; nothing has changed then.
    pub fn update(&mut self, spec: Spec) -> Result<Outcome, Refused> {
        match spec {
            Spec::Tenant(spec) => self.update_tenant(&spec),
            Spec::Network(spec) => self.update_network(&spec),
            Spec::EndpointGroup(spec) => {
                self.require_group(&spec.key, "groupName")?;
                self.create_group(spec)
            }
            Spec::Policy(key) => {
                self.require_policy(&key)?;
                self.create_policy(key)
            }
            Spec::Rule(spec) => {
                self.require(&Key::Rule(spec.key.clone()), "ruleId", Reason::RuleNotFound)?;
                self.create_rule(spec)
            }
            Spec::Global(spec) => self.set_global(&spec),
            Spec::Endpoint(spec) => self.update_endpoint(spec),
            Spec::Node(node) => self.register_node(node),
            Spec::AddressLease(spec) => self.reserve(&spec),
            Spec::NetProfile(profile) => {
                self.require_profile(&profile.key, "profileName")?;
                self.create_profile(profile)
            }
            Spec::Service(spec) => {
                let key = Key::Service(spec.key.clone());
                self.require(&key, "serviceName", Reason::ServiceNotFound)?;
                self.create_service(spec)
            }
            Spec::AppProfile(profile) => {
                let key = Key::AppProfile(profile.key.clone());
                self.require(&key, "appProfileName", Reason::AppProfileNotFound)?;
                self.create_app_profile(profile)
            }
            Spec::Bgp(bgp) => {
                let key = Key::Bgp(bgp.host.clone());
                self.require(&key, "hostname", Reason::BgpNotFound)?;
                Ok(self.put_bgp(bgp))
            }
        }
    }

    /// Deletes an object and gives back what it held.
    ///
    /// # Errors
    /// [`Refused`] when it does not exist or is in use; nothing has changed then.
    pub fn delete(&mut self, key: &Key) -> Result<Vec<Change>, Refused> {
        match key {
            Key::Tenant(name) => self.delete_tenant(name),
            Key::Network(key) => self.delete_network(key),
            Key::EndpointGroup(key) => self.delete_group(key),
            Key::Policy(key) => self.delete_policy(key),
            Key::Rule(_) => self.delete_plain(key, Reason::RuleNotFound),
            Key::Global => Err(Refused::new("key", key, Reason::GlobalPermanent)),
            Key::Endpoint(id) => self.delete_endpoint(id),
            Key::Node(name) => self.delete_node(name),
            Key::AddressLease(key) => self.cancel(key),
            Key::NetProfile(key) => self.delete_profile(key),
            Key::Service(key) => self.delete_service(key),
            Key::AppProfile(_) => self.delete_plain(key, Reason::AppProfileNotFound),
            Key::Bgp(_) => self.delete_plain(key, Reason::BgpNotFound),
        }
    }

    /// What nothing else names or holds anything for.
    fn delete_plain(&mut self, key: &Key, missing: Reason) -> Result<Vec<Change>, Refused> {
        self.require(key, "key", missing)?;
        Ok(self.commit(vec![Change::Remove(key.clone())]))
    }

    /// Brings the changes into intent. Everything that can be refused has been checked before.
    fn commit(&mut self, changes: Vec<Change>) -> Vec<Change> {
        for change in &changes {
            match change {
                Change::Put(object) => {
                    self.counters.note(object);
                    self.intent.put(object.clone());
                }
                Change::Remove(key) => self.intent.remove(key),
            }
        }
        changes
    }

    fn commit_one(&mut self, object: Object) -> Outcome {
        let changes = self.commit(vec![Change::Put(object.clone())]);
        Outcome { object, changes }
    }

    /// A field `key` holds whole keys, any other the name alone.
    fn require(&self, key: &Key, field: &'static str, reason: Reason) -> Result<(), Refused> {
        if self.intent.object(key).is_some() {
            return Ok(());
        }
        let text = key.to_string();
        let name = text.rsplit(':').next().unwrap_or_default();
        Err(Refused::new(field, if field == "key" { text.as_str() } else { name }, reason))
    }

    fn require_tenant(&self, name: &TenantName) -> Result<(), Refused> {
        self.require(&Key::Tenant(name.clone()), "tenantName", Reason::TenantNotFound)
    }

    fn require_network(&self, key: &NetworkKey, field: &'static str) -> Result<(), Refused> {
        self.require(&Key::Network(key.clone()), field, Reason::NetworkNotFound)
    }

    fn require_group(&self, key: &GroupKey, field: &'static str) -> Result<(), Refused> {
        self.require(&Key::EndpointGroup(key.clone()), field, Reason::GroupNotFound)
    }
}

/// What exists already and needs no change.
fn unchanged(object: Object) -> Outcome {
    Outcome { object, changes: Vec::new() }
}

#[cfg(test)]
pub(crate) mod tests;
