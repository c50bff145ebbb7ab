//! To and from other nodes: VXLAN over IPv4 and IPv6.

use flowtable::DropReason;
use flowtable::entry::{EntryKey, Op};
use flowtable::ids::Mac;
use flowtable::key::{Decap, KeyHasher, Origin, parse};

use crate::fabric::frames::{L4, Packet, tagged_as, vxlan};
use crate::fabric::{
    A1, A2, A8, A9, B1, B9, Delivered, Fabric, LOCAL, R1, R9, REMOTE, UPLINK, VNI_A, VNI_B, VNI_R,
    from_remote, from_remote6, received, underlay,
};

/// Source port of a flow's outer UDP header, as RFC 7348, section 5 advises: from a hash of the
/// inner headers, in the dynamic range 49152 to 65535.
fn entropy(in_port: flowtable::ids::PortId, frame: &[u8]) -> [u8; 2] {
    let parsed = parse(frame, Origin { in_port, decap: Decap::Never }).unwrap();
    let port = 0xc000 | (KeyHasher::new(7).hash(&parsed.key) >> 48) as u16;
    port.to_be_bytes()
}

/// `inner` in VXLAN to 10.250.0.2, byte by byte.
fn over_ipv4(entropy: [u8; 2], vni: u8, inner: &[u8]) -> Vec<u8> {
    let udp_len = (16 + inner.len() as u16).to_be_bytes();
    let ip_len = (36 + inner.len() as u16).to_be_bytes();
    let mut outer = vec![
        0x02, 0xee, 0, 0, 0, 2, 0x02, 0xee, 0, 0, 0, 1, 0x08, 0x00, // Ethernet
        0x45, 0, ip_len[0], ip_len[1], 0, 0, 0x40, 0, 64, 17, 0, 0, // DF, TTL 64, UDP
        10, 250, 0, 1, 10, 250, 0, 2, //
        entropy[0], entropy[1], 0x12, 0xb5, udp_len[0], udp_len[1], 0,
        0, // to 4789, no checksum
        0x08, 0, 0, 0, 0, 0, vni, 0,
    ];
    let mut sum: u32 =
        outer[14..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    outer[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    [&outer[..], inner].concat()
}

#[test]
fn a_frame_for_a_host_of_another_node_leaves_in_vxlan() {
    let mut fabric = Fabric::new();
    let frame = A1.to(&A9).bytes();
    let outer = over_ipv4(entropy(A1.port(), &frame), 100, &frame);
    let expected = received(A1.port(), &frame).walked().out(UPLINK, &outer);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
    let expected = received(A1.port(), &frame).cached().out(UPLINK, &outer);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

#[test]
fn a_packet_routed_to_another_node_carries_the_vni_of_the_destinations_network() {
    let mut fabric = Fabric::new();
    let frame = A1.via_gateway(&B9).bytes();
    let routed = A1.to(&B9).src_mac(Mac::GATEWAY).ttl(63).bytes();
    let outer = over_ipv4(entropy(A1.port(), &frame), 101, &routed);
    let expected = received(A1.port(), &frame).walked().out(UPLINK, &outer);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

#[test]
fn tenants_with_the_same_addresses_leave_with_their_own_vni() {
    let mut fabric = Fabric::new();
    assert_eq!((A1.ip, A9.ip), (R1.ip, R9.ip));
    let frame = R1.to(&R9).bytes();
    let outer = over_ipv4(entropy(R1.port(), &frame), 200, &frame);
    let expected = received(R1.port(), &frame).walked().out(UPLINK, &outer);
    assert_eq!(fabric.send(R1.port(), &frame), expected);
}

#[test]
fn the_outer_source_port_tells_flows_apart() {
    let mut fabric = Fabric::new();
    let sent = |fabric: &mut Fabric, port| {
        let frame = A1.to(&A9).l4(L4::Udp(port, 2000)).bytes();
        fabric.send(A1.port(), &frame).out[0].1[34..36].to_vec()
    };
    let mut ports: Vec<_> = (0..64).map(|port| sent(&mut fabric, port)).collect();
    assert!(ports.iter().all(|port| port[0] >= 0xc0));
    ports.sort();
    ports.dedup();
    assert!(ports.len() > 60, "64 flows have {} outer source ports", ports.len());
}

#[test]
fn a_frame_over_an_ipv6_underlay_has_seventy_bytes_more() {
    let mut fabric = Fabric::new();
    let frame = A1.to(&A8).bytes();
    let port = entropy(A1.port(), &frame);
    let len = (16 + frame.len() as u16).to_be_bytes();
    let outer = [
        &[0x02, 0xee, 0, 0, 0, 2, 0x02, 0xee, 0, 0, 0, 1, 0x86, 0xdd][..],
        &[0x60, 0, 0, 0, len[0], len[1], 17, 64],
        &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        &[port[0], port[1], 0x12, 0xb5, len[0], len[1], 0, 0],
        &[0x08, 0, 0, 0, 0, 0, 100, 0],
        &frame,
    ]
    .concat();
    assert_eq!(outer.len(), frame.len() + 70);
    let expected = received(A1.port(), &frame).walked().out(UPLINK, &outer);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

#[test]
fn vxlan_from_another_node_is_opened_and_delivered() {
    let mut fabric = Fabric::new();
    for (outer, vni, from, to) in [
        (from_remote(), VNI_A, A9, A1),
        (from_remote(), VNI_B, B9, B1),
        (from_remote(), VNI_R, R9, R1),
        (from_remote6(), VNI_A, A8, A2),
    ] {
        let inner = from.to(&to).bytes();
        let frame = vxlan(&outer, vni.get(), &inner);
        let expected = received(UPLINK, &frame).walked().out(to.port(), &inner);
        assert_eq!(fabric.send(UPLINK, &frame), expected);
        let expected = received(UPLINK, &frame).cached().out(to.port(), &inner);
        assert_eq!(fabric.send(UPLINK, &frame), expected);
    }
}

#[test]
fn the_network_of_a_tunnelled_frame_is_that_of_its_vni() {
    let mut fabric = Fabric::new();
    // Blue's frame under red's identifier: red has the address, but nobody has the MAC.
    let inner = A9.to(&A1).bytes();
    let frame = vxlan(&from_remote(), VNI_R.get(), &inner);
    let expected = received(UPLINK, &frame).walked();
    let expected = expected.dropped(UPLINK, DropReason::UnknownEndpoint, frame.len());
    assert_eq!(fabric.send(UPLINK, &frame), expected);
}

#[test]
fn a_priority_tag_on_the_wire_does_not_hide_the_tunnel() {
    let mut fabric = Fabric::new();
    let inner = A9.to(&A1).bytes();
    let frame = tagged_as(0x8100, 0, &vxlan(&from_remote(), VNI_A.get(), &inner));
    let expected = received(UPLINK, &frame).walked().out(A1.port(), &inner);
    assert_eq!(fabric.send(UPLINK, &frame), expected);
}

/// Sends VXLAN that ends at the uplink and says why it must.
fn refused(reason: DropReason, frame: &[u8]) {
    let mut fabric = Fabric::new();
    let expected = received(UPLINK, frame).walked().dropped(UPLINK, reason, frame.len());
    assert_eq!(fabric.send(UPLINK, frame), expected);
}

#[test]
fn an_unknown_vni_is_refused() {
    let inner = A9.to(&A1).bytes();
    refused(DropReason::UnknownVni, &vxlan(&from_remote(), 102, &inner));
}

#[test]
fn vxlan_from_an_unknown_node_is_refused() {
    let inner = A9.to(&A1).bytes();
    let outer = from_remote().src_ip([10, 250, 0, 3]);
    refused(DropReason::UnknownVtep, &vxlan(&outer, VNI_A.get(), &inner));
    let outer = Packet { ips: (LOCAL, REMOTE), ..from_remote() };
    refused(DropReason::UnknownVtep, &vxlan(&outer, VNI_A.get(), &inner));
}

#[test]
fn untagged_frames_that_are_no_tunnel_are_not_for_us() {
    refused(DropReason::NotForUs, &from_remote().bytes());
    refused(DropReason::NotForUs, &A9.to(&A1).bytes());
    refused(DropReason::NotForUs, &A9.asks(A1.ip));
}

#[test]
fn a_tunnelled_packet_for_the_gateway_is_not_for_us() {
    let inner = A9.via_gateway(&B1).bytes();
    refused(DropReason::NotForUs, &vxlan(&from_remote(), VNI_A.get(), &inner));
}

#[test]
fn what_comes_from_a_tunnel_does_not_go_into_one() {
    let inner = A9.to(&A8).bytes();
    refused(DropReason::SplitHorizon, &vxlan(&from_remote(), VNI_A.get(), &inner));
    let inner = A9.to(&A9).bytes();
    refused(DropReason::SplitHorizon, &vxlan(&from_remote(), VNI_A.get(), &inner));
}

#[test]
fn tunnelled_frames_that_lie_are_malformed() {
    let inner = A9.to(&A1).bytes();
    let good = vxlan(&from_remote(), VNI_A.get(), &inner);
    let mut no_flag = good.clone();
    no_flag[42] = 0;
    let mapped = |ip| match ip {
        std::net::IpAddr::V4(ip) => std::net::IpAddr::from(ip.to_ipv6_mapped()),
        std::net::IpAddr::V6(_) => ip,
    };
    let disguised = Packet { ips: (mapped(REMOTE), mapped(LOCAL)), ..from_remote6() };
    for (why, frame) in [
        ("cut inside the VXLAN header", good[..48].to_vec()),
        ("without the I flag", no_flag),
        ("an inner tag", vxlan(&from_remote(), VNI_A.get(), &tagged_as(0x8100, 7, &inner))),
        ("an inner header cut short", vxlan(&from_remote(), VNI_A.get(), &inner[..30])),
        ("first fragment", vxlan(&from_remote().first_fragment(), VNI_A.get(), &inner)),
        ("later fragment", from_remote().later_fragment(100).bytes()),
        ("IPv4 node under an IPv6 name", vxlan(&disguised, VNI_A.get(), &inner)),
    ] {
        let mut fabric = Fabric::new();
        let expected = received(UPLINK, &frame);
        let expected = expected.dropped(UPLINK, DropReason::Malformed, frame.len());
        assert_eq!(fabric.send(UPLINK, &frame), expected, "{why}");
    }
    let frame = vxlan(&from_remote(), 0, &inner);
    let expected = received(UPLINK, &frame);
    let expected = expected.dropped(UPLINK, DropReason::UnknownVni, frame.len());
    assert_eq!(Fabric::new().send(UPLINK, &frame), expected);
}

#[test]
fn a_node_without_a_next_hop_is_unresolved_until_it_has_one() {
    let mut fabric = Fabric::new();
    let frame = A1.to(&A9).bytes();
    let outer = over_ipv4(entropy(A1.port(), &frame), 100, &frame);
    fabric.send(A1.port(), &frame);
    fabric.write(&[Op::Delete(EntryKey::Underlay(REMOTE))]);
    let reason = DropReason::UnresolvedUnderlay;
    let lost = |seen: Delivered| seen.dropped(A1.port(), reason, frame.len());
    let expected = lost(received(A1.port(), &frame).rewalked());
    assert_eq!(fabric.send(A1.port(), &frame), expected);
    assert_eq!(fabric.send(A1.port(), &frame), lost(received(A1.port(), &frame).cached()));
    fabric.put([underlay(REMOTE)]);
    let expected = received(A1.port(), &frame).rewalked().out(UPLINK, &outer);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

#[test]
fn a_node_that_is_no_longer_known_gets_nothing() {
    let mut fabric = Fabric::new();
    fabric.write(&[Op::Delete(EntryKey::Vtep(REMOTE))]);
    let frame = A1.to(&A9).bytes();
    let expected = received(A1.port(), &frame).walked();
    let expected = expected.dropped(A1.port(), DropReason::UnknownVtep, frame.len());
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}
