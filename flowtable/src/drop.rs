//! The closed list of reasons for which a packet ends. One enum for counters, CLI, trace, metrics
//! and sFlow: a drop that is not in this list cannot happen.

use std::fmt;
use std::str::FromStr;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $sflow:literal, $advice:literal;)*) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $variant,)* }

        impl DropReason {
            /// Every reason, in the order of [`DropReason::index`].
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name used everywhere outside this program.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The sFlow v5 discard code (sFlow "discarded packet" reasons, 0..15 and 256..371).
            #[must_use]
            pub const fn sflow_code(self) -> u32 {
                match self { $(Self::$variant => $sflow,)* }
            }

            /// What an operator does about it, or looks at next.
            #[must_use]
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice,)* }
            }
        }
    };
}

reasons! {
    /// Truncated or inconsistent headers.
    Malformed = "malformed", 323,
        "find the sender by `vrctl port ls`; its NIC or its stack sends broken frames";
    /// The source MAC is not the port's.
    SpoofedMac = "spoofed-mac", 302,
        "the container uses another MAC than it was given: attach it with that MAC";
    /// The source address (IP or ARP) is not one of the port's.
    SpoofedIp = "spoofed-ip", 302,
        "the container uses another address than it was given: attach it with that address";
    /// The destination is inside an endpoint network and belongs to no endpoint.
    UnknownEndpoint = "unknown-endpoint", 279,
        "the destination has no endpoint: see `netctl endpoint ls`; peers use a stale address";
    /// A policy rule, or the tenant's default, denies it.
    PolicyDeny = "policy-deny", 258,
        "`vrctl drops --log` tells the rule, `netctl policy rule-ls` what it says";
    /// No route in the VRF.
    NoRoute = "no-route", 6,
        "no network of the tenant has the destination: see `vrctl route ls` and `netctl network ls`";
    /// The TTL or hop limit would reach zero.
    TtlExpired = "ttl-expired", 257,
        "traceroute does this; else look for a routing loop";
    /// No network has this VNI.
    UnknownVni = "unknown-vni", 288,
        "this node does not know the network: see `netctl node ls` and netplugin's log";
    /// VXLAN from or to an address that is no known tunnel end point.
    UnknownVtep = "unknown-vtep", 288,
        "a host that is no node sends VXLAN, or its netplugin has not registered: `netctl node ls`";
    /// No network has this VLAN on this uplink.
    UnknownVlan = "unknown-vlan", 265,
        "the switch port carries a VLAN that no network has: see `netctl network ls`";
    /// The underlay's next hop has no MAC address yet.
    UnresolvedUnderlay = "unresolved-underlay", 279,
        "the next hop to the VTEP answers no ARP: see `ip neigh` and `ip route` on this node";
    /// The port is not bound to a tenant (yet, or any more).
    PortUnbound = "port-unbound", 268,
        "normal while a container is attached; else see `netctl node ls` and netplugin's log";
    /// A container's own VLAN tag; networks do not carry them.
    ContainerTag = "container-tag", 264,
        "the container sends VLAN tags: networks carry untagged frames only";
    /// From a tunnel and would go to a tunnel again.
    SplitHorizon = "split-horizon", 303,
        "a tunnel's packet is for another node: this node's tables lag, see `netctl node ls`";
    /// It would leave by the port it came from.
    Hairpin = "hairpin", 303,
        "the sender asks its network for itself: see its routes";
    /// The port's share of packets to the engine is used up, or a meter is red.
    RateLimit = "rate-limit", 261,
        "a meter (`vrctl meter ls`) or vrouterd --port-pps, --port-mbps; raise it, or leave it at that";
    /// It belongs to no connection and does not open one: a TCP segment out of its connection's
    /// order, or an ICMP error about nothing that is known.
    NoConnection = "no-connection", 258,
        "after a restart see vrouterd --pickup-seconds; else `vrctl conn ls`: it ended or never began";
    /// The port or the tenant opens more flows a second, or has more connections, than it may.
    FlowLimit = "flow-limit", 261,
        "`vrctl conn stats` tells which bound on connections refuses; if none, it is new flows a second: \
         vrouterd --connections, --port-connections, --port-new-flows, netctl tenant update";
    /// A later fragment of a packet whose first fragment was not seen or was dropped.
    Fragment = "fragment", 258,
        "its first fragment was dropped or lost: see the other reasons; lower the sender's MTU";
    /// The port's share of the slow path (ARP, neighbor discovery, ICMP errors) is used up, or its queue is full.
    SlowPathLimit = "slow-path-limit", 261,
        "a container asks more by ARP, or causes more ICMP errors, than the engine answers: find it";
    /// An ARP request or neighbor solicitation for an address nobody answers for.
    ArpUnknown = "arp-unknown", 279,
        "nobody has the address: see `netctl endpoint ls`";
    /// Group-addressed and the network does not flood.
    Multicast = "multicast", 263,
        "networks carry no group-addressed traffic; nothing to do";
    /// IPv6 in a network without an IPv6 subnet.
    Ipv6Off = "ipv6-off", 325,
        "give the network an IPv6 subnet, or turn IPv6 off in the container";
    /// Neither IPv4, IPv6 nor ARP.
    NonIp = "non-ip", 270,
        "networks carry IPv4, IPv6 and ARP; nothing to do";
    /// A service of the gateway or the tunnel end point that is not offered.
    NotForUs = "not-for-us", 325,
        "the gateway answers ARP, neighbor discovery and ping only, and containers are no routers";
    /// Longer than a frame buffer or than the way out allows.
    TooBig = "too-big", 262,
        "lower the container's MTU to that of its network";
    /// The output's ring is full.
    TxFull = "tx-full", 259,
        "the receiver or the node is overloaded: find who sends by `vrctl port ls`; see --port-pps";
    /// The output port is gone.
    PortGone = "port-gone", 268,
        "normal when a container is detached; nothing to do";
    /// No free frame to build a reply in.
    NoFrame = "no-frame", 259,
        "all frame buffers are in use: see vrouterd --frames";
}

/// Number of drop reasons.
pub const DROP_REASON_COUNT: usize = DropReason::ALL.len();

impl DropReason {
    /// Position in [`DropReason::ALL`], for counter arrays.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Text that names no drop reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a drop reason; `vrctl drops` lists them")]
pub struct UnknownReason(pub String);

impl FromStr for DropReason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        let found = Self::ALL.iter().copied().find(|r| r.name() == text);
        found.ok_or_else(|| UnknownReason(text.to_owned()))
    }
}
