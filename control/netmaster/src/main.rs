//! netmaster: Weir's control plane.
//!
//! It keeps intent (tenants, networks, groups, policies, rules, endpoints) in a store, hands out
//! addresses, tags and identifiers, checks every write, and feeds each node's netplugin. It holds no
//! truth that is not in the store: a restart changes nothing. When it is away, what runs keeps
//! running on the nodes.

mod addresses;
mod api;
mod config;
mod explain;
mod gate;
mod greeting;
mod history;
mod layout;
mod master;
mod metrics;
mod node_api;
mod oper;
mod reclaim;
mod reign;
mod scope;
mod selection;
mod server;
mod sessions;
mod status;
#[cfg(test)]
mod tests;
mod viewer;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use control_store::AnyStore;
use telemetry::{LevelSwitch, start_log};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use config::{Arguments, Config, Listen};
use gate::Role;
use metrics::Transactions;
use reign::{Basics, Contender};
use server::Bound;

/// Exit codes of the interface description.
const USAGE: u8 = 1;
const LOCAL: u8 = 4;

/// How long requests under way may take to end after SIGTERM. A write is whole or not at all.
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
    match run(&config, &levels) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(LOCAL, &error),
    }
}

fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    use std::io::Write as _;
    // Nobody is left to tell when stderr is closed; the exit code says it all the same.
    drop(writeln!(std::io::stderr(), "netmaster: {error:#}"));
    ExitCode::from(code)
}

#[tokio::main]
async fn run(config: &Config, levels: &LevelSwitch) -> anyhow::Result<()> {
    let (stop, stopping) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    make_dir(&config.state_dir, 0o700)?;
    let (roles, role) = watch::channel(Role::Follows(None));
    let basics = Basics { transactions: Transactions::default(), cluster: config.cluster };
    let mut reign = start_reign(config, roles, &basics, stopping.clone()).await?;
    let bound = bind_all(config).await?;
    info!(store = %config.store, version = env!("CARGO_PKG_VERSION"), "netmaster starts");
    let serving = async move { server::serve(role, &basics.transactions, bound, stopping).await };
    let mut server = tokio::spawn(serving);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut server => return Ok(ended??),
        ended = &mut reign => return ended?.context("leading"),
        () = reload_levels(&mut hangup, levels) => {}
    }
    info!("stopping");
    stop.send_replace(true);
    let ending = async {
        reign.await?.context("leading")?;
        Ok(server.await??)
    };
    tokio::time::timeout(GRACE, ending).await.unwrap_or(Ok(()))
}

/// A store of this process's own is read before anything is served. One that is shared may be away,
/// and somebody else may lead.
async fn start_reign(
    config: &Config,
    role: watch::Sender<Role>,
    basics: &Basics,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let store = match config.store.open()? {
        AnyStore::Etcd(store) => {
            let address = config.advertise.clone();
            let basics = basics.clone();
            let contender = Contender { store, address, basics, role, stopping };
            return Ok(tokio::spawn(async move { Ok(contender.take_turns().await?) }));
        }
        own @ (AnyStore::Memory(_) | AnyStore::Redb(_)) => own,
    };
    let leads = reign::lead(store, None, basics, stopping.clone()).await;
    role.send_replace(leads.context("reading the store")?);
    Ok(tokio::spawn(async move {
        // A sender that is gone stops the process as well.
        drop(stopping.wait_for(|stopping| *stopping).await);
        Ok(())
    }))
}

async fn bind_all(config: &Config) -> anyhow::Result<Vec<Bound>> {
    if config.listen.iter().any(|listen| matches!(listen, Listen::Unix(_))) {
        make_dir(&config.run_dir, 0o755)?;
    }
    let mut all = Vec::new();
    for listen in &config.listen {
        let bound = Bound::bind(listen).await?;
        match bound.tcp_address() {
            Some(address) if !address.ip().is_loopback() => {
                warn!(%address, "serving without TLS: whoever reaches this address may do everything");
            }
            Some(address) => info!(%address, "serving"),
            None => info!(address = %listen, "serving"),
        }
        all.push(bound);
    }
    Ok(all)
}

/// Follows SIGHUP for as long as the process lives.
async fn reload_levels(hangup: &mut Signal, levels: &LevelSwitch) {
    while hangup.recv().await.is_some() {
        reload(levels);
    }
    std::future::pending::<()>().await;
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
