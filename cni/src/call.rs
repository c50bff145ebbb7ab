//! Calls to netplugin: one connection, one request, bounded in time.
//!
//! Everything that goes wrong before netplugin answers is told apart here, because the
//! specification gives each cause its own code.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cni_api::v1::cni_client::CniClient;
use cni_api::v1::{
    AddReply, AddRequest, CheckReply, CheckRequest, CniError, Code, DelReply, DelRequest, GcReply,
    GcRequest, StatusReply, StatusRequest,
};
use prost::Message as _;
use tokio::runtime::Runtime;
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tonic::transport::{Channel, Endpoint};

use crate::config::Config;
use crate::environment::Environment;
use crate::failure::Failure;

/// The runtime's patience is about 30 seconds in all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to netplugin.
#[derive(Debug)]
pub(crate) struct Call {
    runtime: Runtime,
    client: CniClient<Channel>,
    socket: PathBuf,
    timeout: Duration,
    headers: MetadataMap,
}

impl Call {
    /// Connects to the netplugin of `config`. `timeout` bounds connecting and the request together.
    /// The runtime's trace goes with the request.
    ///
    /// # Errors
    /// [`Code::DaemonUnreachable`] when nobody answers at `socket`.
    pub(crate) fn connect(
        env: &Environment,
        config: &Config,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let socket = config.socket.as_path();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::new(Code::Internal, format!("cannot start: {e}")))?;
        let started = std::time::Instant::now();
        let uri = format!("unix:{}", socket.display());
        let endpoint = Endpoint::from_shared(uri).map_err(|e| {
            Failure::new(
                Code::InvalidConfig,
                format!("socket {} is not a path: {e}", socket.display()),
            )
        })?;
        let bound = CONNECT_TIMEOUT.min(timeout);
        let connected =
            runtime.block_on(async { tokio::time::timeout(bound, endpoint.connect()).await });
        let channel = match connected {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(unreachable(socket, &root_cause(&error))),
            Err(_elapsed) => {
                return Err(unreachable(socket, &format!("no answer within {bound:?}")));
            }
        };
        let timeout = timeout.saturating_sub(started.elapsed());
        let client = CniClient::new(channel);
        Ok(Self { runtime, client, socket: socket.to_owned(), timeout, headers: headers(env) })
    }

    pub(crate) fn add(&self, message: AddRequest) -> Result<AddReply, Failure> {
        let (mut client, request) = (self.client.clone(), self.request(message));
        self.exchange(client.add(request))
    }

    pub(crate) fn del(&self, message: DelRequest) -> Result<(), Failure> {
        let (mut client, request) = (self.client.clone(), self.request(message));
        self.exchange(client.del(request)).map(|DelReply {}| ())
    }

    pub(crate) fn check(&self, message: CheckRequest) -> Result<(), Failure> {
        let (mut client, request) = (self.client.clone(), self.request(message));
        self.exchange(client.check(request)).map(|CheckReply {}| ())
    }

    pub(crate) fn gc(&self, message: GcRequest) -> Result<GcReply, Failure> {
        let (mut client, request) = (self.client.clone(), self.request(message));
        self.exchange(client.gc(request))
    }

    pub(crate) fn status(&self, message: StatusRequest) -> Result<StatusReply, Failure> {
        let (mut client, request) = (self.client.clone(), self.request(message));
        self.exchange(client.status(request))
    }

    /// netplugin learns the deadline too, so that it rolls back rather than finish for nobody.
    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        request.set_timeout(self.timeout);
        request
    }

    fn exchange<T>(
        &self,
        answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Failure> {
        let bounded = async { tokio::time::timeout(self.timeout, answer).await };
        match self.runtime.block_on(bounded) {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(refusal(&status, &self.socket)),
            Err(_elapsed) => Err(late(self.timeout)),
        }
    }
}

/// What is no header value is left out: a trace is no reason to fail an ADD.
fn headers(env: &Environment) -> MetadataMap {
    let mut headers = MetadataMap::new();
    for (name, value) in env.trace() {
        if let (Ok(name), Ok(value)) =
            (AsciiMetadataKey::from_bytes(name.as_bytes()), value.parse())
        {
            headers.insert(name, value);
        }
    }
    headers
}

fn late(timeout: Duration) -> Failure {
    Failure::new(Code::TryAgain, format!("netplugin did not finish within {timeout:.0?}"))
        .details("raise timeoutSeconds, or look at netplugin's log for what it waits for")
}

fn unreachable(socket: &Path, cause: &str) -> Failure {
    let msg = format!("netplugin does not answer at {}: start it, then retry", socket.display());
    Failure::new(Code::DaemonUnreachable, msg).details(cause)
}

/// netplugin's refusals carry a [`CniError`]; a status without one is the transport's.
fn refusal(status: &tonic::Status, socket: &Path) -> Failure {
    if let Ok(error) = CniError::decode(status.details())
        && error.code != 0
    {
        let failure = Failure::new(Code::Internal, error.msg).details(error.details);
        return Failure { code: error.code, ..failure };
    }
    let code = status.code();
    if matches!(code, tonic::Code::DeadlineExceeded | tonic::Code::Cancelled) {
        return Failure::new(Code::TryAgain, "netplugin ran out of time").details(status.message());
    }
    // Only the transport's own statuses have a source.
    if let Some(cause) = status.source() {
        return unreachable(socket, &root_cause(cause));
    }
    if code == tonic::Code::Unavailable {
        return unreachable(socket, status.message());
    }
    Failure::new(Code::Internal, format!("netplugin: {}", status.message()))
        .details(code.to_string())
}

/// The last error of the chain: the transport's own text is only "transport error".
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_code_text_and_details_of_netplugin() {
        let error =
            CniError { code: 104, msg: "10.1.1.5 is taken".into(), details: "by c2:eth0".into() };
        let status = tonic::Status::with_details(
            tonic::Code::AlreadyExists,
            "x",
            error.encode_to_vec().into(),
        );
        let failure = refusal(&status, Path::new("/s"));
        assert_eq!(failure.code, 104);
        assert_eq!(failure.msg, "10.1.1.5 is taken");
        assert_eq!(failure.details, "by c2:eth0");
    }

    #[test]
    fn statuses_without_our_details_are_told_apart() {
        let code = |code| refusal(&tonic::Status::new(code, "m"), Path::new("/s")).code;
        assert_eq!(code(tonic::Code::DeadlineExceeded), 11);
        assert_eq!(code(tonic::Code::Cancelled), 11);
        assert_eq!(code(tonic::Code::Unavailable), 100);
        assert_eq!(code(tonic::Code::Unimplemented), 999);
    }
}
