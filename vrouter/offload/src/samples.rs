//! Samples of forwarded packets, out of the ring that the programs fill: see `struct flow_sample` of
//! `bpf/flows.bpf.h`, which is mirrored here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flowtable::hot::{HotSample, SAMPLE_HEADER_BYTES};
use flowtable::ids::PortId;
use flowtable::key::ethertype;
use libbpf_rs::{MapCore, RingBuffer, RingBufferBuilder};
use zerocopy::{FromBytes, Immutable};

/// Samples that are taken out of the ring at once.
const BATCH: usize = 64;
const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;

#[derive(Clone, Copy, FromBytes, Immutable)]
#[repr(C)]
struct Record {
    pool: u64,
    rate: u32,
    count: u32,
    frame_len: u32,
    in_port: u16,
    out_port: u16,
    header_len: u32,
    unused: u32,
    header: [u8; SAMPLE_HEADER_BYTES],
}

/// The reading end of the ring.
#[derive(Debug)]
pub(crate) struct Samples {
    /// Held while it is emptied: it has one reader at a time.
    ring: Mutex<RingBuffer<'static>>,
    /// Out of the ring; at most [`BATCH`].
    taken: Arc<Mutex<VecDeque<HotSample>>>,
}

impl Samples {
    pub(crate) fn new(map: &dyn MapCore) -> libbpf_rs::Result<Self> {
        let taken = Arc::new(Mutex::new(VecDeque::new()));
        let mut builder = RingBufferBuilder::new();
        builder.add(map, {
            let taken = Arc::clone(&taken);
            move |bytes| {
                lock(&taken).extend(read(bytes));
                0
            }
        })?;
        Ok(Self { ring: Mutex::new(builder.build()?), taken })
    }

    pub(crate) fn next(&self) -> Option<HotSample> {
        let ring = lock(&self.ring);
        if lock(&self.taken).is_empty() {
            // It fails by the callback only, which does not.
            ring.consume_raw_n(BATCH);
        }
        lock(&self.taken).pop_front()
    }
}

/// `None`: the programs write no such record.
fn read(bytes: &[u8]) -> Option<HotSample> {
    let (record, _) = Record::read_from_prefix(bytes).ok()?;
    let mut sample = HotSample {
        in_port: PortId::new(record.in_port.into()).ok()?,
        out_port: PortId::new(record.out_port.into()).ok()?,
        rate: record.rate,
        count: record.count,
        pool: record.pool,
        frame_len: record.frame_len,
        header: record.header,
        header_len: (record.header_len as usize).min(SAMPLE_HEADER_BYTES) as u8,
    };
    cut(&mut sample);
    Some(sample)
}

/// The header of a large packet becomes that of one it is cut into: the length in the IP header is
/// the packet's then, as it is in the samples of the engine. That of another packet stays as it is.
fn cut(sample: &mut HotSample) {
    let len = (sample.frame_len as usize).saturating_sub(ETHERNET_BYTES);
    let header = &mut sample.header[..usize::from(sample.header_len)];
    let Some((ethernet, ip)) = header.split_at_mut_checked(ETHERNET_BYTES) else { return };
    match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
        ethertype::IPV4 if ip.len() >= IPV4_BYTES => {
            ip[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            ip[10..12].fill(0);
            let checksum = checksum(&ip[..IPV4_BYTES]);
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        ethertype::IPV6 if ip.len() >= IPV6_BYTES => {
            let payload = len.saturating_sub(IPV6_BYTES) as u16;
            ip[4..6].copy_from_slice(&payload.to_be_bytes());
        }
        _ => {}
    }
}

/// RFC 1071.
fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A sample is in the queue or not; a panic leaves no half of one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(header: &[u8], frame_len: u32) -> HotSample {
        let mut sample = HotSample {
            in_port: PortId::MIN,
            out_port: PortId::MAX,
            rate: 1,
            count: 1,
            pool: 1,
            frame_len,
            header: [0; SAMPLE_HEADER_BYTES],
            header_len: header.len() as u8,
        };
        sample.header[..header.len()].copy_from_slice(header);
        cut(&mut sample);
        sample
    }

    #[test]
    fn a_large_packets_header_is_that_of_one_it_is_cut_into() {
        // An example of RFC 1071 in use: 4500 0073 0000 4000 4011 b861 c0a8 0001 c0a8 00c7.
        let ip = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8,
            0, 0xc7,
        ];
        let whole = [&[0; 12][..], &[8, 0], &ip].concat();
        let mut large = whole.clone();
        large[16..18].copy_from_slice(&[0xff, 0xff]);
        large[24..26].copy_from_slice(&[1, 2]);
        for header in [&whole, &large] {
            assert_eq!(sample(header, 0x73 + 14).header[..34], whole);
        }
        let mut v6 = [&[0; 12][..], &[0x86, 0xdd], &[0x60, 0, 0, 0, 0xff, 0xff], &[1; 40]].concat();
        let cut = sample(&v6, 14 + 40 + 300);
        v6[18..20].copy_from_slice(&300_u16.to_be_bytes());
        assert_eq!(cut.header[..v6.len()], v6);
    }

    #[test]
    fn what_is_shorter_than_its_headers_stays_as_it_is() {
        for header in [&[8; 13][..], &[8; 20], &[]] {
            assert_eq!(sample(header, 1000).header[..header.len()], *header);
        }
    }
}
