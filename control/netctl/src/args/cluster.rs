//! Verbs of endpoints, nodes and the settings of the whole cluster.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ListArgs, NameArgs, OutputArgs, ScopedListArgs, VersionArgs};
use crate::target::Target;

#[derive(Debug, Subcommand)]
pub(crate) enum EndpointVerb {
    /// Lists attached containers
    #[command(visible_alias = "list")]
    Ls(ScopedListArgs),
    /// Shows an endpoint as JSON
    Inspect(NameArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum GlobalVerb {
    /// Shows the settings
    Info(GlobalInfoArgs),
    /// Shows the settings and what is in use as JSON
    Inspect(VersionArgs),
    /// Changes settings; what is not named stays
    Set(GlobalSetArgs),
}

#[derive(Debug, Args)]
pub(crate) struct GlobalInfoArgs {
    /// Without effect; Contiv has it
    #[arg(short, long, hide = true)]
    pub(crate) tenant: Option<String>,
    /// Without effect; Contiv has it
    #[arg(short, long, hide = true)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GlobalSetArgs {
    /// Fabric mode
    #[arg(short, long)]
    pub(crate) fabric_mode: Option<String>,
    /// VLAN ids to hand out, for example 1-4094
    #[arg(short, long)]
    pub(crate) vlan_range: Option<String>,
    /// VNIs to hand out, for example 1-10000
    #[arg(short = 'x', long)]
    pub(crate) vxlan_range: Option<String>,
    /// bridge or routing
    #[arg(short = 'b', long)]
    pub(crate) fwd_mode: Option<String>,
    /// proxy or flood
    #[arg(short, long)]
    pub(crate) arp_mode: Option<String>,
    /// A /16 for host access
    #[arg(short = 's', long)]
    pub(crate) private_subnet: Option<String>,
    /// Which free address is next: lowest (at first), or spread over the network by name
    #[arg(long, value_name = "ORDER")]
    pub(crate) ip_allocation: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// Lists nodes
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Shows a node and its endpoints as JSON
    Inspect(NameArgs),
    /// Removes a node that does not come back; it is not connected
    #[command(visible_alias = "delete")]
    Rm(NodeRmArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NodeRmArgs {
    #[command(flatten)]
    pub(crate) node: NameArgs,
    /// Also deletes the endpoints it had: their addresses are given to others
    #[arg(long)]
    pub(crate) with_endpoints: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Who opens the connection: an address, an endpoint's id, or a group's name
    pub(crate) from: String,
    /// Who answers: an address, an endpoint's id, or a group's name
    pub(crate) to: String,
    /// Name of the tenant
    #[arg(short, long, default_value = "default")]
    pub(crate) tenant: String,
    /// tcp, udp, icmp or a number
    #[arg(short = 'l', long)]
    pub(crate) protocol: String,
    /// Destination port of TCP and UDP
    #[arg(short = 'P', long, default_value_t = 0, hide_default_value = true)]
    pub(crate) port: u32,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BundleArgs {
    /// The file to write; there must be none yet
    #[arg(short, long, value_name = "FILE")]
    pub(crate) filename: PathBuf,
    /// A log or configuration file to put in, without passwords, tokens and keys; repeatable
    #[arg(short, long, value_name = "FILE")]
    pub(crate) include: Vec<PathBuf>,
    /// A daemon whose metrics to put in, http://HOST:PORT or unix:PATH; repeatable
    #[arg(short, long, value_name = "URL")]
    pub(crate) metrics: Vec<Target>,
}
