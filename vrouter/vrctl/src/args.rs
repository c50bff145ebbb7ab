//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EVERYWHERE: &str = "Options of every command";

/// Shows what the engine of this node holds and does.
#[derive(Debug, Parser)]
#[command(name = "vrctl", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Socket of vrouterd
    #[arg(long, env = "WEIR_DATAPATH", default_value = "/run/weir/vrouterd.sock")]
    #[arg(global = true, help_heading = EVERYWHERE)]
    pub(crate) socket: PathBuf,
    /// How results are printed
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    #[arg(global = true, help_heading = EVERYWHERE)]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ports and their counters
    #[command(subcommand)]
    Port(PortVerb),
    /// Table entries and cached flows
    #[command(subcommand)]
    Flow(FlowVerb),
    /// Routes of the tenants
    #[command(subcommand)]
    Route(RouteVerb),
    /// Dropped packets by reason
    Drops {
        /// Print what is added each second until interrupted
        #[arg(long)]
        follow: bool,
    },
    /// What the engine would do with a packet, and why
    Trace(TraceArgs),
    /// Version and identity of the engine
    Status,
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

#[derive(Debug, Subcommand)]
pub(crate) enum PortVerb {
    /// Lists ports
    #[command(visible_alias = "list")]
    Ls,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FlowVerb {
    /// Lists table entries, or with --cache the cached flows
    #[command(visible_alias = "list")]
    Ls(FlowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct FlowArgs {
    /// Only what could match this flow, for example `in_port=3,tcp,tp_dst=80`
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) flow: String,
    /// The exact flows that workers have cached
    #[arg(long)]
    pub(crate) cache: bool,
    /// At most this many lines; 0 is the engine's own limit of 10,000
    #[arg(long, default_value_t = 0)]
    pub(crate) limit: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RouteVerb {
    /// Lists routes
    #[command(visible_alias = "list")]
    Ls {
        /// Only of this VRF
        #[arg(long)]
        vrf: Option<u32>,
    },
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("packet").required(true))]
pub(crate) struct TraceArgs {
    /// The packet as flow text, for example
    /// `in_port=3,icmp,nw_src=10.1.1.1,nw_dst=10.1.1.2`
    #[arg(group = "packet")]
    pub(crate) flow: Option<String>,
    /// The packet as bytes in hexadecimal, from the destination MAC on
    #[arg(long, group = "packet")]
    pub(crate) hex: Option<String>,
    /// The first packet of a pcap file
    #[arg(long, group = "packet")]
    pub(crate) pcap: Option<PathBuf>,
    /// Not in this version
    #[arg(long, group = "packet", hide = true)]
    pub(crate) live: Option<String>,
    /// With --pcap: every packet of the file
    #[arg(long, conflicts_with_all = ["flow", "hex", "live"])]
    pub(crate) all: bool,
    /// Port that receives the packet: name or id
    #[arg(long)]
    pub(crate) in_port: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::{Cli, Command, Format};

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_output_may_be_chosen_anywhere() {
        assert_eq!(parse("vrctl -o json port ls").unwrap().output, Format::Json);
        assert_eq!(parse("vrctl port ls -o json").unwrap().output, Format::Json);
        assert_eq!(parse("vrctl drops").unwrap().output, Format::Table);
        assert!(parse("vrctl drops -o yaml").is_err());
    }

    #[test]
    fn a_trace_needs_exactly_one_packet() {
        assert!(parse("vrctl trace").is_err());
        assert!(parse("vrctl trace in_port=1,arp --hex 00").is_err());
        assert!(parse("vrctl trace --hex 00 --all").is_err());
        let Command::Trace(args) = parse("vrctl trace --hex 00 --in-port 3").unwrap().command
        else {
            panic!()
        };
        assert_eq!((args.hex.as_deref(), args.in_port.as_deref()), (Some("00"), Some("3")));
    }
}
