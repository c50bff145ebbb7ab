//! Packets that wait for a meter's tokens: shaping.
//!
//! Policing alone holds no TCP to its rate: it sends a window at once, loses what is above the burst,
//! and waits for a timer. So what is above a single rate waits, in order, for up to the time that the
//! engine is given (50 ms on a node), and is dropped when the line is full. Lines are bounded in
//! bytes by their meter's rate and in packets, all lines together in packets; a place is taken once
//! at the start, so that waiting allocates nothing.

use std::time::Duration;

use flowtable::exact::ExactMap;
use flowtable::meter::MeterSlot;
use flowtable::{DropReason, Verdict};
use packet_io::{Frame, PacketIo};

use super::{IDLE_WAIT, Packet, Worker, seconds};
use crate::pipeline::{self, Decision};
use crate::snapshot::Snapshot;
use crate::trace::Silent;

/// Packets of all lines: an eighth of the default number of frames.
const PLACES: usize = 1024;
/// Packets of one line.
const LINE_PACKETS_MAX: usize = 256;
/// Longest sleep while packets wait.
const SHAPING_WAIT: Duration = Duration::from_millis(1);
/// A packet that waited longer, because its meter's rate was lowered, is dropped.
const AGE_MAX_NS: u64 = 200_000_000;
const NOWHERE: u32 = u32::MAX;

/// A packet that waits: decided, counted as received, and not yet charged.
struct Waiting {
    frame: Frame,
    packet: Packet,
    decision: Decision,
    since_ns: u64,
}

struct Place {
    waiting: Option<Waiting>,
    next: u32,
}

/// Packets of one meter, oldest first.
#[derive(Debug, Clone, Copy)]
struct Line {
    first: u32,
    last: u32,
    packets: usize,
    bytes: usize,
}

/// All lines of a worker.
pub(super) struct Shaper {
    places: Vec<Place>,
    free: u32,
    lines: ExactMap<u16, Line>,
    /// Meters that somebody waits for.
    active: Vec<MeterSlot>,
}

impl Shaper {
    pub(super) fn new() -> Self {
        let place = |at: usize| Place { waiting: None, next: at as u32 + 1 };
        let mut places: Vec<Place> = (0..PLACES).map(place).collect();
        if let Some(last) = places.last_mut() {
            last.next = NOWHERE;
        }
        let mut lines = ExactMap::default();
        lines.reserve(PLACES);
        Self { places, free: 0, lines, active: Vec::with_capacity(PLACES) }
    }

    /// Nobody waits.
    #[inline]
    pub(super) const fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// The first of these meters that somebody waits for: who comes later waits behind.
    #[inline]
    pub(super) fn line_of(&self, slots: &[MeterSlot]) -> Option<MeterSlot> {
        if self.is_empty() {
            return None;
        }
        slots.iter().copied().find(|slot| self.lines.contains_key(&slot.get()))
    }

    /// Longest sleep.
    pub(super) const fn wait(&self) -> Duration {
        if self.is_empty() { IDLE_WAIT } else { SHAPING_WAIT }
    }

    /// Whether a line of at most `bytes_max` takes `bytes` more.
    #[inline]
    pub(super) fn has_room(&self, slot: MeterSlot, bytes: usize, bytes_max: usize) -> bool {
        let (packets, waiting) =
            self.lines.get(&slot.get()).map_or((0, 0), |line| (line.packets, line.bytes));
        packets < LINE_PACKETS_MAX && waiting + bytes <= bytes_max && self.free != NOWHERE
    }

    /// Puts a packet at the end of a line that has room for it.
    #[cold]
    pub(super) fn hold(
        &mut self,
        frame: Frame,
        packet: &Packet,
        (decision, slot): (Decision, MeterSlot),
        now_ns: u64,
    ) {
        let bytes = packet.tenant_len as usize;
        let waiting = Waiting { frame, packet: *packet, decision, since_ns: now_ns };
        let empty = Line { first: NOWHERE, last: NOWHERE, packets: 0, bytes: 0 };
        let line = self.lines.get(&slot.get()).copied().unwrap_or(empty);
        let at = self.free;
        let place = &mut self.places[at as usize];
        self.free = place.next;
        *place = Place { waiting: Some(waiting), next: NOWHERE };
        let first = if line.packets == 0 { at } else { line.first };
        if let Some(last) = self.places.get_mut(line.last as usize) {
            last.next = at;
        }
        let grown = Line { first, last: at, packets: line.packets + 1, bytes: line.bytes + bytes };
        if self.lines.insert(slot.get(), grown).is_none() {
            self.active.push(slot);
        }
    }

    fn front(&self, slot: MeterSlot) -> Option<&Waiting> {
        let line = self.lines.get(&slot.get())?;
        self.places.get(line.first as usize)?.waiting.as_ref()
    }

    fn front_mut(&mut self, slot: MeterSlot) -> Option<&mut Waiting> {
        let line = self.lines.get(&slot.get())?;
        self.places.get_mut(line.first as usize)?.waiting.as_mut()
    }

    fn pop(&mut self, slot: MeterSlot) -> Option<Waiting> {
        let line = self.lines.get_mut(&slot.get())?;
        let at = line.first;
        let place = self.places.get_mut(at as usize)?;
        let waiting = place.waiting.take()?;
        line.first = place.next;
        line.packets -= 1;
        line.bytes -= waiting.packet.tenant_len as usize;
        place.next = self.free;
        self.free = at;
        if line.packets == 0 {
            self.lines.remove(&slot.get());
            self.active.retain(|active| *active != slot);
        }
        Some(waiting)
    }
}

impl<I: PacketIo> Worker<I> {
    /// Sends what has waited long enough; returns how many packets that were.
    pub(super) fn release(&mut self, snapshot: &Snapshot, now_ns: u64) -> usize {
        let mut released = 0;
        let mut at = 0;
        while let Some(slot) = self.shaper.active.get(at).copied() {
            while let Some(Waiting { frame, packet, decision, .. }) =
                self.next_of(slot, snapshot, now_ns)
            {
                self.end_decided(frame, &packet, &decision, (snapshot, now_ns));
                released += 1;
            }
            // An emptied line has left the list, and another is in its place.
            at += usize::from(self.shaper.active.get(at) == Some(&slot));
        }
        released
    }

    /// The first packet of a line, when its meters let it go now or it has waited too long.
    fn next_of(&mut self, slot: MeterSlot, snapshot: &Snapshot, now_ns: u64) -> Option<Waiting> {
        self.renew(slot, snapshot, now_ns);
        let front = self.shaper.front(slot)?;
        let (slots, bytes) = (front.decision.meters.slots(), front.packet.tenant_len);
        if !front.decision.passes() {
            return self.shaper.pop(slot);
        }
        let old = now_ns.saturating_sub(front.since_ns) > AGE_MAX_NS;
        match self.lease.offer(&self.shared.meters, slots, bytes, now_ns) {
            Ok(colour) => {
                let mut waiting = self.shaper.pop(slot)?;
                self.mark(&waiting.packet, &mut waiting.decision, colour, snapshot);
                Some(waiting)
            }
            Err(red) if old => {
                self.lease.count_red(&self.shared.meters, red, bytes);
                let mut waiting = self.shaper.pop(slot)?;
                waiting.decision.verdict = Verdict::Drop(DropReason::RateLimit);
                Some(waiting)
            }
            Err(_) => None,
        }
    }

    /// The first packet of a line meets the tables of this moment: it pays the meters and has the way
    /// out that they give it. It was counted when it came.
    fn renew(&mut self, slot: MeterSlot, snapshot: &Snapshot, now_ns: u64) {
        let Some(Waiting { frame, packet, decision, .. }) = self.shaper.front(slot) else { return };
        if decision.holds_on(snapshot) {
            return;
        }
        let mut packet = *packet;
        packet.read_flags(snapshot);
        let standing = self.stand((frame, &packet), snapshot, seconds(now_ns));
        let decision = pipeline::walk(snapshot, &packet.parsed, standing.seen(), &mut Silent);
        if let Some(front) = self.shaper.front_mut(slot) {
            (front.packet, front.decision) = (packet, decision);
        }
    }

    /// Packets that wait for tokens.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shaper
            .active
            .iter()
            .filter_map(|slot| self.shaper.lines.get(&slot.get()))
            .map(|line| line.packets)
            .sum()
    }

    /// Takes every frame out of the lines: the worker ends.
    pub(super) fn empty_lines(&mut self) {
        while let Some(slot) = self.shaper.active.first().copied() {
            match self.shaper.pop(slot) {
                Some(waiting) => self.io.free(waiting.frame),
                None => return,
            }
        }
    }
}
