//! What of intent is one node's concern: the tenants that have an endpoint on it, whole, since any of
//! their endpoints may be a peer; and what belongs to no tenant. A tenant comes with its first endpoint
//! on the node and goes with its last.
//!
//! Writes are followed in the order of the log, at its pace. A tenant that comes is sent as it is when
//! that is noticed, which may be later than the write that brought it; of its writes up to there
//! nothing is sent again. A node that comes back, to whichever netmaster, says which tenants it has,
//! and is told what has happened to them since.

use std::collections::{BTreeMap, BTreeSet};

use control_api::v1::watch_event::Kind as Event;
use control_api::{convert, v1};
use control_model::{EndpointId, Intent, Key, Kind, NodeName, Object, TenantName};

use crate::master::State;

/// One node's concern, at one position of the log.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    node: NodeName,
    /// With the revision its content was sent as of.
    tenants: BTreeMap<TenantName, u64>,
    /// Endpoints of these tenants, since the removal of one names it alone.
    endpoints: BTreeMap<EndpointId, TenantName>,
    /// Those on the node.
    local: BTreeMap<EndpointId, TenantName>,
}

/// Of a tenant, in the order in which a node may take it in one by one: rules before what they hold
/// for.
const OF_TENANTS: [Kind; 9] = [
    Kind::Tenant,
    Kind::NetProfile,
    Kind::Policy,
    Kind::Rule,
    Kind::Network,
    Kind::EndpointGroup,
    Kind::AppProfile,
    Kind::Service,
    Kind::Endpoint,
];

impl Scope {
    /// The node's concern in `state`.
    pub(crate) fn of(node: NodeName, state: &State) -> Self {
        let intent = state.ledger.intent();
        let on_node = intent.endpoints().filter(|endpoint| endpoint.host.node == node);
        let local: BTreeMap<_, _> =
            on_node.map(|e| (e.id.clone(), e.network.tenant.clone())).collect();
        let names: BTreeSet<&TenantName> = local.values().collect();
        let tenants: BTreeMap<_, _> =
            names.into_iter().map(|name| (name.clone(), state.revision)).collect();
        let endpoints = endpoints(intent, |tenant| tenants.contains_key(tenant));
        Self { node, tenants, endpoints, local }
    }

    /// The node's concern when it has the tenants `held` as of `revision`, and what brings these up to
    /// those of `state`: whole ones that it lacks, and the ends of others. What happened to the rest
    /// since is for [`Self::step`], which needs to know of every endpoint that has gone
    /// ([`Self::departed`]). What it claims to have gets it nothing that is not its concern.
    pub(crate) fn resumed(
        node: NodeName,
        held: &BTreeSet<TenantName>,
        revision: u64,
        state: &State,
    ) -> (Self, Vec<Event>) {
        let mut scope = Self::of(node, state);
        let lost = held.iter().filter(|name| !scope.tenants.contains_key(*name));
        let mut events: Vec<Event> = lost.map(left).collect();
        for (name, sent) in &mut scope.tenants {
            if held.contains(name) {
                *sent = revision;
            } else {
                events.extend(contents(state.ledger.intent(), name));
            }
        }
        (scope, events)
    }

    /// An endpoint that the write of `revision` removed is not in the state that this began with.
    pub(crate) fn departed(&mut self, id: EndpointId, tenant: TenantName, revision: u64) {
        if self.is_news(Some(&tenant), revision) {
            self.endpoints.insert(id, tenant);
        }
    }

    /// Everything of its concern.
    pub(crate) fn objects(&self, intent: &Intent) -> Vec<v1::Object> {
        let common = [Kind::Global, Kind::Node, Kind::Bgp].into_iter();
        let mut all: Vec<_> = common.flat_map(|kind| intent.objects(kind)).collect();
        for kind in OF_TENANTS {
            let objects = intent.objects(kind).into_iter();
            all.extend(objects.filter(|object| self.has(object.tenant())));
        }
        all.iter().map(convert::from_model).collect()
    }

    /// What a step of the write of `revision` is to the node. `newest` is the state as it is now.
    pub(crate) fn step(&mut self, event: Event, revision: u64, newest: &State) -> Vec<Event> {
        match event {
            Event::Put(object) => self.put(object, revision, newest),
            Event::Removed(removed) => self.removed(removed, revision),
            Event::SnapshotBegin(_)
            | Event::SnapshotEnd(_)
            | Event::StatsRequest(_)
            | Event::TenantLeft(_) => vec![event],
        }
    }

    fn put(&mut self, message: v1::Object, revision: u64, newest: &State) -> Vec<Event> {
        // What was stored could be read when it was stored.
        let Ok(object) = convert::to_model(&message) else { return Vec::new() };
        let mut events = Vec::new();
        if let Object::Endpoint(endpoint) = &object
            && endpoint.host.node == self.node
        {
            let tenant = &endpoint.network.tenant;
            let is_known = self.tenants.contains_key(tenant);
            // One that has gone again meanwhile brings nothing.
            let is_there = newest.ledger.intent().endpoint(&endpoint.id).is_some();
            if is_known || is_there {
                self.local.insert(endpoint.id.clone(), tenant.clone());
            }
            if !is_known && is_there {
                events.extend(self.join(tenant.clone(), newest));
            }
        }
        if !self.is_news(object.tenant(), revision) {
            return events;
        }
        if let Object::Endpoint(endpoint) = &object {
            self.endpoints.insert(endpoint.id.clone(), endpoint.network.tenant.clone());
        }
        events.push(Event::Put(message));
        events
    }

    fn join(&mut self, tenant: TenantName, newest: &State) -> Vec<Event> {
        let intent = newest.ledger.intent();
        let puts = contents(intent, &tenant).collect();
        self.endpoints.extend(endpoints(intent, |name| *name == tenant));
        self.tenants.insert(tenant, newest.revision);
        puts
    }

    fn removed(&mut self, removed: v1::Removed, revision: u64) -> Vec<Event> {
        let Ok(key) = convert::to_key(removed.kind, &removed.key) else { return Vec::new() };
        let Key::Endpoint(id) = key else {
            let news = self.is_news(key.tenant(), revision);
            return news.then_some(Event::Removed(removed)).into_iter().collect();
        };
        let mut events = Vec::new();
        // What came with the tenant, as of later, was not there any more.
        if let Some(tenant) = self.endpoints.get(&id)
            && self.is_news(Some(tenant), revision)
        {
            self.endpoints.remove(&id);
            events.push(Event::Removed(removed));
        }
        if let Some(tenant) = self.local.remove(&id)
            && !self.local.values().any(|other| *other == tenant)
        {
            events = vec![self.leave(&tenant)];
        }
        events
    }

    fn leave(&mut self, tenant: &TenantName) -> Event {
        self.tenants.remove(tenant);
        self.endpoints.retain(|_, of| of != tenant);
        left(tenant)
    }

    fn has(&self, tenant: Option<&TenantName>) -> bool {
        tenant.is_none_or(|tenant| self.tenants.contains_key(tenant))
    }

    /// Whether a write of `revision` about something of `tenant` is to be sent.
    fn is_news(&self, tenant: Option<&TenantName>, revision: u64) -> bool {
        tenant.is_none_or(|tenant| self.tenants.get(tenant).is_some_and(|sent| revision > *sent))
    }
}

fn left(tenant: &TenantName) -> Event {
    Event::TenantLeft(v1::TenantLeft { tenant_name: tenant.to_string() })
}

/// All of a tenant.
fn contents<'a>(intent: &'a Intent, tenant: &'a TenantName) -> impl Iterator<Item = Event> + 'a {
    let of_tenant = OF_TENANTS.into_iter().flat_map(|kind| intent.objects(kind));
    let of_tenant = of_tenant.filter(move |object| object.tenant() == Some(tenant));
    of_tenant.map(|object| Event::Put(convert::from_model(&object)))
}

/// Endpoints of some tenants.
fn endpoints(
    intent: &Intent,
    is_wanted: impl Fn(&TenantName) -> bool,
) -> BTreeMap<EndpointId, TenantName> {
    let wanted = intent.endpoints().filter(|endpoint| is_wanted(&endpoint.network.tenant));
    wanted.map(|e| (e.id.clone(), e.network.tenant.clone())).collect()
}
