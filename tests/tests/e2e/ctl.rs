//! vrctl and netctl as people and scripts use them: fields, filters, exit codes, pages.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use kit::frame::{Addresses, tcp_syn};
use kit::{Container, Daemon, DirGuard, OneNode, Purpose, Topology, UPLINK, binary};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::Test;
use crate::control::{connected, create_endpoint, register};
use crate::shared::sharing;
use crate::site::{attach, attach_to_group, configure, mac_text, netctl_json, port_of, reach};

const PORT_FIELDS: &[&str] = &[
    "id",
    "name",
    "ifindex",
    "kind",
    "tag",
    "vrf",
    "bd",
    "rx_packets",
    "rx_bytes",
    "tx_packets",
    "tx_bytes",
    "drops",
];

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("vrctl_port_ls_has_the_promised_fields_and_true_counters", port_ls),
            ("vrctl_flow_ls_lists_entries_and_cached_flows_and_filters_them", flow_ls),
            ("vrctl_route_ls_shows_local_tunnelled_and_unknown_routes", route_ls),
            ("vrctl_drops_lists_every_reason_by_its_name", drops),
            ("dbg_trace_of_text_and_of_bytes_agree_and_explain", trace),
            ("dbg_a_trace_changes_no_counter", trace_is_silent),
            ("vrctl_refuses_wrong_input_with_the_right_exit_code", exit_codes),
            ("cli_1_completion_and_manual_pages_are_complete", pages),
            ("cli_1_tables_have_contivs_columns", tables),
            ("every_daemon_answers_health_checks_and_describes_its_services", services),
            ("sockets_belong_to_their_owner_alone", private_sockets),
        ],
    )
}

#[derive(Debug)]
struct Scene {
    a: Container,
    /// Group web, which refuses tcp/8001.
    b: Container,
    one: OneNode,
}

fn build() -> Result<Scene> {
    let one = Topology::new(Purpose::Test).one_node()?;
    let lines = [
        "tenant create blue",
        "tenant create red",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 -p 4242 front",
        "network create -t red -s 10.1.1.0/24 -g 10.1.1.254 front",
        "policy create -t blue guard",
        "group create -t blue -p guard front web",
        "policy rule-add -t blue -d in -l tcp -P 8001 -j deny guard shut",
    ];
    configure(&one.node, &lines)?;
    register(&one.node, "fabric", "10.250.0.2")?;
    let peer = control_api::v1::Endpoint {
        endpoint_id: "peer:eth0".into(),
        tenant_name: "blue".into(),
        network_name: "front".into(),
        ip_address: vec!["10.1.1.200".into()],
        homing_host: "fabric".into(),
        ..Default::default()
    };
    create_endpoint(&one.node, peer)?;
    let a = attach(&one.node, "a", "front")?;
    let b = attach_to_group(&one.node, "b", "front", Some("web"))?;
    reach(&a, b.address())?;
    Ok(Scene { a, b, one })
}

fn rows(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().with_context(|| format!("no list: {value}"))
}

/// Every row has the fields, and these only when `wanted` is all of them.
fn has_fields(row: &Value, wanted: &[&str]) -> Result<()> {
    let object = row.as_object().with_context(|| format!("no object: {row}"))?;
    for field in wanted {
        ensure!(object.contains_key(*field), "no {field}: {row}");
    }
    Ok(())
}

fn port_ls(scene: &mut Scene) -> Result<()> {
    let node = &scene.one.node;
    let ports = node.vrctl(&["port", "ls"])?;
    ensure!(rows(&ports)?.len() == 3, "{ports}");
    for row in rows(&ports)? {
        has_fields(row, PORT_FIELDS)?;
        // An uplink has its devices as well.
        let count = PORT_FIELDS.len() + usize::from(row["kind"] == "uplink");
        ensure!(row.as_object().map(serde_json::Map::len) == Some(count), "{row}");
    }
    let uplink = rows(&ports)?.iter().find(|row| row["kind"] == "uplink").context("no uplink")?;
    ensure!(uplink["name"] == UPLINK, "{uplink}");
    let index = node.netns().netlink()?.link_by_name(UPLINK)?.context("no link")?.index;
    ensure!(uplink["ifindex"] == index, "{uplink}, not {index}");
    let device = json!([{ "name": UPLINK, "ifindex": index, "active": true, "state": "up" }]);
    ensure!(uplink["devices"] == device, "{uplink}");
    let before = (port_of(node, &scene.a)?, port_of(node, &scene.b)?);
    ensure!(before.0["kind"] == "container" && before.0["tag"] == before.0["id"], "{before:?}");
    ensure!(before.0["vrf"] == before.1["vrf"] && before.0["vrf"] != 0, "{before:?}");
    for _ in 0..10 {
        reach(&scene.a, scene.b.address())?;
    }
    let after = (port_of(node, &scene.a)?, port_of(node, &scene.b)?);
    let grown =
        |old: &Value, new: &Value, field: &str| Some(new[field].as_u64()? - old[field].as_u64()?);
    // An echo request of 48 bytes is 90 on the wire; ARP may come between.
    for (old, new) in [(&before.0, &after.0), (&before.1, &after.1)] {
        for (packets, bytes) in [("rx_packets", "rx_bytes"), ("tx_packets", "tx_bytes")] {
            let (packets, bytes) = (grown(old, new, packets), grown(old, new, bytes));
            ensure!(packets >= Some(10) && packets <= Some(16), "{packets:?}: {old} to {new}");
            ensure!(bytes >= Some(900), "{bytes:?}: {old} to {new}");
        }
    }
    Ok(())
}

fn flow_ls(scene: &mut Scene) -> Result<()> {
    let node = &scene.one.node;
    let entries = node.vrctl(&["flow", "ls"])?;
    let mut tables = BTreeSet::new();
    for row in rows(&entries)? {
        has_fields(row, &["table", "match", "actions", "packets", "bytes"])?;
        tables.insert(row["table"].as_str().context("no table")?);
    }
    for table in ["port", "tunnel", "vtep", "policy", "route", "mac", "group", "network"] {
        ensure!(tables.contains(table), "no entry of {table}: {tables:?}");
    }
    reach(&scene.a, scene.b.address())?;
    let cached = node.vrctl(&["flow", "ls", "--cache", "icmp"])?;
    let (src, dst) = (scene.a.address().to_string(), scene.b.address().to_string());
    let ours = rows(&cached)?.iter().find(|row| {
        let text = row["match"].as_str().unwrap_or_default();
        text.contains(&format!("nw_src={src}")) && text.contains(&format!("nw_dst={dst}"))
    });
    let ours = ours.with_context(|| format!("the ping is not cached: {cached}"))?;
    ensure!(ours["table"] == "cache" && ours["packets"].as_u64() >= Some(1), "{ours}");
    let none = node.vrctl(&["flow", "ls", "--cache", "nw_src=10.99.0.1"])?;
    ensure!(rows(&none)?.is_empty(), "the filter lets through {none}");
    let one = node.vrctl(&["flow", "ls", "--limit", "1"])?;
    ensure!(rows(&one)?.len() == 1, "{one}");
    let text = node.vrctl_run(&["flow", "ls"])?.success()?;
    ensure!(text.lines().all(|line| line.starts_with("table=")), "{text}");
    Ok(())
}

fn route_ls(scene: &mut Scene) -> Result<()> {
    let node = &scene.one.node;
    let port = port_of(node, &scene.a)?;
    let vrf = &port["vrf"];
    let routes = node.vrctl(&["route", "ls", "--vrf", &vrf.to_string()])?;
    for row in rows(&routes)? {
        has_fields(row, &["vrf", "prefix", "next_hop", "port", "vni"])?;
        ensure!(row["vrf"] == *vrf, "another VRF: {row}");
    }
    let find = |prefix: &str| {
        let row = rows(&routes)?.iter().find(|row| row["prefix"] == prefix);
        row.with_context(|| format!("no route {prefix}: {routes}"))
    };
    let local = find(&format!("{}/32", scene.a.address()))?;
    ensure!(local["next_hop"] == "local" && local["port"] == port["id"], "{local}");
    let tunnel = find("10.1.1.200/32")?;
    ensure!(tunnel["next_hop"] == "10.250.0.2" && tunnel["vni"] == 4242, "{tunnel}");
    let subnet = find("10.1.1.0/24")?;
    ensure!(subnet["next_hop"] == "unknown-endpoint", "{subnet}");
    let all = node.vrctl(&["route", "ls"])?;
    let vrfs: Vec<&Value> = rows(&all)?.iter().map(|row| &row["vrf"]).collect();
    ensure!(vrfs.contains(&vrf), "{vrfs:?}");
    Ok(())
}

fn drops(scene: &mut Scene) -> Result<()> {
    let drops = scene.one.node.vrctl(&["drops"])?;
    let mut names = BTreeSet::new();
    for row in rows(&drops)? {
        has_fields(row, &["reason", "packets", "bytes"])?;
        let name = row["reason"].as_str().context("no reason")?;
        ensure!(names.insert(name), "{name} twice");
        ensure!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-' || b == b'6'), "{name}");
    }
    for name in [
        "malformed",
        "spoofed-mac",
        "spoofed-ip",
        "unknown-endpoint",
        "policy-deny",
        "no-route",
        "ttl-expired",
        "unknown-vni",
        "unknown-vtep",
        "rate-limit",
        "ipv6-off",
        "tx-full",
    ] {
        ensure!(names.contains(name), "no {name}: {names:?}");
    }
    Ok(())
}

impl Scene {
    fn a_to_b(&self) -> Result<Addresses> {
        let (src_mac, dst_mac) = (self.a.mac()?, self.b.mac()?);
        Ok(Addresses { src_mac, dst_mac, src: self.a.address(), dst: self.b.address() })
    }

    /// The same packet as flow text and as bytes.
    fn packet(&self, port: u16) -> Result<(String, String, &str)> {
        let addresses = self.a_to_b()?;
        let name = self.a.host_ifname().context("no host interface")?;
        let text = format!(
            "in_port={name},eth_src={},eth_dst={},tcp,nw_src={},nw_dst={},tp_src=4000,tp_dst={port}",
            mac_text(addresses.src_mac),
            mac_text(addresses.dst_mac),
            addresses.src,
            addresses.dst,
        );
        let frame = tcp_syn(addresses, 4000, port)?;
        let hex = frame.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        Ok((text, hex, name))
    }
}

fn trace(scene: &mut Scene) -> Result<()> {
    let node = &scene.one.node;
    for (port, verdict, reason) in [(8000, "forward", ""), (8001, "drop", "policy-deny")] {
        let (text, hex, name) = scene.packet(port)?;
        let of_text = node.vrctl(&["trace", &text])?;
        let of_bytes = node.vrctl(&["trace", "--hex", &hex, "--in-port", name])?;
        // A frame as it is sent is padded; one made of a text is not.
        let unpadded = |mut trace: Value| {
            trace["packet_bytes"].take();
            trace
        };
        let (of_text, of_bytes) = (unpadded(of_text), unpadded(of_bytes));
        ensure!(of_text == of_bytes, "{of_text}, of bytes {of_bytes}");
        has_fields(&of_text, &["verdict", "reason", "rule", "out_ports", "steps"])?;
        ensure!(of_text["verdict"] == verdict && of_text["reason"] == reason, "{of_text}");
        let steps = rows(&of_text["steps"])?;
        for step in steps {
            has_fields(step, &["table", "rule", "match", "actions"])?;
        }
        let tables: Vec<&str> = steps.iter().filter_map(|step| step["table"].as_str()).collect();
        ensure!(tables.starts_with(&["port", "mac"]), "{tables:?}");
        let forwards = verdict == "forward";
        ensure!(tables.contains(&"output") == forwards, "{tables:?}");
        let out = port_of(node, &scene.b)?["id"].clone();
        let wanted = if forwards { vec![out] } else { Vec::new() };
        ensure!(of_text["out_ports"] == Value::from(wanted), "{of_text}");
        let rules = node.netctl(&["policy", "rule-ls", "-t", "blue", "guard"])?;
        let cookie = if forwards { Value::from(0) } else { rules[0]["cookie"].clone() };
        ensure!(of_text["rule"] == cookie, "rule is not {cookie}: {of_text}");
        let shown = node.vrctl_run(&["trace", &text])?.success()?;
        ensure!(shown.contains(&format!("verdict: {verdict}")), "{shown}");
    }
    Ok(())
}

fn trace_is_silent(scene: &mut Scene) -> Result<()> {
    let node = &scene.one.node;
    let (text, ..) = scene.packet(8001)?;
    let count = || {
        let rules = node.netctl(&["policy", "rule-ls", "-t", "blue", "guard"])?;
        let denied = crate::site::drops(node, "policy-deny")?;
        anyhow::Ok((rules[0]["packets"].as_u64().context("no packets")?, denied))
    };
    let before = count()?;
    for _ in 0..20 {
        node.vrctl(&["trace", &text])?;
    }
    ensure!(count()? == before, "{:?}, before {before:?}", count()?);
    let cached = node.vrctl(&["flow", "ls", "--cache", "tcp,tp_dst=8001"])?;
    ensure!(rows(&cached)?.is_empty(), "a trace is cached: {cached}");
    Ok(())
}

fn exit_codes(scene: &mut Scene) -> Result<()> {
    let node = &mut scene.one.node;
    for (args, code) in [
        (&["trace"][..], 1),
        (&["trace", "--hex", "xyz", "--in-port", "2"], 1),
        (&["port"], 1),
        (&["flow", "ls", "--limit", "many"], 1),
        (&["trace", "in_port=nowhere,icmp,nw_src=10.1.1.1,nw_dst=10.1.1.2"], 3),
        (&["trace", "in_port=2,colour=red"], 3),
        (&["flow", "ls", "--cache", "colour=red"], 3),
        (&["trace", "--pcap", "/nonexistent.pcap", "--in-port", "2"], 4),
        (&["--socket", "/nonexistent.sock", "port", "ls"], 2),
    ] {
        let done = node.vrctl_run(args)?;
        ensure!(done.code == Some(code), "vrctl {args:?}: {done:?}");
        ensure!(!done.stderr.is_empty() && done.stdout.is_empty(), "vrctl {args:?}: {done:?}");
    }
    ensure!(node.process(Daemon::Vrouterd)?.is_running()?, "vrouterd ended");
    Ok(())
}

fn pages(scene: &mut Scene) -> Result<()> {
    let namespace = scene.one.node.namespace();
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new(binary(program)?);
        command.args(args);
        kit::run(namespace, command)?.success().with_context(|| format!("{program} {args:?}"))
    };
    for (program, nouns) in [
        (
            "netctl",
            &[
                "tenant", "network", "group", "policy", "endpoint", "global", "service", "bgp",
                "apply", "explain",
            ][..],
        ),
        ("vrctl", &["port", "flow", "route", "drops", "trace"]),
    ] {
        for shell in ["bash", "zsh", "fish"] {
            let script = run(program, &["completion", shell])?;
            ensure!(nouns.iter().all(|noun| script.contains(noun)), "{program} {shell}: {script}");
        }
        let dir = DirGuard::new(Purpose::Test, "man")?;
        run(program, &["man", dir.path().to_str().context("a path that is not text")?])?;
        for noun in nouns {
            let page = dir.path().join(format!("{program}-{noun}.1"));
            let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
            ensure!(text.contains(".SH SYNOPSIS"), "{}: {text}", page.display());
        }
        let help = run(program, &["--help"])?;
        ensure!(nouns.iter().all(|noun| help.contains(noun)), "{help}");
        ensure!(run(program, &["--version"])?.starts_with(program), "{program} --version");
    }
    Ok(())
}

fn tables(scene: &mut Scene) -> Result<()> {
    let node = &scene.one.node;
    for (line, columns) in [
        ("tenant ls", &["Name"][..]),
        (
            "network ls -t blue",
            &["Tenant", "Network", "Nw Type", "Encap type", "Packet tag", "Subnet", "Gateway"],
        ),
        ("group ls -t blue", &["Tenant", "Group", "Network", "Policies"]),
        ("policy ls -t blue", &["Tenant", "Policy"]),
        (
            "policy rule-ls -t blue guard",
            &["Rule", "Priority", "From EndpointGroup", "To IpAddress", "Protocol", "Action"],
        ),
        ("endpoint ls -t blue", &["Tenant", "Network", "IpAddress", "HomingHost"]),
        ("global info", &["Vlan Range", "Vxlan range"]),
    ] {
        let text = node.netctl_run(&line.split(' ').collect::<Vec<_>>())?.success()?;
        for column in columns {
            ensure!(text.contains(column), "netctl {line}: no column {column}:\n{text}");
        }
    }
    for (line, path) in [
        ("tenant ls", "/0/tenantName"),
        ("network ls -a", "/0/networkName"),
        ("group ls -a", "/0/groupName"),
        ("policy rule-ls -t blue guard", "/0/ruleId"),
        ("network inspect -t blue front", "/Config/pktTag"),
        ("network inspect -t blue front", "/Oper/allocatedIPAddresses"),
        ("tenant inspect blue", "/Config/tenantName"),
    ] {
        let found = netctl_json(node, line)?;
        ensure!(found.pointer(path).is_some(), "netctl {line} has no {path}: {found}");
    }
    Ok(())
}

fn private_sockets(scene: &mut Scene) -> Result<()> {
    let node = &scene.one.node;
    for socket in [node.cni_socket(), node.datapath_socket()] {
        let metadata = socket.metadata().with_context(|| socket.display().to_string())?;
        let mode = metadata.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{} is {mode:o}", socket.display());
    }
    Ok(())
}

fn services(scene: &mut Scene) -> Result<()> {
    let node = &scene.one.node;
    let unix = |socket: PathBuf| format!("unix:{}", socket.display());
    for (url, service) in [
        (node.netmaster_url(), "control.v1.NetMaster"),
        (node.netmaster_url(), "control.v1.Node"),
        (unix(node.cni_socket()), "cni.v1.Cni"),
        (unix(node.datapath_socket()), "datapath.v1.Datapath"),
    ] {
        connected(node.namespace(), &url, async |channel| {
            let check = HealthCheckRequest { service: service.into() };
            let health = HealthClient::new(channel.clone()).check(check).await;
            let health = health.with_context(|| format!("health of {service}"))?.into_inner();
            ensure!(health.status() == ServingStatus::Serving, "{service}: {health:?}");
            let names = described(channel).await.with_context(|| format!("services of {url}"))?;
            ensure!(names.contains(&service.to_owned()), "no {service}: {names:?}");
            Ok(())
        })?;
    }
    Ok(())
}

async fn described(channel: Channel) -> Result<Vec<String>> {
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let requests = tokio_stream::iter([list]);
    let mut answers =
        ServerReflectionClient::new(channel).server_reflection_info(requests).await?.into_inner();
    let answer = answers.message().await?.context("no answer")?.message_response;
    let Some(MessageResponse::ListServicesResponse(listed)) = answer else {
        anyhow::bail!("{answer:?}")
    };
    Ok(listed.service.into_iter().map(|service| service.name).collect())
}
