//! Executing weir-cni as a container runtime does.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::binary::binary;
use crate::node::Node;
use crate::process::{Finished, run_with_input};

/// Code of the CNI specification for a plugin that works with limits, such as without a peer.
const LIMITED_CONNECTIVITY: i64 = 51;

/// One execution of the plugin. Every value is passed as it is, so that wrong ones can be tried;
/// an empty variable is not set.
#[derive(Debug, Clone, Copy)]
pub struct CniCall<'a> {
    /// `CNI_COMMAND`.
    pub command: &'a str,
    /// `CNI_CONTAINERID`.
    pub container_id: &'a str,
    /// `CNI_NETNS`.
    pub netns: &'a Path,
    /// `CNI_IFNAME`.
    pub ifname: &'a str,
    /// `CNI_ARGS`.
    pub args: &'a str,
    /// What is on stdin.
    pub stdin: &'a str,
}

impl Node {
    /// Executes weir-cni in this node.
    ///
    /// # Errors
    /// When it cannot be executed; its exit code is in the result.
    pub fn cni(&self, call: &CniCall<'_>) -> Result<Finished> {
        let plugin = binary("weir-cni")?;
        let mut command = Command::new(&plugin);
        command.env("CNI_PATH", plugin.parent().unwrap_or(Path::new("/opt/cni/bin")));
        let netns = call.netns.to_str().context("a path that is not text")?;
        let variables = [
            ("CNI_COMMAND", call.command),
            ("CNI_CONTAINERID", call.container_id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", call.ifname),
            ("CNI_ARGS", call.args),
        ];
        command.envs(variables.into_iter().filter(|(_, value)| !value.is_empty()));
        run_with_input(self.namespace(), command, call.stdin.as_bytes())
    }

    /// Asks the plugin whether this node can attach containers.
    ///
    /// # Errors
    /// The plugin's refusal.
    pub fn cni_status(&self) -> Result<()> {
        let stdin = self.cni_config(&json!({})).to_string();
        let call = CniCall {
            command: "STATUS",
            container_id: "",
            netns: Path::new(""),
            ifname: "",
            args: "",
            stdin: &stdin,
        };
        let finished = self.cni(&call)?;
        if finished.code == Some(0) {
            return Ok(());
        }
        let refusal: Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
        if refusal["code"] == LIMITED_CONNECTIVITY {
            return Ok(());
        }
        bail!("STATUS: {}{}", finished.stdout, finished.stderr)
    }

    /// A network configuration for this node with `keys` added to it.
    #[must_use]
    pub fn cni_config(&self, keys: &Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "weir",
            "type": "weir-cni",
            "socket": self.cni_socket(),
            "stateDir": self.state_dir(),
        });
        for (key, value) in keys.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }
}
