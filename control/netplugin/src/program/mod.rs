//! Keeps the engine what intent and attachments say: ports first, then tables, in passes.
//!
//! One task owns the connection to vrouterd and what was last written. Everything that changes
//! (intent, ports, the engine itself) only asks for another pass, so that many changes become one
//! write. A new engine process gets its ports back, the uplink first, and all tables in one batch.
//! While there is none, what it has offloaded is watched over ([`orphans`]).

mod orphans;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use control_model::{EndpointId, Placement, PortLimits, PublishedPort};
use datapath_api::convert::ip_to_proto;
use datapath_api::v1::{self, AddPortRequest, Port, PortKind};
use flowtable::ids::PortId;
use tokio::sync::watch;
use tokio::time::{Instant as Deadline, timeout_at};
use tracing::{error, info, warn};

use crate::config::{Config, Uplink, UplinkMode};
use crate::diff::{Tables, delta, replacement, tables};
use crate::engine::{Engine, EngineError};
use crate::mirror::{Compiled, Mirror, Stamp};
use crate::ports::UPLINK;
use crate::published::{self, Mapping};
use crate::refusal::Refusal;
use orphans::Orphans;

/// How soon a missing engine is looked for again: a restart costs at most this on top.
const RECONNECT: Duration = Duration::from_millis(25);
/// How long a netmaster may take to accept a connection.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// How soon what the engine refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A port the engine is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) ifname: String,
    pub(crate) endpoint: EndpointId,
    pub(crate) limits: PortLimits,
    pub(crate) published: Vec<Mapping>,
}

#[derive(Debug, Default)]
struct Desired {
    /// Counts changes of `ports`.
    generation: u64,
    ports: BTreeMap<PortId, Wanted>,
}

/// What the last pass achieved.
#[derive(Debug, Clone, Default)]
pub(crate) struct Applied {
    /// Of the wanted ports.
    pub(crate) generation: u64,
    /// Nothing passes at ports that were not wanted any more in this generation; the tables may follow.
    pub(crate) fenced: u64,
    /// Of the intent whose tables the engine holds.
    pub(crate) stamp: Stamp,
    /// Why the engine did not take the tables.
    pub(crate) refused: Option<String>,
    /// Ports the engine did not take, with its reason.
    pub(crate) failed_ports: BTreeMap<PortId, String>,
    /// `None` while the engine is away.
    pub(crate) engine: Option<Engine>,
}

/// What other tasks see of the programming.
#[derive(Debug)]
pub(crate) struct Programmer {
    desired: Mutex<Desired>,
    /// While false nothing is written: what the engine holds is all that is known of some ports.
    begun: watch::Sender<bool>,
    asked: watch::Sender<u64>,
    applied: watch::Sender<Applied>,
}

impl Programmer {
    /// Wants `ports` from the start.
    pub(crate) fn new(ports: BTreeMap<PortId, Wanted>) -> Self {
        Self {
            desired: Mutex::new(Desired { generation: 1, ports }),
            begun: watch::Sender::new(true),
            asked: watch::Sender::new(1),
            applied: watch::Sender::new(Applied::default()),
        }
    }

    /// Leaves the engine as it is until [`Self::begin`].
    pub(crate) fn hold(&self) {
        self.begun.send_replace(false);
    }

    /// Every port of an earlier life is wanted again, or never will be.
    pub(crate) fn begin(&self) {
        if !self.begun.send_replace(true) {
            self.change(|_| {});
        }
    }

    /// Waits for that.
    pub(crate) async fn begun(&self, deadline: Deadline) -> Result<(), Refusal> {
        let mut begun = self.begun.subscribe();
        match timeout_at(deadline, begun.wait_for(|begun| *begun)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Refusal::Late("containers of an earlier life to be found")),
        }
    }

    /// Wants a port; returns the generation in which it is there.
    pub(crate) fn place(&self, port: PortId, wanted: Wanted) -> u64 {
        self.change(|ports| drop(ports.insert(port, wanted)))
    }

    /// No longer wants ports; returns the generation in which all are fenced.
    pub(crate) fn unplace(&self, gone: &[PortId]) -> u64 {
        self.change(|ports| {
            for port in gone {
                ports.remove(port);
            }
        })
    }

    /// What the last pass achieved, and every later one.
    pub(crate) fn watch(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }

    fn change(&self, edit: impl FnOnce(&mut BTreeMap<PortId, Wanted>)) -> u64 {
        let mut desired = self.lock();
        edit(&mut desired.ports);
        desired.generation += 1;
        let generation = desired.generation;
        drop(desired);
        self.asked.send_replace(generation);
        generation
    }

    fn lock(&self) -> MutexGuard<'_, Desired> {
        // Nothing here can panic between two writes that belong together.
        self.desired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs passes for ever.
#[expect(clippy::infinite_loop, reason = "a task for the life of the process")]
pub(crate) async fn run(config: &Config, mirror: &Mirror, programmer: &Programmer) -> Infallible {
    let mut task = Task {
        config,
        mirror,
        programmer,
        seen: None,
        away_since: Some(Instant::now()),
        uplink_proven: false,
        orphans: None,
    };
    let mut changes = (mirror.watch(), programmer.asked.subscribe());
    loop {
        let lost = task.serve().await;
        task.lose(&lost);
        task.watch_over(&mut changes).await;
        tokio::time::sleep(RECONNECT).await;
    }
}

struct Task<'a> {
    config: &'a Config,
    mirror: &'a Mirror,
    programmer: &'a Programmer,
    /// Instance and tables of the engine last written to; `None`: not known.
    seen: Option<(String, Arc<Tables>)>,
    away_since: Option<Instant>,
    /// The host has kept its network over the uplink once: an engine that comes back need not show
    /// it again, and gets it without waiting.
    uplink_proven: bool,
    /// What an engine that goes away now leaves behind; `None`: not known, or nothing.
    orphans: Option<Orphans>,
}

/// What asks for a pass.
type Changes = (watch::Receiver<Stamp>, watch::Receiver<u64>);

/// The engine's ports as this connection knows them.
#[derive(Default)]
struct Held {
    ports: BTreeMap<PortId, String>,
    uplink_vids: Option<Vec<u16>>,
}

impl Task<'_> {
    /// Serves one connection until it is lost.
    async fn serve(&mut self) -> EngineError {
        let (engine, mut events) = match Engine::connect(&self.config.datapath).await {
            Ok(connected) => connected,
            Err(error) => return error,
        };
        let mut changes = (self.mirror.watch(), self.programmer.asked.subscribe());
        let mut held = match self.adopt(&engine).await {
            Ok(held) => held,
            Err(error) => return error,
        };
        loop {
            changes.0.mark_unchanged();
            changes.1.mark_unchanged();
            let retry = match self.pass_or_hold(&engine, &mut held).await {
                Ok(retry) => retry,
                Err(error) => return error,
            };
            tokio::select! {
                event = events.message() => match event {
                    Ok(Some(event)) => self.take_in(&event, &mut held),
                    Ok(None) => return tonic::Status::unavailable("the engine went away").into(),
                    Err(status) => return status.into(),
                },
                // The senders live as long as the task, so a change is all that can come.
                _ = changes.0.changed() => {}
                _ = changes.1.changed() => {}
                () = pause(retry) => {}
            }
        }
    }

    fn lose(&mut self, error: &EngineError) {
        if self.away_since.is_none() {
            self.away_since = Some(Instant::now());
            warn!(%error, "vrouterd is away; looking for it every {RECONNECT:?}");
        }
        self.programmer.applied.send_modify(|applied| applied.engine = None);
    }

    /// Cuts off what a gone engine has offloaded and intent has changed for since.
    async fn watch_over(&mut self, changes: &mut Changes) {
        let Some(orphans) = &self.orphans else { return };
        // The senders live as long as the task.
        let changed = changes.0.has_changed().is_ok_and(|changed| changed)
            || changes.1.has_changed().is_ok_and(|changed| changed);
        if orphans.is_settled() && !changed {
            return;
        }
        changes.0.mark_unchanged();
        changes.1.mark_unchanged();
        let placed = self.programmer.lock().ports.clone();
        let placement = self.placement(&placed, |_| true, orphans.uplink);
        let Some(compiled) = self.mirror.compile(&self.config.node, &placement) else { return };
        let outdated = orphans.outdated(&tables(compiled.entries), &placed);
        let count = outdated.len();
        // It panics only by a bug, and is tried again then.
        let cut = tokio::task::spawn_blocking(|| orphans::cut_off(outdated)).await;
        if let (Ok(cut), Some(orphans)) = (cut, &mut self.orphans) {
            orphans.note(cut, count);
        }
    }

    /// A port whose device went is fenced by the engine. The next pass adds it again, and goes on
    /// trying for as long as it is wanted: the device may come back, as an uplink's does.
    fn take_in(&self, event: &v1::Event, held: &mut Held) {
        if event.kind() != v1::event::Kind::PortGone {
            return;
        }
        let Ok(port) = PortId::new(event.port) else { return };
        let Some(ifname) = held.ports.remove(&port) else { return };
        let desired = self.programmer.lock();
        if self.wanted_name(port, &desired.ports).is_some() {
            warn!(%port, ifname, "the device of a port is gone");
        }
    }

    /// Learns what the engine has. Ports that are right stay untouched: traffic goes on.
    async fn adopt(&mut self, engine: &Engine) -> Result<Held, EngineError> {
        if self.seen.as_ref().is_some_and(|(instance, _)| instance != engine.instance()) {
            self.seen = None;
        }
        let mut held = Held::default();
        for Port { id, name, .. } in engine.ports().await? {
            if let Ok(port) = PortId::new(id) {
                held.ports.insert(port, name);
            }
        }
        Ok(held)
    }

    async fn pass_or_hold(
        &mut self,
        engine: &Engine,
        held: &mut Held,
    ) -> Result<Option<Duration>, EngineError> {
        if *self.programmer.begun.borrow() {
            return self.pass(engine, held).await;
        }
        self.programmer.applied.send_modify(|applied| applied.engine = Some(engine.clone()));
        Ok(None)
    }

    /// Brings the engine up to date. Returns when to try again what it did not take.
    async fn pass(
        &mut self,
        engine: &Engine,
        held: &mut Held,
    ) -> Result<Option<Duration>, EngineError> {
        let (generation, wanted) = {
            let desired = self.programmer.lock();
            (desired.generation, desired.ports.clone())
        };
        self.remove_surplus(engine, held, &wanted).await?;
        self.programmer.applied.send_modify(|applied| applied.fenced = generation);
        let failed_ports = self.add_missing(engine, held, &wanted).await?;
        let uplink = held.ports.contains_key(&UPLINK).then_some(UPLINK);
        let placement = self.placement(&wanted, |port| held.ports.contains_key(port), uplink);
        let (stamp, refused) = match self.mirror.compile(&self.config.node, &placement) {
            Some(Compiled { stamp, entries }) => {
                (stamp, self.write(engine, tables(entries)).await?)
            }
            None => (Stamp::default(), None),
        };
        if let Some((_, written)) = &self.seen {
            self.orphans = Some(Orphans::new(Arc::clone(written), uplink));
        }
        let retry = (refused.is_some() || !failed_ports.is_empty()).then_some(RETRY);
        self.publish(Applied {
            generation,
            fenced: generation,
            stamp,
            refused,
            failed_ports,
            engine: Some(engine.clone()),
        });
        Ok(retry)
    }

    async fn remove_surplus(
        &self,
        engine: &Engine,
        held: &mut Held,
        wanted: &BTreeMap<PortId, Wanted>,
    ) -> Result<(), EngineError> {
        let surplus: Vec<PortId> = held
            .ports
            .iter()
            .filter(|&(port, name)| self.wanted_name(*port, wanted) != Some(name))
            .map(|(port, _)| *port)
            .collect();
        engine.remove_ports(&surplus).await?;
        for port in surplus {
            held.ports.remove(&port);
        }
        Ok(())
    }

    /// Adds what is wanted; returns what the engine would not take.
    async fn add_missing(
        &mut self,
        engine: &Engine,
        held: &mut Held,
        wanted: &BTreeMap<PortId, Wanted>,
    ) -> Result<BTreeMap<PortId, String>, EngineError> {
        let mut failed = BTreeMap::new();
        if let Some(uplink) = &self.config.uplink
            && let Err(reason) = self.sync_uplink(engine, held, uplink).await?
        {
            failed.insert(UPLINK, reason);
        }
        for (port, Wanted { ifname, .. }) in wanted {
            if held.ports.contains_key(port) {
                continue;
            }
            let request = AddPortRequest {
                port: port.get().into(),
                name: ifname.clone(),
                kind: PortKind::Container.into(),
                ..Default::default()
            };
            match settle(engine.add_port(request).await)? {
                Ok(()) => drop(held.ports.insert(*port, ifname.clone())),
                Err(reason) => drop(failed.insert(*port, reason)),
            }
        }
        Ok(failed)
    }

    fn wanted_name<'a>(
        &'a self,
        port: PortId,
        wanted: &'a BTreeMap<PortId, Wanted>,
    ) -> Option<&'a String> {
        if port == UPLINK {
            self.config.uplink.as_ref().map(|uplink| &uplink.devices[0])
        } else {
            wanted.get(&port).map(|w| &w.ifname)
        }
    }

    /// The uplink is added again whenever its VLANs change: the engine replaces the list.
    async fn sync_uplink(
        &mut self,
        engine: &Engine,
        held: &mut Held,
        uplink: &Uplink,
    ) -> Result<Result<(), String>, EngineError> {
        let vids = self.mirror.vids();
        // An engine that runs knows its VLANs before netmaster told us.
        let right = vids.is_none() || held.uplink_vids == vids;
        if held.ports.contains_key(&UPLINK) && right {
            return Ok(Ok(()));
        }
        let on_trial = self.config.uplink_confirm > 0
            && !self.uplink_proven
            && !held.ports.contains_key(&UPLINK)
            && self.master_answers().await;
        let request = AddPortRequest {
            port: UPLINK.get().into(),
            name: uplink.devices[0].clone(),
            standby: uplink.devices[1..].to_vec(),
            kind: PortKind::Uplink.into(),
            uplink_mode: match uplink.mode {
                UplinkMode::Shared => v1::UplinkMode::Shared.into(),
                UplinkMode::Dedicated => v1::UplinkMode::Dedicated.into(),
            },
            vtep: self.config.vtep.map(ip_to_proto).into_iter().collect(),
            vid: vids.iter().flatten().copied().map(u32::from).collect(),
            confirm_seconds: if on_trial { self.config.uplink_confirm } else { 0 },
        };
        let mut settled = settle(engine.add_port(request).await)?;
        if settled.is_ok() && on_trial {
            settled = self.prove_uplink(engine).await?;
        }
        if settled.is_ok() {
            held.ports.insert(UPLINK, uplink.devices[0].clone());
            held.uplink_vids = vids;
        }
        Ok(settled)
    }

    /// Where `wanted` ports are that the engine has.
    fn placement(
        &self,
        wanted: &BTreeMap<PortId, Wanted>,
        has: impl Fn(&PortId) -> bool,
        uplink: Option<PortId>,
    ) -> Placement {
        let ports = wanted.iter().filter(|(port, _)| has(port));
        let limited = wanted.values().filter(|wanted| wanted.limits != PortLimits::default());
        Placement {
            ports: ports.map(|(port, wanted)| (wanted.endpoint.clone(), *port)).collect(),
            limits: limited.map(|wanted| (wanted.endpoint.clone(), wanted.limits)).collect(),
            published: self.published(wanted),
            uplink,
            // 0 leaves the choice to the engine's own setting.
            sample_rate: 0,
        }
    }

    /// Ports of the node that lead to containers, at the addresses that it has now.
    fn published(
        &self,
        wanted: &BTreeMap<PortId, Wanted>,
    ) -> BTreeMap<EndpointId, Vec<PublishedPort>> {
        let publishing = wanted.values().filter(|wanted| !wanted.published.is_empty());
        let mut mappings = publishing.map(|w| (&w.endpoint, &w.published[..])).peekable();
        let Some(uplink) = self.config.uplink.as_ref().filter(|_| mappings.peek().is_some()) else {
            return BTreeMap::new();
        };
        match published::node_addresses(&uplink.devices) {
            Ok(addresses) => published::expand(mappings, &addresses),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                warn!(error, "the uplink's addresses; no port is published until the next pass");
                BTreeMap::new()
            }
        }
    }

    /// Whether any netmaster takes a connection of this host's.
    async fn master_answers(&self) -> bool {
        for master in &self.config.netmasters {
            let endpoint = master.endpoint.clone().connect_timeout(ANSWER_PATIENCE);
            if endpoint.connect().await.is_ok() {
                return true;
            }
        }
        false
    }

    /// Confirms an uplink over which the host still reaches what it reached before. One that cut the
    /// host off is given back by the engine when its time is over.
    async fn prove_uplink(&mut self, engine: &Engine) -> Result<Result<(), String>, EngineError> {
        let patience = Duration::from_secs(self.config.uplink_confirm.into());
        let start = Instant::now();
        while !self.master_answers().await {
            if start.elapsed() >= patience {
                let reason =
                    format!("no netmaster was reached for {patience:?} after it was taken");
                error!(reason, "the uplink is the host's again");
                return Ok(Err(reason));
            }
            tokio::time::sleep(RECONNECT).await;
        }
        let confirmed = settle(engine.confirm_port(UPLINK).await)?;
        self.uplink_proven = confirmed.is_ok();
        Ok(confirmed)
    }

    /// Writes what changed; everything, to an engine whose tables are not known.
    async fn write(&mut self, engine: &Engine, new: Tables) -> Result<Option<String>, EngineError> {
        // Taken while the answer is open: a batch whose answer is lost may or may not be in force,
        // and differences to either would be wrong for the other.
        let before = self.seen.take();
        let ops = match &before {
            Some((_, old)) => delta(old, &new),
            None => replacement(&new),
        };
        if !ops.is_empty()
            && let Err(reason) = settle(engine.write(&ops).await)?
        {
            self.seen = before;
            return Ok(Some(reason));
        }
        self.seen = Some((engine.instance().to_owned(), Arc::new(new)));
        Ok(None)
    }

    fn publish(&mut self, applied: Applied) {
        let is_programmed = applied.stamp.epoch > 0 && applied.refused.is_none();
        if let Some(since) = self.away_since.take_if(|_| is_programmed) {
            let gap_ms = since.elapsed().as_millis() as u64;
            let (generation, revision) = (applied.generation, applied.stamp.revision);
            info!(gap_ms, generation, revision, "vrouterd is programmed");
        }
        let before = self.programmer.applied.borrow().clone();
        if applied.refused != before.refused
            && let Some(reason) = &applied.refused
        {
            error!(revision = applied.stamp.revision, reason, "vrouterd refused the tables");
        }
        for (port, reason) in &applied.failed_ports {
            if before.failed_ports.get(port) != Some(reason) {
                error!(%port, reason, "vrouterd refused a port");
            }
        }
        // A refused batch changed nothing: the engine still holds the tables from before.
        let stamp = if applied.refused.is_some() { before.stamp } else { applied.stamp };
        self.programmer.applied.send_replace(Applied { stamp, ..applied });
    }
}

async fn pause(length: Option<Duration>) {
    match length {
        Some(length) => tokio::time::sleep(length).await,
        None => std::future::pending().await,
    }
}

/// Tells a refusal, which the pass goes on after, from the loss of the engine, which ends it.
fn settle(answer: Result<(), EngineError>) -> Result<Result<(), String>, EngineError> {
    match answer {
        Ok(()) => Ok(Ok(())),
        Err(EngineError::Refused(reason)) => Ok(Err(reason)),
        Err(lost @ (EngineError::Lost(_) | EngineError::Connect(_))) => Err(lost),
    }
}

#[cfg(test)]
pub(crate) mod tests;
