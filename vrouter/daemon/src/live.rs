//! Traces of real packets for one client at a time: a worker walks the tables a second time for
//! each packet it shows, which is not to be multiplied by whoever asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use datapath_api::v1;
use flowtable::text::FlowSpec;
use tokio::sync::mpsc::Sender;
use tonic::Status;
use vrouter::{LiveTrace, Worker};

use crate::crew::{Crew, Silent};
use crate::explain;

/// Packets shown by workers that wait here; while there is no room, they show none.
const SHOWN: usize = 256;
/// How often they are taken on to the client.
const TAKE: Duration = Duration::from_millis(20);

/// Where a client gets its traces from.
type Client = Sender<Result<v1::TraceReply, Status>>;

/// When a client has had enough.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Packets; 0 is no limit.
    pub(crate) limit: u32,
    /// Seconds; 0 is no limit.
    pub(crate) seconds: u32,
}

/// Who may watch. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seat {
    taken: Arc<AtomicBool>,
}

impl Seat {
    /// The seat, for as long as the result lives; `None`: somebody has it.
    pub(crate) fn take(&self, crew: Crew) -> Option<Watcher> {
        let free = !self.taken.swap(true, Ordering::Acquire);
        let queue = Arc::new(ArrayQueue::new(SHOWN));
        free.then(|| Watcher { crew, seat: self.clone(), queue })
    }
}

/// A client on the seat.
#[derive(Debug)]
pub(crate) struct Watcher {
    crew: Crew,
    seat: Seat,
    queue: Arc<ArrayQueue<LiveTrace>>,
}

impl Watcher {
    /// From its return on workers show packets; together they may show more than `limit`.
    pub(crate) fn start(&self, spec: FlowSpec, limit: u32) -> Result<(), Silent> {
        let count = if limit == 0 { u32::MAX } else { limit };
        let queue = Arc::clone(&self.queue);
        let watch = move |worker: &mut Worker<_>| {
            worker.watch(spec.clone(), count, Arc::clone(&queue));
        };
        self.crew.ask(watch).map(drop)
    }

    /// Takes packets on until the client has enough or has left. Blocks.
    pub(crate) fn run(self, bounds: Bounds, client: &Client) {
        let start = Instant::now();
        let (mut sent, mut waiting) = (0, None);
        loop {
            sent += self.pass_on(client, &mut waiting);
            let enough = bounds.limit > 0 && sent >= bounds.limit;
            let late = bounds.seconds > 0 && start.elapsed().as_secs() >= bounds.seconds.into();
            if enough || late || client.is_closed() {
                return;
            }
            thread::park_timeout(TAKE);
        }
    }

    /// Sends what there is and says how many that were. What a slow client has no room for waits.
    fn pass_on(&self, client: &Client, waiting: &mut Option<v1::TraceReply>) -> u32 {
        let mut sent = 0;
        while let Some(reply) = waiting.take().or_else(|| self.queue.pop().map(explain::live)) {
            if let Err(refused) = client.try_send(Ok(reply)) {
                // Only replies are sent, never a status.
                *waiting = refused.into_inner().ok();
                break;
            }
            sent += 1;
        }
        sent
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // One that has ended shows nothing either, and one that hangs stops when it goes on.
        self.crew.ask(Worker::unwatch).ok();
        self.seat.taken.store(false, Ordering::Release);
    }
}
