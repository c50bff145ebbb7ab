//! Several netmasters on an etcd of three members: what is killed, stopped, paused, cut off or
//! restored costs no acknowledged write and no packet. And the loss of a store that is one file.

mod file;
mod members;
mod plug;
mod sites;
mod writer;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use kit::{
    Container, ContainerSpec, Daemon, DirGuard, Flow, Node, Purpose, Topology, TwoNodes, wait_until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Test;
use crate::foreign::Suite;
use crate::metrics::{has_request, last_id};
use crate::shared::sharing;
use crate::site::{BOUND, attach, links, reach_soon};
use sites::{SITES, Site, Sites, netmaster_urls};
use writer::Writer;

pub(crate) use file::tests as without_etcd;

/// What runs where etcd is installed.
pub(crate) const SUITE: Suite = (&["etcd", "etcdctl"], tests);

/// The lease is 5 s, and etcd looks for ended ones twice a second.
const KILLED: Duration = Duration::from_secs(10);
/// The same again where etcd has to elect a leader of its own first, which gives every lease its whole
/// time anew.
const CUT_OFF: Duration = Duration::from_secs(20);
/// A lease's time and the last answer before it, on a busy machine.
const UNHEARD: Duration = Duration::from_secs(8);
const RESIGNED: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(20);
const RULES: usize = 1000;
const ALL: [usize; SITES] = [0, 1, 2];
/// Numbers of the nodes at the switch.
const NODES: [usize; 2] = [11, 12];

fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("ha_4_a_killed_leader_is_replaced_within_ten_seconds", leader_killed),
            ("ha_4_a_stopped_leader_is_replaced_within_a_second", leader_stopped),
            ("pol_6_1000_rules_are_there_whole_or_not_when_their_leader_is_killed", killed_amid),
            ("ha_4_a_leader_paused_past_its_lease_answers_and_writes_nothing", leader_paused),
            ("ha_5_a_leader_cut_off_with_a_minority_of_etcd_is_replaced", minority),
            (
                "ha_1_a_node_cut_off_from_the_control_plane_forwards_and_is_waited_for_no_more",
                plug::pulled,
            ),
            ("ha_5_a_killed_member_of_etcd_costs_no_write_and_no_packet", members::killed),
            ("ha_5_a_paused_member_of_etcd_costs_no_write_and_no_packet", members::paused),
            ("ha_5_a_store_that_was_paused_loses_nothing", store_paused),
            ("ha_5_a_store_restored_from_a_backup_gets_its_containers_back", restored),
            ("ha_1_every_netmaster_and_the_store_down_costs_no_packet", all_down),
            ("met_1_an_add_through_a_follower_has_one_id_in_every_log", one_id),
        ],
    )
}

/// Containers a and b on node 1, c on node 2; the control plane on three machines of its own.
#[derive(Debug)]
struct Scene {
    a: Container,
    b: Container,
    c: Container,
    nodes: TwoNodes,
    sites: Sites,
    /// Names objects that a sentence makes and leaves.
    serial: u32,
}

fn build() -> Result<Scene> {
    let mut sites = Sites::new()?;
    sites.start()?;
    let topology = Topology::new(Purpose::Test).netmasters(netmaster_urls());
    let mut nodes = topology.two_nodes_stopped()?;
    for (node, number) in [&mut nodes.one, &mut nodes.two].into_iter().zip(NODES) {
        sites.join(node.namespace(), number)?;
        node.start(Daemon::Vrouterd)?;
        node.start(Daemon::Netplugin)?;
    }
    for line in [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "policy create -t blue guard",
        "policy rule-add -t blue -d in -l tcp -P 80 -j deny guard 1",
        "group create -t blue -p guard front web",
        "netprofile create -t blue -b 1Gbps -d 10 paced",
        "app-profile create -t blue -g web shop",
        "service create -t blue -s front -l app=shop -p 80:8080:TCP -ip 10.1.1.99 window",
        "bgp create leaf --router-ip 10.9.0.1/24 --as 65001 --neighbor-as 65002 --neighbor 10.9.0.2",
        "global set -v 100-4000",
        "ip reserve -t blue --ip 10.1.1.77 front db",
    ] {
        sites.all[0].netctl(line)?;
    }
    let a = attach(&nodes.one, "a", "front")?;
    let b = attach(&nodes.one, "b", "front")?;
    let c = attach(&nodes.two, "c", "front")?;
    reach_soon(&a, c.address())?;
    Ok(Scene { a, b, c, nodes, sites, serial: 0 })
}

impl Scene {
    /// Does something to the control plane under traffic on node 1 and to node 2, and with a client
    /// that writes all the time: no packet is lost, no acknowledged write is, none is done twice.
    fn harmless(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let near = Flow::start(self.a.namespace(), self.b.address(), INTERVAL)?;
        let far = Flow::start(self.c.namespace(), self.a.address(), INTERVAL)?;
        self.serial += 1;
        let writer = Writer::start(&netmaster_urls(), &self.nodes.one, self.serial);
        let worked = work(self);
        let followed = worked.and_then(|()| self.followed()).and_then(|()| writer.goes_on());
        let acknowledged = writer.stop()?;
        followed?;
        self.same()?;
        for flow in [near, far] {
            let report = flow.stop()?;
            ensure!(report.received == report.sent, "{report:?}");
        }
        let first = &self.sites.all[0];
        let networks = first.netctl_json("network ls -t blue")?;
        acknowledged.check(&networks, &first.netctl_json("ip ls -t blue")?)?;
        self.sound()
    }

    /// Waits until every node follows a leader.
    fn followed(&self) -> Result<()> {
        self.sites.leader()?;
        let connected = || {
            let nodes = self.sites.all[0].netctl_json("node ls").ok()?;
            let nodes = nodes.as_array()?;
            (nodes.len() == 2 && nodes.iter().all(|node| node["connected"] == true)).then_some(())
        };
        wait_until(BOUND, "both nodes to follow", connected)?;
        Ok(())
    }

    /// Waits until every site shows the same.
    fn same(&self) -> Result<()> {
        let same = || self.sites.configuration(&ALL).ok();
        wait_until(BOUND, "every site to show the same", same)
            .with_context(|| format!("{:?}", self.sites.configuration(&ALL)))
            .map(drop)
    }

    /// How many snapshots each node has been sent.
    fn snapshots(&self) -> Result<[usize; 2]> {
        let count = |node: &Node| {
            let log = node.log(Daemon::Netplugin)?;
            let is_one = |line: &&str| line.contains("netmaster sends everything");
            anyhow::Ok(log.lines().filter(is_one).count())
        };
        Ok([count(&self.nodes.one)?, count(&self.nodes.two)?])
    }

    fn sound(&self) -> Result<()> {
        for (from, to) in [(&self.a, &self.b), (&self.a, &self.c), (&self.c, &self.b)] {
            reach_soon(from, to.address())?;
        }
        let d = attach(&self.nodes.two, "d", "front")?;
        reach_soon(&d, self.a.address())?;
        d.detach(&self.nodes.two)
    }

    fn others(leader: usize) -> Vec<usize> {
        ALL.into_iter().filter(|site| *site != leader).collect()
    }

    /// A write that nobody has made before.
    fn fresh_write(&mut self) -> String {
        self.serial += 1;
        format!("tenant create t{}", self.serial)
    }
}

fn leader_killed(scene: &mut Scene) -> Result<()> {
    let sent = scene.snapshots()?;
    scene.harmless(|scene| {
        let leader = scene.sites.leader()?;
        let others = Scene::others(leader);
        let before = scene.sites.objects(leader)?;
        scene.sites.all[leader].kill_netmaster()?;
        let write = scene.fresh_write();
        let (node, sites) = (&scene.nodes.one, &scene.sites);
        let (took, site) = thread::scope(|scope| {
            let add = scope.spawn(|| attach(node, "late", "front"));
            let accepted = sites.accepted(&others, &write)?;
            let added = add.join().map_err(|_panic| anyhow!("a thread panicked"))?;
            added.context("an ADD while nobody leads")?.detach(node)?;
            anyhow::Ok(accepted)
        })?;
        ensure!(took <= KILLED, "the next leader accepted a write after {took:?}");
        // Others only write what is new.
        let after = scene.sites.objects(site)?;
        let lost: Vec<_> = before.iter().filter(|object| !after.contains(object)).collect();
        ensure!(lost.is_empty(), "{lost:?} are not in {after:?}");
        scene.sites.all[leader].start_netmaster()
    })?;
    let now = scene.snapshots()?;
    ensure!(now == sent, "everything was sent again: {now:?} snapshots, before {sent:?}");
    Ok(())
}

fn leader_stopped(scene: &mut Scene) -> Result<()> {
    scene.harmless(|scene| {
        let leader = scene.sites.leader()?;
        let others = Scene::others(leader);
        let write = scene.fresh_write();
        let start = Instant::now();
        scene.sites.all[leader].stop_netmaster()?;
        let (_, site) = scene.sites.accepted(&others, &write)?;
        let took = start.elapsed();
        ensure!(took <= RESIGNED, "site {} accepted a write after {took:?}", site + 1);
        scene.sites.all[leader].start_netmaster()
    })
}

/// A policy with [`RULES`] rules, as a file.
fn bulk(dir: &DirGuard, policy: &str) -> Result<PathBuf> {
    let head = format!("{{kind: policy, tenantName: blue, policyName: {policy}}}\n");
    let rule = |number| {
        let id = format!("tenantName: blue, policyName: {policy}, ruleId: r{number}");
        let what = format!("direction: in, protocol: udp, port: {}, action: allow", 1000 + number);
        format!("---\n{{kind: rule, {id}, {what}}}\n")
    };
    let text: String = std::iter::once(head).chain((0..RULES).map(rule)).collect();
    let path = dir.path().join(policy);
    std::fs::write(&path, text)?;
    Ok(path)
}

/// How many rules a policy has; 0 where there is no such policy.
fn rules_of(site: &Site, policy: &str) -> usize {
    let rules = site.netctl_json(&format!("policy rule-ls -t blue {policy}"));
    rules.ok().and_then(|rules| Some(rules.as_array()?.len())).unwrap_or_default()
}

/// On an etcd that is started as README.md says for large updates.
fn killed_amid(scene: &mut Scene) -> Result<()> {
    scene.sites.restart_etcds(&["--max-txn-ops", "10000"])?;
    bulk_killed(scene)?;
    scene.sites.restart_etcds(&[])?;
    scene.followed()?;
    scene.sound()
}

fn bulk_killed(scene: &mut Scene) -> Result<()> {
    const KILLS: u32 = 3;
    let dir = DirGuard::new(Purpose::Test, "rules")?;
    let first = bulk(&dir, "bulk0")?;
    let start = Instant::now();
    scene.sites.all[scene.sites.leader()?].netctl(&format!("apply -f {}", first.display()))?;
    let whole = start.elapsed();
    for kill in 1..=KILLS {
        let policy = format!("bulk{kill}");
        let line = format!("apply -f {}", bulk(&dir, &policy)?.display());
        let leader = scene.sites.leader()?;
        let others = Scene::others(leader);
        let (netmaster, rest) = (scene.sites.all[leader].netmaster_pid()?, &scene.sites);
        let applied = thread::scope(|scope| {
            let applying = scope.spawn(|| rest.all[others[0]].netctl_run(&line));
            thread::sleep(whole * kill / (KILLS + 1));
            nix::sys::signal::kill(netmaster, Signal::SIGKILL)?;
            applying.join().map_err(|_panic| anyhow!("a thread panicked"))?
        })?;
        scene.sites.all[leader].kill_netmaster()?;
        scene.sites.leader()?;
        let there = rules_of(&scene.sites.all[others[0]], &policy);
        ensure!(there == 0 || there == RULES, "{there} of {RULES} rules are there");
        ensure!(
            applied.code != Some(0) || there == RULES,
            "lost what was acknowledged: {applied:?}"
        );
        let (_, site) = scene.sites.accepted(&others, &line)?;
        let there = rules_of(&scene.sites.all[site], &policy);
        ensure!(there == RULES, "{there} of {RULES} rules after the second time");
        scene.sites.all[leader].start_netmaster()?;
    }
    Ok(())
}

fn leader_paused(scene: &mut Scene) -> Result<()> {
    scene.harmless(|scene| {
        let old = scene.sites.leader()?;
        let others = Scene::others(old);
        scene.sites.all[old].signal_netmaster(Signal::SIGSTOP)?;
        let (first, second) = (scene.fresh_write(), scene.fresh_write());
        // Waits in the old leader's socket and is what it sees first when it wakes up.
        let asked = thread::scope(|scope| -> Result<_> {
            let site = &scene.sites.all[old];
            let asking = scope.spawn(|| site.netctl_run(&format!("--timeout 30s {second}")));
            let accepted = scene.sites.accepted(&others, &first);
            let woken = site.wake();
            let asked = asking.join().map_err(|_panic| anyhow!("a panic"))?;
            let (took, _) = accepted?;
            ensure!(took <= KILLED, "the next leader accepted a write after {took:?}");
            woken?;
            asked
        })?;
        let name = second.rsplit(' ').next().unwrap_or_default();
        let leader = scene.sites.leader()?;
        let tenants = scene.sites.all[leader].netctl_json("tenant ls")?;
        let is_there = tenants.as_array().into_iter().flatten().any(|t| t["tenantName"] == name);
        // It may have been passed on to the new leader: then it is there. Refused, it is not.
        ensure!(is_there == (asked.code == Some(0)), "{asked:?}, and there: {is_there}");
        Ok(())
    })
}

fn minority(scene: &mut Scene) -> Result<()> {
    scene.harmless(|scene| {
        let cut = scene.sites.leader()?;
        let others = Scene::others(cut);
        let number = scene.sites.all[cut].number;
        scene.sites.cut(number)?;
        let write = scene.fresh_write();
        let (took, _) = scene.sites.accepted(&others, &write)?;
        ensure!(took <= CUT_OFF, "the majority accepted a write after {took:?}");
        let write = scene.fresh_write();
        let refused = scene.sites.all[cut].netctl_run(&write)?;
        ensure!(refused.code == Some(2), "the minority accepts a write: {refused:?}");
        let read = scene.sites.all[cut].netctl_run("tenant ls")?;
        ensure!(read.code == Some(2), "the minority answers what may be old: {read:?}");
        scene.sites.all[cut].says(503, BOUND)?;
        for other in others {
            scene.sites.all[other].says(200, BOUND)?;
        }
        scene.sites.mend(number)?;
        // The same as a follower, which goes on knowing who led.
        scene.sites.all[cut].says(200, BOUND)?;
        scene.sites.cut(number)?;
        scene.sites.all[cut].says(503, UNHEARD)?;
        scene.sites.mend(number)?;
        scene.sites.all[cut].says(200, BOUND)
    })
}

/// Longer than every lease, keep-alive and time limit on the way; `WEIR_SOAK`: as the criterion says.
fn store_paused(scene: &mut Scene) -> Result<()> {
    let pause = Duration::from_secs(if is_soak() { 25 } else { 8 });
    scene.harmless(|scene| {
        scene.sites.signal_etcds(Signal::SIGSTOP)?;
        let start = Instant::now();
        let write = format!("--timeout 6s {}", scene.fresh_write());
        let refused = scene.sites.all[0].netctl_run(&write);
        let told = scene.sites.all.iter().try_for_each(|site| site.says(503, UNHEARD));
        let over = wait_until(pause * 2, "the pause", || (start.elapsed() >= pause).then_some(()));
        scene.sites.signal_etcds(Signal::SIGCONT)?;
        over?;
        told?;
        ensure!(refused?.code == Some(2), "a write without a store is accepted");
        let write = scene.fresh_write();
        scene.sites.accepted(&ALL, &write)?;
        scene.sites.all.iter().try_for_each(|site| site.says(200, BOUND))
    })
}

/// The backup knows nothing of the container that came later, and of a network that was removed.
fn restored(scene: &mut Scene) -> Result<()> {
    // In the backup the later container's address is on its way back from one that is gone by then,
    // which no node can acknowledge before it has taken the backup over.
    let earlier = attach(&scene.nodes.one, "earlier", "front")?;
    let address = earlier.address();
    scene.nodes.two.process(Daemon::Netplugin)?.signal(Signal::SIGSTOP)?;
    let backup = earlier.detach(&scene.nodes.one).and_then(|()| {
        let leaving = || {
            let listed = scene.sites.all[0].netctl_json("ip ls -a").ok()?;
            let mut rows = listed.as_array()?.iter();
            let is_it = |row: &Value| row["ipAddress"] == address.to_string();
            rows.any(|row| is_it(row) && row["state"] == "leaving").then_some(())
        };
        wait_until(BOUND, "the address to be leaving", leaving)?;
        scene.sites.save()
    });
    scene.nodes.two.process(Daemon::Netplugin)?.signal(Signal::SIGCONT)?;
    let backup = backup?;
    let args = format!("IP={address}");
    let spec =
        ContainerSpec { name: "later", tenant: "blue", network: "front", group: None, args: &args };
    let later = Container::attach(&scene.nodes.two, &spec)?;
    let lost = scene.fresh_write();
    scene.sites.all[0].netctl(&lost)?;
    let before = scene.sites.all[0].netctl_json("endpoint ls -a")?;
    let flow = Flow::start(later.namespace(), scene.a.address(), INTERVAL)?;
    let near = Flow::start(scene.a.namespace(), scene.b.address(), INTERVAL)?;
    scene.sites.kill()?;
    scene.sites.restore(&backup)?;
    scene.sites.start()?;
    scene.followed()?;
    scene.same()?;
    let back = || {
        let now = scene.sites.all[0].netctl_json("endpoint ls -a").ok()?;
        (places(&now) == places(&before)).then_some(())
    };
    wait_until(BOUND, "the later container's endpoint to be back", back).with_context(|| {
        let log = scene.nodes.two.log(Daemon::Netplugin).unwrap_or_default();
        let now = scene.sites.all[0].netctl_json("endpoint ls -a").map(|now| places(&now));
        format!("{now:?}, before {:?}; {log}", places(&before))
    })?;
    // An address that runs is not handed out again.
    let next = attach(&scene.nodes.one, "next", "front")?;
    ensure!(next.address() != later.address(), "{} is there twice", next.address());
    reach_soon(&next, later.address())?;
    for flow in [flow, near] {
        let report = flow.stop()?;
        ensure!(report.received == report.sent, "{report:?}");
    }
    next.detach(&scene.nodes.one)?;
    later.detach(&scene.nodes.two)?;
    scene.sound()
}

/// Who has which address where.
fn places(endpoints: &Value) -> Vec<[Value; 4]> {
    let rows = endpoints.as_array().into_iter().flatten();
    let fields = ["endpointID", "ipAddress", "macAddress", "homingHost"];
    rows.map(|row| fields.map(|field| row[field].clone())).collect()
}

/// `WEIR_SOAK`: for as long as the criterion says.
fn all_down(scene: &mut Scene) -> Result<()> {
    let length = Duration::from_secs(if is_soak() { 600 } else { 12 });
    let gone = attach(&scene.nodes.one, "gone", "front")?;
    let before = links(&scene.nodes.one)?;
    let near = Flow::start(scene.a.namespace(), scene.b.address(), INTERVAL)?;
    let far = Flow::start(scene.c.namespace(), scene.a.address(), INTERVAL)?;
    scene.sites.kill()?;
    let start = Instant::now();
    let id = format!("{}:{}", gone.id(), kit::CONTAINER_IFNAME);
    gone.detach(&scene.nodes.one).context("DEL without a control plane")?;
    ensure!(links(&scene.nodes.one)?.len() == before.len() - 1, "DEL left its link");
    wait_until(length * 2, "the outage", || (start.elapsed() >= length).then_some(()))?;
    scene.sites.start()?;
    scene.followed()?;
    scene.same()?;
    let cleaned = || {
        let now = scene.sites.all[0].netctl_json("endpoint ls -a").ok()?;
        let mut rows = now.as_array()?.iter();
        rows.all(|row| row["endpointID"] != id.as_str()).then_some(())
    };
    wait_until(BOUND, "the endpoint of the deleted container to go", cleaned)?;
    for flow in [near, far] {
        let report = flow.stop()?;
        ensure!(report.received == report.sent, "{report:?}");
    }
    scene.sound()
}

/// A netplugin that starts asks the first site.
fn one_id(scene: &mut Scene) -> Result<()> {
    if scene.sites.leader()? == 0 {
        scene.sites.all[0].stop_netmaster()?;
        scene.sites.leader()?;
        scene.sites.all[0].start_netmaster()?;
    }
    scene.nodes.one.stop(Daemon::Netplugin)?;
    scene.nodes.one.start(Daemon::Netplugin)?;
    scene.followed()?;
    let leader = scene.sites.leader()?;
    ensure!(leader != 0, "the first site leads again");
    let node = &scene.nodes.one;
    attach(node, "traced", "front")?.detach(node)?;
    let id = last_id(&node.log(Daemon::Netplugin)?, "cni.v1.Cni/Add")?;
    for site in [0, leader] {
        let log = scene.sites.all[site].log()?;
        let is_there = has_request(&log, &id, "control.v1.NetMaster/Create");
        ensure!(is_there, "site {} logs no Create with {id}: {log}", site + 1);
    }
    Ok(())
}

fn is_soak() -> bool {
    std::env::var_os("WEIR_SOAK").is_some()
}
