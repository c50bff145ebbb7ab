//! Immutable tables, as workers see them.
//!
//! The writer keeps every entry in one ordered map and rebuilds only the sections a batch touched;
//! the rest is shared with the snapshot before. A decision names the sections it looked at, so a
//! cached one is valid exactly when none of those changed since: [`Snapshot::valid_since`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use flowtable::entry::{
    Entry, EntryKey, NextHop, NodePort, Permit, PortEntry, RuleEntry, TenantEntry, Tracking,
    UnderlayEntry,
};
use flowtable::exact::ExactMap;
use flowtable::ids::{Bd, Group, Mac, MeterId, PortId, RuleId, Vid, Vni, Vrf};
use flowtable::lpm::Lpm;
use flowtable::meter::MeterSlot;
use flowtable::policy::{PolicyTable, RuleChange};
use packet_io::QueueId;

use crate::plain::Heads;
use crate::port::{Framing, PortKind, PortSpec};
use crate::qos::Qos;
use crate::validate::Before;

/// Sections of a snapshot that change on their own, as bits of a [`Sections`] set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Section {
    /// Port specs and bindings.
    Ports = 1,
    /// Networks, tunnels, VTEPs, VLANs and published ports.
    Networks = 2,
    /// Next hops of the underlay.
    Underlay = 4,
    /// Groups of addresses.
    Groups = 8,
    /// Rules and tenants' defaults.
    Policy = 16,
    /// Routes and MACs.
    Routes = 32,
    /// Meters of ports, and marks.
    Qos = 64,
}

const SECTION_COUNT: usize = 7;

/// A set of sections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sections(u8);

const _: () = assert!(SECTION_COUNT <= 8, "a section is a bit of a byte");
const _: () =
    assert!(1 << SECTION_COUNT == flowtable::hot::SETS, "a hot flow names one of the sets");

impl From<Section> for Sections {
    fn from(section: Section) -> Self {
        Self(section as u8)
    }
}

impl FromIterator<Section> for Sections {
    fn from_iter<I: IntoIterator<Item = Section>>(sections: I) -> Self {
        let mut all = Self::default();
        sections.into_iter().for_each(|section| all.add(section));
        all
    }
}

impl Sections {
    #[inline]
    pub(crate) fn add(&mut self, section: Section) {
        self.0 |= section as u8;
    }

    /// As a number below [`flowtable::hot::SETS`].
    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    pub(crate) const fn has(self, section: Section) -> bool {
        self.0 & section as u8 != 0
    }

    /// The section an entry lives in.
    pub(crate) const fn of(key: &EntryKey) -> Section {
        match key {
            EntryKey::Port(_) => Section::Ports,
            EntryKey::Qos(_) | EntryKey::Meter(_) => Section::Qos,
            EntryKey::Network(_)
            | EntryKey::Tunnel(_)
            | EntryKey::Vtep(_)
            | EntryKey::Vlan(_, _)
            | EntryKey::Published(_) => Section::Networks,
            EntryKey::Underlay(_) => Section::Underlay,
            EntryKey::Group(_, _) => Section::Groups,
            EntryKey::Rule(_, _) | EntryKey::Tenant(_) => Section::Policy,
            EntryKey::Route(_, _) | EntryKey::Mac(_, _) => Section::Routes,
        }
    }
}

/// A port as the pipeline sees it.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub(crate) spec: PortSpec,
    /// Absent: everything from and to it is dropped.
    pub(crate) binding: Option<PortEntry>,
}

/// What a packet's way needs to know of a port on the trunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OnTrunk {
    pub(crate) kind: PortKind,
    /// sFlow rate of its entry; 0 leaves it to the engine's setting.
    pub(crate) sample_rate: u32,
}

/// Ports by id.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    by_id: Vec<Option<Port>>,
    /// By id, for every packet.
    on_trunk: Vec<Option<OnTrunk>>,
    /// Ports with a queue of their own.
    direct: Vec<(QueueId, PortId)>,
}

impl Ports {
    #[inline]
    pub(crate) fn lookup(&self, id: PortId) -> Option<&Port> {
        self.by_id.get(usize::from(id.get())).and_then(Option::as_ref)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Port> {
        self.by_id.iter().flatten()
    }

    /// The port, if its frames come and go by the trunk.
    #[inline(always)]
    pub(crate) fn on_trunk(&self, id: PortId) -> Option<OnTrunk> {
        *self.on_trunk.get(usize::from(id.get()))?
    }

    /// The direct port of a queue. A node has a handful of uplinks: a scan is the fastest map.
    #[inline]
    pub(crate) fn of_queue(&self, queue: QueueId) -> Option<PortId> {
        self.direct.iter().find(|(q, _)| *q == queue).map(|(_, port)| *port)
    }
}

/// A bridge domain.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) wire: Option<(PortId, Vid)>,
}

/// Where a port of the node leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) vrf: Vrf,
    pub(crate) to: (IpAddr, u16),
}

/// Networks and what leads into them.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    pub(crate) by_bd: ExactMap<Bd, Network>,
    pub(crate) tunnels: ExactMap<Vni, (Bd, Vrf)>,
    pub(crate) vlans: ExactMap<(PortId, Vid), (Bd, Vrf)>,
    /// Remote tunnel end point to our own address towards it.
    pub(crate) vteps: ExactMap<IpAddr, IpAddr>,
    /// Gateway addresses of each tenant.
    pub(crate) gateways: ExactMap<(Vrf, IpAddr), Bd>,
    /// Ports of the node that lead to containers.
    pub(crate) published: ExactMap<NodePort, Published>,
}

/// Rules and defaults.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) rules: PolicyTable,
    pub(crate) tenants: ExactMap<Vrf, TenantEntry>,
    /// Of tenants without an entry.
    other: TenantEntry,
}

impl Policy {
    fn empty(tracking: Tracking) -> Self {
        let other = TenantEntry { tracking, ..TenantEntry::new(Vrf::MIN, Permit::Allow) };
        Self { rules: PolicyTable::build([]), tenants: ExactMap::default(), other }
    }

    /// What holds for a tenant.
    #[inline]
    pub(crate) fn tenant(&self, vrf: Vrf) -> &TenantEntry {
        self.tenants.get(&vrf).unwrap_or(&self.other)
    }
}

/// Where an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) bd: Bd,
    pub(crate) mac: Mac,
    pub(crate) next_hop: NextHop,
}

/// Routes and MACs.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    pub(crate) by_ip: Lpm<Route>,
    pub(crate) by_mac: ExactMap<(Bd, Mac), NextHop>,
}

/// All tables at one revision.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) revision: u64,
    pub(crate) ports: Arc<Ports>,
    pub(crate) networks: Arc<Networks>,
    pub(crate) underlay: Arc<ExactMap<IpAddr, UnderlayEntry>>,
    /// What networks and underlay say of tunnel end points, ready to be put in front of a packet.
    pub(crate) heads: Arc<Heads>,
    pub(crate) groups: Arc<Lpm<Group>>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) qos: Arc<Qos>,
    /// For every set of sections, the newest revision at which one of them changed.
    valid_since: [u64; 1 << SECTION_COUNT],
}

impl Snapshot {
    /// Tables without entries, at revision 0. `tracking` holds for tenants without an entry.
    pub(crate) fn empty(tracking: Tracking) -> Self {
        Self {
            revision: 0,
            ports: Arc::default(),
            networks: Arc::default(),
            underlay: Arc::default(),
            heads: Arc::default(),
            groups: Arc::default(),
            policy: Arc::new(Policy::empty(tracking)),
            routes: Arc::default(),
            qos: Arc::default(),
            valid_since: [0; 1 << SECTION_COUNT],
        }
    }

    /// A decision that looked at `sections` is valid when it was made at this revision or later.
    #[inline]
    pub(crate) fn valid_since(&self, sections: Sections) -> u64 {
        self.valid_since[usize::from(sections.0)]
    }

    /// Whether this section is not that of the snapshot before.
    pub(crate) fn changed(&self, section: Section) -> bool {
        self.valid_since(section.into()) == self.revision
    }

    /// [`Snapshot::valid_since`] of a set by its number.
    pub(crate) fn valid_since_set(&self, bits: u8) -> u64 {
        self.valid_since(Sections(bits))
    }

    /// [`Snapshot::valid_since`] of all sets.
    pub(crate) const fn valid_since_all(&self) -> &[u64; 1 << SECTION_COUNT] {
        &self.valid_since
    }

    /// The next snapshot: `changed` sections built from `master`, the rest shared with `self`.
    pub(crate) fn next(&self, master: &Master, changed: Sections) -> Self {
        let mut next = self.clone();
        next.revision += 1;
        if changed.has(Section::Ports) {
            next.ports = Arc::new(master.ports());
        }
        if changed.has(Section::Networks) {
            next.networks = Arc::new(master.networks());
        }
        if changed.has(Section::Underlay) {
            next.underlay = Arc::new(master.underlay());
        }
        if changed.has(Section::Networks) || changed.has(Section::Underlay) {
            next.heads = Arc::new(Heads::new(&next.underlay, &next.networks.vteps));
        }
        if changed.has(Section::Groups) {
            next.groups = Arc::new(master.groups());
        }
        if changed.has(Section::Policy) {
            next.policy = Arc::new(master.policy(&self.policy));
        }
        if changed.has(Section::Routes) {
            next.routes = Arc::new(master.routes());
        }
        if changed.has(Section::Qos) {
            next.qos = Arc::new(master.qos());
        }
        for (set, since) in next.valid_since.iter_mut().enumerate() {
            if set & usize::from(changed.0) != 0 {
                *since = next.revision;
            }
        }
        next
    }
}

/// What the writer keeps: every entry, every port, and the counter slot of every rule.
#[derive(Debug, Default)]
pub(crate) struct Master {
    pub(crate) entries: BTreeMap<EntryKey, Entry>,
    pub(crate) specs: BTreeMap<PortId, PortSpec>,
    pub(crate) slots: BTreeMap<RuleId, u32>,
    pub(crate) meters: BTreeMap<MeterId, MeterSlot>,
    /// How long packets above a meter's rate may wait; 0: they are dropped.
    pub(crate) meter_queue_ms: u32,
    /// What the batch that is being published changed; empty between batches.
    pub(crate) changed: Before,
}

impl Master {
    /// Whether the rule has at least one entry.
    pub(crate) fn has_rule(&self, id: RuleId) -> bool {
        let entries = EntryKey::Rule(id, 0)..=EntryKey::Rule(id, u32::MAX);
        self.entries.range(entries).next().is_some()
    }

    fn ports(&self) -> Ports {
        let mut ports = Ports::default();
        ports.by_id.resize(usize::from(PortId::MAX.get()) + 1, None);
        ports.on_trunk.resize(usize::from(PortId::MAX.get()) + 1, None);
        for (id, spec) in &self.specs {
            let binding = match self.entries.get(&EntryKey::Port(*id)) {
                Some(Entry::Port(entry)) => Some(entry.clone()),
                _ => None,
            };
            let sample_rate = binding.as_ref().map_or(0, |binding| binding.sample_rate);
            if spec.framing == Framing::Tagged {
                let on_trunk = OnTrunk { kind: spec.kind, sample_rate };
                ports.on_trunk[usize::from(id.get())] = Some(on_trunk);
            }
            ports.direct.extend(spec.queues().map(|queue| (queue, *id)));
            ports.by_id[usize::from(id.get())] = Some(Port { spec: spec.clone(), binding });
        }
        ports
    }

    fn networks(&self) -> Networks {
        let mut networks = Networks::default();
        for entry in self.entries.values() {
            if let Entry::Network(e) = entry {
                networks.gateways.extend(e.gateways.iter().map(|ip| ((e.vrf, *ip), e.bd)));
                let network = Network { gateways: e.gateways.clone(), wire: e.wire };
                networks.by_bd.insert(e.bd, network);
            } else if let Entry::Tunnel(e) = entry {
                networks.tunnels.insert(e.vni, (e.bd, e.vrf));
            } else if let Entry::Vlan(e) = entry {
                networks.vlans.insert((e.port, e.vid), (e.bd, e.vrf));
            } else if let Entry::Vtep(e) = entry {
                networks.vteps.insert(e.ip, e.local);
            } else if let Entry::Published(e) = entry {
                let published = Published { vrf: e.vrf, to: (e.to, e.to_port) };
                networks.published.insert(e.node, published);
            }
        }
        networks
    }

    fn underlay(&self) -> ExactMap<IpAddr, UnderlayEntry> {
        let mut underlay = ExactMap::default();
        for entry in self.entries.values() {
            if let Entry::Underlay(e) = entry {
                underlay.insert(e.vtep, e.clone());
            }
        }
        underlay
    }

    fn groups(&self) -> Lpm<Group> {
        let mut groups = Lpm::default();
        for entry in self.entries.values() {
            if let Entry::Group(e) = entry {
                groups.insert(e.vrf, e.prefix, e.group);
            }
        }
        groups
    }

    /// The tables before with what the batch changed: 10,000 rules need not be read for one.
    fn policy(&self, before: &Policy) -> Policy {
        let changes = self.changed.iter().filter_map(|(key, was)| {
            let EntryKey::Rule(id, _) = key else { return None };
            let after = self.entries.get(key).and_then(rule).zip(self.slots.get(id).copied());
            Some(RuleChange { before: was.as_ref().and_then(rule), after })
        });
        let rules = before.rules.update(changes);
        let mut policy = Policy { rules, ..Policy::empty(before.other.tracking) };
        for entry in self.entries.range(EntryKey::Tenant(Vrf::MIN)..=EntryKey::Tenant(Vrf::MAX)) {
            if let (_, Entry::Tenant(e)) = entry {
                policy.tenants.insert(e.vrf, e.clone());
            }
        }
        policy
    }

    fn qos(&self) -> Qos {
        let mut qos = Qos::default();
        // Meters and ports' settings are the last tables in the order of keys.
        for entry in self.entries.range(EntryKey::Meter(MeterId::MIN)..).map(|(_, entry)| entry) {
            if let Entry::Meter(e) = entry
                && let Some(slot) = self.meters.get(&e.meter)
            {
                qos.add_meter(*slot, e, self.meter_queue_ms);
            } else if let Entry::Qos(e) = entry {
                qos.add_port(e, |id| self.meters.get(&id).copied());
            }
        }
        qos
    }

    fn routes(&self) -> Routes {
        let mut routes = Routes::default();
        for entry in self.entries.values() {
            if let Entry::Route(e) = entry {
                let route = Route { bd: e.bd, mac: e.mac, next_hop: e.next_hop };
                routes.by_ip.insert(e.vrf, e.prefix, route);
            } else if let Entry::Mac(e) = entry {
                routes.by_mac.insert((e.bd, e.mac), e.next_hop);
            }
        }
        routes
    }
}

const fn rule(entry: &Entry) -> Option<&RuleEntry> {
    if let Entry::Rule(rule) = entry { Some(rule) } else { None }
}
