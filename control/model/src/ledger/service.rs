//! Writes of services, and the addresses they get.

use super::address::{Asking, Purpose};
use super::endpoint::not_chosen;
use super::{Change, Ledger, Outcome, unchanged};
use crate::intent::Object;
use crate::key::{Key, LeaseKey, ServiceKey};
use crate::name::TenantName;
use crate::pool::Holder;
use crate::refusal::{Reason, Refused};
use crate::service::{Service, ServiceSpec};

impl Ledger {
    /// A second create changes selectors and ports: clients keep the address.
    pub(super) fn create_service(&mut self, spec: ServiceSpec) -> Result<Outcome, Refused> {
        if let Some(known) = self.intent.services.get(&spec.key) {
            let known = known.clone();
            return self.change_service(known, spec);
        }
        self.require_named_tenant(&spec.key.tenant)?;
        let missing = || {
            let reason = Reason::NamedNetworkNotFound { network: spec.network.to_string() };
            Refused::new("networkName", &spec.network, reason)
        };
        let holdings = self.holdings.get_mut(&spec.network_key()).ok_or_else(missing)?;
        let vip = holdings.choose(&Asking {
            group: None,
            group_id: None,
            wanted: spec.address,
            names: &[],
            order: self.intent.global.allocation,
            purpose: Purpose::Endpoint,
        })?;
        let handed = holdings.hand_over(vip.into(), Holder::Service(spec.key.clone()));
        handed.map_err(|why| not_chosen(vip.into(), &why))?;
        let lease = LeaseKey { network: spec.network_key(), address: vip.into() };
        let object = Object::Service(Service { spec, vip });
        let mut changes = vec![Change::Put(object.clone())];
        changes.extend(self.taken_up(&lease));
        Ok(Outcome { object, changes: self.commit(changes) })
    }

    fn change_service(&mut self, known: Service, spec: ServiceSpec) -> Result<Outcome, Refused> {
        if spec.network != known.spec.network {
            return Err(Refused::new("networkName", &spec.network, Reason::ServiceImmutable));
        }
        if let Some(other) = spec.address.filter(|address| *address != known.vip) {
            return Err(Refused::new("ipAddress", &other, Reason::ServiceImmutable));
        }
        let changed = Service { spec, vip: known.vip };
        if changed == known {
            return Ok(unchanged(Object::Service(known)));
        }
        Ok(self.commit_one(Object::Service(changed)))
    }

    pub(super) fn delete_service(&mut self, key: &ServiceKey) -> Result<Vec<Change>, Refused> {
        let Some(service) = self.intent.services.get(key) else {
            return Err(Refused::new("key", key, Reason::ServiceNotFound));
        };
        if let Some(holdings) = self.holdings.get_mut(&service.spec.network_key()) {
            holdings.release(service.vip.into());
        }
        Ok(self.commit(vec![Change::Remove(Key::Service(key.clone()))]))
    }

    pub(super) fn require_named_tenant(&self, name: &TenantName) -> Result<(), Refused> {
        let missing = Reason::NamedTenantNotFound { tenant: name.to_string() };
        self.require(&Key::Tenant(name.clone()), "tenantName", missing)
    }
}
