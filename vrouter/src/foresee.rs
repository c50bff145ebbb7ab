//! What would become of a packet: the worker's own walk, taken from outside with what the worker
//! would find in the shared memory, and written down.
//!
//! Nothing is left behind: no connection is opened, no token spent. So a trace knows no limits; it
//! says "forward" of a packet that opens a flow above a budget, or that a meter ends.

use flowtable::conn::{Hit, Step};
use flowtable::ids::PortId;
use flowtable::key::{self, Decap, Origin, Parsed};
use flowtable::{DropReason, Verdict};

use crate::connections;
use crate::engine::Engine;
use crate::pipeline::{self, Decision, Relation};
use crate::port::PortKind;
use crate::snapshot::Snapshot;
use crate::trace::{Notes, Trace};

impl Engine {
    /// What would become of `frame` received on `in_port`: the worker's own walk, written down.
    #[must_use]
    pub fn trace(&self, in_port: PortId, frame: &[u8]) -> Trace {
        let snapshot = self.shared.snapshot.load_full();
        let kind = snapshot.ports.lookup(in_port).map(|p| p.spec.kind);
        let decap = match kind {
            Some(PortKind::Uplink) => Decap::Vxlan,
            Some(PortKind::Container) | None => Decap::Never,
        };
        match key::parse(frame, Origin { in_port, decap }) {
            Ok(mut parsed) => {
                parsed.key.tcp_flags = parsed.tcp_flags & snapshot.policy.rules.tcp_flags_mask();
                let (decision, notes) = self.foresee(&snapshot, &parsed, frame);
                Trace::of(&parsed.key, &decision, notes.0, &snapshot)
            }
            Err(reason) => Trace::unreadable(reason),
        }
    }

    /// The walk of an imagined packet, as the worker would take it. Of its limits it knows none.
    fn foresee(&self, snapshot: &Snapshot, parsed: &Parsed, frame: &[u8]) -> (Decision, Notes) {
        let walk = |relation| {
            let mut notes = Notes::default();
            let decision = pipeline::walk(snapshot, parsed, relation, &mut notes);
            (decision, notes)
        };
        let Some(vrf) = pipeline::tenant(snapshot, &parsed.key) else {
            return walk(Relation::Untracked);
        };
        let (tenant, now) = (snapshot.policy.tenant(vrf), self.shared.seconds());
        let memory = &self.shared.memory;
        let standing = memory.relate((parsed, frame), tenant, vrf, now);
        let (mut decision, notes) = walk(standing.relation);
        if decision.is_stray()
            && self.shared.pickup.is_after(now)
            && connections::may_be_midstream(parsed)
        {
            let picked = [Relation::Original, Relation::Reply].map(walk);
            let passes =
                |(decision, _): &(Decision, Notes)| matches!(decision.verdict, Verdict::Forward(_));
            return picked.into_iter().find(passes).unwrap_or((decision, notes));
        }
        if let (Some(Hit { conn, way }), Verdict::Forward(_)) = (standing.hit, decision.verdict)
            && memory.connections.foresee(conn, way, parsed.tcp_flags, now) == Step::Invalid
        {
            decision.verdict = Verdict::Drop(DropReason::NoConnection);
        }
        (decision, notes)
    }
}
