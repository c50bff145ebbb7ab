//! Metrics, health, readiness and request ids of the control plane's daemons, over real HTTP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use control_api::v1;
use control_api::v1::net_master_client::NetMasterClient;
use kit::pages::{Metrics, page, scrape};
use kit::{Daemon, Node, OneNode, Purpose, Topology, wait_until};
use tonic::{Code, Request};

use crate::Test;
use crate::control::with_netmaster;
use crate::shared::sharing;
use crate::site::{BOUND, all_connected, attach, configure};

const NETPLUGIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("met_1_netmasters_series_exist_and_move", netmaster_series),
            ("met_1_netplugins_series_exist_and_move", netplugin_series),
            ("met_1_readiness_says_what_is_missing_and_health_that_it_lives", readiness),
            ("met_1_a_request_has_an_id_that_is_returned_and_logged", request_ids),
            ("met_1_an_add_and_its_del_have_one_id_each_in_every_log", attachment_ids),
        ],
    )
}

fn build() -> Result<OneNode> {
    let one = Topology::new(Purpose::Test).one_node()?;
    let lines = ["tenant create blue", "network create -t blue -s 10.1.1.0/24 front"];
    configure(&one.node, &lines)?;
    all_connected(&one.node)?;
    Ok(one)
}

fn netmaster_address(node: &Node) -> Result<SocketAddr> {
    let url = node.netmaster_url();
    Ok(url.strip_prefix("http://").context("no http URL")?.parse()?)
}

fn netmaster_metrics(node: &Node) -> Result<Metrics> {
    scrape(node.namespace(), netmaster_address(node)?)
}

/// Two scrapes of a moment before and after something happened.
struct Moved {
    before: Metrics,
    after: Metrics,
}

impl Moved {
    fn by(&self, name: &str, labels: &[&str]) -> i64 {
        self.after.sum(name, labels) - self.before.sum(name, labels)
    }

    /// Every series named here moved by at least this.
    fn at_least(&self, wanted: &[(&str, &[&str], i64)]) -> Result<()> {
        for (name, labels, least) in wanted {
            let moved = self.by(name, labels);
            ensure!(moved >= *least, "{name}{labels:?} moved by {moved}, not {least}");
        }
        Ok(())
    }
}

fn netmaster_series(one: &mut OneNode) -> Result<()> {
    let node = &one.node;
    let before = netmaster_metrics(node)?;
    let refused = node.netctl_run(&["tenant", "rm", "nobody"])?;
    ensure!(refused.code == Some(3), "{refused:?}");
    configure(node, &["network create -t blue -s 10.2.0.0/24 -e vlan -p 77 wire"])?;
    let container = attach(node, "m1", "front")?;
    let moved = Moved { before, after: netmaster_metrics(node)? };
    let calls = "weir_api_request_duration_seconds_count";
    let front = &["tenant=\"blue\"", "network=\"front\""];
    moved.at_least(&[
        (calls, &["method=\"control.v1.NetMaster/Create\"", "code=\"Ok\""], 2),
        (calls, &["method=\"control.v1.NetMaster/Delete\"", "code=\"NotFound\""], 1),
        (calls, &["method=\"control.v1.Node/Ack\"", "code=\"Ok\""], 1),
        ("weir_store_transaction_duration_seconds_count", &["outcome=\"committed\""], 2),
        ("weir_store_revision", &[], 2),
        ("weir_objects", &["kind=\"endpoint\""], 1),
        ("weir_objects", &["kind=\"network\""], 1),
        ("weir_tags_used", &["encap=\"vlan\""], 1),
        ("weir_addresses_used", front, 1),
    ])?;
    ensure!(moved.by("weir_addresses_free", front) == -1, "{:?}", moved.after);
    ensure!(moved.by("weir_tags_free", &["encap=\"vlan\""]) == -1, "{:?}", moved.after);
    let name = format!("node=\"{}\"", node.name());
    ensure!(moved.after.value(&format!("weir_node_connected{{{name}}}"))? == 1, "not connected");
    // A write returns when the node has acknowledged it.
    ensure!(moved.after.value(&format!("weir_watch_lag_revisions{{{name}}}"))? == 0, "a lag");
    ensure!(moved.after.value("weir_store_readable")? == 1, "not readable");
    container.detach(node)?;
    configure(node, &["network rm -t blue wire"])?;
    let gone = netmaster_metrics(node)?;
    ensure!(gone.sum("weir_addresses_used", &["network=\"wire\""]) == 0, "{gone:?}");
    ensure!(gone.sum("weir_addresses_used", front) == 0, "{gone:?}");
    Ok(())
}

fn netplugin_series(one: &mut OneNode) -> Result<()> {
    let node = &one.node;
    let look = || scrape(node.namespace(), NETPLUGIN);
    let before = look()?;
    let first = attach(node, "m2", "front")?;
    let second = attach(node, "m3", "front")?;
    second.detach(node)?;
    let moved = Moved { before, after: look()? };
    let step = "weir_attach_step_duration_seconds_count";
    let done = "weir_cni_operation_duration_seconds_count";
    moved.at_least(&[
        (step, &["step=\"Turn\""], 2),
        (step, &["step=\"Endpoint\""], 2),
        (step, &["step=\"Plan\""], 2),
        (step, &["step=\"Links\""], 2),
        (step, &["step=\"Engine\""], 2),
        (done, &["operation=\"add\"", "result=\"ok\""], 2),
        (done, &["operation=\"del\"", "result=\"ok\""], 1),
        ("weir_api_request_duration_seconds_count", &["method=\"cni.v1.Cni/Add\""], 2),
        ("weir_watch_revision", &[], 3),
        ("weir_attachments", &[], 1),
    ])?;
    ensure!(moved.by("weir_ports_free", &[]) < 0, "no port was taken");
    for (series, value) in [
        ("weir_engine_connected", 1),
        ("weir_netmaster_connected", 1),
        ("weir_tables_refused", 0),
        ("weir_ports_failed", 0),
    ] {
        ensure!(moved.after.value(series)? == value, "{series}: {:?}", moved.after);
    }
    wait_until(BOUND, "the engine to have what was heard", || {
        look().ok().filter(|now| now.value("weir_watch_lag_revisions").ok() == Some(0))
    })?;
    wait_until(BOUND, "a round of reconciling", || {
        let rounds = |metrics: &Metrics| metrics.sum("weir_reconcile_rounds_total", &["ok"]);
        look().ok().filter(|now| rounds(now) > rounds(&moved.before))
    })?;
    first.detach(node)
}

fn readiness(one: &mut OneNode) -> Result<()> {
    let netmaster = netmaster_address(&one.node)?;
    let get = |one: &OneNode, server, path| page(one.node.namespace(), server, path);
    for server in [netmaster, NETPLUGIN] {
        let health = get(one, server, "/healthz")?;
        ensure!((health.status, health.body.as_str()) == (200, "ok\n"), "{server}: {health:?}");
        let ready = get(one, server, "/readyz")?;
        ensure!((ready.status, ready.body.as_str()) == (200, "ready\n"), "{server}: {ready:?}");
        let version = get(one, server, "/version")?;
        let own = format!("{{\"Version\":\"{}\"}}\n", env!("CARGO_PKG_VERSION"));
        ensure!((version.status, version.body.as_str()) == (200, own.as_str()), "{version:?}");
        ensure!(get(one, server, "/nothing")?.status == 404, "{server}");
    }
    let says = |one: &OneNode, status: u16, text: &str| {
        wait_until(BOUND, format!("netplugin to say {status} {text}"), || {
            let ready = get(one, NETPLUGIN, "/readyz").ok()?;
            (ready.status == status && ready.body.contains(text)).then_some(())
        })
    };
    one.node.stop(Daemon::Netmaster)?;
    says(one, 503, "no session with netmaster")?;
    ensure!(get(one, NETPLUGIN, "/healthz")?.status == 200, "it lives all the same");
    one.node.start(Daemon::Netmaster)?;
    says(one, 200, "ready")?;
    one.node.stop(Daemon::Vrouterd)?;
    says(one, 503, "vrouterd is away")?;
    one.node.start(Daemon::Vrouterd)?;
    says(one, 200, "ready")?;
    all_connected(&one.node)
}

fn request_ids(one: &mut OneNode) -> Result<()> {
    let node = &one.node;
    let ask = |id: Option<&'static str>| {
        with_netmaster(node, async move |channel| {
            let kind = v1::Kind::Tenant.into();
            let delete = v1::DeleteRequest { kind, key: "nobody".into(), no_wait: false };
            let mut request = Request::new(delete);
            if let Some(id) = id {
                request.metadata_mut().insert("x-request-id", id.parse()?);
            }
            let answer = NetMasterClient::new(channel).delete(request).await;
            let status = answer.err().context("nobody was deleted")?;
            ensure!(status.code() == Code::NotFound, "{status}");
            let id = status.metadata().get("x-request-id").context("no id in the answer")?;
            Ok(id.to_str()?.to_owned())
        })
    };
    ensure!(ask(Some("ticket-42"))? == "ticket-42", "the client's id is not kept");
    let drawn = ask(None)?;
    ensure!(drawn.len() == 16, "{drawn}");
    let log = node.log(Daemon::Netmaster)?;
    for id in ["ticket-42", &drawn] {
        let line = log.lines().find(|line| line.contains(id));
        let line = line.with_context(|| format!("{id} is not logged: {log}"))?;
        ensure!(line.contains("control.v1.NetMaster/Delete"), "{line}");
        ensure!(line.contains("NotFound"), "{line}");
    }
    Ok(())
}

fn attachment_ids(one: &mut OneNode) -> Result<()> {
    let node = &one.node;
    attach(node, "m4", "front")?.detach(node)?;
    let (asked, log) = (node.log(Daemon::Netplugin)?, node.log(Daemon::Netmaster)?);
    for (method, asks) in [("Add", "Create"), ("Del", "Delete")] {
        let id = last_id(&asked, &format!("cni.v1.Cni/{method}"))?;
        ensure!(
            has_request(&log, &id, &format!("control.v1.NetMaster/{asks}")),
            "netmaster logs no {asks} with the id {id} of the {method}: {log}"
        );
    }
    Ok(())
}

/// The id of the last request with this method in a log.
pub(crate) fn last_id(log: &str, method: &str) -> Result<String> {
    let line = log.lines().rfind(|line| line.contains(method) && line.contains("id="));
    let line = line.with_context(|| format!("no {method} in {log}"))?;
    let (_, rest) = line.split_once("id=").context("an id")?;
    let id: String =
        rest.trim_start_matches('"').chars().take_while(char::is_ascii_hexdigit).collect();
    ensure!(id.len() == 16, "{id:?} in {line}");
    Ok(id)
}

/// Whether a log has a request with this id and method.
pub(crate) fn has_request(log: &str, id: &str, method: &str) -> bool {
    log.lines().any(|line| line.contains(id) && line.contains(method))
}
