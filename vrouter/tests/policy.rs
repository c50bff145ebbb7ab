//! Policy on the packets: which rule wins, where it is enforced, what it counts, and that a change
//! takes effect on the next packet of every flow that depends on it, and on no other.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the other tests use the rest")]
mod fabric;

use flowtable::DropReason;
use flowtable::entry::{
    Direction, Entry, EntryKey, GroupEntry, NextHop, Op, Permit, PortRange, RouteEntry, RuleEntry,
    TunnelEntry, UnderlayEntry, VlanEntry,
};
use flowtable::ids::{Group, Mac, PortId, RuleId};
use vrouter::{Count, WriteError};

use fabric::frames::{L4, Packet, vxlan};
use fabric::{
    A1, A2, A9, B1, BLUE, DB, Delivered, Fabric, Host, NET_A, R1, R2, RED, UPLINK, V1, V9, VNI_A,
    WEB, container, from_remote, port, prefix, received, stateless, vid, vni,
};

/// A rule that matches everything of blue in one direction.
fn rule(id: u64, direction: Direction, permit: Permit) -> RuleEntry {
    RuleEntry { priority: 10, ..RuleEntry::any(RuleId(id), BLUE, direction, permit) }
}

fn deny(id: u64, direction: Direction) -> RuleEntry {
    rule(id, direction, Permit::Deny)
}

fn allow(id: u64, direction: Direction) -> RuleEntry {
    rule(id, direction, Permit::Allow)
}

const fn ports(first: u16, last: u16) -> PortRange {
    PortRange { first, last }
}

/// A node with these rules.
fn with(rules: impl IntoIterator<Item = RuleEntry>) -> Fabric {
    let mut fabric = Fabric::new();
    fabric.put(rules.into_iter().map(Entry::Rule));
    fabric
}

/// The rules that a first packet from `from` to `to` matches, and whether it arrives.
fn verdict(fabric: &mut Fabric, packet: &Packet, [from, to]: [PortId; 2], matched: &[u64]) -> bool {
    let frame = packet.bytes();
    let delivered = fabric.send(from, &frame);
    let counted = |seen: Delivered| {
        matched.iter().fold(seen, |seen, id| seen.matched(RuleId(*id), frame.len()))
    };
    let expected = counted(received(from, &frame).walked());
    if delivered.out.is_empty() {
        assert_eq!(delivered, expected.dropped(from, DropReason::PolicyDeny, frame.len()));
        return false;
    }
    assert_eq!(delivered, expected.out(to, &frame));
    true
}

fn a1_to_a2(fabric: &mut Fabric, matched: &[u64]) -> bool {
    verdict(fabric, &A1.to(&A2), [A1.port(), A2.port()], matched)
}

fn a2_to_a1(fabric: &mut Fabric, matched: &[u64]) -> bool {
    verdict(fabric, &A2.to(&A1), [A2.port(), A1.port()], matched)
}

#[test]
fn an_out_rule_of_a_group_is_asked_about_what_the_group_sends() {
    let rule = || RuleEntry { src_group: Some(WEB), ..deny(1, Direction::Out) };
    assert!(!a1_to_a2(&mut with([rule()]), &[1]));
    assert!(a2_to_a1(&mut with([rule()]), &[]));
}

#[test]
fn an_in_rule_of_a_group_is_asked_about_what_the_group_receives() {
    let rule = || RuleEntry { dst_group: Some(WEB), ..deny(1, Direction::In) };
    assert!(a1_to_a2(&mut with([rule()]), &[]));
    assert!(!a2_to_a1(&mut with([rule()]), &[1]));
}

#[test]
fn a_packet_between_local_ports_is_asked_about_at_both_ends() {
    let (out, into) = (allow(1, Direction::Out), allow(2, Direction::In));
    assert!(a1_to_a2(&mut with([out.clone(), into]), &[1, 2]));
    assert!(!a1_to_a2(&mut with([out, deny(2, Direction::In)]), &[1, 2]));
    assert!(!a1_to_a2(&mut with([deny(1, Direction::Out), deny(2, Direction::In)]), &[1]));
}

#[test]
fn the_higher_priority_wins() {
    for (allowed, denied) in [(20, 10), (10, 20), (100, 1)] {
        let mut fabric = with([
            RuleEntry { priority: allowed, ..allow(1, Direction::In) },
            RuleEntry { priority: denied, dst_group: Some(DB), ..deny(2, Direction::In) },
        ]);
        let winner = if allowed > denied { 1 } else { 2 };
        assert_eq!(a1_to_a2(&mut fabric, &[winner]), allowed > denied);
    }
}

#[test]
fn deny_wins_a_tie_whatever_the_ids() {
    assert!(!a1_to_a2(&mut with([allow(1, Direction::In), deny(2, Direction::In)]), &[2]));
    assert!(!a1_to_a2(&mut with([deny(1, Direction::In), allow(2, Direction::In)]), &[1]));
    let narrow = RuleEntry { dst: Some(prefix(A2.ip, 32)), ..allow(1, Direction::In) };
    assert!(!a1_to_a2(&mut with([narrow, deny(2, Direction::In)]), &[2]));
}

#[test]
fn what_no_rule_matches_gets_the_tenants_default() {
    let other = || RuleEntry { protocol: Some(6), ..allow(1, Direction::In) };
    assert!(a1_to_a2(&mut with([other()]), &[]));
    let mut fabric = with([other()]);
    fabric.put([stateless(BLUE, Permit::Deny)]);
    assert!(!a1_to_a2(&mut fabric, &[]));
    let red = R1.to(&R2).bytes();
    assert_eq!(fabric.send(R1.port(), &red).out.len(), 1, "red's default is its own");
    fabric.put([
        Entry::Rule(RuleEntry { protocol: Some(17), ..allow(2, Direction::Out) }),
        Entry::Rule(RuleEntry { protocol: Some(17), ..allow(3, Direction::In) }),
    ]);
    let frame = A1.to(&A2).bytes();
    let expected = received(A1.port(), &frame).rewalked();
    let expected = expected.matched(RuleId(2), frame.len()).matched(RuleId(3), frame.len());
    assert_eq!(fabric.send(A1.port(), &frame), expected.out(A2.port(), &frame));
}

#[test]
fn the_default_is_asked_at_each_end() {
    let mut fabric = with([allow(1, Direction::Out)]);
    fabric.put([stateless(BLUE, Permit::Deny)]);
    assert!(!a1_to_a2(&mut fabric, &[1]));
    let mut fabric = with([allow(1, Direction::In)]);
    fabric.put([stateless(BLUE, Permit::Deny)]);
    assert!(!a1_to_a2(&mut fabric, &[]));
}

#[test]
fn a_rule_of_one_tenant_does_not_touch_another() {
    let mut fabric = with([deny(1, Direction::Out), deny(2, Direction::In)]);
    let frame = R1.to(&R2).bytes();
    let expected = received(R1.port(), &frame).walked().out(R2.port(), &frame);
    assert_eq!(fabric.send(R1.port(), &frame), expected);
    let red = RuleEntry { vrf: RED, ..deny(1, Direction::In) };
    assert!(a1_to_a2(&mut with([red]), &[]));
}

/// Each match field with a value that the packet has and one that it has not.
#[test]
fn every_field_of_a_rule_is_compared() {
    let base = || deny(1, Direction::In);
    let src = |address, len| Some(prefix(address, len));
    for (field, matching, other) in [
        (
            "source group",
            RuleEntry { src_group: Some(WEB), ..base() },
            RuleEntry { src_group: Some(DB), ..base() },
        ),
        (
            "destination group",
            RuleEntry { dst_group: Some(DB), ..base() },
            RuleEntry { dst_group: Some(Group::NONE), ..base() },
        ),
        (
            "source",
            RuleEntry { src: src(A1.ip, 32), ..base() },
            RuleEntry { src: src(A2.ip, 32), ..base() },
        ),
        (
            "destination",
            RuleEntry { dst: src([10, 1, 1, 0].into(), 30), ..base() },
            RuleEntry { dst: src([10, 1, 1, 4].into(), 30), ..base() },
        ),
        (
            "protocol",
            RuleEntry { protocol: Some(17), ..base() },
            RuleEntry { protocol: Some(6), ..base() },
        ),
        (
            "source port",
            RuleEntry { src_ports: Some(ports(1000, 1000)), ..base() },
            RuleEntry { src_ports: Some(ports(1001, 1001)), ..base() },
        ),
        (
            "ends of a range",
            RuleEntry { dst_ports: Some(ports(2000, 3000)), ..base() },
            RuleEntry { dst_ports: Some(ports(1000, 1999)), ..base() },
        ),
    ] {
        assert!(!a1_to_a2(&mut with([matching]), &[1]), "{field}");
        assert!(a1_to_a2(&mut with([other]), &[]), "{field}");
    }
}

#[test]
fn a_rule_with_ports_never_matches_a_later_fragment() {
    let both = || RuleEntry { dst_ports: Some(ports(0, 65535)), ..deny(1, Direction::In) };
    let ends = [A1.port(), A2.port()];
    assert!(!verdict(&mut with([both()]), &A1.to(&A2).first_fragment(), ends, &[1]));
    assert!(verdict(&mut with([both()]), &A1.to(&A2).later_fragment(9), ends, &[]));
    let any = || RuleEntry { protocol: Some(17), ..deny(1, Direction::In) };
    assert!(!verdict(&mut with([any()]), &A1.to(&A2).later_fragment(9), ends, &[1]));
    assert!(verdict(&mut with([both()]), &A1.to(&A2).l4(L4::Raw(132)), ends, &[]));
}

#[test]
fn a_routed_packet_is_asked_about_with_its_own_addresses() {
    let rule = RuleEntry {
        src: Some(prefix(A1.ip, 32)),
        dst_group: Some(B1.group),
        ..deny(1, Direction::In)
    };
    let mut fabric = with([rule]);
    let frame = A1.via_gateway(&B1).bytes();
    let expected = received(A1.port(), &frame).walked().matched(RuleId(1), frame.len());
    let expected = expected.dropped(A1.port(), DropReason::PolicyDeny, frame.len());
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

/// Out rules hold at the source, also when the destination is elsewhere: its group is that of its
/// address.
#[test]
fn an_out_rule_holds_for_destinations_on_other_nodes() {
    for (group, permitted) in [(WEB, false), (DB, true)] {
        let mut fabric = with([RuleEntry { dst_group: Some(group), ..deny(1, Direction::Out) }]);
        let frame = A1.to(&A9).bytes();
        assert_eq!(fabric.send(A1.port(), &frame).out.len(), usize::from(permitted));
    }
    let mut fabric = with([deny(1, Direction::In)]);
    assert_eq!(fabric.send(A1.port(), &A1.to(&A9).bytes()).out.len(), 1, "the other end asks");
}

/// The sending node can't be trusted to have asked: in rules hold for whatever a tunnel brings, by
/// the group of the sender's address. The bytes counted are those of the tenant's frame.
/// Contiv's: rules are asked at the sender's node alone.
#[test]
fn d08_rules_hold_at_the_receiver_too() {
    pol_9_an_in_rule_holds_for_packets_from_a_tunnel();
}

#[test]
fn pol_9_an_in_rule_holds_for_packets_from_a_tunnel() {
    let inner = A9.to(&A2).bytes();
    let frame = vxlan(&from_remote(), VNI_A.get(), &inner);
    let mut fabric = with([RuleEntry { src_group: Some(WEB), ..deny(1, Direction::In) }]);
    let expected = received(UPLINK, &frame).walked().matched(RuleId(1), inner.len());
    let expected = expected.dropped(UPLINK, DropReason::PolicyDeny, frame.len());
    assert_eq!(fabric.send(UPLINK, &frame), expected);
    let mut fabric = with([
        RuleEntry { src_group: Some(DB), ..deny(1, Direction::In) },
        deny(2, Direction::Out),
    ]);
    let expected = received(UPLINK, &frame).walked().out(A2.port(), &inner);
    assert_eq!(fabric.send(UPLINK, &frame), expected);
}

#[test]
fn an_in_rule_holds_for_packets_from_the_wire() {
    let inner = V9.to(&V1).bytes();
    let frame = fabric::frames::tagged(fabric::VID_V, &inner);
    let mut fabric = with([RuleEntry { src_group: Some(Group::NONE), ..deny(1, Direction::In) }]);
    let expected = received(UPLINK, &frame).walked().matched(RuleId(1), inner.len());
    let expected = expected.dropped(UPLINK, DropReason::PolicyDeny, frame.len());
    assert_eq!(fabric.send(UPLINK, &frame), expected);
}

#[test]
fn arp_is_not_subject_to_rules() {
    let mut fabric = with([deny(1, Direction::Out), deny(2, Direction::In)]);
    let request = A1.asks(A2.ip);
    let reply = A1.is_told(A2.ip, A2.mac);
    let expected = received(A1.port(), &request).walked().out(A1.port(), &reply);
    assert_eq!(fabric.send(A1.port(), &request), expected);
}

#[test]
fn a_write_takes_effect_on_the_next_packet_of_a_cached_flow() {
    let mut fabric = Fabric::new();
    let frame = A1.to(&A2).bytes();
    let came = || received(A1.port(), &frame);
    let denied = |seen: Delivered| {
        let seen = seen.matched(RuleId(1), frame.len());
        seen.dropped(A1.port(), DropReason::PolicyDeny, frame.len())
    };
    let passed = |seen: Delivered| seen.out(A2.port(), &frame);
    assert_eq!(fabric.send(A1.port(), &frame), passed(came().walked()));
    for _ in 0..3 {
        assert_eq!(fabric.send(A1.port(), &frame), passed(came().cached()));
        fabric.put([Entry::Rule(deny(1, Direction::In))]);
        assert_eq!(fabric.send(A1.port(), &frame), denied(came().rewalked()));
        assert_eq!(fabric.send(A1.port(), &frame), denied(came().cached()));
        fabric.write(&[Op::Delete(EntryKey::Rule(RuleId(1), 0))]);
        assert_eq!(fabric.send(A1.port(), &frame), passed(came().rewalked()));
    }
}

fn count_of(fabric: &Fabric, id: u64) -> Option<Count> {
    let rules = fabric.engine.rules();
    rules.into_iter().find(|(rule, _)| *rule == RuleId(id)).map(|(_, count)| count)
}

/// That many packets of this length.
fn packets(packets: u64, frame: &[u8]) -> Count {
    Count { packets, bytes: packets * frame.len() as u64 }
}

#[test]
fn a_rules_counter_is_exact_over_cached_packets_and_survives_unrelated_writes() {
    let mut fabric = with([allow(1, Direction::In)]);
    let frame = A1.to(&A2).bytes();
    for sent in 1..=50 {
        fabric.send(A1.port(), &frame);
        assert_eq!(count_of(&fabric, 1), Some(packets(sent, &frame)));
        if sent % 10 == 0 {
            fabric.put([Entry::Rule(RuleEntry { vrf: RED, ..allow(sent, Direction::In) })]);
            fabric.write(&[Op::Delete(EntryKey::Rule(RuleId(sent), 0))]);
        }
    }
    let cache = fabric.engine.cache();
    assert_eq!((cache.exact_hits, cache.pipeline), (45, 5));
    let entries = fabric.engine.entries();
    let listed = entries.iter().find(|e| e.entry.key() == EntryKey::Rule(RuleId(1), 0)).unwrap();
    assert_eq!(listed.count, packets(50, &frame));
}

#[test]
fn entries_of_one_rule_share_its_counter_and_the_rule_lives_until_its_last_entry_goes() {
    let frame = A1.to(&A2).bytes();
    let mut fabric = with([
        RuleEntry { src: Some(prefix(A1.ip, 32)), ..allow(1, Direction::In) },
        RuleEntry { seq: 1, src: Some(prefix(A2.ip, 32)), ..allow(1, Direction::In) },
    ]);
    fabric.send(A1.port(), &frame);
    fabric.send(A2.port(), &A2.to(&A1).bytes());
    assert_eq!(count_of(&fabric, 1), Some(packets(2, &frame)));
    fabric.write(&[Op::Delete(EntryKey::Rule(RuleId(1), 0))]);
    fabric.send(A1.port(), &frame);
    assert_eq!(count_of(&fabric, 1), Some(packets(2, &frame)));
    fabric.write(&[Op::Delete(EntryKey::Rule(RuleId(1), 1))]);
    assert_eq!(count_of(&fabric, 1), None);
}

#[test]
fn a_new_rule_in_a_used_slot_counts_from_zero() {
    let mut fabric = Fabric::with_rule_slots(1);
    let frame = A1.to(&A2).bytes();
    for id in 1..20 {
        fabric.put([Entry::Rule(allow(id, Direction::In))]);
        assert_eq!(count_of(&fabric, id), Some(packets(0, &frame)));
        for _ in 0..id {
            fabric.send(A1.port(), &frame);
        }
        assert_eq!(count_of(&fabric, id), Some(packets(id, &frame)));
        fabric.write(&[Op::Delete(EntryKey::Rule(RuleId(id), 0))]);
        assert_eq!(count_of(&fabric, id), None);
        fabric.send(A1.port(), &frame);
    }
}

#[test]
fn a_full_replacement_keeps_the_counters_of_rules_that_stay() {
    let mut fabric = with([allow(1, Direction::In), allow(2, Direction::Out)]);
    let frame = A1.to(&A2).bytes();
    fabric.send(A1.port(), &frame);
    let mut ops = vec![Op::Clear];
    ops.extend(fabric::tables().into_iter().map(Op::Put));
    ops.push(Op::Put(Entry::Rule(RuleEntry { priority: 99, ..allow(1, Direction::In) })));
    ops.push(Op::Put(Entry::Rule(allow(3, Direction::Out))));
    fabric.write(&ops);
    fabric.send(A1.port(), &frame);
    assert_eq!(count_of(&fabric, 1), Some(packets(2, &frame)));
    assert_eq!(count_of(&fabric, 2), None);
    assert_eq!(count_of(&fabric, 3), Some(packets(1, &frame)));
}

#[test]
fn a_full_replacement_keeps_the_underlay_that_the_node_found_itself() {
    let mut fabric = Fabric::new();
    let tables = fabric::tables().into_iter();
    let written = tables.filter(|e| !matches!(e, Entry::Underlay(_))).map(Op::Put);
    let ops: Vec<_> = std::iter::once(Op::Clear).chain(written).collect();
    fabric.write(&ops);
    assert_eq!(fabric.send(A1.port(), &A1.to(&A9).bytes()).out.len(), 1);
}

#[test]
fn a_batch_with_too_many_rules_changes_nothing() {
    let mut fabric = Fabric::with_rule_slots(2);
    fabric.put([Entry::Rule(allow(1, Direction::In))]);
    let frame = A1.to(&A2).bytes();
    let came = || received(A1.port(), &frame);
    let passed = |seen: Delivered| seen.matched(RuleId(1), frame.len()).out(A2.port(), &frame);
    assert_eq!(fabric.send(A1.port(), &frame), passed(came().walked()));
    let before = (fabric.engine.entries().into_iter().map(|e| e.entry), fabric.engine.revision());
    let (entries, revision) = (before.0.collect::<Vec<_>>(), before.1);
    let ops = [
        Op::Put(Entry::Rule(deny(2, Direction::In))),
        Op::Delete(EntryKey::Port(A2.port())),
        Op::Clear,
        Op::Put(Entry::Rule(deny(3, Direction::In))),
        Op::Put(Entry::Rule(deny(4, Direction::Out))),
        Op::Put(Entry::Rule(RuleEntry { priority: 99, ..deny(1, Direction::In) })),
    ];
    let refused = WriteError::TooManyRules { needed: 2, room: 1 };
    assert_eq!(fabric.engine.write(&ops), Err(refused));
    let after: Vec<_> = fabric.engine.entries().into_iter().map(|e| e.entry).collect();
    assert_eq!(after, entries);
    assert_eq!(fabric.engine.revision(), revision);
    assert_eq!(fabric.send(A1.port(), &frame), passed(came().cached()));
    assert_eq!(count_of(&fabric, 1), Some(packets(2, &frame)));
    fabric.put([Entry::Rule(allow(2, Direction::Out))]);
    assert_eq!(fabric.engine.rules().len(), 2, "the refused batch kept no slot");
}

/// A flow and the sections of the tables that its decision rests on.
struct Dependent {
    name: &'static str,
    port: PortId,
    frame: Vec<u8>,
    sections: &'static [&'static str],
}

fn dependents() -> [Dependent; 5] {
    let flow = |name, host: Host, packet: Packet, sections| Dependent {
        name,
        port: host.port(),
        frame: packet.bytes(),
        sections,
    };
    [
        // The group of a local receiver stands in its port's entry.
        flow("bridged", A1, A1.to(&A2), &["ports", "networks", "policy", "routes"]),
        flow(
            "tunnelled",
            A1,
            A1.to(&A9),
            &["ports", "networks", "underlay", "groups", "policy", "routes"],
        ),
        flow("on the wire", V1, V1.to(&V9), &["ports", "networks", "groups", "policy", "routes"]),
        flow("spoofed", A1, A1.to(&A2).src_mac(A9.mac), &["ports"]),
        Dependent {
            name: "from a tunnel",
            port: UPLINK,
            frame: vxlan(&from_remote(), VNI_A.get(), &A9.to(&A1).bytes()),
            sections: &["ports", "networks", "groups", "policy", "routes"],
        },
    ]
}

#[test]
fn a_change_invalidates_the_flows_that_depend_on_its_section_and_no_other() {
    let unused = PortId::new(200).unwrap();
    let group = GroupEntry { vrf: BLUE, prefix: prefix([10, 9, 9, 9], 32), group: WEB };
    let route = RouteEntry {
        vrf: BLUE,
        prefix: prefix([10, 9, 9, 9], 32),
        bd: NET_A,
        mac: Mac([2; 6]),
        next_hop: NextHop::UnknownEndpoint,
    };
    let tunnel = TunnelEntry { vni: vni(999), bd: NET_A, vrf: BLUE };
    let vlan = VlanEntry { port: UPLINK, vid: vid(99), bd: NET_A, vrf: BLUE };
    let another_node = UnderlayEntry {
        vtep: [10, 250, 0, 77].into(),
        port: UPLINK,
        src_mac: Mac([2; 6]),
        dst_mac: Mac([4; 6]),
    };
    for (section, entry) in [
        ("ports", Entry::Port(Host::local(200, BLUE, NET_A, [10, 9, 9, 9]).binding())),
        ("networks", Entry::Tunnel(tunnel)),
        ("networks", Entry::Vlan(vlan)),
        ("underlay", Entry::Underlay(another_node)),
        ("groups", Entry::Group(group)),
        ("policy", Entry::Rule(RuleEntry { vrf: RED, ..allow(1, Direction::In) })),
        ("policy", stateless(RED, Permit::Allow)),
        ("routes", Entry::Route(route)),
    ] {
        let mut fabric = Fabric::new();
        fabric.engine.add_port(container(unused)).unwrap();
        for flow in dependents() {
            fabric.send(flow.port, &flow.frame);
        }
        let key = entry.key();
        for op in [Op::Put(entry.clone()), Op::Delete(key)] {
            fabric.write(&[op]);
            for flow in dependents() {
                let walked = |f: &Fabric| f.engine.cache().pipeline;
                let before = walked(&fabric);
                fabric.send(flow.port, &flow.frame);
                let rewalked = walked(&fabric) > before;
                let depends = flow.sections.contains(&section);
                assert_eq!(rewalked, depends, "{}: {key:?}", flow.name);
            }
        }
    }
}

#[test]
fn writing_what_is_there_already_invalidates_nothing() {
    let mut fabric = with([allow(1, Direction::In)]);
    for flow in dependents() {
        fabric.send(flow.port, &flow.frame);
    }
    let revision = fabric.engine.revision();
    fabric.put(fabric::tables());
    fabric.put([Entry::Rule(allow(1, Direction::In))]);
    fabric.write(&[Op::Delete(EntryKey::Rule(RuleId(77), 0)), Op::Delete(EntryKey::Port(port(9)))]);
    let again = fabric::tables().into_iter().chain([Entry::Rule(allow(1, Direction::In))]);
    fabric.write(&std::iter::once(Op::Clear).chain(again.map(Op::Put)).collect::<Vec<_>>());
    assert_eq!(fabric.engine.revision(), revision + 4);
    let before = fabric.engine.cache().pipeline;
    for flow in dependents() {
        fabric.send(flow.port, &flow.frame);
    }
    assert_eq!(fabric.engine.cache().pipeline, before);
}
