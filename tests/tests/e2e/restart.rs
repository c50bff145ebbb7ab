//! What restarts and crashes of the node's daemons do to running containers: nothing, or a gap.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use kit::frame::{Addresses, tagged, udp};
use kit::{
    CONTAINER_IFNAME, Container, Daemon, FABRIC_PORT, Flow, Node, OneNode, Purpose, TcpServer,
    Topology, capture, tcp_connect, wait_until,
};
use netdev::packet::PacketSocket;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::Test;
use crate::shared::sharing;
use crate::site::{
    BOUND, Trio, all_connected, attach, configure, endpoints, links, netctl, netctl_json, port_of,
    ports, reach, reach_soon,
};

const INTERVAL: Duration = Duration::from_millis(2);
const VID: u16 = 100;

pub(crate) fn tests() -> Vec<Test> {
    let mut tests = sharing(
        Trio::build,
        &[
            ("ha_2_netplugin_stopped_and_started_loses_no_packet", agent_stopped),
            ("ha_2_netplugin_killed_and_started_loses_no_packet", agent_killed),
            ("ha_1_netplugin_restarted_without_netmaster_loses_no_packet", agent_alone),
            ("d15_netplugin_outlives_netmaster_and_goes_on_with_the_next", master_killed),
            ("ha_3_a_killed_vrouterd_comes_back_with_the_same_ports", engine_killed),
            ("ha_5_both_restarted_without_netmaster_work_once_it_is_back", both_alone),
            ("ipam_4_a_container_that_vanished_while_netplugin_was_down_is_cleaned_up", vanished),
            ("an_idle_engine_uses_under_a_twentieth_of_a_core", idle),
        ],
    );
    let vlan = "ha_2_a_vlan_network_lives_through_restarts_of_netplugin";
    tests.push((vlan.to_owned(), Box::new(vlan_lives)));
    tests
}

impl Trio {
    /// Does something to node 1 under traffic on it and to node 2: nothing may be lost.
    fn without_loss(&mut self, work: impl FnOnce(&mut Node) -> Result<()>) -> Result<()> {
        let ports_before = ports(&self.nodes.one)?;
        let near = Flow::start(self.a.namespace(), self.b.address(), INTERVAL)?;
        let far = Flow::start(self.c.namespace(), self.a.address(), INTERVAL)?;
        let start = received(&self.nodes.one, &self.b)?;
        let more = |node: &Node, count| {
            wait_until(BOUND, "traffic", || {
                received(node, &self.b).ok().filter(|now| *now > start + count)
            })
        };
        more(&self.nodes.one, 20)?;
        let ends = [&self.a, &self.b].map(|end| capture(end.namespace(), CONTAINER_IFNAME));
        let stop = AtomicBool::new(false);
        let asked = thread::scope(|scope| {
            let ears = ends.map(|end| scope.spawn(|| broadcasts(&end?, &stop)));
            let worked = work(&mut self.nodes.one);
            let followed = worked.and_then(|()| Ok(more(&self.nodes.one, 220)?));
            stop.store(true, Ordering::Relaxed);
            let heard = ears.map(|ear| ear.join().map_err(|_panic| anyhow!("an ear panicked"))?);
            followed?;
            heard.into_iter().sum::<Result<usize>>()
        })?;
        ensure!(asked == 0, "{asked} broadcasts: somebody learns anew who has an address");
        for flow in [near, far] {
            let report = flow.stop()?;
            ensure!(report.received == report.sent, "{report:?}");
        }
        ensure!(ports(&self.nodes.one)? == ports_before, "the ports changed");
        self.sound()
    }
}

/// Counts frames to everybody, sent and received, until it is to stop.
fn broadcasts(end: &PacketSocket, stop: &AtomicBool) -> Result<usize> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let frame = end.receive(Duration::from_millis(50))?;
        count += usize::from(frame.is_some_and(|frame| frame.starts_with(&[0xff; 6])));
    }
    Ok(count)
}

fn received(node: &Node, container: &Container) -> Result<u64> {
    port_of(node, container)?["tx_packets"].as_u64().context("no tx_packets")
}

fn agent_stopped(scene: &mut Trio) -> Result<()> {
    scene.without_loss(|node| {
        let status = node.stop(Daemon::Netplugin)?;
        ensure!(status.success(), "SIGTERM: {status}");
        node.start(Daemon::Netplugin)
    })
}

fn agent_killed(scene: &mut Trio) -> Result<()> {
    scene.without_loss(|node| {
        for _ in 0..3 {
            node.kill(Daemon::Netplugin)?;
            node.start(Daemon::Netplugin)?;
        }
        Ok(())
    })?;
    // It attaches again, and what it knew before is right.
    let d = attach(&scene.nodes.one, "d", "front")?;
    reach_soon(&d, scene.c.address())?;
    scene.a.check(&scene.nodes.one)?;
    d.detach(&scene.nodes.one)
}

/// Contiv's agent ends when the store's watch does, and with it what it would have done.
fn master_killed(trio: &mut Trio) -> Result<()> {
    let pids = |node: &mut Node| anyhow::Ok(node.process(Daemon::Netplugin)?.pid());
    let pid = pids(&mut trio.nodes.one)?;
    trio.without_loss(|node| {
        for _ in 0..2 {
            node.kill(Daemon::Netmaster)?;
            node.start(Daemon::Netmaster)?;
        }
        Ok(())
    })?;
    all_connected(&trio.nodes.one)?;
    ensure!(pids(&mut trio.nodes.one)? == pid, "another netplugin");
    kill(Pid::from_raw(pid.cast_signed()), None).context("netplugin has ended")?;
    // What comes next reaches it: a container, and what intent says of one.
    let next = attach(&trio.nodes.one, "next", "front")?;
    reach_soon(&trio.c, next.address())?;
    netctl(&trio.nodes.one, "tenant update blue --default-verdict deny")?;
    let cut = || reach(&trio.c, next.address()).is_err().then_some(());
    wait_until(BOUND, "the verdict to reach both nodes", cut)?;
    netctl(&trio.nodes.one, "tenant update blue --default-verdict allow")?;
    reach_soon(&trio.c, next.address())?;
    next.detach(&trio.nodes.one)
}

fn agent_alone(scene: &mut Trio) -> Result<()> {
    scene.without_loss(|node| {
        node.stop(Daemon::Netmaster)?;
        node.kill(Daemon::Netplugin)?;
        node.start_unready(Daemon::Netplugin)?;
        Ok(())
    })?;
    scene.nodes.one.start(Daemon::Netmaster)?;
    ready(&scene.nodes.one)?;
    ready(&scene.nodes.two)?;
    scene.sound()
}

/// The node can attach containers.
fn ready(node: &Node) -> Result<()> {
    let stdin = node.cni_config(&serde_json::json!({})).to_string();
    let call = kit::CniCall {
        command: "STATUS",
        container_id: "",
        netns: "".as_ref(),
        ifname: "",
        args: "",
        stdin: &stdin,
    };
    wait_until(BOUND, "the node to be ready", || node.cni(&call).ok()?.success().ok())?;
    Ok(())
}

fn engine_killed(scene: &mut Trio) -> Result<()> {
    let (ports_before, links_before) = (ports(&scene.nodes.one)?, links(&scene.nodes.one)?);
    let address = SocketAddr::from((scene.c.address(), 0));
    let server = TcpServer::start(scene.c.namespace(), address)?;
    let mut stream = tcp_connect(scene.a.namespace(), server.address(), Duration::from_secs(2))?;
    for round in 0..3 {
        echo(&mut stream).with_context(|| format!("before kill {round}"))?;
        scene.nodes.one.kill(Daemon::Vrouterd)?;
        scene.nodes.one.start(Daemon::Vrouterd)?;
        scene.sound().with_context(|| format!("after kill {round}"))?;
        let ports_now = ports(&scene.nodes.one)?;
        ensure!(ports_now == ports_before, "{ports_now:?}, before {ports_before:?}");
        let links_now = links(&scene.nodes.one)?;
        ensure!(links_now == links_before, "{links_now:?}, before {links_before:?}");
    }
    echo(&mut stream).context("after the last kill")
}

fn echo(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"still there?")?;
    let mut back = [0; 12];
    stream.read_exact(&mut back).context("reading the echo")?;
    ensure!(&back == b"still there?", "{back:?}");
    Ok(())
}

fn both_alone(scene: &mut Trio) -> Result<()> {
    let ports_before = ports(&scene.nodes.one)?;
    let node = &mut scene.nodes.one;
    node.stop(Daemon::Netmaster)?;
    node.kill(Daemon::Netplugin)?;
    node.kill(Daemon::Vrouterd)?;
    node.start(Daemon::Vrouterd)?;
    node.start_unready(Daemon::Netplugin)?;
    node.start(Daemon::Netmaster)?;
    ready(&scene.nodes.one)?;
    scene.sound()?;
    let ports_now = ports(&scene.nodes.one)?;
    ensure!(ports_now == ports_before, "{ports_now:?}, before {ports_before:?}");
    Ok(())
}

fn vanished(scene: &mut Trio) -> Result<()> {
    let node = &mut scene.nodes.one;
    let before = (links(node)?, ports(node)?, endpoints(node)?, free_addresses(node)?);
    let gone = attach(node, "gone", "front")?;
    let id = format!("{}:{}", gone.id(), CONTAINER_IFNAME);
    ensure!(endpoints(node)?.contains(&id), "{id} is no endpoint");
    node.kill(Daemon::Netplugin)?;
    // The namespace goes without a DEL.
    drop(gone);
    node.start(Daemon::Netplugin)?;
    let node = &scene.nodes.one;
    let look = || Ok((links(node)?, ports(node)?, endpoints(node)?, free_addresses(node)?));
    let clean = || look().ok().filter(|now| *now == before);
    wait_until(BOUND, "everything of it to go", clean)
        .with_context(|| format!("{:?}, before {before:?}", Result::<_>::ok(look())))?;
    scene.sound()
}

fn free_addresses(node: &Node) -> Result<String> {
    let network = netctl_json(node, "network inspect -t blue front")?;
    Ok(network["Oper"]["availableIPAddresses"].to_string())
}

fn idle(scene: &mut Trio) -> Result<()> {
    const LOOK: Duration = Duration::from_secs(2);
    let node = &mut scene.nodes.one;
    let more = (0..4).map(|_| attach(node, "idle", "front")).collect::<Result<Vec<_>>>()?;
    ensure!(ports(node)?.len() == 7, "{:?}", ports(node)?);
    let process = node.process(Daemon::Vrouterd)?;
    let quiet = || {
        let (start, before) = (Instant::now(), process.cpu_time().ok()?);
        wait_until(LOOK * 2, "two seconds", || (start.elapsed() >= LOOK).then_some(())).ok()?;
        let used = process.cpu_time().ok()?.saturating_sub(before);
        (used * 20 <= start.elapsed()).then_some(used)
    };
    // Containers that have just come up still look for routers and announce groups.
    wait_until(BOUND, "an engine that uses under 5 % of a core", quiet)?;
    for container in more {
        container.detach(&scene.nodes.one)?;
    }
    Ok(())
}

/// Tagged frames keep coming from the wire while netplugin goes and comes, with netmaster there and
/// without: a restart must not make the engine forget the uplink's VLANs for a moment.
fn vlan_lives() -> Result<()> {
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 2, 2, 50);
    let mut one: OneNode = Topology::new(Purpose::Test).one_node()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.2.2.0/24 -g 10.2.2.254 -e vlan -p 100 lan",
    ];
    configure(&one.node, &lines)?;
    let v = attach(&one.node, "v", "lan")?;
    let wire = capture(one.fabric.namespace(), FABRIC_PORT)?;
    let addresses = Addresses {
        src_mac: [0x02, 0xaa, 0, 0, 0, 0x50],
        dst_mac: v.mac()?,
        src: OUTSIDE,
        dst: v.address(),
    };
    let frame = tagged(&udp(addresses, 9, 9, b"from the wire")?, VID);
    wire.send(&frame)?;
    wait_until(BOUND, "the first frame", || received(&one.node, &v).ok().filter(|n| *n > 0))?;
    let start = received(&one.node, &v)?;
    let stop = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let sender = scope.spawn(|| send_until(&wire, &frame, &stop));
        let outcome = restarts(&mut one);
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_panic| anyhow!("the sender panicked"))?;
        outcome.and(sent)
    })?;
    let all = || received(&one.node, &v).ok().filter(|now| *now >= start + sent);
    wait_until(BOUND, format!("all {sent} frames"), all).with_context(|| {
        let now = received(&one.node, &v).unwrap_or_default();
        format!("{} of {sent} reached {}", now - start, v.address())
    })?;
    reach(&v, Ipv4Addr::new(10, 2, 2, 254))
}

/// Sends a frame every [`INTERVAL`]; how many it was.
fn send_until(wire: &PacketSocket, frame: &[u8], stop: &AtomicBool) -> Result<u64> {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let last = Instant::now();
        wire.send(frame)?;
        sent += 1;
        let over = || (last.elapsed() >= INTERVAL).then_some(());
        wait_until(BOUND, "the next frame's time", over)?;
    }
    Ok(sent)
}

fn restarts(one: &mut OneNode) -> Result<()> {
    one.node.kill(Daemon::Netplugin)?;
    one.node.start(Daemon::Netplugin)?;
    one.node.stop(Daemon::Netmaster)?;
    one.node.kill(Daemon::Netplugin)?;
    one.node.start_unready(Daemon::Netplugin)?;
    one.node.start(Daemon::Netmaster)?;
    ready(&one.node)
}
