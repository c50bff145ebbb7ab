//! Echo requests: a counted few, or a steady flow that shows gaps.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Icmpv6Header, Icmpv6Slice, Icmpv6Type,
    Ipv4HeaderSlice, ip_number,
};
use netdev::Namespace;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, connect, socket,
};

/// How long one request waits for its answer.
const ANSWER_BOUND: Duration = Duration::from_secs(1);
const PAYLOAD: [u8; 48] = [0x5a; 48];

/// What came of some echo requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// Requests sent.
    pub sent: u32,
    /// Requests answered within a second.
    pub received: u32,
    /// TTL of the last answer as it arrived; the kernel does not show IPv6's hop limit.
    pub ttl: Option<u8>,
}

/// Sends `count` echo requests from `namespace`, each after the answer to the one before.
///
/// # Errors
/// When a request cannot be sent for a reason of this side, such as no route.
pub fn ping(namespace: &Namespace, dst: impl Into<IpAddr>, count: u32) -> Result<Ping> {
    let echo = Echo::open(namespace, dst.into())?;
    let mut result = Ping { sent: 0, received: 0, ttl: None };
    for sequence in 0..count {
        // Sequence numbers are sixteen bits; within one call only neighbours must differ.
        let sequence = sequence as u16;
        echo.send(sequence)?;
        result.sent += 1;
        if let Some((_, ttl)) = echo.wait_for(sequence, Instant::now() + ANSWER_BOUND)? {
            result.received += 1;
            result.ttl = ttl;
        }
    }
    Ok(result)
}

/// What came of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowReport {
    /// Requests sent.
    pub sent: u32,
    /// Requests answered.
    pub received: u32,
    /// Longest time between two answers, or from the start to the first, or from the last to the
    /// end of sending.
    pub gap_max: Duration,
}

/// A steady flow of echo requests in the background, to see what a restart or an outage does to
/// traffic. At most 65,536 requests, so that none is taken for another.
#[derive(Debug)]
pub struct Flow {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<FlowReport>>>,
}

impl Flow {
    /// Starts sending from `namespace`, one request every `interval`.
    ///
    /// # Errors
    /// When no socket is to be had or no route leads there.
    pub fn start(
        namespace: &Namespace,
        dst: impl Into<IpAddr>,
        interval: Duration,
    ) -> Result<Self> {
        let echo = Echo::open(namespace, dst.into())?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let work = move || run_flow(&echo, interval, &seen);
        let thread = thread::Builder::new().name("flow".into()).spawn(work)?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops sending, waits a second for the last answers, and reports.
    ///
    /// # Errors
    /// When the socket failed while it ran.
    pub fn stop(mut self) -> Result<FlowReport> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("stopped already")?;
        thread.join().map_err(|_panic| anyhow!("the flow's thread panicked"))?
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn run_flow(echo: &Echo, interval: Duration, stop: &AtomicBool) -> Result<FlowReport> {
    let start = Instant::now();
    let mut answers: BTreeMap<u16, Instant> = BTreeMap::new();
    let mut sent = 0_u32;
    while !stop.load(Ordering::Relaxed) && u16::try_from(sent).is_ok() {
        // A full queue or a device that is down for a moment loses this request like any other.
        if let Err(error) = echo.send(sent as u16)
            && sent == 0
        {
            return Err(error);
        }
        sent += 1;
        echo.collect(start + interval * sent, &mut answers)?;
    }
    let end = Instant::now();
    let deadline = end + ANSWER_BOUND;
    while (answers.len() as u64) < u64::from(sent) && Instant::now() < deadline {
        echo.collect(Instant::now() + Duration::from_millis(20), &mut answers)?;
    }
    Ok(FlowReport { sent, received: answers.len() as u32, gap_max: gap_max(start, end, &answers) })
}

fn gap_max(start: Instant, end: Instant, answers: &BTreeMap<u16, Instant>) -> Duration {
    let mut times: Vec<Instant> = answers.values().copied().chain([start, end]).collect();
    times.sort();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

fn raw_socket(dst: IpAddr) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    match dst {
        IpAddr::V4(dst) => {
            let raw = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp)?;
            connect(raw.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(dst, 0)))?;
            Ok(raw)
        }
        IpAddr::V6(dst) => {
            let raw = socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6)?;
            connect(raw.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(dst, 0, 0, 0)))?;
            Ok(raw)
        }
    }
}

/// A raw ICMP socket towards one address.
#[derive(Debug)]
struct Echo {
    socket: UdpSocket,
    dst: IpAddr,
    id: u16,
}

/// Sequence number and TTL of an answer.
type Answer = (u16, Option<u8>);

impl Echo {
    fn open(namespace: &Namespace, dst: IpAddr) -> Result<Self> {
        static NEXT_ID: AtomicU16 = AtomicU16::new(1);
        let socket = namespace.run(|| raw_socket(dst))?;
        let socket = socket.with_context(|| format!("preparing to ping {dst}"))?;
        let id = (std::process::id() as u16) ^ NEXT_ID.fetch_add(1, Ordering::Relaxed).swap_bytes();
        // The standard library's socket serves any datagram socket; it adds the receive timeout.
        Ok(Self { socket: socket.into(), dst, id })
    }

    fn send(&self, sequence: u16) -> Result<()> {
        let echo = IcmpEchoHeader { id: self.id, seq: sequence };
        let mut packet = Vec::new();
        match self.dst {
            IpAddr::V4(_) => {
                let kind = Icmpv4Type::EchoRequest(echo);
                Icmpv4Header::with_checksum(kind, &PAYLOAD).write(&mut packet)?;
            }
            // The kernel puts the checksum in (RFC 3542, section 3.1).
            IpAddr::V6(_) => {
                Icmpv6Header::new(Icmpv6Type::EchoRequest(echo)).write(&mut packet)?;
            }
        }
        packet.extend(PAYLOAD);
        match self.socket.send(&packet) {
            // Nobody answered ARP for the request before: an answer that is missing, like others.
            Err(error) if error.kind() == io::ErrorKind::HostUnreachable => Ok(()),
            outcome => outcome.map(drop).context("sending an echo request"),
        }
    }

    /// The answer to `sequence`, if one comes.
    fn wait_for(&self, sequence: u16, deadline: Instant) -> Result<Option<Answer>> {
        while let Some(answer) = self.receive(deadline)? {
            if answer.0 == sequence {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }

    fn collect(&self, deadline: Instant, answers: &mut BTreeMap<u16, Instant>) -> Result<()> {
        while let Some((sequence, _)) = self.receive(deadline)? {
            answers.entry(sequence).or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// The next answer to one of our requests; `None` at the deadline.
    fn receive(&self, deadline: Instant) -> Result<Option<Answer>> {
        let mut buffer = [0; 2048];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let answer = match self.socket.recv(&mut buffer) {
                Ok(len) if self.dst.is_ipv4() => parse_answer(&buffer[..len], self.id),
                Ok(len) => parse_answer6(&buffer[..len], self.id),
                // The time is up, or an ICMP error came back: no answer either way.
                Err(error) if error.raw_os_error().is_some() => None,
                Err(error) => return Err(error.into()),
            };
            if answer.is_some() {
                return Ok(answer);
            }
        }
    }
}

/// Sequence number and TTL, when the packet answers a request of that id. A raw socket gets the
/// IP header too.
fn parse_answer(packet: &[u8], id: u16) -> Option<Answer> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    if ip.protocol() != ip_number::ICMP {
        return None;
    }
    let icmp = Icmpv4Slice::from_slice(packet.get(ip.slice().len()..)?).ok()?;
    let Icmpv4Type::EchoReply(echo) = icmp.icmp_type() else { return None };
    (echo.id == id && icmp.payload() == PAYLOAD).then(|| (echo.seq, Some(ip.ttl())))
}

/// As [`parse_answer`]; IPv6's raw sockets get no IP header.
fn parse_answer6(packet: &[u8], id: u16) -> Option<Answer> {
    let icmp = Icmpv6Slice::from_slice(packet).ok()?;
    let Icmpv6Type::EchoReply(echo) = icmp.icmp_type() else { return None };
    (echo.id == id && icmp.payload() == PAYLOAD).then_some((echo.seq, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: u16, seq: u16, payload: &[u8]) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 63)
            .icmpv4(Icmpv4Type::EchoReply(IcmpEchoHeader { id, seq }));
        let mut packet = Vec::new();
        builder.write(&mut packet, payload).unwrap();
        packet
    }

    #[test]
    fn an_answer_gives_sequence_and_ttl_to_its_own_asker_only() {
        assert_eq!(parse_answer(&answer(7, 9, &PAYLOAD), 7), Some((9, Some(63))));
        assert_eq!(parse_answer(&answer(7, 9, &PAYLOAD), 8), None);
        assert_eq!(parse_answer(&answer(7, 9, b"other"), 7), None);
    }

    #[test]
    fn a_truncated_answer_is_none() {
        let whole = answer(7, 9, &PAYLOAD);
        for length in 0..whole.len() {
            assert_eq!(parse_answer(&whole[..length], 7), None, "{length} bytes");
        }
    }

    #[test]
    fn the_longest_gap_counts_start_and_end() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let answers = BTreeMap::from([(0, at(10)), (1, at(20)), (2, at(80))]);
        assert_eq!(gap_max(start, at(90), &answers), Duration::from_millis(60));
        assert_eq!(gap_max(start, at(180), &answers), Duration::from_millis(100));
        assert_eq!(gap_max(start, at(50), &BTreeMap::new()), Duration::from_millis(50));
    }
}
