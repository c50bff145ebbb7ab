//! Writers, a worker on its thread, and probes at the same time.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[expect(dead_code, reason = "the other tests use the rest")]
mod fabric;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use flowtable::entry::{Direction, Entry, EntryKey, Op, Permit, PortRange, RuleEntry};
use flowtable::ids::RuleId;
use packet_io::memory::MemoryIo;
use packet_io::{Frame, PacketIo, QueueId, Wake};
use vrouter::{Engine, EngineConfig, Worker, WorkerGone, WorkerHandle, WriteError};

use fabric::frames::{L4, tagged_as};
use fabric::{A1, A2, BLUE, container, uplink};

/// Longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(20);
const FRAMES: u32 = 64;

/// Steps that a test holds back or counts.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The worker stops at its next receive while this is set.
    closed: bool,
    /// [`PacketIo::wait`] returns when this is set, and never before.
    rung: bool,
    worker: Place,
    polls: u64,
    waits: u64,
}

/// Where the worker is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Working,
    /// At the closed gate.
    Held,
    /// In [`PacketIo::wait`].
    Waiting,
}

impl State {
    fn is_held(&self) -> bool {
        self.worker == Place::Held
    }

    fn is_waiting(&self) -> bool {
        self.worker == Place::Waiting && !self.rung
    }
}

impl Gate {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    /// Waits until `done`, within the limit, and looks at the state then.
    fn until<R>(&self, what: &str, done: impl Fn(&State) -> bool, look: impl Fn(&State) -> R) -> R {
        let state = self.state.lock().unwrap();
        let (state, late) =
            self.changed.wait_timeout_while(state, LIMIT, |state| !done(state)).unwrap();
        assert!(!late.timed_out(), "{what}: {state:?}");
        look(&state)
    }
}

impl Wake for Gate {
    fn wake(&self) {
        self.change(|state| state.rung = true);
    }
}

/// Memory ports that a test can hold, and whose wait ends by a wake-up only.
struct GatedIo {
    memory: MemoryIo,
    gate: Arc<Gate>,
}

impl PacketIo for GatedIo {
    fn queues(&self) -> &[QueueId] {
        self.memory.queues()
    }

    fn rx(&mut self, queue: QueueId, frames: &mut Vec<Frame>, max: usize) -> usize {
        if queue == QueueId::TRUNK && self.gate.state.lock().unwrap().closed {
            self.gate.change(|state| state.worker = Place::Held);
            self.gate.until("the gate opens", |state| !state.closed, |_| ());
            self.gate.change(|state| state.worker = Place::Working);
        }
        self.memory.rx(queue, frames, max)
    }

    fn tx(&mut self, queue: QueueId, frame: Frame) -> Result<(), Frame> {
        self.memory.tx(queue, frame)
    }

    fn flush(&mut self) {
        self.gate.change(|state| state.polls += 1);
    }

    fn alloc(&mut self) -> Option<Frame> {
        self.memory.alloc()
    }

    fn free(&mut self, frame: Frame) {
        self.memory.free(frame);
    }

    fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        self.memory.bytes(frame)
    }

    fn bytes_mut<'a>(&'a mut self, frame: &'a mut Frame) -> &'a mut [u8] {
        self.memory.bytes_mut(frame)
    }

    fn wait(&mut self, _: Duration) {
        self.gate.change(|s| (s.worker, s.waits) = (Place::Waiting, s.waits + 1));
        self.gate.until("a wake-up", |state| state.rung, |_| ());
        self.gate.change(|s| (s.worker, s.rung) = (Place::Working, false));
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::<Gate>::clone(&self.gate)
    }
}

/// An engine whose worker runs on a thread of its own.
struct Running {
    engine: Engine,
    handle: WorkerHandle<GatedIo>,
    gate: Arc<Gate>,
    stop: Arc<AtomicBool>,
    ended: Receiver<()>,
    thread: JoinHandle<Worker<GatedIo>>,
}

impl Running {
    fn start(rule_slots: usize) -> Self {
        let engine = Engine::new(EngineConfig { rule_slots, ..EngineConfig::default() });
        for port in [uplink(), container(A1.port()), container(A2.port())] {
            engine.add_port(port).unwrap();
        }
        let entries: Vec<_> = fabric::tables().into_iter().map(Op::Put).collect();
        engine.write(&entries).unwrap();
        let gate = Arc::<Gate>::default();
        let memory = MemoryIo::new(FRAMES, &[QueueId::TRUNK, fabric::WIRE]);
        let (mut worker, handle) = engine.worker(GatedIo { memory, gate: Arc::clone(&gate) });
        let stop = Arc::<AtomicBool>::default();
        let (stopped, clock) = (Arc::clone(&stop), AtomicU64::new(0));
        let (end, ended): (Sender<()>, _) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            worker.run(|| clock.fetch_add(1000, Ordering::Relaxed), &stopped);
            end.send(()).unwrap();
            worker
        });
        let running = Self { engine, handle, gate, stop, ended, thread };
        running.gate.until("the worker runs", |state| state.polls > 0, |_| ());
        running
    }

    /// Ends the thread and gives the worker back.
    fn stop(self) -> Worker<GatedIo> {
        self.stop.store(true, Ordering::Relaxed);
        self.gate.wake();
        self.ended.recv_timeout(LIMIT).expect("the worker stops when it is told and woken");
        self.thread.join().unwrap()
    }

    fn prober(&self) -> Prober {
        Prober { handle: self.handle.clone(), gate: Arc::clone(&self.gate) }
    }

    fn probe(&self, ports: Vec<u16>) -> Vec<u16> {
        self.prober().probe(ports)
    }
}

/// Sends packets through the worker, from any thread.
struct Prober {
    handle: WorkerHandle<GatedIo>,
    gate: Arc<Gate>,
}

impl Prober {
    /// Sends UDP packets from A1 to A2 in one burst, and says which came out: by source port.
    fn probe(&self, ports: Vec<u16>) -> Vec<u16> {
        let inject = move |worker: &mut Worker<GatedIo>| {
            let io = worker.io_mut();
            for port in ports {
                let frame = A1.to(&A2).l4(L4::Udp(port, 1)).bytes();
                let frame = tagged_as(0x8100, A1.port().get(), &frame);
                assert!(io.memory.inject(QueueId::TRUNK, &frame));
            }
            io.gate.state.lock().unwrap().polls
        };
        let polls = self.handle.call(inject).unwrap();
        self.gate.until("the poll after it", |state| state.polls > polls, |_| ());
        let take = |worker: &mut Worker<GatedIo>| worker.io_mut().memory.take_sent(QueueId::TRUNK);
        let sent = self.handle.call(take).unwrap();
        sent.iter().map(|frame| u16::from_be_bytes([frame[38], frame[39]])).collect()
    }
}

/// A rule about UDP from one source port.
fn rule(id: u64, port: u16, permit: Permit) -> Op {
    Op::Put(Entry::Rule(RuleEntry {
        protocol: Some(17),
        src_ports: Some(PortRange { first: port, last: port }),
        ..RuleEntry::any(RuleId(id), BLUE, Direction::In, permit)
    }))
}

#[test]
fn a_write_returns_only_when_the_worker_uses_it() {
    let node = Running::start(8);
    node.gate.change(|state| state.closed = true);
    node.gate.wake();
    node.gate.until("the worker is in the middle of a burst", State::is_held, |_| ());
    let before = node.engine.revision();
    let (engine, (end, ended)) = (node.engine.clone(), mpsc::channel());
    let writer = std::thread::spawn(move || {
        let revision = engine.write(&[rule(1, 1, Permit::Deny)]);
        end.send(()).unwrap();
        revision
    });
    // Published at once, and not acknowledged while the worker has the tables before.
    while node.engine.revision() == before {
        std::thread::yield_now();
    }
    let early = ended.recv_timeout(Duration::from_millis(50));
    assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout), "the write came back too early");
    node.gate.change(|state| state.closed = false);
    ended.recv_timeout(LIMIT).unwrap();
    assert_eq!(writer.join().unwrap(), Ok(before + 1));
    assert_eq!(node.probe(vec![1, 2]), [2]);
    node.stop();
}

#[test]
fn every_packet_after_a_write_obeys_it() {
    let node = Running::start(8);
    for _ in 0..200 {
        node.engine.write(&[rule(1, 1, Permit::Deny)]).unwrap();
        assert_eq!(node.probe(vec![1]), []);
        node.engine.write(&[rule(1, 1, Permit::Allow)]).unwrap();
        assert_eq!(node.probe(vec![1]), [1]);
    }
    let mut worker = node.stop();
    assert_eq!(worker.io_mut().memory.free_count(), FRAMES as usize);
}

/// Each writer flips two rules in one batch: one of its ports is open and the other is shut. A
/// probe of both, in one burst, never finds them alike.
#[test]
fn no_burst_sees_half_a_batch() {
    const WRITERS: u16 = 3;
    let node = Running::start(64);
    let flip = |writer: u16, open: u16| {
        [1, 2].map(|side| {
            let permit = if side == open { Permit::Allow } else { Permit::Deny };
            rule(u64::from(10 * writer + side), 10 * writer + side, permit)
        })
    };
    for writer in 0..WRITERS {
        node.engine.write(&flip(writer, 1)).unwrap();
    }
    let writing = Arc::new(AtomicBool::new(true));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (engine, writing) = (node.engine.clone(), Arc::clone(&writing));
            std::thread::spawn(move || {
                while writing.load(Ordering::Relaxed) {
                    engine.write(&flip(writer, 2)).unwrap();
                    engine.write(&flip(writer, 1)).unwrap();
                }
            })
        })
        .collect();
    let prober = node.prober();
    let probing = std::thread::spawn(move || {
        // How often each writer was met with either of its ports open.
        let mut met = [[0_u32; 2]; WRITERS as usize];
        let mut probes_left = 50_000_u32;
        while probes_left > 0 && met.as_flattened().iter().any(|count| *count < 20) {
            probes_left -= 1;
            let ports = (0..WRITERS).flat_map(|writer| [10 * writer + 1, 10 * writer + 2]);
            let passed = prober.probe(ports.collect());
            let writers: Vec<_> = passed.iter().map(|port| port / 10).collect();
            assert_eq!(writers, [0, 1, 2], "one port of each writer is open: {passed:?}");
            for port in passed {
                met[usize::from(port / 10)][usize::from(port % 10 - 1)] += 1;
            }
        }
        met
    });
    let met = probing.join();
    writing.store(false, Ordering::Relaxed);
    for writer in writers {
        writer.join().unwrap();
    }
    let met = met.expect("every burst sees whole batches");
    assert!(
        met.as_flattened().iter().all(|count| *count >= 20),
        "not every state was met: {met:?}"
    );
    let mut worker = node.stop();
    assert_eq!(worker.io_mut().memory.free_count(), FRAMES as usize);
}

#[test]
fn an_idle_worker_waits_and_a_wake_up_costs_one_poll() {
    let node = Running::start(8);
    let polls = |state: &State| (state.polls, state.waits);
    let (idle, waits) = node.gate.until("the worker waits", State::is_waiting, polls);
    assert!(idle < 1000, "{idle} polls before the first wait");
    for woken in 1..=10 {
        node.gate.wake();
        let next = |state: &State| state.is_waiting() && state.waits >= waits + woken;
        let after = node.gate.until("the worker waits again", next, polls);
        assert_eq!(after, (idle + woken, waits + woken));
    }
    // Traffic makes it look for more before it waits again.
    node.probe(vec![1]);
    let (busy, _) = node.gate.until("the worker waits after traffic", State::is_waiting, polls);
    assert!(busy > idle + 100, "{} polls after a packet", busy - idle);
    node.stop();
}

#[test]
fn a_waiting_worker_is_woken_by_writes_calls_and_answers() {
    let node = Running::start(8);
    let waits = || node.gate.until("the worker waits", State::is_waiting, |state| state.polls);
    for round in 1..=20 {
        waits();
        node.engine.write(&[rule(round, 1, Permit::Allow)]).unwrap();
        node.engine.write(&[Op::Delete(EntryKey::Rule(RuleId(round), 0))]).unwrap();
        waits();
        let (handle, (end, ended)) = (node.handle.clone(), mpsc::channel());
        std::thread::spawn(move || end.send(handle.call(|worker| worker.flows().len())).unwrap());
        assert_eq!(ended.recv_timeout(LIMIT).expect("a call wakes the worker"), Ok(0));
    }
    let request = tagged_as(0x8100, A1.port().get(), &A1.asks(A2.ip));
    let inject = move |w: &mut Worker<GatedIo>| w.io_mut().memory.inject(QueueId::TRUNK, &request);
    assert_eq!(node.handle.call(inject), Ok(true));
    let polls = waits();
    node.engine.slow_path().unwrap().poll();
    node.gate.until("an answer wakes the worker", |state| state.polls > polls, |_| ());
    let ports = node.engine.ports();
    assert_eq!(ports.iter().find(|p| p.spec.id == A1.port()).unwrap().tx.packets, 1);
    node.stop();
}

#[test]
fn the_slow_path_answers_until_it_is_stopped() {
    let node = Running::start(8);
    let (slow, stop) = (node.engine.slow_path().unwrap(), Arc::<AtomicBool>::default());
    let (stopped, (end, ended)) = (Arc::clone(&stop), mpsc::channel());
    std::thread::spawn(move || {
        slow.run(&stopped);
        end.send(()).unwrap();
    });
    let sent = |node: &Running| {
        let ports = node.engine.ports();
        ports.iter().find(|p| p.spec.id == A1.port()).unwrap().tx.packets
    };
    for asked in 1..=10 {
        let request = tagged_as(0x8100, A1.port().get(), &A1.asks(A2.ip));
        let inject =
            move |w: &mut Worker<GatedIo>| w.io_mut().memory.inject(QueueId::TRUNK, &request);
        node.handle.call(inject).unwrap();
        node.gate.until("the answer", |_| sent(&node) == asked, |_| ());
    }
    stop.store(true, Ordering::Relaxed);
    ended.recv_timeout(LIMIT).expect("the slow path stops");
    node.stop();
}

#[test]
fn a_call_to_a_worker_that_ended_is_refused() {
    let node = Running::start(8);
    let handle = node.handle.clone();
    assert_eq!(handle.call(|_| 7), Ok(7));
    let engine = node.engine.clone();
    let gate = Arc::clone(&node.gate);
    let worker = node.stop();
    // One call is waiting when the worker goes, the other one comes later.
    let (waiting, (end, ended)) = (handle.clone(), mpsc::channel());
    gate.change(|state| state.rung = false);
    std::thread::spawn(move || end.send(waiting.call(|_| 7)).unwrap());
    gate.until("the call waits", |state| state.rung, |_| ());
    drop(worker);
    assert_eq!(ended.recv_timeout(LIMIT).expect("the caller is told"), Err(WorkerGone));
    assert_eq!(handle.call(|_| 7), Err(WorkerGone));
    engine.write(&[rule(1, 1, Permit::Deny)]).expect("nobody is waited for");
}

/// A worker that hangs holds up its writers for two seconds, and no slot of a rule that it may
/// still use gets another rule.
#[test]
fn a_stalled_worker_is_reported_and_keeps_its_counters() {
    let node = Running::start(1);
    node.engine.write(&[rule(1, 1, Permit::Allow)]).unwrap();
    assert_eq!(node.probe(vec![1]), [1]);
    node.gate.change(|state| state.closed = true);
    node.gate.wake();
    node.gate.until("the worker hangs", State::is_held, |_| ());
    let revision = node.engine.revision() + 1;
    let gone = node.engine.write(&[Op::Delete(EntryKey::Rule(RuleId(1), 0))]);
    assert_eq!(gone, Err(WriteError::Stalled { revision, worker: 0 }));
    let full = WriteError::TooManyRules { needed: 1, room: 0 };
    assert_eq!(node.engine.write(&[rule(2, 1, Permit::Deny)]), Err(full));
    node.gate.change(|state| state.closed = false);
    node.engine.write(&[]).unwrap();
    node.engine.write(&[rule(2, 1, Permit::Deny)]).unwrap();
    assert_eq!(node.engine.rules(), [(RuleId(2), vrouter::Count::default())]);
    assert_eq!(node.probe(vec![1]), []);
    node.stop();
}
