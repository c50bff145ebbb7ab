//! `vrperf meter`: what a limited container gets when it sends as fast as the worker takes it.
//!
//! UDP frames of three sizes against one meter, on memory ports. The worker's clock is the CPU time
//! of its thread, and so is the time that the result is divided by: on a machine with other work,
//! tokens of the time in which the worker did not run would be lost beyond the burst, which says
//! nothing about the meter.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use flowtable::DropReason;
use flowtable::entry::{Band, Entry, MeterEntry, MeterUnit, Op, QosEntry};
use flowtable::ids::{MeterId, PortId};
use perf::workload::Way;
use perf::{Rig, Traffic};
use serde::Serialize;
use vrouter::EngineConfig;

use crate::cpu::{self, Stay};

/// Frame sizes without FCS.
const FRAMES: [u32; 3] = [64, 512, 1500];
const FLOWS: u32 = 64;
const METER: u32 = 1;
/// Bytes of the tag that a frame on the trunk has more than the container's.
const TAG_BYTES: u64 = 4;
/// The packets that wait, up to 50 ms of the rate, as vrouterd has it.
const QUEUE_MS: u32 = 50;
/// For the first tokens to be used up.
const WARM_UP: Duration = Duration::from_millis(200);

/// Settings of one run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The limit: bits a second of frames without FCS.
    #[arg(long, default_value_t = 1_000_000_000, value_parser = clap::value_parser!(u64).range(1_000_000..=2_000_000_000))]
    rate: u64,
    /// Bytes that may pass at once.
    #[arg(long, default_value_t = 125_000, value_parser = clap::value_parser!(u64).range(1518..=1_000_000_000))]
    burst: u64,
    #[command(flatten)]
    stay: Stay,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    dut: &'static str,
    rate_bps: u64,
    burst_bytes: u64,
    seconds: f64,
    sizes: Vec<Size>,
    /// The largest deviation from the rate, either way.
    error_pct_max: f64,
}

/// What frames of one size got.
#[derive(Debug, Serialize)]
struct Size {
    frame: u32,
    offered_bps: f64,
    delivered_bps: f64,
    /// Of the delivered rate from the configured one.
    error_pct: f64,
    /// Packets that were refused as `rate-limit`.
    limited_packets: u64,
}

/// Runs all frame sizes.
pub(crate) fn run(options: &Options) -> Result<Report> {
    options.stay.pin()?;
    let mut sizes = Vec::new();
    for frame in FRAMES {
        eprintln!("vrperf: {frame} bytes for {} s", options.stay.seconds());
        sizes.push(limited(options, frame)?);
    }
    Ok(Report {
        dut: "weir",
        rate_bps: options.rate,
        burst_bytes: options.burst,
        seconds: options.stay.seconds(),
        error_pct_max: sizes.iter().map(|s| s.error_pct.abs()).fold(0.0, f64::max),
        sizes,
    })
}

fn limited(options: &Options, frame: u32) -> Result<Size> {
    let mut traffic = Traffic::new(FLOWS, Way::Local)?;
    traffic.frame_len = frame as usize;
    traffic.tenant.ports = (PortId::MIN.get(), 1);
    let config = EngineConfig { meter_queue_ms: QUEUE_MS, ..EngineConfig::default() };
    let mut rig = Rig::carrying(&traffic, config)?;
    rig.write(&limit(options)?)?;
    cpu::run_for(&mut rig, WARM_UP)?;
    let before = Reading::of(&mut rig, &traffic)?;
    let elapsed = cpu::run_for(&mut rig, options.stay.time())?;
    let after = Reading::of(&mut rig, &traffic)?;
    let limited_packets = after.limited - before.limited;
    ensure!(
        limited_packets > 0,
        "a worker that takes every packet of {frame} bytes is not limited: want a lower --rate"
    );
    let packets = after.packets - before.packets;
    let bytes = after.bytes - before.bytes - packets * TAG_BYTES;
    let delivered_bps = bps(bytes, elapsed)?;
    let rate = f64::from(u32::try_from(options.rate)?);
    Ok(Size {
        frame,
        offered_bps: bps(after.received_bytes - before.received_bytes, elapsed)?,
        delivered_bps,
        error_pct: 100.0 * (delivered_bps - rate) / rate,
        limited_packets,
    })
}

/// One meter on what the container sends.
fn limit(options: &Options) -> Result<Vec<Op>> {
    let meter = MeterId::new(METER)?;
    let committed = Band { rate: options.rate, burst: options.burst };
    let unit = MeterUnit::Bits;
    let entry = MeterEntry { meter, unit, committed, peak: None, yellow_dscp: None };
    let qos = QosEntry { port: PortId::MIN, from: vec![meter], to: Vec::new(), dscp: None };
    Ok(vec![Op::Put(Entry::Meter(entry)), Op::Put(Entry::Qos(qos))])
}

/// Counters at one moment.
struct Reading {
    packets: u64,
    bytes: u64,
    received_bytes: u64,
    limited: u64,
}

impl Reading {
    fn of(rig: &mut Rig, traffic: &Traffic) -> Result<Self> {
        let sent = rig.sent(traffic.queue_out());
        let ports = rig.engine.ports();
        let port = ports.iter().find(|p| p.spec.id == PortId::MIN);
        let drops = rig.engine.drops();
        let limited = drops.iter().find(|(reason, _)| *reason == DropReason::RateLimit);
        Ok(Self {
            packets: sent.packets,
            bytes: sent.bytes,
            received_bytes: port.context("the container's port is gone")?.rx.bytes,
            limited: limited.map_or(0, |(_, count)| count.packets),
        })
    }
}

fn bps(bytes: u64, elapsed: Duration) -> Result<f64> {
    let bits = Duration::from_nanos(bytes.checked_mul(8).context("too many bytes for one run")?);
    // Bits over seconds: 64 bit integers as a duration, for want of an exact conversion to f64.
    Ok(bits.as_secs_f64() * 1e9 / elapsed.as_secs_f64())
}
