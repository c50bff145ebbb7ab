//! Looking on: samples, live traces and the log of drops.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam::queue::ArrayQueue;
use flowtable::action::Exit;
use flowtable::ids::{Group, PortId, RuleId};
use flowtable::key::FlowKey;
use flowtable::text::FlowSpec;
use flowtable::{DropReason, Verdict};
use packet_io::{Frame, PacketIo};

use super::{Packet, Rx, Worker};
use crate::counters::Tier;
use crate::droplog::Dropped;
use crate::pipeline::{self, Decision, Relation};
use crate::port::PortKind;
use crate::sample::{self, SAMPLE_HEADER_BYTES, Sample};
use crate::snapshot::Snapshot;
use crate::trace::{Charged, Notes, Trace};

/// A real packet, and how it was decided.
#[derive(Debug)]
pub struct LiveTrace {
    /// The decision and the tables that led to it.
    pub trace: Trace,
    /// Bytes of the frame as it was received, without FCS.
    pub frame_len: u32,
    /// Which tier decided.
    pub tier: Tier,
}

/// Who wants to see packets.
#[derive(Debug)]
pub(super) struct Live {
    spec: FlowSpec,
    left: u32,
    queue: Arc<ArrayQueue<LiveTrace>>,
}

impl<I: PacketIo> Worker<I> {
    /// Shows the next `count` packets that match `spec` in `queue`, whichever other packets were to
    /// be shown before. While the queue is full, packets are not shown. Of [`FlowSpec::tenant`] only
    /// the VRF is looked at.
    pub fn watch(&mut self, spec: FlowSpec, count: u32, queue: Arc<ArrayQueue<LiveTrace>>) {
        self.watch_offloaded(Some(spec.clone()));
        self.live = Some(Box::new(Live { spec, left: count, queue }));
    }

    /// Shows no more packets.
    pub fn unwatch(&mut self) {
        self.watch_offloaded(None);
        self.live = None;
    }

    /// Packets that are watched have to come by here.
    fn watch_offloaded(&self, spec: Option<FlowSpec>) {
        if let Some(hot) = self.shared.hot.get() {
            hot.watch(spec);
        }
    }

    /// Walks the tables once more for a packet that somebody wants to see, writing down the way.
    #[cold]
    pub(super) fn show(
        &mut self,
        packet: &Packet,
        decision: &Decision,
        (charged, tiers): (Option<Charged>, [u64; 3]),
        snapshot: &Snapshot,
    ) {
        let Some(live) = &mut self.live else { return };
        let vrf = live.spec.tenant.vrf;
        let of_tenant = vrf.is_none() || pipeline::tenant(snapshot, &packet.parsed.key) == vrf;
        if !of_tenant || !live.spec.matches_packet(&packet.parsed) || live.queue.is_full() {
            return;
        }
        let mut notes = Notes::default();
        // Whom an answer is for, its connection knows.
        let (memory, now) = (&self.shared.memory, self.shared.seconds());
        let standing = || memory.stand(snapshot, (&packet.parsed, &[]), now);
        let is_answer = decision.relation == Relation::Reply;
        let outside = is_answer.then(standing).and_then(|standing| standing.outside);
        let seen = (decision.relation, outside);
        let walked = pipeline::walk(snapshot, &packet.parsed, seen, &mut notes);
        let walked = Decision { verdict: decision.verdict, ..walked };
        let trace = Trace::of(&packet.parsed.key, &walked, charged, notes.0, snapshot);
        let tier = Tier::between(tiers, self.tiers);
        let shown = live.queue.push(LiveTrace { trace, frame_len: packet.rx.len as u32, tier });
        live.left -= u32::from(shown.is_ok());
        if live.left == 0 {
            self.unwatch();
        }
    }

    /// The rate at which this packet is sampled; `None`: it is not.
    #[inline(always)]
    pub(super) fn sampled(&mut self, packet: &Packet) -> Option<u32> {
        let rate = match packet.sample_rate {
            0 => self.shared.sample_rate.load(Ordering::Relaxed),
            rate => rate,
        };
        self.sampler.take(packet.rx.port, rate).then_some(rate)
    }

    #[cold]
    pub(super) fn emit_sample(
        &mut self,
        frame: &Frame,
        packet: &Packet,
        (decision, rate): (&Decision, u32),
    ) {
        let bytes = self.io.bytes(frame);
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
            pool: sample::pool(&self.shared, packet.rx.port),
            frame_len: packet.rx.len as u32,
            vlan_in: packet.parsed.key.vid,
            vlan_out,
            header,
            header_len: header_len as u8,
        };
        if self.shared.samples.push(sample).is_err() {
            self.shared.samples_lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The port a packet leaves by, and its tag on the wire (0: none).
fn ways_out(verdict: &Verdict) -> (Option<PortId>, u16) {
    let Verdict::Forward(actions) = verdict else { return (None, 0) };
    let vid = match actions.exit {
        Exit::Vlan { vid, .. } => vid.get(),
        Exit::Plain(_) | Exit::Tunnel { .. } | Exit::Translated { .. } => 0,
    };
    (Some(actions.output()), vid)
}

/// A packet for the log of drops.
pub(super) fn dropped(
    key: &FlowKey,
    rx: Rx,
    (reason, rule): (DropReason, Option<RuleId>),
    (snapshot, at_ns): (&Snapshot, u64),
) -> Dropped {
    // Groups of the wire's senders are their nodes' to know.
    let sender = snapshot.ports.lookup(rx.port).filter(|p| p.spec.kind == PortKind::Container);
    let binding = sender.and_then(|port| port.binding.as_ref());
    Dropped {
        reason,
        rule: rule.filter(|_| reason == DropReason::PolicyDeny),
        in_port: rx.port,
        vrf: pipeline::tenant(snapshot, key),
        src_group: binding.map_or(Group::NONE, |b| b.group),
        key: *key,
        frame_len: rx.len as u32,
        at_ns,
        suppressed: 0,
    }
}
