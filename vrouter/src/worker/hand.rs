//! Handing flows over: a flow that has carried enough is offered to the table that forwards without
//! the engine, and taken back before a packet of its connection is forwarded that may end it.

use flowtable::cache::Slot;
use flowtable::conn::{Hit, Seconds, Step};
use flowtable::key::tcp_flag;
use packet_io::PacketIo;

use super::decide::Flow;
use super::{FlowStats, Worker};
use crate::hot::{self, Hot, NotHot, Offer};
use crate::snapshot::Snapshot;

/// Flags of segments that begin or end a connection.
const ENDING: u8 = tcp_flag::SYN | tcp_flag::FIN | tcp_flag::RST;
/// Packets of a flow that can't be offloaded until it is looked at again: its connection may be
/// established, or offloading turned on.
const LATER: u64 = 256;

impl<I: PacketIo> Worker<I> {
    /// Packets of a flow before it is offered for the first time.
    pub(super) fn first_offer(&self) -> u64 {
        self.shared.hot.get().map_or(LATER, Hot::after_packets)
    }

    /// Offers a flow that has carried enough. One whose packets keep coming was refused, or has come
    /// back: it is offered again after as many, and at last after [`LATER`].
    #[cold]
    pub(super) fn offer(&mut self, slot: Slot, snapshot: &Snapshot, now: Seconds) {
        let key = *self.cache.key(slot);
        let flow = *self.cache.entry(slot);
        let offered = self.shared.hot.get().filter(|hot| hot.is_on()).is_some_and(|hot| {
            let decided = (&flow.decision, flow.hit);
            let fits = hot::judge(&key, decided, (&self.shared, snapshot), now).is_ok();
            fits && hot.offer(Offer { key, decision: flow.decision, hit: flow.hit })
        });
        let pause = if offered { flow.count.packets.min(LATER) } else { LATER };
        self.cache.entry_mut(slot).offer_at = flow.count.packets.saturating_add(pause);
    }

    /// Notes a packet of a connection. One that may begin or end it stops what is forwarded of it
    /// without the engine: from here on both ways are seen here.
    #[inline]
    pub(super) fn advance(&self, hit: Hit, tcp_flags: u8, now: Seconds) -> Step {
        let step = self.shared.memory.connections.advance(hit.conn, hit.way, tcp_flags, now);
        if tcp_flags & ENDING != 0
            && let Some(hot) = self.shared.hot.get()
        {
            hot.end(hit.conn);
        }
        step
    }

    /// The cached flows.
    #[must_use]
    pub fn flows(&self) -> Vec<FlowStats> {
        let snapshot = self.shared.snapshot.load_full();
        let now = self.shared.seconds();
        let stats = |(key, flow): (&_, &Flow)| FlowStats {
            key: *key,
            verdict: flow.decision.verdict,
            count: flow.count,
            not_hot: self.not_hot(key, flow, (&snapshot, now)),
        };
        self.cache.iter().map(stats).collect()
    }

    fn not_hot(
        &self,
        key: &flowtable::key::FlowKey,
        flow: &Flow,
        (snapshot, now): (&Snapshot, Seconds),
    ) -> Option<NotHot> {
        if !self.shared.hot.get().is_some_and(Hot::is_on) {
            return Some(NotHot::Off);
        }
        let decided = (&flow.decision, flow.hit);
        let judged = hot::judge(key, decided, (&self.shared, snapshot), now).err();
        judged.or_else(|| (flow.count.packets < self.first_offer()).then_some(NotHot::New))
    }
}
