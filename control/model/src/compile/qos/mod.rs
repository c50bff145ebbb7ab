//! Meters and marks of this node's containers.
//!
//! A rate is two meters, one for what is sent and one for what is received. A meter's id is computed
//! from what it limits, so that unrelated changes leave it alone and the engine keeps its state:
//! bit 0 is the direction (0: sent, 1: received), the bits above it a number, and the two highest
//! bits say of what. 0 is no id: port and group numbers start at 1, and a tenant's bit is set.
//!
//! | id | limits | number |
//! |---|---|---|
//! | `0x0000_0002..=0x0000_1ffd` | a port | port id, 12 bits |
//! | `0x2000_0002..=0x2000_1ffd` | a port, for its runtime | port id, 12 bits |
//! | `0x4000_0000..=0x41ff_ffff` | a tenant's ports together | vrf, 24 bits |
//! | `0x8000_0002..=0xffff_ffff` | a group's ports together | group id, 30 bits |

use std::collections::BTreeMap;

use flowtable::entry::{Band, Entry, MeterEntry, MeterUnit, QosEntry};
use flowtable::ids::{Group, MeterId, PortId, Vrf};

use super::NodeView;
use crate::name::EndpointId;
use crate::profile::Scope;
use crate::rate::RateLimit;

/// Highest group number: more would not fit into a meter's id.
pub(crate) const GROUP_MAX: u32 = 0x3fff_ffff;

const RUNTIMES: u32 = 0x2000_0000;
const TENANTS: u32 = 0x4000_0000;
const GROUPS: u32 = 0x8000_0000;

/// What a pair of meters limits.
#[derive(Debug, Clone, Copy)]
enum Metered {
    Port(PortId),
    Runtime(PortId),
    Tenant(Vrf),
    Group(Group),
}

impl Metered {
    /// Ids for what is sent and what is received.
    fn ids(self) -> Option<[MeterId; 2]> {
        let pair = match self {
            Self::Port(port) => u32::from(port.get()) << 1,
            Self::Runtime(port) => RUNTIMES | u32::from(port.get()) << 1,
            Self::Tenant(vrf) => TENANTS | vrf.get() << 1,
            // The ledger hands out no more than GROUP_MAX.
            Self::Group(group) => GROUPS | (group.get() & GROUP_MAX) << 1,
        };
        Some([MeterId::new(pair).ok()?, MeterId::new(pair | 1).ok()?])
    }
}

/// The meters that some port names, each once.
type Meters = BTreeMap<MeterId, MeterEntry>;

impl NodeView<'_> {
    pub(super) fn qos(&self, entries: &mut Vec<Entry>) {
        let mut meters = Meters::new();
        for (id, port) in &self.placement.ports {
            entries.extend(self.port_qos(id, *port, &mut meters).map(Entry::Qos));
        }
        entries.extend(meters.into_values().map(Entry::Meter));
    }

    /// `None` when nothing is limited or marked, and for a port that is not bound.
    fn port_qos(&self, id: &EndpointId, port: PortId, meters: &mut Meters) -> Option<QosEntry> {
        let endpoint = self.intent.endpoints.get(id).filter(|e| e.host.node == *self.node)?;
        let tenant = self.intent.tenants.get(&endpoint.network.tenant)?;
        let group = self.intent.group_of(endpoint);
        if !self.intent.networks.contains_key(&endpoint.network)
            || (endpoint.group.is_some() && group.is_none())
        {
            return None;
        }
        let profile = group.and_then(|group| {
            let profile = self.intent.profiles.get(&group.spec.profile_key()?)?;
            Some((group.id, profile))
        });
        let mut qos = QosEntry { port, from: Vec::new(), to: Vec::new(), dscp: None };
        if let Some((group, profile)) = profile {
            let whose = match profile.scope {
                Scope::Endpoint => Metered::Port(port),
                Scope::Group => Metered::Group(group),
            };
            limit(&mut qos, whose, &profile.limit, meters);
            qos.dscp = profile.dscp;
        }
        limit(&mut qos, Metered::Tenant(tenant.vrf), &tenant.settings.limit, meters);
        let limits = self.placement.limits.get(id).copied().unwrap_or_default();
        if let Some([from, to]) = Metered::Runtime(port).ids() {
            meter(&mut qos.from, from, limits.from, meters);
            meter(&mut qos.to, to, limits.to, meters);
        }
        let is_plain = qos.from.is_empty() && qos.to.is_empty() && qos.dscp.is_none();
        (!is_plain).then_some(qos)
    }
}

/// Names the meters of a limit in both directions; no limit names none.
fn limit(qos: &mut QosEntry, whose: Metered, limit: &RateLimit, meters: &mut Meters) {
    let Some((rate, [from, to])) = limit.bandwidth.bits_per_second().zip(whose.ids()) else {
        return;
    };
    let band = Some(Band { rate, burst: limit.burst_bytes(rate) });
    meter(&mut qos.from, from, band, meters);
    meter(&mut qos.to, to, band, meters);
}

/// Names the meter of one direction.
fn meter(named: &mut Vec<MeterId>, meter: MeterId, band: Option<Band>, meters: &mut Meters) {
    let Some(committed) = band else { return };
    let unit = MeterUnit::Bits;
    meters.insert(meter, MeterEntry { meter, unit, committed, peak: None, yellow_dscp: None });
    named.push(meter);
}

#[cfg(test)]
mod tests;
