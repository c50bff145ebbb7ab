//! Verbs of tenants, networks, groups and net profiles.

use std::net::{Ipv4Addr, Ipv6Addr};

use clap::{Args, Subcommand};

use super::{ListArgs, NameArgs, OutputArgs, ScopedArgs, ScopedListArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum TenantVerb {
    /// Creates a tenant
    Create(TenantArgs),
    /// Changes settings of a tenant at once; what is not named stays
    Update(TenantArgs),
    /// Deletes a tenant that has nothing left in it
    #[command(visible_alias = "delete")]
    Rm(NameArgs),
    /// Lists tenants
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Shows a tenant and its state as JSON
    Inspect(NameArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TenantArgs {
    /// Its name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) settings: TenantSettingsArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Bounds are of each node by itself.
#[derive(Debug, Args)]
pub(crate) struct TenantSettingsArgs {
    /// What happens to traffic that no rule matches: allow (at first) or deny
    #[arg(long, value_name = "VERDICT")]
    pub(crate) default_verdict: Option<String>,
    /// Track connections: replies pass without a rule (at first)
    #[arg(long, conflicts_with = "stateless")]
    pub(crate) stateful: bool,
    /// Compare every packet with the rules on its own
    #[arg(long)]
    pub(crate) stateless: bool,
    /// Established connections that a change of policy denies: cut (at first), or finish: they go on
    #[arg(long, value_name = "ACTION")]
    pub(crate) on_deny: Option<String>,
    /// Most connections at once on a node; 0 (at first) leaves it to vrouterd
    #[arg(long, value_name = "N")]
    pub(crate) max_connections: Option<u32>,
    /// Most new flows per second on a node; 0 (at first) leaves it to vrouterd
    #[arg(long, value_name = "N")]
    pub(crate) max_new_flows: Option<u32>,
    /// Whether the kernel may forward its flows that carry much: on (at first) or off
    #[arg(long, value_name = "SWITCH")]
    pub(crate) offload: Option<String>,
    /// Of all its endpoints on a node together, in each direction, for example 1 Gbps; "" is no limit
    #[arg(short, long)]
    pub(crate) bandwidth: Option<String>,
    /// Burst of that bandwidth in KB of 1000 bytes, 2 to 10486; 0 (at first) is 100 ms of it
    #[arg(short = 's', long, value_name = "KB")]
    pub(crate) burst: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkVerb {
    /// Creates a network
    Create(NetworkCreateArgs),
    /// Changes whether the kernel may forward flows of its endpoints
    Update(NetworkUpdateArgs),
    /// Deletes a network without endpoints and groups
    #[command(visible_alias = "delete")]
    Rm(ScopedArgs),
    /// Lists networks
    #[command(visible_alias = "list")]
    Ls(ScopedListArgs),
    /// Shows a network and its state as JSON
    Inspect(ScopedArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NetworkCreateArgs {
    #[command(flatten)]
    pub(crate) scope: ScopedArgs,
    /// Network type: data or infra
    #[arg(short, long, default_value = "data")]
    pub(crate) nw_type: String,
    /// Encapsulation: vlan or vxlan
    #[arg(short, long, default_value = "vxlan")]
    pub(crate) encap: String,
    /// VLAN id or VNI; 0 takes a free one
    #[arg(short, long, default_value_t = 0)]
    pub(crate) pkt_tag: u32,
    /// 10.1.1.0/24 or 10.1.1.10-10.1.1.99/24
    #[arg(short, long)]
    pub(crate) subnet: String,
    /// Address of the gateway
    #[arg(short, long)]
    pub(crate) gateway: Option<Ipv4Addr>,
    /// IPv6 subnet, a block or a range of one, as for IPv4: containers get an address of each family
    /// (also -s6)
    #[arg(long)]
    pub(crate) subnetv6: Option<String>,
    /// IPv6 address of the gateway (also -g6)
    #[arg(long)]
    pub(crate) gatewayv6: Option<Ipv6Addr>,
    /// Tag of the network (also -tag)
    #[arg(long)]
    pub(crate) nw_tag: Option<String>,
    /// Whether the kernel may forward its endpoints' flows that carry much: on (at first) or off
    #[arg(long, value_name = "SWITCH")]
    pub(crate) offload: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkUpdateArgs {
    #[command(flatten)]
    pub(crate) scope: ScopedArgs,
    /// Whether the kernel may forward its endpoints' flows that carry much: on or off
    #[arg(long, value_name = "SWITCH")]
    pub(crate) offload: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupVerb {
    /// Creates an endpoint group in a network, or replaces the policies and net profile of one
    Create(GroupCreateArgs),
    /// Deletes a group without endpoints
    #[command(visible_alias = "delete")]
    Rm(ScopedArgs),
    /// Lists groups
    #[command(visible_alias = "list")]
    Ls(ScopedListArgs),
    /// Shows a group and its state as JSON
    Inspect(ScopedArgs),
}

#[derive(Debug, Args)]
pub(crate) struct GroupCreateArgs {
    /// The network of its endpoints
    pub(crate) network: String,
    #[command(flatten)]
    pub(crate) scope: ScopedArgs,
    /// A policy to enforce on it; may be given several times
    #[arg(short, long)]
    pub(crate) policy: Vec<String>,
    /// Net profile: limits and marks its endpoints; without it they are not limited
    #[arg(short, long)]
    pub(crate) networkprofile: Option<String>,
    /// Addresses of its endpoints, for example 10.36.0.1-10.36.0.10
    #[arg(short = 'r', long)]
    pub(crate) ip_pool: Option<String>,
    /// IPv6 addresses of its endpoints, the first and the last joined with a dash
    #[arg(long)]
    pub(crate) ipv6_pool: Option<String>,
    /// Tag of the group (also -tag)
    #[arg(long)]
    pub(crate) epg_tag: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProfileVerb {
    /// Creates a net profile, or replaces one, at once also for the groups that have it
    Create(ProfileCreateArgs),
    /// Deletes a net profile that no group has
    #[command(visible_alias = "delete")]
    Rm(ScopedArgs),
    /// Lists net profiles
    #[command(visible_alias = "list")]
    Ls(ScopedListArgs),
    /// Shows a net profile and the endpoints that have it as JSON
    Inspect(ScopedArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ProfileCreateArgs {
    #[command(flatten)]
    pub(crate) named: ScopedArgs,
    /// What an endpoint may send and what it may receive, for example 10 kbps, 100 mbps, 1gbps; no
    /// limit if absent
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(crate) bandwidth: String,
    /// Mark of what an endpoint sends, 0 to 63; 0 leaves the mark of its packets
    #[arg(short, long, default_value_t = 0)]
    pub(crate) dscp: u32,
    /// Burst in KB of 1000 bytes, 2 to 10486; 0 is 100 ms of the bandwidth
    #[arg(short = 's', long, value_name = "KB", default_value_t = 0)]
    pub(crate) burst: u32,
    /// endpoint: each has the whole bandwidth; group: all endpoints of a group on a node share it
    #[arg(long, default_value = "endpoint")]
    pub(crate) scope: String,
}
