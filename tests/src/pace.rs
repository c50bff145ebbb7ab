//! How fast containers are attached and detached, as a runtime sees it: from the start of the plugin's
//! process to its end. The stock chain of plugins is measured in the same run.

use std::path::Path;
use std::process::Command;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use kit::{
    CONTAINER_IFNAME, CniCall, Daemon, NetnsGuard, OneNode, Purpose, Topology, run_with_input,
    wait_until,
};
use serde_json::{Value, json};

const STOCK_PLUGINS: &str = "/usr/lib/cni";
/// The link is removed behind the answer to DEL, within this.
const GONE_BOUND: Duration = Duration::from_secs(1);

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// ADDs and DELs one at a time.
    pub alone: usize,
    /// ADDs at once.
    pub at_once: usize,
    /// Containers on the node in the end.
    pub filled: usize,
}

/// One node, one network of 4093 addresses.
#[derive(Debug)]
pub struct Pace {
    one: OneNode,
}

/// Times of one kind of call.
#[derive(Debug)]
pub struct Times(Vec<Duration>);

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }

    /// The part in a thousand that took no longer; zero when nothing was measured.
    #[must_use]
    pub fn permille(&self, part: usize) -> Duration {
        let index = self.0.len().saturating_sub(1) * part / 1000;
        self.0.get(index).copied().unwrap_or_default()
    }

    /// Half of them took no longer.
    #[must_use]
    pub fn median(&self) -> Duration {
        self.permille(500)
    }

    /// Milliseconds, for people.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({ "p50_ms": ms(self.median()), "p99_ms": ms(self.permille(990)), "count": self.0.len() })
    }
}

/// Names of what is over its bound, or no number at all, of names with what was seen and the most that is asked.
#[must_use]
pub fn missed(bounds: &[(&'static str, f64, f64)]) -> Vec<&'static str> {
    let over = bounds.iter().filter(|(_, seen, asked)| seen.is_nan() || seen > asked);
    over.map(|(name, ..)| *name).collect()
}

/// Milliseconds with two decimals.
#[must_use]
pub fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 100_000.0).round() / 100.0
}

impl Pace {
    /// Builds the scene.
    ///
    /// # Errors
    /// Without root, or when a daemon does not start.
    pub fn new(purpose: Purpose) -> Result<Self> {
        let one = Topology::new(purpose).one_node()?;
        for line in
            ["tenant create blue", "network create -t blue -s 10.1.0.0/20 -g 10.1.15.254 front"]
        {
            let words: Vec<&str> = line.split_whitespace().collect();
            one.node.netctl_run(&words)?.success().with_context(|| format!("netctl {line}"))?;
        }
        Ok(Self { one })
    }

    fn guests(&self, count: usize) -> Result<Vec<NetnsGuard>> {
        (0..count).map(|_| NetnsGuard::new(self.one.node.purpose(), "pace")).collect()
    }

    fn call(&self, guest: &NetnsGuard, command: &str) -> Result<Duration> {
        let config = self.one.node.cni_config(&json!({ "tenant": "blue", "network": "front" }));
        let stdin = config.to_string();
        let path = guest.path();
        let call = CniCall {
            command,
            container_id: guest.name(),
            netns: &path,
            ifname: CONTAINER_IFNAME,
            args: "",
            stdin: &stdin,
        };
        let started = Instant::now();
        let finished = self.one.node.cni(&call)?;
        let took = started.elapsed();
        finished.success().with_context(|| format!("{command} of {}", guest.name()))?;
        Ok(took)
    }

    fn calls(&self, guests: &[NetnsGuard], command: &str) -> Result<Times> {
        let times = guests.iter().map(|guest| self.call(guest, command));
        Ok(Times::of(times.collect::<Result<_>>()?))
    }

    /// ADDs and DELs, one at a time, each DEL right after its ADD.
    ///
    /// # Errors
    /// When one fails, or its link is there a second later.
    pub fn alone(&self, count: usize) -> Result<[Times; 2]> {
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        for guest in self.guests(count)? {
            adds.push(self.call(&guest, "ADD")?);
            dels.push(self.call(&guest, "DEL")?);
            let netlink = guest.netlink()?;
            let gone = || netlink.link_by_name(CONTAINER_IFNAME).ok()?.is_none().then_some(());
            wait_until(GONE_BOUND, "the link to be gone", gone)?;
        }
        Ok([Times::of(adds), Times::of(dels)])
    }

    /// ADDs all at once, then DELs all at once; how long each of the two took together.
    ///
    /// # Errors
    /// When one fails.
    pub fn at_once(&self, count: usize) -> Result<[Duration; 2]> {
        let guests = self.guests(count)?;
        let all = |command: &str| -> Result<Duration> {
            let started = Instant::now();
            thread::scope(|scope| {
                let call = |guest| scope.spawn(move || self.call(guest, command));
                let calls: Vec<_> = guests.iter().map(call).collect();
                calls.into_iter().try_for_each(joined)
            })?;
            Ok(started.elapsed())
        };
        Ok([all("ADD")?, all("DEL")?])
    }

    /// Fills the node, one ADD after another, then collects all as garbage: the first and the last
    /// twentieth of the ADDs, kilobytes of netplugin and vrouterd, and how long the GC took.
    ///
    /// # Errors
    /// When a call fails, or something is left.
    pub fn filled(&mut self, count: usize) -> Result<Filled> {
        let guests = self.guests(count)?;
        let part = (count / 20).max(1);
        let first = self.calls(&guests[..part], "ADD")?;
        self.calls(&guests[part..count - part], "ADD")?;
        let last = self.calls(&guests[count - part..], "ADD")?;
        let mut kilobytes =
            |daemon| -> Result<u64> { resident_kb(self.one.node.process(daemon)?.pid()) };
        let kilobytes = [kilobytes(Daemon::Netplugin)?, kilobytes(Daemon::Vrouterd)?];
        let keys = json!({ "tenant": "blue", "network": "front", "cni.dev/valid-attachments": [],
            "timeoutSeconds": 120 });
        let stdin = self.one.node.cni_config(&keys).to_string();
        let call = CniCall {
            command: "GC",
            container_id: "",
            netns: Path::new(""),
            ifname: "",
            args: "",
            stdin: &stdin,
        };
        let started = Instant::now();
        self.one.node.cni(&call)?.success().context("GC")?;
        let gc = started.elapsed();
        let left = self.one.node.netctl(&["endpoint", "ls", "-a"])?;
        ensure!(left.as_array().is_none_or(Vec::is_empty), "GC leaves {left}");
        Ok(Filled { first, last, kilobytes, gc })
    }

    /// ADD and DEL of the stock chain bridge, tuning, bandwidth, as libcni runs it; `None` where
    /// those plugins are not installed.
    ///
    /// # Errors
    /// When one fails.
    pub fn stock(&self, count: usize) -> Result<Option<[Times; 2]>> {
        if !Path::new(STOCK_PLUGINS).join("bandwidth").exists() {
            return Ok(None);
        }
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        for guest in self.guests(count)? {
            let started = Instant::now();
            let result = self.stock_chain(&guest, "ADD", Value::Null)?;
            adds.push(started.elapsed());
            let started = Instant::now();
            self.stock_chain(&guest, "DEL", result)?;
            dels.push(started.elapsed());
        }
        Ok(Some([Times::of(adds), Times::of(dels)]))
    }

    fn stock_chain(&self, guest: &NetnsGuard, command: &str, mut result: Value) -> Result<Value> {
        let ipam = json!({ "type": "host-local", "dataDir": self.one.node.state_dir().join("ipam"),
            "ranges": [[{ "subnet": "10.99.0.0/20" }]] });
        let rate = json!({ "ingressRate": 100_000_000, "ingressBurst": 8_000_000,
            "egressRate": 100_000_000, "egressBurst": 8_000_000 });
        let mut plugins = [
            json!({ "type": "bridge", "bridge": "stock0", "isGateway": true, "ipam": ipam }),
            json!({ "type": "tuning" }),
            json!({ "type": "bandwidth", "runtimeConfig": { "bandwidth": rate } }),
        ];
        if command == "DEL" {
            plugins.reverse();
        }
        for mut config in plugins {
            let kind = config["type"].as_str().unwrap_or_default().to_owned();
            (config["name"], config["cniVersion"]) = (json!("stock"), json!("1.0.0"));
            if !result.is_null() {
                config["prevResult"] = result.clone();
            }
            let mut plugin = Command::new(Path::new(STOCK_PLUGINS).join(&kind));
            plugin.env("CNI_COMMAND", command).env("CNI_CONTAINERID", guest.name());
            plugin.env("CNI_NETNS", guest.path()).env("CNI_IFNAME", CONTAINER_IFNAME);
            plugin.env("CNI_PATH", STOCK_PLUGINS);
            let stdin = config.to_string();
            let finished = run_with_input(self.one.node.namespace(), plugin, stdin.as_bytes())?;
            let text = finished.success().with_context(|| format!("{command} by {kind}"))?;
            if command == "ADD" {
                result = serde_json::from_str(&text)?;
            }
        }
        Ok(result)
    }
}

fn joined(call: ScopedJoinHandle<'_, Result<Duration>>) -> Result<()> {
    call.join().map_err(|_panic| anyhow!("a thread panicked"))?.map(drop)
}

/// What [`Pace::filled`] saw.
#[derive(Debug)]
pub struct Filled {
    /// ADDs on the empty node.
    pub first: Times,
    /// ADDs on the full node.
    pub last: Times,
    /// Resident memory of netplugin and of vrouterd on the full node.
    pub kilobytes: [u64; 2],
    /// GC of all.
    pub gc: Duration,
}

/// Kilobytes of memory that a process has resident.
///
/// # Errors
/// When it has ended.
pub fn resident_kb(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("no VmRSS")?.parse()?)
}
