//! A database file whose room is taken when it grows. A file with holes would take new commits until
//! the disk is full and then fail anywhere, also while it is recovered; this one fails to grow, and
//! what it has it can rewrite.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// The file.
#[derive(Debug)]
pub(crate) struct Reserving {
    file: File,
    backend: Box<dyn StorageBackend>,
}

impl Reserving {
    /// Opens the file, making it when it is not there.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        let backend = FileBackend::new(file.try_clone()?).map_err(io::Error::other)?;
        Ok(Self { file, backend: Box::new(backend) })
    }

    /// With something between this and the file, made of what is there.
    #[cfg(test)]
    pub(crate) fn through<B: StorageBackend>(
        self,
        wrap: impl FnOnce(Box<dyn StorageBackend>) -> B,
    ) -> Self {
        Self { file: self.file, backend: Box::new(wrap(self.backend)) }
    }

    fn reserve(&self, from: u64, to: u64) -> io::Result<()> {
        let offset = |bytes| i64::try_from(bytes).map_err(io::Error::other);
        let (start, length) = (offset(from)?, offset(to - from)?);
        match fallocate(&self.file, FallocateFlags::empty(), start, length) {
            Ok(()) => Ok(()),
            // Some network file systems can't: then as without.
            Err(Errno::EOPNOTSUPP) => self.backend.set_len(to),
            Err(error) => {
                // A part may have been taken.
                self.backend.set_len(from)?;
                Err(error.into())
            }
        }
    }
}

impl StorageBackend for Reserving {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let now = self.backend.len()?;
        if len > now { self.reserve(now, len) } else { self.backend.set_len(len) }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.backend.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}
