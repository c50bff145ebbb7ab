//! What each command asks of the engine and prints.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use datapath_api::v1;
use datapath_api::v1::datapath_client::DatapathClient;
use serde::Serialize;
use tonic::transport::{Channel, Endpoint};

use crate::args::{Cli, Command, FlowArgs, FlowVerb, Format, PortVerb, RouteVerb, TraceArgs};
use crate::drops::{DropView, added, added_lines, drop_table};
use crate::failure::Failure;
use crate::packet;
use crate::pages;
use crate::route::{route_table, routes};
use crate::trace::{TraceView, trace_text};
use crate::view::{FlowView, PortView, StatusView, flow_lines, port_table, status_lines};

/// The version of datapath.v1 that this program speaks.
const API_VERSION: u32 = 1;
/// How long a call may take. The engine is on this machine.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Entries asked for to find the routes among them.
const ROUTE_ENTRIES_MAX: u32 = 200_000;
/// Largest reply accepted: that many entries of some hundred bytes each.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// Runs one command.
pub(crate) async fn run(cli: Cli) -> Result<(), Failure> {
    let (socket, format) = (cli.socket.as_path(), cli.output);
    match cli.command {
        Command::Port(PortVerb::Ls) => port_ls(socket, format).await,
        Command::Flow(FlowVerb::Ls(args)) => flow_ls(socket, format, args).await,
        Command::Route(RouteVerb::Ls { vrf }) => route_ls(socket, format, vrf).await,
        Command::Drops { follow: false } => {
            let drops = read_drops(&mut connect(socket).await?).await?;
            show(format, &drops, |drops| drop_table(drops))
        }
        Command::Drops { follow: true } => follow_drops(socket, format).await,
        Command::Trace(args) => trace(socket, format, args).await,
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

async fn route_ls(socket: &Path, format: Format, vrf: Option<u32>) -> Result<(), Failure> {
    let kind = v1::ListKind::Entries.into();
    let request = v1::ListRequest { kind, vrf, limit: ROUTE_ENTRIES_MAX, ..Default::default() };
    let reply = connect(socket).await?.list(request).await?.into_inner();
    warn_if_cut(&reply, "narrow them by --vrf");
    let routes = routes(reply.entries)?;
    show(format, &routes, |routes| route_table(routes))
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
        if !moved.is_empty() {
            print(&match format {
                Format::Table => added_lines(&moved),
                Format::Json => serde_json::to_string(&moved)? + "\n",
            })?;
        }
        before = now;
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
    let ports = list_ports(&mut client).await?;
    let names: BTreeMap<u32, String> = ports.into_iter().map(|p| (p.id, p.name)).collect();
    for (index, trace) in traces.iter().enumerate() {
        if all {
            print(&format!("packet {}:\n", index + 1))?;
        }
        print(&trace_text(trace, &names))?;
    }
    Ok(())
}

fn show<T: Serialize>(
    format: Format,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    match format {
        Format::Table => print(&text(value)),
        Format::Json => print(&json(value)?),
    }
}

fn json<T: Serialize>(value: &T) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // The reader has seen enough: `vrctl flow ls | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(Failure::Io),
    }
}
