//! podman 4.3 with its CNI back end: what its users type, and what the plugin then leaves.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use kit::{FABRIC_PORT, Finished, run, tcp_echo, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{STOCK_PLUGINS, Site};
use crate::Test;
use crate::shared::sharing;
use crate::site::BOUND;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 254);

pub(super) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("cni_1_podman_runs_a_container_to_its_end_and_leaves_nothing", run_to_end),
            ("cni_1_podman_gives_a_container_the_address_and_mac_it_asks_for", address_and_mac),
            ("cni_1_podman_gives_a_container_an_address_of_each_family", both_families),
            ("cni_1_podman_takes_an_address_a_mac_and_a_name_for_the_interface", interface_name),
            ("cni_1_podman_connects_and_disconnects_a_second_network", second_network),
            ("cni_1_podman_reloads_a_network_in_the_same_namespace", reload),
            ("cni_1_podman_restarts_a_container_in_a_new_namespace", restart),
            ("cni_1_podman_runs_six_containers_at_once", six_at_once),
            ("cni_1_a_container_killed_under_podman_is_detached", killed),
            ("cni_1_podman_publishes_a_port_until_the_container_is_gone", published_port),
            ("cni_1_podman_users_read_what_to_do_when_an_address_is_taken", taken),
        ],
    )
}

/// Limits and cgroups as containers in containers need them; locks, events and storage of our own.
fn containers_conf(site: &Site) -> String {
    let dir = site.dir.path().display();
    format!(
        r#"[containers]
default_ulimits=["nofile=20000:20000","nproc=4096:4096"]
[network]
network_backend="cni"
cni_plugin_dirs=["{dir}/bin","{STOCK_PLUGINS}"]
network_config_dir="{dir}/net.d"
default_network="front"
[engine]
cgroup_manager="cgroupfs"
events_logger="file"
lock_type="file"
tmp_dir="{dir}/tmp"
runtime="runc"
[engine.runtimes]
runc=["/usr/sbin/runc"]
"#
    )
}

fn build() -> Result<Site> {
    let site = Site::new("podman")?;
    site.rootfs()?;
    configure(&site)?;
    site.configure("back", &json!({ "network": "back" }), &[])?;
    site.configure("both", &json!({ "network": "both" }), &[])?;
    let ports = json!({ "capabilities": { "ips": true, "portMappings": true } });
    site.configure("ports", &ports, &[])?;
    Ok(site)
}

/// What every run of podman needs: a default network and the configuration.
pub(super) fn configure(site: &Site) -> Result<()> {
    site.configure("front", &json!({}), &[])?;
    Ok(fs::write(site.dir.path().join("containers.conf"), containers_conf(site))?)
}

/// podman with the words of `line`; `ROOTFS` in it stands for the root file system.
pub(super) fn podman(site: &Site, line: &str) -> Result<Finished> {
    let dir = site.dir.path();
    let mut command = Command::new("podman");
    command.env("CONTAINERS_CONF", dir.join("containers.conf"));
    command.arg("--root").arg(dir.join("storage")).arg("--runroot").arg(dir.join("run"));
    let rootfs = dir.join("rootfs").display().to_string();
    command.args(line.split_whitespace().map(|word| word.replace("ROOTFS", &rootfs)));
    run(site.node().namespace(), command)
}

fn done(site: &Site, line: &str) -> Result<String> {
    podman(site, line)?.success().with_context(|| format!("podman {line}"))
}

/// What podman knows of a container's network.
fn inspect(site: &Site, name: &str, network: &str) -> Result<Value> {
    let all: Value = serde_json::from_str(&done(site, &format!("inspect {name}"))?)?;
    Ok(all[0]["NetworkSettings"]["Networks"][network].clone())
}

fn reaches_gateway(site: &Site, name: &str) -> Result<()> {
    done(site, &format!("exec {name} ping -c 1 -W 2 {GATEWAY}")).map(drop)
}

/// Does `work`, after which there is just what was before.
fn leaving_nothing(site: &Site, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = site.traces()?;
    work()?;
    site.again(&before)
}

fn run_to_end(site: &mut Site) -> Result<()> {
    let networks = done(site, "network ls")?;
    ensure!(networks.contains("front") && networks.contains("weir-cni"), "{networks}");
    leaving_nothing(site, || {
        let seen = done(site, "run --rm --network front --rootfs ROOTFS /bin/ip -4 addr")?;
        ensure!(seen.contains("inet 10.1.1."), "{seen}");
        // The default network, and a command that fails: the address is freed all the same.
        let failed = podman(site, "run --rm --rootfs ROOTFS /bin/cat /no-such-file")?;
        ensure!(failed.code == Some(1), "{failed:?}");
        Ok(())
    })
}

fn address_and_mac(site: &mut Site) -> Result<()> {
    leaving_nothing(site, || {
        done(
            site,
            "run -d --name a --network front:ip=10.1.1.50,mac=0a:00:00:00:00:50 --rootfs ROOTFS \
             /bin/sleep 1000",
        )?;
        let network = inspect(site, "a", "front")?;
        ensure!(network["IPAddress"] == "10.1.1.50", "{network}");
        ensure!(network["MacAddress"] == "0a:00:00:00:00:50", "{network}");
        ensure!(network["Gateway"] == GATEWAY.to_string(), "{network}");
        let link = done(site, "exec a ip link show eth0")?;
        ensure!(link.contains("0a:00:00:00:00:50"), "{link}");
        reaches_gateway(site, "a")?;
        done(site, "rm -f -t 0 a").map(drop)
    })
}

fn interface_name(site: &mut Site) -> Result<()> {
    leaving_nothing(site, || {
        let asked = "--ip 10.1.1.51 --mac-address 0a:00:00:00:00:51 --network front";
        let seen = done(site, &format!("run --rm {asked} --rootfs ROOTFS /bin/ip addr show eth0"))?;
        ensure!(seen.contains("inet 10.1.1.51/24") && seen.contains("0a:00:00:00:00:51"), "{seen}");
        let asked = "--network front:interface_name=net0 --rootfs ROOTFS /bin/sleep 1000";
        done(site, &format!("run -d --name a {asked}"))?;
        let addresses = done(site, "exec a ip -4 addr show net0")?;
        ensure!(addresses.contains("inet 10.1.1."), "{addresses}");
        reaches_gateway(site, "a")?;
        done(site, "rm -f -t 0 a").map(drop)
    })
}

fn both_families(site: &mut Site) -> Result<()> {
    leaving_nothing(site, || {
        let asked = "--network both:ip=10.1.3.50,ip6=2001:db8:3::50 --rootfs ROOTFS";
        done(site, &format!("run -d --name a {asked} /bin/sleep 1000"))?;
        done(site, "run -d --name b --network both --rootfs ROOTFS /bin/sleep 1000")?;
        let network = inspect(site, "a", "both")?;
        ensure!(network["IPAddress"] == "10.1.3.50", "{network}");
        ensure!(network["GlobalIPv6Address"] == "2001:db8:3::50", "{network}");
        ensure!(network["GlobalIPv6PrefixLen"] == 64, "{network}");
        ensure!(network["IPv6Gateway"] == "2001:db8:3::fe", "{network}");
        for to in ["2001:db8:3::50", "2001:db8:3::fe", "10.1.3.50"] {
            done(site, &format!("exec b ping -c 1 -W 2 {to}"))?;
        }
        let routes = done(site, "exec b ip -6 route")?;
        ensure!(routes.contains("default via 2001:db8:3::fe dev eth0"), "{routes}");
        done(site, "network reload a")?;
        let after = inspect(site, "a", "both")?;
        ensure!(after["GlobalIPv6Address"] == "2001:db8:3::50", "{after}");
        done(site, "exec b ping -c 1 -W 2 2001:db8:3::50")?;
        done(site, "rm -f -t 0 a b").map(drop)
    })
}

fn second_network(site: &mut Site) -> Result<()> {
    leaving_nothing(site, || {
        done(site, "run -d --name a --network front --rootfs ROOTFS /bin/sleep 1000")?;
        done(site, "network connect back a")?;
        let second = done(site, "exec a ip -4 addr show eth1")?;
        ensure!(second.contains("inet 10.1.2."), "{second}");
        let routes = done(site, "exec a ip route")?;
        let defaults: Vec<&str> = routes.lines().filter(|l| l.starts_with("default")).collect();
        ensure!(defaults.len() == 1 && defaults[0].contains("eth0"), "{routes}");
        done(site, "network disconnect back a")?;
        let gone = || (!done(site, "exec a ip link").ok()?.contains("eth1")).then_some(());
        wait_until(BOUND, "eth1 to be gone", gone)?;
        reaches_gateway(site, "a")?;
        done(site, "rm -f -t 0 a").map(drop)
    })
}

/// DEL and ADD under one id in one namespace; the address comes without its prefix length, twice.
fn reload(site: &mut Site) -> Result<()> {
    leaving_nothing(site, || {
        done(site, "run -d --name a --network front --rootfs ROOTFS /bin/sleep 1000")?;
        let before = inspect(site, "a", "front")?["IPAddress"].clone();
        done(site, "network reload a")?;
        let after = inspect(site, "a", "front")?["IPAddress"].clone();
        ensure!(before == after, "{after}, before {before}");
        reaches_gateway(site, "a")?;
        done(site, "rm -f -t 0 a").map(drop)
    })
}

fn restart(site: &mut Site) -> Result<()> {
    leaving_nothing(site, || {
        done(site, "run -d --name a --network front --rootfs ROOTFS /bin/sleep 1000")?;
        done(site, "restart -t 0 a")?;
        reaches_gateway(site, "a")?;
        done(site, "stop -t 0 a")?;
        done(site, "start a")?;
        reaches_gateway(site, "a")?;
        done(site, "rm -f -t 0 a").map(drop)
    })
}

fn six_at_once(site: &mut Site) -> Result<()> {
    let site = &*site;
    leaving_nothing(site, || {
        thread::scope(|scope| {
            // podman may lose the output of a container that ends at once, but not how it ended.
            let line =
                "run --rm --network front --rootfs ROOTFS /bin/grep 10.1.1. /proc/net/fib_trie";
            let all: Vec<_> = (0..6).map(|_| scope.spawn(|| done(site, line))).collect();
            let mut ends = all.into_iter().map(thread::ScopedJoinHandle::join);
            ends.try_for_each(|end| end.map_err(|_panic| anyhow!("a thread panicked"))?.map(drop))
        })
    })
}

/// conmon, not our shell, sends the DEL then.
fn killed(site: &mut Site) -> Result<()> {
    leaving_nothing(site, || {
        done(site, "run -d --rm --name a --network front --rootfs ROOTFS /bin/sleep 1000")?;
        let pid = done(site, "inspect -f {{.State.Pid}} a")?;
        kill(Pid::from_raw(pid.trim().parse()?), Signal::SIGKILL)?;
        Ok(())
    })
}

fn published_port(site: &mut Site) -> Result<()> {
    leaving_nothing(site, || {
        // A veth hands on what its sender has not finished; a cable would not.
        let mut finish = Command::new("ethtool");
        finish.args(["-K", FABRIC_PORT, "tx", "off"]);
        run(site.one.fabric.namespace(), finish)?.success()?;
        let echo = "--rootfs ROOTFS /bin/nc -ll -p 80 -e /bin/cat";
        done(site, &format!("run -d --name a --network ports -p 18080:80 {echo}"))?;
        let reaches = |port: u16| {
            let node = (site.node().vtep(), port).into();
            let answered = || tcp_echo(site.one.fabric.namespace(), node, b"published").ok();
            wait_until(BOUND, format!("port {port} to be the container's"), answered)
        };
        reaches(18_080)?;
        // A range, and a port that is taken: by a container, which is named.
        let taken = podman(site, &format!("run --rm --network ports -p 18080:80 {echo}"))?;
        ensure!(taken.code == Some(126), "{taken:?}");
        ensure!(taken.stderr.contains("port 18080/tcp is "), "{taken:?}");
        done(site, &format!("run -d --name b --network ports -p 18081-18082:80-81 {echo}"))?;
        reaches(18_081)?;
        done(site, "restart -t 0 a")?;
        reaches(18_080)?;
        done(site, "rm -f -t 0 a b").map(drop)
    })
}

fn taken(site: &mut Site) -> Result<()> {
    leaving_nothing(site, || {
        let asked = "--network front:ip=10.1.1.60 --rootfs ROOTFS /bin/sleep 1000";
        done(site, &format!("run -d --name a {asked}"))?;
        let refused = podman(site, &format!("run --rm {asked}"))?;
        ensure!(refused.code == Some(126), "{refused:?}");
        ensure!(refused.stderr.contains("10.1.1.60"), "{refused:?}");
        done(site, "rm -f -t 0 a").map(drop)
    })
}
