//! The kernel's side of tunnels: a vxlan device beside a shared uplink, by which offloaded flows leave the
//! node and come to it (decision 0043). It stays when this process ends, as the uplink's program does, and
//! the next engine takes it over.

use std::net::IpAddr;

use flowtable::ids::PortId;
use netdev::{Arp, Netlink, set_disable_ipv6};
use offload::{Offload, OffloadError, Tunnels};

/// RFC 7348, section 5.
const VXLAN_PORT: u16 = 4789;
const NAME: &str = "wr-vx0";
const ETHERNET_BYTES: u16 = 14;
/// IP, UDP and VXLAN headers.
const OUTER4_BYTES: u16 = 36;
const OUTER6_BYTES: u16 = 56;

/// There is no such device, or it can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    #[error("the device {NAME}, which needs UDP port {VXLAN_PORT} of this namespace for itself")]
    Link(#[from] netdev::Error),
    #[error("{NAME} is somebody else's device")]
    Foreign,
    #[error("IPv6 of {NAME}")]
    Ipv6(#[from] netdev::SysctlError),
    #[error(transparent)]
    Offload(#[from] OffloadError),
}

/// The uplink that tunnels go over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) port: PortId,
    /// Its device.
    pub(crate) ifindex: u32,
    /// The node's end points.
    pub(crate) vteps: &'a [IpAddr],
}

/// Whether offloaded flows can leave in tunnels.
#[derive(Debug)]
pub(crate) enum Tunnelling {
    No,
    /// They can't, which was said.
    Failed,
    By(TunnelDevice),
}

/// An open device.
#[derive(Debug)]
pub(crate) struct TunnelDevice {
    ifindex: u32,
    usable: Tunnels,
}

impl Tunnelling {
    /// Opens the device where there can be one, and removes one that is not what it was: the next time it
    /// is made anew.
    pub(crate) fn tend(
        &mut self,
        offload: &Offload,
        netlink: &Netlink,
        (way, can): (Way<'_>, bool),
    ) {
        let can = can && offload.without_flows().is_none();
        let tended = match std::mem::replace(self, Self::No) {
            before if !can && !matches!(before, Self::By(_)) => return,
            Self::No => TunnelDevice::open(offload, netlink, way).map(Self::By),
            Self::Failed => {
                // It was said why.
                let again = TunnelDevice::open(offload, netlink, way);
                Ok(again.map_or(Self::Failed, Self::By))
            }
            Self::By(device) => match device.is_whole(offload, netlink, way) {
                Ok(true) if can => Ok(Self::By(device)),
                Ok(_) | Err(_) => device.close(offload, netlink, way.port).map(|()| Self::No),
            },
        };
        *self = tended.unwrap_or_else(|error| {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(port = %way.port, error, "flows between nodes are not offloaded");
            Self::Failed
        });
    }

    /// Removes the device, if there is one.
    pub(crate) fn end(&mut self, offload: &Offload, port: PortId) -> Result<(), TunnelError> {
        match std::mem::replace(self, Self::No) {
            Self::By(device) => device.close(offload, &Netlink::open()?, port),
            Self::No | Self::Failed => Ok(()),
        }
    }
}

impl TunnelDevice {
    /// Opens it, or takes over what an engine before this one has left.
    fn open(offload: &Offload, netlink: &Netlink, way: Way<'_>) -> Result<Self, TunnelError> {
        let usable = usable(netlink, way)?;
        let link = match netlink.link_by_name(NAME)? {
            Some(link) if link.kind.as_deref() == Some("vxlan") => link,
            Some(_other) => return Err(TunnelError::Foreign),
            None => netlink.create_external_vxlan(NAME, VXLAN_PORT)?,
        };
        let opened = Self { ifindex: link.index, usable };
        match opened.start(offload, netlink, way.port) {
            Ok(()) => Ok(opened),
            Err(error) => {
                opened.close(offload, netlink, way.port)?;
                Err(error)
            }
        }
    }

    /// The program is there before anything can come out of the device.
    fn start(&self, offload: &Offload, netlink: &Netlink, port: PortId) -> Result<(), TunnelError> {
        netlink.set_arp(self.ifindex, Arp::Off)?;
        set_disable_ipv6(None, NAME)?;
        netlink.set_mtu(self.ifindex, (self.usable.frame_bytes - ETHERNET_BYTES).into())?;
        offload.open_tunnels(port, self.ifindex, self.usable.clone())?;
        Ok(netlink.set_up(self.ifindex)?)
    }

    /// Whether it is there as it was opened.
    fn is_whole(
        &self,
        offload: &Offload,
        netlink: &Netlink,
        way: Way<'_>,
    ) -> Result<bool, TunnelError> {
        let link = netlink.link_by_index(self.ifindex)?;
        if !link.is_some_and(|link| link.up) || usable(netlink, way)? != self.usable {
            return Ok(false);
        }
        if offload.restore_tunnels(self.ifindex)? {
            tracing::warn!(device = NAME, "the tunnels' tc program was removed; it is back");
        }
        Ok(true)
    }

    /// Removes it.
    fn close(self, offload: &Offload, netlink: &Netlink, port: PortId) -> Result<(), TunnelError> {
        offload.close_tunnels(port);
        match netlink.delete_link(self.ifindex) {
            Err(error) if !error.is_missing() => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn usable(netlink: &Netlink, way: Way<'_>) -> Result<Tunnels, TunnelError> {
    let mtu = netlink.link_by_index(way.ifindex)?.map_or(0, |link| link.mtu);
    let outer = if way.vteps.iter().all(IpAddr::is_ipv4) { OUTER4_BYTES } else { OUTER6_BYTES };
    let room = u16::try_from(mtu).unwrap_or(u16::MAX);
    let frame_bytes = room.saturating_sub(outer).max(ETHERNET_BYTES + 68);
    Ok(Tunnels { local: way.vteps.to_vec(), frame_bytes })
}
