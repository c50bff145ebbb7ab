//! netmaster, netplugin or the CNI plugins killed while attachments come and go, at moments drawn by lot
//! from the time that the calls take.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use kit::{Daemon, Finished, Node, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::addresses::Scene;
use crate::runtime::Plug;
use crate::site::{BOUND, endpoints, netctl_json};

/// Calls of each kind in a wave.
const WAVE: usize = 2;
/// Waves without a kill, by which the time of one is known.
const TRIALS: usize = 3;
/// Of four kills at least so many come while a call is under way.
const HITS_OF_FOUR: usize = 3;

/// Numbers that follow from a seed (Knuth's MMIX generator).
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Who is killed in a wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Nobody,
    Daemon(Daemon),
    Plugins,
}

/// What became of a wave.
#[derive(Debug)]
struct Wave {
    living: Vec<Plug>,
    /// From the first call to the last answer.
    took: Duration,
    /// Calls under way when the kill came, or plugins killed.
    hit: usize,
    /// Until netmaster's addresses were just those that live.
    reconciled: Duration,
}

/// A call and when it was under way.
struct Call {
    finished: Finished,
    began: Instant,
    ended: Instant,
}

/// How many kills, and how many attachments live all the while.
fn size() -> (usize, usize) {
    if std::env::var_os("WEIR_SOAK").is_some() { (200, 200) } else { (8, 12) }
}

pub(crate) fn kills(scene: &mut Scene) -> Result<()> {
    let seed = match std::env::var("WEIR_SEED") {
        Ok(text) => text.parse().context("WEIR_SEED")?,
        Err(_) => u64::from(std::process::id()),
    };
    let mut draw = Draw(seed);
    let (points, population) = size();
    let before = scene.traces()?;
    let began = Instant::now();
    let fresh = (0..population).map(|_| plug(&scene.nodes.one));
    let mut living = fresh.collect::<Result<Vec<_>>>()?;
    living.iter().try_for_each(|plug| plug.add(&scene.nodes.one).map(drop))?;
    let mut times = Vec::new();
    for _ in 0..TRIALS {
        let wave = wave(scene, &mut draw, living, (Victim::Nobody, Duration::ZERO))?;
        times.push(wave.took);
        living = wave.living;
    }
    times.sort_unstable();
    let usual = times[TRIALS / 2];
    let (mut hits, mut slowest) = (0, Duration::ZERO);
    for point in 0..points {
        let victim = match draw.below(3) {
            0 => Victim::Daemon(Daemon::Netmaster),
            1 => Victim::Daemon(Daemon::Netplugin),
            _ => Victim::Plugins,
        };
        let moment = Duration::from_nanos(draw.below(usual.as_nanos() as u64));
        let said = || format!("WEIR_SEED={seed}, kill {point}: {victim:?} after {moment:?}");
        let wave = wave(scene, &mut draw, living, (victim, moment)).with_context(said)?;
        ensure!(wave.living.len() >= population - WAVE, "{} live", wave.living.len());
        hits += usize::from(wave.hit > 0);
        slowest = slowest.max(wave.reconciled);
        living = fill(scene, wave.living, population).with_context(said)?;
    }
    let alive = living.len();
    for plug in living {
        wait_until(BOUND, "DEL", || plug.del(&scene.nodes.one).ok())?;
    }
    scene.settled(&before).with_context(|| format!("WEIR_SEED={seed}"))?;
    eprintln!(
        "{points} kills, {hits} amid calls (a wave of {WAVE} ADDs and {WAVE} DELs takes {usual:.1?}), {alive} \
         attachments alive, {:.1?}; reconciled within {slowest:.1?} (WEIR_SEED={seed})",
        began.elapsed(),
    );
    ensure!(4 * hits >= HITS_OF_FOUR * points, "{hits} of {points} kills hit (WEIR_SEED={seed})");
    Ok(())
}

/// ADDs for those that the last kill has cost.
fn fill(scene: &Scene, mut living: Vec<Plug>, population: usize) -> Result<Vec<Plug>> {
    while living.len() < population {
        let plug = plug(&scene.nodes.one)?;
        wait_until(BOUND, "ADD", || plug.add(&scene.nodes.one).ok())?;
        living.push(plug);
    }
    Ok(living)
}

/// ADDs, and DELs of as many that live, with one kill amid them, after which netmaster's addresses are
/// those that live.
fn wave(
    scene: &mut Scene,
    draw: &mut Draw,
    mut living: Vec<Plug>,
    (victim, moment): (Victim, Duration),
) -> Result<Wave> {
    let mut drawn = || living.swap_remove(draw.below(living.len() as u64) as usize);
    let ending = [drawn(), drawn()];
    let fresh = (0..WAVE).map(|_| plug(&scene.nodes.one)).collect::<Result<Vec<_>>>()?;
    let pid = match victim {
        Victim::Daemon(daemon) => Some(scene.nodes.one.process(daemon)?.pid()),
        Victim::Nobody | Victim::Plugins => None,
    };
    let node = &scene.nodes.one;
    let start = Instant::now();
    let (added, deleted, killed, plugins) = thread::scope(|scope| {
        let adds: Vec<_> = fresh.iter().map(|p| scope.spawn(|| call(p, node, "ADD"))).collect();
        let dels: Vec<_> = ending.iter().map(|p| scope.spawn(|| call(p, node, "DEL"))).collect();
        while start.elapsed() < moment {
            thread::yield_now();
        }
        let killed = Instant::now();
        let mut plugins = 0;
        if let Some(pid) = pid {
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?;
        } else if victim == Victim::Plugins {
            plugins = kill_plugins();
        }
        anyhow::Ok((joined(adds)?, joined(dels)?, killed, plugins))
    })?;
    let under_way = |call: &&Call| call.began <= killed && killed <= call.ended;
    let under_way = added.iter().chain(&deleted).filter(under_way).count();
    let took = start.elapsed();
    if let Victim::Daemon(daemon) = victim {
        scene.nodes.one.kill(daemon)?;
        scene.nodes.one.start_unready(daemon)?;
    }
    // As a runtime: an ADD that failed or was killed is followed by DEL, a DEL is repeated.
    let mut over: Vec<Plug> = ending.into();
    for (plug, call) in fresh.into_iter().zip(added) {
        if call.finished.code == Some(0) { living.push(plug) } else { over.push(plug) }
    }
    for plug in &over {
        wait_until(BOUND, "DEL", || plug.del(&scene.nodes.one).ok())?;
    }
    let start = Instant::now();
    wait_until(BOUND * 3, "the addresses of netmaster to be those that live", || {
        just_these(scene, &living).ok()
    })
    .with_context(|| format!("{:?}", just_these(scene, &living)))?;
    let hit = if victim == Victim::Plugins { plugins } else { under_way };
    Ok(Wave { living, took, hit, reconciled: start.elapsed() })
}

fn call(plug: &Plug, node: &Node, command: &str) -> Result<Call> {
    let began = Instant::now();
    let finished = plug.call(node, command, &Value::Null)?;
    Ok(Call { finished, began, ended: Instant::now() })
}

fn joined(calls: Vec<ScopedJoinHandle<'_, Result<Call>>>) -> Result<Vec<Call>> {
    calls.into_iter().map(|call| call.join().map_err(|_panic| anyhow!("a panic"))?).collect()
}

fn plug(node: &Node) -> Result<Plug> {
    let mut plug = Plug::new(node, "front")?;
    plug.config["timeoutSeconds"] = json!(5);
    Ok(plug)
}

/// Kills every CNI plugin of this run that is at work, and says how many those were. They are children of
/// this process.
fn kill_plugins() -> usize {
    let own = std::process::id().to_string();
    let mut killed = 0;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        let mut rest = rest.split_whitespace();
        let (state, parent) = (rest.next(), rest.next());
        let pid = entry.file_name().to_string_lossy().parse();
        if name.ends_with("(weir-cni")
            && parent == Some(own.as_str())
            && state != Some("Z")
            && let Ok(pid) = pid
            && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
        {
            killed += 1;
        }
    }
    killed
}

/// netmaster has endpoints for the scene's two containers and `lives`, each with the two addresses that its
/// container has, no address twice, and nothing else is used or leaving.
fn just_these(scene: &Scene, lives: &[Plug]) -> Result<()> {
    let node = &scene.nodes.one;
    let rows = netctl_json(node, "ip ls -a")?;
    let rows = rows.as_array().context("ip ls is no list")?;
    let mut used = BTreeMap::new();
    for row in rows.iter().filter(|row| row["state"] != "gateway") {
        ensure!(row["state"] == "used", "{row}");
        let id = row["endpointID"].as_str().context("no endpoint")?.to_owned();
        let address = row["ipAddress"].as_str().context("no address")?.to_owned();
        ensure!(used.insert(address, id).is_none(), "an address twice: {rows:?}");
    }
    let living = lives.len() + 2;
    ensure!(used.len() == 2 * living, "{} used, {living} live", used.len());
    for plug in lives {
        let netlink = plug.netns().netlink()?;
        let link = netlink.link_by_name(kit::CONTAINER_IFNAME)?.context("no device")?;
        let held: Vec<IpAddr> = netlink.addresses(link.index)?.iter().map(|a| a.ip).collect();
        let is_link_local =
            |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let held: Vec<_> = held.into_iter().filter(|ip| !is_link_local(ip)).collect();
        ensure!(held.len() == 2 && held[0].is_ipv4() != held[1].is_ipv4(), "{held:?} inside");
        for ip in held {
            let id = used.get(&ip.to_string()).with_context(|| format!("{ip} is free"))?;
            let own = format!("{}:{}", plug.id, plug.ifname);
            ensure!(*id == own, "{id} has {ip} of {own}");
        }
    }
    let ids = endpoints(node)?;
    ensure!(ids.len() == living, "{ids:?}");
    Ok(())
}
