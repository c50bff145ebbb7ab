//! Start-up and end of everything behind the socket: devices, programs, engine and threads.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use afxdp::{AttachError, IoError, XskIo};
use flowtable::hot::HotTable;
use offload::{FlowLimits, Offload, OffloadError};
use packet_io::{PacketIo, QueueId, Wake};
use tokio::sync::Notify;
use vrouter::{Engine, EngineConfig, HotKeeper, HotLimits, Offloading};

use crate::config::{Config, OffloadConfig, SflowConfig, Switch};
use crate::crew::{self, Crew};
use crate::droplog::DropLog;
use crate::events::Events;
use crate::export;
use crate::live::Seat;
use crate::ports::{Parts, Ports};
use crate::rpc::Service;
use crate::sockets::Sockets;
use crate::tables::Tables;
use crate::trunk::{self, Opened, Trunk, TrunkError};
use crate::underlay::{WatchedTrunks, Watcher};

/// The strongest.
const FIRST_NICE: i32 = -20;

/// vrouterd could not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("making the trunk")]
    Trunk(#[from] TrunkError),
    #[error("the tc programs")]
    Offload(#[from] OffloadError),
    #[error("a worker's I/O")]
    Io(#[from] IoError),
    #[error("a worker's socket")]
    Attach(#[from] AttachError),
    #[error(
        "--cpus {cpu}: this machine has no such CPU, or it is not vrouterd's to use (`nproc --all`, `taskset -p`)"
    )]
    Pin { cpu: usize, source: nix::Error },
    #[error("thread {name}")]
    Thread { name: String, source: io::Error },
    #[error("there are not as many trunks as workers")]
    Workers,
    #[error("an event descriptor")]
    Event(#[source] nix::Error),
    #[error("watching the kernel")]
    Watch(#[from] netdev::Error),
}

/// The running engine.
#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) service: Service,
    /// Somebody has removed a trunk: its worker reaches no container any more.
    pub(crate) trunk_lost: Arc<Notify>,
    sflow: Sender<export::Change>,
    stop: Arc<AtomicBool>,
    wakers: Vec<Arc<dyn Wake>>,
    threads: Vec<JoinHandle<()>>,
    // Last: the devices go when nobody uses them any more.
    _trunks: Vec<Trunk>,
}

impl Plane {
    pub(crate) fn start(config: &Config) -> Result<Self, StartError> {
        let started = Instant::now();
        let (opened, offload) = devices(config)?;
        tracing::debug!(ms = started.elapsed().as_millis(), "devices and programs");
        let umem = opened[0].umem.clone();
        let seed = RandomState::new().hash_one(0);
        let engine = Engine::new(engine_config(config, seed));
        let (trunks, ios) = workers_io(opened, &offload)?;
        let wakers = ios.iter().map(PacketIo::waker).collect();
        let made = engine.workers(ios).ok_or(StartError::Workers)?;
        let (workers, handles): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        let crew = Crew::new(handles, &config.cpus);
        tracing::debug!(ms = started.elapsed().as_millis(), "engine");

        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (number, worker) in workers.into_iter().enumerate() {
            let cpu = config.cpus.get(number).copied();
            threads.push(crew::start((number, worker), cpu, started, &stop)?);
        }
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
            sockets: Sockets::new(crew.clone(), umem),
            events: events.clone(),
            trunks: trunks.iter().map(Trunk::ifindex).collect(),
            limits: config.limits,
            published: Mutex::default(),
        };
        let ports = Arc::new(Ports::new(parts));
        let trunk_lost = Arc::new(Notify::new());
        let watched = WatchedTrunks {
            ifindexes: trunks.iter().map(Trunk::ifindex).collect(),
            lost: Arc::clone(&trunk_lost),
        };
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
        let service = Service { engine, crew, offload, tables, ports, events, drops, live };
        let plane = Self { service, trunk_lost, sflow, stop, wakers, threads, _trunks: trunks };
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

/// The trunks and the programs, made at the same time: all wait for the kernel.
fn devices(config: &Config) -> Result<(Vec<Opened>, Arc<Offload>), StartError> {
    trunk::remove_leftovers()?;
    let workers = config.workers();
    let (opened, offload) = thread::scope(|scope| {
        let flows = flow_limits(config.offload);
        let offload = scope.spawn(move || Offload::load(flows));
        let open = |number| move || Trunk::open(number, config.frames, config.hugepages);
        let trunks: Vec<_> = (0..workers).map(|number| scope.spawn(open(number))).collect();
        let opened = trunks.into_iter().map(joined).collect::<Result<Vec<_>, _>>();
        (opened, joined(offload))
    });
    Ok((opened?, Arc::new(offload?)))
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Gives each worker its end of its trunk, and its share of the buckets of flows.
fn workers_io(
    opened: Vec<Opened>,
    offload: &Offload,
) -> Result<(Vec<Trunk>, Vec<XskIo>), StartError> {
    let (mut trunks, mut ios) = (Vec::new(), Vec::new());
    for (number, Opened { trunk, umem, queue }) in (0..).zip(opened) {
        offload.attach_trunk(trunk.ifindex())?;
        offload.set_trunk(number, trunk.ifindex())?;
        let mut io = XskIo::new(umem)?;
        io.attach(QueueId::TRUNK, queue)?;
        trunks.push(trunk);
        ios.push(io);
    }
    offload.spread(ios.len() as u16)?;
    Ok((trunks, ios))
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
        workers: config.workers(),
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
        self.wakers.iter().for_each(|waker| waker.wake());
        self.service.tables.notify();
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("a thread has panicked");
            }
        }
    }
}

/// Which frames are where is unknown after a panic of the worker: better none forwarded than some
/// to the wrong place. Without one of the other threads an engine looks healthy and is not. Whoever
/// started this process starts it again.
struct AbortOnPanic(String);

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!(thread = %self.0, "a thread has panicked");
            std::process::abort();
        }
    }
}

/// This thread goes first. While a worker waits for a CPU, its rings overflow with everybody's packets;
/// it sleeps when it has none (decision 0023). While the one that follows the kernel waits, an uplink
/// without a link stays in use (decision 0031).
pub(crate) fn prefer(thread: &str) {
    if let Err(error) = rustix::process::setpriority_process(None, FIRST_NICE) {
        tracing::warn!(%error, thread, "no priority over other programs: it will be late");
    }
}

pub(crate) fn spawn(
    name: &str,
    f: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let guard = AbortOnPanic(name.to_owned());
    let guarded = move || {
        let _guard = guard;
        f();
    };
    let thread = thread::Builder::new().name(name.to_owned()).spawn(guarded);
    thread.map_err(|source| StartError::Thread { name: name.to_owned(), source })
}
