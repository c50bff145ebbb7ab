//! Objects survive the wire, and every refused field is named.

use prost::Message as _;

use super::*;
use crate::v1::object::Kind as Wire;

fn wire(kind: Wire) -> v1::Object {
    v1::Object { kind: Some(kind) }
}

fn network() -> v1::Network {
    v1::Network {
        tenant_name: "red".into(),
        network_name: "net".into(),
        nw_type: "data".into(),
        encap: "vxlan".into(),
        pkt_tag: 1000,
        subnet: "10.1.1.1/24".into(),
        gateway: "10.1.1.254".into(),
        offload: "on".into(),
        bd: 7,
        ..v1::Network::default()
    }
}

fn net_profile() -> v1::NetProfile {
    v1::NetProfile {
        tenant_name: "red".into(),
        profile_name: "gold_1".into(),
        bandwidth: "6 Mbps".into(),
        burst: 80,
        dscp: 63,
        scope: "endpoint".into(),
    }
}

fn rule(direction: &str) -> v1::Rule {
    v1::Rule {
        tenant_name: "red".into(),
        policy_name: "first".into(),
        rule_id: "1".into(),
        direction: direction.into(),
        priority: 100,
        protocol: "tcp".into(),
        port: 8000,
        action: "deny".into(),
        cookie: u64::MAX,
        ..v1::Rule::default()
    }
}

fn configuration() -> Vec<v1::Object> {
    let tenant_name = || "red".to_owned();
    vec![
        wire(Wire::Tenant(v1::Tenant {
            tenant_name: tenant_name(),
            default_network: "net".into(),
            default_verdict: "deny".into(),
            tracking: "stateless".into(),
            on_deny: "finish".into(),
            max_connections: Some(1000),
            max_new_flows: Some(0),
            offload: "off".into(),
            bandwidth: Some("1 Gbps".into()),
            burst: Some(1500),
            vrf: 3,
        })),
        wire(Wire::NetProfile(net_profile())),
        wire(Wire::NetProfile(v1::NetProfile {
            bandwidth: String::new(),
            burst: 0,
            dscp: 0,
            scope: "group".into(),
            ..net_profile()
        })),
        wire(Wire::Network(network())),
        wire(Wire::Network(v1::Network {
            encap: "vlan".into(),
            pkt_tag: 4094,
            subnet: "10.1.2.5-10.1.2.9/24".into(),
            gateway: String::new(),
            cfgd_tag: "io.contiv.network.test".into(),
            offload: "off".into(),
            ..network()
        })),
        wire(Wire::Network(v1::Network {
            nw_type: "infra".into(),
            ipv6_subnet: "2016:617::/120".into(),
            ipv6_gateway: "2016:617::fe".into(),
            ..network()
        })),
        wire(Wire::EndpointGroup(v1::EndpointGroup {
            tenant_name: tenant_name(),
            group_name: "web".into(),
            network_name: "net".into(),
            ip_pool: "10.1.1.10-10.1.1.20".into(),
            policies: vec!["second".into(), "first".into()],
            net_profile: "gold_1".into(),
            cfgd_tag: "x".into(),
            group_id: 9,
            ..v1::EndpointGroup::default()
        })),
        wire(Wire::EndpointGroup(v1::EndpointGroup {
            tenant_name: tenant_name(),
            group_name: "six".into(),
            network_name: "net".into(),
            ipv6_pool: "2016:617::10-2016:617::1f".into(),
            group_id: 10,
            ..v1::EndpointGroup::default()
        })),
        wire(Wire::Policy(v1::Policy { tenant_name: tenant_name(), policy_name: "first".into() })),
        wire(Wire::Rule(v1::Rule {
            from_endpoint_group: "web".into(),
            from_ip_address: "10.1.1.1/24".into(),
            to_ip_address: "10.1.1.7".into(),
            ..rule("in")
        })),
        wire(Wire::Rule(v1::Rule { from_network: "net".into(), ..rule("in") })),
        wire(Wire::Rule(v1::Rule { to_network: "net".into(), ..rule("out") })),
        wire(Wire::Rule(v1::Rule { to_ip_address: "10.0.0.0/8".into(), ..rule("out") })),
        wire(Wire::Rule(v1::Rule { to_ip_address: "2016:617::/108".into(), ..rule("out") })),
    ]
}

fn globals() -> Vec<v1::Object> {
    vec![
        wire(Wire::Global(v1::Global {
            name: "global".into(),
            network_infra_type: "default".into(),
            vlans: "1-4094".into(),
            vxlans: "1-10000".into(),
            fwd_mode: "routing".into(),
            arp_mode: "proxy".into(),
            pvt_subnet: "172.19.0.0/16".into(),
            allocation: "spread".into(),
        })),
        wire(Wire::Global(v1::Global {
            name: "global".into(),
            network_infra_type: "default".into(),
            vlans: "100-1000".into(),
            vxlans: "1-16777215".into(),
            fwd_mode: "bridge".into(),
            arp_mode: "flood".into(),
            pvt_subnet: "172.21.0.0/16".into(),
            allocation: "lowest".into(),
        })),
    ]
}

fn service() -> v1::ServiceLb {
    v1::ServiceLb {
        tenant_name: "red".into(),
        service_name: "web".into(),
        network_name: "net".into(),
        ip_address: "10.1.1.3".into(),
        selectors: vec!["key1=value1".into(), "key2=value2".into()],
        ports: vec!["80:8080:TCP".into(), "643:7070:UDP".into()],
        service_vip: "10.1.1.3".into(),
    }
}

fn bgp() -> v1::Bgp {
    v1::Bgp {
        hostname: "hostA".into(),
        routerip: "65.1.1.1/24".into(),
        as_number: "65001".into(),
        neighbor_as: "65002".into(),
        neighbor: "16.1.2.3".into(),
    }
}

fn grouping() -> Vec<v1::Object> {
    let profile = |endpoint_groups: &[&str]| v1::AppProfile {
        tenant_name: "red".into(),
        app_profile_name: "shop".into(),
        endpoint_groups: endpoint_groups.iter().map(ToString::to_string).collect(),
    };
    vec![
        wire(Wire::ServiceLb(service())),
        wire(Wire::ServiceLb(v1::ServiceLb { ip_address: String::new(), ..service() })),
        wire(Wire::AppProfile(profile(&["web", "db"]))),
        wire(Wire::AppProfile(profile(&[]))),
        wire(Wire::Bgp(bgp())),
        wire(Wire::Bgp(v1::Bgp { neighbor_as: String::new(), neighbor: String::new(), ..bgp() })),
    ]
}

fn living() -> Vec<v1::Object> {
    vec![
        wire(Wire::Endpoint(v1::Endpoint {
            endpoint_id: "0123:eth0".into(),
            tenant_name: "red".into(),
            network_name: "net".into(),
            endpoint_group: "web".into(),
            ip_address: vec!["10.1.1.10".into()],
            mac_address: "02:00:0a:01:01:0a".into(),
            homing_host: "node1".into(),
            intf_name: "wr0123456789".into(),
            vtep_ip: String::new(),
            container_id: "0123".into(),
            container_name: "web-1".into(),
            labels: vec!["app=web".into(), "tier=".into()],
            running: false,
        })),
        wire(Wire::Node(v1::NodeInfo {
            node_name: "node1".into(),
            vtep_ip: "192.168.0.1".into(),
            version: "0.1.0".into(),
            ..v1::NodeInfo::default()
        })),
        wire(Wire::AddressLease(v1::AddressLease {
            tenant_name: "red".into(),
            network_name: "net".into(),
            address: "10.1.1.5".into(),
            owner: "db".into(),
            expires_at: 77,
            leaving: true,
            left_group: 9,
            ttl_seconds: 0,
        })),
        wire(Wire::AddressLease(v1::AddressLease {
            tenant_name: "red".into(),
            network_name: "net".into(),
            address: "10.1.1.6".into(),
            leaving: true,
            ..v1::AddressLease::default()
        })),
    ]
}

#[test]
fn stored_objects_survive_the_way_through_the_model() {
    for object in configuration().into_iter().chain(globals()).chain(grouping()).chain(living()) {
        let model = to_model(&object).unwrap();
        assert_eq!(from_model(&model), object);
        let removed = from_key(&model.key());
        assert_eq!(to_key(removed.kind, &removed.key).unwrap(), model.key());
    }
}

#[test]
fn refused_networks_name_their_field() {
    for (object, field) in [
        (v1::Network { ipv6_subnet: "2016:0617::/128".into(), ..network() }, "ipv6Subnet"),
        (v1::Network { ipv6_gateway: "2016::1".into(), ..network() }, "ipv6Gateway"),
        (
            v1::Network {
                ipv6_subnet: "2016::/64".into(),
                ipv6_gateway: "2017::1".into(),
                ..network()
            },
            "ipv6Gateway",
        ),
        (v1::Network { nw_type: "testinfra".into(), ..network() }, "nwType"),
        (v1::Network { offload: "yes".into(), ..network() }, "offload"),
        (v1::Network { encap: "vvvv".into(), ..network() }, "encap"),
    ] {
        assert_eq!(to_spec(&wire(Wire::Network(object))).unwrap_err().field, field);
    }
}

#[test]
fn refused_profiles_and_tenant_settings_name_their_field() {
    let profile = net_profile;
    let tenant = || v1::Tenant { tenant_name: "red".into(), ..v1::Tenant::default() };
    for (object, field) in [
        (
            Wire::NetProfile(v1::NetProfile { profile_name: "a:b".into(), ..profile() }),
            "profileName",
        ),
        (Wire::NetProfile(v1::NetProfile { bandwidth: "10 ms".into(), ..profile() }), "bandwidth"),
        (Wire::NetProfile(v1::NetProfile { burst: 10_487, ..profile() }), "burst"),
        (Wire::NetProfile(v1::NetProfile { dscp: 72, ..profile() }), "DSCP"),
        (Wire::NetProfile(v1::NetProfile { scope: "node".into(), ..profile() }), "scope"),
        (Wire::Tenant(v1::Tenant { tracking: "yes".into(), ..tenant() }), "tracking"),
        (Wire::Tenant(v1::Tenant { on_deny: "stop".into(), ..tenant() }), "onDeny"),
        (Wire::Tenant(v1::Tenant { offload: "true".into(), ..tenant() }), "offload"),
        (Wire::Tenant(v1::Tenant { bandwidth: Some("1".into()), ..tenant() }), "bandwidth"),
        (Wire::Tenant(v1::Tenant { burst: Some(10_487), ..tenant() }), "burst"),
    ] {
        assert_eq!(to_spec(&wire(object)).unwrap_err().field, field);
    }
}

#[test]
fn refused_services_profiles_and_bgp_name_their_field() {
    let list = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (object, field) in [
        (Wire::ServiceLb(v1::ServiceLb { selectors: vec![], ..service() }), "selectors"),
        (Wire::ServiceLb(v1::ServiceLb { ports: list(&["1:1:TCP", "80"]), ..service() }), "ports"),
        (Wire::ServiceLb(v1::ServiceLb { ip_address: "::1".into(), ..service() }), "ipAddress"),
        (
            Wire::ServiceLb(v1::ServiceLb { service_name: String::new(), ..service() }),
            "serviceName",
        ),
        (Wire::Bgp(v1::Bgp { hostname: String::new(), ..bgp() }), "hostname"),
        (Wire::Bgp(v1::Bgp { routerip: "65.1.1.1".into(), ..bgp() }), "routerip"),
        (Wire::Bgp(v1::Bgp { as_number: String::new(), ..bgp() }), "as"),
        (Wire::Bgp(v1::Bgp { neighbor: String::new(), ..bgp() }), "neighbor"),
        (
            Wire::AppProfile(v1::AppProfile {
                tenant_name: "red".into(),
                app_profile_name: "shop".into(),
                endpoint_groups: list(&["in_valid"]),
            }),
            "endpointGroups",
        ),
    ] {
        assert_eq!(to_spec(&wire(object)).unwrap_err().field, field);
    }
    let unplaced = v1::ServiceLb { service_vip: String::new(), ..service() };
    assert_eq!(to_model(&wire(Wire::ServiceLb(unplaced))).unwrap_err().field, "serviceVip");
}

#[test]
fn a_batch_names_the_place_of_what_is_none_and_makes_no_endpoints_or_nodes() {
    let good = wire(Wire::Bgp(bgp()));
    let rule_of_no_kind = v1::Object { kind: None };
    let refused = to_batch(&[good.clone(), rule_of_no_kind], &[]).unwrap_err();
    assert_eq!((refused.object.as_str(), refused.refused.field), ("objects[1]", "object"));
    let key = |kind: v1::Kind, key: &str| v1::ObjectKey { kind: kind.into(), key: key.into() };
    let refused = to_batch(&[], &[key(v1::Kind::Rule, "red:first")]).unwrap_err();
    assert_eq!((refused.object.as_str(), refused.refused.field), ("deletes[0]", "key"));
    for object in living().drain(..2) {
        assert_eq!(to_batch(&[object], &[]).unwrap_err().refused.field, "object");
    }
    let gone = [key(v1::Kind::Endpoint, "c1"), key(v1::Kind::Node, "n1")];
    assert_eq!(to_batch(&[], &gone).unwrap().deletes.len(), 2, "they are deleted like all else");
    let batch = to_batch(&[good], &[key(v1::Kind::Policy, "red:first")]).unwrap();
    assert_eq!((batch.puts.len(), batch.deletes.len()), (1, 1));
}

#[test]
fn a_tenant_stored_before_it_had_settings_has_the_defaults() {
    let old = v1::Tenant { tenant_name: "red".into(), vrf: 3, ..v1::Tenant::default() };
    let control_model::Object::Tenant(tenant) = to_model(&wire(Wire::Tenant(old))).unwrap() else {
        panic!("a tenant");
    };
    assert_eq!(tenant.settings, control_model::TenantSettings::default());
}

#[test]
fn an_object_without_its_identifiers_is_a_request_and_not_stored() {
    let tag = to_model(&wire(Wire::Network(v1::Network { pkt_tag: 0, ..network() })));
    assert_eq!(tag.unwrap_err().field, "pktTag");
    assert!(to_spec(&wire(Wire::Network(v1::Network { pkt_tag: 0, ..network() }))).is_ok());
}

#[test]
fn an_empty_request_is_refused() {
    assert_eq!(to_spec(&v1::Object { kind: None }).unwrap_err().field, "object");
    assert_eq!(to_key(0, "x").unwrap_err().field, "kind");
    assert_eq!(to_key(77, "x").unwrap_err().field, "kind");
}

#[test]
fn a_message_with_any_byte_changed_is_refused_or_read_as_what_it_says() {
    let all = configuration().into_iter().chain(globals()).chain(grouping()).chain(living());
    for object in all {
        let bytes = object.encode_to_vec();
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, bytes[at] ^ 1] {
                let mut changed = bytes.clone();
                changed[at] = value;
                read_or_refuse(&changed);
            }
            read_or_refuse(&bytes[..at]);
        }
    }
}

fn read_or_refuse(bytes: &[u8]) {
    let Ok(read) = v1::Object::decode(bytes) else { return };
    if let Err(refused) = to_spec(&read) {
        assert!(!refused.field.is_empty());
    }
    if let Ok(model) = to_model(&read) {
        assert_eq!(to_model(&from_model(&model)), Ok(model));
    }
}
