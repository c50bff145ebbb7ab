//! Another address and port at one end of a TCP or UDP packet (RFC 3022, section 4.1), with checksums
//! updated by what changed (RFC 1624).

use std::net::IpAddr;

use flowtable::action::End;
use flowtable::key::ipproto;
use packet_io::{Frame, NoRoom, PacketIo};

/// Where a packet's headers are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Headers {
    /// Offset of the network header.
    pub(crate) l3: usize,
    /// Offset of the transport header.
    pub(crate) l4: usize,
    /// The IP protocol.
    pub(crate) proto: u8,
}

/// What a checksum loses and gains, in one's complement arithmetic.
#[derive(Debug, Clone, Copy, Default)]
struct Change(u32);

impl Change {
    /// Writes `new` over as many bytes of an even number, which begin a 16-bit word.
    fn write(&mut self, place: &mut [u8], new: &[u8]) {
        for (place, new) in place.chunks_exact_mut(2).zip(new.chunks_exact(2)) {
            let (old, now) = ([place[0], place[1]], [new[0], new[1]]);
            self.0 += u32::from(!u16::from_be_bytes(old)) + u32::from(u16::from_be_bytes(now));
            place.copy_from_slice(&now);
        }
    }

    /// RFC 1624, equation 3.
    fn apply(self, sum: &mut [u8; 2]) {
        let wide = self.0 + u32::from(!u16::from_be_bytes(*sum));
        let folded = (wide & 0xffff) + (wide >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        *sum = (!(folded as u16)).to_be_bytes();
    }
}

/// Writes an address and a port at one end of a TCP or UDP packet.
///
/// # Errors
/// [`NoRoom`] when the frame ends before its headers, it is neither TCP nor UDP, or the address is
/// of the other family. Then the frame may be half written.
pub(crate) fn translate<I: PacketIo>(
    io: &mut I,
    frame: &mut Frame,
    Headers { l3, l4, proto }: Headers,
    end: End,
    (ip, port): (IpAddr, u16),
) -> Result<(), NoRoom> {
    let bytes = io.bytes_mut(frame);
    let (network, transport) = bytes.split_at_mut_checked(l4).ok_or(NoRoom)?;
    let network = network.get_mut(l3..).ok_or(NoRoom)?;
    let mut change = Change::default();
    address(network, &mut change, end, ip)?;
    let port_at = match end {
        End::Source => 0,
        End::Destination => 2,
    };
    let place = transport.get_mut(port_at..port_at + 2).ok_or(NoRoom)?;
    change.write(place, &port.to_be_bytes());
    let sum_at = match proto {
        ipproto::TCP => 16,
        ipproto::UDP => 6,
        _ => return Err(NoRoom),
    };
    let sum = transport.get_mut(sum_at..).and_then(|b| b.first_chunk_mut::<2>()).ok_or(NoRoom)?;
    // RFC 768: zero is no checksum, and one that is zero is sent as all ones.
    if proto == ipproto::UDP && *sum == [0, 0] {
        return Ok(());
    }
    change.apply(sum);
    if proto == ipproto::UDP && *sum == [0, 0] {
        *sum = [0xff, 0xff];
    }
    Ok(())
}

/// In the network header, with its own checksum if it has one.
fn address(network: &mut [u8], change: &mut Change, end: End, ip: IpAddr) -> Result<(), NoRoom> {
    let version = network.first().ok_or(NoRoom)? >> 4;
    match (ip, version) {
        (IpAddr::V4(ip), 4) => {
            let header = network.first_chunk_mut::<20>().ok_or(NoRoom)?;
            let at = match end {
                End::Source => 12,
                End::Destination => 16,
            };
            change.write(&mut header[at..at + 4], &ip.octets());
            let mut sum = [header[10], header[11]];
            change.apply(&mut sum);
            header[10..12].copy_from_slice(&sum);
        }
        (IpAddr::V6(ip), 6) => {
            let header = network.first_chunk_mut::<40>().ok_or(NoRoom)?;
            let at = match end {
                End::Source => 8,
                End::Destination => 24,
            };
            change.write(&mut header[at..at + 16], &ip.octets());
        }
        _ => return Err(NoRoom),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use packet_io::memory::MemoryIo;
    use packet_io::{PacketIo as _, QueueId};
    use proptest::prelude::*;
    use smoltcp::wire::{
        EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr,
        Ipv6Packet, Ipv6Repr, TcpPacket, UdpPacket,
    };

    use super::*;

    /// What a packet says.
    #[derive(Debug, Clone)]
    #[expect(clippy::struct_excessive_bools, reason = "three independent choices")]
    struct Said {
        v6: bool,
        udp: bool,
        ends: [([u8; 16], u16); 2],
        payload: Vec<u8>,
        /// UDP without a checksum.
        unsummed: bool,
    }

    impl Said {
        fn ip(&self, end: usize) -> IpAddr {
            let (bytes, _) = self.ends[end];
            if self.v6 {
                bytes.into()
            } else {
                let [a, b, c, d, ..] = bytes;
                [a, b, c, d].into()
            }
        }

        fn proto(&self) -> IpProtocol {
            if self.udp { IpProtocol::Udp } else { IpProtocol::Tcp }
        }

        fn l4(&self) -> usize {
            if self.v6 { 54 } else { 34 }
        }

        /// Checksums from scratch.
        fn transport(&self) -> Vec<u8> {
            let (src, dst) = (IpAddress::from(self.ip(0)), IpAddress::from(self.ip(1)));
            let ports = [self.ends[0].1, self.ends[1].1];
            if self.udp {
                let mut bytes = vec![0; 8 + self.payload.len()];
                let len = bytes.len() as u16;
                let mut udp = UdpPacket::new_unchecked(&mut bytes[..]);
                udp.set_src_port(ports[0]);
                udp.set_dst_port(ports[1]);
                udp.set_len(len);
                udp.payload_mut().copy_from_slice(&self.payload);
                let sum = |udp: &mut UdpPacket<_>| udp.fill_checksum(&src, &dst);
                (!self.unsummed).then(|| sum(&mut udp));
                return bytes;
            }
            let mut bytes = vec![0; 20 + self.payload.len()];
            let mut tcp = TcpPacket::new_unchecked(&mut bytes[..]);
            tcp.set_src_port(ports[0]);
            tcp.set_dst_port(ports[1]);
            tcp.set_header_len(20);
            tcp.payload_mut().copy_from_slice(&self.payload);
            tcp.fill_checksum(&src, &dst);
            bytes
        }

        fn frame(&self) -> Vec<u8> {
            let transport = self.transport();
            let mut bytes = vec![0; self.l4() + transport.len()];
            let ethertype = if self.v6 { EthernetProtocol::Ipv6 } else { EthernetProtocol::Ipv4 };
            let mut eth = EthernetFrame::new_unchecked(&mut bytes[..]);
            EthernetRepr {
                src_addr: smoltcp::wire::EthernetAddress([2; 6]),
                dst_addr: smoltcp::wire::EthernetAddress([4; 6]),
                ethertype,
            }
            .emit(&mut eth);
            let header = eth.payload_mut();
            match (self.ip(0), self.ip(1)) {
                (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => Ipv4Repr {
                    src_addr,
                    dst_addr,
                    next_header: self.proto(),
                    payload_len: transport.len(),
                    hop_limit: 64,
                }
                .emit(
                    &mut Ipv4Packet::new_unchecked(header),
                    &smoltcp::phy::ChecksumCapabilities::default(),
                ),
                (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => Ipv6Repr {
                    src_addr,
                    dst_addr,
                    next_header: self.proto(),
                    payload_len: transport.len(),
                    hop_limit: 64,
                }
                .emit(&mut Ipv6Packet::new_unchecked(header)),
                _ => unreachable!("both ends are of one family"),
            }
            let at = self.l4();
            bytes[at..].copy_from_slice(&transport);
            bytes
        }
    }

    fn said() -> impl Strategy<Value = Said> {
        // Few values, so that sums are zero now and then.
        let byte = prop_oneof![Just(0_u8), Just(0xff), any::<u8>()];
        let end = || (prop::array::uniform16(byte.clone()), any::<u16>());
        let ends = [end(), end()];
        let payload = prop::collection::vec(byte.clone(), 0..32);
        (any::<[bool; 3]>(), ends, payload).prop_map(|([v6, udp, unsummed], ends, payload)| Said {
            v6,
            udp,
            ends,
            payload,
            unsummed,
        })
    }

    fn translated(said: &Said, headers: Headers, end: End, to: (IpAddr, u16)) -> Option<Vec<u8>> {
        let bytes = said.frame();
        let mut io = MemoryIo::new(4, &[QueueId::TRUNK]);
        let mut frame = io.alloc().unwrap();
        frame.set_len(bytes.len()).unwrap();
        io.bytes_mut(&mut frame).copy_from_slice(&bytes);
        let done = translate(&mut io, &mut frame, headers, end, to);
        done.ok().map(|()| io.bytes(&frame).to_vec())
    }

    fn headers(said: &Said) -> Headers {
        let proto = if said.udp { ipproto::UDP } else { ipproto::TCP };
        Headers { l3: 14, l4: said.l4(), proto }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_translated_packet_is_what_it_would_be_if_it_had_been_sent_so(
            said in said(), new in (prop::array::uniform16(any::<u8>()), any::<u16>()), dst: bool,
        ) {
            let mut other = said.clone();
            other.ends[usize::from(dst)] = new;
            let end = if dst { End::Destination } else { End::Source };
            let to = (other.ip(usize::from(dst)), new.1);
            prop_assert_eq!(translated(&said, headers(&said), end, to), Some(other.frame()));
            // And back again.
            let back = (said.ip(usize::from(dst)), said.ends[usize::from(dst)].1);
            prop_assert_eq!(translated(&other, headers(&other), end, back), Some(said.frame()));
        }

        #[test]
        fn wrong_offsets_never_panic(
            said in said(), l3 in 0..120_usize, l4 in 0..120_usize, proto: u8, v6: bool,
        ) {
            let ip = if v6 { IpAddr::from([1; 16]) } else { IpAddr::from([1; 4]) };
            translated(&said, Headers { l3, l4, proto }, End::Source, (ip, 1));
        }
    }
}
