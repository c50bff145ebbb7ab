//! How soon many endpoints are in force on nodes with real engines.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use control_api::v1;
use control_api::v1::net_master_client::NetMasterClient;
use control_api::v1::object::Kind as Wire;
use kit::{Daemon, Node, Purpose, Topology, wait_until};
use tests::resident_kb;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::Test;
use crate::control::{register, with_netmaster};
use crate::site::{all_connected, attach, configure, netctl_json, reach_soon};

const GHOSTS: [&str; 3] = ["ghost0", "ghost1", "ghost2"];
/// SCL-1, for each thousand.
const BOUND: Duration = Duration::from_secs(30);
/// Creations under way at once.
const AT_ONCE: usize = 16;

pub(crate) fn tests() -> Vec<Test> {
    let name = "scl_1_a_thousand_endpoints_of_three_nodes_are_in_force_within_30_s";
    vec![(name.to_owned(), Box::new(thousand))]
}

/// `make soak` has ten thousand.
fn thousands() -> usize {
    if std::env::var_os("WEIR_SOAK").is_some() { 10 } else { 1 }
}

/// Three nodes without engines have the endpoints; two with engines have one container each of the same
/// tenant, so that every endpoint is their concern.
fn thousand() -> Result<()> {
    let mut nodes = Topology::new(Purpose::Test).two_nodes()?;
    let (endpoints, bound) = (thousands() * 1000, BOUND * u32::try_from(thousands())?);
    let lines =
        ["tenant create blue", "network create -t blue -s 10.1.0.0/18 -g 10.1.63.254 front"];
    configure(&nodes.one, &lines)?;
    let a = attach(&nodes.one, "a", "front")?;
    let c = attach(&nodes.two, "c", "front")?;
    all_connected(&nodes.one)?;
    for (name, vtep) in GHOSTS.iter().zip(["192.0.2.1", "192.0.2.2", "192.0.2.3"]) {
        register(&nodes.one, name, vtep)?;
    }
    let begun = Instant::now();
    let newest = with_netmaster(&nodes.one, async |channel| create_all(&channel, endpoints).await)?;
    let stored = begun.elapsed();
    wait_until(bound * 2, "every endpoint to be in force", || in_force(&nodes.one, newest).ok())
        .with_context(|| format!("{:?}", netctl_json(&nodes.one, "node ls")))?;
    let took = begun.elapsed();
    for node in [&nodes.one, &nodes.two] {
        let routes = node.vrctl(&["route", "ls"])?;
        let hosts = routes.as_array().into_iter().flatten();
        let hosts = hosts.filter(|r| r["prefix"].as_str().is_some_and(|p| p.ends_with("/32")));
        let count = hosts.count();
        ensure!(count >= endpoints + 2, "{} has {count} routes to hosts", node.name());
    }
    ensure!(took <= bound, "{took:?}");
    reach_soon(&a, c.address())?;
    let mut kilobytes = |daemon| resident_kb(nodes.one.process(daemon)?.pid());
    let [netmaster, netplugin, vrouterd] = [
        kilobytes(Daemon::Netmaster)?,
        kilobytes(Daemon::Netplugin)?,
        kilobytes(Daemon::Vrouterd)?,
    ];
    eprintln!(
        "{endpoints} endpoints stored after {stored:.1?}, in force on both engines after {took:.1?}; kB of \
         netmaster {netmaster}, netplugin {netplugin}, vrouterd {vrouterd}"
    );
    // One more is a small change, however many there are.
    let begun = Instant::now();
    attach(&nodes.one, "late", "front")?.detach(&nodes.one)?;
    eprintln!("one container attached and detached then in {:.1?}", begun.elapsed());
    Ok(())
}

/// Creates every endpoint; the last revision.
async fn create_all(channel: &Channel, count: usize) -> Result<u64> {
    let mut creating: JoinSet<Result<u64>> = JoinSet::new();
    let mut newest = 0;
    for number in 0..count {
        if creating.len() == AT_ONCE {
            newest = newest.max(creating.join_next().await.context("none is under way")???);
        }
        let channel = channel.clone();
        creating.spawn(async move { create(channel, number).await });
    }
    while let Some(created) = creating.join_next().await {
        newest = newest.max(created??);
    }
    Ok(newest)
}

async fn create(channel: Channel, number: usize) -> Result<u64> {
    let endpoint = v1::Endpoint {
        endpoint_id: format!("e{number}:eth0"),
        tenant_name: "blue".into(),
        network_name: "front".into(),
        homing_host: GHOSTS[number % GHOSTS.len()].into(),
        ..v1::Endpoint::default()
    };
    let object = Some(v1::Object { kind: Some(Wire::Endpoint(endpoint)) });
    let request = v1::CreateRequest { object, no_wait: true };
    Ok(NetMasterClient::new(channel).create(request).await?.into_inner().revision)
}

/// Both nodes with engines have everything up to `revision` in force.
fn in_force(node: &Node, revision: u64) -> Result<()> {
    let rows = netctl_json(node, "node ls")?;
    let rows = rows.as_array().context("node ls is no list")?;
    let real = rows.iter().filter(|row| row["connected"] == true);
    let behind = real.clone().any(|row| row["ackedRevision"].as_u64().is_none_or(|r| r < revision));
    ensure!(real.count() == 2 && !behind, "{rows:?}");
    Ok(())
}
