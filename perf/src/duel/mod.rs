//! `vrperf tcp` and `vrperf rr`: two containers of one node or of two, joined by Weir and by something
//! else, in turn.
//!
//! A machine that is not quiet changes faster than a measurement takes, so the two are measured round
//! by round, each first in every other round, and the ratio of each round counts.

mod node;
mod overlay;
mod talk;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use node::{HostNode, Join, Pair, WeirNode};

/// What is measured.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dut {
    /// vrouterd, as it starts by default but for its limits on what a container may send.
    Weir,
    /// The same with `--offload off`.
    WeirEngine,
}

/// What it is compared with.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[expect(clippy::enum_variant_names, reason = "as users write them; others are no kernel's")]
enum Against {
    /// A Linux bridge, with both containers in one network.
    KernelBridge,
    /// Linux routing between two networks, without any rule. Weir routes between them too.
    KernelRoute,
    /// A vxlan device and a Linux bridge on each of two nodes. Weir has the containers on two nodes as
    /// well, with a shared uplink.
    KernelVxlan,
}

/// Settings of a comparison.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What is measured.
    #[arg(long, value_enum, default_value_t = Dut::Weir)]
    dut: Dut,
    /// What it is compared with.
    #[arg(long, value_enum, default_value_t = Against::KernelBridge)]
    against: Against,
    /// Rounds; each measures both.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each is measured in a round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Rules of the tenant's policy in Weir, none of which matches.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    rules: u32,
    /// Unrelated changes of a rule per second in Weir.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000))]
    changes: u32,
    /// Connections at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    streams: u32,
    /// One JSON object on standard output (there is no other form).
    #[arg(long)]
    json: bool,
}

/// Settings of a comparison of round trips.
#[derive(Debug, Args)]
pub(crate) struct EchoOptions {
    #[command(flatten)]
    common: Options,
    /// What carries the messages.
    #[arg(long, value_enum, default_value_t = Transport::Tcp)]
    transport: Transport,
    /// Bytes of a message.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1400))]
    bytes: u32,
}

/// Settings of a comparison of small datagrams.
#[derive(Debug, Args)]
pub(crate) struct UdpOptions {
    #[command(flatten)]
    common: Options,
    /// Bytes of a frame, without FCS.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(60..=1514))]
    frame: u32,
}

/// What carries messages.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Transport {
    /// One TCP connection.
    Tcp,
    /// Two connected UDP sockets.
    Udp,
}

/// Both sides of one quantity, and the ratios of the rounds: that of Weir to that of the other.
#[derive(Debug, Serialize)]
struct Compared {
    unit: &'static str,
    dut_median: f64,
    against_median: f64,
    ratio_median: f64,
    ratio_min: f64,
    ratio_max: f64,
}

/// A comparison of one quantity.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    dut: String,
    against: String,
    rounds: u32,
    streams: u32,
    rules: u32,
    changes: u32,
    /// Share of Weir's packets that the kernel forwarded, in the whole run.
    offloaded_pct: f64,
    #[serde(flatten)]
    compared: Compared,
}

/// A comparison of round trips.
#[derive(Debug, Serialize)]
pub(crate) struct EchoReport {
    dut: String,
    against: String,
    rounds: u32,
    transport: String,
    bytes: u32,
    offloaded_pct: f64,
    p50: Compared,
    p99: Compared,
}

/// Gbit/s of payload in each round.
pub(crate) fn tcp(options: &Options) -> Result<Report> {
    report(options, "Gbit/s", |pair| {
        let bytes = talk::bulk(pair, options.streams, length(options))?;
        Ok(bytes * 8.0 / options.seconds / 1e9)
    })
}

/// Thousands of datagrams a second that arrive of one sender that sends them one by one.
pub(crate) fn udp(options: &UdpOptions) -> Result<Report> {
    report(&options.common, "kpps", |pair| {
        let datagrams = talk::flood(pair, options.frame as usize, length(&options.common))?;
        Ok(datagrams / options.common.seconds / 1e3)
    })
}

/// Connections a second, one after the other: opened, a request, its answer, closed.
pub(crate) fn connect(options: &Options) -> Result<Report> {
    report(options, "1/s", |pair| Ok(talk::requests(pair, length(options))? / options.seconds))
}

fn report(
    options: &Options,
    unit: &'static str,
    measure: impl Fn(&Pair) -> Result<f64>,
) -> Result<Report> {
    let (weir, rounds) = duel(options, |pair| Ok([measure(pair)?]))?;
    let [compared] = compare(unit, &rounds);
    Ok(Report {
        dut: name(&options.dut),
        against: name(&options.against),
        rounds: options.rounds,
        streams: options.streams,
        rules: options.rules,
        changes: options.changes,
        offloaded_pct: weir.offloaded_pct()?,
        compared,
    })
}

/// Microseconds of a round trip in each round.
pub(crate) fn rr(options: &EchoOptions) -> Result<EchoReport> {
    let common = &options.common;
    let (weir, rounds) = duel(common, |pair| {
        talk::echo(pair, options.transport, options.bytes as usize, length(common))
    })?;
    let [p50, p99] = compare("us", &rounds);
    Ok(EchoReport {
        dut: name(&common.dut),
        against: name(&common.against),
        rounds: common.rounds,
        transport: name(&options.transport),
        bytes: options.bytes,
        offloaded_pct: weir.offloaded_pct()?,
        p50,
        p99,
    })
}

fn length(options: &Options) -> Duration {
    Duration::from_secs_f64(options.seconds)
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// What was measured in a round: of Weir, and of the other.
type Round<const N: usize> = [[f64; N]; 2];

/// Measures both in every round, Weir first in every other one.
fn duel<const N: usize>(
    options: &Options,
    measure: impl Fn(&Pair) -> Result<[f64; N]>,
) -> Result<(WeirNode, Vec<Round<N>>)> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this command makes namespaces and starts vrouterd: run it as root"
    );
    let offload = match options.dut {
        Dut::Weir => "on",
        Dut::WeirEngine => "off",
    };
    let join = match options.against {
        Against::KernelBridge => Join::Bridged,
        Against::KernelRoute => Join::Routed,
        Against::KernelVxlan => Join::Overlay,
    };
    let weir = WeirNode::new(join, offload, options.rules)?;
    let host = HostNode::new(join)?;
    let mut rounds = Vec::new();
    for round in 0..options.rounds {
        let mut results = [[0.0; N]; 2];
        for side in [round % 2, (round + 1) % 2] {
            results[side as usize] = if side == 0 {
                weir.changing(options.changes, || measure(weir.pair()))?
            } else {
                measure(host.pair())?
            };
        }
        eprintln!("vrperf: round {}: {results:.2?}", round + 1);
        rounds.push(results);
    }
    Ok((weir, rounds))
}

/// Each quantity over all rounds.
fn compare<const N: usize>(unit: &'static str, rounds: &[Round<N>]) -> [Compared; N] {
    std::array::from_fn(|at| {
        let sorted = |value: &dyn Fn(&Round<N>) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let ratios = sorted(&|[dut, against]| dut[at] / against[at]);
        Compared {
            unit,
            dut_median: median(&sorted(&|[dut, _]| dut[at])),
            against_median: median(&sorted(&|[_, against]| against[at])),
            ratio_median: median(&ratios),
            ratio_min: ratios.first().copied().unwrap_or(f64::NAN),
            ratio_max: ratios.last().copied().unwrap_or(f64::NAN),
        }
    })
}

/// A count as a number to calculate with.
fn float(count: u64) -> f64 {
    f64::from((count >> 32) as u32) * 4_294_967_296.0 + f64::from(count as u32)
}

/// Of sorted values.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match (sorted.get(middle), middle.checked_sub(1).and_then(|below| sorted.get(below))) {
        (Some(upper), Some(lower)) if sorted.len().is_multiple_of(2) => {
            f64::midpoint(*lower, *upper)
        }
        (Some(middle), _) => *middle,
        (None, _) => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_keep_their_value() {
        assert_eq!(float(0).to_string(), "0");
        assert_eq!(float((7 << 32) + 5).to_string(), "30064771077");
    }

    #[test]
    fn ratios_are_those_of_the_rounds() {
        let rounds = [[[2.0, 1.0], [1.0, 1.0]], [[9.0, 1.0], [3.0, 2.0]], [[4.0, 3.0], [4.0, 1.0]]];
        let [first, second] = compare("x", &rounds);
        assert_eq!((first.dut_median, first.against_median), (4.0, 3.0));
        assert_eq!((first.ratio_min, first.ratio_median, first.ratio_max), (1.0, 2.0, 3.0));
        assert_eq!((second.ratio_min, second.ratio_median, second.ratio_max), (0.5, 1.0, 3.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 8.0]).to_string(), "3");
        assert!(median(&[]).is_nan());
    }
}
