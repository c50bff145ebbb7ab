//! The connection table: which packets belong to a connection that policy admitted.
//!
//! One [`ConnTable`] is shared by all workers. It is sharded by a keyed hash that is the same for
//! both directions; a shard's lock is taken to look a connection up for the first time, to make,
//! remove or list one. The path of every further packet, [`ConnTable::advance`], has a [`ConnRef`]
//! and touches two atomics: one packs the slot's incarnation with the state, so that a reference
//! to a connection that ended is detected and a state change can't hit its successor; the other
//! is the second of the last packet.
//!
//! Memory per connection: 16 bytes of atomics, 64 bytes under the lock and 9 bytes of index at a
//! load of 7/16 to 7/8, so 90 to 101 bytes; slots are made in chunks of 256 as shards need them
//! and are not given back.

mod budget;
mod shard;
mod slots;
mod state;
mod table;
mod tcp;
#[cfg(test)]
mod tests;
mod timeouts;
mod tuple;
mod types;

pub use state::State;
pub use table::ConnTable;
pub use timeouts::{Seconds, Timeouts};
pub use tuple::{Tuple, Way};
pub use types::{
    ConnConfig, ConnCounts, ConnRef, ConnStats, Hit, Limits, Opening, Outside, Owner, Pickup,
    Refused, Step,
};
