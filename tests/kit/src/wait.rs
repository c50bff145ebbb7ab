//! Waiting for a condition, with a bound.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks; short against every bound, long against a system call.
const PAUSE: Duration = Duration::from_millis(5);

/// The condition did not come true in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: not within {bound:?}{last}")]
pub struct TimedOut {
    what: String,
    bound: Duration,
    last: String,
}

/// Looks until `look` finds something. It looks at least once, whatever the bound.
///
/// # Errors
/// [`TimedOut`] with `what` in its message.
pub fn wait_until<T>(
    bound: Duration,
    what: impl Display,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T, TimedOut> {
    retry(bound, what, || look().ok_or(""))
}

/// Tries until `attempt` succeeds.
///
/// # Errors
/// [`TimedOut`] with `what` and the last attempt's error in its message.
pub fn retry<T, E: Display>(
    bound: Duration,
    what: impl Display,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, TimedOut> {
    let deadline = Instant::now() + bound;
    loop {
        match attempt() {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() >= deadline => {
                let text = format!("{error:#}");
                let last = if text.is_empty() { text } else { format!("; last: {text}") };
                return Err(TimedOut { what: what.to_string(), bound, last });
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_is_returned() {
        let mut looks = 0;
        let found = wait_until(Duration::from_secs(10), "the third look", || {
            looks += 1;
            (looks == 3).then_some("here")
        });
        assert_eq!(found, Ok("here"));
        assert_eq!(looks, 3);
    }

    #[test]
    fn a_wait_that_ends_names_what_it_waited_for() {
        let bound = Duration::from_millis(20);
        let start = Instant::now();
        let waited = wait_until(bound, "port 9 to forward", || None::<()>).unwrap_err();
        assert_eq!(waited.to_string(), "port 9 to forward: not within 20ms");
        assert!(start.elapsed() >= bound);
    }

    #[test]
    fn the_last_error_of_a_retry_is_shown() {
        let waited = retry(Duration::ZERO, "a connection", || Err::<(), _>("refused"));
        assert_eq!(waited.unwrap_err().to_string(), "a connection: not within 0ns; last: refused");
    }
}
