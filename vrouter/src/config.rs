//! Sizes and settings of an engine.

use flowtable::entry::Tracking;

/// Sizes and settings of an engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Workers, 1 to [`WORKERS_MAX`](crate::WORKERS_MAX).
    pub workers: u16,
    /// Flows the exact cache of a worker holds; rounded up to a power of two.
    pub flow_entries: usize,
    /// Decisions the masked cache of a worker holds; rounded up to a power of two.
    pub masked_entries: usize,
    /// Connections of all tenants.
    pub connections: usize,
    /// Connections of a tenant whose entry does not say.
    pub tenant_connections: u32,
    /// Connections opened from one container.
    pub port_connections: u32,
    /// New flows a second of a tenant whose entry does not say, a tenth of them (at least 1,000) at
    /// once; 0 is no limit.
    pub tenant_new_flows: u32,
    /// New flows a second of one container, a tenth of them (at least 1,000) at once; 0 is no limit.
    pub port_new_flows: u32,
    /// For how many seconds after the first tables TCP may be picked up in the middle: longer than
    /// peers wait before they send again, so that a restart cuts nothing.
    pub pickup_seconds: u32,
    /// Whether connections of tenants without an entry are tracked.
    pub tracking: Tracking,
    /// Meters that can be in use.
    pub meter_slots: usize,
    /// Milliseconds that packets above a single rate may wait for its tokens; 0: they are dropped.
    pub meter_queue_ms: u32,
    /// Policy rules that can have counters.
    pub rule_slots: usize,
    /// Key of the flow hash and the sampler: random on a node, fixed in tests.
    pub seed: u64,
    /// Samples waiting for the exporter.
    pub sample_queue: usize,
    /// sFlow: one packet in this many, for ports whose entry does not say; 0 is none.
    pub sample_rate: u32,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            workers: 1,
            flow_entries: 1 << 18,
            masked_entries: 1 << 15,
            connections: 1 << 20,
            tenant_connections: 1 << 19,
            port_connections: 1 << 17,
            tenant_new_flows: 200_000,
            port_new_flows: 50_000,
            pickup_seconds: 0,
            tracking: Tracking::Stateful,
            // As many as the table holds, and some for what comes before others have left.
            meter_slots: (1 << 15) + (1 << 12),
            meter_queue_ms: 0,
            rule_slots: 1 << 16,
            seed: 0,
            sample_queue: 1024,
            sample_rate: 0,
        }
    }
}
