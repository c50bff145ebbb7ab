//! What keeps running containers when netmaster's store was lost or restored: a snapshot is taken
//! over only when it has an endpoint for each of them. One that is missing is registered again,
//! with the address and MAC it has.
//!
//! Other nodes do the same at that time, so that a snapshot of another history is taken over only
//! some seconds after it has all of this node's: nobody loses the way to their containers.
//!
//! If what it needs is gone as well (tenant, network, group), the node keeps the intent it has and
//! tries again, until somebody has restored that. If netmaster refuses for good (the address is
//! another's by now), the container is cut off: two of one address is worse.

use std::collections::BTreeSet;
use std::time::Duration;

use control_api::v1::net_master_client::NetMasterClient;
use control_api::v1::{CreateRequest, Endpoint, Object, object};
use control_model::EndpointId;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Channel;
use tracing::{error, info, warn};

use crate::attachment::{Attachment, AttachmentId, State};
use crate::config::Config;
use crate::master::MasterError;
use crate::mirror::Mirror;
use crate::roster::Roster;

/// How soon what was refused is tried again.
const RETRY: Duration = Duration::from_secs(1);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the other nodes have: their longest pause between two attempts, and then some.
const GRACE: Duration = Duration::from_secs(4);

/// How what netmaster has relates to the intent in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lineage {
    /// It goes on from it, or there is none.
    Same,
    /// The store was lost or restored from a backup.
    Other,
}

/// The claims of one session.
#[derive(Debug)]
pub(crate) struct Claims<'a> {
    config: &'a Config,
    roster: &'a Roster,
    mirror: &'a Mirror,
    netmaster: NetMasterClient<Channel>,
    /// Given up, for this session.
    waived: BTreeSet<AttachmentId>,
    lineage: Lineage,
    /// When the snapshot was first seen to have everything.
    whole: Option<Instant>,
    next: Instant,
    /// Why the snapshot is not taken over; empty: it is, or nobody knows yet.
    reason: String,
}

impl<'a> Claims<'a> {
    pub(crate) fn new(
        config: &'a Config,
        roster: &'a Roster,
        mirror: &'a Mirror,
        channel: Channel,
        lineage: Lineage,
    ) -> Self {
        Self {
            config,
            roster,
            mirror,
            netmaster: NetMasterClient::new(channel),
            waived: BTreeSet::new(),
            lineage,
            whole: None,
            next: Instant::now(),
            reason: String::new(),
        }
    }

    /// When to look again although nothing was heard.
    pub(crate) const fn next(&self) -> Instant {
        self.next
    }

    /// Takes a complete snapshot over if no container would lose its endpoint; else sees to it.
    /// Returns what netmaster should know, when that is new.
    pub(crate) async fn settle(&mut self) -> Option<String> {
        if !self.mirror.is_complete() {
            return None;
        }
        let missing = self.missing();
        if missing.is_empty() {
            self.take_over_in_time();
            return None;
        }
        self.whole = None;
        if Instant::now() < self.next {
            return None;
        }
        let mut reason = String::new();
        for row in missing {
            if let Err(why) = self.claim(row).await {
                reason = why;
            }
        }
        self.next = Instant::now() + RETRY;
        if reason.is_empty() || reason == self.reason {
            return None;
        }
        warn!(reason, "the snapshot lacks endpoints of running containers; intent stays as it is");
        self.reason.clone_from(&reason);
        Some(reason)
    }

    fn take_over_in_time(&mut self) {
        let now = Instant::now();
        let grace = match self.lineage {
            Lineage::Same => Duration::ZERO,
            Lineage::Other => GRACE,
        };
        self.next = *self.whole.get_or_insert(now) + grace;
        if now >= self.next {
            self.mirror.take_over();
            // A later snapshot of this session goes on from this one.
            self.lineage = Lineage::Same;
        }
    }

    fn missing(&self) -> Vec<Attachment> {
        let mut rows = self.roster.rows();
        rows.retain(|row| row.state == State::Attached && !self.waived.contains(&row.id));
        let is_there = |row: &Attachment| {
            let id = EndpointId::parse("endpointID", &row.id.to_string());
            // A row that no version ever wrote has no endpoint to lose.
            id.is_ok_and(|id| !self.mirror.has_collected(&id))
        };
        rows.retain(is_there);
        rows
    }

    /// Registers a container again. An error is for trying again.
    async fn claim(&mut self, row: Attachment) -> Result<(), String> {
        let object =
            Some(Object { kind: Some(object::Kind::Endpoint(endpoint(self.config, &row))) });
        let request = telemetry::call(CreateRequest { object, no_wait: true }, CALL_TIMEOUT);
        let id = &row.id;
        match self.netmaster.create(request).await.map_err(MasterError::from) {
            Ok(_) => {
                info!(%id, "a running container was registered again");
                Ok(())
            }
            Err(MasterError::Refused(refusal)) if is_final(refusal.code) => {
                let error = MasterError::Refused(refusal);
                error!(%id, %error, "a running container lost its endpoint and is cut off");
                self.waived.insert(row.id);
                Ok(())
            }
            Err(error) => Err(format!("container {id} can't be registered again: {error}")),
        }
    }
}

/// Whether asking again can't help. What was not found may be restored, an address that is still
/// leaving will have left, and a full store will have room.
const fn is_final(code: Code) -> bool {
    matches!(code, Code::AlreadyExists | Code::InvalidArgument)
}

fn endpoint(config: &Config, row: &Attachment) -> Endpoint {
    let interface = row.interface.as_ref();
    let addresses = interface.map(|interface| interface.addresses.as_slice()).unwrap_or_default();
    Endpoint {
        endpoint_id: row.id.to_string(),
        tenant_name: row.tenant.clone(),
        network_name: row.network.clone(),
        endpoint_group: row.group.clone(),
        ip_address: addresses.iter().map(|address| address.ip.to_string()).collect(),
        mac_address: interface.map(|interface| interface.mac.to_string()).unwrap_or_default(),
        homing_host: config.node.to_string(),
        intf_name: row.host_ifname.clone(),
        vtep_ip: config.vtep.map(|ip| ip.to_string()).unwrap_or_default(),
        container_id: row.id.container_id().to_owned(),
        container_name: row.told.container_name.clone(),
        labels: row.told.labels.clone(),
        running: true,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::attachment::Told;

    #[test]
    fn only_what_can_never_be_granted_costs_a_container_its_endpoint() {
        assert!([Code::AlreadyExists, Code::InvalidArgument].into_iter().all(is_final));
        for passing in [
            Code::NotFound,
            Code::ResourceExhausted,
            Code::FailedPrecondition,
            Code::Unavailable,
            Code::Internal,
        ] {
            assert!(!is_final(passing), "{passing:?}");
        }
    }

    #[test]
    fn a_container_is_registered_with_what_it_has() {
        let arguments = ["netplugin", "--node", "n1", "--config", "/dev/null"];
        let config =
            crate::config::Arguments::try_parse_from(arguments).unwrap().resolve().unwrap();
        let told = Told { container_name: "web-1".into(), labels: vec!["app=web".into()] };
        let row = Attachment { told, ..crate::attachment::tests::example("c1") };
        let claimed = endpoint(&config, &row);
        assert_eq!(
            (claimed.container_name.as_str(), &claimed.labels[..]),
            ("web-1", &["app=web".into()][..])
        );
        assert_eq!(claimed.endpoint_id, "c1:eth0");
        assert_eq!((claimed.tenant_name.as_str(), claimed.network_name.as_str()), ("red", "blue"));
        assert_eq!(claimed.ip_address, ["10.1.1.5"]);
        assert_eq!(claimed.mac_address, "02:02:0a:01:01:05");
        assert_eq!((claimed.homing_host.as_str(), claimed.container_id.as_str()), ("n1", "c1"));
        assert!(claimed.running);
    }
}
