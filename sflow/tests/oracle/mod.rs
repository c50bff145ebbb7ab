//! A decoder written from the specification's text and not from the encoder: slow, obvious, and
//! unforgiving. Whatever is left over, cut short or wrongly padded fails the test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One datagram, taken apart down to the records.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) agent: IpAddr,
    pub(crate) sub_agent: u32,
    pub(crate) sequence: u32,
    pub(crate) uptime_ms: u32,
    pub(crate) samples: Vec<Sample>,
}

/// One sample: its fixed words and its records (tag, body).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) tag: u32,
    pub(crate) words: Vec<u32>,
    pub(crate) records: Vec<(u32, Vec<u8>)>,
}

pub(crate) fn decode(bytes: &[u8]) -> Datagram {
    let mut rest = bytes;
    assert_eq!(word(&mut rest), 5, "version");
    let agent = match word(&mut rest) {
        1 => IpAddr::from(Ipv4Addr::from(word(&mut rest))),
        2 => {
            let high = u128::from(double(&mut rest));
            IpAddr::from(Ipv6Addr::from(high << 64 | u128::from(double(&mut rest))))
        }
        other => panic!("address type {other}"),
    };
    let (sub_agent, sequence, uptime_ms) = (word(&mut rest), word(&mut rest), word(&mut rest));
    let count = word(&mut rest);
    let samples = (0..count).map(|_| sample(&mut rest)).collect();
    assert_eq!(rest, [0; 0], "bytes after the last sample");
    Datagram { agent, sub_agent, sequence, uptime_ms, samples }
}

fn sample(datagram: &mut &[u8]) -> Sample {
    let tag = word(datagram);
    let length = word(datagram) as usize;
    let mut rest = take(datagram, length);
    let fixed = match tag {
        1 => 7,
        2 => 2,
        other => panic!("sample type {other}"),
    };
    let words = (0..fixed).map(|_| word(&mut rest)).collect();
    let count = word(&mut rest);
    let records = (0..count).map(|_| record(&mut rest)).collect();
    assert_eq!(rest, [0; 0], "bytes after the last record");
    Sample { tag, words, records }
}

fn record(sample: &mut &[u8]) -> (u32, Vec<u8>) {
    let tag = word(sample);
    let length = word(sample) as usize;
    assert_eq!(length % 4, 0, "a record is whole words");
    (tag, take(sample, length).to_vec())
}

/// Opaque data at the end of a record: the bytes without their padding, which must be zeros.
pub(crate) fn opaque(mut record: &[u8]) -> Vec<u8> {
    let length = word(&mut record) as usize;
    let bytes = take(&mut record, length).to_vec();
    assert_eq!(record, vec![0; (4 - length % 4) % 4], "padding");
    bytes
}

/// All of `bytes` as words.
pub(crate) fn words(mut bytes: &[u8]) -> Vec<u32> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        found.push(word(&mut bytes));
    }
    found
}

fn word(bytes: &mut &[u8]) -> u32 {
    take(bytes, 4).iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn double(bytes: &mut &[u8]) -> u64 {
    let high = u64::from(word(bytes));
    high << 32 | u64::from(word(bytes))
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    assert!(bytes.len() >= count, "{count} bytes wanted, {} left", bytes.len());
    let (head, tail) = bytes.split_at(count);
    *bytes = tail;
    head
}
