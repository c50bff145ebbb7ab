//! Addresses of one family of one network, or of one group's pool: who holds which, the lowest free one, and the
//! texts Contiv shows. Every address that is handed out has a holder, so that a second asker can be
//! told who has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use flowtable::ids::Group;

use crate::endpoint::fnv1a;
use crate::key::ServiceKey;
use crate::name::{EndpointId, Owner};
use crate::range::{Address, AddressRange};
use crate::ranges::Ranges;

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// The network's gateway.
    Gateway,
    /// An endpoint.
    Endpoint(EndpointId),
    /// A service.
    Service(ServiceKey),
    /// No endpoint, and yet not free.
    Lease(Claim),
}

/// Why an address without endpoint is not free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Whom it is reserved for; `None`: for whoever asks for this very address, or nobody.
    pub owner: Option<Owner>,
    /// The endpoint that had it last, while nodes may still have that endpoint in their tables.
    pub left: Option<Departed>,
}

/// What a table that is not up to date still grants an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departed {
    /// The group of the endpoint that had it; `None`: it was in no group.
    pub group: Option<Group>,
}

/// Which of the free addresses is given to one who asks for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The lowest, as in Contiv.
    #[default]
    Lowest,
    /// The next from a place that follows from the asker's name: the same name mostly gets the same
    /// address, and an address that was given back is not the next to be given out.
    Spread,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => f.write_str("the gateway"),
            Self::Endpoint(id) => write!(f, "endpoint {id}"),
            Self::Service(key) => write!(f, "service {key}"),
            Self::Lease(claim) => claim.fmt(f),
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.owner, self.left) {
            (Some(owner), _) => write!(f, "{owner}"),
            (None, Some(_)) => f.write_str("an endpoint that has left"),
            (None, None) => f.write_str("a reservation without owner"),
        }
    }
}

/// Why an address can't be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unavailable {
    /// The pool does not have it.
    Outside,
    /// Somebody has it.
    Held(Holder),
    /// It is part of a group's own pool.
    Carved,
}

impl Order {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lowest => "lowest",
            Self::Spread => "spread",
        }
    }
}

/// The addresses that can be handed out, and who has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressPool<A> {
    hosts: Option<AddressRange<A>>,
    taken: Ranges,
    holders: BTreeMap<A, Holder>,
    /// Addresses without endpoint that have an owner: looked up for every endpoint that is made.
    reserved: BTreeMap<Owner, BTreeSet<A>>,
}

impl<A: Address> AddressPool<A> {
    /// Nothing handed out; `None` has no address at all.
    #[must_use]
    pub fn new(hosts: Option<AddressRange<A>>) -> Self {
        let (taken, holders, reserved) = (Ranges::default(), BTreeMap::new(), BTreeMap::new());
        Self { hosts, taken, holders, reserved }
    }

    /// The lowest address nobody has, which stays so.
    #[must_use]
    pub fn lowest(&self) -> Option<A> {
        self.lowest_from(0)
    }

    /// The address that is next for `asker`.
    #[must_use]
    pub fn next(&self, order: Order, asker: &str) -> Option<A> {
        match order {
            Order::Lowest => self.lowest(),
            Order::Spread => self.spread(asker).or_else(|| self.lowest()),
        }
    }

    fn spread(&self, asker: &str) -> Option<A> {
        let hosts = self.hosts?;
        let all_but_one = hosts.last().number() - hosts.first().number();
        // Larger pools are used as far as a hash reaches.
        let count = all_but_one.saturating_add(1);
        self.lowest_from(u128::from(fnv1a(asker.as_bytes())) % count)
    }

    /// The lowest free address that has at least `skipped` others of the pool before it.
    fn lowest_from(&self, skipped: u128) -> Option<A> {
        let hosts = self.hosts?;
        let (first, last) = (hosts.first().number(), hosts.last().number());
        self.taken.lowest_gap(first + skipped, last).map(A::at)
    }

    /// Whether `address` can be taken.
    ///
    /// # Errors
    /// Why not, with the holder if there is one.
    pub fn check(&self, address: A) -> Result<(), Unavailable> {
        if !self.hosts.is_some_and(|hosts| hosts.contains(address)) {
            return Err(Unavailable::Outside);
        }
        if let Some(holder) = self.holders.get(&address) {
            return Err(Unavailable::Held(holder.clone()));
        }
        if self.taken.contains(address.number()) { Err(Unavailable::Carved) } else { Ok(()) }
    }

    /// Gives `address` to `holder`.
    ///
    /// # Errors
    /// As [`Self::check`]; nothing changes then.
    pub fn take(&mut self, address: A, holder: Holder) -> Result<(), Unavailable> {
        self.check(address)?;
        self.taken.insert(address.number(), address.number());
        if let Some(owner) = holder.reserved_for() {
            self.reserved.entry(owner.clone()).or_default().insert(address);
        }
        self.holders.insert(address, holder);
        Ok(())
    }

    /// Takes `address` back; what nobody has is fine.
    pub fn release(&mut self, address: A) {
        let Some(holder) = self.holders.remove(&address) else { return };
        self.taken.remove(address.number(), address.number());
        let Some(owner) = holder.reserved_for() else { return };
        if let Some(reserved) = self.reserved.get_mut(owner) {
            reserved.remove(&address);
            if reserved.is_empty() {
                self.reserved.remove(owner);
            }
        }
    }

    /// Who has `address`.
    #[must_use]
    pub fn holder(&self, address: A) -> Option<&Holder> {
        self.holders.get(&address)
    }

    /// Everybody who has an address, by address.
    pub fn holders(&self) -> impl Iterator<Item = (A, &Holder)> {
        self.holders.iter().map(|(address, holder)| (*address, holder))
    }

    /// The first address that is reserved for one of these names and that no endpoint has.
    #[must_use]
    pub fn reserved_for(&self, names: &[&str]) -> Option<A> {
        let reserved = names.iter().filter_map(|name| self.reserved.get(*name)?.first());
        reserved.min().copied()
    }

    /// Addresses that are free once every node has forgotten who had them.
    pub fn leaving(&self) -> impl Iterator<Item = A> {
        let is_leaving = |holder: &Holder| match holder {
            Holder::Lease(claim) => claim.owner.is_none() && claim.left.is_some(),
            Holder::Gateway | Holder::Endpoint(_) | Holder::Service(_) => false,
        };
        self.holders().filter(move |(_, holder)| is_leaving(holder)).map(|(address, _)| address)
    }

    /// The first address of `range` that is taken or not in the pool.
    #[must_use]
    pub fn first_unavailable(&self, range: AddressRange<A>) -> Option<A> {
        if !self.hosts.is_some_and(|hosts| hosts.covers(range)) {
            return Some(range.first());
        }
        let taken = self.taken.clipped(range.first().number(), range.last().number());
        taken.iter().next().map(|(first, _)| A::at(first))
    }

    /// Sets `range` aside for a group; see [`Self::first_unavailable`].
    pub fn carve(&mut self, range: AddressRange<A>) {
        self.taken.insert(range.first().number(), range.last().number());
    }

    /// Takes a carved range back.
    pub fn restore(&mut self, range: AddressRange<A>) {
        self.taken.remove(range.first().number(), range.last().number());
    }

    /// How many addresses are taken.
    #[must_use]
    pub fn allocated_count(&self) -> u128 {
        self.taken.count()
    }

    /// How many addresses are free.
    #[must_use]
    pub fn available_count(&self) -> u128 {
        self.free().count()
    }

    /// Taken addresses, as `10.1.1.1-10.1.1.4, 10.1.1.6`.
    #[must_use]
    pub fn allocated(&self) -> String {
        self.taken.text(A::at)
    }

    /// Free addresses, as [`Self::allocated`].
    #[must_use]
    pub fn available(&self) -> String {
        self.free().text(A::at)
    }

    fn free(&self) -> Ranges {
        let Some(hosts) = self.hosts else { return Ranges::default() };
        self.taken.gaps(hosts.first().number(), hosts.last().number())
    }
}

impl Holder {
    /// The owner of a reservation that no endpoint uses.
    const fn reserved_for(&self) -> Option<&Owner> {
        match self {
            Self::Lease(claim) => claim.owner.as_ref(),
            Self::Gateway | Self::Endpoint(_) | Self::Service(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::subnet::Subnet;
    use crate::subnet6::Subnet6;

    fn pool(subnet: &str) -> AddressPool<Ipv4Addr> {
        AddressPool::new(Subnet::parse("subnet", subnet).unwrap().hosts())
    }

    fn pool6(subnet: &str) -> AddressPool<Ipv6Addr> {
        AddressPool::new(Subnet6::parse("ipv6Subnet", subnet).unwrap().hosts())
    }

    fn endpoint(id: &str) -> Holder {
        Holder::Endpoint(EndpointId::parse("endpointID", id).unwrap())
    }

    #[test]
    fn available_texts_of_contivs_subnet_table() {
        let table = [
            ("10.100.100.194-10.100.100.222/27", "10.100.100.194-10.100.100.222"),
            ("10.1.1.5-10.1.1.15/27", "10.1.1.5-10.1.1.15"),
            ("10.1.1.0/27", "10.1.1.1-10.1.1.30"),
            ("10.1.1.0/28", "10.1.1.1-10.1.1.14"),
            ("10.1.1.0/29", "10.1.1.1-10.1.1.6"),
            ("10.1.1.0/30", "10.1.1.1-10.1.1.2"),
            ("10.1.1.0/31", ""),
        ];
        for (subnet, available) in table {
            assert_eq!(pool(subnet).available(), available, "{subnet}");
            assert_eq!(pool(subnet).allocated(), "");
        }
    }

    #[test]
    fn a_taken_address_names_its_holder_and_is_free_after_release() {
        let mut pool = pool("10.1.1.0/24");
        assert_eq!(pool.lowest(), Some(Ipv4Addr::new(10, 1, 1, 1)));
        pool.take(Ipv4Addr::new(10, 1, 1, 1), endpoint("a")).unwrap();
        pool.take(Ipv4Addr::new(10, 1, 1, 5), endpoint("b")).unwrap();
        assert_eq!(pool.allocated(), "10.1.1.1, 10.1.1.5");
        assert_eq!(pool.available(), "10.1.1.2-10.1.1.4, 10.1.1.6-10.1.1.254");
        let second = pool.take(Ipv4Addr::new(10, 1, 1, 5), endpoint("c"));
        assert_eq!(second, Err(Unavailable::Held(endpoint("b"))));
        for end in [0, 255] {
            let refused = pool.take(Ipv4Addr::new(10, 1, 1, end), endpoint("c"));
            assert_eq!(refused, Err(Unavailable::Outside));
        }
        pool.release(Ipv4Addr::new(10, 1, 1, 1));
        pool.release(Ipv4Addr::new(10, 1, 1, 5));
        assert_eq!(
            (pool.allocated(), pool.available()),
            (String::new(), "10.1.1.1-10.1.1.254".into())
        );
    }

    #[test]
    fn a_pool_larger_than_any_table_is_handed_out_from_its_start_or_spread() {
        let mut pool = pool6("2016::/1");
        assert_eq!(pool.lowest().unwrap().to_string(), "::2");
        let one = pool.next(Order::Spread, "web-1").unwrap();
        pool.take(one, endpoint("a")).unwrap();
        assert_eq!(pool.next(Order::Spread, "web-1").unwrap().to_bits(), one.to_bits() + 1);
        assert_ne!(pool.next(Order::Spread, "web-2"), Some(one));
        assert_eq!(pool.allocated(), one.to_string());
        assert_eq!(pool.available_count(), (1 << 127) - 3);
    }

    #[test]
    fn what_is_reserved_is_found_by_its_owner_while_no_endpoint_has_it() {
        let mut pool = pool6("2016::/64");
        let owner = Owner::parse("owner", "web-1").unwrap();
        let claim = Claim { owner: Some(owner), left: None };
        for host in [9, 5] {
            let address = Ipv6Addr::from_bits((0x2016 << 112) + host);
            pool.take(address, Holder::Lease(claim.clone())).unwrap();
        }
        let found = |pool: &AddressPool<Ipv6Addr>| {
            pool.reserved_for(&["x", "web-1"]).map(|address| address.to_string())
        };
        assert_eq!(found(&pool).as_deref(), Some("2016::5"));
        pool.release("2016::5".parse().unwrap());
        pool.take("2016::5".parse().unwrap(), endpoint("a")).unwrap();
        assert_eq!(found(&pool).as_deref(), Some("2016::9"));
        pool.release("2016::9".parse().unwrap());
        assert_eq!((found(&pool), pool.reserved.len()), (None, 0));
    }

    /// A step: what to do, and to which host.
    type Step = (u8, u8);

    /// Does the steps to a pool whose hosts are `first + 2` to `first + 12`, and to a plain set.
    fn compare<A: Address>(mut pool: AddressPool<A>, first: A, steps: &[Step]) {
        let at = |host: u8| A::at(first.number() + u128::from(host));
        let host = |address: A| (address.number() - first.number()) as u8;
        let mut held: BTreeSet<u8> = BTreeSet::new();
        for (step, wanted) in steps {
            let lowest = (2..=12).find(|h| !held.contains(h));
            assert_eq!(pool.lowest(), lowest.map(at));
            match (step, pool.lowest()) {
                (0, Some(free)) => {
                    assert_eq!(pool.take(free, endpoint("x")), Ok(()));
                    assert!(held.insert(host(free)), "no duplicate");
                }
                (1, _) => {
                    let free = (2..=12).contains(wanted) && !held.contains(wanted);
                    assert_eq!(pool.take(at(*wanted), endpoint("x")).is_ok(), free);
                    held.extend(free.then_some(*wanted));
                }
                _ => {
                    pool.release(at(*wanted));
                    held.remove(wanted);
                }
            }
            let holders: BTreeSet<u8> = pool.holders().map(|(a, _)| host(a)).collect();
            assert_eq!(holders, held);
            assert_eq!(pool.allocated_count(), held.len() as u128);
            assert_eq!(pool.available_count(), 11 - held.len() as u128);
        }
    }

    proptest! {
        #[test]
        fn the_pool_equals_a_plain_set_in_both_families(
            steps in proptest::collection::vec((0u8..3, 0u8..16), 0..120)
        ) {
            compare(pool("10.1.1.2-10.1.1.12/28"), Ipv4Addr::new(10, 1, 1, 0), &steps);
            compare(pool6("2016::2-2016::c/64"), Ipv6Addr::from_bits(0x2016 << 112), &steps);
        }
    }
}
