//! What one container may send to the engine, before the trunk: a flood must not fill it for the
//! others. The units are those of the BPF programs: times in 1/1024 ns.

/// Longest burst, in clock units (about 9 minutes): beyond that the programs can't tell a debt from
/// a wrapped clock.
const BURST_MAX: u64 = 1 << 49;
const UNITS_PER_SECOND: u64 = 1_000_000_000 << 10;
/// The largest packet costs less than [`BURST_MAX`] down to this rate.
const BYTES_PER_SECOND_MIN: u64 = 1000;

/// A rate and how much may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units a second; 0 is unlimited.
    pub per_second: u64,
    /// Units at once, after a pause.
    pub burst: u64,
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self { per_second: 0, burst: 0 };

    /// Clock units that one unit costs, and how far ahead of the clock a burst may be.
    fn cost_and_burst(self) -> (u64, u64) {
        let cost = UNITS_PER_SECOND.checked_div(self.per_second).unwrap_or(0);
        (cost, cost.saturating_mul(self.burst).min(BURST_MAX))
    }
}

/// The limits of a port. A packet must fit both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Wire packets.
    pub packets: Rate,
    /// Bytes, from the Ethernet header on, without FCS. Rates below 1000 count as 1000.
    pub bytes: Rate,
}

impl Limits {
    /// No limits.
    pub const UNLIMITED: Self = Self { packets: Rate::UNLIMITED, bytes: Rate::UNLIMITED };

    /// Packet cost, packet burst, byte cost, byte burst, as the programs take them.
    pub(crate) fn in_clock_units(self) -> [u64; 4] {
        let mut bytes = self.bytes;
        if bytes.per_second > 0 {
            bytes.per_second = bytes.per_second.max(BYTES_PER_SECOND_MIN);
        }
        let (packet_cost, packet_burst) = self.packets.cost_and_burst();
        let (byte_cost, byte_burst) = bytes.cost_and_burst();
        [packet_cost, packet_burst, byte_cost, byte_burst]
    }
}

impl Default for Limits {
    /// More than one worker can take: it is there so that one container can't have it all.
    fn default() -> Self {
        Self {
            packets: Rate { per_second: 1_000_000, burst: 8192 },
            bytes: Rate { per_second: 1_250_000_000, burst: 4_000_000 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_limits_are_a_microsecond_a_packet_and_ten_gigabits() {
        let [packet_cost, packet_burst, byte_cost, byte_burst] = Limits::default().in_clock_units();
        assert_eq!(packet_cost, 1000 << 10);
        assert_eq!(packet_burst, 8192 * (1000 << 10));
        assert_eq!(byte_cost, 819);
        assert_eq!(byte_burst, 819 * 4_000_000);
    }

    #[test]
    fn unlimited_costs_nothing_and_extremes_stay_in_range() {
        assert_eq!(Limits::UNLIMITED.in_clock_units(), [0; 4]);
        let slow = Rate { per_second: 1, burst: u64::MAX };
        let limits = Limits { packets: slow, bytes: slow };
        let [packet_cost, packet_burst, byte_cost, byte_burst] = limits.in_clock_units();
        assert_eq!(packet_cost, UNITS_PER_SECOND);
        assert_eq!((packet_burst, byte_burst), (BURST_MAX, BURST_MAX));
        assert_eq!(byte_cost, UNITS_PER_SECOND / 1000);
    }
}
