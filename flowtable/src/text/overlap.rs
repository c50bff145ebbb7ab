//! Which table entries the packets of a flow could meet: the filter of entry listings.
//!
//! An entry is left out only when no packet of the flow could match it, whatever the other tables
//! hold. What the flow does not say is open, so that the empty flow meets every entry that any packet
//! can match; a rule whose fields exclude each other is met by no flow.

use super::spec::{FlowSpec, Frag, PortRef};
use crate::entry::{Entry, PortRange, Prefix, PublishedEntry, RuleEntry};
use crate::ids::{Bd, Group, PortId};
use crate::key::{ethertype, flag, ipproto};

impl FlowSpec {
    /// Whether some packet of this flow could match `entry`. The tenant is not looked at: who asks
    /// knows which tenant a network belongs to, and compares [`FlowSpec::tenant`]'s `vrf` itself.
    /// As in [`FlowSpec::matches`], a port's name matches no port.
    #[must_use]
    pub fn overlaps(&self, entry: &Entry) -> bool {
        let group = |wanted: Option<Group>, group| wanted.is_none_or(|wanted| wanted == group);
        let tenant = &self.tenant;
        match entry {
            Entry::Port(e) => {
                self.enters(e.port) && self.is_in(e.bd) && group(tenant.src_group, e.group)
            }
            Entry::Network(e) => self.is_in(e.bd),
            Entry::Tunnel(e) => {
                self.tunnel.id.is_none_or(|id| id == e.vni.get()) && self.is_in(e.bd)
            }
            Entry::Vtep(e) => meet(self.tunnel.src, Prefix::host(e.ip)),
            Entry::Vlan(e) => {
                let vid = self.vlan_vid.is_none_or(|vid| vid == e.vid.get());
                vid && self.enters(e.port) && self.is_in(e.bd)
            }
            // An address has its group whether it sends or receives. No group is asked of ARP.
            Entry::Group(e) => {
                let sends = meet(self.src, e.prefix) && group(tenant.src_group, e.group);
                let receives = meet(self.dst, e.prefix) && group(tenant.dst_group, e.group);
                self.eth_type != Some(ethertype::ARP)
                    && self.has_family(e.prefix)
                    && (sends || receives)
            }
            Entry::Rule(e) => [ethertype::IPV4, ethertype::IPV6].iter().any(|&family| {
                self.eth_type.is_none_or(|eth_type| eth_type == family)
                    && self.overlaps_rule(e, family)
            }),
            Entry::Route(e) => self.has_family(e.prefix) && meet(self.dst, e.prefix),
            Entry::Mac(e) => self.is_in(e.bd) && self.eth_dst.is_none_or(|mac| mac == e.mac),
            Entry::Published(e) => self.overlaps_published(e),
            Entry::Qos(e) => self.enters(e.port),
            // What a packet is sent with, decided by other tables than its headers.
            Entry::Underlay(_) | Entry::Tenant(_) | Entry::Meter(_) => true,
        }
    }

    fn enters(&self, port: PortId) -> bool {
        match &self.in_port {
            None => true,
            Some(PortRef::Id(id)) => *id == port,
            Some(PortRef::Name(_)) => false,
        }
    }

    fn is_in(&self, bd: Bd) -> bool {
        self.tenant.bd.is_none_or(|wanted| wanted == bd)
    }

    fn has_family(&self, prefix: Prefix) -> bool {
        match self.eth_type {
            None => true,
            Some(ethertype::IPV4 | ethertype::ARP) => prefix.address().is_ipv4(),
            Some(ethertype::IPV6) => prefix.address().is_ipv6(),
            Some(_) => false,
        }
    }

    /// A whole packet, without a tag or a tunnel, to an address and port of the node.
    fn overlaps_published(&self, published: &PublishedEntry) -> bool {
        let address = Prefix::host(published.node.address);
        let whole = !matches!(self.frag, Some(Frag::First | Frag::Later));
        let plain = self.vlan_vid.is_none_or(|vid| vid == 0)
            && self.tunnel.id.is_none_or(|id| id == 0)
            && self.tunnel.src.is_none();
        whole
            && plain
            && self.eth_type != Some(ethertype::ARP)
            && self.has_family(address)
            && meet(self.dst, address)
            && self.proto.is_none_or(|proto| proto == published.node.protocol)
            && self.dst_port.is_none_or(|port| port == published.node.port)
    }

    /// For packets of one family.
    fn overlaps_rule(&self, rule: &RuleEntry, family: u16) -> bool {
        let group = |wanted: Option<Group>, of: Option<Group>| {
            wanted.is_none_or(|wanted| of.is_none_or(|of| of == wanted))
        };
        let addresses = |wanted: Option<Prefix>, of: Option<Prefix>| {
            of.is_none_or(|of| {
                of.address().is_ipv4() == (family == ethertype::IPV4) && meet(wanted, of)
            })
        };
        let protocols: &[u8] = match (self.proto, rule.protocol) {
            (None, Some(ipproto::ICMP)) => &[ipproto::ICMP, ipproto::ICMPV6],
            (Some(proto), _) | (None, Some(proto)) => &[proto],
            // Only these have something that a rule could look at further.
            (None, None) => &[ipproto::TCP, ipproto::UDP, ipproto::ICMP, ipproto::ICMPV6],
        };
        group(self.tenant.src_group, rule.src_group)
            && group(self.tenant.dst_group, rule.dst_group)
            && addresses(self.src, rule.src)
            && addresses(self.dst, rule.dst)
            && protocols.iter().any(|&proto| self.overlaps_transport(rule, (family, proto)))
    }

    /// For packets of one family and protocol.
    fn overlaps_transport(&self, rule: &RuleEntry, packet: (u16, u8)) -> bool {
        let port = |wanted: Option<u16>, range: PortRange| {
            wanted.is_none_or(|port| (range.first..=range.last).contains(&port))
        };
        let proto = packet.1;
        let of_protocol = rule.protocol.is_none_or(|of| {
            of == proto || (of == ipproto::ICMP && packet == (ethertype::IPV6, ipproto::ICMPV6))
        });
        let is_later = self.frag == Some(Frag::Later)
            || self.flags.is_some_and(|flags| flags.value & flag::FRAG_LATER != 0);
        let has_ports = !is_later && matches!(proto, ipproto::TCP | ipproto::UDP);
        let has_icmp = !is_later
            && matches!(
                packet,
                (ethertype::IPV4, ipproto::ICMP) | (ethertype::IPV6, ipproto::ICMPV6)
            );
        let has_flags = !is_later && proto == ipproto::TCP;
        of_protocol
            && rule.src_ports.is_none_or(|range| has_ports && port(self.src_port, range))
            && rule.dst_ports.is_none_or(|range| has_ports && port(self.dst_port, range))
            && rule.icmp.is_none_or(|icmp| {
                let code = icmp.code.is_none_or(|code| {
                    self.dst_port.is_none_or(|wanted| wanted == u16::from(code))
                });
                let kind = self.src_port.is_none_or(|wanted| wanted == u16::from(icmp.kind));
                has_icmp && kind && code
            })
            && rule.tcp_flags.is_none_or(|of| {
                let agree = self
                    .tcp_flags
                    .is_none_or(|wanted| (wanted.value ^ of.value) & wanted.mask & of.mask == 0);
                has_flags && agree
            })
    }
}

/// Whether an address lies in both blocks. `None` is every address.
fn meet(wanted: Option<Prefix>, block: Prefix) -> bool {
    wanted.is_none_or(|wanted| wanted.contains(block.address()) || block.contains(wanted.address()))
}
