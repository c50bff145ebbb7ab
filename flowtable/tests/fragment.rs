//! The fragment table against a plain list in the order of noting.

#![expect(clippy::unwrap_used, reason = "test code, though not in test functions")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowtable::fragment::{FragKey, FragTable, LIFETIME_S};
use flowtable::ids::Vrf;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Note(FragKey, u16),
    Find(FragKey),
    Wait(u64),
    Clear,
}

fn key(vrf: u32, src: u32, id: u32) -> FragKey {
    let address = |n| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n));
    FragKey::new(Vrf::new(vrf).unwrap(), 17, (address(src), address(99)), id)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // One sender that is busy, and a few, or many, others.
    let src = prop_oneof![3 => Just(0u32), 3 => 1..4u32, 2 => 1..200u32];
    let key = (prop_oneof![9 => Just(1u32), 1 => Just(2)], src, 0..24u32)
        .prop_map(|(vrf, src, id)| key(vrf, src, id));
    let step = prop_oneof![
        400 => (key.clone(), any::<u16>()).prop_map(|(key, value)| Step::Note(key, value)),
        400 => key.prop_map(Step::Find),
        40 => (0..4u64).prop_map(Step::Wait),
        4 => (28..32u64).prop_map(Step::Wait),
        1 => Just(Step::Clear),
    ];
    proptest::collection::vec(step, 1..600)
}

/// Entries in the order of noting; what is dead is swept out first.
struct Model {
    capacity: usize,
    entries: Vec<(FragKey, u16, u64)>,
    evicted_count: u64,
}

impl Model {
    fn sweep(&mut self, now_s: u64) {
        self.entries.retain(|(_, _, noted_s)| now_s - noted_s < LIFETIME_S);
    }

    fn note(&mut self, key: FragKey, value: u16, now_s: u64) {
        self.sweep(now_s);
        self.entries.retain(|(other, ..)| *other != key);
        let sender = |(other, ..): &(FragKey, u16, u64)| {
            (other.vrf(), other.src()) == (key.vrf(), key.src())
        };
        let of_sender = self.entries.iter().filter(|entry| sender(entry)).count();
        let victim = if of_sender >= self.capacity / 4 {
            self.entries.iter().position(sender)
        } else {
            (self.entries.len() >= self.capacity).then_some(0)
        };
        if let Some(victim) = victim {
            self.entries.remove(victim);
            self.evicted_count += 1;
        }
        self.entries.push((key, value, now_s));
    }

    fn find(&mut self, key: &FragKey, now_s: u64) -> Option<u16> {
        self.sweep(now_s);
        self.entries.iter().find(|(other, ..)| other == key).map(|(_, value, _)| *value)
    }
}

proptest! {
    #[test]
    fn the_table_remembers_exactly_what_the_list_does(
        capacity in 4..40usize,
        seed in any::<u64>(),
        steps in steps(),
    ) {
        let mut table = FragTable::new(capacity, seed);
        let mut model = Model { capacity, entries: Vec::new(), evicted_count: 0 };
        let mut now_s = 1000;
        for step in steps {
            match step {
                Step::Note(key, value) => {
                    table.note(key, value, now_s);
                    model.note(key, value, now_s);
                    prop_assert_eq!(table.find(&key, now_s), Some(value));
                }
                Step::Find(key) => {
                    prop_assert_eq!(table.find(&key, now_s), model.find(&key, now_s));
                }
                Step::Wait(time_s) => now_s += time_s,
                Step::Clear => {
                    table.clear();
                    model.entries.clear();
                }
            }
            prop_assert_eq!(table.evicted_count(), model.evicted_count);
        }
        model.sweep(now_s);
        for (key, value, _) in &model.entries {
            prop_assert_eq!(table.find(key, now_s), Some(*value));
        }
    }
}

#[test]
fn a_flood_of_one_sender_leaves_the_datagrams_of_others() {
    let mut table = FragTable::new(4096, 7);
    assert_eq!((table.capacity(), table.sender_capacity()), (4096, 1024));
    for src in 1..=3000 {
        table.note(key(1, src, src), src, 5);
    }
    for id in 0..1_000_000 {
        table.note(key(1, 0, id), id, 6);
    }
    let others = (1..=3000).filter(|&src| table.find(&key(1, src, src), 6) == Some(src)).count();
    let floods = (0..1_000_000).filter(|&id| table.find(&key(1, 0, id), 6) == Some(id)).count();
    assert_eq!((others, floods), (3000, 1024));
    assert_eq!(table.evicted_count(), 1_000_000 - 1024);
}

#[test]
fn a_datagram_is_forgotten_after_its_lifetime_and_kept_when_noted_anew() {
    let mut table = FragTable::new(8, 7);
    table.note(key(1, 1, 1), 'a', 100);
    table.note(key(1, 1, 2), 'b', 100);
    table.note(key(1, 1, 1), 'c', 129);
    assert_eq!((table.find(&key(1, 1, 2), 129), table.find(&key(1, 1, 2), 130)), (Some('b'), None));
    assert_eq!((table.find(&key(1, 1, 1), 158), table.find(&key(1, 1, 1), 159)), (Some('c'), None));
    // The clock may step back.
    assert_eq!(table.find(&key(1, 1, 1), 3), Some('c'));
    table.note(key(1, 1, 3), 'd', 3);
    assert_eq!(table.find(&key(1, 1, 3), 3), Some('d'));
}

#[test]
fn every_part_of_the_key_counts_but_the_next_header_of_ipv6() {
    let vrf = Vrf::new(1).unwrap();
    let v4 = |n| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n));
    // The same bytes as an IPv4-mapped address are another address.
    let mapped = |n| IpAddr::V6(Ipv4Addr::new(10, 0, 0, n).to_ipv6_mapped());
    let v6 = |n| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n));
    let mut table = FragTable::new(64, 7);
    let first = FragKey::new(vrf, 17, (v4(1), v4(2)), 5);
    table.note(first, 1, 0);
    let others = [
        FragKey::new(Vrf::new(2).unwrap(), 17, (v4(1), v4(2)), 5),
        FragKey::new(vrf, 6, (v4(1), v4(2)), 5),
        FragKey::new(vrf, 17, (v4(3), v4(2)), 5),
        FragKey::new(vrf, 17, (v4(1), v4(3)), 5),
        FragKey::new(vrf, 17, (v4(1), v4(2)), 6),
        FragKey::new(vrf, 17, (mapped(1), mapped(2)), 5),
    ];
    assert_eq!(table.find(&first, 0), Some(1));
    assert_eq!(others.map(|key| table.find(&key, 0)), [None; 6]);
    table.note(FragKey::new(vrf, 17, (v6(1), v6(2)), 0xdead_beef), 2, 0);
    let next_header_differs = FragKey::new(vrf, 60, (v6(1), v6(2)), 0xdead_beef);
    assert_eq!(table.find(&next_header_differs, 0), Some(2));
}

#[test]
fn the_capacity_is_bounded() {
    assert_eq!(FragTable::<()>::new(0, 0).capacity(), 4);
    assert_eq!(FragTable::<()>::new(0, 0).sender_capacity(), 1);
    assert_eq!(FragTable::<()>::new(usize::MAX, 0).capacity(), 1 << 20);
}
