//! The masked cache (T2): decisions that hold for all flows between two addresses, or to one port.
//!
//! A decision says whether it depends on the ports (or ICMP type and code) of its packet. All other
//! fields are always part of the key, so there are three masks, whatever the rules: no traffic makes
//! more of them. Only packets that are forwarded are kept: what is denied is not worth a place that
//! many new flows could use. An entry that was never hit can't evict one that was hit lately.

use flowtable::Verdict;
use flowtable::cache::FlowCache;
use flowtable::key::{Brief, FlowKey, KeyHasher};

use crate::pipeline::{Decision, Looked, Relation};
use crate::snapshot::Snapshot;

/// The masks, and by position the number that is part of their keys.
const MASKS: [Looked; 3] = [
    Looked { src_port: false, dst_port: false },
    Looked { src_port: false, dst_port: true },
    Looked { src_port: true, dst_port: false },
];

/// Decisions by masked key.
#[derive(Debug)]
pub(crate) struct MaskedCache {
    /// `None`: nothing is kept.
    flows: Option<FlowCache<Decision>>,
    /// Whether a mask was ever used: the others are not asked.
    used: [bool; MASKS.len()],
    hasher: KeyHasher,
}

impl MaskedCache {
    /// For `entries` decisions; 0 is none.
    pub(crate) fn new(entries: usize, seed: u64) -> Self {
        Self {
            flows: (entries > 0).then(|| FlowCache::new(entries)),
            used: [false; MASKS.len()],
            hasher: KeyHasher::new(seed),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.as_ref().map_or(0, FlowCache::len)
    }

    /// Masks that decisions were kept under.
    pub(crate) fn masks(&self) -> usize {
        self.used.iter().filter(|used| **used).count()
    }

    /// Whether [`MaskedCache::lookup`] would find a decision. Nothing is marked as hit.
    pub(crate) fn knows(&self, key: &FlowKey, relation: Relation, snapshot: &Snapshot) -> bool {
        let (Some(class), Some(flows)) = (class(relation), &self.flows) else { return false };
        MASKS.iter().enumerate().filter(|(n, _)| self.used[*n]).any(|(number, looked)| {
            let masked = masked(key, *looked, number as u32, class);
            let found = flows.peek(self.hasher.hash_full(&masked), &masked);
            found.is_some_and(|slot| flows.entry(slot).holds_on(snapshot))
        })
    }

    /// A decision that holds for this packet on these tables.
    pub(crate) fn lookup(
        &mut self,
        key: &FlowKey,
        relation: Relation,
        snapshot: &Snapshot,
    ) -> Option<Decision> {
        let class = class(relation)?;
        let flows = self.flows.as_mut()?;
        for (number, looked) in MASKS.iter().enumerate().filter(|(n, _)| self.used[*n]) {
            let masked = masked(key, *looked, number as u32, class);
            let Some(slot) = flows.lookup(self.hasher.hash_full(&masked), &masked) else {
                continue;
            };
            let decision = flows.entry(slot);
            if decision.holds_on(snapshot) {
                return Some(Decision { relation, ..*decision });
            }
        }
        None
    }

    /// Keeps a decision, if it holds for more than one flow.
    pub(crate) fn insert(&mut self, key: &FlowKey, decision: &Decision, snapshot: &Snapshot) {
        let (Verdict::Forward(_), Some(flows)) = (decision.verdict, &mut self.flows) else {
            return;
        };
        let number = MASKS.iter().position(|mask| *mask == decision.looked);
        let (Some(number), Some(class)) = (number, class(decision.relation)) else { return };
        let masked = masked(key, decision.looked, number as u32, class);
        let stale = |old: &Decision| !old.holds_on(snapshot);
        let named = (masked, Brief::NONE);
        flows.insert_named(self.hasher.hash_full(&masked), named, *decision, stale);
        self.used[number] = true;
    }
}

/// Relations that are decided alike; `None` is not cached.
const fn class(relation: Relation) -> Option<u32> {
    match relation {
        Relation::Opening | Relation::Original => Some(0),
        Relation::Untracked => Some(1),
        Relation::Reply => Some(2),
        Relation::Admitted => Some(3),
        Relation::Stray(_) => None,
    }
}

/// The key without what the decision does not depend on. Mask and class go into the upper byte of
/// the VNI, which has 24 bits.
const fn masked(key: &FlowKey, looked: Looked, number: u32, class: u32) -> FlowKey {
    let mut masked = *key;
    masked.icmp_id = 0;
    if !looked.src_port {
        masked.src_port = 0;
    }
    if !looked.dst_port {
        masked.dst_port = 0;
    }
    masked.vni |= (number << 2 | class) << 24;
    masked
}
