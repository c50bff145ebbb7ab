//! What a control daemon tells of itself: its log, and over HTTP metrics, health and readiness, and the
//! ids of requests.
//!
//! Metrics are of two kinds. What is counted as it happens (latencies) lives in a registry for the
//! life of the process. What can be looked up (revisions, addresses in use) is sampled for each
//! scrape, so that it cannot differ from what it is about and nothing of a removed object is left
//! behind. Series are named `weir_*`, in `OpenMetrics` text.

mod health;
mod log;
mod pages;
mod requests;
mod samples;

use std::time::Duration;

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

pub use health::Health;
pub use log::{LevelSwitch, LogFormat, start_log};
pub use pages::{Observed, Readiness, ServeError, pages, serve};
pub use requests::{REQUEST_ID, Requests, call, detached};
pub use samples::{Labels, sample, sample_each};

/// Every series starts with this and an underscore.
const PREFIX: &str = "weir";

/// A registry for what is counted as it happens.
#[must_use]
pub fn registry() -> Registry {
    Registry::with_prefix(PREFIX)
}

/// Latencies in seconds, from 0.1 ms to 26 s: a read in memory up to a CNI runtime's patience.
#[must_use]
pub fn latencies() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 4.0, 10))
}

/// Seconds, as histograms take them.
#[must_use]
pub fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
