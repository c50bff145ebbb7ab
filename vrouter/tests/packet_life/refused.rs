//! What a container may not send: addresses that are not its own, and frames that lie.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::EtherType;
use flowtable::DropReason;
use flowtable::entry::{Entry, Ipv6, MacEntry, Prefix, RouteEntry};
use flowtable::ids::Mac;

use crate::fabric::frames::{L4, Packet, ethernet};
use crate::fabric::{A1, A2, A9, B1, BLUE, Fabric, NET_A, R2, V1, received};

/// A1 sends a frame that the tables refuse.
fn refused(reason: DropReason, frame: &[u8]) {
    let mut fabric = Fabric::new();
    let dropped = |seen: crate::fabric::Delivered| seen.dropped(A1.port(), reason, frame.len());
    let expected = dropped(received(A1.port(), frame).walked());
    assert_eq!(fabric.send(A1.port(), frame), expected);
    assert_eq!(fabric.send(A1.port(), frame), dropped(received(A1.port(), frame).cached()));
}

#[test]
fn a_source_mac_that_is_not_the_ports_is_refused() {
    refused(DropReason::SpoofedMac, &A1.to(&A2).src_mac(A9.mac).bytes());
    refused(DropReason::SpoofedMac, &A1.to(&A2).src_mac(A2.mac).bytes());
    refused(DropReason::SpoofedMac, &A1.to(&A2).src_mac(Mac::GATEWAY).bytes());
}

#[test]
fn a_source_address_that_is_not_the_ports_is_refused() {
    refused(DropReason::SpoofedIp, &A1.to(&A2).src_ip(A9.ip).bytes());
    refused(DropReason::SpoofedIp, &A1.via_gateway(&B1).src_ip([10, 1, 1, 77]).bytes());
    refused(DropReason::SpoofedIp, &A1.to(&A2).src_ip([0, 0, 0, 0]).bytes());
}

#[test]
fn ipv6_is_refused_in_a_network_without_it() {
    let ips = (IpAddr::from(Ipv6Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    refused(DropReason::Ipv6Off, &Packet::new((A1.mac, A2.mac), ips).bytes());
}

#[test]
fn ipv6_is_bridged_in_a_network_with_it_from_its_own_addresses_only() {
    let mut fabric = Fabric::new();
    let ips = [1, 2].map(|n| IpAddr::from(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, n)));
    let mut binding = A1.binding();
    binding.ipv6 = Ipv6::On;
    binding.ips.push(ips[0]);
    let (prefix, next_hop) = (Prefix::host(ips[1]), A2.place);
    let route = RouteEntry { vrf: BLUE, prefix, bd: NET_A, mac: A2.mac, next_hop };
    fabric.put([Entry::Port(binding), Entry::Route(route)]);
    for packet in [
        Packet::new((A1.mac, A2.mac), (ips[0], ips[1])),
        Packet::new((A1.mac, A2.mac), (ips[0], ips[1])).l4(L4::Echo),
        Packet::new((A1.mac, A2.mac), (ips[0], ips[1])).later_fragment(9),
    ] {
        let frame = packet.bytes();
        let expected = received(A1.port(), &frame).walked().out(A2.port(), &frame);
        assert_eq!(fabric.send(A1.port(), &frame), expected);
    }
    // An IPv4 address in IPv6 form is another address.
    let mapped = IpAddr::from(A1.ip.to_ipv6_mapped());
    for source in [ips[1], mapped] {
        let frame = Packet::new((A1.mac, A2.mac), (source, ips[1])).bytes();
        let expected = received(A1.port(), &frame).walked();
        let expected = expected.dropped(A1.port(), DropReason::SpoofedIp, frame.len());
        assert_eq!(fabric.send(A1.port(), &frame), expected);
    }
}

#[test]
fn an_address_that_nobody_has_is_unknown() {
    refused(DropReason::UnknownEndpoint, &A1.via_gateway(&A2).dst_ip([10, 1, 1, 77]).bytes());
    refused(DropReason::UnknownEndpoint, &A1.via_gateway(&B1).dst_ip([10, 1, 2, 77]).bytes());
    let mac = Mac([2, 9, 9, 9, 9, 9]);
    refused(DropReason::UnknownEndpoint, &A1.to(&A2).dst_mac(mac).bytes());
}

#[test]
fn an_address_outside_the_tenant_has_no_route() {
    refused(DropReason::NoRoute, &A1.via_gateway(&A2).dst_ip([192, 0, 2, 1]).bytes());
    refused(DropReason::NoRoute, &A1.via_gateway(&A2).dst_ip([224, 0, 0, 5]).bytes());
}

/// The group of the receiver is that of its address, so the address must be the receiver's.
#[test]
fn an_address_is_reached_at_its_own_mac_only() {
    for (mac, ip) in [
        (A2.mac, A9.ip),
        (A2.mac, B1.ip),
        (A2.mac, [10, 1, 1, 77].into()),
        (A2.mac, [192, 0, 2, 1].into()),
        (A9.mac, A2.ip),
        (R2.mac, A2.ip),
    ] {
        refused(DropReason::UnknownEndpoint, &A1.to(&A2).dst_mac(mac).dst_ip(ip).bytes());
    }
}

#[test]
fn group_addressed_frames_go_nowhere() {
    let frame = A1.to(&A2).dst_mac(Mac::BROADCAST).dst_ip([255, 255, 255, 255]).bytes();
    refused(DropReason::Multicast, &frame);
    let group = Mac([1, 0, 0x5e, 0, 0, 1]);
    refused(DropReason::Multicast, &A1.to(&A2).dst_mac(group).dst_ip([224, 0, 0, 1]).bytes());
    let mut fabric = Fabric::new();
    let frame = V1.to(&A2).dst_mac(Mac::BROADCAST).bytes();
    let expected = received(V1.port(), &frame).walked();
    let expected = expected.dropped(V1.port(), DropReason::Multicast, frame.len());
    assert_eq!(fabric.send(V1.port(), &frame), expected);
}

#[test]
fn what_is_neither_ip_nor_arp_is_refused() {
    let macs = (A1.mac, A2.mac);
    refused(DropReason::NonIp, &ethernet(macs, EtherType(0x88cc), &[0; 50]));
    refused(DropReason::NonIp, &ethernet(macs, EtherType(38), &[0; 50]));
    refused(DropReason::NonIp, &ethernet((A1.mac, Mac::GATEWAY), EtherType(0x88cc), &[]));
}

#[test]
fn frames_that_lie_are_malformed() {
    let good = A1.to(&A2).bytes();
    let change = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    for (why, frame) in [
        ("no ethertype", good[..12].to_vec()),
        ("cut in the Ethernet header", good[..13].to_vec()),
        ("cut in the IP header", good[..33].to_vec()),
        ("cut in the UDP header", good[..41].to_vec()),
        ("shorter than its IP length", good[..good.len() - 1].to_vec()),
        ("version 5", change(14, 0x55)),
        ("header of 16 bytes", change(14, 0x44)),
        ("header beyond the packet", change(14, 0x4f)),
        ("wrong header checksum", change(24, good[24] ^ 1)),
        ("TTL changed under way", change(22, 63)),
        ("UDP longer than IP", change(39, 255)),
        ("UDP shorter than itself", change(39, 7)),
        ("TCP without its header", A1.to(&A2).l4(L4::Raw(6)).bytes()),
        ("TCP flags overwritten", A1.to(&A2).l4(L4::Tcp(1, 2)).later_fragment(1).bytes()),
        ("beyond 64 KiB", A1.to(&A2).later_fragment(0x1fff).bytes()),
        ("ARP cut short", A1.asks(A2.ip)[..40].to_vec()),
    ] {
        let mut fabric = Fabric::new();
        let expected = received(A1.port(), &frame);
        let expected = expected.dropped(A1.port(), DropReason::Malformed, frame.len());
        assert_eq!(fabric.send(A1.port(), &frame), expected, "{why}");
    }
}

#[test]
fn a_mac_of_the_network_without_address_is_not_reached() {
    let mut fabric = Fabric::new();
    let mac = Mac([2, 7, 7, 7, 7, 7]);
    fabric.put([Entry::Mac(MacEntry { bd: NET_A, mac, next_hop: A2.place })]);
    let frame = A1.to(&A2).dst_mac(mac).bytes();
    let expected = received(A1.port(), &frame).walked();
    let expected = expected.dropped(A1.port(), DropReason::UnknownEndpoint, frame.len());
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}
