//! The rules of one tenant, direction and family: a few tables, shared between versions.
//!
//! Tables are probed from the one with the best rule on, and the walk ends when no later one can
//! have a better rule. A change builds only the tables it touches; when it is large, or would make
//! buckets long, tables are chosen anew.

use std::sync::Arc;

use super::filter::Filter;
use super::plan::{BUCKET_MAX, plan};
use super::table::Table;
use super::words::{Class, Rule, Words};
use super::{PolicyMatch, Rank, Wildcards};

/// Rules of packets of `N` words.
#[derive(Debug, Clone)]
pub(super) struct Family<const N: usize> {
    /// By their best rules.
    tables: Vec<Arc<Table<N>>>,
    filter: Filter,
    rule_count: usize,
    /// Rules when the tables were chosen.
    planned: usize,
    /// Longest bucket when the tables were chosen.
    longest: usize,
    looked_at: [Wildcards; Class::ALL.len()],
}

impl<const N: usize> Default for Family<N> {
    fn default() -> Self {
        Self::planned(Vec::new())
    }
}

/// Rules that come and go.
#[derive(Debug)]
pub(super) struct Change<const N: usize> {
    pub(super) removed: Vec<Rule<N>>,
    pub(super) added: Vec<Rule<N>>,
}

impl<const N: usize> Default for Change<N> {
    fn default() -> Self {
        Self { removed: Vec::new(), added: Vec::new() }
    }
}

/// What becomes of one table.
#[derive(Debug, Clone, Default)]
struct Edit<const N: usize> {
    removed: Vec<usize>,
    added: Vec<Rule<N>>,
}

impl<const N: usize> Family<N> {
    /// Tables chosen for these rules.
    pub(super) fn planned(mut rules: Vec<Rule<N>>) -> Self {
        rules.sort_unstable_by_key(|rule| rule.found.rank());
        let of = |places: &[u32]| -> Vec<Rule<N>> {
            places.iter().map(|at| rules[*at as usize]).collect()
        };
        let tables = plan(&rules).into_iter();
        let tables = tables.map(|(mask, places)| Arc::new(Table::build(mask, &of(&places))));
        let mut family = Self::of(tables.collect());
        family.planned = family.rule_count;
        family.longest = family.tables.iter().map(|table| table.longest()).max().unwrap_or(0);
        family
    }

    /// The parts that follow from the tables.
    fn of(mut tables: Vec<Arc<Table<N>>>) -> Self {
        tables.retain(|table| table.rule_count() > 0);
        tables.sort_unstable_by_key(|table| table.best());
        let mut looked_at = [Wildcards::default(); Class::ALL.len()];
        for table in &tables {
            let of_table = looked_at.iter_mut().zip(table.looked_at());
            of_table.for_each(|(all, one)| all.add(one));
        }
        let rule_count = tables.iter().map(|table| table.rule_count()).sum();
        let filter = Filter::build(&tables.iter().map(|table| table.checks()));
        Self { tables, filter, rule_count, planned: 0, longest: 0, looked_at }
    }

    /// With some rules less and some more.
    pub(super) fn changed(&self, change: Change<N>) -> Self {
        let size = change.removed.len() + change.added.len();
        let after = self.rule_count + change.added.len();
        if size * 8 <= after
            && after.saturating_sub(change.removed.len()) * 2 >= self.planned
            && let Some(edited) = self.edited(&change)
        {
            return edited;
        }
        let mut edits = vec![Edit::default(); self.tables.len()];
        self.remove(&change.removed, &mut edits);
        let kept = self.tables.iter().zip(&edits).flat_map(|(table, edit)| edit.kept(table));
        Self::planned(kept.chain(change.added).collect())
    }

    /// The change within the present tables; `None` when a bucket would become too long, or a rule
    /// fits into none.
    fn edited(&self, change: &Change<N>) -> Option<Self> {
        let mut edits = vec![Edit::default(); self.tables.len()];
        self.remove(&change.removed, &mut edits);
        let most = self.longest.max(BUCKET_MAX) * 2;
        for rule in &change.added {
            let room = |(at, table): (usize, &Arc<Table<N>>)| (table.beside(rule).len(), at);
            let takes = |(_, table): &(usize, &Arc<Table<N>>)| table.takes(rule);
            let (beside, at) = self.tables.iter().enumerate().filter(takes).map(room).min()?;
            if beside >= most {
                return None;
            }
            edits[at].added.push(*rule);
        }
        let table = |(table, edit): (&Arc<Table<N>>, &Edit<N>)| edit.table(table);
        let mut family = Self::of(self.tables.iter().zip(&edits).map(table).collect());
        // Rules of one batch may have met in one bucket.
        if family.tables.iter().any(|table| table.longest() > most) {
            return None;
        }
        (family.planned, family.longest) = (self.planned, self.longest);
        Some(family)
    }

    fn remove(&self, removed: &[Rule<N>], edits: &mut [Edit<N>]) {
        for rule in removed {
            let mut places = self.tables.iter().map(|table| table.place(rule)).zip(&mut *edits);
            if let Some((Some(place), edit)) = places.find(|(place, _)| place.is_some()) {
                edit.removed.push(place);
            }
        }
        for edit in edits {
            edit.removed.sort_unstable();
        }
    }

    /// The best rule that matches.
    #[inline]
    pub(super) fn lookup(
        &self,
        packet: &Words<N>,
        mut probe: impl FnMut(),
    ) -> Option<&PolicyMatch> {
        let mut best: Option<(&PolicyMatch, Rank)> = None;
        let mut set = self.filter.tables(packet);
        while let Some(table) = self.tables.get(set.trailing_zeros() as usize) {
            set &= set - 1;
            if best.is_some_and(|(_, rank)| rank < table.best()) {
                break;
            }
            probe();
            let before = best.map_or(u32::MAX, |(found, _)| found.order());
            if let Some(found) = table.lookup(packet, before)
                && best.is_none_or(|(_, rank)| found.rank() < rank)
            {
                best = Some((found, found.rank()));
            }
        }
        best.map(|(found, _)| found)
    }

    pub(super) const fn looked_at(&self, class: Class) -> &Wildcards {
        &self.looked_at[class as usize]
    }

    pub(super) const fn tables(&self) -> usize {
        self.tables.len()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let tables = self.tables.iter().map(|table| table.memory_bytes()).sum::<usize>();
        tables + self.filter.memory_bytes()
    }
}

impl<const N: usize> Edit<N> {
    /// The rules that stay.
    fn kept(&self, table: &Table<N>) -> impl Iterator<Item = Rule<N>> {
        let stays = |place: &usize| self.removed.binary_search(place).is_err();
        let rules = table.rules().enumerate();
        rules.filter(move |(place, _)| stays(place)).map(|(_, rule)| rule)
    }

    fn table(&self, table: &Arc<Table<N>>) -> Arc<Table<N>> {
        if self.removed.is_empty() && self.added.is_empty() {
            return Arc::clone(table);
        }
        let rules: Vec<Rule<N>> = self.kept(table).chain(self.added.iter().copied()).collect();
        Arc::new(Table::build(*table.mask(), &rules))
    }
}
