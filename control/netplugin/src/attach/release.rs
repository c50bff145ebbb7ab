//! Undoing an attachment: DEL, GC, failed ADDs and what crashes left.
//!
//! The order keeps an address from being given to somebody else while packets of the old owner
//! can still come: first the engine fences the port, then the links go, then netmaster frees the
//! address. What netmaster does not hear now it hears later: the row stays until it did.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cni_api::v1::Attachment as Named;
use tokio::time::timeout;
use tracing::{info, warn};

use super::blocking;
use crate::attachment::{Attachment, AttachmentId, State};
use crate::links;
use crate::master::MasterError;
use crate::naming::host_ifname;
use crate::node::Node;
use crate::refusal::Refusal;
use crate::roster::port_of;

/// How long an engine that is there may take to fence a port. The link's removal fences it too.
const FENCE_TIMEOUT: Duration = Duration::from_secs(3);

/// How much of an attachment is undone.
#[derive(Debug)]
pub(crate) enum Released {
    /// All of it.
    Whole,
    /// All on this node; netmaster still has the endpoint, and the row stays.
    ButEndpoint(MasterError),
}

/// Undoes an attachment. The caller holds its turn.
pub(crate) async fn release(node: &Arc<Node>, row: Attachment) -> Result<Released, Refusal> {
    let row = Attachment { state: State::Releasing, ..row };
    // Without the durable mark a crash from here on would re-adopt half an attachment.
    node.roster.put(row.clone()).await?;
    if let Some(port) = port_of(&row) {
        let generation = node.programmer.unplace(port);
        let mut applied = node.programmer.watch();
        let fenced = applied.wait_for(|now| now.engine.is_none() || now.generation >= generation);
        if timeout(FENCE_TIMEOUT, fenced).await.is_err() {
            warn!(id = %row.id, %port, "vrouterd has not fenced the port; removing its link");
        }
    }
    let host_end = row.host_ifname.clone();
    blocking(move || links::remove(&host_end)).await?;
    match node.master.delete_endpoint(&row.id.to_string()).await {
        Ok(()) => {
            node.roster.remove(&row).await?;
            info!(id = %row.id, "released");
            Ok(Released::Whole)
        }
        Err(error) => Ok(Released::ButEndpoint(error)),
    }
}

/// DEL: fine with an attachment that is not there, or not any more.
pub(crate) async fn del(node: &Arc<Node>, id: &AttachmentId) -> Result<(), Refusal> {
    let _turn = node.roster.turn(id).await;
    let Some(row) = node.roster.row(id) else { return del_unknown(node, id).await };
    if let Released::ButEndpoint(error) = release(node, row).await? {
        warn!(%id, %error, "netmaster does not know of the DEL yet; telling it later");
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
    let (mut removed, mut failures) = (Vec::new(), Vec::new());
    for row in stale {
        match del(node, &row.id).await {
            Ok(()) => removed.push(Named {
                container_id: row.id.container_id().to_owned(),
                ifname: row.id.ifname().to_owned(),
            }),
            Err(failure) => failures.push(failure),
        }
    }
    if failures.is_empty() { Ok(removed) } else { Err(Refusal::Several(failures)) }
}
