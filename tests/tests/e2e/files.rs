//! Objects as files: `netctl get`, `apply` and `diff`.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use kit::{Daemon, DirGuard, Finished, Node, OneNode, Purpose, Topology, binary, run_with_input};

use crate::Test;
use crate::shared::sharing;
use crate::site::{configure, netctl, netctl_json};

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("cli_1_what_get_prints_applies_unchanged_in_yaml_and_json", round_trip),
            ("cli_1_a_file_is_applied_whole_or_not_at_all", atomic),
            ("cli_1_a_saved_file_restores_what_was_default_then", restored),
            ("cli_1_diff_says_what_apply_would_do_and_does_nothing", diff),
            ("cli_1_files_that_are_none_end_with_the_right_exit_code", exit_codes),
        ],
    )
}

/// A configuration of every kind that users write; the objects name each other against the order.
const EVERYTHING: &str = "\
kind: group
tenantName: blue
groupName: front
networkName: web
ipPool: 10.1.1.10-10.1.1.19
policies: [guard]
netProfile: gold
---
kind: tenant
tenantName: blue
defaultVerdict: deny
tracking: stateless
---
- kind: network
  tenantName: blue
  networkName: web
  encap: vxlan
  subnet: 10.1.1.0/24
  gateway: 10.1.1.254
- kind: policy
  tenantName: blue
  policyName: guard
- kind: rule
  tenantName: blue
  policyName: guard
  ruleId: '1'
  direction: in
  priority: 7
  fromEndpointGroup: front
  protocol: tcp
  port: 80
  action: allow
---
kind: netprofile
tenantName: blue
profileName: gold
bandwidth: 10 Mbps
DSCP: 10
---
kind: app-profile
tenantName: blue
appProfileName: shop
endpointGroups: [front]
---
kind: service
tenantName: blue
serviceName: shop-window
networkName: web
selectors: [app=shop]
ports: ['80:8080:TCP']
---
kind: bgp
hostname: leaf
routerip: 10.9.0.1/24
as: '65001'
---
kind: global
name: global
vlans: 100-200
";

fn build() -> Result<OneNode> {
    let mut one = Topology::new(Purpose::Test).one_node()?;
    // No node takes part: what is here is between netctl and netmaster.
    one.node.stop(Daemon::Netplugin)?;
    one.node.stop(Daemon::Vrouterd)?;
    Ok(one)
}

/// netctl with text on its standard input.
fn fed(node: &Node, line: &str, input: &str) -> Result<Finished> {
    let mut command = Command::new(binary("netctl")?);
    command.env("NETMASTER", node.netmaster_url()).args(line.split_whitespace());
    run_with_input(node.namespace(), command, input.as_bytes())
}

fn fed_well(node: &Node, line: &str, input: &str) -> Result<String> {
    fed(node, line, input)?.success().with_context(|| format!("netctl {line}"))
}

fn round_trip(one: &mut OneNode) -> Result<()> {
    let node = &one.node;
    let made = fed_well(node, "apply -f -", EVERYTHING)?;
    ensure!(made.ends_with("9 created, 1 updated, 0 unchanged\n"), "{made}");
    let again = fed_well(node, "apply -f -", EVERYTHING)?;
    ensure!(again == "0 created, 0 updated, 10 unchanged\n", "{again}");
    let before = netctl(node, "get -o json")?;
    for form in ["yaml", "json"] {
        let text = netctl(node, &format!("get -o {form}"))?;
        let same = fed_well(node, "apply -f -", &text)?;
        // The tenant default is there too.
        ensure!(same == "0 created, 0 updated, 11 unchanged\n", "{form}: {same}");
        ensure!(fed_well(node, "diff -f -", &text)?.is_empty(), "{form}");
        let one_network = netctl(node, &format!("get network blue:web -o {form}"))?;
        let same = fed_well(node, "apply -f -", &one_network)?;
        ensure!(same == "0 created, 0 updated, 1 unchanged\n", "{form}: {same}");
    }
    ensure!(netctl(node, "get -o json")? == before, "something changed");
    let table = netctl(node, "get")?;
    ensure!(table.lines().any(|line| line == "rule         blue:guard:1"), "{table}");
    let of_blue = netctl_json(node, "get tenant -t blue")?;
    ensure!(of_blue.as_array().map(Vec::len) == Some(1), "{of_blue}");
    Ok(())
}

fn atomic(one: &mut OneNode) -> Result<()> {
    let node = &one.node;
    let before = netctl(node, "get -o yaml")?;
    let broken = "kind: tenant\ntenantName: green\n---\nkind: group\ntenantName: green\n\
                  groupName: g\nnetworkName: nowhere\n";
    let done = fed(node, "apply -f -", broken)?;
    ensure!(done.code == Some(3) && done.stdout.is_empty(), "{done:?}");
    for part in [
        "Network nowhere not found",
        "object: group green:g",
        "field: networkName",
        "value: nowhere",
        "next: ",
        "request: ",
    ] {
        ensure!(done.stderr.contains(part), "no {part:?}: {}", done.stderr);
    }
    ensure!(netctl(node, "get -o yaml")? == before, "half of it is there");
    let dry = fed_well(node, "apply --dry-run -f -", "kind: tenant\ntenantName: green\n")?;
    ensure!(dry == "created tenant green\n1 created, 0 updated, 0 unchanged\n", "{dry}");
    ensure!(netctl(node, "get -o yaml")? == before, "a rehearsal changed something");
    Ok(())
}

fn diff(one: &mut OneNode) -> Result<()> {
    let node = &one.node;
    configure(node, &["tenant create red", "policy create -t red p"])?;
    let before = netctl(node, "get -o yaml")?;
    let wanted = "kind: tenant\ntenantName: red\ndefaultVerdict: deny\n---\n\
                  kind: rule\ntenantName: red\npolicyName: p\nruleId: a\ndirection: in\naction: deny\n";
    let text = fed_well(node, "diff -f -", wanted)?;
    ensure!(
        text.contains("~ tenant red\n-   defaultVerdict: allow\n+   defaultVerdict: deny\n"),
        "{text}"
    );
    ensure!(text.contains("+ rule red:p:a\n"), "{text}");
    ensure!(text.contains("+   action: deny\n"), "{text}");
    let data = fed_well(node, "diff -o json -f -", wanted)?;
    let rows: serde_json::Value = serde_json::from_str(&data)?;
    ensure!(rows[0]["before"]["defaultVerdict"] == "allow", "{rows}");
    ensure!(rows[1]["action"] == "created" && rows[1]["before"].is_null(), "{rows}");
    ensure!(netctl(node, "get -o yaml")? == before, "a diff changed something");
    configure(node, &["policy rm -t red p", "tenant rm red"])
}

fn restored(one: &mut OneNode) -> Result<()> {
    let node = &one.node;
    configure(node, &["tenant create green"])?;
    let saved = netctl(node, "get tenant green -o yaml")?;
    configure(
        node,
        &["tenant update green --stateless --max-connections 9 --max-new-flows 8 -b 1gbps -s 100"],
    )?;
    let text = fed_well(node, "diff -f -", &saved)?;
    for part in ["-   tracking: stateless\n", "-   burst: 100\n", "+   maxConnections: 0\n"] {
        ensure!(text.contains(part), "no {part:?}: {text}");
    }
    let applied = fed_well(node, "apply -f -", &saved)?;
    ensure!(applied.ends_with("0 created, 1 updated, 0 unchanged\n"), "{applied}");
    let again = netctl(node, "get tenant green -o yaml")?;
    ensure!(again == saved, "{again}");
    ensure!(fed_well(node, "diff -f -", &saved)?.is_empty(), "a difference is left");
    configure(node, &["tenant rm green"])
}

fn exit_codes(one: &mut OneNode) -> Result<()> {
    let node = &one.node;
    let dir = DirGuard::new(Purpose::Test, "files")?;
    let file = dir.path().join("bad.yaml");
    fs::write(&file, "kind: tenant\nname: x\n")?;
    let bad = format!("apply -f {}", file.display());
    for (line, code, text) in [
        ("apply", 1, "--filename"),
        ("get nonsense", 1, "nonsense"),
        (bad.as_str(), 3, "object 1 is not one: unknown field `name`"),
        ("get network blue:nowhere", 3, "network not found"),
        ("apply -f /nonexistent", 4, "cannot read /nonexistent"),
        ("diff -f /", 4, "cannot read /"),
        ("--netmaster http://127.0.0.1:1 apply -f -", 2, "cannot reach netmaster"),
    ] {
        let done = fed(node, line, "kind: tenant\ntenantName: x\n")?;
        ensure!(done.code == Some(code), "netctl {line}: {done:?}");
        ensure!(done.stderr.contains(text), "netctl {line}: {done:?}");
        ensure!(done.stdout.is_empty(), "netctl {line}: {done:?}");
    }
    Ok(())
}
