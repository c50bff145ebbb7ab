//! Bounds, and who goes when one is reached.

use super::*;

fn open_for(table: &ConnTable, port: u16, owner: Owner, limits: Limits) -> Result<Hit, Refused> {
    table.open(&tuple(ipproto::TCP, port), opening(owner, SYN), limits, Seconds(0))
}

#[test]
fn each_limit_refuses_by_its_name_when_all_are_established() {
    let table = ConnTable::with_shards(config(4), 1);
    for port in 0..3 {
        establish(&table, &tuple(ipproto::TCP, port), owner(1, 1), 0);
    }
    let port_limit = Limits { port: 3, ..NO_LIMITS };
    assert_eq!(open_for(&table, 10, owner(1, 1), port_limit), Err(Refused::PortFull));
    let tenant_limit = Limits { tenant: 3, ..NO_LIMITS };
    assert_eq!(open_for(&table, 10, owner(1, 2), tenant_limit), Err(Refused::TenantFull));
    establish(&table, &tuple(ipproto::TCP, 3), owner(2, 3), 0);
    assert_eq!(open_for(&table, 10, owner(3, 4), NO_LIMITS), Err(Refused::TableFull));
    let counts = table.counts();
    assert_eq!((counts.refused_port, counts.refused_tenant, counts.refused_table), (1, 1, 1));
    assert_eq!((counts.open, counts.opened), (4, 4));
    assert_balanced(&table, &[1, 2, 3], &[1, 2, 3, 4]);
}

#[test]
fn the_oldest_half_open_of_the_scope_goes_first() {
    let table = ConnTable::with_shards(config(100), 1);
    let tell = |tuple: &Tuple| table.lookup(tuple, ACK, Seconds(0)).is_some();
    let limits = Limits { port: 2, tenant: 4 };
    for (number, owner) in
        [owner(2, 9), owner(1, 2), owner(1, 1), owner(1, 1)].into_iter().enumerate()
    {
        open_for(&table, number as u16, owner, limits).unwrap();
    }
    // Port 1 is full: its older one goes, though others are older.
    open_for(&table, 4, owner(1, 1), limits).unwrap();
    let alive = |ports: &[u16]| ports.iter().all(|&port| tell(&tuple(ipproto::TCP, port)));
    assert!(alive(&[0, 1, 3, 4]) && !alive(&[2]));
    // Tenant 1 is full: its oldest goes, which is of another port.
    open_for(&table, 5, owner(1, 2), limits).unwrap();
    open_for(&table, 6, owner(1, 3), limits).unwrap();
    assert!(alive(&[0, 3, 4, 5, 6]) && !alive(&[1]));
    assert_eq!(table.counts().evicted, 2);
    assert_balanced(&table, &[1, 2], &[1, 2, 3, 9]);
}

#[test]
fn a_lowered_limit_is_approached_by_evictions() {
    let table = ConnTable::with_shards(config(100), 1);
    for port in 0..10 {
        open_for(&table, port, owner(1, 1), NO_LIMITS).unwrap();
    }
    open_for(&table, 10, owner(1, 1), Limits { port: 3, ..NO_LIMITS }).unwrap();
    assert_eq!((table.counts().open, table.counts().evicted), (3, 8));
}

#[test]
fn a_limit_of_zero_refuses_all_and_leaves_no_counter() {
    let table = ConnTable::new(config(100));
    let limits = Limits { tenant: 0, port: 1 };
    assert_eq!(open_for(&table, 1, owner(1, 1), limits), Err(Refused::TenantFull));
    assert_balanced(&table, &[1], &[1]);
}

#[test]
fn the_search_for_a_victim_is_bounded_and_forgets_what_is_no_longer_half_open() {
    let table = ConnTable::with_shards(config(1000), 1);
    for port in 0..50 {
        open_for(&table, port, owner(1, 1), NO_LIMITS).unwrap();
    }
    open_for(&table, 50, owner(2, 2), NO_LIMITS).unwrap();
    // Those of port 1 are in the way.
    let limits = Limits { port: 1, ..NO_LIMITS };
    assert_eq!(open_for(&table, 51, owner(2, 2), limits), Err(Refused::PortFull));
    for port in 0..50 {
        establish(&table, &tuple(ipproto::TCP, port), owner(1, 1), 0);
    }
    assert_eq!(table.sweep(Seconds(0), usize::MAX), 0);
    open_for(&table, 51, owner(2, 2), limits).unwrap();
    assert_eq!(table.counts().evicted, 1);
    assert_balanced(&table, &[1, 2], &[1, 2]);
}

#[test]
fn a_flood_of_half_open_ones_never_ends_an_established_one() {
    let table = ConnTable::new(config(20_000));
    let good: Vec<ConnRef> = (0..5000)
        .map(|port| establish(&table, &tuple(ipproto::TCP, port), owner(1, 1), 0))
        .collect();
    let mut refused = 0;
    for number in 0..200_000u32 {
        let [_, a, b, c] = number.to_be_bytes();
        let flood = Tuple { src: mapped([172, a, b, c]), ..tuple(ipproto::TCP, 7) };
        let result = table.open(&flood, opening(owner(2, 4094), SYN), NO_LIMITS, Seconds(1));
        refused += u64::from(result.is_err());
    }
    let counts = table.counts();
    assert_eq!((counts.open, counts.half_open), (20_000, 15_000));
    assert_eq!(counts.evicted + refused, 185_000);
    assert_eq!(counts.refused_table, refused);
    // The flood makes room for itself, hardly anything is refused, so others would get in too.
    assert!(refused < 200, "{refused}");
    for conn in good {
        let live = Step::Live { settled: true };
        assert_eq!(table.advance(conn, Way::Reply, ACK, Seconds(1)), live);
    }
    assert_eq!(table.tenant_count(Vrf::new(1).unwrap()), 5000);
    assert_balanced(&table, &[1, 2], &[1, 4094]);
}
