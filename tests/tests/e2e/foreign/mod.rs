//! Weir under programs that others wrote, from Debian's packages. Where one is not installed its
//! tests show as ignored, with what to install, and are counted as such.

mod containerd;
mod libcni;
mod podman;
mod together;
mod units;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use kit::{DirGuard, Node, OneNode, Purpose, Topology, binary};
use serde_json::{Value, json};

use crate::Test;
use crate::runtime::Traces;
use crate::site::configure;

/// Programs that a suite drives, beyond what every test needs, and the suite.
pub(crate) type Suite = (&'static [&'static str], fn() -> Vec<Test>);

/// What runs where its programs are installed.
pub(crate) const SUITES: [Suite; 5] = [
    (
        &["go", "/usr/share/gocode/src/github.com/containernetworking/cni", "/usr/lib/cni/portmap"],
        libcni::tests,
    ),
    (&["podman", "runc", "busybox", "/usr/lib/cni/portmap"], podman::tests),
    (&["containerd", "ctr", "runc", "busybox"], containerd::tests),
    (&["containerd", "ctr", "podman", "runc", "busybox", "/usr/lib/cni/portmap"], together::tests),
    (&["systemd-analyze"], units::tests),
];

/// Where Debian puts the stock plugins.
const STOCK_PLUGINS: &str = "/usr/lib/cni";
const BUSYBOX: &str = "/bin/busybox";
const NETWORKS: [&str; 3] = ["front", "back", "both"];

/// A node with tenant blue's networks front, back and, in both families, both; and what a runtime is given.
#[derive(Debug)]
struct Site {
    dir: DirGuard,
    one: OneNode,
}

impl Site {
    fn new(label: &str) -> Result<Self> {
        let one = Topology::new(Purpose::Test).one_node()?;
        let lines = [
            "tenant create blue",
            "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
            "network create -t blue -s 10.1.2.0/24 back",
            "network create -t blue -s 10.1.3.0/24 -g 10.1.3.254 -s6 2001:db8:3::/64 \
             -g6 2001:db8:3::fe both",
            "group create -t blue front web",
        ];
        configure(&one.node, &lines)?;
        let site = Self { dir: DirGuard::new(Purpose::Test, label)?, one };
        fs::create_dir(site.plugins())?;
        fs::create_dir(site.configurations())?;
        symlink(binary("weir-cni")?, site.plugins().join("weir-cni"))?;
        Ok(site)
    }

    const fn node(&self) -> &Node {
        &self.one.node
    }

    /// The directory with our plugin.
    fn plugins(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    /// The directory of configuration lists.
    fn configurations(&self) -> PathBuf {
        self.dir.path().join("net.d")
    }

    /// What a runtime has in `CNI_PATH`.
    fn cni_path(&self) -> String {
        format!("{}:{STOCK_PLUGINS}", self.plugins().display())
    }

    /// Writes a configuration list: our plugin with `keys`, then `chained` plugins.
    fn configure(&self, name: &str, keys: &Value, chained: &[Value]) -> Result<()> {
        let mut ours = json!({
            "type": "weir-cni",
            "socket": self.node().cni_socket(),
            "stateDir": self.node().state_dir(),
            "tenant": "blue",
            "network": "front",
            "capabilities": { "ips": true, "mac": true, "dns": true, "aliases": true, "bandwidth": true },
        });
        for (key, value) in keys.as_object().into_iter().flatten() {
            ours[key] = value.clone();
        }
        let mut plugins = vec![ours];
        plugins.extend_from_slice(chained);
        let list = json!({
            "cniVersion": "1.0.0",
            "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
            "name": name,
            "plugins": plugins,
        });
        fs::write(self.configurations().join(format!("{name}.conflist")), list.to_string())?;
        Ok(())
    }

    /// A root file system with busybox and nothing else.
    fn rootfs(&self) -> Result<PathBuf> {
        let root = self.dir.path().join("rootfs");
        for sub in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
            fs::create_dir_all(root.join(sub))?;
        }
        fs::copy(BUSYBOX, root.join("bin/busybox")).context("copying busybox")?;
        for applet in ["sh", "ip", "ping", "sleep", "cat", "grep", "test", "nc"] {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        Ok(root)
    }

    fn traces(&self) -> Result<Traces> {
        Traces::of(self.node(), &NETWORKS)
    }

    /// Waits until there is just what was before.
    fn again(&self, before: &Traces) -> Result<()> {
        before.again(self.node(), &NETWORKS)
    }
}
