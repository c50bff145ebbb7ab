//! Packets and rules as words of bits.
//!
//! A packet of one family is `N` words: addresses, groups, and a last word with ports, protocol and
//! TCP flags. A rule is the same words with a mask of the bits it looks at, and what is left of its
//! port ranges after their common leading bits. ICMP type and code use the bits of the destination
//! port, which such packets have not; bits that say "has ports", "has an ICMP type" and "has TCP
//! flags" keep them apart, and make a rule that wants one of them fail on packets without.

use std::net::IpAddr;

use super::{PolicyMatch, PolicyQuery, Wildcards};
use crate::entry::{PortRange, Prefix, RuleEntry};
use crate::key::ipproto;

/// Words of an IPv4 packet: addresses, groups, the last word.
pub(super) const V4: usize = 3;
/// Words of an IPv6 packet: two for each address, groups, the last word.
pub(super) const V6: usize = 6;

pub(super) type Words<const N: usize> = [u64; N];

/// First bits of the fields of the last word.
const DST_PORT: u32 = 0;
const SRC_PORT: u32 = 16;
const PROTOCOL: u32 = 32;
const FLAGS: u32 = 40;
const HAS_PORTS: u64 = 1 << 48;
const HAS_ICMP: u64 = 1 << 49;
const HAS_FLAGS: u64 = 1 << 50;

/// A field: a word and bits of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) word: usize,
    pub(super) bits: u64,
}

const HIGH: u64 = 0xffff_ffff_0000_0000;
const LOW: u64 = 0xffff_ffff;
const LAST_WORD: [u64; 4] =
    [0xffff << DST_PORT, 0xffff << SRC_PORT, 0xff << PROTOCOL, 0xff << FLAGS];

/// The fields that tables choose from.
pub(super) fn fields<const N: usize>() -> impl Iterator<Item = Field> {
    let addresses = if N == V4 { vec![(0, HIGH), (0, LOW)] } else { vec![] };
    let wide = (0..N - 2).filter(|_| N != V4).map(|word| (word, u64::MAX));
    let groups = [(N - 2, HIGH), (N - 2, LOW)];
    let last = LAST_WORD.map(|bits| (N - 1, bits));
    let all = addresses.into_iter().chain(wide).chain(groups).chain(last);
    all.map(|(word, bits)| Field { word, bits })
}

/// Candidates for each of the fields by which tables are filtered: of the source, of the destination
/// and of the rest.
pub(super) fn filter_fields<const N: usize>() -> [[Field; 3]; 3] {
    let field = |word: usize, bits: u64| Field { word, bits };
    let [dst_port, src_port, protocol, _] = LAST_WORD.map(|bits| field(N - 1, bits));
    let (src_group, dst_group) = (field(N - 2, HIGH), field(N - 2, LOW));
    let (src, dst) = if N == V4 {
        let sides = |len: u32| (field(0, HIGH << (32 - len)), field(0, (LOW << (32 - len)) & LOW));
        let ((src16, dst16), (src24, dst24)) = (sides(16), sides(24));
        ([src16, src24, src_group], [dst16, dst24, dst_group])
    } else {
        let side = |word: usize, group| [field(word, u64::MAX << 16), field(word, u64::MAX), group];
        (side(0, src_group), side(2, dst_group))
    };
    [src, dst, [dst_port, protocol, src_port]]
}

/// What of a port range the masked bits do not say: `port - first <= span`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rest {
    first: u16,
    span: u16,
}

impl Rest {
    const ANY: Self = Self { first: 0, span: u16::MAX };

    const fn has(self, port: u16) -> bool {
        port.wrapping_sub(self.first) <= self.span
    }
}

/// What a packet must be for a rule to match.
#[derive(Debug, Clone, Copy)]
pub(super) struct Check<const N: usize> {
    /// Zero outside `mask`.
    pub(super) value: Words<N>,
    pub(super) mask: Words<N>,
    src_ports: Rest,
    dst_ports: Rest,
    /// The leading bits of the rank.
    pub(super) order: u32,
    /// The last one of its bucket.
    pub(super) last: bool,
}

/// A rule of one family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule<const N: usize> {
    pub(super) check: Check<N>,
    pub(super) found: PolicyMatch,
}

impl<const N: usize> Check<N> {
    #[inline]
    pub(super) fn passes(&self, packet: &Words<N>) -> bool {
        let differ = (0..N).fold(0, |d, w| d | ((packet[w] ^ self.value[w]) & self.mask[w]));
        let last = packet[N - 1];
        differ == 0
            && self.dst_ports.has((last >> DST_PORT) as u16)
            && self.src_ports.has((last >> SRC_PORT) as u16)
    }
}

/// Packets whose rules look at different fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Tcp,
    Udp,
    Icmp,
    Other,
}

impl Class {
    pub(super) const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::Icmp, Self::Other];

    pub(super) const fn of(protocol: u8) -> Self {
        match protocol {
            ipproto::TCP => Self::Tcp,
            ipproto::UDP => Self::Udp,
            ipproto::ICMP | ipproto::ICMPV6 => Self::Icmp,
            _ => Self::Other,
        }
    }
}

impl<const N: usize> Check<N> {
    /// The bits of packets of `class` that it looks at.
    pub(super) fn looked_at(&self, class: Class) -> Wildcards {
        let mut looked = Wildcards::default();
        let (value, mask) = (self.value[N - 1], self.mask[N - 1]);
        let protocol = (mask >> PROTOCOL) as u8 != 0;
        if protocol && Class::of((value >> PROTOCOL) as u8) != class {
            return looked;
        }
        let with_ports = matches!(class, Class::Tcp | Class::Udp);
        let mismatch = |bit: u64, fits: bool| mask & bit != 0 && !fits;
        if mismatch(HAS_PORTS, with_ports)
            || mismatch(HAS_ICMP, class == Class::Icmp)
            || mismatch(HAS_FLAGS, class == Class::Tcp)
        {
            return looked;
        }
        (looked.src_bits, looked.dst_bits) = self.prefix_bits();
        if mask & HAS_PORTS != 0 {
            let src = (mask >> SRC_PORT) as u16 != 0 || self.src_ports != Rest::ANY;
            let dst = (mask >> DST_PORT) as u16 != 0 || self.dst_ports != Rest::ANY;
            looked.src_port = if src { u16::MAX } else { 0 };
            // "Any port" still tells packets with ports from those without.
            looked.dst_port = if dst || !src { u16::MAX } else { 0 };
        }
        if mask & HAS_ICMP != 0 {
            looked.icmp = (mask >> DST_PORT) as u16;
        }
        if mask & HAS_FLAGS != 0 {
            let bits = (mask >> FLAGS) as u8;
            looked.tcp_flags = if bits == 0 { u8::MAX } else { bits };
        }
        looked
    }

    fn prefix_bits(&self) -> (u8, u8) {
        let ones = |bits: u64| bits.leading_ones() as u8;
        if N == V4 {
            (ones(self.mask[0] & HIGH), ones(self.mask[0] << 32))
        } else {
            let wide = |at: usize| match ones(self.mask[at]) {
                64 => 64 + ones(self.mask[at + 1]),
                short => short,
            };
            (wide(0), wide(2))
        }
    }
}

/// The last word of a packet.
fn last_word(query: &PolicyQuery) -> u64 {
    let mut word = u64::from(query.protocol) << PROTOCOL;
    match Class::of(query.protocol) {
        Class::Tcp | Class::Udp => {
            if let Some((src, dst)) = query.ports {
                word |= HAS_PORTS | u64::from(src) << SRC_PORT | u64::from(dst) << DST_PORT;
            }
        }
        Class::Icmp => {
            if let Some((kind, code)) = query.icmp {
                word |= HAS_ICMP | u64::from(u16::from_be_bytes([kind, code])) << DST_PORT;
            }
        }
        Class::Other => {}
    }
    if let (ipproto::TCP, Some(flags)) = (query.protocol, query.tcp_flags) {
        word |= HAS_FLAGS | u64::from(flags) << FLAGS;
    }
    word
}

const fn pair(high: u32, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

const fn halves(bits: u128) -> [u64; 2] {
    [(bits >> 64) as u64, bits as u64]
}

/// A packet's words, by family.
pub(super) enum Packet {
    V4(Words<V4>),
    V6(Words<V6>),
}

impl Packet {
    #[inline]
    pub(super) fn of(query: &PolicyQuery) -> Self {
        let groups = pair(query.src_group.get(), query.dst_group.get());
        let last = last_word(query);
        if let (IpAddr::V4(src), IpAddr::V4(dst)) = (query.src, query.dst) {
            return Self::V4([pair(src.to_bits(), dst.to_bits()), groups, last]);
        }
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => u128::from(ip.to_bits()),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        let ([s0, s1], [d0, d1]) = (halves(bits(query.src)), halves(bits(query.dst)));
        Self::V6([s0, s1, d0, d1, groups, last])
    }
}

/// The rule as rules of each family: at most one of IPv4, at most two of IPv6 (ICMP also means
/// ICMPv6). What can't match is none.
pub(super) struct Encoded {
    pub(super) v4: Option<Rule<V4>>,
    pub(super) v6: [Option<Rule<V6>>; 2],
}

impl Encoded {
    pub(super) fn of(rule: &RuleEntry, slot: u32) -> Self {
        let found = PolicyMatch::of(rule, slot);
        let icmp_v6 = (rule.protocol == Some(ipproto::ICMP)).then_some(Some(ipproto::ICMPV6));
        let v6 = |protocol: Option<u8>| {
            let ((src, src_mask), (dst, dst_mask)) = (v6_bits(rule.src)?, v6_bits(rule.dst)?);
            let ([s0, s1], [d0, d1]) = (halves(src), halves(dst));
            let ([m0, m1], [m2, m3]) = (halves(src_mask), halves(dst_mask));
            let (groups, last) = (groups(rule), last(rule, protocol)?);
            let value = [s0, s1, d0, d1, groups.0, last.value];
            Some(last.rule(value, [m0, m1, m2, m3, groups.1, last.mask], found))
        };
        let v4 = || {
            let ((src, src_mask), (dst, dst_mask)) = (v4_bits(rule.src)?, v4_bits(rule.dst)?);
            let (groups, last) = (groups(rule), last(rule, rule.protocol)?);
            let value = [pair(src, dst), groups.0, last.value];
            Some(last.rule(value, [pair(src_mask, dst_mask), groups.1, last.mask], found))
        };
        Self { v4: v4(), v6: [v6(rule.protocol), icmp_v6.and_then(v6)] }
    }
}

/// Value and mask of a prefix, `None` for one of another family.
const fn v4_bits(prefix: Option<Prefix>) -> Option<(u32, u32)> {
    let Some(prefix) = prefix else { return Some((0, 0)) };
    match prefix.address() {
        IpAddr::V4(ip) => {
            let mask = (u32::MAX as u64) << (32 - prefix.length());
            Some((ip.to_bits(), mask as u32))
        }
        IpAddr::V6(_) => None,
    }
}

const fn v6_bits(prefix: Option<Prefix>) -> Option<(u128, u128)> {
    let Some(prefix) = prefix else { return Some((0, 0)) };
    match prefix.address() {
        IpAddr::V6(ip) => {
            let len = prefix.length();
            let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
            Some((ip.to_bits(), mask))
        }
        IpAddr::V4(_) => None,
    }
}

/// Value and mask of the groups.
fn groups(rule: &RuleEntry) -> (u64, u64) {
    let bits = |group: Option<crate::ids::Group>| group.map_or((0, 0), |g| (g.get(), u32::MAX));
    let (src, dst) = (bits(rule.src_group), bits(rule.dst_group));
    (pair(src.0, dst.0), pair(src.1, dst.1))
}

/// A rule's last word.
struct Last {
    value: u64,
    mask: u64,
    src_ports: Rest,
    dst_ports: Rest,
}

impl Last {
    const fn rule<const N: usize>(
        &self,
        value: Words<N>,
        mask: Words<N>,
        found: PolicyMatch,
    ) -> Rule<N> {
        let order = found.order();
        let (src_ports, dst_ports) = (self.src_ports, self.dst_ports);
        Rule { check: Check { value, mask, src_ports, dst_ports, order, last: false }, found }
    }

    fn add(&mut self, value: u64, mask: u64) {
        self.value |= value;
        self.mask |= mask;
    }
}

/// `None` when nothing can match: an empty range, or flags outside their mask.
fn last(rule: &RuleEntry, protocol: Option<u8>) -> Option<Last> {
    let mut last = Last { value: 0, mask: 0, src_ports: Rest::ANY, dst_ports: Rest::ANY };
    if let Some(protocol) = protocol {
        last.add(u64::from(protocol) << PROTOCOL, 0xff << PROTOCOL);
    }
    if let Some(range) = rule.src_ports {
        let (value, mask, rest) = range_bits(range)?;
        last.add(HAS_PORTS | value << SRC_PORT, HAS_PORTS | mask << SRC_PORT);
        last.src_ports = rest;
    }
    if let Some(range) = rule.dst_ports {
        let (value, mask, rest) = range_bits(range)?;
        last.add(HAS_PORTS | value << DST_PORT, HAS_PORTS | mask << DST_PORT);
        last.dst_ports = rest;
    }
    if let Some(icmp) = rule.icmp {
        if rule.dst_ports.is_some() {
            return None;
        }
        let value = u16::from_be_bytes([icmp.kind, icmp.code.unwrap_or(0)]);
        let mask = if icmp.code.is_some() { 0xffff } else { 0xff00 };
        last.add(HAS_ICMP | u64::from(value) << DST_PORT, HAS_ICMP | mask << DST_PORT);
    }
    if let Some(flags) = rule.tcp_flags {
        if flags.value & !flags.mask != 0 {
            return None;
        }
        let (value, mask) = (u64::from(flags.value), u64::from(flags.mask));
        last.add(HAS_FLAGS | value << FLAGS, HAS_FLAGS | mask << FLAGS);
    }
    Some(last)
}

/// The common leading bits of a range, and what they leave to check.
fn range_bits(range: PortRange) -> Option<(u64, u64, Rest)> {
    let span = range.last.checked_sub(range.first)?;
    let differ = 16 - (range.first ^ range.last).leading_zeros();
    let mask = (0xffff_u64 << differ) & 0xffff;
    let block = (1_u32 << differ) - 1;
    let whole = u32::from(span) == block;
    let rest = if whole { Rest::ANY } else { Rest { first: range.first, span } };
    Some((u64::from(range.first) & mask, mask, rest))
}
