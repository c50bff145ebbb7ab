//! Flags, environment and configuration file, read once into values that hold.
//!
//! A flag wins over its environment variable, that over the file, the file over the default.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use offload::Limits;
use serde::Deserialize;
use tracing::level_filters::LevelFilter;
use vrouter::WORKERS_MAX;

const CONFIG: &str = "/etc/weir/vrouterd.toml";
const RUN_DIR: &str = "/run/weir";
const FRAMES: u32 = 8192;
const FRAMES_MIN: u32 = 4096;
const FRAMES_MAX: u32 = 65536;
/// Frames in one huge page of 2 MiB.
const FRAMES_PER_HUGE_PAGE: u32 = 1024;
const CONNECTIONS: u32 = 1 << 20;
/// The bound of the engine's table.
const CONNECTIONS_MAX: u32 = 1 << 26;
const PORT_CONNECTIONS: u32 = 1 << 17;
/// As long as a packet may wait: more would only fill up the senders' windows.
const METER_QUEUE_MS: u32 = 50;
/// Longer than a TCP sender waits between its first retransmissions (RFC 6298).
const PICKUP_S: u32 = 30;
/// Nothing outside the node reads it there.
pub(crate) const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9091);
const OFFLOAD_FLOWS: u32 = 1 << 17;
const OFFLOAD_FLOWS_MAX: u32 = 1 << 20;
/// A request and its answer are over before they are worth an entry.
const OFFLOAD_AFTER: u32 = 16;
/// Long enough for an upgrade of the engine that goes wrong once.
const OFFLOAD_ORPHANED_S: u32 = 300;
const OFFLOAD_ORPHANED_S_MAX: u32 = 86_400;
const SFLOW_RATE: u32 = 400;
const SFLOW_POLLING_S: u64 = 30;

/// Command line of vrouterd.
#[derive(Debug, Parser)]
#[command(
    name = "vrouterd",
    version,
    about = "Weir's engine: forwards the packets of a node's containers"
)]
pub(crate) struct Arguments {
    /// Configuration file (TOML; keys as the long flags below) [default: /etc/weir/vrouterd.toml, when there]
    #[arg(long, env = "WEIR_CONFIG")]
    config: Option<PathBuf>,
    /// Check flags and configuration file, then exit
    #[arg(long)]
    pub(crate) check: bool,
    #[command(flatten)]
    options: Options,
}

/// What both the command line and the file can say.
#[derive(Debug, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Options {
    /// Sockets [default: /run/weir]
    #[arg(long, env = "WEIR_RUN_DIR", value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Durable state: vrouterd keeps none; taken because every daemon takes it
    #[arg(long, env = "WEIR_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// error, warn, info, debug or trace [default: info]
    #[arg(long, env = "WEIR_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
    /// Form of the log on stderr [default: text]
    #[arg(long, env = "WEIR_LOG_FORMAT", value_enum)]
    log_format: Option<LogFormat>,
    /// CPUs, a worker pinned to each: 0,2 or 0-3 [default: one worker, on any]
    #[arg(long, env = "WEIR_CPUS", value_name = "LIST")]
    cpus: Option<String>,
    /// Packet buffers of 2 KiB of each worker [default: 8192]
    #[arg(long, env = "WEIR_FRAMES", value_name = "N")]
    frames: Option<u32>,
    /// Whether packet buffers are on huge pages [default: auto]
    #[arg(long, env = "WEIR_HUGEPAGES", value_enum)]
    hugepages: Option<HugePages>,
    /// Packets a second that one container may send; 0 is no limit [default: 200000]
    #[arg(long, env = "WEIR_PORT_PPS", value_name = "N")]
    port_pps: Option<u32>,
    /// Mbit/s that one container may send; 0 is no limit [default: 2500]
    #[arg(long, env = "WEIR_PORT_MBPS", value_name = "N")]
    port_mbps: Option<u32>,
    /// Connections that are remembered, of all tenants [default: 1048576]
    #[arg(long, env = "WEIR_CONNECTIONS", value_name = "N")]
    connections: Option<u32>,
    /// Connections that one container may have opened at once [default: 131072]
    #[arg(long, env = "WEIR_PORT_CONNECTIONS", value_name = "N")]
    port_connections: Option<u32>,
    /// New flows a second that one container may open; 0 is no limit [default: 50000]
    #[arg(long, env = "WEIR_PORT_NEW_FLOWS", value_name = "N")]
    port_new_flows: Option<u32>,
    /// Seconds after a start in which TCP connections from before are taken over; 0 is none [default: 30]
    #[arg(long, env = "WEIR_PICKUP_SECONDS", value_name = "S")]
    pickup_seconds: Option<u32>,
    /// Milliseconds that packets above a rate may wait before they are dropped; 0 drops at once [default: 50]
    #[arg(long, env = "WEIR_METER_QUEUE_MS", value_name = "MS")]
    meter_queue_ms: Option<u32>,
    /// Address of `GET /metrics` for Prometheus, or `off` [default: 127.0.0.1:9091]
    #[arg(long, env = "WEIR_METRICS", value_name = "IP:PORT")]
    metrics: Option<String>,
    /// Whether the kernel forwards flows that carry much [default: on]
    #[arg(long, env = "WEIR_OFFLOAD", value_enum)]
    offload: Option<Switch>,
    /// Flows that it forwards at most, a connection has two [default: 131072]
    #[arg(long, env = "WEIR_OFFLOAD_FLOWS", value_name = "N")]
    offload_flows: Option<u32>,
    /// Of these, from one container [default: a quarter]
    #[arg(long, env = "WEIR_OFFLOAD_PORT_FLOWS", value_name = "N")]
    offload_port_flows: Option<u32>,
    /// Of these, of one tenant [default: half]
    #[arg(long, env = "WEIR_OFFLOAD_TENANT_FLOWS", value_name = "N")]
    offload_tenant_flows: Option<u32>,
    /// Packets of a flow that pass the engine first [default: 16]
    #[arg(long, env = "WEIR_OFFLOAD_AFTER", value_name = "N")]
    offload_after: Option<u32>,
    /// Seconds for which it goes on when the engine is gone or hangs [default: 300]
    #[arg(long, env = "WEIR_OFFLOAD_ORPHANED", value_name = "S")]
    offload_orphaned: Option<u32>,
    /// Where sFlow goes; without it nothing is sampled
    #[arg(long, env = "WEIR_SFLOW_COLLECTOR", value_name = "IP:PORT")]
    sflow_collector: Option<SocketAddr>,
    /// One packet in N is sampled, of ports whose network does not say [default: 400]
    #[arg(long, env = "WEIR_SFLOW_RATE", value_name = "N")]
    sflow_rate: Option<u32>,
    /// Seconds between two counter samples of a port; 0 is none [default: 30]
    #[arg(long, env = "WEIR_SFLOW_POLLING", value_name = "S")]
    sflow_polling: Option<u64>,
    /// Address that names this node in sFlow [default: the one the kernel sends from]
    #[arg(long, env = "WEIR_SFLOW_AGENT", value_name = "IP")]
    sflow_agent: Option<IpAddr>,
}

/// Whether packet buffers are on huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HugePages {
    /// If the system has some reserved.
    Auto,
    /// Or vrouterd does not start.
    On,
    /// Never.
    Off,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Where metrics are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metrics {
    /// Nowhere.
    Off,
    /// At the address nobody chose, if it is free.
    Default,
    /// Here, or vrouterd does not start.
    At(SocketAddr),
}

/// Where samples go, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SflowConfig {
    pub(crate) collector: SocketAddr,
    pub(crate) agent: Option<IpAddr>,
    pub(crate) rate: u32,
    /// Seconds; 0 is none.
    pub(crate) polling_s: u64,
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) run_dir: PathBuf,
    pub(crate) log_level: LevelFilter,
    pub(crate) log_format: LogFormat,
    /// A worker for each; none: one worker that is not pinned.
    pub(crate) cpus: Vec<usize>,
    pub(crate) frames: u32,
    pub(crate) hugepages: HugePages,
    /// Of each container's port.
    pub(crate) limits: Limits,
    pub(crate) flows: FlowBounds,
    pub(crate) metrics: Metrics,
    pub(crate) offload: OffloadConfig,
    pub(crate) sflow: Option<SflowConfig>,
}

/// What the kernel forwards without the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OffloadConfig {
    pub(crate) switch: Switch,
    pub(crate) flows: u32,
    /// From one port.
    pub(crate) port_flows: u32,
    pub(crate) tenant_flows: u32,
    pub(crate) after_packets: u32,
    pub(crate) orphaned_s: u32,
}

/// What containers can make the engine remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowBounds {
    pub(crate) connections: u32,
    pub(crate) port_connections: u32,
    /// 0 is no limit.
    pub(crate) port_new_flows: u32,
    pub(crate) pickup_seconds: u32,
    /// 0 polices.
    pub(crate) meter_queue_ms: u32,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(transparent)]
    Usage(#[from] clap::Error),
    #[error("reading {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}", path.display())]
    Syntax { path: PathBuf, source: toml::de::Error },
    #[error("--log-level {0:?}: want error, warn, info, debug or trace")]
    LogLevel(String),
    #[error("--cpus {0:?}: want numbers of CPUs and ranges of them, such as 0,2 or 0-3")]
    Cpus(String),
    #[error("--cpus {list:?}: CPU {cpu} is named twice; a worker needs one for itself")]
    CpuTwice { list: String, cpu: usize },
    #[error("--cpus {0:?}: want at most {WORKERS_MAX} CPUs, a worker has one")]
    ManyCpus(String),
    #[error("--frames {0}: want {FRAMES_MIN} to {FRAMES_MAX}")]
    Frames(u32),
    #[error("--frames {0}: huge pages take multiples of {FRAMES_PER_HUGE_PAGE}")]
    HugeFrames(u32),
    #[error("--meter-queue-ms {0}: want 0 to {METER_QUEUE_MS}")]
    MeterQueue(u32),
    #[error("--connections {0}: want 1 to {CONNECTIONS_MAX}")]
    Connections(u32),
    #[error("--metrics {0:?}: want IP:PORT or off")]
    Metrics(String),
    #[error("--offload-flows {0}: want 1 to {OFFLOAD_FLOWS_MAX}; --offload off offloads none")]
    OffloadFlows(u32),
    #[error("{flag} {value}: want 1 to {max}, the value of --offload-flows")]
    OffloadShare { flag: &'static str, value: u32, max: u32 },
    #[error("--offload-after 0: want 1 or more; a flow's first packets pass the engine")]
    OffloadAfter,
    #[error("--offload-orphaned {0}: want 1 to {OFFLOAD_ORPHANED_S_MAX}")]
    OffloadOrphaned(u32),
    #[error("--sflow-rate 0: want 1 or more; without --sflow-collector nothing is sampled")]
    SflowRate,
    #[error("--sflow-collector {0}: want a unicast address and a port that is not 0")]
    SflowCollector(SocketAddr),
    #[error("--sflow-agent {0}: want an address of this node")]
    SflowAgent(IpAddr),
}

impl Arguments {
    /// Parses a command line, program name first.
    pub(crate) fn parse_from_line(
        line: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, ConfigError> {
        Ok(Self::try_parse_from(line)?)
    }

    /// Reads the file, if any, and checks the whole.
    pub(crate) fn resolve(self) -> Result<Config, ConfigError> {
        let file = read_file(self.config.as_deref())?;
        self.options.or(file).check()
    }
}

fn read_file(named: Option<&Path>) -> Result<Options, ConfigError> {
    let path = named.unwrap_or_else(|| Path::new(CONFIG));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if named.is_none() && e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
    };
    toml::from_str(&text).map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })
}

impl Options {
    fn or(self, other: Self) -> Self {
        Self {
            run_dir: self.run_dir.or(other.run_dir),
            state_dir: self.state_dir.or(other.state_dir),
            log_level: self.log_level.or(other.log_level),
            log_format: self.log_format.or(other.log_format),
            cpus: self.cpus.or(other.cpus),
            frames: self.frames.or(other.frames),
            hugepages: self.hugepages.or(other.hugepages),
            port_pps: self.port_pps.or(other.port_pps),
            port_mbps: self.port_mbps.or(other.port_mbps),
            connections: self.connections.or(other.connections),
            port_connections: self.port_connections.or(other.port_connections),
            port_new_flows: self.port_new_flows.or(other.port_new_flows),
            pickup_seconds: self.pickup_seconds.or(other.pickup_seconds),
            meter_queue_ms: self.meter_queue_ms.or(other.meter_queue_ms),
            metrics: self.metrics.or(other.metrics),
            offload: self.offload.or(other.offload),
            offload_flows: self.offload_flows.or(other.offload_flows),
            offload_port_flows: self.offload_port_flows.or(other.offload_port_flows),
            offload_tenant_flows: self.offload_tenant_flows.or(other.offload_tenant_flows),
            offload_after: self.offload_after.or(other.offload_after),
            offload_orphaned: self.offload_orphaned.or(other.offload_orphaned),
            sflow_collector: self.sflow_collector.or(other.sflow_collector),
            sflow_rate: self.sflow_rate.or(other.sflow_rate),
            sflow_polling: self.sflow_polling.or(other.sflow_polling),
            sflow_agent: self.sflow_agent.or(other.sflow_agent),
        }
    }

    fn check(self) -> Result<Config, ConfigError> {
        let frames = self.frames.unwrap_or(FRAMES);
        if !(FRAMES_MIN..=FRAMES_MAX).contains(&frames) {
            return Err(ConfigError::Frames(frames));
        }
        let mut hugepages = self.hugepages.unwrap_or(HugePages::Auto);
        if !frames.is_multiple_of(FRAMES_PER_HUGE_PAGE) {
            match hugepages {
                HugePages::On => return Err(ConfigError::HugeFrames(frames)),
                HugePages::Auto | HugePages::Off => hugepages = HugePages::Off,
            }
        }
        let (sflow, flows, offload) = (self.sflow()?, self.flows()?, self.offload()?);
        let level = self.log_level.unwrap_or_else(|| "info".to_owned());
        Ok(Config {
            run_dir: self.run_dir.unwrap_or_else(|| RUN_DIR.into()),
            log_level: level.parse().map_err(|_bad| ConfigError::LogLevel(level))?,
            log_format: self.log_format.unwrap_or(LogFormat::Text),
            cpus: self.cpus.map_or(Ok(Vec::new()), cpus)?,
            frames,
            hugepages,
            limits: Limits::new(
                self.port_pps.unwrap_or(Limits::PORT_PPS),
                self.port_mbps.unwrap_or(Limits::PORT_MBPS),
                flows.port_new_flows,
            ),
            flows,
            metrics: self.metrics.map_or(Ok(Metrics::Default), metrics)?,
            offload,
            sflow,
        })
    }

    fn flows(&self) -> Result<FlowBounds, ConfigError> {
        let connections = self.connections.unwrap_or(CONNECTIONS);
        if !(1..=CONNECTIONS_MAX).contains(&connections) {
            return Err(ConfigError::Connections(connections));
        }
        let meter_queue_ms = self.meter_queue_ms.unwrap_or(METER_QUEUE_MS);
        if meter_queue_ms > METER_QUEUE_MS {
            return Err(ConfigError::MeterQueue(meter_queue_ms));
        }
        Ok(FlowBounds {
            meter_queue_ms,
            connections,
            port_connections: self.port_connections.unwrap_or(PORT_CONNECTIONS),
            port_new_flows: self.port_new_flows.unwrap_or(Limits::PORT_OPENINGS),
            pickup_seconds: self.pickup_seconds.unwrap_or(PICKUP_S),
        })
    }

    fn offload(&self) -> Result<OffloadConfig, ConfigError> {
        let flows = self.offload_flows.unwrap_or(OFFLOAD_FLOWS);
        if !(1..=OFFLOAD_FLOWS_MAX).contains(&flows) {
            return Err(ConfigError::OffloadFlows(flows));
        }
        let after_packets = self.offload_after.unwrap_or(OFFLOAD_AFTER);
        if after_packets == 0 {
            return Err(ConfigError::OffloadAfter);
        }
        let orphaned_s = self.offload_orphaned.unwrap_or(OFFLOAD_ORPHANED_S);
        if !(1..=OFFLOAD_ORPHANED_S_MAX).contains(&orphaned_s) {
            return Err(ConfigError::OffloadOrphaned(orphaned_s));
        }
        let share = |flag, named: Option<u32>, default: u32| {
            let value = named.unwrap_or(default.max(1));
            let fits = (1..=flows).contains(&value);
            fits.then_some(value).ok_or(ConfigError::OffloadShare { flag, value, max: flows })
        };
        let port_flows = share("--offload-port-flows", self.offload_port_flows, flows / 4)?;
        let tenant_flows = share("--offload-tenant-flows", self.offload_tenant_flows, flows / 2)?;
        let switch = self.offload.unwrap_or(Switch::On);
        Ok(OffloadConfig { switch, flows, port_flows, tenant_flows, after_packets, orphaned_s })
    }

    fn sflow(&self) -> Result<Option<SflowConfig>, ConfigError> {
        let rate = self.sflow_rate.unwrap_or(SFLOW_RATE);
        if rate == 0 {
            return Err(ConfigError::SflowRate);
        }
        if let Some(agent) = self.sflow_agent.filter(|a| a.is_unspecified() || a.is_multicast()) {
            return Err(ConfigError::SflowAgent(agent));
        }
        let Some(collector) = self.sflow_collector else { return Ok(None) };
        if collector.port() == 0 || collector.ip().is_unspecified() {
            return Err(ConfigError::SflowCollector(collector));
        }
        let polling_s = self.sflow_polling.unwrap_or(SFLOW_POLLING_S);
        Ok(Some(SflowConfig { collector, agent: self.sflow_agent, rate, polling_s }))
    }
}

fn metrics(text: String) -> Result<Metrics, ConfigError> {
    if text == "off" {
        return Ok(Metrics::Off);
    }
    text.parse().map(Metrics::At).map_err(|_not_an_address| ConfigError::Metrics(text))
}

impl Config {
    /// How many workers there are.
    pub(crate) fn workers(&self) -> u16 {
        self.cpus.len().max(1) as u16
    }
}

/// Numbers and ranges, separated by commas.
fn cpus(list: String) -> Result<Vec<usize>, ConfigError> {
    let mut all = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else {
            return Err(ConfigError::Cpus(list));
        };
        if first > last {
            return Err(ConfigError::Cpus(list));
        }
        let room = usize::from(WORKERS_MAX) - all.len();
        if last - first >= room {
            return Err(ConfigError::ManyCpus(list));
        }
        if let Some(cpu) = (first..=last).find(|cpu| all.contains(cpu)) {
            return Err(ConfigError::CpuTwice { list, cpu });
        }
        all.extend(first..=last);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(file: &str, arguments: &[&str]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vrouterd.toml");
        std::fs::write(&path, file).unwrap();
        let line = ["vrouterd", "--config", path.to_str().unwrap()];
        let line = line.iter().chain(arguments).map(OsString::from);
        Arguments::parse_from_line(line)?.resolve()
    }

    #[test]
    fn defaults_are_those_of_the_help_text() {
        let config = resolve("", &[]).unwrap();
        assert_eq!(config.run_dir, Path::new("/run/weir"));
        assert_eq!((config.frames, config.hugepages), (8192, HugePages::Auto));
        assert_eq!((config.cpus.len(), config.workers(), config.sflow), (0, 1, None));
        assert_eq!(config.limits, Limits::new(200_000, 2_500, 50_000));
        let FlowBounds { connections, port_connections, port_new_flows, pickup_seconds, .. } =
            config.flows;
        assert_eq!(config.flows.meter_queue_ms, 50);
        assert_eq!((connections, port_connections), (1_048_576, 131_072));
        assert_eq!((port_new_flows, pickup_seconds), (50_000, 30));
        assert_eq!(config.log_level, LevelFilter::INFO);
    }

    #[test]
    fn cpus_are_numbers_and_ranges() {
        let cpus = |list| resolve("", &["--cpus", list]).unwrap().cpus;
        assert_eq!((cpus("3"), cpus("0,2-4,1")), (vec![3], vec![0, 2, 3, 4, 1]));
        assert_eq!(resolve("cpus = \"1-2\"", &[]).unwrap().workers(), 2);
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file = "run-dir = \"/run/file\"\nframes = 4096\nsflow-collector = \"10.0.0.9:6343\"\n";
        let config = resolve(file, &["--frames", "16384", "--sflow-polling", "2"]).unwrap();
        assert_eq!((config.run_dir.as_path(), config.frames), (Path::new("/run/file"), 16384));
        let sflow = config.sflow.unwrap();
        assert_eq!((sflow.rate, sflow.polling_s), (400, 2));
        assert_eq!(sflow.collector, "10.0.0.9:6343".parse().unwrap());
    }

    #[test]
    fn offloading_is_flags_and_keys_within_bounds() {
        let offload = |flows, port_flows, tenant_flows, orphaned_s| OffloadConfig {
            switch: Switch::On,
            flows,
            port_flows,
            tenant_flows,
            after_packets: 16,
            orphaned_s,
        };
        assert_eq!(resolve("", &[]).unwrap().offload, offload(131_072, 32_768, 65_536, 300));
        let file = "offload = \"off\"\noffload-flows = 64\n";
        let line = ["--offload", "on", "--offload-orphaned", "5", "--offload-tenant-flows", "64"];
        assert_eq!(resolve(file, &line).unwrap().offload, offload(64, 16, 64, 5));
        assert_eq!(resolve("", &["--offload-flows=1"]).unwrap().offload, offload(1, 1, 1, 300));
        for (wrong, text) in [
            ("--offload-flows=0", "want 1 to 1048576"),
            ("--offload-port-flows=0", "want 1 to 131072, the value of --offload-flows"),
            ("--offload-tenant-flows=131073", "want 1 to 131072, the value of --offload-flows"),
            ("--offload-after=0", "want 1 or more"),
            ("--offload-orphaned=0", "want 1 to 86400"),
        ] {
            let refused = resolve("", &[wrong]).unwrap_err().to_string();
            assert!(refused.contains(text), "{refused}");
        }
    }

    #[test]
    fn the_limits_of_a_port_are_flags_and_keys() {
        let file = "port-pps = 20000\nport-mbps = 100\n";
        assert_eq!(resolve(file, &[]).unwrap().limits, Limits::new(20_000, 100, 50_000));
        let config =
            resolve(file, &["--port-pps=0", "--port-mbps=0", "--port-new-flows=0"]).unwrap();
        assert_eq!(config.limits, Limits::UNLIMITED);
        for wrong in [["--port-pps", "-1"], ["--port-mbps", "4294967296"]] {
            assert!(matches!(resolve("", &wrong), Err(ConfigError::Usage(_))));
        }
        assert!(matches!(resolve("port-pps = -1", &[]), Err(ConfigError::Syntax { .. })));
    }

    #[test]
    fn metrics_are_served_at_the_usual_place_elsewhere_or_not() {
        assert_eq!(resolve("", &[]).unwrap().metrics, Metrics::Default);
        assert_eq!(METRICS.to_string(), "127.0.0.1:9091");
        assert_eq!(resolve("metrics = \"off\"", &[]).unwrap().metrics, Metrics::Off);
        let elsewhere = resolve("metrics = \"off\"", &["--metrics", "[::1]:80"]).unwrap();
        assert_eq!(elsewhere.metrics, Metrics::At("[::1]:80".parse().unwrap()));
    }

    #[test]
    fn an_unknown_key_and_a_named_file_that_is_not_there_are_errors() {
        assert!(matches!(resolve("frame = 1", &[]), Err(ConfigError::Syntax { .. })));
        let line = ["vrouterd", "--config", "/nonexistent/file"].map(OsString::from);
        let refused = Arguments::parse_from_line(line).unwrap().resolve();
        assert!(matches!(refused, Err(ConfigError::Read { .. })));
    }

    #[test]
    fn wrong_values_name_their_flag() {
        for (arguments, text) in [
            (&["--cpus", "0,1,0"][..], "--cpus \"0,1,0\": CPU 0 is named twice"),
            (&["--cpus", "0-64"], "--cpus \"0-64\": want at most 64 CPUs"),
            (&["--cpus", "3-1"], "--cpus \"3-1\": want numbers of CPUs"),
            (&["--cpus", "0,"], "--cpus \"0,\": want numbers of CPUs"),
            (&["--cpus", "x"], "--cpus \"x\": want numbers of CPUs"),
            (&["--frames", "100"], "--frames 100: want 4096 to 65536"),
            (&["--frames", "4100", "--hugepages", "on"], "--frames 4100: huge pages"),
            (&["--connections", "0"], "--connections 0: want 1 to 67108864"),
            (&["--meter-queue-ms", "51"], "--meter-queue-ms 51: want 0 to 50"),
            (&["--metrics", "9091"], "--metrics \"9091\": want IP:PORT or off"),
            (&["--sflow-rate", "0"], "--sflow-rate 0"),
            (&["--sflow-collector", "10.0.0.1:0"], "--sflow-collector 10.0.0.1:0"),
            (&["--sflow-agent", "0.0.0.0"], "--sflow-agent 0.0.0.0"),
            (&["--log-level", "loud"], "--log-level \"loud\""),
        ] {
            let error = resolve("", arguments).unwrap_err().to_string();
            assert!(error.starts_with(text), "{error}");
        }
        assert_eq!(resolve("", &["--frames", "4100"]).unwrap().hugepages, HugePages::Off);
    }
}
