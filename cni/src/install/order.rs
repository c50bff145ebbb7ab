//! The words of `weir-cni install` and `weir-cni uninstall`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

const BIN_DIR: &str = "/opt/cni/bin";
const CONF_DIR: &str = "/etc/cni/net.d";
const INSTALL: &str = "install";

pub(super) const USAGE: &str = "\
usage: weir-cni install   [--bin-dir DIR] [--conf-dir DIR] [--conf FILE | keys] [--wait SECONDS] [--dry-run]
       weir-cni uninstall [--bin-dir DIR] [--conf-dir DIR] [--dry-run]

Copies this program to DIR/weir-cni (/opt/cni/bin), then writes DIR/10-weir.conflist (/etc/cni/net.d):
from FILE, or from keys: --network NAME [--tenant NAME] [--group NAME] [--socket PATH] [--state-dir DIR].
With neither, a configuration that is there and sound is kept. --wait writes the configuration once
netplugin says that the node is ready, and ends with 2 when it does not in that time. uninstall takes both
away again, the configuration first. Without arguments the program is a CNI plugin.
";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    Install(Places, Wanted),
    Uninstall(Places),
    Help,
}

/// Where, and whether really.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) bin_dir: PathBuf,
    pub(super) conf_dir: PathBuf,
    pub(super) intent: Intent,
    /// How long the configuration waits for the node to be ready; `None`: not at all.
    pub(super) patience: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    Do,
    /// Only say what would be done.
    Tell,
}

/// The configuration that is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The one that is there.
    Kept,
    File(PathBuf),
    /// Ours with these keys.
    Keys(Map<String, Value>),
}

/// Words that make no order.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadOrder {
    #[error("{0:?} is no command")]
    Command(String),
    #[error("{0:?} is no flag of {1}")]
    Flag(String, &'static str),
    #[error("{0} wants a value")]
    Value(&'static str),
    #[error("{0:?} is no number of seconds")]
    Seconds(String),
    #[error("{0:?} is not UTF-8")]
    Text(OsString),
    #[error("--conf and keys exclude each other")]
    Both,
    #[error("--network is missing: it is needed with the other keys")]
    NoNetwork,
}

/// Flags of a configuration key, and the key.
const KEYS: [(&str, &str); 5] = [
    ("--network", "network"),
    ("--tenant", "tenant"),
    ("--group", "group"),
    ("--socket", "socket"),
    ("--state-dir", "stateDir"),
];

impl Order {
    /// Reads the words behind the program's name.
    pub(super) fn parse(words: impl Iterator<Item = OsString>) -> Result<Self, BadOrder> {
        let mut words = words.map(|word| word.into_string().map_err(BadOrder::Text));
        let command = words.next().transpose()?.unwrap_or_default();
        match command.as_str() {
            INSTALL => {
                let (places, wanted) = flags(INSTALL, &mut words)?;
                Ok(Self::Install(places, wanted))
            }
            "uninstall" => {
                let (places, wanted) = flags("uninstall", &mut words)?;
                match wanted {
                    Wanted::Kept => Ok(Self::Uninstall(places)),
                    Wanted::File(_) | Wanted::Keys(_) => {
                        Err(BadOrder::Flag("--conf or a key".to_owned(), "uninstall"))
                    }
                }
            }
            "help" | "--help" | "-h" => Ok(Self::Help),
            _ => Err(BadOrder::Command(command)),
        }
    }
}

fn flags(
    command: &'static str,
    words: &mut impl Iterator<Item = Result<String, BadOrder>>,
) -> Result<(Places, Wanted), BadOrder> {
    let (mut bin_dir, mut conf_dir) = (PathBuf::from(BIN_DIR), PathBuf::from(CONF_DIR));
    let (mut intent, mut file, mut keys) = (Intent::Do, None, Map::new());
    let mut patience = None;
    while let Some(word) = words.next().transpose()? {
        let mut value = |flag| words.next().transpose()?.ok_or(BadOrder::Value(flag));
        match word.as_str() {
            "--bin-dir" => bin_dir = value("--bin-dir")?.into(),
            "--conf-dir" => conf_dir = value("--conf-dir")?.into(),
            "--conf" => file = Some(PathBuf::from(value("--conf")?)),
            "--dry-run" => intent = Intent::Tell,
            "--wait" if command == INSTALL => patience = Some(seconds(value("--wait")?)?),
            other => {
                let known = KEYS.into_iter().find(|(flag, _)| *flag == other);
                let (flag, key) = known.ok_or_else(|| BadOrder::Flag(word.clone(), command))?;
                keys.insert(key.to_owned(), value(flag)?.into());
            }
        }
    }
    let wanted = match file {
        Some(_) if !keys.is_empty() => return Err(BadOrder::Both),
        Some(file) => Wanted::File(file),
        None if keys.is_empty() => Wanted::Kept,
        None if keys.contains_key("network") => Wanted::Keys(keys),
        None => return Err(BadOrder::NoNetwork),
    };
    Ok((Places { bin_dir, conf_dir, intent, patience }, wanted))
}

fn seconds(text: String) -> Result<Duration, BadOrder> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_no_number) => Err(BadOrder::Seconds(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Order, BadOrder> {
        Order::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn without_flags_the_fixed_places_are_meant() {
        let places = Places {
            bin_dir: "/opt/cni/bin".into(),
            conf_dir: "/etc/cni/net.d".into(),
            intent: Intent::Do,
            patience: None,
        };
        assert_eq!(parse("install"), Ok(Order::Install(places, Wanted::Kept)));
    }

    #[test]
    fn wrong_words_are_named() {
        for (line, error) in [
            ("instal", BadOrder::Command("instal".into())),
            ("install --bindir /x", BadOrder::Flag("--bindir".into(), "install")),
            ("install --bin-dir", BadOrder::Value("--bin-dir")),
            ("install --wait soon", BadOrder::Seconds("soon".into())),
            ("uninstall --wait 5", BadOrder::Flag("--wait".into(), "uninstall")),
            ("install --conf a --network n", BadOrder::Both),
            ("install --tenant t", BadOrder::NoNetwork),
            ("uninstall --network n", BadOrder::Flag("--conf or a key".into(), "uninstall")),
        ] {
            assert_eq!(parse(line), Err(error), "{line}");
        }
    }
}
