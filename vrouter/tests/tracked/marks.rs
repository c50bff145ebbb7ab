//! DSCP: written, changed live, copied to the outer header; and congestion through tunnels (RFC 6040).

use std::net::IpAddr;

use flowtable::DropReason;
use flowtable::entry::{Entry, EntryKey, Ipv6, Op, PortEntry, Prefix, QosEntry, RouteEntry};
use flowtable::ids::Dscp;

use super::*;
use crate::fabric::{A1, A2, A8, A9, B1, from_remote6};

fn mark(dscp: Option<u32>) -> Entry {
    let dscp = dscp.map(|dscp| Dscp::new(dscp).unwrap());
    Entry::Qos(QosEntry { port: A1.port(), from: Vec::new(), to: Vec::new(), dscp })
}

/// The traffic class at an offset, and, of IPv4, whether the header's checksum is right.
fn class(frame: &[u8], at: usize) -> u8 {
    if frame[at] >> 4 == 6 {
        return frame[at] << 4 | frame[at + 1] >> 4;
    }
    let words = frame[at..at + 20].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let sum: u32 = words.sum();
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "checksum");
    frame[at + 1]
}

fn sent_out(fabric: &mut Fabric, packet: &Packet) -> Vec<u8> {
    let delivered = send(fabric, &A1, packet);
    assert_eq!(fate(&delivered), Ok(()));
    delivered.out[0].1.clone()
}

#[test]
fn qos_2_marks_change_live_and_are_seen_in_the_next_packet() {
    let mut fabric = with([]);
    // Marks of its own pass where nothing is to be marked; the ECN bits always do.
    for (dscp, seen) in
        [(Some(10), 10), (Some(20), 20), (Some(0), 0), (Some(30), 30), (Some(40), 40), (None, 5)]
    {
        fabric.put([mark(dscp)]);
        for ecn in 0..4 {
            for packet in [A1.to(&A2), A1.via_gateway(&B1)] {
                let out = sent_out(&mut fabric, &packet.class(5 << 2 | ecn));
                assert_eq!(class(&out, 14), seen << 2 | ecn, "{dscp:?}");
            }
        }
    }
    fabric.put([mark(Some(10))]);
    fabric.write(&[Op::Delete(EntryKey::Qos(A1.port()))]);
    assert_eq!(class(&sent_out(&mut fabric, &A1.to(&A2)), 14), 0);
}

#[test]
fn qos_2_the_outer_header_has_the_inner_mark_and_congestion_bits() {
    for (peer, outer, inner) in [(A9, 14, 64), (A8, 14, 84)] {
        for dscp in [None, Some(0), Some(46)] {
            let mut fabric = with([mark(dscp)]);
            for ecn in 0..4 {
                let out = sent_out(&mut fabric, &A1.to(&peer).class(7 << 2 | ecn));
                let expected = (dscp.unwrap_or(7) as u8) << 2 | ecn;
                assert_eq!((class(&out, outer), class(&out, inner)), (expected, expected));
            }
        }
    }
}

#[test]
fn qos_2_ipv6_is_marked_too() {
    let six = |last: u16| -> IpAddr { [0xfd00, 0, 0, 0, 0, 0, 0, last].into() };
    let port = |host: &Host, last| {
        let ips = vec![host.ip.into(), six(last)];
        Entry::Port(PortEntry { ipv6: Ipv6::On, ips, ..host.binding() })
    };
    let route = |host: &Host, last| {
        let Host { vrf, bd, mac, place: next_hop, .. } = *host;
        Entry::Route(RouteEntry { vrf, prefix: Prefix::host(six(last)), bd, mac, next_hop })
    };
    let tables = [port(&A1, 1), port(&A2, 2), route(&A1, 1), route(&A2, 2), route(&A9, 9)];
    let mut fabric = with(tables.into_iter().chain([mark(Some(46))]));
    for (to, last, at) in [(A2, 2, 14), (A9, 9, 64)] {
        for ecn in 0..4 {
            let packet = A1.to(&to).src_ip(six(1)).dst_ip(six(last)).class(5 << 2 | ecn);
            let out = sent_out(&mut fabric, &packet);
            assert_eq!(class(&out, at), 46 << 2 | ecn);
            assert_eq!(out[at + 2..], packet.bytes()[16..], "nothing else");
            if at == 64 {
                assert_eq!(class(&out, 14), 46 << 2 | ecn);
            }
        }
    }
}

#[test]
fn qos_2_a_mark_is_not_written_into_arp() {
    let mut fabric = with([mark(Some(46))]);
    let reply = A1.is_told(A2.ip, A2.mac);
    // A1 answers A2, unasked: what it says arrives as it was said.
    let (macs, ips) = ((A1.mac, A2.mac), (A1.ip, A2.ip));
    let reply_frame = fabric::frames::arp(etherparse::ArpOperation::REPLY, macs, ips);
    assert_ne!(reply, reply_frame);
    let delivered = fabric.send_at_once(A1.port(), &reply_frame);
    assert_eq!(delivered.out, [(A2.port(), reply_frame)]);
}

#[test]
fn qos_2_a_reply_has_the_mark_of_its_own_sender() {
    let mut fabric = with([mark(Some(46))]);
    assert_eq!(class(&sent_out(&mut fabric, &A1.to(&A2)), 14), 46 << 2);
    let back = send(&mut fabric, &A2, &A2.to(&A1).l4(L4::Udp(2000, 1000)));
    assert_eq!(class(&back.out[0].1, 14), 0);
}

#[test]
fn congestion_in_a_tunnel_reaches_the_receiver_or_ends_the_packet() {
    for outer in [from_remote(), from_remote6()] {
        for (inner, seen) in (0..16_u8).map(|bits| (bits >> 2, bits & 3)) {
            let mut fabric = with([]);
            let packet = A9.to(&A1).class(9 << 2 | inner);
            let frame = vxlan(&outer.clone().class(seen), VNI_A.get(), &packet.bytes());
            let delivered = fabric.send_at_once(UPLINK, &frame);
            // RFC 6040, figure 4.
            let expected = match (inner, seen) {
                (0, 3) => Err(DropReason::Malformed),
                (_, 3) => Ok(3),
                (inner, _) => Ok(inner),
            };
            let arrived = fate(&delivered).map(|()| class(&delivered.out[0].1, 14));
            assert_eq!(arrived, expected.map(|ecn| 9 << 2 | ecn), "{inner} {seen}");
        }
    }
}
