//! What sentences say of nodes and containers: configuring, attaching, counting.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{Container, ContainerSpec, Node, Purpose, Topology, TwoNodes, ping, wait_until};
use netdev::Namespace;
use serde_json::Value;

/// Far above what anything here takes on an idle machine.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// Runs netctl once per line.
pub(crate) fn configure(node: &Node, lines: &[&str]) -> Result<()> {
    for line in lines {
        netctl(node, line)?;
    }
    Ok(())
}

/// Runs netctl with the words of `line`, which must succeed without a warning; its stdout.
pub(crate) fn netctl(node: &Node, line: &str) -> Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let done = node.netctl_run(&words)?;
    ensure!(done.stderr.is_empty(), "netctl {line}: {}", done.stderr);
    done.success().with_context(|| format!("netctl {line}"))
}

/// Runs netctl with the words of `line` and reads its JSON.
pub(crate) fn netctl_json(node: &Node, line: &str) -> Result<Value> {
    node.netctl(&line.split_whitespace().collect::<Vec<_>>())
}

/// Attaches a container to a network of tenant blue.
pub(crate) fn attach(node: &Node, name: &str, network: &str) -> Result<Container> {
    attach_to_group(node, name, network, None)
}

/// Attaches a container to a group of tenant blue.
pub(crate) fn attach_to_group(
    node: &Node,
    name: &str,
    network: &str,
    group: Option<&str>,
) -> Result<Container> {
    Container::attach(node, &ContainerSpec { name, tenant: "blue", network, group, args: "" })
}

/// One echo request, answered.
pub(crate) fn reach(from: &Container, to: impl Into<IpAddr>) -> Result<()> {
    let to = to.into();
    let seen = ping(from.namespace(), to, 1)?;
    ensure!(seen.received == 1, "{} does not reach {to}", from.address());
    Ok(())
}

/// As [`reach`], once it works.
pub(crate) fn reach_soon(from: &Container, to: impl Into<IpAddr>) -> Result<()> {
    let to = to.into();
    let what = format!("{} to reach {to}", from.address());
    wait_until(BOUND, what, || reach(from, to).ok())?;
    Ok(())
}

/// Containers a and b on node 1 and c on node 2, of tenant blue.
#[derive(Debug)]
pub(crate) struct Trio {
    pub(crate) a: Container,
    pub(crate) b: Container,
    pub(crate) c: Container,
    pub(crate) nodes: TwoNodes,
}

impl Trio {
    /// Two nodes as they start by default; all three containers in one network.
    pub(crate) fn build() -> Result<Self> {
        let nodes = Topology::new(Purpose::Test).two_nodes()?;
        let lines =
            ["tenant create blue", "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front"];
        configure(&nodes.one, &lines)?;
        let a = attach(&nodes.one, "a", "front")?;
        let b = attach(&nodes.one, "b", "front")?;
        let c = attach(&nodes.two, "c", "front")?;
        let trio = Self { a, b, c, nodes };
        trio.sound()?;
        Ok(trio)
    }

    /// They reach each other, on a node and across.
    pub(crate) fn sound(&self) -> Result<()> {
        for (from, to) in [(&self.a, &self.b), (&self.a, &self.c), (&self.c, &self.b)] {
            reach_soon(from, to.address())?;
        }
        Ok(())
    }
}

/// Packets dropped on a node so far, by reason.
pub(crate) fn all_drops(node: &Node) -> Result<BTreeMap<String, u64>> {
    let drops = node.vrctl(&["drops"])?;
    let row = |row: &Value| Some((row["reason"].as_str()?.to_owned(), row["packets"].as_u64()?));
    let rows = drops.as_array().context("drops is no list")?;
    rows.iter().map(|r| row(r).with_context(|| format!("a row of drops: {r}"))).collect()
}

/// Packets dropped on a node for one reason so far.
pub(crate) fn drops(node: &Node, reason: &str) -> Result<u64> {
    let all = all_drops(node)?;
    all.get(reason).copied().with_context(|| format!("no reason {reason} in {all:?}"))
}

/// Does `send` and sees exactly `count` more drops for `reason`.
pub(crate) fn dropped(
    node: &Node,
    reason: &str,
    count: u64,
    send: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = all_drops(node)?;
    let was = before.get(reason).copied().with_context(|| format!("no reason {reason}"))?;
    send()?;
    let counted = || drops(node, reason).ok().filter(|now| *now >= was + count);
    let waited = wait_until(Duration::from_secs(3), format!("{count} more {reason}"), counted);
    let now = waited.with_context(|| format!("before {before:?}, now {:?}", all_drops(node)))?;
    ensure!(now == was + count, "{} {reason} for {count} frames", now - was);
    Ok(())
}

/// The engine's rows of ports: (id, name).
pub(crate) fn ports(node: &Node) -> Result<BTreeMap<u64, String>> {
    let rows = node.vrctl(&["port", "ls"])?;
    let row = |row: &Value| Some((row["id"].as_u64()?, row["name"].as_str()?.to_owned()));
    let rows = rows.as_array().context("port ls is no list")?;
    rows.iter().map(|r| row(r).with_context(|| format!("a row of port ls: {r}"))).collect()
}

/// The engine's row of a container's port.
pub(crate) fn port_of(node: &Node, container: &Container) -> Result<Value> {
    let name = container.host_ifname().context("ADD named no host interface")?;
    let rows = node.vrctl(&["port", "ls"])?;
    let row = rows.as_array().into_iter().flatten().find(|row| row["name"] == name);
    row.cloned().with_context(|| format!("{name} is not in {rows}"))
}

/// Runs `ip` in a namespace.
pub(crate) fn ip(namespace: &Namespace, line: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(line.split_whitespace());
    kit::run(namespace, command)?.success().with_context(|| format!("ip {line}")).map(drop)
}

/// Names of the links in a node's namespace, without those the kernel makes by itself.
pub(crate) fn links(node: &Node) -> Result<Vec<String>> {
    let links = node.netns().netlink()?.links()?;
    let mut names: Vec<String> = links.into_iter().map(|link| link.name).collect();
    names.retain(|name| !name.starts_with("ifb") && !name.starts_with("tunl"));
    names.sort();
    Ok(names)
}

/// Ids of all endpoints that netmaster has.
pub(crate) fn endpoints(node: &Node) -> Result<Vec<String>> {
    let rows = netctl_json(node, "endpoint ls -a")?;
    let rows = rows.as_array().context("endpoint ls is no list")?;
    let mut ids = rows.iter().filter_map(|row| row["endpointID"].as_str()).collect::<Vec<_>>();
    ids.sort_unstable();
    Ok(ids.into_iter().map(str::to_owned).collect())
}

/// The six bytes of a MAC address in text.
pub(crate) fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().with_context(|| text.to_owned())?;
    bytes.try_into().ok().with_context(|| format!("{text} is no MAC address"))
}

/// A MAC address as text.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Waits until every node follows netmaster: from then on a write waits for all of them.
pub(crate) fn all_connected(node: &Node) -> Result<()> {
    wait_until(BOUND, "every node to be connected", || {
        let nodes = netctl_json(node, "node ls").ok()?;
        nodes.as_array()?.iter().all(|node| node["connected"] == true).then_some(())
    })?;
    Ok(())
}
