//! A slow and obvious vRouter: it walks plain entries from the first to the last for every question
//! it has, keeps nothing between packets, and shares no code with the engine but the types of the
//! entries. [`parse`] reads frames, [`bytes`] says what they must look like when they leave.

pub(crate) mod bytes;
pub(crate) mod memory;
pub(crate) mod parse;
mod policy;
mod published;
mod source;

use std::net::IpAddr;

use flowtable::DropReason;
use flowtable::action::Punt;
use flowtable::entry::{
    Entry, NetworkEntry, NextHop, PortEntry, RouteEntry, TenantEntry, UnderlayEntry,
};
use flowtable::ids::{Bd, Group, Mac, PortId, RuleId, Vid, Vni, Vrf};
use vrouter::{PortKind, PortSpec};

use parse::{Seen, What};
use published::Outside;
use source::check_source;

/// What must become of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It leaves by this port with these bytes; the source port of an outer UDP header is zero.
    Forward(PortId, Vec<u8>),
    Punt(Punt),
    Drop(DropReason),
}

/// A fate, and what was found on the way to it.
#[derive(Debug, Clone)]
pub(crate) struct Judgement {
    pub(crate) fate: Fate,
    /// Rules that matched, the one of the out direction first.
    pub(crate) rules: Vec<RuleId>,
    /// What the frame said, when it could be read.
    pub(crate) seen: Option<Seen>,
}

/// What a packet is to the connections of its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    /// Nobody asks.
    Untracked,
    /// It may open one.
    Opening,
    /// It belongs to none and opens none.
    Stray(DropReason),
    /// From who opened its connection.
    Original,
    /// From the other side.
    Reply,
    /// The same of a connection that came to a published port.
    Answer(Outside),
    /// No rule is asked.
    Admitted,
}

/// A node's ports and tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Oracle<'a> {
    pub(crate) entries: &'a [Entry],
    pub(crate) ports: &'a [PortSpec],
}

/// Where a packet comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From<'a> {
    Container(&'a PortEntry),
    Tunnel,
    Wire,
}

/// Where it came from and whose it is.
#[derive(Debug, Clone, Copy)]
struct Came<'a> {
    from: From<'a>,
    vrf: Vrf,
    bd: Bd,
}

impl From<'_> {
    const fn is_container(self) -> bool {
        matches!(self, Self::Container(_))
    }
}

/// The entries of one table.
macro_rules! table {
    ($oracle:expr, $kind:ident) => {
        $oracle.entries.iter().filter_map(|entry| {
            if let flowtable::entry::Entry::$kind(found) = entry { Some(found) } else { None }
        })
    };
}
use table;

type Stopped<T> = Result<T, Fate>;

const fn drop<T>(reason: DropReason) -> Stopped<T> {
    Err(Fate::Drop(reason))
}

impl<'a> Oracle<'a> {
    /// What must become of `frame`, received on `port`.
    pub(crate) fn judge(&self, port: PortId, frame: &[u8]) -> Judgement {
        self.judge_as(Relation::Untracked, port, frame)
    }

    /// As [`Oracle::judge`], of a packet with this relation.
    pub(crate) fn judge_as(&self, relation: Relation, port: PortId, frame: &[u8]) -> Judgement {
        let mut rules = Vec::new();
        let Some(spec) = self.spec(port) else {
            let fate = Fate::Drop(DropReason::PortUnbound);
            return Judgement { fate, rules, seen: None };
        };
        let seen = match parse::parse(frame, spec.kind) {
            Ok(seen) => seen,
            Err(reason) => return Judgement { fate: Fate::Drop(reason), rules, seen: None },
        };
        let fate =
            self.decide((spec, relation), &seen, frame, &mut rules).unwrap_or_else(|fate| fate);
        Judgement { fate, rules, seen: Some(seen) }
    }

    /// Whose packets arrive there.
    pub(crate) fn tenant(&self, port: PortId, seen: &Seen) -> Option<Vrf> {
        let spec = self.spec(port)?;
        let published = self.published(spec, seen).map(|entry| entry.vrf);
        published.or_else(|| self.came(spec, seen).ok().map(|came| came.vrf))
    }

    pub(crate) fn spec(&self, id: PortId) -> Option<&'a PortSpec> {
        self.ports.iter().find(|spec| spec.id == id)
    }

    /// Who is behind a container's port.
    pub(crate) fn binding(&self, id: PortId) -> Option<&'a PortEntry> {
        self.spec(id).filter(|spec| spec.kind == PortKind::Container)?;
        table!(self, Port).find(|e| e.port == id)
    }

    fn network(&self, bd: Bd) -> Option<&'a NetworkEntry> {
        table!(self, Network).find(|e| e.bd == bd)
    }

    pub(crate) fn of_vni(&self, vni: u32) -> Option<(Vrf, Bd)> {
        table!(self, Tunnel).find(|e| e.vni.get() == vni).map(|e| (e.vrf, e.bd))
    }

    pub(crate) fn of_vid(&self, port: PortId, vid: u16) -> Option<(Vrf, Bd)> {
        table!(self, Vlan).find(|e| e.port == port && e.vid.get() == vid).map(|e| (e.vrf, e.bd))
    }

    /// Our own address towards another node.
    fn local(&self, vtep: IpAddr) -> Option<IpAddr> {
        table!(self, Vtep).find(|e| e.ip == vtep).map(|e| e.local)
    }

    fn underlay(&self, vtep: IpAddr) -> Option<&'a UnderlayEntry> {
        table!(self, Underlay).find(|e| e.vtep == vtep)
    }

    fn mac(&self, bd: Bd, mac: Mac) -> Option<NextHop> {
        table!(self, Mac).find(|e| e.bd == bd && e.mac == mac).map(|e| e.next_hop)
    }

    fn route(&self, vrf: Vrf, ip: IpAddr) -> Option<&'a RouteEntry> {
        let routes = table!(self, Route).filter(|e| e.vrf == vrf && e.prefix.contains(ip));
        routes.max_by_key(|route| route.prefix.length())
    }

    fn group(&self, vrf: Vrf, ip: IpAddr) -> Group {
        let groups = table!(self, Group).filter(|e| e.vrf == vrf && e.prefix.contains(ip));
        groups.max_by_key(|entry| entry.prefix.length()).map_or(Group::NONE, |entry| entry.group)
    }

    fn is_gateway(&self, vrf: Vrf, ip: IpAddr) -> bool {
        self.entries.iter().any(
            |entry| matches!(entry, Entry::Network(e) if e.vrf == vrf && e.gateways.contains(&ip)),
        )
    }

    fn decide(
        &self,
        (spec, relation): (&PortSpec, Relation),
        seen: &Seen,
        frame: &[u8],
        rules: &mut Vec<RuleId>,
    ) -> Stopped<Fate> {
        if let Some(entry) = self.published(spec, seen) {
            return self.enter((entry, spec), relation, (seen, frame), rules);
        }
        let came = self.came(spec, seen)?;
        if let What::Neighbor { request: true, target, .. } = seen.what {
            return self.solicited(came, seen, target, frame);
        }
        if seen.dst.0[0] & 1 == 1 {
            return drop(DropReason::Multicast);
        }
        if let What::Ip(ip) = seen.what
            && ip.protocol == 58
            && matches!(ip.icmp, Some((133 | 134 | 137, ..)))
        {
            return drop(DropReason::NotForUs);
        }
        if let Relation::Answer(outside) = relation {
            return self.leave(came, &outside, (seen, frame), rules);
        }
        let (next_hop, routed) = if seen.dst == Mac::GATEWAY || self.is_moved(came, seen) {
            let route = self.gateway(came, seen)?;
            (route.next_hop, Some(route.mac))
        } else {
            (self.bridge(came, seen)?, None)
        };
        if let What::Ip(ip) = seen.what {
            let ends = [self.sender(came, &ip), self.receiver(came.vrf, &ip, next_hop)];
            self.policy((came.vrf, relation), &ip, ends, rules)?;
        }
        let out = self.way_out(spec.id, came, next_hop)?;
        let mut inner = seen.unwrapped(frame);
        if came.from == From::Tunnel && bytes::class(frame) & 3 == 3 {
            // RFC 6040, figure 4: congestion is handed on, or ends what does not know it.
            match bytes::class(&inner) {
                class if class % 4 == 0 => return drop(DropReason::Malformed),
                class => bytes::set_class(&mut inner, class | 3),
            }
        }
        let gateway = |mac| bytes::routed(&inner, (Mac::GATEWAY, mac));
        let mut inner = routed.map_or_else(|| inner.clone(), gateway);
        if let (From::Container(sender), What::Ip(_)) = (came.from, seen.what) {
            self.mark(sender.port, &mut inner);
        }
        Ok(Fate::Forward(out.id, self.wrapped(next_hop, &inner)))
    }

    /// Marks an IP packet as its sender's are.
    fn mark(&self, sender: PortId, packet: &mut [u8]) {
        let mark = table!(self, Qos).find(|e| e.port == sender).and_then(|e| e.dscp);
        if let Some(dscp) = mark {
            bytes::set_class(packet, bytes::class(packet) & 3 | dscp.get() << 2);
        }
    }

    fn came(&self, spec: &PortSpec, seen: &Seen) -> Stopped<Came<'a>> {
        match spec.kind {
            PortKind::Container => {
                let Some(binding) = self.binding(spec.id) else {
                    return drop(DropReason::PortUnbound);
                };
                check_source(binding, seen)?;
                Ok(Came { from: From::Container(binding), vrf: binding.vrf, bd: binding.bd })
            }
            PortKind::Uplink => {
                let (from, (vrf, bd)) = self.came_by_wire(spec, seen)?;
                match seen.what {
                    What::Other => return drop(DropReason::NonIp),
                    What::Ip(ip) => self.remote_source(from, vrf, ip.src)?,
                    What::Neighbor { sender, .. } if sender.is_ipv6() => {
                        self.remote_source(from, vrf, sender)?;
                    }
                    What::Neighbor { .. } => {}
                }
                Ok(Came { from, vrf, bd })
            }
        }
    }

    fn came_by_wire(&self, spec: &PortSpec, seen: &Seen) -> Stopped<(From<'a>, (Vrf, Bd))> {
        match (seen.tunnel, seen.tag) {
            (Some((vtep, _)), _) if self.local(vtep).is_none() => drop(DropReason::UnknownVtep),
            (Some((_, vni)), _) => match self.of_vni(vni) {
                Some(network) => Ok((From::Tunnel, network)),
                None => drop(DropReason::UnknownVni),
            },
            (None, None | Some(0)) => drop(DropReason::NotForUs),
            (None, Some(vid)) => match self.of_vid(spec.id, vid) {
                Some(network) => Ok((From::Wire, network)),
                None => drop(DropReason::UnknownVlan),
            },
        }
    }

    /// Nobody on the wire has an address of this node's, or one that nobody has.
    fn remote_source(&self, from: From<'_>, vrf: Vrf, src: IpAddr) -> Stopped<()> {
        match self.route(vrf, src).map(|route| route.next_hop) {
            Some(NextHop::Local(_)) => drop(DropReason::SpoofedIp),
            Some(NextHop::UnknownEndpoint) if from == From::Tunnel => {
                drop(DropReason::UnknownEndpoint)
            }
            _ => Ok(()),
        }
    }

    fn solicited(
        &self,
        came: Came<'_>,
        seen: &Seen,
        target: IpAddr,
        frame: &[u8],
    ) -> Stopped<Fate> {
        let network = self.network(came.bd);
        let container = came.from.is_container();
        if container && network.is_some_and(|n| n.gateways.contains(&target)) {
            return Ok(Fate::Punt(answer(target, Mac::GATEWAY)));
        }
        if let Some(route) = self.route(came.vrf, target) {
            let whole = if target.is_ipv4() { 32 } else { 128 };
            let one_host = route.prefix.length() == whole && route.bd == came.bd;
            let answered = match route.next_hop {
                NextHop::Local(_) => true,
                NextHop::Tunnel { .. } | NextHop::Vlan { .. } => container,
                NextHop::UnknownEndpoint => false,
            };
            if one_host && answered && route.mac != seen.src {
                return Ok(Fate::Punt(answer(target, route.mac)));
            }
        }
        match network.and_then(|n| n.wire) {
            Some((port, vid)) if container => {
                let next_hop = NextHop::Vlan { port, vid };
                let out = self.vlan(came, port, vid)?;
                Ok(Fate::Forward(out.id, self.wrapped(next_hop, frame)))
            }
            Some(_) | None => drop(DropReason::ArpUnknown),
        }
    }

    /// The packet is for the gateway's MAC.
    fn gateway(&self, came: Came<'_>, seen: &Seen) -> Stopped<&'a RouteEntry> {
        let What::Ip(ip) = seen.what else { return drop(DropReason::NotForUs) };
        if !came.from.is_container() {
            return drop(DropReason::NotForUs);
        }
        if self.network(came.bd).is_none_or(|network| network.gateways.is_empty()) {
            return drop(DropReason::NotForUs);
        }
        if self.is_gateway(came.vrf, ip.dst) {
            return Err(if ip.echo {
                Fate::Punt(Punt::GatewayEcho)
            } else {
                Fate::Drop(DropReason::NotForUs)
            });
        }
        let route = self.route(came.vrf, ip.dst).ok_or(Fate::Drop(DropReason::NoRoute))?;
        if route.next_hop == NextHop::UnknownEndpoint {
            return drop(DropReason::UnknownEndpoint);
        }
        if ip.ttl < 2 {
            return Err(Fate::Punt(Punt::TimeExceeded));
        }
        Ok(route)
    }

    /// A container of a network with a gateway writes to a neighbor's IPv6 address under a MAC that is
    /// not its.
    fn is_moved(&self, came: Came<'_>, seen: &Seen) -> bool {
        let What::Ip(ip) = seen.what else { return false };
        if ip.dst.is_ipv4() {
            return false;
        }
        let has_gateway = self.network(came.bd).is_some_and(|network| !network.gateways.is_empty());
        let Some(route) = self.route(came.vrf, ip.dst) else { return false };
        let is_neighbor = match route.next_hop {
            NextHop::Local(_) | NextHop::Tunnel { .. } | NextHop::Vlan { .. } => {
                route.bd == came.bd
            }
            NextHop::UnknownEndpoint => false,
        };
        came.from.is_container() && has_gateway && is_neighbor && route.mac != seen.dst
    }

    fn bridge(&self, came: Came<'_>, seen: &Seen) -> Stopped<NextHop> {
        let found = self.mac(came.bd, seen.dst);
        if let What::Ip(ip) = seen.what {
            // The address must be that of the MAC: in this network, and known to be there.
            let agrees = match self.route(came.vrf, ip.dst) {
                Some(route) if route.next_hop == NextHop::UnknownEndpoint => false,
                Some(route) if route.bd == came.bd => route.mac == seen.dst,
                Some(_) | None => found.is_none(),
            };
            if !agrees {
                return drop(DropReason::UnknownEndpoint);
            }
        }
        let wire = self.network(came.bd).and_then(|n| n.wire);
        match (found, wire) {
            (Some(next_hop), _) => Ok(next_hop),
            (None, Some((port, vid))) if came.from.is_container() => {
                Ok(NextHop::Vlan { port, vid })
            }
            (None, _) => drop(DropReason::UnknownEndpoint),
        }
    }

    /// A tenant's entry.
    pub(crate) fn settings(&self, vrf: Vrf) -> Option<&'a TenantEntry> {
        table!(self, Tenant).find(|e| e.vrf == vrf)
    }

    fn way_out(&self, in_port: PortId, came: Came<'_>, next_hop: NextHop) -> Stopped<&'a PortSpec> {
        let container = came.from.is_container();
        match next_hop {
            NextHop::Local(port) => {
                let Some(binding) = self.binding(port) else { return drop(DropReason::PortGone) };
                if port == in_port {
                    return drop(DropReason::Hairpin);
                }
                if binding.vrf != came.vrf {
                    return drop(DropReason::NoRoute);
                }
                self.spec(port).ok_or(Fate::Drop(DropReason::PortGone))
            }
            NextHop::Tunnel { .. } | NextHop::Vlan { .. } if !container => {
                drop(DropReason::SplitHorizon)
            }
            NextHop::Tunnel { vtep, vni } => self.tunnel(came, vtep, vni),
            NextHop::Vlan { port, vid } => self.vlan(came, port, vid),
            NextHop::UnknownEndpoint => drop(DropReason::UnknownEndpoint),
        }
    }

    fn tunnel(&self, came: Came<'_>, vtep: IpAddr, vni: Vni) -> Stopped<&'a PortSpec> {
        if self.local(vtep).is_none() {
            return drop(DropReason::UnknownVtep);
        }
        if self.of_vni(vni.get()).is_some_and(|(owner, _)| owner != came.vrf) {
            return drop(DropReason::NoRoute);
        }
        match self.underlay(vtep) {
            Some(underlay) => self.uplink(underlay.port),
            None => drop(DropReason::UnresolvedUnderlay),
        }
    }

    fn vlan(&self, came: Came<'_>, port: PortId, vid: Vid) -> Stopped<&'a PortSpec> {
        if self.of_vid(port, vid.get()).is_some_and(|(owner, _)| owner != came.vrf) {
            return drop(DropReason::NoRoute);
        }
        self.uplink(port)
    }

    fn uplink(&self, port: PortId) -> Stopped<&'a PortSpec> {
        let spec = self.spec(port).filter(|spec| spec.kind == PortKind::Uplink);
        spec.ok_or(Fate::Drop(DropReason::PortGone))
    }

    /// `inner` as it leaves for a next hop.
    fn wrapped(&self, next_hop: NextHop, inner: &[u8]) -> Vec<u8> {
        match next_hop {
            NextHop::Local(_) | NextHop::UnknownEndpoint => inner.to_vec(),
            NextHop::Vlan { vid, .. } => bytes::tagged(vid.get(), inner),
            NextHop::Tunnel { vtep, vni } => {
                let (local, underlay) = (self.local(vtep), self.underlay(vtep));
                let (local, underlay) = local.zip(underlay).expect("the way out was found");
                bytes::vxlan(underlay, local, vni.get(), inner)
            }
        }
    }

    /// The frame that tells a neighbor `mac`, where it leaves, or why it doesn't.
    pub(crate) fn told(
        &self,
        port: PortId,
        (seen, frame): (&Seen, &[u8]),
        mac: Mac,
    ) -> Result<Vec<u8>, DropReason> {
        let request = seen.unwrapped(frame);
        let reply = match seen.what {
            What::Neighbor { target: IpAddr::V6(target), .. } => {
                bytes::neighbor_advert(&request, target, mac)
            }
            What::Neighbor { .. } | What::Ip(_) | What::Other => bytes::arp_reply(&request, mac),
        };
        match (seen.tunnel, seen.tag) {
            (Some((vtep, vni)), _) => {
                let underlay = self.underlay(vtep).ok_or(DropReason::UnresolvedUnderlay)?;
                let local = self.local(vtep).ok_or(DropReason::UnknownVtep)?;
                Ok(bytes::vxlan(underlay, local, vni, &reply))
            }
            (None, Some(vid)) => Ok(bytes::tagged(vid, &reply)),
            (None, None) => {
                assert!(self.binding(port).is_some());
                Ok(reply)
            }
        }
    }
}

const fn answer(target: IpAddr, mac: Mac) -> Punt {
    match target {
        IpAddr::V4(_) => Punt::ArpReply(mac),
        IpAddr::V6(_) => Punt::NeighborAdvert(mac),
    }
}
