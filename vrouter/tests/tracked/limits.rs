//! Bounds on connections and on new ones: who is above them is refused and counted, and nobody else
//! notices.

use flowtable::DropReason;
use flowtable::entry::{Entry, Permit};
use vrouter::EngineConfig;

use super::*;
use crate::fabric::{A1, A2, A9, Counter, R1, R2, RED};

const LIMIT: Fate = Err(DropReason::FlowLimit);

/// How many of so many SYNs from a host, each of a flow of its own, arrive.
fn flood(fabric: &mut Fabric, from: &Host, to: &Host, count: u16) -> usize {
    let arrives = |port: &u16| {
        let fate = says(fabric, from, to, L4::Segment(10_000 + port, 80, SYN));
        assert!([Ok(()), LIMIT].contains(&fate), "{fate:?}");
        fate.is_ok()
    };
    (0..count).filter(arrives).count()
}

#[test]
fn qos_4_new_flows_of_a_port_are_bounded_by_the_second() {
    let config = EngineConfig { port_new_flows: 100, ..EngineConfig::default() };
    let mut fabric = configured(&config, []);
    connect(&mut fabric, (&A1, 1), (&A2, 80));
    assert_eq!(flood(&mut fabric, &A1, &A2, 1000), 99);
    // What is established goes on, and others have their own share.
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1, 80, ACK)), Ok(()));
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1, ACK)), Ok(()));
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Udp(5, 6)), Ok(()));
    fabric.wait(SECOND / 2);
    assert_eq!(flood(&mut fabric, &A2, &A1, 1000), 100);
    let mut again = |from: u16| says(&mut fabric, &A1, &A2, L4::Udp(from, 6));
    assert_eq!((0..100).filter(|from| again(*from).is_ok()).count(), 50);
}

#[test]
fn qos_4_new_flows_of_a_tenant_are_bounded_over_its_ports() {
    let bounded = TenantEntry { new_flows_max: 40, ..tenant(Permit::Allow) };
    let mut fabric = configured(&EngineConfig::default(), [Entry::Tenant(bounded)]);
    let all = flood(&mut fabric, &A1, &A2, 30) + flood(&mut fabric, &A2, &A1, 30);
    assert_eq!(all, 40);
    assert_eq!(flood(&mut fabric, &A9, &A2, 5), 0);
    assert_eq!(flood(&mut fabric, &R1, &R2, 100), 100, "another tenant");
}

#[test]
fn qos_4_a_flood_of_new_flows_leaves_the_flows_of_other_tenants_alone() {
    let config = EngineConfig {
        connections: 4096,
        tenant_connections: 2048,
        port_connections: 1024,
        port_new_flows: 0,
        tenant_new_flows: 0,
        ..EngineConfig::default()
    };
    let mut fabric = configured(&config, []);
    let ports = 2000..2100_u16;
    for src in ports.clone() {
        connect(&mut fabric, (&R1, src), (&R2, 80));
    }
    for round in 0..40_u16 {
        for flow in 0..200_u16 {
            let l4 = L4::Segment(flow + round * 200, 80, SYN);
            let fate = says(&mut fabric, &A1, &A2, l4);
            assert!([Ok(()), LIMIT].contains(&fate), "{fate:?}");
        }
        for src in ports.clone().step_by(9) {
            assert_eq!(says(&mut fabric, &R1, &R2, L4::Segment(src, 80, ACK)), Ok(()));
            assert_eq!(says(&mut fabric, &R2, &R1, L4::Segment(80, src, ACK)), Ok(()));
        }
        assert_eq!(says(&mut fabric, &R1, &R2, L4::Udp(round, 53)), Ok(()), "new ones, too");
        fabric.wait(SECOND / 4);
    }
    assert!(open_count(&fabric, BLUE) <= 1024);
    assert_eq!(open_count(&fabric, RED), 100 + 40);
}

#[test]
fn qos_4_half_open_connections_go_first_and_established_ones_stay() {
    let bounded = TenantEntry { connections_max: 1024, ..tenant(Permit::Allow) };
    let mut fabric = configured(&EngineConfig::default(), [Entry::Tenant(bounded)]);
    for src in 0..512 {
        connect(&mut fabric, (&A1, src), (&A2, 80));
    }
    flood(&mut fabric, &A1, &A2, 512);
    assert_eq!(open_count(&fabric, BLUE), 1024);
    let before = fabric.engine.connection_counts();
    assert_eq!((before.half_open, before.evicted), (512, 0));
    // In a table of many shards the oldest of a few is found most of the time.
    let opened = (0..100).filter(|src| says(&mut fabric, &A2, &A1, L4::Udp(*src, 53)).is_ok());
    let opened = opened.count() as u64;
    let after = fabric.engine.connection_counts();
    assert!(opened > 95, "{opened}");
    assert_eq!((after.evicted, after.refused_tenant), (opened, 100 - opened));
    assert_eq!(open_count(&fabric, BLUE), 1024);
    fabric.wait(SECOND);
    for src in 0..512 {
        assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, src, ACK)), Ok(()), "{src}");
    }
}

#[test]
fn qos_4_a_tenant_full_of_established_connections_gets_no_more() {
    let bounded = TenantEntry { connections_max: 10, ..tenant(Permit::Allow) };
    let mut fabric = configured(&EngineConfig::default(), [Entry::Tenant(bounded)]);
    for src in 0..10 {
        connect(&mut fabric, (&A1, src), (&A2, 80));
    }
    let packet = A9.to(&A1).l4(L4::Udp(1, 2));
    let (port, frame) = sent(&A9, &packet);
    let delivered = fabric.send_at_once(port, &frame);
    let dropped = delivered.counters[&Counter::Drop(DropReason::FlowLimit)];
    assert_eq!(dropped, Count { packets: 1, bytes: frame.len() as u64 });
    assert_eq!(delivered.counters[&Counter::PortDrops(port)].packets, 1);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(0, 80, RST)), Ok(()));
    fabric.wait(10 * SECOND);
    fabric.wait(SECOND);
    assert_eq!(fate(&send(&mut fabric, &A9, &packet)), Ok(()), "one has ended");
}
