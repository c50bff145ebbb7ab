//! Many writes as one.

use proptest::prelude::*;

use super::*;

fn batch(puts: Vec<Spec>, deletes: &[(Kind, &str)]) -> Batch {
    let deletes = deletes.iter().map(|(kind, key)| Key::parse(*kind, key).unwrap()).collect();
    Batch { puts, deletes }
}

fn inward(from_group: &'static str) -> RuleText<'static> {
    RuleText { direction: "in", from_group, ..RuleText::default() }
}

/// Each names the one before it.
fn chain() -> Vec<Spec> {
    vec![
        tenant("t"),
        network("t:net", "10.1.1.0/24", "vxlan"),
        policy("t:p"),
        Spec::NetProfile(profile("t:gold", "1g", 0, 0)),
        with_profile(group("t:g", "net", "10.1.1.5-10.1.1.9", &["p"]), "gold"),
        rule("t:p:1", inward("g")),
        app_profile("t:shop", &["g"]),
        service("t:s", "net", "", &["a=b"]),
    ]
}

fn actions(applied: &[Applied]) -> Vec<Action> {
    applied.iter().map(|applied| applied.action).collect()
}

fn refuse_batch(ledger: &mut Ledger, batch: &Batch) -> RefusedObject {
    let before = ledger.clone();
    let refused = ledger.apply(batch).unwrap_err();
    assert_eq!(*ledger, before, "a refused batch changes nothing");
    refused
}

proptest! {
    #[test]
    fn objects_of_a_batch_may_come_in_any_order(order in Just(chain()).prop_shuffle()) {
        let mut ledger = ledger([]);
        let (applied, changes) = ledger.apply(&batch(order.clone(), &[])).unwrap();
        let keys: Vec<_> = applied.iter().map(|applied| Some(applied.key.clone())).collect();
        prop_assert_eq!(keys, order.iter().map(Spec::key).collect::<Vec<_>>(), "as asked for");
        prop_assert!(actions(&applied).iter().all(|action| *action == Action::Created));
        prop_assert_eq!(changes.len(), applied.len());
        prop_assert_eq!(rebuilt(&ledger), ledger.clone());
        let again = ledger.apply(&batch(order, &[])).unwrap();
        prop_assert!(actions(&again.0).iter().all(|action| *action == Action::Unchanged));
        prop_assert_eq!(again.1, vec![]);
    }

    #[test]
    fn deletes_of_a_batch_may_come_in_any_order(order in Just(chain()).prop_shuffle()) {
        let mut ledger = ledger(chain());
        let deletes = order.iter().filter_map(Spec::key).collect();
        let (applied, _) = ledger.apply(&Batch { puts: vec![], deletes }).unwrap();
        prop_assert!(actions(&applied).iter().all(|action| *action == Action::Deleted));
        prop_assert_eq!(ledger.intent().tenants().count(), 1);
    }
}

#[test]
fn one_object_that_cannot_be_refuses_all_and_is_named() {
    let mut ledger = ledger([network("default:net", "10.1.1.0/24", "vlan 9")]);
    for (broken, object, field) in [
        (rule("t:p:2", inward("none")), "rule t:p:2", "fromEndpointGroup"),
        (group("t:h", "none", "", &[]), "group t:h", "networkName"),
        (network("u:net", "10.1.1.0/24", "vxlan"), "network u:net", "tenantName"),
        (network("t:other", "10.2.0.0/16", "vlan 9"), "network t:other", "pktTag"),
        (service("t:z", "net", "10.9.9.9", &["a=b"]), "service t:z", "ipAddress"),
    ] {
        for place in [0, chain().len()] {
            let mut puts = chain();
            puts.insert(place, broken.clone());
            let refused = refuse_batch(&mut ledger, &batch(puts, &[]));
            assert_eq!((refused.object.as_str(), refused.refused.field), (object, field));
        }
    }
}

#[test]
fn a_rule_that_differs_is_replaced_and_has_counters_of_its_own() {
    let mut ledger = ledger(chain());
    let cookie = |ledger: &Ledger| ledger.intent().rules().next().unwrap().cookie;
    let before = cookie(&ledger);
    let deny = rule("t:p:1", RuleText { action: "deny", ..inward("") });
    let (applied, changes) = ledger.apply(&batch(vec![deny.clone()], &[])).unwrap();
    assert_eq!(actions(&applied), [Action::Updated]);
    assert!(matches!(changes.as_slice(), [Change::Put(Object::Rule(_))]), "{changes:?}");
    assert!(cookie(&ledger) > before);
    assert_eq!(rebuilt(&ledger), ledger);
    let dangling = rule("t:p:1", inward("none"));
    assert_eq!(
        refuse_batch(&mut ledger, &batch(vec![dangling], &[])).refused.field,
        "fromEndpointGroup"
    );
    assert_eq!(ledger.intent().rules().next().unwrap().spec, {
        let Spec::Rule(spec) = deny else { panic!("a rule") };
        spec
    });
}

#[test]
fn what_is_deleted_makes_room_for_what_is_put() {
    let mut ledger = ledger(chain());
    let deletes = [
        (Kind::Policy, "t:p"),
        (Kind::AppProfile, "t:shop"),
        (Kind::Rule, "t:p:1"),
        (Kind::Network, "t:net"),
        (Kind::EndpointGroup, "t:g"),
        (Kind::Service, "t:s"),
    ];
    let puts = vec![network("t:new", "10.1.1.0/24", "vxlan"), group("t:h", "new", "", &[])];
    let (applied, _) = ledger.apply(&batch(puts, &deletes)).unwrap();
    assert_eq!(actions(&applied)[..2], [Action::Created; 2]);
    let still = refuse_batch(&mut ledger, &batch(vec![], &[(Kind::Network, "t:new")]));
    assert_eq!((still.object.as_str(), still.refused.class()), ("network t:new", Class::InUse));
    // A policy goes once the same batch has taken it off its group.
    ledger.apply(&batch(vec![policy("t:q"), group("t:i", "new", "", &["q"])], &[])).unwrap();
    let off = batch(vec![group("t:i", "new", "", &[])], &[(Kind::Policy, "t:q")]);
    ledger.apply(&off).unwrap();
    assert_eq!(rebuilt(&ledger), ledger);
}

#[test]
fn a_wanted_tag_or_address_is_not_given_to_what_takes_any() {
    let mut ledger = ledger([]);
    let puts = vec![
        network("default:any", "10.1.1.0/24", "vxlan"),
        network("default:one", "10.1.2.0/24", "vxlan 1"),
        service("default:any", "any", "", &["a=b"]),
        service("default:one", "any", "10.1.1.1", &["a=b"]),
    ];
    let (applied, _) = ledger.apply(&batch(puts, &[])).unwrap();
    let Some(Object::Network(any)) = &applied[0].after else { panic!("a network") };
    assert_eq!(any.tag.number(), 2);
    let Some(Object::Service(any)) = &applied[2].after else { panic!("a service") };
    assert_eq!(any.vip.to_string(), "10.1.1.2");
}

#[test]
fn an_object_is_named_once_and_a_delete_needs_what_it_deletes() {
    let mut ledger = ledger([]);
    let twice = batch(vec![policy("default:p"), policy("default:p")], &[]);
    let refused = refuse_batch(&mut ledger, &twice);
    assert_eq!(
        (refused.object.as_str(), refused.refused.reason),
        ("policy default:p", Reason::NamedTwice)
    );
    let both = batch(vec![policy("default:p")], &[(Kind::Policy, "default:p")]);
    assert_eq!(refuse_batch(&mut ledger, &both).refused.reason, Reason::NamedTwice);
    let unknown = refuse_batch(&mut ledger, &batch(vec![], &[(Kind::Policy, "default:p")]));
    assert_eq!(unknown.refused.class(), Class::NotFound);
    let many = (0..=20_000).map(|i| policy(&format!("default:p{i}"))).collect();
    let refused = refuse_batch(&mut ledger, &batch(many, &[]));
    assert!(matches!(refused.refused.reason, Reason::TooManyObjects { max: 20_000 }));
}
