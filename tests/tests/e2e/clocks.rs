//! Daemons whose clock jumps, a day ahead and two days back: what lasts goes on lasting, and what ends
//! does so in its time.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{Container, Daemon, DirGuard, Flow, OneNode, Purpose, Topology, wait_until};
use serde_json::Value;

use crate::Test;
use crate::foreign::Suite;
use crate::site::{BOUND, all_connected, attach, configure, netctl, netctl_json, reach_soon};

/// What moves a program's clock, and the tests.
pub(crate) const SUITE: Suite = (&["faketime"], tests);

const INTERVAL: Duration = Duration::from_millis(5);

fn tests() -> Vec<Test> {
    vec![("ha_1_clocks_that_jump_cost_no_packet_and_end_nothing".to_owned(), Box::new(jumps))]
}

fn jumps() -> Result<()> {
    let mut one = Topology::new(Purpose::Test).one_node()?;
    let dir = DirGuard::new(Purpose::Test, "clock")?;
    let clock = dir.path().join("moved");
    fs::write(&clock, "+0")?;
    for daemon in [Daemon::Vrouterd, Daemon::Netplugin, Daemon::Netmaster] {
        one.node.stop(daemon)?;
        one.node.set_clock(daemon, &clock)?;
    }
    for daemon in [Daemon::Netmaster, Daemon::Vrouterd, Daemon::Netplugin] {
        one.node.start(daemon)?;
    }
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "policy create -t blue guard",
        "policy rule-add -t blue -d in -l udp -P 7001 -j deny guard shut",
        "group create -t blue -p guard front web",
        // Served time: an hour of it does not pass here, whatever a clock says.
        "ip reserve -t blue --ip 10.1.1.77 --ttl 60m front",
    ];
    configure(&one.node, &lines)?;
    let a = attach(&one.node, "a", "front")?;
    let b = crate::site::attach_to_group(&one.node, "b", "front", Some("web"))?;
    reach_soon(&a, b.address())?;
    let flow = Flow::start(a.namespace(), b.address(), INTERVAL)?;
    for (round, moved) in [(0, "+1d"), (1, "-1d"), (2, "+0")] {
        after_jump(&one, (&a, &b), (&clock, moved)).with_context(|| format!("{round}: {moved}"))?;
    }
    // What is to end ends, though the clock says that it has not begun.
    netctl(&one.node, "ip reserve -t blue --ip 10.1.1.78 --ttl 1s front")?;
    fs::write(&clock, "-3d")?;
    wait_until(BOUND, "a reservation of a second to end", || {
        (reserved(&one).ok()? == ["10.1.1.77"]).then_some(())
    })
    .with_context(|| format!("{:?}", reserved(&one)))?;
    let report = flow.stop()?;
    ensure!(report.sent > 0 && report.sent == report.received, "{report:?}");
    Ok(())
}

/// The clocks are moved, and everything works as before.
fn after_jump(
    one: &OneNode,
    (a, b): (&Container, &Container),
    (clock, moved): (&Path, &str),
) -> Result<()> {
    let node = &one.node;
    let (before, denials) = (lines(one)?, denied(one)?);
    fs::write(clock, moved)?;
    let next = attach(node, "next", "front")?;
    reach_soon(&next, b.address())?;
    next.detach(node)?;
    all_connected(node)?;
    ensure!(reserved(one)? == ["10.1.1.77"], "{:?}", reserved(one)?);
    // The log of denied packets goes on, whatever time they have.
    let socket = a.namespace().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    wait_until(BOUND, "a denied packet to be logged", || {
        socket.send_to(b"denied", (b.address(), 7001)).ok()?;
        denied(one).ok().filter(|now| *now > denials)
    })?;
    // And the clock has moved: the days of the lines before and after differ.
    let after = lines(one)?;
    let day = |line: Option<&String>| line.and_then(|line| line.get(..10).map(str::to_owned));
    ensure!(day(before.last()) != day(after.last()), "{:?}, {:?}", before.last(), after.last());
    Ok(())
}

/// netplugin's log, whose lines begin with the time of day.
fn lines(one: &OneNode) -> Result<Vec<String>> {
    let log = one.node.log(Daemon::Netplugin)?;
    Ok(log.lines().filter(|line| line.starts_with("20")).map(str::to_owned).collect())
}

fn denied(one: &OneNode) -> Result<usize> {
    Ok(one.node.log(Daemon::Netplugin)?.matches("packet denied").count())
}

fn reserved(one: &OneNode) -> Result<Vec<String>> {
    let rows = netctl_json(&one.node, "ip ls -t blue front")?;
    let rows = rows.as_array().context("ip ls is no list")?;
    let reserved = rows.iter().filter(|row| row["state"] == "reserved");
    let address = |row: &Value| row["ipAddress"].as_str().map(str::to_owned);
    Ok(reserved.filter_map(address).collect())
}
