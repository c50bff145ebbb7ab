//! Ports, table entries, cached flows and the engine's identity, as tables and as JSON.

use datapath_api::v1;
use serde::Serialize;

use crate::table::{self, Side};

#[derive(Debug, Serialize)]
pub(crate) struct PortView {
    id: u32,
    name: String,
    ifindex: u32,
    kind: &'static str,
    tag: u32,
    vrf: u32,
    bd: u32,
    rx_packets: u64,
    rx_bytes: u64,
    tx_packets: u64,
    tx_bytes: u64,
    drops: u64,
    /// Of an uplink.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    devices: Vec<DeviceView>,
}

/// A device of an uplink.
#[derive(Debug, Serialize)]
struct DeviceView {
    name: String,
    ifindex: u32,
    active: bool,
    state: String,
}

impl From<v1::PortDevice> for DeviceView {
    fn from(device: v1::PortDevice) -> Self {
        let v1::PortDevice { name, ifindex, active, state } = device;
        Self { name, ifindex, active, state }
    }
}

impl PortView {
    /// Its name; of an uplink with several devices what they are, in the order in which they take over:
    /// `eth1*,eth2(down)`, frames leave by the one with the star.
    fn title(&self) -> String {
        let [_, _, ..] = &self.devices[..] else { return self.name.clone() };
        let device = |device: &DeviceView| {
            let star = if device.active { "*" } else { "" };
            let how = match device.state.as_str() {
                "up" => String::new(),
                state => format!("({state})"),
            };
            format!("{}{star}{how}", device.name)
        };
        self.devices.iter().map(device).collect::<Vec<_>>().join(",")
    }
}

impl From<v1::Port> for PortView {
    fn from(port: v1::Port) -> Self {
        let kind = match port.kind() {
            v1::PortKind::Unspecified => "unknown",
            v1::PortKind::Container => "container",
            v1::PortKind::Uplink => "uplink",
        };
        Self {
            id: port.id,
            name: port.name,
            ifindex: port.ifindex,
            kind,
            tag: port.tag,
            vrf: port.vrf,
            bd: port.bd,
            rx_packets: port.rx_packets,
            rx_bytes: port.rx_bytes,
            tx_packets: port.tx_packets,
            tx_bytes: port.tx_bytes,
            drops: port.drops,
            devices: port.devices.into_iter().map(DeviceView::from).collect(),
        }
    }
}

/// The table of `port ls`.
pub(crate) fn port_table(ports: &[PortView]) -> String {
    const COLUMNS: &[(&str, Side)] = &[
        ("ID", Side::Right),
        ("NAME", Side::Left),
        ("IFINDEX", Side::Right),
        ("KIND", Side::Left),
        ("TAG", Side::Right),
        ("VRF", Side::Right),
        ("BD", Side::Right),
        ("RX-PACKETS", Side::Right),
        ("RX-BYTES", Side::Right),
        ("TX-PACKETS", Side::Right),
        ("TX-BYTES", Side::Right),
        ("DROPS", Side::Right),
    ];
    let row = |p: &PortView| {
        vec![
            p.id.to_string(),
            p.title(),
            p.ifindex.to_string(),
            p.kind.to_owned(),
            p.tag.to_string(),
            p.vrf.to_string(),
            p.bd.to_string(),
            p.rx_packets.to_string(),
            p.rx_bytes.to_string(),
            p.tx_packets.to_string(),
            p.tx_bytes.to_string(),
            p.drops.to_string(),
        ]
    };
    table::render(COLUMNS, &ports.iter().map(row).collect::<Vec<_>>())
}

/// A table entry, or a cached flow (then `table` is "cache").
#[derive(Debug, Serialize)]
pub(crate) struct FlowView {
    table: String,
    #[serde(rename = "match")]
    matches: String,
    actions: String,
    packets: u64,
    bytes: u64,
}

impl From<v1::ListedEntry> for FlowView {
    fn from(entry: v1::ListedEntry) -> Self {
        Self {
            table: entry.table,
            matches: entry.r#match,
            actions: entry.actions,
            packets: entry.packets,
            bytes: entry.bytes,
        }
    }
}

impl From<v1::Flow> for FlowView {
    fn from(flow: v1::Flow) -> Self {
        Self {
            table: "cache".to_owned(),
            matches: flow.r#match,
            actions: flow.actions,
            packets: flow.packets,
            bytes: flow.bytes,
        }
    }
}

/// One line a flow, in the manner of `ovs-ofctl dump-flows`.
pub(crate) fn flow_lines(flows: &[FlowView]) -> String {
    let line = |f: &FlowView| {
        let separator = if f.matches.is_empty() { "" } else { ", " };
        format!(
            "table={}, n_packets={}, n_bytes={}{separator}{} actions={}\n",
            f.table, f.packets, f.bytes, f.matches, f.actions
        )
    };
    flows.iter().map(line).collect::<Vec<_>>().concat()
}

#[derive(Debug, Serialize)]
pub(crate) struct StatusView {
    version: String,
    api_version: u32,
    features: u64,
    instance: String,
    revision: u64,
}

impl From<v1::HelloReply> for StatusView {
    fn from(hello: v1::HelloReply) -> Self {
        Self {
            version: hello.version,
            api_version: hello.api_version,
            features: hello.features,
            instance: hello.instance,
            revision: hello.revision,
        }
    }
}

/// The lines of `status`.
pub(crate) fn status_lines(status: &StatusView) -> String {
    format!(
        "version: {}\napi version: {}\nfeatures: {:#x}\ninstance: {}\nrevision: {}\n",
        status.version, status.api_version, status.features, status.instance, status.revision
    )
}

#[cfg(test)]
mod tests {
    use datapath_api::v1;

    use super::{FlowView, PortView, StatusView, flow_lines, port_table, status_lines};

    fn port() -> PortView {
        let port = v1::Port {
            id: 3,
            name: "wr0123456789".into(),
            ifindex: 17,
            kind: v1::PortKind::Container.into(),
            tag: 3,
            vrf: 2,
            bd: 5,
            rx_packets: 10,
            rx_bytes: 980,
            tx_packets: 9,
            tx_bytes: 882,
            drops: 1,
            devices: Vec::new(),
        };
        port.into()
    }

    #[test]
    fn ports_are_listed_with_their_counters() {
        assert_eq!(
            port_table(&[port()]),
            "ID  NAME          IFINDEX  KIND       TAG  VRF  BD  RX-PACKETS  RX-BYTES  TX-PACKETS  \
             TX-BYTES  DROPS\n \
             3  wr0123456789       17  container    3    2   5          10       980           9       \
             882      1\n"
        );
    }

    #[test]
    fn an_uplink_of_several_devices_shows_how_they_are() {
        let device = |name: &str, active, state: &str| v1::PortDevice {
            name: name.into(),
            ifindex: 3,
            active,
            state: state.into(),
        };
        let mut uplink = v1::Port { name: "eth1".into(), ..v1::Port::default() };
        uplink.devices = vec![device("eth1", true, "up")];
        assert_eq!(PortView::from(uplink.clone()).title(), "eth1");
        uplink.devices = vec![
            device("eth1", false, "down"),
            device("eth2", true, "up"),
            device("eth3", false, "up"),
            device("eth4", false, "gone"),
        ];
        let view = PortView::from(uplink);
        assert_eq!(view.title(), "eth1(down),eth2*,eth3,eth4(gone)");
        let json = serde_json::to_value(&view).unwrap();
        let second = r#"{"name":"eth2","ifindex":3,"active":true,"state":"up"}"#;
        assert_eq!(json["devices"][1], serde_json::from_str::<serde_json::Value>(second).unwrap());
    }

    #[test]
    fn a_port_as_json_has_the_promised_fields() {
        assert_eq!(
            serde_json::to_string(&port()).unwrap(),
            r#"{"id":3,"name":"wr0123456789","ifindex":17,"kind":"container","tag":3,"vrf":2,"bd":5,"rx_packets":10,"rx_bytes":980,"tx_packets":9,"tx_bytes":882,"drops":1}"#
        );
        let strange = v1::Port { kind: 99, ..Default::default() };
        assert_eq!(PortView::from(strange).kind, "unknown");
    }

    #[test]
    fn flows_read_like_ovs_ofctl() {
        let entry = v1::ListedEntry {
            table: "policy".into(),
            r#match: "vrf=2,src_group=3,tcp,tp_dst=8001".into(),
            actions: "drop".into(),
            packets: 7,
            bytes: 420,
            entry: None,
        };
        let flow = v1::Flow {
            r#match: "in_port=3".into(),
            actions: "output:4".into(),
            packets: 1,
            bytes: 98,
            ..Default::default()
        };
        assert_eq!(
            flow_lines(&[entry.into(), flow.into()]),
            "table=policy, n_packets=7, n_bytes=420, vrf=2,src_group=3,tcp,tp_dst=8001 actions=drop\n\
             table=cache, n_packets=1, n_bytes=98, in_port=3 actions=output:4\n"
        );
        let any = FlowView::from(v1::Flow { actions: "drop".into(), ..Default::default() });
        assert_eq!(flow_lines(&[any]), "table=cache, n_packets=0, n_bytes=0 actions=drop\n");
    }

    #[test]
    fn the_engine_is_identified() {
        let hello = v1::HelloReply {
            api_version: 1,
            features: 3,
            instance: "5f0c".into(),
            version: "0.1.0".into(),
            revision: 9,
        };
        assert_eq!(
            status_lines(&StatusView::from(hello)),
            "version: 0.1.0\napi version: 1\nfeatures: 0x3\ninstance: 5f0c\nrevision: 9\n"
        );
    }
}
