//! Tenants, groups, policies on them, profiles: `TestTenantDelete`, `TestEpgPolicies`, `TestEpgnp`,
//! `TestEpgnpTenant`, `TestEpgUpdate`, `TestDeleteEpgNp`, `TestNetprofile`, `TestNetProfileupdate`,
//! `TestAppProfile`.

use super::*;

fn with_profile(group: v1::EndpointGroup, name: &str) -> Wire {
    Wire::EndpointGroup(v1::EndpointGroup { net_profile: name.into(), ..group })
}

#[tokio::test]
async fn api_1_a_tenant_is_deleted_when_it_is_empty() {
    let (_server, mut client) = contiv().await;
    client.create(tenant("t")).await.unwrap();
    for (name, subnet, gateway, tag) in
        [("one", "10.1.1.1/16", "10.1.1.254", 1), ("two", "20.1.1.1/16", "20.1.1.254", 2)]
    {
        let network = v1::Network { gateway: gateway.into(), ..network("t", name, subnet) };
        client.tagged(on(network, "vxlan", tag)).await.unwrap();
    }
    client.create(Wire::EndpointGroup(group("t", "g", "one", &[]))).await.unwrap();
    let gold = v1::NetProfile { dscp: 3, ..profile("t", "gold", "13mb") };
    client.create(Wire::NetProfile(gold)).await.unwrap();
    client.create(Wire::AppProfile(app_profile("t", "shop", &["g"]))).await.unwrap();
    client.create(policy("t", "p")).await.unwrap();
    for (reason, kind, keys) in [
        ("cannot delete t, has 1 app profiles", v1::Kind::AppProfile, ["t:shop"].as_slice()),
        ("cannot delete t has 1 endpoint groups", v1::Kind::EndpointGroup, &["t:g"]),
        ("cannot delete t has 1 policies", v1::Kind::Policy, &["t:p"]),
        ("Cannot delete t has 1 netprofiles", v1::Kind::NetProfile, &["t:gold"]),
        ("cannot delete t has 2 networks", v1::Kind::Network, &["t:one", "t:two"]),
    ] {
        assert_eq!(client.kept(v1::Kind::Tenant, "t").await, reason);
        for key in keys {
            client.delete(kind, key).await.unwrap();
        }
    }
    client.delete(v1::Kind::Tenant, "t").await.unwrap();
    // What comes again under the name has nothing of the old one.
    client.create(tenant("t")).await.unwrap();
    assert_eq!(client.list(v1::Kind::NetProfile, "t").await, []);
    let changed =
        v1::Tenant { tenant_name: "t".into(), default_network: "one".into(), ..Default::default() };
    let (_, reason) = client.refused(Wire::Tenant(changed)).await;
    assert_eq!(reason, "Cant change tenant parameters after its created");
}

#[tokio::test]
async fn api_1_a_group_names_what_exists_and_stays_in_its_network() {
    let (_server, mut client) = contiv().await;
    client.create(Wire::Network(net("net", "10.1.1.1/16", "10.1.1.254"))).await.unwrap();
    client.create(Wire::Network(net("net2", "20.1.1.1/16", ""))).await.unwrap();
    client.create(policy("default", "policy1")).await.unwrap();
    client.create(policy("default", "policy2")).await.unwrap();
    let plain = |policies: &[&str]| group("default", "group1", "net", policies);
    for exists in [false, true] {
        if exists {
            client.create(Wire::EndpointGroup(plain(&["policy1"]))).await.unwrap();
        }
        for (wrong, field, reason) in [
            (Wire::EndpointGroup(plain(&["none"])), "policies", "Policy not found"),
            (with_profile(plain(&[]), "none"), "netProfile", "netprofile not found"),
            (Wire::EndpointGroup(group("none", "g", "net", &[])), "tenantName", "Tenant not found"),
            (
                Wire::EndpointGroup(group("default", "g", "none", &[])),
                "networkName",
                "Network none not found",
            ),
            (
                Wire::EndpointGroup(group("default", "net", "net", &[])),
                "groupName",
                "Network net conflicts with the endpointGroup name",
            ),
        ] {
            assert_eq!(client.refused(wrong).await, (field.into(), reason.into()));
        }
    }
    let moved = Wire::EndpointGroup(group("default", "group1", "net2", &[]));
    let (_, reason) = client.refused(moved).await;
    assert_eq!(reason, "Cannot change network association after epg is created.");
    let (_, reason) = client.refused(Wire::Network(net("group1", "30.1.1.1/16", ""))).await;
    assert_eq!(reason, "EndpointGroup group1 conflicts with the network name");
    let changed = Wire::Network(net("net", "10.2.1.1/16", ""));
    let (_, reason) = client.refused(changed).await;
    assert_eq!(reason, "Cant change network parameters after its created");
    assert_eq!(client.kept(v1::Kind::Policy, "default:policy1").await, "Policy is being used");
    let reason = client.kept(v1::Kind::Network, "default:net").await;
    assert_eq!(reason, "cannot delete net has 1 endpoint groups");
    client.update(Wire::EndpointGroup(plain(&["policy2"]))).await.unwrap();
    client.delete(v1::Kind::Policy, "default:policy1").await.unwrap();
    client.delete(v1::Kind::EndpointGroup, "default:group1").await.unwrap();
    client.delete(v1::Kind::Policy, "default:policy2").await.unwrap();
}

#[tokio::test]
async fn api_1_net_profiles_are_accepted_and_refused() {
    let (_server, mut client) = contiv().await;
    let named = |bandwidth: &str| profile("default", "gold", bandwidth);
    for bad in [
        "invalid", "10 Gkms", "10 G12ms", "10 ms", "10 bms", "Gkms", "Gbps", "0 Gbps", " 10 Gbps",
        "10 {bps", "10 1bps",
    ] {
        assert_eq!(client.refused(Wire::NetProfile(named(bad))).await.0, "bandwidth", "{bad}");
    }
    for good in [
        "10 Gbps", "10 Gb", "10 gb", "5Gb", "6gb", "3gbps", "3Gbps", "4g", "4G", "2gbps", "5gbps",
        "10gbps", "20mb", "13mb", "5Mb", "900Mb", "20mbps", "",
    ] {
        client.create(Wire::NetProfile(named(good))).await.unwrap();
        let (stored, _) = client.get(v1::Kind::NetProfile, "default:gold").await.unwrap();
        let Wire::NetProfile(stored) = stored else { panic!("a profile") };
        assert_eq!(stored.bandwidth, good);
    }
    let dscp = |dscp| Wire::NetProfile(v1::NetProfile { dscp, ..named("1g") });
    assert_eq!(client.refused(dscp(72)).await.0, "DSCP");
    for good in [0, 2, 3, 5, 6, 7, 9, 22] {
        client.create(dscp(good)).await.unwrap();
    }
    let burst = |name: &str, burst| {
        Wire::NetProfile(v1::NetProfile { burst, ..profile("default", name, "1g") })
    };
    let (_, reason) = client.refused(burst("new", 1)).await;
    assert_eq!(reason, "Invalid Burst size. burst size > 1500 bytes");
    let (_, reason) = client.refused(burst("gold", 1)).await;
    assert_eq!(reason, "Invalid Burst size. burst size must be > 1500 bytes");
    for good in [0, 150, 450, 1500, 1650] {
        client.create(burst("gold", good)).await.unwrap();
    }
    for (tenant_name, reason) in [("none", "Tenant not found"), ("", "Invalid tenant name")] {
        let unknown = Wire::NetProfile(profile(tenant_name, "x", ""));
        assert_eq!(client.refused(unknown).await.1, reason);
    }
    assert_eq!(client.kept(v1::Kind::NetProfile, "default:none").await, "netprofile not found");
}

#[tokio::test]
async fn api_1_a_profile_in_use_is_kept_and_its_change_holds_for_its_groups() {
    let (_server, mut client) = contiv().await;
    client.create(Wire::Network(net("net", "10.1.1.1/16", ""))).await.unwrap();
    let sized = |bandwidth: &str, dscp, burst| {
        Wire::NetProfile(v1::NetProfile { dscp, burst, ..profile("default", "gold", bandwidth) })
    };
    client.create(sized("5Mb", 3, 1500)).await.unwrap();
    let plain = || group("default", "g", "net", &[]);
    client.create(with_profile(plain(), "gold")).await.unwrap();
    assert_eq!(client.kept(v1::Kind::NetProfile, "default:gold").await, "NetProfile is being used");
    client.update(sized("900Mb", 9, 1650)).await.unwrap();
    let (stored, _) = client.get(v1::Kind::NetProfile, "default:gold").await.unwrap();
    let Wire::NetProfile(stored) = stored else { panic!("a profile") };
    assert_eq!((stored.bandwidth.as_str(), stored.dscp, stored.burst), ("900Mb", 9, 1650));
    client.update(Wire::EndpointGroup(plain())).await.unwrap();
    let (stored, _) = client.get(v1::Kind::EndpointGroup, "default:g").await.unwrap();
    let Wire::EndpointGroup(stored) = stored else { panic!("a group") };
    assert_eq!(stored.net_profile, "");
    client.delete(v1::Kind::NetProfile, "default:gold").await.unwrap();
}

#[tokio::test]
async fn api_1_app_profiles_group_groups() {
    let (_server, mut client) = contiv().await;
    client.create(Wire::Network(net("net", "10.1.1.1/16", ""))).await.unwrap();
    for name in ["g1", "g2"] {
        client.create(Wire::EndpointGroup(group("default", name, "net", &[]))).await.unwrap();
    }
    let shop = |groups: &[&str]| Wire::AppProfile(app_profile("default", "shop", groups));
    let (_, reason) = client.refused(shop(&["none"])).await;
    assert_eq!(reason, "EndpointGroup none not found");
    let (_, reason) = client.refused(Wire::AppProfile(app_profile("none", "shop", &[]))).await;
    assert_eq!(reason, "Tenant none not found");
    client.create(shop(&[])).await.unwrap();
    client.update(shop(&["g1"])).await.unwrap();
    let reason = client.kept(v1::Kind::EndpointGroup, "default:g1").await;
    assert_eq!(reason, "Cannot delete g1, associated to appProfile shop");
    client.update(shop(&["g2"])).await.unwrap();
    client.delete(v1::Kind::EndpointGroup, "default:g1").await.unwrap();
    let (stored, _) = client.get(v1::Kind::AppProfile, "default:shop").await.unwrap();
    let Wire::AppProfile(stored) = stored else { panic!("a profile") };
    assert_eq!(stored.endpoint_groups, ["g2"]);
    client.delete(v1::Kind::AppProfile, "default:shop").await.unwrap();
    client.delete(v1::Kind::EndpointGroup, "default:g2").await.unwrap();
}
