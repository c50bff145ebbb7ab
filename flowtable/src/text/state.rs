//! The state of connections in OVS's words (`ct_state` of ovs-fields(7)).

use std::fmt;

use super::bits::{self, BitMatch, Names};

const TRK: u8 = 0x01;
const NEW: u8 = 0x02;
const EST: u8 = 0x04;
const RPL: u8 = 0x08;
const REL: u8 = 0x10;
const INV: u8 = 0x20;
const NAMES: Names =
    &[("trk", TRK), ("new", NEW), ("est", EST), ("rpl", RPL), ("rel", REL), ("inv", INV)];

/// What the error about a state says.
pub(super) const ACCEPTED: &str =
    "+trk+new, +trk+est, +trk+est+rpl or +trk+rel (a packet without a state is not forwarded)";

/// The connection that a traced packet is assumed to belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtAssume {
    /// None: it opens one if it may. `+trk+new`
    New,
    /// One that was answered, in the direction of its first packet. `+trk+est`
    Established,
    /// One that was answered, against the direction of its first packet. `+trk+est+rpl`
    Reply,
    /// An ICMP error about a packet of a connection. `+trk+rel`
    Related,
}

impl CtAssume {
    /// The state that a text like `+new-rpl` describes; `trk` may be left out. `None`: no such
    /// state, or the parts exclude each other.
    pub(super) fn read(text: &str) -> Option<Self> {
        let BitMatch { value, mask } = bits::read_signed(NAMES, text)?;
        let (state, set) = match value | TRK {
            set if set == TRK | NEW => (Self::New, set),
            set if set == TRK | EST => (Self::Established, set),
            // A reply is one of an established connection unless it is said to be related.
            set if set & !EST == TRK | RPL => (Self::Reply, TRK | EST | RPL),
            // OVS also says of a related packet which way it goes, or that it is the first.
            set if set & !(RPL | NEW) == TRK | REL && set & (RPL | NEW) != RPL | NEW => {
                (Self::Related, set)
            }
            _ => return None,
        };
        let refused = mask & !value;
        (refused & set == 0).then_some(state)
    }
}

impl fmt::Display for CtAssume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "+trk+new",
            Self::Established => "+trk+est",
            Self::Reply => "+trk+est+rpl",
            Self::Related => "+trk+rel",
        })
    }
}
