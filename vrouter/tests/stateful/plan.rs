//! Random plans: a world, settings, and what happens in it one after the other.

use std::fmt;

use flowtable::entry::{
    Entry, EntryKey, GroupEntry, IcmpMatch, Ipv6, MeterEntry, MeterUnit, NextHop, OnDeny, Op,
    Permit, Prefix, QosEntry, RouteEntry, RuleEntry, TcpFlagsMatch, TenantEntry, Tracking,
};
use flowtable::ids::{Dscp, MeterId, PortId};
use flowtable::meter::Band;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::callers::{self, Call, Door};
use crate::packets::{self, Spec};
use crate::talk::{self, Pair, Saying};
use crate::world::{self, World};

#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// The conversation at this position, modulo their number, goes on.
    Talk(u8, Vec<Saying>),
    /// A new one begins.
    Meet(Pair, Vec<Saying>),
    Junk(Spec),
    /// From outside the tenants, or to there, and of no conversation.
    Call(Call),
    Write(Vec<Op>),
    /// A port of the node leads to a container.
    Publish(Door),
    Withdraw(Door),
    /// A host, by position, gets another place, or none.
    Move(u8, Option<NextHop>),
    RemovePort(PortId),
    AddPort(PortId),
}

#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) world: World,
    pub(crate) settings: Settings,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) port_connections: u32,
    pub(crate) pickup_seconds: u32,
    pub(crate) masked_entries: usize,
    pub(crate) flow_entries: usize,
}

/// Batches and frames as they may never come: meters that are not there, ports that are uplinks,
/// random bytes.
#[derive(Debug, Clone)]
pub(crate) struct Storm {
    pub(crate) world: World,
    pub(crate) steps: Vec<Gust>,
}

#[derive(Debug, Clone)]
pub(crate) enum Gust {
    Write(Vec<Op>),
    /// Bytes on the trunk or, if so, on the wire; the first ones may be those of a good frame.
    Frame {
        good: Option<(Pair, Vec<Saying>)>,
        on_wire: bool,
        at: u16,
        bytes: Vec<u8>,
    },
    Wait(u64),
}

pub(crate) fn storm() -> impl Strategy<Value = Storm> {
    let meter = (1..4_u32, 1..100_u64, option::of(0..64_u32)).prop_map(|(id, burst, dscp)| {
        let (meter, committed) = (MeterId::new(id).unwrap(), Band { rate: burst, burst });
        let (unit, peak) = (MeterUnit::Packets, Some(Band { rate: burst * 2, burst }));
        let yellow_dscp = dscp.map(|dscp| Dscp::new(dscp).unwrap());
        Entry::Meter(MeterEntry { meter, unit, committed, peak, yellow_dscp })
    });
    let ids = || vec((1..5_u32).prop_map(|id| MeterId::new(id).unwrap()), 0..6);
    let qos = (world::any_port(), ids(), ids())
        .prop_map(|(port, from, to)| Entry::Qos(QosEntry { port, from, to, dscp: None }));
    let op = prop_oneof![
        4 => op(),
        1 => meter.prop_map(Op::Put),
        2 => qos.prop_map(Op::Put),
        1 => (1..4_u32).prop_map(|id| Op::Delete(EntryKey::Meter(MeterId::new(id).unwrap()))),
    ];
    let good = option::weighted(0.9, (talk::pair(), talk::sayings()));
    let bytes = prop_oneof![3 => vec(any::<u8>(), 0..4), 1 => vec(any::<u8>(), 0..1800)];
    let frame = (good, prop::bool::weighted(0.2), any::<u16>(), bytes)
        .prop_map(|(good, on_wire, at, bytes)| Gust::Frame { good, on_wire, at, bytes });
    let gust = prop_oneof![
        3 => vec(op, 1..5).prop_map(Gust::Write),
        16 => frame,
        2 => any::<u32>().prop_map(|ns| Gust::Wait(u64::from(ns) * 100)),
    ];
    (world::world(), vec(gust, 1..120)).prop_map(|(world, steps)| Storm { world, steps })
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let World { hosts, entries } = &self.world;
        let hosts = hosts.iter().map(|host| format!("{host:?}"));
        let lines =
            hosts.chain(entries[world::base().len()..].iter().map(|entry| format!("{entry:?}")));
        let mut lines = lines.chain(self.steps.iter().map(|step| format!("{step:?}")));
        write!(f, "{:?}", self.settings)?;
        lines.try_for_each(|line| write!(f, "\n  {line}"))
    }
}

pub(crate) fn plan() -> impl Strategy<Value = Plan> {
    let step = prop_oneof![
        24 => (any::<u8>(), talk::sayings()).prop_map(|(at, says)| Step::Talk(at, says)),
        10 => (talk::pair(), talk::sayings()).prop_map(|(pair, says)| Step::Meet(pair, says)),
        2 => packets::spec().prop_map(Step::Junk),
        4 => callers::call().prop_map(Step::Call),
        1 => callers::door().prop_map(Step::Publish),
        1 => callers::door().prop_map(Step::Withdraw),
        6 => vec(op(), 1..4).prop_map(Step::Write),
        2 => (any::<u8>(), option::weighted(0.7, world::next_hop()))
            .prop_map(|(host, place)| Step::Move(host, place)),
        1 => world::any_port().prop_map(Step::RemovePort),
        2 => world::any_port().prop_map(Step::AddPort),
    ];
    // What a group table says of callers counts for nothing.
    let group = (world::any_vrf(), callers::block(), world::any_group())
        .prop_map(|(vrf, prefix, group)| Entry::Group(GroupEntry { vrf, prefix, group }));
    let entries = (vec(rule(), 0..6), vec(mark(), 0..3), vec(group, 0..4));
    let start = (vec(option::weighted(0.8, tenant()), 3), entries);
    (world::world(), settings(), start, vec(step, 1..100)).prop_map(
        |(mut world, settings, (tenants, (rules, marks, groups)), steps)| {
            for (mut tenant, id) in tenants.into_iter().flatten().zip(1..) {
                tenant.vrf = crate::fabric::vrf(id);
                world.entries.push(Entry::Tenant(tenant));
            }
            // Of the world's rules, few enough that something passes.
            let kept =
                |entry: &Entry| !matches!(entry, Entry::Rule(r) if r.seq == 1 || r.rule.0 > 4);
            world.entries.retain(kept);
            for entry in &mut world.entries {
                if let Entry::Port(binding) = entry {
                    binding.ipv6 = Ipv6::On;
                }
            }
            world.entries.extend(rules.into_iter().map(Entry::Rule));
            world.entries.extend(marks.into_iter().map(Entry::Qos));
            world.entries.extend(groups);
            Plan { world, settings, steps }
        },
    )
}

fn settings() -> impl Strategy<Value = Settings> {
    let limits = prop_oneof![
        3 => Just((u32::MAX, 0)),
        1 => Just((u32::MAX, 20)),
        2 => Just((2, 0)),
    ];
    let masked = prop_oneof![4 => Just(1 << 10), 1 => Just(0)];
    let flows = prop_oneof![3 => Just(1 << 10), 1 => Just(1)];
    (limits, masked, flows).prop_map(|(limits, masked_entries, flow_entries)| {
        let (port_connections, pickup_seconds) = limits;
        Settings { port_connections, pickup_seconds, masked_entries, flow_entries }
    })
}

fn tenant() -> impl Strategy<Value = TenantEntry> {
    let tracking = prop_oneof![8 => Just(Tracking::Stateful), 1 => Just(Tracking::Stateless)];
    let on_deny = prop_oneof![2 => Just(OnDeny::Cut), 1 => Just(OnDeny::Finish)];
    let permit = prop_oneof![3 => Just(Permit::Allow), 1 => Just(Permit::Deny)];
    (world::any_vrf(), permit, tracking, on_deny, prop_oneof![6 => Just(0), 1 => 1..5_u32])
        .prop_map(|(vrf, default, tracking, on_deny, connections_max)| TenantEntry {
            tracking,
            on_deny,
            connections_max,
            ..TenantEntry::new(vrf, default)
        })
}

/// Rules that look at what only some packets have.
fn rule() -> impl Strategy<Value = RuleEntry> {
    let kind = prop_oneof![Just(8), Just(0), Just(128), Just(129), Just(3)];
    let icmp = (kind, option::of(Just(0))).prop_map(|(kind, code)| IcmpMatch { kind, code });
    let flags = (0..32_u8, prop_oneof![Just(2), Just(18), Just(16), Just(1)])
        .prop_map(|(value, mask)| TcpFlagsMatch { value: value & mask, mask });
    (world::rule(), option::weighted(0.3, icmp), option::weighted(0.3, flags)).prop_map(
        |(rule, icmp, tcp_flags)| match (icmp, tcp_flags) {
            // One that can't match would be refused.
            (Some(icmp), _) => RuleEntry {
                protocol: Some(if icmp.kind < 128 { 1 } else { 58 }),
                icmp: Some(icmp),
                src: None,
                dst: None,
                src_ports: None,
                dst_ports: None,
                ..rule
            },
            (None, Some(_)) => RuleEntry { protocol: Some(6), tcp_flags, ..rule },
            (None, None) => rule,
        },
    )
}

fn mark() -> impl Strategy<Value = QosEntry> {
    let dscp = option::weighted(0.8, 0..64_u8);
    (world::any_port(), dscp).prop_map(|(port, dscp)| {
        let dscp = dscp.map(|dscp| Dscp::new(u32::from(dscp)).unwrap());
        QosEntry { port, from: Vec::new(), to: Vec::new(), dscp }
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => world::op(),
        3 => tenant().prop_map(|entry| Op::Put(Entry::Tenant(entry))),
        1 => world::any_vrf().prop_map(|vrf| Op::Delete(EntryKey::Tenant(vrf))),
        3 => rule().prop_map(|entry| Op::Put(Entry::Rule(entry))),
        1 => mark().prop_map(|entry| Op::Put(Entry::Qos(entry))),
        1 => world::any_port().prop_map(|port| Op::Delete(EntryKey::Qos(port))),
    ]
}

/// The batch that gives a host another place, or takes its address away.
pub(crate) fn moved(host: &crate::fabric::Host, place: Option<NextHop>) -> Vec<Op> {
    let prefix = Prefix::host(host.ip.into());
    let Some(next_hop) = place else {
        return vec![Op::Delete(EntryKey::Route(host.vrf, prefix))];
    };
    let (vrf, bd, mac) = (host.vrf, host.bd, host.mac);
    vec![Op::Put(Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop }))]
}
