//! A packet's life, on one screen: [`Worker::poll`] and [`Worker::forward`].
//!
//! ```text
//! rx burst -> whose? -> read -> T1 exact -> T2 masked -> T3 pipeline -> meters -> act -> tx
//!                                   |                              '-> wait -'      |
//!                                   '------------- express (settled) --------------'
//! \______ the whole burst ______/ \________________ packet by packet _______________/
//! ```
//!
//! A flow that has carried enough is offered to who forwards it without the worker (`hand`), and taken
//! back before a packet is forwarded that may end its connection.
//!
//! The worker owns its I/O, its flow caches, its share of the meters, the packets that wait for
//! tokens, and its counters. It reads the published snapshot once a
//! burst and allocates nothing and makes no system call for a packet; only [`PacketIo::flush`] and,
//! when idle, [`PacketIo::wait`] do. It locks nothing for a packet of a settled connection or of a
//! stateless tenant. What all workers share: a shard of the connection table, locked when a flow is
//! new to this worker or belongs to no connection, the budgets of ports (atomics) and tenants (locked)
//! for new flows, and the fragments, locked for fragments.

mod act;
mod answer;
mod board;
mod decide;
mod express;
mod hand;
mod receive;
mod shape;
mod watch;
mod work;

use std::mem::take;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use crossbeam::channel::Sender;
use crossbeam::queue::ArrayQueue;
use flowtable::cache::FlowCache;
use flowtable::conn::Seconds;
use flowtable::ids::RuleId;
use flowtable::key::{FlowKey, KeyHasher, Parsed};
use flowtable::meter::{Colour, MeterBank, MeterLease};
use flowtable::{DropReason, Verdict};
use packet_io::{Frame, PacketIo, QueueId};

use crate::budget::Budgets;
use crate::connections::Memory;
use crate::counters::{Count, Counters, TIER_COUNT};
use crate::droplog::{DropLog, Dropped};
use crate::hot::{Hot, NotHot};
use crate::mailbox::Call;
use crate::masked::MaskedCache;
use crate::pipeline::Decision;
use crate::sample::{Sample, Sampler};
use crate::slow::{Punted, Reply};
use crate::snapshot::Snapshot;
use crate::trace::Charged;
use decide::Flow;
use shape::Shaper;
use watch::Live;
use work::Work;

use receive::Packet;

pub(crate) use board::{Board, Boards};
pub(crate) use decide::{Bounds, PickupEnd, Tracker};
pub(crate) use receive::Rx;
pub use watch::LiveTrace;
pub(crate) use work::WorkCells;
pub use work::{BURST_SIZE_COUNT, STAGE_COUNT, Stage, WorkStats};

/// Packets handled between two looks at the tables.
pub const BURST: usize = 64;
/// Time without a packet before the worker sleeps. Longer than the pauses of a sender that fills its
/// queue, sends, and fills it again: going to sleep and being woken costs more than looking.
const IDLE_SPIN_NS: u64 = 200_000;
const ETHERNET_BYTES: usize = 14;
/// Longest sleep: an upper bound on noticing a stop flag that nobody woke it for.
const IDLE_WAIT: Duration = Duration::from_millis(100);

/// What the control side and all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(crate) boards: Boards,
    /// Of packets that were forwarded without a worker.
    pub(crate) offloaded: Counters,
    pub(crate) hot: OnceLock<Hot>,
    pub(crate) memory: Memory,
    pub(crate) pickup: PickupEnd,
    pub(crate) meters: MeterBank,
    pub(crate) budgets: Budgets,
    pub(crate) samples: ArrayQueue<Sample>,
    pub(crate) samples_lost: AtomicU64,
    /// Sampling rate of ports whose entry does not say.
    pub(crate) sample_rate: AtomicU32,
    pub(crate) dropped: Arc<ArrayQueue<Dropped>>,
}

impl Shared {
    /// The time of the workers' last loop, for what is asked from outside.
    pub(crate) fn seconds(&self) -> Seconds {
        seconds(self.boards.now_ns())
    }

    /// Whether a connection is made for a packet that was refused, as if it had been there before the
    /// start: not if its two ends have one already, that came another way.
    pub(crate) fn picks_up(
        &self,
        decision: &Decision,
        parsed: &Parsed,
        snapshot: &Snapshot,
        now: Seconds,
    ) -> bool {
        self.pickup.takes(decision, parsed, now) && !self.memory.knows(snapshot, parsed, now)
    }
}

const fn seconds(now_ns: u64) -> Seconds {
    Seconds((now_ns / 1_000_000_000) as u32)
}

/// A flow of the exact cache, for listing.
#[derive(Debug, Clone, Copy)]
pub struct FlowStats {
    /// The packet fields it stands for.
    pub key: FlowKey,
    /// What is done to its packets.
    pub verdict: Verdict,
    /// What it carried since it was cached, offloaded packets apart.
    pub count: Count,
    /// Why it may not be offloaded; `None`: it may.
    pub not_hot: Option<NotHot>,
}

/// Everything a worker is made of.
pub(crate) struct Parts {
    /// Its number, from 0.
    pub(crate) number: u16,
    pub(crate) shared: Arc<Shared>,
    pub(crate) board: Arc<Board>,
    pub(crate) flow_entries: usize,
    pub(crate) masked_entries: usize,
    pub(crate) seed: u64,
    pub(crate) tracker: Tracker,
    pub(crate) lease: MeterLease,
    pub(crate) punts: Sender<Punted>,
    pub(crate) replies: Arc<ArrayQueue<Reply>>,
}

/// Forwards packets; one thread owns it.
pub struct Worker<I: PacketIo> {
    io: I,
    number: u16,
    shared: Arc<Shared>,
    board: Arc<Board>,
    snapshot: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    calls: Receiver<Call<I>>,
    cache: FlowCache<Flow>,
    masked: MaskedCache,
    tracker: Tracker,
    lease: MeterLease,
    shaper: Shaper,
    hasher: KeyHasher,
    sampler: Sampler,
    punts: Sender<Punted>,
    /// Packets that the slow path has of this worker.
    punted: usize,
    replies: Arc<ArrayQueue<Reply>>,
    log: DropLog,
    live: Option<Box<Live>>,
    /// Empty between bursts; kept for their memory.
    buffers: Buffers,
    /// Packets of this loop by the tier that decided them.
    tiers: [u64; TIER_COUNT],
    work: Work,
}

/// One burst: frames as received, then those that can be read, and what was read of each.
#[derive(Default)]
struct Buffers {
    received: Vec<Frame>,
    frames: Vec<Frame>,
    /// One for each of `frames`; what is behind them is of former bursts.
    packets: Vec<Packet>,
}

impl<I: PacketIo> std::fmt::Debug for Worker<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("flows", &self.cache.len()).finish_non_exhaustive()
    }
}

impl<I: PacketIo> Drop for Worker<I> {
    fn drop(&mut self) {
        self.empty_lines();
        self.board.running.store(false, Ordering::Release);
    }
}

impl<I: PacketIo> Worker<I> {
    pub(crate) fn new(io: I, parts: Parts, calls: Receiver<Call<I>>) -> Self {
        let snapshot = Cache::new(Arc::clone(&parts.shared.snapshot));
        Self {
            io,
            snapshot,
            calls,
            cache: FlowCache::new(parts.flow_entries),
            masked: MaskedCache::new(parts.masked_entries, parts.seed),
            tracker: parts.tracker,
            lease: parts.lease,
            shaper: Shaper::new(),
            hasher: KeyHasher::new(parts.seed),
            sampler: Sampler::new(parts.seed, parts.number),
            punts: parts.punts,
            punted: 0,
            replies: parts.replies,
            log: DropLog::new(Arc::clone(&parts.shared.dropped)),
            live: None,
            buffers: Buffers {
                received: Vec::with_capacity(BURST),
                frames: Vec::with_capacity(BURST),
                packets: Vec::with_capacity(BURST),
            },
            tiers: [0; TIER_COUNT],
            work: Work::default(),
            number: parts.number,
            board: parts.board,
            shared: parts.shared,
        }
    }

    /// Forwards until `stop` is set. `clock` gives nanoseconds of a steady clock; it is read once
    /// a loop. Looks for packets as long as there are some, and sleeps in the I/O otherwise.
    pub fn run(&mut self, clock: impl Fn() -> u64, stop: &AtomicBool) {
        self.board.running.store(true, Ordering::Release);
        let mut busy_ns = clock();
        while !stop.load(Ordering::Relaxed) {
            let now_ns = clock();
            if self.poll(now_ns) > 0 {
                busy_ns = now_ns;
            } else if now_ns.saturating_sub(busy_ns) < IDLE_SPIN_NS {
                std::hint::spin_loop();
            } else {
                self.board.counters.work().sleeps();
                self.io.wait(self.shaper.wait());
            }
        }
        self.board.running.store(false, Ordering::Release);
    }

    /// One loop over all queues; returns how many frames were handled.
    pub fn poll(&mut self, now_ns: u64) -> usize {
        self.work.begin(self.io.ticks());
        self.serve_calls();
        let snapshot = Arc::clone(self.snapshot.load());
        self.board.now_ns.store(now_ns, Ordering::Relaxed);
        self.board.seen.store(snapshot.revision, Ordering::Release);
        self.tidy(now_ns, &snapshot);
        self.work.lap(Stage::Other, self.io.ticks());
        let mut handled = 0;
        for at in 0..self.io.queues().len() {
            handled += self.burst(self.io.queues()[at], &snapshot, now_ns);
        }
        self.board.counters.add_tiers(&mut self.tiers);
        let (exact, masked) = (self.cache.len(), self.masked.len());
        self.board.counters.set_entries(exact, masked, self.masked.masks());
        if !self.shaper.is_empty() {
            handled += self.release(&snapshot, now_ns);
        }
        handled += self.send_replies(&snapshot);
        self.work.lap(Stage::Other, self.io.ticks());
        self.io.flush();
        self.work.lap(Stage::Send, self.io.ticks());
        self.board.counters.work().add(&mut self.work, handled, now_ns);
        handled
    }

    /// What a queue has, up to a burst; returns how many frames.
    fn burst(&mut self, queue: QueueId, snapshot: &Snapshot, now_ns: u64) -> usize {
        let mut burst = take(&mut self.buffers);
        let count = self.io.rx(queue, &mut burst.received, BURST);
        self.work.lap(Stage::Receive, self.io.ticks());
        if count > 0 {
            self.work.burst(count);
            let mut received = take(&mut burst.received);
            if burst.packets.len() < received.len() {
                burst.packets.resize(received.len(), Packet::unread());
            }
            if queue == QueueId::TRUNK {
                self.receive_tagged(&mut received, snapshot, &mut burst);
            } else {
                self.receive_direct(queue, &mut received, snapshot, &mut burst);
            }
            burst.received = received;
            for packet in burst.packets.iter_mut().take(burst.frames.len()) {
                packet.hint = self.cache.touch(packet.hash, Flow::second_line);
            }
            self.work.lap(Stage::Read, self.io.ticks());
            self.forward_burst(&mut burst, snapshot, now_ns);
            self.work.lap(Stage::Forward, self.io.ticks());
        }
        self.buffers = burst;
        count
    }

    // A function of its own, as the loops that receive are: each has the registers for itself.
    #[inline(never)]
    fn forward_burst(&mut self, burst: &mut Buffers, snapshot: &Snapshot, now_ns: u64) {
        let now = seconds(now_ns);
        for (frame, packet) in burst.frames.drain(..).zip(&mut burst.packets) {
            self.forward(frame, packet, snapshot, (now, now_ns));
        }
    }

    /// The packet's life, once it is received: decide, count, charge, sample, act.
    #[inline(always)]
    fn forward(
        &mut self,
        frame: Frame,
        packet: &mut Packet,
        snapshot: &Snapshot,
        (now, now_ns): (Seconds, u64),
    ) {
        let sampled = self.sampled(packet);
        let frame = if sampled.is_none() && self.live.is_none() {
            self.express(frame, packet, snapshot, now)
        } else {
            Some(frame)
        };
        if let Some(frame) = frame {
            self.forward_fully(frame, packet, sampled, (snapshot, now_ns));
        }
    }

    /// The same for packets of all kinds.
    #[inline(never)]
    fn forward_fully(
        &mut self,
        mut frame: Frame,
        packet: &mut Packet,
        sampled: Option<u32>,
        (snapshot, now_ns): (&Snapshot, u64),
    ) {
        self.unfold(&mut frame, packet);
        let tiers = self.live.as_ref().map(|_| self.tiers);
        let mut decision = self.decide(&frame, packet, snapshot, now_ns);
        self.board.counters.add_rules(decision.slots, packet.tenant_len as usize);
        let charged = self.charge(packet, &mut decision, snapshot, now_ns);
        if let Some(rate) = sampled {
            self.emit_sample(&frame, packet, (&decision, rate));
        }
        if let Some(tiers) = tiers {
            self.show(packet, &decision, (charged, tiers), snapshot);
        }
        match (decision.verdict, charged) {
            (Verdict::Forward(_), Some(Err(slot))) => {
                self.shaper.hold(frame, packet, (decision, slot), now_ns);
            }
            _ => self.end_decided(frame, packet, &decision, (snapshot, now_ns)),
        }
    }

    /// What was decided is done.
    #[inline]
    fn end_decided(
        &mut self,
        frame: Frame,
        packet: &Packet,
        decision: &Decision,
        (snapshot, now_ns): (&Snapshot, u64),
    ) {
        match decision.verdict {
            Verdict::Forward(actions) => self.act(frame, packet, &actions, snapshot),
            Verdict::Punt(punt) => self.punt(frame, packet, punt, (snapshot, now_ns)),
            Verdict::Drop(reason) => {
                self.refuse(frame, packet, (reason, decision.rule), (snapshot, now_ns));
            }
        }
    }

    /// Charges the packet to its meters. Yellow may change its mark; red ends it, or, if the verdict
    /// is still to forward it, there is room where it waits for tokens.
    #[inline]
    fn charge(
        &mut self,
        packet: &Packet,
        decision: &mut Decision,
        snapshot: &Snapshot,
        now_ns: u64,
    ) -> Option<Charged> {
        if decision.meters.is_empty() || !decision.passes() {
            return None;
        }
        let (slots, bytes) = (decision.meters.slots(), packet.tenant_len as usize);
        let charged = match self.shaper.line_of(slots) {
            // Who comes later does not overtake who waits.
            Some(slot) => Err(slot),
            None => self.lease.offer(&self.shared.meters, slots, bytes as u32, now_ns),
        };
        match charged {
            Ok(colour) => self.mark(packet, decision, colour, snapshot),
            Err(slot) if self.shaper.has_room(slot, bytes, snapshot.qos.queue_bytes(slot)) => {}
            Err(slot) => {
                self.lease.count_red(&self.shared.meters, slot, bytes as u32);
                decision.verdict = Verdict::Drop(DropReason::RateLimit);
            }
        }
        Some(charged)
    }

    /// The mark of a packet whose meters have just been paid.
    #[inline]
    fn mark(&self, packet: &Packet, decision: &mut Decision, colour: Colour, snapshot: &Snapshot) {
        // ARP has no place for a mark, and neighbor discovery is no traffic of a class.
        if colour == Colour::Green || packet.parsed.key.neighbor().is_some() {
            return;
        }
        let slots = decision.meters.slots().iter();
        let mut yellow = slots.filter(|slot| self.lease.was_yellow(**slot));
        let mark = yellow.find_map(|slot| snapshot.qos.yellow(*slot));
        if let Verdict::Forward(actions) = &mut decision.verdict {
            actions.dscp = mark.or(actions.dscp);
        }
    }

    /// A packet that the tables or its limits end: counted and logged.
    #[cold]
    fn refuse(
        &mut self,
        frame: Frame,
        packet: &Packet,
        (reason, rule): (DropReason, Option<RuleId>),
        at: (&Snapshot, u64),
    ) {
        let dropped = watch::dropped(&packet.parsed.key, packet.rx, (reason, rule), at);
        self.log.note(dropped);
        self.end(frame, packet.rx, reason);
    }

    /// A packet ends here, counted by reason and by the port it came from.
    #[cold]
    fn end(&mut self, frame: Frame, rx: Rx, reason: DropReason) {
        self.count_drop(rx, reason);
        self.io.free(frame);
    }

    fn count_drop(&self, rx: Rx, reason: DropReason) {
        self.board.counters.drop_reason(reason).add(rx.len);
        self.board.counters.port(rx.port).drops.add(rx.len);
    }

    /// What is done now and then: expired connections end, unused tokens go back.
    #[inline]
    fn tidy(&mut self, now_ns: u64, snapshot: &Snapshot) {
        self.lease.sweep(&self.shared.meters, now_ns);
        let shared = (&self.shared.memory.connections, &self.shared.pickup);
        self.tracker.tidy(shared, snapshot, now_ns);
    }

    fn serve_calls(&mut self) {
        while let Ok(call) = self.calls.try_recv() {
            call(self);
        }
    }

    /// The worker's I/O, to attach and detach queues.
    pub fn io_mut(&mut self) -> &mut I {
        &mut self.io
    }
}
