//! Two workers: what a port or a tenant may do holds for all of its packets, whichever worker meets them.

use flowtable::entry::Op;
use packet_io::QueueId;
use packet_io::memory::{MemoryIo, Sink, Tally};

use vrouter::Engine;

use super::meters::{id, meter, qos, sized};
use super::*;
use crate::fabric::frames::{Packet, tagged_as};
use crate::fabric::{A1, A2, A9, WIRE, container, uplink};

fn two(config: &EngineConfig, entries: impl IntoIterator<Item = Entry>) -> Fabric {
    configured(&EngineConfig { workers: 2, ..config.clone() }, entries)
}

/// Packets of A1 to A2 that leave in two seconds, of as many Mbit/s, one on each worker in turn.
fn achieved(fabric: &mut Fabric, mbps: u64) -> u64 {
    const LEN: usize = 512;
    let frame = sized(&A1, &A2, LEN).bytes();
    let frame = tagged_as(0x8100, A1.port().get(), &frame);
    let Fabric { worker, second: Some(second), now_ns, .. } = fabric else { panic!("one worker") };
    let mut run = |ns: u64| {
        for at in 0..ns * mbps / 1000 / (LEN as u64 * 8) {
            *now_ns += LEN as u64 * 8 * 1000 / mbps;
            let meets = if at % 2 == 0 { &mut *worker } else { &mut *second };
            // While many wait for tokens there is no buffer, as on a full ring.
            meets.io_mut().inject(QueueId::TRUNK, &frame);
            worker.poll(*now_ns);
            second.poll(*now_ns);
        }
        let sent = [&mut *worker, &mut *second]
            .map(|worker| worker.io_mut().tally(QueueId::TRUNK).map_or(0, |tally| tally.packets));
        sent.iter().sum::<u64>()
    };
    let before = run(SECOND / 10);
    run(2 * SECOND) - before
}

fn count_only(fabric: &mut Fabric) {
    for worker in [&mut fabric.worker, fabric.second.as_mut().unwrap()] {
        worker.io_mut().set_sink(QueueId::TRUNK, Sink::Tally(Tally::default()));
    }
}

#[test]
fn qos_1_a_rate_holds_within_two_percent_for_a_port_that_meets_two_workers() {
    for meter_queue_ms in [0, 50] {
        let config = EngineConfig { meter_queue_ms, ..EngineConfig::default() };
        for mbps in [6, 60] {
            let limits = [meter(1, mbps * 1_000_000), qos(A1.port(), &[1], &[])];
            let mut fabric = two(&config, limits);
            count_only(&mut fabric);
            let passed = achieved(&mut fabric, 2 * mbps) * 512 * 8 / 2;
            let wanted = mbps * 1_000_000;
            assert!(passed.abs_diff(wanted) * 50 < wanted, "{mbps} Mbit/s: {passed} bit/s");
            let seen = fabric.engine.meter(id(1)).unwrap();
            assert!(seen.green.packets > 0, "{seen:?}");
        }
    }
}

#[test]
fn one_packet_in_so_many_is_sampled_of_a_port_that_meets_two_workers() {
    const RATE: u32 = 50;
    let config = EngineConfig { sample_rate: RATE, ..EngineConfig::default() };
    let mut fabric = two(&config, []);
    count_only(&mut fabric);
    let (mut samples, mut pool) = (0_u32, 0);
    // One sample waits at most: they are taken as they come.
    for _ in 0..40 {
        achieved(&mut fabric, 2);
        while let Some(sample) = fabric.engine.next_sample() {
            assert!(sample.pool > pool, "{} after {pool}", sample.pool);
            pool = sample.pool;
            samples += 1;
        }
    }
    let lost = fabric.engine.samples_lost() as u32;
    let ports = fabric.engine.ports();
    let received = ports.iter().find(|port| port.spec.id == A1.port()).unwrap().rx.packets;
    let expected = f64::from(received as u32) / f64::from(RATE);
    // Skips uniform in [1, 2N-1]: the variance of a count is below a third of it, for each worker.
    let error = (f64::from(samples + lost) - expected).abs();
    assert!(error < 4.5 * (expected / 3.0).sqrt() + 2.0, "{samples} and {lost} of {expected}");
    // The last one is of the last round.
    assert!(pool <= received && pool + received / 40 > received, "{pool} of {received}");
}

#[test]
fn pol_3_a_connection_whose_ways_meet_different_workers_is_one() {
    let deny = Entry::Tenant(tenant(Permit::Deny));
    let mut fabric = two(&EngineConfig::default(), open_to(6, 80).into_iter().chain([deny]));
    // A1 is on an odd port, A2 and the uplink are on even ones.
    for (peer, client) in [(A2, 40_000), (A9, 40_001)] {
        let ask = |flags| A1.to(&peer).l4(L4::Segment(client, 80, flags));
        let answer = |flags| peer.to(&A1).l4(L4::Segment(80, client, flags));
        let mut says = |from: &Host, packet: &Packet| fate(&send(&mut fabric, from, packet));
        assert_eq!(says(&peer, &answer(ACK)), Err(DropReason::PolicyDeny));
        assert_eq!(says(&A1, &ask(SYN)), Ok(()));
        assert_eq!(says(&peer, &answer(SYN_ACK)), Ok(()));
        for _ in 0..3 {
            assert_eq!(says(&A1, &ask(ACK)), Ok(()));
            assert_eq!(says(&peer, &answer(ACK)), Ok(()));
        }
        // Who closes does so for both.
        assert_eq!(says(&peer, &answer(RST)), Ok(()));
        fabric.wait(30 * SECOND);
        let mut says = |from: &Host, packet: &Packet| fate(&send(&mut fabric, from, packet));
        assert_eq!(says(&A1, &ask(ACK)), STRAY);
        assert_eq!(says(&peer, &answer(ACK)), Err(DropReason::PolicyDeny));
    }
}

#[test]
fn new_flows_of_a_port_share_one_budget() {
    let config = EngineConfig { port_new_flows: 100, ..EngineConfig::default() };
    let mut fabric = two(&config, []);
    let mut passed = 0;
    for number in 0..400_u16 {
        let frame = A1.to(&A2).l4(L4::Udp(number, 53)).bytes();
        let frame = tagged_as(0x8100, A1.port().get(), &frame);
        let Fabric { worker, second: Some(second), .. } = &mut fabric else { panic!("one worker") };
        let meets = if number % 2 == 0 { worker } else { second };
        assert!(meets.io_mut().inject(QueueId::TRUNK, &frame), "there is a buffer");
        passed += fabric.settle_after(0).out.len();
    }
    assert_eq!(passed, 100);
}

#[test]
fn a_gateway_answers_through_the_worker_that_was_asked() {
    let mut fabric = two(&EngineConfig::default(), []);
    for host in [A1, A2] {
        let delivered = fabric.send(host.port(), &host.asks(A9.ip));
        assert_eq!(delivered.out, [(host.port(), host.is_told(A9.ip, A9.mac))]);
    }
}

#[test]
fn a_worker_without_the_uplinks_queue_sends_there_over_its_trunk() {
    let engine = Engine::new(EngineConfig { workers: 2, ..EngineConfig::default() });
    for port in [uplink(), container(A1.port())] {
        engine.add_port(port).unwrap();
    }
    engine.write(&fabric::tables().into_iter().map(Op::Put).collect::<Vec<_>>()).unwrap();
    let with_wire = MemoryIo::new(4, &[QueueId::TRUNK, WIRE]);
    let workers = engine.workers(vec![with_wire, MemoryIo::new(4, &[QueueId::TRUNK])]).unwrap();
    let mut workers = workers.into_iter().map(|(worker, _handle)| worker);
    let (mut first, mut second) = (workers.next().unwrap(), workers.next().unwrap());
    let frame = tagged_as(0x8100, A1.port().get(), &A1.to(&A9).bytes());
    // Decided by the tables, then by the cache.
    for time in 1..4_u64 {
        for worker in [&mut first, &mut second] {
            assert!(worker.io_mut().inject(QueueId::TRUNK, &frame), "there is a buffer");
            worker.poll(time * SECOND);
        }
        let direct = first.io_mut().take_sent(WIRE);
        let over = second.io_mut().take_sent(QueueId::TRUNK);
        let tagged: Vec<_> =
            direct.iter().map(|frame| tagged_as(0x8100, UPLINK.get(), frame)).collect();
        assert_eq!((direct.len(), over), (1, tagged));
        let sent = engine.ports().into_iter().find(|p| p.spec.id == UPLINK).unwrap().tx;
        assert_eq!(sent.packets, 2 * time);
    }
    // Whose queue is full does not go another way.
    first.io_mut().set_room(WIRE, 0);
    assert!(first.io_mut().inject(QueueId::TRUNK, &frame), "there is a buffer");
    first.poll(4 * SECOND);
    assert!(first.io_mut().take_sent(QueueId::TRUNK).is_empty());
    let full =
        engine.drops().into_iter().find(|(reason, _)| *reason == DropReason::TxFull).unwrap();
    assert_eq!(full.1.packets, 1);
    // Nor does what the trunk does not take: with 50 bytes of VXLAN around it, 1,614 are the most.
    for (bytes, passes) in [(1614, 1), (1615, 0)] {
        let inner = Packet { payload: vec![7; bytes - 50 - 42], ..A1.to(&A9) }.bytes();
        let frame = tagged_as(0x8100, A1.port().get(), &inner);
        assert!(second.io_mut().inject(QueueId::TRUNK, &frame), "there is a buffer");
        second.poll(5 * SECOND);
        assert_eq!(second.io_mut().take_sent(QueueId::TRUNK).len(), passes, "{bytes} bytes");
        assert_eq!(second.io_mut().free_count(), 4);
    }
    let big = engine.drops().into_iter().find(|(reason, _)| *reason == DropReason::TooBig).unwrap();
    assert_eq!(big.1.packets, 1);
}
