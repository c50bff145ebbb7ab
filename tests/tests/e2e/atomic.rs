//! A policy of a thousand rules is replaced by another in one write. Datagrams are sent every
//! millisecond to a port that both generations deny and to one that both allow, each by rules of its
//! own: a mixture of the two would let the first through or stop the second.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use control_api::v1;
use control_api::v1::net_master_client::NetMasterClient;
use control_api::v1::object::Kind as Wire;
use kit::{Container, OneNode, Purpose, Topology, wait_until};

use crate::Test;
use crate::control::with_netmaster;
use crate::shared::sharing;
use crate::site::{BOUND, attach_to_group, configure, netctl_json, reach_soon};

const RULES: usize = 1000;
const GENERATIONS: u32 = 6;
const SHUT: u16 = 7001;
const OPEN: u16 = 7002;
const PACE: Duration = Duration::from_millis(1);

pub(crate) fn tests() -> Vec<Test> {
    sharing(
        build,
        &[
            ("pol_6_an_update_of_1000_rules_is_seen_as_a_whole_or_not_at_all", replaced),
            ("pol_6_a_rule_that_names_nothing_refuses_all_the_others", dangling),
        ],
    )
}

#[derive(Debug)]
struct Scene {
    from: Container,
    to: Container,
    one: OneNode,
}

fn build() -> Result<Scene> {
    let one = Topology::new(Purpose::Test).one_node()?;
    let lines = [
        "tenant create blue",
        "network create -t blue -s 10.1.1.0/24 -g 10.1.1.254 front",
        "policy create -t blue guard",
        "group create -t blue -p guard front web",
        "policy rule-add -t blue -d in -l udp -j deny guard all",
    ];
    configure(&one.node, &lines)?;
    let from = attach_to_group(&one.node, "from", "front", None)?;
    let to = attach_to_group(&one.node, "to", "front", Some("web"))?;
    reach_soon(&from, to.address())?;
    apply(&one, generation(0), &[])?;
    Ok(Scene { from, to, one })
}

/// Rule `ID` of a generation, about a port.
fn rule(id: &str, port: u16, action: &str, priority: u32) -> v1::Object {
    let kind = Some(Wire::Rule(v1::Rule {
        tenant_name: "blue".into(),
        policy_name: "guard".into(),
        rule_id: id.into(),
        direction: "in".into(),
        protocol: "udp".into(),
        port: port.into(),
        action: action.into(),
        priority,
        ..Default::default()
    }));
    v1::Object { kind }
}

/// All rules on top of the one that denies everything, under ids that no other generation has.
fn generation(number: u32) -> Vec<v1::Object> {
    // 20 opens all ports, 30 shuts one again: without either something else would hold.
    let last = [
        rule(&format!("g{number}.open"), OPEN, "allow", 20),
        rule(&format!("g{number}.through"), SHUT, "allow", 20),
        rule(&format!("g{number}.shut"), SHUT, "deny", 30),
    ];
    let filler = (0..RULES - last.len()).map(|i| {
        let port = 10_000 + u16::try_from(i).unwrap_or_default();
        rule(&format!("g{number}.{i}"), port, "allow", 10)
    });
    filler.chain(last).collect()
}

fn keys(rules: &[v1::Object]) -> Vec<v1::ObjectKey> {
    let id = |rule: &v1::Object| match &rule.kind {
        Some(Wire::Rule(rule)) => format!("blue:guard:{}", rule.rule_id),
        Some(_) | None => String::new(),
    };
    let key = |rule| v1::ObjectKey { kind: v1::Kind::Rule.into(), key: id(rule) };
    rules.iter().map(key).collect()
}

/// Puts rules in the place of others; the reply, once it is in force.
fn apply(one: &OneNode, puts: Vec<v1::Object>, gone: &[v1::Object]) -> Result<v1::ApplyReply> {
    let deletes = keys(gone);
    let request = v1::ApplyRequest { objects: puts, deletes, ..Default::default() };
    let reply = with_netmaster(&one.node, async move |channel| {
        let mut client = NetMasterClient::new(channel).max_decoding_message_size(1 << 24);
        Ok(client.apply(request).await?.into_inner())
    })?;
    ensure!(reply.late_nodes.is_empty(), "late: {:?}", reply.late_nodes);
    Ok(reply)
}

/// What has arrived at each port.
#[derive(Debug, Default)]
struct Arrived {
    shut: usize,
    open: usize,
}

/// Sends to both ports until `stop`, and counts what arrives; how many were sent to each.
fn probe(scene: &Scene, stop: &AtomicBool) -> Result<(usize, Arrived)> {
    let bind = |container: &Container, port: u16| -> Result<UdpSocket> {
        let socket =
            container.namespace().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let (shut, open) = (bind(&scene.to, SHUT)?, bind(&scene.to, OPEN)?);
    let sender = bind(&scene.from, 0)?;
    let (mut sent, mut arrived, to) = (0, Arrived::default(), scene.to.address());
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        for port in [SHUT, OPEN] {
            sender.send_to(b"probe", (to, port)).context("sending a probe")?;
        }
        sent += 1;
        next += PACE;
        thread::sleep(next.saturating_duration_since(Instant::now()));
        arrived.shut += drained(&shut);
        arrived.open += drained(&open);
    }
    wait_until(BOUND, format!("{sent} datagrams to the open port"), || {
        arrived.open += drained(&open);
        (arrived.open >= sent).then_some(())
    })?;
    arrived.shut += drained(&shut);
    Ok((sent, arrived))
}

fn drained(socket: &UdpSocket) -> usize {
    std::iter::from_fn(|| socket.recv(&mut [0; 64]).ok()).count()
}

fn replaced(scene: &mut Scene) -> Result<()> {
    let stop = AtomicBool::new(false);
    let scene = &*scene;
    let (sent, arrived) = thread::scope(|scope| {
        let probing = scope.spawn(|| probe(scene, &stop));
        let outcome = (1..=GENERATIONS).try_for_each(|number| {
            let reply = apply(&scene.one, generation(number), &generation(number - 1))?;
            ensure!(reply.results.len() == RULES * 2, "{} results", reply.results.len());
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let seen = probing.join().map_err(|_panic| anyhow!("the probe panicked"))?;
        outcome.and(seen)
    })?;
    ensure!(arrived.shut == 0, "{} of {sent} datagrams met a mixture", arrived.shut);
    ensure!(arrived.open == sent, "{} of {sent} datagrams arrived", arrived.open);
    // An update takes about 30 ms where nothing else runs.
    ensure!(sent > 10 * GENERATIONS as usize, "only {sent} probes in {GENERATIONS} updates");
    apply(&scene.one, generation(0), &generation(GENERATIONS)).map(drop)
}

fn dangling(scene: &mut Scene) -> Result<()> {
    let rules = || netctl_json(&scene.one.node, "policy rule-ls -t blue guard");
    let before = rules()?;
    let mut wanted = generation(9);
    let mut broken = rule("g9.broken", SHUT, "allow", 40);
    if let Some(Wire::Rule(rule)) = &mut broken.kind {
        rule.from_endpoint_group = "nobody".into();
    }
    wanted.insert(RULES / 2, broken);
    let refused = apply(&scene.one, wanted, &generation(0)).err().context("it was applied")?;
    let status = refused.downcast_ref::<tonic::Status>().context("no status")?;
    ensure!(status.code() == tonic::Code::NotFound, "{status}");
    ensure!(status.message() == "endpoint group not found", "{status}");
    ensure!(rules()? == before, "some of it was applied");
    Ok(())
}
