//! What is done to a packet once it is decided: a short list of closed actions. A lookup structure
//! does not know frames: `vrouter` executes these.

use std::fmt;
use std::net::IpAddr;

use crate::drop::DropReason;
use crate::ids::{Dscp, Mac, PortId, Vid, Vni};

/// One step of a packet's rewriting, in the order of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Remove the outer Ethernet, IP, UDP and VXLAN headers (50 bytes over IPv4, 70 over IPv6).
    Decap,
    /// Remove the 802.1Q tag of the wire.
    PopVlan,
    /// Route: new addresses, TTL or hop limit down by one, IPv4 header checksum updated (RFC 1624).
    Route {
        /// New source MAC (the gateway's).
        src: Mac,
        /// New destination MAC.
        dst: Mac,
    },
    /// Mark the packet: the six high bits of the IPv4 type of service or the IPv6 traffic class
    /// (RFC 2474, section 3); ECN stays.
    SetDscp(Dscp),
    /// Add an 802.1Q tag for the wire.
    PushVlan(Vid),
    /// Put the frame into VXLAN towards a tunnel end point (RFC 7348).
    Encap {
        /// Remote tunnel end point.
        vtep: IpAddr,
        /// Network identifier.
        vni: Vni,
    },
    /// Send it out of a port. Always the last action.
    Output(PortId),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decap => f.write_str("tnl_pop"),
            Self::PopVlan => f.write_str("pop_vlan"),
            Self::Route { src, dst } => {
                write!(f, "set(eth(src={src},dst={dst})),dec_ttl")
            }
            Self::SetDscp(dscp) => write!(f, "set(ip_dscp={dscp})"),
            Self::PushVlan(vid) => write!(f, "push_vlan({vid})"),
            Self::Encap { vtep, vni } => write!(f, "tnl_push(vxlan(vni={vni},dst={vtep}))"),
            Self::Output(port) => write!(f, "output:{port}"),
        }
    }
}

/// Most actions a packet can need: pop, route, mark, push, output.
pub const ACTIONS_MAX: usize = 5;

/// A list of at most [`ACTIONS_MAX`] actions, kept in place so that a cached decision is one value.
#[derive(Clone, Copy)]
pub struct ActionList {
    items: [Action; ACTIONS_MAX],
    len: u8,
}

impl ActionList {
    /// No action.
    pub const EMPTY: Self = Self { items: [Action::PopVlan; ACTIONS_MAX], len: 0 };

    /// Appends an action. The pipeline's shape keeps lists within [`ACTIONS_MAX`]; one action too
    /// many is a bug there and panics here.
    pub fn push(&mut self, action: Action) {
        self.items[usize::from(self.len)] = action;
        self.len += 1;
    }

    /// The actions in order.
    #[must_use]
    pub fn as_slice(&self) -> &[Action] {
        &self.items[..usize::from(self.len)]
    }
}

impl PartialEq for ActionList {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for ActionList {}

impl fmt::Debug for ActionList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}

impl fmt::Display for ActionList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, action) in self.as_slice().iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            action.fmt(f)?;
        }
        Ok(())
    }
}

/// Packets the slow path answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Punt {
    /// An ARP request for an address this node answers for; the MAC to answer with.
    ArpReply(Mac),
    /// An ICMP echo request to the gateway's own address.
    GatewayEcho,
    /// The TTL ended here: tell the sender (RFC 792 time exceeded).
    TimeExceeded,
}

impl fmt::Display for Punt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ArpReply(mac) => write!(f, "arp_reply({mac})"),
            Self::GatewayEcho => f.write_str("icmp_echo_reply"),
            Self::TimeExceeded => f.write_str("icmp_time_exceeded"),
        }
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Execute the actions; the last one is an output.
    Forward(ActionList),
    /// Hand it to the slow path of this node.
    Punt(Punt),
    /// End it and count it.
    Drop(DropReason),
}
