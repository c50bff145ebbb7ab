//! An interface that an earlier plugin of the chain has made: whether it can be Weir's, and making it so.
//!
//! It can if the engine sees every packet of it: a veth pair whose host end is in our namespace and a
//! port of nothing. Its container's end stays as it is, but for the MTU. The host end becomes like one
//! of ours: no addresses and routes, no ARP, nothing taken by the host's own stack. It is never removed
//! here: who made it does that, after our DEL.

use std::net::IpAddr;

use flowtable::ids::Mac;
use netdev::{Arp, Link, Namespace, Netlink, refuse_ipv4, set_disable_ipv6};

use crate::attachment::{Attachment, Interface};
use crate::links::{self, Error, Seen};
use crate::note::Note;

/// Why an interface cannot be adopted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("the container has no interface {ifname} to adopt")]
    Missing { ifname: String },
    #[error("{ifname} is no end of a veth pair with its other end in netplugin's namespace")]
    NotVeth { ifname: String },
    #[error(
        "{host_ifname}, the host end of {ifname}, is a port of {controller}, which forwards beside Weir"
    )]
    Port { ifname: String, host_ifname: String, controller: String },
    #[error("{host_ifname}, the host end of {ifname}, has the gateway's MAC address")]
    GatewayMac { ifname: String, host_ifname: String },
    #[error(
        "{ifname} lacks {ip}, which netmaster has granted to it: an address of each family of the network"
    )]
    Address { ifname: String, ip: IpAddr },
    #[error("{ifname} has a default route by {theirs}: the network's gateway is {ours}")]
    Gateway { ifname: String, theirs: IpAddr, ours: String },
}

/// Both ends, as they were found.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub(crate) host_ifname: String,
    pub(crate) host_index: u32,
    /// Of the container's end.
    index: u32,
    mtu: u32,
    pub(crate) seen: Seen,
}

/// Finds the pair of the container's `ifname`.
pub(crate) fn find(namespace: &Namespace, ifname: &str) -> Result<Result<Given, Unfit>, Error> {
    let ifname = ifname.to_owned();
    let inside = Netlink::open_in(namespace)?;
    let (Some(own), Some(seen)) = (inside.link_by_name(&ifname)?, links::look(namespace, &ifname)?)
    else {
        return Ok(Err(Unfit::Missing { ifname }));
    };
    let host = Netlink::open()?;
    let Some(end) = other_end(&own, &host, &inside)? else {
        return Ok(Err(Unfit::NotVeth { ifname }));
    };
    let host_ifname = end.name;
    if let Some(index) = end.controller {
        let controller = host.link_by_index(index)?.map_or_else(|| index.to_string(), |l| l.name);
        return Ok(Err(Unfit::Port { ifname, host_ifname, controller }));
    }
    if Mac(end.mac) == Mac::GATEWAY {
        return Ok(Err(Unfit::GatewayMac { ifname, host_ifname }));
    }
    Ok(Ok(Given { host_ifname, host_index: end.index, index: own.index, mtu: own.mtu, seen }))
}

/// An index says little without its namespace: the eth0 of many containers has the same one.
fn other_end(own: &Link, host: &Netlink, inside: &Netlink) -> Result<Option<Link>, Error> {
    let ours = Namespace::current().map_err(|source| Error::OwnNamespace { source })?;
    let is_here = own.peer_netns_id.is_some() && own.peer_netns_id == inside.namespace_id(&ours)?;
    let Some(index) = own.peer_index.filter(|_| is_here && own.kind.as_deref() == Some("veth"))
    else {
        return Ok(None);
    };
    Ok(host.link_by_index(index)?)
}

impl Given {
    /// What the interface carries, of what is `planned` for it.
    pub(crate) fn interface(&self, ifname: &str, planned: Interface) -> Result<Interface, Unfit> {
        let ifname = || ifname.to_owned();
        let has = |ip: IpAddr| self.seen.addresses.iter().any(|address| address.ip == ip);
        if let Some(missing) = planned.addresses.iter().find(|address| !has(address.ip)) {
            return Err(Unfit::Address { ifname: ifname(), ip: missing.ip });
        }
        let ours: Vec<IpAddr> = planned.addresses.iter().filter_map(|a| a.gateway).collect();
        if let Some(theirs) = self.seen.gateways.iter().find(|gateway| !ours.contains(gateway)) {
            let ours = ours.first().map_or_else(|| "none".to_owned(), ToString::to_string);
            return Err(Unfit::Gateway { ifname: ifname(), theirs: *theirs, ours });
        }
        let (mtu, default_routes) = (planned.mtu.min(self.mtu), self.seen.gateways.clone());
        Ok(Interface { mtu, default_routes, ..planned })
    }

    /// Makes the host end like one of ours, down until the engine has it.
    pub(crate) fn take(&self, namespace: &Namespace, mtu: u32, note: &Note) -> Result<(), Error> {
        let host = Netlink::open()?;
        // Its routes go with that.
        host.set_down(self.host_index)?;
        host.set_arp(self.host_index, Arp::Off)?;
        set_disable_ipv6(None, &self.host_ifname)?;
        refuse_ipv4(&self.host_ifname)?;
        for address in host.addresses(self.host_index)? {
            host.remove_address(self.host_index, address)?;
        }
        links::take_note(&host, self.host_index, note)?;
        if mtu < self.mtu {
            host.set_mtu(self.host_index, mtu)?;
            Netlink::open_in(namespace)?.set_mtu(self.index, mtu)?;
        }
        Ok(())
    }
}

/// Lets go of the host end of `row`, which has this index: down, for who made it to remove. One that was
/// refused before it was taken stays as it is, as does another link of that name or index.
pub(crate) fn let_go(row: &Attachment, host_index: u32) -> Result<(), Error> {
    let host = Netlink::open()?;
    let link = host.link_by_index(host_index)?.filter(|link| link.name == row.host_ifname);
    let is_taken = |link: &Link| {
        row.interface.is_some() || Note::parse(link.alias.as_deref()) == Note::of(row)
    };
    if link.as_ref().is_none_or(|link| !is_taken(link)) {
        return Ok(());
    }
    match host.set_down(host_index) {
        Err(error) if !error.is_missing() => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}
