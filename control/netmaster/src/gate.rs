//! The way into every service: answered here by the netmaster that leads, passed on to it by the
//! others. A client needs to know any one of them, and a stream through one that does not lead is
//! the leader's stream.

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use control_store::{Contact, Tenure};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderValue, Request, Response};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::metrics::Observer;
use crate::status::unable;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A leader that is silent for twice this is not waited for.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Marks what was passed on once: two netmasters that each take the other for the leader must not
/// pass a request back and forth.
const PASSED_ON: &str = "weir-passed-on";

/// What this process is to those who ask now.
#[derive(Debug, Clone)]
pub(crate) enum Role {
    /// It answers.
    Leads {
        /// With these services.
        routes: Routes,
        /// For as long as this holds; `None`: for ever.
        tenure: Option<Tenure>,
        /// What it tells of its state.
        observer: Observer,
    },
    /// Another process answers, at this address; `None`: nobody does as far as is known.
    Follows(Option<Peer>),
}

/// The leader, as seen by another netmaster.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    address: String,
    channel: Channel,
    contact: Contact,
}

impl Peer {
    /// Connects when it is first needed. `None` for an address that is none.
    pub(crate) fn new(address: String, contact: Contact) -> Option<Self> {
        let endpoint = Endpoint::from_shared(address.clone()).ok()?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        Some(Self { address, channel: endpoint.connect_lazy(), contact })
    }

    /// Whether it would be known by now that another one leads.
    pub(crate) fn is_current(&self) -> bool {
        self.contact.holds()
    }
}

/// The way into service `N`.
pub(crate) struct Gate<N> {
    role: watch::Receiver<Role>,
    /// Becomes true when the process is to end: streams passed on never end by themselves.
    stopping: watch::Receiver<bool>,
    service: PhantomData<fn() -> N>,
}

impl<N> Gate<N> {
    pub(crate) const fn new(role: watch::Receiver<Role>, stopping: watch::Receiver<bool>) -> Self {
        Self { role, stopping, service: PhantomData }
    }
}

impl<N> Clone for Gate<N> {
    fn clone(&self) -> Self {
        Self::new(self.role.clone(), self.stopping.clone())
    }
}

impl<N> fmt::Debug for Gate<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("role", &self.role).finish_non_exhaustive()
    }
}

impl<N: NamedService> NamedService for Gate<N> {
    const NAME: &'static str = N::NAME;
}

impl<N> Service<Request<Body>> for Gate<N> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (role, stopping) = (self.role.borrow().clone(), self.stopping.clone());
        Box::pin(async move {
            match role {
                Role::Leads { mut routes, tenure, .. } if is_on(tenure.as_ref()) => {
                    routes.call(request).await
                }
                Role::Follows(Some(peer)) if !request.headers().contains_key(PASSED_ON) => {
                    Ok(pass_on(request, peer, stopping).await.unwrap_or_else(Status::into_http))
                }
                Role::Leads { .. } | Role::Follows(_) => Ok(nobody().into_http()),
            }
        })
    }
}

fn is_on(tenure: Option<&Tenure>) -> bool {
    tenure.is_none_or(Tenure::holds)
}

fn nobody() -> Status {
    let reason = "no netmaster leads at the moment".to_owned();
    unable(Code::Unavailable, reason, "try again in some seconds; is a majority of etcd there?")
}

async fn pass_on(
    mut request: Request<Body>,
    mut peer: Peer,
    stopping: watch::Receiver<bool>,
) -> Result<Response<Body>, Status> {
    request.headers_mut().insert(PASSED_ON, HeaderValue::from_static("1"));
    let away = |error: tonic::transport::Error| {
        tracing::debug!(leader = peer.address, %error, "the leader does not answer");
        let reason = format!("the netmaster that leads, {}, does not answer", peer.address);
        unable(Code::Unavailable, reason, "try again in some seconds, or at another netmaster")
    };
    poll_fn(|context| peer.channel.poll_ready(context)).await.map_err(away)?;
    let response = peer.channel.call(request).await.map_err(away)?;
    Ok(response.map(|body| Body::new(Until::new(body, stopping))))
}

/// A body that ends when the process is to end.
struct Until {
    body: Body,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Until {
    fn new(body: Body, mut stopping: watch::Receiver<bool>) -> Self {
        // A sender that is gone stops the server as well.
        let stop = async move { drop(stopping.wait_for(|stopping| *stopping).await) };
        Self { body, stop: Box::pin(stop) }
    }
}

impl http_body::Body for Until {
    type Data = <Body as http_body::Body>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_pending() && self.stop.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Status::unavailable("netmaster stops"))));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
