//! `vrperf scale`: many tenants with the same addresses in one engine, beside one whose packets are
//! measured without and with them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use flowtable::entry::{
    Direction, Entry, GroupEntry, MacEntry, NetworkEntry, NextHop, Op, Permit, PortRange, Prefix,
    RouteEntry, RuleEntry, TenantEntry, TunnelEntry, VtepEntry,
};
use flowtable::ids::{Bd, Group, Mac, RuleId, Vni, Vrf};
use perf::workload::Way;
use perf::{Rig, Traffic};
use serde::Serialize;
use vrouter::EngineConfig;

use crate::cpu::{self, Stay};

/// Flows of the measured tenant.
const FLOWS: u32 = 1000;
/// Its number is below; the others' begin here.
const FIRST: u32 = 1 << 20;
/// The highest VNI (RFC 7348, section 5: 24 bits); networks have the highest ones.
const VNI_MAX: u32 = 0xff_ffff;
const GROUPS: u32 = 4;
const WARM_UP: Duration = Duration::from_millis(300);
const REMOTE_VTEP: [u8; 4] = [192, 168, 60, 2];
const LOCAL_VTEP: [u8; 4] = [192, 168, 60, 1];
const KIB: u64 = 1024;

/// Settings of one run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Tenants beside the measured one.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    tenants: u32,
    /// Networks of all of them together.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    networks: u32,
    /// Endpoints on other nodes in each network.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=250))]
    endpoints: u32,
    /// Rules of each tenant.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1000))]
    rules: u32,
    #[command(flatten)]
    stay: Stay,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    dut: &'static str,
    tenants: u32,
    networks: u32,
    endpoints: u32,
    rules: u32,
    entries: usize,
    /// Resident memory of this process before and after all entries were written.
    memory_bytes_before: u64,
    memory_bytes_after: u64,
    memory_bytes_per_network: u64,
    /// One batch of everything.
    publish_ms: f64,
    /// One tenant's rule added afterwards.
    change_ms: f64,
    /// The measured tenant's 1,000 cached flows, in CPU time.
    ns_per_packet_alone: f64,
    ns_per_packet: f64,
    drops: u64,
}

/// Runs one measurement.
pub(crate) fn run(options: &Options) -> Result<Report> {
    options.stay.pin()?;
    let rules = (options.tenants * options.rules) as usize + 4096;
    let config = EngineConfig {
        rule_slots: EngineConfig::default().rule_slots.max(rules),
        ..EngineConfig::default()
    };
    let traffic = Traffic::new(FLOWS, Way::Local)?;
    let mut rig = Rig::carrying(&traffic, config)?;
    eprintln!("vrperf: one tenant for {} s", options.stay.seconds());
    let ns_per_packet_alone = forward(&mut rig, &traffic, options.stay.time())?;
    let ops = everybody(options)?;
    let (memory_bytes_before, entries) = (resident()?, ops.len());
    eprintln!("vrperf: writing {entries} entries");
    let publish_ms = written_ms(&mut rig, &ops)?;
    drop(ops);
    let memory_bytes_after = resident()?;
    let change_ms = written_ms(&mut rig, &[Op::Put(Entry::Rule(rule(FIRST, options.rules)?))])?;
    eprintln!("vrperf: one tenant among {} for {} s", options.tenants, options.stay.seconds());
    let ns_per_packet = forward(&mut rig, &traffic, options.stay.time())?;
    let drops = rig.engine.drops().into_iter().map(|(_, count)| count.packets).sum();
    ensure!(drops == 0, "{drops} packets were dropped");
    let grown = memory_bytes_after.saturating_sub(memory_bytes_before);
    let &Options { tenants, networks, endpoints, rules, .. } = options;
    Ok(Report {
        dut: "weir",
        tenants,
        networks,
        endpoints,
        rules,
        entries,
        memory_bytes_before,
        memory_bytes_after,
        memory_bytes_per_network: grown / u64::from(networks),
        publish_ms,
        change_ms,
        ns_per_packet_alone,
        ns_per_packet,
        drops,
    })
}

/// CPU time of a packet of the measured tenant, with warm caches.
fn forward(rig: &mut Rig, traffic: &Traffic, time: Duration) -> Result<f64> {
    cpu::run_for(rig, WARM_UP)?;
    let before = rig.sent(traffic.queue_out()).packets;
    let elapsed = cpu::run_for(rig, time)?;
    let packets = rig.sent(traffic.queue_out()).packets - before;
    ensure!(packets > 0, "nothing was forwarded");
    Ok(elapsed.as_secs_f64() * 1e9 / f64::from(u32::try_from(packets)?))
}

/// The batch is built and published; there is no worker thread to wait for.
fn written_ms(rig: &mut Rig, ops: &[Op]) -> Result<f64> {
    let start = Instant::now();
    rig.write(ops)?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// The entries of all tenants.
fn everybody(options: &Options) -> Result<Vec<Op>> {
    let (ip, local) = (REMOTE_VTEP.into(), LOCAL_VTEP.into());
    let mut entries = vec![Entry::Vtep(VtepEntry { ip, local })];
    for tenant in 0..options.tenants {
        let vrf = Vrf::new(FIRST + tenant)?;
        entries.push(Entry::Tenant(TenantEntry::new(vrf, Permit::Deny)));
        for number in 0..options.rules {
            entries.push(Entry::Rule(rule(vrf.get(), number)?));
        }
    }
    for network in 0..options.networks {
        add_network(options, network, &mut entries)?;
    }
    Ok(entries.into_iter().map(Op::Put).collect())
}

/// Network `network`, the same addresses as the networks of the other tenants with that turn.
fn add_network(options: &Options, network: u32, entries: &mut Vec<Entry>) -> Result<()> {
    let vrf = Vrf::new(FIRST + network % options.tenants)?;
    let [_, _, high, low] = (network / options.tenants).to_be_bytes();
    let (bd, vni) = (Bd::new(FIRST + network)?, Vni::new(VNI_MAX - network)?);
    let address = |host: u8| [10, high, low, host].into();
    entries.push(Entry::Network(NetworkEntry {
        bd,
        vrf,
        subnets: vec![Prefix::new(address(0), 24)?],
        gateways: vec![address(254)],
        wire: None,
    }));
    entries.push(Entry::Tunnel(TunnelEntry { vni, bd, vrf }));
    for endpoint in 1..=options.endpoints {
        let host = u8::try_from(endpoint).context("more endpoints than addresses")?;
        let mac = Mac([2, 1, 10, high, low, host]);
        let next_hop = NextHop::Tunnel { vtep: REMOTE_VTEP.into(), vni };
        let prefix = Prefix::host(address(host));
        let group = Group::new(endpoint % GROUPS + 1)?;
        entries.push(Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop }));
        entries.push(Entry::Mac(MacEntry { bd, mac, next_hop }));
        entries.push(Entry::Group(GroupEntry { vrf, prefix, group }));
    }
    Ok(())
}

/// Rule `number` of a tenant: one group's way to one port.
fn rule(vrf: u32, number: u32) -> Result<RuleEntry> {
    let id = RuleId((u64::from(vrf) << 32) + u64::from(number) + 1);
    let port = u16::try_from(1000 + number)?;
    Ok(RuleEntry {
        priority: 10,
        protocol: Some(6),
        src_group: Some(Group::new(number % GROUPS + 1)?),
        dst_ports: Some(PortRange { first: port, last: port }),
        ..RuleEntry::any(id, Vrf::new(vrf)?, Direction::Out, Permit::Allow)
    })
}

/// Bytes of memory that this process has now (`VmRSS` of `proc_pid_status(5)`).
fn resident() -> Result<u64> {
    let status =
        std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    Ok(kib.parse::<u64>()? * KIB)
}
