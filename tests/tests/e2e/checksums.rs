//! Every packet that a container receives has complete checksums, whatever its sender leaves to the
//! device, and whichever way it came through the engine: CORR-1's matrix. The kernel believes what a veth pair says is
//! verified, so the frames are looked at here.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use kit::{
    CONTAINER_IFNAME, Container, Daemon, Purpose, TcpServer, Topology, TwoNodes, capture,
    tcp_transfer,
};
use netdev::ethtool::{self, Feature, State};
use netdev::packet::PacketSocket;

use crate::Test;
use crate::packet::{Packet, expect};
use crate::shared::sharing;
use crate::site::{attach, configure, reach_soon};

const PORT: u16 = 7300;
const BULK_BYTES: u64 = 256 << 10;
/// Segments of a transfer that are looked at.
const SEGMENTS: usize = 30;
const ETHERNET_BYTES: usize = 14;
const HEADER_BYTES: usize = 20;

/// What a sender does without. The rest is on, as the kernel makes a veth.
const WITHOUT: [(&str, &[Feature]); 7] = [
    ("all offloads", &[]),
    ("no checksum offload", &[Feature::TxChecksum]),
    ("no TSO", &[Feature::Tso]),
    ("no TSO and no GSO", &[Feature::Tso, Feature::Gso]),
    ("no scatter-gather", &[Feature::ScatterGather]),
    ("no VLAN offload", &[Feature::TxVlan, Feature::RxVlan]),
    (
        "no offload",
        &[Feature::TxChecksum, Feature::Tso, Feature::Gso, Feature::ScatterGather, Feature::TxVlan],
    ),
];

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("corr_1_segments_are_complete_with_every_offload_on_every_way", segments),
            ("corr_1_datagrams_are_complete_with_every_offload_on_every_way", datagrams),
            ("corr_1_fragments_are_complete_with_every_offload_on_every_way", fragments),
        ],
    )
}

/// Node 1: a and b in an overlay, r in another one, v in a VLAN; node 2: c in the first overlay, w in
/// the VLAN.
#[derive(Debug)]
struct Scene {
    a: Container,
    b: Container,
    r: Container,
    c: Container,
    v: Container,
    w: Container,
    /// Holds the nodes as long as the containers.
    _nodes: TwoNodes,
}

fn build() -> Result<Scene> {
    // What the kernel forwards by itself on a node keeps its checksum for later, as on any veth.
    let engine_only = ["--offload", "off"];
    let nodes = Topology::new(Purpose::Test).daemon_args(Daemon::Vrouterd, &engine_only);
    let nodes = nodes.two_nodes()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "network create -t blue -s 10.1.2.0/24 -g 10.1.2.254 back",
        "network create -t blue -s 10.2.2.0/24 -g 10.2.2.254 -e vlan -p 100 lan",
    ];
    configure(&nodes.one, &lines)?;
    let scene = Scene {
        a: attach(&nodes.one, "a", "front")?,
        b: attach(&nodes.one, "b", "front")?,
        r: attach(&nodes.one, "r", "back")?,
        c: attach(&nodes.two, "c", "front")?,
        v: attach(&nodes.one, "v", "lan")?,
        w: attach(&nodes.two, "w", "lan")?,
        _nodes: nodes,
    };
    for (way, from, to) in scene.ways() {
        reach_soon(from, to.address()).context(way)?;
    }
    Ok(scene)
}

impl Scene {
    const fn ways(&self) -> [(&'static str, &Container, &Container); 4] {
        [
            ("switched on a node", &self.a, &self.b),
            ("routed on a node", &self.a, &self.r),
            ("in VXLAN", &self.a, &self.c),
            ("in a VLAN", &self.v, &self.w),
        ]
    }

    /// Each way with each set of offloads.
    fn each(&self, check: impl Fn(&Container, &Container) -> Result<()>) -> Result<()> {
        for (way, from, to) in self.ways() {
            for (name, without) in WITHOUT {
                let what = format!("{way}, {name}");
                set(from, without, State::Off).with_context(|| what.clone())?;
                let checked = check(from, to);
                // In the order in which one allows the next.
                let back =
                    [Feature::ScatterGather, Feature::TxChecksum, Feature::Gso, Feature::Tso];
                set(from, &back, State::On)?;
                set(from, &[Feature::TxVlan, Feature::RxVlan], State::On)?;
                checked.context(what)?;
            }
        }
        Ok(())
    }
}

fn set(container: &Container, features: &[Feature], state: State) -> Result<()> {
    container.namespace().run(|| {
        features.iter().try_for_each(|feature| ethtool::set(CONTAINER_IFNAME, *feature, state))
    })??;
    Ok(())
}

fn bind(container: &Container, port: u16) -> Result<UdpSocket> {
    let address = SocketAddr::from((container.address(), port));
    let socket = container.namespace().run(|| UdpSocket::bind(address))??;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// The sum of an IPv4 header's words is all ones (RFC 791, section 3.1).
fn has_good_header(frame: &[u8]) -> bool {
    let header = frame.get(ETHERNET_BYTES..ETHERNET_BYTES + HEADER_BYTES).unwrap_or_default();
    let words = header.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    (sum & 0xffff) + (sum >> 16) == 0xffff
}

/// The next packet of a protocol, which is whole.
fn verified(inside: &PacketSocket, protocol: u8) -> Result<Packet> {
    let (frame, packet) = expect(inside, "a packet", |frame| {
        let packet = Packet::parse(frame).filter(|packet| packet.protocol == protocol)?;
        Some((frame.to_vec(), packet))
    })?;
    ensure!(has_good_header(&frame), "an unfinished header: {:02x?}", &frame[..34]);
    ensure!(packet.has_good_checksum(), "an unfinished checksum: {packet:?}");
    Ok(packet)
}

fn segments(scene: &mut Scene) -> Result<()> {
    scene.each(|from, to| {
        let inside = capture(to.namespace(), CONTAINER_IFNAME)?;
        let server = TcpServer::start(to.namespace(), SocketAddr::from((to.address(), 0)))?;
        std::thread::scope(|scope| {
            let transfer =
                scope.spawn(|| tcp_transfer(from.namespace(), server.address(), BULK_BYTES));
            let seen = (0..SEGMENTS).try_for_each(|_| verified(&inside, 6).map(drop));
            let moved = transfer.join().map_err(|_panic| anyhow!("the client panicked"))?;
            moved.map(drop).and(seen)
        })
    })
}

fn datagrams(scene: &mut Scene) -> Result<()> {
    scene.each(|from, to| {
        let (sender, receiver) = (bind(from, PORT)?, bind(to, PORT)?);
        let inside = capture(to.namespace(), CONTAINER_IFNAME)?;
        // An odd number of bytes has a last one to be summed by itself.
        for size in [0_usize, 1, 333, 1400] {
            let data: Vec<u8> = (0..size).map(|at| (at / 3) as u8).collect();
            sender.send_to(&data, (to.address(), PORT))?;
            let mut buffer = vec![0; 2048];
            let (len, _) = receiver.recv_from(&mut buffer)?;
            ensure!(buffer[..len] == data, "{len} of {size} bytes, or others");
            let packet = verified(&inside, 17)?;
            ensure!(packet.rest.ends_with(&data), "{size} bytes differ: {packet:?}");
        }
        Ok(())
    })
}

/// The part of a packet that a frame carries: its offset, whether more follow, the frame.
fn fragment(frame: &[u8]) -> Option<(usize, bool, Vec<u8>)> {
    let udp = frame.get(12..14)? == [0x08, 0x00] && *frame.get(23)? == 17;
    let field = u16::from_be_bytes(frame.get(20..22)?.try_into().ok()?);
    let part = field & 0x3fff != 0;
    (udp && part).then(|| (usize::from(field & 0x1fff) * 8, field & 0x2000 != 0, frame.to_vec()))
}

fn fragments(scene: &mut Scene) -> Result<()> {
    const SIZE: usize = 4001;
    scene.each(|from, to| {
        let (sender, receiver) = (bind(from, PORT)?, bind(to, PORT)?);
        let inside = capture(to.namespace(), CONTAINER_IFNAME)?;
        let data: Vec<u8> = (0..SIZE).map(|at| (at / 7) as u8).collect();
        sender.send_to(&data, (to.address(), PORT))?;
        let mut buffer = vec![0; 65_536];
        let (len, _) = receiver.recv_from(&mut buffer)?;
        ensure!(buffer[..len] == data, "{len} of {SIZE} bytes, or others");
        let mut whole = Vec::new();
        loop {
            let (offset, more, frame) = expect(&inside, "a fragment", fragment)?;
            ensure!(has_good_header(&frame), "an unfinished header: {:02x?}", &frame[..34]);
            let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            let payload = &frame[ETHERNET_BYTES + HEADER_BYTES..ETHERNET_BYTES + total];
            ensure!(offset + HEADER_BYTES + ETHERNET_BYTES == whole.len().max(34), "out of order");
            if whole.is_empty() {
                whole.extend(&frame[..ETHERNET_BYTES + HEADER_BYTES]);
            }
            whole.extend(payload);
            if !more {
                break;
            }
        }
        // As it was before it was cut.
        let total = (whole.len() - ETHERNET_BYTES) as u16;
        whole[16..18].copy_from_slice(&total.to_be_bytes());
        let packet = Packet::parse(&whole).context("the fragments are no packet")?;
        ensure!(packet.has_good_checksum(), "an unfinished checksum over {SIZE} bytes");
        ensure!(packet.rest.ends_with(&data), "the fragments carry something else");
        Ok(())
    })
}
