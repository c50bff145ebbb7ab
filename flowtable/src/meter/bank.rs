//! The shared half of the meters: parameters and buckets by slot, counters by slot and worker.
//!
//! Three kinds of memory, on lines of their own. Parameters are read per packet and written by
//! [`MeterBank::set`] only, under a sequence number: an odd one means "being written", and a reader
//! that meets it goes on with what it has. Buckets are written once per portion, by whichever
//! worker. Counters have one writer each, so adding is a load and a store.

use std::array::from_fn;
use std::fmt;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};
use std::sync::{Mutex, PoisonError};

use super::spec::{Colour, MeterSpec, Price, Unit};
use crate::ids::OutOfRange;

/// How far the bucket of a meter may seem to lie in the future because another worker read the
/// clock earlier or later. Beyond that, the clock has stepped back.
const STEP_NS: u64 = 1_000_000_000;

/// The place of a meter in a [`MeterBank`], chosen by the caller; small numbers save memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeterSlot(u16);

impl MeterSlot {
    /// No meter: everything passes.
    pub const NONE: Self = Self(u16::MAX);

    /// Slot `number`, 0..=65534.
    ///
    /// # Errors
    /// [`OutOfRange`] when `number` is larger.
    pub const fn new(number: u32) -> Result<Self, OutOfRange> {
        const LAST: u64 = u16::MAX as u64 - 1;
        let value = number as u64;
        if value > LAST {
            return Err(OutOfRange { what: "meter slot", value, first: 0, last: LAST });
        }
        Ok(Self(number as u16))
    }

    /// The plain number; 65535 for [`MeterSlot::NONE`].
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for MeterSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE { f.write_str("none") } else { self.0.fmt(f) }
    }
}

/// A slot or worker number that the bank was not made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value} is not in 0..{end} of this meter bank")]
pub struct NoSuchMeter {
    /// `meter slot` or `worker`.
    pub what: &'static str,
    /// The refused number.
    pub value: usize,
    /// One more than the largest accepted number.
    pub end: usize,
}

/// Packets with their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Number of packets.
    pub packets: u64,
    /// Their bytes: Ethernet frames without FCS.
    pub bytes: u64,
}

/// What a meter has seen since its slot was cleared last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MeterCounts {
    /// Passed within the committed rate.
    pub green: Tally,
    /// Passed within the peak rate.
    pub yellow: Tally,
    /// Refused by this meter. What another meter refused is not counted here at all.
    pub red: Tally,
}

/// Packets and bytes by colour.
type Counters = [[AtomicU64; 2]; 3];

/// Parameters, one cache line.
#[repr(align(64))]
#[derive(Debug, Default)]
struct Parameters {
    /// Odd while the others are being written.
    generation: AtomicU64,
    /// `2 x owner + (unit is packets)`; another owner is another meter, whose tokens are not ours.
    identity: AtomicU64,
    prices: [[AtomicU64; 3]; 2],
}

/// State, written by all workers.
#[repr(align(64))]
#[derive(Debug, Default)]
struct Buckets {
    /// Per band the time at which the bucket is full, ns.
    full_at: [AtomicU64; 2],
    /// Sums of the counters when the slot was cleared.
    base: Counters,
}

/// Counters of one slot and worker.
#[repr(align(64))]
#[derive(Debug, Default)]
struct WorkerCounts(Counters);

/// A consistent copy of the parameters of a slot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) generation: u64,
    pub(super) identity: u64,
    pub(super) prices: [Price; 2],
}

impl Terms {
    /// What a slot without a meter has.
    pub(super) const NONE: Self = Self { generation: 0, identity: 0, prices: [Price::NONE; 2] };

    pub(super) const fn unit(&self) -> Unit {
        if self.identity & 1 == 0 { Unit::Bits } else { Unit::Packets }
    }
}

/// What a worker asks of a bucket, ns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    /// Less is useless.
    pub(super) need_ns: u64,
    /// More is not taken.
    pub(super) want_ns: u64,
    /// Whether less than `want_ns` is taken.
    pub(super) partial: bool,
}

/// The meters of a node, shared by its workers and by whoever sets and reads them.
#[derive(Debug)]
pub struct MeterBank {
    parameters: Box<[Parameters]>,
    buckets: Box<[Buckets]>,
    /// By worker, then by slot.
    counts: Box<[Box<[WorkerCounts]>]>,
    /// Held while parameters are written; never on the way of a packet.
    writer: Mutex<()>,
}

impl MeterBank {
    /// A bank of `slots` meters (at most 65,535), none of them set, for `workers` (1..=1024).
    /// 128 bytes per slot, and 64 per slot and worker.
    #[must_use]
    pub fn new(slots: usize, workers: usize) -> Self {
        let slots = slots.min(usize::from(u16::MAX));
        let counts = |_| (0..slots).map(|_| WorkerCounts::default()).collect();
        Self {
            parameters: (0..slots).map(|_| Parameters::default()).collect(),
            buckets: (0..slots).map(|_| Buckets::default()).collect(),
            counts: (0..workers.clamp(1, 1024)).map(counts).collect(),
            writer: Mutex::new(()),
        }
    }

    /// Number of slots.
    #[must_use]
    pub const fn slot_count(&self) -> usize {
        self.parameters.len()
    }

    /// Number of workers.
    #[must_use]
    pub const fn worker_count(&self) -> usize {
        self.counts.len()
    }

    /// Makes `slot` a meter, or changes its parameters while packets pass. A change keeps the
    /// tokens that are left, as bytes or packets and up to the new burst, and the counters; the
    /// same parameters again change nothing. A new meter, a new peak band and a change of unit
    /// start with a full bucket. Workers adapt at their next packet; one that is taking its portion
    /// at that moment takes it at the former price.
    ///
    /// # Errors
    /// [`NoSuchMeter`] when the bank has no such slot.
    pub fn set(&self, slot: MeterSlot, spec: &MeterSpec, now_ns: u64) -> Result<(), NoSuchMeter> {
        let (value, end) = (slot.index(), self.slot_count());
        if value >= end {
            return Err(NoSuchMeter { what: "meter slot", value, end });
        }
        // The lock guards no data that a panic could leave broken.
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let former = self.read_terms(value);
        let prices = spec.prices(self.worker_count());
        let same_unit = former.unit() == spec.unit();
        if former.prices == prices && same_unit {
            return Ok(());
        }
        let owner = (former.identity >> 1) + u64::from(!same_unit);
        let identity = owner << 1 | u64::from(spec.unit() == Unit::Packets);
        let old = if same_unit { former.prices } else { [Price::NONE; 2] };
        let buckets = &self.buckets[value].full_at;
        self.write_terms(value, Terms { identity, prices, ..former }, || {
            convert(&buckets[0], [old[0], prices[0]], now_ns);
            convert(&buckets[1], [old[1], prices[1]], now_ns);
        });
        Ok(())
    }

    /// Makes `slot` free: its packets pass uncounted, and the next [`MeterBank::set`] starts with a
    /// full bucket and counters at 0. A slot that the bank does not have is fine.
    pub fn clear(&self, slot: MeterSlot) {
        let index = slot.index();
        let Some(buckets) = self.buckets.get(index) else {
            return;
        };
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let former = self.read_terms(index);
        // Another owner: what workers still hold is not given to the next meter in this slot.
        let identity = ((former.identity >> 1) + 1) << 1;
        self.write_terms(index, Terms { identity, prices: [Price::NONE; 2], ..former }, || {
            buckets.full_at.iter().for_each(|full_at| full_at.store(0, Relaxed));
        });
        let sums = self.sums(index);
        for (base, sum) in buckets.base.iter().flatten().zip(sums.iter().flatten()) {
            base.store(*sum, Relaxed);
        }
    }

    /// What the meter in `slot` has seen, summed over the workers; `None` when the bank has no such
    /// slot. The six numbers are read one after the other, while packets pass.
    #[must_use]
    pub fn read(&self, slot: MeterSlot) -> Option<MeterCounts> {
        let base = &self.buckets.get(slot.index())?.base;
        let sums = self.sums(slot.index());
        let [green, yellow, red] = from_fn(|colour| {
            let [packets, bytes] =
                from_fn(|n| sums[colour][n].saturating_sub(base[colour][n].load(Relaxed)));
            Tally { packets, bytes }
        });
        Some(MeterCounts { green, yellow, red })
    }

    fn sums(&self, index: usize) -> [[u64; 2]; 3] {
        from_fn(|colour| {
            from_fn(|n| self.counts.iter().map(|w| w[index].0[colour][n].load(Relaxed)).sum())
        })
    }

    /// Counts a packet. Only the worker itself calls this, so no addition is lost.
    #[inline]
    pub(super) fn count(&self, worker: usize, slot: MeterSlot, colour: Colour, bytes: u32) {
        let [packets, total] = &self.counts[worker][slot.index()].0[colour as usize];
        packets.store(packets.load(Relaxed) + 1, Relaxed);
        total.store(total.load(Relaxed) + u64::from(bytes), Relaxed);
    }

    /// Number that changes with the parameters of the slot.
    #[inline]
    pub(super) fn generation(&self, index: usize) -> u64 {
        self.parameters[index].generation.load(Acquire)
    }

    /// The parameters of the slot, unless they are being written.
    pub(super) fn terms(&self, index: usize) -> Option<Terms> {
        let terms = self.read_terms(index);
        // Pairs with the fence in `write_terms`: whoever saw a number of a later writing sees that
        // writing's generation here.
        fence(Acquire);
        let after = self.parameters[index].generation.load(Relaxed);
        (after == terms.generation && after & 1 == 0).then_some(terms)
    }

    /// Consistent under the writer's lock only.
    fn read_terms(&self, index: usize) -> Terms {
        let parameters = &self.parameters[index];
        let generation = parameters.generation.load(Acquire);
        let price = |band: &[AtomicU64; 3]| {
            let [unit, burst_ns, portion_ns] = from_fn(|n| band[n].load(Relaxed));
            Price { unit, burst_ns, portion_ns }
        };
        Terms {
            generation,
            identity: parameters.identity.load(Relaxed),
            prices: [price(&parameters.prices[0]), price(&parameters.prices[1])],
        }
    }

    /// Writes under the sequence number; the caller holds the lock. `terms.generation` is the
    /// former one.
    fn write_terms(&self, index: usize, terms: Terms, state: impl FnOnce()) {
        let parameters = &self.parameters[index];
        parameters.generation.store(terms.generation + 1, Relaxed);
        fence(Release);
        parameters.identity.store(terms.identity, Relaxed);
        for (band, price) in parameters.prices.iter().zip(terms.prices) {
            let numbers = [price.unit, price.burst_ns, price.portion_ns];
            band.iter().zip(numbers).for_each(|(word, number)| word.store(number, Relaxed));
        }
        state();
        parameters.generation.store(terms.generation + 2, Release);
    }

    /// Takes tokens from a bucket: how many ns (0 when there are too few), and how many are left.
    pub(super) fn take(
        &self,
        (index, band): (usize, usize),
        burst_ns: u64,
        request: Request,
        now_ns: u64,
    ) -> (u64, u64) {
        let full_at = &self.buckets[index].full_at[band];
        // Relaxed: the number is all that is shared, nothing is published by it.
        let mut seen = full_at.load(Relaxed);
        loop {
            let empty = now_ns.saturating_add(burst_ns);
            let stepped = seen > empty.saturating_add(STEP_NS);
            let start = if stepped { empty } else { seen.max(now_ns) };
            let left = empty.saturating_sub(start);
            let taken = if left >= request.want_ns {
                request.want_ns
            } else if left >= request.need_ns && request.partial {
                left
            } else {
                0
            };
            if taken == 0 && !stepped {
                return (0, left);
            }
            match full_at.compare_exchange_weak(seen, start + taken, Relaxed, Relaxed) {
                Ok(_) => return (taken, left - taken),
                Err(other) => seen = other,
            }
        }
    }

    /// Gives tokens back; a bucket that has filled meanwhile does not overflow.
    pub(super) fn give_back(&self, (index, band): (usize, usize), ns: u64) {
        let full_at = &self.buckets[index].full_at[band];
        let mut seen = full_at.load(Relaxed);
        while let Err(other) =
            full_at.compare_exchange_weak(seen, seen.saturating_sub(ns), Relaxed, Relaxed)
        {
            seen = other;
        }
    }
}

/// Converts a bucket to another price: tokens stay, up to the new burst.
fn convert(full_at: &AtomicU64, [old, new]: [Price; 2], now_ns: u64) {
    let converted = |seen: u64| {
        if old.unit == 0 || new.unit == 0 {
            return 0;
        }
        let left_ns = old.burst_ns.saturating_sub(seen.saturating_sub(now_ns));
        let left = u128::from(left_ns) * u128::from(new.unit) / u128::from(old.unit);
        let left_ns = u64::try_from(left).map_or(new.burst_ns, |ns| ns.min(new.burst_ns));
        now_ns.saturating_add(new.burst_ns - left_ns)
    };
    let mut seen = full_at.load(Relaxed);
    while let Err(other) = full_at.compare_exchange_weak(seen, converted(seen), Relaxed, Relaxed) {
        seen = other;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Band, MeterLease};
    use super::*;

    #[test]
    fn the_bucket_is_written_once_per_portion_also_above_the_rate() {
        let bank = MeterBank::new(1, 1);
        let slot = MeterSlot::new(0).unwrap();
        let band = Band { rate: 1_000_000_000, burst: 250_000 };
        let spec = MeterSpec::new(Unit::Bits, band, None).unwrap();
        assert_eq!(spec.lease(1), 25_000);
        bank.set(slot, &spec, 0).unwrap();
        let mut lease = MeterLease::new(&bank, 0).unwrap();
        let (mut seen, mut writes, mut passed) = (0, 0, 0);
        // A frame of 64 bytes every 100 ns is five times the rate.
        for now_ns in (1_000..100_000_000).step_by(100) {
            passed += u64::from(lease.police(&bank, &[slot], 64, now_ns).is_ok()) * 64;
            let full_at = bank.buckets[0].full_at[0].load(Relaxed);
            writes += u64::from(full_at != seen);
            seen = full_at;
        }
        assert!(passed >= 12_500_000, "{passed}");
        assert!(writes <= passed / 25_000 + 2, "{writes} for {passed}");
    }
}
