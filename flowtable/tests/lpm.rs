//! Longest-prefix match against a list that is searched from end to end.

#![expect(clippy::unwrap_used, reason = "test code, though not in test functions")]

use std::net::IpAddr;

use flowtable::entry::Prefix;
use flowtable::ids::Vrf;
use flowtable::lpm::Lpm;
use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
enum Family {
    V4,
    V6,
}

fn families() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

/// The last bits vary and a few of the first, so that prefixes of all lengths nest.
fn address(family: Family, bits: u32) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(bits.into()),
        Family::V6 => IpAddr::V6((u128::from(bits) << 96 | u128::from(bits & 7)).into()),
    }
}

fn bits() -> impl Strategy<Value = u32> {
    (0..4_u32, 0..4_u32, 0..8_u32).prop_map(|(high, middle, low)| high << 30 | middle << 15 | low)
}

fn prefixes() -> impl Strategy<Value = (Vrf, Prefix)> {
    (0..3_u32, families(), bits(), 0..=128_u8).prop_map(|(vrf, family, bits, len)| {
        let len = if matches!(family, Family::V6) { len } else { len % 33 };
        (Vrf::new(vrf).unwrap(), Prefix::new(address(family, bits), len).unwrap())
    })
}

/// The linear oracle.
fn longest(list: &[(Vrf, Prefix, u32)], vrf: Vrf, ip: IpAddr) -> Option<(Prefix, u32)> {
    list.iter()
        .filter(|(v, prefix, _)| *v == vrf && prefix.contains(ip))
        .max_by_key(|(_, prefix, _)| prefix.length())
        .map(|(_, prefix, value)| (*prefix, *value))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn lookup_equals_a_linear_search(
        steps in proptest::collection::vec((prefixes(), 0..4_u8, any::<u32>()), 0..60),
        queries in proptest::collection::vec((0..3_u32, families(), bits()), 1..40),
    ) {
        let mut table = Lpm::default();
        let mut list: Vec<(Vrf, Prefix, u32)> = Vec::new();
        for ((vrf, prefix), choice, value) in steps {
            let known = list.iter().position(|(v, p, _)| (*v, *p) == (vrf, prefix));
            let old = known.map(|at| list.swap_remove(at).2);
            if choice == 0 {
                prop_assert_eq!(table.remove(vrf, prefix), old);
            } else {
                prop_assert_eq!(table.insert(vrf, prefix, value), old);
                list.push((vrf, prefix, value));
            }
            prop_assert_eq!(table.len(), list.len());
        }
        let copy = table.clone();
        for (vrf, family, bits) in queries {
            let (vrf, ip) = (Vrf::new(vrf).unwrap(), address(family, bits));
            let found = copy.lookup(vrf, ip).map(|(prefix, value)| (prefix, *value));
            prop_assert_eq!(found, longest(&list, vrf, ip));
        }
        for (vrf, prefix, value) in list {
            prop_assert_eq!(table.remove(vrf, prefix), Some(value));
        }
        prop_assert!(table.is_empty());
    }
}

#[test]
fn tenants_with_the_same_addresses_do_not_see_each_other() {
    let (one, two) = (Vrf::new(1).unwrap(), Vrf::new(2).unwrap());
    let net = Prefix::new("10.1.0.0".parse().unwrap(), 16).unwrap();
    let ip = "10.1.2.3".parse().unwrap();
    let mut table = Lpm::default();
    assert_eq!(table.insert(one, net, 'a'), None);
    assert_eq!(table.lookup(two, ip), None);
    assert_eq!(table.insert(two, net, 'b'), None);
    assert_eq!(table.lookup(one, ip), Some((net, &'a')));
    assert_eq!(table.remove(one, net), Some('a'));
    assert_eq!(table.lookup(one, ip), None);
    assert_eq!(table.lookup(two, ip), Some((net, &'b')));
    // The same bits in the other family are another address.
    assert_eq!(table.lookup(two, "::ffff:10.1.2.3".parse().unwrap()), None);
}
