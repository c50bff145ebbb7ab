//! Flows that the kernel forwards, from where users see them: netctl and vrctl.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{Container, ContainerSpec, Daemon, Node, Purpose, Topology, wait_until};
use serde_json::Value;

use crate::Test;
use crate::site::{BOUND, all_connected, attach, configure, netctl_json, reach_soon};

const PORT: u16 = 7003;

pub(crate) fn tests() -> Vec<Test> {
    let away = "pol_5_a_policy_change_while_vrouterd_is_away_stops_what_it_forbids";
    vec![
        ("flows_are_offloaded_where_tenant_and_network_let_them".to_owned(), Box::new(switches)),
        (away.to_owned(), Box::new(policy_changes_without_an_engine)),
    ]
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
        let (from, to) = (self.from.local_addr()?.ip(), self.to.local_addr()?.ip());
        let mut both = Vec::new();
        for (src, dst) in [(from, to), (to, from)] {
            both.extend(Self::way(node, &format!("udp,nw_src={src},nw_dst={dst}"))?);
        }
        Ok(both)
    }

    fn way(node: &Node, flow: &str) -> Result<Vec<Value>> {
        let rows = node.vrctl(&["flow", "get", flow])?;
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

/// A node on which vrouterd has died; offloaded flows of two tenants go on. A rule of one of them
/// stops its own, and nothing of the other's.
fn policy_changes_without_an_engine() -> Result<()> {
    let mut one = Topology::new(Purpose::Test).one_node()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "policy create -t blue guard",
        "group create -t blue -p guard front web",
        "tenant create red",
        "network create -t red -s 10.2.1.0/24 -g 10.2.1.254 front",
    ];
    configure(&one.node, &lines)?;
    all_connected(&one.node)?;
    let attach = |name, tenant, group| {
        let spec = ContainerSpec { name, tenant, network: "front", group, args: "" };
        Container::attach(&one.node, &spec)
    };
    let (a, b) = (attach("a", "blue", Some("web"))?, attach("b", "blue", Some("web"))?);
    let (c, d) = (attach("c", "red", None)?, attach("d", "red", None)?);
    let (blue, red) = (Talk::new(&a, &b)?, Talk::new(&c, &d)?);
    for talk in [&blue, &red] {
        talk.offloaded(&one.node)?;
    }
    one.node.kill(Daemon::Vrouterd)?;
    for _ in 0..100 {
        blue.exchange()?;
        red.exchange()?;
    }
    let deny = "policy rule-add -t blue -d in -l udp -P 7003 -j deny guard 1";
    configure(&one.node, &[&format!("--no-wait {deny}")])?;
    let patience = Some(Duration::from_millis(50));
    for socket in [&blue.from, &blue.to] {
        socket.set_read_timeout(patience)?;
    }
    wait_until(BOUND, "what is denied to stop", || blue.exchange().is_err().then_some(()))?;
    for _ in 0..100 {
        red.exchange()?;
    }
    ensure!(blue.exchange().is_err(), "denied, and offloaded again");
    one.node.start(Daemon::Vrouterd)?;
    red.offloaded(&one.node)?;
    ensure!(blue.exchange().is_err(), "denied, and forwarded by the next engine");
    configure(&one.node, &["policy rule-rm -t blue guard 1"])?;
    wait_until(BOUND, "what is allowed again", || blue.exchange().ok())?;
    blue.offloaded(&one.node)
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
