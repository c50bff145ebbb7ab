//! T1, T2, T3, and the connections beside them: what becomes of a packet.
//!
//! The exact cache answers for flows that are known. A flow of a connection is looked at again when
//! its second has passed or its flags say that the connection changes; one that belongs to no
//! connection is compared with the table every time, because a packet of the other side may have
//! opened one. What is not in the exact cache gets its relation first, then a decision from the
//! masked cache or the tables, and opens its connection if the decision lets it pass.

use std::sync::atomic::{AtomicU32, Ordering};

use flowtable::cache::Slot;
use flowtable::conn::{
    ConnTable, Hit, Limits, Opening, Outside, Owner, Pickup, Refused, Seconds, Step, Tuple, Way,
};
use flowtable::entry::TenantEntry;
use flowtable::ids::{PortId, Vrf};
use flowtable::key::{Parsed, flag, ipproto, tcp_flag};
use flowtable::{DropReason, Verdict};
use packet_io::{Frame, PacketIo};

use super::express::Short;
use super::{Packet, Worker, seconds};
use crate::budget::{Budgets, Rate, at_once};
use crate::connections::{self, Part, Standing};
use crate::counters::{Count, Tier};
use crate::pipeline::{self, Decision, Relation};
use crate::port::PortKind;
use crate::snapshot::{Section, Snapshot};
use crate::trace::{self, Silent};

/// Flags that say what a segment does to a connection.
const TELLING: u8 = tcp_flag::SYN | tcp_flag::FIN | tcp_flag::RST | tcp_flag::ACK;
/// A flow that no connection can change.
const FOR_EVER: Seconds = Seconds(u32::MAX);
/// All slots of the connection table are looked at once in this time.
const SWEEP_NS: u64 = 10_000_000_000;
/// Between two looks at some of them.
const SWEEP_STEP_NS: u64 = 1_000_000;

/// A cached flow and what it carried. In this order: what a packet that goes the short way needs lies in
/// two cache lines, together with the key.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Flow {
    pub(super) count: Count,
    /// It is offered to who forwards without the engine when it has carried so many packets.
    pub(super) offer_at: u64,
    /// Before this second the connection, or that there is none, need not be looked at.
    pub(super) quiet_until: Seconds,
    /// How its packets go the short way, if they may.
    pub(super) short: Option<Short>,
    pub(super) decision: Decision,
    /// Its connection; `None` also when it may have one.
    pub(super) hit: Option<Hit>,
}

/// Bytes of a key in brief and of its place, which are in front of a flow in the exact cache.
const BEFORE_FLOW: usize = 48;
const _: () = assert!(
    BEFORE_FLOW + std::mem::offset_of!(Flow, decision) + Decision::FIRST_BYTES <= 128,
    "a packet that goes the short way reads a third cache line"
);

impl Flow {
    /// Something of the second line.
    #[inline(always)]
    pub(super) const fn second_line(&self) -> u64 {
        self.decision.revision
    }
}

/// Bounds of what senders can make the node remember.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Connections of a tenant whose entry does not say.
    pub(crate) tenant_connections: u32,
    /// Connections opened from one container.
    pub(crate) port_connections: u32,
    /// New flows a second of a tenant whose entry does not say; 0 is no limit.
    pub(crate) tenant_new_flows: u32,
    /// For how long after the first tables TCP may be picked up in the middle.
    pub(crate) pickup: Seconds,
}

/// What a worker has of the connections for itself.
#[derive(Debug)]
pub(crate) struct Tracker {
    bounds: Bounds,
    swept_ns: u64,
}

/// Until when TCP without a handshake is taken for a connection from before this engine started.
#[derive(Debug, Default)]
pub(crate) struct PickupEnd(AtomicU32);

impl PickupEnd {
    /// The tables are there: the time begins, unless it has begun.
    fn begin(&self, until: Seconds) {
        if self.0.load(Ordering::Relaxed) == 0 {
            self.0.store(until.0.max(1), Ordering::Relaxed);
        }
    }

    /// Whether a packet that was refused is taken for one of a connection from before the start. Also
    /// one that the rules refuse: it may be a reply, about which they would be asked otherwise.
    pub(super) fn takes(&self, decision: &Decision, parsed: &Parsed, now: Seconds) -> bool {
        decision.is_stray()
            && now.0 < self.0.load(Ordering::Relaxed)
            && connections::may_be_midstream(parsed)
    }
}

impl Tracker {
    pub(crate) const fn new(bounds: Bounds) -> Self {
        Self { bounds, swept_ns: 0 }
    }

    /// Ends some expired connections, now and then.
    #[inline]
    pub(super) fn tidy(
        &mut self,
        (table, pickup): (&ConnTable, &PickupEnd),
        snapshot: &Snapshot,
        now_ns: u64,
    ) {
        let passed = now_ns.saturating_sub(self.swept_ns);
        if passed < SWEEP_STEP_NS {
            return;
        }
        self.swept_ns = now_ns;
        let now = seconds(now_ns);
        // Ports are there before the tables are.
        if snapshot.valid_since(Section::Routes.into()) > 0 {
            pickup.begin(Seconds(now.0.saturating_add(self.bounds.pickup.0)));
        }
        let share = table.slots() as u64 * passed.min(SWEEP_NS) / SWEEP_NS;
        table.sweep(now, share as usize + 1);
    }

    /// Whether a tenant may open one more flow.
    fn may_open(&self, budgets: &Budgets, (tenant, vrf): (&TenantEntry, Vrf), now_ns: u64) -> bool {
        let of_tenant = match tenant.new_flows_max {
            0 => self.bounds.tenant_new_flows,
            own => own,
        };
        budgets.take_tenant(vrf, Rate::new(of_tenant, at_once(of_tenant)), now_ns)
    }

    fn limits(&self, kind: PortKind, tenant: &TenantEntry) -> Limits {
        let of_tenant = match tenant.connections_max {
            0 => self.bounds.tenant_connections,
            own => own,
        };
        let port = match kind {
            PortKind::Container => self.bounds.port_connections,
            // All remote senders come by it: their tenants' bounds hold.
            PortKind::Uplink => u32::MAX,
        };
        Limits { tenant: of_tenant, port }
    }
}

impl<I: PacketIo> Worker<I> {
    /// T1; what it does not know, or no longer, is decided anew.
    #[inline]
    pub(super) fn decide(
        &mut self,
        frame: &Frame,
        packet: &Packet,
        snapshot: &Snapshot,
        now_ns: u64,
    ) -> Decision {
        let found = self.cache.lookup_near(packet.hint, packet.hash, &packet.parsed.key);
        if let Some(slot) = found
            && let Some(decision) = self.decide_known(slot, (frame, packet), snapshot, now_ns)
        {
            self.tiers[Tier::Exact as usize] += 1;
            return decision;
        }
        self.decide_new(frame, packet, snapshot, now_ns)
    }

    /// A cached flow; `None`: what was decided holds no longer.
    #[inline]
    fn decide_known(
        &mut self,
        slot: Slot,
        packet: (&Frame, &Packet),
        snapshot: &Snapshot,
        now_ns: u64,
    ) -> Option<Decision> {
        let now = seconds(now_ns);
        let flow = self.cache.entry_mut(slot);
        if !flow.decision.holds_on(snapshot) {
            return None;
        }
        flow.count.add(packet.1.rx.len);
        if now < flow.quiet_until && leaves_it(&packet.1.parsed) {
            let decision = flow.decision;
            if flow.count.packets >= flow.offer_at {
                self.offer(slot, snapshot, now);
            }
            return Some(decision);
        }
        let flow = *flow;
        let (decision, quiet_until) = self.look_again(packet, &flow, snapshot, now)?;
        self.cache.entry_mut(slot).quiet_until = quiet_until;
        Some(decision)
    }

    /// A cached flow whose connection may have changed: its decision now, and until when that
    /// holds. `None`: what it was to the connections it no longer is.
    #[cold]
    fn look_again(
        &mut self,
        (frame, packet): (&Frame, &Packet),
        flow: &Flow,
        snapshot: &Snapshot,
        now: Seconds,
    ) -> Option<(Decision, Seconds)> {
        let decision = flow.decision;
        let Some(Hit { conn, way }) = flow.hit else {
            let standing = self.stand((frame, packet), snapshot, now);
            let same = standing.relation == decision.relation && standing.hit.is_none();
            // What one segment could not, the next one may.
            let picked = self.shared.picks_up(&decision, &packet.parsed, snapshot, now);
            if !same || picked {
                return None;
            }
            self.note_fragment(packet, &decision, snapshot, now);
            return Some((decision, flow.quiet_until));
        };
        match self.advance(Hit { conn, way }, packet.parsed.tcp_flags, now) {
            Step::Gone => None,
            Step::Invalid => {
                let verdict = Verdict::Drop(DropReason::NoConnection);
                Some((Decision { verdict, ..decision }, Seconds(0)))
            }
            Step::Live { settled } => {
                self.note_fragment(packet, &decision, snapshot, now);
                Some((
                    decision,
                    if settled { quiet_until(&packet.parsed, now) } else { Seconds(0) },
                ))
            }
        }
    }

    /// Which tier would decide `frame` if it came in by `in_port` now; `None`: it can't be parsed.
    /// Nothing is counted or marked as hit.
    #[must_use]
    pub fn tier(&self, in_port: PortId, frame: &[u8]) -> Option<Tier> {
        let snapshot = self.shared.snapshot.load_full();
        let parsed = trace::read(&snapshot, in_port, frame).ok()?;
        let now = self.shared.seconds();
        let standing = self.shared.memory.stand(&snapshot, (&parsed, frame), now);
        let cached = self.cache.peek(self.hasher.hash(&parsed.key), &parsed.key);
        let holds = cached.map(|slot| self.cache.entry(slot)).is_some_and(|flow| {
            let same = flow.hit.is_some() || flow.decision.relation == standing.relation;
            same && flow.hit == standing.hit && flow.decision.holds_on(&snapshot)
        });
        Some(if holds {
            Tier::Exact
        } else if standing.outside.is_none()
            && self.masked.knows(&parsed.key, standing.relation, &snapshot)
        {
            Tier::Masked
        } else {
            Tier::Pipeline
        })
    }

    #[cold]
    fn decide_new(
        &mut self,
        frame: &Frame,
        packet: &Packet,
        snapshot: &Snapshot,
        now_ns: u64,
    ) -> Decision {
        let now = seconds(now_ns);
        let mut standing = self.stand((frame, packet), snapshot, now);
        if !self.may_try(packet, standing.relation, snapshot, now_ns) {
            return Decision::flow_limit(standing.relation, snapshot);
        }
        let mut decision = self.resolve(packet, snapshot, standing.seen());
        if self.shared.picks_up(&decision, &packet.parsed, snapshot, now)
            && let Some(picked) = self.pick_up(packet, snapshot, now_ns)
        {
            (standing, decision) = picked;
        }
        let admitted = self.admit(packet, (standing, &decision), snapshot, now_ns);
        let (hit, quiet_until) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => {
                decision.verdict = Verdict::Drop(reason);
                return decision;
            }
        };
        self.note_fragment(packet, &decision, snapshot, now);
        // An error is judged by the packet it quotes, which no key holds.
        let untracked = decision.relation == Relation::Untracked;
        if untracked || Part::of(&packet.parsed.key) != Part::Error {
            let count = Count { packets: 1, bytes: packet.rx.len as u64 };
            let offer_at = self.first_offer();
            let short = Short::of(&decision, snapshot);
            let flow = Flow { count, offer_at, quiet_until, short, decision, hit };
            self.remember(packet, flow, snapshot);
        }
        decision
    }

    /// Whether a port may have one more packet of no connection looked at: before the tables are
    /// walked, which is what a flood would cost the others. All remote senders come by the uplink:
    /// there the tenants' bounds hold.
    fn may_try(
        &self,
        packet: &Packet,
        relation: Relation,
        snapshot: &Snapshot,
        now_ns: u64,
    ) -> bool {
        let port = packet.rx.port;
        match relation {
            Relation::Opening | Relation::Stray(_) => {
                let kind = snapshot.ports.lookup(port).map_or(PortKind::Container, |p| p.spec.kind);
                kind == PortKind::Uplink || self.shared.budgets.flows.take(port, now_ns)
            }
            Relation::Untracked | Relation::Original | Relation::Reply | Relation::Admitted => true,
        }
    }

    #[inline(always)]
    fn remember(&mut self, packet: &Packet, flow: Flow, snapshot: &Snapshot) {
        let stale = |flow: &Flow| !flow.decision.holds_on(snapshot);
        // A set full of flows that were all hit lately takes no new one: it is not cached then.
        let named = (packet.parsed.key, packet.brief);
        self.cache.insert_named(packet.hash, named, flow, stale);
    }

    /// T2, then T3; what T3 found for more than one flow is kept in T2.
    fn resolve(
        &mut self,
        packet: &Packet,
        snapshot: &Snapshot,
        (relation, outside): (Relation, Option<Outside>),
    ) -> Decision {
        let key = &packet.parsed.key;
        if outside.is_none()
            && let Some(decision) = self.masked.lookup(key, relation, snapshot)
        {
            self.tiers[Tier::Masked as usize] += 1;
            return decision;
        }
        let seen = (relation, outside);
        let decision = pipeline::walk(snapshot, &packet.parsed, seen, &mut Silent);
        self.tiers[Tier::Pipeline as usize] += 1;
        self.masked.insert(key, &decision, snapshot);
        decision
    }

    /// What the packet is to the connections of its tenant.
    pub(super) fn stand(
        &self,
        (frame, packet): (&Frame, &Packet),
        snapshot: &Snapshot,
        now: Seconds,
    ) -> Standing {
        let seen = (&packet.parsed, self.io.bytes(frame));
        self.shared.memory.stand(snapshot, seen, now)
    }

    /// Opens or continues the connection of a packet that is forwarded. `Err`: it is not, after all.
    fn admit(
        &mut self,
        packet: &Packet,
        (standing, decision): (Standing, &Decision),
        snapshot: &Snapshot,
        now_ns: u64,
    ) -> Result<(Option<Hit>, Seconds), DropReason> {
        let now = seconds(now_ns);
        // First fragments are noted every time.
        let first = packet.parsed.key.flags & flag::FRAG_FIRST != 0;
        let untracked = standing.relation == Relation::Untracked && !first;
        let quiet = if untracked { FOR_EVER } else { Seconds(0) };
        let Verdict::Forward(_) = decision.verdict else { return Ok((None, quiet)) };
        let flags = packet.parsed.tcp_flags;
        match (standing.hit, standing.relation) {
            (Some(hit), _) => {
                match self.advance(hit, flags, now) {
                    Step::Live { settled } => Ok((
                        Some(hit),
                        if settled { quiet_until(&packet.parsed, now) } else { Seconds(0) },
                    )),
                    // Between the look and this step it ended: the next packet finds what holds then.
                    Step::Invalid | Step::Gone => Err(DropReason::NoConnection),
                }
            }
            (None, Relation::Opening) => self.open(packet, snapshot, now_ns),
            (None, _) => Ok((None, quiet)),
        }
    }

    fn open(
        &mut self,
        packet: &Packet,
        snapshot: &Snapshot,
        now_ns: u64,
    ) -> Result<(Option<Hit>, Seconds), DropReason> {
        let parsed = &packet.parsed;
        let vrf = pipeline::tenant(snapshot, &parsed.key).ok_or(DropReason::PortUnbound)?;
        let tuple = connections::tuple_in(snapshot, &parsed.key, vrf);
        let hit = self.begin(packet, (&tuple, Pickup::No), snapshot, now_ns)?;
        let settled = parsed.key.proto != ipproto::TCP;
        let now = seconds(now_ns);
        Ok((Some(hit), if settled { quiet_until(parsed, now) } else { Seconds(0) }))
    }

    /// Makes a connection whose opener's packets have this tuple, if port and tenant may have it.
    fn begin(
        &mut self,
        packet: &Packet,
        (tuple, pickup): (&Tuple, Pickup),
        snapshot: &Snapshot,
        now_ns: u64,
    ) -> Result<Hit, DropReason> {
        let (port, vrf) = (packet.rx.port, tuple.vrf);
        let tenant = snapshot.policy.tenant(vrf);
        let kind = snapshot.ports.lookup(port).map_or(PortKind::Container, |p| p.spec.kind);
        if !self.tracker.may_open(&self.shared.budgets, (tenant, vrf), now_ns) {
            return Err(DropReason::FlowLimit);
        }
        let tcp_flags = match pickup {
            Pickup::No => packet.parsed.tcp_flags,
            // A FIN is its sender's, who need not be the opener: it is noted afterwards.
            Pickup::Midstream => tcp_flag::ACK,
        };
        let outside = pipeline::far_side(snapshot, &packet.parsed.key);
        let opening = Opening { owner: Owner { vrf, port }, tcp_flags, pickup, outside };
        let limits = self.tracker.limits(kind, tenant);
        let table = &self.shared.memory.connections;
        table.open(tuple, opening, limits, seconds(now_ns)).map_err(|refused| match refused {
            Refused::NotAnOpening => DropReason::NoConnection,
            Refused::TableFull | Refused::TenantFull | Refused::PortFull => DropReason::FlowLimit,
        })
    }

    /// Takes a TCP segment for one of a connection that was opened before this engine started: from
    /// its sender if the rules let it open one, else to it.
    fn pick_up(
        &mut self,
        packet: &Packet,
        snapshot: &Snapshot,
        now_ns: u64,
    ) -> Option<(Standing, Decision)> {
        let key = &packet.parsed.key;
        let tuple = connections::tuple_in(snapshot, key, pipeline::tenant(snapshot, key)?);
        for (relation, way, tuple) in [
            (Relation::Original, Way::Original, tuple),
            (Relation::Reply, Way::Reply, tuple.reversed()),
        ] {
            let mut decision = self.resolve(packet, snapshot, (relation, None));
            let Verdict::Forward(_) = decision.verdict else { continue };
            let opened = self.begin(packet, (&tuple, Pickup::Midstream), snapshot, now_ns);
            let hit = opened
                .map(|opened| Hit { conn: opened.conn, way })
                .inspect_err(|reason| decision.verdict = Verdict::Drop(*reason));
            return Some((Standing { relation, hit: hit.ok(), outside: None }, decision));
        }
        None
    }

    /// The later fragments of a packet that passes may pass too.
    #[inline]
    fn note_fragment(
        &self,
        packet: &Packet,
        decision: &Decision,
        snapshot: &Snapshot,
        now: Seconds,
    ) {
        if packet.parsed.key.flags & flag::FRAG_FIRST == 0 || !decision.passes() {
            return;
        }
        if let Some(vrf) = pipeline::tenant(snapshot, &packet.parsed.key) {
            self.shared.memory.note_first(&packet.parsed, vrf, now);
        }
    }
}

/// Until when packets like this one change nothing: it was noted that a settled connection had one in
/// this second. A SYN within a connection is not noted, and first fragments are every time. A
/// connection may have flows of several keys (fragments, tunnels, flags that rules look at): that
/// one of them has ended it and begun the next, the others notice when the second is over.
const fn quiet_until(parsed: &Parsed, now: Seconds) -> Seconds {
    if leaves_it(parsed) && parsed.key.flags & flag::FRAG_FIRST == 0 {
        Seconds(now.0.saturating_add(1))
    } else {
        Seconds(0)
    }
}

/// Whether a packet of a settled connection leaves it as it is: of TCP, an ACK and nothing more. One
/// with none of these flags is impossible.
#[inline(always)]
pub(super) const fn changes_nothing(proto: u8, tcp_flags: u8) -> bool {
    match tcp_flags & TELLING {
        tcp_flag::ACK => true,
        0 => proto != ipproto::TCP,
        _ => false,
    }
}

const fn leaves_it(parsed: &Parsed) -> bool {
    changes_nothing(parsed.key.proto, parsed.tcp_flags)
}
