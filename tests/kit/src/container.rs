//! A container: a namespace that weir-cni attached to a node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netdev::Namespace;
use serde_json::{Value, json};

use crate::cni::CniCall;
use crate::netns::NetnsGuard;
use crate::node::Node;
use crate::process::Finished;
use crate::wait::wait_until;

/// Name of a container's device, inside it.
pub const CONTAINER_IFNAME: &str = "eth0";

/// From the answer to DEL to the end of the link.
const LINK_BOUND: Duration = Duration::from_secs(1);

/// What a container is to be attached to.
#[derive(Debug, Clone, Copy)]
pub struct ContainerSpec<'a> {
    /// Ends its namespace's name and its container id.
    pub name: &'a str,
    /// The tenant.
    pub tenant: &'a str,
    /// The network.
    pub network: &'a str,
    /// The endpoint group, if any.
    pub group: Option<&'a str>,
    /// `CNI_ARGS`: `K=V` joined by semicolons, or nothing.
    pub args: &'a str,
}

/// An attached container. Dropping it removes the namespace, as a runtime that crashed would;
/// [`Container::detach`] goes by the book.
#[derive(Debug)]
pub struct Container {
    netns: NetnsGuard,
    args: String,
    config: Value,
    result: Value,
    address: Ipv4Addr,
    prefix_len: u8,
    address6: Option<Ipv6Addr>,
}

impl Container {
    /// Makes a namespace on `node` and has the plugin attach it as `eth0`.
    ///
    /// # Errors
    /// The plugin's refusal, or a result that is not one.
    pub fn attach(node: &Node, spec: &ContainerSpec<'_>) -> Result<Self> {
        Self::attach_with(node, spec, &json!({}))
    }

    /// As [`Container::attach`], with more keys in the configuration, `runtimeConfig` for one.
    ///
    /// # Errors
    /// As [`Container::attach`].
    pub fn attach_with(node: &Node, spec: &ContainerSpec<'_>, more: &Value) -> Result<Self> {
        let netns = NetnsGuard::new(node.purpose(), spec.name)?;
        let mut keys = json!({ "tenant": spec.tenant, "network": spec.network });
        if let Some(group) = spec.group {
            keys["group"] = group.into();
        }
        for (key, value) in more.as_object().into_iter().flatten() {
            keys[key] = value.clone();
        }
        let mut container = Self {
            netns,
            args: spec.args.into(),
            config: node.cni_config(&keys),
            result: Value::Null,
            address: Ipv4Addr::UNSPECIFIED,
            prefix_len: 0,
            address6: None,
        };
        let text = container.call(node, "ADD")?.success();
        let text = text.with_context(|| format!("attaching {}", spec.name))?;
        container.result = serde_json::from_str(&text).with_context(|| format!("ADD: {text}"))?;
        container.read_addresses().with_context(|| format!("ADD: {text}"))?;
        Ok(container)
    }

    fn read_addresses(&mut self) -> Result<()> {
        for ip in self.result["ips"].as_array().context("no list of addresses")? {
            let address = ip["address"].as_str().context("no text")?;
            let (address, len) = address.split_once('/').context("an address without a length")?;
            match address.parse()? {
                IpAddr::V4(address) => (self.address, self.prefix_len) = (address, len.parse()?),
                IpAddr::V6(address) => self.address6 = Some(address),
            }
        }
        ensure!(!self.address.is_unspecified(), "no IPv4 address");
        Ok(())
    }

    /// Its IPv6 address.
    ///
    /// # Errors
    /// When its network hands none out.
    pub fn address6(&self) -> Result<Ipv6Addr> {
        self.address6.with_context(|| format!("{} has no IPv6 address", self.netns.name()))
    }

    /// Its IPv4 address.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Length of its IPv4 subnet's prefix.
    #[must_use]
    pub const fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// Its gateway, when the result names one.
    #[must_use]
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.result["ips"][0]["gateway"].as_str()?.parse().ok()
    }

    /// The hardware address of its device, as the kernel has it.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn mac(&self) -> Result<[u8; 6]> {
        let link = self.netns.netlink()?.link_by_name(CONTAINER_IFNAME)?;
        Ok(link.with_context(|| format!("no {CONTAINER_IFNAME} in {}", self.netns.name()))?.mac)
    }

    /// Name of its device on the node, from the result: the one outside a sandbox.
    #[must_use]
    pub fn host_ifname(&self) -> Option<&str> {
        let interfaces = self.result["interfaces"].as_array()?;
        let outside = |one: &&Value| one["sandbox"].as_str().is_none_or(str::is_empty);
        interfaces.iter().find(outside)?["name"].as_str()
    }

    /// Its container id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.netns.name()
    }

    /// Its namespace.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        self.netns.namespace()
    }

    /// Path of its namespace.
    #[must_use]
    pub fn netns_path(&self) -> PathBuf {
        self.netns.path()
    }

    /// What ADD printed.
    #[must_use]
    pub const fn result(&self) -> &Value {
        &self.result
    }

    /// Has the plugin check the attachment.
    ///
    /// # Errors
    /// The plugin's refusal.
    pub fn check(&self, node: &Node) -> Result<()> {
        self.call(node, "CHECK")?.success().map(drop).context("CHECK")
    }

    /// Has the plugin detach it, then removes the namespace. The link is gone when this returns.
    ///
    /// # Errors
    /// The plugin's refusal, or output, of which DEL has none.
    pub fn detach(self, node: &Node) -> Result<()> {
        let text = self.call(node, "DEL")?.success().context("DEL")?;
        ensure!(text.trim().is_empty(), "DEL prints {text}");
        let netlink = self.netns.netlink()?;
        let gone = || netlink.link_by_name(CONTAINER_IFNAME).ok()?.is_none().then_some(());
        wait_until(LINK_BOUND, "the link to be gone", gone)?;
        Ok(())
    }

    /// Executes the plugin for this container with any command; the previous result goes along as
    /// the specification demands.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn call(&self, node: &Node, command: &str) -> Result<Finished> {
        let mut config = self.config.clone();
        if !self.result.is_null() {
            config["prevResult"] = self.result.clone();
        }
        node.cni(&CniCall {
            command,
            container_id: self.id(),
            netns: &self.netns.path(),
            ifname: CONTAINER_IFNAME,
            args: &self.args,
            stdin: &config.to_string(),
        })
    }
}
