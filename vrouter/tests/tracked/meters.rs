//! Rates: what a port, a group of ports or a tenant may send and receive, over simulated seconds.

use flowtable::DropReason;
use flowtable::entry::{Entry, EntryKey, MeterEntry, MeterUnit, Op, QosEntry};
use flowtable::ids::{Dscp, MeterId, PortId};
use flowtable::meter::Band;
use packet_io::QueueId;
use packet_io::memory::{Sink, Tally};

use super::*;
use crate::fabric::frames::tagged_as;
use crate::fabric::{A1, A2, A9, B1, Host, R1, R2, WIRE};

const RED_METER: Fate = Err(DropReason::RateLimit);

pub(super) fn id(id: u32) -> MeterId {
    MeterId::new(id).unwrap()
}

/// A meter of bits per second that lets 10 ms pass at once, at least ten full frames.
pub(super) fn meter(number: u32, rate: u64) -> Entry {
    let committed = Band { rate, burst: (rate / 800).max(15_180) };
    let (unit, peak) = (MeterUnit::Bits, None);
    Entry::Meter(MeterEntry { meter: id(number), unit, committed, peak, yellow_dscp: None })
}

pub(super) fn qos(port: PortId, from: &[u32], to: &[u32]) -> Entry {
    let ids = |numbers: &[u32]| numbers.iter().map(|number| id(*number)).collect();
    Entry::Qos(QosEntry { port, from: ids(from), to: ids(to), dscp: None })
}

/// A UDP packet with a frame of this length.
pub(super) fn sized(from: &Host, to: &Host, len: usize) -> Packet {
    let packet = if from.bd == to.bd { from.to(to) } else { from.via_gateway(to) };
    Packet { payload: vec![0x55; len - 42], ..packet }
}

/// Packets sent evenly over time: per second of simulated time, in bits of the tenant's frames.
struct Load {
    /// One packet of each sender in turn.
    senders: Vec<(Host, Host)>,
    len: usize,
    offered: u64,
}

impl Load {
    /// Bits per second that leave, over `seconds`, after the first burst has gone.
    fn achieved(&self, fabric: &mut Fabric, seconds: u64) -> u64 {
        let frames = self.senders.iter().map(|(from, to)| {
            let (port, frame) = sent(from, &sized(from, to, self.len));
            if port == UPLINK {
                (WIRE, frame)
            } else {
                (QueueId::TRUNK, tagged_as(0x8100, port.get(), &frame))
            }
        });
        let frames: Vec<_> = frames.collect();
        for queue in [QueueId::TRUNK, WIRE] {
            fabric.worker.io_mut().set_sink(queue, Sink::Tally(Tally::default()));
        }
        let step = self.len as u64 * 8 * SECOND / self.offered;
        let mut frames = frames.iter().cycle();
        let mut run = |ns: u64| {
            let end = fabric.now_ns + ns;
            while fabric.now_ns < end {
                fabric.now_ns += step;
                let (queue, bytes) = frames.next().unwrap();
                fabric.inject_raw(*queue, bytes);
                fabric.worker.poll(fabric.now_ns);
            }
            let sent = |queue| fabric.worker.io_mut().tally(queue).unwrap().packets;
            [QueueId::TRUNK, WIRE].map(sent).iter().sum::<u64>()
        };
        let before = run(SECOND / 10);
        let after = run(seconds * SECOND);
        for queue in [QueueId::TRUNK, WIRE] {
            fabric.worker.io_mut().set_sink(queue, Sink::Keep);
        }
        (after - before) * self.len as u64 * 8 / seconds
    }
}

/// Within 2 %.
fn assert_rate(achieved: u64, rate: u64, what: &str) {
    let error = achieved.abs_diff(rate);
    assert!(error * 50 < rate, "{what}: {achieved} instead of {rate}");
}

#[test]
fn qos_1_a_port_gets_its_rate_within_two_percent_at_every_size() {
    for len in [64, 512, 1500] {
        for rate in [6_000_000, 16_000_000] {
            // Sent here, received here, to and from another node.
            for (from, to, at) in
                [(A1, A2, "from"), (A1, A2, "to"), (A1, A9, "from"), (A9, A2, "to"), (A1, B1, "to")]
            {
                let qos = match at {
                    "from" => qos(from.port(), &[1], &[]),
                    _ => qos(to.port(), &[], &[1]),
                };
                let mut fabric = with([meter(1, rate), qos]);
                let load = Load { senders: vec![(from, to)], len, offered: rate * 2 };
                let achieved = load.achieved(&mut fabric, 2);
                assert_rate(achieved, rate, &format!("{len} bytes {at}"));
            }
        }
    }
}

#[test]
fn qos_1_what_is_below_the_rate_loses_nothing() {
    let mut fabric = with([meter(1, 10_000_000), qos(A1.port(), &[1], &[])]);
    let load = Load { senders: vec![(A1, A2)], len: 1500, offered: 9_800_000 };
    let achieved = load.achieved(&mut fabric, 2);
    assert_rate(achieved, 9_800_000, "offered");
    assert_eq!(fabric.engine.meter(id(1)).unwrap().red.packets, 0);
}

#[test]
fn qos_1_the_other_direction_and_other_ports_are_not_limited() {
    let mut fabric = with([meter(1, 1_000_000), qos(A1.port(), &[1], &[])]);
    for (from, to) in [(A2, A1), (B1, A2), (A9, A1)] {
        let load = Load { senders: vec![(from, to)], len: 512, offered: 20_000_000 };
        assert_rate(load.achieved(&mut fabric, 1), 20_000_000, "unlimited");
    }
}

#[test]
fn qos_3_ports_that_share_a_meter_share_its_rate() {
    let rate = 10_000_000;
    let mut fabric = with([meter(1, rate), qos(A1.port(), &[1], &[]), qos(A2.port(), &[1], &[])]);
    let load = Load { senders: vec![(A1, B1), (A2, B1)], len: 512, offered: 3 * rate };
    assert_rate(load.achieved(&mut fabric, 2), rate, "both");
    // And one alone gets all of it.
    let load = Load { senders: vec![(A2, B1)], len: 512, offered: 3 * rate };
    assert_rate(load.achieved(&mut fabric, 2), rate, "one");
}

#[test]
fn qos_3_the_lowest_of_all_meters_holds_and_a_packet_pays_all_or_none() {
    let meters = [meter(1, 8_000_000), meter(2, 4_000_000), meter(3, 16_000_000)];
    let ports = [qos(A1.port(), &[1, 3], &[]), qos(A2.port(), &[], &[2])];
    let mut fabric = with(meters.into_iter().chain(ports));
    let load = Load { senders: vec![(A1, A2)], len: 512, offered: 12_000_000 };
    assert_rate(load.achieved(&mut fabric, 2), 4_000_000, "the lowest");
    // What the second refused was not charged to the others: they have room for as much again.
    let passed = |number| fabric.engine.meter(id(number)).unwrap().green;
    assert_eq!(passed(1), passed(2));
    assert_eq!(passed(3), passed(2));
    let refused = fabric.engine.meter(id(2)).unwrap().red.packets;
    assert_eq!(fabric.engine.meter(id(1)).unwrap().red.packets, 0);
    let dropped = fabric.engine.drops();
    let dropped = dropped.iter().find(|(reason, _)| *reason == DropReason::RateLimit).unwrap().1;
    assert_eq!(dropped.packets, refused);
}

#[test]
fn qos_1_a_rate_changes_live() {
    let mut fabric = with([meter(1, 16_000_000), qos(A1.port(), &[1], &[])]);
    for rate in [16_000_000, 6_000_000, 12_000_000] {
        fabric.put([meter(1, rate)]);
        let load = Load { senders: vec![(A1, A2)], len: 512, offered: 32_000_000 };
        assert_rate(load.achieved(&mut fabric, 2), rate, "after the change");
    }
}

/// Sends full frames until one is red; how many passed.
fn drain(fabric: &mut Fabric) -> usize {
    let passes = |_: &usize| {
        let arrived = fate(&send(fabric, &A1, &sized(&A1, &A2, 1500)));
        assert!([Ok(()), RED_METER].contains(&arrived), "{arrived:?}");
        arrived.is_ok()
    };
    (0..1000).take_while(passes).count()
}

#[test]
fn qos_1_the_burst_is_honoured_and_a_live_change_is_no_burst() {
    let mut fabric = with([meter(1, 8_000_000), qos(A1.port(), &[1], &[])]);
    // 15,180 bytes.
    assert_eq!(drain(&mut fabric), 10);
    fabric.put([meter(1, 16_000_000)]);
    assert_eq!(drain(&mut fabric), 0, "tokens are kept");
    fabric.put([meter(1, 8_000_000), qos(A1.port(), &[1], &[1])]);
    assert_eq!(drain(&mut fabric), 0, "also by who is charged");
    fabric.wait(15 * 1_000_000);
    assert_eq!(drain(&mut fabric), 10, "15 ms at 8 Mbit/s are 15,000 bytes");
}

#[test]
fn qos_1_a_meter_or_qos_entry_that_is_gone_leaves_no_limit() {
    let limited = || {
        let mut fabric = with([meter(1, 1_000_000), qos(A1.port(), &[1], &[])]);
        assert_eq!(drain(&mut fabric), 10);
        fabric
    };
    let gone = [
        vec![Op::Delete(EntryKey::Qos(A1.port()))],
        vec![Op::Delete(EntryKey::Qos(A1.port())), Op::Delete(EntryKey::Meter(id(1)))],
        vec![Op::Put(qos(A1.port(), &[], &[]))],
    ];
    for ops in gone {
        let mut fabric = limited();
        fabric.write(&ops);
        assert_eq!(drain(&mut fabric), 1000, "{ops:?}");
        // A new meter in its place starts afresh.
        fabric.put([meter(2, 1_000_000), qos(A1.port(), &[2], &[])]);
        assert_eq!(drain(&mut fabric), 10, "{ops:?}");
    }
}

#[test]
fn qos_1_a_meter_of_one_tenant_is_not_charged_for_another() {
    let mut fabric = with([meter(1, 1_000_000), qos(A1.port(), &[1], &[])]);
    assert_eq!(drain(&mut fabric), 10);
    for _ in 0..50 {
        assert_eq!(fate(&send(&mut fabric, &R1, &sized(&R1, &R2, 1500))), Ok(()));
    }
}

#[test]
fn qos_1_a_tunnel_s_headers_are_not_charged() {
    let mut fabric = with([meter(1, 8_000_000), qos(A2.port(), &[], &[1])]);
    for _ in 0..10 {
        assert_eq!(fate(&send(&mut fabric, &A9, &sized(&A9, &A2, 1500))), Ok(()));
    }
    assert_eq!(fate(&send(&mut fabric, &A9, &sized(&A9, &A2, 1500))), RED_METER);
    assert_eq!(fabric.engine.meter(id(1)).unwrap().green.bytes, 15_000);
}

/// A meter with a peak, and a mark for what is between.
pub(super) fn three_colours(number: u32, committed: u64, yellow: Option<u32>) -> Entry {
    Entry::Meter(MeterEntry {
        meter: id(number),
        unit: MeterUnit::Packets,
        committed: Band { rate: 1, burst: committed },
        peak: Some(Band { rate: 1, burst: 10 }),
        yellow_dscp: yellow.map(|dscp| Dscp::new(dscp).unwrap()),
    })
}

/// DSCP of packets that arrive, one after the other, until one does not.
fn marks(fabric: &mut Fabric) -> Vec<u8> {
    let mark = || {
        let delivered = send(fabric, &A1, &A1.to(&A2).class(7 << 2));
        delivered.out.first().map(|(_, frame)| frame[15] >> 2)
    };
    std::iter::from_fn(mark).take(100).collect()
}

#[test]
fn qos_1_yellow_packets_are_marked_and_red_ones_dropped() {
    let mut fabric = with([three_colours(1, 4, Some(11)), qos(A1.port(), &[1], &[])]);
    assert_eq!(marks(&mut fabric), [7, 7, 7, 7, 11, 11, 11, 11, 11, 11]);
    let counts = fabric.engine.meter(id(1)).unwrap();
    let packets = [counts.green, counts.yellow, counts.red].map(|tally| tally.packets);
    assert_eq!(packets, [4, 6, 1]);
    let mut fabric = with([three_colours(1, 4, None), qos(A1.port(), &[1], &[])]);
    assert_eq!(marks(&mut fabric), [7; 10]);
}

#[test]
fn qos_1_the_mark_is_that_of_the_meter_that_was_yellow() {
    let meters = [three_colours(1, 10, Some(11)), three_colours(2, 4, Some(12))];
    let mut fabric = with(meters.into_iter().chain([qos(A1.port(), &[1, 2], &[])]));
    assert_eq!(marks(&mut fabric), [7, 7, 7, 7, 12, 12, 12, 12, 12, 12]);
}
