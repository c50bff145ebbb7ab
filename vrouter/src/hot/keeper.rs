//! The thread that keeps the offloaded flows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Hot, IDLE_ROUNDS, NotHot, lock, places};
use crate::worker::Shared;

/// Between two harvests.
const HARVEST_NS: u64 = 1_000_000_000;
/// Longest sleep: a worker's offer ends it.
const WAIT: Duration = Duration::from_millis(100);
/// Between two rounds of seeing flows off: each waits for the kernel.
const RETIRE_NS: u64 = 50_000_000;

/// Keeps the offloaded flows; run it on a thread of its own, once.
#[derive(Debug)]
pub struct HotKeeper {
    pub(crate) shared: Arc<Shared>,
}

impl HotKeeper {
    /// Serves workers' offers, counts, and takes back idle flows until `stop` is set. `clock` gives
    /// nanoseconds of a steady clock.
    pub fn run(&self, clock: impl Fn() -> u64, stop: &AtomicBool) {
        let Some(hot) = self.shared.hot.get() else { return };
        // Nobody else has run it.
        hot.keeper.set(std::thread::current()).ok();
        let (mut harvested_ns, mut retired_ns) = (clock(), clock());
        while !stop.load(Ordering::Relaxed) {
            hot.table.beat();
            hot.serve(&self.shared);
            if clock().saturating_sub(harvested_ns) >= HARVEST_NS {
                harvested_ns = clock();
                hot.harvest(&self.shared);
            }
            if clock().saturating_sub(retired_ns) >= RETIRE_NS {
                hot.retire(&self.shared);
                // After it: the kernel may have taken its time.
                retired_ns = clock();
            }
            std::thread::park_timeout(WAIT);
        }
    }

    /// One round: offers are served, and ended flows are through with their last packet. For engines
    /// without the thread.
    pub fn poll(&self) {
        if let Some(hot) = self.shared.hot.get() {
            hot.table.beat();
            hot.serve(&self.shared);
            hot.retire(&self.shared);
        }
    }

    /// What is done once a second: counts, keeps connections alive, takes back idle flows.
    pub fn harvest(&self) {
        if let Some(hot) = self.shared.hot.get() {
            hot.harvest(&self.shared);
        }
    }
}

impl Hot {
    /// Looks at what workers have ended and offered.
    fn serve(&self, shared: &Shared) {
        let mut book = lock(&self.book);
        let ended = std::mem::take(&mut lock(&self.conns).ended);
        for (conn, place) in ended {
            let record = book.record(place);
            if record.and_then(|r| r.hit).is_some_and(|hit| hit.conn == conn) {
                self.stop(&mut book, place);
                self.numbers.ended.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let Some(spec) = lock(&self.watched).as_ref() {
            for place in places(&book, |record| spec.matches(&record.flow.key)) {
                self.stop(&mut book, place);
            }
        }
        // Bounded: workers may offer as fast as this goes.
        for _ in 0..self.offers.capacity() {
            let Some(offer) = self.offers.pop() else { return };
            let Err(reason) = self.admit(&mut book, &offer, shared) else { continue };
            self.refuse(reason);
            let full = matches!(reason, NotHot::PortQuota | NotHot::TenantQuota | NotHot::Full);
            let snapshot = shared.snapshot.load();
            let vrf = crate::pipeline::tenant(&snapshot, &offer.key).filter(|_| full);
            // The worker offers it again.
            if let Some(vrf) = vrf
                && let Some(place) = book.coldest(reason, (offer.payer(), vrf))
            {
                self.stop(&mut book, place);
                self.numbers.idle.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Sees off what is stopped.
    fn retire(&self, shared: &Shared) {
        let _retiring = lock(&self.retiring);
        self.see_off(shared);
    }

    fn harvest(&self, shared: &Shared) {
        let mut book = lock(&self.book);
        let now = shared.seconds();
        let connections = &shared.memory.connections;
        for place in places(&book, |_| true) {
            self.count_place(&mut book, place, shared);
            let Some(record) = book.record_mut(place) else { continue };
            let packets = std::mem::take(&mut record.carried);
            record.idle_rounds = if packets > 0 { 0 } else { record.idle_rounds + 1 };
            let idle = record.idle_rounds >= IDLE_ROUNDS;
            let lives = record.hit.is_none_or(|hit| match packets {
                0 => connections.is_mutual(hit.conn, now),
                _ => connections.keep(hit.conn, now),
            });
            let number = match (lives, idle) {
                (true, false) => continue,
                (true, true) => &self.numbers.idle,
                (false, _) => &self.numbers.ended,
            };
            self.stop(&mut book, place);
            number.fetch_add(1, Ordering::Relaxed);
        }
        book.set_cold();
    }
}
