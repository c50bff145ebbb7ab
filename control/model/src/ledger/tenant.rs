//! Writes of tenants.

use super::{Change, Ledger, Outcome, unchanged};
use crate::intent::Object;
use crate::key::Key;
use crate::name::TenantName;
use crate::refusal::{Reason, Refused};
use crate::tenant::{Tenant, TenantChange, TenantSettings, TenantSpec};

impl Ledger {
    pub(super) fn create_tenant(&mut self, spec: TenantSpec) -> Result<Outcome, Refused> {
        if let Some(tenant) = self.intent.tenants.get(&spec.name) {
            if spec.default_network != tenant.default_network {
                return Err(other_default_network(&spec));
            }
            // A second create must not turn deny into allow; only an update changes settings.
            let wanted = tenant.settings.changed_by(&spec.change);
            if let Some((field, value)) = tenant.settings.difference(&wanted) {
                return Err(Refused::new(field, &value, Reason::TenantImmutable));
            }
            return Ok(unchanged(Object::Tenant(tenant.clone())));
        }
        check_burst(&spec.change, Reason::BurstSmall)?;
        let vrf = self.counters.next_vrf()?;
        let TenantSpec { name, default_network, change } = spec;
        let settings = TenantSettings::default().changed_by(&change);
        Ok(self.commit_one(Object::Tenant(Tenant { name, default_network, settings, vrf })))
    }

    /// Only the settings that are named; the rest stays, also a default network.
    pub(super) fn update_tenant(&mut self, spec: &TenantSpec) -> Result<Outcome, Refused> {
        let Some(tenant) = self.intent.tenants.get(&spec.name) else {
            return Err(Refused::new("tenantName", &spec.name, Reason::TenantNotFound));
        };
        if spec.default_network.is_some() && spec.default_network != tenant.default_network {
            return Err(other_default_network(spec));
        }
        check_burst(&spec.change, Reason::UpdateBurstSmall)?;
        let settings = tenant.settings.changed_by(&spec.change);
        if settings == tenant.settings {
            return Ok(unchanged(Object::Tenant(tenant.clone())));
        }
        let changed = Tenant { settings, ..tenant.clone() };
        Ok(self.commit_one(Object::Tenant(changed)))
    }

    pub(super) fn delete_tenant(&mut self, name: &TenantName) -> Result<Vec<Change>, Refused> {
        let key = Key::Tenant(name.clone());
        self.require(&key, "key", Reason::TenantNotFound)?;
        let refuse = |reason| Err(Refused::new("key", name, reason));
        let text = name.to_string();
        let profiles = self.intent.app_profiles.keys().filter(|key| key.tenant == *name).count();
        if profiles > 0 {
            return refuse(Reason::TenantHasAppProfiles { name: text, count: profiles });
        }
        let groups = self.intent.groups.keys().filter(|key| key.tenant == *name).count();
        if groups > 0 {
            return refuse(Reason::TenantHasGroups { name: text, count: groups });
        }
        let policies = self.intent.policies.iter().filter(|key| key.tenant == *name).count();
        if policies > 0 {
            return refuse(Reason::TenantHasPolicies { name: text, count: policies });
        }
        let profiles = self.intent.profiles.keys().filter(|key| key.tenant == *name).count();
        if profiles > 0 {
            return refuse(Reason::TenantHasNetprofiles { name: text, count: profiles });
        }
        let networks = self.intent.networks.keys().filter(|key| key.tenant == *name).count();
        if networks > 0 {
            return refuse(Reason::TenantHasNetworks { name: text, count: networks });
        }
        if *name == TenantName::default_tenant() {
            return refuse(Reason::TenantIsDefault);
        }
        Ok(self.commit(vec![Change::Remove(key)]))
    }
}

fn other_default_network(spec: &TenantSpec) -> Refused {
    let value = spec.default_network.as_ref().map_or("", |network| network.as_str());
    Refused::new("defaultNetwork", value, Reason::TenantImmutable)
}

fn check_burst(change: &TenantChange, small: Reason) -> Result<(), Refused> {
    match change.burst {
        Some(burst) if burst.is_too_small() => {
            Err(Refused::new("burst", &burst.kilobytes(), small))
        }
        Some(_) | None => Ok(()),
    }
}
