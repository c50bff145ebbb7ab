//! Broken frames from a container and from the wire: each is counted by its reason, and nobody
//! else notices.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use kit::frame::{Addresses, arp_request, icmp_echo, tagged, tcp_syn, udp};
use kit::{CONTAINER_IFNAME, Container, Daemon, FABRIC_PORT, OneNode, Purpose, Topology, UPLINK, capture, wait_until};

use crate::Test;
use crate::control::register;
use crate::packet::{VXLAN_PORT, vxlan};
use crate::shared::sharing;
use crate::site::{BOUND, all_drops, attach, configure, dropped, port_of, reach};

const VNI: u32 = 4242;
const FABRIC: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 2);
/// Copies of each frame: a count that is off by one shows.
const COPIES: u64 = 3;
const RANDOM_FRAMES: u64 = 2000;

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("broken_frames_of_a_container_are_counted_by_reason", from_container),
            ("a_frame_cut_at_any_length_is_counted_and_harmless", cut_frames),
            ("broken_vxlan_is_counted_by_reason", from_wire),
            ("a_vxlan_packet_cut_at_any_length_is_counted_and_harmless", cut_vxlan),
            ("random_bytes_are_all_counted_and_harmless", random_bytes),
        ],
    )
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
    let mut one = Topology::new(Purpose::Test).one_node()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 -p 4242 front",
    ];
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

/// What is broken, the reason it must be counted under, the frame.
type Broken = (&'static str, &'static str, Vec<u8>);

fn broken(to_b: Addresses) -> Result<Vec<Broken>> {
    let (packet, segment) = (udp(to_b, 1000, 2000, &[7; 40])?, tcp_syn(to_b, 1000, 80)?);
    let (echo, question) = (icmp_echo(to_b, 1, 1, &[7; 40])?, arp_request(to_b)?);
    let elsewhere = Addresses { src: Ipv4Addr::new(10, 1, 1, 99), ..to_b };
    let stranger = Addresses { src_mac: [2, 0, 0, 0, 0, 9], ..to_b };
    let ethertype = |bytes: &'static [u8]| with(&packet, &[(12, bytes)]);
    Ok(vec![
        ("IP version 6 in an IPv4 packet", "malformed", fixed(&packet, &[(14, &[0x65])])),
        ("a header of 16 bytes", "malformed", with(&packet, &[(14, &[0x44])])),
        ("a header longer than the packet", "malformed", with(&packet, &[(14, &[0x4f]), (16, &[0, 24])])),
        ("a length beyond the frame", "malformed", fixed(&packet, &[(16, &[0x05, 0xdc])])),
        ("a length shorter than the header", "malformed", fixed(&packet, &[(16, &[0, 19])])),
        ("a wrong header checksum", "malformed", with(&packet, &[(24, &[0, 1])])),
        ("a datagram longer than its packet", "malformed", with(&packet, &[(38, &[0x10, 0])])),
        ("a datagram of 7 bytes", "malformed", with(&packet, &[(38, &[0, 7])])),
        ("a segment's header of 16 bytes", "malformed", with(&segment, &[(46, &[0x40])])),
        ("a segment's header beyond the packet", "malformed", with(&segment, &[(46, &[0xf0])])),
        ("a packet that ends in the ports", "malformed", fixed(&segment, &[(16, &[0, 22])])),
        ("ICMP of 4 bytes", "malformed", fixed(&echo, &[(16, &[0, 24])])),
        ("a fragment over the TCP flags", "malformed", fixed(&segment, &[(20, &[0, 1])])),
        ("a fragment beyond 64 KB", "malformed", fixed(&packet, &[(20, &[0x1f, 0xff])])),
        ("ARP for another hardware", "malformed", with(&question, &[(14, &[0, 6])])),
        ("ARP with long addresses", "malformed", with(&question, &[(18, &[8])])),
        ("LLDP", "non-ip", ethertype(&[0x88, 0xcc])),
        ("an IEEE 802.3 length", "non-ip", ethertype(&[0, 46])),
        ("MPLS", "non-ip", ethertype(&[0x88, 0x47])),
        ("a VLAN tag", "container-tag", tagged(&packet, 5)),
        ("a service tag", "container-tag", with(&tagged(&packet, 5), &[(12, &[0x88, 0xa8])])),
        ("another's address", "spoofed-ip", udp(elsewhere, 1, 2, b"x")?),
        ("another's address in ARP", "spoofed-ip", arp_request(elsewhere)?),
        ("another's MAC", "spoofed-mac", udp(stranger, 1, 2, b"x")?),
        ("an unknown MAC", "unknown-endpoint", with(&packet, &[(0, &[2, 0, 0, 0, 0, 9])])),
        ("a group address", "multicast", with(&packet, &[(0, &[1, 0, 0x5e, 0, 0, 1])])),
        ("its own MAC", "hairpin", udp(Addresses { dst: to_b.src, dst_mac: to_b.src_mac, ..to_b }, 1, 2, b"x")?),
        ("ARP for nobody", "arp-unknown", arp_request(Addresses { dst: Ipv4Addr::new(10, 1, 1, 99), ..to_b })?),
        ("the gateway's MAC and nobody's address", "no-route", udp(Addresses { dst: Ipv4Addr::new(10, 7, 7, 7), dst_mac: [0, 0, 0x11, 0x11, 0x11, 0x11], ..to_b }, 1, 2, b"x")?),
        ("the gateway's MAC and a TTL of 1", "ttl-expired", fixed(&with(&packet, &[(0, &[0, 0, 0x11, 0x11, 0x11, 0x11])]), &[(22, &[1])])),
        ("a service of the gateway", "not-for-us", udp(Addresses { dst: Ipv4Addr::new(10, 1, 1, 254), dst_mac: [0, 0, 0x11, 0x11, 0x11, 0x11], ..to_b }, 1, 53, b"x")?),
    ])
}

fn from_container(scene: &mut Scene) -> Result<()> {
    let socket = capture(scene.a.namespace(), CONTAINER_IFNAME)?;
    for (what, reason, frame) in broken(scene.a_to_b()?)? {
        let send = || (0..COPIES).try_for_each(|_| Ok(socket.send(&frame)?));
        dropped(&scene.one.node, reason, COPIES, send).with_context(|| what.to_owned())?;
    }
    scene.alive()
}

fn cut_frames(scene: &mut Scene) -> Result<()> {
    let socket = capture(scene.a.namespace(), CONTAINER_IFNAME)?;
    let to_b = scene.a_to_b()?;
    let option = fixed(&with(&tcp_syn(to_b, 1000, 80)?, &[]), &[]);
    for whole in [udp(to_b, 1000, 2000, &[7; 40])?, option[..54].to_vec(), arp_request(to_b)?[..42].to_vec()] {
        // A link header is the least a packet socket sends.
        let cuts = 14..whole.len();
        let count = cuts.len() as u64;
        let send = || cuts.clone().try_for_each(|len| Ok(socket.send(&whole[..len])?));
        dropped(&scene.one.node, "malformed", count, send)?;
    }
    scene.alive()
}

fn from_wire(scene: &mut Scene) -> Result<()> {
    let wire = capture(scene.one.fabric.namespace(), FABRIC_PORT)?;
    let outer = scene.outer()?;
    let to_b = Addresses { src: Ipv4Addr::new(10, 1, 1, 200), ..scene.a_to_b()? };
    for (what, reason, inner) in broken(to_b)? {
        // A tunnel's sender is another node's business; tags and the rest are ours.
        let reason = match reason {
            "spoofed-ip" | "spoofed-mac" | "hairpin" | "ttl-expired" | "no-route" => continue,
            "container-tag" => "malformed",
            other => other,
        };
        let frame = vxlan(outer, VNI, &inner)?;
        let send = || (0..COPIES).try_for_each(|_| Ok(wire.send(&frame)?));
        dropped(&scene.one.node, reason, COPIES, send).with_context(|| what.to_owned())?;
    }
    let inner = udp(to_b, 1, 2, b"x")?;
    let good = vxlan(outer, VNI, &inner)?;
    for (what, frame) in [
        ("no I flag", with(&good, &[(42, &[0])])),
        ("an outer datagram longer than its packet", with(&good, &[(38, &[0xff, 0xff])])),
        ("an outer packet longer than its frame", fixed(&good, &[(16, &[0x05, 0xdc])])),
        ("a wrong outer header checksum", with(&good, &[(24, &[0, 1])])),
    ] {
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
        (0..header.len()).try_for_each(|len| {
            Ok(wire.send(&udp(outer, 50_000, VXLAN_PORT, &header[..len])?)?)
        })
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
