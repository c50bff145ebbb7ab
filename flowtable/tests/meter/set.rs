//! Meters that change, several meters for one packet, and what a bank refuses.

use flowtable::meter::{
    BadMeter, Band, Colour, MeterCounts, MeterLease, MeterSlot, MeterSpec, NoSuchMeter, Tally, Unit,
};

use super::{S, bits, flood, metered, slot};

#[test]
fn a_change_of_rate_takes_effect_within_a_lease() {
    for (before, after) in [(100_000_000, 10_000_000), (1_000_000, 1_000_000_000)] {
        let (bank, mut leases) = metered(&bits(before, 20_000), 1);
        flood(&bank, &mut leases, 500, (0, S, 50_000));
        bank.set(slot(0), &bits(after, 20_000), S).unwrap();
        let passed = flood(&bank, &mut leases, 500, (S, S / 100, 10_000));
        let exact = after / 8 / 100;
        let lease = bits(before, 20_000).lease(1).max(bits(after, 20_000).lease(1));
        assert!(passed <= exact + 2 * lease, "{passed} of {exact}");
        assert!(passed + 2 * lease >= exact, "{passed} of {exact}");
    }
}

#[test]
fn a_change_keeps_the_tokens_and_the_counts() {
    let (bank, mut leases) = metered(&bits(8_000, 20_000), 1);
    for _ in 0..30 {
        assert_eq!(leases[0].police(&bank, &[slot(0)], 500, S), Ok(Colour::Green));
    }
    bank.set(slot(0), &bits(80_000, 40_000), S).unwrap();
    bank.set(slot(0), &bits(80_000, 40_000), S).unwrap();
    bank.set(slot(0), &bits(1_000, 30_000), S).unwrap();
    let mut passed = 0;
    while leases[0].police(&bank, &[slot(0)], 500, S).is_ok() {
        passed += 500;
    }
    assert_eq!(passed, 5_000);
    let counts = bank.read(slot(0)).unwrap();
    assert_eq!((counts.green.packets, counts.green.bytes), (40, 20_000));
    assert_eq!((counts.red.packets, counts.yellow.packets), (1, 0));
}

#[test]
fn a_change_of_unit_and_a_cleared_slot_start_anew() {
    let (bank, mut leases) = metered(&bits(8_000, 1_518), 1);
    let police = |lease: &mut MeterLease| lease.police(&bank, &[slot(0)], 1_500, S);
    assert_eq!([police(&mut leases[0]), police(&mut leases[0])], [Ok(Colour::Green), Err(slot(0))]);
    let packets = |burst| MeterSpec::new(Unit::Packets, Band { rate: 1, burst }, None).unwrap();
    bank.set(slot(0), &packets(2), S).unwrap();
    let verdicts = [(); 3].map(|()| police(&mut leases[0]));
    assert_eq!(verdicts, [Ok(Colour::Green), Ok(Colour::Green), Err(slot(0))]);
    assert_eq!(bank.read(slot(0)).unwrap().green, Tally { packets: 3, bytes: 4_500 });
    bank.clear(slot(0));
    assert_eq!([(); 9].map(|()| police(&mut leases[0])), [Ok(Colour::Green); 9]);
    assert_eq!(bank.read(slot(0)), Some(MeterCounts::default()));
    bank.set(slot(0), &packets(1), S).unwrap();
    let verdicts = [(); 2].map(|()| police(&mut leases[0]));
    assert_eq!(verdicts, [Ok(Colour::Green), Err(slot(0))]);
    let one = Tally { packets: 1, bytes: 1_500 };
    let counts = MeterCounts { green: one, yellow: Tally::default(), red: one };
    assert_eq!(bank.read(slot(0)), Some(counts));
}

#[test]
fn a_packet_that_one_meter_refuses_takes_nothing_from_the_others() {
    let (bank, mut leases) = metered(&bits(8_000, 10_000), 1);
    bank.set(slot(1), &bits(8_000, 1_518), 0).unwrap();
    let both = [slot(0), MeterSlot::NONE, slot(1), slot(3)];
    assert_eq!(leases[0].police(&bank, &both, 1_000, 9), Ok(Colour::Green));
    for _ in 0..100 {
        assert_eq!(leases[0].police(&bank, &both, 1_000, 9), Err(slot(1)));
    }
    assert_eq!(leases[0].police(&bank, &[slot(0)], 9_000, 9), Ok(Colour::Green));
    assert_eq!(leases[0].police(&bank, &[slot(0)], 2, 9), Err(slot(0)));
    let counts = [0, 1].map(|number| bank.read(slot(number)).unwrap());
    assert_eq!(counts[0].green, Tally { packets: 2, bytes: 10_000 });
    assert_eq!(counts[0].red, Tally { packets: 1, bytes: 2 });
    assert_eq!(counts[1].red, Tally { packets: 100, bytes: 100_000 });
}

#[test]
fn a_slot_named_twice_is_paid_once() {
    let (bank, mut leases) = metered(&bits(8_000, 2_000), 1);
    let twice = [slot(0), slot(0)];
    assert_eq!(leases[0].police(&bank, &twice, 2_000, 9), Ok(Colour::Green));
    assert_eq!(bank.read(slot(0)).unwrap().green, Tally { packets: 1, bytes: 2_000 });
}

#[test]
fn the_worst_colour_of_several_meters_is_the_result() {
    let committed = Band { rate: 8_000, burst: 1_518 };
    let peak = Some(Band { rate: 8_000, burst: 3_036 });
    let (bank, mut leases) = metered(&MeterSpec::new(Unit::Bits, committed, peak).unwrap(), 1);
    bank.set(slot(1), &bits(8_000, 30_000), 0).unwrap();
    let verdicts = [(); 3].map(|()| leases[0].police(&bank, &[slot(0), slot(1)], 1_518, 9));
    assert_eq!(verdicts, [Ok(Colour::Green), Ok(Colour::Yellow), Err(slot(0))]);
    assert_eq!(bank.read(slot(1)).unwrap().green, Tally { packets: 2, bytes: 3_036 });
}

#[test]
fn a_frame_too_large_for_any_price_is_refused() {
    let (bank, mut leases) = metered(&bits(1_000, 1_000_000_000), 1);
    assert_eq!(leases[0].police(&bank, &[slot(0)], u32::MAX, 9), Err(slot(0)));
    assert_eq!(leases[0].police(&bank, &[slot(0)], 65_549, 9), Ok(Colour::Green));
}

#[test]
fn refused_parameters_name_the_field_the_value_and_the_range() {
    let refusal = |unit, [rate, burst]: [u64; 2], peak: Option<[u64; 2]>| {
        let peak = peak.map(|[rate, burst]| Band { rate, burst });
        MeterSpec::new(unit, Band { rate, burst }, peak).unwrap_err().to_string()
    };
    let good = [1_000_000, 1_518];
    assert_eq!(
        refusal(Unit::Bits, [0, 1_518], None),
        "committed rate 0 is not in 1000..=400000000000 bits per second"
    );
    assert_eq!(
        refusal(Unit::Bits, good, Some([400_000_000_001, 1_518])),
        "peak rate 400000000001 is not in 1000..=400000000000 bits per second"
    );
    assert_eq!(
        refusal(Unit::Bits, [1_000, 1_517], None),
        "committed burst 1517 is not in 1518..=1000000000 bytes"
    );
    assert_eq!(
        refusal(Unit::Packets, [1_000_000_001, 1], None),
        "committed rate 1000000001 is not in 1..=1000000000 packets per second"
    );
    assert_eq!(
        refusal(Unit::Packets, [1, 1], Some([1, 0])),
        "peak burst 0 is not in 1..=1000000000 packets"
    );
    assert_eq!(
        refusal(Unit::Bits, good, Some([999_999, 1_518])),
        "peak rate 999999 is not in 1000000..=400000000000: it is below the committed rate"
    );
    let refused =
        MeterSpec::new(Unit::Packets, Band { rate: 2, burst: 1 }, Some(Band { rate: 1, burst: 1 }));
    let below = BadMeter::PeakBelowCommitted { value: 1, committed: 2, last: 1_000_000_000 };
    assert_eq!(refused, Err(below));
}

#[test]
fn a_slot_or_worker_that_the_bank_has_not_is_an_error_or_nothing() {
    let (bank, mut leases) = metered(&bits(8_000, 1_518), 1);
    let missing = NoSuchMeter { what: "meter slot", value: 4, end: 4 };
    assert_eq!(bank.set(slot(4), &bits(8_000, 1_518), 0), Err(missing));
    assert_eq!(missing.to_string(), "meter slot 4 is not in 0..4 of this meter bank");
    assert!(bank.set(MeterSlot::NONE, &bits(8_000, 1_518), 0).is_err());
    bank.clear(slot(4));
    assert_eq!((bank.read(slot(4)), bank.read(MeterSlot::NONE)), (None, None));
    assert_eq!(leases[0].police(&bank, &[slot(4)], 60, 0), Ok(Colour::Green));
    let missing = NoSuchMeter { what: "worker", value: 1, end: 1 };
    assert_eq!(MeterLease::new(&bank, 1).map(|_| ()), Err(missing));
    assert!(MeterSlot::new(65_535).is_err());
    assert_eq!(
        (slot(65_534).to_string(), MeterSlot::NONE.to_string()),
        ("65534".into(), "none".into())
    );
}
