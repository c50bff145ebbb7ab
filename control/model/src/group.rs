//! Endpoint groups: the endpoints of one network that policies speak about.

use std::collections::BTreeSet;

use flowtable::ids::Group;

use crate::key::{GroupKey, ProfileKey};
use crate::name::{CfgdTag, NetworkName, PolicyName, ProfileName};
use crate::refusal::Refused;
use crate::subnet::AddressRange;

/// A group as a user asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSpec {
    /// Tenant and name.
    pub key: GroupKey,
    /// Its network, in the same tenant.
    pub network: NetworkName,
    /// Its own addresses; `None`: those of the network.
    pub pool: Option<AddressRange>,
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

    /// Checks a pool; empty is `None`.
    ///
    /// # Errors
    /// [`Refused`] with Contiv's texts for pools.
    pub fn parse_pool(field: &'static str, text: &str) -> Result<Option<AddressRange>, Refused> {
        if text.is_empty() { Ok(None) } else { AddressRange::parse(field, text).map(Some) }
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
