//! `get`, `apply` and `diff`: objects as files.

use clap::{Args, ValueEnum};
use control_api::v1;

use super::OutputArgs;

/// A kind of object, by netctl's noun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KindName {
    Global,
    Tenant,
    #[value(alias = "net")]
    Network,
    Policy,
    Rule,
    Netprofile,
    Group,
    AppProfile,
    Service,
    Bgp,
    Lease,
    #[value(alias = "ep")]
    Endpoint,
    Node,
}

impl KindName {
    /// What a configuration consists of: all that users write, in an order in which it can be
    /// created.
    pub(crate) const CONFIGURATION: [Self; 10] = [
        Self::Global,
        Self::Tenant,
        Self::Network,
        Self::Policy,
        Self::Rule,
        Self::Netprofile,
        Self::Group,
        Self::AppProfile,
        Self::Service,
        Self::Bgp,
    ];

    /// Those, and what nodes make of them.
    pub(crate) const EVERY: [Self; 12] = [
        Self::Tenant,
        Self::Network,
        Self::Group,
        Self::Policy,
        Self::Rule,
        Self::Netprofile,
        Self::AppProfile,
        Self::Service,
        Self::Bgp,
        Self::Lease,
        Self::Endpoint,
        Self::Node,
    ];

    /// The noun.
    pub(crate) fn noun(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The kind in control.v1.
    pub(crate) const fn kind(self) -> v1::Kind {
        match self {
            Self::Global => v1::Kind::Global,
            Self::Tenant => v1::Kind::Tenant,
            Self::Network => v1::Kind::Network,
            Self::Policy => v1::Kind::Policy,
            Self::Rule => v1::Kind::Rule,
            Self::Netprofile => v1::Kind::NetProfile,
            Self::Group => v1::Kind::EndpointGroup,
            Self::AppProfile => v1::Kind::AppProfile,
            Self::Service => v1::Kind::ServiceLb,
            Self::Bgp => v1::Kind::Bgp,
            Self::Lease => v1::Kind::AddressLease,
            Self::Endpoint => v1::Kind::Endpoint,
            Self::Node => v1::Kind::Node,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// Only of this kind; without it all that users write but reservations (`get lease`)
    pub(crate) kind: Option<KindName>,
    /// Only this object, for example blue:web or blue:guard:1
    pub(crate) key: Option<String>,
    /// Only of this tenant
    #[arg(short, long, conflicts_with = "key")]
    pub(crate) tenant: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// YAML or JSON with objects, as `get -o yaml` prints them; - is standard input. Settings of tenants and
    /// of the cluster that are not in it stay, what else is not in it has its default
    #[arg(short, long, value_name = "FILE")]
    pub(crate) filename: String,
    /// Check everything and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// YAML or JSON with objects, as `get -o yaml` prints them; - is standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) filename: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}
