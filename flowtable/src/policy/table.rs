//! One hash table: rules that are found by the same bits.
//!
//! The table's mask is a subset of every rule's, so a packet that matches a rule has the rule's hash.
//! Rules of one hash lie side by side, best first; a slot of the open-addressed index says where
//! they begin. Every rule is checked in full, so equal hashes of different bits cost time only.
//! Immutable: a change builds the table anew from its rules.

use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;

use super::words::{Check, Class, Rule, Words};
use super::{PolicyMatch, Rank, Wildcards};
use crate::key::fold;

/// Multipliers of the hash: bits of pi.
const MIX: [u64; 3] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0];
/// An empty slot of the index.
const EMPTY: u64 = u64::MAX;

/// Rules by the masked bits of packets.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    mask: Words<N>,
    /// Rank of the best rule.
    best: Rank,
    seed: u64,
    /// The index of a hash is its leading bits: `hash >> shift`.
    shift: u32,
    /// Trailing 32 bits of a hash, then the place of its first rule; a power of two of them.
    index: Box<[u64]>,
    checks: Box<[Check<N>]>,
    /// Of the same places as `checks`.
    found: Box<[PolicyMatch]>,
    /// Length of the longest bucket.
    longest: usize,
    looked_at: [Wildcards; Class::ALL.len()],
}

/// A keyed hash of the words' masked bits.
#[inline]
pub(super) fn hash<const N: usize>(seed: u64, words: &Words<N>, mask: &Words<N>) -> u64 {
    let (mut hash, mut word) = (seed, 0);
    while word + 1 < N {
        let (a, b) = (words[word] & mask[word], words[word + 1] & mask[word + 1]);
        hash = hash.rotate_left(23) ^ fold(a ^ seed ^ MIX[0], b ^ seed.rotate_left(32) ^ MIX[1]);
        word += 2;
    }
    if word < N {
        hash ^= (words[word] & mask[word]).wrapping_mul(MIX[2] | 1).rotate_left(29);
    }
    fold(hash ^ MIX[1], seed ^ MIX[2])
}

impl<const N: usize> Table<N> {
    /// A table over `mask` of rules whose masks contain it.
    pub(super) fn build(mask: Words<N>, rules: &[Rule<N>]) -> Self {
        loop {
            // Two hashes that the index can't tell apart need another seed: one table in 10^5 of
            // 10,000 rules.
            let seed = RandomState::default().hash_one(0_u64);
            if let Some(table) = Self::seeded(seed, mask, rules) {
                return table;
            }
        }
    }

    fn seeded(seed: u64, mask: Words<N>, rules: &[Rule<N>]) -> Option<Self> {
        let mut order: Vec<(u64, Rank, u32)> = Vec::with_capacity(rules.len());
        for (at, rule) in rules.iter().enumerate() {
            order.push((hash(seed, &rule.check.value, &mask), rule.found.rank(), at as u32));
        }
        order.sort_unstable();
        let slots = (rules.len() * 2).next_power_of_two().max(2);
        let mut table = Self {
            mask,
            best: Rank::MAX,
            seed,
            shift: u64::BITS - slots.trailing_zeros(),
            index: vec![EMPTY; slots].into_boxed_slice(),
            checks: order.iter().map(|&(_, _, at)| rules[at as usize].check).collect(),
            found: order.iter().map(|&(_, _, at)| rules[at as usize].found).collect(),
            longest: 0,
            looked_at: [Wildcards::default(); Class::ALL.len()],
        };
        let mut place = 0;
        for bucket in order.chunk_by(|a, b| a.0 == b.0) {
            table.best = table.best.min(bucket[0].1);
            table.longest = table.longest.max(bucket.len());
            table.put(bucket[0].0, place)?;
            place += bucket.len();
            let checks = &mut table.checks[place - bucket.len()..place];
            checks.iter_mut().rev().enumerate().for_each(|(more, c)| c.last = more == 0);
        }
        for (class, looked) in Class::ALL.into_iter().zip(&mut table.looked_at) {
            table.checks.iter().for_each(|check| looked.add(&check.looked_at(class)));
        }
        Some(table)
    }

    /// `None`: the index has another hash that looks the same.
    fn put(&mut self, hash: u64, place: usize) -> Option<()> {
        let mut slot = (hash >> self.shift) as usize;
        while self.index[slot] != EMPTY {
            if (self.index[slot] >> 32) as u32 == hash as u32 {
                return None;
            }
            slot = (slot + 1) & (self.index.len() - 1);
        }
        self.index[slot] = hash << 32 | place as u64;
        Some(())
    }

    /// Place of the first rule with this hash.
    #[inline]
    fn bucket(&self, hash: u64) -> Option<usize> {
        let mut slot = (hash >> self.shift) as usize;
        loop {
            let entry = self.index[slot];
            if entry == EMPTY {
                return None;
            }
            if (entry >> 32) as u32 == hash as u32 {
                return Some(entry as u32 as usize);
            }
            slot = (slot + 1) & (self.index.len() - 1);
        }
    }

    /// The best rule that matches, unless its order is after `before`.
    #[inline]
    pub(super) fn lookup(&self, packet: &Words<N>, before: u32) -> Option<&PolicyMatch> {
        let first = self.bucket(hash(self.seed, packet, &self.mask))?;
        for (check, found) in self.checks[first..].iter().zip(&self.found[first..]) {
            if check.order > before {
                return None;
            }
            if check.passes(packet) {
                return Some(found);
            }
            if check.last {
                return None;
            }
        }
        None
    }

    /// The rules with the hash of `rule`.
    pub(super) fn beside(&self, rule: &Rule<N>) -> std::ops::Range<usize> {
        match self.bucket(hash(self.seed, &rule.check.value, &self.mask)) {
            None => 0..0,
            Some(first) => {
                let more = self.checks[first..].iter().take_while(|check| !check.last).count();
                first..first + more + 1
            }
        }
    }

    /// Place of the very same rule.
    pub(super) fn place(&self, rule: &Rule<N>) -> Option<usize> {
        let same = |place: &usize| {
            let (check, found) = (&self.checks[*place], &self.found[*place]);
            check.value == rule.check.value && found.rank() == rule.found.rank()
        };
        self.takes(rule).then(|| self.beside(rule).find(same)).flatten()
    }

    /// Whether the rule could be stored here.
    pub(super) fn takes(&self, rule: &Rule<N>) -> bool {
        self.mask.iter().zip(&rule.check.mask).all(|(table, rule)| table & !rule == 0)
    }

    pub(super) const fn checks(&self) -> &[Check<N>] {
        &self.checks
    }

    pub(super) fn rules(&self) -> impl Iterator<Item = Rule<N>> {
        self.checks
            .iter()
            .zip(&self.found)
            .map(|(check, found)| Rule { check: *check, found: *found })
    }

    pub(super) const fn rule_count(&self) -> usize {
        self.checks.len()
    }

    pub(super) const fn mask(&self) -> &Words<N> {
        &self.mask
    }

    pub(super) const fn best(&self) -> Rank {
        self.best
    }

    pub(super) const fn longest(&self) -> usize {
        self.longest
    }

    pub(super) const fn looked_at(&self) -> &[Wildcards; Class::ALL.len()] {
        &self.looked_at
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + size_of_val(&*self.index)
            + size_of_val(&*self.checks)
            + size_of_val(&*self.found)
    }
}
