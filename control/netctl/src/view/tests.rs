use clap::ValueEnum as _;
use control_api::v1;
use control_api::v1::object::Kind;

use super::{
    AppProfileView, BgpView, EndpointView, GlobalView, GroupView, ListForm, NetworkView, NodeView,
    PolicyView, ProfileView, RuleView, ServiceView, Stats, TenantView, View, inspect, list,
    rule_tables,
};
use crate::args::KindName;
use crate::data::Data;
use crate::manifest;

fn views<V: View>(kinds: Vec<Kind>) -> Vec<V> {
    kinds.into_iter().map(|kind| V::from_kind(kind).unwrap()).collect()
}

fn networks() -> Vec<NetworkView> {
    let web = v1::Network {
        tenant_name: "blue".into(),
        network_name: "web".into(),
        nw_type: "data".into(),
        encap: "vxlan".into(),
        pkt_tag: 1,
        subnet: "10.1.1.0/24".into(),
        gateway: "10.1.1.254".into(),
        cfgd_tag: "web.blue".into(),
        offload: "on".into(),
        bd: 1,
        ..Default::default()
    };
    let wire = v1::Network {
        network_name: "wire".into(),
        encap: "vlan".into(),
        pkt_tag: 100,
        subnet: "10.1.2.10-10.1.2.99/24".into(),
        gateway: String::new(),
        ipv6_subnet: "2001:db8::/64".into(),
        ipv6_gateway: "2001:db8::1".into(),
        cfgd_tag: "wire.blue".into(),
        ..web.clone()
    };
    views(vec![Kind::Network(web), Kind::Network(wire)])
}

fn endpoint() -> v1::Endpoint {
    v1::Endpoint {
        endpoint_id: "3f2a9c:eth0".into(),
        tenant_name: "blue".into(),
        network_name: "web".into(),
        endpoint_group: "front".into(),
        ip_address: vec!["10.1.1.1".into()],
        mac_address: "02:00:0a:01:01:01".into(),
        homing_host: "node-a".into(),
        intf_name: "wr0123456789".into(),
        vtep_ip: "192.0.2.1".into(),
        container_id: "3f2a9c".into(),
        container_name: "front-1".into(),
        labels: Vec::new(),
        running: false,
    }
}

fn rules() -> Vec<RuleView> {
    let rule = |id: &str, cookie, direction: &str, priority, action: &str| v1::Rule {
        tenant_name: "blue".into(),
        policy_name: "front".into(),
        rule_id: id.into(),
        direction: direction.into(),
        priority,
        protocol: "tcp".into(),
        port: 8001,
        action: action.into(),
        cookie,
        ..Default::default()
    };
    let from =
        v1::Rule { from_ip_address: "10.1.1.0/24".into(), ..rule("2", 8, "in", 20, "allow") };
    let to = v1::Rule { to_endpoint_group: "back".into(), ..rule("3", 9, "out", 1, "allow") };
    let kinds = vec![from, rule("1", 7, "in", 10, "deny"), to];
    let rules = views(kinds.into_iter().map(Kind::Rule).collect());
    let counters = [v1::RuleCounter { cookie: 7, packets: 12, bytes: 888 }];
    RuleView::sorted(RuleView::with_counters(rules, &counters))
}

#[test]
fn cli_1_networks_are_printed_with_contivs_columns() {
    let text = list(&networks(), ListForm::Table).unwrap();
    assert_eq!(text, include_str!("golden/network-ls.txt"));
}

#[test]
fn cli_1_networks_as_json_carry_contivs_field_names() {
    let text = list(&networks(), ListForm::Data(Data::Json)).unwrap();
    assert_eq!(text, include_str!("golden/network-ls.json"));
}

#[test]
fn cli_1_a_network_is_inspected_with_its_state() {
    let oper = v1::Oper {
        num_endpoints: 1,
        allocated_addresses_count: 2,
        allocated_ip_addresses: "10.1.1.1, 10.1.1.254".into(),
        available_ip_addresses: "10.1.1.2-10.1.1.253".into(),
        pkt_tag: 1,
        network_tag: "web.blue".into(),
        endpoints: vec![endpoint()],
        ..Default::default()
    };
    let text = inspect(&networks()[0], oper, Data::Json).unwrap();
    assert_eq!(text, include_str!("golden/network-inspect.json"));
}

#[test]
fn cli_1_names_are_one_a_line() {
    assert_eq!(list(&networks(), ListForm::Names).unwrap(), "web\nwire\n");
}

#[test]
fn cli_1_an_empty_list_is_an_empty_array() {
    assert_eq!(list::<PolicyView>(&[], ListForm::Data(Data::Json)).unwrap(), "[]\n");
    assert_eq!(list::<PolicyView>(&[], ListForm::Names).unwrap(), "");
}

#[test]
fn cli_1_rules_are_two_tables_sorted_by_priority() {
    assert_eq!(rule_tables(&rules(), Stats::Hidden), include_str!("golden/rule-ls.txt"));
    assert_eq!(rule_tables(&rules(), Stats::Shown), include_str!("golden/rule-ls-stats.txt"));
}

#[test]
fn cli_1_rules_as_json_always_carry_packets_and_bytes() {
    assert_eq!(Data::Json.text(&rules()).unwrap(), include_str!("golden/rule-ls.json"));
}

#[test]
fn cli_1_groups_show_their_policies_joined_by_commas() {
    let group = v1::EndpointGroup {
        tenant_name: "blue".into(),
        group_name: "front".into(),
        network_name: "web".into(),
        ip_pool: "10.1.1.5-10.1.1.9".into(),
        ipv6_pool: "2001:db8::5-2001:db8::9".into(),
        policies: vec!["p1".into(), "p2".into()],
        net_profile: "gold".into(),
        cfgd_tag: "front.web".into(),
        group_id: 3,
    };
    let views: Vec<GroupView> = views(vec![Kind::EndpointGroup(group)]);
    assert_eq!(list(&views, ListForm::Table).unwrap(), include_str!("golden/group-ls.txt"));
    let oper = v1::Oper { pkt_tag: 1, group_tag: "front.web".into(), ..Default::default() };
    assert_eq!(
        inspect(&views[0], oper, Data::Json).unwrap(),
        include_str!("golden/group-inspect.json")
    );
}

#[test]
fn cli_1_tenants_and_policies_are_printed_with_contivs_columns() {
    let tenant = |name: &str, vrf| {
        Kind::Tenant(v1::Tenant { tenant_name: name.into(), vrf, ..Default::default() })
    };
    let tenants: Vec<TenantView> = views(vec![tenant("default", 1), tenant("blue", 2)]);
    assert_eq!(list(&tenants, ListForm::Table).unwrap(), "Name\n------\ndefault\nblue\n");
    let oper = v1::Oper { total_networks: 2, total_epgs: 1, ..Default::default() };
    assert_eq!(
        inspect(&tenants[1], oper, Data::Json).unwrap(),
        include_str!("golden/tenant-inspect.json")
    );
    let policy = v1::Policy { tenant_name: "blue".into(), policy_name: "front".into() };
    let policies: Vec<PolicyView> = views(vec![Kind::Policy(policy)]);
    assert_eq!(
        list(&policies, ListForm::Table).unwrap(),
        "Tenant  Policy\n------  ------\nblue    front\n"
    );
}

#[test]
fn cli_1_a_tenant_as_json_carries_its_settings() {
    let tenant = v1::Tenant {
        tenant_name: "blue".into(),
        default_verdict: "deny".into(),
        tracking: "stateless".into(),
        on_deny: "finish".into(),
        offload: "off".into(),
        max_connections: Some(1000),
        max_new_flows: Some(50),
        bandwidth: Some("1 Gbps".into()),
        burst: Some(1500),
        vrf: 2,
        ..Default::default()
    };
    let tenants: Vec<TenantView> = views(vec![Kind::Tenant(tenant)]);
    assert_eq!(
        list(&tenants, ListForm::Data(Data::Json)).unwrap(),
        include_str!("golden/tenant-ls.json")
    );
}

#[test]
fn cli_1_profiles_are_printed_with_contivs_columns_and_field_names() {
    let gold = v1::NetProfile {
        tenant_name: "blue".into(),
        profile_name: "gold".into(),
        bandwidth: "6 Mbps".into(),
        burst: 80,
        dscp: 6,
        scope: "endpoint".into(),
    };
    let plain = v1::NetProfile {
        profile_name: "plain".into(),
        bandwidth: String::new(),
        burst: 0,
        dscp: 0,
        scope: "group".into(),
        ..gold.clone()
    };
    let views: Vec<ProfileView> = views(vec![Kind::NetProfile(gold), Kind::NetProfile(plain)]);
    assert_eq!(list(&views, ListForm::Table).unwrap(), include_str!("golden/netprofile-ls.txt"));
    assert_eq!(
        list(&views, ListForm::Data(Data::Json)).unwrap(),
        include_str!("golden/netprofile-ls.json")
    );
    assert_eq!(list(&views, ListForm::Names).unwrap(), "gold\nplain\n");
    let oper = v1::Oper { num_endpoints: 1, endpoints: vec![endpoint()], ..Default::default() };
    let text = inspect(&views[0], oper, Data::Json).unwrap();
    assert!(
        text.starts_with("{\n  \"Config\": {\n    \"key\": \"blue:gold\",\n    \"DSCP\": 6,"),
        "{text}"
    );
    assert!(text.contains("\"Oper\": {\n    \"numEndpoints\": 1,"), "{text}");
}

#[test]
fn cli_1_endpoints_are_listed_and_inspected() {
    let views: Vec<EndpointView> = views(vec![Kind::Endpoint(endpoint())]);
    assert_eq!(list(&views, ListForm::Table).unwrap(), include_str!("golden/endpoint-ls.txt"));
    let text = inspect(&views[0], v1::Oper::default(), Data::Json).unwrap();
    assert_eq!(text, include_str!("golden/endpoint-inspect.json"));
}

#[test]
fn cli_1_nodes_and_settings_are_printed() {
    let node = v1::NodeInfo {
        node_name: "node-a".into(),
        vtep_ip: "192.0.2.1".into(),
        version: "0.1.0".into(),
        acked_revision: 42,
        connected: true,
        lag: 3,
        dead: false,
    };
    let nodes: Vec<NodeView> = views(vec![Kind::Node(node)]);
    assert_eq!(list(&nodes, ListForm::Table).unwrap(), include_str!("golden/node-ls.txt"));
    let global = v1::Global {
        name: "global".into(),
        network_infra_type: "default".into(),
        vlans: "1-4094".into(),
        vxlans: "1-10000".into(),
        fwd_mode: "bridge".into(),
        arp_mode: "proxy".into(),
        pvt_subnet: "172.19.0.0/16".into(),
        allocation: "lowest".into(),
    };
    let settings: Vec<GlobalView> = views(vec![Kind::Global(global)]);
    assert_eq!(settings[0].lines(), include_str!("golden/global-info.txt"));
}

#[test]
fn cli_1_an_object_of_another_kind_has_no_view() {
    assert!(TenantView::from_kind(Kind::Policy(v1::Policy::default())).is_none());
}

#[test]
fn cli_1_yaml_says_what_json_says() {
    fn same<V: View>(views: &[V]) {
        let json = list(views, ListForm::Data(Data::Json)).unwrap();
        let yaml = list(views, ListForm::Data(Data::Yaml)).unwrap();
        let of_json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let of_yaml: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(of_yaml, of_json, "{yaml}");
    }
    same(&networks());
    same(&rules());
    same(&views::<EndpointView>(vec![Kind::Endpoint(endpoint())]));
    assert_eq!(
        list(&networks(), ListForm::Data(Data::Yaml)).unwrap(),
        include_str!("golden/network-ls.yaml")
    );
}

#[test]
fn cli_1_services_are_printed_with_contivs_columns_and_say_what_is_not_in_force() {
    let shop = v1::ServiceLb {
        tenant_name: "blue".into(),
        service_name: "shop".into(),
        network_name: "web".into(),
        selectors: vec!["app=shop".into(), "tier=front".into()],
        ports: vec!["80:8080:TCP".into()],
        service_vip: "10.1.1.9".into(),
        ..Default::default()
    };
    let services: Vec<ServiceView> = views(vec![Kind::ServiceLb(shop)]);
    assert_eq!(
        list(&services, ListForm::Table).unwrap(),
        "ServiceName  Tenant    Network  Selectors\n\
         ---------    --------  -------  -------\n\
         shop         blue      web      app=shop,tier=front\n"
    );
    let oper = v1::Oper {
        num_providers: 1,
        providers: vec![endpoint()],
        not_in_force: "no traffic".into(),
        ..Default::default()
    };
    let text = inspect(&services[0], oper, Data::Json).unwrap();
    assert_eq!(text, include_str!("golden/service-inspect.json"));
}

#[test]
fn cli_1_every_kind_says_what_of_it_is_not_in_force() {
    fn says<V: View>(kind: Kind) {
        let oper = v1::Oper { not_in_force: "half of it".into(), ..Default::default() };
        let view = V::from_kind(kind).unwrap();
        for data in [Data::Json, Data::Yaml] {
            let text = inspect(&view, oper.clone(), data).unwrap();
            let shown: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(shown["Oper"]["notInForce"], "half of it", "{text}");
        }
    }
    // A new kind is a compile error here, and gets a line.
    let every = |kind: Kind| match kind {
        Kind::Tenant(_) => says::<TenantView>(kind),
        Kind::Network(_) => says::<NetworkView>(kind),
        Kind::EndpointGroup(_) => says::<GroupView>(kind),
        Kind::Policy(_) => says::<PolicyView>(kind),
        Kind::Rule(_) => says::<RuleView>(kind),
        Kind::Global(_) => says::<GlobalView>(kind),
        Kind::Endpoint(_) => says::<EndpointView>(kind),
        Kind::Node(_) => says::<NodeView>(kind),
        Kind::NetProfile(_) => says::<ProfileView>(kind),
        Kind::ServiceLb(_) => says::<ServiceView>(kind),
        Kind::AppProfile(_) => says::<AppProfileView>(kind),
        Kind::Bgp(_) => says::<BgpView>(kind),
        // Leases have no view: `ip ls` lists addresses.
        Kind::AddressLease(_) => {}
    };
    for name in KindName::value_variants() {
        let text = format!("kind: {}\n", name.noun());
        let blank = manifest::read(&text).unwrap().remove(0).kind.unwrap();
        every(blank);
    }
}

#[test]
fn cli_1_a_node_is_inspected_with_its_endpoints() {
    let node = v1::NodeInfo { node_name: "node-a".into(), ..Default::default() };
    let oper = v1::Oper { num_endpoints: 1, endpoints: vec![endpoint()], ..Default::default() };
    let text = inspect(&NodeView::from_kind(Kind::Node(node)).unwrap(), oper, Data::Json).unwrap();
    assert!(text.contains("\"Oper\": {\n    \"numEndpoints\": 1,"), "{text}");
    assert!(text.contains("\"endpointID\": \"3f2a9c:eth0\""), "{text}");
}

#[test]
fn cli_1_app_profiles_and_bgp_are_printed_with_contivs_columns_and_field_names() {
    let shop = v1::AppProfile {
        tenant_name: "blue".into(),
        app_profile_name: "shop".into(),
        endpoint_groups: vec!["front".into(), "back".into()],
    };
    let profiles: Vec<AppProfileView> = views(vec![Kind::AppProfile(shop)]);
    assert_eq!(
        list(&profiles, ListForm::Table).unwrap(),
        "Tenant  AppProfile  Groups\n------  ----------  ------\nblue    shop        front,back\n"
    );
    let leaf = v1::Bgp {
        hostname: "leaf".into(),
        routerip: "10.9.0.1/24".into(),
        as_number: "65001".into(),
        neighbor_as: "65002".into(),
        neighbor: "10.9.0.2".into(),
    };
    let bgp: Vec<BgpView> = views(vec![Kind::Bgp(leaf)]);
    assert_eq!(
        list(&bgp, ListForm::Table).unwrap(),
        "HostName   RouterIP     AS       Neighbor  NeighborAS\n\
         ---------  --------     -------  --------  -------\n\
         leaf       10.9.0.1/24  65001    10.9.0.2  65002\n"
    );
    assert_eq!(
        list(&bgp, ListForm::Data(Data::Json)).unwrap(),
        "[\n  {\n    \"key\": \"leaf\",\n    \"hostname\": \"leaf\",\n    \"routerip\": \"10.9.0.1/24\",\n    \
         \"as\": \"65001\",\n    \"neighbor\": \"10.9.0.2\",\n    \"neighbor-as\": \"65002\"\n  }\n]\n"
    );
}
