//! The thread that sends sFlow: the worker's samples and the ports' counters.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use flowtable::ids::PortId;
use sflow::{
    CounterSample, Exporter, FlowSample, IfIndex, InterfaceCounters, Output, SampleError, Traffic,
};
use vrouter::{Engine, PortStats, Sample};

use crate::config::SflowConfig;

/// How often the worker's queue is emptied: a tenth of what a sample may wait.
const DRAIN: Duration = Duration::from_millis(100);
/// How often ports are looked at for ones that came or went, and a failed start is repeated.
const LOOK: Duration = Duration::from_secs(1);

/// Samples sent in one go: some 40 datagrams, less than half of what the buffer of a collector's socket
/// holds unless told otherwise. More would be lost on the way, and nobody would know of whom.
const SAMPLES_AT_ONCE: usize = 256;
/// Before the next go, when there were more.
const PACE: Duration = Duration::from_millis(5);

/// The exporter could not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("the way to the collector")]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Config(#[from] sflow::ConfigError),
}

/// A new configuration for the thread; `None` stops sampling.
pub(crate) type Change = Option<SflowConfig>;

/// Runs until the sender of `changes` is gone.
pub(crate) fn run(engine: &Engine, changes: &Receiver<Change>) {
    let started = Instant::now();
    let mut wanted: Change = None;
    let mut session: Option<Session> = None;
    let mut looked: Option<Instant> = None;
    let mut pause = DRAIN;
    loop {
        match changes.recv_timeout(pause) {
            // A session that goes on keeps its numbers.
            Ok(change) if change == wanted && looked.is_some() => {}
            Ok(change) => {
                wanted = change;
                (session, looked) = (None, None);
                engine.set_sample_rate(wanted.map_or(0, |w| w.rate));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = started.elapsed();
        if looked.is_none_or(|l| l.elapsed() >= LOOK) {
            looked = Some(Instant::now());
            if let (None, Some(config)) = (&session, &wanted) {
                session = start(config, engine.samples_lost());
            }
            if let Some(session) = &mut session {
                session.follow_ports(&engine.ports(), now);
            }
        }
        let sent = match &mut session {
            Some(session) => session.send(engine, now),
            // Nobody wants what a port's own rate has sampled.
            None => std::iter::from_fn(|| engine.next_sample()).take(SAMPLES_AT_ONCE).count(),
        };
        pause = if sent < SAMPLES_AT_ONCE { DRAIN } else { PACE };
    }
}

fn start(config: &SflowConfig, lost: u64) -> Option<Session> {
    match Session::new(config, lost) {
        Ok(session) => Some(session),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(collector = %config.collector, %error, cause, "sFlow does not start");
            None
        }
    }
}

/// One configuration's exporter with its socket.
#[derive(Debug)]
struct Session {
    exporter: Exporter,
    socket: UdpSocket,
    sources: BTreeMap<PortId, IfIndex>,
    /// The largest pool that a sample of the port was sent with: the worker's samples and the others
    /// come in order only among themselves.
    pools: BTreeMap<PortId, u64>,
    /// Samples that the worker could not hand over, as far as reported.
    lost: u64,
    /// A failing collector is named once, not once a datagram.
    failing: bool,
}

impl Session {
    /// `lost` samples were lost before its time.
    fn new(config: &SflowConfig, lost: u64) -> Result<Self, StartError> {
        let any: IpAddr = match config.collector {
            std::net::SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            std::net::SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(config.collector)?;
        let agent = config.agent.map_or_else(|| socket.local_addr().map(|a| a.ip()), Ok)?;
        let polling = (config.polling_s > 0).then(|| Duration::from_secs(config.polling_s));
        let exporter = Exporter::new(sflow::Config { polling, ..sflow::Config::new(agent) })?;
        tracing::info!(collector = %config.collector, %agent, rate = config.rate, "sFlow");
        let (sources, pools) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { exporter, socket, sources, pools, lost, failing: false })
    }

    /// A port is a source under the interface index of its device.
    fn follow_ports(&mut self, ports: &[PortStats], now: Duration) {
        let current = ports.iter().filter_map(|port| {
            // Indexes above 24 bits are beyond what collectors read; such a port has no samples.
            Some((port.spec.id, IfIndex::new(port.spec.ifindex).ok()?))
        });
        let current = current.collect::<BTreeMap<_, _>>();
        for (port, index) in &self.sources {
            if current.get(port) != Some(index) {
                self.exporter.remove_source(*index);
            }
        }
        for index in current.values() {
            if let Err(error) = self.exporter.add_source(*index, now) {
                tracing::warn!(%error, "sFlow source");
            }
        }
        self.pools.retain(|port, _| self.sources.get(port) == current.get(port));
        self.sources = current;
    }

    /// Sends what there is, up to [`SAMPLES_AT_ONCE`] samples; returns how many that were.
    fn send(&mut self, engine: &Engine, now: Duration) -> usize {
        let mut sent = 0;
        for sample in std::iter::from_fn(|| engine.next_sample()).take(SAMPLES_AT_ONCE) {
            self.report_loss(engine.samples_lost(), sample.in_port);
            self.flow_sample(&sample, now);
            self.emit(now);
            sent += 1;
        }
        let mut due = Vec::new();
        while let Some(index) = self.exporter.counters_due(now) {
            due.push(index);
        }
        if !due.is_empty() {
            let ports = engine.ports();
            for port in &ports {
                self.counter_sample(port, &due, now);
                self.emit(now);
            }
        }
        self.emit(now);
        sent
    }

    /// The worker counts losses of all ports together; they are reported with the next sample.
    fn report_loss(&mut self, total: u64, port: PortId) {
        let new = total.saturating_sub(self.lost);
        if let (1.., Some(source)) = (new, self.sources.get(&port)) {
            self.exporter.lost(*source, u32::try_from(new).unwrap_or(u32::MAX));
            self.lost = total;
        }
    }

    fn flow_sample(&mut self, sample: &Sample, now: Duration) {
        let Some(source) = self.sources.get(&sample.in_port).copied() else { return };
        let output = match (sample.drop, sample.out_port) {
            (Some(reason), _) => Output::Dropped(reason.sflow_code() as u16),
            (None, Some(port)) => {
                self.sources.get(&port).map_or(Output::Unknown, |index| Output::Interface(*index))
            }
            (None, None) => Output::Unknown,
        };
        let pool = self.pools.entry(sample.in_port).or_default();
        *pool = sample.pool.max(*pool);
        let taken = self.exporter.flow_sample(
            now,
            &FlowSample {
                source,
                rate: sample.rate,
                // Modulo 2^32, as sFlow has it.
                pool: *pool as u32,
                output,
                frame_len: sample.frame_len,
                vlan_in: sample.vlan_in,
                vlan_out: sample.vlan_out,
                header: &sample.header[..usize::from(sample.header_len)],
            },
        );
        log_refused(taken);
    }

    /// Takes the counters of a port if they are due.
    fn counter_sample(&mut self, port: &PortStats, due: &[IfIndex], now: Duration) {
        let source = self.sources.get(&port.spec.id).copied();
        let Some(source) = source.filter(|source| due.contains(source)) else { return };
        // sFlow's packet counters are 32 bits wide and wrap.
        let traffic = |count: vrouter::Count, discards: Option<u32>| Traffic {
            octets: count.bytes,
            unicast: Some(count.packets as u32),
            discards,
            ..Traffic::default()
        };
        let interface = InterfaceCounters {
            speed_bps: 0,
            admin_up: true,
            oper_up: true,
            rx: traffic(port.rx, Some(port.drops as u32)),
            rx_unknown_protocols: None,
            tx: traffic(port.tx, None),
        };
        let name = &port.spec.name;
        let sample = CounterSample { source, name, interface, ethernet: None };
        log_refused(self.exporter.counter_sample(now, &sample));
    }

    fn emit(&mut self, now: Duration) {
        while let Some(datagram) = self.exporter.poll(now) {
            match self.socket.send(datagram) {
                Ok(_) => self.failing = false,
                // A collector that is away is no reason to stop: it may come back.
                Err(error) if !self.failing => {
                    self.failing = true;
                    tracing::warn!(%error, "sFlow datagrams are not sent");
                }
                Err(_) => {}
            }
        }
    }
}

fn log_refused(taken: Result<(), SampleError>) {
    if let Err(error) = taken {
        tracing::debug!(%error, "sFlow sample");
    }
}
