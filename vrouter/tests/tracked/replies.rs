//! Replies pass without a rule, and nothing else does.

use flowtable::entry::{Direction, Entry, Permit, PortRange, RuleEntry};

use super::*;
use crate::fabric::{A1, A2, A9};

fn closed_but(protocol: u8, port: u16) -> Fabric {
    let mut entries = vec![Entry::Tenant(tenant(Permit::Deny))];
    entries.extend(open_to(protocol, port));
    with(entries)
}

#[test]
fn pol_3_a_tcp_reply_passes_without_a_rule() {
    for peer in [A2, A9] {
        let mut fabric = closed_but(6, 80);
        connect(&mut fabric, (&A1, 1000), (&peer, 80));
        for _ in 0..3 {
            assert_eq!(says(&mut fabric, &peer, &A1, L4::Segment(80, 1000, ACK)), Ok(()));
            assert_eq!(says(&mut fabric, &A1, &peer, L4::Segment(1000, 80, ACK)), Ok(()));
        }
        assert_eq!(open_count(&fabric, BLUE), 1);
    }
}

#[test]
fn pol_3_a_packet_from_an_allowed_port_that_belongs_to_no_connection_is_dropped() {
    let mut fabric = closed_but(6, 80);
    connect(&mut fabric, (&A1, 1000), (&A2, 80));
    for flags in [SYN, SYN_ACK, ACK, FIN, RST, 0] {
        let l4 = L4::Segment(80, 1001, flags);
        assert_eq!(says(&mut fabric, &A2, &A1, l4), DENIED, "{flags:#x}");
    }
    // Where the rules would let it open a connection, it still is none that does.
    let mut fabric = with([]);
    for flags in [SYN_ACK, ACK, FIN, RST, 0, SYN | RST, SYN | 1] {
        let l4 = L4::Segment(80, 1001, flags);
        assert_eq!(says(&mut fabric, &A2, &A1, l4), STRAY, "{flags:#x}");
        assert_eq!(says(&mut fabric, &A9, &A1, l4), STRAY, "{flags:#x}");
    }
    assert_eq!(open_count(&fabric, BLUE), 0);
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1001, SYN)), Ok(()));
}

/// Contiv's: whatever comes from the port of an allowed service passes.
#[test]
fn d07_what_lets_replies_in_lets_nothing_else_in() {
    pol_3_an_in_rule_for_a_source_port_opens_no_way_in();
}

#[test]
fn pol_3_an_in_rule_for_a_source_port_opens_no_way_in() {
    // Contiv's way to let answers in: everything from port 80.
    let answers = RuleEntry {
        protocol: Some(6),
        src_ports: Some(PortRange { first: 80, last: 80 }),
        ..rule(1, Direction::In, Permit::Allow)
    };
    let mut fabric = with([Entry::Tenant(tenant(Permit::Deny)), Entry::Rule(answers)]);
    assert_eq!(says(&mut fabric, &A9, &A1, L4::Segment(80, 22, ACK)), STRAY);
    assert_eq!(says(&mut fabric, &A9, &A1, L4::Segment(80, 22, SYN_ACK)), STRAY);
}

#[test]
fn pol_3_the_tcp_state_is_checked() {
    let mut fabric = with([]);
    let from = |fabric: &mut Fabric, flags| says(fabric, &A1, &A2, L4::Segment(7, 8, flags));
    let back = |fabric: &mut Fabric, flags| says(fabric, &A2, &A1, L4::Segment(8, 7, flags));
    assert_eq!(from(&mut fabric, SYN), Ok(()));
    assert_eq!(back(&mut fabric, ACK), STRAY, "an answer before there is anything to answer");
    assert_eq!(from(&mut fabric, ACK), STRAY, "no handshake");
    assert_eq!(back(&mut fabric, SYN_ACK), Ok(()));
    assert_eq!(from(&mut fabric, SYN_ACK), STRAY, "from the wrong side");
    assert_eq!(from(&mut fabric, ACK), Ok(()));
    for flags in [0, 0x08, 0x20, SYN | RST, SYN | 1, 1] {
        // At once, when the flow cache would not ask, and later.
        assert_eq!(from(&mut fabric, ACK), Ok(()));
        assert_eq!(from(&mut fabric, flags), STRAY, "{flags:#x}");
        fabric.wait(2 * SECOND);
        assert_eq!(from(&mut fabric, flags), STRAY, "{flags:#x}");
    }
    assert_eq!(back(&mut fabric, FIN), Ok(()));
    assert_eq!(from(&mut fabric, ACK), Ok(()));
    assert_eq!(from(&mut fabric, FIN), Ok(()));
    assert_eq!(back(&mut fabric, ACK), Ok(()));
    fabric.wait(60 * SECOND);
    assert_eq!(back(&mut fabric, ACK), STRAY, "it is over");
}

#[test]
fn pol_3_a_reset_ends_a_connection_after_ten_seconds() {
    let mut fabric = with([]);
    connect(&mut fabric, (&A1, 7), (&A2, 8));
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(8, 7, RST)), Ok(()));
    fabric.wait(9 * SECOND);
    assert_eq!(open_count(&fabric, BLUE), 1);
    fabric.wait(SECOND);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(7, 8, ACK)), STRAY);
}

/// Contiv's: the flows of services never age. Connections are what services would use.
#[test]
fn d17_what_clients_leave_behind_ages() {
    pol_3_udp_without_a_reply_ends_after_30_seconds();
}

#[test]
fn pol_3_udp_without_a_reply_ends_after_30_seconds() {
    let (ask, answer) = (L4::Udp(1000, 53), L4::Udp(53, 1000));
    for (wait, expected) in [(29, Ok(())), (30, DENIED)] {
        let mut fabric = closed_but(17, 53);
        assert_eq!(says(&mut fabric, &A1, &A2, ask), Ok(()));
        fabric.wait(wait * SECOND);
        assert_eq!(says(&mut fabric, &A2, &A1, answer), expected, "after {wait} s");
    }
}

#[test]
fn pol_3_udp_with_a_reply_ends_after_180_seconds() {
    let (ask, answer) = (L4::Udp(1000, 53), L4::Udp(53, 1000));
    for (wait, expected) in [(179, Ok(())), (180, DENIED)] {
        let mut fabric = closed_but(17, 53);
        assert_eq!(says(&mut fabric, &A1, &A2, ask), Ok(()));
        assert_eq!(says(&mut fabric, &A2, &A1, answer), Ok(()));
        fabric.wait(wait * SECOND);
        assert_eq!(says(&mut fabric, &A2, &A1, answer), expected, "after {wait} s");
    }
}

#[test]
fn pol_3_a_udp_connection_lives_as_long_as_it_is_used() {
    let mut fabric = closed_but(17, 53);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Udp(1000, 53)), Ok(()));
    for _ in 0..20 {
        // The flow cache answers, and the connection is told nevertheless.
        fabric.wait(29 * SECOND);
        assert_eq!(says(&mut fabric, &A1, &A2, L4::Udp(1000, 53)), Ok(()));
    }
    fabric.wait(29 * SECOND);
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Udp(53, 1000)), Ok(()));
}

#[test]
fn pol_3_an_echo_reply_that_nobody_asked_for_is_dropped() {
    let mut fabric = with([]);
    let (ask, reply) = (L4::Icmp(8, 0, 7 << 16), L4::Icmp(0, 0, 7 << 16));
    assert_eq!(says(&mut fabric, &A2, &A1, reply), STRAY);
    assert_eq!(says(&mut fabric, &A1, &A2, ask), Ok(()));
    assert_eq!(says(&mut fabric, &A1, &A2, reply), STRAY, "the asker answers itself");
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Icmp(0, 0, 8 << 16)), STRAY, "another exchange");
    assert_eq!(says(&mut fabric, &A2, &A1, reply), Ok(()));
}

#[test]
fn pol_3_an_error_about_a_connection_passes_and_another_does_not() {
    let mut fabric = closed_but(17, 53);
    let ask = A1.to(&A2).l4(L4::Udp(1000, 53));
    assert_eq!(fate(&send(&mut fabric, &A1, &ask)), Ok(()));
    let error = |about: &Packet| {
        let quote = about.bytes()[14..14 + 28].to_vec();
        Packet { payload: quote, ..A2.to(&A1).l4(L4::Icmp(3, 3, 0)) }
    };
    assert_eq!(fate(&send(&mut fabric, &A2, &error(&ask))), Ok(()));
    let other = A1.to(&A2).l4(L4::Udp(1001, 53));
    assert_eq!(fate(&send(&mut fabric, &A2, &error(&other))), DENIED);
    fabric.put([Entry::Tenant(tenant(Permit::Allow))]);
    assert_eq!(fate(&send(&mut fabric, &A2, &error(&other))), STRAY);
    assert_eq!(fate(&send(&mut fabric, &A2, &error(&ask))), Ok(()));
    // What A2 has sent is not A1's to be told of.
    let answer = A2.to(&A1).l4(L4::Udp(53, 1000));
    assert_eq!(fate(&send(&mut fabric, &A2, &error(&answer))), STRAY);
}

#[test]
fn other_protocols_are_tracked_by_their_addresses() {
    let allow = RuleEntry { protocol: Some(47), ..rule(1, Direction::Out, Permit::Allow) };
    let into = RuleEntry { rule: RuleId(2), direction: Direction::In, ..allow.clone() };
    let mine = [Entry::Rule(RuleEntry { src_group: Some(A1.group), ..allow })];
    let entries = [Entry::Tenant(tenant(Permit::Deny)), Entry::Rule(into)];
    let mut fabric = with(entries.into_iter().chain(mine));
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Raw(47)), DENIED);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Raw(47)), Ok(()));
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Raw(47)), Ok(()));
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Raw(50)), DENIED);
}
