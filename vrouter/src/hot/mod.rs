//! Flows that are forwarded without the engine: offered by workers, kept by one thread, ended by
//! whoever makes them untrue.
//!
//! A worker offers a flow that has carried enough ([`Hot::offer`]). The keeper's thread gives it a
//! place in the table ([`Hot::serve`]), counts what the table forwarded, keeps its connection alive
//! ([`Hot::harvest`]), and takes back what is idle. A worker that sees a SYN, FIN or RST stops both
//! ways of the connection before it forwards the packet ([`Hot::end`]). Who publishes new tables asks
//! them about every flow that rests on what has changed ([`Hot::follow`]): one that is decided the
//! same goes on, another is stopped, and is through with its last packet before the change is
//! acknowledged.
//!
//! Nothing depends on the keeper for being right: a flow says at which revision it was decided, and
//! the table compares that with what was published, as the exact cache does.
//!
//! Locks, in this order: `retiring`, `book`, `conns`. Workers take the last one only.

mod book;
mod control;
mod keeper;
mod reason;

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;

use crossbeam::queue::ArrayQueue;
use flowtable::action::Exit;
use flowtable::conn::{ConnRef, Hit, Seconds};
use flowtable::entry::Offload;
use flowtable::exact::ExactMap;
use flowtable::hot::{HotCount, HotFlow, HotTable};
use flowtable::ids::{PortId, Vrf};
use flowtable::key::{FlowKey, Parsed, tcp_flag};
use flowtable::text::FlowSpec;
use flowtable::{ActionList, Verdict};

use crate::counters::Count;
use crate::pipeline::{self, Decision, NO_SLOT, Relation};
use crate::snapshot::{Section, Snapshot};
use crate::trace::Silent;
use crate::worker::Shared;
use book::{Book, Record, Stage};
pub(crate) use reason::judge;

pub use book::HotLimits;
pub use keeper::HotKeeper;
pub use reason::NotHot;

/// Offers that wait for the keeper; a worker offers again what found no room.
const OFFERS: usize = 1024;
/// Harvests without a packet after which a flow is taken back: below every timeout of a connection.
const IDLE_ROUNDS: u32 = 10;

/// Whether flows are offloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offloading {
    /// Those that carry much.
    On,
    /// None.
    Off,
}

/// A flow that a worker has decided and counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) key: FlowKey,
    pub(crate) decision: Decision,
    pub(crate) hit: Option<Hit>,
}

impl Offer {
    /// The container's port that it would count for.
    fn payer(&self) -> u16 {
        match self.decision.verdict {
            Verdict::Forward(actions) => book::payer(&self.key, &actions),
            Verdict::Drop(_) | Verdict::Punt(_) => self.key.in_port,
        }
    }
}

/// Numbers of the offloaded flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotStats {
    /// Whether flows are offloaded.
    pub on: bool,
    /// Offloaded now.
    pub flows: u64,
    /// Most at once.
    pub flows_max: u64,
    /// Ever offloaded.
    pub offloaded: u64,
    /// Taken back because they were idle.
    pub idle: u64,
    /// Taken back because their connection ended or was about to.
    pub ended: u64,
    /// Taken back because the tables say something else now.
    pub changed: u64,
    /// Decided again, the same, after a change.
    pub confirmed: u64,
    /// Forwarded without the engine, as on the wire.
    pub count: Count,
    /// Offers that were refused.
    pub refused: Vec<(NotHot, u64)>,
    /// Tenants that have offloaded flows or ports that are to have none, in the order of their ids.
    pub tenants: Vec<HotTenant>,
}

/// Offloaded flows of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotTenant {
    /// The tenant.
    pub vrf: Vrf,
    /// Offloaded now.
    pub flows: u32,
    /// Most at once.
    pub flows_max: u32,
    /// Its ports on this node whose flows may not be offloaded.
    pub ports_off: u32,
}

/// An offloaded flow, for listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotFlowStats {
    /// Its packets, and what is done to them.
    pub flow: HotFlow,
    /// Forwarded without the engine since it was offloaded.
    pub count: Count,
}

#[derive(Debug, Default)]
struct Numbers {
    offloaded: AtomicU64,
    idle: AtomicU64,
    ended: AtomicU64,
    changed: AtomicU64,
    confirmed: AtomicU64,
    packets: AtomicU64,
    bytes: AtomicU64,
    refused: [AtomicU64; NotHot::REFUSALS.len()],
}

/// Connections that have offloaded flows.
#[derive(Debug, Default)]
struct Conns {
    /// One place for each way.
    places: ExactMap<ConnRef, [Option<u32>; 2]>,
    /// Stopped by a worker; the keeper sees them off.
    ended: Vec<(ConnRef, u32)>,
}

/// The offloaded flows of an engine.
#[derive(Debug)]
pub(crate) struct Hot {
    table: Arc<dyn HotTable>,
    limits: HotLimits,
    on: AtomicBool,
    offers: ArrayQueue<Offer>,
    /// Held while stopped flows are seen off, by who does so.
    retiring: Mutex<()>,
    book: Mutex<Book>,
    conns: Mutex<Conns>,
    /// Whose packets somebody wants to see.
    watched: Mutex<Option<FlowSpec>>,
    keeper: OnceLock<Thread>,
    numbers: Numbers,
}

impl Hot {
    pub(crate) fn new(table: Arc<dyn HotTable>, limits: HotLimits) -> Self {
        let book = Book::new(table.places(), limits);
        Self {
            table,
            limits,
            on: AtomicBool::new(true),
            offers: ArrayQueue::new(OFFERS),
            retiring: Mutex::default(),
            book: Mutex::new(book),
            conns: Mutex::default(),
            watched: Mutex::default(),
            keeper: OnceLock::new(),
            numbers: Numbers::default(),
        }
    }

    pub(crate) fn table(&self) -> &dyn HotTable {
        &*self.table
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Packets of a flow before it is offered.
    pub(crate) const fn after_packets(&self) -> u64 {
        self.limits.after_packets
    }

    /// From a worker: whether the keeper will look at it.
    pub(crate) fn offer(&self, offer: Offer) -> bool {
        let taken = self.offers.push(offer).is_ok();
        self.wake();
        taken
    }

    /// From a worker, before it forwards a packet that may end a connection: its packets are the
    /// engine's when this returns.
    #[cold]
    pub(crate) fn end(&self, conn: ConnRef) {
        let mut conns = lock(&self.conns);
        let Some(places) = conns.places.remove(&conn) else { return };
        for place in places.into_iter().flatten() {
            self.table.stop(place);
            conns.ended.push((conn, place));
        }
        drop(conns);
        self.wake();
    }

    fn wake(&self) {
        if let Some(keeper) = self.keeper.get() {
            keeper.unpark();
        }
    }

    /// Starts or stops offloading. When this returns after a stop, all packets are the engine's.
    pub(crate) fn switch(&self, shared: &Shared, to: Offloading) {
        self.on.store(to == Offloading::On, Ordering::Relaxed);
        if to == Offloading::Off {
            self.take_back(shared, |_| true);
        }
    }

    /// Takes back the flows whose packets somebody wants to see, or no longer. In time: this is called
    /// by the worker, and the keeper does it.
    pub(crate) fn watch(&self, spec: Option<FlowSpec>) {
        *lock(&self.watched) = spec;
        self.wake();
    }

    /// Puts an offered flow in the table, or confirms it there.
    fn admit(&self, book: &mut Book, offer: &Offer, shared: &Shared) -> Result<(), NotHot> {
        let snapshot = shared.snapshot.load();
        let Offer { key, decision, hit } = offer;
        let now = shared.seconds();
        if !self.is_on() {
            return Err(NotHot::Off);
        }
        if !decision.holds_on(&snapshot) {
            // Its next packet is decided anew.
            return Err(NotHot::New);
        }
        if lock(&self.watched).as_ref().is_some_and(|spec| spec.matches(key)) {
            return Err(NotHot::Watched);
        }
        let actions = judge(key, (decision, *hit), (shared, &snapshot), now)?;
        let vrf = pipeline::tenant(&snapshot, key).ok_or(NotHot::NotForwarded)?;
        // What opened a connection goes its way since.
        let opened = decision.relation == Relation::Opening;
        let relation = if opened { Relation::Original } else { decision.relation };
        let record = Record {
            flow: HotFlow {
                key: *key,
                actions,
                set: decision.sections.bits(),
                revision: decision.revision,
                is_reply: relation == Relation::Reply,
            },
            relation,
            slots: decision.slots,
            hit: *hit,
            vrf,
            counted: HotCount::default(),
            carried: 0,
            idle_rounds: 0,
            stage: Stage::Live,
        };
        if let Some(place) = book.find(key) {
            self.confirm(book, place, &record);
            return Ok(());
        }
        let place = book.add(record)?;
        self.begin(&record, place);
        if self.table.put(place, &record.flow).is_err() {
            // Nothing was ever forwarded there.
            self.forget_conn(&record, place);
            book.remove(place);
            return Err(NotHot::Refused);
        }
        self.numbers.offloaded.fetch_add(1, Ordering::Relaxed);
        // A worker that ended the connection meanwhile has found nothing to stop.
        if record.hit.is_some_and(|hit| !shared.memory.connections.is_mutual(hit.conn, now)) {
            self.stop(book, place);
        }
        Ok(())
    }

    /// A flow that is in the table was offered.
    fn confirm(&self, book: &mut Book, place: u32, offered: &Record) {
        let Some(known) = book.record_mut(place).filter(|r| r.stage == Stage::Live) else { return };
        let HotFlow { revision, .. } = offered.flow;
        let same = HotFlow { revision, ..known.flow } == offered.flow
            && (known.relation, known.slots) == (offered.relation, offered.slots)
            && known.hit == offered.hit;
        if !same {
            self.stop(book, place);
        } else if revision > known.flow.revision {
            known.flow.revision = revision;
            self.table.stamp(place, revision);
        }
    }

    /// From now on a worker finds the flow by its connection.
    fn begin(&self, record: &Record, place: u32) {
        if let Some(Hit { conn, .. }) = record.hit {
            let mut conns = lock(&self.conns);
            let places = conns.places.entry(conn).or_default();
            places[usize::from(record.flow.is_reply)] = Some(place);
        }
    }

    fn forget_conn(&self, record: &Record, place: u32) {
        let Some(Hit { conn, .. }) = record.hit else { return };
        let mut conns = lock(&self.conns);
        let Some(places) = conns.places.get_mut(&conn) else { return };
        let own = &mut places[usize::from(record.flow.is_reply)];
        if *own == Some(place) {
            *own = None;
        }
        if *places == [None; 2] {
            conns.places.remove(&conn);
        }
    }

    /// Its packets are the engine's from now on.
    fn stop(&self, book: &mut Book, place: u32) {
        self.table.stop(place);
        if let Some(record) = book.record(place) {
            self.forget_conn(record, place);
        }
        book.leave(place);
    }

    /// New tables were published, and workers are past the old ones: flows that they decide
    /// differently are stopped, and through with their last packet when this returns.
    pub(crate) fn follow(&self, shared: &Shared) {
        let snapshot = shared.snapshot.load_full();
        if snapshot.changed(Section::Ports) {
            self.set_sample_rates(shared);
        }
        let retiring = lock(&self.retiring);
        let mut book = lock(&self.book);
        let rests =
            |record: &Record| record.flow.revision < snapshot.valid_since_set(record.flow.set);
        let affected = places(&book, rests);
        let now = shared.seconds();
        for place in affected {
            let Some(record) = book.record_mut(place) else { continue };
            if is_decided_the_same(record, (shared, &snapshot), now) {
                record.flow.revision = snapshot.revision;
                self.table.stamp(place, snapshot.revision);
                self.numbers.confirmed.fetch_add(1, Ordering::Relaxed);
            } else {
                self.stop(&mut book, place);
                self.numbers.changed.fetch_add(1, Ordering::Relaxed);
            }
        }
        // Before anyone else may put in a flow that was decided before.
        self.table.publish(snapshot.valid_since_all());
        drop(book);
        self.see_off(shared);
        drop(retiring);
    }

    /// What is forwarded without the engine is sampled as it samples.
    pub(crate) fn set_sample_rates(&self, shared: &Shared) {
        let snapshot = shared.snapshot.load();
        let other = shared.sample_rate.load(Ordering::Relaxed);
        for port in snapshot.ports.all() {
            let own = port.binding.as_ref().map_or(0, |binding| binding.sample_rate);
            self.table.sample(port.spec.id, if own == 0 { other } else { own });
        }
    }

    /// Stops flows and waits for the last of their packets.
    fn take_back(&self, shared: &Shared, which: impl Fn(&Record) -> bool) {
        let retiring = lock(&self.retiring);
        let mut book = lock(&self.book);
        for place in places(&book, which) {
            self.stop(&mut book, place);
            self.numbers.changed.fetch_add(1, Ordering::Relaxed);
        }
        drop(book);
        self.see_off(shared);
        drop(retiring);
    }

    /// What was forwarded, in the counters of ports and rules.
    pub(crate) fn count(&self, shared: &Shared) {
        if self.numbers.offloaded.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut book = lock(&self.book);
        // Also of those that leave.
        let all: Vec<u32> = book.all().map(|(place, _)| place).collect();
        for place in all {
            self.count_place(&mut book, place, shared);
        }
    }

    /// Adds what a flow has carried since it was counted last.
    fn count_place(&self, book: &mut Book, place: u32, shared: &Shared) {
        let Some(record) = book.record_mut(place) else { return };
        let now = self.table.count(place);
        let packets = now.packets.saturating_sub(record.counted.packets);
        // A program adds packets first.
        let bytes = now.bytes.saturating_sub(record.counted.bytes);
        record.counted = now;
        record.carried += packets;
        let added = Count { packets, bytes };
        let counters = &shared.offloaded;
        let HotFlow { key, actions, .. } = record.flow;
        // The table counts frames as containers see them.
        let [received, sent] = outer_bytes(&key, &actions)
            .map(|outer| Count { packets, bytes: bytes + packets * outer });
        if let Ok(port) = PortId::new(key.in_port.into()) {
            counters.port(port).rx.add_count(received);
        }
        counters.port(actions.output()).tx.add_count(sent);
        for slot in record.slots.into_iter().filter(|slot| *slot != NO_SLOT) {
            counters.rule(slot).add_count(added);
        }
        self.numbers.packets.fetch_add(packets, Ordering::Relaxed);
        self.numbers.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Waits for the last packets of stopped flows, counts them and frees the places. `retiring` is
    /// held: who resets counters must not be overtaken.
    fn see_off(&self, shared: &Shared) {
        let leaving = lock(&self.book).take_leaving();
        if leaving.is_empty() {
            return;
        }
        let settled = self.table.settle();
        let mut book = lock(&self.book);
        for place in leaving {
            self.count_place(&mut book, place, shared);
            let Some(record) = book.record(place) else { continue };
            // Without the wait, a packet may still be on its way through the old entry.
            let cleared =
                settled.as_ref().is_ok_and(|()| self.table.clear(place, &record.flow).is_ok());
            if cleared { book.remove(place) } else { book.forget(place) }
        }
    }

    pub(crate) fn stats(&self, shared: &Shared) -> HotStats {
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let book = lock(&self.book);
        let flows = book.live().count() as u64;
        let tenants = self.tenants(&book, &shared.snapshot.load());
        drop(book);
        let numbers = &self.numbers;
        let refused = NotHot::REFUSALS.into_iter().zip(&numbers.refused);
        HotStats {
            on: self.is_on(),
            flows,
            flows_max: self.table.places().into(),
            offloaded: load(&numbers.offloaded),
            idle: load(&numbers.idle),
            ended: load(&numbers.ended),
            changed: load(&numbers.changed),
            confirmed: load(&numbers.confirmed),
            count: Count { packets: load(&numbers.packets), bytes: load(&numbers.bytes) },
            refused: refused.map(|(reason, count)| (reason, load(count))).collect(),
            tenants,
        }
    }

    fn tenants(&self, book: &Book, snapshot: &Snapshot) -> Vec<HotTenant> {
        let mut numbers: BTreeMap<Vrf, [u32; 2]> = BTreeMap::new();
        for (vrf, flows) in book.of_tenants() {
            numbers.entry(vrf).or_default()[0] = flows;
        }
        for binding in snapshot.ports.all().filter_map(|port| port.binding.as_ref()) {
            if binding.offload == Offload::Off {
                numbers.entry(binding.vrf).or_default()[1] += 1;
            }
        }
        let flows_max = self.limits.tenant_flows;
        let numbers = numbers.into_iter();
        numbers
            .map(|(vrf, [flows, ports_off])| HotTenant { vrf, flows, flows_max, ports_off })
            .collect()
    }

    /// Why a flow that may be offloaded and has carried enough is not.
    pub(crate) fn refusal(
        &self,
        (key, verdict): (&FlowKey, Verdict),
        snapshot: &Snapshot,
    ) -> NotHot {
        if lock(&self.watched).as_ref().is_some_and(|spec| spec.matches(key)) {
            return NotHot::Watched;
        }
        let Some(vrf) = pipeline::tenant(snapshot, key) else { return NotHot::NotForwarded };
        let Verdict::Forward(actions) = verdict else { return NotHot::NotForwarded };
        let room = lock(&self.book).room((book::payer(key, &actions), vrf));
        // Its next offer may find room, or the table refuses it.
        room.err().unwrap_or(NotHot::Refused)
    }

    /// The offloaded flows.
    pub(crate) fn list(&self) -> Vec<HotFlowStats> {
        let book = lock(&self.book);
        let stats = |(place, record): (u32, &Record)| {
            let counted = self.table.count(place);
            let count = Count { packets: counted.packets, bytes: counted.bytes };
            HotFlowStats { flow: record.flow, count }
        };
        book.live().map(stats).collect()
    }

    fn refuse(&self, reason: NotHot) {
        let at = NotHot::REFUSALS.iter().position(|refusal| *refusal == reason);
        if let Some(count) = at.and_then(|at| self.numbers.refused.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Bytes of tunnel headers on packets of a flow as they come and as they leave.
fn outer_bytes(key: &FlowKey, actions: &ActionList) -> [u64; 2] {
    let came = if key.vni == 0 {
        0
    } else {
        crate::rewrite::outer_bytes(Ipv6Addr::from(key.tun_src).to_canonical())
    };
    let leaves = match actions.exit {
        Exit::Tunnel { vtep, .. } => crate::rewrite::outer_bytes(vtep),
        Exit::Plain(_) | Exit::Vlan { .. } | Exit::Translated { .. } => 0,
    };
    [came, leaves].map(|bytes| bytes as u64)
}

/// Places of live flows that `which` is true for.
fn places(book: &Book, which: impl Fn(&Record) -> bool) -> Vec<u32> {
    book.live().filter(|(_, record)| which(record)).map(|(place, _)| place).collect()
}

/// Whether the next packet of a flow, were it the engine's, would be treated as it is offloaded: as
/// [`crate::worker::Worker`] decides a flow that is new to it.
fn is_decided_the_same(
    record: &Record,
    (shared, snapshot): (&Shared, &Snapshot),
    now: Seconds,
) -> bool {
    let looked_at = snapshot.policy.rules.tcp_flags_mask();
    let tcp_flags = tcp_flag::ACK;
    let key = FlowKey { tcp_flags: tcp_flags & looked_at, ..record.flow.key };
    let parsed = Parsed { key, tcp_flags, ..Parsed::default() };
    let standing = shared.memory.stand(snapshot, (&parsed, &[]), now);
    if (standing.relation, standing.hit) != (record.relation, record.hit) {
        return false;
    }
    let decision = pipeline::walk(snapshot, &parsed, standing.seen(), &mut Silent);
    let actions = judge(&key, (&decision, record.hit), (shared, snapshot), now);
    actions == Ok(record.flow.actions)
        && decision.slots == record.slots
        && decision.sections.bits() == record.flow.set
        && pipeline::tenant(snapshot, &key) == Some(record.vrf)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under one of these locks ends the process: vrouterd does not go on after one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
