//! The table against a plain list of connections that remembers what each side has sent.
//!
//! The list shares no code with the table: TCP is told from facts instead of states, and every
//! bound is found by counting. It asks the table only for a tuple's shard, as victims are
//! sought there, and after a sweep in parts which of the expired ones it has met.

use proptest::prelude::*;

use super::*;

/// The time, and whether a tuple is of the same shard as the new one.
type Here<'a> = (u32, &'a dyn Fn(&Tuple) -> bool);

const TUPLES: usize = 9;
const CAPACITY: usize = 5;
const TIMEOUTS: Timeouts = Timeouts {
    syn_sent: Seconds(3),
    syn_recv: Seconds(4),
    established: Seconds(12),
    fin: Seconds(6),
    time_wait: Seconds(5),
    closed: Seconds(2),
    udp: Seconds(3),
    udp_replied: Seconds(7),
    echo: Seconds(4),
    other: Seconds(5),
    other_replied: Seconds(8),
};

#[derive(Debug, Clone, Copy)]
struct Packet {
    tuple: usize,
    reversed: bool,
    flags: u8,
}

#[derive(Debug, Clone)]
enum Op {
    Open {
        packet: Packet,
        owner: (u32, u32),
        midstream: bool,
        limits: Limits,
        /// Number of the published port that it came to.
        published: Option<u16>,
    },
    Lookup(Packet),
    /// The connection is one of all that ever were.
    Advance {
        conn: prop::sample::Index,
        reply: bool,
        flags: u8,
    },
    Sweep(usize),
    Purge(usize),
    Pass {
        seconds: u32,
    },
    /// The next packet is of a worker whose clock is late.
    Back,
}

fn flags() -> impl Strategy<Value = u8> {
    let usual = prop::sample::select(vec![SYN, SYN | ACK, ACK, PSH | ACK, FIN | ACK, RST]);
    prop_oneof![20 => usual, 1 => any::<u8>()]
}

fn packet() -> impl Strategy<Value = Packet> {
    (0..TUPLES, any::<bool>(), flags()).prop_map(|(tuple, reversed, flags)| Packet {
        tuple,
        reversed,
        flags,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let limit = prop_oneof![3 => Just(u32::MAX), 2 => 0..4u32];
    let limits = (limit.clone(), limit).prop_map(|(tenant, port)| Limits { tenant, port });
    let published = prop::option::weighted(0.3, 1..3u16);
    let ways = (prop::bool::weighted(0.1), published);
    let opening = (packet(), any::<bool>(), (0..3u32, 1..4u32), ways, limits);
    let open = opening.prop_map(|(packet, syn, owner, (midstream, published), limits)| {
        let flags = if syn { SYN } else { packet.flags };
        let packet = Packet { flags, ..packet };
        Op::Open { packet, owner, midstream, limits, published }
    });
    let advance = (any::<prop::sample::Index>(), any::<bool>(), flags());
    prop_oneof![
        30 => open,
        10 => packet().prop_map(Op::Lookup),
        60 => advance.prop_map(|(conn, reply, flags)| Op::Advance { conn, reply, flags }),
        3 => (0..8usize).prop_map(Op::Sweep),
        1 => (0..TUPLES).prop_map(Op::Purge),
        10 => (0..4u32).prop_map(|seconds| Op::Pass { seconds }),
        5 => Just(Op::Back),
    ]
}

/// By number of the published port.
fn outside(published: u16) -> Outside {
    Outside {
        uplink: PortId::new(1).unwrap(),
        published: ([192, 0, 2, 1].into(), published),
        node_mac: Mac([2, 0, 0, 0, 0, 1]),
        neighbor: Mac([2, 0, 0, 0, 0, 2]),
    }
}

fn numbered(number: usize) -> Tuple {
    let first = tuple(ipproto::TCP, 1);
    match number {
        0 => first,
        1 => tuple(ipproto::TCP, 2),
        2 => Tuple { vrf: Vrf::new(2).unwrap(), ..first },
        3 => Tuple { family: ethertype::IPV6, ..first },
        4 => tuple(ipproto::UDP, 1),
        5 => Tuple { src: first.dst, src_port: first.dst_port, ..tuple(ipproto::UDP, 1) },
        6 => tuple(ipproto::ICMP, 80),
        7 => tuple(ipproto::ICMPV6, 80),
        _ => tuple(47, 0),
    }
}

impl Packet {
    fn tuple(self) -> Tuple {
        let tuple = numbered(self.tuple);
        if self.reversed { tuple.reversed() } else { tuple }
    }
}

/// What a connection has seen; 0 is the originator.
#[derive(Debug, Clone, Default)]
struct Facts {
    syn: [bool; 2],
    syn_ack: [bool; 2],
    fin: [bool; 2],
    handshake_done: bool,
    reset: bool,
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Anew,
    Invalid,
    Ignored,
    Noted,
}

impl Facts {
    fn begins(flags: u8, pickup: Pickup) -> Option<Self> {
        if flags & (SYN | ACK | FIN | RST) == SYN {
            return Some(Self { syn: [true, false], ..Self::default() });
        }
        if pickup == Pickup::No || flags & (SYN | RST | ACK) != ACK {
            return None;
        }
        let fin = [flags & FIN != 0, false];
        Some(Self { handshake_done: true, fin, ..Self::default() })
    }

    fn name(&self) -> &'static str {
        match self {
            _ if self.reset => "closed",
            Self { fin: [true, true], .. } => "time-wait",
            Self { fin: [true, _] | [_, true], .. } => "fin-wait",
            _ if self.handshake_done => "established",
            Self { syn: [true, true], .. } => "syn-both",
            Self { syn_ack: [_, true], .. } => "syn-recv",
            _ => "syn-sent",
        }
    }

    fn is_ending(&self) -> bool {
        self.fin != [false; 2] || self.reset
    }

    fn note(&mut self, way: usize, flags: u8) -> Verdict {
        let has = |flag: u8| flags & flag != 0;
        let ending = self.is_ending();
        if has(SYN) && has(FIN | RST) || !has(SYN | ACK | RST) {
            return Verdict::Invalid;
        }
        if has(RST) {
            self.reset |= self.fin != [true; 2];
        } else if has(SYN) && has(ACK) {
            return self.note_syn_ack(way);
        } else if has(SYN) {
            if self.reset || self.fin == [true; 2] {
                return Verdict::Anew;
            }
            if ending || self.handshake_done {
                return Verdict::Ignored;
            }
            // Too late: it has answered as one who did not open.
            if way == 1 && !self.syn[1] && self.syn_ack[1] {
                return Verdict::Invalid;
            }
            self.syn[way] = true;
        } else if !ending {
            if !self.handshake_done && self.syn_ack == [false; 2] {
                return Verdict::Invalid;
            }
            self.handshake_done |= self.syn_ack[1 - way];
            self.fin[way] = has(FIN);
        } else if !self.reset {
            self.fin[way] |= has(FIN);
        }
        Verdict::Noted
    }

    fn note_syn_ack(&mut self, way: usize) -> Verdict {
        let ending = self.is_ending();
        let at_once = self.syn == [true; 2] && !ending;
        if way == 0 && !at_once {
            return Verdict::Invalid;
        }
        if ending || self.handshake_done {
            return Verdict::Ignored;
        }
        self.syn_ack[way] = true;
        self.handshake_done = self.syn_ack == [true; 2];
        Verdict::Noted
    }
}

#[derive(Debug, Clone)]
struct Entry {
    /// Position among all that ever were.
    id: usize,
    tuple: Tuple,
    owner: Owner,
    outside: Option<Outside>,
    facts: Facts,
    /// Of protocols other than TCP.
    replied: bool,
    seen: u32,
}

impl Entry {
    fn name(&self) -> &'static str {
        match self.tuple.proto {
            ipproto::TCP => self.facts.name(),
            _ if self.replied => "replied",
            _ => "unreplied",
        }
    }

    fn is_half_open(&self) -> bool {
        self.name().starts_with("syn") || self.name() == "unreplied"
    }

    fn lifetime(&self) -> u32 {
        match (self.tuple.proto, self.name()) {
            (_, "syn-sent") | (ipproto::UDP, "unreplied") => 3,
            (_, "syn-recv" | "syn-both") | (ipproto::ICMP | ipproto::ICMPV6, _) => 4,
            (_, "established") => 12,
            (_, "fin-wait") => 6,
            (_, "time-wait" | "unreplied") => 5,
            (_, "closed") => 2,
            (ipproto::UDP, _) => 7,
            _ => 8,
        }
    }

    fn is_expired(&self, now: u32) -> bool {
        now.saturating_sub(self.seen) >= self.lifetime()
    }

    fn is_over_for(&self, flags: u8) -> bool {
        matches!(self.name(), "closed" | "time-wait") && flags & (SYN | ACK | FIN | RST) == SYN
    }

    fn advance(&mut self, way: Way, flags: u8, now: u32) -> Step {
        if self.is_expired(now) {
            return Step::Gone;
        }
        let verdict = if self.tuple.proto == ipproto::TCP {
            self.facts.note(usize::from(way == Way::Reply), flags)
        } else {
            self.replied |= way == Way::Reply;
            Verdict::Noted
        };
        if verdict == Verdict::Noted {
            self.seen = self.seen.max(now);
        }
        match verdict {
            Verdict::Anew => Step::Gone,
            Verdict::Invalid => Step::Invalid,
            Verdict::Ignored | Verdict::Noted => {
                let settled = self.tuple.proto != ipproto::TCP || self.name() == "established";
                Step::Live { settled }
            }
        }
    }
}

struct Oracle {
    /// Oldest first.
    entries: Vec<Entry>,
    counts: ConnCounts,
    made: usize,
}

impl Oracle {
    fn find(&self, tuple: &Tuple) -> Option<(usize, Way)> {
        let is = |tuple: Tuple| self.entries.iter().position(|entry| entry.tuple == tuple);
        let original = is(*tuple).map(|at| (at, Way::Original));
        original.or_else(|| is(tuple.reversed()).map(|at| (at, Way::Reply)))
    }

    fn lookup(&self, tuple: &Tuple, flags: u8, now: u32) -> Option<(usize, Way, Option<Outside>)> {
        let (at, way) = self.find(tuple)?;
        let entry = &self.entries[at];
        let lives = !entry.is_expired(now) && !entry.is_over_for(flags);
        lives.then_some((entry.id, way, entry.outside))
    }

    fn open(
        &mut self,
        tuple: &Tuple,
        opening: &Opening,
        limits: Limits,
        (now, is_near): Here<'_>,
    ) -> Result<(usize, Way), Refused> {
        if let Some((id, way, outside)) = self.lookup(tuple, opening.tcp_flags, now) {
            if outside == opening.outside {
                return Ok((id, way));
            }
            self.counts.not_an_opening += 1;
            return Err(Refused::NotAnOpening);
        }
        let begun = match tuple.proto {
            ipproto::TCP => Facts::begins(opening.tcp_flags, opening.pickup),
            _ => Some(Facts::default()),
        };
        let Some(facts) = begun else {
            self.counts.not_an_opening += 1;
            return Err(Refused::NotAnOpening);
        };
        if let Some((at, _)) = self.find(tuple) {
            if self.entries.remove(at).is_expired(now) {
                self.counts.expired += 1;
            } else {
                self.counts.replaced += 1;
            }
        }
        let owner = opening.owner;
        let in_port = |entry: &Entry| entry.owner.port == owner.port;
        if !self.make_room(&in_port, limits.port, (now, is_near)) {
            self.counts.refused_port += 1;
            return Err(Refused::PortFull);
        }
        let in_tenant = |entry: &Entry| entry.owner.vrf == owner.vrf;
        if !self.make_room(&in_tenant, limits.tenant, (now, is_near)) {
            self.counts.refused_tenant += 1;
            return Err(Refused::TenantFull);
        }
        if !self.make_room(&|_| true, CAPACITY as u32, (now, is_near)) {
            self.counts.refused_table += 1;
            return Err(Refused::TableFull);
        }
        let id = self.made;
        self.made += 1;
        self.counts.opened += 1;
        let (tuple, outside) = (*tuple, opening.outside);
        self.entries.push(Entry { id, tuple, owner, outside, facts, replied: false, seen: now });
        Ok((id, Way::Original))
    }

    fn make_room(
        &mut self,
        in_scope: &dyn Fn(&Entry) -> bool,
        most: u32,
        (now, is_near): Here<'_>,
    ) -> bool {
        while self.entries.iter().filter(|entry| in_scope(entry)).count() as u32 >= most {
            let is_victim =
                |entry: &Entry| in_scope(entry) && entry.is_half_open() && is_near(&entry.tuple);
            let Some(at) = self.entries.iter().position(is_victim) else { return false };
            if self.entries.remove(at).is_expired(now) {
                self.counts.expired += 1;
            } else {
                self.counts.evicted += 1;
            }
        }
        true
    }
}

struct Run {
    table: ConnTable,
    oracle: Oracle,
    /// By id.
    refs: Vec<ConnRef>,
    clock: u32,
    late: u32,
}

impl Run {
    fn same(&mut self, hit: Option<Hit>, expected: Option<(usize, Way)>) {
        if let (Some(hit), Some((id, _))) = (hit, expected)
            && id == self.refs.len()
        {
            assert!(!self.refs.contains(&hit.conn), "a reference came twice");
            self.refs.push(hit.conn);
        }
        let expected = expected.map(|(id, way)| Hit { conn: self.refs[id], way });
        assert_eq!(hit, expected);
    }

    fn step(&mut self, op: &Op) {
        let now = self.clock - std::mem::take(&mut self.late);
        match *op {
            Op::Open { packet, owner: (vrf, port), midstream, limits, published } => {
                let pickup = if midstream { Pickup::Midstream } else { Pickup::No };
                let owner = owner(vrf, port);
                let outside = published.map(outside);
                let opening = Opening { owner, tcp_flags: packet.flags, pickup, outside };
                let tuple = packet.tuple();
                let shard = self.table.shard_of_tuple(&tuple);
                let near = |other: &Tuple| self.table.shard_of_tuple(other) == shard;
                let expected = self.oracle.open(&tuple, &opening, limits, (now, &near));
                let hit = self.table.open(&tuple, opening, limits, Seconds(now));
                assert_eq!(hit.err(), expected.err());
                self.same(hit.ok(), expected.ok());
            }
            Op::Lookup(packet) => {
                let expected = self.oracle.lookup(&packet.tuple(), packet.flags, now);
                let found = self.table.find(&packet.tuple(), packet.flags, Seconds(now));
                let outside = found.and_then(|(_, outside)| outside);
                assert_eq!(outside, expected.and_then(|(_, _, outside)| outside));
                self.same(found.map(|(hit, _)| hit), expected.map(|(id, way, _)| (id, way)));
            }
            Op::Advance { conn, reply, flags } if !self.refs.is_empty() => {
                // Half of the time one of the latest, which is likely to live.
                let newest = self.refs.len() - 1;
                let id = conn.index(2 * self.refs.len());
                let id = if id > newest { newest.saturating_sub(id % CAPACITY) } else { id };
                let way = if reply { Way::Reply } else { Way::Original };
                let entry = self.oracle.entries.iter_mut().find(|entry| entry.id == id);
                let expected = entry.map_or(Step::Gone, |entry| entry.advance(way, flags, now));
                assert_eq!(self.table.advance(self.refs[id], way, flags, Seconds(now)), expected);
            }
            Op::Advance { .. } => {}
            Op::Sweep(slots_max) => self.sweep(slots_max, now),
            Op::Purge(number) => {
                let goes =
                    |tuple: &Tuple| [numbered(number), numbered(number).reversed()].contains(tuple);
                let before = self.oracle.entries.len();
                self.oracle.entries.retain(|entry| !goes(&entry.tuple));
                let gone = before - self.oracle.entries.len();
                self.oracle.counts.purged += gone as u64;
                assert_eq!(self.table.purge(goes), gone);
            }
            Op::Pass { seconds } => self.clock += seconds,
            Op::Back => self.late = 1,
        }
    }

    fn sweep(&mut self, slots_max: usize, now: u32) {
        let slots = self.table.slots();
        let expired = self.table.sweep(Seconds(now), slots_max);
        // At time 0 nothing is expired: the list is of all that are in the table.
        let left = self.table.list(Seconds(0), usize::MAX);
        let before = self.oracle.entries.len();
        self.oracle.entries.retain(|entry| {
            let is_left = left.iter().any(|conn| conn.tuple == entry.tuple);
            assert!(is_left || entry.is_expired(now));
            is_left && (slots_max < slots || !entry.is_expired(now))
        });
        assert_eq!(before - self.oracle.entries.len(), expired);
        self.oracle.counts.expired += expired as u64;
    }

    fn check(&mut self) {
        let entries = &self.oracle.entries;
        self.oracle.counts.open = entries.len() as u64;
        self.oracle.counts.half_open =
            entries.iter().filter(|entry| entry.is_half_open()).count() as u64;
        assert_eq!(self.table.counts(), self.oracle.counts);
        assert_balanced(&self.table, &[0, 1, 2], &[1, 2, 3]);
        let live: Vec<&Entry> =
            entries.iter().filter(|entry| !entry.is_expired(self.clock)).collect();
        assert_eq!(self.table.list(Seconds(self.clock), usize::MAX).len(), live.len());
        for entry in live {
            let stats = self.table.stats(self.refs[entry.id], Seconds(self.clock)).unwrap();
            let seen = (stats.tuple, stats.owner, stats.state.name(), stats.idle);
            let idle = Seconds(self.clock.saturating_sub(entry.seen));
            assert_eq!(seen, (entry.tuple, entry.owner, entry.name(), idle));
            assert_eq!(stats.idle.0 + stats.expires_in.0, entry.lifetime());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_table_does_what_a_plain_list_does(
        ops in prop::collection::vec(op(), 1..400),
        shards in prop::sample::select(vec![1usize, 2, 8]),
        seed: u64,
    ) {
        let config = ConnConfig { capacity: CAPACITY, seed, timeouts: TIMEOUTS };
        let table = ConnTable::with_shards(config, shards);
        let oracle = Oracle { entries: Vec::new(), counts: ConnCounts::default(), made: 0 };
        let mut run = Run { table, oracle, refs: Vec::new(), clock: 1000, late: 0 };
        for op in &ops {
            run.step(op);
            run.check();
        }
    }
}
