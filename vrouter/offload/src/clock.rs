//! The clock that the programs see: `bpf_ktime_get_ns`, which is `CLOCK_MONOTONIC` of the machine. It
//! does not jump when somebody sets the time; but in a time namespace this process sees another one.

/// Seconds and nanoseconds that this process's clock is ahead, by name of the clock.
const OFFSETS: &str = "/proc/self/timens_offsets";

/// The clock of the programs, as seen from here.
#[derive(Debug)]
pub(crate) struct Clock {
    ahead_ns: i128,
}

impl Clock {
    pub(crate) fn new() -> Self {
        // A kernel without time namespaces has no such file, and no offsets.
        let text = std::fs::read_to_string(OFFSETS).unwrap_or_default();
        Self { ahead_ns: ahead_ns(&text) }
    }

    /// Nanoseconds since a moment before the machine's start.
    pub(crate) fn now_ns(&self) -> u64 {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` is ours and valid for the call.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
        debug_assert_eq!(result, 0, "this clock is there on every Linux");
        let own = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
        u64::try_from(own - self.ahead_ns).unwrap_or(0)
    }
}

fn ahead_ns(text: &str) -> i128 {
    let line = text.lines().find_map(|line| line.strip_prefix("monotonic"));
    let mut numbers = line.unwrap_or_default().split_whitespace().map(str::parse::<i64>);
    let mut next = || i128::from(numbers.next().and_then(Result::ok).unwrap_or(0));
    let seconds = next();
    seconds * 1_000_000_000 + next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_of_the_time_namespace_is_taken_off() {
        let text = "monotonic       86400  250000000\nboottime         -7         0\n";
        assert_eq!(ahead_ns(text), 86_400_250_000_000);
        assert_eq!(ahead_ns("monotonic -3 0\n"), -3_000_000_000);
        assert_eq!(ahead_ns(""), 0);
        let (before, here) = (Clock::new().now_ns(), Clock { ahead_ns: -1_000_000_000_000 });
        assert!(here.now_ns() >= before + 1_000_000_000_000);
    }
}
