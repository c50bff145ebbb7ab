//! The private half of the meters: tokens that a worker has taken from the bank and not yet spent.
//!
//! A packet is judged by all its meters before it pays any of them. Judging may fetch a portion
//! from the bank; a portion that is not spent then stays here for the next packet, and goes back
//! when the meter was not asked for [`IDLE_NS`]. After a shortage a worker waits until a whole
//! portion is there, otherwise a sender above the rate would fetch every single packet's tokens.

use super::bank::{MeterBank, MeterSlot, NoSuchMeter, Request, Terms};
use super::spec::{Colour, FRACTION, Price, Unit};

/// Tokens that were not used for so long go back to the bank, ns.
const IDLE_NS: u64 = 1_000_000;

/// Tokens of one band.
#[derive(Debug, Clone, Copy, Default)]
struct Purse {
    /// Prepaid time, ns with [`FRACTION`] bits of fraction.
    held: u64,
    /// There were too few tokens lately: wait for whole portions.
    short: bool,
    /// What the packet in hand costs.
    due: u64,
}

/// What the worker knows and holds of one slot.
#[derive(Debug, Clone, Copy)]
struct Held {
    terms: Terms,
    /// When the meter was last asked.
    used_ns: u64,
    purses: [Purse; 2],
    /// The verdict on the packet in hand, until it has paid.
    verdict: Option<Colour>,
    /// The verdict on the last packet.
    last: Colour,
    /// In `MeterLease::held`.
    listed: bool,
}

const _: () = assert!(size_of::<Held>() == 128, "two cache lines");

/// A worker's share of the meters of a [`MeterBank`]; one per worker, 130 bytes per slot.
#[derive(Debug)]
pub struct MeterLease {
    worker: usize,
    slots: Box<[Held]>,
    /// Slots that may hold tokens.
    held: Vec<u16>,
    swept_ns: u64,
}

impl MeterLease {
    /// The share of `worker` in `bank`. One at a time: with two for the same worker, counts are
    /// lost. What a dropped share held is lost too, a portion at most.
    ///
    /// # Errors
    /// [`NoSuchMeter`] when the bank was made for fewer workers.
    pub fn new(bank: &MeterBank, worker: usize) -> Result<Self, NoSuchMeter> {
        let end = bank.worker_count();
        if worker >= end {
            return Err(NoSuchMeter { what: "worker", value: worker, end });
        }
        let none = Held {
            terms: Terms::NONE,
            used_ns: 0,
            purses: [Purse::default(); 2],
            verdict: None,
            last: Colour::Green,
            listed: false,
        };
        let slots = vec![none; bank.slot_count()].into_boxed_slice();
        Ok(Self { worker, held: Vec::with_capacity(slots.len()), slots, swept_ns: 0 })
    }

    /// Judges a packet of `bytes` (the Ethernet frame without FCS) by every meter in `slots`. All
    /// or nothing: it pays all of them or none. The result is the worst colour, green or yellow.
    /// [`MeterSlot::NONE`], a slot outside the bank and one without a meter let everything pass; a
    /// slot named twice is paid once. `bank` is the one this share was made of.
    ///
    /// # Errors
    /// The slot whose meter was red.
    #[inline]
    pub fn police(
        &mut self,
        bank: &MeterBank,
        slots: &[MeterSlot],
        bytes: u32,
        now_ns: u64,
    ) -> Result<Colour, MeterSlot> {
        let charged = self.offer(bank, slots, bytes, now_ns);
        charged.inspect_err(|red| self.count_red(bank, *red, bytes))
    }

    /// As [`MeterLease::police`], for a packet that may come again: a red one is not counted.
    ///
    /// # Errors
    /// The slot whose meter was red.
    #[inline]
    pub fn offer(
        &mut self,
        bank: &MeterBank,
        slots: &[MeterSlot],
        bytes: u32,
        now_ns: u64,
    ) -> Result<Colour, MeterSlot> {
        let mut worst = Colour::Green;
        for &slot in slots {
            let colour = self.judge(bank, slot, bytes, now_ns);
            if colour == Colour::Red {
                return Err(slot);
            }
            worst = worst.max(colour);
        }
        for &slot in slots {
            self.pay(bank, slot, bytes);
        }
        Ok(worst)
    }

    /// Counts a packet that [`MeterLease::offer`] has refused and that is dropped.
    pub fn count_red(&self, bank: &MeterBank, slot: MeterSlot, bytes: u32) {
        bank.count(self.worker, slot, Colour::Red, bytes);
    }

    /// Whether the last packet that the meter in `slot` judged was yellow.
    #[must_use]
    pub fn was_yellow(&self, slot: MeterSlot) -> bool {
        self.slots.get(slot.index()).is_some_and(|held| held.last == Colour::Yellow)
    }

    /// Gives back the tokens of meters that were not asked for 1 ms, so that other workers get
    /// them. To be called now and then, from a worker's loop; between two sweeps it only compares.
    #[inline]
    pub fn sweep(&mut self, bank: &MeterBank, now_ns: u64) {
        if !self.held.is_empty() && now_ns.abs_diff(self.swept_ns) >= IDLE_NS {
            self.swept_ns = now_ns;
            self.sweep_all(bank, now_ns);
        }
    }

    fn sweep_all(&mut self, bank: &MeterBank, now_ns: u64) {
        let slots = &mut self.slots;
        self.held.retain(|&slot| {
            let index = usize::from(slot);
            let held = &mut slots[index];
            held.adapt(bank, index);
            // A used_ns in the future is from before the clock stepped back.
            held.listed = now_ns.abs_diff(held.used_ns) < IDLE_NS;
            if !held.listed {
                held.give_back(bank, index);
            }
            held.listed
        });
    }

    #[inline]
    fn judge(&mut self, bank: &MeterBank, slot: MeterSlot, bytes: u32, now_ns: u64) -> Colour {
        let index = slot.index();
        let Some(held) = self.slots.get_mut(index) else {
            return Colour::Green;
        };
        held.adapt(bank, index);
        if held.terms.prices[0].unit == 0 {
            (held.verdict, held.last) = (None, Colour::Green);
            return Colour::Green;
        }
        if now_ns.abs_diff(held.used_ns) >= IDLE_NS {
            // Otherwise a long idle would give a burst and a portion.
            held.give_back(bank, index);
        }
        held.used_ns = now_ns;
        if !held.listed {
            held.listed = true;
            self.held.push(slot.get());
        }
        let units = match held.terms.unit() {
            Unit::Bits => bytes,
            Unit::Packets => 1,
        };
        let colour = held.colour(bank, index, units, now_ns);
        (held.verdict, held.last) = (Some(colour), colour);
        colour
    }

    #[inline]
    fn pay(&mut self, bank: &MeterBank, slot: MeterSlot, bytes: u32) {
        let Some(held) = self.slots.get_mut(slot.index()) else {
            return;
        };
        let Some(colour) = held.verdict.take() else {
            return;
        };
        for purse in &mut held.purses {
            purse.held -= purse.due;
        }
        bank.count(self.worker, slot, colour, bytes);
    }
}

impl Held {
    /// RFC 2698, section 3, colour-blind mode; with one rate, green or red.
    #[inline]
    fn colour(&mut self, bank: &MeterBank, index: usize, units: u32, now_ns: u64) -> Colour {
        let prices = self.terms.prices;
        let [committed, peak] = &mut self.purses;
        let two_rates = prices[1].unit != 0;
        peak.due = 0;
        if two_rates && !peak.afford(bank, (index, 1), prices[1], (units, now_ns)) {
            return Colour::Red;
        }
        if committed.afford(bank, (index, 0), prices[0], (units, now_ns)) {
            return Colour::Green;
        }
        committed.due = 0;
        if two_rates { Colour::Yellow } else { Colour::Red }
    }

    /// Follows a change of the parameters.
    #[inline]
    fn adapt(&mut self, bank: &MeterBank, index: usize) {
        if bank.generation(index) != self.terms.generation {
            self.renew(bank, index);
        }
    }

    #[cold]
    fn renew(&mut self, bank: &MeterBank, index: usize) {
        // Being written at this moment: the next packet sees it.
        let Some(terms) = bank.terms(index) else {
            return;
        };
        let same = terms.identity == self.terms.identity;
        for (purse, (old, new)) in
            self.purses.iter_mut().zip(self.terms.prices.into_iter().zip(terms.prices))
        {
            purse.short = false;
            purse.held = match old.unit {
                0 => 0,
                _ if !same => 0,
                old => {
                    let held = u128::from(purse.held) * u128::from(new.unit) / u128::from(old);
                    // At most a portion of 2^55, so it fits.
                    held.min(u128::from(new.portion_ns) << FRACTION) as u64
                }
            };
        }
        self.terms = terms;
    }

    fn give_back(&mut self, bank: &MeterBank, index: usize) {
        for (band, purse) in self.purses.iter_mut().enumerate() {
            let ns = purse.held >> FRACTION;
            purse.short = false;
            if ns != 0 {
                purse.held -= ns << FRACTION;
                bank.give_back((index, band), ns);
            }
        }
    }
}

impl Purse {
    /// Whether there is enough for `units` bytes or packets, after a visit to the bank if need be.
    /// Sets what is due.
    #[inline]
    fn afford(
        &mut self,
        bank: &MeterBank,
        place: (usize, usize),
        price: Price,
        (units, now_ns): (u32, u64),
    ) -> bool {
        // Overflow is beyond any frame: 2 MB at 1 kbit/s.
        let Some(due) = price.unit.checked_mul(u64::from(units)) else {
            return false;
        };
        self.due = due;
        self.held >= due || self.fetch(bank, place, price, now_ns)
    }

    fn fetch(
        &mut self,
        bank: &MeterBank,
        place: (usize, usize),
        price: Price,
        now_ns: u64,
    ) -> bool {
        let missing = |goal: u64| (goal - self.held).div_ceil(1 << FRACTION);
        let request = Request {
            need_ns: missing(self.due),
            want_ns: missing(self.due.max(price.portion_ns << FRACTION)),
            partial: !self.short,
        };
        let (taken_ns, left_ns) = bank.take(place, price.burst_ns, request, now_ns);
        // A shortage ends when there is a portion more than the one taken.
        self.short = taken_ns < request.want_ns || self.short && left_ns < request.want_ns;
        self.held = self.held.saturating_add(taken_ns << FRACTION);
        taken_ns != 0
    }
}
