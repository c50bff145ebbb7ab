//! Who holds which address and MAC of a network. Each family has pools of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowtable::ids::Mac;

use super::address::{Addresses, Asking, Names};
use crate::group::GroupSpec;
use crate::intent::Intent;
use crate::key::NetworkKey;
use crate::name::{EndpointId, GroupName};
use crate::network::Network;
use crate::pool::{AddressPool, Claim, Holder, Unavailable};
use crate::refusal::{Reason, Refused};

/// The addresses and MACs of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    network: NetworkKey,
    v4: Addresses<Ipv4Addr>,
    /// `None`: the network has no IPv6 addresses to hand out.
    v6: Option<Addresses<Ipv6Addr>>,
    macs: BTreeMap<Mac, EndpointId>,
}

impl Holdings {
    pub(super) fn new(network: &Network) -> Self {
        let names = |subnet: &dyn ToString, first: IpAddr, length: u8| Names {
            subnet: subnet.to_string(),
            block: format!("{first}/{length}"),
        };
        let subnet = &network.subnet;
        let named = names(subnet, subnet.network_address().into(), subnet.length());
        let v4 = Addresses::new(subnet.hosts(), network.gateway, named);
        let v6 = network.subnet6.as_ref().and_then(|subnet| {
            let named = names(subnet, subnet.network_address().into(), subnet.length());
            Some(Addresses::new(Some(subnet.hosts()?), network.gateway6, named))
        });
        Self { network: network.key.clone(), v4, v6, macs: BTreeMap::new() }
    }

    /// The addresses of a network as far as `intent` tells; `None`: it has no such network. A node's intent has
    /// neither reservations nor addresses on their way back, so that fewer may be free.
    #[must_use]
    pub fn known(intent: &Intent, key: &NetworkKey) -> Option<Self> {
        let mut holdings = Self::new(intent.network(key)?);
        let is_of_it =
            |spec: &&GroupSpec| spec.key.tenant == key.tenant && spec.network == key.network;
        for spec in intent.groups.values().map(|group| &group.spec).filter(is_of_it) {
            // What contradicts itself is netmaster's to find: what is left is free.
            drop(holdings.carve(spec));
        }
        let endpoints = intent.endpoints.values().filter(|endpoint| endpoint.network == *key);
        let had = endpoints.flat_map(|endpoint| {
            endpoint.addresses().map(|address| (address, Holder::Endpoint(endpoint.id.clone())))
        });
        let services = intent.services.values().filter(|s| s.spec.network_key() == *key);
        let served = services.map(|s| (s.vip.into(), Holder::Service(s.spec.key.clone())));
        for (address, holder) in had.chain(served) {
            drop(holdings.take(address, holder));
        }
        Some(holdings)
    }

    /// Whether a new endpoint gets no address of some family that the network has.
    #[must_use]
    pub fn is_exhausted(&self, group: Option<&GroupName>) -> bool {
        let v4 = group.map_or_else(|| self.network(), |group| self.group(group));
        let v6 = group.map_or_else(|| self.network6(), |group| self.group6(group));
        v4.lowest().is_none() || v6.is_some_and(|pool| pool.lowest().is_none())
    }

    /// The network's own IPv4 addresses: all but those of groups with a pool.
    #[must_use]
    pub const fn network(&self) -> &AddressPool<Ipv4Addr> {
        self.v4.own()
    }

    /// The network's own IPv6 addresses, if it hands any out.
    #[must_use]
    pub fn network6(&self) -> Option<&AddressPool<Ipv6Addr>> {
        self.v6.as_ref().map(Addresses::own)
    }

    /// The IPv4 addresses endpoints of a group get: the group's own, or the network's.
    #[must_use]
    pub fn group(&self, group: &GroupName) -> &AddressPool<Ipv4Addr> {
        self.v4.group(group)
    }

    /// The IPv6 addresses endpoints of a group get, if any.
    #[must_use]
    pub fn group6(&self, group: &GroupName) -> Option<&AddressPool<Ipv6Addr>> {
        self.v6.as_ref().map(|v6| v6.group(group))
    }

    /// How many IPv4 and IPv6 addresses endpoints, reservations and services hold, in all pools.
    #[must_use]
    pub fn held_counts(&self) -> (usize, usize) {
        (self.v4.held_count(), self.v6.as_ref().map_or(0, Addresses::held_count))
    }

    /// Gives a group the pools it asks for, all or none.
    pub(super) fn carve(&mut self, spec: &GroupSpec) -> Result<(), Refused> {
        if let Some(pool) = spec.pool {
            self.v4.check_carve("ipPool", pool)?;
        }
        if let Some(pool6) = spec.pool6 {
            let none = no_ipv6(&self.network);
            let v6 = self.v6.as_mut().ok_or_else(|| Refused::new("ipv6Pool", &pool6, none))?;
            v6.check_carve("ipv6Pool", pool6)?;
            v6.carve(&spec.key.group, pool6);
        }
        if let Some(pool) = spec.pool {
            self.v4.carve(&spec.key.group, pool);
        }
        Ok(())
    }

    /// Gives a group's pools back to the network, with the reservations that are in them.
    pub(super) fn restore(&mut self, group: &GroupName) {
        self.v4.restore(group);
        if let Some(v6) = &mut self.v6 {
            v6.restore(group);
        }
    }

    /// The IPv4 address it gets: the asked one, the one reserved for it, or the next.
    pub(super) fn choose(&self, asking: &Asking<'_, Ipv4Addr>) -> Result<Ipv4Addr, Refused> {
        self.v4.choose(asking)
    }

    /// As [`Self::choose`]; refused when the network hands out no IPv6 addresses.
    pub(super) fn choose6(&self, asking: &Asking<'_, Ipv6Addr>) -> Result<Ipv6Addr, Refused> {
        let wanted = || asking.wanted.map(|address| address.to_string()).unwrap_or_default();
        let none = || Refused::new("ipAddress", &wanted(), no_ipv6(&self.network));
        self.v6.as_ref().ok_or_else(none)?.choose(asking)
    }

    pub(super) const fn has_ipv6(&self) -> bool {
        self.v6.is_some()
    }

    /// Gives an address that nobody has to `holder`.
    pub(super) fn take(&mut self, address: IpAddr, holder: Holder) -> Result<(), Unavailable> {
        match (address, &mut self.v6) {
            (IpAddr::V4(address), _) => self.v4.take(address, holder),
            (IpAddr::V6(address), Some(v6)) => v6.take(address, holder),
            (IpAddr::V6(_), None) => Err(Unavailable::Outside),
        }
    }

    /// Gives `address`, as chosen, to `holder`; a reservation it replaces ends.
    pub(super) fn hand_over(&mut self, address: IpAddr, holder: Holder) -> Result<(), Unavailable> {
        match (address, &mut self.v6) {
            (IpAddr::V4(address), _) => self.v4.hand_over(address, holder),
            (IpAddr::V6(address), Some(v6)) => v6.hand_over(address, holder),
            (IpAddr::V6(_), None) => Err(Unavailable::Outside),
        }
    }

    pub(super) fn release(&mut self, address: IpAddr) {
        match (address, &mut self.v6) {
            (IpAddr::V4(address), _) => self.v4.release(address),
            (IpAddr::V6(address), Some(v6)) => v6.release(address),
            (IpAddr::V6(_), None) => {}
        }
    }

    /// Changes what keeps an address without endpoint from being free; `None`: nothing. One that an
    /// endpoint has stays its own.
    pub(super) fn set_claim(&mut self, address: IpAddr, claim: Option<Claim>) {
        match (address, &mut self.v6) {
            (IpAddr::V4(address), _) => self.v4.set_claim(address, claim),
            (IpAddr::V6(address), Some(v6)) => v6.set_claim(address, claim),
            (IpAddr::V6(_), None) => {}
        }
    }

    /// Who holds `address`.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Option<&Holder> {
        match address {
            IpAddr::V4(address) => self.v4.holder(address),
            IpAddr::V6(address) => self.v6.as_ref()?.holder(address),
        }
    }

    pub(super) fn mac_owner(&self, mac: Mac) -> Option<&EndpointId> {
        self.macs.get(&mac)
    }

    pub(super) fn add_mac(&mut self, mac: Mac, endpoint: EndpointId) {
        self.macs.insert(mac, endpoint);
    }

    pub(super) fn remove_mac(&mut self, mac: Mac) {
        self.macs.remove(&mac);
    }
}

fn no_ipv6(network: &NetworkKey) -> Reason {
    Reason::NoIpv6 { network: network.network.to_string() }
}
