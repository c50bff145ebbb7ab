//! What the engine tells of a packet before and after it came: assumed connections, which cache
//! answers, whose meters charge it and what colour it was.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use flowtable::entry::{
    Direction, Entry, MeterEntry, MeterUnit, OnDeny, Permit, QosEntry, RuleEntry, TcpFlagsMatch,
    TenantEntry,
};
use flowtable::ids::{MeterId, RuleId};
use flowtable::key::tcp_flag;
use flowtable::meter::{Band, Colour};
use flowtable::text::CtAssume;
use flowtable::{DropReason, Verdict};
use vrouter::{EngineConfig, LiveTrace, MeterWay, Tier};

use crate::fabric::frames::{L4, vxlan};
use crate::fabric::{
    A1, A2, A9, BLUE, Fabric, R1, R2, UPLINK, VNI_A, from_remote, prefix, stateless,
};

fn rule(id: u64, permit: Permit) -> RuleEntry {
    RuleEntry { priority: 10, ..RuleEntry::any(RuleId(id), BLUE, Direction::Out, permit) }
}

fn watch(fabric: &mut Fabric, filter: &str, count: u32) -> Arc<ArrayQueue<LiveTrace>> {
    let queue = Arc::new(ArrayQueue::new(16));
    fabric.worker.watch(filter.parse().unwrap(), count, Arc::clone(&queue));
    queue
}

fn meters(fabric: &mut Fabric, from: &[(u32, u64)], to: &[(u32, u64)]) {
    let meter = |(id, burst): &(u32, u64)| {
        let meter = MeterId::new(*id).unwrap();
        let committed = Band { rate: 1, burst: *burst };
        let unit = MeterUnit::Packets;
        Entry::Meter(MeterEntry { meter, unit, committed, peak: None, yellow_dscp: None })
    };
    let ids = |list: &[(u32, u64)]| list.iter().map(|(id, _)| MeterId::new(*id).unwrap()).collect();
    let qos = |port, from, to| Entry::Qos(QosEntry { port, from, to, dscp: None });
    let mut entries: Vec<_> = from.iter().chain(to).map(meter).collect();
    entries.push(qos(A1.port(), ids(from), Vec::new()));
    entries.push(qos(A2.port(), Vec::new(), ids(to)));
    fabric.put(entries);
}

#[test]
fn a_trace_assumes_the_connection_it_is_told() {
    let mut fabric = Fabric::stateful(&EngineConfig::default());
    // Whom A2 may answer, it may not begin with.
    fabric.put([Entry::Rule(RuleEntry { src: Some(prefix(A2.ip, 32)), ..rule(1, Permit::Deny) })]);
    let frame = A2.to(&A1).bytes();
    let told = |fabric: &Fabric, assume| {
        let trace = fabric.engine.trace_assuming(A2.port(), &frame, assume);
        (trace.ct_state, matches!(trace.verdict, Verdict::Forward(_)))
    };
    assert_eq!(told(&fabric, CtAssume::New), ("+trk+new", false));
    assert_eq!(told(&fabric, CtAssume::Established), ("+trk+est", false));
    assert_eq!(told(&fabric, CtAssume::Reply), ("+trk+est+rpl", true));
    assert_eq!(told(&fabric, CtAssume::Related), ("+trk+rel", true));
    assert_eq!(fabric.engine.trace(A2.port(), &frame).ct_state, "+trk+new");
    // No segment but a SYN opens a connection, whatever is assumed.
    let mut segment = A1.to(&A2).l4(L4::Tcp(1, 2)).bytes();
    for (flags, state) in [(tcp_flag::SYN, "+trk+new"), (tcp_flag::ACK, "+trk+inv")] {
        segment[14 + 20 + 13] = flags;
        let trace = fabric.engine.trace_assuming(A1.port(), &segment, CtAssume::New);
        assert_eq!(trace.ct_state, state);
    }
    // Where established connections may end by themselves, no rule ends them.
    let finish = TenantEntry { on_deny: OnDeny::Finish, ..TenantEntry::new(BLUE, Permit::Allow) };
    fabric.put([Entry::Tenant(finish)]);
    assert_eq!(told(&fabric, CtAssume::Established), ("+trk+est", true));
    // A stateless tenant has no connections to assume.
    fabric.put([stateless(BLUE, Permit::Allow)]);
    assert_eq!(told(&fabric, CtAssume::Reply), ("", false));
}

#[test]
fn the_tier_that_answers_is_known_without_asking_it() {
    let mut fabric = Fabric::stateful(&EngineConfig::default());
    let frame = A1.to(&A2).bytes();
    let tier = |fabric: &Fabric, frame: &[u8]| fabric.worker.tier(A1.port(), frame);
    assert_eq!(tier(&fabric, &frame), Some(Tier::Pipeline));
    let mut live = watch(&mut fabric, "", 16);
    let answered = |fabric: &mut Fabric, queue: &ArrayQueue<LiveTrace>, frame: &[u8]| {
        let said = fabric.worker.tier(A1.port(), frame);
        fabric.send(A1.port(), frame);
        let shown = queue.pop().unwrap();
        assert_eq!((Some(shown.tier), shown.frame_len), (said, frame.len() as u32));
        shown.tier
    };
    assert_eq!(answered(&mut fabric, &live, &frame), Tier::Pipeline);
    assert_eq!(answered(&mut fabric, &live, &frame), Tier::Exact);
    let other = A1.to(&A2).l4(L4::Udp(7, 8)).bytes();
    assert_eq!(answered(&mut fabric, &live, &other), Tier::Masked);
    let before = fabric.engine.cache();
    assert_eq!(tier(&fabric, &other), Some(Tier::Exact));
    assert_eq!(fabric.engine.cache(), before, "looking counts nothing");
    assert_eq!((before.masked_entries, before.masks), (1, 1));
    // A change of what it depends on is seen at once, and by the answer too.
    fabric.put([Entry::Rule(rule(1, Permit::Allow))]);
    live = watch(&mut fabric, "", 16);
    assert_eq!(answered(&mut fabric, &live, &frame), Tier::Pipeline);
    // A connection that ended takes its flow's answer with it.
    fabric.now_ns += 1_000_000_000_000;
    fabric.settle();
    assert_ne!(tier(&fabric, &frame), Some(Tier::Exact));
    assert_eq!(fabric.worker.tier(A1.port(), &frame[..20]), None);
}

#[test]
fn meters_are_told_by_end_and_by_colour() {
    let mut fabric = Fabric::new();
    meters(&mut fabric, &[(1, 2), (2, 9)], &[(3, 9)]);
    let frame = A1.to(&A2).bytes();
    let told = |trace: &vrouter::Trace| {
        let meters = trace.meters.iter().map(|m| (m.meter.get(), m.way, m.colour));
        meters.collect::<Vec<_>>()
    };
    let (from, to) = (MeterWay::From, MeterWay::To);
    let imagined = fabric.engine.trace(A1.port(), &frame);
    assert_eq!(told(&imagined), [(1, from, None), (2, from, None), (3, to, None)]);
    let live = watch(&mut fabric, "", 16);
    // The first meter lets two packets pass at once.
    for _ in 0..2 {
        fabric.send(A1.port(), &frame);
        let green = Some(Colour::Green);
        let shown = live.pop().unwrap().trace;
        assert_eq!(told(&shown), [(1, from, green), (2, from, green), (3, to, green)]);
    }
    fabric.send(A1.port(), &frame);
    let shown = live.pop().unwrap().trace;
    assert_eq!(shown.verdict, Verdict::Drop(DropReason::RateLimit));
    assert_eq!(told(&shown), [(1, from, Some(Colour::Red)), (2, from, None), (3, to, None)]);
    // What comes from the wire has a receiver only.
    let inner = A9.to(&A2).bytes();
    let outer = from_remote();
    let frame = vxlan(&outer, VNI_A.get(), &inner);
    fabric.send(UPLINK, &frame);
    assert_eq!(told(&live.pop().unwrap().trace), [(3, to, Some(Colour::Green))]);
}

#[test]
fn live_packets_are_chosen_by_tenant_and_by_all_tcp_flags() {
    let mut fabric = Fabric::new();
    let [blue, red] = [A1.to(&A2), R1.to(&R2)].map(|packet| packet.l4(L4::Tcp(1, 2)).bytes());
    let live = watch(&mut fabric, "vrf=2", 16);
    fabric.send(A1.port(), &blue);
    fabric.send(R1.port(), &red);
    let shown = live.pop().unwrap().trace;
    assert_eq!(shown.key.unwrap().in_port, R1.port().get());
    assert!(live.is_empty());
    // No rule looks at flags, so no key holds any.
    let flags = blue[14 + 20 + 13];
    for (filter, shows) in [(flags, true), (!flags & 0x3f, false)] {
        let live = watch(&mut fabric, &format!("tcp,tcp_flags={filter:#x}/0x3f"), 1);
        fabric.send(A1.port(), &blue);
        assert_eq!(live.pop().is_some(), shows, "{filter:#x}");
    }
}

#[test]
fn a_trace_sees_the_tcp_flags_that_rules_look_at() {
    let mut fabric = Fabric::new();
    let frame = A1.to(&A2).l4(L4::Tcp(1, 2)).bytes();
    let flags = frame[14 + 20 + 13];
    for (value, denied) in [(flags, true), (!flags & 0x3f, false)] {
        let tcp_flags = Some(TcpFlagsMatch { value, mask: 0x3f });
        let rule = RuleEntry { protocol: Some(6), tcp_flags, ..rule(1, Permit::Deny) };
        fabric.put([Entry::Rule(rule)]);
        let trace = fabric.engine.trace(A1.port(), &frame);
        let sent = fabric.send(A1.port(), &frame);
        assert_eq!(trace.verdict == Verdict::Drop(DropReason::PolicyDeny), denied);
        assert_eq!(sent.out.is_empty(), denied);
    }
}
