//! vrouterd, the engine of a node: joins the worker (`vrouter`), packet I/O (`afxdp`), the kernel's
//! programs (`offload`) and sFlow, and serves `datapath.v1` on a unix socket.
//!
//! It works in the network namespace it starts in, one to a namespace, and keeps nothing: a new
//! process starts with empty tables and no ports, and netplugin gives it both.

mod config;
mod crew;
mod droplog;
mod events;
mod explain;
mod export;
mod flows;
mod listing;
mod live;
mod metrics;
mod plane;
mod ports;
mod request;
mod rpc;
mod socket;
mod sockets;
mod status;
mod tables;
mod trunk;
mod tunnel;
mod underlay;
mod uplink;
mod work;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use datapath_api::v1::datapath_server::DatapathServer;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::config::{Arguments, Config, ConfigError, LogFormat, Metrics};
use crate::plane::Plane;
use crate::rpc::Service;
use crate::socket::{Listener, NamespaceLock};

/// A node's tables in one message: 100,000 entries take about 10 MB.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Exit code for wrong flags or a wrong configuration file.
const EXIT_USAGE: u8 = 1;
const EXIT_FAILED: u8 = 2;

fn main() -> ExitCode {
    let started = Instant::now();
    let (config, check) = match configuration() {
        Ok(resolved) => resolved,
        Err(ConfigError::Usage(error)) => return usage(&error),
        Err(error) => {
            init_log(None);
            tracing::error!("{:#}", anyhow::Error::from(error));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    init_log(Some(&config));
    if check {
        return ExitCode::SUCCESS;
    }
    match run(&config, started) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            if lacks_rights(&error) {
                tracing::error!("vrouterd makes devices and loads programs: run it as root");
            }
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn lacks_rights(error: &anyhow::Error) -> bool {
    let denied = |cause: &(dyn std::error::Error + 'static)| {
        let io = cause.downcast_ref::<std::io::Error>();
        let plain = cause.downcast_ref::<nix::Error>();
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied)
            || matches!(plain, Some(nix::Error::EPERM | nix::Error::EACCES))
    };
    error.chain().any(denied)
}

fn configuration() -> Result<(Config, bool), ConfigError> {
    let arguments = Arguments::parse_from_line(std::env::args_os())?;
    let check = arguments.check;
    Ok((arguments.resolve()?, check))
}

/// Help and version are no mistakes; clap prints them the same way.
fn usage(error: &clap::Error) -> ExitCode {
    // Without a terminal or pipe to print to, the exit code says it all.
    error.print().ok();
    if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
}

fn init_log(config: Option<&Config>) {
    let level = config.map_or(LevelFilter::INFO, |c| c.log_level);
    // Below debug the transport's own log would bury ours.
    let filter = EnvFilter::new(format!("{level},h2=info,hyper=info,hyper_util=info,tower=info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    match config.map_or(LogFormat::Text, |c| c.log_format) {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

fn run(config: &Config, started: Instant) -> anyhow::Result<()> {
    let _lock = NamespaceLock::acquire()?;
    let mut listener = Listener::bind(&config.run_dir.join("vrouterd.sock"))?;
    let metrics = metrics_listener(config.metrics)?;
    let plane = Plane::start(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let served = runtime.block_on(async {
        if let Some(listener) = metrics {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::spawn(metrics::serve(listener, plane.service.clone()));
        }
        serve(&plane, listener.take()?, started).await
    });
    // Streams never end by themselves.
    runtime.shutdown_background();
    served
}

/// Taken before anything is made. The address nobody chose may be taken, or its `lo` down.
fn metrics_listener(wanted: Metrics) -> anyhow::Result<Option<std::net::TcpListener>> {
    match wanted {
        Metrics::Off => Ok(None),
        Metrics::At(address) => {
            let bound = metrics::bind(address).with_context(|| format!("--metrics {address}"));
            bound.map(Some)
        }
        Metrics::Default => {
            let bound = metrics::bind(config::METRICS);
            bound.map(Some).or_else(|error| {
                let address = config::METRICS;
                tracing::warn!(%address, %error, "no metrics; --metrics names another address, or off");
                Ok(None)
            })
        }
    }
}

async fn serve(
    plane: &Plane,
    socket: std::os::unix::net::UnixListener,
    started: Instant,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut reload = signal(SignalKind::hangup())?;
    let incoming = UnixListenerStream::new(UnixListener::from_std(socket)?);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<DatapathServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(datapath_api::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let datapath = DatapathServer::new(plane.service.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let server = Server::builder()
        .add_service(datapath)
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming(incoming);
    tokio::pin!(server);
    tracing::info!(ms = started.elapsed().as_millis(), "ready");
    loop {
        tokio::select! {
            ended = &mut server => return ended.context("serving datapath.v1"),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = reload.recv() => reload_config(plane),
            () = plane.trunk_lost.notified() => anyhow::bail!("a trunk wr-t0.N was removed"),
        }
    }
    tracing::info!("ending");
    Ok(())
}

/// The sFlow part is taken over when the whole file is valid; the rest needs a new process.
fn reload_config(plane: &Plane) {
    match configuration() {
        Ok((config, _)) => {
            plane.set_sflow(config.sflow);
            tracing::info!("configuration read again; flags other than --sflow-* need a restart");
        }
        Err(error) => {
            tracing::error!("{:#}; nothing has changed", anyhow::Error::from(error));
        }
    }
}
