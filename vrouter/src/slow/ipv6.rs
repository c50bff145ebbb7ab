//! Answers over IPv6: neighbor discovery (RFC 4861), and ICMPv6 (RFC 4443) of the gateway.

use std::net::Ipv6Addr;

use flowtable::ids::Mac;
use flowtable::key::icmpv6;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv6Message, Icmpv6Packet, Icmpv6Repr,
    IpProtocol, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
};

use super::{ICMP_BYTES, ethernet};

/// RFC 4861, section 7.1: no router may have let the message pass.
const DISCOVERY_HOPS: u8 = 255;
const HOPS: u8 = 64;
/// RFC 4443, section 2.4 (c): an error is no longer than the least MTU of IPv6.
const ERROR_BYTES_MAX: usize = 1280;
const IPV6_BYTES: usize = 40;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// RFC 2464, section 7.
const ALL_NODES_MAC: EthernetAddress = EthernetAddress([0x33, 0x33, 0, 0, 0, 1]);

/// Whoever has the target's address, at `mac`.
pub(super) fn neighbor_advert(request: &EthernetFrame<&[u8]>, mac: Mac) -> Option<Vec<u8>> {
    let ip = Ipv6Packet::new_checked(request.payload()).ok()?;
    let (asker, message) = (ip.src_addr(), Icmpv6Packet::new_checked(ip.payload()).ok()?);
    let checksums = ChecksumCapabilities::default();
    let message = Icmpv6Repr::parse(&asker, &ip.dst_addr(), &message, &checksums).ok()?;
    let Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. }) = message else {
        return None;
    };
    let hardware = EthernetAddress(mac.0);
    let mut flags = NdiscNeighborFlags::OVERRIDE;
    flags.set(NdiscNeighborFlags::ROUTER, mac == Mac::GATEWAY);
    // RFC 4861, section 7.2.4: who has no address is answered before all, and not as solicited.
    let (dst_addr, dst_mac) = if asker.is_unspecified() {
        (ALL_NODES, ALL_NODES_MAC)
    } else {
        flags.set(NdiscNeighborFlags::SOLICITED, true);
        (asker, request.src_addr())
    };
    let lladdr = Some(hardware.into());
    let reply = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { flags, target_addr, lladdr });
    let header = header((target_addr, dst_addr), reply.buffer_len(), DISCOVERY_HOPS);
    Some(emit((hardware, dst_mac), &header, &reply))
}

/// RFC 4861, section 7.2.6: whoever remembers the address learns that it is at `mac`.
pub(super) fn announcement(ip: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let hardware = EthernetAddress(mac.0);
    let (flags, lladdr) = (NdiscNeighborFlags::OVERRIDE, Some(hardware.into()));
    let advert = NdiscRepr::NeighborAdvert { flags, target_addr: ip, lladdr };
    let advert = Icmpv6Repr::Ndisc(advert);
    let header = header((ip, ALL_NODES), advert.buffer_len(), DISCOVERY_HOPS);
    emit((hardware, ALL_NODES_MAC), &header, &advert)
}

pub(super) fn echo_reply(request: &EthernetFrame<&[u8]>) -> Option<Vec<u8>> {
    let ip = Ipv6Packet::new_checked(request.payload()).ok()?;
    // Nothing is reassembled here, and the first fragment alone is not the question.
    if ip.next_header() != IpProtocol::Icmpv6 {
        return None;
    }
    let (asker, asked) = (ip.src_addr(), ip.dst_addr());
    let message = Icmpv6Packet::new_checked(ip.payload()).ok()?;
    let message = Icmpv6Repr::parse(&asker, &asked, &message, &ChecksumCapabilities::default());
    let Ok(Icmpv6Repr::EchoRequest { ident, seq_no, data }) = message else { return None };
    let reply = Icmpv6Repr::EchoReply { ident, seq_no, data };
    let header = header((asked, asker), reply.buffer_len(), HOPS);
    Some(emit((EthernetAddress(Mac::GATEWAY.0), request.src_addr()), &header, &reply))
}

/// RFC 4443, section 3.3, and as much of the packet as fits. Section 2.4 (e): not about errors,
/// redirects, and what many or nobody have sent or would receive.
pub(super) fn time_exceeded(expired: &EthernetFrame<&[u8]>, gateway: Ipv6Addr) -> Option<Vec<u8>> {
    let ip = Ipv6Packet::new_checked(expired.payload()).ok()?;
    let sender = ip.src_addr();
    if ip.next_header() == IpProtocol::Icmpv6 {
        let kind = *ip.payload().first()?;
        if kind < icmpv6::ECHO_REQUEST || kind == icmpv6::REDIRECT {
            return None;
        }
    }
    if sender.is_unspecified() || sender.is_multicast() || ip.dst_addr().is_multicast() {
        return None;
    }
    let quoted = ip.total_len().min(ERROR_BYTES_MAX - IPV6_BYTES - ICMP_BYTES);
    let quote = expired.payload().get(..quoted)?;
    let header = header((gateway, sender), ICMP_BYTES + quoted, HOPS);
    let macs = (EthernetAddress(Mac::GATEWAY.0), expired.src_addr());
    let (mut bytes, at) = packet(macs, &header);
    // The quote is copied as it came: senders look for their own header in it.
    bytes[at + ICMP_BYTES..].copy_from_slice(quote);
    let mut message = Icmpv6Packet::new_unchecked(&mut bytes[at..]);
    message.set_msg_type(Icmpv6Message::TimeExceeded);
    message.set_msg_code(0);
    message.fill_checksum(&gateway, &sender);
    Some(bytes)
}

const fn header(
    (src_addr, dst_addr): (Ipv6Addr, Ipv6Addr),
    payload_len: usize,
    hop_limit: u8,
) -> Ipv6Repr {
    Ipv6Repr { src_addr, dst_addr, next_header: IpProtocol::Icmpv6, payload_len, hop_limit }
}

fn emit(
    macs: (EthernetAddress, EthernetAddress),
    header: &Ipv6Repr,
    message: &Icmpv6Repr<'_>,
) -> Vec<u8> {
    let (mut bytes, at) = packet(macs, header);
    let mut icmp = Icmpv6Packet::new_unchecked(&mut bytes[at..]);
    message.emit(&header.src_addr, &header.dst_addr, &mut icmp, &ChecksumCapabilities::default());
    bytes
}

/// A frame with this header and room for its payload, and where that starts.
fn packet(macs: (EthernetAddress, EthernetAddress), header: &Ipv6Repr) -> (Vec<u8>, usize) {
    let len = header.buffer_len() + header.payload_len;
    let (mut bytes, at) = ethernet(macs, EthernetProtocol::Ipv6, len);
    header.emit(&mut Ipv6Packet::new_unchecked(&mut bytes[at..]));
    (bytes, at + header.buffer_len())
}
