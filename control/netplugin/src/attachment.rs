//! What the node knows of one attached interface: its identity and its durable row.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use control_model::{Endpoint, Network, PortLimits};
use flowtable::entry::Band;
use flowtable::ids::Mac;
use serde::{Deserialize, Serialize};

use crate::published::Mapping;

const IFNAME_BYTES_MAX: usize = 15;
const CONTAINER_ID_BYTES_MAX: usize = 255;

/// Container id and interface name: the only key of an attachment, since pod names are reused
/// while old sandboxes still go away.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct AttachmentId {
    container_id: String,
    ifname: String,
}

/// A container id or interface name outside the CNI specification's alphabet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadAttachmentId {
    #[error("container id {0:?}: want letters, digits, \"_\", \".\" and \"-\", at most 255")]
    ContainerId(String),
    #[error("interface name {0:?}: want 1 to 15 bytes without \"/\", \":\" or white space")]
    Ifname(String),
}

impl AttachmentId {
    pub(crate) fn new(container_id: &str, ifname: &str) -> Result<Self, BadAttachmentId> {
        let first_ok = container_id.starts_with(|c: char| c.is_ascii_alphanumeric());
        let rest_ok = container_id.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if !first_ok || !rest_ok || container_id.len() > CONTAINER_ID_BYTES_MAX {
            return Err(BadAttachmentId::ContainerId(container_id.to_owned()));
        }
        let dots = ifname == "." || ifname == "..";
        let refused = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if ifname.is_empty() || ifname.len() > IFNAME_BYTES_MAX || dots || ifname.contains(refused)
        {
            return Err(BadAttachmentId::Ifname(ifname.to_owned()));
        }
        Ok(Self { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
    }

    pub(crate) fn container_id(&self) -> &str {
        &self.container_id
    }

    pub(crate) fn ifname(&self) -> &str {
        &self.ifname
    }
}

/// Also the endpoint's id at netmaster.
impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.container_id, self.ifname)
    }
}

/// How far an attachment has come. Written before the step that it names begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    /// An ADD is under way; found at start, it never finished and is undone.
    Attaching,
    /// The container has its interface.
    Attached,
    /// Being undone; what remains is the endpoint at netmaster at least.
    Releasing,
}

/// The network namespace an attachment lives in. The cookie tells it from a later one at the same
/// path: /proc/PID/ns/net is recycled with the PID, inode numbers with the namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    pub(crate) path: PathBuf,
    pub(crate) cookie: u64,
}

/// What the container's interface carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interface {
    #[serde(with = "mac_text")]
    pub(crate) mac: Mac,
    /// Bytes.
    pub(crate) mtu: u32,
    pub(crate) addresses: Vec<Address>,
    /// Gateways of the default routes made; a container's second interface gets none.
    pub(crate) default_routes: Vec<IpAddr>,
}

/// An address of the container with what follows from its subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Address {
    pub(crate) ip: IpAddr,
    pub(crate) prefix_len: u8,
    pub(crate) gateway: Option<IpAddr>,
}

impl Address {
    /// The addresses of an endpoint, with what its network says of them.
    pub(crate) fn all_of(endpoint: &Endpoint, network: &Network) -> Vec<Self> {
        let address = |ip| {
            let (prefix_len, gateway) = network.surroundings(ip)?;
            Some(Self { ip, prefix_len, gateway })
        };
        endpoint.addresses().filter_map(address).collect()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix_len)
    }
}

/// A rate in bits a second and how many bytes a sender may get ahead of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limit {
    pub(crate) rate: u64,
    pub(crate) burst: u64,
}

/// What a runtime limits a container to; `None`: not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Limits {
    /// What the container sends.
    pub(crate) from: Option<Limit>,
    /// What it receives.
    pub(crate) to: Option<Limit>,
}

impl From<Limits> for PortLimits {
    fn from(Limits { from, to }: Limits) -> Self {
        let band = |limit: Limit| Band { rate: limit.rate, burst: limit.burst };
        Self { from: from.map(band), to: to.map(band) }
    }
}

/// What a runtime says of a container, for netmaster to know.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) container_name: String,
    /// `name=value`
    pub(crate) labels: Vec<String>,
}

/// One durable row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    pub(crate) id: AttachmentId,
    pub(crate) state: State,
    /// `name` of the CNI configuration: garbage collection stays inside it.
    pub(crate) config_name: String,
    pub(crate) tenant: String,
    pub(crate) network: String,
    pub(crate) group: String,
    pub(crate) sandbox: Sandbox,
    /// 1..=4094
    pub(crate) port: u16,
    pub(crate) host_ifname: String,
    /// Index of a host end that another plugin made: it is not ours to remove.
    #[serde(default)]
    pub(crate) adopted: Option<u32>,
    /// What the runtime limits it to.
    #[serde(default)]
    pub(crate) limits: Limits,
    #[serde(default)]
    pub(crate) told: Told,
    /// Ports of the node that lead to it.
    #[serde(default)]
    pub(crate) published: Vec<Mapping>,
    /// Known once netmaster has handed out the address.
    pub(crate) interface: Option<Interface>,
}

mod mac_text {
    use flowtable::ids::Mac;
    use serde::{Deserialize as _, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(mac: &Mac, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(mac)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Mac, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example(container_id: &str) -> Attachment {
        let id = AttachmentId::new(container_id, "eth0").unwrap();
        Attachment {
            host_ifname: crate::naming::host_ifname(&id),
            id,
            state: State::Attached,
            config_name: "n1".into(),
            tenant: "red".into(),
            network: "blue".into(),
            group: String::new(),
            sandbox: Sandbox { path: "/run/netns/x".into(), cookie: 4242 },
            port: 7,
            adopted: None,
            limits: Limits::default(),
            told: Told::default(),
            published: Vec::new(),
            interface: Some(Interface {
                mac: Mac([2, 2, 10, 1, 1, 5]),
                mtu: 1450,
                addresses: vec![Address {
                    ip: "10.1.1.5".parse().unwrap(),
                    prefix_len: 24,
                    gateway: Some("10.1.1.254".parse().unwrap()),
                }],
                default_routes: vec!["10.1.1.254".parse().unwrap()],
            }),
        }
    }

    #[test]
    fn the_endpoint_id_joins_container_and_interface() {
        assert_eq!(AttachmentId::new("default-t1", "eth0").unwrap().to_string(), "default-t1:eth0");
    }

    #[test]
    fn identities_outside_the_alphabet_are_refused() {
        let long = "a".repeat(256);
        for id in ["", "-a", "a b", "a/b", "a:b", long.as_str()] {
            assert!(matches!(AttachmentId::new(id, "eth0"), Err(BadAttachmentId::ContainerId(_))));
        }
        for ifname in ["", ".", "..", "a/b", "a:b", "a b", "abcdefghijklmnop"] {
            assert!(matches!(AttachmentId::new("c1", ifname), Err(BadAttachmentId::Ifname(_))));
        }
    }

    #[test]
    fn a_row_from_before_there_were_limits_and_adopted_links_has_none() {
        let row = example("c1");
        let mut text = serde_json::to_value(&row).unwrap();
        for key in ["limits", "adopted", "told", "published"] {
            assert!(text.as_object_mut().unwrap().remove(key).is_some());
        }
        assert_eq!(serde_json::from_value::<Attachment>(text).unwrap(), row);
    }

    #[test]
    fn a_row_survives_its_text_form() {
        let row = example("c1");
        let text = serde_json::to_string(&row).unwrap();
        assert!(text.contains("\"mac\":\"02:02:0a:01:01:05\""), "{text}");
        assert_eq!(serde_json::from_str::<Attachment>(&text).unwrap(), row);
    }
}
