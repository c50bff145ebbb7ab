//! Whole Ethernet frames for injection, checksums included.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, ArpPacket, EtherType, Ethernet2Header, IcmpEchoHeader,
    Icmpv4Type, PacketBuilder,
};

const TTL: u8 = 64;
/// Ethernet's smallest frame, without its checksum.
const MIN_BYTES: usize = 60;

/// Addresses of a frame with IPv4 inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Source MAC.
    pub src_mac: [u8; 6],
    /// Destination MAC.
    pub dst_mac: [u8; 6],
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
}

/// A UDP datagram with TTL 64.
///
/// # Errors
/// When the payload does not fit a packet.
pub fn udp(addresses: Addresses, src_port: u16, dst_port: u16, payload: &[u8]) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(addresses.src_mac, addresses.dst_mac)
        .ipv4(addresses.src.octets(), addresses.dst.octets(), TTL)
        .udp(src_port, dst_port);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload)?;
    Ok(padded(frame))
}

/// A UDP datagram over IPv6 with hop limit 64; sources come first.
///
/// # Errors
/// When the payload does not fit a packet.
pub fn udp6(
    macs: [[u8; 6]; 2],
    addresses: [Ipv6Addr; 2],
    ports: [u16; 2],
    payload: &[u8],
) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(macs[0], macs[1])
        .ipv6(addresses[0].octets(), addresses[1].octets(), TTL)
        .udp(ports[0], ports[1]);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload)?;
    Ok(padded(frame))
}

/// A TCP segment that opens a connection.
///
/// # Errors
/// Never for addresses and ports; the encoder's type asks for it.
pub fn tcp_syn(addresses: Addresses, src_port: u16, dst_port: u16) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(addresses.src_mac, addresses.dst_mac)
        .ipv4(addresses.src.octets(), addresses.dst.octets(), TTL)
        .tcp(src_port, dst_port, 1, 64240)
        .syn();
    let mut frame = Vec::with_capacity(builder.size(0));
    builder.write(&mut frame, &[])?;
    Ok(padded(frame))
}

/// A TCP segment from the middle of a connection, without data.
///
/// # Errors
/// Never for addresses and ports; the encoder's type asks for it.
pub fn tcp_ack(addresses: Addresses, src_port: u16, dst_port: u16) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(addresses.src_mac, addresses.dst_mac)
        .ipv4(addresses.src.octets(), addresses.dst.octets(), TTL)
        .tcp(src_port, dst_port, 1, 64240)
        .ack(1);
    let mut frame = Vec::with_capacity(builder.size(0));
    builder.write(&mut frame, &[])?;
    Ok(padded(frame))
}

/// An ICMP echo request.
///
/// # Errors
/// When the payload does not fit a packet.
pub fn icmp_echo(addresses: Addresses, id: u16, sequence: u16, payload: &[u8]) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(addresses.src_mac, addresses.dst_mac)
        .ipv4(addresses.src.octets(), addresses.dst.octets(), TTL)
        .icmpv4(Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq: sequence }));
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload)?;
    Ok(padded(frame))
}

/// An ARP request (RFC 826) from `addresses.src` for `addresses.dst`.
///
/// # Errors
/// Never for six-byte addresses; the encoder's type asks for it.
pub fn arp_request(addresses: Addresses) -> Result<Vec<u8>> {
    let arp = ArpPacket::from(ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: addresses.src_mac,
        sender_ipv4: addresses.src.octets(),
        target_mac: [0; 6],
        target_ipv4: addresses.dst.octets(),
    });
    let header = Ethernet2Header {
        source: addresses.src_mac,
        destination: addresses.dst_mac,
        ether_type: EtherType::ARP,
    };
    let mut frame = header.to_bytes().to_vec();
    arp.write(&mut frame).context("writing an ARP request")?;
    Ok(padded(frame))
}

/// The frame with a VLAN tag (IEEE 802.1Q, priority 0) behind its addresses. `vid` is 0 to 4095.
#[must_use]
pub fn tagged(frame: &[u8], vid: u16) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(frame.len().min(12));
    let [high, low] = (vid & 0x0fff).to_be_bytes();
    [addresses, &[0x81, 0, high, low], rest].concat()
}

fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(MIN_BYTES), 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{SlicedPacket, TransportSlice};

    const ADDRESSES: Addresses = Addresses {
        src_mac: [2, 0, 0, 0, 0, 1],
        dst_mac: [2, 0, 0, 0, 0, 2],
        src: Ipv4Addr::new(10, 1, 1, 1),
        dst: Ipv4Addr::new(10, 1, 1, 2),
    };

    #[test]
    fn a_datagram_reads_back() {
        let frame = udp(ADDRESSES, 1000, 2000, b"hello").unwrap();
        assert_eq!(frame.len(), 60);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("{packet:?}") };
        assert_eq!((udp.source_port(), udp.destination_port()), (1000, 2000));
        assert_eq!(udp.payload(), b"hello");
    }

    #[test]
    fn a_tag_lies_between_addresses_and_type() {
        let frame = arp_request(ADDRESSES).unwrap();
        assert_eq!(frame[12..16], [0x08, 0x06, 0, 1]);
        let with_tag = tagged(&frame, 100);
        assert_eq!(with_tag.len(), frame.len() + 4);
        assert_eq!(with_tag[12..20], [0x81, 0, 0, 100, 0x08, 0x06, 0, 1]);
        assert_eq!(with_tag[..12], frame[..12]);
    }
}
