//! The book of offloaded flows: who has which place, and who has to go when there is none.
//!
//! A flow that carried something since the last harvest is never put out for another one, so a flood
//! of new flows can't push out those that are worth their places.

use std::collections::VecDeque;

use flowtable::ActionList;
use flowtable::conn::Hit;
use flowtable::exact::ExactMap;
use flowtable::hot::{HotCount, HotFlow};
use flowtable::ids::Vrf;
use flowtable::key::FlowKey;

use super::reason::NotHot;
use crate::pipeline::Relation;

/// Most offloaded flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotLimits {
    /// Packets of a flow that pass the engine before it is offloaded.
    pub after_packets: u64,
    /// Flows from one port.
    pub port_flows: u32,
    /// Flows of one tenant.
    pub tenant_flows: u32,
}

/// An offloaded flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) flow: HotFlow,
    pub(crate) relation: Relation,
    /// Counter slots of the rules it matched.
    pub(crate) slots: [u32; 2],
    pub(crate) hit: Option<Hit>,
    pub(crate) vrf: Vrf,
    /// What of its count is in the counters already.
    pub(crate) counted: HotCount,
    /// Packets since the last harvest: those who ask for counts meanwhile do not make it look idle.
    pub(crate) carried: u64,
    /// Harvests in a row that found nothing new.
    pub(crate) idle_rounds: u32,
    pub(crate) stage: Stage,
}

impl Record {
    pub(crate) fn payer(&self) -> u16 {
        payer(&self.flow.key, &self.flow.actions)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its packets pass the engine by.
    Live,
    /// Stopped; its place is taken until the last of its packets is through.
    Leaving,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Book {
    limits: HotLimits,
    places: u32,
    records: Vec<Option<Record>>,
    free: Vec<u32>,
    by_name: ExactMap<FlowKey, u32>,
    of_port: ExactMap<u16, u32>,
    of_tenant: ExactMap<Vrf, u32>,
    /// Stopped ones.
    leaving: Vec<u32>,
    /// Places of flows that the last harvest found idle, the longest first.
    cold: VecDeque<u32>,
}

/// What the table knows a flow by: MACs are checked there, and do not tell flows apart.
pub(crate) fn name(key: &FlowKey) -> FlowKey {
    FlowKey { eth_src: [0; 6], eth_dst: [0; 6], tcp_flags: 0, ..*key }
}

/// The container's port that a flow counts for: the sender's, or of what comes through a tunnel the
/// receiver's.
pub(crate) fn payer(key: &FlowKey, actions: &ActionList) -> u16 {
    if key.vni == 0 { key.in_port } else { actions.output().get() }
}

impl Book {
    pub(crate) fn new(places: u32, limits: HotLimits) -> Self {
        Self {
            limits,
            places,
            records: Vec::new(),
            free: Vec::new(),
            by_name: ExactMap::default(),
            of_port: ExactMap::default(),
            of_tenant: ExactMap::default(),
            leaving: Vec::new(),
            cold: VecDeque::new(),
        }
    }

    pub(crate) fn find(&self, key: &FlowKey) -> Option<u32> {
        self.by_name.get(&name(key)).copied()
    }

    pub(crate) fn record(&self, place: u32) -> Option<&Record> {
        self.records.get(place as usize)?.as_ref()
    }

    pub(crate) fn record_mut(&mut self, place: u32) -> Option<&mut Record> {
        self.records.get_mut(place as usize)?.as_mut()
    }

    /// How many flows each tenant has.
    pub(crate) fn of_tenants(&self) -> impl Iterator<Item = (Vrf, u32)> {
        self.of_tenant.iter().map(|(vrf, count)| (*vrf, *count))
    }

    /// All flows with their places.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u32, &Record)> {
        let records = (0..).zip(&self.records);
        records.filter_map(|(place, record)| Some((place, record.as_ref()?)))
    }

    /// Those that are forwarded.
    pub(crate) fn live(&self) -> impl Iterator<Item = (u32, &Record)> {
        self.all().filter(|(_, record)| record.stage == Stage::Live)
    }

    /// Whether there is room for one more flow that counts for `port` of `vrf`.
    pub(crate) fn room(&self, (port, vrf): (u16, Vrf)) -> Result<(), NotHot> {
        if self.of_port.get(&port).is_some_and(|count| *count >= self.limits.port_flows) {
            return Err(NotHot::PortQuota);
        }
        if self.of_tenant.get(&vrf).is_some_and(|count| *count >= self.limits.tenant_flows) {
            return Err(NotHot::TenantQuota);
        }
        if self.free.is_empty() && self.records.len() >= self.places as usize {
            return Err(NotHot::Full);
        }
        Ok(())
    }

    /// Gives a flow that is not in the book a place.
    pub(crate) fn add(&mut self, record: Record) -> Result<u32, NotHot> {
        let (port, vrf) = (record.payer(), record.vrf);
        self.room((port, vrf))?;
        let place = self.free.pop().unwrap_or_else(|| {
            self.records.push(None);
            self.records.len() as u32 - 1
        });
        *self.of_port.entry(port).or_default() += 1;
        *self.of_tenant.entry(vrf).or_default() += 1;
        self.by_name.insert(name(&record.flow.key), place);
        self.records[place as usize] = Some(record);
        Ok(place)
    }

    /// Notes that a flow is stopped.
    pub(crate) fn leave(&mut self, place: u32) {
        if let Some(record) = self.record_mut(place)
            && record.stage == Stage::Live
        {
            record.stage = Stage::Leaving;
            self.leaving.push(place);
        }
    }

    /// Those that are stopped, for the one who sees them off.
    pub(crate) fn take_leaving(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.leaving)
    }

    /// Forgets a flow. Its place is free.
    pub(crate) fn remove(&mut self, place: u32) {
        self.forget(place);
        self.free.push(place);
    }

    /// Forgets a flow whose place is not to be used again.
    pub(crate) fn forget(&mut self, place: u32) {
        let Some(record) = self.records.get_mut(place as usize).and_then(Option::take) else {
            return;
        };
        self.by_name.remove(&name(&record.flow.key));
        take_one(&mut self.of_port, &record.payer());
        take_one(&mut self.of_tenant, &record.vrf);
    }

    /// Sets who may have to go for others.
    pub(crate) fn set_cold(&mut self) {
        let mut idle: Vec<(u32, u32)> = self
            .live()
            .filter(|(_, record)| record.idle_rounds > 0)
            .map(|(place, record)| (record.idle_rounds, place))
            .collect();
        idle.sort_unstable_by_key(|(rounds, _)| std::cmp::Reverse(*rounds));
        self.cold = idle.into_iter().map(|(_, place)| place).collect();
    }

    /// The flow that has been idle the longest and whose leaving would make room for a flow from
    /// `port` of `vrf` that was refused for `reason`.
    pub(crate) fn coldest(&mut self, reason: NotHot, (port, vrf): (u16, Vrf)) -> Option<u32> {
        let at = self.cold.iter().position(|place| {
            let record = self.record(*place).filter(|record| record.stage == Stage::Live);
            record.is_some_and(|record| {
                let same_port = reason != NotHot::PortQuota || record.payer() == port;
                same_port && (reason != NotHot::TenantQuota || record.vrf == vrf)
            })
        })?;
        self.cold.remove(at)
    }
}

fn take_one<K: std::hash::Hash + Eq>(counts: &mut ExactMap<K, u32>, of: &K) {
    if let Some(count) = counts.get_mut(of) {
        *count -= 1;
        if *count == 0 {
            counts.remove(of);
        }
    }
}

#[cfg(test)]
mod tests {
    use flowtable::ActionList;
    use flowtable::action::{Exit, Pop};
    use flowtable::ids::PortId;

    use super::*;

    const LIMITS: HotLimits = HotLimits { after_packets: 1, port_flows: 2, tenant_flows: 3 };

    fn record(port: u16, vrf: u32, number: u16) -> Record {
        let exit = Exit::Plain(PortId::MIN);
        Record {
            flow: HotFlow {
                key: FlowKey { in_port: port, src_port: number, ..FlowKey::default() },
                actions: ActionList { pop: Pop::Nothing, route: None, dscp: None, exit },
                set: 0,
                revision: 1,
                is_reply: false,
            },
            relation: Relation::Untracked,
            slots: [0; 2],
            hit: None,
            vrf: Vrf::new(vrf).unwrap(),
            counted: HotCount::default(),
            carried: 0,
            idle_rounds: 0,
            stage: Stage::Live,
        }
    }

    #[test]
    fn ports_tenants_and_the_table_have_so_many_places() {
        let mut book = Book::new(4, LIMITS);
        for (port, vrf, number, expected) in [
            (1, 1, 1, Ok(0)),
            (1, 1, 2, Ok(1)),
            (1, 1, 3, Err(NotHot::PortQuota)),
            (2, 1, 1, Ok(2)),
            (3, 1, 1, Err(NotHot::TenantQuota)),
            (4, 2, 1, Ok(3)),
            (4, 2, 2, Err(NotHot::Full)),
        ] {
            assert_eq!(book.add(record(port, vrf, number)), expected, "{port} {vrf} {number}");
        }
        book.remove(1);
        assert_eq!(book.add(record(1, 1, 3)), Ok(1));
        assert_eq!(book.find(&record(1, 1, 2).flow.key), None);
    }

    #[test]
    fn only_an_idle_flow_of_the_same_scope_has_to_go() {
        let mut book = Book::new(8, LIMITS);
        for (port, number) in [(1, 1), (1, 2), (2, 1)] {
            book.add(record(port, 1, number)).unwrap();
        }
        let vrf = Vrf::new(1).unwrap();
        book.set_cold();
        assert_eq!(book.coldest(NotHot::TenantQuota, (2, vrf)), None);
        for (place, rounds) in [(0, 1), (1, 2), (2, 3)] {
            book.record_mut(place).unwrap().idle_rounds = rounds;
        }
        book.set_cold();
        assert_eq!(book.coldest(NotHot::PortQuota, (1, vrf)), Some(1));
        assert_eq!(book.coldest(NotHot::TenantQuota, (1, Vrf::new(2).unwrap())), None);
        assert_eq!(book.coldest(NotHot::Full, (1, vrf)), Some(2));
        book.leave(0);
        assert_eq!(book.coldest(NotHot::Full, (1, vrf)), None);
        assert_eq!(book.take_leaving(), [0]);
    }

    #[test]
    fn macs_and_flags_do_not_tell_offloaded_flows_apart() {
        let mut book = Book::new(8, LIMITS);
        book.add(record(1, 1, 1)).unwrap();
        let mut other = record(1, 1, 1).flow.key;
        (other.eth_src, other.tcp_flags) = ([9; 6], 16);
        assert_eq!(book.find(&other), Some(0));
        other.dst_port = 1;
        assert_eq!(book.find(&other), None);
    }
}
