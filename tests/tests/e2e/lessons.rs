//! What other plugins learned the hard way (lesson N: the numbered list of lessons in the reference
//! that the CNI issue names), where no other module has the scene for it.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kit::{
    CONTAINER_IFNAME, Daemon, DirGuard, OneNode, Purpose, Topology, UPLINK, binary, ping, run,
    wait_until,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::Test;
use crate::runtime::{Plug, Traces, refusal};
use crate::shared::sharing;
use crate::site::{BOUND, configure};

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("cni_1_lesson_2_what_netplugin_knows_survives_its_run_directory", run_dir_lost),
            ("cni_1_lesson_5_a_del_without_netplugin_succeeds_and_is_done_at_its_start", queued),
            (
                "cni_1_lesson_5_a_queued_del_does_not_hit_the_attachment_that_follows",
                queued_then_added,
            ),
            ("cni_1_lesson_5_without_a_queue_the_del_says_who_is_missing", no_queue),
            ("cni_1_lesson_6_a_del_that_no_retry_can_help_succeeds", helpless),
            ("cni_1_lesson_7_check_without_netplugin_asks_to_try_again", check_without),
            ("cni_1_lesson_8_check_does_not_mind_what_udev_does_to_the_host_end", host_end_changed),
            ("cni_1_check_fails_while_either_end_is_down_and_the_hosts_comes_back", end_down),
            ("cni_1_lesson_9_the_del_of_an_old_sandbox_leaves_the_new_one_alone", old_sandbox),
            ("cni_1_lesson_10_a_namespace_path_that_came_to_another_is_noticed", recycled),
            ("cni_1_lesson_13_both_ends_follow_the_underlay_less_its_encapsulation", mtu),
            ("cni_1_the_plugin_is_under_8_mb_and_starts_in_under_5_ms", small_and_quick),
            ("cni_1_lesson_15_an_installed_plugin_deletes_while_the_daemons_are_away", installed),
            ("cni_1_lesson_17_a_storm_of_adds_does_not_starve_a_del", storm),
        ],
    )
}

fn build() -> Result<OneNode> {
    let one = Topology::new(Purpose::Test).one_node()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "network create -t blue -e vlan -p 20 -s 10.1.2.0/24 wire",
    ];
    configure(&one.node, &lines)?;
    Ok(one)
}

fn traces(one: &OneNode) -> Result<Traces> {
    Traces::of(&one.node, &["front"])
}

fn settled(one: &OneNode, before: &Traces) -> Result<()> {
    before.again(&one.node, &["front"])
}

fn works(plug: &Plug) -> Result<()> {
    let seen = ping(plug.netns().namespace(), Ipv4Addr::new(10, 1, 1, 254), 1)?;
    ensure!(seen.received == 1, "the gateway is silent to {}", plug.id);
    Ok(())
}

/// As a reboot does it: /run is empty, /var/lib is not.
fn run_dir_lost(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let plug = Plug::new(&one.node, "front")?;
    let result = plug.add(&one.node)?;
    one.node.stop(Daemon::Netplugin)?;
    for entry in fs::read_dir(one.node.run_dir())? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().contains("cni")) {
            fs::remove_file(path)?;
        }
    }
    one.node.start(Daemon::Netplugin)?;
    plug.call(&one.node, "CHECK", &result)?.success().context("CHECK after the restart")?;
    plug.del(&one.node)?;
    settled(one, &before)
}

fn queued(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let (first, second) = (Plug::new(&one.node, "front")?, Plug::new(&one.node, "front")?);
    first.add(&one.node)?;
    second.add(&one.node)?;
    for how in [Daemon::Netplugin, Daemon::Netmaster] {
        // With netmaster away too, the address is freed once it is back.
        if how == Daemon::Netmaster {
            one.node.stop(Daemon::Netmaster)?;
        }
        one.node.kill(Daemon::Netplugin)?;
        let plug = if how == Daemon::Netplugin { &first } else { &second };
        plug.del_unheard(&one.node).context("DEL without netplugin")?;
        plug.del_unheard(&one.node).context("DEL without netplugin, again")?;
        let entry = format!("cni-queue/{}:{CONTAINER_IFNAME}.delete", plug.id);
        ensure!(one.node.state_dir().join(&entry).exists(), "no {entry}");
        one.node.start_unready(Daemon::Netplugin)?;
        ensure!(!one.node.state_dir().join(&entry).exists(), "{entry} is still there");
        if how == Daemon::Netmaster {
            one.node.start(Daemon::Netmaster)?;
        } else {
            works(&second).context("the other container")?;
        }
    }
    settled(one, &before)?;
    let left = first.netns().netlink()?.link_by_name(CONTAINER_IFNAME)?;
    ensure!(left.is_none(), "{left:?} is left in the container");
    Ok(())
}

/// podman restarts a container under its id, in a new namespace.
fn queued_then_added(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let old = Plug::new(&one.node, "front")?;
    old.add(&one.node)?;
    let mut new = Plug::new(&one.node, "front")?;
    new.id.clone_from(&old.id);
    one.node.kill(Daemon::Netplugin)?;
    old.del_unheard(&one.node)?;
    drop(old);
    one.node.start(Daemon::Netplugin)?;
    let result = new.add(&one.node)?;
    works(&new)?;
    let queue = fs::read_dir(one.node.state_dir().join("cni-queue"))?;
    let left: Vec<_> = queue.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    ensure!(left == ["lock"], "{left:?} can still come of the queue");
    new.call(&one.node, "CHECK", &result)?.success().context("CHECK of the new one")?;
    works(&new)?;
    new.del(&one.node)?;
    settled(one, &before)
}

fn no_queue(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let mut plug = Plug::new(&one.node, "front")?;
    plug.add(&one.node)?;
    one.node.stop(Daemon::Netplugin)?;
    let state_dir = std::mem::replace(&mut plug.config["stateDir"], json!("/dev/null"));
    let msg = plug.refused(&one.node, "DEL", 100)?;
    ensure!(msg.contains("netplugin") && msg.contains("start it"), "{msg}");
    one.node.start(Daemon::Netplugin)?;
    plug.config["stateDir"] = state_dir;
    plug.del(&one.node)?;
    settled(one, &before)
}

fn check_without(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let plug = Plug::new(&one.node, "front")?;
    let result = plug.add(&one.node)?;
    one.node.stop(Daemon::Netplugin)?;
    refusal(&plug.call(&one.node, "CHECK", &result)?, 11)?;
    one.node.start(Daemon::Netplugin)?;
    plug.call(&one.node, "CHECK", &result)?.success().context("CHECK")?;
    plug.del(&one.node)?;
    settled(one, &before)
}

fn host_end_changed(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let plug = Plug::new(&one.node, "front")?;
    let result = plug.add(&one.node)?;
    let host = result["interfaces"][0]["name"].as_str().context("no host end")?;
    let mut command = Command::new("ip");
    command.args(["link", "set", host, "address", "0a:00:00:00:0b:ad"]);
    run(one.node.namespace(), command)?.success()?;
    plug.call(&one.node, "CHECK", &result)?.success().context("CHECK")?;
    works(&plug)?;
    plug.del(&one.node)?;
    settled(one, &before)
}

/// No packet passes, whatever addresses say. The host's end is netplugin's to set up, the other is not.
fn end_down(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let fails = |one: &OneNode, plug: &Plug, result: &Value, what: &str| -> Result<()> {
        let said = refusal(&plug.call(&one.node, "CHECK", result)?, 999)?;
        ensure!(said.contains(what), "CHECK: {said}");
        Ok(())
    };
    // The container's routes go with its end, and are its own to bring back.
    let plug = Plug::new(&one.node, "front")?;
    let result = plug.add(&one.node)?;
    let inside = plug.netns().netlink()?;
    inside.set_down(inside.link_by_name(CONTAINER_IFNAME)?.context("no eth0")?.index)?;
    fails(one, &plug, &result, "the container's end is down")?;
    plug.del(&one.node)?;
    let plug = Plug::new(&one.node, "front")?;
    let result = plug.add(&one.node)?;
    let host = result["interfaces"][0]["name"].as_str().context("no host end")?;
    let netlink = one.node.netns().netlink()?;
    netlink.set_down(netlink.link_by_name(host)?.context("no host end")?.index)?;
    fails(one, &plug, &result, "the host end, is down")?;
    let is_up = || netlink.link_by_name(host).ok()??.up.then_some(());
    wait_until(BOUND, "the host end to be up again", is_up)?;
    works(&plug)?;
    plug.del(&one.node)?;
    settled(one, &before)
}

/// What is wrong with a DEL.
type Spoil = (&'static str, fn(&mut Plug));

/// kubelet repeats a DEL that fails for as long as it takes; meanwhile the pod is terminating.
fn helpless(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let spoil: [Spoil; 6] = [
        ("a tenant that is gone", |plug| plug.config["tenant"] = json!("nobody")),
        ("a network that is gone", |plug| plug.config["network"] = json!("nowhere")),
        ("no network", |plug| plug.config["network"] = json!("")),
        ("a file that is no namespace", |plug| plug.path = "/etc/hostname".into()),
        ("a port of SCTP, which ADD refuses", |plug| {
            let port = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "sctp" });
            plug.config["runtimeConfig"] = json!({ "portMappings": [port] });
        }),
        ("a result that says nothing", |plug| {
            plug.config["prevResult"] = json!({ "cniVersion": "1.1.0" });
        }),
    ];
    for (what, spoil) in spoil {
        let mut plug = Plug::new(&one.node, "front")?;
        plug.add(&one.node)?;
        spoil(&mut plug);
        plug.del(&one.node).with_context(|| format!("DEL with {what}"))?;
    }
    let unplugged = Plug::new(&one.node, "front")?;
    let result = unplugged.add(&one.node)?;
    let host = result["interfaces"][0]["name"].as_str().context("no host end")?;
    let netlink = one.node.netns().netlink()?;
    netlink.delete_link(netlink.link_by_name(host)?.context("no such link")?.index)?;
    unplugged.del(&one.node).context("DEL with the link removed by somebody")?;
    settled(one, &before)
}

/// As when a PID is given to another process: the path leads to another namespace than at the ADD.
fn recycled(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let (old, other) = (Plug::new(&one.node, "front")?, Plug::new(&one.node, "front")?);
    let result = old.add(&one.node)?;
    let mut pair = Command::new("ip");
    pair.args(["link", "add", CONTAINER_IFNAME, "type", "veth", "peer", "name", "far0"]);
    run(other.netns().namespace(), pair)?.success()?;
    umount2(&old.path, MntFlags::MNT_DETACH)?;
    mount(Some(&other.path), &old.path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    let msg = refusal(&old.call(&one.node, "CHECK", &result)?, 999)?;
    ensure!(msg.contains("is not the namespace this attachment was made in"), "{msg}");
    old.del(&one.node)?;
    let innocent = other.netns().netlink()?.link_by_name(CONTAINER_IFNAME)?;
    ensure!(innocent.is_some(), "the DEL took an interface of somebody else's");
    settled(one, &before)
}

fn mtu(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let netlink = one.node.netns().netlink()?;
    let uplink = netlink.link_by_name(UPLINK)?.context("no uplink")?;
    // VXLAN over IPv4 takes 50 bytes, a VLAN none (the tag is not the IP packet's).
    for (underlay, network, wanted) in
        [(uplink.mtu, "front", uplink.mtu - 50), (1400, "front", 1350), (1400, "wire", 1400)]
    {
        netlink.set_mtu(uplink.index, underlay)?;
        let plug = Plug::new(&one.node, network)?;
        let result = plug.add(&one.node)?;
        let host = result["interfaces"][0]["name"].as_str().context("no host end")?;
        let outside = netlink.link_by_name(host)?.context("no host end")?;
        let inside = plug.netns().netlink()?.link_by_name(CONTAINER_IFNAME)?.context("no eth0")?;
        ensure!([outside.mtu, inside.mtu] == [wanted; 2], "{outside:?}, {inside:?}, not {wanted}");
        plug.del(&one.node)?;
    }
    netlink.set_mtu(uplink.index, uplink.mtu)?;
    settled(one, &before)
}

fn small_and_quick(one: &mut OneNode) -> Result<()> {
    let bytes = fs::metadata(binary("weir-cni")?)?.len();
    ensure!(bytes < 8 << 20, "{bytes} bytes");
    let mut ldd = Command::new("ldd");
    ldd.arg(binary("weir-cni")?);
    let needed = run(one.node.namespace(), ldd)?.success()?;
    // Every host has these: it is copied into the host's file system and runs there.
    let everywhere = ["linux-vdso", "libgcc_s", "libm.", "libc.", "ld-linux", "statically"];
    let odd = needed.lines().find(|line| !everywhere.iter().any(|name| line.contains(name)));
    ensure!(odd.is_none(), "weir-cni needs {odd:?}");
    let plug = Plug::new(&one.node, "front")?;
    let version = |_| -> Result<Duration> {
        let started = Instant::now();
        plug.call(&one.node, "VERSION", &Value::Null)?.success()?;
        Ok(started.elapsed())
    };
    let mut times = (0..51).map(version).collect::<Result<Vec<_>>>()?;
    times.sort();
    ensure!(times[25] < Duration::from_millis(5), "the median of 51 starts is {:?}", times[25]);
    Ok(())
}

/// As a runtime does it: the program and the keys that `weir-cni install` has put in place.
fn installed(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let dir = DirGuard::new(Purpose::Test, "installed")?;
    let place = |one: &OneNode, command: &str, more: &[&str]| -> Result<String> {
        let mut install = Command::new(binary("weir-cni")?);
        install.arg(command).arg("--bin-dir").arg(dir.path().join("bin"));
        install.arg("--conf-dir").arg(dir.path().join("net.d")).args(more);
        run(one.node.namespace(), install)?.success()
    };
    let (socket, state) = (one.node.cni_socket(), one.node.state_dir());
    let (socket, state) = (socket.display().to_string(), state.display().to_string());
    let keys =
        ["--tenant", "blue", "--network", "front", "--socket", &socket, "--state-dir", &state];
    place(one, "install", &keys)?;
    let list = fs::read_to_string(dir.path().join("net.d/10-weir.conflist"))?;
    let list: Value = serde_json::from_str(&list)?;
    let mut plug = Plug::new(&one.node, "front")?;
    plug.config = list["plugins"][0].clone();
    (plug.config["name"], plug.config["cniVersion"]) = (list["name"].clone(), json!("1.1.0"));
    plug.add(&one.node)?;
    works(&plug)?;
    for daemon in [Daemon::Netplugin, Daemon::Netmaster] {
        one.node.stop(daemon)?;
    }
    ensure!(dir.path().join("bin/weir-cni").is_file(), "the plugin went with its daemons");
    plug.del_unheard(&one.node)?;
    one.node.start(Daemon::Netmaster)?;
    one.node.start(Daemon::Netplugin)?;
    settled(one, &before)?;
    place(one, "uninstall", &[])?;
    Ok(())
}

/// Two sandboxes of one pod overlap: only container ids tell them apart.
fn old_sandbox(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let (mut old, mut new) = (Plug::new(&one.node, "front")?, Plug::new(&one.node, "front")?);
    for plug in [&mut old, &mut new] {
        plug.args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0".into();
    }
    old.add(&one.node)?;
    let result = new.add(&one.node)?;
    old.del(&one.node)?;
    old.del(&one.node)?;
    new.call(&one.node, "CHECK", &result)?.success().context("CHECK of the new sandbox")?;
    // Its ADD, late: the namespace is gone by then.
    old.path = "/run/netns/wt-of-the-old-sandbox".into();
    old.refused(&one.node, "ADD", 8)?;
    works(&new)?;
    new.del(&one.node)?;
    settled(one, &before)
}

/// Every slot for ADDs is taken by one that waits for an engine that is away.
fn storm(one: &mut OneNode) -> Result<()> {
    let before = traces(one)?;
    let mut plug = Plug::new(&one.node, "front")?;
    plug.config["timeoutSeconds"] = json!(4);
    plug.add(&one.node)?;
    let add = |_| -> Result<Plug> {
        let mut plug = Plug::new(&one.node, "front")?;
        plug.config["timeoutSeconds"] = json!(4);
        Ok(plug)
    };
    let adds = (0..12).map(add).collect::<Result<Vec<Plug>>>()?;
    one.node.stop(Daemon::Vrouterd)?;
    let node = &one.node;
    let took = thread::scope(|scope| -> Result<Duration> {
        for add in &adds {
            scope.spawn(|| add.call(node, "ADD", &Value::Null));
        }
        let busy = || (crate::site::links(node).ok()?.len() > 8).then_some(());
        wait_until(BOUND, "ADDs to be under way", busy)?;
        let started = Instant::now();
        plug.del(node)?;
        Ok(started.elapsed())
    })?;
    one.node.start(Daemon::Vrouterd)?;
    ensure!(took < Duration::from_secs(1), "the DEL took {took:?}");
    for add in &adds {
        add.del(&one.node)?;
    }
    settled(one, &before)
}
