//! The walk, written down: the recorder the pipeline calls at every table.

use flowtable::ids::{MeterId, RuleId};
use flowtable::key::FlowKey;
use flowtable::{DropReason, Verdict};

use crate::pipeline::Decision;
use crate::snapshot::Snapshot;

/// Told of every table the pipeline looks at. The engine's own walk uses [`Silent`], which compiles
/// to nothing, so that explaining and deciding are one code path.
pub(crate) trait Recorder {
    /// One table: its name, the rule that matched there, and, as text, what matched and what that
    /// entails. The closures run only when someone listens.
    fn step(
        &mut self,
        table: &'static str,
        rule: Option<RuleId>,
        matched: impl FnOnce() -> String,
        action: impl FnOnce() -> String,
    );
}

/// Listens to nothing.
#[derive(Debug)]
pub(crate) struct Silent;

impl Recorder for Silent {
    #[inline(always)]
    fn step(
        &mut self,
        _: &'static str,
        _: Option<RuleId>,
        _: impl FnOnce() -> String,
        _: impl FnOnce() -> String,
    ) {
    }
}

/// One table of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceStep {
    /// Name of the table.
    pub table: &'static str,
    /// The policy rule that matched, in the policy table.
    pub rule: Option<RuleId>,
    /// What matched, as flow text; "miss" when nothing did.
    pub matched: String,
    /// What follows from it.
    pub actions: Vec<String>,
}

/// What the engine would do with a packet, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// What becomes of it.
    pub verdict: Verdict,
    /// The rule that decided, when one did.
    pub rule: Option<RuleId>,
    /// The tables in the order they were looked at.
    pub steps: Vec<TraceStep>,
    /// The packet as the tables see it; `None` when it can't be parsed.
    pub key: Option<FlowKey>,
    /// Bits of the key that the decision depends on.
    pub mask: FlowKey,
    /// What the packet is to the connections, as ovs-fields(7) writes `ct_state`; empty: nothing.
    pub ct_state: &'static str,
    /// Meters that it is charged to.
    pub meters: Vec<MeterId>,
}

impl Trace {
    /// A packet that can't be parsed.
    pub(crate) fn unreadable(reason: DropReason) -> Self {
        Self {
            verdict: Verdict::Drop(reason),
            rule: None,
            steps: Vec::new(),
            key: None,
            mask: FlowKey::default(),
            ct_state: "",
            meters: Vec::new(),
        }
    }

    pub(crate) fn of(
        key: &FlowKey,
        decision: &Decision,
        steps: Vec<TraceStep>,
        snapshot: &Snapshot,
    ) -> Self {
        let meters = decision.meters.slots().iter().filter_map(|slot| snapshot.qos.id(*slot));
        Self {
            verdict: decision.verdict,
            rule: decision.rule,
            steps,
            key: Some(*key),
            mask: decision.looked.mask(),
            ct_state: decision.relation.name(),
            meters: meters.collect(),
        }
    }
}

/// Writes the steps down.
#[derive(Debug, Default)]
pub(crate) struct Notes(pub(crate) Vec<TraceStep>);

impl Recorder for Notes {
    fn step(
        &mut self,
        table: &'static str,
        rule: Option<RuleId>,
        matched: impl FnOnce() -> String,
        action: impl FnOnce() -> String,
    ) {
        self.0.push(TraceStep { table, rule, matched: matched(), actions: vec![action()] });
    }
}
