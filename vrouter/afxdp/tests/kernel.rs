//! Tests against the running kernel: each in a network namespace of its own, between the two ends
//! of a veth pair. They need root; without it they show as ignored, with the reason as their kind.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use afxdp::{
    AttachError, Flooded, IoError, ProgramKind, QueueError, START_OFFSETS, Umem, UmemError,
    XdpProgram, XskIo, XskQueue,
};
use flowtable::entry::NodePort;
use flowtable::ids::Vid;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};
use packet_io::{Frame, HEADROOM, PacketIo as _, QueueId};

const LEFT: QueueId = QueueId(1);
const RIGHT: QueueId = QueueId(2);
const FRAMES: u32 = 8192;
const LIMIT: Duration = Duration::from_secs(5);

type Test = fn();

fn main() {
    // Where nothing may be skipped, a test that can't run is to fail.
    let all = std::env::var_os("WEIR_REQUIRE_ALL").is_some_and(|value| value != "0");
    let runs = all || nix::unistd::geteuid().is_root();
    let tests: [(&str, Test); 9] = [
        ("frames_arrive_unchanged", frames_arrive_unchanged),
        ("every_start_offset_is_sent_without_moving", every_start_offset_is_sent_without_moving),
        ("other_start_is_moved_and_counted", other_start_is_moved_and_counted),
        ("table_is_built_when_first_needed", table_is_built_when_first_needed),
        (
            "uplink_takes_only_our_vxlan_vlans_and_published_ports",
            uplink_takes_only_our_vxlan_vlans_and_published_ports,
        ),
        ("frames_are_conserved", frames_are_conserved),
        ("detached_queue_gives_its_frames_back", detached_queue_gives_its_frames_back),
        ("wait_ends_by_frame_wake_and_timeout", wait_ends_by_frame_wake_and_timeout),
        ("second_owner_is_refused", second_owner_is_refused),
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
        ip("link set lo up");
        ip("link add a0 type veth peer name b0");
        for end in ["a0", "b0"] {
            // Duplicate address detection and router solicitations would be received too.
            ip(&format!("link set {end} addrgenmode none"));
            ip(&format!("link set {end} up"));
        }
        test();
    });
    thread.join().map_err(|cause| match cause.downcast_ref::<String>() {
        Some(text) => Failed::from(text),
        None => Failed::from("the test panicked; see above"),
    })
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Both ends of the pair in one worker's I/O, the right one behind `kind`.
struct Pair {
    io: XskIo,
    program: XdpProgram,
}

impl Pair {
    fn new(kind: ProgramKind) -> Self {
        let umem = Umem::new(FRAMES).unwrap();
        let program = XdpProgram::attach(kind, "b0").unwrap();
        let left = XskQueue::open(&umem, "a0", 0).unwrap();
        let right = XskQueue::open(&umem, "b0", 0).unwrap();
        program.set_socket(0, right.fd()).unwrap();
        let mut io = XskIo::new(umem).unwrap();
        io.attach(LEFT, left).unwrap();
        io.attach(RIGHT, right).unwrap();
        Self { io, program }
    }

    /// A frame of `bytes` that starts at `offset` from the usual place.
    fn frame(&mut self, offset: i16, bytes: &[u8]) -> Frame {
        let index = self.io.alloc().unwrap().index();
        let start = HEADROOM.checked_add_signed(isize::from(offset)).unwrap();
        let mut frame = Frame::new(index, start, bytes.len()).unwrap();
        self.io.bytes_mut(&mut frame).copy_from_slice(bytes);
        frame
    }

    fn send(&mut self, offset: i16, bytes: &[u8]) {
        let frame = self.frame(offset, bytes);
        self.io.tx(LEFT, frame).unwrap();
        self.io.flush();
    }

    /// Waits for `count` frames on the right and returns their bytes.
    fn receive(&mut self, count: usize) -> Vec<Vec<u8>> {
        let (start, mut frames) = (Instant::now(), Vec::new());
        while frames.len() < count {
            assert!(start.elapsed() < LIMIT, "{} of {count} frames arrived", frames.len());
            self.io.rx(RIGHT, &mut frames, 64);
            self.io.flush();
        }
        let bytes = frames.iter().map(|f| self.io.bytes(f).to_vec()).collect();
        for frame in frames {
            self.io.free(frame);
        }
        bytes
    }

    /// Flushes until all transmitted frames have come back, so that only fill rings hold some.
    fn settle(&mut self, in_rings: usize) {
        let start = Instant::now();
        while self.io.ring_count() != in_rings {
            assert!(start.elapsed() < LIMIT, "{} frames in rings", self.io.ring_count());
            self.io.flush();
        }
    }

    fn assert_conserved(&self) {
        assert_eq!(self.io.free_count() + self.io.ring_count(), FRAMES as usize);
    }
}

/// A broadcast frame of an experimental `EtherType`, filled with a pattern.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.extend((frame.len()..len).map(|i| (i * 7 + seed) as u8));
    frame
}

fn frames_arrive_unchanged() {
    let mut pair = Pair::new(ProgramKind::All);
    let sent = (60..=1514).step_by(97).map(|len| pattern(len, len)).collect::<Vec<_>>();
    for bytes in &sent {
        pair.send(0, bytes);
    }
    assert!(pair.receive(sent.len()) == sent);
    let counters = pair.program.counters().unwrap();
    assert_eq!((counters.redirected, counters.passed), (sent.len() as u64, 0));
    assert_eq!(pair.io.moved_count(), 0);
    for (_, stats) in pair.io.statistics().unwrap() {
        assert_eq!((stats.rx_dropped, stats.rx_ring_full), (0, 0));
        assert_eq!((stats.rx_invalid, stats.tx_invalid), (0, 0));
    }
}

fn every_start_offset_is_sent_without_moving() {
    let mut pair = Pair::new(ProgramKind::All);
    pair.io.umem().prepare().unwrap();
    for offset in START_OFFSETS {
        let bytes = pattern(1300, offset.unsigned_abs().into());
        pair.send(offset, &bytes);
        assert!(pair.receive(1) == [bytes], "offset {offset}");
    }
    assert_eq!(pair.io.moved_count(), 0);
}

fn other_start_is_moved_and_counted() {
    let mut pair = Pair::new(ProgramKind::All);
    for (count, offset) in [-100, 9, 13].into_iter().enumerate() {
        let bytes = pattern(1300, count);
        pair.send(offset, &bytes);
        assert!(pair.receive(1) == [bytes], "offset {offset}");
        assert_eq!(pair.io.moved_count(), count as u64 + 1);
    }
}

fn table_is_built_when_first_needed() {
    let mut pair = Pair::new(ProgramKind::All);
    let (bytes, start) = (pattern(900, 5), Instant::now());
    loop {
        assert!(start.elapsed() < LIMIT, "the table never came");
        let before = pair.io.moved_count();
        pair.send(-46, &bytes);
        assert!(pair.receive(1) == [bytes.as_slice()]);
        if pair.io.moved_count() == before {
            break;
        }
    }
    assert!(pair.io.moved_count() >= 1);
}

const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const VTEP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// UDP over IPv4 with `flags` as the fragment field and `words` of header.
fn udp4(to: Ipv4Addr, port: u16, flags: u16, words: u8) -> Vec<u8> {
    let mut frame = pattern(14, 0)[..12].to_vec();
    frame.extend([8, 0, 0x40 | words, 0, 0, 60, 0, 1]);
    frame.extend(flags.to_be_bytes());
    frame.extend([64, 17, 0, 0, 192, 0, 2, 9]);
    frame.extend(to.octets());
    frame.extend(vec![0; usize::from(words) * 4 - 20]);
    frame.extend([0xc0, 1]);
    frame.extend(port.to_be_bytes());
    frame.resize(80, 0);
    frame
}

fn udp6(to: Ipv6Addr, port: u16) -> Vec<u8> {
    let mut frame = pattern(14, 0)[..12].to_vec();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 26, 17, 64]);
    frame.extend(VTEP6.octets());
    frame.extend(to.octets());
    frame.extend([0xc0, 1]);
    frame.extend(port.to_be_bytes());
    frame.resize(80, 0);
    frame
}

/// The same over TCP.
fn over_tcp(mut frame: Vec<u8>) -> Vec<u8> {
    let at = if frame[12] == 0x08 { 23 } else { 20 };
    frame[at] = 6;
    frame
}

fn tagged(vid: u16) -> Vec<u8> {
    let mut frame = pattern(14, 0)[..12].to_vec();
    frame.extend([0x81, 0]);
    frame.extend((0x2000 | vid).to_be_bytes());
    frame.resize(80, 0x55);
    frame
}

fn uplink_takes_only_our_vxlan_vlans_and_published_ports() {
    let mut pair = Pair::new(ProgramKind::Uplink);
    let other = Ipv4Addr::new(192, 0, 2, 7);
    pair.program.set_vteps(&[IpAddr::V4(other), IpAddr::V6(VTEP6)]).unwrap();
    pair.program.set_vteps(&[IpAddr::V4(VTEP), IpAddr::V6(VTEP6)]).unwrap();
    pair.program.set_vids(&[Vid::new(99).unwrap()], Flooded::Taken).unwrap();
    pair.program.set_vids(&[Vid::new(100).unwrap()], Flooded::Taken).unwrap();
    let node = |address, protocol, port| NodePort { address, protocol, port };
    pair.program.set_published(&[node(IpAddr::V4(VTEP), 6, 81)]).unwrap();
    let published = [node(IpAddr::V4(VTEP), 6, 80), node(IpAddr::V6(VTEP6), 17, 54)];
    pair.program.set_published(&published).unwrap();
    let hosts = [
        udp4(VTEP, 80, 0, 5),
        over_tcp(udp4(VTEP, 81, 0, 5)),
        over_tcp(udp4(other, 80, 0, 5)),
        over_tcp(udp4(VTEP, 80, 0x2000, 5)),
        over_tcp(udp4(VTEP, 80, 0, 6)),
        over_tcp(udp4(VTEP, 4789, 0, 5)),
        over_tcp(udp6(VTEP6, 54)),
        udp4(other, 4789, 0, 5),
        udp4(VTEP, 53, 0, 5),
        udp4(VTEP, 4789, 0x2000, 5),
        udp4(VTEP, 4789, 0x0003, 5),
        udp4(VTEP, 4789, 0, 6),
        udp6(VTEP6, 53),
        udp6(Ipv6Addr::LOCALHOST, 4789),
        tagged(99),
        tagged(101),
        tagged(0),
        pattern(60, 0),
    ];
    let ours = [
        udp4(VTEP, 4789, 0, 5),
        udp4(VTEP, 4789, 0x4000, 5),
        udp6(VTEP6, 4789),
        tagged(100),
        over_tcp(udp4(VTEP, 80, 0, 5)),
        udp6(VTEP6, 54),
    ];
    for frame in hosts.iter().chain(&ours) {
        pair.send(0, frame);
    }
    assert_eq!(pair.receive(ours.len()), ours);
    let counters = pair.program.counters().unwrap();
    assert_eq!((counters.redirected, counters.passed), (ours.len() as u64, hosts.len() as u64));
    // A second device of the network leaves what is flooded to the first.
    pair.program.set_vids(&[Vid::new(100).unwrap()], Flooded::Passed).unwrap();
    let mut flooded = tagged(100);
    flooded[0] |= 1;
    let mut known = tagged(100);
    known[0] &= 0xfe;
    pair.send(0, &flooded);
    pair.send(0, &known);
    assert_eq!(pair.receive(1), [known]);
    assert_eq!(pair.program.counters().unwrap().passed, hosts.len() as u64 + 1);
}

fn frames_are_conserved() {
    let mut pair = Pair::new(ProgramKind::All);
    let in_fill = pair.io.ring_count();
    let (bytes, mut frames, mut received) = (pattern(64, 1), Vec::new(), 0);
    for _ in 0..100_000 / 50 {
        for _ in 0..50 {
            let frame = pair.frame(0, &bytes);
            pair.io.tx(LEFT, frame).unwrap();
        }
        pair.io.flush();
        received += pair.io.rx(RIGHT, &mut frames, 64);
        frames.drain(..).for_each(|f| pair.io.free(f));
    }
    received += pair.receive(100_000 - received).len();
    assert_eq!(received, 100_000);
    pair.settle(in_fill);
    pair.assert_conserved();
}

fn detached_queue_gives_its_frames_back() {
    let mut pair = Pair::new(ProgramKind::All);
    let in_fill = pair.io.ring_count();
    for round in 0..3 {
        for _ in 0..200 {
            pair.send(0, &pattern(100, round));
        }
        let frame = pair.frame(0, &pattern(100, round));
        pair.io.tx(RIGHT, frame).unwrap();
        let detached = pair.io.detach(RIGHT).unwrap();
        assert!(pair.io.detach(RIGHT).is_none());
        let frame = pair.frame(0, &pattern(100, round));
        let frame = pair.io.tx(RIGHT, frame).unwrap_err();
        pair.io.free(frame);
        let closed = detached.close();
        pair.io.reclaim(closed);
        pair.assert_conserved();
        let again = XskQueue::open(pair.io.umem(), "b0", 0).unwrap();
        pair.program.set_socket(0, again.fd()).unwrap();
        pair.io.attach(RIGHT, again).unwrap();
        pair.settle(in_fill);
        pair.assert_conserved();
        pair.send(0, &pattern(70, round));
        assert_eq!(pair.receive(1), [pattern(70, round)]);
    }
}

fn wait_ends_by_frame_wake_and_timeout() {
    let mut pair = Pair::new(ProgramKind::All);
    let long = Duration::from_secs(20);
    let start = Instant::now();
    pair.io.wait(Duration::from_millis(30));
    assert!(start.elapsed() >= Duration::from_millis(29));
    pair.send(0, &pattern(60, 0));
    pair.io.wait(long);
    assert_eq!(pair.receive(1).len(), 1);
    let waker = pair.io.waker();
    std::thread::scope(|scope| {
        scope.spawn(|| waker.wake());
        pair.io.wait(long);
    });
    assert!(start.elapsed() < long, "neither the frame nor the waker ended the wait");
    ip("link del a0");
    let (start, mut rounds) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_millis(50) {
        pair.io.wait(Duration::from_millis(10));
        rounds += 1;
    }
    assert!(rounds < 20, "a socket without a device ends {rounds} waits");
}

fn second_owner_is_refused() {
    let mut pair = Pair::new(ProgramKind::All);
    let umem = pair.io.umem().clone();
    assert!(matches!(XskIo::new(umem.clone()), Err(IoError::RegionTaken)));
    assert!(matches!(Umem::new(64), Err(UmemError::Anchor(_))));
    assert!(matches!(Umem::new(0), Err(UmemError::NoFrames)));
    let again = XskQueue::open(&umem, "a0", 0);
    assert!(matches!(again, Err(QueueError::Bind { queue: 0, .. })), "{again:?}");
    assert!(matches!(XskQueue::open(&umem, "absent", 0), Err(QueueError::Bind { .. })));
    ip("link add c0 type veth peer name c1");
    let queue = XskQueue::open(&umem, "c0", 0).unwrap();
    match pair.io.attach(LEFT, queue) {
        Err(AttachError::InUse(id)) => assert_eq!(id, LEFT),
        other => panic!("{other:?}"),
    }
}
