//! Tests against the running kernel: two containers (network namespaces) on ports of a trunk whose
//! other end is a loop that swaps the two tags, in the place of the engine. They need root; without
//! it they show as ignored, with the reason as their kind.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod flows;
mod raw;
mod uplink;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flowtable::DropReason;
use flowtable::ids::PortId;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, setns, unshare};
use offload::{DropCount, FlowLimits, Limits, Offload, Rate};

use raw::RawSocket;

const LIMIT: Duration = Duration::from_secs(10);
const PORT_A: u16 = 7;
const PORT_B: u16 = 4094;

type Test = fn();

fn main() {
    // Where nothing may be skipped, a test that can't run is to fail.
    let all = std::env::var_os("WEIR_REQUIRE_ALL").is_some_and(|value| value != "0");
    let runs = all || nix::unistd::geteuid().is_root();
    let tests: [(&str, Test); 22] = [
        ("containers_reach_each_other_through_the_trunk", containers_reach_each_other),
        ("segments_of_large_packets_are_counted", segments_of_large_packets_are_counted),
        ("tags_of_containers_are_dropped", tags_of_containers_are_dropped),
        ("ports_are_policed_apart", ports_are_policed_apart),
        ("openings_have_a_limit_of_their_own", openings_have_a_limit_of_their_own),
        ("detached_port_is_cut_off_and_can_come_back", detached_port_is_cut_off),
        ("next_engine_replaces_the_filters", next_engine_replaces_the_filters),
        (
            "a_shared_uplink_gives_only_what_is_weirs",
            uplink::a_shared_uplink_gives_only_what_is_weirs,
        ),
        ("published_ports_of_an_uplink_are_weirs", uplink::published_ports_of_an_uplink_are_weirs),
        (
            "a_filter_of_somebody_else_on_an_uplink_stays",
            uplink::a_filter_of_somebody_else_on_an_uplink_stays,
        ),
        ("known_flows_are_forwarded_and_counted", flows::known_flows_are_forwarded_and_counted),
        (
            "unusual_packets_of_a_known_flow_are_the_engines",
            flows::unusual_packets_of_a_known_flow_are_the_engines,
        ),
        ("routed_and_marked_packets_are_rewritten", flows::routed_and_marked_packets_are_rewritten),
        ("ipv6_is_forwarded_routed_and_marked_too", flows::ipv6_is_forwarded_routed_and_marked_too),
        (
            "a_stopped_flow_is_the_engines_until_it_is_put_again",
            flows::a_stopped_flow_is_the_engines_until_it_is_put_again,
        ),
        (
            "tables_that_changed_and_a_dead_engine_stop_flows",
            flows::tables_that_changed_and_a_dead_engine_stop_flows,
        ),
        ("flows_end_with_the_lives_of_their_ports", flows::flows_end_with_the_lives_of_their_ports),
        (
            "without_a_table_of_flows_all_packets_are_the_engines",
            flows::without_a_table_of_flows_all_packets_are_the_engines,
        ),
        (
            "a_full_table_refuses_and_forgets_nothing",
            flows::a_full_table_refuses_and_forgets_nothing,
        ),
        ("a_foreign_filter_lets_nothing_past_ours", flows::a_foreign_filter_lets_nothing_past_ours),
        ("sampled_packets_are_told_as_they_came", flows::sampled_packets_are_told_as_they_came),
        (
            "large_packets_are_forwarded_whole_and_counted_in_segments",
            flows::large_packets_are_forwarded_whole_and_counted_in_segments,
        ),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        let trial = Trial::test(name, move || in_namespace(test));
        if runs { trial } else { trial.with_kind("needs root").with_ignored_flag(true) }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Runs on a new thread in a new network namespace, which goes away with it.
fn in_namespace(test: Test) -> Result<(), Failed> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test();
    });
    thread.join().map_err(|cause| match cause.downcast_ref::<String>() {
        Some(text) => Failed::from(text),
        None => Failed::from("the test panicked; see above"),
    })
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let mut command = Command::new(words.next().unwrap());
    let output = command.args(words).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

fn port(id: u16) -> PortId {
    PortId::new(id.into()).unwrap()
}

/// A network namespace, held by a sleeping process.
struct Container {
    holder: Child,
}

impl Container {
    /// Container `n` (1 or 2) with eth0 10.0.0.n, on host end `h<n>` of the calling namespace.
    fn new(n: u8) -> Self {
        let holder = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
        let container = Self { holder };
        let (own, start) =
            (std::fs::read_link("/proc/thread-self/ns/net").unwrap(), Instant::now());
        while std::fs::read_link(container.path()).is_ok_and(|ns| ns == own) {
            assert!(start.elapsed() < LIMIT, "unshare did not run");
        }
        let pid = container.holder.id();
        run(&format!("ip link add h{n} type veth peer name eth0 netns {pid}"));
        run(&format!("ip link set h{n} addrgenmode none arp off up"));
        container.run(&format!("ip addr add 10.0.0.{n}/24 dev eth0"));
        container.run("ip link set eth0 addrgenmode none up");
        container
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    fn mac(&self) -> [u8; 6] {
        let show = format!("nsenter --net={} ip -br link show eth0", self.path());
        let mut words = show.split(' ');
        let shown = Command::new(words.next().unwrap()).args(words).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        let mut bytes = shown
            .split_whitespace()
            .nth(2)
            .unwrap()
            .split(':')
            .map(|b| u8::from_str_radix(b, 16).unwrap());
        std::array::from_fn(|_| bytes.next().unwrap())
    }

    fn run(&self, command: &str) {
        run(&format!("nsenter --net={} {command}", self.path()));
    }

    /// Runs `f` inside, on a thread of its own.
    fn inside<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        let namespace = std::fs::File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                f()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.holder.kill().unwrap();
        self.holder.wait().unwrap();
    }
}

/// Two containers on ports of one trunk.
struct Node {
    offload: Offload,
    a: Container,
    b: Container,
}

impl Node {
    fn new() -> Self {
        Self::with(flows::LIMITS)
    }

    fn with(limits: FlowLimits) -> Self {
        run("ip link add wr-t0.0 mtu 1600 type veth peer name wr-t1.0 mtu 1600");
        run("ethtool -K wr-t0.0 txvlan off tx off gro off");
        for end in ["wr-t0.0", "wr-t1.0"] {
            run(&format!("ip link set {end} addrgenmode none arp off up"));
        }
        let (a, b) = (Container::new(1), Container::new(2));
        let node = Self { offload: Offload::load(limits).unwrap(), a, b };
        node.offload.set_trunk(0, ifindex("wr-t0.0")).unwrap();
        node.offload.attach_trunk(ifindex("wr-t0.0")).unwrap();
        node.attach(Limits::default());
        node
    }

    fn attach(&self, limits: Limits) {
        self.offload.attach_port(ifindex("h1"), port(PORT_A), limits).unwrap();
        self.offload.attach_port(ifindex("h2"), port(PORT_B), limits).unwrap();
    }

    fn drops(&self, id: u16, reason: DropReason) -> u64 {
        let drops = self.offload.port_drops(port(id)).unwrap();
        drops.iter().find(|d| d.reason == reason).unwrap().packets
    }

    fn total(&self, reason: DropReason) -> u64 {
        let drops = self.offload.total_drops().unwrap();
        drops.iter().filter(|d| d.reason == reason).map(|d| d.packets).sum()
    }
}

/// Swaps the two tags of what comes out of the trunk while `f` runs.
fn with_loop<R>(f: impl FnOnce() -> R) -> R {
    let socket = RawSocket::open("wr-t1.0");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| swap_until(&stop, &socket));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    })
}

fn swap_until(stop: &AtomicBool, socket: &RawSocket) {
    while !stop.load(Ordering::Relaxed) {
        if let Some((tag, frame)) = socket.receive() {
            let to = if tag == PORT_A { PORT_B } else { PORT_A };
            socket.send(&tagged(to, &frame));
        }
    }
}

fn tagged(vid: u16, frame: &[u8]) -> Vec<u8> {
    let tag = [[0x81, 0x00], vid.to_be_bytes()].concat();
    [&frame[..12], &tag, &frame[12..]].concat()
}

/// A frame of an experimental `EtherType`.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.resize(len, 0x5a);
    frame
}

fn containers_reach_each_other() {
    let node = Node::new();
    with_loop(|| node.a.run("ping -c 5 -i 0.05 -W 2 10.0.0.2"));
    let (a, b) = (
        node.offload.port_counters(port(PORT_A)).unwrap(),
        node.offload.port_counters(port(PORT_B)).unwrap(),
    );
    // Five echo requests and the ARP of either side.
    assert!(a.rx_packets >= 6 && b.rx_packets >= 6, "{a:?} {b:?}");
    assert!(a.tx_packets >= 6 && b.tx_packets >= 6, "{a:?} {b:?}");
    assert_eq!(a.rx_bytes, b.tx_bytes);
    assert!(a.drops.iter().chain(&b.drops).all(|d| (d.packets, d.bytes) == (0, 0)));
    RawSocket::open("wr-t1.0").send(&tagged(99, &frame(60)));
    RawSocket::open("wr-t1.0").send(&frame(60));
    assert_eq!(node.total(DropReason::PortGone), 2);
}

fn segments_of_large_packets_are_counted() {
    const BYTES: usize = 1_000_000;
    let node = Node::new();
    with_loop(|| {
        let listener = node.b.inside(|| TcpListener::bind("10.0.0.2:7000").unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = node.a.inside(|| TcpStream::connect("10.0.0.2:7000").unwrap());
                stream.write_all(&vec![1; BYTES]).unwrap();
            });
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = Vec::new();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            stream.read_to_end(&mut received).unwrap();
            assert_eq!(received.len(), BYTES);
        });
    });
    let counters = node.offload.port_counters(port(PORT_A)).unwrap();
    assert!(counters.rx_packets >= (BYTES / 1448) as u64, "{counters:?}");
}

fn tags_of_containers_are_dropped() {
    let node = Node::new();
    let socket = node.a.inside(|| RawSocket::open("eth0"));
    for protocol in [[0x81, 0x00], [0x88, 0xa8]] {
        let mut bytes = tagged(PORT_B, &frame(60));
        bytes[12..14].copy_from_slice(&protocol);
        socket.send(&bytes);
    }
    assert_eq!(node.drops(PORT_A, DropReason::ContainerTag), 2);
    assert_eq!(node.total(DropReason::ContainerTag), 2);
    assert_eq!(node.offload.port_counters(port(PORT_A)).unwrap().rx_packets, 0);
}

fn ports_are_policed_apart() {
    let node = Node::new();
    let packets = Rate { per_second: 1, burst: 10 };
    node.attach(Limits { packets, ..Limits::UNLIMITED });
    let socket = node.a.inside(|| RawSocket::open("eth0"));
    for _ in 0..100 {
        socket.send(&frame(60));
    }
    let counters = node.offload.port_counters(port(PORT_A)).unwrap();
    assert_eq!((counters.rx_packets, counters.rx_bytes), (10, 600));
    let limited = DropCount { reason: DropReason::RateLimit, packets: 90, bytes: 5400 };
    assert!(counters.drops.contains(&limited), "{counters:?}");
    node.b.inside(|| RawSocket::open("eth0").send(&frame(60)));
    assert_eq!(node.offload.port_counters(port(PORT_B)).unwrap().rx_packets, 1);

    let bytes = Rate { per_second: 1000, burst: 3000 };
    node.attach(Limits { bytes, ..Limits::UNLIMITED });
    for _ in 0..10 {
        socket.send(&frame(1000));
    }
    assert_eq!(node.offload.port_counters(port(PORT_A)).unwrap().rx_bytes, 3000);
    assert_eq!(node.drops(PORT_A, DropReason::RateLimit), 7);
    assert_eq!(node.total(DropReason::RateLimit), 97);

    node.attach(Limits::UNLIMITED);
    for _ in 0..100 {
        socket.send(&frame(1500));
    }
    assert_eq!(node.offload.port_counters(port(PORT_A)).unwrap().rx_packets, 100);
}

/// A TCP segment with these flags; IPv4 with options, so that its header has to be looked at.
fn segment4(flags: u8, fragment_offset: u8) -> Vec<u8> {
    const L4: usize = 14 + 24;
    let mut bytes = vec![0; 80];
    bytes[12..14].copy_from_slice(&[0x08, 0x00]);
    bytes[14] = 0x46;
    bytes[14 + 7] = fragment_offset;
    bytes[14 + 9] = 6;
    bytes[L4 + 13] = flags;
    bytes
}

fn segment6(flags: u8) -> Vec<u8> {
    const L4: usize = 14 + 40;
    let mut bytes = vec![0; 80];
    bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
    bytes[14] = 0x60;
    bytes[14 + 6] = 6;
    bytes[L4 + 13] = flags;
    bytes
}

fn openings_have_a_limit_of_their_own() {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    const BURST: u64 = 10;
    let node = Node::new();
    let openings = Rate { per_second: 1, burst: BURST };
    node.attach(Limits { openings, ..Limits::UNLIMITED });
    let socket = node.a.inside(|| RawSocket::open("eth0"));
    // Half of the budget by either version of IP, and as much again is refused.
    for _ in 0..BURST {
        socket.send(&segment4(SYN, 0));
        socket.send(&segment6(SYN));
    }
    assert_eq!(node.drops(PORT_A, DropReason::FlowLimit), BURST);
    // What opens nothing goes on: answers, data, later fragments, other protocols.
    let others =
        [segment4(SYN | ACK, 0), segment4(ACK, 0), segment4(SYN, 1), segment6(ACK), frame(60)];
    for other in &others {
        socket.send(other);
    }
    let counters = node.offload.port_counters(port(PORT_A)).unwrap();
    assert_eq!(counters.rx_packets, BURST + others.len() as u64);
    // The neighbour has its own budget.
    node.b.inside(|| RawSocket::open("eth0").send(&segment4(SYN, 0)));
    assert_eq!(node.offload.port_counters(port(PORT_B)).unwrap().rx_packets, 1);
    assert_eq!(node.drops(PORT_A, DropReason::RateLimit), 0);
}

fn detached_port_is_cut_off() {
    let node = Node::new();
    node.offload.detach_ports(&[(ifindex("h1"), port(PORT_A))]).unwrap();
    node.offload.detach_ports(&[(ifindex("h1"), port(PORT_A))]).unwrap();
    let (a, b) = (node.a.inside(|| RawSocket::open("eth0")), RawSocket::open("wr-t1.0"));
    a.send(&frame(60));
    b.send(&tagged(PORT_A, &frame(60)));
    assert_eq!(node.total(DropReason::PortUnbound), 1);
    assert_eq!(node.total(DropReason::PortGone), 1);
    // The id goes to another device: the first one's frames must not count as its.
    node.offload.attach_port(ifindex("h2"), port(PORT_A), Limits::default()).unwrap();
    node.offload.detach_ports(&[(ifindex("h1"), port(PORT_A))]).unwrap();
    a.send(&frame(60));
    node.b.inside(|| RawSocket::open("eth0").send(&frame(60)));
    assert_eq!(node.offload.port_counters(port(PORT_A)).unwrap().rx_packets, 1);
    assert_eq!(node.total(DropReason::PortUnbound), 2);
    node.attach(Limits::default());
    with_loop(|| node.a.run("ping -c 1 -W 2 10.0.0.2"));
}

fn next_engine_replaces_the_filters() {
    let mut node = Node::new();
    let next = Offload::load(flows::LIMITS).unwrap();
    let old = std::mem::replace(&mut node.offload, next);
    node.offload.set_trunk(0, ifindex("wr-t0.0")).unwrap();
    node.offload.attach_trunk(ifindex("wr-t0.0")).unwrap();
    node.attach(Limits::default());
    with_loop(|| node.a.run("ping -c 1 -W 2 10.0.0.2"));
    assert!(node.offload.port_counters(port(PORT_A)).unwrap().rx_packets >= 2);
    assert_eq!(old.port_counters(port(PORT_A)).unwrap().rx_packets, 0);
    drop(old);
    with_loop(|| node.b.run("ping -c 1 -W 2 10.0.0.1"));
    // Without any engine the filters stay, and with them the ports are cut off.
    let socket = node.a.inside(|| RawSocket::open("eth0"));
    let seen = RawSocket::open("wr-t1.0");
    run("ip link set wr-t0.0 down");
    drop(node.offload);
    socket.send(&frame(60));
    assert!(seen.receive().is_none());
    let filters = Command::new("tc").args(["filter", "show", "dev", "h1", "ingress"]).output();
    let filters = String::from_utf8(filters.unwrap().stdout).unwrap();
    assert_eq!(filters.matches("handle 0x1 from_port").count(), 1, "{filters}");
    match TcpStream::connect_timeout(&"10.0.0.2:1".parse().unwrap(), Duration::from_millis(100)) {
        Ok(_) => panic!("the host reaches a container"),
        Err(_unreachable) => (),
    }
}
