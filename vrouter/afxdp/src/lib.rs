//! Packet I/O on `AF_XDP`: [`XskIo`] is the engine's [`packet_io::PacketIo`] on a node.
//!
//! One [`Umem`] holds every frame of an engine, all its sockets share it, so handing a packet from
//! one device to another moves a descriptor and never payload. An [`XskQueue`] is a socket on one
//! queue of one device; an [`XdpProgram`] on that device decides which frames reach it. Sockets,
//! programs and devices are opened by control threads, in the network namespace of the calling
//! thread; [`XskIo`] belongs to the worker thread and only sees sockets that are attached to it.
//!
//! All unsafe code of packet I/O is in this crate. Its invariant: a frame index is in exactly one
//! place, a kernel ring or user space, and [`XskIo`] keeps the table that says which.

mod io;
mod program;
mod queue;
mod table;
mod umem;
mod wait;

pub use io::{AttachError, Closed, Detached, IoError, QueueState, XskIo};
pub use program::{Flooded, ProgramError, ProgramKind, XdpCounters, XdpProgram};
pub use queue::{QueueError, XskQueue, XskStats};
pub use table::START_OFFSETS;
pub use umem::{Pages, RING_SIZE, Umem, UmemError};
