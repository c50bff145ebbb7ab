//! The log of dropped packets: who, what, why and by which rule, within a budget per tenant.

use flowtable::DropReason;
use flowtable::entry::{Direction, Entry, Permit, RuleEntry};
use flowtable::ids::Group;
use vrouter::Dropped;

use super::*;
use crate::fabric::{A1, A2, A9, R1, R2, RED, VNI_R, WEB};

fn logged(fabric: &Fabric) -> Vec<Dropped> {
    let queue = fabric.engine.dropped();
    std::iter::from_fn(|| queue.pop()).collect()
}

fn deny_tcp(id: u64) -> Entry {
    Entry::Rule(RuleEntry { protocol: Some(6), ..rule(id, Direction::In, Permit::Deny) })
}

#[test]
fn pol_7_the_log_names_tenant_group_rule_and_packet() {
    let mut fabric = with([deny_tcp(7)]);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, SYN)), DENIED);
    let [dropped] = logged(&fabric)[..] else { panic!("one packet was dropped") };
    assert_eq!(dropped.reason, DropReason::PolicyDeny);
    assert_eq!(dropped.rule, Some(RuleId(7)));
    assert_eq!((dropped.vrf, dropped.src_group), (Some(BLUE), WEB));
    assert_eq!(dropped.in_port, A1.port());
    let key = dropped.key;
    assert_eq!((key.src_ip(), key.dst_ip()), (Some(A1.ip.into()), Some(A2.ip.into())));
    assert_eq!((key.proto, key.src_port, key.dst_port), (6, 1000, 80));
    let frame = A1.to(&A2).l4(L4::Segment(1000, 80, SYN)).bytes();
    assert_eq!(dropped.frame_len as usize, frame.len());
    assert_eq!((dropped.at_ns, dropped.suppressed), (fabric.now_ns, 0));
}

#[test]
fn pol_7_the_log_names_a_rule_only_where_one_denied() {
    let allow = Entry::Rule(rule(3, Direction::Out, Permit::Allow));
    let mut fabric = with([allow, Entry::Tenant(tenant(Permit::Deny))]);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Udp(1, 2)), DENIED);
    assert_eq!(says(&mut fabric, &A9, &A1, L4::Udp(1, 2)), DENIED);
    let log = logged(&fabric);
    let said: Vec<_> = log.iter().map(|d| (d.reason, d.rule, d.src_group)).collect();
    let denied = DropReason::PolicyDeny;
    assert_eq!(said, [(denied, None, WEB), (denied, None, Group::NONE)]);
    fabric.put([Entry::Tenant(tenant(Permit::Allow))]);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1, 2, ACK)), STRAY);
    let [stray] = logged(&fabric)[..] else { panic!("one packet was dropped") };
    assert_eq!((stray.reason, stray.rule), (DropReason::NoConnection, None));
}

#[test]
fn pol_7_every_drop_of_a_cached_flow_is_logged_too() {
    let mut fabric = with([deny_tcp(7)]);
    for _ in 0..10 {
        assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, SYN)), DENIED);
    }
    let log = logged(&fabric);
    assert_eq!(log.len(), 10);
    assert!(log.iter().all(|dropped| dropped.rule == Some(RuleId(7))));
}

#[test]
fn pol_7_the_log_is_limited_per_tenant_and_says_what_it_left_out() {
    let mut fabric = with([deny_tcp(7)]);
    fabric.put([Entry::Rule(RuleEntry {
        vrf: RED,
        protocol: Some(6),
        ..rule(8, Direction::In, Permit::Deny)
    })]);
    for src in 0..350 {
        assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(src, 80, SYN)), DENIED);
    }
    let log = logged(&fabric);
    assert_eq!(log.len(), 100);
    assert!(log.iter().all(|dropped| dropped.suppressed == 0));
    // Another tenant's drops are not hidden by them.
    assert_eq!(says(&mut fabric, &R1, &R2, L4::Segment(1, 80, SYN)), DENIED);
    let [other] = logged(&fabric)[..] else { panic!("one packet was dropped") };
    assert_eq!((other.vrf, other.rule, other.suppressed), (Some(RED), Some(RuleId(8)), 0));
    // The next one that is logged says how many were not.
    fabric.wait(SECOND);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1, 80, SYN)), DENIED);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1, 80, SYN)), DENIED);
    let left_out: Vec<_> = logged(&fabric).iter().map(|dropped| dropped.suppressed).collect();
    assert_eq!(left_out, [250, 0]);
}

#[test]
fn pol_7_a_log_that_nobody_reads_counts_what_did_not_fit() {
    let mut fabric = with([deny_tcp(7)]);
    let mut sent_count = 0;
    for _ in 0..12 {
        for src in 0..100 {
            assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(src, 80, SYN)), DENIED);
            sent_count += 1;
        }
        fabric.wait(SECOND);
    }
    let log = logged(&fabric);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1, 80, SYN)), DENIED);
    let [last] = logged(&fabric)[..] else { panic!("one packet was dropped") };
    assert!(last.suppressed > 0, "all {sent_count} fitted");
    assert_eq!(log.len() as u64 + last.suppressed, sent_count);
}

#[test]
fn what_is_dropped_for_its_sender_is_logged_for_its_tenant() {
    let mut fabric = with([]);
    let spoofed = A1.to(&A2).src_ip(A9.ip);
    assert_eq!(fate(&send(&mut fabric, &A1, &spoofed)), Err(DropReason::SpoofedIp));
    let inner = A9.to(&A1).bytes();
    let frame = vxlan(&from_remote(), VNI_R.get(), &inner);
    assert_eq!(fate(&fabric.send_at_once(UPLINK, &frame)), Err(DropReason::UnknownEndpoint));
    let said: Vec<_> = logged(&fabric).iter().map(|d| (d.reason, d.vrf, d.in_port)).collect();
    let expected = [
        (DropReason::SpoofedIp, Some(BLUE), A1.port()),
        (DropReason::UnknownEndpoint, Some(RED), UPLINK),
    ];
    assert_eq!(said, expected);
}
