//! The tables of a tenant.

use anyhow::Result;
use flowtable::entry::{
    Direction, Entry, Ipv6, MacEntry, NetworkEntry, NextHop, Offload, Op, Permit, PortEntry,
    Prefix, RouteEntry, TenantEntry, Tracking, TunnelEntry, UnderlayEntry, VtepEntry,
};
use flowtable::ids::{Bd, Group, Mac, PortId, Vni, Vrf};

use super::acl;
use super::{Flow, Routes, SOURCES, Wire, container_mac, v4};

/// Our tunnel end point and the other node's.
const LOCAL_VTEP: u32 = 0xc0a8_3201;
const REMOTE_VTEP: u32 = 0xc0a8_3202;
const LOCAL_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xaa]);
const REMOTE_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xbb]);

/// How the tenant's packets come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From containers, routed to a container of this node.
    Local,
    /// From containers, routed to another node over VXLAN.
    Encap,
    /// From another node over VXLAN, to a container.
    Decap,
}

/// What to build.
#[derive(Debug, Clone, Copy)]
pub struct Tenant {
    /// Its number, which is also its network's; 10,000 above are destinations.
    pub number: u32,
    /// The first of its containers' ports and how many there are.
    pub ports: (u16, u16),
    /// Flows; flow `i` belongs to container `i` modulo their number.
    pub flows: u32,
    /// The container that packets go to.
    pub sink: PortId,
    /// The wire, when it is on the way.
    pub uplink: PortId,
    /// How packets come and go.
    pub way: Way,
    /// Rules of the policy.
    pub acl_rules: u32,
    /// Routes; at least the 1,000 that flows use.
    pub routes: u32,
    /// Whether connections are tracked.
    pub tracking: Tracking,
    /// What happens to packets that no rule allows.
    pub default: Permit,
}

impl Tenant {
    /// The container that flow `i` comes from.
    ///
    /// # Errors
    /// When the tenant's ports are out of range.
    pub fn port_of(&self, i: u32) -> Result<PortId> {
        let (first, count) = self.ports;
        Ok(PortId::new(u32::from(first) + i % u32::from(count.max(1)))?)
    }

    /// The headers around packets of this tenant that this node sends to the other one.
    #[must_use]
    pub const fn outbound(&self) -> Wire {
        let (macs, ips) = ((REMOTE_MAC, LOCAL_MAC), (LOCAL_VTEP, REMOTE_VTEP));
        Wire { macs, ips, vni: self.number }
    }

    /// The headers around packets of this tenant that the other node sends.
    #[must_use]
    pub const fn inbound(&self) -> Wire {
        let (macs, ips) = ((LOCAL_MAC, REMOTE_MAC), (REMOTE_VTEP, LOCAL_VTEP));
        Wire { macs, ips, vni: self.number }
    }

    /// Every entry of every table.
    ///
    /// # Errors
    /// When a number is out of its range.
    pub fn ops(&self) -> Result<Vec<Op>> {
        let vrf = Vrf::new(self.number)?;
        let mut entries = vec![
            Entry::Tenant(TenantEntry {
                tracking: self.tracking,
                ..TenantEntry::new(vrf, self.default)
            }),
            Entry::Network(NetworkEntry {
                bd: Bd::new(self.number)?,
                vrf,
                subnets: vec![Prefix::new(v4(SOURCES), 8)?],
                gateways: vec![v4(SOURCES + 0xff_fffe)],
                wire: None,
            }),
        ];
        self.containers(vrf, &mut entries)?;
        let direction = match self.way {
            Way::Local | Way::Encap => Direction::Out,
            Way::Decap => Direction::In,
        };
        let rules = acl::rules(self.acl_rules, vrf, direction)?;
        entries.extend(rules.into_iter().map(Entry::Rule));
        self.destinations(vrf, &mut entries)?;
        Ok(entries.into_iter().map(Op::Put).collect())
    }

    fn containers(&self, vrf: Vrf, entries: &mut Vec<Entry>) -> Result<()> {
        let (first, count) = self.ports;
        let bd = Bd::new(self.number)?;
        let mut container = |port: PortId, ips: Vec<u32>| {
            let entry = PortEntry {
                port,
                vrf,
                bd,
                group: Group::new(1)?,
                mac: container_mac(port.get()),
                ips: ips.into_iter().map(v4).collect(),
                ipv6: Ipv6::Off,
                sample_rate: 0,
                offload: Offload::On,
            };
            entries.push(Entry::Port(entry));
            anyhow::Ok(())
        };
        for at in 0..count {
            let own = (u32::from(at)..self.flows).step_by(usize::from(count));
            let own: Vec<u32> = own.map(|i| SOURCES + i).collect();
            // With fewer flows than ports, nobody is behind the others.
            if !own.is_empty() {
                container(PortId::new(u32::from(first + at))?, own)?;
            }
        }
        container(self.sink, vec![SOURCES + 0xff_0001])
    }

    fn destinations(&self, vrf: Vrf, entries: &mut Vec<Entry>) -> Result<()> {
        let bd = Bd::new(self.number + 10_000)?;
        let vni = Vni::new(self.number)?;
        let next_hop = match self.way {
            Way::Local | Way::Decap => NextHop::Local(self.sink),
            Way::Encap => NextHop::Tunnel { vtep: v4(REMOTE_VTEP), vni },
        };
        for route in Routes::new(self.routes).all() {
            let (prefix, mac) = (Prefix::new(v4(route.address), route.len)?, route.mac);
            entries.push(Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop }));
            entries.push(Entry::Mac(MacEntry { bd, mac, next_hop }));
        }
        if self.way != Way::Local {
            let (vtep, port) = (v4(REMOTE_VTEP), self.uplink);
            entries.push(Entry::Tunnel(TunnelEntry { vni, bd, vrf }));
            entries.push(Entry::Vtep(VtepEntry { ip: vtep, local: v4(LOCAL_VTEP) }));
            let (src_mac, dst_mac) = (LOCAL_MAC, REMOTE_MAC);
            entries.push(Entry::Underlay(UnderlayEntry { vtep, port, src_mac, dst_mac }));
        }
        Ok(())
    }

    /// The flow's packet of `size` bytes as it reaches the worker, without the tag of its port, and
    /// as it must leave it, with 0 as the source port of outer headers.
    ///
    /// # Errors
    /// When the tenant's ports are out of range.
    pub fn packets(&self, routes: &Routes, (i, flow): (u32, Flow), size: usize) -> Result<Packets> {
        let mac = routes.mac(flow.dst).unwrap_or(Mac::GATEWAY);
        let sent = || anyhow::Ok(flow.sent(self.port_of(i)?, size));
        let routed = flow.routed(mac, size);
        Ok(match self.way {
            Way::Local => Packets { received: sent()?, sent: routed },
            Way::Encap => Packets { received: sent()?, sent: self.outbound().wrap(&routed, 0) },
            Way::Decap => Packets {
                received: self.inbound().wrap(&routed, 49_152 + (i % 16_384) as u16),
                sent: routed,
            },
        })
    }
}

/// One packet at both ends of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packets {
    /// As it comes in.
    pub received: Vec<u8>,
    /// As it goes out.
    pub sent: Vec<u8>,
}
