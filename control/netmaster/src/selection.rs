//! Lists: which objects a user asks for.

use control_api::{convert, v1};
use control_model::{Kind, Object, Refused, TenantName};

use crate::master::State;
use crate::oper;
use crate::sessions::Sessions;

/// What a list is of.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) kind: Kind,
    /// Only of this tenant; what belongs to none is in every list.
    pub(crate) tenant: Option<TenantName>,
    /// Rules: only of this policy; empty: of all.
    pub(crate) parent: String,
}

impl Selection {
    /// Reads a request's fields.
    pub(crate) fn parse(kind: i32, tenant: &str, parent: String) -> Result<Self, Refused> {
        let tenant = TenantName::parse_optional("tenant", tenant)?;
        Ok(Self { kind: convert::to_kind(kind)?, tenant, parent })
    }

    /// The objects, as users read them.
    pub(crate) fn list(&self, state: &State, sessions: &Sessions) -> v1::ListReply {
        let intent = state.ledger.intent();
        let objects = intent.objects(self.kind);
        let objects = objects.iter().filter(|object| self.has(object));
        v1::ListReply {
            objects: objects.map(|object| oper::shown(object, state, sessions)).collect(),
            revision: state.revision,
            ..v1::ListReply::default()
        }
    }

    /// Whether an object of its kind is in it.
    pub(crate) fn has(&self, object: &Object) -> bool {
        // What belongs to no tenant is the same for all of them.
        let in_tenant = match (&self.tenant, object.tenant()) {
            (Some(wanted), Some(tenant)) => wanted == tenant,
            (None, _) | (_, None) => true,
        };
        let in_parent = match object {
            Object::Rule(rule) => {
                self.parent.is_empty() || rule.spec.key.policy.as_str() == self.parent
            }
            Object::Tenant(_)
            | Object::Network(_)
            | Object::EndpointGroup(_)
            | Object::Policy(_)
            | Object::Global(_)
            | Object::Endpoint(_)
            | Object::Node(_)
            | Object::AddressLease(_)
            | Object::NetProfile(_)
            | Object::Service(_)
            | Object::AppProfile(_)
            | Object::Bgp(_) => true,
        };
        in_tenant && in_parent
    }
}
