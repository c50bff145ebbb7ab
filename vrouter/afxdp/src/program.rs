//! The XDP programs of `bpf/afxdp.bpf.c` on a device.
//!
//! The attachment is a BPF link whose only reference is this process: when it ends in any way, the
//! device is the host's again. A port that must fail closed does not rely on this (see the crate
//! `offload`).

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use flowtable::entry::NodePort;
use flowtable::ids::Vid;
use libbpf_rs::{Map, MapCore as _, MapFlags, Object, ObjectBuilder};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/afxdp.bpf.o"));

const BUSY_RETRY: Duration = Duration::from_millis(10);
const BUSY_LIMIT: Duration = Duration::from_secs(2);

/// A program could not be loaded, attached or told what to take.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// libbpf or the kernel's verifier refused the object; needs `CAP_BPF` and `CAP_NET_ADMIN`.
    #[error("loading the XDP program")]
    Load(#[source] libbpf_rs::Error),
    /// The object lacks a part: it does not fit this program.
    #[error("the XDP object has no {0}")]
    Missing(&'static str),
    /// No device of that name in this namespace.
    #[error("no device {ifname}")]
    NoDevice {
        /// The name.
        ifname: String,
        /// The kernel's answer.
        source: nix::Error,
    },
    /// Somebody else's program is on the device, and stays.
    #[error(
        "{ifname} has an XDP program of somebody else: take it off (`ip link set dev {ifname} xdp off`) or share the uplink (uplink-mode shared)"
    )]
    Foreign {
        /// The device.
        ifname: String,
    },
    /// The driver has no native XDP.
    #[error("the driver of {ifname} has no native XDP: share the uplink (uplink-mode shared)")]
    Unsupported {
        /// The device.
        ifname: String,
    },
    /// The device refused the program for another reason, such as an MTU that is too large for XDP.
    #[error("attaching XDP to {ifname}")]
    Attach {
        /// The device.
        ifname: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A map refused a value.
    #[error("map {map} of the XDP program")]
    Map {
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        source: libbpf_rs::Error,
    },
}

/// What a program takes from its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramKind {
    /// Every frame; frames without a socket are dropped.
    Trunk,
    /// VXLAN to a local tunnel end point, frames of given VLANs and packets to given ports of the node; all
    /// else is the host's.
    Uplink,
    /// Every frame; frames without a socket are the host's.
    All,
}

impl ProgramKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Trunk => "trunk",
            Self::Uplink => "uplink",
            Self::All => "all",
        }
    }
}

/// Broadcast and multicast frames of the VLANs of an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flooded {
    /// Are taken as others are.
    Taken,
    /// Are left to the host: another device of the same network hears them too.
    Passed,
}

/// Frames that a program has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XdpCounters {
    /// Given to a socket.
    pub redirected: u64,
    /// Left to the host, or with [`ProgramKind::Trunk`] dropped.
    pub passed: u64,
}

/// An attached program. Dropping it detaches it.
#[derive(Debug)]
pub struct XdpProgram {
    object: Object,
    _link: OwnedFd,
}

impl XdpProgram {
    /// Loads a program and attaches it, in native mode, to a device of the calling thread's
    /// namespace. A device whose program is just being released is waited for.
    ///
    /// # Errors
    /// See [`ProgramError`].
    pub fn attach(kind: ProgramKind, ifname: &str) -> Result<Self, ProgramError> {
        let ifindex = nix::net::if_::if_nametoindex(ifname)
            .map_err(|source| ProgramError::NoDevice { ifname: ifname.to_owned(), source })?;
        let object = load(kind)?;
        let start = Instant::now();
        loop {
            match link(&object, kind, ifindex)? {
                Ok(link) => return Ok(Self { object, _link: link }),
                Err(error)
                    if error.raw_os_error() == Some(libc::EBUSY)
                        && start.elapsed() < BUSY_LIMIT =>
                {
                    std::thread::sleep(BUSY_RETRY);
                }
                Err(source) => return Err(refusal(ifname.to_owned(), source)),
            }
        }
    }

    /// Frames of the device's queue `queue` go to this socket, which must be bound to that queue.
    ///
    /// # Errors
    /// [`ProgramError::Map`] when it is not, or `queue` is above 63.
    pub fn set_socket(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), ProgramError> {
        let fd = socket.as_raw_fd().to_ne_bytes();
        self.update("xsks", &queue.to_ne_bytes(), &fd)
    }

    /// Replaces the set of local tunnel end points (at most 64) whose VXLAN is taken.
    ///
    /// # Errors
    /// [`ProgramError::Map`] when there are too many.
    pub fn set_vteps(&self, vteps: &[IpAddr]) -> Result<(), ProgramError> {
        let wanted = vteps.iter().map(|ip| address_key(*ip).to_vec()).collect::<BTreeSet<_>>();
        self.replace("vteps", &wanted)
    }

    /// Makes these the keys of a map that is a set.
    fn replace(&self, name: &'static str, wanted: &BTreeSet<Vec<u8>>) -> Result<(), ProgramError> {
        let map = self.map(name)?;
        for key in map.keys().filter(|key| !wanted.contains(key)) {
            map.delete(&key).map_err(|source| ProgramError::Map { map: name, source })?;
        }
        wanted.iter().try_for_each(|key| self.update(name, key, &[1]))
    }

    /// Replaces the set of ports of the node (at most 65,536) whose packets are taken.
    ///
    /// # Errors
    /// [`ProgramError::Map`] when there are too many.
    pub fn set_published(&self, published: &[NodePort]) -> Result<(), ProgramError> {
        let wanted = published.iter().map(node_port_key).collect::<BTreeSet<_>>();
        self.replace("published", &wanted)
    }

    /// Replaces the set of VLANs that are taken, with or without frames that are for many.
    ///
    /// # Errors
    /// [`ProgramError::Map`] when the kernel refuses.
    pub fn set_vids(&self, vids: &[Vid], flooded: Flooded) -> Result<(), ProgramError> {
        let taken = match flooded {
            Flooded::Taken => 1,
            Flooded::Passed => 2,
        };
        let map = self.map("vids")?;
        for vid in 0..map.max_entries() {
            let key = vid.to_ne_bytes();
            let is_ours = vids.iter().any(|v| u32::from(v.get()) == vid);
            let wanted: u8 = if is_ours { taken } else { 0 };
            let old = map.lookup(&key, MapFlags::ANY);
            let old = old.map_err(|source| ProgramError::Map { map: "vids", source })?;
            if old.as_deref() != Some(&[wanted]) {
                self.update("vids", &key, &[wanted])?;
            }
        }
        Ok(())
    }

    /// What the program has counted since it was attached.
    ///
    /// # Errors
    /// [`ProgramError::Map`] when the kernel refuses.
    pub fn counters(&self) -> Result<XdpCounters, ProgramError> {
        Ok(XdpCounters { redirected: self.count(0)?, passed: self.count(1)? })
    }

    fn count(&self, kind: u32) -> Result<u64, ProgramError> {
        let map = self.map("counts")?;
        let values = map
            .lookup_percpu(&kind.to_ne_bytes(), MapFlags::ANY)
            .map_err(|source| ProgramError::Map { map: "counts", source })?;
        let of_cpu = |bytes: &Vec<u8>| bytes.as_slice().try_into().map_or(0, u64::from_ne_bytes);
        Ok(values.iter().flatten().map(of_cpu).sum())
    }

    fn map(&self, name: &'static str) -> Result<Map<'_>, ProgramError> {
        self.object.maps().find(|m| m.name() == name).ok_or(ProgramError::Missing(name))
    }

    fn update(&self, name: &'static str, key: &[u8], value: &[u8]) -> Result<(), ProgramError> {
        let updated = self.map(name)?.update(key, value, MapFlags::ANY);
        updated.map_err(|source| ProgramError::Map { map: name, source })
    }
}

fn refusal(ifname: String, source: io::Error) -> ProgramError {
    match source.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => ProgramError::Foreign { ifname },
        Some(libc::EOPNOTSUPP) => ProgramError::Unsupported { ifname },
        Some(_) | None => ProgramError::Attach { ifname, source },
    }
}

fn load(kind: ProgramKind) -> Result<Object, ProgramError> {
    libbpf_rs::set_print(None);
    let mut open = ObjectBuilder::default().open_memory(OBJECT).map_err(ProgramError::Load)?;
    for mut program in open.progs_mut() {
        let wanted = program.name() == kind.name();
        program.set_autoload(wanted);
    }
    open.load().map_err(ProgramError::Load)
}

/// The outer error is ours, the inner one the kernel's.
fn link(
    object: &Object,
    kind: ProgramKind,
    ifindex: u32,
) -> Result<io::Result<OwnedFd>, ProgramError> {
    let program = object.progs().find(|p| p.name() == kind.name());
    let program = program.ok_or(ProgramError::Missing(kind.name()))?;
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags: libbpf_sys::XDP_FLAGS_DRV_MODE,
        ..Default::default()
    };
    // libbpf-rs attaches without flags, which falls back to generic mode silently: there every
    // frame is copied once more and the sender's offloads stay, so that frames come unfinished.
    // SAFETY: the program's descriptor is open and `options` is initialised.
    let fd = unsafe {
        libbpf_sys::bpf_link_create(
            program.as_fd().as_raw_fd(),
            ifindex.cast_signed(),
            libbpf_sys::BPF_XDP,
            &raw const options,
        )
    };
    if fd < 0 {
        return Ok(Err(io::Error::from_raw_os_error(-fd)));
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(Ok(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// `struct node_port` of the program.
fn node_port_key(node: &NodePort) -> Vec<u8> {
    let NodePort { address, protocol, port } = *node;
    [&address_key(address)[..], &port.to_be_bytes(), &[protocol, 0]].concat()
}

fn address_key(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
