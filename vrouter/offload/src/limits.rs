//! What one container may send to the engine, before the trunk: a flood must not fill it for the
//! others. The units are those of the BPF programs: times in 1/1024 ns.

/// Longest burst, in clock units (about 9 minutes): beyond that the programs can't tell a debt from
/// a wrapped clock.
const BURST_MAX: u64 = 1 << 49;
const UNITS_PER_SECOND: u64 = 1_000_000_000 << 10;
/// How much of a rate may come at once: at the default about half of the trunk's ring, so that no
/// container fills it in one go.
const BURST_MS: u64 = 4;
/// How much of the rate of openings may come at once. Longer than that of packets: a program that
/// opens its connections together is no flood, and this is still half of the trunk's ring.
const OPENINGS_MS: u64 = 20;
/// A GSO packet of 64 KB on a small MTU.
const BURST_PACKETS_MIN: u64 = 256;
const BURST_BYTES_MIN: u64 = 1 << 18;
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
    /// TCP packets that ask for a connection: dropped before the trunk, they cost the worker
    /// nothing. The engine limits new flows of every kind.
    pub openings: Rate,
}

impl Limits {
    /// No limits.
    pub const UNLIMITED: Self =
        Self { packets: Rate::UNLIMITED, bytes: Rate::UNLIMITED, openings: Rate::UNLIMITED };
    /// Wire packets a second of [`Limits::default`].
    pub const PORT_PPS: u32 = 200_000;
    /// Mbit/s of [`Limits::default`].
    pub const PORT_MBPS: u32 = 2_500;
    /// Openings a second of [`Limits::default`].
    pub const PORT_OPENINGS: u32 = 50_000;

    /// `pps` wire packets, `mbps` megabits (10^6 bits) and `openings` new TCP connections a second;
    /// 0 is no limit. The bursts are 4 ms of packets and bytes and at least one large GSO packet,
    /// and 20 ms of openings and at least 256.
    #[must_use]
    pub fn new(pps: u32, mbps: u32, openings: u32) -> Self {
        let rate = |per_second: u64, ms: u64, burst_min: u64| match per_second {
            0 => Rate::UNLIMITED,
            _ => Rate { per_second, burst: (per_second * ms / 1000).max(burst_min) },
        };
        Self {
            packets: rate(pps.into(), BURST_MS, BURST_PACKETS_MIN),
            bytes: rate(u64::from(mbps) * 125_000, BURST_MS, BURST_BYTES_MIN),
            openings: rate(openings.into(), OPENINGS_MS, BURST_PACKETS_MIN),
        }
    }

    /// Cost and burst of packets, of bytes and of openings, as the programs take them.
    pub(crate) fn in_clock_units(self) -> [u64; 6] {
        let mut bytes = self.bytes;
        if bytes.per_second > 0 {
            bytes.per_second = bytes.per_second.max(BYTES_PER_SECOND_MIN);
        }
        let (packet_cost, packet_burst) = self.packets.cost_and_burst();
        let (byte_cost, byte_burst) = bytes.cost_and_burst();
        let (opening_cost, opening_burst) = self.openings.cost_and_burst();
        [packet_cost, packet_burst, byte_cost, byte_burst, opening_cost, opening_burst]
    }
}

impl Default for Limits {
    /// About a third of what one worker carries of small packets: beside a container that floods,
    /// another's 20,000 packets a second lose nothing or nearly so (at 300,000 they lose 0 to 9 %),
    /// and one TCP stream still gets 2 Gbit/s (test `flooding_container_gets_its_limit`).
    fn default() -> Self {
        Self::new(Self::PORT_PPS, Self::PORT_MBPS, Self::PORT_OPENINGS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_a_cost_and_some_milliseconds_of_burst() {
        let [packet_cost, packet_burst, byte_cost, byte_burst, opening_cost, opening_burst] =
            Limits::new(1_000_000, 8000, 100_000).in_clock_units();
        assert_eq!(packet_cost, 1000 << 10);
        assert_eq!(packet_burst, 4000 * (1000 << 10));
        assert_eq!(byte_cost, 1 << 10);
        assert_eq!(byte_burst, 4_000_000 << 10);
        assert_eq!((opening_cost, opening_burst), (10_000 << 10, 2000 * (10_000 << 10)));
    }

    #[test]
    fn small_limits_let_a_gso_packet_through_and_zero_is_none() {
        let limits = Limits::new(1000, 1, 1000);
        assert_eq!(limits.packets, Rate { per_second: 1000, burst: BURST_PACKETS_MIN });
        assert_eq!(limits.bytes, Rate { per_second: 125_000, burst: BURST_BYTES_MIN });
        assert_eq!(limits.openings, Rate { per_second: 1000, burst: BURST_PACKETS_MIN });
        assert_eq!(Limits::new(0, 0, 0), Limits::UNLIMITED);
        let most = Limits::new(u32::MAX, u32::MAX, u32::MAX);
        assert_eq!(most.bytes.per_second, u64::from(u32::MAX) * 125_000);
    }

    #[test]
    fn unlimited_costs_nothing_and_extremes_stay_in_range() {
        assert_eq!(Limits::UNLIMITED.in_clock_units(), [0; 6]);
        let slow = Rate { per_second: 1, burst: u64::MAX };
        let limits = Limits { packets: slow, bytes: slow, openings: slow };
        let [packet_cost, packet_burst, byte_cost, byte_burst, ..] = limits.in_clock_units();
        assert_eq!(packet_cost, UNITS_PER_SECOND);
        assert_eq!((packet_burst, byte_burst), (BURST_MAX, BURST_MAX));
        assert_eq!(byte_cost, UNITS_PER_SECOND / 1000);
    }
}
