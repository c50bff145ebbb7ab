//! T1, T2, T3, and the connections beside them: what becomes of a packet.
//!
//! The exact cache answers for flows that are known. A flow of a connection is looked at again when
//! its second has passed or its flags say that the connection changes; one that belongs to no
//! connection is compared with the table every time, because a packet of the other side may have
//! opened one. What is not in the exact cache gets its relation first, then a decision from the
//! masked cache or the tables, and opens its connection if the decision lets it pass.

use flowtable::conn::{
    ConnTable, Hit, Limits, Opening, Owner, Pickup, Refused, Seconds, Step, Way,
};
use flowtable::entry::{TenantEntry, Tracking};
use flowtable::fragment::{FragKey, FragTable};
use flowtable::ids::{PortId, Vrf};
use flowtable::key::{Parsed, flag, ipproto, tcp_flag};
use flowtable::{DropReason, Verdict};
use packet_io::{Frame, PacketIo};

use super::{Packet, Worker, seconds};
use crate::budget::{PortBudget, Rate, TenantBudget};
use crate::connections::{self, Part, Standing};
use crate::counters::{Count, Tier};
use crate::pipeline::{self, Decision, Relation};
use crate::port::PortKind;
use crate::snapshot::Snapshot;
use crate::trace::{self, Silent};

/// Flags of segments that change a connection.
const CHANGING: u8 = tcp_flag::SYN | tcp_flag::FIN | tcp_flag::RST;
/// A flow that no connection can change.
const FOR_EVER: Seconds = Seconds(u32::MAX);
/// Fragmented packets whose first fragment has passed, at most.
const FRAGMENTED: usize = 4096;
/// All slots of the connection table are looked at once in this time.
const SWEEP_NS: u64 = 10_000_000_000;
/// Between two looks at some of them.
const SWEEP_STEP_NS: u64 = 1_000_000;

/// A cached flow and what it carried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    pub(super) decision: Decision,
    pub(super) count: Count,
    /// Its connection; `None` also when it may have one.
    hit: Option<Hit>,
    /// Before this second the connection, or that there is none, need not be looked at.
    quiet_until: Seconds,
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
    /// New flows a second of one port; 0 is no limit.
    pub(crate) port_new_flows: u32,
    /// For how long after the first tables TCP may be picked up in the middle.
    pub(crate) pickup: Seconds,
}

/// What a worker has of the connections for itself.
#[derive(Debug)]
pub(crate) struct Tracker {
    bounds: Bounds,
    fragments: FragTable<()>,
    ports: PortBudget,
    tenants: TenantBudget,
    pickup_until: Option<Seconds>,
    swept_ns: u64,
}

impl Tracker {
    pub(crate) fn new(bounds: Bounds, seed: u64) -> Self {
        Self {
            fragments: FragTable::new(FRAGMENTED, seed),
            ports: PortBudget::new(Rate::new(bounds.port_new_flows, bounds.port_new_flows)),
            tenants: TenantBudget::default(),
            pickup_until: None,
            swept_ns: 0,
            bounds,
        }
    }

    /// Ends some expired connections, now and then.
    #[inline]
    pub(super) fn tidy(&mut self, table: &ConnTable, snapshot: &Snapshot, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.swept_ns);
        if passed < SWEEP_STEP_NS {
            return;
        }
        self.swept_ns = now_ns;
        let now = seconds(now_ns);
        if self.pickup_until.is_none() && snapshot.revision > 0 {
            self.pickup_until = Some(Seconds(now.0.saturating_add(self.bounds.pickup.0)));
        }
        let share = table.slots() as u64 * passed.min(SWEEP_NS) / SWEEP_NS;
        table.sweep(now, share as usize + 1);
    }

    /// Whether TCP without a handshake is taken for a connection from before this engine started.
    fn picks_up(&self, now: Seconds) -> bool {
        self.pickup_until.is_some_and(|until| now < until)
    }

    /// Whether a port and its tenant may open one more flow.
    fn may_open(&mut self, port: PortId, tenant: &TenantEntry, vrf: Vrf, now_ns: u64) -> bool {
        let of_tenant = match tenant.new_flows_max {
            0 => self.bounds.tenant_new_flows,
            own => own,
        };
        self.ports.take(port, now_ns)
            && self.tenants.take(vrf, Rate::new(of_tenant, of_tenant), now_ns)
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
        let key = &packet.parsed.key;
        if let Some(slot) = self.cache.lookup_near(packet.hint, packet.hash, key) {
            let now = seconds(now_ns);
            let flow = self.cache.entry_mut(slot);
            if flow.decision.revision >= snapshot.valid_since(flow.decision.sections) {
                flow.count.add(packet.rx.len);
                if now < flow.quiet_until && packet.parsed.tcp_flags & CHANGING == 0 {
                    self.tiers[Tier::Exact as usize] += 1;
                    return flow.decision;
                }
                let flow = *flow;
                if let Some((decision, quiet_until)) =
                    self.look_again((frame, packet), &flow, snapshot, now)
                {
                    self.cache.entry_mut(slot).quiet_until = quiet_until;
                    self.tiers[Tier::Exact as usize] += 1;
                    return decision;
                }
            }
        }
        self.decide_new(frame, packet, snapshot, now_ns)
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
            self.note_fragment(packet, &decision, snapshot, now);
            let same = standing.relation == decision.relation && standing.hit.is_none();
            return same.then_some((decision, Seconds(0)));
        };
        match self.shared.connections.advance(conn, way, packet.parsed.tcp_flags, now) {
            Step::Gone => None,
            Step::Invalid => {
                let verdict = Verdict::Drop(DropReason::NoConnection);
                Some((Decision { verdict, ..decision }, Seconds(0)))
            }
            Step::Live { settled } => {
                self.note_fragment(packet, &decision, snapshot, now);
                Some((decision, quiet_until(&packet.parsed, settled, now)))
            }
        }
    }

    /// Which tier would decide `frame` if it came in by `in_port` now; `None`: it can't be parsed.
    /// Nothing is counted or marked as hit.
    #[must_use]
    pub fn tier(&self, in_port: PortId, frame: &[u8]) -> Option<Tier> {
        let snapshot = self.shared.snapshot.load_full();
        let parsed = trace::read(&snapshot, in_port, frame).ok()?;
        let (table, now) = (&self.shared.connections, self.shared.seconds());
        let standing = connections::standing(&snapshot, table, (&parsed, frame), now);
        let cached = self.cache.peek(self.hasher.hash(&parsed.key), &parsed.key);
        let holds = cached.map(|slot| self.cache.entry(slot)).is_some_and(|flow| {
            let same = flow.hit.is_some() || flow.decision.relation == standing.relation;
            same && flow.hit == standing.hit
                && flow.decision.revision >= snapshot.valid_since(flow.decision.sections)
        });
        Some(if holds {
            Tier::Exact
        } else if self.masked.knows(&parsed.key, standing.relation, &snapshot) {
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
        let mut decision = self.resolve(packet, snapshot, standing.relation);
        if matches!(decision.verdict, Verdict::Drop(DropReason::NoConnection))
            && self.tracker.picks_up(now)
            && let Some(picked) = self.pick_up(packet, snapshot, now)
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
        if Part::of(&packet.parsed.key) != Part::Error || quiet_until == FOR_EVER {
            self.remember(
                packet,
                Flow { decision, count: Count::default(), hit, quiet_until },
                snapshot,
            );
        }
        decision
    }

    fn remember(&mut self, packet: &Packet, mut flow: Flow, snapshot: &Snapshot) {
        flow.count.add(packet.rx.len);
        let stale =
            |flow: &Flow| flow.decision.revision < snapshot.valid_since(flow.decision.sections);
        // A set full of flows that were all hit lately takes no new one: it is not cached then.
        self.cache.insert(packet.hash, packet.parsed.key, flow, stale);
        let (exact, masked) = (self.cache.len(), self.masked.len());
        self.shared.counters.set_entries(exact, masked, self.masked.masks());
    }

    /// T2, then T3; what T3 found for more than one flow is kept in T2.
    fn resolve(&mut self, packet: &Packet, snapshot: &Snapshot, relation: Relation) -> Decision {
        let key = &packet.parsed.key;
        if let Some(decision) = self.masked.lookup(key, relation, snapshot) {
            self.tiers[Tier::Masked as usize] += 1;
            return decision;
        }
        let decision = pipeline::walk(snapshot, &packet.parsed, relation, &mut Silent);
        self.tiers[Tier::Pipeline as usize] += 1;
        self.masked.insert(key, &decision, snapshot);
        decision
    }

    /// What the packet is to the connections of its tenant.
    fn stand(
        &mut self,
        (frame, packet): (&Frame, &Packet),
        snapshot: &Snapshot,
        now: Seconds,
    ) -> Standing {
        let key = &packet.parsed.key;
        // Without a tenant the walk ends before anyone asks.
        let Some(vrf) = pipeline::tenant(snapshot, key) else { return Standing::UNTRACKED };
        let tenant = snapshot.policy.tenant(vrf);
        let later = tenant.tracking == Tracking::Stateful && Part::of(key) == Part::Fragment;
        if later
            && let Some(key) = fragment(&packet.parsed, vrf)
            && self.tracker.fragments.find(&key, now.0.into()).is_some()
        {
            return Standing::none(Relation::Admitted);
        }
        let seen = (&packet.parsed, self.io.bytes(frame));
        connections::relate(&self.shared.connections, seen, tenant, vrf, now)
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
        let untracked = standing.relation == Relation::Untracked;
        let quiet = if untracked { FOR_EVER } else { Seconds(0) };
        let Verdict::Forward(_) = decision.verdict else { return Ok((None, quiet)) };
        let flags = packet.parsed.tcp_flags;
        match (standing.hit, standing.relation) {
            (Some(hit), _) => {
                match self.shared.connections.advance(hit.conn, hit.way, flags, now) {
                    Step::Live { settled } => {
                        Ok((Some(hit), quiet_until(&packet.parsed, settled, now)))
                    }
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
        let (parsed, port, now) = (&packet.parsed, packet.rx.port, seconds(now_ns));
        let vrf = pipeline::tenant(snapshot, &parsed.key).ok_or(DropReason::PortUnbound)?;
        let tenant = snapshot.policy.tenant(vrf);
        let kind = snapshot.ports.lookup(port).map_or(PortKind::Container, |p| p.spec.kind);
        if !self.tracker.may_open(port, tenant, vrf, now_ns) {
            return Err(DropReason::FlowLimit);
        }
        let limits = self.tracker.limits(kind, tenant);
        let owner = Owner { vrf, port };
        let opening = Opening { owner, tcp_flags: parsed.tcp_flags, pickup: Pickup::No };
        let tuple = connections::tuple(&parsed.key, vrf);
        match self.shared.connections.open(&tuple, opening, limits, now) {
            Ok(hit) => Ok((Some(hit), quiet_until(parsed, parsed.key.proto != ipproto::TCP, now))),
            Err(Refused::NotAnOpening) => Err(DropReason::NoConnection),
            Err(Refused::TableFull | Refused::TenantFull | Refused::PortFull) => {
                Err(DropReason::FlowLimit)
            }
        }
    }

    /// Takes a TCP segment for one of a connection that was opened before this engine started: from
    /// its sender if the rules let it open one, else to it.
    fn pick_up(
        &mut self,
        packet: &Packet,
        snapshot: &Snapshot,
        now: Seconds,
    ) -> Option<(Standing, Decision)> {
        let (parsed, port) = (&packet.parsed, packet.rx.port);
        let vrf = pipeline::tenant(snapshot, &parsed.key)?;
        let tenant = snapshot.policy.tenant(vrf);
        let kind = snapshot.ports.lookup(port)?.spec.kind;
        let tuple = connections::tuple(&parsed.key, vrf);
        for (relation, way, tuple) in [
            (Relation::Original, Way::Original, tuple),
            (Relation::Reply, Way::Reply, tuple.reversed()),
        ] {
            let decision = self.resolve(packet, snapshot, relation);
            if parsed.key.proto == ipproto::TCP
                && let Verdict::Forward(_) = decision.verdict
            {
                let owner = Owner { vrf, port };
                let pickup = Pickup::Midstream;
                let opening = Opening { owner, tcp_flags: parsed.tcp_flags, pickup };
                let limits = self.tracker.limits(kind, tenant);
                let opened = self.shared.connections.open(&tuple, opening, limits, now).ok()?;
                let hit = Some(Hit { conn: opened.conn, way });
                return Some((Standing { relation, hit }, decision));
            }
        }
        None
    }

    /// The later fragments of a packet that passes may pass too.
    #[inline]
    fn note_fragment(
        &mut self,
        packet: &Packet,
        decision: &Decision,
        snapshot: &Snapshot,
        now: Seconds,
    ) {
        let passes = matches!(decision.verdict, Verdict::Forward(_));
        if packet.parsed.key.flags & flag::FRAG_FIRST == 0 || !passes {
            return;
        }
        if let Some(vrf) = pipeline::tenant(snapshot, &packet.parsed.key) {
            let key = fragment(&packet.parsed, vrf);
            key.into_iter().for_each(|key| self.tracker.fragments.note(key, (), now.0.into()));
        }
    }
}

/// Until when a packet like this changes nothing: settled connections only note the time, and first
/// fragments are noted every time.
const fn quiet_until(parsed: &Parsed, settled: bool, now: Seconds) -> Seconds {
    if settled && parsed.key.flags & flag::FRAG_FIRST == 0 {
        Seconds(now.0.saturating_add(1))
    } else {
        Seconds(0)
    }
}

/// The packet that a fragment is a part of.
fn fragment(parsed: &Parsed, vrf: Vrf) -> Option<FragKey> {
    let key = &parsed.key;
    let addresses = key.src_ip().zip(key.dst_ip())?;
    Some(FragKey::new(vrf, key.proto, addresses, parsed.fragment_id))
}
