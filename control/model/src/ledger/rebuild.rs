//! How everything that is handed out is rebuilt from stored objects.

use super::holdings::Holdings;
use super::{Counters, Ledger};
use crate::intent::Object;
use crate::key::{Key, NetworkKey};
use crate::pool::{Claim, Holder};

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
            self.holdings.insert(network.key.clone(), Holdings::new(&network));
        }
        Ok(())
    }

    fn rebuild_pools(&mut self) -> Result<(), Damaged> {
        for group in self.intent.groups.values() {
            let spec = &group.spec;
            if spec.pool.is_none() && spec.pool6.is_none() {
                continue;
            }
            let network = NetworkKey::new(spec.key.tenant.clone(), spec.network.clone());
            let key = || Key::EndpointGroup(spec.key.clone()).to_string();
            let holdings = self.holdings.get_mut(&network);
            let holdings = holdings.ok_or_else(|| no_network(key(), &network))?;
            holdings
                .carve(spec)
                .map_err(|refused| Damaged::Address { key: key(), address: refused.value })?;
        }
        Ok(())
    }

    fn rebuild_holders(&mut self) -> Result<(), Damaged> {
        let endpoints = self.intent.endpoints.values().flat_map(|endpoint| {
            let held = |address| {
                let holder = Holder::Endpoint(endpoint.id.clone());
                (endpoint.network.clone(), address, holder, endpoint.id.to_string())
            };
            endpoint.addresses().map(held)
        });
        let leases = self.intent.leases.values().map(|lease| {
            let holder = Holder::Lease(lease.claim.clone());
            (lease.network.clone(), lease.address, holder, lease.key().to_string())
        });
        let services = self.intent.services.values().map(|service| {
            let key = &service.spec.key;
            let holder = Holder::Service(key.clone());
            (service.spec.network_key(), service.vip.into(), holder, key.to_string())
        });
        for (network, address, holder, key) in endpoints.chain(leases).chain(services) {
            let Some(holdings) = self.holdings.get_mut(&network) else {
                return Err(no_network(key, &network));
            };
            if is_had_by_its_endpoint(holdings.holder(address), &holder) {
                continue;
            }
            let taken = holdings.take(address, holder);
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
