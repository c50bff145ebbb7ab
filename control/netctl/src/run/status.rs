//! `status`: netmaster and the nodes at one glance.

use control_api::v1;
use control_api::v1::object::Kind as Object;
use serde::Serialize;

use super::version::CLIENT;
use super::{Done, Runner};
use crate::args::{Format, KindName, OutputArgs};
use crate::failure::Failure;
use crate::session::Session;

/// The cluster, as programs read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    netmaster: String,
    client_version: &'static str,
    revision: u64,
    nodes: Vec<NodeStatus>,
    objects: Vec<Count>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    node_name: String,
    version: String,
    connected: bool,
    /// Revisions of intent that are not in force there.
    lag: u64,
}

#[derive(Debug, Serialize)]
struct Count {
    kind: String,
    count: usize,
}

impl Runner {
    pub(super) async fn status(&self, output: &OutputArgs) -> Done {
        let status = self.look(&mut Session::open(&self.global).await?).await?;
        match self.format(output) {
            Format::Data(data) => Ok(data.text(&status)?.into()),
            Format::Table => Ok(status.lines().into()),
        }
    }

    /// Asks netmaster for everything that is shown.
    pub(super) async fn look(&self, session: &mut Session) -> Result<Status, Failure> {
        let mut objects = Vec::new();
        for name in KindName::EVERY {
            let count = session.objects(name.kind(), None).await?.len();
            objects.push(Count { kind: name.noun(), count });
        }
        let nodes = session.reply(v1::Kind::Node, None).await?;
        let revision = nodes.revision;
        let node = |object: v1::Object| match object.kind {
            Some(Object::Node(node)) => Some(NodeStatus {
                lag: node.lag,
                node_name: node.node_name,
                version: node.version,
                connected: node.connected,
            }),
            Some(_) | None => None,
        };
        Ok(Status {
            netmaster: self.global.netmaster.to_string(),
            client_version: CLIENT,
            revision,
            nodes: nodes.objects.into_iter().filter_map(node).collect(),
            objects,
        })
    }
}

impl Status {
    fn lines(&self) -> String {
        let connected = self.nodes.iter().filter(|node| node.connected).count();
        let troubled = self.nodes.iter().filter_map(NodeStatus::trouble);
        let counts: Vec<String> =
            self.objects.iter().map(|Count { kind, count }| format!("{kind} {count}")).collect();
        let mut lines = vec![
            format!("Netmaster: {}, revision {}\n", self.netmaster, self.revision),
            format!("Nodes: {}, connected {connected}\n", self.nodes.len()),
        ];
        lines.extend(troubled);
        lines.push(format!("Objects: {}\n", counts.join(", ")));
        lines.concat()
    }
}

impl NodeStatus {
    fn trouble(&self) -> Option<String> {
        let name = &self.node_name;
        match (self.connected, self.lag) {
            (true, 0) => None,
            (true, lag) => Some(format!("  {name}: {lag} revisions behind\n")),
            (false, _) => Some(format!("  {name}: not connected; is its netplugin running?\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Count, NodeStatus, Status};

    #[test]
    fn cli_1_a_status_names_only_nodes_that_are_in_trouble() {
        let node = |name: &str, connected, lag| NodeStatus {
            node_name: name.into(),
            version: "0.1.0".into(),
            connected,
            lag,
        };
        let status = Status {
            netmaster: "http://127.0.0.1:9999".into(),
            client_version: "0.1.0",
            revision: 42,
            nodes: vec![node("a", true, 0), node("b", true, 3), node("c", false, 42)],
            objects: vec![
                Count { kind: "tenant".into(), count: 2 },
                Count { kind: "network".into(), count: 5 },
            ],
        };
        assert_eq!(
            status.lines(),
            "Netmaster: http://127.0.0.1:9999, revision 42\n\
             Nodes: 3, connected 2\n\
             \x20 b: 3 revisions behind\n\
             \x20 c: not connected; is its netplugin running?\n\
             Objects: tenant 2, network 5\n"
        );
    }
}
