//! What the engine tells of its work, and what it costs when there is none.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kit::frame::{Addresses, tagged, udp};
use kit::{
    CONTAINER_IFNAME, Container, Daemon, Node, OneNode, Purpose, Topology, capture, wait_until,
};

use crate::Test;
use crate::shared::sharing;
use crate::site::{BOUND, attach, attach_to_group, configure, port_of, reach_soon};

const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9091);
const PORT: u16 = 7200;
/// Longer than the worker looks for packets before it sleeps.
const PAUSE: Duration = Duration::from_millis(10);
/// The worker sleeps up to 100 ms: a packet on its way in this time has woken it. How long it takes is
/// printed, and is for a benchmark to judge (240 to 290 µs on a loaded machine, 103 µs on a quieter one).
const FIRST_PACKET: Duration = Duration::from_millis(5);

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("met_1_the_engines_series_exist_and_move", series),
            ("met_1_wrong_and_slow_clients_of_the_engines_metrics_are_bounded", clients),
            ("met_1_a_worker_tells_what_a_packet_costs_by_stage", top),
            ("dp_2_an_idle_node_uses_less_than_one_percent_of_a_core", idle),
            ("dp_2_the_first_packet_after_a_pause_is_on_its_way_at_once", first_packet),
        ],
    )
}

/// a in group talkers and b, on one node.
#[derive(Debug)]
struct Scene {
    a: Container,
    b: Container,
    one: OneNode,
}

fn build() -> Result<Scene> {
    let one = Topology::new(Purpose::Test).one_node()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "policy create -t blue guard",
        "policy rule-add -t blue -d in -l udp -P 7200 -j allow guard ask",
        "group create -t blue -p guard front talkers",
    ];
    configure(&one.node, &lines)?;
    let a = attach(&one.node, "a", "front")?;
    let b = attach_to_group(&one.node, "b", "front", Some("talkers"))?;
    reach_soon(&a, b.address())?;
    Ok(Scene { a, b, one })
}

impl Scene {
    /// Bound and connected sockets of a and b.
    fn sockets(&self) -> Result<(UdpSocket, UdpSocket)> {
        let bind =
            |of: &Container, port| of.namespace().run(|| UdpSocket::bind((of.address(), port)));
        let (from, to) = (bind(&self.a, 0)??, bind(&self.b, PORT)??);
        from.connect((self.b.address(), PORT))?;
        to.connect((self.a.address(), from.local_addr()?.port()))?;
        for socket in [&from, &to] {
            socket.set_read_timeout(Some(BOUND))?;
        }
        Ok((from, to))
    }

    fn send(&self, count: usize) -> Result<()> {
        let (from, to) = self.sockets()?;
        for _ in 0..count {
            from.send(b"count me")?;
            to.recv(&mut [0; 16])?;
        }
        Ok(())
    }
}

/// The answer of the engine's HTTP server to a request, headers included.
fn http(node: &Node, request: &str) -> Result<String> {
    let mut stream = node.namespace().run(|| TcpStream::connect_timeout(&METRICS, BOUND))??;
    stream.set_read_timeout(Some(BOUND))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// All series, by name and labels.
fn scrape(node: &Node) -> Result<BTreeMap<String, f64>> {
    let answer = http(node, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    ensure!(head.contains("application/openmetrics-text"), "{head}");
    let rows = body.lines().filter(|line| !line.starts_with('#'));
    let rows = rows.map(|line| {
        let (series, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
        Ok((series.to_owned(), value.parse().with_context(|| line.to_owned())?))
    });
    rows.collect()
}

fn series(scene: &mut Scene) -> Result<()> {
    const SENT: u32 = 100;
    let node = &scene.one.node;
    let port = port_of(node, &scene.a)?;
    let (id, vrf) = (&port["id"], &port["vrf"]);
    let device = port["name"].as_str().context("a port without a name")?;
    let before = scrape(node)?;
    scene.send(SENT as usize)?;
    let spoiled = Addresses {
        src_mac: scene.a.mac()?,
        dst_mac: scene.b.mac()?,
        src: scene.a.address(),
        dst: scene.b.address(),
    };
    let raw = capture(scene.a.namespace(), CONTAINER_IFNAME)?;
    raw.send(&tagged(&udp(spoiled, 1, 2, b"x")?, 5))?;
    let reason = "weir_drops_total{reason=\"container-tag\"}";
    wait_until(BOUND, "the tagged frame to be counted", || {
        (scrape(node).ok()?.get(reason)? > before.get(reason)?).then_some(())
    })?;
    let after = scrape(node)?;
    let of_port = format!("{{port=\"{id}\",device=\"{device}\",kind=\"container\",vrf=\"{vrf}\"}}");
    let worker = "{worker=\"0\"}";
    let queue = "{worker=\"0\",queue=\"0\",device=\"wr-t1.0\"}";
    let sent = f64::from(SENT);
    for (name, labels, least) in [
        ("weir_port_rx_packets_total", of_port.as_str(), sent),
        ("weir_port_rx_bytes_total", &of_port, sent * 50.0),
        ("weir_port_drops_total", &of_port, 1.0),
        ("weir_tenant_rx_packets_total", &format!("{{vrf=\"{vrf}\"}}"), sent),
        ("weir_tenant_tx_packets_total", &format!("{{vrf=\"{vrf}\"}}"), sent),
        ("weir_lookups_total", "{tier=\"exact\"}", sent / 2.0),
        ("weir_connections_opened_total", "", 1.0),
        ("weir_worker_loops_total", worker, 1.0),
        ("weir_worker_busy_loops_total", worker, 1.0),
        ("weir_worker_sleeps_total", worker, 1.0),
        ("weir_worker_packets_total", worker, sent),
        ("weir_worker_burst_packets_count", worker, 1.0),
        ("weir_worker_burst_packets_bucket", "{le=\"+Inf\",worker=\"0\"}", 1.0),
        ("weir_worker_burst_packets_sum", worker, sent),
        ("weir_worker_cycles_total", "{worker=\"0\",stage=\"forward\"}", sent),
        ("weir_worker_cycles_total", "{worker=\"0\",stage=\"idle\"}", sent),
        ("weir_queue_rx_packets_total", queue, sent),
        ("weir_queue_tx_packets_total", queue, sent),
        ("weir_queue_wakeups_total", queue, 1.0),
    ] {
        let series = format!("{name}{labels}");
        let read = |from: &BTreeMap<String, f64>| {
            from.get(&series).copied().with_context(|| format!("{series} is not in {from:#?}"))
        };
        let moved = read(&after)? - read(&before)?;
        ensure!(moved >= least, "{series} moved by {moved}, not by {least}");
    }
    let rule = after.iter().filter(|(name, _)| name.starts_with("weir_rule_packets_total{rule="));
    ensure!(rule.map(|(_, count)| count).sum::<f64>() >= 1.0, "no rule counted the first packet");
    for (ring, range) in [
        ("weir_queue_ring_frames", 2048.0..=2048.0),
        ("weir_queue_receiving_frames", 1024.0..=2048.0),
        ("weir_queue_sending_frames", 0.0..=2048.0),
        ("weir_queue_rx_dropped_total", 0.0..=f64::MAX),
        ("weir_queue_rx_ring_full_total", 0.0..=f64::MAX),
        ("weir_queue_fill_ring_empty_total", 0.0..=f64::MAX),
        ("weir_queue_rx_invalid_total", 0.0..=0.0),
        ("weir_queue_tx_invalid_total", 0.0..=0.0),
    ] {
        let value = after.get(&format!("{ring}{queue}")).with_context(|| ring.to_owned())?;
        ensure!(range.contains(value), "{ring} is {value}");
    }
    Ok(())
}

fn clients(scene: &mut Scene) -> Result<()> {
    let node = &scene.one.node;
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404"),
        (
            "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "405",
        ),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = http(node, request)?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
    }
    // Some that connect and say nothing leave room for one that asks.
    let silent = (0..8).map(|_| node.namespace().run(|| TcpStream::connect(METRICS)));
    let silent = silent.map(|stream| Ok(stream??)).collect::<Result<Vec<_>>>()?;
    ensure!(scrape(node)?.contains_key("weir_rules"), "no answer beside silent clients");
    drop(silent);
    Ok(())
}

fn top(scene: &mut Scene) -> Result<()> {
    let node = &scene.one.node;
    let workers = node.vrctl(&["worker"])?;
    ensure!(workers[0]["queues"][0]["device"] == "wr-t1.0", "{workers}");
    ensure!(workers[0]["queues"][0]["ring_frames"] == 2048, "{workers}");
    let top = std::thread::scope(|scope| {
        let top = scope.spawn(|| node.vrctl(&["top", "--count", "1"]));
        let start = Instant::now();
        let mut sent = Ok(());
        while sent.is_ok() && start.elapsed() < Duration::from_millis(1500) && !top.is_finished() {
            sent = scene.send(100);
        }
        sent.and_then(|()| top.join().map_err(|_panic| anyhow::anyhow!("vrctl panicked"))?)
    })?;
    let figure = |name: &str| top[0][name].as_f64().with_context(|| format!("{name} in {top}"));
    ensure!(figure("packets_per_second")? >= 100.0, "{top}");
    ensure!(figure("ticks_per_packet")? > 100.0, "{top}");
    ensure!((0.0..=1.0).contains(&figure("busy")?), "{top}");
    let stages = top[0]["stages"].as_array().context("no stages")?;
    let shares = stages.iter().filter_map(|stage| stage["share"].as_f64()).sum::<f64>();
    ensure!((0.98..=1.02).contains(&shares), "the stages are {shares} of the time: {top}");
    let table = node.vrctl_run(&["top", "--count", "1"])?.success()?;
    ensure!(table.contains("CYCLES/PACKET") && table.contains("wr-t1.0"), "{table}");
    Ok(())
}

fn idle(scene: &mut Scene) -> Result<()> {
    let soak = std::env::var_os("WEIR_SOAK").is_some();
    let (containers, look) = if soak { (60, 10) } else { (8, 3) };
    let look = Duration::from_secs(look);
    let node = &mut scene.one.node;
    let more = (0..containers).map(|_| attach(node, "idle", "front"));
    let more = more.collect::<Result<Vec<_>>>()?;
    let process = node.process(Daemon::Vrouterd)?;
    let quiet = || {
        let (start, before) = (Instant::now(), process.cpu_time().ok()?);
        wait_until(look * 2, "the time to pass", || (start.elapsed() >= look).then_some(()))
            .ok()?;
        let used = process.cpu_time().ok()?.saturating_sub(before);
        eprintln!("{used:?} of {:?} used with {containers} idle containers", start.elapsed());
        (used * 100 < start.elapsed()).then_some(used)
    };
    // Containers that have just come up still look for routers and announce groups.
    wait_until(BOUND, "an engine that uses under 1 % of a core", quiet)?;
    for container in more {
        container.detach(&scene.one.node)?;
    }
    Ok(())
}

fn first_packet(scene: &mut Scene) -> Result<()> {
    let (from, to) = scene.sockets()?;
    // A machine that does other work at the moment gets another chance.
    wait_until(BOUND, "a median that no timer explains", || {
        let times = pauses(&from, &to).ok()?;
        let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        eprintln!("after {PAUSE:?} without a packet: median {median:?}, p99 {p99:?}");
        (median < FIRST_PACKET).then_some(())
    })?;
    Ok(())
}

/// The times of packets that each come after a pause, from sender to receiver, sorted.
fn pauses(from: &UdpSocket, to: &UdpSocket) -> Result<Vec<Duration>> {
    const COUNT: usize = 100;
    let mut times = Vec::with_capacity(COUNT);
    for _ in 0..COUNT {
        std::thread::sleep(PAUSE);
        let start = Instant::now();
        from.send(b"first")?;
        to.recv(&mut [0; 16])?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}
