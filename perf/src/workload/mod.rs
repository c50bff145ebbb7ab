//! A tenant and its traffic: containers, rules, routes and UDP flows, the same for every
//! measurement and made from their numbers alone.
//!
//! Flow `i` comes from 10.0.0.0 + `i` and goes to one of 1,000 blocks of 256 addresses and one of 8
//! destination ports. Rules are a mix of prefixes and ports on these flows, the last one allows all
//! UDP, so that every packet is compared with the list and none is denied. Routes are 1,000 prefixes
//! of four lengths that overlap. The peers' measurements use the same numbers.

mod acl;
mod flow;
mod routes;
mod tenant;

pub use flow::{Flow, OUTER_SOURCE_PORT, Wire, flow};
pub use routes::{Route, Routes};
pub use tenant::{Packets, Tenant, Way};

use std::net::{IpAddr, Ipv4Addr};

use flowtable::ids::Mac;

/// Source addresses start at 10.0.0.0.
const SOURCES: u32 = 0x0a00_0000;
/// Destinations start at 172.16.0.0.
const DESTINATIONS: u32 = 0xac10_0000;

const fn v4(bits: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(bits))
}

/// The only MAC the container at `port` may send from.
const fn container_mac(port: u16) -> Mac {
    let [high, low] = port.to_be_bytes();
    Mac([2, 0, 0, 0, high, low])
}
