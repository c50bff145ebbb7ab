//! Flows that are forwarded without the engine: what a table that does so is told, by whom it is told.
//!
//! The engine decides a flow, hands it over, and takes it back. The table repeats the decision for the
//! flow's packets until then, or until a table that the decision rests on has changed; what is not
//! plainly one of these packets it leaves to the engine. The table's entries have places, numbered
//! from 0; the engine keeps book of them, so that the table need not.

use std::fmt;

use crate::action::ActionList;
use crate::ids::PortId;
use crate::key::FlowKey;

/// Sets of the engine's sections: a decision rests on one of them.
pub const SETS: usize = 128;

/// A decided flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotFlow {
    /// Its packets: port, tunnel, MACs, addresses, protocol and ports. They are TCP or UDP between two
    /// containers, whole, without options and tags; of TCP, ACK and neither SYN, FIN nor RST is set.
    pub key: FlowKey,
    /// One end at least is here: nothing is taken off and the way out is plain or a tunnel, or a tunnel is
    /// taken off and the way out is plain.
    pub actions: ActionList,
    /// The set of sections that the decision rests on, below [`SETS`].
    pub set: u8,
    /// Revision of the tables that it was decided on.
    pub revision: u64,
    /// Whether it answers the one that opened its connection.
    pub is_reply: bool,
}

/// What was forwarded, in packets as on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HotCount {
    /// A large packet counts as those it is cut into.
    pub packets: u64,
    /// From the Ethernet header of each on, without FCS.
    pub bytes: u64,
}

/// Bytes of a packet's start kept in a sample (sFlow's default maximum header size).
pub const SAMPLE_HEADER_BYTES: usize = 128;

/// A packet that was sampled while it was forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotSample {
    /// The port it came from.
    pub in_port: PortId,
    /// The port it went to.
    pub out_port: PortId,
    /// The rate in force: one in this many.
    pub rate: u32,
    /// Samples that it stands for: a large packet is cut into many, which are alike here. At least 1.
    pub count: u32,
    /// [`HotTable::sampled_from`] when it was taken, itself included.
    pub pool: u64,
    /// Length of one packet on the wire, without FCS.
    pub frame_len: u32,
    /// The first bytes of it as it came.
    pub header: [u8; SAMPLE_HEADER_BYTES],
    /// How many of them are valid.
    pub header_len: u8,
}

/// The table could not do what it was told.
#[derive(Debug, thiserror::Error)]
#[error("the table of offloaded flows")]
pub struct HotError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl HotError {
    /// With what the table says.
    pub fn new(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }
}

/// A table that forwards flows without the engine. Any thread may call; that a place is used by one
/// flow at a time is up to the caller.
pub trait HotTable: fmt::Debug + Send + Sync {
    /// How many places there are.
    fn places(&self) -> u32;

    /// Forwards the packets of `flow` from now on, if its set of sections is valid at its revision.
    /// The place is free: never used, or cleared.
    ///
    /// # Errors
    /// The table is full, a port is gone, or the kernel refused; the place is free then.
    fn put(&self, place: u32, flow: &HotFlow) -> Result<(), HotError>;

    /// Whether flows may leave by this uplink in tunnels, and come from it.
    fn carries_tunnels(&self, uplink: PortId) -> bool;

    /// Packets that arrive after this are the engine's. Does not wait for those that are being
    /// forwarded: [`HotTable::settle`] does.
    fn stop(&self, place: u32);

    /// The flow was decided again, the same, on tables of this revision.
    fn stamp(&self, place: u32, revision: u64);

    /// What was forwarded since the flow was put there.
    fn count(&self, place: u32) -> HotCount;

    /// Frees the place of a flow that is stopped and settled.
    ///
    /// # Errors
    /// The kernel refused; the place is not to be used again.
    fn clear(&self, place: u32, flow: &HotFlow) -> Result<(), HotError>;

    /// Packets that were being forwarded when this was called are through when it returns.
    ///
    /// # Errors
    /// The kernel refused to wait.
    fn settle(&self) -> Result<(), HotError>;

    /// From now on flows are valid whose revision is at least `valid_since[set]`.
    fn publish(&self, valid_since: &[u64; SETS]);

    /// The engine lives: flows go on for as long as the table was told to outlive it.
    fn beat(&self);

    /// From now on one in `rate` of the port's packets is sampled while it is forwarded; 0: none. A
    /// port begins with 0.
    fn sample(&self, port: PortId, rate: u32);

    /// The port's packets that were forwarded while they were sampled, as on the wire.
    fn sampled_from(&self, port: PortId) -> u64;

    /// The oldest sample that was not taken yet.
    fn next_sample(&self) -> Option<HotSample>;

    /// Samples that found no room.
    fn samples_lost(&self) -> u64;
}
