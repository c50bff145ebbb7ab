//! The devices behind ports: opening them for the engine and giving them back.
//!
//! A container's port is a tc program on its host end and a tag on the trunk; an uplink's is an XDP
//! program and a socket of its own. What is half open when a step fails is closed again. Adding a
//! port that is there and removing one that is not are fine: callers repeat themselves after a
//! restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use afxdp::{
    AttachError, ProgramError, ProgramKind, QueueError, RING_SIZE, Umem, XdpProgram, XskIo,
    XskQueue, XskStats,
};
use flowtable::ids::{PortId, Vid};
use netdev::ethtool::{self, Feature, State};
use netdev::{Link, Netlink};
use offload::{Limits, Offload, OffloadError};
use packet_io::QueueId;
use vrouter::{Engine, Framing, PortError, PortKind, PortSpec, WorkerGone, WorkerHandle};

use crate::events::Events;
use crate::trunk;

/// A port to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewPort {
    pub(crate) id: PortId,
    /// Device name.
    pub(crate) name: String,
    pub(crate) kind: NewKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NewKind {
    Container,
    Uplink(UplinkTraffic, Trial),
}

/// What is taken from an uplink; the rest is the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UplinkTraffic {
    /// VXLAN to these local addresses.
    pub(crate) vteps: Vec<IpAddr>,
    /// Frames of these VLANs.
    pub(crate) vids: Vec<Vid>,
}

/// How long an uplink stays attached until somebody confirms that the host still has its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trial {
    /// For good.
    None,
    /// That long.
    For(Duration),
}

/// A port was not added or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortsError {
    #[error("port {port}: there is no device {name}")]
    NoDevice { port: PortId, name: String },
    #[error("port {port}: {name} is no veth with its other end in another namespace")]
    NotContainer { port: PortId, name: String },
    #[error(
        "port {port}: {name} has several receive queues; this version takes one (`ethtool -L {name} combined 1`)"
    )]
    ManyQueues { port: PortId, name: String },
    #[error("port {port}: {name} is port {existing} already")]
    DeviceTaken { port: PortId, name: String, existing: PortId },
    #[error("port {port} is {existing} already")]
    PortTaken { port: PortId, existing: String },
    #[error("port {port}: {name} is the engine's own trunk")]
    Trunk { port: PortId, name: String },
    #[error("port {port}: --frames {have} is too few for another uplink; it takes {need}")]
    Frames { port: PortId, have: u32, need: u32 },
    #[error("port {port}: there is no such port")]
    Unknown { port: PortId },
    #[error("every queue number is in use")]
    NoQueue,
    #[error("devices")]
    Netlink(#[from] netdev::Error),
    #[error("the tc programs")]
    Offload(#[from] OffloadError),
    #[error("the uplink's program")]
    Program(#[from] ProgramError),
    #[error("the uplink's socket")]
    Queue(#[from] QueueError),
    #[error("the worker refused the socket")]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Worker(#[from] WorkerGone),
    #[error("the engine")]
    Engine(#[from] PortError),
}

#[derive(Debug)]
struct Open {
    spec: PortSpec,
    device: Device,
}

#[derive(Debug)]
enum Device {
    Container,
    Uplink {
        program: XdpProgram,
        queue: QueueId,
        traffic: UplinkTraffic,
        confirm_by: Option<Instant>,
    },
}

impl Device {
    fn start(&mut self, trial: Trial) {
        if let (Self::Uplink { confirm_by, .. }, Trial::For(time)) = (self, trial) {
            *confirm_by = Some(Instant::now() + time);
        }
    }

    fn is_late(&self, now: Instant) -> bool {
        match self {
            Self::Container => false,
            Self::Uplink { confirm_by, .. } => confirm_by.is_some_and(|by| by <= now),
        }
    }
}

/// What ports are made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) engine: Engine,
    pub(crate) offload: Arc<Offload>,
    pub(crate) worker: WorkerHandle<XskIo>,
    pub(crate) umem: Umem,
    pub(crate) events: Events,
    /// Interface index of the trunk.
    pub(crate) trunk: u32,
    /// What each container may send.
    pub(crate) limits: Limits,
}

/// All open ports.
#[derive(Debug)]
pub(crate) struct Ports {
    parts: Parts,
    open: Mutex<BTreeMap<PortId, Open>>,
    /// What the kernel counted on sockets that are closed.
    retired: Mutex<Vec<(QueueId, XskStats)>>,
    takeover: Mutex<Takeover>,
}

/// Whether the ports of the engine before this one are this one's.
#[derive(Debug)]
enum Takeover {
    /// There were no tables yet: these devices still have its programs.
    Waiting(BTreeSet<u32>),
    /// All of them are.
    Done,
}

impl Ports {
    pub(crate) fn new(parts: Parts) -> Self {
        let takeover = Mutex::new(Takeover::Waiting(BTreeSet::new()));
        Self { parts, open: Mutex::default(), retired: Mutex::default(), takeover }
    }

    /// Opens a device and makes it a port; returns its interface index.
    pub(crate) fn add(&self, new: &NewPort) -> Result<u32, PortsError> {
        let mut open = self.lock();
        let netlink = Netlink::open()?;
        let link = netlink.link_by_name(&new.name)?;
        let link =
            link.ok_or_else(|| PortsError::NoDevice { port: new.id, name: new.name.clone() })?;
        if link.index == self.parts.trunk {
            return Err(PortsError::Trunk { port: new.id, name: link.name });
        }
        let taken = open.values().find(|o| o.spec.ifindex == link.index && o.spec.id != new.id);
        if let Some(other) = taken {
            let existing = other.spec.id;
            return Err(PortsError::DeviceTaken { port: new.id, name: link.name, existing });
        }
        if let Some(old) = open.get_mut(&new.id) {
            if old.spec.ifindex == link.index {
                return again(old, new).map(|()| link.index);
            }
            if netlink.link_by_index(old.spec.ifindex)?.is_some() {
                let existing = old.spec.name.clone();
                return Err(PortsError::PortTaken { port: new.id, existing });
            }
        }
        if let Some(gone) = open.remove(&new.id) {
            self.close(vec![gone])?;
        }
        let opened = match &new.kind {
            NewKind::Container => self.open_container(new.id, &link)?,
            NewKind::Uplink(traffic, trial) => {
                let mut opened = self.open_uplink(new.id, &link, traffic, &open)?;
                opened.device.start(*trial);
                opened
            }
        };
        tracing::info!(port = %new.id, device = %link.name, ifindex = link.index, "port added");
        open.insert(new.id, opened);
        Ok(link.index)
    }

    /// Fences ports: nothing is received from them or sent to them when this returns.
    pub(crate) fn remove(&self, ports: &[PortId]) -> Result<(), PortsError> {
        let mut open = self.lock();
        let gone: Vec<Open> = ports.iter().filter_map(|port| open.remove(port)).collect();
        for Open { spec, .. } in &gone {
            tracing::info!(port = %spec.id, device = %spec.name, "port removed");
        }
        self.close(gone)
    }

    /// There are tables: containers whose host ends still have the program of the engine before this one
    /// are taken over.
    pub(crate) fn take_over(&self) {
        let mut takeover = self.takeover();
        if let Takeover::Waiting(devices) = &*takeover {
            for ifindex in devices {
                self.take_former(*ifindex);
            }
            *takeover = Takeover::Done;
        }
    }

    fn take_former(&self, ifindex: u32) {
        if let Err(error) = self.parts.offload.take_port(ifindex) {
            let error: &dyn std::error::Error = &error;
            // Most likely its device is gone, and nothing comes from it.
            tracing::warn!(ifindex, error, "a port of the engine before this one");
        }
    }

    /// A device of the engine before this one is not to be taken over any more: what it forwards ends.
    fn forget_former(&self, ifindex: u32) {
        if let Takeover::Waiting(devices) = &mut *self.takeover()
            && devices.remove(&ifindex)
        {
            self.take_former(ifindex);
        }
    }

    fn takeover(&self) -> MutexGuard<'_, Takeover> {
        // A device is in the set or taken over; what a panic leaves in it is taken over twice.
        self.takeover.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port stays: whoever added it has seen that the host still has its network.
    pub(crate) fn confirm(&self, port: PortId) -> Result<(), PortsError> {
        let mut open = self.lock();
        let found = open.get_mut(&port).ok_or(PortsError::Unknown { port })?;
        if let Device::Uplink { confirm_by, .. } = &mut found.device
            && confirm_by.take().is_some()
        {
            tracing::info!(%port, device = %found.spec.name, "uplink confirmed");
        }
        Ok(())
    }

    /// Gives back uplinks that nobody confirmed in time, and tells clients.
    pub(crate) fn roll_back(&self, now: Instant) -> Result<(), PortsError> {
        let mut open = self.lock();
        let late = open.values().filter(|o| o.device.is_late(now)).map(|o| o.spec.id);
        for port in late.collect::<Vec<_>>() {
            let Some(gone) = open.remove(&port) else { continue };
            let device = &gone.spec.name;
            tracing::error!(%port, %device, "nobody confirmed that the host still has its network over this uplink: it is the host's again");
            let closed = self.close(vec![gone]);
            self.parts.events.port_gone(port);
            closed?;
        }
        Ok(())
    }

    /// Fences ports whose device is gone and tells clients.
    pub(crate) fn fence_gone(&self, netlink: &Netlink) -> Result<(), PortsError> {
        let mut open = self.lock();
        let mut ports = Vec::new();
        for Open { spec, .. } in open.values() {
            if netlink.link_by_index(spec.ifindex)?.is_none() {
                tracing::warn!(port = %spec.id, device = %spec.name, "the port's device is gone");
                ports.push(spec.id);
            }
        }
        let closed = self.close(ports.iter().filter_map(|port| open.remove(port)).collect());
        for port in ports {
            self.parts.events.port_gone(port);
        }
        closed
    }

    /// Puts back programs that somebody removed: without its own a container's frames are the
    /// host's, and without the trunk's nothing reaches a container.
    pub(crate) fn restore_programs(&self) -> Result<(), PortsError> {
        let open = self.lock();
        if self.parts.offload.restore_trunk(self.parts.trunk)? {
            tracing::warn!("the trunk's tc program was removed; it is back");
        }
        for port in open.values().filter(|o| o.spec.kind == PortKind::Container) {
            if self.parts.offload.restore_port(port.spec.ifindex)? {
                let device = &port.spec.name;
                tracing::warn!(port = %port.spec.id, %device, "the port's tc program was removed; it is back");
            }
        }
        Ok(())
    }

    /// What the kernel counted on the sockets of uplinks that were removed.
    pub(crate) fn retired_stats(&self) -> Vec<(QueueId, XskStats)> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The uplink on an interface, with its link.
    pub(crate) fn uplink_on(&self, ifindex: u32) -> Option<PortId> {
        let open = self.lock();
        let found =
            open.values().find(|o| o.spec.ifindex == ifindex && o.spec.kind == PortKind::Uplink);
        found.map(|o| o.spec.id)
    }

    /// Name of the device that a queue is on; empty when it has just been closed.
    pub(crate) fn device_of(&self, queue: QueueId) -> String {
        if queue == QueueId::TRUNK {
            return trunk::FAR.to_owned();
        }
        let open = self.lock();
        let found = open.values().find(|o| o.spec.framing == Framing::Direct(queue));
        found.map(|o| o.spec.name.clone()).unwrap_or_default()
    }

    fn open_container(&self, id: PortId, link: &Link) -> Result<Open, PortsError> {
        // The program hands frames to the other end's namespace directly, which works towards
        // another namespace only.
        if link.kind.as_deref() != Some("veth") || link.peer_netns_id.is_none() {
            return Err(PortsError::NotContainer { port: id, name: link.name.clone() });
        }
        let spec = spec(id, link, PortKind::Container, Framing::Tagged);
        let Parts { engine, offload, limits, .. } = &self.parts;
        // Until there are tables, flows that the engine before this one has offloaded are better off
        // where they are; nothing else passes there.
        match &mut *self.takeover() {
            Takeover::Waiting(devices) if offload.has_program(link.index)? => {
                offload.prepare_port(link.index, id, *limits)?;
                devices.insert(link.index);
            }
            Takeover::Waiting(_) | Takeover::Done => {
                offload.attach_port(link.index, id, *limits)?;
            }
        }
        if let Err(error) = engine.add_port(spec.clone()) {
            self.forget_former(link.index);
            self.parts.offload.detach_ports(&[(link.index, id)])?;
            return Err(error.into());
        }
        Ok(Open { spec, device: Device::Container })
    }

    fn open_uplink(
        &self,
        id: PortId,
        link: &Link,
        traffic: &UplinkTraffic,
        open: &BTreeMap<PortId, Open>,
    ) -> Result<Open, PortsError> {
        let queue = free_queue(open)?;
        enough_frames(id, self.parts.umem.frames(), open)?;
        // The program passes everything to the host until it has a socket.
        let program = XdpProgram::attach(ProgramKind::Uplink, &link.name)?;
        if XskQueue::open(&self.parts.umem, &link.name, 1).is_ok() {
            return Err(PortsError::ManyQueues { port: id, name: link.name.clone() });
        }
        let socket = XskQueue::open(&self.parts.umem, &link.name, 0)?;
        let registered = program.set_socket(0, socket.fd());
        self.parts.worker.call(move |worker| worker.io_mut().attach(queue, socket))??;
        let spec = spec(id, link, PortKind::Uplink, Framing::Direct(queue));
        let added = registered
            .map_err(PortsError::from)
            .and_then(|()| Ok(self.parts.engine.add_port(spec.clone())?))
            .and_then(|()| take_traffic(&program, &link.name, traffic));
        let opened = Open {
            spec,
            device: Device::Uplink { program, queue, traffic: traffic.clone(), confirm_by: None },
        };
        if let Err(error) = added {
            self.close(vec![opened])?;
            return Err(error);
        }
        Ok(opened)
    }

    /// Worker and kernel are waited for once, however many there are: some 10 ms.
    fn close(&self, gone: Vec<Open>) -> Result<(), PortsError> {
        let ids: Vec<PortId> = gone.iter().map(|open| open.spec.id).collect();
        let (mut containers, mut queues) = (Vec::new(), Vec::new());
        for Open { spec, device } in gone {
            match device {
                Device::Container => {
                    self.forget_former(spec.ifindex);
                    containers.push((spec.ifindex, spec.id));
                }
                Device::Uplink { program, queue, .. } => {
                    drop(program);
                    queues.push(queue);
                }
            }
        }
        // A worker that is late is no reason to leave the rest open: nobody would close it.
        let forgotten = self.parts.engine.remove_ports(&ids);
        if !containers.is_empty() {
            self.parts.offload.detach_ports(&containers)?;
        }
        for queue in queues {
            self.close_socket(queue)?;
        }
        Ok(forgotten?)
    }

    fn close_socket(&self, queue: QueueId) -> Result<(), PortsError> {
        let detached = self.parts.worker.call(move |w| w.io_mut().detach(queue))?;
        let Some(detached) = detached else { return Ok(()) };
        if let Ok(stats) = detached.statistics() {
            self.retire(queue, stats);
        }
        // Closing waits for the kernel: here, not on the worker.
        let closed = detached.close();
        Ok(self.parts.worker.call(move |w| w.io_mut().reclaim(closed))?)
    }

    fn retire(&self, queue: QueueId, stats: XskStats) {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        match retired.iter_mut().find(|(of, _)| *of == queue) {
            Some((_, sum)) => *sum += stats,
            None => retired.push((queue, stats)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PortId, Open>> {
        // A port is in the map or closed; a panic between leaves it closed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same port once more: an uplink's traffic may have changed.
fn again(old: &mut Open, new: &NewPort) -> Result<(), PortsError> {
    match (&mut old.device, &new.kind) {
        (Device::Container, NewKind::Container) => Ok(()),
        (Device::Uplink { program, traffic, .. }, NewKind::Uplink(wanted, _)) => {
            if traffic != wanted {
                take_traffic(program, &new.name, wanted)?;
                traffic.clone_from(wanted);
            }
            Ok(())
        }
        (Device::Container, NewKind::Uplink(..)) | (Device::Uplink { .. }, NewKind::Container) => {
            let existing = format!("{} of the other kind", old.spec.name);
            Err(PortsError::PortTaken { port: new.id, existing })
        }
    }
}

fn take_traffic(
    program: &XdpProgram,
    name: &str,
    traffic: &UplinkTraffic,
) -> Result<(), PortsError> {
    if ethtool::get(name, Feature::RxVlan).ok() != Some(State::Off) {
        // The program looks for tags in the data: a frame of another VLAN whose tag the device has
        // taken out would pass for one of the underlay.
        if let Err(error) = ethtool::set(name, Feature::RxVlan, State::Off) {
            tracing::warn!(device = name, %error, "received VLAN tags may stay in the device");
        }
    }
    program.set_vids(&traffic.vids)?;
    program.set_vteps(&traffic.vteps)?;
    Ok(())
}

fn spec(id: PortId, link: &Link, kind: PortKind, framing: Framing) -> PortSpec {
    PortSpec { id, name: link.name.clone(), ifindex: link.index, kind, framing }
}

/// Every socket fills its receive ring when it is attached; one that finds no frames left would
/// receive nothing.
fn enough_frames(port: PortId, have: u32, open: &BTreeMap<PortId, Open>) -> Result<(), PortsError> {
    let uplinks = open.values().filter(|o| o.spec.kind == PortKind::Uplink).count() as u32;
    // The trunk, those that are there, and this one.
    let need = (uplinks + 2).saturating_mul(RING_SIZE);
    if have < need { Err(PortsError::Frames { port, have, need }) } else { Ok(()) }
}

fn free_queue(open: &BTreeMap<PortId, Open>) -> Result<QueueId, PortsError> {
    let used = |queue: QueueId| open.values().any(|o| o.spec.framing == Framing::Direct(queue));
    let queues = (QueueId::TRUNK.0 + 1..u16::MAX).map(QueueId);
    queues.into_iter().find(|q| !used(*q)).ok_or(PortsError::NoQueue)
}
