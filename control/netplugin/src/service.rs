//! `cni.v1` on `<run-dir>/cni.sock`, with health and reflection.
//!
//! Each operation runs in a task of its own: a runtime that gives up must not cut an ADD in two.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cni_api::v1::cni_server::{Cni, CniServer};
use cni_api::v1::{
    AddReply, AddRequest, Attachment as Named, Bandwidth, CheckReply, CheckRequest, DelReply,
    DelRequest, GcReply, GcRequest, Ip, PortMapping, Route, StatusReply, StatusRequest,
};
use control_model::default_burst_bytes;
use telemetry::Health;
use tokio::net::UnixListener;
use tokio::time::Instant;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService as _;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::attach::{self, Added, Source, Wish, WishedAddress};
use crate::attachment::{AttachmentId, Limit, Limits, Told};
use crate::metrics::Observer;
use crate::naming::host_mac;
use crate::node::Node;
use crate::published::{self, Mapping};
use crate::queue::Queue;
use crate::refusal::Refusal;

/// Where a caller names no deadline.
const TIMEOUT: Duration = Duration::from_secs(25);
/// Kept back from the caller's patience for undoing and answering: a tenth, at least this.
const RESERVE_MIN: Duration = Duration::from_millis(500);

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("listening at {}", path.display())]
    Listen { path: PathBuf, source: std::io::Error },
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("serving: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves until `stop` is done and the operations under way have been answered. Lets go of `queue`
/// once its socket takes connections.
pub(crate) async fn serve(
    node: Arc<Node>,
    queue: Option<Queue>,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let path = node.config.run_dir.join("cni.sock");
    let listener = listen(&path).map_err(|source| Error::Listen { path: path.clone(), source })?;
    drop(queue);
    let (reporter, health) = tonic_health::server::health_reporter();
    let observed = Observer { node: Arc::clone(&node) };
    let health_told = Health::new(reporter, [CniServer::<Service>::NAME], observed).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(cni_api::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let requests = node.measures.requests.clone();
    let services =
        Routes::new(health).add_service(reflection).add_service(CniServer::new(Service { node }));
    let routes = Routes::from(requests.observe(services.into_axum_router())).prepare();
    let served = Server::builder()
        .add_routes(routes)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop);
    tokio::select! {
        never = health_told.report() => match never {},
        served = served => served?,
    }
    // A plugin that finds no socket says so at once, one that finds a dead one has to try it.
    std::fs::remove_file(&path).map_err(|source| Error::Listen { path, source })
}

/// A socket that nobody but root could ever connect to, also not before its mode was set: it
/// becomes visible under its name only afterwards. Takes the place of one left by a crash; the
/// attachment file's lock has already excluded a second netplugin.
fn listen(path: &Path) -> std::io::Result<UnixListener> {
    let fresh = path.with_extension("sock.new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

struct Service {
    node: Arc<Node>,
}

#[tonic::async_trait]
impl Cni for Service {
    async fn add(&self, request: Request<AddRequest>) -> Result<Response<AddReply>, Status> {
        let deadline = Instant::now() + patience(request.metadata());
        let wish = wish(request.into_inner())?;
        let id = wish.id.clone();
        let node = Arc::clone(&self.node);
        let operation = async move { attach::add(&node, wish, deadline).await };
        let added = self.detached("add", operation).await?;
        Ok(Response::new(add_reply(&id, &added)))
    }

    async fn del(&self, request: Request<DelRequest>) -> Result<Response<DelReply>, Status> {
        let id = id(request.into_inner().attachment)?;
        let node = Arc::clone(&self.node);
        self.detached("del", async move { attach::del(&node, &id).await }).await?;
        Ok(Response::new(DelReply {}))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckReply>, Status> {
        let CheckRequest { attachment, ips, .. } = request.into_inner();
        let id = id(attachment)?;
        let listed: Vec<IpAddr> = addresses(&ips)?.into_iter().map(|wanted| wanted.ip).collect();
        attach::check(&self.node, &id, &listed).await?;
        Ok(Response::new(CheckReply {}))
    }

    async fn gc(&self, request: Request<GcRequest>) -> Result<Response<GcReply>, Status> {
        let GcRequest { valid, config_name } = request.into_inner();
        let valid: BTreeSet<AttachmentId> =
            valid.into_iter().map(|named| id(Some(named))).collect::<Result<_, _>>()?;
        let node = Arc::clone(&self.node);
        let operation = async move { attach::gc(&node, &config_name, &valid).await };
        let removed = self.detached("gc", operation).await?;
        Ok(Response::new(GcReply { removed }))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(attach::status(&self.node, &request.into_inner())))
    }
}

impl Service {
    /// Runs an operation to its end, whether or not the caller waits for it. Its lines in the log
    /// stay those of the request.
    async fn detached<T: Send + 'static>(
        &self,
        name: &'static str,
        operation: impl Future<Output = Result<T, Refusal>> + Send + 'static,
    ) -> Result<T, Refusal> {
        let measures = self.node.measures.clone();
        let measured = async move { measures.operation(name, operation).await };
        tokio::spawn(telemetry::detached(measured)).await?
    }
}

fn id(named: Option<Named>) -> Result<AttachmentId, Refusal> {
    let Named { container_id, ifname } = named.unwrap_or_default();
    Ok(AttachmentId::new(&container_id, &ifname)?)
}

fn wish(request: AddRequest) -> Result<Wish, Refusal> {
    if request.netns.is_empty() {
        let reason = "name the container's network namespace".to_owned();
        return Err(Refusal::Request { field: "netns", reason });
    }
    Ok(Wish {
        id: id(request.attachment)?,
        netns: request.netns.into(),
        config_name: request.config_name,
        tenant: request.tenant,
        network: request.network,
        group: request.group,
        ips: addresses(&request.ips)?,
        mac: request.mac,
        mtu: request.mtu,
        told: Told { container_name: request.container_name, labels: request.labels },
        limits: limits(request.bandwidth.unwrap_or_default())?,
        published: request.published.iter().map(mapping).collect::<Result<_, _>>()?,
        source: if request.chained { Source::Chain } else { Source::Ours },
    })
}

/// A port of the node, as weir-cni read it from what the runtime says.
fn mapping(wanted: &PortMapping) -> Result<Mapping, Refusal> {
    let PortMapping { host_ip, protocol, host_port, container_port } = wanted;
    let refuse = |reason| Refusal::Request { field: published::FIELD, reason };
    let port = |port: u32| {
        let port_or_none = u16::try_from(port).ok().filter(|port| *port != 0);
        port_or_none.ok_or_else(|| refuse(format!("{port} is no port, 1 to 65535")))
    };
    let address = |ip: &str| ip.parse().map_err(|_bad| refuse(format!("{ip} is no address")));
    let protocol = match *protocol {
        6 => 6,
        17 => 17,
        other => return Err(refuse(format!("protocol {other} is neither TCP (6) nor UDP (17)"))),
    };
    Ok(Mapping {
        host_ip: Some(host_ip).filter(|ip| !ip.is_empty()).map(|ip| address(ip)).transpose()?,
        protocol,
        host_port: port(*host_port)?,
        container_port: port(*container_port)?,
    })
}

/// Bits a second that a meter of the engine can hold.
const RATES: RangeInclusive<u64> = 1000..=400_000_000_000;
/// Bytes that a meter of the engine can hold; the least is one frame, which must fit.
const BURSTS: RangeInclusive<u64> = 1518..=1_000_000_000;

fn limits(wanted: Bandwidth) -> Result<Limits, Refusal> {
    let Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst } = wanted;
    Ok(Limits {
        from: limit(
            ["runtimeConfig.bandwidth.egressRate", "runtimeConfig.bandwidth.egressBurst"],
            egress_rate,
            egress_burst,
        )?,
        to: limit(
            ["runtimeConfig.bandwidth.ingressRate", "runtimeConfig.bandwidth.ingressBurst"],
            ingress_rate,
            ingress_burst,
        )?,
    })
}

/// A rate in bits a second and a burst in bits, as runtimes give them.
fn limit(fields: [&'static str; 2], rate: u64, bits: u64) -> Result<Option<Limit>, Refusal> {
    let refuse = |field, reason| Err(Refusal::Request { field, reason });
    let [rate_field, burst_field] = fields;
    if rate == 0 && bits == 0 {
        return Ok(None);
    }
    if !RATES.contains(&rate) {
        let (least, most) = RATES.into_inner();
        return refuse(rate_field, format!("{rate} is not {least} to {most} bits a second"));
    }
    let burst = if bits == 0 { default_burst_bytes(rate) } else { bits.div_ceil(8) };
    let (least, most) = BURSTS.into_inner();
    if burst > most {
        return refuse(burst_field, format!("{bits} is more than {} bits", most * 8));
    }
    Ok(Some(Limit { rate, burst: burst.max(least) }))
}

fn addresses(texts: &[String]) -> Result<Vec<WishedAddress>, Refusal> {
    texts.iter().map(|text| address(text)).collect()
}

/// `a.b.c.d` or `a.b.c.d/len`.
fn address(text: &str) -> Result<WishedAddress, Refusal> {
    let bad = || Refusal::Request { field: "ips", reason: format!("{text:?} is not an address") };
    let (address, prefix_len) = match text.split_once('/') {
        Some((address, prefix_len)) => (address, Some(prefix_len)),
        None => (text, None),
    };
    let ip: IpAddr = address.parse().map_err(|_not_an_address| bad())?;
    let prefix_len = prefix_len.map(str::parse::<u8>).transpose().map_err(|_not_a_number| bad())?;
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    if prefix_len.is_some_and(|len| len > bits) {
        Err(bad())
    } else {
        Ok(WishedAddress { ip, prefix_len })
    }
}

fn add_reply(id: &AttachmentId, added: &Added) -> AddReply {
    let interface = &added.interface;
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    let route = |gateway: &IpAddr| {
        let dst = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        Route { dst: dst.to_owned(), gw: gateway.to_string() }
    };
    AddReply {
        host_ifname: added.host_ifname.clone(),
        host_mac: host_mac(id).to_string(),
        mac: interface.mac.to_string(),
        mtu: interface.mtu,
        ips: interface
            .addresses
            .iter()
            .map(|address| Ip { address: address.to_string(), gateway: text(address.gateway) })
            .collect(),
        routes: interface.default_routes.iter().map(route).collect(),
    }
}

/// How long an operation may take: the caller's `grpc-timeout` less the reserve.
fn patience(metadata: &MetadataMap) -> Duration {
    let header = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    let whole = header.and_then(parse_timeout).unwrap_or(TIMEOUT);
    whole.saturating_sub(RESERVE_MIN.max(whole / 10))
}

/// At most 8 digits and a unit (gRPC over HTTP2, "Timeout").
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::tests::example;

    #[test]
    fn grpc_timeouts_are_read_in_every_unit() {
        assert_eq!(parse_timeout("25S"), Some(Duration::from_secs(25)));
        assert_eq!(parse_timeout("24999999u"), Some(Duration::from_micros(24_999_999)));
        assert_eq!(parse_timeout("1H"), Some(Duration::from_hours(1)));
        for bad in ["", "S", "123456789S", "5x", "-1S", "5é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_tenth_of_the_callers_patience_is_kept_for_undoing() {
        let mut metadata = MetadataMap::new();
        assert_eq!(patience(&metadata), Duration::from_millis(22_500));
        metadata.insert("grpc-timeout", "2S".parse().unwrap());
        assert_eq!(patience(&metadata), Duration::from_millis(1500));
        metadata.insert("grpc-timeout", "1m".parse().unwrap());
        assert_eq!(patience(&metadata), Duration::ZERO);
    }

    #[test]
    fn addresses_are_read_with_and_without_length() {
        let ip: IpAddr = "10.1.1.5".parse().unwrap();
        assert_eq!(address("10.1.1.5").unwrap(), WishedAddress { ip, prefix_len: None });
        assert_eq!(address("10.1.1.5/24").unwrap(), WishedAddress { ip, prefix_len: Some(24) });
        for bad in ["", "10.1.1", "10.1.1.5/", "10.1.1.5/33", "10.1.1.5/x"] {
            let refused = address(bad).unwrap_err().to_string();
            assert_eq!(refused, format!("ips: {bad:?} is not an address"));
        }
    }

    #[test]
    fn a_bandwidth_becomes_bytes_and_its_directions_the_containers() {
        let wanted =
            Bandwidth { ingress_rate: 8_000_000, ingress_burst: 800_001, ..Default::default() };
        let to = Some(Limit { rate: 8_000_000, burst: 100_001 });
        assert_eq!(limits(wanted).unwrap(), Limits { from: None, to });
        let wanted = Bandwidth { egress_rate: 16_000_000, ..Default::default() };
        let from = Some(Limit { rate: 16_000_000, burst: 200_000 });
        assert_eq!(limits(wanted).unwrap(), Limits { from, to: None });
        let tiny = Bandwidth { egress_rate: 1000, egress_burst: 8, ..Default::default() };
        assert_eq!(limits(tiny).unwrap().from, Some(Limit { rate: 1000, burst: 1518 }));
        for (wanted, text) in [
            (
                Bandwidth { ingress_burst: 1, ..Default::default() },
                "runtimeConfig.bandwidth.ingressRate: 0 is not 1000 to 400000000000 bits a second",
            ),
            (
                Bandwidth { egress_rate: 999, ..Default::default() },
                "runtimeConfig.bandwidth.egressRate: 999 is not 1000 to 400000000000 bits a second",
            ),
            (
                Bandwidth { egress_rate: 1000, egress_burst: u64::MAX, ..Default::default() },
                "runtimeConfig.bandwidth.egressBurst: 18446744073709551615 is more than 8000000000 bits",
            ),
        ] {
            assert_eq!(limits(wanted).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn the_reply_names_what_the_container_got() {
        let row = example("c1");
        let added = Added { host_ifname: row.host_ifname, interface: row.interface.unwrap() };
        let reply = add_reply(&row.id, &added);
        assert_eq!(reply.mac, "02:02:0a:01:01:05");
        assert_eq!(reply.mtu, 1450);
        assert_eq!(reply.ips, [Ip { address: "10.1.1.5/24".into(), gateway: "10.1.1.254".into() }]);
        assert_eq!(reply.routes, [Route { dst: "0.0.0.0/0".into(), gw: "10.1.1.254".into() }]);
    }

    #[tokio::test]
    async fn the_socket_is_for_root_alone_and_replaces_a_dead_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cni.sock");
        drop(listen(&path).unwrap());
        let _listener = listen(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(tokio::net::UnixStream::connect(&path).await.is_ok());
    }
}
