//! The `AF_XDP` sockets of dedicated uplinks: opening them on the first worker, and giving them back.
//! The other workers send what leaves there over their trunks (decision 0029).

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use afxdp::{ProgramKind, RING_SIZE, Umem, XdpProgram, XskQueue, XskStats};
use flowtable::ids::PortId;
use netdev::ethtool;
use packet_io::QueueId;

use crate::crew::Crew;
use crate::ports::PortsError;

/// A device's program and the worker's queue that it feeds. Dropping it takes the program off; the
/// queue is given to [`Sockets::close`].
#[derive(Debug)]
pub(crate) struct Direct {
    pub(crate) program: XdpProgram,
    pub(crate) queue: QueueId,
}

/// All of them, the trunk's apart.
#[derive(Debug)]
pub(crate) struct Sockets {
    crew: Crew,
    umem: Umem,
    used: Mutex<BTreeSet<QueueId>>,
    /// What the kernel counted on sockets that are closed.
    retired: Mutex<Vec<(QueueId, XskStats)>>,
}

impl Sockets {
    /// `umem` is the first worker's.
    pub(crate) fn new(crew: Crew, umem: Umem) -> Self {
        Self { crew, umem, used: Mutex::default(), retired: Mutex::default() }
    }

    /// Opens a device for a port. The program passes everything to the host until it is told what to
    /// take.
    pub(crate) fn open(&self, port: PortId, device: &str) -> Result<Direct, PortsError> {
        let queue = self.reserve(port)?;
        let opened = self.open_as(queue, port, device);
        if opened.is_err() {
            self.used().remove(&queue);
        }
        opened
    }

    fn open_as(&self, queue: QueueId, port: PortId, device: &str) -> Result<Direct, PortsError> {
        // Asked for, not tried: the kernel keeps a socket's hold of its queue for a moment after it is
        // closed, and would refuse to change their number just when this error says so.
        if ethtool::receive_queues(device)? > 1 {
            return Err(PortsError::ManyQueues { port, name: device.to_owned() });
        }
        let program = XdpProgram::attach(ProgramKind::Uplink, device)?;
        let socket = XskQueue::open(&self.umem, device, 0)?;
        program.set_socket(0, socket.fd())?;
        self.crew.first().call(move |worker| worker.io_mut().attach(queue, socket))??;
        Ok(Direct { program, queue })
    }

    /// Closes the queue of a device whose program is off.
    pub(crate) fn close(&self, queue: QueueId) -> Result<(), PortsError> {
        let detached = self.crew.first().call(move |w| w.io_mut().detach(queue))?;
        if let Some(detached) = detached {
            if let Ok(stats) = detached.statistics() {
                self.retire(queue, stats);
            }
            // Closing waits for the kernel: here, not on the worker.
            let closed = detached.close();
            self.crew.first().call(move |w| w.io_mut().reclaim(closed))?;
        }
        self.used().remove(&queue);
        Ok(())
    }

    /// Some workers have no socket on any uplink, and use the trunk.
    pub(crate) fn are_shared(&self) -> bool {
        self.crew.len() > 1
    }

    /// What the kernel counted on sockets that are closed.
    pub(crate) fn retired(&self) -> Vec<(QueueId, XskStats)> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn retire(&self, queue: QueueId, stats: XskStats) {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        match retired.iter_mut().find(|(of, _)| *of == queue) {
            Some((_, sum)) => *sum += stats,
            None => retired.push((queue, stats)),
        }
    }

    /// Every socket fills its receive ring when it is attached; one that finds no frames left would
    /// receive nothing.
    fn reserve(&self, port: PortId) -> Result<QueueId, PortsError> {
        let mut used = self.used();
        // The trunk, those that are there, and this one.
        let need = (used.len() as u32 + 2).saturating_mul(RING_SIZE);
        let have = self.umem.frames();
        if have < need {
            return Err(PortsError::Frames { port, have, need });
        }
        let mut queues = (QueueId::TRUNK.0 + 1..u16::MAX).map(QueueId);
        let free = queues.find(|queue| !used.contains(queue)).ok_or(PortsError::NoQueue)?;
        used.insert(free);
        Ok(free)
    }

    fn used(&self) -> MutexGuard<'_, BTreeSet<QueueId>> {
        // A number that a panic leaves in it is not used again.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
