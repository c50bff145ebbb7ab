//! Routes: adding, listing, and asking the kernel which one it would take.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Netlink;
use super::address::family_of;
use super::error::{Error, Operation};

/// A route to be added to the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteSpec {
    /// Destination and prefix length; `None` is the default route.
    pub dst: Option<(IpAddr, u8)>,
    /// Next hop; `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the link it leaves by.
    pub oif: u32,
    /// Largest packet in bytes, when smaller than the link's.
    pub mtu: Option<u32>,
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Destination and prefix length; `None` is the default route.
    pub dst: Option<(IpAddr, u8)>,
    /// Next hop; `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the link it leaves by; `None` for routes that refuse, and for multipath ones.
    pub oif: Option<u32>,
    /// Largest packet in bytes, when set.
    pub mtu: Option<u32>,
}

/// How the kernel would send to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteInfo {
    /// Index of the link it leaves by.
    pub oif: u32,
    /// Next hop; `None` when the address itself is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address the kernel would choose.
    pub source: Option<IpAddr>,
}

impl Netlink {
    /// Adds a route.
    ///
    /// # Errors
    /// [`Error::is_existing`] when there is one for that destination.
    pub fn add_route(&self, spec: &RouteSpec) -> Result<(), Error> {
        let operation = Operation::new("adding route", describe(spec));
        let family = spec.dst.map(|(ip, _)| ip).or(spec.gateway).map(family_of);
        let mut message = RouteMessage::default();
        message.header.address_family = family.unwrap_or(AddressFamily::Inet);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope =
            if spec.gateway.is_none() { RouteScope::Link } else { RouteScope::Universe };
        if let Some((ip, prefix_len)) = spec.dst {
            message.header.destination_prefix_length = prefix_len;
            message.attributes.push(RouteAttribute::Destination(ip.into()));
        }
        let gateway = spec.gateway.map(|ip| RouteAttribute::Gateway(ip.into()));
        message.attributes.extend(gateway);
        message.attributes.push(RouteAttribute::Oif(spec.oif));
        let metrics = spec.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        message.attributes.extend(metrics);
        let request = RouteNetlinkMessage::NewRoute(message);
        self.request(&operation, request, NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// The routes of the main table, both families.
    ///
    /// # Errors
    /// [`Error`], naming the operation.
    pub fn routes(&self) -> Result<Vec<Route>, Error> {
        let operation = Operation::new("listing routes", "");
        let mut request = RouteMessage::default();
        request.header.table = RouteHeader::RT_TABLE_MAIN;
        let answers = self.dump(&operation, &RouteNetlinkMessage::GetRoute(request))?;
        Ok(answers.iter().filter_map(main_route_in).collect())
    }

    /// The route the kernel would take to `destination`.
    ///
    /// # Errors
    /// [`Error::is_unreachable`] when none leads there.
    pub fn route_to(&self, destination: IpAddr) -> Result<RouteInfo, Error> {
        let operation = Operation::new("looking up the route to", destination);
        let mut request = RouteMessage::default();
        request.header.address_family = family_of(destination);
        request.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        request.attributes = vec![RouteAttribute::Destination(destination.into())];
        let answers = self.request(&operation, RouteNetlinkMessage::GetRoute(request), 0)?;
        let found = answers.iter().find_map(|answer| {
            let fields = Fields::of(route_in(answer)?);
            Some(RouteInfo { oif: fields.oif?, gateway: fields.gateway, source: fields.source })
        });
        found.ok_or(Error::Incomplete { operation, missing: "an output link" })
    }
}

fn describe(spec: &RouteSpec) -> String {
    let destination =
        spec.dst.map_or_else(|| "default".to_owned(), |(ip, len)| format!("{ip}/{len}"));
    match spec.gateway {
        Some(gateway) => format!("{destination} via {gateway} on link {}", spec.oif),
        None => format!("{destination} on link {}", spec.oif),
    }
}

const fn route_in(answer: &RouteNetlinkMessage) -> Option<&RouteMessage> {
    if let RouteNetlinkMessage::NewRoute(message) = answer { Some(message) } else { None }
}

/// The filter in a dump request holds only on kernels with strict checking, so it is repeated here.
fn main_route_in(answer: &RouteNetlinkMessage) -> Option<Route> {
    let message = route_in(answer)?;
    if message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let fields = Fields::of(message);
    let prefix_len = message.header.destination_prefix_length;
    let dst = fields.destination.map(|ip| (ip, prefix_len));
    Some(Route { dst, gateway: fields.gateway, oif: fields.oif, mtu: fields.mtu })
}

#[derive(Default)]
struct Fields {
    destination: Option<IpAddr>,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    oif: Option<u32>,
    mtu: Option<u32>,
}

impl Fields {
    fn of(message: &RouteMessage) -> Self {
        let mut fields = Self::default();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => fields.destination = ip_of(address),
                RouteAttribute::Gateway(address) => fields.gateway = ip_of(address),
                RouteAttribute::PrefSource(address) => fields.source = ip_of(address),
                // An IPv4 route with an IPv6 next hop (RFC 8950) carries it here.
                RouteAttribute::Via(RouteVia::Inet(ip)) => fields.gateway = Some((*ip).into()),
                RouteAttribute::Via(RouteVia::Inet6(ip)) => fields.gateway = Some((*ip).into()),
                RouteAttribute::Oif(index) => fields.oif = Some(*index),
                RouteAttribute::Metrics(metrics) => fields.mtu = metrics.iter().find_map(mtu_in),
                _ => {}
            }
        }
        fields
    }
}

const fn mtu_in(metric: &RouteMetric) -> Option<u32> {
    if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None }
}

const fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}
