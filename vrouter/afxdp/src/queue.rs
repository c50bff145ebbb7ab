//! An `AF_XDP` socket on one queue of one device.

use std::error::Error as _;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use xsk_rs::socket::SocketCreateError;
use xsk_rs::{CompQueue, FillQueue, RxQueue, TxQueue};

use crate::umem::{RING_SIZE, Umem};

/// `setsockopt` level and option of `linux/if_xdp.h` (6.17 and later), which libc lacks.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// Frames that one wake-up sends; the kernel's default of 32 would leave the rest to later loops.
const TX_BUDGET: libc::c_int = 1024;
const _: () = assert!(TX_BUDGET as u32 <= RING_SIZE, "the kernel refuses more than the ring");

/// Packets in flight to slow receivers count against the socket's send buffer; the default holds
/// about 90 frames.
const SEND_BUFFER_BYTES: libc::c_int = 16 << 20;

const BUSY_RETRY: Duration = Duration::from_millis(10);
const BUSY_LIMIT: Duration = Duration::from_secs(2);

/// A socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The kernel refused the socket: no such device or queue, or the queue is taken.
    #[error("AF_XDP socket on {ifname} queue {queue}")]
    Bind {
        /// The device.
        ifname: String,
        /// Its queue.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// This UMEM has a socket on that queue already.
    #[error("{ifname} queue {queue} is already open")]
    AlreadyOpen {
        /// The device.
        ifname: String,
        /// Its queue.
        queue: u32,
    },
    /// A socket option was refused.
    #[error("option {option} of the AF_XDP socket")]
    Option {
        /// Its name in the kernel's headers.
        option: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// What the kernel counted on a socket (`XDP_STATISTICS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XskStats {
    /// Frames dropped for other reasons than those below, such as being too long for a buffer.
    pub rx_dropped: u64,
    /// Frames dropped because the worker did not keep up.
    pub rx_ring_full: u64,
    /// Frames that found no empty buffer.
    pub rx_fill_ring_empty: u64,
    /// Bad buffer addresses given to the kernel: a bug of ours.
    pub rx_invalid: u64,
    /// Bad descriptors given to the kernel: a bug of ours.
    pub tx_invalid: u64,
    /// Wake-ups that found nothing to send.
    pub tx_ring_empty: u64,
}

impl std::ops::AddAssign for XskStats {
    fn add_assign(&mut self, other: Self) {
        self.rx_dropped += other.rx_dropped;
        self.rx_ring_full += other.rx_ring_full;
        self.rx_fill_ring_empty += other.rx_fill_ring_empty;
        self.rx_invalid += other.rx_invalid;
        self.tx_invalid += other.tx_invalid;
        self.tx_ring_empty += other.tx_ring_empty;
    }
}

/// A bound socket with its four rings, not yet part of a worker's I/O.
#[derive(Debug)]
pub struct XskQueue {
    pub(crate) rx: RxQueue,
    pub(crate) tx: TxQueue,
    pub(crate) fill: FillQueue,
    pub(crate) comp: CompQueue,
    pub(crate) umem: Umem,
}

impl XskQueue {
    /// Opens queue `queue` of device `ifname` of the calling thread's network namespace. A queue
    /// whose last socket was just closed is busy for some milliseconds; that is waited for.
    ///
    /// # Errors
    /// See [`QueueError`]; needs `CAP_NET_RAW` and `CAP_NET_ADMIN`.
    pub fn open(umem: &Umem, ifname: &str, queue: u32) -> Result<Self, QueueError> {
        let start = Instant::now();
        let (tx, rx, shared) = loop {
            let error = match umem.bind(ifname, queue) {
                Ok(rings) => break rings,
                Err(error) => into_io(&error),
            };
            let busy = error.raw_os_error() == Some(libc::EBUSY);
            if !busy || start.elapsed() > BUSY_LIMIT {
                return Err(QueueError::Bind { ifname: ifname.to_owned(), queue, source: error });
            }
            std::thread::sleep(BUSY_RETRY);
        };
        let Some((fill, comp)) = shared else {
            return Err(QueueError::AlreadyOpen { ifname: ifname.to_owned(), queue });
        };
        let opened = Self { rx, tx, fill, comp, umem: umem.clone() };
        opened.set_send_options()?;
        Ok(opened)
    }

    /// The socket, for [`crate::XdpProgram::set_socket`].
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the rings keep the socket open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }

    /// What the kernel counted since the socket was opened.
    ///
    /// # Errors
    /// [`QueueError::Option`] when the kernel refuses.
    pub fn statistics(&self) -> Result<XskStats, QueueError> {
        let stats = self
            .rx
            .fd()
            .xdp_statistics()
            .map_err(|source| QueueError::Option { option: "XDP_STATISTICS", source })?;
        let no_buffer = stats.rx_fill_ring_empty_descs();
        Ok(XskStats {
            // In copy mode the kernel counts a frame that finds no buffer in both.
            rx_dropped: stats.rx_dropped().saturating_sub(no_buffer),
            rx_ring_full: stats.rx_ring_full(),
            rx_fill_ring_empty: no_buffer,
            rx_invalid: stats.rx_invalid_descs(),
            tx_invalid: stats.tx_invalid_descs(),
            tx_ring_empty: stats.tx_ring_empty_descs(),
        })
    }

    fn set_send_options(&self) -> Result<(), QueueError> {
        let budget = self.set_option(libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, TX_BUDGET);
        if let Err(source) = budget {
            // Kernels before 6.17 do not know the option: they send 32 frames a wake-up, and the
            // worker's loop wakes again for the rest.
            let unknown = [Some(libc::ENOPROTOOPT), Some(libc::EOPNOTSUPP), Some(libc::EINVAL)];
            if !unknown.contains(&source.raw_os_error()) {
                return Err(QueueError::Option { option: "XDP_MAX_TX_SKB_BUDGET", source });
            }
        }
        self.set_option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
            .map_err(|source| QueueError::Option { option: "SO_SNDBUFFORCE", source })
    }

    fn set_option(&self, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
        // SAFETY: `value` is an int for the whole call, and the length says so.
        let result = unsafe {
            libc::setsockopt(
                self.rx.fd().as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn into_io(error: &SocketCreateError) -> io::Error {
    let cause = error.source().and_then(|s| s.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error.to_string()),
    }
}
