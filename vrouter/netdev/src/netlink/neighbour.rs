//! The kernel's neighbour table: who answers to an address on a link.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
    NeighbourState as WireState,
};

use super::Netlink;
use super::address::family_of;
use super::error::{Error, Operation};

/// What the kernel knows of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its hardware address, once known; it may be out of date, see [`Neighbour::resolved`].
    pub mac: Option<[u8; 6]>,
    /// How far the kernel trusts that.
    pub state: NeighbourState,
}

impl Neighbour {
    /// The address to send to: known, and not disproved. A stale one counts, as it does for the
    /// kernel, which confirms it by using it.
    #[must_use]
    pub const fn resolved(self) -> Option<[u8; 6]> {
        match self.state {
            NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::NoArp
            | NeighbourState::Permanent => self.mac,
            NeighbourState::Unknown | NeighbourState::Incomplete | NeighbourState::Failed => None,
        }
    }
}

/// State of a neighbour (the `NUD_*` of linux/neighbour.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NeighbourState {
    /// Nothing is known and nobody asks.
    Unknown,
    /// Being asked for.
    Incomplete,
    /// Confirmed lately.
    Reachable,
    /// Confirmed once.
    Stale,
    /// In use, to be confirmed soon.
    Delay,
    /// Being confirmed.
    Probe,
    /// Does not answer.
    Failed,
    /// Needs no resolving.
    NoArp,
    /// Set by hand.
    Permanent,
}

impl Netlink {
    /// What the kernel knows of `ip` on link `oif`; `None` when it has no entry.
    ///
    /// # Errors
    /// [`Error`] for every failure but a missing entry.
    pub fn neighbour(&self, oif: u32, ip: IpAddr) -> Result<Option<Neighbour>, Error> {
        let operation = on_neighbour("looking up neighbour", oif, ip);
        let request = RouteNetlinkMessage::GetNeighbour(message(oif, ip));
        match self.request(&operation, request, 0) {
            Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) => Some(neighbour_of(message)),
                _ => None,
            })),
            Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the kernel resolve `ip` on link `oif`, as if it had a packet for it. The answer shows
    /// in [`Netlink::neighbour`] and as an event of [`crate::Monitor`].
    ///
    /// # Errors
    /// [`Error`], naming the neighbour.
    pub fn probe_neighbour(&self, oif: u32, ip: IpAddr) -> Result<(), Error> {
        let operation = on_neighbour("resolving neighbour", oif, ip);
        let mut entry = message(oif, ip);
        entry.header.flags = NeighbourFlags::Use;
        let request = RouteNetlinkMessage::NewNeighbour(entry);
        self.request(&operation, request, NLM_F_CREATE).map(drop)
    }

    /// Sets a permanent entry, replacing what was known.
    ///
    /// # Errors
    /// [`Error`], naming the neighbour.
    pub fn add_neighbour(&self, oif: u32, ip: IpAddr, mac: [u8; 6]) -> Result<(), Error> {
        let operation = on_neighbour("adding neighbour", oif, ip);
        let mut entry = message(oif, ip);
        entry.header.state = WireState::Permanent;
        entry.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        let request = RouteNetlinkMessage::NewNeighbour(entry);
        self.request(&operation, request, NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }
}

/// A neighbour with its place in the table.
pub(crate) struct Entry {
    pub(crate) oif: u32,
    pub(crate) ip: IpAddr,
    pub(crate) neighbour: Neighbour,
}

/// The entry that a message describes; `None` for families other than IP, such as a bridge's.
pub(crate) fn entry_of(message: &NeighbourMessage) -> Option<Entry> {
    let ip = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    Some(Entry { oif: message.header.ifindex, ip, neighbour: neighbour_of(message) })
}

fn neighbour_of(message: &NeighbourMessage) -> Neighbour {
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        // Not six bytes on some tunnels: no address that we could send to.
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    });
    Neighbour { mac, state: state_of(message.header.state) }
}

const fn state_of(state: WireState) -> NeighbourState {
    match state {
        WireState::Incomplete => NeighbourState::Incomplete,
        WireState::Reachable => NeighbourState::Reachable,
        WireState::Stale => NeighbourState::Stale,
        WireState::Delay => NeighbourState::Delay,
        WireState::Probe => NeighbourState::Probe,
        WireState::Failed => NeighbourState::Failed,
        WireState::Noarp => NeighbourState::NoArp,
        WireState::Permanent => NeighbourState::Permanent,
        // What a later kernel may add is nothing to rely on.
        _ => NeighbourState::Unknown,
    }
}

fn message(oif: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(ip);
    message.header.ifindex = oif;
    message.attributes = vec![NeighbourAttribute::Destination(ip.into())];
    message
}

fn on_neighbour(action: &'static str, oif: u32, ip: IpAddr) -> Operation {
    Operation::new(action, format_args!("{ip} on link {oif}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_or_unfinished_neighbour_is_not_resolved() {
        let mac = Some([2, 0, 0, 0, 0, 1]);
        for state in [NeighbourState::Failed, NeighbourState::Incomplete, NeighbourState::Unknown] {
            assert_eq!(Neighbour { mac, state }.resolved(), None, "{state:?}");
        }
        for state in [NeighbourState::Reachable, NeighbourState::Stale, NeighbourState::Permanent] {
            assert_eq!(Neighbour { mac, state }.resolved(), mac, "{state:?}");
        }
    }
}
