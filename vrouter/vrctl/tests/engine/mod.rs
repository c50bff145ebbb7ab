//! An engine that answers with what a test gives it, on a socket of its own. It stands in for what a
//! real one can't be made to do at will: to say its next word only when asked to.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use datapath_api::v1::datapath_server::{Datapath, DatapathServer};
use datapath_api::v1::{self, Connection, DroppedPacket, Meter, Port, TraceReply};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

/// What the engine says in its streams, and what it was asked for.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// Taken by the first `TraceLive`.
    pub(crate) traces: Option<mpsc::Receiver<Result<TraceReply, Status>>>,
    /// Taken by the first `DropLog`.
    pub(crate) dropped: Option<mpsc::Receiver<Result<DroppedPacket, Status>>>,
    /// The requests, as their messages print.
    pub(crate) asked: Vec<String>,
}

#[derive(Clone)]
struct Fake(Arc<Mutex<Script>>);

/// The engine's process, in a directory of its own.
pub(crate) struct Engine {
    pub(crate) script: Arc<Mutex<Script>>,
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

impl Engine {
    /// Serves when this returns.
    pub(crate) fn start(script: Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = Arc::new(Mutex::new(script));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let fake = Fake(Arc::clone(&script));
        let context = runtime.enter();
        let listener = tokio::net::UnixListener::bind(dir.path().join("engine.sock")).unwrap();
        let server = tonic::transport::Server::builder().add_service(DatapathServer::new(fake));
        runtime.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        drop(context);
        Self { script, runtime, dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn vrctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_vrctl")));
        command.arg("--socket").arg(self.path("engine.sock")).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The output of a run that must succeed.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.vrctl(arguments).output().unwrap();
        assert!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    /// Says the next word of a stream.
    pub(crate) fn say<T: Send + 'static>(&self, stream: &mpsc::Sender<Result<T, Status>>, word: T) {
        self.runtime.block_on(stream.send(Ok(word))).unwrap();
    }
}

impl Fake {
    fn asked(&self, request: &impl std::fmt::Debug) {
        self.0.lock().unwrap().asked.push(format!("{request:?}"));
    }
}

fn absent<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("no part of these tests"))
}

#[tonic::async_trait]
impl Datapath for Fake {
    async fn hello(
        &self,
        _: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        absent()
    }

    async fn write(
        &self,
        _: Request<v1::WriteRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        absent()
    }

    async fn add_port(
        &self,
        _: Request<v1::AddPortRequest>,
    ) -> Result<Response<v1::AddPortReply>, Status> {
        absent()
    }

    async fn remove_port(
        &self,
        _: Request<v1::RemovePortRequest>,
    ) -> Result<Response<v1::RemovePortReply>, Status> {
        absent()
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListReply>, Status> {
        let request = request.into_inner();
        self.asked(&request);
        let port = Port { id: 3, name: "web".into(), ..Port::default() };
        let connection = Connection { state: "new".into(), port: 3, ..Connection::default() };
        let meter = Meter { meter: 7, unit: "bits".into(), ..Meter::default() };
        let mut reply = v1::ListReply::default();
        match request.kind() {
            v1::ListKind::Ports => reply.ports.push(port),
            v1::ListKind::Connections => reply.connections.push(connection),
            v1::ListKind::Meters => reply.meters.push(meter),
            v1::ListKind::Unspecified | v1::ListKind::Entries | v1::ListKind::Flows => {
                return absent();
            }
        }
        Ok(Response::new(reply))
    }

    async fn counters(
        &self,
        _: Request<v1::CountersRequest>,
    ) -> Result<Response<v1::CountersReply>, Status> {
        let connections = Some(v1::ConnectionCounters { open: 6, ..Default::default() });
        Ok(Response::new(v1::CountersReply { connections, ..v1::CountersReply::default() }))
    }

    async fn drops(
        &self,
        _: Request<v1::DropsRequest>,
    ) -> Result<Response<v1::DropsReply>, Status> {
        absent()
    }

    async fn confirm_port(
        &self,
        _: Request<v1::ConfirmPortRequest>,
    ) -> Result<Response<v1::ConfirmPortReply>, Status> {
        absent()
    }

    async fn workers(
        &self,
        _: Request<v1::WorkersRequest>,
    ) -> Result<Response<v1::WorkersReply>, Status> {
        absent()
    }

    /// The packet's bytes come back as its flow.
    async fn trace(
        &self,
        request: Request<v1::TraceRequest>,
    ) -> Result<Response<TraceReply>, Status> {
        let v1::TraceRequest { packet, in_port } = request.into_inner();
        let Some(v1::trace_request::Packet::Frame(frame)) = packet else { return absent() };
        let in_port = in_port.parse().unwrap();
        let (flow, packet_bytes) = (format!("{frame:?}"), frame.len() as u32);
        let verdict = "drop".to_owned();
        let reply = TraceReply { verdict, flow, packet_bytes, in_port, ..TraceReply::default() };
        Ok(Response::new(reply))
    }

    type TraceLiveStream = ReceiverStream<Result<TraceReply, Status>>;

    async fn trace_live(
        &self,
        request: Request<v1::TraceLiveRequest>,
    ) -> Result<Response<Self::TraceLiveStream>, Status> {
        self.asked(&request.into_inner());
        let traces = self.0.lock().unwrap().traces.take();
        traces.map(|traces| Response::new(ReceiverStream::new(traces))).ok_or_else(refused)
    }

    type DropLogStream = ReceiverStream<Result<DroppedPacket, Status>>;

    async fn drop_log(
        &self,
        request: Request<v1::DropLogRequest>,
    ) -> Result<Response<Self::DropLogStream>, Status> {
        self.asked(&request.into_inner());
        let dropped = self.0.lock().unwrap().dropped.take();
        dropped.map(|dropped| Response::new(ReceiverStream::new(dropped))).ok_or_else(refused)
    }

    async fn offload(
        &self,
        _: Request<v1::OffloadRequest>,
    ) -> Result<Response<v1::OffloadReply>, Status> {
        absent()
    }

    type EventsStream = ReceiverStream<Result<v1::Event, Status>>;

    async fn events(
        &self,
        _: Request<v1::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        absent()
    }
}

fn refused() -> Status {
    Status::invalid_argument("filter: \"x\" is not a flow field")
}
