//! Services and application profiles.

use super::*;

fn vip(ledger: &Ledger, key: &str) -> String {
    let key = Key::parse(Kind::Service, key).unwrap();
    let Some(Object::Service(service)) = ledger.intent().object(&key) else { panic!("a service") };
    service.vip.to_string()
}

fn providers(ledger: &Ledger) -> Vec<String> {
    let service = ledger.intent().services().next().unwrap();
    ledger.intent().providers(&service.spec).map(|e| e.id.to_string()).collect()
}

#[test]
fn a_service_gets_an_address_of_its_network_and_keeps_it() {
    let mut ledger = ledger([
        network("default:net", "10.1.1.0/24 10.1.1.254", "vxlan"),
        service("default:a", "net", "", &["key1=value1"]),
        service("default:b", "net", "10.1.1.3", &["key1=value1"]),
        endpoint("e", "default:net", "", "", "n1"),
    ]);
    assert_eq!(
        (vip(&ledger, "default:a"), vip(&ledger, "default:b")),
        ("10.1.1.1".into(), "10.1.1.3".into())
    );
    assert_eq!(texts(&ledger, "default:net").0, "10.1.1.1-10.1.1.3, 10.1.1.254");
    ledger.create(service("default:b", "net", "", &["key2=value2"])).unwrap();
    assert_eq!(vip(&ledger, "default:b"), "10.1.1.3", "clients keep the address");
    let taken = refuse(&mut ledger, service("default:c", "net", "10.1.1.3", &["a=b"]));
    assert_eq!(
        taken.to_string(),
        "ip address 10.1.1.3 is not available: it belongs to service default:b"
    );
    ledger.create(network("default:net2", "10.1.2.0/24", "vxlan")).unwrap();
    for (spec, field) in [
        (service("default:b", "net2", "", &["a=b"]), "networkName"),
        (service("default:b", "net", "10.1.1.9", &["a=b"]), "ipAddress"),
    ] {
        assert_eq!(refuse(&mut ledger, spec).field, field);
    }
    let lease = refuse_delete(&mut ledger, Kind::AddressLease, "default:net:10.1.1.3");
    assert_eq!(lease.to_string(), "the address is used by service default:b");
    let used = refuse_delete(&mut ledger, Kind::Network, "default:net");
    assert_eq!(used.to_string(), "cannot delete net has 2 services ");
    assert_eq!(rebuilt(&ledger), ledger);
    for key in ["default:a", "default:b"] {
        delete(&mut ledger, Kind::Service, key).unwrap();
    }
    assert_eq!(texts(&ledger, "default:net").0, "10.1.1.2, 10.1.1.254");
}

#[test]
fn what_a_service_names_must_exist() {
    let mut ledger = ledger([]);
    for (spec, field, text) in [
        (service("none:s", "net", "", &["a=b"]), "tenantName", "Tenant none not found"),
        (service("default:s", "net", "", &["a=b"]), "networkName", "Network net not found"),
        (app_profile("none:p", &[]), "tenantName", "Tenant none not found"),
        (app_profile("default:p", &["g"]), "endpointGroups", "EndpointGroup g not found"),
    ] {
        let refused = refuse(&mut ledger, spec);
        assert_eq!((refused.field, refused.to_string().as_str()), (field, text));
        assert_eq!(refused.class(), Class::NotFound);
    }
}

#[test]
fn providers_are_the_same_whichever_came_first() {
    let net = || network("default:net", "10.1.1.0/24", "vxlan");
    let pods = network("default:pods", "11.1.1.0/24", "vxlan");
    let pod =
        |id: &str, labels: &[&str]| labelled(endpoint(id, "default:pods", "", "", "n1"), labels);
    let both = ["key1=value1", "key2=value2"];
    let service = || service("default:s", "net", "", &both);
    let pods = || [pods.clone(), pod("p1", &both), pod("p2", &["key1=value1"]), pod("p3", &both)];
    let mut first = ledger([net(), service()].into_iter().chain(pods()));
    let last = ledger([net()].into_iter().chain(pods()).chain([service()]));
    assert_eq!(
        (providers(&first), providers(&last)),
        (vec!["p1".into(), "p3".into()], providers(&first))
    );
    first.update(pod("p1", &[])).unwrap();
    first.update(pod("p2", &both)).unwrap();
    delete(&mut first, Kind::Endpoint, "p3").unwrap();
    assert_eq!(providers(&first), ["p2"]);
}

#[test]
fn a_profile_names_groups_and_keeps_them_from_being_deleted() {
    let mut ledger = ledger([
        tenant("t"),
        network("t:net", "10.1.1.0/24", "vxlan"),
        group("t:g", "net", "", &[]),
        group("t:h", "net", "", &[]),
        app_profile("t:shop", &["g", "h", "g"]),
        app_profile("t:empty", &[]),
    ]);
    let used = refuse_delete(&mut ledger, Kind::EndpointGroup, "t:g");
    assert_eq!(used.to_string(), "Cannot delete g, associated to appProfile shop");
    assert_eq!(
        refuse_delete(&mut ledger, Kind::Tenant, "t").to_string(),
        "cannot delete t, has 2 app profiles"
    );
    assert_eq!(refuse(&mut ledger, app_profile("t:shop", &["none"])).field, "endpointGroups");
    ledger.update(app_profile("t:shop", &["h"])).unwrap();
    delete(&mut ledger, Kind::EndpointGroup, "t:g").unwrap();
    delete(&mut ledger, Kind::AppProfile, "t:shop").unwrap();
    delete(&mut ledger, Kind::EndpointGroup, "t:h").unwrap();
    assert_eq!(refuse_delete(&mut ledger, Kind::AppProfile, "t:shop").class(), Class::NotFound);
}
