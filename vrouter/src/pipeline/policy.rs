//! Tables `conntrack`, `group` and `policy`: may the packet pass?
//!
//! Out rules are asked where the opener of the connection is, in rules where its answerer is, on this
//! node. A reply is judged as the packet that opened its connection: so a connection is decided
//! again, in both directions, whenever the tables change.

use std::net::IpAddr;

use flowtable::DropReason;
use flowtable::entry::{Direction, NextHop, OnDeny, Permit, PortEntry};
use flowtable::ids::{Group, PortId, Vrf};
use flowtable::key::{FlowKey, ethertype, flag, ipproto, tcp_flag};
use flowtable::policy::{PolicyMatch, PolicyQuery, Wildcards};

use super::{Ingress, Looked, Origin, Relation, Stop, Walk};
use crate::port::PortKind;
use crate::snapshot::Section;
use crate::trace::Recorder;

/// One end of a packet or of a connection.
#[derive(Debug, Clone, Copy)]
struct End<'s> {
    /// Its port's entry, when it is a container of this node.
    local: Option<&'s PortEntry>,
    group: Group,
    ip: IpAddr,
}

impl<'s> Walk<'s> {
    /// Writes down what the packet is to the connections; that was asked before the walk.
    pub(super) fn conntrack(&mut self, ingress: &Ingress<'s>, recorder: &mut impl Recorder) {
        // Whether its connections are asked for is said by the tenant's entry.
        self.sections.add(Section::Policy);
        if self.relation == Relation::Untracked {
            return;
        }
        let vrf = ingress.vrf;
        recorder.step(
            "conntrack",
            None,
            || format!("vrf={vrf},ct_state={}", self.relation.name()),
            || match self.relation {
                Relation::Untracked | Relation::Original => "ask the rules".to_owned(),
                Relation::Opening => "ask the rules, commit".to_owned(),
                Relation::Stray(reason) => format!("ask the rules, drop({reason})"),
                Relation::Reply => "ask the rules about the opening packet".to_owned(),
                Relation::Admitted => "allow".to_owned(),
            },
        );
    }

    /// Ends what the rules let pass, but no connection does.
    pub(super) fn connected(&self) -> Result<(), DropReason> {
        match self.relation {
            Relation::Stray(reason) => Err(reason),
            Relation::Untracked
            | Relation::Opening
            | Relation::Original
            | Relation::Reply
            | Relation::Admitted => Ok(()),
        }
    }

    /// `next_hop` is `None` of what leaves the tenant.
    pub(super) fn policy(
        &mut self,
        ingress: &Ingress<'s>,
        next_hop: Option<NextHop>,
        recorder: &mut impl Recorder,
    ) -> Result<(), Stop> {
        if self.relation == Relation::Admitted {
            return Ok(());
        }
        let (Some(src), Some(dst)) = (self.key.src_ip(), self.key.dst_ip()) else {
            return Err(DropReason::Malformed.into());
        };
        let sender = match ingress.origin {
            Origin::Port(port) => End { local: Some(port), group: port.group, ip: src },
            Origin::Tunnel | Origin::Wire => {
                End { local: None, group: self.group(ingress.vrf, src, recorder), ip: src }
            }
            Origin::Outside { .. } => End { local: None, group: Group::NONE, ip: src },
        };
        let local = match next_hop {
            Some(NextHop::Local(port)) => self.binding(port),
            _ => None,
        };
        let group = match (local, next_hop) {
            (Some(port), _) => port.group,
            (None, Some(_)) => self.group(ingress.vrf, dst, recorder),
            (None, None) => Group::NONE,
        };
        let receiver = End { local, group, ip: dst };
        let (opener, answerer) = match self.relation {
            Relation::Reply => (receiver, sender),
            Relation::Untracked
            | Relation::Opening
            | Relation::Stray(_)
            | Relation::Original
            | Relation::Admitted => (sender, receiver),
        };
        let mut query = self.query(ingress.vrf, &opener, &answerer);
        if opener.local.is_some() {
            self.permit(&query, recorder)?;
        }
        if answerer.local.is_some() {
            query.direction = Direction::In;
            self.permit(&query, recorder)?;
        }
        Ok(())
    }

    /// The packet that opens, as the rules see it.
    fn query(&self, vrf: Vrf, opener: &End<'s>, answerer: &End<'s>) -> PolicyQuery {
        let FlowKey { eth_type, proto, src_port, dst_port, flags, .. } = *self.key;
        let whole = flags & flag::FRAG_LATER == 0;
        let has_ports = matches!(proto, ipproto::TCP | ipproto::UDP);
        let is_icmp = matches!(
            (eth_type, proto),
            (ethertype::IPV4, ipproto::ICMP) | (ethertype::IPV6, ipproto::ICMPV6)
        );
        let reply = self.relation == Relation::Reply;
        let ports = if reply { (dst_port, src_port) } else { (src_port, dst_port) };
        let kind = if reply { request_of(src_port as u8) } else { src_port as u8 };
        // A connection is judged by the segment that opens it, as long as it lives.
        let tcp_flags = match self.relation {
            Relation::Untracked | Relation::Stray(_) => self.key.tcp_flags,
            Relation::Opening | Relation::Original | Relation::Reply | Relation::Admitted => {
                tcp_flag::SYN
            }
        };
        PolicyQuery {
            direction: Direction::Out,
            vrf,
            src_group: opener.group,
            dst_group: answerer.group,
            src: opener.ip,
            dst: answerer.ip,
            protocol: proto,
            ports: (has_ports && whole).then_some(ports),
            icmp: (is_icmp && whole).then_some((kind, dst_port as u8)),
            tcp_flags: (proto == ipproto::TCP && whole).then_some(tcp_flags),
        }
    }

    /// Who is behind a container's port. Nobody is behind the wire, also when an entry says so.
    pub(super) fn binding(&self, port: PortId) -> Option<&'s PortEntry> {
        let port = self.snapshot.ports.lookup(port)?;
        port.binding.as_ref().filter(|_| port.spec.kind == PortKind::Container)
    }

    /// Table `group`.
    fn group(&mut self, vrf: Vrf, ip: IpAddr, recorder: &mut impl Recorder) -> Group {
        self.sections.add(Section::Groups);
        let group = self.snapshot.groups.lookup(vrf, ip).map_or(Group::NONE, |(_, group)| *group);
        recorder.step("group", None, || format!("vrf={vrf},ip={ip}"), || format!("group={group}"));
        group
    }

    fn permit(
        &mut self,
        query: &PolicyQuery,
        recorder: &mut impl Recorder,
    ) -> Result<(), DropReason> {
        self.sections.add(Section::Policy);
        let policy = &self.snapshot.policy;
        let mut looked = Wildcards::default();
        let found: Option<&PolicyMatch> = policy.rules.lookup_masked(query, &mut looked);
        self.look(&looked);
        let tenant = policy.tenant(query.vrf);
        let permit = found.map_or(tenant.default, |m| m.permit);
        let established = matches!(self.relation, Relation::Original | Relation::Reply);
        let finishes = permit == Permit::Deny && established && tenant.on_deny == OnDeny::Finish;
        if finishes {
            // It may go on, a new one may not: nothing that they could share is to be kept.
            self.looked = Looked { src_port: true, dst_port: true };
        } else if let Some(m) = found {
            let stage = match query.direction {
                Direction::Out => 0,
                Direction::In => 1,
            };
            // A rule counts the packets it was asked about: replies were not, unless it ends them.
            if self.relation != Relation::Reply || permit == Permit::Deny {
                self.slots[stage] = m.slot;
            }
            self.rule = Some(m.rule);
        } else if permit == Permit::Deny {
            self.rule = None;
        }
        recorder.step(
            match query.direction {
                Direction::Out => "policy-out",
                Direction::In => "policy-in",
            },
            found.map(|m| m.rule),
            || {
                let PolicyQuery { src_group, dst_group, .. } = query;
                let matched = found.map_or_else(
                    || "default".to_owned(),
                    |m| format!("cookie={},priority={}", m.rule, m.priority),
                );
                format!("{matched},src_group={src_group},dst_group={dst_group}")
            },
            || match permit {
                _ if finishes => "allow until it ends".to_owned(),
                Permit::Allow => "allow".to_owned(),
                Permit::Deny => format!("drop({})", DropReason::PolicyDeny),
            },
        );
        match permit {
            _ if finishes => Ok(()),
            Permit::Allow => Ok(()),
            Permit::Deny => Err(DropReason::PolicyDeny),
        }
    }

    /// Notes which ports, or ICMP type and code, the outcome may depend on.
    fn look(&mut self, looked: &Wildcards) {
        let [kind, code] = looked.icmp.to_be_bytes();
        let (mut src, mut dst) = (looked.src_port != 0, looked.dst_port != 0);
        if self.relation == Relation::Reply {
            (src, dst) = (dst, src);
        }
        self.looked.src_port |= src || kind != 0;
        self.looked.dst_port |= dst || code != 0;
    }
}

/// The type of the message that an echo reply answers (RFC 792, RFC 4443 section 4); others are
/// their own.
const fn request_of(kind: u8) -> u8 {
    match kind {
        0 => 8,
        129 => 128,
        other => other,
    }
}
