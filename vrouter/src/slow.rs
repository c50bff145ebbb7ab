//! The slow path: answers that the distributed gateway gives (ARP, echo, time exceeded), built with
//! `smoltcp::wire` on a thread of their own. The queue to it is bounded and each port has a token
//! bucket in front of it, so no container can keep the others from being answered.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use crossbeam::queue::ArrayQueue;
use flowtable::DropReason;
use flowtable::action::Punt;
use flowtable::ids::{Mac, Vrf};
use flowtable::key::FlowKey;
use packet_io::Wake;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, Icmpv4TimeExceeded, IpProtocol,
    Ipv4Packet, Ipv4Repr,
};

use crate::budget::Rate;
use crate::worker::Rx;

/// Packets waiting for an answer at most, and answers waiting to be sent.
pub(crate) const SLOW_QUEUE: usize = 1024;
/// Between two looks for room, when the worker does not take the answers.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// Packets a port may punt in a second, on average.
const PUNTS_PER_SECOND: u32 = 1000;
/// Packets a port may punt at once.
const PUNT_BURST: u32 = 256;
/// What a port may punt.
pub(crate) const PUNT_RATE: Rate = Rate::new(PUNTS_PER_SECOND, PUNT_BURST);
/// Type, code, checksum and four bytes that depend on the type (RFC 792).
const ICMP_BYTES: usize = 8;
/// Bytes of a packet kept for its answer; an echo request may be of full size.
const PUNT_BYTES_MAX: usize = 1600;

/// A packet the gateway answers, without tag and tunnel headers.
#[derive(Debug)]
pub(crate) struct Punted {
    pub(crate) punt: Punt,
    pub(crate) frame: Box<[u8]>,
    /// The gateway's address in the network it came from.
    pub(crate) gateway: Option<Ipv4Addr>,
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

/// What the slow path made of a packet that was not yet counted as dropped: a frame to send, or
/// the reason why it is dropped after all.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) asker: Asker,
    pub(crate) answer: Result<Vec<u8>, DropReason>,
}

/// Longest packet that can be answered.
pub(crate) const fn fits(len: usize) -> bool {
    len <= PUNT_BYTES_MAX
}

/// The slow path's thread; run it once.
#[derive(Debug)]
pub struct SlowPath {
    pub(crate) punted: Receiver<Punted>,
    pub(crate) replies: Arc<ArrayQueue<Reply>>,
    pub(crate) waker: Arc<dyn Wake>,
}

impl SlowPath {
    /// Answers until `stop` is set or the worker is gone.
    pub fn run(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            if self.replies.is_full() {
                self.waker.wake();
                std::thread::park_timeout(FULL_PAUSE);
                continue;
            }
            match self.punted.recv_timeout(Duration::from_millis(200)) {
                Ok(punted) => self.serve(&punted),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Answers what is waiting; for engines without a thread of their own.
    pub fn poll(&self) {
        while !self.replies.is_full()
            && let Ok(punted) = self.punted.try_recv()
        {
            self.serve(&punted);
        }
    }

    fn serve(&self, punted: &Punted) {
        let answer = match (answer(punted), punted.punt) {
            (Some(frame), _) => Ok(frame),
            (None, Punt::ArpReply(_) | Punt::GatewayEcho) => Err(DropReason::Malformed),
            // Counted when it was punted.
            (None, Punt::TimeExceeded) => return,
        };
        let reply = Reply { asker: punted.asker, answer };
        // There is room: it was seen before the packet was taken, and only the slow path adds. While
        // there is none, packets wait in their own queue, and the worker counts what that refuses.
        drop(self.replies.push(reply));
        self.waker.wake();
    }
}

/// The answer to a packet, when it deserves one.
fn answer(punted: &Punted) -> Option<Vec<u8>> {
    let frame = EthernetFrame::new_checked(&punted.frame[..]).ok()?;
    match punted.punt {
        Punt::ArpReply(mac) => arp_reply(&frame, mac),
        Punt::GatewayEcho => echo_reply(&frame),
        Punt::TimeExceeded => time_exceeded(&frame, punted.gateway?),
    }
}

fn arp_reply(request: &EthernetFrame<&[u8]>, mac: Mac) -> Option<Vec<u8>> {
    let arp = ArpRepr::parse(&ArpPacket::new_checked(request.payload()).ok()?).ok()?;
    let ArpRepr::EthernetIpv4 {
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = arp
    else {
        return None;
    };
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let (mut bytes, at) =
        ethernet(request, EthernetAddress(mac.0), EthernetProtocol::Arp, reply.buffer_len());
    reply.emit(&mut ArpPacket::new_unchecked(&mut bytes[at..]));
    Some(bytes)
}

fn echo_reply(request: &EthernetFrame<&[u8]>) -> Option<Vec<u8>> {
    let ip = Ipv4Packet::new_checked(request.payload()).ok()?;
    // Nothing is reassembled here, and the first fragment alone is not the question.
    if ip.more_frags() {
        return None;
    }
    let icmp = Icmpv4Packet::new_checked(ip.payload()).ok()?;
    let checksums = ChecksumCapabilities::default();
    let Icmpv4Repr::EchoRequest { ident, seq_no, data } =
        Icmpv4Repr::parse(&icmp, &checksums).ok()?
    else {
        return None;
    };
    let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
    let addresses = (ip.dst_addr(), ip.src_addr());
    let (mut bytes, at) = icmp_packet(request, addresses, reply.buffer_len());
    reply.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[at..]), &checksums);
    Some(bytes)
}

/// RFC 792: the header and the first 64 bits of the payload of the packet that expired. RFC 1122,
/// section 3.2.2: not about ICMP errors, later fragments, or group-addressed packets.
fn time_exceeded(expired: &EthernetFrame<&[u8]>, gateway: Ipv4Addr) -> Option<Vec<u8>> {
    // ICMPv6 is not offered, and an IPv6 header can be taken for an IPv4 one.
    if expired.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(expired.payload()).ok()?;
    if ip.next_header() == IpProtocol::Icmp {
        let kind = *ip.payload().first()?;
        // 8 echo request, 0 echo reply, 13 timestamp: everything else counts as an error message.
        if !matches!(kind, 0 | 8 | 13) {
            return None;
        }
    }
    if ip.frag_offset() != 0 {
        return None;
    }
    let quoted = usize::from(ip.header_len()) + ip.payload().len().min(8);
    let quote = expired.payload().get(..quoted)?;
    let (mut bytes, at) = icmp_packet(expired, (gateway, ip.src_addr()), ICMP_BYTES + quoted);
    // The quote is copied as it came: senders look for their own identification in it.
    bytes[at + ICMP_BYTES..].copy_from_slice(quote);
    let mut icmp = Icmpv4Packet::new_unchecked(&mut bytes[at..]);
    icmp.set_msg_type(Icmpv4Message::TimeExceeded);
    icmp.set_msg_code(Icmpv4TimeExceeded::TtlExpired.into());
    icmp.fill_checksum();
    Some(bytes)
}

/// An IPv4 packet of the gateway with room for `payload_len` bytes of ICMP, and where they start.
fn icmp_packet(
    request: &EthernetFrame<&[u8]>,
    (src_addr, dst_addr): (Ipv4Addr, Ipv4Addr),
    payload_len: usize,
) -> (Vec<u8>, usize) {
    let next_header = IpProtocol::Icmp;
    let ip = Ipv4Repr { src_addr, dst_addr, next_header, payload_len, hop_limit: 64 };
    let gateway = EthernetAddress(Mac::GATEWAY.0);
    let len = ip.buffer_len() + payload_len;
    let (mut bytes, at) = ethernet(request, gateway, EthernetProtocol::Ipv4, len);
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[at..]), &checksums);
    (bytes, at + ip.buffer_len())
}

/// A frame back to the sender with room for `payload` bytes, and where they start.
fn ethernet(
    request: &EthernetFrame<&[u8]>,
    src_addr: EthernetAddress,
    ethertype: EthernetProtocol,
    payload: usize,
) -> (Vec<u8>, usize) {
    let repr = EthernetRepr { src_addr, dst_addr: request.src_addr(), ethertype };
    let at = repr.buffer_len();
    let mut bytes = vec![0; at + payload];
    repr.emit(&mut EthernetFrame::new_unchecked(&mut bytes[..]));
    (bytes, at)
}

/// The IPv4 gateway among a network's gateways.
pub(crate) fn gateway_v4(gateways: &[IpAddr]) -> Option<Ipv4Addr> {
    gateways.iter().find_map(|ip| match ip {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    })
}
