//! Policing: how much of what a port, a rule or a tenant sends may pass.
//!
//! A meter is a token bucket kept as a time (GCRA, ITU-T I.371): the bucket's state is the moment
//! at which it will be full, one number, so that refilling costs nothing and a long idle gives one
//! burst by itself. Two rates give the three colours of RFC 2698, colour-blind.
//!
//! Workers share a meter without sharing a write per packet. The [`MeterBank`] holds parameters and
//! state; each worker's [`MeterLease`] takes tokens from it in portions and spends them privately.
//! Portions are measured in time, whole nanoseconds, so nothing is lost in the exchange; only the
//! price of a byte is rounded, upwards, by less than 0.005 % (at 400 Gbit/s; 0.000 1 % below 8).
//!
//! Let `q` be the portion: 200 us of the rate divided by the workers, at least two full frames, at
//! most burst / (2 x workers). A worker never passes more than rate x t + burst + max(q, one frame),
//! `n` workers never more than `n` times that last term above rate x t + burst. A packet is refused
//! only where less than max(q, its size) is left.

mod bank;
mod lease;
mod spec;

pub use bank::{MeterBank, MeterCounts, MeterSlot, NoSuchMeter, Tally};
pub use lease::MeterLease;
pub use spec::{BURST_BYTES, BURST_PACKETS, BadMeter, Band, MeterSpec, RATE_BITS, RATE_PACKETS};
pub use spec::{Colour, Unit};
