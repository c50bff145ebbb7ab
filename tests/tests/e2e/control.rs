//! `control.v1` spoken directly, for what netctl has no words for: other nodes, and addresses
//! without endpoints.

use anyhow::{Context as _, Result};
use control_api::v1;
use control_api::v1::net_master_client::NetMasterClient;
use control_api::v1::node_client::NodeClient;
use kit::Node;
use netdev::Namespace;
use tonic::transport::{Channel, Endpoint};

/// Runs `work` with a connection to netmaster, from inside the node's namespace.
pub(crate) fn with_netmaster<T: Send>(
    node: &Node,
    work: impl AsyncFnOnce(Channel) -> Result<T> + Send,
) -> Result<T> {
    connected(node.namespace(), &node.netmaster_url(), work)
}

/// As [`with_netmaster`], where the node itself is in other hands.
pub(crate) fn connected<T: Send>(
    namespace: &Namespace,
    url: &str,
    work: impl AsyncFnOnce(Channel) -> Result<T> + Send,
) -> Result<T> {
    namespace.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let endpoint = Endpoint::from_shared(url.to_owned())?;
            work(endpoint.connect().await.context("connecting")?).await
        })
    })?
}

/// Makes a host of the underlay known as a node, although it runs nothing of Weir.
pub(crate) fn register(node: &Node, name: &str, vtep: &str) -> Result<()> {
    let (node_name, vtep_ip) = (name.to_owned(), vtep.to_owned());
    with_netmaster(node, async move |channel| {
        let request =
            v1::RegisterRequest { api_version: 1, node_name, vtep_ip, ..Default::default() };
        NodeClient::new(channel).register(request).await?;
        Ok(())
    })
}

/// Creates an endpoint; as stored.
pub(crate) fn create_endpoint(node: &Node, endpoint: v1::Endpoint) -> Result<v1::Endpoint> {
    with_netmaster(node, async move |channel| {
        let object = v1::Object { kind: Some(v1::object::Kind::Endpoint(endpoint)) };
        let request = v1::CreateRequest { object: Some(object), no_wait: false };
        let reply = NetMasterClient::new(channel).create(request).await?.into_inner();
        anyhow::ensure!(reply.late_nodes.is_empty(), "late: {:?}", reply.late_nodes);
        match reply.object.and_then(|object| object.kind) {
            Some(v1::object::Kind::Endpoint(stored)) => Ok(stored),
            other => anyhow::bail!("the reply has {other:?}"),
        }
    })
}
