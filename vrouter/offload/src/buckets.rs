//! Which worker meets which flow: the programs put every flow into one of 256 buckets, both of its ways
//! into the same, and a worker has some of them.

use crate::object::{Offload, OffloadError};

/// As many as the programs have.
pub const BUCKETS: u16 = 256;

impl Offload {
    /// Shares the buckets among workers 0 to `workers - 1`, evenly.
    ///
    /// # Errors
    /// [`OffloadError::Map`].
    pub fn spread(&self, workers: u16) -> Result<(), OffloadError> {
        (0..BUCKETS).try_for_each(|bucket| self.set_bucket(bucket, bucket % workers.max(1)))
    }

    /// Flows of `bucket` (below [`BUCKETS`]) go to `worker` from now on. Programs that run meanwhile may
    /// still send a frame to the worker before: see [`flowtable::hot::HotTable::settle`].
    ///
    /// # Errors
    /// [`OffloadError::Map`].
    pub fn set_bucket(&self, bucket: u16, worker: u16) -> Result<(), OffloadError> {
        self.put("buckets", bucket.into(), &u32::from(worker).to_ne_bytes())
    }
}
