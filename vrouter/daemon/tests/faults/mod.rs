//! What others do to a running engine's devices, and what its counters say of an overload.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use datapath_api::v1;
use flowtable::entry::{Entry, EntryKey, Op, VtepEntry};
use flowtable::text::FlowSpec;
use netdev::packet::PacketSocket;
use nix::sys::signal::Signal;

use crate::node::{Container, Engine, Namespace, network, until};
use crate::{Node, Pair};

fn udp(from: &Container, to: &Container) -> Vec<u8> {
    let (n, m) = (from.n, to.n);
    let spec = format!(
        "eth_src={},eth_dst={},udp,nw_src=10.1.1.{n},nw_dst=10.1.1.{m},tp_src=9,tp_dst=9",
        from.mac(),
        to.mac()
    );
    spec.parse::<FlowSpec>().unwrap().frame().unwrap()
}

pub(crate) fn frames_for_a_full_queue_are_counted_once() {
    const SENT: u64 = 6000;
    let pair = Pair::new(&["--port-pps", "0", "--port-mbps", "0"]);
    assert!(pair.a.pings(&pair.b));
    let (frame, engine) = (udp(&pair.a, &pair.b), &pair.engine);
    let received = || engine.ports().into_iter().find(|p| p.id == 5).unwrap().rx_packets;
    let before = received();
    engine.signal(Signal::SIGSTOP);
    pair.a.namespace.inside(|| {
        let socket = PacketSocket::open("eth0").unwrap();
        (0..SENT).for_each(|_| socket.send(&frame).unwrap());
    });
    engine.signal(Signal::SIGCONT);
    until("every frame", || received() - before + engine.drops("tx-full") >= SENT);
    let (received, full) = (received() - before, engine.drops("tx-full"));
    assert!(full > 0 && received < SENT, "{received} received, {full} tx-full");
    assert!((SENT..SENT + 10).contains(&(received + full)), "{received} received, {full} tx-full");
    assert_eq!(engine.drops("too-big"), 0);
}

pub(crate) fn trunk_is_no_port() {
    let pair = Pair::new(&[]);
    for kind in [v1::PortKind::Container, v1::PortKind::Uplink] {
        let request = v1::AddPortRequest {
            port: 9,
            name: "wr-t0.0".into(),
            kind: kind.into(),
            ..Default::default()
        };
        let refused = pair.engine.refusal(|mut c| async move { c.add_port(request).await });
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused:?}");
    }
    assert!(pair.a.pings(&pair.b));
}

pub(crate) fn engine_without_its_trunk_ends() {
    let mut pair = Pair::new(&[]);
    pair.node.must("ip link del wr-t0.0");
    until("the end", || pair.engine.ended());
    assert_eq!(pair.engine.end(Signal::SIGTERM), Some(2));
}

pub(crate) fn removed_program_is_put_back() {
    let pair = Pair::new(&[]);
    assert!(pair.a.pings(&pair.b));
    pair.node.must("tc qdisc del dev wrh5 clsact");
    pair.node.must("tc filter del dev wrh6 ingress");
    let start = Instant::now();
    until("the programs", || pair.a.pings(&pair.b));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    let removed = pair.engine.ports().into_iter().map(|p| p.rx_packets);
    assert!(removed.min() > Some(0));
}

pub(crate) fn one_refused_route_does_not_stop_the_others() {
    let (left, right) = (Namespace::new(), Namespace::new());
    let pid = right.pid();
    left.must(&format!("ip link add up0 type veth peer name up0 netns {pid}"));
    let (left, right) = (Node::new(left, 1), Node::new(right, 2));
    left.namespace.must("ip route add prohibit 192.0.2.0/32");
    left.namespace.must("ip route add blackhole 198.51.100.7/32");
    right.program(&left);
    let vteps = [[192, 0, 2, 0], [198, 51, 100, 7]]
        .map(|ip| Op::Put(Entry::Vtep(VtepEntry { ip: ip.into(), local: Node::address(1) })));
    left.program(&right);
    left.engine.write(&vteps);
    let known = Op::Put(Entry::Vtep(VtepEntry { ip: Node::address(2), local: Node::address(1) }));
    left.engine.write(&[Op::Delete(EntryKey::Vtep(Node::address(2)))]);
    assert_eq!(left.next_hops(), 0);
    left.engine.write(&[known]);
    until("the next hop", || left.next_hops() == 1);
    assert!(left.container.pings(&right.container));
}

pub(crate) fn drops_of_a_removed_uplink_stay_counted() {
    let (left, right) = (Namespace::new(), Namespace::new());
    let pid = right.pid();
    left.must(&format!("ip link add up0 type veth peer name up0 netns {pid}"));
    left.must("ip link set up0 addrgenmode none");
    right.must("ip link set up0 addrgenmode none up");
    let left = Node::new(left, 1);
    let frame = "eth_src=02:00:00:00:00:09,eth_dst=02:00:00:00:00:08,udp,nw_src=192.0.2.2,\
                 nw_dst=192.0.2.1,tp_src=9,tp_dst=4789";
    let frame = frame.parse::<FlowSpec>().unwrap().frame().unwrap();
    left.engine.signal(Signal::SIGSTOP);
    right.inside(|| {
        let socket = PacketSocket::open("up0").unwrap();
        (0..3000).for_each(|_| socket.send(&frame).unwrap());
    });
    left.engine.signal(Signal::SIGCONT);
    let full = left.engine.drops("tx-full");
    assert!(full >= 3000 - 2048 - 512, "{full}");
    let remove = v1::RemovePortRequest { port: 1, more: Vec::new() };
    left.engine.call(|mut c| async move { c.remove_port(remove).await });
    assert_eq!(left.engine.drops("tx-full"), full);
}

pub(crate) fn uplink_without_packet_buffers_is_refused() {
    let node = Namespace::new();
    node.must("ip link set lo up");
    for up in ["up0", "up1"] {
        node.must(&format!("ip link add {up} type veth peer name far-{up}"));
    }
    let engine = Engine::start(&node, &["--frames", "4096"]);
    let uplink = |port: u32, name: &str| v1::AddPortRequest {
        port,
        name: name.into(),
        kind: v1::PortKind::Uplink.into(),
        ..Default::default()
    };
    engine.add_port(uplink(1, "up0"));
    let second = uplink(2, "up1");
    let refused = engine.refusal(|mut c| async move { c.add_port(second).await });
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("--frames 4096"), "{}", refused.message());
    assert!(!node.must("ip -d link show up1").contains("xdp"));
}

pub(crate) fn what_is_wrong_with_an_uplink_is_said_and_nothing_removed() {
    let node = Namespace::new();
    node.must("ip link set lo up");
    node.must("ip link add up0 type veth peer name far0");
    let object = std::env::temp_dir().join(format!("wt-foreign-{}.o", std::process::id()));
    let source = object.with_extension("c");
    let program = "__attribute__((section(\"xdp\"))) int watch(void *frame) { return 2; }";
    std::fs::write(&source, program).unwrap();
    let (from, to) = (source.display(), object.display());
    node.must(&format!("clang -target bpf -O2 -g -c {from} -o {to}"));
    node.must(&format!("ip link set dev up0 xdp obj {to} sec xdp"));
    let programs = || node.must("ip -d link show up0");
    let foreign = programs();
    assert!(foreign.contains("xdp"), "{foreign}");
    let engine = Engine::start(&node, &[]);
    let refused = |name: &str| {
        let name = name.to_owned();
        let kind = v1::PortKind::Uplink.into();
        let request = v1::AddPortRequest { port: 1, name, kind, ..Default::default() };
        let refused = engine.refusal(|mut c| async move { c.add_port(request).await });
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused:?}");
        refused.message().to_owned()
    };
    let said = refused("up0");
    assert!(said.contains("ip link set dev up0 xdp off"), "{said}");
    assert_eq!(programs(), foreign);
    let said = refused("lo");
    assert!(said.contains("the driver of lo has no native XDP"), "{said}");
    // In shared mode it is nobody's way.
    engine.add_port(v1::AddPortRequest {
        port: 1,
        name: "up0".into(),
        kind: v1::PortKind::Uplink.into(),
        uplink_mode: v1::UplinkMode::Shared.into(),
        ..Default::default()
    });
    assert_eq!(programs(), foreign);
    for made in [source, object] {
        std::fs::remove_file(made).unwrap();
    }
}

/// Two pairs of containers: flooder and sink, victim and server.
struct Crowd {
    engine: Engine,
    _node: Namespace,
    containers: [Container; 4],
}

/// What went on for a while.
#[derive(Debug)]
struct Traffic {
    took: Duration,
    sent: u64,
    delivered: u64,
    flood_accepted: u64,
    flood_refused: u64,
}

impl Crowd {
    fn new(flags: &[&str]) -> Self {
        let node = Namespace::new();
        node.must("ip link set lo up");
        let containers = [5, 6, 7, 8].map(|n| Container::new(&node, n));
        let engine = Engine::start(&node, flags);
        let mut ops = vec![Op::Clear, network()];
        for container in &containers {
            engine.add_container(&node, container);
            ops.extend(container.local());
        }
        engine.write(&ops);
        assert!(containers[0].pings(&containers[1]));
        assert!(containers[2].pings(&containers[3]));
        Self { engine, _node: node, containers }
    }

    fn port(&self, id: u32) -> v1::Port {
        self.engine.ports().into_iter().find(|p| p.id == id).unwrap()
    }

    /// Sends from flooder to sink as fast as it goes while `f` runs.
    fn flooded<R>(&self, f: impl FnOnce() -> R) -> R {
        let [flooder, sink, ..] = &self.containers;
        let (frame, stop) = (udp(flooder, sink), AtomicBool::new(false));
        let flood = || {
            let socket = PacketSocket::open("eth0").unwrap();
            while !stop.load(Ordering::Relaxed) {
                socket.send(&frame).unwrap();
            }
        };
        std::thread::scope(|scope| {
            // Also when an assertion fails: the scope waits for the flood.
            let _stopped = crate::Stopped(&stop);
            scope.spawn(|| flooder.namespace.inside(flood));
            until("the flood", || self.engine.drops("rate-limit") > 0);
            f()
        })
    }

    /// 4,000 packets a second from victim to server, for two seconds.
    fn paced(&self) -> Traffic {
        const PER_MILLISECOND: u64 = 4;
        let [_, _, victim, server] = &self.containers;
        let frame = udp(victim, server);
        let before = (self.port(8).tx_packets, self.port(5));
        let (start, mut sent) = (Instant::now(), 0);
        victim.namespace.inside(|| {
            let socket = PacketSocket::open("eth0").unwrap();
            while start.elapsed() < Duration::from_secs(2) {
                let due = start.elapsed().as_millis() as u64 * PER_MILLISECOND;
                (sent..due).for_each(|_| socket.send(&frame).unwrap());
                sent = due;
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let after = (self.port(8).tx_packets, self.port(5));
        Traffic {
            took: start.elapsed(),
            sent,
            delivered: after.0 - before.0,
            flood_accepted: after.1.rx_packets - before.1.rx_packets,
            flood_refused: after.1.drops - before.1.drops,
        }
    }
}

/// The limit is far below what a sender reaches even where it gets little of a CPU: with the default
/// one a slow machine's flood may pass whole.
pub(crate) fn flooding_container_gets_its_limit() {
    const LIMIT_PPS: u64 = 20_000;
    let crowd = Crowd::new(&["--port-pps", "20000"]);
    let traffic = crowd.flooded(|| crowd.paced());
    eprintln!("{traffic:?}");
    let most = LIMIT_PPS * (traffic.took.as_millis() as u64 + 100) / 1000;
    assert!(traffic.flood_accepted < most, "{traffic:?}");
    assert!(traffic.flood_refused > 0, "{traffic:?}");
    assert!(traffic.delivered * 4 > traffic.sent * 3, "{traffic:?}");
}
