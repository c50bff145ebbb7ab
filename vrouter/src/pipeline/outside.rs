//! Table `published`: ports of the node that lead to containers, and the way back.
//!
//! Who comes by them is outside of all tenants: it has no group, and no address that a route of the
//! tenant knows. A packet to a published port is the tenant's as soon as it is translated, which is
//! how the tables see it; its answer belongs to a connection that came this way, or goes nowhere.

use flowtable::action::{End, Exit, Pop, Punt, Rewrite};
use flowtable::conn::Outside;
use flowtable::entry::{NextHop, NodePort, Prefix};
use flowtable::ids::{Mac, PortId};
use flowtable::key::{FlowKey, ethertype, flag, stored};
use flowtable::{ActionList, DropReason};

use super::{Ingress, Looked, Origin, Relation, Stop, Walk};
use crate::port::PortKind;
use crate::snapshot::{Published, Route, Section, Snapshot};
use crate::trace::Recorder;

impl Published {
    /// A packet for the node's port, as the tenant sees it.
    pub(crate) fn translated(self, key: &FlowKey) -> FlowKey {
        let (ip, dst_port) = self.to;
        FlowKey { dst: stored(ip), dst_port, ..*key }
    }
}

/// Where the port of the node leads that a packet is for; `None`: it is no whole packet from outside
/// all tenants, or its port is not published.
#[inline]
pub(crate) fn published(snapshot: &Snapshot, key: &FlowKey) -> Option<Published> {
    let published = &snapshot.networks.published;
    if published.is_empty() {
        return None;
    }
    let plain = key.vni == 0 && key.vid == 0;
    let whole = key.flags & (flag::FRAG_FIRST | flag::FRAG_LATER) == 0;
    let is_ip = matches!(key.eth_type, ethertype::IPV4 | ethertype::IPV6);
    let id = PortId::new(u32::from(key.in_port)).ok().filter(|_| plain && whole && is_ip)?;
    let uplink = snapshot.ports.lookup(id).is_some_and(|p| p.spec.kind == PortKind::Uplink);
    published.get(&key.node_port().filter(|_| uplink)?).copied()
}

/// The far side of a packet for a published port, for its answers.
pub(crate) fn far_side(snapshot: &Snapshot, key: &FlowKey) -> Option<Outside> {
    published(snapshot, key)?;
    Some(Outside {
        uplink: PortId::new(u32::from(key.in_port)).ok()?,
        published: (key.dst_ip()?, key.dst_port),
        node_mac: key.eth_dst(),
        neighbor: key.eth_src(),
    })
}

impl<'s> Walk<'s> {
    /// Table `published`: whose port is it, and may its sender be who it says?
    pub(super) fn classify_outside(
        &mut self,
        published: Published,
        recorder: &mut impl Recorder,
    ) -> Result<Ingress<'s>, Stop> {
        // Connections have a way of their own, which no other flow shares.
        self.looked = Looked { src_port: true, dst_port: true };
        self.sections.add(Section::Networks);
        self.sections.add(Section::Routes);
        let (vrf, (to, port)) = (published.vrf, published.to);
        let route = self.check_outside(published);
        recorder.step(
            "published",
            None,
            || format!("vrf={vrf},nw_dst={to},tp_dst={port}"),
            || match &route {
                Ok(route) => format!("bd={}", route.bd),
                Err(reason) => format!("drop({reason})"),
            },
        );
        let route = route?;
        let origin = Origin::Outside { to: published.to, route };
        Ok(Ingress { vrf, bd: route.bd, origin })
    }

    /// The container's route, if the packet may go there.
    fn check_outside(&mut self, published: Published) -> Result<Route, DropReason> {
        let (routes, (to, _)) = (&self.snapshot.routes.by_ip, published.to);
        if self.key.eth_src().is_multicast() {
            return Err(DropReason::SpoofedMac);
        }
        let source = self.key.src_ip().ok_or(DropReason::Malformed)?;
        let gateway = self.snapshot.networks.gateways.contains_key(&(published.vrf, source));
        let inside = gateway || routes.lookup(published.vrf, source).is_some();
        if inside || source.is_unspecified() || source.is_multicast() || source.is_loopback() {
            return Err(DropReason::SpoofedIp);
        }
        // Its answers could not be told from packets that nobody asked for.
        self.sections.add(Section::Policy);
        match self.relation {
            Relation::Opening | Relation::Original | Relation::Stray(_) => {}
            Relation::Untracked | Relation::Reply | Relation::Admitted => {
                return Err(DropReason::NoConnection);
            }
        }
        match routes.lookup(published.vrf, to) {
            Some((prefix, route @ Route { next_hop: NextHop::Local(_), .. }))
                if prefix == Prefix::host(to) =>
            {
                Ok(*route)
            }
            _ => Err(DropReason::UnknownEndpoint),
        }
    }

    /// From a container to who came to its published port: the way that the question came.
    pub(super) fn answer_outside(
        &mut self,
        ingress: &Ingress<'s>,
        outside: &Outside,
        recorder: &mut impl Recorder,
    ) -> Result<ActionList, Stop> {
        self.looked = Looked { src_port: true, dst_port: true };
        // Connections end with their container's route: not a second later, which is when a flow of one
        // looks for it again.
        self.sections.add(Section::Routes);
        let checked = self.check_answer(ingress, outside);
        let Outside { uplink, published: (ip, port), node_mac, neighbor } = *outside;
        recorder.step(
            "published",
            None,
            || format!("nw_src={ip},tp_src={port}"),
            || match checked {
                Ok(()) => format!("port={uplink}"),
                Err(reason) => format!("drop({reason})"),
            },
        );
        checked?;
        if self.key.flags & flag::TTL_LOW != 0 {
            return Err(Stop::Punt(Punt::TimeExceeded));
        }
        self.conntrack(ingress, recorder);
        self.policy(ingress, None, recorder)?;
        self.connected()?;
        let dscp = self.qos(ingress, None, recorder);
        let route = Some(Rewrite { src: node_mac, dst: neighbor });
        let exit = Exit::Translated { port: uplink, end: End::Source, to: (ip, port) };
        let actions = ActionList { pop: Pop::Nothing, route, dscp, exit };
        recorder.step("output", None, || format!("port={uplink}"), || actions.to_string());
        Ok(actions)
    }

    /// The port leads to the sender still, and the packet can go.
    fn check_answer(&mut self, ingress: &Ingress<'s>, outside: &Outside) -> Result<(), DropReason> {
        let Origin::Port(_) = ingress.origin else { return Err(DropReason::NoConnection) };
        let routed = self.network(ingress.bd).is_some_and(|n| !n.gateways.is_empty());
        if self.key.eth_dst() != Mac::GATEWAY || !routed {
            return Err(DropReason::NotForUs);
        }
        // The later ones have no port that could be changed.
        if self.key.flags & flag::FRAG_FIRST != 0 {
            return Err(DropReason::Fragment);
        }
        let (address, port) = outside.published;
        let node = NodePort { address, protocol: self.key.proto, port };
        let leads = self.snapshot.networks.published.get(&node);
        let from = self.key.src_ip().map(|ip| (ip, self.key.src_port));
        if !leads.is_some_and(|leads| leads.vrf == ingress.vrf && Some(leads.to) == from) {
            return Err(DropReason::NoConnection);
        }
        self.check_uplink(outside.uplink)
    }
}
