//! After a start, TCP connections that were there before are taken for what they were.

use flowtable::entry::{Entry, Permit};
use vrouter::EngineConfig;

use super::*;
use crate::fabric::{A1, A2, A9};

fn started(entries: impl IntoIterator<Item = Entry>) -> Fabric {
    let config = EngineConfig { pickup_seconds: 60, ..EngineConfig::default() };
    configured(&config, entries)
}

fn closed() -> Fabric {
    started(open_to(6, 80).into_iter().chain([Entry::Tenant(tenant(Permit::Deny))]))
}

#[test]
fn a_connection_in_the_middle_is_picked_up_from_either_side() {
    for (opener, answerer) in [(A1, A2), (A9, A2), (A1, A9)] {
        let (asks, answers) = (L4::Segment(1000, 80, ACK), L4::Segment(80, 1000, ACK));
        let mut fabric = closed();
        assert_eq!(says(&mut fabric, &opener, &answerer, asks), Ok(()));
        assert_eq!(says(&mut fabric, &answerer, &opener, answers), Ok(()));
        let mut fabric = closed();
        assert_eq!(says(&mut fabric, &answerer, &opener, answers), Ok(()));
        assert_eq!(says(&mut fabric, &opener, &answerer, asks), Ok(()));
        assert_eq!(open_count(&fabric, BLUE), 1);
        // It was the other one's to open: nothing else is let in by it.
        assert_eq!(says(&mut fabric, &answerer, &opener, L4::Segment(81, 1000, ACK)), DENIED);
        fabric.wait(61 * SECOND);
        assert_eq!(says(&mut fabric, &opener, &answerer, asks), Ok(()));
        assert_eq!(says(&mut fabric, &opener, &answerer, L4::Segment(1001, 80, ACK)), STRAY);
    }
}

#[test]
fn what_opens_nothing_does_not_hide_the_segment_that_does() {
    for first in [RST, SYN_ACK, 0] {
        let mut fabric = started([]);
        assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1000, first)), STRAY);
        assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1000, ACK)), Ok(()), "{first:#x}");
    }
}

#[test]
fn a_connection_picked_up_at_its_answerer_s_fin_is_half_closed() {
    let mut fabric = closed();
    assert_eq!(says(&mut fabric, &A2, &A1, L4::Segment(80, 1000, FIN)), Ok(()));
    fabric.wait(119 * SECOND);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, ACK)), Ok(()));
    let connections = fabric.engine.connections(10);
    assert_eq!(connections[0].state.name(), "fin-wait");
}

#[test]
fn picked_up_connections_keep_to_the_limits() {
    let bounded = TenantEntry { connections_max: 2, ..tenant(Permit::Allow) };
    let mut fabric = started([Entry::Tenant(bounded)]);
    let mut picked = |src| says(&mut fabric, &A1, &A2, L4::Segment(src, 80, ACK));
    assert_eq!([1, 2, 3].map(&mut picked), [Ok(()), Ok(()), Err(DropReason::FlowLimit)]);
}

#[test]
fn the_time_begins_with_the_tables_and_not_with_the_ports() {
    let config = EngineConfig { pickup_seconds: 60, ..EngineConfig::default() };
    let mut fabric = Fabric::empty_stateful(&config);
    for port in [A1.port(), A2.port()] {
        fabric.engine.add_port(fabric::container(port)).unwrap();
    }
    fabric.wait(100 * SECOND);
    fabric.put(fabric::tables());
    fabric.wait(SECOND);
    assert_eq!(says(&mut fabric, &A1, &A2, L4::Segment(1000, 80, ACK)), Ok(()));
}
