//! Containers that send from their first instruction, before ADD has returned and in ways of their own,
//! and the host end that must give them no other way.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::frame::{Addresses, arp_request, icmp_echo, udp, udp6};
use kit::{
    CONTAINER_IFNAME, Container, Daemon, NetnsGuard, Node, Purpose, Topology, TwoNodes, retry, run,
    wait_until,
};
use netdev::packet::PacketSocket;
use serde_json::{Value, json};

use crate::Test;
use crate::runtime::Plug;
use crate::shared::sharing;
use crate::site::{BOUND, attach_to_group, configure, mac, reach, reach_soon};

/// What a container that starts has: its group may not send to port RULED of anybody.
const FRESH: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 99);
const FRESH6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x99);
const FRESH_MAC: &str = "0a:00:00:00:00:63";
/// Nobody's.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 98);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x98);
const GATEWAY_MAC: [u8; 6] = [0x00, 0x00, 0x11, 0x11, 0x11, 0x11];
const RULED: u16 = 7001;
const FREE: u16 = 7002;

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("pol_4_nothing_denied_leaves_a_container_from_its_first_instruction_on", escapes),
            ("pol_4_root_in_the_container_undoes_nothing_that_holds_it", undone),
            ("pol_4_the_host_end_is_closed_to_the_hosts_own_stack", closed),
            ("pol_4_a_removed_program_opens_no_way_and_is_put_back", program_removed),
        ],
    )
}

/// x in group clients on node 1, y in group clients on node 2.
#[derive(Debug)]
struct Scene {
    x: Container,
    y: Container,
    nodes: TwoNodes,
}

fn build() -> Result<Scene> {
    let nodes = Topology::new(Purpose::Test).two_nodes()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 -s6 2001:db8:1::/64 \
         -g6 2001:db8:1::fe front",
        "policy create -t blue guard",
        "policy rule-add -t blue -d out -l udp -P 7001 -j deny guard shut",
        "group create -t blue front clients",
        "group create -t blue -p guard front web",
    ];
    configure(&nodes.one, &lines)?;
    let x = attach_to_group(&nodes.one, "x", "front", Some("clients"))?;
    let y = attach_to_group(&nodes.two, "y", "front", Some("clients"))?;
    reach_soon(&x, y.address())?;
    Ok(Scene { x, y, nodes })
}

/// `make soak` does the whole criterion.
fn starts() -> usize {
    if std::env::var_os("WEIR_SOAK").is_some() { 1000 } else { 8 }
}

fn addresses(victim: &Container) -> Result<[IpAddr; 2]> {
    Ok([victim.address().into(), victim.address6()?.into()])
}

/// What arrives at one address of a victim: on the port that is denied and on the other.
struct Ears {
    address: IpAddr,
    ruled: UdpSocket,
    free: UdpSocket,
}

impl Ears {
    fn of(victim: &Container) -> Result<[Self; 2]> {
        let [v4, v6] = addresses(victim)?.map(|address| Self::at(victim, address));
        Ok([v4?, v6?])
    }

    fn at(victim: &Container, address: IpAddr) -> Result<Self> {
        let bind = |port: u16| -> Result<UdpSocket> {
            let address = SocketAddr::new(address, port);
            let socket = victim.namespace().run(|| UdpSocket::bind(address))??;
            socket.set_read_timeout(Some(BOUND))?;
            Ok(socket)
        };
        let ears = Self { address, ruled: bind(RULED)?, free: bind(FREE)? };
        ears.ruled.set_nonblocking(true)?;
        Ok(ears)
    }

    /// Waits for `word`, after which nothing that was sent before it can still come.
    fn hear(&self, word: &[u8]) -> Result<()> {
        let mut buffer = [0; 64];
        loop {
            let (len, from) =
                self.free.recv_from(&mut buffer).context("the first packet is lost")?;
            let fresh = [IpAddr::V4(FRESH), IpAddr::V6(FRESH6)];
            ensure!(fresh.contains(&from.ip()), "a datagram from {from} arrives");
            if &buffer[..len] == word {
                break;
            }
        }
        match self.ruled.recv_from(&mut buffer) {
            Ok((_, from)) => anyhow::bail!("a denied datagram from {from} arrives"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn escapes(scene: &mut Scene) -> Result<()> {
    let ears = [Ears::of(&scene.x)?, Ears::of(&scene.y)?].into_iter().flatten();
    let ears: Vec<Ears> = ears.collect();
    (0..starts()).try_for_each(|number| {
        start(scene, &ears, number).with_context(|| format!("start {number}"))
    })
}

fn start(scene: &Scene, ears: &[Ears], number: usize) -> Result<()> {
    let node = &scene.nodes.one;
    let victims = [&scene.x, &scene.y];
    let mut plug = Plug::new(node, "front")?;
    plug.config["group"] = json!("web");
    plug.args = format!("IP={FRESH},{FRESH6};MAC={FRESH_MAC}");
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let first = || -> Result<()> {
        plug.add(node)?;
        // One packet to each, and no other chance: the first one has to get there.
        let word = format!("start {number}").into_bytes();
        for ears in ears {
            let own = if ears.address.is_ipv4() { FRESH.into() } else { IpAddr::V6(FRESH6) };
            let socket = plug.netns().run(|| UdpSocket::bind((own, 0)))??;
            socket.send_to(&word, (ears.address, FREE))?;
            ears.hear(&word).with_context(|| format!("to {}", ears.address))?;
        }
        let has_sent = || (sent.load(Ordering::Relaxed) > 0).then_some(());
        wait_until(BOUND, "the container to send by itself", has_sent)?;
        plug.del(node)
    };
    thread::scope(|scope| {
        let attempts = scope.spawn(|| insist(plug.netns(), victims, &stop, &sent));
        let outcome = first();
        stop.store(true, Ordering::Relaxed);
        attempts.join().ok().context("the container panicked")??;
        outcome
    })
}

/// Sends what is denied, by the stack and past it, for as long as it is not stopped; `sent` counts the
/// frames that the device took.
fn insist(
    netns: &NetnsGuard,
    victims: [&Container; 2],
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> Result<()> {
    let (mut frames, mut targets) = (Vec::new(), Vec::new());
    for victim in victims {
        targets.extend(addresses(victim)?);
        let dst_mac = victim.mac()?;
        let own =
            Addresses { src_mac: mac(FRESH_MAC)?, dst_mac, src: FRESH, dst: victim.address() };
        frames.push(udp(own, 9, RULED, b"raw")?);
        frames.push(udp(Addresses { src: OTHER, ..own }, 9, FREE, b"spoofed")?);
        frames.push(udp(Addresses { dst_mac: GATEWAY_MAC, ..own }, 9, RULED, b"routed")?);
        let (macs, to) = ([own.src_mac, dst_mac], victim.address6()?);
        frames.push(udp6(macs, [FRESH6, to], [9, RULED], b"raw")?);
        frames.push(udp6(macs, [OTHER6, to], [9, FREE], b"spoofed")?);
        frames.push(udp6([own.src_mac, GATEWAY_MAC], [FRESH6, to], [9, RULED], b"routed")?);
    }
    netns.run(|| {
        // Of both families, where there are both.
        let stack = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        let mapped = |to: IpAddr| match to {
            IpAddr::V4(to) => to.to_ipv6_mapped(),
            IpAddr::V6(to) => to,
        };
        let mut raw = None;
        while !stop.load(Ordering::Relaxed) {
            for to in &targets {
                // Before there is a way this is an error, and that is the point.
                drop(stack.send_to(b"denied", (mapped(*to), RULED)));
            }
            raw = raw.or_else(|| PacketSocket::open(CONTAINER_IFNAME).ok());
            let taken = raw.iter().flat_map(|raw| frames.iter().map(|frame| raw.send(frame)));
            sent.fetch_add(taken.flatten().count() as u64, Ordering::Relaxed);
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    })?
}

/// What root of a container does to its own devices, addresses and rules changes what it can send, and
/// never what is forwarded.
fn undone(scene: &mut Scene) -> Result<()> {
    let ears = [Ears::of(&scene.x)?, Ears::of(&scene.y)?].into_iter().flatten();
    let ears: Vec<Ears> = ears.collect();
    let node = &scene.nodes.one;
    let mut plug = Plug::new(node, "front")?;
    plug.config["group"] = json!("web");
    plug.args = format!("IP={FRESH},{FRESH6};MAC={FRESH_MAC}");
    plug.add(node)?;
    let inside = |line: &str| -> Result<()> {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().context("no program")?);
        command.args(words);
        run(plug.netns().namespace(), command)?.success().with_context(|| line.to_owned()).map(drop)
    };
    let try_all = |from: &[IpAddr]| -> Result<()> {
        for (from, ears) in from.iter().flat_map(|from| ears.iter().map(move |ears| (from, ears))) {
            if from.is_ipv4() == ears.address.is_ipv4() {
                let socket = plug.netns().run(|| UdpSocket::bind((*from, 0)))??;
                socket.send_to(b"denied", (ears.address, RULED))?;
                socket.send_to(b"stolen", (ears.address, FREE))?;
            }
        }
        Ok(())
    };
    inside("ip addr add 10.1.1.98/24 dev eth0")?;
    inside("ip addr add 2001:db8:1::98/64 dev eth0 nodad")?;
    try_all(&[OTHER.into(), OTHER6.into()]).context("with addresses of nobody")?;
    for line in [
        "ip addr del 10.1.1.98/24 dev eth0",
        "ip addr del 2001:db8:1::98/64 dev eth0",
        "tc qdisc replace dev eth0 clsact",
        "tc qdisc del dev eth0 clsact",
        "ip link set eth0 mtu 1500 promisc on",
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0",
        "ip link set eth0 address 0a:00:00:00:00:62",
    ] {
        inside(line)?;
    }
    try_all(&[FRESH.into(), FRESH6.into()]).context("with a MAC of nobody")?;
    inside(&format!("ip link set eth0 address {FRESH_MAC}"))?;
    // As it was given: what is allowed arrives, and nothing of all that did before it.
    let word = b"the only one";
    for ears in &ears {
        let own = if ears.address.is_ipv4() { FRESH.into() } else { IpAddr::V6(FRESH6) };
        let socket = plug.netns().run(|| UdpSocket::bind((own, 0)))??;
        socket.send_to(b"denied", (ears.address, RULED))?;
        socket.send_to(word, (ears.address, FREE))?;
        let mut buffer = [0; 64];
        let (len, from) = ears.free.recv_from(&mut buffer).context("what is allowed is lost")?;
        ensure!(from.ip() == own && &buffer[..len] == word, "from {from}: {:?}", &buffer[..len]);
        let denied = ears.ruled.recv_from(&mut buffer);
        ensure!(denied.is_err(), "a denied datagram arrives: {denied:?}");
    }
    plug.del(node)
}

fn tool(node: &Node, line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().context("no program")?);
    command.args(words);
    run(node.namespace(), command)?.success().with_context(|| line.to_owned())
}

fn closed(scene: &mut Scene) -> Result<()> {
    let node = &scene.nodes.one;
    // A router: new devices would forward.
    tool(node, "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.default.rp_filter=0")?;
    let plug = Plug::new(node, "front")?;
    let result = plug.add(node)?;
    let host = result["interfaces"][0]["name"].as_str().context("no host end")?;
    for (switch, value) in [
        (format!("ipv4/conf/{host}/forwarding"), "0"),
        (format!("ipv4/conf/{host}/rp_filter"), "1"),
        (format!("ipv6/conf/{host}/disable_ipv6"), "1"),
    ] {
        let seen = tool(node, &format!("cat /proc/sys/net/{switch}"))?;
        ensure!(seen.trim() == value, "{switch} is {seen}");
    }
    let links: Value = serde_json::from_str(&tool(node, &format!("ip -j addr show {host}"))?)?;
    let flags = links[0]["flags"].as_array().context("no flags")?;
    ensure!(flags.contains(&json!("NOARP")), "ARP is on: {links}");
    ensure!(links[0]["addr_info"] == json!([]), "an address: {links}");
    let own = mac(links[0]["address"].as_str().context("no MAC")?)?;
    ensure!(own != GATEWAY_MAC, "the gateway's MAC is the host end's");
    let filters = tool(node, &format!("tc filter show dev {host} ingress"))?;
    ensure!(filters.contains("from_port"), "no program: {filters}");
    plug.del(node)
}

/// What the host's own stack has seen: echo requests, datagrams forwarded.
fn host_saw(node: &Node) -> Result<[u64; 2]> {
    let text = tool(node, "cat /proc/net/snmp")?;
    let field = |group: &str, name: &str| -> Result<u64> {
        let mut lines = text.lines().filter(|line| line.starts_with(group));
        let (names, values) = lines.next().zip(lines.next()).context("no such group")?;
        let at = names.split_whitespace().position(|word| word == name).context("no such field")?;
        Ok(values.split_whitespace().nth(at).context("no value")?.parse()?)
    };
    Ok([field("Icmp:", "InEchos")?, field("Ip:", "ForwDatagrams")?])
}

/// With the engine dead, nobody puts the program back.
fn program_removed(scene: &mut Scene) -> Result<()> {
    let host = scene.x.host_ifname().context("no host end")?.to_owned();
    let node = &mut scene.nodes.one;
    tool(node, "sysctl -qw net.ipv4.ip_forward=1")?;
    node.kill(Daemon::Vrouterd)?;
    tool(node, &format!("tc filter del dev {host} ingress"))?;
    let links: Value = serde_json::from_str(&tool(node, &format!("ip -j link show {host}"))?)?;
    let dst_mac = mac(links[0]["address"].as_str().context("no MAC")?)?;
    let src_mac = scene.x.mac()?;
    let before = host_saw(node)?;
    let raw = scene.x.namespace().run(|| PacketSocket::open(CONTAINER_IFNAME))??;
    let vteps = [node.vtep(), scene.nodes.two.vtep()];
    for dst in vteps {
        for src in [scene.x.address(), vteps[1]] {
            let addresses = Addresses { src_mac, dst_mac, src, dst };
            raw.send(&icmp_echo(addresses, 1, 1, b"let me in")?)?;
            raw.send(&arp_request(addresses)?)?;
        }
    }
    // Frames go through a veth one after another: when a device's count has them all, they were judged.
    let after = host_saw(node)?;
    ensure!(after == before, "the host's stack took them: {after:?}, before {before:?}");
    node.start(Daemon::Vrouterd)?;
    reach_soon(&scene.x, scene.y.address())?;

    // And with the engine alive.
    for what in ["filter del dev", "qdisc del dev"] {
        let rest = if what.starts_with("filter") { "ingress" } else { "clsact" };
        tool(node, &format!("tc {what} {host} {rest}"))?;
        retry(Duration::from_millis(500), "the program to be back", || {
            let filters = tool(node, &format!("tc filter show dev {host} ingress"))?;
            ensure!(filters.contains("from_port"), "no program: {filters}");
            Ok::<_, anyhow::Error>(())
        })?;
        reach(&scene.x, scene.y.address())?;
    }
    Ok(())
}
