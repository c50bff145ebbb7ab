//! The steps of a batch on what writers share: entries, and the slots of rules and meters.

use std::collections::BTreeSet;

use flowtable::entry::{EntryKey, Op};
use flowtable::ids::{RuleId, Vrf};
use flowtable::key;
use flowtable::meter::MeterSlot;

use crate::engine::WriteError;
use crate::slow::Way;
use crate::snapshot::Master;
use crate::validate::Before;

/// What writers share.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) master: Master,
    pub(crate) free_slots: Vec<u32>,
    /// Slots of rules that are gone, until the worker is known to have left them.
    pub(crate) left_slots: Vec<u32>,
    pub(crate) free_meters: Vec<MeterSlot>,
    /// As `left_slots`.
    pub(crate) left_meters: Vec<MeterSlot>,
    /// Addresses whose connections end then.
    pub(crate) left_addresses: BTreeSet<(Vrf, [u8; 16])>,
    /// Ways back to the workers that there are, by their numbers.
    pub(crate) workers: Vec<Way>,
}

/// Addresses whose endpoint a batch has changed or taken away: their connections end, so that who
/// gets an address gets none of its rights.
pub(crate) fn left_endpoints(changed: &Before) -> BTreeSet<(Vrf, [u8; 16])> {
    let left = changed.iter().filter_map(|(key, was)| match (key, was) {
        (EntryKey::Route(vrf, prefix), Some(_)) => {
            let host = if prefix.address().is_ipv4() { 32 } else { 128 };
            (prefix.length() == host).then(|| (*vrf, key::stored(prefix.address())))
        }
        _ => None,
    });
    left.collect()
}

/// Applies the steps; returns what the entries they touched were.
pub(crate) fn apply(master: &mut Master, ops: &[Op]) -> Before {
    let mut before = Before::new();
    for op in ops {
        match op {
            Op::Put(entry) => {
                let key = entry.key();
                let was = master.entries.insert(key, entry.clone());
                before.entry(key).or_insert(was);
            }
            Op::Delete(key) => {
                let was = master.entries.remove(key);
                before.entry(*key).or_insert(was);
            }
            // The underlay is the engine's own view of the node, not the controller's.
            Op::Clear => {
                let cleared = |key: &EntryKey| !matches!(key, EntryKey::Underlay(_));
                for (key, was) in master.entries.extract_if(.., |key, _| cleared(key)) {
                    before.entry(key).or_insert(Some(was));
                }
            }
        }
    }
    before
}

pub(crate) fn restore(master: &mut Master, before: Before) {
    for (key, was) in before {
        match was {
            Some(entry) => master.entries.insert(key, entry),
            None => master.entries.remove(&key),
        };
    }
}

/// Gives new rules a slot and takes those of rules that are gone. They are not given out before
/// the worker has left them, so a batch needs free slots for all of its new rules.
pub(crate) fn assign_slots(control: &mut Control, before: &Before) -> Result<(), WriteError> {
    let Control { master, free_slots, left_slots, .. } = control;
    // Entries of one rule are neighbours.
    let mut touched: Vec<RuleId> = before.keys().filter_map(rule_of).collect();
    touched.dedup();
    let (kept, gone): (Vec<_>, Vec<_>) = touched.into_iter().partition(|id| master.has_rule(*id));
    let fresh = kept.into_iter().filter(|id| !master.slots.contains_key(id));
    let fresh: Vec<RuleId> = fresh.collect();
    let room = free_slots.len();
    if fresh.len() > room {
        return Err(WriteError::TooManyRules { needed: fresh.len(), room });
    }
    left_slots.extend(gone.iter().filter_map(|id| master.slots.remove(id)));
    let given = free_slots.split_off(room - fresh.len());
    master.slots.extend(fresh.into_iter().zip(given));
    Ok(())
}

const fn rule_of(key: &EntryKey) -> Option<RuleId> {
    if let EntryKey::Rule(id, _) = key { Some(*id) } else { None }
}

/// Whether there is a slot for every meter that a batch adds. Slots of meters it removes are not
/// given out before the worker has left them.
pub(crate) fn room_for_meters(control: &Control, before: &Before) -> Result<(), WriteError> {
    let master = &control.master;
    let added = |key: &EntryKey| {
        matches!(key, EntryKey::Meter(id) if !master.meters.contains_key(id))
            && master.entries.contains_key(key)
    };
    let needed = before.keys().filter(|key| added(key)).count();
    let room = control.free_meters.len();
    if needed > room { Err(WriteError::TooManyMeters { needed, room }) } else { Ok(()) }
}
