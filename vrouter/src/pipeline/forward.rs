//! Where a packet goes: neighbors' questions, answered here, table `route` for its MAC, table `mac` inside a network.

use std::net::IpAddr;

use flowtable::action::Punt;
use flowtable::entry::{NextHop, Prefix};
use flowtable::ids::Mac;
use flowtable::key::{flag, icmpv6, ipproto};
use flowtable::{Action, ActionList, DropReason};

use super::{Ingress, Origin, Stop, Target, Walk, describe};
use crate::snapshot::{Network, Section};
use crate::trace::Recorder;

impl<'s> Walk<'s> {
    /// ARP and neighbor discovery are answered by this node for every address it knows; what it does
    /// not know may be on the wire of a VLAN network, and nowhere else.
    pub(super) fn solicited(
        &mut self,
        ingress: &Ingress<'s>,
        recorder: &mut impl Recorder,
    ) -> Result<ActionList, Stop> {
        self.sections.add(Section::Routes);
        let target = self.key.dst_ip().ok_or(DropReason::Malformed)?;
        let network = self.network(ingress.bd);
        let (field, punt): (_, fn(Mac) -> Punt) = match target {
            IpAddr::V4(_) => ("arp_tpa", Punt::ArpReply),
            IpAddr::V6(_) => ("nd_target", Punt::NeighborAdvert),
        };
        let answer = self.hardware_address(ingress, network, target).map(punt);
        recorder.step(
            "neighbor",
            None,
            || format!("bd={},{field}={target}", ingress.bd),
            || answer.map_or_else(|| "miss".to_owned(), |punt| punt.to_string()),
        );
        if let Some(punt) = answer {
            return Err(Stop::Punt(punt));
        }
        match (ingress.origin, network.and_then(|n| n.wire)) {
            (Origin::Port(_), Some((port, vid))) => {
                let target = Target { next_hop: NextHop::Vlan { port, vid }, routed: None };
                self.output(ingress, target, None, recorder)
            }
            (_, _) => Err(DropReason::ArpUnknown.into()),
        }
    }

    fn hardware_address(
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
        let host = prefix == Prefix::host(target) && route.bd == ingress.bd && exists;
        let local = matches!(route.next_hop, NextHop::Local(_));
        // Who asks for its own address tests whether it is free: silence says yes. What is not
        // ours is answered, on the wire or in a tunnel, by the node that has it.
        let known = host && route.mac != self.key.eth_src() && (from_port || local);
        known.then_some(route.mac)
    }

    /// Table `route`: the packet is for the gateway's MAC, or for one that its address had before.
    pub(super) fn route(
        &mut self,
        ingress: &Ingress<'s>,
        recorder: &mut impl Recorder,
    ) -> Result<Target, Stop> {
        let (Origin::Port(_), Some(dst)) = (ingress.origin, self.key.dst_ip()) else {
            return Err(DropReason::NotForUs.into());
        };
        // What neighbors say ends at the router, and no rule is asked about it.
        if self.key.neighbor().is_some() {
            return Err(DropReason::NotForUs.into());
        }
        // A network without a gateway is not routed, whatever MAC its containers write.
        if self.network(ingress.bd).is_none_or(|n| n.gateways.is_empty()) {
            recorder.step("route", None, || format!("bd={}", ingress.bd), || "no gateway".into());
            return Err(DropReason::NotForUs.into());
        }
        if self.snapshot.networks.gateways.contains_key(&(ingress.vrf, dst)) {
            let icmp = matches!(self.key.proto, ipproto::ICMP | ipproto::ICMPV6);
            self.looked.src_port |= icmp;
            let echo = icmp && self.key.src_port == echo_request(dst);
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
        Ok(Target { next_hop: route.next_hop, routed: Some(route.mac) })
    }

    /// Whether a neighbor's IPv6 address is another MAC's by now: the sender still believes the MAC that
    /// the address had before, for as long as its kernel does. Such a packet goes the router's way.
    pub(super) fn is_moved(&mut self, ingress: &Ingress<'s>) -> bool {
        let Origin::Port(_) = ingress.origin else { return false };
        let Some(dst @ IpAddr::V6(_)) = self.key.dst_ip().filter(|_| self.key.neighbor().is_none())
        else {
            return false;
        };
        self.sections.add(Section::Routes);
        let found = self.snapshot.routes.by_ip.lookup(ingress.vrf, dst);
        let moved = found.is_some_and(|(_, route)| {
            route.bd == ingress.bd
                && route.next_hop != NextHop::UnknownEndpoint
                && route.mac != self.key.eth_dst()
        });
        moved && self.network(ingress.bd).is_some_and(|n| !n.gateways.is_empty())
    }

    /// Table `mac`: the packet stays in its network.
    pub(super) fn bridge(
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
        Ok(Target { next_hop, routed: None })
    }

    /// An address of this tenant is reached at its own MAC only, or by a router: another one would
    /// borrow the group of an address that the receiver does not have.
    fn check_owner(&self, ingress: &Ingress<'s>, mac: Option<NextHop>) -> Result<(), DropReason> {
        let Some(dst) = self.key.dst_ip().filter(|_| self.key.neighbor().is_none()) else {
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
}

/// The type of an echo request of the family of this address (RFC 792, RFC 4443).
const fn echo_request(ip: IpAddr) -> u16 {
    match ip {
        IpAddr::V4(_) => 8,
        IpAddr::V6(_) => icmpv6::ECHO_REQUEST as u16,
    }
}
