//! Two runtimes on one node and one network at the same time: neither knows of the other.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context as _, Result, anyhow, ensure};
use kit::{Finished, wait_until};

use super::{containerd, podman};
use crate::Test;
use crate::shared::sharing;
use crate::site::{BOUND, endpoints};

/// Containers of each runtime.
const EACH: usize = 3;
/// Ends when it may, or late enough for a test to have failed.
const STAY: &str =
    "#!/bin/sh\nn=0\nuntil test -e /tmp/go || test $n = 300; do sleep 0.1; n=$((n+1)); done\n";

pub(super) fn tests() -> Vec<Test> {
    let name = "cni_1_podman_and_containerd_attach_to_one_network_at_the_same_time";
    sharing(containerd::build, &[(name, both)])
}

fn both(scene: &mut containerd::Scene) -> Result<()> {
    let site = &scene.site;
    podman::configure(site)?;
    let root = site.dir.path().join("rootfs");
    fs::write(root.join("bin/stay"), STAY)?;
    fs::set_permissions(root.join("bin/stay"), fs::Permissions::from_mode(0o755))?;
    let before = site.traces()?;
    let by_podman = || podman::podman(site, "run --rm --network front --rootfs ROOTFS /bin/stay");
    let by_containerd = |number| {
        containerd::ctr(site, &format!("run --rm --cni --rootfs ROOTFS t{number} /bin/stay"))
    };
    let ended = thread::scope(|scope| -> Result<Vec<Finished>> {
        let mut all: Vec<ScopedJoinHandle<'_, Result<Finished>>> = Vec::new();
        for number in 0..EACH {
            all.push(scope.spawn(by_podman));
            all.push(scope.spawn(move || by_containerd(number)));
        }
        let there = || endpoints(site.node()).ok().filter(|ids| ids.len() == 2 * EACH);
        let ids = wait_until(BOUND, "all to be attached at once", there);
        fs::write(root.join("tmp/go"), "")?;
        let ends = all.into_iter().map(|end| end.join().map_err(|_panic| anyhow!("a panic"))?);
        let ends = ends.collect::<Result<Vec<_>>>()?;
        let ids = ids.with_context(|| format!("{ends:?}"))?;
        let theirs = ids.iter().filter(|id| id.starts_with("default-t")).count();
        ensure!(theirs == EACH, "{theirs} containers are containerd's");
        Ok(ends)
    })?;
    for finished in ended {
        finished.success()?;
    }
    site.again(&before)
}
