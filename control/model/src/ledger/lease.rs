//! Addresses without an endpoint: reserved ones, and ones that are on their way back.
//!
//! A reservation with an owner outlives the endpoints that use it. An address whose endpoint has left
//! is kept until the caller says that every node has forgotten it ([`Ledger::let_go`]): a table that
//! is not up to date would grant its next holder what the last one was granted.

use std::net::{IpAddr, Ipv4Addr};

use super::address::{Asking, Purpose};
use super::endpoint::not_chosen;
use super::{Change, Holdings, Ledger, Outcome, unchanged};
use crate::endpoint::{AddressLease, Endpoint, LeaseSpec, Served, WantedAddress};
use crate::intent::Object;
use crate::key::{Key, LeaseKey};
use crate::name::Owner;
use crate::pool::{Claim, Departed, Holder, Order};
use crate::refusal::{Reason, Refused};

/// The longest step of the clock ([`Ledger::pass`]). A reservation made within a step lasts that much
/// longer: never shorter than asked.
pub const CLOCK_STEP_SECONDS: u64 = 5;

/// Addresses that one write gives back, far from the 128 keys that an etcd takes at once
/// (`--max-txn-ops`): housekeeping that a store refuses would be refused for ever.
pub const AT_ONCE: usize = 64;

impl Ledger {
    /// Reserves an address; the same request of an owner gives the same address.
    pub(super) fn reserve(&mut self, spec: &LeaseSpec) -> Result<Outcome, Refused> {
        self.check_member(&spec.network, spec.group.as_ref(), "endpointGroup")?;
        let step_end = Served(self.counters.served.saturating_add(CLOCK_STEP_SECONDS));
        let expires = spec.ttl.map(|ttl| ttl.from(step_end));
        if let Some(lease) = self.reserved_before(spec) {
            return Ok(self.prolonged(&AddressLease { expires, ..lease }));
        }
        if let Some(address) = spec.wanted.address().filter(|ip| self.is_had_by_owner(spec, *ip)) {
            let claim = Claim { owner: spec.owner.clone(), left: None };
            let network = spec.network.clone();
            let lease = AddressLease { network, address, claim, expires };
            return Ok(self.commit_one(Object::AddressLease(lease)));
        }
        let missing = || Refused::new("networkName", &spec.network, Reason::NetworkNotFound);
        let order = self.intent.global.allocation;
        let holdings = self.holdings.get_mut(&spec.network).ok_or_else(missing)?;
        let address = chosen(holdings, spec, order)?;
        let left = holdings.holder(address).and_then(Holder::left);
        let claim = Claim { owner: spec.owner.clone(), left };
        let handed = holdings.hand_over(address, Holder::Lease(claim.clone()));
        handed.map_err(|why| not_chosen(address, &why))?;
        let network = spec.network.clone();
        Ok(self.commit_one(Object::AddressLease(AddressLease { network, address, claim, expires })))
    }

    /// What its owner has reserved already, also while an endpoint uses it.
    fn reserved_before(&self, spec: &LeaseSpec) -> Option<AddressLease> {
        let owner = spec.owner.as_ref()?;
        let mut leases = self.intent.leases.values();
        let is_same = |lease: &&AddressLease| {
            lease.network == spec.network
                && lease.claim.owner.as_ref() == Some(owner)
                && spec.wanted.is_met_by(lease.address)
        };
        leases.find(is_same).cloned()
    }

    fn prolonged(&mut self, lease: &AddressLease) -> Outcome {
        let before = self.intent.leases.get(&lease.key());
        let object = Object::AddressLease(lease.clone());
        if before == Some(lease) { unchanged(object) } else { self.commit_one(object) }
    }

    /// Whether the wanted address is the very one that an endpoint of the owner's name has now.
    fn is_had_by_owner(&self, spec: &LeaseSpec, address: IpAddr) -> bool {
        let Some(owner) = &spec.owner else { return false };
        let key = LeaseKey { network: spec.network.clone(), address };
        self.endpoint_at(&key).is_some_and(|endpoint| {
            let names = [endpoint.id.as_str(), endpoint.host.container_name.as_str()];
            names.contains(&owner.as_str())
        })
    }

    /// The endpoint that has an address of a network.
    #[must_use]
    pub fn endpoint_at(&self, key: &LeaseKey) -> Option<&Endpoint> {
        match self.holder_of(key)? {
            Holder::Endpoint(id) => self.intent.endpoint(id),
            Holder::Gateway | Holder::Service(_) | Holder::Lease(_) => None,
        }
    }

    /// What becomes of a reservation when an endpoint takes it up.
    pub(super) fn taken_up(&self, key: &LeaseKey) -> Option<Change> {
        let lease = self.intent.leases.get(key)?;
        if lease.claim.owner.is_none() {
            return Some(Change::Remove(Key::AddressLease(key.clone())));
        }
        let claim = Claim { left: None, ..lease.claim.clone() };
        let taken = AddressLease { claim, ..lease.clone() };
        if taken == *lease { None } else { Some(Change::Put(Object::AddressLease(taken))) }
    }

    /// What stays of an endpoint's addresses when it leaves.
    pub(super) fn left_behind(&self, endpoint: &Endpoint) -> Vec<AddressLease> {
        let network = &endpoint.network;
        let left = Some(Departed { group: self.group_id(network, endpoint.group.as_ref()) });
        let lease = |address| {
            let reserved = self.intent.leases.get(&LeaseKey { network: network.clone(), address });
            let owner = reserved.and_then(|lease| lease.claim.owner.clone());
            let expires = reserved.and_then(|lease| lease.expires);
            let claim = Claim { owner, left };
            AddressLease { network: network.clone(), address, claim, expires }
        };
        endpoint.addresses().map(lease).collect()
    }

    /// Ends a reservation, as its owner. What an endpoint uses it keeps for as long as it lives; an
    /// address nobody has is fine, so that a release can be repeated.
    ///
    /// # Errors
    /// [`Refused`] when somebody else has it, or the network does not exist.
    pub fn release(
        &mut self,
        key: &LeaseKey,
        owner: Option<&Owner>,
    ) -> Result<Vec<Change>, Refused> {
        self.require_network(&key.network, "networkName")?;
        match self.intent.leases.get(key) {
            Some(lease) if lease.is_reserved() && lease.claim.owner.as_ref() != owner => {
                let reason = Reason::NotOwner { owner: lease.claim.to_string() };
                let asker = owner.map_or("", Owner::as_str);
                Err(Refused::new("owner", asker, reason))
            }
            Some(lease) if lease.is_reserved() => self.cancel(key),
            None if self.holder_of(key).is_some() => self.cancel(key),
            Some(_) | None => Ok(Vec::new()),
        }
    }

    /// Ends a reservation, whoever has it.
    pub(super) fn cancel(&mut self, key: &LeaseKey) -> Result<Vec<Change>, Refused> {
        let refuse = |reason| Refused::new("address", key, reason);
        match (self.intent.leases.get(key), self.holder_of(key)) {
            (Some(lease), _) if lease.is_reserved() => {
                let ended = self.ended(&lease.clone());
                Ok(self.commit(vec![ended]))
            }
            (Some(_), _) => {
                Err(refuse(Reason::AddressLeaving { address: key.address.to_string() }))
            }
            (None, Some(Holder::Endpoint(id))) => {
                Err(refuse(Reason::LeaseHasEndpoint { endpoint: id.to_string() }))
            }
            (None, Some(Holder::Service(service))) => {
                Err(refuse(Reason::LeaseHasService { service: service.to_string() }))
            }
            (None, Some(Holder::Gateway | Holder::Lease(_)) | None) => {
                Err(refuse(Reason::LeaseNotFound))
            }
        }
    }

    /// The clock goes on: ends reservations whose time is up and that no endpoint uses, at most
    /// [`AT_ONCE`]; none when there are no more. At most [`CLOCK_STEP_SECONDS`] at a time. While no
    /// reservation ends, the clock need not go.
    pub fn pass(&mut self, seconds: u64) -> Vec<Change> {
        if !self.intent.leases.values().any(|lease| lease.expires.is_some()) {
            return Vec::new();
        }
        let seconds = seconds.min(CLOCK_STEP_SECONDS);
        self.counters.served = self.counters.served.saturating_add(seconds);
        let now = self.served();
        let over = self.intent.leases.values().filter(|lease| {
            let used = matches!(self.holder_of(&lease.key()), Some(Holder::Endpoint(_)));
            !used && lease.expires.is_some_and(|end| end <= now)
        });
        let over: Vec<AddressLease> = over.take(AT_ONCE).cloned().collect();
        let changes = over.iter().map(|lease| self.ended(lease)).collect();
        self.commit(changes)
    }

    /// Every node has forgotten the endpoints that had these addresses. Others are fine.
    pub fn let_go<'a>(&mut self, keys: impl IntoIterator<Item = &'a LeaseKey>) -> Vec<Change> {
        let mut changes = Vec::new();
        for key in keys {
            let Some(lease) = self.intent.leases.get(key).filter(|l| l.claim.left.is_some()) else {
                continue;
            };
            let claim = Claim { left: None, ..lease.claim.clone() };
            let lease = AddressLease { claim, ..lease.clone() };
            changes.push(self.settled(lease));
        }
        self.commit(changes)
    }

    /// A reservation that has ended: gone, or only on its way back.
    fn ended(&mut self, lease: &AddressLease) -> Change {
        let claim = Claim { owner: None, left: lease.claim.left };
        self.settled(AddressLease { claim, expires: None, ..lease.clone() })
    }

    /// Brings a lease without endpoint into its pool: kept if there is a reason to, else freed.
    fn settled(&mut self, lease: AddressLease) -> Change {
        let keep = lease.is_reserved() || lease.claim.left.is_some();
        if let Some(holdings) = self.holdings.get_mut(&lease.network) {
            holdings.set_claim(lease.address, keep.then(|| lease.claim.clone()));
        }
        if keep {
            Change::Put(Object::AddressLease(lease))
        } else {
            Change::Remove(Key::AddressLease(lease.key()))
        }
    }

    fn holder_of(&self, key: &LeaseKey) -> Option<&Holder> {
        self.holdings.get(&key.network)?.holder(key.address)
    }
}

/// The address a reservation gets.
fn chosen(holdings: &Holdings, spec: &LeaseSpec, order: Order) -> Result<IpAddr, Refused> {
    let owner = spec.owner.as_ref().map_or("", Owner::as_str);
    let asking = Asking {
        group: spec.group.as_ref(),
        group_id: None,
        wanted: None::<Ipv4Addr>,
        names: &[owner],
        order,
        purpose: Purpose::Reservation,
    };
    Ok(match spec.wanted {
        WantedAddress::V4(wanted) => holdings.choose(&asking.wanting(wanted))?.into(),
        WantedAddress::V6(wanted) => holdings.choose6(&asking.wanting(wanted))?.into(),
    })
}

impl Holder {
    const fn left(&self) -> Option<Departed> {
        match self {
            Self::Lease(claim) => claim.left,
            Self::Gateway | Self::Endpoint(_) | Self::Service(_) => None,
        }
    }
}
