//! A node in a network namespace: the real daemon, containers made of namespaces, and a client.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use datapath_api::convert::ops_to_proto;
use datapath_api::v1;
use datapath_api::v1::datapath_client::DatapathClient;
use flowtable::entry::{
    Entry, Ipv6, MacEntry, NetworkEntry, NextHop, Offload, Op, PortEntry, Prefix, RouteEntry,
};
use flowtable::ids::{Bd, Group, Mac, PortId, Vrf};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

pub(crate) const LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn run(command: &str) -> Output {
    let mut words = command.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).output().unwrap()
}

pub(crate) fn must(command: &str) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Asks again until it is true.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "{what}: not after {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A network namespace, held by a sleeping process.
pub(crate) struct Namespace {
    holder: Child,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let holder = Command::new("unshare").args(["-n", "sleep", "120"]).spawn().unwrap();
        let namespace = Self { holder };
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        until("a namespace", || std::fs::read_link(namespace.path()).is_ok_and(|ns| ns != own));
        namespace
    }

    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// Runs a command inside.
    pub(crate) fn must(&self, command: &str) -> String {
        must(&format!("nsenter --net={} {command}", self.path()))
    }

    /// Whether a command succeeds inside.
    pub(crate) fn succeeds(&self, command: &str) -> bool {
        run(&format!("nsenter --net={} {command}", self.path())).status.success()
    }

    /// Runs `f` inside, on a thread of its own.
    pub(crate) fn inside<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        let namespace = std::fs::File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                f()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.holder.kill().unwrap();
        self.holder.wait().unwrap();
    }
}

/// A container: 10.1.1.`n`/24 with a MAC of its own, on port `n`.
pub(crate) struct Container {
    pub(crate) namespace: Namespace,
    pub(crate) n: u8,
}

impl Container {
    /// On a host end in `node`, which stays down until its port is added.
    pub(crate) fn new(node: &Namespace, n: u8) -> Self {
        Self::at(node, n, None)
    }

    /// With this interface index of the host end.
    pub(crate) fn at(node: &Namespace, n: u8, index: Option<u32>) -> Self {
        let index = index.map_or(String::new(), |index| format!(" index {index}"));
        let container = Self { namespace: Namespace::new(), n };
        let (pid, mac) = (container.namespace.pid(), container.mac());
        node.must(&format!(
            "ip link add wrh{n}{index} type veth peer name eth0 mtu 1450 address {mac} netns {pid}"
        ));
        node.must(&format!("ip link set wrh{n} addrgenmode none arp off"));
        container.namespace.must(&format!("ip addr add 10.1.1.{n}/24 dev eth0"));
        container.namespace.must("ip link set eth0 addrgenmode none up");
        container.namespace.must("ip link set lo up");
        container
    }

    /// Without a device yet.
    pub(crate) fn apart(n: u8) -> Self {
        Self { namespace: Namespace::new(), n }
    }

    pub(crate) fn mac(&self) -> Mac {
        Mac([2, 0, 10, 1, 1, self.n])
    }

    pub(crate) fn port(&self) -> PortId {
        port(self.n.into())
    }

    pub(crate) fn ip(&self) -> std::net::IpAddr {
        [10, 1, 1, self.n].into()
    }

    pub(crate) fn pings(&self, to: &Self) -> bool {
        self.namespace.succeeds(&format!("ping -c 3 -i 0.05 -W 1 10.1.1.{}", to.n))
    }

    /// The entries that make it known on a node where it is behind `next_hop`.
    pub(crate) fn known_at(&self, next_hop: NextHop) -> [Op; 2] {
        let (vrf, bd, mac) = (vrf(), bd(), self.mac());
        let prefix = Prefix::new(self.ip(), 32).unwrap();
        [
            Op::Put(Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop })),
            Op::Put(Entry::Mac(MacEntry { bd, mac, next_hop })),
        ]
    }

    /// The entries of the node it lives on.
    pub(crate) fn local(&self) -> Vec<Op> {
        let mut ops = vec![Op::Put(Entry::Port(PortEntry {
            port: self.port(),
            vrf: vrf(),
            bd: bd(),
            group: Group::NONE,
            mac: self.mac(),
            ips: vec![self.ip()],
            ipv6: Ipv6::Off,
            sample_rate: 0,
            offload: Offload::On,
        }))];
        ops.extend(self.known_at(NextHop::Local(self.port())));
        ops
    }
}

pub(crate) fn port(id: u32) -> PortId {
    PortId::new(id).unwrap()
}

pub(crate) fn vrf() -> Vrf {
    Vrf::new(1).unwrap()
}

pub(crate) fn bd() -> Bd {
    Bd::new(1).unwrap()
}

pub(crate) fn network() -> Op {
    Op::Put(Entry::Network(NetworkEntry {
        bd: bd(),
        vrf: vrf(),
        subnets: vec![Prefix::new([10, 1, 1, 0].into(), 24).unwrap()],
        gateways: vec![[10, 1, 1, 254].into()],
        wire: None,
    }))
}

/// A vrouterd in a namespace, killed when dropped.
pub(crate) struct Engine {
    child: Child,
    pub(crate) run_dir: PathBuf,
    runtime: Runtime,
    channel: Channel,
    /// From exec to the first answer.
    pub(crate) start_time: Duration,
}

static RUN_DIR: AtomicU32 = AtomicU32::new(0);

pub(crate) fn new_run_dir() -> PathBuf {
    let n = RUN_DIR.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("wt-vrouterd-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// The configuration file of the daemon with this directory; empty unless written before.
pub(crate) fn config_file(run_dir: &Path) -> PathBuf {
    run_dir.join("vrouterd.toml")
}

/// The command that starts a daemon in a namespace.
pub(crate) fn daemon(node: &Namespace, run_dir: &Path, flags: &[&str]) -> Command {
    daemon_within(&[], node, run_dir, flags)
}

/// The same by another command, whose first words are `prefix`.
fn daemon_within(prefix: &[&str], node: &Namespace, run_dir: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", node.path())).args(prefix).arg(env!("CARGO_BIN_EXE_vrouterd"));
    let config = config_file(run_dir);
    if !config.exists() {
        std::fs::write(&config, "").unwrap();
    }
    command.arg("--config").arg(config).arg("--run-dir").arg(run_dir);
    command.args(["--log-level", "warn"]).args(flags);
    // Its own group, so that an interrupt at the terminal ends the test and the test ends it.
    command.process_group(0);
    command
}

impl Engine {
    pub(crate) fn start(node: &Namespace, flags: &[&str]) -> Self {
        Self::start_in(node, new_run_dir(), flags)
    }

    pub(crate) fn start_in(node: &Namespace, run_dir: PathBuf, flags: &[&str]) -> Self {
        let command = daemon(node, &run_dir, flags);
        Self::start_by(command, run_dir)
    }

    /// By a command whose first words are `prefix`.
    pub(crate) fn start_within(prefix: &[&str], node: &Namespace, flags: &[&str]) -> Self {
        let run_dir = new_run_dir();
        let command = daemon_within(prefix, node, &run_dir, flags);
        Self::start_by(command, run_dir)
    }

    fn start_by(mut command: Command, run_dir: PathBuf) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let started = Instant::now();
        let mut child = command.spawn().unwrap();
        let url = format!("unix:{}", run_dir.join("vrouterd.sock").display());
        let endpoint = Endpoint::from_shared(url).unwrap();
        let channel = loop {
            assert!(child.try_wait().unwrap().is_none(), "vrouterd ended");
            assert!(started.elapsed() < LIMIT, "vrouterd does not answer");
            let attempt = runtime.block_on(async {
                let channel = endpoint.connect().await.ok()?;
                let mut client = DatapathClient::new(channel.clone());
                client.hello(v1::HelloRequest::default()).await.ok()?;
                Some(channel)
            });
            match attempt {
                Some(channel) => break channel,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let start_time = started.elapsed();
        Self { child, run_dir, runtime, channel, start_time }
    }

    /// Calls a method of the client.
    pub(crate) fn call<R, F>(&self, f: impl FnOnce(DatapathClient<Channel>) -> F) -> R
    where
        F: Future<Output = Result<tonic::Response<R>, tonic::Status>>,
    {
        self.runtime.block_on(f(self.client())).unwrap().into_inner()
    }

    /// Calls a method that is refused.
    pub(crate) fn refusal<R: std::fmt::Debug, F>(
        &self,
        f: impl FnOnce(DatapathClient<Channel>) -> F,
    ) -> tonic::Status
    where
        F: Future<Output = Result<tonic::Response<R>, tonic::Status>>,
    {
        self.runtime.block_on(f(self.client())).unwrap_err()
    }

    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub(crate) fn client(&self) -> DatapathClient<Channel> {
        DatapathClient::new(self.channel())
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn write(&self, ops: &[Op]) -> u64 {
        let request = ops_to_proto(ops);
        self.call(|mut c| async move { c.write(request).await }).revision
    }

    pub(crate) fn add_port(&self, request: v1::AddPortRequest) -> u32 {
        self.call(|mut c| async move { c.add_port(request).await }).ifindex
    }

    /// Adds a container's port and sets its host end up, as netplugin does.
    pub(crate) fn add_container(&self, node: &Namespace, container: &Container) {
        let name = format!("wrh{}", container.n);
        let kind = v1::PortKind::Container.into();
        let port = container.port().get().into();
        self.add_port(v1::AddPortRequest { port, name: name.clone(), kind, ..Default::default() });
        node.must(&format!("ip link set {name} up"));
    }

    pub(crate) fn drops(&self, reason: &str) -> u64 {
        let reply = self.call(|mut c| async move { c.drops(v1::DropsRequest {}).await });
        reply.drops.iter().filter(|d| d.reason == reason).map(|d| d.packets).sum()
    }

    pub(crate) fn ports(&self) -> Vec<v1::Port> {
        self.call(|mut c| async move { c.counters(v1::CountersRequest {}).await }).ports
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Whether the process has ended.
    pub(crate) fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends a signal and waits for the end; returns the exit code.
    pub(crate) fn end(&mut self, signal: Signal) -> Option<i32> {
        if !self.ended() {
            self.signal(signal);
        }
        self.child.wait().unwrap().code()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Fails when the test has ended it already.
        self.child.kill().ok();
        self.child.wait().ok();
        std::fs::remove_dir_all(&self.run_dir).ok();
    }
}

/// Starts a daemon that is to end by itself; returns its exit code and what it said.
pub(crate) fn failing(node: &Namespace, run_dir: &Path, flags: &[&str]) -> (i32, String) {
    let mut command = daemon(node, run_dir, flags);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().code().unwrap(), said)
}
