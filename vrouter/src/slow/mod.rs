//! The slow path: answers that the distributed gateway gives (ARP, neighbor discovery, echo, time
//! exceeded), built with `smoltcp::wire` on a thread of their own. The queue to it is bounded and each port has a token
//! bucket in front of it, so no container can keep the others from being answered.

mod ipv4;
mod ipv6;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use crossbeam::queue::ArrayQueue;
use flowtable::DropReason;
use flowtable::action::Punt;
use flowtable::ids::{Mac, Vrf};
use flowtable::key::{FlowKey, ethertype};
use packet_io::Wake;
use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr};

use crate::budget::Rate;
use crate::worker::Rx;

/// Packets of one worker that wait for an answer, or whose answer waits to be sent, at most.
pub(crate) const SLOW_QUEUE: usize = 1024;
/// Packets a port may punt in a second, on average.
const PUNTS_PER_SECOND: u32 = 1000;
/// Packets a port may punt at once.
const PUNT_BURST: u32 = 256;
/// What a port may punt.
pub(crate) const PUNT_RATE: Rate = Rate::new(PUNTS_PER_SECOND, PUNT_BURST);
/// Type, code, checksum and four bytes that depend on the type (RFC 792, RFC 4443).
const ICMP_BYTES: usize = 8;
/// Bytes of a packet kept for its answer; an echo request may be of full size.
const PUNT_BYTES_MAX: usize = 1600;

/// A packet the gateway answers, without tag and tunnel headers.
#[derive(Debug)]
pub(crate) struct Punted {
    /// Who sends the answer.
    pub(crate) worker: u16,
    pub(crate) punt: Punt,
    pub(crate) frame: Box<[u8]>,
    /// The gateway's address of its family in the network it came from.
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) asker: Asker,
}

/// Who is answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    /// A failed answer counts there.
    pub(crate) rx: Rx,
    /// Says how an answer goes back.
    pub(crate) key: FlowKey,
    /// The tenant that asked.
    pub(crate) vrf: Option<Vrf>,
    /// Entropy for the outer headers of an answer into a tunnel.
    pub(crate) entropy: u16,
}

/// What the slow path made of a packet; every packet has one.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) asker: Asker,
    pub(crate) answer: Answer,
}

#[derive(Debug)]
pub(crate) enum Answer {
    /// To be sent.
    Frame(Vec<u8>),
    /// The packet is dropped after all.
    Drop(DropReason),
    /// Nothing: the packet was counted when it was punted.
    None,
}

/// The way back to one worker.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) replies: Arc<ArrayQueue<Reply>>,
    pub(crate) waker: Arc<dyn Wake>,
}

/// Longest packet that can be answered.
pub(crate) const fn fits(len: usize) -> bool {
    len <= PUNT_BYTES_MAX
}

/// The slow path's thread; run it once.
#[derive(Debug)]
pub struct SlowPath {
    pub(crate) punted: Receiver<Punted>,
    /// One a worker.
    pub(crate) workers: Vec<Way>,
}

impl SlowPath {
    /// Answers until `stop` is set or the engine is gone.
    pub fn run(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            match self.punted.recv_timeout(Duration::from_millis(200)) {
                Ok(punted) => self.serve(&punted),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Answers what is waiting; for engines without a thread of their own.
    pub fn poll(&self) {
        while let Ok(punted) = self.punted.try_recv() {
            self.serve(&punted);
        }
    }

    fn serve(&self, punted: &Punted) {
        let answer = match (answer(punted), punted.punt) {
            (Some(frame), _) => Answer::Frame(frame),
            (None, Punt::ArpReply(_) | Punt::NeighborAdvert(_) | Punt::GatewayEcho) => {
                Answer::Drop(DropReason::Malformed)
            }
            (None, Punt::TimeExceeded) => Answer::None,
        };
        let Some(way) = self.workers.get(usize::from(punted.worker)) else { return };
        // There is room: a worker punts no more than its answers have places.
        drop(way.replies.push(Reply { asker: punted.asker, answer }));
        way.waker.wake();
    }
}

/// The answer to a packet, when it deserves one.
fn answer(punted: &Punted) -> Option<Vec<u8>> {
    let frame = EthernetFrame::new_checked(&punted.frame[..]).ok()?;
    match (punted.punt, frame.ethertype()) {
        (Punt::ArpReply(mac), _) => ipv4::arp_reply(&frame, mac),
        (Punt::NeighborAdvert(mac), _) => ipv6::neighbor_advert(&frame, mac),
        (Punt::GatewayEcho, EthernetProtocol::Ipv6) => ipv6::echo_reply(&frame),
        (Punt::GatewayEcho, _) => ipv4::echo_reply(&frame),
        (Punt::TimeExceeded, EthernetProtocol::Ipv6) => match punted.gateway? {
            IpAddr::V6(gateway) => ipv6::time_exceeded(&frame, gateway),
            IpAddr::V4(_) => None,
        },
        (Punt::TimeExceeded, _) => match punted.gateway? {
            IpAddr::V4(gateway) => ipv4::time_exceeded(&frame, gateway),
            IpAddr::V6(_) => None,
        },
    }
}

/// A frame with room for `payload` bytes, and where they start.
fn ethernet(
    (src_addr, dst_addr): (EthernetAddress, EthernetAddress),
    ethertype: EthernetProtocol,
    payload: usize,
) -> (Vec<u8>, usize) {
    let repr = EthernetRepr { src_addr, dst_addr, ethertype };
    let at = repr.buffer_len();
    let mut bytes = vec![0; at + payload];
    repr.emit(&mut EthernetFrame::new_unchecked(&mut bytes[..]));
    (bytes, at)
}

/// A frame that tells everybody on its network that `ip` is at `mac` from now on: a gratuitous ARP, or
/// an unsolicited neighbor advertisement.
#[must_use]
pub fn announcement(ip: IpAddr, mac: Mac) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => ipv4::announcement(v4, mac),
        IpAddr::V6(v6) => ipv6::announcement(v6, mac),
    }
}

/// The gateway among a network's gateways that has the packet's family.
pub(crate) fn gateway(gateways: &[IpAddr], key: &FlowKey) -> Option<IpAddr> {
    let v6 = key.eth_type == ethertype::IPV6;
    gateways.iter().copied().find(|ip| ip.is_ipv6() == v6)
}
