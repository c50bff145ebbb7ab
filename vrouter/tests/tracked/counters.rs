//! Rules count the packets they were asked about, whichever cache answered.

use flowtable::entry::{Direction, Entry, EntryKey, GroupEntry, Op, Permit, RuleEntry};

use super::*;
use crate::fabric::{A1, A2, A9, B1, prefix};

fn packets(packets: u64, len: usize) -> Count {
    Count { packets, bytes: packets * len as u64 }
}

#[test]
fn pol_7_a_rule_counts_what_the_opener_sends_and_no_reply() {
    let mut fabric = with(open_to(6, 80));
    connect(&mut fabric, (&A1, 1000), (&A2, 80));
    for _ in 0..5 {
        assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, ACK)), Ok(()));
        assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1000, ACK)), Ok(()));
    }
    let len = A1.to(&A2).l4(L4::Segment(1000, 80, ACK)).bytes().len();
    // SYN, ACK and five more.
    assert_eq!(count(&fabric, 1), packets(7, len));
    assert_eq!(count(&fabric, 2), packets(7, len));
}

#[test]
fn pol_7_counts_stay_exact_when_the_caches_are_asked_anew() {
    for on_deny in [OnDeny::Cut, OnDeny::Finish] {
        let entry = TenantEntry { on_deny, ..tenant(Permit::Allow) };
        let mut fabric = with(open_to(17, 53).into_iter().chain([Entry::Tenant(entry)]));
        let len = A1.to(&A2).l4(L4::Udp(1000, 53)).bytes().len();
        for sent in 1..=20_u64 {
            assert_eq!(says(&mut fabric, &A1, &A2, L4::Udp(1000, 53)), Ok(()));
            assert_eq!(says(&mut fabric, &A2, &A1, L4::Udp(53, 1000)), Ok(()));
            assert_eq!(count(&fabric, 1), packets(sent, len), "{on_deny:?}");
            assert_eq!(count(&fabric, 2), packets(sent, len), "{on_deny:?}");
            // Something else changes: the decision is made again.
            let (vrf, prefix) = (BLUE, prefix([10, 9, sent as u8, 0], 24));
            fabric.put([Entry::Group(GroupEntry { vrf, prefix, group: A1.group })]);
            fabric.write(&[Op::Delete(EntryKey::Group(vrf, prefix))]);
            let metal = A9.entries();
            fabric.write(&[Op::Delete(metal[1].key()), Op::Put(metal[1].clone())]);
            fabric.write(&[Op::Delete(metal[1].key())]);
            fabric.put([metal[1].clone()]);
        }
    }
}

#[test]
fn pol_7_a_denying_rule_counts_the_replies_it_ends() {
    let mut fabric = with(open_to(6, 80));
    connect(&mut fabric, (&A1, 1000), (&A2, 80));
    let deny = RuleEntry { priority: 50, ..rule(9, Direction::In, Permit::Deny) };
    fabric.put([Entry::Rule(deny)]);
    let before = count(&fabric, 1);
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1000, ACK)), DENIED);
    let len = A1.to(&A2).l4(L4::Segment(1000, 80, ACK)).bytes().len();
    assert_eq!(count(&fabric, 9), packets(1, len));
    assert_eq!(count(&fabric, 1), before, "the reply is not what rule 1 was asked about");
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, ACK)), DENIED);
    assert_eq!(count(&fabric, 9), packets(2, len));
}

/// What is said, what becomes of it, and the rules of sender and receiver.
fn mixed(src: u16) -> [(L4, Fate, [usize; 2]); 3] {
    [
        (L4::Segment(src, 80, SYN), Ok(()), [1, 2]),
        (L4::Udp(src, 53), Ok(()), [3, 4]),
        (L4::Udp(src, 54), DENIED, [5, 5]),
    ]
}

/// Contiv's: violations are declared and never counted.
#[test]
fn d10_what_rules_deny_is_counted() {
    pol_7_counts_equal_the_truth_under_mixed_traffic();
}

#[test]
fn pol_7_counts_equal_the_truth_under_mixed_traffic() {
    let web = open_to(6, 80);
    let dns = open_to(17, 53).map(|entry| {
        let Entry::Rule(rule) = entry else { unreachable!() };
        Entry::Rule(RuleEntry { rule: RuleId(rule.rule.0 + 2), ..rule })
    });
    let rest = Entry::Rule(RuleEntry { priority: 1, ..rule(5, Direction::Out, Permit::Deny) });
    let mut fabric = with(web.into_iter().chain(dns).chain([rest]));
    let mut truth = [(0_u64, 0_u64); 6];
    let mut add = |rules: &[usize], len: usize| {
        for rule in rules {
            truth[*rule].0 += 1;
            truth[*rule].1 += len as u64;
        }
    };
    for round in 0..200_u16 {
        for (from, to) in [(A1, A2), (A2, A1), (B1, A2), (A1, A9)] {
            let via = if from.bd == to.bd { from.to(&to) } else { from.via_gateway(&to) };
            let local = matches!(to.place, NextHop::Local(_));
            for (l4, expected, rules) in mixed(1000 + round % 40) {
                let packet = via.clone().l4(l4);
                assert_eq!(fate(&send(&mut fabric, &from, &packet)), expected, "{l4:?}");
                let asked = usize::from(local && expected.is_ok()) + 1;
                add(&rules[..asked], packet.bytes().len());
            }
        }
        if round % 7 == 0 {
            fabric.wait(SECOND);
        }
    }
    for (rule, (packets, bytes)) in truth.iter().enumerate().skip(1) {
        assert_eq!(count(&fabric, rule as u64), Count { packets: *packets, bytes: *bytes });
    }
}

#[test]
fn pol_9_a_rule_holds_at_both_ends() {
    let deny = |direction| {
        let rule = RuleEntry { protocol: Some(6), ..rule(1, direction, Permit::Deny) };
        Entry::Rule(rule)
    };
    // At the sender, for what goes to another node.
    let mut fabric = with([deny(Direction::Out)]);
    assert_eq!(says(&mut fabric, &A1, &A9, L4::Segment(1, 80, SYN)), DENIED);
    // At the receiver, for what another node should not have sent.
    let mut fabric = with([deny(Direction::In)]);
    assert_eq!(says(&mut fabric, &A9, &A1, L4::Segment(1, 80, SYN)), DENIED);
    assert_eq!(says(&mut fabric, &A9, &A1, L4::Segment(1, 80, ACK)), DENIED);
    assert_eq!(says(&mut fabric, &A9, &A1, L4::Udp(1, 80)), Ok(()));
    // The other direction's rules are the other node's.
    assert_eq!(says(&mut fabric, &A1, &A9, L4::Segment(1, 80, SYN)), Ok(()));
}

#[test]
fn pol_9_a_reply_from_a_tunnel_needs_a_connection_here() {
    let mut fabric = with([Entry::Tenant(tenant(Permit::Deny))].into_iter().chain(open_to(6, 80)));
    assert_eq!(says(&mut fabric, &A9, &A1, L4::Segment(80, 1000, SYN_ACK)), DENIED);
    connect(&mut fabric, (&A1, 1000), (&A9, 80));
    assert_eq!(says(&mut fabric, &A9, &A1, L4::Segment(80, 1000, ACK)), Ok(()));
    assert_eq!(says(&mut fabric, &A9, &A1, L4::Segment(80, 1001, ACK)), DENIED);
}
