//! Containers with an address of each family: everything that holds for IPv4 holds for IPv6.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{
    CONTAINER_IFNAME, Container, ContainerSpec, Daemon, Flow, Node, Purpose, TcpServer, Topology,
    TwoNodes, ping, tcp_connect, tcp_echo,
};
use serde_json::{Value, json};

use crate::Test;
use crate::shared::sharing;
use crate::site::{
    BOUND, attach, attach_to_group, configure, drops, netctl, netctl_json, reach, reach_soon,
};

const SERVICE: u16 = 8001;
/// Far longer than a packet takes here.
const PATIENCE: Duration = Duration::from_millis(700);
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xfe);

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("net_5_containers_talk_over_ipv6_on_one_node_between_nodes_and_networks", talk),
            ("net_5_the_first_ipv6_packet_after_add_is_answered", first_packet),
            ("net_5_an_ipv6_address_is_given_asked_for_and_refused_by_its_owners_name", wanted),
            ("net_5_a_rule_with_an_ipv6_address_holds_for_that_address", rule),
            ("net_5_a_group_rule_holds_for_both_families", group_rule),
            ("net_5_an_ipv6_source_that_is_not_its_containers_is_dropped", spoofed),
            ("net_5_two_tenants_have_the_same_ipv6_addresses_and_never_meet", tenants),
            ("net_5_restarts_keep_ipv6_addresses_and_their_traffic", restarts),
            ("net_5_ipv6_is_turned_on_where_a_runtime_turned_it_off", turned_on),
            ("ipam_2_a_groups_container_gets_an_address_of_each_of_its_pools", pooled),
            ("ipam_2_addresses_spread_over_the_network_follow_the_name", spread),
            ("ipam_3_a_reserved_ipv6_address_follows_its_name_over_nodes", reserved),
        ],
    )
}

/// Tenant blue: a (front) and b (front, group web) on node 1, c (front, web) and d (back) on node 2.
#[derive(Debug)]
struct Scene {
    a: Container,
    b: Container,
    c: Container,
    d: Container,
    nodes: TwoNodes,
}

fn build() -> Result<Scene> {
    let nodes = Topology::new(Purpose::Test).two_nodes()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 -s6 2001:db8:1::/64 \
         -g6 2001:db8:1::fe front",
        "network create -t blue -s 10.1.2.0/24 -g 10.1.2.254 -s6 2001:db8:2::10-2001:db8:2::1f/64 \
         -g6 2001:db8:2::fe back",
        "policy create -t blue guard",
        "group create -t blue -p guard front web",
    ];
    configure(&nodes.one, &lines)?;
    let a = attach(&nodes.one, "a", "front")?;
    let b = attach_to_group(&nodes.one, "b", "front", Some("web"))?;
    let c = attach_to_group(&nodes.two, "c", "front", Some("web"))?;
    let d = attach(&nodes.two, "d", "back")?;
    reach_soon(&a, c.address())?;
    Ok(Scene { a, b, c, d, nodes })
}

fn serve(container: &Container, address: impl Into<IpAddr>) -> Result<TcpServer> {
    TcpServer::start(container.namespace(), SocketAddr::new(address.into(), SERVICE))
}

fn opens(from: &Container, to: impl Into<IpAddr>) -> bool {
    tcp_connect(from.namespace(), SocketAddr::new(to.into(), SERVICE), PATIENCE).is_ok()
}

fn talk(scene: &mut Scene) -> Result<()> {
    let Scene { a, b, c, d, .. } = &*scene;
    ensure!(a.address6()? == Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1), "{:?}", a.result());
    ensure!(d.address6()? == Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10), "{:?}", d.result());
    let ips = json!([
        {"address": "10.1.1.1/24", "gateway": "10.1.1.254", "interface": 1},
        {"address": "2001:db8:1::1/64", "gateway": "2001:db8:1::fe", "interface": 1},
    ]);
    ensure!(a.result()["ips"] == ips, "{}", a.result());
    let routes = json!([
        {"dst": "0.0.0.0/0", "gw": "10.1.1.254"},
        {"dst": "::/0", "gw": "2001:db8:1::fe"},
    ]);
    ensure!(a.result()["routes"] == routes, "{}", a.result());
    for (from, to) in [(a, b), (b, a), (a, c), (c, a), (a, d), (d, b)] {
        let name = format!("{} to {}", from.id(), to.id());
        for address in [IpAddr::V4(to.address()), IpAddr::V6(to.address6()?)] {
            let seen = ping(from.namespace(), address, 3)?;
            ensure!(seen.received == 3, "{name}, {address}: {seen:?}");
        }
        let server = serve(to, to.address6()?)?;
        tcp_echo(from.namespace(), server.address(), &vec![7; 200_000]).context(name)?;
    }
    reach(a, GATEWAY)?;
    for (container, node) in [(a, &scene.nodes.one), (d, &scene.nodes.two)] {
        container.check(node)?;
    }
    let rows = netctl(&scene.nodes.one, "endpoint ls -t blue")?;
    ensure!(rows.contains("10.1.1.1,2001:db8:1::1"), "{rows}");
    Ok(())
}

fn first_packet(scene: &mut Scene) -> Result<()> {
    for node in [&scene.nodes.one, &scene.nodes.two] {
        let fresh = attach(node, "fresh", "front")?;
        for to in [scene.a.address6()?, scene.c.address6()?, scene.d.address6()?, GATEWAY] {
            let seen = ping(fresh.namespace(), to, 1)?;
            ensure!(seen.received == 1, "{} to {to}: {seen:?}", node.name());
        }
        fresh.detach(node)?;
    }
    Ok(())
}

/// A container of network front that asks for addresses.
fn asking(node: &Node, name: &str, ips: &[&str]) -> Result<Container> {
    let spec = ContainerSpec { name, tenant: "blue", network: "front", group: None, args: "" };
    Container::attach_with(node, &spec, &json!({ "runtimeConfig": { "ips": ips } }))
}

fn wanted(scene: &mut Scene) -> Result<()> {
    let node = &scene.nodes.two;
    let both = asking(node, "both", &["2001:db8:1::77/64", "10.1.1.77/24"])?;
    ensure!(both.address6()?.to_string() == "2001:db8:1::77", "{}", both.result());
    ensure!(both.address().to_string() == "10.1.1.77", "{}", both.result());
    reach(&scene.a, both.address6()?)?;
    for (ips, said) in [
        (&["2001:db8:1::77"][..], "belongs to endpoint"),
        (&["2001:db8:1::fe"], "belongs to the gateway"),
        (&["2001:db8:9::1"], "is not one of 2001:db8:1::/64"),
        (&["2001:db8:1::78/48"], "prefix length of 2001:db8:1::78's subnet is 64"),
        (&["2001:db8:1::78", "2001:db8:1::79"], "one address of each family"),
    ] {
        let refused =
            asking(node, "other", ips).err().with_context(|| format!("{ips:?}: given"))?;
        let text = format!("{refused:#}");
        ensure!(text.contains(said), "{ips:?}: {text}");
    }
    both.detach(node)
}

fn rule(scene: &mut Scene) -> Result<()> {
    let Scene { a, c, d, nodes, .. } = &*scene;
    let node = &nodes.one;
    let (v6, v4) = (serve(c, c.address6()?)?, serve(c, c.address())?);
    let deny =
        format!("policy rule-add -t blue -d in -l tcp -i {} -j deny guard six", a.address6()?);
    netctl(node, &deny)?;
    ensure!(!opens(a, c.address6()?), "a denied IPv6 address opens a connection");
    ensure!(opens(a, c.address()), "the IPv4 address of the same container is not denied");
    ensure!(opens(d, c.address6()?), "another IPv6 address is not denied");
    reach(a, c.address6()?).context("only TCP is denied")?;
    let explain = |to: IpAddr| {
        let line = format!("explain -t blue -l tcp -P {SERVICE} {}:eth0 {to}", a.id());
        let pairs = netctl_json(node, &line)?;
        pairs[0]["verdict"].as_str().map(str::to_owned).context("no verdict")
    };
    ensure!(explain(c.address6()?.into())? == "drop" && explain(c.address().into())? == "forward");
    netctl(node, "policy rule-rm -t blue guard six")?;
    ensure!(opens(a, c.address6()?), "the rule is gone");
    drop((v6, v4));
    Ok(())
}

fn group_rule(scene: &mut Scene) -> Result<()> {
    let Scene { a, b, c, nodes, .. } = &*scene;
    let node = &nodes.one;
    netctl(node, "policy rule-add -t blue -d in -l icmp -j deny guard no-ping")?;
    netctl(node, "policy rule-add -t blue -d in -l icmp -g web -p 10 -j allow guard own")?;
    for to in [IpAddr::V4(c.address()), IpAddr::V6(c.address6()?)] {
        ensure!(ping(a.namespace(), to, 1)?.received == 0, "{to} answers a stranger");
        reach(b, to).context("a member of the group")?;
    }
    reach(c, a.address6()?).context("its own ping is answered")?;
    netctl(node, "policy rule-rm -t blue guard no-ping")?;
    netctl(node, "policy rule-rm -t blue guard own").map(drop)
}

fn spoofed(scene: &mut Scene) -> Result<()> {
    let (a, node) = (&scene.a, &scene.nodes.one);
    let foreign: Ipv6Addr = "2001:db8:1::bad".parse()?;
    let netlink = netdev::Netlink::open_in(a.namespace())?;
    let index = netlink.link_by_name(CONTAINER_IFNAME)?.context("no device")?.index;
    netlink.add_address(index, foreign.into(), 128)?;
    let socket = a.namespace().run(|| UdpSocket::bind((foreign, 0)))??;
    let before = drops(node, "spoofed-ip")?;
    socket.send_to(b"not mine", (scene.c.address6()?, 9000))?;
    kit::wait_until(BOUND, "the packet to be counted", || {
        (drops(node, "spoofed-ip").ok()? > before).then_some(())
    })?;
    let mut ip = std::process::Command::new("ip");
    ip.args(["-6", "addr", "del", "2001:db8:1::bad/128", "dev", CONTAINER_IFNAME]);
    kit::run(a.namespace(), ip)?.success().map(drop)
}

fn tenants(scene: &mut Scene) -> Result<()> {
    let Scene { a, c, nodes, .. } = &*scene;
    let lines = [
        "tenant create red",
        "network create -t red -s 10.1.1.0/24 -g 10.1.1.254 -s6 2001:db8:1::/64 \
         -g6 2001:db8:1::fe front",
    ];
    configure(&nodes.one, &lines)?;
    let red = |node, name, of: &Container| {
        let spec = ContainerSpec { name, tenant: "red", network: "front", group: None, args: "" };
        let ips = json!([of.address().to_string(), of.address6()?.to_string()]);
        Container::attach_with(node, &spec, &json!({ "runtimeConfig": { "ips": ips } }))
    };
    let (ra, rc) = (red(&nodes.one, "ra", a)?, red(&nodes.two, "rc", c)?);
    reach_soon(&ra, rc.address6()?)?;
    ensure!(a.address6()? == ra.address6()? && a.mac()? != ra.mac()?, "not the same addresses");
    // Who answers is told by what listens: only red's c does.
    let server = serve(&rc, rc.address6()?)?;
    ensure!(opens(&ra, rc.address6()?), "red reaches its own");
    ensure!(!opens(a, c.address6()?), "blue reaches red");
    drop(server);
    let server = serve(c, c.address6()?)?;
    ensure!(opens(a, c.address6()?) && !opens(&ra, rc.address6()?), "red reaches blue");
    drop(server);
    ra.detach(&nodes.one)?;
    rc.detach(&nodes.two)?;
    kit::wait_until(BOUND, "red's network to be unused", || {
        netctl(&nodes.one, "network rm -t red front").ok()
    })?;
    netctl(&nodes.one, "tenant rm red").map(drop)
}

fn restarts(scene: &mut Scene) -> Result<()> {
    let before = netctl_json(&scene.nodes.one, "ip ls -t blue")?;
    let to = scene.c.address6()?;
    let flow = Flow::start(scene.a.namespace(), to, Duration::from_millis(10))?;
    for daemon in [Daemon::Netplugin, Daemon::Netmaster] {
        scene.nodes.one.kill(daemon)?;
        scene.nodes.one.start(daemon)?;
    }
    let report = flow.stop()?;
    ensure!(report.received == report.sent, "{report:?}");
    scene.nodes.one.kill(Daemon::Vrouterd)?;
    scene.nodes.one.start(Daemon::Vrouterd)?;
    reach_soon(&scene.a, to)?;
    reach_soon(&scene.b, to)?;
    let after = || netctl_json(&scene.nodes.one, "ip ls -t blue").ok().filter(|now| *now == before);
    kit::wait_until(BOUND, "the same addresses", after)?;
    scene.a.check(&scene.nodes.one)
}

/// As docker leaves a container of a network without IPv6.
fn turned_on(scene: &mut Scene) -> Result<()> {
    let node = &scene.nodes.one;
    let plug = crate::runtime::Plug::new(node, "front")?;
    plug.netns().run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"))??;
    let result = plug.add(node)?;
    let address = result["ips"][1]["address"].as_str().context("no second address")?;
    let address = address.split('/').next().context("no address")?;
    let seen = ping(plug.netns().namespace(), GATEWAY, 1)?;
    ensure!(seen.received == 1, "{address}: {seen:?}");
    plug.del(node)
}

fn reserved(scene: &mut Scene) -> Result<()> {
    let Scene { a, nodes, .. } = &*scene;
    let said = netctl(&nodes.one, "ip reserve -t blue --ip 2001:db8:1::5:7 front web-6")?;
    ensure!(said == "Reserving address 2001:db8:1::5:7/64\n", "{said}");
    let next = netctl(&nodes.one, "ip reserve -t blue -6 front other-6")?;
    ensure!(
        next.starts_with("Reserving address 2001:db8:1::") && next.ends_with("/64\n"),
        "{next}"
    );
    for node in [&nodes.one, &nodes.two] {
        let args = "IgnoreUnknown=1;K8S_POD_NAME=web-6";
        let spec =
            ContainerSpec { name: "web", tenant: "blue", network: "front", group: None, args };
        let web = Container::attach(node, &spec)?;
        ensure!(web.address6()?.to_string() == "2001:db8:1::5:7", "{}", web.result());
        // It has another MAC than a second ago, which a still believes.
        reach(a, web.address6()?)?;
        reach(a, web.address())?;
        web.detach(node)?;
    }
    let stolen =
        nodes.one.netctl_run(&["ip", "release", "-t", "blue", "front", "2001:db8:1::5:7"])?;
    ensure!(stolen.code == Some(3) && stolen.stderr.contains("web-6"), "{stolen:?}");
    netctl(&nodes.one, "ip release -t blue --owner web-6 front 2001:db8:1::5:7")?;
    let rows = netctl_json(&nodes.one, "ip ls -t blue front")?;
    let rows = rows.as_array().context("no list")?;
    let other = rows.iter().find(|row| row["owner"] == "other-6").context("no reservation")?;
    let address = other["ipAddress"].as_str().context("no address")?;
    netctl(&nodes.one, &format!("ip release -t blue --owner other-6 front {address}"))?;
    let left = |row: &&Value| row["owner"] == "web-6";
    kit::wait_until(BOUND, "the reservation to be gone", || {
        let rows = netctl_json(&nodes.one, "ip ls -t blue front").ok()?;
        rows.as_array()?.iter().find(left).is_none().then_some(())
    })?;
    Ok(())
}

fn pooled(scene: &mut Scene) -> Result<()> {
    let (one, two) = (&scene.nodes.one, &scene.nodes.two);
    let pools = "-r 10.1.1.100-10.1.1.101 --ipv6-pool 2001:db8:1::100-2001:db8:1::101";
    netctl(one, &format!("group create -t blue {pools} front pooled"))?;
    let first = attach_to_group(one, "first", "front", Some("pooled"))?;
    let second = attach_to_group(two, "second", "front", Some("pooled"))?;
    for (container, last) in [(&first, 0), (&second, 1)] {
        let given = (container.address().to_string(), container.address6()?.to_string());
        let wanted = (format!("10.1.1.10{last}"), format!("2001:db8:1::10{last}"));
        ensure!(given == wanted, "{given:?}");
        reach(&scene.a, container.address6()?)?;
        reach(&scene.c, container.address())?;
    }
    let full = attach_to_group(two, "third", "front", Some("pooled"));
    ensure!(full.is_err(), "a third container of two addresses: {full:?}");
    // Who is not of the group gets none of its addresses.
    let other = attach(two, "other", "front")?;
    ensure!(other.address().octets()[3] < 100, "{}", other.result());
    other.detach(two)?;
    first.detach(one)?;
    second.detach(two)?;
    netctl(one, "group rm -t blue pooled").map(drop)
}

fn spread(scene: &mut Scene) -> Result<()> {
    let one = &scene.nodes.one;
    netctl(one, "global set --ip-allocation spread")?;
    let spread = spread_over(scene);
    netctl(one, "global set --ip-allocation lowest")?;
    spread
}

fn spread_over(scene: &Scene) -> Result<()> {
    let mut given = Vec::new();
    for node in [&scene.nodes.one, &scene.nodes.two] {
        let args = "IgnoreUnknown=1;K8S_POD_NAME=far-1";
        let spec =
            ContainerSpec { name: "far", tenant: "blue", network: "front", group: None, args };
        let far = Container::attach(node, &spec)?;
        let address = far.address6()?;
        given.push((far.address(), address));
        reach_soon(&scene.a, address)?;
        reach_soon(&scene.a, far.address())?;
        far.detach(node)?;
        kit::wait_until(BOUND, "the address to be free", || {
            let rows = netctl_json(node, "ip ls -t blue front").ok()?;
            let is_it = |row: &Value| row["ipAddress"] == address.to_string();
            (!rows.as_array()?.iter().any(is_it)).then_some(())
        })?;
    }
    ensure!(given[0] == given[1], "{given:?}");
    // The lowest would be among the first.
    ensure!(given[0].1.segments()[4] != 0, "{given:?}");
    Ok(())
}
