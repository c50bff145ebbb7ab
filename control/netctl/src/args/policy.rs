//! Verbs of policies and their rules.

use clap::{Args, Subcommand};

use super::{Format, ListArgs, ScopedArgs, ScopedListArgs, parse_format};

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
    /// Also the packets and bytes each rule has decided, summed over the nodes; not with --watch, where
    /// they are 0 also in JSON
    #[arg(long, conflicts_with = "watch")]
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
    /// table, json or yaml
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    pub(crate) output: Option<Format>,
}
