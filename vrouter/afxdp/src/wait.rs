//! Blocking an idle worker until a socket has frames or another thread wakes it.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use packet_io::{QueueId, Wake};

const WAKER: u64 = u64::MAX;

/// The sockets of a worker, watched.
#[derive(Debug)]
pub(crate) struct Waiter {
    epoll: Epoll,
    waker: Arc<Waker>,
}

#[derive(Debug)]
pub(crate) struct Waker(EventFd);

impl Wake for Waker {
    fn wake(&self) {
        // It fails only when the counter is full, and then the worker is woken already.
        self.0.write(1).ok();
    }
}

impl Waiter {
    pub(crate) fn new() -> Result<Self, Errno> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN, WAKER))?;
        Ok(Self { epoll, waker: Arc::new(Waker(event)) })
    }

    pub(crate) fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    pub(crate) fn add(&self, queue: QueueId, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        self.epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, u64::from(queue.0)))
    }

    pub(crate) fn remove(&self, socket: BorrowedFd<'_>) {
        // It fails only when the socket is not watched (any more), which is what is wanted.
        self.epoll.delete(socket).ok();
    }

    /// Returns the queue of a socket that failed (its device is gone): it would be reported at once
    /// again and again, so the caller removes it.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<QueueId> {
        let timeout = timeout.as_micros().div_ceil(1000).min(60_000) as u16;
        let mut events = [EpollEvent::empty(); 8];
        // An interrupted wait is a short one, which callers expect.
        let count = self.epoll.wait(&mut events, EpollTimeout::from(timeout)).unwrap_or(0);
        let mut failed = None;
        for event in &events[..count] {
            if event.data() == WAKER {
                // Empties the counter; empty already is fine.
                self.waker.0.read().ok();
            } else if event.events().intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
                failed = Some(QueueId(event.data() as u16));
            }
        }
        failed
    }
}
