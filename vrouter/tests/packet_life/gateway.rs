//! What the distributed gateway answers itself: echo, and packets whose hops are used up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowtable::DropReason;
use flowtable::entry::{Entry, Ipv6, NextHop, Prefix, RouteEntry};
use flowtable::ids::Mac;

use crate::fabric::frames::{L4, Packet};
use crate::fabric::{
    A1, A2, A9, B1, BLUE, Fabric, NET_A, R1, RED, UPLINK, V1, VNI_A, container, from_remote,
    received,
};

const GATEWAY_A: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 254);
const GATEWAY_B: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 254);

fn ping(gateway: Ipv4Addr) -> Packet {
    A1.to(&A1).dst_mac(Mac::GATEWAY).dst_ip(gateway).l4(L4::Echo)
}

/// The gateway's answer: an echo request turned into a reply (RFC 792) with a header of its own.
fn pong(gateway: Ipv4Addr) -> Vec<u8> {
    let macs = (Mac::GATEWAY, A1.mac);
    let mut bytes = Packet::new(macs, (gateway.into(), A1.ip.into())).l4(L4::Echo).bytes();
    bytes[34] = 0;
    // The type is the high byte of the first word: 8 less there, 8 more in the sum.
    let sum = u16::from_be_bytes([bytes[36], bytes[37]]);
    let (sum, carry) = sum.overflowing_add(0x0800);
    bytes[36..38].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    fresh_header(&mut bytes);
    bytes
}

/// Identification 0 and Don't Fragment, as in every packet that the gateway makes.
fn fresh_header(bytes: &mut [u8]) {
    bytes[18..22].copy_from_slice(&[0, 0, 0x40, 0]);
    bytes[24..26].fill(0);
    let words = bytes[14..34].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

#[test]
fn an_echo_to_the_gateway_comes_back() {
    let mut fabric = Fabric::new();
    for gateway in [GATEWAY_A, GATEWAY_B] {
        let request = ping(gateway).bytes();
        let expected = received(A1.port(), &request).walked().out(A1.port(), &pong(gateway));
        assert_eq!(fabric.send(A1.port(), &request), expected);
        let expected = received(A1.port(), &request).cached().out(A1.port(), &pong(gateway));
        assert_eq!(fabric.send(A1.port(), &request), expected);
    }
}

#[test]
fn an_echo_with_its_last_hop_still_reaches_the_gateway() {
    let mut fabric = Fabric::new();
    let request = ping(GATEWAY_A).ttl(1).bytes();
    let expected = received(A1.port(), &request).walked().out(A1.port(), &pong(GATEWAY_A));
    assert_eq!(fabric.send(A1.port(), &request), expected);
}

#[test]
fn an_echo_that_cannot_be_answered_is_counted_as_malformed() {
    let mut wrong_sum = ping(GATEWAY_A).bytes();
    wrong_sum[36] ^= 1;
    for request in [wrong_sum, ping(GATEWAY_A).first_fragment().bytes()] {
        let mut fabric = Fabric::new();
        let expected = received(A1.port(), &request).walked();
        let expected = expected.dropped(A1.port(), DropReason::Malformed, request.len());
        assert_eq!(fabric.send(A1.port(), &request), expected);
    }
}

#[test]
fn the_gateway_offers_nothing_but_echo() {
    let mut reply = ping(GATEWAY_A).bytes();
    reply[34] = 0;
    for request in [
        ping(GATEWAY_A).l4(L4::Udp(1, 53)).bytes(),
        ping(GATEWAY_A).l4(L4::Tcp(1, 22)).bytes(),
        ping(GATEWAY_A).l4(L4::Raw(47)).bytes(),
        ping(GATEWAY_A).later_fragment(9).bytes(),
        reply,
    ] {
        let mut fabric = Fabric::new();
        let expected = received(A1.port(), &request).walked();
        let expected = expected.dropped(A1.port(), DropReason::NotForUs, request.len());
        assert_eq!(fabric.send(A1.port(), &request), expected);
    }
}

/// ICMP time exceeded from A's gateway about `expired` (RFC 792): its header and 8 bytes, as sent.
fn exceeded(expired: &[u8]) -> Vec<u8> {
    let header_bytes = usize::from(expired[14] & 0x0f) * 4;
    let quote = &expired[14..14 + header_bytes + 8];
    let mut icmp = [&[11, 0, 0, 0, 0, 0, 0, 0], quote].concat();
    let words = icmp.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    icmp[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let outer = Packet::new((Mac::GATEWAY, A1.mac), (GATEWAY_A.into(), A1.ip.into()));
    let mut bytes = Packet { payload: icmp, ..outer }.l4(L4::Raw(1)).bytes();
    fresh_header(&mut bytes);
    bytes
}

#[test]
fn a_packet_on_its_last_hop_is_dropped_and_its_sender_told() {
    for packet in [
        A1.via_gateway(&B1).ttl(1),
        A1.via_gateway(&B1).ttl(0),
        A1.via_gateway(&A9).ttl(1),
        A1.via_gateway(&B1).ttl(1).l4(L4::Echo),
        A1.via_gateway(&B1).ttl(1).first_fragment(),
    ] {
        let mut fabric = Fabric::new();
        let frame = packet.bytes();
        let expected = received(A1.port(), &frame)
            .walked()
            .dropped(A1.port(), DropReason::TtlExpired, frame.len())
            .out(A1.port(), &exceeded(&frame));
        assert_eq!(fabric.send(A1.port(), &frame), expected);
    }
}

#[test]
fn nobody_is_told_about_errors_and_later_fragments_on_their_last_hop() {
    let mut unreachable = A1.via_gateway(&B1).ttl(1).l4(L4::Echo).bytes();
    unreachable[34] = 3;
    for frame in [unreachable, A1.via_gateway(&B1).ttl(1).later_fragment(9).bytes()] {
        let mut fabric = Fabric::new();
        let expected = received(A1.port(), &frame).walked();
        let expected = expected.dropped(A1.port(), DropReason::TtlExpired, frame.len());
        assert_eq!(fabric.send(A1.port(), &frame), expected);
    }
}

#[test]
fn a_bridged_packet_keeps_its_last_hop() {
    let mut fabric = Fabric::new();
    let frame = A1.to(&A2).ttl(1).bytes();
    let expected = received(A1.port(), &frame).walked().out(A2.port(), &frame);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

/// Taking IPv6 bytes for an IPv4 header would answer nonsense.
#[test]
fn an_ipv6_packet_on_its_last_hop_is_dropped_in_silence_without_an_ipv6_gateway() {
    let mut fabric = Fabric::new();
    let ips: [IpAddr; 2] = [1, 2].map(|n| IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)));
    let mut binding = A1.binding();
    binding.ipv6 = Ipv6::On;
    binding.ips.push(ips[0]);
    fabric.put([
        Entry::Port(binding),
        Entry::Route(RouteEntry {
            vrf: BLUE,
            prefix: Prefix::host(ips[1]),
            bd: NET_A,
            mac: A2.mac,
            next_hop: NextHop::Local(A2.port()),
        }),
    ]);
    let expired = Packet::new((A1.mac, Mac::GATEWAY), (ips[0], ips[1])).ttl(0).l4(L4::Raw(64));
    let mut frame = expired.bytes();
    // Traffic class and flow label that read as an IPv4 header of 20 bytes, in a packet of 56;
    // next header and hop limit as "don't fragment".
    frame[14..18].copy_from_slice(&[0x65, 0, 0, 56]);
    let expected = received(A1.port(), &frame).walked();
    let expected = expected.dropped(A1.port(), DropReason::TtlExpired, frame.len());
    assert_eq!(fabric.send(A1.port(), &frame), expected);
    let routed = Packet::new((Mac::GATEWAY, A2.mac), (ips[0], ips[1])).ttl(63).bytes();
    let frame = Packet::new((A1.mac, Mac::GATEWAY), (ips[0], ips[1])).bytes();
    let expected = received(A1.port(), &frame).walked().out(A2.port(), &routed);
    assert_eq!(fabric.send(A1.port(), &frame), expected);
}

/// Nor is there a way around it: the MAC is known to everybody.
#[test]
fn a_network_without_a_gateway_is_not_routed() {
    let frame = V1.via_gateway(&B1).bytes();
    let mut fabric = Fabric::new();
    let expected = received(V1.port(), &frame).walked();
    let expected = expected.dropped(V1.port(), DropReason::NotForUs, frame.len());
    assert_eq!(fabric.send(V1.port(), &frame), expected);
}

#[test]
fn a_port_that_asks_too_much_is_not_answered_and_others_are() {
    let mut fabric = Fabric::new();
    let request = A1.asks(A2.ip);
    let mut answered = 0;
    for _ in 0..300 {
        fabric.inject(A1.port(), &request);
        fabric.worker.poll(0);
        fabric.slow.poll();
        fabric.worker.poll(0);
        answered += fabric.worker.io_mut().take_sent(packet_io::QueueId::TRUNK).len();
    }
    assert_eq!(answered, 256);
    let limited = fabric.engine.drops().into_iter().find(|(r, _)| *r == DropReason::SlowPathLimit);
    assert_eq!(limited.map(|(_, count)| count.packets), Some(44));
    fabric.inject(B1.port(), &B1.asks(GATEWAY_B));
    fabric.worker.poll(0);
    fabric.slow.poll();
    fabric.worker.poll(0);
    assert_eq!(fabric.worker.io_mut().take_sent(packet_io::QueueId::TRUNK).len(), 1);
}

/// Between a question and its answer the port may get another container of another tenant.
#[test]
fn an_answer_does_not_reach_the_tenant_that_took_over_the_port() {
    let mut fabric = Fabric::new();
    let request = A1.asks(A2.ip);
    fabric.inject(A1.port(), &request);
    fabric.worker.poll(0);
    fabric.engine.remove_ports(&[A1.port()]).unwrap();
    fabric.engine.add_port(container(A1.port())).unwrap();
    let red = crate::fabric::Host { place: A1.place, ..R1 };
    assert_eq!(red.binding().vrf, RED);
    fabric.put([Entry::Port(red.binding())]);
    fabric.slow.poll();
    let delivered = fabric.settle();
    assert_eq!(delivered.out, []);
    let dropped = crate::fabric::Counter::Drop(DropReason::PortGone);
    assert_eq!(delivered.counters[&dropped].packets, 1);
}

#[test]
fn an_answer_into_a_tunnel_does_not_reach_the_tenant_that_took_over_the_vni() {
    let mut fabric = Fabric::new();
    let request = crate::fabric::frames::vxlan(&from_remote(), VNI_A.get(), &A9.asks(A1.ip));
    fabric.inject(UPLINK, &request);
    fabric.worker.poll(0);
    let moved = flowtable::entry::TunnelEntry { vni: VNI_A, bd: crate::fabric::NET_R, vrf: RED };
    fabric.put([Entry::Tunnel(moved)]);
    fabric.slow.poll();
    assert_eq!(fabric.settle().out, []);
}
