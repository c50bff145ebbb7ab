//! `vrperf throughput`: frames from an AF_XDP generator in one namespace, through the engine with a
//! tenant's pipeline, to a counting sink in another.
//!
//! On veth the receiving ends run in their senders' system calls: the generator pays for the copy
//! into the engine's frames, the engine for the sink's stack. The sink counts what its device
//! received; nothing there has an address, so the stack drops it at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use afxdp::{ProgramKind, Umem, XdpProgram, XskIo, XskQueue};
use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use flowtable::ids::PortId;
use netdev::{Namespace, Netlink, VethSpec};
use packet_io::{PacketIo as _, QueueId};
use serde::Serialize;
use vrouter::{Engine, EngineConfig, Framing, PortKind, PortSpec, Worker};

use crate::cpu;
use perf::Traffic;
use perf::workload::{Tenant, Way, flow};

const FRAMES: u32 = 8192;
const SINK: u32 = 1000;
const INPUT: QueueId = QueueId(1);
const OUTPUT: QueueId = QueueId(2);
/// Frames the generator queues before it sends: one wake-up each.
const GENERATOR_BATCH: usize = 64;
/// Below this loss the engine kept up, so the generator was the limit.
const KEPT_UP_PCT: f64 = 0.1;

/// How generator, engine and sink are joined.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Topology {
    /// Two veth pairs, each with an AF_XDP socket of the engine on its end.
    Veth,
}

/// Settings of one run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How generator, engine and sink are joined.
    #[arg(long, value_enum, default_value_t = Topology::Veth)]
    topology: Topology,
    /// Bytes of a frame without FCS.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(60..=1514))]
    frame: u32,
    /// Distinct 5-tuples, sent in turn.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    flows: u32,
    /// Rules of the policy.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    acl_rules: u32,
    /// Routes of the tenant.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    routes: u32,
    /// How long to measure.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// CPU of the generator.
    #[arg(long, default_value_t = 0)]
    generator_cpu: usize,
    /// CPU of the engine's worker.
    #[arg(long, default_value_t = 1)]
    cpu: usize,
    /// One JSON object on standard output (there is no other form).
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    dut: &'static str,
    topology: &'static str,
    frame: u32,
    flows: u32,
    acl_rules: u32,
    seconds: f64,
    offered_mpps: f64,
    delivered_mpps: f64,
    loss_pct: f64,
    /// CPU time of the engine's thread, kernel part included.
    cpu_pct: f64,
    /// The engine lost next to nothing: a faster generator would show more.
    generator_limited: bool,
    engine_drops: u64,
    exact_hit_pct: f64,
}

/// The three namespaces; they, and the devices in them, go when this is dropped.
struct Rig {
    generator: Namespace,
    engine: Namespace,
    sink: Namespace,
}

/// Counters at one moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    offered: u64,
    delivered: u64,
    engine_cpu: Duration,
}

/// Runs one measurement; needs root.
pub(crate) fn run(options: &Options) -> Result<Report> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "vrperf throughput makes namespaces and AF_XDP sockets: run it as root"
    );
    let rig = Rig::new().context("making namespaces and veth pairs")?;
    let engine =
        Engine::new(EngineConfig { seed: 0x5eed, sample_rate: 400, ..EngineConfig::default() });
    let (io, programs) = rig.engine.run(engine_io)?.context("AF_XDP sockets of the engine")?;
    let (mut worker, _handle) = engine.worker(io);
    program(&engine, options)?;
    let stop = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    let cpu_ns = AtomicU64::new(0);
    let (before, after) = std::thread::scope(|scope| {
        scope.spawn(|| run_worker(&mut worker, options.cpu, &stop, &cpu_ns));
        let generator = scope.spawn(|| rig.generator.run(|| generate(options, &stop, &sent)));
        let readings = measure(options, &rig, (&sent, &cpu_ns));
        stop.store(true, Ordering::Relaxed);
        let generated = generator.join();
        generated.map_err(|_panic| anyhow::anyhow!("the generator panicked"))???;
        readings
    })?;
    drop(programs);
    report(options, &engine, (before, after))
}

impl Rig {
    fn new() -> Result<Self> {
        let rig = Self {
            generator: Namespace::anonymous()?,
            engine: Namespace::anonymous()?,
            sink: Namespace::anonymous()?,
        };
        rig.join("vp-d0", "vp-g0", &rig.generator)?;
        rig.join("vp-d1", "vp-s0", &rig.sink)?;
        for namespace in [&rig.generator, &rig.engine, &rig.sink] {
            let netlink = Netlink::open_in(namespace)?;
            for link in netlink.links()? {
                netlink.set_up(link.index)?;
            }
        }
        Ok(rig)
    }

    fn join(&self, name: &str, peer_name: &str, peer: &Namespace) -> Result<()> {
        let spec = VethSpec {
            name,
            mac: None,
            mtu: 1500,
            peer_name,
            peer_mac: None,
            peer_mtu: 1500,
            peer_netns: Some(peer),
        };
        Netlink::open_in(&self.engine)?.create_veth(&spec)?;
        // Router solicitations and multicast reports would be counted as traffic.
        netdev::set_disable_ipv6(Some(&self.engine), name)?;
        netdev::set_disable_ipv6(Some(peer), peer_name)?;
        Ok(())
    }
}

fn engine_io() -> Result<(XskIo, Vec<XdpProgram>)> {
    let umem = Umem::new(FRAMES)?;
    umem.prepare()?;
    let mut io = XskIo::new(umem.clone())?;
    let mut programs = Vec::new();
    for (ifname, queue) in [("vp-d0", INPUT), ("vp-d1", OUTPUT)] {
        let program = XdpProgram::attach(ProgramKind::All, ifname)?;
        let socket = XskQueue::open(&umem, ifname, 0)?;
        program.set_socket(0, socket.fd())?;
        io.attach(queue, socket)?;
        programs.push(program);
    }
    Ok((io, programs))
}

fn program(engine: &Engine, options: &Options) -> Result<()> {
    let sink = PortId::new(SINK)?;
    for (id, queue) in [(PortId::MIN, INPUT), (sink, OUTPUT)] {
        let (kind, framing) = (PortKind::Container, Framing::Direct(queue));
        let name = format!("queue{}", queue.0);
        engine.add_port(PortSpec {
            id,
            name,
            ifindex: u32::from(id.get()),
            kind,
            framing,
            standby: Vec::new(),
        })?;
    }
    engine.write(&tenant(options, sink)?.ops()?)?;
    Ok(())
}

/// One container with all the flows.
fn tenant(options: &Options, sink: PortId) -> Result<Tenant> {
    let tenant = Traffic::new(options.flows, Way::Local)?.tenant;
    let (acl_rules, routes) = (options.acl_rules, options.routes);
    Ok(Tenant { ports: (PortId::MIN.get(), 1), sink, acl_rules, routes, ..tenant })
}

/// Without a CPU of its own a thread measures all the same.
fn pin(cpu: usize) {
    if let Err(error) = cpu::pin(cpu) {
        eprintln!("vrperf: not pinned: {error:#}");
    }
}

fn run_worker(worker: &mut Worker<XskIo>, cpu: usize, stop: &AtomicBool, cpu_ns: &AtomicU64) {
    pin(cpu);
    let start = Instant::now();
    let clock = || {
        if let Ok(used) = cpu::time() {
            cpu_ns.store(u64::try_from(used.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    };
    worker.run(clock, stop);
}

/// Sends the flows in turn, as fast as the device takes them.
fn generate(options: &Options, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    pin(options.generator_cpu);
    let umem = Umem::new(FRAMES)?;
    umem.prepare()?;
    let mut io = XskIo::new(umem.clone())?;
    io.attach(INPUT, XskQueue::open(&umem, "vp-g0", 0)?)?;
    let size = options.frame as usize;
    let frames: Vec<Vec<u8>> =
        (0..options.flows).map(|i| flow(i).sent(PortId::MIN, size)).collect();
    let mut next = frames.iter().cycle();
    let mut total = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..GENERATOR_BATCH {
            let (Some(mut frame), Some(bytes)) = (io.alloc(), next.next()) else { break };
            frame.set_len(bytes.len())?;
            io.bytes_mut(&mut frame).copy_from_slice(bytes);
            match io.tx(INPUT, frame) {
                Ok(()) => total += 1,
                Err(frame) => {
                    io.free(frame);
                    break;
                }
            }
        }
        io.flush();
        sent.store(total, Ordering::Relaxed);
    }
    Ok(())
}

fn measure(
    options: &Options,
    rig: &Rig,
    (sent, cpu_ns): (&AtomicU64, &AtomicU64),
) -> Result<(Reading, Reading)> {
    let read = || -> Result<Reading> {
        Ok(Reading {
            at: Instant::now(),
            offered: sent.load(Ordering::Relaxed),
            delivered: rig.sink.run(|| received("vp-s0"))??,
            engine_cpu: Duration::from_nanos(cpu_ns.load(Ordering::Relaxed)),
        })
    };
    let started = Instant::now();
    while sent.load(Ordering::Relaxed) == 0 {
        ensure!(started.elapsed() < Duration::from_secs(10), "the generator sent nothing in 10 s");
        std::thread::sleep(Duration::from_millis(10));
    }
    eprintln!("vrperf: warming up");
    std::thread::sleep(Duration::from_millis(500));
    eprintln!("vrperf: measuring for {} s", options.seconds);
    let before = read()?;
    std::thread::sleep(Duration::from_secs_f64(options.seconds));
    Ok((before, read()?))
}

/// Packets received by a device of the calling thread's namespace (`/proc` shows the thread's own).
fn received(ifname: &str) -> Result<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = table.lines().find_map(|l| l.trim_start().strip_prefix(ifname)?.strip_prefix(':'));
    let packets = line.and_then(|l| l.split_whitespace().nth(1));
    Ok(packets.with_context(|| format!("no counters of {ifname}"))?.parse()?)
}

fn report(
    options: &Options,
    engine: &Engine,
    (before, after): (Reading, Reading),
) -> Result<Report> {
    let seconds = (after.at - before.at).as_secs_f64();
    let count = |n: u64| u32::try_from(n).map(f64::from).context("too many packets for one run");
    let offered = count(after.offered - before.offered)?;
    let delivered = count(after.delivered - before.delivered)?;
    ensure!(delivered > 0.0, "nothing arrived; drops: {:?}", engine.drops());
    let loss_pct = (100.0 * (offered - delivered) / offered).max(0.0);
    let cache = engine.cache();
    let decided = count(cache.exact_hits + cache.pipeline)?;
    Ok(Report {
        dut: "weir",
        topology: match options.topology {
            Topology::Veth => "veth",
        },
        frame: options.frame,
        flows: options.flows,
        acl_rules: options.acl_rules,
        seconds,
        offered_mpps: offered / seconds / 1e6,
        delivered_mpps: delivered / seconds / 1e6,
        loss_pct,
        cpu_pct: 100.0 * after.engine_cpu.saturating_sub(before.engine_cpu).as_secs_f64() / seconds,
        generator_limited: loss_pct < KEPT_UP_PCT,
        engine_drops: engine.drops().iter().map(|(_, count)| count.packets).sum(),
        exact_hit_pct: 100.0 * count(cache.exact_hits)? / decided,
    })
}
