//! The samples and their encoding (section 5 of the specification, compact form).
//!
//! Interface indexes are the kernel's, so that a collector's names agree with `ip link` and SNMP.
//! The compact form holds indexes below 2^24; several collectors read no other form, so a larger
//! index is refused and not sent in the expanded form.

use crate::xdr::Emitter;

/// Longest interface name in a counter sample, in bytes. The kernel's own limit is 15.
pub const NAME_BYTES_MAX: usize = 64;

/// What a counter says that the agent does not keep (section 5: "all ones").
const UNKNOWN: u32 = u32::MAX;
/// Ethernet's frame check sequence, bytes. `AF_XDP` never sees it; sFlow's frame length counts it.
const FCS: u32 = 4;

const FLOW_SAMPLE: u32 = 1;
const COUNTER_SAMPLE: u32 = 2;
const RAW_HEADER: u32 = 1;
const EXTENDED_SWITCH: u32 = 1001;
const INTERFACE_COUNTERS: u32 = 1;
const ETHERNET_COUNTERS: u32 = 2;
const PORT_NAME: u32 = 1005;

/// An interface index that the compact form can carry: 1..2^24.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfIndex(u32);

/// An interface index that is 0 or does not fit into 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interface index {0} is not in 1..=16777215")]
pub struct BadIfIndex(pub u32);

impl IfIndex {
    /// Checks the range.
    ///
    /// # Errors
    /// [`BadIfIndex`] when `index` is 0 or needs more than 24 bits.
    pub const fn new(index: u32) -> Result<Self, BadIfIndex> {
        if index == 0 || index > 0xff_ffff { Err(BadIfIndex(index)) } else { Ok(Self(index)) }
    }

    /// The plain index, host order.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Where a sampled packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Answered by the agent itself, or sent to several interfaces.
    Unknown,
    /// Sent out of this interface.
    Interface(IfIndex),
    /// Dropped, with the sFlow discard code (0..=15, 256..=371).
    Dropped(u16),
}

impl Output {
    /// Section 5, `interface`: the two top bits are the format, 0 an index and 1 a discard code.
    fn word(self) -> u32 {
        match self {
            Self::Unknown => 0,
            Self::Interface(index) => index.get(),
            Self::Dropped(code) => 0x4000_0000 | u32::from(code),
        }
    }
}

/// One sampled packet, as it was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowSample<'a> {
    /// The interface that was sampled, where the packet came in.
    pub source: IfIndex,
    /// One packet in `rate` is sampled.
    pub rate: u32,
    /// Packets of `source` that could have been sampled up to this one; wraps.
    pub pool: u32,
    /// Where the packet went.
    pub output: Output,
    /// Length of the frame as received, bytes, without FCS.
    pub frame_len: u32,
    /// 802.1Q tag control information of the frame received: priority in the top three bits, VLAN
    /// id in the low twelve. Host order, 0 without a tag.
    pub vlan_in: u16,
    /// The same of the frame sent.
    pub vlan_out: u16,
    /// The first bytes of the frame as received; the exporter cuts them at its header limit.
    pub header: &'a [u8],
}

/// Numbers of a flow sample that the exporter keeps for its source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlowNumbers {
    pub(crate) sequence: u32,
    pub(crate) lost: u32,
    pub(crate) header_bytes: usize,
}

impl FlowSample<'_> {
    pub(crate) fn emit(&self, numbers: FlowNumbers, out: &mut Emitter<'_>) {
        out.framed(FLOW_SAMPLE, |out| {
            out.u32(numbers.sequence);
            // Data source class 0 (ifIndex) in the top byte.
            out.u32(self.source.get());
            out.u32(self.rate);
            out.u32(self.pool);
            out.u32(numbers.lost);
            out.u32(self.source.get());
            out.u32(self.output.word());
            out.u32(2);
            let cut = self.header.len().min(numbers.header_bytes);
            out.framed(RAW_HEADER, |out| {
                const ETHERNET: u32 = 1;
                out.u32(ETHERNET);
                out.u32(self.frame_len.saturating_add(FCS));
                // "stripped": bytes taken off the frame before the header was read.
                out.u32(FCS);
                out.opaque(&self.header[..cut]);
            });
            out.framed(EXTENDED_SWITCH, |out| {
                emit_tag(self.vlan_in, out);
                emit_tag(self.vlan_out, out);
            });
        });
    }
}

/// VLAN id and priority of 802.1Q tag control information.
fn emit_tag(tci: u16, out: &mut Emitter<'_>) {
    out.u32(u32::from(tci & 0xfff));
    out.u32(u32::from(tci >> 13));
}

/// Traffic of one direction of an interface. `None`: not counted, which collectors are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes without FCS.
    pub octets: u64,
    /// Packets to one station; all packets where the kinds are not told apart.
    pub unicast: Option<u32>,
    /// Packets to a group.
    pub multicast: Option<u32>,
    /// Packets to all stations.
    pub broadcast: Option<u32>,
    /// Packets dropped although they were well-formed.
    pub discards: Option<u32>,
    /// Packets that could not be received or sent because of an error.
    pub errors: Option<u32>,
}

impl Traffic {
    fn emit(&self, out: &mut Emitter<'_>) {
        out.u64(self.octets);
        let packets = [self.unicast, self.multicast, self.broadcast, self.discards, self.errors];
        for count in packets {
            out.u32(count.unwrap_or(UNKNOWN));
        }
    }
}

/// State and totals of one interface (section 5, `if_counters`). Packet counters are 32 bits wide
/// and wrap; collectors work with differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InterfaceCounters {
    /// Bits per second; 0 when unknown.
    pub speed_bps: u64,
    /// Set up by the administrator.
    pub admin_up: bool,
    /// Has a carrier.
    pub oper_up: bool,
    /// Received by this node from the interface.
    pub rx: Traffic,
    /// Received, with a protocol nobody here speaks.
    pub rx_unknown_protocols: Option<u32>,
    /// Sent by this node out of the interface.
    pub tx: Traffic,
}

impl InterfaceCounters {
    fn emit(&self, index: IfIndex, out: &mut Emitter<'_>) {
        const ETHERNET_CSMACD: u32 = 6;
        const FULL_DUPLEX: u32 = 1;
        const NOT_PROMISCUOUS: u32 = 2;
        out.u32(index.get());
        out.u32(ETHERNET_CSMACD);
        out.u64(self.speed_bps);
        out.u32(FULL_DUPLEX);
        out.u32(u32::from(self.admin_up) | u32::from(self.oper_up) << 1);
        self.rx.emit(out);
        out.u32(self.rx_unknown_protocols.unwrap_or(UNKNOWN));
        self.tx.emit(out);
        // The MIB's TruthValue: 1 true, 2 false.
        out.u32(NOT_PROMISCUOUS);
    }
}

/// What an Ethernet device counts of its wire (section 5, `ethernet_counters`, the MIB's dot3Stats).
/// `None`: not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EthernetCounters {
    /// Frames whose length is no whole number of bytes.
    pub alignment_errors: Option<u32>,
    /// Frames with a wrong FCS.
    pub fcs_errors: Option<u32>,
    /// Frames sent after one collision.
    pub single_collisions: Option<u32>,
    /// Frames sent after several collisions.
    pub multiple_collisions: Option<u32>,
    /// SQE test errors.
    pub sqe_test_errors: Option<u32>,
    /// Frames that waited because the medium was busy.
    pub deferred: Option<u32>,
    /// Collisions later than one slot time.
    pub late_collisions: Option<u32>,
    /// Frames given up because of collisions.
    pub excessive_collisions: Option<u32>,
    /// Frames not sent because of an error in the device.
    pub internal_tx_errors: Option<u32>,
    /// Times the carrier was lost.
    pub carrier_sense_errors: Option<u32>,
    /// Frames longer than allowed.
    pub frames_too_long: Option<u32>,
    /// Frames not received because of an error in the device.
    pub internal_rx_errors: Option<u32>,
    /// Symbol errors.
    pub symbol_errors: Option<u32>,
}

impl EthernetCounters {
    fn emit(&self, out: &mut Emitter<'_>) {
        let in_order = [
            self.alignment_errors,
            self.fcs_errors,
            self.single_collisions,
            self.multiple_collisions,
            self.sqe_test_errors,
            self.deferred,
            self.late_collisions,
            self.excessive_collisions,
            self.internal_tx_errors,
            self.carrier_sense_errors,
            self.frames_too_long,
            self.internal_rx_errors,
            self.symbol_errors,
        ];
        for count in in_order {
            out.u32(count.unwrap_or(UNKNOWN));
        }
    }
}

/// The counters of one interface at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterSample<'a> {
    /// The interface.
    pub source: IfIndex,
    /// Its name, at most [`NAME_BYTES_MAX`] bytes.
    pub name: &'a str,
    /// State and traffic.
    pub interface: InterfaceCounters,
    /// The wire's errors, of a device that has a wire.
    pub ethernet: Option<EthernetCounters>,
}

impl CounterSample<'_> {
    pub(crate) fn emit(&self, sequence: u32, out: &mut Emitter<'_>) {
        out.framed(COUNTER_SAMPLE, |out| {
            out.u32(sequence);
            out.u32(self.source.get());
            out.u32(2 + u32::from(self.ethernet.is_some()));
            out.framed(INTERFACE_COUNTERS, |out| self.interface.emit(self.source, out));
            if let Some(ethernet) = &self.ethernet {
                out.framed(ETHERNET_COUNTERS, |out| ethernet.emit(out));
            }
            // Last: tshark 4.0 does not know it and skips the rest of the sample.
            out.framed(PORT_NAME, |out| out.opaque(self.name.as_bytes()));
        });
    }
}

/// Bytes of the largest flow sample with `header_bytes` of header.
pub(crate) const fn flow_sample_bytes(header_bytes: usize) -> usize {
    (8 + 32) + (8 + 16 + header_bytes.next_multiple_of(4)) + (8 + 16)
}

/// Bytes of the largest counter sample.
pub(crate) const COUNTER_SAMPLE_BYTES: usize =
    (8 + 12) + (8 + 88) + (8 + 52) + (8 + 4 + NAME_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_outside_24_bits_is_refused() {
        assert_eq!(IfIndex::new(0), Err(BadIfIndex(0)));
        assert_eq!(IfIndex::new(1 << 24), Err(BadIfIndex(1 << 24)));
        assert_eq!(IfIndex::new(0xff_ffff).unwrap().get(), 0xff_ffff);
    }

    #[test]
    fn a_drop_is_an_output_with_format_one() {
        assert_eq!(Output::Dropped(258).word(), 0x4000_0102);
        assert_eq!(Output::Dropped(0).word(), 0x4000_0000);
        assert_eq!(Output::Unknown.word(), 0);
        assert_eq!(Output::Interface(IfIndex::new(9).unwrap()).word(), 9);
    }

    #[test]
    fn the_stated_sizes_are_those_of_the_largest_samples() {
        let source = IfIndex::new(5).unwrap();
        let mut bytes = Vec::new();
        let numbers = FlowNumbers { sequence: 1, lost: 0, header_bytes: 126 };
        let (frame_len, rate, pool) = (1500, 1, 1);
        let (vlan_in, vlan_out, output) = (0, 0, Output::Unknown);
        let header = &[7; 200][..];
        FlowSample { source, rate, pool, output, frame_len, vlan_in, vlan_out, header }
            .emit(numbers, &mut Emitter::new(&mut bytes));
        assert_eq!(bytes.len(), flow_sample_bytes(126));

        bytes.clear();
        let name = "x".repeat(NAME_BYTES_MAX);
        let interface = InterfaceCounters::default();
        let ethernet = Some(EthernetCounters::default());
        CounterSample { source, name: &name, interface, ethernet }
            .emit(1, &mut Emitter::new(&mut bytes));
        assert_eq!(bytes.len(), COUNTER_SAMPLE_BYTES);
    }
}
