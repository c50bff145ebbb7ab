//! Meters and the packets they coloured: red ones were dropped.

use datapath_api::v1;
use serde::Serialize;

use crate::table::{self, Side};

#[derive(Debug, Serialize)]
pub(crate) struct MeterView {
    meter: u32,
    unit: String,
    rate: u64,
    burst: u64,
    green_packets: u64,
    green_bytes: u64,
    yellow_packets: u64,
    yellow_bytes: u64,
    red_packets: u64,
    red_bytes: u64,
}

impl From<v1::Meter> for MeterView {
    fn from(meter: v1::Meter) -> Self {
        Self {
            meter: meter.meter,
            unit: meter.unit,
            rate: meter.rate,
            burst: meter.burst,
            green_packets: meter.green_packets,
            green_bytes: meter.green_bytes,
            yellow_packets: meter.yellow_packets,
            yellow_bytes: meter.yellow_bytes,
            red_packets: meter.red_packets,
            red_bytes: meter.red_bytes,
        }
    }
}

/// The table of `meter ls`. Rates and bursts are in the meter's unit.
pub(crate) fn meter_table(meters: &[MeterView]) -> String {
    const COLUMNS: &[(&str, Side)] = &[
        ("METER", Side::Right),
        ("UNIT", Side::Left),
        ("RATE", Side::Right),
        ("BURST", Side::Right),
        ("GREEN-PACKETS", Side::Right),
        ("GREEN-BYTES", Side::Right),
        ("YELLOW-PACKETS", Side::Right),
        ("YELLOW-BYTES", Side::Right),
        ("RED-PACKETS", Side::Right),
        ("RED-BYTES", Side::Right),
    ];
    let row = |m: &MeterView| {
        vec![
            m.meter.to_string(),
            m.unit.clone(),
            m.rate.to_string(),
            m.burst.to_string(),
            m.green_packets.to_string(),
            m.green_bytes.to_string(),
            m.yellow_packets.to_string(),
            m.yellow_bytes.to_string(),
            m.red_packets.to_string(),
            m.red_bytes.to_string(),
        ]
    };
    table::render(COLUMNS, &meters.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use datapath_api::v1;

    use super::{MeterView, meter_table};

    fn meter() -> MeterView {
        let meter = v1::Meter {
            meter: 7,
            unit: "bits".into(),
            rate: 10_000_000,
            burst: 150_000,
            green_packets: 1,
            green_bytes: 2,
            yellow_packets: 3,
            yellow_bytes: 4,
            red_packets: 5,
            red_bytes: 6,
        };
        meter.into()
    }

    #[test]
    fn meters_are_listed_with_what_they_coloured() {
        assert_eq!(
            meter_table(&[meter()]),
            "METER  UNIT      RATE   BURST  GREEN-PACKETS  GREEN-BYTES  YELLOW-PACKETS  \
             YELLOW-BYTES  RED-PACKETS  RED-BYTES\n\
             \x20   7  bits  10000000  150000              1            2               3             \
             4            5          6\n"
        );
    }

    #[test]
    fn a_meter_as_json_has_the_promised_fields() {
        assert_eq!(
            serde_json::to_string(&meter()).unwrap(),
            r#"{"meter":7,"unit":"bits","rate":10000000,"burst":150000,"green_packets":1,"green_bytes":2,"yellow_packets":3,"yellow_bytes":4,"red_packets":5,"red_bytes":6}"#
        );
    }
}
