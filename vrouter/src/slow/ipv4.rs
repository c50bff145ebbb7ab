//! Answers over IPv4: ARP, and ICMP of the gateway.

use std::net::Ipv4Addr;

use flowtable::ids::Mac;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4Message, Icmpv4Packet, Icmpv4Repr, Icmpv4TimeExceeded, IpProtocol, Ipv4Packet, Ipv4Repr,
};

use super::{ICMP_BYTES, ethernet};

/// Whoever has the address that is asked for, at `mac`.
pub(super) fn arp_reply(request: &EthernetFrame<&[u8]>, mac: Mac) -> Option<Vec<u8>> {
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
    let (mut bytes, at) = ethernet(
        (EthernetAddress(mac.0), request.src_addr()),
        EthernetProtocol::Arp,
        reply.buffer_len(),
    );
    reply.emit(&mut ArpPacket::new_unchecked(&mut bytes[at..]));
    Some(bytes)
}

/// RFC 5227, section 3: whoever remembers the address learns that it is at `mac`.
pub(super) fn announcement(ip: Ipv4Addr, mac: Mac) -> Vec<u8> {
    let hardware = EthernetAddress(mac.0);
    let announced = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: hardware,
        source_protocol_addr: ip,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: ip,
    };
    let (mut bytes, at) = ethernet(
        (hardware, EthernetAddress::BROADCAST),
        EthernetProtocol::Arp,
        announced.buffer_len(),
    );
    announced.emit(&mut ArpPacket::new_unchecked(&mut bytes[at..]));
    bytes
}

pub(super) fn echo_reply(request: &EthernetFrame<&[u8]>) -> Option<Vec<u8>> {
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
pub(super) fn time_exceeded(expired: &EthernetFrame<&[u8]>, gateway: Ipv4Addr) -> Option<Vec<u8>> {
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
    let macs = (gateway, request.src_addr());
    let (mut bytes, at) = ethernet(macs, EthernetProtocol::Ipv4, len);
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[at..]), &checksums);
    (bytes, at + ip.buffer_len())
}
