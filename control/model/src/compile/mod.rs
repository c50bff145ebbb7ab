//! Intent to the tables of one node: a pure function, so that anyone can ask what a node would get.
//!
//! Everything is looked up by name here, once. A name that does not resolve makes no entry: it never
//! becomes "any". Entries of a tenant carry that tenant's VRF and nothing of another's.

mod qos;

use std::collections::BTreeMap;
use std::net::IpAddr;

use flowtable::entry::{
    Band, Direction, Entry, GroupEntry, Ipv6, MacEntry, NetworkEntry, NextHop, NodePort, Offload,
    PortEntry, PortRange, Prefix, PublishedEntry, RouteEntry, RuleEntry, TenantEntry, TunnelEntry,
    VlanEntry, VtepEntry,
};
use flowtable::ids::{Group, Mac, PortId, Vrf};

pub(crate) use qos::GROUP_MAX;

use crate::endpoint::Endpoint;
use crate::global::FwdMode;
use crate::intent::Intent;
use crate::key::{GroupKey, NetworkKey, PolicyKey};
use crate::name::{EndpointId, NodeName};
use crate::network::{Network, Tag};
use crate::rule::{AddressMatch, Peer, Protocol, Rule};
use crate::tenant::Tenant;

/// What only the node knows: which port each of its endpoints has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placement {
    /// Ports of this node's endpoints.
    pub ports: BTreeMap<EndpointId, PortId>,
    /// The uplink's port; without one VLAN networks stay on the node.
    pub uplink: Option<PortId>,
    /// Limits that containers' runtimes ask for, beyond what intent says.
    pub limits: BTreeMap<EndpointId, PortLimits>,
    /// Ports of the node that lead to its endpoints.
    pub published: BTreeMap<EndpointId, Vec<PublishedPort>>,
    /// sFlow: one packet in this many is sampled; 0 leaves it to the engine's own setting.
    pub sample_rate: u32,
}

/// A port of the node that leads to one of an endpoint's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedPort {
    /// The node's.
    pub node: NodePort,
    /// The endpoint's port, 1..=65535.
    pub to_port: u16,
}

/// What a runtime limits one container to; `None`: not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortLimits {
    /// What the container sends.
    pub from: Option<Band>,
    /// What it receives.
    pub to: Option<Band>,
}

/// The tables of `node`.
#[must_use]
pub fn compile(intent: &Intent, node: &NodeName, placement: &Placement) -> Vec<Entry> {
    let node = NodeView { intent, node, placement };
    let mut entries = Vec::new();
    for tenant in intent.tenants.values() {
        entries.push(Entry::Tenant(tenant_entry(tenant)));
    }
    node.vteps(&mut entries);
    for network in intent.networks.values() {
        if let Some(vrf) = node.vrf(&network.key) {
            node.network(network, vrf, &mut entries);
        }
    }
    for endpoint in intent.endpoints.values() {
        let network = intent.networks.get(&endpoint.network);
        if let Some((network, vrf)) = network.zip(node.vrf(&endpoint.network)) {
            node.endpoint(endpoint, network, vrf, &mut entries);
        }
    }
    node.qos(&mut entries);
    node.rules(&mut entries);
    entries
}

const fn tenant_entry(tenant: &Tenant) -> TenantEntry {
    let settings = &tenant.settings;
    TenantEntry {
        vrf: tenant.vrf,
        default: settings.default_verdict,
        tracking: settings.tracking,
        on_deny: settings.on_deny,
        connections_max: settings.connections_max,
        new_flows_max: settings.new_flows_max,
    }
}

/// Group and address blocks of a rule's other end; `None` inside is any.
type PeerMatch = (Option<Group>, Vec<Option<Prefix>>);

struct NodeView<'a> {
    intent: &'a Intent,
    node: &'a NodeName,
    placement: &'a Placement,
}

impl NodeView<'_> {
    fn vrf(&self, network: &NetworkKey) -> Option<Vrf> {
        self.intent.tenants.get(&network.tenant).map(|tenant| tenant.vrf)
    }

    fn vtep(&self, node: &NodeName) -> Option<IpAddr> {
        self.intent.nodes.get(node)?.vtep
    }

    fn vteps(&self, entries: &mut Vec<Entry>) {
        let Some(local) = self.vtep(self.node) else { return };
        let others = self.intent.nodes.values().filter(|other| other.name != *self.node);
        // A tunnel joins two addresses of one family.
        let remotes = others.filter_map(|o| o.vtep).filter(|ip| ip.is_ipv4() == local.is_ipv4());
        entries.extend(remotes.map(|ip| Entry::Vtep(VtepEntry { ip, local })));
    }

    fn network(&self, network: &Network, vrf: Vrf, entries: &mut Vec<Entry>) {
        let bd = network.bd;
        let wire = match network.tag {
            Tag::Vlan(vid) => self.placement.uplink.map(|port| (port, vid)),
            Tag::Vxlan(vni) => {
                entries.push(Entry::Tunnel(TunnelEntry { vni, bd, vrf }));
                None
            }
        };
        if let Some((port, vid)) = wire {
            entries.push(Entry::Vlan(VlanEntry { port, vid, bd, vrf }));
        }
        let blocks6 = network.subnet6.map(|subnet| subnet.block().prefixes()).unwrap_or_default();
        entries.push(Entry::Network(NetworkEntry {
            bd,
            vrf,
            subnets: network.subnet.block().prefixes().into_iter().chain(blocks6).collect(),
            gateways: self.gateways(network),
            wire,
        }));
        // On a VLAN network there may be hosts that are no endpoints; inside VXLAN nobody else is.
        if matches!(network.tag, Tag::Vxlan(_)) {
            entries.extend(blocks(network).map(|prefix| {
                let next_hop = NextHop::UnknownEndpoint;
                Entry::Route(RouteEntry { vrf, prefix, bd, mac: Mac::default(), next_hop })
            }));
        }
    }

    /// A bridge has no router: nothing leaves a network through a node then.
    fn gateways(&self, network: &Network) -> Vec<IpAddr> {
        match self.intent.global.fwd_mode {
            FwdMode::Bridge => Vec::new(),
            FwdMode::Routing => {
                let gateway6 = network.gateway6.map(IpAddr::V6);
                network.gateway.map(IpAddr::V4).into_iter().chain(gateway6).collect()
            }
        }
    }

    fn endpoint(&self, endpoint: &Endpoint, network: &Network, vrf: Vrf, entries: &mut Vec<Entry>) {
        let (bd, mac) = (network.bd, endpoint.mac);
        let prefixes = || endpoint.addresses().map(Prefix::host);
        let group = self.intent.group_of(endpoint).map(|group| group.id);
        if endpoint.group.is_some() && group.is_none() {
            // Outside its group it would be outside its policies too.
            return;
        }
        // Every node knows the group of every address: in-rules name groups of remote senders.
        let of_group =
            |group| prefixes().map(move |prefix| Entry::Group(GroupEntry { vrf, prefix, group }));
        entries.extend(group.into_iter().flat_map(of_group));
        let Some(next_hop) = self.next_hop(endpoint, network) else { return };
        if let NextHop::Local(port) = next_hop {
            entries.push(Entry::Port(PortEntry {
                port,
                vrf,
                bd,
                group: group.unwrap_or(Group::NONE),
                mac,
                ips: endpoint.addresses().collect(),
                ipv6: if endpoint.address6.is_some() { Ipv6::On } else { Ipv6::Off },
                sample_rate: self.placement.sample_rate,
                offload: self.offload(network),
            }));
        }
        let route = |prefix| Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop });
        entries.extend(prefixes().map(route));
        entries.push(Entry::Mac(MacEntry { bd, mac, next_hop }));
        if let NextHop::Local(_) = next_hop {
            self.published(endpoint, vrf, entries);
        }
    }

    /// Addresses lead to the endpoint's of their family.
    fn published(&self, endpoint: &Endpoint, vrf: Vrf, entries: &mut Vec<Entry>) {
        let published = self.placement.published.get(&endpoint.id);
        for &PublishedPort { node, to_port } in published.into_iter().flatten() {
            let family = |to: &IpAddr| to.is_ipv4() == node.address.is_ipv4();
            if let Some(to) = endpoint.addresses().find(family) {
                entries.push(Entry::Published(PublishedEntry { node, vrf, to, to_port }));
            }
        }
    }

    fn offload(&self, network: &Network) -> Offload {
        let tenant = self.intent.tenants.get(&network.key.tenant);
        // Both must let it.
        tenant.map_or(Offload::On, |tenant| tenant.settings.offload).max(network.offload)
    }

    /// `None`: not reachable from here now, which leaves the network's `unknown-endpoint` route.
    fn next_hop(&self, endpoint: &Endpoint, network: &Network) -> Option<NextHop> {
        if endpoint.host.node == *self.node {
            return self.placement.ports.get(&endpoint.id).map(|port| NextHop::Local(*port));
        }
        match network.tag {
            Tag::Vlan(vid) => self.placement.uplink.map(|port| NextHop::Vlan { port, vid }),
            Tag::Vxlan(vni) => {
                self.vtep(&endpoint.host.node).map(|vtep| NextHop::Tunnel { vtep, vni })
            }
        }
    }

    fn rules(&self, entries: &mut Vec<Entry>) {
        // One pass over the groups, so that rules need no search among them.
        let mut users: BTreeMap<PolicyKey, Vec<Group>> = BTreeMap::new();
        for group in self.intent.groups.values() {
            for policy in &group.spec.policies {
                let tenant = group.spec.key.tenant.clone();
                let key = PolicyKey { tenant, policy: policy.clone() };
                users.entry(key).or_default().push(group.id);
            }
        }
        for rule in self.intent.rules.values() {
            let groups = users.get(&rule.spec.key.policy_key());
            let vrf = self.intent.tenants.get(&rule.spec.key.tenant).map(|tenant| tenant.vrf);
            if let Some((groups, vrf)) = groups.zip(vrf) {
                self.rule(rule, groups, vrf, entries);
            }
        }
    }

    /// One entry per attached group and address block of the other end.
    fn rule(&self, rule: &Rule, groups: &[Group], vrf: Vrf, entries: &mut Vec<Entry>) {
        let spec = &rule.spec;
        let Some((peer_group, blocks)) = self.peer(rule) else { return };
        let own_block = spec.own_address.map(AddressMatch::prefix);
        let ends = groups.iter().flat_map(|own| blocks.iter().map(move |block| (*own, *block)));
        for (seq, (own_group, block)) in (0..).zip(ends) {
            let own = (Some(own_group), own_block);
            let peer = (peer_group, block);
            let ((src_group, src), (dst_group, dst)) = match spec.direction {
                Direction::In => (peer, own),
                Direction::Out => (own, peer),
            };
            // A peer network with subnets of both families, an own address of one: no packet is
            // of both, and the engine refuses a rule that says so.
            if src
                .zip(dst)
                .is_some_and(|(src, dst)| src.address().is_ipv4() != dst.address().is_ipv4())
            {
                continue;
            }
            entries.push(Entry::Rule(RuleEntry {
                rule: rule.cookie,
                seq,
                priority: u16::from(spec.priority),
                direction: spec.direction,
                vrf,
                src_group,
                dst_group,
                src,
                dst,
                protocol: spec.protocol.map(Protocol::number),
                src_ports: None,
                dst_ports: spec.port.map(|port| PortRange { first: port, last: port }),
                icmp: None,
                tcp_flags: None,
                permit: spec.permit,
            }));
        }
    }

    /// `None` when a name is unknown.
    fn peer(&self, rule: &Rule) -> Option<PeerMatch> {
        let tenant = &rule.spec.key.tenant;
        match &rule.spec.peer {
            Peer::Network(name) => {
                let key = NetworkKey::new(tenant.clone(), name.clone());
                let network = self.intent.networks.get(&key)?;
                Some((None, blocks(network).map(Some).collect()))
            }
            Peer::Match { group: None, address } => {
                Some((None, vec![address.map(AddressMatch::prefix)]))
            }
            Peer::Match { group: Some(name), address } => {
                let key = GroupKey { tenant: tenant.clone(), group: name.clone() };
                let group = self.intent.groups.get(&key)?;
                Some((Some(group.id), vec![address.map(AddressMatch::prefix)]))
            }
        }
    }
}

/// The addresses that are a network's, in both families.
fn blocks(network: &Network) -> impl Iterator<Item = Prefix> + use<> {
    let of_v6 = network.subnet6.map(|subnet| subnet.range().prefixes()).unwrap_or_default();
    network.subnet.range().prefixes().into_iter().chain(of_v6)
}

#[cfg(test)]
mod tests;
