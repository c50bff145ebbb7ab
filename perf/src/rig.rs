//! vrouterd's own worker on memory ports. Containers share the trunk as on a node; the wire has a
//! queue of its own.

use anyhow::{Context as _, Result};
use flowtable::entry::Op;
use flowtable::ids::PortId;
use packet_io::QueueId;
use packet_io::memory::{Inspect, MemoryIo, Sink, Tally};
use vrouter::{Engine, EngineConfig, Framing, PortKind, PortSpec, Worker, WorkerHandle};

use crate::traffic::Traffic;

/// The container that packets go to.
pub const SINK: u32 = 1000;
/// The wire.
pub const UPLINK: u32 = 2000;
/// The wire's queue.
pub const WIRE: QueueId = QueueId(1);
/// Frames in the memory region: enough for one burst of each queue, and small enough to stay in
/// the cache as a ring that is recycled last-in-first-out does.
const FRAMES: u32 = 512;

/// An engine and its worker, to be polled by the thread that has it.
#[derive(Debug)]
pub struct Rig {
    /// The control side.
    pub engine: Engine,
    /// The worker.
    pub worker: Worker<MemoryIo>,
    _handle: WorkerHandle<MemoryIo>,
}

impl Rig {
    /// An engine without ports whose worker has these queues, all of them counting what is sent.
    #[must_use]
    pub fn new(config: EngineConfig, queues: &[QueueId]) -> Self {
        let mut io = MemoryIo::new(FRAMES, queues);
        for queue in queues {
            io.set_sink(*queue, Sink::Tally(Tally::default()));
        }
        let engine = Engine::new(config);
        let (worker, handle) = engine.worker(io);
        Self { engine, worker, _handle: handle }
    }

    /// A rig that carries `traffic`, checked in full: ports, tables, feed and inspector are there.
    ///
    /// # Errors
    /// When a number is out of range or a table refuses.
    pub fn carrying(traffic: &Traffic, config: EngineConfig) -> Result<Self> {
        let mut rig = Self::new(config, traffic.queues());
        rig.add_tenant_ports(traffic)?;
        rig.write(&traffic.tenant.ops()?)?;
        rig.worker.io_mut().set_feed(traffic.queue_in(), traffic.feed()?);
        Ok(rig)
    }

    /// Adds the ports of the traffic's containers, of its sink and, when packets take it, the wire.
    ///
    /// # Errors
    /// When a number is out of range or a port is there already.
    pub fn add_tenant_ports(&mut self, traffic: &Traffic) -> Result<()> {
        let (first, count) = traffic.tenant.ports;
        let containers = (first..first + count).map(u32::from).chain([SINK]);
        for id in containers {
            self.add_port(id, PortKind::Container, Framing::Tagged)?;
        }
        if traffic.queues().contains(&WIRE) {
            self.add_port(UPLINK, PortKind::Uplink, Framing::Direct(WIRE))?;
        }
        Ok(())
    }

    /// Adds one port.
    ///
    /// # Errors
    /// When the number is out of range or another port has it.
    pub fn add_port(&mut self, id: u32, kind: PortKind, framing: Framing) -> Result<()> {
        let (name, ifindex) = (format!("mem{id}"), id);
        self.engine.add_port(PortSpec {
            id: PortId::new(id)?,
            name,
            ifindex,
            kind,
            framing,
            standby: Vec::new(),
        })?;
        Ok(())
    }

    /// Writes a batch.
    ///
    /// # Errors
    /// When the engine refuses it.
    pub fn write(&mut self, ops: &[Op]) -> Result<()> {
        self.engine.write(ops).context("writing the tables")?;
        Ok(())
    }

    /// Lets `traffic`'s output be compared from now on, all of it.
    ///
    /// # Errors
    /// When the traffic's numbers are out of range.
    pub fn check(&mut self, traffic: &Traffic) -> Result<crate::Verified> {
        let (checker, verified) = traffic.checker()?;
        let io = self.worker.io_mut();
        io.set_inspector(traffic.queue_out(), Inspect::All, Box::new(checker));
        Ok(verified)
    }

    /// What was sent to `queue` since the start.
    pub fn sent(&mut self, queue: QueueId) -> Tally {
        self.worker.io_mut().tally(queue).unwrap_or_default()
    }
}
