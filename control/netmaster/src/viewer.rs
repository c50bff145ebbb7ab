//! A list that is being watched: its objects, then what changes. Like a node's stream it reads the
//! store's log: who is too slow for the log's length gets a new snapshot, and nothing is queued.
//!
//! What nodes acknowledge is in no log: a list of nodes is sent anew when it changes, at most once a
//! second.

use std::convert::Infallible;
use std::time::Duration;

use control_api::v1::watch_event::Kind as Event;
use control_api::{convert, v1};
use control_model::Kind;
use control_store::{AnyStore, Op, Watch, WatchEvent};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tonic::Status;

use crate::layout;
use crate::master::{Failure, Master};
use crate::oper;
use crate::selection::Selection;
use crate::sessions::Sessions;

/// Events on their way to one viewer beyond what its connection holds.
pub(crate) const EVENTS_MAX: usize = 64;
/// A list of nodes is sent at most once in this.
const NODES_PAUSE: Duration = Duration::from_secs(1);

/// One stream of a list.
pub(crate) struct Viewer {
    pub(crate) master: Master,
    pub(crate) sessions: Sessions,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) selection: Selection,
    pub(crate) events: mpsc::Sender<Result<v1::WatchEvent, Status>>,
    /// Held for as long as the stream is open.
    pub(crate) place: OwnedSemaphorePermit,
}

/// Why a stream ends.
enum End {
    /// The viewer has gone.
    Gone,
    /// With this status.
    Status(Box<Status>),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Status(Box::new(failure.into()))
    }
}

/// What a stream has to do next.
enum Next {
    /// Send what was written.
    Events(WatchEvent),
    /// Nodes have acknowledged, come or gone.
    Nodes,
}

impl Viewer {
    pub(crate) async fn run(mut self) {
        let Err(end) = self.follow().await;
        match end {
            End::Gone => {}
            // A full queue belongs to a viewer that does not read: closing says it as well.
            End::Status(status) => drop(self.events.try_send(Err(*status))),
        }
        drop(self.place);
    }

    async fn follow(&mut self) -> Result<Infallible, End> {
        let mut changes = self.sessions.changes();
        loop {
            // What comes from here on is in the snapshot, or makes another.
            changes.mark_unchanged();
            let position = self.snapshot().await?;
            self.deltas(position, &mut changes).await?;
        }
    }

    async fn snapshot(&self) -> Result<u64, End> {
        let listed = self.master.read(|state| self.selection.list(state, &self.sessions)).await?;
        self.send(0, Event::SnapshotBegin(v1::SnapshotBegin {})).await?;
        for object in listed.objects {
            self.send(0, Event::Put(object)).await?;
        }
        self.send(listed.revision, Event::SnapshotEnd(v1::SnapshotEnd {})).await?;
        Ok(listed.revision)
    }

    /// Sends what happens after `position`, until a new snapshot is necessary.
    async fn deltas(
        &mut self,
        position: u64,
        changes: &mut watch::Receiver<()>,
    ) -> Result<(), End> {
        let mut watch = self.master.watch(position);
        loop {
            match self.next(&mut watch, changes).await? {
                Next::Events(WatchEvent::Batches { batches, up_to: _ }) => {
                    self.writes(batches).await?;
                }
                Next::Events(WatchEvent::Compacted) => return Ok(()),
                Next::Nodes => {
                    tokio::time::sleep(NODES_PAUSE).await;
                    return Ok(());
                }
            }
        }
    }

    async fn next(
        &mut self,
        watch: &mut Watch<AnyStore>,
        changes: &mut watch::Receiver<()>,
    ) -> Result<Next, End> {
        let stopping = &mut self.stopping;
        tokio::select! {
            event = watch.next() => Ok(Next::Events(event.map_err(Failure::Store)?)),
            () = nodes_change(self.selection.kind, changes) => Ok(Next::Nodes),
            () = self.events.closed() => Err(End::Gone),
            () = async { drop(stopping.wait_for(|stopping| *stopping).await) } => {
                Err(End::Status(Box::new(Status::unavailable("netmaster stops"))))
            }
        }
    }

    async fn writes(&self, batches: Vec<(u64, Vec<Op>)>) -> Result<(), End> {
        for (revision, ops) in batches {
            self.write(revision, ops).await?;
        }
        Ok(())
    }

    async fn write(&self, revision: u64, ops: Vec<Op>) -> Result<(), End> {
        for op in ops {
            let event = layout::event(&op).map_err(Failure::Unreadable)?;
            if let Some(event) = self.shown(event).await? {
                self.send(revision, event).await?;
            }
        }
        Ok(())
    }

    /// The event as users read it, if it is about the list. A removal may be of another tenant's
    /// object, which the viewer does not know.
    async fn shown(&self, event: Event) -> Result<Option<Event>, End> {
        let wanted = convert::from_kind(self.selection.kind);
        match event {
            Event::Put(stored) => {
                let object = convert::to_model(&stored).map_err(Failure::Refused)?;
                if object.key().kind() != self.selection.kind || !self.selection.has(&object) {
                    return Ok(None);
                }
                let shown = self.master.read(|state| oper::shown(&object, state, &self.sessions));
                Ok(Some(Event::Put(shown.await?)))
            }
            Event::Removed(removed) => {
                Ok((removed.kind() == wanted).then_some(Event::Removed(removed)))
            }
            Event::SnapshotBegin(_)
            | Event::SnapshotEnd(_)
            | Event::StatsRequest(_)
            | Event::TenantLeft(_) => Ok(None),
        }
    }

    async fn send(&self, revision: u64, kind: Event) -> Result<(), End> {
        let event = v1::WatchEvent { revision, kind: Some(kind), ..v1::WatchEvent::default() };
        self.events.send(Ok(event)).await.map_err(|_closed| End::Gone)
    }
}

/// Done when nodes have changed and the list is one of nodes; else never.
async fn nodes_change(kind: Kind, changes: &mut watch::Receiver<()>) {
    if kind != Kind::Node || changes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
