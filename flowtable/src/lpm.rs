//! Longest-prefix match per tenant. Tenants use the same addresses, so each has its own pair of
//! tries; a lookup in one can never see another's prefixes. Walked on a cache miss only.

use std::net::IpAddr;

use prefix_trie::PrefixMap;

use crate::entry::Prefix;
use crate::exact::ExactMap;
use crate::ids::Vrf;

/// A table from (tenant, prefix) to `V`.
#[derive(Debug, Clone)]
pub struct Lpm<V> {
    vrfs: ExactMap<Vrf, Tries<V>>,
    len: usize,
}

#[derive(Debug, Clone)]
struct Tries<V> {
    v4: PrefixMap<(u32, u8), V>,
    v6: PrefixMap<(u128, u8), V>,
}

impl<V> Default for Lpm<V> {
    fn default() -> Self {
        Self { vrfs: ExactMap::default(), len: 0 }
    }
}

impl<V> Default for Tries<V> {
    fn default() -> Self {
        Self { v4: PrefixMap::new(), v6: PrefixMap::new() }
    }
}

impl<V> Lpm<V> {
    /// Stores `value` under `prefix`; returns the value it replaces.
    pub fn insert(&mut self, vrf: Vrf, prefix: Prefix, value: V) -> Option<V> {
        let tries = self.vrfs.entry(vrf).or_default();
        let replaced = match prefix.address() {
            IpAddr::V4(ip) => tries.v4.insert((ip.to_bits(), prefix.length()), value),
            IpAddr::V6(ip) => tries.v6.insert((ip.to_bits(), prefix.length()), value),
        };
        self.len += usize::from(replaced.is_none());
        replaced
    }

    /// Removes exactly `prefix`, not what it covers; returns its value.
    pub fn remove(&mut self, vrf: Vrf, prefix: Prefix) -> Option<V> {
        let tries = self.vrfs.get_mut(&vrf)?;
        let removed = match prefix.address() {
            IpAddr::V4(ip) => tries.v4.remove(&(ip.to_bits(), prefix.length())),
            IpAddr::V6(ip) => tries.v6.remove(&(ip.to_bits(), prefix.length())),
        };
        if tries.v4.is_empty() && tries.v6.is_empty() {
            self.vrfs.remove(&vrf);
        }
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// The longest prefix of the tenant that covers `ip`, and its value.
    #[must_use]
    pub fn lookup(&self, vrf: Vrf, ip: IpAddr) -> Option<(Prefix, &V)> {
        let tries = self.vrfs.get(&vrf)?;
        let (address, len, value) = match ip {
            IpAddr::V4(ip) => {
                let ((bits, len), value) = tries.v4.get_lpm(&(ip.to_bits(), 32))?;
                (IpAddr::V4(bits.into()), len, value)
            }
            IpAddr::V6(ip) => {
                let ((bits, len), value) = tries.v6.get_lpm(&(ip.to_bits(), 128))?;
                (IpAddr::V6(bits.into()), len, value)
            }
        };
        let prefix = Prefix::new(address, len);
        debug_assert!(prefix.is_ok(), "a trie made a prefix longer than its address");
        prefix.ok().map(|prefix| (prefix, value))
    }

    /// Number of prefixes of all tenants.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// No prefix in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}
