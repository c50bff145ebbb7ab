//! Addresses end to end: kept for a name over nodes and restarts, never had by two, never lost, also
//! when a node loses its state or anything is killed at any moment.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use control_api::v1;
use kit::{Container, ContainerSpec, Daemon, Flow, Node, Purpose, Topology, TwoNodes, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::Test;
use crate::control::{create_endpoint, register};
use crate::runtime::{Plug, Traces};
use crate::shared::sharing;
use crate::site::{
    BOUND, all_connected, attach, configure, endpoints, netctl, netctl_json, ports, reach_soon,
};

const INTERVAL: Duration = Duration::from_millis(5);

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("ipam_3_a_reserved_address_follows_its_name_over_nodes_and_restarts", follows),
            ("ipam_3_a_reservation_without_owner_is_taken_up_or_ends", ends),
            ("ipam_4_a_machine_that_is_gone_gives_its_addresses_back", gone),
            ("svc_containers_with_a_services_labels_are_its_providers", providers),
            ("ipam_4_a_node_that_lost_its_state_keeps_its_containers_and_its_order", lost_state),
            ("ipam_4_kills_at_random_moments_leave_just_the_addresses_that_live", kills),
        ],
    )
}

/// Containers that must never notice anything: a on node 1, c on node 2.
#[derive(Debug)]
struct Scene {
    a: Container,
    c: Container,
    nodes: TwoNodes,
}

fn build() -> Result<Scene> {
    let nodes = Topology::new(Purpose::Test).two_nodes()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.0.0/22 -g 10.1.3.254 -s6 2001:db8:1::/64 \
         -g6 2001:db8:1::fe front",
    ];
    configure(&nodes.one, &lines)?;
    let a = attach(&nodes.one, "a", "front")?;
    let c = attach(&nodes.two, "c", "front")?;
    reach_soon(&a, c.address())?;
    Ok(Scene { a, c, nodes })
}

impl Scene {
    fn traces(&self) -> Result<Traces> {
        Traces::of(&self.nodes.one, &["front"])
    }

    /// Waits until there is just what was before.
    fn settled(&self, before: &Traces) -> Result<()> {
        wait_until(BOUND * 3, "everything to be as before", || {
            self.traces().ok().filter(|now| now == before)
        })
        .with_context(|| format!("{:?}, before {before:?}", self.traces()))?;
        all_connected(&self.nodes.one)?;
        reach_soon(&self.a, self.c.address())
    }
}

/// A container of a pod's name.
fn pod(node: &Node, name: &str, args: &str) -> Result<Container> {
    let args = format!("IgnoreUnknown=1;K8S_POD_NAME={name}{args}");
    let (tenant, network) = ("blue", "front");
    Container::attach(node, &ContainerSpec { name, tenant, network, group: None, args: &args })
}

fn follows(scene: &mut Scene) -> Result<()> {
    let before = scene.traces()?;
    let reserved = netctl(&scene.nodes.one, "ip reserve -t blue --ip 10.1.2.77 front web-1")?;
    ensure!(reserved == "Reserving address 10.1.2.77/22\n", "{reserved}");
    let wanted: Ipv4Addr = "10.1.2.77".parse()?;
    for round in 0..4 {
        let nodes = &mut scene.nodes;
        if round == 2 {
            nodes.one.kill(Daemon::Netmaster)?;
            nodes.one.start(Daemon::Netmaster)?;
            all_connected(&nodes.one)?;
        }
        let node = if round % 2 == 0 { &nodes.one } else { &nodes.two };
        let web = pod(node, "web-1", "")?;
        ensure!(web.address() == wanted, "round {round}: web-1 got {}", web.address());
        let other = pod(node, "web-2", "")?;
        ensure!(other.address() != wanted, "web-2 has web-1's address");
        reach_soon(&scene.a, wanted)?;
        let rows = netctl_json(node, "ip ls -t blue front")?;
        let row = rows.as_array().into_iter().flatten().find(|row| row["ipAddress"] == "10.1.2.77");
        let row = row.with_context(|| format!("no row in {rows}"))?;
        ensure!(row["state"] == "used" && row["owner"] == "web-1", "{row}");
        ensure!(row["homingHost"] == node.name(), "{row}");
        web.detach(node)?;
        other.detach(node)?;
    }
    let stolen =
        scene.nodes.one.netctl_run(&["ip", "release", "-t", "blue", "front", "10.1.2.77"])?;
    ensure!(stolen.code == Some(3) && stolen.stderr.contains("web-1"), "{stolen:?}");
    netctl(&scene.nodes.one, "ip release -t blue --owner web-1 front 10.1.2.77")?;
    scene.settled(&before)
}

fn ends(scene: &mut Scene) -> Result<()> {
    let before = scene.traces()?;
    let node = &scene.nodes.one;
    for address in ["10.1.2.80", "10.1.2.81"] {
        netctl(node, &format!("ip reserve -t blue --ip {address} --ttl 1s front"))?;
    }
    let taken = pod(node, "any", ";IP=10.1.2.80")?;
    ensure!(taken.address().to_string() == "10.1.2.80", "got {}", taken.address());
    taken.detach(node)?;
    scene.settled(&before)
}

/// An operator says so, after which nothing of it is left.
fn gone(scene: &mut Scene) -> Result<()> {
    let before = scene.traces()?;
    let node = &scene.nodes.one;
    register(node, "ghost", "10.250.0.9")?;
    for id in ["one:eth0", "two:eth0"] {
        let endpoint = v1::Endpoint {
            endpoint_id: id.into(),
            tenant_name: "blue".into(),
            network_name: "front".into(),
            homing_host: "ghost".into(),
            ..v1::Endpoint::default()
        };
        create_endpoint(node, endpoint)?;
    }
    let used = node.netctl_run(&["node", "rm", "ghost"])?;
    ensure!(used.code == Some(3), "{used:?}");
    ensure!(used.stderr.contains("netctl node rm --with-endpoints"), "{used:?}");
    let here = node.netctl_run(&["node", "rm", "--with-endpoints", "node1"])?;
    ensure!(here.code == Some(3) && here.stderr.contains("the node is connected"), "{here:?}");
    let said = netctl(node, "node rm --with-endpoints ghost")?;
    ensure!(said == "Deleting 2 endpoints of node ghost\nDeleting node ghost\n", "{said}");
    scene.settled(&before)
}

fn providers(scene: &mut Scene) -> Result<()> {
    let before = scene.traces()?;
    let node = &scene.nodes.one;
    netctl(node, "service create -t blue -s front -l app=web -l tier=front -p 80:8080:TCP shop")?;
    let named = |count: usize| -> Result<Value> {
        let service = netctl_json(node, "service inspect -t blue shop")?;
        let oper = &service["Oper"];
        ensure!(oper["numProviders"] == count, "{oper}");
        Ok(oper["providers"].clone())
    };
    named(0)?;
    let web = pod(node, "web-1", ";WEIR_LABELS=app=web,tier=front,note=x")?;
    let plain = pod(node, "web-2", ";WEIR_LABELS=app=web")?;
    let more = json!({ "args": { "cni": { "labels": [
        { "key": "app", "value": "web" }, { "key": "tier", "value": "front" }
    ] } } });
    let spec =
        ContainerSpec { name: "web3", tenant: "blue", network: "front", group: None, args: "" };
    let other = Container::attach_with(&scene.nodes.two, &spec, &more)?;
    let listed = named(2)?;
    let ids: Vec<_> = listed.as_array().into_iter().flatten().map(|p| &p["endpointID"]).collect();
    ensure!(!ids.contains(&&json!(format!("{}:eth0", plain.id()))), "{listed}");
    let shown = netctl_json(node, &format!("endpoint inspect {}:eth0", web.id()))?;
    ensure!(shown["Config"]["labels"] == json!(["app=web", "note=x", "tier=front"]), "{shown}");
    web.detach(node)?;
    plain.detach(node)?;
    other.detach(&scene.nodes.two)?;
    named(0)?;
    netctl(node, "service rm -t blue shop")?;
    scene.settled(&before)
}

/// The rows are gone, the containers run: netplugin finds them again and nobody notices.
fn lost_state(scene: &mut Scene) -> Result<()> {
    let before = scene.traces()?;
    let ports_before = ports(&scene.nodes.one)?;
    let gone = Plug::new(&scene.nodes.one, "front")?;
    gone.add(&scene.nodes.one)?;
    let flow = Flow::start(scene.a.namespace(), scene.c.address(), INTERVAL)?;
    scene.nodes.one.kill(Daemon::Netplugin)?;
    fs::remove_file(scene.nodes.one.state_dir().join("netplugin.redb"))?;
    // One container ends meanwhile: its DEL finds no netplugin, and its namespace goes.
    drop(gone);
    scene.nodes.one.start(Daemon::Netplugin)?;
    scene.settled(&before).context("after the state was lost")?;
    let report = flow.stop()?;
    ensure!(report.received == report.sent, "{report:?}");
    ensure!(ports(&scene.nodes.one)? == ports_before, "the ports have other ids");
    scene.a.check(&scene.nodes.one).context("CHECK of a container whose row was lost")?;
    // What comes next gets ports and addresses of its own.
    let next = attach(&scene.nodes.one, "next", "front")?;
    reach_soon(&next, scene.c.address())?;
    next.detach(&scene.nodes.one)?;
    scene.settled(&before)?;
    // And it is an attachment like any other: it ends by DEL.
    let extra = attach(&scene.nodes.one, "extra", "front")?;
    // What only its runtime has said outlives the rows: how fast it may be, and who collects it.
    let mut limited = Plug::new(&scene.nodes.one, "front")?;
    limited.config["name"] = json!("elsewhere");
    limited.config["runtimeConfig"] = json!({ "bandwidth": { "egressRate": 6_000_000 } });
    let result = limited.add(&scene.nodes.one)?;
    let meters = scene.nodes.one.vrctl(&["meter", "ls"])?;
    ensure!(meters.as_array().is_some_and(|meters| !meters.is_empty()), "no limit: {meters}");
    scene.nodes.one.stop(Daemon::Netplugin)?;
    fs::remove_file(scene.nodes.one.state_dir().join("netplugin.redb"))?;
    scene.nodes.one.start(Daemon::Netplugin)?;
    wait_until(BOUND, "the container to be found", || extra.check(&scene.nodes.one).ok())?;
    let check = || limited.call(&scene.nodes.one, "CHECK", &result).ok()?.success().ok();
    wait_until(BOUND, "the limited container to be found", check)?;
    let kept = scene.nodes.one.vrctl(&["meter", "ls"])?;
    ensure!(limits(&kept) == limits(&meters), "{kept}, before {meters}");
    limited.config["cni.dev/valid-attachments"] = json!([]);
    limited.call(&scene.nodes.one, "GC", &Value::Null)?.success().context("GC")?;
    extra.check(&scene.nodes.one).context("CHECK after another configuration's GC")?;
    extra.detach(&scene.nodes.one)?;
    scene.settled(&before)
}

/// Rate and burst of each meter.
fn limits(meters: &Value) -> Vec<[Value; 2]> {
    let rows = meters.as_array().into_iter().flatten();
    rows.map(|row| [row["rate"].clone(), row["burst"].clone()]).collect()
}

/// Numbers that follow from a seed (Knuth's MMIX generator).
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// How many kills, and how many attachments in all.
fn size() -> (u64, u64) {
    if std::env::var_os("WEIR_SOAK").is_some() { (200, 200) } else { (8, 24) }
}

/// Attachments come and go in waves; in each wave one of netmaster, netplugin and the CNI plugins is
/// killed at a moment drawn by lot.
fn kills(scene: &mut Scene) -> Result<()> {
    let seed = match std::env::var("WEIR_SEED") {
        Ok(text) => text.parse().context("WEIR_SEED")?,
        Err(_) => u64::from(std::process::id()),
    };
    let mut draw = Draw(seed);
    let (points, attachments) = size();
    let before = scene.traces()?;
    let began = Instant::now();
    let mut living = Vec::new();
    let mut slowest = Duration::ZERO;
    // Two at least: of one alone nothing is under way beside it.
    let wave = attachments.div_ceil(points).max(2);
    for point in 0..points {
        let said = || format!("WEIR_SEED={seed}, kill {point}");
        let (more, took) = wave_with_kill(scene, &mut draw, living, wave).with_context(said)?;
        living = more;
        slowest = slowest.max(took);
    }
    for plug in living {
        wait_until(BOUND, "DEL", || plug.del(&scene.nodes.one).ok())?;
    }
    scene.settled(&before).with_context(|| format!("WEIR_SEED={seed}"))?;
    let took = began.elapsed();
    eprintln!(
        "{points} kills over {} attachments in {took:.1?}, reconciled within {slowest:.1?} (WEIR_SEED={seed})",
        points * wave
    );
    Ok(())
}

/// ADDs of a wave and DELs of some that live, with one kill amid them. Returns what lives, and how long
/// it took until netmaster's addresses were just that.
fn wave_with_kill(
    scene: &mut Scene,
    draw: &mut Draw,
    living: Vec<Plug>,
    wave: u64,
) -> Result<(Vec<Plug>, Duration)> {
    let victim = draw.below(3);
    let after = Duration::from_millis(draw.below(250));
    let (ending, staying): (Vec<_>, Vec<_>) = living.into_iter().partition(|_| draw.below(2) == 0);
    let fresh = (0..wave).map(|_| plug(&scene.nodes.one)).collect::<Result<Vec<_>>>()?;
    let daemon = if victim == 0 { Daemon::Netmaster } else { Daemon::Netplugin };
    let pid = scene.nodes.one.process(daemon)?.pid();
    let node = &scene.nodes.one;
    let added = thread::scope(|scope| {
        let adds: Vec<_> =
            fresh.iter().map(|p| scope.spawn(|| p.call(node, "ADD", &Value::Null))).collect();
        let dels: Vec<_> =
            ending.iter().map(|p| scope.spawn(|| p.call(node, "DEL", &Value::Null))).collect();
        let start = Instant::now();
        wait_until(BOUND, "the moment", || (start.elapsed() >= after).then_some(()))?;
        if victim == 2 {
            kill_plugins();
        } else {
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?;
        }
        let joined = adds.into_iter().map(|add| add.join().map_err(|_panic| anyhow!("a panic"))?);
        let added = joined.collect::<Result<Vec<_>>>()?;
        dels.into_iter()
            .try_for_each(|del| del.join().map_err(|_panic| anyhow!("a panic"))?.map(drop))?;
        anyhow::Ok(added)
    })?;
    if victim != 2 {
        scene.nodes.one.kill(daemon)?;
        scene.nodes.one.start_unready(daemon)?;
    }
    let node = &scene.nodes.one;
    // As a runtime: an ADD that failed or was killed is followed by DEL, a DEL is repeated.
    let (mut lives, mut over) = (staying, ending);
    for (plug, finished) in fresh.into_iter().zip(added) {
        if finished.code == Some(0) { lives.push(plug) } else { over.push(plug) }
    }
    for plug in &over {
        wait_until(BOUND, "DEL", || plug.del(node).ok())?;
    }
    let start = Instant::now();
    wait_until(BOUND * 3, "the addresses of netmaster to be those that live", || {
        just_these(scene, &lives).ok()
    })
    .with_context(|| format!("{:?}", just_these(scene, &lives)))?;
    Ok((lives, start.elapsed()))
}

fn plug(node: &Node) -> Result<Plug> {
    let mut plug = Plug::new(node, "front")?;
    plug.config["timeoutSeconds"] = json!(5);
    Ok(plug)
}

/// Kills every CNI plugin of this run that is at work. They are children of this process.
fn kill_plugins() {
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        let parent = rest.split_whitespace().nth(1);
        let pid = entry.file_name().to_string_lossy().parse();
        if name.ends_with("(weir-cni")
            && parent == Some(own.as_str())
            && let Ok(pid) = pid
        {
            // One that has just ended is as good as killed.
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_default();
        }
    }
}

/// netmaster has endpoints for a, c and `lives`, each with the two addresses that its container has, no
/// address twice, and nothing else is used or leaving.
fn just_these(scene: &Scene, lives: &[Plug]) -> Result<()> {
    let node = &scene.nodes.one;
    let rows = netctl_json(node, "ip ls -a")?;
    let rows = rows.as_array().context("ip ls is no list")?;
    let mut used = BTreeMap::new();
    for row in rows {
        ensure!(row["state"] == "used", "{row}");
        let id = row["endpointID"].as_str().context("no endpoint")?.to_owned();
        let address = row["ipAddress"].as_str().context("no address")?.to_owned();
        ensure!(used.insert(address, id).is_none(), "an address twice: {rows:?}");
    }
    let living = lives.len() + 2;
    ensure!(used.len() == 2 * living, "{} used, {living} live", used.len());
    for plug in lives {
        let netlink = plug.netns().netlink()?;
        let link = netlink.link_by_name(kit::CONTAINER_IFNAME)?.context("no device")?;
        let held: Vec<IpAddr> = netlink.addresses(link.index)?.iter().map(|a| a.ip).collect();
        let is_link_local =
            |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let held: Vec<_> = held.into_iter().filter(|ip| !is_link_local(ip)).collect();
        ensure!(held.len() == 2 && held[0].is_ipv4() != held[1].is_ipv4(), "{held:?} inside");
        for ip in held {
            let id = used.get(&ip.to_string()).with_context(|| format!("{ip} is free"))?;
            let own = format!("{}:{}", plug.id, plug.ifname);
            ensure!(*id == own, "{id} has {ip} of {own}");
        }
    }
    let ids = endpoints(node)?;
    ensure!(ids.len() == living, "{ids:?}");
    Ok(())
}
