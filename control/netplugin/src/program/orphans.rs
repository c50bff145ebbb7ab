//! While the engine is away: flows that it has offloaded go on as it has decided them, and nobody
//! decides them again. Where the tables would say something else by now, senders are cut off: their
//! host ends lose vrouterd's program, which is what forwards them. Nothing else passes there without
//! an engine, and the next one attaches its own program (decision 0040). What other nodes send to these
//! tenants comes through a device of vrouterd's, which is shut for all of them (decision 0043).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flowtable::entry::{Entry, EntryKey, NextHop, Prefix};
use flowtable::ids::{PortId, Vrf};
use netdev::Netlink;
use tracing::{error, warn};

use super::Wanted;
use crate::diff::Tables;

/// Priority and handle of the filter that vrouterd attaches to host ends.
const FILTER: u16 = 1;
/// The device by which vrouterd's offloaded flows come from other nodes.
const TUNNELS: &str = "wr-vx0";

type Ports = BTreeMap<PortId, Wanted>;

/// What an engine that is gone has decided by.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    tables: Arc<Tables>,
    pub(super) uplink: Option<PortId>,
    cut: BTreeSet<PortId>,
    /// Whether all that was outdated is cut off.
    settled: bool,
}

impl Orphans {
    pub(super) const fn new(tables: Arc<Tables>, uplink: Option<PortId>) -> Self {
        Self { tables, uplink, cut: BTreeSet::new(), settled: false }
    }

    /// Whether nothing is to be done until intent changes. It may have changed while the engine went.
    pub(super) const fn is_settled(&self) -> bool {
        self.settled
    }

    /// Host ends whose flows are not as `new` would have them, and were not cut off yet.
    pub(super) fn outdated(&self, new: &Tables, placed: &Ports) -> Vec<(PortId, String)> {
        let tenants = changed_tenants(&self.tables, new, placed);
        let of_changed = self.tables.values().filter_map(|entry| {
            let Entry::Port(port) = entry else { return None };
            tenants.contains(&port.vrf).then_some(port.port)
        });
        let ports = of_changed.filter(|port| !self.cut.contains(port));
        ports.filter_map(|port| Some((port, placed.get(&port)?.ifname.clone()))).collect()
    }

    /// Of `count` outdated ones these are cut off.
    pub(super) fn note(&mut self, cut: Vec<PortId>, count: usize) {
        self.settled = cut.len() == count;
        self.cut.extend(cut);
    }
}

/// Tenants whose flows between containers of this node the new tables may decide in another way.
/// `placed` are the ports that are still wanted: a container that was deleted takes its flows with it,
/// and a new one has none.
fn changed_tenants(old: &Tables, new: &Tables, placed: &Ports) -> BTreeSet<Vrf> {
    let local = Local::of(old, placed);
    let gone = old.iter().filter(|(key, _)| !new.contains_key(key));
    let put = new.iter().filter(|(key, entry)| old.get(key) != Some(entry));
    gone.chain(put).filter_map(|(key, entry)| local.concerned(key, entry)).collect()
}

/// The containers of a node that had flows.
struct Local<'a> {
    tables: &'a Tables,
    ports: BTreeMap<PortId, Vrf>,
    addresses: BTreeSet<(Vrf, Prefix)>,
}

impl<'a> Local<'a> {
    fn of(tables: &'a Tables, placed: &Ports) -> Self {
        let mut local = Self { tables, ports: BTreeMap::new(), addresses: BTreeSet::new() };
        for entry in tables.values() {
            if let Entry::Port(port) = entry
                && placed.contains_key(&port.port)
            {
                local.ports.insert(port.port, port.vrf);
            }
        }
        for entry in tables.values() {
            if let Entry::Route(route) = entry
                && local.has(route.next_hop)
            {
                local.addresses.insert((route.vrf, route.prefix));
            }
        }
        local
    }

    fn has(&self, next_hop: NextHop) -> bool {
        matches!(next_hop, NextHop::Local(port) if self.ports.contains_key(&port))
    }

    /// The tenant whose flows a change of this entry concerns.
    fn concerned(&self, key: &EntryKey, entry: &Entry) -> Option<Vrf> {
        match entry {
            Entry::Rule(rule) => Some(rule.vrf),
            Entry::Tenant(tenant) => Some(tenant.vrf),
            // A network that nobody is in has no flows.
            Entry::Network(network) => self.tables.contains_key(key).then_some(network.vrf),
            Entry::Port(port) => self.ports.get(&port.port).copied(),
            Entry::Qos(qos) => self.ports.get(&qos.port).copied(),
            Entry::Route(route) => {
                self.addresses.contains(&(route.vrf, route.prefix)).then_some(route.vrf)
            }
            // A block of addresses may hold any of them. One of another node that changes its group had
            // flows with this one, perhaps; one that is gone has none any more.
            Entry::Group(group) => {
                let block = group.prefix != Prefix::host(group.prefix.address());
                let known = self.addresses.contains(&(group.vrf, group.prefix));
                let changed = self.tables.get(key).is_some_and(|was| was != entry);
                (block || known || changed).then_some(group.vrf)
            }
            Entry::Mac(_) => {
                let Some(Entry::Mac(was)) = self.tables.get(key) else { return None };
                self.vrf_of(was.next_hop)
            }
            // These are about ways to other nodes, where who is gone has no flows, or about what is not
            // offloaded.
            Entry::Tunnel(_)
            | Entry::Vtep(_)
            | Entry::Underlay(_)
            | Entry::Vlan(_)
            | Entry::Published(_)
            | Entry::Meter(_) => None,
        }
    }

    fn vrf_of(&self, next_hop: NextHop) -> Option<Vrf> {
        let NextHop::Local(port) = next_hop else { return None };
        self.ports.get(&port).copied()
    }
}

/// Takes vrouterd's program off these host ends, and shuts its tunnels; returns those without it. Blocks.
pub(super) fn cut_off(host_ends: Vec<(PortId, String)>) -> Vec<PortId> {
    if host_ends.is_empty() {
        return Vec::new();
    }
    let netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => {
            error!(%error, "offloaded flows that policy has changed for go on");
            return Vec::new();
        }
    };
    if let Err(error) = shut_tunnels(&netlink) {
        error!(device = TUNNELS, %error, "not shut; tried again");
        return Vec::new();
    }
    let cut = host_ends.into_iter().filter(|(port, name)| {
        let link = netlink.link_by_name(name);
        let removed = link.and_then(|link| match link {
            Some(link) => netlink.delete_ingress_filter(link.index, FILTER),
            None => Ok(false),
        });
        match removed {
            Ok(true) => {
                warn!(%port, device = name, "cut off: its tables have changed and vrouterd is away");
                true
            }
            Ok(false) => true,
            Err(error) => {
                error!(%port, device = name, %error, "not cut off; tried again");
                false
            }
        }
    });
    cut.map(|(port, _)| port).collect()
}

/// The next engine opens them.
fn shut_tunnels(netlink: &Netlink) -> Result<(), netdev::Error> {
    match netlink.link_by_name(TUNNELS)?.filter(|link| link.up) {
        Some(link) => {
            warn!(device = TUNNELS, "shut: tables have changed and vrouterd is away");
            netlink.set_down(link.index)
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use control_model::{EndpointId, PortLimits};
    use flowtable::entry::{
        Direction, GroupEntry, Ipv6, MacEntry, NetworkEntry, Offload, Permit, PortEntry,
        RouteEntry, RuleEntry, TenantEntry, VtepEntry,
    };
    use flowtable::ids::{Bd, Group, Mac, RuleId, Vni};

    use super::*;
    use crate::diff::tables;

    fn vrf(number: u32) -> Vrf {
        Vrf::new(number).unwrap()
    }

    fn port(number: u32) -> PortId {
        PortId::new(number).unwrap()
    }

    /// A container of tenant `vrf`, in the network of the same number, on port `number`.
    fn container(tenant: u32, number: u8) -> Vec<Entry> {
        let (port, vrf, bd) = (port(number.into()), vrf(tenant), Bd::new(tenant).unwrap());
        let (mac, ip) = (Mac([2, 0, 0, 0, 0, number]), [10, 0, 0, number].into());
        let (prefix, next_hop) = (Prefix::host(ip), NextHop::Local(port));
        let (ips, ipv6, sample_rate) = (vec![ip], Ipv6::Off, 0);
        let (group, offload) = (Group::new(1).unwrap(), Offload::On);
        vec![
            Entry::Port(PortEntry { port, vrf, bd, group, mac, ips, ipv6, sample_rate, offload }),
            Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop }),
            Entry::Mac(MacEntry { bd, mac, next_hop }),
            Entry::Group(GroupEntry { vrf, prefix, group }),
        ]
    }

    fn rule(tenant: u32) -> Entry {
        let id = RuleId(tenant.into());
        Entry::Rule(RuleEntry::any(id, vrf(tenant), Direction::Out, Permit::Deny))
    }

    /// Tenants 1 and 2 with two containers each.
    fn before() -> Vec<Entry> {
        let of = |tenant: u32| {
            let (vrf, bd) = (vrf(tenant), Bd::new(tenant).unwrap());
            let (subnets, gateways, wire) = (Vec::new(), Vec::new(), None);
            [
                Entry::Tenant(TenantEntry::new(vrf, Permit::Allow)),
                Entry::Network(NetworkEntry { bd, vrf, subnets, gateways, wire }),
                rule(tenant),
            ]
        };
        let containers = [(1, 11), (1, 12), (2, 21), (2, 22)];
        let containers = containers.into_iter().flat_map(|(t, n)| container(t, n));
        [of(1), of(2)].into_iter().flatten().chain(containers).collect()
    }

    fn placed(ports: &[u32]) -> Ports {
        let wanted = |number: &u32| Wanted {
            ifname: format!("h{number}"),
            endpoint: EndpointId::parse("x", "e").unwrap(),
            limits: PortLimits::default(),
            published: Vec::new(),
        };
        ports.iter().map(|number| (port(*number), wanted(number))).collect()
    }

    fn outdated(new: Vec<Entry>, ports: &[u32]) -> Vec<u16> {
        let mut orphans = Orphans::new(Arc::new(tables(before())), None);
        let found = orphans.outdated(&tables(new.clone()), &placed(ports));
        let ids: Vec<_> = found.iter().map(|(port, _)| *port).collect();
        assert!(!orphans.is_settled());
        orphans.note(ids.clone(), ids.len());
        assert!(orphans.is_settled());
        assert_eq!(orphans.outdated(&tables(new), &placed(ports)), []);
        ids.into_iter().map(PortId::get).collect()
    }

    const ALL: [u32; 4] = [11, 12, 21, 22];

    fn without(entry: &Entry) -> Vec<Entry> {
        before().into_iter().filter(|other| other.key() != entry.key()).collect()
    }

    fn with(entry: Entry) -> Vec<Entry> {
        let mut all = without(&entry);
        all.push(entry);
        all
    }

    #[test]
    fn a_change_of_policy_cuts_off_its_tenant_and_no_other() {
        let mut rule = RuleEntry::any(RuleId(10), vrf(1), Direction::In, Permit::Deny);
        assert_eq!(outdated(with(Entry::Rule(rule.clone())), &ALL), [11, 12]);
        rule.vrf = vrf(2);
        assert_eq!(outdated(with(Entry::Rule(rule)), &ALL), [21, 22]);
        assert_eq!(outdated(without(&self::rule(1)), &ALL), [11, 12]);
        let deny = Entry::Tenant(TenantEntry::new(vrf(2), Permit::Deny));
        assert_eq!(outdated(with(deny), &ALL), [21, 22]);
        let mut all = [before(), container(3, 31)].concat();
        all.push(self::rule(3));
        assert_eq!(outdated(all, &[11, 12, 21, 22, 31]), [0_u16; 0]);
    }

    #[test]
    fn containers_that_come_and_go_cut_nobody_off() {
        assert_eq!(outdated(before(), &ALL), [0_u16; 0]);
        assert_eq!(outdated([before(), container(1, 13)].concat(), &ALL), [0_u16; 0]);
        let left = container(1, 12);
        let rest = before().into_iter().filter(|e| !left.iter().any(|l| l.key() == e.key()));
        assert_eq!(outdated(rest.collect(), &[11, 21, 22]), [0_u16; 0]);
    }

    #[test]
    fn an_endpoint_that_is_taken_away_or_moved_cuts_its_tenant_off() {
        for entry in container(1, 12) {
            assert_eq!(outdated(without(&entry), &ALL), [11, 12], "{entry:?}");
        }
        let Entry::Route(route) = container(2, 21)[1].clone() else { panic!() };
        let (vtep, vni) = ("192.0.2.1".parse().unwrap(), Vni::new(7).unwrap());
        let next_hop = NextHop::Tunnel { vtep, vni };
        assert_eq!(outdated(with(Entry::Route(RouteEntry { next_hop, ..route })), &ALL), [21, 22]);
    }

    #[test]
    fn a_container_of_another_node_that_changes_its_group_cuts_its_tenant_off() {
        let (vrf, prefix) = (vrf(1), Prefix::host([10, 0, 0, 99].into()));
        let remote =
            |group| Entry::Group(GroupEntry { vrf, prefix, group: Group::new(group).unwrap() });
        let old = [before(), vec![remote(1)]].concat();
        let outdated = |new: Vec<Entry>| {
            let orphans = Orphans::new(Arc::new(tables(old.clone())), None);
            orphans.outdated(&tables(new), &placed(&ALL)).len()
        };
        assert_eq!(outdated([before(), vec![remote(2)]].concat()), 2);
        assert_eq!(outdated(before()), 0, "it is gone");
    }

    #[test]
    fn what_is_about_other_nodes_cuts_nobody_off() {
        let vtep = "192.0.2.1".parse().unwrap();
        let prefix = Prefix::host([10, 0, 0, 99].into());
        let (vrf, bd, mac) = (vrf(1), Bd::new(1).unwrap(), Mac([2, 0, 0, 0, 0, 99]));
        let next_hop = NextHop::Tunnel { vtep, vni: Vni::new(7).unwrap() };
        for entry in [
            Entry::Vtep(VtepEntry { ip: vtep, local: vtep }),
            Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop }),
            Entry::Mac(MacEntry { bd, mac, next_hop }),
            Entry::Group(GroupEntry { vrf, prefix, group: Group::new(1).unwrap() }),
        ] {
            assert_eq!(outdated(with(entry.clone()), &ALL), [0_u16; 0], "{entry:?}");
        }
    }
}
