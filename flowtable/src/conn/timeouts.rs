//! Seconds, and how long a connection may be idle in each state.

use super::state::State;

/// Whole seconds: a time since any fixed moment, or a length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seconds(pub u32);

impl Seconds {
    /// From `earlier` to this; 0 when `earlier` is later, as workers' clocks may differ by one.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

/// After how long without a packet a connection ends. Its last second is `timeout - 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, a SYN was seen; default 30.
    pub syn_sent: Seconds,
    /// TCP, both sides' SYN were seen and the handshake is not complete; default 30.
    pub syn_recv: Seconds,
    /// TCP, established; default 7440, 2 hours 4 minutes (RFC 5382, section 5, REQ-5).
    pub established: Seconds,
    /// TCP, one side's FIN was seen; default 120.
    pub fin: Seconds,
    /// TCP, both sides' FIN were seen; default 60.
    pub time_wait: Seconds,
    /// TCP, a RST was seen; default 10.
    pub closed: Seconds,
    /// UDP without a reply; default 30.
    pub udp: Seconds,
    /// UDP with a reply; default 180.
    pub udp_replied: Seconds,
    /// ICMP and ICMPv6 echo; default 30.
    pub echo: Seconds,
    /// Any other protocol without a reply; default 60.
    pub other: Seconds,
    /// Any other protocol with a reply; default 180.
    pub other_replied: Seconds,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            syn_sent: Seconds(30),
            syn_recv: Seconds(30),
            established: Seconds(7440),
            fin: Seconds(120),
            time_wait: Seconds(60),
            closed: Seconds(10),
            udp: Seconds(30),
            udp_replied: Seconds(180),
            echo: Seconds(30),
            other: Seconds(60),
            other_replied: Seconds(180),
        }
    }
}

impl Timeouts {
    const fn of(&self, state: State) -> Seconds {
        match state {
            State::SynSent => self.syn_sent,
            State::SynRecv
            | State::SynBoth
            | State::SynBothAckOriginal
            | State::SynBothAckReply => self.syn_recv,
            State::Established | State::EstablishedBoth => self.established,
            State::FinOriginal | State::FinReply => self.fin,
            State::TimeWait => self.time_wait,
            State::Closed => self.closed,
            State::Udp => self.udp,
            State::UdpReplied => self.udp_replied,
            State::Echo | State::EchoReplied => self.echo,
            State::Other => self.other,
            State::OtherReplied => self.other_replied,
        }
    }
}

/// [`Timeouts`] by state, so that each packet's check is one load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lifetimes([Seconds; State::ALL.len()]);

impl Lifetimes {
    pub(super) fn new(timeouts: &Timeouts) -> Self {
        Self(State::ALL.map(|state| timeouts.of(state)))
    }

    /// What is left after `idle`; `None`: expired.
    #[inline]
    pub(super) const fn left(&self, state: State, idle: Seconds) -> Option<Seconds> {
        match self.0[state as usize].since(idle) {
            Seconds(0) => None,
            left => Some(left),
        }
    }
}
