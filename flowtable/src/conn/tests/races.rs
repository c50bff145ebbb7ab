//! Several workers on the same few connections.

use std::sync::Barrier;
use std::thread;

use super::*;

const WORKERS: u64 = 4;
const ROUNDS: u32 = 30_000;
const TUPLES: u16 = 24;

/// Numbers that look random (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

struct Worker<'t> {
    table: &'t ConnTable,
    dice: Dice,
    /// Connections by tuple number, some of them ended.
    known: Vec<(u16, Hit)>,
}

impl Worker<'_> {
    fn tuple(&mut self) -> (u16, Tuple) {
        let number = self.dice.below(u64::from(TUPLES)) as u16;
        let proto = if number.is_multiple_of(3) { ipproto::UDP } else { ipproto::TCP };
        let tuple = tuple(proto, number);
        (number, if self.dice.below(2) == 0 { tuple } else { tuple.reversed() })
    }

    fn round(&mut self, now: Seconds) {
        let (number, tuple) = self.tuple();
        match self.dice.below(100) {
            0 => drop(self.table.sweep(now, 40)),
            1 => drop(self.table.purge(|tuple| tuple.src_port == number)),
            2..20 => {
                let owner = owner(u32::from(number) % 3, u32::from(number) % 5 + 1);
                let limits = Limits { tenant: 7, port: 4 };
                let hit = self.table.open(&tuple, opening(owner, SYN), limits, now);
                self.known.extend(hit.ok().map(|hit| (number, hit)));
            }
            20..30 => {
                let hit = self.table.lookup(&tuple, ACK, now);
                self.known.extend(hit.map(|hit| (number, hit)));
            }
            _ => self.advance_one(now),
        }
        if self.known.len() > 200 {
            self.known.drain(..100);
        }
    }

    fn advance_one(&mut self, now: Seconds) {
        let Some(pick) = (self.known.len() as u64).checked_sub(1) else { return };
        let (number, hit) = self.known[self.dice.below(pick + 1) as usize];
        let flags = [SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST][self.dice.below(6) as usize];
        let way = if self.dice.below(2) == 0 { Way::Original } else { Way::Reply };
        let _ = self.table.advance(hit.conn, way, flags, now);
        if let Some(stats) = self.table.stats(hit.conn, now) {
            let port = stats.tuple.src_port.min(stats.tuple.dst_port);
            assert_eq!(port, number.min(80), "a reference leads to another connection");
        }
    }
}

#[test]
fn workers_on_the_same_connections_never_mix_them_up_and_the_counts_balance() {
    let table = ConnTable::with_shards(config(12), 4);
    let barrier = Barrier::new(WORKERS as usize);
    let work = |number: u64| {
        let dice = Dice(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut worker = Worker { table: &table, dice, known: Vec::new() };
        barrier.wait();
        for round in 0..ROUNDS {
            // Clocks of workers differ by a second now and then.
            let early = u32::from(worker.dice.below(10) == 0);
            worker.round(Seconds(1 + round / 100 - early));
        }
    };
    thread::scope(|scope| {
        for number in 1..=WORKERS {
            scope.spawn(move || work(number));
        }
    });
    let counts = table.counts();
    assert!(counts.opened > 1000 && counts.purged > 0 && counts.evicted > 0, "{counts:?}");
    assert_balanced(&table, &[0, 1, 2], &[1, 2, 3, 4, 5]);
    table.purge(|_| true);
    assert_balanced(&table, &[0, 1, 2], &[1, 2, 3, 4, 5]);
    assert_eq!((table.counts().open, table.counts().half_open), (0, 0));
}

#[test]
fn only_one_of_the_workers_that_open_the_same_tuple_makes_it() {
    let table = ConnTable::new(config(20_000));
    let barrier = Barrier::new(WORKERS as usize);
    let open_all = |number: u64| {
        barrier.wait();
        let hits = (0..2000).map(|port| {
            let tuple = tuple(ipproto::UDP, port);
            let tuple = if number.is_multiple_of(2) { tuple } else { tuple.reversed() };
            open(&table, &tuple, 0).unwrap()
        });
        hits.collect::<Vec<Hit>>()
    };
    let all: Vec<Vec<Hit>> = thread::scope(|scope| {
        let workers: Vec<_> =
            (0..WORKERS).map(|number| scope.spawn(move || open_all(number))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert_eq!(table.counts().opened, 2000);
    for port in 0..2000 {
        assert!(all.iter().all(|hits| hits[port].conn == all[0][port].conn));
        assert_ne!(all[0][port].way, all[1][port].way);
        assert_eq!(all[0][port].way, all[2][port].way);
    }
}

#[test]
fn what_is_established_during_a_flood_stays() {
    const FLOOD: u32 = 40_000;
    let table = ConnTable::with_shards(config(40), 2);
    let barrier = Barrier::new(WORKERS as usize);
    let flood = |number: u64| {
        barrier.wait();
        for round in 0..FLOOD {
            let [_, a, b, c] = round.to_be_bytes();
            let src = mapped([number as u8, a, b, c]);
            let tuple = Tuple { src, ..tuple(ipproto::TCP, 1) };
            let hit = table.open(&tuple, opening(owner(2, 2), SYN), NO_LIMITS, Seconds(0));
            assert_ne!(hit.err(), Some(Refused::NotAnOpening));
        }
        Vec::new()
    };
    // Most attempts are evicted before they are established; 20 leave room for the flood.
    let establish = |number: u64| {
        let mut established = Vec::new();
        barrier.wait();
        for port in 0..u16::MAX {
            let tuple = Tuple { dst_port: 80 + number as u16, ..tuple(ipproto::UDP, port) };
            let Ok(hit) = open(&table, &tuple, 0) else { continue };
            let step = table.advance(hit.conn, Way::Reply, 0, Seconds(0));
            assert_ne!(step, Step::Invalid);
            established.extend((step != Step::Gone).then_some(hit.conn));
            if established.len() == 10 {
                break;
            }
        }
        established
    };
    let conns: Vec<ConnRef> = thread::scope(|scope| {
        let workers = (0..WORKERS).map(|number| {
            scope.spawn(move || if number < 2 { establish(number) } else { flood(number) })
        });
        let workers: Vec<_> = workers.collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert_eq!(conns.len(), 20);
    for conn in conns {
        assert_eq!(table.stats(conn, Seconds(0)).unwrap().state.name(), "replied");
    }
    assert_eq!((table.counts().open, table.counts().half_open), (40, 20));
    assert_balanced(&table, &[1, 2], &[1, 2]);
}
