//! Runs a plan on the engine and asks the oracle and its memory about every packet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use flowtable::DropReason;
use flowtable::conn::ConnStats;
use flowtable::entry::Op;
use flowtable::ids::PortId;
use flowtable::key::ethertype;
use vrouter::{EngineConfig, PortKind};

use crate::fabric::{Counter, Delivered, Fabric, Host, UPLINK};
use crate::oracle::bytes::without_entropy;
use crate::oracle::memory::{Conn, Memory, Ruling};
use crate::oracle::{Fate, Judgement, Oracle};
use crate::plan::{Gust, Plan, Settings, Step, Storm, moved};
use crate::run::{expected, isolated, name};
use crate::tables::{Tables, batches};
use crate::talk::{Pair, Saying};

const SECOND: u64 = 1_000_000_000;

/// The engine, beside it what its tables hold, and what the oracle remembers.
pub(crate) struct Node {
    tables: Tables,
    settings: Settings,
    memory: Memory,
    fates: BTreeMap<String, u64>,
}

impl Node {
    /// Everything of a plan, in its order.
    pub(crate) fn run(plan: &Plan, workers: u16) -> Self {
        let mut node = Self::new(plan.settings, workers);
        let ops: Vec<_> = plan.world.entries.iter().cloned().map(Op::Put).collect();
        node.write(&ops);
        node.wait(SECOND);
        node.memory.pickup_until = 1 + u64::from(plan.settings.pickup_seconds);
        let mut pairs: Vec<Pair> = Vec::new();
        for step in &plan.steps {
            let hosts = &plan.world.hosts;
            match step {
                Step::Talk(_, _) if pairs.is_empty() => {}
                Step::Talk(at, sayings) => {
                    node.talk(&pairs[usize::from(*at) % pairs.len()], sayings, hosts);
                }
                Step::Meet(pair, sayings) => {
                    let opens = pair.door().map(|door| Op::Put(door.entry(hosts)));
                    node.write(opens.as_slice());
                    node.talk(pair, sayings, hosts);
                    pairs.push(*pair);
                }
                Step::Junk(spec) => {
                    let (port, frame) = spec.build(hosts);
                    node.send(port, &frame);
                }
                Step::Call(call) => {
                    let (port, frame) = call.build(hosts);
                    node.send(port, &frame);
                }
                Step::Publish(door) => node.write(&[Op::Put(door.entry(hosts))]),
                Step::Withdraw(door) => node.write(&[Op::Delete(door.key())]),
                Step::Write(ops) => node.write(ops),
                Step::Move(at, place) => {
                    node.write(&moved(&hosts[usize::from(*at) % hosts.len()], *place));
                }
                Step::RemovePort(id) => node.tables.remove_port(*id),
                Step::AddPort(id) => node.tables.add_port(*id),
            }
        }
        node
    }

    fn new(settings: Settings, workers: u16) -> Self {
        let fabric = Fabric::empty_stateful(&EngineConfig {
            workers,
            connections: 1 << 12,
            port_connections: settings.port_connections,
            pickup_seconds: settings.pickup_seconds,
            masked_entries: settings.masked_entries,
            flow_entries: settings.flow_entries,
            tenant_new_flows: 0,
            port_new_flows: 0,
            ..EngineConfig::default()
        });
        let (tables, memory) = (Tables::over(fabric), Memory::default());
        Self { tables, settings, memory, fates: BTreeMap::new() }
    }

    fn talk(&mut self, pair: &Pair, sayings: &[Saying], hosts: &[Host]) {
        for saying in sayings {
            self.wait(saying.wait_ns);
            let (port, frame) = pair.says(saying, hosts);
            self.send(port, &frame);
        }
    }

    fn wait(&mut self, ns: u64) {
        self.tables.fabric.wait(ns);
        self.memory.now_ns = self.tables.fabric.now_ns;
        self.memory.expire();
    }

    fn write(&mut self, ops: &[Op]) {
        for batch in batches(ops) {
            let before = self.tables.entries.clone();
            self.tables.write(batch);
            self.memory.purge(&before, &self.tables.entries);
        }
    }

    fn send(&mut self, in_port: PortId, frame: &[u8]) {
        // The tables that the trace asks are those the worker has.
        self.wait(0);
        let (entries, ports) = (self.tables.entries.clone(), self.tables.ports.clone());
        let oracle = Oracle { entries: &entries, ports: &ports };
        let unswept = self.unswept();
        let mut ruling = self.memory.rule(&oracle, in_port, frame);
        self.tables.check_trace(in_port, frame, &ruling.judgement.fate);
        let mut delivered = self.tables.fabric.send_at_once(in_port, frame);
        self.settle_room(&oracle, &mut ruling, &delivered, unswept);
        let judgement = &ruling.judgement;
        *self.fates.entry(name(judgement)).or_default() += 1;
        isolated(&oracle, (in_port, judgement), &delivered);
        check_tiers(&mut delivered, judgement);
        let expected = expected(&oracle, (in_port, frame), judgement, &delivered);
        for (_, bytes) in delivered.out.iter_mut().filter(|(port, _)| *port == UPLINK) {
            *bytes = without_entropy(bytes);
        }
        assert_eq!(delivered, expected, "{judgement:?}");
        self.tables.count_rules(judgement, frame.len());
        self.check_connections();
    }

    /// Connections that are over and not yet counted as such.
    fn unswept(&self) -> usize {
        self.tables.fabric.engine.connection_counts().open as usize - self.memory.conns.len()
    }

    /// Which half-open connection goes for a new one is the engine's choice, and so is whether one
    /// is found: here it is seen that it may choose so.
    fn settle_room(
        &mut self,
        oracle: &Oracle<'_>,
        ruling: &mut Ruling,
        delivered: &Delivered,
        unswept: usize,
    ) {
        let Some(conn) = ruling.opens else { return };
        let refused = delivered.counters.contains_key(&Counter::Drop(DropReason::FlowLimit));
        let vrf = conn.name.vrf;
        let is_uplink = oracle.spec(conn.port).is_some_and(|s| s.kind == PortKind::Uplink);
        let of_port = if is_uplink { u32::MAX } else { self.settings.port_connections };
        let of_tenant = oracle.settings(vrf).map_or(0, |tenant| tenant.connections_max);
        let of_tenant = if of_tenant == 0 { u32::MAX } else { of_tenant };
        // What it takes the place of is gone before there is a question of room.
        let replaced = self.memory.forget_over(&conn);
        let port = self.memory.load(|other| other.port == conn.port);
        let tenant = self.memory.load(|other| other.name.vrf == vrf);
        let loads = [(port, of_port as usize), (tenant, of_tenant as usize)];
        let full = loads.iter().any(|((_, staying), most)| staying >= most);
        let free = loads.iter().all(|((all, _), most)| all + unswept < *most);
        assert!(refused || !full, "{conn:?} is above the limit");
        assert!(!refused || !free, "{conn:?} is within the limit");
        let listed = self.listed();
        let gone = |old: &Conn| !listed.iter().any(|(name, _)| *name == describe(old));
        let victims: Vec<_> = self.memory.conns.iter().filter(|old| gone(old)).copied().collect();
        for victim in &victims {
            let close = victim.port == conn.port || victim.name.vrf == vrf;
            assert!(!free && victim.is_half_open() && close, "{victim:?} went for {conn:?}");
        }
        self.memory.conns.retain(|old| !victims.contains(old));
        *self.fates.entry("evicted".to_owned()).or_default() += victims.len() as u64;
        if refused {
            ruling.judgement.fate = Fate::Drop(DropReason::FlowLimit);
        } else {
            let seen = ruling.judgement.seen.expect("it was read");
            self.memory.open(conn, &seen);
        }
        if victims.len() + replaced > 0 {
            // Until a second is over, the flow cache need not ask whether a connection is there.
            self.wait(SECOND);
        }
    }

    /// Names of the engine's connections and the seconds they have left.
    fn listed(&self) -> BTreeSet<(String, u64)> {
        let list = self.tables.fabric.engine.connections(usize::MAX);
        list.iter().map(|conn| (described(conn), u64::from(conn.expires_in.0))).collect()
    }

    fn check_connections(&self) {
        let left = |conn: &Conn| self.memory.left_s(conn);
        let known: BTreeSet<_> =
            self.memory.conns.iter().map(|conn| (describe(conn), left(conn))).collect();
        assert_eq!(self.listed(), known);
    }
}

/// Takes every step of a storm: nothing stops the worker, no frame is lost, and every packet that was
/// received was sent, dropped or answered.
pub(crate) fn endure(storm: &Storm) {
    let settings =
        Settings { port_connections: 4, pickup_seconds: 5, masked_entries: 8, flow_entries: 8 };
    let mut node = Node::new(settings, 1);
    node.write(&storm.world.entries.iter().cloned().map(Op::Put).collect::<Vec<_>>());
    for gust in &storm.steps {
        match gust {
            // What is refused as a whole is refused.
            Gust::Write(ops) => drop(node.tables.fabric.engine.write(ops)),
            Gust::Wait(ns) => node.tables.fabric.wait(*ns),
            Gust::Frame { good, on_wire, at, bytes } => {
                let says = |(pair, sayings): &(Pair, Vec<Saying>)| {
                    pair.says(&sayings[0], &storm.world.hosts)
                };
                let (in_port, mut frame) = good.as_ref().map_or((UPLINK, vec![0; 12]), says);
                let at = usize::from(*at) % frame.len();
                for (place, byte) in frame[at..].iter_mut().zip(bytes) {
                    *place = *byte;
                }
                frame.extend(bytes.iter().skip(30));
                frame.truncate(1600);
                let in_port = if *on_wire { UPLINK } else { in_port };
                node.tables.fabric.write(&[]);
                drop(node.tables.fabric.engine.trace(in_port, &frame));
                let delivered = node.tables.fabric.send(in_port, &frame);
                assert!(delivered.out.len() <= 1, "{delivered:?}");
                let received = delivered.counters.get(&Counter::Rx(in_port));
                let drops = delivered.counters.keys().any(|c| matches!(c, Counter::Drop(_)));
                assert!(received.is_none_or(|_| drops || delivered.out.len() == 1));
            }
        }
    }
}

fn describe(conn: &Conn) -> String {
    let name = &conn.name;
    format!("{} {} {:?} {:?} by {}", name.vrf, name.protocol, name.from, name.to, conn.port)
}

fn described(conn: &ConnStats) -> String {
    let tuple = &conn.tuple;
    let address = |bytes: [u8; 16]| {
        let six = Ipv6Addr::from_octets(bytes);
        let four = six.to_ipv4_mapped().filter(|_| tuple.family == ethertype::IPV4);
        four.map_or(IpAddr::V6(six), IpAddr::V4)
    };
    let (from, to) = if matches!(tuple.proto, 1 | 58) {
        let id = tuple.src_port << 8 | tuple.dst_port & 0xff;
        (id, id)
    } else {
        (tuple.src_port, tuple.dst_port)
    };
    let (from, to) = ((address(tuple.src), from), (address(tuple.dst), to));
    format!("{} {} {from:?} {to:?} by {}", tuple.vrf, tuple.proto, conn.owner.port)
}

/// A frame that can be read is decided by a cache or by the tables.
fn check_tiers(delivered: &mut Delivered, judgement: &Judgement) {
    let mut packets = |counter| delivered.counters.remove(&counter).map_or(0, |c| c.packets);
    let (cached, walked) = (packets(Counter::Cached), packets(Counter::Walked));
    packets(Counter::Flows);
    assert_eq!(cached + walked > 0, judgement.seen.is_some());
    delivered.counters.retain(|counter, _| !matches!(counter, Counter::Rule(_)));
}

/// How often each fate was met over many plans.
#[derive(Debug, Default)]
pub(crate) struct Met(BTreeMap<String, u64>);

impl Met {
    pub(crate) fn add(&mut self, node: &Node) {
        for (fate, count) in &node.fates {
            *self.0.entry(fate.clone()).or_default() += count;
        }
    }

    pub(crate) fn assert_enough(&self) {
        let fates = [
            "to the wire",
            "to who is outside",
            "to a container",
            "no-connection",
            "flow-limit",
            "fragment",
            "policy-deny",
            "spoofed-mac",
            "spoofed-ip",
            "unknown-endpoint",
            "ttl-expired",
            "icmp_time_exceeded",
        ];
        for fate in fates {
            let met = self.0.get(fate).copied().unwrap_or_default();
            assert!(met >= 10, "{fate} was met {met} times: {:?}", self.0);
        }
    }
}
