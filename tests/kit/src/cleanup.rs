//! What must be gone when this process is: the list of it, and the two times it is read.
//!
//! Guards put here what they make and take it out when they have removed it. A signal ends the
//! process without running any guard, so a thread waits for signals and removes what is listed.
//! It keeps the list locked until the process is gone: a guard that wants to make or remove
//! something meanwhile waits at the lock, and nothing is missed. A child is reaped only under the
//! lock, so a listed pid is never another process's.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use netdev::Namespace;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::netns::Purpose;

/// Everything that guards hold.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) pids: BTreeSet<Pid>,
    pub(crate) namespaces: BTreeSet<String>,
    pub(crate) dirs: BTreeSet<PathBuf>,
}

static HELD: Mutex<Held> =
    Mutex::new(Held { pids: BTreeSet::new(), namespaces: BTreeSet::new(), dirs: BTreeSet::new() });

pub(crate) fn held() -> MutexGuard<'static, Held> {
    // A panic under the lock leaves a list that is still true.
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes SIGINT, SIGTERM and SIGHUP remove every process, namespace and directory that guards
/// hold, then end the process with 128 + the signal's number. Call it first in `main`: threads
/// that run already would not leave the signals to it.
///
/// # Errors
/// When no thread is to be had.
pub fn cleanup_on_signal() -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("blocking signals")?;
    let wait = move || {
        let code = signals.wait().map_or(1, |signal| 128 + signal as i32);
        let held = held();
        remove_held(&held);
        std::process::exit(code);
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context("waiting for signals")?;
    Ok(())
}

/// Best effort, in the order in which one thing keeps another alive; what fails is left for
/// [`remove_leftovers`].
fn remove_held(held: &Held) {
    for pid in held.pids.iter().filter(|pid| kill(**pid, Signal::SIGKILL).is_ok()) {
        while waitpid(*pid, None) == Err(Errno::EINTR) {}
    }
    for name in &held.namespaces {
        drop(Namespace::delete_named(name));
    }
    for dir in &held.dirs {
        drop(remove_dir(dir));
    }
}

/// Removes namespaces and directories that runs of the same purpose left behind, where the process
/// that made them is gone. Returns their names.
///
/// # Errors
/// When one of them cannot be removed.
pub fn remove_leftovers(purpose: Purpose) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in names_in(Path::new("/run/netns")) {
        if is_orphan(purpose, &name) {
            Namespace::delete_named(&name)?;
            removed.push(name);
        }
    }
    for name in names_in(&std::env::temp_dir()) {
        if is_orphan(purpose, &name) {
            remove_dir(&std::env::temp_dir().join(&name))?;
            removed.push(name);
        }
    }
    Ok(removed)
}

/// A directory that is not there has nothing in it.
fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Names are PREFIX-PID-REST.
fn is_orphan(purpose: Purpose, name: &str) -> bool {
    let pid = name
        .strip_prefix(purpose.prefix())
        .and_then(|rest| rest.strip_prefix('-'))
        .and_then(|rest| rest.split('-').next())
        .and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// Removes a directory and detaches first what is mounted below it, such as a daemon's bpf file
/// system.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("listing mounts")?;
    // The fifth field is the mount point; later ones may lie below earlier ones.
    let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    for point in points.filter(|point| point.starts_with(dir)) {
        umount2(point, MntFlags::MNT_DETACH)
            .with_context(|| format!("unmounting {}", point.display()))?;
    }
    fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_gone_processes_are_orphans() {
        let mine = format!("wt-{}-0-node1", std::process::id());
        assert!(!is_orphan(Purpose::Test, &mine), "{mine} is alive");
        // The kernel's pids end at 2^22.
        assert!(is_orphan(Purpose::Test, "wt-99999999-0-node1"));
        assert!(!is_orphan(Purpose::Demo, "wt-99999999-0-node1"));
        for name in ["wt", "wt-", "wt-x-1", "wtx-99999999-1", "eth0"] {
            assert!(!is_orphan(Purpose::Test, name), "{name}");
        }
    }
}
