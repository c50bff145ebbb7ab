//! What each command asks of the engine and prints.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use datapath_api::v1;
use datapath_api::v1::datapath_client::DatapathClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::args::{
    Cli, Command, ConnArgs, ConnVerb, DropsArgs, FlowArgs, FlowVerb, Format, MeterVerb, PortVerb,
    RouteVerb, Switch, TopArgs, TraceArgs,
};
use crate::conn::{ConnStatsView, ConnView, conn_stats_lines, conn_table};
use crate::droplog::{DroppedView, dropped_line, dropped_table};
use crate::drops::{DropView, added, added_lines, drop_table};
use crate::failure::Failure;
use crate::meter::{MeterView, meter_table};
use crate::offload::{CachedFlowView, OffloadView, cached_flow_lines, offload_lines};
use crate::out::{Reader, json, json_line, print, print_part, show};
use crate::packet;
use crate::pages;
use crate::route::{route_table, routes};
use crate::top::{top_lines, tops};
use crate::trace::{TraceView, trace_text};
use crate::view::{FlowView, PortView, StatusView, flow_lines, port_table, status_lines};
use crate::worker::{WorkerView, worker_lines};

/// The version of datapath.v1 that this program speaks.
const API_VERSION: u32 = 1;
/// How long a call may take. The engine is on this machine.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Entries asked for to find the routes among them.
const ROUTE_ENTRIES_MAX: u32 = 200_000;
/// Meters asked for.
const METERS_MAX: u32 = 200_000;
/// Largest reply accepted: that many entries of some hundred bytes each.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// Runs one command.
pub(crate) async fn run(cli: Cli) -> Result<(), Failure> {
    let (socket, format) = (cli.socket.as_path(), cli.output);
    match cli.command {
        Command::Port(PortVerb::Ls) => port_ls(socket, format).await,
        Command::Flow(FlowVerb::Ls(args)) => flow_ls(socket, format, args).await,
        Command::Flow(FlowVerb::Get { flow }) => flow_get(socket, format, flow).await,
        Command::Offload { switch } => offload(socket, format, switch).await,
        Command::Route(RouteVerb::Ls { vrf }) => route_ls(socket, format, vrf).await,
        Command::Conn(ConnVerb::Ls(args)) => conn_ls(socket, format, args).await,
        Command::Conn(ConnVerb::Stats) => conn_stats(socket, format).await,
        Command::Meter(MeterVerb::Ls) => meter_ls(socket, format).await,
        Command::Drops(args @ DropsArgs { log: true, .. }) => drop_log(socket, format, &args).await,
        Command::Drops(DropsArgs { follow: false, .. }) => {
            let drops = read_drops(&mut connect(socket).await?).await?;
            show(format, &drops, |drops| drop_table(drops))
        }
        Command::Drops(DropsArgs { follow: true, .. }) => follow_drops(socket, format).await,
        Command::Trace(TraceArgs { live: Some(filter), count, seconds, .. }) => {
            let (limit, seconds) = (count.unwrap_or(0), seconds.unwrap_or(0));
            let request = v1::TraceLiveRequest { filter, limit, seconds };
            trace_live(socket, format, request).await
        }
        Command::Trace(args) => trace(socket, format, args).await,
        Command::Worker => {
            let workers = read_workers(&mut connect(socket).await?).await?;
            let workers: Vec<_> = workers.into_iter().map(WorkerView::from).collect();
            show(format, &workers, |workers| worker_lines(workers))
        }
        Command::Top(args) => top(socket, format, &args).await,
        Command::Status => {
            let request = v1::HelloRequest { api_version: API_VERSION, client: "vrctl".to_owned() };
            let reply = connect(socket).await?.hello(request).await?.into_inner();
            show(format, &StatusView::from(reply), status_lines)
        }
        Command::Completion { shell } => print(&pages::completion(shell)),
        Command::Man { dir } => pages::manual(&dir),
    }
}

async fn connect(socket: &Path) -> Result<DatapathClient<Channel>, Failure> {
    let path = socket.to_str().ok_or_else(|| Failure::SocketPath(socket.to_owned()))?;
    let unreachable = |source| Failure::Unreachable { socket: socket.to_owned(), source };
    let endpoint = Endpoint::from_shared(format!("unix:{path}")).map_err(unreachable)?;
    let endpoint = endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT);
    let channel = endpoint.connect().await.map_err(unreachable)?;
    Ok(DatapathClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX))
}

async fn port_ls(socket: &Path, format: Format) -> Result<(), Failure> {
    let ports = list_ports(&mut connect(socket).await?).await?;
    let ports: Vec<PortView> = ports.into_iter().map(PortView::from).collect();
    show(format, &ports, |ports| port_table(ports))
}

async fn list_ports(client: &mut DatapathClient<Channel>) -> Result<Vec<v1::Port>, Failure> {
    let request = v1::ListRequest { kind: v1::ListKind::Ports.into(), ..Default::default() };
    Ok(client.list(request).await?.into_inner().ports)
}

async fn flow_ls(socket: &Path, format: Format, args: FlowArgs) -> Result<(), Failure> {
    let kind = if args.cache { v1::ListKind::Flows } else { v1::ListKind::Entries };
    let request =
        v1::ListRequest { kind: kind.into(), filter: args.flow, vrf: None, limit: args.limit };
    let reply = connect(socket).await?.list(request).await?.into_inner();
    warn_if_cut(&reply, "narrow them by a flow, or raise --limit");
    let flows: Vec<FlowView> = if args.cache {
        reply.flows.into_iter().map(FlowView::from).collect()
    } else {
        reply.entries.into_iter().map(FlowView::from).collect()
    };
    show(format, &flows, |flows| flow_lines(flows))
}

/// The flows that the engine and the kernel know by heart; that there are none is a refusal.
async fn flow_get(socket: &Path, format: Format, flow: String) -> Result<(), Failure> {
    let kind = v1::ListKind::Flows.into();
    let request = v1::ListRequest { kind, filter: flow.clone(), vrf: None, limit: 0 };
    let reply = connect(socket).await?.list(request).await?.into_inner();
    warn_if_cut(&reply, "narrow them by a longer flow");
    if reply.flows.is_empty() {
        let text =
            format!("no cached flow matches {flow:?}: `vrctl trace` tells what would happen");
        return Err(Status::not_found(text).into());
    }
    let flows: Vec<CachedFlowView> = reply.flows.into_iter().map(CachedFlowView::from).collect();
    show(format, &flows, |flows| cached_flow_lines(flows))
}

async fn offload(socket: &Path, format: Format, switch: Option<Switch>) -> Result<(), Failure> {
    let request = v1::OffloadRequest { on: switch.map(|switch| switch == Switch::On) };
    let reply = connect(socket).await?.offload(request).await?.into_inner();
    show(format, &OffloadView::from(reply), offload_lines)
}

async fn route_ls(socket: &Path, format: Format, vrf: Option<u32>) -> Result<(), Failure> {
    let kind = v1::ListKind::Entries.into();
    let request = v1::ListRequest { kind, vrf, limit: ROUTE_ENTRIES_MAX, ..Default::default() };
    let reply = connect(socket).await?.list(request).await?.into_inner();
    warn_if_cut(&reply, "narrow them by --vrf");
    let routes = routes(reply.entries)?;
    show(format, &routes, |routes| route_table(routes))
}

async fn conn_ls(socket: &Path, format: Format, args: ConnArgs) -> Result<(), Failure> {
    let kind = v1::ListKind::Connections.into();
    let request = v1::ListRequest { kind, filter: args.flow, vrf: None, limit: args.limit };
    let reply = connect(socket).await?.list(request).await?.into_inner();
    warn_if_cut(&reply, "narrow them by a flow, or raise --limit");
    let connections: Vec<_> = reply.connections.into_iter().map(ConnView::from).collect();
    show(format, &connections, |connections| conn_table(connections))
}

async fn conn_stats(socket: &Path, format: Format) -> Result<(), Failure> {
    let reply = connect(socket).await?.counters(v1::CountersRequest {}).await?.into_inner();
    let counters = reply
        .connections
        .ok_or_else(|| Status::unimplemented("this version of vrouterd counts no connections"))?;
    show(format, &ConnStatsView::from(counters), conn_stats_lines)
}

async fn meter_ls(socket: &Path, format: Format) -> Result<(), Failure> {
    let kind = v1::ListKind::Meters.into();
    let request = v1::ListRequest { kind, limit: METERS_MAX, ..Default::default() };
    let reply = connect(socket).await?.list(request).await?.into_inner();
    warn_if_cut(&reply, "they are too many for one listing");
    let meters: Vec<_> = reply.meters.into_iter().map(MeterView::from).collect();
    show(format, &meters, |meters| meter_table(meters))
}

fn warn_if_cut(reply: &v1::ListReply, next: &str) {
    if reply.truncated {
        eprintln!("vrctl: warning: there are more; {next}");
    }
}

async fn read_drops(client: &mut DatapathClient<Channel>) -> Result<Vec<DropView>, Failure> {
    let reply = client.drops(v1::DropsRequest {}).await?.into_inner();
    Ok(reply.drops.into_iter().map(DropView::from).collect())
}

/// Prints what each second adds, a JSON array a line or a line a reason, until interrupted.
async fn follow_drops(socket: &Path, format: Format) -> Result<(), Failure> {
    let mut client = connect(socket).await?;
    let mut before = read_drops(&mut client).await?;
    let mut second = tokio::time::interval(Duration::from_secs(1));
    // The first tick of an interval is at once.
    second.tick().await;
    loop {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => return interrupted.map_err(Failure::Io),
            _ = second.tick() => {}
        }
        let now = read_drops(&mut client).await?;
        let moved = added(&before, &now);
        let text = match format {
            _ if moved.is_empty() => String::new(),
            Format::Table => added_lines(&moved),
            Format::Json => json_line(&moved)?,
        };
        if print_part(&text)? == Reader::Gone {
            return Ok(());
        }
        before = now;
    }
}

async fn read_workers(client: &mut DatapathClient<Channel>) -> Result<Vec<v1::Worker>, Failure> {
    Ok(client.workers(v1::WorkersRequest {}).await?.into_inner().workers)
}

/// Prints what each interval cost: a table, or a JSON array a line.
async fn top(socket: &Path, format: Format, args: &TopArgs) -> Result<(), Failure> {
    let mut client = connect(socket).await?;
    let mut before = read_workers(&mut client).await?;
    let mut tick = tokio::time::interval(Duration::from_secs(args.interval.into()));
    // The first tick of an interval is at once.
    tick.tick().await;
    let mut left = args.count;
    while left != Some(0) {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => return interrupted.map_err(Failure::Io),
            _ = tick.tick() => {}
        }
        let now = read_workers(&mut client).await?;
        let cost = tops(&before, &now);
        let text = match format {
            Format::Table => top_lines(&cost),
            Format::Json => json_line(&cost)?,
        };
        if print_part(&text)? == Reader::Gone {
            return Ok(());
        }
        before = now;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

/// The log as a table, or as the packets come.
async fn drop_log(socket: &Path, format: Format, args: &DropsArgs) -> Result<(), Failure> {
    let request = v1::DropLogRequest { follow: args.follow, vrf: args.vrf };
    let mut packets = connect(socket).await?.drop_log(request).await?.into_inner();
    if args.follow {
        return print_each(packets, |packet| {
            let packet = DroppedView::from(packet);
            match format {
                Format::Table => Ok(dropped_line(&packet)),
                Format::Json => json_line(&packet),
            }
        })
        .await;
    }
    let mut all = Vec::new();
    while let Some(packet) = packets.message().await? {
        all.push(DroppedView::from(packet));
    }
    show(format, &all, |all| dropped_table(all))
}

/// Prints a stream as it comes, until it ends, the reader of the output leaves or the user interrupts.
async fn print_each<T>(
    mut stream: Streaming<T>,
    mut text: impl FnMut(T) -> Result<String, Failure>,
) -> Result<(), Failure> {
    loop {
        let item = tokio::select! {
            interrupted = tokio::signal::ctrl_c() => return interrupted.map_err(Failure::Io),
            item = stream.message() => item?,
        };
        let Some(item) = item else { return Ok(()) };
        if print_part(&text(item)?)? == Reader::Gone {
            return Ok(());
        }
    }
}

async fn trace(socket: &Path, format: Format, args: TraceArgs) -> Result<(), Failure> {
    let all = args.all;
    let requests = packet::requests(args)?;
    let mut client = connect(socket).await?;
    let mut traces = Vec::with_capacity(requests.len());
    for request in requests {
        traces.push(TraceView::from(client.trace(request).await?.into_inner()));
    }
    if format == Format::Json {
        return match (all, traces.as_slice()) {
            (false, [only]) => print(&json(only)?),
            (_, many) => print(&json(&many)?),
        };
    }
    let names = port_names(&mut client).await?;
    for (index, trace) in traces.iter().enumerate() {
        if all {
            print(&format!("packet {}:\n", index + 1))?;
        }
        print(&trace_text(trace, &names))?;
    }
    Ok(())
}

/// One trace a packet: texts with an empty line between them, or a JSON object a line.
async fn trace_live(
    socket: &Path,
    format: Format,
    request: v1::TraceLiveRequest,
) -> Result<(), Failure> {
    let mut client = connect(socket).await?;
    let names = port_names(&mut client).await?;
    let replies = client.trace_live(request).await?.into_inner();
    let mut separator = "";
    print_each(replies, |reply| {
        let trace = TraceView::from(reply);
        match format {
            Format::Table => {
                Ok(std::mem::replace(&mut separator, "\n").to_owned() + &trace_text(&trace, &names))
            }
            Format::Json => json_line(&trace),
        }
    })
    .await
}

async fn port_names(
    client: &mut DatapathClient<Channel>,
) -> Result<BTreeMap<u32, String>, Failure> {
    Ok(list_ports(client).await?.into_iter().map(|port| (port.id, port.name)).collect())
}
