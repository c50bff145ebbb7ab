//! A table that was changed step by step is as good as one built at once.

use std::collections::BTreeMap;

use flowtable::entry::RuleEntry;
use flowtable::policy::{PolicyTable, RuleChange};
use proptest::prelude::*;

use crate::any_rule;
use crate::oracle::{queries, rules};
use crate::sets::{Draw, Kind, packet, rule_set};

type Key = (u64, u32);

const fn key(rule: &RuleEntry) -> Key {
    (rule.rule.0, rule.seq)
}

/// The entries, each with its slot, and the table that should equal them.
#[derive(Debug, Default)]
struct Tables {
    entries: BTreeMap<Key, (RuleEntry, u32)>,
    table: PolicyTable,
}

impl Tables {
    fn batch(&mut self, put: &[RuleEntry], delete: &[Key]) {
        let mut touched: BTreeMap<Key, Option<(RuleEntry, u32)>> = BTreeMap::new();
        for rule in put {
            let slot = key(rule).0 as u32 * 10 + rule.seq;
            touched.insert(key(rule), Some((rule.clone(), slot)));
        }
        for key in delete {
            touched.insert(*key, None);
        }
        let changes = touched.iter().map(|(key, after)| RuleChange {
            before: self.entries.get(key).map(|(rule, _)| rule),
            after: after.as_ref().map(|(rule, slot)| (rule, *slot)),
        });
        self.table = self.table.update(changes);
        for (key, after) in touched {
            match after {
                Some(after) => drop(self.entries.insert(key, after)),
                None => drop(self.entries.remove(&key)),
            }
        }
    }

    fn fresh(&self) -> PolicyTable {
        PolicyTable::build(self.entries.values().map(|(rule, slot)| (rule, *slot)))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn batches_of_changes_equal_a_fresh_build(
        first in proptest::collection::vec(rules(), 0..60),
        batches in proptest::collection::vec(
            (
                proptest::collection::vec(rules(), 0..4),
                proptest::collection::vec((0..20_u64, 0..3_u32), 0..4),
            ),
            1..12,
        ),
        queries in proptest::collection::vec(queries(), 1..20),
    ) {
        let mut tables = Tables::default();
        tables.batch(&first, &[]);
        for (put, delete) in &batches {
            let before = tables.table.clone();
            let decided: Vec<_> = queries.iter().map(|q| before.lookup(q).copied()).collect();
            tables.batch(put, delete);
            let fresh = tables.fresh();
            prop_assert_eq!(tables.table.len(), fresh.len());
            prop_assert_eq!(tables.table.tcp_flags_mask(), fresh.tcp_flags_mask());
            for (query, decided) in queries.iter().zip(decided) {
                prop_assert_eq!(tables.table.lookup(query), fresh.lookup(query));
                // Those who still use the table before see no difference.
                prop_assert_eq!(before.lookup(query).copied(), decided);
            }
        }
        let all: Vec<Key> = tables.entries.keys().copied().collect();
        tables.batch(&[], &all);
        prop_assert!(tables.table.is_empty() && tables.table.tuples() == 0);
    }
}

#[test]
fn many_small_changes_of_a_large_set_keep_it_right_and_small() {
    let mut draw = Draw(11);
    let set = rule_set(Kind::Firewall, 2000, &mut draw);
    let more = rule_set(Kind::AccessList, 1000, &mut draw);
    let mut tables = Tables::default();
    tables.batch(&set, &[]);
    for (at, rule) in more.iter().enumerate() {
        let new = RuleEntry { rule: flowtable::ids::RuleId(5000 + at as u64), ..rule.clone() };
        tables.batch(&[new], &[(2 * at as u64, 0)]);
        if at % 50 == 0 {
            let fresh = tables.fresh();
            for _ in 0..200 {
                let query = packet(&set, &mut draw);
                assert_eq!(tables.table.lookup(&query), fresh.lookup(&query));
            }
        }
    }
    let fresh = tables.fresh();
    assert_eq!((tables.table.len(), fresh.len()), (2000, 2000));
    assert!(tables.table.tuples() <= 32, "{} tables", tables.table.tuples());
}

#[test]
fn a_changed_slot_alone_is_a_change() {
    let rule = any_rule(1);
    let table = PolicyTable::build([(&rule, 7)]);
    let moved = table.update([RuleChange { before: Some(&rule), after: Some((&rule, 8)) }]);
    let slot = |table: &PolicyTable| table.lookup(&crate::tcp_query()).map(|found| found.slot);
    assert_eq!((slot(&table), slot(&moved), moved.len()), (Some(7), Some(8), 1));
}
