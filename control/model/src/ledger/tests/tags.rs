//! VLAN tags, VNIs and the global settings.

use super::*;

#[test]
fn tags_are_given_allocated_and_refused_as_in_contivs_vectors() {
    let mut ledger = ledger([]);
    let mut create = |name: &str, third: u8, wire: &str| {
        ledger.create(network(&format!("default:{name}"), &format!("10.1.{third}.0/24"), wire))
    };
    assert_eq!(tag_of(&create("v1", 1, "vlan").unwrap()), 1);
    assert_eq!(tag_of(&create("x1", 2, "vxlan").unwrap()), 1);
    assert_eq!(tag_of(&create("x2", 3, "vxlan").unwrap()), 2);
    assert_eq!(tag_of(&create("x3", 4, "vxlan 1000").unwrap()), 1000);
    // D11: VXLAN networks take no local VLAN.
    assert_eq!(tag_of(&create("v2", 5, "vlan").unwrap()), 2);
    for (wire, text) in [
        ("vlan 1", "requested vlan not available - vlan:1"),
        ("vxlan 1", "requested vxlan not available"),
        ("vxlan 20000", "requested vxlan is out of range"),
    ] {
        let refused = create("more", 6, wire).unwrap_err();
        assert_eq!((refused.field, refused.to_string().as_str()), ("pktTag", text));
    }
    delete(&mut ledger, Kind::Network, "default:v1").unwrap();
    assert_eq!(
        (ledger.vlans().in_use(), ledger.vxlans().in_use()),
        ("2".into(), "1-2, 1000".into())
    );
    assert_eq!(tag_of(&ledger.create(network("default:v3", "10.1.7.0/24", "vlan")).unwrap()), 1);
}

#[test]
fn all_24_bits_of_vni_can_be_used() {
    let mut ledger = ledger([]);
    let range = GlobalSpec::parse("", "1-16777215", "").unwrap();
    ledger.update(Spec::Global(range)).unwrap();
    let last = network("default:last", "10.1.1.0/24", "vxlan 16777215");
    assert_eq!(tag_of(&ledger.create(last).unwrap()), 16_777_215);
}

fn set(ledger: &mut Ledger, vlans: &str, vxlans: &str, private: &str) -> Result<Outcome, Refused> {
    ledger.update(Spec::Global(GlobalSpec::parse(vlans, vxlans, private).unwrap()))
}

#[test]
fn tag_ranges_change_live_as_in_contivs_vectors() {
    let mut ledger = ledger([]);
    let mut third = 0;
    let mut net = |ledger: &mut Ledger, wire: &str| {
        third += 1;
        ledger.create(network(&format!("default:n{third}"), &format!("10.1.{third}.0/24"), wire))
    };
    for tag in ["vlan 10", "vlan 11", "vlan 300"] {
        net(&mut ledger, tag).unwrap();
    }
    set(&mut ledger, "9-301", "", "").unwrap();
    assert!(net(&mut ledger, "vlan 10").is_err());
    assert!(net(&mut ledger, "vlan 302").is_err());
    net(&mut ledger, "vlan 299").unwrap();
    for bad in ["50-301", "1-200"] {
        let refused = set(&mut ledger, bad, "", "").unwrap_err();
        assert_eq!(refused.to_string(), "process failed on error checks vlan");
        assert_eq!((refused.field, refused.class()), ("vlans", Class::InUse));
    }
    set(&mut ledger, "1-800", "", "").unwrap();
    net(&mut ledger, "vlan 700").unwrap();
    for tag in ["vxlan 1000", "vxlan 1001", "vxlan 2000"] {
        net(&mut ledger, tag).unwrap();
    }
    set(&mut ledger, "", "1000-2500", "").unwrap();
    assert!(net(&mut ledger, "vxlan 1000").is_err());
    assert!(net(&mut ledger, "vxlan 2501").is_err());
    net(&mut ledger, "vxlan 2200").unwrap();
    for bad in ["2000-10000", "1000-2000"] {
        assert_eq!(set(&mut ledger, "", bad, "").unwrap_err().field, "vxlans");
    }
    set(&mut ledger, "", "1000-9000", "").unwrap();
    net(&mut ledger, "vxlan 3200").unwrap();
}

#[test]
fn the_private_subnet_stays_while_there_are_networks() {
    let mut ledger = ledger([network("default:x", "10.1.1.0/24", "vxlan 3200")]);
    let refused = set(&mut ledger, "", "", "172.21.0.0/16").unwrap_err();
    assert_eq!(refused.to_string(), "Unable to update private subnet due to existing 1 vxlans");
    ledger.create(network("default:v", "10.1.2.0/24", "vlan 3200")).unwrap();
    let refused = set(&mut ledger, "", "", "172.21.0.0/16").unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Unable to update private subnet due to existing 1 vlans and 1 vxlans"
    );
    delete(&mut ledger, Kind::Network, "default:x").unwrap();
    delete(&mut ledger, Kind::Network, "default:v").unwrap();
    set(&mut ledger, "", "", "172.21.0.0/16").unwrap();
    assert_eq!(ledger.intent().global().pvt_subnet.to_string(), "172.21.0.0/16");
    // D4: what is shown is what is in force, also after a restart.
    assert_eq!(rebuilt(&ledger), ledger);
}

#[test]
fn the_forwarding_mode_stays_while_there_are_networks_or_bgp() {
    let modes = |fwd, arp| Spec::Global(GlobalSpec::default().with_modes("", fwd, arp).unwrap());
    let mut ledger = ledger([modes("bridge", "")]);
    for (wire, text) in [
        ("vxlan 3200", "Unable to update forwarding mode due to existing 1 vxlans"),
        ("vlan 3200", "Unable to update forwarding mode due to existing 1 vlans"),
    ] {
        ledger.create(network("default:x", "10.1.1.0/24", wire)).unwrap();
        let refused = refuse(&mut ledger, modes("routing", ""));
        assert_eq!((refused.field, refused.to_string().as_str()), ("fwdMode", text));
        assert_eq!(ledger.update(modes("bridge", "")).unwrap().changes, []);
        ledger.update(modes("", "flood")).unwrap();
        ledger.update(modes("", "proxy")).unwrap();
        delete(&mut ledger, Kind::Network, "default:x").unwrap();
    }
    ledger.update(modes("routing", "")).unwrap();
    ledger.create(bgp("hostA")).unwrap();
    let refused = refuse(&mut ledger, modes("bridge", ""));
    assert_eq!(refused.to_string(), "please delete existing Bgp configs");
    delete(&mut ledger, Kind::Bgp, "hostA").unwrap();
    ledger.update(modes("bridge", "")).unwrap();
    assert_eq!(rebuilt(&ledger), ledger);
}
