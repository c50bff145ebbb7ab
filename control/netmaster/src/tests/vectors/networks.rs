//! Names, subnets, gateways, overlaps: `TestTenantAddDelete`, `TestNetworkAddDelete`,
//! `TestOverlappingSubnets`, and the range arithmetic of `netutils_test.go`.

use super::*;

#[tokio::test]
async fn api_1_names_are_accepted_and_refused() {
    let (_server, mut client) = contiv().await;
    for bad in [
        "tenant:invalid",
        "tenant|invalid",
        "tenant\\invalid",
        "tenant#invalid",
        "-tenant",
        "tenant@invalid",
        "tenant!invalid",
        "tenant~invalid",
        "tenant*invalid",
        "tenant^invalid",
        "",
    ] {
        assert_eq!(client.refused(tenant(bad)).await.0, "tenantName", "{bad}");
    }
    for good in ["tenant1", "tenant-valid"] {
        client.create(tenant(good)).await.unwrap();
        client.delete(v1::Kind::Tenant, good).await.unwrap();
    }
    for bad in ["contiv:invalid", "contiv|invalid", "-invalid"] {
        let network = Wire::Network(net(bad, "10.1.1.1/24", "10.1.1.254"));
        assert_eq!(client.refused(network).await.0, "networkName", "{bad}");
    }
    client.create(Wire::Network(net("contiv-valid", "10.1.1.1/24", ""))).await.unwrap();
    for bad in ["in_valid", ""] {
        let group = Wire::EndpointGroup(group("default", bad, "contiv-valid", &[]));
        assert_eq!(client.refused(group).await.0, "groupName", "{bad}");
    }
}

#[tokio::test]
async fn api_1_network_types_encapsulations_and_tags_are_accepted_and_refused() {
    let (_server, mut client) = contiv().await;
    let plain = || net("n", "10.1.1.1/24", "10.1.1.254");
    for bad in ["infratest", "testinfra", "testdata", "datatest"] {
        let network = Wire::Network(v1::Network { nw_type: bad.into(), ..plain() });
        assert_eq!(client.refused(network).await.0, "nwType", "{bad}");
    }
    let encap = Wire::Network(on(plain(), "vvvv", 0));
    assert_eq!(client.refused(encap).await.0, "encap");
    let unknown = v1::Network { tenant_name: "none".into(), ..plain() };
    let refused = client.refused(Wire::Network(unknown)).await;
    assert_eq!(refused, ("tenantName".into(), "Tenant not found".into()));
    let nameless = v1::Network { tenant_name: String::new(), ..plain() };
    let refused = client.refused(Wire::Network(nameless)).await;
    assert_eq!(refused, ("tenantName".into(), "Invalid tenant name".into()));
    assert_eq!(client.kept(v1::Kind::Network, "default:n").await, "network not found");
    for bad in ["tag=contiv-net", "io.contiv.network/test"] {
        let network = Wire::Network(v1::Network { cfgd_tag: bad.into(), ..plain() });
        assert_eq!(client.refused(network).await.0, "cfgdTag", "{bad}");
    }
    for good in ["contiv-net", "io.contiv.network.test"] {
        let network = v1::Network { cfgd_tag: good.into(), ..plain() };
        client.create(Wire::Network(network)).await.unwrap();
        assert_eq!(client.oper(v1::Kind::Network, "default:n").await.network_tag, good);
        client.delete(v1::Kind::Network, "default:n").await.unwrap();
    }
    let infra = v1::Network { nw_type: "infra".into(), ..on(plain(), "vlan", 1) };
    client.create(Wire::Network(infra)).await.unwrap();
    let (stored, oper) = client.get(v1::Kind::Network, "default:n").await.unwrap();
    let Wire::Network(stored) = stored else { panic!("a network") };
    assert_eq!((stored.nw_type.as_str(), stored.pkt_tag), ("infra", 1));
    assert_eq!(oper.network_tag, "n.default", "without a tag of its own");
    client.delete(v1::Kind::Network, "default:n").await.unwrap();
}

#[tokio::test]
async fn ipam_1_subnets_and_gateways_are_accepted_and_refused() {
    let (_server, mut client) = contiv().await;
    for (subnet, gateway) in [
        ("10.1.1.10-20/24", ""),
        ("10.1.1.10-10.1.20/24", ""),
        ("10.1.1.10-10.1.1.1/24", ""),
        ("10.1.1.10-10.1.2.30/24", ""),
        ("10.1.1.10-10.2.1.30/16", ""),
        ("10.1.1.10-10.1.1.1.30/24", ""),
        ("10.1.1/24", ""),
        ("10.1.1.256/24", ""),
        ("10.1.1.1-70/26", ""),
        ("10.1.1.1/32", ""),
        ("10.1.1.1/24", "10.1.2.254"),
        ("10.1.1.65-70/26", "10.1.1.1"),
        ("10.123.16.10-10.123.16.100/26", ""),
        ("10.123.16.60-10.123.16.100/26", ""),
        ("10.1.1.0/1", ""),
        ("10.1.1.0/33", ""),
    ] {
        let (field, _) = client.refused(Wire::Network(net("n", subnet, gateway))).await;
        assert!(["subnet", "gateway"].contains(&field.as_str()), "{subnet} {gateway}: {field}");
    }
    let v6 = |subnet: &str| {
        let plain = net("n", "10.1.1.1/24", "");
        Wire::Network(v1::Network { ipv6_subnet: subnet.into(), ..plain })
    };
    let (field, reason) = client.refused(v6("2016:0617::/128")).await;
    assert_eq!(
        (field.as_str(), reason.as_str()),
        ("ipv6Subnet", "subnet length 128 not supported")
    );
    let mut good: Vec<_> = [
        ("10.1.1.10-10.1.1.20/24", "10.1.1.254"),
        ("10.1.1.10-10.1.5.254/16", "10.1.254.254"),
        ("10.1.1.1/24", "10.1.1.254"),
        ("10.1.1.1/16", "10.1.1.254"),
        ("10.1.1.1/16", ""),
        ("11.2.1.10-11.2.1.100/24", ""),
        ("10.123.16.0/26", ""),
        ("10.123.16.66/26", ""),
        ("10.123.16.10-10.123.16.100/22", ""),
    ]
    .into_iter()
    .map(|(subnet, gateway)| Wire::Network(net("n", subnet, gateway)))
    .collect();
    good.push(v6("2016:0617::/120"));
    for network in good {
        client.create(network).await.unwrap();
        client.delete(v1::Kind::Network, "default:n").await.unwrap();
    }
}

#[tokio::test]
async fn d21_lengths_of_128_and_32_that_contivs_patterns_refuse_are_lengths() {
    let (_server, mut client) = contiv().await;
    for length in [108, 109, 118, 119] {
        let plain = net("n", "10.1.1.1/24", "");
        let network = v1::Network { ipv6_subnet: format!("2016:0617::/{length}"), ..plain };
        client.create(Wire::Network(network)).await.unwrap();
        client.delete(v1::Kind::Network, "default:n").await.unwrap();
    }
    client.create(policy("default", "p")).await.unwrap();
    for (id, address) in [("1", "10.1.1.5/32"), ("2", "2016:617::/108"), ("3", "2016:617::1/128")] {
        let rule = v1::Rule { from_ip_address: address.into(), ..rule("default", "p", id) };
        client.create(Wire::Rule(rule)).await.unwrap();
    }
    // What Contiv's pattern lets through and nothing means.
    let ranged = v1::Rule { from_ip_address: "10.1.1.1-20".into(), ..rule("default", "p", "4") };
    assert_eq!(client.refused(Wire::Rule(ranged)).await.0, "fromIpAddress");
}

#[tokio::test]
async fn api_1_subnets_overlap_inside_a_tenant_and_not_across() {
    let (_server, mut client) = contiv().await;
    client.create(tenant("other")).await.unwrap();
    let (plain, wide) = ("10.1.1.0/24", "10.1.1.0/16");
    for ((subnet, gateway, encap), (other, other_gateway, other_encap)) in [
        ((plain, "", "vlan"), (plain, "", "vxlan")),
        ((plain, "", "vxlan"), (plain, "", "vxlan")),
        ((plain, "10.1.1.220", "vlan"), (plain, "10.1.1.233", "vlan")),
        ((wide, "", "vxlan"), ("10.1.2.0/24", "", "vxlan")),
    ] {
        let first = on(net("first", subnet, gateway), encap, 0);
        client.create(Wire::Network(first)).await.unwrap();
        let x = on(net("x", other, other_gateway), other_encap, 0);
        let text = format!("network first conflicts with subnet {subnet}");
        assert_eq!(client.refused(Wire::Network(x)).await, ("subnet".into(), text));
        client.delete(v1::Kind::Network, "default:first").await.unwrap();
    }
    let first = on(net("first", plain, "10.1.1.220"), "vlan", 0);
    client.create(Wire::Network(first)).await.unwrap();
    client.create(Wire::Network(net("second", "10.1.2.0/24", "10.1.2.254"))).await.unwrap();
    client.create(Wire::Network(network("other", "big", "10.1.0.0/16"))).await.unwrap();
    for (name, range) in
        [("a", "20.1.1.10-20.1.1.45"), ("b", "20.1.1.46-20.1.1.100"), ("c", "20.1.1.0-20.1.1.9")]
    {
        client.create(Wire::Network(net(name, &format!("{range}/24"), ""))).await.unwrap();
    }
    for range in ["20.1.1.45-20.1.1.100", "20.1.1.0-20.1.1.10"] {
        let refused = client.refused(Wire::Network(net("x", &format!("{range}/24"), ""))).await;
        assert_eq!(refused.0, "subnet", "{range}");
    }
    let mut third = 0;
    let mut v6 = |tenant: &str, subnet6: &str| {
        third += 1;
        let plain = network(tenant, &format!("v{third}"), &format!("30.1.{third}.0/24"));
        Wire::Network(v1::Network { ipv6_subnet: subnet6.into(), ..plain })
    };
    for subnet6 in
        ["::/64", "1::/64", "2001:3332:3244:2422::/64", "2001:2000::/32", "ffff:ffff:ffff::/48"]
    {
        client.create(v6("default", subnet6)).await.unwrap();
    }
    client.create(v6("other", "ffff:ffff:ffff::/48")).await.unwrap();
    for subnet6 in ["2001:3332:3244:2422::/64", "2001:2000:1234:4422::/64"] {
        let (field, reason) = client.refused(v6("default", subnet6)).await;
        assert_eq!(field, "ipv6Subnet");
        assert!(reason.contains("conflicts with subnetv6  2001:"), "{reason}");
    }
}
