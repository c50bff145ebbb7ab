//! When connections end, and what stands in their place.

use super::*;

/// The connection lives at `lifetime - 1` after its last packet and not at `lifetime`.
fn assert_lifetime(table: &ConnTable, conn: ConnRef, start: u32, lifetime: u32) {
    let last = table.stats(conn, Seconds(start + lifetime - 1)).unwrap();
    assert_eq!((last.idle, last.expires_in), (Seconds(lifetime - 1), Seconds(1)));
    assert_eq!(table.stats(conn, Seconds(start + lifetime)), None);
    let gone = table.advance(conn, Way::Original, ACK, Seconds(start + lifetime));
    assert_eq!(gone, Step::Gone);
    assert_eq!(table.lookup(&last.tuple, ACK, Seconds(start + lifetime)), None);
    let alive = table.lookup(&last.tuple, ACK, Seconds(start + lifetime - 1));
    assert_eq!(alive, Some(Hit { conn, way: Way::Original }));
}

#[test]
fn each_tcp_state_has_its_timeout() {
    let table = ConnTable::new(config(16));
    let conn = open(&table, &tuple(ipproto::TCP, 1), 100).unwrap().conn;
    assert_lifetime(&table, conn, 100, 30);
    let packets = [
        (Way::Reply, SYN | ACK, 30),
        (Way::Original, ACK, 7440),
        (Way::Reply, ACK, 7440),
        (Way::Original, FIN | ACK, 120),
        (Way::Reply, FIN | ACK, 60),
    ];
    for (now, (way, flags, lifetime)) in (101..).zip(packets) {
        assert!(matches!(table.advance(conn, way, flags, Seconds(now)), Step::Live { .. }));
        assert_lifetime(&table, conn, now, lifetime);
    }
    let conn = open(&table, &tuple(ipproto::TCP, 2), 100).unwrap().conn;
    assert_eq!(table.advance(conn, Way::Reply, RST, Seconds(101)), Step::Live { settled: false });
    assert_lifetime(&table, conn, 101, 10);
}

#[test]
fn other_protocols_live_longer_after_a_reply() {
    let table = ConnTable::new(config(16));
    for (proto, before, after) in
        [(ipproto::UDP, 30, 180), (ipproto::ICMP, 30, 30), (ipproto::ICMPV6, 30, 30), (47, 60, 180)]
    {
        let conn = open(&table, &tuple(proto, 1), 5).unwrap().conn;
        assert_lifetime(&table, conn, 5, before);
        assert_eq!(table.advance(conn, Way::Reply, 0, Seconds(6)), Step::Live { settled: true });
        assert_lifetime(&table, conn, 6, after);
    }
}

#[test]
fn a_packet_prolongs_and_an_invalid_one_does_not() {
    let table = ConnTable::new(config(16));
    let conn = open(&table, &tuple(ipproto::TCP, 1), 0).unwrap().conn;
    assert_eq!(table.advance(conn, Way::Reply, ACK, Seconds(20)), Step::Invalid);
    assert_lifetime(&table, conn, 0, 30);
    assert_eq!(table.advance(conn, Way::Original, SYN, Seconds(20)), Step::Live { settled: false });
    assert_lifetime(&table, conn, 20, 30);
}

#[test]
fn a_clock_that_goes_back_neither_ends_nor_ages_a_connection() {
    let table = ConnTable::new(config(16));
    let conn = open(&table, &tuple(ipproto::UDP, 1), 100).unwrap().conn;
    assert_eq!(table.advance(conn, Way::Original, 0, Seconds(99)), Step::Live { settled: true });
    assert_eq!(table.stats(conn, Seconds(99)).unwrap().idle, Seconds(0));
    assert_lifetime(&table, conn, 100, 30);
}

#[test]
fn sweeps_in_parts_meet_every_slot_and_remove_what_has_expired() {
    let table = ConnTable::new(config(1 << 14));
    for port in 0..5000 {
        open(&table, &tuple(if port % 2 == 0 { ipproto::UDP } else { 47 }, port), 0).unwrap();
    }
    assert_eq!((table.slots(), table.sweep(Seconds(29), 5000)), (5000, 0));
    let parts: Vec<usize> = (0..10).map(|_| table.sweep(Seconds(30), 500)).collect();
    assert_eq!(parts.iter().sum::<usize>(), 2500);
    assert!(parts.iter().all(|part| (200..=300).contains(part)), "{parts:?}");
    assert_balanced(&table, &[1], &[1]);
    assert_eq!(table.sweep(Seconds(60), usize::MAX), 2500);
    assert_eq!(table.counts(), ConnCounts { opened: 5000, expired: 5000, ..ConnCounts::default() });
    // Places are used again.
    open(&table, &tuple(ipproto::UDP, 1), 60).unwrap();
    assert_eq!(table.slots(), 5000);
}

#[test]
fn an_expired_connection_is_replaced_without_a_sweep() {
    let table = ConnTable::new(config(16));
    let tuple = tuple(ipproto::UDP, 1);
    let old = open(&table, &tuple, 0).unwrap();
    let new = open(&table, &tuple.reversed(), 30).unwrap();
    assert_ne!(old.conn, new.conn);
    assert_eq!(table.advance(old.conn, Way::Original, 0, Seconds(30)), Step::Gone);
    assert_eq!(table.lookup(&tuple, 0, Seconds(30)), Some(Hit { conn: new.conn, way: Way::Reply }));
    let counts = table.counts();
    assert_eq!((counts.open, counts.opened, counts.expired), (1, 2, 1));
}

#[test]
fn a_syn_on_a_closed_connection_belongs_to_none_and_opens_either_way() {
    let table = ConnTable::new(config(16));
    let tuple = tuple(ipproto::TCP, 1);
    let old = open(&table, &tuple, 0).unwrap().conn;
    assert_eq!(table.advance(old, Way::Reply, RST, Seconds(0)), Step::Live { settled: false });
    let late = Some(Hit { conn: old, way: Way::Reply });
    assert_eq!(table.lookup(&tuple.reversed(), ACK, Seconds(1)), late);
    assert_eq!(table.lookup(&tuple.reversed(), SYN | ACK, Seconds(1)), late);
    assert_eq!(table.lookup(&tuple.reversed(), SYN, Seconds(1)), None);
    let new = open(&table, &tuple.reversed(), 1).unwrap();
    assert_eq!(new.way, Way::Original);
    assert_eq!(table.stats(new.conn, Seconds(1)).unwrap().tuple, tuple.reversed());
    assert_eq!(table.stats(old, Seconds(1)), None);
    assert_eq!(table.counts().replaced, 1);
}

#[test]
fn opening_what_is_open_returns_it_in_either_direction() {
    let table = ConnTable::new(config(16));
    let tuple = tuple(ipproto::TCP, 1);
    let first = open(&table, &tuple, 0).unwrap();
    assert_eq!(open(&table, &tuple, 0), Ok(first));
    let reply = Hit { conn: first.conn, way: Way::Reply };
    assert_eq!(open(&table, &tuple.reversed(), 0), Ok(reply));
    let ack = opening(owner(1, 1), ACK);
    assert_eq!(table.open(&tuple.reversed(), ack, NO_LIMITS, Seconds(0)), Ok(reply));
    assert_eq!(table.counts().opened, 1);
}

#[test]
fn tuples_that_differ_in_anything_are_different_connections() {
    let table = ConnTable::new(config(16));
    let first = tuple(ipproto::UDP, 1);
    open(&table, &first, 0).unwrap();
    let others = [
        Tuple { vrf: Vrf::new(2).unwrap(), ..first },
        Tuple { family: ethertype::IPV6, ..first },
        Tuple { proto: ipproto::TCP, ..first },
        Tuple { src: mapped([10, 1, 1, 6]), ..first },
        Tuple { dst: mapped([10, 1, 1, 6]), ..first },
        Tuple { src_port: 2, ..first },
        Tuple { dst_port: 2, ..first },
        Tuple { src: first.dst, dst: first.src, ..first },
        Tuple { src_port: first.dst_port, dst_port: first.src_port, ..first },
    ];
    for other in others {
        assert_eq!(table.lookup(&other, 0, Seconds(0)), None, "{other:?}");
        assert_eq!(table.lookup(&other.reversed(), 0, Seconds(0)), None, "{other:?}");
    }
}

#[test]
fn a_purge_removes_what_it_is_told_to() {
    let table = ConnTable::new(config(4096));
    for port in 0..2000 {
        open(&table, &tuple(ipproto::UDP, port), 0).unwrap();
    }
    assert_eq!(table.purge(|tuple| tuple.src_port.is_multiple_of(4)), 500);
    let left = table.list(Seconds(0), usize::MAX);
    assert!(left.iter().all(|conn| !conn.tuple.src_port.is_multiple_of(4)));
    assert_eq!((left.len(), table.counts().purged), (1500, 500));
    assert_eq!(table.list(Seconds(0), 7).len(), 7);
    assert_eq!(table.list(Seconds(30), 7), []);
    assert_balanced(&table, &[1], &[1]);
}
