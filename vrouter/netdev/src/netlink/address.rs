//! Addresses of links.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Netlink;
use super::error::{Error, Operation};

/// An address of a link with its subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Leading bits that name the subnet, 0 to 32 or 128.
    pub prefix_len: u8,
}

impl Netlink {
    /// Adds an address to a link. An IPv6 address is usable at once: who assigns it has already
    /// made sure that it is not in use.
    ///
    /// # Errors
    /// [`Error::is_existing`] when the link has it already.
    pub fn add_address(&self, index: u32, ip: IpAddr, prefix_len: u8) -> Result<(), Error> {
        let operation =
            Operation::new("adding address", format!("{ip}/{prefix_len} to link {index}"));
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = prefix_len;
        message.header.family = family_of(ip);
        message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        match ip {
            IpAddr::V4(ip) => {
                let broadcast = broadcast_of(ip, prefix_len).map(AddressAttribute::Broadcast);
                message.attributes.extend(broadcast);
            }
            IpAddr::V6(_) => message.header.flags |= AddressHeaderFlags::Nodad,
        }
        let request = RouteNetlinkMessage::NewAddress(message);
        self.request(&operation, request, NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Takes an address from a link.
    ///
    /// # Errors
    /// [`Error::is_missing`] when there is no such link; `EADDRNOTAVAIL` when it has no such address.
    pub fn remove_address(&self, index: u32, address: Address) -> Result<(), Error> {
        let Address { ip, prefix_len } = address;
        let operation =
            Operation::new("removing address", format!("{ip}/{prefix_len} from link {index}"));
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = prefix_len;
        message.header.family = family_of(ip);
        message.attributes = vec![AddressAttribute::Local(ip)];
        self.request(&operation, RouteNetlinkMessage::DelAddress(message), 0).map(drop)
    }

    /// The addresses of a link, both families.
    ///
    /// # Errors
    /// [`Error`], naming the link.
    pub fn addresses(&self, index: u32) -> Result<Vec<Address>, Error> {
        let operation = Operation::on_link("listing the addresses of", index);
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        Ok(self
            .dump(&operation, &request)?
            .iter()
            .filter_map(|answer| address_in(answer, index))
            .collect())
    }
}

pub(super) const fn family_of(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Subnets of one or two addresses have no broadcast address (RFC 3021).
fn broadcast_of(ip: Ipv4Addr, prefix_len: u8) -> Option<Ipv4Addr> {
    if prefix_len > 30 {
        return None;
    }
    Some(Ipv4Addr::from_bits(ip.to_bits() | (u32::MAX >> prefix_len)))
}

fn address_in(answer: &RouteNetlinkMessage, index: u32) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
    if message.header.index != index {
        return None;
    }
    let prefix_len = message.header.prefix_len;
    // IPv4 has both and means Local (a point-to-point link's Address is the peer's); IPv6 has
    // Address only.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let plain = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    local.or(plain).map(|ip| Address { ip, prefix_len })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_is_the_last_address_of_a_subnet_of_four_or_more() {
        let ip = Ipv4Addr::new(10, 1, 1, 5);
        assert_eq!(broadcast_of(ip, 24), Some(Ipv4Addr::new(10, 1, 1, 255)));
        assert_eq!(broadcast_of(ip, 0), Some(Ipv4Addr::BROADCAST));
        assert_eq!(broadcast_of(ip, 30), Some(Ipv4Addr::new(10, 1, 1, 7)));
        assert_eq!(broadcast_of(ip, 31), None);
        assert_eq!(broadcast_of(ip, 32), None);
    }
}
