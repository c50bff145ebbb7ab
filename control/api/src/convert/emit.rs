//! To the wire.

use control_model::{
    AddressLease, AppProfile, Bgp, Direction, Dscp, Endpoint, EndpointGroup, Global, Group,
    NetProfile, Network, Node, Object, Offload, OnDeny, Peer, Permit, PolicyKey, Rule, Served,
    Service, Tenant, Tracking,
};

use crate::v1;
use crate::v1::object::Kind as Wire;

/// A stored object. `vtep_ip` of endpoints and what is known of a node's connection are for whoever
/// answers a read to fill in.
#[must_use]
pub fn from_model(object: &Object) -> v1::Object {
    let kind = match object {
        Object::Tenant(o) => Wire::Tenant(tenant(o)),
        Object::Network(o) => Wire::Network(network(o)),
        Object::EndpointGroup(o) => Wire::EndpointGroup(group(o)),
        Object::Policy(o) => Wire::Policy(policy(o)),
        Object::Rule(o) => Wire::Rule(rule(o)),
        Object::Global(o) => Wire::Global(global(o)),
        Object::Endpoint(o) => Wire::Endpoint(endpoint(o)),
        Object::Node(o) => Wire::Node(node(o)),
        Object::AddressLease(o) => Wire::AddressLease(lease(o)),
        Object::NetProfile(o) => Wire::NetProfile(profile(o)),
        Object::Service(o) => Wire::ServiceLb(service(o)),
        Object::AppProfile(o) => Wire::AppProfile(app_profile(o)),
        Object::Bgp(o) => Wire::Bgp(bgp(o)),
    };
    v1::Object { kind: Some(kind) }
}

fn verdict(permit: Permit) -> String {
    match permit {
        Permit::Allow => "allow".to_owned(),
        Permit::Deny => "deny".to_owned(),
    }
}

fn offload(switch: Offload) -> String {
    match switch {
        Offload::On => "on".to_owned(),
        Offload::Off => "off".to_owned(),
    }
}

fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn texts<'a, T: ToString + 'a>(values: impl IntoIterator<Item = &'a T>) -> Vec<String> {
    values.into_iter().map(ToString::to_string).collect()
}

fn tenant(o: &Tenant) -> v1::Tenant {
    let settings = &o.settings;
    let tracking = match settings.tracking {
        Tracking::Stateful => "stateful",
        Tracking::Stateless => "stateless",
    };
    let on_deny = match settings.on_deny {
        OnDeny::Cut => "cut",
        OnDeny::Finish => "finish",
    };
    v1::Tenant {
        tenant_name: o.name.to_string(),
        default_network: text(o.default_network.as_ref()),
        default_verdict: verdict(settings.default_verdict),
        tracking: tracking.to_owned(),
        on_deny: on_deny.to_owned(),
        max_connections: Some(settings.connections_max),
        max_new_flows: Some(settings.new_flows_max),
        offload: offload(settings.offload),
        bandwidth: Some(settings.limit.bandwidth.to_string()),
        burst: Some(settings.limit.burst.kilobytes().into()),
        vrf: o.vrf.get(),
    }
}

fn network(o: &Network) -> v1::Network {
    v1::Network {
        tenant_name: o.key.tenant.to_string(),
        network_name: o.key.network.to_string(),
        nw_type: o.nw_type.name().to_owned(),
        encap: o.tag.encap().name().to_owned(),
        pkt_tag: o.tag.number(),
        subnet: o.subnet.to_string(),
        gateway: text(o.gateway),
        ipv6_subnet: text(o.subnet6),
        ipv6_gateway: text(o.gateway6),
        cfgd_tag: text(o.cfgd_tag.as_ref()),
        offload: offload(o.offload),
        bd: o.bd.get(),
    }
}

fn group(o: &EndpointGroup) -> v1::EndpointGroup {
    v1::EndpointGroup {
        tenant_name: o.spec.key.tenant.to_string(),
        group_name: o.spec.key.group.to_string(),
        network_name: o.spec.network.to_string(),
        ip_pool: text(o.spec.pool),
        ipv6_pool: text(o.spec.pool6),
        policies: texts(&o.spec.policies),
        net_profile: text(o.spec.profile.as_ref()),
        cfgd_tag: text(o.spec.cfgd_tag.as_ref()),
        group_id: o.id.get(),
    }
}

fn profile(o: &NetProfile) -> v1::NetProfile {
    v1::NetProfile {
        tenant_name: o.key.tenant.to_string(),
        profile_name: o.key.profile.to_string(),
        bandwidth: o.limit.bandwidth.to_string(),
        burst: o.limit.burst.kilobytes().into(),
        dscp: o.dscp.map_or(0, Dscp::get).into(),
        scope: o.scope.name().to_owned(),
    }
}

fn policy(o: &PolicyKey) -> v1::Policy {
    v1::Policy { tenant_name: o.tenant.to_string(), policy_name: o.policy.to_string() }
}

fn rule(o: &Rule) -> v1::Rule {
    let spec = &o.spec;
    let (peer_group, peer_network, peer_address) = match &spec.peer {
        Peer::Network(network) => (String::new(), network.to_string(), String::new()),
        Peer::Match { group, address } => (text(group.as_ref()), String::new(), text(*address)),
    };
    let mut rule = v1::Rule {
        tenant_name: spec.key.tenant.to_string(),
        policy_name: spec.key.policy.to_string(),
        rule_id: spec.key.rule.to_string(),
        priority: spec.priority.into(),
        protocol: text(spec.protocol),
        port: spec.port.map(u32::from).unwrap_or_default(),
        action: verdict(spec.permit),
        cookie: o.cookie.0,
        ..v1::Rule::default()
    };
    match spec.direction {
        Direction::In => {
            "in".clone_into(&mut rule.direction);
            rule.from_endpoint_group = peer_group;
            rule.from_network = peer_network;
            rule.from_ip_address = peer_address;
            rule.to_ip_address = text(spec.own_address);
        }
        Direction::Out => {
            "out".clone_into(&mut rule.direction);
            rule.to_endpoint_group = peer_group;
            rule.to_network = peer_network;
            rule.to_ip_address = peer_address;
        }
    }
    rule
}

fn global(o: &Global) -> v1::Global {
    v1::Global {
        name: Global::NAME.to_owned(),
        network_infra_type: Global::NETWORK_INFRA_TYPE.to_owned(),
        vlans: o.vlans.to_string(),
        vxlans: o.vxlans.to_string(),
        fwd_mode: o.fwd_mode.name().to_owned(),
        arp_mode: o.arp_mode.name().to_owned(),
        pvt_subnet: o.pvt_subnet.to_string(),
        allocation: o.allocation.name().to_owned(),
    }
}

fn endpoint(o: &Endpoint) -> v1::Endpoint {
    v1::Endpoint {
        endpoint_id: o.id.to_string(),
        tenant_name: o.network.tenant.to_string(),
        network_name: o.network.network.to_string(),
        endpoint_group: text(o.group.as_ref()),
        ip_address: o.addresses().map(|address| address.to_string()).collect(),
        mac_address: o.mac.to_string(),
        homing_host: o.host.node.to_string(),
        intf_name: o.host.intf_name.to_string(),
        vtep_ip: String::new(),
        container_id: o.host.container_id.to_string(),
        container_name: o.host.container_name.to_string(),
        labels: texts(&o.host.labels),
        running: false,
    }
}

fn node(o: &Node) -> v1::NodeInfo {
    v1::NodeInfo {
        node_name: o.name.to_string(),
        vtep_ip: text(o.vtep),
        version: o.version.to_string(),
        ..v1::NodeInfo::default()
    }
}

fn lease(o: &AddressLease) -> v1::AddressLease {
    v1::AddressLease {
        tenant_name: o.network.tenant.to_string(),
        network_name: o.network.network.to_string(),
        address: o.address.to_string(),
        owner: text(o.claim.owner.as_ref()),
        expires_at: o.expires.map_or(0, |Served(second)| second),
        leaving: o.claim.left.is_some(),
        left_group: o.claim.left.and_then(|left| left.group).map_or(0, Group::get),
        ttl_seconds: 0,
    }
}

fn service(o: &Service) -> v1::ServiceLb {
    v1::ServiceLb {
        tenant_name: o.spec.key.tenant.to_string(),
        service_name: o.spec.key.service.to_string(),
        network_name: o.spec.network.to_string(),
        ip_address: text(o.spec.address),
        selectors: texts(&o.spec.selectors),
        ports: texts(&o.spec.ports),
        service_vip: o.vip.to_string(),
    }
}

fn app_profile(o: &AppProfile) -> v1::AppProfile {
    v1::AppProfile {
        tenant_name: o.key.tenant.to_string(),
        app_profile_name: o.key.profile.to_string(),
        endpoint_groups: texts(&o.groups),
    }
}

fn bgp(o: &Bgp) -> v1::Bgp {
    v1::Bgp {
        hostname: o.host.to_string(),
        routerip: o.router.to_string(),
        as_number: o.asn.to_string(),
        neighbor_as: text(o.neighbor.map(|neighbor| neighbor.asn)),
        neighbor: text(o.neighbor.map(|neighbor| neighbor.address)),
    }
}
