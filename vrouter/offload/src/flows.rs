//! The kernel's table of flows: see `bpf/flows.bpf.h`, whose structs are mirrored here.
//!
//! A flow is a key in a hash map and a slot in an array that the engine maps. The key leads to the
//! slot and its incarnation; a slot that was stopped fits no key any more, whatever is done to the
//! hash map later. A slot's incarnations only grow, also from one engine to the next.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flowtable::action::{Exit, Pop, Rewrite};
use flowtable::hot::{HotCount, HotError, HotFlow, HotSample, HotTable, SETS};
use flowtable::ids::{Dscp, Mac, PortId};
use flowtable::key::{FlowKey, ethertype};
use libbpf_rs::MapFlags;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::clock::Clock;
use crate::mapped::{End, Mapped, Slot, Words};
use crate::object::{self, Offload};
use crate::samples::Samples;
use crate::tunnel::Tunnels;

/// Set in a slot's incarnation when it has no flow.
pub(crate) const STOPPED: u32 = 1 << 31;
/// `FLOW_ROUTED`, `FLOW_MARKED` and `FLOW_TUNNELLED` of the programs.
const ROUTED: u8 = 1;
const MARKED: u8 = 2;
const TUNNELLED: u8 = 4;

/// How the table of flows is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowLimits {
    /// Most flows, a connection has two; at least 1.
    pub flows: u32,
    /// For how long flows go on without a sign of life of the engine.
    pub orphaned: Duration,
    /// Longest frame that is forwarded, without FCS: what the engine's way could take.
    pub frame_bytes: u16,
}

/// `struct flow_key` of the programs.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Key {
    source: [u8; 16],
    target: [u8; 16],
    vtep: [u8; 16],
    vni: u32,
    ports: [u8; 4],
    life: u32,
    port: u16,
    family: u8,
    protocol: u8,
}

/// `struct flow_ref` of the programs.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Ref {
    slot: u32,
    incarnation: u32,
}

/// The third field of [`Slot`].
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Place {
    out_port: u16,
    set: u8,
    rewrites: u8,
    dscp: u8,
    way: u8,
    frame_max: u16,
}

/// What of the table is mapped.
#[derive(Debug)]
pub(crate) struct Flows {
    slots: Mapped<Slot>,
    words: Mapped<Words>,
    ends: Mapped<End>,
    samples: Samples,
    clock: Clock,
    /// Of each slot, the life of the in-port in its key.
    lives: Box<[AtomicU32]>,
    limits: FlowLimits,
    /// Uplinks that have a device for tunnels.
    tunnels: Mutex<BTreeMap<PortId, Tunnels>>,
}

/// The table's maps, as far as the engine reads and writes them by itself.
#[derive(Debug)]
pub(crate) struct FlowMaps {
    pub(crate) slots: Mapped<Slot>,
    pub(crate) words: Mapped<Words>,
    pub(crate) ends: Mapped<End>,
    pub(crate) samples: Samples,
}

impl Flows {
    pub(crate) fn new(maps: FlowMaps, limits: FlowLimits) -> Self {
        let FlowMaps { slots, words, ends, samples } = maps;
        let lives = slots.iter().map(|_| AtomicU32::new(0)).collect();
        let tunnels = Mutex::default();
        Self { slots, words, ends, samples, clock: Clock::new(), lives, limits, tunnels }
    }

    /// The port is behind this device from now on; what was said of its former lives ends.
    pub(crate) fn begin_life(&self, port: PortId, ifindex: u32) {
        let end = self.end_of(port);
        let [_, life] = halves(end.who.load(Relaxed));
        end.sample_rate.store(0, Relaxed);
        end.sampled_from.store(0, Relaxed);
        // 0 is the life of an id that was never used.
        end.who.store(joined(ifindex, life.wrapping_add(1).max(1)), Release);
    }

    /// Nobody is behind the port.
    pub(crate) fn end_life(&self, port: PortId) {
        self.begin_life(port, 0);
    }

    /// The device and the life of a port.
    fn end(&self, port: PortId) -> [u32; 2] {
        halves(self.end_of(port).who.load(Acquire))
    }

    fn end_of(&self, port: PortId) -> &End {
        &self.ends[usize::from(port.get())]
    }

    fn slot(&self, place: u32) -> Option<&Slot> {
        self.slots.get(place as usize)
    }

    fn life(&self, place: u32) -> Option<&AtomicU32> {
        self.lives.get(place as usize)
    }

    fn key(&self, key: &FlowKey) -> Option<Key> {
        let port = PortId::new(key.in_port.into()).ok()?;
        let [_, life] = self.end(port);
        let family = match key.eth_type {
            ethertype::IPV4 => 4,
            ethertype::IPV6 => 6,
            _ => return None,
        };
        let [source, target] = [key.src_port, key.dst_port].map(u16::to_be_bytes);
        Some(Key {
            source: key.src,
            target: key.dst,
            vtep: key.tun_src,
            vni: key.vni,
            ports: [source[0], source[1], target[0], target[1]],
            life,
            port: key.in_port,
            family,
            protocol: key.proto,
        })
    }

    /// Writes the slot of a flow; returns its incarnation. `None`: the slot is worn out, there is no
    /// such place, or the flow is none that the programs can forward.
    fn write(&self, place: u32, flow: &HotFlow) -> Option<u32> {
        let frame_bytes = self.limits.frame_bytes;
        let (out, exit, frame_max) = match (flow.actions.pop, flow.actions.exit) {
            (Pop::Nothing | Pop::Tunnel, Exit::Plain(out)) => (out, 0, frame_bytes),
            (Pop::Nothing, Exit::Tunnel { port, .. }) => {
                (port, TUNNELLED, frame_bytes.min(self.tunnels(port)?.frame_bytes))
            }
            (
                Pop::Nothing | Pop::Tunnel | Pop::Vlan,
                Exit::Plain(_) | Exit::Tunnel { .. } | Exit::Vlan { .. } | Exit::Translated { .. },
            ) => return None,
        };
        let slot = self.slot(place)?;
        let incarnation = (slot.incarnation.load(Relaxed) & !STOPPED) + 1;
        if incarnation >= STOPPED {
            return None;
        }
        let [_, out_life] = self.end(out);
        let rewrites = exit
            | if flow.actions.route.is_some() { ROUTED } else { 0 }
            | if flow.actions.dscp.is_some() { MARKED } else { 0 };
        let value = Place {
            out_port: out.get(),
            set: flow.set,
            rewrites,
            dscp: flow.actions.dscp.map_or(0, Dscp::get),
            way: flow.is_reply.into(),
            frame_max,
        };
        slot.out_life.store(out_life, Relaxed);
        slot.place.store(word(value.as_bytes()), Relaxed);
        for (slot, macs) in slot.macs.iter().zip(macs(flow).chunks_exact(8)) {
            slot.store(word(macs), Relaxed);
        }
        slot.revision.store(flow.revision, Relaxed);
        slot.packets.store(0, Relaxed);
        slot.bytes.store(0, Relaxed);
        slot.incarnation.store(incarnation, Release);
        Some(incarnation)
    }

    /// The device for tunnels that an uplink has.
    pub(crate) fn tunnels(&self, port: PortId) -> Option<Tunnels> {
        self.lock_tunnels().get(&port).cloned()
    }

    /// The uplink has a device for tunnels from now on, or none.
    pub(crate) fn set_tunnels(&self, port: PortId, tunnels: Option<Tunnels>) {
        let mut all = self.lock_tunnels();
        match tunnels {
            Some(tunnels) => all.insert(port, tunnels),
            None => all.remove(&port),
        };
    }

    fn lock_tunnels(&self) -> MutexGuard<'_, BTreeMap<PortId, Tunnels>> {
        // Nothing that can panic runs while it is held.
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, place: u32) {
        if let Some(slot) = self.slot(place) {
            slot.incarnation.fetch_or(STOPPED, Release);
        }
    }
}

impl HotTable for Offload {
    fn places(&self) -> u32 {
        self.flows().map_or(0, |flows| flows.limits.flows)
    }

    fn put(&self, place: u32, flow: &HotFlow) -> Result<(), HotError> {
        let flows = self.flows().ok_or_else(|| HotError::new("no table of flows"))?;
        let key = flows.key(&flow.key).ok_or_else(|| HotError::new("no such flow"))?;
        if let Exit::Tunnel { port, vtep, vni } = flow.actions.exit {
            let ends = flows.tunnels(port).and_then(|tunnels| tunnels.towards(vtep, vni));
            let ends = ends.ok_or_else(|| HotError::new("no tunnel"))?;
            // Before the slot leads to it.
            self.put("flow_tunnels", place, ends.as_bytes()).map_err(HotError::new)?;
        }
        let written = flows.write(place, flow).zip(flows.life(place));
        let (incarnation, life) = written.ok_or_else(|| HotError::new("no such place"))?;
        life.store(key.life, Relaxed);
        let value = Ref { slot: place, incarnation };
        let put = self.put_bytes("flows", key.as_bytes(), (value.as_bytes(), MapFlags::NO_EXIST));
        put.inspect_err(|_| flows.stop(place)).map_err(HotError::new)
    }

    fn carries_tunnels(&self, uplink: PortId) -> bool {
        self.flows().is_some_and(|flows| flows.tunnels(uplink).is_some())
    }

    fn stop(&self, place: u32) {
        if let Some(flows) = self.flows() {
            flows.stop(place);
        }
    }

    fn stamp(&self, place: u32, revision: u64) {
        if let Some(slot) = self.flows().and_then(|flows| flows.slot(place)) {
            slot.revision.store(revision, Relaxed);
        }
    }

    fn count(&self, place: u32) -> HotCount {
        let slot = self.flows().and_then(|flows| flows.slot(place));
        let Some(slot) = slot else { return HotCount::default() };
        HotCount { packets: slot.packets.load(Relaxed), bytes: slot.bytes.load(Relaxed) }
    }

    fn clear(&self, place: u32, flow: &HotFlow) -> Result<(), HotError> {
        let Some(flows) = self.flows() else { return Ok(()) };
        let Some((key, life)) = flows.key(&flow.key).zip(flows.life(place)) else { return Ok(()) };
        // The port may have begun another life since.
        let key = Key { life: life.load(Relaxed), ..key };
        self.delete_bytes("flows", key.as_bytes()).map_err(HotError::new)
    }

    fn settle(&self) -> Result<(), HotError> {
        object::wait_for_programs().map_err(HotError::new)
    }

    fn publish(&self, valid_since: &[u64; SETS]) {
        let Some(words) = self.flows().and_then(|flows| flows.words.first()) else { return };
        for (word, since) in words.valid_since.iter().zip(valid_since) {
            word.store(*since, Relaxed);
        }
        fence(Release);
    }

    fn beat(&self) {
        let Some(flows) = self.flows() else { return };
        let until = flows.clock.now_ns().saturating_add(flows.limits.orphaned.as_nanos() as u64);
        if let Some(words) = flows.words.first() {
            words.alive_until.store(until, Relaxed);
        }
    }

    fn sample(&self, port: PortId, rate: u32) {
        if let Some(flows) = self.flows() {
            flows.end_of(port).sample_rate.store(rate, Relaxed);
        }
    }

    fn sampled_from(&self, port: PortId) -> u64 {
        self.flows().map_or(0, |flows| flows.end_of(port).sampled_from.load(Relaxed))
    }

    fn next_sample(&self) -> Option<HotSample> {
        self.flows()?.samples.next()
    }

    fn samples_lost(&self) -> u64 {
        let words = self.flows().and_then(|flows| flows.words.first());
        words.map_or(0, |words| words.samples_lost.load(Relaxed))
    }
}

fn macs(flow: &HotFlow) -> [u8; 24] {
    let FlowKey { eth_dst, eth_src, .. } = flow.key;
    let kept = Rewrite { src: Mac(eth_src), dst: Mac(eth_dst) };
    let Rewrite { src, dst } = flow.actions.route.unwrap_or(kept);
    let mut all = [0; 24];
    for (place, mac) in all.chunks_exact_mut(6).zip([eth_dst, eth_src, dst.0, src.0]) {
        place.copy_from_slice(&mac);
    }
    all
}

/// Eight bytes as they are in memory.
fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// `struct flow_end` of the programs: interface index and life.
fn halves(end: u64) -> [u32; 2] {
    zerocopy::transmute!(end)
}

fn joined(ifindex: u32, life: u32) -> u64 {
    zerocopy::transmute!([ifindex, life])
}
