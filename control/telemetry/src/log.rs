//! A daemon's log on standard error, whose level can be changed while it runs.

use clap::ValueEnum;
use serde::Deserialize;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Crates whose lines have the level asked for.
const OURS: [&str; 4] = ["control_store", "netmaster", "netplugin", "telemetry"];

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Changes the level of a log that has started.
#[derive(Debug)]
pub struct LevelSwitch(reload::Handle<Targets, tracing_subscriber::Registry>);

impl LevelSwitch {
    /// From now on.
    ///
    /// # Errors
    /// When the log is gone.
    pub fn set(&self, level: LevelFilter) -> Result<(), reload::Error> {
        self.0.reload(targets(level))
    }
}

/// Starts the process' log.
///
/// # Panics
/// When it was started before.
#[must_use]
pub fn start_log(level: LevelFilter, format: LogFormat) -> LevelSwitch {
    let (level, switch) = reload::Layer::new(targets(level));
    let registry = tracing_subscriber::registry().with(level);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => registry.with(layer.with_ansi(false)).init(),
        LogFormat::Json => registry.with(layer.json()).init(),
    }
    LevelSwitch(switch)
}

/// The level is for our own lines: the gRPC library's would bury them.
fn targets(level: LevelFilter) -> Targets {
    let others = level.min(LevelFilter::WARN);
    Targets::new().with_targets(OURS.map(|name| (name, level))).with_default(others)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn the_level_is_for_our_own_lines() {
        let chosen = targets(LevelFilter::DEBUG);
        assert!(chosen.would_enable("netmaster::gate", &Level::DEBUG));
        assert!(chosen.would_enable("h2::codec", &Level::WARN));
        assert!(!chosen.would_enable("h2::codec", &Level::INFO));
        assert!(!targets(LevelFilter::ERROR).would_enable("h2::codec", &Level::WARN));
    }
}
