//! From the wire.

use control_model::{
    AddressLease, AppProfile, AppProfileKey, AppProfileName, AsNumber, Bandwidth, Bd, Bgp, Burst,
    CfgdTag, Claim, ContainerLabel, Departed, Encap, Endpoint, EndpointGroup, EndpointId,
    EndpointSpec, Global, GlobalSpec, Group, GroupKey, GroupName, GroupSpec, Host, HostName, Label,
    LeaseSpec, NetProfile, NetworkKey, NetworkName, NetworkSpec, Node, NodeName, NwType, Object,
    Owner, PolicyKey, PolicyName, ProfileKey, ProfileName, RateLimit, Reason, Refused, Rule,
    RuleId, RuleKey, RuleName, RuleSpec, RuleText, Scope, Served, Service, ServiceKey, ServiceName,
    ServiceSpec, Spec, Subnet, Tag, Tenant, TenantChange, TenantName, TenantSettings, TenantSpec,
    Ttl, Vrf, WantedAddress, WantedAddresses, parse_offload,
};

use crate::v1;
use crate::v1::object::Kind as Wire;

/// What a user asks for.
///
/// # Errors
/// [`Refused`] with the field at fault.
pub fn to_spec(object: &v1::Object) -> Result<Spec, Refused> {
    Ok(match kind_of(object)? {
        Wire::Tenant(o) => Spec::Tenant(tenant(o)?),
        Wire::Network(o) => Spec::Network(network(o)?),
        Wire::EndpointGroup(o) => Spec::EndpointGroup(group(o)?),
        Wire::Policy(o) => Spec::Policy(policy(o)?),
        Wire::Rule(o) => Spec::Rule(rule(o)?),
        Wire::Global(o) => Spec::Global(global(o)?),
        Wire::Endpoint(o) => Spec::Endpoint(endpoint(o)?),
        Wire::Node(o) => Spec::Node(node(o)?),
        Wire::AddressLease(o) => Spec::AddressLease(lease(o)?),
        Wire::NetProfile(o) => Spec::NetProfile(profile(o)?),
        Wire::ServiceLb(o) => Spec::Service(service(o)?),
        Wire::AppProfile(o) => Spec::AppProfile(app_profile(o)?),
        Wire::Bgp(o) => Spec::Bgp(bgp(o)?),
    })
}

/// A stored object.
///
/// # Errors
/// [`Refused`] with the field at fault, also when an identifier is missing.
pub fn to_model(object: &v1::Object) -> Result<Object, Refused> {
    Ok(match kind_of(object)? {
        Wire::Tenant(o) => {
            let TenantSpec { name, default_network, change } = tenant(o)?;
            let settings = TenantSettings::default().changed_by(&change);
            let vrf = given("vrf", o.vrf, Vrf::new)?;
            Object::Tenant(Tenant { name, default_network, settings, vrf })
        }
        Wire::Network(o) => {
            let spec = network(o)?;
            let tag = spec.tag.ok_or_else(|| missing("pktTag", o.pkt_tag))?;
            Object::Network(spec.placed(tag, given("bd", o.bd, Bd::new)?))
        }
        Wire::EndpointGroup(o) => {
            let id = given("groupId", o.group_id, Group::new)?;
            Object::EndpointGroup(EndpointGroup { spec: group(o)?, id })
        }
        Wire::Policy(o) => Object::Policy(policy(o)?),
        Wire::Rule(o) if o.cookie == 0 => return Err(missing("cookie", 0)),
        Wire::Rule(o) => Object::Rule(Rule { spec: rule(o)?, cookie: RuleId(o.cookie) }),
        Wire::Global(o) => Object::Global(Global::default().changed_by(&global(o)?)),
        Wire::Endpoint(o) => {
            let EndpointSpec { id, network, group, wanted, mac, host, running: _ } = endpoint(o)?;
            let address = wanted.v4.ok_or_else(|| missing("ipAddress", 0))?;
            let mac = mac.ok_or_else(|| missing("macAddress", 0))?;
            let address6 = wanted.v6;
            Object::Endpoint(Endpoint { id, network, group, address, address6, mac, host })
        }
        Wire::Node(o) => Object::Node(node(o)?),
        Wire::AddressLease(o) => {
            let LeaseSpec { network, group: _, wanted, owner, ttl: _ } = lease(o)?;
            let address = wanted.address().ok_or_else(|| missing("address", 0))?;
            let group = (o.left_group != 0).then(|| given("leftGroup", o.left_group, Group::new));
            let left = Departed { group: group.transpose()? };
            let claim = Claim { owner, left: o.leaving.then_some(left) };
            let expires = (o.expires_at != 0).then_some(Served(o.expires_at));
            Object::AddressLease(AddressLease { network, address, claim, expires })
        }
        Wire::NetProfile(o) => Object::NetProfile(profile(o)?),
        Wire::ServiceLb(o) => {
            let vip = ServiceSpec::parse_address("serviceVip", &o.service_vip)?;
            let vip = vip.ok_or_else(|| missing("serviceVip", 0))?;
            Object::Service(Service { spec: service(o)?, vip })
        }
        Wire::AppProfile(o) => Object::AppProfile(app_profile(o)?),
        Wire::Bgp(o) => Object::Bgp(bgp(o)?),
    })
}

fn kind_of(object: &v1::Object) -> Result<&Wire, Refused> {
    object.kind.as_ref().ok_or_else(|| Refused::new("object", "", Reason::NoObject))
}

/// An identifier handed out by netmaster; it counts from 1, so that 0 is a field left out.
fn given<T, E>(
    field: &'static str,
    number: u32,
    new: impl Fn(u32) -> Result<T, E>,
) -> Result<T, Refused> {
    let checked = (number != 0).then(|| new(number).ok()).flatten();
    checked.ok_or_else(|| missing(field, number))
}

fn missing(field: &'static str, value: u32) -> Refused {
    Refused::new(field, &value, Reason::MissingId)
}

fn tenant(o: &v1::Tenant) -> Result<TenantSpec, Refused> {
    let bandwidth = o.bandwidth.as_deref();
    Ok(TenantSpec {
        name: TenantName::parse("tenantName", &o.tenant_name)?,
        default_network: NetworkName::parse_optional("defaultNetwork", &o.default_network)?,
        change: TenantChange {
            default_verdict: TenantChange::parse_verdict("defaultVerdict", &o.default_verdict)?,
            tracking: TenantChange::parse_tracking("tracking", &o.tracking)?,
            on_deny: TenantChange::parse_on_deny("onDeny", &o.on_deny)?,
            connections_max: o.max_connections,
            new_flows_max: o.max_new_flows,
            offload: parse_offload("offload", &o.offload)?,
            bandwidth: bandwidth.map(|text| Bandwidth::parse("bandwidth", text)).transpose()?,
            burst: o.burst.map(|kilobytes| Burst::new("burst", kilobytes)).transpose()?,
        },
    })
}

fn profile(o: &v1::NetProfile) -> Result<NetProfile, Refused> {
    Ok(NetProfile {
        key: ProfileKey {
            tenant: TenantName::parse("tenantName", &o.tenant_name)?,
            profile: ProfileName::parse("profileName", &o.profile_name)?,
        },
        limit: RateLimit {
            bandwidth: Bandwidth::parse("bandwidth", &o.bandwidth)?,
            burst: Burst::new("burst", o.burst)?,
        },
        dscp: NetProfile::parse_dscp("DSCP", o.dscp)?,
        scope: Scope::parse("scope", &o.scope)?,
    })
}

fn network_key(tenant: &str, network: &str) -> Result<NetworkKey, Refused> {
    Ok(NetworkKey::new(
        TenantName::parse("tenantName", tenant)?,
        NetworkName::parse("networkName", network)?,
    ))
}

fn network(o: &v1::Network) -> Result<NetworkSpec, Refused> {
    let key = network_key(&o.tenant_name, &o.network_name)?;
    let encap = Encap::parse("encap", &o.encap)?;
    let (subnet6, gateway6) = NetworkSpec::parse_ipv6(&o.ipv6_subnet, &o.ipv6_gateway)?;
    let subnet = Subnet::parse("subnet", &o.subnet)?;
    let has_gateway = !o.gateway.is_empty();
    let has_tag = o.pkt_tag != 0;
    Ok(NetworkSpec {
        key,
        nw_type: NwType::parse("nwType", &o.nw_type)?,
        encap,
        tag: has_tag.then(|| Tag::new("pktTag", encap, o.pkt_tag)).transpose()?,
        subnet,
        gateway: has_gateway.then(|| subnet.parse_gateway("gateway", &o.gateway)).transpose()?,
        subnet6,
        gateway6,
        cfgd_tag: CfgdTag::parse_optional("cfgdTag", &o.cfgd_tag)?,
        offload: parse_offload("offload", &o.offload)?,
    })
}

fn group(o: &v1::EndpointGroup) -> Result<GroupSpec, Refused> {
    Ok(GroupSpec {
        key: GroupKey {
            tenant: TenantName::parse("tenantName", &o.tenant_name)?,
            group: GroupName::parse("groupName", &o.group_name)?,
        },
        network: NetworkName::parse("networkName", &o.network_name)?,
        pool: GroupSpec::parse_pool("ipPool", &o.ip_pool)?,
        pool6: GroupSpec::parse_pool6("ipv6Pool", &o.ipv6_pool)?,
        policies: GroupSpec::parse_policies("policies", &o.policies)?,
        profile: ProfileName::parse_optional("netProfile", &o.net_profile)?,
        cfgd_tag: CfgdTag::parse_optional("cfgdTag", &o.cfgd_tag)?,
    })
}

fn policy(o: &v1::Policy) -> Result<PolicyKey, Refused> {
    Ok(PolicyKey {
        tenant: TenantName::parse("tenantName", &o.tenant_name)?,
        policy: PolicyName::parse("policyName", &o.policy_name)?,
    })
}

fn rule(o: &v1::Rule) -> Result<RuleSpec, Refused> {
    let key = RuleKey {
        tenant: TenantName::parse("tenantName", &o.tenant_name)?,
        policy: PolicyName::parse("policyName", &o.policy_name)?,
        rule: RuleName::parse("ruleId", &o.rule_id)?,
    };
    let text = RuleText {
        direction: &o.direction,
        priority: o.priority,
        from_group: &o.from_endpoint_group,
        to_group: &o.to_endpoint_group,
        from_network: &o.from_network,
        to_network: &o.to_network,
        from_address: &o.from_ip_address,
        to_address: &o.to_ip_address,
        protocol: &o.protocol,
        port: o.port,
        action: &o.action,
    };
    RuleSpec::parse(key, &text)
}

fn global(o: &v1::Global) -> Result<GlobalSpec, Refused> {
    if !o.name.is_empty() && o.name != Global::NAME {
        return Err(Refused::new("name", &o.name, Reason::GlobalName));
    }
    GlobalSpec::parse(&o.vlans, &o.vxlans, &o.pvt_subnet)?
        .with_modes(&o.network_infra_type, &o.fwd_mode, &o.arp_mode)?
        .with_allocation("allocation", &o.allocation)
}

/// `vtep_ip` is the node's: read from there, ignored here.
fn endpoint(o: &v1::Endpoint) -> Result<EndpointSpec, Refused> {
    Ok(EndpointSpec {
        id: EndpointId::parse("endpointID", &o.endpoint_id)?,
        network: network_key(&o.tenant_name, &o.network_name)?,
        group: GroupName::parse_optional("endpointGroup", &o.endpoint_group)?,
        wanted: WantedAddresses::parse("ipAddress", &o.ip_address)?,
        mac: EndpointSpec::parse_mac("macAddress", &o.mac_address)?,
        host: Host {
            node: NodeName::parse("homingHost", &o.homing_host)?,
            intf_name: Label::parse("intfName", &o.intf_name)?,
            container_id: Label::parse("containerID", &o.container_id)?,
            container_name: Label::parse("containerName", &o.container_name)?,
            labels: ContainerLabel::parse_all("labels", &o.labels)?,
        },
        running: o.running,
    })
}

fn node(o: &v1::NodeInfo) -> Result<Node, Refused> {
    Ok(Node {
        name: NodeName::parse("nodeName", &o.node_name)?,
        vtep: Node::parse_vtep("vtepIP", &o.vtep_ip)?,
        version: Label::parse("version", &o.version)?,
    })
}

fn lease(o: &v1::AddressLease) -> Result<LeaseSpec, Refused> {
    let owner = Owner::parse_optional("owner", &o.owner)?;
    Ok(LeaseSpec {
        network: network_key(&o.tenant_name, &o.network_name)?,
        group: None,
        wanted: WantedAddress::parse("address", &o.address)?,
        ttl: Ttl::parse("ttlSeconds", o.ttl_seconds, owner.as_ref())?,
        owner,
    })
}

fn service(o: &v1::ServiceLb) -> Result<ServiceSpec, Refused> {
    Ok(ServiceSpec {
        key: ServiceKey {
            tenant: TenantName::parse("tenantName", &o.tenant_name)?,
            service: ServiceName::parse("serviceName", &o.service_name)?,
        },
        network: NetworkName::parse("networkName", &o.network_name)?,
        address: ServiceSpec::parse_address("ipAddress", &o.ip_address)?,
        selectors: ServiceSpec::parse_selectors("selectors", &o.selectors)?,
        ports: ServiceSpec::parse_ports("ports", &o.ports)?,
    })
}

fn app_profile(o: &v1::AppProfile) -> Result<AppProfile, Refused> {
    Ok(AppProfile {
        key: AppProfileKey {
            tenant: TenantName::parse("tenantName", &o.tenant_name)?,
            profile: AppProfileName::parse("appProfileName", &o.app_profile_name)?,
        },
        groups: AppProfile::parse_groups("endpointGroups", &o.endpoint_groups)?,
    })
}

fn bgp(o: &v1::Bgp) -> Result<Bgp, Refused> {
    Ok(Bgp {
        host: HostName::parse("hostname", &o.hostname)?,
        router: Bgp::parse_router("routerip", &o.routerip)?,
        asn: AsNumber::parse("as", &o.as_number)?,
        neighbor: Bgp::parse_neighbor(&o.neighbor, &o.neighbor_as)?,
    })
}
