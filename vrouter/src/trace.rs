//! The walk, written down: the recorder the pipeline calls at every table.

use flowtable::ids::{MeterId, PortId, RuleId};
use flowtable::key::{self, Decap, FlowKey, Origin, Parsed};
use flowtable::meter::{Colour, MeterSlot};
use flowtable::{DropReason, Verdict};

use crate::pipeline::Decision;
use crate::port::PortKind;
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

/// Whose meter charges a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeterWay {
    /// Of what the sending port sends.
    From,
    /// Of what the receiving port receives.
    To,
}

/// A meter that a packet is charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeterUse {
    /// The meter.
    pub meter: MeterId,
    /// Whose it is.
    pub way: MeterWay,
    /// What a real packet was: by several meters that let it pass, the worst. `None`: it is
    /// imagined, or another meter was red and this one not charged.
    pub colour: Option<Colour>,
}

/// What the meters said of a real packet: a colour, or the one that was red.
pub(crate) type Charged = Result<Colour, MeterSlot>;

/// A frame as the worker would parse it.
pub(crate) fn read(
    snapshot: &Snapshot,
    in_port: PortId,
    frame: &[u8],
) -> Result<Parsed, DropReason> {
    let kind = snapshot.ports.lookup(in_port).map(|p| p.spec.kind);
    let decap = match kind {
        Some(PortKind::Uplink) => Decap::Vxlan,
        Some(PortKind::Container) | None => Decap::Never,
    };
    let mut parsed = key::parse(frame, Origin { in_port, decap })?;
    parsed.key.tcp_flags = parsed.tcp_flags & snapshot.policy.rules.tcp_flags_mask();
    Ok(parsed)
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
    pub meters: Vec<MeterUse>,
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
        charged: Option<Charged>,
        steps: Vec<TraceStep>,
        snapshot: &Snapshot,
    ) -> Self {
        let of_sender = sender_meters(key, snapshot);
        let meters = decision.meters.slots().iter().enumerate().filter_map(|(n, slot)| {
            let colour = match charged {
                Some(Ok(colour)) => Some(colour),
                Some(Err(red)) => (red == *slot).then_some(Colour::Red),
                None => None,
            };
            let way = if n < of_sender { MeterWay::From } else { MeterWay::To };
            snapshot.qos.id(*slot).map(|meter| MeterUse { meter, way, colour })
        });
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

/// How many of a packet's meters are its sender's: those come first.
fn sender_meters(key: &FlowKey, snapshot: &Snapshot) -> usize {
    let port = PortId::new(key.in_port.into()).ok().and_then(|id| snapshot.ports.lookup(id));
    let container = port.filter(|port| port.spec.kind == PortKind::Container);
    let qos = container.and_then(|port| snapshot.qos.of_port(port.spec.id));
    qos.map_or(0, |qos| qos.from.slots().len())
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
