//! The frame region that all sockets of an engine share.
//!
//! The first socket of a UMEM can never be released (it borrows the UMEM's own descriptor in
//! libxdp), and it decides copy mode and wake-up flags for all later ones. So an anchor socket on
//! `lo` takes that place and stays for the UMEM's life. `lo` has one queue: a second UMEM in the
//! same network namespace is refused, which is why the daemon makes its UMEM in a private one.

use std::ffi::CString;
use std::io;
use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use packet_io::{FRAME_BYTES, HEADROOM};
use xsk_rs::config::{
    BindFlags, FrameSize, FrameSizeError, Interface, LibxdpFlags, QueueSize, QueueSizeError,
    SocketConfig, UmemConfig,
};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue};

use crate::table::Tables;

/// Bytes at the front of each frame that the kernel keeps.
pub(crate) const XDP_HEADROOM: usize = 256;
/// Bytes between the kernel's share and a received packet.
pub(crate) const FRAME_HEADROOM: u16 = 128;
/// Entries of each of a socket's four rings: the frames that an attached socket takes to receive
/// into.
pub const RING_SIZE: u32 = 2048;

const _: () = assert!(XDP_HEADROOM + FRAME_HEADROOM as usize == HEADROOM);

/// A UMEM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum UmemError {
    /// Zero frames.
    #[error("a frame region needs at least one frame")]
    NoFrames,
    /// The kernel or libxdp refused the region (memory, huge pages, privileges).
    #[error("creating the frame region")]
    Create(#[source] xsk_rs::umem::UmemCreateError),
    /// Headroom that xsk-rs refuses.
    #[error("frame geometry")]
    Geometry(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A frame size that xsk-rs refuses.
    #[error("frame size")]
    FrameSize(#[source] FrameSizeError),
    /// A ring size that xsk-rs refuses.
    #[error("ring size")]
    RingSize(#[source] QueueSizeError),
    /// The anchor socket on `lo` queue 0 was refused. Busy: this namespace has a UMEM already.
    #[error("anchor socket on lo")]
    Anchor(#[source] xsk_rs::socket::SocketCreateError),
    /// The thread that builds descriptor tables did not start.
    #[error("descriptor thread")]
    Thread(#[source] io::Error),
}

/// Which pages back a frame region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// The system's ordinary pages.
    Normal,
    /// Huge pages, which must have been reserved (`vm.nr_hugepages`).
    Huge,
}

/// A region of frames and its descriptor tables. A clone is another handle to the same region.
#[derive(Debug, Clone)]
pub struct Umem {
    region: Arc<Region>,
}

#[derive(Debug)]
struct Region {
    xsk: xsk_rs::Umem,
    frames: NonZeroU32,
    base: Base,
    tables: Tables,
    taken: AtomicBool,
    // Never used, only kept: see the module's comment. The mutex makes it shareable.
    _anchor: Mutex<Rings>,
}

type Rings = (TxQueue, RxQueue, Option<(FillQueue, CompQueue)>);

/// First byte of the region.
#[derive(Debug)]
struct Base(NonNull<u8>);

// SAFETY: an address; who may read or write which frame is decided by ownership of the frame's
// index, which `XskIo` keeps.
unsafe impl Send for Base {}
// SAFETY: as above.
unsafe impl Sync for Base {}

impl Umem {
    /// A region of `frames` frames of [`FRAME_BYTES`] on ordinary pages, anchored in the network
    /// namespace of the calling thread, whose `lo` must be up.
    ///
    /// # Errors
    /// See [`UmemError`]; needs `CAP_NET_RAW`.
    pub fn new(frames: u32) -> Result<Self, UmemError> {
        Self::with_pages(frames, Pages::Normal)
    }

    /// The same, on the given kind of pages.
    ///
    /// # Errors
    /// See [`UmemError`].
    pub fn with_pages(frames: u32, pages: Pages) -> Result<Self, UmemError> {
        let frames = NonZeroU32::new(frames).ok_or(UmemError::NoFrames)?;
        let rings = QueueSize::new(RING_SIZE).map_err(UmemError::RingSize)?;
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(FRAME_BYTES as u32).map_err(UmemError::FrameSize)?)
            .frame_headroom(u32::from(FRAME_HEADROOM))
            .fill_queue_size(rings)
            .comp_queue_size(rings)
            .build()
            .map_err(|error| UmemError::Geometry(Box::new(error)))?;
        let (xsk, descriptors) =
            xsk_rs::Umem::new(config, frames, pages == Pages::Huge).map_err(UmemError::Create)?;
        let base = base_of(&xsk, descriptors.first().ok_or(UmemError::NoFrames)?);
        let anchor = bind(&xsk, "lo", 0).map_err(UmemError::Anchor)?;
        let region = Region {
            xsk,
            frames,
            base,
            tables: Tables::new(descriptors)?,
            taken: AtomicBool::new(false),
            _anchor: Mutex::new(anchor),
        };
        Ok(Self { region: Arc::new(region) })
    }

    /// Builds all descriptor tables now, which takes about 15 ms for each of
    /// [`crate::START_OFFSETS`] at 8192 frames, instead of each one when it is first needed. For
    /// measurements that start at once.
    ///
    /// # Errors
    /// [`UmemError::Create`] when memory ran out.
    pub fn prepare(&self) -> Result<(), UmemError> {
        self.region.tables.build_all(self.region.frames)
    }

    /// Number of frames.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.region.frames.get()
    }

    /// Whether `other` is a handle to the same region.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.region, &other.region)
    }

    /// Marks the region as owned by one `XskIo`; false when it was already.
    pub(crate) fn take(&self) -> bool {
        !self.region.taken.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.region.tables
    }

    /// First byte of buffer `index`, which must be below [`Umem::frames`].
    #[inline]
    pub(crate) fn buffer(&self, index: u32) -> *mut u8 {
        assert!(index < self.frames(), "frame {index} is of another region");
        // SAFETY: the region is one allocation of `frames * FRAME_BYTES` bytes and the assertion
        // keeps the sum inside it.
        unsafe { self.region.base.0.as_ptr().add(index as usize * FRAME_BYTES) }
    }

    /// Sets the length of the packet that `desc` sends. The caller owns its frame.
    #[inline]
    pub(crate) fn set_len(&self, desc: &mut FrameDesc, len: usize) {
        // SAFETY: the descriptor is of this UMEM, and the frame is in user space and the caller's.
        let mut data = unsafe { self.region.xsk.data_mut(desc) };
        data.cursor().set_pos(len);
    }

    /// A socket of this UMEM on a queue of a device of the calling thread's namespace.
    pub(crate) fn bind(
        &self,
        ifname: &str,
        queue: u32,
    ) -> Result<Rings, xsk_rs::socket::SocketCreateError> {
        bind(&self.region.xsk, ifname, queue)
    }
}

/// `xsk-rs` hands out slices of single frames only, and from them the pointer to the whole region
/// has to be recovered, once: slicing through its accessors costs a descriptor for each access.
fn base_of(xsk: &xsk_rs::Umem, first: &FrameDesc) -> Base {
    let mut first = *first;
    let offset = first.addr();
    // SAFETY: the descriptor is of this UMEM and nobody else knows the region yet.
    let mut data = unsafe { xsk.data_mut(&mut first) };
    let address = data.contents_mut().as_mut_ptr().expose_provenance() - offset;
    let base = std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: mmap does not place a region at zero.
    Base(unsafe { NonNull::new_unchecked(base) })
}

fn bind(
    xsk: &xsk_rs::Umem,
    ifname: &str,
    queue: u32,
) -> Result<Rings, xsk_rs::socket::SocketCreateError> {
    let config = SocketConfig::builder()
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP)
        .build();
    // A name with a zero byte can't be a device; the empty name is refused by the kernel.
    let interface = Interface::new(CString::new(ifname).unwrap_or_default());
    // SAFETY: program loading is inhibited, which is the condition for binding a pair twice.
    unsafe { xsk_rs::Socket::new(config, xsk, &interface, queue) }
}
