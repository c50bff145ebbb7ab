//! Ports that are not there, not bound, full, or named by someone who may not.

use flowtable::DropReason;
use flowtable::entry::{Entry, EntryKey, Op};
use flowtable::ids::PortId;
use packet_io::QueueId;
use vrouter::{Count, Framing, PortError, PortSpec};

use crate::fabric::frames::{tagged, tagged_as, vxlan};
use crate::fabric::{
    A1, A2, A9, Counter, Fabric, SPARE, UPLINK, V1, V9, VID_V, VNI_A, WIRE, container, from_remote,
    port, received,
};

#[test]
fn a_port_without_an_entry_drops_what_it_receives() {
    let mut fabric = Fabric::new();
    fabric.write(&[Op::Delete(EntryKey::Port(A1.port()))]);
    let frame = A1.to(&A2).bytes();
    let expected = received(A1.port(), &frame).walked();
    let expected = expected.dropped(A1.port(), DropReason::PortUnbound, frame.len());
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

#[test]
fn a_port_without_an_entry_is_sent_nothing() {
    let mut fabric = Fabric::new();
    let frame = A1.to(&A2).bytes();
    fabric.send(A1.port(), &frame);
    fabric.write(&[Op::Delete(EntryKey::Port(A2.port()))]);
    let expected = received(A1.port(), &frame).rewalked();
    let expected = expected.dropped(A1.port(), DropReason::PortGone, frame.len());
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

#[test]
fn a_removed_port_neither_sends_nor_receives() {
    let mut fabric = Fabric::new();
    let (there, back) = (A1.to(&A2).bytes(), A2.to(&A1).bytes());
    fabric.send(A1.port(), &there);
    fabric.send(A2.port(), &back);
    fabric.engine.remove_ports(&[A2.port()]).unwrap();
    let expected = received(A1.port(), &there).rewalked();
    let expected = expected.dropped(A1.port(), DropReason::PortGone, there.len());
    assert_eq!(fabric.send(A1.port(), &there), expected);
    let unowned = crate::fabric::Delivered::default();
    let expected = unowned.unowned(DropReason::PortUnbound, back.len());
    assert_eq!(fabric.send(A2.port(), &back), expected);
    assert!(fabric.engine.ports().iter().all(|p| p.spec.id != A2.port()));
}

#[test]
fn a_port_that_comes_back_is_unbound_and_counts_from_zero() {
    let mut fabric = Fabric::new();
    fabric.send(A2.port(), &A2.to(&A1).bytes());
    fabric.send(A1.port(), &A1.to(&A2).bytes());
    fabric.send(A2.port(), &[0; 12]);
    let stats = |fabric: &Fabric| {
        let ports = fabric.engine.ports();
        let found = ports.into_iter().find(|p| p.spec.id == A2.port()).unwrap();
        (found.rx.packets, found.tx.packets, found.drops, found.binding)
    };
    assert_eq!(stats(&fabric), (2, 1, 1, Some(A2.binding())));
    fabric.engine.remove_ports(&[A2.port()]).unwrap();
    fabric.engine.remove_ports(&[A2.port()]).unwrap();
    fabric.engine.add_port(container(A2.port())).unwrap();
    assert_eq!(stats(&fabric), (0, 0, 0, None));
}

#[test]
fn a_frame_of_a_port_that_was_never_added_is_counted_for_no_port() {
    let mut fabric = Fabric::new();
    let frame = A1.to(&A2).bytes();
    let expected = crate::fabric::Delivered::default();
    let expected = expected.unowned(DropReason::PortUnbound, frame.len());
    assert_eq!(fabric.send(port(77), &frame), expected);
}

#[test]
fn trunk_frames_without_a_ports_tag_are_counted_for_no_port() {
    let frame = A1.to(&A2).bytes();
    for (raw, bytes) in [
        (frame.clone(), frame.len()),
        (tagged_as(0x88a8, 1, &frame), frame.len() + 4),
        (tagged_as(0x8100, 0, &frame), frame.len()),
        (tagged_as(0x8100, 4095, &frame), frame.len()),
        (frame[..10].to_vec(), 10),
    ] {
        let mut fabric = Fabric::new();
        fabric.inject_raw(QueueId::TRUNK, &raw);
        let expected = crate::fabric::Delivered::default();
        let expected = expected.unowned(DropReason::PortUnbound, bytes);
        assert_eq!(fabric.settle(), expected);
    }
}

/// The trunk carries containers; who names the uplink there would be taken for the wire.
#[test]
fn the_tag_of_a_direct_port_opens_nothing_on_the_trunk() {
    for frame in [
        vxlan(&from_remote(), VNI_A.get(), &A9.to(&A1).bytes()),
        tagged(VID_V, &V9.to(&V1).bytes()),
    ] {
        let mut fabric = Fabric::new();
        fabric.inject_raw(QueueId::TRUNK, &tagged_as(0x8100, UPLINK.get(), &frame));
        let expected = crate::fabric::Delivered::default();
        let expected = expected.unowned(DropReason::PortUnbound, frame.len());
        assert_eq!(fabric.settle(), expected);
    }
}

#[test]
fn a_queue_without_a_port_receives_nothing() {
    let mut fabric = Fabric::new();
    fabric.engine.remove_ports(&[UPLINK]).unwrap();
    let frame = vxlan(&from_remote(), VNI_A.get(), &A9.to(&A1).bytes());
    let expected = crate::fabric::Delivered::default();
    let expected = expected.unowned(DropReason::PortUnbound, frame.len());
    assert_eq!(fabric.send(UPLINK, &frame), expected);
}

#[test]
fn an_uplink_on_the_trunk_works_like_one_of_its_own() {
    let mut fabric = Fabric::new();
    fabric.engine.remove_ports(&[UPLINK]).unwrap();
    let shared = PortSpec { framing: Framing::Tagged, ..crate::fabric::uplink() };
    fabric.engine.add_port(shared).unwrap();
    let inner = A9.to(&A1).bytes();
    let frame = vxlan(&from_remote(), VNI_A.get(), &inner);
    fabric.inject_raw(QueueId::TRUNK, &tagged_as(0x8100, UPLINK.get(), &frame));
    let expected = received(UPLINK, &frame).walked().out(A1.port(), &inner);
    assert_eq!(fabric.settle(), expected);
    let frame = V1.to(&V9).bytes();
    let expected = received(V1.port(), &frame).walked().out(UPLINK, &tagged(VID_V, &frame));
    assert_eq!(fabric.send(V1.port(), &frame), expected);
}

#[test]
fn an_uplink_that_moved_hears_on_both_queues_and_sends_on_one() {
    let mut fabric = Fabric::new();
    let spec = crate::fabric::uplink();
    let moved = PortSpec { framing: Framing::Direct(SPARE), standby: vec![WIRE], ..spec };
    fabric.engine.move_port(moved).unwrap();
    let inner = A9.to(&A1).bytes();
    let frame = vxlan(&from_remote(), VNI_A.get(), &inner);
    for queue in [WIRE, SPARE] {
        fabric.inject_raw(queue, &frame);
        assert_eq!(fabric.settle().out, vec![(A1.port(), inner.clone())]);
    }
    let frame = V1.to(&V9).bytes();
    let sent = vec![(PortId::MAX, tagged(VID_V, &frame))];
    assert_eq!(fabric.send(V1.port(), &frame).out, sent);
    // Both queues are its own now.
    let other = PortSpec { id: port(101), ..crate::fabric::uplink() };
    let existing = "uplink".to_owned();
    let taken = Err(PortError::Taken { port: other.id, existing });
    assert_eq!(fabric.engine.add_port(other.clone()), taken);
    assert_eq!(fabric.engine.move_port(other), taken);
}

/// What is sent into the tunnel for A9 leaves over the uplink as it is now, also of a flow that is known.
#[test]
fn a_known_flow_follows_its_uplink() {
    let mut fabric = Fabric::new();
    let frame = A1.to(&A9).bytes();
    let spec = crate::fabric::uplink();
    let moved = PortSpec { framing: Framing::Direct(SPARE), standby: vec![WIRE], ..spec.clone() };
    let shared = PortSpec { framing: Framing::Tagged, standby: vec![], ..spec };
    let in_vain = fabric.send(A1.port(), &frame).out;
    let [(UPLINK, encapsulated)] = &in_vain[..] else { panic!("{in_vain:?}") };
    for (spec, seen_at) in [(moved, PortId::MAX), (shared, UPLINK)] {
        let by_known_flow = fabric.send(A1.port(), &frame);
        assert_eq!(by_known_flow.out[0].1, *encapsulated);
        fabric.engine.move_port(spec).unwrap();
        for _ in 0..3 {
            let out = fabric.send(A1.port(), &frame).out;
            assert_eq!(out, vec![(seen_at, encapsulated.clone())]);
        }
    }
}

#[test]
fn without_its_uplink_a_node_reaches_nobody_and_says_so_in_the_tables() {
    let mut fabric = Fabric::new();
    fabric.engine.remove_ports(&[UPLINK]).unwrap();
    for (from, to) in [(A1, A9), (V1, V9)] {
        let frame = from.to(&to).bytes();
        let expected = received(from.port(), &frame).walked();
        let expected = expected.dropped(from.port(), DropReason::PortGone, frame.len());
        assert_eq!(fabric.send(from.port(), &frame), expected);
        let trace = fabric.engine.trace(from.port(), &frame);
        assert_eq!(trace.verdict, flowtable::Verdict::Drop(DropReason::PortGone));
    }
}

#[test]
fn a_full_queue_drops_what_was_received_with_its_own_length() {
    for (queue, from, to) in [(QueueId::TRUNK, A1, A2), (WIRE, A1, A9), (WIRE, V1, V9)] {
        let mut fabric = Fabric::new();
        fabric.worker.io_mut().set_room(queue, 0);
        let frame = from.to(&to).bytes();
        let expected = received(from.port(), &frame).walked();
        let expected = expected.dropped(from.port(), DropReason::TxFull, frame.len());
        assert_eq!(fabric.send(from.port(), &frame), expected);
        fabric.worker.io_mut().set_room(queue, 1);
        assert_eq!(fabric.send(from.port(), &frame).out.len(), 1);
    }
}

#[test]
fn an_answer_without_a_free_frame_is_counted() {
    let mut fabric = Fabric::new();
    fabric.inject(A1.port(), &A1.asks(A2.ip));
    fabric.worker.poll(0);
    fabric.slow.poll();
    // Sent frames hold every buffer until they are taken.
    let frame = A1.to(&A2).bytes();
    for _ in 0..64 {
        fabric.inject(A1.port(), &frame);
    }
    let delivered = fabric.settle();
    assert_eq!(delivered.out, vec![(A2.port(), frame); 64]);
    let reply = A1.is_told(A2.ip, A2.mac).len() as u64;
    let count = Count { packets: 1, bytes: reply };
    assert_eq!(delivered.counters[&Counter::Drop(DropReason::NoFrame)], count);
}

#[test]
fn another_device_does_not_get_an_id_or_a_queue_that_is_taken() {
    let fabric = Fabric::new();
    let taken = |id, existing: &str| PortError::Taken { port: id, existing: existing.to_owned() };
    fabric.engine.add_port(container(A1.port())).unwrap();
    let other = PortSpec { name: "other".to_owned(), ..container(A1.port()) };
    assert_eq!(fabric.engine.add_port(other), Err(taken(A1.port(), "wr1")));
    let second = PortSpec { id: port(101), ..crate::fabric::uplink() };
    assert_eq!(fabric.engine.add_port(second), Err(taken(port(101), "uplink")));
}

#[test]
fn an_entry_written_before_its_port_takes_effect_when_the_port_comes() {
    let mut fabric = Fabric::empty(1);
    fabric.put(crate::fabric::tables());
    fabric.engine.add_port(container(A1.port())).unwrap();
    fabric.engine.add_port(container(A2.port())).unwrap();
    let bound = |p: vrouter::PortStats| p.binding;
    let bindings: Vec<_> = fabric.engine.ports().into_iter().filter_map(bound).collect();
    assert_eq!(bindings, [A1.binding(), A2.binding()]);
    let frame = A1.to(&A2).bytes();
    assert_eq!(fabric.send(A1.port(), &frame).out, [(A2.port(), frame)]);
}

#[test]
fn entries_are_listed_in_the_order_of_their_keys() {
    let fabric = Fabric::new();
    let listed: Vec<_> = fabric.engine.entries().into_iter().map(|e| e.entry).collect();
    let mut written = crate::fabric::tables();
    written.sort_by_key(Entry::key);
    assert_eq!(listed, written);
}
