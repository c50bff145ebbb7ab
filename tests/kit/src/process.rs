//! Running programs in namespaces: daemons under a guard, tools to their end.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use netdev::Namespace;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::cleanup::held;
use crate::wait::{TimedOut, retry};

/// How long a daemon may take to end after SIGTERM when its guard is dropped.
const STOP_BOUND: Duration = Duration::from_secs(5);
/// How long a tool may run.
const RUN_BOUND: Duration = Duration::from_mins(1);
/// A killed process is gone as soon as the kernel has freed what it held.
const KILL_BOUND: Duration = Duration::from_secs(30);
/// How much of a log an error shows.
const LOG_TAIL_LINES: usize = 20;

/// A running program; ended when dropped.
#[derive(Debug)]
pub struct ProcessGuard {
    name: String,
    child: Child,
    log: PathBuf,
}

impl ProcessGuard {
    /// Starts `command` inside `namespace`, with stdout and stderr appended to `log`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(
        namespace: &Namespace,
        name: &str,
        mut command: Command,
        log: &Path,
    ) -> Result<Self> {
        let out = OpenOptions::new().create(true).append(true).open(log);
        let out = out.with_context(|| format!("opening {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child =
            spawn_in(namespace, &mut command).with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.into(), child, log: log.into() })
    }

    /// The process's id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(try_reap(&mut self.child)?.is_none())
    }

    /// Tries `probe` until it succeeds, and gives up at once when the program has ended.
    ///
    /// # Errors
    /// Names the program and shows the end of its log.
    pub fn wait_ready<T>(
        &mut self,
        bound: Duration,
        mut probe: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(status) = try_reap(&mut self.child)? {
                bail!("{} ended with {status}; its log ends:\n{}", self.name, self.log_tail());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // In slices, so that a program that died is noticed before the bound.
            let slice = left.min(Duration::from_millis(100));
            match retry(slice, format_args!("{} to be ready", self.name), &mut probe) {
                Ok(found) => return Ok(found),
                Err(waited) if left.is_zero() => {
                    return Err(self.with_log(waited));
                }
                Err(_) => {}
            }
        }
    }

    /// Asks it to end and returns how it did.
    ///
    /// # Errors
    /// When it is still there after `bound`; it is killed then.
    pub fn stop(mut self, bound: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        if let Some(status) = self.reap(bound)? {
            return Ok(status);
        }
        bail!(
            "{} did not end within {bound:?} of SIGTERM; its log ends:\n{}",
            self.name,
            self.log_tail()
        )
    }

    /// Kills it, as a crash would.
    ///
    /// # Errors
    /// When the kernel does not end it.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.reap(KILL_BOUND)?.with_context(|| format!("{} survives SIGKILL", self.name))
    }

    /// Sends it a signal. One that has ended already gets none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.is_running()? {
            kill(pid_of(&self.child), signal)
                .with_context(|| format!("signalling {}", self.name))?;
        }
        Ok(())
    }

    /// Processor time it has used so far, in user and kernel mode.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // Fields are counted behind the name, which may hold spaces: utime is the 12th, stime the 13th.
        let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let ticks = ticks.sum::<Result<u64, _>>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
        Ok(Duration::from_millis(ticks * 1000 / u64::try_from(per_second)?))
    }

    /// Everything it has written so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        let bytes = fs::read(&self.log).with_context(|| self.log.display().to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn with_log(&self, error: TimedOut) -> anyhow::Error {
        let tail = self.log_tail();
        anyhow::Error::from(error).context(format!("the log of {} ends:\n{tail}", self.name))
    }

    fn log_tail(&self) -> String {
        let text = self.log().unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    fn reap(&mut self, bound: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + bound;
        loop {
            let status = try_reap(&mut self.child)?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for ProcessGuard {
    fn drop(&mut self) {
        // A destructor has nobody to tell; a signal to a process that ended is no failure.
        drop(self.signal(Signal::SIGTERM));
        if !matches!(self.reap(STOP_BOUND), Ok(Some(_))) {
            drop(self.signal(Signal::SIGKILL));
            drop(self.reap(KILL_BOUND));
        }
    }
}

/// How a tool ended and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Everything on stdout.
    pub stdout: String,
    /// Everything on stderr.
    pub stderr: String,
}

impl Finished {
    /// The tool's stdout, when it exited 0.
    ///
    /// # Errors
    /// Shows exit code and stderr otherwise.
    pub fn success(self) -> Result<String> {
        if self.code == Some(0) {
            return Ok(self.stdout);
        }
        bail!("exit {:?}: {}{}", self.code, self.stderr.trim_end(), self.stdout.trim_end())
    }
}

/// Runs a tool inside `namespace` to its end.
///
/// # Errors
/// When it cannot be started, or runs longer than a minute: it is killed then. A failing exit
/// code is not an error here, see [`Finished::success`].
pub fn run(namespace: &Namespace, command: Command) -> Result<Finished> {
    run_with_input(namespace, command, b"")
}

/// As [`run`], with bytes on the tool's stdin.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(
    namespace: &Namespace,
    mut command: Command,
    input: &[u8],
) -> Result<Finished> {
    let name = command.get_program().to_string_lossy().into_owned();
    // Files instead of pipes: no size at which the tool and this would wait for each other.
    let mut stdin = tempfile::tempfile()?;
    stdin.write_all(input)?;
    stdin.rewind()?;
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(stdin).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let child = spawn_in(namespace, &mut command).with_context(|| format!("starting {name}"))?;
    let mut guard = ProcessGuard { name, child, log: PathBuf::new() };
    let Some(status) = guard.reap(RUN_BOUND)? else {
        bail!("{} runs longer than {RUN_BOUND:?}", guard.name);
    };
    let read = |file: &mut fs::File| -> Result<String> {
        file.rewind()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Finished { code: status.code(), stdout: read(&mut stdout)?, stderr: read(&mut stderr)? })
}

fn spawn_in(namespace: &Namespace, command: &mut Command) -> Result<Child> {
    // Started and listed under one lock: no signal can come between.
    let mut held = held();
    let child = namespace.run(|| {
        // A child inherits its thread's mask, and `cleanup_on_signal` has blocked signals in ours:
        // a daemon that never sees SIGTERM would not stop.
        SigSet::all().thread_unblock()?;
        command.spawn()
    })??;
    held.pids.insert(pid_of(&child));
    Ok(child)
}

fn try_reap(child: &mut Child) -> Result<Option<ExitStatus>> {
    let mut held = held();
    let status = child.try_wait()?;
    if status.is_some() {
        held.pids.remove(&pid_of(child));
    }
    Ok(status)
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}
