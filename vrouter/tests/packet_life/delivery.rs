//! Between containers of this node: bridged, routed, and never across tenants.

use flowtable::DropReason;
use flowtable::ids::Mac;
use packet_io::QueueId;

use crate::fabric::frames::{L4, tagged_as, vxlan};
use crate::fabric::{A1, A2, B1, Fabric, R1, R2, R9, VNI_R, received};

#[test]
fn a_frame_inside_a_network_arrives_unchanged() {
    let mut fabric = Fabric::new();
    let frame = A1.to(&A2).bytes();
    let expected = received(A1.port(), &frame).walked().out(A2.port(), &frame);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

#[test]
fn a_frame_for_a_container_carries_its_port_as_tag_on_the_trunk() {
    let mut fabric = Fabric::new();
    let frame = A1.to(&A2).bytes();
    fabric.inject(A1.port(), &frame);
    assert_eq!(fabric.worker.poll(0), 1);
    let expected = [&frame[..12], &[0x81, 0, 0, 2], &frame[12..]].concat();
    assert_eq!(fabric.worker.io_mut().take_sent(QueueId::TRUNK), [expected]);
}

#[test]
fn priority_and_drop_bits_of_the_trunk_tag_are_not_part_of_the_port() {
    let mut fabric = Fabric::new();
    let frame = A1.to(&A2).bytes();
    let tagged = [&frame[..12], &[0x81, 0, 0xf0, 1], &frame[12..]].concat();
    fabric.inject_raw(QueueId::TRUNK, &tagged);
    let expected = received(A1.port(), &frame).walked().out(A2.port(), &frame);
    assert_eq!(fabric.settle(), expected);
}

#[test]
fn the_second_packet_of_a_flow_comes_from_the_cache() {
    let mut fabric = Fabric::new();
    let frame = A1.to(&A2).bytes();
    fabric.send(A1.port(), &frame);
    let expected = received(A1.port(), &frame).cached().out(A2.port(), &frame);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
    let flows = fabric.worker.flows();
    assert_eq!(flows.len(), 1);
    assert_eq!(flows[0].count.packets, 2);
    assert_eq!(flows[0].count.bytes, 2 * frame.len() as u64);
    assert_eq!((flows[0].key.src_port, flows[0].key.dst_port), (1000, 2000));
}

#[test]
fn another_port_number_is_another_flow() {
    let mut fabric = Fabric::new();
    fabric.send(A1.port(), &A1.to(&A2).bytes());
    let frame = A1.to(&A2).l4(L4::Udp(1001, 2000)).bytes();
    let expected = received(A1.port(), &frame).walked().out(A2.port(), &frame);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

#[test]
fn a_routed_packet_has_one_hop_less_and_the_macs_of_gateway_and_receiver() {
    let mut fabric = Fabric::new();
    let frame = A1.via_gateway(&B1).bytes();
    let routed = B1.to(&B1).src_mac(Mac::GATEWAY).src_ip(A1.ip).ttl(63).bytes();
    let expected = received(A1.port(), &frame).walked().out(B1.port(), &routed);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
    let expected = received(A1.port(), &frame).cached().out(B1.port(), &routed);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

#[test]
fn a_packet_routed_inside_its_network_has_one_hop_less_too() {
    let mut fabric = Fabric::new();
    let frame = A1.via_gateway(&A2).bytes();
    let routed = A1.to(&A2).src_mac(Mac::GATEWAY).ttl(63).bytes();
    let expected = received(A1.port(), &frame).walked().out(A2.port(), &routed);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

/// The checksum field of a routed header must be what a sender would have written for it: 0x0000
/// and 0xffff mean the same to a sum, and RFC 1624 is about choosing the right one.
#[test]
fn the_checksum_after_routing_is_the_one_a_sender_would_have_written() {
    let mut fabric = Fabric::new();
    let mut seen = [false; 2];
    for id in 0..=u16::MAX {
        let mut frame = A1.via_gateway(&B1).bytes();
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame[24..26].fill(0);
        let sum = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        if !matches!(sum, 0xfe00..=0xffff | 0..=0x1ff) {
            continue;
        }
        let delivered = fabric.send(A1.port(), &frame);
        let mut header = delivered.out[0].1[14..34].to_vec();
        let stored = u16::from_be_bytes([header[10], header[11]]);
        header[10..12].fill(0);
        assert_eq!(stored, checksum(&header), "stored before: {sum:#06x}");
        seen[0] |= sum == 0xfeff;
        seen[1] |= sum >= 0xff00;
    }
    assert_eq!(seen, [true; 2], "the interesting checksums were met");
}

/// RFC 1071 over a header whose checksum field is zero.
fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[test]
fn tenants_with_the_same_addresses_reach_their_own_hosts_only() {
    let mut fabric = Fabric::new();
    assert_eq!((A1.ip, A2.ip), (R1.ip, R2.ip));
    for (from, to) in [(A1, A2), (R1, R2), (A2, A1), (R2, R1)] {
        let frame = from.to(&to).bytes();
        let expected = received(from.port(), &frame).walked().out(to.port(), &frame);
        assert_eq!(fabric.send(from.port(), &frame), expected);
        let frame = from.via_gateway(&to).bytes();
        let routed = from.to(&to).src_mac(Mac::GATEWAY).ttl(63).bytes();
        let expected = received(from.port(), &frame).walked().out(to.port(), &routed);
        assert_eq!(fabric.send(from.port(), &frame), expected);
    }
}

#[test]
fn the_mac_of_another_tenants_host_is_unknown() {
    let mut fabric = Fabric::new();
    let frame = A1.to(&A2).dst_mac(R2.mac).bytes();
    let reason = DropReason::UnknownEndpoint;
    let expected = received(A1.port(), &frame).walked().dropped(A1.port(), reason, frame.len());
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

#[test]
fn a_fragment_without_ports_is_delivered_like_the_first() {
    let mut fabric = Fabric::new();
    for packet in [A1.to(&A2).first_fragment(), A1.to(&A2).later_fragment(9)] {
        let frame = packet.bytes();
        let expected = received(A1.port(), &frame).walked().out(A2.port(), &frame);
        assert_eq!(fabric.send(A1.port(), &frame), expected);
    }
}

#[test]
fn bytes_behind_the_ip_packet_are_carried_along() {
    let mut fabric = Fabric::new();
    let mut frame = A1.to(&A2).bytes();
    frame.resize(frame.len() + 6, 0);
    let expected = received(A1.port(), &frame).walked().out(A2.port(), &frame);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

#[test]
fn a_packet_to_its_own_sender_is_a_hairpin() {
    let mut fabric = Fabric::new();
    for packet in [A1.to(&A1), A1.via_gateway(&A1)] {
        let frame = packet.bytes();
        let expected = received(A1.port(), &frame).walked();
        let expected = expected.dropped(A1.port(), DropReason::Hairpin, frame.len());
        assert_eq!(fabric.send(A1.port(), &frame), expected);
    }
}

#[test]
fn a_tag_of_the_containers_own_is_refused() {
    let mut fabric = Fabric::new();
    for kind in [0x8100, 0x88a8] {
        let frame = tagged_as(kind, 2, &A1.to(&A2).bytes());
        let expected = received(A1.port(), &frame);
        let expected = expected.dropped(A1.port(), DropReason::ContainerTag, frame.len());
        assert_eq!(fabric.send(A1.port(), &frame), expected);
    }
}

#[test]
fn vxlan_from_a_container_is_udp_like_any_other() {
    let mut fabric = Fabric::new();
    let frame = vxlan(&A1.to(&A2), VNI_R.get(), &R9.to(&R1).bytes());
    let expected = received(A1.port(), &frame).walked().out(A2.port(), &frame);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}
