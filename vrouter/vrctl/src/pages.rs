//! Completion scripts and manual pages, made from the command tree itself.

use std::path::Path;

use clap::CommandFactory as _;

use crate::args::Cli;
use crate::failure::Failure;

/// The completion script of a shell.
pub(crate) fn completion(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vrctl", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes one page per command into an existing directory.
pub(crate) fn manual(dir: &Path) -> Result<(), Failure> {
    clap_mangen::generate_to(Cli::command(), dir)
        .map_err(|source| Failure::Pages { dir: dir.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::completion;

    #[test]
    fn the_bash_script_knows_the_commands() {
        let script = completion(clap_complete::Shell::Bash);
        for command in ["port", "flow", "route", "conn", "meter", "drops", "trace", "status"] {
            assert!(script.contains(command), "{command}");
        }
    }
}
