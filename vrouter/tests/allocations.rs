//! A packet of a cached flow costs no heap allocation, whatever is done to it. One test in a binary
//! of its own, because the count is that of the whole process.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the other tests use the rest")]
mod fabric;

use std::alloc::System;

use flowtable::entry::{
    Direction, Entry, MeterEntry, MeterUnit, Op, Permit, PortEntry, QosEntry, RuleEntry,
};
use flowtable::ids::{MeterId, PortId, RuleId};
use flowtable::meter::Band;
use packet_io::QueueId;
use packet_io::memory::{Feed, Sink, Tally};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, Stats, StatsAlloc};

use vrouter::EngineConfig;

use fabric::frames::{L4, Packet, tagged, tagged_as, vxlan};
use fabric::{
    A1, A2, A8, A9, B1, BLUE, Fabric, Host, UPLINK, V1, V9, VID_V, VNI_A, WIRE, from_remote,
};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Flows of each kind; more than a burst, so that bursts begin and end anywhere.
const FLOWS: u16 = 100;
/// Polls that are measured, each of one burst.
const POLLS: u64 = 50;

/// One kind of traffic.
struct Kind {
    name: &'static str,
    port: PortId,
    frame: fn(u16) -> Vec<u8>,
    /// Where its packets leave, if they do.
    out: Option<QueueId>,
}

fn kinds() -> [Kind; 9] {
    let kind = |name, from: Host, out, frame| Kind { name, port: from.port(), frame, out };
    let wire = |name, frame| Kind { name, port: UPLINK, frame, out: Some(QueueId::TRUNK) };
    let trunk = Some(QueueId::TRUNK);
    [
        kind("bridged", A1, trunk, |flow| A1.to(&A2).l4(L4::Udp(flow, 1)).bytes()),
        kind("routed", A1, trunk, |flow| A1.via_gateway(&B1).l4(L4::Udp(flow, 1)).bytes()),
        kind("VXLAN out", A1, Some(WIRE), |flow| A1.to(&A9).l4(L4::Udp(flow, 1)).bytes()),
        kind("VXLAN out, IPv6", A1, Some(WIRE), |flow| A1.to(&A8).l4(L4::Udp(flow, 1)).bytes()),
        kind("VLAN out", V1, Some(WIRE), |flow| V1.to(&V9).l4(L4::Udp(flow, 1)).bytes()),
        wire("VXLAN in", |flow| {
            let inner = A9.to(&A2).l4(L4::Udp(flow, 1)).bytes();
            vxlan(&from_remote(), VNI_A.get(), &inner)
        }),
        wire("VLAN in", |flow| tagged(VID_V, &V9.to(&V1).l4(L4::Udp(flow, 1)).bytes())),
        kind("denied", A1, None, |flow| A1.to(&A2).l4(L4::Tcp(flow, 9)).bytes()),
        kind("spoofed", A1, None, |flow| A1.to(&A2).src_ip(A9.ip).l4(L4::Udp(flow, 1)).bytes()),
    ]
}

/// What the heap did while `POLLS` bursts of a kind went through, after the flows were cached.
fn measure(kind: &Kind) -> Stats {
    let mut fabric = Fabric::new();
    let deny = RuleEntry {
        protocol: Some(6),
        ..RuleEntry::any(RuleId(1), BLUE, Direction::In, Permit::Deny)
    };
    // Every packet is sampled, and nobody takes the samples: the queue is full most of the time.
    let sampled = PortEntry { sample_rate: 1, ..A1.binding() };
    fabric.put([Entry::Rule(deny), Entry::Port(sampled)]);
    let queue = if kind.port == UPLINK { WIRE } else { QueueId::TRUNK };
    let frame = |flow| match queue {
        WIRE => (kind.frame)(flow),
        _ => tagged_as(0x8100, kind.port.get(), &(kind.frame)(flow)),
    };
    let io = fabric.worker.io_mut();
    io.set_feed(queue, Feed::new((0..FLOWS).map(frame).collect()));
    for queue in [QueueId::TRUNK, WIRE] {
        io.set_sink(queue, Sink::Tally(Tally::default()));
    }
    for _ in 0..4 {
        assert_eq!(fabric.worker.poll(0), vrouter::BURST);
    }
    let before = fabric.engine.cache();
    assert_eq!(before.entries, u64::from(FLOWS), "{}", kind.name);
    let region = Region::new(HEAP);
    for now in 0..POLLS {
        fabric.worker.poll(now);
    }
    let stats = region.change();
    let after = fabric.engine.cache();
    let packets = POLLS * vrouter::BURST as u64;
    assert_eq!(after.exact_hits - before.exact_hits, packets, "{}", kind.name);
    let sent = |queue| fabric.worker.io_mut().tally(queue).unwrap().packets;
    let out = [QueueId::TRUNK, WIRE].map(sent);
    let all = packets + 4 * vrouter::BURST as u64;
    let expected = [QueueId::TRUNK, WIRE].map(|q| if kind.out == Some(q) { all } else { 0 });
    assert_eq!(out, expected, "{}", kind.name);
    stats
}

/// Flows whose tables have changed: the packet after the change walks the new ones.
fn measure_walks() -> Vec<Stats> {
    let mut fabric = Fabric::new();
    let frame = tagged_as(0x8100, A1.port().get(), &A1.to(&A9).bytes());
    let mut changed = Vec::new();
    for entry in fabric::tables() {
        fabric.inject_raw(QueueId::TRUNK, &frame);
        fabric.worker.poll(0);
        fabric.write(&[Op::Delete(entry.key())]);
        fabric.put([entry]);
        // The first poll of a new snapshot frees the one before, which nobody else holds here.
        fabric.worker.poll(0);
        fabric.inject_raw(QueueId::TRUNK, &frame);
        let walked = fabric.engine.cache().pipeline;
        let region = Region::new(HEAP);
        fabric.worker.poll(0);
        let stats = region.change();
        assert_eq!(fabric.engine.cache().pipeline, walked + 1);
        changed.push(stats);
        fabric.worker.io_mut().take_sent(WIRE);
    }
    changed
}

/// Connections of a tracked tenant, both directions of each, with meters at both ends.
fn measure_connections() -> Stats {
    let mut fabric = Fabric::stateful(&EngineConfig::default());
    let (meter, unit) = (MeterId::MIN, MeterUnit::Bits);
    let band = Band { rate: 400_000_000_000, burst: 1_000_000_000 };
    let entry = MeterEntry { meter, unit, committed: band, peak: Some(band), yellow_dscp: None };
    let qos = |port| QosEntry { port, from: vec![meter], to: vec![meter], dscp: None };
    let tables = [A1, A2].map(|host| Entry::Qos(qos(host.port())));
    fabric.put(tables.into_iter().chain([Entry::Meter(entry)]));
    let frames = |flags: [u8; 3]| {
        let segment = |port: PortId, packet: Packet| tagged_as(0x8100, port.get(), &packet.bytes());
        let ways = [(A1, A2), (A2, A1), (A1, A2)].into_iter().zip(flags);
        let of = move |flow: u16| {
            ways.clone().map(move |((from, to), flags)| {
                let ports = [(80, flow), (flow, 80)];
                let (src, dst) = ports[usize::from(from.ip == A1.ip)];
                segment(from.port(), from.to(&to).l4(L4::Segment(src, dst, flags)))
            })
        };
        (1000..1000 + FLOWS).flat_map(of).collect::<Vec<_>>()
    };
    fabric.worker.io_mut().set_sink(QueueId::TRUNK, Sink::Tally(Tally::default()));
    for frame in frames([2, 0x12, 0x10]) {
        fabric.inject_raw(QueueId::TRUNK, &frame);
        fabric.worker.poll(1);
    }
    assert_eq!(fabric.engine.connection_counts().half_open, 0);
    let feed = Feed::new(frames([0x10, 0x10, 0x18]));
    fabric.worker.io_mut().set_feed(QueueId::TRUNK, feed);
    (0..10).for_each(|_| assert_eq!(fabric.worker.poll(1), vrouter::BURST));
    let before = fabric.engine.cache();
    let region = Region::new(HEAP);
    for poll in 0..POLLS {
        // Over several seconds: connections are asked, and the table swept.
        fabric.worker.poll(1 + poll * 100_000_000);
    }
    let stats = region.change();
    let (after, packets) = (fabric.engine.cache(), POLLS * vrouter::BURST as u64);
    assert_eq!(after.exact_hits - before.exact_hits, packets);
    let charged = fabric.engine.meter(meter).unwrap().green.packets;
    assert!(charged > packets, "{charged}");
    stats
}

#[test]
fn a_packet_of_a_known_flow_allocates_nothing() {
    for kind in kinds() {
        assert_eq!(measure(&kind), Stats::default(), "{}", kind.name);
    }
    let walks = measure_walks();
    assert!(walks.iter().all(|stats| *stats == Stats::default()), "{walks:?}");
    assert_eq!(measure_connections(), Stats::default(), "connections");
    // The count works: a packet for the slow path is copied.
    let mut fabric = Fabric::new();
    fabric.inject(A1.port(), &A1.asks(A2.ip));
    let region = Region::new(HEAP);
    fabric.worker.poll(0);
    assert!(region.change().allocations > 0);
}
