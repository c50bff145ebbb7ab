//! Drop counters: as they stand, and what two readings of them differ by.

use std::collections::BTreeMap;

use datapath_api::v1;
use serde::Serialize;

use crate::table::{self, Side};

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct DropView {
    reason: String,
    packets: u64,
    bytes: u64,
    /// For people: the counters are what scripts read.
    #[serde(skip)]
    advice: String,
}

impl From<v1::Drop> for DropView {
    fn from(drop: v1::Drop) -> Self {
        Self { reason: drop.reason, packets: drop.packets, bytes: drop.bytes, advice: drop.advice }
    }
}

/// What was added since `before`, without the reasons that stood still. A counter that went back
/// belongs to a new engine: all of it was added.
pub(crate) fn added(before: &[DropView], now: &[DropView]) -> Vec<DropView> {
    let before: BTreeMap<&str, &DropView> =
        before.iter().map(|drop| (drop.reason.as_str(), drop)).collect();
    let since = |drop: &DropView| {
        let (packets, bytes) = match before.get(drop.reason.as_str()) {
            Some(old) if old.packets <= drop.packets && old.bytes <= drop.bytes => {
                (drop.packets - old.packets, drop.bytes - old.bytes)
            }
            Some(_) | None => (drop.packets, drop.bytes),
        };
        DropView { packets, bytes, ..drop.clone() }
    };
    now.iter().map(since).filter(|drop| drop.packets > 0).collect()
}

/// The table of `drops`. WHAT TO DO is said of what there was.
pub(crate) fn drop_table(drops: &[DropView]) -> String {
    const COLUMNS: &[(&str, Side)] = &[
        ("REASON", Side::Left),
        ("PACKETS", Side::Right),
        ("BYTES", Side::Right),
        ("WHAT TO DO", Side::Left),
    ];
    let row = |d: &DropView| {
        let advice = if d.packets > 0 { d.advice.clone() } else { String::new() };
        vec![d.reason.clone(), d.packets.to_string(), d.bytes.to_string(), advice]
    };
    table::render(COLUMNS, &drops.iter().map(row).collect::<Vec<_>>())
}

/// One line of `drops --follow`: what one second added.
pub(crate) fn added_lines(drops: &[DropView]) -> String {
    let line = |d: &DropView| format!("{} +{} packets +{} bytes\n", d.reason, d.packets, d.bytes);
    drops.iter().map(line).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::{DropView, added, added_lines, drop_table};

    fn drops(list: &[(&str, u64, u64)]) -> Vec<DropView> {
        let view = |&(reason, packets, bytes): &(&str, u64, u64)| DropView {
            reason: reason.to_owned(),
            packets,
            bytes,
            advice: "see the rules".to_owned(),
        };
        list.iter().map(view).collect()
    }

    #[test]
    fn only_what_moved_is_followed() {
        let before = drops(&[("policy-deny", 5, 500), ("no-route", 1, 98)]);
        let now = drops(&[("policy-deny", 8, 710), ("no-route", 1, 98), ("malformed", 2, 28)]);
        let moved = added(&before, &now);
        assert_eq!(moved, drops(&[("policy-deny", 3, 210), ("malformed", 2, 28)]));
        assert_eq!(
            added_lines(&moved),
            "policy-deny +3 packets +210 bytes\nmalformed +2 packets +28 bytes\n"
        );
    }

    #[test]
    fn counters_of_a_restarted_engine_count_from_zero() {
        let moved = added(&drops(&[("no-route", 100, 9800)]), &drops(&[("no-route", 2, 196)]));
        assert_eq!(moved, drops(&[("no-route", 2, 196)]));
    }

    #[test]
    fn drops_are_a_table_and_promised_json() {
        let list = drops(&[("policy-deny", 5, 500), ("no-route", 0, 0)]);
        assert_eq!(
            drop_table(&list),
            "REASON       PACKETS  BYTES  WHAT TO DO\n\
             policy-deny        5    500  see the rules\n\
             no-route           0      0\n"
        );
        assert_eq!(
            serde_json::to_string(&list).unwrap(),
            r#"[{"reason":"policy-deny","packets":5,"bytes":500},{"reason":"no-route","packets":0,"bytes":0}]"#
        );
    }
}
