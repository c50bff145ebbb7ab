//! The policy table: a tuple-space classifier over all rules of all tenants.
//!
//! Entries that look at the same bits form a tuple; a tuple is a hash table over those bits. Each
//! tenant and direction has its own tuples, so that one tenant's odd rules do not slow down
//! another's packets. Tuples are walked from the best rule downwards and the walk stops when
//! nothing better can come. Ranges of ports are checked one by one inside a bucket. Immutable: a
//! change of policy builds a new table.

mod tuple;

use std::cmp::Reverse;
use std::net::IpAddr;

use crate::entry::{Direction, Permit, RuleEntry};
use crate::exact::ExactMap;
use crate::ids::{Group, RuleId, Vrf};
use tuple::{Fields, Shape, Tuple};

/// What a packet is to the policy table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyQuery {
    /// The end that asks.
    pub direction: Direction,
    /// The tenant.
    pub vrf: Vrf,
    /// Group of the sender.
    pub src_group: Group,
    /// Group of the receiver.
    pub dst_group: Group,
    /// Sender's address.
    pub src: IpAddr,
    /// Receiver's address, of the same family.
    pub dst: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Source and destination port; `None` in later fragments. Ignored unless TCP or UDP.
    pub ports: Option<(u16, u16)>,
    /// ICMP or ICMPv6 type and code; `None` in later fragments and of other protocols.
    pub icmp: Option<(u8, u8)>,
    /// Byte 13 of the TCP header; `None` in later fragments and of other protocols.
    pub tcp_flags: Option<u8>,
}

/// The rule entry that decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyMatch {
    /// The rule.
    pub rule: RuleId,
    /// Its priority.
    pub priority: u16,
    /// The verdict.
    pub permit: Permit,
    /// Counter slot, chosen by the caller of [`PolicyTable::build`].
    pub slot: u32,
    /// Which entry of the rule.
    pub seq: u32,
}

/// Orders matches, best first: priority, then deny, then the lower rule and entry, so that the
/// outcome never depends on the order of building.
type Rank = (Reverse<u16>, Reverse<Permit>, RuleId, u32);

impl PolicyMatch {
    const fn of(rule: &RuleEntry, slot: u32) -> Self {
        let &RuleEntry { rule: id, priority, permit, seq, .. } = rule;
        Self { rule: id, priority, permit, slot, seq }
    }

    const fn rank(&self) -> Rank {
        (Reverse(self.priority), Reverse(self.permit), self.rule, self.seq)
    }
}

/// All rules, ready for lookup.
#[derive(Debug, Clone, Default)]
pub struct PolicyTable {
    chains: ExactMap<(Vrf, Direction), Vec<Tuple>>,
    len: usize,
}

impl PolicyTable {
    /// Sorts rule entries, each with its counter slot, into tuples.
    #[must_use]
    pub fn build<'a>(rules: impl IntoIterator<Item = (&'a RuleEntry, u32)>) -> Self {
        let mut chains: ExactMap<(Vrf, Direction), ExactMap<Shape, Tuple>> = ExactMap::default();
        let mut len = 0;
        for (rule, slot) in rules {
            len += 1;
            let chain = chains.entry((rule.vrf, rule.direction)).or_default();
            let (shape, found) = (Shape::of(rule), PolicyMatch::of(rule, slot));
            let new = || Tuple::new(shape, found.rank());
            chain.entry(shape).or_insert_with(new).insert(rule, found);
        }
        let sorted = |tuples: ExactMap<Shape, Tuple>| {
            let mut tuples: Vec<_> = tuples.into_values().map(Tuple::sorted).collect();
            tuples.sort_unstable_by_key(Tuple::best);
            tuples
        };
        Self { chains: chains.into_iter().map(|(at, tuples)| (at, sorted(tuples))).collect(), len }
    }

    /// The best rule entry that matches, or `None`: the tenant's default decides.
    #[must_use]
    pub fn lookup(&self, query: &PolicyQuery) -> Option<&PolicyMatch> {
        let tuples = self.chains.get(&(query.vrf, query.direction))?;
        let fields = Fields::of(query);
        let mut best: Option<&PolicyMatch> = None;
        for tuple in tuples {
            if best.is_some_and(|best| best.rank() < tuple.best()) {
                break;
            }
            let found = tuple.lookup(&fields);
            best = match (best, found) {
                (Some(old), Some(new)) if old.rank() < new.rank() => Some(old),
                (old, new) => new.or(old),
            };
        }
        best
    }

    /// Number of rule entries.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// No rule in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of tuples of all tenants and directions: the cost of the worst lookup is that of
    /// one tenant's.
    #[must_use]
    pub fn tuples(&self) -> usize {
        self.chains.values().map(Vec::len).sum()
    }
}
