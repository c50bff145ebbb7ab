//! The pages `/metrics`, `/healthz`, `/readyz` and `/version`, and a server for a daemon that has no other on
//! TCP.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::registry;

/// As Contiv's netmaster has it at this path. All programs have the workspace's version.
const VERSION: &str = concat!("{\"Version\":\"", env!("CARGO_PKG_VERSION"), "\"}\n");
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether a daemon can do its work at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// It can't, for this reason: one line for whoever reads the page.
    NotReady(String),
}

/// A daemon as its observers see it.
pub trait Observed: Send + Sync + 'static {
    /// Whether it can do its work now.
    fn readiness(&self) -> impl Future<Output = Readiness> + Send;

    /// Adds the values of this moment.
    fn sample(&self, into: &mut Registry) -> impl Future<Output = ()> + Send;
}

struct Pages<D> {
    daemon: D,
    counted: Registry,
}

/// The pages of a daemon. `counted` holds what it counts as it happens.
pub fn pages<D: Observed>(daemon: D, counted: Registry) -> Router {
    Router::new()
        .route("/metrics", get(metrics::<D>))
        // Answering is all that a living process can say.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz::<D>))
        .route(
            "/version",
            get(|| async { ([(header::CONTENT_TYPE, "application/json")], VERSION) }),
        )
        .with_state(Arc::new(Pages { daemon, counted }))
}

async fn metrics<D: Observed>(State(pages): State<Arc<Pages<D>>>) -> Response {
    let mut sampled = registry();
    pages.daemon.sample(&mut sampled).await;
    match text(&pages.counted, &sampled) {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn text(counted: &Registry, sampled: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode_registry(&mut text, counted)?;
    encode_registry(&mut text, sampled)?;
    encode_eof(&mut text)?;
    Ok(text)
}

async fn readyz<D: Observed>(State(pages): State<Arc<Pages<D>>>) -> Response {
    match pages.daemon.readiness().await {
        Readiness::Ready => "ready\n".into_response(),
        Readiness::NotReady(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
        }
    }
}

/// Serving failed.
pub type ServeError = tonic::transport::Error;

/// Serves pages over HTTP until `stop` is done.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    pages: Router,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    Server::builder()
        .accept_http1(true)
        .add_routes(Routes::from(pages))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop)
        .await
}
