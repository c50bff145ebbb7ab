//! Which tables can have a rule for a packet, by three fields of it.
//!
//! For each of the three a small array says, by the hash of the field's value, which tables have a
//! rule with that value or one that does not look at the field. A table is probed only when all
//! three say so, which spares most probes of packets that are far from most rules. Which field of a
//! side tells tables apart best depends on the rules, so candidates are built and the emptiest kept.

use super::plan::TABLES_MAX;
use super::words::{Check, Field, Words, filter_fields};

/// A set of tables: bit 0 is the first.
type Set = u32;
const _: () = assert!(TABLES_MAX <= Set::BITS as usize);

const SLOTS_MAX: usize = 4096;
/// With fewer tables than this, probing them is cheaper than asking first.
const TABLES_MIN: usize = 3;
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// One field.
#[derive(Debug, Clone)]
struct Part {
    field: Field,
    shift: u32,
    slots: Box<[Set]>,
}

/// The arrays of one family.
#[derive(Debug, Clone, Default)]
pub(super) struct Filter {
    /// Three, or none: everything is probed.
    parts: Option<Box<[Part; 3]>>,
}

impl Part {
    fn build<'a, const N: usize>(
        field: Field,
        tables: impl Iterator<Item = &'a [Check<N>]> + Clone,
    ) -> Self {
        let rules: usize = tables.clone().map(<[_]>::len).sum();
        let slots = (rules * 2).next_power_of_two().clamp(64, SLOTS_MAX);
        let shift = u64::BITS - slots.trailing_zeros();
        let mut part = Self { field, shift, slots: vec![0; slots].into_boxed_slice() };
        let mut always: Set = 0;
        for (at, checks) in tables.enumerate() {
            let table = 1 << at;
            let Field { word, bits } = field;
            if checks.iter().any(|check| check.mask[word] & bits != bits) {
                always |= table;
                continue;
            }
            for check in checks {
                let slot = part.slot(check.value[word]);
                part.slots[slot] |= table;
            }
        }
        part.slots.iter_mut().for_each(|set| *set |= always);
        part
    }

    #[inline]
    const fn slot(&self, word: u64) -> usize {
        ((word & self.field.bits).wrapping_mul(SPREAD) >> self.shift) as usize
    }

    /// How much it lets through.
    fn fill(&self) -> u32 {
        self.slots.iter().map(|set| set.count_ones()).sum()
    }

    #[inline]
    fn tables<const N: usize>(&self, packet: &Words<N>) -> Set {
        self.slots[self.slot(packet[self.field.word])]
    }
}

impl Filter {
    pub(super) fn build<'a, const N: usize>(
        tables: &(impl Iterator<Item = &'a [Check<N>]> + Clone),
    ) -> Self {
        if tables.clone().count() < TABLES_MIN {
            return Self::default();
        }
        let best = |candidates: [Field; 3]| {
            let [a, b, c] = candidates.map(|field| Part::build(field, tables.clone()));
            let better = if b.fill() < a.fill() { b } else { a };
            if c.fill() < better.fill() { c } else { better }
        };
        Self { parts: Some(Box::new(filter_fields::<N>().map(best))) }
    }

    /// The tables to probe.
    #[inline]
    pub(super) fn tables<const N: usize>(&self, packet: &Words<N>) -> Set {
        self.parts.as_ref().map_or(Set::MAX, |parts| {
            parts.iter().fold(Set::MAX, |set, part| set & part.tables(packet))
        })
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let parts = self.parts.iter().flat_map(|parts| parts.iter());
        parts.map(|part| size_of::<Part>() + size_of_val(&*part.slots)).sum()
    }
}
