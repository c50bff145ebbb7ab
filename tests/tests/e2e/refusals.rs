//! ADDs that are refused: a CNI error object with the right code, and nothing half-done is left.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use kit::{CONTAINER_IFNAME, Container, Daemon, OneNode, Purpose, Topology, wait_until};
use netdev::VethSpec;
use serde_json::{Value, json};

use crate::Test;
use crate::runtime::{Plug, Traces, refusal};
use crate::shared::sharing;
use crate::site::{BOUND, attach, configure, reach, reach_soon};

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("cni_1_each_wrong_word_is_refused_with_its_code_and_leaves_nothing", wrong_words),
            ("cni_1_an_interface_that_the_container_has_is_not_replaced", taken_interface),
            ("cni_1_an_address_that_somebody_has_is_refused", taken_address),
            ("cni_1_a_full_subnet_refuses_the_sixth_container_and_keeps_five", full_subnet),
            ("cni_1_without_netplugin_an_add_says_who_is_missing", no_netplugin),
            ("cni_1_lesson_4_without_vrouterd_an_add_ends_in_time_and_is_undone", no_vrouterd),
            ("cni_1_without_netmaster_an_add_ends_in_time_and_is_undone", no_netmaster),
        ],
    )
}

/// A node with one container that must never notice what the others do.
#[derive(Debug)]
struct Scene {
    one: OneNode,
    bystander: Container,
}

fn build() -> Result<Scene> {
    let one = Topology::new(Purpose::Test).one_node()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "network create -t blue -s 10.9.9.0/29 -g 10.9.9.6 tiny",
        "group create -t blue tiny small",
    ];
    configure(&one.node, &lines)?;
    let bystander = attach(&one.node, "bystander", "front")?;
    Ok(Scene { one, bystander })
}

impl Scene {
    fn traces(&self) -> Result<Traces> {
        Traces::of(&self.one.node, &["front", "tiny"])
    }

    /// Nothing is there that was not before, and the bystander has its network.
    fn unchanged(&self, before: &Traces) -> Result<()> {
        let after = self.traces()?;
        ensure!(after == *before, "left {after:?}, before {before:?}");
        reach(&self.bystander, Ipv4Addr::new(10, 1, 1, 254)).context("the bystander")
    }
}

/// What is wrong with a call, and the code it must get.
type Wrong = (&'static str, u64, fn(&mut Plug));

const WRONG: &[Wrong] = &[
    ("no name", 7, |plug| plug.config["name"] = Value::Null),
    ("a bad name", 7, |plug| plug.config["name"] = json!("a/b")),
    ("a name that is a number", 6, |plug| plug.config["name"] = json!(7)),
    ("no network", 7, |plug| plug.config["network"] = json!("")),
    ("no version", 1, |plug| plug.config["cniVersion"] = Value::Null),
    ("an mtu above the underlay's", 7, |plug| plug.config["mtu"] = json!(1451)),
    ("an mtu of text", 6, |plug| plug.config["mtu"] = json!("big")),
    ("no patience", 7, |plug| plug.config["timeoutSeconds"] = json!(0)),
    ("a previous plugin", 7, |plug| plug.config["prevResult"] = json!({"cniVersion": "1.1.0"})),
    ("a rate below a kilobit", 7, |plug| {
        plug.config["runtimeConfig"] = json!({"bandwidth": {"ingressRate": 999}});
    }),
    ("a rate of text", 6, |plug| {
        plug.config["runtimeConfig"] = json!({"bandwidth": {"egressRate": "10M"}});
    }),
    ("a port of SCTP", 2, |plug| {
        let port = json!({"hostPort": 8080, "containerPort": 80, "protocol": "sctp"});
        plug.config["runtimeConfig"] = json!({"portMappings": [port]});
    }),
    ("an ipam plugin that is not there", 7, |plug| plug.config["ipam"] = json!({"type": "x"})),
    ("no container id", 4, |plug| plug.id = String::new()),
    ("a bad container id", 4, |plug| plug.id = "../etc".into()),
    ("no interface name", 4, |plug| plug.ifname = ""),
    ("a long interface name", 4, |plug| plug.ifname = "sixteen-letters-"),
    ("no namespace", 4, |plug| plug.path = "".into()),
    ("a namespace that is not there", 8, |plug| plug.path = "/run/netns/wt-none".into()),
    ("a file that is no namespace", 8, |plug| plug.path = "/etc/hostname".into()),
    ("an unknown tenant", 102, |plug| plug.config["tenant"] = json!("nobody")),
    ("an unknown network", 102, |plug| plug.config["network"] = json!("nowhere")),
    ("an unknown group", 102, |plug| plug.config["group"] = json!("nobody")),
    ("a group of another network", 7, |plug| plug.config["group"] = json!("small")),
    ("an address that is none", 4, |plug| plug.args = "IP=10.1.1".into()),
    ("an address outside the subnet", 7, |plug| plug.args = "IP=10.1.2.5".into()),
    ("an address of another length", 7, |plug| plug.args = "IP=10.1.1.5/25".into()),
    ("a multicast MAC address", 7, |plug| plug.args = "MAC=01:00:5e:00:00:01".into()),
];

fn wrong_words(scene: &mut Scene) -> Result<()> {
    let before = scene.traces()?;
    let node = &scene.one.node;
    for (what, code, spoil) in WRONG {
        let mut plug = Plug::new(node, "front")?;
        spoil(&mut plug);
        plug.refused(node, "ADD", *code).with_context(|| format!("ADD with {what}"))?;
        let inside = plug.netns().netlink()?.links()?;
        ensure!(inside.iter().all(|link| link.name != CONTAINER_IFNAME), "{what}: {inside:?}");
        scene.unchanged(&before).with_context(|| format!("after an ADD with {what}"))?;
    }
    let plug = Plug::new(node, "front")?;
    for (what, stdin) in [("nothing", ""), ("half an object", "{\"name\":"), ("prose", "ADD it")] {
        let finished = plug.call_with(node, "ADD", stdin)?;
        refusal(&finished, 6).with_context(|| format!("ADD with {what} on stdin"))?;
    }
    let finished = plug.call(node, "ATTACH", &Value::Null)?;
    refusal(&finished, 4).context("an unknown command")?;
    scene.unchanged(&before)
}

fn taken_interface(scene: &mut Scene) -> Result<()> {
    let before = scene.traces()?;
    let node = &scene.one.node;
    let plug = Plug::new(node, "front")?;
    let netlink = plug.netns().netlink()?;
    let spec = VethSpec {
        name: CONTAINER_IFNAME,
        mac: None,
        mtu: 1500,
        peer_name: "other",
        peer_mac: None,
        peer_mtu: 1500,
        peer_netns: None,
    };
    let own = netlink.create_veth(&spec)?;
    let msg = plug.refused(node, "ADD", 4)?;
    ensure!(msg.contains(CONTAINER_IFNAME), "{msg}");
    let still = netlink.link_by_name(CONTAINER_IFNAME)?;
    ensure!(still.is_some_and(|link| link.index == own.index), "the container's own is gone");
    scene.unchanged(&before)
}

fn taken_address(scene: &mut Scene) -> Result<()> {
    let before = scene.traces()?;
    let node = &scene.one.node;
    let mut plug = Plug::new(node, "front")?;
    plug.args = format!("IP={}", scene.bystander.address());
    let msg = plug.refused(node, "ADD", 104)?;
    ensure!(msg.contains(scene.bystander.id()), "the owner is not named: {msg}");
    plug.args = "IP=10.1.1.254".into();
    plug.refused(node, "ADD", 104).context("the gateway's address")?;
    scene.unchanged(&before)
}

fn full_subnet(scene: &mut Scene) -> Result<()> {
    let before = scene.traces()?;
    let node = &scene.one.node;
    let five: Vec<Container> =
        (0..5).map(|_| attach(node, "tiny", "tiny")).collect::<Result<_>>()?;
    let full = scene.traces()?;
    let plug = Plug::new(node, "tiny")?;
    plug.refused(node, "ADD", 101)?;
    scene.unchanged(&full)?;
    for from in &five {
        for to in &five {
            reach(from, to.address())?;
        }
    }
    for container in five {
        container.detach(node)?;
    }
    scene.unchanged(&before)?;
    plug.add(node).context("ADD once there is room")?;
    plug.del(node)?;
    scene.unchanged(&before)
}

fn no_netplugin(scene: &mut Scene) -> Result<()> {
    let before = scene.traces()?;
    scene.one.node.stop(Daemon::Netplugin)?;
    let plug = Plug::new(&scene.one.node, "front")?;
    let msg = plug.refused(&scene.one.node, "ADD", 100)?;
    ensure!(msg.contains("netplugin"), "{msg}");
    scene.unchanged(&before)?;
    scene.one.node.start(Daemon::Netplugin)?;
    plug.add(&scene.one.node).context("ADD once netplugin is back")?;
    plug.del(&scene.one.node)?;
    scene.unchanged(&before)
}

fn no_vrouterd(scene: &mut Scene) -> Result<()> {
    let before = scene.traces()?;
    scene.one.node.stop(Daemon::Vrouterd)?;
    let mut plug = Plug::new(&scene.one.node, "front")?;
    // netmaster waits two seconds for this node, which cannot acknowledge.
    plug.config["timeoutSeconds"] = json!(5);
    let msg = plug.refused(&scene.one.node, "ADD", 11)?;
    ensure!(msg.contains("vrouterd"), "{msg}");
    let inside = plug.netns().netlink()?.link_by_name(CONTAINER_IFNAME)?;
    ensure!(inside.is_none(), "left {inside:?}");
    scene.one.node.start(Daemon::Vrouterd)?;
    reach_soon(&scene.bystander, Ipv4Addr::new(10, 1, 1, 254))?;
    wait_until(BOUND, "the ports to be back", || scene.unchanged(&before).ok())
        .with_context(|| format!("{:?}, before {before:?}", scene.traces()))?;
    plug.add(&scene.one.node).context("ADD once vrouterd is back")?;
    plug.del(&scene.one.node)?;
    scene.unchanged(&before)
}

fn no_netmaster(scene: &mut Scene) -> Result<()> {
    let before = scene.traces()?;
    scene.one.node.stop(Daemon::Netmaster)?;
    let mut plug = Plug::new(&scene.one.node, "front")?;
    plug.config["timeoutSeconds"] = json!(2);
    let msg = plug.refused(&scene.one.node, "ADD", 11)?;
    ensure!(msg.contains("netmaster"), "{msg}");
    let inside = plug.netns().netlink()?.link_by_name(CONTAINER_IFNAME)?;
    ensure!(inside.is_none(), "left {inside:?}");
    reach(&scene.bystander, Ipv4Addr::new(10, 1, 1, 254))?;
    scene.one.node.start(Daemon::Netmaster)?;
    let settled = || scene.unchanged(&before).ok();
    wait_until(BOUND, "nothing to be left", settled)
        .with_context(|| format!("{:?}, before {before:?}", scene.traces()))?;
    let added = || plug.add(&scene.one.node).ok();
    wait_until(BOUND, "an ADD once netmaster is back", added)?;
    plug.del(&scene.one.node)?;
    scene.unchanged(&before)
}
