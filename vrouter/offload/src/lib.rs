//! The kernel's side of trunked ports: tc programs on containers' host veth ends and on the trunk.
//!
//! A container's frames enter the kernel at its host end, where the program `from_port` polices
//! them, tags them with the port's id and redirects them to the trunk; the engine's answers come out
//! of the trunk at `wr-t0.N`, where `from_trunk` takes the tag off and hands them to the container.
//! So a container keeps all its offloads, has no socket of its own, and is cut off, not bridged or
//! routed by the host, when the engine is gone: the filters stay when this process ends, and what
//! they redirect to does not exist then.
//!
//! A NIC that the host goes on using takes part the same way (`uplink`): `from_uplink` picks Weir's
//! frames from it, and `from_trunk` sends the engine's out of it.
//!
//! Flows that the engine has decided and handed over are forwarded right at the host end, from one
//! container to the other, or between a container and a tunnel (`flows`, `tunnel`): [`Offload`] is the
//! [`flowtable::hot::HotTable`] of the kernel.
//!
//! Counts are in wire packets: a GSO packet counts as what it will be cut into.

mod buckets;
mod clock;
mod flows;
mod limits;
mod mapped;
mod object;
mod samples;
mod tunnel;
mod uplink;

pub use buckets::BUCKETS;
pub use flows::FlowLimits;
pub use limits::{Limits, Rate};
pub use object::{DropCount, Offload, OffloadError, PortCounters};
pub use tunnel::Tunnels;
pub use uplink::Picked;
