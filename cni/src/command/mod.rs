//! One operation from input to output: what `main` runs and what the tests drive.
//!
//! Checks come in an order that makes refusals cheap and harmless: environment, configuration,
//! version, then what the operation itself forbids; netplugin is asked last.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;
use std::time::SystemTime;

use cni_api::v1::{
    AddRequest, Bandwidth, CheckRequest, Code, DelRequest, GcRequest, PortMapping, StatusRequest,
};
use serde_json::Value;

use crate::call::Call;
use crate::config::{self, Config, stated_version};
use crate::environment::{Command, Environment};
use crate::failure::Failure;
use crate::ipam::Delegate;
use crate::journal::Event;
use crate::queue::{NotQueued, enqueue};
use crate::success::{Sandbox, added, adopted, versions};
use crate::times::Times;
use crate::version::Version;

/// Where nobody names one.
const TENANT: &str = "default";
const OWN_NETNS: &str = "/proc/thread-self/ns/net";
/// What netmaster takes as a container's name, and as the owner of a reservation.
const CONTAINER_NAME_BYTES_MAX: usize = 255;
/// Stands for the beginning of a pod's name that is too long with its namespace.
const POD_NAME_CUT: &str = "...";

/// What the process prints and how it exits.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) exit: ExitCode,
}

/// Runs the operation that `env` and `stdin` describe.
pub(crate) fn run(env: &Environment, stdin: &[u8]) -> Output {
    if !env.has_command() {
        return Output { stdout: String::new(), stderr: about(), exit: ExitCode::SUCCESS };
    }
    let command = match env.command() {
        Ok(command) => command,
        Err(failure) => return failure.into_output(),
    };
    if command == Command::Version {
        return printed(&versions(stated_version(stdin)));
    }
    let parse = if command == Command::Del { Config::parse_for_del } else { Config::parse };
    let config = match parse(stdin) {
        Ok(config) => config,
        Err(failure) => return failure.into_output(),
    };
    let given = Given { env, config: &config, times: Times::of(&config) };
    let outcome = operate(command, &given, stdin).map_err(|f| f.in_version(config.version));
    journal(command, env, &config, outcome)
}

fn about() -> String {
    format!(
        "weir-cni {}: attaches containers to Weir networks\n\
         CNI protocol versions supported: {}\n",
        env!("CARGO_PKG_VERSION"),
        Version::list()
    )
}

fn printed(result: &Value) -> Output {
    Output { stdout: format!("{result}\n"), stderr: String::new(), exit: ExitCode::SUCCESS }
}

fn journal(
    command: Command,
    env: &Environment,
    config: &Config,
    outcome: Result<Done, Failure>,
) -> Output {
    let (outcome, lost) = match outcome {
        Ok(Done { result, lost }) => (Ok(result), lost),
        Err(failure) => (Err(failure), None),
    };
    let failed = outcome.as_ref().err().map(|f| f.msg.clone()).or_else(|| lost.clone());
    let mut output = match outcome {
        Ok(Some(result)) => printed(&result),
        Ok(None) => {
            Output { stdout: String::new(), stderr: String::new(), exit: ExitCode::SUCCESS }
        }
        Err(failure) => failure.into_output(),
    };
    if let Some(lost) = lost {
        output.stderr = format!("weir-cni: {lost}\n");
    }
    let Some(journal) = &config.journal else { return output };
    let attachment = env.attachment();
    let event = Event {
        command: command.text(),
        container_id: &attachment.container_id,
        ifname: &attachment.ifname,
        failed: failed.as_deref(),
        printed: &output.stdout,
    };
    // A full disk must not keep containers from starting: say so and carry on.
    #[expect(clippy::disallowed_methods, reason = "a line for people")]
    let now = SystemTime::now();
    if let Err(error) = journal.append(&event, now) {
        let unlogged = format!("weir-cni: logFile {}: {error}\n", journal.file.display());
        output.stderr.push_str(&unlogged);
    }
    output
}

/// What the runtime gave.
#[derive(Clone, Copy)]
struct Given<'a> {
    env: &'a Environment,
    config: &'a Config,
    times: Times,
}

impl Given<'_> {
    fn connect(&self) -> Result<Call, Failure> {
        Call::connect(self.env, self.config, self.times.left())
    }
}

/// What an operation that went well has to say.
struct Done {
    result: Option<Value>,
    /// What a DEL could not give back, and no other DEL can.
    lost: Option<String>,
}

impl Done {
    const SILENT: Self = Self { result: None, lost: None };

    const fn with(result: Value) -> Self {
        Self { result: Some(result), lost: None }
    }
}

fn operate(command: Command, given: &Given<'_>, stdin: &[u8]) -> Result<Done, Failure> {
    let Given { env, config, times } = *given;
    let delegate = Delegate::of(config, env, stdin, times);
    // What we refuse for its input does not reach the delegated plugin, which may look less closely.
    match command {
        Command::Version => {
            return Ok(Done::with(versions(Some(config.version.text().to_owned()))));
        }
        Command::Add => return add(given, delegate?.as_ref()).map(Done::with),
        Command::Del => return give_back(given, delegate),
        Command::Gc => match gc(given, gc_request(config)?) {
            Err(refused) if refused.is_about_input() => Err(refused),
            ours => both(ours, hand_on(command, delegate)),
        },
        Command::Check => check(given).and_then(|()| hand_on(command, delegate)),
        Command::Status => status(given).and_then(|()| hand_on(command, delegate)),
    }
    .map(|()| Done::SILENT)
}

/// DEL, of both. Whatever became of ours: an address that is not given back is lost.
fn give_back(
    given: &Given<'_>,
    delegate: Result<Option<Delegate<'_>>, Failure>,
) -> Result<Done, Failure> {
    let ours = del(given, &del_request(given.env)?);
    match delegate {
        // Most of all after an ADD that was refused for that; a DEL that fails for ever keeps the container.
        Err(absent) => {
            let lost = format!("the ipam plugin keeps what it may have lent: {}", absent.msg);
            ours.map(|()| Done { result: None, lost: Some(lost) })
        }
        Ok(delegate) => both(ours, hand_on(Command::Del, Ok(delegate))).map(|()| Done::SILENT),
    }
}

fn hand_on(
    command: Command,
    delegate: Result<Option<Delegate<'_>>, Failure>,
) -> Result<(), Failure> {
    delegate?.map_or(Ok(()), |delegate| delegate.forward(command))
}

/// The failure of ours, with what the delegated plugin says where that failed too.
fn both(ours: Result<(), Failure>, theirs: Result<(), Failure>) -> Result<(), Failure> {
    match (ours, theirs) {
        (Err(ours), Err(theirs)) => Err(ours.also(&theirs.msg)),
        (ours, theirs) => ours.and(theirs),
    }
}

fn add(given: &Given<'_>, delegate: Option<&Delegate<'_>>) -> Result<Value, Failure> {
    let Given { env, config, .. } = *given;
    let mut request = add_request(env, config)?;
    if !env.overrides_netns() {
        refuse_own_netns(env.netns())?;
    }
    let attachment = env.attachment();
    if let Some(delegate) = delegate {
        request.ips = delegate.add()?;
    }
    let reply =
        given.connect().and_then(|call| call.add(request)).map_err(|failure| {
            match delegate.map(|delegate| delegate.forward(Command::Del)) {
                None | Some(Ok(())) => failure,
                Some(Err(kept)) => {
                    failure.also(&format!("its address is not given back: {}", kept.msg))
                }
            }
        })?;
    let sandbox = Sandbox { ifname: &attachment.ifname, netns: env.netns() };
    let (dns, version) = (&config.dns, config.version);
    Ok(match &config.prev_result {
        Some(previous) => adopted(previous, &reply, sandbox, dns, version),
        None => added(&reply, sandbox, dns, version),
    })
}

fn add_request(env: &Environment, config: &Config) -> Result<AddRequest, Failure> {
    let given = config.prev_result.as_ref().map(|previous| given_ips(env, config, previous));
    let given = given.transpose()?;
    if let Some((key, value)) = &config.unsupported {
        let msg = format!("unsupported field {key}: {value}");
        return Err(Failure::new(Code::UnsupportedField, msg)
            .details("addresses come from netmaster, and published ports are TCP's or UDP's"));
    }
    let or = |key: &str, configured: &str| env.arg(key).unwrap_or(configured).to_owned();
    let network = or("WEIR_NETWORK", &config.network);
    if network.is_empty() {
        return Err(Failure::new(
            Code::InvalidConfig,
            "no network named: set \"network\" in the configuration or WEIR_NETWORK in CNI_ARGS",
        ));
    }
    let tenant = or("WEIR_TENANT", &config.tenant);
    let chained = given.is_some();
    let mac = match &config.runtime.mac {
        // The interface has one, which the runtime asked the plugin before for.
        _ if chained => String::new(),
        mac if mac.is_empty() => or("MAC", ""),
        mac => mac.clone(),
    };
    Ok(AddRequest {
        attachment: Some(env.attachment()),
        netns: env.netns().to_owned(),
        tenant: if tenant.is_empty() { TENANT.to_owned() } else { tenant },
        network,
        group: or("WEIR_GROUP", &config.group),
        ips: given.map_or_else(|| wanted_ips(env, config), Ok)?,
        chained,
        mac,
        mtu: config.mtu,
        container_name: container_name(env),
        labels: labels(env, config),
        config_name: config.name.clone(),
        bandwidth: wanted_bandwidth(config.runtime.bandwidth),
        published: config.runtime.port_mappings().map(wanted_port).collect(),
    })
}

/// What reservations and people call the container. Pods of different namespaces share names, so that
/// one's is `NAMESPACE/NAME` where the runtime says both.
fn container_name(env: &Environment) -> String {
    let name = env.arg("K8S_POD_NAME").unwrap_or_default();
    let namespace = env.arg("K8S_POD_NAMESPACE").filter(|_| !name.is_empty());
    let Some(namespace) = namespace else { return name.to_owned() };
    let whole = format!("{namespace}/{name}");
    let excess = whole.len().saturating_sub(CONTAINER_NAME_BYTES_MAX);
    if excess == 0 {
        return whole;
    }
    // Pods of one set differ at the end, and no pod's name begins with a dot.
    let cut = name.ceil_char_boundary(excess + POD_NAME_CUT.len());
    format!("{namespace}/{POD_NAME_CUT}{}", &name[cut..])
}

/// Addresses of the interface that the plugins before have made, which is adopted with them.
fn given_ips(env: &Environment, config: &Config, previous: &Value) -> Result<Vec<String>, Failure> {
    let attachment = env.attachment();
    let (ifname, netns) = (attachment.ifname.as_str(), env.netns());
    let refuse = |msg: String| {
        Err(Failure::new(Code::InvalidConfig, msg)
            .details("weir-cni makes the interface when it is first in the plugin list"))
    };
    if config.ipam.is_some() {
        return refuse(format!("ipam and prevResult: {ifname} has its addresses already"));
    }
    let is_ours =
        |interface: &Value| interface["name"] == *ifname && interface["sandbox"] == *netns;
    let mut interfaces = previous["interfaces"].as_array().into_iter().flatten();
    if !interfaces.any(is_ours) {
        return refuse(format!("prevResult has no interface {ifname} in {netns} to adopt"));
    }
    let ips = listed_ips(previous, ifname);
    if ips.is_empty() {
        return refuse(format!("prevResult gives {ifname} no address"));
    }
    distinct(Code::InvalidConfig, "prevResult.ips", ips.iter().map(String::as_str))
}

/// `args.cni.labels`, or else `WEIR_LABELS` in `CNI_ARGS`: `name=value` joined by commas.
fn labels(env: &Environment, config: &Config) -> Vec<String> {
    if !config.args_labels.is_empty() {
        return config.args_labels.clone();
    }
    let given = env.arg("WEIR_LABELS").unwrap_or("").split(',');
    given.filter(|label| !label.is_empty()).map(str::to_owned).collect()
}

fn wanted_bandwidth(wanted: config::Bandwidth) -> Option<Bandwidth> {
    let config::Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst } = wanted;
    let is_wanted = wanted != config::Bandwidth::default();
    is_wanted.then_some(Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst })
}

/// Of a protocol that was checked.
fn wanted_port(wanted: &config::PortMapping) -> PortMapping {
    PortMapping {
        host_ip: wanted.host_ip.clone(),
        protocol: wanted.number().unwrap_or_default(),
        host_port: wanted.host_port,
        container_port: wanted.container_port,
    }
}

/// `runtimeConfig`, then `args.cni.ips`, then `CNI_ARGS`: the first that names any.
fn wanted_ips(env: &Environment, config: &Config) -> Result<Vec<String>, Failure> {
    let (runtime, args) = (&config.runtime.ips, &config.args_ips);
    if !runtime.is_empty() {
        let ips = runtime.iter().map(String::as_str);
        return distinct(Code::InvalidConfig, "runtimeConfig.ips", ips);
    }
    if !args.is_empty() {
        return distinct(Code::InvalidConfig, "args.cni.ips", args.iter().map(String::as_str));
    }
    let ips = env.arg("IP").unwrap_or("").split(',').filter(|ip| !ip.is_empty());
    distinct(Code::InvalidEnvironment, "IP in CNI_ARGS", ips)
}

/// Podman lists an address twice, and without its prefix length, after `network reload`.
fn distinct<'a>(
    code: Code,
    key: &str,
    ips: impl Iterator<Item = &'a str>,
) -> Result<Vec<String>, Failure> {
    let mut seen: Vec<IpAddr> = Vec::new();
    let mut kept = Vec::new();
    for text in ips {
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let Ok(ip) = address.parse::<IpAddr>() else {
            return Err(Failure::new(code, format!("{key}: \"{text}\" is not an IP address")));
        };
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        if length.is_some_and(|l| !l.parse::<u8>().is_ok_and(|l| l <= bits)) {
            let msg = format!("{key}: \"{text}\" has no prefix length of 0..={bits}");
            return Err(Failure::new(code, msg));
        }
        if !seen.contains(&ip) {
            seen.push(ip);
            kept.push(text.to_owned());
        }
    }
    Ok(kept)
}

/// Moving an interface into the plugin's own namespace would leave it on the host, where nobody
/// removes it.
fn refuse_own_netns(netns: &str) -> Result<(), Failure> {
    std::fs::metadata(netns).map_err(|error| {
        Failure::new(Code::InvalidNetns, format!("cannot use CNI_NETNS {netns}: {error}"))
    })?;
    if is_own_netns(netns) { Err(own_netns()) } else { Ok(()) }
}

/// A namespace that is gone, or that nobody named, is not ours.
fn is_own_netns(netns: &str) -> bool {
    let file = |path: &str| std::fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let theirs = file(netns);
    theirs.is_ok_and(|theirs| file(OWN_NETNS).is_ok_and(|ours| ours == theirs))
}

fn own_netns() -> Failure {
    let msg = "plugin's netns and netns from CNI_NETNS should not be the same";
    Failure::new(Code::InvalidNetns, msg).details("set CNI_NETNS_OVERRIDE=1 where that is meant")
}

fn del_request(env: &Environment) -> Result<DelRequest, Failure> {
    if !env.overrides_netns() && is_own_netns(env.netns()) {
        return Err(own_netns());
    }
    Ok(DelRequest { attachment: Some(env.attachment()), netns: env.netns().to_owned() })
}

/// DEL: asks netplugin, or its queue where there is none.
fn del(given: &Given<'_>, request: &DelRequest) -> Result<(), Failure> {
    let Given { env, config, times } = *given;
    let ask = || given.connect()?.del(request.clone());
    let failure = match ask() {
        Err(failure) if failure.code == Code::DaemonUnreachable as u32 => failure,
        answered => return answered,
    };
    let queue = config.state_dir.join("cni-queue");
    match enqueue(&queue, &config.socket, &env.attachment(), times.asking) {
        Ok(()) => Ok(()),
        // It started meanwhile.
        Err(NotQueued::Present) => ask(),
        Err(NotQueued::Failed(why)) => {
            Err(failure.also(&format!("the DEL cannot be queued: {why}")))
        }
    }
}

fn check(given: &Given<'_>) -> Result<(), Failure> {
    let Given { env, config, .. } = *given;
    require_version(Command::Check, config, Version::V0_4_0)?;
    let attachment = env.attachment();
    let Some(prev_result) = &config.prev_result else {
        return Err(Failure::new(Code::InvalidConfig, "required prevResult missing"));
    };
    require_result(prev_result)?;
    let request = CheckRequest {
        ips: listed_ips(prev_result, &attachment.ifname),
        attachment: Some(attachment),
        netns: env.netns().to_owned(),
    };
    // An attached container is not broken because the daemon restarts: the runtime asks again.
    let call = given.connect().map_err(|f| {
        if f.code == Code::DaemonUnreachable as u32 {
            Failure { code: Code::TryAgain as u32, ..f }
        } else {
            f
        }
    })?;
    call.check(request)
}

/// What CHECK compares with must be a result: from one that is none, nothing would be missing.
fn require_result(prev_result: &Value) -> Result<(), Failure> {
    let refuse = |what: String| {
        let msg = format!("prevResult: {what}");
        Err(Failure::new(Code::InvalidConfig, msg).details("hand over what ADD printed"))
    };
    if !prev_result.is_object() {
        return refuse(format!("{prev_result} is no object"));
    }
    for key in ["interfaces", "ips"] {
        let Some(items) = prev_result.get(key).filter(|items| !items.is_null()) else { continue };
        let Some(items) = items.as_array() else {
            return refuse(format!("{key} {items} is no list"));
        };
        if let Some(odd) = items.iter().find(|item| !item.is_object()) {
            return refuse(format!("{key}: {odd} is no object"));
        }
    }
    let addresses = prev_result["ips"].as_array().into_iter().flatten().map(|ip| &ip["address"]);
    let texts = addresses.map(|address| address.as_str().unwrap_or_default());
    distinct(Code::InvalidConfig, "prevResult.ips", texts).map(drop)
}

/// Addresses that prevResult gives to `ifname`, or to no interface at all. Later plugins of the
/// chain may have added interfaces and addresses of their own.
fn listed_ips(prev_result: &Value, ifname: &str) -> Vec<String> {
    let items = |key: &str| prev_result.get(key).and_then(Value::as_array).into_iter().flatten();
    let names: Vec<Option<&str>> =
        items("interfaces").map(|i| i.get("name").and_then(Value::as_str)).collect();
    let ours = |ip: &Value| match ip.get("interface").and_then(Value::as_u64) {
        None => true,
        Some(index) => {
            usize::try_from(index).ok().and_then(|i| names.get(i)) == Some(&Some(ifname))
        }
    };
    items("ips")
        .filter(|ip| ours(ip))
        .filter_map(|ip| ip.get("address").and_then(Value::as_str).map(str::to_owned))
        .collect()
}

fn gc_request(config: &Config) -> Result<GcRequest, Failure> {
    require_version(Command::Gc, config, Version::V1_1_0)?;
    // Without the list everything would be garbage.
    let Some(valid) = config.valid.clone() else {
        return Err(Failure::new(
            Code::InvalidConfig,
            "GC needs \"cni.dev/valid-attachments\" in the configuration",
        ));
    };
    Ok(GcRequest { valid, config_name: config.name.clone() })
}

fn gc(given: &Given<'_>, request: GcRequest) -> Result<(), Failure> {
    given.connect()?.gc(request).map(drop)
}

fn status(given: &Given<'_>) -> Result<(), Failure> {
    require_version(Command::Status, given.config, Version::V1_1_0)?;
    let Config { tenant, network, group, .. } = given.config.clone();
    let tenant = if tenant.is_empty() { TENANT.to_owned() } else { tenant };
    let request = StatusRequest { tenant, network, group };
    let reply = given
        .connect()
        .and_then(|call| call.status(request))
        .map_err(|f| Failure { code: Code::NotAvailable as u32, ..f })?;
    if reply.ready {
        return Ok(());
    }
    let code =
        if reply.connectivity_limited { Code::LimitedConnectivity } else { Code::NotAvailable };
    Err(Failure::new(code, reply.reason))
}

fn require_version(command: Command, config: &Config, least: Version) -> Result<(), Failure> {
    if config.version >= least {
        return Ok(());
    }
    let msg = format!("config version does not allow {}", command.text());
    Err(Failure::new(Code::IncompatibleVersion, msg).details(format!(
        "config is {}, {} came with {least}",
        config.version,
        command.text()
    )))
}

#[cfg(test)]
pub(crate) mod tests;
