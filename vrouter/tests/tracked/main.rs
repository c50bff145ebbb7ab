//! Tracked tenants, packet by packet: which answers pass, when connections end, who may open how
//! many, what is charged, marked and logged, and that no cache makes a difference.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod changes;
mod counters;
mod crew;
mod drops;
#[expect(dead_code, reason = "the other tests use the rest")]
#[path = "../fabric/mod.rs"]
mod fabric;
mod fragments;
mod limits;
mod marks;
mod masked;
mod meters;
mod moves;
mod pickup;
mod published;
mod replies;
mod shaping;
mod tenants;

use flowtable::DropReason;
use flowtable::entry::{
    Direction, Entry, NextHop, OnDeny, Permit, PortRange, RuleEntry, TenantEntry,
};
use flowtable::ids::{PortId, RuleId, Vrf};
use vrouter::{Count, EngineConfig};

use fabric::frames::{L4, Packet, vxlan};
use fabric::{BLUE, Counter, Delivered, Fabric, Host, NET_A, UPLINK, VNI_A, VNI_B, from_remote};

const SECOND: u64 = 1_000_000_000;
const FIN: u8 = 0x11;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

/// What became of a packet.
type Fate = Result<(), DropReason>;

const DENIED: Fate = Err(DropReason::PolicyDeny);
const STRAY: Fate = Err(DropReason::NoConnection);

/// The node with tracked tenants and these entries.
fn with(entries: impl IntoIterator<Item = Entry>) -> Fabric {
    configured(&EngineConfig::default(), entries)
}

fn configured(config: &EngineConfig, entries: impl IntoIterator<Item = Entry>) -> Fabric {
    let mut fabric = Fabric::stateful(config);
    fabric.put(entries);
    fabric.wait(SECOND);
    fabric
}

fn tenant(default: Permit) -> TenantEntry {
    TenantEntry::new(BLUE, default)
}

/// A rule that matches everything of blue in one direction.
fn rule(id: u64, direction: Direction, permit: Permit) -> RuleEntry {
    RuleEntry { priority: 10, ..RuleEntry::any(RuleId(id), BLUE, direction, permit) }
}

/// Rules that let everyone of blue open connections to these TCP or UDP ports, at both ends.
fn open_to(protocol: u8, dst_port: u16) -> [Entry; 2] {
    [(1, Direction::Out), (2, Direction::In)].map(|(id, direction)| {
        Entry::Rule(RuleEntry {
            protocol: Some(protocol),
            dst_ports: Some(PortRange { first: dst_port, last: dst_port }),
            ..rule(id, direction, Permit::Allow)
        })
    })
}

/// Where a packet of a host comes to the node, and the frame.
fn sent(from: &Host, packet: &Packet) -> (PortId, Vec<u8>) {
    match from.place {
        NextHop::Local(port) => (port, packet.bytes()),
        NextHop::Tunnel { .. } => {
            let vni = if from.bd == NET_A { VNI_A } else { VNI_B };
            (UPLINK, vxlan(&from_remote(), vni.get(), &packet.bytes()))
        }
        NextHop::Vlan { .. } | NextHop::UnknownEndpoint => panic!("{from:?} is on no node"),
    }
}

/// Sends a packet; no time goes by.
fn send(fabric: &mut Fabric, from: &Host, packet: &Packet) -> Delivered {
    let (port, frame) = sent(from, packet);
    fabric.send_at_once(port, &frame)
}

fn fate(delivered: &Delivered) -> Fate {
    let reason = delivered
        .counters
        .keys()
        .find_map(|counter| if let Counter::Drop(reason) = counter { Some(*reason) } else { None });
    match (reason, delivered.out.len()) {
        (Some(reason), 0) => Err(reason),
        (None, 1) => Ok(()),
        _ => panic!("{delivered:?}"),
    }
}

/// Whether what one host says arrives at the other, in the same network.
fn says(fabric: &mut Fabric, from: &Host, to: &Host, l4: L4) -> Fate {
    fate(&send(fabric, from, &from.to(to).l4(l4)))
}

/// A TCP handshake from the first host's port to the second's.
fn connect(fabric: &mut Fabric, (from, src): (&Host, u16), (to, dst): (&Host, u16)) {
    assert_eq!(says(fabric, from, to, L4::Segment(src, dst, SYN)), Ok(()));
    assert_eq!(says(fabric, to, from, L4::Segment(dst, src, SYN_ACK)), Ok(()));
    assert_eq!(says(fabric, from, to, L4::Segment(src, dst, ACK)), Ok(()));
}

fn count(fabric: &Fabric, rule: u64) -> Count {
    let rules = fabric.engine.rules();
    rules.into_iter().find(|(id, _)| *id == RuleId(rule)).unwrap().1
}

/// How many connections a tenant has.
fn open_count(fabric: &Fabric, vrf: Vrf) -> usize {
    let all = fabric.engine.connections(usize::MAX);
    all.iter().filter(|conn| conn.tuple.vrf == vrf).count()
}

fn finishing() -> TenantEntry {
    TenantEntry { on_deny: OnDeny::Finish, ..tenant(Permit::Allow) }
}
