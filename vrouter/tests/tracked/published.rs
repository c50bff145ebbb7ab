//! Ports of the node that lead to containers: what comes from outside all tenants, and its answers.

use std::net::{IpAddr, Ipv4Addr};

use flowtable::entry::{
    EntryKey, GroupEntry, NodePort, Op, Prefix, PublishedEntry, RuleEntry, Tracking,
};
use flowtable::ids::Mac;
use flowtable::text::CtAssume;
use vrouter::EngineConfig;

use super::*;
use crate::fabric::frames::tagged_as;
use crate::fabric::{
    A1, A2, A9, R1, RED, ROUTER_MAC, UPLINK_MAC, V1, VNI_R, WEB, prefix, received,
};

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

fn published(port: u16, to: &Host, to_port: u16) -> [Entry; 2] {
    [6, 17].map(|protocol| {
        let node = NodePort { address: NODE, protocol, port };
        Entry::Published(PublishedEntry { node, vrf: to.vrf, to: to.ip.into(), to_port })
    })
}

/// Port 8080 of the node is port 80 of A1.
fn open(more: impl IntoIterator<Item = Entry>) -> Fabric {
    with(published(8080, &A1, 80).into_iter().chain(more))
}

/// From the client to the node.
fn asked(l4: L4) -> Packet {
    Packet::new((ROUTER_MAC, UPLINK_MAC), (CLIENT, NODE)).l4(l4)
}

/// From a container to the client.
fn answered(from: &Host, l4: L4) -> Packet {
    Packet::new((from.mac, Mac::GATEWAY), (from.ip.into(), CLIENT)).l4(l4)
}

fn asks(fabric: &mut Fabric, l4: L4) -> Fate {
    fate(&fabric.send_at_once(UPLINK, &asked(l4).bytes()))
}

fn answers(fabric: &mut Fabric, from: &Host, l4: L4) -> Fate {
    fate(&fabric.send_at_once(from.port(), &answered(from, l4).bytes()))
}

#[test]
fn cni_1_what_comes_to_a_published_port_is_translated_and_so_is_the_answer() {
    let mut fabric = open([]);
    let question = asked(L4::Udp(5000, 8080)).bytes();
    let inside = Packet::new((Mac::GATEWAY, A1.mac), (CLIENT, A1.ip.into())).ttl(63);
    let inside = inside.l4(L4::Udp(5000, 80)).bytes();
    let answer = answered(&A1, L4::Udp(80, 5000)).bytes();
    let outside = Packet::new((UPLINK_MAC, ROUTER_MAC), (NODE, CLIENT)).ttl(63);
    let outside = outside.l4(L4::Udp(8080, 5000)).bytes();
    for known in [false, true] {
        let expect =
            |delivered: Delivered| if known { delivered.cached() } else { delivered.walked() };
        let expected = expect(received(UPLINK, &question)).out(A1.port(), &inside);
        assert_eq!(fabric.send_at_once(UPLINK, &question), expected);
        let expected = expect(received(A1.port(), &answer)).out(UPLINK, &outside);
        assert_eq!(fabric.send_at_once(A1.port(), &answer), expected);
    }
    assert_eq!(open_count(&fabric, BLUE), 1);
    // Connections from outside are the tenant's, and those of the uplink.
    let [conn] = fabric.engine.connections(9)[..] else { panic!("one connection") };
    assert_eq!((conn.owner.port, conn.tuple.dst_port), (UPLINK, 80));
}

#[test]
fn cni_1_a_priority_tag_to_a_published_port_stays_on_the_wire() {
    let mut fabric = open([]);
    let question = asked(L4::Udp(5000, 8080)).bytes();
    let bare = fabric.send_at_once(UPLINK, &question).out;
    let tagged = tagged_as(0x8100, 0, &question);
    assert_eq!(fabric.send_at_once(UPLINK, &tagged).out, bare);
}

#[test]
fn cni_1_tcp_to_a_published_port_is_a_connection_like_any_other() {
    let mut fabric = open([]);
    assert_eq!(asks(&mut fabric, L4::Segment(5000, 8080, ACK)), STRAY);
    assert_eq!(asks(&mut fabric, L4::Segment(5000, 8080, SYN)), Ok(()));
    assert_eq!(answers(&mut fabric, &A1, L4::Segment(80, 5000, SYN_ACK)), Ok(()));
    assert_eq!(asks(&mut fabric, L4::Segment(5000, 8080, ACK)), Ok(()));
    for _ in 0..3 {
        assert_eq!(answers(&mut fabric, &A1, L4::Segment(80, 5000, ACK)), Ok(()));
        assert_eq!(asks(&mut fabric, L4::Segment(5000, 8080, ACK)), Ok(()));
    }
    assert_eq!(asks(&mut fabric, L4::Segment(5000, 8080, FIN)), Ok(()));
    assert_eq!(answers(&mut fabric, &A1, L4::Segment(80, 5000, FIN)), Ok(()));
    // It ends, and its two ends can come by another port then, but not before.
    fabric.put(published(9090, &A1, 80));
    assert_eq!(asks(&mut fabric, L4::Segment(5000, 9090, ACK)), STRAY);
    assert_eq!(asks(&mut fabric, L4::Segment(5000, 9090, SYN)), Ok(()));
    assert_eq!(asks(&mut fabric, L4::Segment(5000, 8080, ACK)), STRAY);
    let syn_ack = answered(&A1, L4::Segment(80, 5000, SYN_ACK)).bytes();
    let out = fabric.send_at_once(A1.port(), &syn_ack).out;
    assert_eq!(out[0].1[34..36], 9090_u16.to_be_bytes());
}

#[test]
fn cni_1_two_published_ports_of_one_container_port_are_told_apart() {
    let mut fabric = open(published(9090, &A1, 80));
    for (port, client) in [(8080, 5000), (9090, 5001)] {
        assert_eq!(asks(&mut fabric, L4::Udp(client, port)), Ok(()));
        let answer = answered(&A1, L4::Udp(80, client)).bytes();
        let out = fabric.send_at_once(A1.port(), &answer).out;
        assert_eq!(out[0].1[34..36], port.to_be_bytes());
    }
    // The same two ends cannot be two connections.
    assert_eq!(asks(&mut fabric, L4::Udp(5000, 9090)), STRAY);
    assert_eq!(asks(&mut fabric, L4::Udp(5000, 8080)), Ok(()));
}

#[test]
fn dbg_1_a_trace_picks_up_nothing_where_there_is_a_connection() {
    let config = EngineConfig { pickup_seconds: 60, ..EngineConfig::default() };
    let ports = [8080, 9090].map(|port| published(port, &A1, 80));
    let mut fabric = configured(&config, ports.into_iter().flatten());
    assert_eq!(asks(&mut fabric, L4::Segment(5000, 8080, ACK)), Ok(()));
    let other = asked(L4::Segment(5000, 9090, ACK)).bytes();
    let stray = flowtable::Verdict::Drop(DropReason::NoConnection);
    assert_eq!(fabric.engine.trace(UPLINK, &other).verdict, stray);
    assert_eq!(fate(&fabric.send_at_once(UPLINK, &other)), STRAY);
}

#[test]
fn cni_1_a_container_sends_nobody_outside_what_nobody_asked_for() {
    let mut fabric = open([]);
    let no_route = Err(DropReason::NoRoute);
    assert_eq!(answers(&mut fabric, &A1, L4::Udp(80, 5000)), no_route);
    assert_eq!(asks(&mut fabric, L4::Udp(5000, 8080)), Ok(()));
    assert_eq!(answers(&mut fabric, &A1, L4::Udp(80, 5000)), Ok(()));
    assert_eq!(answers(&mut fabric, &A1, L4::Udp(80, 5001)), no_route);
    assert_eq!(answers(&mut fabric, &A1, L4::Udp(81, 5000)), no_route);
    assert_eq!(answers(&mut fabric, &A2, L4::Udp(80, 5000)), no_route);
    // An answer goes by the router, and is whole.
    let answer = answered(&A1, L4::Udp(80, 5000));
    let direct = answer.clone().dst_mac(A2.mac);
    assert_eq!(fate(&send(&mut fabric, &A1, &direct)), Err(DropReason::NotForUs));
    let first = answer.clone().first_fragment();
    assert_eq!(fate(&send(&mut fabric, &A1, &first)), Err(DropReason::Fragment));
    let low = fabric.send_at_once(A1.port(), &answer.ttl(1).bytes());
    assert_eq!(low.out.len(), 1, "the container is told that the time is exceeded: {low:?}");
    assert_eq!(low.out[0].0, A1.port());
}

#[test]
fn cni_1_nobody_outside_is_somebody_of_the_tenant() {
    let mut fabric = open([]);
    let spoofed = Err(DropReason::SpoofedIp);
    let ask = asked(L4::Udp(5000, 8080));
    for source in [A2.ip, A9.ip, [10, 1, 1, 77].into(), [10, 1, 2, 254].into()] {
        let frame = ask.clone().src_ip(source).bytes();
        assert_eq!(fate(&fabric.send_at_once(UPLINK, &frame)), spoofed, "{source}");
    }
    for source in [[0, 0, 0, 0], [224, 0, 0, 1], [127, 0, 0, 1]] {
        let frame = ask.clone().src_ip(Ipv4Addr::from(source)).bytes();
        let fate = fate(&fabric.send_at_once(UPLINK, &frame));
        assert!(matches!(fate, Err(DropReason::SpoofedIp | DropReason::Malformed)), "{source:?}");
    }
    let frame = ask.clone().src_mac(Mac::BROADCAST).bytes();
    assert!(fate(&fabric.send_at_once(UPLINK, &frame)).is_err());
    let frame = ask.clone().dst_mac(Mac::BROADCAST).bytes();
    assert_eq!(fate(&fabric.send_at_once(UPLINK, &frame)), Err(DropReason::Multicast));
    let frame = ask.ttl(1).bytes();
    assert_eq!(fate(&fabric.send_at_once(UPLINK, &frame)), Err(DropReason::TtlExpired));
    assert_eq!(open_count(&fabric, BLUE), 0);
    // Other ports, protocols and fragments are none of ours.
    let not_ours = Err(DropReason::NotForUs);
    assert_eq!(asks(&mut fabric, L4::Udp(5000, 8081)), not_ours);
    assert_eq!(asks(&mut fabric, L4::Echo), not_ours);
    let frame = asked(L4::Udp(5000, 8080)).first_fragment().bytes();
    assert_eq!(fate(&fabric.send_at_once(UPLINK, &frame)), not_ours);
}

#[test]
fn cni_1_a_published_port_is_the_policys_to_open() {
    let deny = Entry::Tenant(tenant(Permit::Deny));
    let mut fabric = open([deny]);
    let ask = L4::Udp(5000, 8080);
    assert_eq!(asks(&mut fabric, ask), DENIED);
    // A rule sees the container's port, and senders of no group.
    let by = |rule: RuleEntry| Entry::Rule(RuleEntry { protocol: Some(17), ..rule });
    let of_node = Some(PortRange { first: 8080, last: 8080 });
    let into = rule(1, Direction::In, Permit::Allow);
    fabric.put([by(RuleEntry { dst_ports: of_node, ..into.clone() })]);
    assert_eq!(asks(&mut fabric, ask), DENIED);
    let of_container = Some(PortRange { first: 80, last: 80 });
    fabric.put([by(RuleEntry { dst_ports: of_container, src_group: Some(WEB), ..into.clone() })]);
    // Also when an address block outside has a group.
    let block = prefix([198, 51, 100, 0], 24);
    fabric.put([Entry::Group(GroupEntry { vrf: BLUE, prefix: block, group: WEB })]);
    assert_eq!(asks(&mut fabric, ask), DENIED);
    let src = Some(Prefix::host(CLIENT));
    fabric.put([by(RuleEntry { dst_ports: of_container, src, ..into })]);
    assert_eq!(asks(&mut fabric, ask), Ok(()));
    assert_eq!(answers(&mut fabric, &A1, L4::Udp(80, 5000)), Ok(()));
    assert_eq!(count(&fabric, 1).packets, 1, "of the question, not of the answer");
    // Taken back, it ends what it let in.
    fabric.write(&[Op::Delete(EntryKey::Rule(RuleId(1), 0))]);
    assert_eq!(answers(&mut fabric, &A1, L4::Udp(80, 5000)), DENIED);
    assert_eq!(asks(&mut fabric, ask), DENIED);
}

#[test]
fn cni_1_a_port_that_is_published_no_more_leads_nowhere() {
    let mut fabric = open([]);
    assert_eq!(asks(&mut fabric, L4::Udp(5000, 8080)), Ok(()));
    assert_eq!(answers(&mut fabric, &A1, L4::Udp(80, 5000)), Ok(()));
    // To another container: the connection was to the first.
    fabric.put(published(8080, &A2, 80));
    assert_eq!(answers(&mut fabric, &A1, L4::Udp(80, 5000)), STRAY);
    assert_eq!(asks(&mut fabric, L4::Udp(5000, 8080)), Ok(()));
    assert_eq!(answers(&mut fabric, &A2, L4::Udp(80, 5000)), Ok(()));
    let node = NodePort { address: NODE, protocol: 17, port: 8080 };
    fabric.write(&[Op::Delete(EntryKey::Published(node))]);
    assert_eq!(answers(&mut fabric, &A2, L4::Udp(80, 5000)), STRAY);
    assert_eq!(asks(&mut fabric, L4::Udp(5000, 8080)), Err(DropReason::NotForUs));
    // To a container that is on another node, or nowhere.
    for nowhere in [A9, Host { ip: [10, 1, 1, 77].into(), ..A1 }] {
        fabric.put(published(8080, &nowhere, 80));
        assert_eq!(asks(&mut fabric, L4::Udp(5000, 8080)), Err(DropReason::UnknownEndpoint));
    }
}

#[test]
fn cni_1_a_connection_from_outside_ends_with_its_container() {
    let mut fabric = open([]);
    assert_eq!(asks(&mut fabric, L4::Udp(5000, 8080)), Ok(()));
    assert_eq!(answers(&mut fabric, &A1, L4::Udp(80, 5000)), Ok(()));
    fabric.write(&[Op::Delete(EntryKey::Route(BLUE, Prefix::host(A1.ip.into())))]);
    assert_eq!(open_count(&fabric, BLUE), 0);
    assert_eq!(answers(&mut fabric, &A1, L4::Udp(80, 5000)), Err(DropReason::NoRoute));
}

#[test]
fn ten_2_tenants_publish_ports_of_the_same_address() {
    let mut fabric = open(published(9090, &R1, 80));
    assert_eq!(A1.ip, R1.ip);
    for (host, port) in [(&A1, 8080), (&R1, 9090)] {
        let frame = asked(L4::Udp(5000, port)).bytes();
        let out = fabric.send_at_once(UPLINK, &frame).out;
        assert_eq!(out[0].0, host.port());
        let answer = answered(host, L4::Udp(80, 5000)).bytes();
        let out = fabric.send_at_once(host.port(), &answer).out;
        assert_eq!((out[0].0, &out[0].1[34..36]), (UPLINK, &port.to_be_bytes()[..]));
    }
    assert_eq!((open_count(&fabric, BLUE), open_count(&fabric, RED)), (1, 1));
    // From a node that forges the client inside the tunnel, nothing is taken for the client's.
    let forged = Packet::new((R1.mac, R1.mac), (CLIENT, R1.ip.into())).l4(L4::Udp(5000, 80));
    let frame = vxlan(&from_remote(), VNI_R.get(), &forged.bytes());
    assert_eq!(fate(&fabric.send_at_once(UPLINK, &frame)), STRAY);
}

#[test]
fn a_tenant_without_connections_has_no_published_ports() {
    let stateless = TenantEntry { tracking: Tracking::Stateless, ..tenant(Permit::Allow) };
    let mut fabric = open([Entry::Tenant(stateless)]);
    assert_eq!(asks(&mut fabric, L4::Udp(5000, 8080)), STRAY);
    fabric.put([Entry::Tenant(tenant(Permit::Allow))]);
    assert_eq!(asks(&mut fabric, L4::Udp(5000, 8080)), Ok(()));
}

#[test]
fn a_tenant_that_gets_connections_answers_who_is_outside() {
    let stateless = TenantEntry { tracking: Tracking::Stateless, ..tenant(Permit::Allow) };
    let mut fabric = open([Entry::Tenant(stateless)]);
    assert_eq!(answers(&mut fabric, &A1, L4::Udp(80, 5000)), Err(DropReason::NoRoute));
    fabric.put([Entry::Tenant(tenant(Permit::Allow))]);
    assert_eq!(asks(&mut fabric, L4::Udp(5000, 8080)), Ok(()));
    assert_eq!(answers(&mut fabric, &A1, L4::Udp(80, 5000)), Ok(()));
}

#[test]
fn a_network_without_a_router_answers_nobody_outside() {
    let mut fabric = open(published(9090, &V1, 80));
    assert_eq!(asks(&mut fabric, L4::Udp(5000, 9090)), Ok(()));
    assert_eq!(answers(&mut fabric, &V1, L4::Udp(80, 5000)), Err(DropReason::NotForUs));
}

#[test]
fn dbg_1_a_trace_shows_where_a_published_port_leads() {
    let mut fabric = open([]);
    let ask = asked(L4::Udp(5000, 8080)).bytes();
    let trace = fabric.engine.trace(UPLINK, &ask);
    let tables: Vec<&str> = trace.steps.iter().map(|step| step.table).collect();
    assert_eq!(tables, ["published", "conntrack", "policy-in", "output"]);
    assert_eq!(trace.steps[0].matched, "vrf=1,nw_dst=10.1.1.1,tp_dst=80");
    let actions = &trace.steps[3].actions[0];
    assert!(actions.ends_with("dec_ttl,nat(dst=10.1.1.1:80),output:1"), "{actions}");
    assert_eq!(fabric.send_at_once(UPLINK, &ask).out.len(), 1);
    let answer = answered(&A1, L4::Udp(80, 5000)).bytes();
    let trace = fabric.engine.trace(A1.port(), &answer);
    assert_eq!(trace.ct_state, "+trk+est+rpl");
    let actions = &trace.steps.last().unwrap().actions[0];
    assert!(actions.ends_with("dec_ttl,nat(src=192.0.2.1:8080),output:100"), "{actions}");
    // Without a connection there is no way out, whatever is assumed.
    let trace = fabric.engine.trace_assuming(A1.port(), &answer, CtAssume::Reply);
    assert_eq!(trace.verdict, flowtable::Verdict::Drop(DropReason::NoRoute));
}
