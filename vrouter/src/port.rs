//! What a port is to the engine: an identity and a way to send.

use flowtable::ids::PortId;
use packet_io::QueueId;

/// What is behind a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortKind {
    /// One container: bound to a tenant and checked for spoofing by its `port` entry.
    Container,
    /// The wire: VXLAN for our tunnel end points and our VLANs.
    Uplink,
}

/// How a port's frames travel between engine and device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// On [`QueueId::TRUNK`], with the port's id as an 802.1Q tag in front.
    Tagged,
    /// Untouched, on a queue of its own.
    Direct(QueueId),
}

/// A port as given by who opened its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// Its identity on this node.
    pub id: PortId,
    /// Device name.
    pub name: String,
    /// Kernel interface index: sFlow's data source.
    pub ifindex: u32,
    /// What is behind it.
    pub kind: PortKind,
    /// How its frames travel.
    pub framing: Framing,
    /// More queues whose frames are the port's; it sends on none of them.
    pub standby: Vec<QueueId>,
}

impl PortSpec {
    /// The queues that are the port's alone.
    pub(crate) fn queues(&self) -> impl Iterator<Item = QueueId> + '_ {
        let own = match self.framing {
            Framing::Direct(queue) => Some(queue),
            Framing::Tagged => None,
        };
        own.into_iter().chain(self.standby.iter().copied())
    }
}
