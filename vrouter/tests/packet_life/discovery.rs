//! IPv6 neighbors (RFC 4861) and the gateway's ICMPv6 (RFC 4443): what ARP and ICMP are in IPv4.

use std::net::Ipv6Addr;

use flowtable::DropReason;
use flowtable::entry::{Entry, Ipv6, NetworkEntry, Prefix, RouteEntry};
use flowtable::ids::{Mac, PortId};

use crate::fabric::frames::{L4, Packet, discovery, solicitation, tagged, vxlan};
use crate::fabric::{
    A1, A2, A9, B1, BLUE, Fabric, Host, NET_A, NET_B, NET_V, R2, UPLINK, V1, VID_V, VNI_A,
    from_remote, prefix, received,
};
use crate::oracle_bytes::neighbor_advert;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Host `d` of network `c` has `fd00:0:0:c::d`.
fn six(host: &Host) -> Ipv6Addr {
    let [_, _, net, last] = host.ip.octets();
    in_net(net, u16::from(last))
}

const fn in_net(net: u8, last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, net as u16, 0, 0, 0, last)
}

const GATEWAY_A: Ipv6Addr = in_net(1, 254);

/// The node, with IPv6 in blue's networks.
fn fabric() -> Fabric {
    let mut fabric = Fabric::new();
    let networks = [(NET_A, 1, None), (NET_B, 2, None), (NET_V, 3, Some((UPLINK, VID_V)))];
    fabric.put(networks.map(|(bd, net, wire)| {
        let gateways = if wire.is_some() {
            Vec::new()
        } else {
            vec![[10, 1, net, 254].into(), in_net(net, 254).into()]
        };
        let subnets = vec![prefix([10, 1, net, 0], 24), prefix(in_net(net, 0), 64)];
        Entry::Network(NetworkEntry { bd, vrf: BLUE, subnets, gateways, wire })
    }));
    for host in [A1, A2, B1, V1] {
        let mut binding = host.binding();
        binding.ipv6 = Ipv6::On;
        binding.ips.push(six(&host).into());
        fabric.put([Entry::Port(binding)]);
    }
    fabric.put([A1, A2, B1, V1, A9].map(|host| {
        let Host { vrf, bd, mac, place: next_hop, .. } = host;
        let prefix = Prefix::host(six(&host).into());
        Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop })
    }));
    fabric
}

/// `request` of A1 is answered with `mac` for `target`, to whom it says.
fn answered(request: &[u8], target: Ipv6Addr, mac: Mac) {
    let mut fabric = fabric();
    let reply = neighbor_advert(request, target, mac);
    let expected = received(A1.port(), request).walked().out(A1.port(), &reply);
    assert_eq!(fabric.send(A1.port(), request), expected);
    let expected = received(A1.port(), request).cached().out(A1.port(), &reply);
    assert_eq!(fabric.send(A1.port(), request), expected);
}

fn dropped_at(port: PortId, frame: &[u8], reason: DropReason) {
    let expected = received(port, frame).walked().dropped(port, reason, frame.len());
    assert_eq!(fabric().send(port, frame), expected);
}

fn dropped(frame: &[u8], reason: DropReason) {
    dropped_at(A1.port(), frame, reason);
}

fn asks(target: Ipv6Addr) -> Vec<u8> {
    solicitation(A1.mac, six(&A1), target)
}

#[test]
fn the_gateway_is_a_router_with_the_gateways_mac() {
    let request = asks(GATEWAY_A);
    answered(&request, GATEWAY_A, Mac::GATEWAY);
    // Flags of the message in the answer: router, solicited, override.
    assert_eq!(neighbor_advert(&request, GATEWAY_A, Mac::GATEWAY)[58], 0xe0);
}

#[test]
fn local_and_remote_endpoints_are_answered_with_their_own_mac() {
    for peer in [A2, A9] {
        answered(&asks(six(&peer)), six(&peer), peer.mac);
    }
}

#[test]
fn a_neighbor_is_asked_again_at_its_own_address_and_from_the_link_local_one() {
    for sender in [six(&A1), LINK_LOCAL] {
        let request = discovery(SOLICITATION, (A1.mac, A2.mac), (sender, six(&A2)), six(&A2));
        answered(&request, six(&A2), A2.mac);
    }
}

#[test]
fn an_address_that_another_has_is_defended_before_all() {
    let probe = solicitation(A1.mac, Ipv6Addr::UNSPECIFIED, six(&A2));
    answered(&probe, six(&A2), A2.mac);
    let reply = neighbor_advert(&probe, six(&A2), A2.mac);
    assert_eq!(
        (&reply[..6], &reply[38..54]),
        (&[0x33, 0x33, 0, 0, 0, 1][..], &ALL_NODES.octets()[..])
    );
    assert_eq!(reply[58], 0x20);
}

#[test]
fn a_probe_for_ones_own_address_hears_nothing() {
    let probe = solicitation(A1.mac, Ipv6Addr::UNSPECIFIED, six(&A1));
    dropped(&probe, DropReason::ArpUnknown);
}

#[test]
fn an_address_nobody_has_is_not_answered() {
    dropped(&asks(in_net(1, 77)), DropReason::ArpUnknown);
    // Nor one of another network, which is the gateway's to reach.
    dropped(&asks(six(&B1)), DropReason::ArpUnknown);
}

#[test]
fn what_nobody_knows_may_be_on_the_wire_of_a_vlan() {
    let request = solicitation(V1.mac, six(&V1), in_net(3, 77));
    let expected = received(V1.port(), &request).walked().out(UPLINK, &tagged(VID_V, &request));
    assert_eq!(fabric().send(V1.port(), &request), expected);
}

#[test]
fn a_tunnel_is_answered_for_local_endpoints_only() {
    for (target, mac) in [(six(&A1), Some(A1.mac)), (GATEWAY_A, None), (six(&A9), None)] {
        let mut fabric = fabric();
        let sender = in_net(1, 9);
        let inner = solicitation(A9.mac, sender, target);
        let request = vxlan(&from_remote(), VNI_A.get(), &inner);
        let delivered = fabric.send(UPLINK, &request);
        let answer = delivered.out.first().map(|(port, bytes)| (*port, bytes[50..].to_vec()));
        let expected = mac.map(|mac| (UPLINK, neighbor_advert(&inner, target, mac)));
        assert_eq!(answer, expected, "{target}");
    }
}

#[test]
fn a_spoofed_sender_is_refused() {
    dropped(&solicitation(A1.mac, six(&A2), six(&A9)), DropReason::SpoofedIp);
    dropped(&solicitation(A2.mac, six(&A1), six(&A9)), DropReason::SpoofedMac);
    // The hardware address in the option is what the receiver would believe.
    let mut foreign = asks(six(&A9));
    let option = foreign.len() - 1;
    foreign[option] ^= 1;
    dropped(&foreign, DropReason::SpoofedMac);
}

/// Neighbor cache poisoning: an advertisement speaks for its target, wherever it is sent from.
#[test]
fn nobody_advertises_another_ones_address() {
    for sender in [six(&A1), LINK_LOCAL] {
        for target in [six(&A2), GATEWAY_A] {
            let claim = discovery(ADVERTISEMENT, (A1.mac, A2.mac), (sender, six(&A2)), target);
            dropped(&claim, DropReason::SpoofedIp);
        }
    }
}

#[test]
fn an_advertisement_of_ones_own_address_reaches_its_neighbor() {
    let own = discovery(ADVERTISEMENT, (A1.mac, A2.mac), (six(&A1), six(&A2)), six(&A1));
    let expected = received(A1.port(), &own).walked().out(A2.port(), &own);
    assert_eq!(fabric().send(A1.port(), &own), expected);
}

/// RFC 6105: a container that advertises itself as a router would get its neighbors' traffic.
#[test]
fn containers_are_no_routers() {
    for kind in [133, 134, 137] {
        let message = Packet::new((A1.mac, A2.mac), (six(&A1).into(), six(&A2).into())).ttl(255);
        dropped(&message.l4(L4::Icmp(kind, 0, 0)).bytes(), DropReason::NotForUs);
    }
    let to_all = Mac([0x33, 0x33, 0, 0, 0, 1]);
    let message = Packet::new((A1.mac, to_all), (LINK_LOCAL.into(), ALL_NODES.into())).ttl(255);
    dropped(&message.l4(L4::Icmp(134, 0, 0)).bytes(), DropReason::Multicast);
}

#[test]
fn what_ipv6_tells_its_link_is_multicast_and_no_spoofing() {
    // RFC 3810: reports are sent from the link-local address, or from none.
    let to_all = Mac([0x33, 0x33, 0, 0, 0, 0x16]);
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
    for sender in [LINK_LOCAL, Ipv6Addr::UNSPECIFIED] {
        let report = Packet::new((A1.mac, to_all), (sender.into(), routers.into())).ttl(1);
        dropped(&report.l4(L4::Icmp(143, 0, 0)).bytes(), DropReason::Multicast);
    }
    let stray = Packet::new((A1.mac, A2.mac), (LINK_LOCAL.into(), six(&A2).into()));
    dropped(&stray.bytes(), DropReason::SpoofedIp);
}

#[test]
fn a_question_with_a_wrong_checksum_is_counted_as_malformed() {
    let mut request = asks(six(&A2));
    request[56] ^= 1;
    dropped(&request, DropReason::Malformed);
}

#[test]
fn discovery_is_off_where_ipv6_is() {
    let request = asks(six(&A2));
    let mut fabric = Fabric::new();
    let expected = received(A1.port(), &request).walked();
    let expected = expected.dropped(A1.port(), DropReason::Ipv6Off, request.len());
    assert_eq!(fabric.send(A1.port(), &request), expected);
}

#[test]
fn an_echo_to_the_gateway_comes_back() {
    let ping = Packet::new((A1.mac, Mac::GATEWAY), (six(&A1).into(), GATEWAY_A.into()));
    let request = ping.l4(L4::Echo).bytes();
    let pong = Packet::new((Mac::GATEWAY, A1.mac), (GATEWAY_A.into(), six(&A1).into()));
    let mut reply = pong.l4(L4::Echo).bytes();
    // Type 129: one more in the first word, one less in the sum.
    reply[54] = 129;
    let sum = u16::from_be_bytes([reply[56], reply[57]]);
    let (sum, borrow) = sum.overflowing_sub(0x0100);
    reply[56..58].copy_from_slice(&(sum - u16::from(borrow)).to_be_bytes());
    let expected = received(A1.port(), &request).walked().out(A1.port(), &reply);
    assert_eq!(fabric().send(A1.port(), &request), expected);
}

#[test]
fn a_packet_on_its_last_hop_is_quoted_to_its_sender() {
    let packet = Packet::new((A1.mac, Mac::GATEWAY), (six(&A1).into(), six(&B1).into())).ttl(1);
    for payload in [16, 1400] {
        let expired = Packet { payload: vec![7; payload], ..packet.clone() }.bytes();
        let mut fabric = fabric();
        let delivered = fabric.send(A1.port(), &expired);
        let [(port, error)] = &delivered.out[..] else { panic!("{delivered:?}") };
        assert_eq!(
            (*port, &error[..6], &error[6..12]),
            (A1.port(), &A1.mac.0[..], &Mac::GATEWAY.0[..])
        );
        // Time exceeded, in transit; from the gateway; no longer than 1,280 bytes.
        assert_eq!((error[54], error[55]), (3, 0));
        assert_eq!(
            (&error[22..38], &error[38..54]),
            (&GATEWAY_A.octets()[..], &six(&A1).octets()[..])
        );
        let quote = (expired.len() - 14).min(1280 - 48);
        assert_eq!(error[62..], expired[14..14 + quote]);
        assert!(crate::oracle_bytes::icmpv6_is_signed(error));
        let expected = received(A1.port(), &expired).walked();
        let expected = expected.dropped(A1.port(), DropReason::TtlExpired, expired.len());
        assert_eq!(delivered, expected.out(A1.port(), error));
    }
}

#[test]
fn nobody_is_told_of_an_error_about_an_error() {
    let packet = Packet::new((A1.mac, Mac::GATEWAY), (six(&A1).into(), six(&B1).into())).ttl(1);
    for (kind, told) in [(1, false), (137, false), (128, true)] {
        let frame = packet.clone().l4(L4::Icmp(kind, 0, 0)).bytes();
        let delivered = fabric().send(A1.port(), &frame);
        assert_eq!(!delivered.out.is_empty(), told, "{kind}");
    }
}

#[test]
fn ipv6_is_routed_and_its_replies_pass() {
    let mut fabric = fabric();
    let sent = Packet::new((A1.mac, Mac::GATEWAY), (six(&A1).into(), six(&B1).into()));
    let routed = Packet::new((Mac::GATEWAY, B1.mac), (six(&A1).into(), six(&B1).into())).ttl(63);
    let expected = received(A1.port(), &sent.bytes()).walked().out(B1.port(), &routed.bytes());
    assert_eq!(fabric.send(A1.port(), &sent.bytes()), expected);
}

/// The sender's kernel believes a MAC for up to 45 s after it has heard it (RFC 4861, section 6.3.2);
/// the address may have another endpoint by then.
#[test]
fn net_6_an_address_that_has_another_mac_by_now_is_reached_by_the_router() {
    let mut fabric = fabric();
    // A MAC that is gone, one that a neighbor has, and one of another tenant.
    for stale in [Mac([2, 9, 9, 9, 9, 9]), A9.mac, R2.mac] {
        let packet = A1.to(&A2).src_ip(six(&A1)).dst_ip(six(&A2));
        let frame = packet.clone().dst_mac(stale).bytes();
        let routed = packet.src_mac(Mac::GATEWAY).ttl(63).bytes();
        let expected = received(A1.port(), &frame).walked().out(A2.port(), &routed);
        assert_eq!(fabric.send(A1.port(), &frame), expected);
    }
}

#[test]
fn an_announcement_is_an_unsolicited_advertisement_to_all_nodes() {
    let mac = [2, 0, 0, 0, 0, 7];
    let address: Ipv6Addr = "2001:db8::1".parse().unwrap();
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let frame = vrouter::announcement(address.into(), Mac(mac));
    let ethernet = [&[0x33, 0x33, 0, 0, 0, 1][..], &mac, &[0x86, 0xdd]].concat();
    // Length 32, ICMPv6, hop limit 255.
    let ip = [&[0x60, 0, 0, 0, 0, 32, 58, 255], &address.octets()[..], &all_nodes.octets()];
    assert_eq!(frame[..54], [ethernet, ip.concat()].concat());
    // A neighbor advertisement that only overrides, with the target's link-layer address.
    assert_eq!((frame[54], frame[55], &frame[58..62]), (136, 0, &[0x20, 0, 0, 0][..]));
    assert_eq!(frame[62..], [&address.octets()[..], &[2, 1], &mac].concat());
    // RFC 4443, section 2.3: pseudo header and message sum up to all ones.
    let pseudo = [&frame[22..54], &[0, 0, 0, 32, 0, 0, 0, 58], &frame[54..]].concat();
    let words = pseudo.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let sum = words.sum::<u32>();
    assert_eq!((sum >> 16) + (sum & 0xffff), 0xffff);
}
