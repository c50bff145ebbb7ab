//! Undoing an attachment: DEL, GC, failed ADDs and what crashes left.
//!
//! No address is given to somebody else while packets of its old owner can still come: netmaster
//! keeps it until this node has acknowledged tables without it (decision 0017), and a node that was told
//! to fence a port has done so by then. The links go whenever the kernel gets to it. What netmaster does
//! not hear now it hears later: the row stays until it did.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cni_api::v1::Attachment as Named;
use flowtable::ids::PortId;
use tokio::time::timeout;
use tracing::{info, warn};

use super::blocking;
use crate::attachment::{Attachment, AttachmentId, State};
use crate::given;
use crate::links;
use crate::master::MasterError;
use crate::naming::host_ifname;
use crate::node::Node;
use crate::refusal::Refusal;
use crate::roster::{Turn, port_of};

/// How long an engine that is there may take to fence a port. The link's removal fences it too.
const FENCE_TIMEOUT: Duration = Duration::from_secs(3);

/// How many attachments a garbage collection releases at once. While it does, nothing else happens to
/// them.
const DELS_AT_ONCE: usize = 256;

/// How many endpoints are deleted by one request: of each go the endpoint and two addresses, and an etcd
/// takes 128 operations at once unless told otherwise.
const DELETES_AT_ONCE: usize = 32;

/// How much of an attachment is undone.
#[derive(Debug)]
pub(crate) enum Released {
    /// All of it.
    Whole,
    /// All on this node; netmaster still has the endpoint, and the row stays.
    ButEndpoint(MasterError),
}

/// Undoes an attachment to its end. The caller holds its turn.
pub(crate) async fn release(node: &Arc<Node>, row: Attachment) -> Result<Released, Refusal> {
    mark(node, std::slice::from_ref(&row)).await?;
    fence(node, std::slice::from_ref(&row)).await;
    unlink(node, &row).await?;
    match node.master.delete_endpoint(&row.id.to_string()).await {
        Ok(()) => {
            node.roster.remove(&row).await?;
            info!(id = %row.id, "released");
            Ok(Released::Whole)
        }
        Err(error) => Ok(Released::ButEndpoint(error)),
    }
}

/// Whether a port's packets are known to go nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fence {
    Up,
    /// The engine is there and has not said so.
    Unknown,
}

/// Writes down what is going to be undone: without that a crash would re-adopt half an attachment. Of
/// one that was never whole the row says so already, also when the disk is full.
async fn mark(node: &Node, rows: &[Attachment]) -> Result<(), Refusal> {
    let attached = rows.iter().filter(|row| row.state == State::Attached);
    let releasing = attached.map(|row| Attachment { state: State::Releasing, ..row.clone() });
    let releasing: Vec<Attachment> = releasing.collect();
    if releasing.is_empty() { Ok(()) } else { Ok(node.roster.put_all(releasing).await?) }
}

/// Has the engine let go of the ports.
async fn fence(node: &Node, rows: &[Attachment]) -> Fence {
    let ports: Vec<PortId> = rows.iter().filter_map(port_of).collect();
    let generation = node.programmer.unplace(&ports);
    let mut applied = node.programmer.watch();
    // The filter on the host end drops what no engine takes.
    let fenced = applied.wait_for(|now| now.engine.is_none() || now.fenced >= generation);
    if timeout(FENCE_TIMEOUT, fenced).await.is_ok() {
        return Fence::Up;
    }
    let ids: Vec<_> = rows.iter().map(|row| row.id.to_string()).collect();
    warn!(?ids, "vrouterd has not fenced the ports; removing their links");
    Fence::Unknown
}

/// Removes the links, few at a time: the kernel takes them one by one, under a lock that ADDs want.
async fn unlink(node: &Node, row: &Attachment) -> Result<(), Refusal> {
    // Never closed.
    let _slot = node.removals.acquire().await.ok();
    let row = row.clone();
    blocking(move || match row.adopted {
        Some(index) => given::let_go(&row, index),
        None => links::remove(&row.host_ifname),
    })
    .await
}

/// DEL: fine with an attachment that is not there, or not any more.
pub(crate) async fn del(node: &Arc<Node>, id: &AttachmentId) -> Result<(), Refusal> {
    let turn = node.roster.turn(id).await;
    match node.roster.row(id) {
        Some(row) => release_behind(node, vec![(turn, row)]).await,
        None => del_unknown(node, id).await,
    }
}

/// Returns once the ports are fenced and netmaster has freed the addresses: the kernel takes some
/// 20 ms for a link, which is removed behind the answer, and before the next operation on its
/// attachment. Many share one commit, one pass of the engine and one request to netmaster.
async fn release_behind(
    node: &Arc<Node>,
    attachments: Vec<(Turn, Attachment)>,
) -> Result<(), Refusal> {
    let (turns, rows): (Vec<Turn>, Vec<Attachment>) = attachments.into_iter().unzip();
    mark(node, &rows).await?;
    let (fence, freed) = tokio::join!(fence(node, &rows), free(node, &rows));
    if fence == Fence::Unknown {
        for row in &rows {
            unlink(node, row).await?;
        }
    }
    for ((turn, row), freed) in turns.into_iter().zip(rows).zip(freed) {
        let node = Arc::clone(node);
        tokio::spawn(telemetry::detached(async move {
            let _turn = turn;
            if let Err(error) = finish(&node, &row, freed).await {
                warn!(id = %row.id, %error, "cannot release to the end yet; trying again later");
            }
        }));
    }
    Ok(())
}

/// Has netmaster free the addresses; what became of each.
async fn free(node: &Node, rows: &[Attachment]) -> Vec<Result<(), MasterError>> {
    let ids: Vec<String> = rows.iter().map(|row| row.id.to_string()).collect();
    let mut freed = Vec::new();
    for some in ids.chunks(DELETES_AT_ONCE) {
        freed.extend(free_some(node, some).await);
    }
    freed
}

async fn free_some(node: &Node, ids: &[String]) -> Vec<Result<(), MasterError>> {
    if ids.len() > 1 && node.master.delete_endpoints(ids).await.is_ok() {
        return ids.iter().map(|_| Ok(())).collect();
    }
    // One of many that is not there refuses all.
    let mut freed = Vec::new();
    for id in ids {
        let outcome = node.master.delete_endpoint(id).await;
        if let Err(error) = &outcome {
            warn!(id, %error, "netmaster does not know of the DEL yet; telling it later");
        }
        freed.push(outcome);
    }
    freed
}

/// What is left of a DEL. The row stays when netmaster did not hear of it.
async fn finish(
    node: &Node,
    row: &Attachment,
    freed: Result<(), MasterError>,
) -> Result<(), Refusal> {
    unlink(node, row).await?;
    if freed.is_ok() {
        node.roster.remove(row).await?;
        info!(id = %row.id, "released");
    }
    Ok(())
}

/// Without a row the names still lead to what a lost state directory would have left. What
/// netmaster cannot be told now, reconciling tells it later.
async fn del_unknown(node: &Arc<Node>, id: &AttachmentId) -> Result<(), Refusal> {
    let host_end = host_ifname(id);
    blocking(move || links::remove(&host_end)).await?;
    let id = id.to_string();
    let ours = node.mirror.endpoints_of(&node.config.node);
    if ours.iter().any(|endpoint| endpoint.as_str() == id)
        && let Err(error) = node.master.delete_endpoint(&id).await
    {
        warn!(id, %error, "cannot delete an endpoint without attachment yet");
    }
    Ok(())
}

/// GC: releases every attachment of a CNI configuration that its runtime no longer knows. Goes on
/// after failures and reports them all.
pub(crate) async fn gc(
    node: &Arc<Node>,
    config_name: &str,
    valid: &BTreeSet<AttachmentId>,
) -> Result<Vec<Named>, Refusal> {
    let rows = node.roster.rows().into_iter();
    let stale = rows.filter(|row| row.config_name == config_name && !valid.contains(&row.id));
    let stale: Vec<AttachmentId> = stale.map(|row| row.id).collect();
    let (mut removed, mut failures) = (Vec::new(), Vec::new());
    for some in stale.chunks(DELS_AT_ONCE) {
        let mut attachments = Vec::new();
        for id in some {
            let turn = node.roster.turn(id).await;
            // One that was released meanwhile is as good.
            attachments.extend(node.roster.row(id).map(|row| (turn, row)));
        }
        match release_behind(node, attachments).await {
            Ok(()) => removed.extend(some.iter().map(|id| Named {
                container_id: id.container_id().to_owned(),
                ifname: id.ifname().to_owned(),
            })),
            Err(failure) => failures.push(failure),
        }
    }
    if failures.is_empty() { Ok(removed) } else { Err(Refusal::Several(failures)) }
}
