//! Flows and their packets: as a container sends them, as they must arrive, and inside VXLAN.

use flowtable::ids::{Mac, PortId};

use super::{DESTINATIONS, SOURCES, container_mac};

const DESTINATION_PORTS: [u16; 8] = [53, 80, 123, 443, 5060, 8080, 9000, 11211];
/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;
const TCP_HEADERS: usize = 14 + 20 + 20;
/// The TTL that containers send with.
const TTL: u8 = 64;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// Where the source port of the outer UDP header is in a frame with VXLAN over IPv4.
pub const OUTER_SOURCE_PORT: usize = 34;

/// The addresses of one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Source address, 10.0.0.0 + its number.
    pub src: u32,
    /// Destination address.
    pub dst: u32,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
}

/// Flow number `i`: distinct 5-tuples, in an order that no table likes.
#[must_use]
pub const fn flow(i: u32) -> Flow {
    Flow {
        src: SOURCES + i,
        dst: DESTINATIONS + ((i % 1000) << 8) + (i / 1000) % 250 + 1,
        src_port: 1024 + ((i.wrapping_mul(2_654_435_761) >> 16) % 50_000) as u16,
        dst_port: DESTINATION_PORTS[(i / 7) as usize & 7],
    }
}

impl Flow {
    /// The flow's packet as the container at `port` sends it, `size` bytes from the Ethernet header
    /// on.
    #[must_use]
    pub fn sent(&self, port: PortId, size: usize) -> Vec<u8> {
        self.udp(size, (Mac::GATEWAY, container_mac(port.get())), TTL)
    }

    /// The same packet, routed by the gateway to `dst`.
    #[must_use]
    pub fn routed(&self, dst: Mac, size: usize) -> Vec<u8> {
        self.udp(size, (dst, Mac::GATEWAY), TTL - 1)
    }

    /// The flow as the beginning of a TCP connection: a SYN without options. Its TCP checksum is
    /// zero, which no virtual router looks at.
    #[must_use]
    pub fn syn(&self, port: PortId, size: usize) -> Vec<u8> {
        let size = size.max(TCP_HEADERS);
        let macs = (Mac::GATEWAY, container_mac(port.get()));
        let mut bytes = self.headers(size, macs, (TTL, TCP));
        bytes.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        bytes.resize(size, 0);
        bytes
    }

    fn udp(&self, size: usize, macs: (Mac, Mac), ttl: u8) -> Vec<u8> {
        let size = size.max(HEADERS);
        let mut bytes = self.headers(size, macs, (ttl, UDP));
        bytes.extend_from_slice(&((size - 34) as u16).to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.resize(size, b'Z');
        bytes
    }

    /// A frame up to and with the layer 4 ports, of a packet that makes it `size` bytes long. `macs`
    /// are destination and source, `ip` TTL and protocol.
    #[must_use]
    pub fn headers(&self, size: usize, macs: (Mac, Mac), ip: (u8, u8)) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(&macs.0.0);
        bytes.extend_from_slice(&macs.1.0);
        bytes.extend_from_slice(&[0x08, 0x00]);
        bytes.extend_from_slice(&ipv4(size - 14, ip, (self.src, self.dst), 0));
        bytes.extend_from_slice(&self.src_port.to_be_bytes());
        bytes.extend_from_slice(&self.dst_port.to_be_bytes());
        bytes
    }
}

/// An IPv4 header (RFC 791) without options: total length, TTL and protocol, addresses, and the
/// word with the Don't Fragment bit.
fn ipv4(total: usize, (ttl, protocol): (u8, u8), ips: (u32, u32), fragment: u16) -> [u8; 20] {
    let mut ip = [0; 20];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    ip[6..8].copy_from_slice(&fragment.to_be_bytes());
    ip[8] = ttl;
    ip[9] = protocol;
    ip[12..16].copy_from_slice(&ips.0.to_be_bytes());
    ip[16..20].copy_from_slice(&ips.1.to_be_bytes());
    let sum: u32 = ip.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    ip[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    ip
}

/// What surrounds a frame on the wire between two tunnel end points.
#[derive(Debug, Clone, Copy)]
pub struct Wire {
    /// Destination and source MAC.
    pub macs: (Mac, Mac),
    /// Source and destination end point.
    pub ips: (u32, u32),
    /// The network's identifier.
    pub vni: u32,
}

impl Wire {
    /// `inner` in VXLAN (RFC 7348, section 5) over UDP from `src_port`, with Don't Fragment.
    #[must_use]
    pub fn wrap(&self, inner: &[u8], src_port: u16) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(inner.len() + 50);
        bytes.extend_from_slice(&self.macs.0.0);
        bytes.extend_from_slice(&self.macs.1.0);
        bytes.extend_from_slice(&[0x08, 0x00]);
        bytes.extend_from_slice(&ipv4(inner.len() + 36, (64, UDP), self.ips, 0x4000));
        bytes.extend_from_slice(&src_port.to_be_bytes());
        bytes.extend_from_slice(&4789_u16.to_be_bytes());
        bytes.extend_from_slice(&((inner.len() + 16) as u16).to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0x08, 0, 0, 0]);
        bytes.extend_from_slice(&(self.vni << 8).to_be_bytes());
        bytes.extend_from_slice(inner);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first and some later flows as `pbl.py` of the peers' measurements gives them.
    #[test]
    fn flows_are_those_of_the_peers() {
        let tuple = |i| {
            let Flow { src, dst, src_port, dst_port } = flow(i);
            (src, dst, src_port, dst_port)
        };
        assert_eq!(tuple(0), (0x0a00_0000, 0xac10_0001, 1024, 53));
        assert_eq!(tuple(1), (0x0a00_0001, 0xac10_0101, 41_527, 53));
        assert_eq!(tuple(99_999), (0x0a01_869f, 0xac13_e764, 2184, 8080));
        assert_eq!(tuple(999_999), (0x0a0f_423f, 0xac13_e7fa, 25_189, 80));
    }

    #[test]
    fn a_wrapped_frame_has_50_bytes_in_front_and_a_right_header_checksum() {
        let wire =
            Wire { macs: (Mac([1; 6]), Mac([2; 6])), ips: (0xc0a8_3202, 0xc0a8_3201), vni: 100 };
        let inner = flow(7).sent(PortId::MIN, 64);
        let frame = wire.wrap(&inner, 50_000);
        assert_eq!((frame.len(), &frame[50..]), (114, &inner[..]));
        assert_eq!(frame[OUTER_SOURCE_PORT..][..2], 50_000_u16.to_be_bytes());
        assert_eq!(frame[46..50], [0, 0, 100, 0]);
        let words = frame[14..34].chunks_exact(2);
        let sum: u32 = words.map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
