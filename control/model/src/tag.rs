//! VLAN tags and VXLAN network identifiers: the ranges an operator allows, and what is in use. A
//! VXLAN network takes no local VLAN, so that there can be 16777215 of them.

use std::fmt;

use crate::ranges::Ranges;
use crate::refusal::{Reason, Refused};

const VLAN_MAX: u32 = 4094;
const VNI_MAX: u32 = 0xff_ffff;

/// An allowed range of tags, both ends included, 1 <= first <= last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagRange {
    first: u32,
    last: u32,
}

impl TagRange {
    /// All VLANs: the default.
    pub const VLANS: Self = Self { first: 1, last: VLAN_MAX };
    /// The default VNIs.
    pub const VXLANS: Self = Self { first: 1, last: 10_000 };

    /// Checks a VLAN range like `1-4094`.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's texts for ranges.
    pub fn parse_vlans(field: &'static str, text: &str) -> Result<Self, Refused> {
        let range = read(field, text)?;
        if range.last > VLAN_MAX {
            return Err(Refused::new(
                field,
                text,
                Reason::VlanRangeHigh { range: text.to_owned() },
            ));
        }
        Ok(range)
    }

    /// Checks a VNI range like `1-10000`.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's texts for ranges.
    pub fn parse_vxlans(field: &'static str, text: &str) -> Result<Self, Refused> {
        let range = read(field, text)?;
        if range.last > VNI_MAX {
            return Err(Refused::new(
                field,
                text,
                Reason::VxlanRangeHigh { range: text.to_owned() },
            ));
        }
        Ok(range)
    }

    /// Whether `tag` is in it.
    #[must_use]
    pub const fn contains(self, tag: u32) -> bool {
        self.first <= tag && tag <= self.last
    }
}

fn read(field: &'static str, text: &str) -> Result<TagRange, Refused> {
    let refuse = |reason| Refused::new(field, text, reason);
    let range = text.to_owned();
    let digits = |t: &str| !t.is_empty() && t.len() <= 8 && t.bytes().all(|b| b.is_ascii_digit());
    let ends = text.split_once('-').filter(|(first, last)| digits(first) && digits(last));
    let numbers = ends.and_then(|(first, last)| first.parse().ok().zip(last.parse().ok()));
    let Some((first, last)) = numbers else { return Err(refuse(Reason::RangeFormat { range })) };
    if first > last {
        return Err(refuse(Reason::RangeReversed { range }));
    }
    if first < 1 {
        return Err(refuse(Reason::RangeLow { range }));
    }
    Ok(TagRange { first, last })
}

impl fmt::Display for TagRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Tags of one kind: the allowed range and what is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagPool {
    range: TagRange,
    used: Ranges,
}

impl TagPool {
    /// Nothing in use.
    #[must_use]
    pub fn new(range: TagRange) -> Self {
        Self { range, used: Ranges::default() }
    }

    /// The lowest tag of the range that is not in use, which stays so.
    #[must_use]
    pub fn lowest(&self) -> Option<u32> {
        let lowest = self.used.lowest_gap(self.range.first.into(), self.range.last.into());
        lowest.and_then(|tag| u32::try_from(tag).ok())
    }

    /// Whether `tag` is in the range and not in use.
    #[must_use]
    pub fn is_available(&self, tag: u32) -> bool {
        self.range.contains(tag) && !self.used.contains(tag.into())
    }

    /// The allowed range.
    #[must_use]
    pub const fn range(&self) -> TagRange {
        self.range
    }

    /// Marks `tag` as in use.
    pub fn take(&mut self, tag: u32) {
        self.used.insert(tag.into(), tag.into());
    }

    /// Marks `tag` as free.
    pub fn release(&mut self, tag: u32) {
        self.used.remove(tag.into(), tag.into());
    }

    /// Whether every tag in use lies in `range`.
    #[must_use]
    pub fn fits(&self, range: TagRange) -> bool {
        let (low, high) = (u128::from(range.first), u128::from(range.last));
        self.used.iter().all(|(first, last)| low <= first && last <= high)
    }

    /// Changes the allowed range; see [`Self::fits`].
    pub fn set_range(&mut self, range: TagRange) {
        self.range = range;
    }

    /// Tags in use, as `1-3, 10`.
    #[must_use]
    pub fn in_use(&self) -> String {
        self.used.text(|tag| tag)
    }

    /// How many tags are in use.
    #[must_use]
    pub fn count(&self) -> u128 {
        self.used.count()
    }

    /// How many tags of the range are free.
    #[must_use]
    pub fn available_count(&self) -> u128 {
        self.used.gaps(self.range.first.into(), self.range.last.into()).count()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn contivs_range_vectors_are_refused_with_its_texts() {
        let vlans = [
            ("1-5000", "invalid range 1-5000, vlan values exceed 4095 max allowed"),
            ("0-4094", "invalid range 0-4094, values less than 1"),
            ("1", "invalid range 1, it is not min-max"),
            ("1?2", "invalid range 1?2, it is not min-max"),
            ("abcd", "invalid range abcd, it is not min-max"),
            ("20-10", "invalid range 20-10, min is greater than max"),
            ("1-2-3", "invalid range 1-2-3, it is not min-max"),
        ];
        for (text, reason) in vlans {
            assert_eq!(TagRange::parse_vlans("vlans", text).unwrap_err().to_string(), reason);
        }
        assert_eq!(TagRange::parse_vlans("vlans", "1-1000").unwrap().to_string(), "1-1000");
        // D11: the whole 24 bits can be used.
        assert_eq!(
            TagRange::parse_vxlans("vxlans", "1-16777215").unwrap().to_string(),
            "1-16777215"
        );
        assert!(TagRange::parse_vxlans("vxlans", "1-16777216").is_err());
    }

    proptest! {
        #[test]
        fn the_pool_equals_a_plain_set(steps in proptest::collection::vec((any::<bool>(), 5u32..20), 0..80)) {
            let range = TagRange { first: 5, last: 14 };
            let (mut pool, mut used) = (TagPool::new(range), BTreeSet::new());
            for (take, tag) in steps {
                prop_assert_eq!(pool.is_available(tag), tag <= 14 && !used.contains(&tag));
                prop_assert_eq!(pool.lowest(), (5..=14).find(|t| !used.contains(t)));
                if take && pool.is_available(tag) {
                    pool.take(tag);
                    used.insert(tag);
                } else if !take {
                    pool.release(tag);
                    used.remove(&tag);
                }
                prop_assert_eq!(pool.count(), used.len() as u128);
            }
        }
    }
}
