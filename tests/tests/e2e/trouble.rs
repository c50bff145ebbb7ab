//! Crashes, haste and pulled cables: what was half done is undone, and nobody else notices.

use std::net::Ipv4Addr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use kit::{Daemon, DirGuard, Flow, Node, Purpose, UPLINK, binary, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::Test;
use crate::runtime::{Plug, Traces, refusal};
use crate::shared::sharing;
use crate::site::{BOUND, Trio, all_connected, all_drops, attach, links, ports, reach};

const INTERVAL: Duration = Duration::from_millis(5);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 254);

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        Trio::build,
        &[
            ("ipam_4_an_add_that_netplugin_did_not_survive_is_undone", killed_in_add),
            ("ipam_4_adds_amid_a_crash_of_any_daemon_succeed_or_leave_nothing", crash_amid_adds),
            ("ipam_4_a_container_that_vanishes_is_cleaned_up", vanishes),
            ("cni_1_an_add_in_a_new_namespace_replaces_the_one_of_the_old", new_namespace),
            ("cni_1_add_and_del_of_one_attachment_at_once_leave_nothing", add_and_del),
            ("cni_1_lesson_11_a_daemon_that_hangs_does_not_hang_an_add", hangs),
            ("ipam_4_a_del_that_was_answered_outlives_netplugin", killed_after_del),
            ("ha_5_a_node_whose_daemons_all_crashed_comes_back_in_any_order", all_crashed),
            ("forty_adds_and_dels_in_four_threads_disturb_nobody", churn),
            ("a_second_daemon_in_the_same_place_is_refused_and_harms_nothing", second_daemon),
            ("the_overlay_comes_back_after_the_uplink_was_down", uplink_down),
            ("an_uplink_that_was_replaced_is_taken_again", uplink_replaced),
        ],
    )
}

impl Trio {
    fn traces(&self) -> Result<Traces> {
        Traces::of(&self.nodes.one, &["front"])
    }

    /// Waits until there is just what was before.
    fn settled(&self, before: &Traces) -> Result<()> {
        wait_until(BOUND, "everything to be as before", || {
            self.traces().ok().filter(|now| now == before)
        })
        .with_context(|| format!("{:?}, before {before:?}", self.traces()))?;
        all_connected(&self.nodes.one)?;
        self.sound()
    }

    /// Starts a daemon again that has crashed.
    fn revive(&mut self, daemon: Daemon) -> Result<()> {
        self.nodes.one.kill(daemon)?;
        match daemon {
            Daemon::Netplugin => self.nodes.one.start_unready(daemon),
            Daemon::Netmaster | Daemon::Vrouterd => self.nodes.one.start(daemon),
        }
    }
}

/// The ADD waits for an engine that is not there, with everything else done.
fn killed_in_add(scene: &mut Trio) -> Result<()> {
    let before = scene.traces()?;
    scene.nodes.one.stop(Daemon::Vrouterd)?;
    let links_before = links(&scene.nodes.one)?;
    let plug = Plug::new(&scene.nodes.one, "front")?;
    let netplugin = scene.nodes.one.process(Daemon::Netplugin)?.pid();
    let node = &scene.nodes.one;
    thread::scope(|scope| {
        let add = scope.spawn(|| plug.call(node, "ADD", &Value::Null));
        let made = || links(node).ok().filter(|now| *now != links_before);
        wait_until(BOUND, "the veth pair", made)?;
        kill(Pid::from_raw(netplugin.cast_signed()), Signal::SIGKILL)?;
        let finished = add.join().map_err(|_panic| anyhow!("the runtime panicked"))??;
        ensure!(finished.code == Some(1), "{finished:?}");
        anyhow::Ok(())
    })?;
    scene.nodes.one.start(Daemon::Vrouterd)?;
    scene.revive(Daemon::Netplugin)?;
    scene.settled(&before)?;
    // The runtime cleans up after its failed ADD, late.
    plug.del(&scene.nodes.one)?;
    plug.add(&scene.nodes.one).context("ADD again")?;
    plug.del(&scene.nodes.one)?;
    scene.settled(&before)
}

fn crash_amid_adds(scene: &mut Trio) -> Result<()> {
    let before = scene.traces()?;
    for daemon in [Daemon::Netmaster, Daemon::Netplugin, Daemon::Vrouterd] {
        for round in 0..3 {
            adds_with_crash(scene, daemon, Duration::from_millis(20 * round))
                .with_context(|| format!("{daemon:?}, round {round}"))?;
            scene.settled(&before).with_context(|| format!("{daemon:?}, round {round}"))?;
        }
    }
    Ok(())
}

fn adds_with_crash(scene: &mut Trio, daemon: Daemon, after: Duration) -> Result<()> {
    let plug = |_| {
        let mut plug = Plug::new(&scene.nodes.one, "front")?;
        plug.config["timeoutSeconds"] = json!(5);
        Ok(plug)
    };
    let plugs = (0..4).map(plug).collect::<Result<Vec<_>>>()?;
    let pid = Pid::from_raw(scene.nodes.one.process(daemon)?.pid().cast_signed());
    let node = &scene.nodes.one;
    let added = thread::scope(|scope| {
        let adds = plugs.iter().map(|plug| scope.spawn(|| plug.call(node, "ADD", &Value::Null)));
        let adds: Vec<_> = adds.collect();
        let start = Instant::now();
        wait_until(BOUND, "the moment", || (start.elapsed() >= after).then_some(()))?;
        kill(pid, Signal::SIGKILL)?;
        let joined = adds.into_iter().map(|add| add.join().map_err(|_panic| anyhow!("a panic"))?);
        joined.collect::<Result<Vec<_>>>()
    })?;
    scene.revive(daemon)?;
    scene.sound()?;
    for (plug, finished) in plugs.iter().zip(&added) {
        let node = &scene.nodes.one;
        if finished.code == Some(0) {
            let works =
                || Some(kit::ping(plug.netns().namespace(), GATEWAY, 1).ok()?.received == 1);
            wait_until(BOUND, "an attached container to work", || works().filter(|works| *works))?;
        }
        // A runtime calls DEL after an ADD that failed, too; it may have to repeat it.
        wait_until(BOUND, "DEL", || plug.del(node).ok())?;
    }
    Ok(())
}

fn vanishes(scene: &mut Trio) -> Result<()> {
    let before = scene.traces()?;
    let gone = attach(&scene.nodes.one, "gone", "front")?;
    let flow = Flow::start(scene.a.namespace(), scene.c.address(), INTERVAL)?;
    drop(gone);
    scene.settled(&before)?;
    let report = flow.stop()?;
    ensure!(report.received == report.sent, "{report:?}");
    Ok(())
}

/// As after a restart of a container whose DEL got lost.
fn new_namespace(scene: &mut Trio) -> Result<()> {
    let before = scene.traces()?;
    let node = &scene.nodes.one;
    let old = Plug::new(node, "front")?;
    old.add(node)?;
    let mut new = Plug::new(node, "front")?;
    new.id.clone_from(&old.id);
    let result = new.add(node)?;
    ensure!(result["interfaces"][1]["sandbox"] == new.path.display().to_string(), "{result}");
    let left = old.netns().netlink()?.link_by_name(kit::CONTAINER_IFNAME)?;
    ensure!(left.is_none(), "the old namespace keeps {left:?}");
    let seen = kit::ping(new.netns().namespace(), GATEWAY, 1)?;
    ensure!(seen.received == 1, "the new one does not work");
    new.del(node)?;
    scene.settled(&before)
}

/// As when a pod is deleted while it starts.
fn add_and_del(scene: &mut Trio) -> Result<()> {
    let before = scene.traces()?;
    let node = &scene.nodes.one;
    for _ in 0..10 {
        let plug = Plug::new(node, "front")?;
        thread::scope(|scope| {
            let calls = ["ADD", "DEL", "ADD", "DEL"]
                .map(|command| scope.spawn(|| plug.call(node, command, &Value::Null)));
            for call in calls {
                let finished = call.join().map_err(|_panic| anyhow!("a thread panicked"))??;
                ensure!(finished.code == Some(0), "{finished:?}");
            }
            Ok(())
        })?;
        plug.del(node)?;
        ensure!(scene.traces()? == before, "left {:?}, before {before:?}", scene.traces()?);
    }
    Ok(())
}

/// Contiv's plugin was the example of one that hangs and blocks the kubelet.
fn hangs(scene: &mut Trio) -> Result<()> {
    let before = scene.traces()?;
    for daemon in [Daemon::Vrouterd, Daemon::Netplugin, Daemon::Netmaster] {
        let mut plug = Plug::new(&scene.nodes.one, "front")?;
        plug.config["timeoutSeconds"] = json!(3);
        scene.nodes.one.process(daemon)?.signal(Signal::SIGSTOP)?;
        let start = Instant::now();
        let finished = plug.call(&scene.nodes.one, "ADD", &Value::Null);
        let took = start.elapsed();
        scene.nodes.one.process(daemon)?.signal(Signal::SIGCONT)?;
        refusal(&finished?, 11).with_context(|| format!("{daemon:?} hangs"))?;
        ensure!(took < Duration::from_secs(4), "{daemon:?} hangs, and ADD for {took:?}");
        let inside = plug.netns().netlink()?;
        let gone = || inside.link_by_name(kit::CONTAINER_IFNAME).ok()?.is_none().then_some(());
        wait_until(BOUND, "the half-made device to go", gone)?;
        scene.settled(&before).with_context(|| format!("{daemon:?} hung"))?;
    }
    // Who does not answer may be about to do it: nothing is queued, the runtime asks again.
    let mut plug = Plug::new(&scene.nodes.one, "front")?;
    plug.add(&scene.nodes.one)?;
    plug.config["timeoutSeconds"] = json!(1);
    scene.nodes.one.process(Daemon::Netplugin)?.signal(Signal::SIGSTOP)?;
    let finished = plug.call(&scene.nodes.one, "DEL", &Value::Null);
    scene.nodes.one.process(Daemon::Netplugin)?.signal(Signal::SIGCONT)?;
    refusal(&finished?, 11).context("netplugin hangs, and the DEL")?;
    plug.config["timeoutSeconds"] = json!(10);
    plug.del(&scene.nodes.one)?;
    scene.settled(&before)
}

/// The answer to a DEL is a promise: netplugin dies right after it, with netmaster away.
fn killed_after_del(scene: &mut Trio) -> Result<()> {
    let before = scene.traces()?;
    let plug = Plug::new(&scene.nodes.one, "front")?;
    plug.add(&scene.nodes.one)?;
    scene.nodes.one.kill(Daemon::Netmaster)?;
    plug.del_unheard(&scene.nodes.one)?;
    scene.nodes.one.kill(Daemon::Netplugin)?;
    scene.nodes.one.start_unready(Daemon::Netplugin)?;
    scene.nodes.one.start(Daemon::Netmaster)?;
    scene.settled(&before)
}

fn all_crashed(scene: &mut Trio) -> Result<()> {
    use Daemon::{Netmaster, Netplugin, Vrouterd};
    let before = scene.traces()?;
    for order in [
        [Netmaster, Vrouterd, Netplugin],
        [Netplugin, Vrouterd, Netmaster],
        [Vrouterd, Netplugin, Netmaster],
    ] {
        for daemon in order {
            scene.nodes.one.kill(daemon)?;
        }
        for daemon in order {
            scene.nodes.one.start_unready(daemon)?;
        }
        scene.settled(&before).with_context(|| format!("{order:?}"))?;
    }
    Ok(())
}

fn churn(scene: &mut Trio) -> Result<()> {
    let before = scene.traces()?;
    let node = &scene.nodes.one;
    let near = Flow::start(scene.a.namespace(), scene.b.address(), INTERVAL)?;
    let far = Flow::start(scene.c.namespace(), scene.a.address(), INTERVAL)?;
    let cycle = || {
        let plug = Plug::new(node, "front")?;
        plug.add(node)?;
        let seen = kit::ping(plug.netns().namespace(), scene.c.address(), 1)?;
        ensure!(
            seen.received == 1,
            "right after ADD {} does not reach c; drops {:?}, {:?}",
            plug.id,
            all_drops(node),
            all_drops(&scene.nodes.two)
        );
        plug.del(node)
    };
    thread::scope(|scope| {
        let threads = [(); 4].map(|()| scope.spawn(|| (0..10).try_for_each(|_| cycle())));
        let joined = threads.map(|t| t.join().map_err(|_panic| anyhow!("a thread panicked"))?);
        joined.into_iter().collect::<Result<()>>()
    })?;
    for flow in [near, far] {
        let report = flow.stop()?;
        ensure!(report.received == report.sent, "{report:?}");
    }
    scene.settled(&before)
}

fn second_daemon(scene: &mut Trio) -> Result<()> {
    let before = scene.traces()?;
    let flow = Flow::start(scene.a.namespace(), scene.c.address(), INTERVAL)?;
    for daemon in [Daemon::Vrouterd, Daemon::Netplugin, Daemon::Netmaster] {
        let dir = DirGuard::new(Purpose::Test, "second")?;
        let config = dir.path().join("empty.toml");
        std::fs::write(&config, "")?;
        let node = &scene.nodes.one;
        let mut command = Command::new(binary(daemon.name())?);
        command.arg("--config").arg(config);
        command.arg("--run-dir").arg(node.run_dir()).arg("--state-dir").arg(node.state_dir());
        match daemon {
            Daemon::Netmaster => drop(command.args(["--listen", "10.250.0.1:9999", "--plaintext"])),
            Daemon::Netplugin => drop(command.args(["--node", "node1"])),
            Daemon::Vrouterd => {}
        }
        let finished = kit::run(node.namespace(), command)?;
        ensure!(finished.code.is_some_and(|code| code != 0), "{daemon:?}: {finished:?}");
        ensure!(!finished.stderr.is_empty(), "{daemon:?} does not say why");
        ensure!(!finished.stderr.contains("panicked"), "{daemon:?}: {finished:?}");
        ensure!(scene.nodes.one.process(daemon)?.is_running()?, "the first {daemon:?} ended");
        ensure!(scene.traces()? == before, "{daemon:?} leaves {:?}", scene.traces()?);
    }
    let report = flow.stop()?;
    ensure!(report.received == report.sent, "{report:?}");
    Ok(())
}

fn set_uplink(node: &Node, state: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["link", "set", UPLINK, state]);
    kit::run(node.namespace(), command)?.success().map(drop)
}

fn uplink_down(scene: &mut Trio) -> Result<()> {
    for _ in 0..2 {
        set_uplink(&scene.nodes.one, "down")?;
        reach(&scene.a, scene.b.address()).context("on the node, without uplink")?;
        ensure!(
            reach(&scene.a, scene.c.address()).is_err(),
            "the uplink is down: this tests nothing"
        );
        set_uplink(&scene.nodes.one, "up")?;
        scene.sound().context("after the uplink came back")?;
    }
    Ok(())
}

/// The device is taken out and another one of the same name put in.
fn uplink_replaced(scene: &mut Trio) -> Result<()> {
    let ports_before = ports(&scene.nodes.one)?;
    let netlink = scene.nodes.one.netns().netlink()?;
    let old = netlink.link_by_name(UPLINK)?.context("no uplink")?;
    netlink.delete_link(old.index)?;
    reach(&scene.a, scene.b.address()).context("on the node, without uplink")?;
    scene.nodes.join(1500)?;
    scene.sound().context("with the new uplink")?;
    ensure!(ports(&scene.nodes.one)? == ports_before, "{:?}", ports(&scene.nodes.one)?);
    Ok(())
}
