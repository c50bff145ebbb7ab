//! Tables `port`, `tunnel` and `vlan`: whose packet is it, and may its sender be who it says?

use std::net::IpAddr;

use flowtable::DropReason;
use flowtable::entry::{Ipv6, NextHop, PortEntry};
use flowtable::ids::{PortId, Vid, Vni, Vrf};
use flowtable::key::{FlowKey, Neighbor, ethertype, flag};

use super::{Ingress, Origin, Stop, Walk};
use crate::port::PortKind;
use crate::snapshot::Section;
use crate::trace::Recorder;

impl<'s> Walk<'s> {
    /// Tables `port`, `tunnel` and `vlan`: whose packet is it?
    pub(super) fn classify(&mut self, recorder: &mut impl Recorder) -> Result<Ingress<'s>, Stop> {
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
            PortKind::Uplink => match self.published {
                Some(published) => self.classify_outside(published, recorder),
                None => self.classify_wire(id, recorder),
            },
        }
    }

    /// Anti-spoofing: only the addresses the port was given (RFC 2827 at its narrowest).
    fn check_source(&self, binding: &PortEntry) -> Result<(), DropReason> {
        // Who receives an ARP or discovery message believes the address inside it, not the frame's.
        let foreign = self.key.flags & flag::FOREIGN_MAC != 0;
        if self.key.eth_src() != binding.mac || foreign {
            return Err(DropReason::SpoofedMac);
        }
        match self.key.eth_type {
            ethertype::IPV6 if binding.ipv6 == Ipv6::Off => return Err(DropReason::Ipv6Off),
            ethertype::IPV4 | ethertype::IPV6 | ethertype::ARP => {}
            _ => return Err(DropReason::NonIp),
        }
        let source = self.key.src_ip().ok_or(DropReason::Malformed)?;
        let own = binding.ips.contains(&source) || self.asks_without(source);
        if own { Ok(()) } else { Err(DropReason::SpoofedIp) }
    }

    /// Whether a packet may come from an address that is not its container's: a probe before an
    /// address is used (RFC 5227, RFC 4862 section 5.4.2), and what IPv6 sends from a link-local
    /// address, or none, to its link. The node answers solicitations; the rest ends here.
    fn asks_without(&self, source: IpAddr) -> bool {
        let solicits = self.key.neighbor() == Some(Neighbor::Solicitation);
        match source {
            IpAddr::V4(ip) => solicits && ip.is_unspecified(),
            IpAddr::V6(ip) => {
                let on_link = ip.is_unspecified() || ip.is_unicast_link_local();
                on_link && (solicits || self.key.eth_dst().is_multicast())
            }
        }
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
            ethertype::IPV4 | ethertype::IPV6 => self.check_remote(vrf, origin)?,
            ethertype::ARP => {}
            _ => return Err(DropReason::NonIp.into()),
        }
        Ok(Ingress { vrf, bd, origin })
    }

    /// What comes from the wire was checked where it was sent, if it was sent by one of us: an
    /// address of this node's, or of nobody, is somebody's who is not (RFC 2827). The rights of an
    /// address end with its endpoint, whatever the default.
    fn check_remote(&mut self, vrf: Vrf, origin: Origin<'s>) -> Result<(), DropReason> {
        self.sections.add(Section::Routes);
        let source = self.key.src_ip().ok_or(DropReason::Malformed)?;
        let found = self.snapshot.routes.by_ip.lookup(vrf, source);
        match (found.map(|(_, route)| route.next_hop), origin) {
            (Some(NextHop::Local(_)), _) => Err(DropReason::SpoofedIp),
            (Some(NextHop::UnknownEndpoint), Origin::Tunnel) => Err(DropReason::UnknownEndpoint),
            _ => Ok(()),
        }
    }
}
