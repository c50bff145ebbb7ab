//! weir-cni: the CNI plugin of Weir.
//!
//! A container runtime executes it once per operation with `CNI_*` in the environment and the
//! network configuration on stdin. The plugin checks both, asks netplugin over its unix socket
//! and prints the result, or the error object, on stdout in the shape of the configuration's
//! CNI version. Called with words it installs itself (see `install`). It holds no state but the deletion queue: everything else durable is netplugin's.

mod call;
mod command;
mod config;
mod environment;
mod failure;
mod install;
mod ipam;
mod journal;
mod queue;
mod success;
mod times;
mod version;

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use command::run;
use environment::Environment;

/// A network configuration larger than this is refused unread.
const STDIN_BYTES_MAX: u64 = 1 << 20;

fn main() -> ExitCode {
    let env = Environment::of_process();
    let mut words = std::env::args_os().skip(1).peekable();
    // Runtimes give no words; whoever does is a person.
    if !env.has_command() && words.peek().is_some() {
        return emit(&install::run(words));
    }
    let mut stdin = Vec::new();
    // Without a command there may be a terminal on stdin, which would never end.
    if env.has_command()
        && let Err(error) = std::io::stdin().take(STDIN_BYTES_MAX + 1).read_to_end(&mut stdin)
    {
        return emit(&failure::Failure::unreadable_stdin(&error).into_output());
    }
    if stdin.len() as u64 > STDIN_BYTES_MAX {
        return emit(&failure::Failure::long_stdin(STDIN_BYTES_MAX).into_output());
    }
    emit(&run(&env, &stdin))
}

fn emit(output: &command::Output) -> ExitCode {
    let stdout = std::io::stdout().write_all(output.stdout.as_bytes());
    let stderr = std::io::stderr().write_all(output.stderr.as_bytes());
    // A runtime that closed its end has no other way to learn of the failure than the exit code.
    if stdout.is_err() || stderr.is_err() { ExitCode::FAILURE } else { output.exit }
}
