//! Meters against exact buckets that are fed with the meter's own decisions: a packet that passes
//! must have been there (in the burst and a lease), a packet that is refused must not.

#![expect(clippy::unwrap_used, reason = "test code, though not in test functions")]

mod set;

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use flowtable::meter::{
    Band, Colour, MeterBank, MeterCounts, MeterLease, MeterSlot, MeterSpec, Tally, Unit,
};
use proptest::prelude::*;

const S: u64 = 1_000_000_000;

fn slot(number: u32) -> MeterSlot {
    MeterSlot::new(number).unwrap()
}

fn bits(rate: u64, burst: u64) -> MeterSpec {
    MeterSpec::new(Unit::Bits, Band { rate, burst }, None).unwrap()
}

/// A bank with one meter, and its workers.
fn metered(spec: &MeterSpec, workers: usize) -> (MeterBank, Vec<MeterLease>) {
    let bank = MeterBank::new(4, workers);
    bank.set(slot(0), spec, 0).unwrap();
    let leases = (0..workers).map(|worker| MeterLease::new(&bank, worker).unwrap()).collect();
    (bank, leases)
}

/// Bits or packets, times 10^9: whole numbers for whole nanoseconds. Signed, as it may be overdrawn.
struct Exact {
    level: i128,
    burst: i128,
    rate: i128,
    each: i128,
    now_ns: u64,
}

impl Exact {
    fn new(unit: Unit, band: Band, slack: u64) -> Self {
        let each = if unit == Unit::Bits { 8 } else { 1 } * i128::from(S);
        let rate = i128::from(band.rate);
        // A nanosecond of the rate is what rounding the burst may add.
        let burst = i128::from(band.burst + slack) * each + rate;
        Self { level: burst, burst, rate, each, now_ns: 0 }
    }

    /// A bucket with the rate that rounding the price may leave of it: 1 in 20,000 less.
    fn least(unit: Unit, band: Band) -> Self {
        let mut least = Self::new(unit, band, 0);
        least.rate -= least.rate / 20_000 + 1;
        least
    }

    fn at(&mut self, now_ns: u64) -> &mut Self {
        let earned = i128::from(now_ns - self.now_ns) * self.rate;
        self.level = (self.level + earned).min(self.burst);
        self.now_ns = now_ns;
        self
    }

    fn has(&self, units: u64) -> bool {
        self.level >= i128::from(units) * self.each
    }

    /// Has clearly more than `units`: by more than the nanosecond that a request is rounded.
    fn has_more_than(&self, units: u64) -> bool {
        self.level > i128::from(units) * self.each + 2 * self.rate
    }

    fn pay(&mut self, units: u64) {
        self.level -= i128::from(units) * self.each;
    }
}

/// A frame size, and how long after the frame before, in thousandths of its time at the rate.
fn arrivals() -> impl Strategy<Value = Vec<(u32, u64)>> {
    let gap = prop_oneof![
        6 => 0..1_000u64,
        3 => 0..3_000u64,
        1 => Just(0),
        1 => 10_000..2_000_000u64,
    ];
    let size = prop_oneof![64..1519u32, Just(64), Just(1514), 1..65_550u32];
    proptest::collection::vec((size, gap), 1..400)
}

fn band(unit: Unit) -> BoxedStrategy<Band> {
    // Every magnitude is as likely.
    let burst = 1_518u64..200_000;
    match unit {
        Unit::Bits => (0..29u32, 1_000u64..1_400, burst)
            .prop_map(|(shift, rate, burst)| Band { rate: rate << shift.min(28), burst })
            .boxed(),
        Unit::Packets => (0..30u32, 1u64..900)
            .prop_map(|(shift, n)| Band { rate: (n << shift).min(S), burst: n })
            .boxed(),
    }
}

fn meters() -> impl Strategy<Value = (Unit, Band)> {
    prop_oneof![
        3 => band(Unit::Bits).prop_map(|band| (Unit::Bits, band)),
        1 => band(Unit::Packets).prop_map(|band| (Unit::Packets, band)),
    ]
}

const fn units(unit: Unit, bytes: u32) -> u64 {
    match unit {
        Unit::Bits => bytes as u64,
        Unit::Packets => 1,
    }
}

/// Time of `units` at the rate, in ns.
fn time_of(unit: Unit, units: u64, rate: u64) -> u64 {
    let each = if unit == Unit::Bits { 8 } else { 1 };
    (u128::from(units) * each * u128::from(S) / u128::from(rate)) as u64
}

proptest! {
    #[test]
    fn what_passes_was_there_and_what_is_refused_was_not(
        (unit, band) in meters(),
        arrivals in arrivals(),
        started_ns in prop_oneof![Just(0), 0..10_000 * S],
    ) {
        let spec = MeterSpec::new(unit, band, None).unwrap();
        let (bank, mut leases) = metered(&spec, 1);
        let portion = spec.lease(1);
        let mut most = Exact::new(unit, band, portion);
        let mut least = Exact::least(unit, band);
        let mut counts = MeterCounts::default();
        let mut now_ns = started_ns;
        for (bytes, gap) in arrivals {
            let cost = units(unit, bytes);
            now_ns += (u128::from(time_of(unit, cost, band.rate)) * u128::from(gap) / 1000) as u64;
            most.at(now_ns);
            least.at(now_ns);
            let verdict = leases[0].police(&bank, &[slot(0)], bytes, now_ns);
            let tally = if verdict.is_ok() { &mut counts.green } else { &mut counts.red };
            *tally = Tally { packets: tally.packets + 1, bytes: tally.bytes + u64::from(bytes) };
            if verdict == Ok(Colour::Green) {
                prop_assert!(most.has(cost), "{cost} passed, {} left", most.level);
                most.pay(cost);
                least.pay(cost);
            } else {
                prop_assert_eq!(verdict, Err(slot(0)));
                // Where tokens are short, whole portions are waited for.
                let wanted = portion.max(cost);
                prop_assert!(!least.has_more_than(wanted), "{cost} refused, {}", least.level);
            }
        }
        prop_assert_eq!(bank.read(slot(0)), Some(counts));
    }

    #[test]
    fn a_sender_within_the_exact_rate_and_a_portion_less_of_burst_loses_nothing(
        (unit, band) in meters(),
        arrivals in arrivals(),
    ) {
        let spec = MeterSpec::new(unit, band, None).unwrap();
        let (bank, mut leases) = metered(&spec, 1);
        let mut shaped = Exact::least(unit, band);
        let spared = i128::from(spec.lease(1)) * shaped.each + 2 * shaped.rate;
        let mut now_ns = 0;
        for (bytes, gap) in arrivals {
            let cost = units(unit, bytes);
            now_ns += (u128::from(time_of(unit, cost, band.rate)) * u128::from(gap) / 1000) as u64;
            let shaped = shaped.at(now_ns);
            // The sender itself keeps to the bucket.
            if shaped.level - i128::from(cost) * shaped.each >= spared {
                shaped.pay(cost);
                let verdict = leases[0].police(&bank, &[slot(0)], bytes, now_ns);
                prop_assert_eq!(verdict, Ok(Colour::Green));
            }
        }
    }

    #[test]
    fn colours_are_those_of_rfc_2698_up_to_a_lease(
        committed in band(Unit::Bits),
        peak in (1..5u64, 1_518u64..200_000),
        arrivals in arrivals(),
    ) {
        let peak = Band { rate: (committed.rate * peak.0).min(400_000_000_000), burst: peak.1 };
        let spec = MeterSpec::new(Unit::Bits, committed, Some(peak)).unwrap();
        let (bank, mut leases) = metered(&spec, 1);
        let portions = [committed, peak].map(|band| bits(band.rate, band.burst).lease(1));
        // Section 3: Tc and Tp are full at first. A band that could pay, when the other could not,
        // keeps what it has taken for this packet: a lease is a portion or a frame.
        let slack = portions.map(|portion| portion.max(65_550));
        let mut most = [Exact::new(Unit::Bits, committed, slack[0]), Exact::new(Unit::Bits, peak, slack[1])];
        let mut least = [committed, peak].map(|band| Exact::least(Unit::Bits, band));
        let mut now_ns = 7;
        for (bytes, gap) in arrivals {
            let cost = u64::from(bytes);
            now_ns += (u128::from(time_of(Unit::Bits, cost, peak.rate)) * u128::from(gap) / 1000) as u64;
            for bucket in most.iter_mut().chain(&mut least) {
                bucket.at(now_ns);
            }
            let paid = match leases[0].police(&bank, &[slot(0)], bytes, now_ns) {
                // "if Tp(t)-B < 0, the packet is red, else
                Err(_) => {
                    prop_assert!(!least[1].has_more_than(portions[1].max(cost)));
                    continue;
                }
                // if Tc(t)-B < 0, the packet is yellow and Tp is decremented by B, else
                Ok(Colour::Yellow) => {
                    prop_assert!(!least[0].has_more_than(portions[0].max(cost)));
                    [false, true]
                }
                // the packet is green and both Tp and Tc are decremented by B."
                Ok(_) => [true, true],
            };
            for (band, _) in paid.iter().enumerate().filter(|(_, paid)| **paid) {
                prop_assert!(most[band].has(cost), "band {band}");
                most[band].pay(cost);
                least[band].pay(cost);
            }
        }
    }
}

/// What an RFC 2698 meter colours, exactly: bytes of green, yellow and red.
fn rfc2698(bands: [Band; 2], arrivals: &[(u32, u64)]) -> [u64; 3] {
    let [mut tc, mut tp] = bands.map(|band| Exact::new(Unit::Bits, band, 0));
    let mut bytes_of = [0; 3];
    for &(bytes, now_ns) in arrivals {
        let cost = u64::from(bytes);
        tc.at(now_ns);
        tp.at(now_ns);
        let colour = match (tp.has(cost), tc.has(cost)) {
            (false, _) => 2,
            (true, false) => 1,
            (true, true) => 0,
        };
        if colour < 2 {
            tp.pay(cost);
        }
        if colour < 1 {
            tc.pay(cost);
        }
        bytes_of[colour] += cost;
    }
    bytes_of
}

#[test]
fn an_oversending_flow_gets_the_bytes_of_each_colour_of_rfc_2698() {
    let committed = Band { rate: 50_000_000, burst: 100_000 };
    let peak = Band { rate: 80_000_000, burst: 150_000 };
    let spec = MeterSpec::new(Unit::Bits, committed, Some(peak)).unwrap();
    let (bank, mut leases) = metered(&spec, 1);
    let arrivals: Vec<_> = (0..30_000).map(|n| (64 + n % 1451, u64::from(n) * 33_000)).collect();
    for &(bytes, now_ns) in &arrivals {
        // The verdict is in the counters, too.
        let verdict = leases[0].police(&bank, &[slot(0)], bytes, now_ns);
        assert!(verdict.is_err() || verdict <= Ok(Colour::Yellow));
    }
    let counts = bank.read(slot(0)).unwrap();
    let counted = [counts.green, counts.yellow, counts.red];
    for (colour, (exact, tally)) in
        rfc2698([committed, peak], &arrivals).into_iter().zip(counted).enumerate()
    {
        let off = exact.abs_diff(tally.bytes);
        // 0.1 % for packets that arrive while a portion is being saved up, and a lease.
        assert!(off <= exact / 1000 + 2 * 3_036, "colour {colour}: {} not {exact}", tally.bytes);
        assert!(exact > 1_000_000);
    }
    assert_eq!(counted.map(|tally| tally.packets).iter().sum::<u64>(), 30_000);
}

/// Sends frames of `bytes` at every chance, on all workers, for `duration_ns`; bytes that passed.
fn flood(
    bank: &MeterBank,
    leases: &mut [MeterLease],
    bytes: u32,
    (from_ns, duration_ns, step_ns): (u64, u64, u64),
) -> u64 {
    let mut passed = 0;
    let mut now_ns = from_ns;
    while now_ns < from_ns + duration_ns {
        let workers = leases.len() as u64;
        for (worker, lease) in leases.iter_mut().enumerate() {
            // Workers do not read the clock at the same time.
            let now_ns = now_ns + worker as u64 * step_ns / workers;
            while lease.police(bank, &[slot(0)], bytes, now_ns).is_ok() {
                passed += u64::from(bytes);
            }
            lease.sweep(bank, now_ns);
        }
        now_ns += step_ns;
    }
    passed
}

/// Passed bytes over those of the rate, in millionths, in a time of at least a second and a
/// thousand frames (but two million at most, without `WEIR_SOAK`), after the burst is used up.
fn share(rate: u64, bytes: u32, workers: usize) -> u64 {
    share_with((rate / 8 / 500).max(131_072), rate, bytes, workers)
}

fn share_with(burst: u64, rate: u64, bytes: u32, workers: usize) -> u64 {
    let (bank, mut leases) = metered(&bits(rate, burst), workers);
    let frame_ns = time_of(Unit::Bits, u64::from(bytes) * 1000, rate) / 1000;
    let soak = std::env::var_os("WEIR_SOAK").is_some();
    let most_ns = if soak { u64::MAX } else { frame_ns.saturating_mul(2_000_000).max(S / 20) };
    let duration_ns = S.min(most_ns).max(1000 * frame_ns);
    let step_ns = (frame_ns / 8).max(5_000);
    let start = flood(&bank, &mut leases, bytes, (0, 4 * step_ns, step_ns));
    assert!(start >= burst - u64::from(bytes).max(burst / 2), "{start} of the burst of {burst}");
    let passed = flood(&bank, &mut leases, bytes, (4 * step_ns, duration_ns, step_ns));
    let counts = bank.read(slot(0)).unwrap();
    assert_eq!(counts.green.bytes, start + passed);
    let exact = u128::from(rate) * u128::from(duration_ns) / 8 / u128::from(S);
    (u128::from(passed) * 1_000_000 / exact) as u64
}

#[test]
fn a_backlogged_sender_gets_its_rate_at_every_frame_size() {
    for rate in [64_000, 6_000_000, 100_000_000, 10_000_000_000] {
        for bytes in [64, 512, 1500, 65_000] {
            let share = share(rate, bytes, 1);
            assert!((995_000..=1_005_000).contains(&share), "{share} at {rate} of {bytes}");
        }
    }
}

#[test]
fn two_and_four_workers_share_one_rate() {
    for rate in [6_000_000, 100_000_000, 10_000_000_000] {
        for (bytes, workers) in [(64, 2), (64, 4), (1500, 2), (1500, 4)] {
            let share = share(rate, bytes, workers);
            assert!(
                (990_000..=1_010_000).contains(&share),
                "{share} at {rate}, {workers} x {bytes}"
            );
        }
    }
}

#[test]
fn workers_that_share_a_burst_of_two_frames_lose_nothing() {
    for (bytes, workers) in [(64, 4), (1500, 2), (1500, 4)] {
        let share = share_with(3_036, 6_000_000, bytes, workers);
        assert!((990_000..=1_010_000).contains(&share), "{share}, {workers} x {bytes}");
    }
}

/// Sends without pause until the common clock, which every attempt moves, shows 100 ms.
fn race(bank: &MeterBank, mut lease: MeterLease, clock: &AtomicU64) -> u64 {
    let mut passed = 0;
    loop {
        let now_ns = clock.fetch_add(100, Ordering::Relaxed);
        if now_ns > 100_000_000 {
            return passed;
        }
        passed += u64::from(lease.police(bank, &[slot(0)], 256, now_ns).is_ok()) * 256;
    }
}

#[test]
fn threads_that_race_for_one_meter_pass_its_rate_together() {
    for workers in [2, 4] {
        let (rate, burst) = (1_000_000_000, 200_000);
        let spec = bits(rate, burst);
        let (bank, leases) = metered(&spec, workers);
        let (clock, start) = (AtomicU64::new(0), Barrier::new(workers));
        let run = |lease| {
            start.wait();
            race(&bank, lease, &clock)
        };
        let passed: u64 = thread::scope(|scope| {
            let start = |lease| scope.spawn(|| run(lease));
            let running: Vec<_> = leases.into_iter().map(start).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let exact = rate / 8 / 10 + burst;
        assert!(passed <= exact + workers as u64 * spec.lease(workers), "{passed} of {exact}");
        assert!(passed >= exact * 99 / 100 - burst, "{passed} of {exact}");
        assert_eq!(bank.read(slot(0)).unwrap().green.bytes, passed);
    }
}

#[test]
fn changes_while_threads_send_neither_stop_nor_flood_them() {
    let specs = [bits(1_000_000_000, 200_000), bits(2_000_000_000, 100_000)];
    let (bank, leases) = metered(&specs[0], 2);
    let clock = AtomicU64::new(0);
    let (passed, changes) = thread::scope(|scope| {
        let start = |lease| scope.spawn(|| race(&bank, lease, &clock));
        let running: Vec<_> = leases.into_iter().map(start).collect();
        let (mut changes, mut now_ns) = (0, 0);
        while now_ns < 100_000_000 {
            // Once in 100 us of the threads' time.
            let next_ns = (now_ns + 100_000).min(100_000_000);
            while now_ns < next_ns {
                thread::yield_now();
                now_ns = clock.load(Ordering::Relaxed);
            }
            changes += 1;
            bank.set(slot(0), &specs[changes % 2], now_ns).unwrap();
        }
        let passed: u64 = running.into_iter().map(|thread| thread.join().unwrap()).sum();
        (passed, changes as u64)
    });
    // Between the two rates, but for a portion of each worker at every change.
    let slack = 2 * changes * specs[1].lease(2);
    assert!(passed <= 25_000_000 + 200_000 + slack, "{passed}, {changes} changes");
    assert!(passed >= 12_000_000, "{passed}, {changes} changes");
    assert_eq!(bank.read(slot(0)).unwrap().green.bytes, passed);
}

#[test]
fn an_idle_worker_gives_back_what_others_can_use() {
    let (bank, mut leases) = metered(&bits(1_000_000, 12_000), 2);
    assert_eq!(bits(1_000_000, 12_000).lease(2), 3_000);
    assert_eq!(leases[0].police(&bank, &[slot(0)], 1_000, 5), Ok(Colour::Green));
    let take = |now_ns, lease: &mut MeterLease| {
        let mut packets = 0;
        while lease.police(&bank, &[slot(0)], 1_000, now_ns).is_ok() {
            packets += 1;
        }
        packets
    };
    assert_eq!(take(5, &mut leases[1]), 9);
    leases[0].sweep(&bank, 999_000);
    assert_eq!(take(1_000_005, &mut leases[1]), 0);
    leases[0].sweep(&bank, 2_000_010);
    // 2,000 bytes given back and 250 earned.
    assert_eq!(take(2_000_020, &mut leases[1]), 2);
    assert_eq!(take(8_000_020, &mut leases[1]), 1);
}

#[test]
fn a_long_idle_gives_one_burst() {
    let (bank, mut leases) = metered(&bits(8_000_000, 10_000), 1);
    for now_ns in [0, 3_600 * S, 1_000_000 * S, u64::MAX / 2] {
        assert_eq!(leases[0].police(&bank, &[slot(0)], 500, now_ns), Ok(Colour::Green));
        let mut passed = 500;
        while leases[0].police(&bank, &[slot(0)], 500, now_ns).is_ok() {
            passed += 500;
        }
        assert_eq!(passed, 10_000);
    }
}

#[test]
fn a_clock_that_jumps_ahead_and_back_costs_a_burst_or_a_second_at_most() {
    let (bank, mut leases) = metered(&bits(8_000_000, 10_000), 1);
    let far = (100_000 * S, S / 10, 100_000);
    assert!(flood(&bank, &mut leases, 500, far) > 100_000);
    // Back by hours: the bucket starts empty.
    let passed = flood(&bank, &mut leases, 500, (50 * S, S, 100_000));
    assert!((990_000..=1_005_000).contains(&passed), "{passed}");
    // Back by half a second: it waits for its time to come.
    let passed = flood(&bank, &mut leases, 500, (50 * S + S / 2, S, 100_000));
    assert!((490_000..=510_000).contains(&passed), "{passed}");
}
