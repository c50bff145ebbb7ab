//! VLAN networks: tagged frames on the uplink.

use flowtable::DropReason;
use flowtable::entry::{Entry, VlanEntry};
use flowtable::ids::Mac;

use crate::fabric::frames::{tagged, tagged_as, vxlan};
use crate::fabric::{
    A1, A9, Fabric, NET_V, RED, UPLINK, V1, V9, VID_V, VNI_A, from_remote, received, vid,
};

#[test]
fn a_frame_for_a_known_host_of_a_vlan_leaves_tagged() {
    let mut fabric = Fabric::new();
    let frame = V1.to(&V9).bytes();
    let wire = [&frame[..12], &[0x81, 0, 0, 30], &frame[12..]].concat();
    let expected = received(V1.port(), &frame).walked().out(UPLINK, &wire);
    assert_eq!(fabric.send(V1.port(), &frame), expected);
    let expected = received(V1.port(), &frame).cached().out(UPLINK, &wire);
    assert_eq!(fabric.send(V1.port(), &frame), expected);
}

#[test]
fn a_frame_for_an_unknown_mac_of_a_vlan_goes_to_its_wire() {
    let mut fabric = Fabric::new();
    let frame = V1.to(&V9).dst_mac(Mac([2, 9, 9, 9, 9, 9])).dst_ip([192, 0, 2, 1]).bytes();
    let expected = received(V1.port(), &frame).walked().out(UPLINK, &tagged(VID_V, &frame));
    assert_eq!(fabric.send(V1.port(), &frame), expected);
}

#[test]
fn a_packet_routed_into_a_vlan_leaves_tagged_with_one_hop_less() {
    let mut fabric = Fabric::new();
    let frame = A1.via_gateway(&V9).bytes();
    let routed = A1.to(&V9).src_mac(Mac::GATEWAY).ttl(63).bytes();
    let expected = received(A1.port(), &frame).walked().out(UPLINK, &tagged(VID_V, &routed));
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

#[test]
fn a_tagged_frame_from_the_wire_is_delivered_without_its_tag() {
    let mut fabric = Fabric::new();
    let frame = V9.to(&V1).bytes();
    let wire = tagged(VID_V, &frame);
    let expected = received(UPLINK, &wire).walked().out(V1.port(), &frame);
    assert_eq!(fabric.send(UPLINK, &wire), expected);
    let expected = received(UPLINK, &wire).cached().out(V1.port(), &frame);
    assert_eq!(fabric.send(UPLINK, &wire), expected);
}

/// Sends a frame that ends at the uplink and says why it must.
fn refused(reason: DropReason, frame: &[u8]) {
    let mut fabric = Fabric::new();
    let expected = received(UPLINK, frame).walked().dropped(UPLINK, reason, frame.len());
    assert_eq!(fabric.send(UPLINK, frame), expected);
}

#[test]
fn an_unknown_tag_is_refused() {
    let frame = V9.to(&V1).bytes();
    refused(DropReason::UnknownVlan, &tagged(vid(31), &frame));
}

#[test]
fn a_priority_tag_is_no_network() {
    refused(DropReason::NotForUs, &tagged_as(0x8100, 0, &V9.to(&V1).bytes()));
}

#[test]
fn what_comes_from_the_wire_does_not_go_back_or_into_a_tunnel() {
    let back = V9.to(&V9).src_ip([10, 1, 3, 7]);
    refused(DropReason::SplitHorizon, &tagged(VID_V, &back.bytes()));
    refused(DropReason::SpoofedIp, &tagged(VID_V, &V1.to(&V9).bytes()));
    let unknown = V9.to(&V1).dst_mac(Mac([2, 9, 9, 9, 9, 9])).dst_ip([192, 0, 2, 1]);
    refused(DropReason::UnknownEndpoint, &tagged(VID_V, &unknown.bytes()));
}

#[test]
fn a_packet_from_the_wire_for_the_gateway_is_not_for_us() {
    refused(DropReason::NotForUs, &tagged(VID_V, &V9.via_gateway(&A1).bytes()));
}

#[test]
fn a_tunnel_inside_a_vlan_is_not_opened() {
    let outer = from_remote().src_ip(V9.ip).dst_ip(V1.ip).dst_mac(V1.mac);
    let inner = vxlan(&outer, VNI_A.get(), &A9.to(&A1).bytes());
    let mut fabric = Fabric::new();
    let wire = tagged(VID_V, &inner);
    let expected = received(UPLINK, &wire).walked().out(V1.port(), &inner);
    assert_eq!(fabric.send(UPLINK, &wire), expected);
}

#[test]
fn two_tags_and_the_reserved_tag_are_malformed() {
    let frame = V9.to(&V1).bytes();
    for frame in [tagged(VID_V, &tagged(VID_V, &frame)), tagged_as(0x8100, 4095, &frame)] {
        let expected = received(UPLINK, &frame);
        let expected = expected.dropped(UPLINK, DropReason::Malformed, frame.len());
        assert_eq!(Fabric::new().send(UPLINK, &frame), expected);
    }
}

#[test]
fn a_vlan_that_moves_to_another_tenant_takes_its_frames_along() {
    let mut fabric = Fabric::new();
    let wire = tagged(VID_V, &V9.to(&V1).bytes());
    fabric.send(UPLINK, &wire);
    fabric.put([Entry::Vlan(VlanEntry { port: UPLINK, vid: VID_V, bd: NET_V, vrf: RED })]);
    let expected = received(UPLINK, &wire).rewalked();
    let seen = fabric.send(UPLINK, &wire);
    assert_eq!(seen, expected.dropped(UPLINK, DropReason::UnknownEndpoint, wire.len()));
}
