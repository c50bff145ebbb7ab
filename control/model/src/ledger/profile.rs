//! Writes of net profiles.

use super::{Change, Ledger, Outcome, unchanged};
use crate::intent::Object;
use crate::key::{Key, ProfileKey};
use crate::profile::NetProfile;
use crate::refusal::{Reason, Refused};

impl Ledger {
    /// A second create replaces the first: scripts of Contiv's change profiles that way.
    pub(super) fn create_profile(&mut self, profile: NetProfile) -> Result<Outcome, Refused> {
        let key = &profile.key;
        let known = self.intent.profiles.get(key);
        if profile.limit.burst.is_too_small() {
            let small = if known.is_some() { Reason::UpdateBurstSmall } else { Reason::BurstSmall };
            return Err(Refused::new("burst", &profile.limit.burst.kilobytes(), small));
        }
        if known == Some(&profile) {
            return Ok(unchanged(Object::NetProfile(profile)));
        }
        self.require_tenant(&key.tenant)?;
        Ok(self.commit_one(Object::NetProfile(profile)))
    }

    pub(super) fn delete_profile(&mut self, key: &ProfileKey) -> Result<Vec<Change>, Refused> {
        self.require_profile(key, "key")?;
        let users = self.intent.groups.values().filter_map(|group| group.spec.profile_key());
        if users.into_iter().any(|used| used == *key) {
            return Err(Refused::new("key", key, Reason::NetprofileInUse));
        }
        Ok(self.commit(vec![Change::Remove(Key::NetProfile(key.clone()))]))
    }

    pub(super) fn require_profile(
        &self,
        key: &ProfileKey,
        field: &'static str,
    ) -> Result<(), Refused> {
        self.require(&Key::NetProfile(key.clone()), field, Reason::NetprofileNotFound)
    }
}
