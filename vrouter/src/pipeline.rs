//! The walk through the tables: one function decides and, with a listening recorder, explains.
//!
//! Order as in Contiv's ofnet: classify the input (port, or tunnel and VLAN), ARP, then where the
//! packet goes (route or MAC table), then policy at both ends, then the way out. Every table looked
//! at is noted in [`Decision::sections`]: a false note costs a re-walk, a missing one is a bug.

use std::net::IpAddr;

use flowtable::action::Punt;
use flowtable::entry::{Direction, Ipv6, NextHop, Permit, PortEntry};
use flowtable::ids::{Bd, Group, Mac, PortId, RuleId, Vid, Vni, Vrf};
use flowtable::key::{FlowKey, Parsed, ethertype, flag, ipproto};
use flowtable::policy::{PolicyMatch, PolicyQuery};
use flowtable::{Action, ActionList, DropReason, Verdict};

use crate::port::PortKind;
use crate::snapshot::{Network, Section, Sections, Snapshot};
use crate::trace::Recorder;

/// No counter slot.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// What was decided for a flow, and what that rests on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decision {
    pub(crate) verdict: Verdict,
    /// Counter slots of the rules that matched: out, in.
    pub(crate) slots: [u32; 2],
    /// The rule that denied, or the last one that allowed.
    pub(crate) rule: Option<RuleId>,
    /// Tables that were looked at.
    pub(crate) sections: Sections,
    /// Revision of the tables it was decided on.
    pub(crate) revision: u64,
}

/// Where a packet entered the tenant.
#[derive(Debug, Clone, Copy)]
enum Origin<'s> {
    Port(&'s PortEntry),
    Tunnel,
    Wire,
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
    rewrite: Option<Action>,
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

/// Decides a packet on one snapshot.
pub(crate) fn walk(snapshot: &Snapshot, parsed: &Parsed, recorder: &mut impl Recorder) -> Decision {
    let mut walk = Walk {
        snapshot,
        key: &parsed.key,
        sections: Sections::default(),
        slots: [NO_SLOT; 2],
        rule: None,
    };
    let verdict = match walk.run(recorder) {
        Ok(actions) => Verdict::Forward(actions),
        Err(Stop::Punt(punt)) => Verdict::Punt(punt),
        Err(Stop::Drop(reason)) => Verdict::Drop(reason),
    };
    let Walk { sections, slots, rule, .. } = walk;
    Decision { verdict, slots, rule, sections, revision: snapshot.revision }
}

/// The way back to where a packet came from: slow-path replies take it.
pub(crate) fn return_path(key: &FlowKey, in_port: PortId) -> ActionList {
    let mut actions = ActionList::EMPTY;
    if let (Ok(vni), Some(vtep)) = (Vni::new(key.vni), key.tun_src_ip()) {
        actions.push(Action::Encap { vtep, vni });
    } else if let Ok(vid) = Vid::new(u32::from(key.vid)) {
        actions.push(Action::PushVlan(vid));
    }
    actions.push(Action::Output(in_port));
    actions
}

struct Walk<'s> {
    snapshot: &'s Snapshot,
    key: &'s FlowKey,
    sections: Sections,
    slots: [u32; 2],
    rule: Option<RuleId>,
}

impl<'s> Walk<'s> {
    fn run(&mut self, recorder: &mut impl Recorder) -> Result<ActionList, Stop> {
        let ingress = self.classify(recorder)?;
        if self.key.eth_type == ethertype::ARP && self.key.flags & flag::ARP_REPLY == 0 {
            return self.arp_request(&ingress, recorder);
        }
        if self.key.eth_dst().is_multicast() {
            return Err(DropReason::Multicast.into());
        }
        let target = if self.key.eth_dst() == Mac::GATEWAY {
            self.route(&ingress, recorder)?
        } else {
            self.bridge(&ingress, recorder)?
        };
        if self.key.eth_type != ethertype::ARP {
            self.policy(&ingress, target.next_hop, recorder)?;
        }
        self.output(&ingress, target, recorder)
    }

    /// Tables `port`, `tunnel` and `vlan`: whose packet is it?
    fn classify(&mut self, recorder: &mut impl Recorder) -> Result<Ingress<'s>, Stop> {
        self.sections.add(Section::Ports);
        let in_port = u32::from(self.key.in_port);
        let id = PortId::new(in_port).map_err(|_out_of_range| DropReason::PortUnbound)?;
        let port = self.snapshot.ports.lookup(id).ok_or(DropReason::PortUnbound)?;
        match port.spec.kind {
            PortKind::Container => {
                let binding = port.binding.as_ref().ok_or(DropReason::PortUnbound)?;
                let checked = self.check_source(binding);
                recorder.step(
                    "port",
                    None,
                    || format!("in_port={id}"),
                    || match checked {
                        Ok(()) => {
                            let PortEntry { vrf, bd, group, .. } = binding;
                            format!("vrf={vrf},bd={bd},src_group={group}")
                        }
                        Err(reason) => format!("drop({reason})"),
                    },
                );
                checked?;
                Ok(Ingress { vrf: binding.vrf, bd: binding.bd, origin: Origin::Port(binding) })
            }
            PortKind::Uplink => self.classify_wire(id, recorder),
        }
    }

    /// Anti-spoofing: only the addresses the port was given (RFC 2827 at its narrowest).
    fn check_source(&self, binding: &PortEntry) -> Result<(), DropReason> {
        // Who receives an ARP message believes the address inside it, not the frame's.
        let foreign = self.key.flags & flag::ARP_FOREIGN_MAC != 0;
        if self.key.eth_src() != binding.mac || foreign {
            return Err(DropReason::SpoofedMac);
        }
        match self.key.eth_type {
            ethertype::IPV6 if binding.ipv6 == Ipv6::Off => return Err(DropReason::Ipv6Off),
            ethertype::IPV4 | ethertype::IPV6 | ethertype::ARP => {}
            _ => return Err(DropReason::NonIp),
        }
        let source = self.key.src_ip().ok_or(DropReason::Malformed)?;
        // RFC 5227: a probe for an address before using it carries the all-zero sender address.
        let probe = self.key.eth_type == ethertype::ARP && source.is_unspecified();
        if probe || binding.ips.contains(&source) { Ok(()) } else { Err(DropReason::SpoofedIp) }
    }

    fn classify_wire(
        &mut self,
        port: PortId,
        recorder: &mut impl Recorder,
    ) -> Result<Ingress<'s>, Stop> {
        self.sections.add(Section::Networks);
        let networks = &self.snapshot.networks;
        let (table, found, origin) = if let Some(source) = self.key.tun_src_ip() {
            if !networks.vteps.contains_key(&source) {
                recorder.step("tunnel", None, || format!("tun_src={source}"), || "unknown".into());
                return Err(DropReason::UnknownVtep.into());
            }
            let vni = Vni::new(self.key.vni).ok();
            let found = vni.and_then(|vni| networks.tunnels.get(&vni));
            ("tunnel", found.ok_or(DropReason::UnknownVni), Origin::Tunnel)
        } else {
            let vid =
                Vid::new(u32::from(self.key.vid)).map_err(|_untagged| DropReason::NotForUs)?;
            let found = networks.vlans.get(&(port, vid));
            ("vlan", found.ok_or(DropReason::UnknownVlan), Origin::Wire)
        };
        let FlowKey { vni, vid, .. } = *self.key;
        let matched = || if vni == 0 { format!("vlan_vid={vid}") } else { format!("tun_id={vni}") };
        recorder.step(table, None, matched, || match found {
            Ok((bd, vrf)) => format!("vrf={vrf},bd={bd}"),
            Err(reason) => format!("drop({reason})"),
        });
        let (bd, vrf) = *found?;
        match self.key.eth_type {
            ethertype::IPV4 | ethertype::IPV6 | ethertype::ARP => Ok(Ingress { vrf, bd, origin }),
            _ => Err(DropReason::NonIp.into()),
        }
    }

    fn network(&mut self, bd: Bd) -> Option<&'s Network> {
        self.sections.add(Section::Networks);
        self.snapshot.networks.by_bd.get(&bd)
    }

    /// ARP is answered by this node for every address it knows; what it does not know may be on
    /// the wire of a VLAN network, and nowhere else.
    fn arp_request(
        &mut self,
        ingress: &Ingress<'s>,
        recorder: &mut impl Recorder,
    ) -> Result<ActionList, Stop> {
        self.sections.add(Section::Routes);
        let target = self.key.dst_ip().ok_or(DropReason::Malformed)?;
        let network = self.network(ingress.bd);
        let answer = self.arp_answer(ingress, network, target);
        recorder.step(
            "neighbor",
            None,
            || format!("bd={},arp_tpa={target}", ingress.bd),
            || answer.map_or_else(|| "miss".to_owned(), |mac| Punt::ArpReply(mac).to_string()),
        );
        if let Some(mac) = answer {
            return Err(Stop::Punt(Punt::ArpReply(mac)));
        }
        match (ingress.origin, network.and_then(|n| n.wire)) {
            (Origin::Port(_), Some((port, vid))) => {
                let target = Target { next_hop: NextHop::Vlan { port, vid }, rewrite: None };
                self.output(ingress, target, recorder)
            }
            (Origin::Port(_) | Origin::Tunnel | Origin::Wire, _) => {
                Err(DropReason::ArpUnknown.into())
            }
        }
    }

    fn arp_answer(
        &self,
        ingress: &Ingress<'s>,
        network: Option<&Network>,
        target: IpAddr,
    ) -> Option<Mac> {
        let from_port = matches!(ingress.origin, Origin::Port(_));
        if from_port && network.is_some_and(|n| n.gateways.contains(&target)) {
            return Some(Mac::GATEWAY);
        }
        let (prefix, route) = self.snapshot.routes.by_ip.lookup(ingress.vrf, target)?;
        let exists = route.next_hop != NextHop::UnknownEndpoint;
        let host = prefix.length() == 32 && route.bd == ingress.bd && exists;
        let local = matches!(route.next_hop, NextHop::Local(_));
        // Who asks for its own address tests whether it is free: silence says yes. What is not
        // ours is answered, on the wire or in a tunnel, by the node that has it.
        let known = host && route.mac != self.key.eth_src() && (from_port || local);
        known.then_some(route.mac)
    }

    /// Table `route`: the packet is for the gateway's MAC.
    fn route(
        &mut self,
        ingress: &Ingress<'s>,
        recorder: &mut impl Recorder,
    ) -> Result<Target, Stop> {
        let (Origin::Port(_), Some(dst)) = (ingress.origin, self.key.dst_ip()) else {
            return Err(DropReason::NotForUs.into());
        };
        // ARP ends at the router, and no rule is asked about it.
        if self.key.eth_type == ethertype::ARP {
            return Err(DropReason::NotForUs.into());
        }
        self.sections.add(Section::Networks);
        if self.snapshot.networks.gateways.contains_key(&(ingress.vrf, dst)) {
            let echo = self.key.proto == ipproto::ICMP && self.key.src_port == 8;
            recorder.step("route", None, || format!("nw_dst={dst}"), || "gateway".to_owned());
            let stop =
                if echo { Stop::Punt(Punt::GatewayEcho) } else { DropReason::NotForUs.into() };
            return Err(stop);
        }
        self.sections.add(Section::Routes);
        let found = self.snapshot.routes.by_ip.lookup(ingress.vrf, dst);
        let vrf = ingress.vrf;
        let Some((prefix, route)) = found else {
            recorder.step("route", None, || format!("vrf={vrf},nw_dst={dst}"), || "miss".into());
            return Err(DropReason::NoRoute.into());
        };
        let rewrite = Action::Route { src: Mac::GATEWAY, dst: route.mac };
        recorder.step(
            "route",
            None,
            || format!("vrf={vrf},nw_dst={prefix}"),
            || format!("{rewrite},{}", describe(route.next_hop)),
        );
        if route.next_hop == NextHop::UnknownEndpoint {
            return Err(DropReason::UnknownEndpoint.into());
        }
        if self.key.flags & flag::TTL_LOW != 0 {
            return Err(Stop::Punt(Punt::TimeExceeded));
        }
        Ok(Target { next_hop: route.next_hop, rewrite: Some(rewrite) })
    }

    /// Table `mac`: the packet stays in its network.
    fn bridge(
        &mut self,
        ingress: &Ingress<'s>,
        recorder: &mut impl Recorder,
    ) -> Result<Target, Stop> {
        self.sections.add(Section::Routes);
        let dst = self.key.eth_dst();
        let found = self.snapshot.routes.by_mac.get(&(ingress.bd, dst)).copied();
        recorder.step(
            "mac",
            None,
            || format!("bd={},eth_dst={dst}", ingress.bd),
            || found.map_or_else(|| "miss".to_owned(), describe),
        );
        self.check_owner(ingress, found)?;
        let from_port = matches!(ingress.origin, Origin::Port(_));
        let wire = self.network(ingress.bd).and_then(|n| n.wire).filter(|_| from_port);
        let unknown = wire.map(|(port, vid)| NextHop::Vlan { port, vid });
        let next_hop = found.or(unknown).ok_or(DropReason::UnknownEndpoint)?;
        Ok(Target { next_hop, rewrite: None })
    }

    /// An address of this tenant is reached at its own MAC only: another one would borrow the
    /// group of an address that the receiver does not have.
    fn check_owner(&self, ingress: &Ingress<'s>, mac: Option<NextHop>) -> Result<(), DropReason> {
        let Some(dst) = self.key.dst_ip().filter(|_| self.key.eth_type != ethertype::ARP) else {
            return Ok(());
        };
        match self.snapshot.routes.by_ip.lookup(ingress.vrf, dst) {
            Some((_, route)) if route.next_hop == NextHop::UnknownEndpoint => {
                Err(DropReason::UnknownEndpoint)
            }
            Some((_, route)) if route.bd == ingress.bd && route.mac != self.key.eth_dst() => {
                Err(DropReason::UnknownEndpoint)
            }
            // A known MAC with an address of another network, or of nobody.
            Some((_, route)) if route.bd != ingress.bd && mac.is_some() => {
                Err(DropReason::UnknownEndpoint)
            }
            None if mac.is_some() => Err(DropReason::UnknownEndpoint),
            Some(_) | None => Ok(()),
        }
    }

    /// Table `policy`: out rules where the packet enters, in rules where it is delivered.
    fn policy(
        &mut self,
        ingress: &Ingress<'s>,
        next_hop: NextHop,
        recorder: &mut impl Recorder,
    ) -> Result<(), Stop> {
        let (Some(src), Some(dst)) = (self.key.src_ip(), self.key.dst_ip()) else {
            return Err(DropReason::Malformed.into());
        };
        let receiver = match next_hop {
            NextHop::Local(port) => self.binding(port),
            NextHop::Tunnel { .. } | NextHop::Vlan { .. } | NextHop::UnknownEndpoint => None,
        };
        let src_group = match ingress.origin {
            Origin::Port(sender) => sender.group,
            Origin::Tunnel | Origin::Wire => self.group(ingress.vrf, src, recorder),
        };
        let dst_group = match receiver {
            Some(binding) => binding.group,
            None => self.group(ingress.vrf, dst, recorder),
        };
        let ports = matches!(self.key.proto, ipproto::TCP | ipproto::UDP)
            && self.key.flags & flag::FRAG_LATER == 0;
        let mut query = PolicyQuery {
            direction: Direction::Out,
            vrf: ingress.vrf,
            src_group,
            dst_group,
            src,
            dst,
            protocol: self.key.proto,
            ports: ports.then_some((self.key.src_port, self.key.dst_port)),
            icmp: None,
            tcp_flags: None,
        };
        if matches!(ingress.origin, Origin::Port(_)) {
            self.permit(&query, recorder)?;
        }
        if receiver.is_some() {
            query.direction = Direction::In;
            self.permit(&query, recorder)?;
        }
        Ok(())
    }

    /// Who is behind a container's port. Nobody is behind the wire, also when an entry says so.
    fn binding(&self, port: PortId) -> Option<&'s PortEntry> {
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
        let found: Option<&PolicyMatch> = policy.rules.lookup(query);
        let default = policy.defaults.get(&query.vrf).copied().unwrap_or(Permit::Allow);
        let permit = found.map_or(default, |m| m.permit);
        if let Some(m) = found {
            let stage = match query.direction {
                Direction::Out => 0,
                Direction::In => 1,
            };
            self.slots[stage] = m.slot;
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
                Permit::Allow => "allow".to_owned(),
                Permit::Deny => format!("drop({})", DropReason::PolicyDeny),
            },
        );
        match permit {
            Permit::Allow => Ok(()),
            Permit::Deny => Err(DropReason::PolicyDeny),
        }
    }

    /// Table `output`: the actions that bring the packet there.
    fn output(
        &mut self,
        ingress: &Ingress<'s>,
        target: Target,
        recorder: &mut impl Recorder,
    ) -> Result<ActionList, Stop> {
        let mut actions = ActionList::EMPTY;
        match ingress.origin {
            Origin::Port(_) => {}
            Origin::Tunnel => actions.push(Action::Decap),
            Origin::Wire => actions.push(Action::PopVlan),
        }
        if let Some(rewrite) = target.rewrite {
            actions.push(rewrite);
        }
        let result = self.way_out(ingress, target.next_hop, &mut actions);
        recorder.step(
            "output",
            None,
            || describe(target.next_hop),
            || match result {
                Ok(()) => actions.to_string(),
                Err(reason) => format!("drop({reason})"),
            },
        );
        result?;
        Ok(actions)
    }

    fn way_out(
        &mut self,
        ingress: &Ingress<'s>,
        next_hop: NextHop,
        actions: &mut ActionList,
    ) -> Result<(), DropReason> {
        let from_port = matches!(ingress.origin, Origin::Port(_));
        match next_hop {
            NextHop::Local(port) => {
                let binding = self.binding(port).ok_or(DropReason::PortGone)?;
                if port.get() == self.key.in_port {
                    return Err(DropReason::Hairpin);
                }
                // Tables never point across tenants; were one to, the packet ends here.
                if binding.vrf != ingress.vrf {
                    return Err(DropReason::NoRoute);
                }
                actions.push(Action::Output(port));
            }
            NextHop::Tunnel { .. } | NextHop::Vlan { .. } if !from_port => {
                return Err(DropReason::SplitHorizon);
            }
            NextHop::Tunnel { vtep, vni } => {
                self.sections.add(Section::Networks);
                self.sections.add(Section::Underlay);
                let networks = &self.snapshot.networks;
                if !networks.vteps.contains_key(&vtep) {
                    return Err(DropReason::UnknownVtep);
                }
                stays_inside(ingress.vrf, networks.tunnels.get(&vni))?;
                let underlay = self.snapshot.underlay.get(&vtep);
                let port = underlay.ok_or(DropReason::UnresolvedUnderlay)?.port;
                self.check_uplink(port)?;
                actions.push(Action::Encap { vtep, vni });
                actions.push(Action::Output(port));
            }
            NextHop::Vlan { port, vid } => {
                self.sections.add(Section::Networks);
                stays_inside(ingress.vrf, self.snapshot.networks.vlans.get(&(port, vid)))?;
                self.check_uplink(port)?;
                actions.push(Action::PushVlan(vid));
                actions.push(Action::Output(port));
            }
            NextHop::UnknownEndpoint => return Err(DropReason::UnknownEndpoint),
        }
        Ok(())
    }

    /// Tunnels and tags belong on the wire: a container must not get them.
    fn check_uplink(&self, port: PortId) -> Result<(), DropReason> {
        match self.snapshot.ports.lookup(port).map(|p| p.spec.kind) {
            Some(PortKind::Uplink) => Ok(()),
            Some(PortKind::Container) | None => Err(DropReason::PortGone),
        }
    }
}

/// Tables never name another tenant's VNI or VLAN as a way out; were one to, the packet ends here.
fn stays_inside(vrf: Vrf, way_out: Option<&(Bd, Vrf)>) -> Result<(), DropReason> {
    if way_out.is_some_and(|(_, owner)| *owner != vrf) {
        return Err(DropReason::NoRoute);
    }
    Ok(())
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
            (Err(_), Err(_)) => None,
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
