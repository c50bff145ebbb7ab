//! Reading a flow text. Each field is read on its own and kept; what it means beside the others is
//! checked when all are known, so that their order does not matter.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::FlowTextError;
use super::bits::{self, BitMatch, Names};
use super::spec::{FlowSpec, Frag, PortRef};
use super::state::{self, CtAssume};
use crate::entry::Prefix;
use crate::ids::{Bd, Group, Mac, OutOfRange, PortId, Vrf};
use crate::key::{ethertype, icmpv6, ipproto, is_echo};

/// What the error about an unknown field lists.
pub(super) const FIELDS: &str = "in_port, eth_src, eth_dst, dl_type, vlan_vid, tun_id, tun_src, \
    ip, ipv6, arp, tcp, udp, icmp, tcp6, udp6, icmp6, nw_src, nw_dst, ipv6_src, ipv6_dst, \
    nw_proto, nw_ttl, nw_frag, tp_src, tp_dst, tcp_flags, icmp_type, icmp_code, icmp_id, nd_target, \
    arp_op, flags, ct_state, vrf, bd, src_group, dst_group";

impl FromStr for FlowSpec {
    type Err = FlowTextError;

    fn from_str(text: &str) -> Result<Self, FlowTextError> {
        let mut spec = Self::default();
        let items = || {
            text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(|item| {
                let (name, value) = item.split_once('=').unwrap_or((item, ""));
                Field { name: name.trim(), value: value.trim() }
            })
        };
        for field in items() {
            if !(spec.set_word(field)? || spec.set_link(field)? || spec.set_network(field)?) {
                return Err(FlowTextError::UnknownField { field: field.name.to_owned() });
            }
        }
        for field in items().filter(|field| field.name == "nd_target") {
            spec.set_target(field)?;
        }
        spec.imply_family();
        for field in items() {
            spec.check(field)?;
        }
        Ok(spec)
    }
}

/// One `name=value` of a text.
#[derive(Clone, Copy)]
struct Field<'a> {
    name: &'a str,
    value: &'a str,
}

impl Field<'_> {
    fn bad(self, accepted: &'static str) -> FlowTextError {
        let (field, value) = (self.name.to_owned(), self.value.to_owned());
        FlowTextError::BadValue { field, value, accepted }
    }

    fn needs(self, needs: &'static str) -> FlowTextError {
        FlowTextError::Needs { field: self.name.to_owned(), needs }
    }

    fn contradiction(self) -> FlowTextError {
        FlowTextError::Contradiction { field: self.name.to_owned() }
    }

    /// Decimal, or hexadecimal after `0x`.
    fn number(
        self,
        range: RangeInclusive<u32>,
        accepted: &'static str,
    ) -> Result<u32, FlowTextError> {
        let number = match self.value.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => self.value.parse(),
        };
        number.ok().filter(|number| range.contains(number)).ok_or_else(|| self.bad(accepted))
    }

    fn byte(self) -> Result<u8, FlowTextError> {
        self.number(0..=255, "a number in 0..=255").map(|number| number as u8)
    }

    fn port(self) -> Result<u16, FlowTextError> {
        self.number(0..=0xffff, "a number in 0..=65535").map(|number| number as u16)
    }

    fn id<T>(self, make: fn(u32) -> Result<T, OutOfRange>) -> Result<T, FlowTextError> {
        let number = self.number(0..=u32::MAX, "a number")?;
        let field = || self.name.to_owned();
        make(number).map_err(|source| FlowTextError::OutOfRange { field: field(), source })
    }

    fn mac(self) -> Result<Mac, FlowTextError> {
        let accepted = "a MAC address like 02:00:0a:01:01:05";
        self.value.parse().ok().ok_or_else(|| self.bad(accepted))
    }

    fn v4(self) -> Result<Prefix, FlowTextError> {
        self.block::<Ipv4Addr>("an IPv4 address, or a block like 10.1.1.0/24")
    }

    fn v6(self) -> Result<Prefix, FlowTextError> {
        self.block::<Ipv6Addr>("an IPv6 address, or a block like 2001:db8::/64")
    }

    /// `address[/length]`.
    fn block<A: FromStr + Into<IpAddr>>(
        self,
        accepted: &'static str,
    ) -> Result<Prefix, FlowTextError> {
        let (address, len) = match self.value.split_once('/') {
            None => (self.value, None),
            Some((address, len)) => {
                (address, Some(len.parse().ok().ok_or_else(|| self.bad(accepted))?))
            }
        };
        let address: A = address.parse().ok().ok_or_else(|| self.bad(accepted))?;
        match len {
            None => Ok(Prefix::host(address.into())),
            Some(len) => Prefix::new(address.into(), len).ok().ok_or_else(|| self.bad(accepted)),
        }
    }

    /// `+name-name`, or numbers `value/mask`.
    fn bits(self, names: Names) -> Result<BitMatch, FlowTextError> {
        let named = bits::read_signed(names, self.value);
        named.or_else(|| bits::read_numbers(self.value)).ok_or_else(|| {
            let text = "flags like +syn-ack, or value/mask like 0x002/0x012, in the bits it has";
            self.bad(text)
        })
    }

    /// Keeps a value; one that was said before must be the same.
    fn keep<T: PartialEq>(self, place: &mut Option<T>, value: T) -> Result<bool, FlowTextError> {
        match place {
            Some(known) if *known != value => Err(self.contradiction()),
            Some(_) => Ok(true),
            None => {
                *place = Some(value);
                Ok(true)
            }
        }
    }
}

impl FlowSpec {
    /// Reads a word that stands for an Ethernet type and an IP protocol; `false`: it is none.
    fn set_word(&mut self, field: Field<'_>) -> Result<bool, FlowTextError> {
        let (eth_type, proto) = match field.name {
            "ip" => (ethertype::IPV4, None),
            "ipv6" => (ethertype::IPV6, None),
            "arp" => (ethertype::ARP, None),
            "tcp" => (ethertype::IPV4, Some(ipproto::TCP)),
            "udp" => (ethertype::IPV4, Some(ipproto::UDP)),
            "icmp" => (ethertype::IPV4, Some(ipproto::ICMP)),
            "tcp6" => (ethertype::IPV6, Some(ipproto::TCP)),
            "udp6" => (ethertype::IPV6, Some(ipproto::UDP)),
            "icmp6" => (ethertype::IPV6, Some(ipproto::ICMPV6)),
            _ => return Ok(false),
        };
        if !field.value.is_empty() {
            return Err(field.bad("the word alone"));
        }
        field.keep(&mut self.eth_type, eth_type)?;
        proto.map_or(Ok(true), |proto| field.keep(&mut self.proto, proto))
    }

    /// Reads a field of the port, tunnel, link or tables; `false`: it is none.
    fn set_link(&mut self, field: Field<'_>) -> Result<bool, FlowTextError> {
        match field.name {
            "in_port" => {
                let port = if field.value.is_empty() {
                    return Err(field.bad("a port's id in 1..=4094, or its name"));
                } else if field.value.bytes().all(|c| c.is_ascii_digit()) {
                    PortRef::Id(field.id(PortId::new)?)
                } else {
                    PortRef::Name(field.value.to_owned())
                };
                field.keep(&mut self.in_port, port)
            }
            "eth_src" | "dl_src" => field.keep(&mut self.eth_src, field.mac()?),
            "eth_dst" | "dl_dst" => field.keep(&mut self.eth_dst, field.mac()?),
            "dl_type" | "eth_type" => {
                let accepted = "a number in 0..=0xffff that is not a tag's";
                let eth_type = field.number(0..=0xffff, accepted)? as u16;
                if matches!(eth_type, ethertype::VLAN | ethertype::QINQ) {
                    return Err(field.bad(accepted));
                }
                field.keep(&mut self.eth_type, eth_type)
            }
            "vlan_vid" | "dl_vlan" => {
                let vid = field.number(0..=4094, "a number in 1..=4094, or 0 for untagged")?;
                field.keep(&mut self.vlan_vid, vid as u16)
            }
            "tun_id" => {
                let id = field.number(0..=0xff_ffff, "a number in 0..=16777215")?;
                field.keep(&mut self.tunnel.id, id)
            }
            "tun_src" | "tun_ipv6_src" => {
                let block = if field.value.contains(':') { field.v6()? } else { field.v4()? };
                field.keep(&mut self.tunnel.src, block)
            }
            "vrf" => field.keep(&mut self.tenant.vrf, field.id(Vrf::new)?),
            "bd" => field.keep(&mut self.tenant.bd, field.id(Bd::new)?),
            "src_group" => field.keep(&mut self.tenant.src_group, field.id(Group::new)?),
            "dst_group" => field.keep(&mut self.tenant.dst_group, field.id(Group::new)?),
            _ => Ok(false),
        }
    }

    /// Reads a field of the network or transport header; `false`: it is none.
    fn set_network(&mut self, field: Field<'_>) -> Result<bool, FlowTextError> {
        match field.name {
            "nw_src" | "arp_spa" => field.keep(&mut self.src, field.v4()?),
            "nw_dst" | "arp_tpa" => field.keep(&mut self.dst, field.v4()?),
            "ipv6_src" => field.keep(&mut self.src, field.v6()?),
            "ipv6_dst" => field.keep(&mut self.dst, field.v6()?),
            "nw_proto" => field.keep(&mut self.proto, field.byte()?),
            "nw_ttl" => field.keep(&mut self.ttl, field.byte()?),
            "nw_frag" => {
                let frag = match field.value {
                    "no" => Frag::No,
                    "first" => Frag::First,
                    "later" => Frag::Later,
                    "not_later" => Frag::NotLater,
                    _ => return Err(field.bad("no, first, later or not_later")),
                };
                field.keep(&mut self.frag, frag)
            }
            "tp_src" => field.keep(&mut self.src_port, field.port()?),
            "tp_dst" => field.keep(&mut self.dst_port, field.port()?),
            "icmp_type" => field.keep(&mut self.src_port, u16::from(field.byte()?)),
            "icmp_code" => field.keep(&mut self.dst_port, u16::from(field.byte()?)),
            "icmp_id" => field.keep(&mut self.icmp_id, field.port()?),
            // Which address it is depends on the message: see `set_target`.
            "nd_target" => Ok(true),
            "tcp_flags" => field.keep(&mut self.tcp_flags, field.bits(bits::TCP_FLAGS)?),
            "flags" => field.keep(&mut self.flags, field.bits(bits::KEY_FLAGS)?),
            "ct_state" => {
                let state =
                    CtAssume::read(field.value).ok_or_else(|| field.bad(state::ACCEPTED))?;
                field.keep(&mut self.ct_state, state)
            }
            "arp_op" => {
                let opcode = field.number(1..=2, "1 for a request, 2 for a reply")?;
                field.keep(&mut self.arp_op, opcode as u16)
            }
            _ => Ok(false),
        }
    }

    /// The target of neighbor discovery is where a key has it: the destination of a solicitation,
    /// the source of an advertisement.
    fn set_target(&mut self, field: Field<'_>) -> Result<bool, FlowTextError> {
        let target = field.v6()?;
        let message = self.src_port.filter(|_| self.proto == Some(ipproto::ICMPV6));
        match message.and_then(|kind| u8::try_from(kind).ok()) {
            Some(icmpv6::NEIGHBOR_SOLICITATION) => field.keep(&mut self.dst, target),
            Some(icmpv6::NEIGHBOR_ADVERTISEMENT) => field.keep(&mut self.src, target),
            _ => Err(field.needs("icmp6 and icmp_type=135 or icmp_type=136")),
        }
    }

    /// Takes the Ethernet type from the addresses or the opcode when no word gave it.
    fn imply_family(&mut self) {
        let implied = match self.src.or(self.dst).map(Prefix::address) {
            _ if self.arp_op.is_some() => Some(ethertype::ARP),
            Some(IpAddr::V4(_)) => Some(ethertype::IPV4),
            Some(IpAddr::V6(_)) => Some(ethertype::IPV6),
            None => None,
        };
        self.eth_type = self.eth_type.or(implied);
    }

    /// Whether a field has a meaning beside the others.
    fn check(&self, field: Field<'_>) -> Result<(), FlowTextError> {
        let is_ip = matches!(self.eth_type, None | Some(ethertype::IPV4 | ethertype::IPV6));
        let proto = |accepted: &[u8]| self.proto.is_some_and(|proto| accepted.contains(&proto));
        let whole = self.frag != Some(Frag::Later);
        let echo = self.src_port.is_none_or(|kind| is_echo(kind as u8));
        let tunnelled = self.tunnel.id.is_some_and(|id| id != 0) || self.tunnel.src.is_some();
        match field.name {
            "nw_src" | "nw_dst" if self.eth_type == Some(ethertype::ARP) => Ok(()),
            "nw_src" | "nw_dst" if self.eth_type != Some(ethertype::IPV4) => {
                Err(field.needs("ip or arp"))
            }
            "arp_spa" | "arp_tpa" | "arp_op" if self.eth_type != Some(ethertype::ARP) => {
                Err(field.needs("arp"))
            }
            "ipv6_src" | "ipv6_dst" if self.eth_type != Some(ethertype::IPV6) => {
                Err(field.needs("ipv6"))
            }
            "nw_proto" | "nw_ttl" | "nw_frag" | "ct_state" if !is_ip => {
                Err(field.needs("ip or ipv6"))
            }
            "tp_src" | "tp_dst" if !(whole && proto(&[ipproto::TCP, ipproto::UDP])) => {
                Err(field.needs("tcp, udp, tcp6 or udp6, and not in a later fragment"))
            }
            "icmp_type" | "icmp_code" if !(whole && proto(&[ipproto::ICMP, ipproto::ICMPV6])) => {
                Err(field.needs("icmp or icmp6, and not in a later fragment"))
            }
            "icmp_id" if !(whole && proto(&[ipproto::ICMP, ipproto::ICMPV6]) && echo) => {
                Err(field.needs("an echo request or reply of icmp or icmp6, in its first fragment"))
            }
            "tcp_flags" if !(whole && proto(&[ipproto::TCP])) => {
                Err(field.needs("tcp or tcp6, and not in a later fragment"))
            }
            "vlan_vid" | "dl_vlan" if tunnelled && self.vlan_vid != Some(0) => {
                Err(field.contradiction())
            }
            "tun_src" | "tun_ipv6_src" if self.tunnel.id == Some(0) => Err(field.contradiction()),
            _ => Ok(()),
        }
    }
}
