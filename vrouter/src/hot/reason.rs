//! Which flows may be forwarded without the engine, and why others may not.

use flowtable::action::{Exit, Pop};
use flowtable::conn::{Hit, Seconds};
use flowtable::entry::Offload;
use flowtable::ids::PortId;
use flowtable::key::{FlowKey, ethertype, ipproto};
use flowtable::{ActionList, Verdict};

use crate::pipeline::{Decision, Relation};
use crate::port::PortKind;
use crate::snapshot::Snapshot;
use crate::worker::Shared;

/// Why a flow's packets pass the engine, all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotHot {
    /// Offloading is off, or this engine has no table to offload to.
    Off,
    /// It has not carried enough yet, or its offer is on its way.
    New,
    /// Its sender or its receiver is to have none offloaded: their tenant or network says so.
    SwitchedOff,
    /// It is dropped, or answered by the gateway.
    NotForwarded,
    /// It comes from or goes to the wire, and not by a tunnel of an uplink that has a device for that.
    OffNode,
    /// It is neither TCP nor UDP.
    Protocol,
    /// Its packets are fragments, have options, or end at the next router.
    Unusual,
    /// A meter limits it.
    Metered,
    /// Its connection is not established or answered, or one side has begun to end it.
    NotEstablished,
    /// Rules look at the TCP flags of each packet, as its tenant is stateless.
    FlagRules,
    /// Somebody watches it by a live trace.
    Watched,
    /// Its port has all the offloaded flows it may have, and none is idle.
    PortQuota,
    /// Its tenant has.
    TenantQuota,
    /// All places are taken, and no flow is idle.
    Full,
    /// The table refused it.
    Refused,
}

impl NotHot {
    /// Those that come up only when a flow is about to be offloaded, in the order of their counts.
    pub const REFUSALS: [Self; 5] =
        [Self::PortQuota, Self::TenantQuota, Self::Full, Self::Refused, Self::Watched];

    /// Name in listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::New => "new",
            Self::SwitchedOff => "switched-off",
            Self::NotForwarded => "not-forwarded",
            Self::OffNode => "off-node",
            Self::Protocol => "protocol",
            Self::Unusual => "unusual",
            Self::Metered => "metered",
            Self::NotEstablished => "not-established",
            Self::FlagRules => "flag-rules",
            Self::Watched => "watched",
            Self::PortQuota => "port-quota",
            Self::TenantQuota => "tenant-quota",
            Self::Full => "full",
            Self::Refused => "refused",
        }
    }
}

/// What is done to the packets of a flow that may be offloaded.
pub(crate) fn judge(
    key: &FlowKey,
    (decision, hit): (&Decision, Option<Hit>),
    (shared, snapshot): (&Shared, &Snapshot),
    now: Seconds,
) -> Result<ActionList, NotHot> {
    let Verdict::Forward(actions) = decision.verdict else { return Err(NotHot::NotForwarded) };
    let ports = [PortId::new(key.in_port.into()).ok(), Some(actions.output())];
    let kind = |id: Option<PortId>| Some(snapshot.ports.lookup(id?)?.spec.kind);
    let carries = |uplink: Option<PortId>| {
        let hot = shared.hot.get();
        hot.zip(uplink).is_some_and(|(hot, uplink)| hot.table().carries_tunnels(uplink))
    };
    let is = |port, wanted| kind(port) == Some(wanted);
    let (came, leaves) = (ports[0], ports[1]);
    let inside = [came, leaves].map(|port| is(port, PortKind::Container));
    match (inside, actions.pop, actions.exit) {
        ([true, true], Pop::Nothing, Exit::Plain(_)) => {}
        ([true, false], Pop::Nothing, Exit::Tunnel { .. }) if carries(leaves) => {}
        ([false, true], Pop::Tunnel, Exit::Plain(_)) if carries(came) => {}
        _ => return Err(NotHot::OffNode),
    }
    let binding = |id| snapshot.ports.lookup(id).and_then(|port| port.binding.as_ref());
    let mut bindings = ports.into_iter().flatten().filter_map(binding);
    if bindings.any(|binding| binding.offload == Offload::Off) {
        return Err(NotHot::SwitchedOff);
    }
    let is_ip = matches!(key.eth_type, ethertype::IPV4 | ethertype::IPV6);
    if !is_ip || !matches!(key.proto, ipproto::TCP | ipproto::UDP) {
        return Err(NotHot::Protocol);
    }
    if key.flags != 0 {
        return Err(NotHot::Unusual);
    }
    if !decision.meters.is_empty() {
        return Err(NotHot::Metered);
    }
    let connections = &shared.memory.connections;
    match (decision.relation, hit) {
        (Relation::Opening | Relation::Original | Relation::Reply, Some(hit))
            if connections.is_mutual(hit.conn, now) => {}
        (Relation::Untracked, None) if snapshot.policy.rules.tcp_flags_mask() == 0 => {}
        (Relation::Untracked, None) => return Err(NotHot::FlagRules),
        _ => return Err(NotHot::NotEstablished),
    }
    Ok(actions)
}
