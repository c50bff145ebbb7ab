//! Ports of the node that lead to a port of a container.

use std::net::IpAddr;

use crate::ids::Vrf;

/// A port of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePort {
    /// An address of the node.
    pub address: IpAddr,
    /// 6 (TCP) or 17 (UDP).
    pub protocol: u8,
    /// 1..=65535.
    pub port: u16,
}

/// `published` table: what comes by an uplink to this address and port of the node is a container's.
/// Packets are translated as a network address translator does it (RFC 3022, section 4.1; a static
/// binding), those of the container that answer them back again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedEntry {
    /// Key.
    pub node: NodePort,
    /// The container's tenant.
    pub vrf: Vrf,
    /// The container's address, of the same family.
    pub to: IpAddr,
    /// The container's port, 1..=65535.
    pub to_port: u16,
}
