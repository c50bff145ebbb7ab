//! Everything of this node that tasks share.

use std::collections::BTreeMap;

use control_model::EndpointId;
use flowtable::ids::PortId;
use tokio::sync::{Mutex, Semaphore};

use crate::attachment::{Attachment, State};
use crate::config::Config;
use crate::master::Master;
use crate::metrics::Measures;
use crate::mirror::Mirror;
use crate::program::{Programmer, Wanted};
use crate::roster::{Roster, port_of};

/// How many ADDs run at once. DELs are not counted, so a storm of retried ADDs cannot keep
/// addresses from being freed.
const ADDS_AT_ONCE: usize = 8;
/// How many links are removed at once.
const REMOVALS_AT_ONCE: usize = 2;

/// This node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) mirror: Mirror,
    pub(crate) master: Master,
    pub(crate) programmer: Programmer,
    pub(crate) roster: Roster,
    pub(crate) adds: Semaphore,
    pub(crate) removals: Semaphore,
    /// Held while ports of the node are given to an attachment.
    pub(crate) publishing: Mutex<()>,
    pub(crate) measures: Measures,
}

impl Node {
    /// A node with the attachments of an earlier life: their ports are wanted from the start.
    pub(crate) fn new(config: Config, roster: Roster) -> Self {
        let attached = roster.rows().into_iter().filter(|row| row.state == State::Attached);
        let ports: BTreeMap<PortId, Wanted> = attached.filter_map(|row| wanted(&row)).collect();
        let programmer = Programmer::new(ports);
        // Until it is known whether rows were lost.
        programmer.hold();
        Self {
            config,
            mirror: Mirror::new(),
            master: Master::new(),
            programmer,
            roster,
            adds: Semaphore::new(ADDS_AT_ONCE),
            removals: Semaphore::new(REMOVALS_AT_ONCE),
            publishing: Mutex::new(()),
            measures: Measures::default(),
        }
    }
}

/// The port of a row; `None` for a row that no version ever wrote.
pub(crate) fn wanted(row: &Attachment) -> Option<(PortId, Wanted)> {
    let endpoint = EndpointId::parse("endpointID", &row.id.to_string()).ok()?;
    Some((
        port_of(row)?,
        Wanted {
            ifname: row.host_ifname.clone(),
            endpoint,
            limits: row.limits.into(),
            published: row.published.clone(),
        },
    ))
}
