//! Exact-match tables of the snapshot: `hashbrown` with `foldhash`, whose seed is drawn anew for
//! every table. Off the per-packet path of known flows; those are in [`crate::cache::FlowCache`].

/// A table from one value to one value. Make it with `ExactMap::default()`.
pub type ExactMap<K, V> = hashbrown::HashMap<K, V, foldhash::fast::RandomState>;
