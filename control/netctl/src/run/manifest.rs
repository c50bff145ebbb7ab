//! Objects as files: `get` writes them, `apply` makes them so, `diff` says what that would change.

use std::io::Read as _;

use clap::ValueEnum as _;
use control_api::v1;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Done, Outcome, Runner};
use crate::args::{ApplyArgs, DiffArgs, Format, GetArgs, KindName};
use crate::data::DataError;
use crate::failure::Failure;
use crate::manifest;
use crate::session::{Rehearsal, Session};
use crate::table;

/// What became, or would become, of an object.
#[derive(Debug, Serialize)]
struct Row {
    kind: String,
    key: String,
    action: &'static str,
}

/// A row with the object before and after.
#[derive(Debug, Serialize)]
struct Difference {
    #[serde(flatten)]
    row: Row,
    before: Value,
    after: Value,
}

impl Runner {
    pub(super) async fn get(&self, args: GetArgs) -> Done {
        let mut session = Session::open(&self.global).await?;
        let objects = match (args.kind, args.key) {
            (Some(kind), Some(key)) => {
                let (found, _) = session.get(kind.kind(), &key).await?;
                vec![v1::Object { kind: Some(found) }]
            }
            (kind, _) => {
                let kinds = kind.map_or(KindName::CONFIGURATION.to_vec(), |kind| vec![kind]);
                let mut all = Vec::new();
                for kind in kinds {
                    all.extend(session.objects(kind.kind(), args.tenant.as_deref()).await?);
                }
                all
            }
        };
        match self.format(&args.output) {
            Format::Data(data) => Ok(manifest::write(&objects, data)?.into()),
            Format::Table => {
                let known = objects.iter().filter_map(manifest::identity);
                let rows: Vec<_> = known.map(|(kind, key)| vec![noun(kind), key]).collect();
                Ok(table::render(&[("Kind", 4), ("Key", 3)], &rows).into())
            }
        }
    }

    pub(super) async fn apply(&self, args: ApplyArgs) -> Done {
        let objects = manifest::read(&text_of(&args.filename)?)?;
        let mut session = Session::open(&self.global).await?;
        let (results, warnings) = session.apply(objects, args.dry_run.into()).await?;
        let rows: Vec<Row> = results.iter().map(Row::of).collect();
        let text = match self.format(&args.output) {
            Format::Data(data) => data.text(&rows)?,
            Format::Table => summary(&rows),
        };
        Ok(Outcome { text, warnings })
    }

    pub(super) async fn diff(&self, args: DiffArgs) -> Done {
        let objects = manifest::read(&text_of(&args.filename)?)?;
        let mut session = Session::open(&self.global).await?;
        let (results, warnings) = session.apply(objects, Rehearsal::Only).await?;
        let changes = results.iter().filter(|result| result.action() != v1::ApplyAction::Unchanged);
        let differences = changes.map(Difference::of).collect::<Result<Vec<_>, _>>()?;
        let text = match self.format(&args.output) {
            Format::Data(data) => data.text(&differences)?,
            Format::Table => differences.iter().map(Difference::lines).collect(),
        };
        Ok(Outcome { text, warnings })
    }
}

/// The text of a file, or of standard input; never more than is worth reading.
fn text_of(name: &str) -> Result<String, Failure> {
    let failed = |source| Failure::File { name: name.to_owned(), source };
    let limit = manifest::BYTES_MAX as u64 + 1;
    let mut text = String::new();
    let read = if name == "-" {
        std::io::stdin().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(name).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    read.map_err(failed)?;
    if text.len() > manifest::BYTES_MAX {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(text)
}

impl Row {
    fn of(result: &v1::ApplyResult) -> Self {
        let action = match result.action() {
            v1::ApplyAction::Created => "created",
            v1::ApplyAction::Updated => "updated",
            v1::ApplyAction::Unchanged => "unchanged",
            v1::ApplyAction::Deleted => "deleted",
            v1::ApplyAction::Unspecified => "unknown",
        };
        Self { kind: noun(result.kind()), key: result.key.clone(), action }
    }
}

/// A line for each object that changed, and the counts.
fn summary(rows: &[Row]) -> String {
    let count = |action| rows.iter().filter(|row| row.action == action).count();
    let changed = rows.iter().filter(|row| row.action != "unchanged");
    let lines = changed.map(|row| format!("{} {} {}\n", row.action, row.kind, row.key));
    let lines = lines.collect::<Vec<_>>().concat();
    format!(
        "{lines}{} created, {} updated, {} unchanged\n",
        count("created"),
        count("updated"),
        count("unchanged")
    )
}

impl Difference {
    fn of(result: &v1::ApplyResult) -> Result<Self, DataError> {
        let value =
            |object: &Option<v1::Object>| object.as_ref().map_or(Ok(Value::Null), manifest::value);
        let (before, after) = (value(&result.before)?, value(&result.after)?);
        Ok(Self { row: Row::of(result), before, after })
    }

    /// The object with a sign before it, and below it the fields that differ.
    fn lines(&self) -> String {
        let none = Map::new();
        let (before, after) =
            (self.before.as_object().unwrap_or(&none), self.after.as_object().unwrap_or(&none));
        let sign = match self.row.action {
            "created" => '+',
            "deleted" => '-',
            _ => '~',
        };
        let mut lines = vec![format!("{sign} {} {}\n", self.row.kind, self.row.key)];
        let gone = before.iter().filter(|(name, value)| after.get(*name) != Some(value));
        let new = after.iter().filter(|(name, value)| before.get(*name) != Some(value));
        for (sign, (name, value)) in gone.map(|f| ('-', f)).chain(new.map(|f| ('+', f))) {
            if name != "kind" {
                lines.push(format!("{sign}   {name}: {}\n", plain(value)));
            }
        }
        lines.concat()
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The noun of a kind in files.
fn noun(kind: v1::Kind) -> String {
    let named = KindName::value_variants().iter().find(|name| name.kind() == kind);
    named.map_or_else(String::new, |name| name.noun())
}

#[cfg(test)]
mod tests {
    use control_api::v1::object::Kind as Object;

    use super::*;

    fn network(gateway: &str) -> v1::Object {
        let network = v1::Network {
            tenant_name: "blue".into(),
            network_name: "web".into(),
            gateway: gateway.into(),
            pkt_tag: 7,
            ..Default::default()
        };
        v1::Object { kind: Some(Object::Network(network)) }
    }

    fn result(
        action: v1::ApplyAction,
        before: Option<v1::Object>,
        after: Option<v1::Object>,
    ) -> v1::ApplyResult {
        let kind = v1::Kind::Network.into();
        v1::ApplyResult { kind, key: "blue:web".into(), action: action.into(), before, after }
    }

    #[test]
    fn cli_1_a_diff_shows_each_field_that_differs() {
        let lines = |result: &v1::ApplyResult| Difference::of(result).unwrap().lines();
        let changed = result(
            v1::ApplyAction::Updated,
            Some(network("10.1.1.254")),
            Some(network("10.1.1.253")),
        );
        assert_eq!(
            lines(&changed),
            "~ network blue:web\n-   gateway: 10.1.1.254\n+   gateway: 10.1.1.253\n"
        );
        let created = result(v1::ApplyAction::Created, None, Some(network("")));
        assert_eq!(
            lines(&created),
            "+ network blue:web\n+   tenantName: blue\n+   networkName: web\n+   pktTag: 7\n"
        );
    }

    #[test]
    fn cli_1_an_apply_names_what_changed_and_counts_the_rest() {
        let rows = [v1::ApplyAction::Created, v1::ApplyAction::Unchanged]
            .map(|action| Row::of(&result(action, None, None)));
        assert_eq!(summary(&rows), "created network blue:web\n1 created, 0 updated, 1 unchanged\n");
    }

    #[test]
    fn every_kind_has_a_noun_and_it_is_the_one_in_files() {
        for kind in KindName::value_variants() {
            let noun = noun(kind.kind());
            let text = format!("kind: {noun}\n");
            let objects = manifest::read(&text).unwrap();
            assert_eq!(manifest::identity(&objects[0]).unwrap().0, kind.kind(), "{noun}");
        }
    }
}
