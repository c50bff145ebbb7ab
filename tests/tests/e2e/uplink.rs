//! The node's own traffic over the uplink that the engine uses too.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{Daemon, Flow, OneNode, Purpose, TcpServer, Topology, tcp_connect, wait_until};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Test;
use crate::runtime::{Plug, refusal};
use crate::site::{BOUND, links, ports};

/// RFC 7348, section 5.
const VXLAN_PORT: u16 = 4789;
const FABRIC: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 2);

pub(crate) fn tests() -> Vec<Test> {
    let lives = "upl_2_the_hosts_connections_live_through_attach_detach_and_crash";
    let hangs = "upl_2_the_hosts_connections_live_beside_an_engine_that_hangs";
    let refused = "an_uplink_that_the_engine_cannot_take_shows_in_status";
    let shared = |name: &str| format!("{name}_with_a_shared_uplink");
    vec![
        (lives.to_owned(), Box::new(|| host_lives(DEDICATED))),
        (shared(lives), Box::new(|| host_lives(SHARED))),
        (hangs.to_owned(), Box::new(|| beside_a_hang(DEDICATED))),
        (shared(hangs), Box::new(|| beside_a_hang(SHARED))),
        (refused.to_owned(), Box::new(refused_uplink)),
    ]
}

/// A way of taking the uplink.
#[derive(Clone, Copy)]
struct Mode {
    name: &'static str,
    /// Echoes of the host that may be lost over seven attaches and detaches.
    lost_max: u32,
}

/// Each attach and detach restarts the device's queue, which may cost what is in it.
const DEDICATED: Mode = Mode { name: "dedicated", lost_max: 12 };
/// The device is not touched.
const SHARED: Mode = Mode { name: "shared", lost_max: 0 };

fn one_node(mode: Mode) -> Result<OneNode> {
    let mode = ["--uplink-mode", mode.name];
    Topology::new(Purpose::Test).daemon_args(Daemon::Netplugin, &mode).one_node()
}

fn host_lives(mode: Mode) -> Result<()> {
    let mut one = one_node(mode)?;
    taken(&one)?;
    one.node.stop(Daemon::Netplugin)?;
    one.node.stop(Daemon::Vrouterd)?;
    let before = links(&one.node)?;
    let server = TcpServer::start(one.fabric.namespace(), SocketAddr::from((FABRIC, 0)))?;
    let node = one.node.namespace();
    let mut stream = tcp_connect(node, server.address(), Duration::from_secs(2))?;
    let flow = Flow::start(node, FABRIC, Duration::from_millis(5))?;
    echo(&mut stream, "before the engine")?;

    one.node.start(Daemon::Vrouterd)?;
    one.node.start(Daemon::Netplugin)?;
    taken(&one)?;
    echo(&mut stream, "with the uplink attached")?;
    for round in 0..2 {
        one.node.kill(Daemon::Vrouterd)?;
        echo(&mut stream, "after a crash").with_context(|| format!("round {round}"))?;
        one.node.start(Daemon::Vrouterd)?;
        taken(&one)?;
        echo(&mut stream, "attached again").with_context(|| format!("round {round}"))?;
    }
    one.node.stop(Daemon::Netplugin)?;
    one.node.stop(Daemon::Vrouterd)?;
    echo(&mut stream, "after detach")?;
    let report = flow.stop()?;
    ensure!(links(&one.node)? == before, "left: {:?}", links(&one.node)?);
    let lost = report.sent - report.received;
    ensure!(lost <= mode.lost_max && report.gap_max < Duration::from_millis(500), "{report:?}");
    Ok(())
}

/// A stopped process stands for one that hangs: its programs stay attached, and its rings run full.
fn beside_a_hang(mode: Mode) -> Result<()> {
    let mut one = one_node(mode)?;
    taken(&one)?;
    let server = TcpServer::start(one.fabric.namespace(), SocketAddr::from((FABRIC, 0)))?;
    let mut stream = tcp_connect(one.node.namespace(), server.address(), Duration::from_secs(2))?;
    echo(&mut stream, "before")?;
    one.node.process(Daemon::Vrouterd)?.signal(Signal::SIGSTOP)?;
    let flow = Flow::start(one.node.namespace(), FABRIC, Duration::from_millis(5))?;
    // More of Weir's own traffic than a ring holds: nobody takes it, and the host must not notice.
    let vxlan = one.fabric.namespace().run(|| UdpSocket::bind((FABRIC, 0)))??;
    for _ in 0..6000 {
        vxlan.send_to(&[0; 64], (one.node.vtep(), VXLAN_PORT))?;
    }
    echo(&mut stream, "while the engine hangs, on an old connection")?;
    let mut new = tcp_connect(one.node.namespace(), server.address(), Duration::from_secs(2))?;
    echo(&mut new, "and on a new one")?;
    let report = flow.stop()?;
    ensure!(report.sent > 0 && report.sent == report.received, "{report:?}");
    one.node.process(Daemon::Vrouterd)?.signal(Signal::SIGCONT)?;
    taken(&one)?;
    echo(&mut stream, "after it")
}

/// A veth device takes no XDP program above an MTU of about 3,500 bytes.
fn refused_uplink() -> Result<()> {
    let one = Topology::new(Purpose::Test).underlay_mtu(9000).one_node()?;
    let plug = Plug::new(&one.node, "front")?;
    let ask = || refusal(&plug.call(&one.node, "STATUS", &Value::Null)?, 51);
    let limited = || ask().ok().filter(|msg| msg.contains(kit::UPLINK));
    wait_until(BOUND, "STATUS to tell of the uplink", limited)
        .with_context(|| format!("{:?}", plug.call(&one.node, "STATUS", &Value::Null)))?;
    Ok(())
}

fn taken(one: &OneNode) -> Result<()> {
    let attached = || ports(&one.node).ok()?.values().find(|name| *name == kit::UPLINK).cloned();
    wait_until(BOUND, "the uplink to be attached", attached)?;
    Ok(())
}

fn echo(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes()).context(text.to_owned())?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).with_context(|| text.to_owned())?;
    ensure!(back == text.as_bytes(), "the echo of {text:?} differs");
    Ok(())
}
