//! Ports of the node that lead to containers: who comes by the uplink reaches them, over TCP and UDP, in
//! both families, whichever way the uplink is taken, for as long as the container is attached.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{
    Daemon, FABRIC_PORT, OneNode, Purpose, TcpServer, Topology, UPLINK, run, tcp_connect, tcp_echo,
    tcp_transfer, wait_until,
};
use netdev::Namespace;
use serde_json::{Value, json};

use crate::Test;
use crate::runtime::{Plug, Traces, refusal};
use crate::site::{BOUND, configure, drops, ip, netctl};

/// The node's, and the container's.
const NODE_PORT: u16 = 18_080;
const PORT: u16 = 80;
const NODE6: &str = "2001:db8:ffff::1";
const PATIENCE: Duration = Duration::from_secs(2);

/// A name, and what it does with an uplink that is taken in a mode.
type Sentence = (&'static str, fn(&str) -> Result<()>);

pub(crate) fn tests() -> Vec<Test> {
    let sentences: [Sentence; 6] = [
        ("cni_1_a_published_port_is_reached_over_tcp_and_udp_in_both_families", reached),
        ("cni_1_connections_to_a_published_port_outlive_the_engine_and_netplugin", outlive),
        ("cni_1_a_published_port_is_opened_by_policy", by_policy),
        ("ten_2_two_tenants_publish_ports_of_one_address", two_tenants),
        ("cni_1_a_published_port_is_one_containers_until_it_is_gone", one_owner),
        ("cni_1_a_port_that_cannot_be_published_is_refused_with_the_reason", refused),
    ];
    let shared = |name: &str| format!("{name}_with_a_shared_uplink");
    let both = ["dedicated", "shared"].into_iter().flat_map(|mode| {
        sentences.into_iter().map(move |(name, sentence)| -> Test {
            let name = if mode == "shared" { shared(name) } else { name.to_owned() };
            (name, Box::new(move || sentence(mode)))
        })
    });
    // What the two ways do not differ in runs once.
    both.filter(|(name, _)| !(name.ends_with("_uplink") && name.contains("policy"))).collect()
}

/// A node whose uplink ends where the client is.
fn build(mode: &str) -> Result<OneNode> {
    let mode = ["--uplink-mode", mode];
    let one = Topology::new(Purpose::Test).daemon_args(Daemon::Netplugin, &mode).one_node()?;
    // A veth hands on what its sender has not finished; a cable would not, and XDP sees it like that.
    let mut finish = Command::new("ethtool");
    finish.args(["-K", FABRIC_PORT, "tx", "off"]);
    run(one.fabric.namespace(), finish)?.success().context("ethtool")?;
    ip(one.node.namespace(), &format!("addr add {NODE6}/64 dev {UPLINK} nodad"))?;
    let client6 = format!("addr add 2001:db8:ffff::2/64 dev {FABRIC_PORT} nodad");
    ip(one.fabric.namespace(), &client6)?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 -s6 2001:db8:1::/64 \
         -g6 2001:db8:1::fe front",
        "policy create -t blue guard",
        "group create -t blue -p guard front web",
        "network create -t blue -s 10.1.9.0/24 alone",
        "tenant create green",
        "tenant update green --stateless",
        "network create -t green -s 10.1.1.0/24 -g 10.1.1.254 plain",
        "tenant create red",
        "network create -t red -s 10.1.1.0/24 -g 10.1.1.254 front",
    ];
    configure(&one.node, &lines)?;
    Ok(one)
}

/// A container to be, with these mappings.
fn plug(one: &OneNode, mappings: &Value) -> Result<Plug> {
    let mut plug = Plug::new(&one.node, "front")?;
    plug.config["runtimeConfig"] = json!({ "portMappings": mappings });
    Ok(plug)
}

fn web(host_port: u16) -> Value {
    json!([
        { "hostPort": host_port, "containerPort": PORT, "protocol": "tcp" },
        { "hostPort": host_port, "containerPort": PORT, "protocol": "udp" },
    ])
}

fn at(one: &OneNode, port: u16) -> SocketAddr {
    (one.node.vtep(), port).into()
}

/// Listens on every address of the container.
fn serve(plug: &Plug) -> Result<TcpServer> {
    TcpServer::start(plug.netns().namespace(), (IpAddr::from([0_u16; 8]), PORT).into())
}

fn echo(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes()).context(text.to_owned())?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).with_context(|| text.to_owned())?;
    ensure!(back == text.as_bytes(), "the echo of {text:?} differs");
    Ok(())
}

/// A datagram of the client's, answered by the container.
fn ask(client: &Namespace, server: &UdpSocket, to: SocketAddr) -> Result<()> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = client.run(|| UdpSocket::bind((any, 0)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(b"question", to)?;
    let mut buffer = [0; 16];
    let (len, from) = server.recv_from(&mut buffer).context("no question")?;
    ensure!(&buffer[..len] == b"question", "{:?}", &buffer[..len]);
    server.send_to(b"answer", from)?;
    let (len, from) = socket.recv_from(&mut buffer).context("no answer")?;
    ensure!(&buffer[..len] == b"answer" && from == to, "{from}: {:?}", &buffer[..len]);
    Ok(())
}

fn reached(mode: &str) -> Result<()> {
    let one = build(mode)?;
    let plug = plug(&one, &web(NODE_PORT))?;
    plug.add(&one.node)?;
    let _server = serve(&plug)?;
    let client = one.fabric.namespace();
    let inside = plug.netns().namespace();
    let udp = inside.run(|| UdpSocket::bind((IpAddr::from([0_u16; 8]), PORT)))??;
    udp.set_read_timeout(Some(PATIENCE))?;
    for node in [at(&one, NODE_PORT), SocketAddr::new(NODE6.parse()?, NODE_PORT)] {
        // Longer than a segment, both ways, at the first packet.
        tcp_echo(client, node, &[0x5a; 5000]).with_context(|| format!("TCP to {node}"))?;
        tcp_transfer(client, node, 2_000_000).with_context(|| format!("much TCP to {node}"))?;
        ask(client, &udp, node).with_context(|| format!("UDP to {node}"))?;
    }
    // The rest of the node is its own, and the container sends nobody outside what was not asked for.
    let own = TcpServer::start(one.node.namespace(), at(&one, NODE_PORT + 1))?;
    tcp_echo(client, own.address(), b"the host's own")?;
    let stray = inside.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    let before = drops(&one.node, "no-route")?;
    stray.send_to(b"hello", (Ipv4Addr::new(10, 250, 0, 2), 9))?;
    wait_until(BOUND, "it to be dropped", || {
        drops(&one.node, "no-route").ok().filter(|now| *now > before)
    })?;
    Ok(())
}

fn outlive(mode: &str) -> Result<()> {
    let mut one = build(mode)?;
    let plug = plug(&one, &web(NODE_PORT))?;
    plug.add(&one.node)?;
    let _server = serve(&plug)?;
    let mut stream = tcp_connect(one.fabric.namespace(), at(&one, NODE_PORT), PATIENCE)?;
    echo(&mut stream, "before")?;
    one.node.stop(Daemon::Netplugin)?;
    echo(&mut stream, "without netplugin")?;
    for round in 0..2 {
        one.node.kill(Daemon::Vrouterd)?;
        // What is sent meanwhile is lost, not refused: TCP sends it again.
        stream.write_all(b"meanwhile")?;
        if round == 0 {
            one.node.start(Daemon::Vrouterd)?;
            one.node.start(Daemon::Netplugin)?;
        } else {
            one.node.kill(Daemon::Netplugin)?;
            one.node.start(Daemon::Netplugin)?;
            one.node.start(Daemon::Vrouterd)?;
        }
        let mut back = [0; 9];
        stream.read_exact(&mut back).with_context(|| format!("round {round}"))?;
        ensure!(&back == b"meanwhile", "{back:?}");
        echo(&mut stream, "after it")?;
    }
    tcp_echo(one.fabric.namespace(), at(&one, NODE_PORT), b"a new one")?;
    Ok(())
}

fn by_policy(mode: &str) -> Result<()> {
    let one = build(mode)?;
    let mut plug = plug(&one, &web(NODE_PORT))?;
    plug.config["group"] = json!("web");
    // Nobody outside, but for one port, which is the container's.
    netctl(&one.node, "policy rule-add -t blue -d in -j deny guard shut")?;
    plug.add(&one.node)?;
    let _server = serve(&plug)?;
    let client = one.fabric.namespace();
    let before = drops(&one.node, "policy-deny")?;
    let denied = tcp_connect(client, at(&one, NODE_PORT), Duration::from_millis(300));
    ensure!(denied.is_err(), "the policy denies it");
    ensure!(drops(&one.node, "policy-deny")? > before, "and the drop is counted");
    let open = format!("policy rule-add -t blue -d in -p 10 -l tcp -P {PORT} -j allow guard open");
    netctl(&one.node, &open)?;
    let mut stream = tcp_connect(client, at(&one, NODE_PORT), PATIENCE)?;
    echo(&mut stream, "allowed")?;
    netctl(&one.node, "policy rule-rm -t blue guard open")?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    let cut = echo(&mut stream, "cut");
    ensure!(cut.is_err(), "the rule is gone, and so is what it let in");
    Ok(())
}

fn two_tenants(mode: &str) -> Result<()> {
    let one = build(mode)?;
    let blue = plug(&one, &web(NODE_PORT))?;
    let mut red = plug(&one, &web(NODE_PORT + 1))?;
    red.config["tenant"] = json!("red");
    let results = [blue.add(&one.node)?, red.add(&one.node)?];
    let [first, second] = results.map(|result| result["ips"][0]["address"].clone());
    ensure!(first == second, "{first} and {second}");
    for (plug, port) in [(&blue, NODE_PORT), (&red, NODE_PORT + 1)] {
        let inside = plug.netns().namespace();
        let udp = inside.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
        udp.set_read_timeout(Some(PATIENCE))?;
        ask(one.fabric.namespace(), &udp, at(&one, port)).with_context(|| format!("{port}"))?;
    }
    Ok(())
}

/// Answered by the host itself: nobody listens there.
fn is_hosts(one: &OneNode) -> Result<()> {
    wait_until(BOUND, "the port to be the host's again", || {
        let client = one.fabric.namespace();
        let tried =
            client.run(|| TcpStream::connect_timeout(&at(one, NODE_PORT), PATIENCE)).ok()?;
        tried.err().filter(|error| error.kind() == ErrorKind::ConnectionRefused).map(drop)
    })?;
    Ok(())
}

fn one_owner(mode: &str) -> Result<()> {
    let one = build(mode)?;
    let before = Traces::of(&one.node, &["front"])?;
    is_hosts(&one)?;
    let first = plug(&one, &web(NODE_PORT))?;
    first.add(&one.node)?;
    let _server = serve(&first)?;
    let second = plug(&one, &web(NODE_PORT))?;
    let said = second.refused(&one.node, "ADD", 7)?;
    ensure!(said.contains(&format!("port {NODE_PORT}/tcp is {}:", first.id)), "{said}");
    tcp_echo(one.fabric.namespace(), at(&one, NODE_PORT), b"the first's")?;
    // The same ADD again is the same attachment; another mapping is another wish.
    first.add(&one.node)?;
    first.del(&one.node)?;
    is_hosts(&one)?;
    second.add(&one.node)?;
    let _second = serve(&second)?;
    tcp_echo(one.fabric.namespace(), at(&one, NODE_PORT), b"the second's")?;
    second.del(&one.node)?;
    before.again(&one.node, &["front"])?;
    is_hosts(&one)
}

fn refused(mode: &str) -> Result<()> {
    let one = build(mode)?;
    let before = Traces::of(&one.node, &["front"])?;
    let port = |key: &str, value: Value| {
        let mut port = json!({ "hostPort": NODE_PORT, "containerPort": PORT, "protocol": "udp" });
        port[key] = value;
        json!([port])
    };
    for (mappings, code, reason) in [
        (port("hostPort", json!(4789)), 7, "tunnels of VXLAN networks end there"),
        (port("hostPort", json!(65_536)), 7, "65536 is no port"),
        (port("containerPort", json!(0)), 7, "0 is no port"),
        (port("hostIP", json!("127.0.0.1")), 7, "127.0.0.1 is no address of the uplink"),
        (port("hostIP", json!("node1")), 7, "node1 is no address"),
        (port("protocol", json!("sctp")), 2, "18080/sctp"),
        (port("hostPort", json!("80")), 6, "invalid type"),
    ] {
        let plug = plug(&one, &mappings)?;
        let said = refusal(&plug.call(&one.node, "ADD", &Value::Null)?, code)?;
        ensure!(said.contains(reason), "{said}");
    }
    for (network, reason) in [("alone", "network alone has no gateway"), ("plain", "stateless")] {
        let mut plug = plug(&one, &web(NODE_PORT))?;
        plug.config["network"] = json!(network);
        if network == "plain" {
            plug.config["tenant"] = json!("green");
        }
        let said = plug.refused(&one.node, "ADD", 7)?;
        ensure!(said.contains(reason), "{said}");
    }
    before.again(&one.node, &["front"])
}
