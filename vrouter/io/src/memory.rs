//! Ports in memory: the same trait as AF_XDP, without a kernel.
//!
//! Tests put frames in with [`MemoryIo::inject`] and read what was sent with
//! [`MemoryIo::take_sent`]. Benchmarks give a queue a [`Feed`], a ring of frames copied in one by
//! one as a NIC would, and a [`Sink::Tally`] that checks bytes instead of keeping them.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::frame::{FRAME_BYTES, Frame, HEADROOM};
use crate::{PacketIo, QueueId, Wake};

/// Frames to receive over and over, each copied into a fresh buffer.
#[derive(Debug, Clone)]
pub struct Feed {
    frames: Vec<Vec<u8>>,
    next: usize,
}

impl Feed {
    /// A ring of frames, received in order, for ever.
    #[must_use]
    pub fn new(frames: Vec<Vec<u8>>) -> Self {
        Self { frames, next: 0 }
    }
}

/// Count and content of what a [`Sink::Tally`] swallowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames sent.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Wrapping sum of [`digest`] over them.
    pub digest: u64,
}

/// Order-free fingerprint of a frame: every byte counts, at its place.
#[must_use]
pub fn digest(frame: &[u8]) -> u64 {
    let mut chunks = frame.chunks_exact(8);
    let mut sum = frame.len() as u64;
    for chunk in &mut chunks {
        let word = chunk.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
        sum = sum.rotate_left(5).wrapping_add(word);
    }
    chunks.remainder().iter().fold(sum, |s, b| s.rotate_left(5).wrapping_add(u64::from(*b)))
}

/// What becomes of frames sent to a queue.
#[derive(Debug, Clone)]
pub enum Sink {
    /// Kept for [`MemoryIo::take_sent`].
    Keep,
    /// Counted and freed.
    Tally(Tally),
}

#[derive(Debug)]
struct Queue {
    received: VecDeque<Frame>,
    feed: Option<Feed>,
    sent: VecDeque<Frame>,
    sink: Sink,
    /// Frames the queue takes before [`PacketIo::tx`] refuses.
    room: usize,
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
    region: Vec<u8>,
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
            room: usize::MAX,
        };
        Self {
            region: vec![0; frames as usize * FRAME_BYTES],
            free: (0..frames).rev().collect(),
            ids: ids.to_vec(),
            queues: ids.iter().map(|_| queue()).collect(),
            bell: Arc::default(),
        }
    }

    /// Makes `bytes` the next frame received on `queue`; says whether there was a buffer for it.
    pub fn inject(&mut self, queue: QueueId, bytes: &[u8]) -> bool {
        let Some(frame) = self.copy_in(bytes) else { return false };
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
        self.ids.iter().position(|id| *id == queue)
    }

    fn queue_mut(&mut self, queue: QueueId) -> Option<&mut Queue> {
        self.position(queue).map(|i| &mut self.queues[i])
    }

    fn copy_in(&mut self, bytes: &[u8]) -> Option<Frame> {
        let mut frame = self.alloc()?;
        if frame.set_len(bytes.len()).is_err() {
            self.free(frame);
            return None;
        }
        self.bytes_mut(&mut frame).copy_from_slice(bytes);
        Some(frame)
    }
}

impl PacketIo for MemoryIo {
    fn queues(&self) -> &[QueueId] {
        &self.ids
    }

    fn rx(&mut self, queue: QueueId, frames: &mut Vec<Frame>, max: usize) -> usize {
        let Some(at) = self.position(queue) else { return 0 };
        let before = frames.len();
        let waiting = &mut self.queues[at].received;
        frames.extend(waiting.drain(..max.min(waiting.len())));
        let Some(mut feed) = self.queues[at].feed.take() else { return frames.len() - before };
        while frames.len() - before < max {
            let Some(frame) = self.copy_in(&feed.frames[feed.next]) else { break };
            frames.push(frame);
            feed.next = if feed.next + 1 == feed.frames.len() { 0 } else { feed.next + 1 };
        }
        self.queues[at].feed = Some(feed);
        frames.len() - before
    }

    fn tx(&mut self, queue: QueueId, frame: Frame) -> Result<(), Frame> {
        let Some(at) = self.position(queue) else { return Err(frame) };
        if self.queues[at].sent.len() >= self.queues[at].room {
            return Err(frame);
        }
        let start = frame.index() as usize * FRAME_BYTES + frame.start();
        let bytes = &self.region[start..start + frame.len()];
        let queue = &mut self.queues[at];
        match &mut queue.sink {
            Sink::Keep => queue.sent.push_back(frame),
            Sink::Tally(tally) => {
                tally.packets += 1;
                tally.bytes += bytes.len() as u64;
                tally.digest = tally.digest.wrapping_add(digest(bytes));
                self.free.push(frame.index());
            }
        }
        Ok(())
    }

    fn flush(&mut self) {}

    fn alloc(&mut self) -> Option<Frame> {
        let index = self.free.pop()?;
        Frame::new(index, HEADROOM, 0).ok()
    }

    fn free(&mut self, frame: Frame) {
        self.free.push(frame.index());
    }

    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let start = frame.index() as usize * FRAME_BYTES + frame.start();
        &self.region[start..start + frame.len()]
    }

    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        let start = frame.index() as usize * FRAME_BYTES + frame.start();
        &mut self.region[start..start + frame.len()]
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
        let sum = digest(&[1; 60]).wrapping_mul(2).wrapping_add(digest(&[2; 61]));
        assert_eq!(io.tally(Q), Some(Tally { packets: 3, bytes: 181, digest: sum }));
        assert_eq!(io.free_count(), 8);
    }

    #[test]
    fn a_wake_before_the_wait_ends_it_at_once() {
        let mut io = MemoryIo::new(1, &[Q]);
        io.waker().wake();
        io.wait(Duration::from_mins(1));
    }
}
