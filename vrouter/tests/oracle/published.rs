//! Ports of the node that lead to containers: which entry a packet from outside all tenants is for,
//! what becomes of it, and of a container's answers.

use std::net::IpAddr;

use flowtable::DropReason;
use flowtable::action::Punt;
use flowtable::entry::{NextHop, NodePort, PublishedEntry};
use flowtable::ids::{Mac, PortId, RuleId};
use vrouter::{PortKind, PortSpec};

use super::parse::{Fragment, Ip, Seen, What};
use super::policy::End;
use super::{Came, Fate, From, Oracle, Relation, Stopped, bytes, drop, table};

/// How a connection came to a published port: its answers go the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outside {
    uplink: PortId,
    pub(super) node: NodePort,
    /// As in the first packet: whom it was for, and who sent it.
    macs: (Mac, Mac),
}

impl Outside {
    pub(super) const fn new(entry: &PublishedEntry, uplink: PortId, first: &Seen) -> Self {
        Self { uplink, node: entry.node, macs: (first.dst, first.src) }
    }
}

/// What the tenant sees of a packet to a published port.
pub(super) fn inside(entry: &PublishedEntry, ip: &Ip) -> Ip {
    Ip { dst: entry.to, ports: ip.ports.map(|(from, _)| (from, entry.to_port)), ..*ip }
}

impl<'a> Oracle<'a> {
    /// The entry that a frame is for which is nobody's on the wire.
    pub(super) fn published(&self, spec: &PortSpec, seen: &Seen) -> Option<&'a PublishedEntry> {
        let What::Ip(ip) = seen.what else { return None };
        let bare = seen.tunnel.is_none() && matches!(seen.tag, None | Some(0));
        if spec.kind != PortKind::Uplink || !bare || ip.fragment != Fragment::Whole {
            return None;
        }
        let (_, port) = ip.ports?;
        let node = NodePort { address: ip.dst, protocol: ip.protocol, port };
        table!(self, Published).find(|entry| entry.node == node)
    }

    /// Whose port it is that leads from here to there, as the answers of a connection leave.
    pub(crate) fn publisher(&self, seen: &Seen) -> Option<&'a PublishedEntry> {
        let What::Ip(ip) = seen.what else { return None };
        let (port, _) = ip.ports?;
        let node = NodePort { address: ip.src, protocol: ip.protocol, port };
        table!(self, Published).find(|entry| entry.node == node)
    }

    pub(super) fn enter(
        &self,
        (entry, spec): (&PublishedEntry, &PortSpec),
        relation: Relation,
        (seen, frame): (&Seen, &[u8]),
        rules: &mut Vec<RuleId>,
    ) -> Stopped<Fate> {
        let What::Ip(ip) = seen.what else { unreachable!("it has ports") };
        if seen.src.is_multicast() {
            return drop(DropReason::SpoofedMac);
        }
        if self.is_inside(entry, ip.src) || is_nobody(ip.src) {
            return drop(DropReason::SpoofedIp);
        }
        match relation {
            Relation::Opening | Relation::Original | Relation::Stray(_) => {}
            Relation::Untracked | Relation::Reply | Relation::Answer(_) | Relation::Admitted => {
                return drop(DropReason::NoConnection);
            }
        }
        let whole = if entry.to.is_ipv4() { 32 } else { 128 };
        let Some(route) = self.route(entry.vrf, entry.to).filter(|route| {
            route.prefix.length() == whole && matches!(route.next_hop, NextHop::Local(_))
        }) else {
            return drop(DropReason::UnknownEndpoint);
        };
        if seen.dst.is_multicast() {
            return drop(DropReason::Multicast);
        }
        if ip.ttl < 2 {
            return drop(DropReason::TtlExpired);
        }
        let ip = inside(entry, &ip);
        let ends = [End::OUTSIDE, self.receiver(entry.vrf, &ip, route.next_hop)];
        self.policy((entry.vrf, relation), &ip, ends, rules)?;
        let came = Came { from: From::Wire, vrf: entry.vrf, bd: route.bd };
        let out = self.way_out(spec.id, came, route.next_hop)?;
        let routed = bytes::routed(&seen.unwrapped(frame), (Mac::GATEWAY, route.mac));
        let (from, to) = ip.ports.expect("it has ports");
        // A tag of the wire says its priority, and stays there.
        let at = ip.payload - (frame.len() - routed.len());
        let ends = [(ip.src, from), (ip.dst, to)];
        Ok(Fate::Forward(out.id, bytes::between(&routed, (ip.protocol, at), ends)))
    }

    /// A route of the tenant's, or a gateway, has the address.
    fn is_inside(&self, entry: &PublishedEntry, ip: IpAddr) -> bool {
        self.is_gateway(entry.vrf, ip) || self.route(entry.vrf, ip).is_some()
    }

    /// What a container answers who came to its published port.
    pub(super) fn leave(
        &self,
        came: Came<'_>,
        outside: &Outside,
        (seen, frame): (&Seen, &[u8]),
        rules: &mut Vec<RuleId>,
    ) -> Stopped<Fate> {
        let (From::Container(sender), What::Ip(ip)) = (came.from, seen.what) else {
            return drop(DropReason::NoConnection);
        };
        let has_gateway = self.network(came.bd).is_some_and(|network| !network.gateways.is_empty());
        if seen.dst != Mac::GATEWAY || !has_gateway {
            return drop(DropReason::NotForUs);
        }
        if ip.fragment == Fragment::First {
            return drop(DropReason::Fragment);
        }
        let (from, to) = ip.ports.expect("it belongs to a connection of two ports");
        let leads_here = |entry: &PublishedEntry| {
            entry.node == outside.node
                && entry.vrf == came.vrf
                && (entry.to, entry.to_port) == (ip.src, from)
        };
        if !table!(self, Published).any(leads_here) {
            return drop(DropReason::NoConnection);
        }
        let out = self.uplink(outside.uplink)?;
        if ip.ttl < 2 {
            return Err(Fate::Punt(Punt::TimeExceeded));
        }
        let sends = End { group: sender.group, is_here: true };
        let relation = Relation::Answer(*outside);
        self.policy((came.vrf, relation), &ip, [sends, End::OUTSIDE], rules)?;
        let mut routed = bytes::routed(frame, outside.macs);
        self.mark(sender.port, &mut routed);
        let NodePort { address, port, .. } = outside.node;
        let ends = [(address, port), (ip.dst, to)];
        Ok(Fate::Forward(out.id, bytes::between(&routed, (ip.protocol, ip.payload), ends)))
    }
}

/// Addresses that no sender has.
fn is_nobody(ip: IpAddr) -> bool {
    ip.is_unspecified() || ip.is_multicast() || ip.is_loopback()
}
