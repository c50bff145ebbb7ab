//! Disks without room: a file system of 4 MB, and netplugin's rows on it.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kit::{Daemon, DirGuard, Purpose, Topology, ping, wait_until};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use crate::Test;
use crate::runtime::{Plug, Traces, refusal};
use crate::site::{BOUND, configure};

pub(crate) fn tests() -> Vec<Test> {
    let name = "cni_1_a_full_disk_refuses_whole_operations_and_is_used_again_with_room";
    vec![(name.to_owned(), Box::new(full))]
}

#[derive(Debug)]
/// A small file system of a test's own.
pub(crate) struct SmallDisk {
    dir: DirGuard,
}

impl SmallDisk {
    /// An empty one.
    pub(crate) fn new(flags: MsFlags) -> Result<Self> {
        let dir = DirGuard::new(Purpose::Test, "disk")?;
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some("size=4m"))?;
        Ok(Self { dir })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes all the room there is.
    pub(crate) fn fill(&self) -> Result<()> {
        let mut size = 1 << 20;
        let mut bytes = Vec::new();
        let path = self.path().join("filler");
        while size >= 4096 {
            let mut more = bytes.clone();
            more.resize(bytes.len() + size, 1);
            match fs::write(&path, &more) {
                Ok(()) => bytes = more,
                Err(_full) => size /= 2,
            }
        }
        // The last attempt that failed took what was left.
        ensure!(fs::metadata(&path)?.size() > 0, "nothing was filled");
        Ok(())
    }

    /// Makes room again.
    pub(crate) fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.path().join("filler"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A destructor has nobody to tell.
        umount2(self.dir.path(), MntFlags::MNT_DETACH).unwrap_or_default();
    }
}

/// More than are needed until one more row needs more room than there is.
const ADDS_MAX: usize = 100;

fn full() -> Result<()> {
    let disk = SmallDisk::new(MsFlags::empty())?;
    let mut nodes = Topology::new(Purpose::Test).two_nodes()?;
    let lines = ["tenant create blue", "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front"];
    configure(&nodes.one, &lines)?;
    let node = &mut nodes.two;
    node.stop(Daemon::Netplugin)?;
    fs::remove_dir_all(node.state_dir())?;
    symlink(disk.path(), node.state_dir())?;
    node.start(Daemon::Netplugin)?;
    let empty = Traces::of(node, &["front"])?;
    let kept = Plug::new(node, "front")?;
    kept.add(node)?;
    disk.fill()?;
    let mut added = vec![kept];
    let (refused, before) = loop {
        ensure!(added.len() < ADDS_MAX, "{ADDS_MAX} rows find room on a full disk");
        let (plug, before) = (Plug::new(node, "front")?, Traces::of(node, &["front"])?);
        let done = plug.call(node, "ADD", &Value::Null)?;
        if done.code != Some(0) {
            break (done, before);
        }
        added.push(plug);
    };
    let msg = refusal(&refused, 5)?;
    ensure!(msg.contains("attachment file") && msg.contains("No space left"), "{msg}");
    ensure!(refused.stdout.contains("--state-dir"), "no word of what to do: {refused:?}");
    before.again(node, &["front"]).context("the refused ADD")?;
    for plug in &added {
        disk.fill()?;
        let del = plug.call(node, "DEL", &Value::Null)?;
        // The file may have had room for a shorter row.
        if del.code != Some(0) {
            refusal(&del, 5).context("DEL on a full disk")?;
            let seen = ping(plug.netns().namespace(), Ipv4Addr::new(10, 1, 1, 254), 1)?;
            ensure!(seen.received == 1, "a refused DEL has taken the network of {}", plug.id);
        }
    }
    disk.empty()?;
    let late = Plug::new(node, "front")?;
    let result = wait_until(BOUND, "an ADD once there is room", || late.add(node).ok())?;
    node.kill(Daemon::Netplugin)?;
    node.start(Daemon::Netplugin)?;
    late.call(node, "CHECK", &result)?.success().context("CHECK after a crash")?;
    for plug in added.iter().chain([&late]) {
        plug.del(node)?;
    }
    empty.again(node, &["front"])
}
