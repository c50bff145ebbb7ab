//! Until when an operation may ask, and until when it gives back what it asked for in vain.

use std::time::{Duration, Instant};

use crate::config::Config;

/// A plugin gives an address back in some tens of milliseconds.
const RESERVE_MAX: Duration = Duration::from_secs(5);

/// The deadlines of one operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// Of netplugin's answer, and of what a delegated plugin chooses.
    pub(crate) asking: Instant,
    /// Of everything.
    pub(crate) end: Instant,
}

impl Times {
    /// Of an operation that begins now. Where `config` delegates, a quarter of its timeout is kept for
    /// giving back: whoever used up the time before, an address that is not given back is lost.
    pub(crate) fn of(config: &Config) -> Self {
        let now = Instant::now();
        let kept = match config.ipam {
            Some(_) => RESERVE_MAX.min(config.timeout / 4),
            None => Duration::ZERO,
        };
        Self { asking: now + config.timeout.saturating_sub(kept), end: now + config.timeout }
    }

    /// What is left for netplugin.
    pub(crate) fn left(self) -> Duration {
        self.asking.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_configuration_that_delegates_has_a_reserve() {
        for (seconds, ipam, kept) in [
            (25, r#"{"type": "x"}"#, Duration::from_secs(5)),
            (1, r#"{"type": "x"}"#, Duration::from_millis(250)),
            (25, "{}", Duration::ZERO),
        ] {
            let text = format!(
                r#"{{"cniVersion": "1.0.0", "name": "n", "timeoutSeconds": {seconds}, "ipam": {ipam}}}"#
            );
            let config = Config::parse(text.as_bytes()).unwrap();
            let times = Times::of(&config);
            assert_eq!(times.end - times.asking, kept, "{text}");
            assert!(times.left() <= config.timeout.saturating_sub(kept));
        }
    }
}
