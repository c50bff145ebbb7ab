//! Tests of the connection table, and what they share.

mod limits;
mod oracle;
mod races;
mod scripts;
mod time;

use super::*;
use crate::ids::{Mac, PortId, Vrf};
use crate::key::{ethertype, ipproto, mapped};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;

const NO_LIMITS: Limits = Limits { tenant: u32::MAX, port: u32::MAX };

fn config(capacity: usize) -> ConnConfig {
    ConnConfig { capacity, seed: 7, timeouts: Timeouts::default() }
}

fn owner(vrf: u32, port: u32) -> Owner {
    Owner { vrf: Vrf::new(vrf).unwrap(), port: PortId::new(port).unwrap() }
}

/// A tuple of tenant 1, told apart by the source port.
fn tuple(proto: u8, src_port: u16) -> Tuple {
    Tuple {
        vrf: Vrf::new(1).unwrap(),
        family: ethertype::IPV4,
        proto,
        src: mapped([10, 1, 1, 5]),
        dst: mapped([10, 1, 2, 6]),
        src_port,
        dst_port: 80,
    }
}

fn opening(owner: Owner, tcp_flags: u8) -> Opening {
    Opening { owner, tcp_flags, pickup: Pickup::No, outside: None }
}

/// Opens with a SYN, for tenant 1 on port 1.
fn open(table: &ConnTable, tuple: &Tuple, now: u32) -> Result<Hit, Refused> {
    table.open(tuple, opening(owner(1, 1), SYN), NO_LIMITS, Seconds(now))
}

/// Opens, and completes TCP's handshake or brings a reply.
fn establish(table: &ConnTable, tuple: &Tuple, owner: Owner, now: u32) -> ConnRef {
    let conn = table.open(tuple, opening(owner, SYN), NO_LIMITS, Seconds(now)).unwrap().conn;
    let _ = table.advance(conn, Way::Reply, SYN | ACK, Seconds(now));
    let last = table.advance(conn, Way::Original, ACK, Seconds(now));
    assert_eq!(last, Step::Live { settled: true });
    conn
}

/// The counters agree with each other and with the list of all that is live or expired.
fn assert_balanced(table: &ConnTable, vrfs: &[u32], ports: &[u32]) {
    let counts = table.counts();
    let ended = counts.expired + counts.evicted + counts.replaced + counts.purged;
    assert_eq!(counts.opened, counts.open + ended);
    // At time 0 nothing has been idle for any time.
    let list = table.list(Seconds(0), usize::MAX);
    assert_eq!(counts.open, list.len() as u64);
    let half_open = list.iter().filter(|conn| conn.state.is_half_open()).count();
    assert_eq!(counts.half_open, half_open as u64);
    let count = |matches: &dyn Fn(&ConnStats) -> bool| {
        list.iter().filter(|conn| matches(conn)).count() as u32
    };
    let mut tenants_with_some = 0;
    let mut sum = 0;
    for vrf in vrfs.iter().map(|&vrf| Vrf::new(vrf).unwrap()) {
        let listed = count(&|conn| conn.owner.vrf == vrf);
        assert_eq!(table.tenant_count(vrf), listed);
        tenants_with_some += usize::from(listed > 0);
        sum += listed;
    }
    assert_eq!(counts.open, u64::from(sum));
    assert_eq!(table.tenants_known(), tenants_with_some);
    let ports = ports.iter().map(|&port| PortId::new(port).unwrap());
    let by_port = ports.map(|port| {
        assert_eq!(table.port_count(port), count(&|conn| conn.owner.port == port));
        u64::from(table.port_count(port))
    });
    assert_eq!(counts.open, by_port.sum::<u64>());
}
