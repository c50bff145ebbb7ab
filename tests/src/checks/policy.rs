//! A rule is in force for the next packet, and counts exactly.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::frame::{Addresses, tcp_syn};
use kit::{Daemon, TcpServer, capture, tcp_connect, wait_until};
use serde_json::Value;

use crate::check::Check;
use crate::world::{Who, World};

const PORT: u16 = 8001;
const SYNS: u64 = 50;
/// A packet on these nodes takes well under a millisecond.
const CONNECT_BOUND: Duration = Duration::from_millis(300);
const COUNT_BOUND: Duration = Duration::from_secs(5);

pub(crate) const CHECK: Check = Check {
    number: 3,
    title: "a rule is in force for the next packet, reopens at higher priority, counts exactly",
    run,
    sabotage: |world| world.nodes.two.kill(Daemon::Netplugin).map(drop),
};

fn run(world: &mut World) -> Result<String> {
    let (client, server) = (world.container(Who::A)?, world.container(Who::C)?);
    let listener =
        TcpServer::start(server.namespace(), SocketAddr::from((server.address(), PORT)))?;
    let opens = || tcp_connect(client.namespace(), listener.address(), CONNECT_BOUND).is_ok();
    ensure!(opens(), "closed before any rule");

    rule(world, &["rule-add", "-d", "in", "-l", "tcp", "-P", "8001", "-j", "deny"], "deny")?;
    ensure!(!opens(), "open after the deny rule");
    let counted = count(world)?;

    rule(
        world,
        &["rule-add", "-d", "in", "-l", "tcp", "-P", "8001", "-j", "allow", "-p", "10"],
        "allow",
    )?;
    ensure!(opens(), "closed after the allow rule of higher priority");

    rule(world, &["rule-rm"], "allow")?;
    ensure!(!opens(), "open after the allow rule was removed");
    rule(world, &["rule-rm"], "deny")?;
    ensure!(opens(), "closed after all rules were removed");
    Ok(format!(
        "tcp/{PORT} open, closed by deny, open by allow at 10, closed and open again as they go; \
         {SYNS} SYNs counted as {counted}"
    ))
}

/// Runs a rule command. A late node is a failure: "next packet" counts from the acknowledgement.
pub(crate) fn rule(world: &World, command: &[&str], rule: &str) -> Result<()> {
    let (verb, flags) = command.split_first().context("no verb")?;
    let args = [&["policy", verb, "-t", "blue"], flags, &["guard", rule]].concat();
    let done = world.nodes.one.netctl_run(&args)?;
    ensure!(!done.stderr.contains("warning"), "netctl: {}", done.stderr);
    done.success().with_context(|| format!("netctl {}", args.join(" ")))?;
    Ok(())
}

/// Packets of a rule, by netctl.
pub(crate) fn packets(world: &World, rule: &str) -> Result<u64> {
    let rules = world.nodes.one.netctl(&["policy", "rule-ls", "-t", "blue", "guard"])?;
    let row = rules.as_array().into_iter().flatten().find(|row| row["ruleId"] == rule);
    let row: &Value = row.with_context(|| format!("no rule {rule} in {rules}"))?;
    row["packets"].as_u64().with_context(|| format!("no packets in {row}"))
}

fn count(world: &World) -> Result<u64> {
    let (client, server) = (world.container(Who::A)?, world.container(Who::C)?);
    let addresses = Addresses {
        src_mac: client.mac()?,
        dst_mac: server.mac()?,
        src: client.address(),
        dst: server.address(),
    };
    let before = packets(world, "deny")?;
    let socket = capture(client.namespace(), kit::CONTAINER_IFNAME)?;
    for port in 0..SYNS {
        socket.send(&tcp_syn(addresses, 20_000 + u16::try_from(port)?, PORT)?)?;
    }
    let arrived = || packets(world, "deny").ok().filter(|n| *n >= before + SYNS);
    let after = wait_until(COUNT_BOUND, format!("{SYNS} packets on the rule"), arrived)?;
    ensure!(after == before + SYNS, "{} counted, {SYNS} sent", after - before);
    Ok(after - before)
}
