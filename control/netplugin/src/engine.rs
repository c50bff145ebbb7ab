//! A connection to vrouterd.
//!
//! Failures are of two kinds that need opposite answers: the engine refused what was asked, or it
//! is no longer there to ask.

use std::error::Error as _;
use std::path::Path;
use std::time::Duration;

use datapath_api::convert::ops_to_proto;
use datapath_api::v1::datapath_client::DatapathClient;
use datapath_api::v1::{
    AddPortRequest, ConfirmPortRequest, CountersRequest, DropLogRequest, DroppedPacket, Event,
    EventsRequest, Feature, HelloRequest, ListKind, ListRequest, Port, RemovePortRequest,
    RuleCounter,
};
use flowtable::entry::Op;
use flowtable::ids::PortId;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

/// Version of datapath.v1 spoken here.
pub(crate) const API_VERSION: u32 = 1;
/// An engine that does not answer a call within this is treated as gone.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the engine did not do something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("no connection: {0}")]
    Connect(tonic::transport::Error),
    #[error("lost: {}", .0.message())]
    Lost(Box<Status>),
    #[error("{0}")]
    Refused(String),
}

impl From<Status> for EngineError {
    fn from(status: Status) -> Self {
        // Only the transport's own statuses have a source.
        let gone =
            matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded);
        if gone || status.source().is_some() {
            return Self::Lost(Box::new(status));
        }
        Self::Refused(status.message().to_owned())
    }
}

/// One engine process, as long as the connection to it lasts.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    client: DatapathClient<Channel>,
    instance: String,
    /// Engines of before took one port a request.
    removes_many: bool,
}

impl Engine {
    /// Connects; the stream ends when the engine does.
    pub(crate) async fn connect(socket: &Path) -> Result<(Self, Streaming<Event>), EngineError> {
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))
            .map_err(EngineError::Connect)?
            .connect_timeout(CONNECT_TIMEOUT);
        let channel = endpoint.connect().await.map_err(EngineError::Connect)?;
        let mut client = DatapathClient::new(channel);
        let hello = HelloRequest { api_version: API_VERSION, client: "netplugin".to_owned() };
        let reply = client.hello(bounded(hello)).await?.into_inner();
        let events = client.events(EventsRequest {}).await?.into_inner();
        let removes_many = reply.features & Feature::RemoveMany as u64 != 0;
        Ok((Self { client, instance: reply.instance, removes_many }, events))
    }

    /// Drawn anew by every engine process.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    pub(crate) async fn ports(&self) -> Result<Vec<Port>, EngineError> {
        let limit = u32::from(PortId::MAX.get()) + 1;
        let request = ListRequest { kind: ListKind::Ports.into(), limit, ..Default::default() };
        Ok(self.client.clone().list(bounded(request)).await?.into_inner().ports)
    }

    pub(crate) async fn add_port(&self, request: AddPortRequest) -> Result<(), EngineError> {
        self.client.clone().add_port(bounded(request)).await?;
        Ok(())
    }

    pub(crate) async fn confirm_port(&self, port: PortId) -> Result<(), EngineError> {
        let request = ConfirmPortRequest { port: port.get().into() };
        self.client.clone().confirm_port(bounded(request)).await?;
        Ok(())
    }

    /// Removes ports; at once, from an engine that can.
    pub(crate) async fn remove_ports(&self, ports: &[PortId]) -> Result<(), EngineError> {
        let at_once = if self.removes_many { ports.len().max(1) } else { 1 };
        for some in ports.chunks(at_once) {
            let mut ids = some.iter().map(|port| u32::from(port.get()));
            let Some(port) = ids.next() else { continue };
            let request = RemovePortRequest { port, more: ids.collect() };
            self.client.clone().remove_port(bounded(request)).await?;
        }
        Ok(())
    }

    pub(crate) async fn write(&self, ops: &[Op]) -> Result<(), EngineError> {
        self.client.clone().write(bounded(ops_to_proto(ops))).await?;
        Ok(())
    }

    /// The last dropped packets of all tenants and every one from then on; ends when the engine does.
    pub(crate) async fn drop_log(&self) -> Result<Streaming<DroppedPacket>, EngineError> {
        let request = DropLogRequest { follow: true, vrf: None };
        Ok(self.client.clone().drop_log(request).await?.into_inner())
    }

    pub(crate) async fn rule_counters(&self) -> Result<Vec<RuleCounter>, EngineError> {
        let reply = self.client.clone().counters(bounded(CountersRequest {})).await?;
        Ok(reply.into_inner().rules)
    }
}

fn bounded<T>(message: T) -> Request<T> {
    telemetry::call(message, CALL_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_engine_is_not_taken_for_its_loss() {
        let refused = EngineError::from(Status::invalid_argument("port 9: no such device"));
        assert!(matches!(refused, EngineError::Refused(text) if text == "port 9: no such device"));
        let lost = EngineError::from(Status::unavailable("gone"));
        assert!(matches!(lost, EngineError::Lost(_)));
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_no_connection() {
        let dir = tempfile::tempdir().unwrap();
        let refused = Engine::connect(&dir.path().join("none.sock")).await.unwrap_err();
        assert!(matches!(refused, EngineError::Connect(_)), "{refused}");
    }
}
