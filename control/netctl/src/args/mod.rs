//! The command line: Contiv's nouns, verbs and flags, and ours beside them.
//!
//! `-o` and `-j` choose the output in every command but `policy rule-add`, where they keep Contiv's
//! meaning (`--to-network`, `--action`); there only `--output` is ours.

mod cluster;
mod manifest;
mod objects;
mod policy;
mod services;

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args, Parser, Subcommand};

use crate::data::Data;
use crate::ip::IpVerb;
use crate::target::{Target, parse_duration};
use crate::view::ListForm;

pub(crate) use cluster::*;
pub(crate) use manifest::*;
pub(crate) use objects::*;
pub(crate) use policy::*;
pub(crate) use services::*;

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
    /// Address of netmaster: http://HOST:PORT or unix:PATH; of several, separated by commas, the first that answers
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
    /// Without effect: there is no certificate to check; Contiv has it
    #[arg(long, env = "INSECURE", default_value_t = false, default_missing_value = "true")]
    #[arg(num_args = 0..=1, require_equals = true, value_parser = FalseyValueParser::new())]
    #[arg(action = ArgAction::Set, global = true, hide = true)]
    pub(crate) insecure: bool,
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Data(Data),
}

impl Format {
    /// The form for programs, also where a person asked: what has no table is JSON.
    pub(crate) const fn data(self) -> Data {
        match self {
            Self::Table => Data::Json,
            Self::Data(data) => data,
        }
    }
}

/// A format that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("want table, json or yaml")]
pub(crate) struct BadFormat;

fn parse_format(text: &str) -> Result<Format, BadFormat> {
    match text {
        "table" => Ok(Format::Table),
        "json" => Ok(Format::Data(Data::Json)),
        "yaml" => Ok(Format::Data(Data::Yaml)),
        _ => Err(BadFormat),
    }
}

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct OutputArgs {
    /// table, json or yaml
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
        if self.json { Some(Format::Data(Data::Json)) } else { self.output }
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
    /// Services: an address in front of the endpoints with certain labels
    #[command(subcommand)]
    Service(ServiceVerb),
    /// Application profiles: names for several groups
    #[command(subcommand)]
    AppProfile(AppProfileVerb),
    /// BGP settings of hosts
    #[command(subcommand)]
    Bgp(BgpVerb),
    /// Attached containers
    #[command(subcommand, visible_alias = "ep")]
    Endpoint(EndpointVerb),
    /// Settings of the whole cluster
    #[command(subcommand)]
    Global(GlobalVerb),
    /// Nodes that registered with netmaster
    #[command(subcommand)]
    Node(NodeVerb),
    /// Prints objects as files that `apply` takes
    Get(GetArgs),
    /// Creates and changes all objects of a file at once, or none
    Apply(ApplyArgs),
    /// Says what `apply` would change
    Diff(DiffArgs),
    /// Addresses: reserved, used, on their way back
    #[command(subcommand)]
    Ip(IpVerb),
    /// Says which rules let one end open a connection to another
    Explain(ExplainArgs),
    /// How netmaster and the nodes are
    Status(VersionArgs),
    /// Writes what somebody who helps needs to see to a tar file
    SupportBundle(BundleArgs),
    /// Not in this version: netmaster has no users
    #[command(hide = true)]
    Login,
    /// The versions of this program and of the netmaster that answers
    Version(VersionArgs),
    /// Prints a completion script
    Completion {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages
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

/// How a list is printed. Of its own for lists that netmaster tells no changes of: they have no `--watch`.
#[derive(Debug, Args)]
pub(crate) struct ListFormArgs {
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl ListFormArgs {
    /// What to print of each object; data goes before names, as in Contiv.
    pub(crate) fn form(&self, outer: &OutputArgs) -> ListForm {
        match (self.output.format(outer), self.quiet) {
            (Format::Data(data), _) => ListForm::Data(data),
            (Format::Table, true) => ListForm::Names,
            (Format::Table, false) => ListForm::Table,
        }
    }
}

/// A list of objects without a tenant above them.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Then also every change, until interrupted
    #[arg(short, long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    form: ListFormArgs,
}

impl ListArgs {
    pub(crate) fn form(&self, outer: &OutputArgs) -> ListForm {
        self.form.form(outer)
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

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::{Cli, Data, Format, ListForm, NetworkVerb, Noun, PolicyVerb};

    use crate::rewrite::contiv_flags;

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
        assert_eq!(args.output, Some(Format::Data(Data::Json)));
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
        assert_eq!(form("netctl network list -aqj"), ListForm::Data(Data::Json));
        assert_eq!(form("netctl -o json net ls"), ListForm::Data(Data::Json));
        assert_eq!(form("netctl -o json net ls -o table"), ListForm::Table);
        assert_eq!(form("netctl net ls -o yaml"), ListForm::Data(Data::Yaml));
    }

    /// Every command with the flag prints changes; the others refuse it.
    #[test]
    fn cli_1_watch_is_taken_where_netmaster_tells_changes_and_refused_elsewhere() {
        let nouns = [
            "tenant",
            "network",
            "group",
            "netprofile",
            "policy",
            "service",
            "app-profile",
            "bgp",
            "endpoint",
            "node",
        ];
        let watched: Vec<String> = nouns.iter().map(|noun| format!("{noun} ls")).collect();
        let cli = Cli::command();
        let verbs = cli
            .get_subcommands()
            .flat_map(|noun| noun.get_subcommands().map(move |verb| (noun.get_name(), verb)));
        let takes = |verb: &clap::Command| verb.get_arguments().any(|arg| arg.get_id() == "watch");
        let taken = verbs.filter(|(_, verb)| takes(verb));
        let mut taken: Vec<_> =
            taken.map(|(noun, verb)| format!("{noun} {}", verb.get_name())).collect();
        let mut expected = [watched, vec!["policy rule-ls".to_owned()]].concat();
        expected.sort();
        taken.sort();
        assert_eq!(taken, expected);
        for line in [
            "netctl ip ls --watch",
            "netctl ip leaks -w",
            "netctl app-profile group-ls --watch shop",
            "netctl policy rule-ls --stats --watch guard",
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.use_stderr(), "{line}: {error}");
            assert!(error.to_string().contains("-w"), "{line}: {error}");
        }
    }

    #[test]
    fn a_tenant_is_stateful_or_stateless_and_not_both() {
        let error = parse("netctl tenant update red --stateful --stateless").unwrap_err();
        assert!(error.to_string().contains("--stateless"), "{error}");
    }

    #[test]
    fn another_format_is_refused_with_those_that_there_are() {
        let error = parse("netctl net ls -o xml").unwrap_err().to_string();
        assert!(error.contains("want table, json or yaml"), "{error}");
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

    #[test]
    fn cli_1_insecure_is_taken_in_every_spelling_of_contivs_and_from_its_variable() {
        for (line, insecure) in [
            ("netctl --insecure net ls", true),
            ("netctl net ls --insecure", true),
            ("netctl --insecure=false net ls", false),
            // The variable's values are read the same way: none may end a script.
            ("netctl --insecure=whatever net ls", true),
            ("netctl net ls", false),
        ] {
            assert_eq!(parse(line).unwrap().global.insecure, insecure, "{line}");
        }
        let cli = Cli::command();
        let flag = cli.get_arguments().find(|arg| arg.get_id() == "insecure").unwrap();
        assert_eq!(flag.get_env(), Some("INSECURE".as_ref()));
    }

    /// Reference section 2, without the commands of ACI.
    #[test]
    fn cli_1_every_command_of_the_reference_is_taken() {
        for line in [
            "version",
            "--insecure version",
            "--netmaster http://netmaster:9999 --insecure=true net ls",
            "login",
            "tenant create blue",
            "tenant rm blue",
            "tenant delete blue",
            "tenant ls -q",
            "tenant list -j",
            "tenant inspect blue",
            "network create -t blue -n data -e vxlan -p 7 -s 10.1.1.0/24 -g 10.1.1.254 -s6 2001:db8::/64 -g6 2001:db8::1 -tag x web",
            "net create --tenant blue --nw-type data --encap vlan --pkt-tag 7 --subnet 10.1.1.0/24 --gateway 10.1.1.254 --subnetv6 2001:db8::/64 --gatewayv6 2001:db8::1 --nw-tag x web",
            "net ls -t blue -a -j",
            "net list -q",
            "net rm -t blue web",
            "net delete web",
            "net inspect -t blue web",
            "group create -t blue -p a -p b -n gold -r 10.36.0.1-10.36.0.10 -tag x web front",
            "group create --policy a --networkprofile gold --ip-pool 10.36.0.1-10.36.0.10 --epg-tag x web front",
            "group ls -t blue -a -q",
            "group rm -t blue front",
            "group inspect -t blue front",
            "endpoint inspect c1:eth0",
            "ep inspect c1:eth0",
            "netprofile create -t blue -b 10kbps -d 10 -s 80 gold",
            "netprofile create --bandwidth 1gbps --dscp 10 --burst 80 gold",
            "netprofile rm -t blue gold",
            "netprofile ls -t blue -a -j",
            "netprofile inspect -t blue gold",
            "policy create -t blue guard",
            "policy rm -t blue guard",
            "policy ls -t blue -a -q",
            "policy inspect -t blue guard",
            "policy rule-add -t blue -p 2 -d in -g web -n net -i 10.1.1.1 -s 10.1.1.2 -l tcp -P 80 -j deny guard 1",
            "policy rule-add -t blue -d out -e web -o net -s 10.1.1.2 guard 1",
            "policy rule-add --priority 2 --direction out --to-group web --to-network net --to-ip-address 10.1.1.2 --protocol udp --port 53 --action allow guard 1",
            "policy rule-add --from-group web --from-network net --from-ip-address 10.1.1.1 guard 1",
            "policy rule-ls -t blue -j -q guard",
            "policy rule-rm -t blue guard 1",
            "global info -t blue -a -j",
            "global inspect",
            "global set -f default -v 1-4094 -x 1-10000 -b routing -a proxy -s 172.19.0.0/16",
            "global set --fabric-mode default --vlan-range 1-10 --vxlan-range 1-10 --fwd-mode bridge --arp-mode flood --private-subnet 172.19.0.0/16",
            "bgp create leaf --router-ip 10.9.0.1/24 --as 65001 --neighbor-as 65002 --neighbor 10.9.0.2",
            "bgp ls -j",
            "bgp list -q",
            "bgp rm leaf",
            "bgp inspect leaf",
            "app-profile create -t blue -g front,back shop",
            "app-profile update -t blue --group front shop",
            "app-profile rm -t blue shop",
            "app-profile ls -t blue -a -j",
            "app-profile group-ls -t blue -a -q shop",
            "app-profile group-list shop",
            "service create -t blue -s web -l app=x -p 80:80:TCP -ip 10.1.1.9 shop",
            "service create --network web --selector app=x --port 80:80:TCP --preferred-ip 10.1.1.9 shop",
            "service ls -t blue -a -j",
            "service inspect -t blue shop",
            "service rm -t blue shop",
        ] {
            let words = ["netctl"].into_iter().chain(line.split(' ')).map(Into::into).collect();
            let parsed = Cli::try_parse_from(contiv_flags(words));
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }
}
