//! A set of numbers kept as disjoint closed ranges. Addresses and tags are taken mostly in runs, so
//! that this stays small, finds the lowest gap in logarithmic time, and prints itself. Numbers are as
//! wide as an IPv6 address: one set for both families and for tags.

use std::collections::BTreeMap;

/// A set of `u128`, kept as disjoint ranges that do not touch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranges {
    // First number of each range to its last.
    runs: BTreeMap<u128, u128>,
}

impl Ranges {
    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many numbers are in it; all of them count as one less.
    #[must_use]
    pub fn count(&self) -> u128 {
        let lengths = self.iter().map(|(first, last)| (last - first).saturating_add(1));
        lengths.fold(0, u128::saturating_add)
    }

    /// The ranges, ascending, both ends included.
    pub fn iter(&self) -> impl Iterator<Item = (u128, u128)> + '_ {
        self.runs.iter().map(|(first, last)| (*first, *last))
    }

    /// Whether `number` is in it.
    #[must_use]
    pub fn contains(&self, number: u128) -> bool {
        self.run_at(number).is_some()
    }

    /// Adds `first..=last`; numbers that are in it already stay.
    pub fn insert(&mut self, first: u128, last: u128) {
        let (mut low, mut high) = (first, last);
        // Runs that overlap or touch become one with the new range.
        while let Some((start, end)) = self.last_run_from(high.saturating_add(1)) {
            if end < low.saturating_sub(1) {
                break;
            }
            self.runs.remove(&start);
            (low, high) = (low.min(start), high.max(end));
        }
        self.runs.insert(low, high);
    }

    /// Removes `first..=last`; numbers that are not in it are fine.
    pub fn remove(&mut self, first: u128, last: u128) {
        while let Some((start, end)) = self.last_run_from(last) {
            if end < first {
                break;
            }
            self.runs.remove(&start);
            if end > last {
                self.runs.insert(last + 1, end);
            }
            if start < first {
                self.runs.insert(start, first - 1);
            }
        }
    }

    /// The lowest number of `first..=last` that is not in it.
    #[must_use]
    pub fn lowest_gap(&self, first: u128, last: u128) -> Option<u128> {
        let candidate = match self.run_at(first) {
            Some((_, end)) => end.checked_add(1)?,
            None => first,
        };
        (candidate <= last).then_some(candidate)
    }

    /// What of `first..=last` is in it.
    #[must_use]
    pub fn clipped(&self, first: u128, last: u128) -> Self {
        let overlap = self.iter().filter(|(start, end)| *start <= last && *end >= first);
        Self { runs: overlap.map(|(start, end)| (start.max(first), end.min(last))).collect() }
    }

    /// What of `first..=last` is not in it.
    #[must_use]
    pub fn gaps(&self, first: u128, last: u128) -> Self {
        let mut rest = Self { runs: BTreeMap::from([(first, last)]) };
        for (start, end) in self.iter() {
            rest.remove(start, end);
        }
        rest
    }

    /// The ranges as `a, b-c`, each number written by `name`.
    pub fn text<D: ToString>(&self, name: impl Fn(u128) -> D) -> String {
        let texts = self.iter().map(|(first, last)| match last - first {
            0 => name(first).to_string(),
            _ => format!("{}-{}", name(first).to_string(), name(last).to_string()),
        });
        texts.collect::<Vec<_>>().join(", ")
    }

    fn run_at(&self, number: u128) -> Option<(u128, u128)> {
        self.last_run_from(number).filter(|(_, end)| *end >= number)
    }

    fn last_run_from(&self, number: u128) -> Option<(u128, u128)> {
        self.runs.range(..=number).next_back().map(|(start, end)| (*start, *end))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_equals_a_plain_set(steps in proptest::collection::vec((any::<bool>(), 0u128..64, 0u128..64), 0..60)) {
            let (mut ranges, mut plain) = (Ranges::default(), BTreeSet::new());
            for (insert, a, b) in steps {
                let (first, last) = (a.min(b), a.max(b));
                if insert {
                    ranges.insert(first, last);
                    plain.extend(first..=last);
                } else {
                    ranges.remove(first, last);
                    plain.retain(|n| *n < first || *n > last);
                }
                let members: BTreeSet<u128> = ranges.iter().flat_map(|(s, e)| s..=e).collect();
                prop_assert_eq!(&members, &plain);
                prop_assert_eq!(ranges.count(), plain.len() as u128);
                prop_assert_eq!(ranges.lowest_gap(first, last), (first..=last).find(|n| !plain.contains(n)));
                let gaps: Vec<u128> = ranges.gaps(first, last).iter().flat_map(|(s, e)| s..=e).collect();
                prop_assert_eq!(gaps, (first..=last).filter(|n| !plain.contains(n)).collect::<Vec<_>>());
                let clip: Vec<u128> = ranges.clipped(first, last).iter().flat_map(|(s, e)| s..=e).collect();
                prop_assert_eq!(clip, (first..=last).filter(|n| plain.contains(n)).collect::<Vec<_>>());
                // Runs never touch: the text has no "1-2, 3".
                let runs: Vec<_> = ranges.iter().collect();
                prop_assert!(runs.windows(2).all(|w| w[0].1 + 1 < w[1].0));
            }
        }
    }

    #[test]
    fn the_ends_of_the_number_space_work() {
        let mut ranges = Ranges::default();
        ranges.insert(u128::MAX - 1, u128::MAX);
        ranges.insert(0, 1);
        assert_eq!(ranges.lowest_gap(u128::MAX, u128::MAX), None);
        assert_eq!(
            ranges.text(|n| n),
            "0-1, 340282366920938463463374607431768211454-340282366920938463463374607431768211455"
        );
        ranges.insert(0, u128::MAX);
        assert_eq!((ranges.count(), ranges.lowest_gap(0, u128::MAX)), (u128::MAX, None));
        ranges.remove(0, u128::MAX);
        assert!(ranges.is_empty());
    }
}
