//! What a meter allows, checked once. Everything behind [`MeterSpec::new`] may rely on it: no
//! division by zero, no price that rounds to nothing, no burst that a full frame cannot pass.

use std::ops::RangeInclusive;

/// Accepted rates of [`Unit::Bits`], bits per second.
pub const RATE_BITS: RangeInclusive<u64> = 1_000..=400_000_000_000;
/// Accepted rates of [`Unit::Packets`], packets per second.
pub const RATE_PACKETS: RangeInclusive<u64> = 1..=1_000_000_000;
/// Accepted bursts of [`Unit::Bits`], bytes; the least is one full frame without FCS, rounded up
/// for a tag (IEEE 802.3: 1518 bytes).
pub const BURST_BYTES: RangeInclusive<u64> = FULL_FRAME_BYTES..=1_000_000_000;
/// Accepted bursts of [`Unit::Packets`], packets.
pub const BURST_PACKETS: RangeInclusive<u64> = 1..=1_000_000_000;

const FULL_FRAME_BYTES: u64 = 1518;
const NS_PER_S: u64 = 1_000_000_000;
/// Longest time that one worker lets another wait for the tokens it holds.
const LEASE_NS: u64 = 200_000;

/// Fraction bits of a price in nanoseconds. The highest rate, 400 Gbit/s, is 0.02 ns per byte, or
/// 20,971.5 units, so rounding is below 1 in 20,971; at the lowest, 1 kbit/s or 8 ms per byte, a
/// frame of 65,535 bytes is 5.5e17 units, a 33rd of `u64`.
pub(super) const FRACTION: u32 = 20;

/// A rate with its burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Band {
    /// Bits or packets per second.
    pub rate: u64,
    /// Bytes or packets that may pass at once. A worker looks at its queues every so often, so a
    /// burst below rate x 100 us costs throughput.
    pub burst: u64,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// Bits per second, bursts in bytes: of the Ethernet frame without FCS.
    Bits,
    /// Packets per second, bursts in packets.
    Packets,
}

/// The verdict of a meter, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Colour {
    /// Within the committed rate.
    Green,
    /// Above the committed rate, within the peak rate.
    Yellow,
    /// Above all rates.
    Red,
}

/// The parameters of a meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeterSpec {
    unit: Unit,
    committed: Band,
    peak: Option<Band>,
}

/// Why parameters were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMeter {
    /// A rate is 0, too low or too high.
    #[error("{band} rate {value} is not in {first}..={last} {unit} per second")]
    Rate {
        /// `committed` or `peak`.
        band: &'static str,
        /// The refused number.
        value: u64,
        /// Lowest accepted rate.
        first: u64,
        /// Highest accepted rate.
        last: u64,
        /// `bits` or `packets`.
        unit: &'static str,
    },
    /// A burst is 0, smaller than a full frame, or too large.
    #[error("{band} burst {value} is not in {first}..={last} {unit}")]
    Burst {
        /// `committed` or `peak`.
        band: &'static str,
        /// The refused number.
        value: u64,
        /// Smallest accepted burst.
        first: u64,
        /// Largest accepted burst.
        last: u64,
        /// `bytes` or `packets`.
        unit: &'static str,
    },
    /// RFC 2698, section 2: the peak rate is not below the committed one.
    #[error("peak rate {value} is not in {committed}..={last}: it is below the committed rate")]
    PeakBelowCommitted {
        /// The refused peak rate.
        value: u64,
        /// The committed rate, and so the lowest accepted peak rate.
        committed: u64,
        /// Highest accepted rate.
        last: u64,
    },
}

impl MeterSpec {
    /// Checks the parameters. Without `peak` a packet is green or red; with it also yellow
    /// (RFC 2698, section 3, colour-blind mode).
    ///
    /// # Errors
    /// [`BadMeter`] names the field, the value and what is accepted: [`RATE_BITS`] and
    /// [`BURST_BYTES`], or [`RATE_PACKETS`] and [`BURST_PACKETS`]; `peak.rate` is not below
    /// `committed.rate`.
    pub fn new(unit: Unit, committed: Band, peak: Option<Band>) -> Result<Self, BadMeter> {
        check("committed", unit, committed)?;
        if let Some(peak) = peak {
            check("peak", unit, peak)?;
            if peak.rate < committed.rate {
                let (value, committed) = (peak.rate, committed.rate);
                return Err(BadMeter::PeakBelowCommitted { value, committed, last: unit.last() });
            }
        }
        Ok(Self { unit, committed, peak })
    }

    /// What is counted.
    #[must_use]
    pub const fn unit(&self) -> Unit {
        self.unit
    }

    /// The committed rate, or the only one.
    #[must_use]
    pub const fn committed(&self) -> Band {
        self.committed
    }

    /// The peak rate.
    #[must_use]
    pub const fn peak(&self) -> Option<Band> {
        self.peak
    }

    /// Most that a worker of `workers` holds between packets, in bytes or packets of the committed
    /// band, rounded up: by how much more than the burst that worker may exceed the rate.
    #[must_use]
    pub fn lease(&self, workers: usize) -> u64 {
        let price = Price::of(self.unit, self.committed, workers);
        (price.portion_ns << FRACTION).div_ceil(price.unit)
    }

    /// The prices in the order in which a packet must pay them: red is decided by the last.
    pub(super) fn prices(&self, workers: usize) -> [Price; 2] {
        let price = |band| Price::of(self.unit, band, workers);
        [price(self.committed), self.peak.map_or(Price::NONE, price)]
    }
}

impl Unit {
    fn last(self) -> u64 {
        match self {
            Self::Bits => *RATE_BITS.end(),
            Self::Packets => *RATE_PACKETS.end(),
        }
    }
}

fn check(band: &'static str, unit: Unit, Band { rate, burst }: Band) -> Result<(), BadMeter> {
    let (rates, bursts, per_s, at_once) = match unit {
        Unit::Bits => (RATE_BITS, BURST_BYTES, "bits", "bytes"),
        Unit::Packets => (RATE_PACKETS, BURST_PACKETS, "packets", "packets"),
    };
    if !rates.contains(&rate) {
        let (first, last) = rates.into_inner();
        return Err(BadMeter::Rate { band, value: rate, first, last, unit: per_s });
    }
    if !bursts.contains(&burst) {
        let (first, last) = bursts.into_inner();
        return Err(BadMeter::Burst { band, value: burst, first, last, unit: at_once });
    }
    Ok(())
}

/// A band in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Price {
    /// Time in which a byte or packet is earned: ns with [`FRACTION`] bits of fraction, rounded up
    /// so that no rate is exceeded. 0: no such band.
    pub(super) unit: u64,
    /// Time in which an empty bucket fills, ns, rounded up so that a frame as large as the burst
    /// passes.
    pub(super) burst_ns: u64,
    /// What a worker takes from the bank at once, ns.
    pub(super) portion_ns: u64,
}

impl Price {
    /// No band: everything is free.
    pub(super) const NONE: Self = Self { unit: 0, burst_ns: 0, portion_ns: 0 };

    fn of(unit: Unit, band: Band, workers: usize) -> Self {
        let workers = workers as u64;
        let (units_per_s, frame) = match unit {
            Unit::Bits => (8 * NS_PER_S, FULL_FRAME_BYTES),
            Unit::Packets => (NS_PER_S, 1),
        };
        let price = (u128::from(units_per_s) << FRACTION).div_ceil(u128::from(band.rate)) as u64;
        // Largest: 10^9 bytes at 1 kbit/s, 8e15 ns; or 10^9 packets at 1 per second, 1e18 ns.
        let burst_ns = ns(u128::from(price) * u128::from(band.burst));
        let two_frames_ns = ns(u128::from(price) * u128::from(2 * frame));
        let portion_ns = (LEASE_NS / workers).max(two_frames_ns).min(burst_ns / (2 * workers));
        Self { unit: price, burst_ns, portion_ns }
    }
}

/// Whole nanoseconds, rounded up.
fn ns(fixed: u128) -> u64 {
    fixed.div_ceil(1 << FRACTION) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_rounded_up_by_less_than_a_hundredth_of_a_percent() {
        let rates = (0..29).map(|step| 1_000u64 << step).chain([
            6_000_000,
            999_999_937,
            399_999_999_989,
            400_000_000_000,
        ]);
        for rate in rates {
            let price = Price::of(Unit::Bits, Band { rate, burst: 1518 }, 1).unit;
            let (exact, rounded) =
                ((8 * u128::from(NS_PER_S)) << FRACTION, u128::from(price) * u128::from(rate));
            assert!(rounded >= exact, "{rate}");
            assert!((rounded - exact) * 20_000 < exact, "{rate}: {price}");
        }
    }

    #[test]
    fn a_large_frame_at_the_lowest_rate_fits() {
        let price = Price::of(Unit::Bits, Band { rate: 1_000, burst: 65_549 }, 1);
        assert_eq!(price.unit, 8_000_000 << FRACTION);
        assert_eq!(price.unit.checked_mul(65_549), Some((65_549 * 8_000_000) << FRACTION));
        assert_eq!(price.burst_ns, 65_549 * 8_000_000);
        assert_eq!(price.portion_ns, 2 * 1518 * 8_000_000);
        let price = Price::of(Unit::Packets, Band { rate: 1, burst: 1_000_000_000 }, 1);
        assert_eq!(price.burst_ns, 1_000_000_000_000_000_000);
    }

    #[test]
    fn a_portion_is_200_us_of_all_workers_within_two_frames_and_half_a_burst() {
        let portion =
            |rate, burst, workers| Price::of(Unit::Bits, Band { rate, burst }, workers).portion_ns;
        assert_eq!(portion(1_000_000_000, 1_000_000, 1), 200_000);
        assert_eq!(portion(1_000_000_000, 1_000_000, 4), 50_000);
        assert_eq!(portion(100_000_000, 1_000_000, 4), 2 * 1518 * 80);
        assert_eq!(portion(100_000_000, 8_000, 4), 80 * 1_000);
    }
}
