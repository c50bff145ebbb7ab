//! Many objects at once.

use control_model::{Action, Applied, Batch, Reason, Refused, RefusedObject, Spec};

use super::{from_kind, from_model, to_key, to_spec};
use crate::v1;

/// What a user asks for. Endpoints and nodes are made where they live, and deleted like all else: a
/// node deletes many endpoints, an operator a node with what it had.
///
/// # Errors
/// [`RefusedObject`] for the first object or key that is none.
pub fn to_batch(objects: &[v1::Object], deletes: &[v1::ObjectKey]) -> Result<Batch, RefusedObject> {
    let at = |list: &str, place: usize, refused| RefusedObject {
        object: format!("{list}[{place}]"),
        refused: Box::new(refused),
    };
    let puts = objects.iter().enumerate().map(|(place, object)| {
        to_spec(object).and_then(by_users).map_err(|refused| at("objects", place, refused))
    });
    let deletes = deletes.iter().enumerate().map(|(place, key)| {
        to_key(key.kind, &key.key).map_err(|refused| at("deletes", place, refused))
    });
    Ok(Batch { puts: puts.collect::<Result<_, _>>()?, deletes: deletes.collect::<Result<_, _>>()? })
}

fn by_users(spec: Spec) -> Result<Spec, Refused> {
    match &spec {
        Spec::Endpoint(endpoint) => Err(not_by_users(&endpoint.id)),
        Spec::Node(node) => Err(not_by_users(&node.name)),
        Spec::Tenant(_)
        | Spec::Network(_)
        | Spec::EndpointGroup(_)
        | Spec::Policy(_)
        | Spec::Rule(_)
        | Spec::Global(_)
        | Spec::AddressLease(_)
        | Spec::NetProfile(_)
        | Spec::Service(_)
        | Spec::AppProfile(_)
        | Spec::Bgp(_) => Ok(spec),
    }
}

fn not_by_users(value: &impl ToString) -> Refused {
    Refused::new("object", value, Reason::NotByUsers { maker: "netplugin, on their node" })
}

/// What became of one object.
#[must_use]
pub fn from_applied(applied: &Applied) -> v1::ApplyResult {
    let action = match applied.action {
        Action::Created => v1::ApplyAction::Created,
        Action::Updated => v1::ApplyAction::Updated,
        Action::Unchanged => v1::ApplyAction::Unchanged,
        Action::Deleted => v1::ApplyAction::Deleted,
    };
    v1::ApplyResult {
        kind: from_kind(applied.key.kind()).into(),
        key: applied.key.to_string(),
        action: action.into(),
        before: applied.before.as_ref().map(from_model),
        after: applied.after.as_ref().map(from_model),
    }
}
