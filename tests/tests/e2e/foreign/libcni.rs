//! libcni, the library under podman, containerd and kubelet, through a small client of ours.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use kit::{CONTAINER_IFNAME, Finished, NetnsGuard, Purpose, ping, run, run_with_input};
use serde_json::{Value, json};

use super::{STOCK_PLUGINS, Site};
use crate::Test;
use crate::shared::sharing;
use crate::site::{all_drops, endpoints, links};

/// Where Debian's Go packages put their source.
const PACKAGED_SOURCE: &str = "/usr/share/gocode";
const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/foreign/libcni.go");

pub(super) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("cni_1_libcni_adds_checks_and_deletes_with_what_the_runtime_asks_for", life),
            ("cni_1_libcni_deletes_twice_and_with_the_namespace_gone", deletes),
            ("cni_1_stock_plugins_chained_behind_ours_get_what_they_need", chained),
            ("cni_1_stock_bandwidth_behind_ours_fails_the_add_and_leaves_nothing", stock_bandwidth),
            ("cni_1_behind_ptp_the_interface_is_adopted_and_given_back", behind),
            (
                "cni_1_behind_a_plugin_whose_interface_is_unfit_ours_refuses_and_harms_nothing",
                unfit,
            ),
            ("cni_1_a_delegated_ipam_plugin_chooses_and_netmaster_grants", delegated),
            ("cni_1_what_a_delegated_ipam_plugin_chose_in_vain_is_given_back", delegated_in_vain),
            ("cni_1_a_second_add_by_libcni_gives_the_same_result", twice),
            ("cni_1_wrong_calls_get_the_codes_and_words_of_the_stock_bridge", as_stock),
        ],
    )
}

fn build() -> Result<Site> {
    let site = Site::new("libcni")?;
    let mut go = Command::new("go");
    go.env("GO111MODULE", "off").env("GOFLAGS", "").env("GOPATH", PACKAGED_SOURCE);
    go.env("GOCACHE", site.dir.path().join("go-cache"));
    go.arg("build").arg("-o").arg(site.dir.path().join("libcni")).arg(CLIENT);
    run(site.node().namespace(), go)?.success().context("building the client of libcni")?;
    site.configure("plain", &json!({}), &[])?;
    Ok(site)
}

/// A container as libcni's client sees it.
struct Guest {
    netns: NetnsGuard,
    capabilities: Value,
    args: &'static str,
}

impl Guest {
    fn new() -> Result<Self> {
        let netns = NetnsGuard::new(Purpose::Test, "guest")?;
        Ok(Self { netns, capabilities: json!({}), args: "IgnoreUnknown=1;K8S_POD_NAME=p1" })
    }

    fn call(&self, site: &Site, operation: &str, network: &str) -> Result<Finished> {
        let path = self.netns.path();
        call(
            site,
            operation,
            network,
            [self.netns.name(), &path.display().to_string()],
            |command| {
                command.env("CAPABILITIES", self.capabilities.to_string());
                command.env("CNI_ARGS", self.args);
            },
        )
    }

    fn add(&self, site: &Site, network: &str) -> Result<Value> {
        let text = self.call(site, "add", network)?.success().context("ADD by libcni")?;
        Ok(serde_json::from_str(&text)?)
    }
}

fn call(
    site: &Site,
    operation: &str,
    network: &str,
    [id, netns]: [&str; 2],
    change: impl FnOnce(&mut Command),
) -> Result<Finished> {
    let mut command = Command::new(site.dir.path().join("libcni"));
    command.args([operation, network, id, netns, CONTAINER_IFNAME]);
    command.env("CONF_DIR", site.configurations()).env("CNI_PATH", site.cni_path());
    command.env("CACHE_DIR", site.dir.path().join("cache"));
    change(&mut command);
    run(site.node().namespace(), command)
}

fn life(site: &mut Site) -> Result<()> {
    let before = site.traces()?;
    let mut guest = Guest::new()?;
    guest.capabilities = json!({ "ips": ["10.1.1.77/24"], "mac": "0a:11:22:33:44:55",
        "dns": { "servers": ["10.1.1.53"], "searches": ["blue.test"] },
        "aliases": { "plain": ["web"] } });
    let result = guest.add(site, "plain")?;
    ensure!(result["cniVersion"] == "1.0.0", "{result}");
    ensure!(result["ips"][0]["address"] == "10.1.1.77/24", "{result}");
    ensure!(result["interfaces"][1]["mac"] == "0a:11:22:33:44:55", "{result}");
    ensure!(
        result["dns"] == json!({"nameservers": ["10.1.1.53"], "search": ["blue.test"]}),
        "{result}"
    );
    guest.call(site, "check", "plain")?.success().context("CHECK")?;
    let seen = ping(guest.netns.namespace(), Ipv4Addr::new(10, 1, 1, 254), 1)?;
    ensure!(seen.received == 1, "the gateway is silent");
    guest.call(site, "del", "plain")?.success().context("DEL")?;
    site.again(&before)?;
    ensure!(guest.netns.netlink()?.link_by_name(CONTAINER_IFNAME)?.is_none(), "DEL leaves eth0");
    Ok(())
}

fn deletes(site: &mut Site) -> Result<()> {
    let before = site.traces()?;
    let guest = Guest::new()?;
    guest.add(site, "plain")?;
    let (id, path) = (guest.netns.name().to_owned(), guest.netns.path());
    drop(guest);
    for time in ["first", "second"] {
        let del = call(site, "del", "plain", [&id, &path.display().to_string()], |_| {})?;
        del.success().with_context(|| format!("the {time} DEL with the namespace gone"))?;
    }
    site.again(&before)
}

/// Stock host-local, choosing from `first` to `last`; the directory of what it has reserved.
fn host_local(site: &Site, name: &str, [subnet, first, last]: [&str; 3]) -> Result<PathBuf> {
    let dir = site.dir.path().join("host-local");
    let ipam = json!({ "type": "host-local", "dataDir": dir, "routes": [{ "dst": "0.0.0.0/0" }],
        "ranges": [[{ "subnet": subnet, "rangeStart": first, "rangeEnd": last }]] });
    site.configure(name, &json!({ "ipam": ipam }), &[])?;
    Ok(dir.join(name))
}

fn reserved(dir: &Path) -> Result<Vec<String>> {
    let names =
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<_>>>()?;
    names.retain(|name| name.starts_with("10."));
    Ok(names)
}

fn delegated(site: &mut Site) -> Result<()> {
    let before = site.traces()?;
    let dir = host_local(site, "lent", ["10.1.1.0/24", "10.1.1.200", "10.1.1.203"])?;
    let guest = Guest::new()?;
    let result = guest.add(site, "lent")?;
    ensure!(result["ips"][0]["address"] == "10.1.1.200/24", "{result}");
    ensure!(reserved(&dir)? == ["10.1.1.200"], "{:?}", reserved(&dir)?);
    let seen = ping(guest.netns.namespace(), Ipv4Addr::new(10, 1, 1, 254), 1)?;
    ensure!(seen.received == 1, "the gateway is silent");
    guest.call(site, "check", "lent")?.success().context("CHECK")?;
    for _ in 0..2 {
        guest.call(site, "del", "lent")?.success().context("DEL")?;
    }
    ensure!(reserved(&dir)?.is_empty(), "{:?} is still reserved", reserved(&dir)?);
    site.again(&before)
}

/// The network does not have these addresses.
fn delegated_in_vain(site: &mut Site) -> Result<()> {
    let before = site.traces()?;
    let dir = host_local(site, "alien", ["10.77.0.0/24", "10.77.0.2", "10.77.0.9"])?;
    let guest = Guest::new()?;
    let refused = guest.call(site, "add", "alien")?;
    ensure!(refused.code == Some(1) && refused.stdout.contains("10.77.0.2"), "{refused:?}");
    ensure!(reserved(&dir)?.is_empty(), "{:?} is still reserved", reserved(&dir)?);
    site.again(&before)
}

fn twice(site: &mut Site) -> Result<()> {
    let guest = Guest::new()?;
    let first = guest.add(site, "plain")?;
    let again = guest.add(site, "plain")?;
    ensure!(first == again, "{again}, first {first}");
    guest.call(site, "del", "plain")?.success().map(drop)
}

/// How a plugin answered: its exit code, the error's code and its words.
#[derive(Debug)]
struct Answer {
    exit: Option<i32>,
    code: Value,
    msg: String,
}

/// The answer of plugin `kind` to a call that is usual but for what is wrong with it.
fn answer(site: &Site, kind: &str, wrong: &Wrong) -> Result<Answer> {
    let path = site.dir.path().join("nobody").display().to_string();
    let plugin = match kind {
        "bridge" => PathBuf::from(STOCK_PLUGINS).join(kind),
        _ => site.plugins().join(kind),
    };
    let mut command = Command::new(plugin);
    let usual = [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", path.as_str())];
    let more = [("CNI_IFNAME", CONTAINER_IFNAME), ("CNI_PATH", STOCK_PLUGINS)];
    for (key, value) in usual.iter().chain(&more).chain(wrong.variables) {
        match *value {
            "" => command.env_remove(key),
            value => command.env(key, value),
        };
    }
    let config = json!({ "cniVersion": "1.0.0", "name": "n", "type": kind, "network": "front",
        "tenant": "blue", "bridge": "stock1", "socket": site.node().cni_socket(),
        "ipam": { "type": "host-local", "dataDir": site.dir.path().join("stock"),
            "ranges": [[{ "subnet": "10.98.0.0/24" }]] } });
    let stdin = wrong.stdin.map_or_else(|| config.to_string(), str::to_owned);
    let finished = run_with_input(site.node().namespace(), command, stdin.as_bytes())?;
    let object: Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
    let msg = object["msg"].as_str().unwrap_or_default().to_owned();
    Ok(Answer { exit: finished.code, code: object["code"].clone(), msg })
}

/// Variables that are empty are unset.
struct Wrong {
    what: &'static str,
    variables: &'static [(&'static str, &'static str)],
    stdin: Option<&'static str>,
    /// What both say, as far as both say the same.
    words: &'static str,
}

const WRONG: [Wrong; 9] = [
    Wrong { what: "no command", variables: &[("CNI_COMMAND", "")], stdin: None, words: "" },
    Wrong {
        what: "an unknown command",
        variables: &[("CNI_COMMAND", "ATTACH")],
        stdin: None,
        words: "unknown CNI_COMMAND: ATTACH",
    },
    Wrong {
        what: "missing variables",
        variables: &[("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", "")],
        stdin: None,
        words: "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing",
    },
    Wrong {
        what: "a bad container id",
        variables: &[("CNI_CONTAINERID", "../etc")],
        stdin: None,
        words: "",
    },
    Wrong {
        what: "a long interface name",
        variables: &[("CNI_IFNAME", "sixteen-letters-")],
        stdin: None,
        words: "",
    },
    Wrong {
        what: "no network name",
        variables: &[],
        stdin: Some(r#"{"cniVersion": "1.0.0", "type": "bridge"}"#),
        words: "missing network name",
    },
    Wrong {
        what: "a bad network name",
        variables: &[],
        stdin: Some(r#"{"cniVersion": "1.0.0", "name": "a/b", "type": "bridge"}"#),
        words: "",
    },
    Wrong { what: "half an object", variables: &[], stdin: Some("{\"name\":"), words: "" },
    Wrong {
        what: "a version of the future",
        variables: &[],
        stdin: Some(r#"{"cniVersion": "9.9.9", "name": "n", "type": "bridge"}"#),
        words: "incompatible CNI versions",
    },
];

/// What people know to read from the plugin that most have used.
fn as_stock(site: &mut Site) -> Result<()> {
    for wrong in &WRONG {
        let stock = answer(site, "bridge", wrong)?;
        let ours = answer(site, "weir-cni", wrong)?;
        let same = (stock.exit, &stock.code) == (ours.exit, &ours.code);
        ensure!(same, "{}: {ours:?}, not as the stock bridge {stock:?}", wrong.what);
        let both = stock.msg.contains(wrong.words) && ours.msg.contains(wrong.words);
        ensure!(both, "{}: {ours:?}, and the stock bridge {stock:?}", wrong.what);
    }
    Ok(())
}

/// tuning wants the container's interface, firewall and portmap the addresses.
fn chained(site: &mut Site) -> Result<()> {
    let before = site.traces()?;
    let tuning = json!({ "type": "tuning", "mtu": 1400, "capabilities": { "mac": true } });
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    let firewall = json!({ "type": "firewall", "backend": "iptables" });
    site.configure("chain", &json!({}), &[tuning, portmap, firewall])?;
    let guest = Guest::new()?;
    let result = guest.add(site, "chain")?;
    let host = result["interfaces"][0]["name"].as_str().context("no host end")?;
    ensure!(links(site.node())?.iter().any(|name| name == host), "{host} is not there: {result}");
    let inside = guest.netns.netlink()?.link_by_name(CONTAINER_IFNAME)?.context("no eth0")?;
    ensure!(inside.mtu == 1400, "tuning came to nothing: {inside:?}");
    guest.call(site, "check", "chain")?.success().context("CHECK of the chain")?;
    let seen = ping(guest.netns.namespace(), Ipv4Addr::new(10, 1, 1, 254), 1)?;
    ensure!(seen.received == 1, "the gateway is silent");
    guest.call(site, "del", "chain")?.success().context("DEL of the chain")?;
    site.again(&before)
}

/// Its queues would not see a packet of Weir's: a limit that is not in force must not look like one.
fn stock_bandwidth(site: &mut Site) -> Result<()> {
    let before = site.traces()?;
    let bandwidth = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    site.configure("shaped", &json!({}), &[bandwidth])?;
    let mut guest = Guest::new()?;
    guest.capabilities = json!({ "bandwidth": { "ingressRate": 100_000_000, "ingressBurst": 8_000_000,
        "egressRate": 100_000_000, "egressBurst": 8_000_000 } });
    let refused = guest.call(site, "add", "shaped")?;
    ensure!(refused.code == Some(1), "{refused:?}");
    guest.call(site, "del", "shaped")?.success().context("DEL of the refused chain")?;
    site.again(&before)
}

/// Writes a list in which `first` makes the interface and ours follows.
fn configure_behind(site: &Site, name: &str, first: &Value) -> Result<()> {
    let list = json!({ "cniVersion": "1.0.0", "name": name, "plugins": [
        first,
        { "type": "weir-cni", "socket": site.node().cni_socket(), "tenant": "blue", "network": "front",
            "group": "web", "stateDir": site.node().state_dir(), "dns": { "search": ["blue.test"] } },
    ] });
    Ok(fs::write(site.configurations().join(format!("{name}.conflist")), list.to_string())?)
}

/// ptp or bridge with one address for its container.
fn stock(kind: &str, address: &str, gateway: &str) -> Value {
    let ipam = json!({ "type": "static", "routes": [{ "dst": "0.0.0.0/0" }],
        "addresses": [{ "address": address, "gateway": gateway }] });
    json!({ "type": kind, "bridge": "stock0", "ipam": ipam })
}

/// The pair is ptp's: it stays what ptp's result says, and all its packets are the engine's.
fn behind(site: &mut Site) -> Result<()> {
    let before = site.traces()?;
    let other = Guest::new()?;
    let there = other.add(site, "plain")?["ips"][0]["address"].clone();
    let there = there.as_str().and_then(|text| text.split('/').next()).context("no address")?;
    configure_behind(site, "behind", &stock("ptp", "10.1.1.88/24", "10.1.1.254"))?;
    let guest = Guest::new()?;
    let result = guest.add(site, "behind")?;
    ensure!(result["ips"][0]["address"] == "10.1.1.88/24", "{result}");
    ensure!(result["dns"]["search"] == json!(["blue.test"]), "{result}");
    let host = result["interfaces"][0]["name"].as_str().context("no host end")?;
    let netlink = site.node().netns().netlink()?;
    let outside = netlink.link_by_name(host)?.context("no host end")?;
    let inside = guest.netns.netlink()?.link_by_name(CONTAINER_IFNAME)?.context("no eth0")?;
    ensure!([outside.mtu, inside.mtu] == [1450; 2], "{outside:?}, {inside:?}");
    let kept = netlink.addresses(outside.index)?;
    ensure!(kept.is_empty(), "the host can reach past the engine: {kept:?}");
    let routes = netlink.routes()?;
    ensure!(routes.iter().all(|route| route.oif != Some(outside.index)), "{routes:?}");
    let endpoint = endpoints(site.node())?;
    ensure!(endpoint.iter().any(|id| id.starts_with(guest.netns.name())), "{endpoint:?}");
    for to in ["10.1.1.254", there] {
        let seen = ping(guest.netns.namespace(), to.parse::<Ipv4Addr>()?, 1)?;
        ensure!(seen.received == 1, "{to} is silent; drops {:?}", all_drops(site.node()));
    }
    guest.call(site, "check", "behind")?.success().context("CHECK of the chain")?;
    for _ in 0..2 {
        guest.call(site, "del", "behind")?.success().context("DEL of the chain")?;
    }
    other.call(site, "del", "plain")?.success()?;
    site.again(&before)
}

/// What Weir could not keep its promises on is left as it was.
fn unfit(site: &mut Site) -> Result<()> {
    let before = site.traces()?;
    for (name, first, says) in [
        ("outside", stock("ptp", "10.9.9.2/24", "10.9.9.1"), "10.9.9.2"),
        ("bridged", stock("bridge", "10.1.1.89/24", "10.1.1.254"), "a port of stock0"),
        ("routed", stock("ptp", "10.1.1.89/24", "10.1.1.1"), "the network's gateway is 10.1.1.254"),
    ] {
        configure_behind(site, name, &first)?;
        let guest = Guest::new()?;
        let refused = guest.call(site, "add", name)?;
        ensure!(refused.code == Some(1), "{name}: {refused:?}");
        let error: Value = serde_json::from_str(&refused.stdout)?;
        let msg = error["msg"].as_str().unwrap_or_default();
        ensure!(error["code"] == 7 && msg.contains(says), "{name}: {error}");
        let kept = guest.netns.netlink()?.link_by_name(CONTAINER_IFNAME)?;
        let kept = kept.with_context(|| format!("{name}: the first plugin's interface is gone"))?;
        ensure!(kept.running, "{name}: the first plugin's interface is not what it was: {kept:?}");
        guest.call(site, "del", name)?.success().context("DEL of the refused chain")?;
    }
    let netlink = site.node().netns().netlink()?;
    if let Some(bridge) = netlink.link_by_name("stock0")? {
        netlink.delete_link(bridge.index)?;
    }
    site.again(&before)
}
