//! The log of dropped packets: what, why and by which rule, for the last ones of every tenant.
//!
//! The worker copies a dropped packet's key into a bounded queue, within a budget per tenant, so
//! that one tenant's flood neither costs more than counting nor hides another's drops. What was left
//! out is counted and said with the tenant's next packet.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use flowtable::DropReason;
use flowtable::exact::ExactMap;
use flowtable::ids::{Group, PortId, RuleId, Vrf};
use flowtable::key::FlowKey;

use crate::budget::{Rate, TenantBudget};

/// Dropped packets of a tenant that are logged in a second, and at once.
const LOGGED: Rate = Rate::new(100, 100);
/// Dropped packets waiting for a reader.
pub(crate) const DROP_QUEUE: usize = 1024;

/// A packet that was dropped.
#[derive(Debug, Clone, Copy)]
pub struct Dropped {
    /// Why.
    pub reason: DropReason,
    /// The rule that denied it.
    pub rule: Option<RuleId>,
    /// The port it came from.
    pub in_port: PortId,
    /// The tenant it came from, when known.
    pub vrf: Option<Vrf>,
    /// The group it came from; [`Group::NONE`] when it came from the wire.
    pub src_group: Group,
    /// The packet.
    pub key: FlowKey,
    /// Bytes of the frame without FCS.
    pub frame_len: u32,
    /// Time of the worker's steady clock, in nanoseconds.
    pub at_ns: u64,
    /// Packets of this tenant that were dropped since the one before and are not in the log.
    pub suppressed: u64,
}

/// The worker's side of the log.
#[derive(Debug)]
pub(crate) struct DropLog {
    queue: Arc<ArrayQueue<Dropped>>,
    budget: TenantBudget,
    suppressed: ExactMap<Vrf, u64>,
}

impl DropLog {
    pub(crate) fn new(queue: Arc<ArrayQueue<Dropped>>) -> Self {
        Self { queue, budget: TenantBudget::default(), suppressed: ExactMap::default() }
    }

    /// Logs a packet, or counts that it was not. Packets of nobody share the bucket of VRF 0.
    pub(crate) fn note(&mut self, mut dropped: Dropped) {
        let owner = dropped.vrf.unwrap_or(Vrf::MIN);
        let left_out = self.suppressed.entry(owner).or_insert(0);
        dropped.suppressed = *left_out;
        let logged =
            self.budget.take(owner, LOGGED, dropped.at_ns) && self.queue.push(dropped).is_ok();
        *left_out = if logged { 0 } else { *left_out + 1 };
    }
}
