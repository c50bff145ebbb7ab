//! Flags, environment and configuration file, read once into values that hold.
//!
//! A flag wins over its environment variable, that over the file, the file over the default.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use control_model::NodeName;
use serde::Deserialize;
use telemetry::LogFormat;
use tonic::transport::{Endpoint, Uri};
use tracing::level_filters::LevelFilter;

const CONFIG: &str = "/etc/weir/netplugin.toml";
const UPLINK_CONFIRM: u32 = 15;
/// An hour, as vrouterd takes.
const UPLINK_CONFIRM_MAX: u32 = 3600;
const RUN_DIR: &str = "/run/weir";
const STATE_DIR: &str = "/var/lib/weir";
const NETMASTER: &str = "http://127.0.0.1:9999";
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// Command line of netplugin.
#[derive(Debug, Parser)]
#[command(
    name = "netplugin",
    version,
    about = "Weir's node agent: attaches containers and programs vrouterd"
)]
pub(crate) struct Arguments {
    /// Configuration file (TOML; keys as the long flags below) [default: /etc/weir/netplugin.toml, when there]
    #[arg(long, env = "WEIR_CONFIG")]
    pub(crate) config: Option<PathBuf>,
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
    /// Name of this node [default: the host's name]
    #[arg(long, env = "WEIR_NODE")]
    node: Option<String>,
    /// Where netmaster listens: http://HOST:PORT or unix:PATH, several separated by commas [default: port 9999 of this host]
    #[arg(long, env = "WEIR_NETMASTER", value_delimiter = ',', value_name = "URL")]
    netmaster: Option<Vec<String>>,
    /// This node's tunnel end point: an address of the uplink
    #[arg(long, env = "WEIR_VTEP", value_name = "IP")]
    vtep: Option<IpAddr>,
    /// Device that leads to the other nodes and to VLANs; up to 3 more, after commas, take over when it has no link
    #[arg(long, env = "WEIR_UPLINK", value_delimiter = ',', value_name = "DEV")]
    uplink: Option<Vec<String>>,
    /// How engine and host share the uplink: by an AF_XDP socket (dedicated) or by a tc program (shared) [default: dedicated]
    #[arg(long, env = "WEIR_UPLINK_MODE", value_enum)]
    uplink_mode: Option<UplinkMode>,
    /// Seconds in which a netmaster must still be reached over an uplink that was just taken, or the host gets it back; 0 does not look [default: 15]
    #[arg(long, env = "WEIR_UPLINK_CONFIRM", value_name = "S")]
    uplink_confirm: Option<u32>,
    /// vrouterd's socket [default: vrouterd.sock in the run directory]
    #[arg(long, env = "WEIR_DATAPATH", value_name = "SOCKET")]
    datapath: Option<PathBuf>,
    /// Where /metrics, /healthz, /readyz and /version are served over HTTP [default: 127.0.0.1:9090]
    #[arg(long, env = "WEIR_METRICS", value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,
    /// Sockets [default: /run/weir]
    #[arg(long, env = "WEIR_RUN_DIR", value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Durable state [default: /var/lib/weir]
    #[arg(long, env = "WEIR_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// error, warn, info, debug or trace [default: info]
    #[arg(long, env = "WEIR_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
    /// Form of the log on stderr [default: text]
    #[arg(long, env = "WEIR_LOG_FORMAT", value_enum)]
    log_format: Option<LogFormat>,
}

/// Devices that an uplink can have.
const DEVICES_MAX: usize = 4;

/// How the uplink is shared with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum UplinkMode {
    /// A tc program takes Weir's traffic and leaves the rest of the device as it is.
    Shared,
    /// An AF_XDP socket takes Weir's traffic and passes the rest to the host.
    Dedicated,
}

/// The way to the other nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uplink {
    /// In the order in which they are used: at least one.
    pub(crate) devices: Vec<String>,
    pub(crate) mode: UplinkMode,
}

/// Where a netmaster listens.
#[derive(Debug, Clone)]
pub(crate) struct Netmaster {
    /// As given.
    pub(crate) url: String,
    pub(crate) endpoint: Endpoint,
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) node: NodeName,
    pub(crate) netmasters: Vec<Netmaster>,
    pub(crate) vtep: Option<IpAddr>,
    pub(crate) uplink: Option<Uplink>,
    /// Seconds; 0 does not look.
    pub(crate) uplink_confirm: u32,
    pub(crate) datapath: PathBuf,
    pub(crate) metrics: SocketAddr,
    pub(crate) run_dir: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) log_level: LevelFilter,
    pub(crate) log_format: LogFormat,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("reading {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}", path.display())]
    Syntax { path: PathBuf, source: toml::de::Error },
    #[error("--node {value:?}: {reason}")]
    Node { value: String, reason: String },
    #[error("--netmaster {value:?}: {reason}")]
    Netmaster { value: String, reason: &'static str },
    #[error("--uplink {0}: want at most {DEVICES_MAX} devices, each once")]
    Uplinks(String),
    #[error("--uplink {0:?} is not a device name: want 1 to 15 bytes without \"/\" or white space")]
    UplinkName(String),
    #[error("--uplink-confirm {0}: want 0 to {UPLINK_CONFIRM_MAX}")]
    UplinkConfirm(u32),
    #[error("--vtep {0} cannot be the source of tunnels: want a unicast address of the uplink")]
    Vtep(IpAddr),
    #[error("--uplink {0} needs --vtep: the address other nodes send this node's packets to")]
    NoVtep(String),
    #[error("--log-level {0:?}: want error, warn, info, debug or trace")]
    LogLevel(String),
}

impl Arguments {
    /// Reads the file, if any, and checks the whole.
    pub(crate) fn resolve(self) -> Result<Config, Error> {
        let file = read_file(self.config.as_deref())?;
        self.options.or(file).check()
    }
}

fn read_file(named: Option<&Path>) -> Result<Options, Error> {
    let path = named.unwrap_or_else(|| Path::new(CONFIG));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if named.is_none() && e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
    };
    toml::from_str(&text).map_err(|source| Error::Syntax { path: path.to_owned(), source })
}

impl Options {
    fn or(self, other: Self) -> Self {
        Self {
            node: self.node.or(other.node),
            netmaster: self.netmaster.or(other.netmaster),
            vtep: self.vtep.or(other.vtep),
            uplink: self.uplink.or(other.uplink),
            uplink_mode: self.uplink_mode.or(other.uplink_mode),
            uplink_confirm: self.uplink_confirm.or(other.uplink_confirm),
            datapath: self.datapath.or(other.datapath),
            metrics: self.metrics.or(other.metrics),
            run_dir: self.run_dir.or(other.run_dir),
            state_dir: self.state_dir.or(other.state_dir),
            log_level: self.log_level.or(other.log_level),
            log_format: self.log_format.or(other.log_format),
        }
    }

    fn check(self) -> Result<Config, Error> {
        let mode = self.uplink_mode.unwrap_or(UplinkMode::Dedicated);
        let uplink = uplink(self.uplink.unwrap_or_default(), mode)?;
        if let Some(vtep) = self.vtep
            && (vtep.is_unspecified() || vtep.is_multicast())
        {
            return Err(Error::Vtep(vtep));
        }
        if let (Some(uplink), None) = (&uplink, self.vtep) {
            return Err(Error::NoVtep(uplink.devices.join(",")));
        }
        let uplink_confirm = self.uplink_confirm.unwrap_or(UPLINK_CONFIRM);
        if uplink_confirm > UPLINK_CONFIRM_MAX {
            return Err(Error::UplinkConfirm(uplink_confirm));
        }
        let masters = self.netmaster.unwrap_or_else(|| vec![NETMASTER.to_owned()]);
        let run_dir = self.run_dir.unwrap_or_else(|| RUN_DIR.into());
        let level = self.log_level.unwrap_or_else(|| "info".to_owned());
        Ok(Config {
            node: node_name(self.node)?,
            netmasters: masters.iter().map(|url| netmaster(url)).collect::<Result<_, _>>()?,
            vtep: self.vtep,
            uplink,
            uplink_confirm,
            datapath: self.datapath.unwrap_or_else(|| run_dir.join("vrouterd.sock")),
            metrics: self.metrics.unwrap_or(METRICS),
            run_dir,
            state_dir: self.state_dir.unwrap_or_else(|| STATE_DIR.into()),
            log_level: level.parse().map_err(|_bad| Error::LogLevel(level))?,
            log_format: self.log_format.unwrap_or(LogFormat::Text),
        })
    }
}

fn uplink(devices: Vec<String>, mode: UplinkMode) -> Result<Option<Uplink>, Error> {
    for device in &devices {
        let odd = device.contains(|c: char| c == '/' || c.is_whitespace());
        if device.is_empty() || device.len() > 15 || odd {
            return Err(Error::UplinkName(device.clone()));
        }
    }
    let twice = (1..devices.len()).any(|place| devices[..place].contains(&devices[place]));
    if twice || devices.len() > DEVICES_MAX {
        return Err(Error::Uplinks(devices.join(",")));
    }
    Ok((!devices.is_empty()).then_some(Uplink { devices, mode }))
}

fn node_name(given: Option<String>) -> Result<NodeName, Error> {
    let path = Path::new("/proc/sys/kernel/hostname");
    let name = match given {
        Some(name) => name,
        None => std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?
            .trim_end()
            .to_owned(),
    };
    NodeName::parse("node", &name).map_err(|e| Error::Node { value: name, reason: e.to_string() })
}

fn netmaster(url: &str) -> Result<Netmaster, Error> {
    let bad = |reason| Error::Netmaster { value: url.to_owned(), reason };
    if !url.starts_with("unix:") {
        let uri: Uri = url.parse().map_err(|_bad| bad("want http://HOST:PORT or unix:PATH"))?;
        match uri.scheme_str() {
            Some("http") if uri.host().is_some_and(|h| !h.is_empty()) => {}
            Some("https") => return Err(bad("TLS is not in this version")),
            _ => return Err(bad("want http://HOST:PORT or unix:PATH")),
        }
    }
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|_bad| bad("want http://HOST:PORT or unix:PATH"))?;
    Ok(Netmaster { url: url.to_owned(), endpoint })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(arguments: &[&str]) -> Result<Config, Error> {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.toml");
        std::fs::write(&empty, "").unwrap();
        let mut all = vec!["netplugin", "--config", empty.to_str().unwrap()];
        all.extend(arguments);
        Arguments::try_parse_from(all).unwrap().resolve()
    }

    #[test]
    fn defaults_are_those_of_the_interface_description() {
        let config = resolve(&["--node", "n1"]).unwrap();
        assert_eq!(config.run_dir, Path::new("/run/weir"));
        assert_eq!(config.state_dir, Path::new("/var/lib/weir"));
        assert_eq!(config.datapath, Path::new("/run/weir/vrouterd.sock"));
        assert_eq!(config.netmasters[0].url, "http://127.0.0.1:9999");
        assert_eq!((config.uplink, config.uplink_confirm), (None, 15));
        assert_eq!(config.metrics.to_string(), "127.0.0.1:9090");
        assert_eq!(config.log_level, LevelFilter::INFO);
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("netplugin.toml");
        std::fs::write(&file, "node = \"file\"\nrun-dir = \"/run/file\"\nlog-format = \"json\"\n")
            .unwrap();
        let path = file.to_str().unwrap();
        let arguments = ["netplugin", "--config", path, "--node", "flag"];
        let config = Arguments::try_parse_from(arguments).unwrap().resolve().unwrap();
        assert_eq!(config.node.to_string(), "flag");
        assert_eq!(config.datapath, Path::new("/run/file/vrouterd.sock"));
        assert_eq!(config.log_format, LogFormat::Json);
    }

    #[test]
    fn an_unknown_key_and_a_named_file_that_is_not_there_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("netplugin.toml");
        std::fs::write(&file, "nod = \"x\"\n").unwrap();
        let read = |path: &Path| {
            let arguments = ["netplugin", "--config", path.to_str().unwrap()];
            Arguments::try_parse_from(arguments).unwrap().resolve()
        };
        assert!(matches!(read(&file), Err(Error::Syntax { .. })));
        assert!(matches!(read(&dir.path().join("none")), Err(Error::Read { .. })));
    }

    #[test]
    fn what_this_version_does_not_do_is_refused_by_name() {
        let text = |arguments: &[&str]| resolve(arguments).unwrap_err().to_string();
        assert_eq!(
            text(&["--node", "n", "--uplink", "a,b,a"]),
            "--uplink a,b,a: want at most 4 devices, each once"
        );
        assert_eq!(
            text(&["--node", "n", "--uplink-confirm", "3601"]),
            "--uplink-confirm 3601: want 0 to 3600"
        );
        assert_eq!(
            text(&["--node", "n", "--uplink", "a,b,c,d,e"]),
            "--uplink a,b,c,d,e: want at most 4 devices, each once"
        );
        assert_eq!(
            text(&["--node", "n", "--netmaster", "https://h:1"]),
            "--netmaster \"https://h:1\": TLS is not in this version"
        );
    }

    #[test]
    fn wrong_values_name_their_flag() {
        for (arguments, flag) in [
            (&["--node", "n", "--netmaster", "h:1"][..], "--netmaster"),
            (&["--node", "n", "--netmaster", "http://"], "--netmaster"),
            (&["--node", "n", "--uplink", "e/0", "--vtep", "10.0.0.1"], "--uplink"),
            (&["--node", "n", "--uplink", "eth0"], "--uplink"),
            (&["--node", "n", "--vtep", "224.0.0.1"], "--vtep"),
            (&["--node", "n", "--log-level", "loud"], "--log-level"),
            (&["--node", "n ode"], "--node"),
        ] {
            let error = resolve(arguments).unwrap_err().to_string();
            assert!(error.starts_with(flag), "{error}");
        }
    }
}
