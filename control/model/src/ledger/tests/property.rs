//! Any run of writes against plain sets, and what a rebuilt ledger must be.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

#[test]
fn contradictory_stored_objects_are_named() {
    let ledger = ledger([
        network("default:net", "10.1.1.0/24", "vxlan"),
        endpoint("a", "default:net", "", "", "n1"),
    ]);
    let mut objects = stored(&ledger);
    let Some(Object::Endpoint(twin)) = objects.last().cloned() else {
        panic!("an endpoint is last")
    };
    let id = EndpointId::parse("endpointID", "b").unwrap();
    objects.push(Object::Endpoint(crate::endpoint::Endpoint { id, ..twin }));
    let damaged = Ledger::rebuild(objects, ledger.counters()).unwrap_err();
    assert_eq!(damaged.to_string(), "b holds 10.1.1.1, which it can't have");
}

fn create(spec: Spec) -> Write {
    Write::Create(Box::new(spec))
}

#[derive(Debug, Clone)]
enum Write {
    Create(Box<Spec>),
    Delete(Kind, String),
    /// Some time passes.
    Pass(u64),
    /// All nodes catch up.
    LetGo,
}

fn any_write() -> impl Strategy<Value = Write> {
    let tenants = prop::sample::select(vec!["default", "red"]);
    let nets = prop::sample::select(vec!["a", "b"]);
    let groups = prop::sample::select(vec!["g", "h"]);
    let ids = prop::sample::select(vec!["e1", "e2", "e3", "e4"]);
    let v4 = ["", "10.1.1.1", "10.1.1.2", "10.1.1.6", "10.1.1.7"];
    let address = (prop::sample::select(v4.to_vec()), prop::sample::select(V6.to_vec()));
    let pools = ["", "10.1.1.1-10.1.1.2", "10.1.1.2-10.1.1.6", "2016::2-2016::4"];
    let pool = prop::sample::select([&pools[..], &["10.1.1.1 2016::2-2016::6"]].concat());
    (0u8..24, tenants, nets, groups, ids, address, pool).prop_map(
        |(which, tenant_name, net, grp, id, (address, address6), pool)| {
            let both = format!("{address} {address6}");
            let either = if address.is_empty() { address6 } else { address };
            let net_key = format!("{tenant_name}:{net}");
            let group_key = format!("{tenant_name}:{grp}");
            match which {
                0 => create(tenant(tenant_name)),
                1 => create(one_of_two(net, &net_key)),
                2 => create(group(&group_key, net, pool, &[])),
                3 | 4 => create(endpoint(
                    id,
                    &net_key,
                    if pool.is_empty() { "" } else { grp },
                    &both,
                    "n1",
                )),
                5 => create(lease(&net_key, "", either, id)),
                16 => create(lease(&net_key, "", either, "")),
                17 => create(named(endpoint(id, &net_key, "", &both, "n2"), "e1")),
                18 => Write::Pass(if pool.is_empty() { 5 } else { 605 }),
                19 => Write::LetGo,
                6 => Write::Delete(Kind::Endpoint, id.to_owned()),
                7 => Write::Delete(Kind::EndpointGroup, group_key),
                8 => create(Spec::NetProfile(profile(&net_key, "1g", 0, 5))),
                9 => create(with_profile(group(&group_key, net, pool, &[]), net)),
                10 => Write::Delete(Kind::NetProfile, net_key),
                11 | 12 => create(service(&group_key, net, address, &["a=b"])),
                13 => Write::Delete(Kind::Service, group_key),
                14 => create(app_profile(&net_key, &[grp])),
                15 => Write::Delete(Kind::AppProfile, net_key),
                _ => Write::Delete(
                    Kind::AddressLease,
                    format!("{net_key}:{}", if either.is_empty() { "10.1.1.1" } else { either }),
                ),
            }
        },
    )
}

const V6: [&str; 5] = ["", "2016::1", "2016::2", "2016::6", "2016::8"];
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 1, 5));
const GATEWAY6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2016, 0, 0, 0, 0, 0, 0, 5));

/// Network a has addresses of both families, network b of one.
fn one_of_two(net: &str, key: &str) -> Spec {
    let plain = network(key, "10.1.1.0/29 10.1.1.5", "vxlan");
    if net == "a" { with_ipv6(plain, "2016::/125", "2016::5") } else { plain }
}

/// Addresses that anybody could get, by looking at each.
fn free(ledger: &Ledger) -> BTreeSet<(NetworkKey, IpAddr)> {
    let hosts = (1..=6).map(|host| IpAddr::V4(Ipv4Addr::new(10, 1, 1, host)));
    let hosts6 = (1..=7).map(|host| IpAddr::V6(Ipv6Addr::new(0x2016, 0, 0, 0, 0, 0, 0, host)));
    let hosts = hosts.chain(hosts6);
    let networks = ledger.holdings.iter();
    let all = networks.flat_map(|(key, held)| hosts.clone().map(move |ip| (key, held, ip)));
    let free = all.filter(|(_, held, address)| held.holder(*address).is_none());
    free.map(|(key, _, address)| (key.clone(), address)).collect()
}

proptest! {
    #[test]
    fn any_writes_leave_one_owner_per_address_and_a_ledger_that_is_rebuilt_from_its_objects(
        writes in prop::collection::vec(any_write(), 0..60)
    ) {
        let mut ledger = ledger([]);
        let mut replay = ledger.intent().clone();
        for write in writes {
            let before = ledger.clone();
            let free_before = free(&ledger);
            let result = match write {
                Write::Create(spec) => ledger.create(*spec).map(|outcome| outcome.changes),
                Write::Delete(kind, key) => leave(&mut ledger, kind, &key),
                Write::Pass(seconds) => Ok(pass(&mut ledger, seconds)),
                Write::LetGo => Ok(let_go(&mut ledger)),
            };
            let left = result.iter().flatten().filter_map(|change| match change {
                Change::Remove(Key::Endpoint(id)) => before.intent.endpoint(id),
                Change::Remove(_) | Change::Put(_) => None,
            });
            let left = left.flat_map(|e| e.addresses().map(|address| (e.network.clone(), address)));
            for key in left {
                prop_assert!(!free(&ledger).contains(&key), "free before the nodes know");
                prop_assert!(!free_before.contains(&key));
            }
            match result {
                Err(_) => prop_assert_eq!(&ledger, &before),
                Ok(changes) => for change in changes {
                    match change {
                        Change::Put(object) => replay.put(object),
                        Change::Remove(key) => replay.remove(&key),
                    }
                },
            }
            // The returned changes are the whole truth: a node that applies them has the same intent.
            prop_assert_eq!(&replay, ledger.intent());
            let mut owners = BTreeSet::new();
            for endpoint in ledger.intent().endpoints() {
                let has_both = ledger.intent.networks[&endpoint.network].subnet6.is_some();
                prop_assert_eq!(endpoint.address6.is_some(), has_both);
                for address in endpoint.addresses() {
                    prop_assert!(owners.insert((endpoint.network.clone(), address)));
                    prop_assert!(![GATEWAY, GATEWAY6].contains(&address), "the gateway's");
                }
            }
            for lease in ledger.intent.leases.values() {
                let first = owners.insert((lease.network.clone(), lease.address));
                prop_assert!(first || lease.claim.owner.is_some(), "only a reservation is taken up");
                prop_assert!(first || lease.claim.left.is_none());
            }
            for service in ledger.intent().services() {
                prop_assert!(owners.insert((service.spec.network_key(), service.vip.into())));
            }
            for profile in ledger.intent().app_profiles() {
                let known = |group: &GroupName| {
                    let (tenant, group) = (profile.key.tenant.clone(), group.clone());
                    ledger.intent.groups.contains_key(&GroupKey { tenant, group })
                };
                prop_assert!(profile.groups.iter().all(known));
            }
            for group in ledger.intent().groups() {
                let profile = group.spec.profile_key();
                prop_assert!(profile.is_none_or(|key| ledger.intent.profiles.contains_key(&key)));
            }
            let counts = ledger.holdings.values().map(Holdings::held_counts);
            let held: usize = counts.map(|(v4, v6)| v4 + v6).sum();
            prop_assert_eq!(held, owners.len(), "nothing leaks");
            prop_assert_eq!(rebuilt(&ledger), ledger.clone());
        }
    }
}
