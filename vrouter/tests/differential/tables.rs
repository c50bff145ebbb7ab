//! The engine, and beside it what its tables hold: what every run of a plan keeps.

use std::collections::{BTreeMap, BTreeSet};

use flowtable::entry::{Entry, EntryKey, Op};
use flowtable::ids::{PortId, RuleId};
use flowtable::{DropReason, Verdict};
use vrouter::{Count, PortSpec};

use crate::fabric::{Fabric, UPLINK, container, port, uplink};
use crate::oracle::{Fate, Judgement, bytes};
use crate::world::PORTS;

pub(crate) struct Tables {
    pub(crate) fabric: Fabric,
    pub(crate) entries: Vec<Entry>,
    pub(crate) ports: Vec<PortSpec>,
    rules: BTreeMap<RuleId, Count>,
}

impl Tables {
    /// An empty engine with all ports of the small world.
    pub(crate) fn over(fabric: Fabric) -> Self {
        let containers = (1..=PORTS).map(|id| container(port(id)));
        let ports: Vec<_> = [uplink()].into_iter().chain(containers).collect();
        for spec in &ports {
            fabric.engine.add_port(spec.clone()).unwrap();
        }
        Self { fabric, entries: Vec::new(), ports, rules: BTreeMap::new() }
    }

    pub(crate) fn remove_port(&mut self, id: PortId) {
        self.fabric.engine.remove_ports(&[id]).unwrap();
        self.ports.retain(|spec| spec.id != id);
        self.entries.retain(|entry| entry.key() != EntryKey::Port(id));
        self.fabric.write(&[]);
    }

    pub(crate) fn add_port(&mut self, id: PortId) {
        let spec = if id == UPLINK { uplink() } else { container(id) };
        self.fabric.engine.add_port(spec.clone()).unwrap();
        self.ports.retain(|spec| spec.id != id);
        self.ports.push(spec);
        self.fabric.write(&[]);
    }

    /// Writes one batch.
    pub(crate) fn write(&mut self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Put(entry) => {
                    self.entries.retain(|known| known.key() != entry.key());
                    self.entries.push(entry.clone());
                }
                Op::Delete(key) => self.entries.retain(|known| known.key() != *key),
                Op::Clear => self.entries.retain(|known| matches!(known, Entry::Underlay(_))),
            }
        }
        self.fabric.write(ops);
        let rules = self.entries.iter();
        let alive: BTreeSet<_> = rules
            .filter_map(|entry| if let Entry::Rule(rule) = entry { Some(rule.rule) } else { None })
            .collect();
        self.rules.retain(|id, _| alive.contains(id));
        for id in alive {
            self.rules.entry(id).or_default();
        }
    }

    /// What is traced is what must be.
    pub(crate) fn check_trace(&self, port: PortId, frame: &[u8], fate: &Fate) {
        let trace = self.fabric.engine.trace(port, frame);
        match (trace.verdict, fate) {
            (Verdict::Forward(actions), Fate::Forward(port, _)) => {
                assert_eq!(actions.output(), *port);
            }
            (Verdict::Punt(found), Fate::Punt(punt)) => assert_eq!(found, *punt),
            (Verdict::Drop(found), Fate::Drop(reason)) => {
                // Without a port there is nothing to parse for.
                let no_port = *reason == DropReason::PortUnbound;
                assert!(found == *reason || no_port, "{found} instead of {reason}");
            }
            // Congestion that the sender would not understand: it is seen when the packet is taken out
            // of its tunnel (RFC 6040), and no key tells of it.
            (Verdict::Forward(_), Fate::Drop(DropReason::Malformed))
                if bytes::class(frame) & 3 == 3 => {}
            (verdict, fate) => panic!("traced as {verdict:?}, must be {fate:?}"),
        }
    }

    /// The rules that a packet must have matched counted it, and no other did.
    pub(crate) fn count_rules(&mut self, judgement: &Judgement, frame_len: usize) {
        let Some(seen) = judgement.seen else { return };
        let tag_bytes = if seen.tag.is_some() && seen.tunnel.is_none() { 4 } else { 0 };
        let bytes = (frame_len - seen.start - tag_bytes) as u64;
        for id in &judgement.rules {
            let count = self.rules.get_mut(id).expect("only rules that are there match");
            *count = Count { packets: count.packets + 1, bytes: count.bytes + bytes };
        }
        let counted: BTreeMap<_, _> = self.fabric.engine.rules().into_iter().collect();
        assert_eq!(counted, self.rules, "{judgement:?}");
    }
}

/// As many batches as it takes: one with two values for a key would be refused.
pub(crate) fn batches(ops: &[Op]) -> Vec<&[Op]> {
    let put = |op: &Op| if let Op::Put(entry) = op { Some(entry.key()) } else { None };
    let mut batches = Vec::new();
    let mut start = 0;
    for (at, op) in ops.iter().enumerate() {
        if put(op).is_some() && ops[start..at].iter().any(|earlier| put(earlier) == put(op)) {
            batches.push(&ops[start..at]);
            start = at;
        }
    }
    batches.push(&ops[start..]);
    batches
}
