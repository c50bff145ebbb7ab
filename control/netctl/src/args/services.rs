//! Verbs of services, application profiles and BGP settings.

use clap::{Args, Subcommand};

use super::{ListArgs, ListFormArgs, NameArgs, OutputArgs, ScopedArgs, ScopedListArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceVerb {
    /// Creates a service and gives it an address
    Create(ServiceCreateArgs),
    /// Deletes a service and frees its address
    #[command(visible_alias = "delete")]
    Rm(ScopedArgs),
    /// Lists services
    #[command(visible_alias = "list")]
    Ls(ScopedListArgs),
    /// Shows a service, its address and its providers as JSON
    Inspect(ScopedArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ServiceCreateArgs {
    #[command(flatten)]
    pub(crate) named: ScopedArgs,
    /// The network its address is of
    #[arg(short = 's', long)]
    pub(crate) network: String,
    /// A label its providers have, key=value; may be given several times
    #[arg(short = 'l', long)]
    pub(crate) selector: Vec<String>,
    /// Port, the providers' port, and TCP or UDP: 80:8080:TCP; may be given several times
    #[arg(short, long)]
    pub(crate) port: Vec<String>,
    /// The address it is to have (also -ip)
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) preferred_ip: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AppProfileVerb {
    /// Creates an application profile: a name for several groups
    Create(AppProfileArgs),
    /// Replaces the groups of an application profile
    Update(AppProfileArgs),
    /// Deletes an application profile; its groups stay
    #[command(visible_alias = "delete")]
    Rm(ScopedArgs),
    /// Lists application profiles
    #[command(visible_alias = "list")]
    Ls(ScopedListArgs),
    /// Shows an application profile and its endpoints as JSON
    Inspect(ScopedArgs),
    /// Lists the groups of an application profile
    #[command(visible_alias = "group-list")]
    GroupLs(AppProfileGroupsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct AppProfileArgs {
    #[command(flatten)]
    pub(crate) named: ScopedArgs,
    /// Its groups, separated by commas
    #[arg(short, long, value_delimiter = ',')]
    pub(crate) group: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AppProfileGroupsArgs {
    /// The application profile
    pub(crate) name: String,
    /// Name of the tenant
    #[arg(short, long, default_value = "default")]
    pub(crate) tenant: String,
    /// Without effect; Contiv has it
    #[arg(short, long, hide = true)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) list: ListFormArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BgpVerb {
    /// Sets a host's BGP settings
    Create(BgpCreateArgs),
    /// Deletes a host's BGP settings
    #[command(visible_alias = "delete")]
    Rm(NameArgs),
    /// Lists BGP settings
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Shows a host's BGP settings as JSON
    Inspect(NameArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BgpCreateArgs {
    /// Name of the host
    pub(crate) name: String,
    /// Address of its router with the length of the subnet, 10.0.0.1/24
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) router_ip: String,
    /// Number of its autonomous system
    #[arg(long = "as", value_name = "AS", default_value = "", hide_default_value = true)]
    pub(crate) as_number: String,
    /// Number of the neighbor's autonomous system
    #[arg(long, value_name = "AS", default_value = "", hide_default_value = true)]
    pub(crate) neighbor_as: String,
    /// Address of the neighbor
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) neighbor: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}
