//! `vrperf classify`: the production classifier on a `ClassBench` rule set.
//!
//! Half of the packets are points of rules, corners among them, the other half is random. Every
//! outcome is compared with a walk over the rules as they were read, which shares no code with the
//! classifier; then the lookups are timed alone.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use flowtable::entry::{Direction, IcmpMatch, Permit, PortRange, Prefix, RuleEntry, TcpFlagsMatch};
use flowtable::ids::{Group, RuleId, Vrf};
use flowtable::policy::{PolicyQuery, PolicyTable, RuleChange};
use serde::Serialize;

use crate::classbench::{self, Block, Rule};

/// Priorities are 16 bits and every rule has its own.
const RULES_MAX: usize = u16::MAX as usize;
/// How often each thing is timed; the median counts.
const PASSES: usize = 25;

/// Settings of one run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A rule set in the text format of `ClassBench`, at most 65,535 rules.
    #[arg(long)]
    rules: PathBuf,
    /// Packets to look up.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    lookups: u32,
    /// Seed of the packets.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object on standard output (there is no other form).
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    rules: usize,
    build_ms: f64,
    /// One rule removed, or put back.
    change_ms: f64,
    memory_bytes: usize,
    /// Hash tables: the most that a lookup probes.
    tables: usize,
    lookups: u32,
    seed: u64,
    ns_per_lookup: f64,
    /// Of the fastest passes: what it costs when the CPU has nothing else to do.
    ns_per_lookup_best: f64,
    ns_per_lookup_from_rules: f64,
    ns_per_lookup_random: f64,
    probes_p50: u32,
    probes_p99: u32,
    /// Share of the packets that a rule matches.
    hit_pct: f64,
    /// Packets with another outcome than the walk over the rules has.
    mismatches: u32,
}

/// `splitmix64`: the same packets for the same seed, everywhere.
#[derive(Debug)]
struct Draw(u64);

impl Draw {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// One of `first..=last`, the ends more often than others.
    const fn within(&mut self, first: u32, last: u32) -> u32 {
        match self.below(4) {
            0 => first,
            1 => last,
            _ => first + self.below(last as u64 - first as u64 + 1) as u32,
        }
    }

    fn protocol(&mut self) -> u8 {
        [6, 6, 17, 1, 47, self.next() as u8][self.below(6) as usize]
    }
}

/// A packet as plain numbers.
#[derive(Debug, Clone, Copy)]
struct Packet {
    src: u32,
    dst: u32,
    protocol: u8,
    src_port: u16,
    dst_port: u16,
    /// TCP flags or ICMP type in the high byte, ICMP code in the low one.
    flags: u16,
}

impl Packet {
    fn random(draw: &mut Draw) -> Self {
        Self {
            src: draw.next() as u32,
            dst: draw.next() as u32,
            protocol: draw.protocol(),
            src_port: draw.next() as u16,
            dst_port: draw.next() as u16,
            flags: draw.next() as u16,
        }
    }

    fn of(rule: &Rule, draw: &mut Draw) -> Self {
        let ip = |block: Block, draw: &mut Draw| {
            draw.within(block.address, block.address | !block.mask())
        };
        let port = |(first, last): (u16, u16), draw: &mut Draw| {
            draw.within(u32::from(first), u32::from(last)) as u16
        };
        let (value, mask) = rule.flags;
        Self {
            src: ip(rule.src, draw),
            dst: ip(rule.dst, draw),
            protocol: rule.protocol.unwrap_or_else(|| draw.protocol()),
            src_port: port(rule.src_ports, draw),
            dst_port: port(rule.dst_ports, draw),
            flags: value | (draw.next() as u16 & !mask),
        }
    }

    const fn has_ports(&self) -> bool {
        matches!(self.protocol, 6 | 17)
    }

    fn query(&self, vrf: Vrf) -> PolicyQuery {
        let [high, low] = self.flags.to_be_bytes();
        PolicyQuery {
            direction: Direction::Out,
            vrf,
            src_group: Group::NONE,
            dst_group: Group::NONE,
            src: IpAddr::V4(Ipv4Addr::from_bits(self.src)),
            dst: IpAddr::V4(Ipv4Addr::from_bits(self.dst)),
            protocol: self.protocol,
            ports: self.has_ports().then_some((self.src_port, self.dst_port)),
            icmp: (self.protocol == 1).then_some((high, low)),
            tcp_flags: (self.protocol == 6).then_some(high),
        }
    }
}

/// The oracle: the first rule that matches.
fn first_match(rules: &[Rule], packet: &Packet) -> Option<usize> {
    let within = |(first, last): (u16, u16), port: u16| {
        (first, last) == (0, u16::MAX) || (packet.has_ports() && first <= port && port <= last)
    };
    rules.iter().position(|rule| {
        packet.src & rule.src.mask() == rule.src.address
            && packet.dst & rule.dst.mask() == rule.dst.address
            && rule.protocol.is_none_or(|protocol| protocol == packet.protocol)
            && within(rule.src_ports, packet.src_port)
            && within(rule.dst_ports, packet.dst_port)
            && packet.flags & rule.flags.1 == rule.flags.0
    })
}

/// Rule number `number` of the set as an entry of the policy table.
fn entry(rule: &Rule, number: usize, vrf: Vrf) -> Result<RuleEntry> {
    let block = |block: Block| -> Result<Option<Prefix>> {
        let ip = IpAddr::V4(Ipv4Addr::from_bits(block.address));
        Ok(if block.len == 0 { None } else { Some(Prefix::new(ip, block.len)?) })
    };
    let ports = |(first, last): (u16, u16)| {
        ((first, last) != (0, u16::MAX)).then_some(PortRange { first, last })
    };
    let ([high, low], [high_mask, low_mask]) =
        (rule.flags.0.to_be_bytes(), rule.flags.1.to_be_bytes());
    let has_flags = |protocol| rule.protocol == Some(protocol) && rule.flags.1 != 0;
    let code = (low_mask != 0).then_some(low);
    Ok(RuleEntry {
        priority: u16::MAX - u16::try_from(number)?,
        src: block(rule.src)?,
        dst: block(rule.dst)?,
        protocol: rule.protocol,
        src_ports: ports(rule.src_ports),
        dst_ports: ports(rule.dst_ports),
        icmp: has_flags(1).then_some(IcmpMatch { kind: high, code }),
        tcp_flags: has_flags(6).then_some(TcpFlagsMatch { value: high, mask: high_mask }),
        ..RuleEntry::any(
            RuleId(number as u64),
            vrf,
            Direction::Out,
            if number.is_multiple_of(2) { Permit::Allow } else { Permit::Deny },
        )
    })
}

/// Runs one measurement.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let path = options.rules.display();
    let text =
        std::fs::read_to_string(&options.rules).with_context(|| format!("reading {path}"))?;
    let rules = classbench::parse(&text).with_context(|| path.to_string())?;
    ensure!(!rules.is_empty(), "{path}: it has no rules");
    ensure!(
        rules.len() <= RULES_MAX,
        "{path}: it has {} rules; at most {RULES_MAX} are accepted, since priorities are 16 bits",
        rules.len()
    );
    let vrf = Vrf::new(1)?;
    let numbered = rules.iter().enumerate();
    let entries = numbered.map(|(at, rule)| entry(rule, at, vrf)).collect::<Result<Vec<_>>>()?;
    let build = || PolicyTable::build(entries.iter().zip(0..));
    let (table, build_ms) = (build(), median_ms(|| drop(black_box(build()))));

    let mut draw = Draw(options.seed);
    let from_rules: Vec<Packet> = (0..options.lookups / 2)
        .map(|_| Packet::of(&rules[draw.below(rules.len() as u64) as usize], &mut draw))
        .collect();
    let random: Vec<Packet> =
        (from_rules.len() as u32..options.lookups).map(|_| Packet::random(&mut draw)).collect();
    let queries = |packets: &[Packet]| packets.iter().map(|p| p.query(vrf)).collect::<Vec<_>>();
    let (near, far) = (queries(&from_rules), queries(&random));

    eprintln!("vrperf: comparing {} lookups with {} rules", options.lookups, rules.len());
    let (mut hits, mut mismatches) = (0, 0);
    let mut probes = Vec::new();
    let packets = from_rules.iter().chain(&random).zip(near.iter().chain(&far));
    for (packet, query) in packets {
        let found = table.lookup(query).map(|found| found.rule.0 as usize);
        hits += u32::from(found.is_some());
        mismatches += u32::from(found != first_match(&rules, packet));
        probes.push(table.probes(query));
    }
    probes.sort_unstable();

    let (near_ns, near_best) = lookup_ns(&table, &near);
    let (far_ns, far_best) = lookup_ns(&table, &far);
    let (lookups, half) = (f64::from(options.lookups), f64::from(options.lookups / 2));
    let mean = |of_near: f64, of_far: f64| (of_near * half + of_far * (lookups - half)) / lookups;
    Ok(Report {
        rules: rules.len(),
        build_ms,
        change_ms: change_ms(&table, &entries[entries.len() / 2], entries.len() as u32 / 2),
        memory_bytes: table.memory_bytes(),
        tables: table.tuples(),
        lookups: options.lookups,
        seed: options.seed,
        ns_per_lookup: mean(near_ns, far_ns),
        ns_per_lookup_best: mean(near_best, far_best),
        ns_per_lookup_from_rules: near_ns,
        ns_per_lookup_random: far_ns,
        probes_p50: probes[probes.len() / 2],
        probes_p99: probes[probes.len() * 99 / 100],
        hit_pct: f64::from(hits) * 100.0 / lookups,
        mismatches,
    })
}

/// Removing and adding one rule: the slower of the two.
fn change_ms(table: &PolicyTable, rule: &RuleEntry, slot: u32) -> f64 {
    let remove = || table.update([RuleChange { before: Some(rule), after: None }]);
    let without = remove();
    let add = || without.update([RuleChange { before: None, after: Some((rule, slot)) }]);
    median_ms(|| drop(black_box(remove()))).max(median_ms(|| drop(black_box(add()))))
}

fn median_ms(work: impl FnMut()) -> f64 {
    times_ms(work)[PASSES / 2]
}

/// In ascending order.
fn times_ms(mut work: impl FnMut()) -> Vec<f64> {
    let mut times: Vec<f64> = (0..PASSES)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_unstable_by(f64::total_cmp);
    times
}

/// The median and the best pass over all queries, per query; 0 without queries.
fn lookup_ns(table: &PolicyTable, queries: &[PolicyQuery]) -> (f64, f64) {
    let mut pass = || {
        for query in queries {
            black_box(table.lookup(query));
        }
    };
    let warm = Instant::now();
    while warm.elapsed() < Duration::from_millis(50) {
        pass();
    }
    let times = times_ms(&mut pass);
    let count = u32::try_from(queries.len()).map_or(f64::MAX, f64::from).max(1.0);
    (times[PASSES / 2] * 1e6 / count, times[0] * 1e6 / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: &str = "\
@10.1.0.0/16\t10.2.3.0/24\t0 : 65535\t80 : 90\t0x06/0xFF\t0x0200/0x1200
@10.1.2.3/32\t10.2.0.0/16\t1024 : 65535\t53 : 53\t0x11/0xFF\t0x0000/0x0000
@0.0.0.0/0\t10.2.3.4/32\t0 : 65535\t0 : 65535\t0x01/0xFF\t0x0800/0xff00
@10.0.0.0/8\t0.0.0.0/0\t0 : 65535\t7 : 65534\t0x00/0x00\t0x0000/0x0000
@0.0.0.0/1\t0.0.0.0/0\t0 : 65535\t0 : 65535\t0x2f/0xFF\t0x0000/0x0000
";

    #[test]
    fn the_oracle_reads_rules_as_they_are_written() {
        let rules = classbench::parse(SET).unwrap();
        let base = Packet {
            src: 0x0a01_0203,
            dst: 0x0a02_0304,
            protocol: 6,
            src_port: 1,
            dst_port: 90,
            flags: 0x0200,
        };
        let first = |packet: Packet| first_match(&rules, &packet);
        assert_eq!(first(base), Some(0));
        assert_eq!(first(Packet { flags: 0x1200, ..base }), Some(3));
        assert_eq!(first(Packet { dst_port: 6, ..base }), None);
        let udp = Packet { protocol: 17, dst_port: 53, ..base };
        assert_eq!(first(udp), Some(3));
        assert_eq!(first(Packet { src_port: 1024, ..udp }), Some(1));
        // A rule with ports does not match what has none; 47 is GRE.
        assert_eq!(first(Packet { protocol: 1, flags: 0x0801, ..base }), Some(2));
        assert_eq!(first(Packet { protocol: 1, flags: 0x0001, ..base }), None);
        assert_eq!(first(Packet { protocol: 47, ..base }), Some(4));
        assert_eq!(first(Packet { protocol: 47, src: 1 << 31, ..base }), None);
    }

    #[test]
    fn the_classifier_agrees_on_packets_in_and_around_rules() {
        let rules = classbench::parse(SET).unwrap();
        let vrf = Vrf::new(1).unwrap();
        let entries: Vec<RuleEntry> =
            rules.iter().enumerate().map(|(at, rule)| entry(rule, at, vrf).unwrap()).collect();
        let table = PolicyTable::build(entries.iter().zip(0..));
        let mut draw = Draw(7);
        let mut hits = [0; 5];
        for at in 0..5000_usize {
            let packet = match at % 2 {
                0 => Packet::of(&rules[at / 2 % rules.len()], &mut draw),
                _ => Packet::random(&mut draw),
            };
            let want = first_match(&rules, &packet);
            let found = table.lookup(&packet.query(vrf)).map(|found| found.rule.0 as usize);
            assert_eq!(found, want, "{packet:?}");
            hits[want.unwrap_or(4)] += 1;
        }
        assert!(hits.iter().all(|count| *count > 100), "{hits:?}");
    }
}
