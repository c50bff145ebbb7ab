//! Connections as programs feel them: replies need no rule, strays get nowhere, what a change of
//! policy does to what is open, and what a restart does not do to it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::frame::{Addresses, tcp_ack};
use kit::{
    CONTAINER_IFNAME, Container, Daemon, Purpose, TcpServer, Topology, TwoNodes, capture, ping,
    tcp_connect, tcp_echo, wait_until,
};

use crate::Test;
use crate::shared::sharing;
use crate::site::{BOUND, attach_to_group, configure, dropped, netctl, reach_soon};

const SERVICE: u16 = 8001;
/// Far longer than a packet takes here, and than TCP waits before it sends again.
const PATIENCE: Duration = Duration::from_millis(700);

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("pol_3_replies_pass_without_a_rule_of_their_own", replies),
            ("pol_3_an_allowed_source_port_without_a_connection_opens_nothing", source_port),
            ("pol_3_a_segment_that_belongs_to_no_connection_is_dropped", stray_segment),
            ("pol_3_an_icmp_error_about_a_connection_passes_and_ends_it", icmp_error),
            ("pol_3_fragments_follow_their_first", fragments),
            ("pol_5_a_denied_connection_is_cut_and_goes_on_when_it_is_allowed_again", cut),
            ("pol_5_a_denied_connection_may_be_left_to_end", finish),
            ("pol_9_a_rule_at_the_receiver_holds_for_what_comes_from_another_node", both_ends),
            ("ha_3_open_connections_outlive_a_restart_of_the_engine", restart),
        ],
    )
}

/// Tenant blue, where what no rule allows is denied. Clients c (node 1) and d (node 2) may open
/// anything; server s (node 1) may only be asked at its service and by ping.
#[derive(Debug)]
struct Scene {
    c: Container,
    d: Container,
    s: Container,
    nodes: TwoNodes,
}

fn build() -> Result<Scene> {
    let nodes = Topology::new(Purpose::Test)
        .daemon_args(Daemon::Vrouterd, &["--pickup-seconds", "20"])
        .two_nodes()?;
    let lines = [
        "tenant create blue --default-verdict deny",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "policy create -t blue asks",
        "policy rule-add -t blue -d out -j allow asks all",
        "policy create -t blue serves",
        "policy rule-add -t blue -d in -l tcp -P 8001 -j allow serves service",
        "policy rule-add -t blue -d in -l icmp -j allow serves ping",
        "group create -t blue -p asks front clients",
        "group create -t blue -p serves front servers",
    ];
    configure(&nodes.one, &lines)?;
    let c = attach_to_group(&nodes.one, "c", "front", Some("clients"))?;
    let d = attach_to_group(&nodes.two, "d", "front", Some("clients"))?;
    let s = attach_to_group(&nodes.one, "s", "front", Some("servers"))?;
    reach_soon(&c, s.address())?;
    reach_soon(&d, s.address())?;
    Ok(Scene { c, d, s, nodes })
}

impl Scene {
    fn service(&self) -> SocketAddr {
        SocketAddr::from((self.s.address(), SERVICE))
    }

    fn serve(&self) -> Result<TcpServer> {
        TcpServer::start(self.s.namespace(), self.service())
    }

    fn opens(&self, from: &Container) -> bool {
        tcp_connect(from.namespace(), self.service(), PATIENCE).is_ok()
    }
}

/// One byte there and back.
fn alive(stream: &mut TcpStream) -> Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    let mut answer = [0];
    match stream.read(&mut answer) {
        Ok(1) => Ok(true),
        Ok(_) => anyhow::bail!("the connection was closed"),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Reads what a stalled connection still owes and sees it answer again.
fn recovers(stream: &mut TcpStream) -> Result<()> {
    wait_until(BOUND, "the connection to go on", || alive(stream).ok().filter(|alive| *alive))?;
    Ok(())
}

fn replies(scene: &mut Scene) -> Result<()> {
    let _server = scene.serve()?;
    for client in [&scene.c, &scene.d] {
        tcp_echo(client.namespace(), scene.service(), &vec![7; 20_000])?;
        ensure!(ping(client.namespace(), scene.s.address(), 3)?.received == 3, "no ping");
        // The server may answer; it may not ask.
        let back = ping(scene.s.namespace(), client.address(), 1)?;
        ensure!(back.received == 0, "the server's own ping passes");
    }
    Ok(())
}

fn source_port(scene: &mut Scene) -> Result<()> {
    // What Contiv's mirrored rules let pass (its defect D7): anything from the service's port.
    let socket = scene.s.namespace().run(|| UdpSocket::bind(scene.service()))??;
    let node = &scene.nodes.one;
    dropped(node, "policy-deny", 1, || {
        socket.send_to(b"from an allowed port", (scene.c.address(), 9000))?;
        Ok(())
    })?;
    let refused = tcp_connect(scene.s.namespace(), (scene.c.address(), SERVICE).into(), PATIENCE);
    ensure!(refused.is_err(), "the server opens a connection");
    Ok(())
}

fn stray_segment(scene: &mut Scene) -> Result<()> {
    let addresses = Addresses {
        src_mac: scene.c.mac()?,
        dst_mac: scene.s.mac()?,
        src: scene.c.address(),
        dst: scene.s.address(),
    };
    // The engines' time of picking up is over when one of them says no.
    let inside = capture(scene.c.namespace(), CONTAINER_IFNAME)?;
    let mut port = 30_000;
    wait_until(BOUND * 2, "a stray segment to be dropped", || {
        port += 1;
        let stray = tcp_ack(addresses, port, SERVICE).ok()?;
        dropped(&scene.nodes.one, "no-connection", 1, || inside.send(&stray).map_err(Into::into))
            .ok()
    })?;
    Ok(())
}

fn icmp_error(scene: &mut Scene) -> Result<()> {
    netctl(
        &scene.nodes.one,
        "policy rule-add -t blue -d in -l udp -P 9001 -j allow serves closed",
    )?;
    for client in [&scene.c, &scene.d] {
        let socket = client.namespace().run(|| UdpSocket::bind((client.address(), 0)))??;
        socket.connect((scene.s.address(), 9001))?;
        socket.set_read_timeout(Some(BOUND))?;
        socket.send(b"anybody?")?;
        // Nobody listens: "port unreachable" comes back, though no rule lets the server send.
        let error = socket.recv(&mut [0; 8]).err().context("somebody listens")?;
        ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
    }
    netctl(&scene.nodes.one, "policy rule-rm -t blue serves closed").map(drop)
}

fn fragments(scene: &mut Scene) -> Result<()> {
    netctl(&scene.nodes.one, "policy rule-add -t blue -d in -l udp -P 9002 -j allow serves big")?;
    let server = scene.s.namespace().run(|| UdpSocket::bind((scene.s.address(), 9002)))??;
    server.set_read_timeout(Some(BOUND))?;
    for client in [&scene.c, &scene.d] {
        let socket = client.namespace().run(|| UdpSocket::bind((client.address(), 0)))??;
        let sent: Vec<u8> = (0..5000_u16).map(|n| n as u8).collect();
        socket.send_to(&sent, (scene.s.address(), 9002))?;
        let mut buffer = vec![0; 9000];
        let (len, from) = server.recv_from(&mut buffer).context("a datagram of 5,000 bytes")?;
        ensure!(buffer[..len] == sent, "{len} bytes came, and others");
        server.send_to(&buffer[..len], from)?;
        socket.set_read_timeout(Some(BOUND))?;
        let len = socket.recv(&mut buffer).context("the answer of 5,000 bytes")?;
        ensure!(buffer[..len] == sent, "{len} bytes came back, and others");
    }
    netctl(&scene.nodes.one, "policy rule-rm -t blue serves big").map(drop)
}

fn cut(scene: &mut Scene) -> Result<()> {
    let _server = scene.serve()?;
    for client in [&scene.c, &scene.d] {
        let mut stream = tcp_connect(client.namespace(), scene.service(), BOUND)?;
        ensure!(alive(&mut stream)?, "the connection does not work");
        let deny = "policy rule-add -t blue -d in -l tcp -P 8001 -p 50 -j deny serves shut";
        netctl(&scene.nodes.one, deny)?;
        ensure!(!alive(&mut stream)?, "a denied connection goes on");
        ensure!(!scene.opens(client), "a denied connection opens");
        netctl(&scene.nodes.one, "policy rule-rm -t blue serves shut")?;
        recovers(&mut stream)?;
    }
    Ok(())
}

fn finish(scene: &mut Scene) -> Result<()> {
    let _server = scene.serve()?;
    netctl(&scene.nodes.one, "tenant update blue --on-deny finish")?;
    for client in [&scene.c, &scene.d] {
        let mut stream = tcp_connect(client.namespace(), scene.service(), BOUND)?;
        ensure!(alive(&mut stream)?, "the connection does not work");
        let deny = "policy rule-add -t blue -d in -l tcp -P 8001 -p 50 -j deny serves shut";
        netctl(&scene.nodes.one, deny)?;
        ensure!(alive(&mut stream)?, "a connection that may end by itself is cut");
        ensure!(!scene.opens(client), "a denied connection opens");
        netctl(&scene.nodes.one, "policy rule-rm -t blue serves shut")?;
    }
    netctl(&scene.nodes.one, "tenant update blue --on-deny cut").map(drop)
}

fn both_ends(scene: &mut Scene) -> Result<()> {
    // The sender's own rules allow all: it is the receiver's node that drops it.
    let socket = scene.d.namespace().run(|| UdpSocket::bind((scene.d.address(), 0)))??;
    dropped(&scene.nodes.one, "policy-deny", 1, || {
        socket.send_to(b"not a service", (scene.s.address(), 9003))?;
        Ok(())
    })
}

fn restart(scene: &mut Scene) -> Result<()> {
    let _server = scene.serve()?;
    let mut streams = Vec::new();
    for client in [&scene.c, &scene.d] {
        let mut stream = tcp_connect(client.namespace(), scene.service(), BOUND)?;
        ensure!(alive(&mut stream)?, "the connection does not work");
        streams.push(stream);
    }
    scene.nodes.one.kill(Daemon::Vrouterd)?;
    scene.nodes.one.start(Daemon::Vrouterd)?;
    reach_soon(&scene.c, scene.s.address())?;
    reach_soon(&scene.d, scene.s.address())?;
    streams.iter_mut().try_for_each(recovers)
}
