//! Services: how evenly and how steadily Maglev's tables spread keys over backends.

#![expect(clippy::unwrap_used, reason = "test code, though not in test functions")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use flowtable::ids::Vrf;
use flowtable::service::{
    Backend, BackendId, BadService, Service, ServiceKey, ServiceTable, TableSize, Weight,
};
use proptest::prelude::*;

const KEYS: u32 = 400_000;

fn key(port: u16) -> ServiceKey {
    let address = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
    ServiceKey { vrf: Vrf::new(7).unwrap(), address, protocol: 6, port }
}

fn backend(id: u32, weight: u32) -> Backend {
    Backend {
        id: BackendId(id),
        address: IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | id & 0xff_ffff)),
        port: 8080,
        weight: Weight::new(weight).unwrap(),
    }
}

fn equal(ids: impl IntoIterator<Item = u32>) -> Vec<Backend> {
    ids.into_iter().map(|id| backend(id, 1)).collect()
}

fn service(size: TableSize, backends: Vec<Backend>) -> Service {
    Service::new(key(80), size, backends).unwrap()
}

/// Evenly spread, and different from each other in all bits.
fn hashes(count: u32) -> impl Iterator<Item = u64> {
    (0..count).map(|n| u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn picks(service: &Service, hash: u64) -> u32 {
    service.pick(hash).unwrap().id.0
}

/// Keys by backend.
fn spread(service: &Service) -> BTreeMap<u32, f64> {
    let mut counts = BTreeMap::new();
    for hash in hashes(KEYS) {
        *counts.entry(picks(service, hash)).or_insert(0.0) += 1.0;
    }
    counts
}

/// The largest deviation of a backend from its share, relative to the share.
fn unevenness(service: &Service) -> f64 {
    let total: f64 = service.backends().iter().map(|backend| f64::from(backend.weight.get())).sum();
    let counts = spread(service);
    let off = |backend: &Backend| {
        let share = f64::from(KEYS) * f64::from(backend.weight.get()) / total;
        (counts.get(&backend.id.0).unwrap_or(&0.0) / share - 1.0).abs()
    };
    service.backends().iter().map(off).fold(0.0, f64::max)
}

/// Of all keys, the part that two services send to different backends.
fn moved(one: &Service, other: &Service) -> f64 {
    let moved = hashes(KEYS).filter(|&hash| picks(one, hash) != picks(other, hash)).count() as u32;
    f64::from(moved) / f64::from(KEYS)
}

#[test]
fn svc_1_keys_are_spread_evenly_over_equal_backends() {
    let hundred = unevenness(&service(TableSize::Large, equal(0..100)));
    assert!(hundred < 0.02, "{hundred}");
    for count in [1, 2, 3, 7, 10, 11, 40, 300, 1000] {
        let backends = equal((0..count).map(|n| n * 7919));
        let off = unevenness(&service(TableSize::fitting(&backends), backends));
        println_if_asked(&format!("{count} backends: off by {off:.4}"));
        assert!(off < 0.15, "{count}: {off}");
    }
}

#[test]
fn weights_are_proportions() {
    for weights in [vec![1, 2, 3, 4], vec![1, 100], vec![50, 100, 100, 7], (1..=100).collect()] {
        let backends: Vec<_> =
            weights.iter().zip(10..).map(|(&weight, id)| backend(id, weight)).collect();
        let off = unevenness(&service(TableSize::Large, backends));
        println_if_asked(&format!("{} weights: off by {off:.4}", weights.len()));
        // The lightest of 1 to 100 has 13 slots, and a round is 5,050 of them.
        let allowed = if weights.len() == 100 { 0.15 } else { 0.02 };
        assert!(off < allowed, "{weights:?}: {off}");
    }
}

#[test]
fn the_lightest_of_many_is_not_left_out() {
    let heavy = (1..1000).map(|id| backend(id, 100));
    let service = service(TableSize::Large, heavy.chain([backend(0, 1)]).collect());
    assert_eq!(spread(&service).len(), 1000);
}

#[test]
fn one_backend_more_or_less_moves_few_keys_but_its_own() {
    let sizes = [
        (2, TableSize::Small),
        (3, TableSize::Medium),
        (10, TableSize::Medium),
        (10, TableSize::Large),
        (20, TableSize::Large),
        (40, TableSize::Large),
        (100, TableSize::Large),
        (300, TableSize::Large),
        (500, TableSize::Large),
        (1000, TableSize::Large),
    ];
    for (count, size) in sizes {
        let all = service(size, equal(0..count));
        for gone in [0, count / 2, count - 1] {
            let rest = service(size, equal((0..count).filter(|&id| id != gone)));
            // Removing and, the other way round, adding.
            let moved = moved(&all, &rest);
            let own = spread(&all)[&gone] / f64::from(KEYS);
            println_if_asked(&format!("{count} in {size:?}: {moved:.4} moved, {own:.4} its own"));
            let others = moved - own;
            assert!(others >= -1e-9);
            // Maglev trades this for evenness: a slot that changes hands makes others change.
            let allowed = if count <= 40 { 0.25 / f64::from(count) } else { 0.01 };
            assert!(others <= allowed, "{count} in {size:?}: {others}, own {own}");
        }
    }
}

#[test]
fn a_changed_weight_moves_few_keys() {
    let before = service(TableSize::Large, (0..10).map(|id| backend(id, 50)).collect());
    let after = service(
        TableSize::Large,
        (0..10).map(|id| backend(id, if id == 3 { 25 } else { 50 })).collect(),
    );
    let moved = moved(&before, &after);
    println_if_asked(&format!("half the weight of one of 10: {moved:.4} moved"));
    // From 10 % to 5.3 % is 4.7 %.
    assert!((0.047..0.08).contains(&moved), "{moved}");
}

#[test]
fn a_backend_keeps_its_keys_wherever_it_is() {
    let before = service(TableSize::Medium, equal(0..5));
    let mut backends = equal(0..5);
    backends[2].address = IpAddr::V4(Ipv4Addr::new(10, 9, 9, 9));
    let after = service(TableSize::Medium, backends);
    assert!(hashes(KEYS).all(|hash| picks(&before, hash) == picks(&after, hash)));
    let at = hashes(KEYS).find(|&hash| picks(&after, hash) == 2).unwrap();
    assert_eq!(after.pick(at).unwrap().address, IpAddr::V4(Ipv4Addr::new(10, 9, 9, 9)));
}

/// Maglev's Pseudocode 1 as printed, with the whole permutation written out first.
fn pseudocode_1(size: u64, permutation: &[Vec<u64>]) -> Vec<usize> {
    let mut next = vec![0; permutation.len()];
    let mut entry = vec![usize::MAX; size as usize];
    let mut filled = 0;
    loop {
        for i in 0..permutation.len() {
            let mut c = permutation[i][next[i]] as usize;
            while entry[c] != usize::MAX {
                next[i] += 1;
                c = permutation[i][next[i]] as usize;
            }
            entry[c] = i;
            next[i] += 1;
            filled += 1;
            if filled == size {
                return entry;
            }
        }
    }
}

#[test]
fn the_table_is_the_one_of_the_papers_pseudocode() {
    let size = u64::from(TableSize::Small.slot_count());
    let secrets = [1, 2].map(rapidhash::v3::RapidSecrets::seed_cpp);
    let permutation = |id: u32| {
        let hash = |n: usize| rapidhash::v3::rapidhash_v3_seeded(&id.to_le_bytes(), &secrets[n]);
        let (offset, skip) = (hash(0) % size, hash(1) % (size - 1) + 1);
        (0..size).map(|j| (offset + j * skip) % size).collect::<Vec<_>>()
    };
    let expected = pseudocode_1(size, &(0..7).map(permutation).collect::<Vec<_>>());
    let service = service(TableSize::Small, equal(0..7));
    // The middle of each slot's hashes.
    let hash = |slot: u64| (((u128::from(slot) * 2 + 1) << 63) / u128::from(size)) as u64;
    let table: Vec<_> = (0..size).map(|slot| picks(&service, hash(slot)) as usize).collect();
    assert_eq!(table, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn the_order_of_backends_does_not_matter(
        backends in proptest::collection::btree_map(any::<u32>(), 1..=100u32, 1..60),
        seed in any::<u64>(),
    ) {
        let given: Vec<_> = backends.iter().map(|(&id, &weight)| backend(id, weight)).collect();
        let mut shuffled = given.clone();
        shuffled.sort_by_key(|backend| u64::from(backend.id.0).wrapping_mul(seed | 1).rotate_left(31));
        let size = TableSize::fitting(&given);
        prop_assert_eq!(size, TableSize::fitting(&shuffled));
        let [one, other] = [given, shuffled].map(|backends| service(size, backends));
        prop_assert!(one == other);
        for hash in [0, 1, u64::MAX / 2, u64::MAX] {
            prop_assert_eq!(one.pick(hash), other.pick(hash));
            prop_assert!(one.pick(hash).is_some());
        }
    }
}

#[test]
fn a_service_without_backends_is_answered_by_nobody() {
    let service = service(TableSize::default(), vec![]);
    assert_eq!([0, u64::MAX].map(|hash| service.pick(hash)), [None, None]);
    assert_eq!(TableSize::fitting(&[]), TableSize::Small);
}

#[test]
fn a_table_finds_exactly_its_services() {
    let services: Vec<_> = (1..=3)
        .map(|port| {
            Arc::new(Service::new(key(port), TableSize::Small, equal(0..u32::from(port))).unwrap())
        })
        .collect();
    let table = ServiceTable::build(services.iter().map(Arc::clone)).unwrap();
    assert_eq!((table.len(), table.is_empty()), (3, false));
    for service in &services {
        assert!(Arc::ptr_eq(table.lookup(&service.key()).unwrap(), service));
    }
    let others = [
        key(4),
        ServiceKey { protocol: 17, ..key(1) },
        ServiceKey { vrf: Vrf::new(8).unwrap(), ..key(1) },
        ServiceKey { address: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 2)), ..key(1) },
    ];
    assert!(others.iter().all(|key| table.lookup(key).is_none()));
    let twice = ServiceTable::build([&services[0], &services[1], &services[0]].map(Arc::clone));
    let refusal = twice.unwrap_err();
    assert_eq!(refusal, BadService::DuplicateService(key(1)));
    assert_eq!(refusal.to_string(), "service 10.96.0.1 protocol 6 port 1 in VRF 7 is given twice");
}

#[test]
fn what_cannot_be_a_service_is_refused_by_name() {
    let refusal = |backends| Service::new(key(80), TableSize::Small, backends).unwrap_err();
    assert_eq!(refusal(equal(0..1001)), BadService::TooManyBackends { key: key(80), count: 1001 });
    assert!(Service::new(key(80), TableSize::Large, equal(0..1000)).is_ok());
    let duplicate = BadService::DuplicateBackend { key: key(80), id: BackendId(5) };
    assert_eq!(refusal(equal([5, 1, 5])), duplicate);
    assert_eq!(
        duplicate.to_string(),
        "service 10.96.0.1 protocol 6 port 80 in VRF 7: backend 5 is given twice"
    );
    let address: IpAddr = "fd00::1".parse().unwrap();
    let other = Backend { address, ..backend(9, 1) };
    assert_eq!(
        refusal(vec![other]),
        BadService::OtherFamily { key: key(80), id: BackendId(9), address }
    );
    for weight in [0, 101] {
        assert_eq!(
            Weight::new(weight).unwrap_err().to_string(),
            format!("weight {weight} is not in 1..=100")
        );
    }
}

#[test]
fn the_size_fits_the_lightest_backend() {
    let sizes = [2, 3, 10, 11, 1000].map(|count| TableSize::fitting(&equal(0..count)).slot_count());
    assert_eq!(sizes, [251, 4093, 4093, 65537, 65537]);
    let unequal = [backend(1, 100), backend(2, 1)];
    assert_eq!(TableSize::fitting(&unequal), TableSize::Large);
}

/// Measured values, for documents: `WEIR_MEASURE=1 cargo test ... -- --nocapture`.
#[expect(clippy::print_stderr, reason = "asked for")]
fn println_if_asked(text: &str) {
    if std::env::var_os("WEIR_MEASURE").is_some() {
        eprintln!("{text}");
    }
}
