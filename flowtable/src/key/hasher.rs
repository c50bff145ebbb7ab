//! The hash of a flow key: four multiplications over what tells flows apart.
//!
//! The words of the key are mixed with secret ones and multiplied in pairs, 64 by 64 to 128 bits, and
//! the halves are folded (the construction of wyhash and rapidhash, with every constant a secret of
//! this start). A sender can neither aim at a set of the cache nor cancel a word by choosing an
//! address. MAC addresses and the tunnel's source are left out: keys that differ in them alone meet
//! in one set, where comparing tells them apart, and a set is eight places whatever happens.

use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};
use zerocopy::transmute_ref;

use super::{Brief, FlowKey};

/// Secrets of one start; see [`KeyHasher::hash`].
#[derive(Debug, Clone)]
pub struct KeyHasher {
    secrets: [u64; 8],
}

impl KeyHasher {
    /// Draws the secrets from `seed`, which senders must not know.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let secrets = RapidSecrets::seed(seed);
        let draw = |n: usize| {
            let bytes = (n as u64).to_le_bytes();
            // Odd: no secret is zero.
            rapidhash_v3_inline::<true, true, true>(&bytes, &secrets) | 1
        };
        Self { secrets: std::array::from_fn(draw) }
    }

    /// The hash of a key; every bit depends on all that is hashed. That of a key that can be said in
    /// brief is [`KeyHasher::hash_brief`].
    #[must_use]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        if let Some(brief) = Brief::of(key) {
            return self.hash_brief(&brief);
        }
        self.hash_full(key)
    }

    /// A hash of a key in full, for tables of keys that no packet has.
    #[inline(always)]
    #[must_use]
    pub fn hash_full(&self, key: &FlowKey) -> u64 {
        let words: &[[u8; 8]; 10] = transmute_ref!(key);
        let word = |at: usize| u64::from_le_bytes(words[at]);
        let secret = |at: usize| self.secrets[at];
        // Layout of the key, in bytes: 0 port, tag, types, flags; 8 MACs; 20 VNI; 24 tunnel; 40
        // source; 56 destination; 72 ports, echo identifier, TCP flags.
        let tunnel = u64::from(key.vni) << 40;
        let first = fold(word(0) ^ secret(0), word(5) ^ secret(1));
        let second = fold(word(6) ^ secret(2), word(7) ^ secret(3));
        let third = fold(word(8) ^ secret(4), word(9) ^ tunnel ^ secret(5));
        fold(first ^ second.rotate_left(23) ^ secret(6), third ^ secret(7))
    }

    /// The hash of a key in brief.
    #[inline(always)]
    #[must_use]
    pub fn hash_brief(&self, brief: &Brief) -> u64 {
        let [kind, addresses, tunnel, ..] = *brief.words();
        let first = fold(kind ^ self.secrets[0], addresses ^ self.secrets[1]);
        fold(first ^ self.secrets[2], tunnel ^ self.secrets[3])
    }
}

/// Both halves of the product.
#[inline(always)]
pub(crate) const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::key::mapped;

    fn flow(number: u32) -> FlowKey {
        let [a, b, c, d] = number.to_be_bytes();
        FlowKey {
            in_port: 1,
            eth_type: 0x0800,
            proto: 17,
            src: mapped([10, a, b, 1]),
            dst: mapped([172, 16, c, d]),
            src_port: 1024 + number as u16 % 7,
            dst_port: 80,
            ..FlowKey::default()
        }
    }

    #[test]
    fn low_and_high_bits_spread_over_like_flows() {
        let hasher = KeyHasher::new(5);
        let hashes: Vec<u64> = (0..1 << 16).map(|n| hasher.hash(&flow(n))).collect();
        assert_eq!(hashes.iter().collect::<HashSet<_>>().len(), hashes.len());
        for shift in [0, 20, 48] {
            let mut filled = vec![0_u32; 1 << 12];
            for hash in &hashes {
                filled[(hash >> shift) as usize & 0xfff] += 1;
            }
            // Sixteen on average; Poisson says that 45 is one in a hundred million.
            let (least, most) = (filled.iter().min().unwrap(), filled.iter().max().unwrap());
            assert!(*most < 45 && *least > 0, "bits from {shift}: {least} to {most}");
        }
    }

    #[test]
    fn every_bit_of_what_is_hashed_counts_and_another_seed_hashes_otherwise() {
        let (hasher, key) = (KeyHasher::new(5), flow(77));
        let hash = hasher.hash(&key);
        assert_ne!(hash, KeyHasher::new(6).hash(&key));
        let bytes = zerocopy::IntoBytes::as_bytes(&key).to_vec();
        let hashed = |at: &usize| matches!(at, 0..8 | 20..23 | 40..80);
        for at in (0..80).filter(hashed) {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                let other: FlowKey = zerocopy::FromBytes::read_from_bytes(&bytes).unwrap();
                let differing = (hasher.hash(&other) ^ hash).count_ones();
                assert!((8..=56).contains(&differing), "byte {at}, bit {bit}: {differing} bits");
            }
        }
    }
}
