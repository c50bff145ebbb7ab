//! `netctl`: Contiv's command line for tenants, networks, groups and policies, over `control.v1`.
//!
//! A run is one short path: Contiv's old flag spellings are rewritten, clap parses, [`run`] makes
//! the calls and gives back what to print, and this file prints it. Output is data only (stdout);
//! warnings and errors go to stderr. Exit codes: 0 ok, 1 usage, 2 request failed or netmaster
//! unreachable, 3 refused, not found or in conflict, 4 local I/O.
#![expect(clippy::print_stderr, reason = "errors and warnings of a command line go to stderr")]

mod args;
mod cleaned;
mod data;
mod failure;
mod ip;
mod manifest;
mod out;
mod page;
mod pages;
mod rewrite;
mod rule;
mod run;
mod session;
mod table;
mod target;
mod view;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

use args::Cli;
use failure::Failure;
use run::Outcome;

fn main() -> ExitCode {
    let argv: Vec<OsString> = rewrite::contiv_flags(std::env::args_os().collect());
    let cli = match Cli::try_parse_from(argv) {
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

/// Prints clap's help, version or complaint. Contiv's code for wrong usage is 1, clap's own is 2.
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
    let outcome = runtime.block_on(run::run(cli))?;
    print(&outcome)
}

fn print(outcome: &Outcome) -> Result<(), Failure> {
    for warning in &outcome.warnings {
        eprintln!("netctl: warning: {warning}");
    }
    match out::write(&outcome.text) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::Io(error)),
    }
}
