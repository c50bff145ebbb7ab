//! A key under a mask, as text: what of a packet a decision depended on.
//!
//! OVS's form: `field=value` where every bit was looked at, `field=value/mask` where some were, and
//! nothing where none was. Fields that this kind of packet does not have are left out: they follow
//! from its type. [`FlowSpec`](super::FlowSpec) reads such a text if addresses have masks that are
//! prefixes, other fields are looked at whole, and so is the type when something of it is.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::bits::{BitMatch, KEY_FLAGS, Signed, TCP_FLAGS};
use super::protocol_word;
use crate::ids::Mac;
use crate::key::{FlowKey, Neighbor, ethertype, flag, ipproto, is_echo};

/// A key of which only the bits set in a mask count. The default of a mask looks at nothing.
#[derive(Debug, Clone, Copy)]
pub struct MaskedKey<'a> {
    /// The packet.
    pub key: &'a FlowKey,
    /// A bit set here was looked at.
    pub mask: &'a FlowKey,
}

impl fmt::Display for MaskedKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = List { out: f, started: false };
        self.link(&mut list)?;
        self.network(&mut list)?;
        self.transport(&mut list)?;
        self.flags(&mut list)
    }
}

impl MaskedKey<'_> {
    fn link(&self, list: &mut List<'_, '_>) -> fmt::Result {
        let (key, mask) = (self.key, self.mask);
        list.number("in_port", key.in_port.into(), mask.in_port.into(), 0xffff)?;
        list.number("tun_id", key.vni, mask.vni, 0xff_ffff)?;
        // Without a tunnel it is zero, which `tun_id=0` says.
        if let Some(ip) = key.tun_src_ip() {
            list.address("tun_src", ip, mask.tun_src)?;
        }
        list.number("vlan_vid", key.vid.into(), mask.vid.into(), 0xffff)?;
        list.mac("eth_src", key.eth_src, mask.eth_src)?;
        list.mac("eth_dst", key.eth_dst, mask.eth_dst)
    }

    fn network(&self, list: &mut List<'_, '_>) -> fmt::Result {
        let (key, mask) = (self.key, self.mask);
        let word = protocol_word(key.eth_type, key.proto).filter(|_| mask.proto == 0xff);
        let family = match key.eth_type {
            ethertype::IPV4 => Some("ip"),
            ethertype::IPV6 => Some("ipv6"),
            ethertype::ARP => Some("arp"),
            _ => None,
        };
        match (word, family) {
            (Some(word), _) if self.knows_type() => list.item(format_args!("{word}"))?,
            (_, Some(family)) if self.knows_type() => list.item(format_args!("{family}"))?,
            (_, None) if self.knows_type() => {
                list.item(format_args!("dl_type={:#06x}", key.eth_type))?;
            }
            _ => list.number("dl_type", key.eth_type.into(), mask.eth_type.into(), 0xffff)?,
        }
        if self.is_ip() && !(word.is_some() && self.knows_type()) {
            list.number("nw_proto", key.proto.into(), mask.proto.into(), 0xff)?;
        }
        let addresses = [(key.src_ip(), mask.src), (key.dst_ip(), mask.dst)];
        for (name, (ip, mask)) in self.address_names().into_iter().zip(addresses) {
            if let Some(ip) = ip {
                list.address(name, ip, mask)?;
            }
        }
        Ok(())
    }

    fn transport(&self, list: &mut List<'_, '_>) -> fmt::Result {
        let (key, mask) = (self.key, self.mask);
        if key.flags & flag::FRAG_LATER != 0 {
            return Ok(());
        }
        let Some(word) = protocol_word(key.eth_type, key.proto) else { return Ok(()) };
        let (src, dst) = (u32::from(key.src_port), u32::from(key.dst_port));
        let (src_mask, dst_mask) = (u32::from(mask.src_port), u32::from(mask.dst_port));
        if matches!(word, "icmp" | "icmp6") {
            list.number("icmp_type", src, src_mask, 0xff)?;
            list.number("icmp_code", dst, dst_mask, 0xff)?;
            // That other messages have none follows from their type, if that was looked at.
            let has_id = is_echo(key.src_port as u8) || src_mask & 0xff != 0xff;
            let id_mask = if has_id { mask.icmp_id } else { 0 };
            return list.number("icmp_id", key.icmp_id.into(), id_mask.into(), 0xffff);
        }
        list.number("tp_src", src, src_mask, 0xffff)?;
        list.number("tp_dst", dst, dst_mask, 0xffff)?;
        if matches!(word, "tcp" | "tcp6") && mask.tcp_flags != 0 {
            let bits = BitMatch { value: key.tcp_flags & mask.tcp_flags, mask: mask.tcp_flags };
            list.item(format_args!("tcp_flags={}", Signed(TCP_FLAGS, bits)))?;
        }
        Ok(())
    }

    /// By OVS's fields where they can say it, by `flags` else.
    fn flags(&self, list: &mut List<'_, '_>) -> fmt::Result {
        use flag::{ARP_REPLY, FOREIGN_MAC, FRAG_FIRST, FRAG_LATER, IP_OPTIONS, TTL_LOW};
        let (key, mut rest) = (self.key, self.mask.flags);
        let is_arp = key.eth_type == ethertype::ARP;
        if self.knows_type() {
            rest &= match key.eth_type {
                ethertype::IPV6 if self.may_be_discovery() => {
                    FRAG_FIRST | FRAG_LATER | TTL_LOW | IP_OPTIONS | FOREIGN_MAC
                }
                ethertype::IPV4 | ethertype::IPV6 => FRAG_FIRST | FRAG_LATER | TTL_LOW | IP_OPTIONS,
                ethertype::ARP => ARP_REPLY | FOREIGN_MAC,
                _ => 0,
            };
        }
        let [first, later] = [FRAG_FIRST, FRAG_LATER].map(|bit| {
            let looked_at = self.is_ip() && rest & bit != 0;
            looked_at.then_some(key.flags & bit != 0)
        });
        let frag = match (first, later) {
            (Some(false), Some(false)) => Some("no"),
            (Some(true), _) => Some("first"),
            (_, Some(true)) => Some("later"),
            (None, Some(false)) => Some("not_later"),
            (Some(false) | None, None) => None,
        };
        if let Some(frag) = frag {
            list.item(format_args!("nw_frag={frag}"))?;
            rest &= !(FRAG_FIRST | FRAG_LATER);
        }
        if self.is_ip() && rest & key.flags & TTL_LOW != 0 {
            list.item(format_args!("nw_ttl=1"))?;
            rest &= !TTL_LOW;
        }
        if is_arp && rest & ARP_REPLY != 0 {
            let opcode = if key.flags & ARP_REPLY == 0 { 1 } else { 2 };
            list.item(format_args!("arp_op={opcode}"))?;
            rest &= !ARP_REPLY;
        }
        if rest == 0 {
            return Ok(());
        }
        let bits = BitMatch { value: key.flags & rest, mask: rest };
        list.item(format_args!("flags={}", Signed(KEY_FLAGS, bits)))
    }

    /// Whether neighbor discovery is among the IPv6 packets with these bits.
    const fn may_be_discovery(&self) -> bool {
        let (key, mask) = (self.key, self.mask);
        let other_type = mask.src_port & 0xff == 0xff && key.neighbor().is_none();
        mask.proto != u8::MAX || (key.proto == ipproto::ICMPV6 && !other_type)
    }

    /// What the two addresses are called.
    fn address_names(&self) -> [&'static str; 2] {
        let knows_message = self.mask.proto == u8::MAX && self.mask.src_port & 0xff == 0xff;
        let neighbor = self.key.neighbor().filter(|_| knows_message && self.knows_type());
        match (self.key.eth_type, neighbor) {
            (ethertype::IPV6, Some(Neighbor::Solicitation)) => ["ipv6_src", "nd_target"],
            (ethertype::IPV6, Some(Neighbor::Advertisement)) => ["nd_target", "ipv6_dst"],
            (ethertype::IPV6, None) => ["ipv6_src", "ipv6_dst"],
            _ => ["nw_src", "nw_dst"],
        }
    }

    const fn knows_type(&self) -> bool {
        self.mask.eth_type == u16::MAX
    }

    const fn is_ip(&self) -> bool {
        matches!(self.key.eth_type, ethertype::IPV4 | ethertype::IPV6)
    }
}

/// Items joined by commas.
struct List<'a, 'f> {
    out: &'a mut fmt::Formatter<'f>,
    started: bool,
}

impl List<'_, '_> {
    fn item(&mut self, item: fmt::Arguments<'_>) -> fmt::Result {
        if self.started {
            self.out.write_char(',')?;
        }
        self.started = true;
        self.out.write_fmt(item)
    }

    /// A number whose bits are those of `full`.
    fn number(&mut self, name: &str, value: u32, mask: u32, full: u32) -> fmt::Result {
        match mask & full {
            0 => Ok(()),
            mask if mask == full => self.item(format_args!("{name}={value}")),
            mask => self.item(format_args!("{name}={:#x}/{mask:#x}", value & mask)),
        }
    }

    fn mac(&mut self, name: &str, value: [u8; 6], mask: [u8; 6]) -> fmt::Result {
        let wide = |mac: [u8; 6]| mac.iter().fold(0, |wide, byte| wide << 8 | u64::from(*byte));
        let text = |wide: u64| {
            let [_, _, mac @ ..] = wide.to_be_bytes();
            Mac(mac)
        };
        match wide(mask) {
            0 => Ok(()),
            0xffff_ffff_ffff => self.item(format_args!("{name}={}", text(wide(value)))),
            mask => self.item(format_args!("{name}={}/{}", text(wide(value) & mask), text(mask))),
        }
    }

    /// An address under a mask in the form that keys store.
    fn address(&mut self, name: &str, ip: IpAddr, mask: [u8; 16]) -> fmt::Result {
        match ip {
            IpAddr::V4(ip) => {
                let [.., a, b, c, d] = mask;
                let mask = u32::from_be_bytes([a, b, c, d]);
                let network = Ipv4Addr::from_bits(ip.to_bits() & mask);
                match (mask, mask.leading_ones()) {
                    (0, _) => Ok(()),
                    (_, 32) => self.item(format_args!("{name}={network}")),
                    (_, ones) if ones + mask.trailing_zeros() == 32 => {
                        self.item(format_args!("{name}={network}/{ones}"))
                    }
                    _ => self.item(format_args!("{name}={network}/{}", Ipv4Addr::from_bits(mask))),
                }
            }
            IpAddr::V6(ip) => {
                let mask = u128::from_be_bytes(mask);
                let network = Ipv6Addr::from_bits(ip.to_bits() & mask);
                match (mask, mask.leading_ones()) {
                    (0, _) => Ok(()),
                    (_, 128) => self.item(format_args!("{name}={network}")),
                    (_, ones) if ones + mask.trailing_zeros() == 128 => {
                        self.item(format_args!("{name}={network}/{ones}"))
                    }
                    _ => self.item(format_args!("{name}={network}/{}", Ipv6Addr::from_bits(mask))),
                }
            }
        }
    }
}
