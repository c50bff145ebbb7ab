//! Requests to the kernel's routing netlink: links, addresses, routes, neighbours.
//!
//! [`Netlink`] is one socket. It may be shared between threads: a request holds a lock from its
//! first byte to the end of its answer. Objects come back as plain structs of this module, never
//! as messages.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink's enums are open: a kernel may send messages and attributes nobody asked for"
)]

mod address;
mod error;
mod filter;
mod link;
mod neighbour;
mod route;
mod socket;

use std::sync::{Mutex, PoisonError};

use netlink_packet_route::RouteNetlinkMessage;

pub use address::Address;
pub use error::{Error, Operation};
pub use link::{Arp, Carrier, Link, VethSpec};
pub use neighbour::{Neighbour, NeighbourState};
pub use route::{Route, RouteInfo, RouteSpec};

pub(crate) use link::link_of;
pub(crate) use neighbour::entry_of;
pub(crate) use socket::{parse_datagram, receive};

use crate::namespace::Namespace;
use socket::RequestSocket;

/// A netlink socket, bound for good to the namespace it was opened in.
#[derive(Debug)]
pub struct Netlink {
    socket: Mutex<RequestSocket>,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// [`Error::Kernel`] when no socket is to be had.
    pub fn open() -> Result<Self, Error> {
        RequestSocket::open().map(|socket| Self { socket: Mutex::new(socket) })
    }

    /// Opens a socket in `namespace`.
    ///
    /// # Errors
    /// [`Error::Kernel`], [`Error::Namespace`].
    pub fn open_in(namespace: &Namespace) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }

    fn request(
        &self,
        operation: &Operation,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        // A poisoned lock only means that a request was cut short: its answer is skipped by number.
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.request(operation, message, flags)
    }

    fn dump(
        &self,
        operation: &Operation,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.dump(operation, message)
    }
}
