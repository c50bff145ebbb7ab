//! Two workers on threads of their own: what they forward together, while tables change, is exactly what
//! was sent, and the counters are the sum.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the other tests use the rest")]
mod fabric;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, spawn};

use flowtable::entry::{Direction, Entry, EntryKey, Op, Permit, PortRange, RuleEntry, TenantEntry};
use flowtable::ids::{PortId, RuleId};
use packet_io::QueueId;
use packet_io::memory::MemoryIo;
use vrouter::{Engine, EngineConfig, Worker, WorkerHandle, WriteError};

use fabric::frames::{L4, tagged_as};
use fabric::{A1, A2, BLUE, Host, WIRE, container, uplink};

const FRAMES: u32 = 256;
/// Packets given to a worker at once.
const BATCH: u16 = 32;

/// An engine with two workers that run.
struct Crew {
    engine: Engine,
    handles: Vec<WorkerHandle<MemoryIo>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Worker<MemoryIo>>>,
}

impl Crew {
    fn start(entries: impl IntoIterator<Item = Entry>) -> Self {
        let engine = Engine::new(EngineConfig { workers: 2, ..EngineConfig::default() });
        for port in [uplink(), container(A1.port()), container(A2.port())] {
            engine.add_port(port).unwrap();
        }
        let ops: Vec<_> = fabric::tables().into_iter().chain(entries).map(Op::Put).collect();
        engine.write(&ops).unwrap();
        let io = |_| MemoryIo::new(FRAMES, &[QueueId::TRUNK, WIRE]);
        let made = engine.workers((0..2).map(io).collect()).unwrap();
        let (stop, time) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (mut handles, mut threads) = (Vec::new(), Vec::new());
        for (mut worker, handle) in made {
            let (stop, time) = (Arc::clone(&stop), Arc::clone(&time));
            handles.push(handle);
            threads.push(spawn(move || {
                worker.run(|| time.fetch_add(1000, Ordering::Relaxed), &stop);
                worker
            }));
        }
        Self { engine, handles, stop, threads }
    }

    /// Ends both threads; every buffer is back.
    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let mut worker = thread.join().unwrap();
            assert_eq!(worker.io_mut().free_count(), FRAMES as usize);
        }
    }
}

/// Sends what `from` says to `to` in these flows through one worker; returns how many arrived.
fn say(worker: &WorkerHandle<MemoryIo>, (from, to): (Host, Host), flows: &[(u16, u16)]) -> usize {
    let mut arrived = 0;
    for batch in flows.chunks(BATCH.into()) {
        let frames = batch.iter().map(|(src, dst)| {
            let frame = from.to(&to).l4(L4::Udp(*src, *dst)).bytes();
            tagged_as(0x8100, from.port().get(), &frame)
        });
        let frames: Vec<_> = frames.collect();
        let inject = move |worker: &mut Worker<MemoryIo>| {
            for frame in frames {
                assert!(worker.io_mut().inject(QueueId::TRUNK, &frame), "there is a buffer");
            }
        };
        worker.call(inject).unwrap();
        arrived += drained(worker);
    }
    arrived
}

/// What the worker has sent when it holds no frame any more.
fn drained(worker: &WorkerHandle<MemoryIo>) -> usize {
    let mut arrived = 0;
    for _ in 0..1_000_000 {
        let look = |worker: &mut Worker<MemoryIo>| {
            let sent = worker.io_mut().take_sent(QueueId::TRUNK).len();
            (sent, worker.io_mut().free_count())
        };
        let (sent, free) = worker.call(look).unwrap();
        arrived += sent;
        if free == FRAMES as usize {
            return arrived;
        }
    }
    panic!("the worker keeps frames");
}

fn rule(id: u64, direction: Direction) -> Entry {
    Entry::Rule(RuleEntry {
        priority: 10,
        protocol: Some(17),
        dst_ports: Some(PortRange { first: 53, last: 53 }),
        ..RuleEntry::any(RuleId(id), BLUE, direction, Permit::Allow)
    })
}

#[test]
fn both_ways_of_every_connection_pass_two_workers_and_are_counted_once() {
    const ROUNDS: usize = 20;
    let deny = Entry::Tenant(TenantEntry::new(BLUE, Permit::Deny));
    let crew = Crew::start([deny, rule(1, Direction::Out), rule(2, Direction::In)]);
    let asked: Vec<_> = (0..512_u16).map(|n| (20_000 + n, 53)).collect();
    let answered: Vec<_> = asked.iter().map(|(src, dst)| (*dst, *src)).collect();
    assert_eq!(say(&crew.handles[1], (A2, A1), &answered), 0, "nobody has asked");
    assert_eq!(say(&crew.handles[0], (A1, A2), &asked), asked.len());
    let (ask, answer) = (crew.handles[0].clone(), crew.handles[1].clone());
    let asking = spawn(move || -> usize { (0..ROUNDS).map(|_| say(&ask, (A1, A2), &asked)).sum() });
    let answering =
        spawn(move || -> usize { (0..ROUNDS).map(|_| say(&answer, (A2, A1), &answered)).sum() });
    // Whatever else changes meanwhile: every write is in force on both when it returns.
    let mut writes = 0_u64;
    while !asking.is_finished() || !answering.is_finished() {
        let id = 100 + writes % 2;
        crew.engine.write(&[Op::Put(rule(id, Direction::Out))]).unwrap();
        crew.engine.write(&[Op::Delete(EntryKey::Rule(RuleId(id), 0))]).unwrap();
        writes += 2;
    }
    assert!(writes > 0);
    let all = ROUNDS * 512;
    assert_eq!((asking.join().unwrap(), answering.join().unwrap()), (all, all));
    let ports = crew.engine.ports();
    let of = |port: PortId| ports.iter().find(|stats| stats.spec.id == port).unwrap().clone();
    let (one, two) = (of(A1.port()), of(A2.port()));
    assert_eq!((one.rx.packets, one.tx.packets), ((all + 512) as u64, all as u64));
    assert_eq!((two.rx.packets, two.tx.packets), ((all + 512) as u64, (all + 512) as u64));
    assert_eq!((one.drops, two.drops), (0, 512));
    // What answers are allowed by is the connection.
    let rules = crew.engine.rules();
    let counted = |id| rules.iter().find(|(rule, _)| *rule == RuleId(id)).unwrap().1.packets;
    assert_eq!(counted(1), (all + 512) as u64);
    assert_eq!(counted(2), (all + 512) as u64);
    assert_eq!(crew.engine.connection_counts().open, 512);
    let work = crew.engine.work();
    assert!(work.iter().all(|work| work.packets as usize >= all), "{work:?}");
    crew.stop();
}

#[test]
fn a_change_is_acknowledged_when_no_worker_uses_the_tables_from_before() {
    let crew = Crew::start([]);
    let flow = [(1000, 53)];
    for round in 0..200 {
        for (handle, way) in crew.handles.iter().zip([(A1, A2), (A2, A1)]) {
            assert_eq!(say(handle, way, &flow), 1, "round {round}");
        }
        let deny = |id, direction| {
            let any = RuleEntry::any(RuleId(id), BLUE, direction, Permit::Deny);
            Op::Put(Entry::Rule(RuleEntry { priority: 10, ..any }))
        };
        crew.engine.write(&[deny(1, Direction::Out), deny(2, Direction::In)]).unwrap();
        for (handle, way) in crew.handles.iter().zip([(A1, A2), (A2, A1)]) {
            assert_eq!(say(handle, way, &flow), 0, "round {round}: late");
        }
        let allow = [1, 2].map(|id| Op::Delete(EntryKey::Rule(RuleId(id), 0)));
        crew.engine.write(&allow).unwrap();
    }
    crew.stop();
}

#[test]
fn a_worker_that_hangs_is_named_and_the_other_goes_on() {
    let crew = Crew::start([]);
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let (is_held, holds) = std::sync::mpsc::channel();
    let handle = crew.handles[1].clone();
    let caller = spawn(move || {
        handle.call(move |_| {
            is_held.send(()).unwrap();
            held.recv().ok();
        })
    });
    holds.recv().unwrap();
    let refused = crew.engine.write(&[Op::Put(rule(1, Direction::Out))]).unwrap_err();
    let stalled = WriteError::Stalled { revision: crew.engine.revision(), worker: 1 };
    assert_eq!(refused, stalled);
    assert_eq!(say(&crew.handles[0], (A1, A2), &[(1000, 53)]), 1);
    drop(hold);
    caller.join().unwrap().unwrap();
    crew.engine.write(&[]).unwrap();
    crew.stop();
}

#[test]
fn an_engine_has_as_many_workers_as_it_was_made_for() {
    let engine = Engine::new(EngineConfig { workers: 3, ..EngineConfig::default() });
    let io = || MemoryIo::new(1, &[QueueId::TRUNK]);
    assert!(engine.workers(vec![io()]).is_none());
    assert!(engine.slow_path().is_none());
    assert_eq!(engine.workers(vec![io(), io(), io()]).unwrap().len(), 3);
    assert_eq!(engine.work().len(), 3);
    assert!(engine.slow_path().is_some());
}
