//! The text form of flows, used by the command line, traces and tests.
//!
//! Names are those of OVS (ovs-fields(7)), joined by commas: `in_port=3,tcp,nw_src=10.1.1.2,
//! tp_dst=80`; a field that is not there is not looked at. Added are `vrf`, `bd`, `src_group`,
//! `dst_group`, `icmp_id` and `flags`, which OVS does not have. A [`FlowKey`] prints as such a text,
//! a [`MaskedKey`] as one of only the bits looked at; [`FlowSpec`] reads one, matches keys and table
//! entries against it and builds a frame from it. [`entry_match`] and [`entry_actions`] print table
//! entries in the same words.
//!
//! A key knows less than a packet: `nw_ttl=1` in a key's text stands for 0 or 1, and whether IP
//! options were there is not printed, as OVS has no field for it. Of TCP flags a key's text has those
//! that are set among the bits looked at.

mod bits;
mod entries;
mod frame;
mod masked;
mod overlap;
mod read;
mod spec;
mod state;

use std::fmt;

use crate::ids::OutOfRange;
use crate::key::{FlowKey, Neighbor, ethertype, flag, ipproto, is_echo};
use bits::{Signed, TCP_FLAGS};

pub use bits::BitMatch;
pub use entries::{entry_actions, entry_match};
pub use masked::MaskedKey;
pub use spec::{FlowSpec, Frag, PortRef, TenantSpec, TunnelSpec};
pub use state::CtAssume;

/// Why a text is no flow, or a flow no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlowTextError {
    /// A name that is no field and no protocol word.
    #[error("\"{field}\" is not a flow field; fields are {}", read::FIELDS)]
    UnknownField {
        /// The name as given.
        field: String,
    },
    /// A value that the field does not have.
    #[error("{field}: \"{value}\" is not accepted; write {accepted}")]
    BadValue {
        /// The field.
        field: String,
        /// The value as given; empty when there was none.
        value: String,
        /// What the field accepts.
        accepted: &'static str,
    },
    /// A number that is out of the identifier's range.
    #[error("{field}: {source}")]
    OutOfRange {
        /// The field.
        field: String,
        /// The range.
        source: OutOfRange,
    },
    /// Two parts of the text exclude each other.
    #[error("{field}: contradicts what the flow says before it")]
    Contradiction {
        /// The later one.
        field: String,
    },
    /// The field only has a meaning together with others.
    #[error("{field}: only with {needs}")]
    Needs {
        /// The field.
        field: String,
        /// What must be there.
        needs: &'static str,
    },
    /// A flow that matches, but of which no frame can be made.
    #[error("{field}: a frame needs {needs}")]
    NoFrame {
        /// The field.
        field: &'static str,
        /// What a frame needs there.
        needs: &'static str,
    },
}

impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "in_port={}", self.in_port)?;
        if let Some(src) = self.tun_src_ip() {
            write!(f, ",tun_id={},tun_src={src}", self.vni)?;
        }
        if self.vid != 0 {
            write!(f, ",vlan_vid={}", self.vid)?;
        }
        write!(f, ",eth_src={},eth_dst={}", self.eth_src(), self.eth_dst())?;
        let (Some(src), Some(dst)) = (self.src_ip(), self.dst_ip()) else {
            return write!(f, ",dl_type={:#06x}", self.eth_type);
        };
        let prefix = if self.eth_type == ethertype::IPV6 { "ipv6" } else { "nw" };
        if self.eth_type == ethertype::ARP {
            let opcode = if self.flags & flag::ARP_REPLY == 0 { 1 } else { 2 };
            return write!(f, ",arp,nw_src={src},nw_dst={dst},arp_op={opcode}");
        }
        match protocol_word(self.eth_type, self.proto) {
            Some(word) => write!(f, ",{word}")?,
            None if src.is_ipv4() => write!(f, ",ip,nw_proto={}", self.proto)?,
            None => write!(f, ",ipv6,nw_proto={}", self.proto)?,
        }
        match self.neighbor() {
            Some(Neighbor::Solicitation) => write!(f, ",ipv6_src={src},nd_target={dst}")?,
            Some(Neighbor::Advertisement) => write!(f, ",nd_target={src},ipv6_dst={dst}")?,
            None => write!(f, ",{prefix}_src={src},{prefix}_dst={dst}")?,
        }
        if self.flags & flag::FRAG_LATER != 0 {
            f.write_str(",nw_frag=later")?;
        } else {
            write_transport(self, f)?;
        }
        if self.flags & flag::FRAG_FIRST != 0 {
            f.write_str(",nw_frag=first")?;
        }
        if self.flags & flag::TTL_LOW != 0 {
            f.write_str(",nw_ttl=1")?;
        }
        Ok(())
    }
}

/// What a key holds of the transport header.
fn write_transport(key: &FlowKey, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match protocol_word(key.eth_type, key.proto) {
        Some("icmp" | "icmp6") => {
            write!(f, ",icmp_type={},icmp_code={}", key.src_port, key.dst_port)?;
            if is_echo(key.src_port as u8) {
                write!(f, ",icmp_id={}", key.icmp_id)?;
            }
        }
        Some(_) => write!(f, ",tp_src={},tp_dst={}", key.src_port, key.dst_port)?,
        None => {}
    }
    if key.tcp_flags != 0 {
        let set = BitMatch { value: key.tcp_flags, mask: key.tcp_flags };
        write!(f, ",tcp_flags={}", Signed(TCP_FLAGS, set))?;
    }
    Ok(())
}

/// OVS's word for a protocol whose ports, or type and code, a key holds.
const fn protocol_word(eth_type: u16, proto: u8) -> Option<&'static str> {
    Some(match (eth_type, proto) {
        (ethertype::IPV4, ipproto::TCP) => "tcp",
        (ethertype::IPV4, ipproto::UDP) => "udp",
        (ethertype::IPV4, ipproto::ICMP) => "icmp",
        (ethertype::IPV6, ipproto::TCP) => "tcp6",
        (ethertype::IPV6, ipproto::UDP) => "udp6",
        (ethertype::IPV6, ipproto::ICMPV6) => "icmp6",
        _ => return None,
    })
}
