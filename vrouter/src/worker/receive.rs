//! What a received frame is: whose it is, counted, and read. The common packet in brief, in one pass over
//! fifty bytes; every other kind in full.

use flowtable::DropReason;
use flowtable::cache::Hint;
use flowtable::ids::PortId;
use flowtable::key::{self, Brief, Decap, KeyHasher, Layout, Origin, Parsed, Seen};
use packet_io::{Frame, PacketIo, QueueId};

use super::{Buffers, ETHERNET_BYTES, Worker, decide};
use crate::port::PortKind;
use crate::rewrite;
use crate::snapshot::Snapshot;

/// What is known of a received frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet {
    /// Its key in brief, if that says all; else [`Brief::NONE`].
    pub(super) brief: Brief,
    pub(super) hash: u64,
    pub(super) rx: Rx,
    /// sFlow rate of its port's entry; 0 leaves it to the engine's setting.
    pub(super) sample_rate: u32,
    /// Where its flow is in the exact cache.
    pub(super) hint: Hint,
    /// Length of the tenant's frame: without the headers of a tunnel and the tag of the wire.
    pub(super) tenant_len: u32,
    /// It was read in brief only: `parsed` means nothing, and the trunk's tag is still there.
    pub(super) folded: Option<Layout>,
    /// Its TCP flags (byte 13 of the header), while it is `folded`.
    pub(super) tcp_flags: u8,
    /// It leaves a settled connection as it is: known while it is `folded`.
    pub(super) quiet: bool,
    pub(super) parsed: Parsed,
}

impl Packet {
    /// A place for one.
    pub(super) fn unread() -> Self {
        Self {
            brief: Brief::NONE,
            hash: 0,
            rx: Rx { port: PortId::MAX, len: 0 },
            sample_rate: 0,
            hint: Hint::NONE,
            tenant_len: 0,
            folded: None,
            tcp_flags: 0,
            quiet: false,
            parsed: Parsed::default(),
        }
    }

    /// What was read in brief, with the TCP flags that a rule looks at.
    #[inline(always)]
    fn note(&mut self, seen: &Seen, looked_at: u8, hasher: &KeyHasher) {
        self.brief = seen.brief.with_flags(seen.tcp_flags & looked_at);
        self.hash = hasher.hash_brief(&self.brief);
        self.folded = Some(seen.layout);
        self.tcp_flags = seen.tcp_flags;
        self.quiet = decide::changes_nothing(seen.proto, seen.tcp_flags);
        self.tenant_len = (self.rx.len - seen.layout.outer_bytes()) as u32;
    }

    /// Puts those TCP flags into the key that a rule looks at.
    #[inline]
    pub(super) fn read_flags(&mut self, snapshot: &Snapshot) {
        let looked_at = snapshot.policy.rules.tcp_flags_mask();
        self.parsed.key.tcp_flags = self.parsed.tcp_flags & looked_at;
    }
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
    /// Frames of the trunk: whose they are, count, read.
    #[inline(never)]
    pub(super) fn receive_tagged(
        &mut self,
        received: &mut Vec<Frame>,
        snapshot: &Snapshot,
        burst: &mut Buffers,
    ) {
        let (ports, looked_at) = (&*snapshot.ports, snapshot.policy.rules.tcp_flags_mask());
        for frame in received.drain(..) {
            let counters = &self.board.counters;
            let bytes = self.io.bytes(&frame);
            let tag = rewrite::tag(bytes);
            let id = tag.and_then(|tag| PortId::new(u32::from(tag)).ok());
            // Who names a direct port on the trunk would pass for what is on its queue.
            let Some((id, port)) = id.and_then(|id| Some((id, ports.on_trunk(id)?))) else {
                self.end_unbound(frame, tag.map_or(0, |_tag| rewrite::TAG_BYTES));
                continue;
            };
            let packet = &mut burst.packets[burst.frames.len()];
            packet.rx = Rx { port: id, len: bytes.len() - rewrite::TAG_BYTES };
            packet.sample_rate = port.sample_rate;
            counters.port(id).rx.add(packet.rx.len);
            if port.kind == PortKind::Container
                && let Some(seen) = Brief::tagged(bytes, id)
            {
                packet.note(&seen, looked_at, &self.hasher);
                burst.frames.push(frame);
            } else {
                self.receive_untagged(frame, port.kind, snapshot, burst);
            }
        }
    }

    /// A frame of the trunk that is not a container's plain packet: its tag is taken off first.
    #[inline(never)]
    fn receive_untagged(
        &mut self,
        mut frame: Frame,
        kind: PortKind,
        snapshot: &Snapshot,
        burst: &mut Buffers,
    ) {
        let packet = &mut burst.packets[burst.frames.len()];
        if rewrite::pop_tag(&mut self.io, &mut frame).is_none() {
            return self.end(frame, packet.rx, DropReason::Malformed);
        }
        let seen = match kind {
            PortKind::Container => None,
            PortKind::Uplink => Brief::wire(self.io.bytes(&frame), packet.rx.port),
        };
        if let Some(seen) = seen {
            packet.note(&seen, snapshot.policy.rules.tcp_flags_mask(), &self.hasher);
            burst.frames.push(frame);
        } else {
            self.receive_other(frame, kind, snapshot, burst);
        }
    }

    /// Frames of a port with a queue of its own.
    #[inline(never)]
    pub(super) fn receive_direct(
        &mut self,
        queue: QueueId,
        received: &mut Vec<Frame>,
        snapshot: &Snapshot,
        burst: &mut Buffers,
    ) {
        let port = snapshot.ports.of_queue(queue).and_then(|id| snapshot.ports.lookup(id));
        let looked_at = snapshot.policy.rules.tcp_flags_mask();
        for frame in received.drain(..) {
            let counters = &self.board.counters;
            let bytes = self.io.bytes(&frame);
            let Some(port) = port else {
                self.end_unbound(frame, 0);
                continue;
            };
            let (id, kind) = (port.spec.id, port.spec.kind);
            let packet = &mut burst.packets[burst.frames.len()];
            packet.rx = Rx { port: id, len: bytes.len() };
            packet.sample_rate = port.binding.as_ref().map_or(0, |b| b.sample_rate);
            counters.port(id).rx.add(packet.rx.len);
            let seen = match kind {
                PortKind::Container => Brief::bare(bytes, id),
                PortKind::Uplink => Brief::wire(bytes, id),
            };
            if let Some(seen) = seen {
                packet.note(&seen, looked_at, &self.hasher);
                burst.frames.push(frame);
            } else {
                self.receive_other(frame, kind, snapshot, burst);
            }
        }
    }

    /// A frame of no port.
    #[cold]
    fn end_unbound(&mut self, frame: Frame, tag_bytes: usize) {
        let counter = self.board.counters.drop_reason(DropReason::PortUnbound);
        counter.add(frame.len() - tag_bytes);
        self.io.free(frame);
    }

    /// A packet that can't be read in brief.
    #[inline(never)]
    fn receive_other(
        &mut self,
        frame: Frame,
        kind: PortKind,
        snapshot: &Snapshot,
        burst: &mut Buffers,
    ) {
        let packet = &mut burst.packets[burst.frames.len()];
        let decap = match kind {
            PortKind::Container => Decap::Never,
            PortKind::Uplink => Decap::Vxlan,
        };
        let origin = Origin { in_port: packet.rx.port, decap };
        match key::general(self.io.bytes(&frame), origin) {
            Ok(parsed) => packet.parsed = parsed,
            Err(reason) => return self.end(frame, packet.rx, reason),
        }
        packet.folded = None;
        packet.read_flags(snapshot);
        packet.brief = Brief::of(&packet.parsed.key).unwrap_or(Brief::NONE);
        packet.hash = self.hasher.hash(&packet.parsed.key);
        packet.tenant_len = (packet.rx.len + ETHERNET_BYTES - packet.parsed.l3 as usize) as u32;
        burst.frames.push(frame);
    }
}
