//! Traffic does not notice that the control plane is gone, and finds its way back after the engine
//! was restarted.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{Daemon, Flow, TcpServer, ping, tcp_connect, wait_until};

use crate::check::Check;
use crate::world::{BLUE, Who, World};

const INTERVAL: Duration = Duration::from_millis(2);
const REQUESTS: u64 = 500;
const BOUND: Duration = Duration::from_secs(20);
const CONNECT_BOUND: Duration = Duration::from_secs(2);

pub(crate) const CHECK: Check = Check {
    number: 5,
    title: "netmaster stopped: no loss; vrouterd restarted: ports come back, connections live on",
    run,
    sabotage: |world| world.nodes.two.kill(Daemon::Vrouterd).map(drop),
};

fn run(world: &mut World) -> Result<String> {
    let (from, to) = (Who::A, Who::C);
    world.nodes.one.stop(Daemon::Netmaster)?;
    let sender = world.container(from)?;
    let receiver = world.container(to)?;
    let flow = Flow::start(sender.namespace(), receiver.address(), INTERVAL)?;
    let sent = || answered(world, to).filter(|packets| *packets >= REQUESTS);
    let before = answered(world, to).context("no counters")?;
    wait_until(BOUND, "packets without netmaster", || sent().filter(|n| *n >= before + REQUESTS))?;
    let report = flow.stop()?;
    ensure!(report.received == report.sent, "without netmaster: {report:?}");

    let listener =
        TcpServer::start(receiver.namespace(), SocketAddr::from((receiver.address(), 0)))?;
    let mut stream = tcp_connect(sender.namespace(), listener.address(), CONNECT_BOUND)?;
    echo(&mut stream, b"before")?;
    let flow = Flow::start(sender.namespace(), receiver.address(), INTERVAL)?;
    world.nodes.one.stop(Daemon::Vrouterd)?;
    world.nodes.one.start(Daemon::Vrouterd)?;
    let (sender, receiver) = (world.container(from)?, world.container(to)?);
    let back = || ping(sender.namespace(), receiver.address(), 1).ok().filter(|p| p.received == 1);
    wait_until(BOUND, "an answer after the restart", back)?;
    echo(&mut stream, b"after")?;
    let gap = flow.stop()?;
    for who in BLUE {
        world.port(who)?;
    }
    world.nodes.one.start(Daemon::Netmaster)?;
    wait_until(BOUND, "both nodes to be connected again", || connected(world))?;
    Ok(format!(
        "{} of {} answered without netmaster; vrouterd back after a gap of {} ms \
         ({} of {} lost at {} ms intervals), a TCP connection lived on",
        report.received,
        report.sent,
        gap.gap_max.as_millis(),
        gap.sent - gap.received,
        gap.sent,
        INTERVAL.as_millis(),
    ))
}

fn connected(world: &World) -> Option<()> {
    let nodes = world.nodes.one.netctl(&["node", "ls"]).ok()?;
    nodes.as_array()?.iter().all(|node| node["connected"] == true).then_some(())
}

fn answered(world: &World, who: Who) -> Option<u64> {
    world.port(who).ok()?["rx_packets"].as_u64()
}

fn echo(stream: &mut TcpStream, text: &[u8]) -> Result<()> {
    stream.write_all(text)?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).context("reading the echo")?;
    ensure!(back == text, "the echo differs");
    Ok(())
}
