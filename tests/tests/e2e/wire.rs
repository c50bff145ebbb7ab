//! Overlay and VLAN networks as they are on the wire, with peers that are not Weir.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use control_api::v1;
use kit::frame::{Addresses, arp_request, tagged, tcp_syn, udp};
use kit::{
    Container, FABRIC_PORT, OneNode, Purpose, TcpServer, Topology, UPLINK, capture, ping,
    tcp_transfer, wait_until,
};
use netdev::ethtool::{self, Feature, State};
use netdev::packet::PacketSocket;

use crate::Test;
use crate::control::{create_endpoint, register};
use crate::packet::{Packet, VXLAN_PORT, arp, arp_reply, expect, untag, vxlan};
use crate::shared::sharing;
use crate::site::{
    BOUND, all_drops, attach, attach_to_group, configure, dropped, mac, mac_text, netctl,
    netctl_json,
};

const VNI: u32 = 4242;
const VID: u16 = 100;
/// The endpoint on the fabric.
const PEER: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 200);
const FABRIC: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 2);
/// A host of the physical VLAN.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 2, 2, 50);
const OUTSIDE_MAC: [u8; 6] = [0x02, 0xaa, 0, 0, 0, 0x50];
const PORT: u16 = 7000;

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("net_1_packets_leave_in_vxlan_with_the_networks_tag", vxlan_out),
            ("net_1_a_crafted_vxlan_packet_reaches_its_container", vxlan_in),
            ("net_1_a_kernel_vxlan_device_is_a_peer_for_ping_and_tcp", kernel_peer),
            ("net_4_a_packet_that_expires_at_the_gateway_is_answered", expiring),
            ("net_7_a_vlan_network_has_the_whole_mtu_of_the_underlay", vlan_mtu),
            ("net_6_known_addresses_are_not_asked_for_on_the_underlay", no_broadcasts),
            ("net_2_an_unknown_address_is_asked_for_with_the_networks_tag", vlan_arp_out),
            ("net_2_a_host_of_the_vlan_and_a_container_talk_without_nat", vlan_both_ways),
            ("ten_2_vxlan_of_strangers_is_dropped_by_reason", strangers),
            ("upl_2_what_is_not_weirs_stays_the_hosts", left_to_the_host),
            ("pol_9_a_packet_from_a_tunnel_meets_the_receivers_rules", tunnel_policy),
        ],
    )
}

/// A node whose fabric has a VTEP and an endpoint behind it.
#[derive(Debug)]
struct Scene {
    /// In network front.
    a: Container,
    /// In network front, group web.
    b: Container,
    /// In network lan.
    v: Container,
    peer_mac: [u8; 6],
    one: OneNode,
}

fn build() -> Result<Scene> {
    let one = Topology::new(Purpose::Test).one_node()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 -p 4242 front",
        "network create -t blue -s 10.2.2.0/24 -g 10.2.2.254 -e vlan -p 100 lan",
        "policy create -t blue guard",
        "group create -t blue -p guard front web",
        "policy rule-add -t blue -d in -l tcp -P 8001 -j deny guard shut",
    ];
    configure(&one.node, &lines)?;
    register(&one.node, "fabric", &FABRIC.to_string())?;
    let peer = create_endpoint(
        &one.node,
        v1::Endpoint {
            endpoint_id: "peer:eth0".into(),
            tenant_name: "blue".into(),
            network_name: "front".into(),
            ip_address: vec![PEER.to_string()],
            homing_host: "fabric".into(),
            ..Default::default()
        },
    )?;
    let a = attach(&one.node, "a", "front")?;
    let b = attach_to_group(&one.node, "b", "front", Some("web"))?;
    let v = attach(&one.node, "v", "lan")?;
    let scene = Scene { a, b, v, peer_mac: mac(&peer.mac_address)?, one };
    // The next hop towards the fabric is found in the background.
    let wire = scene.wire()?;
    let sent = || {
        scene.to_peer(1, 1).ok()?;
        let frame = wire.receive(Duration::from_millis(100)).ok()??;
        Packet::parse(&frame)?.open().map(drop)
    };
    wait_until(BOUND, "the tunnel to the fabric", sent)?;
    Ok(scene)
}

impl Scene {
    fn wire(&self) -> Result<PacketSocket> {
        capture(self.one.fabric.namespace(), FABRIC_PORT)
    }

    /// A datagram from container a to the endpoint on the fabric.
    fn to_peer(&self, src_port: u16, dst_port: u16) -> Result<()> {
        let from = SocketAddr::from((self.a.address(), src_port));
        let socket = self.a.namespace().run(|| UdpSocket::bind(from))??;
        socket.send_to(b"to the fabric", (PEER, dst_port))?;
        Ok(())
    }

    /// MAC addresses of both ends of the underlay: the node's, the fabric's.
    fn underlay(&self) -> Result<([u8; 6], [u8; 6])> {
        let near = self.one.node.netns().netlink()?.link_by_name(UPLINK)?;
        let far = self.one.fabric.netlink()?.link_by_name(FABRIC_PORT)?;
        Ok((near.context("no uplink")?.mac, far.context("no fabric port")?.mac))
    }

    /// From the fabric's VTEP to the node's.
    fn outer(&self) -> Result<Addresses> {
        let (near, far) = self.underlay()?;
        Ok(Addresses { src_mac: far, dst_mac: near, src: FABRIC, dst: self.one.node.vtep() })
    }

    /// From the endpoint on the fabric to a container.
    fn inner(&self, to: &Container) -> Result<Addresses> {
        let (dst_mac, dst) = (to.mac()?, to.address());
        Ok(Addresses { src_mac: self.peer_mac, dst_mac, src: PEER, dst })
    }

    /// From a host of the VLAN to container v.
    fn outside_to_v(&self) -> Result<Addresses> {
        let (dst_mac, dst) = (self.v.mac()?, self.v.address());
        Ok(Addresses { src_mac: OUTSIDE_MAC, dst_mac, src: OUTSIDE, dst })
    }
}

fn bind(container: &Container, port: u16) -> Result<UdpSocket> {
    let address = SocketAddr::from((container.address(), port));
    let socket = container.namespace().run(|| UdpSocket::bind(address))??;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

fn vxlan_out(scene: &mut Scene) -> Result<()> {
    let wire = scene.wire()?;
    let (near, far) = scene.underlay()?;
    let own_mac = scene.a.mac()?;
    let mut sources = BTreeSet::new();
    for flow in 0..64 {
        scene.to_peer(20_000 + flow, 9)?;
        let packet = expect(&wire, "a datagram in VXLAN", |frame| {
            let packet = Packet::parse(frame)?;
            let inner = Packet::parse(packet.open()?.1)?;
            (inner.src_port == 20_000 + flow).then_some(packet)
        })?;
        let (vni, inner) = packet.open().context("no VXLAN")?;
        let inner = Packet::parse(inner).context("nothing inside")?;
        ensure!(vni == VNI, "VNI {vni}");
        ensure!((packet.src_mac, packet.dst_mac) == (near, far), "outer MACs: {packet:?}");
        ensure!((packet.src, packet.dst) == (scene.one.node.vtep(), FABRIC), "{packet:?}");
        ensure!(packet.dst_port == VXLAN_PORT && packet.src_port >= 0xc000, "{packet:?}");
        ensure!((inner.src_mac, inner.dst_mac) == (own_mac, scene.peer_mac), "{inner:?}");
        ensure!((inner.src, inner.dst) == (scene.a.address(), PEER), "{inner:?}");
        ensure!(inner.has_good_checksum(), "an unfinished checksum on the wire: {inner:?}");
        sources.insert(packet.src_port);
    }
    ensure!(sources.len() >= 8, "64 flows have {} source ports", sources.len());
    Ok(())
}

fn vxlan_in(scene: &mut Scene) -> Result<()> {
    let wire = scene.wire()?;
    let socket = bind(&scene.a, PORT)?;
    let inner = udp(scene.inner(&scene.a)?, 9, PORT, b"from the fabric")?;
    wire.send(&vxlan(scene.outer()?, VNI, &inner)?)?;
    let mut buffer = [0; 64];
    let (len, from) = socket.recv_from(&mut buffer).context("nothing arrived")?;
    ensure!(&buffer[..len] == b"from the fabric", "{:?}", &buffer[..len]);
    ensure!(from == SocketAddr::from((PEER, 9)), "from {from}");
    Ok(())
}

fn kernel_peer(scene: &mut Scene) -> Result<()> {
    let fabric = &scene.one.fabric;
    // A wire carries whole checksums; between two ends of a veth pair the kernel leaves them out.
    fabric.run(|| ethtool::set(FABRIC_PORT, Feature::TxChecksum, State::Off))??;
    let (mac, vtep) = (mac_text(scene.peer_mac), scene.one.node.vtep());
    for line in [
        format!(
            "link add vx0 address {mac} mtu 1450 type vxlan id {VNI} local {FABRIC} \
             remote {vtep} dev {FABRIC_PORT} dstport {VXLAN_PORT}"
        ),
        format!("address add {PEER}/24 dev vx0"),
        "link set vx0 up".to_owned(),
    ] {
        let mut command = Command::new("ip");
        command.args(line.split_whitespace());
        kit::run(fabric.namespace(), command)?.success().with_context(|| format!("ip {line}"))?;
    }
    let outcome = talk(scene);
    let netlink = scene.one.fabric.netlink()?;
    let device = netlink.link_by_name("vx0")?.context("vx0 is gone")?;
    netlink.delete_link(device.index)?;
    outcome
}

fn talk(scene: &Scene) -> Result<()> {
    let (a, fabric) = (&scene.a, &scene.one.fabric);
    let out = ping(a.namespace(), PEER, 3)?;
    ensure!(out.received == 3 && out.ttl == Some(64), "container to peer: {out:?}");
    let back = ping(fabric.namespace(), a.address(), 3)?;
    ensure!(back.received == 3 && back.ttl == Some(64), "peer to container: {back:?}");
    let server = TcpServer::start(fabric.namespace(), SocketAddr::from((PEER, 0)))?;
    tcp_transfer(a.namespace(), server.address(), 4 << 20).context("container to peer")?;
    let server = TcpServer::start(a.namespace(), SocketAddr::from((a.address(), 0)))?;
    tcp_transfer(fabric.namespace(), server.address(), 4 << 20).context("peer to container")?;
    Ok(())
}

fn expiring(scene: &mut Scene) -> Result<()> {
    /// Time exceeded in transit (RFC 792), where ports would be.
    const TIME_EXCEEDED: u16 = 0x0b00;
    let inside = capture(scene.a.namespace(), kit::CONTAINER_IFNAME)?;
    let socket = bind(&scene.a, 0)?;
    socket.set_ttl(1)?;
    dropped(&scene.one.node, "ttl-expired", 1, || {
        Ok(socket.send_to(b"one hop", (scene.v.address(), 9)).map(drop)?)
    })?;
    let answer = expect(&inside, "the gateway's answer", |frame| {
        Packet::parse(frame).filter(|packet| packet.protocol == 1)
    })?;
    ensure!(answer.src == Ipv4Addr::new(10, 1, 1, 254), "{answer:?}");
    ensure!(answer.dst == scene.a.address() && answer.src_port == TIME_EXCEEDED, "{answer:?}");
    Ok(())
}

fn vlan_mtu(scene: &mut Scene) -> Result<()> {
    let mtu = |container: &Container| container.result()["interfaces"][1]["mtu"].as_u64();
    ensure!(mtu(&scene.v) == Some(1500), "{:?} in a VLAN", mtu(&scene.v));
    ensure!(mtu(&scene.a) == Some(1450), "{:?} in an overlay", mtu(&scene.a));
    Ok(())
}

fn no_broadcasts(scene: &mut Scene) -> Result<()> {
    let (wire, node) = (scene.wire()?, capture(scene.a.namespace(), kit::CONTAINER_IFNAME)?);
    let broadcast = Addresses {
        src_mac: scene.a.mac()?,
        dst_mac: [0xff; 6],
        src: scene.a.address(),
        dst: PEER,
    };
    for _ in 0..10 {
        node.send(&arp_request(broadcast)?)?;
        let answer = |frame: &[u8]| arp(frame).filter(|(op, ..)| *op == 2);
        let (_, mac, ip, _) = expect(&node, "an answer from this node", answer)?;
        ensure!((mac, ip) == (scene.peer_mac, PEER), "{ip} is at {mac:?}");
    }
    // Everything sent before this datagram has come when it has.
    scene.to_peer(30_000, 9)?;
    expect(&wire, "the last datagram", |frame| {
        let packet = Packet::parse(frame)?;
        let (_, inner) = packet.open()?;
        if arp(inner).is_some() {
            return Some(Err(anyhow::anyhow!("ARP in a tunnel: {inner:02x?}")));
        }
        Packet::parse(inner).filter(|inner| inner.src_port == 30_000).map(|_| Ok(()))
    })?
}

fn vlan_arp_out(scene: &mut Scene) -> Result<()> {
    let wire = scene.wire()?;
    let socket = bind(&scene.v, 0)?;
    socket.send_to(b"anybody?", (Ipv4Addr::new(10, 2, 2, 77), 9))?;
    let (vid, question) = expect(&wire, "a tagged ARP request", |frame| {
        let (vid, frame) = untag(frame)?;
        Some((vid, arp(&frame)?))
    })?;
    let wanted = (1, scene.v.mac()?, scene.v.address(), Ipv4Addr::new(10, 2, 2, 77));
    ensure!(vid == VID && question == wanted, "tag {vid}, {question:?}");
    Ok(())
}

fn vlan_both_ways(scene: &mut Scene) -> Result<()> {
    let wire = scene.wire()?;
    let to_us = scene.outside_to_v()?;
    // Their question is answered by the node, with the container's own address.
    wire.send(&tagged(&arp_request(Addresses { dst_mac: [0xff; 6], ..to_us })?, VID))?;
    let (vid, answer) = expect(&wire, "a tagged ARP answer", |frame| {
        let (vid, frame) = untag(frame)?;
        Some((vid, arp(&frame).filter(|(op, ..)| *op == 2)?))
    })?;
    let wanted = (2, to_us.dst_mac, to_us.dst, OUTSIDE);
    ensure!(vid == VID && answer == wanted, "tag {vid}, {answer:?}");

    let socket = bind(&scene.v, PORT)?;
    socket.send_to(b"out", (OUTSIDE, 9))?;
    expect(&wire, "our question for the host", |frame| {
        arp(&untag(frame)?.1).filter(|(op, _, _, target)| (*op, *target) == (1, OUTSIDE))
    })?;
    wire.send(&tagged(&arp_reply(to_us)?, VID))?;
    let (vid, packet) = expect(&wire, "the datagram", |frame| {
        let (vid, frame) = untag(frame)?;
        Some((vid, Packet::parse(&frame).filter(|packet| packet.dst == OUTSIDE)?))
    })?;
    ensure!(vid == VID, "tag {vid}");
    ensure!((packet.src_mac, packet.dst_mac) == (to_us.dst_mac, OUTSIDE_MAC), "{packet:?}");
    ensure!((packet.src, packet.src_port) == (to_us.dst, PORT), "{packet:?}");

    let inside = capture(scene.v.namespace(), kit::CONTAINER_IFNAME)?;
    wire.send(&tagged(&udp(to_us, 9, PORT, b"in")?, VID))?;
    let mut buffer = [0; 64];
    let (len, from) = socket.recv_from(&mut buffer).context("nothing arrived")?;
    ensure!(&buffer[..len] == b"in" && from == SocketAddr::from((OUTSIDE, 9)), "from {from}");
    let frame = expect(&inside, "the frame in the container", |frame| {
        let packet = Packet::parse(frame).or_else(|| Packet::parse(&untag(frame)?.1))?;
        (packet.src == OUTSIDE).then(|| frame.to_vec())
    })?;
    ensure!(untag(&frame).is_none(), "the tag reaches the container");
    Ok(())
}

fn strangers(scene: &mut Scene) -> Result<()> {
    let wire = scene.wire()?;
    let node = &scene.one.node;
    let (outer, to_a) = (scene.outer()?, scene.inner(&scene.a)?);
    let inner = udp(to_a, 9, PORT, b"stranger")?;
    let stranger = Addresses { src: Ipv4Addr::new(10, 250, 0, 9), ..outer };
    let elsewhere = Addresses { src: Ipv4Addr::new(10, 9, 9, 9), ..to_a };
    let nobody = Addresses { dst_mac: [2, 0, 0, 0, 0, 9], ..to_a };
    let in_vxlan = |frame: &[u8]| vxlan(outer, VNI, frame);
    let cases = [
        ("unknown-vni", vxlan(outer, VNI + 1, &inner)?),
        ("unknown-vni", vxlan(outer, 0, &inner)?),
        ("unknown-vtep", vxlan(stranger, VNI, &inner)?),
        ("unknown-endpoint", in_vxlan(&udp(nobody, 9, PORT, b"nobody")?)?),
        ("malformed", in_vxlan(&tagged(&inner, VID))?),
        (
            "arp-unknown",
            in_vxlan(&arp_request(Addresses { dst_mac: [0xff; 6], dst: PEER, ..to_a })?)?,
        ),
        ("multicast", in_vxlan(&udp(Addresses { dst_mac: [0xff; 6], ..to_a }, 9, PORT, b"all")?)?),
        // From the tunnel to the tunnel it came from.
        (
            "split-horizon",
            in_vxlan(&udp(
                Addresses { dst_mac: scene.peer_mac, dst: PEER, ..elsewhere },
                9,
                PORT,
                b"back",
            )?)?,
        ),
    ];
    let inside = capture(scene.a.namespace(), kit::CONTAINER_IFNAME)?;
    for (reason, frame) in cases {
        dropped(node, reason, 5, || (0..5).try_for_each(|_| Ok(wire.send(&frame)?)))?;
    }
    wire.send(&in_vxlan(&udp(to_a, 9, PORT, b"the last")?)?)?;
    let arrived = expect(&inside, "the peer's datagram", |frame| {
        Packet::parse(frame).filter(|packet| packet.dst_port == PORT)
    })?;
    ensure!(arrived.rest.ends_with(b"the last"), "a stranger's packet arrived: {arrived:?}");
    Ok(())
}

fn left_to_the_host(scene: &mut Scene) -> Result<()> {
    let wire = scene.wire()?;
    let node = &scene.one.node;
    let before = all_drops(node)?;
    let host = capture(node.namespace(), UPLINK)?;
    let (outer, to_a) = (scene.outer()?, scene.inner(&scene.a)?);
    let inner = udp(to_a, 9, PORT, b"not ours")?;
    let elsewhere = Addresses { dst: Ipv4Addr::new(10, 250, 0, 77), ..outer };
    for (what, frame) in [
        ("a VLAN that no network has", tagged(&udp(scene.outside_to_v()?, 9, PORT, b"x")?, 101)),
        ("VXLAN to another host", vxlan(elsewhere, VNI, &inner)?),
        ("UDP to another port", udp(outer, 9, VXLAN_PORT + 1, &inner)?),
        ("an echo request", kit::frame::icmp_echo(outer, 7, 7, b"host")?),
    ] {
        wire.send(&frame)?;
        let same = |seen: &[u8]| seen.starts_with(&frame).then_some(());
        expect(&host, what, same).with_context(|| format!("{what} does not reach the host"))?;
    }
    let after = all_drops(node)?;
    let moved = |reason: &str| (before.get(reason), after.get(reason));
    for reason in ["unknown-vlan", "unknown-vtep", "unknown-vni", "not-for-us", "malformed"] {
        let (was, is) = moved(reason);
        ensure!(was == is, "the engine took what is the host's: {reason} {was:?} to {is:?}");
    }
    Ok(())
}

fn tunnel_policy(scene: &mut Scene) -> Result<()> {
    const FRAMES: u64 = 20;
    let wire = scene.wire()?;
    let inside = capture(scene.b.namespace(), kit::CONTAINER_IFNAME)?;
    let (outer, to_b) = (scene.outer()?, scene.inner(&scene.b)?);
    let count = || {
        let rules = netctl_json(&scene.one.node, "policy rule-ls -t blue guard")?;
        rules[0]["packets"].as_u64().with_context(|| format!("no packets: {rules}"))
    };
    let before = count()?;
    let denied = vxlan(outer, VNI, &tcp_syn(to_b, 40_000, 8001)?)?;
    dropped(&scene.one.node, "policy-deny", FRAMES, || {
        (0..FRAMES).try_for_each(|_| Ok(wire.send(&denied)?))
    })?;
    ensure!(count()? == before + FRAMES, "the rule counted {}", count()? - before);
    wire.send(&vxlan(outer, VNI, &tcp_syn(to_b, 40_000, 8002)?)?)?;
    let arrived = expect(&inside, "the allowed packet", |frame| {
        Packet::parse(frame).filter(|packet| packet.src == PEER)
    })?;
    ensure!(arrived.dst_port == 8002, "a denied packet arrived: {arrived:?}");

    // And from the packet after a change on, as for packets of this node's containers.
    netctl(&scene.one.node, "policy rule-rm -t blue guard shut")?;
    wire.send(&denied)?;
    expect(&inside, "tcp/8001 once the rule is gone", |frame| {
        Packet::parse(frame).filter(|packet| packet.dst_port == 8001)
    })?;
    netctl(&scene.one.node, "policy rule-add -t blue -d in -l tcp -P 8001 -j deny guard shut")?;
    dropped(&scene.one.node, "policy-deny", 1, || Ok(wire.send(&denied)?))
}
