//! The service table: which backend answers a flow to a virtual address (VIP).
//!
//! Consistent hashing after Maglev (Eisenbud et al., NSDI 2016, section 3.4): every backend walks
//! the slots of a table in an order of its own and takes turns with the others in claiming the next
//! free one, weight many turns each. Nearly all slots of a backend survive a change of the others,
//! and every node makes the same table of the same backends, in whatever order they are given.
//!
//! The pipeline does not ask it yet: services are to come.
//!
//! Immutable: a changed service is made anew and the unchanged ones are handed on by [`Arc`].

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rapidhash::v3::{RapidSecrets, rapidhash_v3_seeded};

use crate::exact::ExactMap;
use crate::ids::{OutOfRange, Vrf};

/// Most backends of a service.
pub const BACKENDS_MAX: usize = 1000;

/// What a client sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The client's routing instance.
    pub vrf: Vrf,
    /// The virtual address.
    pub address: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, host order.
    pub port: u16,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vrf, address, protocol, port } = self;
        write!(f, "service {address} protocol {protocol} port {port} in VRF {vrf}")
    }
}

/// A backend's identity, given by the control plane: its slots depend on it and nothing else, so a
/// backend that moves to another address keeps its flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(pub u32);

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A backend's share of new flows, relative to the others of its service: 1..=100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u8);

impl Weight {
    /// Smallest weight; the one to use when all are equal.
    pub const MIN: Self = Self(1);
    /// Largest weight.
    pub const MAX: Self = Self(100);

    /// Checks the range.
    ///
    /// # Errors
    /// [`OutOfRange`] when `value` is not in 1..=100.
    pub const fn new(value: u32) -> Result<Self, OutOfRange> {
        let (wide, first, last) = (value as u64, Self::MIN.0 as u64, Self::MAX.0 as u64);
        if wide < first || wide > last {
            return Err(OutOfRange { what: "weight", value: wide, first, last });
        }
        Ok(Self(value as u8))
    }

    /// The plain number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// One of those who answer for a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// Its identity.
    pub id: BackendId,
    /// Where it is, in the VRF of the service; of the address family of the service.
    pub address: IpAddr,
    /// Its port, host order.
    pub port: u16,
    /// Its share.
    pub weight: Weight,
}

/// Number of slots of a service, a prime. Two bytes each. When it changes, nearly all keys move; so
/// a service that is to grow gets the size of what it will be, and keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum TableSize {
    /// 251 slots, half a KiB: up to two equal backends.
    Small,
    /// 4,093 slots, 8 KiB: up to ten equal backends.
    Medium,
    /// 65,537 slots, 128 KiB, the size of the paper. A backend that comes or goes moves, beside its
    /// own keys, a quarter of as many others with 40 equal backends, half with 100, and never more
    /// than 1 % of all keys (measured by `flowtable/tests/service.rs`).
    #[default]
    Large,
}

impl TableSize {
    /// The number of slots.
    #[must_use]
    pub const fn slot_count(self) -> u32 {
        match self {
            Self::Small => 251,
            Self::Medium => 4_093,
            Self::Large => 65_537,
        }
    }

    /// The smallest size that serves these backends well; with equal weights [`Self::Small`] up to
    /// 2 backends, [`Self::Medium`] up to 10, and [`Self::Large`] above. The lightest has 100 slots
    /// or more, so that rounding to whole slots costs it less than 1 % of its share; where there
    /// are more than two, 400, so that changes move few keys of others.
    #[must_use]
    pub fn fitting(backends: &[Backend]) -> Self {
        let weights = || backends.iter().map(|backend| u64::from(backend.weight.0));
        let (sum, least) = (weights().sum::<u64>(), weights().min().unwrap_or(1));
        let fits = |size: Self, slots: u64| u64::from(size.slot_count()) * least >= slots * sum;
        if fits(Self::Small, 100) {
            Self::Small
        } else if fits(Self::Medium, 400) {
            Self::Medium
        } else {
            Self::Large
        }
    }
}

/// Why a service or a table of them was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadService {
    /// More than [`BACKENDS_MAX`].
    #[error("{key}: {count} backends are more than {BACKENDS_MAX}")]
    TooManyBackends {
        /// The service.
        key: ServiceKey,
        /// Number of backends given.
        count: usize,
    },
    /// Two backends with one identity.
    #[error("{key}: backend {id} is given twice")]
    DuplicateBackend {
        /// The service.
        key: ServiceKey,
        /// The identity in question.
        id: BackendId,
    },
    /// IPv4 for IPv6 or the reverse; there is no translation between them.
    #[error("{key}: backend {id} at {address} is of the other address family")]
    OtherFamily {
        /// The service.
        key: ServiceKey,
        /// The backend in question.
        id: BackendId,
        /// Its address.
        address: IpAddr,
    },
    /// Two services with one key.
    #[error("{0} is given twice")]
    DuplicateService(ServiceKey),
}

/// A virtual address with those who answer for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Service {
    key: ServiceKey,
    size: TableSize,
    /// In the order of their identities.
    backends: Box<[Backend]>,
    /// By slot, positions in `backends`; empty without backends.
    slots: Box<[u16]>,
}

impl Service {
    /// Makes the table of a service. No backends is fine: then nobody answers. Takes in the order
    /// of a millisecond at [`TableSize::Large`], so it belongs outside the workers.
    ///
    /// # Errors
    /// [`BadService`] for more than 1,000 backends, an identity that occurs twice, and a backend
    /// whose address is of another family than the virtual one.
    pub fn new(
        key: ServiceKey,
        size: TableSize,
        mut backends: Vec<Backend>,
    ) -> Result<Self, BadService> {
        let count = backends.len();
        if count > BACKENDS_MAX {
            return Err(BadService::TooManyBackends { key, count });
        }
        backends.sort_unstable_by_key(|backend| backend.id);
        for pair in backends.windows(2) {
            if pair[0].id == pair[1].id {
                return Err(BadService::DuplicateBackend { key, id: pair[0].id });
            }
        }
        for &Backend { id, address, .. } in &backends {
            if address.is_ipv4() != key.address.is_ipv4() {
                return Err(BadService::OtherFamily { key, id, address });
            }
        }
        let slots = populate(&backends, size.slot_count());
        Ok(Self { key, size, backends: backends.into_boxed_slice(), slots })
    }

    /// What clients send to.
    #[must_use]
    pub const fn key(&self) -> ServiceKey {
        self.key
    }

    /// The size of its table.
    #[must_use]
    pub const fn size(&self) -> TableSize {
        self.size
    }

    /// Its backends, in the order of their identities.
    #[must_use]
    pub const fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The backend for a flow with this hash; all 64 bits should be good, the high ones decide.
    /// `None` without backends.
    #[inline]
    #[must_use]
    pub fn pick(&self, hash: u64) -> Option<&Backend> {
        // A multiplication instead of a remainder: both map the hashes evenly to the slots.
        let slot = (u128::from(hash) * self.slots.len() as u128) >> 64;
        let position = *self.slots.get(slot as usize)?;
        self.backends.get(usize::from(position))
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, size, backends, slots: _ } = self;
        let mut text = f.debug_struct("Service");
        text.field("key", key).field("size", size).field("backends", backends);
        text.finish_non_exhaustive()
    }
}

/// All services of a node.
#[derive(Debug, Clone, Default)]
pub struct ServiceTable {
    services: ExactMap<ServiceKey, Arc<Service>>,
}

impl ServiceTable {
    /// A table of these services.
    ///
    /// # Errors
    /// [`BadService::DuplicateService`] when two have the same key.
    pub fn build(services: impl IntoIterator<Item = Arc<Service>>) -> Result<Self, BadService> {
        let mut table = Self::default();
        for service in services {
            let key = service.key;
            if table.services.insert(key, service).is_some() {
                return Err(BadService::DuplicateService(key));
            }
        }
        Ok(table)
    }

    /// The service at this key.
    #[inline]
    #[must_use]
    pub fn lookup(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// Number of services.
    #[must_use]
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// No service in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }
}

/// A backend on its walk through the slots.
struct Walk {
    next: u32,
    skip: u32,
    /// Turns earned, in parts of the largest weight.
    earned: u8,
}

impl Walk {
    /// Two independent hashes of the identity give the start and the stride; as the number of slots
    /// is prime, every stride visits all of them.
    fn new(backend: &Backend, slot_count: u32, heaviest: u8) -> Self {
        let hash = |seed| {
            let secrets = RapidSecrets::seed_cpp(seed);
            rapidhash_v3_seeded(&backend.id.0.to_le_bytes(), &secrets)
        };
        Self {
            next: (hash(1) % u64::from(slot_count)) as u32,
            skip: (hash(2) % u64::from(slot_count - 1)) as u32 + 1,
            // Everybody has a turn in the first round, however light.
            earned: heaviest - backend.weight.0,
        }
    }

    fn step(&mut self, slot_count: u32) -> usize {
        let slot = self.next;
        self.next = (slot + self.skip) % slot_count;
        slot as usize
    }
}

/// Maglev's Pseudocode 1, with turns by weight.
fn populate(backends: &[Backend], slot_count: u32) -> Box<[u16]> {
    const FREE: u16 = u16::MAX;
    let Some(heaviest) = backends.iter().map(|backend| backend.weight.0).max() else {
        return Box::default();
    };
    let mut walks: Vec<_> =
        backends.iter().map(|backend| Walk::new(backend, slot_count, heaviest)).collect();
    let mut slots = vec![FREE; slot_count as usize].into_boxed_slice();
    let mut free = slot_count;
    let turns = (0..backends.len()).cycle();
    for position in turns {
        let walk = &mut walks[position];
        walk.earned += backends[position].weight.0;
        if walk.earned < heaviest {
            continue;
        }
        walk.earned -= heaviest;
        let mut slot = walk.step(slot_count);
        while slots[slot] != FREE {
            slot = walk.step(slot_count);
        }
        slots[slot] = position as u16;
        free -= 1;
        if free == 0 {
            break;
        }
    }
    slots
}
