//! The engine's state as messages of `datapath.v1`.

use std::collections::{BTreeMap, BTreeSet};

use datapath_api::convert::entry_to_proto;
use datapath_api::v1;
use datapath_api::v1::connection_counters::Refusal;
use flowtable::DropReason;
use flowtable::conn::{ConnCounts, ConnStats};
use flowtable::entry::{Entry, MeterEntry, MeterUnit, NodePort};
use flowtable::ids::{Bd, MeterId, PortId, Vid, Vrf};
use flowtable::key::{FlowKey, ipproto};
use flowtable::meter::MeterCounts;
use flowtable::text::{FlowSpec, MaskedKey, entry_actions, entry_match};
use offload::{DropCount, Offload, OffloadError};
use vrouter::{
    Count, EntryStats, Framing, HotStats, HotTenant, NotHot, PortKind, PortStats, opening_key,
};

use crate::uplink::Device;

/// Entries of a listing when the client does not say.
const LIMIT_DEFAULT: usize = 10_000;

/// How many entries a request asks for.
pub(crate) const fn limit(requested: u32) -> usize {
    if requested == 0 { LIMIT_DEFAULT } else { requested as usize }
}

/// A port, with what the kernel dropped for it before the engine.
pub(crate) fn port(
    stats: &PortStats,
    devices: &[Device],
    offload: &Offload,
) -> Result<v1::Port, OffloadError> {
    let (kind, tag) = match (stats.spec.kind, stats.spec.framing) {
        (PortKind::Container, _) => (v1::PortKind::Container, u32::from(stats.spec.id.get())),
        (PortKind::Uplink, Framing::Tagged) => (v1::PortKind::Uplink, stats.spec.id.get().into()),
        (PortKind::Uplink, Framing::Direct(_)) => (v1::PortKind::Uplink, 0),
    };
    let kernel = match stats.spec.framing {
        Framing::Tagged => offload.port_drops(stats.spec.id)?,
        Framing::Direct(_) => Vec::new(),
    };
    Ok(v1::Port {
        id: stats.spec.id.get().into(),
        name: stats.spec.name.clone(),
        ifindex: stats.spec.ifindex,
        kind: kind.into(),
        tag,
        vrf: stats.binding.as_ref().map_or(0, |b| b.vrf.get()),
        bd: stats.binding.as_ref().map_or(0, |b| b.bd.get()),
        rx_packets: stats.rx.packets,
        rx_bytes: stats.rx.bytes,
        tx_packets: stats.tx.packets,
        tx_bytes: stats.tx.bytes,
        drops: stats.drops + kernel.iter().map(|d| d.packets).sum::<u64>(),
        devices: devices.iter().map(device).collect(),
    })
}

fn device(device: &Device) -> v1::PortDevice {
    v1::PortDevice {
        name: device.name.clone(),
        ifindex: device.ifindex,
        active: device.is_active,
        state: device.state.to_owned(),
    }
}

/// Every reason once, with the packets that ended by it in the engine or in the kernel.
pub(crate) fn drops(engine: Vec<(DropReason, Count)>, kernel: &[DropCount]) -> v1::DropsReply {
    let drops = engine.into_iter().map(|(reason, count)| {
        let of_reason = || kernel.iter().filter(move |d| d.reason == reason);
        v1::Drop {
            reason: reason.name().to_owned(),
            packets: count.packets + of_reason().map(|d| d.packets).sum::<u64>(),
            bytes: count.bytes + of_reason().map(|d| d.bytes).sum::<u64>(),
            advice: reason.advice().to_owned(),
        }
    });
    v1::DropsReply { drops: drops.collect() }
}

/// What tells the tenant of an entry or a flow that does not name it.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    networks: BTreeMap<Bd, Vrf>,
    ports: BTreeMap<u16, Vrf>,
    tunnels: BTreeMap<u32, Vrf>,
    vlans: BTreeMap<(u16, u16), Vrf>,
    published: BTreeMap<NodePort, Vrf>,
}

impl Tenants {
    pub(crate) fn new(entries: &[EntryStats]) -> Self {
        let mut tenants = Self::default();
        for stats in entries {
            match &stats.entry {
                Entry::Network(e) => drop(tenants.networks.insert(e.bd, e.vrf)),
                Entry::Port(e) => drop(tenants.ports.insert(e.port.get(), e.vrf)),
                Entry::Tunnel(e) => drop(tenants.tunnels.insert(e.vni.get(), e.vrf)),
                Entry::Vlan(e) => drop(tenants.vlans.insert(vlan_key(e.port, e.vid), e.vrf)),
                Entry::Published(e) => {
                    tenants.published.insert(e.node, e.vrf);
                }
                Entry::Vtep(_)
                | Entry::Underlay(_)
                | Entry::Group(_)
                | Entry::Rule(_)
                | Entry::Route(_)
                | Entry::Mac(_)
                | Entry::Tenant(_)
                | Entry::Meter(_)
                | Entry::Qos(_) => {}
            }
        }
        tenants
    }

    fn of_entry(&self, entry: &Entry) -> Option<Vrf> {
        match entry {
            Entry::Port(e) => Some(e.vrf),
            Entry::Network(e) => Some(e.vrf),
            Entry::Tunnel(e) => Some(e.vrf),
            Entry::Vlan(e) => Some(e.vrf),
            Entry::Group(e) => Some(e.vrf),
            Entry::Rule(e) => Some(e.vrf),
            Entry::Route(e) => Some(e.vrf),
            Entry::Tenant(e) => Some(e.vrf),
            Entry::Published(e) => Some(e.vrf),
            Entry::Mac(e) => self.networks.get(&e.bd).copied(),
            Entry::Qos(e) => self.ports.get(&e.port.get()).copied(),
            Entry::Vtep(_) | Entry::Underlay(_) | Entry::Meter(_) => None,
        }
    }

    pub(crate) fn of_flow(&self, key: &FlowKey) -> Option<Vrf> {
        let found = if key.vni != 0 {
            self.tunnels.get(&key.vni)
        } else {
            let published = || self.published.get(&key.node_port()?);
            self.ports
                .get(&key.in_port)
                .or_else(|| self.vlans.get(&(key.in_port, key.vid)))
                .or_else(published)
        };
        found.copied()
    }
}

fn vlan_key(port: PortId, vid: Vid) -> (u16, u16) {
    (port.get(), vid.get())
}

/// Which entries a client wants.
#[derive(Debug)]
pub(crate) struct EntryFilter {
    /// Those that a packet of this flow could match.
    pub(crate) spec: Option<FlowSpec>,
    pub(crate) vrf: Option<u32>,
    pub(crate) limit: usize,
}

/// The first entries that pass the filter. An entry that belongs to no tenant passes a tenant only
/// where the flow names it: all of the node's traffic may meet it.
pub(crate) fn entries(all: &[EntryStats], filter: &EntryFilter) -> v1::ListReply {
    let tenants = Tenants::new(all);
    let named = filter.spec.as_ref().and_then(|spec| spec.tenant.vrf).map(Vrf::get);
    let wanted = |stats: &&EntryStats| {
        let vrf = tenants.of_entry(&stats.entry).map(Vrf::get);
        filter.vrf.is_none_or(|wanted| vrf == Some(wanted))
            && named.is_none_or(|wanted| vrf.is_none_or(|vrf| vrf == wanted))
            && filter.spec.as_ref().is_none_or(|spec| spec.overlaps(&stats.entry))
    };
    let mut listed = all.iter().filter(wanted).map(entry);
    let entries = listed.by_ref().take(filter.limit).collect();
    v1::ListReply { entries, truncated: listed.next().is_some(), ..v1::ListReply::default() }
}

fn entry(stats: &EntryStats) -> v1::ListedEntry {
    v1::ListedEntry {
        table: stats.entry.table().to_owned(),
        r#match: entry_match(&stats.entry),
        actions: entry_actions(&stats.entry),
        packets: stats.count.packets,
        bytes: stats.count.bytes,
        entry: Some(entry_to_proto(&stats.entry)),
    }
}

const fn offloading_tenant(tenant: &HotTenant) -> v1::offload_reply::Tenant {
    let HotTenant { vrf, flows, flows_max, ports_off } = *tenant;
    v1::offload_reply::Tenant { vrf: vrf.get(), flows, flows_max, ports_off }
}

/// The offloaded flows in numbers.
pub(crate) fn offload(stats: &HotStats) -> v1::OffloadReply {
    let refusal = |(reason, count): &(NotHot, u64)| v1::offload_reply::Refusal {
        reason: reason.name().to_owned(),
        count: *count,
    };
    v1::OffloadReply {
        on: stats.on,
        flows: stats.flows,
        flows_max: stats.flows_max,
        packets: stats.count.packets,
        bytes: stats.count.bytes,
        tenants: stats.tenants.iter().map(offloading_tenant).collect(),
        offloaded: stats.offloaded,
        idle: stats.idle,
        ended: stats.ended,
        changed: stats.changed,
        confirmed: stats.confirmed,
        refused: stats.refused.iter().map(refusal).collect(),
    }
}

/// Which connections a client wants.
#[derive(Debug)]
pub(crate) struct ConnFilter {
    pub(crate) spec: FlowSpec,
    pub(crate) vrf: Option<u32>,
    pub(crate) limit: usize,
}

impl ConnFilter {
    /// How many connections to look at: without a filter one more than wanted tells enough.
    pub(crate) fn look_at(&self) -> usize {
        let all = self.vrf.is_none() && self.spec == FlowSpec::default();
        if all { self.limit.saturating_add(1) } else { usize::MAX }
    }

    /// What of the flow a connection knows: its tuple and its port. The rest is not compared.
    fn known(&self) -> FlowSpec {
        let FlowSpec { in_port, eth_type, src, dst, proto, src_port, dst_port, icmp_id, .. } =
            self.spec.clone();
        FlowSpec {
            in_port,
            eth_type,
            src,
            dst,
            proto,
            src_port,
            dst_port,
            icmp_id,
            ..FlowSpec::default()
        }
    }

    /// Whether the packet that opened it could be one of the flow's.
    fn wants(&self, known: &FlowSpec, conn: &ConnStats) -> bool {
        let key = FlowKey { in_port: conn.owner.port.get(), ..opening_key(&conn.tuple) };
        let vrf = Some(conn.tuple.vrf);
        known.matches(&key)
            && self.spec.tenant.vrf.is_none_or(|wanted| Some(wanted) == vrf)
            && self.vrf.is_none_or(|wanted| conn.tuple.vrf.get() == wanted)
    }
}

/// The first connections that pass the filter.
pub(crate) fn connections(all: &[ConnStats], filter: &ConnFilter) -> v1::ListReply {
    let known = filter.known();
    let mut listed = all.iter().filter(|conn| filter.wants(&known, conn)).map(connection);
    let connections = listed.by_ref().take(filter.limit).collect();
    v1::ListReply { connections, truncated: listed.next().is_some(), ..v1::ListReply::default() }
}

fn connection(stats: &ConnStats) -> v1::Connection {
    let key = opening_key(&stats.tuple);
    let echo = matches!(key.proto, ipproto::ICMP | ipproto::ICMPV6);
    let mask = FlowKey {
        eth_type: u16::MAX,
        proto: u8::MAX,
        src: [u8::MAX; 16],
        dst: [u8::MAX; 16],
        src_port: u16::MAX,
        dst_port: if echo { 0 } else { u16::MAX },
        icmp_id: u16::MAX,
        ..FlowKey::default()
    };
    v1::Connection {
        original: format!("vrf={},{}", stats.tuple.vrf, MaskedKey { key: &key, mask: &mask }),
        state: stats.state.name().to_owned(),
        port: stats.owner.port.get().into(),
        vrf: stats.tuple.vrf.get(),
        idle_seconds: stats.idle.0,
        expires_seconds: stats.expires_in.0,
    }
}

/// How many connections there are and were.
pub(crate) fn connection_counters(counts: &ConnCounts) -> v1::ConnectionCounters {
    let refusal = |cause: &str, count| Refusal { cause: cause.to_owned(), count };
    v1::ConnectionCounters {
        open: counts.open,
        half_open: counts.half_open,
        opened: counts.opened,
        refused: vec![
            refusal("table", counts.refused_table),
            refusal("tenant", counts.refused_tenant),
            refusal("port", counts.refused_port),
            refusal("not-an-opening", counts.not_an_opening),
        ],
        evicted: counts.evicted,
        expired: counts.expired,
    }
}

/// The first meters, or those of a tenant's ports, and what they have seen.
pub(crate) fn meters(
    entries: &[EntryStats],
    (vrf, limit): (Option<u32>, usize),
    seen: impl Fn(MeterId) -> Option<MeterCounts>,
) -> v1::ListReply {
    let tenants = Tenants::new(entries);
    let mut of_tenant = BTreeSet::new();
    for stats in entries {
        if let Entry::Qos(qos) = &stats.entry
            && tenants.of_entry(&stats.entry).map(Vrf::get) == vrf
        {
            of_tenant.extend(qos.from.iter().chain(&qos.to).copied());
        }
    }
    let mut listed = entries.iter().filter_map(|stats| {
        let Entry::Meter(entry) = &stats.entry else { return None };
        let wanted = vrf.is_none() || of_tenant.contains(&entry.meter);
        // One that was removed meanwhile has seen nothing.
        wanted.then(|| meter(entry, &seen(entry.meter).unwrap_or_default()))
    });
    let meters = listed.by_ref().take(limit).collect();
    v1::ListReply { meters, truncated: listed.next().is_some(), ..v1::ListReply::default() }
}

fn meter(entry: &MeterEntry, seen: &MeterCounts) -> v1::Meter {
    let unit = match entry.unit {
        MeterUnit::Bits => "bits",
        MeterUnit::Packets => "packets",
    };
    v1::Meter {
        meter: entry.meter.get(),
        unit: unit.to_owned(),
        rate: entry.committed.rate,
        burst: entry.committed.burst,
        green_packets: seen.green.packets,
        green_bytes: seen.green.bytes,
        yellow_packets: seen.yellow.packets,
        yellow_bytes: seen.yellow.bytes,
        red_packets: seen.red.packets,
        red_bytes: seen.red.bytes,
    }
}

#[cfg(test)]
mod tests {
    use flowtable::conn::{Owner, Seconds, State, Tuple};
    use flowtable::entry::{
        Ipv6, MacEntry, NetworkEntry, NextHop, Offload, PortEntry, Prefix, QosEntry, RouteEntry,
        VtepEntry,
    };
    use flowtable::ids::{Group, Mac};
    use flowtable::meter::{Band, Tally};

    use super::*;

    fn stats(entry: Entry) -> EntryStats {
        EntryStats { entry, count: Count::default() }
    }

    fn network(bd: u32, vrf: u32) -> EntryStats {
        stats(Entry::Network(NetworkEntry {
            bd: Bd::new(bd).unwrap(),
            vrf: Vrf::new(vrf).unwrap(),
            subnets: Vec::new(),
            gateways: Vec::new(),
            wire: None,
        }))
    }

    fn mac(bd: u32) -> EntryStats {
        let next_hop = NextHop::UnknownEndpoint;
        stats(Entry::Mac(MacEntry { bd: Bd::new(bd).unwrap(), mac: Mac::GATEWAY, next_hop }))
    }

    #[test]
    fn a_tenants_entries_include_the_addresses_of_its_networks() {
        let all = [network(1, 10), network(2, 20), mac(1), mac(2), mac(3)];
        let listed = |vrf| {
            let reply = entries(&all, &EntryFilter { spec: None, vrf, limit: 100 });
            let matches = reply.entries.into_iter().map(|e| (e.table, e.r#match));
            (matches.collect::<Vec<_>>(), reply.truncated)
        };
        let text = |table: &str, text: &str| (table.to_owned(), text.to_owned());
        let of_20 = [text("network", "bd=2"), text("mac", "bd=2,eth_dst=00:00:11:11:11:11")];
        assert_eq!(listed(Some(20)), (of_20.to_vec(), false));
        assert_eq!(listed(None).0.len(), 5);
        let reply = entries(&all, &EntryFilter { spec: None, vrf: None, limit: 4 });
        assert_eq!((reply.entries.len(), reply.truncated), (4, true));
    }

    #[test]
    fn entries_are_filtered_by_what_a_flow_could_meet() {
        let vrf = |id| Vrf::new(id).unwrap();
        let prefix = |text: &str| Prefix::host(text.parse().unwrap());
        let route = |id, dst| {
            let next_hop = NextHop::UnknownEndpoint;
            let (bd, mac) = (Bd::new(1).unwrap(), Mac::default());
            stats(Entry::Route(RouteEntry { vrf: vrf(id), prefix: prefix(dst), bd, mac, next_hop }))
        };
        let vtep = Entry::Vtep(VtepEntry {
            ip: "192.0.2.2".parse().unwrap(),
            local: "192.0.2.1".parse().unwrap(),
        });
        let all = [
            network(1, 10),
            network(2, 20),
            mac(1),
            mac(2),
            route(10, "10.1.1.5"),
            route(10, "10.1.1.6"),
            route(20, "10.1.1.5"),
            stats(vtep),
        ];
        let tables = |text: &str, vrf| {
            let spec = Some(text.parse().unwrap());
            let reply = entries(&all, &EntryFilter { spec, vrf, limit: 100 });
            let names = reply.entries.into_iter().map(|e| format!("{} {}", e.table, e.r#match));
            names.collect::<Vec<_>>()
        };
        let gateway = "eth_dst=00:00:11:11:11:11";
        assert_eq!(
            tables("vrf=10,nw_dst=10.1.1.0/24", None),
            [
                "network bd=1",
                &format!("mac bd=1,{gateway}"),
                "route vrf=10,nw_dst=10.1.1.5",
                "route vrf=10,nw_dst=10.1.1.6",
                "vtep vtep=192.0.2.2",
            ]
        );
        assert_eq!(
            tables("nw_dst=10.1.1.6,bd=2", None),
            [
                "network bd=2",
                &format!("mac bd=2,{gateway}"),
                "route vrf=10,nw_dst=10.1.1.6",
                "vtep vtep=192.0.2.2",
            ]
        );
        let none_of_both = tables("vrf=10,nw_dst=10.1.1.5", Some(20));
        assert_eq!(none_of_both, Vec::<String>::new());
        let of_20 = tables("nw_dst=10.1.1.5,eth_dst=02:00:00:00:00:01", Some(20));
        assert_eq!(of_20, ["network bd=2", "route vrf=20,nw_dst=10.1.1.5"]);
    }

    #[test]
    fn kernel_and_engine_drops_are_one_sum() {
        let count = |packets| Count { packets, bytes: packets * 60 };
        let engine = vec![
            (DropReason::PolicyDeny, count(3)),
            (DropReason::RateLimit, count(0)),
            (DropReason::PortGone, count(1)),
        ];
        let kernel = [
            DropCount { reason: DropReason::RateLimit, packets: 5, bytes: 500 },
            DropCount { reason: DropReason::PortGone, packets: 1, bytes: 100 },
            DropCount { reason: DropReason::PortGone, packets: 2, bytes: 200 },
        ];
        let reply = drops(engine, &kernel);
        let sums = reply.drops.iter().map(|d| (d.reason.as_str(), d.packets, d.bytes));
        let wanted = [("policy-deny", 3, 180), ("rate-limit", 5, 500), ("port-gone", 4, 360)];
        assert_eq!(sums.collect::<Vec<_>>(), wanted);
    }

    fn connection(proto: u8, ports: (u16, u16), port: u32, vrf: u32) -> ConnStats {
        let [src, dst] = [[10, 1, 1, 5], [10, 1, 1, 6]].map(flowtable::key::mapped);
        let (vrf, port) = (Vrf::new(vrf).unwrap(), PortId::new(port).unwrap());
        let (src_port, dst_port) = ports;
        ConnStats {
            tuple: Tuple { vrf, family: 0x800, proto, src, dst, src_port, dst_port },
            owner: Owner { vrf, port },
            state: State::Established,
            idle: Seconds(2),
            expires_in: Seconds(7198),
        }
    }

    #[test]
    fn connections_are_listed_by_their_opening_packet() {
        let all = [
            connection(6, (40_000, 80), 7, 10),
            connection(1, (0x12, 0x134), 7, 10),
            connection(17, (53, 53), 8, 20),
        ];
        let listed = |text: &str, vrf, limit| {
            let filter = ConnFilter { spec: text.parse().unwrap(), vrf, limit };
            let reply = connections(&all, &filter);
            let texts = reply.connections.into_iter().map(|c| c.original);
            (texts.collect::<Vec<_>>(), reply.truncated)
        };
        let tcp = "vrf=10,tcp,nw_src=10.1.1.5,nw_dst=10.1.1.6,tp_src=40000,tp_dst=80";
        let echo = "vrf=10,icmp,nw_src=10.1.1.5,nw_dst=10.1.1.6,icmp_type=8,icmp_id=4660";
        let udp = "vrf=20,udp,nw_src=10.1.1.5,nw_dst=10.1.1.6,tp_src=53,tp_dst=53";
        assert_eq!(listed("", None, 10).0, [tcp, echo, udp]);
        assert_eq!(listed("", None, 2), (vec![tcp.into(), echo.into()], true));
        assert_eq!(listed("in_port=7,eth_src=02:00:00:00:00:01", None, 10).0, [tcp, echo]);
        assert_eq!(listed("vrf=20", None, 10), (vec![udp.into()], false));
        assert_eq!(listed("tcp,tp_dst=81", None, 10).0, [""; 0]);
        assert_eq!(listed("icmp,icmp_id=4660", Some(10), 10).0, [echo]);
        // What is listed selects what it lists.
        assert_eq!(listed(echo, None, 10).0, [echo]);
        let first = super::connection(&all[0]);
        assert_eq!((first.state.as_str(), first.port, first.vrf), ("established", 7, 10));
        assert_eq!((first.idle_seconds, first.expires_seconds), (2, 7198));
    }

    #[test]
    fn meters_are_listed_with_what_they_saw_and_by_tenant() {
        let meter = |id| {
            let meter = MeterId::new(id).unwrap();
            let committed = Band { rate: 1_000_000, burst: 10_000 };
            stats(Entry::Meter(MeterEntry {
                meter,
                unit: MeterUnit::Bits,
                committed,
                peak: None,
                yellow_dscp: None,
            }))
        };
        let port = |id, vrf| {
            stats(Entry::Port(PortEntry {
                port: PortId::new(id).unwrap(),
                vrf: Vrf::new(vrf).unwrap(),
                bd: Bd::new(1).unwrap(),
                group: Group::NONE,
                mac: Mac::GATEWAY,
                ips: Vec::new(),
                ipv6: Ipv6::Off,
                sample_rate: 0,
                offload: Offload::On,
            }))
        };
        let qos = |id, from: u32, to: u32| {
            let ids = |id| vec![MeterId::new(id).unwrap()];
            let port = PortId::new(id).unwrap();
            stats(Entry::Qos(QosEntry { port, from: ids(from), to: ids(to), dscp: None }))
        };
        let all =
            [meter(1), meter(2), meter(3), port(5, 10), port(6, 20), qos(5, 1, 3), qos(6, 2, 3)];
        let seen = |id: MeterId| {
            let red = Tally { packets: id.get().into(), bytes: 60 };
            (id.get() != 3).then(|| MeterCounts { red, ..MeterCounts::default() })
        };
        let listed = |vrf, limit| {
            let reply = meters(&all, (vrf, limit), seen);
            let rows = reply.meters.iter().map(|m| (m.meter, m.red_packets));
            (rows.collect::<Vec<_>>(), reply.truncated)
        };
        assert_eq!(listed(None, 10), (vec![(1, 1), (2, 2), (3, 0)], false));
        assert_eq!(listed(None, 1), (vec![(1, 1)], true));
        assert_eq!(listed(Some(20), 10), (vec![(2, 2), (3, 0)], false));
        let one = &meters(&all, (None, 1), seen).meters[0];
        assert_eq!((one.unit.as_str(), one.rate, one.burst), ("bits", 1_000_000, 10_000));
    }
}
