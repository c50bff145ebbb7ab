//! Addresses end to end: kept for a name over nodes and restarts, never had by two, never lost, also
//! when a node loses its state or anything is killed at any moment.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use control_api::v1;
use control_api::v1::node_client::NodeClient;
use kit::{Container, ContainerSpec, Daemon, Flow, Node, Purpose, Topology, TwoNodes, wait_until};
use serde_json::{Value, json};

use crate::Test;
use crate::control::with_netmaster;
use crate::kills;
use crate::runtime::{Plug, Traces};
use crate::shared::sharing;
use crate::site::{
    BOUND, all_connected, attach, configure, endpoints, netctl, netctl_json, ports, reach_soon,
};

const INTERVAL: Duration = Duration::from_millis(5);

pub(crate) fn tests() -> Vec<Test> {
    let mut tests = sharing(
        build,
        &[
            ("ipam_3_a_reserved_address_follows_its_name_over_nodes_and_restarts", follows),
            ("ipam_3_a_pods_reservation_is_of_its_namespace", follows_by_namespace),
            ("ipam_3_a_reservation_without_owner_is_taken_up_or_ends", ends),
            ("svc_containers_with_a_services_labels_are_its_providers", providers),
            ("ipam_4_a_node_that_lost_its_state_keeps_its_containers_and_its_order", lost_state),
            ("ipam_4_kills_at_random_moments_leave_just_the_addresses_that_live", kills::kills),
        ],
    );
    // Of its two nodes one is lost.
    let gone_for_ever = "ipam_4_a_machine_that_is_gone_gives_its_addresses_back";
    tests.push((gone_for_ever.to_owned(), Box::new(gone)));
    tests
}

/// Containers that must never notice anything: a on node 1, c on node 2.
#[derive(Debug)]
pub(crate) struct Scene {
    a: Container,
    c: Container,
    pub(crate) nodes: TwoNodes,
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
    pub(crate) fn traces(&self) -> Result<Traces> {
        Traces::of(&self.nodes.one, &["front"])
    }

    /// Waits until there is just what was before.
    pub(crate) fn settled(&self, before: &Traces) -> Result<()> {
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

/// Pods of two namespaces have one name.
fn follows_by_namespace(scene: &mut Scene) -> Result<()> {
    let before = scene.traces()?;
    let node = &scene.nodes.one;
    netctl(node, "ip reserve -t blue --ip 10.1.2.78 front shop/web-0")?;
    let wanted: Ipv4Addr = "10.1.2.78".parse()?;
    for (namespace, is_owner) in [("test", false), ("shop", true)] {
        let web = pod(node, "web-0", &format!(";K8S_POD_NAMESPACE={namespace}"))?;
        let address = web.address();
        ensure!((address == wanted) == is_owner, "{namespace}/web-0 got {address}");
        web.detach(node)?;
    }
    netctl(node, "ip release -t blue --owner shop/web-0 front 10.1.2.78")?;
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

/// A machine that never comes back: its daemons are killed, and nobody sends DELs for its containers. An
/// operator says so, after which nothing of it is left.
fn gone() -> Result<()> {
    let Scene { a, c, mut nodes } = build()?;
    let lost = [pod(&nodes.two, "lost-1", "")?, pod(&nodes.two, "lost-2", "")?];
    reach_soon(&a, lost[0].address())?;
    for daemon in [Daemon::Vrouterd, Daemon::Netplugin] {
        nodes.two.kill(daemon)?;
    }
    let node = &nodes.one;
    wait_until(BOUND, "netmaster to notice", || {
        let nodes = netctl_json(node, "node ls").ok()?;
        nodes.as_array()?.iter().any(|node| node["connected"] == false).then_some(())
    })?;
    // Until somebody says so its addresses are its containers', which may run still.
    let used = node.netctl_run(&["node", "rm", "node2"])?;
    ensure!(used.code == Some(3), "{used:?}");
    ensure!(used.stderr.contains("netctl node rm --with-endpoints"), "{used:?}");
    let held = lost[0].address().to_string();
    let taken = node.netctl_run(&["ip", "reserve", "-t", "blue", "--ip", &held, "front", "x"])?;
    ensure!(taken.code == Some(3), "{taken:?}");
    let here = node.netctl_run(&["node", "rm", "--with-endpoints", "node1"])?;
    ensure!(here.code == Some(3) && here.stderr.contains("the node is connected"), "{here:?}");
    looks_leaked(node)?;
    let said = netctl(node, "node rm --with-endpoints node2")?;
    ensure!(said == "Deleting 3 endpoints of node node2\nDeleting node node2\n", "{said}");
    let own = format!("{}:eth0", a.id());
    ensure!(endpoints(node)? == [own], "{:?}", endpoints(node)?);
    let free = || netctl(node, &format!("ip reserve -t blue --ip {held} front x")).ok();
    wait_until(BOUND, "its addresses to be free", free)?;
    drop((c, lost));
    Ok(())
}

/// Nothing looks leaked until a node says that it lacks what netmaster has: here for node 2, of which it
/// would be the last word.
fn looks_leaked(node: &Node) -> Result<()> {
    let leaks = || netctl_json(node, "ip leaks -t blue front");
    ensure!(leaks()? == json!([]), "{}", leaks()?);
    with_netmaster(node, async |channel| {
        let (node_name, endpoint_ids) = ("node2".to_owned(), Vec::new());
        let request = v1::InventoryRequest { node_name, endpoint_ids };
        let deleted = NodeClient::new(channel).inventory(request).await?.into_inner().deleted;
        ensure!(deleted.is_empty(), "{deleted:?}");
        Ok(())
    })?;
    let (rows, held) = (leaks()?, netctl_json(node, "ip ls -t blue front")?);
    let held = held.as_array().into_iter().flatten().filter(|row| row["homingHost"] == "node2");
    ensure!(rows.as_array().is_some_and(|rows| rows.len() == 6), "three of each family: {rows}");
    ensure!(rows.as_array().into_iter().flatten().eq(held), "{rows}");
    let table = node.netctl_run(&["ip", "leaks", "-t", "blue", "front"])?;
    ensure!(table.code == Some(0), "{table:?}");
    ensure!(table.stderr.matches("node node2 does not have it").count() == 6, "{table:?}");
    Ok(())
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
