//! Writes of policies and rules.

use super::{Change, Ledger, Outcome, unchanged};
use crate::intent::Object;
use crate::key::{GroupKey, Key, NetworkKey, PolicyKey};
use crate::pool::Holder;
use crate::refusal::{Reason, Refused};
use crate::rule::{Peer, Rule, RuleSpec};
use flowtable::entry::Direction;

impl Ledger {
    pub(super) fn create_policy(&mut self, key: PolicyKey) -> Result<Outcome, Refused> {
        if self.intent.policies.contains(&key) {
            return Ok(unchanged(Object::Policy(key)));
        }
        self.require_tenant(&key.tenant)?;
        Ok(self.commit_one(Object::Policy(key)))
    }

    /// Its rules go with it.
    pub(super) fn delete_policy(&mut self, key: &PolicyKey) -> Result<Vec<Change>, Refused> {
        self.require(&Key::Policy(key.clone()), "key", Reason::PolicyNotFound)?;
        if self.intent.groups_of(key).next().is_some() {
            return Err(Refused::new("key", key, Reason::PolicyInUse));
        }
        let rules = self.intent.rules.keys().filter(|rule| rule.policy_key() == *key);
        let mut changes: Vec<_> =
            rules.map(|rule| Change::Remove(Key::Rule(rule.clone()))).collect();
        changes.push(Change::Remove(Key::Policy(key.clone())));
        Ok(self.commit(changes))
    }

    pub(super) fn create_rule(&mut self, spec: RuleSpec) -> Result<Outcome, Refused> {
        if let Some(rule) = self.intent.rules.get(&spec.key) {
            if rule.spec == spec {
                return Ok(unchanged(Object::Rule(rule.clone())));
            }
            return Err(Refused::new("ruleId", &spec.key.rule, Reason::RuleImmutable));
        }
        self.check_peer(&spec)?;
        self.require_policy(&spec.key.policy_key())?;
        self.check_own_address(&spec)?;
        let cookie = self.counters.next_cookie()?;
        Ok(self.commit_one(Object::Rule(Rule { spec, cookie })))
    }

    pub(super) fn require_policy(&self, key: &PolicyKey) -> Result<(), Refused> {
        self.require(&Key::Policy(key.clone()), "policyName", Reason::PolicyNotFound)
    }

    fn check_peer(&self, spec: &RuleSpec) -> Result<(), Refused> {
        let tenant = spec.key.tenant.clone();
        match &spec.peer {
            Peer::Match { group: None, .. } => Ok(()),
            Peer::Match { group: Some(group), .. } => {
                let field = match spec.direction {
                    Direction::In => "fromEndpointGroup",
                    Direction::Out => "toEndpointGroup",
                };
                self.require_group(&GroupKey { tenant, group: group.clone() }, field)
            }
            Peer::Network(network) => {
                let (field, reason) = match spec.direction {
                    Direction::In => ("fromNetwork", Reason::FromNetworkNotFound),
                    Direction::Out => ("toNetwork", Reason::ToNetworkNotFound),
                };
                let key = NetworkKey::new(tenant, network.clone());
                self.require(&Key::Network(key), field, reason)
            }
        }
    }

    /// An in-rule for one address needs one group, and the address in it.
    fn check_own_address(&self, spec: &RuleSpec) -> Result<(), Refused> {
        let Some(own) = spec.own_address else { return Ok(()) };
        let refuse = |reason| Err(Refused::new("toIpAddress", &own, reason));
        let rule = spec.key.to_string();
        let policy = spec.key.policy_key();
        let groups: Vec<_> = self.intent.groups_of(&policy).collect();
        let [group] = groups.as_slice() else {
            let policy = policy.policy.to_string();
            return refuse(Reason::RuleGroupCount { rule, count: groups.len(), policy });
        };
        let key = &group.spec.key;
        let network = NetworkKey::new(key.tenant.clone(), group.spec.network.clone());
        let holder = match (own.host(), self.holdings.get(&network)) {
            (Some(host), Some(holdings)) => holdings.holder(host),
            (_, _) => None,
        };
        let endpoint = match holder {
            Some(Holder::Endpoint(id)) => self.intent.endpoints.get(id),
            Some(Holder::Gateway | Holder::Service(_) | Holder::Lease(_)) | None => None,
        };
        if endpoint.is_some_and(|endpoint| endpoint.group.as_ref() == Some(&key.group)) {
            return Ok(());
        }
        refuse(Reason::RuleAddressNotInGroup { rule, group: key.group.to_string() })
    }
}
