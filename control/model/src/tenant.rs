//! Tenants: a routing instance each, and what happens to traffic that no rule matches.

use flowtable::entry::Permit;
use flowtable::ids::Vrf;

use crate::name::{NetworkName, TenantName};
use crate::refusal::{Reason, Refused};

/// A tenant as a user asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantSpec {
    /// Its name.
    pub name: TenantName,
    /// The network of containers that name none.
    pub default_network: Option<NetworkName>,
    /// What happens to traffic no rule matches; `None`: as it is, at first allow.
    pub default_verdict: Option<Permit>,
}

impl TenantSpec {
    /// Checks a verdict: `allow`, `deny`, or empty.
    ///
    /// # Errors
    /// [`Refused`] for any other text.
    pub fn parse_verdict(field: &'static str, text: &str) -> Result<Option<Permit>, Refused> {
        match text {
            "" => Ok(None),
            "allow" => Ok(Some(Permit::Allow)),
            "deny" => Ok(Some(Permit::Deny)),
            _ => Err(Refused::new(field, text, Reason::NotOneOf { list: "allow, deny" })),
        }
    }
}

/// A stored tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
    /// The network of containers that name none.
    pub default_network: Option<NetworkName>,
    /// What happens to traffic no rule matches.
    pub default_verdict: Permit,
    /// Its routing instance.
    pub vrf: Vrf,
}
