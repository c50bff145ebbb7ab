//! The control side: keeps the entries, publishes snapshots, reads counters.
//!
//! A write builds the sections it touched, swaps one pointer, wakes the workers and returns when all of
//! them have moved on. The one lock here is held by writers and listings, never by a worker.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use crossbeam::channel::{Receiver, Sender, bounded};
use crossbeam::queue::ArrayQueue;
use flowtable::DropReason;
use flowtable::conn::{ConnConfig, ConnCounts, ConnStats, ConnTable, Timeouts};
use flowtable::entry::{Entry, EntryKey, Op, PortEntry};
use flowtable::fragment::FragTable;
use flowtable::hot::HotTable;
use flowtable::ids::{MeterId, PortId, RuleId};
use flowtable::meter::{MeterBank, MeterCounts, MeterSlot, MeterSpec};

use crate::batch::{self, Control};
use crate::budget::Budgets;
use crate::config::EngineConfig;
use crate::connections::Memory;
use crate::counters::{Count, Counters};
use crate::droplog::{DROP_QUEUE, Dropped};
use crate::hot::{Hot, HotKeeper, HotLimits};
use crate::port::PortSpec;
use crate::sample::{self, Sample};
use crate::slow::{PUNT_RATE, Punted, SLOW_QUEUE};
use crate::snapshot::{Master, Section, Sections, Snapshot};
use crate::validate::{self, Before};
use crate::worker::{Boards, PickupEnd, Shared};

/// Workers at most: as many as the tc programs' table of trunks has places.
pub const WORKERS_MAX: u16 = 64;
/// Fragmented packets whose first fragment has passed, at most.
const FRAGMENTED: usize = 4096;

/// Why a batch was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// A step is wrong, in itself or beside the other entries.
    #[error("step {op} of the batch, table {table}: {field} {reason}")]
    Refused {
        /// The step, from 0.
        op: usize,
        /// The table.
        table: &'static str,
        /// The field of its entry.
        field: &'static str,
        /// The field's value, and what is wrong with it.
        reason: String,
    },
    /// The table would have more entries than it may.
    #[error("table {table} holds at most {max} entries")]
    TableFull {
        /// The table.
        table: &'static str,
        /// Most entries.
        max: usize,
    },
    /// More new rules than counter slots.
    #[error("the batch has {needed} new rules, this engine has room for {room}")]
    TooManyRules {
        /// New rules in the batch.
        needed: usize,
        /// Free slots.
        room: usize,
    },
    /// More new meters than slots.
    #[error("the batch has {needed} new meters, this engine has room for {room}")]
    TooManyMeters {
        /// New meters in the batch.
        needed: usize,
        /// Free slots.
        room: usize,
    },
    /// Published, but a worker has not moved on in time.
    #[error(
        "revision {revision} is published, but worker {worker} has not taken it in 2 s; see vrouterd's log"
    )]
    Stalled {
        /// The published revision.
        revision: u64,
        /// The worker's number.
        worker: u16,
    },
}

/// Why a port was not added or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Another device has this id or this queue.
    #[error("port {port} is {existing} already")]
    Taken {
        /// The id.
        port: PortId,
        /// Name of the device that has it.
        existing: String,
    },
    /// Publishing failed.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// A port with its table entry and counters.
#[derive(Debug, Clone)]
pub struct PortStats {
    /// As it was added.
    pub spec: PortSpec,
    /// Its `port` entry, when there is one.
    pub binding: Option<PortEntry>,
    /// Received from the device, on the wire; offloaded packets included.
    pub rx: Count,
    /// Sent to the device.
    pub tx: Count,
    /// Packets received here and dropped.
    pub drops: u64,
}

/// An entry and, for rules, what it matched.
#[derive(Debug, Clone)]
pub struct EntryStats {
    /// The entry.
    pub entry: Entry,
    /// What its rule matched; entries of one rule share the count.
    pub count: Count,
}

/// How packets were decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// By the exact cache.
    pub exact_hits: u64,
    /// By the masked cache.
    pub masked_hits: u64,
    /// By walking the tables.
    pub pipeline: u64,
    /// Flows in the exact cache.
    pub entries: u64,
    /// Decisions in the masked cache.
    pub masked_entries: u64,
    /// Masks that they are under.
    pub masks: u64,
}

/// The engine's control side. Clones share it.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) config: EngineConfig,
    pub(crate) shared: Arc<Shared>,
    control: Arc<Mutex<Control>>,
    pub(crate) punts: Sender<Punted>,
    pub(crate) punted: Receiver<Punted>,
}

impl Engine {
    /// An engine with empty tables: it drops everything.
    #[must_use]
    pub fn new(mut config: EngineConfig) -> Self {
        config.workers = config.workers.clamp(1, WORKERS_MAX);
        let workers = usize::from(config.workers);
        let (punts, punted) = bounded(SLOW_QUEUE * workers);
        let shared = Shared {
            snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::empty(config.tracking))),
            boards: Boards::new(workers, config.rule_slots),
            offloaded: Counters::new(config.rule_slots),
            hot: OnceLock::new(),
            memory: memory(&config),
            pickup: PickupEnd::default(),
            meters: MeterBank::new(config.meter_slots, workers),
            budgets: Budgets::new(config.port_new_flows, PUNT_RATE),
            samples: ArrayQueue::new(config.sample_queue.max(1)),
            samples_lost: AtomicU64::new(0),
            sample_rate: AtomicU32::new(config.sample_rate),
            dropped: Arc::new(ArrayQueue::new(DROP_QUEUE)),
        };
        let free_slots = (0..config.rule_slots as u32).rev().collect();
        let meters = (0..shared.meters.slot_count() as u32).rev();
        let control = Control {
            master: Master { meter_queue_ms: config.meter_queue_ms, ..Master::default() },
            free_slots,
            left_slots: Vec::new(),
            free_meters: meters.filter_map(|slot| MeterSlot::new(slot).ok()).collect(),
            left_meters: Vec::new(),
            left_addresses: BTreeSet::new(),
            workers: Vec::new(),
        };
        Self {
            config,
            shared: Arc::new(shared),
            control: Arc::new(Mutex::new(control)),
            punts,
            punted,
        }
    }

    /// Hands flows that carry much to `table`, as long as the returned keeper runs. An engine has one
    /// such table; `None` when it has it already.
    #[must_use]
    pub fn offload(&self, table: Arc<dyn HotTable>, limits: HotLimits) -> Option<HotKeeper> {
        // Under the lock: what is published meanwhile is not missed.
        let _control = self.lock();
        table.publish(self.shared.snapshot.load().valid_since_all());
        self.shared.hot.set(Hot::new(table, limits)).ok()?;
        self.shared.hot.get()?.set_sample_rates(&self.shared);
        Some(HotKeeper { shared: Arc::clone(&self.shared) })
    }

    /// Makes the counters say what was forwarded without the engine up to now.
    fn count_offloaded(&self) {
        if let Some(hot) = self.shared.hot.get() {
            hot.count(&self.shared);
        }
    }

    /// Makes a port known; it forwards once a `port` entry binds it (containers) or a tunnel or
    /// VLAN leads over it (uplinks). The same port again is fine.
    ///
    /// # Errors
    /// [`PortError::Taken`] when another device has the id or the queue.
    pub fn add_port(&self, port: PortSpec) -> Result<(), PortError> {
        let mut control = self.lock();
        match control.master.specs.get(&port.id) {
            Some(other) if *other != port => {
                Err(PortError::Taken { port: port.id, existing: other.name.clone() })
            }
            Some(_) | None => self.insert_port(&mut control, port),
        }
    }

    /// From the next burst on the port's frames travel as `port` says: an uplink uses another of its
    /// devices. What was counted and what is in the tables stays.
    ///
    /// # Errors
    /// [`PortError::Taken`] when another port has one of the queues.
    pub fn move_port(&self, port: PortSpec) -> Result<(), PortError> {
        self.insert_port(&mut self.lock(), port)
    }

    fn insert_port(&self, control: &mut Control, port: PortSpec) -> Result<(), PortError> {
        let taken = control.master.specs.values().find(|other| {
            other.id != port.id && other.queues().any(|queue| port.queues().any(|q| q == queue))
        });
        if let Some(other) = taken {
            return Err(PortError::Taken { port: port.id, existing: other.name.clone() });
        }
        control.master.specs.insert(port.id, port);
        self.publish(control, Section::Ports.into())?;
        Ok(())
    }

    /// Forgets ports, all at once: nothing is received from them or sent to them when this returns. An
    /// unknown port is fine.
    ///
    /// # Errors
    /// [`PortError::Write`] when a worker is stalled.
    pub fn remove_ports(&self, ports: &[PortId]) -> Result<(), PortError> {
        let mut control = self.lock();
        let mut gone = ports.to_vec();
        gone.retain(|port| control.master.specs.remove(port).is_some());
        if gone.is_empty() {
            return Ok(());
        }
        for port in &gone {
            control.master.entries.remove(&EntryKey::Port(*port));
        }
        self.publish(&mut control, Section::Ports.into())?;
        for port in gone {
            self.shared.boards.reset_port(port);
            self.shared.offloaded.reset_port(port);
        }
        Ok(())
    }

    /// Applies a batch, all or nothing, and returns its revision once every worker uses it.
    ///
    /// # Errors
    /// [`WriteError`]; unless it is [`WriteError::Stalled`] nothing has changed.
    pub fn write(&self, ops: &[Op]) -> Result<u64, WriteError> {
        validate::steps(ops)?;
        let mut control = self.lock();
        let mut before = batch::apply(&mut control.master, ops);
        if let Err(refused) = validate::outcome(&control.master.entries, &before, ops)
            .and_then(|()| batch::room_for_meters(&control, &before))
            .and_then(|()| batch::assign_slots(&mut control, &before))
        {
            batch::restore(&mut control.master, before);
            return Err(refused);
        }
        // A replacement of all entries by the same ones changes nothing.
        before.retain(|key, was| control.master.entries.get(key) != was.as_ref());
        let changed: Sections = before.keys().map(Sections::of).collect();
        self.assign_meters(&mut control, &before);
        control.left_addresses.extend(batch::left_endpoints(&before));
        control.master.changed = before;
        let published = self.publish(&mut control, changed);
        control.master.changed.clear();
        let revision = published?;
        self.forget_left(&mut control);
        Ok(revision)
    }

    /// Gives new meters a slot, takes those of meters that are gone, and makes changed ones what
    /// their entries say: they keep their tokens.
    fn assign_meters(&self, control: &mut Control, changed: &Before) {
        let now_ns = self.shared.boards.now_ns();
        let Control { master, free_meters, left_meters, .. } = control;
        for key in changed.keys() {
            let EntryKey::Meter(id) = key else { continue };
            let Some(Entry::Meter(meter)) = master.entries.get(key) else {
                left_meters.extend(master.meters.remove(id));
                continue;
            };
            let slot = master.meters.get(id).copied().or_else(|| free_meters.pop());
            // The batch was checked: there is a slot, and the parameters are within their ranges.
            let spec = MeterSpec::new(meter.unit, meter.committed, meter.peak).ok();
            if let Some((slot, spec)) = slot.zip(spec) {
                master.meters.insert(*id, slot);
                self.shared.meters.set(slot, &spec, now_ns).ok();
            }
        }
    }

    /// Workers and offloaded flows are past every decision that used what is gone: its counters may
    /// start at zero.
    fn forget_left(&self, control: &mut Control) {
        for slot in control.left_slots.drain(..) {
            self.shared.boards.reset_rule(slot);
            self.shared.offloaded.rule(slot).reset();
            control.free_slots.push(slot);
        }
        for slot in control.left_meters.drain(..) {
            self.shared.meters.clear(slot);
            control.free_meters.push(slot);
        }
    }

    /// Workers are past every decision that knew them: nobody inherits the connections of an
    /// address.
    fn end_connections(&self, control: &mut Control) {
        let left = std::mem::take(&mut control.left_addresses);
        if !left.is_empty() {
            let gone = |vrf, address| left.contains(&(vrf, address));
            self.shared.memory.connections.purge(|t| gone(t.vrf, t.src) || gone(t.vrf, t.dst));
        }
    }

    /// Swaps the pointer and waits until every worker has moved on. The snapshot before stays alive
    /// until then, so a worker never has to free one. Then offloaded flows follow: also when the worker
    /// is late, since they must not be.
    fn publish(&self, control: &mut Control, changed: Sections) -> Result<u64, WriteError> {
        let published = self.publish_to_workers(control, changed);
        if published.is_ok() {
            self.end_connections(control);
        }
        if let Some(hot) = self.shared.hot.get() {
            hot.follow(&self.shared);
        }
        published
    }

    /// Revision of the published tables.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.shared.snapshot.load().revision
    }

    /// Ports in the order of their ids.
    #[must_use]
    pub fn ports(&self) -> Vec<PortStats> {
        self.count_offloaded();
        let control = self.lock();
        let stats = |spec: &PortSpec| {
            let [rx, tx, drops] = self.shared.boards.port(spec.id);
            let offloaded = self.shared.offloaded.port(spec.id);
            let binding = match control.master.entries.get(&EntryKey::Port(spec.id)) {
                Some(Entry::Port(entry)) => Some(entry.clone()),
                _ => None,
            };
            PortStats {
                spec: spec.clone(),
                binding,
                rx: rx.plus(offloaded.rx.read()),
                tx: tx.plus(offloaded.tx.read()),
                drops: drops.packets,
            }
        };
        control.master.specs.values().map(stats).collect()
    }

    /// Entries in the order of their keys.
    #[must_use]
    pub fn entries(&self) -> Vec<EntryStats> {
        self.count_offloaded();
        let control = self.lock();
        let stats = |entry: &Entry| {
            let count = if let Entry::Rule(rule) = entry {
                self.rule_count(&control, rule.rule)
            } else {
                Count::default()
            };
            EntryStats { entry: entry.clone(), count }
        };
        control.master.entries.values().map(stats).collect()
    }

    /// Rules and what they matched.
    #[must_use]
    pub fn rules(&self) -> Vec<(RuleId, Count)> {
        self.count_offloaded();
        let control = self.lock();
        let ids = control.master.slots.keys();
        ids.map(|id| (*id, self.rule_count(&control, *id))).collect()
    }

    fn rule_count(&self, control: &Control, rule: RuleId) -> Count {
        let slot = control.master.slots.get(&rule);
        slot.map_or_else(Count::default, |slot| {
            let offloaded = self.shared.offloaded.rule(*slot).read();
            self.shared.boards.rule(*slot).plus(offloaded)
        })
    }

    /// Every drop reason and what ended by it.
    #[must_use]
    pub fn drops(&self) -> Vec<(DropReason, Count)> {
        let read = |reason: &DropReason| (*reason, self.shared.boards.drop_reason(*reason));
        DropReason::ALL.iter().map(read).collect()
    }

    /// How packets were decided.
    #[must_use]
    pub fn cache(&self) -> CacheStats {
        let (hits, cached) = self.shared.boards.tiers();
        let ([exact_hits, masked_hits, pipeline], [entries, masked_entries, masks]) =
            (hits, cached);
        CacheStats { exact_hits, masked_hits, pipeline, entries, masked_entries, masks }
    }

    /// Connections, at most `limit`, in no meaningful order.
    #[must_use]
    pub fn connections(&self, limit: usize) -> Vec<ConnStats> {
        self.shared.memory.connections.list(self.shared.seconds(), limit)
    }

    /// How many connections there are and were.
    #[must_use]
    pub fn connection_counts(&self) -> ConnCounts {
        self.shared.memory.connections.counts()
    }

    /// What a meter has seen; `None` when there is no such meter.
    #[must_use]
    pub fn meter(&self, id: MeterId) -> Option<MeterCounts> {
        let slot = *self.lock().master.meters.get(&id)?;
        self.shared.meters.read(slot)
    }

    /// Dropped packets, filled by the worker within a budget per tenant.
    #[must_use]
    pub fn dropped(&self) -> Arc<ArrayQueue<Dropped>> {
        Arc::clone(&self.shared.dropped)
    }

    /// A sample for the exporter: of the worker, or of what is forwarded without it.
    #[must_use]
    pub fn next_sample(&self) -> Option<Sample> {
        let next = || self.shared.samples.pop();
        next().or_else(|| {
            sample::gather(&self.shared, self.shared.hot.get()?.table());
            next()
        })
    }

    /// Samples that found no room.
    #[must_use]
    pub fn samples_lost(&self) -> u64 {
        let hot = self.shared.hot.get().map_or(0, |hot| hot.table().samples_lost());
        self.shared.samples_lost.load(Ordering::Relaxed) + hot
    }

    /// Sets the sampling rate of ports whose entry does not say: one in `rate`, 0 for none.
    pub fn set_sample_rate(&self, rate: u32) {
        // Under the lock: ports that are published meanwhile get it too.
        let _control = self.lock();
        self.shared.sample_rate.store(rate, Ordering::Relaxed);
        if let Some(hot) = self.shared.hot.get() {
            hot.set_sample_rates(&self.shared);
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Control> {
        // Control keeps no invariant across a panic that a later batch would not restore.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections and fragmented packets, none of either.
fn memory(config: &EngineConfig) -> Memory {
    let connections = ConnTable::new(ConnConfig {
        capacity: config.connections,
        seed: config.seed,
        timeouts: Timeouts::default(),
    });
    Memory::new(connections, FragTable::new(FRAGMENTED, config.seed))
}
