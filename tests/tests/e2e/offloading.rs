//! Flows that the kernel forwards, from where users see them: netctl and vrctl.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{
    Container, ContainerSpec, Daemon, Node, Purpose, TcpServer, Topology, TwoNodes, tcp_transfer,
    wait_until,
};
use serde_json::Value;

use crate::Test;
use crate::site::{BOUND, all_connected, attach, configure, ip, netctl_json, reach_soon};

const PORT: u16 = 7003;

pub(crate) fn tests() -> Vec<Test> {
    let away = "pol_5_a_policy_change_while_vrouterd_is_away_stops_what_it_forbids";
    vec![
        ("flows_are_offloaded_where_tenant_and_network_let_them".to_owned(), Box::new(switches)),
        (away.to_owned(), Box::new(policy_changes_without_an_engine)),
        ("flows_between_nodes_are_offloaded_over_a_shared_uplink".to_owned(), Box::new(off_node)),
        (
            "flows_between_nodes_are_counted_as_by_the_engine".to_owned(),
            Box::new(off_node_counters),
        ),
        ("flows_between_nodes_carry_tcp_and_end_with_it".to_owned(), Box::new(off_node_bulk)),
        ("a_host_that_uses_vxlan_itself_keeps_it".to_owned(), Box::new(off_node_taken)),
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

/// Packets and bytes that a node's port has received and sent.
fn counted(node: &Node, kind: &str) -> Result<[u64; 4]> {
    let ports = node.vrctl(&["port", "ls"])?;
    let port = ports.as_array().into_iter().flatten().find(|port| port["kind"] == kind);
    let port = port.with_context(|| format!("no {kind}: {ports}"))?;
    let number = |name: &str| port[name].as_u64().with_context(|| format!("no {name}: {port}"));
    Ok([number("rx_packets")?, number("rx_bytes")?, number("tx_packets")?, number("tx_bytes")?])
}

/// Two nodes with a network each for two containers, and one that both are in.
fn across(args: &[&str]) -> Result<TwoNodes> {
    let nodes = Topology::new(Purpose::Test).daemon_args(Daemon::Netplugin, args).two_nodes()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "network create -t blue -s 10.1.2.0/24 -g 10.1.2.254 back",
        "policy create -t blue guard",
        "group create -t blue -p guard front web",
        "group create -t blue -p guard back db",
    ];
    configure(&nodes.one, &lines)?;
    Ok(nodes)
}

fn member(node: &Node, name: &str, network: &str, group: &str) -> Result<Container> {
    let group = Some(group);
    Container::attach(node, &ContainerSpec { name, tenant: "blue", network, group, args: "" })
}

/// What the kernel carries between two nodes goes on without either engine, and follows the tables.
fn off_node() -> Result<()> {
    let mut nodes = across(&["--uplink-mode", "shared"])?;
    let (a, c) =
        (member(&nodes.one, "a", "front", "web")?, member(&nodes.two, "c", "front", "web")?);
    reach_soon(&a, c.address())?;
    let talk = Talk::new(&a, &c)?;
    let both_offloaded = |nodes: &TwoNodes| {
        talk.offloaded(&nodes.one)?;
        talk.offloaded(&nodes.two)
    };
    both_offloaded(&nodes)?;
    for node in [&mut nodes.one, &mut nodes.two] {
        node.kill(Daemon::Vrouterd)?;
    }
    for _ in 0..100 {
        talk.exchange()?;
    }
    for node in [&mut nodes.one, &mut nodes.two] {
        node.start(Daemon::Vrouterd)?;
    }
    both_offloaded(&nodes)?;
    // In force when netctl has answered, on both nodes.
    configure(&nodes.one, &["policy rule-add -t blue -d in -l udp -P 7003 -j deny guard 1"])?;
    for socket in [&talk.from, &talk.to] {
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    }
    ensure!((0..20).all(|_| talk.exchange().is_err()), "denied, and carried");
    configure(&nodes.one, &["policy rule-rm -t blue guard 1"])?;
    wait_until(BOUND, "what is allowed again", || talk.exchange().ok())?;
    both_offloaded(&nodes)?;
    // Without the receiver's engine, what its rules forbid by now stops as well.
    nodes.two.kill(Daemon::Vrouterd)?;
    for _ in 0..100 {
        talk.exchange()?;
    }
    let deny = "--no-wait policy rule-add -t blue -d in -l udp -P 7003 -j deny guard 1";
    configure(&nodes.one, &[deny])?;
    wait_until(BOUND, "what is denied to stop", || talk.exchange().is_err().then_some(()))?;
    ensure!((0..20).all(|_| talk.exchange().is_err()), "denied, and carried");
    nodes.two.start(Daemon::Vrouterd)?;
    configure(&nodes.one, &["policy rule-rm -t blue guard 1"])?;
    wait_until(BOUND, "what is allowed again", || talk.exchange().ok())?;
    both_offloaded(&nodes)?;
    // A device that somebody removed is made anew, and meanwhile nothing is lost for good.
    ip(nodes.one.namespace(), "link del wr-vx0")?;
    wait_until(BOUND, "the engine to carry on", || talk.exchange().ok())?;
    both_offloaded(&nodes)
}

/// Ports and rules are counted as by the engine; the uplink's bytes with the tunnel's headers.
fn off_node_counters() -> Result<()> {
    const EXCHANGES: u64 = 200;
    // Ethernet, IPv4 and UDP around 64 bytes, and the tunnel around that.
    const INNER: u64 = 14 + 20 + 8 + 64;
    const OUTER: u64 = 50;
    let nodes = across(&["--uplink-mode", "shared"])?;
    configure(&nodes.one, &["policy rule-add -t blue -d in -l udp -P 7003 -j allow guard 1"])?;
    let (a, c) = (member(&nodes.one, "a", "front", "web")?, member(&nodes.two, "c", "back", "db")?);
    reach_soon(&a, c.address())?;
    let talk = Talk::new(&a, &c)?;
    let ends = [
        (&nodes.one, "container"),
        (&nodes.one, "uplink"),
        (&nodes.two, "container"),
        (&nodes.two, "uplink"),
    ];
    for node in [&nodes.one, &nodes.two] {
        talk.offloaded(node)?;
    }
    let before = ends.map(|(node, kind)| counted(node, kind));
    let carried = |node: &Node| {
        let offload = node.vrctl(&["offload"])?;
        offload["packets"].as_u64().with_context(|| format!("no packets: {offload}"))
    };
    let offloaded = [carried(&nodes.one)?, carried(&nodes.two)?];
    for _ in 0..EXCHANGES {
        talk.exchange()?;
    }
    for ((node, kind), before) in ends.into_iter().zip(before) {
        let (before, after) = (before?, counted(node, kind)?);
        let grown = [0, 1, 2, 3].map(|at| after[at] - before[at]);
        let bytes = EXCHANGES * (INNER + if kind == "uplink" { OUTER } else { 0 });
        let expected = [EXCHANGES, bytes, EXCHANGES, bytes];
        ensure!(grown == expected, "{kind} of {}: {grown:?}, expected {expected:?}", node.name());
    }
    for (node, before) in [&nodes.one, &nodes.two].into_iter().zip(offloaded) {
        let grown = carried(node)? - before;
        ensure!(
            grown == 2 * EXCHANGES,
            "{grown} of {} packets passed the engine by",
            2 * EXCHANGES
        );
    }
    Ok(())
}

/// Large packets of TCP cross whole, and what ends a connection is the engines'.
fn off_node_bulk() -> Result<()> {
    let nodes = across(&["--uplink-mode", "shared"])?;
    let (a, c) = (member(&nodes.one, "a", "front", "web")?, member(&nodes.two, "c", "back", "db")?);
    reach_soon(&a, c.address())?;
    let server = TcpServer::start(c.namespace(), SocketAddr::from((c.address(), 0)))?;
    for _ in 0..3 {
        tcp_transfer(a.namespace(), server.address(), 24 << 20)?;
    }
    for node in [&nodes.one, &nodes.two] {
        let offload = node.vrctl(&["offload"])?;
        let packets = offload["packets"].as_u64().context("no packets")?;
        ensure!(packets > 10_000, "the engine of {} carried it: {offload}", node.name());
    }
    let gone = || {
        let left = [&nodes.one, &nodes.two].map(|node| node.vrctl(&["offload"]).ok());
        let left = left.map(|offload| offload.and_then(|offload| offload["flows"].as_u64()));
        (left == [Some(0), Some(0)]).then_some(())
    };
    wait_until(BOUND, "the ended connections to leave", gone)?;
    Ok(())
}

/// Another program that has VXLAN's port of the host keeps it: the engine carries what it would have
/// offloaded, and says why.
fn off_node_taken() -> Result<()> {
    let mut nodes = Topology::new(Purpose::Test)
        .daemon_args(Daemon::Netplugin, &["--uplink-mode", "shared"])
        .two_nodes_stopped()?;
    ip(nodes.one.namespace(), "link add other0 type vxlan external dstport 4789")?;
    ip(nodes.one.namespace(), "link set other0 up")?;
    nodes.one.start(Daemon::Netmaster)?;
    for node in [&mut nodes.one, &mut nodes.two] {
        node.start(Daemon::Vrouterd)?;
        node.start(Daemon::Netplugin)?;
    }
    let lines = ["tenant create blue", "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front"];
    configure(&nodes.one, &lines)?;
    let (a, c) = (attach(&nodes.one, "a", "front")?, attach(&nodes.two, "c", "front")?);
    reach_soon(&a, c.address())?;
    let talk = Talk::new(&a, &c)?;
    talk.offloaded(&nodes.two)?;
    ensure!(talk.states(&nodes.one)? == ["off-node", "off-node"], "{:?}", talk.states(&nodes.one)?);
    let log = nodes.one.log(Daemon::Vrouterd)?;
    ensure!(log.contains("flows between nodes are not offloaded"), "{log}");
    Ok(())
}
