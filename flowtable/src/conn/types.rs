//! What goes into the table and what comes out of it.

use super::state::State;
use super::timeouts::{Seconds, Timeouts};
use super::tuple::{Tuple, Way};
use std::net::IpAddr;

use crate::ids::{Mac, PortId, Vrf};

/// A connection, valid until it ends. What is done with one that has ended is answered with
/// "gone", also when its place is taken by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnRef {
    pub(super) index: u32,
    pub(super) incarnation: u32,
}

const _: () = assert!(size_of::<ConnRef>() == 8, "the flow caches store one per flow");

/// A packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The connection.
    pub conn: ConnRef,
    /// Whose packet it is.
    pub way: Way,
}

/// The far side of a connection that came to a published port: what the table of connections, whose
/// tuples are the container's, does not say of it. Packets back need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outside {
    /// The uplink.
    pub uplink: PortId,
    /// Address and port of the node that the opener's packets are for.
    pub published: (IpAddr, u16),
    /// The uplink's MAC: what the opener's packets are for.
    pub node_mac: Mac,
    /// Who sent the first of them: the opener, or the router towards it.
    pub neighbor: Mac,
}

/// How the table is made.
#[derive(Debug, Clone, Copy)]
pub struct ConnConfig {
    /// Most connections at once, 1..=2^26; clamped.
    pub capacity: usize,
    /// Key of the hash, drawn once per start, so that a sender cannot aim at one shard.
    pub seed: u64,
    /// When idle connections end.
    pub timeouts: Timeouts,
}

/// Whose budget a connection counts against: the port it was opened from (the uplink's for those
/// that come from the wire) and the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The tenant.
    pub vrf: Vrf,
    /// The port.
    pub port: PortId,
}

/// Most connections at once of the owner's scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of the tenant.
    pub tenant: u32,
    /// Of the port.
    pub port: u32,
}

/// Whether TCP without a handshake is a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pickup {
    /// Only a SYN without ACK opens TCP.
    No,
    /// An ACK or a FIN with ACK opens TCP too, as established: the handshake was before a restart.
    /// A SYN with ACK and a RST still open nothing.
    Midstream,
}

/// The packet that opens a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// Whom the connection counts against.
    pub owner: Owner,
    /// Byte 13 of the TCP header (RFC 9293, section 3.1); not looked at for other protocols.
    pub tcp_flags: u8,
    /// Whether TCP may begin in the middle.
    pub pickup: Pickup,
    /// Whether it came to a published port, and how.
    pub outside: Option<Outside>,
}

/// Why a connection was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The capacity is used up, and no half-open connection was found that could go.
    #[error("the connection table is full")]
    TableFull,
    /// [`Limits::tenant`] is reached, and none of the tenant's half-open ones was found.
    #[error("the tenant has all connections it may have")]
    TenantFull,
    /// [`Limits::port`] is reached, and none of the port's half-open ones was found.
    #[error("the port has all connections it may have")]
    PortFull,
    /// TCP, and the packet is none that opens a connection; or it is one of another connection, that
    /// came to another published port or to none.
    #[error("the packet opens no connection")]
    NotAnOpening,
}

/// What became of a packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The connection has ended or expired, or this SYN begins the next one: look it up again.
    Gone,
    /// Impossible in this state: to be dropped. Nothing was changed, not even the time.
    Invalid,
    /// The packet is part of the connection.
    Live {
        /// Further packets of the same way change nothing within this second, unless SYN, FIN or
        /// RST is set: TCP is established in both directions, or it is not TCP.
        settled: bool,
    },
}

/// One connection, for people to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnStats {
    /// As the originator's packets show it.
    pub tuple: Tuple,
    /// Whom it counts against.
    pub owner: Owner,
    /// Its state; [`State::name`] is the text.
    pub state: State,
    /// Since the last packet.
    pub idle: Seconds,
    /// Until it ends if no packet comes, at least 1.
    pub expires_in: Seconds,
}

/// Numbers of the table. `opened` is `open` plus all five ways to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnCounts {
    /// Connections in the table, expired ones that were not swept included.
    pub open: u64,
    /// Those of them that are TCP before established, or without a reply.
    pub half_open: u64,
    /// Ever made.
    pub opened: u64,
    /// Ended by time.
    pub expired: u64,
    /// Half-open ones that had to go for a new one.
    pub evicted: u64,
    /// Closed ones whose tuple was opened again.
    pub replaced: u64,
    /// Removed by [`super::ConnTable::purge`].
    pub purged: u64,
    /// [`Refused::TableFull`].
    pub refused_table: u64,
    /// [`Refused::TenantFull`].
    pub refused_tenant: u64,
    /// [`Refused::PortFull`].
    pub refused_port: u64,
    /// [`Refused::NotAnOpening`].
    pub not_an_opening: u64,
}

impl ConnCounts {
    /// Counts a refusal by its cause.
    pub(super) const fn refuse(&mut self, cause: Refused) {
        match cause {
            Refused::TableFull => self.refused_table += 1,
            Refused::TenantFull => self.refused_tenant += 1,
            Refused::PortFull => self.refused_port += 1,
            Refused::NotAnOpening => self.not_an_opening += 1,
        }
    }

    /// Adds the totals of a shard; `open` and `half_open` are not kept there.
    pub(super) const fn add_totals(&mut self, shard: &Self) {
        self.opened += shard.opened;
        self.expired += shard.expired;
        self.evicted += shard.evicted;
        self.replaced += shard.replaced;
        self.purged += shard.purged;
        self.refused_table += shard.refused_table;
        self.refused_tenant += shard.refused_tenant;
        self.refused_port += shard.refused_port;
        self.not_an_opening += shard.not_an_opening;
    }
}
