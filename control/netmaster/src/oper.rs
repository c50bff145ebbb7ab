//! What is known beside an object: counts, addresses, the endpoints that belong to it. Computed when
//! asked for, so that it can't differ from what is enforced.

use control_api::{convert, v1};
use control_model::{
    AddressLease, AddressPool, ArpMode, Endpoint, EndpointGroup, Global, Intent, Ledger, Network,
    NetworkKey, Node, NwType, Object, Served, Service,
};

use crate::master::State;
use crate::sessions::Sessions;

/// An object as users read it: with what others know of it filled in.
pub(crate) fn shown(object: &Object, state: &State, sessions: &Sessions) -> v1::Object {
    let intent = state.ledger.intent();
    let mut message = convert::from_model(object);
    match (&mut message.kind, object) {
        (Some(v1::object::Kind::Endpoint(shown)), Object::Endpoint(endpoint)) => {
            shown.vtep_ip = vtep(endpoint, intent);
        }
        (Some(v1::object::Kind::Node(shown)), Object::Node(Node { name, .. })) => {
            let standing = sessions.standing(name);
            shown.acked_revision = standing.in_force;
            shown.connected = standing.connected;
            shown.lag = state.written().saturating_sub(standing.in_force);
            shown.dead = standing.dead;
        }
        (Some(v1::object::Kind::AddressLease(shown)), Object::AddressLease(lease)) => {
            shown.ttl_seconds = time_left(lease, &state.ledger);
        }
        (Some(_) | None, _) => {}
    }
    message
}

/// Seconds until a reservation ends; 0: it does not.
pub(crate) fn time_left(lease: &AddressLease, ledger: &Ledger) -> u64 {
    let left = |end: Served| end.0.saturating_sub(ledger.served().0).max(1);
    lease.expires.map_or(0, left)
}

fn vtep(endpoint: &Endpoint, intent: &Intent) -> String {
    let vtep = intent.node(&endpoint.host.node).and_then(|node| node.vtep);
    vtep.map(|ip| ip.to_string()).unwrap_or_default()
}

/// What is known beside an object.
pub(crate) fn oper(object: &Object, ledger: &Ledger) -> v1::Oper {
    let intent = ledger.intent();
    match object {
        Object::Tenant(tenant) => {
            let members = endpoints(intent, |e| e.network.tenant == tenant.name);
            let named = tenant.default_network.is_some();
            v1::Oper {
                not_in_force: joined(&[(
                    named,
                    "defaultNetwork: every container names the network it is attached to",
                )]),
                total_networks: count(intent.networks_of(&tenant.name)),
                total_epgs: count(intent.groups().filter(|g| g.spec.key.tenant == tenant.name)),
                total_policies: count(intent.policies().filter(|p| p.tenant == tenant.name)),
                total_netprofiles: count(intent.profiles().filter(|p| p.key.tenant == tenant.name)),
                total_endpoints: count(members.iter()),
                total_servicelbs: count(
                    intent.services().filter(|s| s.spec.key.tenant == tenant.name),
                ),
                total_app_profiles: count(
                    intent.app_profiles().filter(|p| p.key.tenant == tenant.name),
                ),
                ..with_endpoints(members)
            }
        }
        Object::Network(network) => v1::Oper {
            pkt_tag: network.tag.number(),
            network_tag: network.shown_tag(),
            not_in_force: network_not_in_force(network),
            ..network_addresses(&network.key, ledger)
        },
        Object::EndpointGroup(group) => group_oper(group, ledger),
        Object::Policy(key) => {
            let members = |e: &Endpoint| {
                let group = intent.group_of(e).map(|group| &group.spec);
                group
                    .is_some_and(|g| g.key.tenant == key.tenant && g.policies.contains(&key.policy))
            };
            with_endpoints(endpoints(intent, members))
        }
        Object::NetProfile(profile) => {
            let key = Some(&profile.key);
            let members = |e: &Endpoint| {
                intent.group_of(e).and_then(|group| group.spec.profile_key()).as_ref() == key
            };
            with_endpoints(endpoints(intent, members))
        }
        Object::Global(global) => v1::Oper {
            not_in_force: global_not_in_force(global),
            num_networks: count(intent.networks()),
            vlans_in_use: ledger.vlans().in_use(),
            vxlans_in_use: ledger.vxlans().in_use(),
            ..v1::Oper::default()
        },
        Object::Node(node) => with_endpoints(endpoints(intent, |e| e.host.node == node.name)),
        Object::Service(service) => service_oper(service, intent),
        Object::AppProfile(profile) => {
            let members = |e: &Endpoint| {
                e.network.tenant == profile.key.tenant
                    && e.group.as_ref().is_some_and(|group| profile.groups.contains(group))
            };
            with_endpoints(endpoints(intent, members))
        }
        Object::Bgp(_) => {
            v1::Oper { not_in_force: "no node speaks BGP".to_owned(), ..v1::Oper::default() }
        }
        Object::Rule(_) | Object::Endpoint(_) | Object::AddressLease(_) => v1::Oper::default(),
    }
}

fn network_not_in_force(network: &Network) -> String {
    let notes = [
        (network.nw_type == NwType::Infra, "nwType infra: the nodes get no address of it"),
        (
            network.subnet6.is_some_and(|subnet| subnet.hosts().is_none()),
            "ipv6Subnet: it has no address that a host can have",
        ),
    ];
    joined(&notes)
}

fn global_not_in_force(global: &Global) -> String {
    let flood = global.arp_mode == ArpMode::Flood;
    let host_access = global.pvt_subnet != Global::default().pvt_subnet;
    joined(&[
        (flood, "arpMode flood: nodes answer ARP"),
        (host_access, "pvtSubnet: nodes have no access network"),
    ])
}

fn joined(notes: &[(bool, &'static str)]) -> String {
    let notes: Vec<_> = notes.iter().filter(|(told, _)| *told).map(|(_, note)| *note).collect();
    notes.join("; ")
}

fn network_addresses(key: &NetworkKey, ledger: &Ledger) -> v1::Oper {
    let members = endpoints(ledger.intent(), |e| e.network == *key);
    let Some(holdings) = ledger.holdings(key) else { return with_endpoints(members) };
    let (held, held6) = holdings.held_counts();
    let v6 = holdings.network6();
    v1::Oper {
        allocated_ip_addresses: holdings.network().allocated(),
        available_ip_addresses: holdings.network().available(),
        allocated_ipv6_addresses: v6.map(AddressPool::allocated).unwrap_or_default(),
        available_ipv6_addresses: v6.map(AddressPool::available).unwrap_or_default(),
        allocated_addresses_count: u32::try_from(held + held6).unwrap_or(u32::MAX),
        ..with_endpoints(members)
    }
}

fn group_oper(group: &EndpointGroup, ledger: &Ledger) -> v1::Oper {
    let intent = ledger.intent();
    let spec = &group.spec;
    let network = NetworkKey::new(spec.key.tenant.clone(), spec.network.clone());
    let members = endpoints(intent, |e| {
        e.network.tenant == spec.key.tenant && e.group.as_ref() == Some(&spec.key.group)
    });
    let holdings = ledger.holdings(&network);
    let pool = holdings.map(|holdings| holdings.group(&spec.key.group));
    let v6 = holdings.and_then(|holdings| holdings.group6(&spec.key.group));
    v1::Oper {
        pkt_tag: intent.network(&network).map(|n| n.tag.number()).unwrap_or_default(),
        group_tag: group.shown_tag(),
        allocated_ip_addresses: pool.map(AddressPool::allocated).unwrap_or_default(),
        available_ip_addresses: pool.map(AddressPool::available).unwrap_or_default(),
        allocated_ipv6_addresses: v6.map(AddressPool::allocated).unwrap_or_default(),
        available_ipv6_addresses: v6.map(AddressPool::available).unwrap_or_default(),
        ..with_endpoints(members)
    }
}

fn service_oper(service: &Service, intent: &Intent) -> v1::Oper {
    let providers = intent.providers(&service.spec).filter_map(|e| endpoint(e, intent));
    let providers: Vec<_> = providers.collect();
    v1::Oper {
        num_providers: count(providers.iter()),
        providers,
        not_in_force: "no traffic is forwarded from the service's address".to_owned(),
        ..v1::Oper::default()
    }
}

fn endpoints(intent: &Intent, belongs: impl Fn(&Endpoint) -> bool) -> Vec<v1::Endpoint> {
    let members = intent.endpoints().filter(|endpoint| belongs(endpoint));
    members.filter_map(|member| endpoint(member, intent)).collect()
}

fn endpoint(endpoint: &Endpoint, intent: &Intent) -> Option<v1::Endpoint> {
    let message = convert::from_model(&Object::Endpoint(endpoint.clone()));
    let Some(v1::object::Kind::Endpoint(message)) = message.kind else { return None };
    Some(v1::Endpoint { vtep_ip: vtep(endpoint, intent), ..message })
}

fn with_endpoints(endpoints: Vec<v1::Endpoint>) -> v1::Oper {
    v1::Oper { num_endpoints: count(endpoints.iter()), endpoints, ..v1::Oper::default() }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
