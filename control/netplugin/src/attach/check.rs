//! CHECK and STATUS: is what was promised still so?
//!
//! CHECK looks at the container's end only. The host's end is Weir's own business, and udev and
//! later plugins may change what they like there.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use control_model::EndpointId;
use tokio::time::timeout;

use super::blocking;
use crate::attachment::{Address, Attachment, AttachmentId, Interface, State};
use crate::links::{self, Seen};
use crate::node::Node;
use crate::ports::UPLINK;
use crate::program::Applied;
use crate::refusal::Refusal;
use crate::roster::port_of;
use cni_api::v1::StatusReply;

/// Either of the two may just be starting, which takes well under a second.
const ENGINE_PATIENCE: Duration = Duration::from_secs(2);

/// Checks an attachment; `listed` are the addresses its ADD result has, without prefix lengths.
pub(crate) async fn check(
    node: &Arc<Node>,
    id: &AttachmentId,
    listed: &[IpAddr],
) -> Result<(), Refusal> {
    let _turn = node.roster.turn(id).await;
    let row = node.roster.row(id).filter(|row| row.state == State::Attached);
    let row = row.ok_or(Refusal::Unknown)?;
    let interface = row.interface.clone().ok_or(Refusal::Unknown)?;
    let seen = look(&row).await?;
    if let Some(difference) = difference(&interface, listed, &seen) {
        return Err(Refusal::Differs(format!("{}: {difference}", id.ifname())));
    }
    check_endpoint(node, id)?;
    check_port(node, &row).await
}

/// Without its endpoint the address may be somebody else's by now, and the port drops everything.
fn check_endpoint(node: &Node, id: &AttachmentId) -> Result<(), Refusal> {
    let there = |id: &EndpointId| node.mirror.read(|intent| intent.endpoint(id).is_some());
    let known = EndpointId::parse("endpointID", &id.to_string()).is_ok_and(|id| there(&id));
    // Before netmaster was heard nothing is known either way.
    if known || !node.mirror.has_heard() {
        return Ok(());
    }
    Err(Refusal::Differs(format!("netmaster has no endpoint {id}: DEL and ADD it again")))
}

async fn look(row: &Attachment) -> Result<Seen, Refusal> {
    let (sandbox, ifname) = (row.sandbox.clone(), row.id.ifname().to_owned());
    let path = sandbox.path.display().to_string();
    let seen = blocking(move || {
        let (namespace, found) = links::open_sandbox(&sandbox.path)?;
        let same = found.cookie == sandbox.cookie;
        if same { links::look(&namespace, &ifname).map(Some) } else { Ok(None) }
    })
    .await?;
    let seen = seen.ok_or_else(|| {
        Refusal::Differs(format!("{path} is not the namespace this attachment was made in"))
    })?;
    seen.ok_or_else(|| Refusal::Differs(format!("{}: no such interface", row.id.ifname())))
}

/// The first thing of ours that is missing or wrong.
fn difference(ours: &Interface, listed: &[IpAddr], seen: &Seen) -> Option<String> {
    if seen.mac != ours.mac {
        return Some(format!("MAC address is {}, was {}", seen.mac, ours.mac));
    }
    for address in ours.addresses.iter().filter(|a| listed.contains(&a.ip)) {
        let Address { ip, prefix_len, .. } = *address;
        if !seen.addresses.contains(&netdev::Address { ip, prefix_len }) {
            return Some(format!("address {address} is missing"));
        }
    }
    let missing = ours.default_routes.iter().find(|gateway| !seen.gateways.contains(gateway));
    missing.map(|gateway| format!("default route via {gateway} is missing"))
}

async fn check_port(node: &Node, row: &Attachment) -> Result<(), Refusal> {
    let mut applied = node.programmer.watch();
    let there = applied.wait_for(|now| now.engine.is_some());
    let Applied { engine, failed_ports, .. } = match timeout(ENGINE_PATIENCE, there).await {
        Ok(Ok(now)) => now.clone(),
        Ok(Err(_)) | Err(_) => return Err(Refusal::Late("vrouterd")),
    };
    let engine = engine.ok_or(Refusal::Late("vrouterd"))?;
    if let Some(reason) = port_of(row).and_then(|port| failed_ports.get(&port)) {
        return Err(Refusal::Engine { what: "the port", reason: reason.clone() });
    }
    let ports = engine.ports().await.map_err(|_lost| Refusal::Late("vrouterd"))?;
    if ports.iter().any(|port| port.id == u32::from(row.port) && port.name == row.host_ifname) {
        return Ok(());
    }
    Err(Refusal::Differs(format!("vrouterd does not have port {} ({})", row.port, row.host_ifname)))
}

/// Whether an ADD could be served now.
pub(crate) fn status(node: &Node) -> StatusReply {
    let applied = node.programmer.watch().borrow().clone();
    let (connectivity_limited, reason) = if applied.engine.is_none() {
        (true, "vrouterd is not running: containers of this node have no network".to_owned())
    } else if let Some(reason) = applied.refused {
        (true, format!("vrouterd refused the tables: {reason}"))
    } else if let Some(reason) = applied.failed_ports.get(&UPLINK) {
        (true, format!("vrouterd refused the uplink: {reason}"))
    } else if !node.master.is_connected() || !node.mirror.has_heard() {
        (false, "netmaster is not reachable: nothing new can be attached".to_owned())
    } else if node.roster.available_port_count() == 0 {
        (false, "all port ids of this node are in use".to_owned())
    } else {
        return StatusReply { ready: true, ..StatusReply::default() };
    };
    StatusReply { ready: false, connectivity_limited, reason }
}

#[cfg(test)]
mod tests {
    use flowtable::ids::Mac;

    use super::*;
    use crate::attachment::tests::example;

    fn ours() -> Interface {
        example("c1").interface.unwrap()
    }

    fn seen() -> Seen {
        Seen {
            mac: ours().mac,
            addresses: vec![netdev::Address { ip: ip("10.1.1.5"), prefix_len: 24 }],
            gateways: vec![ip("10.1.1.254")],
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_untouched_interface_has_no_difference() {
        assert_eq!(difference(&ours(), &[ip("10.1.1.5")], &seen()), None);
    }

    #[test]
    fn each_thing_of_ours_is_missed() {
        let listed = [ip("10.1.1.5")];
        let other_mac = Seen { mac: Mac([2, 0, 0, 0, 0, 1]), ..seen() };
        assert_eq!(
            difference(&ours(), &listed, &other_mac).unwrap(),
            "MAC address is 02:00:00:00:00:01, was 02:02:0a:01:01:05"
        );
        let no_address = Seen { addresses: Vec::new(), ..seen() };
        assert_eq!(
            difference(&ours(), &listed, &no_address).unwrap(),
            "address 10.1.1.5/24 is missing"
        );
        let other_route = Seen { gateways: vec![ip("10.1.1.1")], ..seen() };
        assert_eq!(
            difference(&ours(), &listed, &other_route).unwrap(),
            "default route via 10.1.1.254 is missing"
        );
    }

    #[test]
    fn what_later_plugins_took_out_of_the_result_is_not_missed() {
        let no_address = Seen { addresses: Vec::new(), ..seen() };
        assert_eq!(difference(&ours(), &[], &no_address), None);
    }
}
