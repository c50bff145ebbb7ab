//! Tenants that use the same addresses, and senders that are not who they say.

use flowtable::DropReason;
use flowtable::entry::{Entry, Permit};

use super::*;
use crate::fabric::{A1, A2, A9, R1, R2, R9, RED, VNI_R, received};

#[test]
fn ten_1_connections_of_equal_addresses_are_told_apart() {
    let red = TenantEntry::new(RED, Permit::Deny);
    let mut fabric = with([Entry::Tenant(red)]);
    connect(&mut fabric, (&A1, 1000), (&A2, 80));
    // R1 has A1's address, R2 has A2's.
    assert_eq!(says(&mut fabric, &R2, &R1, L4::Segment(80, 1000, ACK)), DENIED);
    assert_eq!(says(&mut fabric, &R1, &R2, L4::Segment(1000, 80, ACK)), DENIED);
    let inner = R9.to(&R1).src_ip(A2.ip).l4(L4::Segment(80, 1000, ACK)).bytes();
    let spoofed = fabric.send_at_once(UPLINK, &vxlan(&from_remote(), VNI_R.get(), &inner));
    assert_eq!(fate(&spoofed), Err(DropReason::SpoofedIp));
    assert_eq!((open_count(&fabric, BLUE), open_count(&fabric, RED)), (1, 0));
}

#[test]
fn ten_1_100_000_packets_of_two_tenants_with_equal_addresses_never_cross() {
    let mut fabric = with([]);
    let tenants = [(A1, A2, 0xb1), (R1, R2, 0x4e)];
    let frames = tenants.map(|(from, to, mark)| {
        let packet = Packet { payload: vec![mark; 32], ..from.to(&to) };
        (0..100_u16).map(|src| packet.clone().l4(L4::Udp(src, 9)).bytes()).collect::<Vec<_>>()
    });
    let rounds = (0..500).flat_map(|round| [(round, 0), (round, 1)]);
    for (round, tenant) in rounds {
        let ((from, to, _), frames) = (&tenants[tenant], &frames[tenant]);
        for burst in frames.chunks(50) {
            for frame in burst {
                fabric.inject(from.port(), frame);
            }
            let delivered = fabric.settle();
            let own = |frame: &Vec<u8>| (to.port(), frame.clone());
            let expected: Vec<_> = burst.iter().map(own).collect();
            assert_eq!(delivered.out, expected, "round {round}");
        }
    }
}

#[test]
fn ten_2_a_local_address_does_not_come_from_the_wire() {
    let mut fabric = with([]);
    connect(&mut fabric, (&A2, 1000), (&A1, 80));
    // Not even into its own connection.
    let inner = A9.to(&A1).src_ip(A2.ip).l4(L4::Segment(1000, 80, ACK)).bytes();
    let frame = vxlan(&from_remote(), VNI_A.get(), &inner);
    let delivered = fabric.send_at_once(UPLINK, &frame);
    let expected = received(UPLINK, &frame).walked();
    assert_eq!(delivered, expected.dropped(UPLINK, DropReason::SpoofedIp, frame.len()));
}

#[test]
fn ten_2_an_address_of_nobody_does_not_come_from_a_tunnel() {
    let mut fabric = with([]);
    let inner = A9.to(&A1).src_ip([10, 1, 1, 77]).l4(L4::Udp(1, 2)).bytes();
    let frame = vxlan(&from_remote(), VNI_A.get(), &inner);
    let delivered = fabric.send_at_once(UPLINK, &frame);
    assert_eq!(fate(&delivered), Err(DropReason::UnknownEndpoint));
    // What is outside of all endpoint networks may come.
    let inner = A9.to(&A1).src_ip([192, 0, 2, 1]).l4(L4::Udp(1, 2)).bytes();
    let frame = vxlan(&from_remote(), VNI_A.get(), &inner);
    assert_eq!(fate(&fabric.send_at_once(UPLINK, &frame)), Ok(()));
}

#[test]
fn ten_2_spoofed_addresses_of_containers_are_dropped_whatever_the_default() {
    for default in [Permit::Allow, Permit::Deny] {
        let mut fabric = with([Entry::Tenant(tenant(default))]);
        let own = A1.to(&A2);
        let ip = own.clone().src_ip(A2.ip);
        assert_eq!(fate(&send(&mut fabric, &A1, &ip)), Err(DropReason::SpoofedIp));
        let mac = own.src_mac(A2.mac);
        assert_eq!(fate(&send(&mut fabric, &A1, &mac)), Err(DropReason::SpoofedMac));
    }
}

#[test]
fn ten_2_a_packet_to_another_tenant_goes_nowhere() {
    let mut fabric = with([]);
    let cross = A1.to(&A2).dst_mac(R2.mac).l4(L4::Icmp(8, 0, 7 << 16));
    assert_eq!(fate(&send(&mut fabric, &A1, &cross)), Err(DropReason::UnknownEndpoint));
    let delivered = fabric.send_at_once(A1.port(), &A1.asks(R9.ip));
    // A9 has the same address; R9's MAC is not told.
    let told: Vec<_> = delivered.out.iter().map(|(_, frame)| frame[22..28].to_vec()).collect();
    assert_eq!(told, [A9.mac.0.to_vec()]);
    assert_eq!(open_count(&fabric, BLUE) + open_count(&fabric, RED), 0);
}
