//! The closed list of reasons for which a packet ends. One enum for counters, CLI, trace, metrics
//! and sFlow: a drop that is not in this list cannot happen.

use std::fmt;
use std::str::FromStr;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $sflow:literal;)*) => {
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
        }
    };
}

reasons! {
    /// Truncated or inconsistent headers.
    Malformed = "malformed", 323;
    /// The source MAC is not the port's.
    SpoofedMac = "spoofed-mac", 302;
    /// The source address (IP or ARP) is not one of the port's.
    SpoofedIp = "spoofed-ip", 302;
    /// The destination is inside an endpoint network and belongs to no endpoint.
    UnknownEndpoint = "unknown-endpoint", 279;
    /// A policy rule, or the tenant's default, denies it.
    PolicyDeny = "policy-deny", 258;
    /// No route in the VRF.
    NoRoute = "no-route", 6;
    /// The TTL or hop limit would reach zero.
    TtlExpired = "ttl-expired", 257;
    /// No network has this VNI.
    UnknownVni = "unknown-vni", 288;
    /// VXLAN from or to an address that is no known tunnel end point.
    UnknownVtep = "unknown-vtep", 288;
    /// No network has this VLAN on this uplink.
    UnknownVlan = "unknown-vlan", 265;
    /// The underlay's next hop has no MAC address yet.
    UnresolvedUnderlay = "unresolved-underlay", 279;
    /// The port is not bound to a tenant (yet, or any more).
    PortUnbound = "port-unbound", 268;
    /// A container's own VLAN tag; networks do not carry them.
    ContainerTag = "container-tag", 264;
    /// From a tunnel and would go to a tunnel again.
    SplitHorizon = "split-horizon", 303;
    /// It would leave by the port it came from.
    Hairpin = "hairpin", 303;
    /// The port's share of packets to the engine is used up, or a meter is red.
    RateLimit = "rate-limit", 261;
    /// It belongs to no connection and does not open one: a TCP segment out of its connection's
    /// order, or an ICMP error about nothing that is known.
    NoConnection = "no-connection", 258;
    /// The port or the tenant opens more flows a second, or has more connections, than it may.
    FlowLimit = "flow-limit", 261;
    /// A later fragment of a packet whose first fragment was not seen or was dropped.
    Fragment = "fragment", 258;
    /// The port's share of the slow path (ARP, ICMP errors) is used up, or its queue is full.
    SlowPathLimit = "slow-path-limit", 261;
    /// An ARP request for an address nobody answers for.
    ArpUnknown = "arp-unknown", 279;
    /// Group-addressed and the network does not flood.
    Multicast = "multicast", 263;
    /// IPv6 in a network without an IPv6 subnet.
    Ipv6Off = "ipv6-off", 325;
    /// Neither IPv4, IPv6 nor ARP.
    NonIp = "non-ip", 270;
    /// A service of the gateway or the tunnel end point that is not offered.
    NotForUs = "not-for-us", 325;
    /// Longer than a frame buffer or than the way out allows.
    TooBig = "too-big", 262;
    /// The output's ring is full.
    TxFull = "tx-full", 259;
    /// The output port is gone.
    PortGone = "port-gone", 268;
    /// No free frame to build a reply in.
    NoFrame = "no-frame", 259;
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
