//! Objects as netctl prints them: one type per kind, with Contiv's JSON names, Contiv's columns and
//! the short name of `-q`. All functions here are pure: objects in, text out.
//!
//! JSON always carries every field, so that a script need not tell an absent field from an empty
//! one. `ls` gives an array of configurations, `inspect` gives `{"Config": .., "Oper": ..}`.

mod app_profile;
mod bgp;
mod endpoint;
mod global;
mod group;
mod network;
mod node;
mod policy;
mod profile;
mod rule;
mod service;
mod tenant;

use control_api::v1;
use control_api::v1::object::Kind;
use serde::Serialize;

use crate::data::{Data, DataError};
use crate::table::{self, Column};

pub(crate) use app_profile::AppProfileView;
pub(crate) use bgp::BgpView;
pub(crate) use endpoint::EndpointView;
pub(crate) use global::GlobalView;
pub(crate) use group::GroupView;
pub(crate) use network::NetworkView;
pub(crate) use node::NodeView;
pub(crate) use policy::PolicyView;
pub(crate) use profile::ProfileView;
pub(crate) use rule::{RuleView, Stats, rule_tables};
pub(crate) use service::ServiceView;
pub(crate) use tenant::TenantView;

/// A kind of object that can be listed and shown.
pub(crate) trait View: Clone + Serialize + Sized {
    /// The kind in control.v1.
    const KIND: v1::Kind;
    /// Headings of its table.
    const COLUMNS: &'static [Column];
    /// Its read-only state.
    type Oper: Serialize;

    /// The view of an object of this kind; another kind has none.
    fn from_kind(kind: Kind) -> Option<Self>;
    /// What `-q` prints.
    fn name(&self) -> &str;
    /// The cells of its row, in the order of [`View::COLUMNS`].
    fn row(&self) -> Vec<String>;
    /// Its columns in a list that is watched, where tables of two kinds of rows can't be.
    fn watch_columns() -> &'static [Column] {
        Self::COLUMNS
    }
    /// Its cells there.
    fn watch_row(&self) -> Vec<String> {
        self.row()
    }
    /// Its state, but for what of it is not in force: every kind may say that.
    fn oper(&self, oper: v1::Oper) -> Self::Oper;
}

/// What a list prints of each object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListForm {
    /// A row.
    Table,
    /// Only its name.
    Names,
    /// Its configuration.
    Data(Data),
}

/// A list of objects.
pub(crate) fn list<V: View>(views: &[V], form: ListForm) -> Result<String, DataError> {
    match form {
        ListForm::Table => {
            Ok(table::render(V::COLUMNS, &views.iter().map(View::row).collect::<Vec<_>>()))
        }
        ListForm::Names => Ok(names(views)),
        ListForm::Data(data) => data.text(&views),
    }
}

/// One name a line.
pub(crate) fn names<V: View>(views: &[V]) -> String {
    views.iter().flat_map(|view| [view.name(), "\n"]).collect()
}

/// One object with its state.
pub(crate) fn inspect<V: View>(view: &V, oper: v1::Oper, data: Data) -> Result<String, DataError> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inspected<'a, V: View> {
        config: &'a V,
        oper: State<V::Oper>,
    }
    /// Here and not in the views, so that none can leave it out.
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct State<O> {
        #[serde(flatten)]
        of_its_kind: O,
        not_in_force: String,
    }
    let not_in_force = oper.not_in_force.clone();
    let oper = State { of_its_kind: view.oper(oper), not_in_force };
    data.text(&Inspected { config: view, oper })
}

#[cfg(test)]
mod tests;
