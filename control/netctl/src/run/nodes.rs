//! `netctl node`: nodes register by themselves; here is what is left to an operator.

use control_api::v1;

use super::{Done, Runner, removed};
use crate::args::{NodeRmArgs, NodeVerb};
use crate::session::Session;
use crate::view::NodeView;

/// Of each endpoint go two addresses too, and an etcd takes 128 operations at once.
const DELETES_AT_ONCE: usize = 32;

impl Runner {
    pub(super) async fn node(&self, verb: NodeVerb) -> Done {
        match verb {
            NodeVerb::Ls(args) => self.list::<NodeView>(None, &args).await,
            NodeVerb::Inspect(args) => self.inspect::<NodeView>(&args.name, &args.output).await,
            NodeVerb::Rm(args) => self.remove_node(args).await,
        }
    }

    async fn remove_node(&self, args: NodeRmArgs) -> Done {
        let line = format!("Deleting node {}\n", args.node.name);
        let format = self.format(&args.node.output);
        let name = args.node.name;
        let mut session = Session::open(&self.global).await?;
        let (kind, oper) = session.get(v1::Kind::Node, &name).await?;
        let is_there = matches!(kind, v1::object::Kind::Node(node) if node.connected);
        // One that is there has its containers: netmaster says so, and nothing is deleted.
        if is_there || !args.with_endpoints {
            return self.remove(v1::Kind::Node, name, format, line).await;
        }
        let key = |kind: v1::Kind, key| v1::ObjectKey { kind: kind.into(), key };
        let count = oper.endpoints.len();
        let endpoints = oper.endpoints.into_iter();
        let deletes: Vec<_> =
            endpoints.map(|endpoint| key(v1::Kind::Endpoint, endpoint.endpoint_id)).collect();
        for some in deletes.chunks(DELETES_AT_ONCE) {
            session.delete_all(some.to_vec()).await?;
        }
        let warnings = session.delete_all(vec![key(v1::Kind::Node, name.clone())]).await?;
        let line = format!("Deleting {count} endpoints of node {name}\n{line}");
        removed(name, format, line, warnings)
    }
}
