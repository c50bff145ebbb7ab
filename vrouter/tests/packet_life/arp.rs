//! ARP: answered by the node for every address that it knows, and flooded to a VLAN's wire only.

use std::net::Ipv4Addr;

use etherparse::ArpOperation;
use flowtable::DropReason;
use flowtable::entry::NextHop;
use flowtable::entry::{Entry, Prefix, RouteEntry};
use flowtable::ids::Mac;

use crate::fabric::frames::{arp, tagged, vxlan};
use crate::fabric::{
    A1, A2, A9, B1, BLUE, Fabric, Host, NET_A, R1, R2, R9, UPLINK, V1, V9, VID_V, VNI_A,
    from_remote, received,
};

const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 77);
const GATEWAY_A: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 254);

/// `asker` asks for `target` and is told `mac`.
fn answered(asker: Host, target: Ipv4Addr, mac: Mac) {
    let mut fabric = Fabric::new();
    let (request, reply) = (asker.asks(target), asker.is_told(target, mac));
    let expected = received(asker.port(), &request).walked().out(asker.port(), &reply);
    assert_eq!(fabric.send(asker.port(), &request), expected);
    let expected = received(asker.port(), &request).cached().out(asker.port(), &reply);
    assert_eq!(fabric.send(asker.port(), &request), expected);
}

fn dropped(asker: Host, request: &[u8], reason: DropReason) {
    let mut fabric = Fabric::new();
    let port = asker.port();
    let expected = received(port, request).walked().dropped(port, reason, request.len());
    assert_eq!(fabric.send(port, request), expected);
}

#[test]
fn the_gateway_is_answered_with_the_gateways_mac() {
    answered(A1, GATEWAY_A, Mac([0x00, 0x00, 0x11, 0x11, 0x11, 0x11]));
    answered(B1, [10, 1, 2, 254].into(), Mac::GATEWAY);
}

#[test]
fn a_local_endpoint_is_answered_with_its_own_mac() {
    answered(A1, A2.ip, A2.mac);
}

#[test]
fn a_remote_endpoint_is_answered_with_its_own_mac() {
    answered(A1, A9.ip, A9.mac);
}

#[test]
fn a_known_endpoint_on_the_wire_is_answered_with_its_own_mac() {
    answered(V1, V9.ip, V9.mac);
}

#[test]
fn each_tenant_is_told_of_its_own_endpoint() {
    answered(R1, R2.ip, R2.mac);
    answered(R1, R9.ip, R9.mac);
}

#[test]
fn an_address_nobody_has_is_not_answered() {
    dropped(A1, &A1.asks(NOBODY), DropReason::ArpUnknown);
}

#[test]
fn an_address_of_another_network_is_not_answered() {
    dropped(A1, &A1.asks(B1.ip), DropReason::ArpUnknown);
    dropped(A1, &A1.asks([10, 1, 2, 254].into()), DropReason::ArpUnknown);
}

#[test]
fn who_asks_for_its_own_address_hears_nothing() {
    dropped(A1, &A1.asks(A1.ip), DropReason::ArpUnknown);
}

#[test]
fn a_probe_before_using_an_address_hears_nothing_when_it_is_free() {
    let probe = Host { ip: Ipv4Addr::UNSPECIFIED, ..A1 };
    dropped(A1, &probe.asks(A1.ip), DropReason::ArpUnknown);
}

#[test]
fn a_probe_for_an_address_that_another_has_is_answered() {
    let mut fabric = Fabric::new();
    let probe = Host { ip: Ipv4Addr::UNSPECIFIED, ..A1 };
    let (request, reply) = (probe.asks(A2.ip), probe.is_told(A2.ip, A2.mac));
    let expected = received(A1.port(), &request).walked().out(A1.port(), &reply);
    assert_eq!(fabric.send(A1.port(), &request), expected);
}

#[test]
fn an_address_inside_a_block_without_endpoint_has_no_mac() {
    let mut fabric = Fabric::new();
    fabric.put([Entry::Route(RouteEntry {
        vrf: BLUE,
        prefix: Prefix::host(NOBODY.into()),
        bd: NET_A,
        mac: Mac::default(),
        next_hop: NextHop::UnknownEndpoint,
    })]);
    let request = A1.asks(NOBODY);
    let expected = received(A1.port(), &request).walked();
    let expected = expected.dropped(A1.port(), DropReason::ArpUnknown, request.len());
    assert_eq!(fabric.send(A1.port(), &request), expected);
}

#[test]
fn a_spoofed_sender_is_refused() {
    dropped(A1, &Host { ip: A2.ip, ..A1 }.asks(A9.ip), DropReason::SpoofedIp);
    dropped(A1, &Host { mac: A2.mac, ..A1 }.asks(A9.ip), DropReason::SpoofedMac);
    let reply = arp(ArpOperation::REPLY, (A1.mac, A2.mac), (A9.ip, A2.ip));
    dropped(A1, &reply, DropReason::SpoofedIp);
}

#[test]
fn another_hardware_address_inside_the_message_is_a_spoofed_mac() {
    let mut request = A1.asks(A9.ip);
    // Sender hardware address: after the Ethernet header and 8 bytes of the ARP header (RFC 826).
    request[22..28].copy_from_slice(&A2.mac.0);
    dropped(A1, &request, DropReason::SpoofedMac);
}

#[test]
fn an_unknown_address_is_asked_for_on_the_wire_of_a_vlan_only() {
    let mut fabric = Fabric::new();
    let request = V1.asks([10, 1, 3, 77].into());
    let expected = received(V1.port(), &request).walked().out(UPLINK, &tagged(VID_V, &request));
    assert_eq!(fabric.send(V1.port(), &request), expected);
}

#[test]
fn an_answer_is_delivered_to_who_asked() {
    let mut fabric = Fabric::new();
    let reply = A1.is_told(A2.ip, A2.mac);
    let expected = received(A2.port(), &reply).walked().out(A1.port(), &reply);
    assert_eq!(fabric.send(A2.port(), &reply), expected);
    let reply = V1.is_told(V9.ip, V9.mac);
    let wire = tagged(VID_V, &reply);
    let expected = received(UPLINK, &wire).walked().out(V1.port(), &reply);
    assert_eq!(fabric.send(UPLINK, &wire), expected);
}

/// An answer that was routed would reach other networks, and no rule is ever asked about ARP.
#[test]
fn an_answer_is_not_routed() {
    let reply = arp(ArpOperation::REPLY, (A1.mac, Mac::GATEWAY), (A1.ip, B1.ip));
    dropped(A1, &reply, DropReason::NotForUs);
    let reply = arp(ArpOperation::REPLY, (A1.mac, Mac::GATEWAY), (A1.ip, GATEWAY_A));
    dropped(A1, &reply, DropReason::NotForUs);
}

#[test]
fn a_broadcast_answer_goes_nowhere() {
    let reply = arp(ArpOperation::REPLY, (A1.mac, Mac::BROADCAST), (A1.ip, A1.ip));
    dropped(A1, &reply, DropReason::Multicast);
}

#[test]
fn a_request_from_a_tunnel_is_answered_into_it_for_local_endpoints() {
    let mut fabric = Fabric::new();
    let request = vxlan(&from_remote(), VNI_A.get(), &A9.asks(A1.ip));
    let delivered = fabric.send(UPLINK, &request);
    let [(port, reply)] = &delivered.out[..] else { panic!("{delivered:?}") };
    assert_eq!((*port, &reply[50..]), (UPLINK, &A9.is_told(A1.ip, A1.mac)[..]));
    assert_eq!(reply[26..34], [10, 250, 0, 1, 10, 250, 0, 2]);
    assert_eq!(reply[36..38], [0x12, 0xb5]);
    assert_eq!(reply[42..50], [8, 0, 0, 0, 0, 0, 100, 0]);
    assert_eq!(delivered, received(UPLINK, &request).walked().out(UPLINK, reply));
}

#[test]
fn a_request_from_the_wire_is_answered_there_for_local_endpoints() {
    let mut fabric = Fabric::new();
    let request = tagged(VID_V, &V9.asks(V1.ip));
    let reply = tagged(VID_V, &V9.is_told(V1.ip, V1.mac));
    let expected = received(UPLINK, &request).walked().out(UPLINK, &reply);
    assert_eq!(fabric.send(UPLINK, &request), expected);
}

#[test]
fn a_request_from_tunnel_or_wire_for_what_is_not_ours_is_left_to_its_node() {
    let tunnelled = |target| vxlan(&from_remote(), VNI_A.get(), &A9.asks(target));
    for request in [
        tunnelled(A9.ip),
        tunnelled([10, 1, 1, 8].into()),
        tunnelled(GATEWAY_A),
        tunnelled(NOBODY),
        tunnelled(B1.ip),
        tagged(VID_V, &V9.asks([10, 1, 3, 77].into())),
        tagged(VID_V, &Host { ip: NOBODY, ..V9 }.asks(V9.ip)),
    ] {
        let mut fabric = Fabric::new();
        let expected = received(UPLINK, &request).walked();
        let expected = expected.dropped(UPLINK, DropReason::ArpUnknown, request.len());
        assert_eq!(fabric.send(UPLINK, &request), expected);
    }
}

#[test]
fn arp_for_other_hardware_or_protocols_is_malformed() {
    for (at, value) in [(15, 6), (16, 9), (18, 8), (19, 16)] {
        let mut request = A1.asks(A2.ip);
        request[at] = value;
        let expected = received(A1.port(), &request);
        let expected = expected.dropped(A1.port(), DropReason::Malformed, request.len());
        assert_eq!(Fabric::new().send(A1.port(), &request), expected, "byte {at}");
    }
}

#[test]
fn an_announcement_tells_everybody_where_an_address_is() {
    let mac = Mac([2, 0, 0, 0, 0, 7]);
    let frame = vrouter::announcement([192, 0, 2, 1].into(), mac);
    let (own, ip) = ([2, 0, 0, 0, 0, 7], [192, 0, 2, 1]);
    let ethernet = [&[0xff; 6][..], &own, &[0x08, 0x06]].concat();
    let asks = [&[0, 1, 0x08, 0, 6, 4, 0, 1][..], &own, &ip, &[0; 6], &ip].concat();
    assert_eq!(frame, [ethernet, asks].concat());
}
