//! Limits of traffic as users write them: a bandwidth like `10 Mbps` and a burst in kilobytes.
//!
//! The grammar of a bandwidth is Contiv's: a number without leading zeros, at most one space, and a
//! unit of k, m or g in either case with nothing, `b` or `bps` behind it. All of these are bits per
//! second, in powers of 1000.

use std::fmt;

use crate::refusal::{Reason, Refused};

const TEXT_LEN_MAX: usize = 64;
/// Highest rate: 10 Tbit/s. What is computed from it (bits in an hour) stays far from 64 bits.
const BITS_PER_SECOND_MAX: u64 = 10_000_000_000_000;
/// Highest burst in KB, Contiv's.
const BURST_KB_MAX: u16 = 10_486;
/// Bytes in a KB. Contiv's highest burst is then 10 MiB, which is where its odd number comes from.
const KB_BYTES: u64 = 1000;

/// An Ethernet frame of 1500 bytes of payload, with FCS.
const FRAME_BYTES: u64 = 1518;
/// How far ahead of its rate a sender gets when no burst is given. TCP sends whole windows and halves
/// them when one packet is lost: with less it stays below the rate.
const BURST_DEFAULT_MS: u64 = 100;
/// Least default burst: ten frames, for rates so low that [`BURST_DEFAULT_MS`] is less.
const BURST_DEFAULT_BYTES_MIN: u64 = 10 * FRAME_BYTES;

/// A rate as given, so that users see what they wrote; the default is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bandwidth {
    text: String,
    bits_per_second: Option<u64>,
}

impl Bandwidth {
    /// Checks a rate like `10 Mbps`, `4g` or `13mb`; empty is no limit.
    ///
    /// # Errors
    /// [`Refused`] for anything else, and for more than 10 Tbit/s.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Refused> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let refuse = |reason| Refused::new(field, text, reason);
        let (number, factor) = split(text).ok_or_else(|| refuse(Reason::BandwidthFormat))?;
        // More digits than a u64 has are as much too many as the product can be.
        let bits = number.parse().ok().and_then(|number: u64| number.checked_mul(factor));
        let bits = bits.filter(|bits| *bits <= BITS_PER_SECOND_MAX);
        let bits_per_second = Some(bits.ok_or_else(|| refuse(Reason::BandwidthHigh))?);
        Ok(Self { text: text.to_owned(), bits_per_second })
    }

    /// Bits per second, 1000 to 10^13; `None`: no limit.
    #[must_use]
    pub const fn bits_per_second(&self) -> Option<u64> {
        self.bits_per_second
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Digits and the factor of the unit behind them.
fn split(text: &str) -> Option<(&str, u64)> {
    if text.len() > TEXT_LEN_MAX {
        return None;
    }
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    if number.is_empty() || number.starts_with('0') {
        return None;
    }
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let factor = match unit.chars().next()? {
        'k' | 'K' => 1000,
        'm' | 'M' => 1_000_000,
        'g' | 'G' => 1_000_000_000,
        _ => return None,
    };
    // The letter is one byte of ASCII.
    matches!(&unit[1..], "" | "b" | "bps").then_some((number, factor))
}

/// A burst in KB of 1000 bytes; the default, 0, leaves the choice to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Burst(u16);

impl Burst {
    /// Checks a burst: 0 to 10486. 1 is refused where it is used, because Contiv's text differs
    /// there.
    ///
    /// # Errors
    /// [`Refused`] for more.
    pub fn new(field: &'static str, kilobytes: u32) -> Result<Self, Refused> {
        let small = u16::try_from(kilobytes).ok().filter(|kb| *kb <= BURST_KB_MAX);
        small.map(Self).ok_or_else(|| Refused::new(field, &kilobytes, Reason::BurstHigh))
    }

    /// In KB.
    #[must_use]
    pub const fn kilobytes(self) -> u16 {
        self.0
    }

    /// Whether it is given and smaller than a frame.
    pub(crate) const fn is_too_small(self) -> bool {
        self.0 == 1
    }
}

/// A bandwidth and a burst; the default is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RateLimit {
    /// The rate.
    pub bandwidth: Bandwidth,
    /// How far ahead of it a sender may get.
    pub burst: Burst,
}

impl RateLimit {
    /// Bytes a sender may get ahead of `bits_per_second`; never less than one frame.
    pub(crate) fn burst_bytes(&self, bits_per_second: u64) -> u64 {
        match self.burst.kilobytes() {
            0 => default_burst_bytes(bits_per_second),
            kilobytes => (u64::from(kilobytes) * KB_BYTES).max(FRAME_BYTES),
        }
    }
}

/// Bytes a sender may get ahead of `bits_per_second` where nobody says how many.
#[must_use]
pub fn default_burst_bytes(bits_per_second: u64) -> u64 {
    (bits_per_second / 8 * BURST_DEFAULT_MS / 1000).max(BURST_DEFAULT_BYTES_MIN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Result<Option<u64>, Reason> {
        let parsed = Bandwidth::parse("bandwidth", text);
        parsed.map(|rate| rate.bits_per_second()).map_err(|refused| refused.reason)
    }

    #[test]
    fn contivs_good_bandwidths_are_these_bits_per_second() {
        const M: u64 = 1_000_000;
        for (text, bits) in [
            ("10 Gbps", 10_000 * M),
            ("10 Gb", 10_000 * M),
            ("10 gb", 10_000 * M),
            ("5Gb", 5000 * M),
            ("6gb", 6000 * M),
            ("3gbps", 3000 * M),
            ("3Gbps", 3000 * M),
            ("4g", 4000 * M),
            ("4G", 4000 * M),
            ("2gbps", 2000 * M),
            ("5gbps", 5000 * M),
            ("10gbps", 10_000 * M),
            ("20mb", 20 * M),
            ("13mb", 13 * M),
            ("5Mb", 5 * M),
            ("900Mb", 900 * M),
            ("20mbps", 20 * M),
            ("6 Mbps", 6 * M),
            ("10 kbps", 10_000),
            ("1K", 1000),
            ("7 m", 7 * M),
            ("10000g", BITS_PER_SECOND_MAX),
        ] {
            assert_eq!(parsed(text), Ok(Some(bits)), "{text}");
            assert_eq!(Bandwidth::parse("bandwidth", text).unwrap().to_string(), text);
        }
        assert_eq!(parsed(""), Ok(None));
    }

    #[test]
    fn contivs_bad_bandwidths_are_refused_with_their_field() {
        for text in [
            "invalid",
            "10 Gkms",
            "10 G12ms",
            "10 ms",
            "10 bms",
            "Gkms",
            "Gbps",
            "0 Gbps",
            " 10 Gbps",
            "10",
            "10 ",
            "10  Gbps",
            "10 Gbps ",
            "10 GBPS",
            "10 GB",
            "01g",
            "-1g",
            "1.5g",
            "10 {bps",
            "10 1bps",
            "10 }",
            "10\tGbps",
            "10 \u{441}bps",
            "\u{661}g",
        ] {
            assert_eq!(parsed(text), Err(Reason::BandwidthFormat), "{text:?}");
            assert_eq!(Bandwidth::parse("bandwidth", text).unwrap_err().field, "bandwidth");
        }
        assert_eq!(parsed(&format!("{}g", "1".repeat(64))), Err(Reason::BandwidthFormat));
        for text in ["10001g", "18446744073709551615k", "99999999999999999999k"] {
            assert_eq!(parsed(text), Err(Reason::BandwidthHigh), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_number_and_unit_of_the_grammar_and_nothing_else_is_a_bandwidth(
            number in 0u64..20_000_000,
            space in "[ ]{0,2}",
            letter in "[kKmMgGtbB1]",
            rest in prop::sample::select(vec!["", "b", "bps", "B", "bp", "ps", "s"]),
        ) {
            let power = match letter.as_str() { "k" | "K" => 3, "m" | "M" => 6, "g" | "G" => 9, _ => 99 };
            let good = number > 0 && space.len() < 2 && power < 99 && ["", "b", "bps"].contains(&rest);
            let text = format!("{number}{space}{letter}{rest}");
            let expected = match good.then(|| u128::from(number) * 10u128.pow(power)) {
                None => Err(Reason::BandwidthFormat),
                Some(bits) if bits > 10u128.pow(13) => Err(Reason::BandwidthHigh),
                Some(bits) => Ok(u64::try_from(bits).ok()),
            };
            prop_assert_eq!(parsed(&text), expected, "{}", text);
        }

        #[test]
        fn any_text_is_parsed_without_a_panic(text in ".{0,20}") {
            drop(Bandwidth::parse("bandwidth", &text));
        }
    }

    #[test]
    fn a_burst_is_at_most_contivs_10486_kb() {
        for good in [0, 1, 2, 150, 450, 1500, 1650, 10_486] {
            assert_eq!(u32::from(Burst::new("burst", good).unwrap().kilobytes()), good);
        }
        for bad in [10_487, 65_536, u32::MAX] {
            assert_eq!(Burst::new("burst", bad).unwrap_err().reason, Reason::BurstHigh);
        }
    }

    #[test]
    fn a_burst_in_bytes_is_what_was_asked_for_else_100_ms_and_never_less_than_a_frame() {
        let bytes = |kilobytes, bits| {
            let burst = Burst::new("burst", kilobytes).unwrap();
            RateLimit { burst, ..RateLimit::default() }.burst_bytes(bits)
        };
        assert_eq!(bytes(80, 6_000_000), 80_000);
        assert_eq!(bytes(1, 6_000_000), 1518);
        assert_eq!(bytes(0, 16_000_000), 200_000);
        assert_eq!(bytes(0, 1000), 15_180);
        assert_eq!(bytes(0, BITS_PER_SECOND_MAX), 125_000_000_000);
    }
}
