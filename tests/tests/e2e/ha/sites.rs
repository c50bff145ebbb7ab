//! Three machines of a control plane: an etcd member and a netmaster each, in a namespace of its own,
//! joined with the nodes by a switch whose ports can be pulled.
//!
//! ```text
//! site 1: 10.251.0.1   site 2: 10.251.0.2   site 3: 10.251.0.3     node1: .11   node2: .12
//!            └───────────────────┴─────── hub ─────┴──────────────────┴───────────┘
//! ```

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kit::{DirGuard, Finished, NetnsGuard, ProcessGuard, Purpose, binary, wait_until};
use netdev::{Namespace, Netlink, VethSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::site::{BOUND, ip};

const DEVICE: &str = "ctl0";
const PREFIX_LEN: u8 = 24;
const NETMASTER_PORT: u16 = 9999;
const READY: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(10);
/// Kinds whose lists are a configuration, as netctl names them.
const LISTS: [&str; 9] = [
    "get",
    "ip ls -a",
    "tenant ls",
    "network ls -a",
    "group ls -a",
    "netprofile ls -a",
    "policy ls -a",
    "policy rule-ls -t blue guard",
    "endpoint ls -a",
];

/// Number of sites.
pub(crate) const SITES: usize = 3;

/// One machine of the control plane.
#[derive(Debug)]
pub(crate) struct Site {
    etcd: Option<ProcessGuard>,
    netmaster: Option<ProcessGuard>,
    netns: NetnsGuard,
    dir: DirGuard,
    pub(crate) number: usize,
    /// Counts restores: each has a data directory of its own.
    restored: u32,
    etcd_args: &'static [&'static str],
}

/// The control plane.
#[derive(Debug)]
pub(crate) struct Sites {
    pub(crate) all: Vec<Site>,
    hub: NetnsGuard,
}

fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 251, 0, u8::try_from(number).unwrap_or(u8::MAX))
}

fn cluster() -> String {
    let member = |number| format!("s{number}=http://{}:2380", address(number));
    (1..=SITES).map(member).collect::<Vec<_>>().join(",")
}

/// The netmasters' addresses, for nodes.
pub(crate) fn netmaster_urls() -> Vec<String> {
    (1..=SITES).map(|number| format!("http://{}:{NETMASTER_PORT}", address(number))).collect()
}

/// A list without what becomes less by the second.
fn lasting(mut list: Value) -> Value {
    for row in list.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        row.remove("ttlSeconds");
    }
    list
}

impl Sites {
    /// The machines, with nothing running on them.
    pub(crate) fn new() -> Result<Self> {
        let hub = NetnsGuard::new(Purpose::Test, "hub")?;
        ip(hub.namespace(), "link add br0 type bridge")?;
        ip(hub.namespace(), "link set br0 up")?;
        let mut sites = Self { all: Vec::new(), hub };
        for number in 1..=SITES {
            let netns = NetnsGuard::new(Purpose::Test, &format!("site{number}"))?;
            sites.join(netns.namespace(), number)?;
            let dir = DirGuard::new(Purpose::Test, &format!("site{number}"))?;
            let (etcd, netmaster) = (None, None);
            let site = Site { etcd, netmaster, netns, dir, number, restored: 0, etcd_args: &[] };
            sites.all.push(site);
        }
        Ok(sites)
    }

    /// Plugs a namespace into the switch, as 10.251.0.NUMBER.
    pub(crate) fn join(&self, namespace: &Namespace, number: usize) -> Result<()> {
        let port = format!("p{number}");
        let spec = VethSpec {
            name: DEVICE,
            mac: None,
            mtu: 1500,
            peer_name: &port,
            peer_mac: None,
            peer_mtu: 1500,
            peer_netns: Some(self.hub.namespace()),
        };
        let netlink = Netlink::open_in(namespace)?;
        netlink.create_veth(&spec)?;
        let index = netlink.link_by_name(DEVICE)?.context("the link to the hub")?.index;
        netlink.add_address(index, address(number).into(), PREFIX_LEN)?;
        netlink.set_up(index)?;
        ip(self.hub.namespace(), &format!("link set {port} master br0"))?;
        ip(self.hub.namespace(), &format!("link set {port} up"))
    }

    /// Pulls the plug of 10.251.0.NUMBER.
    pub(crate) fn cut(&self, number: usize) -> Result<()> {
        ip(self.hub.namespace(), &format!("link set p{number} down"))
    }

    /// Puts it back.
    pub(crate) fn mend(&self, number: usize) -> Result<()> {
        ip(self.hub.namespace(), &format!("link set p{number} up"))
    }

    /// Starts every etcd, then every netmaster, and waits for one to lead.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.start_etcds()?;
        for site in &mut self.all {
            site.start_netmaster()?;
        }
        self.leader().map(drop)
    }

    /// Starts every etcd and waits until they have a majority.
    pub(crate) fn start_etcds(&mut self) -> Result<()> {
        for site in &mut self.all {
            site.spawn_etcd()?;
        }
        let first = self.all.first().context("no sites")?;
        wait_until(READY, "etcd to have a leader", || {
            let health = first.etcdctl(&["endpoint", "health"]).ok()?;
            (health.code == Some(0)).then_some(())
        })?;
        Ok(())
    }

    /// Starts every etcd again with other arguments, one after another.
    pub(crate) fn restart_etcds(&mut self, args: &'static [&'static str]) -> Result<()> {
        for site in &mut self.all {
            site.kill_etcd()?;
            site.etcd_args = args;
            site.spawn_etcd()?;
            let follows = || site.follows_etcd().then_some(());
            wait_until(READY, "the member to be one of three again", follows)?;
        }
        self.leader().map(drop)
    }

    /// The site that leads; waits for it.
    pub(crate) fn leader(&self) -> Result<usize> {
        let leads = || (0..SITES).find(|site| self.all[*site].leads());
        Ok(wait_until(BOUND, "a netmaster to lead", leads)?)
    }

    /// How long it takes until a write is accepted at one of `sites`; the site.
    pub(crate) fn accepted(&self, sites: &[usize], line: &str) -> Result<(Duration, usize)> {
        let start = Instant::now();
        let accepted = || sites.iter().copied().find(|site| self.all[*site].netctl(line).is_ok());
        let site = wait_until(BOUND, format!("netctl {line} to be accepted"), accepted)?;
        Ok((start.elapsed(), site))
    }

    /// The configuration as each of `sites` shows it, which must be the same.
    pub(crate) fn configuration(&self, sites: &[usize]) -> Result<Vec<Value>> {
        let mut seen: Option<Vec<Value>> = None;
        for site in sites {
            let lists = LISTS.iter().map(|line| Ok(lasting(self.all[*site].netctl_json(line)?)));
            let lists = lists.collect::<Result<Vec<_>>>()?;
            if let Some(seen) = &seen {
                ensure!(*seen == lists, "site {} shows {lists:?}, another {seen:?}", site + 1);
            }
            seen = Some(lists);
        }
        seen.context("no sites")
    }

    /// Every object as a site shows it, and every address.
    pub(crate) fn objects(&self, site: usize) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        for line in ["get", "ip ls -a"] {
            let list = lasting(self.all[site].netctl_json(line)?);
            all.extend(list.as_array().with_context(|| format!("no list: {list}"))?.clone());
        }
        Ok(all)
    }

    /// Sends a signal to every etcd.
    pub(crate) fn signal_etcds(&mut self, signal: Signal) -> Result<()> {
        let mut etcds = self.all.iter_mut().filter_map(|site| site.etcd.as_mut());
        etcds.try_for_each(|etcd| etcd.signal(signal))
    }

    /// Kills everything, netmasters first.
    pub(crate) fn kill(&mut self) -> Result<()> {
        for site in &mut self.all {
            if let Some(netmaster) = site.netmaster.take() {
                netmaster.kill()?;
            }
        }
        for site in &mut self.all {
            if let Some(etcd) = site.etcd.take() {
                etcd.kill()?;
            }
        }
        Ok(())
    }

    /// A backup of the store.
    pub(crate) fn save(&self) -> Result<PathBuf> {
        let first = self.all.first().context("no sites")?;
        let path = first.dir.path().join("backup.db");
        let text = path.to_str().context("a path")?;
        first.etcdctl(&["snapshot", "save", text])?.success()?;
        Ok(path)
    }

    /// Gives every member the backup's content for its next start.
    pub(crate) fn restore(&mut self, backup: &PathBuf) -> Result<()> {
        for site in &mut self.all {
            site.restored += 1;
            let mut command = Command::new("etcdctl");
            command.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(backup);
            command.arg("--name").arg(site.member()).arg("--data-dir").arg(site.data());
            command.args(["--initial-cluster", &cluster()]);
            command.args(["--initial-advertise-peer-urls", &site.peer_url()]);
            kit::run(site.netns.namespace(), command)?.success().context("etcdctl restore")?;
        }
        Ok(())
    }
}

impl Site {
    fn member(&self) -> String {
        format!("s{}", self.number)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join(format!("data{}", self.restored))
    }

    fn peer_url(&self) -> String {
        format!("http://{}:2380", address(self.number))
    }

    /// Starts its etcd, which waits for others to be a majority.
    pub(crate) fn spawn_etcd(&mut self) -> Result<()> {
        let (client, peer) = (format!("http://{}:2379", address(self.number)), self.peer_url());
        let mut command = Command::new("etcd");
        command.arg("--name").arg(self.member()).arg("--data-dir").arg(self.data());
        command.args(self.etcd_args);
        command.args(["--logger", "zap", "--log-level", "warn"]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &cluster()]);
        let (name, log) =
            (format!("etcd of site {}", self.number), self.dir.path().join("etcd.log"));
        self.etcd = Some(ProcessGuard::spawn(self.netns.namespace(), &name, command, &log)?);
        Ok(())
    }

    /// Kills its etcd.
    pub(crate) fn kill_etcd(&mut self) -> Result<()> {
        self.etcd.take().context("no etcd")?.kill().map(drop)
    }

    /// Sends its etcd a signal.
    pub(crate) fn signal_etcd(&mut self, signal: Signal) -> Result<()> {
        self.etcd.as_mut().context("no etcd")?.signal(signal)
    }

    /// Its member, and the member that it takes for etcd's leader; 0: none.
    fn etcd_members(&self) -> Option<[u64; 2]> {
        let status = self.etcdctl(&["endpoint", "status", "--write-out", "json"]).ok()?;
        let status: Value = serde_json::from_str(&status.success().ok()?).ok()?;
        let status = &status[0]["Status"];
        Some([status["header"]["member_id"].as_u64()?, status["leader"].as_u64()?])
    }

    /// Whether its etcd leads the others.
    pub(crate) fn leads_etcd(&self) -> bool {
        self.etcd_members().is_some_and(|[own, leader]| own == leader)
    }

    /// Whether its etcd has a leader and answers what needs one.
    pub(crate) fn follows_etcd(&self) -> bool {
        let healthy = self.etcdctl(&["endpoint", "health"]);
        healthy.is_ok_and(|health| health.code == Some(0))
    }

    /// Starts its netmaster and waits until it listens.
    pub(crate) fn start_netmaster(&mut self) -> Result<()> {
        let config = self.dir.path().join("netmaster.toml");
        fs::write(&config, "")?;
        let listen = SocketAddr::from((address(self.number), NETMASTER_PORT));
        let members = (1..=SITES).map(|number| format!("http://{}:2379", address(number)));
        // Its own member first: a machine that is cut off takes both with it.
        let (before, own) = members
            .clone()
            .partition::<Vec<_>, _>(|url| !url.contains(&format!("//{}:", address(self.number))));
        let store = format!("etcd:{}", [own, before].concat().join(","));
        let mut command = Command::new(binary("netmaster")?);
        command.arg("--config").arg(config).arg("--plaintext");
        command.arg("--run-dir").arg(self.dir.path()).arg("--state-dir").arg(self.dir.path());
        command.args(["--listen", &listen.to_string(), "--store", &store]);
        let name = format!("netmaster of site {}", self.number);
        let log = self.dir.path().join("netmaster.log");
        let mut started = ProcessGuard::spawn(self.netns.namespace(), &name, command, &log)?;
        let bound = Duration::from_millis(200);
        started.wait_ready(READY, || {
            Ok(self.netns.run(|| TcpStream::connect_timeout(&listen, bound))?.map(drop)?)
        })?;
        self.netmaster = Some(started);
        Ok(())
    }

    /// Kills its netmaster.
    pub(crate) fn kill_netmaster(&mut self) -> Result<()> {
        self.netmaster.take().context("no netmaster")?.kill().map(drop)
    }

    /// Ends its netmaster by SIGTERM.
    pub(crate) fn stop_netmaster(&mut self) -> Result<()> {
        let status = self.netmaster.take().context("no netmaster")?.stop(STOP)?;
        ensure!(status.success(), "SIGTERM: {status}");
        Ok(())
    }

    /// Sends its netmaster a signal.
    pub(crate) fn signal_netmaster(&mut self, signal: Signal) -> Result<()> {
        self.netmaster.as_mut().context("no netmaster")?.signal(signal)
    }

    /// Lets its netmaster go on.
    pub(crate) fn wake(&self) -> Result<()> {
        Ok(kill(self.netmaster_pid()?, Signal::SIGCONT)?)
    }

    pub(crate) fn netmaster_pid(&self) -> Result<Pid> {
        let netmaster = self.netmaster.as_ref().context("no netmaster")?;
        Ok(Pid::from_raw(netmaster.pid().cast_signed()))
    }

    /// Whether its netmaster says that it leads.
    pub(crate) fn leads(&self) -> bool {
        let listen = SocketAddr::from((address(self.number), NETMASTER_PORT));
        let leads = || kit::pages::scrape(self.netns.namespace(), listen)?.value("weir_leader");
        self.netmaster.is_some() && leads().is_ok_and(|leads| leads == 1)
    }

    /// Waits until its netmaster says, at `/readyz`, that it is ready (200) or that it is not (503).
    pub(crate) fn says(&self, status: u16, bound: Duration) -> Result<()> {
        let listen = SocketAddr::from((address(self.number), NETMASTER_PORT));
        let page = || kit::pages::page(self.netns.namespace(), listen, "/readyz").ok();
        let says = || page().filter(|page| page.status == status).map(drop);
        let what = format!("site {} to say {status}", self.number);
        wait_until(bound, what, says)
            .map_err(anyhow::Error::from)
            .with_context(|| format!("{:?}", page()))
    }

    /// What its netmaster has logged.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.path().join("netmaster.log"))?)
    }

    /// Runs netctl at its own netmaster.
    pub(crate) fn netctl_run(&self, line: &str) -> Result<Finished> {
        let mut command = Command::new(binary("netctl")?);
        command.env("NETMASTER", format!("http://{}:{NETMASTER_PORT}", address(self.number)));
        command.args(line.split_whitespace());
        kit::run(self.netns.namespace(), command)
    }

    /// As [`Self::netctl_run`], which must succeed; its stdout.
    pub(crate) fn netctl(&self, line: &str) -> Result<String> {
        self.netctl_run(line)?.success().with_context(|| format!("netctl {line}"))
    }

    /// As [`Self::netctl`], as JSON.
    pub(crate) fn netctl_json(&self, line: &str) -> Result<Value> {
        let text = self.netctl(&format!("{line} --output json"))?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    fn etcdctl(&self, args: &[&str]) -> Result<Finished> {
        let mut command = Command::new("etcdctl");
        let endpoint = format!("http://{}:2379", address(self.number));
        command.env("ETCDCTL_API", "3").args(["--endpoints", &endpoint]).args(args);
        kit::run(self.netns.namespace(), command)
    }
}
