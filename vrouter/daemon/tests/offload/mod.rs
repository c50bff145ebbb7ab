//! Flows that the kernel forwards: that they are the engine's truth, whatever changes.

mod failure;
mod quotas;
mod sampling;
mod twins;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use datapath_api::v1;
use flowtable::entry::{Direction, Entry, EntryKey, Op, Permit, PortRange, RuleEntry};
use flowtable::ids::RuleId;
use nix::sys::signal::Signal;

use crate::node::{Container, LIMIT, until, vrf};
use crate::{Pair, Test, transfer};

const PORT: u16 = 7001;
const ALLOW: u64 = 41;
const DENY: u64 = 42;
const OTHER: u64 = 43;

pub(crate) const TESTS: [(&str, Test); 17] = [
    (
        "offloading_changes_nothing_that_can_be_seen",
        twins::offloading_changes_nothing_that_can_be_seen,
    ),
    (
        "ha_3_a_thousand_offloaded_connections_outlive_the_engine",
        failure::ha_3_a_thousand_offloaded_connections_outlive_the_engine,
    ),
    (
        "flows_of_an_engine_that_stays_away_end_in_the_time_that_is_set",
        failure::flows_of_an_engine_that_stays_away_end_in_the_time_that_is_set,
    ),
    (
        "an_engine_in_a_time_namespace_tells_the_kernel_the_time",
        failure::an_engine_in_a_time_namespace_tells_the_kernel_the_time,
    ),
    (
        "an_interface_index_that_is_used_again_gets_nothing_of_its_predecessor",
        failure::an_interface_index_that_is_used_again_gets_nothing_of_its_predecessor,
    ),
    (
        "a_port_that_is_switched_off_has_no_flow_offloaded",
        quotas::a_port_that_is_switched_off_has_no_flow_offloaded,
    ),
    (
        "a_full_quota_is_named_and_its_idle_flow_makes_room",
        quotas::a_full_quota_is_named_and_its_idle_flow_makes_room,
    ),
    (
        "a_flood_of_new_flows_does_not_push_out_those_that_carry_much",
        quotas::a_flood_of_new_flows_does_not_push_out_those_that_carry_much,
    ),
    (
        "sfl_1_the_pool_counts_offloaded_packets_exactly",
        sampling::sfl_1_the_pool_counts_offloaded_packets_exactly,
    ),
    (
        "sfl_1_offloaded_packets_are_sampled_at_the_configured_rate",
        sampling::sfl_1_offloaded_packets_are_sampled_at_the_configured_rate,
    ),
    (
        "pol_7_bulk_is_offloaded_and_every_segment_counted",
        pol_7_bulk_is_offloaded_and_every_segment_counted,
    ),
    (
        "a_closed_or_reset_connection_leaves_the_table",
        a_closed_or_reset_connection_leaves_the_table,
    ),
    (
        "offloading_can_be_turned_off_and_on_under_traffic",
        offloading_can_be_turned_off_and_on_under_traffic,
    ),
    ("pol_5_no_packet_of_an_offloaded_flow_is_late", pol_5_no_packet_of_an_offloaded_flow_is_late),
    ("pol_7_rules_count_offloaded_packets_exactly", pol_7_rules_count_offloaded_packets_exactly),
    (
        "unrelated_changes_leave_offloaded_flows_where_they_are",
        unrelated_changes_leave_offloaded_flows_where_they_are,
    ),
    (
        "ha_3_offloaded_connections_outlive_the_engine",
        ha_3_offloaded_connections_outlive_the_engine,
    ),
];

fn stats(pair: &Pair) -> v1::OffloadReply {
    switched(pair, None)
}

fn switched(pair: &Pair, on: Option<bool>) -> v1::OffloadReply {
    pair.engine.call(|mut c| async move { c.offload(v1::OffloadRequest { on }).await })
}

fn flows(pair: &Pair, filter: &str) -> Vec<v1::Flow> {
    let kind = v1::ListKind::Flows.into();
    let request = v1::ListRequest { kind, filter: filter.into(), ..Default::default() };
    pair.engine.call(|mut c| async move { c.list(request).await }).flows
}

fn rule(id: u64, permit: Permit, port: u16) -> Op {
    Op::Put(Entry::Rule(RuleEntry {
        priority: if permit == Permit::Deny { 20 } else { 10 },
        dst_ports: Some(PortRange { first: port, last: port }),
        protocol: Some(17),
        ..RuleEntry::any(RuleId(id), vrf(), Direction::Out, permit)
    }))
}

fn rule_count(pair: &Pair, id: u64) -> (u64, u64) {
    let reply = pair.engine.call(|mut c| async move { c.counters(v1::CountersRequest {}).await });
    let found = reply.rules.iter().find(|r| r.cookie == id);
    found.map_or((0, 0), |r| (r.packets, r.bytes))
}

/// A TCP connection from a to b that echoes nothing by itself.
fn connect(pair: &Pair) -> (TcpStream, TcpStream) {
    let address = SocketAddr::from((pair.b.ip(), PORT));
    let listener = pair.b.namespace.inside(|| TcpListener::bind(address).unwrap());
    let stream = pair.a.namespace.inside(|| TcpStream::connect(address).unwrap());
    let (accepted, _) = listener.accept().unwrap();
    for stream in [&stream, &accepted] {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
    }
    (stream, accepted)
}

/// One byte there and one back.
fn echo((from, to): &mut (TcpStream, TcpStream)) {
    let mut byte = [0];
    from.write_all(b"?").unwrap();
    to.read_exact(&mut byte).unwrap();
    to.write_all(b"!").unwrap();
    from.read_exact(&mut byte).unwrap();
}

/// Talks until both ways are offloaded.
fn offloaded(pair: &Pair) -> (TcpStream, TcpStream) {
    let mut ends = connect(pair);
    until("both ways to be offloaded", || {
        echo(&mut ends);
        stats(pair).flows == 2
    });
    ends
}

/// What TCP has sent inside, in segments, those sent again included.
fn segments(container: &Container) -> u64 {
    let text = container.namespace.must("cat /proc/net/snmp");
    let mut tcp = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
    let numbers = names.split(' ').zip(values.split(' '));
    numbers
        .filter(|(name, _)| matches!(*name, "OutSegs" | "RetransSegs"))
        .map(|(_, number)| number.parse::<u64>().unwrap())
        .sum()
}

fn pol_7_bulk_is_offloaded_and_every_segment_counted() {
    const BYTES: usize = 50_000_000;
    let pair = Pair::new(&[]);
    let took = transfer(&pair.a, &pair.b, BYTES);
    let total = stats(&pair);
    eprintln!("50 MB in {took:?}, {} of the packets by the kernel", total.packets);
    assert!(total.on && total.offloaded >= 2, "{total:?}");
    assert!(total.bytes > BYTES as u64 / 2, "{total:?}");
    // Both have closed: nothing of it is left in the table.
    until("the flows of a closed connection to go", || stats(&pair).flows == 0);
    let [a, b] = [&pair.a, &pair.b].map(segments);
    let of = |in_port| {
        let flows = flows(&pair, &format!("in_port={in_port},tcp"));
        flows.iter().map(|f| f.packets).sum::<u64>()
    };
    let ports = pair.engine.ports();
    let [pa, pb] = [5, 6].map(|id| ports.iter().find(|p| p.id == id).unwrap());
    // A flow's own count of what was offloaded goes when it is taken back; the ports' stay.
    let arp = |port: &v1::Port, segments: u64| port.rx_packets - segments;
    assert!(arp(pa, a) <= 4 && arp(pb, b) <= 4, "{a} {pa:?} {b} {pb:?}");
    assert!(of(5) <= a, "{a}");
    assert!(pa.rx_bytes >= BYTES as u64 + a * 54 && pa.rx_bytes >= pb.tx_bytes, "{pa:?} {pb:?}");
}

fn a_closed_or_reset_connection_leaves_the_table() {
    let pair = Pair::new(&[]);
    let ends = offloaded(&pair);
    let listed = flows(&pair, "in_port=5,tcp");
    assert!(listed.iter().any(|f| f.offload == "yes" && f.offloaded_packets > 0), "{listed:?}");
    drop(ends);
    until("a FIN's flows to go", || stats(&pair).flows == 0);
    let (from, to) = offloaded(&pair);
    // Unread data makes the end a RST.
    (&from).write_all(b"unread").unwrap();
    until("it to arrive", || to.peek(&mut [0]).unwrap() == 1);
    drop(to);
    until("a RST's flows to go", || stats(&pair).flows == 0);
    assert_eq!(stats(&pair).ended, 4);
}

fn offloading_can_be_turned_off_and_on_under_traffic() {
    let pair = Pair::new(&[]);
    let mut ends = offloaded(&pair);
    let off = switched(&pair, Some(false));
    assert_eq!((off.on, off.flows), (false, 0));
    let before = stats(&pair).packets;
    (0..50).for_each(|_| echo(&mut ends));
    assert_eq!(stats(&pair).packets, before);
    assert!(flows(&pair, "tcp").iter().all(|f| f.offload == "off"));
    switched(&pair, Some(true));
    until("them to be offloaded again", || {
        echo(&mut ends);
        stats(&pair).flows == 2
    });
    drop(ends);
    let pair = Pair::new(&["--offload", "off"]);
    transfer(&pair.a, &pair.b, 1_000_000);
    let off = stats(&pair);
    assert_eq!((off.on, off.offloaded), (false, 0));
}

/// What the sender knows of the rules: each datagram says in which epoch it was sent. Those of odd
/// epochs must not arrive; in an epoch whose second bit is set nothing is sent.
#[derive(Default)]
struct Flood {
    epoch: AtomicU64,
    /// The last epoch without packets that the sender has seen.
    paused: AtomicU64,
    stop: AtomicBool,
    sent: AtomicU64,
    late: AtomicU64,
}

/// Ends the threads also when the test panics, and then tells what it knows.
struct StopOnDrop<'f>(&'f Flood, &'f Pair);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (late, sent) = (&self.0.late, &self.0.sent);
            eprintln!(
                "late: {late:?} of {sent:?}, {:?}, {:?}",
                stats(self.1),
                self.1.engine.ports()
            );
        }
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Flood {
    fn send(&self, socket: &UdpSocket) {
        while !self.stop.load(Ordering::Relaxed) {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch & 2 != 0 {
                self.paused.store(epoch, Ordering::Release);
                std::thread::yield_now();
            } else if socket.send(&epoch.to_be_bytes()).is_ok() {
                self.sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn receive(&self, socket: &UdpSocket) {
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut bytes = [0; 8];
        while !self.stop.load(Ordering::Relaxed) {
            if socket.recv(&mut bytes).is_ok() {
                self.late.fetch_add(u64::from_be_bytes(bytes) & 1, Ordering::Relaxed);
            }
        }
    }

    /// Sends nothing more, and waits until what was sent has arrived or was dropped.
    fn drain(&self, pair: &Pair, epoch: u64) {
        self.epoch.store(epoch, Ordering::Release);
        until("the sender to pause", || self.paused.load(Ordering::Acquire) == epoch);
        let sent = self.sent.load(Ordering::Relaxed);
        let done = || {
            let port = pair.engine.ports().into_iter().find(|p| p.id == 5).unwrap();
            port.rx_packets + pair.engine.drops("tx-full")
        };
        until("everything sent to be decided", || done() >= sent);
    }
}

/// Rules are changed under a flood of an offloaded flow.
fn pol_5_no_packet_of_an_offloaded_flow_is_late() {
    let changes = if std::env::var_os("WEIR_SOAK").is_some() { 10_000 } else { 50 };
    let pair = Pair::new(&["--port-pps", "0", "--port-mbps", "0"]);
    pair.engine.write(&[rule(ALLOW, Permit::Allow, PORT)]);
    let (from, to) = talkers(&pair);
    let flood = Flood::default();
    // The sender opens the connection: of one that the other opened the rule says nothing.
    from.send(&0_u64.to_be_bytes()).unwrap();
    flood.sent.fetch_add(1, Ordering::Relaxed);
    to.recv(&mut [0; 8]).unwrap();
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&flood, &pair);
        scope.spawn(|| flood.send(&from));
        scope.spawn(|| flood.receive(&to));
        for change in 0..changes {
            let before = stats(&pair);
            until("the flow to be offloaded", || {
                to.send(b"answer").unwrap();
                let now = stats(&pair);
                now.flows > 0 && now.packets > before.packets
            });
            let drops = pair.engine.drops("policy-deny");
            pair.engine.write(&[rule(DENY, Permit::Deny, PORT)]);
            flood.epoch.store(4 * change + 1, Ordering::Release);
            until("packets to be denied", || pair.engine.drops("policy-deny") > drops + 100);
            flood.drain(&pair, 4 * change + 2);
            pair.engine.write(&[Op::Delete(EntryKey::Rule(RuleId(DENY), 0))]);
            flood.epoch.store(4 * change + 4, Ordering::Release);
        }
    });
    eprintln!("{} packets, {changes} changes", flood.sent.load(Ordering::Relaxed));
    assert_eq!(flood.late.load(Ordering::Relaxed), 0);
}

/// UDP sockets of a and b that are connected to each other, b's at [`PORT`].
fn talkers(pair: &Pair) -> (UdpSocket, UdpSocket) {
    talkers_at(pair, PORT)
}

fn talkers_at(pair: &Pair, at: u16) -> (UdpSocket, UdpSocket) {
    let bind = |c: &Container, port| {
        c.namespace.inside(|| UdpSocket::bind(SocketAddr::from((c.ip(), port))).unwrap())
    };
    let (from, to) = (bind(&pair.a, 0), bind(&pair.b, at));
    for (socket, other) in [(&from, &to), (&to, &from)] {
        socket.connect(other.local_addr().unwrap()).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
    }
    (from, to)
}

fn pol_7_rules_count_offloaded_packets_exactly() {
    const PACKETS: u64 = 3000;
    let pair = Pair::new(&["--port-pps", "0", "--port-mbps", "0"]);
    pair.engine.write(&[rule(ALLOW, Permit::Allow, PORT)]);
    let (from, to) = talkers(&pair);
    let mut bytes = [0; 100];
    for _ in 0..PACKETS {
        from.send(&[7; 100]).unwrap();
        assert_eq!(to.recv(&mut bytes).unwrap(), 100);
        to.send(&[8; 50]).unwrap();
        assert_eq!(from.recv(&mut bytes).unwrap(), 50);
    }
    let total = stats(&pair);
    assert!(total.packets > PACKETS && total.flows == 2, "{total:?}");
    // A rule counts the packets it was asked about: not the answers.
    assert_eq!(rule_count(&pair, ALLOW), (PACKETS, PACKETS * 142));
    // Taken back, they are counted still, and once.
    switched(&pair, Some(false));
    assert_eq!(rule_count(&pair, ALLOW), (PACKETS, PACKETS * 142));
    pair.engine.write(&[Op::Delete(EntryKey::Rule(RuleId(ALLOW), 0))]);
    pair.engine.write(&[rule(OTHER, Permit::Allow, PORT)]);
    assert_eq!(rule_count(&pair, OTHER), (0, 0));
}

fn unrelated_changes_leave_offloaded_flows_where_they_are() {
    let pair = Pair::new(&[]);
    let mut ends = offloaded(&pair);
    let passed = |pair: &Pair| {
        let flows = flows(pair, "tcp");
        flows.iter().map(|f| f.packets - f.offloaded_packets).sum::<u64>()
    };
    let before = passed(&pair);
    for change in 0..50 {
        pair.engine.write(&[rule(OTHER + change, Permit::Deny, 9)]);
        echo(&mut ends);
    }
    let now = stats(&pair);
    assert_eq!((now.flows, now.changed), (2, 0), "{now:?}");
    assert!(now.confirmed >= 100, "{now:?}");
    assert_eq!(passed(&pair), before, "packets came by the engine");
}

/// Offloaded connections talk while there is no engine, and with the next one; of a stream of datagrams
/// none is lost.
fn ha_3_offloaded_connections_outlive_the_engine() {
    let mut pair = Pair::new(&[]);
    let mut ends = offloaded(&pair);
    let (from, to) = talkers(&pair);
    until("the datagrams to be offloaded", || {
        from.send(&[0; 8]).unwrap();
        to.send(&[0; 8]).unwrap();
        stats(&pair).flows == 4
    });
    to.set_nonblocking(true).unwrap();
    while to.recv(&mut [0; 8]).is_ok() {}
    to.set_nonblocking(false).unwrap();
    let stop = AtomicBool::new(false);
    let (sent, received) = std::thread::scope(|scope| {
        let stopped = crate::Stopped(&stop);
        let sender = scope.spawn(|| stream(&from, &stop));
        let receiver = scope.spawn(|| count_until_quiet(&to, &stop));
        for _ in 0..2 {
            pair.engine.end(Signal::SIGKILL);
            (0..200).for_each(|_| echo(&mut ends));
            // The one before takes its directory with it.
            pair.engine = crate::Engine::start(&pair.node, &[]);
            (0..200).for_each(|_| echo(&mut ends));
            pair.program();
            until("them to be offloaded by the new engine", || {
                echo(&mut ends);
                to.send(b"answer").unwrap();
                stats(&pair).flows == 4
            });
        }
        drop(stopped);
        (sender.join().unwrap(), receiver.join().unwrap())
    });
    assert_eq!(received, sent);
}

/// A datagram every millisecond; how many it was.
fn stream(socket: &UdpSocket, stop: &AtomicBool) -> u64 {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        socket.send(&[7; 64]).unwrap();
        sent += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    sent
}

/// Datagrams until it is over and none has come for 300 ms.
fn count_until_quiet(socket: &UdpSocket, stop: &AtomicBool) -> u64 {
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let (mut count, mut bytes) = (0, [0; 64]);
    loop {
        match socket.recv(&mut bytes) {
            Ok(_) => count += 1,
            Err(_) if stop.load(Ordering::Relaxed) => return count,
            Err(_) => {}
        }
    }
}
