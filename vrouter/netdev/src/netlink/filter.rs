//! Filters of traffic control.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcHandle, TcHeader, TcMessage};

use super::{Error, Netlink, Operation};

/// `ETH_P_ALL` of `linux/if_ether.h`.
const EVERY_PROTOCOL: u16 = 3;

impl Netlink {
    /// Removes the filter with this priority and handle from what link `index` receives. Returns
    /// whether there was one.
    ///
    /// # Errors
    /// [`Error`], naming the link. That there is no such link or filter is none.
    pub fn delete_ingress_filter(&self, index: u32, number: u16) -> Result<bool, Error> {
        let operation = Operation::on_link("removing a filter from", index);
        // `TC_H_MAKE(priority, protocol)` of `linux/pkt_sched.h`; the protocol as on the wire.
        let info = u32::from(number) << 16 | u32::from(EVERY_PROTOCOL.to_be());
        let parent = TcHandle { minor: TcHandle::MIN_INGRESS, ..TcHandle::CLSACT };
        let handle = TcHandle { major: 0, minor: number };
        let header =
            TcHeader { index: index.cast_signed(), handle, parent, info, ..TcHeader::default() };
        let message = TcMessage::from_parts(header, Vec::new());
        match self.request(&operation, RouteNetlinkMessage::DelTrafficFilter(message), 0) {
            Ok(_) => Ok(true),
            // Without its qdisc a link has no filters: EINVAL.
            Err(error)
                if error.is_missing() || error.errno() == Some(nix::errno::Errno::EINVAL) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
