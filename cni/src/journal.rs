//! The optional log file: one line per operation, appended, so that a container that would not
//! start can be explained after the runtime threw the error away.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Deserialize;

/// Which operations are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Failed ones only.
    Error,
    /// All.
    #[default]
    Info,
    /// All, with what was printed.
    Debug,
}

/// Where the configuration asks for a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Journal {
    pub(crate) file: PathBuf,
    pub(crate) level: Level,
}

/// What one operation leaves in the log.
#[derive(Debug)]
pub(crate) struct Event<'a> {
    pub(crate) command: &'a str,
    pub(crate) container_id: &'a str,
    pub(crate) ifname: &'a str,
    pub(crate) failed: Option<&'a str>,
    pub(crate) printed: &'a str,
}

impl Journal {
    /// Appends the event.
    ///
    /// # Errors
    /// The file cannot be opened or written: the operation's own outcome is not changed by it.
    pub(crate) fn append(&self, event: &Event<'_>, now: SystemTime) -> std::io::Result<()> {
        if self.level == Level::Error && event.failed.is_none() {
            return Ok(());
        }
        let line = line(event, self.level, now);
        OpenOptions::new().create(true).append(true).open(&self.file)?.write_all(line.as_bytes())
    }
}

fn line(event: &Event<'_>, level: Level, now: SystemTime) -> String {
    // A clock before 1970 is shown as 1970: the order of lines still tells the story.
    let at = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut object = serde_json::json!({
        "unix_time": at.as_secs_f64(),
        "command": event.command,
        "container_id": event.container_id,
        "ifname": event.ifname,
        "outcome": event.failed.unwrap_or("ok"),
    });
    if level == Level::Debug {
        object["printed"] = serde_json::json!(event.printed.trim_end());
    }
    format!("{object}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: Event<'_> =
        Event { command: "ADD", container_id: "c1", ifname: "eth0", failed: None, printed: "{}\n" };

    #[test]
    fn a_successful_operation_is_logged_at_info_and_not_at_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cni.log");
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1500);
        Journal { file: file.clone(), level: Level::Error }.append(&EVENT, at).unwrap();
        assert!(!file.exists());
        Journal { file: file.clone(), level: Level::Info }.append(&EVENT, at).unwrap();
        let line: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(
            line,
            serde_json::json!({"unix_time": 1.5, "command": "ADD", "container_id": "c1",
                "ifname": "eth0", "outcome": "ok"})
        );
    }
}
