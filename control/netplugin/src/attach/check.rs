//! CHECK and STATUS: is what was promised still so?
//!
//! CHECK looks at the container's end, and whether the engine has port and tables. The host's end is Weir's
//! own business: udev and later plugins may change what they like there, but take it down.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use control_model::{EndpointId, GroupName, Holdings, Intent, NetworkKey};
use tokio::time::timeout;

use super::blocking;
use crate::attachment::{Address, Attachment, AttachmentId, Interface, State};
use crate::links::{self, Seen};
use crate::node::Node;
use crate::ports::UPLINK;
use crate::program::Applied;
use crate::refusal::Refusal;
use crate::roster::port_of;
use cni_api::v1::{StatusReply, StatusRequest};

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
    let host_ifname = row.host_ifname.clone();
    let up = blocking(move || links::is_up(&host_ifname)).await?;
    if let Some(difference) = host_difference(&row.host_ifname, up) {
        return Err(Refusal::Differs(difference));
    }
    check_endpoint(node, id)?;
    check_engine(node, &row).await
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
    // Its routes went with that.
    if !seen.up {
        return Some(
            "the container's end is down: set it up with its routes, or DEL and ADD it again"
                .to_owned(),
        );
    }
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

/// What of the host end no packet gets past.
fn host_difference(host_ifname: &str, up: Option<bool>) -> Option<String> {
    match up {
        Some(true) => None,
        Some(false) => Some(format!(
            "{host_ifname}, the host end, is down: netplugin sets it up within 10 seconds if vrouterd has it"
        )),
        None => Some(format!("{host_ifname}, the host end, is gone: DEL and ADD it again")),
    }
}

/// Whether the engine has port and tables of an attachment.
async fn check_engine(node: &Node, row: &Attachment) -> Result<(), Refusal> {
    let mut applied = node.programmer.watch();
    let there = applied.wait_for(|now| now.engine.is_some());
    let applied = match timeout(ENGINE_PATIENCE, there).await {
        Ok(Ok(now)) => now.clone(),
        Ok(Err(_)) | Err(_) => return Err(Refusal::Late("vrouterd")),
    };
    if let Some(refusal) = unenforced(&applied, row) {
        return Err(refusal);
    }
    let engine = applied.engine.ok_or(Refusal::Late("vrouterd"))?;
    let ports = engine.ports().await.map_err(|_lost| Refusal::Late("vrouterd"))?;
    if ports.iter().any(|port| port.id == u32::from(row.port) && port.name == row.host_ifname) {
        return Ok(());
    }
    Err(Refusal::Differs(format!("vrouterd does not have port {} ({})", row.port, row.host_ifname)))
}

/// What the engine did not take of an attachment. Tables are taken as a whole or not: with those that it
/// still has, a policy of later is not in force.
fn unenforced(applied: &Applied, row: &Attachment) -> Option<Refusal> {
    let engine = |what, reason: &String| Refusal::Engine { what, reason: reason.clone() };
    let port = port_of(row).and_then(|port| applied.failed_ports.get(&port));
    let port = port.map(|reason| engine("the port", reason));
    port.or_else(|| applied.refused.as_ref().map(|reason| engine("the tables", reason)))
}

/// Sets the host end of `row` up again, that somebody has set down, if the engine has its port: without its
/// program the host would hear the container. Whoever calls has the attachment's turn.
pub(crate) async fn raise(node: &Node, row: &Attachment) -> Result<(), Refusal> {
    // A CHECK may wait for an engine that is away; a round with many links may not.
    if node.programmer.watch().borrow().engine.is_none() {
        return Err(Refusal::Late("vrouterd"));
    }
    check_engine(node, row).await?;
    let host_ifname = row.host_ifname.clone();
    blocking(move || links::raise(&host_ifname)).await
}

/// Whether an ADD could be served now, to the network that is named, if one is.
pub(crate) fn status(node: &Node, asked: &StatusRequest) -> StatusReply {
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
    } else if let Some(reason) = node.mirror.read(|intent| exhausted(intent, asked)) {
        (false, reason)
    } else {
        return StatusReply { ready: true, ..StatusReply::default() };
    };
    StatusReply { ready: false, connectivity_limited, reason }
}

/// Why a network has no address to give, as far as this node knows. Of a tenant without an endpoint here, of
/// reservations and of addresses on their way back it does not: ADD says then what netmaster does.
fn exhausted(intent: &Intent, asked: &StatusRequest) -> Option<String> {
    let StatusRequest { tenant, network, group } = asked;
    let key = NetworkKey::parse("network", &format!("{tenant}:{network}")).ok()?;
    let named = Some(group).filter(|group| !group.is_empty());
    let group_name = named.map(|group| GroupName::parse("group", group)).transpose().ok()?;
    let holdings = Holdings::known(intent, &key)?;
    let whose = named.map_or_else(String::new, |group| format!(" for group {group}"));
    holdings.is_exhausted(group_name.as_ref()).then(|| {
        format!("network {network} of tenant {tenant} has no free address{whose}: remove containers, or widen its addresses")
    })
}

#[cfg(test)]
mod tests {
    use control_api::v1::object::Kind;
    use flowtable::ids::Mac;

    use super::*;
    use crate::attachment::tests::example;

    fn ours() -> Interface {
        example("c1").interface.unwrap()
    }

    fn seen() -> Seen {
        Seen {
            up: true,
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
    fn cni_1_check_misses_a_link_that_is_down_at_either_end() {
        let down = Seen { up: false, addresses: Vec::new(), gateways: Vec::new(), ..seen() };
        let said = difference(&ours(), &[ip("10.1.1.5")], &down).unwrap();
        assert_eq!(
            said,
            "the container's end is down: set it up with its routes, or DEL and ADD it again"
        );
        assert_eq!(host_difference("wr01", Some(true)), None);
        let said = host_difference("wr01", Some(false)).unwrap();
        assert!(said.starts_with("wr01, the host end, is down: netplugin sets it up"), "{said}");
        assert!(host_difference("wr01", None).unwrap().contains("DEL and ADD"));
    }

    #[test]
    fn cni_1_check_misses_a_port_or_tables_that_the_engine_refused() {
        let row = example("c1");
        let refusal = |applied: &Applied| unenforced(applied, &row).map(|r| r.to_string());
        assert_eq!(refusal(&Applied::default()), None);
        let refused = Some("no room".to_owned());
        let tables = Applied { refused, ..Applied::default() };
        assert_eq!(refusal(&tables).unwrap(), "vrouterd refused the tables: no room");
        let port = port_of(&row).unwrap();
        let failed_ports = [(port, "no such device".to_owned())].into();
        let port = Applied { failed_ports, ..tables };
        assert_eq!(refusal(&port).unwrap(), "vrouterd refused the port: no such device");
    }

    #[test]
    fn cni_1_status_misses_free_addresses_of_a_network_that_is_known() {
        let mut intent = Intent::default();
        let put = |intent: &mut Intent, kind| {
            let object = control_api::v1::Object { kind: Some(kind) };
            intent.put(control_api::convert::to_model(&object).unwrap());
        };
        let network = control_api::v1::Network {
            tenant_name: "red".into(),
            network_name: "net".into(),
            encap: "vxlan".into(),
            pkt_tag: 7,
            subnet: "10.1.1.0/30".into(),
            gateway: "10.1.1.2".into(),
            bd: 7,
            ..Default::default()
        };
        put(&mut intent, Kind::Network(network));
        let asked = |tenant: &str, network: &str| {
            let (tenant, network) = (tenant.to_owned(), network.to_owned());
            StatusRequest { tenant, network, group: String::new() }
        };
        assert_eq!(exhausted(&intent, &asked("red", "net")), None);
        let endpoint = control_api::v1::Endpoint {
            endpoint_id: "c1:eth0".into(),
            tenant_name: "red".into(),
            network_name: "net".into(),
            ip_address: vec!["10.1.1.1".into()],
            mac_address: "02:00:00:00:00:05".into(),
            homing_host: "n1".into(),
            ..Default::default()
        };
        put(&mut intent, Kind::Endpoint(endpoint));
        let said = exhausted(&intent, &asked("red", "net")).unwrap();
        assert!(said.starts_with("network net of tenant red has no free address: "), "{said}");
        for (tenant, network) in [("blue", "net"), ("red", "other"), ("red", "")] {
            assert_eq!(exhausted(&intent, &asked(tenant, network)), None, "{tenant} {network}");
        }
    }

    #[test]
    fn what_later_plugins_took_out_of_the_result_is_not_missed() {
        let no_address = Seen { addresses: Vec::new(), ..seen() };
        assert_eq!(difference(&ours(), &[], &no_address), None);
    }
}
