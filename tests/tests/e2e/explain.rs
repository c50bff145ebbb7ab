//! `netctl explain`, `ls --watch`, `status` and the commands of services, application profiles and
//! BGP settings, against running daemons.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use kit::{
    Container, Daemon, DirGuard, OneNode, ProcessGuard, Purpose, Topology, binary, wait_until,
};
use serde_json::Value;

use crate::Test;
use crate::shared::sharing;
use crate::site::{
    BOUND, all_connected, attach, attach_to_group, configure, mac_text, netctl, netctl_json,
};

/// What a container sends to leave its network.
const GATEWAY_MAC: &str = "00:00:11:11:11:11";

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("cli_1_explain_says_what_the_engine_does", agrees),
            ("cli_1_explain_names_rules_groups_and_what_it_cannot_answer", names_rules),
            ("cli_1_a_watched_list_shows_every_change", watched),
            ("cli_1_status_names_nodes_in_trouble", status),
            ("cli_1_version_is_of_the_client_and_of_netmaster", version),
            ("cli_1_a_support_bundle_has_everything_and_no_secret", bundle),
            ("cli_1_services_profiles_and_bgp_have_contivs_commands", commands),
        ],
    )
}

#[derive(Debug)]
struct Scene {
    /// Group web.
    a: Container,
    /// Group db.
    b: Container,
    /// No group, in a network of its own.
    c: Container,
    one: OneNode,
}

fn build() -> Result<Scene> {
    let one = Topology::new(Purpose::Test).one_node()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "network create -t blue -s 10.1.2.0/24 -g 10.1.2.254 back",
        "policy create -t blue sender",
        "policy create -t blue guard",
        "group create -t blue -p sender front web",
        "group create -t blue -p guard front db",
        "policy rule-add -t blue -d out -l udp -P 53 -j deny sender 1",
        "policy rule-add -t blue -d out -l tcp -p 3 sender 2",
        "policy rule-add -t blue -d in -l tcp -P 8001 -j deny guard 1",
        "policy rule-add -t blue -d in -l tcp -P 8001 -p 10 -g web guard 2",
        "policy rule-add -t blue -d in -l icmp -n back -j deny guard 3",
        "policy rule-add -t blue -d in -l 47 -j deny guard 4",
    ];
    configure(&one.node, &lines)?;
    all_connected(&one.node)?;
    let a = attach_to_group(&one.node, "a", "front", Some("web"))?;
    let b = attach_to_group(&one.node, "b", "front", Some("db"))?;
    let c = attach(&one.node, "c", "back")?;
    Ok(Scene { a, b, c, one })
}

impl Scene {
    /// Everybody's address, and two that nobody has.
    fn destinations(&self) -> Vec<String> {
        let known = [&self.a, &self.b, &self.c].map(|c| c.address().to_string());
        [&known[..], &["10.1.1.77".into(), "10.99.0.1".into()]].concat()
    }

    /// Verdict and reason of the engine for a packet.
    fn traced(&self, from: &Container, to: &str, packet: &str) -> Result<(String, String)> {
        let name = from.host_ifname().context("no host interface")?;
        // To another network, or to nobody, a packet goes by the gateway.
        let neighbours = [&self.a, &self.b].into_iter().find(|c| c.address().to_string() == to);
        let mac = match neighbours {
            Some(neighbour) if from.address() != self.c.address() => mac_text(neighbour.mac()?),
            _ => GATEWAY_MAC.to_owned(),
        };
        let flow = format!(
            "in_port={name},eth_src={},eth_dst={mac},nw_src={},nw_dst={to},{packet}",
            mac_text(from.mac()?),
            from.address(),
        );
        let trace = self.one.node.vrctl(&["trace", &flow])?;
        let text = |field: &str| trace[field].as_str().unwrap_or_default().to_owned();
        Ok((text("verdict"), text("reason")))
    }

    /// Compares netctl's answer with the engine's, to every destination; the answers.
    fn agree(
        &self,
        from: &Container,
        (question, packet): (&str, &str),
    ) -> Result<Vec<(String, String)>> {
        let source = from.address().to_string();
        let mut seen = Vec::new();
        for to in self.destinations().iter().filter(|to| **to != source) {
            let pair = self.explained(&source, to, question)?[0].take();
            let says = |field: &str| pair[field].as_str().unwrap_or_default().to_owned();
            let told = (says("verdict"), says("reason"));
            let does = self.traced(from, to, packet)?;
            ensure!(told == does, "{source} to {to} {question}: {told:?}, not {does:?}: {pair}");
            seen.push(does);
        }
        Ok(seen)
    }

    fn explained(&self, from: &str, to: &str, question: &str) -> Result<Value> {
        netctl_json(&self.one.node, &format!("explain -t blue {question} {from} {to}"))
    }
}

/// As netctl asks, and as flow text says it.
const QUESTIONS: [(&str, &str); 5] = [
    ("-l icmp", "icmp,icmp_type=8,icmp_code=0"),
    ("-l tcp -P 80", "tcp,tp_src=40000,tp_dst=80"),
    ("-l tcp -P 8001", "tcp,tp_src=40000,tp_dst=8001"),
    ("-l udp -P 53", "udp,tp_src=40000,tp_dst=53"),
    ("-l 47", "ip,nw_proto=47"),
];

fn agrees(scene: &mut Scene) -> Result<()> {
    let mut seen = BTreeSet::new();
    for default in ["allow", "deny"] {
        let line = format!("tenant update blue --default-verdict {default}");
        configure(&scene.one.node, &[&line])?;
        for asked in QUESTIONS {
            for from in [&scene.a, &scene.b, &scene.c] {
                seen.extend(scene.agree(from, asked).context(line.clone())?);
            }
        }
    }
    configure(&scene.one.node, &["tenant update blue --default-verdict allow"])?;
    // A comparison of nothing but one verdict would prove little.
    ensure!(seen.len() == 4, "{seen:?}");
    Ok(())
}

fn names_rules(scene: &mut Scene) -> Result<()> {
    let node = &scene.one.node;
    let id = |container: &Container| format!("{}:eth0", container.id());
    let (a, b) = (id(&scene.a), id(&scene.b));
    for (from, to) in [(a.as_str(), b.as_str()), ("web", "db"), ("web", b.as_str())] {
        let pairs = scene.explained(from, to, "-l tcp -P 8001")?;
        ensure!(pairs.as_array().map(Vec::len) == Some(1), "{pairs}");
        let pair = &pairs[0];
        ensure!(pair["from"]["endpointID"] == a.as_str(), "{pair}");
        ensure!(pair["out"]["policyName"] == "sender" && pair["out"]["ruleId"] == "2", "{pair}");
        ensure!(pair["in"]["policyName"] == "guard" && pair["in"]["ruleId"] == "2", "{pair}");
        ensure!(pair["in"]["priority"] == 10 && pair["verdict"] == "forward", "{pair}");
    }
    let text = netctl(node, &format!("explain -t blue -l icmp {} {b}", scene.c.address()))?;
    for part in [
        "out: allow, by the tenant's default",
        "in:  deny, by rule 3 of policy guard",
        "verdict: drop (policy-deny)",
    ] {
        ensure!(text.contains(part), "no {part:?}: {text}");
    }
    let outside = scene.explained("192.0.2.1", &b, "-l icmp")?;
    ensure!(outside[0]["out"].is_null() && outside[0]["verdict"] == "forward", "{outside}");
    for (line, code, part) in [
        ("explain -t blue web db", 1, "--protocol"),
        ("explain -t blue -l tcp web db", 3, "name the port"),
        ("explain -t blue -l icmp web nobody", 3, "endpoint group not found"),
        ("explain -t blue -l icmp web x:eth0", 3, "endpoint not found"),
        ("explain -t nobody -l icmp web db", 3, "Tenant not found"),
        ("explain -t blue -l esp web db", 3, "a protocol is tcp"),
        ("explain -t blue -l icmp SELF SELF", 3, "never leaves its container"),
    ] {
        let line = line.replace("SELF", &b);
        let done = node.netctl_run(&line.split(' ').collect::<Vec<_>>())?;
        ensure!(done.code == Some(code) && done.stderr.contains(part), "netctl {line}: {done:?}");
    }
    Ok(())
}

/// netctl in the background; what it printed is in its log.
fn background(scene: &Scene, dir: &DirGuard, line: &str) -> Result<ProcessGuard> {
    let node = &scene.one.node;
    let mut command = Command::new(binary("netctl")?);
    command.env("NETMASTER", node.netmaster_url()).args(line.split(' '));
    let log = dir.path().join(line.replace(' ', "-"));
    ProcessGuard::spawn(node.namespace(), "netctl", command, &log)
}

fn says(process: &ProcessGuard, what: &str) -> Result<()> {
    let shown = || process.log().unwrap_or_default();
    let waited = wait_until(BOUND, format!("{what:?}"), || shown().contains(what).then_some(()));
    waited.with_context(shown)?;
    Ok(())
}

fn watched(scene: &mut Scene) -> Result<()> {
    let dir = DirGuard::new(Purpose::Test, "watch")?;
    let lists = background(scene, &dir, "net ls -a --watch -o json")?;
    says(&lists, r#"{"event":"ADDED","object":{"key":"blue:front""#)?;
    let nodes = background(scene, &dir, "node ls --watch")?;
    says(&nodes, "ADDED")?;
    let rules = background(scene, &dir, "policy rule-ls -t blue guard --watch")?;
    says(&rules, "Direction")?;
    let policies = background(scene, &dir, "policy ls -t blue -q --watch")?;
    says(&policies, "ADDED guard\n")?;
    let node = &scene.one.node;
    let lines = [
        "network create -t default -s 10.7.0.0/24 far",
        "policy create -t default other",
        "policy create -t blue extra",
        "policy rule-add -t blue -l udp guard 9",
    ];
    configure(node, &lines)?;
    says(&lists, r#"{"event":"ADDED","object":{"key":"default:far""#)?;
    says(&policies, "ADDED extra\n")?;
    says(&rules, "ADDED     9 ")?;
    let lines = [
        "policy rule-rm -t blue guard 9",
        "policy rm -t blue extra",
        "policy rm -t default other",
        "network rm -t default far",
    ];
    configure(node, &lines)?;
    says(&lists, r#"{"event":"DELETED","object":{"key":"default:far""#)?;
    says(&policies, "DELETED extra\n")?;
    says(&rules, "DELETED   9 ")?;
    ensure!(!policies.log()?.contains("other"), "another tenant's: {}", policies.log()?);
    // Acknowledgements are in no store: the list of nodes tells them all the same.
    let revision = netctl_json(node, "status")?["revision"].clone();
    says(&nodes, &revision.to_string())?;
    scene.one.node.stop(Daemon::Netmaster)?;
    says(&lists, "netctl: error: ")?;
    scene.one.node.start(Daemon::Netmaster)?;
    all_connected(&scene.one.node)
}

fn version(scene: &mut Scene) -> Result<()> {
    let node = &scene.one.node;
    let (version, own) = (netctl(node, "version")?, env!("CARGO_PKG_VERSION"));
    let expected = format!("Client Version: {own}\nAPI: control.v1\nServer Version: {own}\n");
    ensure!(version == expected, "{version}");
    ensure!(netctl_json(node, "version")?["serverVersion"] == own, "of the server");
    let alone = node.netctl_run(&["--netmaster", "http://127.0.0.1:1", "version"])?;
    ensure!(alone.code == Some(2) && alone.stderr.contains("cannot reach netmaster"), "{alone:?}");
    ensure!(alone.stdout == format!("Client Version: {own}\nAPI: control.v1\n"), "{alone:?}");
    Ok(())
}

fn status(scene: &mut Scene) -> Result<()> {
    let text = netctl(&scene.one.node, "status")?;
    ensure!(text.contains("Nodes: 1, connected 1\n"), "{text}");
    ensure!(text.contains("tenant 2, network 2, group 2, policy 2, rule 6,"), "{text}");
    scene.one.node.stop(Daemon::Netplugin)?;
    wait_until(BOUND, "the node to be missed", || {
        let text = netctl(&scene.one.node, "status").ok()?;
        text.contains("not connected; is its netplugin running?").then_some(())
    })?;
    scene.one.node.start(Daemon::Netplugin)?;
    all_connected(&scene.one.node)
}

fn commands(scene: &mut Scene) -> Result<()> {
    let node = &scene.one.node;
    for (line, printed) in [
        ("app-profile create -t blue -g web shop", "Creating AppProfile blue:shop\n"),
        ("app-profile update -t blue -g web,db shop", "Updating AppProfile blue:shop\n"),
        (
            "service create -t blue -s front -l app=shop -p 80:8080:TCP -ip 10.1.1.99 window",
            "Creating ServiceLB blue:window\n",
        ),
        (
            "bgp create leaf --router-ip 10.9.0.1/24 --as 65001 --neighbor-as 65002 --neighbor 10.9.0.2",
            "Creating Bgp router config: leaf\n",
        ),
        ("app-profile list -t blue -q", "shop\n"),
        ("app-profile group-ls -t blue -q shop", "db\nweb\n"),
        ("service ls -t blue -q", "window\n"),
        ("bgp ls -q", "leaf\n"),
    ] {
        let text = netctl(node, line)?;
        ensure!(text == printed, "netctl {line}: {text}");
    }
    let service = netctl_json(node, "service inspect -t blue window")?;
    ensure!(service["Oper"]["serviceVip"] == "10.1.1.99", "{service}");
    let idle = service["Oper"]["notInForce"].as_str();
    ensure!(idle.is_some_and(|text| !text.is_empty()), "{service}");
    let bgp = netctl_json(node, "bgp inspect leaf")?;
    ensure!(bgp["Config"]["neighbor-as"] == "65002", "{bgp}");
    for (line, printed) in [
        ("service rm -t blue window", "Deleting Service  window,blue\n"),
        ("app-profile delete -t blue shop", "Deleting AppProfile blue:shop\n"),
        ("bgp rm leaf", "Deleting Bgp router config: leaf\n"),
    ] {
        let text = netctl(node, line)?;
        ensure!(text == printed, "netctl {line}: {text}");
    }
    Ok(())
}

fn bundle(scene: &mut Scene) -> Result<()> {
    let node = &scene.one.node;
    let dir = DirGuard::new(Purpose::Test, "bundle")?;
    let (tar, log) = (dir.path().join("bundle.tar"), dir.path().join("netplugin.toml"));
    fs::write(&log, "node = \"n1\"\npassword = \"hunter2\"\n")?;
    let line = format!(
        "support-bundle -f {} --include {} --include /nonexistent --metrics http://127.0.0.1:9090",
        tar.display(),
        log.display()
    );
    let words: Vec<&str> = line.split(' ').collect();
    let done = node.netctl_run(&words)?;
    ensure!(done.code == Some(0), "{done:?}");
    ensure!(done.stderr.contains("files/1-nonexistent is missing: "), "{done:?}");
    ensure!(tar.metadata()?.permissions().mode() & 0o777 == 0o600, "others may read it");
    let mut list = Command::new("tar");
    list.arg("-xOf").arg(&tar);
    let text = kit::run(node.namespace(), list)?.success()?;
    for part in [
        "kind: rule",
        "endpointID: ",
        "weir_store_revision",
        "weir_watch_revision",
        " 200 OK\nready",
        "\"connected\": true",
        concat!("\"version\": \"", env!("CARGO_PKG_VERSION"), "\"\n    }\n  ]"),
        "\n  state: used\n",
        "node = \"n1\"\npassword (removed)\n",
        "files/1-nonexistent is missing",
    ] {
        ensure!(text.contains(part), "no {part:?}: {text}");
    }
    ensure!(!text.contains("hunter2"), "a secret: {text}");
    let again = node.netctl_run(&words)?;
    ensure!(again.code == Some(4) && again.stderr.contains("cannot write"), "{again:?}");
    let elsewhere = dir.path().join("alone.tar");
    let line = format!("--netmaster http://127.0.0.1:1 support-bundle -f {}", elsewhere.display());
    let alone = node.netctl_run(&line.split(' ').collect::<Vec<_>>())?;
    ensure!(alone.code == Some(0), "without netmaster it is needed most: {alone:?}");
    ensure!(alone.stderr.contains("status.json is missing: cannot reach"), "{alone:?}");
    Ok(())
}
