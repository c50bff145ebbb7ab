//! The part of each connection that is read without a lock.
//!
//! A slot's word is its incarnation and the state, or no state while it is free. Only the holder
//! of the shard's lock begins and ends an incarnation; within one, any worker may change the
//! state. Both go by compare-exchange of the whole word, so neither can undo the other.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::state::State;
use super::timeouts::Seconds;

/// Slots made at once.
pub(super) const CHUNK: u32 = 256;

/// Incarnation and state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(u64);

impl Word {
    #[inline]
    pub(super) const fn live(incarnation: u32, state: State) -> Self {
        Self((incarnation as u64) << 32 | (state as u64 + 1))
    }

    pub(super) const fn free(incarnation: u32) -> Self {
        Self((incarnation as u64) << 32)
    }

    #[inline]
    pub(super) const fn incarnation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// `None`: free.
    #[inline]
    pub(super) fn state(self) -> Option<State> {
        State::ALL.get((self.0 as u32 as usize).wrapping_sub(1)).copied()
    }
}

/// The atomics of one connection.
#[derive(Debug, Default)]
pub(super) struct Slot {
    word: AtomicU64,
    seen: AtomicU32,
}

const _: () = assert!(size_of::<Slot>() == 16, "four connections to a cache line");

impl Slot {
    #[inline]
    pub(super) fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// Changes the word unless it is another than `from`.
    #[inline]
    pub(super) fn change(&self, from: Word, to: Word) -> Result<(), Word> {
        let done = self.word.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire);
        done.map(|_| ()).map_err(Word)
    }

    /// Begins an incarnation; under the shard's lock, on a free slot.
    pub(super) fn begin(&self, state: State, now: Seconds) {
        self.seen.store(now.0, Ordering::Relaxed);
        let live = Word::live(self.word().incarnation(), state);
        self.word.store(live.0, Ordering::Release);
    }

    /// Second of the last packet.
    #[inline]
    pub(super) fn seen(&self) -> Seconds {
        Seconds(self.seen.load(Ordering::Relaxed))
    }

    /// Notes a packet. It may hit a successor of the connection it was meant for, which then
    /// seems at most as young as the clock of the slowest worker says: that is within a second.
    #[inline]
    pub(super) fn note(&self, now: Seconds) {
        // Read first: most packets come in a second that is noted already, and reading leaves the
        // cache line shared.
        if self.seen() < now {
            self.seen.fetch_max(now.0, Ordering::Relaxed);
        }
    }
}

type Chunk = [Slot; CHUNK as usize];

/// All slots, in chunks that are made when a shard first needs them.
#[derive(Debug)]
pub(super) struct Slots {
    chunks: Box<[OnceLock<Box<Chunk>>]>,
}

impl Slots {
    /// Room for `count` slots, a multiple of [`CHUNK`]; none is made.
    pub(super) fn new(count: u32) -> Self {
        Self { chunks: (0..count / CHUNK).map(|_| OnceLock::new()).collect() }
    }

    /// The slot at `index`, if its chunk was made.
    #[inline]
    pub(super) fn at(&self, index: u32) -> Option<&Slot> {
        let chunk = self.chunks.get((index / CHUNK) as usize)?.get()?;
        Some(&chunk[(index % CHUNK) as usize])
    }

    /// The slot at `index`; its chunk is made if need be.
    pub(super) fn make(&self, index: u32) -> &Slot {
        let make = || Box::new(std::array::from_fn(|_| Slot::default()));
        let chunk = self.chunks[(index / CHUNK) as usize].get_or_init(make);
        &chunk[(index % CHUNK) as usize]
    }
}
