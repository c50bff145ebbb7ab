//! Later fragments, which have no ports, follow their first.

use flowtable::DropReason;
use flowtable::entry::{Entry, Permit};

use super::*;
use crate::fabric::{A1, A2, A9, BLUE};

const ORPHAN: Fate = Err(DropReason::Fragment);

fn first(from: &Host, to: &Host, id: u16, l4: L4) -> Packet {
    Packet { id, ..from.to(to).l4(l4) }.first_fragment()
}

fn later(from: &Host, to: &Host, id: u16, l4: L4) -> Packet {
    Packet { id, ..from.to(to).l4(l4) }.later_fragment(5)
}

#[test]
fn a_later_fragment_passes_after_its_first_and_not_without() {
    let udp = L4::Udp(1000, 53);
    for peer in [A2, A9] {
        let mut fabric = with([]);
        assert_eq!(fate(&send(&mut fabric, &peer, &later(&peer, &A1, 1, udp))), ORPHAN);
        assert_eq!(fate(&send(&mut fabric, &peer, &first(&peer, &A1, 1, udp))), Ok(()));
        for _ in 0..3 {
            assert_eq!(fate(&send(&mut fabric, &peer, &later(&peer, &A1, 1, udp))), Ok(()));
        }
        assert_eq!(fate(&send(&mut fabric, &peer, &later(&peer, &A1, 2, udp))), ORPHAN);
        let other = later(&peer, &A1, 1, L4::Segment(1, 2, ACK));
        assert_eq!(fate(&send(&mut fabric, &peer, &other)), ORPHAN, "another protocol");
        fabric.wait(29 * SECOND);
        assert_eq!(fate(&send(&mut fabric, &peer, &later(&peer, &A1, 1, udp))), Ok(()));
        fabric.wait(SECOND);
        assert_eq!(fate(&send(&mut fabric, &peer, &later(&peer, &A1, 1, udp))), ORPHAN);
    }
}

#[test]
fn the_later_fragments_of_a_denied_packet_are_dropped() {
    let denied = L4::Udp(1000, 54);
    let entries = open_to(17, 53).into_iter().chain([Entry::Tenant(tenant(Permit::Deny))]);
    let mut fabric = with(entries);
    assert_eq!(fate(&send(&mut fabric, &A1, &first(&A1, &A2, 1, denied))), DENIED);
    assert_eq!(fate(&send(&mut fabric, &A1, &later(&A1, &A2, 1, denied))), DENIED);
    let allowed = L4::Udp(1000, 53);
    assert_eq!(fate(&send(&mut fabric, &A1, &first(&A1, &A2, 2, allowed))), Ok(()));
    assert_eq!(fate(&send(&mut fabric, &A1, &later(&A1, &A2, 2, allowed))), Ok(()));
    // A reply's fragments follow the reply.
    let reply = L4::Udp(53, 1000);
    assert_eq!(fate(&send(&mut fabric, &A2, &first(&A2, &A1, 3, reply))), Ok(()));
    assert_eq!(fate(&send(&mut fabric, &A2, &later(&A2, &A1, 3, reply))), Ok(()));
}

#[test]
fn every_first_fragment_of_a_cached_flow_is_noted() {
    // A connection, and messages that no connection is made of.
    for l4 in [L4::Udp(1000, 53), L4::Icmp(13, 0, 0)] {
        let mut fabric = with([]);
        for id in 1..100 {
            assert_eq!(fate(&send(&mut fabric, &A1, &first(&A1, &A2, id, l4))), Ok(()));
            assert_eq!(fate(&send(&mut fabric, &A1, &later(&A1, &A2, id, l4))), Ok(()), "{id}");
        }
    }
}

#[test]
fn fragments_of_stateless_tenants_are_judged_by_themselves() {
    let mut fabric = with([fabric::stateless(BLUE, Permit::Allow)]);
    assert_eq!(fate(&send(&mut fabric, &A1, &later(&A1, &A2, 1, L4::Udp(1, 2)))), Ok(()));
}

#[test]
fn dbg_1_a_trace_knows_what_became_of_the_first_fragment() {
    let udp = L4::Udp(1000, 53);
    let mut fabric = with([]);
    let verdict = |fabric: &Fabric, packet: &Packet| {
        let (port, frame) = sent(&A1, packet);
        fabric.engine.trace(port, &frame).verdict
    };
    let orphan = flowtable::Verdict::Drop(DropReason::Fragment);
    assert_eq!(verdict(&fabric, &later(&A1, &A2, 1, udp)), orphan);
    let passes = verdict(&fabric, &first(&A1, &A2, 1, udp));
    assert_eq!(verdict(&fabric, &later(&A1, &A2, 1, udp)), orphan, "a trace leaves nothing");
    assert_eq!(fate(&send(&mut fabric, &A1, &first(&A1, &A2, 1, udp))), Ok(()));
    assert_eq!(verdict(&fabric, &later(&A1, &A2, 1, udp)), passes);
}
