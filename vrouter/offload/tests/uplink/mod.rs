//! A NIC that the host goes on using: what the program takes from it and what leaves by it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use flowtable::entry::NodePort;
use flowtable::ids::Vid;
use offload::{OffloadError, Picked};

use crate::raw::RawSocket;
use crate::{Node, ifindex, port, run, tagged};

const UPLINK: u16 = 1;
const VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const VTEP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const VXLAN: u16 = 4789;

/// Device `name`, whose other end in the same namespace is `far-<name>`.
fn add_nic(name: &str) {
    run(&format!("ip link add {name} type veth peer name far-{name}"));
    for end in [name.to_owned(), format!("far-{name}")] {
        run(&format!("ip link set {end} addrgenmode none arp off up"));
    }
}

fn open(node: &Node, nic: &str) {
    node.offload.open_uplink(port(UPLINK), ifindex(nic)).unwrap();
    node.offload.join_uplink(port(UPLINK), ifindex(nic)).unwrap();
}

fn frame(ethertype: [u8; 2], packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype);
    frame.extend(packet);
    frame.resize(80, 0x5a);
    frame
}

fn udp4(to: Ipv4Addr, to_port: u16, flags: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 60, 0, 1];
    packet.extend(flags.to_be_bytes());
    packet.extend([64, 17, 0, 0, 192, 0, 2, 9]);
    packet.extend(to.octets());
    packet.extend([0xc0, 1]);
    packet.extend(to_port.to_be_bytes());
    frame([0x08, 0x00], &packet)
}

fn udp6(to: Ipv6Addr, to_port: u16) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 26, 17, 64];
    packet.extend(VTEP6.octets());
    packet.extend(to.octets());
    packet.extend([0xc0, 1]);
    packet.extend(to_port.to_be_bytes());
    frame([0x86, 0xdd], &packet)
}

/// The same over TCP.
fn over_tcp(mut frame: Vec<u8>) -> Vec<u8> {
    let at = if frame[12] == 0x08 { 23 } else { 20 };
    frame[at] = 6;
    frame
}

fn in_vlan(vid: u16) -> Vec<u8> {
    tagged(vid, &frame([0x88, 0xb5], &[]))
}

fn flooded(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].fill(0xff);
    frame
}

/// What comes out of the trunk's other end, without the port's tag.
fn taken(trunk: &RawSocket) -> Vec<Vec<u8>> {
    let frames = std::iter::from_fn(|| trunk.receive());
    let of_port = |(tag, frame): (u16, Vec<u8>)| {
        assert_eq!(tag, UPLINK);
        frame
    };
    frames.map(of_port).collect()
}

/// The next frame as it was on the wire.
fn whole(wire: &RawSocket) -> Option<Vec<u8>> {
    let (tag, frame) = wire.receive()?;
    Some(if tag == 0 { frame } else { tagged(tag, &frame) })
}

pub(crate) fn a_shared_uplink_gives_only_what_is_weirs() {
    let node = Node::new();
    ["up0", "up1"].into_iter().for_each(add_nic);
    open(&node, "up0");
    let (offload, wire, trunk) =
        (&node.offload, RawSocket::open("far-up0"), RawSocket::open("wr-t1.0"));
    let pick = |vteps: &[IpAddr], vid| {
        let vids = &[Vid::new(vid).unwrap()];
        offload.pick(port(UPLINK), Picked { vteps, vids, published: &[] }).unwrap();
    };
    // The second list replaces the first.
    pick(&[OTHER.into()], 99);
    pick(&[VTEP.into(), VTEP6.into()], 100);
    let hosts = [
        udp4(OTHER, VXLAN, 0),
        udp4(VTEP, 53, 0),
        udp4(VTEP, VXLAN, 0x2000),
        udp4(VTEP, VXLAN, 0x0003),
        udp6(VTEP6, 53),
        udp6(Ipv6Addr::LOCALHOST, VXLAN),
        tagged(99, &udp4(VTEP, VXLAN, 0)),
        in_vlan(101),
        in_vlan(0),
    ];
    let ours = [udp4(VTEP, VXLAN, 0), udp4(VTEP, VXLAN, 0x4000), udp6(VTEP6, VXLAN), in_vlan(100)];
    hosts.iter().chain(&ours).for_each(|frame| wire.send(frame));
    assert_eq!(taken(&trunk), ours);
    assert_eq!(offload.port_counters(port(UPLINK)).unwrap().rx_packets, ours.len() as u64);

    // What the engine sends leaves with its own tag and without the port's.
    for sent in [udp4(OTHER, VXLAN, 0), in_vlan(100)] {
        trunk.send(&tagged(UPLINK, &sent));
        assert_eq!(whole(&wire).unwrap(), sent);
    }
    assert_eq!(offload.port_counters(port(UPLINK)).unwrap().tx_packets, 2);

    // A second device of the port is picked from, but what is flooded comes once.
    offload.join_uplink(port(UPLINK), ifindex("up1")).unwrap();
    let second = RawSocket::open("far-up1");
    let both = [in_vlan(100), udp4(VTEP, VXLAN, 0)];
    both.iter().chain([&flooded(in_vlan(100))]).for_each(|frame| second.send(frame));
    assert_eq!(taken(&trunk), both);
    offload.switch_uplink(port(UPLINK), ifindex("up1")).unwrap();
    second.send(&flooded(in_vlan(100)));
    assert_eq!(taken(&trunk), [flooded(in_vlan(100))]);
    trunk.send(&tagged(UPLINK, &in_vlan(100)));
    assert_eq!(whole(&second).unwrap(), in_vlan(100));
    assert!(whole(&wire).is_none());

    offload.leave_uplink(port(UPLINK), ifindex("up0")).unwrap();
    offload.close_uplink(port(UPLINK)).unwrap();
    for wire in [&wire, &second] {
        wire.send(&udp4(VTEP, VXLAN, 0));
    }
    assert!(taken(&trunk).is_empty());
    assert!(!filters("up0").contains("from_uplink"), "{}", filters("up0"));
}

pub(crate) fn published_ports_of_an_uplink_are_weirs() {
    let node = Node::new();
    add_nic("up0");
    open(&node, "up0");
    let (offload, wire, trunk) =
        (&node.offload, RawSocket::open("far-up0"), RawSocket::open("wr-t1.0"));
    let publish = |published: &[NodePort]| {
        offload.pick(port(UPLINK), Picked { vteps: &[], vids: &[], published }).unwrap();
    };
    let published = |address, protocol, port| NodePort { address, protocol, port };
    publish(&[published(VTEP.into(), 6, 81)]);
    publish(&[published(VTEP.into(), 6, 80), published(VTEP6.into(), 17, 53)]);
    let web = over_tcp(udp4(VTEP, 80, 0));
    let hosts = [
        udp4(VTEP, 80, 0),
        over_tcp(udp4(VTEP, 81, 0)),
        over_tcp(udp4(OTHER, 80, 0)),
        over_tcp(udp4(VTEP, 80, 0x2000)),
        over_tcp(udp4(VTEP, 0, 0)),
        udp4(VTEP, VXLAN, 0),
        over_tcp(udp4(VTEP, VXLAN, 0)),
        over_tcp(udp6(VTEP6, 53)),
        tagged(7, &web),
    ];
    let ours = [web.clone(), udp6(VTEP6, 53)];
    hosts.iter().chain(&ours).for_each(|frame| wire.send(frame));
    assert_eq!(taken(&trunk), ours);
    // Without an engine they are nobody's: the filter stays, and the trunk is gone.
    run("ip link del wr-t0.0");
    let before = received("up0");
    for frame in &ours {
        wire.send(frame);
    }
    assert!(filters("up0").contains("from_uplink"));
    assert_eq!(received("up0") - before, ours.len() as u64);
    // The next engine, which publishes nothing, takes the filter off.
    let next = offload::Offload::load(crate::flows::LIMITS).unwrap();
    next.clear_uplink(ifindex("up0")).unwrap();
    assert!(!filters("up0").contains("from_uplink"), "{}", filters("up0"));
}

/// Packets that a device has received.
fn received(nic: &str) -> u64 {
    let all = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let of_nic = all.lines().find_map(|line| line.trim().strip_prefix(nic)?.strip_prefix(':'));
    of_nic.unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn filters(nic: &str) -> String {
    let shown = Command::new("tc").args(["filter", "show", "dev", nic, "ingress"]).output();
    String::from_utf8(shown.unwrap().stdout).unwrap()
}

pub(crate) fn a_filter_of_somebody_else_on_an_uplink_stays() {
    let node = Node::new();
    add_nic("up0");
    let object = std::env::temp_dir().join(format!("wt-offload-{}.o", std::process::id()));
    let object = object.to_str().unwrap();
    let program = "__attribute__((section(\"tc\"))) int watch(void *skb) { return -1; }";
    let source = format!("{object}.c");
    std::fs::write(&source, program).unwrap();
    run(&format!("clang -target bpf -O2 -g -c {source} -o {object}"));
    run("tc qdisc add dev up0 clsact");
    run(&format!("tc filter add dev up0 ingress pref 1 handle 1 bpf da obj {object} sec tc"));
    for made in [source.as_str(), object] {
        std::fs::remove_file(made).unwrap();
    }
    node.offload.open_uplink(port(UPLINK), ifindex("up0")).unwrap();
    let refused = node.offload.join_uplink(port(UPLINK), ifindex("up0")).unwrap_err();
    assert!(matches!(&refused, OffloadError::Foreign { name, .. } if name == "watch"), "{refused}");
    assert!(filters("up0").contains("watch"), "{}", filters("up0"));
    // Behind ours it may be.
    run("tc filter del dev up0 ingress");
    node.offload.join_uplink(port(UPLINK), ifindex("up0")).unwrap();
    // Another engine's is replaced.
    let next = offload::Offload::load(crate::flows::LIMITS).unwrap();
    next.open_uplink(port(UPLINK), ifindex("up0")).unwrap();
    next.join_uplink(port(UPLINK), ifindex("up0")).unwrap();
    assert_eq!(filters("up0").matches("handle 0x1 from_uplink").count(), 1);
}
