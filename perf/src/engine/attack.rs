//! `vrperf engine --attack`: established flows of well-behaved ports, without and with one port that
//! misbehaves.
//!
//! Victims arrive by the clock into a queue of 1,024 frames, so a worker that is too slow loses
//! packets as on a wire. They are measured alone first, then under attack, in one process. The
//! attacker has a queue of its own: what it loses there is its own loss. All rates are per second of
//! CPU that the worker was given, so that a busy machine is slower but not lossier.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use flowtable::entry::Permit;
use flowtable::ids::PortId;
use packet_io::QueueId;
use packet_io::memory::{Arrivals, Feed, Inspect, Pace};
use perf::workload::{Tenant, Way};
use perf::{Order, Rig, Traffic};
use serde::Serialize;
use vrouter::{Framing, PortKind};

use super::measure::{Readings, Timing, dropped, measure};
use super::report::{Report, float};
use super::{Options, ensure_right, hostile, warm_up};
use crate::cpu;

const ATTACKER: u32 = 64;
const ATTACKER_SINK: u32 = 1001;
const ATTACKER_TENANT: u32 = 200;
const ATTACKER_QUEUE: QueueId = QueueId(2);
/// Addresses the attacker sends new flows from.
const ATTACKER_FLOWS: u32 = 1024;
/// Containers of the victims.
const VICTIMS: u16 = 63;
/// Frames that wait for the worker before more are lost.
const QUEUE_ROOM: u32 = 1024;
/// Longer than a burst of the dearest packets takes.
const GAP: Duration = Duration::from_micros(100);
/// Random headers a second.
const TSE_PPS: u64 = 100_000;
/// Share of the capacity that victims of random headers are offered.
const TSE_LOAD_PCT: u64 = 80;

/// What one port does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Attack {
    /// Random headers against a list that allows some, 100,000 a second; the others, in the same
    /// tenant, are offered 80 % of what they get alone.
    Tse,
    /// First packets of flows, as fast as they are taken; the others are another tenant's.
    NewFlows,
    /// TCP SYNs, as fast as they are taken; the others are another tenant's.
    Syn,
}

/// What became of the victims and of the attacker.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    attack: &'static str,
    /// What the worker can do with the victims' packets alone (random headers only).
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity_mpps: Option<f64>,
    without: Victims,
    with: Victims,
    attacker: Attacker,
}

/// Established flows by the clock.
#[derive(Debug, Serialize)]
struct Victims {
    victim_pps: u64,
    victim_offered: u64,
    victim_delivered: u64,
    loss_pct: f64,
    /// Packets that the engine has dropped, whatever the reason.
    victim_drops: u64,
    /// From the arrival of the oldest packet of a burst to the end of the burst.
    delay_ns_p50: u32,
    delay_ns_p99: u32,
    delay_ns_p999: u32,
}

/// The fate of the attacker's packets.
#[derive(Debug, Default, Serialize)]
struct Attacker {
    received: u64,
    received_pps: f64,
    forwarded: u64,
    /// By reason; together with `forwarded` all that was received.
    dropped: BTreeMap<String, u64>,
}

/// Runs one attack.
pub(super) fn run(attack: Attack, options: &Options) -> Result<Report> {
    let traffic = victims(attack, options)?;
    let mut rig = Rig::new(options.config(), &[QueueId::TRUNK, ATTACKER_QUEUE]);
    rig.add_tenant_ports(&traffic)?;
    rig.add_port(ATTACKER, PortKind::Container, Framing::Direct(ATTACKER_QUEUE))?;
    rig.add_port(ATTACKER_SINK, PortKind::Container, Framing::Tagged)?;
    rig.write(&traffic.tenant.ops()?)?;
    let flood = flood(attack, &mut rig, &traffic)?;
    rig.worker.io_mut().set_feed(QueueId::TRUNK, traffic.feed()?);
    let verified = rig.check(&traffic)?;
    eprintln!("vrperf: warming up");
    warm_up(&mut rig, &traffic);
    rig.worker.io_mut().set_inspect(QueueId::TRUNK, Inspect::Sample);

    let capacity = match attack {
        Attack::Tse => Some(capacity(&mut rig, &traffic, options.seconds)?),
        Attack::NewFlows | Attack::Syn => None,
    };
    let pps = capacity.map_or(options.victim_pps, |pps| pps * TSE_LOAD_PCT / 100).max(1);
    eprintln!("vrperf: {pps} packets a second, alone");
    let (without, _) = phase(&mut rig, (&traffic, pps), options.seconds)?;
    eprintln!("vrperf: {pps} packets a second, under attack");
    let flood = match attack {
        Attack::Tse => flood.paced(pace(TSE_PPS)?),
        Attack::NewFlows | Attack::Syn => flood,
    };
    rig.worker.io_mut().set_feed(ATTACKER_QUEUE, flood);
    let before = (Readings::of(&mut rig, &traffic), attacker(&rig, 1.0)?);
    let (with, timing) = phase(&mut rig, (&traffic, pps), options.seconds)?;
    let after = Readings::of(&mut rig, &traffic);
    let attacker = attacker(&rig, timing.on_cpu.as_secs_f64())?;
    ensure!(before.1.received == 0, "the attack has begun too early");
    ensure_right(&verified)?;
    let capacity_mpps = capacity.map(float).transpose()?.map(|pps| pps / 1e6);
    let attack = match attack {
        Attack::Tse => "tse",
        Attack::NewFlows => "new-flows",
        Attack::Syn => "syn",
    };
    let drops = dropped(&rig.engine).iter().map(|(_, packets)| packets).sum();
    let outcome = Outcome { attack, capacity_mpps, without, with, attacker };
    Ok(Report::new(options, (&before.0, &after), timing, &verified)?.under(outcome, drops))
}

fn victims(attack: Attack, options: &Options) -> Result<Traffic> {
    let mut traffic = options.traffic()?;
    traffic.tenant.ports = (1, VICTIMS);
    traffic.order = Order::BySource;
    if attack == Attack::Tse {
        traffic.tenant.default = Permit::Deny;
    }
    Ok(traffic)
}

/// The attacker's tables, written, and its packets.
fn flood(attack: Attack, rig: &mut Rig, traffic: &Traffic) -> Result<Feed> {
    let (port, sink) = (PortId::new(ATTACKER)?, PortId::new(ATTACKER_SINK)?);
    let (victim, size) = (traffic.tenant, traffic.frame_len);
    if attack == Attack::Tse {
        rig.write(&hostile::allow_some(&victim, (port, sink))?)?;
        return Ok(hostile::random_headers(port, size));
    }
    let tenant = Tenant {
        number: ATTACKER_TENANT,
        ports: (port.get(), 1),
        flows: ATTACKER_FLOWS,
        sink,
        way: Way::Local,
        ..victim
    };
    rig.write(&tenant.ops()?)?;
    if attack == Attack::Syn {
        hostile::syns(&tenant, size)
    } else {
        hostile::new_flows(&tenant, size)
    }
}

/// Arrivals on a CPU that nobody else uses, as on a node: while another process has it, the clock
/// of the arrivals stands. What the worker itself is slow at, also in the kernel, counts.
fn pace(pps: u64) -> Result<Pace> {
    let (start, used) = (Instant::now(), cpu::time()?);
    let (mut last, mut away) = (Duration::ZERO, Duration::ZERO);
    let clock = move || {
        let now = start.elapsed();
        // Asking for the CPU time is a system call: only after a gap that a burst would not leave.
        if now.saturating_sub(last) > GAP
            && let Ok(now_used) = cpu::time()
        {
            away = away.max(now.saturating_sub(now_used.saturating_sub(used)));
        }
        last = now;
        u64::try_from(now.saturating_sub(away).as_nanos()).unwrap_or(u64::MAX)
    };
    Ok(Pace::new(pps, QUEUE_ROOM, Box::new(clock)))
}

/// Packets a second of the victims alone, as fast as they are taken, of a whole CPU.
fn capacity(rig: &mut Rig, traffic: &Traffic, seconds: f64) -> Result<u64> {
    eprintln!("vrperf: measuring the capacity for {seconds} s");
    let before = Readings::of(rig, traffic).sent.packets;
    let on_cpu = measure(rig, seconds)?.on_cpu;
    let packets = Readings::of(rig, traffic).sent.packets - before;
    let us = u64::try_from(on_cpu.as_micros())?.max(1);
    Ok(packets * 1_000_000 / us)
}

/// The victims' packets by the clock for a while.
fn phase(
    rig: &mut Rig,
    (traffic, pps): (&Traffic, u64),
    seconds: f64,
) -> Result<(Victims, Timing)> {
    // Tables and caches of the paced run are warm before its clock starts.
    let feed = traffic.feed()?;
    let before = victim_counts(rig)?;
    rig.worker.io_mut().set_feed(QueueId::TRUNK, feed.paced(pace(pps)?));
    let timing = measure(rig, seconds)?;
    let arrivals = rig.worker.io_mut().take_feed(QueueId::TRUNK).unwrap_or_default();
    let after = victim_counts(rig)?;
    let Arrivals { offered, lost, waiting, mut delays_ns } = arrivals;
    let (delivered, drops) = (after.0 - before.0, after.1 - before.1);
    ensure!(
        offered == lost + waiting + delivered + drops,
        "{offered} arrived, but {lost} lost + {waiting} waiting + {delivered} sent + {drops} dropped"
    );
    ensure!(!delays_ns.is_empty(), "no packet arrived");
    delays_ns.sort_unstable();
    let quantile = |per_mille: usize| delays_ns[(delays_ns.len() - 1) * per_mille / 1000];
    let victims = Victims {
        victim_pps: pps,
        victim_offered: offered,
        victim_delivered: delivered,
        loss_pct: 100.0 * float(lost + drops)? / float(offered)?,
        victim_drops: drops,
        delay_ns_p50: quantile(500),
        delay_ns_p99: quantile(990),
        delay_ns_p999: quantile(999),
    };
    Ok((victims, timing))
}

/// Of what the victims' ports received: sent on, and dropped.
fn victim_counts(rig: &Rig) -> Result<(u64, u64)> {
    let last = PortId::new(u32::from(VICTIMS))?;
    let ports = rig.engine.ports();
    let victims = ports.iter().filter(|p| p.spec.id <= last);
    let (received, drops) =
        victims.fold((0, 0), |(rx, drops), p| (rx + p.rx.packets, drops + p.drops));
    Ok((received - drops, drops))
}

fn attacker(rig: &Rig, seconds: f64) -> Result<Attacker> {
    let port = PortId::new(ATTACKER)?;
    let ports = rig.engine.ports();
    let port = ports.iter().find(|p| p.spec.id == port);
    let (received, drops) = port.map_or((0, 0), |p| (p.rx.packets, p.drops));
    let reasons =
        dropped(&rig.engine).into_iter().map(|(reason, count)| (reason.to_string(), count));
    Ok(Attacker {
        received,
        received_pps: float(received)? / seconds,
        forwarded: received - drops,
        dropped: reasons.collect(),
    })
}
