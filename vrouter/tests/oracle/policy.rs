//! May a packet pass? Every rule is looked at for every packet.

use std::cmp::Reverse;

use flowtable::DropReason;
use flowtable::entry::{Direction, NextHop, OnDeny, Permit, RuleEntry};
use flowtable::ids::{Group, RuleId, Vrf};

use super::parse::Ip;
use super::{Came, From, Oracle, Relation, Stopped, drop, table};

/// Who sends or receives a packet, for the rules.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) group: Group,
    /// A container of this node.
    pub(super) is_here: bool,
}

impl End {
    /// Nobody of the tenant.
    pub(super) const OUTSIDE: Self = Self { group: Group::NONE, is_here: false };
}

impl Oracle<'_> {
    pub(super) fn sender(&self, came: Came<'_>, ip: &Ip) -> End {
        match came.from {
            From::Container(binding) => End { group: binding.group, is_here: true },
            From::Tunnel | From::Wire => {
                End { group: self.group(came.vrf, ip.src), is_here: false }
            }
        }
    }

    pub(super) fn receiver(&self, vrf: Vrf, ip: &Ip, next_hop: NextHop) -> End {
        let binding = match next_hop {
            NextHop::Local(port) => self.binding(port),
            NextHop::Tunnel { .. } | NextHop::Vlan { .. } | NextHop::UnknownEndpoint => None,
        };
        match binding {
            Some(binding) => End { group: binding.group, is_here: true },
            None => End { group: self.group(vrf, ip.dst), is_here: false },
        }
    }

    /// Also ends what the rules let pass and no connection does.
    pub(super) fn policy(
        &self,
        (vrf, relation): (Vrf, Relation),
        ip: &Ip,
        [sender, receiver]: [End; 2],
        rules: &mut Vec<RuleId>,
    ) -> Stopped<()> {
        // A reply is judged as the packet that it answers.
        let (ip, opener, answerer) = match relation {
            Relation::Admitted => return Ok(()),
            Relation::Reply | Relation::Answer(_) => (ip.answered(), receiver, sender),
            Relation::Untracked | Relation::Opening | Relation::Stray(_) | Relation::Original => {
                (*ip, sender, receiver)
            }
        };
        let ip = match relation {
            // A connection is judged by its SYN.
            Relation::Opening | Relation::Original | Relation::Reply | Relation::Answer(_) => {
                Ip { flags: ip.flags.map(|_| 2), ..ip }
            }
            Relation::Untracked | Relation::Stray(_) | Relation::Admitted => ip,
        };
        let groups = (opener.group, answerer.group);
        if opener.is_here {
            self.permit((Direction::Out, relation), vrf, (&ip, groups), rules)?;
        }
        if answerer.is_here {
            self.permit((Direction::In, relation), vrf, (&ip, groups), rules)?;
        }
        if let Relation::Stray(reason) = relation { drop(reason) } else { Ok(()) }
    }

    fn permit(
        &self,
        (direction, relation): (Direction, Relation),
        vrf: Vrf,
        (ip, groups): (&Ip, (Group, Group)),
        matched: &mut Vec<RuleId>,
    ) -> Stopped<()> {
        let rules =
            table!(self, Rule).filter(|rule| rule.direction == direction && rule.vrf == vrf);
        let best = rules
            .filter(|rule| matches_rule(rule, ip, groups))
            .min_by_key(|r| (Reverse(r.priority), r.permit == Permit::Allow, r.rule, r.seq));
        let tenant = self.settings(vrf);
        let default = tenant.map(|e| e.default);
        let answers = matches!(relation, Relation::Reply | Relation::Answer(_));
        let established = relation == Relation::Original || answers;
        let finish = established && tenant.is_some_and(|e| e.on_deny == OnDeny::Finish);
        match best.map(|rule| rule.permit).or(default).unwrap_or(Permit::Allow) {
            Permit::Deny if finish => Ok(()),
            Permit::Deny => {
                matched.extend(best.map(|rule| rule.rule));
                drop(DropReason::PolicyDeny)
            }
            Permit::Allow => {
                let counted = best.filter(|_| !answers);
                matched.extend(counted.map(|rule| rule.rule));
                Ok(())
            }
        }
    }
}

fn matches_rule(rule: &RuleEntry, ip: &Ip, (src_group, dst_group): (Group, Group)) -> bool {
    let protocol = rule.protocol.is_none_or(|protocol| {
        protocol == ip.protocol || (protocol == 1 && ip.protocol == 58 && ip.src.is_ipv6())
    });
    protocol
        && rule.src_group.is_none_or(|group| group == src_group)
        && rule.dst_group.is_none_or(|group| group == dst_group)
        && rule.src.is_none_or(|prefix| prefix.contains(ip.src))
        && rule.dst.is_none_or(|prefix| prefix.contains(ip.dst))
        && rule
            .src_ports
            .is_none_or(|r| ip.ports.is_some_and(|(port, _)| r.first <= port && port <= r.last))
        && rule
            .dst_ports
            .is_none_or(|r| ip.ports.is_some_and(|(_, port)| r.first <= port && port <= r.last))
        && rule.icmp.is_none_or(|icmp| {
            ip.icmp.is_some_and(|(kind, code, _)| {
                kind == icmp.kind && icmp.code.is_none_or(|wanted| wanted == code)
            })
        })
        && rule.tcp_flags.is_none_or(|m| ip.flags.is_some_and(|flags| flags & m.mask == m.value))
}
