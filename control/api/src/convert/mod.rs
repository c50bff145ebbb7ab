//! `control.v1` messages to and from `control-model`: the one place where text becomes types.
//!
//! [`to_spec`] reads what a user asks for, [`to_model`] what netmaster has stored and sends to nodes
//! (with the identifiers it has handed out), [`from_model`] writes the latter. Refusals name fields
//! by their JSON names.

mod batch;
mod emit;
mod parse;

use control_model::{Key, Kind, Reason, Refused};

pub use batch::{from_applied, to_batch};
pub use emit::from_model;
pub use parse::{to_model, to_spec};

use crate::v1;

/// The kind of a request.
///
/// # Errors
/// [`Refused`] for numbers that are no kind.
pub fn to_kind(kind: i32) -> Result<Kind, Refused> {
    match v1::Kind::try_from(kind) {
        Ok(v1::Kind::Tenant) => Ok(Kind::Tenant),
        Ok(v1::Kind::Network) => Ok(Kind::Network),
        Ok(v1::Kind::EndpointGroup) => Ok(Kind::EndpointGroup),
        Ok(v1::Kind::Policy) => Ok(Kind::Policy),
        Ok(v1::Kind::Rule) => Ok(Kind::Rule),
        Ok(v1::Kind::Global) => Ok(Kind::Global),
        Ok(v1::Kind::Endpoint) => Ok(Kind::Endpoint),
        Ok(v1::Kind::Node) => Ok(Kind::Node),
        Ok(v1::Kind::AddressLease) => Ok(Kind::AddressLease),
        Ok(v1::Kind::NetProfile) => Ok(Kind::NetProfile),
        Ok(v1::Kind::ServiceLb) => Ok(Kind::Service),
        Ok(v1::Kind::AppProfile) => Ok(Kind::AppProfile),
        Ok(v1::Kind::Bgp) => Ok(Kind::Bgp),
        Ok(v1::Kind::Unspecified) | Err(_) => Err(Refused::new("kind", &kind, Reason::NoObject)),
    }
}

/// The kind on the wire.
#[must_use]
pub const fn from_kind(kind: Kind) -> v1::Kind {
    match kind {
        Kind::Tenant => v1::Kind::Tenant,
        Kind::Network => v1::Kind::Network,
        Kind::EndpointGroup => v1::Kind::EndpointGroup,
        Kind::Policy => v1::Kind::Policy,
        Kind::Rule => v1::Kind::Rule,
        Kind::Global => v1::Kind::Global,
        Kind::Endpoint => v1::Kind::Endpoint,
        Kind::Node => v1::Kind::Node,
        Kind::AddressLease => v1::Kind::AddressLease,
        Kind::NetProfile => v1::Kind::NetProfile,
        Kind::Service => v1::Kind::ServiceLb,
        Kind::AppProfile => v1::Kind::AppProfile,
        Kind::Bgp => v1::Kind::Bgp,
    }
}

/// The key of a request, or of a removal.
///
/// # Errors
/// [`Refused`] for numbers that are no kind and text that is no key of that kind.
pub fn to_key(kind: i32, key: &str) -> Result<Key, Refused> {
    Key::parse(to_kind(kind)?, key)
}

/// A removal on the wire.
#[must_use]
pub fn from_key(key: &Key) -> v1::Removed {
    v1::Removed { kind: from_kind(key.kind()).into(), key: key.to_string() }
}

#[cfg(test)]
mod tests;
