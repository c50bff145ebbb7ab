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

#[cfg(test)]
mod tests {
    use datapath_api::v1;

    use super::{ConnView, conn_table};

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
}
