//! Two nodes with an underlay between them.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use flowtable::entry::{Entry, MacEntry, NextHop, Op, Prefix, RouteEntry, TunnelEntry, VtepEntry};
use flowtable::ids::{Bd, Vni, Vrf};
use netdev::{Namespace, Netlink, VethSpec};

use super::node::{CONTAINERS, Join, ip, mac};

/// The uplink's port in vrouterd.
pub(super) const PORT: u16 = 1;
/// The kernel's device.
pub(super) const VXLAN: &str = "vpvx";
const VNI: u32 = 100;

/// The underlay's device on the node of container `n`.
pub(super) fn uplink(n: u8) -> String {
    format!("vpu{n}")
}

/// The tunnel end point of the node of container `n`.
pub(super) const fn vtep(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 9, n)
}

const fn other(n: u8) -> u8 {
    if n == CONTAINERS[0] { CONTAINERS[1] } else { CONTAINERS[0] }
}

/// Two nodes, joined by a cable.
pub(super) fn nodes() -> Result<Vec<Namespace>> {
    let nodes = [Namespace::anonymous()?, Namespace::anonymous()?];
    let [near, far] = CONTAINERS.map(uplink);
    Netlink::open_in(&nodes[0])?.create_veth(&VethSpec {
        name: &near,
        mac: None,
        mtu: 1500,
        peer_name: &far,
        peer_mac: None,
        peer_mtu: 1500,
        peer_netns: Some(&nodes[1]),
    })?;
    for (node, n) in nodes.iter().zip(CONTAINERS) {
        let netlink = Netlink::open_in(node)?;
        let link = netlink.link_by_name(&uplink(n))?.context("a veth pair without its peer")?;
        netlink.add_address(link.index, vtep(n).into(), 24)?;
        netlink.set_up(link.index)?;
    }
    Ok(nodes.into())
}

/// The kernel's tunnel to the other node.
pub(super) fn add_vxlan(node: &Namespace, n: u8) -> Result<()> {
    let (remote, device) = (vtep(other(n)), uplink(n));
    let what = format!("id {VNI} remote {remote} dstport 4789 dev {device}");
    ip(node, &format!("link add {VXLAN} type vxlan {what}"))?;
    ip(node, &format!("link set {VXLAN} up"))
}

/// What a node with container `here` knows of the one with container `there`.
pub(super) fn tables(here: u8, there: u8) -> Result<Vec<Op>> {
    let (vrf, bd, vni) = (Vrf::MIN, Bd::MIN, Vni::new(VNI)?);
    let remote = vtep(there).into();
    let (mac, next_hop) = (mac(there), NextHop::Tunnel { vtep: remote, vni });
    let prefix = Prefix::host(Join::Overlay.address(there));
    let entries = [
        Entry::Vtep(VtepEntry { ip: remote, local: vtep(here).into() }),
        Entry::Tunnel(TunnelEntry { vni, bd, vrf }),
        Entry::Route(RouteEntry { vrf, prefix, bd, mac, next_hop }),
        Entry::Mac(MacEntry { bd, mac, next_hop }),
    ];
    Ok(entries.into_iter().map(Op::Put).collect())
}
