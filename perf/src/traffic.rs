//! What goes into a rig and what must come out of it.

use anyhow::Result;
use flowtable::entry::{Permit, Tracking};
use flowtable::ids::PortId;
use packet_io::QueueId;
use packet_io::memory::Feed;

use crate::rig::{SINK, UPLINK, WIRE};
use crate::verify::{Checker, Expected, Order, Verified};
use crate::workload::{OUTER_SOURCE_PORT, Routes, Tenant, Way, flow};

/// Containers that the flows come from.
const SOURCES: u16 = 64;
/// The tenant, its network and its VNI.
const TENANT: u32 = 100;
/// Where the layer 4 source port is in an untagged frame.
const SOURCE_PORT: usize = 34;
const TAG_BYTES: usize = 4;
const OUTER_BYTES: usize = 50;

/// A tenant's packets, in the order of their flows.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// Whose they are.
    pub tenant: Tenant,
    /// Bytes of a container's frame, from the Ethernet header on.
    pub frame_len: usize,
    /// Every packet is the first of its flow: its source port grows with every turn.
    pub fresh: bool,
    /// How they come out.
    pub order: Order,
}

impl Traffic {
    /// Traffic of `flows` flows that comes and goes `way`, through 1,000 rules and 1,000 routes.
    ///
    /// # Errors
    /// Never with the numbers of this file.
    pub fn new(flows: u32, way: Way) -> Result<Self> {
        let tenant = Tenant {
            number: TENANT,
            ports: (1, SOURCES),
            flows,
            sink: PortId::new(SINK)?,
            uplink: PortId::new(UPLINK)?,
            way,
            acl_rules: 1000,
            routes: 1000,
            tracking: Tracking::Stateful,
            default: Permit::Allow,
        };
        Ok(Self { tenant, frame_len: 64, fresh: false, order: Order::AsReceived })
    }

    /// The queues of a worker that carries it.
    #[must_use]
    pub const fn queues(&self) -> &'static [QueueId] {
        match self.tenant.way {
            Way::Local => &[QueueId::TRUNK],
            Way::Encap | Way::Decap => &[QueueId::TRUNK, WIRE],
        }
    }

    /// The queue it comes from.
    #[must_use]
    pub const fn queue_in(&self) -> QueueId {
        match self.tenant.way {
            Way::Local | Way::Encap => QueueId::TRUNK,
            Way::Decap => WIRE,
        }
    }

    /// The queue it goes to.
    #[must_use]
    pub const fn queue_out(&self) -> QueueId {
        match self.tenant.way {
            Way::Local | Way::Decap => QueueId::TRUNK,
            Way::Encap => WIRE,
        }
    }

    /// One packet of each flow, for ever.
    ///
    /// # Errors
    /// When the tenant's ports are out of range.
    pub fn feed(&self) -> Result<Feed> {
        let routes = Routes::new(1000);
        let frame = |i| {
            let packets = self.tenant.packets(&routes, (i, flow(i)), self.frame_len)?;
            Ok(match self.queue_in() {
                QueueId::TRUNK => tagged(packets.received, self.tenant.port_of(i)?),
                _ => packets.received,
            })
        };
        let frames = (0..self.tenant.flows).map(frame).collect::<Result<_>>()?;
        let feed = Feed::new(frames);
        Ok(if self.fresh { feed.fresh(source_port(self.queue_in())) } else { feed })
    }

    /// Compares what comes out, and the place where it notes how much that was.
    ///
    /// # Errors
    /// When the tenant's ports are out of range.
    pub fn checker(&self) -> Result<(Checker, Verified)> {
        let routes = Routes::new(1000);
        let mut frames = Vec::new();
        for i in 0..self.tenant.flows {
            let packets = self.tenant.packets(&routes, (i, flow(i)), self.frame_len)?;
            let sent = packets.sent;
            frames.extend(match self.queue_out() {
                QueueId::TRUNK => tagged(sent, self.tenant.sink),
                _ => sent,
            });
        }
        let expected = Expected {
            frame_len: frames.len() / (self.tenant.flows as usize).max(1),
            frames,
            fresh: self.fresh.then(|| source_port(self.queue_out())),
            hidden: (self.tenant.way == Way::Encap).then_some(OUTER_SOURCE_PORT),
        };
        Ok(Checker::new(expected, self.order))
    }
}

/// Where the (inner) source port is in a frame of this queue.
fn source_port(queue: QueueId) -> usize {
    match queue {
        QueueId::TRUNK => TAG_BYTES + SOURCE_PORT,
        _ => OUTER_BYTES + SOURCE_PORT,
    }
}

/// `frame` as it is on the trunk.
fn tagged(mut frame: Vec<u8>, port: PortId) -> Vec<u8> {
    let [high, low] = port.get().to_be_bytes();
    frame.splice(12..12, [0x81, 0x00, high, low]);
    frame
}
