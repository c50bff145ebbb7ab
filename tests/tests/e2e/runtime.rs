//! A container runtime, played by the tests: it calls the plugin with any words, right or wrong,
//! and looks at what the call left on the node.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::{CONTAINER_IFNAME, CniCall, Finished, NetnsGuard, Node, wait_until};
use serde_json::{Value, json};

use crate::site::{BOUND, endpoints, links, netctl_json, ports};

/// From the answer to DEL to the end of the link.
const LINK_BOUND: Duration = Duration::from_secs(1);

/// One attachment and every word of the calls for it.
#[derive(Debug)]
pub(crate) struct Plug {
    netns: NetnsGuard,
    /// The network configuration, without `prevResult`.
    pub(crate) config: Value,
    /// `CNI_CONTAINERID`.
    pub(crate) id: String,
    /// `CNI_NETNS`.
    pub(crate) path: PathBuf,
    /// `CNI_IFNAME`.
    pub(crate) ifname: &'static str,
    /// `CNI_ARGS`.
    pub(crate) args: String,
}

impl Plug {
    /// A namespace to be attached to a network of tenant blue.
    pub(crate) fn new(node: &Node, network: &str) -> Result<Self> {
        let netns = NetnsGuard::new(node.purpose(), "plug")?;
        Ok(Self {
            config: node.cni_config(&json!({ "tenant": "blue", "network": network })),
            id: netns.name().to_owned(),
            path: netns.path(),
            ifname: CONTAINER_IFNAME,
            args: String::new(),
            netns,
        })
    }

    /// The container's namespace.
    pub(crate) const fn netns(&self) -> &NetnsGuard {
        &self.netns
    }

    /// Executes the plugin, with `previous` as `prevResult` unless it is null.
    pub(crate) fn call(&self, node: &Node, command: &str, previous: &Value) -> Result<Finished> {
        let mut config = self.config.clone();
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        self.call_with(node, command, &config.to_string())
    }

    /// Executes the plugin with any text as configuration.
    pub(crate) fn call_with(&self, node: &Node, command: &str, stdin: &str) -> Result<Finished> {
        node.cni(&CniCall {
            command,
            container_id: &self.id,
            netns: &self.path,
            ifname: self.ifname,
            args: &self.args,
            stdin,
        })
    }

    /// ADD, which must succeed; its result.
    pub(crate) fn add(&self, node: &Node) -> Result<Value> {
        let text = self.call(node, "ADD", &Value::Null)?.success().context("ADD")?;
        serde_json::from_str(&text).with_context(|| format!("ADD prints {text}"))
    }

    /// DEL, which must succeed and say nothing; the link it leaves to the node is gone soon after.
    pub(crate) fn del(&self, node: &Node) -> Result<()> {
        self.del_unheard(node)?;
        let netlink = self.netns.netlink()?;
        let gone = || netlink.link_by_name(self.ifname).ok()?.is_none().then_some(());
        wait_until(LINK_BOUND, "the link to be gone", gone)?;
        Ok(())
    }

    /// DEL while nobody is there to remove the link.
    pub(crate) fn del_unheard(&self, node: &Node) -> Result<()> {
        let text = self.call(node, "DEL", &Value::Null)?.success().context("DEL")?;
        ensure!(text.is_empty(), "DEL prints {text}");
        Ok(())
    }

    /// A call that must be refused with `code`; its message.
    pub(crate) fn refused(&self, node: &Node, command: &str, code: u64) -> Result<String> {
        refusal(&self.call(node, command, &Value::Null)?, code)
    }
}

/// What the plugin says when it refuses: an error object of `code` on stdout, one line, and nothing
/// on stderr, which libcni would not read.
pub(crate) fn refusal(finished: &Finished, code: u64) -> Result<String> {
    ensure!(finished.code == Some(1), "not refused: {finished:?}");
    ensure!(finished.stderr.is_empty(), "on stderr: {finished:?}");
    let error: Value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("no error object: {finished:?}"))?;
    ensure!(error["code"] == code, "not code {code}: {error}");
    ensure!(error["cniVersion"].is_string(), "no cniVersion: {error}");
    let msg = error["msg"].as_str().context("no msg")?;
    ensure!(!msg.is_empty() && !msg.contains('\n'), "msg is no line: {error}");
    Ok(msg.to_owned())
}

/// Everything an attachment can leave behind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    links: Vec<String>,
    ports: Vec<String>,
    endpoints: Vec<String>,
    addresses: Vec<Value>,
}

impl Traces {
    /// What there is once every node has forgotten who has left; `networks` are tenant blue's.
    pub(crate) fn of(node: &Node, networks: &[&str]) -> Result<Self> {
        wait_until(BOUND, "addresses that are leaving to be free", || {
            let listed = netctl_json(node, "ip ls -a").ok()?;
            let mut addresses = listed.as_array()?.iter();
            addresses.all(|address| address["state"] != "leaving").then_some(())
        })?;
        let addresses = networks.iter().map(|name| {
            let network = netctl_json(node, &format!("network inspect -t blue {name}"))?;
            let oper = &network["Oper"];
            Ok(json!([oper["availableIPAddresses"], oper["availableIPv6Addresses"]]))
        });
        Ok(Self {
            links: links(node)?,
            ports: ports(node)?.into_values().collect(),
            endpoints: endpoints(node)?,
            addresses: addresses.collect::<Result<_>>()?,
        })
    }

    /// Waits until there is just this again: links go behind the answer to a DEL.
    pub(crate) fn again(&self, node: &Node, networks: &[&str]) -> Result<()> {
        let now = || Self::of(node, networks);
        wait_until(BOUND, "just what was before", || now().ok().filter(|now| now == self))
            .with_context(|| format!("{:?}, before {self:?}", now()))?;
        Ok(())
    }
}
