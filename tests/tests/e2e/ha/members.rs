//! One of etcd's three members lost: killed, or alive and silent.

use std::time::Instant;

use anyhow::{Result, ensure};
use kit::wait_until;
use nix::sys::signal::Signal;

use super::sites::{SITES, Sites};
use super::{ALL, CUT_OFF, Scene};
use crate::site::BOUND;

/// How a member is lost, and how it comes back.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Killed,
    Paused,
}

pub(super) fn killed(scene: &mut Scene) -> Result<()> {
    lost(scene, Loss::Killed)
}

pub(super) fn paused(scene: &mut Scene) -> Result<()> {
    lost(scene, Loss::Paused)
}

/// First the member that the leading netmaster asks, then the one that leads etcd.
fn lost(scene: &mut Scene, loss: Loss) -> Result<()> {
    scene.harmless(|scene| {
        let leader = scene.sites.leader()?;
        without(scene, leader, loss)
    })?;
    scene.harmless(|scene| {
        let leader = scene.sites.etcd_leader()?;
        without(scene, leader, loss)
    })
}

/// Loses a site's member for longer than a netmaster's lease: every netmaster takes writes meanwhile.
fn without(scene: &mut Scene, member: usize, loss: Loss) -> Result<()> {
    let start = Instant::now();
    match loss {
        Loss::Killed => scene.sites.all[member].kill_etcd()?,
        Loss::Paused => scene.sites.all[member].signal_etcd(Signal::SIGSTOP)?,
    }
    let took = served(scene).and_then(|()| {
        let over = || (start.elapsed() >= CUT_OFF / 2).then_some(());
        wait_until(CUT_OFF, "longer than the lease", over)?;
        served(scene)
    });
    match loss {
        Loss::Killed => scene.sites.all[member].spawn_etcd()?,
        Loss::Paused => scene.sites.all[member].signal_etcd(Signal::SIGCONT)?,
    }
    took?;
    let joined = || scene.sites.all[member].follows_etcd().then_some(());
    wait_until(BOUND, "the member to be one of three again", joined)?;
    Ok(())
}

/// Every netmaster accepts a write, its own or by the one that leads.
fn served(scene: &mut Scene) -> Result<()> {
    for site in ALL {
        let write = scene.fresh_write();
        let (took, _) = scene.sites.accepted(&[site], &write)?;
        ensure!(took <= CUT_OFF, "site {} accepted a write after {took:?}", site + 1);
    }
    Ok(())
}

impl Sites {
    /// The site whose member leads etcd; waits for it.
    fn etcd_leader(&self) -> Result<usize> {
        let leads = || (0..SITES).find(|site| self.all[*site].leads_etcd());
        Ok(wait_until(BOUND, "a member to lead etcd", leads)?)
    }
}
