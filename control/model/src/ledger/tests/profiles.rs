//! Net profiles: Contiv's vectors of references, texts and updates.

use super::*;

#[test]
fn a_second_create_replaces_a_profile_and_an_equal_one_changes_nothing() {
    let mut ledger = ledger([Spec::NetProfile(profile("default:gold", "5Mb", 1500, 3))]);
    let changed = profile("default:gold", "900Mb", 1650, 9);
    let outcome = ledger.create(Spec::NetProfile(changed.clone())).unwrap();
    assert_eq!(outcome.changes, [Change::Put(Object::NetProfile(changed.clone()))]);
    assert_eq!(ledger.create(Spec::NetProfile(changed.clone())).unwrap().changes, []);
    assert_eq!(ledger.intent().profiles().collect::<Vec<_>>(), [&changed]);
    let unlimited = profile("default:gold", "", 0, 0);
    ledger.update(Spec::NetProfile(unlimited.clone())).unwrap();
    assert_eq!(ledger.intent().profiles().collect::<Vec<_>>(), [&unlimited]);
}

#[test]
fn refused_profiles_carry_contivs_texts() {
    let mut ledger = ledger([
        network("default:net", "10.1.1.0/24", "vxlan"),
        Spec::NetProfile(profile("default:gold", "13mb", 0, 3)),
        group("default:g", "net", "", &[]),
    ]);
    for (spec, field, text) in [
        (
            Spec::NetProfile(profile("default:new", "", 1, 0)),
            "burst",
            "Invalid Burst size. burst size > 1500 bytes",
        ),
        (
            Spec::NetProfile(profile("default:gold", "", 1, 0)),
            "burst",
            "Invalid Burst size. burst size must be > 1500 bytes",
        ),
        (Spec::NetProfile(profile("none:gold", "", 0, 0)), "tenantName", "Tenant not found"),
        (
            with_profile(group("default:h", "net", "", &[]), "none"),
            "netProfile",
            "netprofile not found",
        ),
        (
            with_profile(group("default:g", "net", "", &[]), "none"),
            "netProfile",
            "netprofile not found",
        ),
    ] {
        let refused = refuse(&mut ledger, spec);
        assert_eq!((refused.field, refused.to_string().as_str()), (field, text));
    }
    let unknown = ledger.update(Spec::NetProfile(profile("default:new", "", 0, 0))).unwrap_err();
    assert_eq!((unknown.field, unknown.class()), ("profileName", Class::NotFound));
    let unknown = refuse_delete(&mut ledger, Kind::NetProfile, "default:new");
    assert_eq!(unknown.to_string(), "netprofile not found");
}

#[test]
fn a_profile_is_kept_while_a_group_has_it_and_its_tenant_while_it_is_there() {
    let mut ledger = ledger([
        tenant("t"),
        network("t:net", "10.1.1.0/24", "vxlan"),
        Spec::NetProfile(profile("t:gold", "13mb", 0, 3)),
        Spec::NetProfile(profile("default:gold", "13mb", 0, 3)),
        with_profile(group("t:g", "net", "", &[]), "gold"),
    ]);
    let used = refuse_delete(&mut ledger, Kind::NetProfile, "t:gold");
    assert_eq!(
        (used.to_string().as_str(), used.class()),
        ("NetProfile is being used", Class::InUse)
    );
    // That a group of one tenant uses the name says nothing of another's.
    delete(&mut ledger, Kind::NetProfile, "default:gold").unwrap();
    ledger.update(group("t:g", "net", "", &[])).unwrap();
    delete(&mut ledger, Kind::EndpointGroup, "t:g").unwrap();
    assert_eq!(
        refuse_delete(&mut ledger, Kind::Tenant, "t").to_string(),
        "Cannot delete t has 1 netprofiles"
    );
    delete(&mut ledger, Kind::NetProfile, "t:gold").unwrap();
    delete(&mut ledger, Kind::Network, "t:net").unwrap();
    delete(&mut ledger, Kind::Tenant, "t").unwrap();
    ledger.create(tenant("t")).unwrap();
    assert_eq!(ledger.intent().profiles().count(), 0, "nothing stale");
}

#[test]
fn the_profile_of_a_group_is_changed_live() {
    let mut ledger = ledger([
        network("default:net", "10.1.1.0/24", "vxlan"),
        Spec::NetProfile(profile("default:gold", "13mb", 0, 3)),
        Spec::NetProfile(profile("default:iron", "1mb", 0, 3)),
        with_profile(group("default:g", "net", "", &[]), "gold"),
        endpoint("e", "default:net", "g", "", "n1"),
    ]);
    ledger.create(with_profile(group("default:g", "net", "", &[]), "iron")).unwrap();
    delete(&mut ledger, Kind::NetProfile, "default:gold").unwrap();
    let group = ledger.intent().groups().next().unwrap();
    assert_eq!(group.spec.profile_key().unwrap().to_string(), "default:iron");
}
