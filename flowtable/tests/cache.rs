//! The flow cache against a map without bounds: it may forget, but it never mixes up.

#![expect(clippy::disallowed_types, reason = "the model is to be plain")]

use std::collections::HashMap;

use flowtable::cache::FlowCache;
use flowtable::key::{FlowKey, KeyHasher};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Insert(u8, u32),
    Lookup(u8),
    Change(u8, u32),
    Remove(u8),
    Clear,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => (any::<u8>(), any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
        20 => any::<u8>().prop_map(Step::Lookup),
        3 => (any::<u8>(), any::<u32>()).prop_map(|(key, value)| Step::Change(key, value)),
        3 => any::<u8>().prop_map(Step::Remove),
        1 => Just(Step::Clear),
    ];
    proptest::collection::vec(step, 1..600)
}

fn key(number: u8) -> FlowKey {
    FlowKey { dst_port: u16::from(number), ..FlowKey::default() }
}

/// Few sets and few tags, so that both collide often.
fn hash(number: u8) -> u64 {
    u64::from(number % 4) | u64::from(number % 5) << 48
}

/// What the model holds may be gone from the cache, but not the other way round.
fn hashed(key: &FlowKey, seed: u64) -> u64 {
    KeyHasher::new(seed).hash(key)
}

fn check(cache: &mut FlowCache<u32>, model: &mut HashMap<u8, u32>, step: &Step) {
    match *step {
        Step::Insert(number, value) => {
            let stale = |value: &u32| value.is_multiple_of(7);
            match cache.insert(hash(number), key(number), value, stale) {
                Some(slot) => {
                    assert_eq!((cache.key(slot), cache.entry(slot)), (&key(number), &value));
                    model.insert(number, value);
                }
                None => assert_eq!(cache.lookup(hash(number), &key(number)), None),
            }
        }
        Step::Lookup(number) => {
            if let Some(slot) = cache.lookup(hash(number), &key(number)) {
                assert_eq!(cache.key(slot), &key(number));
                assert_eq!(Some(cache.entry(slot)), model.get(&number));
            }
        }
        Step::Change(number, value) => {
            if let Some(slot) = cache.lookup(hash(number), &key(number)) {
                *cache.entry_mut(slot) = value;
                model.insert(number, value);
            }
        }
        Step::Remove(number) => {
            if let Some(slot) = cache.lookup(hash(number), &key(number)) {
                cache.remove(slot);
                assert_eq!(cache.lookup(hash(number), &key(number)), None);
            }
            model.remove(&number);
        }
        Step::Clear => {
            cache.clear();
            model.clear();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_found_value_is_the_last_one_stored_for_that_key(steps in steps(), entries in 0..64_usize) {
        let mut cache = FlowCache::new(entries);
        let mut model = HashMap::new();
        for step in &steps {
            check(&mut cache, &mut model, step);
            prop_assert!(cache.len() <= cache.capacity());
        }
        let mut held: Vec<_> = cache.iter().map(|(key, value)| (key.dst_port as u8, *value)).collect();
        prop_assert_eq!(held.len(), cache.len());
        for (number, value) in &held {
            prop_assert_eq!(model.get(number), Some(value));
        }
        held.sort_unstable();
        held.dedup_by_key(|(number, _)| *number);
        prop_assert_eq!(held.len(), cache.len());
    }

    #[test]
    fn what_fits_is_kept(numbers in proptest::collection::btree_set(any::<u16>(), 0..200)) {
        let mut cache = FlowCache::new(4096);
        for &number in &numbers {
            let key = FlowKey { src_port: number, ..FlowKey::default() };
            prop_assert!(cache.insert(hashed(&key, 9), key, number, |_| false).is_some());
        }
        prop_assert_eq!(cache.len(), numbers.len());
        for &number in &numbers {
            let key = FlowKey { src_port: number, ..FlowKey::default() };
            let slot = cache.lookup(hashed(&key, 9), &key).unwrap();
            prop_assert_eq!(*cache.entry(slot), number);
        }
    }
}

#[test]
fn established_flows_survive_a_flood_of_new_ones() {
    let mut cache = FlowCache::new(1024);
    let flow = |number: u32| FlowKey { vni: number, ..FlowKey::default() };
    // One for each set on average: with this seed no set gets more of them than it holds.
    let established: Vec<_> = (0..128).map(flow).collect();
    for key in &established {
        cache.insert(hashed(key, 3), *key, 0_u32, |_| false).unwrap();
        assert!(cache.lookup(hashed(key, 3), key).is_some());
    }
    for number in 1000..200_000 {
        let key = flow(number);
        cache.insert(hashed(&key, 3), key, number, |_| false);
    }
    let kept = established.iter().filter(|key| cache.lookup(hashed(key, 3), key).is_some()).count();
    assert_eq!((kept, cache.len()), (established.len(), cache.capacity()));
}
