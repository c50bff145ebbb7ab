//! `TestPolicyRules`.

use super::*;

/// Policy policy1, group group1 on network net.
async fn policies() -> (Server, Client) {
    let (server, mut client) = contiv().await;
    client.register("n1", "").await;
    client.create(Wire::Network(net("net", "10.1.1.1/24", "10.1.1.254"))).await.unwrap();
    client.create(policy("default", "policy1")).await.unwrap();
    client.create(Wire::EndpointGroup(group("default", "group1", "net", &[]))).await.unwrap();
    (server, client)
}

fn inward(id: &str) -> v1::Rule {
    rule("default", "policy1", id)
}

fn outward(id: &str) -> v1::Rule {
    v1::Rule { direction: "out".into(), ..inward(id) }
}

fn web(rule: v1::Rule) -> v1::Rule {
    v1::Rule { protocol: "tcp".into(), port: 80, action: "allow".into(), ..rule }
}

#[tokio::test]
async fn api_1_rules_are_accepted() {
    let (_server, mut client) = policies().await;
    let address = || "10.1.1.1/24".to_owned();
    let good = [
        web(inward("1")),
        inward("2"),
        web(outward("3")),
        v1::Rule { from_ip_address: address(), ..web(inward("4")) },
        v1::Rule { to_ip_address: address(), ..web(outward("5")) },
        v1::Rule { from_endpoint_group: "group1".into(), ..inward("6") },
        v1::Rule { to_endpoint_group: "group1".into(), ..web(outward("7")) },
    ];
    for asked in good {
        let id = asked.rule_id.clone();
        client.create(Wire::Rule(asked.clone())).await.unwrap();
        let key = format!("default:policy1:{id}");
        let (stored, _) = client.get(v1::Kind::Rule, &key).await.unwrap();
        let Wire::Rule(stored) = stored else { panic!("a rule") };
        let cookie = stored.cookie;
        assert_eq!(stored, v1::Rule { priority: 1, cookie, ..asked });
    }
    for id in 1..=7 {
        client.delete(v1::Kind::Rule, &format!("default:policy1:{id}")).await.unwrap();
    }
    assert_eq!(client.kept(v1::Kind::Rule, "default:policy1:1").await, "rule not found");
    assert_eq!(client.kept(v1::Kind::Policy, "default:none").await, "Policy not found");
}

#[tokio::test]
async fn api_1_rules_are_refused() {
    let (_server, mut client) = policies().await;
    client.create(Wire::Rule(inward("1"))).await.unwrap();
    let both = |direction: &str| v1::Rule { direction: direction.into(), ..inward("9") };
    let (group1, netw, ip) = ("group1".to_owned(), "net".to_owned(), "10.1.1.1".to_owned());
    let none = || "none".to_owned();
    let in_to = "can not specify 'to' parameters in incoming rule";
    let out_from = "can not specify 'from' parameters in outgoing rule";
    let (i, o) = (|| inward("9"), || outward("9"));
    let from_net = || v1::Rule { from_network: netw.clone(), ..i() };
    let to_net = || v1::Rule { to_network: netw.clone(), ..o() };
    for (bad, reason) in [
        (both("both"), "invalid direction for the rule"),
        (both("xyz"), "invalid direction for the rule"),
        (v1::Rule { protocol: "xyz".into(), ..i() }, "a protocol is"),
        (v1::Rule { action: "xyz".into(), ..i() }, "the value is not one of"),
        (v1::Rule { action: "accept".into(), ..i() }, "the value is not one of"),
        (v1::Rule { priority: 101, ..i() }, "a priority is"),
        (v1::Rule { action: "allow".into(), ..inward("1") }, "can not update a rule after its"),
        (v1::Rule { tenant_name: none(), ..i() }, "Policy not found"),
        (v1::Rule { policy_name: none(), ..i() }, "Policy not found"),
        (v1::Rule { to_network: netw.clone(), ..i() }, in_to),
        (v1::Rule { to_endpoint_group: group1.clone(), ..i() }, in_to),
        (v1::Rule { to_ip_address: "invalid".into(), ..i() }, "not an IP address"),
        (v1::Rule { from_network: netw.clone(), ..o() }, out_from),
        (v1::Rule { from_endpoint_group: group1.clone(), ..o() }, out_from),
        (v1::Rule { from_ip_address: ip.clone(), ..o() }, out_from),
        (
            v1::Rule { from_ip_address: ip.clone(), ..from_net() },
            "can not specify both from network and from ip address",
        ),
        (
            v1::Rule { to_ip_address: ip.clone(), ..to_net() },
            "can not specify both to-network and to-ip address",
        ),
        (
            v1::Rule { from_endpoint_group: group1.clone(), ..from_net() },
            "can not specify both from network and from EndpointGroup",
        ),
        (
            v1::Rule { to_endpoint_group: group1.clone(), ..to_net() },
            "can not specify both to-network and to-EndpointGroup",
        ),
        (v1::Rule { from_network: none(), ..i() }, "from Network not found"),
        (v1::Rule { to_network: none(), ..o() }, "to Network not found"),
        (v1::Rule { from_endpoint_group: none(), ..i() }, "endpoint group not found"),
        (v1::Rule { to_endpoint_group: none(), ..o() }, "endpoint group not found"),
    ] {
        let (_, seen) = client.refused(Wire::Rule(bad)).await;
        assert!(seen.starts_with(reason), "{seen}, not {reason}");
    }
    for (tenant_name, reason) in [("none", "Tenant not found"), ("", "Invalid tenant name")] {
        assert_eq!(client.refused(policy(tenant_name, "p")).await.1, reason);
    }
}

#[tokio::test]
async fn d06_a_rule_whose_group_or_network_goes_matches_nothing_and_never_everything() {
    let (_server, mut client) = policies().await;
    client.create(Wire::EndpointGroup(group("default", "gone", "net", &[]))).await.unwrap();
    let about = v1::Rule { from_endpoint_group: "gone".into(), ..web(inward("1")) };
    client.create(Wire::Rule(about)).await.unwrap();
    let unknown = v1::Rule { from_endpoint_group: "none".into(), ..web(inward("2")) };
    assert_eq!(client.refused(Wire::Rule(unknown)).await.0, "fromEndpointGroup");
    // That such a rule compiles to no entry: `d06_a_name_that_does_not_resolve_makes_no_entry_and_never_any`.
    client.delete(v1::Kind::EndpointGroup, "default:gone").await.unwrap();
}

#[tokio::test]
async fn api_1_an_in_rule_for_one_address_needs_one_group_that_has_it() {
    let (_server, mut client) = policies().await;
    let about = |from: &str, to: &str| {
        let ends =
            v1::Rule { from_ip_address: from.into(), to_ip_address: to.into(), ..inward("1") };
        Wire::Rule(ends)
    };
    let member = v1::Endpoint {
        endpoint_group: "group1".into(),
        ip_address: vec!["10.1.1.15".into()],
        ..endpoint("e", "default", "net", "n1")
    };
    client.create(Wire::Endpoint(member)).await.unwrap();
    let (field, reason) = client.refused(about("10.1.1.15", "10.2.1.31")).await;
    let text = "failed to configure default:policy1:1, 0 endpoint groups linked to policy policy1 ";
    assert_eq!((field.as_str(), reason.as_str()), ("toIpAddress", text));
    let linked = group("default", "group1", "net", &["policy1"]);
    client.update(Wire::EndpointGroup(linked)).await.unwrap();
    let (_, reason) = client.refused(about("10.2.1.115", "10.1.1.19")).await;
    let text = "failed to configure default:policy1:1, ip address is not in epg group1";
    assert_eq!(reason, text);
    client.create(about("10.2.1.11", "10.1.1.15")).await.unwrap();
}
