//! An uplink of two devices whose active one loses its link.
//!
//! Two nodes on a switch, which is a bridge in a namespace of its own; the first node has two devices
//! on it. Its containers' traffic, over VXLAN and over a VLAN, goes on over the second one.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use kit::frame::{Addresses, arp_request, tagged};
use kit::{
    Container, Daemon, Flow, NetnsGuard, Purpose, Topology, TwoNodes, UPLINK, capture, ping,
    wait_until,
};
use netdev::ethtool::{self, Feature, State};
use netdev::packet::PacketSocket;
use netdev::{Namespace, Netlink, VethSpec};

use crate::Test;
use crate::site::{BOUND, attach, configure, ip, ports, reach, reach_soon};

const STANDBY: &str = "up1";
const EAR: &str = "ear0";
/// UPL-1.
const GAP_MAX: Duration = Duration::from_millis(300);
/// Of what does not pass the uplink: the machine has time for all.
const QUIET: Duration = Duration::from_millis(60);
const ROUNDS_MAX: usize = 40;
const INTERVAL: Duration = Duration::from_millis(2);
/// Ports of the switch: the first node's active and standby device, the second node.
const SWITCH_PORTS: [&str; 3] = ["p0", "p1", "p2"];
/// Ethernet header and packet.
const ARP_BYTES: usize = 14 + 28;
const VID: u16 = 101;
const NETWORKS: [&str; 3] = [
    "tenant create blue",
    "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
    "network create -t blue -e vlan -p 101 -s 10.1.2.0/24 -g 10.1.2.254 lan",
];

pub(crate) fn tests() -> Vec<Test> {
    let name = "upl_1_a_second_uplink_takes_over_within_300_ms_and_is_announced";
    vec![
        (name.to_owned(), Box::new(|| fails_over("dedicated"))),
        (format!("{name}_when_shared"), Box::new(|| fails_over("shared"))),
    ]
}

/// How often the cable is pulled: to the second device and back.
fn rounds() -> usize {
    if std::env::var_os("WEIR_SOAK").is_some() { 20 } else { 2 }
}

/// Longest times without an answer.
struct Gaps {
    worst: Duration,
    /// Of what does not pass the uplink.
    elsewhere: Duration,
}

struct Scene {
    nodes: TwoNodes,
    switch: NetnsGuard,
    /// Hears on the switch what is for everybody.
    listener: NetnsGuard,
}

fn fails_over(mode: &str) -> Result<()> {
    let scene = Scene::new(mode)?;
    let (one, two) = (&scene.nodes.one, &scene.nodes.two);
    let pairs = ["front", "lan"].map(|network| {
        let (near, far) = (attach(one, network, network)?, attach(two, network, network)?);
        reach_soon(&near, far.address())?;
        Ok::<_, anyhow::Error>((near, far))
    });
    let [front, lan] = pairs;
    let (front, lan) = (front?, lan?);
    let mut quiet = 0;
    for round in 0..ROUNDS_MAX {
        let cut = SWITCH_PORTS[round % 2];
        let taken_over = if round % 2 == 0 { STANDBY } else { UPLINK };
        let Gaps { worst, elsewhere } = scene.pull(cut, taken_over, [&front, &lan])?;
        eprintln!("{mode}: {cut} pulled, {worst:?} without an answer, {elsewhere:?} elsewhere");
        // Where everybody waits for a processor, nothing is known of the uplink.
        if elsewhere < QUIET {
            ensure!(worst < GAP_MAX, "{worst:?} without an answer after {cut} was pulled");
            quiet += 1;
        }
        if quiet == rounds() {
            return Ok(());
        }
        scene.plug(cut)?;
    }
    bail!("{quiet} times on a machine that had time for it, want {}", rounds())
}

impl Scene {
    fn new(mode: &str) -> Result<Self> {
        let args = ["--uplink-mode", mode];
        let topology = Topology::new(Purpose::Test).daemon_args(Daemon::Netplugin, &args);
        let mut nodes = topology.two_nodes_stopped()?;
        let switch = NetnsGuard::new(Purpose::Test, "switch")?;
        ip(switch.namespace(), "link add br0 type bridge")?;
        ip(switch.namespace(), "link set br0 up")?;
        // In place of the cable between the nodes.
        ip(nodes.one.namespace(), &format!("link del {UPLINK}"))?;
        let [first, standby, second] = SWITCH_PORTS;
        cable(nodes.one.namespace(), UPLINK, (&switch, first))?;
        cable(nodes.one.namespace(), STANDBY, (&switch, standby))?;
        cable(nodes.two.namespace(), UPLINK, (&switch, second))?;
        let listener = NetnsGuard::new(Purpose::Test, "listener")?;
        cable(listener.namespace(), EAR, (&switch, "p3"))?;
        for node in [&nodes.one, &nodes.two] {
            ip(node.namespace(), &format!("addr add {}/24 dev {UPLINK}", node.vtep()))?;
        }
        nodes.one.start(Daemon::Netmaster)?;
        for node in [&mut nodes.one, &mut nodes.two] {
            node.start(Daemon::Vrouterd)?;
        }
        nodes.one.start_with(Daemon::Netplugin, &["--uplink", STANDBY])?;
        nodes.two.start(Daemon::Netplugin)?;
        for node in [&nodes.one, &nodes.two] {
            let taken = || ports(node).ok()?.into_values().find(|name| name == UPLINK);
            wait_until(BOUND, "the uplink to be attached", taken)?;
        }
        configure(&nodes.one, &NETWORKS)?;
        Ok(Self { nodes, switch, listener })
    }

    /// Pulls a cable under traffic in both networks and both ways. Tunnel end point and container are
    /// announced on the device that takes over.
    fn pull(
        &self,
        cut: &str,
        taken_over: &str,
        pairs: [&(Container, Container); 2],
    ) -> Result<Gaps> {
        let heard = capture(self.listener.namespace(), EAR)?;
        let flows = pairs.into_iter().flat_map(|(near, far)| [(near, far), (far, near)]);
        let flows = flows.map(|(from, to)| Flow::start(from.namespace(), to.address(), INTERVAL));
        let flows = flows.collect::<Result<Vec<_>>>()?;
        let gateway = pairs[0].0.gateway().context("no gateway")?;
        let steady = Flow::start(pairs[0].0.namespace(), gateway, INTERVAL)?;
        for (near, far) in pairs {
            reach(near, far.address())?;
        }
        ip(self.switch.namespace(), &format!("link set {cut} down"))?;
        let netlink = self.nodes.one.netns().netlink()?;
        let mac = netlink.link_by_name(taken_over)?.context("the standby device is gone")?.mac;
        let container = &pairs[1].0;
        let announced = announcement(container.mac()?, container.address())?;
        hear(&heard, &[announcement(mac, self.nodes.one.vtep())?, tagged(&announced, VID)])?;
        self.shows(cut, taken_over)?;
        for (near, far) in pairs {
            let after = ping(near.namespace(), far.address(), 500)?;
            ensure!(after.received >= 495, "after the announcements {after:?}");
        }
        // At the same time: each waits for answers that were lost.
        let flows = flows.into_iter().map(|flow| thread::spawn(|| flow.stop())).collect::<Vec<_>>();
        let elsewhere = steady.stop()?.gap_max;
        let mut worst = Duration::ZERO;
        for flow in flows {
            let report = flow.join().map_err(|_panic| anyhow!("a flow's end panicked"))??;
            worst = worst.max(report.gap_max);
        }
        Ok(Gaps { worst, elsewhere })
    }

    /// Who lists ports sees which device is in use, and which has no link.
    fn shows(&self, cut: &str, taken_over: &str) -> Result<()> {
        let ports = self.nodes.one.vrctl(&["port", "ls"])?;
        let mut rows = ports.as_array().into_iter().flatten();
        let uplink = rows.find(|row| row["kind"] == "uplink").context("no uplink")?;
        let device = |name: &str| {
            let mut devices = uplink["devices"].as_array().into_iter().flatten();
            let found = devices.find(|device| device["name"] == name);
            found.with_context(|| format!("no device {name}: {uplink}"))
        };
        let (lost, used) = (device(Self::device_at(cut))?, device(taken_over)?);
        ensure!(lost["active"] == false && lost["state"] == "down", "{lost}");
        ensure!(used["active"] == true && used["state"] == "up", "{used}");
        Ok(())
    }

    /// The first node's device on this port of the switch.
    fn device_at(port: &str) -> &'static str {
        if port == SWITCH_PORTS[0] { UPLINK } else { STANDBY }
    }

    /// The device is standby from then on.
    fn plug(&self, cut: &str) -> Result<()> {
        ip(self.switch.namespace(), &format!("link set {cut} up"))?;
        wait_running(&self.nodes.one.netns().netlink()?, Self::device_at(cut))?;
        wait_running(&self.switch.netlink()?, cut)
    }
}

/// The kernel, and a bridge with it, may learn up to a second late that a link is there.
fn wait_running(netlink: &Netlink, device: &str) -> Result<()> {
    let running = || netlink.link_by_name(device).ok()?.filter(|link| link.running);
    wait_until(BOUND, format!("{device} to run"), running)?;
    Ok(())
}

/// Gratuitous ARP: who has an address asks for it.
fn announcement(mac: [u8; 6], address: Ipv4Addr) -> Result<Vec<u8>> {
    let everybody = [0xff; 6];
    let addresses = Addresses { src_mac: mac, dst_mac: everybody, src: address, dst: address };
    let mut frame = arp_request(addresses)?;
    // A virtual device does not pad it.
    frame.truncate(ARP_BYTES);
    Ok(frame)
}

/// Waits for all of these frames, in any order.
fn hear(on: &PacketSocket, expected: &[Vec<u8>]) -> Result<()> {
    let mut missing = expected.to_vec();
    let all = || {
        let frame = on.receive(Duration::from_millis(20)).ok()??;
        missing.retain(|expected| !frame.starts_with(expected));
        missing.is_empty().then_some(())
    };
    wait_until(BOUND, "the announcements", all)?;
    Ok(())
}

fn cable(node: &Namespace, ifname: &str, (switch, port): (&NetnsGuard, &str)) -> Result<()> {
    let spec = VethSpec {
        name: ifname,
        mac: None,
        mtu: 1500,
        peer_name: port,
        peer_mac: None,
        peer_mtu: 1500,
        peer_netns: Some(switch.namespace()),
    };
    Netlink::open_in(node)?.create_veth(&spec)?;
    ip(node, &format!("link set {ifname} up"))?;
    // On a wire tags are in the frame.
    switch.run(|| ethtool::set(port, Feature::TxVlan, State::Off))??;
    ip(switch.namespace(), &format!("link set {port} master br0"))?;
    ip(switch.namespace(), &format!("link set {port} up"))?;
    wait_running(&switch.netlink()?, port)
}
