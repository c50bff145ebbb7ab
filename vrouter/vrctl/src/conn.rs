//! Tracked connections.

use datapath_api::v1;
use serde::Serialize;

use crate::table::{self, Side};

#[derive(Debug, Serialize)]
pub(crate) struct ConnView {
    original: String,
    state: String,
    port: u32,
    vrf: u32,
    idle_seconds: u32,
    expires_seconds: u32,
}

impl From<v1::Connection> for ConnView {
    fn from(connection: v1::Connection) -> Self {
        Self {
            original: connection.original,
            state: connection.state,
            port: connection.port,
            vrf: connection.vrf,
            idle_seconds: connection.idle_seconds,
            expires_seconds: connection.expires_seconds,
        }
    }
}

/// The table of `conn ls`.
pub(crate) fn conn_table(connections: &[ConnView]) -> String {
    const COLUMNS: &[(&str, Side)] = &[
        ("VRF", Side::Right),
        ("PORT", Side::Right),
        ("STATE", Side::Left),
        ("IDLE", Side::Right),
        ("EXPIRES", Side::Right),
        ("ORIGINAL", Side::Left),
    ];
    let row = |c: &ConnView| {
        vec![
            c.vrf.to_string(),
            c.port.to_string(),
            c.state.clone(),
            format!("{}s", c.idle_seconds),
            format!("{}s", c.expires_seconds),
            c.original.clone(),
        ]
    };
    table::render(COLUMNS, &connections.iter().map(row).collect::<Vec<_>>())
}

/// Counts of connections: `open` and `half_open` are those of now, the others since the start.
#[derive(Debug, Serialize)]
pub(crate) struct ConnStatsView {
    open: u64,
    half_open: u64,
    opened: u64,
    evicted: u64,
    expired: u64,
    refused: Vec<RefusalView>,
}

#[derive(Debug, Serialize)]
struct RefusalView {
    cause: String,
    count: u64,
}

impl From<v1::ConnectionCounters> for ConnStatsView {
    fn from(counters: v1::ConnectionCounters) -> Self {
        let refusal = |refusal: v1::connection_counters::Refusal| RefusalView {
            cause: refusal.cause,
            count: refusal.count,
        };
        Self {
            open: counters.open,
            half_open: counters.half_open,
            opened: counters.opened,
            evicted: counters.evicted,
            expired: counters.expired,
            refused: counters.refused.into_iter().map(refusal).collect(),
        }
    }
}

/// The lines of `conn stats`.
pub(crate) fn conn_stats_lines(stats: &ConnStatsView) -> String {
    let ConnStatsView { open, half_open, opened, evicted, expired, refused } = stats;
    let refused = refused.iter().map(|r| format!("refused ({}): {}\n", r.cause, r.count));
    format!(
        "open: {open}\nhalf open: {half_open}\nopened: {opened}\nevicted: {evicted}\n\
         expired: {expired}\n{}",
        refused.collect::<Vec<_>>().concat()
    )
}

#[cfg(test)]
mod tests {
    use datapath_api::v1;
    use datapath_api::v1::connection_counters::Refusal;

    use super::{ConnStatsView, ConnView, conn_stats_lines, conn_table};

    fn connections() -> Vec<ConnView> {
        let flow = "vrf=1,tcp,nw_src=10.1.1.2,nw_dst=10.1.2.3,tp_src=40000,tp_dst=443";
        let established = v1::Connection {
            original: flow.into(),
            state: "established".into(),
            port: 3,
            vrf: 1,
            idle_seconds: 2,
            expires_seconds: 7198,
        };
        let new = v1::Connection { state: "new".into(), port: 12, ..established.clone() };
        vec![established.into(), new.into()]
    }

    #[test]
    fn connections_are_listed_by_their_first_packet() {
        assert_eq!(
            conn_table(&connections()),
            "VRF  PORT  STATE        IDLE  EXPIRES  ORIGINAL\n\
             \x20 1     3  established    2s    7198s  \
             vrf=1,tcp,nw_src=10.1.1.2,nw_dst=10.1.2.3,tp_src=40000,tp_dst=443\n\
             \x20 1    12  new            2s    7198s  \
             vrf=1,tcp,nw_src=10.1.1.2,nw_dst=10.1.2.3,tp_src=40000,tp_dst=443\n"
        );
    }

    #[test]
    fn a_connection_as_json_has_the_promised_fields() {
        assert_eq!(
            serde_json::to_string(&connections()[0]).unwrap(),
            r#"{"original":"vrf=1,tcp,nw_src=10.1.1.2,nw_dst=10.1.2.3,tp_src=40000,tp_dst=443","state":"established","port":3,"vrf":1,"idle_seconds":2,"expires_seconds":7198}"#
        );
    }

    #[test]
    fn counts_of_connections_tell_why_some_were_refused() {
        let refusal = |cause: &str, count| Refusal { cause: cause.into(), count };
        let counters = v1::ConnectionCounters {
            open: 5,
            half_open: 2,
            opened: 9,
            refused: vec![refusal("tenant", 3), refusal("new-flows", 1)],
            evicted: 4,
            expired: 0,
        };
        let stats = ConnStatsView::from(counters);
        assert_eq!(
            conn_stats_lines(&stats),
            "open: 5\nhalf open: 2\nopened: 9\nevicted: 4\nexpired: 0\nrefused (tenant): 3\n\
             refused (new-flows): 1\n"
        );
        assert_eq!(
            serde_json::to_string(&stats).unwrap(),
            r#"{"open":5,"half_open":2,"opened":9,"evicted":4,"expired":0,"refused":[{"cause":"tenant","count":3},{"cause":"new-flows","count":1}]}"#
        );
    }
}
