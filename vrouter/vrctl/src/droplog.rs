//! Dropped packets one by one: when, why, by which rule. Times are UTC (RFC 3339).

use datapath_api::v1;
use serde::Serialize;

use crate::table::{self, Side};

#[derive(Debug, Serialize)]
pub(crate) struct DroppedView {
    time: String,
    unix_ns: u64,
    reason: String,
    rule: u64,
    in_port: u32,
    vrf: u32,
    src_group: u32,
    flow: String,
    suppressed: u64,
}

impl From<v1::DroppedPacket> for DroppedView {
    fn from(packet: v1::DroppedPacket) -> Self {
        Self {
            time: utc(packet.unix_ns),
            unix_ns: packet.unix_ns,
            reason: packet.reason,
            rule: packet.rule,
            in_port: packet.in_port,
            vrf: packet.vrf,
            src_group: packet.src_group,
            flow: packet.flow,
            suppressed: packet.suppressed,
        }
    }
}

/// The table of `drops --log`. SUPPRESSED are the packets of its tenant that were
/// dropped before it and not logged.
pub(crate) fn dropped_table(packets: &[DroppedView]) -> String {
    const COLUMNS: &[(&str, Side)] = &[
        ("TIME", Side::Left),
        ("REASON", Side::Left),
        ("RULE", Side::Right),
        ("PORT", Side::Right),
        ("VRF", Side::Right),
        ("GROUP", Side::Right),
        ("SUPPRESSED", Side::Right),
        ("FLOW", Side::Left),
    ];
    let row = |p: &DroppedView| {
        let rule = if p.rule == 0 { "-".to_owned() } else { p.rule.to_string() };
        vec![
            p.time.clone(),
            p.reason.clone(),
            rule,
            p.in_port.to_string(),
            p.vrf.to_string(),
            p.src_group.to_string(),
            p.suppressed.to_string(),
            p.flow.clone(),
        ]
    };
    table::render(COLUMNS, &packets.iter().map(row).collect::<Vec<_>>())
}

/// One line of `drops --log --follow`.
pub(crate) fn dropped_line(p: &DroppedView) -> String {
    let rule = if p.rule == 0 { String::new() } else { format!(" rule={}", p.rule) };
    let more =
        if p.suppressed == 0 { String::new() } else { format!(" suppressed={}", p.suppressed) };
    format!(
        "{} {}{rule} port={} vrf={} group={}{more} {}\n",
        p.time, p.reason, p.in_port, p.vrf, p.src_group, p.flow
    )
}

/// Nanoseconds since 1970 as `2026-11-25T12:48:14.123456789Z`.
fn utc(unix_ns: u64) -> String {
    let (seconds, ns) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
    let (days, second) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ns:09}Z")
}

/// Year, month 1..=12 and day 1..=31 of a day counted from 1 January 1970.
fn date(mut day: u64) -> (u64, u64, u64) {
    let mut year = 1970;
    while day >= 365 + leap_days(year) {
        day -= 365 + leap_days(year);
        year += 1;
    }
    let lengths = [31, 28 + leap_days(year), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

const fn leap_days(year: u64) -> u64 {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if is_leap { 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use datapath_api::v1;

    use super::{DroppedView, dropped_line, dropped_table, utc};

    fn denied() -> DroppedView {
        let packet = v1::DroppedPacket {
            unix_ns: 1_795_610_894_000_001_000,
            reason: "policy-deny".into(),
            rule: 7,
            in_port: 3,
            vrf: 1,
            src_group: 5,
            flow: "in_port=3,tcp,nw_dst=10.1.1.2,tp_dst=8001".into(),
            suppressed: 12,
            ..Default::default()
        };
        packet.into()
    }

    fn spoofed() -> DroppedView {
        let flow = "in_port=3,arp".to_owned();
        let reason = "spoofed-mac".to_owned();
        DroppedView { rule: 0, suppressed: 0, flow, reason, ..denied() }
    }

    /// Values of `date -u -d @SECONDS +%FT%TZ`.
    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (68_169_599, "1972-02-28T23:59:59"),
            (68_169_600, "1972-02-29T00:00:00"),
            (68_256_000, "1972-03-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
            (18_446_744_073, "2554-07-21T23:34:33"),
        ] {
            assert_eq!(utc(seconds * 1_000_000_000), format!("{text}.000000000Z"));
        }
        assert_eq!(utc(u64::MAX), "2554-07-21T23:34:33.709551615Z");
    }

    #[test]
    fn dropped_packets_are_a_table_or_a_line_each() {
        assert_eq!(
            dropped_table(&[denied(), spoofed()]),
            "TIME                            REASON       RULE  PORT  VRF  GROUP  SUPPRESSED  FLOW\n\
             2026-11-25T12:48:14.000001000Z  policy-deny     7     3    1      5          12  \
             in_port=3,tcp,nw_dst=10.1.1.2,tp_dst=8001\n\
             2026-11-25T12:48:14.000001000Z  spoofed-mac     -     3    1      5           0  \
             in_port=3,arp\n"
        );
        assert_eq!(
            dropped_line(&denied()),
            "2026-11-25T12:48:14.000001000Z policy-deny rule=7 port=3 vrf=1 group=5 suppressed=12 \
             in_port=3,tcp,nw_dst=10.1.1.2,tp_dst=8001\n"
        );
        assert_eq!(
            dropped_line(&spoofed()),
            "2026-11-25T12:48:14.000001000Z spoofed-mac port=3 vrf=1 group=5 in_port=3,arp\n"
        );
    }

    #[test]
    fn a_dropped_packet_as_json_has_the_promised_fields() {
        assert_eq!(
            serde_json::to_string(&spoofed()).unwrap(),
            r#"{"time":"2026-11-25T12:48:14.000001000Z","unix_ns":1795610894000001000,"reason":"spoofed-mac","rule":0,"in_port":3,"vrf":1,"src_group":5,"flow":"in_port=3,arp","suppressed":0}"#
        );
    }
}
