//! netplugin: Weir's node agent.
//!
//! One process per node. It attaches containers when a runtime asks through weir-cni, watches
//! netmaster's intent, compiles it to this node's tables and keeps vrouterd programmed with them.
//! It owns the node's attachments and nothing else: intent is netmaster's, packets are vrouterd's.
//! When either is away, what runs keeps running, and this process catches up when it is back.

mod adopt;
mod attach;
mod attachment;
mod claim;
mod config;
mod denylog;
mod diff;
mod engine;
mod given;
mod links;
mod master;
mod metrics;
mod mirror;
mod mtu;
mod naming;
mod node;
mod note;
mod ports;
mod program;
mod published;
mod queue;
mod reconcile;
mod refusal;
mod roster;
mod service;
mod store;

use std::convert::Infallible;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use telemetry::{LevelSwitch, start_log};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tracing::{error, info};

use config::{Arguments, Config};
use node::Node;
use queue::Queue;
use roster::Roster;
use store::Store;

/// Exit codes of the interface description.
const USAGE: u8 = 1;
const LOCAL: u8 = 4;

/// How long operations under way may take to end after SIGTERM. What does not is undone at the
/// next start.
const GRACE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // clap prints help and version to stdout, errors to stderr.
            let printed = error.print();
            let failed = error.use_stderr() || printed.is_err();
            return if failed { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let only_check = arguments.check;
    let config = match arguments.resolve() {
        Ok(config) => config,
        Err(error) => return fail(USAGE, &error.into()),
    };
    if only_check {
        return ExitCode::SUCCESS;
    }
    let levels = start_log(config.log_level, config.log_format);
    match run(config, &levels) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(LOCAL, &error),
    }
}

fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    use std::io::Write as _;
    // Nobody is left to tell when stderr is closed; the exit code says it all the same.
    drop(writeln!(std::io::stderr(), "netplugin: {error:#}"));
    ExitCode::from(code)
}

#[tokio::main]
async fn run(config: Config, levels: &LevelSwitch) -> anyhow::Result<()> {
    make_dir(&config.run_dir, 0o755)?;
    make_dir(&config.state_dir, 0o700)?;
    let store = Store::open(&config.state_dir.join("netplugin.redb"))?;
    let roster = Roster::load(store)?;
    let attachments = roster.rows().len();
    info!(node = %config.node, attachments, version = env!("CARGO_PKG_VERSION"), "netplugin starts");
    let queue = take_over_queue(&config, &roster).await;
    let node = Arc::new(Node::new(config, roster));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    // An end that is dropped stops the server as one that is used does.
    let mut server =
        tokio::spawn(service::serve(Arc::clone(&node), queue, async { drop(stopped.await) }));
    let early = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = &mut server => Some(ended),
        never = tend(Arc::clone(&node), levels) => match never? {},
    };
    let ended = if let Some(ended) = early {
        ended
    } else {
        info!("stopping");
        drop(stop);
        let Ok(ended) = tokio::time::timeout(GRACE, server).await else { return Ok(()) };
        ended
    };
    Ok(ended??)
}

/// A queue that cannot be had is no reason to leave the node's containers alone.
async fn take_over_queue(config: &Config, roster: &Roster) -> Option<Queue> {
    let dir = config.state_dir.join("cni-queue");
    match Queue::lock(&dir) {
        Ok(queue) => {
            queue.take_over(roster).await;
            Some(queue)
        }
        Err(error) => {
            error!(queue = %dir.display(), %error, "no deletion queue: DELs from before this start wait for the next");
            None
        }
    }
}

/// Runs what goes on for as long as the process does.
async fn tend(node: Arc<Node>, levels: &LevelSwitch) -> anyhow::Result<Infallible> {
    let mut hangup = signal(SignalKind::hangup())?;
    let programming = Arc::clone(&node);
    let following = Arc::clone(&node);
    let telling = Arc::clone(&node);
    let mut tasks: JoinSet<Infallible> = JoinSet::new();
    tasks.spawn(async move {
        let Node { config, mirror, programmer, .. } = &*programming;
        program::run(config, mirror, programmer).await
    });
    tasks.spawn(async move {
        let Node { config, mirror, programmer, master, roster, .. } = &*following;
        master::follow(config, mirror, programmer, master, roster).await
    });
    tasks.spawn(metrics::serve(Arc::clone(&node)));
    tasks.spawn(async move { denylog::run(&telling.mirror, &telling.programmer).await });
    tasks.spawn(async move { reconcile::run(&node).await });
    loop {
        tokio::select! {
            ended = tasks.join_next() => {
                // They end only by a bug; the process with them, for its supervisor to see.
                let Some(died) = ended else { anyhow::bail!("no task is left") };
                match died.context("a task died")? {}
            }
            _ = hangup.recv() => reload(levels),
        }
    }
}

/// Takes over what can change without a restart, the log level, once the whole is valid.
fn reload(levels: &LevelSwitch) {
    let outcome = Arguments::try_parse().map_err(anyhow::Error::from).and_then(|arguments| {
        let config = arguments.resolve()?;
        levels.set(config.log_level)?;
        Ok(config.log_level)
    });
    match outcome {
        Ok(level) => info!(%level, "configuration reloaded"),
        Err(error) => error!(error = format!("{error:#}"), "configuration not reloaded"),
    }
}

fn make_dir(path: &Path, mode: u32) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("making {}", path.display()))
}
