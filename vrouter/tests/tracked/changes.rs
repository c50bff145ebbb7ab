//! What a change of policy does to connections that are there.

use flowtable::entry::{Direction, Entry, EntryKey, Op, Permit, RuleEntry, Tracking};

use super::*;
use crate::fabric::{A1, A2, A9};

fn deny(id: u64, direction: Direction) -> Entry {
    Entry::Rule(RuleEntry { priority: 50, ..rule(id, direction, Permit::Deny) })
}

/// Contiv's: a rule that denies TCP without a port stops SYNs alone.
#[test]
fn d09_a_denied_connection_is_cut_and_not_its_syns_alone() {
    pol_5_a_denied_connection_is_cut_in_both_directions_at_the_next_packet();
}

#[test]
fn pol_5_a_denied_connection_is_cut_in_both_directions_at_the_next_packet() {
    for peer in [A2, A9] {
        let mut fabric = with([]);
        connect(&mut fabric, (&A1, 1000), (&peer, 80));
        fabric.put([deny(1, Direction::Out)]);
        assert_eq!(says(&mut fabric, &A1, &peer, L4::Segment(1000, 80, ACK)), DENIED);
        assert_eq!(says(&mut fabric, &peer, &A1, L4::Segment(80, 1000, ACK)), DENIED);
        // An allowed one goes on where it was.
        fabric.write(&[Op::Delete(EntryKey::Rule(RuleId(1), 0))]);
        assert_eq!(says(&mut fabric, &peer, &A1, L4::Segment(80, 1000, ACK)), Ok(()));
        assert_eq!(says(&mut fabric, &A1, &peer, L4::Segment(1000, 80, ACK)), Ok(()));
    }
}

#[test]
fn pol_5_the_reply_is_cut_first_when_it_comes_first() {
    let mut fabric = with([]);
    connect(&mut fabric, (&A1, 1000), (&A2, 80));
    fabric.put([deny(1, Direction::In)]);
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1000, ACK)), DENIED);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, ACK)), DENIED);
}

#[test]
fn pol_5_a_rule_against_the_reply_s_direction_cuts_nothing() {
    let mut fabric = with([]);
    connect(&mut fabric, (&A1, 1000), (&A2, 80));
    let Entry::Rule(in_rule) = deny(1, Direction::In) else { unreachable!() };
    fabric.put([Entry::Rule(RuleEntry { dst_group: Some(A1.group), ..in_rule })]);
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1000, ACK)), Ok(()));
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(81, 1000, SYN)), DENIED);
}

#[test]
fn pol_5_a_connection_may_finish_where_the_tenant_says_so() {
    let mut fabric = with([Entry::Tenant(finishing())]);
    connect(&mut fabric, (&A1, 1000), (&A2, 80));
    fabric.put([deny(1, Direction::Out), deny(2, Direction::In)]);
    for _ in 0..3 {
        assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, ACK)), Ok(()));
        assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1000, ACK)), Ok(()));
        fabric.wait(2 * SECOND);
    }
    // Nothing new, also not by what the caches have kept of the old one.
    for flags in [SYN, ACK] {
        assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1001, 80, flags)), DENIED);
    }
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, FIN)), Ok(()));
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1000, FIN)), Ok(()));
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, SYN)), DENIED, "it has ended");
}

#[test]
fn pol_5_a_tenant_that_lets_finish_no_more_cuts_at_the_next_packet() {
    let mut fabric = with([Entry::Tenant(finishing())]);
    connect(&mut fabric, (&A1, 1000), (&A2, 80));
    fabric.put([deny(1, Direction::Out)]);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, ACK)), Ok(()));
    fabric.put([Entry::Tenant(tenant(Permit::Allow))]);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, ACK)), DENIED);
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1000, ACK)), DENIED);
}

#[test]
fn a_tenant_s_default_cuts_too() {
    let mut fabric = with([Entry::Tenant(tenant(Permit::Allow))]);
    connect(&mut fabric, (&A1, 1000), (&A2, 80));
    fabric.put([Entry::Tenant(tenant(Permit::Deny))]);
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1000, ACK)), DENIED);
}

#[test]
fn a_tenant_may_become_stateless_and_tracked_again() {
    let mut fabric = with([]);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, ACK)), STRAY);
    let stateless = TenantEntry { tracking: Tracking::Stateless, ..tenant(Permit::Allow) };
    fabric.put([Entry::Tenant(stateless)]);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, ACK)), Ok(()));
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, ACK)), Ok(()));
    fabric.put([Entry::Tenant(tenant(Permit::Allow))]);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, ACK)), STRAY);
}
