//! Values looked up for one scrape.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Label names and values of one series.
pub type Labels = Vec<(&'static str, String)>;

type Value = Gauge<u64, AtomicU64>;

/// Adds one value to a scrape.
pub fn sample(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Value::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

/// Adds a value for each set of labels; the caller bounds how many there are.
pub fn sample_each(
    registry: &mut Registry,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels, u64)>,
) {
    let family = Family::<Labels, Value>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(value);
    }
    registry.register(name, help, family);
}
