//! When samples leave, and under which numbers.
//!
//! One exporter is one sub-agent: all sources of a node are numbered here, in one thread, because a
//! collector takes two sub-agents that report one source for two switches. The exporter holds one
//! datagram that is being filled and one that waits to be sent; a caller that samples without
//! calling [`Exporter::poll`] loses samples, and the loss is reported to the collector.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::sample::{
    COUNTER_SAMPLE_BYTES, CounterSample, FlowNumbers, FlowSample, IfIndex, NAME_BYTES_MAX,
    flow_sample_bytes,
};
use crate::xdr::{Emitter, patch};

/// Most sources an exporter knows; a node has at most 4,094 ports.
pub const SOURCES_MAX: usize = 4096;

/// The longest time a sample waits for others (section 4: "no longer than one second").
const HOLD_MAX: Duration = Duration::from_secs(1);
/// Largest UDP payload over IPv4.
const UDP_PAYLOAD_MAX: usize = 65_507;
/// The specification's 256 and more than twice that: a longer header is the packet, not its header.
const HEADER_BYTES_MAX: usize = 1024;

/// What an exporter is told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// The address that names this agent in all its datagrams, whichever way they are sent.
    pub agent: IpAddr,
    /// Tells apart several exporters with one agent address.
    pub sub_agent: u32,
    /// Most bytes of a sampled packet that are sent: 14..=1024.
    pub header_bytes: usize,
    /// Largest datagram, bytes of UDP payload.
    pub datagram_max: usize,
    /// Time between two counter samples of one interface, at least a second. `None`: none are due.
    pub polling: Option<Duration>,
}

impl Config {
    /// 128 bytes of header, datagrams of 1,400 bytes, counters every 30 seconds.
    #[must_use]
    pub const fn new(agent: IpAddr) -> Self {
        let polling = Some(Duration::from_secs(30));
        Self { agent, sub_agent: 0, header_bytes: 128, datagram_max: 1400, polling }
    }
}

/// A configuration no exporter can work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Collectors need at least the Ethernet header; more than the limit is no header.
    #[error("sFlow header of {0} bytes is not in 14..={HEADER_BYTES_MAX}")]
    HeaderBytes(usize),
    /// One sample of each kind must fit.
    #[error("sFlow datagram of {value} bytes is not in {first}..={UDP_PAYLOAD_MAX}")]
    DatagramMax {
        /// The refused size.
        value: usize,
        /// The smallest size in which every sample fits.
        first: usize,
    },
    /// Counters more often than once a second.
    #[error("sFlow polling interval of {0:?} is less than 1s")]
    Polling(Duration),
    /// Collectors cannot tell agents apart that have no address.
    #[error("sFlow agent address {0} is not an address of this node")]
    Agent(IpAddr),
}

/// Too many sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{SOURCES_MAX} sFlow sources exist already; interface index {} is not sampled", .0.get())]
pub struct SourcesFull(pub IfIndex);

/// A sample that is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The source was not added, or has been removed since the packet was sampled.
    #[error("interface index {} is no sFlow source", .0.get())]
    UnknownSource(IfIndex),
    /// A full datagram waits and was not polled; the sample counts as lost.
    #[error("a full sFlow datagram waits to be sent")]
    Unsent,
    /// The interface name is longer than [`NAME_BYTES_MAX`].
    #[error("interface name of {0} bytes is longer than {NAME_BYTES_MAX}")]
    NameTooLong(usize),
}

#[derive(Debug, Default)]
struct Source {
    flow_sequence: u32,
    counter_sequence: u32,
    /// Rate of the last sample.
    rate: u32,
    lost: u32,
    /// When its counters are due, if they are polled: its place in [`Exporter::schedule`].
    due: Duration,
}

/// Numbers, packs and dates samples. In all methods `now` is the time since this agent started (the
/// uptime collectors see); it never goes back.
#[derive(Debug)]
pub struct Exporter {
    config: Config,
    sources: BTreeMap<IfIndex, Source>,
    /// Every source once, by the time at which its counters are due. Empty without polling.
    schedule: BTreeSet<(Duration, IfIndex)>,
    /// Number of the next datagram.
    sequence: u32,
    open: Datagram,
    ready: Vec<u8>,
    scratch: Vec<u8>,
}

/// The datagram being filled.
#[derive(Debug)]
struct Datagram {
    bytes: Vec<u8>,
    samples: u32,
    /// When its first sample came.
    since: Duration,
}

impl Exporter {
    /// An exporter without sources; its first datagram and each source's first sample are number 1.
    ///
    /// # Errors
    /// [`ConfigError`] names the value that cannot work.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        if !(14..=HEADER_BYTES_MAX).contains(&config.header_bytes) {
            return Err(ConfigError::HeaderBytes(config.header_bytes));
        }
        let sample = flow_sample_bytes(config.header_bytes).max(COUNTER_SAMPLE_BYTES);
        let (value, first) = (config.datagram_max, header_len(config.agent) + sample);
        if !(first..=UDP_PAYLOAD_MAX).contains(&value) {
            return Err(ConfigError::DatagramMax { value, first });
        }
        if let Some(polling) = config.polling.filter(|p| *p < Duration::from_secs(1)) {
            return Err(ConfigError::Polling(polling));
        }
        if config.agent.is_unspecified() || config.agent.is_multicast() {
            return Err(ConfigError::Agent(config.agent));
        }
        Ok(Self {
            config,
            sources: BTreeMap::new(),
            schedule: BTreeSet::new(),
            sequence: 1,
            open: Datagram {
                bytes: Vec::with_capacity(config.datagram_max),
                samples: 0,
                since: Duration::ZERO,
            },
            ready: Vec::with_capacity(config.datagram_max),
            scratch: Vec::with_capacity(sample),
        })
    }

    /// Makes an interface a source of samples; one that is a source already keeps its numbers.
    ///
    /// # Errors
    /// [`SourcesFull`] when there are [`SOURCES_MAX`] others.
    pub fn add_source(&mut self, source: IfIndex, now: Duration) -> Result<(), SourcesFull> {
        if self.sources.contains_key(&source) {
            return Ok(());
        }
        if self.sources.len() == SOURCES_MAX {
            return Err(SourcesFull(source));
        }
        let mut due = Duration::ZERO;
        if let Some(polling) = self.config.polling {
            due = now + spread(source, polling);
            self.schedule.insert((due, source));
        }
        self.sources.insert(source, Source { due, ..Source::default() });
        Ok(())
    }

    /// Forgets a source. Added again, it starts with number 1, as collectors expect of an interface
    /// whose counters start again.
    pub fn remove_source(&mut self, source: IfIndex) {
        if let Some(gone) = self.sources.remove(&source) {
            self.schedule.remove(&(gone.due, source));
        }
    }

    /// Counts samples of a source that were lost on their way to the exporter, a queue being full.
    /// The next sample of the source reports them. Ignored for an unknown source.
    pub fn lost(&mut self, source: IfIndex, samples: u32) {
        if let Some(source) = self.sources.get_mut(&source) {
            source.lost = source.lost.wrapping_add(samples);
        }
    }

    /// Takes a sampled packet. Poll afterwards: it may have filled a datagram.
    ///
    /// # Errors
    /// [`SampleError::UnknownSource`], [`SampleError::Unsent`]; nothing is sent of the sample.
    pub fn flow_sample(
        &mut self,
        now: Duration,
        sample: &FlowSample<'_>,
    ) -> Result<(), SampleError> {
        let source = self
            .sources
            .get_mut(&sample.source)
            .ok_or(SampleError::UnknownSource(sample.source))?;
        // A sequence that starts again tells collectors to leave out the step between two rates.
        let sequence = if source.rate == sample.rate { source.flow_sequence } else { 0 };
        let sequence = sequence.wrapping_add(1);
        let (lost, header_bytes) = (source.lost, self.config.header_bytes);
        self.scratch.clear();
        sample.emit(
            FlowNumbers { sequence, lost, header_bytes },
            &mut Emitter::new(&mut self.scratch),
        );
        if let Err(refused) = self.append(now) {
            self.lost(sample.source, 1);
            return Err(refused);
        }
        if let Some(source) = self.sources.get_mut(&sample.source) {
            (source.flow_sequence, source.rate) = (sequence, sample.rate);
        }
        Ok(())
    }

    /// Takes the counters of an interface. Poll afterwards: it may have filled a datagram.
    ///
    /// # Errors
    /// [`SampleError`]; nothing is sent of the sample.
    pub fn counter_sample(
        &mut self,
        now: Duration,
        sample: &CounterSample<'_>,
    ) -> Result<(), SampleError> {
        if sample.name.len() > NAME_BYTES_MAX {
            return Err(SampleError::NameTooLong(sample.name.len()));
        }
        let source =
            self.sources.get(&sample.source).ok_or(SampleError::UnknownSource(sample.source))?;
        let sequence = source.counter_sequence.wrapping_add(1);
        self.scratch.clear();
        sample.emit(sequence, &mut Emitter::new(&mut self.scratch));
        self.append(now)?;
        if let Some(source) = self.sources.get_mut(&sample.source) {
            source.counter_sequence = sequence;
        }
        Ok(())
    }

    /// The next interface whose counters are due, each once per polling interval; call it until it
    /// returns `None`. The interfaces' times are spread over the interval.
    pub fn counters_due(&mut self, now: Duration) -> Option<IfIndex> {
        let polling = self.config.polling?;
        let (due, source) = self.schedule.first().copied().filter(|(due, _)| *due <= now)?;
        // Intervals that nobody asked in are left out: counters of the past cannot be read now.
        let behind = now.saturating_sub(due).as_nanos() / polling.as_nanos();
        let next = due + polling.saturating_mul(u32::try_from(behind + 1).unwrap_or(u32::MAX));
        self.schedule.remove(&(due, source));
        self.schedule.insert((next, source));
        if let Some(source) = self.sources.get_mut(&source) {
            source.due = next;
        }
        Some(source)
    }

    /// The next datagram to send: one that is full, or whose first sample has waited for a second.
    /// Call it until it returns `None`. What it returned counts as sent.
    pub fn poll(&mut self, now: Duration) -> Option<&[u8]> {
        if self.ready.is_empty() {
            let waited = now.saturating_sub(self.open.since);
            if self.open.samples == 0 || waited < HOLD_MAX {
                return None;
            }
            self.close(now);
        }
        std::mem::swap(&mut self.ready, &mut self.scratch);
        self.ready.clear();
        Some(&self.scratch)
    }

    /// The next moment at which [`Exporter::poll`] or [`Exporter::counters_due`] has something,
    /// without further samples. `None`: never.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let full = (!self.ready.is_empty()).then_some(Duration::ZERO);
        let held = (self.open.samples > 0).then(|| self.open.since + HOLD_MAX);
        let due = self.schedule.first().map(|(due, _)| *due);
        [full, held, due].into_iter().flatten().min()
    }

    /// Moves the sample in `scratch` to the open datagram, or to a new one when it is full.
    fn append(&mut self, now: Duration) -> Result<(), SampleError> {
        let full = self.open.bytes.len() + self.scratch.len() > self.config.datagram_max;
        if self.open.samples > 0 && full {
            if !self.ready.is_empty() {
                return Err(SampleError::Unsent);
            }
            self.close(now);
        }
        if self.open.samples == 0 {
            self.open.since = now;
            self.open.bytes.clear();
            let mut out = Emitter::new(&mut self.open.bytes);
            out.u32(5);
            out.address(self.config.agent);
            out.u32(self.config.sub_agent);
            // Sequence number, uptime and number of samples: known when it is closed.
            for _ in 0..3 {
                out.u32(0);
            }
        }
        self.open.bytes.extend_from_slice(&self.scratch);
        self.open.samples += 1;
        Ok(())
    }

    /// Completes the open datagram and makes it the one to send. None must be waiting.
    fn close(&mut self, now: Duration) {
        let numbers = header_len(self.config.agent) - 12;
        let bytes = &mut self.open.bytes;
        patch(bytes, numbers, self.sequence);
        // The specification's 32 bits of milliseconds: it wraps after 49.7 days.
        patch(bytes, numbers + 4, now.as_millis() as u32);
        patch(bytes, numbers + 8, self.open.samples);
        self.sequence = self.sequence.wrapping_add(1);
        self.open.samples = 0;
        std::mem::swap(&mut self.open.bytes, &mut self.ready);
    }
}

/// Bytes before the first sample.
const fn header_len(agent: IpAddr) -> usize {
    let address = if agent.is_ipv4() { 4 } else { 16 };
    4 + 4 + address + 4 + 12
}

/// A time within the interval that depends on the source only, different for neighbouring indexes.
fn spread(source: IfIndex, polling: Duration) -> Duration {
    const GOLDEN_RATIO: u32 = 0x9e37_79b9;
    let fraction = source.get().wrapping_mul(GOLDEN_RATIO);
    let nanos = (polling.as_nanos() * u128::from(fraction)) >> 32;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
