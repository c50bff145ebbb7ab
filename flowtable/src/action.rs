//! What is done to a packet once it is decided: a short list of closed actions in a fixed order. A lookup structure
//! does not know frames: `vrouter` executes these.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

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
    /// Write this address and port at an end of a TCP or UDP packet, checksums updated (RFC 1624).
    Translate(End, (IpAddr, u16)),
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
            Self::Translate(end, (ip, port)) => {
                let end = match end {
                    End::Source => "src",
                    End::Destination => "dst",
                };
                write!(f, "nat({end}={})", SocketAddr::new(*ip, *port))
            }
            Self::Output(port) => write!(f, "output:{port}"),
        }
    }
}

/// An end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// What is taken off a packet first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pop {
    /// Nothing.
    Nothing,
    /// [`Action::Decap`]
    Tunnel,
    /// [`Action::PopVlan`]
    Vlan,
}

/// New addresses of a routed packet: [`Action::Route`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewrite {
    /// New source MAC (the gateway's).
    pub src: Mac,
    /// New destination MAC.
    pub dst: Mac,
}

/// How a packet leaves. A decision is copied for every packet, so that this stays small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As it is.
    Plain(PortId),
    /// With a tag: [`Action::PushVlan`].
    Vlan {
        /// The uplink.
        port: PortId,
        /// The tag.
        vid: Vid,
    },
    /// In a tunnel: [`Action::Encap`].
    Tunnel {
        /// The uplink.
        port: PortId,
        /// Remote tunnel end point.
        vtep: IpAddr,
        /// Network identifier.
        vni: Vni,
    },
    /// With another address and port at one end: [`Action::Translate`].
    Translated {
        /// The container's port, or the uplink.
        port: PortId,
        /// The end that changes.
        end: End,
        /// What is written there.
        to: (IpAddr, u16),
    },
}

/// All that is done to a packet. The order is always that of the fields, so a list of actions is
/// kept as what differs: a cached decision is one small value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ActionList {
    /// First, what is taken off.
    pub pop: Pop,
    /// Then routing; `None` inside a network.
    pub route: Option<Rewrite>,
    /// Then the mark; `None` leaves it.
    pub dscp: Option<Dscp>,
    /// Last, the way out.
    pub exit: Exit,
}

const _: () = assert!(size_of::<Exit>() <= 28, "a decision is copied for every packet");

impl ActionList {
    /// The actions in the order in which they are executed; the last one is an output.
    pub fn iter(&self) -> impl Iterator<Item = Action> + use<> {
        let pop = match self.pop {
            Pop::Nothing => None,
            Pop::Tunnel => Some(Action::Decap),
            Pop::Vlan => Some(Action::PopVlan),
        };
        let route = self.route.map(|Rewrite { src, dst }| Action::Route { src, dst });
        let push = match self.exit {
            Exit::Plain(_) => None,
            Exit::Vlan { vid, .. } => Some(Action::PushVlan(vid)),
            Exit::Tunnel { vtep, vni, .. } => Some(Action::Encap { vtep, vni }),
            Exit::Translated { end, to, .. } => Some(Action::Translate(end, to)),
        };
        let output = Some(Action::Output(self.output()));
        [pop, route, self.dscp.map(Action::SetDscp), push, output].into_iter().flatten()
    }

    /// The port it leaves by.
    #[must_use]
    pub const fn output(&self) -> PortId {
        match self.exit {
            Exit::Plain(port)
            | Exit::Vlan { port, .. }
            | Exit::Tunnel { port, .. }
            | Exit::Translated { port, .. } => port,
        }
    }
}

impl fmt::Debug for ActionList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Display for ActionList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, action) in self.iter().enumerate() {
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
    /// A neighbor solicitation (RFC 4861) for one; the MAC to answer with.
    NeighborAdvert(Mac),
    /// An ICMP or ICMPv6 echo request to the gateway's own address.
    GatewayEcho,
    /// The TTL or hop limit ended here: tell the sender (RFC 792, RFC 4443 time exceeded).
    TimeExceeded,
}

impl fmt::Display for Punt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ArpReply(mac) => write!(f, "arp_reply({mac})"),
            Self::NeighborAdvert(mac) => write!(f, "neighbor_advert({mac})"),
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
