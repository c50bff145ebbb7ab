//! Named network namespaces that go when their guard does.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use netdev::packet::PacketSocket;
use netdev::{Namespace, Netlink};

use crate::cleanup::held;

/// What a run is for; decides the prefix of every name it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A test: `wt-*`.
    Test,
    /// The demo: `wd-*`.
    Demo,
}

impl Purpose {
    /// The prefix, without the dash.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Test => "wt",
            Self::Demo => "wd",
        }
    }
}

/// PREFIX-PID-NUMBER-LABEL: unique among the processes that are alive.
pub(crate) fn unique(purpose: Purpose, label: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}-{}-{number}-{label}", purpose.prefix(), std::process::id())
}

/// A network namespace with a name, its loopback up.
#[derive(Debug)]
pub struct NetnsGuard {
    name: String,
    namespace: Namespace,
}

impl NetnsGuard {
    /// Makes a namespace; `label` ends its name, for whoever reads `ip netns`.
    ///
    /// # Errors
    /// Without root.
    pub fn new(purpose: Purpose, label: &str) -> Result<Self> {
        let name = unique(purpose, label);
        held().namespaces.insert(name.clone());
        let namespace = match Namespace::create_named(&name) {
            Ok(namespace) => namespace,
            Err(error) => {
                held().namespaces.remove(&name);
                return Err(error.into());
            }
        };
        let made = Self { name, namespace };
        let netlink = made.netlink()?;
        let loopback = netlink.link_by_name("lo")?.context("a namespace without lo")?;
        netlink.set_up(loopback.index)?;
        Ok(made)
    }

    /// The name that `ip netns` shows.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path a runtime hands to a plugin as `CNI_NETNS`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// The namespace itself.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A netlink socket in it.
    ///
    /// # Errors
    /// When no socket is to be had.
    pub fn netlink(&self) -> Result<Netlink> {
        Ok(Netlink::open_in(&self.namespace)?)
    }

    /// Runs `work` on a thread inside it.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(self.namespace.run(work)?)
    }
}

impl Drop for NetnsGuard {
    fn drop(&mut self) {
        // A destructor has nobody to tell; what stays is found by `remove_leftovers`.
        drop(Namespace::delete_named(&self.name));
        held().namespaces.remove(&self.name);
    }
}

/// A socket for whole frames on a device of a namespace: sends what is crafted, receives what
/// arrives from now on, VLAN tags included.
///
/// # Errors
/// When there is no such device.
pub fn capture(namespace: &Namespace, ifname: &str) -> Result<PacketSocket> {
    Ok(namespace.run(|| PacketSocket::open(ifname))??)
}
