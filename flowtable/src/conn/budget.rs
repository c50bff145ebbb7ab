//! How many connections there are: in all, by tenant and by port.
//!
//! A connection takes one of each before it is made and gives them back when it is removed, so
//! the three always balance. Taken and given back under some shard's lock; the tenants' lock is
//! inside of it, and nothing is locked inside the tenants'.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};

use super::types::{Limits, Owner, Refused};
use crate::exact::ExactMap;
use crate::ids::{PortId, Vrf};

/// What a connection counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Port,
    Tenant,
    Table,
}

impl Scope {
    /// Narrowest first: a victim in it makes room in the wider ones too.
    pub(super) const ALL: [Self; 3] = [Self::Port, Self::Tenant, Self::Table];

    /// Whether a connection of `other` counts in the scope in which one of `owner` does.
    pub(super) fn is_shared(self, owner: Owner, other: Owner) -> bool {
        match self {
            Self::Port => owner.port == other.port,
            Self::Tenant => owner.vrf == other.vrf,
            Self::Table => true,
        }
    }

    pub(super) const fn refusal(self) -> Refused {
        match self {
            Self::Port => Refused::PortFull,
            Self::Tenant => Refused::TenantFull,
            Self::Table => Refused::TableFull,
        }
    }
}

/// The counters.
#[derive(Debug)]
pub(super) struct Budget {
    capacity: u32,
    open: AtomicU32,
    /// By port number.
    ports: Box<[AtomicU32]>,
    /// Only tenants that have connections.
    tenants: RwLock<ExactMap<Vrf, AtomicU32>>,
}

impl Budget {
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            capacity,
            open: AtomicU32::new(0),
            ports: (0..=PortId::MAX.get()).map(|_| AtomicU32::new(0)).collect(),
            tenants: RwLock::default(),
        }
    }

    /// Takes one of `scope`, unless all are taken.
    #[must_use]
    pub(super) fn take(&self, scope: Scope, owner: Owner, limits: Limits) -> bool {
        match scope {
            Scope::Port => take(self.port(owner.port), limits.port),
            Scope::Tenant => self.take_tenant(owner.vrf, limits.tenant),
            Scope::Table => take(&self.open, self.capacity),
        }
    }

    /// Gives back what [`Budget::take`] took.
    pub(super) fn give_back(&self, scope: Scope, owner: Owner) {
        match scope {
            Scope::Port => drop(self.port(owner.port).fetch_sub(1, Ordering::Relaxed)),
            Scope::Tenant => self.give_back_tenant(owner.vrf),
            Scope::Table => drop(self.open.fetch_sub(1, Ordering::Relaxed)),
        }
    }

    pub(super) fn open_count(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn port_count(&self, port: PortId) -> u32 {
        self.port(port).load(Ordering::Relaxed)
    }

    pub(super) fn tenant_count(&self, vrf: Vrf) -> u32 {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        tenants.get(&vrf).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Tenants that have a counter.
    #[cfg(test)]
    pub(super) fn tenants_known(&self) -> usize {
        self.tenants.read().unwrap().len()
    }

    fn port(&self, port: PortId) -> &AtomicU32 {
        &self.ports[usize::from(port.get())]
    }

    fn take_tenant(&self, vrf: Vrf, most: u32) -> bool {
        let known = {
            let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
            tenants.get(&vrf).map(|count| take(count, most))
        };
        known.unwrap_or_else(|| {
            let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
            most > 0 && take(tenants.entry(vrf).or_default(), most)
        })
    }

    fn give_back_tenant(&self, vrf: Vrf) {
        let last = {
            let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
            tenants.get(&vrf).is_some_and(|count| count.fetch_sub(1, Ordering::Relaxed) == 1)
        };
        if last {
            let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
            // Another worker may have taken one between the locks.
            if tenants.get(&vrf).is_some_and(|count| count.load(Ordering::Relaxed) == 0) {
                tenants.remove(&vrf);
            }
        }
    }
}

/// Adds one unless there are `most`. A failed exchange means that another worker's succeeded.
fn take(count: &AtomicU32, most: u32) -> bool {
    let add = |count| (count < most).then(|| count + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
}
