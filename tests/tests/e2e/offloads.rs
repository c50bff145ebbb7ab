//! Packets of every size and offload arrive as they were sent.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use kit::frame::{Addresses, icmp_echo};
use kit::{
    CONTAINER_IFNAME, Container, FABRIC_PORT, OneNode, Purpose, TcpServer, Topology, capture,
    tcp_transfer, wait_until,
};
use netdev::ethtool::{self, Feature, State};
use netdev::packet::PacketSocket;

use crate::Test;
use crate::control::{create_endpoint, register};
use crate::packet::{Packet, expect};
use crate::shared::sharing;
use crate::site::{BOUND, Trio, attach, configure, reach_soon};

const BULK_BYTES: u64 = 24 << 20;
const PORT: u16 = 7000;
/// A container's MTU less the headers of IPv4 and UDP.
const LARGEST: usize = 1450 - 28;

pub(crate) fn tests() -> Vec<Test> {
    let mut tests = sharing(
        Trio::build,
        &[
            ("net_7_tcp_bulk_with_default_offloads_arrives_intact", bulk),
            ("net_7_every_checksum_that_reaches_a_container_is_complete", checksums),
            ("net_7_echo_requests_of_all_sizes_are_answered", all_sizes),
            ("net_7_a_datagram_in_fragments_arrives_whole", fragments),
            ("net_7_a_packet_of_exactly_the_containers_mtu_crosses_the_overlay", full_size),
        ],
    );
    let wire = "net_7_the_largest_packet_fills_the_underlays_mtu_and_keeps_df";
    tests.push((wire.to_owned(), Box::new(full_frames)));
    let large = "net_7_a_large_underlay_gives_containers_what_the_engine_carries";
    tests.push((large.to_owned(), Box::new(large_underlay)));
    tests
}

impl Trio {
    /// To a container of the same node, and to one of the other.
    const fn ways(&self) -> [(&'static str, &Container, &Container); 2] {
        [("on a node", &self.a, &self.b), ("across nodes", &self.a, &self.c)]
    }
}

fn bind(container: &Container, port: u16) -> Result<UdpSocket> {
    let address = SocketAddr::from((container.address(), port));
    let socket = container.namespace().run(|| UdpSocket::bind(address))??;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

fn bulk(scene: &mut Trio) -> Result<()> {
    for (way, from, to) in scene.ways() {
        for feature in [Feature::TxChecksum, Feature::Tso, Feature::Gso] {
            let state = from.namespace().run(|| ethtool::get(CONTAINER_IFNAME, feature))??;
            ensure!(state == State::On, "{feature:?} of the container is {state:?}");
        }
        let server = TcpServer::start(to.namespace(), SocketAddr::from((to.address(), 0)))?;
        tcp_transfer(from.namespace(), server.address(), BULK_BYTES).context(way)?;
    }
    Ok(())
}

/// The kernel does not verify what a veth pair says is verified; this does. What the kernel forwards
/// by itself never leaves it: its checksums are complete when it does, and here the engine sends.
fn checksums(scene: &mut Trio) -> Result<()> {
    scene.nodes.one.vrctl_run(&["offload", "off"])?.success()?;
    let checked = all_checksums(scene);
    scene.nodes.one.vrctl_run(&["offload", "on"])?.success()?;
    checked
}

fn all_checksums(scene: &Trio) -> Result<()> {
    for (way, from, to) in scene.ways() {
        let inside = capture(to.namespace(), CONTAINER_IFNAME)?;
        let server = TcpServer::start(to.namespace(), SocketAddr::from((to.address(), 0)))?;
        let outcome = thread::scope(|scope| {
            let transfer =
                scope.spawn(|| tcp_transfer(from.namespace(), server.address(), 1 << 20));
            let verified = (0..200).try_for_each(|_| verify_next(&inside));
            let transferred = transfer.join().map_err(|_panic| anyhow!("the client panicked"))?;
            verified.and(transferred.map(drop))
        });
        outcome.context(way)?;
    }
    Ok(())
}

fn verify_next(inside: &PacketSocket) -> Result<()> {
    let tcp = |frame: &[u8]| Packet::parse(frame).filter(|packet| packet.protocol == 6);
    let packet = expect(inside, "a TCP segment", tcp)?;
    ensure!(packet.has_good_checksum(), "an unfinished checksum: {packet:?}");
    Ok(())
}

fn all_sizes(scene: &mut Trio) -> Result<()> {
    for (way, from, to) in scene.ways() {
        let socket = capture(from.namespace(), CONTAINER_IFNAME)?;
        let addresses = Addresses {
            src_mac: from.mac()?,
            dst_mac: to.mac()?,
            src: from.address(),
            dst: to.address(),
        };
        for (sequence, size) in (0..=1400).step_by(50).chain([LARGEST]).enumerate() {
            let payload: Vec<u8> = (0..size).map(|at| (at / 3) as u8).collect();
            let sequence = sequence as u16;
            socket.send(&icmp_echo(addresses, 77, sequence, &payload)?)?;
            let answer = |frame: &[u8]| {
                // Type and code are where ports would be; then checksum, id and sequence number.
                let packet = Packet::parse(frame).filter(|packet| packet.protocol == 1)?;
                let wanted = [77_u16.to_be_bytes(), sequence.to_be_bytes()].concat();
                let (head, data) = packet.rest.split_at_checked(4)?;
                (packet.src_port == 0 && head == wanted).then(|| data.to_vec())
            };
            let what = format!("{way}: the answer to {size} bytes");
            let data = expect(&socket, &what, answer)?;
            ensure!(data == payload, "{what} differs: {} bytes", data.len());
        }
    }
    Ok(())
}

fn fragments(scene: &mut Trio) -> Result<()> {
    for (way, from, to) in scene.ways() {
        let (sender, receiver) = (bind(from, PORT)?, bind(to, PORT)?);
        for size in [1423_usize, 4000, 40_000] {
            let data: Vec<u8> = (0..size).map(|at| (at / 7) as u8).collect();
            sender.send_to(&data, (to.address(), PORT))?;
            let mut buffer = vec![0; 65_536];
            let (len, _) =
                receiver.recv_from(&mut buffer).with_context(|| format!("{way}: {size} bytes"))?;
            ensure!(buffer[..len] == data, "{way}: {len} of {size} bytes, or others");
        }
    }
    Ok(())
}

fn full_size(scene: &mut Trio) -> Result<()> {
    for (way, from, to) in scene.ways() {
        let (sender, receiver) = (bind(from, PORT)?, bind(to, PORT)?);
        let inside = capture(to.namespace(), CONTAINER_IFNAME)?;
        sender.send_to(&[0x5a; LARGEST], (to.address(), PORT))?;
        let mut buffer = vec![0; 65_536];
        let (len, _) = receiver.recv_from(&mut buffer).context(way)?;
        ensure!(buffer[..len] == [0x5a; LARGEST], "{way}: {len} bytes");
        let packet = expect(&inside, way, |frame| {
            Packet::parse(frame).filter(|packet| packet.dst_port == PORT)
        })?;
        // Linux sends datagrams that fit with DF.
        ensure!(packet.dont_fragment && packet.rest.len() == LARGEST + 4, "{way}: {packet:?}");
    }
    Ok(())
}

fn full_frames() -> Result<()> {
    const PEER: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 200);
    let one: OneNode = Topology::new(Purpose::Test).one_node()?;
    let lines = ["tenant create blue", "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front"];
    configure(&one.node, &lines)?;
    register(&one.node, "fabric", "10.250.0.2")?;
    let peer = control_api::v1::Endpoint {
        endpoint_id: "peer:eth0".into(),
        tenant_name: "blue".into(),
        network_name: "front".into(),
        ip_address: vec![PEER.to_string()],
        homing_host: "fabric".into(),
        ..Default::default()
    };
    create_endpoint(&one.node, peer)?;
    let a = attach(&one.node, "a", "front")?;
    let socket = bind(&a, PORT)?;
    let wire = capture(one.fabric.namespace(), FABRIC_PORT)?;
    let arrives = || {
        socket.send_to(&[0x5a; LARGEST], (PEER, PORT)).ok()?;
        let frame = wire.receive(Duration::from_millis(100)).ok()??;
        let inner = Packet::parse(Packet::parse(&frame)?.open()?.1)?;
        Some((frame.len(), inner))
    };
    let (len, inner) = wait_until(BOUND, "a full datagram in VXLAN", arrives)?;
    ensure!(len == 1500 + 14, "{len} bytes on an underlay of 1500");
    ensure!(inner.dont_fragment && inner.has_good_checksum(), "{inner:?}");
    ensure!(inner.rest.ends_with(&[0x5a; LARGEST]), "the payload differs");
    Ok(())
}

/// The engine's packet buffers are smaller than what such an underlay carries.
fn large_underlay() -> Result<()> {
    let nodes = Topology::new(Purpose::Test).underlay_mtu(3000).two_nodes()?;
    let lines = ["tenant create blue", "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front"];
    configure(&nodes.one, &lines)?;
    let a = attach(&nodes.one, "a", "front")?;
    let b = attach(&nodes.one, "b", "front")?;
    let c = attach(&nodes.two, "c", "front")?;
    for (way, to) in [("on a node", &b), ("across nodes", &c)] {
        reach_soon(&a, to.address()).context(way)?;
        let server = TcpServer::start(to.namespace(), SocketAddr::from((to.address(), 0)))?;
        tcp_transfer(a.namespace(), server.address(), 4 << 20).context(way)?;
    }
    let mtu = a.result()["interfaces"][1]["mtu"].as_u64();
    ensure!(mtu == Some(1500), "the container's MTU is {mtu:?}");
    Ok(())
}
