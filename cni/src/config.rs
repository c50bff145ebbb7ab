//! The network configuration on stdin, read once into values that hold.
//!
//! Unknown keys are ignored, as runtimes send more than a plugin declares. What the configuration
//! asks for and this version does not do (ranges, ports of SCTP) is refused,
//! since a container without what it asked for looks like one that has it.

use std::path::PathBuf;
use std::time::Duration;

use cni_api::v1::{Attachment, Code};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::environment::is_name;
use crate::failure::Failure;
use crate::journal::{Journal, Level};
use crate::version::Version;

const SOCKET: &str = "/run/weir/cni.sock";
const STATE_DIR: &str = "/var/lib/weir";
/// Seconds; runtimes give up after minutes, kubelet's own budget for a plugin is about 30.
const TIMEOUT: u64 = 25;
/// Seconds.
const TIMEOUTS: std::ops::RangeInclusive<u64> = 1..=300;
/// Bytes: the smallest IPv4 link (RFC 791, section 3.2) and the largest the kernel gives a veth.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    pub(crate) version: Version,
    pub(crate) name: String,
    pub(crate) tenant: String,
    pub(crate) network: String,
    pub(crate) group: String,
    pub(crate) socket: PathBuf,
    /// netplugin's; the deletion queue is in it.
    pub(crate) state_dir: PathBuf,
    /// 0: from the underlay.
    pub(crate) mtu: u32,
    pub(crate) timeout: Duration,
    pub(crate) journal: Option<Journal>,
    pub(crate) runtime: Runtime,
    /// `args.cni.ips`
    pub(crate) args_ips: Vec<String>,
    /// `args.cni.labels`, as `key=value`.
    pub(crate) args_labels: Vec<String>,
    pub(crate) dns: Dns,
    pub(crate) prev_result: Option<Value>,
    /// The attachments a GC keeps; `None` when the runtime did not say.
    pub(crate) valid: Option<Vec<Attachment>>,
    /// The plugin that chooses addresses in netmaster's place.
    pub(crate) ipam: Option<Value>,
    /// A key with its value that ADD refuses.
    pub(crate) unsupported: Option<(&'static str, String)>,
}

/// `runtimeConfig`: what the runtime adds for declared capabilities.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Runtime {
    pub(crate) ips: Vec<String>,
    pub(crate) mac: String,
    dns: Option<RuntimeDns>,
    pub(crate) bandwidth: Bandwidth,
    /// `None` also where Go has written an empty list.
    port_mappings: Option<Vec<PortMapping>>,
    ip_ranges: Option<Value>,
}

impl Runtime {
    /// Ports of the node that are asked for.
    pub(crate) fn port_mappings(&self) -> impl Iterator<Item = &PortMapping> {
        self.port_mappings.iter().flatten().filter(|mapping| mapping.host_port != 0)
    }
}

/// One of the `portMappings` capability.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PortMapping {
    /// 0: none is asked for.
    pub(crate) host_port: u32,
    pub(crate) container_port: u32,
    /// Empty: TCP.
    pub(crate) protocol: String,
    /// Empty: every address of the node.
    #[serde(rename = "hostIP")]
    pub(crate) host_ip: String,
}

impl PortMapping {
    /// The IP protocol; `None`: one that the engine does not translate.
    pub(crate) fn number(&self) -> Option<u32> {
        match self.protocol.to_ascii_lowercase().as_str() {
            "tcp" | "" => Some(6),
            "udp" => Some(17),
            _ => None,
        }
    }
}

/// The `bandwidth` capability: bits a second and bits; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Bandwidth {
    pub(crate) ingress_rate: u64,
    pub(crate) ingress_burst: u64,
    pub(crate) egress_rate: u64,
    pub(crate) egress_burst: u64,
}

/// The `dns` dictionary of the specification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
}

/// The `dns` capability, whose keys differ from the dictionary's.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct RuntimeDns {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    name: Option<String>,
    tenant: String,
    network: String,
    group: String,
    socket: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    mtu: u32,
    timeout_seconds: Option<u64>,
    log_file: Option<PathBuf>,
    log_level: Level,
    runtime_config: Runtime,
    args: Value,
    dns: Dns,
    ipam: Value,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<RawAttachment>>,
    // libcni writes this misnamed key beside the right one.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<RawAttachment>>,
}

#[derive(Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

/// The `cniVersion` of a configuration, as text and whatever it is, for VERSION.
pub(crate) fn stated_version(stdin: &[u8]) -> Option<String> {
    let config: Value = serde_json::from_slice(stdin).ok()?;
    config.get("cniVersion")?.as_str().map(str::to_owned)
}

impl Config {
    /// Reads and checks a configuration for any command.
    pub(crate) fn parse(stdin: &[u8]) -> Result<Self, Failure> {
        Self::read(stdin, |whole| whole)
    }

    /// Reads what DEL uses, and nothing else: a container that was attached, or whose ADD was refused, must
    /// come off also by a configuration that is wrong by now.
    pub(crate) fn parse_for_del(stdin: &[u8]) -> Result<Self, Failure> {
        Self::read(stdin, used_by_del)
    }

    fn read(stdin: &[u8], part: impl FnOnce(Value) -> Value) -> Result<Self, Failure> {
        let value: Value = serde_json::from_slice(stdin).map_err(|e| undecodable(&e))?;
        let version = parse_version(&value)?;
        let value = part(value);
        let raw = serde_json::from_value(value).map_err(|e| undecodable(&e).in_version(version))?;
        Self::check(raw, version).map_err(|f| f.in_version(version))
    }

    fn check(raw: Raw, version: Version) -> Result<Self, Failure> {
        let invalid = |msg: String| Err(Failure::new(Code::InvalidConfig, msg));
        let name = raw.name.unwrap_or_default();
        if name.is_empty() {
            return invalid("missing network name".to_owned());
        }
        if !is_name(&name) {
            return invalid(format!("invalid characters found in network name: {name}"));
        }
        if raw.mtu != 0 && !MTU.contains(&raw.mtu) {
            let (first, last) = (MTU.start(), MTU.end());
            return invalid(format!("mtu {} is not in {first}..={last}", raw.mtu));
        }
        let seconds = raw.timeout_seconds.unwrap_or(TIMEOUT);
        if !TIMEOUTS.contains(&seconds) {
            let (first, last) = (TIMEOUTS.start(), TIMEOUTS.end());
            return invalid(format!("timeoutSeconds {seconds} is not in {first}..={last}"));
        }
        let valid = raw.valid_attachments.or(raw.attachments).map(|all| {
            let attachment =
                |a: RawAttachment| Attachment { container_id: a.container_id, ifname: a.ifname };
            all.into_iter().map(attachment).collect()
        });
        Ok(Self {
            version,
            name,
            tenant: raw.tenant,
            network: raw.network,
            group: raw.group,
            socket: raw.socket.unwrap_or_else(|| SOCKET.into()),
            state_dir: raw.state_dir.unwrap_or_else(|| STATE_DIR.into()),
            mtu: raw.mtu,
            timeout: Duration::from_secs(seconds),
            journal: raw.log_file.map(|file| Journal { file, level: raw.log_level }),
            args_ips: args_ips(&raw.args),
            args_labels: args_labels(&raw.args)?,
            dns: raw.dns.with(raw.runtime_config.dns.clone()),
            unsupported: unsupported(&raw.runtime_config),
            ipam: Some(raw.ipam).filter(|ipam| !is_empty(ipam)),
            runtime: raw.runtime_config,
            prev_result: raw.prev_result.filter(|p| !p.is_null()),
            valid,
        })
    }
}

impl Dns {
    fn with(self, runtime: Option<RuntimeDns>) -> Self {
        let Some(runtime) = runtime else { return self };
        let or = |new: Vec<String>, old: Vec<String>| if new.is_empty() { old } else { new };
        Self {
            nameservers: or(runtime.servers, self.nameservers),
            domain: self.domain,
            search: or(runtime.searches, self.search),
            options: or(runtime.options, self.options),
        }
    }
}

/// What says whom to ask stays as it is; of the rest what is right.
fn used_by_del(mut config: Value) -> Value {
    if let Value::Object(fields) = &mut config {
        fields.retain(|key, value| match key.as_str() {
            "name" | "socket" | "stateDir" | "ipam" => true,
            "timeoutSeconds" => value.as_u64().is_some_and(|seconds| TIMEOUTS.contains(&seconds)),
            "logFile" => value.is_string(),
            "logLevel" => Level::deserialize(&*value).is_ok(),
            _ => false,
        });
    }
    config
}

fn undecodable(error: &serde_json::Error) -> Failure {
    Failure::new(Code::Decode, format!("cannot decode the network configuration: {error}"))
}

/// A configuration without `cniVersion` is of version 0.2.0, which is older than ours.
fn parse_version(config: &Value) -> Result<Version, Failure> {
    if !config.is_object() {
        let msg = format!("cannot decode the network configuration: {config} is no object");
        return Err(Failure::new(Code::Decode, msg));
    }
    let text = match config.get("cniVersion") {
        None | Some(Value::Null) => "0.2.0",
        Some(Value::String(text)) => text,
        Some(other) => {
            return Err(Failure::new(Code::Decode, format!("cniVersion {other} is not a string")));
        }
    };
    Version::parse(text).ok_or_else(|| {
        Failure::new(Code::IncompatibleVersion, "incompatible CNI versions")
            .details(format!("config is \"{text}\", plugin supports [{}]", Version::list()))
    })
}

fn args_ips(args: &Value) -> Vec<String> {
    let ips = args.pointer("/cni/ips").and_then(Value::as_array);
    ips.into_iter().flatten().filter_map(|ip| ip.as_str().map(str::to_owned)).collect()
}

/// A list of `{"key": .., "value": ..}` (CNI's conventions, "dynamic plugin specific fields").
fn args_labels(args: &Value) -> Result<Vec<String>, Failure> {
    let labels = args.pointer("/cni/labels").and_then(Value::as_array);
    let text = |label: &Value| {
        let [key, value] = ["key", "value"].map(|name| label.get(name).and_then(Value::as_str));
        key.zip(value).map(|(key, value)| format!("{key}={value}")).ok_or_else(|| {
            let msg = format!("args.cni.labels: {label} is not a key and a value");
            Failure::new(Code::InvalidConfig, msg)
        })
    };
    labels.into_iter().flatten().map(text).collect()
}

fn unsupported(runtime: &Runtime) -> Option<(&'static str, String)> {
    let mut unknown = runtime.port_mappings().filter(|mapping| mapping.number().is_none());
    if let Some(PortMapping { host_port, protocol, .. }) = unknown.next() {
        return Some(("runtimeConfig.portMappings", format!("{host_port}/{protocol}")));
    }
    let ranges = runtime.ip_ranges.as_ref().filter(|ranges| !is_empty(ranges))?;
    Some(("runtimeConfig.ipRanges", ranges.to_string()))
}

/// Go's encoders write the zero value of what nobody asked for.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.iter().all(is_empty),
        Value::Object(fields) => fields.values().all(is_empty),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Result<Config, Failure> {
        Config::parse(value.to_string().as_bytes())
    }

    #[test]
    fn defaults_are_those_of_the_interface_description() {
        let config =
            parse(&json!({"cniVersion": "1.0.0", "name": "n", "type": "weir-cni"})).unwrap();
        assert_eq!(config.socket, PathBuf::from("/run/weir/cni.sock"));
        assert_eq!(config.timeout, Duration::from_secs(25));
        assert_eq!(config.mtu, 0);
        assert_eq!(config.journal, None);
        assert_eq!(config.valid, None);
    }

    #[test]
    fn a_missing_version_is_0_2_0_and_incompatible() {
        let failure = parse(&json!({"name": "n"})).unwrap_err();
        assert_eq!((failure.code, failure.msg.as_str()), (1, "incompatible CNI versions"));
        assert_eq!(
            failure.details,
            "config is \"0.2.0\", plugin supports [0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0]"
        );
    }

    #[test]
    fn wrong_types_are_decode_errors_in_the_configurations_version() {
        for bad in [
            json!({"cniVersion": "0.4.0", "name": 7}),
            json!({"cniVersion": "0.4.0", "name": "n", "mtu": "big"}),
            json!({"cniVersion": "0.4.0", "name": "n", "mtu": -1}),
            json!({"cniVersion": "0.4.0", "name": "n", "runtimeConfig": {"ips": "10.1.1.1"}}),
            json!({"cniVersion": "0.4.0", "name": "n", "logLevel": "loud"}),
        ] {
            let failure = parse(&bad).unwrap_err();
            assert_eq!((failure.code, failure.version), (6, Version::V0_4_0), "{bad}");
        }
        assert_eq!(parse(&json!([1])).unwrap_err().code, 6);
        assert_eq!(parse(&json!({"cniVersion": 1})).unwrap_err().code, 6);
        assert_eq!(Config::parse(b"").unwrap_err().code, 6);
    }

    #[test]
    fn del_ignores_what_is_wrong_with_what_it_does_not_use() {
        let for_del = |value: Value| Config::parse_for_del(value.to_string().as_bytes());
        let config = json!({"cniVersion": "1.0.0", "name": "n", "socket": "/s", "stateDir": "/d",
            "timeoutSeconds": 3, "logFile": "/l", "logLevel": "error", "ipam": {"type": "x"}});
        let sound = for_del(config.clone()).unwrap();
        assert_eq!(sound, parse(&config).unwrap());
        for (key, wrong) in [
            ("mtu", json!(67)),
            ("mtu", json!("big")),
            ("tenant", json!(7)),
            ("dns", json!([])),
            ("args", json!({"cni": {"labels": [{"key": "app"}]}})),
            ("runtimeConfig", json!({"ips": "10.1.1.1", "portMappings": [{"hostPort": -1}]})),
            ("cni.dev/valid-attachments", json!(7)),
            ("prevResult", json!(7)),
        ] {
            let mut config = config.clone();
            config[key] = wrong;
            assert_eq!(for_del(config).as_ref(), Ok(&sound), "{key}");
        }
        for (key, wrong) in [
            ("timeoutSeconds", json!(0)),
            ("timeoutSeconds", json!("3")),
            ("logFile", json!(7)),
            ("logLevel", json!("loud")),
        ] {
            let (mut wrong_one, mut without) = (config.clone(), config.clone());
            wrong_one[key] = wrong;
            without.as_object_mut().unwrap().remove(key);
            assert_eq!(for_del(wrong_one), for_del(without), "{key}");
        }
        for (key, wrong, code) in [
            ("cniVersion", json!("2.0.0"), 1),
            ("name", json!("a/b"), 7),
            ("socket", json!(7), 6),
            ("stateDir", json!([]), 6),
        ] {
            let mut config = config.clone();
            config[key] = wrong;
            assert_eq!(for_del(config).unwrap_err().code, code, "{key}");
        }
    }

    #[test]
    fn names_and_ranges_are_checked() {
        for (bad, msg) in [
            (json!({"cniVersion": "1.0.0"}), "missing network name"),
            (
                json!({"cniVersion": "1.0.0", "name": "a/b"}),
                "invalid characters found in network name: a/b",
            ),
            (json!({"cniVersion": "1.0.0", "name": "n", "mtu": 67}), "mtu 67 is not in 68..=65535"),
            (
                json!({"cniVersion": "1.0.0", "name": "n", "timeoutSeconds": 0}),
                "timeoutSeconds 0 is not in 1..=300",
            ),
        ] {
            let failure = parse(&bad).unwrap_err();
            assert_eq!((failure.code, failure.msg.as_str()), (7, msg));
        }
    }

    #[test]
    fn the_misnamed_attachments_key_of_libcni_is_read_too() {
        let config = parse(&json!({"cniVersion": "1.1.0", "name": "n",
            "cni.dev/attachments": [{"containerID": "a1", "ifname": "eth0"}]}))
        .unwrap();
        let a1 = Attachment { container_id: "a1".into(), ifname: "eth0".into() };
        assert_eq!(config.valid, Some(vec![a1]));
    }

    #[test]
    fn empty_values_of_unsupported_keys_are_not_requests() {
        let config = parse(&json!({"cniVersion": "1.0.0", "name": "n", "ipam": {},
            "runtimeConfig": {"portMappings": [], "bandwidth": {"ingressRate": 0}}}))
        .unwrap();
        assert_eq!(config.unsupported, None);
        let with = |runtime: Value| {
            let config = json!({"cniVersion": "1.0.0", "name": "n", "runtimeConfig": runtime});
            parse(&config).unwrap().unsupported
        };
        let ports = |protocol| json!({"portMappings": [{"hostPort": 80, "protocol": protocol}]});
        for supported in ["tcp", "TCP", "udp", ""] {
            assert_eq!(with(ports(supported)), None);
        }
        let sctp = ("runtimeConfig.portMappings", "80/sctp".to_owned());
        assert_eq!(with(ports("sctp")), Some(sctp));
        assert_eq!(with(json!({"portMappings": [{"hostPort": 0, "protocol": "sctp"}]})), None);
        let ranges = ("runtimeConfig.ipRanges", "[[{\"subnet\":\"10.0.0.0/8\"}]]".to_owned());
        assert_eq!(with(json!({"ipRanges": [[{"subnet": "10.0.0.0/8"}]]})), Some(ranges));
    }

    #[test]
    fn runtime_dns_wins_over_configured_dns_key_by_key() {
        let config = parse(&json!({"cniVersion": "1.0.0", "name": "n",
            "dns": {"nameservers": ["10.0.0.1"], "domain": "a.b"},
            "runtimeConfig": {"dns": {"servers": ["10.0.0.2"], "searches": ["c.d"]}}}))
        .unwrap();
        assert_eq!(
            serde_json::to_value(&config.dns).unwrap(),
            json!({"nameservers": ["10.0.0.2"], "domain": "a.b", "search": ["c.d"]})
        );
    }
}
