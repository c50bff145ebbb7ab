//! `ls --watch`: a list, then its changes for as long as somebody reads. A new snapshot, which
//! netmaster sends to who was too slow, shows as what differs from what was known.

use std::collections::BTreeMap;

use control_api::v1;
use control_api::v1::watch_event::Kind as Event;
use serde::Serialize;

use super::{Done, Outcome};
use crate::data::{Data, DataError};
use crate::failure::Failure;
use crate::manifest::identity;
use crate::out::{self, Reader};
use crate::session::{Selection, Session};
use crate::table::{Column, Setting};
use crate::view::{ListForm, View};

/// Prints the list and its changes until the reader goes.
pub(super) async fn watch<V: View>(
    session: &mut Session,
    selection: Selection,
    form: ListForm,
) -> Done {
    let mut events = session.watch::<V>(selection).await?;
    let mut list = List::<V>::default();
    let mut printer = Printer { form, setting: None };
    loop {
        let event = events.message().await?.ok_or(Failure::Reply("next change"))?;
        let Some(changes) = list.hear(event)? else { continue };
        let text = printer.print(&changes)?;
        if out::write(&text).map_err(Failure::Io)? == Reader::Gone {
            return Ok(Outcome::default());
        }
    }
}

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Word {
    Added,
    Modified,
    Deleted,
}

impl Word {
    const fn text(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// A change, as programs read it.
#[derive(Debug, Serialize)]
struct Change<V> {
    event: Word,
    object: V,
}

/// The objects as they were told, by key.
#[derive(Debug)]
struct List<V> {
    known: BTreeMap<String, V>,
    collecting: Option<BTreeMap<String, V>>,
}

impl<V> Default for List<V> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), collecting: None }
    }
}

impl<V: View> List<V> {
    /// Takes an event in; what changes by it, unless a snapshot is still being told.
    fn hear(&mut self, event: v1::WatchEvent) -> Result<Option<Vec<Change<V>>>, Failure> {
        match event.kind.ok_or(Failure::Reply("kind of change"))? {
            Event::SnapshotBegin(_) => self.collecting = Some(BTreeMap::new()),
            Event::Put(object) => {
                let (_, key) = identity(&object).ok_or(Failure::Reply("object"))?;
                let view = object.kind.and_then(V::from_kind);
                let view = view.ok_or(Failure::Reply("object of the kind asked for"))?;
                if let Some(collecting) = &mut self.collecting {
                    collecting.insert(key, view);
                } else {
                    return Ok(Some(self.put(key, view)?.into_iter().collect()));
                }
            }
            Event::Removed(removed) => {
                let gone = self.known.remove(&removed.key);
                let change = gone.map(|object| Change { event: Word::Deleted, object });
                return Ok(Some(change.into_iter().collect()));
            }
            Event::SnapshotEnd(_) => {
                let now = self.collecting.take().unwrap_or_default();
                return self.replace(now).map(Some);
            }
            Event::StatsRequest(_) | Event::TenantLeft(_) => {}
        }
        Ok(None)
    }

    fn put(&mut self, key: String, view: V) -> Result<Option<Change<V>>, Failure> {
        let event = match self.known.get(&key) {
            None => Word::Added,
            Some(before) if same(before, &view)? => return Ok(None),
            Some(_) => Word::Modified,
        };
        self.known.insert(key, view.clone());
        Ok(Some(Change { event, object: view }))
    }

    fn replace(&mut self, now: BTreeMap<String, V>) -> Result<Vec<Change<V>>, Failure> {
        let gone: Vec<String> =
            self.known.keys().filter(|key| !now.contains_key(*key)).cloned().collect();
        let removed = gone.iter().filter_map(|key| self.known.remove(key));
        let mut changes: Vec<_> =
            removed.map(|object| Change { event: Word::Deleted, object }).collect();
        for (key, view) in now {
            changes.extend(self.put(key, view)?);
        }
        Ok(changes)
    }
}

/// Whether two views say the same.
fn same<V: Serialize>(one: &V, other: &V) -> Result<bool, DataError> {
    Ok(Data::Json.text(one)? == Data::Json.text(other)?)
}

struct Printer {
    form: ListForm,
    /// Columns as wide as the first snapshot's rows.
    setting: Option<Setting>,
}

impl Printer {
    fn print<V: View>(&mut self, changes: &[Change<V>]) -> Result<String, DataError> {
        match self.form {
            ListForm::Table => Ok(self.table(changes)),
            ListForm::Names => {
                let line = |c: &Change<V>| format!("{} {}\n", c.event.text(), c.object.name());
                Ok(changes.iter().map(line).collect::<Vec<_>>().concat())
            }
            ListForm::Data(Data::Json) => {
                let lines = changes.iter().map(|change| Ok(serde_json::to_string(change)? + "\n"));
                Ok(lines.collect::<Result<Vec<_>, serde_json::Error>>()?.concat())
            }
            ListForm::Data(Data::Yaml) => {
                let document = |change| Ok("---\n".to_owned() + &Data::Yaml.text(change)?);
                Ok(changes.iter().map(document).collect::<Result<Vec<_>, DataError>>()?.concat())
            }
        }
    }

    fn table<V: View>(&mut self, changes: &[Change<V>]) -> String {
        let row = |change: &Change<V>| {
            [vec![change.event.text().to_owned()], change.object.watch_row()].concat()
        };
        let rows: Vec<Vec<String>> = changes.iter().map(row).collect();
        let mut text = String::new();
        let setting = self.setting.get_or_insert_with(|| {
            let columns: Vec<Column> =
                [&[("Event", Word::Modified.text().len())], V::watch_columns()].concat();
            let setting = Setting::of(&columns, &rows);
            text = setting.heading();
            setting
        });
        text + &rows.iter().map(|row| setting.line(row)).collect::<Vec<_>>().concat()
    }
}

#[cfg(test)]
mod tests {
    use control_api::v1::object::Kind;

    use super::*;
    use crate::view::PolicyView;

    fn policy(name: &str) -> Event {
        let policy = v1::Policy { tenant_name: "blue".into(), policy_name: name.into() };
        Event::Put(v1::Object { kind: Some(Kind::Policy(policy)) })
    }

    fn removed(key: &str) -> Event {
        Event::Removed(v1::Removed { kind: v1::Kind::Policy.into(), key: key.into() })
    }

    /// What is printed after each of the events.
    fn printed(form: ListForm, events: Vec<Event>) -> Vec<String> {
        let mut list = List::<PolicyView>::default();
        let mut printer = Printer { form, setting: None };
        let mut texts = Vec::new();
        for kind in events {
            let event = v1::WatchEvent { kind: Some(kind), ..v1::WatchEvent::default() };
            if let Some(changes) = list.hear(event).unwrap() {
                texts.push(printer.print(&changes).unwrap());
            }
        }
        texts
    }

    fn snapshot(names: &[&str]) -> Vec<Event> {
        let begin = Event::SnapshotBegin(v1::SnapshotBegin {});
        let end = Event::SnapshotEnd(v1::SnapshotEnd {});
        let puts = names.iter().map(|name| policy(name));
        [begin].into_iter().chain(puts).chain([end]).collect()
    }

    #[test]
    fn cli_1_a_watched_list_is_a_table_and_then_its_changes() {
        let events =
            [snapshot(&["a", "guard"]), vec![policy("b"), removed("blue:a"), removed("red:a")]];
        assert_eq!(
            printed(ListForm::Table, events.concat()),
            [
                "Event     Tenant  Policy\n--------  ------  ------\n\
                 ADDED     blue    a\nADDED     blue    guard\n",
                "ADDED     blue    b\n",
                "DELETED   blue    a\n",
                "",
            ]
        );
    }

    #[test]
    fn a_second_snapshot_shows_as_what_differs() {
        let events = [snapshot(&["a", "b"]), snapshot(&["b", "c"])];
        assert_eq!(
            printed(ListForm::Names, events.concat()),
            ["ADDED a\nADDED b\n", "DELETED a\nADDED c\n"]
        );
    }

    #[test]
    fn programs_get_a_line_or_a_document_for_each_change() {
        let json = printed(ListForm::Data(Data::Json), snapshot(&["a"]));
        let object = r#"{"key":"blue:a","tenantName":"blue","policyName":"a"}"#;
        assert_eq!(json, [format!("{{\"event\":\"ADDED\",\"object\":{object}}}\n")]);
        let yaml = printed(ListForm::Data(Data::Yaml), snapshot(&["a"]));
        assert_eq!(
            yaml,
            ["---\nevent: ADDED\nobject:\n  key: blue:a\n  tenantName: blue\n  policyName: a\n"]
        );
    }
}
