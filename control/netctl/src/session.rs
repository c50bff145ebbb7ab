//! One connection to netmaster, and its calls in the form that commands need them.

use control_api::v1;
use control_api::v1::net_master_client::NetMasterClient;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::view::View;

/// Largest reply accepted: a list of 100,000 endpoints of some hundred bytes, with room.
const REPLY_BYTES_MAX: usize = 64 << 20;
const LATE: &str = "stored, but not yet in force on these nodes";

pub(crate) struct Session {
    client: NetMasterClient<Channel>,
    no_wait: bool,
}

/// What a write left behind.
pub(crate) struct Written {
    /// The object as stored; none after a delete.
    pub(crate) object: Option<v1::object::Kind>,
    /// What the user should know although it worked.
    pub(crate) warnings: Vec<String>,
}

/// Whether an apply is for real.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rehearsal {
    /// It is checked, and changes nothing.
    Only,
    /// It is done.
    No,
}

impl From<bool> for Rehearsal {
    fn from(dry_run: bool) -> Self {
        if dry_run { Self::Only } else { Self::No }
    }
}

/// What a list is taken of.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Only of this tenant; none: of all.
    pub(crate) tenant: Option<String>,
    /// Rules only: of this policy.
    pub(crate) parent: String,
    /// Rules only: with counters.
    pub(crate) stats: bool,
}

/// A list with what came beside it.
pub(crate) struct Listed<V> {
    pub(crate) views: Vec<V>,
    pub(crate) counters: Vec<v1::RuleCounter>,
    pub(crate) warnings: Vec<String>,
}

impl Session {
    pub(crate) async fn open(args: &GlobalArgs) -> Result<Self, Failure> {
        let channel = args.netmaster.connect(args.timeout).await.map_err(|source| {
            Failure::Unreachable { target: args.netmaster.clone(), source: Box::new(source) }
        })?;
        let client = NetMasterClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
        Ok(Self { client, no_wait: args.no_wait })
    }

    pub(crate) async fn create(&mut self, kind: v1::object::Kind) -> Result<Written, Failure> {
        let object = Some(v1::Object { kind: Some(kind) });
        let request = v1::CreateRequest { object, no_wait: self.no_wait };
        Ok(written(self.client.create(request).await?.into_inner()))
    }

    pub(crate) async fn update(&mut self, kind: v1::object::Kind) -> Result<Written, Failure> {
        let object = Some(v1::Object { kind: Some(kind) });
        let request = v1::UpdateRequest { object, no_wait: self.no_wait };
        Ok(written(self.client.update(request).await?.into_inner()))
    }

    pub(crate) async fn delete(&mut self, kind: v1::Kind, key: &str) -> Result<Written, Failure> {
        let request =
            v1::DeleteRequest { kind: kind.into(), key: key.to_owned(), no_wait: self.no_wait };
        Ok(written(self.client.delete(request).await?.into_inner()))
    }

    pub(crate) async fn get(
        &mut self,
        kind: v1::Kind,
        key: &str,
    ) -> Result<(v1::object::Kind, v1::Oper), Failure> {
        let request = v1::GetRequest { kind: kind.into(), key: key.to_owned() };
        let reply = self.client.get(request).await?.into_inner();
        let kind = reply.object.and_then(|object| object.kind).ok_or(Failure::Reply("object"))?;
        Ok((kind, reply.oper.unwrap_or_default()))
    }

    /// All objects of a kind; of one tenant, if named.
    pub(crate) async fn objects(
        &mut self,
        kind: v1::Kind,
        tenant: Option<&str>,
    ) -> Result<Vec<v1::Object>, Failure> {
        Ok(self.reply(kind, tenant).await?.objects)
    }

    /// As [`Self::objects`], with the revision they are of.
    pub(crate) async fn reply(
        &mut self,
        kind: v1::Kind,
        tenant: Option<&str>,
    ) -> Result<v1::ListReply, Failure> {
        let tenant = tenant.unwrap_or_default().to_owned();
        let request = v1::ListRequest { kind: kind.into(), tenant, ..Default::default() };
        Ok(self.client.list(request).await?.into_inner())
    }

    /// Makes all objects so, or none; what became of each, and warnings.
    pub(crate) async fn apply(
        &mut self,
        objects: Vec<v1::Object>,
        rehearsal: Rehearsal,
    ) -> Result<(Vec<v1::ApplyResult>, Vec<String>), Failure> {
        let request = v1::ApplyRequest {
            objects,
            deletes: Vec::new(),
            dry_run: rehearsal == Rehearsal::Only,
            no_wait: self.no_wait,
        };
        let reply = self.client.apply(request).await?.into_inner();
        Ok((reply.results, warning(LATE, &reply.late_nodes)))
    }

    /// Deletes all of these, or none; warnings.
    pub(crate) async fn delete_all(
        &mut self,
        deletes: Vec<v1::ObjectKey>,
    ) -> Result<Vec<String>, Failure> {
        let request =
            v1::ApplyRequest { deletes, no_wait: self.no_wait, ..v1::ApplyRequest::default() };
        let reply = self.client.apply(request).await?.into_inner();
        Ok(warning(LATE, &reply.late_nodes))
    }

    /// The list and every change of it; see `NetMaster.Watch`.
    pub(crate) async fn watch<V: View>(
        &mut self,
        what: Selection,
    ) -> Result<Streaming<v1::WatchEvent>, Failure> {
        let tenant = what.tenant.unwrap_or_default();
        let request = v1::WatchListRequest { kind: V::KIND.into(), tenant, parent: what.parent };
        Ok(self.client.watch(request).await?.into_inner())
    }

    pub(crate) async fn explain(
        &mut self,
        request: v1::ExplainRequest,
    ) -> Result<v1::ExplainReply, Failure> {
        Ok(self.client.explain(request).await?.into_inner())
    }

    pub(crate) async fn view<V: View>(&mut self, key: &str) -> Result<(V, v1::Oper), Failure> {
        let (kind, oper) = self.get(V::KIND, key).await?;
        let view = V::from_kind(kind).ok_or(Failure::Reply("object of the kind asked for"))?;
        Ok((view, oper))
    }

    pub(crate) async fn addresses(
        &mut self,
        request: v1::ListAddressesRequest,
    ) -> Result<Vec<v1::Address>, Failure> {
        Ok(self.client.list_addresses(request).await?.into_inner().addresses)
    }

    pub(crate) async fn reserve(
        &mut self,
        request: v1::AllocateAddressRequest,
    ) -> Result<v1::AllocateAddressReply, Failure> {
        Ok(self.client.allocate_address(request).await?.into_inner())
    }

    pub(crate) async fn release(
        &mut self,
        request: v1::ReleaseAddressRequest,
    ) -> Result<(), Failure> {
        self.client.release_address(request).await?;
        Ok(())
    }

    pub(crate) async fn list<V: View>(&mut self, what: Selection) -> Result<Listed<V>, Failure> {
        let request = v1::ListRequest {
            kind: V::KIND.into(),
            tenant: what.tenant.unwrap_or_default(),
            parent: what.parent,
            stats: what.stats,
        };
        let reply = self.client.list(request).await?.into_inner();
        let views = reply.objects.into_iter().filter_map(|object| object.kind);
        let views = views.map(V::from_kind).collect::<Option<Vec<V>>>();
        let late = reply.late_nodes;
        Ok(Listed {
            views: views.ok_or(Failure::Reply("objects of the kind asked for"))?,
            counters: reply.counters,
            warnings: warning("the counters lack what these nodes counted", &late),
        })
    }
}

fn written(reply: v1::WriteReply) -> Written {
    Written {
        object: reply.object.and_then(|object| object.kind),
        warnings: warning(LATE, &reply.late_nodes),
    }
}

fn warning(text: &str, nodes: &[String]) -> Vec<String> {
    if nodes.is_empty() { Vec::new() } else { vec![format!("{text}: {}", nodes.join(", "))] }
}

#[cfg(test)]
mod tests {
    use control_api::v1;

    use super::written;

    #[test]
    fn late_nodes_are_named_in_one_warning() {
        let reply = v1::WriteReply {
            late_nodes: vec!["node-a".into(), "node-b".into()],
            ..Default::default()
        };
        let warnings = written(reply).warnings;
        assert_eq!(warnings, ["stored, but not yet in force on these nodes: node-a, node-b"]);
        assert!(written(v1::WriteReply::default()).warnings.is_empty());
    }
}
