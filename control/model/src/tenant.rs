//! Tenants: a routing instance each, and what holds for all of a tenant's traffic.

use flowtable::entry::{Offload, OnDeny, Permit, Tracking};
use flowtable::ids::Vrf;

use crate::name::{NetworkName, TenantName};
use crate::rate::{Bandwidth, Burst, RateLimit};
use crate::refusal::{Reason, Refused};

/// What holds for all of a tenant's traffic. The bounds are of each node by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantSettings {
    /// What happens to traffic no rule matches.
    pub default_verdict: Permit,
    /// Whether connections are tracked.
    pub tracking: Tracking,
    /// What a change of policy does to established connections.
    pub on_deny: OnDeny,
    /// Most connections at once; 0 leaves it to the engine.
    pub connections_max: u32,
    /// Most new flows per second; 0 leaves it to the engine.
    pub new_flows_max: u32,
    /// Whether the kernel may forward its flows.
    pub offload: Offload,
    /// Of what all endpoints send together, and of what they receive.
    pub limit: RateLimit,
}

impl Default for TenantSettings {
    fn default() -> Self {
        Self {
            default_verdict: Permit::Allow,
            tracking: Tracking::Stateful,
            on_deny: OnDeny::Cut,
            connections_max: 0,
            new_flows_max: 0,
            offload: Offload::On,
            limit: RateLimit::default(),
        }
    }
}

impl TenantSettings {
    /// These settings with the wanted changes.
    #[must_use]
    pub fn changed_by(&self, change: &TenantChange) -> Self {
        let limit = &self.limit;
        Self {
            default_verdict: change.default_verdict.unwrap_or(self.default_verdict),
            tracking: change.tracking.unwrap_or(self.tracking),
            on_deny: change.on_deny.unwrap_or(self.on_deny),
            connections_max: change.connections_max.unwrap_or(self.connections_max),
            new_flows_max: change.new_flows_max.unwrap_or(self.new_flows_max),
            offload: change.offload.unwrap_or(self.offload),
            limit: RateLimit {
                bandwidth: change.bandwidth.as_ref().unwrap_or(&limit.bandwidth).clone(),
                burst: change.burst.unwrap_or(limit.burst),
            },
        }
    }

    /// The first field that `other` has a different value of, by its JSON name, and that value.
    pub(crate) fn difference(&self, other: &Self) -> Option<(&'static str, String)> {
        let fields = self.fields().into_iter().zip(other.fields());
        fields.into_iter().find(|(own, other)| own != other).map(|(_, other)| other)
    }

    /// By their JSON names, as users write them.
    fn fields(&self) -> [(&'static str, String); 8] {
        let verdict = match self.default_verdict {
            Permit::Allow => "allow",
            Permit::Deny => "deny",
        };
        let tracking = match self.tracking {
            Tracking::Stateful => "stateful",
            Tracking::Stateless => "stateless",
        };
        let on_deny = match self.on_deny {
            OnDeny::Cut => "cut",
            OnDeny::Finish => "finish",
        };
        [
            ("defaultVerdict", verdict.to_owned()),
            ("tracking", tracking.to_owned()),
            ("onDeny", on_deny.to_owned()),
            ("maxConnections", self.connections_max.to_string()),
            ("maxNewFlows", self.new_flows_max.to_string()),
            ("offload", offload_name(self.offload).to_owned()),
            ("bandwidth", self.limit.bandwidth.to_string()),
            ("burst", self.limit.burst.kilobytes().to_string()),
        ]
    }
}

/// Wanted settings; `None`: as it is, at first the default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TenantChange {
    /// What happens to traffic no rule matches.
    pub default_verdict: Option<Permit>,
    /// Whether connections are tracked.
    pub tracking: Option<Tracking>,
    /// What a change of policy does to established connections.
    pub on_deny: Option<OnDeny>,
    /// Most connections at once.
    pub connections_max: Option<u32>,
    /// Most new flows per second.
    pub new_flows_max: Option<u32>,
    /// Whether the kernel may forward its flows.
    pub offload: Option<Offload>,
    /// Rate of all endpoints together.
    pub bandwidth: Option<Bandwidth>,
    /// Burst of that rate.
    pub burst: Option<Burst>,
}

impl TenantChange {
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

    /// Checks `stateful`, `stateless`, or empty.
    ///
    /// # Errors
    /// [`Refused`] for any other text.
    pub fn parse_tracking(field: &'static str, text: &str) -> Result<Option<Tracking>, Refused> {
        match text {
            "" => Ok(None),
            "stateful" => Ok(Some(Tracking::Stateful)),
            "stateless" => Ok(Some(Tracking::Stateless)),
            _ => Err(Refused::new(field, text, Reason::NotOneOf { list: "stateful, stateless" })),
        }
    }

    /// Checks `cut`, `finish`, or empty.
    ///
    /// # Errors
    /// [`Refused`] for any other text.
    pub fn parse_on_deny(field: &'static str, text: &str) -> Result<Option<OnDeny>, Refused> {
        match text {
            "" => Ok(None),
            "cut" => Ok(Some(OnDeny::Cut)),
            "finish" => Ok(Some(OnDeny::Finish)),
            _ => Err(Refused::new(field, text, Reason::NotOneOf { list: "cut, finish" })),
        }
    }
}

/// The word users write.
pub(crate) const fn offload_name(offload: Offload) -> &'static str {
    match offload {
        Offload::On => "on",
        Offload::Off => "off",
    }
}

/// Checks `on`, `off`, or empty.
///
/// # Errors
/// [`Refused`] for any other text.
pub fn parse_offload(field: &'static str, text: &str) -> Result<Option<Offload>, Refused> {
    match text {
        "" => Ok(None),
        "on" => Ok(Some(Offload::On)),
        "off" => Ok(Some(Offload::Off)),
        _ => Err(Refused::new(field, text, Reason::NotOneOf { list: "on, off" })),
    }
}

/// A tenant as a user asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantSpec {
    /// Its name.
    pub name: TenantName,
    /// The network of containers that name none.
    pub default_network: Option<NetworkName>,
    /// Its settings.
    pub change: TenantChange,
}

/// A stored tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
    /// The network of containers that name none.
    pub default_network: Option<NetworkName>,
    /// Its settings.
    pub settings: TenantSettings,
    /// Its routing instance.
    pub vrf: Vrf,
}
