//! Tunnels of offloaded flows: a vxlan device of the kernel's that puts packets into VXLAN and takes
//! them out, told by the programs which tunnel each packet is for or came through (`bpf/tunnel.bpf.h`).

use std::net::IpAddr;

use flowtable::ids::{PortId, Vni};
use zerocopy::{Immutable, IntoBytes};

use crate::object::{Offload, OffloadError};

const PROGRAM: &str = "from_tunnel";

/// What an uplink's device for tunnels can be used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnels {
    /// The node's tunnel end points.
    pub local: Vec<IpAddr>,
    /// Longest frame that fits the uplink inside a tunnel, without FCS.
    pub frame_bytes: u16,
}

/// `struct flow_tunnel` of the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Ends {
    remote: [u8; 16],
    local: [u8; 16],
    vni: u32,
    is_v6: u32,
}

impl Tunnels {
    /// `None`: the node has no end point of that family.
    pub(crate) fn towards(&self, remote: IpAddr, vni: Vni) -> Option<Ends> {
        let local = self.local.iter().find(|local| local.is_ipv4() == remote.is_ipv4())?;
        let [remote, local] = [remote, *local].map(|ip| match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        });
        Some(Ends { remote, local, vni: vni.get(), is_v6: u32::from(local[..12] != V4_MAPPED) })
    }
}

/// What an IPv4 address begins with as an IPv6 one.
const V4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

impl Offload {
    /// Flows of uplink `port`, which is open, may leave by and come from the vxlan device `ifindex`, which
    /// takes each packet's tunnel from its metadata. What an engine before this one has attached there is
    /// replaced.
    ///
    /// # Errors
    /// See [`OffloadError`].
    pub fn open_tunnels(
        &self,
        port: PortId,
        ifindex: u32,
        tunnels: Tunnels,
    ) -> Result<(), OffloadError> {
        let Some(flows) = self.flows() else { return Ok(()) };
        self.put("ids", ifindex, &u32::from(port.get()).to_ne_bytes())?;
        self.attach(PROGRAM, ifindex)?;
        flows.begin_life(port, ifindex);
        flows.set_tunnels(port, Some(tunnels));
        Ok(())
    }

    /// No flow of the uplink leaves by or comes from its vxlan device any more. None is open: ok.
    pub fn close_tunnels(&self, port: PortId) {
        if let Some(flows) = self.flows().filter(|flows| flows.tunnels(port).is_some()) {
            flows.set_tunnels(port, None);
            flows.end_life(port);
        }
    }

    /// Puts back the program that somebody removed from the vxlan device `ifindex`; returns whether it
    /// was missing. Meanwhile what came through tunnels was lost.
    ///
    /// # Errors
    /// [`OffloadError::Attach`].
    pub fn restore_tunnels(&self, ifindex: u32) -> Result<bool, OffloadError> {
        self.restore(PROGRAM, ifindex)
    }
}
