//! Reservations, their owners and ends, and addresses on their way back.

use super::*;
use crate::endpoint::Served;

const NET: &str = "default:net";

fn one_network() -> Ledger {
    ledger([network(NET, "10.1.1.0/24", "vxlan")])
}

fn key(address: &str) -> LeaseKey {
    LeaseKey::parse("key", &format!("{NET}:{address}")).unwrap()
}

fn owner(name: &str) -> Owner {
    Owner::parse("owner", name).unwrap()
}

fn release(ledger: &mut Ledger, address: &str, name: &str) -> Result<Vec<Change>, Refused> {
    ledger.release(&key(address), Owner::parse_optional("owner", name).unwrap().as_ref())
}

#[test]
fn ipam_3_an_address_reserved_for_a_name_is_its_on_any_node_and_stays_its() {
    let mut ledger = one_network();
    let reserved = ledger.create(lease(NET, "", "10.1.1.7", "web-1")).unwrap();
    assert_eq!(address_of(&reserved), "10.1.1.7");
    let other = refuse(&mut ledger, endpoint("x", NET, "", "10.1.1.7", "n1"));
    assert_eq!(other.to_string(), "ip address 10.1.1.7 is not available: it belongs to web-1");
    for (id, node) in [("c1:eth0", "n1"), ("c2:eth0", "n2"), ("c3:eth0", "n1")] {
        let web = ledger.create(named(endpoint(id, NET, "", "", node), "web-1")).unwrap();
        assert_eq!(address_of(&web), "10.1.1.7", "{id} on {node}");
        let twin = named(endpoint("twin", NET, "", "", "n1"), "web-1");
        assert_eq!(address_of(&ledger.create(twin).unwrap()), "10.1.1.1", "one at a time");
        delete(&mut ledger, Kind::Endpoint, "twin").unwrap();
        ledger = rebuilt(&ledger);
        leave(&mut ledger, Kind::Endpoint, id).unwrap();
        assert_eq!(rebuilt(&ledger), ledger);
    }
    let by_id = ledger.create(lease(NET, "", "10.1.1.8", "c9:eth0")).unwrap();
    let endpoint = ledger.create(endpoint("c9:eth0", NET, "", "", "n2")).unwrap();
    assert_eq!(address_of(&endpoint), address_of(&by_id));
}

#[test]
fn a_reservation_is_asked_for_again_prolonged_and_released_by_its_owner_only() {
    let mut ledger = one_network();
    ledger.create(lease(NET, "", "10.1.1.7", "db")).unwrap();
    let again = ledger.create(lease(NET, "", "", "db")).unwrap();
    assert_eq!((address_of(&again), again.changes), ("10.1.1.7".into(), vec![]));
    let ending = ledger.create(with_ttl(lease(NET, "", "", "db"), 5)).unwrap();
    assert!(matches!(&ending.object, Object::AddressLease(l) if l.expires == Some(Served(10))));
    assert_eq!(release(&mut ledger, "10.1.1.7", "web").unwrap_err().field, "owner");
    assert_eq!(release(&mut ledger, "10.1.1.7", "").unwrap_err().field, "owner");
    assert_eq!(release(&mut ledger, "10.1.1.7", "db").unwrap().len(), 1);
    assert_eq!(release(&mut ledger, "10.1.1.7", "db").unwrap(), [], "nobody has it: fine");
    assert_eq!(texts(&ledger, NET).0, "");
}

#[test]
fn the_end_of_a_reservation_leaves_the_endpoint_that_uses_it_alone() {
    let mut ledger = one_network();
    ledger.create(lease(NET, "", "10.1.1.7", "db")).unwrap();
    ledger.create(named(endpoint("c1", NET, "", "", "n1"), "db")).unwrap();
    let again = ledger.create(lease(NET, "", "", "db")).unwrap();
    assert_eq!(again.changes, [], "it is still reserved");
    release(&mut ledger, "10.1.1.7", "db").unwrap();
    assert_eq!(texts(&ledger, NET).0, "10.1.1.7");
    assert_eq!(rebuilt(&ledger), ledger);
    let used = release(&mut ledger, "10.1.1.7", "db").unwrap_err();
    assert_eq!(used.to_string(), "the address is used by endpoint c1");
    delete(&mut ledger, Kind::Endpoint, "c1").unwrap();
    assert_eq!(texts(&ledger, NET).0, "");
}

#[test]
fn what_a_running_container_has_can_be_reserved_for_its_name() {
    let mut ledger = one_network();
    ledger.create(named(endpoint("c1", NET, "", "", "n1"), "db")).unwrap();
    let other = refuse(&mut ledger, lease(NET, "", "10.1.1.1", "web"));
    assert_eq!(other.class(), Class::Exists);
    ledger.create(lease(NET, "", "10.1.1.1", "db")).unwrap();
    assert_eq!(rebuilt(&ledger), ledger);
    delete(&mut ledger, Kind::Endpoint, "c1").unwrap();
    let moved = ledger.create(named(endpoint("c2", NET, "", "", "n2"), "db")).unwrap();
    assert_eq!(address_of(&moved), "10.1.1.1");
}

#[test]
fn d03_a_reservation_without_owner_is_taken_up_by_who_asks_for_it_or_ends() {
    let mut ledger = one_network();
    for address in ["10.1.1.7", "10.1.1.8"] {
        ledger.create(lease(NET, "", address, "")).unwrap();
    }
    let second = refuse(&mut ledger, lease(NET, "", "10.1.1.7", ""));
    let reason = "ip address 10.1.1.7 is not available: it belongs to a reservation without owner";
    assert_eq!(second.to_string(), reason);
    let unasked = ledger.create(endpoint("c1", NET, "", "", "n1")).unwrap();
    assert_eq!(address_of(&unasked), "10.1.1.1", "nobody gets it by chance");
    ledger.create(endpoint("c2", NET, "", "10.1.1.7", "n1")).unwrap();
    assert_eq!(pass(&mut ledger, 600), [], "it lasts no shorter than asked");
    assert_eq!(pass(&mut ledger, 5), [Change::Remove(Key::AddressLease(key("10.1.1.8")))]);
    assert_eq!(texts(&ledger, NET).0, "10.1.1.1, 10.1.1.7");
    assert_eq!(rebuilt(&ledger), ledger);
}

#[test]
fn a_reservation_whose_time_is_up_waits_for_its_endpoint_to_leave() {
    let mut ledger = one_network();
    ledger.create(with_ttl(lease(NET, "", "10.1.1.7", "db"), 5)).unwrap();
    ledger.create(named(endpoint("c1", NET, "", "", "n1"), "db")).unwrap();
    assert_eq!(pass(&mut ledger, 20), []);
    leave(&mut ledger, Kind::Endpoint, "c1").unwrap();
    assert_eq!(pass(&mut ledger, 5).len(), 1);
    assert_eq!(texts(&ledger, NET).0, "10.1.1.7", "nodes are still behind");
    let_go(&mut ledger);
    assert_eq!(texts(&ledger, NET).0, "");
}

#[test]
fn an_address_is_given_again_only_when_every_node_has_forgotten_who_had_it() {
    let mut ledger = ledger([
        network(NET, "10.1.1.0/30", "vxlan"),
        group("default:admins", "net", "", &[]),
        group("default:guests", "net", "", &[]),
    ]);
    ledger.create(named(endpoint("c1", NET, "admins", "", "n1"), "web")).unwrap();
    leave(&mut ledger, Kind::Endpoint, "c1").unwrap();
    let asked = refuse(&mut ledger, endpoint("c2", NET, "", "10.1.1.1", "n1"));
    assert_eq!(asked.reason, Reason::AddressLeaving { address: "10.1.1.1".into() });
    let next = ledger.create(endpoint("c2", NET, "", "", "n1")).unwrap();
    assert_eq!(address_of(&next), "10.1.1.2");
    let full = refuse(&mut ledger, endpoint("c3", NET, "", "", "n1"));
    assert_eq!(full.reason, Reason::AddressLeaving { address: "10.1.1.1".into() });
    let kept = ledger.create(lease(NET, "", "10.1.1.1", "web")).unwrap();
    assert_eq!(address_of(&kept), "10.1.1.1", "a reservation grants nothing yet");
    let other_group = named(endpoint("c4", NET, "guests", "", "n2"), "web");
    let refused = refuse(&mut ledger, other_group.clone());
    assert_eq!(refused.reason, Reason::AddressLeaving { address: "10.1.1.1".into() });
    assert_eq!(rebuilt(&ledger), ledger);
    let mut claimed = ledger.clone();
    let stranger = refuse(&mut claimed, running(endpoint("c5", NET, "guests", "10.1.1.1", "n2")));
    assert_eq!(
        stranger.reason,
        Reason::AddressTaken { address: "10.1.1.1".into(), owner: "web".into() }
    );
    let again = claimed.create(running(other_group.clone())).unwrap();
    assert_eq!(address_of(&again), "10.1.1.1", "its container sends with it already");
    let mut same = ledger.clone();
    let same_group = same.create(named(endpoint("c4", NET, "admins", "", "n2"), "web")).unwrap();
    assert_eq!(address_of(&same_group), "10.1.1.1", "which grants nothing new");
    let_go(&mut ledger);
    assert_eq!(address_of(&ledger.create(other_group).unwrap()), "10.1.1.1");
}

#[test]
fn a_network_stays_while_nodes_know_endpoints_of_it() {
    let mut ledger = one_network();
    ledger.create(endpoint("c1", NET, "", "", "n1")).unwrap();
    leave(&mut ledger, Kind::Endpoint, "c1").unwrap();
    let refused = refuse_delete(&mut ledger, Kind::Network, NET);
    assert_eq!(refused.reason, Reason::NetworkLeaving { name: "net".into(), count: 1 });
    let_go(&mut ledger);
    leave(&mut ledger, Kind::Network, NET).unwrap();
}

#[test]
fn a_reservation_of_another_pool_is_refused_and_not_replaced_by_any_address() {
    let mut ledger = ledger([
        network(NET, "10.1.1.0/24", "vxlan"),
        group("default:g", "net", "10.1.1.10-10.1.1.20", &[]),
    ]);
    ledger.create(lease(NET, "", "10.1.1.7", "web")).unwrap();
    let refused = refuse(&mut ledger, named(endpoint("c1", NET, "g", "", "n1"), "web"));
    let reason = "ip address 10.1.1.7 is not one of 10.1.1.10-10.1.1.20";
    assert_eq!(refused.to_string(), reason);
}

#[test]
fn spread_addresses_follow_the_name_and_are_not_reused_at_once() {
    let mut ledger = one_network();
    let settings = GlobalSpec::default().with_allocation("allocation", "spread").unwrap();
    ledger.create(Spec::Global(settings)).unwrap();
    let first = address_of(&ledger.create(endpoint("c1", NET, "", "", "n1")).unwrap());
    delete(&mut ledger, Kind::Endpoint, "c1").unwrap();
    let other = address_of(&ledger.create(endpoint("c2", NET, "", "", "n1")).unwrap());
    assert_ne!(first, other);
    assert_eq!(address_of(&ledger.create(endpoint("c1", NET, "", "", "n1")).unwrap()), first);
    for i in 0..252 {
        ledger.create(endpoint(&format!("e{i}"), NET, "", "", "n1")).unwrap();
    }
    assert_eq!(texts(&ledger, NET).1, "", "every address is found");
    let refused = GlobalSpec::default().with_allocation("allocation", "random").unwrap_err();
    assert_eq!(refused.field, "allocation");
}

#[test]
fn the_clock_goes_only_while_a_reservation_ends_and_never_jumps() {
    let mut ledger = one_network();
    pass(&mut ledger, 50);
    assert_eq!(ledger.served(), Served(0));
    ledger.create(with_ttl(lease(NET, "", "", "db"), 30)).unwrap();
    assert_eq!(ledger.pass(1_000_000), []);
    assert_eq!(ledger.served(), Served(CLOCK_STEP_SECONDS), "a step is all that can have passed");
    assert_eq!(Ttl::parse("ttlSeconds", 31_622_401, None).unwrap_err().field, "ttlSeconds");
}

#[test]
fn reservations_that_end_together_end_in_writes_that_every_store_takes() {
    let mut ledger = one_network();
    for host in 1..=AT_ONCE + 9 {
        let address = format!("10.1.1.{host}");
        ledger.create(with_ttl(lease(NET, "", &address, ""), 1)).unwrap();
    }
    let mut ended = [CLOCK_STEP_SECONDS; 2].map(|step| ledger.pass(step).len()).to_vec();
    ended.extend([0; 3].map(|step| ledger.pass(step).len()));
    assert_eq!(ended, [0, AT_ONCE, 9, 0, 0]);
}

#[test]
fn an_owner_is_needed_to_end_what_an_owner_has() {
    let mut ledger = one_network();
    ledger.create(lease(NET, "", "10.1.1.7", "db")).unwrap();
    ledger.delete(&Key::AddressLease(key("10.1.1.7"))).unwrap();
    assert_eq!(texts(&ledger, NET).0, "", "by its key anybody's");
    let unknown = ledger.delete(&Key::AddressLease(key("10.1.1.7"))).unwrap_err();
    assert_eq!(unknown.reason, Reason::LeaseNotFound);
    assert_eq!(ledger.release(&key("10.1.1.9"), Some(&owner("db"))).unwrap(), []);
}
