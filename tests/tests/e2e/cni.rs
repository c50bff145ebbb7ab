//! The life of an attachment, as runtimes drive it (CNI specification 1.1.0).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use kit::{CONTAINER_IFNAME, Daemon, OneNode, Purpose, Topology, ping, wait_until};
use netdev::Address;
use serde_json::{Value, json};

use crate::Test;
use crate::runtime::{Plug, Traces, refusal};
use crate::shared::sharing;
use crate::site::{BOUND, configure, links, mac_text, netctl_json};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 254);
/// RFC 7348 in IPv4: 14 + 20 + 8 + 8 bytes of a 1500 byte underlay.
const MTU: u32 = 1450;
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("cni_1_lesson_16_add_returns_what_the_container_has", add_is_true),
            ("cni_1_the_same_add_a_hundred_times_gives_the_same_result", add_repeats),
            ("cni_1_check_fails_once_the_address_is_gone_from_the_container", check_looks),
            (
                "cni_1_lesson_1_del_succeeds_any_number_of_times_with_the_namespace_gone",
                del_repeats,
            ),
            ("cni_1_results_have_the_shape_of_the_version_asked_for", versions),
            ("cni_1_lesson_12_gc_removes_what_the_runtime_no_longer_knows", gc),
            ("cni_1_status_tells_which_daemon_is_missing_and_which_network_is_full", status),
            ("d16_six_adds_at_once_get_six_addresses", parallel_adds),
            (
                "cni_1_lesson_16_the_address_and_mac_that_its_arguments_ask_for_are_in_the_result",
                fixed_address,
            ),
            ("cni_1_a_second_interface_keeps_the_default_route_of_the_first", second_interface),
            ("d13_del_succeeds_without_netmaster_and_frees_the_address_later", del_alone),
        ],
    )
}

fn build() -> Result<OneNode> {
    let one = Topology::new(Purpose::Test).one_node()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "network create -t blue -s 10.1.2.0/24 back",
        "group create -t blue front web",
    ];
    configure(&one.node, &lines)?;
    Ok(one)
}

fn traces(one: &OneNode) -> Result<Traces> {
    Traces::of(&one.node, &["front", "back"])
}

fn again(one: &OneNode, before: &Traces) -> Result<()> {
    before.again(&one.node, &["front", "back"])
}

fn address(result: &Value) -> Result<Ipv4Addr> {
    let text = result["ips"][0]["address"].as_str().context("no address")?;
    Ok(text.split('/').next().unwrap_or(text).parse()?)
}

fn add_is_true(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let mut plug = Plug::new(&one.node, "front")?;
    plug.config["group"] = json!("web");
    let result = plug.add(&one.node)?;
    let (host, container) = (&result["interfaces"][0], &result["interfaces"][1]);
    ensure!(result["cniVersion"] == "1.1.0", "{result}");
    ensure!(result["interfaces"].as_array().map(Vec::len) == Some(2), "{result}");
    let host_name = host["name"].as_str().context("no host interface")?;
    ensure!(host_name.len() == 12 && host_name.starts_with("wr"), "{host}");
    ensure!(host.get("sandbox").is_none_or(|s| s == ""), "{host}");
    ensure!(container["name"] == CONTAINER_IFNAME, "{container}");
    ensure!(container["sandbox"] == plug.path.display().to_string(), "{container}");
    let ip = address(&result)?;
    let text = format!("{ip}/24");
    let wanted = json!([{"address": text, "gateway": GATEWAY.to_string(), "interface": 1}]);
    ensure!(result["ips"] == wanted, "{result}");
    let routes = json!([{"dst": "0.0.0.0/0", "gw": GATEWAY.to_string()}]);
    ensure!(result["routes"] == routes, "{result}");

    let outside = one.node.netns().netlink()?.link_by_name(host_name)?.context("no host end")?;
    ensure!(host["mac"] == mac_text(outside.mac), "{host}, not {outside:?}");
    ensure!(outside.up && outside.mtu == MTU, "{outside:?}");
    let netlink = plug.netns().netlink()?;
    let inside = netlink.link_by_name(CONTAINER_IFNAME)?.context("no container end")?;
    ensure!(inside.up && inside.mtu == MTU, "{inside:?}");
    ensure!(container["mac"] == mac_text(inside.mac), "{container}, not {inside:?}");
    let own = Address { ip: IpAddr::V4(ip), prefix_len: 24 };
    let addresses = netlink.addresses(inside.index)?;
    ensure!(addresses.contains(&own), "{addresses:?}");
    let defaults = netlink.routes()?.into_iter().filter(|r| r.dst.is_none());
    let gateways: Vec<_> = defaults.filter_map(|route| route.gateway).collect();
    ensure!(gateways == [IpAddr::V4(GATEWAY)], "{gateways:?}");
    ensure!(ping(plug.netns().namespace(), GATEWAY, 1)?.received == 1, "the gateway is silent");

    let id = format!("{}:{CONTAINER_IFNAME}", plug.id);
    let endpoint = netctl_json(&one.node, &format!("endpoint inspect {id}"))?;
    for (field, value) in [
        ("endpointID", json!(id)),
        ("tenantName", json!("blue")),
        ("networkName", json!("front")),
        ("endpointGroup", json!("web")),
        ("ipAddress", json!([ip.to_string()])),
        ("macAddress", container["mac"].clone()),
        ("homingHost", json!(one.node.name())),
        ("containerID", json!(plug.id)),
        ("intfName", json!(host_name)),
        ("vtepIP", json!(one.node.vtep().to_string())),
    ] {
        ensure!(endpoint["Config"][field] == value, "{field} is not {value}: {endpoint}");
    }
    plug.del(&one.node)?;
    again(one, &before)
}

fn add_repeats(one: &mut OneNode) -> Result<()> {
    let plug = Plug::new(&one.node, "front")?;
    let first = plug.add(&one.node)?;
    let with_one = traces(one)?;
    for _ in 0..100 {
        let again = plug.add(&one.node)?;
        ensure!(again == first, "{again}, first {first}");
    }
    let after = traces(one)?;
    ensure!(after == with_one, "{after:?}, not {with_one:?}");
    plug.del(&one.node)
}

fn check_looks(one: &mut OneNode) -> Result<()> {
    let plug = Plug::new(&one.node, "front")?;
    let result = plug.add(&one.node)?;
    plug.call(&one.node, "CHECK", &result)?.success().context("CHECK of a sound attachment")?;
    let mut command = Command::new("ip");
    command.args(["address", "flush", "dev", CONTAINER_IFNAME, "scope", "global"]);
    kit::run(plug.netns().namespace(), command)?.success()?;
    let finished = plug.call(&one.node, "CHECK", &result)?;
    let msg = refusal(&finished, 999)?;
    let text = format!("address {} is missing", result["ips"][0]["address"].as_str().unwrap_or(""));
    ensure!(msg.contains(&text), "{msg}, not {text}");
    let netlink = plug.netns().netlink()?;
    netlink.delete_link(netlink.link_by_name(CONTAINER_IFNAME)?.context("no eth0")?.index)?;
    let msg = refusal(&plug.call(&one.node, "CHECK", &result)?, 999)?;
    ensure!(msg.contains(CONTAINER_IFNAME), "the interface is gone, not {msg}");
    plug.del(&one.node)?;
    let finished = plug.call(&one.node, "CHECK", &result)?;
    refusal(&finished, 3).context("CHECK after DEL")?;
    Ok(())
}

fn del_repeats(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let never_added = Plug::new(&one.node, "front")?;
    never_added.del(&one.node).context("without ADD")?;

    let twice = Plug::new(&one.node, "front")?;
    twice.add(&one.node)?;
    twice.del(&one.node)?;
    again(one, &before)?;
    twice.del(&one.node).context("for the second time")?;

    let mut unnamed = Plug::new(&one.node, "front")?;
    unnamed.add(&one.node)?;
    unnamed.path = "".into();
    unnamed.del(&one.node).context("with an empty CNI_NETNS")?;
    again(one, &before)?;

    // As after a crash of the container: its namespace goes, and the device with it.
    let crashed = Plug::new(&one.node, "front")?;
    crashed.add(&one.node)?;
    let mut gone = Plug::new(&one.node, "front")?;
    (gone.id, gone.path) = (crashed.id.clone(), crashed.path.clone());
    drop(crashed);
    gone.del(&one.node).context("with the namespace gone")?;
    gone.del(&one.node).context("with the namespace gone, again")?;
    again(one, &before)
}

fn versions(one: &mut OneNode) -> Result<()> {
    let mut plug = Plug::new(&one.node, "front")?;
    for version in VERSIONS {
        plug.config["cniVersion"] = json!(version);
        let text = plug.call(&one.node, "VERSION", &Value::Null)?.success()?;
        let answer: Value = serde_json::from_str(&text)?;
        ensure!(answer["cniVersion"] == version, "{answer}");
        let supported = answer["supportedVersions"].as_array().context("no supportedVersions")?;
        ensure!(VERSIONS.iter().all(|v| supported.contains(&json!(v))), "{answer}");
        let result = plug.add(&one.node).with_context(|| format!("version {version}"))?;
        ensure!(result["cniVersion"] == version, "{result}");
        let (old, new) = (version.starts_with('0'), version == "1.1.0");
        let family = result["ips"][0].get("version");
        ensure!(family == old.then_some(&json!("4")), "ips in {version}: {result}");
        let mtu = result["interfaces"][1].get("mtu");
        ensure!(mtu == new.then_some(&json!(MTU)), "mtu in {version}: {result}");
        if !version.starts_with("0.3") {
            plug.call(&one.node, "CHECK", &result)?
                .success()
                .with_context(|| format!("CHECK {version}"))?;
        }
        plug.del(&one.node)?;
    }
    plug.config["cniVersion"] = json!("0.3.1");
    plug.refused(&one.node, "CHECK", 1).context("CHECK came with 0.4.0")?;
    plug.config["cniVersion"] = json!("9.9.9");
    plug.refused(&one.node, "ADD", 1).context("an unknown version")?;
    Ok(())
}

fn gc(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let (kept, lost) = (Plug::new(&one.node, "front")?, Plug::new(&one.node, "front")?);
    kept.add(&one.node)?;
    let with_kept = traces(one)?;
    lost.add(&one.node)?;
    let mut other = Plug::new(&one.node, "front")?;
    other.config["cni.dev/valid-attachments"] =
        json!([{"containerID": kept.id, "ifname": kept.ifname}]);
    other.config["name"] = json!("elsewhere");
    let with_both = traces(one)?;
    other.call(&one.node, "GC", &Value::Null)?.success().context("GC of another configuration")?;
    ensure!(traces(one)? == with_both, "GC reaches into another configuration");
    other.config["name"] = kept.config["name"].clone();
    other.call(&one.node, "GC", &Value::Null)?.success().context("GC")?;
    again(one, &with_kept).context("after GC")?;
    kept.del(&one.node)?;
    again(one, &before)
}

fn status(one: &mut OneNode) -> Result<()> {
    let ask =
        |one: &OneNode| Plug::new(&one.node, "front")?.call(&one.node, "STATUS", &Value::Null);
    ask(one)?.success().context("with every daemon")?;
    one.node.stop(Daemon::Vrouterd)?;
    let limited = || refusal(&ask(one).ok()?, 51).ok();
    let msg = wait_until(BOUND, "netplugin to miss vrouterd", limited)?;
    ensure!(msg.contains("vrouterd"), "{msg}");
    one.node.start(Daemon::Vrouterd)?;
    wait_until(BOUND, "vrouterd to be found", || ask(one).ok()?.success().ok())?;
    one.node.stop(Daemon::Netmaster)?;
    let unavailable = || refusal(&ask(one).ok()?, 50).ok();
    let msg = wait_until(BOUND, "netplugin to miss netmaster", unavailable)?;
    ensure!(msg.contains("netmaster"), "{msg}");
    one.node.start(Daemon::Netmaster)?;
    wait_until(BOUND, "netmaster to be found", || ask(one).ok()?.success().ok())?;
    full_network(one)
}

/// One address beside the gateway's.
fn full_network(one: &OneNode) -> Result<()> {
    configure(&one.node, &["network create -t blue -s 10.1.9.0/30 -g 10.1.9.2 tiny"])?;
    let [plug, other] = [Plug::new(&one.node, "tiny")?, Plug::new(&one.node, "tiny")?];
    let ask = || other.call(&one.node, "STATUS", &Value::Null);
    ask()?.success().context("with an address")?;
    plug.add(&one.node)?;
    let said = wait_until(BOUND, "the node to know", || refusal(&ask().ok()?, 50).ok())?;
    ensure!(said.contains("network tiny of tenant blue has no free address"), "{said}");
    other.refused(&one.node, "ADD", 101)?;
    plug.del(&one.node)?;
    wait_until(BOUND, "the address to be free", || ask().ok()?.success().ok())?;
    Ok(())
}

fn parallel_adds(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let plugs = (0..6).map(|_| Plug::new(&one.node, "front")).collect::<Result<Vec<_>>>()?;
    let results = at_once(&plugs, |plug| plug.add(&one.node))?;
    let addresses = results.iter().map(address).collect::<Result<BTreeSet<_>>>()?;
    ensure!(addresses.len() == 6, "{addresses:?}");
    for plug in &plugs {
        for address in &addresses {
            let seen = ping(plug.netns().namespace(), *address, 1)?;
            ensure!(seen.received == 1, "{} does not reach {address}", plug.id);
        }
    }
    at_once(&plugs, |plug| plug.del(&one.node))?;
    again(one, &before)
}

fn at_once<T: Send>(plugs: &[Plug], call: impl Fn(&Plug) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let calls: Vec<_> = plugs.iter().map(|plug| scope.spawn(|| call(plug))).collect();
        let results = calls.into_iter().map(thread::ScopedJoinHandle::join);
        results.map(|result| result.map_err(|_panic| anyhow!("a thread panicked"))?).collect()
    })
}

fn fixed_address(one: &mut OneNode) -> Result<()> {
    let mut plug = Plug::new(&one.node, "front")?;
    plug.args = "IgnoreUnknown=1;IP=10.1.1.77;MAC=02:11:22:33:44:55;K8S_POD_NAME=web-0".into();
    let result = plug.add(&one.node)?;
    ensure!(result["ips"][0]["address"] == "10.1.1.77/24", "{result}");
    ensure!(result["interfaces"][1]["mac"] == "02:11:22:33:44:55", "{result}");
    ensure!(ping(plug.netns().namespace(), GATEWAY, 1)?.received == 1, "the gateway is silent");
    plug.del(&one.node)?;
    plug.args = "IP=10.1.1.78/24;WEIR_GROUP=web".into();
    let result = plug.add(&one.node)?;
    ensure!(result["ips"][0]["address"] == "10.1.1.78/24", "{result}");
    let id = format!("{}:{CONTAINER_IFNAME}", plug.id);
    let endpoint = netctl_json(&one.node, &format!("endpoint inspect {id}"))?;
    ensure!(endpoint["Config"]["endpointGroup"] == "web", "{endpoint}");
    plug.del(&one.node)
}

fn second_interface(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let first = Plug::new(&one.node, "front")?;
    first.add(&one.node)?;
    let mut second = Plug::new(&one.node, "back")?;
    (second.id, second.path, second.ifname) = (first.id.clone(), first.path.clone(), "eth1");
    let result = second.add(&one.node)?;
    ensure!(result["interfaces"][1]["name"] == "eth1", "{result}");
    // Network back has no gateway.
    ensure!(result.get("routes").is_none(), "{result}");
    ensure!(result["ips"][0].get("gateway").is_none(), "{result}");
    let back = Plug::new(&one.node, "back")?;
    let there = address(&back.add(&one.node)?)?;
    let seen = ping(first.netns().namespace(), there, 1)?;
    ensure!(seen.received == 1, "eth1 does not reach {there}");
    second.del(&one.node)?;
    let left = first.netns().netlink()?;
    let gone = || left.link_by_name("eth1").ok()?.is_none().then_some(());
    wait_until(BOUND, "eth1 to be gone", gone)?;
    ensure!(left.link_by_name(CONTAINER_IFNAME)?.is_some(), "DEL of eth1 takes eth0");
    ensure!(ping(first.netns().namespace(), GATEWAY, 1)?.received == 1, "eth0 went dead");
    first.del(&one.node)?;
    back.del(&one.node)?;
    again(one, &before)
}

/// Contiv's DEL asks the API server, and says that all is well whatever happens.
fn del_alone(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let plug = Plug::new(&one.node, "front")?;
    let result = plug.add(&one.node)?;
    one.node.stop(Daemon::Netmaster)?;
    let finished = plug.call(&one.node, "DEL", &result)?;
    finished.success().context("DEL without netmaster")?;
    let host = result["interfaces"][0]["name"].as_str().context("no host interface")?;
    let gone = || (!links(&one.node).ok()?.contains(&host.to_owned())).then_some(());
    wait_until(BOUND, "the link to be gone", gone)?;
    let inside = plug.netns().netlink()?.link_by_name(CONTAINER_IFNAME)?;
    ensure!(inside.is_none(), "DEL leaves {inside:?}");
    one.node.start(Daemon::Netmaster)?;
    again(one, &before)
}
