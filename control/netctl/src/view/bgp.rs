//! BGP settings of hosts.

use control_api::v1;
use serde::Serialize;

use super::View;
use crate::table::Column;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct BgpView {
    key: String,
    hostname: String,
    routerip: String,
    #[serde(rename = "as")]
    as_number: String,
    neighbor: String,
    #[serde(rename = "neighbor-as")]
    neighbor_as: String,
}

impl View for BgpView {
    const KIND: v1::Kind = v1::Kind::Bgp;
    const COLUMNS: &'static [Column] =
        &[("HostName", 9), ("RouterIP", 8), ("AS", 7), ("Neighbor", 8), ("NeighborAS", 7)];
    type Oper = ();

    fn from_kind(kind: v1::object::Kind) -> Option<Self> {
        let v1::object::Kind::Bgp(b) = kind else { return None };
        Some(Self {
            key: b.hostname.clone(),
            hostname: b.hostname,
            routerip: b.routerip,
            as_number: b.as_number,
            neighbor: b.neighbor,
            neighbor_as: b.neighbor_as,
        })
    }

    fn name(&self) -> &str {
        &self.hostname
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.hostname.clone(),
            self.routerip.clone(),
            self.as_number.clone(),
            self.neighbor.clone(),
            self.neighbor_as.clone(),
        ]
    }

    fn oper(&self, _oper: v1::Oper) {}
}
