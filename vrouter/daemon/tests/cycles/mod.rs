//! Ports that come and go: what stays behind, and what the others notice.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use datapath_api::v1;
use flowtable::entry::{EntryKey, Op};
use nix::sys::signal::Signal;

use crate::node::{Container, Engine, LIMIT, Namespace, network, until};
use crate::{Pair, Test};

pub(crate) const TESTS: [(&str, Test); 6] = [
    (
        "ports_that_come_and_go_leave_nothing_and_disturb_nobody",
        ports_that_come_and_go_leave_nothing_and_disturb_nobody,
    ),
    (
        "a_namespace_deleted_under_traffic_costs_the_others_nothing",
        a_namespace_deleted_under_traffic_costs_the_others_nothing,
    ),
    ("a_renamed_device_stays_its_port", a_renamed_device_stays_its_port),
    (
        "a_changed_number_of_queues_loses_no_buffer_and_no_port",
        a_changed_number_of_queues_loses_no_buffer_and_no_port,
    ),
    (
        "dp_2_idle_containers_cost_the_busy_ones_nothing",
        dp_2_idle_containers_cost_the_busy_ones_nothing,
    ),
    (
        "upl_2_an_uplink_that_nobody_confirms_is_given_back",
        uplink_that_nobody_confirms_is_given_back,
    ),
];

/// So many containers come and go for an uplink that does.
const CONTAINERS_PER_UPLINK: usize = 10;

fn count() -> usize {
    if std::env::var_os("WEIR_SOAK").is_some() { 1000 } else { 50 }
}

/// What a leak would grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// Sockets, maps, programs and links among them.
    descriptors: usize,
    /// Buffers that are neither free nor in a ring.
    lost_frames: u32,
    queues: usize,
    resident_kb: u64,
}

impl Held {
    fn of(engine: &Engine) -> Self {
        let reply = engine.call(|mut c| async move { c.workers(v1::WorkersRequest {}).await });
        let worker = &reply.workers[0];
        let in_rings = worker.queues.iter().map(|q| q.receiving_frames + q.sending_frames);
        let process = format!("/proc/{}", engine.pid());
        let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            descriptors: std::fs::read_dir(format!("{process}/fd")).unwrap().count(),
            lost_frames: worker.frames - worker.free_frames - in_rings.sum::<u32>(),
            queues: worker.queues.len(),
            resident_kb: resident.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }

    /// Memory apart, which the allocator keeps some of.
    fn objects(self) -> Self {
        Self { resident_kb: 0, ..self }
    }
}

/// A device that becomes port 9 and goes again, by `RemovePort` or by itself.
fn container_cycle(pair: &Pair, short_lived: &Container, number: usize) {
    let pid = short_lived.namespace.pid();
    let mac = short_lived.mac();
    pair.node.must(&format!("ip link add wrh9 type veth peer name eth9 address {mac} netns {pid}"));
    pair.engine.add_container(&pair.node, short_lived);
    pair.engine.write(&short_lived.local());
    let port = short_lived.port();
    pair.engine.write(&[Op::Delete(EntryKey::Port(port))]);
    if number.is_multiple_of(2) {
        let request = v1::RemovePortRequest { port: port.get().into(), more: Vec::new() };
        pair.engine.call(|mut c| async move { c.remove_port(request).await });
        pair.node.must("ip link del wrh9");
    } else {
        // The device goes under its port's feet.
        pair.node.must("ip link del wrh9");
        until("the port to be fenced", || pair.engine.ports().iter().all(|p| p.id != 9));
    }
}

fn uplink_cycle(pair: &Pair) {
    let request = uplink(0);
    let port = request.port;
    pair.engine.add_port(request);
    let request = v1::RemovePortRequest { port, more: Vec::new() };
    pair.engine.call(|mut c| async move { c.remove_port(request).await });
}

fn uplink(confirm_seconds: u32) -> v1::AddPortRequest {
    v1::AddPortRequest {
        port: 1,
        name: "up0".into(),
        kind: v1::PortKind::Uplink.into(),
        vtep: vec![vec![192, 0, 2, 1]],
        confirm_seconds,
        ..Default::default()
    }
}

/// The node's uplink: one end of a pair, whose other end is in `outside`.
fn add_uplink(node: &Namespace, outside: &Namespace) {
    node.must(&format!("ip link add up0 type veth peer name up1 netns {}", outside.pid()));
    node.must("ip addr add 192.0.2.1/24 dev up0");
    node.must("ip link set up0 up");
    outside.must("ip addr add 192.0.2.2/24 dev up1");
    outside.must("ip link set up1 up");
}

fn ports_that_come_and_go_leave_nothing_and_disturb_nobody() {
    let pair = Pair::new(&[]);
    let outside = Namespace::new();
    add_uplink(&pair.node, &outside);
    let short_lived = Container::apart(9);
    // The first of each kind allocates what is kept.
    container_cycle(&pair, &short_lived, 0);
    container_cycle(&pair, &short_lived, 1);
    uplink_cycle(&pair);
    assert!(pair.a.pings(&pair.b));
    let settled = || Held::of(&pair.engine);
    let before = settled();
    assert_eq!(before.lost_frames, 0);
    let talk = chatter(&pair.a, &pair.b);
    let cycles = count();
    for number in 0..cycles {
        container_cycle(&pair, &short_lived, number);
        if number % CONTAINERS_PER_UPLINK == 0 {
            uplink_cycle(&pair);
        }
    }
    let said = end(talk);
    assert_answered(&said);
    until("all buffers and descriptors to be back", || settled().objects() == before.objects());
    let after = settled();
    eprintln!("{cycles} cycles: {before:?}, then {after:?}; {}", said.trim().replace('\n', " "));
    // A page a cycle would be a leak.
    let grown = after.resident_kb.saturating_sub(before.resident_kb);
    assert!(grown < 2048 + cycles as u64, "{grown} KB more after {cycles} cycles");
    assert_eq!(pair.engine.ports().iter().map(|p| p.id).collect::<Vec<_>>(), [5, 6]);
}

fn uplink_that_nobody_confirms_is_given_back() {
    let node = Namespace::new();
    node.must("ip link set lo up");
    let outside = Namespace::new();
    add_uplink(&node, &outside);
    let engine = Engine::start(&node, &[]);
    engine.write(&[Op::Clear, network()]);
    let mut events = engine.block_on(async {
        engine.client().events(v1::EventsRequest {}).await.unwrap().into_inner()
    });
    let mut next = || {
        let next = async { tokio::time::timeout(LIMIT, events.message()).await };
        engine.block_on(next).unwrap().unwrap().unwrap()
    };
    assert_eq!(next().kind(), v1::event::Kind::Ready);
    let refused = engine
        .refusal(|mut c| async move { c.confirm_port(v1::ConfirmPortRequest { port: 1 }).await });
    assert_eq!(refused.code(), tonic::Code::NotFound);

    let taken = Instant::now();
    engine.add_port(uplink(2));
    let has_program = || node.must("ip link show up0").contains("prog/xdp");
    assert!(has_program());
    let gone = next();
    assert_eq!((gone.kind(), gone.port), (v1::event::Kind::PortGone, 1));
    let waited = taken.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(5)).contains(&waited), "{waited:?}");
    assert!(engine.ports().is_empty());
    until("the program to be gone", || !has_program());

    engine.add_port(uplink(1));
    let request = v1::ConfirmPortRequest { port: 1 };
    engine.call(|mut c| async move { c.confirm_port(request).await });
    // Longer than its time: nothing else is told.
    let more = engine
        .block_on(async { tokio::time::timeout(Duration::from_secs(3), events.message()).await });
    assert!(more.is_err(), "{more:?}");
    assert!(has_program());
}

/// 500 questions a second.
fn chatter(from: &Container, to: &Container) -> std::process::Child {
    Command::new("nsenter")
        .arg(format!("--net={}", from.namespace.path()))
        .args(["ping", "-q", "-i", "0.002", &to.ip().to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Every question but one that was on its way at the end has its answer.
fn assert_answered(said: &str) {
    let counts = said.lines().find(|line| line.contains(" packets transmitted")).unwrap();
    let counts: Vec<u64> = counts.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [sent, answered] = counts[..] else { panic!("{said}") };
    assert!(answered > 0 && answered + 1 >= sent, "others noticed: {said}");
}

/// Ends it; what it said.
fn end(talk: std::process::Child) -> String {
    let talking = nix::unistd::Pid::from_raw(talk.id().cast_signed());
    nix::sys::signal::kill(talking, Signal::SIGINT).unwrap();
    String::from_utf8(talk.wait_with_output().unwrap().stdout).unwrap()
}

/// The namespace goes with its container's last process, and the device pair with the namespace.
fn a_namespace_deleted_under_traffic_costs_the_others_nothing() {
    const GONE: usize = 5;
    let pair = Pair::new(&[]);
    assert!(pair.a.pings(&pair.b));
    let before = Held::of(&pair.engine).objects();
    let others = chatter(&pair.a, &pair.b);
    let mut last = 0;
    for _ in 0..GONE {
        let killed = Container::new(&pair.node, 9);
        pair.engine.add_container(&pair.node, &killed);
        pair.engine.write(&killed.local());
        assert!(killed.pings(&pair.b));
        let traffic = [chatter(&killed, &pair.a), chatter(&pair.b, &killed)];
        until("traffic", || pair.engine.ports().iter().any(|p| p.id == 9 && p.tx_packets > 100));
        // The kernel hands numbers out in turn: what is late for the last one finds no device.
        let ifindex = pair.engine.ports().iter().find(|p| p.id == 9).unwrap().ifindex;
        assert!(ifindex > last, "device {ifindex} after {last}");
        last = ifindex;
        // Its processes outlive it here, which a real container's don't: they hold the namespace.
        for mut talk in traffic {
            talk.kill().unwrap();
            talk.wait().unwrap();
        }
        drop(killed);
        until("the port to be fenced", || pair.engine.ports().iter().all(|p| p.id != 9));
        pair.engine.write(&[Op::Delete(EntryKey::Port(crate::node::port(9)))]);
    }
    let said = end(others);
    assert_answered(&said);
    until("all buffers to be back", || Held::of(&pair.engine).objects() == before);
}

fn a_renamed_device_stays_its_port() {
    let pair = Pair::new(&[]);
    let outside = Namespace::new();
    add_uplink(&pair.node, &outside);
    pair.engine.add_port(uplink(0));
    assert!(pair.a.pings(&pair.b));
    pair.node.must("ip link set wrh5 down");
    pair.node.must("ip link set wrh5 name renamed5");
    pair.node.must("ip link set renamed5 up");
    until("traffic of the renamed device", || pair.a.pings(&pair.b));
    pair.node.must("ip link set up0 down");
    pair.node.must("ip link set up0 name renamed0");
    pair.node.must("ip link set renamed0 up");
    // What is taken from it can still be changed, by the name that it was added with.
    let request = v1::AddPortRequest { vid: vec![7], ..uplink(0) };
    let ifindex = pair.engine.add_port(request);
    let shown = pair.node.must("ip -o link show renamed0");
    assert!(shown.starts_with(&format!("{ifindex}: ")), "{shown}");
    assert!(shown.contains("xdp"), "{shown}");
    // The host's own traffic, whatever the name.
    until("the host", || pair.node.succeeds("ping -c 1 -W 1 192.0.2.2"));
    let remove = v1::RemovePortRequest { port: 1, ..Default::default() };
    pair.engine.call(|mut c| async move { c.remove_port(remove).await });
    assert!(!pair.node.must("ip -o link show renamed0").contains("xdp"));
}

/// The kernel lets queues be added beside a socket, and taken away again.
fn a_changed_number_of_queues_loses_no_buffer_and_no_port() {
    let node = Namespace::new();
    node.must("ip link set lo up");
    let outside = Namespace::new();
    let pid = outside.pid();
    node.must(&format!("ip link add up0 numrxqueues 2 numtxqueues 2 type veth peer name up1 numrxqueues 2 numtxqueues 2 netns {pid}"));
    node.must("ethtool -L up0 rx 2 tx 2");
    node.must("ip addr add 192.0.2.1/24 dev up0");
    node.must("ip link set up0 up");
    outside.must("ethtool -L up1 rx 1 tx 1");
    outside.must("ip addr add 192.0.2.2/24 dev up1");
    outside.must("ip link set up1 up");
    let engine = Engine::start(&node, &[]);
    let refused = engine.refusal(|mut c| async move { c.add_port(uplink(0)).await });
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("ethtool -L up0 combined 1"), "{}", refused.message());
    assert!(!node.must("ip -o link show up0").contains("xdp"));
    node.must("ethtool -L up0 rx 1 tx 1");
    engine.add_port(uplink(0));
    for queues in [2, 1, 2, 1] {
        node.must(&format!("ethtool -L up0 rx {queues} tx {queues}"));
        until("the host", || node.succeeds("ping -c 1 -W 1 192.0.2.2"));
        assert_eq!(Held::of(&engine).lost_frames, 0);
    }
    assert_eq!(engine.ports().iter().map(|p| p.id).collect::<Vec<_>>(), [1]);
}

/// Processor time of the process so far, in clock ticks of 10 ms.
fn ticks(engine: &Engine) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", engine.pid())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let mut fields = fields.split(' ').skip(11).map(|field| field.parse::<u64>().unwrap());
    fields.next().unwrap() + fields.next().unwrap()
}

/// Idle ports cost no packet anything, and nothing while there are none.
fn dp_2_idle_containers_cost_the_busy_ones_nothing() {
    const SECONDS: u64 = 3;
    const TICK_MS: u64 = 10;
    let idle = if std::env::var_os("WEIR_SOAK").is_some() { 1000 } else { 100 };
    let pair = Pair::new(&[]);
    assert!(pair.a.pings(&pair.b));
    let burden = |what: &str| {
        let before = ticks(&pair.engine);
        std::thread::sleep(Duration::from_secs(SECONDS));
        let resting_ms = (ticks(&pair.engine) - before) * TICK_MS;
        let before = ticks(&pair.engine);
        let said = pair.a.namespace.must("ping -q -f -c 5000 10.1.1.6");
        let busy_ns = (ticks(&pair.engine) - before) * TICK_MS * 1_000_000 / 10_000;
        let rtt = said.lines().find(|line| line.starts_with("rtt")).unwrap_or_default();
        eprintln!(
            "{what}: {resting_ms} ms of CPU in {SECONDS} s at rest, {busy_ns} ns a packet; {rtt}"
        );
        (resting_ms, busy_ns)
    };
    let (base_ms, alone) = burden("two containers");
    let crowd = Namespace::new();
    for n in 0..idle {
        let name = format!("idle{n}");
        let pid = crowd.pid();
        pair.node.must(&format!("ip link add {name} type veth peer name eth{n} netns {pid}"));
        let kind = v1::PortKind::Container.into();
        pair.engine.add_port(v1::AddPortRequest {
            port: 100 + n,
            name: name.clone(),
            kind,
            ..Default::default()
        });
    }
    // What else the machine does costs caches: it gets more chances, the ports none.
    let mut said = String::new();
    for _ in 0..5 {
        let (resting_ms, busy_ns) = burden(&format!("{idle} idle ones more"));
        let added_ms = resting_ms.saturating_sub(base_ms);
        if added_ms * 100 < SECONDS * 1000 && busy_ns < alone * 3 / 2 {
            return;
        }
        said = format!("{added_ms} ms more at rest; {busy_ns} ns a packet, {alone} without them");
    }
    panic!("{idle} idle ones cost {said}");
}
