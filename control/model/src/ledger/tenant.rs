//! Writes of tenants.

use flowtable::entry::Permit;

use super::{Change, Ledger, Outcome, unchanged};
use crate::intent::Object;
use crate::key::Key;
use crate::name::TenantName;
use crate::refusal::{Reason, Refused};
use crate::tenant::{Tenant, TenantSpec};

impl Ledger {
    pub(super) fn create_tenant(&mut self, spec: TenantSpec) -> Result<Outcome, Refused> {
        if let Some(tenant) = self.intent.tenants.get(&spec.name) {
            check_default_network(tenant, &spec)?;
            // A second create must not turn deny into allow; only an update changes the verdict.
            if spec.default_verdict.is_some_and(|verdict| verdict != tenant.default_verdict) {
                let reason = Reason::TenantImmutable;
                return Err(Refused::new("defaultVerdict", &spec.name, reason));
            }
            return Ok(unchanged(Object::Tenant(tenant.clone())));
        }
        let vrf = self.counters.next_vrf()?;
        let TenantSpec { name, default_network, default_verdict } = spec;
        let default_verdict = default_verdict.unwrap_or(Permit::Allow);
        Ok(self.commit_one(Object::Tenant(Tenant { name, default_network, default_verdict, vrf })))
    }

    pub(super) fn update_tenant(&mut self, spec: &TenantSpec) -> Result<Outcome, Refused> {
        let Some(tenant) = self.intent.tenants.get(&spec.name) else {
            return Err(Refused::new("tenantName", &spec.name, Reason::TenantNotFound));
        };
        check_default_network(tenant, spec)?;
        let default_verdict = spec.default_verdict.unwrap_or(tenant.default_verdict);
        if default_verdict == tenant.default_verdict {
            return Ok(unchanged(Object::Tenant(tenant.clone())));
        }
        let changed = Tenant { default_verdict, ..tenant.clone() };
        Ok(self.commit_one(Object::Tenant(changed)))
    }

    pub(super) fn delete_tenant(&mut self, name: &TenantName) -> Result<Vec<Change>, Refused> {
        let key = Key::Tenant(name.clone());
        self.require(&key, "key", Reason::TenantNotFound)?;
        let refuse = |reason| Err(Refused::new("key", name, reason));
        let text = name.to_string();
        let groups = self.intent.groups.keys().filter(|key| key.tenant == *name).count();
        if groups > 0 {
            return refuse(Reason::TenantHasGroups { name: text, count: groups });
        }
        let policies = self.intent.policies.iter().filter(|key| key.tenant == *name).count();
        if policies > 0 {
            return refuse(Reason::TenantHasPolicies { name: text, count: policies });
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

fn check_default_network(tenant: &Tenant, spec: &TenantSpec) -> Result<(), Refused> {
    if spec.default_network == tenant.default_network {
        return Ok(());
    }
    let value = spec.default_network.as_ref().map_or("", |network| network.as_str());
    Err(Refused::new("defaultNetwork", value, Reason::TenantImmutable))
}
