//! Frames and the I/O trait of a worker. Safe, and without a kernel: the engine runs on
//! [`memory::MemoryIo`] in tests and benchmarks and on `afxdp::XskIo` on a node.
//!
//! A [`Frame`] names one buffer of a region that the I/O owns. It can be moved but not copied, so a
//! packet has one owner: the ring it was received from, the worker, or the ring it is sent to.
//! Whoever holds one gives it to [`PacketIo::tx`] or [`PacketIo::free`]; a frame that is merely
//! dropped is lost to its pool until the I/O is closed.

mod frame;
pub mod memory;

use std::sync::Arc;
use std::time::Duration;

pub use frame::{FRAME_BYTES, Frame, HEADROOM, NoRoom, TRUNK_FRAME_BYTES};

/// A queue of a worker's I/O: 0 is the trunk, every other one a direct port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u16);

impl QueueId {
    /// The queue whose frames carry their port's id as a VLAN tag.
    pub const TRUNK: Self = Self(0);
}

/// Ends a worker's [`PacketIo::wait`] from another thread.
pub trait Wake: Send + Sync + std::fmt::Debug {
    /// Makes the current wait, or else the next one, return at once.
    fn wake(&self);
}

/// All queues of one worker over one frame region. One thread owns it; nothing here locks, and
/// nothing but [`PacketIo::flush`] and [`PacketIo::wait`] makes a system call.
pub trait PacketIo {
    /// The attached queues.
    fn queues(&self) -> &[QueueId];

    /// Appends up to `max` received frames to `frames`; returns how many.
    fn rx(&mut self, queue: QueueId, frames: &mut Vec<Frame>, max: usize) -> usize;

    /// Queues a frame for sending; it leaves with the next [`PacketIo::flush`].
    ///
    /// # Errors
    /// The frame itself, when the queue is full or not attached: the caller counts and frees it.
    fn tx(&mut self, queue: QueueId, frame: Frame) -> Result<(), Frame>;

    /// Sends what is queued, at most one wake-up a queue; takes back sent frames and refills
    /// receive rings.
    fn flush(&mut self);

    /// An empty frame whose data starts at [`HEADROOM`], or `None` when all are in use.
    fn alloc(&mut self) -> Option<Frame>;

    /// Returns a frame to the pool.
    fn free(&mut self, frame: Frame);

    /// The packet in a frame: Ethernet header first, no FCS.
    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8];

    /// The packet in a frame, writable.
    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8];

    /// Blocks until something was received, a [`Wake`] was called, or `timeout` is over.
    fn wait(&mut self, timeout: Duration);

    /// A counter that grows steadily and is cheap to read, to measure with; its unit is the I/O's own.
    /// Always 0: there is none.
    fn ticks(&self) -> u64 {
        0
    }

    /// A handle that ends [`PacketIo::wait`].
    fn waker(&self) -> Arc<dyn Wake>;
}
