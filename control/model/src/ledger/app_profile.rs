//! Writes of application profiles.

use super::{Ledger, Outcome, unchanged};
use crate::app_profile::AppProfile;
use crate::intent::Object;
use crate::key::GroupKey;
use crate::refusal::{Reason, Refused};

impl Ledger {
    /// A second create replaces the list of groups.
    pub(super) fn create_app_profile(&mut self, profile: AppProfile) -> Result<Outcome, Refused> {
        let tenant = &profile.key.tenant;
        self.require_named_tenant(tenant)?;
        for group in &profile.groups {
            let key = GroupKey { tenant: tenant.clone(), group: group.clone() };
            if !self.intent.groups.contains_key(&key) {
                let reason = Reason::NamedGroupNotFound { group: group.to_string() };
                return Err(Refused::new("endpointGroups", group, reason));
            }
        }
        if self.intent.app_profiles.get(&profile.key) == Some(&profile) {
            return Ok(unchanged(Object::AppProfile(profile)));
        }
        Ok(self.commit_one(Object::AppProfile(profile)))
    }
}
