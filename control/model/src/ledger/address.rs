//! Who holds which address and MAC of a network, and how all of it is rebuilt from stored objects.
//! A group with a pool has addresses of its own, carved from the network's.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use flowtable::ids::{Group, Mac};

use super::{Counters, Ledger};
use crate::intent::Object;
use crate::key::{Key, NetworkKey};
use crate::name::{EndpointId, GroupName};
use crate::pool::{AddressPool, Claim, Holder, Order, Unavailable};
use crate::refusal::{Reason, Refused};
use crate::subnet::{AddressRange, Subnet};

/// Stored objects that contradict each other: a bug, or a store edited by hand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// An object of a network that is not there.
    #[error("{key} names network {network}, which is not stored")]
    NoNetwork {
        /// The object.
        key: String,
        /// The network.
        network: String,
    },
    /// Two objects hold one address, or an object holds one it can't have.
    #[error("{key} holds {address}, which it can't have")]
    Address {
        /// The object.
        key: String,
        /// The address, or pool of addresses.
        address: String,
    },
    /// Two networks have one tag.
    #[error("network {network} has tag {tag}, which another has")]
    Tag {
        /// The network.
        network: String,
        /// The tag.
        tag: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct GroupPool {
    range: AddressRange,
    addresses: AddressPool,
}

/// The addresses and MACs of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    subnet: Subnet,
    own: AddressPool,
    groups: BTreeMap<GroupName, GroupPool>,
    macs: BTreeMap<Mac, EndpointId>,
}

impl Holdings {
    pub(super) fn new(subnet: Subnet, gateway: Option<Ipv4Addr>) -> Self {
        let mut own = AddressPool::new(subnet.hosts());
        if let Some(gateway) = gateway {
            // A gateway outside the range is in no pool, so that nothing needs to hold it.
            let outside = own.take(gateway, Holder::Gateway);
            debug_assert!(matches!(outside, Ok(()) | Err(Unavailable::Outside)));
        }
        Self { subnet, own, groups: BTreeMap::new(), macs: BTreeMap::new() }
    }

    /// The network's own addresses: all but those of groups with a pool.
    #[must_use]
    pub const fn network(&self) -> &AddressPool {
        &self.own
    }

    /// The addresses endpoints of a group get: the group's own, or the network's.
    #[must_use]
    pub fn group(&self, group: &GroupName) -> &AddressPool {
        self.groups.get(group).map_or(&self.own, |pool| &pool.addresses)
    }

    /// How many addresses endpoints, reservations and services hold, in all pools.
    #[must_use]
    pub fn held_count(&self) -> usize {
        let pools = self.groups.values().map(|pool| &pool.addresses).chain([&self.own]);
        pools.flat_map(AddressPool::holders).filter(|(_, h)| **h != Holder::Gateway).count()
    }

    pub(super) fn carve(
        &mut self,
        field: &'static str,
        group: &GroupName,
        range: AddressRange,
    ) -> Result<(), Refused> {
        let refuse = |reason| Refused::new(field, &range, reason);
        if !self.subnet.hosts().is_some_and(|hosts| hosts.covers(range)) {
            let subnet = format!("{}/{}", self.subnet.network_address(), self.subnet.length());
            return Err(refuse(Reason::PoolOutside { pool: range.to_string(), subnet }));
        }
        if let Some(taken) = self.own.first_unavailable(range) {
            return Err(refuse(Reason::PoolTaken { address: taken.to_string() }));
        }
        self.own.carve(range);
        let addresses = AddressPool::new(Some(range));
        self.groups.insert(group.clone(), GroupPool { range, addresses });
        Ok(())
    }

    /// Gives a group's pool back to the network, with the reservations that are in it.
    pub(super) fn restore(&mut self, group: &GroupName) {
        let Some(pool) = self.groups.remove(group) else { return };
        self.own.restore(pool.range);
        for (address, holder) in pool.addresses.holders() {
            let moved = self.own.take(address, holder.clone());
            debug_assert_eq!(moved, Ok(()), "the whole range was just given back");
        }
    }

    /// The address it gets: the asked one, the one reserved for it, or the next.
    pub(super) fn choose(&self, asking: &Asking<'_>) -> Result<Ipv4Addr, Refused> {
        let own_pool = asking.group.and_then(|group| self.groups.get(group));
        let pool = own_pool.map_or(&self.own, |pool| &pool.addresses);
        let name =
            || own_pool.map_or_else(|| self.subnet.to_string(), |pool| pool.range.to_string());
        let reserved = || self.reserved_for(asking, pool);
        if let Some(address) = asking.wanted.or_else(reserved) {
            let checked = match pool.check(address) {
                Err(Unavailable::Held(Holder::Lease(claim))) => {
                    return asking.take(address, &claim);
                }
                other => other,
            };
            return checked.map_err(|why| self.unavailable(address, why, name())).map(|()| address);
        }
        let next = pool.next(asking.order, asking.names.last().copied().unwrap_or_default());
        next.ok_or_else(|| match (pool.leaving().next(), own_pool) {
            (Some(address), _) => leaving(address),
            (None, Some(_)) => {
                Refused::new("ipAddress", "", Reason::PoolExhausted { pool: name() })
            }
            (None, None) => {
                Refused::new("ipAddress", "", Reason::SubnetExhausted { subnet: name() })
            }
        })
    }

    /// Of several reserved addresses the first of its pool; one of another pool leads to a refusal,
    /// since any other address would not be the promised one.
    fn reserved_for(&self, asking: &Asking<'_>, pool: &AddressPool) -> Option<Ipv4Addr> {
        let pools = self.groups.values().map(|pool| &pool.addresses).chain([&self.own]);
        let all = [pool].into_iter().chain(pools).flat_map(AddressPool::holders);
        let mut mine = all.filter(|(_, holder)| match holder {
            Holder::Lease(Claim { owner: Some(owner), .. }) => {
                asking.names.contains(&owner.as_str())
            }
            Holder::Lease(Claim { owner: None, .. })
            | Holder::Gateway
            | Holder::Endpoint(_)
            | Holder::Service(_) => false,
        });
        mine.next().map(|(address, _)| address)
    }

    fn unavailable(&self, address: Ipv4Addr, why: Unavailable, pool: String) -> Refused {
        let text = address.to_string();
        let reason = match why {
            Unavailable::Outside => Reason::AddressOutside { address: text, pool },
            Unavailable::Held(holder) => {
                Reason::AddressTaken { address: text, owner: holder.to_string() }
            }
            Unavailable::Carved => {
                let group = self.groups.iter().find(|(_, pool)| pool.range.contains(address));
                let owner =
                    group.map_or_else(String::new, |(name, _)| format!("the pool of {name}"));
                Reason::AddressTaken { address: text, owner }
            }
        };
        Refused::new("ipAddress", &address, reason)
    }

    /// Gives `address`, as chosen, to `holder`; a reservation it replaces ends.
    pub(super) fn hand_over(
        &mut self,
        address: Ipv4Addr,
        holder: Holder,
    ) -> Result<(), Unavailable> {
        let pool = self.pool_at(address);
        pool.release(address);
        pool.take(address, holder)
    }

    pub(super) fn release(&mut self, address: Ipv4Addr) {
        self.pool_at(address).release(address);
    }

    /// Changes what keeps an address without endpoint from being free; `None`: nothing. One that an
    /// endpoint has stays its own.
    pub(super) fn set_claim(&mut self, address: Ipv4Addr, claim: Option<Claim>) {
        if !matches!(self.holder(address), Some(Holder::Lease(_))) {
            return;
        }
        let pool = self.pool_at(address);
        pool.release(address);
        if let Some(claim) = claim {
            let taken = pool.take(address, Holder::Lease(claim));
            debug_assert_eq!(taken, Ok(()), "it was just released");
        }
    }

    /// Who holds `address`.
    #[must_use]
    pub fn holder(&self, address: Ipv4Addr) -> Option<&Holder> {
        let group = self.groups.values().find(|pool| pool.range.contains(address));
        group.map_or(&self.own, |pool| &pool.addresses).holder(address)
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

    fn pool_at(&mut self, address: Ipv4Addr) -> &mut AddressPool {
        let group = self.groups.values_mut().find(|pool| pool.range.contains(address));
        group.map_or(&mut self.own, |pool| &mut pool.addresses)
    }
}

impl Ledger {
    /// Rebuilds everything from what is stored. References by name alone are not checked again.
    ///
    /// # Errors
    /// [`Damaged`] when two objects hold one thing.
    pub fn rebuild(
        objects: impl IntoIterator<Item = Object>,
        counters: Counters,
    ) -> Result<Self, Damaged> {
        let mut ledger = Self { counters, ..Self::default() };
        for object in objects {
            ledger.counters.note(&object);
            ledger.intent.put(object);
        }
        ledger.vlans.set_range(ledger.intent.global.vlans);
        ledger.vxlans.set_range(ledger.intent.global.vxlans);
        ledger.rebuild_networks()?;
        ledger.rebuild_pools()?;
        ledger.rebuild_holders()?;
        Ok(ledger)
    }

    fn rebuild_networks(&mut self) -> Result<(), Damaged> {
        let networks: Vec<_> = self.intent.networks.values().cloned().collect();
        for network in networks {
            let tag = network.tag.number();
            let pool = self.tags_mut(network.tag.encap());
            if !pool.is_available(tag) {
                return Err(Damaged::Tag { network: network.key.to_string(), tag });
            }
            pool.take(tag);
            self.holdings.insert(network.key, Holdings::new(network.subnet, network.gateway));
        }
        Ok(())
    }

    fn rebuild_pools(&mut self) -> Result<(), Damaged> {
        for group in self.intent.groups.values() {
            let spec = &group.spec;
            let Some(pool) = spec.pool else { continue };
            let network = NetworkKey::new(spec.key.tenant.clone(), spec.network.clone());
            let key = || Key::EndpointGroup(spec.key.clone()).to_string();
            let holdings = self.holdings.get_mut(&network);
            let holdings = holdings.ok_or_else(|| no_network(key(), &network))?;
            let carved = holdings.carve("ipPool", &spec.key.group, pool);
            carved
                .map_err(|_refused| Damaged::Address { key: key(), address: pool.to_string() })?;
        }
        Ok(())
    }

    fn rebuild_holders(&mut self) -> Result<(), Damaged> {
        let endpoints = self.intent.endpoints.values().map(|endpoint| {
            let holder = Holder::Endpoint(endpoint.id.clone());
            (endpoint.network.clone(), endpoint.address, holder, endpoint.id.to_string())
        });
        let leases = self.intent.leases.values().map(|lease| {
            let holder = Holder::Lease(lease.claim.clone());
            (lease.network.clone(), lease.address, holder, lease.key().to_string())
        });
        let services = self.intent.services.values().map(|service| {
            let key = &service.spec.key;
            let holder = Holder::Service(key.clone());
            (service.spec.network_key(), service.vip, holder, key.to_string())
        });
        for (network, address, holder, key) in endpoints.chain(leases).chain(services) {
            let Some(holdings) = self.holdings.get_mut(&network) else {
                return Err(no_network(key, &network));
            };
            if is_had_by_its_endpoint(holdings.holder(address), &holder) {
                continue;
            }
            let taken = holdings.pool_at(address).take(address, holder);
            taken.map_err(|_why| Damaged::Address { key, address: address.to_string() })?;
        }
        for endpoint in self.intent.endpoints.values() {
            if let Some(holdings) = self.holdings.get_mut(&endpoint.network) {
                holdings.add_mac(endpoint.mac, endpoint.id.clone());
            }
        }
        Ok(())
    }
}

/// An endpoint may have an address that is reserved for it: both are stored, and it has the address.
const fn is_had_by_its_endpoint(now: Option<&Holder>, next: &Holder) -> bool {
    matches!((now, next), (Some(Holder::Endpoint(_)), Holder::Lease(Claim { owner: Some(_), .. })))
}

fn no_network(key: String, network: &NetworkKey) -> Damaged {
    Damaged::NoNetwork { key, network: network.to_string() }
}

/// Who asks for an address, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) group: Option<&'a GroupName>,
    pub(super) group_id: Option<Group>,
    pub(super) wanted: Option<Ipv4Addr>,
    /// Names an address may be reserved for, the one that lasts longest last.
    pub(super) names: &'a [&'a str],
    pub(super) order: Order,
    pub(super) purpose: Purpose,
}

/// What an address is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Endpoint,
    Reservation,
}

impl Asking<'_> {
    /// Whether an address that has no endpoint, but a claim, is this asker's.
    fn take(&self, address: Ipv4Addr, claim: &Claim) -> Result<Ipv4Addr, Refused> {
        let is_for_it = match &claim.owner {
            Some(owner) => self.names.contains(&owner.as_str()),
            // What nobody owns is taken by who asks for it, but not set aside a second time.
            None => claim.left.is_some() || self.purpose == Purpose::Endpoint,
        };
        if !is_for_it {
            let (address, owner) = (address.to_string(), claim.to_string());
            let value = address.clone();
            return Err(Refused::new("ipAddress", &value, Reason::AddressTaken { address, owner }));
        }
        // A stale table grants the address what its last endpoint was granted. To the same group that
        // is nothing new; to another it has to be gone first. A reservation grants nothing yet.
        let granted =
            |left: crate::pool::Departed| claim.owner.is_none() || left.group != self.group_id;
        match claim.left {
            Some(left) if self.purpose == Purpose::Endpoint && granted(left) => {
                Err(leaving(address))
            }
            Some(_) | None => Ok(address),
        }
    }
}

fn leaving(address: Ipv4Addr) -> Refused {
    Refused::new("ipAddress", &address, Reason::AddressLeaving { address: address.to_string() })
}
