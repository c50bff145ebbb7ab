//! The short way of most packets: plain ones ([`flowtable::key::Brief`]) of a flow that the exact cache
//! knows, whose decision holds, that change nothing of their connection, and that nothing but a
//! route and a way out awaits. Everything else, and whatever is not sure here, goes the long way,
//! which would do the same: nothing is counted or changed before the packet is known to go this one.

use flowtable::action::{Exit, Pop, Rewrite};
use flowtable::cache::Slot;
use flowtable::conn::{Seconds, Step};
use flowtable::ids::{PortId, Vni};
use flowtable::key::Layout;
use flowtable::{ActionList, DropReason, Verdict};
use packet_io::{Frame, PacketIo, QueueId};

use super::{Packet, Worker};
use crate::counters::Tier;
use crate::pipeline::Decision;
use crate::plain;
use crate::port::Framing;
use crate::rewrite;
use crate::snapshot::Snapshot;

/// The short way of a flow, which holds as long as its decision.
#[derive(Debug, Clone, Copy)]
pub(super) struct Short {
    route: Option<Rewrite>,
    exit: ShortExit,
}

#[derive(Debug, Clone, Copy)]
enum ShortExit {
    /// To a container.
    Trunk(PortId),
    /// Into a tunnel, with the outer headers at this place ([`plain::Heads`]).
    Tunnel { port: PortId, queue: QueueId, head: u16, vni: Vni },
}

impl Short {
    /// `None`: packets with this decision are metered or marked, or leave in another way.
    pub(super) fn of(decision: &Decision, snapshot: &Snapshot) -> Option<Self> {
        let Verdict::Forward(ActionList { pop, route, dscp: None, exit }) = decision.verdict else {
            return None;
        };
        let exit = match exit {
            Exit::Plain(port) => {
                snapshot.ports.on_trunk(port)?;
                ShortExit::Trunk(port)
            }
            Exit::Tunnel { port, vtep, vni } if pop == Pop::Nothing => {
                let queue = match snapshot.ports.lookup(port)?.spec.framing {
                    Framing::Direct(queue) => queue,
                    Framing::Tagged => QueueId::TRUNK,
                };
                ShortExit::Tunnel { port, queue, head: snapshot.heads.position(vtep)?, vni }
            }
            Exit::Tunnel { .. } | Exit::Vlan { .. } | Exit::Translated { .. } => return None,
        };
        decision.meters.is_empty().then_some(Self { route, exit })
    }
}

impl<I: PacketIo> Worker<I> {
    /// Forwards the packet, or gives it back as it is.
    #[inline(always)]
    pub(super) fn express(
        &mut self,
        frame: Frame,
        packet: &Packet,
        snapshot: &Snapshot,
        now: Seconds,
    ) -> Option<Frame> {
        let Some(layout) = packet.folded else { return Some(frame) };
        let Some(slot) = self.cache.find(packet.hint, &packet.brief) else { return Some(frame) };
        let flow = self.cache.entry(slot);
        let offered = flow.count.packets + 1 >= flow.offer_at;
        if offered || !packet.quiet || !flow.decision.holds_on(snapshot) {
            return Some(frame);
        }
        if now >= flow.quiet_until && !self.note_connection(slot, packet.tcp_flags, now) {
            return Some(frame);
        }
        let flow = self.cache.entry_mut(slot);
        let Some(short) = flow.short else { return Some(frame) };
        flow.count.add(packet.rx.len);
        self.board.counters.add_rules(flow.decision.slots, packet.tenant_len as usize);
        self.tiers[Tier::Exact as usize] += 1;
        self.send(frame, packet, (layout, short), snapshot);
        None
    }

    /// Rewrites the headers in one go, and sends.
    #[inline(always)]
    fn send(
        &mut self,
        mut frame: Frame,
        packet: &Packet,
        (layout, short): (Layout, Short),
        snapshot: &Snapshot,
    ) {
        let route = &short.route;
        let (port, queue, rewritten) = match short.exit {
            ShortExit::Trunk(port) => {
                let len = plain::deliver(&mut self.io, &mut frame, (layout, route), port);
                (port, QueueId::TRUNK, len)
            }
            ShortExit::Tunnel { port, queue, head, vni } => {
                // As long as the decision holds, they are there.
                let Some(head) = snapshot.heads.get(head) else {
                    return self.end(frame, packet.rx, DropReason::UnresolvedUnderlay);
                };
                let outer = (head, vni, (packet.hash >> 48) as u16);
                let len = plain::encap(&mut self.io, &mut frame, (layout, route), outer);
                let tagged = len.and_then(|len| match queue {
                    QueueId::TRUNK => {
                        rewrite::push_tag(&mut self.io, &mut frame, port.get()).map(|()| len)
                    }
                    _ => Ok(len),
                });
                (port, queue, tagged)
            }
        };
        let Ok(len) = rewritten else { return self.end(frame, packet.rx, DropReason::TooBig) };
        match self.io.tx(queue, frame) {
            Ok(()) => self.board.counters.port(port).tx.add(len),
            Err(frame) => self.detour(frame, packet.rx, (port, queue)),
        }
    }

    /// Notes a packet that changes nothing of its connection, for this second; says whether that is so. If
    /// not, nothing happened that does not happen again on the long way.
    #[cold]
    fn note_connection(&mut self, slot: Slot, tcp_flags: u8, now: Seconds) -> bool {
        let flow = self.cache.entry(slot);
        let (Some(hit), Some(_)) = (flow.hit, &flow.short) else { return false };
        let settled = self.advance(hit, tcp_flags, now) == Step::Live { settled: true };
        if settled {
            self.cache.entry_mut(slot).quiet_until = Seconds(now.0.saturating_add(1));
        }
        settled
    }

    /// Says in full what was read of a packet in brief, and takes the trunk's tag off.
    #[inline]
    pub(super) fn unfold(&mut self, frame: &mut Frame, packet: &mut Packet) {
        let Some(layout) = packet.folded.take() else { return };
        if layout == Layout::Tagged {
            // It has one: that is how it was read.
            rewrite::pop_tag(&mut self.io, frame);
        }
        packet.parsed = packet.brief.parsed(layout, packet.tcp_flags);
    }
}
