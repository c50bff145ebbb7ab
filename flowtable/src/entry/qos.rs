//! Entries of the `meter` and `qos` tables, and the part of a tenant's entry that bounds it.
//!
//! A meter is a rate that ports share: one meter named by one port limits an endpoint, one named by
//! all ports of a group or tenant limits their sum. Ports name meters for both directions. Changing
//! a meter keeps its state, so that a live change is no burst.

use crate::ids::{Dscp, MeterId, PortId, Vrf};

use super::Permit;
pub use crate::meter::{Band, Unit as MeterUnit};

/// `meter` table. A packet within the committed rate is green; above it, with a peak band, yellow up
/// to the peak (RFC 2698, colour-blind); else red and dropped as `rate-limit`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeterEntry {
    /// Key.
    pub meter: MeterId,
    /// What is counted.
    pub unit: MeterUnit,
    /// The committed rate.
    pub committed: Band,
    /// The peak rate, not below the committed one; `None`: what is not green is red.
    pub peak: Option<Band>,
    /// What yellow packets are marked with; `None` leaves their mark.
    pub yellow_dscp: Option<Dscp>,
}

/// Most meters of a port in one direction: its own, its group's, its tenant's.
pub const PORT_METERS_MAX: usize = 3;

/// `qos` table: what is done to a container's traffic. A port without an entry is not limited.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QosEntry {
    /// Key.
    pub port: PortId,
    /// Meters of what the container sends; at most [`PORT_METERS_MAX`].
    pub from: Vec<MeterId>,
    /// Meters of what it receives; at most [`PORT_METERS_MAX`].
    pub to: Vec<MeterId>,
    /// What its packets are marked with (RFC 2474); `None` leaves their mark.
    pub dscp: Option<Dscp>,
}

/// Whether connections of a tenant are tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tracking {
    /// Replies pass without a rule; what belongs to no connection and opens none is dropped.
    Stateful,
    /// Every packet is compared with the rules on its own.
    Stateless,
}

/// What becomes of an established connection that a change of policy denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OnDeny {
    /// Its next packet is dropped.
    Cut,
    /// It goes on until it ends.
    Finish,
}

/// `tenant` table: what holds for all of a tenant's traffic. A tenant without an entry has
/// [`TenantEntry::new`] with [`Permit::Allow`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantEntry {
    /// Key.
    pub vrf: Vrf,
    /// The verdict where no rule matches.
    pub default: Permit,
    /// Whether connections are tracked.
    pub tracking: Tracking,
    /// What a change of policy does to established connections.
    pub on_deny: OnDeny,
    /// Most connections at once on this node; 0 leaves it to the engine's own setting.
    pub connections_max: u32,
    /// Most new flows per second on this node; 0 leaves it to the engine's own setting.
    pub new_flows_max: u32,
}

impl TenantEntry {
    /// A tenant with this default, tracked, whose denied connections are cut, with the engine's own
    /// bounds.
    #[must_use]
    pub const fn new(vrf: Vrf, default: Permit) -> Self {
        Self {
            vrf,
            default,
            tracking: Tracking::Stateful,
            on_deny: OnDeny::Cut,
            connections_max: 0,
            new_flows_max: 0,
        }
    }
}
