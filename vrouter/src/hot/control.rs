//! What the control side asks of offloaded flows.

use flowtable::Verdict;
use flowtable::key::FlowKey;

use super::{Hot, HotFlowStats, HotStats, NotHot, Offloading};
use crate::engine::Engine;

impl Engine {
    /// Starts or stops offloading; after a stop, all packets are the engine's. Without a table to
    /// offload to, nothing happens.
    pub fn set_offload(&self, switch: Offloading) {
        if let Some(hot) = self.shared.hot.get() {
            hot.switch(&self.shared, switch);
        }
    }

    /// Numbers of the offloaded flows; `None` without a table to offload to.
    #[must_use]
    pub fn offload_stats(&self) -> Option<HotStats> {
        let hot = self.shared.hot.get()?;
        hot.count(&self.shared);
        Some(hot.stats(&self.shared))
    }

    /// The flows that are offloaded now, in no meaningful order.
    #[must_use]
    pub fn offloaded(&self) -> Vec<HotFlowStats> {
        self.shared.hot.get().map(Hot::list).unwrap_or_default()
    }

    /// Why a flow is not offloaded that may be and has carried enough.
    #[must_use]
    pub fn offload_refusal(&self, key: &FlowKey, verdict: Verdict) -> NotHot {
        let snapshot = self.shared.snapshot.load();
        self.shared.hot.get().map_or(NotHot::Off, |hot| hot.refusal((key, verdict), &snapshot))
    }
}
