//! Ports in memory: the same trait as AF_XDP, without a kernel.
//!
//! Tests put frames in with [`MemoryIo::inject`] and read what was sent with
//! [`MemoryIo::take_sent`]. Benchmarks give a queue a [`Feed`], a ring of frames copied in one by
//! one as a NIC would, and a [`Sink::Tally`] that counts instead of keeping. An [`Inspector`] is
//! shown what was sent, all of it or some bursts, to check every byte of that.

mod feed;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::frame::{FRAME_BYTES, Frame, HEADROOM};
use crate::{PacketIo, QueueId, Wake};

pub use feed::{Arrivals, Feed, Pace};

/// Frames sent to a queue in a row that are inspected, or not, together.
const INSPECTED_TOGETHER: u64 = 64;

/// Count of what a [`Sink::Tally`] swallowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames sent.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What becomes of frames sent to a queue.
#[derive(Debug, Clone)]
pub enum Sink {
    /// Kept for [`MemoryIo::take_sent`].
    Keep,
    /// Counted and freed.
    Tally(Tally),
}

/// Checks what was sent to a queue with a tally.
pub trait Inspector: Send + std::fmt::Debug {
    /// Frame `number`, counted from 0 as the tally does, was sent as `bytes`.
    fn sent(&mut self, number: u64, bytes: &[u8]);
}

/// Which frames an [`Inspector`] is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inspect {
    /// Every one.
    All,
    /// 64 in a row of every 64 times 64.
    Sample,
}

impl Inspect {
    #[inline]
    const fn takes(self, number: u64) -> bool {
        match self {
            Self::All => true,
            Self::Sample => (number / INSPECTED_TOGETHER).is_multiple_of(INSPECTED_TOGETHER),
        }
    }
}

#[derive(Debug)]
struct Queue {
    received: VecDeque<Frame>,
    feed: Option<Feed>,
    sent: VecDeque<Frame>,
    sink: Sink,
    inspector: Option<(Inspect, Box<dyn Inspector>)>,
    /// Frames the queue takes before [`PacketIo::tx`] refuses.
    room: usize,
}

/// An odd number of cache lines, so that the fronts of the buffers do not compete for a few sets of
/// the cache. DPDK's mempool spreads its buffers for the same reason.
#[derive(Debug, Clone)]
#[repr(align(64))]
struct Buffer([u8; FRAME_BYTES + 64]);

impl Buffer {
    #[inline]
    fn packet(&self, frame: &Frame) -> &[u8] {
        &self.0[frame.start()..frame.start() + frame.len()]
    }
}

#[derive(Debug, Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Wake for Bell {
    fn wake(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

/// A frame region with queues, all in memory.
#[derive(Debug)]
pub struct MemoryIo {
    buffers: Vec<Buffer>,
    free: Vec<u32>,
    ids: Vec<QueueId>,
    queues: Vec<Queue>,
    bell: Arc<Bell>,
}

impl MemoryIo {
    /// A region of `frames` buffers and one empty queue for each id.
    #[must_use]
    pub fn new(frames: u32, ids: &[QueueId]) -> Self {
        let queue = || Queue {
            received: VecDeque::new(),
            feed: None,
            sent: VecDeque::new(),
            sink: Sink::Keep,
            inspector: None,
            room: usize::MAX,
        };
        Self {
            buffers: vec![Buffer([0; FRAME_BYTES + 64]); frames as usize],
            free: (0..frames).rev().collect(),
            ids: ids.to_vec(),
            queues: ids.iter().map(|_| queue()).collect(),
            bell: Arc::default(),
        }
    }

    /// Makes `bytes` the next frame received on `queue`; says whether there was a buffer for it.
    pub fn inject(&mut self, queue: QueueId, bytes: &[u8]) -> bool {
        let Some(frame) = self.put(bytes) else { return false };
        let Some(q) = self.queue_mut(queue) else {
            self.free(frame);
            return false;
        };
        q.received.push_back(frame);
        true
    }

    /// Receives from `feed` from now on.
    pub fn set_feed(&mut self, queue: QueueId, feed: Feed) {
        if let Some(q) = self.queue_mut(queue) {
            q.feed = Some(feed);
        }
    }

    /// Says what to do with sent frames.
    pub fn set_sink(&mut self, queue: QueueId, sink: Sink) {
        if let Some(q) = self.queue_mut(queue) {
            q.sink = sink;
        }
    }

    /// Shows `inspector` what is sent to `queue` from now on. Frames of a [`Sink::Keep`] are not
    /// shown.
    pub fn set_inspector(&mut self, queue: QueueId, which: Inspect, inspector: Box<dyn Inspector>) {
        if let Some(q) = self.queue_mut(queue) {
            q.inspector = Some((which, inspector));
        }
    }

    /// Changes which frames the queue's inspector is shown.
    pub fn set_inspect(&mut self, queue: QueueId, which: Inspect) {
        if let Some((inspect, _)) = self.queue_mut(queue).and_then(|q| q.inspector.as_mut()) {
            *inspect = which;
        }
    }

    /// Ends the queue's feed; says what became of its frames when it was paced.
    pub fn take_feed(&mut self, queue: QueueId) -> Option<Arrivals> {
        self.queue_mut(queue)?.feed.take()?.arrivals()
    }

    /// Frames `queue` takes before it is full: to provoke `tx-full`.
    pub fn set_room(&mut self, queue: QueueId, room: usize) {
        if let Some(q) = self.queue_mut(queue) {
            q.room = room;
        }
    }

    /// What was counted, when the queue's sink is a tally.
    #[must_use]
    pub fn tally(&self, queue: QueueId) -> Option<Tally> {
        match &self.queues[self.position(queue)?].sink {
            Sink::Tally(tally) => Some(*tally),
            Sink::Keep => None,
        }
    }

    /// The bytes of all frames sent since the last call, in order.
    pub fn take_sent(&mut self, queue: QueueId) -> Vec<Vec<u8>> {
        let sent = self.queue_mut(queue).map(|q| std::mem::take(&mut q.sent)).unwrap_or_default();
        let bytes = sent.iter().map(|f| self.bytes(f).to_vec()).collect();
        for frame in sent {
            self.free(frame);
        }
        bytes
    }

    /// Buffers nobody holds.
    #[must_use]
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    fn position(&self, queue: QueueId) -> Option<usize> {
        // Queues are mostly numbered as they lie.
        let at = usize::from(queue.0);
        if self.ids.get(at) == Some(&queue) {
            return Some(at);
        }
        self.ids.iter().position(|id| *id == queue)
    }

    fn queue_mut(&mut self, queue: QueueId) -> Option<&mut Queue> {
        self.position(queue).map(|i| &mut self.queues[i])
    }

    fn put(&mut self, bytes: &[u8]) -> Option<Frame> {
        let mut frame = self.alloc()?;
        if frame.set_len(bytes.len()).is_err() {
            self.free(frame);
            return None;
        }
        self.bytes_mut(&mut frame).copy_from_slice(bytes);
        Some(frame)
    }
}

/// Receives `count` frames of `feed` into free buffers, of which there are as many.
fn copy_in(
    feed: &mut Feed,
    mut count: usize,
    (buffers, free): (&mut [Buffer], &mut Vec<u32>),
    frames: &mut Vec<Frame>,
) {
    while count > 0 {
        let (bytes, len, fresh) = feed.emit(count);
        let copies = bytes.len() / usize::from(len);
        let indices = free.drain(free.len() - copies..).rev();
        let place = HEADROOM..HEADROOM + usize::from(len);
        let sources = bytes.chunks_exact(usize::from(len));
        frames.extend(indices.zip(sources).map(|(index, bytes)| {
            buffers[index as usize].0[place.clone()].copy_from_slice(bytes);
            Frame::received(index, len)
        }));
        if let Some(fresh) = fresh {
            let received = frames.len() - copies..;
            let indices = frames[received].iter().map(|frame| frame.index() as usize);
            indices.for_each(|at| fresh.apply(&mut buffers[at].0[place.clone()]));
        }
        count -= copies;
    }
}

impl PacketIo for MemoryIo {
    fn queues(&self) -> &[QueueId] {
        &self.ids
    }

    fn rx(&mut self, queue: QueueId, frames: &mut Vec<Frame>, max: usize) -> usize {
        let Some(at) = self.position(queue) else { return 0 };
        let queue = &mut self.queues[at];
        let waiting = max.min(queue.received.len());
        frames.extend(queue.received.drain(..waiting));
        let Some(feed) = &mut queue.feed else { return waiting };
        let due = feed.due((max - waiting).min(self.free.len()));
        copy_in(feed, due, (&mut self.buffers, &mut self.free), frames);
        waiting + due
    }

    fn tx(&mut self, queue: QueueId, frame: Frame) -> Result<(), Frame> {
        let Some(at) = self.position(queue) else { return Err(frame) };
        let queue = &mut self.queues[at];
        if queue.sent.len() >= queue.room {
            return Err(frame);
        }
        match &mut queue.sink {
            Sink::Keep => queue.sent.push_back(frame),
            Sink::Tally(tally) => {
                if let Some((which, inspector)) = &mut queue.inspector
                    && which.takes(tally.packets)
                {
                    let bytes = self.buffers[frame.index() as usize].packet(&frame);
                    inspector.sent(tally.packets, bytes);
                }
                tally.packets += 1;
                tally.bytes += frame.len() as u64;
                self.free.push(frame.index());
            }
        }
        Ok(())
    }

    fn flush(&mut self) {
        for feed in self.queues.iter_mut().filter_map(|q| q.feed.as_mut()) {
            feed.handled();
        }
    }

    fn alloc(&mut self) -> Option<Frame> {
        let index = self.free.pop()?;
        Frame::new(index, HEADROOM, 0).ok()
    }

    fn free(&mut self, frame: Frame) {
        self.free.push(frame.index());
    }

    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        self.buffers[frame.index() as usize].packet(frame)
    }

    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        let buffer = &mut self.buffers[frame.index() as usize].0;
        &mut buffer[frame.start()..frame.start() + frame.len()]
    }

    fn wait(&mut self, timeout: Duration) {
        if self.queues.iter().any(|q| !q.received.is_empty() || q.feed.is_some()) {
            return;
        }
        let rung = self.bell.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.bell.changed.wait_timeout_while(rung, timeout, |rung| !*rung);
        let (mut rung, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::<Bell>::clone(&self.bell)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: QueueId = QueueId(1);

    #[test]
    fn an_injected_frame_comes_out_as_sent_and_its_buffer_returns() {
        let mut io = MemoryIo::new(2, &[Q]);
        assert!(io.inject(Q, &[1, 2, 3]));
        let mut frames = Vec::new();
        assert_eq!(io.rx(Q, &mut frames, 8), 1);
        assert_eq!(io.bytes(&frames[0]), [1, 2, 3]);
        io.tx(Q, frames.remove(0)).unwrap();
        assert_eq!(io.free_count(), 1);
        assert_eq!(io.take_sent(Q), [vec![1, 2, 3]]);
        assert_eq!(io.free_count(), 2);
    }

    #[test]
    fn a_full_or_unknown_queue_gives_the_frame_back() {
        let mut io = MemoryIo::new(1, &[Q]);
        io.set_room(Q, 0);
        let frame = io.alloc().unwrap();
        let frame = io.tx(Q, frame).unwrap_err();
        let frame = io.tx(QueueId(9), frame).unwrap_err();
        io.free(frame);
        assert_eq!(io.free_count(), 1);
    }

    #[test]
    fn a_feed_repeats_and_a_tally_counts_bytes_and_content() {
        let mut io = MemoryIo::new(8, &[Q]);
        io.set_feed(Q, Feed::new(vec![vec![1; 60], vec![2; 61]]));
        io.set_sink(Q, Sink::Tally(Tally::default()));
        let mut frames = Vec::new();
        assert_eq!(io.rx(Q, &mut frames, 3), 3);
        for frame in frames {
            io.tx(Q, frame).unwrap();
        }
        assert_eq!(io.tally(Q), Some(Tally { packets: 3, bytes: 181 }));
        assert_eq!(io.free_count(), 8);
    }

    #[test]
    fn a_feed_takes_no_more_buffers_than_there_are() {
        let mut io = MemoryIo::new(3, &[Q]);
        assert!(io.inject(Q, &[7; 60]));
        io.set_feed(Q, Feed::new(vec![vec![1; 60], vec![2; 60]]));
        let mut frames = Vec::new();
        assert_eq!((io.rx(Q, &mut frames, 64), io.rx(Q, &mut frames, 64)), (3, 0));
        let first: Vec<u8> = frames.iter().map(|f| io.bytes(f)[0]).collect();
        assert_eq!((first, io.free_count()), (vec![7, 1, 2], 0));
    }

    #[derive(Debug)]
    struct Seen(std::sync::mpsc::Sender<(u64, Vec<u8>)>);

    impl Inspector for Seen {
        fn sent(&mut self, number: u64, bytes: &[u8]) {
            self.0.send((number, bytes.to_vec())).unwrap();
        }
    }

    #[test]
    fn an_inspector_sees_all_frames_or_one_run_of_64_in_64() {
        let mut io = MemoryIo::new(1, &[Q]);
        io.set_sink(Q, Sink::Tally(Tally::default()));
        let (sender, seen) = std::sync::mpsc::channel();
        io.set_inspector(Q, Inspect::All, Box::new(Seen(sender)));
        let send = |io: &mut MemoryIo, byte: u8| {
            assert!(io.inject(Q, &[byte; 60]));
            let mut frames = Vec::new();
            io.rx(Q, &mut frames, 1);
            io.tx(Q, frames.remove(0)).unwrap();
        };
        send(&mut io, 9);
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), [(0, vec![9; 60])]);
        io.set_inspect(Q, Inspect::Sample);
        for _ in 1..8300 {
            send(&mut io, 9);
        }
        let numbers: Vec<u64> = seen.try_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, (1..64).chain(4096..4160).chain(8192..8256).collect::<Vec<_>>());
    }

    #[test]
    fn a_wake_before_the_wait_ends_it_at_once() {
        let mut io = MemoryIo::new(1, &[Q]);
        io.waker().wake();
        io.wait(Duration::from_mins(1));
    }
}
