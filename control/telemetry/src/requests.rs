//! Each gRPC request with an id, a line in the log and its latency.
//!
//! The id is the client's `x-request-id` if it sent a usable one, else a new one. It goes back in
//! the answer's metadata and stands on every line that the request's handling logs, so that what a
//! user sees can be found in the log. What is asked of other daemons meanwhile ([`call`]) carries it
//! too. A client's `traceparent` is logged beside it, as `trace`.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::{Code, Status};
use tracing::{Instrument as _, debug, info, info_span};

use crate::{latencies, seconds};

/// The header that carries a request's id.
pub const REQUEST_ID: &str = "x-request-id";
/// Longest id taken over from a client, in bytes.
const ID_BYTES_MAX: usize = 64;
/// Stands for methods that there are not: clients must not make series.
const UNKNOWN: &str = "unknown";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: String,
    code: String,
}

tokio::task_local! {
    static CURRENT: HeaderValue;
}

/// A request to another daemon that is to be answered within `patience`, with the id of the request
/// that is being handled, if it is one.
pub fn call<T>(message: T, patience: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(patience);
    // An id that was taken over is plain text.
    if let Some(id) = current().and_then(|id| id.to_str().ok()?.parse().ok()) {
        request.metadata_mut().insert(REQUEST_ID, id);
    }
    request
}

/// Work that is still that of the request being handled when it becomes a task of its own.
pub fn detached<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let id = current();
    async move {
        match id {
            Some(id) => CURRENT.scope(id, work).await,
            None => work.await,
        }
    }
    .in_current_span()
}

fn current() -> Option<HeaderValue> {
    CURRENT.try_with(HeaderValue::clone).ok()
}

/// The requests of a daemon.
#[derive(Debug, Clone)]
pub struct Requests {
    latencies: Family<Call, Histogram, fn() -> Histogram>,
    quiet: &'static [&'static str],
}

impl Requests {
    /// Methods whose name is in `quiet` are logged at level debug when they succeed, all others at
    /// info.
    #[must_use]
    pub fn new(quiet: &'static [&'static str]) -> Self {
        let latencies = Family::new_with_constructor(latencies as fn() -> Histogram);
        Self { latencies, quiet }
    }

    /// Registers their latencies.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Time to the answer of an API request, or to the start of a stream";
        registry.register("api_request_duration_seconds", help, self.latencies.clone());
    }

    /// Puts itself in front of the services of `router`.
    pub fn observe(self, router: Router) -> Router {
        router.layer(from_fn_with_state(self, handle))
    }

    fn took(&self, path: &str, code: Code, started: Instant) {
        // "/control.v1.NetMaster/Create"; what is not implemented may be any text.
        let known = path.strip_prefix('/').filter(|_| code != Code::Unimplemented);
        let method = known.unwrap_or(UNKNOWN);
        let elapsed = started.elapsed();
        let call = Call { method: method.to_owned(), code: format!("{code:?}") };
        self.latencies.get_or_create(&call).observe(seconds(elapsed));
        let millis = elapsed.as_millis() as u64;
        let name = method.rsplit('/').next().unwrap_or(method);
        if code == Code::Ok && self.quiet.contains(&name) {
            debug!(?code, millis, "answered");
        } else {
            info!(?code, millis, "answered");
        }
    }
}

async fn handle(State(requests): State<Requests>, mut request: Request, next: Next) -> Response {
    if !is_grpc(request.headers()) {
        // gRPC over HTTP/2: "Servers should respond with HTTP status 415".
        let is_call = request.method() == Method::POST;
        let status =
            if is_call { StatusCode::UNSUPPORTED_MEDIA_TYPE } else { StatusCode::NOT_FOUND };
        return status.into_response();
    }
    let started = Instant::now();
    let id = request_id(request.headers());
    let path = request.uri().path().to_owned();
    let method = path.get(..path.len().min(ID_BYTES_MAX)).unwrap_or(UNKNOWN);
    let shown = id.to_str().unwrap_or(UNKNOWN);
    let span = info_span!("request", id = shown, method, trace = trace_id(request.headers()));
    // A request that goes on to another daemon as it is takes its id along.
    request.headers_mut().insert(HeaderName::from_static(REQUEST_ID), id.clone());
    let work = async {
        let mut response = next.run(request).await;
        // An answer that is no error has its status behind the message.
        let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |s| s.code());
        response.headers_mut().insert(HeaderName::from_static(REQUEST_ID), id.clone());
        requests.took(&path, code, started);
        response
    };
    CURRENT.scope(id.clone(), work.instrument(span)).await
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The id of the trace that the client has the request in (W3C Trace Context, section 3.2: version,
/// 32 hexadecimal digits of the trace's id, the parent's id, flags).
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let sent = headers.get("traceparent")?.to_str().ok()?;
    let id = sent.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    let usable = |id: &&HeaderValue| {
        let is_plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        !id.is_empty() && id.len() <= ID_BYTES_MAX && id.as_bytes().iter().all(is_plain)
    };
    let fresh = || {
        let id = format!("{:016x}", RandomState::new().build_hasher().finish());
        // Digits are a value that a header may have.
        HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static(UNKNOWN))
    };
    headers.get(REQUEST_ID).filter(usable).map_or_else(fresh, HeaderValue::clone)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use prometheus_client::encoding::text::encode_registry;
    use tonic::codegen::Service as _;

    use super::*;

    fn id_for(sent: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_str(sent).unwrap());
        request_id(&headers).to_str().unwrap().to_owned()
    }

    async fn post(router: &mut Router, path: &str, kind: &str) -> Response {
        let request = Request::post(path).header(header::CONTENT_TYPE, kind);
        router.call(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_not_grpc_never_reaches_a_service() {
        let services = Router::new().route("/a.B/C", axum::routing::post(|| async { "done" }));
        let mut router = Requests::new(&[]).observe(services);
        let refused = post(&mut router, "/a.B/C", "text/plain").await;
        assert_eq!(refused.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(post(&mut router, "/a.B/C", "application/grpc").await.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn methods_that_there_are_not_share_one_series() {
        let requests = Requests::new(&[]);
        let services = tonic::service::Routes::builder().routes().into_axum_router();
        let mut router = requests.clone().observe(services);
        for path in ["/a.B/C", "/d.E/F", "/d.E/G"] {
            let response = post(&mut router, path, "application/grpc").await;
            assert_eq!(response.headers()["grpc-status"], "12");
            assert_eq!(response.headers()[REQUEST_ID].len(), 16);
        }
        let (mut registry, mut text) = (crate::registry(), String::new());
        requests.register(&mut registry);
        encode_registry(&mut text, &registry).unwrap();
        let counts: Vec<&str> = text.lines().filter(|line| line.contains("_count")).collect();
        assert_eq!(
            counts,
            [
                "weir_api_request_duration_seconds_count{method=\"unknown\",code=\"Unimplemented\"} 3"
            ]
        );
    }

    /// The ids that a handler sees: in its request, in what it asks others, in a task of its own.
    async fn seen(request: Request) -> String {
        let asks = || call((), Duration::from_secs(1)).metadata().clone();
        let header = request.headers()[REQUEST_ID].clone();
        let (asked, later) = (asks(), tokio::spawn(detached(async move { asks() })).await.unwrap());
        let [asked, later] = [asked, later].map(|sent| sent.get(REQUEST_ID).unwrap().clone());
        format!("{header:?} {asked:?} {later:?}")
    }

    #[tokio::test]
    async fn what_is_asked_of_others_for_a_request_has_its_id() {
        let services = Router::new().route("/a.B/C", axum::routing::post(seen));
        let mut router = Requests::new(&[]).observe(services);
        let request = Request::post("/a.B/C")
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(REQUEST_ID, "deploy-7");
        let response = router.call(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.headers()[REQUEST_ID], "deploy-7");
        let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
        assert_eq!(body, r#""deploy-7" "deploy-7" "deploy-7""#);
        assert!(call((), Duration::from_secs(1)).metadata().get(REQUEST_ID).is_none());
    }

    #[test]
    fn only_a_trace_of_the_standards_form_is_logged() {
        let mut headers = HeaderMap::new();
        assert_eq!(trace_id(&headers), None);
        for (sent, id) in [
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                Some("4bf92f3577b34da6a3ce929d0e0e4736"),
            ),
            ("00-4bf9-00f067aa0ba902b7-01", None),
            ("prose", None),
        ] {
            headers.insert("traceparent", HeaderValue::from_static(sent));
            assert_eq!(trace_id(&headers), id, "{sent}");
        }
    }

    #[test]
    fn a_usable_id_of_the_client_is_kept_and_any_other_replaced() {
        assert_eq!(id_for("deploy-7.a_B"), "deploy-7.a_B");
        assert_eq!(id_for(&"x".repeat(64)).len(), 64);
        for odd in ["", "a b", "a\tb", "x=y", &"x".repeat(65)] {
            let id = id_for(odd);
            assert_eq!(id.len(), 16, "{odd:?}: {id}");
            assert!(id.bytes().all(|b| b.is_ascii_hexdigit()), "{odd:?}: {id}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
