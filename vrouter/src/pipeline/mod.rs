//! The walk through the tables: one function decides and, with a listening recorder, explains.
//!
//! Order as in Contiv's ofnet: classify the input (port, or tunnel and VLAN), what the packet is to
//! its tenant's connections, ARP and neighbor discovery, then where the packet goes (route or MAC
//! table), then policy at both ends, then meters and marks, then the way out. Every table looked at is
//! noted in [`Decision::sections`], and every port number in [`Decision::looked`]: a false note costs
//! a re-walk or a narrower cache entry, a missing one is a bug.
//!
//! A walk is a function of the tables, the key and the [`Relation`] alone: what changes with every
//! packet (connections, fragments, meters' tokens) is asked before it and charged after it.

mod forward;
mod ingress;
mod output;
mod outside;
mod policy;

use std::net::IpAddr;

use flowtable::action::{Exit, Pop, Punt};
use flowtable::conn::Outside;
use flowtable::entry::{NextHop, PortEntry};
use flowtable::ids::{Bd, Mac, PortId, RuleId, Vid, Vni, Vrf};
use flowtable::key::{FlowKey, Neighbor, Parsed, ethertype, flag, icmpv6, ipproto};
use flowtable::{ActionList, DropReason, Verdict};

use crate::port::PortKind;
use crate::qos::MeterList;
use crate::snapshot::{Network, Published, Route, Section, Sections, Snapshot};
use crate::trace::Recorder;

pub(crate) use outside::{far_side, published};

/// No counter slot.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// What a packet is to the connections of its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    /// Nobody asks: its tenant is stateless, or it is nothing that connections are made of.
    Untracked,
    /// It belongs to none, and opens one if the rules let it.
    Opening,
    /// It belongs to none and can't open one: dropped for this reason if the rules don't before.
    Stray(DropReason),
    /// It goes the way of the packet that opened its connection.
    Original,
    /// It goes the other way: the rules are asked about the packet that opened the connection.
    Reply,
    /// The rules are not asked: an error about a connection, or a later fragment of a packet that
    /// passed.
    Admitted,
}

impl Relation {
    /// As ovs-fields(7) writes `ct_state`; empty when nothing is tracked.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Untracked => "",
            Self::Opening => "+trk+new",
            Self::Stray(_) => "+trk+inv",
            Self::Original => "+trk+est",
            Self::Reply => "+trk+est+rpl",
            Self::Admitted => "+trk+rel",
        }
    }
}

/// Which of the fields that tell flows between two addresses apart a decision depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Looked {
    /// Source port, or ICMP type.
    pub(crate) src_port: bool,
    /// Destination port, or ICMP code.
    pub(crate) dst_port: bool,
}

impl Looked {
    /// All bits of a key but those that were not looked at.
    pub(crate) fn mask(self) -> FlowKey {
        let part = |looked: bool| if looked { u16::MAX } else { 0 };
        FlowKey {
            in_port: u16::MAX,
            vid: u16::MAX,
            eth_type: u16::MAX,
            proto: u8::MAX,
            flags: u8::MAX,
            eth_dst: [u8::MAX; 6],
            eth_src: [u8::MAX; 6],
            vni: u32::MAX,
            tun_src: [u8::MAX; 16],
            src: [u8::MAX; 16],
            dst: [u8::MAX; 16],
            src_port: part(self.src_port),
            dst_port: part(self.dst_port),
            icmp_id: 0,
            tcp_flags: u8::MAX,
            zero: 0,
        }
    }
}

/// What was decided for a flow, and what that rests on. The first three are read for every packet.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Decision {
    /// Revision of the tables it was decided on.
    pub(crate) revision: u64,
    /// Counter slots of the rules that matched: out, in.
    pub(crate) slots: [u32; 2],
    /// Tables that were looked at.
    pub(crate) sections: Sections,
    /// What the packet was to the connections.
    pub(crate) relation: Relation,
    pub(crate) looked: Looked,
    pub(crate) verdict: Verdict,
    /// The rule that denied, or the last one that allowed.
    pub(crate) rule: Option<RuleId>,
    /// Meters it is charged to.
    pub(crate) meters: MeterList,
}

impl Decision {
    /// Up to the end of what is read for every packet.
    pub(crate) const FIRST_BYTES: usize = std::mem::offset_of!(Self, relation);

    /// Refused, and of no connection.
    pub(crate) const fn is_stray(&self) -> bool {
        let refused = matches!(
            self.verdict,
            Verdict::Drop(DropReason::NoConnection | DropReason::PolicyDeny)
        );
        refused && matches!(self.relation, Relation::Stray(DropReason::NoConnection))
    }

    pub(crate) const fn passes(&self) -> bool {
        matches!(self.verdict, Verdict::Forward(_))
    }

    /// No table that was looked at has changed since.
    #[inline]
    pub(crate) fn holds_on(&self, snapshot: &Snapshot) -> bool {
        self.revision >= snapshot.valid_since(self.sections)
    }

    /// Of a packet that was not even looked at.
    pub(crate) fn flow_limit(relation: Relation, snapshot: &Snapshot) -> Self {
        Self {
            verdict: Verdict::Drop(DropReason::FlowLimit),
            slots: [NO_SLOT; 2],
            rule: None,
            meters: MeterList::EMPTY,
            relation,
            looked: Looked::default(),
            sections: Sections::default(),
            revision: snapshot.revision,
        }
    }
}

/// Where a packet entered the tenant.
#[derive(Debug, Clone, Copy)]
enum Origin<'s> {
    Port(&'s PortEntry),
    Tunnel,
    Wire,
    /// A published port of the node, which leads to this address and port.
    Outside {
        to: (IpAddr, u16),
        route: Route,
    },
}

/// What the first tables say about a packet.
#[derive(Debug, Clone, Copy)]
struct Ingress<'s> {
    vrf: Vrf,
    bd: Bd,
    origin: Origin<'s>,
}

/// Where it goes, before policy.
#[derive(Debug, Clone, Copy)]
struct Target {
    next_hop: NextHop,
    /// The new destination MAC of a routed packet.
    routed: Option<Mac>,
}

/// Ends the walk early.
enum Stop {
    Drop(DropReason),
    Punt(Punt),
}

impl From<DropReason> for Stop {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// Decides a packet on one snapshot. Of one that answers who came to a published port, `outside` says
/// where that was; it is `None` for every other one.
pub(crate) fn walk(
    snapshot: &Snapshot,
    parsed: &Parsed,
    (relation, outside): (Relation, Option<Outside>),
    recorder: &mut impl Recorder,
) -> Decision {
    let published = published(snapshot, &parsed.key);
    let translated = published.map(|published| published.translated(&parsed.key));
    let mut walk = Walk {
        snapshot,
        key: translated.as_ref().unwrap_or(&parsed.key),
        published,
        relation,
        outside,
        looked: Looked::default(),
        sections: Sections::default(),
        slots: [NO_SLOT; 2],
        rule: None,
        meters: MeterList::EMPTY,
    };
    let verdict = match walk.run(recorder) {
        Ok(actions) => Verdict::Forward(actions),
        Err(Stop::Punt(punt)) => Verdict::Punt(punt),
        Err(Stop::Drop(reason)) => Verdict::Drop(reason),
    };
    let Walk { looked, sections, slots, rule, meters, .. } = walk;
    let revision = snapshot.revision;
    Decision { revision, slots, sections, relation, looked, verdict, rule, meters }
}

/// The way back to where a packet came from: slow-path replies take it.
pub(crate) fn return_path(key: &FlowKey, in_port: PortId) -> ActionList {
    let exit = if let (Ok(vni), Some(vtep)) = (Vni::new(key.vni), key.tun_src_ip()) {
        Exit::Tunnel { port: in_port, vtep, vni }
    } else if let Ok(vid) = Vid::new(u32::from(key.vid)) {
        Exit::Vlan { port: in_port, vid }
    } else {
        Exit::Plain(in_port)
    };
    ActionList { pop: Pop::Nothing, route: None, dscp: None, exit }
}

struct Walk<'s> {
    snapshot: &'s Snapshot,
    /// As the tenant sees the packet: translated, if it is for a published port.
    key: &'s FlowKey,
    published: Option<Published>,
    relation: Relation,
    outside: Option<Outside>,
    looked: Looked,
    sections: Sections,
    slots: [u32; 2],
    rule: Option<RuleId>,
    meters: MeterList,
}

impl<'s> Walk<'s> {
    fn run(&mut self, recorder: &mut impl Recorder) -> Result<ActionList, Stop> {
        let ingress = self.classify(recorder)?;
        let neighbor = self.key.neighbor();
        // A type of ICMPv6 may be a message to neighbors, whom no rule is asked about.
        self.looked.src_port |= self.key.proto == ipproto::ICMPV6;
        if neighbor == Some(Neighbor::Solicitation) {
            return self.solicited(&ingress, recorder);
        }
        if self.key.eth_dst().is_multicast() {
            return Err(DropReason::Multicast.into());
        }
        if self.is_for_hosts_of_a_router() {
            return Err(DropReason::NotForUs.into());
        }
        // The tenant's entry says whether there are connections that could have come from outside.
        self.sections.add(Section::Policy);
        if let Some(outside) = self.outside {
            return self.answer_outside(&ingress, &outside, recorder);
        }
        let target = if let Origin::Outside { route, .. } = ingress.origin {
            if self.key.flags & flag::TTL_LOW != 0 {
                return Err(DropReason::TtlExpired.into());
            }
            Target { next_hop: route.next_hop, routed: Some(route.mac) }
        } else if self.key.eth_dst() == Mac::GATEWAY || self.is_moved(&ingress) {
            self.route(&ingress, recorder)?
        } else {
            self.bridge(&ingress, recorder)?
        };
        if neighbor.is_none() {
            self.conntrack(&ingress, recorder);
            self.policy(&ingress, Some(target.next_hop), recorder)?;
            self.connected()?;
        }
        let dscp = self.qos(&ingress, Some(target.next_hop), recorder);
        self.output(&ingress, target, dscp, recorder)
    }

    /// RFC 4861, sections 4.1, 4.2 and 4.5. The gateway sends none, and nobody else is a router here.
    fn is_for_hosts_of_a_router(&self) -> bool {
        use icmpv6::{REDIRECT, ROUTER_ADVERTISEMENT, ROUTER_SOLICITATION};
        let icmpv6 = self.key.eth_type == ethertype::IPV6 && self.key.proto == ipproto::ICMPV6;
        let kind = u8::try_from(self.key.src_port).unwrap_or_default();
        icmpv6 && matches!(kind, ROUTER_SOLICITATION | ROUTER_ADVERTISEMENT | REDIRECT)
    }

    fn network(&mut self, bd: Bd) -> Option<&'s Network> {
        self.sections.add(Section::Networks);
        self.snapshot.networks.by_bd.get(&bd)
    }
}

/// Whose packets come in this way: the tenant of a container's port, of a VNI or of a tag.
pub(crate) fn tenant(snapshot: &Snapshot, key: &FlowKey) -> Option<Vrf> {
    let id = PortId::new(u32::from(key.in_port)).ok()?;
    let port = snapshot.ports.lookup(id)?;
    let networks = &snapshot.networks;
    let network = match port.spec.kind {
        PortKind::Container => return port.binding.as_ref().map(|b| b.vrf),
        PortKind::Uplink => match (Vni::new(key.vni), Vid::new(u32::from(key.vid))) {
            (Ok(vni), _) => networks.tunnels.get(&vni),
            (Err(_), Ok(vid)) => networks.vlans.get(&(id, vid)),
            (Err(_), Err(_)) => return published(snapshot, key).map(|published| published.vrf),
        },
    };
    network.map(|(_, vrf)| *vrf)
}

fn describe(next_hop: NextHop) -> String {
    match next_hop {
        NextHop::Local(port) => format!("port={port}"),
        NextHop::Tunnel { vtep, vni } => format!("vtep={vtep},tun_id={vni}"),
        NextHop::Vlan { port, vid } => format!("port={port},vlan_vid={vid}"),
        NextHop::UnknownEndpoint => "unknown-endpoint".to_owned(),
    }
}
