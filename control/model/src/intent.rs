//! The whole configuration as stored: what netmaster keeps and every node receives. It accepts any
//! stored object in any order; references are checked by [`crate::Ledger`] before they get here, and
//! what does not resolve compiles to nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::app_profile::AppProfile;
use crate::bgp::Bgp;
use crate::endpoint::{AddressLease, Endpoint, EndpointSpec, LeaseSpec, Node};
use crate::global::{Global, GlobalSpec};
use crate::group::{EndpointGroup, GroupSpec};
use crate::key::{
    AppProfileKey, GroupKey, Key, Kind, LeaseKey, NetworkKey, PolicyKey, ProfileKey, RuleKey,
    ServiceKey,
};
use crate::name::{EndpointId, HostName, NetworkName, NodeName, TenantName};
use crate::network::{Network, NetworkSpec};
use crate::profile::NetProfile;
use crate::rule::{Rule, RuleSpec};
use crate::service::{Service, ServiceSpec};
use crate::tenant::{Tenant, TenantSpec};

/// Any stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A tenant.
    Tenant(Tenant),
    /// A network.
    Network(Network),
    /// An endpoint group.
    EndpointGroup(EndpointGroup),
    /// A policy: nothing but its rules and who uses it.
    Policy(PolicyKey),
    /// A rule.
    Rule(Rule),
    /// The global settings.
    Global(Global),
    /// An endpoint.
    Endpoint(Endpoint),
    /// A node.
    Node(Node),
    /// A reserved address.
    AddressLease(AddressLease),
    /// A net profile.
    NetProfile(NetProfile),
    /// A service.
    Service(Service),
    /// An application profile.
    AppProfile(AppProfile),
    /// A host's BGP settings.
    Bgp(Bgp),
}

impl Object {
    /// Its identity.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Tenant(o) => Key::Tenant(o.name.clone()),
            Self::Network(o) => Key::Network(o.key.clone()),
            Self::EndpointGroup(o) => Key::EndpointGroup(o.spec.key.clone()),
            Self::Policy(key) => Key::Policy(key.clone()),
            Self::Rule(o) => Key::Rule(o.spec.key.clone()),
            Self::Global(_) => Key::Global,
            Self::Endpoint(o) => Key::Endpoint(o.id.clone()),
            Self::Node(o) => Key::Node(o.name.clone()),
            Self::AddressLease(o) => Key::AddressLease(o.key()),
            Self::NetProfile(o) => Key::NetProfile(o.key.clone()),
            Self::Service(o) => Key::Service(o.spec.key.clone()),
            Self::AppProfile(o) => Key::AppProfile(o.key.clone()),
            Self::Bgp(o) => Key::Bgp(o.host.clone()),
        }
    }

    /// The tenant it belongs to.
    #[must_use]
    pub const fn tenant(&self) -> Option<&TenantName> {
        match self {
            Self::Tenant(o) => Some(&o.name),
            Self::Network(o) => Some(&o.key.tenant),
            Self::EndpointGroup(o) => Some(&o.spec.key.tenant),
            Self::Policy(key) => Some(&key.tenant),
            Self::Rule(o) => Some(&o.spec.key.tenant),
            Self::Endpoint(o) => Some(&o.network.tenant),
            Self::AddressLease(o) => Some(&o.network.tenant),
            Self::NetProfile(o) => Some(&o.key.tenant),
            Self::Service(o) => Some(&o.spec.key.tenant),
            Self::AppProfile(o) => Some(&o.key.tenant),
            Self::Global(_) | Self::Node(_) | Self::Bgp(_) => None,
        }
    }
}

/// Any object as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// A tenant.
    Tenant(TenantSpec),
    /// A network.
    Network(NetworkSpec),
    /// An endpoint group.
    EndpointGroup(GroupSpec),
    /// A policy.
    Policy(PolicyKey),
    /// A rule.
    Rule(RuleSpec),
    /// The global settings.
    Global(GlobalSpec),
    /// An endpoint.
    Endpoint(EndpointSpec),
    /// A node.
    Node(Node),
    /// A reserved address.
    AddressLease(LeaseSpec),
    /// A net profile.
    NetProfile(NetProfile),
    /// A service.
    Service(ServiceSpec),
    /// An application profile.
    AppProfile(AppProfile),
    /// A host's BGP settings.
    Bgp(Bgp),
}

impl Spec {
    /// The identity of what is asked for; `None`: a reservation whose address is to be chosen.
    #[must_use]
    pub fn key(&self) -> Option<Key> {
        Some(match self {
            Self::Tenant(o) => Key::Tenant(o.name.clone()),
            Self::Network(o) => Key::Network(o.key.clone()),
            Self::EndpointGroup(o) => Key::EndpointGroup(o.key.clone()),
            Self::Policy(key) => Key::Policy(key.clone()),
            Self::Rule(o) => Key::Rule(o.key.clone()),
            Self::Global(_) => Key::Global,
            Self::Endpoint(o) => Key::Endpoint(o.id.clone()),
            Self::Node(o) => Key::Node(o.name.clone()),
            Self::AddressLease(o) => Key::AddressLease(LeaseKey {
                network: o.network.clone(),
                address: o.wanted.address()?,
            }),
            Self::NetProfile(o) => Key::NetProfile(o.key.clone()),
            Self::Service(o) => Key::Service(o.key.clone()),
            Self::AppProfile(o) => Key::AppProfile(o.key.clone()),
            Self::Bgp(o) => Key::Bgp(o.host.clone()),
        })
    }
}

impl Spec {
    /// Whether netmaster is to choose an address for it.
    #[must_use]
    pub fn chooses_address(&self) -> bool {
        match self {
            Self::Endpoint(o) => o.wanted.v4.is_none(),
            Self::AddressLease(o) => o.wanted.address().is_none(),
            Self::Service(o) => o.address.is_none(),
            Self::Tenant(_)
            | Self::Network(_)
            | Self::EndpointGroup(_)
            | Self::Policy(_)
            | Self::Rule(_)
            | Self::Global(_)
            | Self::Node(_)
            | Self::NetProfile(_)
            | Self::AppProfile(_)
            | Self::Bgp(_) => false,
        }
    }
}

/// All stored objects, by key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Intent {
    pub(crate) global: Global,
    pub(crate) tenants: BTreeMap<TenantName, Tenant>,
    pub(crate) networks: BTreeMap<NetworkKey, Network>,
    pub(crate) groups: BTreeMap<GroupKey, EndpointGroup>,
    pub(crate) policies: BTreeSet<PolicyKey>,
    pub(crate) rules: BTreeMap<RuleKey, Rule>,
    pub(crate) endpoints: BTreeMap<EndpointId, Endpoint>,
    pub(crate) nodes: BTreeMap<NodeName, Node>,
    pub(crate) leases: BTreeMap<LeaseKey, AddressLease>,
    pub(crate) profiles: BTreeMap<ProfileKey, NetProfile>,
    pub(crate) services: BTreeMap<ServiceKey, Service>,
    pub(crate) app_profiles: BTreeMap<AppProfileKey, AppProfile>,
    pub(crate) bgps: BTreeMap<HostName, Bgp>,
}

impl Intent {
    /// Inserts a stored object, or replaces the one with the same key.
    pub fn put(&mut self, object: Object) {
        match object {
            Object::Tenant(o) => drop(self.tenants.insert(o.name.clone(), o)),
            Object::Network(o) => drop(self.networks.insert(o.key.clone(), o)),
            Object::EndpointGroup(o) => drop(self.groups.insert(o.spec.key.clone(), o)),
            Object::Policy(key) => drop(self.policies.insert(key)),
            Object::Rule(o) => drop(self.rules.insert(o.spec.key.clone(), o)),
            Object::Global(o) => self.global = o,
            Object::Endpoint(o) => drop(self.endpoints.insert(o.id.clone(), o)),
            Object::Node(o) => drop(self.nodes.insert(o.name.clone(), o)),
            Object::AddressLease(o) => drop(self.leases.insert(o.key(), o)),
            Object::NetProfile(o) => drop(self.profiles.insert(o.key.clone(), o)),
            Object::Service(o) => drop(self.services.insert(o.spec.key.clone(), o)),
            Object::AppProfile(o) => drop(self.app_profiles.insert(o.key.clone(), o)),
            Object::Bgp(o) => drop(self.bgps.insert(o.host.clone(), o)),
        }
    }

    /// Removes an object; one that is not there is fine. The global settings become the default.
    pub fn remove(&mut self, key: &Key) {
        match key {
            Key::Tenant(name) => drop(self.tenants.remove(name)),
            Key::Network(key) => drop(self.networks.remove(key)),
            Key::EndpointGroup(key) => drop(self.groups.remove(key)),
            Key::Policy(key) => drop(self.policies.remove(key)),
            Key::Rule(key) => drop(self.rules.remove(key)),
            Key::Global => self.global = Global::default(),
            Key::Endpoint(id) => drop(self.endpoints.remove(id)),
            Key::Node(name) => drop(self.nodes.remove(name)),
            Key::AddressLease(key) => drop(self.leases.remove(key)),
            Key::NetProfile(key) => drop(self.profiles.remove(key)),
            Key::Service(key) => drop(self.services.remove(key)),
            Key::AppProfile(key) => drop(self.app_profiles.remove(key)),
            Key::Bgp(host) => drop(self.bgps.remove(host)),
        }
    }

    /// Forgets a tenant and all that is of it.
    pub fn forget_tenant(&mut self, name: &TenantName) {
        self.tenants.remove(name);
        self.networks.retain(|key, _| key.tenant != *name);
        self.groups.retain(|key, _| key.tenant != *name);
        self.policies.retain(|key| key.tenant != *name);
        self.rules.retain(|key, _| key.tenant != *name);
        self.endpoints.retain(|_, endpoint| endpoint.network.tenant != *name);
        self.leases.retain(|key, _| key.network.tenant != *name);
        self.profiles.retain(|key, _| key.tenant != *name);
        self.services.retain(|key, _| key.tenant != *name);
        self.app_profiles.retain(|key, _| key.tenant != *name);
    }

    /// The object with this key.
    #[must_use]
    pub fn object(&self, key: &Key) -> Option<Object> {
        match key {
            Key::Tenant(name) => self.tenants.get(name).cloned().map(Object::Tenant),
            Key::Network(key) => self.networks.get(key).cloned().map(Object::Network),
            Key::EndpointGroup(key) => self.groups.get(key).cloned().map(Object::EndpointGroup),
            Key::Policy(key) => self.policies.get(key).cloned().map(Object::Policy),
            Key::Rule(key) => self.rules.get(key).cloned().map(Object::Rule),
            Key::Global => Some(Object::Global(self.global.clone())),
            Key::Endpoint(id) => self.endpoints.get(id).cloned().map(Object::Endpoint),
            Key::Node(name) => self.nodes.get(name).cloned().map(Object::Node),
            Key::AddressLease(key) => self.leases.get(key).cloned().map(Object::AddressLease),
            Key::NetProfile(key) => self.profiles.get(key).cloned().map(Object::NetProfile),
            Key::Service(key) => self.services.get(key).cloned().map(Object::Service),
            Key::AppProfile(key) => self.app_profiles.get(key).cloned().map(Object::AppProfile),
            Key::Bgp(host) => self.bgps.get(host).cloned().map(Object::Bgp),
        }
    }

    /// Every object of a kind, by key.
    #[must_use]
    pub fn objects(&self, kind: Kind) -> Vec<Object> {
        match kind {
            Kind::Tenant => self.tenants.values().cloned().map(Object::Tenant).collect(),
            Kind::Network => self.networks.values().cloned().map(Object::Network).collect(),
            Kind::EndpointGroup => {
                self.groups.values().cloned().map(Object::EndpointGroup).collect()
            }
            Kind::Policy => self.policies.iter().cloned().map(Object::Policy).collect(),
            Kind::Rule => self.rules.values().cloned().map(Object::Rule).collect(),
            Kind::Global => vec![Object::Global(self.global.clone())],
            Kind::Endpoint => self.endpoints.values().cloned().map(Object::Endpoint).collect(),
            Kind::Node => self.nodes.values().cloned().map(Object::Node).collect(),
            Kind::AddressLease => self.leases.values().cloned().map(Object::AddressLease).collect(),
            Kind::NetProfile => self.profiles.values().cloned().map(Object::NetProfile).collect(),
            Kind::Service => self.services.values().cloned().map(Object::Service).collect(),
            Kind::AppProfile => {
                self.app_profiles.values().cloned().map(Object::AppProfile).collect()
            }
            Kind::Bgp => self.bgps.values().cloned().map(Object::Bgp).collect(),
        }
    }

    /// The global settings.
    #[must_use]
    pub const fn global(&self) -> &Global {
        &self.global
    }

    /// A tenant.
    #[must_use]
    pub fn tenant(&self, name: &TenantName) -> Option<&Tenant> {
        self.tenants.get(name)
    }

    /// A network.
    #[must_use]
    pub fn network(&self, key: &NetworkKey) -> Option<&Network> {
        self.networks.get(key)
    }

    /// A group.
    #[must_use]
    pub fn group(&self, key: &GroupKey) -> Option<&EndpointGroup> {
        self.groups.get(key)
    }

    /// A node.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// An endpoint.
    #[must_use]
    pub fn endpoint(&self, id: &EndpointId) -> Option<&Endpoint> {
        self.endpoints.get(id)
    }

    /// Every tenant, by name.
    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.values()
    }

    /// Every endpoint, by id.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.values()
    }

    /// Every network, by key.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.networks.values()
    }

    /// Every network of a tenant, by name.
    pub fn networks_of<'a>(
        &'a self,
        tenant: &'a TenantName,
    ) -> impl Iterator<Item = &'a Network> + 'a {
        let first = NetworkKey::new(tenant.clone(), NetworkName::before_all());
        let from = self.networks.range(first..).map(|(_, network)| network);
        from.take_while(move |network| network.key.tenant == *tenant)
    }

    /// Every group, by key.
    pub fn groups(&self) -> impl Iterator<Item = &EndpointGroup> {
        self.groups.values()
    }

    /// Every rule, by key.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.values()
    }

    /// Every policy, by key.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyKey> {
        self.policies.iter()
    }

    /// Every node, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Every address that is reserved or on its way back, by key.
    pub fn leases(&self) -> impl Iterator<Item = &AddressLease> {
        self.leases.values()
    }

    /// What keeps an address, beside an endpoint.
    #[must_use]
    pub fn lease(&self, key: &LeaseKey) -> Option<&AddressLease> {
        self.leases.get(key)
    }

    /// Every net profile, by key.
    pub fn profiles(&self) -> impl Iterator<Item = &NetProfile> {
        self.profiles.values()
    }

    /// Every service, by key.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// Every application profile, by key.
    pub fn app_profiles(&self) -> impl Iterator<Item = &AppProfile> {
        self.app_profiles.values()
    }

    /// The endpoints of its tenant that have every label a service selects by.
    pub fn providers<'a>(
        &'a self,
        service: &'a ServiceSpec,
    ) -> impl Iterator<Item = &'a Endpoint> + 'a {
        self.endpoints.values().filter(|endpoint| {
            endpoint.network.tenant == service.key.tenant
                && service.selectors.is_subset(&endpoint.host.labels)
        })
    }

    /// The groups a policy is attached to.
    pub fn groups_of<'a>(
        &'a self,
        policy: &'a PolicyKey,
    ) -> impl Iterator<Item = &'a EndpointGroup> + 'a {
        self.groups.values().filter(move |group| {
            group.spec.key.tenant == policy.tenant && group.spec.policies.contains(&policy.policy)
        })
    }

    /// The group of an endpoint, when it has one that exists.
    #[must_use]
    pub fn group_of(&self, endpoint: &Endpoint) -> Option<&EndpointGroup> {
        let group = endpoint.group.clone()?;
        self.groups.get(&GroupKey { tenant: endpoint.network.tenant.clone(), group })
    }
}
