//! One node: a namespace, its directories and its daemons.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use netdev::Namespace;
use serde_json::Value;

use crate::binary::binary;
use crate::dir::DirGuard;
use crate::netns::{NetnsGuard, Purpose};
use crate::process::{Finished, ProcessGuard, run};
use crate::topology::UPLINK;

/// From start to ready, on a busy machine.
const READY_BOUND: Duration = Duration::from_secs(30);
/// From SIGTERM to exit.
const STOP_BOUND: Duration = Duration::from_secs(10);
const CONNECT_BOUND: Duration = Duration::from_millis(200);
const NETMASTER_PORT: u16 = 9999;

/// A daemon of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Daemon {
    /// The control plane; in the first node only.
    Netmaster,
    /// The engine.
    Vrouterd,
    /// The node's agent.
    Netplugin,
}

impl Daemon {
    /// Name of its binary.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Netmaster => "netmaster",
            Self::Vrouterd => "vrouterd",
            Self::Netplugin => "netplugin",
        }
    }
}

/// Extra flags by daemon.
pub(crate) type DaemonArgs = BTreeMap<Daemon, Vec<String>>;

/// A node of a topology. Fields drop in order: the processes go before what they stand on.
#[derive(Debug)]
pub struct Node {
    running: BTreeMap<Daemon, ProcessGuard>,
    netns: NetnsGuard,
    dir: DirGuard,
    name: String,
    purpose: Purpose,
    vtep: Ipv4Addr,
    netmaster: Ipv4Addr,
    netmasters: Vec<String>,
    extra_args: DaemonArgs,
    /// Variables of daemons' environments.
    environment: BTreeMap<Daemon, Vec<(String, String)>>,
}

impl Node {
    /// A node without daemons. `netmaster` is where the control plane listens.
    pub(crate) fn new(
        purpose: Purpose,
        name: &str,
        vtep: Ipv4Addr,
        netmaster: Ipv4Addr,
        extra_args: DaemonArgs,
    ) -> Result<Self> {
        let netns = NetnsGuard::new(purpose, name)?;
        let dir = DirGuard::new(purpose, name)?;
        for sub in ["run", "state", "log", "etc"] {
            fs::create_dir(dir.path().join(sub))?;
        }
        Ok(Self {
            running: BTreeMap::new(),
            netns,
            dir,
            name: name.into(),
            purpose,
            vtep,
            netmaster,
            netmasters: vec![format!("http://{netmaster}:{NETMASTER_PORT}")],
            extra_args,
            environment: BTreeMap::new(),
        })
    }

    /// The node with other netmasters, unless there are none.
    pub(crate) fn with_netmasters(mut self, urls: &[String]) -> Self {
        if !urls.is_empty() {
            self.netmasters = urls.to_vec();
        }
        self
    }

    /// Its name, as it registers with netmaster.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the run it belongs to is for.
    #[must_use]
    pub const fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The namespace its daemons live in.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        self.netns.namespace()
    }

    /// The guard of that namespace.
    #[must_use]
    pub const fn netns(&self) -> &NetnsGuard {
        &self.netns
    }

    /// Its address on the underlay.
    #[must_use]
    pub const fn vtep(&self) -> Ipv4Addr {
        self.vtep
    }

    /// The daemons' `--run-dir`.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The daemons' `--state-dir`.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// netplugin's socket for weir-cni.
    #[must_use]
    pub fn cni_socket(&self) -> PathBuf {
        self.run_dir().join("cni.sock")
    }

    /// vrouterd's socket.
    #[must_use]
    pub fn datapath_socket(&self) -> PathBuf {
        self.run_dir().join("vrouterd.sock")
    }

    /// Where netmaster listens, for clients: the first, if there are several.
    #[must_use]
    pub fn netmaster_url(&self) -> String {
        self.netmasters.first().cloned().unwrap_or_default()
    }

    /// Starts a daemon and waits until it answers.
    ///
    /// # Errors
    /// When it is running already, ends, or does not answer; with the end of its log.
    pub fn start(&mut self, daemon: Daemon) -> Result<()> {
        self.launch(daemon, |node| {
            node.probe_socket(daemon)?;
            if daemon == Daemon::Netplugin { node.cni_status() } else { Ok(()) }
        })
    }

    /// As [`Node::start`], with flags beside its own, from now on.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_with(&mut self, daemon: Daemon, args: &[&str]) -> Result<()> {
        let all = self.extra_args.entry(daemon).or_default();
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        self.start(daemon)
    }

    /// Flags of a daemon beside its own, from its next start on, instead of those given before.
    pub fn set_args(&mut self, daemon: Daemon, args: &[&str]) {
        self.extra_args.insert(daemon, args.iter().map(|arg| (*arg).to_owned()).collect());
    }

    /// Gives a daemon a clock of its own, from its next start on: that of the machine, moved by what the file
    /// says (`+2d`, `-1h`). Only the time of day moves, and it does so while the daemon runs.
    ///
    /// # Errors
    /// Without libfaketime.
    pub fn set_clock(&mut self, daemon: Daemon, file: &Path) -> Result<()> {
        let library = glob_one("/usr/lib", "faketime/libfaketimeMT.so.1")?;
        let file = file.display().to_string();
        let own = [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_NO_CACHE", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
        ];
        let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
        self.environment.insert(daemon, own.into());
        Ok(())
    }

    fn launch(&mut self, daemon: Daemon, probe: impl Fn(&Self) -> Result<()>) -> Result<()> {
        if self.running.contains_key(&daemon) {
            bail!("{} runs already on {}", daemon.name(), self.name);
        }
        let command = self.command(daemon)?;
        let name = format!("{} of {}", daemon.name(), self.name);
        let log = self.log_path(daemon);
        let mut process = ProcessGuard::spawn(self.namespace(), &name, command, &log)?;
        process.wait_ready(READY_BOUND, || probe(self))?;
        self.running.insert(daemon, process);
        Ok(())
    }

    /// Starts a daemon and waits only until its socket is there: for one that cannot serve yet,
    /// since another daemon is away.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_unready(&mut self, daemon: Daemon) -> Result<()> {
        self.launch(daemon, |node| node.probe_socket(daemon))
    }

    /// Ends a daemon by SIGTERM.
    ///
    /// # Errors
    /// When it does not run or does not end.
    pub fn stop(&mut self, daemon: Daemon) -> Result<ExitStatus> {
        self.take(daemon)?.stop(STOP_BOUND)
    }

    /// Kills a daemon, as a crash would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, daemon: Daemon) -> Result<ExitStatus> {
        self.take(daemon)?.kill()
    }

    /// A running daemon's process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn process(&mut self, daemon: Daemon) -> Result<&mut ProcessGuard> {
        let running = self.running.get_mut(&daemon);
        running.with_context(|| format!("{} does not run on {}", daemon.name(), self.name))
    }

    /// Everything a daemon has logged, through all its restarts.
    ///
    /// # Errors
    /// When it was never started.
    pub fn log(&self, daemon: Daemon) -> Result<String> {
        let path = self.log_path(daemon);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Runs `netctl` here and parses its JSON: for `ls` and `inspect`. Empty output is null.
    ///
    /// # Errors
    /// When it fails, with its stderr.
    pub fn netctl(&self, args: &[&str]) -> Result<Value> {
        let with_output = [args, &["--output", "json"]].concat();
        let text = self.netctl_run(&with_output)?.success();
        parse_json(&text.with_context(|| format!("netctl {}", args.join(" ")))?)
    }

    /// Runs `netctl` here with just these arguments.
    ///
    /// # Errors
    /// When it cannot be run; its exit code is in the result.
    pub fn netctl_run(&self, args: &[&str]) -> Result<Finished> {
        let mut command = Command::new(binary("netctl")?);
        command.env("NETMASTER", self.netmaster_url()).args(args);
        run(self.namespace(), command)
    }

    /// Runs `vrctl` on this node's engine and parses its JSON.
    ///
    /// # Errors
    /// When it fails, with its stderr.
    pub fn vrctl(&self, args: &[&str]) -> Result<Value> {
        let with_output = [args, &["-o", "json"]].concat();
        let text = self.vrctl_run(&with_output)?.success();
        parse_json(&text.with_context(|| format!("vrctl {}", args.join(" ")))?)
    }

    /// Runs `vrctl` on this node's engine with just these arguments.
    ///
    /// # Errors
    /// When it cannot be run; its exit code is in the result.
    pub fn vrctl_run(&self, args: &[&str]) -> Result<Finished> {
        let mut command = Command::new(binary("vrctl")?);
        command.env("WEIR_DATAPATH", self.datapath_socket()).args(args);
        run(self.namespace(), command)
    }

    fn take(&mut self, daemon: Daemon) -> Result<ProcessGuard> {
        let running = self.running.remove(&daemon);
        running.with_context(|| format!("{} does not run on {}", daemon.name(), self.name))
    }

    fn log_path(&self, daemon: Daemon) -> PathBuf {
        self.dir.path().join("log").join(daemon.name()).with_extension("log")
    }

    fn command(&self, daemon: Daemon) -> Result<Command> {
        // An empty file: the machine's own /etc/weir is not read.
        let config = self.dir.path().join("etc").join(daemon.name()).with_extension("toml");
        fs::write(&config, "").with_context(|| config.display().to_string())?;
        let mut command = Command::new(binary(daemon.name())?);
        command.arg("--config").arg(config);
        command.arg("--run-dir").arg(self.run_dir());
        command.arg("--state-dir").arg(self.state_dir());
        match daemon {
            Daemon::Netmaster => {
                let listen = format!("{}:{NETMASTER_PORT}", self.netmaster);
                command.args(["--listen", &listen, "--plaintext"]);
            }
            Daemon::Vrouterd => {}
            Daemon::Netplugin => {
                command.args(["--node", &self.name, "--netmaster", &self.netmasters.join(",")]);
                command.args(["--vtep", &self.vtep.to_string()]);
                command.args(["--uplink", UPLINK]);
            }
        }
        command.args(self.extra_args.get(&daemon).into_iter().flatten());
        command.envs(self.environment.get(&daemon).into_iter().flatten().cloned());
        Ok(command)
    }

    fn probe_socket(&self, daemon: Daemon) -> Result<()> {
        match daemon {
            Daemon::Netmaster => {
                let address = SocketAddr::from((self.netmaster, NETMASTER_PORT));
                let connect = || TcpStream::connect_timeout(&address, CONNECT_BOUND);
                self.netns.run(connect)?.map(drop).context("its listener")
            }
            Daemon::Vrouterd => connect_unix(&self.datapath_socket()),
            Daemon::Netplugin => connect_unix(&self.cni_socket()),
        }
    }
}

fn connect_unix(path: &Path) -> Result<()> {
    UnixStream::connect(path).map(drop).with_context(|| path.display().to_string())
}

fn parse_json(text: &str) -> Result<Value> {
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(text).with_context(|| format!("not JSON: {text}"))
}

/// The file `inside` of the one directory of `parent` that has it: Debian's name for the machine's kind.
fn glob_one(parent: &str, inside: &str) -> Result<String> {
    let entries = fs::read_dir(parent).with_context(|| parent.to_owned())?;
    let mut found = entries.flatten().map(|entry| entry.path().join(inside));
    let found = found.find(|path| path.exists());
    let found = found.with_context(|| format!("no {parent}/*/{inside}: install faketime"))?;
    Ok(found.display().to_string())
}
