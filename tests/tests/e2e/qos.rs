//! Rates and marks, as packets on real devices show them.

use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kit::frame::{Addresses, tcp_syn};
use kit::{
    CONTAINER_IFNAME, Container, ContainerSpec, Daemon, Purpose, TcpSink, Topology, TwoNodes,
    capture, tcp_connect,
};
use serde_json::json;

use crate::Test;
use crate::packet::{Packet, expect};
use crate::shared::sharing;
use crate::site::{BOUND, all_drops, attach_to_group, configure, netctl, reach_soon};

const PORT: u16 = 7100;
/// Ethernet, IPv4 and UDP headers.
const HEADER_BYTES: u64 = 42;
const PAYLOAD_BYTES: usize = 1400;
/// What vrouterd lets a container open in a second, unless told otherwise.
const NEW_FLOWS: f64 = 50_000.0;
/// Questions of one conversation.
const TALK: usize = 500;

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("qos_1_a_rate_holds_for_what_is_sent_on_one_node_and_to_another", sent),
            ("qos_1_a_rate_holds_for_what_is_received_on_one_node_and_from_another", received),
            ("qos_1_a_rate_holds_for_tcp", tcp),
            (
                "qos_1_a_runtimes_bandwidth_holds_in_both_directions_and_outlives_netplugin",
                of_runtime,
            ),
            ("qos_1_a_rate_changes_and_goes_while_packets_flow", live),
            ("qos_2_a_mark_is_seen_on_one_node_and_on_another", marks),
            ("qos_3_members_of_a_group_share_its_rate", aggregate),
            ("qos_4_a_flood_of_syns_leaves_another_tenant_its_network", flooded),
        ],
    )
}

/// Tenant blue: x in group limited and u in group free on node 1, y in group free on node 2, and z
/// in group limited on node 1.
#[derive(Debug)]
struct Scene {
    x: Container,
    z: Container,
    u: Container,
    y: Container,
    nodes: TwoNodes,
}

fn build() -> Result<Scene> {
    let nodes = Topology::new(Purpose::Test).two_nodes()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "group create -t blue front limited",
        "group create -t blue front free",
    ];
    configure(&nodes.one, &lines)?;
    let x = attach_to_group(&nodes.one, "x", "front", Some("limited"))?;
    let z = attach_to_group(&nodes.one, "z", "front", Some("limited"))?;
    let u = attach_to_group(&nodes.one, "u", "front", Some("free"))?;
    let y = attach_to_group(&nodes.two, "y", "front", Some("free"))?;
    for other in [&z, &u, &y] {
        reach_soon(&x, other.address())?;
    }
    Ok(Scene { x, z, u, y, nodes })
}

impl Scene {
    /// With a profile of the group, `work`, and without it again.
    fn with_profile(&self, flags: &str, work: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let node = &self.nodes.one;
        netctl(node, &format!("netprofile create -t blue {flags} gold"))?;
        netctl(node, "group create -t blue -n gold front limited")?;
        let outcome = work(self);
        netctl(node, "group create -t blue front limited")?;
        netctl(node, "netprofile rm -t blue gold")?;
        outcome
    }
}

/// How long a rate is measured: `make soak` does the full time.
fn window() -> Duration {
    let soak = std::env::var_os("WEIR_SOAK").is_some();
    Duration::from_secs(if soak { 10 } else { 3 })
}

/// Bits a second of frames that arrive while senders flood, each with its own receiver.
fn flood(pairs: &[(&Container, &Container)]) -> Result<f64> {
    let (stop, bytes) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut sockets = Vec::new();
    for (port, (from, to)) in (PORT..).zip(pairs) {
        let receiver = to.namespace().run(|| UdpSocket::bind((to.address(), port)))??;
        receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
        let sender = from.namespace().run(|| UdpSocket::bind((from.address(), 0)))??;
        sender.connect((to.address(), port))?;
        sockets.push((sender, receiver));
    }
    thread::scope(|scope| {
        for (sender, receiver) in &sockets {
            scope.spawn(|| send_until(sender, &stop));
            scope.spawn(|| count_until(receiver, &bytes, &stop));
        }
        // The burst comes first, and is no part of the rate.
        thread::sleep(Duration::from_millis(500));
        let (start, before) = (Instant::now(), bytes.load(Ordering::Relaxed));
        thread::sleep(window());
        let rate = bits_per_second(bytes.load(Ordering::Relaxed) - before, start.elapsed());
        stop.store(true, Ordering::Relaxed);
        rate
    })
}

fn send_until(socket: &UdpSocket, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        // What the stack refuses the meter need not.
        drop(socket.send(&[0; PAYLOAD_BYTES]));
        thread::sleep(Duration::from_micros(100));
    }
}

fn count_until(socket: &UdpSocket, bytes: &AtomicU64, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let len = socket.recv(&mut buffer).ok();
        let frame = len.map_or(0, |len| len as u64 + HEADER_BYTES);
        bytes.fetch_add(frame, Ordering::Relaxed);
    }
}

fn bits_per_second(bytes: u64, time: Duration) -> Result<f64> {
    Ok(f64::from(u32::try_from(bytes)?) * 8.0 / time.as_secs_f64())
}

fn holds(rate: f64, mbps: f64) -> Result<()> {
    let error = (rate / 1e6 - mbps).abs() / mbps;
    ensure!(error < 0.05, "{:.3} Mbit/s at a limit of {mbps}", rate / 1e6);
    Ok(())
}

fn sent(scene: &mut Scene) -> Result<()> {
    for (flags, mbps) in [("-b 6Mbps -s 80", 6.0), ("-b 16Mbps -s 270", 16.0)] {
        scene.with_profile(flags, |scene| {
            holds(flood(&[(&scene.x, &scene.u)])?, mbps).context("on one node")?;
            holds(flood(&[(&scene.x, &scene.y)])?, mbps).context("to another node")
        })?;
    }
    Ok(())
}

fn received(scene: &mut Scene) -> Result<()> {
    scene.with_profile("-b 16Mbps -s 270", |scene| {
        holds(flood(&[(&scene.u, &scene.x)])?, 16.0).context("on one node")?;
        holds(flood(&[(&scene.y, &scene.x)])?, 16.0).context("from another node")
    })
}

/// `ingress` is what the container receives.
fn of_runtime(scene: &mut Scene) -> Result<()> {
    let bandwidth = json!({ "ingressRate": 16_000_000, "ingressBurst": 2_000_000,
        "egressRate": 6_000_000, "egressBurst": 640_000 });
    let spec = ContainerSpec {
        name: "r",
        tenant: "blue",
        network: "front",
        group: Some("free"),
        args: "",
    };
    let keys = json!({ "runtimeConfig": { "bandwidth": bandwidth } });
    let limited = Container::attach_with(&scene.nodes.one, &spec, &keys)?;
    reach_soon(&limited, scene.u.address())?;
    holds(flood(&[(&limited, &scene.u)])?, 6.0).context("sent")?;
    scene.nodes.one.kill(Daemon::Netplugin)?;
    scene.nodes.one.start(Daemon::Netplugin)?;
    holds(flood(&[(&scene.y, &limited)])?, 16.0).context("received, after netplugin's restart")?;
    limited.detach(&scene.nodes.one)?;
    let meters = scene.nodes.one.vrctl(&["meter", "ls"])?;
    ensure!(meters.as_array().is_none_or(Vec::is_empty), "DEL leaves {meters}");
    Ok(())
}

fn tcp(scene: &mut Scene) -> Result<()> {
    scene.with_profile("-b 16Mbps", |scene| {
        for to in [&scene.u, &scene.y] {
            let wire = tcp_rate(&scene.x, to)?;
            holds(wire, 16.0).context("TCP")?;
        }
        Ok(())
    })
}

/// Bits a second of frames of one TCP stream, after its first two seconds.
fn tcp_rate(from: &Container, to: &Container) -> Result<f64> {
    let sink = TcpSink::start(to.namespace(), (to.address(), PORT).into())?;
    let mut stream = tcp_connect(from.namespace(), sink.address(), BOUND)?;
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    // It begins with a burst that is too long, and pays for it.
    send_for(&mut stream, Duration::from_secs(2))?;
    let (start, before) = (Instant::now(), sink.bytes());
    send_for(&mut stream, window() * 2)?;
    let payload = bits_per_second(sink.bytes() - before, start.elapsed())?;
    // A full frame has 1,514 bytes, of which 66 are headers (RFC 7323 timestamps).
    Ok(payload * 1514.0 / 1448.0)
}

fn send_for(stream: &mut TcpStream, time: Duration) -> Result<()> {
    let chunk = vec![0; 16_384];
    let start = Instant::now();
    while start.elapsed() < time {
        match stream.write(&chunk) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn live(scene: &mut Scene) -> Result<()> {
    let node = &scene.nodes.one;
    scene.with_profile("-b 6Mbps -s 80", |scene| {
        holds(flood(&[(&scene.x, &scene.u)])?, 6.0)?;
        netctl(node, "netprofile create -t blue -b 12Mbps -s 160 gold")?;
        holds(flood(&[(&scene.x, &scene.u)])?, 12.0).context("after the change")?;
        netctl(node, "netprofile create -t blue gold")?;
        let free = flood(&[(&scene.x, &scene.u)])?;
        ensure!(free > 24e6, "{free} bit/s without a limit");
        Ok(())
    })
}

fn aggregate(scene: &mut Scene) -> Result<()> {
    scene.with_profile("-b 10Mbps -s 100 --scope group", |scene| {
        let both = [(&scene.x, &scene.u), (&scene.z, &scene.y)];
        holds(flood(&both)?, 10.0).context("two members together")?;
        holds(flood(&both[..1])?, 10.0).context("one member alone")
    })
}

/// The mark of a datagram from x as the receiver sees it, and of the packet that carried it.
fn mark(scene: &Scene, to: &Container) -> Result<u8> {
    let inside = capture(to.namespace(), CONTAINER_IFNAME)?;
    let socket = scene.x.namespace().run(|| UdpSocket::bind((scene.x.address(), 0)))??;
    socket.send_to(b"mark me", (to.address(), PORT))?;
    let own = scene.x.address();
    expect(&inside, "the marked datagram", |frame| {
        let packet = Packet::parse(frame)?;
        (packet.src == own && packet.dst_port == PORT).then(|| frame[15] >> 2)
    })
}

fn marks(scene: &mut Scene) -> Result<()> {
    let node = &scene.nodes.one;
    scene.with_profile("-d 10", |scene| {
        for dscp in [10, 20, 0, 30, 40] {
            netctl(node, &format!("netprofile create -t blue -d {dscp} gold"))?;
            for to in [&scene.u, &scene.y] {
                let seen = mark(scene, to)?;
                ensure!(seen == dscp, "marked {seen}, not {dscp}");
            }
        }
        Ok(())
    })?;
    ensure!(mark(scene, &scene.u)? == 0, "a mark without a profile");
    Ok(())
}

/// What became of a conversation of short questions.
struct Talk {
    p99: Duration,
    lost: usize,
}

/// Asks and answers once every 2 ms.
fn talk(client: &UdpSocket, server: &UdpSocket, count: usize) -> Result<Talk> {
    let (mut times, mut lost, mut buffer) = (Vec::with_capacity(count), 0, [0; 4]);
    for number in 0..count as u32 {
        let start = Instant::now();
        client.send(&number.to_be_bytes())?;
        // An answer that is late is not that to the next question.
        let answered = receive(server, number, &mut buffer)
            .is_some_and(|from| server.send_to(&buffer, from).is_ok())
            && receive(client, number, &mut buffer).is_some();
        lost += usize::from(!answered);
        times.push(start.elapsed());
        thread::sleep(Duration::from_millis(2));
    }
    times.sort_unstable();
    Ok(Talk { p99: times[count * 99 / 100], lost })
}

/// Waits for the datagram of this number; whose it is.
fn receive(socket: &UdpSocket, number: u32, buffer: &mut [u8; 4]) -> Option<SocketAddr> {
    loop {
        let (_, from) = socket.recv_from(buffer).ok()?;
        if *buffer == number.to_be_bytes() {
            return Some(from);
        }
    }
}

/// Every SYN is the first packet of a connection; as many as the sender's core makes. Returns how
/// many a second that were.
fn flood_syns(scene: &Scene, stop: &AtomicBool) -> Result<f64> {
    let socket = capture(scene.x.namespace(), CONTAINER_IFNAME)?;
    let addresses = Addresses {
        src_mac: scene.x.mac()?,
        dst_mac: scene.u.mac()?,
        src: scene.x.address(),
        dst: scene.u.address(),
    };
    let (start, mut number) = (Instant::now(), 0_u32);
    while !stop.load(Ordering::Relaxed) {
        let (port, service) = (number as u16, 1 + (number >> 16) as u16);
        // A full queue of its own device is the flooder's affair.
        drop(socket.send(&tcp_syn(addresses, port, service)?));
        number = number.wrapping_add(1);
    }
    Ok(f64::from(number) / start.elapsed().as_secs_f64())
}

/// A conversation beside the flood, whose excess is counted.
fn beside_a_flood(scene: &Scene, asker: &UdpSocket, listener: &UdpSocket) -> Result<Talk> {
    let node = &scene.nodes.one;
    let before = all_drops(node)?;
    let stop = AtomicBool::new(false);
    let (flooded, rate) = thread::scope(|scope| {
        let flooder = scope.spawn(|| flood_syns(scene, &stop));
        let flooded = talk(asker, listener, TALK);
        stop.store(true, Ordering::Relaxed);
        let rate = flooder.join().map_err(|_panic| anyhow::anyhow!("the flooder panicked"))??;
        Ok::<_, anyhow::Error>((flooded?, rate))
    })?;
    let after = all_drops(node)?;
    let held_back = after["flow-limit"] - before["flow-limit"];
    eprintln!("{rate:.0} SYNs a second, {held_back} held back");
    // Twice what a port may open: half of it, at least, is refused and counted.
    ensure!(rate < 2.0 * NEW_FLOWS || held_back > 0, "no flood was held back: {after:?}");
    Ok(flooded)
}

fn flooded(scene: &mut Scene) -> Result<()> {
    let node = &scene.nodes.one;
    let lines = ["tenant create red", "network create -t red -s 10.1.1.0/24 -g 10.1.1.254 front"];
    configure(node, &lines)?;
    let red = |name| {
        let spec = ContainerSpec { name, tenant: "red", network: "front", group: None, args: "" };
        Container::attach(node, &spec)
    };
    let (client, server) = (red("rc")?, red("rs")?);
    reach_soon(&client, server.address())?;
    let listener = server.namespace().run(|| UdpSocket::bind((server.address(), PORT)))??;
    let asker = client.namespace().run(|| UdpSocket::bind((client.address(), 0)))??;
    asker.connect((server.address(), PORT))?;
    for socket in [&listener, &asker] {
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    }
    let quiet = talk(&asker, &listener, TALK)?;
    ensure!(quiet.lost == 0, "{} lost without a flood", quiet.lost);
    // A machine that takes the engine's core away for longer than the rings last gets another chance.
    let beside = (0..3).map(|_| beside_a_flood(scene, &asker, &listener));
    let mut lost = Vec::new();
    for flooded in beside {
        let Talk { p99, lost: count } = flooded?;
        eprintln!(
            "p99 {:?} alone, {p99:?} beside a flood, which cost {count} of {TALK}",
            quiet.p99
        );
        lost.push(count);
        if count == 0 {
            break;
        }
    }
    ensure!(lost.last() == Some(&0), "each time some of {TALK} were lost: {lost:?}");
    client.detach(node)?;
    server.detach(node)?;
    configure(node, &["network rm -t red front", "tenant rm red"])
}
