//! Writes to the engine's tables, with the underlay part that is vrouterd's own.
//!
//! Clients write where tunnels end; how to reach those addresses on the wire is found out here, by
//! the thread in `underlay.rs`. Both go through this type: a tunnel end point takes its next hop
//! with it, in the same batch. The engine keeps next hops through a client's full replacement.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flowtable::entry::{Entry, EntryKey, NodePort, Op, UnderlayEntry};
use flowtable::ids::Mac;
use nix::sys::eventfd::{EfdFlags, EventFd};
use vrouter::{Engine, WriteError};

#[derive(Debug, Default)]
struct State {
    /// Tunnel end points in the tables.
    vteps: BTreeSet<IpAddr>,
    /// Next hops in the tables.
    underlay: BTreeMap<IpAddr, UnderlayEntry>,
    /// Ports of the node in the tables.
    published: BTreeSet<NodePort>,
}

/// The only way to the engine's tables.
#[derive(Debug)]
pub(crate) struct Tables {
    engine: Engine,
    state: Mutex<State>,
    changed: EventFd,
}

impl Tables {
    pub(crate) fn new(engine: Engine) -> Result<Self, nix::Error> {
        let changed = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { engine, state: Mutex::default(), changed })
    }

    /// Applies a client's batch; returns its revision.
    pub(crate) fn write(&self, mut ops: Vec<Op>) -> Result<u64, WriteError> {
        let mut state = self.lock();
        let vteps = vteps_after(&state.vteps, &ops);
        let gone = state.underlay.keys().filter(|ip| !vteps.contains(ip)).copied();
        let gone = gone.collect::<Vec<_>>();
        ops.extend(gone.iter().map(|ip| Op::Delete(EntryKey::Underlay(*ip))));
        let published = published_after(&state.published, &ops);
        let written = self.engine.write(&ops);
        match written {
            // Nothing has changed.
            Err(
                WriteError::Refused { .. }
                | WriteError::TableFull { .. }
                | WriteError::TooManyRules { .. }
                | WriteError::TooManyMeters { .. },
            ) => {}
            Ok(_) | Err(WriteError::Stalled { .. }) => {
                let new = vteps != state.vteps;
                state.vteps = vteps;
                state.published = published;
                state.underlay.retain(|ip, _| !gone.contains(ip));
                if new {
                    self.notify();
                }
            }
        }
        written
    }

    /// Tunnel end points in the tables.
    pub(crate) fn vteps(&self) -> Vec<IpAddr> {
        self.lock().vteps.iter().copied().collect()
    }

    /// Ports of the node in the tables, in order.
    pub(crate) fn published(&self) -> Vec<NodePort> {
        self.lock().published.iter().copied().collect()
    }

    /// MAC address of the next hop towards a tunnel end point, if there is one in the tables.
    pub(crate) fn next_hop(&self, vtep: IpAddr) -> Option<Mac> {
        self.lock().underlay.get(&vtep).map(|entry| entry.dst_mac)
    }

    /// Sets the next hops, of tunnel end points that are still in the tables.
    pub(crate) fn set_underlay(
        &self,
        resolved: &BTreeMap<IpAddr, Option<UnderlayEntry>>,
    ) -> Result<(), WriteError> {
        let mut state = self.lock();
        let mut ops = Vec::new();
        for (ip, entry) in resolved.iter().filter(|(ip, _)| state.vteps.contains(ip)) {
            if state.underlay.get(ip) == entry.as_ref() {
                continue;
            }
            tracing::info!(vtep = %ip, next_hop = ?entry.as_ref().map(|e| e.dst_mac.to_string()), "underlay");
            ops.push(match entry {
                Some(entry) => Op::Put(Entry::Underlay(entry.clone())),
                None => Op::Delete(EntryKey::Underlay(*ip)),
            });
        }
        if ops.is_empty() {
            return Ok(());
        }
        self.engine.write(&ops)?;
        for op in ops {
            match op {
                Op::Put(Entry::Underlay(entry)) => drop(state.underlay.insert(entry.vtep, entry)),
                Op::Delete(EntryKey::Underlay(ip)) => drop(state.underlay.remove(&ip)),
                Op::Put(_) | Op::Delete(_) | Op::Clear => {}
            }
        }
        Ok(())
    }

    /// Readable when tunnel end points came or went; see [`Tables::seen`].
    pub(crate) fn changed(&self) -> &EventFd {
        &self.changed
    }

    /// Makes [`Tables::changed`] unreadable again.
    pub(crate) fn seen(&self) {
        // It fails when it is unreadable already.
        self.changed.read().ok();
    }

    /// Makes the next hops be looked up anew, soon.
    pub(crate) fn notify(&self) {
        // It fails when the counter is full, and then it is readable.
        self.changed.write(1).ok();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state follows the engine's tables write by write; a panic leaves it one behind,
        // which the next refresh of the underlay mends.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tunnel end points after a batch.
fn vteps_after(before: &BTreeSet<IpAddr>, ops: &[Op]) -> BTreeSet<IpAddr> {
    let mut vteps = before.clone();
    for op in ops {
        match op {
            Op::Put(Entry::Vtep(vtep)) => drop(vteps.insert(vtep.ip)),
            Op::Delete(EntryKey::Vtep(ip)) => drop(vteps.remove(ip)),
            Op::Clear => vteps.clear(),
            Op::Put(_) | Op::Delete(_) => {}
        }
    }
    vteps
}

/// The ports of the node after a batch.
fn published_after(before: &BTreeSet<NodePort>, ops: &[Op]) -> BTreeSet<NodePort> {
    let mut published = before.clone();
    for op in ops {
        match op {
            Op::Put(Entry::Published(entry)) => drop(published.insert(entry.node)),
            Op::Delete(EntryKey::Published(node)) => drop(published.remove(node)),
            Op::Clear => published.clear(),
            Op::Put(_) | Op::Delete(_) => {}
        }
    }
    published
}

#[cfg(test)]
mod tests {
    use flowtable::entry::{PublishedEntry, VtepEntry};
    use flowtable::ids::{PortId, Vrf};
    use vrouter::EngineConfig;

    use super::*;

    fn tables() -> (Engine, Tables) {
        let engine = Engine::new(EngineConfig::default());
        (engine.clone(), Tables::new(engine).unwrap())
    }

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn vtep(last: u8) -> Op {
        Op::Put(Entry::Vtep(VtepEntry { ip: ip(last), local: ip(1) }))
    }

    fn next_hop(last: u8, mac: u8) -> UnderlayEntry {
        UnderlayEntry {
            vtep: ip(last),
            port: PortId::MIN,
            src_mac: Mac([2, 0, 0, 0, 0, 1]),
            dst_mac: Mac([2, 0, 0, 0, 0, mac]),
        }
    }

    fn underlay_of(engine: &Engine) -> Vec<UnderlayEntry> {
        let entries = engine.entries();
        let underlay = entries.into_iter().filter_map(|stats| {
            if let Entry::Underlay(entry) = stats.entry { Some(entry) } else { None }
        });
        underlay.collect()
    }

    #[test]
    fn a_full_replacement_keeps_wanted_next_hops_and_no_others() {
        let (engine, tables) = tables();
        tables.write(vec![vtep(8), vtep(9)]).unwrap();
        let resolved = [8, 9].map(|n| (ip(n), Some(next_hop(n, n))));
        tables.set_underlay(&resolved.into()).unwrap();
        assert_eq!(underlay_of(&engine), [next_hop(8, 8), next_hop(9, 9)]);
        tables.write(vec![Op::Clear, vtep(9)]).unwrap();
        assert_eq!(underlay_of(&engine), [next_hop(9, 9)]);
        assert_eq!(tables.vteps(), [ip(9)]);
        tables.write(vec![Op::Delete(EntryKey::Vtep(ip(9)))]).unwrap();
        assert_eq!(underlay_of(&engine), []);
    }

    #[test]
    fn published_ports_are_those_of_the_tables() {
        let (_, tables) = tables();
        let node = |port| NodePort { address: ip(1), protocol: 6, port };
        let publish = |port| {
            let (vrf, to) = (Vrf::MIN, [10, 0, 0, 1].into());
            Op::Put(Entry::Published(PublishedEntry { node: node(port), vrf, to, to_port: 80 }))
        };
        tables.write(vec![publish(81), publish(80)]).unwrap();
        assert_eq!(tables.published(), [node(80), node(81)]);
        // A refused batch changes nothing.
        tables.write(vec![Op::Clear, publish(0)]).unwrap_err();
        tables.write(vec![Op::Delete(EntryKey::Published(node(80)))]).unwrap();
        assert_eq!(tables.published(), [node(81)]);
        tables.write(vec![Op::Clear, publish(82)]).unwrap();
        assert_eq!(tables.published(), [node(82)]);
    }

    #[test]
    fn next_hops_are_written_when_they_change_and_only_for_known_end_points() {
        let (engine, tables) = tables();
        tables.write(vec![vtep(8)]).unwrap();
        tables.set_underlay(&[(ip(7), Some(next_hop(7, 7)))].into()).unwrap();
        assert_eq!(underlay_of(&engine), []);
        tables.set_underlay(&[(ip(8), Some(next_hop(8, 1)))].into()).unwrap();
        let revision = engine.revision();
        tables.set_underlay(&[(ip(8), Some(next_hop(8, 1)))].into()).unwrap();
        assert_eq!(engine.revision(), revision);
        tables.set_underlay(&[(ip(8), Some(next_hop(8, 2)))].into()).unwrap();
        assert_eq!(underlay_of(&engine), [next_hop(8, 2)]);
        tables.set_underlay(&[(ip(8), None)].into()).unwrap();
        assert_eq!(underlay_of(&engine), []);
    }

    #[test]
    fn only_a_change_of_end_points_is_announced() {
        let (_, tables) = tables();
        tables.write(vec![vtep(8)]).unwrap();
        assert_eq!(tables.changed().read(), Ok(1));
        tables.write(vec![vtep(8)]).unwrap();
        assert!(tables.changed().read().is_err());
    }
}
