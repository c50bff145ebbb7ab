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
    /// Connections that the engine tracks
    #[command(subcommand, visible_alias = "connection")]
    Conn(ConnVerb),
    /// Meters and what they coloured
    #[command(subcommand)]
    Meter(MeterVerb),
    /// Flows that the kernel forwards without the engine; `on` and `off` start and stop that
    Offload {
        /// Without it, numbers are shown
        switch: Option<Switch>,
    },
    /// Dropped packets: counted by reason, or with --log one by one
    Drops(DropsArgs),
    /// What the engine would do with a packet, and why
    Trace(TraceArgs),
    /// Workers and their queues: what they have done since they started
    Worker,
    /// What a packet costs a worker, by stage, and how full its queues are, again and again
    Top(TopArgs),
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

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
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
    /// Shows the cached flows that match, and why the kernel forwards them or does not
    Get {
        /// For example `in_port=3,tcp,tp_dst=80`
        flow: String,
    },
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

#[derive(Debug, Subcommand)]
pub(crate) enum ConnVerb {
    /// Lists connections
    #[command(visible_alias = "list")]
    Ls(ConnArgs),
    /// How many there are, and how many were refused
    Stats,
}

#[derive(Debug, Args)]
pub(crate) struct ConnArgs {
    /// Only those that have packets of this flow, for example `vrf=1,tcp,tp_dst=443`
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) flow: String,
    /// At most this many lines; 0 is the engine's own limit of 10,000
    #[arg(long, default_value_t = 0)]
    pub(crate) limit: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MeterVerb {
    /// Lists meters
    #[command(visible_alias = "list")]
    Ls,
}

#[derive(Debug, Args)]
pub(crate) struct DropsArgs {
    /// Print what is added each second, or with --log each packet, until interrupted
    #[arg(long)]
    pub(crate) follow: bool,
    /// The last packets that tables and limits refused: when, why, by which rule; others are only
    /// counted
    #[arg(long)]
    pub(crate) log: bool,
    /// With --log: only of this VRF
    #[arg(long, requires = "log")]
    pub(crate) vrf: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Seconds between two readings
    #[arg(long, value_name = "S", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) interval: u32,
    /// End after this many readings instead of when interrupted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: Option<u32>,
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
    /// Packets of this flow as they arrive, each with its own trace, until interrupted
    #[arg(long, group = "packet", value_name = "FLOW")]
    pub(crate) live: Option<String>,
    /// With --live: end after this many packets
    #[arg(long, conflicts_with_all = ["flow", "hex", "pcap"])]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: Option<u32>,
    /// With --live: end after this time
    #[arg(long, conflicts_with_all = ["flow", "hex", "pcap"])]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) seconds: Option<u32>,
    /// With --pcap: every packet of the file
    #[arg(long, conflicts_with_all = ["flow", "hex", "live"])]
    pub(crate) all: bool,
    /// Port that receives the packet: name or id
    #[arg(long, conflicts_with = "live")]
    pub(crate) in_port: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::{Cli, Command, ConnVerb, Format};

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
        assert_eq!((args.live, args.count, args.seconds), (None, None, None));
        assert_eq!((args.hex.as_deref(), args.in_port.as_deref()), (Some("00"), Some("3")));
    }

    #[test]
    fn live_traces_may_be_bounded() {
        let Command::Trace(args) =
            parse("vrctl trace --live tcp --count 3 --seconds 9").unwrap().command
        else {
            panic!()
        };
        assert_eq!(
            (args.live.as_deref(), args.count, args.seconds),
            (Some("tcp"), Some(3), Some(9))
        );
        assert!(parse("vrctl trace in_port=1,arp --count 3").is_err());
        assert!(parse("vrctl trace --live tcp --count 0").is_err());
        assert!(parse("vrctl trace --live tcp --in-port 3").is_err());
        assert!(parse("vrctl trace --live tcp in_port=1,arp").is_err());
    }

    #[test]
    fn connections_have_a_long_name_too() {
        let Command::Conn(ConnVerb::Ls(args)) = parse("vrctl connection ls tcp").unwrap().command
        else {
            panic!()
        };
        assert_eq!((args.flow.as_str(), args.limit), ("tcp", 0));
        assert!(parse("vrctl conn list --limit 5").is_ok());
        assert!(parse("vrctl meter ls -o json").is_ok());
    }

    #[test]
    fn top_reads_once_a_second_until_it_is_told_otherwise() {
        let Command::Top(args) = parse("vrctl top").unwrap().command else { panic!() };
        assert_eq!((args.interval, args.count), (1, None));
        let Command::Top(args) = parse("vrctl top --interval 5 --count 2").unwrap().command else {
            panic!()
        };
        assert_eq!((args.interval, args.count), (5, Some(2)));
        assert!(parse("vrctl top --interval 0").is_err());
        assert!(parse("vrctl top --count 0").is_err());
    }

    #[test]
    fn offloading_is_shown_or_switched() {
        let parsed = |line| {
            let Command::Offload { switch } = parse(line).unwrap().command else { panic!() };
            switch
        };
        assert_eq!(parsed("vrctl offload"), None);
        assert_eq!(parsed("vrctl offload off"), Some(super::Switch::Off));
        assert!(parse("vrctl offload maybe").is_err());
        assert!(parse("vrctl flow get").is_err());
    }

    #[test]
    fn only_the_log_of_drops_knows_tenants() {
        assert!(parse("vrctl drops --vrf 3").is_err());
        let Command::Drops(args) = parse("vrctl drops --log --follow --vrf 3").unwrap().command
        else {
            panic!()
        };
        assert_eq!((args.log, args.follow, args.vrf), (true, true, Some(3)));
    }
}
