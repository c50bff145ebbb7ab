//! Who gets an address gets none of its connections.

use flowtable::entry::{Entry, EntryKey, Op, Permit, Prefix, RouteEntry};

use super::*;
use crate::fabric::{A1, A2, A9, B1, R1, R2, RED};

fn closed() -> Fabric {
    let entries = open_to(6, 80).into_iter().chain([Entry::Tenant(tenant(Permit::Deny))]);
    let mut fabric = with(entries);
    connect(&mut fabric, (&A1, 1000), (&A2, 80));
    connect(&mut fabric, (&R1, 1000), (&R2, 80));
    fabric
}

fn route(host: &Host) -> RouteEntry {
    let prefix = Prefix::host(host.ip.into());
    let Host { vrf, bd, mac, place: next_hop, .. } = *host;
    RouteEntry { vrf, prefix, bd, mac, next_hop }
}

#[test]
fn an_address_that_moves_leaves_its_connections_behind() {
    let mut fabric = closed();
    // The server's address is another container's: its replies would be nobody's.
    let heir = RouteEntry { mac: B1.mac, next_hop: B1.place, ..route(&A2) };
    let mut port = B1.binding();
    (port.bd, port.ips) = (A2.bd, vec![A2.ip.into()]);
    fabric.put([Entry::Route(heir), Entry::Port(port)]);
    assert_eq!(open_count(&fabric, BLUE), 0);
    let reply = A2.to(&A1).src_mac(B1.mac).l4(L4::Segment(80, 1000, ACK));
    assert_eq!(fate(&fabric.send_at_once(B1.port(), &reply.bytes())), DENIED);
    let more = A1.to(&A2).dst_mac(B1.mac).l4(L4::Segment(1000, 80, ACK));
    assert_eq!(fate(&send(&mut fabric, &A1, &more)), Err(DropReason::UnknownEndpoint));
    assert_eq!(open_count(&fabric, RED), 1, "the same address of another tenant");
    assert_eq!(says(&mut fabric, &R2, &R1, L4::Segment(80, 1000, ACK)), Ok(()));
}

#[test]
fn an_address_that_goes_and_comes_back_starts_anew() {
    let mut fabric = closed();
    let entry = Entry::Route(route(&A2));
    fabric.write(&[Op::Delete(entry.key())]);
    assert_eq!(open_count(&fabric, BLUE), 0);
    fabric.put([entry]);
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1000, ACK)), DENIED);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, ACK)), STRAY);
    assert_eq!(fabric.engine.connection_counts().purged, 1);
}

#[test]
fn what_is_written_again_or_replaced_by_itself_ends_nothing() {
    let mut fabric = closed();
    fabric.put([Entry::Route(route(&A2)), Entry::Route(route(&A1))]);
    let again: Vec<_> = fabric.engine.entries().into_iter().map(|stats| stats.entry).collect();
    let all = again.into_iter().map(Op::Put);
    fabric.write(&[Op::Clear].into_iter().chain(all).collect::<Vec<_>>());
    fabric.write(&[Op::Delete(EntryKey::Route(BLUE, route(&A9).prefix))]);
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1000, ACK)), Ok(()));
    assert_eq!(fabric.engine.connection_counts().purged, 0);
}
