//! One uplink: a port on a device of the host's, or on several that lead to the same network.
//!
//! Frames are taken from every device and leave by one. When that one has no link, the next takes
//! over: the port stays what it is to the tables, and neighbours are told where its addresses are. A
//! device that goes away and comes back is opened again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use afxdp::Flooded;
use flowtable::entry::{Entry, NodePort};
use flowtable::ids::{Mac, PortId, Vid};
use netdev::ethtool::{self, Feature, State};
use netdev::packet::{PacketSocket, Promiscuous};
use netdev::{Carrier, Link, Netlink};
use offload::Picked;
use packet_io::QueueId;
use vrouter::{Engine, Framing, PortKind, PortSpec, announcement};

use crate::ports::{Parts, PortsError};
use crate::sockets::Direct;
use crate::tunnel::{self, Tunnelling};

/// Where the two MAC addresses of a frame end.
const TAG_AT: usize = 12;
const VLAN: [u8; 2] = [0x81, 0x00];

/// An uplink to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewUplink {
    pub(crate) mode: Mode,
    /// More devices to the same network, in the order in which they take over.
    pub(crate) standby: Vec<String>,
    pub(crate) traffic: UplinkTraffic,
    pub(crate) trial: Trial,
}

/// How engine and host share the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A socket and an XDP program.
    Dedicated,
    /// A tc program and the trunk.
    Shared,
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

/// An open uplink.
#[derive(Debug)]
pub(crate) struct Uplink {
    id: PortId,
    mode: Mode,
    traffic: UplinkTraffic,
    /// In order of preference; the first gives the port its name.
    legs: Vec<Leg>,
    /// Place of the leg in use; it is open.
    active: usize,
    confirm_by: Option<Instant>,
    /// A dedicated one with published ports: the tc program is on its devices too.
    guarded: bool,
    /// Neighbours are to be told once more: the first time may have been lost with the old way.
    announce_again: bool,
    tunnels: Tunnelling,
}

/// One device.
#[derive(Debug)]
struct Leg {
    name: String,
    /// As it was when the device was last there; 0: it never was.
    ifindex: u32,
    mac: Mac,
    carrier: bool,
    open: Option<Way>,
    /// Opening it failed, and that was said.
    failed: bool,
    /// Held: frames for containers' MAC addresses pass the device's filter.
    promiscuous: Option<Promiscuous>,
}

#[derive(Debug)]
enum Way {
    Direct(Direct),
    Shared,
}

/// The device that an uplink's frames leave by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Active {
    pub(crate) port: PortId,
    pub(crate) ifindex: u32,
    pub(crate) mac: Mac,
    /// Another one may have been in use a moment ago.
    pub(crate) has_standby: bool,
}

/// How one of an uplink's devices is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    /// 0: it has never been there.
    pub(crate) ifindex: u32,
    /// The uplink's frames leave by it.
    pub(crate) is_active: bool,
    /// For people and scripts: `up`, `closed` when no frame is taken from it, `down` without a link, `gone`.
    pub(crate) state: &'static str,
}

/// What a look at an uplink's devices found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing to do.
    Same,
    /// Another device is in use.
    Moved,
    /// No device is left.
    Gone,
}

impl Uplink {
    /// Opens the devices that are there, at least one. What fails is undone.
    pub(crate) fn open(
        parts: &Parts,
        netlink: &Netlink,
        (id, name): (PortId, &str),
        new: &NewUplink,
    ) -> Result<Self, PortsError> {
        let names = std::iter::once(name).chain(new.standby.iter().map(String::as_str));
        let legs = names.map(|name| Leg::find(netlink, name)).collect::<Result<Vec<_>, _>>()?;
        let usable = legs.iter().position(Leg::is_usable);
        let Some(active) = usable.or_else(|| legs.iter().position(|leg| leg.ifindex != 0)) else {
            return Err(PortsError::NoDevice { port: id, name: name.to_owned() });
        };
        let (mode, traffic) = (new.mode, new.traffic.clone());
        let confirm_by = match new.trial {
            Trial::None => None,
            Trial::For(time) => Some(Instant::now() + time),
        };
        let (guarded, announce_again, tunnels) = (false, false, Tunnelling::No);
        let mut opened =
            Self { id, mode, traffic, legs, active, confirm_by, guarded, announce_again, tunnels };
        match opened.start(parts) {
            Ok(()) => {
                opened.tend_tunnels(parts, netlink);
                Ok(opened)
            }
            Err(error) => {
                opened.close(parts)?;
                Err(error)
            }
        }
    }

    fn start(&mut self, parts: &Parts) -> Result<(), PortsError> {
        if self.has_trunk(parts) {
            parts.offload.open_uplink(self.id, self.legs[self.active].ifindex)?;
        }
        for leg in self.legs.iter_mut().filter(|leg| leg.ifindex != 0) {
            leg.open(parts, self.id, self.mode)?;
        }
        parts.engine.add_port(self.spec())?;
        self.take_traffic(parts)
    }

    /// Gives every device back to the host. A worker that is late is no reason to leave the rest open:
    /// nobody would close it.
    pub(crate) fn close(mut self, parts: &Parts) -> Result<(), PortsError> {
        let mut closed = Ok(());
        // The programs first: what comes from now on is the host's.
        let ways = self.legs.iter_mut().filter_map(|leg| Some((leg.ifindex, leg.open.take()?)));
        let queues = ways.filter_map(|(ifindex, way)| {
            let queue = match way {
                Way::Direct(Direct { program, queue }) => {
                    drop(program);
                    Some(queue)
                }
                Way::Shared => None,
            };
            // A shared one's, or a guard.
            if let Err(error) = parts.offload.leave_uplink(self.id, ifindex) {
                closed = Err(error.into());
            }
            queue
        });
        let queues = queues.collect::<Vec<_>>();
        closed = closed.and(self.tunnels.end(&parts.offload, self.id).map_err(PortsError::from));
        if self.has_trunk(parts) {
            closed = closed.and(parts.offload.close_uplink(self.id).map_err(PortsError::from));
        }
        let forgotten = parts.engine.remove_ports(&[self.id]);
        queues.into_iter().try_for_each(|queue| parts.sockets.close(queue))?;
        closed.and(forgotten.map_err(PortsError::from))
    }

    /// Frames leave over a trunk: all of them, or those of workers without a socket.
    fn has_trunk(&self, parts: &Parts) -> bool {
        self.mode == Mode::Shared || self.guarded || parts.sockets.are_shared()
    }

    /// As the engine knows it.
    pub(crate) fn spec(&self) -> PortSpec {
        let active = &self.legs[self.active];
        let queue_of = |leg: &Leg| match &leg.open {
            Some(Way::Direct(direct)) => Some(direct.queue),
            Some(Way::Shared) | None => None,
        };
        let own = queue_of(active);
        let queues = self.legs.iter().filter_map(queue_of);
        PortSpec {
            id: self.id,
            name: self.legs[0].name.clone(),
            ifindex: active.ifindex,
            kind: PortKind::Uplink,
            framing: own.map_or(Framing::Tagged, Framing::Direct),
            standby: queues.filter(|queue| Some(*queue) != own).collect(),
        }
    }

    /// Whether it is what `new` asks for, the traffic apart.
    pub(crate) fn is_like(&self, name: &str, new: &NewUplink) -> bool {
        let names = std::iter::once(name).chain(new.standby.iter().map(String::as_str));
        self.mode == new.mode && self.legs.iter().map(|leg| leg.name.as_str()).eq(names)
    }

    /// Takes other traffic from now on.
    pub(crate) fn change(
        &mut self,
        parts: &Parts,
        traffic: &UplinkTraffic,
    ) -> Result<(), PortsError> {
        if self.traffic == *traffic {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.traffic, traffic.clone());
        let taken = self.take_traffic(parts);
        if taken.is_err() {
            // Whoever asks again is not told that it is done.
            self.traffic = before;
        }
        taken
    }

    /// Nobody confirmed it in time.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        self.confirm_by.is_some_and(|by| by <= now)
    }

    /// Returns whether it was on trial.
    pub(crate) fn confirm(&mut self) -> bool {
        self.confirm_by.take().is_some()
    }

    /// One of its devices has, or last had, this number.
    pub(crate) fn has(&self, ifindex: u32) -> bool {
        self.legs.iter().any(|leg| leg.ifindex == ifindex)
    }

    /// Its devices, in the order in which they take over.
    pub(crate) fn devices(&self) -> Vec<Device> {
        let device = |(place, leg): (usize, &Leg)| Device {
            name: leg.name.clone(),
            ifindex: leg.ifindex,
            is_active: place == self.active,
            state: match leg {
                Leg { ifindex: 0, .. } => "gone",
                Leg { carrier: false, .. } => "down",
                Leg { open: None, .. } => "closed",
                Leg { .. } => "up",
            },
        };
        self.legs.iter().enumerate().map(device).collect()
    }

    pub(crate) fn has_standby(&self) -> bool {
        self.legs.len() > 1
    }

    pub(crate) fn active(&self) -> Active {
        let Leg { ifindex, mac, .. } = self.legs[self.active];
        Active { port: self.id, ifindex, mac, has_standby: self.has_standby() }
    }

    /// The device that a queue is on.
    pub(crate) fn device_of(&self, queue: QueueId) -> Option<&str> {
        let on_queue = |leg: &&Leg| match &leg.open {
            Some(Way::Direct(direct)) => direct.queue == queue,
            Some(Way::Shared) | None => false,
        };
        self.legs.iter().find(on_queue).map(|leg| leg.name.as_str())
    }

    /// Looks at the devices: moves to another one if that in use has no link, and closes those that are
    /// gone.
    pub(crate) fn look(&mut self, parts: &Parts, netlink: &Netlink) -> Result<Found, PortsError> {
        for leg in self.legs.iter_mut().filter(|leg| leg.open.is_some()) {
            let link = netlink.link_by_index(leg.ifindex)?;
            match &link {
                Some(link) => leg.know(link),
                None => leg.close(parts, self.id)?,
            }
        }
        let in_use = &self.legs[self.active];
        if in_use.open.is_some() && (in_use.carrier || !self.has_standby()) {
            return Ok(Found::Same);
        }
        let open = |leg: &Leg| leg.open.is_some();
        let next = self.legs.iter().position(|leg| open(leg) && leg.carrier);
        match next.or_else(|| self.legs.iter().position(open)) {
            None => Ok(Found::Gone),
            // No device has a link: any is as good as the one in use.
            Some(_) if next.is_none() && in_use.open.is_some() => Ok(Found::Same),
            Some(next) => self.move_to(parts, next).map(|()| Found::Moved),
        }
    }

    /// Opens devices that have come back, and tells neighbours once more who moved.
    pub(crate) fn mend(&mut self, parts: &Parts, netlink: &Netlink) -> Result<(), PortsError> {
        if std::mem::take(&mut self.announce_again) {
            self.announce(&parts.engine);
        }
        self.tend_tunnels(parts, netlink);
        let mut joined = false;
        for leg in self.legs.iter_mut().filter(|leg| leg.open.is_none()) {
            let Some(link) = netlink.link_by_name(&leg.name)? else { continue };
            leg.know(&link);
            match leg.open(parts, self.id, self.mode) {
                Ok(()) => joined = true,
                Err(error) if !leg.failed => {
                    leg.failed = true;
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(port = %self.id, device = %leg.name, error, "a standby device");
                }
                Err(_said) => {}
            }
        }
        if joined {
            parts.engine.move_port(self.spec())?;
            self.take_traffic(parts)?;
        }
        Ok(())
    }

    /// Of several devices the kernel would not take the one that the engine does.
    fn tend_tunnels(&mut self, parts: &Parts, netlink: &Netlink) {
        let vteps = &self.traffic.vteps;
        let can = self.mode == Mode::Shared && !self.has_standby() && !vteps.is_empty();
        let way = tunnel::Way { port: self.id, ifindex: self.legs[self.active].ifindex, vteps };
        self.tunnels.tend(&parts.offload, netlink, (way, can));
    }

    /// Puts back tc programs that somebody removed.
    pub(crate) fn restore(&self, parts: &Parts) -> Result<(), PortsError> {
        if self.mode == Mode::Dedicated && !self.guarded {
            return Ok(());
        }
        for leg in self.legs.iter().filter(|leg| leg.open.is_some()) {
            if parts.offload.restore_uplink(leg.ifindex)? {
                tracing::warn!(port = %self.id, device = %leg.name, "the uplink's tc program was removed; it is back");
            }
        }
        Ok(())
    }

    fn move_to(&mut self, parts: &Parts, next: usize) -> Result<(), PortsError> {
        let (from, to) = (&self.legs[self.active], &self.legs[next]);
        tracing::warn!(port = %self.id, from = %from.name, to = %to.name, "the uplink has no link: it moves");
        let before = std::mem::replace(&mut self.active, next);
        let moved = self.use_active(parts);
        if moved.is_ok() {
            self.announce(&parts.engine);
            self.announce_again = true;
        } else {
            // The next look tries again.
            self.active = before;
        }
        moved
    }

    fn use_active(&mut self, parts: &Parts) -> Result<(), PortsError> {
        if self.has_trunk(parts) {
            parts.offload.switch_uplink(self.id, self.legs[self.active].ifindex)?;
        }
        parts.engine.move_port(self.spec())?;
        self.take_traffic(parts)
    }

    fn take_traffic(&mut self, parts: &Parts) -> Result<(), PortsError> {
        for (place, leg) in self.legs.iter_mut().enumerate() {
            let is_active = place == self.active;
            let flooded = if is_active { Flooded::Taken } else { Flooded::Passed };
            leg.take(&self.traffic, flooded)?;
        }
        self.publish(parts)
    }

    /// Takes what the tables publish, if there are tables.
    pub(crate) fn publish(&mut self, parts: &Parts) -> Result<(), PortsError> {
        let published = parts.published();
        if self.mode == Mode::Shared {
            let (UplinkTraffic { vteps, vids }, published) = (&self.traffic, published.as_deref());
            let published = published.unwrap_or_default();
            parts.offload.pick(self.id, Picked { vteps, vids, published })?;
            return Ok(());
        }
        let Some(published) = published else { return Ok(()) };
        for leg in &self.legs {
            if let Some(Way::Direct(Direct { program, .. })) = &leg.open {
                program.set_published(&published)?;
            }
        }
        self.guard(parts, &published)
    }

    /// On a dedicated uplink the XDP program goes with this process, and what it took is the host's. That
    /// would answer packets to published ports, whose connections it does not know, with a reset:
    /// so the tc program, which stays, drops them meanwhile.
    fn guard(&mut self, parts: &Parts, published: &[NodePort]) -> Result<(), PortsError> {
        let open = self.legs.iter().filter(|leg| leg.open.is_some());
        let mut devices = open.map(|leg| leg.ifindex);
        if published.is_empty() && !self.guarded {
            // What the engine before this one has left.
            devices.try_for_each(|ifindex| parts.offload.clear_uplink(ifindex))?;
            return Ok(());
        }
        if !self.has_trunk(parts) {
            parts.offload.open_uplink(self.id, self.legs[self.active].ifindex)?;
        }
        parts.offload.pick(self.id, Picked { vteps: &[], vids: &[], published })?;
        for ifindex in devices {
            parts.offload.join_uplink(self.id, ifindex)?;
        }
        self.guarded = true;
        Ok(())
    }

    /// Tells neighbours that the node's tunnel end points, and its containers of VLAN networks, are
    /// reached over the device in use.
    fn announce(&self, engine: &Engine) {
        let active = &self.legs[self.active];
        let own = self.traffic.vteps.iter().map(|ip| announcement(*ip, active.mac));
        let frames = own.chain(announcements_of_containers(engine, self.id));
        let sent = PacketSocket::open(&active.name).and_then(|socket| {
            frames.into_iter().try_fold(0_u32, |count, frame| {
                socket.send(&frame)?;
                Ok(count + 1)
            })
        });
        match sent {
            Ok(count) => tracing::info!(port = %self.id, device = %active.name, count, "announced"),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(port = %self.id, device = %active.name, error, "announcing");
            }
        }
    }
}

impl Leg {
    fn find(netlink: &Netlink, name: &str) -> Result<Self, PortsError> {
        let (open, failed, promiscuous) = (None, false, None);
        let (name, mac) = (name.to_owned(), Mac([0; 6]));
        let mut leg = Self { name, ifindex: 0, mac, carrier: false, open, failed, promiscuous };
        if let Some(link) = netlink.link_by_name(&leg.name)? {
            leg.know(&link);
        }
        Ok(leg)
    }

    fn know(&mut self, link: &Link) {
        (self.ifindex, self.mac) = (link.index, Mac(link.mac));
        self.carrier = link.up && link.carrier == Carrier::Present;
    }

    fn is_usable(&self) -> bool {
        self.ifindex != 0 && self.carrier
    }

    fn open(&mut self, parts: &Parts, port: PortId, mode: Mode) -> Result<(), PortsError> {
        let way = match mode {
            Mode::Dedicated => Way::Direct(parts.sockets.open(port, &self.name)?),
            Mode::Shared => {
                parts.offload.join_uplink(port, self.ifindex)?;
                Way::Shared
            }
        };
        (self.open, self.failed) = (Some(way), false);
        Ok(())
    }

    fn close(&mut self, parts: &Parts, port: PortId) -> Result<(), PortsError> {
        (self.carrier, self.promiscuous) = (false, None);
        tracing::warn!(%port, device = %self.name, "a device of the uplink is gone");
        parts.offload.leave_uplink(port, self.ifindex)?;
        match self.open.take() {
            Some(Way::Direct(Direct { program, queue })) => {
                drop(program);
                parts.sockets.close(queue)
            }
            Some(Way::Shared) | None => Ok(()),
        }
    }

    fn take(&mut self, traffic: &UplinkTraffic, flooded: Flooded) -> Result<(), PortsError> {
        if let Some(Way::Direct(Direct { program, .. })) = &self.open {
            see_tags(&self.name);
            program.set_vids(&traffic.vids, flooded)?;
            program.set_vteps(&traffic.vteps)?;
        }
        self.promiscuous = match self.promiscuous.take() {
            _ if traffic.vids.is_empty() || self.open.is_none() => None,
            None => self.widen_filter(),
            held => held,
        };
        Ok(())
    }

    /// Frames of VLAN networks are for containers' MAC addresses, which a real device's filter does not
    /// know.
    fn widen_filter(&self) -> Option<Promiscuous> {
        match Promiscuous::open(&self.name) {
            Ok(held) => Some(held),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(device = %self.name, error, "frames for containers' MACs may be filtered");
                None
            }
        }
    }
}

/// The program looks for tags in the data: a frame of another VLAN whose tag the device has taken out
/// would pass for one of the underlay.
fn see_tags(device: &str) {
    if ethtool::get(device, Feature::RxVlan).ok() == Some(State::Off) {
        return;
    }
    if let Err(error) = ethtool::set(device, Feature::RxVlan, State::Off) {
        tracing::warn!(device, %error, "received VLAN tags may stay in the device");
    }
}

/// One frame for each address of a container whose network is a VLAN of this uplink, with its tag.
fn announcements_of_containers(engine: &Engine, uplink: PortId) -> Vec<Vec<u8>> {
    let entries = engine.entries();
    let (mut vids, mut frames) = (BTreeMap::new(), Vec::new());
    for stats in &entries {
        if let Entry::Network(network) = &stats.entry
            && let Some((_, vid)) = network.wire.filter(|(port, _)| *port == uplink)
        {
            vids.insert(network.bd, vid);
        }
    }
    for stats in &entries {
        if let Entry::Port(container) = &stats.entry
            && let Some(vid) = vids.get(&container.bd)
        {
            let announced = container.ips.iter().map(|ip| announcement(*ip, container.mac));
            frames.extend(announced.map(|frame| tagged(*vid, &frame)));
        }
    }
    frames
}

fn tagged(vid: Vid, frame: &[u8]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(TAG_AT);
    [addresses, &VLAN, &vid.get().to_be_bytes(), rest].concat()
}
