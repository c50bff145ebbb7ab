//! Shared uplinks: NICs from which the program `from_uplink` picks what is Weir's.
//!
//! A port may have several devices that lead to the same network. All of them are picked from, and the
//! engine's frames leave by one. The filters stay when this process ends, as those of containers do:
//! what is Weir's is dropped then, what is the host's never notices.

use std::net::IpAddr;

use flowtable::ids::{PortId, Vid};
use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::{MapCore as _, MapFlags};
use zerocopy::{FromZeros as _, Immutable, IntoBytes};

use crate::object::{Offload, OffloadError, Port, PortUse, wait_for_programs};

const PROGRAM: &str = "from_uplink";
/// Ours, whichever engine has loaded them.
const PROGRAMS: [&str; 3] = [PROGRAM, "from_port", "from_trunk"];

/// `struct pick` of the programs.
#[derive(Clone, Copy, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
struct Pick {
    address: [u8; 16],
    port: u16,
    vid: u16,
}

impl Pick {
    fn address(port: PortId, ip: IpAddr) -> Self {
        let address = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        Self { address, port: port.get(), vid: 0 }
    }

    const fn vlan(port: PortId, vid: Vid) -> Self {
        Self { address: [0; 16], port: port.get(), vid: vid.get() }
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

    /// Replaces what is picked: VXLAN to these local tunnel end points, and frames of these VLANs.
    ///
    /// # Errors
    /// [`OffloadError::Map`] when there are more than 4,096 on all ports.
    pub fn pick(&self, port: PortId, vteps: &[IpAddr], vids: &[Vid]) -> Result<(), OffloadError> {
        let addresses = vteps.iter().map(|ip| Pick::address(port, *ip));
        let wanted = addresses.chain(vids.iter().map(|vid| Pick::vlan(port, *vid)));
        let wanted = wanted.collect::<Vec<_>>();
        for old in self.picks_of(port)? {
            if !wanted.iter().any(|pick| pick.as_bytes() == old) {
                self.delete_bytes("picks", &old)?;
            }
        }
        let put = |p: &Pick| self.put_bytes("picks", p.as_bytes(), (&[1], MapFlags::ANY));
        wanted.iter().try_for_each(put)
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
