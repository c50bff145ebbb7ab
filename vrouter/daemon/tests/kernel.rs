//! The daemon against the running kernel: nodes and containers are network namespaces, clients
//! speak `datapath.v1`. The tests need root; without it they show as ignored, with the reason as
//! their kind.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking and report times"
)]

mod cycles;
mod explain;
mod faults;
mod node;
mod offload;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use datapath_api::v1;
use flowtable::entry::{Entry, EntryKey, NextHop, Op, TunnelEntry, VtepEntry};
use flowtable::ids::Vni;
use flowtable::text::FlowSpec;
use libtest_mimic::{Arguments, Failed, Trial};
use netdev::packet::PacketSocket;
use nix::sys::signal::Signal;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use node::{
    Container, Engine, LIMIT, Namespace, bd, config_file, failing, network, new_run_dir, until, vrf,
};

type Test = fn();

fn main() {
    // Where nothing may be skipped, a test that can't run is to fail.
    let all = std::env::var_os("WEIR_REQUIRE_ALL").is_some_and(|value| value != "0");
    let runs = all || nix::unistd::geteuid().is_root();
    let tests: [(&str, Test); 23] = [
        ("containers_of_a_network_reach_each_other", containers_of_a_network_reach_each_other),
        ("bulk_transfer_keeps_the_containers_offloads", bulk_transfer_keeps_offloads),
        ("every_packet_of_a_flood_is_accounted_for", every_packet_of_a_flood_is_accounted_for),
        ("nodes_reach_each_other_over_vxlan", nodes_reach_each_other_over_vxlan),
        ("nodes_reach_each_other_over_shared_uplinks", nodes_reach_each_other_over_shared_uplinks),
        ("killed_engine_is_replaced", killed_engine_is_replaced),
        ("terminated_engine_leaves_nothing", terminated_engine_leaves_nothing),
        ("port_of_a_deleted_device_is_fenced", port_of_a_deleted_device_is_fenced),
        ("wrong_requests_are_refused", wrong_requests_are_refused),
        ("samples_reach_the_collector", samples_reach_the_collector),
        ("health_and_reflection_are_served", health_and_reflection_are_served),
        (
            "frames_for_a_full_queue_are_counted_once",
            faults::frames_for_a_full_queue_are_counted_once,
        ),
        ("trunk_is_no_port", faults::trunk_is_no_port),
        ("engine_without_its_trunk_ends", faults::engine_without_its_trunk_ends),
        ("removed_program_is_put_back", faults::removed_program_is_put_back),
        (
            "one_refused_route_does_not_stop_the_others",
            faults::one_refused_route_does_not_stop_the_others,
        ),
        ("drops_of_a_removed_uplink_stay_counted", faults::drops_of_a_removed_uplink_stay_counted),
        (
            "uplink_without_packet_buffers_is_refused",
            faults::uplink_without_packet_buffers_is_refused,
        ),
        (
            "what_is_wrong_with_an_uplink_is_said_and_nothing_removed",
            faults::what_is_wrong_with_an_uplink_is_said_and_nothing_removed,
        ),
        ("flooding_container_gets_its_limit", faults::flooding_container_gets_its_limit),
        (
            "denied_packet_is_in_the_drop_log_at_once",
            explain::denied_packet_is_in_the_drop_log_at_once,
        ),
        (
            "live_trace_says_what_became_of_a_real_packet",
            explain::live_trace_says_what_became_of_a_real_packet,
        ),
        (
            "open_connections_are_listed_with_their_state",
            explain::open_connections_are_listed_with_their_state,
        ),
    ];
    let trials =
        tests.into_iter().chain(cycles::TESTS).chain(offload::TESTS).map(|(name, test)| {
            let trial = Trial::test(name, move || caught(test));
            if runs { trial } else { trial.with_kind("needs root").with_ignored_flag(true) }
        });
    let mut arguments = Arguments::from_args();
    // The times that tests wait are theirs alone.
    arguments.test_threads.get_or_insert(1);
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn caught(test: Test) -> Result<(), Failed> {
    std::thread::spawn(test).join().map_err(|cause| match cause.downcast_ref::<String>() {
        Some(text) => Failed::from(text),
        None => Failed::from("the test panicked; see above"),
    })
}

/// One node with two containers, their ports and tables.
struct Pair {
    engine: Engine,
    node: Namespace,
    a: Container,
    b: Container,
}

impl Pair {
    fn new(flags: &[&str]) -> Self {
        Self::within(&[], flags)
    }

    /// With an engine that is started by a command whose first words are `prefix`.
    fn within(prefix: &[&str], flags: &[&str]) -> Self {
        let node = Namespace::new();
        node.must("ip link set lo up");
        let (a, b) = (Container::new(&node, 5), Container::new(&node, 6));
        let engine = Engine::start_within(prefix, &node, flags);
        eprintln!("exec to first answer: {:?}", engine.start_time);
        let pair = Self { engine, node, a, b };
        pair.program();
        pair
    }

    /// Everything that an engine with empty tables needs.
    fn program(&self) {
        let mut ops = vec![Op::Clear, network()];
        for container in [&self.a, &self.b] {
            self.engine.add_container(&self.node, container);
            ops.extend(container.local());
        }
        self.engine.write(&ops);
    }
}

fn containers_of_a_network_reach_each_other() {
    let pair = Pair::new(&[]);
    assert!(pair.a.pings(&pair.b));
    assert!(pair.b.pings(&pair.a));
    assert!(pair.a.namespace.succeeds("ping -c 1 -W 1 10.1.1.254"));
    assert!(!pair.a.namespace.succeeds("ping -c 1 -W 1 10.1.1.77"));
    assert!(pair.engine.drops("arp-unknown") > 0);
    // The host has no part in it.
    assert!(!pair.node.succeeds("ping -c 1 -W 1 10.1.1.5"));
    let ports = pair.engine.ports();
    let a = ports.iter().find(|p| p.id == 5).unwrap();
    assert_eq!((a.name.as_str(), a.tag, a.vrf, a.bd), ("wrh5", 5, 1, 1));
    assert!(a.rx_packets >= 7 && a.tx_packets >= 7, "{a:?}");
    let listed = |kind: v1::ListKind, filter: &str| {
        let request =
            v1::ListRequest { kind: kind.into(), filter: filter.into(), ..Default::default() };
        pair.engine.call(|mut c| async move { c.list(request).await })
    };
    assert_eq!(listed(v1::ListKind::Entries, "").entries.len(), 7);
    let flows = listed(v1::ListKind::Flows, "in_port=wrh5,icmp").flows;
    assert!(flows.iter().any(|f| f.actions == "output:6" && f.packets >= 3), "{flows:?}");
    let request = v1::TraceRequest {
        packet: Some(v1::trace_request::Packet::Flow(
            "in_port=wrh5,eth_src=02:00:0a:01:01:05,eth_dst=02:00:0a:01:01:06,\
             tcp,nw_src=10.1.1.5,nw_dst=10.1.1.6,tp_dst=80"
                .into(),
        )),
        in_port: String::new(),
    };
    let trace = pair.engine.call(|mut c| async move { c.trace(request).await });
    assert_eq!((trace.verdict.as_str(), trace.out_ports), ("forward", vec![6]));
    // A spoofed source is the engine's to drop, and to count.
    pair.a.namespace.must("ip addr add 10.1.1.66/24 dev eth0");
    pair.a.namespace.succeeds("ping -c 1 -W 1 -I 10.1.1.66 10.1.1.6");
    until("a spoofed packet", || pair.engine.drops("spoofed-ip") > 0);
}

/// Sends `bytes` over one connection; returns how long that took.
/// Ends a thread that looks at the flag, however the scope ends.
struct Stopped<'a>(&'a AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn transfer(from: &Container, to: &Container, bytes: usize) -> Duration {
    let address = (to.ip(), 7000);
    let listener = to.namespace.inside(|| TcpListener::bind(address).unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = from.namespace.inside(|| TcpStream::connect(address).unwrap());
            stream.set_write_timeout(Some(LIMIT)).unwrap();
            stream.write_all(&vec![7; bytes]).unwrap();
        });
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let (start, mut received) = (Instant::now(), Vec::with_capacity(bytes));
        stream.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), bytes);
        start.elapsed()
    })
}

fn bulk_transfer_keeps_offloads() {
    let pair = Pair::new(&[]);
    let features = pair.a.namespace.must("ethtool -k eth0");
    assert!(features.contains("\ntcp-segmentation-offload: on"), "{features}");
    let took = transfer(&pair.a, &pair.b, 20_000_000);
    eprintln!("20 MB in {took:?}");
    assert_eq!(pair.engine.drops("malformed"), 0);
    assert_eq!(pair.engine.drops("too-big"), 0);
}

fn every_packet_of_a_flood_is_accounted_for() {
    const SENT: u64 = 300_000;
    let pair = Pair::new(&[]);
    assert!(pair.a.pings(&pair.b));
    let spec = "eth_src=02:00:0a:01:01:05,eth_dst=02:00:0a:01:01:06,\
                udp,nw_src=10.1.1.5,nw_dst=10.1.1.6,tp_src=9,tp_dst=9";
    let frame = spec.parse::<FlowSpec>().unwrap().frame().unwrap();
    let port = |id: u32| pair.engine.ports().into_iter().find(|p| p.id == id).unwrap();
    let counted = || {
        let limited = pair.engine.drops("rate-limit");
        (port(5).rx_packets + limited + pair.engine.drops("tx-full"), port(6).tx_packets)
    };
    let (received, delivered) = counted();
    pair.a.namespace.inside(|| {
        let socket = PacketSocket::open("eth0").unwrap();
        (0..SENT).for_each(|_| socket.send(&frame).unwrap());
    });
    until("every packet", || counted().0 - received >= SENT);
    let (received, delivered) = (counted().0 - received, counted().1 - delivered);
    eprintln!("{delivered} of {SENT} delivered, {} tx-full", pair.engine.drops("tx-full"));
    // The containers' kernels may have said something of their own meanwhile.
    assert!((SENT..SENT + 10).contains(&received), "{received} accounted for");
    assert!(delivered > SENT / 10, "{delivered} delivered");
}

/// A node with an uplink `up0` of 192.0.2.`n` and one container.
struct Node {
    engine: Engine,
    container: Container,
    n: u8,
    namespace: Namespace,
}

impl Node {
    fn address(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    fn new(namespace: Namespace, n: u8) -> Self {
        Self::with_uplink(namespace, n, v1::UplinkMode::Dedicated)
    }

    fn with_uplink(namespace: Namespace, n: u8, mode: v1::UplinkMode) -> Self {
        namespace.must(&format!("ip addr add 192.0.2.{n}/24 dev up0"));
        namespace.must("ip link set up0 up");
        let container = Container::new(&namespace, n + 10);
        let engine = Engine::start(&namespace, &[]);
        engine.add_container(&namespace, &container);
        let vtep = vec![vec![192, 0, 2, n]];
        engine.add_port(v1::AddPortRequest {
            port: 1,
            name: "up0".into(),
            kind: v1::PortKind::Uplink.into(),
            uplink_mode: mode.into(),
            vtep,
            ..Default::default()
        });
        Self { engine, container, n, namespace }
    }

    fn program(&self, other: &Self) {
        let (vtep, vni) = (Self::address(other.n), Vni::new(4097).unwrap());
        let mut ops = vec![Op::Clear, network()];
        ops.extend(self.container.local());
        ops.extend(other.container.known_at(NextHop::Tunnel { vtep, vni }));
        ops.push(Op::Put(Entry::Tunnel(TunnelEntry { vni, bd: bd(), vrf: vrf() })));
        let local = Self::address(self.n);
        ops.push(Op::Put(Entry::Vtep(VtepEntry { ip: vtep, local })));
        self.engine.write(&ops);
    }

    fn next_hops(&self) -> usize {
        let kind = v1::ListKind::Entries.into();
        let request = v1::ListRequest { kind, ..Default::default() };
        let entries = self.engine.call(|mut c| async move { c.list(request).await }).entries;
        entries.iter().filter(|e| e.table == "underlay").count()
    }
}

fn nodes_reach_each_other_over_vxlan() {
    let (left, right) = (Namespace::new(), Namespace::new());
    let pid = right.pid();
    left.must(&format!("ip link add up0 type veth peer name up0 netns {pid}"));
    let (left, right) = (Node::new(left, 1), Node::new(right, 2));
    left.program(&right);
    right.program(&left);
    let start = Instant::now();
    until("next hops", || left.next_hops() == 1 && right.next_hops() == 1);
    eprintln!("next hops after {:?}", start.elapsed());
    assert!(left.container.pings(&right.container));
    assert!(right.container.pings(&left.container));
    let took = transfer(&left.container, &right.container, 20_000_000);
    eprintln!("20 MB over VXLAN in {took:?}");
    // What is not Weir's stays the host's.
    assert!(left.namespace.succeeds("ping -c 1 -W 1 192.0.2.2"));
    // A full replacement keeps the way to the other node.
    left.program(&right);
    assert_eq!(left.next_hops(), 1);
    assert!(left.container.pings(&right.container));
    left.engine.write(&[Op::Delete(EntryKey::Vtep(Node::address(2)))]);
    assert_eq!(left.next_hops(), 0);
    assert!(!left.container.namespace.succeeds("ping -c 1 -W 1 10.1.1.12"));
    assert!(left.engine.drops("unknown-vtep") > 0);
    left.program(&right);
    until("the next hop again", || left.next_hops() == 1);
    // Without the port the host has its device back, and the socket is free for another one.
    let remove = v1::RemovePortRequest { port: 1, more: Vec::new() };
    left.engine.call(|mut c| async move { c.remove_port(remove).await });
    assert!(!left.namespace.must("ip -d link show up0").contains("xdp"));
    left.engine.add_port(v1::AddPortRequest {
        port: 1,
        name: "up0".into(),
        kind: v1::PortKind::Uplink.into(),
        vtep: vec![vec![192, 0, 2, 1]],
        ..Default::default()
    });
    until("the way over the new socket", || left.container.pings(&right.container));
}

fn nodes_reach_each_other_over_shared_uplinks() {
    let (left, right) = (Namespace::new(), Namespace::new());
    let pid = right.pid();
    left.must(&format!("ip link add up0 type veth peer name up0 netns {pid}"));
    let mode = v1::UplinkMode::Shared;
    let (left, right) = (Node::with_uplink(left, 1, mode), Node::with_uplink(right, 2, mode));
    left.program(&right);
    right.program(&left);
    until("next hops", || left.next_hops() == 1 && right.next_hops() == 1);
    assert!(left.container.pings(&right.container));
    let took = transfer(&left.container, &right.container, 20_000_000);
    eprintln!("20 MB over VXLAN and the trunks in {took:?}");
    assert_eq!(left.engine.drops("malformed") + right.engine.drops("malformed"), 0);
    let port = left.engine.ports().into_iter().find(|p| p.id == 1).unwrap();
    assert_eq!((port.name.as_str(), port.tag), ("up0", 1));
    assert!(port.rx_packets > 100 && port.tx_packets > 10_000, "{port:?}");
    // Nothing of the device has changed, and TCP of the host itself has all its offloads.
    assert!(!left.namespace.must("ip -d link show up0").contains("xdp"));
    let features = left.namespace.must("ethtool -k up0");
    assert!(features.contains("\ntcp-segmentation-offload: on"), "{features}");
    assert!(left.namespace.succeeds("ping -c 1 -W 1 192.0.2.2"));
    let remove = v1::RemovePortRequest { port: 1, ..Default::default() };
    left.engine.call(|mut c| async move { c.remove_port(remove).await });
    assert!(!left.namespace.must("tc filter show dev up0 ingress").contains("from_uplink"));
    assert!(left.namespace.succeeds("ping -c 1 -W 1 192.0.2.2"));
    assert!(!left.container.namespace.succeeds("ping -c 1 -W 1 10.1.1.12"));
}

fn killed_engine_is_replaced() {
    let mut pair = Pair::new(&[]);
    let run_dir = pair.engine.run_dir.clone();
    assert!(pair.a.pings(&pair.b));
    for _ in 0..3 {
        pair.engine.end(Signal::SIGKILL);
        let killed = Instant::now();
        assert!(!pair.a.namespace.succeeds("ping -c 1 -W 0.01 10.1.1.6"));
        let again = Engine::start_in(&pair.node, run_dir.clone(), &[]);
        // The old one's drop removes the directory it shares with the new one.
        std::mem::forget(std::mem::replace(&mut pair.engine, again));
        pair.program();
        eprintln!(
            "exec to first answer {:?}, killed to programmed {:?}",
            pair.engine.start_time,
            killed.elapsed()
        );
        assert!(pair.a.pings(&pair.b));
    }
}

fn terminated_engine_leaves_nothing() {
    let mut pair = Pair::new(&[]);
    let socket = pair.engine.run_dir.join("vrouterd.sock");
    assert!(pair.node.must("ip link").contains("wr-t0.0"));
    let other = new_run_dir();
    let (code, said) = failing(&pair.node, &other, &[]);
    assert_eq!(code, 2);
    assert!(said.contains("another vrouterd runs in this network namespace"), "{said}");
    assert_eq!(pair.engine.end(Signal::SIGTERM), Some(0));
    assert!(!socket.exists());
    assert!(!pair.node.must("ip link").contains("wr-t"));
    let (code, said) = failing(&pair.node, &other, &["--cpus", "0,0"]);
    assert_eq!(code, 1);
    assert!(said.contains("CPU 0 is named twice"), "{said}");
    let (code, said) = failing(&pair.node, &other, &["--cpus", "0,1000"]);
    assert_eq!(code, 2);
    assert!(said.contains("--cpus 1000"), "{said}");
    assert!(!pair.node.must("ip link").contains("wr-t"));
    let (code, said) = failing(&pair.node, &other, &["--check"]);
    assert_eq!((code, said.as_str()), (0, ""));
    std::fs::remove_dir_all(other).unwrap();
}

fn port_of_a_deleted_device_is_fenced() {
    let pair = Pair::new(&[]);
    let mut events = pair.engine.block_on(async {
        pair.engine.client().events(v1::EventsRequest {}).await.unwrap().into_inner()
    });
    let mut next = || {
        let next = async { tokio::time::timeout(LIMIT, events.message()).await };
        pair.engine.block_on(next).unwrap().unwrap().unwrap()
    };
    assert_eq!(next().kind(), v1::event::Kind::Ready);
    pair.node.must("ip link del wrh6");
    let gone = next();
    assert_eq!((gone.kind(), gone.port), (v1::event::Kind::PortGone, 6));
    assert_eq!(pair.engine.ports().iter().map(|p| p.id).collect::<Vec<_>>(), [5]);
    assert!(!pair.a.pings(&pair.b));
    let b = Container::new(&pair.node, 6);
    pair.engine.add_container(&pair.node, &b);
    pair.engine.write(&b.local());
    assert!(pair.a.pings(&b));
}

fn wrong_requests_are_refused() {
    let pair = Pair::new(&[]);
    let add = |port: u32, name: &str, kind: v1::PortKind| {
        let request =
            v1::AddPortRequest { port, name: name.into(), kind: kind.into(), ..Default::default() };
        pair.engine.refusal(|mut c| async move { c.add_port(request).await })
    };
    let container = v1::PortKind::Container;
    assert_eq!(add(9, "absent", container).code(), tonic::Code::NotFound);
    assert_eq!(add(9, "lo", container).code(), tonic::Code::FailedPrecondition);
    assert_eq!(add(9, "wrh5", container).code(), tonic::Code::AlreadyExists);
    assert_eq!(add(5, "wrh6", container).code(), tonic::Code::AlreadyExists);
    assert_eq!(add(5, "wrh5", v1::PortKind::Uplink).code(), tonic::Code::AlreadyExists);
    assert_eq!(add(0, "wrh5", container).code(), tonic::Code::InvalidArgument);
    let lo = add(9, "lo", v1::PortKind::Uplink);
    assert!(lo.message().contains("lo has no native XDP"), "{}", lo.message());
    // What is there already is no mistake, and neither is removing what is not.
    pair.engine.add_container(&pair.node, &pair.a);
    let remove = v1::RemovePortRequest { port: 4000, more: Vec::new() };
    pair.engine.call(|mut c| async move { c.remove_port(remove).await });
    let unspecified = v1::ListRequest::default();
    let refused = pair.engine.refusal(|mut c| async move { c.list(unspecified).await });
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let unknown = v1::TraceRequest { packet: None, in_port: "wrh5".into() };
    let refused = pair.engine.refusal(|mut c| async move { c.trace(unknown).await });
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(pair.a.pings(&pair.b));
    let half_wrong = v1::RemovePortRequest { port: 6, more: vec![5, 5000] };
    let refused = pair.engine.refusal(|mut c| async move { c.remove_port(half_wrong).await });
    assert!(refused.message().starts_with("more: "), "{}", refused.message());
    assert!(pair.a.pings(&pair.b));
    let both = v1::RemovePortRequest { port: 6, more: vec![5, 4000] };
    pair.engine.call(|mut c| async move { c.remove_port(both).await });
    assert!(!pair.a.pings(&pair.b));
    assert!(pair.engine.ports().is_empty());
}

/// Counts flow and counter samples of a datagram, after a look at its header.
fn samples_in(datagram: &[u8]) -> (u32, u32) {
    let word = |at: usize| u32::from_be_bytes(datagram[at..at + 4].try_into().unwrap());
    // Version 5, agent 127.0.0.1; then sub-agent, sequence, uptime and the number of samples.
    assert_eq!((word(0), word(4), word(8)), (5, 1, 0x7f00_0001));
    let (mut at, mut flows, mut counters) = (28, 0, 0);
    for _ in 0..word(24) {
        match word(at) {
            1 => flows += 1,
            2 => counters += 1,
            other => panic!("sample of format {other}"),
        }
        at += 8 + word(at + 4) as usize;
    }
    assert_eq!(at, datagram.len());
    (flows, counters)
}

fn samples_reach_the_collector() {
    let pair = Pair::new(&[]);
    let collector = pair.node.inside(|| UdpSocket::bind("127.0.0.1:6343").unwrap());
    collector.set_read_timeout(Some(LIMIT)).unwrap();
    let reload = |text: &str| {
        std::fs::write(config_file(&pair.engine.run_dir), text).unwrap();
        pair.engine.signal(Signal::SIGHUP);
    };
    reload("sflow-collector = \"127.0.0.1:6343\"\nsflow-rate = 1\nsflow-polling = 1\n");
    let (mut flows, mut counters) = (0, 0);
    let start = Instant::now();
    while flows == 0 || counters == 0 {
        assert!(start.elapsed() < LIMIT, "{flows} flow and {counters} counter samples");
        assert!(pair.a.pings(&pair.b));
        let mut datagram = [0; 2048];
        let len = collector.recv(&mut datagram).unwrap();
        let (more_flows, more_counters) = samples_in(&datagram[..len]);
        (flows, counters) = (flows + more_flows, counters + more_counters);
    }
    // The same again is no new session: numbers go on.
    let number = || {
        let mut datagram = [0; 2048];
        collector.recv(&mut datagram).unwrap();
        u32::from_be_bytes(datagram[16..20].try_into().unwrap())
    };
    let before = number();
    reload("sflow-collector = \"127.0.0.1:6343\"\nsflow-rate = 1\nsflow-polling = 1\n");
    assert_eq!([number(), number()], [before + 1, before + 2]);
    // A wrong file changes nothing.
    reload("sflow-collector = 7\n");
    for _ in 0..3 {
        collector.recv(&mut [0; 2048]).unwrap();
    }
    reload("");
    collector.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    until("the end of samples", || collector.recv(&mut [0; 2048]).is_err());
}

fn health_and_reflection_are_served() {
    let pair = Pair::new(&[]);
    let channel = pair.engine.channel();
    let service = "datapath.v1.Datapath".to_owned();
    let request = HealthCheckRequest { service: service.clone() };
    let health = pair.engine.block_on(async {
        HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner()
    });
    assert_eq!(health.status(), ServingStatus::Serving);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let listed = pair.engine.block_on(async {
        let mut client = ServerReflectionClient::new(channel);
        let answers = client.server_reflection_info(tokio_stream::once(request)).await;
        answers.unwrap().into_inner().message().await.unwrap().unwrap()
    });
    let Some(MessageResponse::ListServicesResponse(services)) = listed.message_response else {
        panic!("{listed:?}")
    };
    assert!(services.service.iter().any(|s| s.name == service), "{services:?}");
}
