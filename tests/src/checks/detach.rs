//! DEL gives everything back, and stopped daemons leave nothing on the host.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{Daemon, Node, wait_until};
use netdev::Netlink;

use crate::check::Check;
use crate::world::World;

const BOUND: Duration = Duration::from_secs(10);

pub(crate) const CHECK: Check = Check {
    number: 7,
    title: "DEL gives the address back; nothing is left on the host",
    run,
    sabotage: |world| world.nodes.two.kill(Daemon::Netplugin).map(drop),
};

fn run(world: &mut World) -> Result<String> {
    let endpoints = world.nodes.one.netctl(&["endpoint", "ls", "-a"])?;
    let count = endpoints.as_array().map_or(0, Vec::len);
    ensure!(count == world.containers.len(), "{count} endpoints: {endpoints}");
    let containers = std::mem::take(&mut world.containers);
    for (at, container) in containers.into_iter().enumerate() {
        let node = if matches!(at, 0 | 1 | 4) { &world.nodes.one } else { &world.nodes.two };
        container.detach(node)?;
    }
    let none_left = || {
        let endpoints = world.nodes.one.netctl(&["endpoint", "ls", "-a"]).ok()?;
        endpoints.as_array()?.is_empty().then_some(())
    };
    wait_until(BOUND, "netmaster to have no endpoint", none_left)?;
    // Free when every node knows that nobody has them: decision 0017.
    let all_free = || {
        let show = ["network", "inspect", "-t", "blue", "front"];
        let network = world.nodes.one.netctl(&show).ok()?;
        (network["Oper"]["availableIPAddresses"] == "10.1.1.1-10.1.1.253").then_some(())
    };
    wait_until(BOUND, "10.1.1.1-10.1.1.253 to be free", all_free)?;
    for node in [&world.nodes.one, &world.nodes.two] {
        wait_until(BOUND, "host ends to go", || links(node).ok().filter(|l| l == "lo,up0,wr-t0.0"))
            .with_context(|| format!("{} has {:?}", node.name(), links(node)))?;
    }
    for node in [&mut world.nodes.one, &mut world.nodes.two] {
        node.stop(Daemon::Netplugin)?;
        node.stop(Daemon::Vrouterd)?;
    }
    world.nodes.one.stop(Daemon::Netmaster)?;
    for node in [&world.nodes.one, &world.nodes.two] {
        let left = links(node)?;
        ensure!(left == "lo,up0", "{} has {left}", node.name());
        let sockets = [node.cni_socket(), node.datapath_socket()];
        ensure!(sockets.iter().all(|path| !path.exists()), "a socket is left in {sockets:?}");
    }
    Ok(format!("{count} endpoints and their addresses free again, links lo and up0 only"))
}

fn links(node: &Node) -> Result<String> {
    let links = Netlink::open_in(node.namespace())?.links()?;
    let mut names: Vec<String> = links.into_iter().map(|link| link.name).collect();
    // Devices that the kernel makes in every new namespace.
    names.retain(|name| !name.starts_with("ifb") && !name.starts_with("tunl"));
    names.sort();
    Ok(names.join(","))
}
