//! What a packet is to the connections of its tenant: asked before the walk, by the worker for real
//! packets and by traces for imagined ones.
//!
//! The answer is a [`Relation`]: the walk is a function of it, so the tables never see a connection.
//! An echo exchange is a connection of the two addresses and the identifier (RFC 5508, section 3);
//! an ICMP error belongs to the connection of the packet it quotes (RFC 792, RFC 4443).

use std::sync::{Mutex, PoisonError};

use flowtable::DropReason;
use flowtable::conn::{ConnTable, Hit, Outside, Seconds, Tuple, Way};
use flowtable::entry::Tracking;
use flowtable::fragment::{FragKey, FragTable};
use flowtable::ids::Vrf;
use flowtable::key::{FlowKey, Parsed, ethertype, flag, ipproto, tcp_flag};
use flowtable::text::CtAssume;

use crate::pipeline::{self, Relation};
use crate::snapshot::Snapshot;

/// Bytes of an ICMP error before the packet it quotes (RFC 792, RFC 4443 section 2.1).
const ERROR_BYTES: usize = 8;

/// A packet's relation, and the connection when there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) relation: Relation,
    pub(crate) hit: Option<Hit>,
    /// Of an answer to who came to a published port: where that was.
    pub(crate) outside: Option<Outside>,
}

impl Standing {
    pub(crate) const UNTRACKED: Self = Self::none(Relation::Untracked);

    pub(crate) const fn none(relation: Relation) -> Self {
        Self { relation, hit: None, outside: None }
    }

    /// What the walk is a function of.
    pub(crate) const fn seen(&self) -> (Relation, Option<Outside>) {
        (self.relation, self.outside)
    }
}

/// How packets of a key take part in connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Not at all.
    None,
    /// With a tuple of their own.
    Packet,
    /// By the packet they quote.
    Error,
    /// By the first fragment.
    Fragment,
}

impl Part {
    pub(crate) const fn of(key: &FlowKey) -> Self {
        if !matches!(key.eth_type, ethertype::IPV4 | ethertype::IPV6) {
            return Self::None;
        }
        if key.flags & flag::FRAG_LATER != 0 {
            return Self::Fragment;
        }
        match (key.eth_type, key.proto, key.src_port) {
            (ethertype::IPV4, ipproto::ICMP, 0 | 8)
            | (ethertype::IPV6, ipproto::ICMPV6, 128 | 129) => Self::Packet,
            // RFC 792: unreachable, source quench, redirect, time exceeded, parameter problem.
            // RFC 4443, section 2.1: errors are below 128.
            (ethertype::IPV4, ipproto::ICMP, 3 | 4 | 5 | 11 | 12)
            | (ethertype::IPV6, ipproto::ICMPV6, 1..=127) => Self::Error,
            (_, ipproto::ICMP | ipproto::ICMPV6, _) => Self::None,
            _ => Self::Packet,
        }
    }
}

/// The packet's tuple; of an echo message, one that its answer reverses.
pub(crate) fn tuple(key: &FlowKey, vrf: Vrf) -> Tuple {
    let &FlowKey { eth_type: family, proto, src, dst, mut src_port, mut dst_port, .. } = key;
    if matches!(proto, ipproto::ICMP | ipproto::ICMPV6) {
        let [high, low] = key.icmp_id.to_be_bytes();
        // The asker's number is below 256, the other's is not: a question never looks like the
        // answer to one of the other side's.
        (src_port, dst_port) = (u16::from(high), 0x100 | u16::from(low));
        if matches!(key.src_port, 0 | 129) {
            (src_port, dst_port) = (dst_port, src_port);
        }
    } else if !matches!(proto, ipproto::TCP | ipproto::UDP) {
        (src_port, dst_port) = (0, 0);
    }
    Tuple { vrf, family, proto, src, dst, src_port, dst_port }
}

/// The packet's tuple as its tenant sees it: translated, if it is for a published port.
pub(crate) fn tuple_in(snapshot: &Snapshot, key: &FlowKey, vrf: Vrf) -> Tuple {
    match pipeline::published(snapshot, key) {
        Some(published) => tuple(&published.translated(key), vrf),
        None => tuple(key, vrf),
    }
}

/// The packet that opens a connection, as far as its tuple tells: the inverse of [`tuple`].
#[must_use]
pub fn opening_key(tuple: &Tuple) -> FlowKey {
    let &Tuple { family: eth_type, proto, src, dst, src_port, dst_port, .. } = tuple;
    let key = FlowKey { eth_type, proto, src, dst, ..FlowKey::default() };
    let kind = match proto {
        ipproto::ICMP => 8,
        ipproto::ICMPV6 => 128,
        _ => return FlowKey { src_port, dst_port, ..key },
    };
    let (high, low) = (src_port.min(dst_port), src_port.max(dst_port));
    FlowKey { src_port: kind, icmp_id: high << 8 | low & 0xff, ..key }
}

/// What is remembered of packets, by all workers.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) connections: ConnTable,
    /// Fragmented packets whose first fragment has passed. Locked for fragments only; the later ones
    /// have no ports, so they may come to another worker than the first.
    fragments: Mutex<FragTable<()>>,
}

impl Memory {
    pub(crate) const fn new(connections: ConnTable, fragments: FragTable<()>) -> Self {
        Self { connections, fragments: Mutex::new(fragments) }
    }

    /// What a packet is to the connections of its tenant. `frame` is the packet as parsed.
    pub(crate) fn stand(
        &self,
        snapshot: &Snapshot,
        (parsed, frame): (&Parsed, &[u8]),
        now: Seconds,
    ) -> Standing {
        // Without a tenant the walk ends before anyone asks.
        let Some(vrf) = pipeline::tenant(snapshot, &parsed.key) else { return Standing::UNTRACKED };
        if snapshot.policy.tenant(vrf).tracking == Tracking::Stateless {
            return Standing::UNTRACKED;
        }
        let stray = Relation::Stray(DropReason::NoConnection);
        match Part::of(&parsed.key) {
            Part::None => Standing::UNTRACKED,
            Part::Fragment => Standing::none(if self.first_has_passed(parsed, vrf, now) {
                Relation::Admitted
            } else {
                Relation::Stray(DropReason::Fragment)
            }),
            Part::Error => {
                let about = quoted(parsed, frame, vrf);
                let known = |about| self.connections.find(&about, tcp_flag::ACK, now);
                // What it quotes of one from outside would have to be translated too.
                let inside = |(_, outside): (Hit, Option<Outside>)| outside.is_none();
                let admitted = about.and_then(known).is_some_and(inside);
                Standing::none(if admitted { Relation::Admitted } else { stray })
            }
            Part::Packet => self.stand_as(snapshot, (parsed, vrf), now),
        }
    }

    /// What a packet with a tuple of its own is.
    fn stand_as(
        &self,
        snapshot: &Snapshot,
        (parsed, vrf): (&Parsed, Vrf),
        now: Seconds,
    ) -> Standing {
        let stray = Standing::none(Relation::Stray(DropReason::NoConnection));
        let tuple = tuple_in(snapshot, &parsed.key, vrf);
        let Some((hit, outside)) = self.connections.find(&tuple, parsed.tcp_flags, now) else {
            return if opens(parsed) { Standing::none(Relation::Opening) } else { stray };
        };
        let came = pipeline::far_side(snapshot, &parsed.key).map(|far| far.published);
        match (hit.way, came) {
            // The same two ends, by another published port or by none, are another connection, of
            // which the table has no place.
            (Way::Original, came) if came == outside.map(|far| far.published) => {
                Standing { relation: Relation::Original, hit: Some(hit), outside: None }
            }
            (Way::Reply, None) => Standing { relation: Relation::Reply, hit: Some(hit), outside },
            (Way::Original, _) | (Way::Reply, Some(_)) => stray,
        }
    }

    /// Whether the two ends of a TCP segment have a connection, also one that it is no part of.
    pub(crate) fn knows(&self, snapshot: &Snapshot, parsed: &Parsed, now: Seconds) -> bool {
        let tenant = pipeline::tenant(snapshot, &parsed.key);
        let tuple = tenant.map(|vrf| tuple_in(snapshot, &parsed.key, vrf));
        tuple.is_some_and(|tuple| self.connections.lookup(&tuple, parsed.tcp_flags, now).is_some())
    }

    fn first_has_passed(&self, parsed: &Parsed, vrf: Vrf, now: Seconds) -> bool {
        let fragments = self.fragments.lock().unwrap_or_else(PoisonError::into_inner);
        fragment(parsed, vrf).is_some_and(|key| fragments.find(&key, now.0.into()).is_some())
    }

    /// The first fragment of a packet has passed: the later ones may.
    pub(crate) fn note_first(&self, parsed: &Parsed, vrf: Vrf, now: Seconds) {
        let mut fragments = self.fragments.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = fragment(parsed, vrf) {
            fragments.note(key, (), now.0.into());
        }
    }
}

/// The packet that a fragment is a part of.
fn fragment(parsed: &Parsed, vrf: Vrf) -> Option<FragKey> {
    let key = &parsed.key;
    let addresses = key.src_ip().zip(key.dst_ip())?;
    Some(FragKey::new(vrf, key.proto, addresses, parsed.fragment_id))
}

/// What a packet is if the table is assumed to say so. Where nobody asks the table, nothing can be
/// assumed.
pub(crate) fn assumed(snapshot: &Snapshot, parsed: &Parsed, assume: CtAssume) -> Relation {
    let Some(vrf) = pipeline::tenant(snapshot, &parsed.key) else { return Relation::Untracked };
    let tenant = snapshot.policy.tenant(vrf);
    let part = Part::of(&parsed.key);
    if tenant.tracking == Tracking::Stateless || part == Part::None {
        return Relation::Untracked;
    }
    match (assume, part) {
        (CtAssume::New, Part::Fragment) => Relation::Stray(DropReason::Fragment),
        (CtAssume::New, Part::Packet) if opens(parsed) => Relation::Opening,
        (CtAssume::New, _) => Relation::Stray(DropReason::NoConnection),
        (CtAssume::Established, Part::Packet) => Relation::Original,
        (CtAssume::Reply, Part::Packet) => Relation::Reply,
        (CtAssume::Established | CtAssume::Reply | CtAssume::Related, _) => Relation::Admitted,
    }
}

/// Whether a packet of no connection can open one.
const fn opens(parsed: &Parsed) -> bool {
    let key = &parsed.key;
    match key.proto {
        ipproto::TCP => {
            let flags = tcp_flag::SYN | tcp_flag::ACK | tcp_flag::FIN | tcp_flag::RST;
            parsed.tcp_flags & flags == tcp_flag::SYN
        }
        ipproto::ICMP | ipproto::ICMPV6 => matches!(key.src_port, 8 | 128),
        _ => true,
    }
}

/// Whether a TCP segment without SYN can be one of a connection from before this engine started.
pub(crate) const fn may_be_midstream(parsed: &Parsed) -> bool {
    let flags = tcp_flag::SYN | tcp_flag::RST | tcp_flag::ACK;
    parsed.key.proto == ipproto::TCP && parsed.tcp_flags & flags == tcp_flag::ACK
}

/// The tuple of the packet that an ICMP error quotes, if it was sent by who gets the error. The
/// quote holds the IP header and at least 8 bytes more.
fn quoted(parsed: &Parsed, frame: &[u8], vrf: Vrf) -> Option<Tuple> {
    let quote = frame.get(usize::from(parsed.l4) + ERROR_BYTES..)?;
    let mut key = FlowKey { eth_type: parsed.key.eth_type, ..FlowKey::default() };
    let payload = if key.eth_type == ethertype::IPV4 {
        let header: &[u8; 20] = quote.first_chunk()?;
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        let header_bytes = usize::from(header[0] & 0x0f) * 4;
        if header[0] >> 4 != 4 || header_bytes < header.len() || fragment != 0 {
            return None;
        }
        let &[.., s0, s1, s2, s3, d0, d1, d2, d3] = header;
        key.proto = header[9];
        key.src = flowtable::key::mapped([s0, s1, s2, s3]);
        key.dst = flowtable::key::mapped([d0, d1, d2, d3]);
        quote.get(header_bytes..)?
    } else {
        let header: &[u8; 40] = quote.first_chunk()?;
        key.proto = header[6];
        key.src = *header.get(8..)?.first_chunk()?;
        key.dst = *header.get(24..)?.first_chunk()?;
        quote.get(header.len()..)?
    };
    let &[p0, p1, p2, p3, i0, i1, ..] = payload.first_chunk::<8>()?;
    if matches!(key.proto, ipproto::ICMP | ipproto::ICMPV6) {
        key.src_port = u16::from(p0);
        key.icmp_id = u16::from_be_bytes([i0, i1]);
        // Nobody is told of an error about an error (RFC 1122, section 3.2.2).
        if Part::of(&key) != Part::Packet {
            return None;
        }
    } else {
        key.src_port = u16::from_be_bytes([p0, p1]);
        key.dst_port = u16::from_be_bytes([p2, p3]);
    }
    (key.src == parsed.key.dst).then(|| tuple(&key, vrf))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opening_packet_is_told_from_its_tuple() {
        let vrf = Vrf::MIN;
        let [src, dst] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(flowtable::key::mapped);
        let key = FlowKey { eth_type: ethertype::IPV4, src, dst, ..FlowKey::default() };
        let tcp = FlowKey { proto: ipproto::TCP, src_port: 40_000, dst_port: 80, ..key };
        let echo = FlowKey { proto: ipproto::ICMP, src_port: 8, icmp_id: 0x1234, ..key };
        let other = FlowKey { proto: 47, ..key };
        for key in [tcp, echo, FlowKey { icmp_id: 0xff00, ..echo }, other] {
            assert_eq!(opening_key(&tuple(&key, vrf)), key);
        }
        // Its answer is the reverse of the same tuple.
        let answer = FlowKey { src_port: 0, src: dst, dst: src, ..echo };
        assert_eq!(opening_key(&tuple(&answer, vrf).reversed()), echo);
    }
}
