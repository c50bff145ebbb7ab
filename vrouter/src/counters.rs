//! Counters of one worker: written by that worker alone with plain loads and stores, read by
//! anyone. Nothing here is a read-modify-write, so counting costs no bus lock; a reader may see
//! packets a moment before bytes.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use flowtable::DropReason;
use flowtable::drop::DROP_REASON_COUNT;
use flowtable::ids::PortId;

use crate::pipeline::NO_SLOT;
use crate::worker::WorkCells;

/// Packets and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Frames.
    pub packets: u64,
    /// Their lengths from the Ethernet header on, without FCS.
    pub bytes: u64,
}

impl Count {
    /// Both together.
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }

    /// One more packet of `bytes` bytes.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

#[derive(Debug, Default)]
pub(crate) struct Cell {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Cell {
    #[inline]
    pub(crate) fn add(&self, bytes: usize) {
        self.packets.store(self.packets.load(Relaxed).wrapping_add(1), Relaxed);
        self.bytes.store(self.bytes.load(Relaxed).wrapping_add(bytes as u64), Relaxed);
    }

    /// Several packets at once.
    pub(crate) fn add_count(&self, count: Count) {
        self.packets.store(self.packets.load(Relaxed).wrapping_add(count.packets), Relaxed);
        self.bytes.store(self.bytes.load(Relaxed).wrapping_add(count.bytes), Relaxed);
    }

    pub(crate) fn read(&self) -> Count {
        Count { packets: self.packets.load(Relaxed), bytes: self.bytes.load(Relaxed) }
    }

    /// Only while the worker is known not to use this cell.
    pub(crate) fn reset(&self) {
        self.packets.store(0, Relaxed);
        self.bytes.store(0, Relaxed);
    }
}

/// What is counted for one port.
#[derive(Debug, Default)]
pub(crate) struct PortCounters {
    pub(crate) rx: Cell,
    pub(crate) tx: Cell,
    /// Packets received here and dropped.
    pub(crate) drops: Cell,
}

/// Which tier of the lookup decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// T1, the exact cache.
    Exact,
    /// T2, the masked cache.
    Masked,
    /// T3, the tables.
    Pipeline,
}

pub(crate) const TIER_COUNT: usize = 3;

impl Tier {
    const ALL: [Self; TIER_COUNT] = [Self::Exact, Self::Masked, Self::Pipeline];

    /// Name in traces.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Masked => "masked",
            Self::Pipeline => "pipeline",
        }
    }

    /// The last tier that was asked between two readings of the worker's counts.
    pub(crate) fn between(before: [u64; TIER_COUNT], after: [u64; TIER_COUNT]) -> Self {
        let asked = Self::ALL.into_iter().rev().find(|t| before[*t as usize] != after[*t as usize]);
        asked.unwrap_or(Self::Pipeline)
    }
}

/// Everything one worker counts.
#[derive(Debug)]
pub(crate) struct Counters {
    ports: Box<[PortCounters]>,
    rules: Box<[Cell]>,
    drops: Box<[Cell]>,
    tiers: [AtomicU64; TIER_COUNT],
    /// Entries of the exact and of the masked cache, and the masks of that.
    entries: [AtomicU64; 3],
    work: WorkCells,
}

impl Counters {
    pub(crate) fn new(rule_slots: usize) -> Self {
        let ports = usize::from(PortId::MAX.get()) + 1;
        Self {
            ports: std::iter::repeat_with(PortCounters::default).take(ports).collect(),
            rules: std::iter::repeat_with(Cell::default).take(rule_slots).collect(),
            drops: std::iter::repeat_with(Cell::default).take(DROP_REASON_COUNT).collect(),
            tiers: Default::default(),
            entries: Default::default(),
            work: WorkCells::default(),
        }
    }

    #[inline]
    pub(crate) fn port(&self, port: PortId) -> &PortCounters {
        &self.ports[usize::from(port.get())]
    }

    #[inline]
    pub(crate) fn rule(&self, slot: u32) -> &Cell {
        &self.rules[slot as usize]
    }

    /// One more packet for each of the rules that matched it.
    #[inline(always)]
    pub(crate) fn add_rules(&self, slots: [u32; 2], bytes: usize) {
        for slot in slots {
            if slot != NO_SLOT {
                self.rule(slot).add(bytes);
            }
        }
    }

    pub(crate) fn drop_reason(&self, reason: DropReason) -> &Cell {
        &self.drops[reason.index()]
    }

    /// Adds what one loop has counted, and empties it.
    #[inline]
    pub(crate) fn add_tiers(&self, counted: &mut [u64; TIER_COUNT]) {
        for (cell, counted) in self.tiers.iter().zip(counted) {
            cell.store(cell.load(Relaxed).wrapping_add(std::mem::take(counted)), Relaxed);
        }
    }

    pub(crate) fn tiers(&self) -> [u64; TIER_COUNT] {
        Tier::ALL.map(|t| self.tiers[t as usize].load(Relaxed))
    }

    pub(crate) fn set_entries(&self, exact: usize, masked: usize, masks: usize) {
        for (cell, count) in self.entries.iter().zip([exact, masked, masks]) {
            cell.store(count as u64, Relaxed);
        }
    }

    pub(crate) fn entries(&self) -> [u64; 3] {
        [0, 1, 2].map(|n: usize| self.entries[n].load(Relaxed))
    }

    pub(crate) const fn work(&self) -> &WorkCells {
        &self.work
    }

    /// A port id may name another container next time.
    pub(crate) fn reset_port(&self, port: PortId) {
        let counters = self.port(port);
        counters.rx.reset();
        counters.tx.reset();
        counters.drops.reset();
    }
}
