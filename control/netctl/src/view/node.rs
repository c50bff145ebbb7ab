//! Nodes and how far they have followed the intent.

use control_api::v1;
use serde::Serialize;

use super::{EndpointView, View};
use crate::table::Column;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeView {
    key: String,
    node_name: String,
    #[serde(rename = "vtepIP")]
    vtep_ip: String,
    version: String,
    connected: bool,
    acked_revision: u64,
    lag: u64,
    dead: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeOper {
    num_endpoints: u32,
    endpoints: Vec<EndpointView>,
}

impl View for NodeView {
    const KIND: v1::Kind = v1::Kind::Node;
    const COLUMNS: &'static [Column] =
        &[("Node", 4), ("VTEP", 4), ("Version", 7), ("Connected", 9), ("Revision", 8), ("Lag", 3)];
    type Oper = NodeOper;

    fn from_kind(kind: v1::object::Kind) -> Option<Self> {
        let v1::object::Kind::Node(n) = kind else { return None };
        Some(Self {
            key: n.node_name.clone(),
            node_name: n.node_name,
            vtep_ip: n.vtep_ip,
            version: n.version,
            connected: n.connected,
            acked_revision: n.acked_revision,
            lag: n.lag,
            dead: n.dead,
        })
    }

    fn name(&self) -> &str {
        &self.node_name
    }

    fn row(&self) -> Vec<String> {
        let connected = match (self.connected, self.dead) {
            (true, _) => "yes",
            (false, false) => "no",
            (false, true) => "dead",
        };
        vec![
            self.node_name.clone(),
            self.vtep_ip.clone(),
            self.version.clone(),
            connected.to_owned(),
            self.acked_revision.to_string(),
            self.lag.to_string(),
        ]
    }

    fn oper(&self, oper: v1::Oper) -> NodeOper {
        NodeOper {
            num_endpoints: oper.num_endpoints,
            endpoints: oper.endpoints.into_iter().map(EndpointView::from).collect(),
        }
    }
}
