//! The control side: keeps the entries, publishes snapshots, reads counters.
//!
//! A write builds the sections it touched, swaps one pointer, wakes the worker and returns when the
//! worker has moved on. The one lock here is held by writers and listings, never by a worker.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use crossbeam::channel::{Receiver, Sender, bounded};
use crossbeam::queue::ArrayQueue;
use flowtable::DropReason;
use flowtable::conn::{ConnConfig, ConnCounts, ConnStats, ConnTable, Seconds, Timeouts};
use flowtable::entry::{Entry, EntryKey, Op, PortEntry};
use flowtable::fragment::FragTable;
use flowtable::hot::HotTable;
use flowtable::ids::{MeterId, PortId, RuleId};
use flowtable::meter::{MeterBank, MeterCounts, MeterLease, MeterSlot, MeterSpec};
use packet_io::PacketIo;

use crate::batch::{self, Control};
use crate::config::EngineConfig;
use crate::connections::Memory;
use crate::counters::{Count, Counters};
use crate::droplog::{DROP_QUEUE, Dropped};
use crate::hot::{Hot, HotKeeper, HotLimits};
use crate::mailbox::{WorkerHandle, mailbox};
use crate::port::PortSpec;
use crate::sample::{self, Sample};
use crate::slow::{Punted, Reply, SLOW_QUEUE, SlowPath};
use crate::snapshot::{Master, Section, Sections, Snapshot};
use crate::validate::{self, Before};
use crate::worker::{Bounds, Parts, PickupEnd, Shared, Tracker, WorkStats, Worker};

/// Fragmented packets whose first fragment has passed, at most.
const FRAGMENTED: usize = 4096;
/// Longest a publication waits for the worker before it is reported as stalled.
const WORKER_PATIENCE: Duration = Duration::from_secs(2);
/// First pause between two looks at the worker's progress; a wake-up has been sent before. Pauses
/// grow, so that what the system adds to each does not add up to more patience.
const WORKER_CHECK: Duration = Duration::from_micros(50);
/// Longest pause.
const WORKER_CHECK_MAX: Duration = Duration::from_millis(10);

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
    /// Published, but the worker has not moved on in time.
    #[error(
        "revision {revision} is published, but the worker has not taken it in 2 s; see vrouterd's log"
    )]
    Stalled {
        /// The published revision.
        revision: u64,
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
    config: EngineConfig,
    pub(crate) shared: Arc<Shared>,
    control: Arc<Mutex<Control>>,
    punts: Sender<Punted>,
    punted: Receiver<Punted>,
    replies: Arc<ArrayQueue<Reply>>,
}

impl Engine {
    /// An engine with empty tables: it drops everything.
    #[must_use]
    pub fn new(config: EngineConfig) -> Self {
        let (punts, punted) = bounded(SLOW_QUEUE);
        let shared = Shared {
            snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::empty(config.tracking))),
            counters: Counters::new(config.rule_slots),
            offloaded: Counters::new(config.rule_slots),
            hot: OnceLock::new(),
            memory: memory(&config),
            pickup: PickupEnd::default(),
            meters: MeterBank::new(config.meter_slots, 1),
            seen: AtomicU64::new(0),
            now_ns: AtomicU64::new(0),
            running: AtomicBool::new(false),
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
            waker: None,
        };
        Self {
            config,
            shared: Arc::new(shared),
            control: Arc::new(Mutex::new(control)),
            punts,
            punted,
            replies: Arc::new(ArrayQueue::new(SLOW_QUEUE)),
        }
    }

    /// The worker that forwards on `io`. This version has one worker an engine.
    pub fn worker<I: PacketIo>(&self, io: I) -> (Worker<I>, WorkerHandle<I>) {
        let waker = io.waker();
        self.lock().waker = Some(Arc::clone(&waker));
        let (handle, calls) = mailbox(waker);
        let parts = Parts {
            shared: Arc::clone(&self.shared),
            flow_entries: self.config.flow_entries,
            masked_entries: self.config.masked_entries,
            seed: self.config.seed,
            tracker: Tracker::new(self.bounds()),
            lease: self.lease(),
            punts: self.punts.clone(),
            replies: Arc::clone(&self.replies),
        };
        (Worker::new(io, parts, calls), handle)
    }

    fn bounds(&self) -> Bounds {
        let config = &self.config;
        Bounds {
            tenant_connections: config.tenant_connections,
            port_connections: config.port_connections,
            tenant_new_flows: config.tenant_new_flows,
            port_new_flows: config.port_new_flows,
            pickup: Seconds(config.pickup_seconds),
        }
    }

    #[expect(clippy::expect_used, reason = "the bank was made for one worker, which is number 0")]
    fn lease(&self) -> MeterLease {
        MeterLease::new(&self.shared.meters, 0).expect("a bank has a first worker")
    }

    /// The slow path of the worker; `None` before there is one.
    #[must_use]
    pub fn slow_path(&self) -> Option<SlowPath> {
        let waker = Arc::clone(self.lock().waker.as_ref()?);
        let (punted, replies) = (self.punted.clone(), Arc::clone(&self.replies));
        Some(SlowPath { punted, replies, waker })
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
    /// [`PortError::Write`] when the worker is stalled.
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
            self.shared.counters.reset_port(port);
            self.shared.offloaded.reset_port(port);
        }
        Ok(())
    }

    /// Applies a batch, all or nothing, and returns its revision once the worker uses it.
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
        let now_ns = self.shared.now_ns.load(Ordering::Relaxed);
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

    /// The worker and offloaded flows are past every decision that used what is gone: its counters may
    /// start at zero.
    fn forget_left(&self, control: &mut Control) {
        for slot in control.left_slots.drain(..) {
            self.shared.counters.rule(slot).reset();
            self.shared.offloaded.rule(slot).reset();
            control.free_slots.push(slot);
        }
        for slot in control.left_meters.drain(..) {
            self.shared.meters.clear(slot);
            control.free_meters.push(slot);
        }
    }

    /// The worker is past every decision that knew them: nobody inherits the connections of an
    /// address.
    fn end_connections(&self, control: &mut Control) {
        let left = std::mem::take(&mut control.left_addresses);
        if !left.is_empty() {
            let gone = |vrf, address| left.contains(&(vrf, address));
            self.shared.memory.connections.purge(|t| gone(t.vrf, t.src) || gone(t.vrf, t.dst));
        }
    }

    /// Swaps the pointer and waits until the worker has moved on. The snapshot before stays alive
    /// until then, so a worker never has to free one. Then offloaded flows follow: also when the worker
    /// is late, since they must not be.
    fn publish(&self, control: &mut Control, changed: Sections) -> Result<u64, WriteError> {
        let published = self.publish_to_worker(control, changed);
        if published.is_ok() {
            self.end_connections(control);
        }
        if let Some(hot) = self.shared.hot.get() {
            hot.follow(&self.shared);
        }
        published
    }

    fn publish_to_worker(&self, control: &Control, changed: Sections) -> Result<u64, WriteError> {
        let before = self.shared.snapshot.load_full();
        let next = Arc::new(before.next(&control.master, changed));
        let revision = next.revision;
        self.shared.snapshot.store(next);
        if let Some(waker) = &control.waker {
            waker.wake();
        }
        let (mut waited, mut pause) = (Duration::ZERO, WORKER_CHECK);
        while self.shared.running.load(Ordering::Acquire)
            && self.shared.seen.load(Ordering::Acquire) < revision
        {
            if waited >= WORKER_PATIENCE {
                return Err(WriteError::Stalled { revision });
            }
            std::thread::park_timeout(pause);
            waited += pause;
            pause = (pause * 2).min(WORKER_CHECK_MAX);
        }
        drop(before);
        Ok(revision)
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
            let counters = self.shared.counters.port(spec.id);
            let offloaded = self.shared.offloaded.port(spec.id);
            let binding = match control.master.entries.get(&EntryKey::Port(spec.id)) {
                Some(Entry::Port(entry)) => Some(entry.clone()),
                _ => None,
            };
            PortStats {
                spec: spec.clone(),
                binding,
                rx: counters.rx.read().plus(offloaded.rx.read()),
                tx: counters.tx.read().plus(offloaded.tx.read()),
                drops: counters.drops.read().packets,
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
            self.shared.counters.rule(*slot).read().plus(offloaded)
        })
    }

    /// Every drop reason and what ended by it.
    #[must_use]
    pub fn drops(&self) -> Vec<(DropReason, Count)> {
        let read =
            |reason: &DropReason| (*reason, self.shared.counters.drop_reason(*reason).read());
        DropReason::ALL.iter().map(read).collect()
    }

    /// How packets were decided.
    #[must_use]
    pub fn cache(&self) -> CacheStats {
        let [exact_hits, masked_hits, pipeline] = self.shared.counters.tiers();
        let [entries, masked_entries, masks] = self.shared.counters.entries();
        CacheStats { exact_hits, masked_hits, pipeline, entries, masked_entries, masks }
    }

    /// What the worker has done, and where its time went.
    #[must_use]
    pub fn work(&self) -> WorkStats {
        self.shared.counters.work().read()
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

    fn lock(&self) -> MutexGuard<'_, Control> {
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
