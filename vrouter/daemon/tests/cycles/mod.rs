//! Ports that come and go: what stays behind, and what the others notice.

use std::process::{Command, Stdio};
use std::time::Duration;

use datapath_api::v1;
use flowtable::entry::{EntryKey, Op};
use nix::sys::signal::Signal;

use crate::Pair;
use crate::node::{Container, Engine, LIMIT, Namespace, network, until};

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

pub(crate) fn ports_that_come_and_go_leave_nothing_and_disturb_nobody() {
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
    let talk = Command::new("nsenter")
        .arg(format!("--net={}", pair.a.namespace.path()))
        .args(["ping", "-q", "-i", "0.002", "10.1.1.6"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let cycles = count();
    for number in 0..cycles {
        container_cycle(&pair, &short_lived, number);
        if number % CONTAINERS_PER_UPLINK == 0 {
            uplink_cycle(&pair);
        }
    }
    let interrupted = nix::unistd::Pid::from_raw(talk.id().cast_signed());
    nix::sys::signal::kill(interrupted, Signal::SIGINT).unwrap();
    let talk = talk.wait_with_output().unwrap();
    let said = String::from_utf8(talk.stdout).unwrap();
    assert!(said.contains(" 0% packet loss"), "others noticed {cycles} cycles: {said}");
    until("all buffers and descriptors to be back", || settled().objects() == before.objects());
    let after = settled();
    eprintln!("{cycles} cycles: {before:?}, then {after:?}; {}", said.trim().replace('\n', " "));
    // A page a cycle would be a leak.
    let grown = after.resident_kb.saturating_sub(before.resident_kb);
    assert!(grown < 2048 + cycles as u64, "{grown} KB more after {cycles} cycles");
    assert_eq!(pair.engine.ports().iter().map(|p| p.id).collect::<Vec<_>>(), [5, 6]);
}

pub(crate) fn uplink_that_nobody_confirms_is_given_back() {
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

    let taken = std::time::Instant::now();
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
