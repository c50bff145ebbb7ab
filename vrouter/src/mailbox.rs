//! Calls into a worker's thread: attach a queue, list the flow cache. Drained once a loop.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

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
}
