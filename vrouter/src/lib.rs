//! The engine: a worker that lives the packet's life, and the control side that programs it.
//!
//! [`Engine`] holds the tables and publishes immutable [`snapshot`]s of them; a [`Worker`] reads
//! the current one once a burst. [`worker`] is the packet's life on one screen, [`pipeline`] the
//! walk through the tables that both decides and explains, [`rewrite`] what is done to frames.
//! The slow path ([`SlowPath`]) answers ARP, neighbor discovery, ICMP and ICMPv6 for the distributed
//! gateway. Flows that carry much are handed to a table that forwards without the engine
//! ([`HotKeeper`]). No tokio, no clock in the logic, no unsafe code; frames come from any
//! [`packet_io::PacketIo`].

mod batch;
mod budget;
mod config;
mod connections;
mod counters;
mod crew;
mod droplog;
mod engine;
mod foresee;
mod hot;
mod mailbox;
mod masked;
mod pipeline;
mod plain;
mod port;
mod qos;
mod rewrite;
mod sample;
mod slow;
mod snapshot;
mod trace;
mod translate;
mod validate;
mod worker;

pub use config::EngineConfig;
pub use connections::opening_key;
pub use counters::{Count, Tier};
pub use crew::WithHandle;
pub use droplog::Dropped;
pub use engine::{CacheStats, Engine, EntryStats, PortError, PortStats, WORKERS_MAX, WriteError};
pub use hot::{HotFlowStats, HotKeeper, HotLimits, HotStats, HotTenant, NotHot, Offloading};
pub use mailbox::{Unanswered, WorkerGone, WorkerHandle};
pub use port::{Framing, PortKind, PortSpec};
pub use sample::{SAMPLE_HEADER_BYTES, Sample};
pub use slow::{SlowPath, announcement};
pub use trace::{MeterUse, MeterWay, Trace, TraceStep};
pub use worker::{
    BURST, BURST_SIZE_COUNT, FlowStats, LiveTrace, STAGE_COUNT, Stage, WorkStats, Worker,
};
