//! Classic pcap files: a 24-byte header, then records of a 16-byte header and the captured bytes.
//! Microsecond and nanosecond stamps (ignored here), both byte orders, Ethernet only.

/// Why a file is no capture of Ethernet frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PcapError {
    #[error("is not a pcap file")]
    Magic,
    #[error("is a pcapng file; convert it with: editcap -F pcap IN OUT")]
    Pcapng,
    #[error("has link type {0}, want 1 (Ethernet)")]
    LinkType(u32),
    #[error("packet {0} is cut off or longer than {FRAME_BYTES_MAX} bytes")]
    Record(usize),
    #[error("has no packet")]
    Empty,
}

/// Largest record accepted, in bytes: tcpdump's own largest snapshot length.
const FRAME_BYTES_MAX: usize = 262_144;
const HEADER_BYTES: usize = 24;
const RECORD_HEADER_BYTES: usize = 16;
const LINK_TYPE_ETHERNET: u32 = 1;

/// The frames of a file, in order, at most `limit`.
pub(crate) fn frames(file: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, PcapError> {
    let number = byte_order(file)?;
    let (header, mut rest) = file.split_at_checked(HEADER_BYTES).ok_or(PcapError::Magic)?;
    // The upper 16 bits may say how long the frame check sequence is.
    let link_type = number(header, 20) & 0xffff;
    if link_type != LINK_TYPE_ETHERNET {
        return Err(PcapError::LinkType(link_type));
    }
    let mut frames = Vec::new();
    while !rest.is_empty() && frames.len() < limit {
        let bad = PcapError::Record(frames.len() + 1);
        let (record, behind) = rest.split_at_checked(RECORD_HEADER_BYTES).ok_or(bad)?;
        let captured = number(record, 8) as usize;
        if captured > FRAME_BYTES_MAX {
            return Err(bad);
        }
        let (frame, behind) = behind.split_at_checked(captured).ok_or(bad)?;
        frames.push(frame.to_vec());
        rest = behind;
    }
    if frames.is_empty() { Err(PcapError::Empty) } else { Ok(frames) }
}

/// Reads the 4 bytes at an offset that the caller knows to be inside.
type Number = fn(&[u8], usize) -> u32;

fn byte_order(file: &[u8]) -> Result<Number, PcapError> {
    let magic = file.first_chunk::<4>().ok_or(PcapError::Magic)?;
    match magic {
        [0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d] => {
            Ok(|bytes, at| u32::from_be_bytes(word(bytes, at)))
        }
        [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1] => {
            Ok(|bytes, at| u32::from_le_bytes(word(bytes, at)))
        }
        [0x0a, 0x0d, 0x0d, 0x0a] => Err(PcapError::Pcapng),
        _ => Err(PcapError::Magic),
    }
}

fn word(bytes: &[u8], at: usize) -> [u8; 4] {
    [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]
}

#[cfg(test)]
mod tests {
    use super::{PcapError, frames};

    /// A file of two packets, written with `number` for the byte order.
    fn file(magic: u32, link_type: u32, number: fn(u32) -> [u8; 4]) -> Vec<u8> {
        let mut file = Vec::new();
        for word in [magic, 0x0004_0002, 0, 0, 65535, link_type] {
            file.extend(number(word));
        }
        for frame in [&[1u8; 14][..], &[2u8; 60][..]] {
            for word in [0, 0, frame.len() as u32, 1500] {
                file.extend(number(word));
            }
            file.extend(frame);
        }
        file
    }

    #[test]
    fn both_byte_orders_and_stamps_are_read() {
        let want = vec![vec![1u8; 14], vec![2u8; 60]];
        for magic in [0xa1b2_c3d4, 0xa1b2_3c4d] {
            assert_eq!(frames(&file(magic, 1, u32::to_be_bytes), 9), Ok(want.clone()));
            assert_eq!(frames(&file(magic, 1, u32::to_le_bytes), 9), Ok(want.clone()));
        }
        let first = frames(&file(0xa1b2_c3d4, 1, u32::to_le_bytes), 1);
        assert_eq!(first, Ok(vec![vec![1u8; 14]]));
    }

    #[test]
    fn what_is_no_ethernet_capture_is_refused_by_reason() {
        assert_eq!(frames(b"", 1), Err(PcapError::Magic));
        assert_eq!(frames(b"hello, world", 1), Err(PcapError::Magic));
        assert_eq!(frames(&[0x0a, 0x0d, 0x0d, 0x0a, 0], 1), Err(PcapError::Pcapng));
        let raw = file(0xa1b2_c3d4, 101, u32::to_be_bytes);
        assert_eq!(frames(&raw, 1), Err(PcapError::LinkType(101)));
        let good = file(0xa1b2_c3d4, 1, u32::to_be_bytes);
        assert_eq!(frames(&good[..24], 1), Err(PcapError::Empty));
        assert_eq!(frames(&good[..20], 1), Err(PcapError::Magic));
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_or_fewer_packets_and_never_a_panic() {
        let good = file(0xa1b2_c3d4, 1, u32::to_le_bytes);
        let first_ends = 24 + 16 + 14;
        for end in 0..good.len() {
            match frames(&good[..end], 9) {
                Ok(some) => assert_eq!((end, some.len()), (first_ends, 1)),
                Err(PcapError::Record(n)) => assert_eq!(n, if end < first_ends { 1 } else { 2 }),
                Err(other) => assert!(end <= 24, "{end}: {other}"),
            }
        }
    }

    #[test]
    fn a_record_that_claims_too_much_is_refused() {
        let mut huge = file(0xa1b2_c3d4, 1, u32::to_be_bytes);
        huge[32..36].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(frames(&huge, 1), Err(PcapError::Record(1)));
    }
}
