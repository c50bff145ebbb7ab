//! Plain table entries: what the control plane writes and the engine holds. Each entry has a key
//! (its identity, [`Entry::key`]) and a value; writing an entry with a known key replaces it.

mod check;
mod published;
mod qos;

use std::net::IpAddr;

use crate::ids::{Bd, Group, Mac, MeterId, PortId, RuleId, Vid, Vni, Vrf};

pub use check::BadEntry;
pub use published::{NodePort, PublishedEntry};
pub use qos::{
    Band, MeterEntry, MeterUnit, OnDeny, PORT_METERS_MAX, QosEntry, TenantEntry, Tracking,
};

/// An address block: `address` has no bits set beyond `len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// A prefix length longer than its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("prefix length {len} is too long for {address}")]
pub struct BadPrefix {
    /// The address as given.
    pub address: IpAddr,
    /// The refused length.
    pub len: u8,
}

impl Prefix {
    /// Masks `address` to `len` bits.
    ///
    /// # Errors
    /// [`BadPrefix`] when `len` is over 32 (IPv4) or 128 (IPv6).
    pub fn new(address: IpAddr, len: u8) -> Result<Self, BadPrefix> {
        let masked = match address {
            IpAddr::V4(a) if len <= 32 => IpAddr::V4((a.to_bits() & mask32(len)).into()),
            IpAddr::V6(a) if len <= 128 => IpAddr::V6((a.to_bits() & mask128(len)).into()),
            IpAddr::V4(_) | IpAddr::V6(_) => return Err(BadPrefix { address, len }),
        };
        Ok(Self { address: masked, len })
    }

    /// The block of exactly one address.
    #[must_use]
    pub const fn host(address: IpAddr) -> Self {
        let len = if address.is_ipv4() { 32 } else { 128 };
        Self { address, len }
    }

    /// The first address of the block.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// Number of fixed bits: 0..=32 or 0..=128.
    #[must_use]
    pub const fn length(self) -> u8 {
        self.len
    }

    /// Whether `ip` lies in the block. Another family never does.
    #[must_use]
    pub fn contains(self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(n), IpAddr::V4(a)) => a.to_bits() & mask32(self.len) == n.to_bits(),
            (IpAddr::V6(n), IpAddr::V6(a)) => a.to_bits() & mask128(self.len) == n.to_bits(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

const fn mask32(len: u8) -> u32 {
    if len == 0 { 0 } else { u32::MAX << (32 - len) }
}

const fn mask128(len: u8) -> u128 {
    if len == 0 { 0 } else { u128::MAX << (128 - len) }
}

/// Whether a network carries a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ipv6 {
    /// IPv6 frames are dropped as `ipv6-off`.
    Off,
    /// The network has an IPv6 subnet.
    On,
}

/// Whether flows may be forwarded without the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Offload {
    /// If they may be and carry much.
    On,
    /// Never.
    Off,
}

/// Whether a rule, or a tenant's default, lets a packet pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permit {
    /// Pass.
    Allow,
    /// Drop as `policy-deny`.
    Deny,
}

/// Which end of a conversation a rule is enforced at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// At the source's port, for what the source group sends.
    Out,
    /// At the destination's port, for what the destination group receives.
    In,
}

/// Where a frame for a known endpoint goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NextHop {
    /// A port of this node.
    Local(PortId),
    /// Another node, over VXLAN.
    Tunnel {
        /// Its tunnel end point.
        vtep: IpAddr,
        /// The destination network's identifier.
        vni: Vni,
    },
    /// The wire, tagged.
    Vlan {
        /// The uplink.
        port: PortId,
        /// The destination network's tag.
        vid: Vid,
    },
    /// Inside an endpoint network, but no endpoint has this address: drop as `unknown-endpoint`.
    UnknownEndpoint,
}

/// `port` table: who is behind a port. A port without an entry drops everything (`port-unbound`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortEntry {
    /// Key.
    pub port: PortId,
    /// The tenant.
    pub vrf: Vrf,
    /// The network.
    pub bd: Bd,
    /// The endpoint group, or [`Group::NONE`].
    pub group: Group,
    /// The only source MAC accepted.
    pub mac: Mac,
    /// The only source addresses accepted.
    pub ips: Vec<IpAddr>,
    /// Whether the network carries IPv6.
    pub ipv6: Ipv6,
    /// sFlow: one packet in this many is sampled; 0 leaves it to the engine's own setting.
    pub sample_rate: u32,
    /// Whether flows from and to it may be forwarded without the engine.
    pub offload: Offload,
}

/// `network` table: a bridge domain, its gateways and, for VLAN networks, its wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkEntry {
    /// Key.
    pub bd: Bd,
    /// The tenant.
    pub vrf: Vrf,
    /// Addresses of the network.
    pub subnets: Vec<Prefix>,
    /// Gateway addresses this node answers for, with [`Mac::GATEWAY`].
    pub gateways: Vec<IpAddr>,
    /// VLAN networks: where unknown destinations of the network go.
    pub wire: Option<(PortId, Vid)>,
}

/// `tunnel` table: the network of a VNI.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelEntry {
    /// Key.
    pub vni: Vni,
    /// Its network.
    pub bd: Bd,
    /// Its tenant.
    pub vrf: Vrf,
}

/// `vtep` table: tunnel end points VXLAN is accepted from and sent to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VtepEntry {
    /// Key: the other node's address.
    pub ip: IpAddr,
    /// This node's address, the source of what is sent there.
    pub local: IpAddr,
}

/// `underlay` table: how to reach a tunnel end point on the wire. Written by the engine's own
/// netlink watcher from the kernel's routes and neighbours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnderlayEntry {
    /// Key.
    pub vtep: IpAddr,
    /// The uplink.
    pub port: PortId,
    /// The uplink's MAC.
    pub src_mac: Mac,
    /// The next hop's MAC.
    pub dst_mac: Mac,
}

/// `vlan` table: the network of a tag on an uplink.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanEntry {
    /// Key: the uplink.
    pub port: PortId,
    /// Key: the tag.
    pub vid: Vid,
    /// Its network.
    pub bd: Bd,
    /// Its tenant.
    pub vrf: Vrf,
}

/// `group` table: the endpoint group of an address (longest prefix wins).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupEntry {
    /// Key: the tenant.
    pub vrf: Vrf,
    /// Key: the addresses.
    pub prefix: Prefix,
    /// Their group.
    pub group: Group,
}

/// A range of TCP or UDP ports, both ends included; `first <= last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// Smallest port.
    pub first: u16,
    /// Largest port.
    pub last: u16,
}

/// ICMP or ICMPv6 messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IcmpMatch {
    /// The type.
    pub kind: u8,
    /// The code; `None` is any.
    pub code: Option<u8>,
}

/// TCP flags (byte 13 of the header, RFC 9293 section 3.1): those of `mask` have the values in
/// `value`, which has no bits outside `mask`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TcpFlagsMatch {
    /// The bits as they must be.
    pub value: u8,
    /// The bits that are looked at; not 0.
    pub mask: u8,
}

/// `policy` table: one ternary entry. `None` is "any". Higher priority wins; deny wins a tie.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleEntry {
    /// Key: the rule, whose counters all its entries share.
    pub rule: RuleId,
    /// Key: tells apart the entries of one rule.
    pub seq: u32,
    /// 1..=100 from users; higher wins.
    pub priority: u16,
    /// At which end it is enforced.
    pub direction: Direction,
    /// The tenant.
    pub vrf: Vrf,
    /// Group of the sender.
    pub src_group: Option<Group>,
    /// Group of the receiver.
    pub dst_group: Option<Group>,
    /// Sender's addresses.
    pub src: Option<Prefix>,
    /// Receiver's addresses.
    pub dst: Option<Prefix>,
    /// IP protocol number. 1 (ICMP) also matches ICMPv6 (58) in IPv6 packets.
    pub protocol: Option<u8>,
    /// TCP or UDP source ports; a later fragment or another protocol never matches.
    pub src_ports: Option<PortRange>,
    /// TCP or UDP destination ports; a later fragment or another protocol never matches.
    pub dst_ports: Option<PortRange>,
    /// ICMP type and code; a later fragment or another protocol never matches.
    pub icmp: Option<IcmpMatch>,
    /// TCP flags; a later fragment or another protocol never matches.
    pub tcp_flags: Option<TcpFlagsMatch>,
    /// The verdict.
    pub permit: Permit,
}

impl RuleEntry {
    /// What matches every packet of the tenant in this direction, with the lowest priority.
    #[must_use]
    pub const fn any(rule: RuleId, vrf: Vrf, direction: Direction, permit: Permit) -> Self {
        Self {
            rule,
            seq: 0,
            priority: 1,
            direction,
            vrf,
            src_group: None,
            dst_group: None,
            src: None,
            dst: None,
            protocol: None,
            src_ports: None,
            dst_ports: None,
            icmp: None,
            tcp_flags: None,
            permit,
        }
    }
}

/// `route` table: where an address of the tenant is (longest prefix wins).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteEntry {
    /// Key: the tenant.
    pub vrf: Vrf,
    /// Key: the addresses.
    pub prefix: Prefix,
    /// The destination's network.
    pub bd: Bd,
    /// The destination's MAC (all zero with [`NextHop::UnknownEndpoint`]).
    pub mac: Mac,
    /// Where it is.
    pub next_hop: NextHop,
}

/// `mac` table: where an Ethernet address of a network is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacEntry {
    /// Key: the network.
    pub bd: Bd,
    /// Key: the address.
    pub mac: Mac,
    /// Where it is.
    pub next_hop: NextHop,
}

/// Any entry of any table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// `port`
    Port(PortEntry),
    /// `network`
    Network(NetworkEntry),
    /// `tunnel`
    Tunnel(TunnelEntry),
    /// `vtep`
    Vtep(VtepEntry),
    /// `underlay`
    Underlay(UnderlayEntry),
    /// `vlan`
    Vlan(VlanEntry),
    /// `group`
    Group(GroupEntry),
    /// `policy`
    Rule(RuleEntry),
    /// `route`
    Route(RouteEntry),
    /// `mac`
    Mac(MacEntry),
    /// `published`
    Published(PublishedEntry),
    /// `tenant`
    Tenant(TenantEntry),
    /// `meter`
    Meter(MeterEntry),
    /// `qos`
    Qos(QosEntry),
}

/// The identity of an entry. Keys of one table are neighbours in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKey {
    /// `port`
    Port(PortId),
    /// `network`
    Network(Bd),
    /// `tunnel`
    Tunnel(Vni),
    /// `vtep`
    Vtep(IpAddr),
    /// `underlay`
    Underlay(IpAddr),
    /// `vlan`
    Vlan(PortId, Vid),
    /// `group`
    Group(Vrf, Prefix),
    /// `policy`
    Rule(RuleId, u32),
    /// `route`
    Route(Vrf, Prefix),
    /// `mac`
    Mac(Bd, Mac),
    /// `published`
    Published(NodePort),
    /// `tenant`
    Tenant(Vrf),
    /// `meter`
    Meter(MeterId),
    /// `qos`
    Qos(PortId),
}

impl Entry {
    /// The name of the table that holds it.
    #[must_use]
    pub const fn table(&self) -> &'static str {
        match self {
            Self::Port(_) => "port",
            Self::Network(_) => "network",
            Self::Tunnel(_) => "tunnel",
            Self::Vtep(_) => "vtep",
            Self::Underlay(_) => "underlay",
            Self::Vlan(_) => "vlan",
            Self::Group(_) => "group",
            Self::Rule(_) => "policy",
            Self::Route(_) => "route",
            Self::Mac(_) => "mac",
            Self::Published(_) => "published",
            Self::Tenant(_) => "tenant",
            Self::Meter(_) => "meter",
            Self::Qos(_) => "qos",
        }
    }

    /// The identity under which this entry is stored.
    #[must_use]
    pub fn key(&self) -> EntryKey {
        match self {
            Self::Port(e) => EntryKey::Port(e.port),
            Self::Network(e) => EntryKey::Network(e.bd),
            Self::Tunnel(e) => EntryKey::Tunnel(e.vni),
            Self::Vtep(e) => EntryKey::Vtep(e.ip),
            Self::Underlay(e) => EntryKey::Underlay(e.vtep),
            Self::Vlan(e) => EntryKey::Vlan(e.port, e.vid),
            Self::Group(e) => EntryKey::Group(e.vrf, e.prefix),
            Self::Rule(e) => EntryKey::Rule(e.rule, e.seq),
            Self::Route(e) => EntryKey::Route(e.vrf, e.prefix),
            Self::Mac(e) => EntryKey::Mac(e.bd, e.mac),
            Self::Published(e) => EntryKey::Published(e.node),
            Self::Tenant(e) => EntryKey::Tenant(e.vrf),
            Self::Meter(e) => EntryKey::Meter(e.meter),
            Self::Qos(e) => EntryKey::Qos(e.port),
        }
    }
}

/// One step of an atomic batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Insert, or replace the entry with the same key.
    Put(Entry),
    /// Remove; absent is fine.
    Delete(EntryKey),
    /// Remove everything: the first step of a full replacement.
    Clear,
}
