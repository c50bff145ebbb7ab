//! Identities of objects: names joined with colons, as users and the API write them.

use std::fmt;
use std::net::IpAddr;

use crate::global::Global;
use crate::name::{
    AppProfileName, EndpointId, GroupName, HostName, NetworkName, NodeName, PolicyName,
    ProfileName, RuleName, ServiceName, TenantName,
};
use crate::refusal::{Reason, Refused};

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A tenant.
    Tenant,
    /// A network.
    Network,
    /// An endpoint group.
    EndpointGroup,
    /// A policy.
    Policy,
    /// A rule.
    Rule,
    /// The global settings.
    Global,
    /// An endpoint.
    Endpoint,
    /// A node.
    Node,
    /// A reserved address.
    AddressLease,
    /// A net profile.
    NetProfile,
    /// A service.
    Service,
    /// An application profile.
    AppProfile,
    /// A host's BGP settings.
    Bgp,
}

impl Kind {
    /// Every kind; what an object names comes before it.
    pub const ALL: [Self; 13] = [
        Self::Global,
        Self::Node,
        Self::Tenant,
        Self::Network,
        Self::Policy,
        Self::Rule,
        Self::NetProfile,
        Self::EndpointGroup,
        Self::AppProfile,
        Self::Service,
        Self::Bgp,
        Self::AddressLease,
        Self::Endpoint,
    ];

    /// The word for it in keys of the store; never changed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Network => "network",
            Self::EndpointGroup => "group",
            Self::Policy => "policy",
            Self::Rule => "rule",
            Self::Global => "global",
            Self::Endpoint => "endpoint",
            Self::Node => "node",
            Self::AddressLease => "lease",
            Self::NetProfile => "netprofile",
            Self::Service => "service",
            Self::AppProfile => "appprofile",
            Self::Bgp => "bgp",
        }
    }
}

macro_rules! joined_key {
    ($(#[$doc:meta])* $key:ident { $first:ident: $first_type:ty $(, $part:ident: $part_type:ty)* },
     $form:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $key {
            /// Its first part.
            pub $first: $first_type,
            $(#[doc = "Its next part."] pub $part: $part_type,)*
        }

        impl $key {
            /// Checks a key of names joined with colons.
            ///
            /// # Errors
            /// [`Refused`] when a part is missing, left over or no name.
            pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
                let refuse = || Refused::new(field, text, Reason::BadKey { form: $form });
                let mut parts = text.split(':');
                let $first = <$first_type>::parse(field, parts.next().ok_or_else(refuse)?)?;
                $(let $part = <$part_type>::parse(field, parts.next().ok_or_else(refuse)?)?;)*
                if parts.next().is_some() { Err(refuse()) } else { Ok(Self { $first $(, $part)* }) }
            }
        }

        impl fmt::Display for $key {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.$first)?;
                $(write!(f, ":{}", self.$part)?;)*
                Ok(())
            }
        }
    };
}

joined_key!(
    /// `tenant:network`
    NetworkKey { tenant: TenantName, network: NetworkName }, "tenant:network"
);
joined_key!(
    /// `tenant:group`
    GroupKey { tenant: TenantName, group: GroupName }, "tenant:group"
);
joined_key!(
    /// `tenant:policy`
    PolicyKey { tenant: TenantName, policy: PolicyName }, "tenant:policy"
);
joined_key!(
    /// `tenant:policy:rule`
    RuleKey { tenant: TenantName, policy: PolicyName, rule: RuleName }, "tenant:policy:rule"
);

joined_key!(
    /// `tenant:profile`
    ProfileKey { tenant: TenantName, profile: ProfileName }, "tenant:profile"
);

joined_key!(
    /// `tenant:service`
    ServiceKey { tenant: TenantName, service: ServiceName }, "tenant:service"
);
joined_key!(
    /// `tenant:app-profile`
    AppProfileKey { tenant: TenantName, profile: AppProfileName }, "tenant:app-profile"
);

impl RuleKey {
    /// The policy it belongs to.
    #[must_use]
    pub fn policy_key(&self) -> PolicyKey {
        PolicyKey { tenant: self.tenant.clone(), policy: self.policy.clone() }
    }
}

/// `tenant:network:address`
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseKey {
    /// The network.
    pub network: NetworkKey,
    /// The address.
    pub address: IpAddr,
}

impl LeaseKey {
    /// Checks a key.
    ///
    /// # Errors
    /// [`Refused`] when a part is missing, left over or wrong.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
        let refuse = |reason| Refused::new(field, text, reason);
        let bad = || refuse(Reason::BadKey { form: "tenant:network:address" });
        // IPv6 addresses have colons, names have none.
        let (tenant, rest) = text.split_once(':').ok_or_else(bad)?;
        let (network, address) = rest.split_once(':').ok_or_else(bad)?;
        let network = NetworkKey {
            tenant: TenantName::parse(field, tenant)?,
            network: NetworkName::parse(field, network)?,
        };
        let address = address.parse().map_err(|_not_an_address| refuse(Reason::BadIpAddress))?;
        Ok(Self { network, address })
    }
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.network, self.address)
    }
}

/// The identity of any object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A tenant.
    Tenant(TenantName),
    /// A network.
    Network(NetworkKey),
    /// An endpoint group.
    EndpointGroup(GroupKey),
    /// A policy.
    Policy(PolicyKey),
    /// A rule.
    Rule(RuleKey),
    /// The global settings.
    Global,
    /// An endpoint.
    Endpoint(EndpointId),
    /// A node.
    Node(NodeName),
    /// A reserved address.
    AddressLease(LeaseKey),
    /// A net profile.
    NetProfile(ProfileKey),
    /// A service.
    Service(ServiceKey),
    /// An application profile.
    AppProfile(AppProfileKey),
    /// A host's BGP settings.
    Bgp(HostName),
}

impl Key {
    /// Checks the key of an object of `kind`.
    ///
    /// # Errors
    /// [`Refused`] with field `key`.
    pub fn parse(kind: Kind, text: &str) -> Result<Self, Refused> {
        let field = "key";
        Ok(match kind {
            Kind::Tenant => Self::Tenant(TenantName::parse(field, text)?),
            Kind::Network => Self::Network(NetworkKey::parse(field, text)?),
            Kind::EndpointGroup => Self::EndpointGroup(GroupKey::parse(field, text)?),
            Kind::Policy => Self::Policy(PolicyKey::parse(field, text)?),
            Kind::Rule => Self::Rule(RuleKey::parse(field, text)?),
            Kind::Global => match text {
                Global::NAME => Self::Global,
                _ => return Err(Refused::new(field, text, Reason::GlobalName)),
            },
            Kind::Endpoint => Self::Endpoint(EndpointId::parse(field, text)?),
            Kind::Node => Self::Node(NodeName::parse(field, text)?),
            Kind::AddressLease => Self::AddressLease(LeaseKey::parse(field, text)?),
            Kind::NetProfile => Self::NetProfile(ProfileKey::parse(field, text)?),
            Kind::Service => Self::Service(ServiceKey::parse(field, text)?),
            Kind::AppProfile => Self::AppProfile(AppProfileKey::parse(field, text)?),
            Kind::Bgp => Self::Bgp(HostName::parse(field, text)?),
        })
    }

    /// The tenant it names; an endpoint's key names none.
    #[must_use]
    pub const fn tenant(&self) -> Option<&TenantName> {
        match self {
            Self::Tenant(name) => Some(name),
            Self::Network(key) => Some(&key.tenant),
            Self::EndpointGroup(key) => Some(&key.tenant),
            Self::Policy(key) => Some(&key.tenant),
            Self::Rule(key) => Some(&key.tenant),
            Self::AddressLease(key) => Some(&key.network.tenant),
            Self::NetProfile(key) => Some(&key.tenant),
            Self::Service(key) => Some(&key.tenant),
            Self::AppProfile(key) => Some(&key.tenant),
            Self::Global | Self::Endpoint(_) | Self::Node(_) | Self::Bgp(_) => None,
        }
    }

    /// What it names.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Tenant(_) => Kind::Tenant,
            Self::Network(_) => Kind::Network,
            Self::EndpointGroup(_) => Kind::EndpointGroup,
            Self::Policy(_) => Kind::Policy,
            Self::Rule(_) => Kind::Rule,
            Self::Global => Kind::Global,
            Self::Endpoint(_) => Kind::Endpoint,
            Self::Node(_) => Kind::Node,
            Self::AddressLease(_) => Kind::AddressLease,
            Self::NetProfile(_) => Kind::NetProfile,
            Self::Service(_) => Kind::Service,
            Self::AppProfile(_) => Kind::AppProfile,
            Self::Bgp(_) => Kind::Bgp,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(name) => name.fmt(f),
            Self::Network(key) => key.fmt(f),
            Self::EndpointGroup(key) => key.fmt(f),
            Self::Policy(key) => key.fmt(f),
            Self::Rule(key) => key.fmt(f),
            Self::Global => f.write_str(Global::NAME),
            Self::Endpoint(id) => id.fmt(f),
            Self::Node(name) => name.fmt(f),
            Self::AddressLease(key) => key.fmt(f),
            Self::NetProfile(key) => key.fmt(f),
            Self::Service(key) => key.fmt(f),
            Self::AppProfile(key) => key.fmt(f),
            Self::Bgp(host) => host.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_text() {
        let keys = [
            (Kind::Tenant, "red"),
            (Kind::Network, "red:net"),
            (Kind::EndpointGroup, "red:web"),
            (Kind::Policy, "red:first"),
            (Kind::Rule, "red:first:1"),
            (Kind::Global, "global"),
            (Kind::Endpoint, "0123456789ab:eth0"),
            (Kind::Node, "host1.example"),
            (Kind::AddressLease, "red:net:10.1.1.5"),
            (Kind::AddressLease, "red:net:2016:617::5"),
            (Kind::NetProfile, "red:gold_1"),
            (Kind::Service, "red:web"),
            (Kind::AppProfile, "red:shop"),
            (Kind::Bgp, "hostA"),
        ];
        for (kind, text) in keys {
            let key = Key::parse(kind, text).unwrap();
            assert_eq!((key.kind(), key.to_string().as_str()), (kind, text));
            assert!(Kind::ALL.contains(&kind));
        }
    }

    #[test]
    fn keys_with_missing_extra_or_bad_parts_are_refused() {
        let bad = [
            (Kind::Network, "red"),
            (Kind::Network, "red:net:more"),
            (Kind::Rule, "red:first"),
            (Kind::Rule, "red:first:"),
            (Kind::Global, "other"),
            (Kind::NetProfile, "red"),
            (Kind::NetProfile, "red:gold:more"),
            (Kind::AddressLease, "red:net"),
            (Kind::AddressLease, "red:net:10.1.1"),
            (Kind::AddressLease, "red:net:10.1.1.5:more"),
            (Kind::AddressLease, "red:net:2016::5::"),
            (Kind::Tenant, ""),
        ];
        for (kind, text) in bad {
            let refused = Key::parse(kind, text).unwrap_err();
            assert_eq!(refused.field, "key", "{text}");
        }
    }
}
