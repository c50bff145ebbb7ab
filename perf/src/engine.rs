//! `vrperf engine`: vrouterd's own worker function on memory ports, with counters, generations and
//! sampling on. Every frame is copied in from a ring of equal size, and every frame out is compared
//! with the one that was built for it.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use crossbeam::queue::ArrayQueue;
use flowtable::DropReason;
use flowtable::ids::PortId;
use hdrhistogram::Histogram;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use packet_io::QueueId;
use packet_io::memory::{Feed, MemoryIo, Sink, Tally, digest};
use serde::Serialize;
use vrouter::{CacheStats, Engine, EngineConfig, Framing, PortKind, PortSpec, Sample, Worker};

use crate::workload::{Shape, flow};

/// Frames in the memory region: enough for one burst of each queue, and small enough to stay in
/// the cache as a ring that is recycled last-in-first-out does.
const FRAMES: u32 = 512;
const SOURCES: u16 = 64;
const SINK: u32 = 1000;
/// sFlow's default rate in this project.
const SAMPLE_RATE: u32 = 400;

/// Longest loop that is told apart from longer ones.
const LOOP_NS_MAX: u64 = 1_000_000_000;

/// Settings of one run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Distinct 5-tuples, sent in turn.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=4_000_000))]
    flows: u32,
    /// Rules of the policy; the last one allows everything.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    acl_rules: u32,
    /// Routes of the tenant; at least the 1,000 that the flows use.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    routes: u32,
    /// Bytes of a frame without FCS.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(60..=1518))]
    frame: u32,
    /// How long to measure.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// CPU to run on.
    #[arg(long)]
    cpu: Option<usize>,
    /// Flows the exact cache holds.
    #[arg(long, default_value_t = EngineConfig::default().flow_entries)]
    flow_entries: usize,
    /// One JSON object on standard output (there is no other form).
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    dut: &'static str,
    flows: u32,
    acl_rules: u32,
    routes: u32,
    frame: u32,
    flow_entries: usize,
    seconds: f64,
    packets: u64,
    mpps: f64,
    ns_per_packet: f64,
    exact_hit_pct: f64,
    masked_hit_pct: f64,
    pipeline_pct: f64,
    drops: u64,
    samples: u64,
    /// Time of one loop of the worker (a burst of up to 64 packets), in ns.
    loop_ns_p50: u64,
    loop_ns_p99: u64,
    loop_ns_p999: u64,
    /// Every output byte was as expected.
    output_verified: bool,
}

/// Runs and checks one measurement.
pub(crate) fn run(options: &Options) -> Result<Report> {
    if let Some(cpu) = options.cpu {
        let mut cpus = CpuSet::new();
        cpus.set(cpu).context("no such CPU")?;
        sched_setaffinity(Pid::from_raw(0), &cpus).context("pinning to the CPU")?;
    }
    let sink = PortId::new(SINK)?;
    let shape =
        Shape { sources: SOURCES, sink, acl_rules: options.acl_rules, routes: options.routes };
    let engine = Engine::new(EngineConfig {
        flow_entries: options.flow_entries,
        seed: 0x5eed,
        sample_rate: SAMPLE_RATE,
        ..EngineConfig::default()
    });
    let (mut worker, _handle) = engine.worker(feed(options));
    for id in (1..=u32::from(SOURCES)).chain([SINK]) {
        let id = PortId::new(id)?;
        let name = format!("mem{id}");
        let (kind, framing) = (PortKind::Container, Framing::Tagged);
        engine.add_port(PortSpec { id, name, ifindex: u32::from(id.get()), kind, framing })?;
    }
    engine.write(&shape.ops()?)?;

    eprintln!("vrperf: warming up");
    let warm_until = Instant::now() + Duration::from_millis(300);
    let mut warm_polls = 0_u64;
    while Instant::now() < warm_until || warm_polls * 64 < u64::from(options.flows) * 2 {
        worker.poll(0);
        warm_polls += 1;
    }
    let before = (tally(&mut worker)?, engine.cache());
    eprintln!("vrperf: measuring for {} s", options.seconds);
    let samples = AtomicU64::new(0);
    let (elapsed, loops) = measure(&mut worker, &engine, &samples, options.seconds)?;
    let after = (tally(&mut worker)?, engine.cache());
    let drops: u64 = engine.drops().iter().map(|(_, count)| count.packets).sum();
    ensure!(drops == 0, "{drops} packets were dropped: {:?}", dropped(&engine));
    let verified = after.0.digest == expected_digest(options, after.0.packets)?;
    ensure!(verified, "output bytes differ from the expected ones");
    let readings = Readings { before, after, elapsed, loops };
    report(options, &readings, drops, samples.load(Ordering::Relaxed))
}

fn dropped(engine: &Engine) -> Vec<(DropReason, u64)> {
    let drops = engine.drops().into_iter().map(|(reason, count)| (reason, count.packets));
    drops.filter(|(_, packets)| *packets > 0).collect()
}

fn feed(options: &Options) -> MemoryIo {
    let mut io = MemoryIo::new(FRAMES, &[QueueId::TRUNK]);
    let size = options.frame as usize;
    let tagged = |i: u32| {
        let flow = flow(i, SOURCES);
        tag(flow.frame(size), flow.port)
    };
    io.set_feed(QueueId::TRUNK, Feed::new((0..options.flows).map(tagged).collect()));
    io.set_sink(QueueId::TRUNK, Sink::Tally(Tally::default()));
    io
}

fn tag(mut frame: Vec<u8>, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    frame.splice(12..12, [0x81, 0x00, high, low]);
    frame
}

fn tally(worker: &mut Worker<MemoryIo>) -> Result<Tally> {
    worker.io_mut().tally(QueueId::TRUNK).context("the trunk has no tally")
}

/// What a measurement has seen.
#[derive(Debug)]
struct Readings {
    before: (Tally, CacheStats),
    after: (Tally, CacheStats),
    elapsed: Duration,
    loops: Histogram<u64>,
}

/// Runs the worker's own loop while another thread keeps time and drains the samples. The worker
/// reads the clock once a loop, which is where loops are timed.
fn measure(
    worker: &mut Worker<MemoryIo>,
    engine: &Engine,
    samples: &AtomicU64,
    seconds: f64,
) -> Result<(Duration, Histogram<u64>)> {
    let loops = RefCell::new(Histogram::new_with_bounds(1, LOOP_NS_MAX, 3)?);
    let last = Cell::new(0);
    let stop = AtomicBool::new(false);
    let queue = engine.samples();
    let start = Instant::now();
    let elapsed = std::thread::scope(|scope| {
        scope.spawn(|| {
            while start.elapsed().as_secs_f64() < seconds {
                std::thread::sleep(Duration::from_millis(5));
                samples.fetch_add(drain(&queue), Ordering::Relaxed);
            }
            stop.store(true, Ordering::Relaxed);
        });
        let clock = || {
            let now = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            loops.borrow_mut().saturating_record(now - last.replace(now));
            now
        };
        worker.run(clock, &stop);
        start.elapsed()
    });
    Ok((elapsed, loops.into_inner()))
}

fn drain(queue: &ArrayQueue<Sample>) -> u64 {
    std::iter::from_fn(|| queue.pop()).fold(0, |count, _| count + 1)
}

/// Sum of the digests of the first `packets` frames that must have come out.
fn expected_digest(options: &Options, packets: u64) -> Result<u64> {
    let sink = PortId::new(SINK)?.get();
    let size = options.frame as usize;
    let one = |i: u32| digest(&tag(flow(i, SOURCES).routed(size), sink));
    let digests: Vec<u64> = (0..options.flows).map(one).collect();
    let sum = |part: &[u64]| part.iter().fold(0_u64, |sum, d| sum.wrapping_add(*d));
    let flows = u64::from(options.flows);
    let rest = usize::try_from(packets % flows)?;
    Ok(sum(&digests).wrapping_mul(packets / flows).wrapping_add(sum(&digests[..rest])))
}

fn report(options: &Options, readings: &Readings, drops: u64, samples: u64) -> Result<Report> {
    let Readings { before, after, elapsed, loops } = readings;
    let packets = after.0.packets - before.0.packets;
    ensure!(packets > 0, "nothing was forwarded: {drops} drops");
    let count = f64::from(u32::try_from(packets).context("too many packets for one run")?);
    let exact = after.1.exact_hits - before.1.exact_hits;
    let pipeline = after.1.pipeline - before.1.pipeline;
    let decided = f64::from(u32::try_from(exact + pipeline)?).max(1.0);
    let pct = |part: u64| u32::try_from(part).map(|p| 100.0 * f64::from(p) / decided);
    let seconds = elapsed.as_secs_f64();
    Ok(Report {
        dut: "weir",
        flows: options.flows,
        acl_rules: options.acl_rules,
        routes: options.routes.max(1000),
        frame: options.frame,
        flow_entries: options.flow_entries,
        seconds,
        packets,
        mpps: count / seconds / 1e6,
        ns_per_packet: seconds * 1e9 / count,
        exact_hit_pct: pct(exact)?,
        masked_hit_pct: 0.0,
        pipeline_pct: pct(pipeline)?,
        drops,
        samples,
        loop_ns_p50: loops.value_at_quantile(0.5),
        loop_ns_p99: loops.value_at_quantile(0.99),
        loop_ns_p999: loops.value_at_quantile(0.999),
        output_verified: true,
    })
}
