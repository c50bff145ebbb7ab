//! Refusals: which field, which value, why, and what to do. Every text a user of the API can read
//! as the reason of a refusal is in one table here. Where Contiv has a text for the case it is
//! Contiv's, to the letter, because scripts match on it.

/// What kind of answer a refusal is; the API maps it to a status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The input is wrong by itself.
    Invalid,
    /// Something that it names does not exist.
    NotFound,
    /// It is there already, differently, or belongs to someone else.
    Exists,
    /// The state of other objects forbids it.
    InUse,
    /// A pool is empty.
    Exhausted,
}

/// A refused input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// The field at fault, by its JSON name.
    pub field: &'static str,
    /// What it held.
    pub value: String,
    /// Why that is refused.
    pub reason: Reason,
}

impl Refused {
    /// Refuses `value` of `field`.
    pub fn new(field: &'static str, value: &(impl ToString + ?Sized), reason: Reason) -> Self {
        Self { field, value: value.to_string(), reason }
    }

    /// What the user can do about it.
    #[must_use]
    pub const fn next_step(&self) -> &'static str {
        self.reason.next_step()
    }

    /// What kind of answer it is.
    #[must_use]
    pub const fn class(&self) -> Class {
        self.reason.class()
    }
}

// One table, so that no reason can miss its class or its next step.
macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident $({ $($field:ident: $type:ty),* })?
        => $class:ident, $text:literal, $step:literal;)*) => {
        /// Why an input is refused. The displayed text is the message of the API.
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        pub enum Reason { $(
            $(#[$doc])*
            #[error($text)]
            $variant $({ $(#[doc = "Named in the text."] $field: $type),* })?,
        )* }

        impl Reason {
            /// What kind of answer it is.
            #[must_use]
            pub const fn class(&self) -> Class {
                match self { $(Self::$variant { .. } => Class::$class,)* }
            }

            /// What the user can do about it.
            #[must_use]
            pub const fn next_step(&self) -> &'static str {
                match self { $(Self::$variant { .. } => $step,)* }
            }
        }
    };
}

reasons! {
    /// Not a name.
    BadName { len_max: usize } => Invalid,
        "a name has 1 to {len_max} letters, digits, dots and dashes and starts and ends with a letter or digit",
        "use only letters, digits, '.' and '-'";
    /// Not a profile's name.
    BadProfileName => Invalid,
        "a profile's name has 1 to 64 visible ASCII characters without ':' and '/'", "use only letters, digits, '.', '_' and '-'";
    /// Not an identifier of an endpoint or owner.
    BadIdentifier => Invalid,
        "an identifier has 1 to 255 visible ASCII characters", "remove spaces and control characters";
    /// Not a text for people.
    BadLabel => Invalid,
        "at most 255 bytes without control characters", "shorten it";
    /// A value outside a closed list.
    NotOneOf { list: &'static str } => Invalid,
        "the value is not one of: {list}", "use one of the listed values";
    /// A key with the wrong number of names.
    BadKey { form: &'static str } => Invalid,
        "the key does not have the form {form}", "join the names with colons";
    /// The request carries no object, or no kind.
    NoObject => Invalid, "no object given", "set exactly one kind of object";
    /// Objects that only netmaster makes.
    NotByUsers { maker: &'static str } => Invalid,
        "objects of this kind are made by {maker}", "do not create or update it here";
    /// A field a stored object must have.
    MissingId => Invalid, "an identifier that netmaster hands out is missing", "restore the store from a backup";
    /// An IPv6 address where there are none.
    NoIpv6 { network: String } => Invalid,
        "network {network} hands out no IPv6 addresses", "use an IPv4 address, or a network with an ipv6Subnet";
    /// IPv6 where only IPv4 is known.
    ServiceIpv6 => Invalid, "a service has an IPv4 address", "use an IPv4 address of its network";
    /// An address of the other family than was asked for.
    OtherFamily => Invalid, "the address is not of this family", "leave the family out, or name an address of it";
    /// ACI.
    AciLeftOut => Invalid, "the ACI fabric modes are not supported", "use networkInfraType default";
    /// Not an IPv4 address.
    BadAddress => Invalid, "not an IPv4 address", "write it like 10.1.1.5";
    /// Not an IPv6 address.
    BadIpv6Address => Invalid, "not an IPv6 address", "write it like 2001:db8:1::1";
    /// Not an IP address.
    BadIpAddress => Invalid, "not an IP address", "write it like 192.0.2.1";
    /// Not an address with an optional prefix length.
    BadPrefix => Invalid, "not an IPv4 address or block with a length of 1 to 32", "write it like 10.1.1.0/24 or 10.1.1.5";
    /// Not an address of either family with an optional prefix length.
    BadRulePrefix => Invalid, "not an IP address or block with a length of 1 to 32 or, with IPv6, 128",
        "write it like 10.1.1.0/24, 10.1.1.5 or 2001:db8:1::/64";
    /// Not a usable MAC.
    BadMac => Invalid, "not a unicast MAC address", "write it like 02:00:0a:01:01:05";
    /// More than one address of a family.
    TooManyAddresses => Invalid, "an endpoint has one address of each family", "ask for one of each at most";

    /// Tenant changed.
    TenantImmutable => Exists, "Cant change tenant parameters after its created",
        "change settings with `netctl tenant update`; for another default network delete the tenant first";
    /// Network changed.
    NetworkImmutable => Exists, "Cant change network parameters after its created",
        "delete the network and create it again";
    /// Rule changed.
    RuleImmutable => Exists, "can not update a rule after its created",
        "remove the rule and add it again";
    /// A group moved to another network.
    GroupNetworkImmutable => Exists, "Cannot change network association after epg is created.",
        "create another group in that network";
    /// A group's pool changed.
    GroupPoolImmutable => Exists, "Cannot change IP pool after epg is created.",
        "create another group with that pool";
    /// A service moved.
    ServiceImmutable => Exists, "the network and address of a service can't be changed",
        "delete the service and create it again";
    /// An endpoint's identity changed.
    EndpointImmutable => Exists, "the endpoint exists with another value",
        "delete the endpoint first";

    /// No tenant name given.
    NoTenant => Invalid, "Invalid tenant name", "name a tenant";
    /// No service name given.
    NoService => Invalid, "Invalid service name", "name a service";
    /// No host name given.
    NoHost => Invalid, "Invalid host name", "name a host";
    /// Unknown tenant, named by a service or application profile.
    NamedTenantNotFound { tenant: String } => NotFound, "Tenant {tenant} not found", "create the tenant first";
    /// Unknown tenant.
    TenantNotFound => NotFound, "Tenant not found", "create the tenant first";
    /// Unknown network, named by an endpoint or lease, or read or deleted.
    NetworkNotFound => NotFound, "network not found", "create the network first";
    /// Unknown network, named by a group or a service.
    NamedNetworkNotFound { network: String } => NotFound, "Network {network} not found",
        "create the network first";
    /// Unknown group.
    GroupNotFound => NotFound, "endpoint group not found", "create the group first";
    /// A group stands for its endpoints.
    GroupWithoutEndpoints => NotFound, "the endpoint group has no endpoint", "name an address instead";
    /// A group of another network.
    GroupOfOtherNetwork { network: String } => Invalid, "the endpoint group belongs to network {network}",
        "name a group of the endpoint's network";
    /// Unknown policy.
    PolicyNotFound => NotFound, "Policy not found", "create the policy first";
    /// Unknown rule.
    RuleNotFound => NotFound, "rule not found", "see `netctl policy rule-ls`";
    /// Unknown profile.
    NetprofileNotFound => NotFound, "netprofile not found",
        "see `netctl netprofile ls`, or create it first";
    /// Unknown group, named by an application profile.
    NamedGroupNotFound { group: String } => NotFound, "EndpointGroup {group} not found", "create the group first";
    /// Unknown service.
    ServiceNotFound => NotFound, "service not found", "see `netctl service ls`";
    /// Unknown application profile.
    AppProfileNotFound => NotFound, "app profile not found", "see `netctl app-profile ls`";
    /// Unknown BGP settings.
    BgpNotFound => NotFound, "Bgp config not found", "see `netctl bgp ls`";
    /// Unknown endpoint.
    EndpointNotFound => NotFound, "endpoint not found", "see `netctl endpoint ls`";
    /// Unknown node.
    NodeNotFound => NotFound, "node not found", "start netplugin on the node: it registers itself";
    /// Unknown lease.
    LeaseNotFound => NotFound, "address lease not found", "see the network's allocated addresses";
    /// Unknown network in an in-rule.
    FromNetworkNotFound => NotFound, "from Network not found", "create the network first";
    /// Unknown network in an out-rule.
    ToNetworkNotFound => NotFound, "to Network not found", "create the network first";

    /// Group and network share one namespace.
    NetworkHasGroupName { name: String } => Exists, "Network {name} conflicts with the endpointGroup name",
        "choose another group name";
    /// Group and network share one namespace.
    GroupHasNetworkName { name: String } => Exists, "EndpointGroup {name} conflicts with the network name",
        "choose another network name";
    /// Overlapping subnets inside a tenant.
    SubnetOverlap { network: String, subnet: String } => Exists,
        "network {network} conflicts with subnet {subnet}", "choose addresses that no network of the tenant has";

    /// Overlapping IPv6 subnets inside a tenant. Contiv's spelling.
    Subnet6Overlap { network: String, subnet: String } => Exists,
        "network {network} conflicts with subnetv6  {subnet}", "choose addresses that no network of the tenant has";

    /// Tenant in use.
    TenantHasAppProfiles { name: String, count: usize } => InUse, "cannot delete {name}, has {count} app profiles",
        "delete the app profiles first";
    /// Tenant in use.
    TenantHasGroups { name: String, count: usize } => InUse, "cannot delete {name} has {count} endpoint groups",
        "delete the endpoint groups first";
    /// Tenant in use.
    TenantHasPolicies { name: String, count: usize } => InUse, "cannot delete {name} has {count} policies",
        "delete the policies first";
    /// Tenant in use.
    TenantHasNetprofiles { name: String, count: usize } => InUse, "Cannot delete {name} has {count} netprofiles",
        "delete the netprofiles first";
    /// Tenant in use.
    TenantHasNetworks { name: String, count: usize } => InUse, "cannot delete {name} has {count} networks",
        "delete the networks first";
    /// The tenant that always exists.
    TenantIsDefault => InUse, "the tenant default cannot be deleted", "leave it empty";
    /// Network in use.
    NetworkHasGroups { name: String, count: usize } => InUse, "cannot delete {name} has {count} endpoint groups",
        "delete the endpoint groups first";
    /// Network in use.
    NetworkHasServices { name: String, count: usize } => InUse, "cannot delete {name} has {count} services ",
        "delete the services first";
    /// Network in use.
    NetworkHasEndpoints => InUse, "Error: Network has active endpoints", "detach the containers first";
    /// Network in use.
    NetworkHasLeases { name: String, count: usize } => InUse, "cannot delete {name} has {count} address leases",
        "release the addresses first";
    /// Group in use.
    GroupHasEndpoints { name: String } => InUse, "Error: EPG {name} has active endpoints",
        "detach the containers first";
    /// Group in use.
    GroupInAppProfile { name: String, profile: String } => InUse,
        "Cannot delete {name}, associated to appProfile {profile}", "take the group out of the app profile first";
    /// Policy in use.
    PolicyInUse => InUse, "Policy is being used", "take the policy off its endpoint groups first";
    /// Profile in use.
    NetprofileInUse => InUse, "NetProfile is being used", "take the profile off its endpoint groups first";
    /// Node in use.
    NodeHasEndpoints { name: String, count: usize } => InUse, "cannot delete {name} has {count} endpoints",
        "detach its containers; if the machine is gone, `netctl node rm --with-endpoints`";
    /// Node in use.
    NodeConnected => InUse, "the node is connected", "stop its netplugin first";
    /// Address in use.
    LeaseHasEndpoint { endpoint: String } => InUse, "the address is used by endpoint {endpoint}",
        "delete the endpoint: that releases its address";
    /// Address in use.
    LeaseHasService { service: String } => InUse, "the address is used by service {service}",
        "delete the service: that releases its address";
    /// The global object.
    GlobalPermanent => InUse, "the global object cannot be deleted", "set its fields instead";
    /// Networks depend on it.
    ForwardingInUse { networks: String } => InUse,
        "Unable to update forwarding mode due to existing {networks}", "delete the networks first";
    /// BGP settings depend on it.
    ForwardingHasBgp => InUse, "please delete existing Bgp configs", "see `netctl bgp ls`";
    /// Networks depend on it.
    PrivateSubnetInUse { networks: String } => InUse,
        "Unable to update private subnet due to existing {networks}", "delete the networks first";
    /// Tags in use would fall outside.
    TagRangeInUse { kind: &'static str } => InUse, "process failed on error checks {kind}",
        "choose a range that keeps every tag in use";

    /// In-rule mix.
    InRuleWithTo => Invalid, "can not specify 'to' parameters in incoming rule", "use 'from' parameters";
    /// In-rule mix.
    FromNetworkAndAddress => Invalid, "can not specify both from network and from ip address", "give one of them";
    /// In-rule mix.
    FromNetworkAndGroup => Invalid, "can not specify both from network and from EndpointGroup", "give one of them";
    /// Out-rule mix.
    OutRuleWithFrom => Invalid, "can not specify 'from' parameters in outgoing rule", "use 'to' parameters";
    /// Out-rule mix.
    ToNetworkAndAddress => Invalid, "can not specify both to-network and to-ip address", "give one of them";
    /// Out-rule mix.
    ToNetworkAndGroup => Invalid, "can not specify both to-network and to-EndpointGroup", "give one of them";
    /// In-rule mix.
    MixedFamilies => Invalid, "no packet has addresses of both families", "write a rule for each family";
    /// A question about policy.
    OnlyItself => Invalid, "what an address sends to itself never leaves its container", "ask about two ends";
    /// Direction.
    BadDirection => Invalid, "invalid direction for the rule", "use in or out";
    /// In-rule with to-ip.
    RuleGroupCount { rule: String, count: usize, policy: String } => InUse,
        "failed to configure {rule}, {count} endpoint groups linked to policy {policy} ",
        "link exactly one endpoint group to the policy";
    /// In-rule with to-ip.
    RuleAddressNotInGroup { rule: String, group: String } => NotFound,
        "failed to configure {rule}, ip address is not in epg {group}", "name the address of an endpoint of the group";
    /// Priority.
    BadPriority => Invalid, "a priority is 1 to 100", "choose 1 to 100; higher wins";
    /// Protocol.
    BadProtocol => Invalid, "a protocol is tcp, udp, icmp, a number 0 to 255, or empty", "use one of these";
    /// Port number.
    BadPort => Invalid, "a port is 1 to 65535, or 0 for any", "choose a port in the range";
    /// A packet without a port.
    NoPort => Invalid, "a TCP or UDP packet has a port of 1 to 65535", "name the port";
    /// Port without a protocol that has ports.
    PortWithoutProtocol => Invalid, "a port needs protocol tcp or udp", "set the protocol to tcp or udp";

    /// Bandwidth text.
    BandwidthFormat => Invalid, "a bandwidth is a number and a unit of k, m or g with b or bps behind it or nothing",
        "write it like 10 Mbps, 13mb or 4g, or leave it empty for no limit";
    /// Bandwidth.
    BandwidthHigh => Invalid, "a bandwidth is at most 10000 Gbps", "choose less, or leave it empty for no limit";
    /// Burst, at creation.
    BurstSmall => Invalid, "Invalid Burst size. burst size > 1500 bytes", "choose 2 KB or more, or 0 for the default";
    /// Burst, changed.
    UpdateBurstSmall => Invalid, "Invalid Burst size. burst size must be > 1500 bytes",
        "choose 2 KB or more, or 0 for the default";
    /// Burst.
    BurstHigh => Invalid, "a burst is at most 10486 KB", "choose 2 to 10486 KB, or 0 for the default";
    /// Code point.
    BadDscp => Invalid, "a DSCP is 0 to 63", "choose 0 to 63; 0 leaves the mark of packets";

    /// No selector, or too many.
    SelectorCount => Invalid, "Invalid selector options", "give 1 to 64 selectors like key1=value1";
    /// Selector text.
    SelectorFormat { selector: String } => Invalid,
        "Invalid selector {selector}. selector format is key1=value1", "write it like key1=value1, at most 512 bytes";
    /// Ports of a service: none, too many, or one of them wrong. Contiv's spelling.
    PortMapping => Invalid, "Invalid Port maping . Port format is - Port:TargetPort:Protocol",
        "give 1 to 64 ports like 80:8080:TCP";
    /// One port of a service, two targets.
    PortTwice { port: String } => Invalid, "the service port {port} is given twice", "give each port once";
    /// Label text.
    LabelFormat => Invalid, "a label is name=value, at most 512 bytes", "write it like app=web";
    /// Too many labels.
    LabelCount => Invalid, "an endpoint has at most 64 labels", "leave some out";
    /// Autonomous system.
    BadAsNumber => Invalid, "an AS number is 1 to 4294967295", "write it like 65001";
    /// Half a neighbour.
    HalfNeighbor => Invalid, "a neighbor has an address and an AS number", "give both or none";

    /// A key that is named more than once.
    NamedTwice => Invalid, "the object is named twice in one request", "name each object once";
    /// Too many objects.
    TooManyObjects { max: usize } => Invalid, "at most {max} objects are applied at once", "apply them in parts";

    /// Subnet text.
    SubnetFormat => Invalid, "Network subnet format not valid", "write it like 10.1.1.0/24 or 10.1.1.10-10.1.1.20/24";
    /// Subnet length.
    SubnetLength { length: u32 } => Invalid, "subnet length {length} not supported", "use a length of 8 to 31";
    /// IPv6 subnet text.
    Subnet6Format => Invalid, "Network subnet format not valid", "write it like 2001:db8:1::/64";
    /// IPv6 subnet length.
    Subnet6Length { length: u32 } => Invalid, "subnet length {length} not supported", "use a length of 1 to 127";
    /// A gateway of a family the network has no subnet of.
    GatewayWithoutSubnet => Invalid, "a gateway needs a subnet of its family", "give the IPv6 subnet too";
    /// Gateway outside.
    GatewayOutside { gateway: String, subnet: String, host: String } => Invalid,
        "hostIP {gateway} is exceeding beyond subnet {subnet}, hostID {host}", "choose an address inside the subnet";
    /// Gateway is no host address.
    GatewayReserved => Invalid, "the gateway is the subnet's network or broadcast address",
        "choose a host address of the subnet";
    /// VLAN given.
    VlanUnavailable { tag: u32 } => Exists, "requested vlan not available - vlan:{tag}",
        "choose another tag, or 0 to have one allocated";
    /// No VLAN.
    NoVlans => Exhausted, "no vlans available", "widen the vlan range with `netctl global set`";
    /// VNI given, outside the range.
    VxlanOutOfRange => Invalid, "requested vxlan is out of range", "choose a tag in the global vxlan range";
    /// VNI given, taken.
    VxlanUnavailable => Exists, "requested vxlan not available", "choose another tag, or 0 to have one allocated";
    /// No VNI.
    NoVxlans => Exhausted, "no vxlans available", "widen the vxlan range with `netctl global set`";
    /// Ids are never used again, so they can run out.
    NoIds => Exhausted, "no identifiers are left", "start with a new store";

    /// Pool of a group.
    PoolIpv6 => Invalid, "ipv6 address pool is not supported for Endpoint Groups", "use IPv4 addresses";
    /// Pool of a group.
    PoolFormat { pool: String } => Invalid, "invalid ip-pool {pool}", "write it like 10.1.1.10-10.1.1.20";
    /// Pool of a group.
    PoolOutside { pool: String, subnet: String } => Invalid,
        "bad ip-pool {pool}, EPG ip-pool must be a subset of network {subnet}", "choose host addresses of the network";
    /// Pool of a group.
    PoolTaken { address: String } => Exists, "ip address {address} is not available",
        "choose addresses that are available in the network";
    /// Asked address, taken.
    AddressTaken { address: String, owner: String } => Exists,
        "ip address {address} is not available: it belongs to {owner}", "choose another address, or none to have one allocated";
    /// Asked address, not free yet.
    AddressLeaving { address: String } => InUse,
        "ip address {address} is not available yet: nodes have still to forget the endpoint that had it",
        "try again; `netctl node ls` shows which nodes are behind";
    /// Network in use.
    NetworkLeaving { name: String, count: usize } => InUse,
        "cannot delete {name}: nodes have still to forget endpoints that had {count} of its addresses",
        "try again; `netctl node ls` shows which nodes are behind";
    /// Time to live.
    BadTtl => Invalid, "a reservation lasts 366 days at most", "give 1 to 31622400 seconds, or 0";
    /// Asked address, outside.
    AddressOutside { address: String, pool: String } => Invalid,
        "ip address {address} is not one of {pool}", "choose an address of the network or of the group's pool";
    /// Asked MAC, taken.
    MacTaken { owner: String } => Exists, "the MAC address belongs to endpoint {owner}", "choose another, or none";
    /// Pool empty.
    SubnetExhausted { subnet: String } => Exhausted, "auto allocation failed - address exhaustion in subnet {subnet}",
        "release addresses or use a larger subnet";
    /// Pool empty.
    PoolExhausted { pool: String } => Exhausted, "auto allocation failed - address exhaustion in pool {pool}",
        "release addresses or use a group without a pool";
    /// Release by someone else.
    NotOwner { owner: String } => Exists, "the address belongs to {owner}", "release it as its owner";
    /// Another machine uses the node's name.
    NodeNameTaken { vtep: String } => InUse,
        "a node of this name is connected, with tunnel end point {vtep}",
        "give every node a name of its own (--node)";
    /// Two nodes with one address.
    VtepTaken { node: String } => Exists, "the tunnel end point belongs to node {node}",
        "give each node its own --vtep; delete the other node if it is gone";
    /// Another node asked for the same host.
    NodeGone { host: String } => NotFound, "node {host} not found", "start netplugin on the node: it registers itself";

    /// Tag range text.
    RangeFormat { range: String } => Invalid, "invalid range {range}, it is not min-max", "write it like 1-4094";
    /// Tag range order.
    RangeReversed { range: String } => Invalid, "invalid range {range}, min is greater than max", "write the smaller number first";
    /// Tag range low end.
    RangeLow { range: String } => Invalid, "invalid range {range}, values less than 1", "start at 1 or above";
    /// VLAN range high end.
    VlanRangeHigh { range: String } => Invalid, "invalid range {range}, vlan values exceed 4095 max allowed", "end at 4094 or below";
    /// VNI range high end.
    VxlanRangeHigh { range: String } => Invalid, "invalid range {range}, vxlan values exceed 16777215 max allowed", "end at 16777215 or below";
    /// Private subnet.
    PrivateSubnetFormat => Invalid, "the private subnet must be an IPv4 /16", "write it like 172.19.0.0/16";
    /// Only one global object.
    GlobalName => Invalid, "the global object has the name global", "use the name global";
}
