//! The command line: Contiv's nouns, verbs and flags, and ours beside them.
//!
//! `-o` and `-j` choose the output in every command but `policy rule-add`, where they keep Contiv's
//! meaning (`--to-network`, `--action`); there only `--output` is ours.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::target::{Target, parse_duration};
use crate::view::ListForm;

/// Manages tenants, networks, groups and policies of a Weir cluster.
#[derive(Debug, Parser)]
#[command(name = "netctl", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

const CONNECTION: &str = "Connection";

#[derive(Debug, Args)]
pub(crate) struct GlobalArgs {
    /// Address of netmaster: http://HOST:PORT or unix:PATH
    #[arg(long, env = "NETMASTER", default_value = "http://127.0.0.1:9999")]
    #[arg(global = true, help_heading = CONNECTION)]
    pub(crate) netmaster: Target,
    /// How long to wait for netmaster, for example 10s or 500ms
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    #[arg(global = true, help_heading = CONNECTION)]
    pub(crate) timeout: Duration,
    /// Return when the change is stored, without waiting for the nodes
    #[arg(long, global = true, help_heading = CONNECTION)]
    pub(crate) no_wait: bool,
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Json,
}

/// A format this version does not print.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadFormat {
    #[error("yaml is not in this version; use json")]
    Yaml,
    #[error("want table or json")]
    Unknown,
}

fn parse_format(text: &str) -> Result<Format, BadFormat> {
    match text {
        "table" => Ok(Format::Table),
        "json" => Ok(Format::Json),
        "yaml" => Err(BadFormat::Yaml),
        _ => Err(BadFormat::Unknown),
    }
}

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct OutputArgs {
    /// table or json
    #[arg(short, long, value_name = "FORMAT", value_parser = parse_format)]
    output: Option<Format>,
    /// The same as -o json
    #[arg(short, long, conflicts_with = "output")]
    json: bool,
}

impl OutputArgs {
    /// What was asked for behind the verb, else before the noun, else a table.
    pub(crate) fn format(&self, outer: &Self) -> Format {
        self.asked().or_else(|| outer.asked()).unwrap_or(Format::Table)
    }

    fn asked(&self) -> Option<Format> {
        if self.json { Some(Format::Json) } else { self.output }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Tenants: separate address spaces that never reach each other
    #[command(subcommand)]
    Tenant(TenantVerb),
    /// Networks of a tenant
    #[command(subcommand, visible_alias = "net")]
    Network(NetworkVerb),
    /// Endpoint groups: what policies and net profiles are attached to
    #[command(subcommand)]
    Group(GroupVerb),
    /// Net profiles: bandwidth and DSCP of the endpoints of groups
    #[command(subcommand)]
    Netprofile(ProfileVerb),
    /// Policies and their rules
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// Attached containers
    #[command(subcommand, visible_alias = "ep")]
    Endpoint(EndpointVerb),
    /// Settings of the whole cluster
    #[command(subcommand)]
    Global(GlobalVerb),
    /// Nodes that registered with netmaster
    #[command(subcommand)]
    Node(NodeVerb),
    /// The version of this program
    Version(VersionArgs),
    /// Prints a completion script
    #[command(hide = true)]
    Completion {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages
    #[command(hide = true)]
    Man {
        /// An existing directory
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// One object without a tenant above it.
#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    /// Its name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// One object of a tenant.
#[derive(Debug, Args)]
pub(crate) struct ScopedArgs {
    /// Its name
    pub(crate) name: String,
    /// Name of the tenant
    #[arg(short, long, default_value = "default")]
    pub(crate) tenant: String,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

impl ScopedArgs {
    /// The object's key in control.v1.
    pub(crate) fn key(&self) -> String {
        format!("{}:{}", self.tenant, self.name)
    }
}

/// A list of objects without a tenant above them.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl ListArgs {
    /// What to print of each object; JSON goes before names, as in Contiv.
    pub(crate) fn form(&self, outer: &OutputArgs) -> ListForm {
        match (self.output.format(outer), self.quiet) {
            (Format::Json, _) => ListForm::Json,
            (Format::Table, true) => ListForm::Names,
            (Format::Table, false) => ListForm::Table,
        }
    }
}

/// A list of objects of one tenant or all.
#[derive(Debug, Args)]
pub(crate) struct ScopedListArgs {
    /// Name of the tenant
    #[arg(short, long, default_value = "default")]
    pub(crate) tenant: String,
    /// Of all tenants
    #[arg(short, long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

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
    /// IPv6 subnet (also -s6)
    #[arg(long)]
    pub(crate) subnetv6: Option<String>,
    /// IPv6 address of the gateway (also -g6)
    #[arg(long)]
    pub(crate) gatewayv6: Option<Ipv6Addr>,
    /// Tag of the network (also -tag)
    #[arg(long)]
    pub(crate) nw_tag: Option<String>,
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

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Creates a policy without rules
    Create(ScopedArgs),
    /// Deletes a policy that no group uses, with its rules
    #[command(visible_alias = "delete")]
    Rm(ScopedArgs),
    /// Lists policies
    #[command(visible_alias = "list")]
    Ls(ScopedListArgs),
    /// Shows a policy and its state as JSON
    Inspect(ScopedArgs),
    /// Lists the rules of a policy
    #[command(visible_alias = "rule-list")]
    RuleLs(RuleListArgs),
    /// Adds a rule to a policy
    RuleAdd(Box<RuleAddArgs>),
    /// Deletes a rule of a policy
    #[command(visible_alias = "rule-delete")]
    RuleRm(RuleRemoveArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RuleListArgs {
    /// The policy
    pub(crate) policy: String,
    /// Name of the tenant
    #[arg(short, long, default_value = "default")]
    pub(crate) tenant: String,
    /// Also the packets and bytes each rule has decided, summed over the nodes
    #[arg(long)]
    pub(crate) stats: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RuleRemoveArgs {
    /// The policy
    pub(crate) policy: String,
    #[command(flatten)]
    pub(crate) scope: ScopedArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RuleAddArgs {
    /// The policy
    pub(crate) policy: String,
    /// Id of the new rule
    pub(crate) rule_id: String,
    /// Name of the tenant
    #[arg(short, long, default_value = "default")]
    pub(crate) tenant: String,
    /// 1 to 100, higher wins
    #[arg(short, long, default_value_t = 1)]
    pub(crate) priority: u32,
    /// in or out
    #[arg(short, long, default_value = "in")]
    pub(crate) direction: String,
    /// Group of the sender (in-rules)
    #[arg(short = 'g', long, default_value = "", hide_default_value = true)]
    pub(crate) from_group: String,
    /// Group of the receiver (out-rules)
    #[arg(short = 'e', long, default_value = "", hide_default_value = true)]
    pub(crate) to_group: String,
    /// Network of the sender (in-rules)
    #[arg(short = 'n', long, default_value = "", hide_default_value = true)]
    pub(crate) from_network: String,
    /// Network of the receiver (out-rules)
    #[arg(short = 'o', long, default_value = "", hide_default_value = true)]
    pub(crate) to_network: String,
    /// Address or subnet of the sender (in-rules)
    #[arg(short = 'i', long, default_value = "", hide_default_value = true)]
    pub(crate) from_ip_address: String,
    /// Address or subnet of the receiver
    #[arg(short = 's', long, default_value = "", hide_default_value = true)]
    pub(crate) to_ip_address: String,
    /// tcp, udp, icmp or a number; any if absent
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    pub(crate) protocol: String,
    /// Destination port; 0 is any
    #[arg(short = 'P', long, default_value_t = 0)]
    pub(crate) port: u32,
    /// allow or deny
    #[arg(short = 'j', long, default_value = "allow")]
    pub(crate) action: String,
    /// table or json
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    pub(crate) output: Option<Format>,
}

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
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// Lists nodes
    #[command(visible_alias = "list")]
    Ls(ListArgs),
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::{Cli, Format, ListForm, NetworkVerb, Noun, PolicyVerb};

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rule_add_keeps_the_meaning_of_o_and_j() {
        let cli = parse("netctl policy rule-add p1 1 -d out -o backend -j deny --output json");
        let Noun::Policy(PolicyVerb::RuleAdd(args)) = cli.unwrap().noun else { panic!() };
        assert_eq!(args.to_network, "backend");
        assert_eq!(args.action, "deny");
        assert_eq!(args.output, Some(Format::Json));
    }

    #[test]
    fn output_is_chosen_behind_the_verb_or_before_the_noun() {
        let form = |line: &str| {
            let cli = parse(line).unwrap();
            let Noun::Network(NetworkVerb::Ls(args)) = cli.noun else { panic!() };
            args.list.form(&cli.output)
        };
        assert_eq!(form("netctl net ls"), ListForm::Table);
        assert_eq!(form("netctl net ls -q"), ListForm::Names);
        assert_eq!(form("netctl network list -aqj"), ListForm::Json);
        assert_eq!(form("netctl -o json net ls"), ListForm::Json);
        assert_eq!(form("netctl -o json net ls -o table"), ListForm::Table);
    }

    #[test]
    fn a_tenant_is_stateful_or_stateless_and_not_both() {
        let error = parse("netctl tenant update red --stateful --stateless").unwrap_err();
        assert!(error.to_string().contains("--stateless"), "{error}");
    }

    #[test]
    fn yaml_is_refused_with_what_to_use_instead() {
        let error = parse("netctl net ls -o yaml").unwrap_err().to_string();
        assert!(error.contains("yaml is not in this version; use json"), "{error}");
        let error = parse("netctl net ls -o xml").unwrap_err().to_string();
        assert!(error.contains("want table or json"), "{error}");
    }

    #[test]
    fn a_network_needs_a_subnet_and_a_gateway_that_is_an_address() {
        let error = parse("netctl net create n1").unwrap_err().to_string();
        assert!(error.contains("--subnet"), "{error}");
        let error = parse("netctl net create n1 -s 10.1.1.0/24 -g 10.1.1.256").unwrap_err();
        assert!(error.to_string().contains("--gateway"), "{error}");
    }

    #[test]
    fn https_is_refused_before_anything_is_sent() {
        let error = parse("netctl tenant ls --netmaster https://n:9999").unwrap_err().to_string();
        assert!(error.contains("built without TLS"), "{error}");
    }
}
