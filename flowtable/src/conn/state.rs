//! The states of a connection, of TCP and of everything else.

use std::fmt;

use super::tcp::{self, Segment};
use super::tuple::Way;
use super::types::{Opening, Pickup};
use crate::key::ipproto;

/// State of a connection. TCP's are told from flags alone: sequence numbers are not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// The originator sent SYN.
    SynSent,
    /// The other side answered SYN with ACK.
    SynRecv,
    /// Both sent SYN (simultaneous open, RFC 9293, section 3.5).
    SynBoth,
    /// Both sent SYN, and the originator SYN with ACK.
    SynBothAckOriginal,
    /// Both sent SYN, and the other side SYN with ACK.
    SynBothAckReply,
    /// The handshake is complete.
    Established,
    /// The handshake of a simultaneous open is complete.
    EstablishedBoth,
    /// The originator sent FIN.
    FinOriginal,
    /// The other side sent FIN.
    FinReply,
    /// Both sent FIN.
    TimeWait,
    /// One sent RST.
    Closed,
    /// UDP without a reply.
    Udp,
    /// UDP with a reply.
    UdpReplied,
    /// ICMP or ICMPv6 echo without a reply.
    Echo,
    /// ICMP or ICMPv6 echo with a reply.
    EchoReplied,
    /// Another protocol without a reply.
    Other,
    /// Another protocol with a reply.
    OtherReplied,
}

/// What a packet does to a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Impossible.
    Invalid,
    /// It begins another connection.
    Anew,
    /// Let through; neither state nor time change.
    Pass,
    /// The state after it, often the same.
    Next(State),
}

impl State {
    /// All states, each at the position of its number.
    pub(super) const ALL: [Self; 17] = [
        Self::SynSent,
        Self::SynRecv,
        Self::SynBoth,
        Self::SynBothAckOriginal,
        Self::SynBothAckReply,
        Self::Established,
        Self::EstablishedBoth,
        Self::FinOriginal,
        Self::FinReply,
        Self::TimeWait,
        Self::Closed,
        Self::Udp,
        Self::UdpReplied,
        Self::Echo,
        Self::EchoReplied,
        Self::Other,
        Self::OtherReplied,
    ];

    /// Name in listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "syn-sent",
            Self::SynRecv => "syn-recv",
            Self::SynBoth | Self::SynBothAckOriginal | Self::SynBothAckReply => "syn-both",
            Self::Established | Self::EstablishedBoth => "established",
            Self::FinOriginal | Self::FinReply => "fin-wait",
            Self::TimeWait => "time-wait",
            Self::Closed => "closed",
            Self::Udp | Self::Echo | Self::Other => "unreplied",
            Self::UdpReplied | Self::EchoReplied | Self::OtherReplied => "replied",
        }
    }

    /// TCP before established, or no reply yet: may go when room is needed.
    #[inline]
    pub(super) const fn is_half_open(self) -> bool {
        match self {
            Self::SynSent
            | Self::SynRecv
            | Self::SynBoth
            | Self::SynBothAckOriginal
            | Self::SynBothAckReply
            | Self::Udp
            | Self::Echo
            | Self::Other => true,
            Self::Established
            | Self::EstablishedBoth
            | Self::FinOriginal
            | Self::FinReply
            | Self::TimeWait
            | Self::Closed
            | Self::UdpReplied
            | Self::EchoReplied
            | Self::OtherReplied => false,
        }
    }

    /// See [`super::Step::Live`].
    #[inline]
    pub(super) const fn is_settled(self) -> bool {
        matches!(self, Self::Established | Self::EstablishedBoth) || self.is_not_tcp()
    }

    /// Settled, and both sides have spoken: only SYN, FIN, RST and time change it.
    #[inline]
    pub(super) const fn is_mutual(self) -> bool {
        self.is_settled() && !self.is_half_open()
    }

    const fn is_not_tcp(self) -> bool {
        self as u8 >= Self::Udp as u8
    }

    /// The state in which `opening` begins; `None`: it opens nothing.
    pub(super) const fn opened_by(proto: u8, opening: &Opening) -> Option<Self> {
        match proto {
            ipproto::TCP => match (Segment::of(opening.tcp_flags), opening.pickup) {
                (Segment::Syn, Pickup::No | Pickup::Midstream) => Some(Self::SynSent),
                (Segment::Ack, Pickup::Midstream) => Some(Self::Established),
                (Segment::Fin, Pickup::Midstream) => Some(Self::FinOriginal),
                (Segment::Ack | Segment::Fin, Pickup::No)
                | (Segment::SynAck | Segment::Rst | Segment::Bad, Pickup::No | Pickup::Midstream) => {
                    None
                }
            },
            ipproto::UDP => Some(Self::Udp),
            ipproto::ICMP | ipproto::ICMPV6 => Some(Self::Echo),
            _ => Some(Self::Other),
        }
    }

    /// A SYN that finds the connection over begins a new one.
    pub(super) const fn is_over_for(self, tcp_flags: u8) -> bool {
        matches!(self, Self::TimeWait | Self::Closed)
            && matches!(Segment::of(tcp_flags), Segment::Syn)
    }

    /// What a packet does. No chain of changes comes back to a state it has left.
    #[inline]
    pub(super) const fn after(self, way: Way, tcp_flags: u8) -> Outcome {
        match (self, way) {
            (Self::Udp, Way::Reply) => Outcome::Next(Self::UdpReplied),
            (Self::Echo, Way::Reply) => Outcome::Next(Self::EchoReplied),
            (Self::Other, Way::Reply) => Outcome::Next(Self::OtherReplied),
            _ if self.is_not_tcp() => Outcome::Next(self),
            _ => tcp::after(self, way, Segment::of(tcp_flags)),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
