//! Writes of endpoint groups: policies, profiles, and pools carved from the network.

use super::{Change, Ledger, Outcome, unchanged};
use crate::app_profile::AppProfile;
use crate::group::{EndpointGroup, GroupSpec};
use crate::intent::Object;
use crate::key::{GroupKey, Key, NetworkKey, PolicyKey};
use crate::name::NetworkName;
use crate::refusal::{Reason, Refused};

impl Ledger {
    /// A second create is an update: scripts of Contiv's attach policies that way.
    pub(super) fn create_group(&mut self, spec: GroupSpec) -> Result<Outcome, Refused> {
        if self.intent.groups.contains_key(&spec.key) {
            return self.update_group(spec);
        }
        let key = &spec.key;
        self.require_tenant(&key.tenant)?;
        let network = NetworkKey::new(key.tenant.clone(), spec.network.clone());
        let missing = Reason::NamedNetworkNotFound { network: spec.network.to_string() };
        self.require(&Key::Network(network.clone()), "networkName", missing)?;
        self.check_group_name(key)?;
        self.check_policies(&spec)?;
        self.check_profile(&spec)?;
        let id = self.counters.next_group()?;
        if let Some(holdings) = self.holdings.get_mut(&network) {
            holdings.carve(&spec)?;
        }
        Ok(self.commit_one(Object::EndpointGroup(EndpointGroup { spec, id })))
    }

    fn update_group(&mut self, spec: GroupSpec) -> Result<Outcome, Refused> {
        self.check_policies(&spec)?;
        self.check_profile(&spec)?;
        let Some(group) = self.intent.groups.get(&spec.key) else {
            return Err(Refused::new("groupName", &spec.key.group, Reason::GroupNotFound));
        };
        if group.spec.network != spec.network {
            let reason = Reason::GroupNetworkImmutable;
            return Err(Refused::new("networkName", &spec.network, reason));
        }
        if group.spec.pool != spec.pool {
            let value = spec.pool.map(|pool| pool.to_string()).unwrap_or_default();
            return Err(Refused::new("ipPool", &value, Reason::GroupPoolImmutable));
        }
        if group.spec.pool6 != spec.pool6 {
            let value = spec.pool6.map(|pool| pool.to_string()).unwrap_or_default();
            return Err(Refused::new("ipv6Pool", &value, Reason::GroupPoolImmutable));
        }
        if group.spec == spec {
            return Ok(unchanged(Object::EndpointGroup(group.clone())));
        }
        let changed = EndpointGroup { spec, id: group.id };
        Ok(self.commit_one(Object::EndpointGroup(changed)))
    }

    pub(super) fn delete_group(&mut self, key: &GroupKey) -> Result<Vec<Change>, Refused> {
        let Some(group) = self.intent.groups.get(key) else {
            return Err(Refused::new("key", key, Reason::GroupNotFound));
        };
        let mut profiles = self.intent.app_profiles.values();
        let has_it = |profile: &&AppProfile| {
            profile.key.tenant == key.tenant && profile.groups.contains(&key.group)
        };
        if let Some(profile) = profiles.find(has_it) {
            let (name, profile) = (key.group.to_string(), profile.key.profile.to_string());
            let reason = Reason::GroupInAppProfile { name, profile };
            return Err(Refused::new("key", key, reason));
        }
        let in_group = |tenant, name: Option<_>| key.tenant == tenant && name == Some(&key.group);
        let endpoints = self.intent.endpoints.values();
        if endpoints.clone().any(|e| in_group(e.network.tenant.clone(), e.group.as_ref())) {
            let reason = Reason::GroupHasEndpoints { name: key.group.to_string() };
            return Err(Refused::new("key", key, reason));
        }
        let network = NetworkKey::new(key.tenant.clone(), group.spec.network.clone());
        if let Some(holdings) = self.holdings.get_mut(&network) {
            holdings.restore(&key.group);
        }
        Ok(self.commit(vec![Change::Remove(Key::EndpointGroup(key.clone()))]))
    }

    fn check_group_name(&self, key: &GroupKey) -> Result<(), Refused> {
        let name = NetworkName::parse("groupName", key.group.as_str())?;
        let network = NetworkKey::new(key.tenant.clone(), name);
        if self.intent.networks.contains_key(&network) {
            let reason = Reason::NetworkHasGroupName { name: key.group.to_string() };
            return Err(Refused::new("groupName", &key.group, reason));
        }
        Ok(())
    }

    fn check_profile(&self, spec: &GroupSpec) -> Result<(), Refused> {
        spec.profile_key().map_or(Ok(()), |key| self.require_profile(&key, "netProfile"))
    }

    fn check_policies(&self, spec: &GroupSpec) -> Result<(), Refused> {
        for policy in &spec.policies {
            let key = PolicyKey { tenant: spec.key.tenant.clone(), policy: policy.clone() };
            if !self.intent.policies.contains(&key) {
                return Err(Refused::new("policies", policy, Reason::PolicyNotFound));
            }
        }
        Ok(())
    }
}
