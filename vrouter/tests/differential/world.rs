//! Small random worlds: three tenants with the same addresses, two networks each, a few endpoints,
//! rules, and entries that no controller would ever write.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use flowtable::entry::{
    Direction, Entry, EntryKey, GroupEntry, Ipv6, MacEntry, NetworkEntry, NextHop, Offload, Op,
    Permit, PortEntry, PortRange, Prefix, PublishedEntry, RouteEntry, RuleEntry, TunnelEntry,
    UnderlayEntry, VlanEntry, VtepEntry,
};
use flowtable::ids::{Bd, Group, Mac, PortId, RuleId, Vid, Vni, Vrf};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::callers::{self, Call, Door};
use crate::fabric::{
    self, Host, LOCAL, LOCAL6, REMOTE, REMOTE6, ROUTER_MAC, UPLINK, UPLINK_MAC, port, prefix,
    stateless,
};
use crate::packets::{self, Spec};

/// Containers' ports that exist at the start are 1 to this.
pub(crate) const PORTS: u32 = 8;
const VRFS: u32 = 3;

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) hosts: Vec<Host>,
    pub(crate) entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Send(Spec),
    /// From outside the tenants, or to there.
    Call(Call),
    Write(Vec<Op>),
    /// A port of the node leads to a container.
    Publish(Door),
    Withdraw(Door),
    RemovePort(PortId),
    AddPort(PortId),
}

#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) world: World,
    pub(crate) steps: Vec<Step>,
}

/// One line for each thing, so that a failing plan can be read.
impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let World { hosts, entries } = &self.world;
        let hosts = hosts.iter().map(|host| format!("{host:?}"));
        let own = &entries[base().len()..];
        let lines = hosts.chain(own.iter().map(|entry| format!("{entry:?}")));
        let mut lines = lines.chain(self.steps.iter().map(|step| format!("{step:?}")));
        lines.try_for_each(|line| write!(f, "\n  {line}"))
    }
}

pub(crate) fn plan() -> impl Strategy<Value = Plan> {
    let step = prop_oneof![
        24 => packets::spec().prop_map(Step::Send),
        5 => callers::call().prop_map(Step::Call),
        2 => callers::door().prop_map(Step::Publish),
        1 => callers::door().prop_map(Step::Withdraw),
        5 => vec(op(), 1..4).prop_map(Step::Write),
        1 => any_port().prop_map(Step::RemovePort),
        2 => any_port().prop_map(Step::AddPort),
    ];
    (world(), vec(step, 1..40)).prop_map(|(world, steps)| Plan { world, steps })
}

pub(crate) fn world() -> impl Strategy<Value = World> {
    let hosts = vec(host(), 2..PORTS as usize);
    let entries = (vec(rule(), 0..12), vec(callers::door(), 0..6), vec(entry(), 0..4));
    (hosts, entries).prop_map(|(mut hosts, (rules, doors, junk))| {
        for (host, id) in hosts.iter_mut().zip(1..) {
            if let NextHop::Local(own) = &mut host.place {
                *own = port(id);
            }
        }
        let mut entries = base();
        entries.extend(hosts.iter().flat_map(entries_of));
        entries.extend(rules.into_iter().map(Entry::Rule));
        entries.extend(doors.iter().map(|door| door.entry(&hosts)));
        entries.extend(junk);
        World { hosts, entries }
    })
}

/// Networks 1 (VXLAN) and 2 (VLAN) of every tenant, and the ways between the nodes.
pub(crate) fn base() -> Vec<Entry> {
    let mut entries = Vec::new();
    for (id, net) in (1..=VRFS).flat_map(|id| [(id, 1), (id, 2)]) {
        let (vrf, bd) = (fabric::vrf(id), bd_of(id, net));
        let wire = (net == 2).then(|| (UPLINK, vid_of(id)));
        let gateways = vec![ipv4(net, 254), ipv6(net, 254).into()];
        let subnets = vec![prefix(ipv4(net, 0), 24)];
        entries.push(Entry::Network(NetworkEntry { bd, vrf, subnets, gateways, wire }));
        entries.push(Entry::Tunnel(TunnelEntry { vni: vni_of(id, net), bd, vrf }));
        if net == 1 {
            let next_hop = NextHop::UnknownEndpoint;
            let (prefix, mac) = (prefix(ipv4(net, 0), 24), Mac::default());
            entries.push(Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop }));
        } else {
            entries.push(Entry::Vlan(VlanEntry { port: UPLINK, vid: vid_of(id), bd, vrf }));
        }
    }
    for (ip, local) in [(REMOTE, LOCAL), (REMOTE6, LOCAL6)] {
        entries.extend([Entry::Vtep(VtepEntry { ip, local }), fabric::underlay(ip)]);
    }
    entries
}

pub(crate) fn bd_of(vrf: u32, net: u8) -> Bd {
    fabric::bd(vrf * 10 + u32::from(net))
}

pub(crate) fn vni_of(vrf: u32, net: u8) -> Vni {
    fabric::vni(1000 + vrf * 10 + u32::from(net))
}

pub(crate) fn vid_of(vrf: u32) -> Vid {
    fabric::vid(30 + vrf)
}

pub(crate) fn ipv4(net: u8, last: u8) -> IpAddr {
    [10, 1, net, last].into()
}

pub(crate) fn ipv6(net: u8, last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, u16::from(net), 0, 0, 0, u16::from(last))
}

/// The address of a host in the other family.
pub(crate) fn ipv6_of(host: &Host) -> Ipv6Addr {
    let [_, _, net, last] = host.ip.octets();
    ipv6(net, last)
}

/// A host's entries in both families.
fn entries_of(host: &Host) -> Vec<Entry> {
    let mut entries = host.entries();
    for entry in &mut entries {
        if let Entry::Port(binding) = entry {
            // Hosts with an even address have IPv6.
            let dual = host.ip.octets()[3].is_multiple_of(2);
            binding.ipv6 = if dual { Ipv6::On } else { Ipv6::Off };
            binding.ips.push(ipv6_of(host).into());
        }
    }
    let Host { vrf, bd, mac, place: next_hop, .. } = *host;
    let prefix = Prefix::host(ipv6_of(host).into());
    entries.push(Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop }));
    entries
}

fn host() -> impl Strategy<Value = Host> {
    let tenant = prop_oneof![3 => Just(1), 2 => Just(2), 1 => Just(3)];
    (tenant, 1..=2_u8, 1..=4_u8, 0..10_u32, 0..3_u32).prop_map(|(vrf, net, last, place, group)| {
        let host = Host::local(1, fabric::vrf(vrf), bd_of(vrf, net), [10, 1, net, last]);
        let vni = vni_of(vrf, net);
        let place = match place {
            0..=5 => host.place,
            6..=7 if net == 2 => NextHop::Vlan { port: UPLINK, vid: vid_of(vrf) },
            6..=8 => NextHop::Tunnel { vtep: REMOTE, vni },
            _ => NextHop::Tunnel { vtep: REMOTE6, vni },
        };
        Host { place, ..host }.in_group(fabric::group(group))
    })
}

pub(crate) fn any_vrf() -> impl Strategy<Value = Vrf> {
    prop_oneof![3 => Just(1), 2 => Just(2), 1 => Just(VRFS)].prop_map(fabric::vrf)
}

fn any_bd() -> impl Strategy<Value = Bd> {
    (1..=VRFS, 1..=2_u8).prop_map(|(vrf, net)| bd_of(vrf, net))
}

fn any_vni() -> impl Strategy<Value = Vni> {
    (1..=VRFS, 1..=3_u8).prop_map(|(vrf, net)| vni_of(vrf, net))
}

fn any_vid() -> impl Strategy<Value = Vid> {
    (1..=VRFS + 1).prop_map(vid_of)
}

pub(crate) fn any_port() -> impl Strategy<Value = PortId> {
    prop_oneof![9 => (1..=PORTS + 1).prop_map(port), 1 => Just(UPLINK)]
}

pub(crate) fn any_group() -> impl Strategy<Value = Group> {
    (0..3_u32).prop_map(fabric::group)
}

pub(crate) fn any_mac() -> impl Strategy<Value = Mac> {
    (1..=VRFS as u8, 1..=2_u8, 1..=4_u8)
        .prop_map(|(vrf, net, last)| Mac([2, vrf, 10, 1, net, last]))
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    (1..=2_u8, 1..=4_u8, 0..4_u8).prop_map(|(net, last, family)| {
        if family == 0 { ipv6(net, last).into() } else { ipv4(net, last) }
    })
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    let inside = (any_ip(), 0..6_u8).prop_map(|(ip, kind)| {
        let whole = if ip.is_ipv4() { 32 } else { 128 };
        let len = match kind {
            0 => 0,
            1 => whole / 2,
            2 => whole - 8,
            3 => whole - 2,
            _ => whole,
        };
        prefix(ip, len)
    });
    prop_oneof![12 => inside, 1 => callers::block()]
}

fn any_vtep() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![Just((REMOTE, LOCAL)), Just((REMOTE6, LOCAL6))]
}

pub(crate) fn next_hop() -> impl Strategy<Value = NextHop> {
    prop_oneof![
        4 => any_port().prop_map(NextHop::Local),
        2 => (any_vtep(), any_vni()).prop_map(|((vtep, _), vni)| NextHop::Tunnel { vtep, vni }),
        2 => (any_port(), any_vid()).prop_map(|(port, vid)| NextHop::Vlan { port, vid }),
        1 => Just(NextHop::UnknownEndpoint),
    ]
}

fn ports() -> impl Strategy<Value = Option<PortRange>> {
    let range = prop_oneof![
        Just(PortRange { first: 1, last: 1 }),
        Just(PortRange { first: 2, last: 2 }),
        Just(PortRange { first: 0, last: 1 }),
        Just(PortRange { first: 2, last: 65535 }),
    ];
    option::weighted(0.2, range)
}

pub(crate) fn permit() -> impl Strategy<Value = Permit> {
    prop_oneof![Just(Permit::Allow), Just(Permit::Deny)]
}

pub(crate) fn rule() -> impl Strategy<Value = RuleEntry> {
    let direction = prop_oneof![Just(Direction::Out), Just(Direction::In)];
    let identity = (1..=8_u64, 0..2_u32, 1..=3_u16, direction, any_vrf());
    let groups = (option::weighted(0.2, any_group()), option::weighted(0.2, any_group()));
    let prefixes = (option::weighted(0.2, any_prefix()), option::weighted(0.2, any_prefix()));
    let protocol =
        prop_oneof![Just(None), Just(Some(1)), Just(Some(6)), Just(Some(17)), Just(Some(58))];
    let rest = (protocol, ports(), ports(), permit());
    let any = (identity, groups, prefixes, rest).prop_map(|(identity, groups, prefixes, rest)| {
        let (id, seq, priority, direction, vrf) = identity;
        let (protocol, src_ports, dst_ports, permit) = rest;
        RuleEntry {
            rule: RuleId(id),
            seq,
            priority,
            direction,
            vrf,
            src_group: groups.0,
            dst_group: groups.1,
            src: prefixes.0,
            dst: prefixes.1,
            protocol,
            src_ports,
            dst_ports,
            icmp: None,
            tcp_flags: None,
            permit,
        }
    });
    any.prop_filter("can match", |rule| Entry::Rule(rule.clone()).check().is_ok())
}

fn binding() -> impl Strategy<Value = PortEntry> {
    let ipv6 = prop_oneof![Just(Ipv6::Off), Just(Ipv6::On)];
    (any_port(), any_vrf(), any_bd(), any_group(), any_mac(), vec(any_ip(), 1..3), ipv6).prop_map(
        |(port, vrf, bd, group, mac, ips, ipv6)| PortEntry {
            port,
            vrf,
            bd,
            group,
            mac,
            ips,
            ipv6,
            sample_rate: 0,
            offload: Offload::On,
        },
    )
}

/// Any entry at all, also one that leads from one tenant to another.
fn entry() -> impl Strategy<Value = Entry> {
    let wire = option::of((any_port(), any_vid()));
    let network =
        (any_bd(), any_vrf(), vec(any_ip(), 0..2), wire).prop_map(|(bd, vrf, gateways, wire)| {
            Entry::Network(NetworkEntry { bd, vrf, subnets: Vec::new(), gateways, wire })
        });
    let route = (any_vrf(), any_prefix(), any_bd(), any_mac(), next_hop()).prop_map(
        |(vrf, prefix, bd, mac, next_hop)| {
            Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop })
        },
    );
    let mac = (any_bd(), any_mac(), next_hop())
        .prop_map(|(bd, mac, next_hop)| Entry::Mac(MacEntry { bd, mac, next_hop }));
    let underlay = (any_vtep(), any_port()).prop_map(|((vtep, _), port)| {
        let (src_mac, dst_mac) = (UPLINK_MAC, ROUTER_MAC);
        Entry::Underlay(UnderlayEntry { vtep, port, src_mac, dst_mac })
    });
    let published = (callers::door(), any_vrf(), any_ip(), 1..3_u16).prop_filter_map(
        "of one family",
        |(door, vrf, to, to_port)| {
            let entry = PublishedEntry { node: door.node(), vrf, to, to_port };
            (door.six == to.is_ipv6()).then_some(Entry::Published(entry))
        },
    );
    prop_oneof![
        3 => binding().prop_map(Entry::Port),
        1 => published,
        1 => network,
        1 => (any_vni(), any_bd(), any_vrf())
            .prop_map(|(vni, bd, vrf)| Entry::Tunnel(TunnelEntry { vni, bd, vrf })),
        1 => any_vtep().prop_map(|(ip, local)| Entry::Vtep(VtepEntry { ip, local })),
        1 => underlay,
        1 => (any_port(), any_vid(), any_bd(), any_vrf())
            .prop_map(|(port, vid, bd, vrf)| Entry::Vlan(VlanEntry { port, vid, bd, vrf })),
        2 => (any_vrf(), prop_oneof![4 => any_prefix(), 1 => callers::block()], any_group())
            .prop_map(|(vrf, prefix, group)| Entry::Group(GroupEntry { vrf, prefix, group })),
        4 => rule().prop_map(Entry::Rule),
        3 => route,
        3 => mac,
        1 => (any_vrf(), permit())
            .prop_map(|(vrf, default)| stateless(vrf, default)),
    ]
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let key = entry().prop_map(|entry| entry.key());
    let delete = prop_oneof![
        3 => key,
        1 => (1..=8_u64, 0..2_u32).prop_map(|(id, seq)| EntryKey::Rule(RuleId(id), seq)),
        1 => any_vtep().prop_map(|(vtep, _)| EntryKey::Underlay(vtep)),
    ];
    prop_oneof![
        60 => entry().prop_map(Op::Put),
        30 => delete.prop_map(Op::Delete),
        1 => Just(Op::Clear),
    ]
}
