//! The engine explains a packet, and what it says is what happens.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{TcpServer, tcp_connect};
use serde_json::Value;

use crate::check::Check;
use crate::checks::policy::rule;
use crate::world::{Who, World};

const CONNECT_BOUND: Duration = Duration::from_millis(300);
const OPEN: u16 = 8000;
const DENIED: u16 = 8001;

pub(crate) const CHECK: Check = Check {
    number: 4,
    title: "trace explains a permitted and a denied packet, and the live verdict is the same",
    run,
    sabotage: |world| {
        rule(world, &["rule-add", "-d", "in", "-l", "tcp", "-P", "8000", "-j", "deny"], "broken")
    },
};

fn run(world: &mut World) -> Result<String> {
    rule(world, &["rule-add", "-d", "in", "-l", "tcp", "-P", "8001", "-j", "deny"], "deny")?;
    let (client, server) = (world.container(Who::A)?, world.container(Who::B)?);
    let permitted = trace(world, OPEN)?;
    ensure!(permitted["verdict"] == "forward", "tcp/{OPEN}: {permitted}");
    ensure!(permitted["out_ports"][0] == world.port(Who::B)?["id"], "tcp/{OPEN}: {permitted}");
    let denied = trace(world, DENIED)?;
    ensure!(denied["verdict"] == "drop", "tcp/{DENIED}: {denied}");
    ensure!(denied["reason"] == "policy-deny", "tcp/{DENIED}: {denied}");
    let rule_id = denied["rule"].as_u64().filter(|id| *id != 0).context("no rule id")?;
    let steps = denied["steps"].as_array().map_or(0, Vec::len);
    ensure!(steps >= 3, "only {steps} steps: {denied}");
    for (port, open) in [(OPEN, true), (DENIED, false)] {
        let address = SocketAddr::from((server.address(), port));
        let listener = TcpServer::start(server.namespace(), address)?;
        let live = tcp_connect(client.namespace(), listener.address(), CONNECT_BOUND).is_ok();
        ensure!(live == open, "tcp/{port} is {live} live");
    }
    rule(world, &["rule-rm"], "deny")?;
    Ok(format!(
        "tcp/{OPEN} forward to the right port, tcp/{DENIED} policy-deny by rule {rule_id} in \
         {steps} steps; both as live"
    ))
}

fn trace(world: &World, port: u16) -> Result<Value> {
    let (client, server) = (world.container(Who::A)?, world.container(Who::B)?);
    let flow = format!(
        "in_port={},eth_src={},eth_dst={},tcp,nw_src={},nw_dst={},tp_src=40000,tp_dst={port}",
        client.host_ifname().context("no host interface")?,
        colons(client.mac()?),
        colons(server.mac()?),
        client.address(),
        server.address(),
    );
    world.nodes.one.vrctl(&["trace", &flow])
}

fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
