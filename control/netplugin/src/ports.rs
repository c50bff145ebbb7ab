//! Port ids of this node: handed out first in, first out, and rested before they are used again.
//!
//! A port's id is its tag on the trunk. A frame still on its way when a port goes must not come
//! out at the next port, so an id rests for longer than any queue on the path holds a frame.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use flowtable::ids::PortId;

/// The uplink's port. Fixed, so that it stays the same when netplugin starts anew beside a running
/// engine.
pub(crate) const UPLINK: PortId = PortId::MIN;

/// Queues on the path are a few thousand frames deep: milliseconds. A busy machine's scheduler is
/// the larger part.
const REST: Duration = Duration::from_secs(10);

/// Every id is in use or resting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {count} port ids of this node are in use or were freed less than {REST:?} ago")]
pub(crate) struct Exhausted {
    pub(crate) count: usize,
}

/// The ids that containers can have: all but [`UPLINK`].
#[derive(Debug)]
pub(crate) struct PortPool {
    free: VecDeque<PortId>,
    resting: VecDeque<(Instant, PortId)>,
    used: BTreeSet<PortId>,
}

impl PortPool {
    /// A pool with `used` already taken, by attachments of an earlier life.
    pub(crate) fn new(used: BTreeSet<PortId>) -> Self {
        let ids = u32::from(UPLINK.get()) + 1..=u32::from(PortId::MAX.get());
        let free = ids.filter_map(|id| PortId::new(id).ok()).filter(|id| !used.contains(id));
        Self { free: free.collect(), resting: VecDeque::new(), used }
    }

    /// Takes the id that has been free for longest.
    pub(crate) fn allocate(&mut self, now: Instant) -> Result<PortId, Exhausted> {
        while let Some(&(since, port)) = self.resting.front()
            && now.saturating_duration_since(since) >= REST
        {
            self.resting.pop_front();
            self.free.push_back(port);
        }
        let count = self.used.len() + self.resting.len();
        let port = self.free.pop_front().ok_or(Exhausted { count })?;
        self.used.insert(port);
        Ok(port)
    }

    /// Takes an id that a running engine knows; whether nobody else had it.
    pub(crate) fn take(&mut self, port: PortId) -> bool {
        if port == UPLINK || !self.used.insert(port) {
            return false;
        }
        self.free.retain(|free| *free != port);
        self.resting.retain(|(_, resting)| *resting != port);
        true
    }

    /// Gives an id back. One that is not in use stays as it is.
    pub(crate) fn release(&mut self, port: PortId, now: Instant) {
        if self.used.remove(&port) {
            self.resting.push_back((now, port));
        }
    }

    /// How many ids could be handed out, now or after their rest.
    pub(crate) fn available_count(&self) -> usize {
        self.free.len() + self.resting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_a_running_engine_is_taken_once() {
        let mut pool = PortPool::new(BTreeSet::new());
        let seven = PortId::new(7).unwrap();
        assert!(pool.take(seven) && !pool.take(seven) && !pool.take(UPLINK));
        let now = Instant::now();
        let others: Vec<_> = (0..6).map(|_| pool.allocate(now).unwrap().get()).collect();
        assert_eq!(others, [2, 3, 4, 5, 6, 8]);
    }

    fn id(n: u32) -> PortId {
        PortId::new(n).unwrap()
    }

    #[test]
    fn ids_begin_after_the_uplinks_and_skip_those_in_use() {
        let mut pool = PortPool::new([id(2), id(4)].into());
        let now = Instant::now();
        assert_eq!(pool.allocate(now), Ok(id(3)));
        assert_eq!(pool.allocate(now), Ok(id(5)));
    }

    #[test]
    fn a_freed_id_comes_back_last_and_only_after_its_rest() {
        let used: BTreeSet<PortId> = (2..=4093).map(id).collect();
        let mut pool = PortPool::new(used);
        let start = Instant::now();
        pool.release(id(7), start);
        assert_eq!(pool.allocate(start), Ok(id(4094)));
        let early = start + REST.mul_f32(0.999);
        assert_eq!(pool.allocate(early), Err(Exhausted { count: 4093 }));
        assert_eq!(pool.allocate(start + REST), Ok(id(7)));
    }

    #[test]
    fn freeing_twice_does_not_hand_an_id_out_twice() {
        let mut pool = PortPool::new((2..=4094).map(id).collect());
        let start = Instant::now();
        pool.release(id(9), start);
        pool.release(id(9), start);
        assert_eq!(pool.available_count(), 1);
        assert_eq!(pool.allocate(start + REST), Ok(id(9)));
        assert_eq!(pool.allocate(start + REST), Err(Exhausted { count: 4093 }));
    }

    #[test]
    fn every_id_is_handed_out_once() {
        let mut pool = PortPool::new(BTreeSet::new());
        let now = Instant::now();
        let mut seen = BTreeSet::new();
        while let Ok(port) = pool.allocate(now) {
            assert!(seen.insert(port));
        }
        assert_eq!(seen.len(), 4093);
        assert!(!seen.contains(&UPLINK));
    }
}
