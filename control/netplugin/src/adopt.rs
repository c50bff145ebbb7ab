//! Containers that run, of a node whose state directory was lost: their rows are made anew.
//!
//! What is left says enough. netmaster has the endpoint, whose id gives the host end its name; the
//! host end leads to the container's end, and that to its namespace; the engine has the port. A host
//! end that leads to no endpoint of this node is refused: its container has no rights, and no
//! address that is its own. What only the runtime has said is noted on the host end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use control_model::{Endpoint, Network};
use flowtable::ids::PortId;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use crate::attachment::{Address, Attachment, AttachmentId, Interface, State, Told};
use crate::links::{self, Inside};
use crate::naming::host_ifname;
use crate::node::{Node, wanted};
use crate::note::Note;
use crate::refusal::Refusal;

/// How long a running engine may take to tell its ports; without them they get new ids.
const ENGINE_PATIENCE: Duration = Duration::from_secs(5);

/// Before the first pass: an engine that runs goes on with what it has until every row is back.
pub(crate) async fn at_start(node: &Arc<Node>) {
    let orphans = match orphans(node).await {
        Ok(orphans) => orphans,
        Err(error) => {
            warn!(%error, "cannot look for containers without attachment");
            BTreeSet::new()
        }
    };
    if !orphans.is_empty() {
        warn!(
            count = orphans.len(),
            "host ends without attachment: asking netmaster whose they are"
        );
        let mut known = node.mirror.watch();
        // The sender lives as long as the node.
        drop(known.wait_for(|known| known.epoch > 0).await);
        adopt(node, &orphans).await;
    }
    node.programmer.begin();
}

/// Host ends without a row.
async fn orphans(node: &Node) -> Result<BTreeSet<String>, Refusal> {
    let mut ends = tokio::task::spawn_blocking(links::host_ends).await??;
    for row in node.roster.rows() {
        ends.remove(&row.host_ifname);
    }
    Ok(ends)
}

/// Endpoints of this node that have a host end and no row.
pub(crate) async fn unadopted(node: &Node) -> Result<Vec<AttachmentId>, Refusal> {
    let orphans = orphans(node).await?;
    let claimed = claims(node).into_iter().filter(|(link, _)| orphans.contains(link));
    Ok(claimed.map(|(_, (id, ..))| id).collect())
}

/// Gives those of `orphans` a row that are of endpoints of this node; those that are, with a row or
/// without.
pub(crate) async fn adopt(node: &Arc<Node>, orphans: &BTreeSet<String>) -> BTreeSet<String> {
    let mut claimed = claims(node);
    claimed.retain(|link, _| orphans.contains(link));
    if claimed.is_empty() {
        return BTreeSet::new();
    }
    let insides = tokio::task::spawn_blocking(links::insides).await.unwrap_or_default();
    let insides = Arc::new(insides);
    let ports = engine_ports(node).await;
    for (link, (id, endpoint, network)) in &claimed {
        let lost = Lost { id, link, endpoint, network, port: ports.get(link).copied() };
        match lost.adopt(node, Arc::clone(&insides)).await {
            Ok(()) => {
                node.measures.repaired("attachment");
                info!(%id, link, "adopted: its attachment was lost, its container runs");
            }
            Err(error) => warn!(%id, link, %error, "cannot adopt it; it keeps its address"),
        }
    }
    claimed.into_keys().collect()
}

/// Endpoints that netmaster has for this node, by the name of their host end.
fn claims(node: &Node) -> BTreeMap<String, (AttachmentId, Endpoint, Network)> {
    node.mirror.read(|intent| {
        let ours = intent.endpoints().filter(|e| e.host.node == node.config.node);
        let claim = |endpoint: &Endpoint| {
            let (container, ifname) = endpoint.id.as_str().rsplit_once(':')?;
            let id = AttachmentId::new(container, ifname).ok()?;
            let network = intent.network(&endpoint.network)?.clone();
            Some((host_ifname(&id), (id, endpoint.clone(), network)))
        };
        ours.filter_map(claim).collect()
    })
}

async fn engine_ports(node: &Node) -> BTreeMap<String, PortId> {
    let mut applied = node.programmer.watch();
    let there = applied.wait_for(|applied| applied.engine.is_some());
    let there = timeout_at(Instant::now() + ENGINE_PATIENCE, there).await;
    let engine = there.ok().and_then(Result::ok).and_then(|now| now.engine.clone());
    let Some(engine) = engine else { return BTreeMap::new() };
    match engine.ports().await {
        Ok(ports) => {
            let named = ports.into_iter().filter_map(|p| Some((p.name, PortId::new(p.id).ok()?)));
            named.collect()
        }
        Err(error) => {
            warn!(%error, "the engine does not tell its ports; they get new ids");
            BTreeMap::new()
        }
    }
}

/// An attachment without row.
struct Lost<'a> {
    id: &'a AttachmentId,
    link: &'a str,
    endpoint: &'a Endpoint,
    network: &'a Network,
    port: Option<PortId>,
}

impl Lost<'_> {
    async fn adopt(&self, node: &Arc<Node>, insides: Arc<Vec<Inside>>) -> Result<(), Refusal> {
        let _turn = node.roster.turn(self.id).await;
        if node.roster.row(self.id).is_some() {
            return Ok(());
        }
        let (link, mac) = (self.link.to_owned(), self.endpoint.mac);
        let found = tokio::task::spawn_blocking(move || links::other_end(&link, mac, &insides));
        let nowhere = || Refusal::Differs(format!("the other end of {} is not found", self.link));
        let (inside, note) = found.await??.ok_or_else(nowhere)?;
        if inside.ifname != self.id.ifname() {
            return Err(nowhere());
        }
        let port = node.roster.adopt_port(self.port)?;
        let row = self.row(inside, note, port);
        if let Err(error) = node.roster.put(row.clone()).await {
            node.roster.free_port(port);
            return Err(error.into());
        }
        if let Some((port, port_wanted)) = wanted(&row) {
            node.programmer.place(port, port_wanted);
        }
        Ok(())
    }

    fn row(&self, inside: Inside, note: Note, port: PortId) -> Attachment {
        let endpoint = self.endpoint;
        let addresses = Address::all_of(endpoint, self.network);
        let ours = |ip: &IpAddr| addresses.iter().any(|address| address.gateway == Some(*ip));
        let default_routes = inside.seen.gateways.into_iter().filter(ours).collect();
        Attachment {
            id: self.id.clone(),
            state: State::Attached,
            // Empty, of before there were notes: garbage collection leaves it, the end of its container
            // does not.
            config_name: note.config,
            tenant: endpoint.network.tenant.to_string(),
            network: endpoint.network.network.to_string(),
            group: endpoint.group.as_ref().map(ToString::to_string).unwrap_or_default(),
            sandbox: inside.sandbox,
            port: port.get(),
            host_ifname: self.link.to_owned(),
            interface: Some(Interface {
                mac: endpoint.mac,
                mtu: inside.mtu,
                default_routes,
                addresses,
            }),
            adopted: None,
            limits: note.limits,
            published: note.published,
            told: Told {
                container_name: endpoint.host.container_name.to_string(),
                labels: endpoint.host.labels.iter().map(ToString::to_string).collect(),
            },
        }
    }
}
