//! `make demo`: the main job with real traffic, check by check, and everything removed at the end.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

use std::process::ExitCode;
use std::time::Instant;

use kit::{Purpose, cleanup_on_signal, remove_leftovers};
use tests::{ALL, World};

fn main() -> ExitCode {
    match demo() {
        Ok(0) => {
            println!("demo: PASS ({} checks)", ALL.len());
            ExitCode::SUCCESS
        }
        Ok(failed) => {
            println!("demo: FAIL ({failed} of {} checks)", ALL.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            println!("demo: FAIL (before the first check)");
            ExitCode::FAILURE
        }
    }
}

/// Number of checks that failed.
fn demo() -> anyhow::Result<usize> {
    cleanup_on_signal()?;
    for removed in remove_leftovers(Purpose::Demo)? {
        eprintln!("demo: removed {removed} of an earlier run");
    }
    let start = Instant::now();
    let mut world = World::build(Purpose::Demo, |step| eprintln!("demo: {step}"))?;
    eprintln!("demo: the scene stands after {:.1} s", start.elapsed().as_secs_f64());
    let mut failed = 0;
    for check in ALL {
        eprintln!("demo: {}", check.title);
        match (check.run)(&mut world) {
            Ok(seen) => println!("check {}: ok {seen}", check.number),
            Err(error) => {
                failed += 1;
                println!("check {}: FAIL {}: {error:#}", check.number, check.title);
            }
        }
    }
    drop(world);
    eprintln!("demo: all removed, {:.1} s in all", start.elapsed().as_secs_f64());
    Ok(failed)
}
