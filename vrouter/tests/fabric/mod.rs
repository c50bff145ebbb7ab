//! A node with two tenants, in memory: engine, worker and slow path, driven one frame at a time.
//!
//! [`Fabric::send`] puts a frame on a port, lets everything run until it is quiet, and gives what
//! came out together with the change of *every* counter, so that comparing it with what is
//! [`received`] also says that nothing else happened. All frames are back in the pool after each.
//!
//! ```text
//! blue (vrf 1)  A 10.1.1.0/24 gw .254 vxlan 100    A1 port 1, A2 port 2; remote A8 (IPv6 node), A9
//!               B 10.1.2.0/24 gw .254 vxlan 101    B1 port 3;            remote B9
//!               V 10.1.3.0/24          vlan 30     V1 port 4;            on the wire V9
//! red (vrf 2)   R 10.1.1.0/24 gw .254 vxlan 200    R1 port 5, R2 port 6; remote R9
//! ```

pub(crate) mod frames;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowtable::DropReason;
use flowtable::entry::{
    Entry, GroupEntry, Ipv6, MacEntry, NetworkEntry, NextHop, Offload, Op, Permit, PortEntry,
    Prefix, RouteEntry, TenantEntry, Tracking, TunnelEntry, UnderlayEntry, VlanEntry, VtepEntry,
};
use flowtable::ids::{Bd, Group, Mac, PortId, RuleId, Vid, Vni, Vrf};
use packet_io::QueueId;
use packet_io::memory::MemoryIo;
use vrouter::{Count, Engine, EngineConfig, Framing, PortKind, PortSpec, SlowPath, Worker};

use frames::Packet;

/// The uplink's queue.
pub(crate) const WIRE: QueueId = QueueId(1);
/// Of a second device; what is sent there shows as sent by [`PortId::MAX`].
pub(crate) const SPARE: QueueId = QueueId(2);
pub(crate) const UPLINK: PortId = port(100);
pub(crate) const BLUE: Vrf = vrf(1);
pub(crate) const RED: Vrf = vrf(2);
pub(crate) const NET_A: Bd = bd(11);
pub(crate) const NET_B: Bd = bd(12);
pub(crate) const NET_V: Bd = bd(13);
pub(crate) const NET_R: Bd = bd(21);
pub(crate) const VNI_A: Vni = vni(100);
pub(crate) const VNI_B: Vni = vni(101);
pub(crate) const VNI_R: Vni = vni(200);
pub(crate) const VID_V: Vid = vid(30);
pub(crate) const WEB: Group = group(5);
pub(crate) const DB: Group = group(6);

/// This node and the others on the underlay.
pub(crate) const LOCAL: IpAddr = v4(10, 250, 0, 1);
pub(crate) const REMOTE: IpAddr = v4(10, 250, 0, 2);
pub(crate) const LOCAL6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
pub(crate) const REMOTE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
pub(crate) const UPLINK_MAC: Mac = Mac([2, 0xee, 0, 0, 0, 1]);
pub(crate) const ROUTER_MAC: Mac = Mac([2, 0xee, 0, 0, 0, 2]);

pub(crate) const A1: Host = Host::local(1, BLUE, NET_A, [10, 1, 1, 1]).in_group(WEB);
pub(crate) const A2: Host = Host::local(2, BLUE, NET_A, [10, 1, 1, 2]).in_group(DB);
pub(crate) const B1: Host = Host::local(3, BLUE, NET_B, [10, 1, 2, 1]).in_group(DB);
pub(crate) const V1: Host = Host::local(4, BLUE, NET_V, [10, 1, 3, 1]);
pub(crate) const R1: Host = Host::local(5, RED, NET_R, [10, 1, 1, 1]);
pub(crate) const R2: Host = Host::local(6, RED, NET_R, [10, 1, 1, 2]);
pub(crate) const A8: Host = Host::remote(REMOTE6, VNI_A, BLUE, NET_A, [10, 1, 1, 8]);
pub(crate) const A9: Host = Host::remote(REMOTE, VNI_A, BLUE, NET_A, [10, 1, 1, 9]).in_group(WEB);
pub(crate) const B9: Host = Host::remote(REMOTE, VNI_B, BLUE, NET_B, [10, 1, 2, 9]);
pub(crate) const R9: Host = Host::remote(REMOTE, VNI_R, RED, NET_R, [10, 1, 1, 9]);
pub(crate) const V9: Host = Host {
    place: NextHop::Vlan { port: UPLINK, vid: VID_V },
    ..Host::local(4094, BLUE, NET_V, [10, 1, 3, 9])
};
const HOSTS: [Host; 11] = [A1, A2, B1, V1, R1, R2, A8, A9, B9, R9, V9];

const FRAMES: u32 = 64;

pub(crate) const fn port(id: u32) -> PortId {
    if let Ok(id) = PortId::new(id) { id } else { panic!("no port id") }
}

pub(crate) const fn vrf(id: u32) -> Vrf {
    if let Ok(id) = Vrf::new(id) { id } else { panic!("no vrf") }
}

pub(crate) const fn bd(id: u32) -> Bd {
    if let Ok(id) = Bd::new(id) { id } else { panic!("no bridge domain") }
}

pub(crate) const fn vni(id: u32) -> Vni {
    if let Ok(id) = Vni::new(id) { id } else { panic!("no VNI") }
}

pub(crate) const fn vid(id: u32) -> Vid {
    if let Ok(id) = Vid::new(id) { id } else { panic!("no VLAN") }
}

pub(crate) const fn group(id: u32) -> Group {
    if let Ok(id) = Group::new(id) { id } else { panic!("no group") }
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

pub(crate) fn prefix(address: impl Into<IpAddr>, len: u8) -> Prefix {
    Prefix::new(address.into(), len).unwrap()
}

/// An endpoint and where it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    pub(crate) vrf: Vrf,
    pub(crate) bd: Bd,
    pub(crate) ip: Ipv4Addr,
    pub(crate) mac: Mac,
    pub(crate) place: NextHop,
    pub(crate) group: Group,
}

impl Host {
    pub(crate) const fn local(id: u32, vrf: Vrf, bd: Bd, ip: [u8; 4]) -> Self {
        Self::at(NextHop::Local(port(id)), vrf, bd, ip)
    }

    pub(crate) const fn remote(vtep: IpAddr, vni: Vni, vrf: Vrf, bd: Bd, ip: [u8; 4]) -> Self {
        Self::at(NextHop::Tunnel { vtep, vni }, vrf, bd, ip)
    }

    const fn at(place: NextHop, vrf: Vrf, bd: Bd, [a, b, c, d]: [u8; 4]) -> Self {
        let mac = Mac([2, vrf.get() as u8, a, b, c, d]);
        Self { vrf, bd, ip: Ipv4Addr::new(a, b, c, d), mac, place, group: Group::NONE }
    }

    pub(crate) const fn in_group(self, group: Group) -> Self {
        Self { group, ..self }
    }

    /// Its port.
    pub(crate) fn port(&self) -> PortId {
        let NextHop::Local(port) = self.place else { panic!("{self:?} is not on this node") };
        port
    }

    /// A UDP packet to a host of the same network.
    pub(crate) fn to(&self, peer: &Self) -> Packet {
        Packet::new((self.mac, peer.mac), (self.ip.into(), peer.ip.into()))
    }

    /// A UDP packet to a host of another network, for the gateway.
    pub(crate) fn via_gateway(&self, peer: &Self) -> Packet {
        self.to(peer).dst_mac(Mac::GATEWAY)
    }

    /// Its question who has `target`.
    pub(crate) fn asks(&self, target: Ipv4Addr) -> Vec<u8> {
        frames::arp_request(self.mac, self.ip, target)
    }

    /// The answer it gets from `mac`, who has `target`.
    pub(crate) fn is_told(&self, target: Ipv4Addr, mac: Mac) -> Vec<u8> {
        frames::arp(etherparse::ArpOperation::REPLY, (mac, self.mac), (target, self.ip))
    }

    pub(crate) fn binding(&self) -> PortEntry {
        PortEntry {
            port: self.port(),
            vrf: self.vrf,
            bd: self.bd,
            group: self.group,
            mac: self.mac,
            ips: vec![self.ip.into()],
            ipv6: Ipv6::Off,
            sample_rate: 0,
            offload: Offload::On,
        }
    }

    /// Its entries in the tables.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let Self { vrf, bd, mac, place: next_hop, .. } = *self;
        let prefix = Prefix::host(self.ip.into());
        let mut entries = vec![
            Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop }),
            Entry::Mac(MacEntry { bd, mac, next_hop }),
        ];
        if self.group != Group::NONE {
            entries.push(Entry::Group(GroupEntry { vrf, prefix, group: self.group }));
        }
        if let NextHop::Local(_) = self.place {
            entries.push(Entry::Port(self.binding()));
        }
        entries
    }
}

/// What surrounds a frame for the other node on the wire.
pub(crate) fn from_remote() -> Packet {
    Packet::new((ROUTER_MAC, UPLINK_MAC), (REMOTE, LOCAL))
}

/// As [`from_remote`], from the node with the IPv6 underlay.
pub(crate) fn from_remote6() -> Packet {
    Packet::new((ROUTER_MAC, UPLINK_MAC), (REMOTE6, LOCAL6))
}

pub(crate) fn container(id: PortId) -> PortSpec {
    PortSpec {
        id,
        name: format!("wr{id}"),
        ifindex: u32::from(id.get()) + 1000,
        kind: PortKind::Container,
        framing: Framing::Tagged,
        standby: Vec::new(),
    }
}

pub(crate) fn uplink() -> PortSpec {
    PortSpec {
        id: UPLINK,
        name: "uplink".to_owned(),
        ifindex: 1,
        kind: PortKind::Uplink,
        framing: Framing::Direct(WIRE),
        standby: Vec::new(),
    }
}

fn network(bd: Bd, vrf: Vrf, third: u8, wire: Option<(PortId, Vid)>) -> Entry {
    let gateways = if wire.is_some() { Vec::new() } else { vec![v4(10, 1, third, 254)] };
    let subnets = vec![prefix(v4(10, 1, third, 0), 24)];
    Entry::Network(NetworkEntry { bd, vrf, subnets, gateways, wire })
}

/// Nobody has the other addresses of this VXLAN network.
fn unknown(vrf: Vrf, bd: Bd, third: u8) -> Entry {
    Entry::Route(RouteEntry {
        vrf,
        prefix: prefix(v4(10, 1, third, 0), 24),
        bd,
        mac: Mac::default(),
        next_hop: NextHop::UnknownEndpoint,
    })
}

/// A stateless tenant.
pub(crate) fn stateless(vrf: Vrf, default: Permit) -> Entry {
    let tracking = Tracking::Stateless;
    Entry::Tenant(TenantEntry { tracking, ..TenantEntry::new(vrf, default) })
}

/// The way to a node of the underlay.
pub(crate) fn underlay(vtep: IpAddr) -> Entry {
    let (src_mac, dst_mac) = (UPLINK_MAC, ROUTER_MAC);
    Entry::Underlay(UnderlayEntry { vtep, port: UPLINK, src_mac, dst_mac })
}

/// Everything the node's tables hold.
pub(crate) fn tables() -> Vec<Entry> {
    let mut entries = vec![
        network(NET_A, BLUE, 1, None),
        network(NET_B, BLUE, 2, None),
        network(NET_V, BLUE, 3, Some((UPLINK, VID_V))),
        network(NET_R, RED, 1, None),
        unknown(BLUE, NET_A, 1),
        unknown(BLUE, NET_B, 2),
        unknown(RED, NET_R, 1),
        Entry::Tunnel(TunnelEntry { vni: VNI_A, bd: NET_A, vrf: BLUE }),
        Entry::Tunnel(TunnelEntry { vni: VNI_B, bd: NET_B, vrf: BLUE }),
        Entry::Tunnel(TunnelEntry { vni: VNI_R, bd: NET_R, vrf: RED }),
        Entry::Vlan(VlanEntry { port: UPLINK, vid: VID_V, bd: NET_V, vrf: BLUE }),
        Entry::Vtep(VtepEntry { ip: REMOTE, local: LOCAL }),
        Entry::Vtep(VtepEntry { ip: REMOTE6, local: LOCAL6 }),
        underlay(REMOTE),
        underlay(REMOTE6),
    ];
    entries.extend(HOSTS.iter().flat_map(Host::entries));
    entries
}

/// One of the engine's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Counter {
    Rx(PortId),
    Tx(PortId),
    PortDrops(PortId),
    Drop(DropReason),
    Rule(RuleId),
    /// Packets decided by the exact cache.
    Cached,
    /// Packets decided by walking the tables, or by a walk for another flow.
    Walked,
    /// Flows in the exact cache.
    Flows,
}

/// What came out, and by how much each counter that changed has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) out: Vec<(PortId, Vec<u8>)>,
    pub(crate) counters: BTreeMap<Counter, Count>,
}

/// What must happen when `frame` is received on a port: so far, only that.
pub(crate) fn received(port: PortId, frame: &[u8]) -> Delivered {
    Delivered::default().count(Counter::Rx(port), frame.len())
}

impl Delivered {
    fn count(mut self, counter: Counter, bytes: usize) -> Self {
        let count = self.counters.entry(counter).or_default();
        *count = Count { packets: count.packets + 1, bytes: count.bytes + bytes as u64 };
        self
    }

    /// Decided by the tables and cached as a new flow.
    pub(crate) fn walked(self) -> Self {
        self.rewalked().count(Counter::Flows, 0)
    }

    /// Decided by the tables; the flow was in the cache, but is no longer valid.
    pub(crate) fn rewalked(self) -> Self {
        self.count(Counter::Walked, 0)
    }

    /// Decided by the cache.
    pub(crate) fn cached(self) -> Self {
        self.count(Counter::Cached, 0)
    }

    /// Sent out of a port.
    pub(crate) fn out(mut self, port: PortId, frame: &[u8]) -> Self {
        self.out.push((port, frame.to_vec()));
        self.count(Counter::Tx(port), frame.len())
    }

    /// Received on `port`, dropped with that many bytes.
    pub(crate) fn dropped(self, port: PortId, reason: DropReason, bytes: usize) -> Self {
        self.count(Counter::PortDrops(port), 0).unowned(reason, bytes)
    }

    /// Dropped, and counted for no port.
    pub(crate) fn unowned(self, reason: DropReason, bytes: usize) -> Self {
        self.count(Counter::Drop(reason), bytes)
    }

    /// A rule matched it.
    pub(crate) fn matched(self, rule: RuleId, bytes: usize) -> Self {
        self.count(Counter::Rule(rule), bytes)
    }
}

/// The node.
pub(crate) struct Fabric {
    pub(crate) engine: Engine,
    pub(crate) worker: Worker<MemoryIo>,
    /// Of an engine with two: it gets what comes from ports with odd numbers.
    pub(crate) second: Option<Worker<MemoryIo>>,
    pub(crate) slow: SlowPath,
    pub(crate) now_ns: u64,
    before: BTreeMap<Counter, Count>,
}

impl Fabric {
    pub(crate) fn new() -> Self {
        Self::with_rule_slots(8)
    }

    pub(crate) fn with_rule_slots(rule_slots: usize) -> Self {
        let mut fabric = Self::empty(rule_slots);
        fabric.open_ports();
        fabric.put(tables());
        fabric
    }

    fn open_ports(&self) {
        self.engine.add_port(uplink()).unwrap();
        for host in HOSTS.iter().filter(|h| matches!(h.place, NextHop::Local(_))) {
            self.engine.add_port(container(host.port())).unwrap();
        }
    }

    /// With connections: tenants are tracked unless their entry says otherwise.
    pub(crate) fn stateful(config: &EngineConfig) -> Self {
        let config = EngineConfig { tracking: Tracking::Stateful, ..config.clone() };
        let mut fabric = Self::made(64, &config);
        fabric.open_ports();
        fabric.put(tables());
        fabric
    }

    /// No port and no entry. Tenants are stateless unless their entry says otherwise.
    pub(crate) fn empty(rule_slots: usize) -> Self {
        let tracking = Tracking::Stateless;
        Self::made(rule_slots, &EngineConfig { tracking, ..EngineConfig::default() })
    }

    /// As [`Fabric::empty`], with connections.
    pub(crate) fn empty_stateful(config: &EngineConfig) -> Self {
        Self::made(64, &EngineConfig { tracking: Tracking::Stateful, ..config.clone() })
    }

    fn made(rule_slots: usize, config: &EngineConfig) -> Self {
        let flow_entries = config.flow_entries.min(1 << 12);
        let config =
            EngineConfig { flow_entries, rule_slots, seed: 7, sample_queue: 1, ..config.clone() };
        let engine = Engine::new(config.clone());
        let io = |_| MemoryIo::new(FRAMES, &[QueueId::TRUNK, WIRE, SPARE]);
        let workers = engine.workers((0..config.workers).map(io).collect()).unwrap();
        let mut workers = workers.into_iter().map(|(worker, _handle)| worker);
        let (worker, second) = (workers.next().unwrap(), workers.next());
        let slow = engine.slow_path().unwrap();
        let before = counters(&engine);
        Self { engine, worker, second, slow, now_ns: 0, before }
    }

    /// Writes entries, one batch.
    pub(crate) fn put(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let ops: Vec<_> = entries.into_iter().map(Op::Put).collect();
        self.write(&ops);
    }

    /// Applies a batch.
    pub(crate) fn write(&mut self, ops: &[Op]) {
        self.engine.write(ops).unwrap();
        // A rule that is gone takes its counter with it.
        self.before = counters(&self.engine);
    }

    /// Receives a frame on a port and runs until it is quiet.
    pub(crate) fn send(&mut self, port: PortId, frame: &[u8]) -> Delivered {
        self.inject(port, frame);
        self.settle()
    }

    /// Puts a frame where the port's next one is received.
    pub(crate) fn inject(&mut self, port: PortId, frame: &[u8]) {
        if port == UPLINK {
            self.inject_raw(WIRE, frame);
        } else {
            let tag = [0x81, 0, (port.get() >> 8) as u8, port.get() as u8];
            let frame = [&frame[..12], &tag, &frame[12..]].concat();
            let second = self.second.as_mut().filter(|_| port.get() % 2 == 1);
            let worker = second.unwrap_or(&mut self.worker);
            assert!(worker.io_mut().inject(QueueId::TRUNK, &frame), "there is a buffer");
        }
    }

    fn workers(&mut self) -> impl Iterator<Item = &mut Worker<MemoryIo>> {
        std::iter::once(&mut self.worker).chain(&mut self.second)
    }

    /// Every worker looks at its queues; returns how many frames they handled.
    pub(crate) fn poll(&mut self) -> usize {
        let now_ns = self.now_ns;
        self.workers().map(|worker| worker.poll(now_ns)).sum()
    }

    /// Puts bytes on a queue.
    pub(crate) fn inject_raw(&mut self, queue: QueueId, bytes: &[u8]) {
        assert!(self.worker.io_mut().inject(queue, bytes), "{queue:?} takes no frame");
    }

    /// Time goes by without a packet.
    pub(crate) fn wait(&mut self, ns: u64) {
        self.now_ns += ns;
        self.poll();
    }

    /// As [`Fabric::send`], and no time goes by.
    pub(crate) fn send_at_once(&mut self, port: PortId, frame: &[u8]) -> Delivered {
        self.inject(port, frame);
        self.run()
    }

    /// Runs worker and slow path until nothing moves; a tenth of a second goes by.
    pub(crate) fn settle(&mut self) -> Delivered {
        self.settle_after(100_000_000)
    }

    /// As [`Fabric::settle`], when `ns` have gone by.
    pub(crate) fn settle_after(&mut self, ns: u64) -> Delivered {
        self.now_ns += ns;
        self.run()
    }

    fn run(&mut self) -> Delivered {
        while self.poll() > 0 {
            self.slow.poll();
        }
        let mut out = Vec::new();
        for worker in self.workers() {
            out.extend(worker.io_mut().take_sent(QueueId::TRUNK).iter().map(|f| untagged(f)));
            out.extend(worker.io_mut().take_sent(WIRE).into_iter().map(|frame| (UPLINK, frame)));
            let spare = worker.io_mut().take_sent(SPARE);
            out.extend(spare.into_iter().map(|frame| (PortId::MAX, frame)));
            let held = worker.io_mut().free_count() + worker.waiting();
            assert_eq!(held, FRAMES as usize, "frames are lost");
        }
        let after = counters(&self.engine);
        let changed = after.iter().filter_map(|(counter, now)| {
            let then = self.before.get(counter).copied().unwrap_or_default();
            let change =
                Count { packets: now.packets - then.packets, bytes: now.bytes - then.bytes };
            (change != Count::default()).then_some((*counter, change))
        });
        let counters = changed.collect();
        self.before = after;
        Delivered { out, counters }
    }
}

/// The port and the frame of a trunk frame.
fn untagged(frame: &[u8]) -> (PortId, Vec<u8>) {
    assert_eq!(frame[12..14], [0x81, 0], "the trunk carries tagged frames only");
    let id = u16::from_be_bytes([frame[14], frame[15]]);
    (port(u32::from(id)), [&frame[..12], &frame[16..]].concat())
}

/// Every counter of the engine.
fn counters(engine: &Engine) -> BTreeMap<Counter, Count> {
    let packets = |packets| Count { packets, bytes: 0 };
    let cache = engine.cache();
    let mut all = BTreeMap::from([
        (Counter::Cached, packets(cache.exact_hits)),
        (Counter::Walked, packets(cache.pipeline + cache.masked_hits)),
        (Counter::Flows, packets(cache.entries)),
    ]);
    for port in engine.ports() {
        let id = port.spec.id;
        all.insert(Counter::Rx(id), port.rx);
        all.insert(Counter::Tx(id), port.tx);
        all.insert(Counter::PortDrops(id), packets(port.drops));
    }
    all.extend(engine.drops().into_iter().map(|(reason, count)| (Counter::Drop(reason), count)));
    all.extend(engine.rules().into_iter().map(|(rule, count)| (Counter::Rule(rule), count)));
    all
}
