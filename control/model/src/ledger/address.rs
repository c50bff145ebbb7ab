//! The addresses of one family of a network, and who gets which. A group with a pool has addresses of
//! its own, carved from the network's.

use std::collections::BTreeMap;

use flowtable::ids::Group;

use crate::name::GroupName;
use crate::pool::{AddressPool, Claim, Holder, Order, Unavailable};
use crate::range::{Address, AddressRange};
use crate::refusal::{Reason, Refused};

#[derive(Debug, Clone, PartialEq, Eq)]
struct GroupPool<A> {
    range: AddressRange<A>,
    addresses: AddressPool<A>,
}

/// What refusals call a network's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    /// The subnet as its user wrote it.
    pub(super) subnet: String,
    /// The block that the subnet is or is part of.
    pub(super) block: String,
}

/// The addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Addresses<A> {
    hosts: Option<AddressRange<A>>,
    names: Names,
    own: AddressPool<A>,
    groups: BTreeMap<GroupName, GroupPool<A>>,
}

impl<A: Address> Addresses<A> {
    pub(super) fn new(hosts: Option<AddressRange<A>>, gateway: Option<A>, names: Names) -> Self {
        let mut own = AddressPool::new(hosts);
        if let Some(gateway) = gateway {
            // A gateway outside the range is in no pool, so that nothing needs to hold it.
            let outside = own.take(gateway, Holder::Gateway);
            debug_assert!(matches!(outside, Ok(()) | Err(Unavailable::Outside)));
        }
        Self { hosts, names, own, groups: BTreeMap::new() }
    }

    pub(super) const fn own(&self) -> &AddressPool<A> {
        &self.own
    }

    /// The group's own pool, or the network's.
    pub(super) fn group(&self, group: &GroupName) -> &AddressPool<A> {
        self.groups.get(group).map_or(&self.own, |pool| &pool.addresses)
    }

    fn pools(&self) -> impl Iterator<Item = &AddressPool<A>> {
        self.groups.values().map(|pool| &pool.addresses).chain([&self.own])
    }

    /// How many addresses have a holder, gateways aside.
    pub(super) fn held_count(&self) -> usize {
        let holders = self.pools().flat_map(AddressPool::holders);
        holders.filter(|(_, holder)| **holder != Holder::Gateway).count()
    }

    /// Whether a group can have `range` as its pool.
    pub(super) fn check_carve(
        &self,
        field: &'static str,
        range: AddressRange<A>,
    ) -> Result<(), Refused> {
        let refuse = |reason| Err(Refused::new(field, &range, reason));
        if !self.hosts.is_some_and(|hosts| hosts.covers(range)) {
            let (pool, subnet) = (range.to_string(), self.names.block.clone());
            return refuse(Reason::PoolOutside { pool, subnet });
        }
        match self.own.first_unavailable(range) {
            Some(taken) => refuse(Reason::PoolTaken { address: taken.to_string() }),
            None => Ok(()),
        }
    }

    /// Gives a group its pool, as checked.
    pub(super) fn carve(&mut self, group: &GroupName, range: AddressRange<A>) {
        self.own.carve(range);
        let addresses = AddressPool::new(Some(range));
        self.groups.insert(group.clone(), GroupPool { range, addresses });
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
    pub(super) fn choose(&self, asking: &Asking<'_, A>) -> Result<A, Refused> {
        let own_pool = asking.group.and_then(|group| self.groups.get(group));
        let pool = own_pool.map_or(&self.own, |pool| &pool.addresses);
        let name =
            || own_pool.map_or_else(|| self.names.subnet.clone(), |pool| pool.range.to_string());
        // One of another pool leads to a refusal: any other address would not be the promised one.
        let mut pools = [pool].into_iter().chain(self.pools());
        let reserved = || pools.find_map(|pool| pool.reserved_for(asking.names));
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

    fn unavailable(&self, address: A, why: Unavailable, pool: String) -> Refused {
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

    pub(super) fn holder(&self, address: A) -> Option<&Holder> {
        let group = self.groups.values().find(|pool| pool.range.contains(address));
        group.map_or(&self.own, |pool| &pool.addresses).holder(address)
    }

    /// Gives an address that nobody has to `holder`.
    pub(super) fn take(&mut self, address: A, holder: Holder) -> Result<(), Unavailable> {
        self.pool_at(address).take(address, holder)
    }

    /// Gives `address`, as chosen, to `holder`; a reservation it replaces ends.
    pub(super) fn hand_over(&mut self, address: A, holder: Holder) -> Result<(), Unavailable> {
        let pool = self.pool_at(address);
        pool.release(address);
        pool.take(address, holder)
    }

    pub(super) fn release(&mut self, address: A) {
        self.pool_at(address).release(address);
    }

    /// Changes what keeps an address without endpoint from being free; `None`: nothing. One that an
    /// endpoint has stays its own.
    pub(super) fn set_claim(&mut self, address: A, claim: Option<Claim>) {
        let pool = self.pool_at(address);
        if !matches!(pool.holder(address), Some(Holder::Lease(_))) {
            return;
        }
        pool.release(address);
        if let Some(claim) = claim {
            let taken = pool.take(address, Holder::Lease(claim));
            debug_assert_eq!(taken, Ok(()), "it was just released");
        }
    }

    fn pool_at(&mut self, address: A) -> &mut AddressPool<A> {
        let group = self.groups.values_mut().find(|pool| pool.range.contains(address));
        group.map_or(&mut self.own, |pool| &mut pool.addresses)
    }
}

/// Who asks for an address, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking<'a, A> {
    pub(super) group: Option<&'a GroupName>,
    pub(super) group_id: Option<Group>,
    pub(super) wanted: Option<A>,
    /// Names an address may be reserved for, the one that lasts longest last.
    pub(super) names: &'a [&'a str],
    pub(super) order: Order,
    pub(super) purpose: Purpose,
}

/// What an address is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Endpoint,
    /// An endpoint whose container has the address already.
    Running,
    Reservation,
}

impl<'a, A> Asking<'a, A> {
    /// The same question about an address of another family.
    pub(super) fn wanting<B>(self, wanted: Option<B>) -> Asking<'a, B> {
        let Self { group, group_id, wanted: _, names, order, purpose } = self;
        Asking { group, group_id, wanted, names, order, purpose }
    }
}

impl<A: Address> Asking<'_, A> {
    /// Whether an address that has no endpoint, but a claim, is this asker's.
    fn take(&self, address: A, claim: &Claim) -> Result<A, Refused> {
        let is_for_it = match &claim.owner {
            Some(owner) => self.names.contains(&owner.as_str()),
            // What nobody owns is taken by who asks for it, but not set aside a second time.
            None => claim.left.is_some() || self.purpose != Purpose::Reservation,
        };
        if !is_for_it {
            let (address, owner) = (address.to_string(), claim.to_string());
            let value = address.clone();
            return Err(Refused::new("ipAddress", &value, Reason::AddressTaken { address, owner }));
        }
        // A stale table grants the address what its last endpoint was granted. To the same group that
        // is nothing new; to another it has to be gone first. A reservation grants nothing yet, and a
        // container that runs sends with the address whether it waits or not.
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

fn leaving<A: Address>(address: A) -> Refused {
    Refused::new("ipAddress", &address, Reason::AddressLeaving { address: address.to_string() })
}
