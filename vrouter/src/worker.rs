//! A packet's life, on one screen: [`Worker::poll`] and [`Worker::forward`].
//!
//! ```text
//! rx burst -> untag (trunk) -> parse -> T1 exact cache -> T3 pipeline on the snapshot -> act -> tx
//! \____________ the whole burst ___________/ \____________________ packet by packet ______________/
//! ```
//!
//! The worker owns its I/O, its flow cache and its counters. It reads the published snapshot once
//! a burst and allocates nothing, locks nothing and makes no system call for a packet of a cached
//! flow; only [`PacketIo::flush`] and, when idle, [`PacketIo::wait`] do.

use std::mem::take;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use crossbeam::channel::Sender;
use crossbeam::queue::ArrayQueue;
use flowtable::action::Punt;
use flowtable::cache::FlowCache;
use flowtable::ids::{PortId, Vni};
use flowtable::key::{self, Decap, FlowKey, Origin, Parsed};
use flowtable::{Action, ActionList, DropReason, Verdict};
use packet_io::{Frame, PacketIo, QueueId};

use crate::counters::{Count, Counters, Tier};
use crate::mailbox::Call;
use crate::pipeline::{self, Decision, NO_SLOT};
use crate::port::{Framing, PortKind};
use crate::rewrite::{self, Outer};
use crate::sample::{SAMPLE_HEADER_BYTES, Sample, Sampler};
use crate::slow::{self, Asker, PuntBudget, Punted, Reply};
use crate::snapshot::{Port, Snapshot};
use crate::trace::Silent;

/// Packets handled between two looks at the tables.
pub const BURST: usize = 64;
/// Time without a packet before the worker sleeps. Longer than the pauses of a sender that fills its
/// queue, sends, and fills it again: going to sleep and being woken costs more than looking.
const IDLE_SPIN_NS: u64 = 200_000;
const ETHERNET_BYTES: usize = 14;
/// Longest sleep: an upper bound on noticing a stop flag that nobody woke it for.
const IDLE_WAIT: Duration = Duration::from_millis(100);

/// What the control side and the worker share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(crate) counters: Counters,
    /// Revision the worker has moved on to.
    pub(crate) seen: AtomicU64,
    /// A thread is in [`Worker::run`].
    pub(crate) running: AtomicBool,
    pub(crate) samples: Arc<ArrayQueue<Sample>>,
    pub(crate) samples_lost: AtomicU64,
    /// Sampling rate of ports whose entry does not say.
    pub(crate) sample_rate: AtomicU32,
}

/// A cached flow and what it carried.
#[derive(Debug, Clone, Copy)]
struct Flow {
    decision: Decision,
    count: Count,
}

/// A flow of the exact cache, for listing.
#[derive(Debug, Clone, Copy)]
pub struct FlowStats {
    /// The packet fields it stands for.
    pub key: FlowKey,
    /// What is done to its packets.
    pub verdict: Verdict,
    /// What it carried since it was cached.
    pub count: Count,
}

/// Everything a worker is made of.
pub(crate) struct Parts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) flow_entries: usize,
    pub(crate) seed: u64,
    pub(crate) punts: Sender<Punted>,
    pub(crate) replies: Arc<ArrayQueue<Reply>>,
}

/// Forwards packets; one thread owns it.
pub struct Worker<I: PacketIo> {
    io: I,
    shared: Arc<Shared>,
    snapshot: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    calls: Receiver<Call<I>>,
    cache: FlowCache<Flow>,
    seed: u64,
    sampler: Sampler,
    budget: PuntBudget,
    punts: Sender<Punted>,
    replies: Arc<ArrayQueue<Reply>>,
    /// Empty between bursts; kept for their memory.
    burst: Vec<Frame>,
    packets: Vec<Packet>,
}

impl<I: PacketIo> std::fmt::Debug for Worker<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("flows", &self.cache.len()).finish_non_exhaustive()
    }
}

impl<I: PacketIo> Drop for Worker<I> {
    fn drop(&mut self) {
        self.shared.running.store(false, Ordering::Release);
    }
}

/// A received frame and what is known of it.
struct Packet {
    frame: Frame,
    rx: Rx,
    /// sFlow rate of its port's entry; 0 leaves it to the engine's setting.
    sample_rate: u32,
    parsed: Parsed,
    hash: u64,
}

/// What a packet was when it was received. It is counted as that to its end, whatever headers it
/// got or lost since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rx {
    pub(crate) port: PortId,
    /// Bytes, without the trunk's tag.
    pub(crate) len: usize,
}

impl<I: PacketIo> Worker<I> {
    pub(crate) fn new(io: I, parts: Parts, calls: Receiver<Call<I>>) -> Self {
        let snapshot = Cache::new(Arc::clone(&parts.shared.snapshot));
        Self {
            io,
            snapshot,
            calls,
            cache: FlowCache::new(parts.flow_entries),
            seed: parts.seed,
            sampler: Sampler::new(parts.seed),
            budget: PuntBudget::new(),
            punts: parts.punts,
            replies: parts.replies,
            burst: Vec::with_capacity(BURST),
            packets: Vec::with_capacity(BURST),
            shared: parts.shared,
        }
    }

    /// Forwards until `stop` is set. `clock` gives nanoseconds of a steady clock; it is read once
    /// a loop. Looks for packets as long as there are some, and sleeps in the I/O otherwise.
    pub fn run(&mut self, clock: impl Fn() -> u64, stop: &AtomicBool) {
        self.shared.running.store(true, Ordering::Release);
        let mut busy_ns = clock();
        while !stop.load(Ordering::Relaxed) {
            let now_ns = clock();
            if self.poll(now_ns) > 0 {
                busy_ns = now_ns;
            } else if now_ns.saturating_sub(busy_ns) < IDLE_SPIN_NS {
                std::hint::spin_loop();
            } else {
                self.io.wait(IDLE_WAIT);
            }
        }
        self.shared.running.store(false, Ordering::Release);
    }

    /// One loop over all queues; returns how many frames were handled.
    pub fn poll(&mut self, now_ns: u64) -> usize {
        self.serve_calls();
        let snapshot = Arc::clone(self.snapshot.load());
        self.shared.seen.store(snapshot.revision, Ordering::Release);
        let mut handled = 0;
        for at in 0..self.io.queues().len() {
            let queue = self.io.queues()[at];
            let (mut burst, mut packets) = (take(&mut self.burst), take(&mut self.packets));
            handled += self.io.rx(queue, &mut burst, BURST);
            packets.extend(burst.drain(..).filter_map(|f| self.receive(queue, f, &snapshot)));
            for packet in &packets {
                self.cache.touch(packet.hash);
            }
            for packet in packets.drain(..) {
                self.forward(packet, &snapshot, now_ns);
            }
            (self.burst, self.packets) = (burst, packets);
        }
        handled += self.send_replies(&snapshot);
        self.io.flush();
        handled
    }

    /// The packet's life, once it is received: decide, count, sample, act.
    fn forward(&mut self, packet: Packet, snapshot: &Snapshot, now_ns: u64) {
        let decision = self.decide(&packet, snapshot);
        self.count_rules(&decision, &packet);
        self.sample(&packet, &decision);
        match decision.verdict {
            Verdict::Forward(actions) => self.act(packet, &actions, snapshot),
            Verdict::Punt(punt) => self.punt(packet, punt, snapshot, now_ns),
            Verdict::Drop(reason) => self.end(packet.frame, packet.rx, reason),
        }
    }

    /// Untag, count, parse.
    #[inline]
    fn receive(&mut self, queue: QueueId, mut frame: Frame, snapshot: &Snapshot) -> Option<Packet> {
        let port = if queue == QueueId::TRUNK {
            let tag = rewrite::pop_tag(&mut self.io, &mut frame);
            let id = tag.and_then(|tag| PortId::new(u32::from(tag)).ok());
            // Who names a direct port on the trunk would pass for what is on its queue.
            let on_trunk = |port: &&Port| port.spec.framing == Framing::Tagged;
            id.and_then(|id| snapshot.ports.lookup(id)).filter(on_trunk)
        } else {
            snapshot.ports.of_queue(queue).and_then(|id| snapshot.ports.lookup(id))
        };
        let Some(port) = port else {
            self.shared.counters.drop_reason(DropReason::PortUnbound).add(frame.len());
            self.io.free(frame);
            return None;
        };
        let rx = Rx { port: port.spec.id, len: frame.len() };
        self.shared.counters.port(rx.port).rx.add(rx.len);
        let decap = match port.spec.kind {
            PortKind::Container => Decap::Never,
            PortKind::Uplink => Decap::Vxlan,
        };
        match key::parse(self.io.bytes(&frame), Origin { in_port: rx.port, decap }) {
            Ok(parsed) => {
                let hash = parsed.key.hash(self.seed);
                let sample_rate = port.binding.as_ref().map_or(0, |b| b.sample_rate);
                Some(Packet { frame, rx, sample_rate, parsed, hash })
            }
            Err(reason) => {
                self.end(frame, rx, reason);
                None
            }
        }
    }

    /// T1, then T3; what T3 found is cached under the revision of its tables.
    #[inline]
    fn decide(&mut self, packet: &Packet, snapshot: &Snapshot) -> Decision {
        let key = &packet.parsed.key;
        if let Some(slot) = self.cache.lookup(packet.hash, key) {
            let flow = self.cache.entry_mut(slot);
            if flow.decision.revision >= snapshot.valid_since(flow.decision.sections) {
                flow.count.add(packet.rx.len);
                self.shared.counters.tier(Tier::Exact);
                return flow.decision;
            }
            flow.decision = pipeline::walk(snapshot, &packet.parsed, &mut Silent);
            flow.count.add(packet.rx.len);
            self.shared.counters.tier(Tier::Pipeline);
            return flow.decision;
        }
        self.decide_new(packet, snapshot)
    }

    #[cold]
    fn decide_new(&mut self, packet: &Packet, snapshot: &Snapshot) -> Decision {
        let decision = pipeline::walk(snapshot, &packet.parsed, &mut Silent);
        self.shared.counters.tier(Tier::Pipeline);
        let mut flow = Flow { decision, count: Count::default() };
        flow.count.add(packet.rx.len);
        let stale =
            |flow: &Flow| flow.decision.revision < snapshot.valid_since(flow.decision.sections);
        // A set full of flows that were all hit lately takes no new one: it is not cached then.
        self.cache.insert(packet.hash, packet.parsed.key, flow, stale);
        self.shared.counters.flow_entries.store(self.cache.len() as u64, Ordering::Relaxed);
        decision
    }

    #[inline]
    fn count_rules(&self, decision: &Decision, packet: &Packet) {
        // The tenant's frame: without the headers of a tunnel and the tag of the wire.
        let frame_len = packet.rx.len + ETHERNET_BYTES - usize::from(packet.parsed.l3);
        for slot in decision.slots {
            if slot != NO_SLOT {
                self.shared.counters.rule(slot).add(frame_len);
            }
        }
    }

    #[inline]
    fn sample(&mut self, packet: &Packet, decision: &Decision) {
        let rate = match packet.sample_rate {
            0 => self.shared.sample_rate.load(Ordering::Relaxed),
            rate => rate,
        };
        if self.sampler.take(packet.rx.port, rate) {
            self.emit_sample(packet, decision, rate);
        }
    }

    #[cold]
    fn emit_sample(&mut self, packet: &Packet, decision: &Decision, rate: u32) {
        let bytes = self.io.bytes(&packet.frame);
        let header_len = bytes.len().min(SAMPLE_HEADER_BYTES);
        let mut header = [0; SAMPLE_HEADER_BYTES];
        header[..header_len].copy_from_slice(&bytes[..header_len]);
        let drop = match decision.verdict {
            Verdict::Drop(reason) => Some(reason),
            Verdict::Punt(_) | Verdict::Forward(_) => None,
        };
        let (out_port, vlan_out) = ways_out(&decision.verdict);
        let sample = Sample {
            in_port: packet.rx.port,
            out_port,
            drop,
            rate,
            pool: self.shared.counters.port(packet.rx.port).rx.read().packets as u32,
            frame_len: packet.rx.len as u32,
            vlan_in: packet.parsed.key.vid,
            vlan_out,
            header,
            header_len: header_len as u8,
        };
        if self.shared.samples.push(sample).is_err() {
            let lost = self.shared.samples_lost.load(Ordering::Relaxed);
            self.shared.samples_lost.store(lost + 1, Ordering::Relaxed);
        }
    }

    /// Executes the actions; the last one sends.
    #[inline]
    fn act(&mut self, packet: Packet, actions: &ActionList, snapshot: &Snapshot) {
        let Packet { frame, rx, parsed, hash, .. } = packet;
        let view = View {
            l3: usize::from(parsed.l3),
            inner: usize::from(parsed.inner),
            entropy: (hash >> 48) as u16,
        };
        self.execute(frame, rx, (view, actions), snapshot);
    }

    fn execute(
        &mut self,
        mut frame: Frame,
        rx: Rx,
        (mut view, actions): (View, &ActionList),
        snapshot: &Snapshot,
    ) {
        for action in actions.as_slice() {
            if let Action::Output(port) = *action {
                return self.output(frame, rx, port, snapshot);
            }
            if let Err(reason) = self.apply(&mut frame, action, &mut view, snapshot) {
                return self.end(frame, rx, reason);
            }
        }
        self.end(frame, rx, DropReason::PortGone);
    }

    #[inline]
    fn apply(
        &mut self,
        frame: &mut Frame,
        action: &Action,
        view: &mut View,
        snapshot: &Snapshot,
    ) -> Result<(), DropReason> {
        match *action {
            Action::Decap => {
                view.l3 -= view.inner;
                frame.shrink_front(view.inner).map_err(|_short| DropReason::Malformed)
            }
            Action::PopVlan => {
                view.l3 -= rewrite::TAG_BYTES;
                let tag = rewrite::pop_tag(&mut self.io, frame);
                tag.map(drop).ok_or(DropReason::Malformed)
            }
            Action::Route { src, dst } => {
                let routed = rewrite::route(&mut self.io, frame, view.l3, (src, dst));
                routed.map_err(|_short| DropReason::Malformed)
            }
            Action::SetDscp(dscp) => {
                let marked = rewrite::mark(&mut self.io, frame, view.l3, dscp);
                marked.map_err(|_short| DropReason::Malformed)
            }
            Action::PushVlan(vid) => {
                let pushed = rewrite::push_tag(&mut self.io, frame, vid.get());
                pushed.map_err(|_no_room| DropReason::TooBig)
            }
            Action::Encap { vtep, vni } => {
                let outer = outer(snapshot, vtep, vni, view.entropy)?;
                let wrapped = rewrite::encap(&mut self.io, frame, &outer);
                wrapped.map_err(|_no_room| DropReason::TooBig)
            }
            Action::Output(_) => Ok(()),
        }
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
            Ok(()) => self.shared.counters.port(port).tx.add(len),
            Err(frame) => self.end(frame, rx, DropReason::TxFull),
        }
    }

    /// Hands a packet to the slow path, within its port's share.
    #[cold]
    fn punt(&mut self, packet: Packet, punt: Punt, snapshot: &Snapshot, now_ns: u64) {
        let Packet { frame, rx, parsed, hash, .. } = packet;
        let bytes = &self.io.bytes(&frame)[usize::from(parsed.inner)..];
        if !slow::fits(bytes.len()) || !self.budget.take(rx.port, now_ns) {
            return self.end(frame, rx, DropReason::SlowPathLimit);
        }
        let mut copy = bytes.to_vec();
        if parsed.key.vid != 0 {
            copy.drain(12..12 + rewrite::TAG_BYTES);
        }
        let binding = snapshot.ports.lookup(rx.port).and_then(|p| p.binding.as_ref());
        let network = binding.and_then(|b| snapshot.networks.by_bd.get(&b.bd));
        let (vrf, entropy) = (pipeline::tenant(snapshot, &parsed.key), (hash >> 48) as u16);
        let punted = Punted {
            punt,
            frame: copy.into_boxed_slice(),
            gateway: network.and_then(|n| slow::gateway_v4(&n.gateways)),
            asker: Asker { rx, key: parsed.key, vrf, entropy },
        };
        if self.punts.try_send(punted).is_err() {
            return self.end(frame, rx, DropReason::SlowPathLimit);
        }
        match punt {
            Punt::TimeExceeded => self.end(frame, rx, DropReason::TtlExpired),
            Punt::ArpReply(_) | Punt::GatewayEcho => self.io.free(frame),
        }
    }

    /// Sends what the slow path has answered.
    fn send_replies(&mut self, snapshot: &Snapshot) -> usize {
        let mut sent = 0;
        while sent < BURST
            && let Some(reply) = self.replies.pop()
        {
            sent += 1;
            self.send_reply(&reply, snapshot);
        }
        sent
    }

    fn send_reply(&mut self, reply: &Reply, snapshot: &Snapshot) {
        let Reply { asker: Asker { rx, key, vrf, entropy }, answer } = reply;
        let bytes = match answer {
            Ok(bytes) => bytes,
            Err(reason) => return self.count_drop(*rx, *reason),
        };
        // Since it asked, its port, VNI or tag may have become another tenant's.
        if pipeline::tenant(snapshot, key) != *vrf {
            return self.count_drop(*rx, DropReason::PortGone);
        }
        let rx = Rx { len: bytes.len(), ..*rx };
        let Some(mut frame) = self.io.alloc() else {
            return self.count_drop(rx, DropReason::NoFrame);
        };
        if frame.set_len(bytes.len()).is_err() {
            return self.end(frame, rx, DropReason::NoFrame);
        }
        self.io.bytes_mut(&mut frame).copy_from_slice(bytes);
        let view = View { l3: ETHERNET_BYTES, inner: 0, entropy: *entropy };
        let back = pipeline::return_path(key, rx.port);
        self.execute(frame, rx, (view, &back), snapshot);
    }

    /// A packet ends here, counted by reason and by the port it came from.
    #[cold]
    fn end(&mut self, frame: Frame, rx: Rx, reason: DropReason) {
        self.count_drop(rx, reason);
        self.io.free(frame);
    }

    fn count_drop(&self, rx: Rx, reason: DropReason) {
        self.shared.counters.drop_reason(reason).add(rx.len);
        self.shared.counters.port(rx.port).drops.add(rx.len);
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

    /// The cached flows.
    #[must_use]
    pub fn flows(&self) -> Vec<FlowStats> {
        self.cache
            .iter()
            .map(|(key, flow)| FlowStats {
                key: *key,
                verdict: flow.decision.verdict,
                count: flow.count,
            })
            .collect()
    }
}

/// Where the parts of a frame are while its actions are executed.
#[derive(Debug, Clone, Copy)]
struct View {
    /// Offset of the (inner) network header.
    l3: usize,
    /// Offset of the inner Ethernet header.
    inner: usize,
    /// Source port of an outer UDP header.
    entropy: u16,
}

/// The port a packet leaves by, and its tag on the wire (0: none).
fn ways_out(verdict: &Verdict) -> (Option<PortId>, u16) {
    let Verdict::Forward(actions) = verdict else { return (None, 0) };
    let mut way = (None, 0);
    for action in actions.as_slice() {
        match action {
            Action::PushVlan(vid) => way.1 = vid.get(),
            Action::Output(port) => way.0 = Some(*port),
            Action::Decap
            | Action::PopVlan
            | Action::Route { .. }
            | Action::SetDscp(_)
            | Action::Encap { .. } => {}
        }
    }
    way
}

/// Outer headers towards a tunnel end point. The decision that asks for them depends on the
/// underlay section, so a missing entry means the snapshot moved on within this burst.
fn outer(
    snapshot: &Snapshot,
    vtep: std::net::IpAddr,
    vni: Vni,
    entropy: u16,
) -> Result<Outer, DropReason> {
    let src = *snapshot.networks.vteps.get(&vtep).ok_or(DropReason::UnknownVtep)?;
    let underlay = snapshot.underlay.get(&vtep).ok_or(DropReason::UnresolvedUnderlay)?;
    let (src_mac, dst_mac) = (underlay.src_mac, underlay.dst_mac);
    Ok(Outer { src_mac, dst_mac, src, dst: vtep, vni, entropy })
}
