//! A node whose link to the control plane is pulled, and put back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kit::{Container, wait_until};

use super::{NODES, Scene};
use crate::site::{BOUND, attach, reach, reach_soon};

/// netmaster asks a silent connection after 5 s whether it lives, and gives it 5 s to answer; netplugin
/// does after 3 s and comes again at once. And something for two busy cores.
const NOTICED: Duration = Duration::from_secs(13);
/// netmaster waits 2 s for a node that it takes to be there.
const UNDELAYED: Duration = Duration::from_secs(1);

pub(super) fn pulled(scene: &mut Scene) -> Result<()> {
    let sent = scene.snapshots()?;
    let number = NODES[1];
    scene.harmless(|scene| {
        scene.sites.cut(number)?;
        let cut = away(scene);
        scene.sites.mend(number)?;
        // What it missed it is told.
        let late = cut?;
        reach_soon(&scene.c, late.address())?;
        late.detach(&scene.nodes.one)
    })?;
    let now = scene.snapshots()?;
    ensure!(now == sent, "everything was sent again: {now:?} snapshots, before {sent:?}");
    Ok(())
}

/// While node 2 is cut off; a container that it has not heard of.
fn away(scene: &Scene) -> Result<Container> {
    let site = &scene.sites.all[scene.sites.leader()?];
    let start = Instant::now();
    wait_until(BOUND, "netmaster to notice", || {
        let nodes = site.netctl_json("node ls").ok()?;
        let name = scene.nodes.two.name();
        let mut nodes = nodes.as_array()?.iter();
        nodes.any(|node| node["nodeName"] == name && node["connected"] == false).then_some(())
    })
    .with_context(|| format!("{:?}", site.netctl_json("node ls")))?;
    let took = start.elapsed();
    ensure!(took <= NOTICED, "noticed after {took:?}");
    for line in [
        "policy rule-add -t blue -d in -l tcp -P 81 -j deny guard 2",
        "policy rule-rm -t blue guard 2",
    ] {
        let start = Instant::now();
        let done = site.netctl_run(line)?;
        let took = start.elapsed();
        ensure!(done.code == Some(0) && done.stderr.is_empty(), "{line}: {done:?}");
        ensure!(took < UNDELAYED, "{line} took {took:?}");
    }
    reach(&scene.c, scene.a.address())?;
    attach(&scene.nodes.one, "late", "front")
}
