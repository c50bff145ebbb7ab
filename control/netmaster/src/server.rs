//! Serving `control.v1`, health and reflection, and the pages `/metrics`, `/healthz`, `/readyz` and
//! `/version`, on every address asked for.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use control_api::v1::net_master_server::NetMasterServer;
use control_api::v1::node_server::NodeServer;
use telemetry::{Health, Requests};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::server::NamedService as _;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::api::Api;
use crate::config::Listen;
use crate::gate::{Gate, Role};
use crate::greeting::Greeted;
use crate::metrics::{Standpoint, Transactions};
use crate::node_api::NodeApi;

/// A silent client is asked this often whether it is still there ...
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// ... and given up after this.
const KEEP_ALIVE_PATIENCE: Duration = Duration::from_secs(5);
/// Requests one connection may have under way.
const STREAMS_MAX: u32 = 1024;

/// Methods that change nothing a user asked for, or come by the thousand: no line each in the log.
const QUIET: &[&str] = &["Get", "List", "Watch", "Ack", "Check", "ServerReflectionInfo"];

/// Why an address can't be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("listening at {listen}")]
    Listen { listen: Listen, source: std::io::Error },
    #[error("{0} is served by another process")]
    Taken(Listen),
    #[error("reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("serving")]
    Serve(#[from] tonic::transport::Error),
    #[error("a server died")]
    Died(#[from] tokio::task::JoinError),
}

/// An address that is bound.
#[derive(Debug)]
pub(crate) enum Bound {
    /// TCP.
    Tcp(TcpListener),
    /// A socket file.
    Unix(UnixListener),
}

impl Bound {
    /// Binds an address; all are bound before the first is served.
    pub(crate) async fn bind(listen: &Listen) -> Result<Self, Error> {
        let failed = |source| Error::Listen { listen: listen.clone(), source };
        match listen {
            Listen::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp).map_err(failed),
            // A file left by a crash refuses connections; a living server accepts them.
            Listen::Unix(path) if UnixStream::connect(path).await.is_ok() => {
                Err(Error::Taken(listen.clone()))
            }
            Listen::Unix(path) => bind_private(path).map(Self::Unix).map_err(failed),
        }
    }

    /// The TCP address, with the port the system chose.
    pub(crate) fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

/// Nobody but the owner could ever connect: the socket gets its name after its mode.
fn bind_private(path: &Path) -> std::io::Result<UnixListener> {
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Serves until `stopping` becomes true and the requests under way have been answered.
pub(crate) async fn serve(
    role: watch::Receiver<Role>,
    transactions: &Transactions,
    bound: Vec<Bound>,
    stopping: watch::Receiver<bool>,
) -> Result<(), Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(control_api::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let mut counted = telemetry::registry();
    transactions.register(&mut counted);
    let requests = Requests::new(QUIET);
    requests.register(&mut counted);
    let observed = Standpoint { role: role.clone() };
    let services = Routes::new(health)
        .add_service(reflection)
        .add_service(Gate::<NetMasterServer<Api>>::new(role.clone(), stopping.clone()))
        .add_service(Gate::<NodeServer<NodeApi>>::new(role, stopping.clone()));
    let names = [NetMasterServer::<Api>::NAME, NodeServer::<NodeApi>::NAME];
    let health_told = Health::new(reporter, names, observed.clone()).await;
    let pages = telemetry::pages(observed, counted);
    let routes = Routes::from(requests.observe(services.into_axum_router()).merge(pages)).prepare();
    let mut servers = JoinSet::new();
    for address in bound {
        servers.spawn(serve_one(address, routes.clone(), stopping.clone()));
    }
    let ended = async {
        while let Some(ended) = servers.join_next().await {
            ended??;
        }
        Ok(())
    };
    tokio::select! {
        never = health_told.report() => match never {},
        ended = ended => ended,
    }
}

async fn serve_one(
    bound: Bound,
    routes: Routes,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), Error> {
    let router = Server::builder()
        // For the pages; gRPC is HTTP/2.
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_PATIENCE))
        .max_concurrent_streams(STREAMS_MAX)
        .add_routes(routes);
    // A sender that is gone stops the server as well.
    let stop = async move { drop(stopping.wait_for(|stopping| *stopping).await) };
    match bound {
        Bound::Tcp(listener) => {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let incoming = incoming.map(|stream| stream.map(Greeted::new));
            router.serve_with_incoming_shutdown(incoming, stop).await?;
        }
        Bound::Unix(listener) => {
            let incoming = UnixListenerStream::new(listener);
            let incoming = incoming.map(|stream| stream.map(Greeted::new));
            router.serve_with_incoming_shutdown(incoming, stop).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_the_owners_alone_and_not_taken_from_a_living_server() {
        let dir = tempfile::tempdir().unwrap();
        let listen = Listen::Unix(dir.path().join("m.sock"));
        let living = Bound::bind(&listen).await.unwrap();
        let mode = std::fs::metadata(dir.path().join("m.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(Bound::bind(&listen).await, Err(Error::Taken(_))));
        drop(living);
        assert!(
            matches!(Bound::bind(&listen).await, Ok(Bound::Unix(_))),
            "a dead one's place is free"
        );
    }
}
