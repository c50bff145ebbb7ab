//! Frames as they are on the wire, taken apart and put together, and waiting for one.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kit::frame::{self, Addresses};
use netdev::packet::PacketSocket;

/// RFC 7348, section 5.
pub(crate) const VXLAN_PORT: u16 = 4789;
const BOUND: Duration = Duration::from_secs(5);

/// A frame with IPv4 and UDP or TCP inside, read by fixed offsets: no options, no tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) src_mac: [u8; 6],
    pub(crate) dst_mac: [u8; 6],
    pub(crate) src: Ipv4Addr,
    pub(crate) dst: Ipv4Addr,
    pub(crate) dont_fragment: bool,
    pub(crate) protocol: u8,
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    /// Behind the ports: the rest of the IP packet.
    pub(crate) rest: Vec<u8>,
}

impl Packet {
    /// Reads an untagged frame.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let total = usize::from(word(frame, 16)?);
        let ip = frame.get(14..14 + total).filter(|_| word(frame, 12) == Some(0x0800))?;
        if ip.first() != Some(&0x45) {
            return None;
        }
        Some(Self {
            dst_mac: frame.get(..6)?.try_into().ok()?,
            src_mac: frame.get(6..12)?.try_into().ok()?,
            dont_fragment: ip[6] & 0x40 != 0,
            protocol: ip[9],
            src: Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]),
            dst: Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]),
            src_port: word(ip, 20)?,
            dst_port: word(ip, 22)?,
            rest: ip.get(24..)?.to_vec(),
        })
    }

    /// The VNI and the inner frame, when this is VXLAN.
    pub(crate) fn open(&self) -> Option<(u32, &[u8])> {
        // UDP length and checksum, then flags, three reserved bytes, the VNI, one reserved byte.
        let (header, inner) = self.rest.split_at_checked(12)?;
        let vxlan = self.protocol == 17 && self.dst_port == VXLAN_PORT && header[4] == 0x08;
        vxlan.then(|| (u32::from_be_bytes([0, header[8], header[9], header[10]]), inner))
    }

    /// Whether the TCP or UDP checksum is that of the whole packet (RFC 9293, section 3.1).
    pub(crate) fn has_good_checksum(&self) -> bool {
        let addresses = [self.src.octets(), self.dst.octets()].concat();
        let len = (self.rest.len() + 4) as u16;
        let words = [u16::from(self.protocol), len, self.src_port, self.dst_port];
        let bytes = [addresses.as_slice(), &self.rest].concat();
        let pairs = bytes.chunks(2).map(|pair| match *pair {
            [high, low] => u16::from_be_bytes([high, low]),
            [high] => u16::from_be_bytes([high, 0]),
            _ => 0,
        });
        let sum = words.into_iter().chain(pairs).map(u32::from).fold(0_u32, |sum, word| {
            let wide = sum + word;
            (wide & 0xffff) + (wide >> 16)
        });
        sum == 0xffff
    }
}

/// The VLAN id of a tagged frame and the frame without the tag.
pub(crate) fn untag(frame: &[u8]) -> Option<(u16, Vec<u8>)> {
    let tci = word(frame, 14).filter(|_| word(frame, 12) == Some(0x8100))?;
    Some((tci & 0x0fff, [frame.get(..12)?, frame.get(16..)?].concat()))
}

/// Operation, sender's MAC, sender's and target's address, when the frame is ARP (RFC 826).
pub(crate) fn arp(frame: &[u8]) -> Option<(u16, [u8; 6], Ipv4Addr, Ipv4Addr)> {
    let body = frame.get(14..42).filter(|_| word(frame, 12) == Some(0x0806))?;
    let address =
        |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&body[at..at + 4]).unwrap_or_default());
    Some((word(body, 6)?, body.get(8..14)?.try_into().ok()?, address(14), address(24)))
}

/// An ARP reply: `addresses.src` is at `addresses.src_mac`.
pub(crate) fn arp_reply(addresses: Addresses) -> Result<Vec<u8>> {
    let mut frame = frame::arp_request(addresses)?;
    frame[21] = 2;
    frame[32..38].copy_from_slice(&addresses.dst_mac);
    Ok(frame)
}

/// `inner` in VXLAN, between two hosts of the underlay.
pub(crate) fn vxlan(outer: Addresses, vni: u32, inner: &[u8]) -> Result<Vec<u8>> {
    let [_, high, middle, low] = vni.to_be_bytes();
    let header = [0x08, 0, 0, 0, high, middle, low, 0];
    frame::udp(outer, 50_000, VXLAN_PORT, &[&header, inner].concat())
}

/// Receives until `look` finds something.
pub(crate) fn expect<T>(
    socket: &PacketSocket,
    what: &str,
    mut look: impl FnMut(&[u8]) -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + BOUND;
    let mut others = 0_u32;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        let Some(frame) = socket.receive(left)? else { break };
        if let Some(found) = look(&frame) {
            return Ok(found);
        }
        others += 1;
    }
    Err(anyhow::anyhow!("{what}: not within {BOUND:?}; {others} other frames")).context("capture")
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
