//! `datapath.v1`: checks what clients send and asks the engine, on threads that may block.

use std::pin::Pin;
use std::sync::Arc;

use afxdp::XskStats;
use datapath_api::convert::ops_from_proto;
use datapath_api::v1;
use datapath_api::v1::datapath_server::Datapath;
use flowtable::DropReason;
use flowtable::ids::PortId;
use flowtable::text::{FlowSpec, PortRef, TenantSpec};
use offload::{DropCount, Offload};
use packet_io::QueueId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status};
use vrouter::{Engine, Offloading, PortSpec};

use crate::crew::Crew;
use crate::droplog::{DropLog, Read};
use crate::events::Events;
use crate::explain;
use crate::flows::{self, CachedFlow, FlowFilter};
use crate::listing::{self, ConnFilter, EntryFilter, Tenants};
use crate::live::{Bounds, Seat, Watcher};
use crate::ports::Ports;
use crate::request::new_port;
use crate::status::{invalid, port_code, range, status};
use crate::tables::Tables;
use crate::trunk;
use crate::work::{self, IoState};

/// Version of `datapath.v1` spoken here.
const API_VERSION: u32 = 1;
/// Traces of live packets on their way to the client.
const LIVE_BACKLOG: usize = 64;

/// The service. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) engine: Engine,
    pub(crate) crew: Crew,
    pub(crate) offload: Arc<Offload>,
    pub(crate) tables: Arc<Tables>,
    pub(crate) ports: Arc<Ports>,
    pub(crate) events: Events,
    pub(crate) drops: DropLog,
    pub(crate) live: Seat,
}

#[tonic::async_trait]
impl Datapath for Service {
    async fn hello(
        &self,
        _request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        Ok(Response::new(v1::HelloReply {
            api_version: API_VERSION,
            features: v1::Feature::RemoveMany as u64,
            instance: self.events.instance().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: self.engine.revision(),
        }))
    }

    async fn write(
        &self,
        request: Request<v1::WriteRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        let ops = ops_from_proto(request.into_inner()).map_err(|e| invalid(&e))?;
        let (tables, ports) = (Arc::clone(&self.tables), Arc::clone(&self.ports));
        let written = blocking(move || {
            let written = tables.write(ops).inspect(|_| ports.take_over());
            let taken = match &written {
                Ok(_) | Err(vrouter::WriteError::Stalled { .. }) => {
                    ports.publish(tables.published())
                }
                Err(_refused) => Ok(()),
            };
            (written, taken)
        });
        let (written, taken) = written.await?;
        let revision = written.map_err(|error| match error {
            vrouter::WriteError::Refused { .. } => invalid(&error),
            vrouter::WriteError::TooManyRules { .. }
            | vrouter::WriteError::TooManyMeters { .. }
            | vrouter::WriteError::TableFull { .. } => status(Code::ResourceExhausted, &error),
            vrouter::WriteError::Stalled { .. } => status(Code::Internal, &error),
        })?;
        taken.map_err(|e| status(port_code(&e), &e))?;
        Ok(Response::new(v1::WriteReply { revision }))
    }

    async fn add_port(
        &self,
        request: Request<v1::AddPortRequest>,
    ) -> Result<Response<v1::AddPortReply>, Status> {
        let new = new_port(request.into_inner())?;
        let (ports, tables) = (Arc::clone(&self.ports), Arc::clone(&self.tables));
        let added = blocking(move || {
            let added = ports.add(&new);
            // An uplink may lead to tunnel end points that are known already.
            tables.notify();
            added
        });
        let ifindex = added.await?.map_err(|e| status(port_code(&e), &e))?;
        Ok(Response::new(v1::AddPortReply { ifindex }))
    }

    async fn remove_port(
        &self,
        request: Request<v1::RemovePortRequest>,
    ) -> Result<Response<v1::RemovePortReply>, Status> {
        let v1::RemovePortRequest { port, more } = request.into_inner();
        let port = PortId::new(port).map_err(|e| range("port", e))?;
        let more = more.into_iter().map(PortId::new).collect::<Result<Vec<_>, _>>();
        let mut all = more.map_err(|e| range("more", e))?;
        all.push(port);
        let ports = Arc::clone(&self.ports);
        let removed = blocking(move || ports.remove(&all)).await?;
        removed.map_err(|e| status(port_code(&e), &e))?;
        Ok(Response::new(v1::RemovePortReply {}))
    }

    async fn confirm_port(
        &self,
        request: Request<v1::ConfirmPortRequest>,
    ) -> Result<Response<v1::ConfirmPortReply>, Status> {
        let port = PortId::new(request.into_inner().port).map_err(|e| range("port", e))?;
        let ports = Arc::clone(&self.ports);
        let confirmed = blocking(move || ports.confirm(port)).await?;
        confirmed.map_err(|e| status(port_code(&e), &e))?;
        Ok(Response::new(v1::ConfirmPortReply {}))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListReply>, Status> {
        let request = request.into_inner();
        let service = self.clone();
        blocking(move || service.listed(&request)).await?.map(Response::new)
    }

    async fn counters(
        &self,
        _request: Request<v1::CountersRequest>,
    ) -> Result<Response<v1::CountersReply>, Status> {
        let service = self.clone();
        blocking(move || service.counted()).await?.map(Response::new)
    }

    async fn drops(
        &self,
        _request: Request<v1::DropsRequest>,
    ) -> Result<Response<v1::DropsReply>, Status> {
        let service = self.clone();
        blocking(move || service.dropped()).await?.map(Response::new)
    }

    async fn workers(
        &self,
        _request: Request<v1::WorkersRequest>,
    ) -> Result<Response<v1::WorkersReply>, Status> {
        let service = self.clone();
        blocking(move || service.working()).await?.map(Response::new)
    }

    async fn trace(
        &self,
        request: Request<v1::TraceRequest>,
    ) -> Result<Response<v1::TraceReply>, Status> {
        let request = request.into_inner();
        let service = self.clone();
        blocking(move || service.traced(request)).await?.map(Response::new)
    }

    type TraceLiveStream = Pin<Box<dyn Stream<Item = Result<v1::TraceReply, Status>> + Send>>;

    async fn trace_live(
        &self,
        request: Request<v1::TraceLiveRequest>,
    ) -> Result<Response<Self::TraceLiveStream>, Status> {
        let request = request.into_inner();
        let bounds = Bounds { limit: request.limit, seconds: request.seconds };
        let service = self.clone();
        let watcher = blocking(move || service.watched(&request)).await??;
        let (client, replies) = mpsc::channel(LIVE_BACKLOG);
        // Ends by itself, at the latest when the client is gone.
        drop(tokio::task::spawn_blocking(move || watcher.run(bounds, &client)));
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }

    type DropLogStream = Pin<Box<dyn Stream<Item = Result<v1::DroppedPacket, Status>> + Send>>;

    async fn drop_log(
        &self,
        request: Request<v1::DropLogRequest>,
    ) -> Result<Response<Self::DropLogStream>, Status> {
        let v1::DropLogRequest { follow, vrf } = request.into_inner();
        let (history, later) = self.drops.subscribe(vrf);
        let history = tokio_stream::iter(history).map(|logged| Ok(logged.message(Read::Later)));
        if !follow {
            return Ok(Response::new(Box::pin(history)));
        }
        let later = BroadcastStream::new(later).filter_map(move |logged| match logged {
            Ok(logged) => logged.is_of(vrf).then(|| Ok(logged.message(Read::AtOnce))),
            Err(BroadcastStreamRecvError::Lagged(count)) => Some(Err(Status::data_loss(format!(
                "the reader is too slow and missed {count} dropped packets: follow the log again"
            )))),
        });
        Ok(Response::new(Box::pin(history.chain(later))))
    }

    async fn offload(
        &self,
        request: Request<v1::OffloadRequest>,
    ) -> Result<Response<v1::OffloadReply>, Status> {
        let on = request.into_inner().on;
        let engine = self.engine.clone();
        let stats = blocking(move || {
            if let Some(on) = on {
                engine.set_offload(if on { Offloading::On } else { Offloading::Off });
            }
            engine.offload_stats()
        });
        let reply = match (stats.await?, on) {
            (Some(stats), _) => listing::offload(&stats),
            (None, Some(true)) => {
                return Err(Status::failed_precondition(
                    "on: this engine can't offload; see vrouterd's log",
                ));
            }
            (None, _) => v1::OffloadReply::default(),
        };
        Ok(Response::new(reply))
    }

    type EventsStream = Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

    async fn events(
        &self,
        _request: Request<v1::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let later = BroadcastStream::new(self.events.subscribe()).map(|event| {
            event.map_err(|_behind| Status::data_loss("too far behind; subscribe and list again"))
        });
        let all = tokio_stream::once(Ok(self.events.ready())).chain(later);
        Ok(Response::new(Box::pin(all)))
    }
}

impl Service {
    fn listed(&self, request: &v1::ListRequest) -> Result<v1::ListReply, Status> {
        let limit = listing::limit(request.limit);
        match request.kind() {
            v1::ListKind::Ports => {
                let ports = self.port_messages()?;
                let truncated = ports.len() > limit;
                let ports = ports.into_iter().take(limit).collect();
                Ok(v1::ListReply { ports, truncated, ..v1::ListReply::default() })
            }
            v1::ListKind::Entries => {
                // Without a filter, entries that no packet can match are listed too.
                let named = !request.filter.is_empty();
                let spec = named.then(|| self.filter_spec(&request.filter)).transpose()?;
                let filter = EntryFilter { spec, vrf: request.vrf, limit };
                Ok(listing::entries(&self.engine.entries(), &filter))
            }
            v1::ListKind::Flows => {
                let spec = self.filter_spec(&request.filter)?;
                let flows = self.crew.ask(|worker| worker.flows());
                let flows = flows.map_err(|e| status(Code::Unavailable, &e))?.concat();
                let tenants = Tenants::new(&self.engine.entries());
                let filter = FlowFilter { spec, vrf: request.vrf, limit };
                let flows = CachedFlow::join(flows, &self.engine.offloaded(), |key, verdict| {
                    self.engine.offload_refusal(key, verdict)
                });
                Ok(flows::list(&flows, &filter, &tenants))
            }
            v1::ListKind::Connections => {
                let spec = self.filter_spec(&request.filter)?;
                let filter = ConnFilter { spec, vrf: request.vrf, limit };
                Ok(listing::connections(&self.engine.connections(filter.look_at()), &filter))
            }
            v1::ListKind::Meters => {
                let entries = self.engine.entries();
                Ok(listing::meters(&entries, (request.vrf, limit), |id| self.engine.meter(id)))
            }
            v1::ListKind::Unspecified => Err(Status::invalid_argument(
                "kind: want PORTS, ENTRIES, FLOWS, CONNECTIONS or METERS",
            )),
        }
    }

    /// What the workers do; waits for each to look up from its packets.
    pub(crate) fn working(&self) -> Result<v1::WorkersReply, Status> {
        let states = self.crew.ask(IoState::read).map_err(|e| status(Code::Unavailable, &e))?;
        let works = self.engine.work();
        let workers = (0..).zip(states).zip(&works).map(|((id, io), work)| {
            let io = io.map_err(|e| status(Code::Internal, &e))?;
            let device = |queue| self.ports.device_of(id, queue);
            Ok(work::worker((id, self.crew.cpu(id)), work, &io, device))
        });
        Ok(v1::WorkersReply { workers: workers.collect::<Result<_, Status>>()? })
    }

    pub(crate) fn counted(&self) -> Result<v1::CountersReply, Status> {
        let cache = self.engine.cache();
        let rules = self.engine.rules().into_iter().map(|(rule, count)| v1::RuleCounter {
            cookie: rule.0,
            packets: count.packets,
            bytes: count.bytes,
        });
        Ok(v1::CountersReply {
            ports: self.port_messages()?,
            rules: rules.collect(),
            exact_hits: cache.exact_hits,
            masked_hits: cache.masked_hits,
            pipeline: cache.pipeline,
            flow_entries: cache.entries,
            connections: Some(listing::connection_counters(&self.engine.connection_counts())),
            masked_entries: cache.masked_entries,
            masks: cache.masks,
        })
    }

    /// Offloaded flows in numbers; all zero without anything to offload to.
    pub(crate) fn offloading(&self) -> v1::OffloadReply {
        self.engine.offload_stats().map(|stats| listing::offload(&stats)).unwrap_or_default()
    }

    pub(crate) fn dropped(&self) -> Result<v1::DropsReply, Status> {
        let mut kernel = self.offload.total_drops().map_err(|e| status(Code::Internal, &e))?;
        let sockets = self.crew.ask(|worker| worker.io_mut().statistics());
        let sockets = sockets.map_err(|e| status(Code::Unavailable, &e))?;
        let sockets = sockets.into_iter().collect::<Result<Vec<_>, _>>();
        let mut sockets = sockets.map_err(|e| status(Code::Internal, &e))?.concat();
        sockets.extend(self.ports.retired_stats());
        kernel.extend(socket_drops(&sockets));
        Ok(listing::drops(self.engine.drops(), &kernel))
    }

    fn traced(&self, request: v1::TraceRequest) -> Result<v1::TraceReply, Status> {
        let missing = || Status::invalid_argument("packet: want a flow or a frame");
        let (spec, frame) = match request.packet.ok_or_else(missing)? {
            v1::trace_request::Packet::Flow(text) => {
                let spec = self.flow_spec(&text)?;
                let frame = spec.frame().map_err(|e| invalid(&e))?;
                (spec, frame)
            }
            v1::trace_request::Packet::Frame(frame) => (FlowSpec::default(), frame),
        };
        let in_port = match spec.in_port {
            Some(PortRef::Id(id)) => id,
            Some(PortRef::Name(_)) | None if request.in_port.is_empty() => {
                return Err(Status::invalid_argument("in_port: want a port's name or id"));
            }
            Some(PortRef::Name(_)) | None => self.port_named(&request.in_port)?.id,
        };
        let bytes = frame.len();
        if let Some(assume) = spec.ct_state {
            let trace = self.engine.trace_assuming(in_port, &frame, assume);
            return Ok(explain::imagined(trace, None, bytes));
        }
        let trace = self.engine.trace(in_port, &frame);
        let tiers = self.crew.ask(move |worker| worker.tier(in_port, &frame));
        let tiers = tiers.map_err(|e| status(Code::Unavailable, &e))?;
        // Its flow is in the cache of the worker that meets it.
        let tier = tiers.into_iter().flatten().min();
        Ok(explain::imagined(trace, tier, bytes))
    }

    /// Takes the seat of who watches live packets and lets the worker show them.
    fn watched(&self, request: &v1::TraceLiveRequest) -> Result<Watcher, Status> {
        let spec = self.filter_spec(&request.filter)?;
        let tenant = TenantSpec { vrf: spec.tenant.vrf, ..TenantSpec::default() };
        if spec.tenant != tenant {
            return Err(Status::invalid_argument(
                "filter: bd, src_group, dst_group: live packets are told apart by vrf only",
            ));
        }
        let taken = || {
            Status::resource_exhausted(
                "another client watches live packets, and one may at a time: try later",
            )
        };
        let watcher = self.live.take(self.crew.clone()).ok_or_else(taken)?;
        watcher.start(spec, request.limit).map_err(|e| status(Code::Unavailable, &e))?;
        Ok(watcher)
    }

    /// A flow text with its port's name replaced by the id.
    fn flow_spec(&self, text: &str) -> Result<FlowSpec, Status> {
        let mut spec: FlowSpec = text.parse().map_err(|e| invalid(&e))?;
        if let Some(PortRef::Name(name)) = &spec.in_port {
            spec.in_port = Some(PortRef::Id(self.port_named(name)?.id));
        }
        Ok(spec)
    }

    /// A flow text that selects: it can't assume what is only known of a traced packet.
    fn filter_spec(&self, text: &str) -> Result<FlowSpec, Status> {
        let spec = self.flow_spec(text)?;
        if spec.ct_state.is_some() {
            return Err(Status::invalid_argument("filter: ct_state: only for a trace"));
        }
        Ok(spec)
    }

    fn port_named(&self, name: &str) -> Result<PortSpec, Status> {
        let id = name.parse().ok().and_then(|id| PortId::new(id).ok());
        let mut specs = self.engine.ports().into_iter().map(|p| p.spec);
        let found = specs.find(|spec| spec.name == name || Some(spec.id) == id);
        found.ok_or_else(|| Status::not_found(format!("in_port: there is no port {name:?}")))
    }

    fn port_messages(&self) -> Result<Vec<v1::Port>, Status> {
        let ports = self.engine.ports();
        let devices = self.ports.devices();
        let messages = ports.iter().map(|stats| {
            let devices = devices.get(&stats.spec.id).map(Vec::as_slice).unwrap_or_default();
            listing::port(stats, devices, &self.offload)
        });
        messages.collect::<Result<_, _>>().map_err(|e| status(Code::Internal, &e))
    }
}

/// Frames that the kernel had for the worker and dropped: too long for a buffer, or the worker's
/// queue was full. The kernel does not count their bytes.
fn socket_drops(sockets: &[(QueueId, XskStats)]) -> [DropCount; 2] {
    let sum = |of: fn(&XskStats) -> u64| sockets.iter().map(|(_, stats)| of(stats)).sum::<u64>();
    let too_big = sum(|s| s.rx_dropped);
    let full = sum(|s| s.rx_ring_full + s.rx_fill_ring_empty) + trunk::overflow_count();
    [
        DropCount { reason: DropReason::TooBig, packets: too_big, bytes: 0 },
        DropCount { reason: DropReason::TxFull, packets: full, bytes: 0 },
    ]
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(f).await;
    done.map_err(|_panicked| Status::internal("vrouterd failed; see its log"))
}
