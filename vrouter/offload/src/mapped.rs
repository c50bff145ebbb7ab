//! Maps that the engine shares with the programs by memory: read and written without system calls,
//! through atomics only, because programs do so at the same time.

use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// A value of a mapped array.
///
/// # Safety
/// All of it is atomics, for which any bits are valid, its size is a multiple of 8 without padding,
/// and it is laid out as the programs have it.
pub(crate) unsafe trait Shared: Sync {}

/// `struct flow_slot` of the programs.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Slot {
    /// The flow's; with [`crate::flows::STOPPED`] no flow's.
    pub(crate) incarnation: AtomicU32,
    pub(crate) out_life: AtomicU32,
    /// Out-port, set, rewrites, DSCP, way, longest frame: see `Place` in `flows.rs`.
    pub(crate) place: AtomicU64,
    /// Expected target and source MAC, then the rewritten ones.
    pub(crate) macs: [AtomicU64; 3],
    pub(crate) revision: AtomicU64,
    pub(crate) packets: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

const _: () = assert!(size_of::<Slot>() == 64, "one cache line, as the programs have it");

/// `struct flow_words` of the programs.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Words {
    pub(crate) alive_until: AtomicU64,
    pub(crate) valid_since: [AtomicU64; flowtable::hot::SETS],
    pub(crate) samples_lost: AtomicU64,
}

/// `struct flow_end` of the programs.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct End {
    /// The interface index in the low half, the life in the high one.
    pub(crate) who: AtomicU64,
    pub(crate) sample_rate: AtomicU32,
    _unused: AtomicU32,
    pub(crate) sampled_from: AtomicU64,
    _unused_too: AtomicU64,
}

const _: () = assert!(size_of::<End>() == 32, "half a cache line, as the programs have it");

// SAFETY: atomics of 4 and 8 bytes, 64 bytes in all without padding, in the order of the programs.
unsafe impl Shared for Slot {}
// SAFETY: atomics of 8 bytes, in the order of the programs.
unsafe impl Shared for Words {}
// SAFETY: atomics of 4 and 8 bytes, 32 bytes in all without padding, in the order of the programs;
// the halves of the first are in memory as `flows.rs` joins them.
unsafe impl Shared for End {}

/// The values of an array map, mapped for as long as this lives.
#[derive(Debug)]
pub(crate) struct Mapped<T: Shared> {
    values: NonNull<T>,
    len: usize,
    of: PhantomData<T>,
}

// SAFETY: it gives out shared references to `T` only, which is `Sync`; unmapping may be done by any
// thread.
unsafe impl<T: Shared> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Mapped<T> {}

impl<T: Shared> Mapped<T> {
    /// Maps the `len` values of an array map made with `BPF_F_MMAPABLE`, whose value size is that of
    /// `T`. `len` is not 0.
    pub(crate) fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let (bytes, access) = (size_of::<T>() * len, libc::PROT_READ | libc::PROT_WRITE);
        let (nowhere, fd) = (std::ptr::null_mut(), map.as_raw_fd());
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours. The
        // kernel refuses a length beyond the map's.
        let at = unsafe { libc::mmap(nowhere, bytes, access, libc::MAP_SHARED, fd, 0) };
        let values = NonNull::new(at.cast()).filter(|_| at != libc::MAP_FAILED);
        let values = values.ok_or_else(io::Error::last_os_error)?;
        Ok(Self { values, len, of: PhantomData })
    }
}

impl<T: Shared> Deref for Mapped<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `new` mapped `len` values of `T`, page-aligned, for as long as `self` lives. Any
        // bits are valid, and who else writes them does so atomically: `Shared` says so.
        unsafe { std::slice::from_raw_parts(self.values.as_ptr(), self.len) }
    }
}

impl<T: Shared> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this, and nobody has a reference into it any more.
        let result =
            unsafe { libc::munmap(self.values.as_ptr().cast(), size_of::<T>() * self.len) };
        debug_assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
}
