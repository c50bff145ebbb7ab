//! The table: shards, slots and budget together.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use rapidhash::v3::RapidSecrets;

use super::budget::{Budget, Scope};
use super::shard::{NONE, Shard};
use super::slots::{CHUNK, Slot, Slots, Word};
use super::state::{Outcome, State};
use super::timeouts::{Lifetimes, Seconds};
use super::tuple::{Tuple, Way};
use super::types::{
    ConnConfig, ConnCounts, ConnRef, ConnStats, Hit, Limits, Opening, Outside, Owner, Refused, Step,
};
use crate::ids::{PortId, Vrf};

/// Enough that workers rarely meet at one, and few enough to visit all.
const SHARDS: usize = 64;
const CAPACITY_MAX: usize = 1 << 26;
/// Half-open connections looked at for a victim. What is refused must stay cheap: each costs up
/// to two cache misses.
const WALK_MAX: usize = 32;
/// Slots looked at under one hold of a shard's lock, so that a worker waits a few microseconds.
const BATCH: u32 = 256;

/// The connections of this node; see the module. Share it as `Arc<ConnTable>`.
#[derive(Debug)]
pub struct ConnTable {
    secrets: RapidSecrets,
    lifetimes: Lifetimes,
    /// Places of each shard are `1 << places_log2`, a multiple of [`CHUNK`].
    places_log2: u32,
    shards: Box<[Padded]>,
    slots: Slots,
    /// Slots that were ever used, of all shards.
    used: AtomicU32,
    budget: Budget,
    /// Where the next sweep begins.
    broom: Mutex<Broom>,
}

/// Shards are on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded {
    locked: Mutex<Shard>,
    /// Changed by the lock's holder and by workers whose packet completes a handshake. Counted
    /// before the state says half-open and after it no longer does, so never below zero.
    half_open: AtomicU32,
}

#[derive(Debug, Default)]
struct Broom {
    shard: usize,
    place: u32,
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Expired,
    Evicted,
    Replaced,
    Purged,
}

/// A shard whose lock is held.
struct Held<'t> {
    table: &'t ConnTable,
    padded: &'t Padded,
    /// Index of the shard's first slot.
    base: u32,
    shard: MutexGuard<'t, Shard>,
}

impl ConnTable {
    /// An empty table. Memory for connections is made as they come.
    #[must_use]
    pub fn new(config: ConnConfig) -> Self {
        Self::with_shards(config, SHARDS)
    }

    /// `shards` is a power of two.
    pub(super) fn with_shards(config: ConnConfig, shards: usize) -> Self {
        let capacity = config.capacity.clamp(1, CAPACITY_MAX);
        // The hash fills shards evenly within a few times the square root of their mean, so twice
        // the mean, and all of a small capacity, leaves the capacity as the only bound.
        let places = capacity.min(2 * capacity / shards + 1024).max(CHUNK as usize);
        let places = places.next_power_of_two();
        Self {
            secrets: RapidSecrets::seed(config.seed),
            lifetimes: Lifetimes::new(&config.timeouts),
            places_log2: places.trailing_zeros(),
            shards: (0..shards).map(|_| Padded::default()).collect(),
            slots: Slots::new((places * shards) as u32),
            used: AtomicU32::new(0),
            budget: Budget::new(capacity as u32),
            broom: Mutex::default(),
        }
    }

    /// The live connection a packet belongs to. `None`: it belongs to none, also when its
    /// connection has expired, or is closed or in time-wait and the packet is a SYN without ACK,
    /// which begins the next one. `tcp_flags` is byte 13 of the TCP header, else anything.
    #[must_use]
    pub fn lookup(&self, tuple: &Tuple, tcp_flags: u8, now: Seconds) -> Option<Hit> {
        self.find(tuple, tcp_flags, now).map(|(hit, _)| hit)
    }

    /// As [`ConnTable::lookup`]; with the far side of one that came to a published port.
    #[must_use]
    pub fn find(
        &self,
        tuple: &Tuple,
        tcp_flags: u8,
        now: Seconds,
    ) -> Option<(Hit, Option<Outside>)> {
        let hash = tuple.hash(&self.secrets);
        let held = self.hold(self.shard_of(hash));
        let (place, way) = held.shard.find(hash as u32, tuple)?;
        let (word, state) = held.word(place)?;
        self.left(held.slot(place)?, state, now)?;
        if state.is_over_for(tcp_flags) {
            return None;
        }
        Some((Hit { conn: held.conn(place, word), way }, held.shard.outside(place)))
    }

    /// Makes a connection whose originator sent a packet with `tuple`, which is thereby noted. If
    /// there is a live one, for instance because another worker has just made it in either
    /// direction, it is returned as by [`ConnTable::lookup`], and nothing is noted.
    ///
    /// # Errors
    /// [`Refused`] when the packet opens nothing, or a limit is reached and the oldest half-open
    /// connections of the same scope in this shard, as far as they are looked at, leave no room.
    /// A half-open one may have been removed for a narrower limit by then.
    pub fn open(
        &self,
        tuple: &Tuple,
        opening: Opening,
        limits: Limits,
        now: Seconds,
    ) -> Result<Hit, Refused> {
        let hash = tuple.hash(&self.secrets);
        let tag = hash as u32;
        let mut held = self.hold(self.shard_of(hash));
        let begins = State::opened_by(tuple.proto, &opening).ok_or(Refused::NotAnOpening);
        if let Some((place, way)) = held.shard.find(tag, tuple) {
            match held.judge(place, opening.tcp_flags, now) {
                Ok(_) if held.published(place) != opening.outside.map(|o| o.published) => {
                    let cause = Refused::NotAnOpening;
                    held.shard.totals.refuse(cause);
                    return Err(cause);
                }
                Ok(conn) => return Ok(Hit { conn, way }),
                Err(end) if begins.is_ok() => held.end(place, end),
                Err(_) => {}
            }
        }
        let begun =
            begins.and_then(|state| held.reserve(opening.owner, limits, now).map(|()| state));
        let state = begun.inspect_err(|&cause| held.shard.totals.refuse(cause))?;
        Ok(Hit { conn: held.begin((tag, *tuple), &opening, state, now), way: Way::Original })
    }

    /// Notes a packet: the state it leads to and the time. Without a lock; two cache lines.
    /// `tcp_flags` is byte 13 of the TCP header, else anything.
    #[inline]
    pub fn advance(&self, conn: ConnRef, way: Way, tcp_flags: u8, now: Seconds) -> Step {
        let Some(slot) = self.slots.at(conn.index) else { return Step::Gone };
        let mut word = slot.word();
        // Ends: a failed exchange means that the state has moved on, which it does a few times at
        // most, or that the connection has ended.
        loop {
            let Some(state) = word.state().filter(|_| word.incarnation() == conn.incarnation)
            else {
                return Step::Gone;
            };
            if self.left(slot, state, now).is_none() {
                return Step::Gone;
            }
            let next = match state.after(way, tcp_flags) {
                Outcome::Invalid => return Step::Invalid,
                Outcome::Anew => return Step::Gone,
                Outcome::Pass => return Step::Live { settled: state.is_settled() },
                Outcome::Next(next) => next,
            };
            match self.change(conn.index, slot, (word, state), next) {
                Ok(()) => {
                    slot.note(now);
                    return Step::Live { settled: next.is_settled() };
                }
                Err(other) => word = other,
            }
        }
    }

    /// What [`ConnTable::advance`] would answer. Nothing is noted: for traces.
    #[must_use]
    pub fn foresee(&self, conn: ConnRef, way: Way, tcp_flags: u8, now: Seconds) -> Step {
        let Some(slot) = self.slots.at(conn.index) else { return Step::Gone };
        let word = slot.word();
        let alive = |state: &State| {
            word.incarnation() == conn.incarnation && self.left(slot, *state, now).is_some()
        };
        let Some(state) = word.state().filter(alive) else { return Step::Gone };
        match state.after(way, tcp_flags) {
            Outcome::Invalid => Step::Invalid,
            Outcome::Anew => Step::Gone,
            Outcome::Pass => Step::Live { settled: state.is_settled() },
            Outcome::Next(next) => Step::Live { settled: next.is_settled() },
        }
    }

    /// Whether the connection lives, is established or answered, and none of its sides has begun to
    /// end it: until a SYN, FIN or RST its packets change nothing but the time of the last one.
    #[must_use]
    pub fn is_mutual(&self, conn: ConnRef, now: Seconds) -> bool {
        self.mutual(conn, now).is_some()
    }

    /// Notes that packets of the connection were forwarded elsewhere, if it is what
    /// [`ConnTable::is_mutual`] says; returns whether it is.
    pub fn keep(&self, conn: ConnRef, now: Seconds) -> bool {
        self.mutual(conn, now).map(|slot| slot.note(now)).is_some()
    }

    fn mutual(&self, conn: ConnRef, now: Seconds) -> Option<&Slot> {
        let slot = self.slots.at(conn.index)?;
        let word = slot.word();
        let state = word.state().filter(|_| word.incarnation() == conn.incarnation)?;
        let lives = state.is_mutual() && self.left(slot, state, now).is_some();
        lives.then_some(slot)
    }

    #[inline]
    fn change(
        &self,
        index: u32,
        slot: &Slot,
        (word, state): (Word, State),
        next: State,
    ) -> Result<(), Word> {
        if state == next {
            return Ok(());
        }
        slot.change(word, Word::live(word.incarnation(), next))?;
        if state.is_half_open() && !next.is_half_open() {
            let shard = &self.shards[(index >> self.places_log2) as usize];
            shard.half_open.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Removes what has expired among the next `slots_max` slots, in turn over all shards, and
    /// returns how many that were. 0 while another worker sweeps. One call looks at no slot twice
    /// unless `slots_max` exceeds what there is; to meet each once per `n` calls, pass
    /// [`ConnTable::slots`] divided by `n`, plus one.
    pub fn sweep(&self, now: Seconds, slots_max: usize) -> usize {
        let mut broom = match self.broom.try_lock() {
            Ok(broom) => broom,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return 0,
        };
        let mut left = u32::try_from(slots_max).unwrap_or(u32::MAX);
        let mut expired = 0;
        let mut shards_passed = 0;
        while left > 0 && shards_passed <= self.shards.len() {
            let mut held = self.hold(broom.shard);
            let used = held.shard.used();
            let end = used.min(broom.place + left.min(BATCH));
            expired += (broom.place..end).filter(|&place| held.sweep_place(place, now)).count();
            left -= end - broom.place;
            broom.place = end;
            if end == used {
                *broom = Broom { shard: (broom.shard + 1) % self.shards.len(), place: 0 };
                shards_passed += 1;
            }
        }
        expired
    }

    /// Slots made so far, which is what a whole sweep looks at.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.used.load(Ordering::Relaxed) as usize
    }

    /// Removes the connections for which `gone` is true, given their tuple in the original
    /// direction, and returns how many that were. One opened meanwhile may be missed: first see to
    /// it that none is opened. `gone` is called under a lock and must not use the table.
    pub fn purge(&self, mut gone: impl FnMut(&Tuple) -> bool) -> usize {
        let mut purged = 0;
        self.visit(|held, place| {
            if held.word(place).is_some() && gone(&held.shard.cold(place).tuple) {
                held.end(place, End::Purged);
                purged += 1;
            }
            true
        });
        purged
    }

    /// Up to `limit` live connections, in no meaningful order.
    #[must_use]
    pub fn list(&self, now: Seconds, limit: usize) -> Vec<ConnStats> {
        let mut list = Vec::new();
        if limit == 0 {
            return list;
        }
        self.visit(|held, place| {
            list.extend(held.stats(place, now));
            list.len() < limit
        });
        list
    }

    /// One live connection. Takes a lock: for traces, not for every packet.
    #[must_use]
    pub fn stats(&self, conn: ConnRef, now: Seconds) -> Option<ConnStats> {
        let shard = (conn.index >> self.places_log2) as usize;
        if shard >= self.shards.len() {
            return None;
        }
        let held = self.hold(shard);
        let place = conn.index - held.base;
        held.word(place).filter(|(word, _)| word.incarnation() == conn.incarnation)?;
        held.stats(place, now)
    }

    /// Numbers of the table. While workers open connections, they are of slightly different times.
    #[must_use]
    pub fn counts(&self) -> ConnCounts {
        let mut counts = ConnCounts::default();
        for shard in 0..self.shards.len() {
            let held = self.hold(shard);
            counts.add_totals(&held.shard.totals);
            counts.half_open += u64::from(held.padded.half_open.load(Ordering::Relaxed));
        }
        counts.open = u64::from(self.budget.open_count());
        counts
    }

    /// Connections that count against a tenant.
    #[must_use]
    pub fn tenant_count(&self, vrf: Vrf) -> u32 {
        self.budget.tenant_count(vrf)
    }

    /// Connections that count against a port.
    #[must_use]
    pub fn port_count(&self, port: PortId) -> u32 {
        self.budget.port_count(port)
    }

    /// Calls `each` for the used places of all shards, until it returns false.
    fn visit(&self, mut each: impl FnMut(&mut Held<'_>, u32) -> bool) {
        let (mut shard, mut start) = (0, 0);
        while shard < self.shards.len() {
            let mut held = self.hold(shard);
            let used = held.shard.used();
            let end = used.min(start + BATCH);
            if !(start..end).all(|place| each(&mut held, place)) {
                return;
            }
            (shard, start) = if end == used { (shard + 1, 0) } else { (shard, end) };
        }
    }

    /// The highest bits tell the shard, the lowest 32 are the tag.
    pub(super) const fn shard_of(&self, hash: u64) -> usize {
        (hash >> 40) as usize & (self.shards.len() - 1)
    }

    fn hold(&self, number: usize) -> Held<'_> {
        let padded = &self.shards[number];
        // Nothing under the lock stops halfway but by a bug of ours.
        let shard = padded.locked.lock().unwrap_or_else(PoisonError::into_inner);
        Held { table: self, padded, base: (number as u32) << self.places_log2, shard }
    }

    #[inline]
    fn left(&self, slot: &Slot, state: State, now: Seconds) -> Option<Seconds> {
        self.lifetimes.left(state, now.since(slot.seen()))
    }

    #[cfg(test)]
    pub(super) fn shard_of_tuple(&self, tuple: &Tuple) -> usize {
        self.shard_of(tuple.hash(&self.secrets))
    }

    #[cfg(test)]
    pub(super) fn tenants_known(&self) -> usize {
        self.budget.tenants_known()
    }
}

impl Held<'_> {
    fn slot(&self, place: u32) -> Option<&Slot> {
        self.table.slots.at(self.base + place)
    }

    /// `None`: the place is free.
    fn word(&self, place: u32) -> Option<(Word, State)> {
        let word = self.slot(place)?.word();
        word.state().map(|state| (word, state))
    }

    const fn conn(&self, place: u32, word: Word) -> ConnRef {
        ConnRef { index: self.base + place, incarnation: word.incarnation() }
    }

    fn expired(&self, place: u32, state: State, now: Seconds) -> bool {
        self.slot(place).is_some_and(|slot| self.table.left(slot, state, now).is_none())
    }

    /// The published port that the connection at `place` came to.
    fn published(&self, place: u32) -> Option<(IpAddr, u16)> {
        self.shard.outside(place).map(|outside| outside.published)
    }

    /// The connection at `place` for a packet that may open one, or why it has to end for it.
    fn judge(&self, place: u32, tcp_flags: u8, now: Seconds) -> Result<ConnRef, End> {
        match self.word(place) {
            Some((word, state)) if !self.expired(place, state, now) => {
                if state.is_over_for(tcp_flags) {
                    Err(End::Replaced)
                } else {
                    Ok(self.conn(place, word))
                }
            }
            _ => Err(End::Expired),
        }
    }

    /// Takes one of each scope, or none.
    fn reserve(&mut self, owner: Owner, limits: Limits, now: Seconds) -> Result<(), Refused> {
        let full =
            Scope::ALL.iter().position(|&scope| !self.make_room(scope, (owner, limits), now));
        let Some(full) = full else { return Ok(()) };
        for &scope in &Scope::ALL[..full] {
            self.table.budget.give_back(scope, owner);
        }
        Err(Scope::ALL[full].refusal())
    }

    /// Takes one of `scope`; if need be, half-open connections in it go, the oldest first.
    fn make_room(&mut self, scope: Scope, account: (Owner, Limits), now: Seconds) -> bool {
        if self.take(scope, account) {
            return true;
        }
        let mut next = self.shard.oldest();
        for _ in 0..WALK_MAX {
            if next == NONE {
                return false;
            }
            let place = next;
            next = self.shard.newer(place);
            let in_scope = scope.is_shared(account.0, self.shard.cold(place).owner);
            if in_scope && self.evict(place, now) && self.take(scope, account) {
                return true;
            }
        }
        false
    }

    fn take(&self, scope: Scope, (owner, limits): (Owner, Limits)) -> bool {
        let has_place = scope != Scope::Table || self.shard.has_room(1 << self.table.places_log2);
        has_place && self.table.budget.take(scope, owner, limits)
    }

    /// Ends a listed connection if it is half-open still, and else takes it out of the list.
    fn evict(&mut self, place: u32, now: Seconds) -> bool {
        let Some((word, state)) = self.word(place) else { return false };
        if !state.is_half_open() {
            self.shard.unlist(place);
            return false;
        }
        let expired = self.expired(place, state, now);
        self.try_end(place, (word, state), if expired { End::Expired } else { End::Evicted })
    }

    /// Ends the connection if it has expired.
    fn sweep_place(&mut self, place: u32, now: Seconds) -> bool {
        let Some((word, state)) = self.word(place) else { return false };
        if self.expired(place, state, now) {
            return self.try_end(place, (word, state), End::Expired);
        }
        if !state.is_half_open() {
            self.shard.unlist(place);
        }
        false
    }

    fn stats(&self, place: u32, now: Seconds) -> Option<ConnStats> {
        let (_, state) = self.word(place)?;
        let slot = self.slot(place)?;
        let expires_in = self.table.left(slot, state, now)?;
        let cold = self.shard.cold(place);
        let idle = now.since(slot.seen());
        Some(ConnStats { tuple: cold.tuple, owner: cold.owner, state, idle, expires_in })
    }

    /// Makes a connection for which the budget is taken.
    fn begin(
        &mut self,
        (tag, tuple): (u32, Tuple),
        opening: &Opening,
        state: State,
        now: Seconds,
    ) -> ConnRef {
        let used = self.shard.used();
        let place = self.shard.insert(tag, tuple, opening.owner);
        if let Some(outside) = opening.outside {
            self.shard.set_outside(place, outside);
        }
        self.table.used.fetch_add(self.shard.used() - used, Ordering::Relaxed);
        if state.is_half_open() {
            self.shard.list(place);
            self.padded.half_open.fetch_add(1, Ordering::Relaxed);
        }
        self.shard.totals.opened += 1;
        let slot = self.table.slots.make(self.base + place);
        slot.begin(state, now);
        self.conn(place, slot.word())
    }

    /// Ends the connection at `place` whatever workers do with it meanwhile.
    fn end(&mut self, place: u32, end: End) {
        // Ends: while the lock is held, a word changes only as often as a state can move on.
        while let Some(seen) = self.word(place) {
            if self.try_end(place, seen, end) {
                return;
            }
        }
    }

    /// Ends the connection unless a worker has changed its word.
    fn try_end(&mut self, place: u32, (word, state): (Word, State), end: End) -> bool {
        let freed = Word::free(word.incarnation() + 1);
        let Some(slot) = self.slot(place) else { return false };
        if slot.change(word, freed).is_err() {
            return false;
        }
        if state.is_half_open() {
            self.padded.half_open.fetch_sub(1, Ordering::Relaxed);
        }
        let owner = self.shard.cold(place).owner;
        for scope in Scope::ALL {
            self.table.budget.give_back(scope, owner);
        }
        self.shard.remove(place);
        // A slot whose incarnations are used up stays empty, lest an old reference fit again.
        if freed.incarnation() != u32::MAX {
            self.shard.free(place);
        }
        let totals = &mut self.shard.totals;
        match end {
            End::Expired => totals.expired += 1,
            End::Evicted => totals.evicted += 1,
            End::Replaced => totals.replaced += 1,
            End::Purged => totals.purged += 1,
        }
        true
    }
}
