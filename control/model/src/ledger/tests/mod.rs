//! Contiv's input vectors for references, mutability, tags, pools and addresses, and a property: any
//! run of writes leaves a ledger that its own stored objects rebuild. Here: what the tests share.

mod addresses;
mod batch;
mod families;
mod leases;
mod profiles;
mod property;
mod references;
mod services;
mod tags;

use std::collections::BTreeSet;

use super::*;
use crate::app_profile::AppProfile;
use crate::bgp::{AsNumber, Bgp};
use crate::endpoint::{EndpointSpec, Host, LeaseSpec, Node, Ttl, WantedAddress, WantedAddresses};
use crate::global::GlobalSpec;
use crate::group::GroupSpec;
use crate::key::{AppProfileKey, Kind, LeaseKey, PolicyKey, ProfileKey, RuleKey, ServiceKey};
use crate::name::{
    EndpointId, GroupName, HostName, Label, NetworkName, NodeName, Owner, ProfileName,
};
use crate::network::{Encap, NetworkSpec, NwType, Tag};
use crate::profile::{NetProfile, Scope};
use crate::rate::{Bandwidth, Burst, RateLimit};
use crate::refusal::Class;
use crate::rule::{RuleSpec, RuleText};
use crate::service::{ContainerLabel, ServiceSpec};
use crate::subnet::Subnet;
use crate::tenant::{TenantChange, TenantSpec};
use flowtable::entry::{OnDeny, Permit, Tracking};

pub(crate) fn tenant(name: &str) -> Spec {
    Spec::Tenant(TenantSpec {
        name: TenantName::parse("tenantName", name).unwrap(),
        default_network: None,
        change: TenantChange::default(),
    })
}

/// `tenant:profile`, `bandwidth`, KB, DSCP; of each endpoint.
pub(crate) fn profile(key: &str, bandwidth: &str, burst: u32, dscp: u32) -> NetProfile {
    NetProfile {
        key: ProfileKey::parse("key", key).unwrap(),
        limit: RateLimit {
            bandwidth: Bandwidth::parse("bandwidth", bandwidth).unwrap(),
            burst: Burst::new("burst", burst).unwrap(),
        },
        dscp: NetProfile::parse_dscp("DSCP", dscp).unwrap(),
        scope: Scope::Endpoint,
    }
}

/// The group with this profile, or without one.
pub(crate) fn with_profile(group: Spec, profile: &str) -> Spec {
    let Spec::EndpointGroup(spec) = group else { panic!("a group") };
    let profile = ProfileName::parse_optional("netProfile", profile).unwrap();
    Spec::EndpointGroup(GroupSpec { profile, ..spec })
}

/// `tenant:network`, `subnet [gateway]`, `vlan|vxlan [tag]`
pub(crate) fn network(key: &str, subnet: &str, wire: &str) -> Spec {
    let mut addresses = subnet.split(' ');
    let subnet = Subnet::parse("subnet", addresses.next().unwrap()).unwrap();
    let mut wire = wire.split(' ');
    let encap = Encap::parse("encap", wire.next().unwrap()).unwrap();
    Spec::Network(NetworkSpec {
        key: NetworkKey::parse("key", key).unwrap(),
        nw_type: NwType::Data,
        encap,
        tag: wire.next().map(|tag| Tag::new("pktTag", encap, tag.parse().unwrap()).unwrap()),
        subnet,
        gateway: addresses.next().map(|gw| subnet.parse_gateway("gateway", gw).unwrap()),
        subnet6: None,
        gateway6: None,
        cfgd_tag: None,
        offload: None,
    })
}

/// With an IPv6 subnet and a gateway or "".
pub(crate) fn with_ipv6(network: Spec, subnet: &str, gateway: &str) -> Spec {
    let Spec::Network(spec) = network else { panic!("a network") };
    let (subnet6, gateway6) = NetworkSpec::parse_ipv6(subnet, gateway).unwrap();
    Spec::Network(NetworkSpec { subnet6, gateway6, ..spec })
}

/// With pools: none, or one of each family at most, separated by a space.
pub(crate) fn group(key: &str, network: &str, pools: &str, policies: &[&str]) -> Spec {
    let policies: Vec<_> = policies.iter().map(ToString::to_string).collect();
    let pool = |is_v6| pools.split(' ').find(|pool| pool.contains(':') == is_v6).unwrap_or("");
    Spec::EndpointGroup(GroupSpec {
        key: GroupKey::parse("key", key).unwrap(),
        network: NetworkName::parse("networkName", network).unwrap(),
        pool: GroupSpec::parse_pool("ipPool", pool(false)).unwrap(),
        pool6: GroupSpec::parse_pool6("ipv6Pool", pool(true)).unwrap(),
        policies: GroupSpec::parse_policies("policies", &policies).unwrap(),
        profile: None,
        cfgd_tag: None,
    })
}

pub(crate) fn policy(key: &str) -> Spec {
    Spec::Policy(PolicyKey::parse("key", key).unwrap())
}

pub(crate) fn rule(key: &str, text: RuleText<'_>) -> Spec {
    let action = if text.action.is_empty() { "allow" } else { text.action };
    let key = RuleKey::parse("key", key).unwrap();
    Spec::Rule(RuleSpec::parse(key, &RuleText { action, ..text }).unwrap())
}

pub(crate) fn node(name: &str, vtep: &str) -> Spec {
    Spec::Node(Node {
        name: NodeName::parse("nodeName", name).unwrap(),
        vtep: Node::parse_vtep("vtepIP", vtep).unwrap(),
        version: Label::parse("version", "0.1.0").unwrap(),
    })
}

/// In `network`, optionally `group`, with wanted addresses separated by spaces or "", on `node`.
pub(crate) fn endpoint(id: &str, network: &str, group: &str, wanted: &str, node: &str) -> Spec {
    let wanted: Vec<_> = wanted.split_whitespace().map(str::to_owned).collect();
    Spec::Endpoint(EndpointSpec {
        id: EndpointId::parse("endpointID", id).unwrap(),
        network: NetworkKey::parse("key", network).unwrap(),
        group: GroupName::parse_optional("endpointGroup", group).unwrap(),
        wanted: WantedAddresses::parse("ipAddress", &wanted).unwrap(),
        mac: None,
        host: Host {
            node: NodeName::parse("homingHost", node).unwrap(),
            intf_name: Label::parse("intfName", "wr0").unwrap(),
            container_id: Label::parse("containerID", id).unwrap(),
            container_name: Label::parse("containerName", "").unwrap(),
            labels: BTreeSet::new(),
        },
        running: false,
    })
}

/// The endpoint as its node registers it again.
fn running(spec: Spec) -> Spec {
    let Spec::Endpoint(spec) = spec else { panic!("an endpoint") };
    Spec::Endpoint(EndpointSpec { running: true, ..spec })
}

/// The endpoint with a container name.
fn named(spec: Spec, name: &str) -> Spec {
    let Spec::Endpoint(mut spec) = spec else { panic!("an endpoint") };
    spec.host.container_name = Label::parse("containerName", name).unwrap();
    Spec::Endpoint(spec)
}

/// Without an owner it ends.
fn lease(network: &str, group: &str, address: &str, owner: &str) -> Spec {
    let owner = Owner::parse_optional("owner", owner).unwrap();
    Spec::AddressLease(LeaseSpec {
        ttl: Ttl::parse("ttlSeconds", 0, owner.as_ref()).unwrap(),
        network: NetworkKey::parse("key", network).unwrap(),
        group: GroupName::parse_optional("endpointGroup", group).unwrap(),
        wanted: WantedAddress::parse("address", address).unwrap(),
        owner,
    })
}

/// With this endpoint's labels.
fn labelled(endpoint: Spec, labels: &[&str]) -> Spec {
    let Spec::Endpoint(spec) = endpoint else { panic!("an endpoint") };
    let labels: Vec<_> = labels.iter().map(ToString::to_string).collect();
    let labels = ContainerLabel::parse_all("labels", &labels).unwrap();
    Spec::Endpoint(EndpointSpec { host: Host { labels, ..spec.host }, ..spec })
}

/// In `network`, with a wanted address or "", selecting by `selectors`, on port 80.
pub(crate) fn service(key: &str, network: &str, address: &str, selectors: &[&str]) -> Spec {
    let selectors: Vec<_> = selectors.iter().map(ToString::to_string).collect();
    Spec::Service(ServiceSpec {
        key: ServiceKey::parse("key", key).unwrap(),
        network: NetworkName::parse("networkName", network).unwrap(),
        address: ServiceSpec::parse_address("ipAddress", address).unwrap(),
        selectors: ServiceSpec::parse_selectors("selectors", &selectors).unwrap(),
        ports: ServiceSpec::parse_ports("ports", &["80:8080:TCP".to_owned()]).unwrap(),
    })
}

pub(crate) fn app_profile(key: &str, groups: &[&str]) -> Spec {
    let groups: Vec<_> = groups.iter().map(ToString::to_string).collect();
    Spec::AppProfile(AppProfile {
        key: AppProfileKey::parse("key", key).unwrap(),
        groups: AppProfile::parse_groups("endpointGroups", &groups).unwrap(),
    })
}

pub(crate) fn bgp(host: &str) -> Spec {
    Spec::Bgp(Bgp {
        host: HostName::parse("hostname", host).unwrap(),
        router: Bgp::parse_router("routerip", "65.1.1.1/24").unwrap(),
        asn: AsNumber::parse("as", "65001").unwrap(),
        neighbor: Bgp::parse_neighbor("16.1.2.3", "65002").unwrap(),
    })
}

/// A reservation with an end.
fn with_ttl(lease: Spec, seconds: u64) -> Spec {
    let Spec::AddressLease(spec) = lease else { panic!("a lease") };
    let ttl = Ttl::parse("ttlSeconds", seconds, spec.owner.as_ref()).unwrap();
    Spec::AddressLease(LeaseSpec { ttl, ..spec })
}

/// Lets time pass in the steps of the clock.
fn pass(ledger: &mut Ledger, seconds: u64) -> Vec<Change> {
    let steps = seconds / CLOCK_STEP_SECONDS;
    (0..steps).flat_map(|_| ledger.pass(CLOCK_STEP_SECONDS)).collect()
}

/// Tenant default and two nodes.
pub(crate) fn ledger(specs: impl IntoIterator<Item = Spec>) -> Ledger {
    let mut ledger = Ledger::default();
    let start = [tenant("default"), node("n1", "192.168.0.1"), node("n2", "192.168.0.2")];
    for spec in start.into_iter().chain(specs) {
        ledger.create(spec).unwrap();
    }
    ledger
}

fn refuse(ledger: &mut Ledger, spec: Spec) -> Refused {
    let before = ledger.clone();
    let refused = ledger.create(spec).unwrap_err();
    assert_eq!(*ledger, before, "a refused write changes nothing");
    refused
}

/// Deletes; no node is behind.
fn delete(ledger: &mut Ledger, kind: Kind, key: &str) -> Result<Vec<Change>, Refused> {
    let mut changes = leave(ledger, kind, key)?;
    changes.extend(let_go(ledger));
    Ok(changes)
}

/// Deletes, with the nodes still behind.
fn leave(ledger: &mut Ledger, kind: Kind, key: &str) -> Result<Vec<Change>, Refused> {
    ledger.delete(&Key::parse(kind, key).unwrap())
}

/// All nodes have caught up.
fn let_go(ledger: &mut Ledger) -> Vec<Change> {
    let keys: Vec<LeaseKey> = ledger.intent.leases.keys().cloned().collect();
    ledger.let_go(&keys)
}

fn refuse_delete(ledger: &mut Ledger, kind: Kind, key: &str) -> Refused {
    let before = ledger.clone();
    let refused = delete(ledger, kind, key).unwrap_err();
    assert_eq!(*ledger, before, "a refused delete changes nothing");
    refused
}

fn address_of(outcome: &Outcome) -> String {
    if let Object::Endpoint(endpoint) = &outcome.object {
        return endpoint.address.to_string();
    }
    let Object::AddressLease(lease) = &outcome.object else { panic!("no address: {outcome:?}") };
    lease.address.to_string()
}

fn texts(ledger: &Ledger, network: &str) -> (String, String) {
    let holdings = ledger.holdings(&NetworkKey::parse("key", network).unwrap()).unwrap();
    (holdings.network().allocated(), holdings.network().available())
}

fn group_texts(ledger: &Ledger, network: &str, group: &str) -> (String, String) {
    let holdings = ledger.holdings(&NetworkKey::parse("key", network).unwrap()).unwrap();
    let pool = holdings.group(&GroupName::parse("groupName", group).unwrap());
    (pool.allocated(), pool.available())
}

fn tag_of(outcome: &Outcome) -> u32 {
    let Object::Network(network) = &outcome.object else { panic!("no tag: {outcome:?}") };
    network.tag.number()
}

fn stored(ledger: &Ledger) -> Vec<Object> {
    Kind::ALL.iter().flat_map(|kind| ledger.intent().objects(*kind)).collect()
}

fn rebuilt(ledger: &Ledger) -> Ledger {
    Ledger::rebuild(stored(ledger), ledger.counters()).unwrap()
}
