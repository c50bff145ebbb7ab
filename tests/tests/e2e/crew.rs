//! Several workers on a node: each with its CPU and trunk, and together what one would be.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{Daemon, Node, Purpose, TcpServer, Topology, tcp_echo, wait_until};
use serde_json::Value;

use crate::Test;
use crate::shared::sharing;
use crate::site::{
    BOUND, Trio, attach, attach_to_group, configure, links, netctl, port_of, reach_soon,
};

const PORT: u16 = 7300;
/// Enough for each of two workers to have some, in all but one run of 2^60.
const FLOWS: usize = 64;
/// More than the engine sees of an offloaded flow.
const ROUNDS: usize = 40;

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("dp_1_two_workers_carry_the_flows_and_count_every_packet_once", both_carry),
            ("dp_1_connections_to_another_node_pass_whichever_worker_meets_which_way", far),
            ("pol_5_a_rule_is_in_force_on_both_workers_when_it_is_acknowledged", both_change),
            ("ha_3_a_killed_engine_comes_back_with_two_workers_or_one", killed),
        ],
    )
}

/// a and b are in a group with rules, on node 1, whose engine has two workers.
fn build() -> Result<Trio> {
    let mut nodes = Topology::new(Purpose::Test).two_nodes()?;
    nodes.one.stop(Daemon::Vrouterd)?;
    nodes.one.set_args(Daemon::Vrouterd, &["--cpus", "0,1"]);
    nodes.one.start(Daemon::Vrouterd)?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "policy create -t blue guard",
        "group create -t blue -p guard front guarded",
    ];
    configure(&nodes.one, &lines)?;
    let a = attach(&nodes.one, "a", "front")?;
    let b = attach_to_group(&nodes.one, "b", "front", Some("guarded"))?;
    let c = attach(&nodes.two, "c", "front")?;
    let scene = Trio { a, b, c, nodes };
    scene.sound()?;
    Ok(scene)
}

/// Packets of each worker, by number; each is on the CPU of its number.
fn carried(node: &Node) -> Result<Vec<u64>> {
    let workers = node.vrctl(&["worker"])?;
    let rows = workers.as_array().context("no workers")?;
    let packets = (0_u64..).zip(rows).map(|(number, row)| {
        ensure!(row["worker"] == number && row["cpu"] == number, "{row}");
        row["packets"].as_u64().context("a worker without packets")
    });
    packets.collect()
}

fn number(row: &Value, field: &str) -> Result<u64> {
    row[field].as_u64().with_context(|| format!("{field} of {row}"))
}

impl Trio {
    /// Sockets of a, one a flow, and one of b that all of them send to.
    fn sockets(&self) -> Result<(Vec<UdpSocket>, UdpSocket)> {
        let to = self.b.namespace().run(|| UdpSocket::bind((self.b.address(), PORT)))??;
        to.set_read_timeout(Some(BOUND))?;
        let bind = || UdpSocket::bind((self.a.address(), 0));
        let from = self.a.namespace().run(|| (0..FLOWS).map(|_| bind()).collect())?;
        let from: std::io::Result<Vec<_>> = from;
        Ok((from?, to))
    }

    /// Every flow asks and is answered, again and again.
    fn talk(&self, rounds: usize) -> Result<()> {
        let (from, to) = self.sockets()?;
        for round in 0..rounds {
            for socket in &from {
                socket.set_read_timeout(Some(BOUND))?;
                socket.send_to(&round.to_be_bytes(), (self.b.address(), PORT))?;
                let mut bytes = [0; 8];
                let (_, asker) = to.recv_from(&mut bytes).context("the question")?;
                to.send_to(&bytes, asker)?;
                socket.recv(&mut bytes).context("the answer")?;
                ensure!(bytes == round.to_be_bytes());
            }
        }
        Ok(())
    }
}

fn both_carry(scene: &mut Trio) -> Result<()> {
    let node = &scene.nodes.one;
    let counted = || -> Result<[u64; 4]> {
        let (a, b) = (port_of(node, &scene.a)?, port_of(node, &scene.b)?);
        let of = |row: &Value| anyhow::Ok([number(row, "rx_packets")?, number(row, "tx_packets")?]);
        let ([a_rx, a_tx], [b_rx, b_tx]) = (of(&a)?, of(&b)?);
        Ok([a_rx, a_tx, b_rx, b_tx])
    };
    let (before, carried_before) = (counted()?, carried(node)?);
    ensure!(carried_before.len() == 2, "{carried_before:?}");
    scene.talk(ROUNDS)?;
    let (after, carried_after) = (counted()?, carried(node)?);
    let sent = (FLOWS * ROUNDS) as u64;
    for (before, after) in before.into_iter().zip(after) {
        // Between them they also ask for each other's MAC.
        ensure!((sent..sent + 8).contains(&(after - before)), "{before} to {after}, {sent} sent");
    }
    for (before, after) in carried_before.iter().zip(&carried_after) {
        ensure!(after - before > sent / 20, "{carried_before:?} to {carried_after:?}");
    }
    let offload = node.vrctl(&["offload"])?;
    ensure!(offload["packets"].as_u64().is_some_and(|packets| packets > 0), "{offload}");
    Ok(())
}

fn far(scene: &mut Trio) -> Result<()> {
    let node = &scene.nodes.one;
    let before = carried(node)?;
    for (number, (from, to)) in [(&scene.a, &scene.c), (&scene.c, &scene.a)].into_iter().enumerate()
    {
        let address = SocketAddr::from((to.address(), PORT + number as u16));
        let _server = TcpServer::start(to.namespace(), address)?;
        for _ in 0..24 {
            tcp_echo(from.namespace(), address, &[7; 15_000])?;
        }
    }
    let after = carried(node)?;
    // What comes from the wire is worker 0's; what containers send there is on both.
    ensure!(
        before.iter().zip(&after).all(|(before, after)| after - before > 50),
        "{before:?} {after:?}"
    );
    Ok(())
}

fn both_change(scene: &mut Trio) -> Result<()> {
    let node = &scene.nodes.one;
    let deny = format!("policy rule-add -t blue -d in -l udp -P {PORT} -j deny guard stop");
    for _ in 0..5 {
        let (from, to) = scene.sockets()?;
        to.set_read_timeout(Some(Duration::from_millis(300)))?;
        for socket in &from {
            socket.send_to(b"ask", (scene.b.address(), PORT))?;
        }
        let mut heard = BTreeSet::new();
        while heard.len() < FLOWS {
            heard.insert(to.recv_from(&mut [0; 8]).context("before the rule")?.1);
        }
        netctl(node, &deny)?;
        while to.recv_from(&mut [0; 8]).is_ok() {}
        let bind = || UdpSocket::bind((scene.a.address(), 0));
        let fresh = scene.a.namespace().run(|| (0..FLOWS).map(|_| bind()).collect())?;
        let fresh: std::io::Result<Vec<_>> = fresh;
        let fresh = fresh?;
        for socket in &fresh {
            socket.send_to(b"ask", (scene.b.address(), PORT))?;
        }
        ensure!(to.recv_from(&mut [0; 8]).is_err(), "a packet passed after the rule");
        netctl(node, "policy rule-rm -t blue guard stop")?;
    }
    Ok(())
}

fn killed(scene: &mut Trio) -> Result<()> {
    for (list, trunks) in [("0,1", 2), ("0", 1), ("0-1", 2)] {
        scene.nodes.one.set_args(Daemon::Vrouterd, &["--cpus", list]);
        scene.nodes.one.kill(Daemon::Vrouterd)?;
        scene.nodes.one.start(Daemon::Vrouterd)?;
        for (from, to) in [(&scene.a, &scene.b), (&scene.a, &scene.c), (&scene.c, &scene.b)] {
            reach_soon(from, to.address())?;
        }
        scene.talk(2)?;
        let node = &scene.nodes.one;
        let there =
            || links(node).ok().map(|all| all.iter().filter(|l| l.starts_with("wr-t0.")).count());
        wait_until(BOUND, "the former trunks are gone", || {
            there().filter(|count| *count == trunks)
        })?;
        ensure!(carried(node)?.len() == trunks);
    }
    Ok(())
}
