//! Endpoint groups: the endpoints of one network that policies speak about.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use flowtable::ids::Group;

use crate::key::{GroupKey, ProfileKey};
use crate::name::{CfgdTag, NetworkName, PolicyName, ProfileName};
use crate::range::AddressRange;
use crate::refusal::Refused;

/// A group as a user asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSpec {
    /// Tenant and name.
    pub key: GroupKey,
    /// Its network, in the same tenant.
    pub network: NetworkName,
    /// Its own IPv4 addresses; `None`: those of the network.
    pub pool: Option<AddressRange<Ipv4Addr>>,
    /// Its own IPv6 addresses; `None`: those of the network.
    pub pool6: Option<AddressRange<Ipv6Addr>>,
    /// Its policies, in the same tenant, each once.
    pub policies: Vec<PolicyName>,
    /// Its net profile, in the same tenant.
    pub profile: Option<ProfileName>,
    /// The user's own tag.
    pub cfgd_tag: Option<CfgdTag>,
}

impl GroupSpec {
    /// Checks a list of policies; one named twice counts once.
    ///
    /// # Errors
    /// [`Refused`] for a name that is none.
    pub fn parse_policies(
        field: &'static str,
        texts: &[String],
    ) -> Result<Vec<PolicyName>, Refused> {
        let (mut policies, mut seen) = (Vec::new(), BTreeSet::new());
        for text in texts {
            let policy = PolicyName::parse(field, text)?;
            if seen.insert(text) {
                policies.push(policy);
            }
        }
        Ok(policies)
    }

    /// Checks an IPv4 pool; empty is `None`.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's texts for pools.
    pub fn parse_pool(
        field: &'static str,
        text: &str,
    ) -> Result<Option<AddressRange<Ipv4Addr>>, Refused> {
        let pool = || AddressRange::<Ipv4Addr>::parse(field, text);
        (!text.is_empty()).then(pool).transpose()
    }

    /// Checks an IPv6 pool; empty is `None`.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's texts for pools.
    pub fn parse_pool6(
        field: &'static str,
        text: &str,
    ) -> Result<Option<AddressRange<Ipv6Addr>>, Refused> {
        let pool = || AddressRange::<Ipv6Addr>::parse(field, text);
        (!text.is_empty()).then(pool).transpose()
    }

    /// The key of its net profile.
    #[must_use]
    pub fn profile_key(&self) -> Option<ProfileKey> {
        let profile = self.profile.clone()?;
        Some(ProfileKey { tenant: self.key.tenant.clone(), profile })
    }
}

/// A stored group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointGroup {
    /// What was asked for.
    pub spec: GroupSpec,
    /// Its number in the tables.
    pub id: Group,
}

impl EndpointGroup {
    /// The tag shown to users: their own, or `group.tenant`.
    #[must_use]
    pub fn shown_tag(&self) -> String {
        match &self.spec.cfgd_tag {
            Some(tag) => tag.to_string(),
            None => format!("{}.{}", self.spec.key.group, self.spec.key.tenant),
        }
    }
}
