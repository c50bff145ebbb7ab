//! `netctl node`: nodes register by themselves; here is what is left to an operator.

use control_api::v1;

use super::{Done, Runner, removed};
use crate::args::{NodeRmArgs, NodeVerb};
use crate::session::Session;
use crate::view::NodeView;

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
        if !args.with_endpoints {
            return self.remove(v1::Kind::Node, args.node.name, format, line).await;
        }
        let mut session = Session::open(&self.global).await?;
        let (_, oper) = session.get(v1::Kind::Node, &args.node.name).await?;
        let key = |kind: v1::Kind, key| v1::ObjectKey { kind: kind.into(), key };
        let endpoints = oper.endpoints.into_iter();
        let mut deletes: Vec<_> =
            endpoints.map(|endpoint| key(v1::Kind::Endpoint, endpoint.endpoint_id)).collect();
        let count = deletes.len();
        deletes.push(key(v1::Kind::Node, args.node.name.clone()));
        // As one: a node that comes back meanwhile keeps all of its endpoints.
        let warnings = session.delete_all(deletes).await?;
        let line = format!("Deleting {count} endpoints of node {}\n{line}", args.node.name);
        removed(args.node.name, format, line, warnings)
    }
}
