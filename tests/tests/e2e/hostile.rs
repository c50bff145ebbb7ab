//! Broken frames from a container and from the wire: each is counted by its reason, and nobody
//! else notices.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kit::frame::{Addresses, arp_request, icmp_echo, tagged, tcp_syn, udp};
use kit::{
    CONTAINER_IFNAME, Container, Daemon, FABRIC_PORT, Flow, OneNode, Purpose, Topology, UPLINK,
    capture, wait_until,
};

use crate::Test;
use crate::control::register;
use crate::packet::{VXLAN_PORT, vxlan};
use crate::shared::sharing;
use crate::site::{BOUND, all_drops, attach, configure, dropped, port_of, reach};

const VNI: u32 = 4242;
const GATEWAY_MAC: [u8; 6] = [0, 0, 0x11, 0x11, 0x11, 0x11];
const FABRIC: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 2);
/// Copies of each frame: a count that is off by one shows.
const COPIES: u64 = 3;
const RANDOM_FRAMES: u64 = 2000;

pub(crate) fn tests() -> Vec<Test> {
    let mut tests = sharing(
        build,
        &[
            ("broken_frames_of_a_container_are_counted_by_reason", from_container),
            ("a_frame_cut_at_any_length_is_counted_and_harmless", cut_frames),
            ("broken_vxlan_is_counted_by_reason", from_wire),
            ("a_vxlan_packet_cut_at_any_length_is_counted_and_harmless", cut_vxlan),
            ("random_bytes_are_all_counted_and_harmless", random_bytes),
            ("net_5_ipv6_is_dropped_by_reason_where_a_network_has_none", ipv6_off),
        ],
    );
    let name = "a_flooding_container_is_limited_and_its_neighbours_keep_their_network";
    tests.push((name.to_owned(), Box::new(flood)));
    tests
}

#[derive(Debug)]
struct Scene {
    a: Container,
    b: Container,
    /// Of vrouterd, from the start to the end.
    pid: u32,
    one: OneNode,
}

fn build() -> Result<Scene> {
    build_on(Topology::new(Purpose::Test))
}

fn build_on(topology: Topology) -> Result<Scene> {
    let mut one = topology.one_node()?;
    let lines =
        ["tenant create blue", "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 -p 4242 front"];
    configure(&one.node, &lines)?;
    register(&one.node, "fabric", &FABRIC.to_string())?;
    let a = attach(&one.node, "a", "front")?;
    let b = attach(&one.node, "b", "front")?;
    let pid = one.node.process(Daemon::Vrouterd)?.pid();
    Ok(Scene { a, b, pid, one })
}

impl Scene {
    /// From container a to container b.
    fn a_to_b(&self) -> Result<Addresses> {
        let (src_mac, dst_mac) = (self.a.mac()?, self.b.mac()?);
        Ok(Addresses { src_mac, dst_mac, src: self.a.address(), dst: self.b.address() })
    }

    fn outer(&self) -> Result<Addresses> {
        let near = self.one.node.netns().netlink()?.link_by_name(UPLINK)?;
        let far = self.one.fabric.netlink()?.link_by_name(FABRIC_PORT)?;
        Ok(Addresses {
            src_mac: far.context("no fabric port")?.mac,
            dst_mac: near.context("no uplink")?.mac,
            src: FABRIC,
            dst: self.one.node.vtep(),
        })
    }

    /// The same engine runs, and the containers reach each other.
    fn alive(&mut self) -> Result<()> {
        let process = self.one.node.process(Daemon::Vrouterd)?;
        ensure!(process.is_running()? && process.pid() == self.pid, "vrouterd ended");
        reach(&self.a, self.b.address())?;
        reach(&self.b, self.a.address())
    }
}

/// Changes bytes at offsets.
fn with(frame: &[u8], changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut changed = frame.to_vec();
    for (at, bytes) in changes {
        changed[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    changed
}

/// As [`with`], and the checksum of the IPv4 header at 14 made right.
fn fixed(frame: &[u8], changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut changed = with(frame, changes);
    changed[24..26].copy_from_slice(&[0, 0]);
    let end = 14 + usize::from(changed[14] & 0x0f) * 4;
    let words = changed[14..end].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    changed[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    changed
}

/// What is broken, and the frame.
type Broken = (&'static str, Vec<u8>);
/// What is wrong with it, the reason it must be counted under, and the frame.
type Misplaced = (&'static str, &'static str, Vec<u8>);

/// Headers that contradict themselves or each other.
fn malformed(to_b: Addresses) -> Result<Vec<Broken>> {
    let (packet, segment) = (udp(to_b, 1000, 2000, &[7; 40])?, tcp_syn(to_b, 1000, 80)?);
    let (echo, question) = (icmp_echo(to_b, 1, 1, &[7; 40])?, arp_request(to_b)?);
    Ok(vec![
        ("IP version 6 in an IPv4 packet", fixed(&packet, &[(14, &[0x65])])),
        ("a header of 16 bytes", with(&packet, &[(14, &[0x44])])),
        ("a header longer than the packet", with(&packet, &[(14, &[0x4f]), (16, &[0, 24])])),
        ("a length beyond the frame", fixed(&packet, &[(16, &[0x05, 0xdc])])),
        ("a length shorter than the header", fixed(&packet, &[(16, &[0, 19])])),
        ("a wrong header checksum", with(&packet, &[(24, &[0, 1])])),
        ("a datagram longer than its packet", with(&packet, &[(38, &[0x10, 0])])),
        ("a datagram of 7 bytes", with(&packet, &[(38, &[0, 7])])),
        ("a segment's header of 16 bytes", with(&segment, &[(46, &[0x40])])),
        ("a segment's header beyond the packet", with(&segment, &[(46, &[0xf0])])),
        ("a packet that ends in the ports", fixed(&segment, &[(16, &[0, 22])])),
        ("ICMP of 4 bytes", fixed(&echo, &[(16, &[0, 24])])),
        ("a fragment over the TCP flags", fixed(&segment, &[(20, &[0, 1])])),
        ("a fragment beyond 64 KB", fixed(&packet, &[(20, &[0x1f, 0xff])])),
        ("ARP for another hardware", with(&question, &[(14, &[0, 6])])),
        ("ARP with long addresses", with(&question, &[(18, &[8])])),
    ])
}

/// Sound frames that no container may send, or that lead nowhere.
fn misplaced(to_b: Addresses) -> Result<Vec<Misplaced>> {
    let packet = udp(to_b, 1000, 2000, &[7; 40])?;
    let small = |addresses, port| udp(addresses, 1, port, b"x");
    let nobody = Ipv4Addr::new(10, 1, 1, 99);
    let elsewhere = Addresses { src: nobody, ..to_b };
    let stranger = Addresses { src_mac: [2, 0, 0, 0, 0, 9], ..to_b };
    let itself = Addresses { dst: to_b.src, dst_mac: to_b.src_mac, ..to_b };
    let gateway = Addresses { dst: Ipv4Addr::new(10, 1, 1, 254), dst_mac: GATEWAY_MAC, ..to_b };
    let nowhere = Addresses { dst: Ipv4Addr::new(10, 7, 7, 7), ..gateway };
    let ethertype = |bytes: &'static [u8]| with(&packet, &[(12, bytes)]);
    let last_hop = fixed(&packet, &[(0, &GATEWAY_MAC), (22, &[1])]);
    Ok(vec![
        ("LLDP", "non-ip", ethertype(&[0x88, 0xcc])),
        ("an IEEE 802.3 length", "non-ip", ethertype(&[0, 46])),
        ("MPLS", "non-ip", ethertype(&[0x88, 0x47])),
        ("a VLAN tag", "container-tag", tagged(&packet, 5)),
        ("a service tag", "container-tag", with(&tagged(&packet, 5), &[(12, &[0x88, 0xa8])])),
        ("another's address", "spoofed-ip", small(elsewhere, 2)?),
        ("another's address in ARP", "spoofed-ip", arp_request(elsewhere)?),
        ("another's MAC", "spoofed-mac", small(stranger, 2)?),
        ("an unknown MAC", "unknown-endpoint", with(&packet, &[(0, &[2, 0, 0, 0, 0, 9])])),
        ("a group address", "multicast", with(&packet, &[(0, &[1, 0, 0x5e, 0, 0, 1])])),
        ("its own MAC", "hairpin", small(itself, 2)?),
        ("ARP for nobody", "arp-unknown", arp_request(Addresses { dst: nobody, ..to_b })?),
        ("the gateway's MAC and nobody's address", "no-route", small(nowhere, 2)?),
        ("the gateway's MAC and a TTL of 1", "ttl-expired", last_hop),
        ("a service of the gateway", "not-for-us", small(gateway, 53)?),
    ])
}

fn from_container(scene: &mut Scene) -> Result<()> {
    let socket = capture(scene.a.namespace(), CONTAINER_IFNAME)?;
    let to_b = scene.a_to_b()?;
    let broken = malformed(to_b)?.into_iter().map(|(what, frame)| (what, "malformed", frame));
    for (what, reason, frame) in broken.chain(misplaced(to_b)?) {
        let send = || (0..COPIES).try_for_each(|_| Ok(socket.send(&frame)?));
        dropped(&scene.one.node, reason, COPIES, send).with_context(|| what.to_owned())?;
    }
    scene.alive()
}

fn cut_frames(scene: &mut Scene) -> Result<()> {
    let socket = capture(scene.a.namespace(), CONTAINER_IFNAME)?;
    let to_b = scene.a_to_b()?;
    let (packet, segment) = (udp(to_b, 1000, 2000, &[7; 40])?, tcp_syn(to_b, 1000, 80)?);
    let question = arp_request(to_b)?;
    // Without the bytes that only fill a frame up.
    for whole in [&packet[..82], &segment[..54], &question[..42]] {
        // A link header is the least that a packet socket sends.
        let cuts = 14..whole.len();
        let send = || cuts.clone().try_for_each(|len| Ok(socket.send(&whole[..len])?));
        dropped(&scene.one.node, "malformed", cuts.len() as u64, send)?;
    }
    scene.alive()
}

fn from_wire(scene: &mut Scene) -> Result<()> {
    let wire = capture(scene.one.fabric.namespace(), FABRIC_PORT)?;
    let outer = scene.outer()?;
    let to_b = Addresses { src: Ipv4Addr::new(10, 1, 1, 200), ..scene.a_to_b()? };
    let inner =
        malformed(to_b)?.into_iter().map(|(what, frame)| Ok((what, vxlan(outer, VNI, &frame)?)));
    let good = vxlan(outer, VNI, &udp(to_b, 1, 2, b"x")?)?;
    let around = [
        ("a tag inside", vxlan(outer, VNI, &tagged(&udp(to_b, 1, 2, b"x")?, 5))?),
        ("no I flag", with(&good, &[(42, &[0])])),
        ("an outer datagram longer than its packet", with(&good, &[(38, &[0xff, 0xff])])),
        ("an outer packet longer than its frame", fixed(&good, &[(16, &[0x05, 0xdc])])),
        ("a wrong outer header checksum", with(&good, &[(24, &[0, 1])])),
    ];
    for (what, frame) in inner.collect::<Result<Vec<Broken>>>()?.into_iter().chain(around) {
        let send = || (0..COPIES).try_for_each(|_| Ok(wire.send(&frame)?));
        dropped(&scene.one.node, "malformed", COPIES, send).with_context(|| what.to_owned())?;
    }
    scene.alive()
}

fn cut_vxlan(scene: &mut Scene) -> Result<()> {
    let wire = capture(scene.one.fabric.namespace(), FABRIC_PORT)?;
    let outer = scene.outer()?;
    let inner = udp(scene.a_to_b()?, 1000, 2000, &[7; 40])?;
    // The outer packet is whole: what is cut is the frame in it.
    let send = || {
        (0..inner.len()).try_for_each(|len| Ok(wire.send(&vxlan(outer, VNI, &inner[..len])?)?))
    };
    dropped(&scene.one.node, "malformed", inner.len() as u64, send).context("inner frames")?;
    let header = [8, 0, 0, 0, 0, 0x10, 0x92, 0];
    let send = || {
        (0..header.len())
            .try_for_each(|len| Ok(wire.send(&udp(outer, 50_000, VXLAN_PORT, &header[..len])?)?))
    };
    dropped(&scene.one.node, "malformed", header.len() as u64, send).context("VXLAN headers")?;
    scene.alive()
}

/// Numbers that look random and are the same in every run (xorshift64*).
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

fn random_bytes(scene: &mut Scene) -> Result<()> {
    let inside = capture(scene.a.namespace(), CONTAINER_IFNAME)?;
    let wire = capture(scene.one.fabric.namespace(), FABRIC_PORT)?;
    let (outer, to_b) = (scene.outer()?, scene.a_to_b()?);
    let before: u64 = all_drops(&scene.one.node)?.values().sum();
    let sent_before = port_of(&scene.one.node, &scene.b)?["tx_packets"].as_u64();
    let mut state = 0x5eed_0000_0000_0001;
    for _ in 0..RANDOM_FRAMES / 2 {
        let len = 14 + random(&mut state) as usize % 200;
        let mut frame: Vec<u8> = (0..len).map(|_| random(&mut state) as u8).collect();
        frame[12..14].copy_from_slice(match random(&mut state) % 4 {
            0 => &[0x08, 0x00],
            1 => &[0x86, 0xdd],
            2 => &[0x08, 0x06],
            _ => &[0x81, 0x00],
        });
        frame[..6].copy_from_slice(&to_b.dst_mac);
        frame[6..12].copy_from_slice(&to_b.src_mac);
        inside.send(&frame)?;
        wire.send(&vxlan(outer, VNI, &frame)?)?;
    }
    let counted = || {
        let now: u64 = all_drops(&scene.one.node).ok()?.values().sum();
        (now - before >= RANDOM_FRAMES).then_some(())
    };
    wait_until(BOUND, format!("{RANDOM_FRAMES} drops"), counted)
        .with_context(|| format!("{:?}", all_drops(&scene.one.node)))?;
    let sent_after = port_of(&scene.one.node, &scene.b)?["tx_packets"].as_u64();
    ensure!(sent_before == sent_after, "noise was delivered: {sent_before:?} {sent_after:?}");
    scene.alive()
}

fn ipv6_off(scene: &mut Scene) -> Result<()> {
    let socket = capture(scene.a.namespace(), CONTAINER_IFNAME)?;
    let to_b = scene.a_to_b()?;
    // A whole IPv6 packet (RFC 8200) with nothing behind its header.
    let mut frame = [&to_b.dst_mac[..], &to_b.src_mac, &[0x86, 0xdd, 0x60], &[0; 39]].concat();
    (frame[20], frame[21]) = (59, 64);
    let before = all_drops(&scene.one.node)?;
    for _ in 0..COPIES {
        socket.send(&frame)?;
    }
    // Containers' kernels send IPv6 by themselves: at least ours are counted.
    let counted = || {
        let now = all_drops(&scene.one.node).ok()?;
        (now.get("ipv6-off")? - before.get("ipv6-off")? >= COPIES).then_some(())
    };
    wait_until(BOUND, "the packets under ipv6-off", counted)
        .with_context(|| format!("{:?}, before {before:?}", all_drops(&scene.one.node)))?;
    scene.alive()
}

/// As fast as one thread can, for a second, while others talk.
fn flood() -> Result<()> {
    const TIME: Duration = Duration::from_secs(1);
    let limit = ["--port-pps", "20000"];
    let mut scene = build_on(Topology::new(Purpose::Test).daemon_args(Daemon::Vrouterd, &limit))?;
    let flood = capture(scene.a.namespace(), CONTAINER_IFNAME)?;
    let frame = udp(scene.a_to_b()?, 1000, 2000, &[7; 18])?;
    let third = attach(&scene.one.node, "third", "front")?;
    let flow = Flow::start(third.namespace(), scene.b.address(), Duration::from_millis(2))?;
    let (start, mut sent) = (Instant::now(), 0_u64);
    while start.elapsed() < TIME {
        // A full queue of the device is what a flood meets first.
        sent += u64::from(flood.send(&frame).is_ok());
    }
    let report = flow.stop()?;
    let after = all_drops(&scene.one.node)?;
    let limited = after.get("rate-limit").copied().unwrap_or_default();
    let delivered = port_of(&scene.one.node, &scene.b)?["tx_packets"].as_u64();
    ensure!(
        limited + 40_000 > sent,
        "{sent} frames in {TIME:?}, limited only {limited}: {after:?}"
    );
    ensure!(delivered < Some(40_000), "{delivered:?} packets came through");
    let lost = report.sent - report.received;
    ensure!(lost * 20 <= report.sent, "{report:?} beside {sent} frames of a flood");
    scene.alive()
}
