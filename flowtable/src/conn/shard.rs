//! The part of a shard that is under its lock.
//!
//! An index from the hash to a place, the cold half of each place, the free places and the list
//! of half-open connections by age. A connection that is no longer half-open stays in that list
//! until a walk or a sweep comes by, as the worker that notices does not hold the lock.

use hashbrown::HashTable;

use super::slots::CHUNK;
use super::tuple::{Tuple, Way};
use super::types::{ConnCounts, Outside, Owner};
use crate::exact::ExactMap;

/// No place.
pub(super) const NONE: u32 = u32::MAX;
/// In `older`: not in the list.
const UNLISTED: u32 = u32::MAX - 1;

/// What the lock guards. A place is a slot's position within its shard.
#[derive(Debug)]
pub(super) struct Shard {
    by_tag: HashTable<Found>,
    chunks: Vec<Vec<Cold>>,
    /// By place, of the few that came to a published port.
    outside: ExactMap<u32, Outside>,
    /// Places that were ever used: all below this.
    used: u32,
    /// First of the free places below `used`, chained by `newer`.
    free: u32,
    oldest: u32,
    newest: u32,
    pub(super) totals: ConnCounts,
}

/// The index holds the hash too, so that growing it reads nothing else.
#[derive(Debug, Clone, Copy)]
struct Found {
    tag: u32,
    place: u32,
}

/// What is not needed for every packet.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Cold {
    /// As the originator's packets show it.
    pub(super) tuple: Tuple,
    pub(super) owner: Owner,
    tag: u32,
    older: u32,
    newer: u32,
}

const _: () = assert!(size_of::<Cold>() == 64, "one cache line");

/// The tag as hashbrown wants it: it uses the low bits and the highest seven.
const fn spread(tag: u32) -> u64 {
    (tag as u64) << 32 | tag as u64
}

impl Default for Shard {
    fn default() -> Self {
        Self {
            by_tag: HashTable::new(),
            chunks: Vec::new(),
            outside: ExactMap::default(),
            used: 0,
            free: NONE,
            oldest: NONE,
            newest: NONE,
            totals: ConnCounts::default(),
        }
    }
}

impl Shard {
    /// The connection that packets with `tuple` belong to, dead or alive.
    #[inline]
    pub(super) fn find(&self, tag: u32, tuple: &Tuple) -> Option<(u32, Way)> {
        let mut way = None;
        let found = self.by_tag.find(spread(tag), |found| {
            found.tag == tag && {
                way = tuple.way_in(&self.cold(found.place).tuple);
                way.is_some()
            }
        })?;
        way.map(|way| (found.place, way))
    }

    /// Places that were ever used: the range for walks over all.
    pub(super) const fn used(&self) -> u32 {
        self.used
    }

    /// Whether there is a place for one more.
    pub(super) const fn has_room(&self, places: u32) -> bool {
        self.free != NONE || self.used < places
    }

    pub(super) fn cold(&self, place: u32) -> &Cold {
        &self.chunks[(place / CHUNK) as usize][(place % CHUNK) as usize]
    }

    fn cold_mut(&mut self, place: u32) -> &mut Cold {
        &mut self.chunks[(place / CHUNK) as usize][(place % CHUNK) as usize]
    }

    /// Stores a connection and returns its place; there has to be one.
    pub(super) fn insert(&mut self, tag: u32, tuple: Tuple, owner: Owner) -> u32 {
        let cold = Cold { tuple, owner, tag, older: UNLISTED, newer: NONE };
        let place = self.free;
        let place = if place == NONE {
            self.push(cold)
        } else {
            self.free = self.cold(place).newer;
            *self.cold_mut(place) = cold;
            place
        };
        self.by_tag.insert_unique(spread(tag), Found { tag, place }, |found| spread(found.tag));
        place
    }

    fn push(&mut self, cold: Cold) -> u32 {
        let place = self.used;
        if place.is_multiple_of(CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK as usize));
        }
        self.chunks[(place / CHUNK) as usize].push(cold);
        self.used += 1;
        place
    }

    /// The far side of the connection at `place`, if it came to a published port.
    #[inline]
    pub(super) fn outside(&self, place: u32) -> Option<Outside> {
        if self.outside.is_empty() { None } else { self.outside.get(&place).copied() }
    }

    /// Remembers the far side until the connection is removed.
    pub(super) fn set_outside(&mut self, place: u32, outside: Outside) {
        self.outside.insert(place, outside);
    }

    /// Forgets the connection at `place`; the place is not used again before [`Shard::free`].
    pub(super) fn remove(&mut self, place: u32) {
        self.unlist(place);
        if !self.outside.is_empty() {
            self.outside.remove(&place);
        }
        let tag = self.cold(place).tag;
        if let Ok(found) = self.by_tag.find_entry(spread(tag), |found| found.place == place) {
            found.remove();
        }
    }

    /// Lets `place` be used again.
    pub(super) fn free(&mut self, place: u32) {
        let next = self.free;
        self.cold_mut(place).newer = next;
        self.free = place;
    }

    /// The oldest listed, half-open or no longer so.
    pub(super) const fn oldest(&self) -> u32 {
        self.oldest
    }

    /// The next younger in the list.
    pub(super) fn newer(&self, place: u32) -> u32 {
        self.cold(place).newer
    }

    /// Adds a half-open connection as the newest.
    pub(super) fn list(&mut self, place: u32) {
        let newest = self.newest;
        let cold = self.cold_mut(place);
        (cold.older, cold.newer) = (newest, NONE);
        self.newest = place;
        if newest == NONE {
            self.oldest = place;
        } else {
            self.cold_mut(newest).newer = place;
        }
    }

    /// Takes a connection out of the list, if it is in it.
    pub(super) fn unlist(&mut self, place: u32) {
        let Cold { older, newer, .. } = *self.cold(place);
        if older == UNLISTED {
            return;
        }
        if older == NONE {
            self.oldest = newer;
        } else {
            self.cold_mut(older).newer = newer;
        }
        if newer == NONE {
            self.newest = older;
        } else {
            self.cold_mut(newer).older = older;
        }
        self.cold_mut(place).older = UNLISTED;
    }
}
