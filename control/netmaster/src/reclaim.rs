//! Addresses that come back: reservations end with their time, and an address whose endpoint has left
//! is free once every living node has the intent that says so in force. See
//! docs/decisions/0017-an-address-is-free-when-every-node-knows.md.

use std::convert::Infallible;
use std::time::Duration;

use control_model::{AT_ONCE, CLOCK_STEP_SECONDS, LeaseKey, Ledger, Reason};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::master::{Failure, Master, State};
use crate::sessions::{PATIENCE, Sessions};

/// Acknowledgements that come within this are acted on together.
const TOGETHER: Duration = Duration::from_millis(100);

/// What gives addresses back.
#[derive(Debug, Clone)]
pub(crate) struct Reclaim {
    pub(crate) master: Master,
    pub(crate) sessions: Sessions,
}

impl Reclaim {
    /// Runs until the process is to stop.
    pub(crate) async fn run(self, mut stopping: watch::Receiver<bool>) {
        tokio::select! {
            never = self.watch_over() => match never {},
            // A sender that is gone stops it as well.
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    }

    async fn watch_over(&self) -> Infallible {
        let mut clock = interval(Duration::from_secs(CLOCK_STEP_SECONDS));
        // Steps that were missed have not passed for who waited for an answer meanwhile.
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        clock.tick().await;
        let mut changes = self.sessions.changes();
        loop {
            let done = tokio::select! {
                _ = clock.tick() => self.step().await,
                _ = changes.changed() => {
                    tokio::time::sleep(TOGETHER).await;
                    changes.mark_unchanged();
                    self.sweep().await
                }
            };
            if let Err(error) = done {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "addresses not reclaimed yet"
                );
            }
        }
    }

    /// The clock goes one step on. Also looks for nodes that have become dead, which nobody tells.
    async fn step(&self) -> Result<usize, Failure> {
        let ends = self
            .master
            .read(|state| state.ledger.intent().leases().any(|lease| lease.expires.is_some()));
        if ends.await? {
            let mut passed = CLOCK_STEP_SECONDS;
            while self.pass(passed).await? > 0 {
                passed = 0;
            }
        }
        self.sweep().await
    }

    /// How many reservations end.
    async fn pass(&self, seconds: u64) -> Result<usize, Failure> {
        let pass = move |ledger: &mut Ledger| {
            let ended = ledger.pass(seconds);
            Ok((ended.len(), ended))
        };
        Ok(self.master.write(Box::new(pass)).await?.object)
    }

    /// Frees what every living node has forgotten; how many addresses.
    pub(crate) async fn sweep(&self) -> Result<usize, Failure> {
        let free = self.master.read(|state| self.forgotten(state)).await?;
        for some in free.chunks(AT_ONCE) {
            let some = some.to_vec();
            let let_go = move |ledger: &mut Ledger| Ok(((), ledger.let_go(&some)));
            self.master.write(Box::new(let_go)).await?;
        }
        if !free.is_empty() {
            tracing::debug!(count = free.len(), "addresses are free again");
        }
        Ok(free.len())
    }

    fn forgotten(&self, state: &State) -> Vec<LeaseKey> {
        let is_known = |revision: u64| self.waiting_for(state, revision).is_empty();
        let Some(newest) = state.left_at.values().max() else { return Vec::new() };
        // Mostly all nodes have everything.
        let all = is_known(*newest);
        let left = state.left_at.iter();
        left.filter(|(_, at)| all || is_known(**at)).map(|(key, _)| key.clone()).collect()
    }

    /// Living nodes that may still know an endpoint that left at `revision`.
    pub(crate) fn waiting_for(&self, state: &State, revision: u64) -> Vec<String> {
        let nodes = state.ledger.intent().nodes().map(|node| &node.name);
        self.sessions.may_lack(revision, nodes).into_iter().map(ToString::to_string).collect()
    }

    /// Does a write that may meet an address on its way back: waits for the nodes then, as long as a
    /// write waits for them.
    pub(crate) async fn patiently<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let deadline = Instant::now() + PATIENCE;
        let mut changes = self.sessions.changes();
        loop {
            changes.mark_unchanged();
            let refused = match attempt().await {
                Err(failure) if is_leaving(&failure) => failure,
                other => return other,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if self.sweep().await? == 0 && timeout(left, changes.changed()).await.is_err() {
                return Err(refused);
            }
        }
    }
}

fn is_leaving(failure: &Failure) -> bool {
    let refused = match failure {
        Failure::Refused(refused) => refused,
        Failure::RefusedObject(object) => &object.refused,
        Failure::Store(_)
        | Failure::Unreadable(_)
        | Failure::Conflicts
        | Failure::Task(_)
        | Failure::Cluster { .. } => return false,
    };
    matches!(refused.reason, Reason::AddressLeaving { .. } | Reason::NetworkLeaving { .. })
}
