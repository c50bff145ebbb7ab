//! Intent as this node knows it: netmaster's objects with the revision they are of.
//!
//! A snapshot is collected aside, with what changes meanwhile, and takes effect when it is taken over
//! as a whole, so that a reconnect never shows a half-filled intent; so is a write of many objects,
//! which is in force as a whole or not. When netmaster goes away the last known intent stays in
//! force. Objects of kinds that this version does not know are a newer netmaster's and left out.

use std::sync::{Mutex, MutexGuard, PoisonError};

use control_api::convert;
use control_api::v1::watch_event::Kind as Event;
use control_api::v1::{Kind, Object, Removed, TenantLeft, WatchEvent};
use control_model::{
    EndpointId, Intent, Key, NodeName, Object as Stored, Placement, Refused, Tag, TenantName,
    compile,
};
use flowtable::entry::Entry;
use tokio::sync::watch;
use tracing::{debug, info};

/// What became of one event of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The intent is another one now.
    Changed,
    /// It will be once the write has ended, or the snapshot has and was taken over.
    Collecting,
    /// netmaster wants this node's rule counters, under this id.
    Stats(u64),
}

/// An event this version cannot take in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Garbled {
    #[error("an object of revision {revision}: {source}")]
    Object { revision: u64, source: Refused },
    #[error("a removed key of revision {revision}: {source}")]
    Key { revision: u64, source: Refused },
}

/// Which intent something is of. Later ones are greater, also when a new netmaster's revisions
/// begin anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Stamp {
    /// Counts snapshots; 0: nothing heard yet.
    pub(crate) epoch: u64,
    /// netmaster's.
    pub(crate) revision: u64,
}

/// Tables with the intent they are of.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) stamp: Stamp,
    pub(crate) entries: Vec<Entry>,
}

#[derive(Debug, Default)]
struct Known {
    intent: Intent,
    stamp: Stamp,
    collecting: Option<Collected>,
    /// What has been heard of a write whose end has not.
    begun: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    Put(Box<Stored>),
    Remove(Key),
    Forget(TenantName),
}

/// A snapshot that is not in force.
#[derive(Debug, Default)]
struct Collected {
    intent: Intent,
    /// What it is of, once it has ended.
    revision: Option<u64>,
}

/// The shared copy.
#[derive(Debug)]
pub(crate) struct Mirror {
    known: Mutex<Known>,
    stamp: watch::Sender<Stamp>,
}

impl Mirror {
    pub(crate) fn new() -> Self {
        Self { known: Mutex::default(), stamp: watch::Sender::new(Stamp::default()) }
    }

    /// Which intent is known.
    pub(crate) fn stamp(&self) -> Stamp {
        *self.stamp.borrow()
    }

    /// Whether there is an intent at all.
    pub(crate) fn has_heard(&self) -> bool {
        self.stamp().epoch > 0
    }

    /// Sees every change.
    pub(crate) fn watch(&self) -> watch::Receiver<Stamp> {
        self.stamp.subscribe()
    }

    /// Takes one event in.
    ///
    /// # Errors
    /// [`Garbled`]: the copy can no longer be trusted to be netmaster's, so the caller asks for a
    /// snapshot.
    pub(crate) fn hear(&self, event: WatchEvent) -> Result<Heard, Garbled> {
        let WatchEvent { revision, more, kind } = event;
        let mut known = self.lock();
        match kind {
            Some(Event::SnapshotBegin(_)) => {
                info!("netmaster sends everything");
                known.begun.clear();
                known.collecting = Some(Collected::default());
                return Ok(Heard::Collecting);
            }
            Some(Event::Put(Object { kind: Some(kind) })) => {
                let object = convert::to_model(&Object { kind: Some(kind) })
                    .map_err(|source| Garbled::Object { revision, source })?;
                known.begun.push(Step::Put(Box::new(object)));
            }
            Some(Event::Removed(Removed { kind, key })) if Kind::try_from(kind).is_ok() => {
                let key = convert::to_key(kind, &key)
                    .map_err(|source| Garbled::Key { revision, source })?;
                known.begun.push(Step::Remove(key));
            }
            Some(Event::SnapshotEnd(_)) => {
                if let Some(collected) = &mut known.collecting {
                    collected.revision = Some(revision);
                }
            }
            Some(Event::TenantLeft(TenantLeft { tenant_name })) => {
                let tenant = TenantName::parse("tenantName", &tenant_name)
                    .map_err(|source| Garbled::Key { revision, source })?;
                known.begun.push(Step::Forget(tenant));
            }
            Some(Event::StatsRequest(request)) => return Ok(Heard::Stats(request.id)),
            Some(Event::Put(_) | Event::Removed(_)) | None => {
                debug!(revision, "of a kind that this version does not know");
            }
        }
        if more {
            return Ok(Heard::Collecting);
        }
        known.finish_write();
        if let Some(collected) = &mut known.collecting {
            collected.revision = collected.revision.map(|_earlier| revision);
            return Ok(Heard::Collecting);
        }
        known.stamp.revision = revision;
        let stamp = known.stamp;
        drop(known);
        self.stamp.send_replace(stamp);
        Ok(Heard::Changed)
    }

    /// Whether there is a snapshot to be taken over.
    pub(crate) fn is_complete(&self) -> bool {
        self.lock().collecting.as_ref().is_some_and(|collected| collected.revision.is_some())
    }

    /// Whether the snapshot that is not in force has an endpoint.
    pub(crate) fn has_collected(&self, id: &EndpointId) -> bool {
        let known = self.lock();
        known.collecting.as_ref().is_some_and(|collected| collected.intent.endpoint(id).is_some())
    }

    /// Puts a complete snapshot in force.
    pub(crate) fn take_over(&self) {
        let mut known = self.lock();
        let complete = known.collecting.take_if(|collected| collected.revision.is_some());
        let Some(Collected { intent, revision: Some(revision) }) = complete else { return };
        known.intent = intent;
        known.stamp = Stamp { epoch: known.stamp.epoch + 1, revision };
        let stamp = known.stamp;
        drop(known);
        self.stamp.send_replace(stamp);
    }

    /// Forgets a snapshot or a write whose stream broke before its end.
    pub(crate) fn abandon(&self) {
        let mut known = self.lock();
        known.collecting = None;
        known.begun.clear();
    }

    /// The tables of this node; `None` before the first snapshot, when empty tables would stop what
    /// runs.
    pub(crate) fn compile(&self, node: &NodeName, placement: &Placement) -> Option<Compiled> {
        let known = self.lock();
        (known.stamp.epoch > 0).then(|| Compiled {
            stamp: known.stamp,
            entries: compile(&known.intent, node, placement),
        })
    }

    /// VLAN ids of all networks, in order, without duplicates; `None` before the first snapshot.
    pub(crate) fn vids(&self) -> Option<Vec<u16>> {
        let known = self.lock();
        if known.stamp.epoch == 0 {
            return None;
        }
        let mut vids: Vec<u16> = known
            .intent
            .networks()
            .filter_map(|network| match network.tag {
                Tag::Vlan(vid) => Some(vid.get()),
                Tag::Vxlan(_) => None,
            })
            .collect();
        vids.sort_unstable();
        vids.dedup();
        Some(vids)
    }

    /// Reads the intent while nothing changes it.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Intent) -> T) -> T {
        look(&self.lock().intent)
    }

    /// Ids of the endpoints that netmaster believes to be on `node`.
    pub(crate) fn endpoints_of(&self, node: &NodeName) -> Vec<EndpointId> {
        let known = self.lock();
        let homed = known.intent.endpoints().filter(|e| e.host.node == *node);
        homed.map(|e| e.id.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing here can panic between two writes that belong together.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn finish_write(&mut self) {
        let target = match &mut self.collecting {
            Some(collected) => &mut collected.intent,
            None => &mut self.intent,
        };
        for step in self.begun.drain(..) {
            match step {
                Step::Put(object) => target.put(*object),
                Step::Remove(key) => target.remove(&key),
                Step::Forget(tenant) => target.forget_tenant(&tenant),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use control_api::v1::{
        Endpoint, EndpointGroup, Kind, NetProfile, Network, Object, SnapshotBegin, SnapshotEnd,
        StatsRequest, Tenant, object,
    };

    use super::*;

    pub(crate) fn event(revision: u64, kind: Event) -> WatchEvent {
        WatchEvent { kind: Some(kind), revision, more: false }
    }

    fn put(revision: u64, kind: object::Kind) -> WatchEvent {
        event(revision, Event::Put(Object { kind: Some(kind) }))
    }

    pub(crate) fn tenant(revision: u64) -> WatchEvent {
        let tenant = Tenant { tenant_name: "red".into(), vrf: 7, ..Tenant::default() };
        put(revision, object::Kind::Tenant(tenant))
    }

    pub(crate) fn network(revision: u64, name: &str, encap: &str, tag: u32) -> WatchEvent {
        let network = Network {
            tenant_name: "red".into(),
            network_name: name.into(),
            encap: encap.into(),
            pkt_tag: tag,
            subnet: format!("10.{tag}.0.0/16"),
            bd: tag,
            ..Network::default()
        };
        put(revision, object::Kind::Network(network))
    }

    pub(crate) fn endpoint(revision: u64, id: &str, network: &str, ip: &str) -> WatchEvent {
        let endpoint = Endpoint {
            endpoint_id: id.into(),
            tenant_name: "red".into(),
            network_name: network.into(),
            ip_address: vec![ip.into()],
            mac_address: "02:00:00:00:00:05".into(),
            homing_host: "n1".into(),
            ..Endpoint::default()
        };
        put(revision, object::Kind::Endpoint(endpoint))
    }

    /// Profile `gold` and group `web` with it, in a network.
    pub(crate) fn gold_group(revision: u64, network: &str, bandwidth: &str) -> [WatchEvent; 2] {
        let profile = NetProfile {
            tenant_name: "red".into(),
            profile_name: "gold".into(),
            bandwidth: bandwidth.into(),
            ..NetProfile::default()
        };
        let group = EndpointGroup {
            tenant_name: "red".into(),
            group_name: "web".into(),
            network_name: network.into(),
            net_profile: "gold".into(),
            group_id: 3,
            ..EndpointGroup::default()
        };
        [
            put(revision, object::Kind::EndpointGroup(group)),
            put(revision, object::Kind::NetProfile(profile)),
        ]
    }

    /// The endpoint as a member of group `web`.
    pub(crate) fn member(event: WatchEvent) -> WatchEvent {
        let Some(Event::Put(Object { kind: Some(object::Kind::Endpoint(endpoint)) })) = event.kind
        else {
            panic!("an endpoint");
        };
        let endpoint_group = "web".into();
        put(event.revision, object::Kind::Endpoint(Endpoint { endpoint_group, ..endpoint }))
    }

    pub(crate) fn snapshot(mirror: &Mirror, revision: u64, events: Vec<WatchEvent>) {
        mirror.hear(event(0, Event::SnapshotBegin(SnapshotBegin {}))).unwrap();
        for event in events {
            mirror.hear(event).unwrap();
        }
        let end = mirror.hear(event(revision, Event::SnapshotEnd(SnapshotEnd {}))).unwrap();
        assert_eq!(end, Heard::Collecting);
        mirror.take_over();
    }

    fn node() -> NodeName {
        NodeName::parse("node", "n1").unwrap()
    }

    fn entries(mirror: &Mirror) -> Option<(u64, usize)> {
        let compiled = mirror.compile(&node(), &Placement::default());
        compiled.map(|compiled| (compiled.stamp.revision, compiled.entries.len()))
    }

    #[test]
    fn nothing_is_compiled_before_the_first_snapshot_has_ended() {
        let mirror = Mirror::new();
        assert_eq!(entries(&mirror), None);
        mirror.hear(event(0, Event::SnapshotBegin(SnapshotBegin {}))).unwrap();
        assert_eq!(mirror.hear(tenant(3)).unwrap(), Heard::Collecting);
        assert_eq!(entries(&mirror), None);
        assert!(!mirror.is_complete());
        mirror.hear(event(3, Event::SnapshotEnd(SnapshotEnd {}))).unwrap();
        assert_eq!((mirror.is_complete(), entries(&mirror)), (true, None));
        mirror.take_over();
        assert_eq!(entries(&mirror), Some((3, 1)));
        assert_eq!(mirror.stamp().revision, 3);
    }

    #[test]
    fn a_snapshot_cut_short_leaves_the_intent_as_it_was() {
        let mirror = Mirror::new();
        snapshot(&mirror, 3, vec![tenant(3)]);
        mirror.hear(event(0, Event::SnapshotBegin(SnapshotBegin {}))).unwrap();
        mirror.abandon();
        assert_eq!(entries(&mirror), Some((3, 1)));
        mirror.hear(network(4, "blue", "vlan", 20)).unwrap();
        assert_eq!(mirror.stamp().revision, 4);
    }

    fn more(event: WatchEvent) -> WatchEvent {
        WatchEvent { more: true, ..event }
    }

    #[test]
    fn pol_6_a_write_of_many_objects_is_compiled_as_a_whole_or_not_at_all() {
        let mirror = Mirror::new();
        snapshot(&mirror, 3, vec![tenant(3)]);
        let before = entries(&mirror);
        let watching = mirror.watch();
        for event in [network(9, "a", "vlan", 20), network(9, "b", "vlan", 21)] {
            assert_eq!(mirror.hear(more(event)).unwrap(), Heard::Collecting);
            assert_eq!(entries(&mirror), before);
        }
        // Counters may be asked for in the midst of it.
        mirror.hear(event(9, Event::StatsRequest(StatsRequest { id: 9 }))).unwrap();
        assert!(!watching.has_changed().unwrap(), "nobody is woken for half of it");
        assert_eq!(mirror.hear(network(10, "c", "vlan", 22)).unwrap(), Heard::Changed);
        assert_eq!((mirror.vids(), mirror.stamp().revision), (Some(vec![20, 21, 22]), 10));
    }

    #[test]
    fn pol_6_a_write_cut_short_is_forgotten() {
        let mirror = Mirror::new();
        snapshot(&mirror, 3, vec![tenant(3)]);
        mirror.hear(more(network(3, "a", "vlan", 20))).unwrap();
        mirror.abandon();
        mirror.hear(network(4, "b", "vlan", 21)).unwrap();
        assert_eq!(mirror.vids(), Some(vec![21]));
        mirror.hear(more(network(4, "c", "vlan", 22))).unwrap();
        snapshot(&mirror, 5, vec![tenant(5)]);
        assert_eq!(mirror.vids(), Some(vec![]));
    }

    #[test]
    fn vlan_ids_come_in_order_and_vxlan_networks_have_none() {
        let mirror = Mirror::new();
        let networks = vec![
            tenant(1),
            network(2, "c", "vlan", 30),
            network(3, "b", "vxlan", 40),
            network(4, "a", "vlan", 20),
        ];
        snapshot(&mirror, 4, networks);
        assert_eq!(mirror.vids(), Some(vec![20, 30]));
        let removed = Removed { kind: Kind::Network.into(), key: "red:c".into() };
        assert_eq!(mirror.hear(event(5, Event::Removed(removed))).unwrap(), Heard::Changed);
        assert_eq!(mirror.vids(), Some(vec![20]));
    }

    #[test]
    fn endpoints_of_this_node_are_told_from_others() {
        let mirror = Mirror::new();
        snapshot(
            &mirror,
            3,
            vec![tenant(1), network(2, "b", "vxlan", 40), endpoint(3, "c1:eth0", "b", "10.40.0.5")],
        );
        let ids: Vec<String> =
            mirror.endpoints_of(&node()).iter().map(ToString::to_string).collect();
        assert_eq!(ids, ["c1:eth0"]);
        assert_eq!(mirror.endpoints_of(&NodeName::parse("node", "n2").unwrap()), []);
    }

    #[test]
    fn a_snapshot_that_waits_hears_what_changes_and_the_intent_stays() {
        let mirror = Mirror::new();
        snapshot(&mirror, 30, vec![tenant(30)]);
        mirror.hear(event(0, Event::SnapshotBegin(SnapshotBegin {}))).unwrap();
        mirror.hear(tenant(0)).unwrap();
        mirror.hear(event(3, Event::SnapshotEnd(SnapshotEnd {}))).unwrap();
        let id = EndpointId::parse("endpointID", "c1:eth0").unwrap();
        assert!(!mirror.has_collected(&id));
        mirror.hear(network(4, "b", "vxlan", 40)).unwrap();
        mirror.hear(endpoint(5, "c1:eth0", "b", "10.40.0.5")).unwrap();
        assert!(mirror.has_collected(&id));
        assert_eq!(
            (mirror.stamp(), entries(&mirror)),
            (Stamp { epoch: 1, revision: 30 }, Some((30, 1)))
        );
        mirror.take_over();
        assert_eq!(mirror.stamp(), Stamp { epoch: 2, revision: 5 });
        assert!(mirror.read(|intent| intent.endpoint(&id).is_some()));
    }

    #[test]
    fn what_a_newer_netmaster_tells_of_unknown_kinds_is_left_out() {
        let mirror = Mirror::new();
        snapshot(&mirror, 3, vec![tenant(3), event(0, Event::Put(Object { kind: None }))]);
        let removed = Removed { kind: 4711, key: "x".into() };
        for unknown in [
            event(4, Event::Put(Object { kind: None })),
            event(5, Event::Removed(removed)),
            WatchEvent { revision: 6, ..WatchEvent::default() },
        ] {
            let revision = unknown.revision;
            assert_eq!(mirror.hear(unknown).unwrap(), Heard::Changed);
            assert_eq!(
                (mirror.stamp().revision, entries(&mirror)),
                (revision, Some((revision, 1)))
            );
        }
    }

    #[test]
    fn a_snapshot_is_later_than_what_was_known_even_with_a_lower_revision() {
        let mirror = Mirror::new();
        snapshot(&mirror, 30, vec![tenant(30)]);
        let before = mirror.stamp();
        snapshot(&mirror, 3, vec![tenant(3)]);
        assert!(mirror.stamp() > before);
        assert_eq!(mirror.stamp(), Stamp { epoch: 2, revision: 3 });
    }

    #[test]
    fn a_request_for_counters_changes_nothing() {
        let mirror = Mirror::new();
        snapshot(&mirror, 3, vec![tenant(3)]);
        let asked = mirror.hear(event(0, Event::StatsRequest(StatsRequest { id: 9 }))).unwrap();
        assert_eq!(asked, Heard::Stats(9));
        assert_eq!(mirror.stamp().revision, 3);
    }

    #[test]
    fn what_cannot_be_read_is_named_and_not_taken_in() {
        let mirror = Mirror::new();
        snapshot(&mirror, 3, vec![tenant(3)]);
        let refused = mirror.hear(network(4, "bad name", "vxlan", 40)).unwrap_err();
        assert!(matches!(refused, Garbled::Object { revision: 4, .. }), "{refused}");
        assert_eq!(mirror.stamp().revision, 3);
    }
}
