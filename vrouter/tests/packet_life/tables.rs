//! Tables that are wrong: whatever they say, no packet of one tenant leaves for another.

use flowtable::DropReason;
use flowtable::entry::Prefix;
use flowtable::entry::{
    Entry, MacEntry, NetworkEntry, NextHop, PortEntry, RouteEntry, UnderlayEntry, VlanEntry,
};
use flowtable::ids::Mac;

use crate::fabric::{
    A1, A2, A9, BLUE, Fabric, Host, NET_A, NET_R, NET_V, R1, R2, R9, RED, REMOTE, ROUTER_MAC,
    UPLINK, UPLINK_MAC, V1, VNI_R, received, vid,
};

/// With these entries, the frame that A1 or V1 sends is dropped.
fn dropped(from: Host, entries: Vec<Entry>, frame: &[u8], reason: DropReason) {
    let mut fabric = Fabric::new();
    fabric.put(entries);
    let port = from.port();
    let expected = received(port, frame).walked().dropped(port, reason, frame.len());
    assert_eq!(fabric.send(port, frame), expected);
}

fn route_of_a2(next_hop: NextHop) -> Entry {
    let prefix = Prefix::host(A2.ip.into());
    Entry::Route(RouteEntry { vrf: BLUE, prefix, bd: NET_A, mac: A2.mac, next_hop })
}

#[test]
fn a_route_or_mac_to_another_tenants_port_leads_nowhere() {
    let mac = Entry::Mac(MacEntry { bd: NET_A, mac: A2.mac, next_hop: R2.place });
    dropped(A1, vec![mac], &A1.to(&A2).bytes(), DropReason::NoRoute);
    let route = route_of_a2(R2.place);
    dropped(A1, vec![route], &A1.via_gateway(&A2).bytes(), DropReason::NoRoute);
}

#[test]
fn a_route_to_another_tenants_vni_leads_nowhere() {
    let frame = A1.via_gateway(&A2).bytes();
    dropped(A1, vec![route_of_a2(R9.place)], &frame, DropReason::NoRoute);
    let mac = Entry::Mac(MacEntry { bd: NET_A, mac: A2.mac, next_hop: R9.place });
    dropped(A1, vec![mac], &A1.to(&A2).bytes(), DropReason::NoRoute);
    assert_eq!(R9.place, NextHop::Tunnel { vtep: REMOTE, vni: VNI_R });
}

#[test]
fn a_route_to_another_tenants_vlan_leads_nowhere() {
    let (port, vid) = (UPLINK, vid(40));
    let vlan = Entry::Vlan(VlanEntry { port, vid, bd: NET_R, vrf: RED });
    let frame = A1.via_gateway(&A2).bytes();
    let route = route_of_a2(NextHop::Vlan { port, vid });
    dropped(A1, vec![vlan.clone(), route], &frame, DropReason::NoRoute);
    let (subnets, gateways) = (Vec::new(), Vec::new());
    let wire = Some((port, vid));
    let network = NetworkEntry { bd: NET_V, vrf: BLUE, subnets, gateways, wire };
    let network = Entry::Network(network);
    let unknown = V1.to(&A2).dst_mac(Mac([2; 6])).dst_ip([192, 0, 2, 1]).bytes();
    dropped(V1, vec![vlan.clone(), network.clone()], &unknown, DropReason::NoRoute);
    let request = V1.asks([10, 1, 3, 77].into());
    dropped(V1, vec![vlan, network], &request, DropReason::NoRoute);
}

#[test]
fn a_vlan_or_an_underlay_over_a_containers_port_leads_nowhere() {
    let frame = A1.via_gateway(&A2).bytes();
    let route = route_of_a2(NextHop::Vlan { port: R2.port(), vid: vid(40) });
    dropped(A1, vec![route], &frame, DropReason::PortGone);
    let underlay =
        UnderlayEntry { vtep: REMOTE, port: R2.port(), src_mac: UPLINK_MAC, dst_mac: ROUTER_MAC };
    let frame = A1.to(&A9).bytes();
    dropped(A1, vec![Entry::Underlay(underlay)], &frame, DropReason::PortGone);
}

/// Without a tunnel or a tag, a tenant's frame would be taken for one of the underlay's.
#[test]
fn an_uplink_that_an_entry_binds_to_a_tenant_is_no_container() {
    let binding = PortEntry { port: UPLINK, ..A2.binding() };
    let route = route_of_a2(NextHop::Local(UPLINK));
    let frame = A1.via_gateway(&A2).bytes();
    dropped(A1, vec![Entry::Port(binding), route], &frame, DropReason::PortGone);
}

#[test]
fn a_port_bound_to_a_network_of_another_tenant_reaches_nobody_there() {
    let binding = Entry::Port(PortEntry { bd: NET_R, ..A1.binding() });
    for to in [R2, R9] {
        let frame = A1.to(&to).bytes();
        let mut fabric = Fabric::new();
        fabric.put([binding.clone()]);
        assert_eq!(fabric.send(A1.port(), &frame).out, [], "{to:?}");
    }
    let mut fabric = Fabric::new();
    fabric.put([binding]);
    assert_eq!(fabric.send(A1.port(), &A1.asks(R1.ip)).out, []);
}
