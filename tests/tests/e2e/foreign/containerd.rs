//! containerd through `ctr run --cni`: it names the namespace /proc/PID/ns/net when it adds, and
//! nothing at all when it deletes.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{Finished, ProcessGuard, run};
use serde_json::json;

use super::{STOCK_PLUGINS, Site};
use crate::Test;
use crate::shared::sharing;

const START_BOUND: Duration = Duration::from_secs(30);

pub(super) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("cni_1_containerd_deletes_without_a_namespace_and_leaves_nothing", run_to_end),
            ("cni_1_a_containerd_container_that_fails_leaves_nothing", fails),
        ],
    )
}

/// Fields drop in order: the daemon goes before what it stands on.
#[derive(Debug)]
pub(super) struct Scene {
    _containerd: ProcessGuard,
    pub(super) site: Site,
}

pub(super) fn build() -> Result<Scene> {
    let site = Site::new("containerd")?;
    site.rootfs()?;
    site.configure("10-front", &json!({}), &[])?;
    let dir = site.dir.path();
    let config = format!(
        "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.btrfs\", \
         \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.devmapper\", \
         \"io.containerd.snapshotter.v1.aufs\"]\n[grpc]\n  address = \"{1}\"\n",
        dir.display(),
        socket(&site).display()
    );
    std::fs::write(dir.join("config.toml"), config)?;
    let mut command = Command::new("containerd");
    command.arg("-c").arg(dir.join("config.toml"));
    let log = dir.join("containerd.log");
    let mut containerd = ProcessGuard::spawn(site.node().namespace(), "containerd", command, &log)?;
    containerd.wait_ready(START_BOUND, || ctr(&site, "version")?.success())?;
    Ok(Scene { _containerd: containerd, site })
}

fn socket(site: &Site) -> PathBuf {
    site.dir.path().join("containerd.sock")
}

/// ctr knows one directory of plugins and one of configurations: ours take their places, in a mount
/// namespace that ends with it.
pub(super) fn ctr(site: &Site, line: &str) -> Result<Finished> {
    let mounts = "mkdir -p /opt/cni/bin /etc/cni/net.d && mount --bind \"$1\" /opt/cni/bin && \
                  mount --bind \"$2\" /etc/cni/net.d && shift 2 && exec ctr \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", mounts, "sh"]);
    command.arg(site.plugins()).arg(site.configurations());
    command.arg("-a").arg(socket(site));
    let rootfs = site.dir.path().join("rootfs").display().to_string();
    command.args(line.split_whitespace().map(|word| word.replace("ROOTFS", &rootfs)));
    run(site.node().namespace(), command)
}

fn run_to_end(scene: &mut Scene) -> Result<()> {
    let site = &scene.site;
    ensure!(std::path::Path::new(STOCK_PLUGINS).is_dir(), "no stock plugins");
    let before = site.traces()?;
    for round in ["t1", "t2"] {
        let line = format!("run --rm --cni --rootfs ROOTFS {round} /bin/ip -4 addr show eth0");
        let seen = ctr(site, &line)?.success().with_context(|| format!("ctr {line}"))?;
        ensure!(seen.contains("inet 10.1.1."), "{seen}");
    }
    site.again(&before)
}

fn fails(scene: &mut Scene) -> Result<()> {
    let site = &scene.site;
    let before = site.traces()?;
    let failed = ctr(site, "run --rm --cni --rootfs ROOTFS t3 /bin/no-such-program")?;
    ensure!(failed.code != Some(0), "{failed:?}");
    site.again(&before)
}
