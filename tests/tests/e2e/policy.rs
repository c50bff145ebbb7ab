//! Policy as containers feel it: every kind of rule at both ends, and never a gap in it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use kit::{
    CONTAINER_IFNAME, Container, ContainerSpec, Daemon, Purpose, Topology, TwoNodes, capture, ping,
    wait_until,
};
use netdev::Namespace;
use serde_json::json;

use crate::Test;
use crate::packet::{Packet, expect};
use crate::runtime::Plug;
use crate::shared::sharing;
use crate::site::{BOUND, all_connected, attach_to_group, configure, netctl, reach_soon};

/// What rules are about, and what no rule is ever about.
const RULED: u16 = 7001;
const FREE: u16 = 7002;
/// For an answer that a crash may have cost.
const PATIENCE: Duration = Duration::from_millis(20);

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("pol_1_in_rules_hold_by_group_network_address_and_protocol", in_rules),
            ("pol_1_out_rules_hold_by_group_network_and_address", out_rules),
            ("pol_1_priority_decides_and_deny_wins_a_tie", priorities),
            ("pol_1_a_group_takes_and_loses_a_policy_while_it_has_members", regrouped),
            ("pol_4_a_container_is_filtered_from_its_first_packet_on", first_packet),
            ("pol_4_no_denied_packet_passes_while_daemons_crash", crashes),
            ("ten_1_tenants_with_one_address_stay_apart_while_daemons_crash", apart),
            ("api_1_what_containers_use_is_not_deleted", in_use),
            ("api_2_a_write_names_the_nodes_that_are_late", late),
        ],
    )
}

/// Tenant blue: x and s (group web) on node 1, y (group db, network back) on node 2. s is the
/// policy's subject.
#[derive(Debug)]
struct Scene {
    x: Container,
    s: Container,
    y: Container,
    nodes: TwoNodes,
}

fn build() -> Result<Scene> {
    let nodes = Topology::new(Purpose::Test).two_nodes()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "network create -t blue -s 10.1.2.0/24 -g 10.1.2.254 back",
        "policy create -t blue guard",
        "group create -t blue front clients",
        "group create -t blue -p guard front web",
        "group create -t blue back db",
    ];
    configure(&nodes.one, &lines)?;
    let x = attach_to_group(&nodes.one, "x", "front", Some("clients"))?;
    let s = attach_to_group(&nodes.one, "s", "front", Some("web"))?;
    let y = attach_to_group(&nodes.two, "y", "back", Some("db"))?;
    for container in [&x, &y] {
        reach_soon(container, s.address())?;
        reach_soon(&s, container.address())?;
    }
    Ok(Scene { x, s, y, nodes })
}

fn sender(container: &Container) -> Result<UdpSocket> {
    let address = SocketAddr::from((container.address(), 0));
    Ok(container.namespace().run(|| UdpSocket::bind(address))??)
}

/// Whether a datagram to the port that rules are about arrives. One to the free port follows it on
/// the same way: when that one is there, the other is lost.
fn passes(from: &Container, to: &Container) -> Result<bool> {
    let inside = capture(to.namespace(), CONTAINER_IFNAME)?;
    let socket = sender(from)?;
    for port in [RULED, FREE] {
        socket.send_to(b"may I?", (to.address(), port))?;
    }
    let (own, mut ruled) = (from.address(), false);
    expect(&inside, "the datagram that no rule is about", |frame| {
        let packet = Packet::parse(frame).filter(|packet| packet.src == own)?;
        ruled |= packet.dst_port == RULED;
        (packet.dst_port == FREE).then_some(())
    })?;
    Ok(ruled)
}

impl Scene {
    /// With the rules, checks who passes to s, and to whom s passes: (x, y) each. Without them
    /// everybody does.
    fn with_rules(&self, rules: &[&str], to_s: Pair, from_s: Pair) -> Result<()> {
        for (number, flags) in rules.iter().enumerate() {
            let line = format!("policy rule-add -t blue {flags} guard r{number}");
            netctl(&self.nodes.one, &line)?;
        }
        let seen = self.see().with_context(|| format!("{rules:?}"))?;
        ensure!(seen == (to_s, from_s), "{rules:?}: {seen:?}, not {:?}", (to_s, from_s));
        for number in 0..rules.len() {
            netctl(&self.nodes.one, &format!("policy rule-rm -t blue guard r{number}"))?;
        }
        let seen = self.see()?;
        let all = ((true, true), (true, true));
        ensure!(seen == all, "{rules:?} are gone: {seen:?}");
        Ok(())
    }

    fn see(&self) -> Result<(Pair, Pair)> {
        let to_s = (passes(&self.x, &self.s)?, passes(&self.y, &self.s)?);
        Ok((to_s, (passes(&self.s, &self.x)?, passes(&self.s, &self.y)?)))
    }
}

/// For x, for y.
type Pair = (bool, bool);

const YES: Pair = (true, true);
const NO: Pair = (false, false);
const ONLY_X: Pair = (true, false);
const ONLY_Y: Pair = (false, true);

fn in_rules(scene: &mut Scene) -> Result<()> {
    let x = scene.x.address();
    scene.with_rules(&["-d in -l udp -P 7001 -j deny"], NO, YES)?;
    scene.with_rules(&["-d in -l 17 -P 7001 -j deny"], NO, YES)?;
    scene.with_rules(&["-d in -l udp -P 7003 -j deny"], YES, YES)?;
    scene.with_rules(&["-d in -l tcp -P 7001 -j deny"], YES, YES)?;
    scene.with_rules(&["-d in -g clients -l udp -P 7001 -j deny"], ONLY_Y, YES)?;
    scene.with_rules(&["-d in -g db -l udp -P 7001 -j deny"], ONLY_X, YES)?;
    scene.with_rules(&["-d in -n front -l udp -P 7001 -j deny"], ONLY_Y, YES)?;
    scene.with_rules(&["-d in -n back -l udp -P 7001 -j deny"], ONLY_X, YES)?;
    scene.with_rules(&["-d in -i 10.1.2.0/24 -l udp -P 7001 -j deny"], ONLY_X, YES)?;
    scene.with_rules(&[&format!("-d in -i {x}/32 -l udp -P 7001 -j deny")], ONLY_Y, YES)?;

    netctl(&scene.nodes.one, "policy rule-add -t blue -d in -l icmp -j deny guard ping")?;
    let silent = ping(scene.x.namespace(), scene.s.address(), 1)?;
    ensure!(silent.received == 0, "icmp is denied and answered");
    ensure!(scene.see()? == (YES, YES), "a rule for icmp denies udp");
    netctl(&scene.nodes.one, "policy rule-rm -t blue guard ping")?;
    reach_soon(&scene.x, scene.s.address())
}

fn out_rules(scene: &mut Scene) -> Result<()> {
    let y = scene.y.address();
    scene.with_rules(&["-d out -l udp -P 7001 -j deny"], YES, NO)?;
    scene.with_rules(&["-d out -e db -l udp -P 7001 -j deny"], YES, ONLY_X)?;
    scene.with_rules(&["-d out -e clients -l udp -P 7001 -j deny"], YES, ONLY_Y)?;
    scene.with_rules(&["-d out -o back -l udp -P 7001 -j deny"], YES, ONLY_X)?;
    scene.with_rules(&[&format!("-d out -s {y} -l udp -P 7001 -j deny")], YES, ONLY_X)?;
    let both = ["-d in -g db -l udp -P 7001 -j deny", "-d out -e clients -l udp -P 7001 -j deny"];
    scene.with_rules(&both, ONLY_X, ONLY_Y)
}

fn priorities(scene: &mut Scene) -> Result<()> {
    let deny = "-d in -l udp -P 7001 -j deny -p 10";
    scene.with_rules(&[deny, "-d in -g db -l udp -P 7001 -j allow -p 20"], ONLY_Y, YES)?;
    scene.with_rules(&[deny, "-d in -g db -l udp -P 7001 -j allow -p 5"], NO, YES)?;
    scene.with_rules(&[deny, "-d in -g db -l udp -P 7001 -j allow -p 10"], NO, YES)?;
    scene.with_rules(&["-d in -l udp -P 7001 -j allow -p 10", deny], NO, YES)?;
    let closed = "-d in -n back -l udp -P 7001 -j deny -p 100";
    scene.with_rules(&["-d in -l udp -j allow -p 1", closed], ONLY_X, YES)
}

fn regrouped(scene: &mut Scene) -> Result<()> {
    let node = &scene.nodes.one;
    netctl(node, "policy create -t blue other")?;
    netctl(node, "policy rule-add -t blue -d in -l udp -P 7001 -j deny other shut")?;
    ensure!(scene.see()? == (YES, YES), "a policy that no group has is in force");
    netctl(node, "group create -t blue -p guard -p other front web")?;
    ensure!(scene.see()? == (NO, YES), "the group's second policy is not in force");
    netctl(node, "group create -t blue -p guard front web")?;
    ensure!(scene.see()? == (YES, YES), "the policy is still in force");
    netctl(node, "policy rm -t blue other").map(drop)
}

/// Datagrams come in from before the container is there: none of the denied ones may arrive.
fn first_packet(scene: &mut Scene) -> Result<()> {
    const FRESH: &str = "10.1.1.99";
    let node = &scene.nodes.one;
    netctl(node, "policy rule-add -t blue -d in -l udp -P 7001 -j deny guard shut")?;
    let senders = [sender(&scene.x)?, sender(&scene.y)?];
    let stop = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                knock(&senders, FRESH);
            }
        });
        let outcome = (0..10).try_for_each(|start| {
            let mut plug = Plug::new(node, "front")?;
            plug.config["group"] = json!("web");
            plug.args = format!("IP={FRESH}");
            // Everything that ever reaches the namespace is kept here.
            let [ruled, free] = sockets(plug.netns().namespace())?;
            plug.add(node)?;
            free.recv(&mut [0; 64]).context("nothing that is allowed arrives")?;
            ensure!(is_empty(&ruled)?, "a denied datagram arrives at start {start}");
            plug.del(node)
        });
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    netctl(node, "policy rule-rm -t blue guard shut")?;
    outcome
}

/// A datagram to each port from each sender. Without anybody at the address nothing can be sent.
fn knock(senders: &[UdpSocket], to: &str) {
    for socket in senders {
        for port in [RULED, FREE] {
            drop(socket.send_to(b"knock", (to, port)));
        }
    }
}

/// Sockets on the two ports, whatever the address.
fn sockets(namespace: &Namespace) -> Result<[UdpSocket; 2]> {
    let bind = |port: u16| -> Result<UdpSocket> {
        let socket = namespace.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        socket.set_read_timeout(Some(BOUND))?;
        Ok(socket)
    };
    Ok([bind(RULED)?, bind(FREE)?])
}

fn is_empty(socket: &UdpSocket) -> Result<bool> {
    socket.set_nonblocking(true)?;
    match socket.recv(&mut [0; 64]) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// What every daemon of node 1 goes through, one after the other and twice.
fn crash_all(nodes: &mut TwoNodes) -> Result<()> {
    for daemon in [Daemon::Vrouterd, Daemon::Netplugin, Daemon::Netmaster].repeat(2) {
        nodes.one.kill(daemon)?;
        nodes.one.start_unready(daemon)?;
    }
    // Both of the node at once, in the other order.
    nodes.one.kill(Daemon::Vrouterd)?;
    nodes.one.kill(Daemon::Netplugin)?;
    nodes.one.start_unready(Daemon::Netplugin)?;
    nodes.one.start(Daemon::Vrouterd)
}

fn crashes(scene: &mut Scene) -> Result<()> {
    netctl(&scene.nodes.one, "policy rule-add -t blue -d in -l udp -P 7001 -j deny guard shut")?;
    let senders = [sender(&scene.x)?, sender(&scene.y)?];
    let to = scene.s.address().to_string();
    let [ruled, _free] = sockets(scene.s.namespace())?;
    let stop = AtomicBool::new(false);
    let (x, y, s) = (&scene.x, &scene.y, &scene.s);
    let nodes = &mut scene.nodes;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                knock(&senders, &to);
            }
        });
        let outcome = crash_all(nodes)
            .and_then(|()| reach_soon(x, s.address()))
            .and_then(|()| reach_soon(y, s.address()));
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    ensure!(is_empty(&ruled)?, "a denied datagram arrived");
    ensure!(!passes(&scene.x, &scene.s)?, "the rule is gone");
    ensure!(!passes(&scene.y, &scene.s)?, "the rule is gone");
    all_connected(&scene.nodes.one)?;
    netctl(&scene.nodes.one, "policy rule-rm -t blue guard shut").map(drop)
}

/// Asks for the tenant's name all the time; only that may ever come back.
fn apart(scene: &mut Scene) -> Result<()> {
    let lines = ["tenant create red", "network create -t red -s 10.1.1.0/24 -g 10.1.1.254 front"];
    configure(&scene.nodes.one, &lines)?;
    let red = |name, address: Ipv4Addr| {
        let args = format!("IP={address}");
        let spec =
            ContainerSpec { name, tenant: "red", network: "front", group: None, args: &args };
        Container::attach(&scene.nodes.one, &spec)
    };
    let (rx, rs) = (red("rx", scene.x.address())?, red("rs", scene.s.address())?);
    let (stop, answers) = (AtomicBool::new(false), AtomicU32::new(0));
    let (x, s) = (&scene.x, &scene.s);
    let nodes = &mut scene.nodes;
    thread::scope(|scope| {
        let tenants = [(x, s, "blue"), (&rx, &rs, "red")];
        for (_, server, name) in tenants {
            let [socket, _] = sockets(server.namespace())?;
            let stop = &stop;
            scope.spawn(move || serve(&socket, name, stop));
        }
        let clients = tenants.map(|(client, server, name)| {
            let (stop, answers) = (&stop, &answers);
            scope.spawn(move || ask(client, server, name, (stop, answers)))
        });
        let outcome = crash_all(nodes);
        let before = answers.load(Ordering::Relaxed);
        let more = || (answers.load(Ordering::Relaxed) > before + 200).then_some(());
        let outcome = outcome.and_then(|()| Ok(wait_until(BOUND, "answers afterwards", more)?));
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_panic| anyhow!("a client panicked"))??;
        }
        outcome
    })?;
    all_connected(&scene.nodes.one)?;
    rx.detach(&scene.nodes.one)?;
    rs.detach(&scene.nodes.one)?;
    configure(&scene.nodes.one, &["network rm -t red front", "tenant rm red"])
}

fn serve(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    if socket.set_read_timeout(Some(PATIENCE)).is_err() {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        // What is lost in a crash shows at the client, as silence.
        if let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            drop(socket.send_to(name.as_bytes(), from));
        }
    }
}

fn ask(
    client: &Container,
    server: &Container,
    name: &str,
    (stop, answers): (&AtomicBool, &AtomicU32),
) -> Result<()> {
    let socket = sender(client)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut answer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        // Silence is what a crash costs; a wrong answer is not.
        drop(socket.send_to(b"who are you?", (server.address(), RULED)));
        if let Ok(len) = socket.recv(&mut answer) {
            let text = String::from_utf8_lossy(&answer[..len]).into_owned();
            ensure!(text == name, "{name} was answered by {text}");
            answers.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn in_use(scene: &mut Scene) -> Result<()> {
    let node = &scene.nodes.one;
    netctl(node, "network create -t blue -s 10.1.3.0/24 lone")?;
    let lone = attach_to_group(node, "lone", "lone", None)?;
    for (line, reason) in [
        ("network rm -t blue lone", "Error: Network has active endpoints"),
        ("group rm -t blue web", "Error: EPG web has active endpoints"),
        ("tenant rm blue", "cannot delete blue has 3 endpoint groups"),
    ] {
        let done = node.netctl_run(&line.split(' ').collect::<Vec<_>>())?;
        ensure!(done.code == Some(3) && done.stderr.contains(reason), "{line}: {done:?}");
        ensure!(done.stderr.contains("next: "), "{line} names no next step: {done:?}");
    }
    ensure!(ping(lone.namespace(), lone.address(), 1)?.received == 1, "lone is broken");
    lone.detach(node)?;
    netctl(node, "network rm -t blue lone").map(drop)
}

fn late(scene: &mut Scene) -> Result<()> {
    scene.nodes.two.stop(Daemon::Vrouterd)?;
    let timed = |line: &str| {
        let start = Instant::now();
        let done = scene.nodes.one.netctl_run(&line.split(' ').collect::<Vec<_>>())?;
        ensure!(done.code == Some(0), "{line}: {done:?}");
        Ok((start.elapsed(), done.stderr))
    };
    let second = Duration::from_secs(1);
    let (took, warning) = timed("policy rule-add -t blue -d in -l udp -P 7001 -j deny guard r")?;
    ensure!(warning.contains("node2") && !warning.contains("node1"), "{warning:?}");
    ensure!((second * 2..second * 4).contains(&took), "it took {took:?}");
    let (took, warning) = timed("--no-wait policy rule-rm -t blue guard r")?;
    ensure!(warning.is_empty() && took < second, "{warning:?} in {took:?}");
    scene.nodes.two.start(Daemon::Vrouterd)?;
    reach_soon(&scene.x, scene.y.address())?;
    all_connected(&scene.nodes.one)?;
    ensure!(passes(&scene.x, &scene.s)?, "the rule is still there");
    Ok(())
}
