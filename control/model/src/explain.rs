//! Which rules let one end open a connection to another: asked of the tables that the nodes of both
//! ends get, with the data plane's own classifier. So an answer cannot differ from what the nodes do
//! by anything but the state of connections that are open.

use std::collections::BTreeMap;
use std::net::IpAddr;

use flowtable::DropReason;
use flowtable::entry::{Entry, NextHop, TenantEntry};
use flowtable::key::{ipproto, tcp_flag};
use flowtable::lpm::Lpm;
use flowtable::policy::{PolicyQuery, PolicyTable};

use crate::compile::{Placement, compile};
use crate::{
    Direction, Endpoint, EndpointId, Group, GroupKey, GroupName, Intent, NodeName, Permit, PortId,
    Protocol, Reason, Refused, RuleId, RuleKey, Tenant, TenantName, Tracking, Vrf,
};

/// Most endpoints that are looked at for a group.
const MEMBERS_MAX: usize = 16;
/// A source port that clients use; rules name none.
const CLIENT_PORT: u16 = 49152;
/// Type of an echo request (RFC 792).
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
/// Port ids of the imagined placement: which they are changes no verdict.
const UPLINK: u16 = 1;
const FIRST_PORT: u16 = 2;

/// One end of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// An endpoint.
    Endpoint(EndpointId),
    /// Every endpoint of a group.
    Group(GroupName),
    /// An address of the tenant, or one outside of it.
    Address(IpAddr),
}

impl End {
    /// Reads an end: an address, an endpoint's id, which has a colon, or else a group's name.
    ///
    /// # Errors
    /// [`Refused`] for text that is none of them.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if text.contains(':') {
            return EndpointId::parse(field, text).map(Self::Endpoint);
        }
        GroupName::parse(field, text).map(Self::Group)
    }
}

/// What is asked: may the one open this to the other?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Whose address space.
    pub tenant: TenantName,
    /// The opener.
    pub from: End,
    /// The answerer.
    pub to: End,
    /// IP protocol.
    pub protocol: Protocol,
    /// Destination port of TCP and UDP; not used with others.
    pub port: u16,
}

/// An end that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// Its address.
    pub address: IpAddr,
    /// The endpoint that has it, if any.
    pub endpoint: Option<EndpointId>,
    /// The group, when the endpoint has one.
    pub group: Option<GroupName>,
    /// Where it runs.
    pub node: Option<NodeName>,
}

/// What an end says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// The rule that decides; `None`: no rule matches, so that the tenant's default does.
    pub rule: Option<RuleKey>,
    /// The rule's priority; 0 for the default.
    pub priority: u16,
    /// What it says.
    pub permit: Permit,
}

/// Whether the opener's node knows a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It does.
    Known,
    /// The address is in a network, and nobody has it.
    UnknownEndpoint,
    /// No network of the tenant has the address.
    NoRoute,
    /// The opener is no endpoint: how its packets come here is not known.
    FromOutside,
}

/// The answer for one opener and one answerer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The opener.
    pub from: Party,
    /// The answerer.
    pub to: Party,
    /// The way.
    pub way: Way,
    /// What the opener's out-rules say; `None`: it is no endpoint, and not asked.
    pub out: Option<Side>,
    /// What the answerer's in-rules say; `None`: it is no endpoint, and not asked.
    pub into: Option<Side>,
}

impl Explanation {
    /// Why the first packet is dropped; `None`: it is forwarded. The way is looked for before rules
    /// are asked, as in the engine.
    #[must_use]
    pub fn dropped(&self) -> Option<DropReason> {
        let denies = |side: &Option<Side>| side.as_ref().is_some_and(|s| s.permit == Permit::Deny);
        match self.way {
            Way::NoRoute => Some(DropReason::NoRoute),
            Way::UnknownEndpoint => Some(DropReason::UnknownEndpoint),
            Way::Known | Way::FromOutside => {
                (denies(&self.out) || denies(&self.into)).then_some(DropReason::PolicyDeny)
            }
        }
    }
}

/// The answers for every pair that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Openers before answerers, by endpoint.
    pub pairs: Vec<Explanation>,
    /// Whether these are all pairs; of large groups only some endpoints are looked at.
    pub is_whole: bool,
    /// Whether replies need rules of their own.
    pub tracking: Tracking,
}

/// Answers a question.
///
/// # Errors
/// [`Refused`] for names that are unknown, and for groups without endpoints.
pub fn explain(intent: &Intent, question: &Question) -> Result<Explained, Refused> {
    let not_found = || Refused::new("tenantName", &question.tenant, Reason::TenantNotFound);
    let tenant = intent.tenant(&question.tenant).ok_or_else(not_found)?;
    let (from, all_from) = parties(intent, &question.tenant, "from", &question.from)?;
    let (to, all_to) = parties(intent, &question.tenant, "to", &question.to)?;
    let met = |one: &Party| to.iter().any(|to| to.address.is_ipv4() == one.address.is_ipv4());
    if !from.iter().any(met) {
        let value = to.first().map(|to| to.address.to_string()).unwrap_or_default();
        return Err(Refused::new("to", &value, Reason::MixedFamilies));
    }
    let is_one = |all: &[Party]| all.iter().all(|party| party.address == from[0].address);
    if is_one(&from) && is_one(&to) {
        return Err(Refused::new("to", &from[0].address, Reason::OnlyItself));
    }
    let mut asked = Asked { intent, tenant, question, nodes: BTreeMap::new() };
    let mut pairs = Vec::new();
    for from in &from {
        let may_meet = |to: &&Party| {
            to.address != from.address && to.address.is_ipv4() == from.address.is_ipv4()
        };
        for to in to.iter().filter(may_meet) {
            pairs.push(asked.pair(from, to));
        }
    }
    Ok(Explained { pairs, is_whole: all_from && all_to, tracking: tenant.settings.tracking })
}

/// The parties of an end, and whether these are all.
fn parties(
    intent: &Intent,
    tenant: &TenantName,
    field: &'static str,
    end: &End,
) -> Result<(Vec<Party>, bool), Refused> {
    let in_tenant = |e: &&Endpoint| e.network.tenant == *tenant;
    match end {
        End::Endpoint(id) => {
            let found = intent.endpoint(id).filter(in_tenant);
            let missing = || Refused::new(field, id, Reason::EndpointNotFound);
            Ok((faces(found.ok_or_else(missing)?).collect(), true))
        }
        End::Address(address) => {
            let mut endpoints = intent.endpoints().filter(in_tenant);
            let holder = endpoints.find(|e| e.has(*address));
            let nobody = Party { address: *address, endpoint: None, group: None, node: None };
            Ok((vec![holder.map_or(nobody, |e| party(e, *address))], true))
        }
        End::Group(name) => {
            let key = GroupKey { tenant: tenant.clone(), group: name.clone() };
            if intent.group(&key).is_none() {
                return Err(Refused::new(field, name, Reason::GroupNotFound));
            }
            let is_member = |e: &&Endpoint| e.group.as_ref() == Some(name);
            let mut members = intent.endpoints().filter(in_tenant).filter(is_member);
            let some: Vec<Party> = members.by_ref().take(MEMBERS_MAX).flat_map(faces).collect();
            if some.is_empty() {
                return Err(Refused::new(field, name, Reason::GroupWithoutEndpoints));
            }
            Ok((some, members.next().is_none()))
        }
    }
}

fn party(endpoint: &Endpoint, address: IpAddr) -> Party {
    Party {
        address,
        endpoint: Some(endpoint.id.clone()),
        group: endpoint.group.clone(),
        node: Some(endpoint.host.node.clone()),
    }
}

/// The endpoint with each of its addresses.
fn faces(endpoint: &Endpoint) -> impl Iterator<Item = Party> + '_ {
    endpoint.addresses().map(|address| party(endpoint, address))
}

/// A node's tables, as far as they decide who may talk to whom.
struct Tables {
    rules: PolicyTable,
    groups: Lpm<Group>,
    routes: Lpm<NextHop>,
    tenants: BTreeMap<Vrf, TenantEntry>,
}

struct Asked<'a> {
    intent: &'a Intent,
    tenant: &'a Tenant,
    question: &'a Question,
    nodes: BTreeMap<NodeName, Tables>,
}

impl Asked<'_> {
    fn pair(&mut self, from: &Party, to: &Party) -> Explanation {
        let way = match &from.node {
            Some(node) => self.way(node.clone(), to.address),
            None => Way::FromOutside,
        };
        let mut ask = |node: &Option<NodeName>, direction| {
            node.as_ref().map(|node| self.side(node.clone(), direction, from, to))
        };
        let (out, into) = (ask(&from.node, Direction::Out), ask(&to.node, Direction::In));
        Explanation { from: from.clone(), to: to.clone(), way, out, into }
    }

    fn way(&mut self, node: NodeName, to: IpAddr) -> Way {
        let vrf = self.tenant.vrf;
        match self.tables(node).routes.lookup(vrf, to) {
            None => Way::NoRoute,
            Some((_, NextHop::UnknownEndpoint)) => Way::UnknownEndpoint,
            Some((_, NextHop::Local(_) | NextHop::Tunnel { .. } | NextHop::Vlan { .. })) => {
                Way::Known
            }
        }
    }

    fn side(&mut self, node: NodeName, direction: Direction, from: &Party, to: &Party) -> Side {
        let (vrf, question) = (self.tenant.vrf, self.question);
        let tables = self.tables(node);
        let group = |ip| tables.groups.lookup(vrf, ip).map_or(Group::NONE, |(_, group)| *group);
        let (protocol, echo_request) = match question.protocol.number() {
            // In IPv6 it is ICMPv6 (RFC 4443, section 4.1).
            ipproto::ICMP if to.address.is_ipv6() => (ipproto::ICMPV6, ECHO_REQUEST_V6),
            number => (number, ECHO_REQUEST),
        };
        let has_ports = matches!(protocol, ipproto::TCP | ipproto::UDP);
        let is_icmp = matches!(protocol, ipproto::ICMP | ipproto::ICMPV6);
        let query = PolicyQuery {
            direction,
            vrf,
            src_group: group(from.address),
            dst_group: group(to.address),
            src: from.address,
            dst: to.address,
            protocol,
            ports: has_ports.then_some((CLIENT_PORT, question.port)),
            icmp: is_icmp.then_some((echo_request, 0)),
            tcp_flags: (protocol == ipproto::TCP).then_some(tcp_flag::SYN),
        };
        let found = tables.rules.lookup(&query).copied();
        let default = tables.tenants.get(&vrf).map_or(Permit::Deny, |tenant| tenant.default);
        match found {
            Some(found) => {
                Side { rule: self.rule(found.rule), priority: found.priority, permit: found.permit }
            }
            None => Side { rule: None, priority: 0, permit: default },
        }
    }

    fn rule(&self, cookie: RuleId) -> Option<RuleKey> {
        let mut rules = self.intent.rules();
        rules.find(|rule| rule.cookie == cookie).map(|rule| rule.spec.key.clone())
    }

    fn tables(&mut self, node: NodeName) -> &Tables {
        let intent = self.intent;
        self.nodes.entry(node).or_insert_with_key(|node| Tables::of(intent, node))
    }
}

impl Tables {
    fn of(intent: &Intent, node: &NodeName) -> Self {
        let mut rules = Vec::new();
        let (mut groups, mut routes) = (Lpm::default(), Lpm::default());
        let mut tenants = BTreeMap::new();
        for entry in compile(intent, node, &placement(intent, node)) {
            match entry {
                Entry::Rule(rule) => rules.push(rule),
                Entry::Group(entry) => drop(groups.insert(entry.vrf, entry.prefix, entry.group)),
                Entry::Route(entry) => drop(routes.insert(entry.vrf, entry.prefix, entry.next_hop)),
                Entry::Tenant(entry) => drop(tenants.insert(entry.vrf, entry)),
                Entry::Port(_)
                | Entry::Network(_)
                | Entry::Tunnel(_)
                | Entry::Vtep(_)
                | Entry::Underlay(_)
                | Entry::Vlan(_)
                | Entry::Mac(_)
                | Entry::Published(_)
                | Entry::Meter(_)
                | Entry::Qos(_) => {}
            }
        }
        let rules = PolicyTable::build(rules.iter().map(|rule| (rule, 0)));
        Self { rules, groups, routes, tenants }
    }
}

/// Every endpoint of the node has a port.
fn placement(intent: &Intent, node: &NodeName) -> Placement {
    let here = intent.endpoints().filter(|endpoint| endpoint.host.node == *node);
    let numbers = (FIRST_PORT..=PortId::MAX.get()).filter_map(|id| PortId::new(id.into()).ok());
    Placement {
        ports: here.map(|endpoint| endpoint.id.clone()).zip(numbers).collect(),
        uplink: PortId::new(UPLINK.into()).ok(),
        ..Placement::default()
    }
}
