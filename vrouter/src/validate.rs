//! What a batch can say wrong, beyond what its types rule out.
//!
//! First the steps on their own, before anything is applied; then the tables as they would be,
//! which the caller restores when they are refused. A worker never sees a refused batch.

use std::collections::BTreeMap;
use std::mem::discriminant;

use flowtable::entry::{BadEntry, Entry, EntryKey, Op, QosEntry};
use flowtable::exact::ExactMap;
use flowtable::ids::{MeterId, PortId};

use crate::engine::WriteError;

/// Entries as they were before a batch, of the keys it touched.
pub(crate) type Before = BTreeMap<EntryKey, Option<Entry>>;

type Entries = BTreeMap<EntryKey, Entry>;

/// Most entries of each table. Ports, networks and tunnels are bounded by their identifiers.
pub(crate) const fn entries_max(key: &EntryKey) -> usize {
    match key {
        EntryKey::Port(_) | EntryKey::Qos(_) => PortId::MAX.get() as usize,
        EntryKey::Network(_) | EntryKey::Tunnel(_) => 1 << 24,
        EntryKey::Vtep(_)
        | EntryKey::Underlay(_)
        | EntryKey::Vlan(_, _)
        | EntryKey::Published(_) => 1 << 16,
        EntryKey::Group(_, _)
        | EntryKey::Rule(_, _)
        | EntryKey::Route(_, _)
        | EntryKey::Mac(_, _)
        | EntryKey::Tenant(_) => 1 << 20,
        EntryKey::Meter(_) => 1 << 15,
    }
}

fn refused(op: usize, table: &'static str, bad: BadEntry) -> WriteError {
    let BadEntry { field, value, reason } = bad;
    WriteError::Refused { op, table, field, reason: format!("{value}: {reason}") }
}

/// Each step, and steps that contradict each other: one key with two values is no order of events,
/// but two entries that were given the same identity.
///
/// # Errors
/// [`WriteError::Refused`] for the first step that is wrong.
pub(crate) fn steps(ops: &[Op]) -> Result<(), WriteError> {
    let mut written: ExactMap<EntryKey, &Entry> = ExactMap::default();
    written.reserve(ops.len());
    for (op, step) in ops.iter().enumerate() {
        match step {
            Op::Put(entry) => {
                entry.check().map_err(|bad| refused(op, entry.table(), bad))?;
                let twice = written.insert(entry.key(), entry).is_some_and(|was| was != entry);
                if twice {
                    let (value, reason) =
                        (format!("{:?}", entry.key()), "twice, with other values");
                    return Err(refused(
                        op,
                        entry.table(),
                        BadEntry { field: "key", value, reason },
                    ));
                }
            }
            Op::Delete(key) => drop(written.remove(key)),
            Op::Clear => written.clear(),
        }
    }
    Ok(())
}

/// The tables after the batch: nothing names what is not there, and no table is too long.
///
/// # Errors
/// [`WriteError::Refused`] with the step to blame, or [`WriteError::TableFull`].
pub(crate) fn outcome(entries: &Entries, before: &Before, ops: &[Op]) -> Result<(), WriteError> {
    meters(entries, before, ops)?;
    let mut grown: Vec<&EntryKey> = Vec::new();
    for key in before.iter().filter(|(_, was)| was.is_none()).map(|(key, _)| key) {
        let known = grown.last().is_some_and(|last| discriminant(*last) == discriminant(key));
        if !known && let Some(entry) = entries.get(key) {
            bound(entries, entry)?;
            grown.push(key);
        }
    }
    Ok(())
}

/// Every meter that a port names exists.
fn meters(entries: &Entries, before: &Before, ops: &[Op]) -> Result<(), WriteError> {
    let ports = || EntryKey::Qos(PortId::MIN)..=EntryKey::Qos(PortId::MAX);
    for (key, _) in before.range(ports()) {
        if let Some(entry @ Entry::Qos(qos)) = entries.get(key)
            && let Some((field, meter)) = missing(entries, qos)
        {
            let (value, reason) = (meter.to_string(), "there is no such meter");
            let bad = BadEntry { field, value, reason };
            return Err(refused(step_of(ops, key), entry.table(), bad));
        }
    }
    let mut meters = before.range(EntryKey::Meter(MeterId::MIN)..=EntryKey::Meter(MeterId::MAX));
    if meters.all(|(key, _)| entries.contains_key(key)) {
        return Ok(());
    }
    for entry in entries.range(ports()).map(|(_, entry)| entry) {
        if let Entry::Qos(qos) = entry
            && let Some((_, meter)) = missing(entries, qos)
        {
            let (value, reason) = (format!("{meter}, named by port {}", qos.port), "still in use");
            let bad = BadEntry { field: "meter", value, reason };
            return Err(refused(step_of(ops, &EntryKey::Meter(meter)), "meter", bad));
        }
    }
    Ok(())
}

/// A meter that is named and not there.
fn missing(entries: &Entries, qos: &QosEntry) -> Option<(&'static str, MeterId)> {
    let absent = |meter: &&MeterId| !entries.contains_key(&EntryKey::Meter(**meter));
    let of = |field, meters: &[MeterId]| meters.iter().find(absent).map(|meter| (field, *meter));
    of("from", &qos.from).or_else(|| of("to", &qos.to))
}

/// The last step that touched an entry.
fn step_of(ops: &[Op], key: &EntryKey) -> usize {
    let touches = |op: &Op| match op {
        Op::Put(entry) => entry.key() == *key,
        Op::Delete(gone) => gone == key,
        Op::Clear => true,
    };
    ops.iter().rposition(touches).unwrap_or(0)
}

/// Counts the table of an entry, when all entries together could be too many for it.
fn bound(entries: &Entries, entry: &Entry) -> Result<(), WriteError> {
    let key = entry.key();
    let max = entries_max(&key);
    if entries.len() <= max {
        return Ok(());
    }
    // Keys of one table are neighbours.
    let same = |other: &(&EntryKey, &Entry)| discriminant(other.0) == discriminant(&key);
    let after = entries.range(&key..).take_while(same).count();
    let before = entries.range(..&key).rev().take_while(same).count();
    if before + after > max {
        return Err(WriteError::TableFull { table: entry.table(), max });
    }
    Ok(())
}
