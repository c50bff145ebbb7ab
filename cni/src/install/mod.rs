//! `weir-cni install` and `uninstall`: the plugin where runtimes look for it.
//!
//! A runtime takes a configuration as the word that the node is ready, and runs the program at any
//! moment. So the program comes first and the configuration last, and goes last; each appears whole
//! under its name or not at all, also when this process is killed; and doing it again changes nothing.
//! With `--wait` the configuration waits until netplugin says that it is so.
//! A running program is never written to: its file is replaced.

mod order;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use cni_api::v1::StatusRequest;
use serde_json::Value;

use crate::call::Call;
use crate::command::Output;
use crate::config::Config;
use crate::environment::Environment;
use crate::failure::Failure;
use order::{Intent, Order, Places, USAGE, Wanted};

const PROGRAM: &str = "weir-cni";
/// Runtimes take the first configuration in the order of names.
const CONFIGURATION: &str = "10-weir.conflist";
const TEMPLATE: &str = include_str!("../../../deploy/10-weir.conflist");
/// Ends the name of a file that is not whole yet; runtimes read none that ends so.
const UNFINISHED: &str = ".new";
/// How long netplugin may take for one answer, and how soon it is asked again.
const ANSWER: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(200);

/// Exit codes of the interface description.
const BAD_USAGE: u8 = 1;
const NOT_DONE: u8 = 2;
const REFUSED: u8 = 3;
const LOCAL: u8 = 4;

/// Why nothing, or not all, was done.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Order(#[from] order::BadOrder),
    #[error("{}: {reason}", path.display())]
    Configuration { path: PathBuf, reason: Unsound },
    #[error("no sound configuration at {} ({reason}): name one with --network or --conf", path.display())]
    NothingToKeep { path: PathBuf, reason: Unsound },
    #[error("the node is not ready after {patience:?}: {reason}")]
    NotReady { patience: Duration, reason: String },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
}

/// Why a text is no configuration for a runtime.
#[derive(Debug, thiserror::Error)]
enum Unsound {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("no list of plugins")]
    NoPlugins,
    #[error("no plugin of type weir-cni")]
    NotOurs,
    #[error("no network named")]
    NoNetwork,
    #[error("{0}")]
    Refused(String),
}

impl Failed {
    const fn exit(&self) -> u8 {
        match self {
            Self::Order(_) => BAD_USAGE,
            Self::NotReady { .. } => NOT_DONE,
            Self::Configuration { .. } | Self::NothingToKeep { .. } => REFUSED,
            Self::File { .. } => LOCAL,
        }
    }
}

/// Does what the words behind the program's name say.
pub(crate) fn run(words: impl Iterator<Item = OsString>) -> Output {
    let done = Order::parse(words).map_err(Failed::from).and_then(|order| match order {
        Order::Install(places, wanted) => install(&places, &wanted),
        Order::Uninstall(places) => uninstall(&places),
        Order::Help => Ok(USAGE.to_owned()),
    });
    match done {
        Ok(stdout) => Output { stdout, stderr: String::new(), exit: ExitCode::SUCCESS },
        Err(failed) => {
            let usage = if matches!(failed, Failed::Order(_)) { USAGE } else { "" };
            let stderr = format!("weir-cni: {failed}\n{usage}");
            Output { stdout: String::new(), stderr, exit: ExitCode::from(failed.exit()) }
        }
    }
}

fn install(places: &Places, wanted: &Wanted) -> Result<String, Failed> {
    let (text, config) = configuration(places, wanted)?;
    let own = Path::new("/proc/self/exe");
    let program = fs::read(own).map_err(at(own))?;
    let put = |dir: &Path, name, bytes: &[u8], mode| {
        let done = place(&Placed { dir, name, bytes, mode }, places.intent)?;
        Ok::<_, Failed>(line(&dir.join(name), done))
    };
    let first = put(&places.bin_dir, PROGRAM, &program, 0o755)?;
    if let (Some(patience), Intent::Do) = (places.patience, places.intent) {
        await_ready(&config, patience)?;
    }
    Ok(first + &put(&places.conf_dir, CONFIGURATION, &text, 0o644)?)
}

/// Returns once netplugin could serve an ADD. Which network has addresses left is no matter of the node.
fn await_ready(config: &Config, patience: Duration) -> Result<(), Failed> {
    let deadline = Instant::now() + patience;
    loop {
        let asked = Call::connect(&Environment::default(), config, ANSWER);
        let reason = match asked.and_then(|call| call.status(StatusRequest::default())) {
            Ok(reply) if reply.ready => return Ok(()),
            Ok(reply) => reply.reason,
            Err(Failure { msg, .. }) => msg,
        };
        if Instant::now() >= deadline {
            return Err(Failed::NotReady { patience, reason });
        }
        std::thread::sleep(AGAIN);
    }
}

fn uninstall(places: &Places) -> Result<String, Failed> {
    let steps = [(&places.conf_dir, CONFIGURATION), (&places.bin_dir, PROGRAM)];
    let done = steps.into_iter().map(|(dir, name)| {
        let path = dir.join(name);
        let done = match (path.exists(), places.intent) {
            (false, _) => "not there",
            (true, Intent::Tell) => "would be removed",
            (true, Intent::Do) => {
                let _lock = lock(dir)?;
                sweep(dir, name)?;
                fs::remove_file(&path).or_else(gone).map_err(at(&path))?;
                "removed"
            }
        };
        Ok(line(&path, done))
    });
    done.collect()
}

fn line(path: &Path, done: &str) -> String {
    format!("{}: {done}\n", path.display())
}

/// The text of the configuration, once it is known to be one that the plugin takes.
fn configuration(places: &Places, wanted: &Wanted) -> Result<(Vec<u8>, Config), Failed> {
    let there = places.conf_dir.join(CONFIGURATION);
    match wanted {
        Wanted::Kept => {
            let text = fs::read(&there).unwrap_or_default();
            let unsound = |reason| Failed::NothingToKeep { path: there, reason };
            sound(&text).map(|config| (text, config)).map_err(unsound)
        }
        Wanted::File(path) => {
            let text = fs::read(path).map_err(at(path))?;
            let refused = |reason| Failed::Configuration { path: path.clone(), reason };
            sound(&text).map(|config| (text, config)).map_err(refused)
        }
        Wanted::Keys(keys) => {
            let refused = |reason| Failed::Configuration { path: there.clone(), reason };
            let mut list: Value =
                serde_json::from_str(TEMPLATE).map_err(|error| refused(error.into()))?;
            for (key, value) in keys {
                list["plugins"][0][key] = value.clone();
            }
            let text = format!("{list:#}\n").into_bytes();
            sound(&text).map(|config| (text, config)).map_err(refused)
        }
    }
}

/// Whether a configuration list has our plugin, in words that it takes from a runtime.
fn sound(text: &[u8]) -> Result<Config, Unsound> {
    let list: Value = serde_json::from_slice(text)?;
    let plugins = list["plugins"].as_array().ok_or(Unsound::NoPlugins)?;
    let ours = |plugin: &&Value| plugin["type"] == PROGRAM;
    let plugin = plugins.iter().find(ours).ok_or(Unsound::NotOurs)?;
    let mut given = plugin.clone();
    (given["name"], given["cniVersion"]) = (list["name"].clone(), list["cniVersion"].clone());
    let parsed = Config::parse(given.to_string().as_bytes());
    let config = parsed.map_err(|failure| Unsound::Refused(failure.msg))?;
    if config.network.is_empty() { Err(Unsound::NoNetwork) } else { Ok(config) }
}

/// A file to be placed.
struct Placed<'a> {
    dir: &'a Path,
    name: &'a str,
    bytes: &'a [u8],
    mode: u32,
}

/// Puts a file under its name, whole and on disk, unless it is there already.
fn place(file: &Placed<'_>, intent: Intent) -> Result<&'static str, Failed> {
    let path = file.dir.join(file.name);
    if is_placed(&path, file) {
        return Ok("unchanged");
    }
    if intent == Intent::Tell {
        return Ok("would be installed");
    }
    fs::create_dir_all(file.dir).map_err(at(file.dir))?;
    let _lock = lock(file.dir)?;
    sweep(file.dir, file.name)?;
    // A clock before 1970 gives a name that is as good: nobody else is here.
    #[expect(clippy::disallowed_methods, reason = "a name that differs, whatever the clock says")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let unique = format!("{}-{}", std::process::id(), now.as_nanos());
    let fresh = file.dir.join(format!(".{}.{unique}{UNFINISHED}", file.name));
    let written = write(&fresh, file).and_then(|()| fs::rename(&fresh, &path));
    if let Err(source) = written {
        // The first failure is the one to report; the next run sweeps.
        drop(fs::remove_file(&fresh));
        return Err(Failed::File { path, source });
    }
    File::open(file.dir).and_then(|dir| dir.sync_all()).map_err(at(file.dir))?;
    Ok("installed")
}

fn is_placed(path: &Path, file: &Placed<'_>) -> bool {
    let mode = fs::symlink_metadata(path).map(|m| (m.is_file(), m.permissions().mode() & 0o777));
    mode.is_ok_and(|mode| mode == (true, file.mode))
        && fs::read(path).is_ok_and(|bytes| bytes == file.bytes)
}

fn write(fresh: &Path, file: &Placed<'_>) -> io::Result<()> {
    let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(fresh)?;
    open.write_all(file.bytes)?;
    open.set_permissions(fs::Permissions::from_mode(file.mode))?;
    open.sync_all()
}

/// Two at once take turns.
fn lock(dir: &Path) -> Result<File, Failed> {
    let open = File::open(dir).map_err(at(dir))?;
    open.lock().map_err(at(dir))?;
    Ok(open)
}

/// Removes what killed runs left. Under the lock nobody else writes such a file.
fn sweep(dir: &Path, name: &str) -> Result<(), Failed> {
    let ours = |path: &PathBuf| {
        let text = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        text.starts_with(&format!(".{name}.")) && text.ends_with(UNFINISHED)
    };
    let entries = fs::read_dir(dir).map_err(at(dir))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    for path in paths.filter(ours) {
        fs::remove_file(&path).or_else(gone).map_err(at(&path))?;
    }
    Ok(())
}

fn gone(error: io::Error) -> io::Result<()> {
    if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Failed {
    let path = path.to_owned();
    |source| Failed::File { path, source }
}

#[cfg(test)]
mod tests;
