//! What a flow text says, and matching packets against it.

use std::net::IpAddr;

use super::bits::BitMatch;
use super::state::CtAssume;
use crate::entry::Prefix;
use crate::ids::{Bd, Group, Mac, PortId, Vrf};
use crate::key::{FlowKey, Parsed, ethertype, flag};

/// A port as people write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortRef {
    /// A device's name; whoever knows the ports replaces it by the id.
    Name(String),
    /// The port itself.
    Id(PortId),
}

/// A packet's place in a fragmented one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frag {
    /// Not fragmented.
    No,
    /// With the transport header.
    First,
    /// Without it.
    Later,
    /// Not fragmented, or with the transport header.
    NotLater,
}

/// The tunnel a frame came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TunnelSpec {
    /// VXLAN network identifier; 0 is not tunnelled.
    pub id: Option<u32>,
    /// The sending tunnel end point.
    pub src: Option<Prefix>,
}

/// What the tables, not the frame, say of a flow. [`FlowSpec::matches`] can't look at it: the
/// caller compares it with what it looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TenantSpec {
    /// The tenant.
    pub vrf: Option<Vrf>,
    /// The network.
    pub bd: Option<Bd>,
    /// Group of the sender.
    pub src_group: Option<Group>,
    /// Group of the receiver.
    pub dst_group: Option<Group>,
}

/// A flow text, read: every field is optional, and `None` is "any". The default matches all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FlowSpec {
    /// The port it was received on.
    pub in_port: Option<PortRef>,
    /// The tunnel.
    pub tunnel: TunnelSpec,
    /// IEEE 802.1Q VLAN identifier; 0 is untagged.
    pub vlan_vid: Option<u16>,
    /// Source MAC.
    pub eth_src: Option<Mac>,
    /// Destination MAC.
    pub eth_dst: Option<Mac>,
    /// Ethernet type.
    pub eth_type: Option<u16>,
    /// Source addresses (ARP: sender protocol address; neighbor advertisement: target).
    pub src: Option<Prefix>,
    /// Destination addresses (ARP: target protocol address; neighbor solicitation: target).
    pub dst: Option<Prefix>,
    /// IP protocol.
    pub proto: Option<u8>,
    /// TCP or UDP source port, or ICMP type.
    pub src_port: Option<u16>,
    /// TCP or UDP destination port, or ICMP code.
    pub dst_port: Option<u16>,
    /// Identifier of an echo request or reply.
    pub icmp_id: Option<u16>,
    /// TCP flags, byte 13 of the header.
    pub tcp_flags: Option<BitMatch>,
    /// Fragmentation.
    pub frag: Option<Frag>,
    /// TTL or hop limit. A key only knows whether it is over 1.
    pub ttl: Option<u8>,
    /// ARP opcode: 1 request, 2 reply.
    pub arp_op: Option<u16>,
    /// Bits of [`flag`] as a masked text says them.
    pub flags: Option<BitMatch>,
    /// For a trace: the connection that the packet is assumed to belong to. Nothing is matched
    /// against it.
    pub ct_state: Option<CtAssume>,
    /// The tables' view.
    pub tenant: TenantSpec,
}

impl FlowSpec {
    /// Whether a key is one of those the text describes. An [`PortRef::Name`] never matches:
    /// replace it by the id first. [`FlowSpec::tenant`] is not looked at. TCP flags are compared with
    /// those the key holds: for a packet use [`FlowSpec::matches_packet`].
    #[must_use]
    pub fn matches(&self, key: &FlowKey) -> bool {
        let within = |block: Option<Prefix>, ip: Option<IpAddr>| {
            block.is_none_or(|block| ip.is_some_and(|ip| block.contains(ip)))
        };
        let is_ip = matches!(key.eth_type, ethertype::IPV4 | ethertype::IPV6);
        let in_port = match &self.in_port {
            None => true,
            Some(PortRef::Name(_)) => false,
            Some(PortRef::Id(id)) => id.get() == key.in_port,
        };
        let frag = match self.frag {
            None => true,
            Some(Frag::No) => key.flags & (flag::FRAG_FIRST | flag::FRAG_LATER) == 0,
            Some(Frag::First) => key.flags & flag::FRAG_FIRST != 0,
            Some(Frag::Later) => key.flags & flag::FRAG_LATER != 0,
            Some(Frag::NotLater) => key.flags & flag::FRAG_LATER == 0,
        };
        in_port
            && frag
            && self.tunnel.id.is_none_or(|id| id == key.vni)
            && within(self.tunnel.src, key.tun_src_ip())
            && self.vlan_vid.is_none_or(|vid| vid == key.vid)
            && self.eth_src.is_none_or(|mac| mac == key.eth_src())
            && self.eth_dst.is_none_or(|mac| mac == key.eth_dst())
            && self.eth_type.is_none_or(|eth_type| eth_type == key.eth_type)
            && within(self.src, key.src_ip())
            && within(self.dst, key.dst_ip())
            && self.proto.is_none_or(|proto| is_ip && proto == key.proto)
            && self.src_port.is_none_or(|port| port == key.src_port)
            && self.dst_port.is_none_or(|port| port == key.dst_port)
            && self.icmp_id.is_none_or(|id| id == key.icmp_id)
            && self.tcp_flags.is_none_or(|flags| flags.matches(key.tcp_flags))
            && self.flags.is_none_or(|flags| flags.matches(key.flags))
            && self.ttl.is_none_or(|ttl| is_ip && (ttl <= 1) == (key.flags & flag::TTL_LOW != 0))
            && self.arp_op.is_none_or(|op| (op == 1) == (key.flags & flag::ARP_REPLY == 0))
    }

    /// Like [`FlowSpec::matches`] for a packet, all of whose TCP flags are known.
    #[must_use]
    pub fn matches_packet(&self, packet: &Parsed) -> bool {
        self.matches(&FlowKey { tcp_flags: packet.tcp_flags, ..packet.key })
    }
}
