//! The exact flow cache of a worker: the first thing asked about every packet.
//!
//! Set-associative with 8 ways. A set is one cache line: 8 tags of 16 bits that are compared at
//! once, 8 positions in the flat entry array, and which ways are used and which were hit lately.
//! A lookup touches that line and, nearly always, one entry. Memory is reserved at the start and
//! touched as flows appear; nothing is allocated afterwards, and a full set refuses rather than
//! grows. An entry that was never hit can't evict one that was hit lately, so a flood of new flows
//! leaves the established ones in place.

use wide::u16x8;

use crate::key::{Brief, FlowKey};

const WAYS: usize = 8;
const UNPLACED: u32 = u32::MAX;
/// Most entries of a cache: positions are 32 bits wide, and a worker has no use for more.
const ENTRIES_MAX: usize = 1 << 24;

/// Place of an entry. Valid until the next `insert`, `remove` or `clear`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u32);

impl Slot {
    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a flow may be; see [`FlowCache::touch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint(u32);

impl Hint {
    /// Nowhere: the lookup looks by itself.
    pub const NONE: Self = Self(UNPLACED);
}

/// Decisions by exact key; see the module.
#[derive(Debug)]
pub struct FlowCache<V> {
    sets: Vec<Set>,
    entries: Vec<Entry<V>>,
    len: usize,
}

#[derive(Debug, Clone)]
#[repr(C, align(64))]
struct Set {
    /// The tag of each way, so that all are compared at once.
    tags: u16x8,
    /// Where each way's entry is; a way keeps its place once it has one.
    places: [u32; WAYS],
    /// Bit per way: holds a flow.
    used: u8,
    /// Bit per way: looked up since the set was last aged.
    hit: u8,
    /// Way at which the search for a victim starts, so that new flows take turns.
    hand: u8,
}

const EMPTY_SET: Set =
    Set { tags: u16x8::ZERO, places: [UNPLACED; WAYS], used: 0, hit: 0, hand: 0 };

/// What a hit reads is in the first lines.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Entry<V> {
    /// The key in brief: what a lookup compares, if it can.
    brief: Brief,
    /// Set times [`WAYS`] plus way.
    home: u32,
    value: V,
    key: FlowKey,
}

impl Set {
    /// The used ways whose tag may be `tag`, lowest first.
    #[inline(always)]
    fn candidates(&self, tag: u16) -> Candidates {
        Candidates(self.tags.simd_eq(u16x8::splat(tag)).to_bitmask() as u8 & self.used)
    }
}

/// Bit per way.
struct Candidates(u8);

impl Iterator for Candidates {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        let way = self.0.trailing_zeros() as usize;
        self.0 &= self.0.wrapping_sub(1);
        (way < WAYS).then_some(way)
    }
}

impl<V: Copy> FlowCache<V> {
    /// Memory of one entry.
    pub const ENTRY_BYTES: usize = size_of::<Entry<V>>();

    /// A cache of `entries` flows, rounded up to a power of two within 8..=2^24.
    #[must_use]
    pub fn new(entries: usize) -> Self {
        let capacity = entries.clamp(WAYS, ENTRIES_MAX).next_power_of_two();
        Self {
            sets: vec![EMPTY_SET; capacity / WAYS],
            entries: Vec::with_capacity(capacity),
            len: 0,
        }
    }

    /// Most flows it can hold.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.sets.len() * WAYS
    }

    /// Number of flows in it.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// No flow in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline(always)]
    const fn set_index(&self, hash: u64) -> usize {
        // The number of sets is a power of two.
        hash as usize & (self.sets.len() - 1)
    }

    /// The flow with this key, for who only looks: it is not marked as hit.
    #[must_use]
    pub fn peek(&self, hash: u64, key: &FlowKey) -> Option<Slot> {
        let set = &self.sets[self.set_index(hash)];
        let mut places = set.candidates(tag_of(hash)).map(|way| set.places[way]);
        places.find(|place| self.entries[*place as usize].key == *key).map(Slot)
    }

    /// The flow with this key, marked as hit. `hash` is
    /// [`KeyHasher::hash`](crate::key::KeyHasher::hash) of `key`, with one seed
    /// for all calls on this cache.
    #[inline]
    pub fn lookup(&mut self, hash: u64, key: &FlowKey) -> Option<Slot> {
        let index = self.set_index(hash);
        let set = &mut self.sets[index];
        for way in set.candidates(tag_of(hash)) {
            let place = set.places[way];
            if self.entries[place as usize].key == *key {
                set.hit |= 1 << way;
                return Some(Slot(place));
            }
        }
        None
    }

    /// Where a lookup of `hash` will most likely end; asks for the memory there without waiting for
    /// it: a burst of these before a burst of lookups lets their cache misses overlap. `part` is read of
    /// the value, so that its cache line is asked for as well as that of the key.
    #[inline]
    #[must_use]
    pub fn touch<P>(&self, hash: u64, part: impl Fn(&V) -> P) -> Hint {
        let set = &self.sets[self.set_index(hash)];
        let Some(way) = set.candidates(tag_of(hash)).next() else { return Hint::NONE };
        let place = set.places[way];
        let entry = &self.entries[place as usize];
        std::hint::black_box((entry.home, part(&entry.value)));
        Hint(place)
    }

    /// The flow with this key, where [`FlowCache::touch`] has looked already, marked as hit. `None`: it is
    /// elsewhere, if anywhere.
    #[inline(always)]
    pub fn find(&mut self, hint: Hint, brief: &Brief) -> Option<Slot> {
        let entry = self.entries.get(hint.0 as usize)?;
        let home = entry.home as usize;
        let set = self.sets.get_mut(home / WAYS)?;
        let bit = 1 << (home % WAYS);
        (entry.brief == *brief && set.used & bit != 0).then(|| {
            set.hit |= bit;
            Slot(hint.0)
        })
    }

    /// As [`FlowCache::lookup`], where [`FlowCache::touch`] has looked already. A hint that is no
    /// longer right costs a lookup and nothing else.
    #[inline]
    pub fn lookup_near(&mut self, hint: Hint, hash: u64, key: &FlowKey) -> Option<Slot> {
        if let Some(entry) = self.entries.get(hint.0 as usize)
            && entry.key == *key
        {
            let home = entry.home as usize;
            let set = &mut self.sets[home / WAYS];
            let bit = 1 << (home % WAYS);
            if set.used & bit != 0 {
                set.hit |= bit;
                return Some(Slot(hint.0));
            }
        }
        self.lookup(hash, key)
    }

    /// The value at `slot`.
    #[inline]
    #[must_use]
    pub fn entry(&self, slot: Slot) -> &V {
        &self.entries[slot.index()].value
    }

    /// The value at `slot`, writable.
    #[inline]
    #[must_use]
    pub fn entry_mut(&mut self, slot: Slot) -> &mut V {
        &mut self.entries[slot.index()].value
    }

    /// The key at `slot`.
    #[inline]
    #[must_use]
    pub fn key(&self, slot: Slot) -> &FlowKey {
        &self.entries[slot.index()].key
    }

    /// Stores `value` under `key`, replacing its former value. When the set is full, the victim is
    /// an entry that `stale` says is worthless, else one that was not hit lately. `None`: all were
    /// hit lately; the set is aged, and the packet is simply not cached.
    pub fn insert(
        &mut self,
        hash: u64,
        key: FlowKey,
        value: V,
        stale: impl Fn(&V) -> bool,
    ) -> Option<Slot> {
        let brief = Brief::of(&key).unwrap_or(Brief::NONE);
        self.insert_named(hash, (key, brief), value, stale)
    }

    /// As [`FlowCache::insert`], with the key also in brief, or with [`Brief::NONE`]: no
    /// [`FlowCache::find`] finds it then.
    #[inline]
    pub fn insert_named(
        &mut self,
        hash: u64,
        (key, brief): (FlowKey, Brief),
        value: V,
        stale: impl Fn(&V) -> bool,
    ) -> Option<Slot> {
        let index = self.set_index(hash);
        let way = self.way_of(index, hash, &key).or_else(|| self.victim(index, stale))?;
        let set = &mut self.sets[index];
        let bit = 1 << way;
        let fresh = set.used & bit == 0;
        let home = (index * WAYS + way) as u32;
        if let Some(entry) = self.entries.get_mut(set.places[way] as usize) {
            // Part by part, so that the value is copied once.
            entry.brief = brief;
            entry.home = home;
            entry.value = value;
            entry.key = key;
        } else {
            set.places[way] = self.entries.len() as u32;
            self.entries.push(Entry { brief, home, value, key });
        }
        set.tags.as_mut_array()[way] = tag_of(hash);
        set.used |= bit;
        self.len += usize::from(fresh);
        Some(Slot(set.places[way]))
    }

    /// The way that holds `key` already.
    fn way_of(&self, index: usize, hash: u64, key: &FlowKey) -> Option<usize> {
        let set = &self.sets[index];
        set.candidates(tag_of(hash)).find(|&way| self.entries[set.places[way] as usize].key == *key)
    }

    /// A way for a new flow, not marked as hit; ages the set when there is none.
    fn victim(&mut self, index: usize, stale: impl Fn(&V) -> bool) -> Option<usize> {
        let set = &mut self.sets[index];
        let entries = &self.entries;
        let free = (0..WAYS).find(|way| set.used & 1 << way == 0);
        let way = free
            .or_else(|| (0..WAYS).find(|&way| stale(&entries[set.places[way] as usize].value)))
            .or_else(|| {
                let hand = usize::from(set.hand);
                (hand..hand + WAYS).map(|way| way % WAYS).find(|way| set.hit & 1 << way == 0)
            });
        let Some(way) = way else {
            set.hit = 0;
            return None;
        };
        set.hit &= !(1 << way);
        set.hand = ((way + 1) % WAYS) as u8;
        Some(way)
    }

    /// Forgets the flow at `slot`; a slot whose flow is gone already is fine.
    pub fn remove(&mut self, slot: Slot) {
        let home = self.entries[slot.index()].home as usize;
        let set = &mut self.sets[home / WAYS];
        let bit = 1 << (home % WAYS);
        self.len -= usize::from(set.used & bit != 0);
        set.used &= !bit;
        set.hit &= !bit;
    }

    /// Every flow, in no meaningful order.
    pub fn iter(&self) -> impl Iterator<Item = (&FlowKey, &V)> {
        let used = |entry: &&Entry<V>| {
            let home = entry.home as usize;
            self.sets[home / WAYS].used & 1 << (home % WAYS) != 0
        };
        self.entries.iter().filter(used).map(|entry| (&entry.key, &entry.value))
    }

    /// Forgets every flow.
    pub fn clear(&mut self) {
        for set in &mut self.sets {
            set.used = 0;
            set.hit = 0;
        }
        self.len = 0;
    }
}

/// The bits of the hash that do not choose the set.
#[inline(always)]
const fn tag_of(hash: u64) -> u16 {
    (hash >> 48) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u16) -> FlowKey {
        FlowKey { src_port: number, ..FlowKey::default() }
    }

    /// One set of 8, every key with its own tag.
    fn full() -> FlowCache<u16> {
        let mut cache = FlowCache::new(8);
        for number in 0..8 {
            assert!(
                cache.insert(u64::from(number) << 48, key(number), number, |_| false).is_some()
            );
        }
        cache
    }

    fn find(cache: &mut FlowCache<u16>, number: u16) -> Option<u16> {
        let slot = cache.lookup(u64::from(number) << 48, &key(number))?;
        assert_eq!(*cache.key(slot), key(number));
        Some(*cache.entry(slot))
    }

    #[test]
    fn a_flow_hit_lately_is_not_evicted_by_new_flows() {
        let mut cache = full();
        assert_eq!(find(&mut cache, 3), Some(3));
        for number in 8..1000 {
            assert!(
                cache.insert(u64::from(number) << 48, key(number), number, |_| false).is_some()
            );
        }
        assert_eq!(find(&mut cache, 3), Some(3));
        assert_eq!(cache.len(), 8);
        let last: Vec<_> = (990..1000).filter_map(|n| find(&mut cache, n)).collect();
        assert_eq!(last, (993..1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_set_of_flows_hit_lately_refuses_once_and_ages() {
        let mut cache = full();
        (0..8).for_each(|number| assert_eq!(find(&mut cache, number), Some(number)));
        assert_eq!(cache.insert(8 << 48, key(8), 8, |_| false), None);
        assert_eq!(find(&mut cache, 8), None);
        assert_eq!(find(&mut cache, 0), Some(0));
        assert!(cache.insert(8 << 48, key(8), 8, |_| false).is_some());
        assert_eq!((find(&mut cache, 8), find(&mut cache, 0)), (Some(8), Some(0)));
        assert_eq!((find(&mut cache, 1), cache.len()), (None, 8));
    }

    #[test]
    fn a_stale_flow_is_the_first_victim_and_leaves_no_hit_behind() {
        let mut cache = full();
        assert_eq!(find(&mut cache, 5), Some(5));
        let slot = cache.insert(9 << 48, key(9), 9, |value| *value == 5).unwrap();
        assert_eq!((cache.key(slot), cache.len()), (&key(9), 8));
        // What was hit is gone with it: the new flow has yet to earn its place.
        for number in 10..18 {
            assert!(
                cache.insert(u64::from(number) << 48, key(number), number, |_| false).is_some()
            );
        }
        assert_eq!((find(&mut cache, 5), find(&mut cache, 9)), (None, None));
    }

    #[test]
    fn equal_tags_are_told_apart_by_the_key() {
        let mut cache = FlowCache::new(8);
        cache.insert(7 << 48, key(1), 1, |_| false).unwrap();
        cache.insert(7 << 48, key(2), 2, |_| false).unwrap();
        let slot = cache.lookup(7 << 48, &key(2)).unwrap();
        *cache.entry_mut(slot) = 22;
        let first = cache.lookup(7 << 48, &key(1)).unwrap();
        assert_eq!((*cache.entry(first), *cache.entry(slot)), (1, 22));
        cache.remove(first);
        cache.remove(first);
        assert_eq!(cache.lookup(7 << 48, &key(1)), None);
        assert_eq!(cache.iter().collect::<Vec<_>>(), [(&key(2), &22)]);
        cache.clear();
        assert_eq!((cache.len(), cache.iter().count(), cache.is_empty()), (0, 0, true));
    }

    #[test]
    fn a_hint_that_is_out_of_date_changes_no_answer() {
        let mut cache = full();
        let hint = cache.touch(3 << 48, |_| ());
        let slot = cache.lookup_near(hint, 3 << 48, &key(3)).unwrap();
        assert_eq!(*cache.entry(slot), 3);
        // Another flow's hint, that of a flow that is gone, and that of nothing.
        let other = cache.touch(4 << 48, |_| ());
        assert_eq!(cache.lookup_near(other, 3 << 48, &key(3)), Some(slot));
        cache.remove(slot);
        assert_eq!(cache.lookup_near(hint, 3 << 48, &key(3)), None);
        let nothing = cache.touch(99 << 48, |_| ());
        assert_eq!(cache.lookup_near(nothing, 99 << 48, &key(99)), None);
        let four = cache.lookup_near(nothing, 4 << 48, &key(4)).unwrap();
        assert_eq!(*cache.entry(four), 4);
    }

    #[test]
    fn capacity_is_rounded_up_and_bounded() {
        assert_eq!(FlowCache::<u8>::new(0).capacity(), 8);
        assert_eq!(FlowCache::<u8>::new(1000).capacity(), 1024);
        assert_eq!(size_of::<Set>(), 64);
    }
}
