//! Token buckets of ports and tenants for what costs a worker more than a cached packet: punts to
//! the slow path, and new flows. All workers take from the same buckets.
//!
//! A bucket is one number, the time at which it would be full again (GCRA, ITU-T I.371).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use flowtable::exact::ExactMap;
use flowtable::ids::{PortId, Vrf};

/// So much a second, and at most so much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Nanoseconds a token takes to come back; 0 is no limit.
    cost_ns: u64,
    burst: u64,
}

impl Rate {
    /// `per_second` tokens a second, 0 for no limit, and `burst` at once.
    pub(crate) const fn new(per_second: u32, burst: u32) -> Self {
        let cost_ns = if per_second == 0 { 0 } else { 1_000_000_000 / per_second as u64 };
        Self { cost_ns, burst: burst as u64 }
    }

    /// When a bucket is full again after a token was taken; `None`: it has none.
    #[inline]
    fn after(self, full_at_ns: u64, now_ns: u64) -> Option<u64> {
        let next = full_at_ns.max(now_ns) + self.cost_ns;
        (next <= now_ns + self.burst * self.cost_ns).then_some(next)
    }
}

/// New flows at once, of so many a second: those of 100 ms, and of a low bound all.
pub(crate) const fn at_once(per_second: u32) -> u32 {
    let tenth = if per_second / 10 > 1000 { per_second / 10 } else { 1000 };
    if tenth < per_second { tenth } else { per_second }
}

/// What all workers of an engine take from.
#[derive(Debug)]
pub(crate) struct Budgets {
    /// New flows of a container.
    pub(crate) flows: PortBudget,
    /// New flows of a tenant.
    tenants: Mutex<TenantBudget>,
    /// Packets for the slow path.
    pub(crate) punts: PortBudget,
}

impl Budgets {
    pub(crate) fn new(port_new_flows: u32, punts: Rate) -> Self {
        Self {
            flows: PortBudget::new(Rate::new(port_new_flows, at_once(port_new_flows))),
            tenants: Mutex::default(),
            punts: PortBudget::new(punts),
        }
    }

    /// Whether a tenant may open one more flow, of so many a second.
    pub(crate) fn take_tenant(&self, vrf: Vrf, rate: Rate, now_ns: u64) -> bool {
        // A bucket is one number: a panic leaves none half written.
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner).take(vrf, rate, now_ns)
    }
}

/// One bucket a port, all of one rate.
#[derive(Debug)]
pub(crate) struct PortBudget {
    rate: Rate,
    full_at_ns: Box<[AtomicU64]>,
}

impl PortBudget {
    pub(crate) fn new(rate: Rate) -> Self {
        let ports = usize::from(PortId::MAX.get()) + 1;
        Self { rate, full_at_ns: (0..ports).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(crate) fn take(&self, port: PortId, now_ns: u64) -> bool {
        let bucket = &self.full_at_ns[usize::from(port.get())];
        // The number is all that is shared, nothing is published by it.
        bucket.fetch_update(Relaxed, Relaxed, |full| self.rate.after(full, now_ns)).is_ok()
    }
}

/// One bucket a tenant; rates are the tenants' own.
#[derive(Debug, Default)]
pub(crate) struct TenantBudget {
    full_at_ns: ExactMap<Vrf, u64>,
}

impl TenantBudget {
    /// Tenants at whose number full buckets are forgotten: gone ones must not add up.
    const TENANTS_MAX: usize = 1 << 16;

    pub(crate) fn take(&mut self, vrf: Vrf, rate: Rate, now_ns: u64) -> bool {
        if self.full_at_ns.len() >= Self::TENANTS_MAX {
            self.full_at_ns.retain(|_, full_at_ns| *full_at_ns > now_ns);
        }
        let full_at_ns = self.full_at_ns.entry(vrf).or_insert(0);
        let next = rate.after(*full_at_ns, now_ns);
        *full_at_ns = next.unwrap_or(*full_at_ns);
        next.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_gets_its_burst_and_then_its_rate() {
        let budget = PortBudget::new(Rate::new(1000, 256));
        let (port, other) = (PortId::new(3).unwrap(), PortId::new(4).unwrap());
        let start = 5_000_000_000;
        assert_eq!((0..1000).filter(|_| budget.take(port, start)).count(), 256);
        assert!(budget.take(other, start));
        assert_eq!((0..1000).filter(|_| budget.take(port, start + 10_000_000)).count(), 10);
    }

    #[test]
    fn tenants_have_their_own_rates_and_zero_is_no_limit() {
        let mut budget = TenantBudget::default();
        let (one, two) = (Vrf::new(1).unwrap(), Vrf::new(2).unwrap());
        let taken = |budget: &mut TenantBudget, vrf, rate| {
            (0..1000).filter(|_| budget.take(vrf, rate, 7)).count()
        };
        assert_eq!(taken(&mut budget, one, Rate::new(10, 5)), 5);
        assert_eq!(taken(&mut budget, two, Rate::new(0, 0)), 1000);
        assert_eq!(taken(&mut budget, one, Rate::new(10, 8)), 3);
    }
}
