//! One tuple: the rule entries that look at the same bits of a packet.
//!
//! The bits are masked into a [`Masked`] block, which is hashed. What can't be a mask (port
//! ranges, "ICMP means ICMPv6 in IPv6") stays with the rule as a check after the bucket is found.

use std::hash::BuildHasher as _;
use std::net::IpAddr;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use zerocopy::{ByteEq, ByteHash, Immutable, IntoBytes};

use super::{PolicyMatch, PolicyQuery, Rank};
use crate::entry::{IcmpMatch, PortRange, Prefix, RuleEntry, TcpFlagsMatch};
use crate::key::ipproto;

/// Which bits a rule entry looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    src_group: Use,
    dst_group: Use,
    src: Block,
    dst: Block,
    protocol: Use,
    src_port: Ports,
    dst_port: Ports,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Use {
    Any,
    Exact,
}

/// An address: not looked at, or so many leading bits of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Block {
    Any,
    V4(u8),
    V6(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Ports {
    /// Not part of the masked block: any, or a range.
    Unmasked,
    Exact,
}

impl Use {
    const fn of<T>(field: Option<&T>) -> Self {
        if field.is_some() { Self::Exact } else { Self::Any }
    }

    /// The value, or zero when it is not looked at.
    fn mask<T: Default>(self, value: T) -> T {
        match self {
            Self::Any => T::default(),
            Self::Exact => value,
        }
    }
}

impl Block {
    const fn of(prefix: Option<Prefix>) -> Self {
        match prefix {
            None => Self::Any,
            Some(prefix) if prefix.address().is_ipv4() => Self::V4(prefix.length()),
            Some(prefix) => Self::V6(prefix.length()),
        }
    }

    /// The leading bits, or `None` when the family is another.
    const fn mask(self, ip: IpAddr) -> Option<u128> {
        match (self, ip) {
            (Self::Any, _) => Some(0),
            (Self::V4(len), IpAddr::V4(ip)) => Some((ip.to_bits() as u128) & leading(len + 96)),
            (Self::V6(len), IpAddr::V6(ip)) => Some(ip.to_bits() & leading(len)),
            (Self::V4(_), IpAddr::V6(_)) | (Self::V6(_), IpAddr::V4(_)) => None,
        }
    }
}

/// The first `len` bits of 128.
const fn leading(len: u8) -> u128 {
    if len == 0 { 0 } else { u128::MAX << (128 - len) }
}

impl Ports {
    fn of(range: Option<PortRange>) -> Self {
        if range.is_some_and(|range| range.first == range.last) {
            Self::Exact
        } else {
            Self::Unmasked
        }
    }

    /// The port, or `None` when one is looked at and the packet has none.
    fn mask(self, port: Option<u16>) -> Option<u16> {
        match self {
            Self::Unmasked => Some(0),
            Self::Exact => port,
        }
    }
}

/// What of a packet the tuples mask.
pub(super) struct Fields {
    src_group: u32,
    dst_group: u32,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    src_port: Option<u16>,
    dst_port: Option<u16>,
    icmp: Option<(u8, u8)>,
    tcp_flags: Option<u8>,
}

impl Fields {
    pub(super) fn of(query: &PolicyQuery) -> Self {
        let has_ports = matches!(query.protocol, ipproto::TCP | ipproto::UDP);
        let (src_port, dst_port) = query.ports.filter(|_| has_ports).unzip();
        Self {
            src_group: query.src_group.get(),
            dst_group: query.dst_group.get(),
            src: query.src,
            dst: query.dst,
            protocol: query.protocol,
            src_port,
            dst_port,
            icmp: query.icmp,
            tcp_flags: query.tcp_flags,
        }
    }
}

/// The bits of a packet that a tuple looks at; the others are zero.
#[derive(Debug, Clone, Copy, ByteEq, ByteHash, IntoBytes, Immutable)]
#[repr(C)]
struct Masked {
    src: u128,
    dst: u128,
    src_group: u32,
    dst_group: u32,
    src_port: u16,
    dst_port: u16,
    protocol: u32,
}

impl Shape {
    pub(super) fn of(rule: &RuleEntry) -> Self {
        Self {
            src_group: Use::of(rule.src_group.as_ref()),
            dst_group: Use::of(rule.dst_group.as_ref()),
            src: Block::of(rule.src),
            dst: Block::of(rule.dst),
            protocol: Use::of(rule.protocol.as_ref()),
            src_port: Ports::of(rule.src_ports),
            dst_port: Ports::of(rule.dst_ports),
        }
    }

    /// `None`: no rule of this shape can match.
    fn mask(&self, fields: &Fields) -> Option<Masked> {
        Some(Masked {
            src: self.src.mask(fields.src)?,
            dst: self.dst.mask(fields.dst)?,
            src_group: self.src_group.mask(fields.src_group),
            dst_group: self.dst_group.mask(fields.dst_group),
            src_port: self.src_port.mask(fields.src_port)?,
            dst_port: self.dst_port.mask(fields.dst_port)?,
            protocol: self.protocol.mask(u32::from(fields.protocol)),
        })
    }

    /// The block under which a rule of this shape is stored.
    fn mask_rule(rule: &RuleEntry, protocol: u8) -> Masked {
        let bits = |prefix: Option<Prefix>| match prefix.map(Prefix::address) {
            None => 0,
            Some(IpAddr::V4(ip)) => u128::from(ip.to_bits()),
            Some(IpAddr::V6(ip)) => ip.to_bits(),
        };
        let port = |range: Option<PortRange>| match (Ports::of(range), range) {
            (Ports::Exact, Some(range)) => range.first,
            (Ports::Exact | Ports::Unmasked, _) => 0,
        };
        Masked {
            src: bits(rule.src),
            dst: bits(rule.dst),
            src_group: rule.src_group.map_or(0, crate::ids::Group::get),
            dst_group: rule.dst_group.map_or(0, crate::ids::Group::get),
            src_port: port(rule.src_ports),
            dst_port: port(rule.dst_ports),
            protocol: u32::from(protocol),
        }
    }
}

/// Rules of one shape, by their masked bits.
#[derive(Debug, Clone)]
pub(super) struct Tuple {
    shape: Shape,
    best: Rank,
    hasher: RandomState,
    buckets: HashTable<Bucket>,
}

#[derive(Debug, Clone)]
struct Bucket {
    masked: Masked,
    /// Best first once the tuple is sorted.
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    found: PolicyMatch,
    src_ports: Option<PortRange>,
    dst_ports: Option<PortRange>,
    icmp: Option<IcmpMatch>,
    tcp_flags: Option<TcpFlagsMatch>,
    family: Family,
}

/// Which packets a rule is stored for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Both,
    V6,
}

impl Rule {
    fn passes(&self, fields: &Fields) -> bool {
        let within = |range: Option<PortRange>, port: Option<u16>| {
            range.is_none_or(|r| port.is_some_and(|port| (r.first..=r.last).contains(&port)))
        };
        let icmp = |m: IcmpMatch| {
            fields
                .icmp
                .is_some_and(|(kind, code)| m.kind == kind && m.code.is_none_or(|c| c == code))
        };
        let flags = |m: TcpFlagsMatch| fields.tcp_flags.is_some_and(|f| f & m.mask == m.value);
        within(self.src_ports, fields.src_port)
            && within(self.dst_ports, fields.dst_port)
            && self.icmp.is_none_or(icmp)
            && self.tcp_flags.is_none_or(flags)
            && (self.family == Family::Both || fields.src.is_ipv6())
    }
}

impl Tuple {
    /// An empty tuple that is going to get a rule of rank `first`.
    pub(super) fn new(shape: Shape, first: Rank) -> Self {
        Self { shape, best: first, hasher: RandomState::default(), buckets: HashTable::new() }
    }

    /// Adds a rule of this tuple's shape.
    pub(super) fn insert(&mut self, rule: &RuleEntry, found: PolicyMatch) {
        self.best = self.best.min(found.rank());
        let mut stored = Rule {
            found,
            src_ports: rule.src_ports,
            dst_ports: rule.dst_ports,
            icmp: rule.icmp,
            tcp_flags: rule.tcp_flags,
            family: Family::Both,
        };
        self.store(Shape::mask_rule(rule, rule.protocol.unwrap_or(0)), stored);
        if rule.protocol == Some(ipproto::ICMP) {
            stored.family = Family::V6;
            self.store(Shape::mask_rule(rule, ipproto::ICMPV6), stored);
        }
    }

    fn store(&mut self, masked: Masked, rule: Rule) {
        let hash = self.hasher.hash_one(masked);
        let rehash = |bucket: &Bucket| self.hasher.hash_one(bucket.masked);
        self.buckets
            .entry(hash, |bucket| bucket.masked == masked, rehash)
            .or_insert_with(|| Bucket { masked, rules: Vec::with_capacity(1) })
            .get_mut()
            .rules
            .push(rule);
    }

    /// Orders each bucket; done once, after the last insert.
    pub(super) fn sorted(mut self) -> Self {
        for bucket in &mut self.buckets {
            bucket.rules.sort_unstable_by_key(|rule| rule.found.rank());
        }
        self
    }

    /// Rank of its best rule.
    pub(super) const fn best(&self) -> Rank {
        self.best
    }

    /// The best rule that matches.
    pub(super) fn lookup(&self, fields: &Fields) -> Option<&PolicyMatch> {
        let masked = self.shape.mask(fields)?;
        let hash = self.hasher.hash_one(masked);
        let bucket = self.buckets.find(hash, |bucket| bucket.masked == masked)?;
        bucket.rules.iter().find(|rule| rule.passes(fields)).map(|rule| &rule.found)
    }
}
