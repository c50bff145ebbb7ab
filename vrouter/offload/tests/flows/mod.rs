//! The kernel's table of flows: what it forwards, what it leaves to the engine, what it counts.
//! Frames are sent as bytes from container a; one that is forwarded arrives in b, another one on the
//! trunk.

use flowtable::ActionList;
use flowtable::action::{Exit, Pop, Rewrite};
use flowtable::hot::{HotCount, HotFlow, HotSample, HotTable as _, SETS};
use flowtable::ids::{Dscp, Mac};
use flowtable::key::{FlowKey, ethertype, ipproto, mapped};
use offload::FlowLimits;

use super::*;

const A: [u8; 6] = [2, 0, 0, 0, 0, 1];
const B: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GATEWAY: [u8; 6] = [0, 0, 0x11, 0x11, 0x11, 0x11];
const SET: u8 = 5;

pub(crate) const LIMITS: FlowLimits =
    FlowLimits { flows: 8, orphaned: Duration::from_mins(1), frame_bytes: 1000 };

/// A frame from a to b, and ways to spoil it.
#[derive(Clone)]
struct Packet {
    dst: [u8; 6],
    protocol: u8,
    ttl: u8,
    tos: u8,
    fragment: u16,
    tcp_flags: u8,
    payload: usize,
    options: bool,
    spoil_checksum: bool,
}

const UDP: Packet = Packet {
    dst: B,
    protocol: ipproto::UDP,
    ttl: 64,
    tos: 3,
    fragment: 0,
    tcp_flags: 0x10,
    payload: 100,
    options: false,
    spoil_checksum: false,
};
const TCP: Packet = Packet { protocol: ipproto::TCP, ..UDP };

impl Packet {
    fn frame(&self) -> Vec<u8> {
        let mut transport = vec![0x13, 0x88, 0x17, 0x70];
        if self.protocol == ipproto::UDP {
            transport.extend((8 + self.payload as u16).to_be_bytes());
            transport.extend([0, 0]);
        } else {
            transport.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, self.tcp_flags, 1, 0, 0, 0, 0, 0]);
        }
        transport.extend(vec![0x5a; self.payload]);
        let words = if self.options { 6 } else { 5 };
        let len = words * 4 + transport.len() as u16;
        let mut ip = vec![0x40 | words as u8, self.tos];
        ip.extend([len.to_be_bytes(), [0, 7], self.fragment.to_be_bytes()].concat());
        ip.extend([self.ttl, self.protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        ip.extend(vec![1; if self.options { 4 } else { 0 }]);
        let sum = checksum(&ip) ^ u16::from(self.spoil_checksum);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        [&self.dst[..], &A, &[8, 0], &ip, &transport].concat()
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

fn flow(protocol: u8) -> HotFlow {
    HotFlow {
        key: FlowKey {
            in_port: PORT_A,
            eth_type: ethertype::IPV4,
            proto: protocol,
            eth_dst: B,
            eth_src: A,
            src: mapped([10, 0, 0, 1]),
            dst: mapped([10, 0, 0, 2]),
            src_port: 5000,
            dst_port: 6000,
            ..FlowKey::default()
        },
        actions: ActionList {
            pop: Pop::Nothing,
            route: None,
            dscp: None,
            exit: Exit::Plain(port(PORT_B)),
        },
        set: SET,
        revision: 7,
        is_reply: false,
    }
}

/// Two containers, and sockets where frames can arrive.
struct Scene {
    node: Node,
    from: RawSocket,
    container: RawSocket,
    trunk: RawSocket,
}

impl Scene {
    fn new() -> Self {
        let node = Node::new();
        node.offload.beat();
        // Nobody answers: what arrives is what the test sends.
        for container in [&node.a, &node.b] {
            container.run("ip addr flush dev eth0");
        }
        let from = node.a.inside(|| RawSocket::open("eth0"));
        let container = node.b.inside(|| RawSocket::open("eth0"));
        Self { node, from, container, trunk: RawSocket::open("wr-t1.0") }
    }

    fn table(&self) -> &Offload {
        &self.node.offload
    }

    /// The frame as b gets it.
    fn forwarded(&self, packet: &Packet) -> Vec<u8> {
        self.from.send(&packet.frame());
        let received = self.container.receive();
        received
            .unwrap_or_else(|| panic!("no frame in the container: {:?}", self.trunk.receive()))
            .1
    }

    fn is_forwarded(&self, packet: &Packet) {
        assert_eq!(self.forwarded(packet), packet.frame());
    }

    fn is_missed(&self, why: &str, packet: &Packet) {
        self.from.send(&packet.frame());
        let (tag, frame) = self.trunk.receive().unwrap_or_else(|| panic!("{why}: nothing"));
        assert_eq!((tag, frame), (PORT_A, packet.frame()), "{why}");
    }

    /// Nothing else has arrived anywhere.
    fn is_quiet(&self) {
        assert_eq!((self.container.receive(), self.trunk.receive()), (None, None));
    }
}

pub(crate) fn known_flows_are_forwarded_and_counted() {
    let scene = Scene::new();
    scene.is_missed("no entry", &UDP);
    for (place, packet) in [(0, UDP), (7, TCP)] {
        scene.table().put(place, &flow(packet.protocol)).unwrap();
        scene.is_forwarded(&packet);
        scene.is_forwarded(&Packet { payload: 700, ..packet.clone() });
        let lens = packet.frame().len() + Packet { payload: 700, ..packet }.frame().len();
        let count = scene.table().count(place);
        assert_eq!(count, HotCount { packets: 2, bytes: lens as u64 });
    }
    let counters = scene.table().port_counters(port(PORT_A)).unwrap();
    assert_eq!((counters.rx_packets, counters.drops.iter().map(|d| d.packets).sum()), (1, 0));
    scene.is_quiet();
}

pub(crate) fn unusual_packets_of_a_known_flow_are_the_engines() {
    let scene = Scene::new();
    scene.table().put(0, &flow(ipproto::UDP)).unwrap();
    scene.table().put(1, &flow(ipproto::TCP)).unwrap();
    for (why, packet) in [
        ("another MAC", Packet { dst: A, ..UDP }),
        ("a TTL that ends", Packet { ttl: 1, ..UDP }),
        ("a first fragment", Packet { fragment: 0x2000, ..UDP }),
        ("a later fragment", Packet { fragment: 5, ..UDP }),
        ("options", Packet { options: true, ..UDP }),
        ("a wrong checksum", Packet { spoil_checksum: true, ..UDP }),
        ("longer than the engine's way", Packet { payload: 1000 - 42 + 1, ..UDP }),
        ("a SYN", Packet { tcp_flags: 0x12, ..TCP }),
        ("a FIN", Packet { tcp_flags: 0x11, ..TCP }),
        ("a RST", Packet { tcp_flags: 0x14, ..TCP }),
        ("no ACK", Packet { tcp_flags: 0, ..TCP }),
    ] {
        scene.is_missed(why, &packet);
    }
    for lie in [7_u16, 109, 1000] {
        let mut frame = UDP.frame();
        // The UDP header is behind 34 bytes.
        frame[38..40].copy_from_slice(&lie.to_be_bytes());
        scene.from.send(&frame);
        assert_eq!(scene.trunk.receive().map(|(_, f)| f), Some(frame), "UDP length {lie}");
    }
    assert_eq!(scene.table().count(0).packets + scene.table().count(1).packets, 0);
    scene.is_forwarded(&Packet { payload: 1000 - 42, ..UDP });
    scene.is_forwarded(&Packet { tcp_flags: 0x18, ..TCP });
}

pub(crate) fn routed_and_marked_packets_are_rewritten() {
    let scene = Scene::new();
    let mut routed = flow(ipproto::UDP);
    routed.key.eth_dst = GATEWAY;
    routed.actions.route = Some(Rewrite { src: Mac(GATEWAY), dst: Mac(B) });
    routed.actions.dscp = Some(Dscp::new(46).unwrap());
    scene.table().put(3, &routed).unwrap();
    let got = scene.forwarded(&Packet { dst: GATEWAY, ..UDP });
    // ECN stays.
    let mut wanted = Packet { ttl: 63, tos: 46 << 2 | 3, ..UDP }.frame();
    wanted[6..12].copy_from_slice(&GATEWAY);
    assert_eq!(got, wanted);
}

pub(crate) fn a_stopped_flow_is_the_engines_until_it_is_put_again() {
    let scene = Scene::new();
    let table = scene.table();
    let flow = flow(ipproto::UDP);
    table.put(0, &flow).unwrap();
    scene.is_forwarded(&UDP);
    assert!(table.put(1, &flow).is_err(), "one flow has two places");
    table.stop(0);
    scene.is_missed("stopped", &UDP);
    table.settle().unwrap();
    assert_eq!(table.count(0).packets, 1);
    table.clear(0, &flow).unwrap();
    table.clear(0, &flow).unwrap();
    table.put(1, &flow).unwrap();
    scene.is_forwarded(&UDP);
    // The place of the old entry is another flow's now.
    table.put(0, &self::flow(ipproto::TCP)).unwrap();
    scene.is_forwarded(&TCP);
    assert_eq!((table.count(0).packets, table.count(1).packets), (1, 1));
    assert!(
        table.put(8, &HotFlow { key: FlowKey { in_port: PORT_B, ..flow.key }, ..flow }).is_err()
    );
}

pub(crate) fn tables_that_changed_and_a_dead_engine_stop_flows() {
    let scene = Scene::new();
    let table = scene.table();
    table.put(0, &flow(ipproto::UDP)).unwrap();
    let mut valid_since = [7; SETS];
    table.publish(&valid_since);
    scene.is_forwarded(&UDP);
    valid_since[usize::from(SET)] = 8;
    table.publish(&valid_since);
    scene.is_missed("decided before the change", &UDP);
    table.stamp(0, 8);
    scene.is_forwarded(&UDP);
    valid_since[usize::from(SET) + 1] = 9;
    table.publish(&valid_since);
    scene.is_forwarded(&UDP);
    // An engine that says nothing any more.
    let limits = FlowLimits { orphaned: Duration::ZERO, ..LIMITS };
    let next = Offload::load(limits).unwrap();
    next.set_trunk(0, ifindex("wr-t0.0")).unwrap();
    next.attach_port(ifindex("h2"), port(PORT_B), Limits::UNLIMITED).unwrap();
    next.attach_port(ifindex("h1"), port(PORT_A), Limits::UNLIMITED).unwrap();
    next.put(0, &flow(ipproto::UDP)).unwrap();
    next.beat();
    scene.is_missed("no sign of life", &UDP);
}

/// The device that a port id or an interface index named before must not get its successor's packets.
pub(crate) fn flows_end_with_the_lives_of_their_ports() {
    let scene = Scene::new();
    let table = scene.table();
    table.put(0, &flow(ipproto::UDP)).unwrap();
    scene.is_forwarded(&UDP);
    table.detach_ports(&[(ifindex("h2"), port(PORT_B))]).unwrap();
    scene.is_missed("the receiver is gone", &UDP);
    // The same device and the same id, but another life.
    table.attach_port(ifindex("h2"), port(PORT_B), Limits::UNLIMITED).unwrap();
    scene.is_missed("the receiver is another one", &UDP);
    table.stop(0);
    table.clear(0, &flow(ipproto::UDP)).unwrap();
    table.put(0, &flow(ipproto::UDP)).unwrap();
    scene.is_forwarded(&UDP);
    table.detach_ports(&[(ifindex("h1"), port(PORT_A))]).unwrap();
    table.attach_port(ifindex("h1"), port(PORT_A), Limits::UNLIMITED).unwrap();
    scene.is_missed("the sender is another one", &UDP);
    // The entry of the former life can be cleared still: its place and its key are free then.
    table.stop(0);
    table.clear(0, &flow(ipproto::UDP)).unwrap();
    for place in 0..LIMITS.flows {
        let key = FlowKey { src_port: place as u16, ..flow(ipproto::UDP).key };
        table.put(place, &HotFlow { key, ..flow(ipproto::UDP) }).unwrap();
    }
}

pub(crate) fn without_a_table_of_flows_all_packets_are_the_engines() {
    let node = Node::with(FlowLimits { flows: u32::MAX, ..LIMITS });
    let cause = node.offload.without_flows().unwrap();
    assert!(cause.to_string().contains("loading the tc programs"), "{cause}");
    assert_eq!(node.offload.places(), 0);
    assert!(node.offload.put(0, &flow(ipproto::UDP)).is_err());
    with_loop(|| node.a.run("ping -c 3 -i 0.05 -W 2 10.0.0.2"));
    let counters = node.offload.port_counters(port(PORT_B)).unwrap();
    assert!(counters.tx_packets >= 3, "{counters:?}");
    assert!(Offload::load(LIMITS).unwrap().without_flows().is_none());
}

pub(crate) fn a_full_table_refuses_and_forgets_nothing() {
    let scene = Scene::new();
    let numbered = |n: u32| {
        let key = FlowKey { src_port: 5000 - n as u16, ..flow(ipproto::UDP).key };
        HotFlow { key, ..flow(ipproto::UDP) }
    };
    for place in 0..LIMITS.flows {
        scene.table().put(place, &numbered(place)).unwrap();
    }
    scene.is_forwarded(&UDP);
    // The last place again, before its flow was cleared: the hash map has no room.
    scene.table().stop(7);
    assert!(scene.table().put(7, &numbered(9)).is_err());
    scene.is_forwarded(&UDP);
    scene.table().clear(7, &numbered(7)).unwrap();
    scene.table().put(7, &numbered(9)).unwrap();
}

/// A foreign filter comes behind ours; at our place in the row it is replaced.
pub(crate) fn a_foreign_filter_lets_nothing_past_ours() {
    let node = Node::new();
    let foreign = |device: &str, preference: &str, handle: &str| {
        let mut tc = Command::new("tc");
        tc.args(["filter", "add", "dev", device, "ingress", "pref", preference, "handle", handle]);
        // All packets match (classic BPF: return -1).
        tc.args(["protocol", "all", "bpf", "bytecode", "1,6 0 0 4294967295,"]);
        let output = tc.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    foreign("h1", "7", "1");
    with_loop(|| node.a.run("ping -c 1 -W 2 10.0.0.2"));
    let third = Container::new(3);
    run("tc qdisc add dev h3 clsact");
    foreign("h3", "1", "1");
    node.offload.attach_port(ifindex("h3"), port(9), Limits::UNLIMITED).unwrap();
    third.inside(|| RawSocket::open("eth0").send(&frame(60)));
    assert_eq!(node.offload.port_counters(port(9)).unwrap().rx_packets, 1);
    assert!(!node.offload.restore_port(ifindex("h1")).unwrap());
}

pub(crate) fn large_packets_are_forwarded_whole_and_counted_in_segments() {
    const BYTES: usize = 4_000_000;
    /// Ethernet, IPv4 and TCP with timestamps.
    const HEADERS: u64 = 14 + 20 + 32;
    let node = Node::with(FlowLimits { frame_bytes: 1514, ..LIMITS });
    node.offload.beat();
    let listener = node.b.inside(|| TcpListener::bind("10.0.0.2:6000").unwrap());
    // Also the last packet of the handshake comes by the loop.
    let (mut stream, mut accepted) = with_loop(|| {
        let stream = node.a.inside(|| TcpStream::connect("10.0.0.2:6000").unwrap());
        (stream, listener.accept().unwrap().0)
    });
    accepted.set_read_timeout(Some(LIMIT)).unwrap();
    let src_port = stream.local_addr().unwrap().port();
    let mut way = flow(ipproto::TCP);
    way.key = FlowKey { src_port, eth_src: node.a.mac(), eth_dst: node.b.mac(), ..way.key };
    node.offload.put(0, &way).unwrap();
    node.offload.sample(port(PORT_A), 1);
    with_loop(|| {
        let sender = std::thread::spawn(move || {
            stream.write_all(&vec![1; BYTES]).unwrap();
            stream
        });
        let mut received = vec![0; BYTES];
        accepted.read_exact(&mut received).unwrap();
        assert!(received.iter().all(|byte| *byte == 1));
        drop(sender.join().unwrap());
    });
    let HotCount { packets, bytes } = node.offload.count(0);
    let payload = bytes - packets * HEADERS;
    // A few may have been sent again.
    assert!((BYTES as u64..BYTES as u64 * 11 / 10).contains(&payload), "{packets} {bytes}");
    assert!(packets >= (BYTES / 1448) as u64, "{packets}");
    // Each packet on the wire is a sample, told together with those of its large one.
    assert_eq!(node.offload.sampled_from(port(PORT_A)), packets);
    let samples: Vec<_> = std::iter::from_fn(|| node.offload.next_sample()).collect();
    assert!((samples.len() as u64) < packets / 4, "{}", samples.len());
    let told: u64 = samples.iter().map(|sample| u64::from(sample.count)).sum();
    assert_eq!(told + node.offload.samples_lost(), packets);
    assert!(samples.iter().all(|sample| sample.frame_len <= 1514));
}

pub(crate) fn sampled_packets_are_told_as_they_came() {
    let scene = Scene::new();
    let table = scene.table();
    let samples = || std::iter::from_fn(|| table.next_sample()).collect::<Vec<_>>();
    let mut routed = flow(ipproto::UDP);
    routed.key.eth_dst = GATEWAY;
    routed.actions.route = Some(Rewrite { src: Mac(GATEWAY), dst: Mac(B) });
    table.put(0, &routed).unwrap();
    let packet = Packet { dst: GATEWAY, ..UDP };
    scene.forwarded(&packet);
    assert_eq!((samples(), table.sampled_from(port(PORT_A))), (vec![], 0));
    table.sample(port(PORT_A), 1);
    for (payload, header_len) in [(100, 128), (10, 52)] {
        let packet = Packet { payload, ..packet.clone() };
        scene.forwarded(&packet);
        let pool = table.sampled_from(port(PORT_A));
        let [sample] = samples()[..] else { panic!("not one sample") };
        let frame = packet.frame();
        assert_eq!(sample.header[..header_len.into()], frame[..header_len.into()]);
        let (in_port, out_port) = (port(PORT_A), port(PORT_B));
        let frame_len = frame.len() as u32;
        let wanted = HotSample { in_port, out_port, rate: 1, count: 1, pool, frame_len, ..sample };
        assert_eq!((sample, sample.header_len), (wanted, header_len));
    }
    assert_eq!(table.sampled_from(port(PORT_A)), 2);
    table.sample(port(PORT_A), 100);
    (0..3000).for_each(|_| scene.from.send(&packet.frame()));
    let taken = samples();
    // 4.5 sigma of a binomial share, whose mean is 30.
    assert!((6..=54).contains(&taken.len()), "{}", taken.len());
    assert!(taken.iter().all(|s| s.rate == 100) && taken.is_sorted_by_key(|s| s.pool));
    assert_eq!(table.sampled_from(port(PORT_A)), 3002);
    // A ring that nobody empties.
    table.sample(port(PORT_A), 1);
    (0..3000).for_each(|_| scene.from.send(&packet.frame()));
    let lost = table.samples_lost();
    assert!(lost > 0);
    assert_eq!(samples().len() as u64 + lost, 3000);
    // Another container behind the id begins anew.
    table.attach_port(ifindex("h1"), port(PORT_A), Limits::UNLIMITED).unwrap();
    assert_eq!(table.sampled_from(port(PORT_A)), 0);
}

/// UDP over IPv6 with this class, hop limit and next header.
fn frame_v6(dst: [u8; 6], class: u8, hops: u8, next: u8) -> Vec<u8> {
    let mut frame = [&dst[..], &A, &[0x86, 0xdd]].concat();
    frame.extend([0x60 | class >> 4, class << 4 | 0x0a, 0xbc, 0xde, 0, 108, next, hops]);
    for last in [1, 2] {
        frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    frame.extend([0x13, 0x88, 0x17, 0x70, 0, 108, 0x12, 0x34]);
    frame.resize(14 + 40 + 108, 0x5a);
    frame
}

pub(crate) fn ipv6_is_forwarded_routed_and_marked_too() {
    let scene = Scene::new();
    let mut way = flow(ipproto::UDP);
    let address = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    way.key = FlowKey { eth_type: ethertype::IPV6, src: address(1), dst: address(2), ..way.key };
    scene.table().put(0, &way).unwrap();
    let plain = frame_v6(B, 0x93, 64, ipproto::UDP);
    scene.from.send(&plain);
    assert_eq!(scene.container.receive(), Some((0, plain.clone())));
    for (why, frame) in [
        ("a hop limit that ends", frame_v6(B, 0x93, 1, ipproto::UDP)),
        ("an extension header", frame_v6(B, 0x93, 64, ipproto::FRAGMENT)),
        ("another MAC", frame_v6(GATEWAY, 0x93, 64, ipproto::UDP)),
    ] {
        scene.from.send(&frame);
        assert_eq!(scene.trunk.receive(), Some((PORT_A, frame)), "{why}");
    }
    let count = scene.table().count(0);
    assert_eq!(count, HotCount { packets: 1, bytes: plain.len() as u64 });
    scene.table().stop(0);
    scene.table().clear(0, &way).unwrap();
    way.key.eth_dst = GATEWAY;
    way.actions.route = Some(Rewrite { src: Mac(GATEWAY), dst: Mac(B) });
    way.actions.dscp = Some(Dscp::new(0b10_1101).unwrap());
    scene.table().put(0, &way).unwrap();
    scene.from.send(&frame_v6(GATEWAY, 0x93, 64, ipproto::UDP));
    // ECN and the flow label stay.
    let mut wanted = frame_v6(B, 0b1011_0111, 63, ipproto::UDP);
    wanted[6..12].copy_from_slice(&GATEWAY);
    assert_eq!(scene.container.receive(), Some((0, wanted)));
}
