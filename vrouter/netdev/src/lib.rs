//! The node's network devices: links, addresses, routes, neighbours, offloads and namespaces.
//!
//! Everything here blocks and is safe to call. There is no async runtime: a netlink request is
//! answered by the kernel within the system call that sends it, so a daemon calls from a blocking
//! thread. A socket stays bound to the network namespace it was made in; no thread has to stay
//! inside one, and no function moves the calling thread: [`Namespace::run`] uses a thread of its own.
//!
//! Errors name the operation and the device; the kernel's own error is their source. Print them
//! with the chain of sources ("creating veth wr12: File exists").

pub mod ethtool;
mod monitor;
mod namespace;
mod netlink;
pub mod packet;
mod sysctl;

pub use monitor::{Event, Monitor};
pub use namespace::{Error as NamespaceError, Namespace};
pub use netlink::{
    Address, Arp, Carrier, Error, Link, Neighbour, NeighbourState, Netlink, Operation, Route,
    RouteInfo, RouteSpec, VethSpec,
};
pub use sysctl::{Error as SysctlError, refuse_ipv4, set_disable_ipv6, take_only_given_ipv6};
