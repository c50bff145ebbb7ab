//! The log of dropped packets: the last ones of every tenant, and who listens to the next.
//!
//! A thread takes what the worker has noted (within its budget per tenant), stamps it with the time
//! of day and keeps it. Packets that policy denies are also lines of this process's log, a few a
//! second: names of tenants, groups and rules are netplugin's to add.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use datapath_api::v1;
use flowtable::DropReason;
use flowtable::ids::Vrf;
use tokio::sync::broadcast;
use vrouter::{Dropped, Engine};

/// How often the worker's queue is emptied: half of what a dropped packet may take to be seen.
const DRAIN: Duration = Duration::from_millis(50);
/// Packets kept of a tenant.
const KEPT: usize = 256;
/// Tenants that packets are kept of: about 25 MB when all of them have lost that many.
const TENANTS_MAX: usize = 512;
/// Packets that a slow follower may be behind; one that is further behind is cut off.
const BACKLOG: usize = 1024;
/// Lines in any second.
const LINES_PER_SECOND: usize = 10;

/// When a packet is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// As it is dropped.
    AtOnce,
    /// It was in the log when its reader came.
    Later,
}

/// A dropped packet, with the time at which it was taken from the worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Logged {
    unix_ns: u64,
    /// Counts packets of all tenants.
    number: u64,
    dropped: Dropped,
}

impl Logged {
    pub(crate) fn message(&self, read: Read) -> v1::DroppedPacket {
        let Dropped { reason, rule, in_port, vrf, src_group, key, suppressed, .. } = &self.dropped;
        v1::DroppedPacket {
            unix_ns: self.unix_ns,
            reason: reason.name().to_owned(),
            rule: rule.map_or(0, |r| r.0),
            in_port: in_port.get().into(),
            vrf: vrf.map_or(0, Vrf::get),
            src_group: src_group.get(),
            flow: key.to_string(),
            suppressed: *suppressed,
            number: self.number + 1,
            history: read == Read::Later,
        }
    }

    /// Whether it belongs to the tenant that is asked for; 0 is nobody's.
    pub(crate) fn is_of(&self, vrf: Option<u32>) -> bool {
        vrf.is_none_or(|vrf| vrf == self.dropped.vrf.map_or(0, Vrf::get))
    }
}

/// The last packets of every tenant, in the order of their numbers.
#[derive(Debug, Default)]
struct History {
    tenants: BTreeMap<Option<Vrf>, VecDeque<Logged>>,
    count: u64,
}

impl History {
    fn keep(&mut self, unix_ns: u64, dropped: Dropped) -> Logged {
        let logged = Logged { unix_ns, number: self.count, dropped };
        self.count += 1;
        if !self.tenants.contains_key(&dropped.vrf) && self.tenants.len() >= TENANTS_MAX {
            self.forget_quietest();
        }
        let packets = self.tenants.entry(dropped.vrf).or_default();
        if packets.len() >= KEPT {
            packets.pop_front();
        }
        packets.push_back(logged);
        logged
    }

    /// Makes room: the tenant that has lost nothing for the longest time goes.
    fn forget_quietest(&mut self) {
        let last = |packets: &VecDeque<Logged>| packets.back().map(|logged| logged.number);
        let quietest = self.tenants.iter().min_by_key(|(_, packets)| last(packets));
        if let Some(tenant) = quietest.map(|(tenant, _)| *tenant) {
            self.tenants.remove(&tenant);
        }
    }

    /// Oldest first.
    fn of(&self, vrf: Option<u32>) -> Vec<Logged> {
        let all = self.tenants.values().flatten();
        let mut wanted: Vec<Logged> = all.filter(|logged| logged.is_of(vrf)).copied().collect();
        wanted.sort_unstable_by_key(|logged| logged.number);
        wanted
    }
}

/// The log. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct DropLog {
    history: Arc<Mutex<History>>,
    follow: broadcast::Sender<Logged>,
}

impl DropLog {
    pub(crate) fn new() -> Self {
        Self { history: Arc::default(), follow: broadcast::Sender::new(BACKLOG) }
    }

    /// What is kept of a tenant, or of all, oldest first, and every packet of all after those.
    pub(crate) fn subscribe(&self, vrf: Option<u32>) -> (Vec<Logged>, broadcast::Receiver<Logged>) {
        // Under the lock: no packet is in both or in neither.
        let history = self.lock();
        (history.of(vrf), self.follow.subscribe())
    }

    /// The thread: takes what the worker notes until `stop` is set.
    pub(crate) fn run(&self, engine: &Engine, stop: &AtomicBool) {
        let queue = engine.dropped();
        let mut lines = Lines::default();
        while !stop.load(Ordering::Relaxed) {
            while let Some(dropped) = queue.pop() {
                self.take(dropped);
                lines.write(&dropped, Instant::now());
            }
            thread::park_timeout(DRAIN);
        }
    }

    fn take(&self, dropped: Dropped) {
        #[expect(clippy::disallowed_methods, reason = "people read when it was")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut history = self.lock();
        let logged = history.keep(now.as_nanos() as u64, dropped);
        // It fails when nobody listens, which is no failure.
        self.follow.send(logged).ok();
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        // Nothing here can panic between two changes that belong together.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which packets are lines, and how many were not since the last one that was.
#[derive(Debug, Default)]
struct Lines {
    /// When the last ones were written.
    recent: VecDeque<Instant>,
    /// Packets of all tenants, dropped for whatever reason, that have no line.
    unshown: u64,
}

impl Lines {
    fn write(&mut self, dropped: &Dropped, now: Instant) {
        let Some(unshown) = self.admit(dropped, now) else { return };
        let vrf = dropped.vrf.map_or(0, Vrf::get);
        let rule = dropped.rule.map_or(0, |r| r.0);
        let (group, flow) = (dropped.src_group.get(), &dropped.key);
        tracing::info!(vrf, group, rule, %flow, unshown, "policy denied a packet; `vrctl drops --log` shows more");
    }

    /// `Some`: a line is to be written, with this number of packets before it that had none.
    fn admit(&mut self, dropped: &Dropped, now: Instant) -> Option<u64> {
        self.unshown += dropped.suppressed;
        if dropped.reason != DropReason::PolicyDeny {
            return None;
        }
        let second = Duration::from_secs(1);
        while self.recent.front().is_some_and(|at| now.duration_since(*at) >= second) {
            self.recent.pop_front();
        }
        if self.recent.len() >= LINES_PER_SECOND {
            self.unshown += 1;
            return None;
        }
        self.recent.push_back(now);
        Some(std::mem::take(&mut self.unshown))
    }
}

#[cfg(test)]
mod tests {
    use flowtable::ids::{Group, PortId, RuleId};
    use flowtable::key::FlowKey;

    use super::*;

    fn dropped(vrf: u32, suppressed: u64) -> Dropped {
        Dropped {
            reason: DropReason::PolicyDeny,
            rule: Some(RuleId(7)),
            in_port: PortId::MIN,
            vrf: Vrf::new(vrf).ok(),
            src_group: Group::NONE,
            key: FlowKey { eth_type: 0x88b5, ..FlowKey::default() },
            frame_len: 60,
            at_ns: 0,
            suppressed,
        }
    }

    fn stamps(packets: &[Logged]) -> Vec<u64> {
        packets.iter().map(|logged| logged.unix_ns).collect()
    }

    #[test]
    fn each_tenant_keeps_its_last_packets_whatever_the_others_lose() {
        let log = DropLog::new();
        log.lock().keep(1, dropped(1, 0));
        for n in 2..1002 {
            log.lock().keep(n, dropped(2, 0));
        }
        log.lock().keep(1002, dropped(1, 0));
        assert_eq!(stamps(&log.subscribe(Some(1)).0), [1, 1002]);
        let noisy = stamps(&log.subscribe(Some(2)).0);
        assert_eq!((noisy.len(), noisy[0], noisy[255]), (256, 746, 1001));
        let all = stamps(&log.subscribe(None).0);
        assert_eq!((all.len(), all[0], all[1], all[257]), (258, 1, 746, 1002));
    }

    #[test]
    fn the_quietest_tenant_makes_room_for_a_new_one() {
        let mut history = History::default();
        for vrf in 1..=TENANTS_MAX as u32 {
            history.keep(vrf.into(), dropped(vrf, 0));
        }
        history.keep(9000, dropped(1, 0));
        history.keep(9001, dropped(TENANTS_MAX as u32 + 1, 0));
        assert_eq!(history.tenants.len(), TENANTS_MAX);
        assert_eq!(stamps(&history.of(Some(1))), [1, 9000]);
        assert_eq!(stamps(&history.of(Some(2))), [0; 0]);
        assert_eq!(stamps(&history.of(Some(3))), [3]);
    }

    #[test]
    fn a_follower_gets_each_packet_once() {
        let log = DropLog::new();
        log.take(dropped(1, 0));
        let (history, mut follow) = log.subscribe(None);
        log.take(dropped(1, 5));
        let next = follow.try_recv().unwrap();
        assert_eq!((history.len(), next.number, next.dropped.suppressed), (1, 1, 5));
        let message = next.message(Read::AtOnce);
        assert_eq!((message.number, message.history), (2, false));
        let kept = history[0].message(Read::Later);
        assert_eq!((kept.number, kept.history), (1, true));
        assert_eq!((message.reason.as_str(), message.rule, message.vrf), ("policy-deny", 7, 1));
        assert!(follow.try_recv().is_err());
    }

    #[test]
    fn ten_lines_a_second_say_how_many_are_missing() {
        let mut lines = Lines::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for n in 0..10 {
            assert_eq!(lines.admit(&dropped(1, 0), at(n * 50)), Some(0));
        }
        assert_eq!(lines.admit(&dropped(1, 3), at(999)), None);
        let other = Dropped { reason: DropReason::NoRoute, ..dropped(1, 2) };
        assert_eq!(lines.admit(&other, at(999)), None);
        assert_eq!(lines.admit(&dropped(2, 1), at(1000)), Some(7));
        assert_eq!(lines.admit(&dropped(2, 0), at(1001)), None);
        assert_eq!(lines.admit(&dropped(2, 0), at(1050)), Some(1));
    }
}
