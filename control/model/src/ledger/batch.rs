//! Many writes as one: all of them, or none. Objects may come in any order and name each other; each
//! is tried until none can be done any more, and then the first one left is what is wrong.

use std::collections::BTreeSet;

use super::{Change, Ledger};
use crate::intent::{Object, Spec};
use crate::key::{Key, Kind};
use crate::refusal::{Reason, Refused};

/// Most objects of one batch.
const OBJECTS_MAX: usize = 20_000;

/// What is to be there afterwards, and what not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Created when absent, else updated. A rule that differs is replaced.
    pub puts: Vec<Spec>,
    /// Deleted.
    pub deletes: Vec<Key>,
}

/// What became of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It was not there.
    Created,
    /// It was otherwise.
    Updated,
    /// It was so already.
    Unchanged,
    /// It is gone.
    Deleted,
}

/// One object of a batch, before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its identity.
    pub key: Key,
    /// What was done.
    pub action: Action,
    /// As it was.
    pub before: Option<Object>,
    /// As it is.
    pub after: Option<Object>,
}

/// A refusal, and which of many objects it is about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {refused}")]
pub struct RefusedObject {
    /// Its kind and key, or its place when it has none.
    pub object: String,
    /// Why it can't be so.
    pub refused: Box<Refused>,
}

impl RefusedObject {
    /// About the object with this key.
    #[must_use]
    pub fn new(key: &Key, refused: Refused) -> Self {
        Self { object: format!("{} {key}", key.kind().name()), refused: Box::new(refused) }
    }
}

/// One step that is still to be done.
#[derive(Debug)]
enum Step {
    Put(Box<Spec>),
    Delete(Key),
}

impl Ledger {
    /// Does all of a batch or, refused, nothing. The results are in the batch's order, deletes last.
    ///
    /// # Errors
    /// [`RefusedObject`] for the first object that can't be done even after all the others.
    pub fn apply(&mut self, batch: &Batch) -> Result<(Vec<Applied>, Vec<Change>), RefusedObject> {
        check(batch)?;
        let mut trial = self.clone();
        let mut run = Run { ledger: &mut trial, applied: Vec::new(), changes: Vec::new() };
        let mut open = steps(batch);
        let mut first_left = run.pass(&mut open);
        while let Some((left_before, _)) = first_left {
            let next = run.pass(&mut open);
            match next {
                Some((left, refused)) if left == left_before => return Err(refused),
                next => first_left = next,
            }
        }
        let Run { mut applied, changes, .. } = run;
        applied.sort_by_key(|(place, _)| *place);
        let applied = applied.into_iter().map(|(_, applied)| applied).collect();
        let changes = net(changes);
        *self = trial;
        Ok((applied, changes))
    }
}

struct Run<'a> {
    ledger: &'a mut Ledger,
    applied: Vec<(usize, Applied)>,
    changes: Vec<Change>,
}

impl Run<'_> {
    /// Does what can be done; how many steps are left, and why the one that comes first in the
    /// request is.
    fn pass(&mut self, open: &mut Vec<(usize, Step)>) -> Option<(usize, RefusedObject)> {
        let mut first: Option<(usize, RefusedObject)> = None;
        open.retain(|(place, step)| match self.step(step) {
            Ok(applied) => {
                self.applied.push((*place, applied));
                false
            }
            Err(refused) => {
                if first.as_ref().is_none_or(|(earlier, _)| place < earlier) {
                    first = Some((*place, refused));
                }
                true
            }
        });
        first.map(|(_, refused)| (open.len(), refused))
    }

    fn step(&mut self, step: &Step) -> Result<Applied, RefusedObject> {
        match step {
            Step::Put(spec) => self.put(spec).map_err(|refused| match spec.key() {
                Some(key) => RefusedObject::new(&key, refused),
                None => RefusedObject {
                    object: Kind::AddressLease.name().to_owned(),
                    refused: Box::new(refused),
                },
            }),
            Step::Delete(key) => {
                self.delete(key).map_err(|refused| RefusedObject::new(key, refused))
            }
        }
    }

    fn put(&mut self, spec: &Spec) -> Result<Applied, Refused> {
        let before = spec.key().and_then(|key| self.ledger.intent.object(&key));
        let outcome = match (&before, spec) {
            (None, _) => self.ledger.create(spec.clone())?,
            (Some(Object::Rule(old)), Spec::Rule(new)) if old.spec != *new => {
                self.replace_rule(spec)?
            }
            (Some(_), _) => self.ledger.update(spec.clone())?,
        };
        let action = match (&before, outcome.changes.is_empty()) {
            (_, true) => Action::Unchanged,
            (None, false) => Action::Created,
            (Some(_), false) => Action::Updated,
        };
        self.changes.extend(outcome.changes);
        let key = outcome.object.key();
        Ok(Applied { key, action, before, after: Some(outcome.object) })
    }

    /// A rule can't be changed: another one takes its place, with counters of its own. Refused, the
    /// old one stays.
    fn replace_rule(&mut self, spec: &Spec) -> Result<super::Outcome, Refused> {
        let Spec::Rule(rule) = spec else { return self.ledger.update(spec.clone()) };
        let key = Key::Rule(rule.key.clone());
        let old = self.ledger.intent.object(&key);
        self.ledger.intent.remove(&key);
        let replaced = self.ledger.create(spec.clone());
        if let (Err(_), Some(old)) = (&replaced, old) {
            self.ledger.intent.put(old);
        }
        replaced
    }

    fn delete(&mut self, key: &Key) -> Result<Applied, Refused> {
        let before = self.ledger.intent.object(key);
        self.changes.extend(self.ledger.delete(key)?);
        Ok(Applied { key: key.clone(), action: Action::Deleted, before, after: None })
    }
}

/// What would be said of an object twice is contradictory, or a mistake.
fn check(batch: &Batch) -> Result<(), RefusedObject> {
    let twice =
        |key: &Key, reason| Err(RefusedObject::new(key, Refused::new("objects", key, reason)));
    let mut seen = BTreeSet::new();
    for key in batch.puts.iter().filter_map(Spec::key).chain(batch.deletes.iter().cloned()) {
        if seen.len() == OBJECTS_MAX {
            return twice(&key, Reason::TooManyObjects { max: OBJECTS_MAX });
        }
        if !seen.insert(key.clone()) {
            return twice(&key, Reason::NamedTwice);
        }
    }
    Ok(())
}

/// The order in which fewest steps must wait for others: deletes from the leaves, then objects from
/// the roots. What asks for a tag or an address goes before what takes any.
fn steps(batch: &Batch) -> Vec<(usize, Step)> {
    let rank = |kind: Kind| Kind::ALL.iter().position(|known| *known == kind);
    let mut deletes: Vec<_> = (batch.puts.len()..).zip(&batch.deletes).collect();
    deletes.sort_by_key(|(_, key)| std::cmp::Reverse(rank(key.kind())));
    let mut puts: Vec<_> = batch.puts.iter().enumerate().collect();
    puts.sort_by_key(|(_, spec)| (spec.key().map(|key| rank(key.kind())), takes_any(spec)));
    let deletes = deletes.into_iter().map(|(place, key)| (place, Step::Delete(key.clone())));
    let puts = puts.into_iter().map(|(place, spec)| (place, Step::Put(Box::new(spec.clone()))));
    deletes.chain(puts).collect()
}

fn takes_any(spec: &Spec) -> bool {
    match spec {
        Spec::Network(network) => network.tag.is_none(),
        Spec::Service(service) => service.address.is_none(),
        Spec::AddressLease(lease) => lease.wanted.address().is_none(),
        Spec::EndpointGroup(group) => group.pool.is_none() && group.pool6.is_none(),
        Spec::Tenant(_)
        | Spec::Policy(_)
        | Spec::Rule(_)
        | Spec::Global(_)
        | Spec::Endpoint(_)
        | Spec::Node(_)
        | Spec::NetProfile(_)
        | Spec::AppProfile(_)
        | Spec::Bgp(_) => false,
    }
}

/// The last word on each key, in the order of the last words: nobody may see the others.
fn net(changes: Vec<Change>) -> Vec<Change> {
    let key = |change: &Change| match change {
        Change::Put(object) => object.key(),
        Change::Remove(key) => key.clone(),
    };
    let mut seen = BTreeSet::new();
    let mut last: Vec<_> =
        changes.into_iter().rev().filter(|change| seen.insert(key(change))).collect();
    last.reverse();
    last
}
