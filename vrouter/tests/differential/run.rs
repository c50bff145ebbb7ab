//! Runs a plan on the engine and asks the oracle about every step.

use std::collections::BTreeMap;

use flowtable::DropReason;
use flowtable::action::Punt;
use flowtable::entry::Op;
use flowtable::ids::{PortId, Vrf};
use flowtable::key::{self, Decap, Origin};
use vrouter::PortKind;

use crate::fabric::{Counter, Delivered, Fabric, Host, UPLINK, received};
use crate::oracle::bytes::{self, without_entropy};
use crate::oracle::{Fate, Judgement, Oracle, parse};
use crate::tables::{Tables, batches};
use crate::world::{Step, World};

/// The engine, and beside it what its tables hold.
pub(crate) struct Node {
    tables: Tables,
    seen: Seen,
}

/// Whether a packet was sent before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Time {
    First,
    Again,
}

/// What has happened so far, in packets.
#[derive(Debug, Default)]
struct Seen {
    sent: u64,
    delivered: u64,
    dropped: u64,
    /// Left to the slow path and not counted as dropped.
    punted: u64,
    fates: BTreeMap<String, u64>,
}

impl Node {
    pub(crate) fn new(world: &World) -> Self {
        let mut node = Self { tables: Tables::over(Fabric::empty(64)), seen: Seen::default() };
        let ops: Vec<_> = world.entries.iter().cloned().map(Op::Put).collect();
        node.write(&ops);
        node
    }

    pub(crate) fn take(&mut self, step: &Step, hosts: &[Host]) {
        match step {
            Step::Send(spec) => {
                let (port, frame) = spec.build(hosts);
                self.send(port, &frame);
            }
            Step::Call(call) => {
                let (port, frame) = call.build(hosts);
                self.send(port, &frame);
            }
            Step::Publish(door) => self.write(&[Op::Put(door.entry(hosts))]),
            Step::Withdraw(door) => self.write(&[Op::Delete(door.key())]),
            Step::Write(ops) => self.write(ops),
            Step::RemovePort(id) => self.tables.remove_port(*id),
            Step::AddPort(id) => self.tables.add_port(*id),
        }
    }

    fn write(&mut self, ops: &[Op]) {
        for batch in batches(ops) {
            self.tables.write(batch);
        }
    }

    /// Sends a frame twice: the second time it is decided by the cache.
    fn send(&mut self, port: PortId, frame: &[u8]) {
        let entries = self.tables.entries.clone();
        let ports = self.tables.ports.clone();
        let oracle = Oracle { entries: &entries, ports: &ports };
        let judgement = oracle.judge(port, frame);
        *self.seen.fates.entry(name(&judgement)).or_default() += 1;
        self.tables.check_trace(port, frame, &judgement.fate);
        for time in [Time::First, Time::Again] {
            let mut delivered = self.tables.fabric.send(port, frame);
            isolated(&oracle, (port, &judgement), &delivered);
            check_tiers(&mut delivered, &judgement, time);
            self.tally(&delivered, &judgement);
            let expected = expected(&oracle, (port, frame), &judgement, &delivered);
            for (_, bytes) in delivered.out.iter_mut().filter(|(port, _)| *port == UPLINK) {
                *bytes = without_entropy(bytes);
            }
            assert_eq!(delivered, expected, "{time:?}: {judgement:?}");
            self.tables.count_rules(&judgement, frame.len());
        }
        self.check_cached(port, frame);
    }

    /// What was done is what the trace says would be done, action by action.
    fn check_cached(&self, in_port: PortId, frame: &[u8]) {
        let Some(spec) = self.tables.ports.iter().find(|spec| spec.id == in_port) else { return };
        let decap = match spec.kind {
            PortKind::Container => Decap::Never,
            PortKind::Uplink => Decap::Vxlan,
        };
        let Ok(parsed) = key::parse(frame, Origin { in_port, decap }) else { return };
        let flows = self.tables.fabric.worker.flows();
        let flow = flows.iter().find(|flow| flow.key == parsed.key).expect("it is cached");
        assert_eq!(flow.verdict, self.tables.fabric.engine.trace(in_port, frame).verdict);
    }

    fn tally(&mut self, delivered: &Delivered, judgement: &Judgement) {
        let drops = delivered.counters.iter().filter(|(c, _)| matches!(c, Counter::Drop(_)));
        let drops: u64 = drops.map(|(_, count)| count.packets).sum();
        self.seen.sent += 1;
        self.seen.dropped += drops;
        match judgement.fate {
            Fate::Forward(..) => self.seen.delivered += delivered.out.len() as u64,
            Fate::Punt(_) => self.seen.punted += u64::from(drops == 0),
            Fate::Drop(_) => {}
        }
    }

    /// Every packet came to one end.
    pub(crate) fn balance(&self) {
        let Seen { sent, delivered, dropped, punted, .. } = self.seen;
        assert_eq!(sent, delivered + dropped + punted, "{:?}", self.seen);
    }
}

pub(crate) fn name(judgement: &Judgement) -> String {
    match &judgement.fate {
        Fate::Forward(UPLINK, bytes) => match parse::parse(bytes, PortKind::Uplink) {
            Ok(parse::Seen { tunnel: None, tag: None, .. }) => "to who is outside".to_owned(),
            Ok(_) | Err(_) => "to the wire".to_owned(),
        },
        Fate::Forward(..) => "to a container".to_owned(),
        Fate::Punt(punt) => match punt {
            Punt::ArpReply(_) => "arp".to_owned(),
            Punt::NeighborAdvert(_) => "discovery".to_owned(),
            Punt::GatewayEcho | Punt::TimeExceeded => punt.to_string(),
        },
        Fate::Drop(reason) => reason.to_string(),
    }
}

/// No packet leaves on a port, or with an identifier, of another tenant.
pub(crate) fn isolated(
    oracle: &Oracle<'_>,
    (from, judgement): (PortId, &Judgement),
    seen: &Delivered,
) {
    let Some(frame) = judgement.seen else {
        assert_eq!(seen.out, [], "a frame that can't be read goes nowhere");
        return;
    };
    let tenant = oracle.tenant(from, &frame);
    for (port, bytes) in &seen.out {
        let owner = owner(oracle, *port, bytes);
        assert!(tenant.is_some(), "nobody's packet left on {port}");
        assert!(owner.is_none_or(|owner| Some(owner) == tenant), "{tenant:?} left on {port}");
        let container = oracle.spec(*port).is_some_and(|s| s.kind == PortKind::Container);
        assert!(!container || owner.is_some(), "nobody is behind {port}");
    }
}

/// Whose a frame is that leaves there; nobody's when the tables do not know its VNI or tag.
fn owner(oracle: &Oracle<'_>, port: PortId, bytes: &[u8]) -> Option<Vrf> {
    let spec = oracle.spec(port).expect("it left on a port");
    if spec.kind == PortKind::Container {
        return oracle.binding(port).map(|binding| binding.vrf);
    }
    let frame = parse::parse(bytes, PortKind::Uplink).expect("what leaves can be read");
    match (frame.tunnel, frame.tag) {
        (Some((_, vni)), _) => oracle.of_vni(vni).map(|(vrf, _)| vrf),
        (None, Some(vid)) => oracle.of_vid(port, vid).map(|(vrf, _)| vrf),
        (None, None) => {
            let entry =
                oracle.publisher(&frame).expect("what leaves bare is from a published port");
            Some(entry.vrf)
        }
    }
}

/// A frame that can be read is decided once, the second time by the cache.
fn check_tiers(delivered: &mut Delivered, judgement: &Judgement, time: Time) {
    let mut packets = |counter| delivered.counters.remove(&counter).map_or(0, |c| c.packets);
    let (cached, walked) = (packets(Counter::Cached), packets(Counter::Walked));
    packets(Counter::Flows);
    assert_eq!(cached + walked, u64::from(judgement.seen.is_some()));
    assert!(time == Time::First || walked == 0, "the second packet was not cached");
    delivered.counters.retain(|counter, _| !matches!(counter, Counter::Rule(_)));
}

/// What must come out and be counted.
pub(crate) fn expected(
    oracle: &Oracle<'_>,
    (port, frame): (PortId, &[u8]),
    judgement: &Judgement,
    delivered: &Delivered,
) -> Delivered {
    if oracle.spec(port).is_none() {
        return Delivered::default().unowned(DropReason::PortUnbound, frame.len());
    }
    let came = received(port, frame);
    // What the slow path makes of a packet, where only its own tests know every byte.
    let answer = |came: Delivered| match &delivered.out[..] {
        [(out, bytes)] => {
            assert_eq!((*out, &bytes[..6]), (port, &frame[6..12]), "an answer to someone else");
            came.out(port, bytes)
        }
        other => panic!("{} answers", other.len()),
    };
    match &judgement.fate {
        Fate::Forward(out, bytes) => came.out(*out, bytes),
        Fate::Drop(reason) => came.dropped(port, *reason, frame.len()),
        Fate::Punt(Punt::ArpReply(mac)) => {
            let seen = judgement.seen.expect("it was read");
            match oracle.told(port, (&seen, frame), *mac) {
                Ok(bytes) => came.out(port, &bytes),
                Err(reason) => came.dropped(port, reason, ARP_BYTES),
            }
        }
        Fate::Punt(Punt::NeighborAdvert(mac)) => {
            let seen = judgement.seen.expect("it was read");
            if !bytes::icmpv6_is_signed(&seen.unwrapped(frame)) {
                return came.dropped(port, DropReason::Malformed, frame.len());
            }
            match oracle.told(port, (&seen, frame), *mac) {
                Ok(bytes) => came.out(port, &bytes),
                Err(reason) => came.dropped(port, reason, ADVERT_BYTES),
            }
        }
        Fate::Punt(Punt::GatewayEcho) if delivered.out.is_empty() => {
            came.dropped(port, DropReason::Malformed, frame.len())
        }
        Fate::Punt(Punt::GatewayEcho) => answer(came),
        Fate::Punt(Punt::TimeExceeded) => {
            let came = came.dropped(port, DropReason::TtlExpired, frame.len());
            if delivered.out.is_empty() { came } else { answer(came) }
        }
    }
}

const ARP_BYTES: usize = 42;
const ADVERT_BYTES: usize = 86;

/// How often each fate was met over many plans.
#[derive(Debug, Default)]
pub(crate) struct Met(BTreeMap<String, u64>);

impl Met {
    pub(crate) fn add(&mut self, node: &Node) {
        for (fate, count) in &node.seen.fates {
            *self.0.entry(fate.clone()).or_default() += count;
        }
    }

    pub(crate) fn assert_enough(&self) {
        let drops = DropReason::ALL.iter().filter(|reason| !OUT_OF_REACH.contains(reason));
        let fates = ["to the wire", "to a container", "arp", "discovery", "icmp_echo_reply"];
        let fates = fates.into_iter().chain(["icmp_time_exceeded"]).map(str::to_owned);
        for fate in fates.chain(drops.map(ToString::to_string)) {
            let met = self.0.get(&fate).copied().unwrap_or_default();
            assert!(met >= 3, "{fate} was met {met} times: {:?}", self.0);
        }
    }
}

/// Drops that are no decision of the tables, and some that this version never makes.
const OUT_OF_REACH: [DropReason; 8] = [
    DropReason::TtlExpired,
    DropReason::RateLimit,
    DropReason::SlowPathLimit,
    DropReason::TooBig,
    DropReason::TxFull,
    DropReason::NoFrame,
    DropReason::FlowLimit,
    DropReason::Fragment,
];
