//! Calls into a worker's thread: attach a queue, list the flow cache. Drained once a loop.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use packet_io::{PacketIo, Wake};

use crate::worker::Worker;

/// Calls waiting at most; more wait in their callers.
const MAILBOX_CALLS: usize = 16;

/// A function that runs on the worker.
pub(crate) type Call<I> = Box<dyn FnOnce(&mut Worker<I>) + Send>;

/// The worker's thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker has ended")]
pub struct WorkerGone;

/// A worker did not answer who would not wait for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// It has ended.
    #[error("it has ended")]
    Gone,
    /// It does not look at its calls, or takes its time.
    #[error("no answer within {} s: it hangs, or gets no CPU", .0.as_secs())]
    Late(Duration),
}

/// Runs functions on a worker's thread, between bursts.
pub struct WorkerHandle<I: PacketIo> {
    // Of the standard library: its channel ends waiting calls when the worker goes.
    calls: SyncSender<Call<I>>,
    waker: Arc<dyn Wake>,
}

impl<I: PacketIo> std::fmt::Debug for WorkerHandle<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerHandle").finish_non_exhaustive()
    }
}

impl<I: PacketIo> Clone for WorkerHandle<I> {
    fn clone(&self) -> Self {
        Self { calls: self.calls.clone(), waker: Arc::clone(&self.waker) }
    }
}

pub(crate) fn mailbox<I: PacketIo>(waker: Arc<dyn Wake>) -> (WorkerHandle<I>, Receiver<Call<I>>) {
    let (calls, waiting) = sync_channel(MAILBOX_CALLS);
    (WorkerHandle { calls, waker }, waiting)
}

impl<I: PacketIo + 'static> WorkerHandle<I> {
    /// Runs `f` on the worker and waits for its result.
    ///
    /// # Errors
    /// [`WorkerGone`] when the worker ended before it ran.
    pub fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Worker<I>) -> R + Send + 'static,
    ) -> Result<R, WorkerGone> {
        let (reply, result) = sync_channel(1);
        let call = move |worker: &mut Worker<I>| {
            // The caller may have gone; then nobody wants the result.
            drop(reply.send(f(worker)));
        };
        self.calls.send(Box::new(call)).map_err(|_ended| WorkerGone)?;
        self.waker.wake();
        result.recv().map_err(|_ended| WorkerGone)
    }

    /// Runs `f` on the worker and waits for its result for so long. It runs later if the worker is only
    /// late, so that `f` may do what can be done twice or for nobody.
    ///
    /// # Errors
    /// [`Unanswered`] when there is no result by then.
    pub fn ask<R: Send + 'static>(
        &self,
        patience: Duration,
        f: impl FnOnce(&mut Worker<I>) -> R + Send + 'static,
    ) -> Result<R, Unanswered> {
        let (reply, result) = sync_channel(1);
        let call = move |worker: &mut Worker<I>| {
            // As above.
            drop(reply.send(f(worker)));
        };
        self.calls.try_send(Box::new(call)).map_err(|refused| match refused {
            TrySendError::Full(_) => Unanswered::Late(patience),
            TrySendError::Disconnected(_) => Unanswered::Gone,
        })?;
        self.waker.wake();
        result.recv_timeout(patience).map_err(|why| match why {
            RecvTimeoutError::Timeout => Unanswered::Late(patience),
            RecvTimeoutError::Disconnected => Unanswered::Gone,
        })
    }
}

#[cfg(test)]
mod tests {
    use packet_io::memory::MemoryIo;

    use super::*;

    #[derive(Debug)]
    struct Nobody;

    impl Wake for Nobody {
        fn wake(&self) {}
    }

    #[test]
    fn who_asks_a_worker_that_hangs_is_told_so_in_time_and_never_waits_for_room() {
        let patience = Duration::from_millis(1);
        let (handle, waiting) = mailbox::<MemoryIo>(Arc::new(Nobody));
        for _ in 0..MAILBOX_CALLS + 3 {
            assert_eq!(handle.ask(patience, |_| 7), Err(Unanswered::Late(patience)));
        }
        assert_eq!(waiting.try_iter().count(), MAILBOX_CALLS, "more would wait for room");
        drop(waiting);
        assert_eq!(handle.ask(patience, |_| 7), Err(Unanswered::Gone));
    }
}
