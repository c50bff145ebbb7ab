//! Meters and marks as the pipeline sees them: by slot. The meters' state is in the engine's
//! [`MeterBank`](flowtable::meter::MeterBank), where workers lease tokens; a snapshot only says who
//! is charged.

use flowtable::entry::{MeterEntry, MeterUnit, PORT_METERS_MAX, QosEntry};
use flowtable::exact::ExactMap;
use flowtable::ids::{Dscp, MeterId, PortId};
use flowtable::meter::MeterSlot;

/// Meters of a packet at most: those of its sender and of its receiver.
const METERS_MAX: usize = 2 * PORT_METERS_MAX;

/// The shortest line holds two full frames.
const QUEUE_BYTES_MIN: usize = 2 * 1518;

/// The meters a packet is charged to, in place so that a cached decision is one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MeterList {
    slots: [MeterSlot; METERS_MAX],
    len: u8,
}

impl MeterList {
    /// No meter.
    pub(crate) const EMPTY: Self = Self { slots: [MeterSlot::NONE; METERS_MAX], len: 0 };

    /// Adds meters; the bounds of [`QosEntry`] keep both ends' within the list, and what is too
    /// much is left out.
    pub(crate) fn extend(&mut self, slots: &[MeterSlot]) {
        for (place, slot) in self.slots.iter_mut().skip(usize::from(self.len)).zip(slots) {
            *place = *slot;
            self.len += 1;
        }
    }

    #[inline]
    pub(crate) fn slots(&self) -> &[MeterSlot] {
        &self.slots[..usize::from(self.len)]
    }

    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What holds for a port.
#[derive(Debug, Clone)]
pub(crate) struct PortQos {
    /// Meters of what it sends.
    pub(crate) from: MeterList,
    /// Meters of what it receives.
    pub(crate) to: MeterList,
    /// Mark of what it sends.
    pub(crate) dscp: Option<Dscp>,
}

/// A meter's identity, and the mark of its yellow packets.
#[derive(Debug, Clone, Copy)]
struct Meter {
    id: MeterId,
    yellow: Option<Dscp>,
    /// Bytes that may wait for its tokens.
    queue_bytes: usize,
}

/// The section `qos` of a snapshot.
#[derive(Debug, Default)]
pub(crate) struct Qos {
    ports: ExactMap<PortId, PortQos>,
    meters: ExactMap<u16, Meter>,
}

impl Qos {
    /// Packets above the rate wait for up to `queue_ms`, when it is one rate in bits.
    pub(crate) fn add_meter(&mut self, slot: MeterSlot, entry: &MeterEntry, queue_ms: u32) {
        let shaped = entry.unit == MeterUnit::Bits && entry.peak.is_none() && queue_ms > 0;
        let bytes = entry.committed.rate.saturating_mul(queue_ms.into()) / 8000;
        let queue_bytes = if shaped { (bytes as usize).max(QUEUE_BYTES_MIN) } else { 0 };
        let meter = Meter { id: entry.meter, yellow: entry.yellow_dscp, queue_bytes };
        self.meters.insert(slot.get(), meter);
    }

    /// `slot_of` knows every meter that an entry may name: a batch that leaves one unknown was
    /// refused.
    pub(crate) fn add_port(
        &mut self,
        entry: &QosEntry,
        slot_of: impl Fn(MeterId) -> Option<MeterSlot>,
    ) {
        let list = |ids: &[MeterId]| {
            let slots: Vec<_> = ids.iter().filter_map(|id| slot_of(*id)).collect();
            let mut list = MeterList::EMPTY;
            list.extend(&slots);
            list
        };
        let port = PortQos { from: list(&entry.from), to: list(&entry.to), dscp: entry.dscp };
        self.ports.insert(entry.port, port);
    }

    pub(crate) fn of_port(&self, port: PortId) -> Option<&PortQos> {
        self.ports.get(&port)
    }

    /// The mark of packets above the committed rate of the meter in `slot`.
    pub(crate) fn yellow(&self, slot: MeterSlot) -> Option<Dscp> {
        self.meters.get(&slot.get())?.yellow
    }

    /// Bytes that may wait for the meter in `slot`; 0: what is above the rate is dropped.
    pub(crate) fn queue_bytes(&self, slot: MeterSlot) -> usize {
        self.meters.get(&slot.get()).map_or(0, |meter| meter.queue_bytes)
    }

    pub(crate) fn id(&self, slot: MeterSlot) -> Option<MeterId> {
        self.meters.get(&slot.get()).map(|meter| meter.id)
    }
}
