//! The JSON object. Its fields only grow in number.

use anyhow::{Context as _, Result, ensure};
use perf::Verified;
use serde::Serialize;

use super::measure::{Readings, Timing};
use super::{Caches, Encapsulation, Options, attack};

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    dut: &'static str,
    flows: u32,
    acl_rules: u32,
    routes: u32,
    frame: u32,
    flow_entries: usize,
    caches: &'static str,
    encap: Option<&'static str>,
    decap: Option<&'static str>,
    tracking: &'static str,
    seconds: f64,
    packets: u64,
    mpps: f64,
    ns_per_packet: f64,
    /// The same of the CPU time that this thread was given, for machines that are not quiet.
    cpu_ns_per_packet: f64,
    /// Share of the time that this thread has had a CPU.
    on_cpu_pct: f64,
    exact_hit_pct: f64,
    masked_hit_pct: f64,
    pipeline_pct: f64,
    /// With --new-flows: decided a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    new_flows_per_s: Option<f64>,
    drops: u64,
    samples: u64,
    /// Time of one loop of the worker (a burst of up to 64 packets of each queue), in ns.
    loop_ns_p50: u64,
    loop_ns_p99: u64,
    loop_ns_p999: u64,
    /// Every output byte of `verified_packets` packets was as expected: of all packets before the
    /// measurement, and of 64 in 4,096 during it.
    output_verified: bool,
    verified_packets: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    attack: Option<attack::Outcome>,
}

impl Report {
    /// What happened between two readings.
    pub(super) fn new(
        options: &Options,
        (before, after): (&Readings, &Readings),
        timing: Timing,
        verified: &Verified,
    ) -> Result<Self> {
        let Timing { elapsed, on_cpu, loops, samples } = timing;
        let packets = after.sent.packets - before.sent.packets;
        ensure!(packets > 0, "nothing was forwarded");
        let count = float(packets)?;
        let exact = after.cache.exact_hits - before.cache.exact_hits;
        ensure!(
            options.caches == Caches::On || exact == 0,
            "{exact} packets found their flow with --caches off: want more --flows"
        );
        let masked = after.cache.masked_hits - before.cache.masked_hits;
        let pipeline = after.cache.pipeline - before.cache.pipeline;
        let decided = float(exact + masked + pipeline)?.max(1.0);
        let seconds = elapsed.as_secs_f64();
        let name = |Encapsulation::Vxlan| "vxlan";
        Ok(Self {
            dut: "weir",
            flows: options.flow_count(),
            acl_rules: options.acl_rules,
            routes: options.routes.max(1000),
            frame: options.frame,
            flow_entries: options.flow_entries(),
            caches: if options.caches == Caches::On { "on" } else { "off" },
            encap: options.encap.map(name),
            decap: options.decap.map(name),
            tracking: if options.stateless { "stateless" } else { "stateful" },
            seconds,
            packets,
            mpps: count / seconds / 1e6,
            ns_per_packet: seconds * 1e9 / count,
            on_cpu_pct: 100.0 * on_cpu.as_secs_f64() / seconds,
            cpu_ns_per_packet: on_cpu.as_secs_f64() * 1e9 / count,
            exact_hit_pct: 100.0 * float(exact)? / decided,
            masked_hit_pct: 100.0 * float(masked)? / decided,
            pipeline_pct: 100.0 * float(pipeline)? / decided,
            new_flows_per_s: options.new_flows.then_some(count / seconds),
            drops: 0,
            samples,
            loop_ns_p50: loops.value_at_quantile(0.5),
            loop_ns_p99: loops.value_at_quantile(0.99),
            loop_ns_p999: loops.value_at_quantile(0.999),
            output_verified: true,
            verified_packets: verified.right(),
            attack: None,
        })
    }

    /// The same, under attack.
    pub(super) fn under(self, attack: attack::Outcome, drops: u64) -> Self {
        Self { attack: Some(attack), drops, ..self }
    }
}

/// A count that fits 32 bits, as all of one run do.
pub(super) fn float(count: u64) -> Result<f64> {
    Ok(f64::from(u32::try_from(count).context("too many packets for one run")?))
}
