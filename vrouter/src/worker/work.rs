//! Where a worker's time goes: the I/O's ticks are read between two steps of a burst, never for a
//! packet. A loop that handled nothing is idle, whatever it looked at.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A step of the worker's loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Frames are taken from rings.
    Receive,
    /// Packets are read: whose port, which key, where its flow may be.
    Read,
    /// Packets are decided, charged and rewritten.
    Forward,
    /// Frames are given to the kernel, sent ones taken back, receive rings filled.
    Send,
    /// Calls from other threads, expired connections, packets that waited for tokens, replies.
    Other,
    /// Loops without a packet, and sleep.
    Idle,
}

/// Number of stages.
pub const STAGE_COUNT: usize = 6;
/// Sizes of bursts are counted up to 1, 2, 4, 8, 16, 32 and 64 packets.
pub const BURST_SIZE_COUNT: usize = 7;

impl Stage {
    /// All, in the order of the loop.
    pub const ALL: [Self; STAGE_COUNT] =
        [Self::Receive, Self::Read, Self::Forward, Self::Send, Self::Other, Self::Idle];

    /// Name in listings and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Read => "read",
            Self::Forward => "forward",
            Self::Send => "send",
            Self::Other => "other",
            Self::Idle => "idle",
        }
    }
}

/// What a worker has done since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkStats {
    /// Nanoseconds of the worker's clock between its first and its last loop.
    pub elapsed_ns: u64,
    /// Ticks of the I/O's counter in that time; 0 when it has none.
    pub elapsed_ticks: u64,
    /// Loops over all queues.
    pub loops: u64,
    /// Of these, loops that handled a packet.
    pub busy_loops: u64,
    /// Times that it went to sleep.
    pub sleeps: u64,
    /// Packets received.
    pub packets: u64,
    /// Bursts received, by size: see [`BURST_SIZE_COUNT`].
    pub bursts: [u64; BURST_SIZE_COUNT],
    /// Ticks by stage, as in [`Stage::ALL`].
    pub ticks: [u64; STAGE_COUNT],
}

/// One loop's readings, of the worker alone.
#[derive(Debug, Default)]
pub(super) struct Work {
    last: u64,
    laps: [u64; STAGE_COUNT],
    packets: u64,
    bursts: [u64; BURST_SIZE_COUNT],
}

impl Work {
    /// A loop begins; what was since the last one was sleep.
    #[inline]
    pub(super) fn begin(&mut self, ticks: u64) {
        self.lap(Stage::Idle, ticks);
    }

    /// The stage ends now.
    #[inline]
    pub(super) fn lap(&mut self, stage: Stage, ticks: u64) {
        self.laps[stage as usize] += ticks.wrapping_sub(self.last);
        self.last = ticks;
    }

    /// A burst of at least one packet.
    #[inline]
    pub(super) fn burst(&mut self, packets: usize) {
        self.packets += packets as u64;
        let size = (usize::BITS - packets.saturating_sub(1).leading_zeros()) as usize;
        self.bursts[size.min(BURST_SIZE_COUNT - 1)] += 1;
    }
}

/// The sums, written by the worker once a loop and read by anyone.
#[derive(Debug, Default)]
pub(crate) struct WorkCells {
    started: AtomicU64,
    first_ns: AtomicU64,
    last_ns: AtomicU64,
    first_ticks: AtomicU64,
    last_ticks: AtomicU64,
    loops: AtomicU64,
    busy_loops: AtomicU64,
    sleeps: AtomicU64,
    packets: AtomicU64,
    bursts: [AtomicU64; BURST_SIZE_COUNT],
    ticks: [AtomicU64; STAGE_COUNT],
}

#[inline]
fn add(cell: &AtomicU64, count: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(count), Relaxed);
}

impl WorkCells {
    /// Adds a loop that handled so many packets and ends now, and empties it.
    #[inline]
    pub(super) fn add(&self, work: &mut Work, handled: usize, now_ns: u64) {
        add(&self.loops, 1);
        self.last_ns.store(now_ns, Relaxed);
        self.last_ticks.store(work.last, Relaxed);
        if self.started.load(Relaxed) == 0 {
            self.begin(work, now_ns);
        }
        if handled == 0 {
            add(&self.ticks[Stage::Idle as usize], work.laps.iter().sum());
            work.laps = [0; STAGE_COUNT];
            return;
        }
        add(&self.busy_loops, 1);
        add(&self.packets, std::mem::take(&mut work.packets));
        for (cell, lap) in self.ticks.iter().zip(&mut work.laps) {
            add(cell, std::mem::take(lap));
        }
        for (cell, count) in self.bursts.iter().zip(&mut work.bursts) {
            add(cell, std::mem::take(count));
        }
    }

    /// The first loop: the counter's value so far is nobody's time.
    #[cold]
    fn begin(&self, work: &mut Work, now_ns: u64) {
        self.started.store(1, Relaxed);
        self.first_ns.store(now_ns, Relaxed);
        self.first_ticks.store(work.last, Relaxed);
        work.laps = [0; STAGE_COUNT];
    }

    pub(super) fn sleeps(&self) {
        add(&self.sleeps, 1);
    }

    pub(crate) fn read(&self) -> WorkStats {
        let read = |cell: &AtomicU64| cell.load(Relaxed);
        WorkStats {
            elapsed_ns: read(&self.last_ns).wrapping_sub(read(&self.first_ns)),
            elapsed_ticks: read(&self.last_ticks).wrapping_sub(read(&self.first_ticks)),
            loops: read(&self.loops),
            busy_loops: read(&self.busy_loops),
            sleeps: read(&self.sleeps),
            packets: read(&self.packets),
            bursts: std::array::from_fn(|size| read(&self.bursts[size])),
            ticks: std::array::from_fn(|stage| read(&self.ticks[stage])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_are_counted_by_the_next_power_of_two() {
        let mut work = Work::default();
        for packets in [1, 2, 3, 4, 5, 33, 64] {
            work.burst(packets);
        }
        assert_eq!(work.bursts, [1, 1, 2, 1, 0, 0, 2]);
        assert_eq!(work.packets, 112);
    }

    #[test]
    fn every_tick_between_the_first_and_the_last_loop_is_in_one_stage() {
        let (cells, mut work) = (WorkCells::default(), Work::default());
        let mut one_loop = |begin: u64, handled: usize| {
            work.begin(begin);
            work.lap(Stage::Receive, begin + 10);
            if handled > 0 {
                work.burst(handled);
                work.lap(Stage::Forward, begin + 110);
            }
            work.lap(Stage::Send, begin + 150);
            cells.add(&mut work, handled, begin / 2);
        };
        one_loop(1_000, 3);
        one_loop(2_000, 2);
        one_loop(3_000, 0);
        let stats = cells.read();
        assert_eq!((stats.loops, stats.busy_loops, stats.packets), (3, 2, 5));
        assert_eq!((stats.elapsed_ticks, stats.elapsed_ns), (2_000, 1_000));
        // The first loop sets the beginning; 850 and 850 ticks were slept, the last loop was idle.
        assert_eq!(stats.ticks, [10, 0, 100, 40, 0, 850 + 850 + 150]);
        assert_eq!(stats.ticks.iter().sum::<u64>(), stats.elapsed_ticks);
    }
}
