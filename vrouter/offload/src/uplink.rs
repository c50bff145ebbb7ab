//! Shared uplinks: NICs from which the program `from_uplink` picks what is Weir's.
//!
//! A port may have several devices that lead to the same network. All of them are picked from, and the
//! engine's frames leave by one. The filters stay when this process ends, as those of containers do:
//! what is Weir's is dropped then, what is the host's never notices.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flowtable::entry::NodePort;
use flowtable::ids::{PortId, Vid};
use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::{MapCore as _, MapFlags};
use zerocopy::{FromZeros as _, Immutable, IntoBytes};

use crate::object::{Offload, OffloadError, Port, PortUse, wait_for_programs};

const PROGRAM: &str = "from_uplink";
/// Ours, whichever engine has loaded them.
const PROGRAMS: [&str; 4] = [PROGRAM, "from_port", "from_trunk", "from_tunnel"];

/// `struct pick` of the programs.
#[derive(Clone, Copy, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
struct Pick {
    address: [u8; 16],
    port: u16,
    vid: u16,
    /// In network byte order.
    l4_port: [u8; 2],
    protocol: u8,
    zero: u8,
}

/// What is taken from an uplink.
#[derive(Debug, Clone, Copy)]
pub struct Picked<'a> {
    /// VXLAN to these local tunnel end points.
    pub vteps: &'a [IpAddr],
    /// Frames of these VLANs.
    pub vids: &'a [Vid],
    /// Packets to these ports of the node.
    pub published: &'a [NodePort],
}

impl Pick {
    fn address(port: PortId, ip: IpAddr) -> Self {
        let address = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        Self { address, port: port.get(), vid: 0, l4_port: [0; 2], protocol: 0, zero: 0 }
    }

    const fn vlan(port: PortId, vid: Vid) -> Self {
        let (port, vid) = (port.get(), vid.get());
        Self { address: [0; 16], port, vid, l4_port: [0; 2], protocol: 0, zero: 0 }
    }

    fn published(port: PortId, node: &NodePort) -> Self {
        let (l4_port, protocol) = (node.port.to_be_bytes(), node.protocol);
        Self { l4_port, protocol, ..Self::address(port, node.address) }
    }
}

impl Offload {
    /// Makes `port` an uplink whose frames leave by device `active`. Its counters start at zero. What is
    /// picked, and from which devices, is told by [`Offload::pick`] and [`Offload::join_uplink`].
    ///
    /// # Errors
    /// [`OffloadError::Map`].
    pub fn open_uplink(&self, port: PortId, active: u32) -> Result<(), OffloadError> {
        let id = u32::from(port.get());
        self.retire(port)?;
        self.forget_devices_of(id)?;
        self.switch_uplink(port, active)
    }

    /// Frames of the uplink leave by device `active` from now on.
    ///
    /// # Errors
    /// [`OffloadError::Map`].
    pub fn switch_uplink(&self, port: PortId, active: u32) -> Result<(), OffloadError> {
        let value = Port::unlimited(active, PortUse::Uplink);
        self.put("ports", port.get().into(), value.as_bytes())
    }

    /// Picks from device `ifindex` for the uplink.
    ///
    /// # Errors
    /// [`OffloadError::Foreign`] when somebody else's filter is where ours belongs; it stays. See
    /// [`OffloadError`] for others.
    pub fn join_uplink(&self, port: PortId, ifindex: u32) -> Result<(), OffloadError> {
        if let Ok(id) = self.hook(PROGRAM, ifindex)?.query() {
            let of_hook = ProgInfoIter::default().find(|program| program.id == id);
            let name = of_hook.map(|program| program.name.to_string_lossy().into_owned());
            if let Some(name) = name.filter(|name| !PROGRAMS.contains(&name.as_str())) {
                return Err(OffloadError::Foreign { ifindex, name });
            }
        }
        self.put("ids", ifindex, &u32::from(port.get()).to_ne_bytes())?;
        self.attach(PROGRAM, ifindex)
    }

    /// Takes the program off device `ifindex`, which is the host's alone when this returns. A device
    /// that is gone, or has no such program: ok.
    ///
    /// # Errors
    /// [`OffloadError::Map`].
    pub fn leave_uplink(&self, port: PortId, ifindex: u32) -> Result<(), OffloadError> {
        let id = u32::from(port.get()).to_ne_bytes();
        if self.lookup("ids", ifindex)?.as_deref() != Some(&id) {
            return Ok(());
        }
        self.remove_id(&ifindex.to_ne_bytes())?;
        // It passes everything now. That it can't be removed is most likely the end of its device.
        self.hook(PROGRAM, ifindex)?.detach().ok();
        Ok(())
    }

    /// Replaces what is picked.
    ///
    /// # Errors
    /// [`OffloadError::Map`] when there is more than 262,144 on all ports.
    pub fn pick(&self, port: PortId, picked: Picked<'_>) -> Result<(), OffloadError> {
        let vteps = picked.vteps.iter().map(|ip| Pick::address(port, *ip));
        let vids = picked.vids.iter().map(|vid| Pick::vlan(port, *vid));
        let published = picked.published.iter().map(|node| Pick::published(port, node));
        let wanted = vteps.chain(vids).chain(published).map(|pick| pick.as_bytes().to_vec());
        let wanted = wanted.collect::<BTreeSet<_>>();
        for old in self.picks_of(port)?.iter().filter(|old| !wanted.contains(*old)) {
            self.delete_bytes("picks", old)?;
        }
        let put = |pick: &Vec<u8>| self.put_bytes("picks", pick, (&[1], MapFlags::ANY));
        wanted.iter().try_for_each(put)
    }

    /// Takes off device `ifindex` what an engine before this one has left there, if nothing of this
    /// engine's is to be there.
    ///
    /// # Errors
    /// [`OffloadError::Missing`] when the object does not fit.
    pub fn clear_uplink(&self, ifindex: u32) -> Result<(), OffloadError> {
        let mut hook = self.hook(PROGRAM, ifindex)?;
        let Ok(id) = hook.query() else { return Ok(()) };
        let of_hook = ProgInfoIter::default().find(|program| program.id == id);
        if of_hook.is_some_and(|program| program.name.to_bytes() == PROGRAM.as_bytes()) {
            // That it can't be removed is most likely the end of its device.
            hook.detach().ok();
        }
        Ok(())
    }

    /// Puts back the program that somebody removed from device `ifindex`; returns whether it was
    /// missing. Meanwhile what is Weir's was the host's.
    ///
    /// # Errors
    /// [`OffloadError::Attach`].
    pub fn restore_uplink(&self, ifindex: u32) -> Result<bool, OffloadError> {
        self.restore(PROGRAM, ifindex)
    }

    /// Nothing is received from or sent to the uplink any more when this returns; its devices have left
    /// it before.
    ///
    /// # Errors
    /// See [`OffloadError`].
    pub fn close_uplink(&self, port: PortId) -> Result<(), OffloadError> {
        self.put("ports", port.get().into(), Port::new_zeroed().as_bytes())?;
        for pick in self.picks_of(port)? {
            self.delete_bytes("picks", &pick)?;
        }
        wait_for_programs()
    }

    fn picks_of(&self, port: PortId) -> Result<Vec<Vec<u8>>, OffloadError> {
        let of_port = |key: &Vec<u8>| key[16..18] == port.get().to_ne_bytes();
        Ok(self.map("picks")?.keys().filter(of_port).collect())
    }
}
