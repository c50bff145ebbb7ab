//! Compares what the engine sends with what was built for it, byte by byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use packet_io::memory::Inspector;

/// Where the IPv4 source address is in a frame on the trunk.
const TRUNK_SOURCE: usize = 4 + 14 + 12;
/// Tag and its ethertype in a frame on the trunk.
const TRUNK_TAG: std::ops::Range<usize> = 12..16;
/// The address of flow 0.
const SOURCES: u32 = 0x0a00_0000;
/// Flows have numbers below this, 10.0.0.0/10; addresses above are others'.
const FLOW_SOURCES: u32 = 1 << 22;
/// Source ports of outer UDP headers are 49152 and above (RFC 7348, section 5).
const ENTROPY_FIRST: u16 = 0xc000;

/// How packets come out of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// All of them, as they went in.
    AsReceived,
    /// Some of them, from flows that their source address tells; others in between, which go to
    /// other ports or come from beyond [`FLOW_SOURCES`].
    BySource,
}

/// One frame of each flow, as it must come out.
#[derive(Debug)]
pub(crate) struct Expected {
    /// All of one length, without gaps.
    pub(crate) frames: Vec<u8>,
    pub(crate) frame_len: usize,
    /// 16 bits that grow by one with every turn.
    pub(crate) fresh: Option<usize>,
    /// The outer source port: any of the dynamic ports.
    pub(crate) hidden: Option<usize>,
}

/// Packets compared so far.
#[derive(Debug, Clone, Default)]
pub struct Verified(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    right: AtomicU64,
    wrong: AtomicU64,
}

impl Verified {
    /// As they had to be.
    #[must_use]
    pub fn right(&self) -> u64 {
        self.0.right.load(Ordering::Relaxed)
    }

    /// Not as they had to be.
    #[must_use]
    pub fn wrong(&self) -> u64 {
        self.0.wrong.load(Ordering::Relaxed)
    }
}

/// Looks at what is sent to a queue.
#[derive(Debug)]
pub struct Checker {
    expected: Expected,
    order: Order,
    verified: Verified,
}

impl Checker {
    pub(crate) fn new(expected: Expected, order: Order) -> (Self, Verified) {
        let verified = Verified::default();
        (Self { expected, order, verified: verified.clone() }, verified)
    }

    /// The flow that this frame must be of and its turn; `None` for others' frames.
    fn flow(&self, number: u64, bytes: &[u8]) -> Option<(usize, u16)> {
        let flows = (self.expected.frames.len() / self.expected.frame_len.max(1)).max(1) as u64;
        match self.order {
            Order::AsReceived => Some(((number % flows) as usize, (number / flows) as u16)),
            Order::BySource => {
                let tag = self.expected.frames.get(TRUNK_TAG)?;
                if bytes.get(TRUNK_TAG)? != tag {
                    return None;
                }
                let source = bytes.get(TRUNK_SOURCE..)?.first_chunk::<4>()?;
                let flow = u32::from_be_bytes(*source).wrapping_sub(SOURCES);
                (flow < FLOW_SOURCES).then_some((flow as usize, 0))
            }
        }
    }
}

impl Expected {
    fn matches(&self, flow: usize, turn: u16, bytes: &[u8]) -> bool {
        let start = flow * self.frame_len;
        let Some(frame) = self.frames.get(start..start + self.frame_len) else { return false };
        if self.fresh.is_none() && self.hidden.is_none() {
            return frame == bytes;
        }
        let mut expected = [0; packet_io::FRAME_BYTES];
        let Some(expected) = expected.get_mut(..self.frame_len) else { return false };
        expected.copy_from_slice(frame);
        let field = |bytes: &[u8], at: usize| {
            bytes.get(at..).and_then(<[u8]>::first_chunk::<2>).map(|b| u16::from_be_bytes(*b))
        };
        if let Some(at) = self.fresh
            && let Some(port) = field(expected, at)
        {
            expected[at..at + 2].copy_from_slice(&port.wrapping_add(turn).to_be_bytes());
        }
        if let Some(at) = self.hidden {
            let Some(port) = field(bytes, at).filter(|port| *port >= ENTROPY_FIRST) else {
                return false;
            };
            expected[at..at + 2].copy_from_slice(&port.to_be_bytes());
        }
        expected == bytes
    }
}

impl Inspector for Checker {
    fn sent(&mut self, number: u64, bytes: &[u8]) {
        let Some((flow, turn)) = self.flow(number, bytes) else { return };
        let counts = &self.verified.0;
        let count =
            if self.expected.matches(flow, turn, bytes) { &counts.right } else { &counts.wrong };
        // Written by this thread alone.
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two flows of 40 byte frames on the trunk.
    fn checker(fresh: Option<usize>, hidden: Option<usize>, order: Order) -> (Checker, Verified) {
        let expected =
            Expected { frames: [frame(0), frame(1)].concat(), frame_len: 40, fresh, hidden };
        Checker::new(expected, order)
    }

    fn frame(flow: u8) -> Vec<u8> {
        let mut frame = vec![7; 40];
        frame[TRUNK_TAG].copy_from_slice(&[0x81, 0, 3, 0xe8]);
        frame[TRUNK_SOURCE..TRUNK_SOURCE + 4].copy_from_slice(&[10, 0, 0, flow]);
        frame
    }

    fn counts(verified: &Verified) -> (u64, u64) {
        (verified.right(), verified.wrong())
    }

    #[test]
    fn every_byte_of_every_frame_counts() {
        let (mut checker, verified) = checker(None, None, Order::AsReceived);
        checker.sent(0, &frame(0));
        checker.sent(3, &frame(1));
        assert_eq!(counts(&verified), (2, 0));
        for at in 0..40 {
            let mut wrong = frame(0);
            wrong[at] ^= 1;
            checker.sent(4, &wrong);
        }
        checker.sent(5, &frame(0));
        checker.sent(6, &frame(0)[..39]);
        assert_eq!(counts(&verified), (2, 42));
    }

    #[test]
    fn a_fresh_field_must_be_that_of_its_turn() {
        let (mut checker, verified) = checker(Some(38), None, Order::AsReceived);
        let mut third = frame(0);
        third[38..].copy_from_slice(&(0x0707_u16 + 2).to_be_bytes());
        checker.sent(4, &third);
        assert_eq!(counts(&verified), (1, 0));
        checker.sent(2, &third);
        checker.sent(4, &frame(0));
        assert_eq!(counts(&verified), (1, 2));
    }

    #[test]
    fn a_hidden_field_may_be_any_dynamic_port_and_no_other() {
        let (mut checker, verified) = checker(None, Some(34), Order::AsReceived);
        let mut sent = frame(0);
        for port in [0xc000_u16, 0xffff, 0xbfff] {
            sent[34..36].copy_from_slice(&port.to_be_bytes());
            checker.sent(0, &sent);
        }
        assert_eq!(counts(&verified), (2, 1));
    }

    #[test]
    fn frames_are_found_by_source_and_those_for_others_left_alone() {
        let (mut checker, verified) = checker(None, None, Order::BySource);
        checker.sent(17, &frame(1));
        let mut other = frame(1);
        other[15] ^= 1;
        checker.sent(18, &other);
        let mut other = frame(1);
        other[TRUNK_SOURCE + 1] = 64;
        checker.sent(18, &other);
        assert_eq!(counts(&verified), (1, 0));
        checker.sent(19, &frame(2));
        let mut broken = frame(0);
        broken[39] ^= 1;
        checker.sent(20, &broken);
        assert_eq!(counts(&verified), (1, 2));
    }
}
