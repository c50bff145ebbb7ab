//! Token buckets of ports and tenants for what costs the worker more than a cached packet: punts to
//! the slow path, and new flows.
//!
//! A bucket is one number, the time at which it would be full again (GCRA, ITU-T I.371).

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

    #[inline]
    fn take(self, full_at_ns: &mut u64, now_ns: u64) -> bool {
        let next = (*full_at_ns).max(now_ns) + self.cost_ns;
        if next > now_ns + self.burst * self.cost_ns {
            return false;
        }
        *full_at_ns = next;
        true
    }
}

/// One bucket a port, all of one rate.
#[derive(Debug)]
pub(crate) struct PortBudget {
    rate: Rate,
    full_at_ns: Box<[u64]>,
}

impl PortBudget {
    pub(crate) fn new(rate: Rate) -> Self {
        let ports = usize::from(PortId::MAX.get()) + 1;
        Self { rate, full_at_ns: vec![0; ports].into_boxed_slice() }
    }

    pub(crate) fn take(&mut self, port: PortId, now_ns: u64) -> bool {
        self.rate.take(&mut self.full_at_ns[usize::from(port.get())], now_ns)
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
        rate.take(self.full_at_ns.entry(vrf).or_insert(0), now_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_gets_its_burst_and_then_its_rate() {
        let mut budget = PortBudget::new(Rate::new(1000, 256));
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
