//! `vrperf engine`: vrouterd's own worker function on memory ports, with counters, generations and
//! sampling on. Every frame is copied in from a ring of equal size. Before the measurement all that
//! comes out is compared with what was built for it, during it one run of 64 frames in 64.

mod attack;
mod hostile;
mod measure;
mod report;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use flowtable::entry::Tracking;
use packet_io::memory::Inspect;
use perf::workload::Way;
use perf::{Rig, Traffic, Verified};
use vrouter::EngineConfig;

use measure::{Readings, dropped, measure};
use report::Report;

use crate::cpu;

/// sFlow's default rate in this project.
const SAMPLE_RATE: u32 = 400;
const WARM_UP: Duration = Duration::from_millis(300);
/// With new flows only: packets compared before the measurement.
const FRESH_CHECKED: u64 = 65_536;
/// Distinct source ports that a flow number can have: the turns after which flows repeat.
const TURNS: u64 = 1 << 16;

/// Settings of one run.
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Distinct 5-tuples, sent in turn [default: 1000; with --new-flows 100000].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4_000_000))]
    flows: Option<u32>,
    /// Rules of the policy; the last one allows everything.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    acl_rules: u32,
    /// Routes of the tenant; at least the 1,000 that the flows use.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    routes: u32,
    /// Bytes of a container's frame without FCS.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(60..=1518))]
    frame: u32,
    /// How long to measure.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// CPU to run on.
    #[arg(long)]
    cpu: Option<usize>,
    /// Flows the exact cache holds [default: four times the flows, at least the engine's default].
    #[arg(long)]
    flow_entries: Option<usize>,
    /// Whether decisions are cached.
    #[arg(long, value_enum, default_value_t = Caches::On)]
    caches: Caches,
    /// Containers' packets leave in this encapsulation.
    #[arg(long, value_enum, conflicts_with = "decap")]
    encap: Option<Encapsulation>,
    /// Packets for containers arrive in this encapsulation.
    #[arg(long, value_enum)]
    decap: Option<Encapsulation>,
    /// Every packet is the first of its flow.
    #[arg(long)]
    new_flows: bool,
    /// The tenant's connections are not tracked.
    #[arg(long)]
    stateless: bool,
    /// One port misbehaves while the others are measured.
    #[arg(long, value_enum, conflicts_with_all = ["encap", "decap", "new_flows"])]
    attack: Option<attack::Attack>,
    /// With --attack new-flows or syn: packets a second of the established traffic.
    #[arg(long, default_value_t = 200_000)]
    victim_pps: u64,
    /// One JSON object on standard output (there is no other form).
    #[arg(long)]
    json: bool,
}

/// Whether decisions are cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Caches {
    On,
    Off,
}

/// Encapsulations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Encapsulation {
    Vxlan,
}

/// The engine alone is measured, not the budgets of senders.
fn unbounded() -> EngineConfig {
    EngineConfig {
        connections: 1 << 22,
        tenant_connections: u32::MAX,
        port_connections: u32::MAX,
        tenant_new_flows: 0,
        port_new_flows: 0,
        ..EngineConfig::default()
    }
}

impl Options {
    fn flow_count(&self) -> u32 {
        self.flows.unwrap_or(if self.new_flows { 100_000 } else { 1000 })
    }

    fn flow_entries(&self) -> usize {
        // The smallest cache has 8 entries: that none of them is hit is checked afterwards.
        match (self.caches, self.flow_entries) {
            (Caches::Off, _) => 0,
            (Caches::On, Some(entries)) => entries,
            (Caches::On, None) => {
                EngineConfig::default().flow_entries.max(self.flow_count() as usize * 4)
            }
        }
    }

    fn config(&self) -> EngineConfig {
        let rules = self.acl_rules as usize * 2 + 1024;
        EngineConfig {
            flow_entries: self.flow_entries(),
            masked_entries: match self.caches {
                Caches::On => EngineConfig::default().masked_entries,
                Caches::Off => 0,
            },
            rule_slots: EngineConfig::default().rule_slots.max(rules),
            seed: 0x5eed,
            sample_rate: SAMPLE_RATE,
            ..if self.attack.is_none() { unbounded() } else { EngineConfig::default() }
        }
    }

    fn traffic(&self) -> Result<Traffic> {
        let way = match (self.encap, self.decap) {
            (Some(Encapsulation::Vxlan), _) => Way::Encap,
            (None, Some(Encapsulation::Vxlan)) => Way::Decap,
            (None, None) => Way::Local,
        };
        let mut traffic = Traffic::new(self.flow_count(), way)?;
        traffic.frame_len = self.frame as usize;
        traffic.fresh = self.new_flows;
        traffic.tenant.acl_rules = self.acl_rules;
        traffic.tenant.routes = self.routes;
        if self.stateless {
            traffic.tenant.tracking = Tracking::Stateless;
        }
        Ok(traffic)
    }
}

/// Runs and checks one measurement.
pub(crate) fn run(options: &Options) -> Result<Report> {
    if let Some(cpu) = options.cpu {
        cpu::pin(cpu)?;
    }
    match options.attack {
        Some(attack) => attack::run(attack, options),
        None => forward(options),
    }
}

/// One tenant's traffic and nothing else, as fast as the worker takes it.
fn forward(options: &Options) -> Result<Report> {
    let traffic = options.traffic()?;
    let mut rig = Rig::carrying(&traffic, options.config())?;
    let verified = rig.check(&traffic)?;
    eprintln!("vrperf: warming up");
    warm_up(&mut rig, &traffic);
    rig.worker.io_mut().set_inspect(traffic.queue_out(), Inspect::Sample);
    let before = Readings::of(&mut rig, &traffic);
    eprintln!("vrperf: measuring for {} s", options.seconds);
    let timing = measure(&mut rig, options.seconds)?;
    let after = Readings::of(&mut rig, &traffic);
    let drops = dropped(&rig.engine);
    ensure!(drops.is_empty(), "packets were dropped: {drops:?}");
    ensure_right(&verified)?;
    let flows = u64::from(options.flow_count());
    let repeats = options.new_flows && after.sent.packets / flows >= TURNS;
    ensure!(!repeats, "flows repeated: fewer seconds or more --flows");
    Report::new(options, (&before, &after), timing, &verified)
}

/// Until caches are full and every flow has been compared, as the first packet of its flow and as
/// a later one.
fn warm_up(rig: &mut Rig, traffic: &Traffic) {
    let until = Instant::now() + WARM_UP;
    let enough = if traffic.fresh { FRESH_CHECKED } else { u64::from(traffic.tenant.flows) * 2 };
    let mut sent = 0;
    // Dropped packets are found later: they must not keep this from ending.
    while (Instant::now() < until && !traffic.fresh) || sent < enough {
        sent += rig.worker.poll(0) as u64;
    }
}

fn ensure_right(verified: &Verified) -> Result<()> {
    let (right, wrong) = (verified.right(), verified.wrong());
    ensure!(wrong == 0, "{wrong} of {} frames differ from the expected ones", right + wrong);
    ensure!(right > 0, "no frame has come out");
    Ok(())
}
