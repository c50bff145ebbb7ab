//! What a slow and obvious vRouter remembers between packets: a list of connections and a list of
//! fragmented datagrams, each walked from the first to the last for every question, and a clock.

use std::net::IpAddr;

use flowtable::DropReason;
use flowtable::entry::{Entry, Tracking};
use flowtable::ids::{PortId, Vrf};

use super::parse::{Fragment, Ip, Seen, What};
use super::published::{self, Outside};
use super::{Fate, Judgement, Oracle, Relation};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Who sends, of the two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Opener,
    Answerer,
}

/// Addresses and numbers that name a connection, from one end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) vrf: Vrf,
    pub(crate) protocol: u8,
    pub(crate) from: (IpAddr, u16),
    pub(crate) to: (IpAddr, u16),
    /// An answer to an echo request.
    echo_reply: bool,
}

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conn {
    /// As its opener's packets show it.
    pub(crate) name: Name,
    pub(crate) port: PortId,
    /// How it came to a published port.
    outside: Option<Outside>,
    life: Life,
    seen_s: u64,
}

/// What has happened in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is said in so many words by an RFC")]
struct Life {
    /// The answerer has sent something (not TCP).
    replied: bool,
    /// The answerer sent a SYN of its own.
    crossed: bool,
    /// Sent SYN with ACK: opener, answerer.
    accepted: [bool; 2],
    established: bool,
    /// Sent FIN: opener, answerer.
    finished: [bool; 2],
    reset: bool,
}

/// What a packet does to a connection.
enum Step {
    Impossible,
    /// It passes and leaves no trace.
    Ignored,
    Noted(Life),
}

/// The datagram of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Datagram {
    vrf: Vrf,
    ips: (IpAddr, IpAddr),
    protocol: u8,
    id: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) conns: Vec<Conn>,
    datagrams: Vec<(Datagram, u64)>,
    pub(crate) now_ns: u64,
    /// Until when TCP is picked up in the middle, seconds.
    pub(crate) pickup_until: u64,
}

/// A packet's place among the connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) relation: Relation,
    /// Position of its connection in the list.
    conn: Option<(usize, Side)>,
}

/// A packet, and whose it is.
#[derive(Debug, Clone, Copy)]
struct Parts {
    port: PortId,
    vrf: Vrf,
    seen: Seen,
    /// As its tenant sees it.
    ip: Option<Ip>,
    /// How it came, if to a published port.
    outside: Option<Outside>,
}

/// What a packet that was judged leads to.
#[derive(Debug)]
pub(crate) struct Ruling {
    pub(crate) judgement: Judgement,
    /// It would open this connection, if there is room.
    pub(crate) opens: Option<Conn>,
}

impl Memory {
    const fn now_s(&self) -> u64 {
        self.now_ns / 1_000_000_000
    }

    /// Forgets what is over.
    pub(crate) fn expire(&mut self) {
        let now = self.now_s();
        self.conns.retain(|conn| now - conn.seen_s < conn.timeout_s());
        self.datagrams.retain(|(_, noted)| now - noted < 30);
    }

    /// Tables have changed: connections of addresses whose endpoint is another one, or gone, end.
    pub(crate) fn purge(&mut self, before: &[Entry], after: &[Entry]) {
        for entry in before {
            let Entry::Route(route) = entry else { continue };
            let host = if route.prefix.address().is_ipv4() { 32 } else { 128 };
            if route.prefix.length() != host || after.contains(entry) {
                continue;
            }
            let ip = route.prefix.address();
            self.conns.retain(|Conn { name, .. }| {
                name.vrf != route.vrf || (name.from.0 != ip && name.to.0 != ip)
            });
        }
    }

    /// What must become of a packet, and what is remembered of it. Room is the caller's question.
    pub(crate) fn rule(&mut self, oracle: &Oracle<'_>, port: PortId, frame: &[u8]) -> Ruling {
        let seen = oracle.judge(port, frame).seen;
        let vrf = seen.and_then(|seen| oracle.tenant(port, &seen));
        let Some((seen, vrf)) = seen.zip(vrf) else {
            return Ruling { judgement: oracle.judge(port, frame), opens: None };
        };
        // To its tenant a packet for a published port is one for the container.
        let spec = oracle.spec(port).expect("it was read");
        let entry = oracle.published(spec, &seen);
        let ip = ip_of(&seen).map(|ip| entry.map_or(ip, |entry| published::inside(entry, &ip)));
        let outside = entry.map(|entry| Outside::new(entry, port, &seen));
        let parts = Parts { port, vrf, seen, ip, outside };
        let standing = self.stand(oracle, &parts, frame);
        let judgement = oracle.judge_as(standing.relation, port, frame);
        let refused = [DropReason::NoConnection, DropReason::PolicyDeny].map(Fate::Drop);
        if standing.relation == Relation::Stray(DropReason::NoConnection)
            && refused.contains(&judgement.fate)
            && self.now_s() < self.pickup_until
            && let Some(picked) = self.pick_up(oracle, &parts, frame)
        {
            return picked;
        }
        self.apply(standing, judgement, &parts)
    }

    fn apply(&mut self, standing: Standing, mut judgement: Judgement, parts: &Parts) -> Ruling {
        let mut opens = None;
        let Fate::Forward(..) = judgement.fate else { return Ruling { judgement, opens } };
        if let (Some((at, side)), Some(ip)) = (standing.conn, parts.ip) {
            let now = self.now_s();
            let conn = &mut self.conns[at];
            match conn.step(side, ip.flags) {
                Step::Impossible => judgement.fate = Fate::Drop(DropReason::NoConnection),
                Step::Ignored => {}
                Step::Noted(life) => (conn.life, conn.seen_s) = (life, now),
            }
        } else if let (Relation::Opening, Some(ip)) = (standing.relation, parts.ip) {
            let name = Name::of(&ip, parts.vrf).expect("only what has a name opens");
            opens = Some(self.begun(name, Life::default(), parts));
        }
        if let (Fate::Forward(..), None) = (&judgement.fate, opens) {
            self.note_fragment(&parts.seen, parts.vrf);
        }
        Ruling { judgement, opens }
    }

    const fn begun(&self, name: Name, life: Life, parts: &Parts) -> Conn {
        let &Parts { port, outside, .. } = parts;
        Conn { name, port, outside, life, seen_s: self.now_s() }
    }

    /// A connection for which there was room.
    pub(crate) fn open(&mut self, conn: Conn, seen: &Seen) {
        let other = conn.name.reversed();
        self.conns.retain(|old| old.name != conn.name && old.name != other);
        self.conns.push(conn);
        self.note_fragment(seen, conn.name.vrf);
    }

    fn pick_up(&self, oracle: &Oracle<'_>, parts: &Parts, frame: &[u8]) -> Option<Ruling> {
        let ip = parts.ip?;
        let flags = ip.flags.filter(|flags| flags & (SYN | RST) == 0 && flags & ACK != 0)?;
        let name = Name::of(&ip, parts.vrf)?;
        // Its two ends may have a connection that came another way.
        if self.find(&name, flags).is_some() {
            return None;
        }
        for (relation, side, name) in [
            (Relation::Original, Side::Opener, name),
            (Relation::Reply, Side::Answerer, name.reversed()),
        ] {
            let judgement = oracle.judge_as(relation, parts.port, frame);
            if let Fate::Forward(..) = judgement.fate {
                let mut life = Life { established: true, ..Life::default() };
                life.finished[side as usize] = flags & FIN != 0;
                return Some(Ruling { judgement, opens: Some(self.begun(name, life, parts)) });
            }
        }
        None
    }

    fn note_fragment(&mut self, seen: &Seen, vrf: Vrf) {
        let Some(ip) = ip_of(seen).filter(|ip| ip.fragment == Fragment::First) else { return };
        let (datagram, now) = (Datagram::of(&ip, vrf), self.now_s());
        self.datagrams.retain(|(known, _)| *known != datagram);
        self.datagrams.push((datagram, now));
    }

    fn stand(&self, oracle: &Oracle<'_>, parts: &Parts, frame: &[u8]) -> Standing {
        let none = |relation| Standing { relation, conn: None };
        let &Parts { vrf, ref seen, ip, outside: came, .. } = parts;
        let settings = oracle.settings(vrf);
        let Some(ip) = ip else { return none(Relation::Untracked) };
        if settings.is_some_and(|tenant| tenant.tracking == Tracking::Stateless) {
            return none(Relation::Untracked);
        }
        if ip.fragment == Fragment::Later {
            let datagram = Datagram::of(&ip, vrf);
            let known = self.datagrams.iter().any(|(known, _)| *known == datagram);
            return none(if known {
                Relation::Admitted
            } else {
                Relation::Stray(DropReason::Fragment)
            });
        }
        let stray = none(Relation::Stray(DropReason::NoConnection));
        match ip.icmp {
            Some((kind, ..)) if is_error(ip.protocol, kind) => {
                let about = quoted(&ip, &frame[seen.start + ip.payload + 8..]);
                let known = about.and_then(|about| self.find(&Name::of(&about, vrf)?, ACK));
                // What it quotes of one from outside would have to be translated too.
                let known = known.filter(|(at, _)| self.conns[*at].outside.is_none());
                return known.map_or(stray, |_| none(Relation::Admitted));
            }
            Some((kind, ..)) if is_echo(ip.protocol, kind).is_none() => {
                return none(Relation::Untracked);
            }
            None if matches!(ip.protocol, 1 | 58) => return none(Relation::Untracked),
            Some(_) | None => {}
        }
        let Some(name) = Name::of(&ip, vrf) else { return none(Relation::Untracked) };
        if let Some((at, side)) = self.find(&name, ip.flags.unwrap_or(0)) {
            let known = self.conns[at].outside;
            let relation = match (side, came, known) {
                (Side::Opener, None, None) => Relation::Original,
                (Side::Opener, Some(came), Some(known)) if came.node == known.node => {
                    Relation::Original
                }
                (Side::Answerer, None, None) => Relation::Reply,
                (Side::Answerer, None, Some(known)) => Relation::Answer(known),
                // Of another connection, for whose ends there is no second place.
                (Side::Opener | Side::Answerer, _, _) => return stray,
            };
            return Standing { relation, conn: Some((at, side)) };
        }
        let opens = match (ip.flags, ip.icmp) {
            (Some(flags), _) => flags & (SYN | ACK | FIN | RST) == SYN,
            (None, Some((kind, ..))) => is_echo(ip.protocol, kind) == Some(Side::Opener),
            (None, None) => true,
        };
        if opens { none(Relation::Opening) } else { stray }
    }

    /// A connection and who sends, unless it is over and this SYN begins the next.
    fn find(&self, name: &Name, flags: u8) -> Option<(usize, Side)> {
        let at = |name: &Name| self.conns.iter().position(|conn| conn.name == *name);
        let found = at(name).map(|at| (at, Side::Opener));
        let found = found.or_else(|| at(&name.reversed()).map(|at| (at, Side::Answerer)))?;
        let anew = flags & (SYN | ACK | FIN | RST) == SYN;
        Some(found).filter(|(at, _)| !(anew && self.conns[*at].is_over()))
    }

    /// Forgets the finished connection that a new one takes the place of; how many that were.
    pub(crate) fn forget_over(&mut self, conn: &Conn) -> usize {
        let names = [conn.name, conn.name.reversed()];
        let before = self.conns.len();
        self.conns.retain(|old| !(names.contains(&old.name) && old.is_over()));
        before - self.conns.len()
    }

    /// Seconds until a connection ends by itself.
    pub(crate) fn left_s(&self, conn: &Conn) -> u64 {
        conn.timeout_s() - (self.now_s() - conn.seen_s)
    }

    /// How many connections count against a port and a tenant, and those of them that can't go.
    pub(crate) fn load(&self, counts: impl Fn(&Conn) -> bool) -> (usize, usize) {
        let counted = || self.conns.iter().filter(|conn| counts(conn));
        (counted().count(), counted().filter(|conn| !conn.is_half_open()).count())
    }
}

impl Name {
    fn of(ip: &Ip, vrf: Vrf) -> Option<Self> {
        let (from, to) = match (ip.ports, ip.icmp) {
            (Some(ports), _) => ports,
            (None, Some((.., id))) => (id, id),
            (None, None) => (0, 0),
        };
        let echo_reply = match ip.icmp {
            Some((kind, ..)) => is_echo(ip.protocol, kind)? == Side::Answerer,
            None => false,
        };
        let (from, to) = ((ip.src, from), (ip.dst, to));
        Some(Self { vrf, protocol: ip.protocol, from, to, echo_reply })
    }

    const fn reversed(self) -> Self {
        let is_echo = matches!(self.protocol, 1 | 58);
        Self { from: self.to, to: self.from, echo_reply: is_echo && !self.echo_reply, ..self }
    }
}

impl Datagram {
    fn of(ip: &Ip, vrf: Vrf) -> Self {
        // RFC 8200, section 4.5: next headers of the fragments of one packet may differ.
        let protocol = if ip.src.is_ipv6() { 0 } else { ip.protocol };
        Self { vrf, ips: (ip.src, ip.dst), protocol, id: ip.id }
    }
}

impl Conn {
    const fn is_tcp(&self) -> bool {
        self.name.protocol == 6
    }

    /// Both sides have finished, or one has reset it.
    const fn is_over(&self) -> bool {
        self.is_tcp() && (self.life.reset || self.life.finished[0] && self.life.finished[1])
    }

    pub(crate) const fn is_half_open(&self) -> bool {
        let Life { replied, established, finished, reset, .. } = self.life;
        if self.is_tcp() { !(established || finished[0] || finished[1] || reset) } else { !replied }
    }

    fn timeout_s(&self) -> u64 {
        match (self.name.protocol, self.life) {
            (6, Life { reset: true, .. }) => 10,
            (6, Life { finished: [true, true], .. }) => 60,
            (6, Life { finished, .. }) if finished != [false, false] => 120,
            (6, Life { established: true, .. }) => 7440,
            (6 | 1 | 58, _) | (17, Life { replied: false, .. }) => 30,
            (_, Life { replied: true, .. }) => 180,
            (_, _) => 60,
        }
    }

    fn step(&self, side: Side, flags: Option<u8>) -> Step {
        let mut life = self.life;
        let Some(flags) = flags else {
            life.replied |= side == Side::Answerer;
            return Step::Noted(life);
        };
        let me = side as usize;
        let [syn, ack, fin, rst] = [SYN, ACK, FIN, RST].map(|bit| flags & bit != 0);
        let both_finished = life.finished == [true, true];
        // Before the other side has agreed to anything, there is nothing to acknowledge.
        let nothing_yet = self.is_half_open() && life.accepted == [false, false];
        if (syn && (rst || fin)) || !(syn || rst || ack) {
            return Step::Impossible;
        }
        if rst {
            life.reset |= !both_finished;
        } else if syn && ack {
            return self.accept(me);
        } else if syn {
            return self.ask(side);
        } else if nothing_yet {
            return Step::Impossible;
        } else if fin {
            life.finished[me] |= !life.reset;
        } else if self.is_half_open() {
            // The one who accepted waits for this.
            life.established = life.accepted[1 - me];
        }
        Step::Noted(life)
    }

    /// SYN.
    fn ask(&self, side: Side) -> Step {
        let mut life = self.life;
        if !self.is_half_open() {
            return Step::Ignored;
        }
        if side == Side::Answerer && !life.crossed {
            if life.accepted[1] {
                return Step::Impossible;
            }
            life.crossed = true;
        }
        Step::Noted(life)
    }

    /// SYN with ACK.
    fn accept(&self, me: usize) -> Step {
        let mut life = self.life;
        if !self.is_half_open() {
            // Once both have sent SYN, both may have to say it again.
            let may = me == Side::Answerer as usize || self.both_accepted();
            return if may { Step::Ignored } else { Step::Impossible };
        }
        if me == Side::Opener as usize && !life.crossed {
            return Step::Impossible;
        }
        life.accepted[me] = true;
        life.established = life.accepted == [true, true];
        Step::Noted(life)
    }

    /// A simultaneous open that is established and nothing more.
    fn both_accepted(&self) -> bool {
        let Life { crossed, established, finished, reset, .. } = self.life;
        crossed && established && finished == [false, false] && !reset
    }
}

fn ip_of(seen: &Seen) -> Option<Ip> {
    if let What::Ip(ip) = seen.what { Some(ip) } else { None }
}

fn is_error(protocol: u8, kind: u8) -> bool {
    match protocol {
        1 => [3, 4, 5, 11, 12].contains(&kind),
        _ => protocol == 58 && (1..128).contains(&kind),
    }
}

/// Whether an ICMP message is a question or an answer.
const fn is_echo(protocol: u8, kind: u8) -> Option<Side> {
    match (protocol, kind) {
        (1, 8) | (58, 128) => Some(Side::Opener),
        (1, 0) | (58, 129) => Some(Side::Answerer),
        _ => None,
    }
}

/// The packet that an error tells its sender about.
fn quoted(error: &Ip, quote: &[u8]) -> Option<Ip> {
    let v4 = error.src.is_ipv4();
    let first = *quote.first()?;
    let start = if v4 { usize::from(first & 15) * 4 } else { 40 };
    let fragment = v4 && u16::from_be_bytes([*quote.get(6)?, *quote.get(7)?]) & 0x1fff != 0;
    if (v4 && (first >> 4 != 4 || start < 20)) || fragment || quote.len() < start + 8 {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        if v4 {
            let octets: [u8; 4] = quote[at..at + 4].try_into().ok()?;
            return Some(octets.into());
        }
        let octets: [u8; 16] = quote[at..at + 16].try_into().ok()?;
        Some(octets.into())
    };
    let (src, dst) = if v4 { (address(12)?, address(16)?) } else { (address(8)?, address(24)?) };
    let protocol = if v4 { quote[9] } else { quote[6] };
    let word = |at: usize| u16::from_be_bytes([quote[start + at], quote[start + at + 1]]);
    let ports = matches!(protocol, 6 | 17).then(|| (word(0), word(2)));
    let icmp = matches!(protocol, 1 | 58).then(|| (quote[start], quote[start + 1], word(4)));
    let family_agrees = !matches!((protocol, v4), (1, false) | (58, true));
    (src == error.dst && family_agrees).then_some(Ip { src, dst, protocol, ports, icmp, ..*error })
}
