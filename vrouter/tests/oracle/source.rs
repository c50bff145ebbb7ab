//! Whether a container may be the sender it says it is.

use std::net::IpAddr;

use flowtable::DropReason;
use flowtable::entry::{Ipv6, PortEntry};

use super::parse::{Seen, What};
use super::{Stopped, drop};

/// A container may use its own addresses only.
pub(super) fn check_source(binding: &PortEntry, seen: &Seen) -> Stopped<()> {
    if seen.src != binding.mac {
        return drop(DropReason::SpoofedMac);
    }
    let allowed = match seen.what {
        What::Other => return drop(DropReason::NonIp),
        What::Ip(ip) if ip.src.is_ipv6() && binding.ipv6 == Ipv6::Off => {
            return drop(DropReason::Ipv6Off);
        }
        What::Ip(ip) => binding.ips.contains(&ip.src) || seen.dst.is_multicast() && on_link(ip.src),
        What::Neighbor { hardware, .. } if hardware.is_some_and(|mac| mac != binding.mac) => {
            return drop(DropReason::SpoofedMac);
        }
        What::Neighbor { sender, .. } if sender.is_ipv6() && binding.ipv6 == Ipv6::Off => {
            return drop(DropReason::Ipv6Off);
        }
        What::Neighbor { request, sender, .. } => {
            let probes = match sender {
                IpAddr::V4(_) => request && sender.is_unspecified(),
                IpAddr::V6(_) => (request || seen.dst.is_multicast()) && on_link(sender),
            };
            probes || binding.ips.contains(&sender)
        }
    };
    if allowed { Ok(()) } else { drop(DropReason::SpoofedIp) }
}

/// IPv6 before, and beside, an address of the network.
fn on_link(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unspecified() || v6.segments()[0] & 0xffc0 == 0xfe80)
}
