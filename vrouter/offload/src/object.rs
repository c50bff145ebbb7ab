//! The loaded programs of `bpf/offload.bpf.c` and their maps.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flowtable::DropReason;
use flowtable::ids::PortId;
use libbpf_rs::{
    ErrorKind, Map, MapCore as _, MapFlags, Object, ObjectBuilder, OpenObject, TC_INGRESS, TcHook,
    TcHookBuilder,
};
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes};

use crate::flows::{FlowLimits, FlowMaps, Flows};
use crate::limits::Limits;
use crate::mapped::{Mapped, Shared};
use crate::samples::Samples;

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/offload.bpf.o"));

/// Handle and priority of our filters: an engine replaces those of its predecessor in one step.
const FILTER: u32 = 1;

/// The programs could not be loaded or attached, or a map refused a value.
#[derive(Debug, thiserror::Error)]
pub enum OffloadError {
    /// libbpf or the kernel's verifier refused the object; needs `CAP_BPF` and `CAP_NET_ADMIN`.
    #[error("loading the tc programs")]
    Load(#[source] libbpf_rs::Error),
    /// The object lacks a part: it does not fit this program.
    #[error("the tc object has no {0}")]
    Missing(&'static str),
    /// The device is gone, or refused the filter.
    #[error("attaching {program} to device {ifindex}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The device.
        ifindex: u32,
        /// The kernel's answer.
        source: libbpf_rs::Error,
    },
    /// A map refused a value.
    #[error("map {map} of the tc programs")]
    Map {
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        source: libbpf_rs::Error,
    },
    /// A map could not be mapped into memory.
    #[error("mapping {map} of the tc programs")]
    Mapping {
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another program's filter has the place of ours, preference 1 and handle 1.
    #[error(
        "device {ifindex} has the tc filter {name} of somebody else at preference 1: give that one a higher number"
    )]
    Foreign {
        /// The device.
        ifindex: u32,
        /// The other program.
        name: String,
    },
    /// The kernel did not wait for running programs.
    #[error("waiting for running programs")]
    Barrier(#[source] io::Error),
}

/// Packets that a program dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropCount {
    /// Why.
    pub reason: DropReason,
    /// Wire packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What the programs counted for a port since it was attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortCounters {
    /// Wire packets from the container given to the engine.
    pub rx_packets: u64,
    /// Bytes from the container given to the engine.
    pub rx_bytes: u64,
    /// Frames handed to the container.
    pub tx_packets: u64,
    /// Bytes handed to the container.
    pub tx_bytes: u64,
    /// Dropped, by reason; every reason that a program can have for a port.
    pub drops: [DropCount; PORT_REASONS.len()],
}

/// `struct port` of the programs.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Port {
    lock: u32,
    peer: u32,
    limits: [u64; 6],
    paid: [u64; 3],
    kind: u64,
}

impl Port {
    pub(crate) const fn unlimited(peer: u32, kind: PortUse) -> Self {
        Self { lock: 0, peer, limits: [0; 6], paid: [0; 3], kind: kind as u64 }
    }
}

/// `enum port_kind` of the programs.
#[derive(Clone, Copy)]
pub(crate) enum PortUse {
    Container,
    Uplink,
}

/// `enum kind` of the programs: received, sent, then the drops.
const KINDS: usize = 2 + PORT_REASONS.len();
const PORT_REASONS: [DropReason; 5] = [
    DropReason::ContainerTag,
    DropReason::RateLimit,
    // No trunk for the worker.
    DropReason::PortGone,
    // No memory for the tag.
    DropReason::NoFrame,
    // Too many SYNs.
    DropReason::FlowLimit,
];
/// `enum stray`: from a device that is no port (any more), with a tag that is none.
const STRAY_REASONS: [DropReason; 2] = [DropReason::PortUnbound, DropReason::PortGone];

/// `struct counts` of the programs.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Counts {
    packets: [u64; KINDS],
    bytes: [u64; KINDS],
}

const NO_COUNTS: Counts = Counts { packets: [0; KINDS], bytes: [0; KINDS] };

impl Counts {
    fn add(&mut self, other: &Self) {
        for kind in 0..KINDS {
            self.packets[kind] += other.packets[kind];
            self.bytes[kind] += other.bytes[kind];
        }
    }

    fn drops(&self) -> [DropCount; PORT_REASONS.len()] {
        std::array::from_fn(|i| DropCount {
            reason: PORT_REASONS[i],
            packets: self.packets[2 + i],
            bytes: self.bytes[2 + i],
        })
    }
}

/// The programs, loaded. Filters and what they do outlive this value, see the crate's comment.
#[derive(Debug)]
pub struct Offload {
    object: Object,
    /// Or why there is none.
    flows: Result<Flows, OffloadError>,
    seen: Mutex<Seen>,
}

/// `settings` of the programs.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Settings {
    hash_key: [u64; 2],
    forwards: u64,
}

/// Which table the programs forward by.
#[derive(Debug, Clone, Copy)]
enum Table {
    None,
    OfFlows,
}

/// Maps of the table of flows.
const FLOW_MAPS: [&str; 6] =
    ["flows", "flow_slots", "flow_tunnels", "flow_words", "flow_ends", "flow_samples"];

/// What the totals need beyond the maps.
#[derive(Debug, Default)]
struct Seen {
    /// Ports whose counters may be non-zero.
    ports: BTreeSet<PortId>,
    /// Counted for earlier uses of a port id.
    retired: Vec<DropCount>,
}

impl Offload {
    /// Loads the programs with a new secret for spreading flows over workers, and an empty table of
    /// flows. Where the kernel can't have such a table, without: all packets are the engine's then,
    /// see [`Offload::without_flows`].
    ///
    /// # Errors
    /// See [`OffloadError`].
    pub fn load(flows: FlowLimits) -> Result<Self, OffloadError> {
        libbpf_rs::set_print(None);
        let flows = FlowLimits { flows: flows.flows.max(1), ..flows };
        let whole = open(Table::OfFlows).and_then(|open| load_with_flows(open, flows));
        let (object, flows) = match whole {
            Ok((object, flows)) => (object, Ok(flows)),
            Err(cause) => (load_without_flows(open(Table::None)?)?, Err(cause)),
        };
        Ok(Self { object, flows, seen: Mutex::default() })
    }

    /// Why the kernel has no table of flows; `None`: it has one. The table needs Linux 5.12: arrays in
    /// shared memory (5.5), rings (5.8), redirection to a peer (5.10), counters that are added to and
    /// read at once.
    #[must_use]
    pub fn without_flows(&self) -> Option<&OffloadError> {
        self.flows.as_ref().err()
    }

    /// The table of flows, if there is one.
    pub(crate) fn flows(&self) -> Option<&Flows> {
        self.flows.as_ref().ok()
    }

    /// Nothing that was offloaded reaches the port, or leaves it without the engine, from now on.
    pub fn end_flows(&self, port: PortId) {
        if let Some(flows) = self.flows() {
            flows.end_life(port);
        }
    }

    /// Frames of the flows of worker `worker` (below 64) go to trunk device `ifindex` from now on;
    /// 0 takes the trunk away.
    ///
    /// # Errors
    /// [`OffloadError::Map`].
    pub fn set_trunk(&self, worker: u16, ifindex: u32) -> Result<(), OffloadError> {
        self.put("trunks", u32::from(worker), &ifindex.to_ne_bytes())
    }

    /// Frames that the engine sends come out of trunk device `ifindex`.
    ///
    /// # Errors
    /// [`OffloadError::Attach`].
    pub fn attach_trunk(&self, ifindex: u32) -> Result<(), OffloadError> {
        self.attach("from_trunk", ifindex)
    }

    /// Makes device `ifindex`, a container's host end, the port `port`. Its counters start at zero.
    ///
    /// # Errors
    /// See [`OffloadError`]; the device stays as it was, or is cut off.
    pub fn attach_port(
        &self,
        ifindex: u32,
        port: PortId,
        limits: Limits,
    ) -> Result<(), OffloadError> {
        self.prepare_port(ifindex, port, limits)?;
        self.take_port(ifindex)
    }

    /// The first half of [`Offload::attach_port`]: the port can be sent to, and a program that an engine
    /// before this one has left on the device stays. It forwards the flows that were offloaded then.
    ///
    /// # Errors
    /// See [`OffloadError`].
    pub fn prepare_port(
        &self,
        ifindex: u32,
        port: PortId,
        limits: Limits,
    ) -> Result<(), OffloadError> {
        let id = u32::from(port.get());
        self.retire(port)?;
        self.forget_devices_of(id)?;
        let limits = limits.in_clock_units();
        let value = Port { limits, ..Port::unlimited(ifindex, PortUse::Container) };
        self.put("ports", id, value.as_bytes())?;
        self.put("ids", ifindex, &id.to_ne_bytes())?;
        if let Some(flows) = self.flows() {
            flows.begin_life(port, ifindex);
        }
        Ok(())
    }

    /// The second half: what the container sends is the engine's, or its offloaded flows', from now on.
    ///
    /// # Errors
    /// [`OffloadError::Attach`].
    pub fn take_port(&self, ifindex: u32) -> Result<(), OffloadError> {
        self.attach("from_port", ifindex)
    }

    /// Whether device `ifindex` has the program of a port, whichever engine attached it.
    ///
    /// # Errors
    /// [`OffloadError::Missing`].
    pub fn has_program(&self, ifindex: u32) -> Result<bool, OffloadError> {
        Ok(self.hook("from_port", ifindex)?.query().is_ok())
    }

    /// Attaches the program of a port again when somebody removed it from device `ifindex`; returns
    /// whether it was missing. Meanwhile the container's frames were the host's.
    ///
    /// # Errors
    /// [`OffloadError::Attach`].
    pub fn restore_port(&self, ifindex: u32) -> Result<bool, OffloadError> {
        self.restore("from_port", ifindex)
    }

    /// The same for a trunk's device.
    ///
    /// # Errors
    /// [`OffloadError::Attach`].
    pub fn restore_trunk(&self, ifindex: u32) -> Result<bool, OffloadError> {
        self.restore("from_trunk", ifindex)
    }

    /// Nothing is received from or sent to these devices and their ports any more when this returns,
    /// after one grace period for all. The filters stay on the devices and drop what they send. A port
    /// that is not attached: ok.
    ///
    /// # Errors
    /// See [`OffloadError`].
    pub fn detach_ports(&self, ports: &[(u32, PortId)]) -> Result<(), OffloadError> {
        for &(ifindex, port) in ports {
            self.detach_port(ifindex, port)?;
        }
        wait_for_programs()
    }

    fn detach_port(&self, ifindex: u32, port: PortId) -> Result<(), OffloadError> {
        let id = u32::from(port.get());
        if self.lookup("ids", ifindex)?.as_deref() == Some(&id.to_ne_bytes()) {
            self.remove_id(&ifindex.to_ne_bytes())?;
        }
        let value = self.lookup("ports", id)?.and_then(|v| Port::read_from_bytes(&v).ok());
        if value.is_some_and(|v| v.peer == ifindex) {
            self.put("ports", id, Port::new_zeroed().as_bytes())?;
            self.end_flows(port);
        }
        Ok(())
    }

    /// What was counted for a port since it was attached.
    ///
    /// # Errors
    /// [`OffloadError::Map`].
    pub fn port_counters(&self, port: PortId) -> Result<PortCounters, OffloadError> {
        let counts = self.counts(port)?;
        Ok(PortCounters {
            rx_packets: counts.packets[0],
            rx_bytes: counts.bytes[0],
            tx_packets: counts.packets[1],
            tx_bytes: counts.bytes[1],
            drops: counts.drops(),
        })
    }

    /// What was dropped for a port since it was attached, by reason.
    ///
    /// # Errors
    /// [`OffloadError::Map`].
    pub fn port_drops(&self, port: PortId) -> Result<Vec<DropCount>, OffloadError> {
        Ok(self.counts(port)?.drops().to_vec())
    }

    /// What was dropped since the programs were loaded, on all ports and on none, by reason. A
    /// reason can occur more than once; the entries add up.
    ///
    /// # Errors
    /// [`OffloadError::Map`].
    pub fn total_drops(&self) -> Result<Vec<DropCount>, OffloadError> {
        let seen = self.seen();
        let mut sum = NO_COUNTS;
        for port in &seen.ports {
            sum.add(&self.counts(*port)?);
        }
        let mut drops = sum.drops().to_vec();
        drops.extend(&seen.retired);
        for (i, reason) in (0..).zip(STRAY_REASONS) {
            let value = self.lookup("strays", i)?.unwrap_or_default();
            let [packets, bytes] = <[u64; 2]>::read_from_bytes(&value)
                .map_err(|_size| OffloadError::Missing("strays"))?;
            drops.push(DropCount { reason, packets, bytes });
        }
        Ok(drops)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // A panic elsewhere leaves counts behind, never half of one.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was counted for an earlier use of the id in the totals and starts at zero.
    pub(crate) fn retire(&self, port: PortId) -> Result<(), OffloadError> {
        let mut seen = self.seen();
        let counts = self.counts(port)?;
        self.put("counts", u32::from(port.get()), NO_COUNTS.as_bytes())?;
        seen.ports.insert(port);
        for drop in counts.drops() {
            match seen.retired.iter_mut().find(|r| r.reason == drop.reason) {
                Some(total) => {
                    total.packets += drop.packets;
                    total.bytes += drop.bytes;
                }
                None => seen.retired.push(drop),
            }
        }
        Ok(())
    }

    pub(crate) fn forget_devices_of(&self, id: u32) -> Result<(), OffloadError> {
        let map = self.map("ids")?;
        for ifindex in map.keys() {
            let value = map.lookup(&ifindex, MapFlags::ANY);
            let value = value.map_err(|source| OffloadError::Map { map: "ids", source })?;
            if value.as_deref() == Some(&id.to_ne_bytes()) {
                self.remove_id(&ifindex)?;
            }
        }
        Ok(())
    }

    pub(crate) fn remove_id(&self, ifindex: &[u8]) -> Result<(), OffloadError> {
        let removed = self.map("ids")?.delete(ifindex);
        removed.map_err(|source| OffloadError::Map { map: "ids", source })
    }

    pub(crate) fn restore(&self, name: &'static str, ifindex: u32) -> Result<bool, OffloadError> {
        // Without our filter, without the qdisc and without the device the answer is an error.
        let missing = self.hook(name, ifindex)?.query().is_err();
        if missing {
            self.attach(name, ifindex)?;
        }
        Ok(missing)
    }

    pub(crate) fn hook(&self, name: &'static str, ifindex: u32) -> Result<TcHook, OffloadError> {
        let program = self.object.progs().find(|p| p.name() == name);
        let program = program.ok_or(OffloadError::Missing(name))?;
        Ok(TcHookBuilder::new(program.as_fd())
            .ifindex(ifindex.cast_signed())
            .handle(FILTER)
            .priority(FILTER)
            .replace(true)
            .hook(TC_INGRESS))
    }

    pub(crate) fn attach(&self, name: &'static str, ifindex: u32) -> Result<(), OffloadError> {
        let mut hook = self.hook(name, ifindex)?;
        let attached = hook.create().and_then(|mut hook| hook.attach());
        match attached {
            Ok(_) => Ok(()),
            Err(source) => Err(OffloadError::Attach { program: name, ifindex, source }),
        }
    }

    fn counts(&self, port: PortId) -> Result<Counts, OffloadError> {
        let value = self.lookup("counts", u32::from(port.get()))?.unwrap_or_default();
        Counts::read_from_bytes(&value).map_err(|_size| OffloadError::Missing("counts"))
    }

    pub(crate) fn map(&self, name: &'static str) -> Result<Map<'_>, OffloadError> {
        map_of(&self.object, name)
    }

    /// Changes a map whose keys are no numbers.
    pub(crate) fn put_bytes(
        &self,
        map: &'static str,
        key: &[u8],
        (value, flags): (&[u8], MapFlags),
    ) -> Result<(), OffloadError> {
        let updated = self.map(map)?.update(key, value, flags);
        updated.map_err(|source| OffloadError::Map { map, source })
    }

    /// The same; that the key is not there is fine.
    pub(crate) fn delete_bytes(&self, map: &'static str, key: &[u8]) -> Result<(), OffloadError> {
        match self.map(map)?.delete(key) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(OffloadError::Map { map, source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    pub(crate) fn lookup(
        &self,
        map: &'static str,
        key: u32,
    ) -> Result<Option<Vec<u8>>, OffloadError> {
        let found = self.map(map)?.lookup(&key.to_ne_bytes(), MapFlags::ANY);
        found.map_err(|source| OffloadError::Map { map, source })
    }

    pub(crate) fn put(
        &self,
        map: &'static str,
        key: u32,
        value: &[u8],
    ) -> Result<(), OffloadError> {
        let updated = self.map(map)?.update(&key.to_ne_bytes(), value, MapFlags::ANY);
        updated.map_err(|source| OffloadError::Map { map, source })
    }
}

/// The object, with a new secret, before the kernel has seen it.
fn open(table: Table) -> Result<OpenObject, OffloadError> {
    let mut open = ObjectBuilder::default().open_memory(OBJECT).map_err(OffloadError::Load)?;
    let random = RandomState::new();
    let hash_key = [random.hash_one(0), random.hash_one(1)];
    let settings = Settings { hash_key, forwards: table as u64 };
    let mut constants = open
        .maps_mut()
        .find(|m| m.name().to_str().is_some_and(|n| n.ends_with(".rodata")))
        .ok_or(OffloadError::Missing("constants"))?;
    let value = constants.initial_value_mut().filter(|v| v.len() == size_of::<Settings>());
    value.ok_or(OffloadError::Missing("settings"))?.copy_from_slice(settings.as_bytes());
    Ok(open)
}

fn load_with_flows(
    mut open: OpenObject,
    flows: FlowLimits,
) -> Result<(Object, Flows), OffloadError> {
    for map in ["flows", "flow_slots", "flow_tunnels"] {
        resize(&mut open, map, flows.flows)?;
    }
    let object = open.load().map_err(OffloadError::Load)?;
    let samples = Samples::new(&map_of(&object, "flow_samples")?).map_err(OffloadError::Load)?;
    let maps = FlowMaps {
        slots: mapped(&object, "flow_slots", flows.flows as usize)?,
        words: mapped(&object, "flow_words", 1)?,
        ends: mapped(&object, "flow_ends", usize::from(PortId::MAX.get()) + 1)?,
        samples,
    };
    Ok((object, Flows::new(maps, flows)))
}

/// What the programs need of the kernel for the table of flows is never looked at then.
fn load_without_flows(mut open: OpenObject) -> Result<Object, OffloadError> {
    for mut map in open.maps_mut() {
        if map.name().to_str().is_some_and(|name| FLOW_MAPS.contains(&name)) {
            map.set_autocreate(false).map_err(OffloadError::Load)?;
        }
    }
    open.load().map_err(OffloadError::Load)
}

fn map_of<'o>(object: &'o Object, name: &'static str) -> Result<Map<'o>, OffloadError> {
    object.maps().find(|m| m.name() == name).ok_or(OffloadError::Missing(name))
}

fn resize(open: &mut OpenObject, name: &'static str, entries: u32) -> Result<(), OffloadError> {
    let mut map = open.maps_mut().find(|m| m.name() == name).ok_or(OffloadError::Missing(name))?;
    map.set_max_entries(entries).map_err(OffloadError::Load)
}

fn mapped<T: Shared>(
    object: &Object,
    name: &'static str,
    len: usize,
) -> Result<Mapped<T>, OffloadError> {
    let map = map_of(object, name)?;
    let fd: BorrowedFd<'_> = map.as_fd();
    Mapped::new(fd, len).map_err(|source| OffloadError::Mapping { map: name, source })
}

/// Programs run under RCU; a membarrier of this kind is one grace period, about 8 ms.
pub(crate) fn wait_for_programs() -> Result<(), OffloadError> {
    // SAFETY: the call takes plain numbers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(OffloadError::Barrier(io::Error::last_os_error())) }
}
