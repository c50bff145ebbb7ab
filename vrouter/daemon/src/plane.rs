//! Start-up and end of everything behind the socket: devices, programs, engine and threads.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use afxdp::{AttachError, IoError, XskIo};
use flowtable::hot::HotTable;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use offload::{FlowLimits, Offload, OffloadError};
use packet_io::{PacketIo as _, QueueId, Wake};
use tokio::sync::Notify;
use vrouter::{Engine, EngineConfig, HotKeeper, HotLimits, Offloading, Worker};

use crate::config::{Config, OffloadConfig, SflowConfig, Switch};
use crate::droplog::DropLog;
use crate::events::Events;
use crate::export;
use crate::live::Seat;
use crate::ports::{Parts, Ports};
use crate::rpc::Service;
use crate::sockets::Sockets;
use crate::tables::Tables;
use crate::trunk::{self, Opened, Trunk, TrunkError};
use crate::underlay::{WatchedTrunk, Watcher};

/// The worker's number in the tc programs; this version has one.
pub(crate) const WORKER: u16 = 0;

/// The strongest.
const FIRST_NICE: i32 = -20;

/// vrouterd could not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("making the trunk")]
    Trunk(#[from] TrunkError),
    #[error("the tc programs")]
    Offload(#[from] OffloadError),
    #[error("the worker's I/O")]
    Io(#[from] IoError),
    #[error("the worker's socket")]
    Attach(#[from] AttachError),
    #[error("--cpus {cpu}")]
    Pin { cpu: usize, source: nix::Error },
    #[error("thread {name}")]
    Thread { name: &'static str, source: io::Error },
    #[error("an event descriptor")]
    Event(#[source] nix::Error),
    #[error("watching the kernel")]
    Watch(#[from] netdev::Error),
}

/// The running engine.
#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) service: Service,
    /// Somebody has removed the trunk: no container is reached any more.
    pub(crate) trunk_lost: Arc<Notify>,
    sflow: Sender<export::Change>,
    stop: Arc<AtomicBool>,
    waker: Arc<dyn Wake>,
    threads: Vec<JoinHandle<()>>,
    // Last: the devices go when nobody uses them any more.
    _trunk: Trunk,
}

impl Plane {
    pub(crate) fn start(config: &Config) -> Result<Self, StartError> {
        let started = Instant::now();
        let (Opened { trunk, umem, queue }, offload) = devices(config)?;
        tracing::debug!(ms = started.elapsed().as_millis(), "devices and programs");
        offload.attach_trunk(trunk.ifindex())?;
        offload.set_trunk(WORKER, trunk.ifindex())?;

        let seed = RandomState::new().hash_one(0);
        let engine = Engine::new(engine_config(config, seed));
        let mut io = XskIo::new(umem.clone())?;
        let waker = io.waker();
        io.attach(QueueId::TRUNK, queue)?;
        let (worker, handle) = engine.worker(io);
        tracing::debug!(ms = started.elapsed().as_millis(), "engine");

        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = vec![start_worker(worker, config.cpu, &stop)?];
        if let Some(slow) = engine.slow_path() {
            let stop = Arc::clone(&stop);
            threads.push(spawn("slow", move || slow.run(&stop))?);
        }
        if let Some(keeper) = keeper(&engine, &offload, config.offload) {
            let stop = Arc::clone(&stop);
            let clock = move || started.elapsed().as_nanos() as u64;
            threads.push(spawn("offload", move || keeper.run(clock, &stop))?);
        }
        let tables = Arc::new(Tables::new(engine.clone()).map_err(StartError::Event)?);
        let events = Events::new();
        let parts = Parts {
            engine: engine.clone(),
            offload: Arc::clone(&offload),
            sockets: Sockets::new(handle.clone(), umem),
            events: events.clone(),
            trunk: trunk.ifindex(),
            limits: config.limits,
        };
        let ports = Arc::new(Ports::new(parts));
        let trunk_lost = Arc::new(Notify::new());
        let watched = WatchedTrunk { ifindex: trunk.ifindex(), lost: Arc::clone(&trunk_lost) };
        let mut watcher = Watcher::new(Arc::clone(&tables), Arc::clone(&ports), watched)?;
        threads.push(spawn("netlink", {
            let stop = Arc::clone(&stop);
            move || {
                prefer("netlink");
                watcher.run(&stop);
            }
        })?);
        let drops = DropLog::new();
        threads.push(spawn("droplog", {
            let (log, engine, stop) = (drops.clone(), engine.clone(), Arc::clone(&stop));
            move || log.run(&engine, &stop)
        })?);
        let sflow = start_export(&engine)?;
        let live = Seat::default();
        let service = Service {
            engine,
            worker: handle,
            offload,
            tables,
            ports,
            events,
            drops,
            live,
            cpu: config.cpu,
        };
        let plane = Self { service, trunk_lost, sflow, stop, waker, threads, _trunk: trunk };
        plane.set_sflow(config.sflow);
        Ok(plane)
    }

    /// From now on samples go where `sflow` says, or nowhere.
    pub(crate) fn set_sflow(&self, sflow: Option<SflowConfig>) {
        if self.sflow.send(sflow).is_err() {
            tracing::error!("the export thread has ended");
        }
    }
}

/// The thread that exports samples. Nobody joins it: it ends with the sender returned.
fn start_export(engine: &Engine) -> Result<Sender<export::Change>, StartError> {
    let (sender, changes) = channel();
    let engine = engine.clone();
    spawn("export", move || export::run(&engine, &changes))?;
    Ok(sender)
}

/// The trunk and the programs, made at the same time: both wait for the kernel.
fn devices(config: &Config) -> Result<(Opened, Arc<Offload>), StartError> {
    let (opened, offload) = thread::scope(|scope| {
        let flows = flow_limits(config.offload);
        let offload = scope.spawn(move || Offload::load(flows));
        let opened = Trunk::open(config.frames, config.hugepages);
        let offload = offload.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
        (opened, offload)
    });
    Ok((opened?, Arc::new(offload?)))
}

const fn flow_limits(config: OffloadConfig) -> FlowLimits {
    let orphaned = Duration::from_secs(config.orphaned_s as u64);
    FlowLimits { flows: config.flows, orphaned, frame_bytes: trunk::FRAME_BYTES }
}

/// Who keeps the flows that the kernel forwards; `None`: it can't.
fn keeper(engine: &Engine, offload: &Arc<Offload>, config: OffloadConfig) -> Option<HotKeeper> {
    if let Some(error) = offload.without_flows() {
        let error: &dyn std::error::Error = error;
        tracing::warn!(error, "no flow is offloaded: the kernel can't have a table of flows");
        return None;
    }
    if let Err(error) = offload.settle() {
        // No change could ever be acknowledged as being in force for offloaded flows.
        let error: &dyn std::error::Error = &error;
        tracing::warn!(error, "no flow is offloaded: the kernel does not wait for its programs");
        return None;
    }
    let limits = HotLimits {
        after_packets: config.after_packets.into(),
        port_flows: config.port_flows,
        tenant_flows: config.tenant_flows,
    };
    let table: Arc<dyn HotTable> = Arc::<Offload>::clone(offload);
    let keeper = engine.offload(table, limits);
    engine.set_offload(match config.switch {
        Switch::On => Offloading::On,
        Switch::Off => Offloading::Off,
    });
    keeper
}

fn engine_config(config: &Config, seed: u64) -> EngineConfig {
    let flows = config.flows;
    EngineConfig {
        seed,
        connections: flows.connections as usize,
        tenant_connections: (flows.connections / 2).max(1),
        port_connections: flows.port_connections,
        port_new_flows: flows.port_new_flows,
        pickup_seconds: flows.pickup_seconds,
        meter_queue_ms: flows.meter_queue_ms,
        ..EngineConfig::default()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
        self.service.tables.notify();
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("a thread has panicked");
            }
        }
    }
}

fn start_worker(
    mut worker: Worker<XskIo>,
    cpu: Option<usize>,
    stop: &Arc<AtomicBool>,
) -> Result<JoinHandle<()>, StartError> {
    let (pinned, result) = mpsc::sync_channel(1);
    let stop = Arc::clone(stop);
    let thread = spawn("worker-0", move || {
        let outcome = cpu.map_or(Ok(()), pin);
        let failed = outcome.is_err();
        // The starting thread waits for it.
        pinned.send(outcome).ok();
        if !failed {
            prefer("worker-0");
            let started = Instant::now();
            worker.run(move || started.elapsed().as_nanos() as u64, &stop);
        }
    })?;
    match result.recv() {
        Ok(Err(source)) => Err(StartError::Pin { cpu: cpu.unwrap_or_default(), source }),
        // The thread sends before it does anything that can panic.
        Ok(Ok(())) | Err(_) => Ok(thread),
    }
}

/// Which frames are where is unknown after a panic of the worker: better none forwarded than some
/// to the wrong place. Without one of the other threads an engine looks healthy and is not. Whoever
/// started this process starts it again.
struct AbortOnPanic(&'static str);

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!(thread = self.0, "a thread has panicked");
            std::process::abort();
        }
    }
}

/// This thread goes first. While a worker waits for a CPU, its rings overflow with everybody's packets;
/// it sleeps when it has none (decision 0023). While the one that follows the kernel waits, an uplink
/// without a link stays in use (decision 0031).
fn prefer(thread: &'static str) {
    if let Err(error) = rustix::process::setpriority_process(None, FIRST_NICE) {
        tracing::warn!(%error, thread, "no priority over other programs: it will be late");
    }
}

fn pin(cpu: usize) -> Result<(), nix::Error> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

fn spawn(
    name: &'static str,
    f: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let guarded = move || {
        let _guard = AbortOnPanic(name);
        f();
    };
    let thread = thread::Builder::new().name(name.to_owned()).spawn(guarded);
    thread.map_err(|source| StartError::Thread { name, source })
}
