//! `vrctl`: what the engine of this node holds and does, over `datapath.v1` on its unix socket.
//!
//! It reads ports, table entries, cached and offloaded flows, routes, connections, meters, drops,
//! workers, and traces of what would become of a packet or becomes of those that arrive; all it changes is whether
//! flows are offloaded. Tables and JSON are made by pure functions of the replies ([`view`],
//! [`trace`]). Output is data only (stdout); errors go to stderr. Exit codes: 0 ok, 1 usage,
//! 2 request failed or engine unreachable, 3 refused or not found, 4 local I/O.
#![expect(clippy::print_stderr, reason = "errors and warnings of a command line go to stderr")]

mod args;
mod conn;
mod droplog;
mod drops;
mod failure;
mod meter;
mod offload;
mod out;
mod packet;
mod pages;
mod pcap;
mod route;
mod run;
mod table;
mod top;
mod trace;
mod view;
mod worker;

use std::process::ExitCode;

use clap::Parser as _;

use args::Cli;
use failure::Failure;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprint!("{}", failure.report());
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Prints clap's help, version or complaint. Wrong usage is 1 here, as in netctl; clap's own is 2.
fn usage(error: &clap::Error) -> ExitCode {
    match (error.print(), error.use_stderr()) {
        (Err(_), _) => ExitCode::from(failure::EXIT_IO),
        (Ok(()), true) => ExitCode::from(failure::EXIT_USAGE),
        (Ok(()), false) => ExitCode::SUCCESS,
    }
}

fn execute(cli: Cli) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Io)?;
    runtime.block_on(run::run(cli))
}
