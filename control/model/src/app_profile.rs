//! Application profiles: a name for several groups of a tenant, as plain grouping. Without ACI they
//! change nothing in the tables.

use std::collections::BTreeSet;

use crate::key::AppProfileKey;
use crate::name::GroupName;
use crate::refusal::Refused;

/// A profile, as asked for and as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppProfile {
    /// Tenant and name.
    pub key: AppProfileKey,
    /// Its groups, in the same tenant, each once; may be empty.
    pub groups: Vec<GroupName>,
}

impl AppProfile {
    /// Checks a list of groups; one named twice counts once.
    ///
    /// # Errors
    /// [`Refused`] for a name that is none.
    pub fn parse_groups(field: &'static str, texts: &[String]) -> Result<Vec<GroupName>, Refused> {
        let (mut groups, mut seen) = (Vec::new(), BTreeSet::new());
        for text in texts {
            let group = GroupName::parse(field, text)?;
            if seen.insert(text) {
                groups.push(group);
            }
        }
        Ok(groups)
    }
}
