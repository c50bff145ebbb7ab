//! TCP by flags: what a segment does to each state.
//!
//! Sequence numbers are not looked at, so a forged RST or FIN of the right tuple is believed; a
//! connection on which segments still flow then lives on with the short timeout of that state.
//! A SYN or a late SYN with ACK within a connection is let through and changes nothing: the other
//! end answers it with a challenge ACK (RFC 5961, section 4), or with a RST if it knows better.

use super::state::{Outcome, State};
use super::tuple::Way;
use crate::key::tcp_flag::{ACK, FIN, RST, SYN};

/// Kind of a segment. PSH, URG and the ECN bits make no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segment {
    /// SYN with FIN or RST, or none of SYN, RST and ACK: nobody sends these but scanners.
    Bad,
    Syn,
    SynAck,
    Ack,
    /// FIN, with ACK.
    Fin,
    Rst,
}

impl Segment {
    #[inline]
    pub(super) const fn of(flags: u8) -> Self {
        match (flags & SYN != 0, flags & RST != 0, flags & ACK != 0, flags & FIN != 0) {
            (true, false, false, false) => Self::Syn,
            (true, false, true, false) => Self::SynAck,
            (true, true, _, _) | (true, _, _, true) | (false, false, false, _) => Self::Bad,
            (false, true, _, _) => Self::Rst,
            (false, false, true, false) => Self::Ack,
            (false, false, true, true) => Self::Fin,
        }
    }
}

/// What `segment` does to `state`, one of TCP's.
#[inline]
pub(super) const fn after(state: State, way: Way, segment: Segment) -> Outcome {
    match segment {
        Segment::Bad => Outcome::Invalid,
        Segment::Syn => after_syn(state, way),
        Segment::SynAck => after_syn_ack(state, way),
        Segment::Ack => after_ack(state, way),
        Segment::Fin => after_fin(state, way),
        Segment::Rst => after_rst(state),
    }
}

const fn after_syn(state: State, way: Way) -> Outcome {
    match (state, way) {
        (State::SynSent, Way::Reply) => Outcome::Next(State::SynBoth),
        (State::SynRecv, Way::Reply) => Outcome::Invalid,
        // Sent again.
        (State::SynSent | State::SynRecv, Way::Original)
        | (State::SynBoth | State::SynBothAckOriginal | State::SynBothAckReply, _) => {
            Outcome::Next(state)
        }
        (State::TimeWait | State::Closed, _) => Outcome::Anew,
        // RFC 5961, section 4.2: the other end answers with a challenge ACK.
        _ => Outcome::Pass,
    }
}

const fn after_syn_ack(state: State, way: Way) -> Outcome {
    match (state, way) {
        (State::SynSent | State::SynRecv, Way::Reply) => Outcome::Next(State::SynRecv),
        (State::SynBoth | State::SynBothAckOriginal, Way::Original) => {
            Outcome::Next(State::SynBothAckOriginal)
        }
        (State::SynBoth | State::SynBothAckReply, Way::Reply) => {
            Outcome::Next(State::SynBothAckReply)
        }
        (State::SynBothAckOriginal, Way::Reply) | (State::SynBothAckReply, Way::Original) => {
            Outcome::Next(State::EstablishedBoth)
        }
        // Sent again because the ACK was lost behind us, or late.
        (State::EstablishedBoth, _) | (_, Way::Reply) => Outcome::Pass,
        (_, Way::Original) => Outcome::Invalid,
    }
}

const fn after_ack(state: State, way: Way) -> Outcome {
    match (state, way) {
        (State::SynSent | State::SynBoth, _) => Outcome::Invalid,
        (State::SynRecv, Way::Original) => Outcome::Next(State::Established),
        (State::SynBothAckOriginal, Way::Reply) | (State::SynBothAckReply, Way::Original) => {
            Outcome::Next(State::EstablishedBoth)
        }
        // Also data that the other side sends before the handshake ends (RFC 7413, section 4.2).
        _ => Outcome::Next(state),
    }
}

const fn after_fin(state: State, way: Way) -> Outcome {
    match (state, way) {
        (State::SynSent | State::SynBoth, _) => Outcome::Invalid,
        (State::FinOriginal, Way::Reply) | (State::FinReply, Way::Original) => {
            Outcome::Next(State::TimeWait)
        }
        (State::TimeWait | State::Closed, _) => Outcome::Next(state),
        (_, Way::Original) => Outcome::Next(State::FinOriginal),
        (_, Way::Reply) => Outcome::Next(State::FinReply),
    }
}

const fn after_rst(state: State) -> Outcome {
    // RFC 1337, section 3: a RST does not end TIME-WAIT early.
    if matches!(state, State::TimeWait) {
        Outcome::Next(state)
    } else {
        Outcome::Next(State::Closed)
    }
}
