//! Everyone inside a tenant reaches everyone, and TCP carries bulk.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use kit::{TcpServer, ping, tcp_transfer};

use crate::check::Check;
use crate::world::{BLUE, Who, World};

const PINGS: u32 = 3;
const BULK_BYTES: u64 = 64 << 20;

pub(crate) const CHECK: Check = Check {
    number: 1,
    title: "every pair inside a tenant reaches each other; TCP bulk with default offloads",
    run,
    sabotage: |world| world.unplug(Who::C),
};

fn run(world: &mut World) -> Result<String> {
    let mut pairs = 0;
    for from in BLUE {
        for to in BLUE.into_iter().filter(|to| *to != from) {
            reach(world, from, to)?;
            pairs += 1;
        }
    }
    reach(world, Who::RedA, Who::RedB)?;
    reach(world, Who::RedB, Who::RedA)?;
    let local = bulk(world, Who::A, Who::B)?;
    let remote = bulk(world, Who::A, Who::D)?;
    Ok(format!(
        "{pairs} blue and 2 red pairs answered, TTL 64 bridged and 63 routed; \
         TCP echo {local:.1} Gbit/s each way on a node, {remote:.1} across nodes and gateway"
    ))
}

fn reach(world: &World, from: Who, to: Who) -> Result<()> {
    let (sender, receiver) = (world.container(from)?, world.container(to)?);
    let result = ping(sender.namespace(), receiver.address(), PINGS)?;
    ensure!(result.received == PINGS, "{from:?} -> {to:?}: {result:?}");
    let routed = (from == Who::D) != (to == Who::D);
    let ttl = if routed { 63 } else { 64 };
    ensure!(result.ttl == Some(ttl), "{from:?} -> {to:?}: TTL {:?}, not {ttl}", result.ttl);
    Ok(())
}

fn bulk(world: &World, from: Who, to: Who) -> Result<f64> {
    let (client, server) = (world.container(from)?, world.container(to)?);
    let listener = TcpServer::start(server.namespace(), SocketAddr::from((server.address(), 0)))?;
    let took = tcp_transfer(client.namespace(), listener.address(), BULK_BYTES);
    let took = took.with_context(|| format!("bulk {from:?} -> {to:?}"))?;
    let bits = f64::from(u32::try_from(BULK_BYTES)?) * 8.0;
    Ok(bits / took.as_secs_f64() / 1e9)
}
