//! External data representation (RFC 4506) as far as sFlow uses it: big-endian words, opaque bytes
//! padded with zeros to a multiple of four, and the `tag, length, body` frame of samples and records.

use std::net::IpAddr;

/// Appends XDR to a byte buffer, which is kept between uses so that nothing is allocated.
#[derive(Debug)]
pub(crate) struct Emitter<'a> {
    buffer: &'a mut Vec<u8>,
}

impl<'a> Emitter<'a> {
    pub(crate) fn new(buffer: &'a mut Vec<u8>) -> Self {
        Self { buffer }
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.buffer.extend_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.buffer.extend_from_slice(&value.to_be_bytes());
    }

    /// Variable-length opaque data (RFC 4506, section 4.10): length, bytes, zeros up to a word.
    pub(crate) fn opaque(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.buffer.extend_from_slice(bytes);
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    /// An address with its type: 1 for IPv4, 2 for IPv6.
    pub(crate) fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => {
                self.u32(1);
                self.buffer.extend_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                self.u32(2);
                self.buffer.extend_from_slice(&v6.octets());
            }
        }
    }

    /// `tag`, the length of what `body` writes, and that.
    pub(crate) fn framed(&mut self, tag: u32, body: impl FnOnce(&mut Self)) {
        self.u32(tag);
        self.u32(0);
        let start = self.buffer.len();
        body(self);
        let length = (self.buffer.len() - start) as u32;
        patch(self.buffer, start - 4, length);
    }
}

/// Overwrites the word at byte `at`, which has been written before.
pub(crate) fn patch(buffer: &mut [u8], at: usize, value: u32) {
    buffer[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opaque_data_is_padded_with_zeros_and_its_length_is_not() {
        let mut buffer = Vec::new();
        Emitter::new(&mut buffer).opaque(b"abcde");
        assert_eq!(buffer, [0, 0, 0, 5, b'a', b'b', b'c', b'd', b'e', 0, 0, 0]);
    }

    #[test]
    fn a_frame_within_a_frame_counts_into_the_length_of_the_outer_one() {
        let mut buffer = Vec::new();
        Emitter::new(&mut buffer).framed(0x11, |outer| outer.framed(0x22, |inner| inner.u32(9)));
        let words = [0x11, 12, 0x22, 4, 9].map(u32::to_be_bytes);
        assert_eq!(buffer, words.concat());
    }

    #[test]
    fn addresses_carry_their_type() {
        let mut buffer = Vec::new();
        let mut emitter = Emitter::new(&mut buffer);
        emitter.address(IpAddr::from([192, 0, 2, 1]));
        emitter.address("2001:db8::1".parse().unwrap());
        assert_eq!(buffer[..8], [0, 0, 0, 1, 192, 0, 2, 1]);
        assert_eq!(buffer[8..], [&[0, 0, 0, 2, 0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1]].concat());
    }
}
