//! Makes attachments, links and endpoints agree again after crashes, reboots and lost calls.
//!
//! What looks wrong is acted on only when two rounds in a row saw it, since a container that is
//! just being made looks like one that is half gone. Running containers are never touched.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::adopt;
use crate::attach::{Released, raise, release};
use crate::attachment::{Attachment, AttachmentId, State};
use crate::links::{self, Present};
use crate::naming::is_host_ifname;
use crate::node::Node;
use crate::refusal::Refusal;

const ROUND: Duration = Duration::from_secs(3);

/// What one round found wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Suspects {
    /// Attached rows without link and namespace.
    gone: BTreeSet<AttachmentId>,
    /// Attached rows whose host end is set down.
    down: BTreeSet<AttachmentId>,
    /// Host ends without a row.
    links: BTreeSet<String>,
    /// Endpoints of this node without a row.
    endpoints: BTreeSet<String>,
}

impl Suspects {
    /// What both rounds found.
    fn confirmed_by(&self, later: &Self) -> Self {
        fn both<T: Ord + Clone>(a: &BTreeSet<T>, b: &BTreeSet<T>) -> BTreeSet<T> {
            a.intersection(b).cloned().collect()
        }
        Self {
            gone: both(&self.gone, &later.gone),
            down: both(&self.down, &later.down),
            links: both(&self.links, &later.links),
            endpoints: both(&self.endpoints, &later.endpoints),
        }
    }
}

/// Runs rounds for ever.
#[expect(clippy::infinite_loop, reason = "a task for the life of the process")]
pub(crate) async fn run(node: &Arc<Node>) -> Infallible {
    adopt::at_start(node).await;
    let mut before = Suspects::default();
    let mut reported = String::new();
    loop {
        finish_unfinished(node).await;
        let observed = observe(node).await;
        node.measures.round(&observed);
        match observed {
            Ok(now) => {
                settle(node, &before.confirmed_by(&now)).await;
                before = now;
                reported.clear();
            }
            Err(error) => {
                before = Suspects::default();
                let text = error.to_string();
                if text != reported {
                    warn!(error = text, "cannot look at this node's links");
                    reported = text;
                }
            }
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// Undoes what an ADD or DEL could not finish. Whoever works on one right now keeps its turn.
async fn finish_unfinished(node: &Arc<Node>) {
    for row in node.roster.rows().into_iter().filter(|row| row.state != State::Attached) {
        let Some(_turn) = node.roster.try_turn(&row.id) else { continue };
        let again = node.roster.row(&row.id).filter(|row| row.state != State::Attached);
        if let Some(row) = again {
            undo(node, row).await;
        }
    }
}

async fn undo(node: &Arc<Node>, row: Attachment) {
    let id = row.id.clone();
    match release(node, row).await {
        Ok(Released::Whole) => {}
        // The loss of the session was logged; the row waits.
        Ok(Released::ButEndpoint(error)) => debug!(%id, %error, "endpoint not deleted yet"),
        Err(error) => warn!(%id, %error, "cannot release yet"),
    }
}

async fn observe(node: &Arc<Node>) -> Result<Suspects, Refusal> {
    // Links before rows: a row is written before its link is made.
    let Present { names: links, down } = tokio::task::spawn_blocking(links::present).await??;
    let endpoints = node.mirror.endpoints_of(&node.config.node);
    let rows = node.roster.rows();
    let names: BTreeSet<&String> = rows.iter().map(|row| &row.host_ifname).collect();
    let ids: BTreeSet<String> = rows.iter().map(|row| row.id.to_string()).collect();
    let endpoints = endpoints.into_iter().map(|id| id.to_string());
    let is_orphan = |name: &&String| is_host_ifname(name) && !names.contains(name);
    let orphans = links.iter().filter(is_orphan).cloned().collect();
    let homeless = endpoints.filter(|id| !ids.contains(id)).collect();
    let without_link: Vec<Attachment> = rows
        .iter()
        .filter(|row| row.state == State::Attached && !links.contains(&row.host_ifname))
        .cloned()
        .collect();
    let attached = rows.iter().filter(|row| row.state == State::Attached);
    let down = attached.filter(|row| down.contains(&row.host_ifname));
    let down = down.map(|row| row.id.clone()).collect();
    let gone = tokio::task::spawn_blocking(move || {
        let vanished =
            without_link.into_iter().filter(|row| !links::sandbox_is_there(&row.sandbox));
        vanished.map(|row| row.id).collect()
    })
    .await?;
    Ok(Suspects { gone, down, links: orphans, endpoints: homeless })
}

async fn settle(node: &Arc<Node>, wrong: &Suspects) {
    for id in &wrong.gone {
        let Some(_turn) = node.roster.try_turn(id) else { continue };
        if let Some(row) = node.roster.row(id) {
            node.measures.repaired("attachment");
            info!(%id, "container and link are gone; releasing");
            undo(node, row).await;
        }
    }
    for id in &wrong.down {
        settle_down(node, id).await;
    }
    settle_links(node, &wrong.links).await;
    if !wrong.endpoints.is_empty() {
        report(node).await;
    }
}

async fn settle_down(node: &Arc<Node>, id: &AttachmentId) {
    let Some(_turn) = node.roster.try_turn(id) else { return };
    let Some(row) = node.roster.row(id).filter(|row| row.state == State::Attached) else { return };
    let link = &row.host_ifname;
    match raise(node, &row).await {
        Ok(()) => {
            node.measures.repaired("host_end");
            info!(%id, link, "a host end was down; it is up again");
        }
        // The loss of the engine was logged.
        Err(error @ Refusal::Late(_)) => debug!(%id, link, %error, "a host end is down"),
        Err(error) => warn!(%id, link, %error, "a host end is down, and stays so"),
    }
}

/// Before netmaster was heard nobody knows whose they are.
async fn settle_links(node: &Arc<Node>, orphans: &BTreeSet<String>) {
    if orphans.is_empty() || !node.mirror.has_heard() {
        return;
    }
    let claimed = adopt::adopt(node, orphans).await;
    for link in orphans.difference(&claimed) {
        remove_orphan(node, link).await;
    }
}

async fn remove_orphan(node: &Arc<Node>, link: &str) {
    if node.roster.rows().iter().any(|row| row.host_ifname == link) {
        return;
    }
    node.measures.repaired("link");
    info!(link, "removing a host end without attachment and without endpoint");
    let name = link.to_owned();
    match tokio::task::spawn_blocking(move || links::remove(&name)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(link, %error, "cannot remove it"),
        Err(error) => warn!(link, %error, "cannot remove it"),
    }
}

/// Lets netmaster delete the endpoints this node does not have. An endpoint is made after its row, so
/// that no report can lack one whose ADD has begun for longer than it takes to tell; that it was told
/// twice makes up for the rest. Host ends without row hold their endpoint.
async fn report(node: &Arc<Node>) {
    let claimed = match adopt::unadopted(node).await {
        Ok(claimed) => claimed,
        Err(error) => {
            warn!(%error, "cannot look at this node's links");
            return;
        }
    };
    let rows = node.roster.rows().into_iter().map(|row| row.id.to_string());
    let ids = rows.chain(claimed.into_iter().map(|id| id.to_string())).collect();
    match node.master.report(node.config.node.to_string(), ids).await {
        Ok(deleted) => {
            for endpoint in deleted {
                node.measures.repaired("endpoint");
                info!(endpoint, "netmaster deleted an endpoint without attachment");
            }
        }
        Err(error) => warn!(%error, "netmaster does not take what this node has"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cni_1_lesson_3_only_what_two_rounds_saw_is_acted_on() {
        let links = |names: &[&str]| Suspects {
            links: names.iter().map(|&name| name.to_owned()).collect(),
            ..Suspects::default()
        };
        let first = links(&["wr0000000001", "wr0000000002"]);
        let second = links(&["wr0000000002", "wr0000000003"]);
        assert_eq!(first.confirmed_by(&second), links(&["wr0000000002"]));
        assert_eq!(Suspects::default().confirmed_by(&second), Suspects::default());
    }
}
