//! Flags, environment and configuration file, read once into values that hold.
//!
//! A flag wins over its environment variable, that over the file, the file over the default.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use clap::Parser;
use control_store::StoreUrl;
use serde::Deserialize;
use telemetry::LogFormat;
use tracing::level_filters::LevelFilter;

use crate::history::{BadCluster, Cluster};

const CONFIG: &str = "/etc/weir/netmaster.toml";
const RUN_DIR: &str = "/run/weir";
const STATE_DIR: &str = "/var/lib/weir";
const LISTEN: &str = "127.0.0.1:9999";

/// Command line of netmaster.
#[derive(Debug, Parser)]
#[command(
    name = "netmaster",
    version,
    about = "Weir's control plane: keeps intent, hands out addresses and tags, feeds the nodes"
)]
pub(crate) struct Arguments {
    /// Configuration file (TOML; keys as the long flags below) [default: /etc/weir/netmaster.toml, when there]
    #[arg(long, env = "WEIR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check flags and configuration file, then exit
    #[arg(long)]
    pub(crate) check: bool,
    /// Serve without TLS: whoever reaches the address may do everything
    #[arg(long, env = "WEIR_PLAINTEXT")]
    plaintext: bool,
    #[command(flatten)]
    options: Options,
}

/// What both the command line and the file can say.
#[derive(Debug, Default, clap::Args)]
struct Options {
    /// Where to serve: HOST:PORT or unix:PATH (relative to the run dir); repeatable [default: 127.0.0.1:9999]
    #[arg(long, env = "WEIR_LISTEN", value_delimiter = ',', value_name = "ADDRESS")]
    listen: Option<Vec<String>>,
    /// Where intent is kept: redb:PATH, etcd:URL,URL or memory [default: redb:<state-dir>/netmaster.redb]
    #[arg(long, env = "WEIR_STORE", value_name = "STORE")]
    store: Option<String>,
    /// Where the other netmasters of one etcd reach this one [default: http:// and the first --listen]
    #[arg(long, env = "WEIR_ADVERTISE", value_name = "URL")]
    advertise: Option<String>,
    /// What the store is to be. A new one becomes it: for nodes whose store was lost [default: drawn]
    #[arg(long, env = "WEIR_CLUSTER", value_name = "ID")]
    cluster: Option<String>,
    /// Certificate authority of clients (not in this version)
    #[arg(long, env = "WEIR_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Certificate of this server (not in this version)
    #[arg(long, env = "WEIR_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Key of this server (not in this version)
    #[arg(long, env = "WEIR_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
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

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct File {
    plaintext: bool,
    listen: Option<Vec<String>>,
    store: Option<String>,
    advertise: Option<String>,
    cluster: Option<String>,
    tls_ca: Option<PathBuf>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    log_level: Option<String>,
    log_format: Option<LogFormat>,
}

/// Where to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listen {
    /// TCP.
    Tcp(SocketAddr),
    /// A socket only its owner can connect to.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) listen: Vec<Listen>,
    pub(crate) store: StoreUrl,
    /// Where other netmasters reach this one; empty where there are none.
    pub(crate) advertise: String,
    pub(crate) cluster: Option<Cluster>,
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
    #[error("--listen {0:?}: want HOST:PORT with an IP address, or unix:PATH")]
    Listen(String),
    #[error("--store: {0}")]
    Store(control_store::OpenError),
    #[error("--cluster {value:?}: {reason}")]
    Cluster { value: String, reason: BadCluster },
    #[error("--advertise {0:?}: want http://HOST:PORT")]
    Advertise(String),
    #[error(
        "--store etcd: other netmasters can't reach this one at {0:?}: say where with --advertise http://HOST:PORT"
    )]
    NoAdvertise(String),
    #[error("--{0}: TLS is not in this version; use --plaintext on an address only you reach")]
    Tls(&'static str),
    #[error(
        "TLS is not in this version: start with --plaintext, and listen where only you reach it (the default, 127.0.0.1, or unix:PATH)"
    )]
    NotPlaintext,
    #[error("--log-level {0:?}: want error, warn, info, debug or trace")]
    LogLevel(String),
}

impl Arguments {
    /// Reads the file, if any, and checks the whole.
    pub(crate) fn resolve(self) -> Result<Config, Error> {
        let file = read_file(self.config.as_deref())?;
        let plaintext = self.plaintext || file.plaintext;
        let config = self.options.or(file).check()?;
        if plaintext { Ok(config) } else { Err(Error::NotPlaintext) }
    }
}

fn read_file(named: Option<&Path>) -> Result<File, Error> {
    let path = named.unwrap_or_else(|| Path::new(CONFIG));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if named.is_none() && e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
    };
    toml::from_str(&text).map_err(|source| Error::Syntax { path: path.to_owned(), source })
}

impl Options {
    fn or(self, file: File) -> Self {
        Self {
            listen: self.listen.or(file.listen),
            store: self.store.or(file.store),
            advertise: self.advertise.or(file.advertise),
            cluster: self.cluster.or(file.cluster),
            tls_ca: self.tls_ca.or(file.tls_ca),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            run_dir: self.run_dir.or(file.run_dir),
            state_dir: self.state_dir.or(file.state_dir),
            log_level: self.log_level.or(file.log_level),
            log_format: self.log_format.or(file.log_format),
        }
    }

    fn check(self) -> Result<Config, Error> {
        let tls = [("tls-ca", self.tls_ca), ("tls-cert", self.tls_cert), ("tls-key", self.tls_key)];
        if let Some((flag, _)) = tls.iter().find(|(_, file)| file.is_some()) {
            return Err(Error::Tls(flag));
        }
        let run_dir = self.run_dir.unwrap_or_else(|| RUN_DIR.into());
        let state_dir = self.state_dir.unwrap_or_else(|| STATE_DIR.into());
        let addresses = self.listen.unwrap_or_else(|| vec![LISTEN.to_owned()]);
        let level = self.log_level.unwrap_or_else(|| "info".to_owned());
        let listen: Vec<_> =
            addresses.iter().map(|text| listen(text, &run_dir)).collect::<Result<_, _>>()?;
        let store = match self.store {
            Some(text) => text.parse().map_err(Error::Store)?,
            None => StoreUrl::Redb(state_dir.join("netmaster.redb")),
        };
        Ok(Config {
            advertise: advertise(self.advertise, &store, &listen)?,
            cluster: self.cluster.map(|text| cluster(&text)).transpose()?,
            listen,
            store,
            run_dir,
            state_dir,
            log_level: LevelFilter::from_str(&level).map_err(|_bad| Error::LogLevel(level))?,
            log_format: self.log_format.unwrap_or(LogFormat::Text),
        })
    }
}

fn cluster(text: &str) -> Result<Cluster, Error> {
    text.parse().map_err(|reason| Error::Cluster { value: text.to_owned(), reason })
}

/// A store that only this process opens has nobody to tell.
fn advertise(given: Option<String>, store: &StoreUrl, all: &[Listen]) -> Result<String, Error> {
    if !matches!(store, StoreUrl::Etcd(_)) {
        return Ok(String::new());
    }
    if let Some(url) = given {
        let is_url = url.strip_prefix("http://").is_some_and(|rest| !rest.is_empty());
        let is_url = is_url && tonic::transport::Endpoint::from_shared(url.clone()).is_ok();
        return if is_url { Ok(url) } else { Err(Error::Advertise(url)) };
    }
    match all.first() {
        Some(Listen::Tcp(address)) if !address.ip().is_unspecified() && address.port() != 0 => {
            Ok(format!("http://{address}"))
        }
        other => Err(Error::NoAdvertise(other.map(ToString::to_string).unwrap_or_default())),
    }
}

fn listen(text: &str, run_dir: &Path) -> Result<Listen, Error> {
    match text.strip_prefix("unix:") {
        Some("") => Err(Error::Listen(text.to_owned())),
        Some(path) => Ok(Listen::Unix(run_dir.join(path))),
        None => match text.parse() {
            Ok(address) => Ok(Listen::Tcp(address)),
            Err(_not_an_address) => Err(Error::Listen(text.to_owned())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(arguments: &[&str]) -> Result<Config, Error> {
        let empty = tempfile::NamedTempFile::new().unwrap();
        let fixed = ["netmaster", "--config", empty.path().to_str().unwrap()];
        Arguments::try_parse_from(fixed.iter().chain(arguments)).unwrap().resolve()
    }

    #[test]
    fn defaults_are_those_of_the_interface_description() {
        let config = resolve(&["--plaintext"]).unwrap();
        assert_eq!(config.listen, [Listen::Tcp("127.0.0.1:9999".parse().unwrap())]);
        assert_eq!(config.store.to_string(), "redb:/var/lib/weir/netmaster.redb");
        assert_eq!(config.run_dir, Path::new("/run/weir"));
        assert_eq!(config.log_level, LevelFilter::INFO);
    }

    #[test]
    fn d22_without_tls_netmaster_starts_only_when_told_so_and_then_for_this_machine() {
        assert!(matches!(resolve(&[]), Err(Error::NotPlaintext)));
        let config = resolve(&["--plaintext"]).unwrap();
        let local = |listen: &Listen| match listen {
            Listen::Tcp(address) => address.ip().is_loopback(),
            Listen::Unix(_) => true,
        };
        assert!(config.listen.iter().all(local), "{:?}", config.listen);
    }

    #[test]
    fn other_netmasters_are_told_the_first_address_unless_another_is_given() {
        let etcd = ["--plaintext", "--store", "etcd:http://h:1"];
        let with = |more: &[&str]| resolve(&[&etcd[..], more].concat()).unwrap().advertise;
        assert_eq!(with(&["--listen", "10.0.0.1:9"]), "http://10.0.0.1:9");
        let wide = ["--listen", "0.0.0.0:9", "--advertise", "http://m1:9"];
        assert_eq!(with(&wide), "http://m1:9");
        assert_eq!(resolve(&["--plaintext"]).unwrap().advertise, "");
    }

    #[test]
    fn listen_can_be_repeated_and_names_sockets_in_the_run_dir() {
        let arguments = [
            "--plaintext",
            "--listen",
            "[::1]:1",
            "--listen",
            "unix:m.sock",
            "--run-dir",
            "/run/a",
        ];
        let listen: Vec<_> =
            resolve(&arguments).unwrap().listen.iter().map(ToString::to_string).collect();
        assert_eq!(listen, ["[::1]:1", "unix:/run/a/m.sock"]);
    }

    #[test]
    fn a_flag_wins_over_the_file_and_unknown_keys_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netmaster.toml");
        let read = |text: &str, flags: &[&str]| {
            std::fs::write(&path, text).unwrap();
            let fixed = ["netmaster", "--config", path.to_str().unwrap()];
            Arguments::try_parse_from(fixed.iter().chain(flags)).unwrap().resolve()
        };
        let file = "plaintext = true\nstore = \"memory\"\nlog-format = \"json\"\n";
        let config = read(file, &["--store", "redb:/x"]).unwrap();
        assert_eq!(config.store.to_string(), "redb:/x");
        assert_eq!(config.log_format, LogFormat::Json);
        assert!(matches!(read("stor = 1\n", &[]), Err(Error::Syntax { .. })));
        std::fs::remove_file(&path).unwrap();
        let missing = ["netmaster", "--config", path.to_str().unwrap()];
        let missing = Arguments::try_parse_from(missing).unwrap().resolve();
        assert!(matches!(missing, Err(Error::Read { .. })));
    }

    #[test]
    fn what_is_wrong_or_not_built_is_refused_by_flag() {
        for (arguments, part) in [
            (&[][..], "start with --plaintext"),
            (&["--plaintext", "--tls-cert", "x"], "--tls-cert: TLS is not in this version"),
            (&["--plaintext", "--listen", "localhost"], "--listen \"localhost\""),
            (&["--plaintext", "--listen", "unix:"], "--listen \"unix:\""),
            (&["--plaintext", "--store", "etcd:h:1"], "\"h:1\" is not an address of etcd"),
            (&["--plaintext", "--cluster", "7"], "--cluster \"7\": want the 16 hexadecimal digits"),
            (
                &["--plaintext", "--store", "etcd:http://h:1", "--listen", "0.0.0.0:9999"],
                "can't reach this one at \"0.0.0.0:9999\"",
            ),
            (
                &["--plaintext", "--store", "etcd:http://h:1", "--advertise", "m1:9999"],
                "--advertise \"m1:9999\"",
            ),
            (&["--plaintext", "--log-level", "loud"], "--log-level"),
        ] {
            let error = resolve(arguments).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
