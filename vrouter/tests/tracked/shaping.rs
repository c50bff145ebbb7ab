//! What is above a rate waits for tokens, in order and for a bounded time.

use std::collections::BTreeMap;

use flowtable::DropReason;
use flowtable::entry::{Entry, EntryKey, Op, TcpFlagsMatch};
use vrouter::EngineConfig;

use super::meters::{id, meter, qos, sized, three_colours};
use super::*;
use crate::fabric::{A1, A2, A9, stateless};

const MS: u64 = 1_000_000;

/// A node whose meters let packets wait for 50 ms.
fn shaping(entries: impl IntoIterator<Item = Entry>) -> Fabric {
    let config = EngineConfig { meter_queue_ms: 50, ..EngineConfig::default() };
    configured(&config, entries)
}

/// A1 may send 8 Mbit/s: a full frame in 1.5 ms, and ten of them at once.
fn limited() -> Fabric {
    shaping([meter(1, 8_000_000), qos(A1.port(), &[1], &[])])
}

/// Sends full frames, numbered by their source port; no time goes by.
fn burst(fabric: &mut Fabric, count: u16) -> Vec<Delivered> {
    let frame = |number| sized(&A1, &A2, 1500).l4(L4::Udp(number, 53));
    (0..count).map(|number| send(fabric, &A1, &frame(number))).collect()
}

/// Source ports of what arrives in the next `ms`.
fn arriving(fabric: &mut Fabric, ms: u64) -> Vec<u16> {
    let mut arrived = Vec::new();
    for _ in 0..ms {
        let out = fabric.settle_after(MS).out;
        arrived.extend(out.iter().map(|(_, frame)| u16::from_be_bytes([frame[34], frame[35]])));
    }
    arrived
}

#[test]
fn qos_1_what_is_above_the_rate_leaves_at_the_rate_and_in_order() {
    let mut fabric = limited();
    let sent = burst(&mut fabric, 20);
    assert_eq!(sent.iter().filter(|delivered| delivered.out.len() == 1).count(), 10);
    // 10 frames of 1.5 ms each.
    let first = arriving(&mut fabric, 8);
    assert!((4..=6).contains(&first.len()), "{first:?}");
    let all: Vec<u16> = first.into_iter().chain(arriving(&mut fabric, 9)).collect();
    assert_eq!(all, (10..20).collect::<Vec<_>>());
    let counts = fabric.engine.meter(id(1)).unwrap();
    assert_eq!([counts.green.packets, counts.red.packets], [20, 0]);
}

#[test]
fn qos_1_a_full_line_drops_and_what_it_drops_is_red() {
    let mut fabric = limited();
    // 50 ms at 8 Mbit/s are 50,000 bytes: 33 frames behind the 10 that pass at once.
    let sent = burst(&mut fabric, 60);
    let mut counters = BTreeMap::new();
    for delivered in &sent {
        for (counter, count) in &delivered.counters {
            *counters.entry(*counter).or_insert(0) += count.packets;
        }
    }
    assert_eq!(counters[&Counter::Drop(DropReason::RateLimit)], 17);
    assert_eq!(counters[&Counter::PortDrops(A1.port())], 17);
    assert_eq!(counters[&Counter::Rx(A1.port())], 60);
    assert_eq!(counters[&Counter::Tx(A2.port())], 10);
    assert_eq!(fabric.engine.meter(id(1)).unwrap().red.packets, 17);
    assert_eq!(arriving(&mut fabric, 60).len(), 33);
}

#[test]
fn qos_1_a_packet_that_waited_has_the_mark_of_its_colour() {
    let ports = [qos(A1.port(), &[1], &[]), qos(A2.port(), &[], &[2])];
    let meters = [meter(1, 8_000_000), three_colours(2, 4, Some(11))];
    let mut fabric = shaping(meters.into_iter().chain(ports));
    let mut marks = Vec::new();
    for delivered in burst(&mut fabric, 3) {
        marks.extend(delivered.out.iter().map(|(_, frame)| frame[15] >> 2));
    }
    assert_eq!(marks, [0, 0, 0]);
    // The sender's tokens are used up by another receiver's packets.
    let elsewhere = sized(&A1, &A9, 1500);
    for _ in 0..8 {
        send(&mut fabric, &A1, &elsewhere);
    }
    assert_eq!(burst(&mut fabric, 3).iter().map(|delivered| delivered.out.len()).sum::<usize>(), 0);
    let out = fabric.settle_after(50 * MS).out;
    let waited = out.iter().filter(|(port, _)| *port == A2.port());
    assert_eq!(waited.map(|(_, frame)| frame[15] >> 2).collect::<Vec<_>>(), [0, 11, 11]);
}

#[test]
fn qos_1_a_packet_that_waits_meets_the_tables_of_the_moment_it_leaves() {
    let mut fabric = limited();
    burst(&mut fabric, 20);
    fabric.put([Entry::Rule(rule(7, Direction::Out, Permit::Deny))]);
    let delivered = fabric.settle_after(0);
    assert_eq!(delivered.out, []);
    assert_eq!(delivered.counters[&Counter::Drop(DropReason::PolicyDeny)].packets, 10);
    // A rule counts what comes; these had come before.
    assert_eq!(count(&fabric, 7).packets, 0);
    // Without the meter, nobody waits.
    let mut fabric = limited();
    burst(&mut fabric, 20);
    fabric.write(&[Op::Delete(EntryKey::Qos(A1.port())), Op::Delete(EntryKey::Meter(id(1)))]);
    assert_eq!(fabric.settle_after(0).out.len(), 10);
}

#[test]
fn qos_1_a_rule_that_looks_at_flags_sees_those_of_a_packet_that_waits() {
    // Of a tracked connection, rules see the flags of its first segment.
    let untracked = stateless(BLUE, Permit::Allow);
    let mut fabric = shaping([meter(1, 8_000_000), qos(A1.port(), &[1], &[]), untracked]);
    let segment = |src| sized(&A1, &A2, 1500).l4(L4::Segment(src, 80, SYN));
    for src in 0..11 {
        send(&mut fabric, &A1, &segment(src));
    }
    let syn = Some(TcpFlagsMatch { value: SYN, mask: SYN });
    let deny = rule(7, Direction::Out, Permit::Deny);
    fabric.put([Entry::Rule(RuleEntry { protocol: Some(6), tcp_flags: syn, ..deny })]);
    let delivered = fabric.settle_after(2 * MS);
    assert_eq!(
        delivered.counters.get(&Counter::Drop(DropReason::PolicyDeny)).map(|c| c.packets),
        Some(1)
    );
}
