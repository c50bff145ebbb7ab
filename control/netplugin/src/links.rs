//! The kernel's part of an attachment: the veth pair, what the container's end carries, and
//! finding and removing what is left of it.
//!
//! Everything here blocks and is called from blocking threads. Nothing enters a container's
//! namespace to remove something: deleting the host end takes the other end with it, and cannot
//! hit a namespace that a later container got.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flowtable::ids::Mac;
use netdev::{
    Arp, Error as NetlinkError, Namespace, NamespaceError, Netlink, RouteSpec, SysctlError,
    VethSpec, refuse_ipv4, set_disable_ipv6, take_only_given_ipv6,
};

use crate::attachment::{Address, Interface, Sandbox};
use crate::naming::is_host_ifname;
use crate::note::Note;

/// The kernel takes a second at most from up to running.
const RUNNING_PATIENCE: Duration = Duration::from_secs(3);
const RUNNING_POLL: Duration = Duration::from_millis(1);

/// Why the kernel's part failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("network namespace {path}: {}", chain(.source))]
    Sandbox { path: String, source: NamespaceError },
    #[error("netplugin's own network namespace: {}", chain(.source))]
    OwnNamespace { source: NamespaceError },
    #[error("interface {ifname} exists in the container already")]
    Exists { ifname: String },
    #[error("uplink {device} does not exist")]
    NoUplink { device: String },
    #[error("{link} went away while it was set up")]
    Gone { link: String },
    #[error("{link} is up and carries no packets after {RUNNING_PATIENCE:?}: is its other end up?")]
    NotRunning { link: String },
    #[error("{}", chain(.0))]
    Netlink(#[from] NetlinkError),
    #[error("{}", chain(.0))]
    Sysctl(#[from] SysctlError),
}

/// Both ends of a pair to be made.
#[derive(Debug)]
pub(crate) struct Pair<'a> {
    pub(crate) host_ifname: &'a str,
    pub(crate) host_mac: Mac,
    pub(crate) ifname: &'a str,
    pub(crate) interface: &'a Interface,
    pub(crate) note: Note,
}

/// What a container's interface has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) up: bool,
    pub(crate) mac: Mac,
    pub(crate) addresses: Vec<netdev::Address>,
    /// Gateways of default routes over the interface.
    pub(crate) gateways: Vec<IpAddr>,
}

/// An open namespace with its cookie.
pub(crate) fn open_sandbox(path: &Path) -> Result<(Namespace, Sandbox), Error> {
    let failed = |source| Error::Sandbox { path: path.display().to_string(), source };
    let namespace = Namespace::open(path).map_err(failed)?;
    let cookie = namespace.cookie().map_err(failed)?;
    Ok((namespace, Sandbox { path: path.to_owned(), cookie }))
}

/// Whether the very namespace is still at its path.
pub(crate) fn sandbox_is_there(sandbox: &Sandbox) -> bool {
    open_sandbox(&sandbox.path).is_ok_and(|(_, found)| found.cookie == sandbox.cookie)
}

/// Refuses a name that the container has already.
pub(crate) fn require_free(namespace: &Namespace, ifname: &str) -> Result<(), Error> {
    match Netlink::open_in(namespace)?.link_by_name(ifname)? {
        None => Ok(()),
        Some(_) => Err(Error::Exists { ifname: ifname.to_owned() }),
    }
}

/// MTU in bytes of what the uplink's devices that are there can all carry.
pub(crate) fn uplink_mtu(devices: &[String]) -> Result<u32, Error> {
    let netlink = Netlink::open()?;
    let links = devices.iter().map(|device| netlink.link_by_name(device));
    let links = links.collect::<Result<Vec<_>, _>>()?;
    let least = links.iter().flatten().map(|link| link.mtu).min();
    least.ok_or_else(|| Error::NoUplink { device: devices.join(",") })
}

/// Makes the pair: the container's end ready and up, the host's end down and closed to the host's own
/// stack, should its tc program ever be missing. Returns the gateways of
/// the default routes made. What was made is removed when a later step fails.
pub(crate) fn create(pair: &Pair<'_>, namespace: &Namespace) -> Result<Vec<IpAddr>, Error> {
    let host = Netlink::open()?;
    let mtu = pair.interface.mtu;
    let link = host
        .create_veth(&VethSpec {
            name: pair.host_ifname,
            mac: Some(pair.host_mac.0),
            mtu,
            peer_name: pair.ifname,
            peer_mac: Some(pair.interface.mac.0),
            peer_mtu: mtu,
            peer_netns: Some(namespace),
        })
        .map_err(|error| taken(error, pair.ifname))?;
    let equipped = host
        .set_arp(link.index, Arp::Off)
        .map_err(Error::from)
        .and_then(|()| Ok(set_disable_ipv6(None, pair.host_ifname)?))
        .and_then(|()| Ok(refuse_ipv4(pair.host_ifname)?))
        .and_then(|()| take_note(&host, link.index, &pair.note))
        .and_then(|()| equip(pair, namespace));
    if equipped.is_err()
        && let Err(error) = host.delete_link(link.index)
        && !error.is_missing()
    {
        // The first failure is the one to report; the row leads to this link's removal.
        tracing::warn!(
            link = pair.host_ifname,
            error = chain(&error),
            "cannot remove a half-made link"
        );
    }
    equipped
}

/// The near name is ours alone, so what exists is the container's.
fn taken(error: NetlinkError, ifname: &str) -> Error {
    if error.is_existing() { Error::Exists { ifname: ifname.to_owned() } } else { error.into() }
}

pub(crate) fn take_note(host: &Netlink, index: u32, note: &Note) -> Result<(), Error> {
    Ok(note.text().map_or(Ok(()), |text| host.set_alias(index, &text))?)
}

fn equip(pair: &Pair<'_>, namespace: &Namespace) -> Result<Vec<IpAddr>, Error> {
    let inside = Netlink::open_in(namespace)?;
    let gone = || Error::Gone { link: pair.ifname.to_owned() };
    let index = inside.link_by_name(pair.ifname)?.ok_or_else(gone)?.index;
    if pair.interface.addresses.iter().any(|address| address.ip.is_ipv6()) {
        take_only_given_ipv6(namespace, pair.ifname)?;
    }
    for Address { ip, prefix_len, .. } in &pair.interface.addresses {
        inside.add_address(index, *ip, *prefix_len)?;
    }
    inside.set_up(index)?;
    let mut made = Vec::new();
    for gateway in pair.interface.addresses.iter().filter_map(|a| a.gateway) {
        let route = RouteSpec { dst: None, gateway: Some(gateway), oif: index, mtu: None };
        match inside.add_route(&route) {
            // A container with two interfaces keeps the default route of the first.
            Err(error) if error.is_existing() => {}
            Err(error) => return Err(error.into()),
            Ok(()) => made.push(gateway),
        }
    }
    Ok(made)
}

/// Lets the container's packets in. When this returns both ends carry packets: the kernel gets there
/// some time after the link is up, and loses without a trace what is sent before.
pub(crate) fn open_host_end(
    host_ifname: &str,
    namespace: &Namespace,
    ifname: &str,
) -> Result<(), Error> {
    let host = Netlink::open()?;
    let gone = || Error::Gone { link: host_ifname.to_owned() };
    let link = host.link_by_name(host_ifname)?.ok_or_else(gone)?;
    host.set_up(link.index)?;
    let inside = Netlink::open_in(namespace)?;
    let deadline = Instant::now() + RUNNING_PATIENCE;
    for (netlink, name) in [(&host, host_ifname), (&inside, ifname)] {
        wait_running(netlink, name, deadline)?;
    }
    Ok(())
}

fn wait_running(netlink: &Netlink, name: &str, deadline: Instant) -> Result<(), Error> {
    loop {
        let gone = || Error::Gone { link: name.to_owned() };
        if netlink.link_by_name(name)?.ok_or_else(gone)?.running {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::NotRunning { link: name.to_owned() });
        }
        std::thread::sleep(RUNNING_POLL);
    }
}

/// Removes a host end and with it the container's; absent is fine.
pub(crate) fn remove(host_ifname: &str) -> Result<(), Error> {
    let host = Netlink::open()?;
    let Some(link) = host.link_by_name(host_ifname)? else { return Ok(()) };
    match host.delete_link(link.index) {
        Err(error) if !error.is_missing() => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The links in this namespace.
#[derive(Debug, Default)]
pub(crate) struct Present {
    pub(crate) names: BTreeSet<String>,
    /// Those that are set down.
    pub(crate) down: BTreeSet<String>,
}

pub(crate) fn present() -> Result<Present, Error> {
    let mut present = Present::default();
    for netdev::Link { name, up, .. } in Netlink::open()?.links()? {
        if !up {
            present.down.insert(name.clone());
        }
        present.names.insert(name);
    }
    Ok(present)
}

/// Names of all links in this namespace.
pub(crate) fn names() -> Result<BTreeSet<String>, Error> {
    Ok(present()?.names)
}

/// Whether a host end is up; `None` when there is none of that name.
pub(crate) fn is_up(host_ifname: &str) -> Result<Option<bool>, Error> {
    Ok(Netlink::open()?.link_by_name(host_ifname)?.map(|link| link.up))
}

/// Sets a host end up that somebody has set down; absent is fine.
pub(crate) fn raise(host_ifname: &str) -> Result<(), Error> {
    let host = Netlink::open()?;
    let Some(link) = host.link_by_name(host_ifname)? else { return Ok(()) };
    Ok(host.set_up(link.index)?)
}

/// Names of all host ends in this namespace that are ours to make and remove.
pub(crate) fn host_ends() -> Result<BTreeSet<String>, Error> {
    Ok(names()?.into_iter().filter(|name| is_host_ifname(name)).collect())
}

/// A container's end as it is found without knowing where.
#[derive(Debug, Clone)]
pub(crate) struct Inside {
    pub(crate) sandbox: Sandbox,
    pub(crate) ifname: String,
    index: u32,
    peer_index: Option<u32>,
    /// Bytes.
    pub(crate) mtu: u32,
    pub(crate) seen: Seen,
}

/// The other ends of veth pairs in all namespaces that have a name or a process. Namespaces that end
/// meanwhile are left out.
pub(crate) fn insides() -> Vec<Inside> {
    let named = ["/run/netns", "/run/docker/netns"].into_iter().flat_map(entries);
    let of_processes = entries("/proc").map(|process| process.join("ns/net"));
    let mut known = BTreeSet::new();
    let mut found = Vec::new();
    for path in named.chain(of_processes) {
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        if known.insert((meta.dev(), meta.ino()))
            && let Ok(inside) = inside(&path)
        {
            found.extend(inside);
        }
    }
    found
}

fn entries(dir: &str) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok().map(|entry| entry.path()))
}

fn inside(path: &Path) -> Result<Vec<Inside>, Error> {
    let (namespace, sandbox) = open_sandbox(path)?;
    let links = Netlink::open_in(&namespace)?.links()?;
    let ends = links.into_iter().filter(|link| link.peer_netns_id.is_some());
    let ends = ends.map(|link| {
        let gone = || Error::Gone { link: link.name.clone() };
        let seen = look(&namespace, &link.name)?.ok_or_else(gone)?;
        let netdev::Link { index, peer_index, mtu, name: ifname, .. } = link;
        Ok(Inside { sandbox: sandbox.clone(), ifname, index, peer_index, mtu, seen })
    });
    ends.collect()
}

/// The container's end of a pair, among all, and what is noted on the host's.
pub(crate) fn other_end(
    host_ifname: &str,
    mac: Mac,
    insides: &[Inside],
) -> Result<Option<(Inside, Note)>, Error> {
    let Some(host) = Netlink::open()?.link_by_name(host_ifname)? else { return Ok(None) };
    let is_other = |inside: &&Inside| {
        inside.seen.mac == mac
            && inside.peer_index == Some(host.index)
            && host.peer_index == Some(inside.index)
    };
    let found = insides.iter().find(is_other).cloned();
    Ok(found.map(|inside| (inside, Note::parse(host.alias.as_deref()))))
}

/// What the container's interface has; `None` when it has no such interface.
pub(crate) fn look(namespace: &Namespace, ifname: &str) -> Result<Option<Seen>, Error> {
    let inside = Netlink::open_in(namespace)?;
    let Some(link) = inside.link_by_name(ifname)? else { return Ok(None) };
    let routes = inside.routes()?.into_iter();
    let over = routes.filter(|r| r.dst.is_none() && r.oif == Some(link.index));
    Ok(Some(Seen {
        up: link.up,
        mac: Mac(link.mac),
        addresses: inside.addresses(link.index)?,
        gateways: over.filter_map(|route| route.gateway).collect(),
    }))
}

/// An error with its causes, as netdev wants its errors shown.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
