//! Which tables a set of rules gets.
//!
//! A table may look at fewer bits than its rules do, so that rules of many shapes share one; the
//! cost is longer buckets. Tables are chosen one by one: the mask under which most of the rules that
//! are left fit into buckets of [`BUCKET_MAX`], found by adding one field's bits at a time. When
//! another table would save less than it costs, or there are [`TABLES_MAX`], the rest goes into a
//! last table over the bits that all of it has in common, however long its buckets get.
//! (The idea of tables coarser than the rules is `TupleMerge`'s; the choice by counting is ours.)

use super::table::hash;
use super::words::{Field, Rule, Words, fields};

/// Most tables of one tenant, direction and family: no lookup probes more.
pub(super) const TABLES_MAX: usize = 32;
/// Rules that share a hash, in all tables but the last.
pub(super) const BUCKET_MAX: usize = 12;
/// A table with fewer rules than this beyond its longest bucket does not pay.
const GAIN_MIN: usize = 12;
/// Rules that are looked at to choose a mask.
const SAMPLE: usize = 1500;
/// Rules whose masks a field's candidates are drawn from.
const SHAPES: usize = 128;
/// Any number will do: the hash only counts here.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// A mask, and the places of its rules.
pub(super) type Group<const N: usize> = (Words<N>, Vec<u32>);

/// Divides rules, best first, into tables.
pub(super) fn plan<const N: usize>(rules: &[Rule<N>]) -> Vec<Group<N>> {
    let mut left: Vec<u32> = (0..rules.len() as u32).collect();
    if left.len() <= BUCKET_MAX {
        // One bucket is cheaper than anything else, also to make: most tenants are small.
        return if left.is_empty() { Vec::new() } else { vec![(common(rules, &left), left)] };
    }
    let mut tables = Vec::new();
    let mut counts = Counts::default();
    while !left.is_empty() && tables.len() + 1 < TABLES_MAX {
        let mask = choose(rules, &left, &mut counts);
        let (mut taken, mut rest) = (Vec::new(), Vec::new());
        let mut longest = 0;
        counts.clear(left.len());
        for &at in &left {
            let depth = counts.add(&rules[at as usize], &mask, BUCKET_MAX);
            longest = longest.max(depth.map_or(0, |depth| depth + 1));
            if depth.is_some() { taken.push(at) } else { rest.push(at) }
        }
        let last = rest.is_empty();
        if !last && taken.len() < longest + GAIN_MIN {
            break;
        }
        tables.push((mask, taken));
        left = rest;
    }
    if !left.is_empty() {
        tables.push((common(rules, &left), left));
    }
    tables
}

/// The bits that all these rules look at.
fn common<const N: usize>(rules: &[Rule<N>], left: &[u32]) -> Words<N> {
    let mut mask = [u64::MAX; N];
    let fields: Vec<Field> = fields::<N>().collect();
    for &at in left {
        let rule = &rules[at as usize].check.mask;
        (0..N).for_each(|word| mask[word] &= rule[word]);
    }
    let known = |word| fields.iter().filter(|f| f.word == word).fold(0, |bits, f| bits | f.bits);
    (0..N).for_each(|word| mask[word] &= known(word));
    mask
}

/// Climbs to a mask under which as many rules as possible fit.
fn choose<const N: usize>(rules: &[Rule<N>], left: &[u32], counts: &mut Counts) -> Words<N> {
    let step = left.len().div_ceil(SAMPLE).max(1);
    let sample: Vec<u32> = left.iter().copied().step_by(step).collect();
    let limit = BUCKET_MAX.div_ceil(step);
    let moves = moves(rules, &sample);
    let mut mask = [0; N];
    let mut best = 0;
    loop {
        let mut better = None;
        for &(field, bits) in &moves {
            let mut next: Words<N> = mask;
            next[field.word] = next[field.word] & !field.bits | bits;
            if next == mask {
                continue;
            }
            let score = counts.score(rules, &sample, &next, limit);
            if score > best {
                (best, better) = (score, Some(next));
            }
        }
        match better {
            Some(next) => mask = next,
            None => return mask,
        }
    }
}

/// For every field some of the masks that rules have.
fn moves<const N: usize>(rules: &[Rule<N>], sample: &[u32]) -> Vec<(Field, u64)> {
    let mut moves = Vec::new();
    let step = sample.len().div_ceil(SHAPES).max(1);
    for field in fields::<N>() {
        let masks =
            sample.iter().step_by(step).map(|at| rules[*at as usize].check.mask[field.word]);
        let mut masks: Vec<u64> = masks.map(|mask| mask & field.bits).filter(|m| *m != 0).collect();
        masks.sort_unstable_by_key(|mask| (mask.count_ones(), *mask));
        let count = masks.len();
        let mut quantiles = vec![0, count / 4, count / 2, count * 3 / 4, count.saturating_sub(1)];
        quantiles.dedup_by_key(|at| masks.get(*at));
        moves.extend(quantiles.iter().filter_map(|at| masks.get(*at)).map(|mask| (field, *mask)));
    }
    moves
}

/// How many rules have each hash; hashes share counters now and then.
#[derive(Debug, Default)]
struct Counts {
    of: Vec<u8>,
    shift: u32,
}

impl Counts {
    fn clear(&mut self, rules: usize) {
        let slots = (rules * 4).next_power_of_two().max(2);
        self.shift = u64::BITS - slots.trailing_zeros();
        self.of.clear();
        self.of.resize(slots, 0);
    }

    /// How many rules there were in its bucket; `None` when it does not fit.
    #[inline]
    fn add<const N: usize>(
        &mut self,
        rule: &Rule<N>,
        mask: &Words<N>,
        max: usize,
    ) -> Option<usize> {
        let check = &rule.check;
        if (0..N).any(|word| mask[word] & !check.mask[word] != 0) {
            return None;
        }
        let slot = hash(SEED, &check.value, mask) >> self.shift;
        let count = &mut self.of[slot as usize];
        let depth = usize::from(*count);
        if depth >= max {
            return None;
        }
        *count += 1;
        Some(depth)
    }

    /// Rules that fit, those deep in a bucket counting a little less.
    fn score<const N: usize>(
        &mut self,
        rules: &[Rule<N>],
        sample: &[u32],
        mask: &Words<N>,
        max: usize,
    ) -> usize {
        self.clear(sample.len());
        let worth = |depth: usize| 64 - depth;
        sample.iter().filter_map(|at| self.add(&rules[*at as usize], mask, max)).map(worth).sum()
    }
}
