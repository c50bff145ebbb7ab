//! Events of links, their filters and neighbours, as the kernel announces them.
//!
//! Announcements can be lost when the reader is slow. The kernel says so, and that comes out as
//! [`Event::Overrun`]: whoever keeps state from events must then read everything anew.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink's enums are open: a kernel may send messages and attributes nobody asked for"
)]

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::namespace::Namespace;
use crate::netlink::{
    Error, Link, Neighbour, Operation, entry_of, link_of, parse_datagram, receive,
};

/// linux/rtnetlink.h.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_TC: u32 = 4;
/// Room for some thousands of announcements; the kernel may grant less.
const RECEIVE_BUFFER_BYTES: libc::c_int = 1 << 20;

/// Something happened to a link, its filters or a neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The link left the namespace: deleted or moved away.
    LinkGone {
        /// Its index.
        index: u32,
        /// Its last name.
        name: String,
    },
    /// The link is new or different.
    LinkChanged(Link),
    /// The kernel learned or forgot something about a neighbour.
    NeighbourChanged {
        /// Index of the link.
        oif: u32,
        /// The neighbour's address.
        ip: IpAddr,
        /// What is known now; `None` when the entry was removed.
        neighbour: Option<Neighbour>,
    },
    /// A tc filter or queueing discipline was taken off a link.
    FilterGone {
        /// Index of the link.
        index: u32,
    },
    /// Announcements were lost.
    Overrun,
}

/// A subscription to these events of one namespace.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    pending: VecDeque<Event>,
}

impl Monitor {
    /// Subscribes in the calling thread's namespace. What happens after this returns is seen.
    ///
    /// # Errors
    /// [`Error::Kernel`] when no socket is to be had.
    pub fn open() -> Result<Self, Error> {
        subscribe().map(|socket| Self { socket, pending: VecDeque::new() }).map_err(failed)
    }

    /// Subscribes in `namespace`.
    ///
    /// # Errors
    /// [`Error::Kernel`], [`Error::Namespace`].
    pub fn open_in(namespace: &Namespace) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }

    /// The next event; `None` when nothing happened for `timeout`, or something that is no event
    /// of ours.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the socket fails, [`Error::Answer`] for what is not netlink.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Event>, Error> {
        if let Some(event) = self.pending.pop_front() {
            return Ok(Some(event));
        }
        if !readable(&self.socket, timeout).map_err(failed)? {
            return Ok(None);
        }
        match receive(&self.socket) {
            Ok(datagram) => {
                let messages = parse_datagram(&datagram)
                    .map_err(|source| Error::Answer { operation: operation(), source })?;
                let events = messages.iter().filter_map(|message| payload_event(&message.payload));
                self.pending.extend(events);
                Ok(self.pending.pop_front())
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Some(Event::Overrun)),
            Err(error) => Err(failed(error)),
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn subscribe() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_rx_buf_sz(RECEIVE_BUFFER_BYTES)?;
    socket.bind_auto()?;
    socket.add_membership(RTNLGRP_LINK)?;
    socket.add_membership(RTNLGRP_NEIGH)?;
    socket.add_membership(RTNLGRP_TC)?;
    Ok(socket)
}

fn readable(socket: &Socket, timeout: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    match poll(&mut wanted, timeout) {
        Ok(ready_count) => Ok(ready_count > 0),
        // A signal cut the wait short; the caller comes again.
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn payload_event(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Event> {
    match payload {
        NetlinkPayload::InnerMessage(inner) => event_of(inner),
        NetlinkPayload::Overrun(_) => Some(Event::Overrun),
        _ => None,
    }
}

fn event_of(message: &RouteNetlinkMessage) -> Option<Event> {
    match message {
        // A bridge announces a port that leaves it as a deleted link of its own family.
        RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)
            if message.header.interface_family != AddressFamily::Unspec =>
        {
            None
        }
        RouteNetlinkMessage::NewLink(message) => Some(Event::LinkChanged(link_of(message))),
        RouteNetlinkMessage::DelLink(message) => {
            let link = link_of(message);
            Some(Event::LinkGone { index: link.index, name: link.name })
        }
        RouteNetlinkMessage::NewNeighbour(message) => {
            let entry = entry_of(message)?;
            let neighbour = Some(entry.neighbour);
            Some(Event::NeighbourChanged { oif: entry.oif, ip: entry.ip, neighbour })
        }
        RouteNetlinkMessage::DelTrafficFilter(message)
        | RouteNetlinkMessage::DelQueueDiscipline(message) => {
            Some(Event::FilterGone { index: u32::try_from(message.header.index).ok()? })
        }
        RouteNetlinkMessage::DelNeighbour(message) => {
            let entry = entry_of(message)?;
            Some(Event::NeighbourChanged { oif: entry.oif, ip: entry.ip, neighbour: None })
        }
        _ => None,
    }
}

fn operation() -> Operation {
    Operation::new("watching links and neighbours", "")
}

fn failed(source: io::Error) -> Error {
    Error::Kernel { operation: operation(), source }
}
