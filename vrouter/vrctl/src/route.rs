//! Routes, taken from the entries of the `route` table.
//!
//! In JSON `next_hop` is "local", "vlan", a tunnel end point's address or "unknown-endpoint";
//! `port` is the port that it leaves by and `vni` the tunnel's network, null where there is none.
//! A tunnel's port is known when its end point is resolved (the `underlay` table).

use std::collections::BTreeMap;
use std::net::IpAddr;

use datapath_api::convert::{ConvertError, entry_from_proto};
use datapath_api::entry::{Entry, NextHop, RouteEntry};
use datapath_api::v1;
use serde::Serialize;

use crate::table::{self, Side};

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RouteView {
    vrf: u32,
    prefix: String,
    next_hop: String,
    port: Option<u16>,
    vni: Option<u32>,
    vid: Option<u16>,
    bd: u32,
    mac: String,
}

/// The routes among the entries of a reply.
///
/// # Errors
/// The first entry that makes no sense: the engine is of another version.
pub(crate) fn routes(entries: Vec<v1::ListedEntry>) -> Result<Vec<RouteView>, ConvertError> {
    let entries = entries.into_iter().filter_map(|listed| listed.entry);
    let entries: Vec<Entry> = entries.map(entry_from_proto).collect::<Result<_, _>>()?;
    let mut uplinks = BTreeMap::new();
    for entry in &entries {
        if let Entry::Underlay(e) = entry {
            uplinks.insert(e.vtep, e.port.get());
        }
    }
    let view = |entry| match entry {
        Entry::Route(route) => Some(view(&route, &uplinks)),
        Entry::Port(_)
        | Entry::Network(_)
        | Entry::Tunnel(_)
        | Entry::Vtep(_)
        | Entry::Underlay(_)
        | Entry::Vlan(_)
        | Entry::Group(_)
        | Entry::Rule(_)
        | Entry::Mac(_)
        | Entry::Published(_)
        | Entry::Tenant(_)
        | Entry::Meter(_)
        | Entry::Qos(_) => None,
    };
    Ok(entries.into_iter().filter_map(view).collect())
}

fn view(route: &RouteEntry, uplinks: &BTreeMap<IpAddr, u16>) -> RouteView {
    let (next_hop, port, vni, vid) = match route.next_hop {
        NextHop::Local(port) => ("local".to_owned(), Some(port.get()), None, None),
        NextHop::Tunnel { vtep, vni } => {
            (vtep.to_string(), uplinks.get(&vtep).copied(), Some(vni.get()), None)
        }
        NextHop::Vlan { port, vid } => ("vlan".to_owned(), Some(port.get()), None, Some(vid.get())),
        NextHop::UnknownEndpoint => ("unknown-endpoint".to_owned(), None, None, None),
    };
    RouteView {
        vrf: route.vrf.get(),
        prefix: route.prefix.to_string(),
        next_hop,
        port,
        vni,
        vid,
        bd: route.bd.get(),
        mac: route.mac.to_string(),
    }
}

/// The table of `route ls`.
pub(crate) fn route_table(routes: &[RouteView]) -> String {
    const COLUMNS: &[(&str, Side)] = &[
        ("VRF", Side::Right),
        ("PREFIX", Side::Left),
        ("NEXT-HOP", Side::Left),
        ("PORT", Side::Right),
        ("VNI", Side::Right),
        ("VID", Side::Right),
        ("BD", Side::Right),
        ("MAC", Side::Left),
    ];
    let or_dash = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let row = |r: &RouteView| {
        vec![
            r.vrf.to_string(),
            r.prefix.clone(),
            r.next_hop.clone(),
            or_dash(r.port.map(u32::from)),
            or_dash(r.vni),
            or_dash(r.vid.map(u32::from)),
            r.bd.to_string(),
            r.mac.clone(),
        ]
    };
    table::render(COLUMNS, &routes.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use datapath_api::convert::entry_to_proto;
    use datapath_api::entry::{
        Entry, NextHop, Permit, Prefix, RouteEntry, TenantEntry, UnderlayEntry,
    };
    use datapath_api::ids::{Bd, Mac, PortId, Vid, Vni, Vrf};
    use datapath_api::v1;

    use super::{route_table, routes};

    fn listed(entry: &Entry) -> v1::ListedEntry {
        v1::ListedEntry { entry: Some(entry_to_proto(entry)), ..Default::default() }
    }

    fn route(last: u8, next_hop: NextHop) -> v1::ListedEntry {
        listed(&Entry::Route(RouteEntry {
            vrf: Vrf::new(2).unwrap(),
            prefix: Prefix::host([10, 1, 1, last].into()),
            bd: Bd::new(5).unwrap(),
            mac: Mac([2, 0, 10, 1, 1, last]),
            next_hop,
        }))
    }

    fn entries() -> Vec<v1::ListedEntry> {
        let vtep = [192, 0, 2, 2].into();
        let port = |id| PortId::new(id).unwrap();
        vec![
            route(1, NextHop::Local(port(3))),
            route(2, NextHop::Tunnel { vtep, vni: Vni::new(7).unwrap() }),
            route(3, NextHop::Vlan { port: port(1), vid: Vid::new(100).unwrap() }),
            route(4, NextHop::UnknownEndpoint),
            listed(&Entry::Tenant(TenantEntry::new(Vrf::new(2).unwrap(), Permit::Allow))),
            listed(&Entry::Underlay(UnderlayEntry {
                vtep,
                port: port(1),
                src_mac: Mac::default(),
                dst_mac: Mac::default(),
            })),
        ]
    }

    #[test]
    fn each_kind_of_next_hop_has_its_row() {
        assert_eq!(
            route_table(&routes(entries()).unwrap()),
            "VRF  PREFIX       NEXT-HOP          PORT  VNI  VID  BD  MAC\n  \
             2  10.1.1.1/32  local                3    -    -   5  02:00:0a:01:01:01\n  \
             2  10.1.1.2/32  192.0.2.2            1    7    -   5  02:00:0a:01:01:02\n  \
             2  10.1.1.3/32  vlan                 1    -  100   5  02:00:0a:01:01:03\n  \
             2  10.1.1.4/32  unknown-endpoint     -    -    -   5  02:00:0a:01:01:04\n"
        );
    }

    #[test]
    fn a_route_as_json_has_the_promised_fields() {
        let routes = routes(entries()).unwrap();
        assert_eq!(
            serde_json::to_string(&routes[1]).unwrap(),
            r#"{"vrf":2,"prefix":"10.1.1.2/32","next_hop":"192.0.2.2","port":1,"vni":7,"vid":null,"bd":5,"mac":"02:00:0a:01:01:02"}"#
        );
    }

    #[test]
    fn an_entry_that_makes_no_sense_is_named() {
        let entry = Some(v1::Entry { kind: None });
        let error = routes(vec![v1::ListedEntry { entry, ..Default::default() }]).unwrap_err();
        assert_eq!(error.to_string(), "entry.kind: missing");
    }
}
