//! The engine's state as messages of `datapath.v1`.

use std::collections::BTreeMap;

use datapath_api::convert::entry_to_proto;
use datapath_api::v1;
use flowtable::entry::Entry;
use flowtable::ids::{Bd, PortId, Vid, Vrf};
use flowtable::key::FlowKey;
use flowtable::text::{FlowSpec, entry_actions, entry_match};
use flowtable::{DropReason, Verdict};
use offload::{DropCount, Offload, OffloadError};
use vrouter::{Count, EntryStats, FlowStats, Framing, PortKind, PortStats, Trace};

/// Entries of a listing when the client does not say.
const LIMIT_DEFAULT: usize = 10_000;

/// How many entries a request asks for.
pub(crate) const fn limit(requested: u32) -> usize {
    if requested == 0 { LIMIT_DEFAULT } else { requested as usize }
}

/// A port, with what the kernel dropped for it before the engine.
pub(crate) fn port(stats: &PortStats, offload: &Offload) -> Result<v1::Port, OffloadError> {
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
    })
}

/// Every reason once, with the packets that ended by it in the engine or in the kernel.
pub(crate) fn drops(engine: Vec<(DropReason, Count)>, kernel: &[DropCount]) -> v1::DropsReply {
    let drops = engine.into_iter().map(|(reason, count)| {
        let of_reason = || kernel.iter().filter(move |d| d.reason == reason);
        v1::Drop {
            reason: reason.name().to_owned(),
            packets: count.packets + of_reason().map(|d| d.packets).sum::<u64>(),
            bytes: count.bytes + of_reason().map(|d| d.bytes).sum::<u64>(),
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
            Entry::Mac(e) => self.networks.get(&e.bd).copied(),
            Entry::Qos(e) => self.ports.get(&e.port.get()).copied(),
            Entry::Vtep(_) | Entry::Underlay(_) | Entry::Meter(_) => None,
        }
    }

    fn of_flow(&self, key: &FlowKey) -> Option<Vrf> {
        let found = if key.vni != 0 {
            self.tunnels.get(&key.vni)
        } else {
            self.ports.get(&key.in_port).or_else(|| self.vlans.get(&(key.in_port, key.vid)))
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

/// Which flows a client wants.
#[derive(Debug)]
pub(crate) struct FlowFilter {
    pub(crate) spec: FlowSpec,
    pub(crate) vrf: Option<u32>,
    pub(crate) limit: usize,
}

/// The first flows that pass the filter.
pub(crate) fn flows(all: &[FlowStats], filter: &FlowFilter, tenants: &Tenants) -> v1::ListReply {
    let vrf = filter.vrf.or(filter.spec.tenant.vrf.map(Vrf::get));
    let wanted = |stats: &&FlowStats| {
        filter.spec.matches(&stats.key)
            && vrf.is_none_or(|vrf| tenants.of_flow(&stats.key).is_some_and(|v| v.get() == vrf))
    };
    let mut listed = all.iter().filter(wanted).map(flow);
    let flows = listed.by_ref().take(filter.limit).collect();
    v1::ListReply { flows, truncated: listed.next().is_some(), ..v1::ListReply::default() }
}

fn flow(stats: &FlowStats) -> v1::Flow {
    let actions = match &stats.verdict {
        Verdict::Forward(actions) => actions.to_string(),
        Verdict::Punt(punt) => punt.to_string(),
        Verdict::Drop(reason) => format!("drop({reason})"),
    };
    v1::Flow {
        r#match: stats.key.to_string(),
        actions,
        packets: stats.count.packets,
        bytes: stats.count.bytes,
    }
}

pub(crate) fn trace(trace: Trace) -> v1::TraceReply {
    let (verdict, reason, out_ports) = match trace.verdict {
        Verdict::Forward(actions) => ("forward", "", vec![u32::from(actions.output().get())]),
        Verdict::Punt(_) => ("punt", "", Vec::new()),
        Verdict::Drop(reason) => ("drop", reason.name(), Vec::new()),
    };
    let steps = trace.steps.into_iter().map(|step| v1::TraceStep {
        table: step.table.to_owned(),
        rule: step.rule.map_or(0, |r| r.0),
        r#match: step.matched,
        actions: step.actions,
    });
    v1::TraceReply {
        verdict: verdict.to_owned(),
        reason: reason.to_owned(),
        rule: trace.rule.map_or(0, |r| r.0),
        out_ports,
        steps: steps.collect(),
        ..v1::TraceReply::default()
    }
}

#[cfg(test)]
mod tests {
    use flowtable::entry::{
        Ipv6, MacEntry, NetworkEntry, NextHop, PortEntry, Prefix, RouteEntry, VtepEntry,
    };
    use flowtable::ids::{Group, Mac};

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

    #[test]
    fn flows_are_filtered_by_text_and_by_tenant() {
        let port = Entry::Port(PortEntry {
            port: PortId::new(7).unwrap(),
            vrf: Vrf::new(10).unwrap(),
            bd: Bd::new(1).unwrap(),
            group: Group::NONE,
            mac: Mac::GATEWAY,
            ips: Vec::new(),
            ipv6: Ipv6::Off,
            sample_rate: 0,
        });
        let tenants = Tenants::new(&[stats(port)]);
        let verdict = Verdict::Drop(DropReason::NoRoute);
        let flow = |in_port, dst_port| FlowStats {
            key: FlowKey { in_port, dst_port, eth_type: 0x88b5, ..FlowKey::default() },
            verdict,
            count: Count::default(),
        };
        let all = [flow(7, 80), flow(7, 81), flow(8, 80)];
        let count = |text: &str, vrf, limit| {
            let filter = FlowFilter { spec: text.parse().unwrap(), vrf, limit };
            let reply = flows(&all, &filter, &tenants);
            (reply.flows.len(), reply.truncated)
        };
        assert_eq!(count("in_port=7", None, 10), (2, false));
        assert_eq!(count("in_port=7", None, 1), (1, true));
        assert_eq!(count("in_port=8", Some(10), 10), (0, false));
        assert_eq!(count("", Some(10), 10), (2, false));
        assert_eq!(count("vrf=11", None, 10), (0, false));
    }
}
