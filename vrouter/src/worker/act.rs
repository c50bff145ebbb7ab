//! What is done to a packet: its actions, one after the other, and the way out.

use std::net::IpAddr;

use flowtable::action::{Exit, Pop};
use flowtable::ids::{PortId, Vni};
use flowtable::{ActionList, DropReason};
use packet_io::{Frame, PacketIo, QueueId, TRUNK_FRAME_BYTES};

use super::{Packet, Rx, Worker};
use crate::port::Framing;
use crate::rewrite::{self, Outer};
use crate::snapshot::Snapshot;
use crate::translate::{Headers, translate};

/// Where the parts of a frame are while its actions are executed.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    /// Offset of the (inner) network header; 0 when there is none to look at.
    pub(super) l3: usize,
    /// Offset of the inner Ethernet header.
    pub(super) inner: usize,
    /// Source port of an outer UDP header.
    pub(super) entropy: u16,
    /// Offset of the transport header; of one that comes in a tunnel or a VLAN it is not looked at.
    pub(super) l4: usize,
    /// The IP protocol.
    pub(super) proto: u8,
}

impl<I: PacketIo> Worker<I> {
    #[inline]
    pub(super) fn act(
        &mut self,
        frame: Frame,
        packet: &Packet,
        actions: &ActionList,
        snapshot: &Snapshot,
    ) {
        let &Packet { rx, ref parsed, hash, .. } = packet;
        let view = View {
            l3: usize::from(parsed.l3),
            inner: usize::from(parsed.inner),
            entropy: (hash >> 48) as u16,
            l4: usize::from(parsed.l4),
            proto: parsed.key.proto,
        };
        self.execute(frame, rx, (view, actions), snapshot);
    }

    /// Executes the actions and sends.
    #[inline]
    pub(super) fn execute(
        &mut self,
        mut frame: Frame,
        rx: Rx,
        (mut view, actions): (View, &ActionList),
        snapshot: &Snapshot,
    ) {
        match self.rewrite(&mut frame, actions, &mut view, snapshot) {
            Ok(port) => self.output(frame, rx, port, snapshot),
            Err(reason) => self.end(frame, rx, reason),
        }
    }

    /// All actions but the last, which is the port.
    #[inline]
    fn rewrite(
        &mut self,
        frame: &mut Frame,
        actions: &ActionList,
        view: &mut View,
        snapshot: &Snapshot,
    ) -> Result<PortId, DropReason> {
        match actions.pop {
            Pop::Nothing => {}
            Pop::Tunnel => self.decap(frame, view)?,
            Pop::Vlan => {
                view.l3 -= rewrite::TAG_BYTES;
                rewrite::pop_tag(&mut self.io, frame).ok_or(DropReason::Malformed)?;
            }
        }
        if let Some(route) = actions.route {
            rewrite::route(&mut self.io, frame, view.l3, (route.src, route.dst))
                .map_err(|_short| DropReason::Malformed)?;
        }
        if let Some(dscp) = actions.dscp {
            rewrite::mark(&mut self.io, frame, view.l3, dscp)
                .map_err(|_short| DropReason::Malformed)?;
        }
        match actions.exit {
            Exit::Plain(_) => {}
            Exit::Translated { end, to, .. } => {
                self.pop_priority(frame, view)?;
                let headers = Headers { l3: view.l3, l4: view.l4, proto: view.proto };
                translate(&mut self.io, frame, headers, end, to)
                    .map_err(|_short| DropReason::Malformed)?;
            }
            Exit::Vlan { vid, .. } => rewrite::push_tag(&mut self.io, frame, vid.get())
                .map_err(|_no_room| DropReason::TooBig)?,
            Exit::Tunnel { vtep, vni, .. } => {
                let class = rewrite::traffic_class(self.io.bytes(frame), view.l3);
                let outer = outer(snapshot, (vtep, vni), view.entropy, class)?;
                rewrite::encap(&mut self.io, frame, &outer)
                    .map_err(|_no_room| DropReason::TooBig)?;
            }
        }
        Ok(actions.output())
    }

    /// IEEE 802.1Q, table 9-2: a tag with identifier 0 says a priority and names no network, so no key
    /// tells of it. It ends where the wire does.
    fn pop_priority(&mut self, frame: &mut Frame, view: &mut View) -> Result<(), DropReason> {
        if view.l3 == rewrite::ETHERNET_BYTES {
            return Ok(());
        }
        rewrite::pop_tag(&mut self.io, frame).ok_or(DropReason::Malformed)?;
        view.l3 -= rewrite::TAG_BYTES;
        view.l4 -= rewrite::TAG_BYTES;
        Ok(())
    }

    #[inline]
    fn decap(&mut self, frame: &mut Frame, view: &mut View) -> Result<(), DropReason> {
        let outer = rewrite::traffic_class(self.io.bytes(frame), rewrite::ETHERNET_BYTES);
        view.l3 -= view.inner;
        frame.shrink_front(view.inner).map_err(|_short| DropReason::Malformed)?;
        rewrite::congestion(&mut self.io, frame, view.l3, outer)
    }

    #[inline]
    fn output(&mut self, mut frame: Frame, rx: Rx, port: PortId, snapshot: &Snapshot) {
        let Some(spec) = snapshot.ports.lookup(port).map(|p| &p.spec) else {
            return self.end(frame, rx, DropReason::PortGone);
        };
        let len = frame.len();
        let queue = match spec.framing {
            Framing::Direct(queue) => queue,
            Framing::Tagged => {
                if rewrite::push_tag(&mut self.io, &mut frame, port.get()).is_err() {
                    return self.end(frame, rx, DropReason::TooBig);
                }
                QueueId::TRUNK
            }
        };
        match self.io.tx(queue, frame) {
            Ok(()) => self.board.counters.port(port).tx.add(len),
            Err(frame) => self.detour(frame, rx, (port, queue)),
        }
    }

    /// The queue is full, or another worker has it: then the kernel takes the frame there, from this
    /// worker's trunk.
    #[cold]
    pub(super) fn detour(&mut self, mut frame: Frame, rx: Rx, (port, queue): (PortId, QueueId)) {
        if self.io.queues().contains(&queue) {
            return self.end(frame, rx, DropReason::TxFull);
        }
        let len = frame.len();
        // The kernel would drop it without a word.
        let fits = len <= TRUNK_FRAME_BYTES;
        if !fits || rewrite::push_tag(&mut self.io, &mut frame, port.get()).is_err() {
            return self.end(frame, rx, DropReason::TooBig);
        }
        match self.io.tx(QueueId::TRUNK, frame) {
            Ok(()) => self.board.counters.port(port).tx.add(len),
            Err(frame) => self.end(frame, rx, DropReason::TxFull),
        }
    }
}

/// Outer headers towards a tunnel end point. The decision that asks for them depends on the
/// underlay section, so a missing entry means the snapshot moved on within this burst.
fn outer(
    snapshot: &Snapshot,
    (vtep, vni): (IpAddr, Vni),
    entropy: u16,
    class: u8,
) -> Result<Outer, DropReason> {
    let src = *snapshot.networks.vteps.get(&vtep).ok_or(DropReason::UnknownVtep)?;
    let underlay = snapshot.underlay.get(&vtep).ok_or(DropReason::UnresolvedUnderlay)?;
    let (src_mac, dst_mac) = (underlay.src_mac, underlay.dst_mac);
    Ok(Outer { src_mac, dst_mac, src, dst: vtep, vni, entropy, class })
}
