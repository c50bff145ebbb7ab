//! The scene: two nodes, two tenants with the same addresses, two networks in one of them, six
//! containers, an sFlow collector.
//!
//! ```text
//! node1: a (front)  b (front, group web)  ra (red)     node2: c (front, web)  d (back, db)  rb (red)
//! blue: front 10.1.1.0/24, back 10.1.2.0/24            red: front 10.1.1.0/24
//! ```

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{
    Container, ContainerSpec, Daemon, DirGuard, Node, ProcessGuard, Purpose, Topology, TwoNodes,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// One packet in this many is sampled.
pub(crate) const SAMPLE_RATE: u32 = 100;
const COLLECTOR: &str = "10.250.0.1:6343";

/// Which container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// blue/front on node 1.
    A,
    /// blue/front in group web on node 1.
    B,
    /// blue/front in group web on node 2.
    C,
    /// blue/back in group db on node 2.
    D,
    /// red/front on node 1.
    RedA,
    /// red/front on node 2.
    RedB,
}

/// Containers of tenant blue.
pub(crate) const BLUE: [Who; 4] = [Who::A, Who::B, Who::C, Who::D];

/// Everything the checks look at.
#[derive(Debug)]
pub struct World {
    /// In the order of [`Who`]; emptied when they are detached.
    pub(crate) containers: Vec<Container>,
    pub(crate) collector: Option<Collector>,
    pub(crate) nodes: TwoNodes,
    /// Arguments of `vrperf throughput`.
    pub(crate) throughput: Vec<String>,
}

/// A running `sfacctd` and where it writes.
#[derive(Debug)]
pub(crate) struct Collector {
    process: ProcessGuard,
    dir: DirGuard,
}

impl World {
    /// Builds the scene, telling `progress` each step.
    ///
    /// # Errors
    /// The first step that fails.
    pub fn build(purpose: Purpose, mut progress: impl FnMut(&str)) -> Result<Self> {
        progress("two nodes joined by an underlay, netmaster, netplugin and vrouterd on them");
        let rate = SAMPLE_RATE.to_string();
        let flags = ["--sflow-collector", COLLECTOR, "--sflow-rate", &rate, "--sflow-polling", "2"];
        let topology = Topology::new(purpose).daemon_args(Daemon::Vrouterd, &flags);
        let nodes = topology.two_nodes()?;
        progress("an sFlow collector (sfacctd) on node 1");
        let collector = Collector::start(&nodes.one, purpose)?;
        progress("tenants blue and red, three networks, two groups, one policy");
        let intent: [&[&str]; 9] = [
            &["tenant", "create", "blue"],
            &["tenant", "create", "red"],
            &["network", "create", "-t", "blue", "-s", "10.1.1.0/24", "-g", "10.1.1.254", "front"],
            &["network", "create", "-t", "blue", "-s", "10.1.2.0/24", "-g", "10.1.2.254", "back"],
            &["network", "create", "-t", "red", "-s", "10.1.1.0/24", "-g", "10.1.1.254", "front"],
            &["policy", "create", "-t", "blue", "guard"],
            &["group", "create", "-t", "blue", "-p", "guard", "front", "web"],
            &["group", "create", "-t", "blue", "back", "db"],
            &["group", "create", "-t", "red", "front", "web"],
        ];
        for command in intent {
            let done = nodes.one.netctl_run(command)?.success();
            done.with_context(|| format!("netctl {}", command.join(" ")))?;
        }
        progress("six containers, attached by executing weir-cni as a runtime does");
        let containers = attach_all(&nodes)?;
        let throughput = ["--frame", "64", "--flows", "1000", "--seconds", "2"];
        let throughput = throughput.map(str::to_owned).to_vec();
        Ok(Self { containers, collector: Some(collector), nodes, throughput })
    }

    pub(crate) fn container(&self, who: Who) -> Result<&Container> {
        self.containers.get(who as usize).with_context(|| format!("{who:?} is detached"))
    }

    /// The node a container is on.
    pub(crate) const fn node_of(&self, who: Who) -> &Node {
        match who {
            Who::A | Who::B | Who::RedA => &self.nodes.one,
            Who::C | Who::D | Who::RedB => &self.nodes.two,
        }
    }

    /// Packets dropped on a node for a reason so far.
    pub(crate) fn drops(node: &Node, reason: &str) -> Result<u64> {
        let drops = node.vrctl(&["drops"])?;
        let row = drops.as_array().into_iter().flatten().find(|row| row["reason"] == reason);
        let row = row.with_context(|| format!("no row {reason} in {drops}"))?;
        row["packets"].as_u64().with_context(|| format!("no packets in {row}"))
    }

    /// The engine's row of a container's port.
    pub(crate) fn port(&self, who: Who) -> Result<Value> {
        let name = self.container(who)?.host_ifname().context("ADD named no host interface")?;
        let ports = self.node_of(who).vrctl(&["port", "ls"])?;
        let row = ports.as_array().into_iter().flatten().find(|row| row["name"] == name);
        row.cloned().with_context(|| format!("{name} is not in {ports}"))
    }

    /// Takes a container's link down, from inside.
    pub(crate) fn unplug(&self, who: Who) -> Result<()> {
        let container = self.container(who)?;
        let netlink = netdev::Netlink::open_in(container.namespace())?;
        let link = netlink.link_by_name(kit::CONTAINER_IFNAME)?.context("no such link")?;
        Ok(netlink.set_down(link.index)?)
    }
}

fn attach_all(nodes: &TwoNodes) -> Result<Vec<Container>> {
    let spec =
        |name, tenant, network, group| ContainerSpec { name, tenant, network, group, args: "" };
    let (one, two) = (&nodes.one, &nodes.two);
    let all = [
        (one, spec("a", "blue", "front", None)),
        (one, spec("b", "blue", "front", Some("web"))),
        (two, spec("c", "blue", "front", Some("web"))),
        (two, spec("d", "blue", "back", Some("db"))),
        (one, spec("ra", "red", "front", None)),
        (two, spec("rb", "red", "front", Some("web"))),
    ];
    all.iter().map(|(node, spec)| Container::attach(node, spec)).collect()
}

impl Collector {
    fn start(node: &Node, purpose: Purpose) -> Result<Self> {
        let dir = DirGuard::new(purpose, "sflow")?;
        let path = dir.path().display();
        let config = format!(
            "daemonize: false\nsfacctd_ip: 0.0.0.0\nsfacctd_port: 6343\nsfacctd_renormalize: true\n\
             plugins: print[f]\naggregate[f]: src_host, dst_host, dst_port, proto\n\
             print_output[f]: json\nprint_output_file[f]: {path}/flows.json\n\
             print_refresh_time[f]: 1\nprint_output_file_append[f]: true\n"
        );
        let file = dir.path().join("sfacctd.conf");
        fs::write(&file, config)?;
        let mut command = Command::new("sfacctd");
        command.arg("-f").arg(&file);
        let log = dir.path().join("sfacctd.log");
        let mut process = ProcessGuard::spawn(node.namespace(), "sfacctd", command, &log)?;
        // Its socket is bound before its plugin takes what arrives there; it logs when that runs.
        process.wait_ready(Duration::from_secs(10), || {
            let text = fs::read_to_string(&log)?;
            ensure!(text.contains("Purging cache - END"), "its plugin does not run");
            Ok(())
        })?;
        Ok(Self { process, dir })
    }

    /// Packets that the samples seen so far stand for.
    pub(crate) fn estimate(&self, src: &str, dst: &str, dst_port: u16) -> Result<u64> {
        let path = self.dir.path().join("flows.json");
        // Not written before the first flow.
        let text = if path.exists() { fs::read_to_string(&path)? } else { String::new() };
        let mut packets = 0;
        for line in text.lines().filter(|line| line.ends_with('}')) {
            let flow: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            if flow["ip_src"] == src && flow["ip_dst"] == dst && flow["port_dst"] == dst_port {
                packets += flow["packets"].as_u64().unwrap_or(0);
            }
        }
        Ok(packets)
    }

    /// Ends it; sfacctd heeds SIGINT only.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.process.signal(Signal::SIGINT)?;
        self.process.kill().map(drop)
    }
}
