//! The policy table: a classifier over all rules of all tenants.
//!
//! Every tenant, direction and family has its own chain of hash tables, so that one tenant's odd
//! rules do not slow down another's packets. A table may look at fewer bits than its rules
//! (`plan.rs`), so a lookup probes at most 32 tables, typically a handful, and stops when nothing
//! better can come. Immutable: a change makes a new table that shares every chain, and every hash
//! table of a chain, that the change does not touch.

mod family;
mod filter;
mod plan;
mod table;
mod wildcards;
mod words;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::entry::{Direction, Permit, RuleEntry};
use crate::exact::ExactMap;
use crate::ids::{Group, RuleId, Vrf};
use family::{Change, Family};
use words::{Class, Encoded, Packet, V4, V6};

pub use wildcards::Wildcards;

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
    /// ICMP or ICMPv6 type and code; `None` in later fragments. Ignored unless ICMP or ICMPv6.
    pub icmp: Option<(u8, u8)>,
    /// Byte 13 of the TCP header; `None` in later fragments. Ignored unless TCP.
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

/// Orders matches, the lowest is best: priority, then deny, then the lower rule and entry, so that
/// the outcome never depends on the order of building. 113 bits.
type Rank = u128;

impl PolicyMatch {
    const fn of(rule: &RuleEntry, slot: u32) -> Self {
        let &RuleEntry { rule: id, priority, permit, seq, .. } = rule;
        Self { rule: id, priority, permit, slot, seq }
    }

    const fn rank(&self) -> Rank {
        let permit = match self.permit {
            Permit::Deny => 0,
            Permit::Allow => 1,
        };
        (!self.priority as Rank) << 97
            | permit << 96
            | (self.rule.0 as Rank) << 32
            | self.seq as Rank
    }

    /// The leading bits of the rank.
    const fn order(&self) -> u32 {
        (self.rank() >> 81) as u32
    }
}

/// One rule entry before and after a batch.
#[derive(Debug, Clone, Copy)]
pub struct RuleChange<'a> {
    /// As it is in the table; `None` when it is new.
    pub before: Option<&'a RuleEntry>,
    /// As it shall be, with its counter slot; `None` when it goes.
    pub after: Option<(&'a RuleEntry, u32)>,
}

/// All rules, ready for lookup. A clone costs one reference per tenant and direction.
#[derive(Debug, Clone, Default)]
pub struct PolicyTable {
    chains: ExactMap<(Vrf, Direction), Arc<Chain>>,
    len: usize,
    tcp_flags_mask: u8,
}

/// The rules of one tenant and direction.
#[derive(Debug, Clone, Default)]
struct Chain {
    v4: Family<V4>,
    v6: Family<V6>,
    len: usize,
}

/// What a batch does to one chain.
#[derive(Debug, Default)]
struct ChainChange {
    v4: Change<V4>,
    v6: Change<V6>,
    added: usize,
    removed: usize,
}

impl ChainChange {
    fn add(&mut self, rule: &RuleEntry, slot: u32) {
        let Encoded { v4, v6 } = Encoded::of(rule, slot);
        self.v4.added.extend(v4);
        self.v6.added.extend(v6.into_iter().flatten());
        self.added += 1;
    }

    fn remove(&mut self, rule: &RuleEntry) {
        let Encoded { v4, v6 } = Encoded::of(rule, 0);
        self.v4.removed.extend(v4);
        self.v6.removed.extend(v6.into_iter().flatten());
        self.removed += 1;
    }
}

impl Chain {
    fn changed(&self, change: ChainChange) -> Self {
        Self {
            v4: self.v4.changed(change.v4),
            v6: self.v6.changed(change.v6),
            len: (self.len + change.added).saturating_sub(change.removed),
        }
    }

    fn tcp_flags(&self) -> u8 {
        self.v4.looked_at(Class::Tcp).tcp_flags | self.v6.looked_at(Class::Tcp).tcp_flags
    }
}

impl PolicyTable {
    /// A table of rule entries, each with its counter slot; no two with the same rule and `seq`.
    #[must_use]
    pub fn build<'a>(rules: impl IntoIterator<Item = (&'a RuleEntry, u32)>) -> Self {
        let added = |after| RuleChange { before: None, after: Some(after) };
        Self::default().update(rules.into_iter().map(added))
    }

    /// The table after a batch. Costs what the batch changes: chains it does not touch are shared.
    /// Every `before` must be in this table, and every entry occur once.
    #[must_use]
    pub fn update<'a>(&self, changes: impl IntoIterator<Item = RuleChange<'a>>) -> Self {
        let mut by_chain: BTreeMap<(Vrf, Direction), ChainChange> = BTreeMap::new();
        for RuleChange { before, after } in changes {
            if let Some(rule) = before {
                by_chain.entry((rule.vrf, rule.direction)).or_default().remove(rule);
            }
            if let Some((rule, slot)) = after {
                by_chain.entry((rule.vrf, rule.direction)).or_default().add(rule, slot);
            }
        }
        let mut next = self.clone();
        for (at, change) in by_chain {
            let before = next.chains.remove(&at).unwrap_or_default();
            let after = before.changed(change);
            next.len = (next.len + after.len).saturating_sub(before.len);
            if after.len > 0 {
                next.chains.insert(at, Arc::new(after));
            }
        }
        next.tcp_flags_mask = next.chains.values().fold(0, |mask, chain| mask | chain.tcp_flags());
        next
    }

    /// The best rule entry that matches, or `None`: the tenant's default decides.
    #[must_use]
    #[inline]
    pub fn lookup(&self, query: &PolicyQuery) -> Option<&PolicyMatch> {
        let chain = self.chains.get(&(query.vrf, query.direction))?;
        chain.lookup(query, || ())
    }

    /// The same, and adds to `looked` the bits that the outcome may depend on: any packet that has
    /// the same ones has the same outcome. Direction, tenant, groups, family and protocol always
    /// count. A summary of the chain's rules for this family and kind of protocol: a bit too many
    /// is possible, one too few is not.
    #[must_use]
    #[inline]
    pub fn lookup_masked(
        &self,
        query: &PolicyQuery,
        looked: &mut Wildcards,
    ) -> Option<&PolicyMatch> {
        let chain = self.chains.get(&(query.vrf, query.direction))?;
        let class = Class::of(query.protocol);
        looked.add(match (query.src, query.dst) {
            (IpAddr::V4(_), IpAddr::V4(_)) => chain.v4.looked_at(class),
            (IpAddr::V4(_) | IpAddr::V6(_), _) => chain.v6.looked_at(class),
        });
        chain.lookup(query, || ())
    }

    /// How many hash tables a lookup probes: what it costs.
    #[must_use]
    pub fn probes(&self, query: &PolicyQuery) -> u32 {
        let mut probes = 0;
        if let Some(chain) = self.chains.get(&(query.vrf, query.direction)) {
            chain.lookup(query, || probes += 1);
        }
        probes
    }

    /// The TCP flags that any rule looks at.
    #[must_use]
    pub const fn tcp_flags_mask(&self) -> u8 {
        self.tcp_flags_mask
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

    /// Number of hash tables of all tenants and directions, of the family that has more: the cost
    /// of the worst lookup is that of one tenant's, at most 32.
    #[must_use]
    pub fn tuples(&self) -> usize {
        self.chains.values().map(|chain| chain.v4.tables().max(chain.v6.tables())).sum()
    }

    /// Memory of the rules, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let chain = |chain: &Arc<Chain>| {
            size_of::<Chain>() + chain.v4.memory_bytes() + chain.v6.memory_bytes()
        };
        self.chains.allocation_size() + self.chains.values().map(chain).sum::<usize>()
    }
}

impl Chain {
    #[inline]
    fn lookup(&self, query: &PolicyQuery, probe: impl FnMut()) -> Option<&PolicyMatch> {
        match Packet::of(query) {
            Packet::V4(words) => self.v4.lookup(&words, probe),
            Packet::V6(words) => self.v6.lookup(&words, probe),
        }
    }
}
