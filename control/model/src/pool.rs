//! Addresses of one network, or of one group's pool: who holds which, the lowest free one, and the
//! texts Contiv shows. Every address that is handed out has a holder, so that a second asker can be
//! told who has it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use flowtable::ids::Group;

use crate::endpoint::fnv1a;
use crate::key::ServiceKey;
use crate::name::{EndpointId, Owner};
use crate::ranges::Ranges;
use crate::subnet::AddressRange;

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
pub struct AddressPool {
    hosts: Option<AddressRange>,
    taken: Ranges,
    holders: BTreeMap<Ipv4Addr, Holder>,
}

impl AddressPool {
    /// Nothing handed out; `None` has no address at all.
    #[must_use]
    pub fn new(hosts: Option<AddressRange>) -> Self {
        Self { hosts, taken: Ranges::default(), holders: BTreeMap::new() }
    }

    /// The lowest address nobody has, which stays so.
    #[must_use]
    pub fn lowest(&self) -> Option<Ipv4Addr> {
        let hosts = self.hosts?;
        let lowest = self.taken.lowest_gap(hosts.first().to_bits(), hosts.last().to_bits());
        lowest.map(Ipv4Addr::from_bits)
    }

    /// The address that is next for `asker`.
    #[must_use]
    pub fn next(&self, order: Order, asker: &str) -> Option<Ipv4Addr> {
        match order {
            Order::Lowest => self.lowest(),
            Order::Spread => self.spread(asker).or_else(|| self.lowest()),
        }
    }

    fn spread(&self, asker: &str) -> Option<Ipv4Addr> {
        let hosts = self.hosts?;
        let (first, last) = (hosts.first().to_bits(), hosts.last().to_bits());
        let count = u64::from(last - first) + 1;
        let offset = u32::try_from(fnv1a(asker.as_bytes()) % count).ok()?;
        self.taken.lowest_gap(first + offset, last).map(Ipv4Addr::from_bits)
    }

    /// Whether `address` can be taken.
    ///
    /// # Errors
    /// Why not, with the holder if there is one.
    pub fn check(&self, address: Ipv4Addr) -> Result<(), Unavailable> {
        if !self.hosts.is_some_and(|hosts| hosts.contains(address)) {
            return Err(Unavailable::Outside);
        }
        if let Some(holder) = self.holders.get(&address) {
            return Err(Unavailable::Held(holder.clone()));
        }
        if self.taken.contains(address.to_bits()) { Err(Unavailable::Carved) } else { Ok(()) }
    }

    /// Gives `address` to `holder`.
    ///
    /// # Errors
    /// As [`Self::check`]; nothing changes then.
    pub fn take(&mut self, address: Ipv4Addr, holder: Holder) -> Result<(), Unavailable> {
        self.check(address)?;
        self.taken.insert(address.to_bits(), address.to_bits());
        self.holders.insert(address, holder);
        Ok(())
    }

    /// Takes `address` back; what nobody has is fine.
    pub fn release(&mut self, address: Ipv4Addr) {
        if self.holders.remove(&address).is_some() {
            self.taken.remove(address.to_bits(), address.to_bits());
        }
    }

    /// Who has `address`.
    #[must_use]
    pub fn holder(&self, address: Ipv4Addr) -> Option<&Holder> {
        self.holders.get(&address)
    }

    /// Everybody who has an address, by address.
    pub fn holders(&self) -> impl Iterator<Item = (Ipv4Addr, &Holder)> {
        self.holders.iter().map(|(address, holder)| (*address, holder))
    }

    /// Addresses that are free once every node has forgotten who had them.
    pub fn leaving(&self) -> impl Iterator<Item = Ipv4Addr> {
        let is_leaving = |holder: &Holder| match holder {
            Holder::Lease(claim) => claim.owner.is_none() && claim.left.is_some(),
            Holder::Gateway | Holder::Endpoint(_) | Holder::Service(_) => false,
        };
        self.holders().filter(move |(_, holder)| is_leaving(holder)).map(|(address, _)| address)
    }

    /// The first address of `range` that is taken or not in the pool.
    #[must_use]
    pub fn first_unavailable(&self, range: AddressRange) -> Option<Ipv4Addr> {
        if !self.hosts.is_some_and(|hosts| hosts.covers(range)) {
            return Some(range.first());
        }
        let taken = self.taken.clipped(range.first().to_bits(), range.last().to_bits());
        taken.iter().next().map(|(first, _)| Ipv4Addr::from_bits(first))
    }

    /// Sets `range` aside for a group; see [`Self::first_unavailable`].
    pub fn carve(&mut self, range: AddressRange) {
        self.taken.insert(range.first().to_bits(), range.last().to_bits());
    }

    /// Takes a carved range back.
    pub fn restore(&mut self, range: AddressRange) {
        self.taken.remove(range.first().to_bits(), range.last().to_bits());
    }

    /// How many addresses are taken.
    #[must_use]
    pub fn allocated_count(&self) -> u64 {
        self.taken.count()
    }

    /// How many addresses are free.
    #[must_use]
    pub fn available_count(&self) -> u64 {
        let Some(hosts) = self.hosts else { return 0 };
        self.taken.gaps(hosts.first().to_bits(), hosts.last().to_bits()).count()
    }

    /// Taken addresses, as `10.1.1.1-10.1.1.4, 10.1.1.6`.
    #[must_use]
    pub fn allocated(&self) -> String {
        self.taken.text(Ipv4Addr::from_bits)
    }

    /// Free addresses, as [`Self::allocated`].
    #[must_use]
    pub fn available(&self) -> String {
        let Some(hosts) = self.hosts else { return String::new() };
        let free = self.taken.gaps(hosts.first().to_bits(), hosts.last().to_bits());
        free.text(Ipv4Addr::from_bits)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::subnet::Subnet;

    fn pool(subnet: &str) -> AddressPool {
        AddressPool::new(Subnet::parse("subnet", subnet).unwrap().hosts())
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

    proptest! {
        #[test]
        fn the_pool_equals_a_plain_set(steps in proptest::collection::vec((0u8..3, 0u8..16), 0..120)) {
            let mut pool = pool("10.1.1.2-10.1.1.12/28");
            let mut held: BTreeSet<u8> = BTreeSet::new();
            for (step, host) in steps {
                let address = Ipv4Addr::new(10, 1, 1, host);
                let lowest = (2..=12).find(|h| !held.contains(h));
                prop_assert_eq!(pool.lowest(), lowest.map(|h| Ipv4Addr::new(10, 1, 1, h)));
                match (step, pool.lowest()) {
                    (0, Some(free)) => {
                        prop_assert_eq!(pool.take(free, endpoint("x")), Ok(()));
                        prop_assert!(held.insert(free.octets()[3]), "no duplicate");
                    }
                    (1, _) => {
                        let free = (2..=12).contains(&host) && !held.contains(&host);
                        prop_assert_eq!(pool.take(address, endpoint("x")).is_ok(), free);
                        if free { held.insert(host); }
                    }
                    _ => {
                        pool.release(address);
                        held.remove(&host);
                    }
                }
                let holders: BTreeSet<u8> = pool.holders().map(|(a, _)| a.octets()[3]).collect();
                prop_assert_eq!(&holders, &held);
                prop_assert_eq!(pool.allocated_count(), held.len() as u64);
            }
        }
    }
}
