//! The worker's packet I/O: many sockets over one UMEM.
//!
//! A frame is in the pool, held by the worker, or in the rings of one socket; `owner` says which
//! socket. That table is what gives frames back that were in the rings of a socket when it was
//! closed: no ring returns them any more.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use packet_io::{FRAME_BYTES, Frame, HEADROOM, PacketIo, QueueId, Wake};
use xsk_rs::FrameDesc;

use crate::queue::{QueueError, XskQueue, XskStats};
use crate::table::Tables;
use crate::umem::{RING_SIZE, Umem};
use crate::wait::Waiter;

/// `owner` of a frame in user space; [`QueueId`] of this value is refused.
const USER: u16 = u16::MAX;
/// Frames taken from or given to a ring in one call.
const BULK: usize = 64;
/// Fewer empty buffers than this are not worth the ring access.
const REFILL_MIN: u32 = 32;
/// Frames that receive rings leave in the pool, for replies of the engine's own.
const RESERVE: usize = 64;
/// How long a wait may last while frames sit in a ring that the kernel did not drain.
const KICK_RETRY: Duration = Duration::from_millis(1);

/// The I/O could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// The frames of a region have one owner.
    #[error("the frame region belongs to another worker")]
    RegionTaken,
    /// epoll or eventfd failed.
    #[error("waiting for sockets")]
    Wait(#[source] nix::Error),
}

/// A socket could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The id names an attached socket, or one that was detached and not yet reclaimed, or is the
    /// reserved 65535.
    #[error("queue {} is in use", .0.0)]
    InUse(QueueId),
    /// The socket is of another frame region.
    #[error("the socket of queue {} is of another frame region", .0.0)]
    OtherRegion(QueueId),
    /// It could not be watched.
    #[error("watching queue {}", .queue.0)]
    Wait {
        /// The queue.
        queue: QueueId,
        /// The kernel's answer.
        source: nix::Error,
    },
}

/// A socket taken out of its I/O, still open. Frames in its rings are lost until it is closed and
/// [`XskIo::reclaim`]ed.
#[derive(Debug)]
#[must_use = "close and reclaim it, or its frames stay lost"]
pub struct Detached {
    id: QueueId,
    queue: XskQueue,
}

/// Proof that the socket of a queue is closed: the kernel writes to none of its frames any more.
#[derive(Debug)]
#[must_use = "reclaim it, or its frames stay lost"]
pub struct Closed(QueueId);

impl Detached {
    /// What the kernel counted on the socket: gone with it.
    ///
    /// # Errors
    /// [`QueueError::Option`] when the kernel refuses.
    pub fn statistics(&self) -> Result<XskStats, QueueError> {
        self.queue.statistics()
    }

    /// Closes the socket. Takes some milliseconds (the kernel waits for its readers), so not on the
    /// worker's thread.
    pub fn close(self) -> Closed {
        drop(self.queue);
        Closed(self.id)
    }
}

/// What a socket's rings hold and what passed them since it was attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// The queue.
    pub id: QueueId,
    /// Frames in the fill and the receive ring together, of [`RING_SIZE`].
    pub receiving: u32,
    /// Frames in the transmit and the completion ring together, of [`RING_SIZE`].
    pub sending: u32,
    /// Frames received.
    pub rx_packets: u64,
    /// Frames put into the transmit ring.
    pub tx_packets: u64,
    /// Calls that made the kernel send.
    pub wakeups: u64,
    /// Of these, calls after which frames were left in the transmit ring.
    pub wakeups_cut: u64,
}

#[derive(Debug)]
struct Attached {
    state: QueueState,
    queue: XskQueue,
    /// Descriptors of the next flush.
    batch: Vec<FrameDesc>,
    /// The last wake-up left frames in the transmit ring.
    unsent: bool,
}

/// Frames in user space that nobody holds, and who has the others.
#[derive(Debug)]
struct Pool {
    /// Last in, first out: the frame freed last is the one still in the cache.
    free: Vec<u32>,
    owner: Vec<u16>,
}

impl Pool {
    fn put(&mut self, index: u32) {
        self.owner[index as usize] = USER;
        self.free.push(index);
    }
}

/// All sockets of one worker. Frames are conserved: [`XskIo::free_count`], the frames that the
/// worker holds and [`XskIo::ring_count`] add up to [`Umem::frames`].
#[derive(Debug)]
pub struct XskIo {
    umem: Umem,
    queues: Vec<Attached>,
    ids: Vec<QueueId>,
    closing: Vec<QueueId>,
    pool: Pool,
    scratch: Vec<FrameDesc>,
    waiter: Waiter,
    moved: u64,
}

impl XskIo {
    /// Takes all frames of a region.
    ///
    /// # Errors
    /// See [`IoError`].
    pub fn new(umem: Umem) -> Result<Self, IoError> {
        if !umem.take() {
            return Err(IoError::RegionTaken);
        }
        let frames = umem.frames();
        Ok(Self {
            waiter: Waiter::new().map_err(IoError::Wait)?,
            pool: Pool { free: (0..frames).rev().collect(), owner: vec![USER; frames as usize] },
            scratch: vec![FrameDesc::default(); BULK],
            queues: Vec::new(),
            ids: Vec::new(),
            closing: Vec::new(),
            moved: 0,
            umem,
        })
    }

    /// The frame region, for opening further sockets.
    #[must_use]
    pub fn umem(&self) -> &Umem {
        &self.umem
    }

    /// Adds a socket and gives it buffers to receive into.
    ///
    /// # Errors
    /// See [`AttachError`]; the socket is closed then.
    pub fn attach(&mut self, id: QueueId, queue: XskQueue) -> Result<(), AttachError> {
        if id.0 == USER || self.ids.contains(&id) || self.closing.contains(&id) {
            return Err(AttachError::InUse(id));
        }
        if !self.umem.is(&queue.umem) {
            return Err(AttachError::OtherRegion(id));
        }
        self.waiter
            .add(id, queue.fd())
            .map_err(|source| AttachError::Wait { queue: id, source })?;
        let batch = Vec::with_capacity(RING_SIZE as usize);
        let state = QueueState {
            id,
            receiving: 0,
            sending: 0,
            rx_packets: 0,
            tx_packets: 0,
            wakeups: 0,
            wakeups_cut: 0,
        };
        let mut attached = Attached { state, queue, batch, unsent: false };
        attached.refill(&mut self.pool, self.umem.tables(), &mut self.scratch);
        self.queues.push(attached);
        self.ids.push(id);
        Ok(())
    }

    /// Takes a socket out. Frames queued and not yet flushed go back to the pool unsent.
    pub fn detach(&mut self, id: QueueId) -> Option<Detached> {
        let at = self.position(id)?;
        let mut attached = self.queues.remove(at);
        self.ids.remove(at);
        for desc in attached.batch.drain(..) {
            self.pool.put(index_of(&desc));
        }
        self.waiter.remove(attached.queue.fd());
        self.closing.push(id);
        Some(Detached { id, queue: attached.queue })
    }

    /// Takes back the frames that were in the rings of a closed socket; its id is free again.
    #[expect(clippy::needless_pass_by_value, reason = "the proof holds once")]
    pub fn reclaim(&mut self, closed: Closed) {
        let id = closed.0;
        self.closing.retain(|c| *c != id);
        for index in 0..self.umem.frames() {
            if self.pool.owner[index as usize] == id.0 {
                self.pool.put(index);
            }
        }
    }

    /// What the kernel counted on each socket.
    ///
    /// # Errors
    /// [`QueueError::Option`] when the kernel refuses.
    pub fn statistics(&self) -> Result<Vec<(QueueId, XskStats)>, QueueError> {
        self.queues.iter().map(|q| Ok((q.state.id, q.queue.statistics()?))).collect()
    }

    /// What the rings of each socket hold.
    #[must_use]
    pub fn states(&self) -> Vec<QueueState> {
        self.queues.iter().map(|q| q.state).collect()
    }

    /// Frames whose payload had to be moved before sending, because their start is none of
    /// [`crate::START_OFFSETS`] or its table was not ready yet.
    #[must_use]
    pub fn moved_count(&self) -> u64 {
        self.moved
    }

    /// Frames in the pool.
    #[must_use]
    pub fn free_count(&self) -> usize {
        self.pool.free.len()
    }

    /// Frames in rings of attached and not yet reclaimed sockets, or queued for the next flush.
    #[must_use]
    pub fn ring_count(&self) -> usize {
        self.pool.owner.iter().filter(|o| **o != USER).count()
    }

    fn position(&self, id: QueueId) -> Option<usize> {
        self.ids.iter().position(|i| *i == id)
    }

    /// The descriptor to send a frame by; moves the packet when there is none for its start.
    #[inline]
    fn descriptor(&mut self, frame: &Frame) -> Option<FrameDesc> {
        let ready = self.umem.tables().descriptor(frame.index(), frame.start());
        let mut desc = ready.or_else(|| self.moved_descriptor(frame))?;
        self.umem.set_len(&mut desc, frame.len());
        Some(desc)
    }

    #[cold]
    fn moved_descriptor(&mut self, frame: &Frame) -> Option<FrameDesc> {
        if frame.len() > FRAME_BYTES - HEADROOM {
            return None;
        }
        let buffer = self.umem.buffer(frame.index());
        // SAFETY: a frame lies inside its buffer.
        let from = unsafe { buffer.add(frame.start()) };
        // SAFETY: so does its copy, by the check above.
        let to = unsafe { buffer.add(HEADROOM) };
        // SAFETY: the frame is owned by the caller, so nobody else touches its buffer.
        unsafe { std::ptr::copy(from, to, frame.len()) };
        self.moved += 1;
        Some(self.umem.tables().own(frame.index()))
    }
}

impl PacketIo for XskIo {
    fn queues(&self) -> &[QueueId] {
        &self.ids
    }

    fn rx(&mut self, queue: QueueId, frames: &mut Vec<Frame>, max: usize) -> usize {
        let Some(at) = self.position(queue) else { return 0 };
        let attached = &mut self.queues[at];
        let before = frames.len();
        let mut left = max;
        while left > 0 {
            let wanted = left.min(BULK);
            // SAFETY: the ring is this UMEM's; its entries are overwritten, not read.
            let count = unsafe { attached.queue.rx.consume(&mut self.scratch[..wanted]) };
            attached.state.receiving -= count as u32;
            attached.state.rx_packets += count as u64;
            for frame in self.scratch[..count].iter().filter_map(received) {
                self.pool.owner[frame.index() as usize] = USER;
                frames.push(frame);
            }
            left -= count;
            if count < wanted {
                break;
            }
        }
        frames.len() - before
    }

    fn tx(&mut self, queue: QueueId, frame: Frame) -> Result<(), Frame> {
        let Some(at) = self.position(queue) else { return Err(frame) };
        let used = self.queues[at].state.sending as usize + self.queues[at].batch.len();
        if used >= RING_SIZE as usize || frame.is_empty() {
            return Err(frame);
        }
        let Some(desc) = self.descriptor(&frame) else { return Err(frame) };
        self.pool.owner[frame.index() as usize] = queue.0;
        self.queues[at].batch.push(desc);
        Ok(())
    }

    fn flush(&mut self) {
        for attached in &mut self.queues {
            attached.send();
            attached.reap(&mut self.pool, &mut self.scratch);
            attached.refill(&mut self.pool, self.umem.tables(), &mut self.scratch);
        }
    }

    fn alloc(&mut self) -> Option<Frame> {
        let index = self.pool.free.pop()?;
        Frame::new(index, HEADROOM, 0).ok()
    }

    fn free(&mut self, frame: Frame) {
        self.pool.put(frame.index());
    }

    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        // SAFETY: a frame lies inside its buffer.
        let start = unsafe { self.umem.buffer(frame.index()).add(frame.start()) };
        // SAFETY: whoever has the frame owns the buffer, so the kernel does not write to it, and
        // the borrow of `self` keeps writers in this process away.
        unsafe { std::slice::from_raw_parts(start, frame.len()) }
    }

    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        // SAFETY: a frame lies inside its buffer.
        let start = unsafe { self.umem.buffer(frame.index()).add(frame.start()) };
        // SAFETY: as in `bytes`, and the borrows are exclusive.
        unsafe { std::slice::from_raw_parts_mut(start, frame.len()) }
    }

    fn wait(&mut self, timeout: Duration) {
        let unsent = self.queues.iter().any(|q| q.unsent);
        let timeout = if unsent { timeout.min(KICK_RETRY) } else { timeout };
        let Some(failed) = self.waiter.wait(timeout) else { return };
        if let Some(at) = self.position(failed) {
            self.waiter.remove(self.queues[at].queue.fd());
        }
    }

    #[inline]
    fn ticks(&self) -> u64 {
        cycles()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.waiter.waker()
    }
}

/// The processor's time stamp counter: steady on everything that runs this kernel.
#[cfg(target_arch = "x86_64")]
#[inline]
fn cycles() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn cycles() -> u64 {
    0
}

impl Attached {
    fn send(&mut self) {
        // SAFETY: the descriptors are of this UMEM and their frames were given to `tx`.
        let produced = unsafe { self.queue.tx.produce(&self.batch) };
        if produced > 0 {
            self.state.sending += produced as u32;
            self.state.tx_packets += produced as u64;
            self.batch.clear();
        }
        if produced > 0 || self.unsent {
            self.unsent = kick(self.queue.fd()).is_err();
            self.state.wakeups += 1;
            self.state.wakeups_cut += u64::from(self.unsent);
        }
    }

    fn reap(&mut self, pool: &mut Pool, scratch: &mut [FrameDesc]) {
        while self.state.sending > 0 {
            // SAFETY: the ring is this UMEM's; its entries are overwritten, not read.
            let count = unsafe { self.queue.comp.consume(scratch) };
            self.state.sending -= count as u32;
            scratch[..count].iter().for_each(|desc| pool.put(index_of(desc)));
            if count < scratch.len() {
                return;
            }
        }
    }

    fn refill(&mut self, pool: &mut Pool, tables: &Tables, scratch: &mut [FrameDesc]) {
        while RING_SIZE - self.state.receiving >= REFILL_MIN {
            let spare = pool.free.len().saturating_sub(RESERVE);
            let count = spare.min((RING_SIZE - self.state.receiving) as usize).min(scratch.len());
            if count < REFILL_MIN as usize {
                return;
            }
            let first = pool.free.len() - count;
            for (desc, index) in scratch.iter_mut().zip(&pool.free[first..]) {
                *desc = tables.own(*index);
            }
            // SAFETY: the descriptors are of this UMEM and their frames leave the pool below.
            let produced = unsafe { self.queue.fill.produce(&scratch[..count]) };
            if produced == 0 {
                return;
            }
            for index in pool.free.drain(first..) {
                pool.owner[index as usize] = self.state.id.0;
            }
            self.state.receiving += produced as u32;
        }
    }
}

/// Makes the kernel send what is in the transmit ring. An error means that some of it is left: the
/// budget of one call is used up, or the device is busy or down.
fn kick(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no buffer is passed, and the descriptor is borrowed.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            std::ptr::null(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null(),
            0,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The kernel never writes beyond a buffer; if it said so, the frame would stay with the queue until
/// that is closed.
fn received(desc: &FrameDesc) -> Option<Frame> {
    Frame::new(index_of(desc), desc.addr() % FRAME_BYTES, desc.lengths().data()).ok()
}

fn index_of(desc: &FrameDesc) -> u32 {
    (desc.addr() / FRAME_BYTES) as u32
}
