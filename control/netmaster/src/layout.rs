//! How objects lie in the store: `object/KIND/KEY` holds the object as a `control.v1.Object`
//! message, whose rules of growth make old stores readable. `meta/schema` is the number of this
//! layout, `meta/counters` the identifiers given last, and the rest of `meta/` whose history it is.

use std::collections::{BTreeMap, BTreeSet};

use control_api::{convert, v1};
use control_model::{
    Change, Counters, EndpointId, Key, Kind, LeaseKey, Ledger, Object, Refused, TenantName,
};
use control_store::{Listing, Op};
use prost::Message as _;

use crate::history::History;

/// Every object's key starts with this.
pub(crate) const OBJECTS: &[u8] = b"object/";
const LEASES: &[u8] = b"object/lease/";
const ENDPOINTS: &[u8] = b"object/endpoint/";
const SCHEMA: &[u8] = b"meta/schema";
const COUNTERS: &[u8] = b"meta/counters";
const SCHEMA_NUMBER: &[u8] = b"1";

/// Why a store's content can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("the store has layout {0}, and this netmaster knows layout 1")]
    Schema(String),
    #[error("the store has a key that is none of netmaster's: {0}")]
    Key(String),
    #[error("{key} is no message")]
    Message { key: String, source: prost::DecodeError },
    #[error("{key} is no object: {source} ({} {:?})", source.field, source.value)]
    Object { key: String, source: Box<Refused> },
    #[error("the counters are unreadable")]
    Counters(#[source] serde_json::Error),
    #[error("the stored objects contradict each other")]
    Damaged(#[from] control_model::Damaged),
}

/// When addresses were left that nodes may still know an endpoint of: the revision that says so.
pub(crate) type LeftAt = BTreeMap<LeaseKey, u64>;

/// Endpoints that went, each with its tenant.
pub(crate) type Departures = Vec<(EndpointId, TenantName)>;

/// What a store holds.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) ledger: Ledger,
    /// Whose it is.
    pub(crate) history: History,
    /// When its leaving addresses were left.
    pub(crate) left_at: LeftAt,
}

/// Everything listed.
pub(crate) fn read(listing: &Listing) -> Result<Content, Unreadable> {
    let (mut objects, mut counters) = (Vec::new(), Counters::default());
    let mut history = History::default();
    let mut left_at = LeftAt::new();
    for (key, value) in &listing.items {
        match key.as_slice() {
            SCHEMA if value.bytes == SCHEMA_NUMBER => {}
            SCHEMA => return Err(Unreadable::Schema(text(&value.bytes))),
            COUNTERS => {
                counters = serde_json::from_slice(&value.bytes).map_err(Unreadable::Counters)?;
            }
            key if key.starts_with(OBJECTS) => {
                let object = read_object(key, &value.bytes)?;
                left_at.extend(leaving(&object).map(|key| (key, value.revision)));
                objects.push(object);
            }
            key if history.take(key, value) => {}
            key => return Err(Unreadable::Key(text(key))),
        }
    }
    Ok(Content { ledger: Ledger::rebuild(objects, counters)?, history, left_at })
}

/// Notes what a write of `revision` did to leaving addresses.
pub(crate) fn note_left(left_at: &mut LeftAt, changes: &[Change], revision: u64) {
    for change in changes {
        match change {
            Change::Put(object) => match (leaving(object), object.key()) {
                (Some(key), _) => drop(left_at.insert(key, revision)),
                (None, Key::AddressLease(key)) => drop(left_at.remove(&key)),
                (None, _) => {}
            },
            Change::Remove(Key::AddressLease(key)) => drop(left_at.remove(key)),
            Change::Remove(_) => {}
        }
    }
}

fn leaving(object: &Object) -> Option<LeaseKey> {
    match object {
        Object::AddressLease(lease) => lease.claim.left.map(|_| lease.key()),
        Object::Tenant(_)
        | Object::Network(_)
        | Object::EndpointGroup(_)
        | Object::Policy(_)
        | Object::Rule(_)
        | Object::Global(_)
        | Object::Endpoint(_)
        | Object::Node(_)
        | Object::Service(_)
        | Object::AppProfile(_)
        | Object::Bgp(_)
        | Object::NetProfile(_) => None,
    }
}

fn read_object(key: &[u8], bytes: &[u8]) -> Result<Object, Unreadable> {
    let message = read_message(key, bytes)?;
    convert::to_model(&message)
        .map_err(|source| Unreadable::Object { key: text(key), source: Box::new(source) })
}

fn read_message(key: &[u8], bytes: &[u8]) -> Result<v1::Object, Unreadable> {
    v1::Object::decode(bytes).map_err(|source| Unreadable::Message { key: text(key), source })
}

/// What brings the store from before `changes` to after them.
pub(crate) fn operations(changes: &[Change], counters: Option<Counters>) -> Vec<Op> {
    let mut ops: Vec<_> = changes.iter().map(operation).collect();
    ops.extend(counters.map(|counters| Op::Put(COUNTERS.to_vec(), counters_text(counters))));
    ops.push(Op::Put(SCHEMA.to_vec(), SCHEMA_NUMBER.to_vec()));
    ops
}

// Plain numbers always have a JSON form; were it not so, empty text would be refused when read.
fn counters_text(counters: Counters) -> Vec<u8> {
    serde_json::to_vec(&counters).unwrap_or_default()
}

fn operation(change: &Change) -> Op {
    match change {
        Change::Put(object) => {
            Op::Put(store_key(&object.key()), convert::from_model(object).encode_to_vec())
        }
        Change::Remove(key) => Op::Delete(store_key(key)),
    }
}

fn store_key(key: &Key) -> Vec<u8> {
    format!("object/{}/{key}", key.kind().name()).into_bytes()
}

/// Whether nodes are told: reservations are between netmaster and who asks for addresses.
pub(crate) fn is_for_nodes(op: &Op) -> bool {
    let (Op::Put(key, _) | Op::Delete(key)) = op;
    !key.starts_with(LEASES)
}

/// Endpoints that a write removes, with their tenant; `None` when it removes those of several, and so
/// does not say whose each is. The removal names the endpoint alone, but its addresses, which are on
/// their way back, are written with it.
pub(crate) fn departures(ops: &[Op]) -> Result<Option<Departures>, Unreadable> {
    let (mut gone, mut tenants) = (Vec::new(), BTreeSet::new());
    for op in ops {
        match op {
            Op::Delete(key) if key.starts_with(ENDPOINTS) => {
                let id = text(&key[ENDPOINTS.len()..]);
                gone.extend(EndpointId::parse("key", &id));
            }
            Op::Put(key, bytes) if key.starts_with(LEASES) => {
                let lease = leaving(&read_object(key, bytes)?);
                tenants.extend(lease.map(|key| key.network.tenant));
            }
            Op::Put(..) | Op::Delete(_) => {}
        }
    }
    Ok(match (gone.as_slice(), tenants.first()) {
        ([], _) => Some(Vec::new()),
        (_, Some(tenant)) if tenants.len() == 1 => {
            Some(gone.into_iter().map(|id| (id, tenant.clone())).collect())
        }
        (_, _) => None,
    })
}

/// A stored object, or a step of a write, as a node receives it.
pub(crate) fn event(op: &Op) -> Result<v1::watch_event::Kind, Unreadable> {
    match op {
        Op::Put(key, bytes) => read_message(key, bytes).map(v1::watch_event::Kind::Put),
        Op::Delete(key) => {
            let unknown = || Unreadable::Key(text(key));
            let name = std::str::from_utf8(key).map_err(|_not_text| unknown())?;
            let (kind, name) = name
                .strip_prefix("object/")
                .and_then(|rest| rest.split_once('/'))
                .ok_or_else(unknown)?;
            let mut kinds = Kind::ALL.into_iter();
            let kind = kinds.find(|known| known.name() == kind).ok_or_else(unknown)?;
            let kind = convert::from_kind(kind).into();
            Ok(v1::watch_event::Kind::Removed(v1::Removed { kind, key: name.to_owned() }))
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use control_store::Value;

    use super::*;

    fn listing(items: &[(&str, &[u8])]) -> Listing {
        let value = |bytes: &[u8]| Value { bytes: bytes.to_vec(), revision: 1 };
        let items = items.iter().map(|(key, bytes)| (key.as_bytes().to_vec(), value(bytes)));
        Listing { items: items.collect(), revision: 1 }
    }

    #[test]
    fn foreign_and_broken_content_is_named() {
        for (items, part) in [
            (listing(&[("meta/schema", b"2")]), "layout 2"),
            (listing(&[("other", b"")]), "none of netmaster's: other"),
            (listing(&[("object/tenant/x", b"\xff")]), "object/tenant/x is no message"),
            (listing(&[("object/tenant/x", b"")]), "object/tenant/x is no object"),
            (listing(&[("meta/counters", b"")]), "counters are unreadable"),
        ] {
            let error = read(&items).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn removals_are_told_by_kind_and_key() {
        let key = Key::parse(Kind::Rule, "red:first:1").unwrap();
        let Op::Delete(stored) = operation(&Change::Remove(key)) else { panic!("a deletion") };
        assert_eq!(stored, b"object/rule/red:first:1");
        let v1::watch_event::Kind::Removed(removed) = event(&Op::Delete(stored)).unwrap() else {
            panic!("a removal");
        };
        assert_eq!((removed.kind(), removed.key.as_str()), (v1::Kind::Rule, "red:first:1"));
        assert!(event(&Op::Delete(b"object/none/x".to_vec())).is_err());
    }
}
