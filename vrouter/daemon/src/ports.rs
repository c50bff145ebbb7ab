//! The devices behind ports: opening them for the engine and giving them back.
//!
//! A container's port is a tc program on its host end and a tag on the trunk; uplinks are in
//! `uplink.rs`. What is half open when a step fails is closed again. Adding a
//! port that is there and removing one that is not are fine: callers repeat themselves after a
//! restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use afxdp::{AttachError, ProgramError, QueueError, XskStats};
use flowtable::entry::NodePort;
use flowtable::ids::PortId;
use netdev::{Netlink, ethtool};
use offload::{Limits, Offload, OffloadError};
use packet_io::QueueId;
use vrouter::{Engine, Framing, PortError, PortKind, PortSpec, WorkerGone};

use crate::events::Events;
use crate::sockets::Sockets;
use crate::trunk;
use crate::tunnel::TunnelError;
use crate::uplink::{Active, Device, Found, NewUplink, Uplink};

/// A port to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewPort {
    pub(crate) id: PortId,
    /// Device name.
    pub(crate) name: String,
    pub(crate) kind: NewKind,
}

impl NewPort {
    fn devices(&self) -> impl Iterator<Item = &str> {
        let standby = match &self.kind {
            NewKind::Container => &[][..],
            NewKind::Uplink(uplink) => &uplink.standby,
        };
        std::iter::once(self.name.as_str()).chain(standby.iter().map(String::as_str))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NewKind {
    Container,
    Uplink(NewUplink),
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
    #[error("the uplink")]
    Ethtool(#[from] ethtool::Error),
    #[error("the tc programs")]
    Offload(#[from] OffloadError),
    #[error("tunnels of offloaded flows")]
    Tunnel(#[from] TunnelError),
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
enum Open {
    Container(PortSpec),
    Uplink(Uplink),
}

impl Open {
    /// The device's name and number; of an uplink, those of the port and of the device in use.
    fn device(&self) -> (String, u32) {
        match self {
            Self::Container(spec) => (spec.name.clone(), spec.ifindex),
            Self::Uplink(uplink) => {
                let spec = uplink.spec();
                (spec.name, spec.ifindex)
            }
        }
    }

    fn has(&self, ifindex: u32) -> bool {
        match self {
            Self::Container(spec) => spec.ifindex == ifindex,
            Self::Uplink(uplink) => uplink.has(ifindex),
        }
    }

    fn container(&self) -> Option<&PortSpec> {
        match self {
            Self::Container(spec) => Some(spec),
            Self::Uplink(_) => None,
        }
    }

    fn uplink(&self) -> Option<&Uplink> {
        match self {
            Self::Container(_) => None,
            Self::Uplink(uplink) => Some(uplink),
        }
    }

    fn uplink_mut(&mut self) -> Option<&mut Uplink> {
        match self {
            Self::Container(_) => None,
            Self::Uplink(uplink) => Some(uplink),
        }
    }
}

/// Containers to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    /// Some of those that come after this one; the kernel told of no change.
    After(PortId),
}

impl Which {
    /// 1,000 idle containers are to cost nothing: all are looked at within a minute.
    const SOME: usize = 32;

    fn covers(self, port: PortId) -> bool {
        match self {
            Self::All => true,
            Self::After(last) => port > last,
        }
    }

    const fn at_most(self) -> usize {
        match self {
            Self::All => usize::MAX,
            Self::After(_) => Self::SOME,
        }
    }
}

/// What ports are made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) engine: Engine,
    pub(crate) offload: Arc<Offload>,
    pub(crate) sockets: Sockets,
    pub(crate) events: Events,
    /// Interface indexes of the trunks.
    pub(crate) trunks: Vec<u32>,
    /// What each container may send.
    pub(crate) limits: Limits,
    /// Ports of the node that uplinks take; `None`: there were no tables yet.
    pub(crate) published: Mutex<Option<Arc<[NodePort]>>>,
}

impl Parts {
    pub(crate) fn published(&self) -> Option<Arc<[NodePort]>> {
        // It is replaced as a whole.
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All open ports.
#[derive(Debug)]
pub(crate) struct Ports {
    parts: Parts,
    open: Mutex<BTreeMap<PortId, Open>>,
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
        Self { parts, open: Mutex::default(), takeover }
    }

    /// Opens a device and makes it a port; returns its interface index.
    pub(crate) fn add(&self, new: &NewPort) -> Result<u32, PortsError> {
        let mut open = self.lock();
        let netlink = Netlink::open()?;
        self.is_free(&open, &netlink, new)?;
        if let Some(old) = open.get_mut(&new.id)
            && let Some(ifindex) = self.again(old, &netlink, new)?
        {
            return Ok(ifindex);
        }
        if let Some(gone) = open.remove(&new.id) {
            self.close(vec![(new.id, gone)])?;
        }
        let opened = match &new.kind {
            NewKind::Container => Open::Container(self.open_container(new, &netlink)?),
            NewKind::Uplink(uplink) => {
                let port = (new.id, new.name.as_str());
                Open::Uplink(Uplink::open(&self.parts, &netlink, port, uplink)?)
            }
        };
        let (device, ifindex) = opened.device();
        tracing::info!(port = %new.id, device, ifindex, "port added");
        open.insert(new.id, opened);
        Ok(ifindex)
    }

    /// The devices are no other port's.
    fn is_free(
        &self,
        open: &BTreeMap<PortId, Open>,
        netlink: &Netlink,
        new: &NewPort,
    ) -> Result<(), PortsError> {
        for name in new.devices() {
            let Some(link) = netlink.link_by_name(name)? else { continue };
            if self.parts.trunks.contains(&link.index) {
                return Err(PortsError::Trunk { port: new.id, name: link.name });
            }
            let taken = open.iter().find(|(id, o)| **id != new.id && o.has(link.index));
            if let Some((existing, _)) = taken {
                let existing = *existing;
                return Err(PortsError::DeviceTaken { port: new.id, name: link.name, existing });
            }
        }
        Ok(())
    }

    /// Fences ports: nothing is received from them or sent to them when this returns.
    pub(crate) fn remove(&self, ports: &[PortId]) -> Result<(), PortsError> {
        let mut open = self.lock();
        let gone = taken_out(&mut open, ports);
        for (port, gone) in &gone {
            tracing::info!(%port, device = %gone.device().0, "port removed");
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

    /// There are tables, which publish these ports of the node: uplinks take them from now on, and no others.
    pub(crate) fn publish(&self, published: Vec<NodePort>) -> Result<(), PortsError> {
        let mut open = self.lock();
        if self.parts.published().as_deref() == Some(&published[..]) {
            return Ok(());
        }
        let set = |published: Option<Arc<[NodePort]>>| {
            let mut held = self.parts.published.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *held, published)
        };
        let before = set(Some(published.into()));
        let mut uplinks = open.values_mut().filter_map(Open::uplink_mut);
        let taken = uplinks.try_for_each(|uplink| uplink.publish(&self.parts));
        if taken.is_err() {
            // Whoever writes again is not told that it is done.
            set(before);
        }
        taken
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
        if found.uplink_mut().is_some_and(Uplink::confirm) {
            tracing::info!(%port, device = %found.device().0, "uplink confirmed");
        }
        Ok(())
    }

    /// Gives back uplinks that nobody confirmed in time, and tells clients.
    pub(crate) fn roll_back(&self, now: Instant) -> Result<(), PortsError> {
        let mut open = self.lock();
        let is_late = |open: &Open| open.uplink().is_some_and(|uplink| uplink.is_late(now));
        let late = open.iter().filter(|(_, open)| is_late(open)).map(|(port, _)| *port);
        let late = late.collect::<Vec<_>>();
        for port in &late {
            tracing::error!(%port, "nobody confirmed that the host still has its network over this uplink: it is the host's again");
        }
        self.fence(&mut open, &late)
    }

    /// Fences containers whose device is gone, and tells clients. Puts back programs that somebody
    /// removed: without its own a container's frames are the host's. Returns the last one looked at.
    pub(crate) fn check(&self, netlink: &Netlink, which: Which) -> Result<PortId, PortsError> {
        let mut open = self.lock();
        let containers = open.iter().filter_map(|(port, open)| Some((*port, open.container()?)));
        let (mut gone, mut last) = (Vec::new(), PortId::MIN);
        for (port, spec) in containers.filter(|(port, _)| which.covers(*port)).take(which.at_most())
        {
            last = port;
            if netlink.link_by_index(spec.ifindex)?.is_none() {
                tracing::warn!(%port, device = %spec.name, "the port's device is gone");
                gone.push(port);
            } else if self.parts.offload.restore_port(spec.ifindex)? {
                tracing::warn!(%port, device = %spec.name, "the port's tc program was removed; it is back");
            }
        }
        self.fence(&mut open, &gone)?;
        Ok(last)
    }

    /// Moves uplinks whose device has no link to another one of theirs, and fences those that have none
    /// left. Returns whether one has moved.
    pub(crate) fn follow_uplinks(&self, netlink: &Netlink) -> Result<bool, PortsError> {
        let mut open = self.lock();
        let (mut moved, mut gone) = (false, Vec::new());
        for (port, uplink) in open.iter_mut().filter_map(|(p, o)| Some((*p, o.uplink_mut()?))) {
            match uplink.look(&self.parts, netlink)? {
                Found::Same => {}
                Found::Moved => moved = true,
                Found::Gone => gone.push(port),
            }
        }
        for port in &gone {
            tracing::warn!(%port, "the uplink has no device left");
        }
        self.fence(&mut open, &gone)?;
        Ok(moved)
    }

    /// Opens devices of uplinks that have come back.
    pub(crate) fn mend_uplinks(&self, netlink: &Netlink) -> Result<(), PortsError> {
        let mut open = self.lock();
        let mut uplinks = open.values_mut().filter_map(Open::uplink_mut);
        uplinks.try_for_each(|uplink| uplink.mend(&self.parts, netlink))
    }

    /// Whether an uplink has more than one device: then links have to be looked at often.
    pub(crate) fn has_standby(&self) -> bool {
        self.lock().values().filter_map(Open::uplink).any(Uplink::has_standby)
    }

    fn fence(&self, open: &mut BTreeMap<PortId, Open>, ports: &[PortId]) -> Result<(), PortsError> {
        let closed = self.close(taken_out(open, ports));
        for port in ports {
            self.parts.events.port_gone(*port);
        }
        closed
    }

    /// Puts back the programs that all depend on: without the trunk's nothing reaches a container.
    pub(crate) fn restore_programs(&self) -> Result<(), PortsError> {
        let open = self.lock();
        for ifindex in &self.parts.trunks {
            if self.parts.offload.restore_trunk(*ifindex)? {
                tracing::warn!(ifindex, "the trunk's tc program was removed; it is back");
            }
        }
        open.values().filter_map(Open::uplink).try_for_each(|uplink| uplink.restore(&self.parts))
    }

    /// What the kernel counted on the sockets of uplinks that were removed.
    pub(crate) fn retired_stats(&self) -> Vec<(QueueId, XskStats)> {
        self.parts.sockets.retired()
    }

    /// How frames leave by the uplink that has an interface.
    pub(crate) fn uplink_on(&self, ifindex: u32) -> Option<Active> {
        let open = self.lock();
        let mut uplinks = open.values().filter_map(Open::uplink);
        uplinks.find(|uplink| uplink.has(ifindex)).map(Uplink::active)
    }

    /// The devices of uplinks; none while one is being opened or closed, which may wait for a worker: who
    /// lists ports does not.
    pub(crate) fn devices(&self) -> BTreeMap<PortId, Vec<Device>> {
        let Ok(open) = self.open.try_lock() else { return BTreeMap::new() };
        let uplinks = open.iter().filter_map(|(port, open)| Some((*port, open.uplink()?)));
        uplinks.map(|(port, uplink)| (port, uplink.devices())).collect()
    }

    /// Name of the device that a queue of a worker is on; empty when it has just been closed.
    pub(crate) fn device_of(&self, worker: u16, queue: QueueId) -> String {
        if queue == QueueId::TRUNK {
            return trunk::far(worker);
        }
        let open = self.lock();
        let mut uplinks = open.values().filter_map(Open::uplink);
        uplinks.find_map(|uplink| uplink.device_of(queue)).unwrap_or_default().to_owned()
    }

    /// A port of that id once more. The same: an uplink's traffic may have changed, and this is the
    /// interface index. `None`: it is to be replaced, for its device is gone or is asked for in another
    /// way.
    fn again(
        &self,
        old: &mut Open,
        netlink: &Netlink,
        new: &NewPort,
    ) -> Result<Option<u32>, PortsError> {
        let (existing, ifindex) = old.device();
        if netlink.link_by_index(ifindex)?.is_none() {
            return Ok(None);
        }
        match (old, &new.kind) {
            (Open::Container(_), NewKind::Container) if existing == new.name => Ok(Some(ifindex)),
            (Open::Uplink(uplink), NewKind::Uplink(wanted)) if existing == new.name => {
                if !uplink.is_like(&new.name, wanted) {
                    return Ok(None);
                }
                uplink.change(&self.parts, &wanted.traffic)?;
                Ok(Some(ifindex))
            }
            (Open::Container(_) | Open::Uplink(_), NewKind::Container | NewKind::Uplink(_)) => {
                Err(PortsError::PortTaken { port: new.id, existing })
            }
        }
    }

    fn open_container(&self, new: &NewPort, netlink: &Netlink) -> Result<PortSpec, PortsError> {
        let id = new.id;
        let link = netlink.link_by_name(&new.name)?;
        let link = link.ok_or_else(|| PortsError::NoDevice { port: id, name: new.name.clone() })?;
        // The program hands frames to the other end's namespace directly, which works towards
        // another namespace only.
        if link.kind.as_deref() != Some("veth") || link.peer_netns_id.is_none() {
            return Err(PortsError::NotContainer { port: id, name: link.name });
        }
        let spec = PortSpec {
            id,
            name: link.name,
            ifindex: link.index,
            kind: PortKind::Container,
            framing: Framing::Tagged,
            standby: Vec::new(),
        };
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
        Ok(spec)
    }

    /// Worker and kernel are waited for once, however many containers there are: some 10 ms.
    fn close(&self, gone: Vec<(PortId, Open)>) -> Result<(), PortsError> {
        let (mut closed, mut ids, mut devices) = (Ok(()), Vec::new(), Vec::new());
        for (port, open) in gone {
            match open {
                Open::Uplink(uplink) => closed = closed.and(uplink.close(&self.parts)),
                Open::Container(spec) => {
                    // At once: another device may get the index of one that is gone.
                    self.parts.offload.end_flows(port);
                    self.forget_former(spec.ifindex);
                    ids.push(port);
                    devices.push((spec.ifindex, port));
                }
            }
        }
        if devices.is_empty() {
            return closed;
        }
        // A worker that is late is no reason to leave the rest open: nobody would close it.
        let forgotten = self.parts.engine.remove_ports(&ids);
        self.parts.offload.detach_ports(&devices)?;
        closed.and(forgotten.map_err(PortsError::from))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PortId, Open>> {
        // A port is in the map or closed; a panic between leaves it closed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn taken_out(open: &mut BTreeMap<PortId, Open>, ports: &[PortId]) -> Vec<(PortId, Open)> {
    ports.iter().filter_map(|port| Some((*port, open.remove(port)?))).collect()
}
