//! Nodes joined by an underlay: what end-to-end tests and the demo start from.
//!
//! Two nodes: namespaces joined by one veth pair, 10.250.0.1/24 and 10.250.0.2/24, netmaster in
//! the first. One node: its uplink ends in a bare namespace, the fabric, where a test can see and
//! send every frame, since no engine takes them first.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use netdev::{Namespace, Netlink, VethSpec};

use crate::netns::{NetnsGuard, Purpose};
use crate::node::{Daemon, DaemonArgs, Node};
use crate::wait::wait_until;

/// Name of a node's device to the underlay.
pub const UPLINK: &str = "up0";
/// Name of the fabric's end of a node's uplink.
pub const FABRIC_PORT: &str = "fab0";
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 1);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 2);
const PREFIX_LEN: u8 = 24;
const RUNNING_BOUND: Duration = Duration::from_secs(10);

/// What to build.
#[derive(Debug, Clone)]
pub struct Topology {
    purpose: Purpose,
    underlay_mtu: u32,
    extra_args: DaemonArgs,
    netmasters: Vec<String>,
}

impl Topology {
    /// An underlay of 1500 bytes, daemons with their ordinary flags.
    #[must_use]
    pub const fn new(purpose: Purpose) -> Self {
        let extra_args = DaemonArgs::new();
        Self { purpose, underlay_mtu: 1500, extra_args, netmasters: Vec::new() }
    }

    /// MTU of the underlay in bytes.
    #[must_use]
    pub const fn underlay_mtu(mut self, mtu: u32) -> Self {
        self.underlay_mtu = mtu;
        self
    }

    /// Where the nodes find netmasters that are none of the topology's own.
    #[must_use]
    pub fn netmasters(mut self, urls: Vec<String>) -> Self {
        self.netmasters = urls;
        self
    }

    /// Adds flags for every instance of a daemon.
    #[must_use]
    pub fn daemon_args(mut self, daemon: Daemon, args: &[&str]) -> Self {
        let all = self.extra_args.entry(daemon).or_default();
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Two nodes with all daemons running and ready.
    ///
    /// # Errors
    /// When a daemon does not start, with the end of its log.
    pub fn two_nodes(self) -> Result<TwoNodes> {
        let mut nodes = self.two_nodes_stopped()?;
        nodes.one.start(Daemon::Netmaster)?;
        for node in [&mut nodes.one, &mut nodes.two] {
            start_node(node)?;
        }
        Ok(nodes)
    }

    /// Two joined nodes without daemons.
    ///
    /// # Errors
    /// Without root.
    pub fn two_nodes_stopped(self) -> Result<TwoNodes> {
        let node = |name, vtep| {
            let node = Node::new(self.purpose, name, vtep, FIRST, self.extra_args.clone())?;
            Ok::<_, anyhow::Error>(node.with_netmasters(&self.netmasters))
        };
        let nodes = TwoNodes { one: node("node1", FIRST)?, two: node("node2", SECOND)? };
        nodes.join(self.underlay_mtu)?;
        Ok(nodes)
    }

    /// One node with all daemons running and ready, its uplink open to view.
    ///
    /// # Errors
    /// When a daemon does not start, with the end of its log.
    pub fn one_node(self) -> Result<OneNode> {
        let node = Node::new(self.purpose, "node1", FIRST, FIRST, self.extra_args)?;
        let fabric = NetnsGuard::new(self.purpose, "fabric")?;
        join(node.namespace(), (fabric.namespace(), FABRIC_PORT), self.underlay_mtu)?;
        let first = address_uplink(node.namespace(), UPLINK, FIRST)?;
        let second = address_uplink(fabric.namespace(), FABRIC_PORT, SECOND)?;
        wait_running(&[first, second])?;
        let mut one = OneNode { node, fabric };
        one.node.start(Daemon::Netmaster)?;
        start_node(&mut one.node)?;
        Ok(one)
    }
}

/// Two nodes and the control plane, which runs in the first.
#[derive(Debug)]
pub struct TwoNodes {
    /// 10.250.0.1, with netmaster.
    pub one: Node,
    /// 10.250.0.2.
    pub two: Node,
}

impl TwoNodes {
    /// Joins the nodes by a new underlay; the one before, if any, has been removed.
    ///
    /// # Errors
    /// When it is still there.
    pub fn join(&self, mtu: u32) -> Result<()> {
        let (one, two) = (self.one.namespace(), self.two.namespace());
        join(one, (two, UPLINK), mtu)?;
        let first = address_uplink(one, UPLINK, FIRST)?;
        let second = address_uplink(two, UPLINK, SECOND)?;
        wait_running(&[first, second])
    }
}

/// A node whose uplink ends where a test can see it.
#[derive(Debug)]
pub struct OneNode {
    /// 10.250.0.1, with netmaster.
    pub node: Node,
    /// 10.250.0.2, the other end of the uplink.
    pub fabric: NetnsGuard,
}

fn start_node(node: &mut Node) -> Result<()> {
    node.start(Daemon::Vrouterd)?;
    node.start(Daemon::Netplugin)
}

fn join(near: &Namespace, far: (&Namespace, &str), mtu: u32) -> Result<()> {
    let spec = VethSpec {
        name: UPLINK,
        mac: None,
        mtu,
        peer_name: far.1,
        peer_mac: None,
        peer_mtu: mtu,
        peer_netns: Some(far.0),
    };
    Netlink::open_in(near)?.create_veth(&spec)?;
    Ok(())
}

fn address_uplink(namespace: &Namespace, ifname: &str, address: Ipv4Addr) -> Result<End> {
    let netlink = Netlink::open_in(namespace)?;
    let index = netlink.link_by_name(ifname)?.context("the underlay is not there")?.index;
    netlink.add_address(index, address.into(), PREFIX_LEN)?;
    netlink.set_up(index)?;
    Ok(End { netlink, index })
}

/// One end of the underlay.
struct End {
    netlink: Netlink,
    index: u32,
}

/// The kernel loses what is sent on a link that is up but not yet running.
fn wait_running(ends: &[End]) -> Result<()> {
    for end in ends {
        wait_until(RUNNING_BOUND, "the underlay to run", || {
            end.netlink.link_by_index(end.index).ok().flatten().filter(|link| link.running)
        })?;
    }
    Ok(())
}
