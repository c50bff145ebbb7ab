//! Flows that the kernel forwards, from where users see them: netctl and vrctl.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{Container, Node, Purpose, Topology, wait_until};
use serde_json::Value;

use crate::Test;
use crate::site::{BOUND, all_connected, attach, configure, netctl_json, reach_soon};

const PORT: u16 = 7003;

pub(crate) fn tests() -> Vec<Test> {
    let name = "flows_are_offloaded_where_tenant_and_network_let_them";
    vec![(name.to_owned(), Box::new(switches))]
}

/// Two sockets that answer each other.
struct Talk {
    from: UdpSocket,
    to: UdpSocket,
}

impl Talk {
    fn new(a: &Container, b: &Container) -> Result<Self> {
        let bind = |container: &Container, port: u16| {
            let address = SocketAddr::from((container.address(), port));
            container.namespace().run(|| UdpSocket::bind(address))?.context("binding")
        };
        let talk = Self { from: bind(a, 0)?, to: bind(b, PORT)? };
        for (socket, other) in [(&talk.from, &talk.to), (&talk.to, &talk.from)] {
            socket.connect(other.local_addr()?)?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        }
        Ok(talk)
    }

    fn exchange(&self) -> Result<()> {
        for (socket, other) in [(&self.from, &self.to), (&self.to, &self.from)] {
            socket.send(&[7; 64])?;
            other.recv(&mut [0; 64])?;
        }
        Ok(())
    }

    /// What `vrctl flow get` says of both ways.
    fn states(&self, node: &Node) -> Result<Vec<Value>> {
        let rows = node.vrctl(&["flow", "get", "udp"])?;
        let rows = rows.as_array().context("flow get is no list")?;
        Ok(rows.iter().map(|row| row["offload"].clone()).collect())
    }

    /// Until both ways are offloaded.
    fn offloaded(&self, node: &Node) -> Result<()> {
        wait_until(BOUND, "both ways to be offloaded", || {
            (0..32).try_for_each(|_| self.exchange()).ok()?;
            (self.states(node).ok()? == ["yes", "yes"]).then_some(())
        })?;
        Ok(())
    }
}

fn switches() -> Result<()> {
    let one = Topology::new(Purpose::Test).one_node()?;
    let node = &one.node;
    let lines = ["tenant create blue", "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front"];
    configure(node, &lines)?;
    all_connected(node)?;
    let (a, b) = (attach(node, "a", "front")?, attach(node, "b", "front")?);
    reach_soon(&a, b.address())?;
    let talk = Talk::new(&a, &b)?;
    talk.offloaded(node)?;
    for update in ["tenant update blue", "network update -t blue front"] {
        configure(node, &[&format!("{update} --offload off")])?;
        // In force when netctl has answered.
        let states = talk.states(node)?;
        ensure!(states == ["switched-off", "switched-off"], "{update}: {states:?}");
        let offload = node.vrctl(&["offload"])?;
        let tenant = &offload["tenants"][0];
        ensure!(tenant["ports_off"] == 2 && tenant["flows"] == 0, "{update}: {offload}");
        talk.exchange()?;
        configure(node, &[&format!("{update} --offload on")])?;
        talk.offloaded(node)?;
    }
    configure(node, &["network update -t blue --offload off front"])?;
    let network = &netctl_json(node, "network ls -t blue")?[0];
    ensure!(network["offload"] == "off" && network["subnet"] == "10.1.1.0/24", "{network}");
    Ok(())
}
