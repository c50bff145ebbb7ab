//! Net profiles: a rate limit and a mark for the endpoints of the groups that name them.

use flowtable::ids::Dscp;

use crate::key::ProfileKey;
use crate::rate::RateLimit;
use crate::refusal::{Reason, Refused};

/// What a profile's rate is the rate of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// Of every endpoint by itself; Contiv's meaning.
    #[default]
    Endpoint,
    /// Of all endpoints of a group together, on each node. Two groups with one profile have a rate
    /// each.
    Group,
}

impl Scope {
    /// Checks `endpoint` or `group`; empty is the default.
    ///
    /// # Errors
    /// [`Refused`] for any other text.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
        match text {
            "" | "endpoint" => Ok(Self::Endpoint),
            "group" => Ok(Self::Group),
            _ => Err(Refused::new(field, text, Reason::NotOneOf { list: "endpoint, group" })),
        }
    }

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Group => "group",
        }
    }
}

/// A profile, as asked for and as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetProfile {
    /// Tenant and name.
    pub key: ProfileKey,
    /// The limit, in each direction.
    pub limit: RateLimit,
    /// What packets of the endpoints are marked with (RFC 2474); `None` leaves their mark.
    pub dscp: Option<Dscp>,
    /// Whose rate it is.
    pub scope: Scope,
}

impl NetProfile {
    /// Checks a code point: 1 to 63; 0 is `None`, as with Contiv.
    ///
    /// # Errors
    /// [`Refused`] for more.
    pub fn parse_dscp(field: &'static str, number: u32) -> Result<Option<Dscp>, Refused> {
        match Dscp::new(number) {
            Ok(_) if number == 0 => Ok(None),
            Ok(dscp) => Ok(Some(dscp)),
            Err(_range) => Err(Refused::new(field, &number, Reason::BadDscp)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contivs_code_points_are_accepted_and_refused_alike() {
        for good in [2u8, 3, 5, 6, 7, 9, 22, 63] {
            let dscp = NetProfile::parse_dscp("DSCP", good.into()).unwrap();
            assert_eq!(dscp.map(Dscp::get), Some(good));
        }
        assert_eq!(NetProfile::parse_dscp("DSCP", 0), Ok(None));
        for bad in [64, 72, 256 + 10, u32::MAX] {
            let refused = NetProfile::parse_dscp("DSCP", bad).unwrap_err();
            assert_eq!((refused.field, refused.reason), ("DSCP", Reason::BadDscp));
        }
    }

    #[test]
    fn a_scope_is_endpoint_or_group() {
        for scope in [Scope::Endpoint, Scope::Group] {
            assert_eq!(Scope::parse("scope", scope.name()), Ok(scope));
        }
        assert_eq!(Scope::parse("scope", ""), Ok(Scope::Endpoint));
        assert_eq!(Scope::parse("scope", "tenant").unwrap_err().field, "scope");
    }
}
