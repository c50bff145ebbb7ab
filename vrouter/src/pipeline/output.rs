//! Tables `qos` and `output`: what the packet is charged to, and the way out.

use flowtable::action::{End, Exit, Pop, Rewrite};
use flowtable::entry::NextHop;
use flowtable::ids::{Bd, Dscp, Mac, PortId, Vrf};
use flowtable::meter::MeterSlot;
use flowtable::{ActionList, DropReason};

use super::{Ingress, Origin, Stop, Target, Walk, describe};
use crate::port::PortKind;
use crate::qos::Qos;
use crate::snapshot::Section;
use crate::trace::Recorder;

impl<'s> Walk<'s> {
    /// Collects the meters of both ends; returns the sender's mark. `None`: it leaves the tenant.
    pub(super) fn qos(
        &mut self,
        ingress: &Ingress<'s>,
        next_hop: Option<NextHop>,
        recorder: &mut impl Recorder,
    ) -> Option<Dscp> {
        self.sections.add(Section::Qos);
        let qos = &self.snapshot.qos;
        let sender = match ingress.origin {
            Origin::Port(sender) => qos.of_port(sender.port),
            Origin::Tunnel | Origin::Wire | Origin::Outside { .. } => None,
        };
        let receiver = match next_hop {
            Some(NextHop::Local(port)) => qos.of_port(port),
            _ => None,
        };
        let from = sender.map_or(&[][..], |port| port.from.slots());
        let to = receiver.map_or(&[][..], |port| port.to.slots());
        self.meters.extend(from);
        self.meters.extend(to);
        // ARP has no place for a mark, and neighbor discovery is no traffic of a class.
        let is_ip = self.key.neighbor().is_none();
        let dscp = sender.and_then(|port| port.dscp).filter(|_| is_ip);
        if sender.is_some() || receiver.is_some() {
            recorder.step(
                "qos",
                None,
                || [names(qos, "from", from), names(qos, "to", to)].concat().join(","),
                || dscp.map_or_else(String::new, |dscp| format!("set(ip_dscp={dscp})")),
            );
        }
        dscp
    }

    /// Table `output`: the actions that bring the packet there.
    pub(super) fn output(
        &mut self,
        ingress: &Ingress<'s>,
        target: Target,
        dscp: Option<Dscp>,
        recorder: &mut impl Recorder,
    ) -> Result<ActionList, Stop> {
        let pop = match ingress.origin {
            Origin::Port(_) | Origin::Outside { .. } => Pop::Nothing,
            Origin::Tunnel => Pop::Tunnel,
            Origin::Wire => Pop::Vlan,
        };
        let route = target.routed.map(|dst| Rewrite { src: Mac::GATEWAY, dst });
        let exit = self.way_out(ingress, target.next_hop);
        let actions = exit.map(|exit| ActionList { pop, route, dscp, exit });
        recorder.step(
            "output",
            None,
            || describe(target.next_hop),
            || match &actions {
                Ok(actions) => actions.to_string(),
                Err(reason) => format!("drop({reason})"),
            },
        );
        Ok(actions?)
    }

    fn way_out(&mut self, ingress: &Ingress<'s>, next_hop: NextHop) -> Result<Exit, DropReason> {
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
                Ok(match ingress.origin {
                    Origin::Outside { to, .. } => {
                        Exit::Translated { port, end: End::Destination, to }
                    }
                    Origin::Port(_) | Origin::Tunnel | Origin::Wire => Exit::Plain(port),
                })
            }
            NextHop::Tunnel { .. } | NextHop::Vlan { .. } if !from_port => {
                Err(DropReason::SplitHorizon)
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
                Ok(Exit::Tunnel { port, vtep, vni })
            }
            NextHop::Vlan { port, vid } => {
                self.sections.add(Section::Networks);
                stays_inside(ingress.vrf, self.snapshot.networks.vlans.get(&(port, vid)))?;
                self.check_uplink(port)?;
                Ok(Exit::Vlan { port, vid })
            }
            NextHop::UnknownEndpoint => Err(DropReason::UnknownEndpoint),
        }
    }

    /// Tunnels and tags belong on the wire: a container must not get them.
    pub(super) fn check_uplink(&self, port: PortId) -> Result<(), DropReason> {
        match self.snapshot.ports.lookup(port).map(|p| p.spec.kind) {
            Some(PortKind::Uplink) => Ok(()),
            Some(PortKind::Container) | None => Err(DropReason::PortGone),
        }
    }
}

/// Meters of one way, as flow text.
fn names(qos: &Qos, way: &str, slots: &[MeterSlot]) -> Vec<String> {
    let ids = slots.iter().filter_map(|slot| qos.id(*slot));
    ids.map(|id| format!("{way}=meter:{id}")).collect()
}

/// Tables never name another tenant's VNI or VLAN as a way out; were one to, the packet ends here.
fn stays_inside(vrf: Vrf, way_out: Option<&(Bd, Vrf)>) -> Result<(), DropReason> {
    if way_out.is_some_and(|(_, owner)| *owner != vrf) {
        return Err(DropReason::NoRoute);
    }
    Ok(())
}
