//! ADD: returns when the interface forwards and its policy is in force, or leaves nothing behind.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use control_api::v1::Endpoint as EndpointObject;
use control_model::{EndpointId, Tag};
use flowtable::ids::PortId;
use netdev::Namespace;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::blocking;
use super::release::{Released, release};
use crate::attachment::{
    Address, Attachment, AttachmentId, Interface, Limits, Sandbox, State, Told,
};
use crate::given::{self, Given};
use crate::links::{self, Pair};
use crate::master::Made;
use crate::metrics::Step;
use crate::mirror::Stamp;
use crate::mtu::{Carried, MTU_WITHOUT_UPLINK, Room, Wrapping, container_mtu};
use crate::naming::{host_ifname, host_mac};
use crate::node::{Node, wanted};
use crate::note::Note;
use crate::program::Applied;
use crate::published::{self, Mapping};
use crate::refusal::Refusal;
use crate::roster::Turn;

/// A restart of vrouterd takes well under a second; beyond this the runtime learns what is wrong.
const ENGINE_PATIENCE: Duration = Duration::from_secs(10);

/// What a runtime asks for.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) id: AttachmentId,
    pub(crate) netns: PathBuf,
    pub(crate) config_name: String,
    pub(crate) tenant: String,
    pub(crate) network: String,
    pub(crate) group: String,
    pub(crate) ips: Vec<WishedAddress>,
    /// Empty: netmaster's choice.
    pub(crate) mac: String,
    /// Bytes; 0: as large as fits.
    pub(crate) mtu: u32,
    pub(crate) told: Told,
    pub(crate) limits: Limits,
    /// Ports of the node that are to lead to it.
    pub(crate) published: Vec<Mapping>,
    pub(crate) source: Source,
}

/// Where the interface comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// It is made.
    Ours,
    /// An earlier plugin of the chain has made it.
    Chain,
}

/// An address a runtime asks for; podman leaves the prefix length out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WishedAddress {
    pub(crate) ip: IpAddr,
    pub(crate) prefix_len: Option<u8>,
}

/// What a runtime gets.
#[derive(Debug)]
pub(crate) struct Added {
    pub(crate) host_ifname: String,
    pub(crate) interface: Interface,
}

/// Attaches, once: the same ADD again returns what is there.
pub(crate) async fn add(node: &Arc<Node>, wish: Wish, deadline: Instant) -> Result<Added, Refusal> {
    let started = Instant::now();
    let measures = &node.measures;
    let _turn = measures.step(Step::Turn, turn(node, &wish.id, deadline)).await?;
    let netns = wish.netns.clone();
    let (namespace, sandbox) = blocking(move || links::open_sandbox(&netns)).await?;
    let namespace = Arc::new(namespace);
    if let Some(earlier) = node.roster.row(&wish.id)
        && let Some(added) = settle_earlier(node, earlier, &wish, &sandbox, deadline).await?
    {
        return Ok(added);
    }
    node.master.connected(deadline).await?;
    node.programmer.begun(deadline).await?;
    let (row, given) = begin(node, &wish, sandbox, &namespace).await?;
    let built = match given {
        None => build(node, row.clone(), &wish, &namespace, deadline).await,
        Some(given) => adopt(node, row.clone(), &wish, (given, &namespace), deadline).await,
    };
    match built {
        Ok(added) => {
            let millis = started.elapsed().as_millis() as u64;
            let (id, addresses) = (&wish.id, &added.interface.addresses);
            info!(%id, network = wish.network, ?addresses, millis, "attached");
            Ok(added)
        }
        Err(refusal) => {
            warn!(id = %wish.id, error = %refusal, "cannot attach; undoing");
            if let Err(error) = release(node, row).await {
                warn!(id = %wish.id, %error, "cannot undo yet; trying again later");
            }
            Err(refusal)
        }
    }
}

/// Waits until few enough others are at work, and nobody on this attachment.
async fn turn<'a>(
    node: &'a Node,
    id: &AttachmentId,
    deadline: Instant,
) -> Result<(SemaphorePermit<'a>, Turn), Refusal> {
    let slot = timeout_at(deadline, node.adds.acquire()).await;
    // The semaphore is never closed.
    let slot = slot.ok().and_then(Result::ok).ok_or(Refusal::Late("other ADDs"))?;
    let turn = timeout_at(deadline, node.roster.turn(id)).await;
    let late = |_elapsed| Refusal::Late("another operation on this attachment");
    Ok((slot, turn.map_err(late)?))
}

/// Returns the earlier attachment if it is just what is asked for, once it is in force; otherwise
/// undoes it.
async fn settle_earlier(
    node: &Arc<Node>,
    row: Attachment,
    wish: &Wish,
    sandbox: &Sandbox,
    deadline: Instant,
) -> Result<Option<Added>, Refusal> {
    if let Some(interface) = row.interface.clone().filter(|_| is_wished(&row, wish, sandbox)) {
        node.master.connected(deadline).await?;
        let ends = blocking(links::names).await?;
        if ends.contains(&row.host_ifname) && has_endpoint(node, &row.id, &interface) {
            program(node, &row, node.mirror.stamp(), deadline).await?;
            return Ok(Some(Added { host_ifname: row.host_ifname, interface }));
        }
    }
    let unfinished = |error| Refusal::Unfinished("life", Box::new(error));
    match release(node, row).await.map_err(unfinished)? {
        Released::Whole => Ok(None),
        Released::ButEndpoint(error) => Err(unfinished(error.into())),
    }
}

/// Whether the attachment of `row` is what `wish` asks for.
fn is_wished(row: &Attachment, wish: &Wish, sandbox: &Sandbox) -> bool {
    let Some(interface) = &row.interface else { return false };
    let is_held = |wished: &WishedAddress| {
        let mut held = interface.addresses.iter();
        held.any(|a| a.ip == wished.ip && wished.prefix_len.is_none_or(|len| len == a.prefix_len))
    };
    row.state == State::Attached
        && row.sandbox.cookie == sandbox.cookie
        && (&row.tenant, &row.network, &row.group) == (&wish.tenant, &wish.network, &wish.group)
        && row.limits == wish.limits
        && row.published == wish.published
        && row.told.labels == wish.told.labels
        && row.adopted.is_some() == (wish.source == Source::Chain)
        && wish.ips.iter().all(is_held)
        && (wish.mac.is_empty() || wish.mac.parse() == Ok(interface.mac))
        && (wish.mtu == 0 || wish.mtu == interface.mtu)
}

/// Whether netmaster still has the endpoint, with the addresses its interface carries.
fn has_endpoint(node: &Node, id: &AttachmentId, interface: &Interface) -> bool {
    let Ok(id) = EndpointId::parse("endpointID", &id.to_string()) else { return false };
    node.mirror.read(|intent| {
        let Some(endpoint) = intent.endpoint(&id) else { return false };
        let mut addresses = interface.addresses.iter();
        endpoint.host.node == node.config.node
            && endpoint.mac == interface.mac
            && addresses.all(|a| endpoint.has(a.ip))
    })
}

/// Takes a port id and writes the row that says what to undo. With the interface, if that is there.
async fn begin(
    node: &Arc<Node>,
    wish: &Wish,
    sandbox: Sandbox,
    namespace: &Arc<Namespace>,
) -> Result<(Attachment, Option<Given>), Refusal> {
    let (inside, ifname) = (Arc::clone(namespace), wish.id.ifname().to_owned());
    let given = match wish.source {
        Source::Ours => {
            blocking(move || links::require_free(&inside, &ifname)).await?;
            None
        }
        Source::Chain => Some(blocking(move || given::find(&inside, &ifname)).await??),
    };
    let port = node.roster.allocate_port()?;
    let row = Attachment {
        id: wish.id.clone(),
        state: State::Attaching,
        config_name: wish.config_name.clone(),
        tenant: wish.tenant.clone(),
        network: wish.network.clone(),
        group: wish.group.clone(),
        sandbox,
        port: port.get(),
        host_ifname: given
            .as_ref()
            .map_or_else(|| host_ifname(&wish.id), |g| g.host_ifname.clone()),
        adopted: given.as_ref().map(|given| given.host_index),
        limits: wish.limits,
        told: wish.told.clone(),
        published: wish.published.clone(),
        interface: None,
    };
    if let Err(refusal) = enrol(node, &row).await {
        node.roster.free_port(port);
        return Err(refusal);
    }
    Ok((row, given))
}

/// Writes the row, whose ports of the node are nobody else's.
async fn enrol(node: &Arc<Node>, row: &Attachment) -> Result<(), Refusal> {
    if row.published.is_empty() {
        return Ok(node.roster.put(row.clone()).await?);
    }
    let uplink = node.config.uplink.clone();
    let addresses = blocking(move || {
        let addresses = uplink.map(|uplink| published::node_addresses(&uplink.devices));
        Ok(addresses.transpose()?)
    });
    published::check(&row.published, addresses.await?.as_deref())?;
    if !Note::of(row).keeps_published() {
        let (id, count) = (&row.id, row.published.len());
        warn!(%id, count, "too many published ports to note on the host end: a lost state directory ends them");
    }
    // One at a time, so that no two find the same port free.
    let _publishing = node.publishing.lock().await;
    published::check_free(row, &node.roster.rows())?;
    Ok(node.roster.put(row.clone()).await?)
}

async fn build(
    node: &Arc<Node>,
    row: Attachment,
    wish: &Wish,
    namespace: &Arc<Namespace>,
    deadline: Instant,
) -> Result<Added, Refusal> {
    let measures = &node.measures;
    let stamp = measures.step(Step::Endpoint, register(node, &row, wish, deadline)).await?;
    let planned = plan(node, wish);
    let mut interface = measures.step(Step::Plan, planned).await?;
    let (inside, of_row, of_plan) = (Arc::clone(namespace), row.clone(), interface.clone());
    let made = blocking(move || {
        // A crash between row and release may have left a link under this very name.
        links::remove(&of_row.host_ifname)?;
        let pair = Pair {
            host_ifname: &of_row.host_ifname,
            host_mac: host_mac(&of_row.id),
            ifname: of_row.id.ifname(),
            interface: &of_plan,
            note: Note::of(&of_row),
        };
        links::create(&pair, &inside)
    });
    interface.default_routes = measures.step(Step::Links, made).await?;
    measures.step(Step::Engine, program(node, &row, stamp, deadline)).await?;
    finish(node, row, interface, namespace).await
}

/// As [`build`], with an interface that is there.
async fn adopt(
    node: &Arc<Node>,
    row: Attachment,
    wish: &Wish,
    (given, namespace): (Given, &Arc<Namespace>),
    deadline: Instant,
) -> Result<Added, Refusal> {
    let measures = &node.measures;
    let wish = Wish { mac: given.seen.mac.to_string(), ..wish.clone() };
    let stamp = measures.step(Step::Endpoint, register(node, &row, &wish, deadline)).await?;
    let planned = measures.step(Step::Plan, plan(node, &wish)).await?;
    let interface = given.interface(wish.id.ifname(), planned)?;
    let (inside, note, mtu) = (Arc::clone(namespace), Note::of(&row), interface.mtu);
    let taken = blocking(move || given.take(&inside, mtu, &note));
    measures.step(Step::Links, taken).await?;
    measures.step(Step::Engine, program(node, &row, stamp, deadline)).await?;
    finish(node, row, interface, namespace).await
}

/// The engine has the port: lets packets in, and writes that down.
async fn finish(
    node: &Arc<Node>,
    row: Attachment,
    interface: Interface,
    namespace: &Arc<Namespace>,
) -> Result<Added, Refusal> {
    let (inside, of_row) = (Arc::clone(namespace), row.clone());
    blocking(move || links::open_host_end(&of_row.host_ifname, &inside, of_row.id.ifname()))
        .await?;
    let host_ifname = row.host_ifname.clone();
    let done = Attachment { state: State::Attached, interface: Some(interface.clone()), ..row };
    node.roster.put(done).await?;
    Ok(Added { host_ifname, interface })
}

/// Makes the endpoint at netmaster, which hands out address and MAC; returns the intent it is part
/// of. When this returns, the other nodes know the way here, or were named as late.
async fn register(
    node: &Arc<Node>,
    row: &Attachment,
    wish: &Wish,
    deadline: Instant,
) -> Result<Stamp, Refusal> {
    let id = wish.id.to_string();
    if is_left_over(node, &id) {
        node.master.delete_endpoint(&id).await?;
    }
    let endpoint = EndpointObject {
        endpoint_id: id,
        tenant_name: wish.tenant.clone(),
        network_name: wish.network.clone(),
        endpoint_group: wish.group.clone(),
        ip_address: wish.ips.iter().map(|wished| wished.ip.to_string()).collect(),
        mac_address: wish.mac.clone(),
        homing_host: node.config.node.to_string(),
        intf_name: row.host_ifname.clone(),
        vtep_ip: node.config.vtep.map(|ip| ip.to_string()).unwrap_or_default(),
        container_id: wish.id.container_id().to_owned(),
        container_name: wish.told.container_name.clone(),
        labels: wish.told.labels.clone(),
        running: false,
    };
    let made = node.master.create_endpoint(endpoint, deadline).await?;
    let late_nodes = &made.late_nodes;
    if !late_nodes.is_empty() {
        warn!(id = %wish.id, ?late_nodes, "some nodes do not know the new endpoint yet");
    }
    hear_of(node, &made, deadline).await
}

/// An endpoint of this node whose row is gone: from a state directory that was lost.
fn is_left_over(node: &Node, id: &str) -> bool {
    let Ok(id) = EndpointId::parse("endpointID", id) else { return false };
    node.mirror.read(|intent| intent.endpoint(&id).is_some_and(|e| e.host.node == node.config.node))
}

/// What the container's interface is to carry, from intent that has its endpoint.
async fn plan(node: &Arc<Node>, wish: &Wish) -> Result<Interface, Refusal> {
    let id = EndpointId::parse("endpointID", &wish.id.to_string())
        .map_err(|refused| Refusal::Request { field: "attachment", reason: refused.to_string() })?;
    let found = node.mirror.read(|intent| {
        let endpoint = intent.endpoint(&id)?;
        let network = intent.network(&endpoint.network)?;
        Some((endpoint.mac, Address::all_of(endpoint, network), network.tag))
    });
    let gone = || Refusal::Differs(format!("endpoint {id} was deleted while it was attached"));
    let (mac, addresses, tag) = found.ok_or_else(gone)?;
    check_lengths(&wish.ips, &addresses)?;
    if !wish.published.is_empty() {
        node.mirror.read(|intent| published::check_network(intent, &id))?;
    }
    let underlay = match node.config.uplink.clone() {
        Some(uplink) => blocking(move || links::uplink_mtu(&uplink.devices)).await?,
        None => MTU_WITHOUT_UPLINK,
    };
    let carried = Carried::of(addresses.iter().map(|address| address.ip));
    let mtu = container_mtu(wish.mtu, Room { underlay, wrapping: wrapping(node, tag), carried })?;
    Ok(Interface { mac, mtu, addresses, default_routes: Vec::new() })
}

/// A prefix length that is wished is that of the subnet.
fn check_lengths(wished: &[WishedAddress], addresses: &[Address]) -> Result<(), Refusal> {
    for WishedAddress { ip, prefix_len } in wished {
        let ours = addresses.iter().find(|address| address.ip == *ip);
        if let Some((ours, wished)) = ours.zip(*prefix_len)
            && wished != ours.prefix_len
        {
            let reason = format!("the prefix length of {ip}'s subnet is {}", ours.prefix_len);
            return Err(Refusal::Request { field: "ips", reason });
        }
    }
    Ok(())
}

/// Waits until this node's intent has the endpoint as netmaster made it; returns that intent. One that
/// existed already was heard of before: no revision comes for it.
async fn hear_of(node: &Node, made: &Made, deadline: Instant) -> Result<Stamp, Refusal> {
    let wanted = Stamp { epoch: node.mirror.stamp().epoch, revision: made.revision };
    let is_heard = |known: &Stamp| *known >= wanted || is_known(node, &made.endpoint);
    let mut known = node.mirror.watch();
    match timeout_at(deadline, known.wait_for(is_heard)).await {
        Ok(Ok(known)) => Ok(wanted.min(*known)),
        Ok(Err(_)) | Err(_) => Err(Refusal::Late("netmaster to announce the endpoint")),
    }
}

fn is_known(node: &Node, made: &EndpointObject) -> bool {
    let Ok(id) = EndpointId::parse("endpointID", &made.endpoint_id) else { return false };
    node.mirror.read(|intent| {
        intent.endpoint(&id).is_some_and(|endpoint| {
            endpoint.host.node == node.config.node
                && endpoint.mac.to_string() == made.mac_address
                && endpoint.addresses().map(|ip| ip.to_string()).eq(made.ip_address.iter().cloned())
        })
    })
}

fn wrapping(node: &Node, tag: Tag) -> Wrapping {
    match (tag, node.config.vtep) {
        (Tag::Vxlan(_), Some(vtep)) => Wrapping::Vxlan(vtep),
        // Without a VTEP nothing leaves the node.
        (Tag::Vlan(_), _) | (Tag::Vxlan(_), None) => Wrapping::Vlan,
    }
}

/// Has the engine take the port and the tables that name it.
async fn program(
    node: &Arc<Node>,
    row: &Attachment,
    stamp: Stamp,
    deadline: Instant,
) -> Result<(), Refusal> {
    let deadline = deadline.min(Instant::now() + ENGINE_PATIENCE);
    let bad_id = || Refusal::Differs(format!("{} is no endpoint id", row.id));
    let (port, port_wanted) = wanted(row).ok_or_else(bad_id)?;
    let generation = node.programmer.place(port, port_wanted);
    let mut applied = node.programmer.watch();
    let outcome = applied.wait_for(|now| verdict(now, port, generation, stamp).is_some());
    match timeout_at(deadline, outcome).await {
        Ok(Ok(now)) => verdict(&now, port, generation, stamp).unwrap_or(Ok(())),
        Ok(Err(_)) | Err(_) => Err(Refusal::Late("vrouterd")),
    }
}

/// What is known of a port since `generation`; `None`: nothing yet.
fn verdict(
    now: &Applied,
    port: PortId,
    generation: u64,
    stamp: Stamp,
) -> Option<Result<(), Refusal>> {
    if now.engine.is_none() || now.generation < generation {
        return None;
    }
    if let Some(reason) = now.failed_ports.get(&port) {
        return Some(Err(Refusal::Engine { what: "the port", reason: reason.clone() }));
    }
    if let Some(reason) = &now.refused {
        return Some(Err(Refusal::Engine { what: "the tables", reason: reason.clone() }));
    }
    (now.stamp >= stamp).then_some(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::Limit;
    use crate::attachment::tests::example;

    fn wish() -> Wish {
        Wish {
            id: example("c1").id,
            netns: "/run/netns/x".into(),
            config_name: "n1".into(),
            tenant: "red".into(),
            network: "blue".into(),
            group: String::new(),
            ips: Vec::new(),
            mac: String::new(),
            mtu: 0,
            told: Told::default(),
            limits: Limits::default(),
            published: Vec::new(),
            source: Source::Ours,
        }
    }

    #[test]
    fn only_an_attachment_that_has_all_that_is_wished_is_returned_again() {
        let row = example("c1");
        let same = |wish: &Wish| is_wished(&row, wish, &row.sandbox);
        let at = |ip: &str, prefix_len| vec![WishedAddress { ip: ip.parse().unwrap(), prefix_len }];
        for alike in [
            wish(),
            Wish { ips: at("10.1.1.5", None), ..wish() },
            Wish { ips: at("10.1.1.5", Some(24)), ..wish() },
            Wish { mac: "02:02:0a:01:01:05".into(), mtu: 1450, ..wish() },
        ] {
            assert!(same(&alike), "{alike:?}");
        }
        let limit = Some(Limit { rate: 1_000_000, burst: 15_180 });
        let mapping = Mapping { host_ip: None, protocol: 6, host_port: 8080, container_port: 80 };
        for other in [
            Wish { group: "web".into(), ..wish() },
            Wish { ips: at("10.1.1.6", None), ..wish() },
            Wish { ips: at("10.1.1.5", Some(16)), ..wish() },
            Wish { mac: "02:02:0a:01:01:06".into(), ..wish() },
            Wish { mtu: 1400, ..wish() },
            Wish { limits: Limits { from: limit, to: None }, ..wish() },
            Wish { published: vec![mapping], ..wish() },
            Wish { source: Source::Chain, ..wish() },
            Wish { told: Told { labels: vec!["app=web".into()], ..Told::default() }, ..wish() },
        ] {
            assert!(!same(&other), "{other:?}");
        }
        let later = Sandbox { cookie: 1, ..row.sandbox.clone() };
        assert!(!is_wished(&row, &wish(), &later));
        let half = Attachment { state: State::Attaching, ..row.clone() };
        assert!(!is_wished(&half, &wish(), &half.sandbox));
    }
}
