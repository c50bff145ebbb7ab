//! Prometheus metrics over HTTP: `GET /metrics` of `--metrics ADDRESS`.
//!
//! Everything is read from the engine when it is asked for ([`series`]); nothing is kept. Connections,
//! their time and the readings under way are bounded, so that a client that is slow, or a worker that
//! hangs, costs no more than that.

mod series;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};

use crate::rpc::Service;
use series::Readings;

/// Clients at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 16;
/// A client that takes longer to ask and to read is cut off.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// How long a client waits for the readings: the worker answers between two bursts.
const READING_LIMIT: Duration = Duration::from_secs(5);
/// Pause after the system refused a connection: it is out of descriptors or memory.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// What answers. Clones share it.
#[derive(Debug, Clone)]
struct Endpoint {
    service: Service,
    /// One reading at a time: with a worker that hangs, others give up instead of piling up.
    reading: Arc<Mutex<()>>,
}

/// Takes the address.
pub(crate) fn bind(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, service: Service) {
    let endpoint = Endpoint { service, reading: Arc::default() };
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // A seat is taken before a connection is accepted: who finds none stays in the kernel's queue.
    while let Ok(seat) = Arc::clone(&seats).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let endpoint = endpoint.clone();
                tokio::spawn(async move {
                    endpoint.converse(stream).await;
                    drop(seat);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a client of --metrics was not accepted");
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
    }
}

impl Endpoint {
    async fn converse(&self, stream: TcpStream) {
        let answer =
            service_fn(|request| async move { Ok::<_, Infallible>(self.answer(&request).await) });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(CONNECTION_LIMIT);
        let served = http.serve_connection(TokioIo::new(stream), answer);
        // Otherwise it is done, or cut off for its slowness.
        if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_LIMIT, served).await {
            tracing::debug!(%error, "a client of --metrics");
        }
    }

    async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/metrics" {
            return reply(StatusCode::NOT_FOUND, "there is /metrics only\n".to_owned());
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return reply(StatusCode::METHOD_NOT_ALLOWED, "want GET\n".to_owned());
        }
        match tokio::time::timeout(READING_LIMIT, self.read()).await {
            Ok(Ok(text)) => reply(StatusCode::OK, text),
            Ok(Err(cause)) => reply(StatusCode::INTERNAL_SERVER_ERROR, cause),
            Err(_elapsed) => {
                let text = format!("the engine's worker did not answer in {READING_LIMIT:?}\n");
                reply(StatusCode::SERVICE_UNAVAILABLE, text)
            }
        }
    }

    async fn read(&self) -> Result<String, String> {
        let turn = Arc::clone(&self.reading).lock_owned().await;
        let service = self.service.clone();
        let text = tokio::task::spawn_blocking(move || {
            // Held until the reading is over, also when its client has gone.
            let _turn = turn;
            let readings = Readings::of(&service).map_err(|status| status.message().to_owned())?;
            readings.text().map_err(|_format| "the readings can't be written\n".to_owned())
        });
        text.await.map_err(|_panicked| "vrouterd failed; see its log\n".to_owned())?
    }
}

fn reply(code: StatusCode, text: String) -> Response<Full<Bytes>> {
    let kind = if code == StatusCode::OK { TEXT } else { PLAIN };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
