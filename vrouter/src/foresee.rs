//! What would become of a packet: the worker's own walk, taken from outside with what the worker
//! would find in the shared memory, and written down.
//!
//! Nothing is left behind: no connection is opened, no token spent. So a trace knows no limits; it
//! says "forward" of a packet that opens a flow above a budget, or that a meter ends.

use flowtable::conn::{Hit, Outside, Step};
use flowtable::ids::PortId;
use flowtable::key::Parsed;
use flowtable::text::CtAssume;
use flowtable::{DropReason, Verdict};

use crate::connections;
use crate::engine::Engine;
use crate::pipeline::{self, Decision, Relation};
use crate::snapshot::Snapshot;
use crate::trace::{self, Notes, Trace};

impl Engine {
    /// What would become of `frame` received on `in_port`: the worker's own walk, written down.
    #[must_use]
    pub fn trace(&self, in_port: PortId, frame: &[u8]) -> Trace {
        self.explain(in_port, frame, |snapshot, parsed| self.foresee(snapshot, parsed, frame))
    }

    /// As [`Engine::trace`], if the connection table said `assume` of the packet. Of tenants and
    /// packets that it is not asked about nothing is assumed.
    #[must_use]
    pub fn trace_assuming(&self, in_port: PortId, frame: &[u8], assume: CtAssume) -> Trace {
        self.explain(in_port, frame, |snapshot, parsed| {
            walk(snapshot, parsed, (connections::assumed(snapshot, parsed, assume), None))
        })
    }

    fn explain(
        &self,
        in_port: PortId,
        frame: &[u8],
        decide: impl FnOnce(&Snapshot, &Parsed) -> (Decision, Notes),
    ) -> Trace {
        let snapshot = self.shared.snapshot.load_full();
        match trace::read(&snapshot, in_port, frame) {
            Ok(parsed) => {
                let (decision, notes) = decide(&snapshot, &parsed);
                Trace::of(&parsed.key, &decision, None, notes.0, &snapshot)
            }
            Err(reason) => Trace::unreadable(reason),
        }
    }

    /// The walk of an imagined packet, as the worker would take it. Of its limits it knows none.
    fn foresee(&self, snapshot: &Snapshot, parsed: &Parsed, frame: &[u8]) -> (Decision, Notes) {
        let (memory, now) = (&self.shared.memory, self.shared.seconds());
        let standing = memory.stand(snapshot, (parsed, frame), now);
        let (mut decision, notes) = walk(snapshot, parsed, standing.seen());
        if self.shared.picks_up(&decision, parsed, snapshot, now) {
            let picked = [Relation::Original, Relation::Reply];
            let picked = picked.map(|relation| walk(snapshot, parsed, (relation, None)));
            let passing = picked.into_iter().find(|(decision, _)| decision.passes());
            return passing.unwrap_or((decision, notes));
        }
        if let Some(Hit { conn, way }) = standing.hit
            && decision.passes()
            && memory.connections.foresee(conn, way, parsed.tcp_flags, now) == Step::Invalid
        {
            decision.verdict = Verdict::Drop(DropReason::NoConnection);
        }
        (decision, notes)
    }
}

fn walk(
    snapshot: &Snapshot,
    parsed: &Parsed,
    seen: (Relation, Option<Outside>),
) -> (Decision, Notes) {
    let mut notes = Notes::default();
    let decision = pipeline::walk(snapshot, parsed, seen, &mut notes);
    (decision, notes)
}
