//! What a memory port receives by itself: a ring of frames, and when they arrive.
//!
//! The frames lie one behind the other, so that the ring is read as a NIC's memory is, in order. A
//! feed without a [`Pace`] has a frame whenever it is asked. With one, frames arrive by the clock
//! into a queue of bounded room, as they do on a wire: who asks too late finds the newest ones lost
//! and the oldest ones late.

use std::collections::VecDeque;

use crate::frame::{FRAME_BYTES, HEADROOM};

const NS_PER_S: u64 = 1_000_000_000;
/// Bursts whose delay is kept; later ones are not recorded.
const DELAYS_MAX: usize = 1 << 22;

/// Frames to receive over and over, each copied into a fresh buffer.
#[derive(Debug)]
pub struct Feed {
    /// All frames, without gaps.
    bytes: Vec<u8>,
    /// Frames of one length that follow each other: their length and where the last one ends.
    runs: Vec<(u16, usize)>,
    /// Run of the frame to be received next, and that frame's first byte.
    run: usize,
    at: usize,
    fresh: Option<Fresh>,
    pace: Option<Pace>,
}

/// A number in each frame that grows with every turn of the ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fresh {
    offset: usize,
    turn: u16,
}

impl Fresh {
    /// Adds the turn to the number; a frame that ends before it is left alone.
    #[inline]
    pub(super) fn apply(self, frame: &mut [u8]) {
        if let Some(field) = frame.get_mut(self.offset..).and_then(<[u8]>::first_chunk_mut::<2>) {
            *field = u16::from_be_bytes(*field).wrapping_add(self.turn).to_be_bytes();
        }
    }
}

impl Feed {
    /// A ring of frames, received in order, for ever. A frame has at most [`FRAME_BYTES`] minus
    /// [`HEADROOM`] bytes; what is beyond is cut off, and empty frames are left out.
    #[must_use]
    pub fn new(frames: Vec<Vec<u8>>) -> Self {
        let (bytes, runs) = (Vec::new(), Vec::new());
        let mut feed = Self { bytes, runs, run: 0, at: 0, fresh: None, pace: None };
        for mut frame in frames.into_iter().filter(|frame| !frame.is_empty()) {
            frame.truncate(FRAME_BYTES - HEADROOM);
            let len = frame.len() as u16;
            feed.bytes.append(&mut frame);
            let end = feed.bytes.len();
            match feed.runs.last_mut() {
                Some(run) if run.0 == len => run.1 = end,
                Some(_) | None => feed.runs.push((len, end)),
            }
        }
        feed
    }

    /// The same frames, but the 16 bits at `offset` grow by one with every turn of the ring. Put at
    /// a source port they make every packet the first of its flow, for 65,536 turns.
    #[must_use]
    pub fn fresh(self, offset: usize) -> Self {
        Self { fresh: Some(Fresh { offset, turn: 0 }), ..self }
    }

    /// The same frames, arriving by the clock.
    #[must_use]
    pub fn paced(self, pace: Pace) -> Self {
        Self { pace: Some(pace), ..self }
    }

    /// How many of `max` frames are there.
    #[inline]
    pub(super) fn due(&mut self, max: usize) -> usize {
        if self.runs.is_empty() {
            return 0;
        }
        self.pace.as_mut().map_or(max, |pace| pace.take(max))
    }

    /// The next frames, at most `max` of them, that have one length: their bytes, that length, and
    /// what is to be changed in them. [`Feed::due`] has said that there are as many.
    #[inline]
    pub(super) fn emit(&mut self, max: usize) -> (&[u8], u16, Option<Fresh>) {
        let (len, end) = self.runs[self.run];
        let (start, fresh) = (self.at, self.fresh);
        self.at = end.min(start + max * usize::from(len));
        let emitted = start..self.at;
        if self.at == end {
            self.next_run();
        }
        (&self.bytes[emitted], len, fresh)
    }

    #[cold]
    fn next_run(&mut self) {
        self.run += 1;
        if self.run < self.runs.len() {
            return;
        }
        (self.run, self.at) = (0, 0);
        if let Some(fresh) = &mut self.fresh {
            fresh.turn = fresh.turn.wrapping_add(1);
        }
    }

    /// Everything received before has been handled.
    #[inline]
    pub(super) fn handled(&mut self) {
        if let Some(pace) = &mut self.pace {
            pace.record();
        }
    }

    pub(super) fn arrivals(&mut self) -> Option<Arrivals> {
        self.pace.as_mut().map(Pace::arrivals)
    }
}

/// What became of the frames of a paced feed, and how long the bursts took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// Frames that arrived.
    pub offered: u64,
    /// Those that found the queue full.
    pub lost: u64,
    /// Those that nobody has asked for yet.
    pub waiting: u64,
    /// For each burst, in ns: from the arrival of its oldest frame to the [`crate::PacketIo::flush`]
    /// after it.
    pub delays_ns: Vec<u32>,
}

/// Arrival by the clock.
pub struct Pace {
    rate_pps: u64,
    room: u64,
    clock: Box<dyn FnMut() -> u64 + Send>,
    start_ns: u64,
    arrived: u64,
    lost: u64,
    /// Frames in the queue: number of the first arrival of each run, and how many they are.
    queue: VecDeque<(u64, u64)>,
    waiting: u64,
    /// Arrival of the oldest frame that is being handled.
    oldest_ns: Option<u64>,
    delays_ns: Vec<u32>,
}

impl std::fmt::Debug for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rate_pps, room, arrived, lost, waiting, .. } = self;
        write!(f, "Pace({rate_pps} pps, {room} frames: {arrived} - {lost} lost, {waiting} wait)")
    }
}

impl Pace {
    /// `rate_pps` frames a second (0 counts as 1) from now on, into a queue of `room` frames. `clock`
    /// gives nanoseconds of a steady clock; it is read once a burst.
    #[must_use]
    pub fn new(rate_pps: u64, room: u32, mut clock: Box<dyn FnMut() -> u64 + Send>) -> Self {
        let start_ns = clock();
        Self {
            rate_pps: rate_pps.max(1),
            room: u64::from(room),
            clock,
            start_ns,
            arrived: 0,
            lost: 0,
            queue: VecDeque::new(),
            waiting: 0,
            oldest_ns: None,
            delays_ns: Vec::with_capacity(DELAYS_MAX),
        }
    }

    /// Lets arrive what has arrived, then takes up to `max` frames.
    fn take(&mut self, max: usize) -> usize {
        self.arrive();
        let mut taken = 0;
        while taken < max as u64
            && let Some((first, count)) = self.queue.pop_front()
        {
            if self.oldest_ns.is_none() {
                self.oldest_ns = Some(self.arrival_ns(first));
            }
            let part = count.min(max as u64 - taken);
            taken += part;
            if part < count {
                self.queue.push_front((first + part, count - part));
            }
        }
        self.waiting -= taken;
        taken as usize
    }

    /// The queue takes the first comers; when it is full, the others are lost.
    fn arrive(&mut self) {
        let elapsed = u128::from((self.clock)().saturating_sub(self.start_ns));
        let total = (elapsed * u128::from(self.rate_pps) / u128::from(NS_PER_S)) as u64;
        let new = total.saturating_sub(self.arrived);
        let accepted = new.min(self.room - self.waiting);
        if accepted > 0 {
            self.queue.push_back((self.arrived, accepted));
        }
        self.waiting += accepted;
        self.lost += new - accepted;
        self.arrived += new;
    }

    /// When arrival `number`, counted from 0, has happened.
    fn arrival_ns(&self, number: u64) -> u64 {
        let ns = u128::from(number + 1) * u128::from(NS_PER_S);
        self.start_ns + ns.div_ceil(u128::from(self.rate_pps)) as u64
    }

    fn record(&mut self) {
        let Some(oldest_ns) = self.oldest_ns.take() else { return };
        if self.delays_ns.len() < DELAYS_MAX {
            let delay_ns = (self.clock)().saturating_sub(oldest_ns);
            self.delays_ns.push(u32::try_from(delay_ns).unwrap_or(u32::MAX));
        }
    }

    fn arrivals(&mut self) -> Arrivals {
        Arrivals {
            offered: self.arrived,
            lost: self.lost,
            waiting: self.waiting,
            delays_ns: std::mem::take(&mut self.delays_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn emit(feed: &mut Feed) -> Vec<u8> {
        let (bytes, len, fresh) = feed.emit(1);
        assert_eq!(bytes.len(), usize::from(len));
        let mut frame = bytes.to_vec();
        if let Some(fresh) = fresh {
            fresh.apply(&mut frame);
        }
        frame
    }

    #[test]
    fn frames_of_one_length_come_together_and_a_turn_ends_at_the_last() {
        let frames = [vec![1], vec![2], vec![], vec![3], vec![4, 4], vec![5, 5]];
        let mut feed = Feed::new(frames.to_vec());
        let mut next = |max| {
            let (bytes, len, _) = feed.emit(max);
            (bytes.to_vec(), len)
        };
        assert_eq!(next(2), (vec![1, 2], 1));
        assert_eq!(next(64), (vec![3], 1));
        assert_eq!(next(64), (vec![4, 4, 5, 5], 2));
        assert_eq!(next(64), (vec![1, 2, 3], 1));
    }

    #[test]
    fn fresh_frames_differ_in_their_field_from_turn_to_turn() {
        let mut feed = Feed::new(vec![vec![1, 0, 255, 4], vec![2, 9, 9, 8]]).fresh(1);
        let turns: Vec<_> = (0..6).map(|_| emit(&mut feed)).collect();
        assert_eq!(turns[..2], [[1, 0, 255, 4], [2, 9, 9, 8]]);
        assert_eq!(turns[2..4], [[1, 1, 0, 4], [2, 9, 10, 8]]);
        assert_eq!(turns[4..], [[1, 1, 1, 4], [2, 9, 11, 8]]);
    }

    #[test]
    fn a_field_beyond_the_frame_is_left_alone() {
        let mut feed = Feed::new(vec![vec![1, 2]]).fresh(1);
        assert_eq!([emit(&mut feed), emit(&mut feed)], [[1, 2], [1, 2]]);
    }

    /// 1,000 frames a second into 10 places.
    fn paced() -> (Feed, Arc<AtomicU64>) {
        let now = Arc::new(AtomicU64::new(5_000_000));
        let clock = Arc::clone(&now);
        let pace = Pace::new(1000, 10, Box::new(move || clock.load(Ordering::Relaxed)));
        (Feed::new(vec![vec![0; 60]]).paced(pace), now)
    }

    #[test]
    fn frames_arrive_by_the_clock_and_a_full_queue_loses_the_newest() {
        let (mut feed, now) = paced();
        assert_eq!(feed.due(64), 0);
        now.fetch_add(3_999_999, Ordering::Relaxed);
        assert_eq!(feed.due(64), 3);
        feed.handled();
        now.fetch_add(12_000_001, Ordering::Relaxed);
        assert_eq!((feed.due(4), feed.due(64), feed.due(64)), (4, 6, 0));
        feed.handled();
        feed.handled();
        // The oldest of the first burst came after 1 ms, that of the second after 4 ms.
        let delays_ns = vec![2_999_999, 12_000_000];
        let expected = Arrivals { offered: 16, lost: 3, waiting: 0, delays_ns };
        assert_eq!(feed.arrivals(), Some(expected));
    }

    #[test]
    fn what_waits_keeps_its_time_when_later_ones_are_lost() {
        let (mut feed, now) = paced();
        now.fetch_add(12_000_000, Ordering::Relaxed);
        assert_eq!(feed.due(8), 8);
        now.fetch_add(1_000_000, Ordering::Relaxed);
        feed.handled();
        assert_eq!(feed.due(2), 2);
        feed.handled();
        assert_eq!(feed.due(2), 1);
        feed.handled();
        // Arrivals 0, 8 and, after 10 and 11 were lost, 12.
        let delays_ns = vec![12_000_000, 4_000_000, 0];
        let expected = Arrivals { offered: 13, lost: 2, waiting: 0, delays_ns };
        assert_eq!(feed.arrivals(), Some(expected));
    }

    #[test]
    fn an_empty_ring_has_no_frames() {
        assert_eq!(Feed::new(Vec::new()).due(64), 0);
    }
}
