//! A node with two containers, or two with one each, joined by vrouterd or by Linux. All of it goes when it
//! is dropped.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use datapath_api::convert::ops_to_proto;
use datapath_api::v1;
use datapath_api::v1::datapath_client::DatapathClient;
use flowtable::entry::{
    Direction, Entry, Ipv6, MacEntry, NetworkEntry, NextHop, Offload, Op, Permit, PortEntry,
    PortRange, Prefix, RouteEntry, RuleEntry,
};
use flowtable::ids::{Bd, Group, Mac, PortId, RuleId, Vrf};
use netdev::{Namespace, Netlink, RouteSpec, VethSpec};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use super::{float, overlay};

pub(super) const CONTAINERS: [u8; 2] = [5, 6];
const READY: Duration = Duration::from_secs(20);
/// Rules from here on are those that change.
const CHANGING: u64 = 1 << 20;

/// Two containers that reach each other.
pub(super) struct Pair {
    pub(super) from: Namespace,
    pub(super) to: Namespace,
    /// Of the second one.
    pub(super) address: IpAddr,
}

/// Whether two containers are in one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Join {
    /// They are.
    Bridged,
    /// Each is in a network of its own, and the other one behind its gateway.
    Routed,
    /// They are, and on two nodes.
    Overlay,
}

impl Join {
    /// Of the network of container `n`.
    fn host(self, n: u8, host: u8) -> IpAddr {
        let network = match self {
            Self::Bridged | Self::Overlay => 9,
            Self::Routed => n,
        };
        Ipv4Addr::new(10, 9, network, host).into()
    }

    pub(super) fn address(self, n: u8) -> IpAddr {
        self.host(n, n)
    }

    /// Of the containers' devices, in bytes.
    const fn mtu(self) -> u32 {
        match self {
            Self::Bridged | Self::Routed => 1500,
            Self::Overlay => 1450,
        }
    }

    /// Which of two nodes container `n` is on.
    fn place(self, n: u8) -> usize {
        usize::from(self == Self::Overlay && n == CONTAINERS[1])
    }

    fn gateway(self, n: u8) -> IpAddr {
        self.host(n, 254)
    }
}

/// Two containers that Linux joins.
pub(super) struct HostNode {
    pair: Pair,
    _nodes: Vec<Namespace>,
}

/// A vrouterd between two containers.
pub(super) struct WeirNode {
    pair: Pair,
    /// One for each node.
    daemons: Vec<Daemon>,
    _nodes: Vec<Namespace>,
}

/// The process and its directory.
struct Daemon {
    child: Child,
    dir: PathBuf,
    runtime: Runtime,
    client: DatapathClient<Channel>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // What has ended already cannot be killed, and what is gone not removed.
        self.child.kill().ok();
        self.child.wait().ok();
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

impl Pair {
    /// Containers with default offloads, their host ends `vph<n>` in their nodes.
    fn new(nodes: &[Namespace], join: Join) -> Result<Self> {
        let [from, to] = [Namespace::anonymous()?, Namespace::anonymous()?];
        for (n, inside) in CONTAINERS.into_iter().zip([&from, &to]) {
            let node = &nodes[join.place(n)];
            let spec = VethSpec {
                name: &host_end(n),
                mac: None,
                mtu: join.mtu(),
                peer_name: "eth0",
                peer_mac: Some(mac(n).0),
                peer_mtu: join.mtu(),
                peer_netns: Some(inside),
            };
            Netlink::open_in(node)?.create_veth(&spec)?;
            netdev::set_disable_ipv6(Some(node), &host_end(n))?;
            netdev::set_disable_ipv6(Some(inside), "eth0")?;
            let netlink = Netlink::open_in(inside)?;
            let eth0 = netlink.link_by_name("eth0")?.context("a veth pair without its peer")?;
            netlink.add_address(eth0.index, join.address(n), 24)?;
            netlink.set_up(eth0.index)?;
            if join == Join::Routed {
                let (dst, gateway) = (None, Some(join.gateway(n)));
                netlink.add_route(&RouteSpec { dst, gateway, oif: eth0.index, mtu: None })?;
            }
        }
        Ok(Self { from, to, address: join.address(CONTAINERS[1]) })
    }
}

fn host_end(n: u8) -> String {
    format!("vph{n}")
}

pub(super) fn mac(n: u8) -> Mac {
    Mac([2, 0, 10, 9, 9, n])
}

fn set_up_host_ends(nodes: &[Namespace], join: Join) -> Result<()> {
    for n in CONTAINERS {
        let netlink = Netlink::open_in(&nodes[join.place(n)])?;
        let link = netlink.link_by_name(&host_end(n))?.context("a host end is gone")?;
        netlink.set_up(link.index)?;
    }
    Ok(())
}

/// One node, or two with uplinks to each other.
fn nodes(join: Join) -> Result<Vec<Namespace>> {
    let nodes: Vec<Namespace> = match join {
        Join::Bridged | Join::Routed => vec![Namespace::anonymous()?],
        Join::Overlay => overlay::nodes()?,
    };
    for node in &nodes {
        let netlink = Netlink::open_in(node)?;
        let lo = netlink.link_by_name("lo")?.context("a namespace without lo")?;
        netlink.set_up(lo.index)?;
    }
    Ok(nodes)
}

impl HostNode {
    pub(super) fn new(join: Join) -> Result<Self> {
        let nodes = nodes(join)?;
        let pair = Pair::new(&nodes, join)?;
        match join {
            Join::Bridged => bridge(&nodes[0], &CONTAINERS.map(host_end))?,
            Join::Overlay => {
                for (node, n) in nodes.iter().zip(CONTAINERS) {
                    overlay::add_vxlan(node, n)?;
                    bridge(node, &[host_end(n), overlay::VXLAN.to_owned()])?;
                }
            }
            Join::Routed => {
                let node = &nodes[0];
                node.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))??;
                for n in CONTAINERS {
                    let gateway = join.gateway(n);
                    ip(node, &format!("addr add {gateway}/24 dev {}", host_end(n)))?;
                }
            }
        }
        set_up_host_ends(&nodes, join)?;
        Ok(Self { pair, _nodes: nodes })
    }

    pub(super) const fn pair(&self) -> &Pair {
        &self.pair
    }
}

fn bridge(node: &Namespace, ports: &[String]) -> Result<()> {
    ip(node, "link add vpbr type bridge")?;
    for port in ports {
        ip(node, &format!("link set {port} master vpbr"))?;
    }
    ip(node, "link set vpbr up")
}

/// Bridges are made by iproute2.
pub(super) fn ip(node: &Namespace, arguments: &str) -> Result<()> {
    let run = || Command::new("ip").args(arguments.split(' ')).output();
    let output = node.run(run)?.context("running ip (iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {said}");
    Ok(())
}

impl WeirNode {
    /// Its policy has so many rules.
    pub(super) fn new(join: Join, offload: &str, rules: u32) -> Result<Self> {
        let nodes = nodes(join)?;
        let pair = Pair::new(&nodes, join)?;
        let mut daemons = Vec::new();
        for (place, node) in nodes.iter().enumerate() {
            let daemon = Daemon::start((node, place), offload)?;
            let here: Vec<u8> =
                CONTAINERS.into_iter().filter(|n| join.place(*n) == place).collect();
            for n in &here {
                daemon.add_port(*n)?;
            }
            let mut ops = tables(join, &here)?;
            if join == Join::Overlay {
                daemon.add_uplink(CONTAINERS[place])?;
                ops.extend(overlay::tables(CONTAINERS[place], CONTAINERS[1 - place])?);
            }
            ops.extend((0..rules).map(|number| rule(number.into())));
            daemon.write(&ops)?;
            daemons.push(daemon);
        }
        set_up_host_ends(&nodes, join)?;
        Ok(Self { pair, daemons, _nodes: nodes })
    }

    pub(super) const fn pair(&self) -> &Pair {
        &self.pair
    }

    /// Does `work` while a rule that concerns nobody changes so many times a second.
    pub(super) fn changing<T>(
        &self,
        per_second: u32,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some(pause) = Duration::from_secs(1).checked_div(per_second) else { return work() };
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| self.daemons[0].change(pause, &stop));
            let result = work();
            stop.store(true, Ordering::Relaxed);
            match changes.join() {
                Ok(changed) => changed.and(result),
                Err(_panic) => bail!("the thread that changes rules panicked"),
            }
        })
    }

    /// Of all packets that came in, in percent.
    pub(super) fn offloaded_pct(&self) -> Result<f64> {
        let (mut offloaded, mut all) = (0, 0);
        for daemon in &self.daemons {
            let mut client = daemon.client.clone();
            let (ports, offload) = daemon.runtime.block_on(async {
                let counters = client.counters(v1::CountersRequest {}).await?;
                let offload = client.offload(v1::OffloadRequest::default()).await?;
                anyhow::Ok((counters.into_inner().ports, offload.into_inner()))
            })?;
            offloaded += offload.packets;
            all += ports.iter().map(|port| port.rx_packets).sum::<u64>();
        }
        Ok(100.0 * float(offloaded) / float(all.max(1)))
    }
}

impl Daemon {
    /// The vrouterd beside this program.
    fn start((node, place): (&Namespace, usize), offload: &str) -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("vrouterd");
        ensure!(program.is_file(), "{} is not there: `make build`", program.display());
        let dir = std::env::temp_dir().join(format!("vrperf-{}-{place}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let config = dir.join("vrouterd.toml");
        std::fs::write(&config, "")?;
        let mut command = Command::new(program);
        command.arg("--config").arg(config).arg("--run-dir").arg(&dir);
        // The limits of a port protect the engine from floods; here is one sender.
        command.args(["--log-level", "warn", "--port-pps", "0", "--port-mbps", "0"]);
        command.args(["--metrics", "off", "--offload", offload]);
        command.stdout(Stdio::null());
        let child = node.run(|| command.spawn())??;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint =
            Endpoint::from_shared(format!("unix:{}", dir.join("vrouterd.sock").display()))?;
        let started = Instant::now();
        let channel = loop {
            match runtime.block_on(endpoint.connect()) {
                Ok(channel) => break channel,
                Err(error) if started.elapsed() > READY => {
                    return Err(error).context("vrouterd does not answer");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        Ok(Self { child, dir, runtime, client: DatapathClient::new(channel) })
    }

    fn write(&self, ops: &[Op]) -> Result<()> {
        let mut client = self.client.clone();
        self.runtime.block_on(client.write(ops_to_proto(ops)))?;
        Ok(())
    }

    /// Adds rules until `stop` is set.
    fn change(&self, pause: Duration, stop: &AtomicBool) -> Result<()> {
        for number in CHANGING.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let next = Instant::now() + pause;
            self.write(&[rule(number)])?;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    fn add_port(&self, n: u8) -> Result<()> {
        self.add(v1::AddPortRequest {
            port: n.into(),
            name: host_end(n),
            kind: v1::PortKind::Container.into(),
            ..Default::default()
        })
    }

    fn add_uplink(&self, n: u8) -> Result<()> {
        self.add(v1::AddPortRequest {
            port: overlay::PORT.into(),
            name: overlay::uplink(n),
            kind: v1::PortKind::Uplink.into(),
            vtep: vec![overlay::vtep(n).octets().to_vec()],
            uplink_mode: v1::UplinkMode::Shared.into(),
            ..Default::default()
        })
    }

    fn add(&self, request: v1::AddPortRequest) -> Result<()> {
        let mut client = self.client.clone();
        self.runtime.block_on(client.add_port(request))?;
        Ok(())
    }
}

/// Both containers in one network, or each in its own. The same network twice is fine.
fn tables(join: Join, here: &[u8]) -> Result<Vec<Op>> {
    let vrf = Vrf::MIN;
    let mut entries = Vec::new();
    for n in here.iter().copied() {
        let bd = match join {
            Join::Bridged | Join::Overlay => Bd::MIN,
            Join::Routed => Bd::new(n.into())?,
        };
        entries.push(Entry::Network(NetworkEntry {
            bd,
            vrf,
            subnets: vec![Prefix::new(join.host(n, 0), 24).context("a subnet")?],
            gateways: vec![join.gateway(n)],
            wire: None,
        }));
        let (port, mac, ip) = (PortId::new(n.into())?, mac(n), join.address(n));
        let next_hop = NextHop::Local(port);
        entries.push(Entry::Port(PortEntry {
            port,
            vrf,
            bd,
            group: Group::NONE,
            mac,
            ips: vec![ip],
            ipv6: Ipv6::Off,
            sample_rate: 0,
            offload: Offload::On,
        }));
        let prefix = Prefix::host(ip);
        entries.push(Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop }));
        entries.push(Entry::Mac(MacEntry { bd, mac, next_hop }));
    }
    Ok(entries.into_iter().map(Op::Put).collect())
}

/// Denies one UDP port of an address that nobody has.
fn rule(number: u64) -> Op {
    let port = (number % 60_000) as u16 + 1;
    Op::Put(Entry::Rule(RuleEntry {
        priority: 10,
        protocol: Some(17),
        dst: Some(Prefix::host(Join::Bridged.address(200))),
        dst_ports: Some(PortRange { first: port, last: port }),
        ..RuleEntry::any(RuleId(number + 1), Vrf::MIN, Direction::Out, Permit::Deny)
    }))
}
